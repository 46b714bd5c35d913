//! Model layer: a hierarchy of groups, its members and the operations on it. No I/O but through [`Machine`].
//!
//! # Locks, outermost first
//!
//! 1. `cgroup_mutex`: whoever changes the hierarchy, its configuration or who is where holds it from the first
//!    check to the end. A change of many tasks is slow; it is held meanwhile, and none of the others is.
//! 2. `css_set_lock`: the members, and the tracker that keeps them true.
//! 3. `tree`: the groups. Written only by the holder of `cgroup_mutex`, and only for as long as an assignment takes.
//!
//! So reading a file never waits for a migration.

mod attach;
mod base;
pub mod css_set;
pub mod parse;
mod tree;

pub use attach::{Attach, Birth, Change};
pub use base::FILES;
pub use tree::{Cgroup, CgroupId, ROOT, Tree};

use crate::controllers::{Ids, Subsys};
use crate::error::{Error, Result};
use crate::sys::{CAP_SYS_ADMIN, Caller, Errno, Machine, PidNs, Tid};
use crate::tracker::Tracker;
use crate::tracker::table::{CssSetId, ROOT_SET, Slot, Table};
use css_set::CssSets;
use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard};
use rustc_hash::FxHashSet;
use std::cell::Cell;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A migration of more tasks than this is better done where nobody waits behind it.
const MANY: usize = 200;

/// After a move, children that were being born meanwhile are looked for again this much later.
const SETTLE: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];

/// A reader waits so long for whoever changes the hierarchy, if members are to be looked at first: see [`Locked::welcome`].
const NEWBORN_PATIENCE: Duration = Duration::from_millis(2);

/// How often members are looked at for what they have given themselves, while there are any.
const POLL: Duration = Duration::from_secs(1);

/// Members whose CPUs are set again and again are looked at as often as this at the most.
const ASK: Duration = Duration::from_millis(20);

/// So many members at the most are looked at each time for whether they are alive, where nobody tells.
const LOOK_AT: usize = 500;

/// How often that is, for groups that want it told when they become empty.
const RELEASE_POLL: Duration = Duration::from_millis(100);

/// Who writes to a file.
pub struct Writer<'a> {
    /// Effective uid of the one who opened the file: the credentials that decide about moving a task.
    pub opener_uid: u32,
    /// Effective capabilities of the one who opened the file, where they decide.
    pub opener_caps: u64,
    /// The writing thread, 0 if it cannot be seen from the server's pid namespace.
    pub tid: Tid,
    /// Finds out what else there is to know of the writer.
    pub caller: &'a dyn Fn() -> std::result::Result<Caller, Errno>,
    /// Lets the write succeed now.
    pub answer: &'a dyn Fn(),
    /// Whether that has been done.
    pub answered: Cell<bool>,
}

impl Writer<'_> {
    /// Lets the write succeed now, for a writer who has to go on: one who is to be stopped. How it ends he is told when he is let go.
    pub fn answer(&self) {
        self.answered.set(true);
        (self.answer)();
    }
}

/// One mounted hierarchy.
pub struct Hierarchy {
    machine: Arc<dyn Machine>,
    subsys: Vec<&'static Subsys>,
    /// The uid that the server runs as.
    owner: u32,
    cgroup_mutex: Mutex<()>,
    css_set_lock: Mutex<Tracked>,
    table: Arc<Table>,
    tree: RwLock<Tree>,
}

/// What `css_set_lock` protects.
struct Tracked {
    tracker: Box<dyn Tracker>,
    sets: CssSets,
    /// Css_sets that have lost their last task to another.
    emptied: Vec<CssSetId>,
    /// Groups that tasks have come to since they were last empty.
    inhabited: FxHashSet<CgroupId>,
    /// When to look for late children, in ascending order.
    settle: Vec<Instant>,
    /// When members are to be looked at for what they have given themselves.
    next_poll: Instant,
    /// Not before then they are looked at because it is told.
    next_asked: Instant,
    /// [`Table::marked`] when newborn members have been looked at last.
    marked: u64,
    /// The member that has been looked at last for whether it is alive.
    looked_at: Tid,
    /// How many members have been put back inside their groups.
    drift: u64,
}

