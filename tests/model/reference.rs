//! The rules of the kernel's hierarchy, written down once more and as plainly as possible, for comparison.
//!
//! Groups and threads are plain records. What is written here is the kernel's rule; where a server that only looks
//! cannot know what the kernel knows (tests named `gap_`), the random histories do not go.

use crate::fake::{INIT, KDEVTMPFS, KTHREADD, MIGRATION};
use cgfuse::sys::{Errno, Tid};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) type Set = BTreeSet<usize>;

/// The flags with the values that they have in the root and in a new group.
pub(crate) const FLAGS: [(&str, bool, bool); 7] = [
    ("cpu_exclusive", true, false),
    ("mem_exclusive", true, false),
    ("mem_hardwall", false, false),
    ("memory_migrate", false, false),
    ("memory_spread_page", false, false),
    ("memory_spread_slab", false, false),
    ("sched_load_balance", true, true),
];

#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) parent: u32,
    pub(crate) name: String,
    pub(crate) cpus: Set,
    pub(crate) mems: Set,
    pub(crate) flags: BTreeMap<&'static str, bool>,
    pub(crate) relax: i64,
    pub(crate) notify: bool,
    pub(crate) clone: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Thread {
    pub(crate) tgid: Tid,
    pub(crate) group: u32,
    pub(crate) uid: u32,
    /// U, the thread's own mask.
    pub(crate) user: Option<Set>,
    /// What it has.
    pub(crate) mask: Set,
    /// What it was given last by the rule, and before that.
    pub(crate) given: [Set; 2],
}

#[derive(Clone)]
pub(crate) struct Reference {
    pub(crate) possible: Set,
    pub(crate) groups: BTreeMap<u32, Group>,
    pub(crate) threads: BTreeMap<Tid, Thread>,
    /// Processes that have ended and are not reaped, and dead main threads.
    pub(crate) zombies: BTreeMap<Tid, u32>,
    pub(crate) released: Vec<String>,
    pressure_enabled: bool,
    next: u32,
}

/// `0,2-3`.
pub(crate) fn list(set: &Set) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &id in set {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == id => *last = id,
            _ => ranges.push((id, id)),
        }
    }
    let range = |(first, last): &(usize, usize)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    ranges.iter().map(range).collect::<Vec<_>>().join(",")
}

impl Reference {
    /// A hierarchy with the tasks that a fake machine has when it starts.
    pub(crate) fn new(cpus: usize, nodes: usize) -> Self {
        let (possible, mems): (Set, Set) = ((0..cpus).collect(), (0..nodes).collect());
        let flags = FLAGS.iter().map(|(name, root, _)| (*name, *root)).collect();
        let root = Group { parent: 0, name: String::new(), cpus: possible.clone(), mems, flags, relax: -1, notify: false, clone: false };
        let groups = BTreeMap::from([(0, root)]);
        let all = || possible.clone();
        let thread = |tid: Tid| (tid, Thread { tgid: tid, group: 0, uid: 0, user: None, mask: all(), given: [all(), all()] });
        let threads = [INIT, KTHREADD, MIGRATION, KDEVTMPFS].into_iter().map(thread).collect();
        Self { possible, groups, threads, zombies: BTreeMap::new(), released: Vec::new(), pressure_enabled: false, next: 1 }
    }

    pub(crate) fn path(&self, id: u32) -> String {
        if id == 0 { String::new() } else { format!("{}/{}", self.path(self.groups[&id].parent), self.groups[&id].name) }
    }

    fn children(&self, id: u32) -> Vec<u32> {
        self.groups.iter().filter(|(child, group)| **child != 0 && group.parent == id).map(|(child, _)| *child).collect()
    }

    fn siblings(&self, id: u32) -> Vec<u32> {
        if id == 0 { vec![] } else { self.children(self.groups[&id].parent).into_iter().filter(|sibling| *sibling != id).collect() }
    }

    fn populated(&self, id: u32) -> bool {
        self.threads.values().any(|thread| thread.group == id)
    }

