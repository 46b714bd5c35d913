//! Model layer: css_sets. A task's place is one number: all tasks of one group that the controllers know the same of share it, so
//! that a child inherits all of it with a copy of that number, in user space as in the kernel's BPF programs.

use super::tree::{CgroupId, ROOT};
use crate::controllers::{Before, TaskState};
use crate::error::{Error, Result};
use crate::tracker::table::{CssSetId, MAX_CSS_SETS, ROOT_SET, Table};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long after a change a child may be found that was being born then.
pub const BIRTH: Duration = Duration::from_secs(2);

/// So many numbers are left alone before the oldest is used again: a fork that has just read one may be about to use it.
const RESTING: usize = 4096;

/// So many different things that tasks had before they came are remembered.
const MAX_PREVIOUS: usize = 64;

/// A css_set (struct css_set).
#[derive(Clone, Debug)]
pub struct CssSet {
    /// The group.
    pub cgroup: CgroupId,
    /// What the controllers know of each of the tasks.
    pub state: TaskState,
    /// What tasks here had lately, before they were changed: a child that was being born meanwhile still has it.
    previous: Vec<(Before, Instant)>,
    /// Where the tasks have come from, of a css_set for tasks on their way.
    from: Option<CssSetId>,
}

impl CssSet {
    /// What a child that was being born lately may still have.
    pub fn previous(&self, now: Instant) -> impl Iterator<Item = &Before> {
        self.previous.iter().filter(move |(_, since)| now.saturating_duration_since(*since) < BIRTH).map(|(before, _)| before)
    }
}

/// All css_sets of a hierarchy. Tasks of the root group are in [`ROOT_SET`], but for those that have just come there.
#[derive(Debug)]
pub struct CssSets {
    sets: FxHashMap<CssSetId, CssSet>,
    ids: FxHashMap<(CgroupId, TaskState), CssSetId>,
    groups: FxHashMap<CgroupId, Vec<CssSetId>>,
    /// Numbers that have been in use, the one that has rested longest first.
    free: VecDeque<CssSetId>,
    next: CssSetId,
}

impl Default for CssSets {
    fn default() -> Self {
        let root = CssSet { cgroup: ROOT, state: TaskState::default(), previous: Vec::new(), from: None };
        Self {
            sets: FxHashMap::from_iter([(ROOT_SET, root)]),
            ids: FxHashMap::default(),
            groups: FxHashMap::from_iter([(ROOT, vec![ROOT_SET])]),
            free: VecDeque::new(),
            next: ROOT_SET + 1,
        }
    }
}

impl CssSets {
    /// The css_set of that number, if there is one.
    pub fn get(&self, id: CssSetId) -> Option<&CssSet> {
        self.sets.get(&id)
    }

    /// The group of a css_set; the root for one that nobody knows.
    pub fn cgroup(&self, id: CssSetId) -> CgroupId {
        self.sets.get(&id).map_or(ROOT, |set| set.cgroup)
    }

    /// The css_sets of a group.
    pub fn of_group(&self, id: CgroupId) -> &[CssSetId] {
        self.groups.get(&id).map_or(&[], Vec::as_slice)
    }

    /// The number of tasks in a group; for the root, of those that have just come there.
    pub fn count(&self, table: &Table, id: CgroupId) -> u64 {
        self.of_group(id).iter().filter(|set| **set != ROOT_SET).map(|set| table.count(*set)).sum()
    }

    /// Whether there is no css_set but the root's.
    pub fn is_empty(&self) -> bool {
        self.sets.len() == 1
    }

    /// All css_sets but the root's.
    pub fn iter(&self) -> impl Iterator<Item = (CssSetId, &CssSet)> {
        self.sets.iter().map(|(id, set)| (*id, set)).filter(|(id, _)| *id != ROOT_SET)
    }

    /// The groups that have css_sets.
    pub fn populated(&self) -> impl Iterator<Item = CgroupId> {
        self.groups.keys().copied().filter(|id| *id != ROOT)
    }

    /// The css_set for tasks in that group with that state (`find_css_set`); for the root, one for those that have just come there.
    ///
    /// # Errors
    /// ENOMEM if all numbers are in use.
    pub fn find(&mut self, cgroup: CgroupId, state: &TaskState) -> Result<CssSetId> {
        let key = (cgroup, state.clone());
        if let Some(id) = self.ids.get(&key) {
            return Ok(*id);
        }
        let id = self.add(cgroup, state.clone(), None)?;
        self.ids.insert(key, id);
        Ok(id)
    }