impl Tracked {
    /// Changes a task's slot, if it still is the old one. Whether it was.
    fn put(&mut self, table: &Table, tid: Tid, old: Slot, new: Slot) -> bool {
        let done = table.replace(tid, old, new);
        if done == Ok(true) {
            self.emptied.push(old.css_set);
        }
        done.is_ok()
    }

    /// The members whose CPUs somebody has set, if it is time to look at them.
    fn take_asked(&mut self, now: Instant) -> Vec<Tid> {
        let asked = if self.next_asked <= now { self.tracker.take_asked() } else { Vec::new() };
        if !asked.is_empty() {
            self.next_asked = now + ASK;
        }
        asked
    }

    /// Forgets a member that has gone without a word. Whether it has.
    fn forget(&mut self, hierarchy: &Hierarchy, tid: Tid, slot: Slot) -> bool {
        let is_ghost = self.tracker.is_ghost(&*hierarchy.machine, tid, slot);
        if is_ghost && hierarchy.table.remove_if(tid, slot) == Ok(true) {
            self.emptied.push(slot.css_set);
        }
        is_ghost
    }
}

impl Hierarchy {
    /// A hierarchy with these controllers on this machine, with every task in its root. `owner` is the uid of the server.
    pub fn new(machine: Arc<dyn Machine>, subsys: Vec<&'static Subsys>, tracker: Box<dyn Tracker>, owner: u32) -> Self {
        let tree = RwLock::new(Tree::new(&*machine));
        let table = tracker.table().clone();
        let css_set_lock = Mutex::new(Tracked {
            tracker,
            sets: CssSets::default(),
            emptied: Vec::new(),
            inhabited: FxHashSet::default(),
            settle: Vec::new(),
            next_poll: machine.now(),
            next_asked: machine.now(),
            marked: 0,
            looked_at: 0,
            drift: 0,
        });
        Self { machine, subsys, owner, cgroup_mutex: Mutex::new(()), css_set_lock, table, tree }
    }

    /// The machine.
    pub fn machine(&self) -> &dyn Machine {
        &*self.machine
    }

    /// The controllers.
    pub fn subsys(&self) -> &[&'static Subsys] {
        &self.subsys
    }

