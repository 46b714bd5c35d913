//! Fixtures of the integration tests: our mount, the kernel's own cpuset hierarchy, and
//! processes to play with. Everything is undone on Drop and dies with the test process.

// Every test binary compiles this module and uses some of it.
#![allow(dead_code, unreachable_pub)]
// System calls that nix lacks; elsewhere in the tests there is none.
#![allow(unsafe_code)]

pub mod kernels;
pub mod named;
pub mod namespaces;
pub mod place;
pub mod random;
pub mod raw;

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// The kernel's cpuset v1 hierarchy, where the machine has one.
pub const KERNEL_ROOT: &str = "/sys/fs/cgroup/cpuset";
const CPUS_LOCK: &str = "/tmp/cgfuse-tests-cpus.lock";
const KERNEL_LOCK: &str = "/tmp/cgfuse-tests-kernel-cpuset.lock";
const PREFIX: &str = "cgfuse-test";
const BENCH_PREFIX: &str = "cgfuse-bench";
/// How long what must happen may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

// ---------------------------------------------------------------------------------------
// Waiting, identity, plain file access

/// Polls until `f` holds; panics after 20 s, naming `what`.
#[track_caller]
pub fn wait_until(what: &str, f: impl FnMut() -> bool) {
    assert!(holds_within(PATIENCE, f), "waited in vain until {what}");
}

/// Whether it becomes true in time.
pub fn holds_within(patience: Duration, mut f: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + patience;
    while !f() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// Whether the test may do what only root may.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether this user may mount a FUSE file system at all.
pub fn can_mount() -> bool {
    OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok()
}

/// Says on stderr that `test` could not run, and why. Not by eprintln!, which the test harness keeps
/// to itself unless the test fails.
pub fn skipped(test: &str, why: &str) {
    let _ = writeln!(io::stderr(), "skipped: {test}: {why}");
}

/// Lets `cmd` run as `uid`, with the group of the same number and no supplementary groups.
pub fn as_user(cmd: &mut Command, uid: u32) {
    // std empties the supplementary groups when root sets a uid without groups.
    cmd.uid(uid).gid(uid);
}

/// The errno of a failed call.
pub fn errno(e: &io::Error) -> i32 {
    e.raw_os_error().unwrap_or(-1)
}

/// One open(O_WRONLY), one write(2), close. The errno on failure.
pub fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<usize, i32> {
    let mut file = OpenOptions::new().write(true).open(path).map_err(|e| errno(&e))?;
    file.write(bytes.as_ref()).map_err(|e| errno(&e))
}

/// The whole file. The errno on failure.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<u8>, i32> {
    let mut text = Vec::new();
    let mut file = File::open(path).map_err(|e| errno(&e))?;
    file.read_to_end(&mut text).map_err(|e| errno(&e))?;
    Ok(text)
}

/// The whole file as text without the last newline; panics when it cannot be read.
#[track_caller]
pub fn text(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    let bytes = read(path).unwrap_or_else(|e| panic!("read {}: errno {e}", path.display()));
    String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned()
}

/// The numbers in a file such as `tasks`.
#[track_caller]
pub fn ids(path: impl AsRef<Path>) -> Vec<i32> {
    let list = text(path);
    list.lines().map(|l| l.parse().expect("a number per line")).collect()
}

/// The CPUs `tid` may use, as sched_getaffinity(2) tells; panics when there is no such thread.
#[track_caller]
pub fn affinity(tid: i32) -> Vec<usize> {
    try_affinity(tid).unwrap_or_else(|e| panic!("sched_getaffinity({tid}): errno {e}"))
}

