//! Model layer: moving tasks. Three phases as in the kernel (`cgroup_attach_task`): all controllers are asked,
//! all controllers take effect, the move is final. All or none, over all threads and all controllers.
//!
//! On their way tasks are in css_sets of their own, which belong to the new group: what is born meanwhile inherits them, so that it
//! is known afterwards, and goes where its creator goes, to the new place or back.

use super::css_set::{CssSet, CssSets};
use super::{CgroupId, Hierarchy, Locked, ROOT, SETTLE, Tracked, Writer, parse};
use crate::controllers::{Before, Checked, Ids, Subsys, TaskState};
use crate::error::{Error, Result};
use crate::sys::{Errno, Machine, TaskFlags, TaskInfo, Tid};
use crate::tracker::table::{CssSetId, ROOT_SET, Slot, Table};
use parking_lot::MutexGuard;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Duration;

/// kthreadd, from which all kernel threads are forked.
const KTHREADD: Tid = 2;

/// How often, at intervals of 1 ms, a task is looked for that exists and is not known.
const PATIENCE: usize = 500;

/// After so many looks at all tasks nobody is expected to be on his way any more.
const MAX_PASSES: usize = 10_000;

/// One task on its way to another state, be it another group or another configuration of its own.
#[derive(Clone, Debug)]
pub struct Change {
    /// The task.
    pub tid: Tid,
    /// Its process.
    pub tgid: Tid,
    /// The group that it comes from.
    pub from: CgroupId,
    /// Its css_set there.
    pub css_set: CssSetId,
    /// What was known of it there.
    pub known: TaskState,
    /// What is to be known of it afterwards.
    pub state: TaskState,
    /// What it may have inherited.
    pub birth: Birth,
    /// What it had before the change.
    pub before: Before,
    /// What it was given.
    pub given: Before,
    /// The task has exited meanwhile.
    pub gone: bool,
}

/// Where tasks are to go.
pub struct Attach<'a> {
    /// The group.
    pub to: CgroupId,
    /// Whether it is a process, none of whose threads is there already.
    pub whole: bool,
    /// Who wants it, if it is a client.
    pub writer: Option<&'a Writer<'a>>,
}

/// What a task that was born while its creator was being changed may have inherited without having asked for it; nothing for others.
#[derive(Clone, Debug, Default)]
pub struct Birth {
    /// What tasks in its place have had lately.
    pub previous: Vec<Before>,
    maker: Option<Maker>,
}

/// Where to look for whoever has created a task.
#[derive(Clone, Debug)]
struct Maker {
    table: Arc<Table>,
    tid: Tid,
    tgid: Tid,
    /// The css_sets of the task's group: he is where his child is.
    css_sets: SmallVec<[CssSetId; 4]>,
}

impl Birth {
    fn new(hierarchy: &Hierarchy, sets: &CssSets, tid: Tid, slot: Slot) -> Self {
        let Some(set) = sets.get(slot.css_set).filter(|_| slot.fresh) else { return Self::default() };
        let previous: Vec<Before> = set.previous(hierarchy.machine().now()).cloned().collect();
        if previous.is_empty() {
            return Self::default();
        }
        let css_sets = SmallVec::from_slice(sets.of_group(set.cgroup));
        let maker = Some(Maker { table: hierarchy.table.clone(), tid, tgid: slot.tgid, css_sets });
        Self { previous, maker }
    }

    /// Who may have created it. What one of them has now is inherited rightly.
    pub fn creators(&self, machine: &dyn Machine) -> Vec<Tid> {
        let Some(Maker { table, tid, tgid, css_sets }) = &self.maker else { return Vec::new() };
        let tgid = if tid == tgid { machine.task(*tid).map_or(0, |info| info.ppid) } else { *tgid };
        let may_be = |other: &Slot| !other.fresh && css_sets.contains(&other.css_set);
        table.of_process(tgid).into_iter().filter(|(_, other)| may_be(other)).map(|(tid, _)| tid).collect()
    }
}

