//! Hierarchies to compare: the kernel's, and ours with each back end and as each user.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::family::allowed;
use crate::common::named::{dead_names, empty, mount_named, names, remove};
use crate::common::{self, KernelCpuset, Mount, TempDir, is_root, raw, skipped, spawn, wait_until};

/// Nobody.
pub(crate) const USER: u32 = 65534;

/// A back end, and the user it runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// For `-o tracker=`.
    pub(crate) tracker: &'static str,
    /// Whose the server and the tasks are.
    pub(crate) uid: u32,
}

pub(crate) const BPF: Config = Config { tracker: "bpf", uid: 0 };
pub(crate) const PERF: Config = Config { tracker: "perf", uid: 0 };
pub(crate) const NETLINK: Config = Config { tracker: "netlink", uid: 0 };
pub(crate) const SCAN: Config = Config { tracker: "scan", uid: 0 };
pub(crate) const PERF_USER: Config = Config { tracker: "perf", uid: USER };
pub(crate) const NETLINK_USER: Config = Config { tracker: "netlink", uid: USER };
pub(crate) const SCAN_USER: Config = Config { tracker: "scan", uid: USER };

/// A hierarchy, and what keeps it.
pub(crate) struct Side {
    dir: PathBuf,
    uid: u32,
    keep: Keep,
}

enum Keep {
    Root(Mount),
    User(UserMount),
    Named(#[expect(dead_code, reason = "held for its Drop")] Named),
    Cpuset(#[expect(dead_code, reason = "held for its Drop")] KernelCpuset),
}

/// The name of the running test.
pub(crate) fn test_name() -> String {
    thread::current().name().unwrap_or("?").to_owned()
}

impl Side {
    /// Ours. None, with a line on stderr, where the machine forbids this user this back end; that mounting fails then is checked.
    pub(crate) fn ours(config: Config) -> Option<Side> {
        Side::with_options(config, "")
    }

    /// The same with further options.
    pub(crate) fn with_options(config: Config, options: &str) -> Option<Side> {
        let Config { tracker, uid } = config;
        let test = test_name();
        if cannot(&test, uid) {
            return None;
        }
        let options = format!("tracker={tracker},{options}");
        let options = options.trim_end_matches(',');
        if !allowed(tracker, uid) {
            let said = refusal(config, options);
            assert!(said.contains(tracker), "the message names the back end: {said:?}");
            skipped(&test, &format!("this machine forbids the back end {tracker} to uid {uid}: {}", said.trim()));
            return None;
        }
        Some(Side::mount(uid, options))
    }

    /// Ours with the back end that is best for this user.
    pub(crate) fn best(uid: u32, options: &str) -> Option<Side> {
        (!cannot(&test_name(), uid)).then(|| Side::mount(uid, options))
    }

    fn mount(uid: u32, options: &str) -> Side {
        if uid == 0 {
            let mount = Mount::with_options(options);
            return Side { dir: mount.dir().to_owned(), uid, keep: Keep::Root(mount) };
        }
        let mount = UserMount::new(options, uid);
        let dir = PathBuf::from(format!("/proc/self/fd/{}", mount.root.as_ref().expect("mounted").as_raw_fd()));
        Side { dir, uid, keep: Keep::User(mount) }
    }

    /// A hierarchy of the kernel's without controllers, which nobody else sees.
    pub(crate) fn named() -> Option<Side> {
        let named = Named::new()?;
        let dir = PathBuf::from(format!("/proc/self/fd/{}", named.root.as_ref().expect("mounted").as_raw_fd()));
        Some(Side { dir, uid: 0, keep: Keep::Named(named) })
    }

    /// A group of the kernel's cpuset hierarchy.
    pub(crate) fn cpuset() -> Option<Side> {
        let cpuset = KernelCpuset::new()?;
        Some(Side { dir: cpuset.dir().to_owned(), uid: 0, keep: Keep::Cpuset(cpuset) })
    }

    /// The top of the hierarchy, or our part of it.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the server has said, where it is root's.
    pub(crate) fn log(&self) -> String {
        if let Keep::Root(mount) = &self.keep { mount.log() } else { String::new() }
    }

    /// Stops or continues the server of ours.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = match &self.keep {
            Keep::Root(mount) => mount.server_pid(),
            Keep::User(mount) => mount.server.id().cast_signed(),
            Keep::Named(_) | Keep::Cpuset(_) => return,
        };
        kill(Pid::from_raw(pid), signal).expect("the server lives");
    }

