//! Controller layer: cpuset (kernel/cgroup/cpuset.c, cpuset-v1.c). A group's tasks run on its CPUs.
//!
//! A thread's affinity is C, its group's CPUs, or what it has asked for itself as far as that is within C (the
//! kernel's `user_cpus_ptr`, here `user`). The kernel does not tell what a thread has asked for, but a thread
//! whose affinity is not the one that C and `user` give has asked for the one it has, unless it was born just before its
//! creator was given that.

use super::{CftFlags, Cftype, Checked, Show, Store, Subsys, TaskState};
use crate::bitmap::Bitmap;
use crate::cgroup::{Attach, Birth, CgroupId, Change, Locked, ROOT, Tree, Writer};
use crate::error::{Error, Result};
use crate::sys::{CAP_SYS_NICE, Creds, Errno, Machine, Tid};
use bitflags::bitflags;
use parking_lot::Mutex;
use rustc_hash::FxHashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Builder;

/// Fewer tasks than this are not worth a thread of their own.
const CHUNK: usize = 128;

bitflags! {
    /// The flags of a cpuset (`cpuset_flagbits_t`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CsFlags: u8 {
        /// No sibling may have a CPU in common.
        const CPU_EXCLUSIVE = 1 << 0;
        /// No sibling may have a node in common.
        const MEM_EXCLUSIVE = 1 << 1;
        /// Remembered, without effect in user space.
        const MEM_HARDWALL = 1 << 2;
        /// Pages follow a change of nodes.
        const MEMORY_MIGRATE = 1 << 3;
        /// Remembered, without effect in user space.
        const SPREAD_PAGE = 1 << 4;
        /// Remembered, without effect in user space.
        const SPREAD_SLAB = 1 << 5;
        /// Remembered, without effect in user space.
        const SCHED_LOAD_BALANCE = 1 << 6;
        /// Of the root only; remembered, without effect in user space.
        const PRESSURE_ENABLED = 1 << 7;
    }
}

/// A group's cpuset (struct cpuset). In v1 the effective CPUs and nodes are the configured ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Css {
    /// `cpuset.cpus`.
    pub cpus: Bitmap,
    /// `cpuset.mems`.
    pub mems: Bitmap,
    /// The flags.
    pub flags: CsFlags,
    /// `cpuset.sched_relax_domain_level`.
    pub relax_domain_level: i64,
    /// How many child groups have an exclusive flag: mostly none, and then siblings need not be compared.
    exclusive_children: usize,
}

/// The flags that concern siblings.
const EXCLUSIVE: CsFlags = CsFlags::CPU_EXCLUSIVE.union(CsFlags::MEM_EXCLUSIVE);

impl Default for Css {
    fn default() -> Self {
        Self { cpus: Bitmap::new(), mems: Bitmap::new(), flags: CsFlags::SCHED_LOAD_BALANCE, relax_domain_level: -1, exclusive_children: 0 }
    }
}

impl Css {
    /// The root's: all that the machine lets the server use.
    pub fn root(machine: &dyn Machine) -> Self {
        let flags = EXCLUSIVE | CsFlags::SCHED_LOAD_BALANCE;
        Self { cpus: machine.allowed_cpus(), mems: machine.allowed_mems(), flags, ..Self::default() }
    }

    /// `is_cpuset_subset`.
    fn is_subset(&self, other: &Self) -> bool {
        self.cpus.is_subset(&other.cpus) && self.mems.is_subset(&other.mems) && other.flags.contains(self.flags & EXCLUSIVE)
    }

    /// Whether two siblings have in common what one of them wants for itself.
    fn conflicts(&self, other: &Self) -> bool {
        let either = self.flags | other.flags;
        either.contains(CsFlags::CPU_EXCLUSIVE) && self.cpus.intersects(&other.cpus)
            || either.contains(CsFlags::MEM_EXCLUSIVE) && self.mems.intersects(&other.mems)
    }

    fn is_exclusive(&self) -> bool {
        self.flags.intersects(EXCLUSIVE)
    }

    fn can_run_tasks(&self) -> bool {
        !self.cpus.is_empty() && !self.mems.is_empty()
    }
}

