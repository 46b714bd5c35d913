//! System layer: release agents, all started and waited for by one thread, which lives while there are any.

use crate::sys::{Errno, Tid, handover, process};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// How often agents are looked at whose end nobody tells, for want of memory or descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs agents.
#[derive(Debug)]
pub(super) struct Agents(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    orders: Mutex<Orders>,
    /// Wakes the thread.
    more: EventFd,
}

#[derive(Debug, Default)]
struct Orders {
    waiting: Vec<Order>,
    /// Whether there is a thread, which will look here again.
    served: bool,
}

/// A program, and the group that it is told of.
#[derive(Debug)]
struct Order {
    program: CString,
    path: CString,
}

struct Running {
    child: Child,
    /// Readable at its end.
    pidfd: Option<OwnedFd>,
    shown: String,
}

impl Agents {
    /// None so far.
    ///
    /// # Errors
    /// EMFILE.
    pub(super) fn new() -> io::Result<Self> {
        let more = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self(Arc::new(Shared { orders: Mutex::default(), more })))
    }

    /// Has an agent started after those that wait already.
    pub(super) fn run(&self, agent: &OsStr, path: &OsStr) {
        let (Ok(program), Ok(path)) = (CString::new(agent.as_bytes()), CString::new(path.as_bytes())) else { return };
        let mut orders = self.0.orders.lock();
        orders.waiting.push(Order { program, path });
        if orders.served {
            // It cannot fail but for a counter that is full, and then the thread is awake.
            let _ = self.0.more.write(1);
            return;
        }
        let shared = self.0.clone();
        match thread::Builder::new().name("release-agents".into()).spawn(move || shared.serve()) {
            Ok(_) => orders.served = true,
            Err(error) => {
                log::warn!("release agent not started: {error}");
                orders.waiting.clear();
            }
        }
    }
}

impl Shared {
    fn serve(&self) {
        let mut running: Vec<Running> = Vec::new();
        loop {
            let waiting = {
                let mut orders = self.orders.lock();
                if orders.waiting.is_empty() && running.is_empty() {
                    orders.served = false;
                    return;
                }
                std::mem::take(&mut orders.waiting)
            };
            running.extend(waiting.iter().filter_map(Order::start));
            if !running.is_empty() {
                self.sleep(&running);
            }
            running.retain_mut(|agent| !agent.has_ended());
        }
    }

    /// Until there is more to start, or an agent has ended.
    fn sleep(&self, running: &[Running]) {
        let pidfds = running.iter().filter_map(|agent| agent.pidfd.as_ref());
        let ends = pidfds.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN));
        let mut fds: Vec<_> = std::iter::once(PollFd::new(self.more.as_fd(), PollFlags::POLLIN)).chain(ends).collect();
        let all_tell = fds.len() == running.len() + 1;
        let timeout = if all_tell { PollTimeout::NONE } else { PollTimeout::try_from(PAUSE).unwrap_or(PollTimeout::MAX) };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => thread::sleep(PAUSE),
        }
        let _ = self.more.read();
    }
}

impl Order {
    /// `None` if it cannot be executed: as in the kernel, nobody is told but the log.
    fn start(&self) -> Option<Running> {
        let text = |text: &CStr| OsStr::from_bytes(text.to_bytes()).display().to_string();
        let shown = format!("{} {}", text(&self.program), text(&self.path));
        match self.command().spawn() {
            Ok(child) => {
                let pidfd = process::pidfd_open(child.id().cast_signed() as Tid).ok();
                Some(Running { child, pidfd, shown })
            }
            Err(error) => {
                log::info!("release agent {shown}: {}", Errno::from_raw(error.raw_os_error().unwrap_or(0)).desc());
                None
            }
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(OsStr::from_bytes(self.program.to_bytes()));
        command.current_dir("/");
        let (program, path) = (self.program.clone(), self.path.clone());
        let execute = move || {
            for fd in 0..3 {
                // SAFETY: closing a descriptor of the forked child touches no memory; whether it was open does not matter.
                unsafe { libc::close(fd) };
            }
            // SAFETY: only marks descriptors of the forked child to be closed at exec; the one that reports its failure lives until then.
            unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
            // SIG_DFL for all, as a process of the kernel's has it: the server may have been started with signals ignored.
            for signal in 1..=64 {
                let default = [0u64; 4];
                // SAFETY: the structure (struct kernel_sigaction) is all zero and as long as the kernel reads; signals that cannot be set are refused.
                unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null_mut::<u64>(), 8) };
            }
            handover::lower_descriptor_limit();
            // Not by what std does, execvp(3), which looks for a name without a slash in PATH, and takes a file that is no program for a script.
            let argv = [program.as_ptr(), path.as_ptr(), std::ptr::null()];
            let envp = [c"HOME=/".as_ptr(), c"PATH=/sbin:/bin:/usr/sbin:/usr/bin".as_ptr(), std::ptr::null()];
            // SAFETY: the strings and the lists end with null and live as long as the call.
            unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
            Err(io::Error::last_os_error())
        };
        // SAFETY: the closure only makes system calls, which are async-signal-safe.
        unsafe { command.pre_exec(execute) };
        command
    }
}

impl Running {
    fn has_ended(&mut self) -> bool {
        match self.child.try_wait() {
            Ok(None) => return false,
            Ok(Some(status)) => log::debug!("release agent {}: {status}", self.shown),
            Err(error) => log::debug!("release agent {}: {error}", self.shown),
        }
        true
    }
}
