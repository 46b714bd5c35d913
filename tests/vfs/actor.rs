//! Obedient processes: any system call, with any credentials, from any thread or namespace.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};

use nix::errno::Errno;

use crate::common::{compiled, spawn};

/// What a call gives: its value, or its errno.
pub(crate) type Outcome = Result<i64, Errno>;

/// An argument of a system call.
pub(crate) enum Arg<'a> {
    /// A number.
    Int(i64),
    /// The address of these bytes, a NUL behind them.
    Bytes(&'a [u8]),
    /// The address of a zeroed buffer of this size, which comes back.
    Out(usize),
    /// NULL.
    Null,
}

impl From<i32> for Arg<'_> {
    fn from(n: i32) -> Self {
        Arg::Int(n.into())
    }
}

impl From<u32> for Arg<'_> {
    fn from(n: u32) -> Self {
        Arg::Int(n.into())
    }
}

impl From<i64> for Arg<'_> {
    fn from(n: i64) -> Self {
        Arg::Int(n)
    }
}

impl From<usize> for Arg<'_> {
    fn from(n: usize) -> Self {
        Arg::Int(n as i64)
    }
}

impl<'a> From<&'a Path> for Arg<'a> {
    fn from(path: &'a Path) -> Self {
        Arg::Bytes(path.as_os_str().as_bytes())
    }
}

impl<'a> From<&'a PathBuf> for Arg<'a> {
    fn from(path: &'a PathBuf) -> Self {
        Arg::Bytes(path.as_os_str().as_bytes())
    }
}

impl<'a> From<&'a str> for Arg<'a> {
    fn from(text: &'a str) -> Self {
        Arg::Bytes(text.as_bytes())
    }
}

impl<'a> From<&'a [u8]> for Arg<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Arg::Bytes(bytes)
    }
}

struct Link {
    child: Child,
    stream: BufReader<UnixStream>,
}

impl Link {
    fn ask(&mut self, order: &str) -> Result<String, Errno> {
        let mut answer = String::new();
        let sent = self.stream.get_mut().write_all(order.as_bytes());
        match sent.and_then(|()| self.stream.read_line(&mut answer)) {
            Ok(n) if n > 0 => {}
            _ => return Err(Errno::EPIPE),
        }
        let answer = answer.trim_end();
        match answer.split_at(2) {
            ("R ", rest) => Ok(rest.to_owned()),
            ("E ", errno) => Err(Errno::from_raw(errno.parse().expect("an errno"))),
            _ => panic!("the actor answered {answer:?} to {order:?}"),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The actor may have ended already; its children die with it (PDEATHSIG).
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One thread or process that takes orders. Clones are the same one; the last drop ends the
/// process that was started first, and so all its children.
#[derive(Clone)]
pub(crate) struct Actor {
    link: Arc<Mutex<Link>>,
    route: String,
    /// Thread id as the creator sees it.
    pub(crate) id: i32,
}

fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| compiled("tests/vfs/actor.c"))
}

impl Actor {
    /// A new process with our credentials.
    pub(crate) fn new() -> Actor {
        Actor::start(Command::new(program()))
    }

    /// A new process, started by `wrapper` (such as `unshare -p --fork`), which must pass its stdin on.
    pub(crate) fn inside(wrapper: &[&str]) -> Actor {
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(program());
        Actor::start(command)
    }

    fn start(mut command: Command) -> Actor {
        let (ours, theirs) = UnixStream::pair().expect("socketpair");
        let theirs = Stdio::from(OwnedFd::from(theirs));
        command.stdin(theirs).stdout(Stdio::null());
        let child = spawn(command).expect("start an actor");
        let id = child.id().cast_signed();
        let link = Link { child, stream: BufReader::new(ours) };
        let actor = Actor { link: Arc::new(Mutex::new(link)), route: String::new(), id };
        actor.call(libc::SYS_getpid, []).expect("the actor answers");
        actor
    }

    /// A new process whose every id is `uid`, without other groups and capabilities.
    pub(crate) fn user(uid: u32) -> Actor {
        let actor = Actor::new();
        actor.become_user(uid);
        actor
    }

