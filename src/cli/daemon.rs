//! Command line: a server in the background, whose starter waits until it is ready or says why it is not.
//!
//! The starter forks a child that makes a new session and forks the server, so that the server can never
//! acquire a terminal. The server reports through a pipe that it alone holds: its end without a word is noticed too.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, getpid, pipe2, setsid};

use super::exit::{Exit, Failure};
use crate::sys::process::{self, Fork};

/// Which process goes on after [`split`].
pub enum Side {
    /// The one that was called; it waits and tells the result.
    Starter(Waiter),
    /// The new one; it serves.
    Server(Reporter),
}

/// The starter's end.
pub struct Waiter {
    pipe: File,
    signals: SignalFd,
    report: Vec<u8>,
    interrupts: u32,
    passed_on: u32,
}

/// The server's end; dropped without a report it means a bug.
pub struct Reporter {
    pipe: File,
}

/// Starts the background process. To be called before there are threads.
pub fn split() -> Result<Side, Failure> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    let system = |what: &'static str| move |errno: Errno| Failure::system(what, errno.desc());
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(system("pipe"))?;
    // The server becomes the starter's child when the one between ends, so that waitpid(2) tells how it died.
    prctl::set_child_subreaper(true).map_err(system("PR_SET_CHILD_SUBREAPER"))?;
    // Before the fork: a signal must not end the starter alone.
    signals.thread_block().map_err(system("blocking signals"))?;
    match process::fork().map_err(|error| Failure::system("fork", error))? {
        Fork::Parent(between) => {
            drop(writer);
            let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).map_err(system("signalfd"))?;
            waitpid(between, None).map_err(system("waitpid"))?;
            Ok(Side::Starter(Waiter { pipe: File::from(reader), signals, report: Vec::new(), interrupts: 0, passed_on: 0 }))
        }
        Fork::Child => {
            drop(reader);
            Ok(Side::Server(second_stage(writer, &signals)))
        }
    }
}

/// In the child: a new session, then the server as a process that does not lead it. Never fails into the caller, who is
/// already being waited for.
fn second_stage(writer: OwnedFd, signals: &SigSet) -> Reporter {
    let alone = signals.thread_unblock().and_then(|()| setsid());
    let forked = alone.map_err(std::io::Error::from).and_then(|_| process::fork());
    if let Ok(Fork::Parent(_)) = forked {
        process::exit_at_once(0);
    }
    let closed = process::close_inherited(writer.as_fd());
    let mut reporter = Reporter { pipe: File::from(writer) };
    // First the pid, so that the starter knows whom to end and whom to ask for.
    let _ = reporter.pipe.write_all(&getpid().as_raw().to_ne_bytes());
    if let Err(error) = forked.and(closed) {
        reporter.failed(&Failure::system("starting the server", error));
        process::exit_at_once(Exit::System.code().into());
    }
    reporter
}

impl Reporter {
    /// Leaves the starter's surroundings: working directory, umask, terminal; then lets it return 0.
    pub fn ready(mut self) -> Result<(), Failure> {
        let outcome = leave();
        match &outcome {
            Ok(()) => self.send(Exit::Success, ""),
            Err(failure) => self.send(failure.exit, &failure.message),
        }
        outcome
    }

    /// Lets the starter print this and return its exit code.
    pub fn failed(mut self, failure: &Failure) {
        self.send(failure.exit, &failure.message);
    }

    fn send(&mut self, exit: Exit, message: &str) {
        let report = [&[exit.code()], message.as_bytes()].concat();
        // A starter that was killed is nobody to report to, and no reason to stop serving.
        let _ = self.pipe.write_all(&report);
    }
}

fn leave() -> Result<(), Failure> {
    chdir("/").map_err(|errno| Failure::system("chdir /", errno.desc()))?;
    // What a program started by the kernel has. It concerns the release agent only: the server creates nothing any more, and
    // the umask of a mkdir in the mount is its caller's.
    umask(Mode::from_bits_truncate(0o022));
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.map_err(|error| Failure::system("/dev/null", error))?;
    let redirected = dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).and_then(|()| dup2_stderr(&null));
    redirected.map_err(|errno| Failure::system("dup2", errno.desc()))
}

impl Waiter {
    /// Blocks until the server is ready, has failed, or has died.
    pub fn wait(mut self) -> Result<(), Failure> {
        while self.more()? {}
        if self.interrupts > 0 {
            return Err(Failure::new(Exit::Interrupted, "interrupted"));
        }
        match self.report.get(4..).and_then(<[u8]>::split_first) {
            None => Err(died(self.server())),
            Some((0, _)) => Ok(()),
            Some((code, message)) => {
                let exit = Exit::from_code(*code).unwrap_or(Exit::Internal);
                Err(Failure::new(exit, String::from_utf8_lossy(message)))
            }
        }
    }

    /// Waits for more of the report, or for a signal. False at the report's end.
    fn more(&mut self) -> Result<bool, Failure> {
        let mut fds = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN), PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => return Ok(true),
            outcome => outcome.map_err(|errno| Failure::system("poll", errno.desc()))?,
        };
        let [piped, signalled] = fds.map(|fd| fd.any().unwrap_or(true));
        let mut count = 1;
        if piped {
            let mut chunk = [0; 512];
            count = self.pipe.read(&mut chunk).map_err(|error| Failure::system("reading the server's report", error))?;
            self.report.extend_from_slice(&chunk[..count]);
        }
        if signalled {
            let _ = self.signals.read_signal();
            self.interrupts += 1;
        }
        self.pass_on();
        Ok(count > 0)
    }

    /// Interrupts the server, as soon as it is known; the second time for good.
    fn pass_on(&mut self) {
        let Some(server) = self.server().filter(|_| self.passed_on < self.interrupts) else { return };
        let signal = if self.interrupts == 1 { Signal::SIGTERM } else { Signal::SIGKILL };
        let _ = kill(server, signal);
        self.passed_on = self.interrupts;
    }

    fn server(&self) -> Option<Pid> {
        let bytes = self.report.get(..4)?.try_into().ok()?;
        Some(Pid::from_raw(i32::from_ne_bytes(bytes)))
    }
}

/// The server closed its end without a report.
fn died(server: Option<Pid>) -> Failure {
    let how = match server.map(|server| waitpid(server, None)) {
        Some(Ok(WaitStatus::Exited(_, status))) => format!("it exited with status {status}"),
        Some(Ok(WaitStatus::Signaled(_, signal, _))) => format!("it was killed by {signal}"),
        _ => "how is unknown".to_owned(),
    };
    Failure::new(Exit::Internal, format!("the server ended before the mount answered: {how}"))
}
