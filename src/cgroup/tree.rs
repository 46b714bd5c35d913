//! Model layer: the groups and their configuration. Plain data; who may change it is decided by the locks around it.

use crate::controllers::{self, Css, Subsys};
use crate::error::{Error, Result};
use crate::sys::Machine;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

/// A group's serial number: never used again, so that it names a removed group too.
pub type CgroupId = u64;

/// The root group.
pub const ROOT: CgroupId = 0;

/// One group (struct cgroup).
#[derive(Debug)]
pub struct Cgroup {
    /// The parent; the root is its own.
    pub parent: CgroupId,
    /// The last component of the path; empty for the root.
    pub name: Box<[u8]>,
    /// The child groups by name.
    pub children: BTreeMap<Box<[u8]>, CgroupId>,
    /// Run the release agent when the group becomes empty.
    pub notify_on_release: bool,
    /// New child groups start with this group's CPUs and nodes.
    pub clone_children: bool,
    /// The controllers' state.
    pub css: Css,
}

/// The groups of a hierarchy, and what belongs to the hierarchy as a whole.
#[derive(Debug)]
pub struct Tree {
    groups: FxHashMap<CgroupId, Cgroup>,
    next: CgroupId,
    /// The path of the release agent, empty for none.
    pub release_agent: Vec<u8>,
}

impl Tree {
    /// A hierarchy with nothing but the root, which has what the machine has.
    pub fn new(machine: &dyn Machine) -> Self {
        let css = Css { cpuset: controllers::cpuset::Css::root(machine), ..Css::default() };
        let root =
            Cgroup { parent: ROOT, name: Box::default(), children: BTreeMap::new(), notify_on_release: false, clone_children: false, css };
        Self { groups: FxHashMap::from_iter([(ROOT, root)]), next: ROOT + 1, release_agent: Vec::new() }
    }

    /// The group.
    ///
    /// # Errors
    /// ENODEV if it has been removed.
    pub fn get(&self, id: CgroupId) -> Result<&Cgroup> {
        self.groups.get(&id).ok_or(Error::Removed)
    }

    /// The group, to be changed.
    ///
    /// # Errors
    /// ENODEV if it has been removed.
    pub fn get_mut(&mut self, id: CgroupId) -> Result<&mut Cgroup> {
        self.groups.get_mut(&id).ok_or(Error::Removed)
    }

    /// All groups, parents before their children.
    pub fn ids(&self) -> Vec<CgroupId> {
        let mut ids: Vec<_> = self.groups.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// The child groups of `id`.
    pub fn children(&self, id: CgroupId) -> impl Iterator<Item = (CgroupId, &Cgroup)> {
        let children = self.groups.get(&id).into_iter().flat_map(|group| group.children.values());
        children.filter_map(|child| Some((*child, self.groups.get(child)?)))
    }

    /// The groups that share `id`'s parent, without `id`.
    pub fn siblings(&self, id: CgroupId) -> impl Iterator<Item = (CgroupId, &Cgroup)> {
        let parent = if id == ROOT { None } else { self.groups.get(&id).map(|group| group.parent) };
        parent.into_iter().flat_map(|parent| self.children(parent)).filter(move |(other, _)| *other != id)
    }

    /// `id` and all groups below it.
    pub fn subtree(&self, id: CgroupId) -> Vec<CgroupId> {
        let mut all = vec![id];
        let mut next = 0;
        while let Some(id) = all.get(next).copied() {
            all.extend(self.children(id).map(|(child, _)| child));
            next += 1;
        }
        all
    }

    /// The path from the root, `/` for the root itself (`cgroup_path`).
    pub fn path(&self, id: CgroupId) -> Vec<u8> {
        let mut names = Vec::new();
        let mut current = id;
        while let Some(group) = self.groups.get(&current).filter(|_| current != ROOT) {
            names.push(&group.name);
            current = group.parent;
        }
        if names.is_empty() {
            return b"/".to_vec();
        }
        names.iter().rev().flat_map(|name| b"/".iter().chain(name.iter())).copied().collect()
    }

    /// Adds a group and brings its controllers' state online (`cgroup_mkdir`).
    ///
    /// # Errors
    /// EEXIST if the name is taken, ENODEV if the parent is gone.
    pub fn insert(&mut self, parent: CgroupId, name: &[u8], subsys: &[&'static Subsys]) -> Result<CgroupId> {
        let id = self.next;
        let up = self.get_mut(parent)?;
        if up.children.contains_key(name) {
            return Err(Error::Exists);
        }
        up.children.insert(name.into(), id);
        let (notify_on_release, clone_children) = (up.notify_on_release, up.clone_children);
        let group = Cgroup { parent, name: name.into(), children: BTreeMap::new(), notify_on_release, clone_children, css: Css::default() };
        self.groups.insert(id, group);
        self.next += 1;
        subsys.iter().for_each(|ss| (ss.css_online)(self, id));
        Ok(id)
    }

    /// Takes a group without children out of the tree.
    ///
    /// # Errors
    /// EBUSY for the root or a group with children, ENODEV if it is gone.
    pub fn remove(&mut self, id: CgroupId, subsys: &[&'static Subsys]) -> Result<Cgroup> {
        if id == ROOT || !self.get(id)?.children.is_empty() {
            return Err(Error::Busy);
        }
        subsys.iter().for_each(|ss| (ss.css_offline)(self, id));
        let group = self.groups.remove(&id).ok_or(Error::Removed)?;
        self.get_mut(group.parent)?.children.remove(&group.name);
        Ok(group)
    }

    /// Gives a group another name below the same parent.
    ///
    /// # Errors
    /// EEXIST if the name is taken, ENODEV if the group is gone.
    pub fn rename(&mut self, id: CgroupId, name: &[u8]) -> Result<()> {
        let group = self.get(id)?;
        let (parent, old) = (group.parent, group.name.clone());
        let siblings = &mut self.get_mut(parent)?.children;
        if siblings.contains_key(name) {
            return Err(Error::Exists);
        }
        siblings.remove(&old);
        siblings.insert(name.into(), id);
        self.get_mut(id)?.name = name.into();
        Ok(())
    }
}