/// The CPUs `tid` may use. Not nix's: that one ends at 1,024 CPUs.
pub fn try_affinity(tid: i32) -> Result<Vec<usize>, i32> {
    let mut mask = [0_u64; 1024];
    // SAFETY: the kernel writes at most `size_of_val(&mask)` bytes into `mask`.
    let n = unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, size_of_val(&mask), mask.as_mut_ptr()) };
    if n < 0 {
        return Err(errno(&io::Error::last_os_error()));
    }
    let set = |cpu: &usize| mask[cpu / 64] >> (cpu % 64) & 1 == 1;
    // The kernel tells how much of it is for CPUs.
    Ok((0..n as usize * 8).filter(set).collect())
}

/// The state letter in /proc/PID/task/TID/stat (PID = `pid`); None when it is gone.
pub fn state(pid: i32, tid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    stat[stat.rfind(')')? + 1..].trim_start().chars().next()
}

// ---------------------------------------------------------------------------------------
// Locks between test binaries

/// Held while CPUs must not come and go.
pub struct CpusHeld(#[expect(dead_code, reason = "held for its Drop")] Option<Flock<File>>);

/// The threads of a process that lives.
pub fn threads(pid: i32) -> Vec<i32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
    entries.map(|entry| entry.expect("an entry").file_name().to_str().expect("a name").parse().expect("a tid")).collect()
}

/// A process that is stopped while this lives.
pub struct Stopped(Pid);

impl Stopped {
    /// Stops it, and waits until it does nothing any more.
    pub fn new(pid: i32) -> Stopped {
        let stopped = Stopped(Pid::from_raw(pid));
        kill(stopped.0, Signal::SIGSTOP).expect("kill");
        // Those of its threads that are running just then may still do something. A server's first reading of its own mount waits for the others.
        let stands = |tid: &i32| matches!(state(pid, *tid), Some('T' | 'D'));
        wait_until("all its threads have stopped", || threads(pid).iter().all(stands));
        stopped
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// Leave to switch CPUs off and on: no other test has a mount, a kernel group or a target.
/// The owner's own fixtures are covered by it.
pub struct CpusExclusive {
    _file: Flock<File>,
    _turn: MutexGuard<'static, ()>,
}

static CPUS_OURS: AtomicBool = AtomicBool::new(false);

impl CpusExclusive {
    /// Waits for its turn. Take it before the first fixture.
    pub fn new() -> CpusExclusive {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let file = flock(CPUS_LOCK, FlockArg::LockExclusive);
        CPUS_OURS.store(true, Ordering::SeqCst);
        CpusExclusive { _file: file, _turn: turn }
    }
}

impl Drop for CpusExclusive {
    fn drop(&mut self) {
        CPUS_OURS.store(false, Ordering::SeqCst);
    }
}

/// Keeps CPUs from coming and going.
pub fn hold_cpus() -> CpusHeld {
    if CPUS_OURS.load(Ordering::SeqCst) {
        return CpusHeld(None);
    }
    CpusHeld(Some(flock(CPUS_LOCK, FlockArg::LockShared)))
}

fn flock(path: &str, how: FlockArg) -> Flock<File> {
    // Not O_CREAT at once: fs.protected_regular refuses that for a file of somebody else's.
    let file = File::open(path).or_else(|_| {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(path);
        file.or_else(|_| File::open(path))
    });
    let file = file.unwrap_or_else(|e| panic!("{path}: {e}"));
    let at_once = match how {
        FlockArg::LockShared => FlockArg::LockSharedNonblock,
        _ => FlockArg::LockExclusiveNonblock,
    };
    Flock::lock(file, at_once).unwrap_or_else(|(file, _)| {
        eprintln!("waiting for other tests: {path}");
        Flock::lock(file, how).unwrap_or_else(|(_, e)| panic!("flock {path}: {e}"))
    })
}

// ---------------------------------------------------------------------------------------
// Children that die with the test

/// Spawns `cmd` so that SIGKILL reaches it when this process dies. All children are made by
/// one thread which lives as long as the process: PR_SET_PDEATHSIG looks at the thread.
pub fn spawn(mut cmd: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();

    let parent = nix::unistd::getpid();
    let die_with_parent = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        if nix::unistd::getppid() == parent { Ok(()) } else { Err(io::Error::other("orphan")) }
    };
    // SAFETY: prctl(2) and getppid(2) are async-signal-safe, the closure allocates nothing
    // unless the parent is dead, when nobody is left to care.
    unsafe { cmd.pre_exec(die_with_parent) };
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, queue) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut cmd, reply) in queue {
                let _ = reply.send(cmd.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (reply, answer) = mpsc::channel();
    let order = spawner.lock().unwrap_or_else(PoisonError::into_inner).send((cmd, reply));
    order.expect("the spawner lives");
    answer.recv().expect("the spawner answers")
}

/// A name that tells whose it is, so that what a killed test left can be recognised.
fn fresh_name() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}-{}-{n}", std::process::id())
}

