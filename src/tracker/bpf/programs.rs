//! Tracker layer: the programs that the kernel runs when a task is born, exits, or executes a program.
//!
//! Each is written down as it reads in the kernel: `slots`, `chunks` and `counts` are the words of the table, and a task's *word* is what
//! its slot holds. A word in a slot always stands for one task in its css_set's count: the count is raised before the word is
//! written and lowered after it is gone. All changes of slots are atomic with full ordering, since user space makes its own meanwhile.
//!
//! The programs trust nothing but their own order. None waits, and whatever they do again is bounded.

use super::asm::{Asm, FP, Helper, Label, Operand, R0, R1, R2, R3, R4, R6, R7, R8, R9, Reg};
use super::{ANNOUNCE, LOST, REDIRECT};
use crate::sys::bpf::Insn;
use crate::tracker::table::{CHUNK, CSS_SET, DRIFTED, FRESH, MAX_CSS_SETS, NO_SET, ROOT_SET};
use std::os::fd::BorrowedFd;

const CLONE_THREAD: i32 = 0x0001_0000;

// The stack.
const KEY: i16 = -8;
const TOLD: i16 = -16;
const CHILD: i16 = -24;
const NEW_SLOT: i16 = -32;
const CREATOR: i16 = NEW_SLOT;
const FOUND: i16 = -40;
const SAVED: [(Reg, i16); 3] = [(R6, -48), (R8, -56), (R9, -64)];
const TASK: i16 = -72;
const CPUS: [i16; 2] = [-72 - CPUS_PART, -72 - 2 * CPUS_PART];

/// So many bytes of two tasks' CPUs are compared at once.
const CPUS_PART: i16 = 64;

/// How often a task is followed that user space moves at the same moment.
const ATTEMPTS: usize = 4;

/// Where the programs find what they need in the kernel's `task_struct`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// The tid.
    pub(super) pid: i32,
    /// The CPUs that the task may use.
    pub(super) cpus_mask: i32,
    /// How many bytes these have, a multiple of 8.
    pub(super) cpus_bytes: usize,
}

/// The function of the kernel that gives a task its CPUs on somebody's demand, and where it tells how that has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setter {
    /// The arguments, of which the task is the first; the result is behind them.
    pub(super) arguments: usize,
    /// The process that may do it without anybody wanting to know.
    pub(super) server: u32,
}

/// What the programs work on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maps<'a> {
    pub(super) slots: BorrowedFd<'a>,
    pub(super) chunks: BorrowedFd<'a>,
    pub(super) counts: BorrowedFd<'a>,
    pub(super) control: BorrowedFd<'a>,
    pub(super) emptied: BorrowedFd<'a>,
}

struct Program<'a> {
    asm: Asm,
    maps: Maps<'a>,
    /// The program's end.
    end: Label,
}

/// `task_newtask(task, clone_flags)`: the current thread has created a task, which does not run yet.
pub(super) fn fork(maps: Maps<'_>, layout: Layout) -> Vec<Insn> {
    let mut p = Program::new(maps);
    let [lost, known, process, inserted, taken, placed] = [(); 6].map(|()| p.asm.label());

    // R7: the child. R9 takes its word.
    p.asm.load(R3, R1, 0);
    p.asm.load(R9, R1, 8);
    p.asm.store(FP, TASK, R3);
    p.tid_of(layout);
    // The idle threads of CPUs have no tid.
    p.asm.jump_if_equal(R7, 0, p.end);
    p.asm.call(Helper::GetCurrentPidTgid);
    p.asm.mov(R8, R0);
    // R6: the creator's slot.
    p.element(maps.slots, R8, lost);
    p.asm.mov(R6, R0);
    let tgid = R1;
    p.asm.mov(tgid, R7);
    p.asm.jump_unless_any(R9, CLONE_THREAD, process);
    p.asm.mov(tgid, R8);
    p.asm.shift_right(tgid, 32);
    p.asm.bind(process);
    p.asm.mov(R9, tgid);
    p.asm.shift_left(R9, 32);
    // Whoever is not known was there before the programs were, and so is in the root group.
    p.asm.load(R2, R6, 0);
    p.asm.jump_unless_equal(R2, 0, known);
    p.asm.mov(R2, ROOT_SET as i32);
    p.asm.bind(known);
    p.asm.and(R2, CSS_SET as i32);
    p.asm.or(R9, R2);
    // R8: the child's slot.
    p.element(maps.slots, R7, lost);
    p.asm.mov(R8, R0);
    p.raise(R9);
    p.asm.mov(R0, 0);
    p.asm.compare_exchange(R8, R9);
    p.asm.jump_if_equal(R0, 0, inserted);

    // There is a word. One with the child's own process: user space was faster, and knows better. One with another process: the tid's
    // last owner has had his process's tid since he began to execute a program, and his program has yet to follow him.
    p.asm.mov(R1, R0);
    p.asm.shift_right(R1, 32);
    p.asm.mov(R2, R9);
    p.asm.shift_right(R2, 32);
    p.asm.jump_if_equal(R1, R2, taken);
    SAVED.iter().for_each(|(reg, at)| p.asm.store(FP, *at, *reg));
    p.asm.mov(R8, R1);
    let renamed = p.asm.label();
    p.rename(renamed);
    p.asm.bind(renamed);
    SAVED.iter().for_each(|(reg, at)| p.asm.load(*reg, FP, *at));
    p.asm.mov(R0, 0);
    p.asm.compare_exchange(R8, R9);
    p.asm.jump_if_equal(R0, 0, inserted);
    p.asm.bind(taken);
    p.drop(R9);
    p.asm.jump(p.end);

    p.asm.bind(inserted);
    // After the slot, see `Table::tidy`.
    p.occupy(R7);
    p.asm.store(FP, CREATOR, R6);
    for _ in 0..ATTEMPTS {
        p.follow_creator(placed);
    }
    p.asm.bind(placed);
    p.compare_cpus(layout);
    p.asm.jump(p.end);

    // No slot: pid_max is higher than it was.
    p.asm.bind(lost);
    p.lose();
    p.finish()
}