    /// Announces a group that has become empty, or lost its last child.
    fn check_for_release(&mut self, id: u32) {
        if id != 0 && self.groups[&id].notify && !self.populated(id) && self.children(id).is_empty() {
            self.released.push(self.path(id));
        }
    }

    pub(crate) fn mkdir(&mut self, parent: u32, name: &str) -> Result<u32, Errno> {
        if name.contains('\n') {
            return Err(Errno::EINVAL);
        }
        if self.children(parent).iter().any(|child| self.groups[child].name == name) {
            return Err(Errno::EEXIST);
        }
        let up = self.groups[&parent].clone();
        let mut flags: BTreeMap<_, _> = FLAGS.iter().map(|(name, _, new)| (*name, *new)).collect();
        for inherited in ["memory_spread_page", "memory_spread_slab"] {
            flags.insert(inherited, up.flags[inherited]);
        }
        let exclusive = |id: &u32| self.groups[id].flags["cpu_exclusive"] || self.groups[id].flags["mem_exclusive"];
        let copies = up.clone && !self.children(parent).iter().any(exclusive);
        let (cpus, mems) = if copies { (up.cpus, up.mems) } else { (Set::new(), Set::new()) };
        let id = self.next;
        self.next += 1;
        self.groups.insert(id, Group { parent, name: name.into(), cpus, mems, flags, relax: -1, notify: up.notify, clone: up.clone });
        Ok(id)
    }

    pub(crate) fn rmdir(&mut self, id: u32) -> Result<(), Errno> {
        if !self.children(id).is_empty() || self.populated(id) {
            return Err(Errno::EBUSY);
        }
        let parent = self.groups[&id].parent;
        self.groups.remove(&id);
        self.check_for_release(parent);
        Ok(())
    }

    pub(crate) fn rename(&mut self, id: u32, parent: u32, name: &str) -> Result<(), Errno> {
        if name.contains('\n') {
            return Err(Errno::EINVAL);
        }
        if self.groups[&id].parent != parent {
            return Err(Errno::EIO);
        }
        if self.siblings(id).iter().any(|sibling| self.groups[sibling].name == name) {
            return Err(Errno::EEXIST);
        }
        self.groups.entry(id).and_modify(|group| group.name = name.into());
        Ok(())
    }

    /// Section 3.2. `cpus` tells which of the two sets.
    pub(crate) fn write_set(&mut self, id: u32, cpus: bool, new: Result<Set, Errno>) -> Result<(), Errno> {
        let of = |group: &Group| if cpus { group.cpus.clone() } else { group.mems.clone() };
        if id == 0 {
            return Err(Errno::EACCES);
        }
        let new = new?;
        if !new.is_subset(&of(&self.groups[&0])) {
            return Err(Errno::EINVAL);
        }
        if new == of(&self.groups[&id]) {
            return Ok(());
        }
        if self.children(id).iter().any(|child| !of(&self.groups[child]).is_subset(&new)) {
            return Err(Errno::EBUSY);
        }
        if !new.is_subset(&of(&self.groups[&self.groups[&id].parent])) {
            return Err(Errno::EACCES);
        }
        let flag = if cpus { "cpu_exclusive" } else { "mem_exclusive" };
        for sibling in self.siblings(id) {
            let exclusive = self.groups[&id].flags[flag] || self.groups[&sibling].flags[flag];
            if exclusive && !new.is_disjoint(&of(&self.groups[&sibling])) {
                return Err(Errno::EINVAL);
            }
        }
        if new.is_empty() && self.populated(id) {
            return Err(Errno::ENOSPC);
        }
        let flags = &self.groups[&id].flags;
        if cpus && new.is_empty() && flags["cpu_exclusive"] && flags["sched_load_balance"] {
            return Err(Errno::EBUSY);
        }
        let group = self.groups.get_mut(&id).expect("a group");
        if cpus {
            group.cpus = new;
            self.recompute_group(id);
        } else {
            group.mems = new;
        }
        Ok(())
    }