    fn ask(&self, order: &str) -> Result<String, Errno> {
        self.link.lock().expect("actor").ask(&format!("{}{order}\n", self.route))
    }

    fn number(&self, order: &str) -> Outcome {
        self.ask(order).map(|text| text.parse().expect("a number"))
    }

    fn full<'a>(&self, nr: i64, args: impl IntoIterator<Item = Arg<'a>>) -> Result<(i64, Vec<u8>), Errno> {
        let mut order = format!("call i{nr}");
        for arg in args {
            order.push(' ');
            match arg {
                Arg::Int(n) => order.push_str(&format!("i{n}")),
                Arg::Bytes(bytes) => {
                    order.push('x');
                    bytes.iter().for_each(|byte| order.push_str(&format!("{byte:02x}")));
                }
                Arg::Out(size) => order.push_str(&format!("o{size}")),
                Arg::Null => order.push('z'),
            }
        }
        let answer = self.ask(&order)?;
        let (result, out) = answer.split_once(" x").unwrap_or((&answer, ""));
        let out = out.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).expect("hex"), 16).expect("hex"));
        Ok((result.parse().expect("a number"), out.collect()))
    }

    /// System call `nr` (`libc::SYS_*`).
    pub(crate) fn call<'a, const N: usize>(&self, nr: i64, args: [Arg<'a>; N]) -> Outcome {
        self.full(nr, args).map(|(result, _)| result)
    }

    /// The same, giving what was left in the one `Arg::Out`.
    pub(crate) fn call_out<'a, const N: usize>(&self, nr: i64, args: [Arg<'a>; N]) -> Result<Vec<u8>, Errno> {
        self.full(nr, args).map(|(_, out)| out)
    }

    /// The same for calls whose result is the number of bytes they left there.
    pub(crate) fn call_sized<'a, const N: usize>(&self, nr: i64, args: [Arg<'a>; N]) -> Result<Vec<u8>, Errno> {
        self.full(nr, args).map(|(n, mut out)| {
            out.truncate(usize::try_from(n).expect("a length"));
            out
        })
    }

    fn born(&self, order: &str) -> Actor {
        let id = self.number(order).expect("a new agent") as i32;
        Actor { link: self.link.clone(), route: format!("{}to {id} ", self.route), id }
    }

    /// A child process that takes orders.
    pub(crate) fn fork(&self) -> Actor {
        self.born("fork")
    }

    /// A thread of the same process that takes orders.
    pub(crate) fn thread(&self) -> Actor {
        self.born("thread")
    }

    /// `n` more threads, which only wait.
    pub(crate) fn park(&self, n: usize) {
        self.number(&format!("park {n}")).expect("threads");
    }

    /// A thread that keeps a CPU busy; its tid.
    pub(crate) fn spin(&self) -> i32 {
        self.number("spin").expect("a thread") as i32
    }

    /// Ends this thread, be it the leader; the process lives on in its other threads.
    pub(crate) fn leave(&self) {
        self.number("leave").expect("leave");
    }

    /// Ends the process.
    pub(crate) fn quit(&self) {
        self.number("quit").expect("quit");
    }

    /// Passes descriptor `fd` to `child`, born of this agent, by SCM_RIGHTS; its number there.
    pub(crate) fn give(&self, child: &Actor, fd: i64) -> i64 {
        self.number(&format!("give {} {fd}", child.id)).expect("pass a descriptor")
    }

    /// All ids `uid`, no other groups, hence no capabilities.
    pub(crate) fn become_user(&self, uid: u32) {
        self.call(libc::SYS_setgroups, [Arg::Int(0), Arg::Null]).expect("setgroups");
        self.call(libc::SYS_setresgid, [uid.into(), uid.into(), uid.into()]).expect("setresgid");
        self.setresuid(uid, uid, uid).expect("setresuid");
    }

    /// setresuid(2); `u32::MAX` keeps one.
    pub(crate) fn setresuid(&self, real: u32, effective: u32, saved: u32) -> Outcome {
        self.call(libc::SYS_setresuid, [real.into(), effective.into(), saved.into()])
    }

    /// open(2).
    pub(crate) fn open(&self, path: &Path, flags: i32) -> Outcome {
        self.call(libc::SYS_openat, [libc::AT_FDCWD.into(), path.into(), flags.into(), 0o644.into()])
    }

    /// close(2).
    pub(crate) fn close(&self, fd: i64) -> Outcome {
        self.call(libc::SYS_close, [fd.into()])
    }

    /// write(2) of `bytes`.
    pub(crate) fn write(&self, fd: i64, bytes: impl AsRef<[u8]>) -> Outcome {
        let bytes = bytes.as_ref();
        self.call(libc::SYS_write, [fd.into(), bytes.into(), bytes.len().into()])
    }

    /// read(2) of at most `size` bytes.
    pub(crate) fn read(&self, fd: i64, size: usize) -> Result<Vec<u8>, Errno> {
        self.call_sized(libc::SYS_read, [fd.into(), Arg::Out(size), size.into()])
    }

    /// lseek(2).
    pub(crate) fn lseek(&self, fd: i64, offset: i64, whence: i32) -> Outcome {
        self.call(libc::SYS_lseek, [fd.into(), offset.into(), whence.into()])
    }

    /// open(O_WRONLY), one write(2), close: what `echo` does.
    pub(crate) fn put(&self, path: &Path, bytes: impl AsRef<[u8]>) -> Outcome {
        let fd = self.open(path, libc::O_WRONLY)?;
        let outcome = self.write(fd, bytes);
        self.close(fd).expect("close");
        outcome
    }

    /// The whole text of a file, by one open.
    pub(crate) fn text(&self, path: &Path) -> Result<String, Errno> {
        let fd = self.open(path, libc::O_RDONLY)?;
        let mut all = Vec::new();
        let outcome = loop {
            match self.read(fd, 65536) {
                Ok(piece) if piece.is_empty() => break Ok(()),
                Ok(piece) => all.extend(piece),
                Err(errno) => break Err(errno),
            }
        };
        self.close(fd).expect("close");
        outcome.map(|()| String::from_utf8(all).expect("text"))
    }

    /// mkdir(2).
    pub(crate) fn mkdir(&self, path: &Path, mode: i32) -> Outcome {
        self.call(libc::SYS_mkdirat, [libc::AT_FDCWD.into(), path.into(), mode.into()])
    }

    /// rmdir(2).
    pub(crate) fn rmdir(&self, path: &Path) -> Outcome {
        self.call(libc::SYS_unlinkat, [libc::AT_FDCWD.into(), path.into(), libc::AT_REMOVEDIR.into()])
    }

    /// unlink(2).
    pub(crate) fn unlink(&self, path: &Path) -> Outcome {
        self.call(libc::SYS_unlinkat, [libc::AT_FDCWD.into(), path.into(), 0.into()])
    }

    /// renameat2(2); 0 is rename(2).
    pub(crate) fn rename(&self, from: &Path, to: &Path, flags: u32) -> Outcome {
        let here = || Arg::from(libc::AT_FDCWD);
        self.call(libc::SYS_renameat2, [here(), from.into(), here(), to.into(), flags.into()])
    }

    /// chmod(2).
    pub(crate) fn chmod(&self, path: &Path, mode: i32) -> Outcome {
        self.call(libc::SYS_fchmodat, [libc::AT_FDCWD.into(), path.into(), mode.into()])
    }

    /// chown(2); `u32::MAX` keeps one.
    pub(crate) fn chown(&self, path: &Path, uid: u32, gid: u32) -> Outcome {
        self.call(libc::SYS_fchownat, [libc::AT_FDCWD.into(), path.into(), uid.into(), gid.into(), 0.into()])
    }

    /// Sets the affinity of `tid` (0: this thread) to `cpus`.
    pub(crate) fn setaffinity(&self, tid: i32, cpus: &[usize]) -> Outcome {
        let mut mask = [0u8; 128];
        cpus.iter().for_each(|cpu| mask[cpu / 8] |= 1 << (cpu % 8));
        self.call(libc::SYS_sched_setaffinity, [tid.into(), mask.len().into(), mask[..].into()])
    }
}

/// `dir/name`, whatever the bytes of the name.
pub(crate) fn at(dir: &Path, name: impl AsRef<[u8]>) -> PathBuf {
    dir.join(OsStr::from_bytes(name.as_ref()))
}
