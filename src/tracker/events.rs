//! Tracker layer: the back ends that are told of every fork and exit one after the other.

use crate::sys::{Machine, Tid};
use std::io;
use std::os::fd::BorrowedFd;

/// What has happened to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A task was born.
    Fork {
        /// The thread that has created it; if that is not `exact`, some thread of its process.
        creator: Tid,
        /// Whether `creator` is the very thread.
        exact: bool,
        /// The new task.
        child: Tid,
        /// Its process.
        tgid: Tid,
    },
    /// A task has exited.
    Exit {
        /// The task.
        tid: Tid,
        /// It may be that it has not: only the machine can tell.
        doubtful: bool,
    },
    /// A process has executed a program; only the thread that did so is left, under the process's pid.
    Exec {
        /// The process.
        tgid: Tid,
    },
}

/// Something that tells events.
pub trait Source: Send {
    /// The name of the back end.
    fn name(&self) -> &'static str;
    /// Begins to listen: everything from here on is told. Tells nothing of what was before.
    ///
    /// # Errors
    /// Those of the system calls; nothing has begun then.
    fn start(&mut self) -> io::Result<()>;
    /// Ends listening.
    fn stop(&mut self);
    /// Appends everything that had happened when the call began and has not been told, in an order in which causes come before
    /// effects. Whether something has been lost: then what is told may have gaps.
    fn drain(&mut self, events: &mut Vec<Event>) -> bool;
    /// A process is about to get members: a source that listens to single processes begins to.
    fn listen_to(&mut self, _machine: &dyn Machine, _tgid: Tid) {}
    /// Whether a task that has been waited for may not have been told of.
    fn exits_late(&self) -> bool {
        false
    }
    /// Readable when it is time to drain.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
}
