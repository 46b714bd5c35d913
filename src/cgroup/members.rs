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
    /// When it started, in clock ticks since boot: a reused tid is not mistaken for its predecessor. Not known of
    /// a thread that was found in a list of its process, which was not new when it was placed.
    pub start_time: Option<u64>,
    /// The group.
    pub cgroup: CgroupId,
    /// The controllers' state.
    pub state: TaskState,
}

/// A process with threads in groups other than the root.
#[derive(Debug, Default)]
struct Process {
    threads: FxHashSet<Tid>,
    /// No thread of it is in the root group: since children are born where their creators are, none can get there unnoticed.
    complete: bool,
}

/// The members of all groups but the root.
#[derive(Debug, Default)]
pub struct Members {
    tasks: FxHashMap<Tid, Task>,
    groups: FxHashMap<CgroupId, FxHashSet<Tid>>,
    processes: FxHashMap<Tid, Process>,
    /// Processes whose main thread has died while others lived: its tid is free for the one that executes a program.
    headless: FxHashSet<Tid>,
    /// Groups that have lost their last member since somebody looked.
    emptied: Vec<CgroupId>,
}

impl Members {
    /// The task, unless it is in the root group.
    pub fn get(&self, tid: Tid) -> Option<&Task> {
        self.tasks.get(&tid)
    }

    /// The controllers' state of a task that is not in the root group, to be changed.
    pub fn state_mut(&mut self, tid: Tid) -> Option<&mut TaskState> {
        self.tasks.get_mut(&tid).map(|task| &mut task.state)
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
        self.processes.get(&tgid).into_iter().flat_map(|process| &process.threads).filter_map(|tid| self.tasks.get(tid))
    }

    /// The number of tasks in a group other than the root.
    pub fn count(&self, id: CgroupId) -> usize {
        self.groups.get(&id).map_or(0, FxHashSet::len)
    }

    /// The number of threads of a process that are not in the root group.
    pub fn count_process(&self, tgid: Tid) -> usize {
        self.processes.get(&tgid).map_or(0, |process| process.threads.len())
    }

    /// Whether it is known that no thread of a process is in the root group.
    pub fn is_complete(&self, tgid: Tid) -> bool {
        self.processes.get(&tgid).is_some_and(|process| process.complete)
    }

    /// Every known thread of a process has just been seen alive; `count` is the number of all that it has.
    pub fn all_seen(&mut self, tgid: Tid, count: usize) {
        if let Some(process) = self.processes.get_mut(&tgid) {
            process.complete = process.threads.len() == count;
        }
    }

    /// The groups that have tasks.
    pub fn populated(&self) -> impl Iterator<Item = CgroupId> {
        self.groups.keys().copied()
    }

    /// Records a task at its place; one that is put into the root group is forgotten.
    pub fn place(&mut self, task: Task) {
        if task.cgroup == ROOT {
            self.processes.entry(task.tgid).and_modify(|process| process.complete = false);
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
            self.processes.entry(tgid).or_default().threads.insert(tid);
            if tid == tgid {
                self.headless.remove(&tgid);
            }
            old.inspect(|(old, _)| self.leave_process(*old, tid));
        }
    }

    /// The processes whose main thread has died while others lived.
    pub fn headless(&self) -> impl Iterator<Item = Tid> {
        self.headless.iter().copied()
    }

    /// Forgets a task that has exited.
    pub fn exited(&mut self, tid: Tid) {
        if self.processes.contains_key(&tid) {
            self.headless.insert(tid);
        }
        self.remove(tid);
    }

    /// Forgets a task that has exited or is in the root group again.
    pub fn remove(&mut self, tid: Tid) {
        if let Some(old) = self.tasks.remove(&tid) {
            self.leave(old.cgroup, tid);
            self.leave_process(old.tgid, tid);
        }
    }

    /// A group that seems to have become empty has never had a member.
    pub fn not_emptied(&mut self, id: CgroupId) {
        self.emptied.retain(|emptied| *emptied != id);
    }

    /// Whether some group has become empty since the last [`Members::take_emptied`].
    pub fn has_emptied(&self) -> bool {
        !self.emptied.is_empty()
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
        if let Some(process) = self.processes.get_mut(&tgid) {
            process.threads.remove(&tid);
            if process.threads.is_empty() {
                self.processes.remove(&tgid);
                self.headless.remove(&tgid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(tid: Tid, tgid: Tid, cgroup: CgroupId) -> Task {
        Task { tid, tgid, start_time: Some(0), cgroup, state: TaskState::default() }
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
        members.all_seen(10, 1);
        assert!(members.is_complete(10));
        members.place(task(12, 10, 2));
        members.place(task(12, 10, ROOT));
        assert!(!members.is_complete(10));
        members.place(task(11, 11, 2));
        assert_eq!((members.count_process(10), members.count_process(11)), (0, 1));
        members.remove(11);
        assert!(members.is_empty() && members.populated().next().is_none());
        assert_eq!(members.take_emptied(), vec![2]);
    }
}
