//! The process that is injected into, and what the tests of this binary share.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cgfuse::inject::{Arg, Descriptor, Injector, Invocation, Namespace, Plan, Syscall};

use crate::common::{as_user, compiled, compiled_with, spawn, state, wait_until};

pub(crate) const UTS: i32 = libc::CLONE_NEWUTS;
pub(crate) const IPC: i32 = libc::CLONE_NEWIPC;
pub(crate) const NET: i32 = libc::CLONE_NEWNET;
pub(crate) const MNT: i32 = libc::CLONE_NEWNS;
pub(crate) const CGROUP: i32 = libc::CLONE_NEWCGROUP;
const SOURCE: &str = "tests/inject/target.c";
/// Long enough on a loaded machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// An injector of this build.
pub(crate) fn injector() -> Injector {
    Injector::new(env!("CARGO_BIN_EXE_cgfuse"))
}

/// A third of these rounds, or so many times more than all of them as the environment says.
pub(crate) fn rounds(full: usize) -> usize {
    let factor = std::env::var("CGFUSE_STRESS").ok().and_then(|text| text.parse().ok()).unwrap_or(0.34);
    ((full as f64 * factor) as usize).max(1)
}

/// The figures of a test, past the harness' capture.
pub(crate) fn report(test: &str, figures: &str) {
    let _ = writeln!(std::io::stderr(), "inject: {test}: {figures}");
}

pub(crate) fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| compiled(SOURCE))
}

/// The same for 32 bits, where the compiler can.
pub(crate) fn program32() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM.get_or_init(|| compiled_with(SOURCE, &["-m32"])).as_deref()
}

/// A running target; dropped, it is killed.
pub(crate) struct Target {
    child: Child,
    orders: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
}

/// What a target says at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) result: i64,
    pub(crate) errno: i32,
    pub(crate) micros: i64,
    pub(crate) extra: i64,
}

impl Target {
    pub(crate) fn new(args: &[&str]) -> Target {
        Target::with(program(), args, |_| {})
    }

    pub(crate) fn user(uid: u32, args: &[&str]) -> Target {
        Target::with(program(), args, |command| as_user(command, uid))
    }

    pub(crate) fn with(program: &Path, args: &[&str], adjust: impl FnOnce(&mut Command)) -> Target {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        adjust(&mut command);
        let mut child = spawn(command).expect("start a target");
        let lines = BufReader::new(child.stdout.take().expect("its output"));
        let mut target = Target { orders: child.stdin.take(), child, lines };
        assert_eq!(target.line(), "ready", "{args:?}");
        target
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The next line; empty at the end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    pub(crate) fn send(&mut self) {
        self.orders.as_mut().expect("its input").write_all(b"?").expect("the target reads");
    }

    /// Waits for its last line.
    #[track_caller]
    pub(crate) fn said(&mut self) -> Said {
        let line = self.line();
        let numbers: Vec<i64> = line.strip_prefix("R ").unwrap_or("").split(' ').filter_map(|n| n.parse().ok()).collect();
        let [result, errno, micros, extra] = numbers[..] else { panic!("the target said {line:?}, status {:?}", self.child.try_wait()) };
        Said { result, errno: errno as i32, micros, extra }
    }

    /// Whether it has said something that was not read; it may have ended.
    pub(crate) fn has_said(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let mut fds = [PollFd::new(self.lines.get_ref().as_fd(), PollFlags::POLLIN)];
        !self.lines.buffer().is_empty() || poll(&mut fds, PollTimeout::ZERO).expect("poll") > 0
    }

    /// It answers.
    #[track_caller]
    pub(crate) fn alive(&mut self) -> i64 {
        self.send();
        let line = self.line();
        line.parse().unwrap_or_else(|_| panic!("the target said {line:?}, status {:?}", self.child.try_wait()))
    }

    pub(crate) fn tids(&self) -> Vec<i32> {
        crate::common::threads(self.pid())
    }

    /// The inodes of one kind in all threads.
    pub(crate) fn namespaces(&self, kind: Namespace) -> Vec<u64> {
        self.tids().into_iter().map(|tid| namespace(tid, kind)).collect()
    }

    pub(crate) fn namespace(&self, kind: Namespace) -> u64 {
        namespace(self.pid(), kind)
    }

    /// No thread is traced or stopped, and no code of ours is left.
    #[track_caller]
    pub(crate) fn untouched(&self) {
        for tid in self.tids() {
            let what = format!("thread {tid} goes on");
            let free = || {
                let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
                status.is_empty() || (status.contains("TracerPid:\t0") && !matches!(state(self.pid(), tid), Some('T' | 't')))
            };
            wait_until(&what, free);
        }
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).expect("kill");
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn namespace(tid: i32, kind: Namespace) -> u64 {
    std::fs::metadata(format!("/proc/{tid}/ns/{}", kind.file())).expect("a namespace").ino()
}

/// A process in namespaces of its own.
pub(crate) fn holder(flags: i32) -> Target {
    Target::new(&["holder", &format!("{flags:x}")])
}

pub(crate) fn file(path: impl AsRef<Path>) -> Descriptor {
    Descriptor::File(Arc::new(OwnedFd::from(File::open(path).expect("open"))))
}

/// setns to the namespaces of a process, which the target opens itself; undone by going to `back`'s.
pub(crate) fn setns(to: i32, back: i32, flags: i32) -> Plan {
    let mut plan = Plan::default();
    let (to, back) = (plan.fd(Descriptor::Pidfd(to)), plan.fd(Descriptor::Pidfd(back)));
    plan.step(call(Syscall::Setns, [to, flags.into()]), vec![call(Syscall::Setns, [back, flags.into()])]);
    plan
}

/// setns to a namespace by a descriptor that is handed over.
pub(crate) fn setns_file(pid: i32, kind: Namespace) -> Plan {
    let mut plan = Plan::default();
    let fd = plan.fd(file(format!("/proc/{pid}/ns/{}", kind.file())));
    plan.step(call(Syscall::Setns, [fd, 0.into()]), vec![]);
    plan
}

pub(crate) fn call<const N: usize>(call: Syscall, args: [Arg; N]) -> Invocation {
    Invocation::new(call, args)
}
