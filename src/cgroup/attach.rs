//! Model layer: moving tasks. Three phases as in the kernel (`cgroup_attach_task`): all controllers are asked,
//! all controllers take effect, the membership changes. All or none, over all threads and all controllers.

use super::{CgroupId, CssSet, Locked, ROOT, SETTLE, Task, Writer, parse};
use crate::controllers::{Ids, TaskState};
use crate::error::{Error, Result};
use crate::sys::{Errno, TaskFlags, TaskInfo, Tid};
use rustc_hash::FxHashSet;

/// kthreadd, from which all kernel threads are forked.
const KTHREADD: Tid = 2;

/// How often the threads of a process are listed again before a storm of new ones is left to the late look.
const MAX_ROUNDS: usize = 100;

/// One task on its way to another state, be it another group or another configuration of its own.
#[derive(Clone, Debug)]
pub struct Change {
    /// The task with the state that it is to have.
    pub task: Task,
    /// The group that it comes from.
    pub from: CgroupId,
    /// The affinity to give back if the change is given up; `None` while nothing has been changed.
    pub undo: Option<crate::bitmap::Bitmap>,
    /// The task has exited meanwhile.
    pub gone: bool,
}

impl Change {
    /// A change of a task that stays where it is.
    pub fn in_place(task: Task) -> Self {
        Self { from: task.cgroup, task, undo: None, gone: false }
    }
}

/// A move under way. Dropped before it is committed, it gives every task back what it had.
struct Migration<'l, 'h> {
    locked: &'l Locked<'h>,
    to: CgroupId,
    done: Vec<Change>,
    committed: bool,
}

impl Drop for Migration<'_, '_> {
    fn drop(&mut self) {
        if !self.committed {
            let subsys = &self.locked.hierarchy.subsys;
            subsys.iter().rev().for_each(|ss| (ss.cancel_attach)(self.locked.machine(), &mut self.done));
            let mut css_set = self.locked.hierarchy.css_set_lock.lock();
            self.done.drain(..).for_each(|change| css_set.members.place(Task { cgroup: change.from, ..change.task }));
        }
    }
}

impl Migration<'_, '_> {
    /// Moves more tasks; what fails leaves these as they were.
    fn add(&mut self, writer: &Writer<'_>, mut changes: Vec<Change>) -> Result<()> {
        let locked = self.locked;
        let subsys = &locked.hierarchy.subsys;
        subsys.iter().try_for_each(|ss| (ss.can_attach)(locked, writer, self.to, &changes))?;
        for (i, ss) in subsys.iter().enumerate() {
            if let Err(error) = (ss.prepare_attach)(locked, self.to, &mut changes) {
                subsys[..=i].iter().rev().for_each(|ss| (ss.cancel_attach)(locked.machine(), &mut changes));
                return Err(error);
            }
        }
        let mut css_set = locked.hierarchy.css_set_lock.lock();
        for change in &changes {
            if change.gone {
                css_set.members.remove(change.task.tid);
            } else {
                css_set.members.place(change.task.clone());
            }
        }
        changes.retain(|change| !change.gone);
        self.done.append(&mut changes);
        Ok(())
    }

    fn commit(mut self) {
        self.committed = true;
        let locked = self.locked;
        locked.hierarchy.subsys.iter().for_each(|ss| (ss.attach)(locked, self.to, &self.done));
        let now = locked.machine().now();
        locked.hierarchy.css_set_lock.lock().settle = SETTLE.iter().map(|delay| now + *delay).collect();
    }
}

impl CssSet {
    /// Records the state that tasks have been given where they are.
    fn record(&mut self, changes: &[Change]) {
        for Change { task, gone, .. } in changes {
            let same = self.members.get(task.tid).is_some_and(|known| known.start_time == task.start_time);
            match gone {
                true if same => self.members.remove(task.tid),
                false if same => self.members.place(task.clone()),
                _ => {}
            }
        }
    }
}