impl Change {
    /// A child in a group, which is to have what the group has.
    pub fn of_child(tid: Tid, tgid: Tid, id: CgroupId, known: TaskState) -> Self {
        let (birth, before, given) = Default::default();
        Self { tid, tgid, from: id, css_set: ROOT_SET, state: known.clone(), known, birth, before, given, gone: false }
    }

    fn new(hierarchy: &Hierarchy, sets: &CssSets, tid: Tid, slot: Slot) -> Self {
        let set = sets.get(slot.css_set);
        let known = set.map(|set| set.state.clone()).unwrap_or_default();
        Self {
            tid,
            tgid: slot.tgid,
            from: sets.cgroup(slot.css_set),
            css_set: slot.css_set,
            state: known.clone(),
            known,
            birth: Birth::new(hierarchy, sets, tid, slot),
            before: Before::default(),
            given: Before::default(),
            gone: false,
        }
    }
}

impl Change {
    /// Whether it comes from the same place as another, to the same.
    fn is_like(&self, other: &Self) -> bool {
        self.css_set == other.css_set && self.state == other.state
    }
}

/// A move under way. Dropped before it is committed, it gives every task back its place and what it had.
struct Migration<'l, 'h> {
    locked: &'l Locked<'h>,
    to: CgroupId,
    /// The css_sets that the tasks come from, and those that they are in on their way.
    transits: SmallVec<[(CssSetId, CssSetId); 1]>,
    changes: Vec<Change>,
    /// See [`Attach`].
    whole: bool,
    committed: bool,
}

impl<'l, 'h> Migration<'l, 'h> {
    /// Takes a thread, or all threads of its process, out of their places.
    fn start(locked: &'l Locked<'h>, to: CgroupId, (tid, tgid): (Tid, Tid), ids: Ids) -> Result<Self> {
        let hierarchy = locked.hierarchy;
        let mut migration = Self { locked, to, transits: SmallVec::new(), changes: Vec::new(), whole: false, committed: false };
        let mut tracked = hierarchy.sync();
        if ids == Ids::Threads {
            migration.take(&mut tracked, tid)?;
            return Ok(migration);
        }
        let threads = || hierarchy.table.of_process(tgid);
        let Some((_, first)) = threads().first().copied() else { return Err(Error::NoTask) };
        // What is born from here on goes to this css_set, or where its creator is.
        let transit = migration.transit(&mut tracked, first.css_set)?;
        tracked.tracker.redirect(Some((tgid, transit)));
        let listed = threads();
        let is_there = |slot: &Slot| tracked.sets.cgroup(slot.css_set) == to && migration.origin(*slot).is_none();
        migration.whole = !listed.iter().any(|(_, slot)| is_there(slot));
        let taken = listed.into_iter().try_for_each(|(tid, _)| migration.take(&mut tracked, tid));
        tracked.tracker.redirect(None);
        // Another thread may have executed a program, and have got the main one's pid behind the pass.
        taken.and_then(|()| migration.take(&mut tracked, tgid))?;
        Ok(migration)
    }

    /// The css_set for tasks on their way from `from`.
    fn transit(&mut self, tracked: &mut Tracked, from: CssSetId) -> Result<CssSetId> {
        if let Some((_, transit)) = self.transits.iter().find(|(known, _)| *known == from) {
            return Ok(*transit);
        }
        let transit = tracked.sets.transit(from, self.to)?;
        self.transits.push((from, transit));
        Ok(transit)
    }

    /// Where the tasks in one of the css_sets for those on their way come from.
    fn origin(&self, slot: Slot) -> Option<CssSetId> {
        self.transits.iter().find(|(_, transit)| *transit == slot.css_set).map(|(from, _)| *from)
    }

