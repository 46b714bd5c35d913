//! Tracker layer: which task is in which css_set, as one word a task.
//!
//! The table is written by whoever learns of forks and exits, be it user space or BPF programs in the kernel while user space looks on.
//! So every change of a slot is one compare-and-swap, and a css_set's count of tasks is raised before a task gets there and
//! lowered after it has left: it is never too low.
//!
//! The words are laid out for both sides:
//! - `slots[tid]`: the tgid in the upper half, [`FRESH`], [`DRIFTED`] and the css_set's id in the lower half; 0 for no task;
//! - `chunks[tid / 128]`: not 0 if any of these 128 slots has been in use since the word was last cleared. It is set after the slot;
//! - `counts[css_set]`: how many tasks are there; `counts[0]`: how often a task has been marked [`FRESH`]; `counts[MAX_CSS_SETS]`: how often one
//!   has got another tid. It is raised while the task is in both slots.

use crate::sys::Tid;
use crate::sys::shared::Words;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

/// The number of a css_set. It is used again some time after the last task has left.
pub type CssSetId = u32;

/// No css_set: its count is that of the tasks that have been marked [`FRESH`].
pub const NO_SET: CssSetId = 0;

/// The css_set of the root group, in which every task starts.
pub const ROOT_SET: CssSetId = 1;

/// Css_sets have numbers below this.
pub const MAX_CSS_SETS: usize = 1 << 17;

/// The length of `counts`.
pub const COUNTS_LEN: usize = MAX_CSS_SETS + 1;

/// The task was born with other CPUs than its creator has, or has got the main thread's tid: somebody was being changed meanwhile, and nobody has
/// looked at it since.
pub const FRESH: u64 = 1 << 31;

/// The task has been put back inside its group before; not inherited.
pub const DRIFTED: u64 = 1 << 30;

/// The bits of a slot that are the css_set's number.
pub const CSS_SET: u64 = DRIFTED - 1;

/// A chunk has so many slots.
pub const CHUNK: usize = 128;

/// How often a list is made again because a task has got another tid meanwhile.
const ATTEMPTS: usize = 16;

/// What there is to know of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its process.
    pub tgid: Tid,
    /// Its css_set.
    pub css_set: CssSetId,
    /// [`FRESH`].
    pub fresh: bool,
    /// [`DRIFTED`].
    pub drifted: bool,
}

impl Slot {
    /// A task like others.
    pub fn new(tgid: Tid, css_set: CssSetId) -> Self {
        Self { tgid, css_set, fresh: false, drifted: false }
    }

    fn from_word(word: u64) -> Option<Self> {
        let slot = Self {
            tgid: (word >> 32) as Tid,
            css_set: (word & CSS_SET) as CssSetId,
            fresh: word & FRESH != 0,
            drifted: word & DRIFTED != 0,
        };
        (word != 0).then_some(slot)
    }

