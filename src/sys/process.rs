//! System layer: starting a process that outlives its parent. What a daemon's start-up cannot do in safe Rust.

use super::{Errno, Tid};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, Pid};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// Which process goes on here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The one that called, with its child's id.
    Parent(Pid),
    /// The new one.
    Child,
}

/// fork(2). Refused when the process has more than one thread: the child would inherit locks that nobody releases.
pub fn fork() -> io::Result<Fork> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(|error| io::Error::other(format!("/proc/self/task: {error}")))?;
    if threads.count() != 1 {
        return Err(io::Error::other("the process has several threads already"));
    }
    // SAFETY: there is no other thread (checked above), so the child is a full copy and may do anything.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Fork::Parent(child)),
        ForkResult::Child => Ok(Fork::Child),
    }
}

/// The right to fork of a process that has one thread, to be obtained while /proc is the one that it is in. Its children have one as well.
pub struct Alone(Option<File>);

impl Alone {
    /// Remembers where to look.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn new() -> io::Result<Self> {
        File::open("/proc/self/task").map(|task| Self(Some(task)))
    }

    /// fork(2).
    ///
    /// # Errors
    /// If there is another thread; and those of fork(2).
    pub fn fork(&mut self) -> io::Result<Fork> {
        // `.`, `..` and the threads.
        if self.0.as_ref().map(|task| task.metadata()).transpose()?.is_some_and(|task| task.nlink() != 3) {
            return Err(io::Error::other("the process has several threads already"));
        }
        // SAFETY: there is no other thread (checked above), so the child is a full copy and may do anything.
        match unsafe { nix::unistd::fork() }? {
            ForkResult::Parent { child } => Ok(Fork::Parent(child)),
            ForkResult::Child => {
                self.0 = None;
                Ok(Fork::Child)
            }
        }
    }
}

/// Children are reaped by themselves from now on, also after execve(2).
pub fn ignore_children() -> Result<(), Errno> {
    // SAFETY: ignoring a signal runs no code.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }.map(drop)
}

/// Executes a program that gets no capabilities by being root, and no descriptors but the standard ones (execveat(2)). Returns only if that
/// fails.
pub fn execute_without_capabilities(program: &OwnedFd) -> Result<(), Errno> {
    const SECBIT_NOROOT: libc::c_ulong = 1;
    // SAFETY: the call takes numbers. Who may not say this has nothing to lose.
    unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NOROOT, 0, 0, 0) };
    // SAFETY: the call takes numbers; descriptors are closed by execve only.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
    let name = c"cgfuse-holder".as_ptr();
    let (args, env) = ([name, std::ptr::null()], [std::ptr::null::<libc::c_char>()]);
    // SAFETY: the strings and the lists end with null and live as long as the call.
    let done =
        unsafe { libc::syscall(libc::SYS_execveat, program.as_raw_fd(), c"".as_ptr(), args.as_ptr(), env.as_ptr(), libc::AT_EMPTY_PATH) };
    Errno::result(done).map(drop)
}

/// pidfd_open(2).
pub fn pidfd_open(pid: Tid) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes numbers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the descriptor is new and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// _exit(2): ends the process without flushing what it shares with its parent.
pub fn exit_at_once(status: i32) -> ! {
    // SAFETY: _exit has no precondition.
    unsafe { libc::_exit(status) }
}

/// Closes every descriptor above standard error but `keep`.
///
/// To be called by a fresh child that owns no other descriptor: what is closed came from whoever started the program, and
/// would be held (a lock, a pipe's end) as long as the daemon lives.
pub fn close_inherited(keep: BorrowedFd<'_>) -> io::Result<()> {
    let keep = keep.as_raw_fd().cast_unsigned();
    close_range(3, keep.saturating_sub(1))?;
    close_range(keep.saturating_add(1).max(3), u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: the caller owns none of these descriptors, so no owner is left with a closed one.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