/// `sched_process_exit(task)`: the current task exits.
pub(super) fn exit(maps: Maps<'_>) -> Vec<Insn> {
    let mut p = Program::new(maps);
    p.asm.call(Helper::GetCurrentPidTgid);
    p.element(maps.slots, R0, p.end);
    p.asm.mov(R6, 0);
    p.asm.exchange(R0, R6);
    p.asm.jump_if_equal(R6, 0, p.end);
    p.drop(R6);
    p.finish()
}

/// `sched_process_exec(task, old_pid, bprm)`: the current task executes a program; before that, it had another tid if it was not its
/// process's main thread, which is dead, as is every other thread.
pub(super) fn exec(maps: Maps<'_>) -> Vec<Insn> {
    let mut p = Program::new(maps);
    p.asm.load(R7, R1, 8);
    p.asm.call(Helper::GetCurrentPidTgid);
    p.asm.mov(R8, R0);
    p.asm.shift_right(R8, 32);
    p.asm.jump_if_equal(R7, R8, p.end);
    let unknown = p.asm.label();
    p.rename(unknown);
    p.asm.jump(p.end);

    // The task was not known, or somebody who has its old tid now has followed it already (see `fork`).
    p.asm.bind(unknown);
    let inserted = p.asm.label();
    p.asm.mov(R9, R8);
    p.asm.shift_left(R9, 32);
    p.asm.or(R9, ROOT_SET as i32);
    p.element(maps.slots, R8, p.end);
    p.asm.mov(R6, R0);
    p.raise(R9);
    p.asm.mov(R0, 0);
    p.asm.compare_exchange(R6, R9);
    p.asm.jump_if_equal(R0, 0, inserted);
    p.drop(R9);
    p.asm.jump(p.end);
    p.asm.bind(inserted);
    p.occupy(R8);
    p.finish()
}

/// `__sched_setaffinity(task, ...)` has returned: who is a member, and has been changed by anybody but the server, is told once until user
/// space has taken note: his bit in `asked` is set meanwhile.
pub(super) fn affinity(maps: Maps<'_>, asked: BorrowedFd<'_>, layout: Layout, setter: Setter) -> Vec<Insn> {
    let mut p = Program::new(maps);
    p.asm.load(R3, R1, 0);
    p.asm.load(R2, R1, 8 * setter.arguments as i16);
    // The result is an int.
    p.asm.shift_left(R2, 32);
    p.asm.jump_unless_equal(R2, 0, p.end);
    // R7: the task.
    p.tid_of(layout);
    p.asm.call(Helper::GetCurrentPidTgid);
    p.asm.shift_right(R0, 32);
    p.asm.jump_if_equal(R0, setter.server as i32, p.end);
    p.element(maps.slots, R7, p.end);
    p.asm.load(R1, R0, 0);
    p.asm.and(R1, CSS_SET as i32);
    for nobody in [0, ROOT_SET as i32] {
        p.asm.jump_if_equal(R1, nobody, p.end);
    }
    p.asm.mov(R1, R7);
    p.asm.shift_right(R1, u64::BITS.trailing_zeros() as i32);
    p.element(asked, R1, p.end);
    p.asm.mov(R6, R0);
    p.asm.mov(R8, R7);
    p.asm.and(R8, u64::BITS as i32 - 1);
    p.asm.mov(R9, 1);
    p.asm.shift_left(R9, R8);
    p.asm.mov(R1, R9);
    p.asm.fetch_or(R6, R1);
    p.asm.and(R1, R9);
    p.asm.jump_unless_equal(R1, 0, p.end);
    const { assert!(NO_SET == 0) };
    p.asm.shift_left(R7, 32);
    p.asm.store(FP, TOLD, R7);
    p.tell(p.end);
    // No room: he is found without having been told, and may be told the next time.
    p.asm.mov(R1, -1);
    p.asm.xor(R1, R9);
    p.asm.fetch_and(R6, R1);
    p.finish()
}