    /// Section 3.3.
    pub(crate) fn write_flag(&mut self, id: u32, flag: &'static str, on: bool) -> Result<(), Errno> {
        if flag.ends_with("_exclusive") {
            let of = |group: &Group| if flag == "cpu_exclusive" { group.cpus.clone() } else { group.mems.clone() };
            if !on && self.children(id).iter().any(|child| self.groups[child].flags[flag]) {
                return Err(Errno::EBUSY);
            }
            if on && id != 0 {
                let group = &self.groups[&id];
                if !self.groups[&group.parent].flags[flag] {
                    return Err(Errno::EACCES);
                }
                if self.siblings(id).iter().any(|sibling| !of(group).is_disjoint(&of(&self.groups[sibling]))) {
                    return Err(Errno::EINVAL);
                }
            }
        }
        self.groups.entry(id).and_modify(|group| {
            group.flags.insert(flag, on);
        });
        Ok(())
    }

    pub(crate) fn write_pressure_enabled(&mut self, on: bool) {
        self.pressure_enabled = on;
    }

    pub(crate) fn write_relax(&mut self, id: u32, level: i64) -> Result<(), Errno> {
        if !(-1..=2).contains(&level) {
            return Err(Errno::EINVAL);
        }
        self.groups.entry(id).and_modify(|group| group.relax = level);
        Ok(())
    }

    /// Section 3.5.
    fn recompute(&mut self, tid: Tid) {
        let thread = self.threads.get_mut(&tid).expect("a thread");
        let cpus = if thread.group == 0 { &self.possible } else { &self.groups[&thread.group].cpus };
        let both: Set = thread.user.iter().flatten().copied().filter(|cpu| cpus.contains(cpu)).collect();
        let new = if both.is_empty() { cpus.clone() } else { both };
        if thread.given[0] != new || thread.mask != new {
            thread.given = [new.clone(), std::mem::replace(&mut thread.given[0], new.clone())];
        }
        thread.mask = new;
    }

    fn recompute_group(&mut self, id: u32) {
        let members: Vec<Tid> = self.threads.iter().filter(|(_, thread)| thread.group == id).map(|(tid, _)| *tid).collect();
        members.into_iter().for_each(|tid| self.recompute(tid));
    }

    /// Section 2.1 from the third check on, for a live thread or a zombie.
    pub(crate) fn attach(&mut self, to: u32, tid: Tid, whole: bool, opener: u32, writer: u32) -> Result<(), Errno> {
        let uid = match (self.threads.get(&tid), self.zombies.get(&tid)) {
            (Some(thread), _) => thread.uid,
            (None, Some(uid)) => *uid,
            (None, None) => return Err(Errno::ESRCH),
        };
        if opener != 0 && opener != uid {
            return Err(Errno::EACCES);
        }
        let tgid = self.threads.get(&tid).map_or(tid, |thread| thread.tgid);
        let meant = |(other, thread): &(&Tid, &Thread)| thread.group != to && if whole { thread.tgid == tgid } else { **other == tid };
        let moving: Vec<Tid> = self.threads.iter().filter(meant).map(|(other, _)| *other).collect();
        if moving.is_empty() {
            return Ok(());
        }
        if self.groups[&to].cpus.is_empty() || self.groups[&to].mems.is_empty() {
            return Err(Errno::ENOSPC);
        }
        if writer != 0 && uid == 0 {
            return Err(Errno::EPERM);
        }
        self.transfer(&moving, to);
        Ok(())
    }

    fn transfer(&mut self, moving: &[Tid], to: u32) {
        let mut left = BTreeSet::new();
        for tid in moving {
            let thread = self.threads.get_mut(tid).expect("a thread");
            let from = std::mem::replace(&mut thread.group, to);
            left.insert(from);
            if from == 0 {
                // In the root, what a thread has is what it was given.
                thread.given[0] = thread.mask.clone();
            }
            self.recompute(*tid);
        }
        left.into_iter().for_each(|id| self.check_for_release(id));
    }

    pub(crate) fn birth(&mut self, creator: Tid, tid: Tid, is_thread: bool) {
        let mut child = self.threads[&creator].clone();
        if !is_thread {
            child.tgid = tid;
        }
        self.threads.insert(tid, child);
        if self.threads[&tid].group != 0 {
            self.recompute(tid);
        }
    }

