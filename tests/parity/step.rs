//! One step of a script: what is done, by whom, and what it should give. Paths are relative
//! to the group the script runs in; processes are called p0, p1 ..., their threads p0.t1 ...
//! (p0 is also the first thread), their children p0.c1 ....

use std::fmt;

use nix::errno::Errno;

/// What a step gave: a text made of everything the caller could observe, or an errno.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Success; the text is empty when there is nothing to tell.
    Done(String),
    /// Failure.
    Failed(i32),
    /// The step made no sense at this point (no such descriptor, a thread long gone).
    LeftOut(&'static str),
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Done(text) if text.is_empty() => write!(f, "done"),
            Outcome::Done(text) => write!(f, "{text:?}"),
            Outcome::Failed(e) => write!(f, "{:?}", Errno::from_raw(*e)),
            Outcome::LeftOut(why) => write!(f, "left out: {why}"),
        }
    }
}

/// Bytes, shown as Rust source.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.0.len();
        let first = self.0.first();
        if n > 60 && self.0.iter().all(|b| Some(b) == first) {
            return write!(f, "{:?} x {n}", char::from(self.0[0]));
        }
        let binary = if self.0.is_ascii() { "" } else { "b" };
        write!(f, "{binary}\"{}\"", self.0.escape_ascii())
    }
}

impl From<&str> for Bytes {
    fn from(s: &str) -> Bytes {
        Bytes(s.into())
    }
}

impl From<String> for Bytes {
    fn from(s: String) -> Bytes {
        Bytes(s.into())
    }
}

impl From<&[u8]> for Bytes {
    fn from(s: &[u8]) -> Bytes {
        Bytes(s.into())
    }
}

impl<const N: usize> From<&[u8; N]> for Bytes {
    fn from(s: &[u8; N]) -> Bytes {
        Bytes(s.into())
    }
}

/// A mode, shown in octal.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Octal(pub u32);

impl fmt::Debug for Octal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#o}", self.0)
    }
}

/// Flags of open(2), shown by name.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flags(pub i32);

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&nix::fcntl::OFlag::from_bits_retain(self.0), f)
    }
}

/// Something that has an id: a process (and its first thread), a thread, a child process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// The process n.
    P(usize),
    /// Its thread m, counted from 1.
    T(usize, usize),
    /// Its child m, counted from 1.
    C(usize, usize),
}
pub use Task::{C, P, T};

impl Task {
    /// The number of the process it belongs to.
    pub fn process(self) -> usize {
        match self {
            P(p) | T(p, _) | C(p, _) => p,
        }
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            P(p) => write!(f, "P({p})"),
            T(p, t) => write!(f, "T({p}, {t})"),
            C(p, c) => write!(f, "C({p}, {c})"),
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            P(p) => write!(f, "p{p}"),
            T(p, t) => write!(f, "p{p}.t{t}"),
            C(p, c) => write!(f, "p{p}.c{c}"),
        }
    }
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    // The tree.
    Mkdir {
        path: Bytes,
        mode: Octal,
        umask: Octal,
    },
    Rmdir(Bytes),
    Rename(Bytes, Bytes),
    Rename2(Bytes, Bytes, u32),
    Unlink(Bytes),
    Link(Bytes, Bytes),
    /// From a file of another file system.
    LinkIn(Bytes),
    /// To another file system.
    RenameOut(Bytes),
    Symlink(Bytes, Bytes),
    Mknod(Bytes, char),
    Readlink(Bytes),
    /// Opened and closed again.
    Open(Bytes, Flags),
    Stat(Bytes),
    /// All names with their type, sorted.
    List(Bytes),
    /// The sizes and limits of statfs(2).
    Statfs(Bytes),
    /// The three times, where `Utime` has set them.
    Times(Bytes),
    Utime(Bytes, i64),
    Chmod(Bytes, Octal),
    Chown(Bytes, u32, u32),
    Truncate(Bytes, i64),
    SetXattr {
        path: Bytes,
        name: Bytes,
        value: Bytes,
        flags: i32,
    },
    GetXattr(Bytes, Bytes),
    ListXattr(Bytes),
    RemoveXattr(Bytes, Bytes),
    // Content.
    Read(Bytes),
    /// Read by so many bytes at a time.
    ReadBy(Bytes, usize),
    Write(Bytes, Bytes),
    // Descriptors kept open, by number.
    Hold(usize, Bytes, Flags),
    Fd(usize, OnFd),
    // Tasks.
    Tasks(OnTask),
}

