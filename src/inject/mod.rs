//! Injection: has the threads of a running process execute a short list of system calls, all or none, and go on undisturbed.
//!
//! [`Plan`] says what, [`Injector`] does it. The work is done by a process of its own (`helper`), which seizes and stops the
//! threads (`tracees`), makes them execute (`run`) code that lies behind their vDSO (`area`), and lets them go. It may be killed
//! at any moment without harm to the target. doc/INJECT.md has the whole picture.

#[cfg_attr(target_arch = "x86_64", path = "x86.rs")]
#[cfg_attr(target_arch = "aarch64", path = "aarch64.rs")]
mod arch;
mod area;
pub mod error;
mod helper;
pub mod plan;
mod proc;
mod run;
mod tracees;
mod wire;

pub use error::InjectError;
pub use helper::main as helper_main;
pub use plan::{Arg, Descriptor, Invocation, Namespace, Plan, Report, Step, Syscall, Target};

use crate::sys::shared::Words;
use crate::sys::{Errno, Tid, ptrace};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use nix::unistd::ftruncate;
use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use wire::{MAX_MESSAGE, Reply, Request};

/// The first argument that makes the program an injector process: `main` then calls [`helper_main`] and nothing else.
pub const HELPER_ARG: &str = "--injector";

/// No request.
const PHASE_IDLE: u64 = 0;
/// Nothing is modified; the injector process may be killed at no cost.
const PHASE_ATTACH: u64 = 1;
/// Threads are being modified.
const PHASE_MODIFIED: u64 = 2;
/// The parent has decided to kill it before that.
const PHASE_KILLED: u64 = 3;

/// How long an injection may do nothing once it has begun to modify. Only a target that others freeze in the middle, or that looks up a path in a
/// file system which does not answer, takes as long.
const PATIENCE: Duration = Duration::from_secs(3);
/// All of it may take so many times as long.
const ALL: u32 = 8;

/// The words of memory that the two processes share: one of the above, and a number that grows while the injector gets on.
const PHASE: usize = 0;
const BEATS: usize = 1;
const WORDS: usize = 2;

/// An injector process, started when it is needed, and again when it has died.
///
/// There must be one request at a time to the processes that share an address space; requests to others may be made by other injectors
/// at the same time.
#[derive(Debug)]
pub struct Injector {
    program: PathBuf,
    process: Option<Process>,
    waiting: Waiting,
}

/// See [`Injector::on_waiting`].
struct Waiting(Box<TurnAway>);

type TurnAway = dyn Fn(&[Tid]) + Send;

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waiting")
    }
}

#[derive(Debug)]
struct Process {
    child: Child,
    socket: OwnedFd,
    words: Words,
}