    /// A new css_set for tasks on their way from another to a group.
    ///
    /// # Errors
    /// ENOMEM if all numbers are in use.
    pub fn transit(&mut self, from: CssSetId, to: CgroupId) -> Result<CssSetId> {
        let state = self.sets.get(&from).map(|set| set.state.clone()).unwrap_or_default();
        self.add(to, state, Some(from))
    }

    fn add(&mut self, cgroup: CgroupId, state: TaskState, from: Option<CssSetId>) -> Result<CssSetId> {
        let id = if self.free.len() > RESTING || self.next as usize == MAX_CSS_SETS {
            self.free.pop_front().ok_or(Error::NoMemory)?
        } else {
            self.next += 1;
            self.next - 1
        };
        self.sets.insert(id, CssSet { cgroup, state, previous: Vec::new(), from });
        self.groups.entry(cgroup).or_default().push(id);
        Ok(id)
    }

    /// Forgets a css_set that has no tasks.
    pub fn remove(&mut self, id: CssSetId) {
        if id == ROOT_SET {
            return;
        }
        let Some(set) = self.sets.remove(&id) else { return };
        if set.from.is_none() {
            self.ids.remove(&(set.cgroup, set.state));
        }
        if let Some(group) = self.groups.get_mut(&set.cgroup) {
            group.retain(|other| *other != id);
            if group.is_empty() {
                self.groups.remove(&set.cgroup);
            }
        }
        self.free.push_back(id);
    }

    /// The css_sets that have no tasks.
    pub fn empty<'a>(&'a self, table: &'a Table) -> impl Iterator<Item = CssSetId> + 'a {
        self.iter().map(|(id, _)| id).filter(|id| table.count(*id) == 0)
    }

    /// Remembers what a task had before it got what the tasks of this css_set have.
    pub fn remember(&mut self, id: CssSetId, before: &Before, now: Instant) {
        self.remember_since(id, before, now, now);
    }

    fn remember_since(&mut self, id: CssSetId, before: &Before, since: Instant, now: Instant) {
        let Some(set) = self.sets.get_mut(&id).filter(|_| *before != Before::default()) else { return };
        // As of the task before this one, most often.
        if set.previous.last().is_some_and(|(other, known)| *known == since && other == before) {
            return;
        }
        let known = set.previous.iter().find(|(other, _)| other == before).map_or(since, |(_, known)| since.max(*known));
        set.previous.retain(|(other, since)| other != before && now.saturating_duration_since(*since) < BIRTH);
        if set.previous.len() == MAX_PREVIOUS {
            set.previous.remove(0);
        }
        set.previous.push((before.clone(), known));
    }

    /// Remembers of a css_set what is remembered of another whose tasks have come there: a birth may take longer than two moves.
    pub fn hand_on(&mut self, from: CssSetId, to: CssSetId, now: Instant) {
        let Some(set) = self.sets.get(&from).filter(|set| from != to && set.previous(now).next().is_some()) else { return };
        for (before, since) in set.previous.clone() {
            if now.saturating_duration_since(since) < BIRTH {
                self.remember_since(to, &before, since, now);
            }
        }
    }

    /// Whether something has been remembered lately.
    pub fn is_unsettled(&self, id: CssSetId, now: Instant) -> bool {
        self.sets.get(&id).is_some_and(|set| set.previous(now).next().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::table::Slot;

    #[test]
    fn equal_tasks_share_one() {
        let mut sets = CssSets::default();
        let (a, b) = (sets.find(1, &TaskState::default()).expect("a number"), sets.find(2, &TaskState::default()).expect("a number"));
        assert_eq!((sets.find(1, &TaskState::default()), sets.cgroup(a), sets.cgroup(b), sets.cgroup(99)), (Ok(a), 1, 2, ROOT));
        let transit = sets.transit(a, 2).expect("a number");
        assert_eq!(sets.of_group(2), [b, transit]);
        sets.remove(transit);
        sets.remove(a);
        assert_eq!((sets.of_group(1).len(), sets.of_group(2), sets.is_empty()), (0, &[b][..], false));
        assert_ne!(sets.find(1, &TaskState::default()), Ok(a), "numbers rest");
        let table = Table::anonymous(1000).expect("memory");
        table.insert(300, Slot::new(300, b));
        let c = sets.find(3, &TaskState::default()).expect("a number");
        assert!(sets.empty(&table).any(|id| id == c) && sets.empty(&table).all(|id| id != b));
        assert_eq!(sets.count(&table, 2), 1);
        sets.remove(ROOT_SET);
        assert!(sets.get(ROOT_SET).is_some(), "the root's stays");
    }
}