    fn to_word(self) -> u64 {
        (self.tgid as u64) << 32 | u64::from(self.css_set) | if self.fresh { FRESH } else { 0 } | if self.drifted { DRIFTED } else { 0 }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Table {
    slots: Words,
    chunks: Words,
    counts: Words,
}

impl Table {
    /// A table that only this process sees, for pids below `pid_max`.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn anonymous(pid_max: Tid) -> io::Result<Self> {
        let len = (pid_max as usize).next_multiple_of(CHUNK);
        Ok(Self::new(Words::anonymous(len)?, Words::anonymous(len / CHUNK)?, Words::anonymous(COUNTS_LEN)?))
    }

    /// A table of these words: as many chunks as `slots` needs, and [`COUNTS_LEN`] counts.
    pub fn new(slots: Words, chunks: Words, counts: Words) -> Self {
        debug_assert!(slots.len().div_ceil(CHUNK) <= chunks.len());
        Self { slots, chunks, counts }
    }

    /// The task's slot, unless the task is dead or not known.
    pub fn get(&self, tid: Tid) -> Option<Slot> {
        Slot::from_word(self.slots.get(usize::try_from(tid).ok()?)?.load(SeqCst))
    }

    /// The number of tasks in a css_set; may be too high for a moment, never too low.
    pub fn count(&self, css_set: CssSetId) -> u64 {
        self.counts.get(css_set as usize).map_or(0, |count| count.load(SeqCst))
    }

    /// How often a task has been marked [`FRESH`]: whoever has seen the same number before has nobody new to look at.
    pub fn marked(&self) -> u64 {
        self.count(NO_SET)
    }

    /// Records a task that is not known yet. Whether it was not.
    pub fn insert(&self, tid: Tid, slot: Slot) -> bool {
        self.exchange(tid, None, Some(slot)).is_ok()
    }

    /// Changes a task's slot if it still is `old`. Whether that has emptied the css_set that the task was in.
    ///
    /// # Errors
    /// What the slot is instead, unchanged.
    pub fn replace(&self, tid: Tid, old: Slot, new: Slot) -> Result<bool, Option<Slot>> {
        self.exchange(tid, Some(old), Some(new))
    }

    /// Forgets a task. What it was, and whether that has emptied the css_set that it was in.
    pub fn remove(&self, tid: Tid) -> Option<(Slot, bool)> {
        let mut old = self.get(tid)?;
        loop {
            match self.exchange(tid, Some(old), None) {
                Ok(emptied) => return Some((old, emptied)),
                Err(Some(other)) => old = other,
                Err(None) => return None,
            }
        }
    }

    /// Forgets a task if its slot still is `old`. Whether that has emptied its css_set.
    ///
    /// # Errors
    /// What the slot is instead, unchanged.
    pub fn remove_if(&self, tid: Tid, old: Slot) -> Result<bool, Option<Slot>> {
        self.exchange(tid, Some(old), None)
    }

    /// A task has another pid from now on, and is to be looked at: it has executed a program, and its process's main thread is dead.
    /// Whether that has emptied the css_set of whoever had the pid before.
    pub fn rename(&self, old: Tid, new: Tid) -> bool {
        let Some(slot) = self.get(old) else { return false };
        let emptied = self.remove(new).is_some_and(|(_, emptied)| emptied);
        // Whoever has changed the main thread's CPUs by its tid may have met this one.
        self.insert(new, Slot { fresh: slot.css_set != ROOT_SET, ..slot });
        self.counts[MAX_CSS_SETS].fetch_add(1, SeqCst);
        let _ = self.remove(old);
        emptied
    }

    fn exchange(&self, tid: Tid, old: Option<Slot>, new: Option<Slot>) -> Result<bool, Option<Slot>> {
        let word = |slot: Option<Slot>| slot.map_or(0, Slot::to_word);
        let index = usize::try_from(tid).ok().filter(|index| *index < self.slots.len()).ok_or(None)?;
        let moves = old.map(|slot| slot.css_set) != new.map(|slot| slot.css_set);
        if moves && let Some(new) = new {
            self.counts[new.css_set as usize].fetch_add(1, SeqCst);
        }
        let done = self.slots[index].compare_exchange(word(old), word(new), SeqCst, SeqCst);
        if done.is_ok() && new.is_some() {
            self.chunks[index / CHUNK].store(1, SeqCst);
            if new.is_some_and(|slot| slot.fresh) && old.is_none_or(|slot| !slot.fresh) {
                self.counts[NO_SET as usize].fetch_add(1, SeqCst);
            }
        }
        let left = if done.is_ok() { old } else { new };
        let emptied = moves && left.is_some_and(|slot| self.counts[slot.css_set as usize].fetch_sub(1, SeqCst) == 1);
        done.map(|_| emptied).map_err(Slot::from_word)
    }

    /// Tasks by ascending tid. One that is there from the beginning to the end is among them, also if it gets another tid meanwhile.
    pub fn list(&self, wanted: impl Fn(&Slot) -> bool) -> Vec<(Tid, Slot)> {
        let renamed = || self.counts[MAX_CSS_SETS].load(SeqCst);
        let mut list = Vec::new();
        for _ in 0..ATTEMPTS {
            let before = renamed();
            list = self.iter().filter(|(_, slot)| wanted(slot)).collect();
            if renamed() == before {
                break;
            }
        }
        list
    }

    /// All tasks by ascending tid. A task that is there from the beginning to the end with the same tid is among them.
    pub fn iter(&self) -> impl Iterator<Item = (Tid, Slot)> + '_ {
        self.used().filter(|chunk| *chunk < self.slots.len() / CHUNK).flat_map(|chunk| {
            let first = chunk * CHUNK;
            let slots = self.slots[first..first + CHUNK].iter().enumerate();
            slots.filter_map(move |(i, word)| Some(((first + i) as Tid, Slot::from_word(word.load(SeqCst))?)))
        })
    }

