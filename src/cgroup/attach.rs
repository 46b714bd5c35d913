//! Model layer: moving tasks. Three phases as in the kernel (`cgroup_attach_task`): all controllers are asked,
//! all controllers take effect, the move is final. All or none, over all threads and all controllers.

use super::{Cgroup, CgroupId, CssSet, Hierarchy, Locked, ROOT, SETTLE, Task, Writer, parse};
use crate::controllers::Ids;
use crate::error::{Error, Result};
use crate::sys::{TaskFlags, TaskInfo, Tid};
use parking_lot::MutexGuard;
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
    fn in_place(task: Task) -> Self {
        Self { from: task.cgroup, task, undo: None, gone: false }
    }

    /// The change that takes a thread to a group; `None` if it is there already or dead. Of a thread that is not the main one
    /// of its process nothing need be known.
    fn migration(locked: &Locked<'_>, css_set: &CssSet, (tid, tgid): (Tid, Tid), info: Option<TaskInfo>, to: CgroupId) -> Option<Self> {
        let CssSet { members, tracker, .. } = css_set;
        let known = members.get(tid).cloned();
        let from = known.as_ref().map_or(ROOT, |task| task.cgroup);
        if from == to || info.is_some_and(|info| info.zombie) {
            return None;
        }
        let start_time = info.map(|info| info.start_time);
        let state = || tracker.maker_state(locked.machine(), tgid, tid).unwrap_or_default();
        let task = known.unwrap_or_else(|| Task { tid, tgid, start_time, cgroup: ROOT, state: state() });
        Some(Self { task: Task { cgroup: to, ..task }, from, undo: None, gone: false })
    }
}

/// While it lives, children of tasks that are being changed get their creators' groups, but their state only at its end:
/// until then nobody knows whether they were born before or after their creators' change.
struct Changing<'h>(&'h Hierarchy);

impl<'h> Changing<'h> {
    /// From a look at what has been born before, which `css_set_lock` is still held after.
    fn start(hierarchy: &'h Hierarchy) -> (Self, MutexGuard<'h, CssSet>) {
        let mut css_set = hierarchy.sync();
        css_set.changing = true;
        css_set.tracker.hold(true);
        (Self(hierarchy), css_set)
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let mut css_set = self.0.css_set_lock.lock();
        css_set.changing = false;
        css_set.tracker.hold(false);
        if std::mem::take(&mut css_set.changed) {
            let now = self.0.machine.now();
            css_set.settle = SETTLE.iter().map(|delay| now + *delay).collect();
        }
        for tid in std::mem::take(&mut css_set.unsettled) {
            let tree = self.0.tree.read();
            if let Some(task) = css_set.members.get(tid).cloned() {
                let mut state = task.state;
                self.0.subsys.iter().for_each(|ss| (ss.fork)(&*self.0.machine, &tree, task.cgroup, tid, &mut state, None));
                css_set.members.state_mut(tid).into_iter().for_each(|known| known.clone_from(&state));
            }
        }
    }
}

/// A move under way. Dropped before it is committed, it gives every task back what it had.
struct Migration<'l, 'h> {
    locked: &'l Locked<'h>,
    to: CgroupId,
    done: Vec<Change>,
    committed: bool,
}

impl Migration<'_, '_> {
    /// Moves more tasks; what fails leaves these as they were.
    ///
    /// They are in the group before the controllers take effect, so that a child that has inherited the effect is in the group too.
    fn add(&mut self, writer: Option<&Writer<'_>>, mut changes: Vec<Change>) -> Result<()> {
        let locked = self.locked;
        let subsys = &locked.hierarchy.subsys;
        subsys.iter().try_for_each(|ss| (ss.can_attach)(locked, writer, self.to, &changes))?;
        {
            let mut css_set = locked.hierarchy.css_set_lock.lock();
            changes.iter().for_each(|change| css_set.members.place(change.task.clone()));
        }
        // From here on dropping the migration undoes it, whatever happens.
        let first = self.done.len();
        self.done.append(&mut changes);
        let changes = &mut self.done[first..];
        for (i, ss) in subsys.iter().enumerate() {
            if let Err(error) = (ss.prepare_attach)(locked, self.to, changes) {
                subsys[..=i].iter().rev().for_each(|ss| (ss.cancel_attach)(locked.machine(), changes));
                let failed = self.done.split_off(first);
                self.put_back(failed);
                return Err(error);
            }
        }
        locked.hierarchy.css_set_lock.lock().record(changes);
        self.done.retain(|change| !change.gone);
        Ok(())
    }