/// Entries of `dir` left behind by tests, or benchmarks, that were killed.
fn leftovers(dir: &Path) -> Vec<PathBuf> {
    let dead = |name: &str| {
        let rest = [PREFIX, BENCH_PREFIX].iter().find_map(|prefix| name.strip_prefix(prefix))?;
        let pid = rest.strip_prefix('-')?.split('-').next()?;
        (!Path::new("/proc").join(pid).exists()).then_some(())
    };
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| name_of(p).and_then(dead).is_some()).collect()
}

fn name_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

// ---------------------------------------------------------------------------------------
// Temporary directories

/// A fresh directory, searchable by everybody, removed with all it holds.
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes one below the system's directory for such things.
    pub fn new() -> TempDir {
        let path = std::env::temp_dir().join(fresh_name());
        fs::DirBuilder::new().mode(0o700).create(&path).expect("a temporary directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        TempDir(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

// ---------------------------------------------------------------------------------------
// Our file system

/// Our file system on a fresh directory, served by `cgfuse mount -f`.
pub struct Mount {
    dir: PathBuf,
    server: Child,
    log: PathBuf,
    _temp: TempDir,
    _cpus: CpusHeld,
}

impl Mount {
    /// Mounts with the default options.
    pub fn new() -> Mount {
        Mount::with_options("")
    }

    /// Mounts with `-o options`; waits until the mount answers.
    pub fn with_options(options: &str) -> Mount {
        let args: &[&str] = if options.is_empty() { &[] } else { &["-o", options] };
        Mount::with_args(args)
    }

    /// Mounts with further arguments of `cgfuse mount`; waits until the mount answers.
    pub fn with_args(args: &[&str]) -> Mount {
        Mount::with(args, |_| ())
    }

    /// Mounts after `adjust` has seen the command (another user, an environment ...).
    pub fn with(args: &[&str], adjust: impl FnOnce(&mut Command)) -> Mount {
        static SWEPT: OnceLock<()> = OnceLock::new();
        SWEPT.get_or_init(sweep_mounts);
        let cpus = hold_cpus();
        let temp = TempDir::new();
        let dir = temp.path().join("mnt");
        let log = temp.path().join("log");
        fs::create_dir(&dir).expect("a mount point");
        let stderr = File::create(&log).expect("a log");
        let mut cmd = Command::new(env!("CARGO_BIN_EXE_cgfuse"));
        cmd.args(["mount", "-f"]).args(args).arg(&dir).stdin(Stdio::null()).stderr(stderr);
        adjust(&mut cmd);
        let server = spawn(cmd).expect("cgfuse starts");
        let mut mount = Mount { dir, server, log, _temp: temp, _cpus: cpus };
        mount.wait_ready();
        mount
    }

    fn wait_ready(&mut self) {
        let ready = holds_within(PATIENCE, || {
            let dead = self.server.try_wait().expect("wait").is_some();
            assert!(!dead, "cgfuse ended without mounting:\n{}", self.log());
            is_mounted(&self.dir) && self.dir.join("tasks").exists()
        });
        assert!(ready, "the mount does not answer:\n{}", self.log());
    }

    /// The root of the hierarchy.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The process that serves it.
    pub fn server_pid(&self) -> i32 {
        pid_of(&self.server)
    }

    /// What the server has written on stderr.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Sends `signal` to the server and returns how it ended.
    pub fn stop(&mut self, signal: Signal) -> ExitStatus {
        let _ = kill(Pid::from_raw(self.server_pid()), signal);
        let mut status = None;
        wait_until("the server has ended", || {
            status = self.server.try_wait().expect("wait");
            status.is_some()
        });
        status.expect("ended")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.server_pid());
        if matches!(self.server.try_wait(), Ok(None)) {
            let _ = kill(pid, Signal::SIGTERM);
        }
        let ended = || !matches!(self.server.try_wait(), Ok(None));
        let clean = holds_within(Duration::from_secs(10), ended);
        if !clean {
            let _ = self.server.kill();
            let _ = self.server.wait();
        }
        let left = is_mounted(&self.dir);
        if left {
            detach(&self.dir);
        }
        if std::thread::panicking() {
            let log = self.log();
            let last = log.lines().count().saturating_sub(20);
            eprintln!("--- last lines of the log of cgfuse on {}", self.dir.display());
            log.lines().skip(last).for_each(|line| eprintln!("{line}"));
        } else if !clean {
            // Not a failure of the test: another mount namespace may hold a copy of the mount.
            eprintln!("killed the server of {}, which did not end on SIGTERM", self.dir.display());
        }
    }
}

fn pid_of(child: &Child) -> i32 {
    child.id().try_into().expect("a pid")
}

/// Whether something is mounted at `dir`, told by mountinfo, which a dead server cannot block.
pub fn is_mounted(dir: &Path) -> bool {
    mount_entry(dir).is_some()
}

/// The fields of the line of /proc/self/mountinfo about `dir`; the last one that has it.
pub fn mount_entry(dir: &Path) -> Option<Vec<String>> {
    let info = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let lines = info.lines().map(|l| l.split(' ').map(str::to_owned).collect::<Vec<_>>());
    lines.rev().find(|f| unescape(&f[4]) == dir.as_os_str())
}

/// Undoes the octal escapes of mountinfo.
fn unescape(field: &str) -> OsString {
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|o| std::str::from_utf8(o).ok());
        let code = octal.and_then(|o| u8::from_str_radix(o, 8).ok());
        match code {
            Some(code) if first == b'\\' => {
                bytes.push(code);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

fn detach(dir: &Path) {
    if umount2(dir, MntFlags::MNT_DETACH).is_err() {
        let mut fusermount = Command::new("fusermount3");
        let _ = fusermount.args(["-u", "-z"]).arg(dir).stderr(Stdio::null()).status();
    }
}

fn sweep_mounts() {
    for left in leftovers(&std::env::temp_dir()) {
        let dir = left.join("mnt");
        while is_mounted(&dir) && umount2(&dir, MntFlags::MNT_DETACH).is_ok() {}
        if !is_mounted(&dir) {
            let _ = fs::remove_dir_all(&left);
        }
    }
}

/// Our mount with one sub group whose cpus and mems are filled, the twin of [`KernelCpuset`].
pub struct OursSub {
    group: Group,
    mount: Arc<Mount>,
}

impl OursSub {
    /// Mounts and makes the group.
    pub fn new() -> OursSub {
        OursSub::below(&Arc::new(Mount::with_options("cpuset")))
    }

    /// Makes the group in `mount`.
    pub fn below(mount: &Arc<Mount>) -> OursSub {
        OursSub { group: Group::new(mount.dir()), mount: Arc::clone(mount) }
    }

    /// The group.
    pub fn dir(&self) -> &Path {
        &self.group.dir
    }

    /// The mount it is in.
    pub fn mount(&self) -> &Mount {
        &self.mount
    }
}

// ---------------------------------------------------------------------------------------
// The kernel's hierarchy

/// A fresh group at the top of a hierarchy, with the root's cpus and mems. Drop removes it and
/// all below; tasks go to the root.
struct Group {
    root: PathBuf,
    dir: PathBuf,
}

impl Group {
    fn new(root: &Path) -> Group {
        let group = Group { root: root.to_owned(), dir: root.join(fresh_name()) };
        let dir = &group.dir;
        fs::create_dir(dir).unwrap_or_else(|e| panic!("mkdir {}: {e}", dir.display()));
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let all = read(root.join(file)).expect("the root's set");
            write(dir.join(file), &all).unwrap_or_else(|e| panic!("write {file}: errno {e}"));
        }
        group
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        remove_groups(&self.root, &self.dir);
    }
}

/// A fresh group of the kernel's cpuset hierarchy, its cpus and mems filled.
pub struct KernelCpuset {
    group: Group,
    _kernel: Flock<File>,
    _cpus: CpusHeld,
}

impl KernelCpuset {
    /// None, with a line on stderr, where there is no such hierarchy or we may not use it.
    pub fn new() -> Option<KernelCpuset> {
        KernelCpuset::locked(FlockArg::LockShared)
    }

    /// The same, with no sibling: their CPUs would overlap and thus forbid this group to be
    /// exclusive. Waits for other tests to finish; None when somebody else has groups there.
    pub fn alone() -> Option<KernelCpuset> {
        let group = KernelCpuset::locked(FlockArg::LockExclusive)?;
        let is_group = |e: &fs::DirEntry| e.file_type().is_ok_and(|t| t.is_dir());
        let count = || fs::read_dir(KERNEL_ROOT).into_iter().flatten().flatten().filter(is_group).count();
        // Whoever has stayed once will stay: no second wait.
        static OTHERS_STAY: AtomicBool = AtomicBool::new(false);
        let patience = if OTHERS_STAY.load(Ordering::Relaxed) { 0 } else { 2 };
        let is_alone = holds_within(Duration::from_secs(patience), || count() == 1);
        OTHERS_STAY.store(!is_alone, Ordering::Relaxed);
        if !is_alone {
            skipped(std::thread::current().name().unwrap_or("?"), "others have groups in the kernel's hierarchy");
            return None;
        }
        Some(group)
    }

    fn locked(how: FlockArg) -> Option<KernelCpuset> {
        let root = Path::new(KERNEL_ROOT);
        let why = if !is_root() {
            Some("not root")
        } else if !root.join("cpuset.cpus").exists() {
            Some("no cpuset v1 hierarchy of the kernel's")
        } else {
            None
        };
        if let Some(why) = why {
            skipped(std::thread::current().name().unwrap_or("?"), why);
            return None;
        }
        let cpus = hold_cpus();
        let kernel = flock(KERNEL_LOCK, how);
        for left in leftovers(root) {
            remove_groups(root, &left);
        }
        Some(KernelCpuset { group: Group::new(root), _kernel: kernel, _cpus: cpus })
    }

    /// The group.
    pub fn dir(&self) -> &Path {
        &self.group.dir
    }
}

/// Empties `dir` and the groups below, and removes them.
fn remove_groups(root: &Path, dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        remove_groups(root, &entry.path());
    }
    holds_within(PATIENCE, || {
        if fs::remove_dir(dir).is_ok() || !dir.exists() {
            return true;
        }
        let tasks = read(dir.join("tasks")).unwrap_or_default();
        for tid in tasks.split(|b| *b == b'\n').filter(|t| !t.is_empty()) {
            let _ = write(root.join("tasks"), tid);
        }
        false
    });
}

// ---------------------------------------------------------------------------------------
// Targets

/// A process that obeys (target.c). Its threads and children are named by their ids.
pub struct Target {
    process: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    _cpus: CpusHeld,
}

impl Target {
    /// Starts one with a single thread.
    pub fn new() -> Target {
        Target::with(|_| ())
    }

    /// Starts one as user `uid`; the caller is root.
    pub fn as_user(uid: u32) -> Target {
        Target::with(|cmd| as_user(cmd, uid))
    }

    /// Starts one after `adjust` has seen the command.
    pub fn with(adjust: impl FnOnce(&mut Command)) -> Target {
        let cpus = hold_cpus();
        // Through a descriptor: the build directory need not be searchable by everybody.
        let binary = File::open(target_binary()).expect("the compiled target");
        let path = format!("/proc/self/fd/{}", binary.as_raw_fd());
        let mut cmd = Command::new(path);
        cmd.stdin(Stdio::piped()).stdout(Stdio::piped());
        adjust(&mut cmd);
        let mut process = spawn(cmd).expect("the target starts");
        let orders = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().expect("piped"));
        let mut target = Target { process, orders, answers, _cpus: cpus };
        assert_eq!(target.answer(), Ok(target.pid()));
        target
    }

    /// The process id, also the id of its first thread.
    pub fn pid(&self) -> i32 {
        pid_of(&self.process)
    }

    /// A new thread, made by the first one. Its id.
    pub fn thread(&mut self) -> i32 {
        self.thread_from(self.pid())
    }

    /// A new thread, made by the thread `tid`. Its id.
    #[track_caller]
    pub fn thread_from(&mut self, tid: i32) -> i32 {
        self.order(tid, "thread").expect("a new thread")
    }

    /// A child process that does nothing, made by the first thread. Its id.
    pub fn fork(&mut self) -> i32 {
        self.fork_from(self.pid())
    }

    /// A child process that does nothing, made by the thread `tid`. Its id.
    #[track_caller]
    pub fn fork_from(&mut self, tid: i32) -> i32 {
        self.order(tid, "fork").expect("a child")
    }

    /// The thread `tid` sets its own affinity.
    pub fn setaffinity(&mut self, tid: i32, cpus: &[usize]) -> Result<(), i32> {
        self.setaffinity_of(tid, tid, cpus)
    }

    /// The thread `by` sets the affinity of any thread `tid` of the system.
    pub fn setaffinity_of(&mut self, by: i32, tid: i32, cpus: &[usize]) -> Result<(), i32> {
        let cpus: Vec<_> = cpus.iter().map(usize::to_string).collect();
        self.order(by, &format!("setaffinity {tid} {}", cpus.join(","))).map(|_| ())
    }

    /// The thread `tid` opens `path` for writing, writes once, closes.
    pub fn write(&mut self, tid: i32, path: &Path, bytes: &[u8]) -> Result<usize, i32> {
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let hex = if hex.is_empty() { "-".to_owned() } else { hex };
        let path = path.to_str().expect("a plain path");
        let n = self.order(tid, &format!("write {} {hex} {path}", libc::O_WRONLY))?;
        Ok(n.try_into().expect("a length"))
    }

    /// Ends one thread and waits until it is gone (the first one: a zombie).
    #[track_caller]
    pub fn end_thread(&mut self, tid: i32) {
        self.order(tid, "end").expect("the thread ends");
    }

    /// Ends the first thread; needs another one that lives on.
    pub fn exit_leader(&mut self) {
        self.end_thread(self.pid());
    }

    /// The thread `tid` calls execve(2): the process has one thread again, named by the pid.
    /// Its earlier children end.
    #[track_caller]
    pub fn exec(&mut self, tid: i32) {
        assert_eq!(self.order(tid, "exec"), Ok(self.pid()), "exec");
    }

    /// The thread `tid` executes a program which is such that the process dies of it.
    pub fn exec_and_die(&mut self, tid: i32, program: &Path) {
        let orders = self.orders.as_mut().expect("the target has not been ended");
        writeln!(orders, "{tid} exec {}", program.display()).expect("the target listens");
        let status = self.process.wait().expect("a child of ours");
        assert_eq!(status.code(), None, "killed: {status}");
    }

    /// The process takes on the real, effective and saved user id `uid`.
    pub fn setuid(&mut self, uid: u32) -> Result<(), i32> {
        self.order(self.pid(), &format!("setuid {uid}")).map(|_| ())
    }

    /// Kills a child and waits until it is a zombie; it stays one.
    #[track_caller]
    pub fn kill_child(&mut self, child: i32) {
        let tid = self.any_thread();
        self.order(tid, &format!("kill {child}")).expect("a child");
    }

    /// Kills a child and waits for it: nothing is left.
    #[track_caller]
    pub fn reap(&mut self, child: i32) {
        let tid = self.any_thread();
        self.order(tid, &format!("reap {child}")).expect("a child");
    }

    /// Ends the process and waits until it is a zombie; it stays one until [`Target::wait`] or Drop.
    pub fn exit(&mut self) {
        self.orders = None;
        let zombie = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(Pid::from_raw(self.pid())), zombie).expect("a child of ours");
    }

    /// Ends the process and waits for it: nothing is left.
    pub fn wait(&mut self) {
        self.orders = None;
        self.process.wait().expect("a child of ours");
    }

    /// The thread ids of the process as /proc tells, without zombies, ascending.
    pub fn tids(&self) -> Vec<i32> {
        let dir = format!("/proc/{}/task", self.pid());
        let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.file_name());
        let tids = names.filter_map(|n| n.to_str()?.parse().ok());
        let mut tids: Vec<_> = tids.filter(|t| state(self.pid(), *t) != Some('Z')).collect();
        tids.sort_unstable();
        tids
    }

    fn any_thread(&self) -> i32 {
        *self.tids().first().expect("the target lives")
    }

    /// Has the thread `tid` do `what`; the number it answers, or its errno.
    #[track_caller]
    pub fn order(&mut self, tid: i32, what: &str) -> Result<i32, i32> {
        let orders = self.orders.as_mut().expect("the target has not been ended");
        writeln!(orders, "{tid} {what}").expect("the target listens");
        self.answer()
    }

    #[track_caller]
    fn answer(&mut self) -> Result<i32, i32> {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the target answers");
        let (verdict, n) = line.trim_end().split_once(' ').expect("the target lives");
        let n = n.parse().expect("a number");
        if verdict == "ok" { Ok(n) } else { Err(n) }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Compiles a C program, named by its path in the project, if that has not been done; a changed source gets another name.
pub fn compiled(source: &str) -> PathBuf {
    compiled_with(source, &[]).unwrap_or_else(|| panic!("{source} does not compile"))
}

/// The same with further flags, which the compiler may not know: None then.
pub fn compiled_with(source: &str, flags: &[&str]) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let mut hasher = DefaultHasher::new();
    fs::read(&source).unwrap_or_else(|error| panic!("{}: {error}", source.display())).hash(&mut hasher);
    flags.hash(&mut hasher);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let binary = dir.join(format!("{}-{:016x}", source.file_stem().unwrap_or_default().display(), hasher.finish()));
    if !binary.exists() {
        // Several tests may compile at once; the rename makes each result whole.
        let part = dir.join(fresh_name());
        let mut cc = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
        cc.args(["-O1", "-pthread"]).args(flags).arg("-o").arg(&part).arg(&source);
        if !flags.is_empty() {
            cc.stderr(Stdio::null());
        }
        if !cc.status().expect("a C compiler (Debian: apt install gcc)").success() {
            return None;
        }
        fs::rename(&part, &binary).expect("the binary's place");
    }
    Some(binary)
}

fn target_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| compiled("tests/common/target.c"))
}

/// A path as bytes, for messages.
pub fn lossy(path: &Path) -> String {
    String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned()
}