/// What is known of a member's affinity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TaskCpus {
    /// What the thread has asked for itself (`user_cpus_ptr`), if that is not simply everything.
    user: Option<Bitmap>,
}

impl TaskCpus {
    /// A thread that comes from the root group: it may have asked for what it has.
    fn entering(current: &Bitmap, root: &Bitmap) -> Self {
        Self { user: (current != root).then(|| current.clone()) }
    }

    /// Takes note of what a thread in a group with `cpus` has asked for, which shows in its affinity.
    fn observe(&mut self, machine: &dyn Machine, current: &Bitmap, cpus: &Bitmap, root: &Bitmap) {
        let given = self.within(cpus);
        if *current == given {
            return;
        }
        // CPUs that are offline do not show; if all are, the kernel has given the thread others.
        let visible = given.and(&machine.online_cpus());
        // The kernel would have refused what has nothing in common with the cpuset.
        if *current != visible && !visible.is_empty() && current.intersects(cpus) {
            self.user = (!root.is_subset(current)).then(|| current.clone());
        }
    }

    /// The affinity in a group with `cpus` (`__set_cpus_allowed_ptr_locked` with `user_cpus_ptr`).
    fn within(&self, cpus: &Bitmap) -> Bitmap {
        let wish = self.user.as_ref().map(|user| user.and(cpus));
        wish.filter(|wish| !wish.is_empty()).unwrap_or_else(|| cpus.clone())
    }

    /// The affinity in the root group: what the thread had before, or has asked for since, if any of it is there to run on.
    fn released(&self, machine: &dyn Machine, root: &Bitmap) -> Bitmap {
        let usable = |user: &&Bitmap| user.intersects(root) || user.intersects(&machine.online_cpus());
        self.user.as_ref().filter(usable).cloned().unwrap_or_else(|| machine.own_cpus())
    }

    /// Gives a thread its affinity; what it had is returned if that was something else. `given` is what it was given last, if
    /// it was given something.
    fn give(
        &self,
        machine: &dyn Machine,
        tid: Tid,
        (current, given): (&Bitmap, Option<&Bitmap>),
        wanted: &Bitmap,
    ) -> std::result::Result<Option<Bitmap>, Errno> {
        if wanted == current && given == Some(wanted) {
            return Ok(None);
        }
        machine.set_affinity(tid, wanted)?;
        // CPUs that are offline did not show.
        let had = match given {
            None if self.user.is_none() => machine.own_cpus(),
            Some(given) if given != current && given.and(&machine.online_cpus()) == *current => given.clone(),
            _ => current.clone(),
        };
        Ok(Some(had))
    }
}

/// Whether a thread has these CPUs because its creator had them when it was born, and has others since.
fn is_stale(machine: &dyn Machine, birth: &Birth, current: &Bitmap) -> bool {
    let mut masks = birth.previous.iter().filter_map(|before| before.cpuset.as_ref()).peekable();
    if masks.peek().is_none() {
        return false;
    }
    let online = machine.online_cpus();
    let had = masks.any(|mask| mask == current || mask.and(&online) == *current);
    had && !birth.creators(machine).iter().any(|tid| machine.affinity(*tid).as_ref() == Ok(current))
}

/// The controller.
pub static SUBSYS: Subsys = Subsys {
    name: "cpuset",
    files: FILES,
    css_online,
    css_offline,
    is_slow,
    begin_attach: |_, _| (),
    can_attach,
    prepare_attach,
    cancel_attach,
    attach,
    check,
    hotplug,
};

const fn flag_file(name: &'static str, show: fn(&Tree, CgroupId) -> i64, store: fn(&Locked<'_>, CgroupId, u64) -> Result<()>) -> Cftype {
    Cftype::new(name, Show::Number(show), Store::U64(store))
}

/// A row for a flag: its name and its bit.
macro_rules! flag {
    ($name:literal, $flag:ident) => {
        flag_file(
            $name,
            |tree, id| tree.get(id).map_or(0, |group| group.css.cpuset.flags.contains(CsFlags::$flag).into()),
            // The kernel passes the number on as an int: only its low 32 bits count.
            |locked, id, value| update_flag(locked, id, CsFlags::$flag, value as u32 != 0),
        )
    };
}