impl<'a> Program<'a> {
    fn new(maps: Maps<'a>) -> Self {
        let mut asm = Asm::default();
        let end = asm.label();
        Self { asm, maps, end }
    }

    fn finish(mut self) -> Vec<Insn> {
        self.asm.bind(self.end);
        self.asm.mov(R0, 0);
        self.asm.exit();
        self.asm.finish()
    }

    /// R7 = the tid of the task whose address is in R3.
    fn tid_of(&mut self, layout: Layout) {
        self.asm.add(R3, layout.pid);
        self.asm.mov(R1, FP);
        self.asm.add(R1, i32::from(CHILD));
        self.asm.mov(R2, 4);
        self.asm.call(Helper::ProbeReadKernel);
        self.asm.load_32(R7, FP, CHILD);
    }

    /// R0 = the address of the element of `map` with the number in the lower half of `index`; if there is none, goes to `none`.
    fn element(&mut self, map: BorrowedFd<'_>, index: Reg, none: Label) {
        self.asm.store_32(FP, KEY, index);
        self.asm.mov(R2, FP);
        self.asm.add(R2, i32::from(KEY));
        self.asm.load_map(R1, map);
        self.asm.call(Helper::MapLookupElem);
        self.asm.jump_if_equal(R0, 0, none);
    }

    /// Raises one of the counts that are not of a css_set.
    fn count(&mut self, which: u32, none: Label) {
        self.asm.mov(R1, which as i32);
        self.element(self.maps.counts, R1, none);
        self.asm.mov(R1, 1);
        self.asm.fetch_add(R0, R1);
    }

    /// Sets bits above the lowest 30 of the lower half in a word other than R3.
    fn mark(&mut self, word: Reg, bits: u64) {
        self.asm.mov(R3, (bits >> DRIFTED.trailing_zeros()) as i32);
        self.asm.shift_left(R3, DRIFTED.trailing_zeros() as i32);
        self.asm.or(word, R3);
    }

    /// Marks the task whose slot is at `slot`, if there is one, as to be looked at, and counts that. Changes R6 and R9.
    fn mark_fresh(&mut self, slot: Reg) {
        let [marked, done] = [self.asm.label(), self.asm.label()];
        self.asm.mov(R6, slot);
        for _ in 0..ATTEMPTS {
            self.asm.load(R9, R6, 0);
            self.asm.jump_if_equal(R9, 0, done);
            self.asm.mov(R0, R9);
            self.asm.mov(R1, R9);
            self.mark(R1, FRESH);
            self.asm.compare_exchange(R6, R1);
            self.asm.jump_if_equal(R0, R9, marked);
        }
        self.asm.jump(done);
        self.asm.bind(marked);
        self.count(NO_SET, done);
        self.asm.bind(done);
    }

    /// The creator may have been moved since he was looked at, and may go on from there: the child, whose slot is at R8 with the word R9,
    /// follows. Goes to `placed` if it is where it belongs. Changes R6, R7 and R9.
    ///
    /// If the creator was moved with his whole process, then either whoever did it has seen the child, or the order to redirect is still
    /// there, or it is gone and the creator is moved: so they are looked at in this order.
    fn follow_creator(&mut self, placed: Label) {
        let ([creator, found, moved, kept], want) = ([(); 4].map(|()| self.asm.label()), R6);
        self.asm.load(R6, FP, CREATOR);
        self.asm.load_map_value(R3, self.maps.control, (REDIRECT * 8) as i32);
        self.asm.load(R3, R3, 0);
        self.asm.mov(R4, 0);
        self.asm.fetch_add(R6, R4);
        self.asm.mov(R1, R3);
        self.asm.shift_right(R1, 32);
        self.asm.mov(R2, R9);
        self.asm.shift_right(R2, 32);
        self.asm.jump_unless_equal(R1, R2, creator);
        self.asm.mov(want, R3);
        self.asm.jump(found);
        self.asm.bind(creator);
        self.asm.mov(want, R4);
        self.asm.jump_unless_equal(want, 0, found);
        self.asm.mov(want, ROOT_SET as i32);
        self.asm.bind(found);
        self.asm.and(want, CSS_SET as i32);
        self.asm.mov(R1, R9);
        self.asm.and(R1, CSS_SET as i32);
        self.asm.jump_if_equal(R1, want, placed);
        // The same word but for the css_set; R2 is its process.
        self.asm.shift_left(R2, 32);
        self.asm.or(want, R2);
        self.raise(want);
        self.asm.mov(R0, R9);
        self.asm.compare_exchange(R8, want);
        self.asm.jump_if_equal(R0, R9, moved);
        // Perhaps somebody has only looked at it.
        self.asm.mov(R1, R0);
        self.asm.mov(R2, R9);
        for word in [R1, R2] {
            self.mark(word, FRESH | DRIFTED);
        }
        self.asm.jump_unless_equal(R1, R2, kept);
        self.asm.mov(R7, R0);
        self.asm.compare_exchange(R8, want);
        self.asm.jump_if_equal(R0, R7, moved);
        // Somebody has moved it.
        self.asm.bind(kept);
        self.drop(want);
        self.asm.jump(placed);
        self.asm.bind(moved);
        self.asm.mov(R7, R9);
        self.asm.mov(R9, want);
        self.drop(R7);
    }

