//! Processes that are born, execute programs and exit as they are told, and what is to be seen of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use cgfuse::sys::Tid;
use cgfuse::sys::linux::Linux;
use cgfuse::tracker::Tracker;
use cgfuse::tracker::table::{CssSetId, Slot};

use crate::common::{self, TempDir, as_user, is_root, spawn, state, wait_until};

/// The compiled births.c, by a path that everybody may use.
const PROGRAM: &str = "CGFUSE_TEST_BIRTHS";

/// The ordinary user.
const NOBODY: u32 = 65534;

fn compiled() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| std::env::var_os(PROGRAM).map_or_else(|| common::compiled("tests/events/births.c"), PathBuf::from))
}

/// Runs the test, and again as an ordinary user where it runs as root.
pub(crate) fn as_both(test: &str, body: impl FnOnce()) {
    body();
    if !is_root() {
        return;
    }
    let temp = TempDir::new();
    let program = temp.path().join("births");
    fs::copy(compiled(), &program).expect("a copy for everybody");
    // By this name it does not matter whether the user may see the path.
    let mut command = Command::new("/proc/self/exe");
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(PROGRAM, program).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    as_user(&mut command, NOBODY);
    let output = spawn(command).expect("the test starts again").wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "as an ordinary user:\n{said}");
    said.lines().filter(|line| line.starts_with("stress: ") || line.starts_with("skipped: ")).for_each(|line| {
        let _ = writeln!(std::io::stderr(), "{line} (uid {NOBODY})");
    });
}

/// A process that takes orders; see births.c.
pub(crate) struct Births {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// What it has said at its start: the tids of its threads.
    pub(crate) tids: Vec<Tid>,
}

impl Births {
    pub(crate) fn new() -> Births {
        Births::with(&[])
    }

    pub(crate) fn with(args: &[&str]) -> Births {
        let mut command = Command::new(compiled());
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = spawn(command).expect("births starts");
        let orders = process.stdin.take().expect("piped");
        let answers = BufReader::new(process.stdout.take().expect("piped"));
        let mut births = Births { process, orders, answers, tids: Vec::new() };
        births.tids = births.answer();
        births
    }

    pub(crate) fn pid(&self) -> Tid {
        self.process.id().cast_signed()
    }

    fn answer(&mut self) -> Vec<Tid> {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("an answer");
        line.strip_prefix("ok ").expect(&line).split_whitespace().map(|number| number.parse().expect("a number")).collect()
    }

    /// The answer's numbers.
    pub(crate) fn order(&mut self, order: &str) -> Vec<Tid> {
        writeln!(self.orders, "{order}").expect("an order");
        self.answer()
    }

    /// The id of what is born.
    pub(crate) fn born(&mut self, order: &str) -> Tid {
        let id = self.order(order)[0];
        assert!(id > 0, "{order}");
        id
    }

    /// A thread ends, and has done so when this returns.
    pub(crate) fn exit(&mut self, who: &str, tid: Tid) {
        self.order(&format!("{who} exit"));
        let pid = self.pid();
        wait_until("the thread has ended", || matches!(state(pid, tid), None | Some('Z' | 'X')));
    }

    /// All tasks of its session that live, and their processes.
    pub(crate) fn tasks(&self) -> BTreeMap<Tid, Tid> {
        let mut tasks = BTreeMap::new();
        let session = self.pid().to_string();
        for tgid in numbers("/proc") {
            let in_session = |text: String| text[text.rfind(')').unwrap_or(0)..].split_whitespace().nth(4) == Some(&session);
            if fs::read_to_string(format!("/proc/{tgid}/stat")).is_ok_and(in_session) {
                let threads = numbers(&format!("/proc/{tgid}/task"));
                let live = threads.into_iter().filter(|tid| !matches!(state(tgid, *tid), None | Some('Z' | 'X')));
                tasks.extend(live.map(|tid| (tid, tgid)));
            }
        }
        tasks
    }
}