static FILES: &[Cftype] = &[
    Cftype::new("cpus", Show::Text(|tree, id| show(tree, id, |css| &css.cpus)), Store::Text(write_cpus))
        .max(|machine| 100 + 6 * machine.config_nr_cpus()),
    Cftype::new("mems", Show::Text(|tree, id| show(tree, id, |css| &css.mems)), Store::Text(write_mems))
        .max(|machine| 100 + 6 * machine.nr_node_ids()),
    Cftype::new("effective_cpus", Show::Text(|tree, id| show(tree, id, |css| &css.cpus)), Store::None),
    Cftype::new("effective_mems", Show::Text(|tree, id| show(tree, id, |css| &css.mems)), Store::None),
    flag!("cpu_exclusive", CPU_EXCLUSIVE),
    flag!("mem_exclusive", MEM_EXCLUSIVE),
    flag!("mem_hardwall", MEM_HARDWALL),
    flag!("sched_load_balance", SCHED_LOAD_BALANCE),
    Cftype::new(
        "sched_relax_domain_level",
        Show::Number(|tree, id| tree.get(id).map_or(-1, |group| group.css.cpuset.relax_domain_level)),
        Store::S64(write_relax_domain_level),
    ),
    flag!("memory_migrate", MEMORY_MIGRATE),
    Cftype::new("memory_pressure", Show::Number(|_, _| 0), Store::None),
    flag!("memory_spread_page", SPREAD_PAGE),
    flag!("memory_spread_slab", SPREAD_SLAB),
    flag!("memory_pressure_enabled", PRESSURE_ENABLED).on(CftFlags::ONLY_ON_ROOT),
];

fn css(tree: &Tree, id: CgroupId) -> Result<&Css> {
    Ok(&tree.get(id)?.css.cpuset)
}

fn show(tree: &Tree, id: CgroupId, set: impl Fn(&Css) -> &Bitmap) -> Vec<u8> {
    css(tree, id).map_or_else(|_| Vec::new(), |css| format!("{}\n", set(css)).into_bytes())
}

/// Replaces a group's configuration.
fn commit(locked: &Locked<'_>, id: CgroupId, css: Css) -> Result<()> {
    locked.change(|tree| {
        let group = tree.get_mut(id)?;
        let (was, is, parent) = (group.css.cpuset.is_exclusive(), css.is_exclusive(), group.parent);
        group.css.cpuset = css;
        if id != ROOT && was != is {
            count_exclusive_child(tree, parent, is);
        }
        Ok(())
    })
}

fn count_exclusive_child(tree: &mut Tree, parent: CgroupId, one_more: bool) {
    if let Ok(parent) = tree.get_mut(parent) {
        let count = &mut parent.css.cpuset.exclusive_children;
        *count = if one_more { *count + 1 } else { count.saturating_sub(1) };
    }
}

/// Whether a group may have this configuration (`validate_change`). The old one was valid, so that relatives need be looked at
/// only where the new one may conflict with them.
fn validate(locked: &Locked<'_>, id: CgroupId, trial: &Css) -> Result<()> {
    let tree = locked.tree();
    let old = css(&tree, id)?;
    if !old.is_subset(trial) && !tree.children(id).all(|(_, child)| child.css.cpuset.is_subset(trial)) {
        return Err(Error::Busy);
    }
    if id == ROOT {
        return Ok(());
    }
    let parent = css(&tree, tree.get(id)?.parent)?;
    if !trial.is_subset(parent) {
        return Err(Error::Access);
    }
    let compare = trial.is_exclusive() || parent.exclusive_children > 0;
    if compare && tree.siblings(id).any(|(_, sibling)| trial.conflicts(&sibling.css.cpuset)) {
        return Err(Error::Invalid);
    }
    let emptied = !old.cpus.is_empty() && trial.cpus.is_empty() || !old.mems.is_empty() && trial.mems.is_empty();
    // No CPUs have no room for the bandwidth that the scheduler reserves for deadlines (`cpuset_cpumask_can_shrink`).
    let reserves = CsFlags::CPU_EXCLUSIVE | CsFlags::SCHED_LOAD_BALANCE;
    let cannot_shrink = old.flags.contains(reserves) && !old.cpus.is_empty() && trial.cpus.is_empty();
    drop(tree);
    if emptied && locked.is_populated(id) {
        return Err(Error::NoSpace);
    }
    if cannot_shrink { Err(Error::Busy) } else { Ok(()) }
}