    pub(crate) fn exit(&mut self, tid: Tid) {
        let thread = self.threads.remove(&tid).expect("a thread");
        if tid == thread.tgid {
            self.zombies.insert(tid, thread.uid);
        }
        self.check_for_release(thread.group);
    }

    /// sched_setaffinity(2): a mask that has nothing in common with the cpuset is no wish.
    pub(crate) fn set_affinity(&mut self, tid: Tid, mask: &Set) {
        let thread = self.threads.get_mut(&tid).expect("a thread");
        let cpus = if thread.group == 0 { &self.possible } else { &self.groups[&thread.group].cpus };
        if !cpus.is_disjoint(mask) {
            thread.user = Some(mask.clone());
        }
        if thread.group == 0 {
            thread.mask = mask.clone();
        } else {
            self.recompute(tid);
        }
    }

    /// v1's rules when CPUs or nodes come or go.
    pub(crate) fn hotplug(&mut self, online: &Set, mems: &Set) {
        self.groups.entry(0).and_modify(|root| (root.cpus, root.mems) = (online.clone(), mems.clone()));
        let ids: Vec<u32> = self.groups.keys().copied().filter(|id| *id != 0).collect();
        for id in ids {
            let parent = self.groups[&self.groups[&id].parent].clone();
            let group = self.groups.get_mut(&id).expect("a group");
            let before = (group.cpus.len(), group.mems.len());
            group.cpus.retain(|cpu| parent.cpus.contains(cpu));
            group.mems.retain(|node| parent.mems.contains(node));
            if before == (group.cpus.len(), group.mems.len()) {
                continue;
            }
            if !group.cpus.is_empty() && !group.mems.is_empty() {
                self.recompute_group(id);
                continue;
            }
            let mut to = group.parent;
            while to != 0 && (self.groups[&to].cpus.is_empty() || self.groups[&to].mems.is_empty()) {
                to = self.groups[&to].parent;
            }
            let moving: Vec<Tid> = self.threads.iter().filter(|(_, thread)| thread.group == id).map(|(tid, _)| *tid).collect();
            self.transfer(&moving, to);
        }
    }

    /// The text of every file of a group.
    pub(crate) fn texts(&self, id: u32) -> Vec<(String, String)> {
        let group = &self.groups[&id];
        let numbers = |ids: BTreeSet<Tid>| ids.into_iter().map(|tid| format!("{tid}\n")).collect::<String>();
        let members = || self.threads.iter().filter(|(_, thread)| thread.group == id);
        let mut texts = vec![
            ("tasks".to_owned(), numbers(members().map(|(tid, _)| *tid).collect())),
            ("cgroup.procs".to_owned(), numbers(members().map(|(_, thread)| thread.tgid).collect())),
            ("notify_on_release".to_owned(), format!("{}\n", u8::from(group.notify))),
            ("cgroup.clone_children".to_owned(), format!("{}\n", u8::from(group.clone))),
            ("cpuset.cpus".to_owned(), format!("{}\n", list(&group.cpus))),
            ("cpuset.mems".to_owned(), format!("{}\n", list(&group.mems))),
            ("cpuset.effective_cpus".to_owned(), format!("{}\n", list(&group.cpus))),
            ("cpuset.effective_mems".to_owned(), format!("{}\n", list(&group.mems))),
            ("cpuset.sched_relax_domain_level".to_owned(), format!("{}\n", group.relax)),
            ("cpuset.memory_pressure".to_owned(), "0\n".to_owned()),
        ];
        texts.extend(group.flags.iter().map(|(name, on)| (format!("cpuset.{name}"), format!("{}\n", u8::from(*on)))));
        if id == 0 {
            texts.push(("cgroup.sane_behavior".to_owned(), "0\n".to_owned()));
            texts.push(("cpuset.memory_pressure_enabled".to_owned(), format!("{}\n", u8::from(self.pressure_enabled))));
        }
        texts
    }
}
