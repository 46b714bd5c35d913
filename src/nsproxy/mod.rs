//! Namespaces: what a task is in, making and holding them, and having running tasks enter others.

pub mod holder;

pub use holder::{Holder, HolderError, Wanted, flag};

use crate::inject::{InjectError, Injector, Namespace, Plan, Report, Target};
use crate::sys::{Errno, Tid, process};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::fstat;
use nix::unistd::getpid;
use parking_lot::Mutex;
use std::hash::{Hash, Hasher};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The first argument that makes the program find out what this kernel lets threads do: `main` then calls [`probe_main`] and nothing else.
pub const PROBE_ARG: &str = "--probe";

/// How long a target has to stop.
const DEADLINE: Duration = Duration::from_millis(500);

/// A namespace, kept alive by a descriptor. Two are equal if they are the same namespace.
#[derive(Clone, Debug)]
pub struct Ns {
    kind: Namespace,
    file: Arc<OwnedFd>,
    ino: u64,
}

impl PartialEq for Ns {
    fn eq(&self, other: &Self) -> bool {
        self.ino == other.ino
    }
}

impl Eq for Ns {}

impl Hash for Ns {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.ino.hash(state);
    }
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// A process's descriptor.
///
/// # Errors
/// ESRCH if there is no such process.
pub fn pidfd_open(pid: Tid) -> Result<OwnedFd, Errno> {
    process::pidfd_open(pid)
}

/// The name of a namespace in `ns.effective`, as /proc shows it: `net:[4026531840]`.
#[must_use]
pub fn identity(kind: Namespace, ino: u64) -> String {
    let name = if kind == Namespace::PidForChildren { "pid" } else { kind.file() };
    format!("{name}:[{ino}]")
}

impl Ns {
    /// A task's, which its children are in; of kinds that its own never changes, that of its children.
    ///
    /// # Errors
    /// ESRCH if there is no such task, EACCES if we may not look, ENOENT for a pid namespace that has never had an init.
    pub fn of(tid: Tid, kind: Namespace) -> Result<Self, Errno> {
        Self::open(Path::new(&format!("/proc/{tid}/ns/{}", kind.file())), kind).map_err(|errno| gone(errno, tid, kind))
    }

    /// The one that a process itself is in.
    ///
    /// # Errors
    /// As [`Ns::of`].
    pub fn active(pid: Tid, kind: Namespace) -> Result<Self, Errno> {
        let name = if kind == Namespace::PidForChildren { "pid" } else { kind.file() };
        Self::open(Path::new(&format!("/proc/{pid}/ns/{name}")), kind).map_err(|errno| gone(errno, pid, kind))
    }

    /// The one that a path leads to.
    ///
    /// # Errors
    /// Those of open(2); EINVAL for what is no namespace of this kind.
    pub fn open(path: &Path, kind: Namespace) -> Result<Self, Errno> {
        // Not even a pipe keeps us waiting.
        let file: OwnedFd = nix::fcntl::open(
            path,
            nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_NOCTTY,
            nix::sys::stat::Mode::empty(),
        )?;
        if crate::sys::nsfs::kind(&file)? != flag(kind).bits() {
            return Err(Errno::EINVAL);
        }
        let ino = fstat(&file)?.st_ino;
        Ok(Self { kind, file: file.into(), ino })
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> Namespace {
        self.kind
    }

    /// The inode number, which names it.
    #[must_use]
    pub fn ino(&self) -> u64 {
        self.ino
    }

    /// The descriptor.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The same to keep.
    #[must_use]
    pub fn share(&self) -> Arc<OwnedFd> {
        self.file.clone()
    }

    /// Whether a task's capabilities count here: it is in the user namespace that owns this one, or where the server is.
    ///
    /// # Errors
    /// ESRCH if there is no such task, EACCES if we may not look.
    pub fn is_within(&self, tid: Tid) -> Result<bool, Errno> {
        let theirs = ino_of(tid, Namespace::User)?;
        let above = crate::sys::nsfs::above(&self.file).and_then(|ns| fstat(&ns)).map(|ns| ns.st_ino).ok();
        let ours = std::fs::metadata("/proc/self/ns/user").map(|ns| ns.ino()).ok();
        Ok([above, ours].contains(&Some(theirs)))
    }

    /// Of a user namespace: whether it belongs to the server's user and has been made where the server is, so that nobody else has power
    /// over the processes in it.
    #[must_use]
    pub fn is_safe(&self, server: u32) -> bool {
        let ours = std::fs::metadata("/proc/self/ns/user").map(|ns| ns.ino()).ok();
        let above = crate::sys::nsfs::above(&self.file).and_then(|ns| fstat(&ns)).map(|ns| ns.st_ino).ok();
        ours.is_some_and(|ours| ours == self.ino || above == Some(ours)) && crate::sys::nsfs::owner(&self.file) == Ok(server)
    }
}

/// Where a task's root or working directory is.
#[derive(Clone, Debug)]
pub struct Dir {
    file: Arc<OwnedFd>,
    /// Its mount and its inode number.
    id: (u64, u64),
}

impl PartialEq for Dir {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Dir {}

impl Hash for Dir {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

impl Dir {
    /// A task's root directory (`link` is `root`) or working directory (`cwd`).
    ///
    /// # Errors
    /// Those of open(2).
    pub fn of(tid: Tid, link: &str) -> Result<Self, Errno> {
        let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_DIRECTORY;
        let file = nix::fcntl::open(format!("/proc/{tid}/{link}").as_str(), flags, nix::sys::stat::Mode::empty());
        // Who is on its way out has none any more, as if it were not there.
        let file = file.map_err(|errno| if errno == Errno::ENOENT { Errno::ESRCH } else { errno })?;
        // Not by stat(2): a file system that does not answer would keep us waiting, and a user's own may refuse.
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).map_err(|error| errno(&error))?;
        let number = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok());
        let id = (number("mnt_id").ok_or(Errno::EIO)?, number("ino").ok_or(Errno::EIO)?);
        Ok(Self { file: file.into(), id })
    }