    /// The groups, as they are now.
    pub fn tree(&self) -> RwLockReadGuard<'_, Tree> {
        self.tree.read()
    }

    /// The right to change the hierarchy; waits for whoever has it.
    pub fn lock(&self) -> Locked<'_> {
        Locked { hierarchy: self, guard: self.cgroup_mutex.lock(), hurried: false }
    }

    /// The right to change the hierarchy if nobody has it, for who cannot wait: what takes patience fails with [`Error::Later`].
    pub fn try_lock(&self) -> Option<Locked<'_>> {
        Some(Locked { hierarchy: self, guard: self.cgroup_mutex.try_lock()?, hurried: true })
    }

    fn sync(&self) -> MutexGuard<'_, Tracked> {
        let mut tracked = self.css_set_lock.lock();
        tracked.tracker.sync(&*self.machine);
        tracked
    }

    /// Begins to follow forks and exits, or ends it.
    fn activate(&self, on: bool) -> Result<()> {
        self.css_set_lock.lock().tracker.activate(&*self.machine, on).map_err(|error| {
            log::error!("forks and exits cannot be followed: {error}");
            Error::Sys(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
        })
    }

    /// The tasks of a group other than the root that are alive, by ascending tid.
    fn members(&self, tracked: &mut Tracked, id: CgroupId) -> Vec<(Tid, Slot)> {
        let Tracked { tracker, sets, .. } = tracked;
        let sets = sets.of_group(id);
        let mut list = self.table.list(|slot| sets.contains(&slot.css_set));
        if tracker.reap(&*self.machine, &list) {
            list.retain(|(tid, slot)| self.table.get(*tid).is_some_and(|now| now.css_set == slot.css_set));
        }
        list
    }

    /// The text of `cgfuse.stat`: which tracker is in use, and what has happened since the mount.
    pub fn stat(&self) -> Vec<u8> {
        let tracked = self.css_set_lock.lock();
        let stats = tracked.tracker.stats();
        let (name, drift, css_sets) = (tracked.tracker.name(), tracked.drift, tracked.sets.iter().count() + 1);
        let crate::tracker::Stats { events, lost, rescans, guessed, asked } = stats;
        let seen = format!("events {events}\nlost {lost}\nrescans {rescans}\nguessed {guessed}\nasked {asked}");
        format!("tracker {name}\n{seen}\ndrift {drift}\ncss_sets {css_sets}\n").into_bytes()
    }

    /// Names the program to run when a group becomes empty; empty for none.
    pub fn set_release_agent(&self, agent: Vec<u8>) {
        self.css_set_lock.lock().tracker.announce(!agent.is_empty());
        self.tree.write().release_agent = agent;
    }

    /// Readable when [`Hierarchy::listen`] has something to do.
    pub fn tracker_fd(&self) -> Option<OwnedFd> {
        self.css_set_lock.lock().tracker.fd().and_then(|fd| fd.try_clone_to_owned().ok())
    }

    /// How long the tracker may be left alone after [`Hierarchy::listen`].
    pub fn tracker_pause(&self) -> Duration {
        self.css_set_lock.lock().tracker.pause()
    }

    /// Whether showing the members of a group may take long.
    pub fn is_large(&self, id: CgroupId) -> bool {
        id == ROOT || self.css_set_lock.lock().sets.count(&self.table, id) > MANY as u64
    }

    /// Whether changing the members of a group, or moving tasks there, may take long.
    pub fn is_slow(&self, id: CgroupId) -> bool {
        self.is_slow_for_one(id) || id != ROOT && self.is_large(id)
    }

    /// Whether changing even one task may take long.
    pub fn is_slow_for_one(&self, id: CgroupId) -> bool {
        let tree = self.tree.read();
        self.subsys.iter().any(|ss| (ss.is_slow)(&tree, id))
    }

    /// Whether moving this process may take long.
    pub fn is_large_process(&self, tid: Tid) -> bool {
        self.machine.thread_count(tid).is_ok_and(|count| count > MANY)
    }

    /// The text of `tasks` or `cgroup.procs`: ascending ids as the reader's pid namespace has them, one a line.
    ///
    /// # Errors
    /// ENODEV if the group is gone.
    pub fn show_members(&self, id: CgroupId, ids: Ids, pid_ns: Option<&PidNs>) -> Result<Vec<u8>> {
        self.tree().get(id)?;
        let mut list = if id == ROOT { self.root_members(ids) } else { self.group_members(id, ids) };
        if let Some(ns) = pid_ns {
            list = list.into_iter().filter_map(|tid| self.machine.tid_in(ns, tid).ok()).collect();
        }
        list.sort_unstable();
        list.dedup();
        let mut text = Vec::with_capacity(list.len() * 7);
        let mut buf = itoa::Buffer::new();
        for tid in list {
            text.extend_from_slice(buf.format(tid).as_bytes());
            text.push(b'\n');
        }
        self.release();
        Ok(text)
    }

    fn group_members(&self, id: CgroupId, ids: Ids) -> Vec<Tid> {
        let mut tracked = self.sync();
        let members = self.members(&mut tracked, id);
        let newborn = tracked.marked != self.table.marked() && members.iter().any(|(_, slot)| slot.fresh);
        drop(tracked);
        if newborn {
            // They are looked at when the lock is given back, be it by somebody else.
            drop(self.cgroup_mutex.try_lock_for(NEWBORN_PATIENCE).map(|guard| Locked { hierarchy: self, guard, hurried: true }));
        }
        members.into_iter().map(|(tid, slot)| if ids == Ids::Threads { tid } else { slot.tgid }).collect()
    }

    /// All live tasks that no other group holds.
    fn root_members(&self, ids: Ids) -> Vec<Tid> {
        let machine = &*self.machine;
        let in_root = |tracked: &Tracked, slot: Option<Slot>| slot.is_none_or(|slot| tracked.sets.cgroup(slot.css_set) == ROOT);
        let mut tracked = self.sync();
        if tracked.tracker.knows_all() {
            let mut list = self.table.list(|slot| in_root(&tracked, Some(*slot)));
            if tracked.tracker.reap(machine, &list) {
                list.retain(|(tid, _)| self.table.get(*tid).is_some());
            }
            return list.into_iter().map(|(tid, slot)| if ids == Ids::Threads { tid } else { slot.tgid }).collect();
        }
        drop(tracked);
        let live_threads = |tgid| {
            let mut threads = machine.threads(tgid).unwrap_or_default();
            if machine.task(tgid).is_ok_and(|info| info.zombie) {
                threads.retain(|tid| *tid != tgid);
            }
            (tgid, threads)
        };
        let listed: Vec<(Tid, Vec<Tid>)> = machine.processes().into_iter().map(live_threads).collect();
        // Whoever is in the list was born before this look.
        let tracked = self.sync();
        let in_root = |tid: &Tid| in_root(&tracked, self.table.get(*tid));
        match ids {
            Ids::Threads => listed.into_iter().flat_map(|(_, threads)| threads).filter(in_root).collect(),
            Ids::Processes => listed.into_iter().filter(|(_, threads)| threads.iter().any(in_root)).map(|(tgid, _)| tgid).collect(),
        }
    }

    /// Runs the release agent for the groups that have become empty (`cgroup1_check_for_release`).
    pub fn release(&self) {
        let mut tracked = self.css_set_lock.lock();
        let mut emptied = std::mem::take(&mut tracked.emptied);
        emptied.extend(tracked.tracker.take_emptied());
        if emptied.is_empty() {
            return;
        }
        let mut groups: Vec<CgroupId> = emptied.iter().map(|id| tracked.sets.cgroup(*id)).filter(|id| *id != ROOT).collect();
        groups.sort_unstable();
        groups.dedup();
        emptied.into_iter().filter(|id| self.table.count(*id) == 0).for_each(|id| tracked.sets.remove(id));
        groups.retain(|id| tracked.sets.count(&self.table, *id) == 0 && tracked.inhabited.remove(id));
        drop(tracked);
        groups.into_iter().for_each(|id| self.check_for_release(id));
    }

    fn check_for_release(&self, id: CgroupId) {
        let (agent, path) = {
            let tracked = self.css_set_lock.lock();
            let tree = self.tree.read();
            let due = |group: &Cgroup| {
                id != ROOT && group.notify_on_release && group.children.is_empty() && tracked.sets.count(&self.table, id) == 0
            };
            if !tree.get(id).is_ok_and(due) {
                return;
            }
            (tree.release_agent.clone(), tree.path(id))
        };
        if !agent.is_empty() {
            self.machine.run_release_agent(OsStr::from_bytes(&agent), OsStr::from_bytes(&path));
        }
    }

    /// Does what is due without anybody asking: looks at children that were being born during a change, at members that may have
    /// given themselves something, and for groups that have become empty while nobody looked.
    pub fn housekeeping(&self) {
        let locked = self.lock();
        let now = self.machine.now();
        let mut tracked = self.sync();
        if tracked.sets.is_empty() {
            let _ = tracked.tracker.activate(&*self.machine, false);
            return;
        }
        let poll = tracked.next_poll <= now;
        let settle = tracked.settle.first().is_some_and(|due| *due <= now);
        let mut list = self.places(tracked.take_asked(now));
        if poll {
            list = self.table.iter().filter(|(_, slot)| slot.css_set != ROOT_SET).collect();
        } else if settle {
            list.extend(self.newborn(&tracked));
        }
        tracked.settle.retain(|due| *due > now);
        if !list.is_empty() {
            drop(tracked);
            locked.check(&list);
            tracked = self.sync();
        }
        self.reap(&mut tracked);
        if poll {
            tracked.next_poll = now + POLL;
            self.table.tidy();
        }
        self.come_home(&mut tracked, now);
        // Where nobody tells of them. They are announced and forgotten when the lock is given back.
        let empty: Vec<CssSetId> = tracked.sets.empty(&self.table).collect();
        tracked.emptied.extend(empty);
    }

    /// Takes what the tracker has been told meanwhile.
    pub fn listen(&self) {
        let mut tracked = self.sync();
        let newborn = tracked.marked != self.table.marked();
        let asked = tracked.take_asked(self.machine.now());
        drop(tracked);
        if newborn || !asked.is_empty() {
            let locked = self.lock();
            // Only now they stay where they are.
            locked.check(&self.places(asked));
        } else {
            self.release();
        }
    }

    /// Those of these tasks that are members.
    fn places(&self, tids: Vec<Tid>) -> Vec<(Tid, Slot)> {
        tids.into_iter().filter_map(|tid| Some((tid, self.table.get(tid)?))).filter(|(_, slot)| slot.css_set != ROOT_SET).collect()
    }

    /// The members that have been marked, and may still have what their creators had before a change.
    fn newborn(&self, tracked: &Tracked) -> Vec<(Tid, Slot)> {
        let now = self.machine.now();
        let unsettled = |slot: &Slot| slot.css_set != ROOT_SET && slot.fresh && tracked.sets.is_unsettled(slot.css_set, now);
        self.table.iter().filter(|(_, slot)| unsettled(slot)).collect()
    }

    /// Looks for the dead among some members, where nobody tells: those first whose groups want to be told.
    fn reap(&self, tracked: &mut Tracked) {
        let tree = self.tree.read();
        let told = |id: CgroupId| !tree.release_agent.is_empty() && tree.get(id).is_ok_and(|group| group.notify_on_release);
        let Tracked { tracker, sets, looked_at, .. } = tracked;
        let (mut list, others): (Vec<_>, Vec<_>) =
            self.table.iter().filter(|(_, slot)| slot.css_set != ROOT_SET).partition(|(_, slot)| told(sets.cgroup(slot.css_set)));
        let next = others.partition_point(|(tid, _)| *tid <= *looked_at);
        list.extend(others[next..].iter().chain(&others[..next]).take(LOOK_AT));
        *looked_at = list.last().map_or(0, |(tid, _)| *tid);
        tracker.reap(&*self.machine, &list);
    }

    /// Tasks that have gone to the root group some time ago have no children any more that were being born then.
    fn come_home(&self, tracked: &mut Tracked, now: Instant) {
        let home: Vec<CssSetId> = tracked.sets.of_group(ROOT).iter().copied().filter(|id| *id != ROOT_SET).collect();
        let home: Vec<CssSetId> = home.into_iter().filter(|id| !tracked.sets.is_unsettled(*id, now)).collect();
        if home.is_empty() {
            return;
        }
        for (tid, slot) in self.table.iter().filter(|(_, slot)| home.contains(&slot.css_set)) {
            let _ = self.table.replace(tid, slot, Slot::new(slot.tgid, ROOT_SET));
        }
        home.into_iter().filter(|id| self.table.count(*id) == 0).for_each(|id| tracked.sets.remove(id));
    }

    /// When there will be something for [`Hierarchy::housekeeping`] to do; `None` for never unless something is written.
    pub fn next_housekeeping(&self) -> Option<Instant> {
        let tracked = self.css_set_lock.lock();
        if tracked.sets.is_empty() {
            return tracked.tracker.is_active().then(|| self.machine.now());
        }
        let now = self.machine.now();
        if tracked.marked != self.table.marked() {
            return Some(now);
        }
        let told = !tracked.tracker.is_prompt() && !self.tree.read().release_agent.is_empty();
        let poll = tracked.next_poll.min(now + if told { RELEASE_POLL } else { POLL });
        let poll = if tracked.tracker.has_asked() { poll.min(tracked.next_asked) } else { poll };
        Some(tracked.settle.first().map_or(poll, |settle| poll.min(*settle)))
    }
}

