//! Injection: the injector process. It takes a request, serves it, answers it, and ends when the other end is closed.
//!
//! A process of its own because the kernel lets all tracees go when their tracer ends, and only then for those that do not stop.

use super::arch::{self, Abi};
use super::error::InjectError;
use super::plan::{Report, Target};
use super::proc;
use super::run::{Run, mend};
use super::tracees::Tracees;
use super::wire::{MAX_MESSAGE, Reply, Request};
use super::{PHASE, PHASE_ATTACH, PHASE_IDLE, PHASE_MODIFIED, WORDS};
use crate::sys::process::{close_inherited, exit_at_once};
use crate::sys::ptrace;
use crate::sys::shared::Words;
use crate::sys::{Errno, Tid};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{MsgFlags, send};
use nix::unistd::{Pid, dup2_stdin, dup2_stdout, getpid, getppid, setpgid};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The program's `main` when it was started as [`HELPER_ARG`](super::HELPER_ARG) says: standard input is a socket, standard output memory that is
/// shared with the parent.
#[must_use]
pub fn main() -> ExitCode {
    match Helper::start().and_then(|helper| helper.serve()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cgfuse: injector: {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug)]
struct Helper {
    socket: OwnedFd,
    words: Arc<Words>,
    /// The CPUs that this process may use.
    cpus: Option<CpuSet>,
}

impl Helper {
    fn start() -> io::Result<Self> {
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        let words = Arc::new(Words::shared(io::stdout().as_fd(), WORDS)?);
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        drop(null);
        close_inherited(socket.as_fd())?;
        // Nothing ends it by accident: signals that are meant for the terminal's or the service's processes.
        let mut signals = SigSet::all();
        signals.remove(Signal::SIGALRM);
        signals.thread_set_mask()?;
        // Not a session of its own: that would be scheduled as a group, and one that has slept, or has moved to another CPU, may wait for seconds
        // on a loaded machine (autogroup, Linux 6.18).
        let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
        // Allowed to root only; without, it is a process like others.
        let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
        Ok(Self { socket, words, cpus: sched_getaffinity(Pid::from_raw(0)).ok() })
    }

    fn serve(&self) -> io::Result<()> {
        let mut buffer = vec![0; MAX_MESSAGE];
        while let Some((len, fds)) = ptrace::receive(&self.socket, &mut buffer)? {
            let request = Request::decode(&buffer[..len], fds).ok_or(io::ErrorKind::InvalidData)?;
            let (result, free) = self.inject(&request);
            if let Some(cpus) = &self.cpus {
                // They may be offline by now; the kernel has chosen others then.
                let _ = sched_setaffinity(Pid::from_raw(0), cpus);
            }
            self.words[PHASE].store(PHASE_IDLE, Ordering::SeqCst);
            self.reply(&Reply::Done { result, last: !free });
            if !free {
                // Releases whoever has not stopped.
                exit_at_once(0);
            }
        }
        Ok(())
    }

    fn reply(&self, reply: &Reply) {
        // A parent that is gone does not matter: the next receive tells.
        while send(self.socket.as_raw_fd(), &reply.encode(), MsgFlags::MSG_NOSIGNAL) == Err(Errno::EINTR) {}
    }

    /// The result, and whether no thread is traced any more.
    fn inject(&self, request: &Request) -> (Result<Report, InjectError>, bool) {
        let start = Instant::now();
        let target = request.target;
        let tracees = self.check(target).and_then(|tgid| Tracees::new(tgid, request.deadline, self.words.clone()));
        let mut tracees = match tracees {
            Ok(tracees) => tracees,
            Err(error) => return (Err(error), true),
        };
        tracees.beat();
        let plan = &request.plan;
        let tell = |reply| {
            if plan.writer.is_some() || reply != Reply::Interrupted {
                self.reply(&reply);
            }
        };
        let attached = tracees.attach(target, plan.skip_io_workers, tell);
        let prepared = attached.and_then(|()| Run::prepare(&mut tracees, plan));
        let result = match prepared {
            Ok(mut run) => {
                self.commit();
                run.execute()
            }
            Err(error) => Err(error),
        };
        // Those that nothing has been done to; the others are mended already.
        tracees.stopped().for_each(|i| mend(tracees.tids[i]));
        if let (Err(error), Some(writer)) = (&result, plan.writer) {
            fail_writer(&tracees, writer, error.errno());
        }
        let free = tracees.release();
        let report = |threads| Report {
            threads,
            skipped: tracees.skipped,
            stopped_ns: tracees.since.map_or(0, |since| since.elapsed().as_nanos() as u64),
            total_ns: start.elapsed().as_nanos() as u64,
        };
        (result.map(report), free)
    }

    /// Refuses what would stop those who wait for the result, and goes where the target is. The target's process.
    fn check(&self, target: Target) -> Result<Tid, InjectError> {
        let tid = target.tid();
        let tgid = proc::tgid(tid).ok_or(InjectError::Gone { tid })?;
        if tgid == getpid().as_raw() || tgid == getppid().as_raw() {
            return Err(InjectError::Itself { tid });
        }
        let stat = proc::stat(tgid, tid).ok_or(InjectError::Gone { tid })?;
        // Faster there, and no more: it may be forbidden, or beyond what CpuSet can say. Not where the target itself would keep us waiting.
        if self.cpus.is_some() && !stat.is_real_time() {
            let mut cpus = CpuSet::new();
            let _ = cpus.set(stat.cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &cpus));
        }
        Ok(tgid)
    }

    /// From now on threads are modified. The parent, which may have lost its patience, decides who comes first.
    fn commit(&self) {
        if self.words[PHASE].compare_exchange(PHASE_ATTACH, PHASE_MODIFIED, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            exit_at_once(1);
        }
    }
}

/// Makes the write(2) of a thread that was told that it had succeeded fail.
fn fail_writer(tracees: &Tracees, writer: Tid, errno: Errno) {
    let stopped = tracees.stopped().any(|i| tracees.tids[i] == writer);
    if stopped
        && let Ok(mut regs) = ptrace::regs(writer)
        && let Some(abi) = Abi::of_regs(&regs)
    {
        arch::fail_write(&mut regs, abi, errno as i32);
        // ESRCH: it is being killed.
        let _ = ptrace::set_regs(writer, &regs);
    }
}

/// The longest that the parent waits beyond the deadline while it sees nothing happen: the time that a request needs which does not wait.
pub(super) const GRACE: Duration = Duration::from_millis(600);