/// `update_cpumask`.
fn write_cpus(locked: &Locked<'_>, _: &Writer<'_>, id: CgroupId, text: &[u8]) -> Result<()> {
    if id == ROOT {
        return Err(Error::Access);
    }
    let cpus = Bitmap::parse_list(text, locked.machine().nr_cpu_ids())?;
    let (root, old) = (css(&locked.tree(), ROOT)?.cpus.clone(), css(&locked.tree(), id)?.clone());
    if !cpus.is_subset(&root) {
        return Err(Error::Invalid);
    }
    if cpus == old.cpus {
        return Ok(());
    }
    let trial = Css { cpus, ..old.clone() };
    validate(locked, id, &trial)?;
    update_cpus(locked, id, &old, trial, false)
}

/// Gives all tasks of a group the CPUs of its new configuration, and the group the configuration. `forced`, a task that cannot
/// be changed does not count.
fn update_cpus(locked: &Locked<'_>, id: CgroupId, old: &Css, new: Css, forced: bool) -> Result<()> {
    let root = css(&locked.tree(), ROOT)?.cpus.clone();
    let cpus = new.cpus.clone();
    let machine = locked.machine();
    let apply = |changes: &mut [Change]| {
        let applied = for_each_task(machine, changes, |change, current| {
            let state = &mut change.state.cpuset;
            if !is_stale(machine, &change.birth, current) {
                state.observe(machine, current, &old.cpus, &root);
            }
            let (given, wanted) = (change.known.cpuset.within(&old.cpus), state.within(&cpus));
            change.given.cpuset = Some(wanted.clone());
            match state.give(machine, change.tid, (current, Some(&given)), &wanted) {
                Err(errno) if forced && errno != Errno::ESRCH => {
                    log::warn!("task {} keeps CPUs {current}: {errno}", change.tid);
                    Ok(None)
                }
                done => done,
            }
        });
        applied.map_err(|errno| {
            cancel_attach(machine, changes);
            Error::from(errno)
        })
    };
    locked.update_tasks(id, apply, || commit(locked, id, new).unwrap_or_default())
}

/// `update_nodemask`.
fn write_mems(locked: &Locked<'_>, _: &Writer<'_>, id: CgroupId, text: &[u8]) -> Result<()> {
    if id == ROOT {
        return Err(Error::Access);
    }
    let mems = Bitmap::parse_list(text, locked.machine().nr_node_ids())?;
    let (root, old) = (css(&locked.tree(), ROOT)?.mems.clone(), css(&locked.tree(), id)?.clone());
    if !mems.is_subset(&root) {
        return Err(Error::Invalid);
    }
    if mems == old.mems {
        return Ok(());
    }
    let trial = Css { mems: mems.clone(), ..old.clone() };
    validate(locked, id, &trial)?;
    let migrate = trial.flags.contains(CsFlags::MEMORY_MIGRATE);
    let apply = |changes: &mut [Change]| {
        let processes: FxHashSet<Tid> = changes.iter().filter(|_| migrate).map(|change| change.tgid).collect();
        processes.into_iter().for_each(|tgid| migrate_pages(locked.machine(), tgid, &old.mems, &mems));
        Ok(())
    };
    locked.update_tasks(id, apply, || commit(locked, id, trial).unwrap_or_default())
}

/// `cpuset_migrate_mm`: the kernel does it behind the writer's back, and tells nobody when it fails.
fn migrate_pages(machine: &dyn Machine, tgid: Tid, from: &Bitmap, to: &Bitmap) {
    if from != to
        && !from.is_empty()
        && !to.is_empty()
        && let Err(errno) = machine.migrate_pages(tgid, from, to)
    {
        log::info!("pages of process {tgid} stay on nodes {from}: {errno}");
    }
}