    /// Marks the child whose slot is at R8, and wakes user space, if it has other CPUs than its creator: those that he had at the beginning of
    /// the fork. If he is changed from here on, the child has been in the table before. And if he is marked himself, for what he has. Changes
    /// R6, R7 and R9.
    fn compare_cpus(&mut self, layout: Layout) {
        let [differs, done] = [self.asm.label(), self.asm.label()];
        self.asm.load(R9, R8, 0);
        self.asm.and(R9, CSS_SET as i32);
        // In the root group everybody has what he wants.
        for nobody in [0, ROOT_SET as i32] {
            self.asm.jump_if_equal(R9, nobody, done);
        }
        self.asm.load(R1, FP, CREATOR);
        self.asm.load(R1, R1, 0);
        self.asm.shift_right(R1, FRESH.trailing_zeros() as i32);
        self.asm.and(R1, 1);
        self.asm.jump_unless_equal(R1, 0, differs);
        self.asm.call(Helper::GetCurrentTask);
        self.asm.mov(R6, R0);
        self.asm.load(R7, FP, TASK);
        let mut at = 0;
        while at < layout.cpus_bytes {
            let len = (layout.cpus_bytes - at).min(CPUS_PART as usize);
            for (task, to) in [(R6, CPUS[0]), (R7, CPUS[1])] {
                self.asm.mov(R1, FP);
                self.asm.add(R1, i32::from(to));
                self.asm.mov(R2, len as i32);
                self.asm.mov(R3, task);
                self.asm.add(R3, layout.cpus_mask + at as i32);
                self.asm.call(Helper::ProbeReadKernel);
            }
            for word in (0..len as i16).step_by(8) {
                self.asm.load(R1, FP, CPUS[0] + word);
                self.asm.load(R2, FP, CPUS[1] + word);
                self.asm.jump_unless_equal(R1, R2, differs);
            }
            at += len;
        }
        self.asm.jump(done);
        self.asm.bind(differs);
        self.mark_fresh(R8);
        self.asm.mov(R1, NO_SET as i32);
        self.asm.store(FP, TOLD, R1);
        // If there is no room, it is awake.
        self.tell(done);
        self.asm.bind(done);
    }

    /// The word's css_set has a task more.
    fn raise(&mut self, word: impl Into<Operand>) {
        self.asm.mov(R1, word);
        self.asm.and(R1, CSS_SET as i32);
        self.element(self.maps.counts, R1, self.end);
        self.asm.mov(R1, 1);
        self.asm.fetch_add(R0, R1);
    }

    /// The word's css_set has a task less; if that was the last one and somebody wants to know, tells him.
    fn drop(&mut self, word: Reg) {
        let [done, told] = [self.asm.label(), self.asm.label()];
        self.asm.mov(R1, word);
        self.asm.and(R1, CSS_SET as i32);
        self.asm.store(FP, TOLD, R1);
        self.element(self.maps.counts, R1, done);
        self.asm.mov(R1, -1);
        self.asm.fetch_add(R0, R1);
        self.asm.jump_unless_equal(R1, 1, done);
        self.asm.load_map_value(R1, self.maps.control, (ANNOUNCE * 8) as i32);
        self.asm.load(R1, R1, 0);
        self.asm.jump_if_equal(R1, 0, done);
        self.tell(told);
        self.lose();
        self.asm.bind(told);
        self.asm.bind(done);
    }

    /// Puts the number at [`TOLD`] into the ring and wakes user space; goes to `told` if there was room.
    fn tell(&mut self, told: Label) {
        self.asm.load_map(R1, self.maps.emptied);
        self.asm.mov(R2, FP);
        self.asm.add(R2, i32::from(TOLD));
        self.asm.mov(R3, 8);
        self.asm.mov(R4, 0);
        self.asm.call(Helper::RingbufOutput);
        self.asm.jump_if_equal(R0, 0, told);
    }