impl Locked<'_> {
    /// Moves the task or process that `text` names into a group (`cgroup_attach_task`, `__cgroup1_procs_write`).
    ///
    /// # Errors
    /// EINVAL for what is not a pid and for kernel threads that are bound to their CPUs; ESRCH if there is no such
    /// task; EACCES if the opener is neither root nor the task's owner; ENOSPC if the cpuset has no CPUs or nodes;
    /// else what setting the tasks' state says. Nothing is changed then.
    pub fn attach(&self, writer: &Writer<'_>, to: CgroupId, text: &[u8], ids: Ids) -> Result<()> {
        self.tree().get(to)?;
        let tid = self.target(writer, parse::pid(text)?)?;
        let mut css_set = self.hierarchy.sync();
        let info = match css_set.members.get(tid) {
            Some(task) => TaskInfo { tgid: task.tgid, ppid: 0, zombie: false, flags: TaskFlags::empty(), start_time: task.start_time },
            None => self.machine().task(tid)?,
        };
        let bound = info.flags.contains(TaskFlags::NO_SETAFFINITY) || tid == KTHREADD && info.flags.contains(TaskFlags::KTHREAD);
        if bound {
            return Err(Error::Invalid);
        }
        self.may_move(writer, tid)?;
        let changes = match ids {
            Ids::Threads => self.change_of(&mut css_set, tid, Some(&info), to).into_iter().collect(),
            Ids::Processes => self.changes_of_process(&mut css_set, info.tgid, to)?,
        };
        drop(css_set);
        let moved = self.migrate(writer, to, changes, (ids == Ids::Processes).then_some(info.tgid));
        self.hierarchy.release();
        moved.map_err(|error| self.explain(tid, error)).or_else(|error| error.map_or(Ok(()), Err))
    }

    /// The thread that a written number means: in the writer's pid namespace, 0 for the writer.
    fn target(&self, writer: &Writer<'_>, nr: Tid) -> Result<Tid> {
        if nr == 0 {
            return if writer.tid == 0 { Err(Error::NoTask) } else { Ok(writer.tid) };
        }
        match (writer.caller)()?.pid_ns {
            Some(ns) => Ok(self.machine().tid_from(&ns, nr)?),
            None => Ok(nr),
        }
    }

    /// `cgroup1_procs_write`'s check of the opener's credentials.
    fn may_move(&self, writer: &Writer<'_>, tid: Tid) -> Result<()> {
        if writer.opener_uid == 0 && self.machine().root_is_global() {
            return Ok(());
        }
        let creds = self.machine().creds(tid)?;
        if [creds.uid, creds.suid].contains(&writer.opener_uid) { Ok(()) } else { Err(Error::Access) }
    }

    /// A task known to be alive when the move began and that is no longer is no reason to fail for another reason.
    fn explain(&self, tid: Tid, error: Error) -> Option<Error> {
        match self.machine().task(tid) {
            Ok(info) if info.zombie => None,
            Ok(_) => Some(error),
            Err(_) => Some(Error::NoTask),
        }
    }

    /// The change that takes a thread to a group; `None` if it is there already or dead.
    fn change_of(&self, css_set: &mut CssSet, tid: Tid, info: Option<&TaskInfo>, to: CgroupId) -> Option<Change> {
        if let Some(task) = css_set.members.get(tid) {
            let from = task.cgroup;
            return (from != to).then(|| Change { task: Task { cgroup: to, ..task.clone() }, from, undo: None, gone: false });
        }
        let info = match info {
            Some(info) => *info,
            None => self.machine().task(tid).ok()?,
        };
        let task = Task { tid, tgid: info.tgid, start_time: info.start_time, cgroup: to, state: TaskState::default() };
        (to != ROOT && !info.zombie).then_some(Change { task, from: ROOT, undo: None, gone: false })
    }

    /// The changes that take all threads of a process to a group.
    fn changes_of_process(&self, css_set: &mut CssSet, tgid: Tid, to: CgroupId) -> Result<Vec<Change>> {
        let known: Vec<Tid> = css_set.members.of_process(tgid).map(|task| task.tid).collect();
        // As many as the process has are all that it has: births have just been looked for.
        let threads = if self.machine().thread_count(tgid)? == known.len() { known } else { self.machine().threads(tgid)? };
        Ok(threads.into_iter().filter_map(|tid| self.change_of(css_set, tid, None, to)).collect())
    }

    fn migrate(&self, writer: &Writer<'_>, to: CgroupId, changes: Vec<Change>, process: Option<Tid>) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut migration = Migration { locked: self, to, done: Vec::new(), committed: false };
        migration.add(writer, changes)?;
        // Threads created meanwhile: again until there is none.
        for _ in 0..MAX_ROUNDS {
            let Some(tgid) = process.filter(|_| self.hierarchy.css_set_lock.lock().tracker.births_since(self.machine())) else { break };
            let mut css_set = self.hierarchy.sync();
            let late = self.changes_of_process(&mut css_set, tgid, to).unwrap_or_default();
            drop(css_set);
            if late.is_empty() {
                break;
            }
            migration.add(writer, late)?;
        }
        if migration.done.is_empty() {
            return Err(Error::NoTask);
        }
        migration.commit();
        Ok(())
    }

    /// Brings every member of a group to a new configuration: `apply` gives the tasks their new state, or leaves
    /// them as they were and fails; `commit` makes the configuration the one that new children start with.
    ///
    /// # Errors
    /// What `apply` says; `commit` has not been called then.
    pub fn update_tasks(&self, id: CgroupId, apply: impl Fn(&mut [Change]) -> Result<()>, commit: impl FnOnce()) -> Result<()> {
        let members = |css_set: &CssSet| css_set.members.of_group(id).cloned().map(Change::in_place).collect::<Vec<_>>();
        let mut changes = members(&self.hierarchy.sync());
        apply(&mut changes)?;
        commit();
        let mut seen = FxHashSet::default();
        while !changes.is_empty() {
            seen.extend(changes.iter().map(|change| change.task.tid));
            let mut css_set = self.hierarchy.sync();
            css_set.record(&changes);
            // Children born before the commit started with the old configuration.
            changes = members(&css_set);
            drop(css_set);
            changes.retain(|change| !seen.contains(&change.task.tid));
            if let Err(error) = apply(&mut changes) {
                log::warn!("children born during a change of their group keep what they had: {error}");
                changes.clear();
            }
        }
        Ok(())
    }

    /// Moves all tasks of a group to another without asking anybody (`cgroup_transfer_tasks`).
    pub fn transfer_tasks(&self, from: CgroupId, to: CgroupId) {
        let nobody = Writer { opener_uid: 0, uid: 0, tid: 0, caller: &|| Err(Errno::ESRCH) };
        let css_set = self.hierarchy.sync();
        let tasks: Vec<Task> = css_set.members.of_group(from).cloned().collect();
        drop(css_set);
        for task in tasks {
            let tid = task.tid;
            let change = Change { task: Task { cgroup: to, ..task }, from, undo: None, gone: false };
            if let Err(error) = self.migrate(&nobody, to, vec![change], None) {
                log::warn!("task {tid} stays in a group that cannot hold it: {error}");
            }
        }
    }
}