/// `cpuset_update_flag`.
fn update_flag(locked: &Locked<'_>, id: CgroupId, flag: CsFlags, on: bool) -> Result<()> {
    let mut trial = css(&locked.tree(), id)?.clone();
    trial.flags.set(flag, on);
    validate(locked, id, &trial)?;
    commit(locked, id, trial)
}

/// `update_relax_domain_level`.
fn write_relax_domain_level(locked: &Locked<'_>, id: CgroupId, level: i64) -> Result<()> {
    if !(-1..=locked.machine().relax_domain_level_max() + 1).contains(&level) {
        return Err(Error::Invalid);
    }
    let trial = Css { relax_domain_level: level, ..css(&locked.tree(), id)?.clone() };
    commit(locked, id, trial)
}

/// `cpuset_css_online`.
fn css_online(tree: &mut Tree, id: CgroupId) {
    let Ok(group) = tree.get(id) else { return };
    let Ok(parent) = css(tree, group.parent) else { return };
    let inherited = parent.flags & (CsFlags::SPREAD_PAGE | CsFlags::SPREAD_SLAB);
    let clone = group.clone_children && parent.exclusive_children == 0;
    let (cpus, mems) = if clone { (parent.cpus.clone(), parent.mems.clone()) } else { Default::default() };
    let css = Css { cpus, mems, flags: inherited | CsFlags::SCHED_LOAD_BALANCE, ..Css::default() };
    if let Ok(group) = tree.get_mut(id) {
        group.css.cpuset = css;
    }
}

/// `cpuset_css_offline`: what the group had for itself is free.
fn css_offline(tree: &mut Tree, id: CgroupId) {
    if let Ok(group) = tree.get(id)
        && group.css.cpuset.is_exclusive()
    {
        count_exclusive_child(tree, group.parent, false);
    }
}

/// Pages are moved at once, where there is another node to move them to.
fn is_slow(tree: &Tree, id: CgroupId) -> bool {
    css(tree, id).is_ok_and(|css| css.flags.contains(CsFlags::MEMORY_MIGRATE)) && css(tree, ROOT).is_ok_and(|root| root.mems.len() > 1)
}

/// `cpuset_can_attach`: the cpuset can run tasks, and the writer may set the scheduling of these (`cap_task_setscheduler`).
fn can_attach(locked: &Locked<'_>, writer: Option<&Writer<'_>>, to: CgroupId, changes: &[Change]) -> Result<()> {
    if !css(&locked.tree(), to)?.can_run_tasks() {
        return Err(Error::NoSpace);
    }
    let Some(writer) = writer else { return Ok(()) };
    let caller = (writer.caller)().map_err(|_| Error::Perm)?;
    if caller.creds.cap_effective & CAP_SYS_NICE != 0 {
        return Ok(());
    }
    let may_set = |tid| {
        let subset = |creds: Creds| creds.cap_permitted & !caller.creds.cap_permitted == 0;
        locked.machine().creds(tid).is_ok_and(subset) || locked.machine().owns_user_ns(caller.creds.uid, tid)
    };
    // A task that is gone is not refused.
    let refused = |change: &Change| !may_set(change.tid) && locked.machine().affinity(change.tid).is_ok();
    if changes.iter().any(refused) { Err(Error::Perm) } else { Ok(()) }
}