    /// Something could not be told or recorded.
    fn lose(&mut self) {
        self.asm.load_map_value(R1, self.maps.control, (LOST * 8) as i32);
        self.asm.mov(R2, 1);
        self.asm.exchange(R1, R2);
    }

    /// Somebody is in the chunk of a tid.
    fn occupy(&mut self, tid: Reg) {
        self.asm.mov(R1, tid);
        self.asm.shift_right(R1, CHUNK.trailing_zeros() as i32);
        self.element(self.maps.chunks, R1, self.end);
        self.asm.mov(R1, 1);
        // Not a plain store: whatever the program looks at next, it does after the chunk can be seen.
        self.asm.exchange(R0, R1);
    }

    /// The task with the tid R7 has the tid of its process, R8, from now on, and is to be looked at. Goes to `unknown` if it is not in its old slot. Changes R6
    /// and R9.
    ///
    /// The task is never in neither slot. User space may move it in both: what it does in the old one is carried over.
    fn rename(&mut self, unknown: Label) {
        let [entered, gone, done] = [self.asm.label(), self.asm.label(), self.asm.label()];
        self.element(self.maps.slots, R7, unknown);
        self.asm.mov(R6, R0);
        self.asm.load(R9, R6, 0);
        self.asm.mov(R1, R9);
        self.asm.shift_right(R1, 32);
        self.asm.jump_unless_equal(R1, R8, unknown);
        self.element(self.maps.slots, R8, unknown);
        self.asm.store(FP, NEW_SLOT, R0);
        self.raise(R9);
        self.asm.load(R1, FP, NEW_SLOT);
        self.asm.mov(R0, 0);
        self.asm.compare_exchange(R1, R9);
        self.asm.jump_if_equal(R0, 0, entered);
        self.drop(R9);
        self.asm.bind(entered);
        self.occupy(R8);
        // Lists may have passed the new slot before, and come to the old one behind.
        self.count(MAX_CSS_SETS as u32, done);
        for _ in 0..ATTEMPTS {
            self.asm.mov(R1, 0);
            self.asm.mov(R0, R9);
            self.asm.compare_exchange(R6, R1);
            self.asm.jump_if_equal(R0, R9, gone);
            self.asm.mov(R1, R0);
            self.asm.shift_right(R1, 32);
            self.asm.jump_unless_equal(R1, R8, done);
            // It has been moved in its old slot.
            let [kept, next] = [self.asm.label(), self.asm.label()];
            self.asm.store(FP, FOUND, R0);
            self.raise(R0);
            self.asm.load(R1, FP, NEW_SLOT);
            self.asm.load(R2, FP, FOUND);
            self.asm.mov(R0, R9);
            self.asm.compare_exchange(R1, R2);
            self.asm.jump_unless_equal(R0, R9, kept);
            self.drop(R9);
            self.asm.load(R9, FP, FOUND);
            self.asm.jump(next);
            self.asm.bind(kept);
            self.asm.load(R9, FP, FOUND);
            self.drop(R9);
            self.asm.bind(next);
        }
        self.asm.jump(done);
        self.asm.bind(gone);
        self.drop(R9);
        self.asm.bind(done);
        // Whoever has changed the CPUs of the main thread by its tid may have met the former one.
        self.asm.load(R1, FP, NEW_SLOT);
        self.mark_fresh(R1);
    }
}

#[cfg(test)]
mod tests {
    //! The programs are run here, one access to shared memory after the other, and user space does what it does between any two.

    use super::super::CONTROL;
    use super::*;
    use crate::sys::shared::Words;
    use crate::tracker::table::{COUNTS_LEN, Slot, Table};
    use std::cell::RefCell;
    use std::fs::File;
    use std::os::fd::{AsFd, AsRawFd};
    use std::sync::atomic::Ordering::SeqCst;

    const LEADER: i32 = 10;
    const LOW: i32 = 20;
    /// In another chunk than those.
    const OTHER: i32 = 300;
    const STACK: u64 = 0x7000;
    /// Where the tasks are that create and that are created.
    const TASKS: [u64; 2] = [0x1000, 0x2000];
    const LAYOUT: Layout = Layout { pid: 0, cpus_mask: 8, cpus_bytes: 8 };

    struct World {
        /// The maps, and [`affinity`]'s.
        files: [File; 6],
        words: [Words; 6],
        table: Table,
        /// What the ring has got, and for how much it has room.
        told: RefCell<Vec<u64>>,
        room: usize,
        /// What the helpers tell: the current task, and the tid of the new one.
        current: u64,
        child: u32,
        /// The CPUs of both.
        cpus: [u64; 2],
    }