    /// The chunks that may hold somebody. Where pids go up to 4,194,304 almost none of 32,768 does: several are looked at together.
    fn used(&self) -> impl Iterator<Item = usize> + '_ {
        const TOGETHER: usize = 16;
        let any = |words: &[AtomicU64]| words.iter().fold(0, |any, word| any | word.load(SeqCst)) != 0;
        let blocks = self.chunks.chunks(TOGETHER).enumerate().filter(move |(_, block)| any(block));
        blocks.flat_map(|(i, block)| {
            let used = block.iter().enumerate().filter(|(_, word)| word.load(SeqCst) != 0);
            used.map(move |(j, _)| i * TOGETHER + j)
        })
    }

    /// The threads of a process.
    pub fn of_process(&self, tgid: Tid) -> Vec<(Tid, Slot)> {
        self.list(|slot| slot.tgid == tgid)
    }

    /// Clears the words of chunks that hold nobody any more, so that [`Table::iter`] need not look there. Nobody may do that meanwhile.
    pub fn tidy(&self) {
        for chunk in self.used() {
            // First the word: whoever is born from here on sets it again.
            self.chunks[chunk].store(0, SeqCst);
            if self.slots[chunk * CHUNK..(chunk + 1) * CHUNK].iter().any(|slot| slot.load(SeqCst) != 0) {
                self.chunks[chunk].store(1, SeqCst);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_follow_the_slots() {
        let table = Table::anonymous(32768).expect("memory");
        assert!(table.insert(300, Slot { fresh: true, ..Slot::new(300, 5) }) && !table.insert(300, Slot::new(300, 6)));
        assert_eq!((table.count(5), table.count(6)), (1, 0));
        let old = table.get(300).expect("inserted");
        assert_eq!(table.replace(300, Slot::new(300, 5), Slot::new(300, 6)), Err(Some(old)));
        assert_eq!((table.count(5), table.count(6)), (1, 0));
        assert_eq!(table.replace(300, old, Slot::new(300, 5)), Ok(false), "seen");
        assert_eq!(table.replace(300, Slot::new(300, 5), Slot::new(300, 6)), Ok(true), "moved");
        assert_eq!((table.count(5), table.count(6)), (0, 1));
        assert_eq!(table.remove(300), Some((Slot::new(300, 6), true)));
        assert_eq!((table.count(6), table.remove(300), table.get(-1), table.get(i32::MAX)), (0, None, None, None));
        assert!(!table.insert(i32::MAX, Slot::new(1, 1)) && table.count(1) == 0);
    }

    #[test]
    fn lists_hold_who_gets_another_tid_meanwhile() {
        let table = Table::anonymous(32768).expect("memory");
        [(10, 10), (300, 5)].into_iter().for_each(|(tid, tgid)| assert!(table.insert(tid, Slot::new(tgid, 2))));
        // When the first one is passed, so is the place of the second one to be.
        let list = table.list(|slot| {
            if slot.tgid == 10 && table.get(300).is_some() {
                table.rename(300, 5);
            }
            slot.tgid == 5
        });
        assert_eq!(list, [(5, Slot { fresh: true, ..Slot::new(5, 2) })], "and is to be looked at");
    }

    #[test]
    fn lists_skip_what_is_empty_and_nothing_else() {
        let table = Table::anonymous(1 << 22).expect("memory");
        let tids = [1, 127, 128, 5_000, (1 << 22) - 1];
        tids.iter().for_each(|tid| assert!(table.insert(*tid, Slot::new(1, 2))));
        let listed = || table.of_process(1).into_iter().map(|(tid, _)| tid).collect::<Vec<_>>();
        assert_eq!(listed(), tids);
        table.remove(5_000);
        table.tidy();
        assert_eq!(listed(), [1, 127, 128, (1 << 22) - 1]);
        table.insert(5_001, Slot::new(1, 2));
        assert_eq!(listed(), [1, 127, 128, 5_001, (1 << 22) - 1]);
    }
}
