//! The process that makes the storms, and what the tests of this binary share.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use crate::common::{TempDir, can_mount, compiled, skipped, spawn, try_affinity, write};

/// A third of these rounds, or so many times more than all of them as the environment says.
pub(crate) fn rounds(full: usize) -> usize {
    let factor = std::env::var("CGFUSE_STRESS").ok().and_then(|text| text.parse().ok()).unwrap_or(0.34);
    ((full as f64 * factor) as usize).max(1)
}

/// The figures of a test, past the harness' capture.
pub(crate) fn report(test: &str, figures: &str) {
    let _ = writeln!(std::io::stderr(), "stress: {test}: {figures}");
}

/// Says so where the test cannot run.
pub(crate) fn cannot_mount(test: &str) -> bool {
    let cannot = !can_mount();
    if cannot {
        skipped(test, "cannot open /dev/fuse");
    }
    cannot
}

/// Numbers below a bound; the seed is printed by whoever reports.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn new() -> Random {
        let given = std::env::var("CGFUSE_SEED").ok().and_then(|text| text.parse().ok());
        let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64 | 1);
        Random(given.unwrap_or_else(now))
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }
}

/// Whether `f` comes to hold, however loaded the machine is.
pub(crate) fn settles(mut f: impl FnMut() -> bool) -> bool {
    (0..3_000).any(|_| {
        f() || {
            std::thread::sleep(Duration::from_millis(1));
            false
        }
    })
}

/// A new group with these CPUs.
pub(crate) fn group(parent: &Path, name: &str, cpus: &str) -> PathBuf {
    let dir = parent.join(name);
    fs::create_dir(&dir).expect("mkdir");
    for (file, text) in [("cpuset.mems", "0"), ("cpuset.cpus", cpus)] {
        write(dir.join(file), text).expect(file);
    }
    dir
}

/// Those of `tids` that live and run elsewhere than on `cpus`.
pub(crate) fn astray(tids: &[i32], cpus: &[usize]) -> Vec<(i32, Vec<usize>)> {
    let masks = tids.iter().filter_map(|tid| Some((*tid, try_affinity(*tid).ok()?)));
    masks.filter(|(_, mask)| mask != cpus).collect()
}

/// The CPUs in a list such as `0-1`.
pub(crate) fn cpus(list: &str) -> Vec<usize> {
    match list.split_once('-') {
        Some((first, last)) => (first.parse().expect("a CPU")..=last.parse().expect("a CPU")).collect(),
        None => vec![list.parse().expect("a CPU")],
    }
}

/// Something alive that a storm has made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Birth {
    /// Its id.
    pub(crate) id: i32,
    /// The thread that made it.
    pub(crate) creator: i32,
    /// The creator's epoch before the birth and after it.
    pub(crate) epochs: (i32, i32),
}

/// A process with creators at work; see storm.c.
pub(crate) struct Storm {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    epochs: File,
    _temp: TempDir,
}

impl Storm {
    /// Its creators are at rest at first.
    pub(crate) fn new(kind: char, creators: usize, ring: usize) -> Storm {
        Storm::with(kind, creators, ring, |_| ())
    }

    /// The same after `adjust` has seen the command.
    pub(crate) fn with(kind: char, creators: usize, ring: usize, adjust: impl FnOnce(&mut Command)) -> Storm {
        let temp = TempDir::new();
        let path = temp.path().join("epochs");
        fs::write(&path, [0; 64]).expect("epochs");
        let epochs = File::options().write(true).open(&path).expect("epochs");
        // Through a descriptor: a user need not have the right to search the build directory.
        let binary = File::open(binary()).expect("the compiled storm");
        let mut command = Command::new(format!("/proc/self/fd/{}", binary.as_raw_fd()));
        command.args([&kind.to_string(), &creators.to_string(), &ring.to_string()]).arg(&path);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        adjust(&mut command);
        let mut process = spawn(command).expect("the storm starts");
        let orders = process.stdin.take().expect("piped");
        let answers = BufReader::new(process.stdout.take().expect("piped"));
        let mut storm = Storm { process, orders, answers, epochs, _temp: temp };
        assert_eq!(storm.answer(), [storm.pid().to_string()]);
        storm
    }

    pub(crate) fn pid(&self) -> i32 {
        self.process.id().try_into().expect("a pid")
    }

    /// The ids of its threads.
    pub(crate) fn tids(&self) -> Vec<i32> {
        let entries = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the storm lives");
        let mut tids: Vec<i32> =
            entries.map(|e| e.expect("an entry").file_name().to_str().expect("a number").parse().expect("a number")).collect();
        tids.sort_unstable();
        tids
    }

    pub(crate) fn go(&mut self) {
        self.order("go");
    }

    /// All creators are at rest; the number of births so far.
    pub(crate) fn stop(&mut self) -> usize {
        self.numbers("stop")[0] as usize
    }

    /// The tids of the creators.
    pub(crate) fn creators(&mut self) -> Vec<i32> {
        self.numbers("creators")
    }

    /// What the creators have made and is alive.
    pub(crate) fn births(&mut self) -> Vec<Birth> {
        let birth = |text: &String| {
            let n: Vec<i32> = text.split(':').map(|n| n.parse().expect("a number")).collect();
            Birth { id: n[0], creator: n[1], epochs: (n[2], n[3]) }
        };
        self.order("list").iter().map(birth).collect()
    }

    /// So many children with threads; all their tids.
    pub(crate) fn spawn(&mut self, n: usize) -> Vec<i32> {
        self.numbers(&format!("spawn {n}"))
    }

    /// Kills and reaps these children.
    pub(crate) fn cull(&mut self) {
        self.order("cull");
    }

    /// Tells creator `nr` that its `epoch` has begun.
    pub(crate) fn set_epoch(&self, nr: usize, epoch: i32) {
        self.epochs.write_all_at(&epoch.to_ne_bytes(), 4 * nr as u64).expect("epochs");
    }

    fn numbers(&mut self, order: &str) -> Vec<i32> {
        self.order(order).iter().map(|n| n.parse().expect("a number")).collect()
    }

    fn order(&mut self, order: &str) -> Vec<String> {
        writeln!(self.orders, "{order}").expect("the storm listens");
        self.answer()
    }

    fn answer(&mut self) -> Vec<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the storm answers");
        let mut words = line.split_whitespace().map(str::to_owned);
        assert_eq!(words.next().as_deref(), Some("ok"), "the storm: {line:?}");
        words.collect()
    }

    /// Ends it; nothing is left of it but children that are ending.
    pub(crate) fn end(mut self) {
        self.process.kill().expect("kill");
        self.process.wait().expect("a child of ours");
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Compiles storm.c once; a changed source gets another name.
pub(crate) fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| compiled("tests/stress/storm.c"))
}