    /// Whether it is the kernel's.
    pub(crate) fn is_kernels(&self) -> bool {
        matches!(self.keep, Keep::Named(_) | Keep::Cpuset(_))
    }

    /// Whether its groups have CPUs.
    fn has_cpus(&self) -> bool {
        !matches!(self.keep, Keep::Named(_))
    }

    /// Does `f` as the user to whom the hierarchy belongs.
    pub(crate) fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        if self.uid == 0 || !is_root() { f() } else { raw::in_thread(self.uid, 0o022, f) }
    }

    /// One write(2) into a file of a group.
    pub(crate) fn write(&self, file: &str, text: &str) -> Result<usize, i32> {
        self.run(|| common::write(self.dir.join(file), text))
    }

    /// The text of a file.
    #[track_caller]
    pub(crate) fn text(&self, file: &str) -> String {
        self.run(|| common::text(self.dir.join(file)))
    }

    /// The ids in a file.
    #[track_caller]
    pub(crate) fn ids(&self, file: &str) -> Vec<i32> {
        self.run(|| common::ids(self.dir.join(file)))
    }

    /// A new group, with these CPUs if groups have any.
    pub(crate) fn group(&self, name: &str, cpus: &str) {
        self.run(|| {
            fs::create_dir(self.dir.join(name)).expect("mkdir");
            if self.has_cpus() {
                for (file, text) in [("cpuset.mems", "0"), ("cpuset.cpus", cpus)] {
                    common::write(self.dir.join(name).join(file), text).expect(file);
                }
            }
        });
    }

    /// The numbers of cgfuse.stat.
    pub(crate) fn stat(&self) -> HashMap<String, u64> {
        let text = self.text("cgfuse.stat");
        let rows = text.lines().filter_map(|line| line.split_once(' '));
        rows.filter_map(|(name, n)| Some((name.to_owned(), n.parse().ok()?))).collect()
    }

    /// The back end of ours.
    pub(crate) fn tracker(&self) -> String {
        let text = self.text("cgfuse.stat");
        let first = text.lines().next().and_then(|line| line.strip_prefix("tracker "));
        first.unwrap_or_else(|| panic!("no back end is named: {text:?}")).to_owned()
    }

    /// Those numbers that say that something may be wrong.
    pub(crate) fn doubts(&self) -> String {
        if self.is_kernels() {
            return String::new();
        }
        let stat = self.stat();
        ["lost", "rescans", "guessed"].map(|name| format!("{name}={}", stat.get(name).copied().unwrap_or(u64::MAX))).join(" ")
    }
}

/// Says so where the test cannot run.
fn cannot(test: &str, uid: u32) -> bool {
    let why = if !is_root() {
        "needs root, to be anybody"
    } else if !common::can_mount() {
        "cannot open /dev/fuse"
    } else if uid != 0 && !user_mounts_work() {
        "users cannot mount: fusermount3 is missing (Debian: apt install fuse3)"
    } else {
        return false;
    };
    skipped(test, why);
    true
}

/// What mounting says where it has to fail.
pub(crate) fn refusal(config: Config, options: &str) -> String {
    let temp = TempDir::new();
    let dir = temp.path().join("mnt");
    fs::create_dir(&dir).expect("a mount point");
    chown(&dir, Some(config.uid), Some(config.uid)).expect("chown");
    let mut command = if config.uid == 0 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cgfuse"));
        command.args(["mount", "-f", "-o", options]).arg(&dir);
        command
    } else {
        user_command(&temp, &dir, options, config.uid)
    };
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = spawn(command).and_then(Child::wait_with_output).expect("cgfuse starts");
    assert!(!output.status.success(), "it has mounted with {options}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A mount namespace of its own, in which /dev/fuse is for everybody, as udev has it elsewhere. Copies of other tests' mounts would keep
/// their servers from ending.
const AS_USER: &str = r#"
for copy in $(sed -n 's/^[^ ]* [^ ]* [^ ]* [^ ]* \([^ ]*\) .* - fuse.cgfuse .*/\1/p' /proc/self/mountinfo); do
    umount -l "$copy" 2>/dev/null || :
done
dev=$1 uid=$2; shift 2
mount -t tmpfs -o mode=755 none "$dev"
mknod -m 666 "$dev/fuse" c 10 229
touch "$dev/cgfuse"
mount --bind "$1" "$dev/cgfuse"
mount --bind "$dev/fuse" /dev/fuse
shift
exec setpriv --reuid="$uid" --regid="$uid" --clear-groups --pdeathsig KILL -- "$dev/cgfuse" "$@"
"#;

fn user_command(temp: &TempDir, dir: &Path, options: &str, uid: u32) -> Command {
    let dev = temp.path().join("dev");
    fs::create_dir(&dev).expect("a directory");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--", "sh", "-euc", AS_USER, "sh"]);
    command.arg(dev).arg(uid.to_string()).arg(env!("CARGO_BIN_EXE_cgfuse")).args(["mount", "-f", "-o", options]).arg(dir);
    command
}

fn user_mounts_work() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| Command::new("fusermount3").arg("-V").stdout(Stdio::null()).status().is_ok_and(|status| status.success()))
}