fn prepare_attach(locked: &Locked<'_>, attach: &Attach<'_>, changes: &mut [Change]) -> Result<()> {
    let to = attach.to;
    let machine = locked.machine();
    let tree = locked.tree();
    let root = css(&tree, ROOT)?.cpus.clone();
    let cpus = css(&tree, to)?.cpus.clone();
    // Threads of one process may come from several groups; mostly it is one.
    let mut sources: Vec<(CgroupId, Bitmap)> = Vec::new();
    for change in &*changes {
        if !sources.iter().any(|(id, _)| *id == change.from) {
            sources.push((change.from, css(&tree, change.from).map(|css| css.cpus.clone()).unwrap_or_default()));
        }
    }
    drop(tree);
    let moved = for_each_task(machine, changes, |change, current| {
        let state = &mut change.state.cpuset;
        let from = sources.iter().find(|(id, _)| *id == change.from && *id != ROOT).map(|(_, cpus)| cpus);
        // Born on its creator's way here or to the root, with what he had before, it has asked for nothing.
        if !is_stale(machine, &change.birth, current) {
            match from {
                Some(from) => state.observe(machine, current, from, &root),
                None => *state = TaskCpus::entering(current, &root),
            }
        }
        let given = from.map(|from| change.known.cpuset.within(from));
        let wanted = if to == ROOT { state.released(machine, &root) } else { state.within(&cpus) };
        change.given.cpuset = Some(wanted.clone());
        state.give(machine, change.tid, (current, given.as_ref()), &wanted)
    });
    // Whoever seems to be gone may have got another tid, with the CPUs that it had.
    for change in changes.iter_mut().filter(|change| change.gone) {
        let from = sources.iter().find(|(id, _)| *id == change.from && *id != ROOT);
        change.before.cpuset = Some(from.map_or_else(|| machine.own_cpus(), |(_, cpus)| change.known.cpuset.within(cpus)));
    }
    Ok(moved?)
}

fn cancel_attach(machine: &dyn Machine, changes: &mut [Change]) {
    for change in changes {
        if let Some(mask) = change.before.cpuset.take() {
            match machine.set_affinity(change.tid, &mask) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => log::warn!("task {} does not get its CPUs {mask} back: {errno}", change.tid),
            }
        }
    }
}

/// `cpuset_attach`: memory follows the main thread.
fn attach(locked: &Locked<'_>, to: CgroupId, changes: &[Change]) {
    let config = |id| css(&locked.tree(), id).cloned();
    let Some(new) = config(to).ok().filter(|new| new.flags.contains(CsFlags::MEMORY_MIGRATE)) else { return };
    for change in changes.iter().filter(|change| change.tid == change.tgid) {
        if let Ok(old) = config(change.from) {
            migrate_pages(locked.machine(), change.tgid, &old.mems, &new.mems);
        }
    }
}

/// `cpuset_fork`, and what the kernel's cpuset does in sched_setaffinity(2): a member has what it wishes of its group's CPUs.
fn check(
    machine: &dyn Machine,
    tree: &Tree,
    id: CgroupId,
    tid: Tid,
    state: &mut TaskState,
    birth: &Birth,
) -> std::result::Result<Checked, Errno> {
    let state = &mut state.cpuset;
    let (Ok(css), Ok(root)) = (css(tree, id), css(tree, ROOT)) else { return Ok(Checked::True) };
    let current = machine.affinity(tid)?;
    let given = if id == ROOT { state.released(machine, &root.cpus) } else { state.within(&css.cpus) };
    if current == given {
        return Ok(Checked::True);
    }
    if is_stale(machine, birth, &current) {
        machine.set_affinity(tid, &given)?;
        return Ok(Checked::True);
    }
    let visible = given.and(&machine.online_cpus());
    // In the root group a task may have what it wants. Without a CPU that is online, the kernel has given the task others.
    if id == ROOT || current == visible || visible.is_empty() {
        return Ok(Checked::True);
    }
    state.observe(machine, &current, &css.cpus, &root.cpus);
    let wanted = state.within(&css.cpus);
    if wanted.and(&machine.online_cpus()) != current {
        machine.set_affinity(tid, &wanted)?;
    }
    Ok(if current.is_subset(&css.cpus) { Checked::True } else { Checked::Drifted })
}