/// The right to change a hierarchy: `cgroup_mutex` is held as long as it lives.
pub struct Locked<'h> {
    hierarchy: &'h Hierarchy,
    guard: MutexGuard<'h, ()>,
    /// Others wait behind whoever has this.
    hurried: bool,
}

/// Children that were being born during a change get what their group has, and groups that have become empty are announced, before
/// anybody else may change them.
impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.welcome();
        self.hierarchy.release();
    }
}

impl<'h> Locked<'h> {
    /// The machine.
    pub fn machine(&self) -> &'h dyn Machine {
        &*self.hierarchy.machine
    }

    /// The uid that the server runs as.
    pub fn owner(&self) -> u32 {
        self.hierarchy.owner
    }

    /// Whether whoever opened the file may do all that the server may (`file_ns_capable`).
    pub fn is_trusted(&self, writer: &Writer<'_>) -> bool {
        if self.owner() == 0 && self.machine().root_is_global() {
            writer.opener_caps & CAP_SYS_ADMIN != 0
        } else {
            writer.opener_uid == self.owner()
        }
    }

    /// The group of a task, as far as it is known.
    pub fn cgroup_of(&self, tid: Tid) -> CgroupId {
        let tracked = self.hierarchy.sync();
        self.hierarchy.table.get(tid).map_or(ROOT, |slot| tracked.sets.cgroup(slot.css_set))
    }

    /// The groups.
    pub fn tree(&self) -> RwLockReadGuard<'h, Tree> {
        self.hierarchy.tree.read()
    }

    /// Changes the groups; readers wait meanwhile, so this is for assignments only.
    pub fn change<T>(&self, f: impl FnOnce(&mut Tree) -> T) -> T {
        f(&mut self.hierarchy.tree.write())
    }

    /// Makes a group (`cgroup_mkdir`).
    ///
    /// # Errors
    /// EINVAL for a newline in the name, EEXIST if the name is taken, ENODEV if the parent is gone.
    pub fn mkdir(&self, parent: CgroupId, name: &[u8]) -> Result<CgroupId> {
        if name.contains(&b'\n') {
            return Err(Error::Invalid);
        }
        self.change(|tree| tree.insert(parent, name, &self.hierarchy.subsys))
    }

    /// Removes a group (`cgroup_rmdir`).
    ///
    /// # Errors
    /// EBUSY if it has a child group or a live task or is the root, ENODEV if it is gone.
    pub fn rmdir(&self, id: CgroupId) -> Result<()> {
        let busy = id == ROOT || !self.tree().get(id)?.children.is_empty();
        if busy || self.has_live_tasks(id) && !self.has_ghosts_only(id) {
            return Err(Error::Busy);
        }
        let group = self.change(|tree| tree.remove(id, &self.hierarchy.subsys))?;
        {
            let mut tracked = self.hierarchy.css_set_lock.lock();
            tracked.inhabited.remove(&id);
            tracked.sets.of_group(id).to_vec().into_iter().for_each(|set| tracked.sets.remove(set));
        }
        self.hierarchy.check_for_release(group.parent);
        Ok(())
    }

    /// Gives a group another name (`cgroup1_rename`).
    ///
    /// # Errors
    /// EINVAL for a newline in the name, EIO for another parent, EEXIST if the name is taken, ENODEV if the group is gone.
    pub fn rename(&self, id: CgroupId, parent: CgroupId, name: &[u8]) -> Result<()> {
        if name.contains(&b'\n') {
            return Err(Error::Invalid);
        }
        if self.tree().get(id)?.parent != parent || id == ROOT {
            return Err(Error::OtherParent);
        }
        self.change(|tree| tree.rename(id, name))
    }

    /// Whether the group itself has a task that is alive.
    pub fn has_live_tasks(&self, id: CgroupId) -> bool {
        let hierarchy = self.hierarchy;
        let mut tracked = hierarchy.sync();
        let count = |tracked: &Tracked| tracked.sets.count(&hierarchy.table, id);
        if count(&tracked) > 0 && !tracked.tracker.tells_exits() {
            hierarchy.members(&mut tracked, id);
        }
        count(&tracked) > 0
    }

    /// Whether all members of a group have gone without a word; they are forgotten up to the first one who has not.
    fn has_ghosts_only(&self, id: CgroupId) -> bool {
        let mut tracked = self.hierarchy.sync();
        let members = self.hierarchy.members(&mut tracked, id);
        members.into_iter().all(|(tid, slot)| tracked.forget(self.hierarchy, tid, slot))
    }

    /// Whether the group or one below it has a task that is alive (`cgroup_is_populated`).
    pub fn is_populated(&self, id: CgroupId) -> bool {
        let subtree = self.tree().subtree(id);
        subtree.into_iter().any(|id| self.has_live_tasks(id))
    }

    /// CPUs or nodes have come or gone.
    pub fn hotplug(&self) {
        self.hierarchy.css_set_lock.lock().tracker.cpus_changed();
        self.hierarchy.subsys.iter().for_each(|ss| (ss.hotplug)(self));
    }

    /// Forgets the members that have died and tells the release agent, by the settings as they are: they are about to change.
    pub fn notice_deaths(&self) {
        let populated: Vec<CgroupId> = self.hierarchy.css_set_lock.lock().sets.populated().collect();
        populated.into_iter().filter(|id| self.tree().get(*id).is_ok_and(|group| group.notify_on_release)).for_each(|id| {
            self.has_live_tasks(id);
        });
        self.hierarchy.release();
    }
}