/// Our file system as an ordinary user mounts it, in a mount namespace that ends with the server.
struct UserMount {
    /// An open descriptor is the way into that namespace.
    root: Option<OwnedFd>,
    server: Child,
    _temp: TempDir,
    _cpus: common::CpusHeld,
}

impl UserMount {
    fn new(options: &str, uid: u32) -> UserMount {
        let temp = TempDir::new();
        let (dir, log) = (temp.path().join("mnt"), temp.path().join("log"));
        fs::create_dir(&dir).expect("a mount point");
        chown(&dir, Some(uid), Some(uid)).expect("chown");
        let options = if options.is_empty() { "rw" } else { options };
        let mut command = user_command(&temp, &dir, options, uid);
        command.stdin(Stdio::null()).stderr(File::create(&log).expect("a log"));
        let cpus = common::hold_cpus();
        let server = spawn(command).expect("unshare(1)");
        let mut mount = UserMount { root: None, server, _temp: temp, _cpus: cpus };
        let pid = mount.server.id();
        let line = format!(" {} ", dir.display());
        wait_until("the user's mount answers", || {
            let said = || fs::read_to_string(&log).unwrap_or_default();
            assert!(mount.server.try_wait().expect("wait").is_none(), "cgfuse ended without mounting:\n{}", said());
            let mounted = fs::read_to_string(format!("/proc/{pid}/mountinfo")).is_ok_and(|text| text.contains(&line));
            if !mounted {
                return false;
            }
            let root = PathBuf::from(format!("/proc/{pid}/root{}", dir.display()));
            let Ok(root) = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(root) else { return false };
            let tasks = format!("/proc/self/fd/{}/tasks", root.as_raw_fd());
            mount.root = Some(root.into());
            raw::in_thread(uid, 0o022, || common::read(&tasks).is_ok())
        });
        mount
    }
}

impl Drop for UserMount {
    fn drop(&mut self) {
        self.root = None;
        let _ = kill(Pid::from_raw(self.server.id().cast_signed()), Signal::SIGTERM);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while matches!(self.server.try_wait(), Ok(None)) && std::time::Instant::now() < end {
            thread::sleep(std::time::Duration::from_millis(1));
        }
        if matches!(self.server.try_wait(), Ok(None)) {
            eprintln!("killed a user's server, which did not end on SIGTERM");
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
        if thread::panicking() {
            let log = fs::read_to_string(self._temp.path().join("log")).unwrap_or_default();
            eprintln!("--- the log of the user's cgfuse\n{log}");
        }
    }
}

// ---------------------------------------------------------------------------------------
// The kernel's named hierarchies

/// A hierarchy of the kernel's without controllers. Its mount is in no namespace: an open descriptor is the way in.
struct Named {
    root: Option<OwnedFd>,
    name: String,
}

impl Named {
    fn new() -> Option<Named> {
        static SWEPT: OnceLock<()> = OnceLock::new();
        if !is_root() {
            skipped(&test_name(), "only root mounts hierarchies of the kernel's");
            return None;
        }
        SWEPT.get_or_init(|| dead_names().iter().for_each(|name| remove(name)));
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("cgfuse-test-{}-tracking{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        match mount_named(&name) {
            Ok(root) => Some(Named { root: Some(root), name }),
            Err(errno) => {
                skipped(&test_name(), &format!("no named hierarchy of the kernel's: {errno}"));
                None
            }
        }
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if let Some(root) = self.root.take() {
            let path = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
            let below = fs::read_dir(&path).into_iter().flatten().flatten();
            below.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).for_each(|e| empty(&path, &e.path()));
        }
        // Most go by themselves when the last group is taken down.
        let gone = (0..300).any(|_| {
            thread::sleep(std::time::Duration::from_millis(1));
            !names().contains(&self.name)
        });
        if !gone {
            remove(&self.name);
        }
    }
}