impl Injector {
    /// `program` is one whose `main` heeds [`HELPER_ARG`]: /proc/self/exe, in the server.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), process: None, waiting: Waiting(Box::new(|_| ())) }
    }

    /// Who sleeps in a request to a file system of ours cannot stop before that is answered, and we may not get to that before the injection is
    /// over. `turn_away` is told of threads that have been asked to stop and do not: it may answer their requests with ERESTART. They are made
    /// again when the thread goes on, which sees nothing of it. It may be called several times in an injection, a few times each 100 ms.
    pub fn on_waiting(&mut self, turn_away: impl Fn(&[Tid]) + Send + 'static) {
        self.waiting = Waiting(Box::new(turn_away));
    }

    /// The injector process, if it runs.
    #[must_use]
    pub fn pid(&self) -> Option<Tid> {
        self.process.as_ref().map(|process| process.child.id().cast_signed())
    }

    /// Starts the injector process, so that the first request need not wait for it.
    ///
    /// # Errors
    /// [`InjectError::System`].
    pub fn start(&mut self) -> Result<(), InjectError> {
        self.process = Some(self.take()?);
        Ok(())
    }

    /// Has all threads of the target execute the plan, or none. `deadline` is how long they may take until one of them stops, and then
    /// another; all together have eight times as long. What follows takes some 50 microseconds a thread.
    ///
    /// # Errors
    /// See [`InjectError`]. After [`InjectError::NotUndone`] and [`InjectError::Died`] some threads may have executed some steps.
    pub fn inject(&mut self, target: Target, plan: &Plan, deadline: Duration) -> Result<Report, InjectError> {
        self.request(target, plan.clone(), deadline, || {})
    }

    /// The same for a target whose thread `writer` sleeps in a write(2) which the caller is to answer: it cannot stop before.
    /// `answer` is called once, when it has been asked to stop, and must let the write succeed. Should the injection fail after that, the
    /// thread sees the error's errno as the write's result all the same, since it has not returned to user space in between.
    ///
    /// # Errors
    /// As [`Injector::inject`]. If `answer` was not called the caller still has to answer, with the error.
    pub fn inject_writer(
        &mut self,
        target: Target,
        plan: &Plan,
        deadline: Duration,
        writer: Tid,
        answer: impl FnOnce(),
    ) -> Result<Report, InjectError> {
        let mut plan = plan.clone();
        plan.writer = Some(writer);
        self.request(target, plan, deadline, answer)
    }

    fn request(&mut self, target: Target, plan: Plan, deadline: Duration, answer: impl FnOnce()) -> Result<Report, InjectError> {
        plan.check()?;
        let request = Request { target, plan, deadline };
        let mut process = self.take()?;
        // If it has died since the last request, nothing has been done.
        if process.send(&request).is_err() {
            process = self.take()?;
            process.send(&request).map_err(|_| InjectError::Died { modified: false })?;
        }
        let (result, usable) = process.result(&request, answer, &self.waiting.0);
        if usable {
            self.process = Some(process);
        }
        result
    }

    /// The injector process, or a new one.
    fn take(&mut self) -> Result<Process, InjectError> {
        let process = self.process.take().map_or_else(|| Process::start(&self.program), Ok);
        process.map_err(|error| InjectError::System(errno(&error)))
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

impl Process {
    fn start(program: &Path) -> io::Result<Self> {
        let memory = memfd_create(c"cgfuse-injector", MFdFlags::MFD_CLOEXEC)?;
        ftruncate(&memory, (WORDS * size_of::<u64>()) as i64)?;
        let words = Words::shared(&memory, WORDS)?;
        let (socket, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let child = Command::new(program).arg(HELPER_ARG).stdin(theirs).stdout(memory).spawn()?;
        Ok(Self { child, socket, words })
    }

    fn send(&self, request: &Request) -> Result<(), Errno> {
        let (message, fds) = request.encode();
        let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &control[..0] } else { &control[..] };
        self.words[PHASE].store(PHASE_ATTACH, Ordering::SeqCst);
        loop {
            match sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(&message)], control, MsgFlags::MSG_NOSIGNAL, None) {
                Err(Errno::EINTR) => {}
                sent => return sent.map(drop),
            }
        }
    }

    /// What the request has come to, and whether this process can serve another.
    fn result(&self, request: &Request, answer: impl FnOnce(), waiting: &dyn Fn(&[Tid])) -> (Result<Report, InjectError>, bool) {
        let mut answer = Some(answer);
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            if let Err(error) = self.wait(request) {
                return (Err(error), false);
            }
            let died = || InjectError::Died { modified: self.words[PHASE].load(Ordering::SeqCst) != PHASE_ATTACH };
            let Ok(Some((len, _))) = ptrace::receive(&self.socket, &mut buffer) else { return (Err(died()), false) };
            match Reply::decode(&buffer[..len]) {
                Some(Reply::Interrupted) => {
                    if let Some(answer) = answer.take() {
                        answer();
                    }
                }
                Some(Reply::Waiting(tids)) => waiting(&tids),
                Some(Reply::Done { result, last }) => return (result, !last),
                None => return (Err(died()), false),
            }
        }
    }

    /// Waits for a message, or the other end's being closed, as long as the injector process gets on.
    fn wait(&self, request: &Request) -> Result<(), InjectError> {
        let (mut patience, mut end) = (request.deadline + helper::GRACE, None);
        loop {
            let beats = self.words[BEATS].load(Ordering::SeqCst);
            if self.readable(Instant::now() + patience) {
                return Ok(());
            }
            let stuck = self.words[BEATS].load(Ordering::SeqCst) == beats;
            let kill = || self.words[PHASE].compare_exchange(PHASE_ATTACH, PHASE_KILLED, Ordering::SeqCst, Ordering::SeqCst);
            if stuck && kill().is_ok() {
                // It waits for an execve(2), or is stopped itself.
                return Err(InjectError::Unsettled { tid: request.target.tid() });
            }
            if self.words[PHASE].load(Ordering::SeqCst) == PHASE_MODIFIED {
                match end {
                    Some(end) if stuck || Instant::now() >= end => return Err(InjectError::Died { modified: true }),
                    Some(_) => {}
                    None => (patience, end) = (PATIENCE, Some(Instant::now() + ALL * PATIENCE)),
                }
            }
        }
    }

    /// Waits for a message, or the other end's being closed, until then.
    fn readable(&self, end: Instant) -> bool {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) if left.is_zero() => return false,
                Ok(0) | Err(Errno::EINTR) => {}
                // Any other error shows again when the message is received.
                _ => return true,
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Whatever it traces goes on. Not even a process that is stopped itself keeps us waiting.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
