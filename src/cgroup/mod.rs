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
mod members;
pub mod parse;
mod tree;

pub use attach::Change;
pub use base::FILES;
pub use members::{Members, Task};
pub use tree::{Cgroup, CgroupId, ROOT, Tree};

use crate::controllers::{Ids, Subsys, TaskState};
use crate::error::{Error, Result};
use crate::sys::{Caller, Errno, Machine, PidNs, Tid};
use crate::tracker::{Fork, Tracker};
use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A migration of more tasks than this is better done where nobody waits behind it.
const MANY: usize = 200;

/// After a move, children that were being born meanwhile are looked for again this much later.
const SETTLE: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];

/// How often children are looked for while some task is in a group, so that few lose their parents before.
const POLL: Duration = Duration::from_secs(1);

/// So many members at the most, and one group more, are looked at each time.
const LOOK_AT: usize = 500;

/// How often that is while there is a release agent to be told of groups that have become empty.
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
}

/// One mounted hierarchy.
pub struct Hierarchy {
    machine: Arc<dyn Machine>,
    subsys: Vec<&'static Subsys>,
    /// The uid that the server runs as.
    owner: u32,
    cgroup_mutex: Mutex<()>,
    css_set_lock: Mutex<CssSet>,
    tree: RwLock<Tree>,
}

/// What `css_set_lock` protects.
struct CssSet {
    members: Members,
    tracker: Box<dyn Tracker>,
    /// Tasks are being changed: children found now get their state at the end.
    changing: bool,
    /// Tasks have been changed.
    changed: bool,
    /// The children found while tasks were being changed.
    unsettled: Vec<Tid>,
    /// When to look for late children, in ascending order.
    settle: Vec<Instant>,
    /// The group that housekeeping has looked at last.
    looked_at: CgroupId,
}

/// Children get their creators' state, and the controllers' opinion of it.
struct ForkHooks<'a> {
    hierarchy: &'a Hierarchy,
    changing: bool,
    unsettled: RefCell<&'a mut Vec<Tid>>,
}

impl Fork for ForkHooks<'_> {
    fn fork(&self, child: Tid, creator: &Task) -> TaskState {
        let mut state = creator.state.clone();
        if self.changing {
            self.unsettled.borrow_mut().push(child);
        } else {
            let Hierarchy { machine, subsys, tree, .. } = self.hierarchy;
            let tree = tree.read();
            subsys.iter().for_each(|ss| (ss.fork)(&**machine, &tree, creator.cgroup, child, &mut state, Some(creator.tid)));
        }
        state
    }
}

impl Hierarchy {
    /// A hierarchy with these controllers on this machine, with every task in its root. `owner` is the uid of the server.
    pub fn new(machine: Arc<dyn Machine>, subsys: Vec<&'static Subsys>, tracker: Box<dyn Tracker>, owner: u32) -> Self {
        let tree = RwLock::new(Tree::new(&*machine));
        let css_set_lock = Mutex::new(CssSet {
            members: Members::default(),
            tracker,
            changing: false,
            changed: false,
            unsettled: Vec::new(),
            settle: Vec::new(),
            looked_at: ROOT,
        });
        Self { machine, subsys, owner, cgroup_mutex: Mutex::new(()), css_set_lock, tree }
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
        Locked { hierarchy: self, _guard: self.cgroup_mutex.lock() }
    }