    impl World {
        fn new(current: i32, child: i32) -> Self {
            let lens = [4 * CHUNK, 4, COUNTS_LEN, CONTROL, 1, 8];
            let files = lens.map(|len| {
                let file = tempfile::tempfile().expect("a file");
                file.set_len(8 * len as u64).expect("its length");
                file
            });
            let words = |map: usize| Words::shared(&files[map], lens[map]).expect("memory");
            let (words, table) = ([0, 1, 2, 3, 4, 5].map(words), Table::new(words(0), words(1), words(2)));
            let current = (LEADER as u64) << 32 | current as u64;
            Self { words, table, files, told: RefCell::default(), room: usize::MAX, current, child: child as u32, cpus: [3, 3] }
        }

        fn maps(&self) -> Maps<'_> {
            let [slots, chunks, counts, control, emptied, _] = self.files.each_ref().map(AsFd::as_fd);
            Maps { slots, chunks, counts, control, emptied }
        }

        fn asked(&self) -> BorrowedFd<'_> {
            self.files[5].as_fd()
        }

        /// Runs a program; `before` is called before each access to a map's memory. How many there were.
        fn run<const N: usize>(&self, code: &[Insn], arguments: [u64; N], mut before: impl FnMut(usize)) -> usize {
            let map_of = |fd: i32| self.files.iter().position(|file| file.as_raw_fd() == fd).expect("a map") as u64;
            let (mut regs, mut stack, mut at, mut accesses) = ([0_u64; 11], [0_u64; 64], 0, 0);
            (regs[1], regs[10]) = (0x6000, STACK + 512);
            loop {
                let insn = code[at];
                at += 1;
                let (dst, src) = insn.registers();
                let operand = if insn.code & REG_BIT == 0 { i64::from(insn.imm) as u64 } else { regs[src] };
                // Addresses of maps' values have the map's number and one in the upper bits.
                let word = |address: u64| {
                    (address >> 48 != 0).then(|| &self.words[(address >> 48) as usize - 1][(address & 0xffff_ffff) as usize / 8])
                };
                let address = |base: u64| base.wrapping_add(i64::from(insn.off) as u64);
                let jump = match insn.code {
                    0xb7 | 0xbf => {
                        regs[dst] = operand;
                        false
                    }
                    0x07 | 0x0f => {
                        regs[dst] = regs[dst].wrapping_add(operand);
                        false
                    }
                    0x47 | 0x4f => {
                        regs[dst] |= operand;
                        false
                    }
                    0x57 | 0x5f => {
                        regs[dst] &= operand;
                        false
                    }
                    0xa7 | 0xaf => {
                        regs[dst] ^= operand;
                        false
                    }
                    0x67 | 0x6f => {
                        regs[dst] <<= operand;
                        false
                    }
                    0x77 => {
                        regs[dst] >>= operand;
                        false
                    }
                    0x79 | 0x61 => {
                        let from = address(regs[src]);
                        regs[dst] = match word(from) {
                            Some(word) => {
                                before(accesses);
                                accesses += 1;
                                word.load(SeqCst)
                            }
                            None if from < STACK => arguments[(from - 0x6000) as usize / 8],
                            None => stack[(from - STACK) as usize / 8],
                        };
                        if insn.code == 0x61 {
                            regs[dst] &= 0xffff_ffff
                        }
                        false
                    }
                    0x7b => {
                        stack[(address(regs[dst]) - STACK) as usize / 8] = regs[src];
                        false
                    }
                    0x63 => {
                        stack[(address(regs[dst]) - STACK) as usize / 8] = regs[src] & 0xffff_ffff;
                        false
                    }
                    0xdb => {
                        before(accesses);
                        accesses += 1;
                        let word = word(regs[dst]).expect("a map's memory");
                        match insn.imm {
                            0x01 => regs[src] = word.fetch_add(regs[src], SeqCst),
                            0x41 => regs[src] = word.fetch_or(regs[src], SeqCst),
                            0x51 => regs[src] = word.fetch_and(regs[src], SeqCst),
                            0xe1 => regs[src] = word.swap(regs[src], SeqCst),
                            _ => regs[0] = word.compare_exchange(regs[0], regs[src], SeqCst, SeqCst).unwrap_or_else(|found| found),
                        }
                        false
                    }
                    0x18 => {
                        let value = (map_of(insn.imm) + 1) << 48;
                        regs[dst] = if src == 1 { map_of(insn.imm) } else { value + code[at].imm as u64 };
                        at += 1;
                        false
                    }
                    0x85 => {
                        regs[0] = match insn.imm {
                            1 => {
                                let key = stack[(regs[2] - STACK) as usize / 8];
                                let there = (key as usize) < self.words[regs[1] as usize].len();
                                if there { ((regs[1] + 1) << 48) | (key * 8) } else { 0 }
                            }
                            14 => self.current,
                            35 => TASKS[0],
                            113 => {
                                let task = TASKS.iter().position(|task| task + LAYOUT.cpus_mask as u64 == regs[3]);
                                stack[(regs[1] - STACK) as usize / 8] = task.map_or(self.child.into(), |task| self.cpus[task]);
                                0
                            }
                            130 => {
                                let mut told = self.told.borrow_mut();
                                let fits = told.len() < self.room;
                                told.extend(fits.then_some(stack[(regs[2] - STACK) as usize / 8]));
                                if fits { 0 } else { -11_i64 as u64 }
                            }
                            other => panic!("helper {other}"),
                        };
                        false
                    }
                    0x95 => return accesses,
                    0x05 => true,
                    0x15 | 0x1d => regs[dst] == operand,
                    0x55 | 0x5d => regs[dst] != operand,
                    0x45 => regs[dst] & operand != 0,
                    other => panic!("{other:#x}"),
                };
                if jump {
                    at = at.checked_add_signed(insn.off.into()).expect("inside");
                }
            }
        }

        fn place(&self, tid: i32) {
            while let Some(old) = self.table.get(tid).filter(|slot| slot.css_set != 5) {
                if self.table.replace(tid, old, Slot { css_set: 5, ..old }).is_ok() {
                    break;
                }
            }
        }

        /// What user space does, one after the other, when it moves a process whose tids are these.
        fn step(&self, step: usize) {
            let pass = |tid| {
                if self.table.iter().any(|(other, slot)| other == tid && slot.tgid == LEADER) {
                    self.place(tid);
                }
            };
            match step {
                0 => self.words[3][REDIRECT].store((LEADER as u64) << 32 | 5, SeqCst),
                1 => [LEADER, LOW].into_iter().for_each(pass),
                2 => pass(OTHER),
                3 => self.place(LEADER),
                4 => self.words[3][REDIRECT].store(0, SeqCst),
                _ => {
                    // Somebody has looked at the newborn.
                    let newborn = self.child as i32;
                    if let Some(slot) = self.table.get(newborn) {
                        let _ = self.table.replace(newborn, slot, Slot { drifted: true, ..slot });
                    }
                }
            }
        }

        fn assert_counted(&self, what: &str) {
            for css_set in 1..10 {
                let members = self.table.iter().filter(|(_, slot)| slot.css_set == css_set).count() as u64;
                assert_eq!(self.table.count(css_set), members, "{what}: {css_set}");
            }
        }
    }

    const REG_BIT: u8 = 0x08;

    /// Calls `f` with all ways to do `N` steps in order at points from 0 to `last`.
    fn interleavings<const N: usize>(last: usize, mut f: impl FnMut([usize; N])) {
        let mut at = [0; N];
        loop {
            f(at);
            let Some(i) = at.iter().rposition(|point| *point < last) else { return };
            let next = at[i] + 1;
            at[i..].iter_mut().for_each(|point| *point = next);
        }
    }

    /// Runs the program in all worlds that differ in when user space does its steps; those that are not done in the middle are done behind.
    fn all_moves(code: impl Fn(Maps<'_>) -> Vec<Insn>, arguments: [u64; 2], world: impl Fn() -> World, check: impl Fn(&World, &str)) {
        let accesses = {
            let world = world();
            world.run(&code(world.maps()), arguments, |_| ())
        };
        let mut runs = 0;
        interleavings::<6>(accesses + 2, |points| {
            let world = world();
            let mut done = 0;
            let after = world.run(&code(world.maps()), arguments, |access| {
                while done < points.len() && points[done] <= access {
                    world.step(done);
                    done += 1;
                }
            });
            (done..points.len()).for_each(|step| world.step(step));
            let what = format!("{points:?} of {after}");
            world.assert_counted(&what);
            check(&world, &what);
            runs += 1;
        });
        eprintln!("{runs} orders");
    }

    #[test]
    fn no_thread_is_left_behind() {
        // A mover comes first to the creator, or first to the child.
        for (creator, child) in [(LEADER, OTHER), (OTHER, LOW)] {
            let world = || {
                let world = World::new(creator, child);
                assert!(world.table.insert(creator, Slot::new(LEADER, 2)));
                world
            };
            let place = |world: &World, tid| world.table.get(tid).map(|slot| (slot.tgid, slot.css_set));
            let expected = Some((LEADER, 5));
            all_moves(
                |maps| fork(maps, LAYOUT),
                [TASKS[1], CLONE_THREAD as u64],
                world,
                |world, what| {
                    assert_eq!((place(world, creator), place(world, child)), (expected, expected), "{what}");
                    assert!(world.table.iter().any(|(tid, _)| tid == child), "{what}: its chunk");
                },
            );
        }
    }

    #[test]
    fn a_child_follows_a_creator_who_goes_on() {
        let accesses = {
            let world = World::new(LEADER, OTHER);
            assert!(world.table.insert(LEADER, Slot::new(LEADER, 2)));
            world.run(&fork(world.maps(), LAYOUT), [TASKS[1], 0], |_| ())
        };
        interleavings::<4>(accesses + 12, |points| {
            let world = World::new(LEADER, OTHER);
            assert!(world.table.insert(LEADER, Slot::new(LEADER, 2)));
            let go = |tid, to| {
                let old = world.table.get(tid).expect("alive");
                world.table.replace(tid, old, Slot { css_set: to, ..old }).expect("nobody else does")
            };
            // Out of its place and into the new one with whoever is there, twice.
            let step = |step| match step {
                0 => drop(go(LEADER, 5)),
                2 => drop(go(LEADER, 7)),
                _ => {
                    let (from, to) = if step == 1 { (5, 6) } else { (7, 8) };
                    [LEADER, OTHER].into_iter().filter(|tid| world.table.get(*tid).is_some_and(|slot| slot.css_set == from)).for_each(
                        |tid| {
                            go(tid, to);
                        },
                    );
                }
            };
            let mut done = 0;
            world.run(&fork(world.maps(), LAYOUT), [TASKS[1], 0], |access| {
                while done < points.len() && points[done] <= access {
                    step(done);
                    done += 1;
                }
            });
            (done..points.len()).for_each(step);
            let place = world.table.get(OTHER).expect("born").css_set;
            assert!([2, 6, 8].contains(&place), "{points:?}: in {place}");
            world.assert_counted(&format!("{points:?}"));
        });
    }

    #[test]
    fn a_child_with_other_cpus_than_its_creator_is_fresh() {
        for (creator, child, css_set, fresh) in [(3, 3, 2, false), (3, 1, 2, true), (3, 1, ROOT_SET, false)] {
            let mut world = World::new(LEADER, OTHER);
            world.cpus = [creator, child];
            assert!(world.table.insert(LEADER, Slot::new(LEADER, css_set)));
            world.run(&fork(world.maps(), LAYOUT), [TASKS[1], 0], |_| ());
            assert_eq!(world.table.get(OTHER), Some(Slot { fresh, ..Slot::new(OTHER, css_set) }));
            assert_eq!(world.table.marked(), u64::from(fresh), "counted");
        }
    }

    #[test]
    fn members_that_are_given_cpus_are_told_once() {
        let setter = Setter { arguments: 2, server: 77 };
        let told = |world: &World, result: u64| {
            world.run(&affinity(world.maps(), world.asked(), LAYOUT, setter), [TASKS[1], 0, result], |_| ());
            world.told.take()
        };
        let member = || {
            let world = World::new(LEADER, OTHER);
            assert!(world.table.insert(OTHER, Slot::new(LEADER, 2)));
            world
        };
        let is_marked = |world: &World| world.words[5].iter().any(|word| word.load(SeqCst) != 0);
        let (word, bit) = (OTHER as usize / 64, 1 << (OTHER % 64));

        let world = member();
        assert_eq!(told(&world, 0), [(OTHER as u64) << 32]);
        assert_eq!(world.words[5][word].load(SeqCst), bit);
        assert_eq!(told(&world, 0), [], "nobody has taken note yet");
        world.words[5][word].store(!bit, SeqCst);
        // An int has nothing to say of the upper half of its register.
        assert_eq!(told(&world, 1 << 32), [(OTHER as u64) << 32]);
        assert_eq!(world.words[5][word].load(SeqCst), u64::MAX);

        let failed = member();
        assert_eq!(told(&failed, -22_i64 as u64), []);
        let own = World { current: 77 << 32 | 80, ..member() };
        assert_eq!(told(&own, 0), [], "the server's own doing");
        let nobody = World::new(LEADER, OTHER);
        assert_eq!(told(&nobody, 0), []);
        assert!(nobody.table.insert(OTHER, Slot::new(LEADER, ROOT_SET)));
        assert_eq!(told(&nobody, 0), [], "may do what it likes");
        let beyond = World::new(LEADER, 4 * CHUNK as i32);
        assert_eq!(told(&beyond, 0), []);
        let full = World { room: 0, ..member() };
        assert_eq!(told(&full, 0), []);
        for world in [failed, own, nobody, beyond, full] {
            assert!(!is_marked(&world));
        }
    }

    #[test]
    fn nobody_is_lost_when_a_thread_executes_a_program() {
        let world = || {
            let world = World::new(LEADER, 0);
            assert!(world.table.insert(OTHER, Slot::new(LEADER, 2)));
            world
        };
        all_moves(exec, [0, OTHER as u64], world, |world, what| {
            let place = world.table.get(LEADER).map(|slot| (slot.tgid, slot.css_set));
            assert_eq!((place, world.table.get(OTHER)), (Some((LEADER, 5)), None), "{what}");
        });
    }
}