    /// The descriptor, which can only be named and entered (O_PATH).
    #[must_use]
    pub fn share(&self) -> Arc<OwnedFd> {
        self.file.clone()
    }
}

/// Who is on its way out has no namespaces any more, and of who is gone the kernel says EACCES: neither is there.
fn gone(errno: Errno, tid: Tid, kind: Namespace) -> Errno {
    match errno {
        Errno::ENOENT if kind != Namespace::PidForChildren => Errno::ESRCH,
        Errno::EACCES | Errno::ENOENT if !Path::new(&format!("/proc/{tid}")).exists() => Errno::ESRCH,
        _ => errno,
    }
}

/// The inode number of a task's namespace.
///
/// # Errors
/// ESRCH if there is no such task, EACCES if we may not look, ENOENT for a pid namespace that has never had an init.
pub fn ino_of(tid: Tid, kind: Namespace) -> Result<u64, Errno> {
    let link = std::fs::read_link(format!("/proc/{tid}/ns/{}", kind.file())).map_err(|error| gone(errno(&error), tid, kind))?;
    let text = link.to_string_lossy();
    let digits = text.split(['[', ']']).nth(1).ok_or(Errno::EIO)?;
    digits.parse().map_err(|_| Errno::EIO)
}

/// Makes namespaces, and has running tasks enter them.
#[derive(Debug)]
pub struct Nsproxy {
    program: PathBuf,
    injector: Mutex<Injector>,
    enters_together: OnceLock<bool>,
}

/// A thread that sleeps in a write(2) which this lets succeed.
pub type Answer<'a> = (Tid, &'a dyn Fn());

impl Nsproxy {
    /// `program` is one whose `main` heeds [`holder::HOLDER_ARG`], [`crate::inject::HELPER_ARG`] and [`PROBE_ARG`].
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let program = program.into();
        Self { injector: Mutex::new(Injector::new(&program)), program, enters_together: OnceLock::new() }
    }

    /// See [`Injector::on_waiting`].
    pub fn on_waiting(&self, turn_away: impl Fn(&[Tid]) + Send + 'static) {
        self.injector.lock().on_waiting(turn_away);
    }

    /// Whether threads that share their directories can enter a mount namespace, if another kind is entered with it. Newer kernels refuse it.
    pub fn enters_together(&self) -> bool {
        let probe = || {
            let mut probe = Command::new(&self.program);
            probe.arg(PROBE_ARG).current_dir("/").env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            probe.status().is_ok_and(|status| status.success())
        };
        *self.enters_together.get_or_init(probe)
    }

    /// A process that is in these namespaces.
    ///
    /// # Errors
    /// The step that failed.
    pub fn hold(&self, wanted: &Wanted) -> Result<Holder, HolderError> {
        Holder::new(&self.program, wanted)
    }

    /// Has a target execute a plan. The writer, if it is a thread of the target, is answered when it has been asked to stop.
    ///
    /// # Errors
    /// See [`InjectError`].
    pub fn inject(&self, target: Target, plan: &Plan, writer: Option<Answer<'_>>) -> Result<Report, InjectError> {
        let mut injector = self.injector.lock();
        match writer {
            Some((tid, answer)) => injector.inject_writer(target, plan, DEADLINE, tid, answer),
            None => injector.inject(target, plan, DEADLINE),
        }
    }
}

/// Succeeds unless the kernel refuses [`Nsproxy::enters_together`]: EINVAL, seen on 6.12.117 and not on 6.1 and 6.18 (`mntns_install`).
#[must_use]
pub fn probe_main() -> ExitCode {
    let tried = std::thread::scope(|scope| {
        let (stay, leave) = std::sync::mpsc::channel::<()>();
        // Shares the directories.
        let _ = std::thread::Builder::new().spawn_scoped(scope, move || leave.recv());
        let tried = pidfd_open(getpid().as_raw()).and_then(|own| setns(own, CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS));
        drop(stay);
        tried
    });
    if tried == Err(Errno::EINVAL) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
