//! Tracker layer: keeps membership true while tasks fork and exit.

pub mod events;
pub mod new;
mod scan;
pub mod table;

use crate::cgroup::{CgroupId, Members, Task};
use crate::controllers::TaskState;
use crate::sys::{Machine, Tid};

pub use scan::Scan;

/// What a back end needs to put a child into a group: the child's state follows from its creator's.
pub trait Fork {
    /// The state of a child of `creator`, in the creator's group.
    fn fork(&self, child: Tid, creator: &Task) -> TaskState;
}

/// A source of forks and exits. After `sync` the members are those of some moment during the call.
pub trait Tracker: Send {
    /// Adds the children born since the last call to their creators' groups.
    fn sync(&mut self, machine: &dyn Machine, members: &mut Members, fork: &dyn Fork);

    /// Forgets the dead among the members of a group.
    fn reap(&mut self, machine: &dyn Machine, members: &mut Members, id: CgroupId);

    /// Tasks are about to change their places, or have done so: newborns whose creators are not members may turn out to be
    /// children of theirs, and are remembered meanwhile and looked at again afterwards.
    fn hold(&mut self, on: bool);

    /// Looks again, at the next `sync`, at the remembered newborn threads of a process. Whether there are any.
    fn look_again(&mut self, tgid: Tid) -> bool;

    /// A task has gone to the root group. Children that were born on the way still have to be told.
    fn released(&mut self, machine: &dyn Machine, task: &Task);

    /// The state of whoever may have created this thread of the root group on his way there: it may still have his CPUs.
    fn maker_state(&self, machine: &dyn Machine, tgid: Tid, tid: Tid) -> Option<TaskState>;

    /// Whether any task may have been born since the last `sync`: false only if certainly none has.
    fn births_since(&self, machine: &dyn Machine) -> bool;

    /// A live member of a group, if it has one.
    fn live_member(&mut self, machine: &dyn Machine, members: &mut Members, id: CgroupId) -> Option<Task>;
}