    /// Takes a task out of its place, if it is alive and not there already.
    fn take(&mut self, tracked: &mut Tracked, tid: Tid) -> Result<()> {
        let hierarchy = self.locked.hierarchy;
        while let Some(slot) = hierarchy.table.get(tid).filter(|slot| tracked.sets.cgroup(slot.css_set) != self.to) {
            let transit = self.transit(tracked, slot.css_set)?;
            if tracked.put(&hierarchy.table, tid, slot, Slot { css_set: transit, ..slot }) {
                self.changes.push(Change::new(hierarchy, &tracked.sets, tid, slot));
                break;
            }
        }
        Ok(())
    }

    /// Asks the controllers to take effect; what fails leaves everything as it was.
    fn prepare(&mut self, writer: Option<&Writer<'_>>) -> Result<()> {
        let Self { locked, changes, whole, to, .. } = self;
        let attach = &Attach { to: *to, whole: *whole, writer };
        let subsys = &locked.hierarchy.subsys;
        for (i, ss) in subsys.iter().enumerate() {
            if let Err(error) = (ss.prepare_attach)(locked, attach, changes) {
                subsys[..=i].iter().rev().for_each(|ss| (ss.cancel_attach)(locked.machine(), changes));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether none of them was gone.
    fn commit(mut self) -> Result<bool> {
        let locked = self.locked;
        if self.changes.iter().all(|change| change.gone) {
            return Err(Error::NoTask);
        }
        locked.hierarchy.subsys.iter().for_each(|ss| (ss.attach)(locked, self.to, &self.changes));
        let complete = self.changes.iter().all(|change| !change.gone);
        self.committed = true;
        let born = self.arrive();
        locked.check(&born);
        Ok(complete)
    }

    /// Puts everybody who is on his way into his new place, or back. Those who were born on the way are returned: they may still have
    /// what their creators had before.
    fn arrive(&mut self) -> Vec<(Tid, Slot)> {
        let Hierarchy { machine, table, .. } = self.locked.hierarchy;
        let now = machine.now();
        let mut tracked = self.locked.hierarchy.sync();
        let mut born = Vec::new();
        let mut previous: Vec<Before> = Vec::new();
        let changes = std::mem::take(&mut self.changes);
        let mut last: Option<(&Change, &Before, CssSetId)> = None;
        for change in &changes {
            if change.gone {
                tracked.tracker.exited(change.tid);
            }
            let had = if self.committed { &change.before } else { &change.given };
            let target = match last.filter(|(other, others, _)| change.is_like(other) && had == *others) {
                Some((_, _, target)) => target,
                None => {
                    let target = if self.committed { tracked.sets.find(self.to, &change.state) } else { Ok(change.css_set) };
                    let Ok(target) = target else { continue };
                    tracked.sets.hand_on(change.css_set, target, now);
                    tracked.sets.remember(target, had, now);
                    if !previous.contains(had) {
                        previous.push(had.clone());
                    }
                    last = Some((change, had, target));
                    target
                }
            };
            while let Some(slot) = table.get(change.tid).filter(|slot| self.origin(*slot) == Some(change.css_set)) {
                // Gone, and still there: it is executing a program, and has another tid by now. And another thread may be known by the main one's
                // tid meanwhile, for the same reason, marked where that is told; one from another css_set is found below.
                let other = change.gone || change.tid == change.tgid && (slot.fresh || !tracked.tracker.tells_exits());
                let there = Slot { css_set: target, fresh: other || slot.fresh && !self.committed, ..slot };
                if tracked.put(table, change.tid, slot, there) {
                    born.extend(other.then_some((change.tid, there)));
                    break;
                }
            }
        }
        for _ in 0..MAX_PASSES {
            if self.transits.iter().all(|(_, transit)| table.count(*transit) == 0) {
                break;
            }
            for (tid, slot) in table.iter() {
                let Some(from) = self.origin(slot) else { continue };
                let mut state = tracked.sets.get(from).map(|set| set.state.clone()).unwrap_or_default();
                if let Some(creator) = changes.iter().find(|change| change.css_set == from) {
                    state = TaskState::of_child(&state, &creator.state);
                }
                let target = if self.committed { tracked.sets.find(self.to, &state) } else { Ok(from) };
                let Ok(target) = target else { continue };
                let there = Slot { css_set: target, fresh: true, ..slot };
                if tracked.put(table, tid, slot, there) {
                    born.push((tid, there));
                    tracked.sets.hand_on(from, target, now);
                    previous.iter().for_each(|before| tracked.sets.remember(target, before, now));
                }
            }
        }
        for (_, transit) in self.transits.drain(..) {
            // Where there was no number for a new css_set, this one is as good.
            if table.count(transit) == 0 {
                tracked.sets.remove(transit);
            }
        }
        if self.committed && self.to != ROOT {
            tracked.inhabited.insert(self.to);
        }
        tracked.settle = SETTLE.iter().map(|delay| now + *delay).collect();
        born
    }
}

impl Drop for Migration<'_, '_> {
    fn drop(&mut self) {
        if !self.committed {
            let born = self.arrive();
            self.locked.check(&born);
        }
    }
}

impl Locked<'_> {
    /// Moves the task or process that `text` names into a group (`cgroup_attach_task`, `__cgroup1_procs_write`).
    ///
    /// # Errors
    /// EINVAL for what is not a pid and for kernel threads that are bound to their CPUs; ESRCH if there is no such
    /// task; EACCES if the opener is neither root nor the task's owner; ENOSPC if the cpuset has no CPUs or nodes; ENOMEM if there are
    /// too many different sets of tasks; else what setting the tasks' state says. Nothing is changed then.
    pub fn attach(&mut self, writer: &Writer<'_>, to: CgroupId, text: &[u8], ids: Ids) -> Result<()> {
        self.tree().get(to)?;
        self.hierarchy.subsys.iter().for_each(|ss| (ss.begin_attach)(self, to));
        let tid = self.target(writer, parse::pid(text)?)?;
        self.hierarchy.activate(true)?;
        let mut moved = false;
        for _ in 0..PATIENCE {
            match self.attach_task(writer, to, tid, ids) {
                // Somebody who was gone may have got another tid.
                Ok(complete) if complete || ids == Ids::Threads => return Ok(()),
                Ok(_) => moved = true,
                // Alive, but not to be found: it is being born, or is executing a program and has just got another tid. Nobody waits behind us
                // meanwhile.
                Err(Error::NoTask) if self.hurried && self.lives(tid) => return Err(Error::Later),
                Err(Error::NoTask) if self.lives(tid) && !writer.answered.get() => {
                    MutexGuard::unlocked(&mut self.guard, || std::thread::sleep(Duration::from_millis(1)))
                }
                Err(Error::NoTask) if moved => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        log::warn!("task {tid} exists, but is not known; its pid may be beyond kernel.pid_max as it was at the mount");
        Err(Error::NoTask)
    }

    /// Whether a task, or for a main thread its process, lives.
    fn lives(&self, tid: Tid) -> bool {
        let lives = |tid| self.machine().task(tid).is_ok_and(|info| !info.is_ending());
        // Once more at the end: the last of the other threads may have executed a program meanwhile, and be the main one.
        lives(tid) || self.machine().threads(tid).is_ok_and(|threads| threads.into_iter().any(lives)) || lives(tid)
    }

    /// One attempt. Whether everybody who was to be moved was found.
    fn attach_task(&self, writer: &Writer<'_>, to: CgroupId, tid: Tid, ids: Ids) -> Result<bool> {
        let (tgid, info) = self.find(tid, to)?;
        let bound =
            |info: TaskInfo| info.flags.contains(TaskFlags::NO_SETAFFINITY) || tid == KTHREADD && info.flags.contains(TaskFlags::KTHREAD);
        if info.is_some_and(bound) {
            return Err(Error::Invalid);
        }
        self.may_move(writer, if ids == Ids::Processes { tgid } else { tid })?;
        let Some(changes) = self.changes((tid, tgid), to, ids) else {
            // Not any more, or not yet.
            return if self.is_dead(tid, ids) { Ok(true) } else { Err(Error::NoTask) };
        };
        let moved = self.migrate(Some(writer), to, &changes, ids);
        moved.or_else(|error| self.explain(tid, ids, error))
    }

    /// The thread that a written number means: in the writer's pid namespace, 0 for the writer.
    pub(crate) fn target(&self, writer: &Writer<'_>, nr: Tid) -> Result<Tid> {
        if nr == 0 {
            return if writer.tid == 0 { Err(Error::NoTask) } else { Ok(writer.tid) };
        }
        match (writer.caller)()?.pid_ns {
            Some(ns) => Ok(self.machine().tid_from(&ns, nr)?),
            None => Ok(nr),
        }
    }

    /// The process of a thread that is to go to a group, and more of one that is in the root group or dead.
    fn find(&self, tid: Tid, to: CgroupId) -> Result<(Tid, Option<TaskInfo>)> {
        let hierarchy = self.hierarchy;
        // A dead one matters only where it would count as a member.
        let announces = self.tree().get(to)?.notify_on_release;
        let mut tracked = hierarchy.sync();
        if announces && let Some(slot) = hierarchy.table.get(tid) {
            tracked.tracker.reap(self.machine(), &[(tid, slot)]);
        }
        let known = hierarchy.table.get(tid);
        match known {
            Some(slot) if tracked.sets.cgroup(slot.css_set) != ROOT => {
                // Of who is on his way the move itself finds out.
                if !tracked.tracker.tells_exits() || tracked.sets.cgroup(slot.css_set) == to {
                    drop(tracked);
                    self.machine().affinity(tid)?;
                }
                return Ok((slot.tgid, None));
            }
            _ => drop(tracked),
        }
        let info = self.machine().task(tid)?;
        let mut tracked = hierarchy.css_set_lock.lock();
        if !tracked.tracker.knows_all() || known.is_none_or(|slot| slot.tgid != info.tgid) {
            // Dead but not reaped; or its birth is not over.
            tracked.tracker.know(self.machine(), info.tgid);
        }
        Ok((info.tgid, Some(info)))
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
    fn explain(&self, tid: Tid, ids: Ids, error: Error) -> Result<bool> {
        match self.machine().task(tid) {
            Ok(_) if self.is_dead(tid, ids) => Ok(true),
            Ok(_) => Err(error),
            Err(Errno::ESRCH) => Err(Error::NoTask),
            Err(_) => Err(error),
        }
    }

    /// Whether a task that is there, or all of a process, is dead and only waits to be reaped, or about to be: moving it has no effect then
    /// (`cgroup_migrate_add_task`).
    fn is_dead(&self, tid: Tid, ids: Ids) -> bool {
        self.machine().task(tid).is_ok_and(|info| info.is_ending()) && (ids == Ids::Threads || !self.lives(tid))
    }

    /// The tasks that would go to a group; none if all are there, `None` if there are none.
    fn changes(&self, (tid, tgid): (Tid, Tid), to: CgroupId, ids: Ids) -> Option<Vec<Change>> {
        let hierarchy = self.hierarchy;
        let mut tracked = hierarchy.sync();
        if ids == Ids::Processes && !tracked.tracker.knows_all() {
            tracked.tracker.know(self.machine(), tgid);
        }
        let mut tasks = match ids {
            Ids::Threads => hierarchy.table.get(tid).map(|slot| (tid, slot)).into_iter().collect(),
            Ids::Processes => hierarchy.table.of_process(tgid),
        };
        if tasks.is_empty() {
            return None;
        }
        tasks.retain(|(_, slot)| tracked.sets.cgroup(slot.css_set) != to);
        Some(tasks.into_iter().map(|(tid, slot)| Change::new(hierarchy, &tracked.sets, tid, slot)).collect())
    }

    /// Whether none of them was gone.
    fn migrate(&self, writer: Option<&Writer<'_>>, to: CgroupId, changes: &[Change], ids: Ids) -> Result<bool> {
        let Some(first) = changes.first() else { return Ok(true) };
        self.hierarchy.subsys.iter().try_for_each(|ss| (ss.can_attach)(self, writer, to, changes))?;
        let mut migration = Migration::start(self, to, (first.tid, first.tgid), ids)?;
        migration.prepare(writer)?;
        migration.commit()
    }

    /// Brings every member of a group to a new configuration: `apply` gives the tasks their new state, or leaves
    /// them as they were and fails; `commit` makes the configuration the one that new children start with.
    ///
    /// # Errors
    /// What `apply` says; `commit` has not been called then.
    pub fn update_tasks(&self, id: CgroupId, apply: impl Fn(&mut [Change]) -> Result<()>, commit: impl FnOnce()) -> Result<()> {
        let hierarchy = self.hierarchy;
        let mut tracked = hierarchy.sync();
        let members = hierarchy.members(&mut tracked, id);
        let mut changes: Vec<Change> = members.into_iter().map(|(tid, slot)| Change::new(hierarchy, &tracked.sets, tid, slot)).collect();
        drop(tracked);
        let listed: FxHashSet<Tid> = changes.iter().map(|change| change.tid).collect();
        let applied = apply(&mut changes);
        if applied.is_ok() {
            commit();
        }
        let now = self.machine().now();
        let mut tracked = hierarchy.sync();
        let mut last: Option<(&Change, CssSetId)> = None;
        for change in &changes {
            if change.gone {
                tracked.tracker.exited(change.tid);
            } else if applied.is_err() {
                tracked.sets.remember(change.css_set, &change.given, now);
            } else {
                let css_set = match last.filter(|(other, _)| change.is_like(other) && change.before == other.before) {
                    Some((_, css_set)) => css_set,
                    None => {
                        let Ok(css_set) = tracked.sets.find(id, &change.state) else { continue };
                        tracked.sets.hand_on(change.css_set, css_set, now);
                        tracked.sets.remember(css_set, &change.before, now);
                        tracked.sets.remember(change.css_set, &change.before, now);
                        last = Some((change, css_set));
                        css_set
                    }
                };
                while let Some(slot) = hierarchy.table.get(change.tid).filter(|slot| slot.css_set == change.css_set) {
                    // By the main thread's tid another one may be known meanwhile, which is looked at when the lock is given back.
                    let fresh = slot.fresh && change.tid == change.tgid;
                    if tracked.put(&hierarchy.table, change.tid, slot, Slot { css_set, fresh, ..slot }) {
                        break;
                    }
                }
            }
        }
        tracked.settle = SETTLE.iter().map(|delay| now + *delay).collect();
        // Children born meanwhile get what the group has now.
        let mut born = hierarchy.members(&mut tracked, id);
        born.retain(|(tid, _)| !listed.contains(tid));
        for (tid, slot) in &mut born {
            let parent = self.machine().task(*tid).map_or(0, |info| info.ppid);
            let may_be = |change: &&Change| applied.is_ok() && change.css_set == slot.css_set;
            let is = |change: &&Change| may_be(change) && [slot.tgid, parent].contains(&change.tgid);
            // Of who has no parent any more it matters only where they all are at home alike.
            let any = || {
                let mut all = changes.iter().filter(may_be);
                all.next().filter(|first| all.all(|other| other.state.ns == first.state.ns))
            };
            let creator = changes.iter().find(is).or_else(any);
            let state = creator.map(|creator| TaskState::of_child(&creator.known, &creator.state));
            let css_set = state.map_or(Ok(slot.css_set), |state| tracked.sets.find(id, &state)).unwrap_or(slot.css_set);
            let there = Slot { css_set, fresh: true, ..*slot };
            if tracked.put(&hierarchy.table, *tid, *slot, there) {
                *slot = there;
            }
        }
        drop(tracked);
        self.check(&born);
        applied
    }

    /// Moves all tasks of a group to another without asking anybody (`cgroup_transfer_tasks`).
    pub fn transfer_tasks(&self, from: CgroupId, to: CgroupId) {
        let mut seen = FxHashSet::default();
        // Until nobody is found who was born behind the list.
        for _ in 0..MAX_PASSES {
            let mut members = self.hierarchy.members(&mut self.hierarchy.sync(), from);
            members.retain(|(tid, _)| seen.insert(*tid));
            if members.is_empty() {
                break;
            }
            for (tid, slot) in members {
                let moved = Migration::start(self, to, (tid, slot.tgid), Ids::Threads).and_then(|mut migration| {
                    migration.prepare(None)?;
                    migration.commit()
                });
                match moved {
                    Ok(_) | Err(Error::NoTask) => {}
                    Err(error) => log::warn!("task {tid} stays in a group that cannot hold it: {error}"),
                }
            }
        }
    }

    /// Looks at the members that have been marked since that was done last (`cpuset_fork`).
    pub(super) fn welcome(&self) {
        let hierarchy = self.hierarchy;
        let tracked = hierarchy.css_set_lock.lock();
        let marked = hierarchy.table.marked();
        if tracked.marked == marked {
            return;
        }
        let newborn = hierarchy.newborn(&tracked);
        drop(tracked);
        self.check(&newborn);
        hierarchy.css_set_lock.lock().marked = marked;
    }

    /// Looks at members, and makes true what their css_sets say of them.
    pub(super) fn check(&self, members: &[(Tid, Slot)]) {
        let hierarchy = self.hierarchy;
        let mut sets: FxHashMap<CssSetId, Option<CssSet>> = FxHashMap::default();
        for &(tid, slot) in members {
            let set = sets.entry(slot.css_set).or_insert_with(|| hierarchy.css_set_lock.lock().sets.get(slot.css_set).cloned());
            let Some(set) = set.as_ref() else { continue };
            let CssSet { cgroup, state: known, .. } = set;
            let birth = if slot.fresh { Birth::new(hierarchy, &hierarchy.css_set_lock.lock().sets, tid, slot) } else { Birth::default() };
            let mut state = known.clone();
            let look = |ss: &&'static Subsys| (ss.check)(self.machine(), &self.tree(), *cgroup, tid, &mut state, &birth);
            let checked = hierarchy.subsys.iter().map(look).try_fold(Checked::True, |worst, checked| checked.map(|one| worst.max(one)));
            let drifted = match checked {
                Ok(checked) => checked == Checked::Drifted,
                Err(Errno::ESRCH) => {
                    hierarchy.css_set_lock.lock().forget(hierarchy, tid, slot);
                    continue;
                }
                Err(errno) => {
                    log::info!("task {tid} keeps what it has: {errno}");
                    continue;
                }
            };
            if !drifted && !slot.fresh && state == *known {
                continue;
            }
            if drifted && !slot.drifted {
                let path = self.tree().path(*cgroup);
                log::info!("task {tid} had left the CPUs of its group {}, and has been put back", path.escape_ascii());
            }
            let mut tracked = hierarchy.css_set_lock.lock();
            tracked.drift += u64::from(drifted);
            let css_set = if state == *known { Ok(slot.css_set) } else { tracked.sets.find(*cgroup, &state) };
            if let Ok(css_set) = css_set {
                // Else somebody else has moved it, or it is gone.
                let new = Slot { css_set, fresh: false, drifted: slot.drifted || drifted, ..slot };
                let _ = tracked.put(&hierarchy.table, tid, slot, new);
            }
        }
    }
}