/// What is done with a descriptor opened earlier.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OnFd {
    Close,
    Read(usize),
    Pread(usize, i64),
    Readv(usize, usize),
    Write(Bytes),
    Pwrite(Bytes, i64),
    Writev(Bytes, Bytes),
    /// The template with a task's id, as [`OnTask::Attach`] does.
    Attach(Bytes, Task),
    Seek(i64, i32),
    Truncate(i64),
    Stat,
    Chmod(Octal),
    List,
    Mkdirat(Bytes),
    Openat(Bytes),
    Fsync,
    Fdatasync,
    Ioctl,
    MmapShared,
    Poll,
    Fallocate,
    Flock,
}

/// What is done by or to a task.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OnTask {
    /// A process of this user begins.
    Start(usize, u32),
    /// The task makes a thread.
    Thread(Task),
    /// The task makes a child.
    Fork(Task),
    EndThread(Task),
    /// The child is killed and stays a zombie.
    Kill(Task),
    /// The child is killed and waited for.
    Reap(Task),
    /// The process ends and stays a zombie.
    Exit(usize),
    /// The process ends and is waited for.
    Wait(usize),
    Exec(Task),
    /// If all threads of the process are in one group, else nothing: for another one /proc does
    /// not tell which thread has made a thread.
    IfWhole(Box<OnTask>),
    /// The task sets its own affinity.
    Pin(Task, Vec<usize>),
    /// We set it.
    PinBy(Task, Vec<usize>),
    /// The task sets its own affinity to a real subset of what it has, else nothing.
    Narrow(Task, Vec<usize>),
    Affinity(Task),
    /// Written: the template with {d}, {o} or {x} replaced by the task's id.
    Attach(Bytes, Bytes, Task),
    /// The task itself opens the file and writes.
    Writes(Task, Bytes, Bytes),
}

/// A step of a script.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Step {
    /// The user who does it: 0 or 65534.
    pub uid: u32,
    /// What is done.
    pub act: Act,
    /// What it gives on a machine with the CPUs 0-1 and the node 0.
    pub expect: Option<Outcome>,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.uid != 0 {
            write!(f, "as {}: ", self.uid)?;
        }
        match &self.act {
            Act::Fd(n, what) => write!(f, "fd {n}: {what:?}"),
            Act::Tasks(what) => write!(f, "{what:?}"),
            act => write!(f, "{act:?}"),
        }
    }
}

impl Step {
    fn new(act: Act) -> Step {
        Step { uid: 0, act, expect: None }
    }

    /// It should succeed, with nothing to tell.
    pub fn ok(self) -> Step {
        self.gives("")
    }

    /// It should succeed and tell `text`.
    pub fn gives(mut self, text: &str) -> Step {
        self.expect = Some(Outcome::Done(text.to_owned()));
        self
    }

    /// It should fail with `errno`.
    pub fn fails(mut self, errno: Errno) -> Step {
        self.expect = Some(Outcome::Failed(errno as i32));
        self
    }
}

/// The uid of "nobody".
pub const NOBODY: u32 = 65534;

/// The step done by a user without any rights.
pub fn nobody(mut step: Step) -> Step {
    step.uid = NOBODY;
    step
}

macro_rules! steps {
    ($($name:ident($($arg:ident: $type:ty),*) = $act:expr;)*) => {
        $(#[doc = concat!("The step `", stringify!($act), "`.")]
        pub fn $name($($arg: $type),*) -> Step {
            Step::new($act)
        })*
    };
}

use Act::{Fd, Tasks};