/// `cpuset_hotplug_workfn` with v1's rules: what is lost is lost for good, and tasks of a group that has nothing left go up.
fn hotplug(locked: &Locked<'_>) {
    let machine = locked.machine();
    let ids = locked.tree().ids();
    for id in ids {
        let (old, new) = {
            let tree = locked.tree();
            let Ok(old) = css(&tree, id).cloned() else { continue };
            let (cpus, mems) = match tree.get(id).map(|group| css(&tree, group.parent)) {
                _ if id == ROOT => (machine.allowed_cpus(), machine.allowed_mems()),
                Ok(Ok(parent)) => (old.cpus.and(&parent.cpus), old.mems.and(&parent.mems)),
                _ => continue,
            };
            let new = Css { cpus, mems, ..old.clone() };
            (old, new)
        };
        if new == old {
            continue;
        }
        log::info!("hotplug: group {} has CPUs {}, nodes {}", String::from_utf8_lossy(&locked.tree().path(id)), new.cpus, new.mems);
        let runs = new.can_run_tasks();
        // The tasks of the root are not touched, and those of an emptied group get their CPUs where they go.
        let updated = if id == ROOT || new.cpus.is_empty() || new.cpus == old.cpus {
            commit(locked, id, new)
        } else {
            update_cpus(locked, id, &old, new, true)
        };
        if updated.is_ok() && !runs && id != ROOT {
            let to = nearest_runnable(&locked.tree(), id);
            locked.transfer_tasks(id, to);
        }
    }
}

/// The nearest ancestor that has CPUs and nodes (`remove_tasks_in_empty_cpuset`).
fn nearest_runnable(tree: &Tree, id: CgroupId) -> CgroupId {
    let mut current = id;
    while let Ok(group) = tree.get(current) {
        current = group.parent;
        if current == ROOT || css(tree, current).is_ok_and(Css::can_run_tasks) {
            return current;
        }
    }
    ROOT
}

/// Lets `f` change each task by its current affinity, main threads before others; the first error ends it. `f` gives the affinity to go back to
/// if it has changed it. A task that has exited is marked, and no error.
fn for_each_task<F>(machine: &dyn Machine, changes: &mut [Change], f: F) -> std::result::Result<(), Errno>
where
    F: Fn(&mut Change, &Bitmap) -> std::result::Result<Option<Bitmap>, Errno> + Sync,
{
    // A thread that executes a program gets the main one's tid: what it was given would be taken for what the main one has asked for.
    changes.sort_by_key(|change| change.tid != change.tgid);
    let (main, others) = changes.split_at_mut(changes.partition_point(|change| change.tid == change.tgid));
    for_each(machine, main, &f)?;
    for_each(machine, others, &f)
}

/// The same in any order, with several threads if there are many tasks.
fn for_each<F>(machine: &dyn Machine, changes: &mut [Change], f: &F) -> std::result::Result<(), Errno>
where
    F: Fn(&mut Change, &Bitmap) -> std::result::Result<Option<Bitmap>, Errno> + Sync,
{
    let failed = AtomicBool::new(false);
    let each = |changes: &mut [Change]| {
        for change in changes {
            if failed.load(Ordering::Relaxed) {
                break;
            }
            match machine.affinity(change.tid).and_then(|current| f(change, &current)) {
                Ok(before) => change.before.cpuset = before,
                Err(Errno::ESRCH) => change.gone = true,
                Err(errno) => {
                    failed.store(true, Ordering::Relaxed);
                    return Err(errno);
                }
            }
        }
        Ok(())
    };
    let workers = if changes.len() < 2 * CHUNK { 1 } else { machine.parallelism().min(changes.len() / CHUNK) };
    if workers == 1 {
        return each(changes);
    }
    let chunk = changes.len().div_ceil(workers);
    let (own, rest) = changes.split_at_mut(chunk);
    let parts: Vec<_> = rest.chunks_mut(chunk).map(Mutex::new).collect();
    let work = |part: &Mutex<&mut [Change]>| each(&mut part.lock());
    std::thread::scope(|scope| {
        // Where no thread can be made, its part is done here.
        let work = &work;
        let handles: Vec<_> = parts.iter().map(|part| Builder::new().spawn_scoped(scope, move || work(part))).collect();
        let mut done = each(own);
        for (part, handle) in parts.iter().zip(handles) {
            done = done.and(handle.map_or_else(|_| work(part), |handle| handle.join().unwrap_or(Err(Errno::EIO))));
        }
        done
    })
}