    /// Takes tasks back to where they came from, and with them the children that were born on the way.
    fn put_back(&self, changes: Vec<Change>) {
        let mut css_set = self.locked.hierarchy.css_set_lock.lock();
        let from = changes.first().map_or(ROOT, |change| change.from);
        let children: Vec<Task> = css_set.unsettled.iter().filter_map(|tid| css_set.members.get(*tid).cloned()).collect();
        children.into_iter().filter(|task| task.cgroup == self.to).for_each(|task| css_set.members.place(Task { cgroup: from, ..task }));
        for change in changes {
            if change.gone {
                css_set.members.exited(change.task.tid);
            } else {
                css_set.members.place(Task { cgroup: change.from, ..change.task });
            }
        }
        if css_set.members.count(self.to) == 0 {
            // Nobody has ever really been there.
            css_set.members.not_emptied(self.to);
        }
    }

    fn commit(mut self) {
        self.committed = true;
        let locked = self.locked;
        locked.hierarchy.subsys.iter().for_each(|ss| (ss.attach)(locked, self.to, &self.done));
        if self.to == ROOT {
            let mut css_set = locked.hierarchy.css_set_lock.lock();
            // The first ones have really had other CPUs; one born on the way may have had none of its own.
            self.done.iter().rev().for_each(|change| css_set.tracker.released(locked.machine(), &change.task));
        }
    }
}

impl Drop for Migration<'_, '_> {
    fn drop(&mut self) {
        if !self.committed {
            let subsys = &self.locked.hierarchy.subsys;
            subsys.iter().rev().for_each(|ss| (ss.cancel_attach)(self.locked.machine(), &mut self.done));
            let done = std::mem::take(&mut self.done);
            self.put_back(done);
        }
    }
}

