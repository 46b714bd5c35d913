//! Model layer: which task is in which group.
//!
//! Only tasks outside the root group are here: the root holds everything that no other group holds.

use super::tree::{CgroupId, ROOT};
use crate::controllers::TaskState;
use crate::sys::Tid;
use rustc_hash::{FxHashMap, FxHashSet};

/// A thread that is in a group other than the root.
#[derive(Clone, Debug)]
pub struct Task {
    /// The thread.
    pub tid: Tid,
    /// Its process.
    pub tgid: Tid,
    /// When it started, in clock ticks since boot: a reused tid is not mistaken for its predecessor.
    pub start_time: u64,
    /// The group.
    pub cgroup: CgroupId,
    /// The controllers' state.
    pub state: TaskState,
}

/// The members of all groups but the root.
#[derive(Debug, Default)]
pub struct Members {
    tasks: FxHashMap<Tid, Task>,
    groups: FxHashMap<CgroupId, FxHashSet<Tid>>,
    processes: FxHashMap<Tid, FxHashSet<Tid>>,
    /// Groups that have lost their last member since somebody looked.
    emptied: Vec<CgroupId>,
}

impl Members {
    /// The task, unless it is in the root group.
    pub fn get(&self, tid: Tid) -> Option<&Task> {
        self.tasks.get(&tid)
    }

    /// The group that a task is in.
    pub fn cgroup_of(&self, tid: Tid) -> CgroupId {
        self.tasks.get(&tid).map_or(ROOT, |task| task.cgroup)
    }

    /// Whether every task is in the root group.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// The tasks of a group other than the root, in no order.
    pub fn of_group(&self, id: CgroupId) -> impl Iterator<Item = &Task> {
        self.groups.get(&id).into_iter().flatten().filter_map(|tid| self.tasks.get(tid))
    }

    /// The threads of a process that are not in the root group.
    pub fn of_process(&self, tgid: Tid) -> impl Iterator<Item = &Task> {
        self.processes.get(&tgid).into_iter().flatten().filter_map(|tid| self.tasks.get(tid))
    }

    /// The number of tasks in a group other than the root.
    pub fn count(&self, id: CgroupId) -> usize {
        self.groups.get(&id).map_or(0, FxHashSet::len)
    }

    /// The number of threads of a process that are not in the root group.
    pub fn count_process(&self, tgid: Tid) -> usize {
        self.processes.get(&tgid).map_or(0, FxHashSet::len)
    }

    /// The groups that have tasks.
    pub fn populated(&self) -> impl Iterator<Item = CgroupId> {
        self.groups.keys().copied()
    }

    /// Records a task at its place; one that is put into the root group is forgotten.
    pub fn place(&mut self, task: Task) {
        if task.cgroup == ROOT {
            self.remove(task.tid);
            return;
        }
        let (tid, tgid, cgroup) = (task.tid, task.tgid, task.cgroup);
        let old = self.tasks.insert(tid, task).map(|old| (old.tgid, old.cgroup));
        if old.is_none_or(|(_, old)| old != cgroup) {
            self.groups.entry(cgroup).or_default().insert(tid);
            old.inspect(|(_, old)| self.leave(*old, tid));
        }
        if old.is_none_or(|(old, _)| old != tgid) {
            self.processes.entry(tgid).or_default().insert(tid);
            old.inspect(|(old, _)| self.leave_process(*old, tid));
        }
    }

    /// Forgets a task that has exited or is in the root group again.
    pub fn remove(&mut self, tid: Tid) {
        if let Some(old) = self.tasks.remove(&tid) {
            self.leave(old.cgroup, tid);
            self.leave_process(old.tgid, tid);
        }
    }

    /// The groups that have become empty since the last call.
    pub fn take_emptied(&mut self) -> Vec<CgroupId> {
        std::mem::take(&mut self.emptied)
    }

    fn leave(&mut self, id: CgroupId, tid: Tid) {
        if let Some(group) = self.groups.get_mut(&id)
            && group.remove(&tid)
            && group.is_empty()
        {
            self.groups.remove(&id);
            self.emptied.push(id);
        }
    }

    fn leave_process(&mut self, tgid: Tid, tid: Tid) {
        if let Some(threads) = self.processes.get_mut(&tgid) {
            threads.remove(&tid);
            if threads.is_empty() {
                self.processes.remove(&tgid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(tid: Tid, tgid: Tid, cgroup: CgroupId) -> Task {
        Task { tid, tgid, start_time: 0, cgroup, state: TaskState::default() }
    }

    #[test]
    fn places_counts_and_emptied_groups() {
        let mut members = Members::default();
        members.place(task(10, 10, 1));
        members.place(task(11, 10, 1));
        assert_eq!((members.count(1), members.count_process(10)), (2, 2));
        members.place(task(11, 10, 2));
        assert_eq!((members.count(1), members.count(2), members.count_process(10)), (1, 1, 2));
        members.place(task(10, 10, ROOT));
        assert_eq!((members.cgroup_of(10), members.take_emptied()), (ROOT, vec![1]));
        members.place(task(11, 11, 2));
        assert_eq!((members.count_process(10), members.count_process(11)), (0, 1));
        members.remove(11);
        assert!(members.is_empty() && members.populated().next().is_none());
        assert_eq!(members.take_emptied(), vec![2]);
    }
}
