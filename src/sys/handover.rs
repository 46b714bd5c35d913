//! System layer: becoming another program with nothing changed on the way, standing for one that runs as a child, and giving a program
//! back what this one has changed for itself.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;
use nix::unistd::{Pid, getpid};

/// Bit by bit: which of the descriptors 0, 1 and 2 were closed when the program was started.
static CLOSED: AtomicU8 = AtomicU8::new(0);
/// Whether SIGPIPE was ignored when the program was started.
static PIPE_IGNORED: AtomicBool = AtomicBool::new(false);
/// The soft RLIMIT_NOFILE as it was before [`raise_descriptor_limit`].
static DESCRIPTORS: OnceLock<u64> = OnceLock::new();

/// Rust's start-up opens /dev/null where a standard stream is closed and ignores SIGPIPE. What was there before is looked at before.
extern "C" fn look() {
    for fd in 0..3 {
        // SAFETY: F_GETFD only asks, whether or not the descriptor is open.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            CLOSED.fetch_or(1 << fd, Ordering::Relaxed);
        }
    }
    PIPE_IGNORED.store(is_ignored(libc::SIGPIPE), Ordering::Relaxed);
}

// SAFETY: the section is a list of functions without arguments, called once each before main; this one needs nothing that is not there yet.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

/// Whether a signal is ignored.
pub fn is_ignored(signal: i32) -> bool {
    let mut now = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only writes the present one, into a structure that is large enough.
    unsafe { libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()) };
    // SAFETY: all zero is a valid structure, and so is what the kernel has written over it.
    unsafe { now.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Ignores a signal, or gives it back its default action.
pub fn set_ignored(signal: i32, ignored: bool) {
    // SAFETY: neither disposition is a function of this program.
    unsafe { libc::signal(signal, if ignored { libc::SIG_IGN } else { libc::SIG_DFL }) };
}

/// Prepares execve(2): the next program finds SIGPIPE and the standard streams as this one did.
pub fn undo_start_up() {
    set_ignored(libc::SIGPIPE, PIPE_IGNORED.load(Ordering::Relaxed));
    let closed = CLOSED.load(Ordering::Relaxed);
    for fd in (0..3).filter(|fd| closed >> fd & 1 == 1) {
        close_at_exec(fd);
    }
}

fn close_at_exec(fd: RawFd) {
    // SAFETY: the descriptor is one of the standard streams, which are open and stay so for the life of the program.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    // It fails only if the descriptor is closed already.
    let _ = fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
}

/// Allows this process all the descriptors that it may have; it is to use neither select(2) nor programs that do.
///
/// # Errors
/// Those of getrlimit(2) and setrlimit(2).
pub fn raise_descriptor_limit() -> Result<(), Errno> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    DESCRIPTORS.get_or_init(|| soft);
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}

/// In a child that is to become another program: the limit is as it was before [`raise_descriptor_limit`]. Async-signal-safe.
pub fn lower_descriptor_limit() {
    let Some(before) = DESCRIPTORS.get() else { return };
    // It fails only if the hard limit is below that by now.
    let _ = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, *before, hard));
}

/// kill(2), for real-time signals too.
///
/// # Errors
/// ESRCH if there is no such process, EPERM.
pub fn send(to: Pid, signal: i32) -> Result<(), Errno> {
    // SAFETY: the call touches no memory.
    Errno::result(unsafe { libc::kill(to.as_raw(), signal) }).map(drop)
}

/// What has happened to a child that nobody has been told of yet: it has ended, or a signal has stopped it.
///
/// # Errors
/// ECHILD if it is no child.
pub fn news_of(child: Pid) -> Result<Option<ExitStatus>, Errno> {
    let mut status = 0;
    // SAFETY: the kernel writes one int.
    let answer = unsafe { libc::waitpid(child.as_raw(), &raw mut status, libc::WNOHANG | libc::WUNTRACED) };
    Ok((Errno::result(answer)? != 0).then(|| ExitStatus::from_raw(status)))
}

/// Ends this process by a signal, without a core dump. Where the signal cannot end it (an init), by the exit code that shells give.
pub fn die_of(signal: i32) -> ! {
    // The one who died first has dumped his core, which must not be overwritten.
    let _ = prctl::set_dumpable(false);
    if signal != libc::SIGKILL {
        set_ignored(signal, false);
    }
    if let Ok(alone) = only(signal) {
        let _ = alone.thread_unblock();
    }
    let _ = send(getpid(), signal);
    super::process::exit_at_once(128 + signal)
}

fn only(signal: i32) -> io::Result<SigSet> {
    let mut set = *SigSet::empty().as_ref();
    // SAFETY: the set is initialized.
    Errno::result(unsafe { libc::sigaddset(&raw mut set, signal) })?;
    // SAFETY: the set is initialized.
    Ok(unsafe { SigSet::from_sigset_t_unchecked(set) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_up_is_seen() {
        // The test runner has its standard streams, and Rust ignores SIGPIPE, whatever it was before.
        assert_eq!(CLOSED.load(Ordering::Relaxed), 0);
        assert!(is_ignored(libc::SIGPIPE) && !is_ignored(libc::SIGTERM));
    }

    #[test]
    fn no_child_is_told() {
        assert_eq!(news_of(getpid()), Err(Errno::ECHILD));
        assert!(only(libc::SIGRTMIN() + 1).is_ok() && only(0).is_err());
    }
}