impl CssSet {
    /// Records the state that tasks have been given where they are.
    fn record(&mut self, changes: &[Change]) {
        self.changed |= !changes.is_empty();
        for Change { task, gone, .. } in changes {
            let same = self.members.get(task.tid).is_some_and(|known| known.start_time == task.start_time);
            match gone {
                true if same => self.members.exited(task.tid),
                false if same => self.members.state_mut(task.tid).into_iter().for_each(|state| state.clone_from(&task.state)),
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
        let announces = self.tree().get(to).map(|group: &Cgroup| group.notify_on_release)?;
        let tid = self.target(writer, parse::pid(text)?)?;
        let (_changing, css_set) = Changing::start(self.hierarchy);
        let known = css_set.members.get(tid).map(|task| task.tgid);
        // That a known task is gone shows when it is changed; that it is a zombie matters only where it would count as a member.
        let info = match ids {
            Ids::Threads if known.is_some() && !announces => None,
            Ids::Processes if known.is_some() && !announces => self.machine().affinity(tid).map(|_| None)?,
            _ => Some(self.machine().task(tid)?),
        };
        let bound =
            |info: TaskInfo| info.flags.contains(TaskFlags::NO_SETAFFINITY) || tid == KTHREADD && info.flags.contains(TaskFlags::KTHREAD);
        if info.is_some_and(bound) {
            return Err(Error::Invalid);
        }
        let tgid = known.or(info.map(|info| info.tgid)).unwrap_or(tid);
        self.may_move(writer, if ids == Ids::Processes { tgid } else { tid })?;
        let thread = Change::migration(self, &css_set, (tid, tgid), info, to);
        drop(css_set);
        let changes = match ids {
            Ids::Threads => thread.into_iter().collect(),
            Ids::Processes => self.changes_of_process(tgid, to)?,
        };
        if changes.is_empty() {
            // There already; or not any more.
            return Ok(self.machine().affinity(tid).map(drop)?);
        }
        let moved = self.migrate(Some(writer), to, changes, (ids == Ids::Processes).then_some(tgid));
        moved.or_else(|error| self.explain(tid, ids, error))
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

    /// A move that failed fails because the task is gone, if it is; a dead task can be moved anywhere, without effect.
    fn explain(&self, tid: Tid, ids: Ids, error: Error) -> Result<()> {
        match self.machine().task(tid) {
            Ok(info) if info.zombie && (ids == Ids::Threads || self.machine().thread_count(info.tgid) == Ok(1)) => Ok(()),
            Ok(_) => Err(error),
            Err(_) => Err(Error::NoTask),
        }
    }

    /// The threads of a process, and perhaps some that have just died. A list of a process whose threads come and go may end early:
    /// it is made again until there is nothing new in it.
    fn list_threads(&self, tgid: Tid) -> Result<FxHashSet<Tid>> {
        let mut all = FxHashSet::default();
        for _ in 0..MAX_ROUNDS {
            let before = all.len();
            let listed = self.machine().threads(tgid)?;
            let complete = listed.len() == self.machine().thread_count(tgid)? && !self.hierarchy.births_since_sync();
            all.extend(listed);
            if complete || all.len() == before {
                break;
            }
        }
        Ok(all)
    }

    /// The changes that take all threads of a process to a group.
    fn changes_of_process(&self, tgid: Tid, to: CgroupId) -> Result<Vec<Change>> {
        let css_set = self.hierarchy.sync();
        let members = &css_set.members;
        if members.is_complete(tgid) && self.machine().thread_count(tgid)? == members.count_process(tgid) {
            return Ok(members.of_process(tgid).filter_map(|task| Change::migration(self, &css_set, (task.tid, tgid), None, to)).collect());
        }
        let known: Vec<Tid> = members.of_process(tgid).map(|task| task.tid).collect();
        drop(css_set);
        let mut threads = self.list_threads(tgid)?;
        // Who is in the list was born before this look, and who was known before and is not in it is most likely dead.
        let mut css_set = self.hierarchy.sync();
        let members = &mut css_set.members;
        for tid in known {
            if !threads.contains(&tid) && !self.machine().is_thread_of(tgid, tid) {
                members.exited(tid);
            } else {
                threads.insert(tid);
            }
        }
        let change = |tid| {
            let info = if tid == tgid { Some(self.machine().task(tid).ok()?) } else { None };
            Change::migration(self, &css_set, (tid, tgid), info, to)
        };
        Ok(threads.into_iter().filter_map(change).collect())
    }

    fn migrate(&self, writer: Option<&Writer<'_>>, to: CgroupId, changes: Vec<Change>, process: Option<Tid>) -> Result<()> {
        let mut migration = Migration { locked: self, to, done: Vec::new(), committed: false };
        migration.add(writer, changes)?;
        // Threads created meanwhile: again until there is none.
        for round in 1..=MAX_ROUNDS {
            let Some(tgid) = process else { break };
            // Newborns whose creators were not known then, and those that somebody else has found in the old group meanwhile.
            let found = {
                let mut css_set = self.hierarchy.css_set_lock.lock();
                let CssSet { members, tracker, .. } = &mut *css_set;
                tracker.look_again(tgid) | members.of_process(tgid).any(|task| task.cgroup != to)
            };
            if !found && !self.hierarchy.births_since_sync() {
                break;
            }
            let late = self.changes_of_process(tgid, to).unwrap_or_default();
            if late.is_empty() && !found {
                break;
            }
            migration.add(writer, late)?;
            if round == MAX_ROUNDS {
                log::warn!("process {tgid} makes threads faster than they can be moved; the rest follows later");
            }
        }
        if migration.done.is_empty() {
            return Err(Error::NoTask);
        }
        if let Some(tgid) = process
            && let Ok(count) = self.machine().thread_count(tgid)
            && !self.hierarchy.births_since_sync()
        {
            self.hierarchy.css_set_lock.lock().members.all_seen(tgid, count);
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
        let (changing, css_set) = Changing::start(self.hierarchy);
        let mut changes: Vec<Change> = css_set.members.of_group(id).cloned().map(Change::in_place).collect();
        drop(css_set);
        apply(&mut changes)?;
        commit();
        self.hierarchy.css_set_lock.lock().record(&changes);
        drop(changing);
        // Children born meanwhile get what the group has now.
        drop(self.hierarchy.sync());
        Ok(())
    }

    /// Moves all tasks of a group to another without asking anybody (`cgroup_transfer_tasks`).
    pub fn transfer_tasks(&self, from: CgroupId, to: CgroupId) {
        let (_changing, css_set) = Changing::start(self.hierarchy);
        let tasks: Vec<Task> = css_set.members.of_group(from).cloned().collect();
        drop(css_set);
        for task in tasks {
            let tid = task.tid;
            let change = Change { task: Task { cgroup: to, ..task }, from, undo: None, gone: false };
            match self.migrate(None, to, vec![change], None) {
                Ok(()) | Err(Error::NoTask) => {}
                Err(error) => log::warn!("task {tid} stays in a group that cannot hold it: {error}"),
            }
        }
    }
}
