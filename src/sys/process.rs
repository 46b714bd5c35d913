//! System layer: starting a process that outlives its parent. What a daemon's start-up cannot do in safe Rust.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::unistd::{ForkResult, Pid};

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