steps! {
    mkdir(path: impl Into<Bytes>) = Act::Mkdir { path: path.into(), mode: Octal(0o777), umask: Octal(0o022) };
    mkdir_mode(path: impl Into<Bytes>, mode: u32, umask: u32) = Act::Mkdir { path: path.into(), mode: Octal(mode), umask: Octal(umask) };
    rmdir(path: impl Into<Bytes>) = Act::Rmdir(path.into());
    rename(from: impl Into<Bytes>, to: impl Into<Bytes>) = Act::Rename(from.into(), to.into());
    rename2(from: impl Into<Bytes>, to: impl Into<Bytes>, flags: u32) = Act::Rename2(from.into(), to.into(), flags);
    rename_out(from: impl Into<Bytes>) = Act::RenameOut(from.into());
    unlink(path: impl Into<Bytes>) = Act::Unlink(path.into());
    link(from: impl Into<Bytes>, to: impl Into<Bytes>) = Act::Link(from.into(), to.into());
    link_in(to: impl Into<Bytes>) = Act::LinkIn(to.into());
    symlink(target: impl Into<Bytes>, path: impl Into<Bytes>) = Act::Symlink(target.into(), path.into());
    mknod(path: impl Into<Bytes>, kind: char) = Act::Mknod(path.into(), kind);
    readlink(path: impl Into<Bytes>) = Act::Readlink(path.into());
    open(path: impl Into<Bytes>, flags: i32) = Act::Open(path.into(), Flags(flags));
    stat(path: impl Into<Bytes>) = Act::Stat(path.into());
    list(path: impl Into<Bytes>) = Act::List(path.into());
    statfs(path: impl Into<Bytes>) = Act::Statfs(path.into());
    times(path: impl Into<Bytes>) = Act::Times(path.into());
    utime(path: impl Into<Bytes>, time: i64) = Act::Utime(path.into(), time);
    chmod(path: impl Into<Bytes>, mode: u32) = Act::Chmod(path.into(), Octal(mode));
    chown(path: impl Into<Bytes>, uid: u32, gid: u32) = Act::Chown(path.into(), uid, gid);
    truncate(path: impl Into<Bytes>, len: i64) = Act::Truncate(path.into(), len);
    setxattr(path: impl Into<Bytes>, name: impl Into<Bytes>, value: impl Into<Bytes>, flags: i32) =
        Act::SetXattr { path: path.into(), name: name.into(), value: value.into(), flags };
    getxattr(path: impl Into<Bytes>, name: impl Into<Bytes>) = Act::GetXattr(path.into(), name.into());
    listxattr(path: impl Into<Bytes>) = Act::ListXattr(path.into());
    removexattr(path: impl Into<Bytes>, name: impl Into<Bytes>) = Act::RemoveXattr(path.into(), name.into());

    read(path: impl Into<Bytes>) = Act::Read(path.into());
    read_by(path: impl Into<Bytes>, n: usize) = Act::ReadBy(path.into(), n);
    write(path: impl Into<Bytes>, text: impl Into<Bytes>) = Act::Write(path.into(), text.into());
    fill(path: impl Into<Bytes>, byte: u8, n: usize) = Act::Write(path.into(), Bytes(vec![byte; n]));

    hold(n: usize, path: impl Into<Bytes>, flags: i32) = Act::Hold(n, path.into(), Flags(flags));
    on(n: usize, what: OnFd) = Fd(n, what);
    h_read(n: usize, len: usize) = Fd(n, OnFd::Read(len));
    h_pread(n: usize, len: usize, at: i64) = Fd(n, OnFd::Pread(len, at));
    h_write(n: usize, text: impl Into<Bytes>) = Fd(n, OnFd::Write(text.into()));
    h_attach(n: usize, template: impl Into<Bytes>, task: Task) = Fd(n, OnFd::Attach(template.into(), task));
    h_seek(n: usize, to: i64, whence: i32) = Fd(n, OnFd::Seek(to, whence));
    close(n: usize) = Fd(n, OnFd::Close);

    start(p: usize) = Tasks(OnTask::Start(p, 0));
    start_as(p: usize, uid: u32) = Tasks(OnTask::Start(p, uid));
    thread(by: Task) = Tasks(OnTask::Thread(by));
    fork(by: Task) = Tasks(OnTask::Fork(by));
    end_thread(t: Task) = Tasks(OnTask::EndThread(t));
    kill(child: Task) = Tasks(OnTask::Kill(child));
    reap(child: Task) = Tasks(OnTask::Reap(child));
    exit(p: usize) = Tasks(OnTask::Exit(p));
    wait(p: usize) = Tasks(OnTask::Wait(p));
    exec(t: Task) = Tasks(OnTask::Exec(t));
    if_whole(what: OnTask) = Tasks(OnTask::IfWhole(Box::new(what)));
    pin(t: Task, cpus: &[usize]) = Tasks(OnTask::Pin(t, cpus.to_vec()));
    pin_by(t: Task, cpus: &[usize]) = Tasks(OnTask::PinBy(t, cpus.to_vec()));
    narrow(t: Task, cpus: &[usize]) = Tasks(OnTask::Narrow(t, cpus.to_vec()));
    affinity(t: Task) = Tasks(OnTask::Affinity(t));
    attach(path: impl Into<Bytes>, t: Task) = Tasks(OnTask::Attach(path.into(), "{d}".into(), t));
    attach_as(path: impl Into<Bytes>, template: impl Into<Bytes>, t: Task) = Tasks(OnTask::Attach(path.into(), template.into(), t));
    writes(t: Task, path: impl Into<Bytes>, text: impl Into<Bytes>) = Tasks(OnTask::Writes(t, path.into(), text.into()));
}