    /// The right to change the hierarchy if nobody has it.
    pub fn try_lock(&self) -> Option<Locked<'_>> {
        Some(Locked { hierarchy: self, _guard: self.cgroup_mutex.try_lock()? })
    }

    fn sync(&self) -> MutexGuard<'_, CssSet> {
        let mut css_set = self.css_set_lock.lock();
        let CssSet { members, tracker, changing, unsettled, .. } = &mut *css_set;
        let fork = ForkHooks { hierarchy: self, changing: *changing, unsettled: RefCell::new(unsettled) };
        tracker.sync(&*self.machine, members, &fork);
        css_set
    }

    /// Whether a task may have been born since the last `sync`.
    fn births_since_sync(&self) -> bool {
        self.css_set_lock.lock().tracker.births_since(&*self.machine)
    }

    /// Whether showing the members of a group may take long.
    pub fn is_large(&self, id: CgroupId) -> bool {
        id == ROOT || self.css_set_lock.lock().members.count(id) > MANY
    }

    /// Whether changing the members of a group, or moving tasks there, may take long.
    pub fn is_slow(&self, id: CgroupId) -> bool {
        let tree = self.tree.read();
        self.subsys.iter().any(|ss| (ss.is_slow)(&tree, id)) || id != ROOT && self.is_large(id)
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
        let mut css_set = self.sync();
        let CssSet { members, tracker, .. } = &mut *css_set;
        tracker.reap(&*self.machine, members, id);
        let tasks = members.of_group(id);
        match ids {
            Ids::Threads => tasks.map(|task| task.tid).collect(),
            Ids::Processes => tasks.map(|task| task.tgid).collect(),
        }
    }

    /// All live tasks that no other group holds.
    fn root_members(&self, ids: Ids) -> Vec<Tid> {
        let machine = &*self.machine;
        let live_threads = |tgid| {
            let mut threads = machine.threads(tgid).unwrap_or_default();
            if machine.task(tgid).is_ok_and(|info| info.zombie) {
                threads.retain(|tid| *tid != tgid);
            }
            (tgid, threads)
        };
        let listed: Vec<(Tid, Vec<Tid>)> = machine.processes().into_iter().map(live_threads).collect();
        // Whoever is in the list was born before this look.
        let css_set = self.sync();
        let in_root = |tid: &Tid| css_set.members.cgroup_of(*tid) == ROOT;
        match ids {
            Ids::Threads => listed.into_iter().flat_map(|(_, threads)| threads).filter(in_root).collect(),
            Ids::Processes => listed.into_iter().filter(|(_, threads)| threads.iter().any(in_root)).map(|(tgid, _)| tgid).collect(),
        }
    }

    /// Runs the release agent for the groups that have become empty (`cgroup1_check_for_release`).
    pub fn release(&self) {
        let emptied = self.css_set_lock.lock().members.take_emptied();
        for id in emptied {
            self.check_for_release(id);
        }
    }

    fn check_for_release(&self, id: CgroupId) {
        let (agent, path) = {
            let css_set = self.css_set_lock.lock();
            let tree = self.tree.read();
            let due = |group: &Cgroup| id != ROOT && group.notify_on_release && group.children.is_empty() && css_set.members.count(id) == 0;
            if !tree.get(id).is_ok_and(due) {
                return;
            }
            (tree.release_agent.clone(), tree.path(id))
        };
        if !agent.is_empty() {
            self.machine.run_release_agent(OsStr::from_bytes(&agent), OsStr::from_bytes(&path));
        }
    }

    /// Does what is due without anybody asking: finds children that were being born during a move, and groups
    /// that have become empty while nobody looked. While there are members it is to be called again and again.
    pub fn housekeeping(&self) {
        let now = self.machine.now();
        let mut css_set = self.sync();
        css_set.settle.retain(|due| *due > now);
        // The dead of some groups each time: first those who want to be told.
        let CssSet { members, tracker, looked_at, .. } = &mut *css_set;
        let mut groups: Vec<CgroupId> = members.populated().collect();
        {
            let tree = self.tree.read();
            let told = |id: &CgroupId| !tree.release_agent.is_empty() && tree.get(*id).is_ok_and(|group| group.notify_on_release);
            groups.sort_unstable_by_key(|id| (!told(id), *id <= *looked_at, *id));
        }
        let mut budget = LOOK_AT;
        for id in groups {
            if budget == 0 {
                break;
            }
            budget = budget.saturating_sub(members.count(id));
            *looked_at = id;
            tracker.reap(&*self.machine, members, id);
        }
        drop(css_set);
        self.release();
    }

    /// When there will be something for [`Hierarchy::housekeeping`] to do; `None` for never unless something is written.
    pub fn next_housekeeping(&self) -> Option<Instant> {
        let css_set = self.css_set_lock.lock();
        let poll = if self.tree.read().release_agent.is_empty() { POLL } else { RELEASE_POLL };
        let poll = (!css_set.members.is_empty()).then(|| self.machine.now() + poll);
        let emptied = css_set.members.has_emptied().then(|| self.machine.now());
        css_set.settle.first().copied().into_iter().chain(poll).chain(emptied).min()
    }
}

/// The right to change a hierarchy: `cgroup_mutex` is held as long as it lives.
pub struct Locked<'h> {
    hierarchy: &'h Hierarchy,
    _guard: MutexGuard<'h, ()>,
}

/// Groups that have become empty are announced before anybody else may change them.
impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.hierarchy.release();
    }
}

impl<'h> Locked<'h> {
    /// The machine.
    pub fn machine(&self) -> &'h dyn Machine {
        &*self.hierarchy.machine
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
        if busy || self.has_live_tasks(id) {
            return Err(Error::Busy);
        }
        let group = self.change(|tree| tree.remove(id, &self.hierarchy.subsys))?;
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
        let mut css_set = self.hierarchy.sync();
        let CssSet { members, tracker, .. } = &mut *css_set;
        tracker.live_member(&*self.hierarchy.machine, members, id).is_some()
    }

    /// Whether the group or one below it has a task that is alive (`cgroup_is_populated`).
    pub fn is_populated(&self, id: CgroupId) -> bool {
        let subtree = self.tree().subtree(id);
        subtree.into_iter().any(|id| self.has_live_tasks(id))
    }

    /// CPUs or nodes have come or gone.
    pub fn hotplug(&self) {
        self.hierarchy.subsys.iter().for_each(|ss| (ss.hotplug)(self));
    }

    /// Forgets the members that have died and tells the release agent, by the settings as they are: they are about to change.
    pub fn notice_deaths(&self) {
        let populated: Vec<CgroupId> = self.hierarchy.css_set_lock.lock().members.populated().collect();
        populated.into_iter().filter(|id| self.tree().get(*id).is_ok_and(|group| group.notify_on_release)).for_each(|id| {
            self.has_live_tasks(id);
        });
        self.hierarchy.release();
    }
}
