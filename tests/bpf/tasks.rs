//! A process that makes tasks of every kind, and what the tests of this binary share.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use cgfuse::sys::linux::Linux;
use cgfuse::sys::{Machine, Tid};
use cgfuse::tracker::Tracker;
use cgfuse::tracker::bpf::Bpf;
use cgfuse::tracker::table::{CssSetId, Slot};

use crate::common::{compiled, is_root, skipped, spawn};

pub(crate) fn linux() -> Linux {
    Linux::new().expect("/proc")
}

/// A tracker. Where bpf(2) is forbidden, says that `test` is skipped; root may.
pub(crate) fn start(test: &str) -> Option<Bpf> {
    match Bpf::new(&linux()) {
        Ok(bpf) => Some(bpf),
        Err(error) if !is_root() => {
            skipped(test, &error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Moves a task; false if there is none.
pub(crate) fn place(bpf: &Bpf, tid: Tid, css_set: CssSetId) -> bool {
    while let Some(old) = bpf.table().get(tid) {
        if old.css_set == css_set || bpf.table().replace(tid, old, Slot { css_set, ..old }).is_ok() {
            return true;
        }
    }
    false
}

/// A process; see tasks.c.
pub(crate) struct Tasks {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Tasks {
    pub(crate) fn new(args: &[&str]) -> Self {
        let mut command = Command::new(binary());
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = spawn(command).expect("it starts");
        let orders = process.stdin.take().expect("piped");
        let answers = BufReader::new(process.stdout.take().expect("piped"));
        Self { process, orders, answers }
    }

    pub(crate) fn pid(&self) -> Tid {
        self.process.id() as Tid
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("it answers");
        line.trim_end().to_owned()
    }

    /// The numbers that it says next.
    pub(crate) fn ids(&mut self) -> Vec<Tid> {
        let line = self.line();
        line.split(' ').map(|word| word.parse().unwrap_or_else(|_| panic!("{line:?}"))).collect()
    }

    pub(crate) fn go(&mut self) {
        self.orders.write_all(b"\n").expect("it listens");
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Compiles tasks.c once; a changed source gets another name.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| compiled("tests/bpf/tasks.c"))
}

/// Whether something comes to hold that other CPUs are still about to do.
pub(crate) fn soon(f: impl FnMut() -> bool) -> bool {
    crate::storm::settles(f)
}

/// What in the table is not so: stale slots, tasks that are missing, and counts of css_sets that are the test's.
pub(crate) fn untruths(bpf: &Bpf, css_sets: std::ops::Range<CssSetId>) -> Vec<String> {
    let (machine, table) = (linux(), bpf.table());
    let lives = |tid: Tid| machine.task(tid).is_ok_and(|info| !info.zombie);
    let mut untruths = Vec::new();
    for (tid, slot) in table.iter() {
        let is_true = || match table.get(tid) {
            None => true,
            Some(now) => now.tgid != slot.tgid || (lives(tid) && machine.is_thread_of(now.tgid, tid)),
        };
        if !soon(is_true) {
            untruths.push(format!("stale: {tid} {slot:?}"));
        }
    }
    for tgid in machine.processes() {
        for tid in machine.threads(tgid).unwrap_or_default() {
            if !soon(|| table.get(tid).is_some() || !lives(tid)) {
                untruths.push(format!("missing: {tid} of {tgid}"));
            }
        }
    }
    for css_set in css_sets {
        let members = || table.iter().filter(|(_, slot)| slot.css_set == css_set).count() as u64;
        if !soon(|| members() == table.count(css_set)) {
            untruths.push(format!("count of {css_set}: {}, not {}", table.count(css_set), members()));
        }
    }
    untruths
}