impl Drop for Births {
    fn drop(&mut self) {
        // It kills its whole process group, and would do so at the end of its orders.
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(self.pid()), nix::sys::signal::Signal::SIGKILL);
        let _ = self.process.wait();
    }
}

fn numbers(dir: &str) -> Vec<Tid> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A tracker at work, on this machine.
pub(crate) struct Watch<T: Tracker> {
    pub(crate) machine: Linux,
    pub(crate) tracker: T,
}

impl<T: Tracker> Watch<T> {
    pub(crate) fn new(tracker: T) -> Self {
        let mut watch = Self { machine: Linux::new().expect("/proc"), tracker };
        watch.tracker.activate(&watch.machine, true).unwrap_or_else(|error| panic!("{error}"));
        watch
    }

    pub(crate) fn sync(&mut self) {
        self.tracker.sync(&self.machine);
    }

    /// Moves a thread.
    pub(crate) fn place(&mut self, tid: Tid, css_set: CssSetId) {
        let old = self.tracker.table().get(tid).unwrap_or_else(|| panic!("{tid} is not known"));
        self.tracker.table().replace(tid, old, Slot::new(old.tgid, css_set)).expect("nobody else writes");
    }

    /// Where these tasks are after a sync, the dead removed.
    #[track_caller]
    pub(crate) fn expect(&mut self, what: &str, expected: &[(Tid, Option<CssSetId>)]) {
        self.sync();
        let known: Vec<_> = expected.iter().filter_map(|(tid, _)| Some((*tid, self.tracker.table().get(*tid)?))).collect();
        self.tracker.reap(&self.machine, &known);
        let found: Vec<_> = expected.iter().map(|(tid, _)| (*tid, self.tracker.table().get(*tid).map(|slot| slot.css_set))).collect();
        assert_eq!(found, expected, "{what}");
    }

    /// Who is in these css_sets, with their processes.
    pub(crate) fn members(&mut self, css_sets: &[CssSetId]) -> BTreeMap<Tid, Tid> {
        let members: Vec<_> = self.tracker.table().iter().filter(|(_, slot)| css_sets.contains(&slot.css_set)).collect();
        self.tracker.reap(&self.machine, &members);
        let members = self.tracker.table().iter().filter(|(_, slot)| css_sets.contains(&slot.css_set));
        members.map(|(tid, slot)| (tid, slot.tgid)).collect()
    }

    /// The table holds who is there, whatever else happens on the machine. While others lose events for us it may take some looks.
    #[track_caller]
    pub(crate) fn agrees_with_proc(&mut self) {
        let mut wrong = (Vec::new(), Vec::new());
        let agrees = (0..10).any(|_| {
            wrong = self.disagreement();
            wrong.0.is_empty() && wrong.1.is_empty()
        });
        assert!(agrees, "missing: {:?}, stale: {:?}", wrong.0, wrong.1);
    }

    /// Who is missing in the table, and who should not be there.
    fn disagreement(&mut self) -> (Vec<Tid>, Vec<Tid>) {
        let all = || -> BTreeSet<Tid> {
            let processes = numbers("/proc").into_iter();
            let threads = processes.flat_map(|tgid| numbers(&format!("/proc/{tgid}/task")).into_iter().map(move |tid| (tgid, tid)));
            threads.filter(|(tgid, tid)| !matches!(state(*tgid, *tid), None | Some('Z' | 'X'))).map(|(_, tid)| tid).collect()
        };
        let table = |watch: &Self| -> BTreeSet<Tid> { watch.tracker.table().iter().map(|(tid, _)| tid).collect() };
        let before = all();
        self.sync();
        let mut known = table(self);
        // What is told a little late is told by then.
        std::thread::sleep(std::time::Duration::from_millis(100));
        let after = all();
        self.sync();
        let later = table(self);
        let missing = before.intersection(&after).filter(|tid| !known.contains(tid) && !later.contains(tid)).copied().collect();
        known.retain(|tid| later.contains(tid) && !before.contains(tid) && !after.contains(tid));
        let now = all();
        let stale = known.difference(&now).copied().collect();
        (missing, stale)
    }
}
