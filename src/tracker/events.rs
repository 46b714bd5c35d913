//! Tracker layer: the back ends that are told of every fork and exit one after the other.
//!
//! While active, the table holds all tasks, so that whoever leaves the root group is known already, with its children to come. What
//! has been lost is made up for by reading /proc. What cannot be known, and is counted as guessed:
//! - which thread of a process that is spread over css_sets has created a thread, where the source names no more than the process,
//!   or where the birth is lost: the main thread is taken for it;
//! - the creator of a process whose birth is lost: its parent is taken for it, which may be whoever has adopted it since.
//!
//! And what is not noticed after a loss:
//! - that a process that is spread over css_sets has executed a program from another thread than the main one;
//! - that a pid has been used again within the clock tick (10 ms) in which its former owner was told of.
//!
//! The repair of a loss takes as long as one look may take (`BUDGET`), and goes on with the next one.

use super::table::{CssSetId, ROOT_SET, Slot, Table};
use super::{Stats, Tracker, born};
use crate::sys::{Errno, Machine, TaskInfo, Tid};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often what has not been told yet is waited for: it is a few instructions away, unless the task that makes it has lost its CPU.
const PATIENCE: usize = 12;

/// How often a process's threads are listed until none seems to be missing.
const LISTS: usize = 3;

/// So long one look repairs what has been lost; the next one goes on with it.
const BUDGET: Duration = Duration::from_millis(50);

/// So many processes are looked at even so.
const AT_LEAST: usize = 16;

/// What has happened to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A task was born.
    Fork {
        /// The thread that has created it; if that is not `exact`, some thread of its process.
        creator: Tid,
        /// Whether `creator` is the very thread.
        exact: bool,
        /// The creator's process.
        parent: Tid,
        /// The new task.
        child: Tid,
        /// Its process.
        tgid: Tid,
    },
    /// A task has exited.
    Exit {
        /// The task.
        tid: Tid,
        /// It may be that it has not: only the machine can tell.
        doubtful: bool,
    },
    /// A process has executed a program; only the thread that did so is left, under the process's pid.
    Exec {
        /// The process.
        tgid: Tid,
    },
}

/// Something that tells events.
pub trait Source: Send {
    /// The name of the back end.
    fn name(&self) -> &'static str;
    /// Begins to listen: everything from here on is told. Tells nothing of what was before.
    ///
    /// # Errors
    /// Those of the system calls; nothing has begun then.
    fn start(&mut self) -> io::Result<()>;
    /// Ends listening.
    fn stop(&mut self);
    /// Appends everything that had happened when the call began and has not been told, in an order in which causes come before
    /// effects. Whether something has been lost: then what is told may have gaps.
    fn drain(&mut self, events: &mut Vec<Event>) -> bool;
    /// A process is about to get members: a source that listens to single processes begins to. Whether it has: then what was before is
    /// not told.
    fn listen_to(&mut self, _machine: &dyn Machine, _tgid: Tid) -> bool {
        false
    }
    /// Whether all tasks of the machine are told of, not only those of single processes.
    fn hears_all(&self) -> bool {
        true
    }
    /// A task whose exit was doubtful lives: the source may tell no more of it.
    fn unheard(&mut self, _tgid: Tid) {}
    /// Whether something is never told: each drain reports a loss then, and one look at /proc must do.
    fn is_deaf(&self) -> bool {
        false
    }
    /// CPUs have come online or gone, perhaps to come back: a source that listens to single CPUs looks again.
    fn cpus_changed(&mut self) {}
    /// Whether it is time to drain soon after each event.
    fn is_prompt(&self) -> bool {
        false
    }
    /// How long events may be left alone so that they are taken together.
    fn pause(&self) -> Duration {
        super::PAUSE
    }
    /// Whether a task that has been waited for may not have been told of.
    fn exits_late(&self) -> bool {
        false
    }
    /// Readable when it is time to drain.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
}

/// Keeps a table by what a source tells.
#[derive(Debug)]
pub struct EventLog<S> {
    source: S,
    table: Arc<Table>,
    active: bool,
    /// Told and not applied.
    queue: Vec<Event>,
    /// Something has been lost and not been made up for.
    lost: bool,
    /// The threads in the table but the main ones, by process.
    threads: FxHashMap<Tid, Vec<Tid>>,
    /// Tids of tasks that may be others than whose exit is told next: of a process's former main thread, or of whoever had the pid.
    late: FxHashSet<Tid>,
    /// Tasks that nobody has told of, and what was assumed. Their births may still be told.
    adopted: FxHashMap<Tid, Slot>,
    /// When each task was known to be the one in the table, in ticks as [`TaskInfo::start_time`]: if a later one has started, it has his pid.
    seen: FxHashMap<Tid, u64>,
    /// The time of the last drain.
    now: u64,
    /// Tasks that were found dead. What they have done before may still be to be told.
    doomed: Vec<(Tid, Slot)>,
    rescan: Option<Rescan>,
    emptied: BTreeSet<CssSetId>,
    stats: Stats,
}

/// A look at /proc that is under way.
#[derive(Debug)]
struct Rescan {
    /// Processes to look at.
    left: Vec<Tid>,
    /// Threads that have been found.
    listed: FxHashSet<Tid>,
    /// When it began.
    began: u64,
    /// Makes the slots of those whom nobody has told of.
    new: fn(Tid, CssSetId) -> Slot,
}

/// Whether a thread exists and is not on its way out. One that cannot be looked at is not gone.
fn is_alive(machine: &dyn Machine, tid: Tid, tgid: Tid) -> bool {
    machine.task(tid).map_or_else(|errno| errno != Errno::ESRCH, |info| info.tgid == tgid && !info.is_ending())
}

fn wait(round: usize) {
    if round < PATIENCE / 3 {
        std::thread::yield_now();
    } else {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The slot of a task that has been found after a loss: whoever has created it may have been changed since.
fn unseen(tgid: Tid, css_set: CssSetId) -> Slot {
    Slot { fresh: css_set != ROOT_SET, ..Slot::new(tgid, css_set) }
}

/// The threads of a process. One list may end early when threads exit meanwhile.
fn all_threads(machine: &dyn Machine, tgid: Tid) -> Vec<Tid> {
    let mut threads = machine.threads(tgid).unwrap_or_default();
    for _ in 1..LISTS {
        if machine.thread_count(tgid).is_ok_and(|count| count <= threads.len()) {
            break;
        }
        threads.extend(machine.threads(tgid).unwrap_or_default());
        threads.sort_unstable();
        threads.dedup();
    }
    threads
}

impl<S: Source> EventLog<S> {
    /// Nobody is known until it is active. Pids are below `pid_max`.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new(source: S, pid_max: Tid) -> io::Result<Self> {
        Ok(Self {
            source,
            table: Arc::new(Table::anonymous(pid_max)?),
            active: false,
            queue: Vec::new(),
            lost: false,
            threads: FxHashMap::default(),
            late: FxHashSet::default(),
            adopted: FxHashMap::default(),
            seen: FxHashMap::default(),
            now: 0,
            doomed: Vec::new(),
            rescan: None,
            emptied: BTreeSet::new(),
            stats: Stats::default(),
        })
    }

    /// Whether a task exists, and its exit will be told if it is on its way out.
    fn lives(&self, machine: &dyn Machine, tid: Tid, tgid: Tid) -> bool {
        if tid != tgid && self.source.exits_late() {
            // Told when it is gone already; and to ask /proc of a dying thread may take long (the kernel's `d_invalidate`).
            return machine.is_thread_of(tgid, tid);
        }
        is_alive(machine, tid, tgid)
    }

    fn insert(&mut self, tid: Tid, slot: Slot) -> bool {
        let inserted = self.table.insert(tid, slot);
        if inserted {
            self.seen.insert(tid, self.now);
            if tid != slot.tgid {
                self.threads.entry(slot.tgid).or_default().push(tid);
            }
        }
        inserted
    }

    fn remove(&mut self, tid: Tid) {
        let Some((slot, emptied)) = self.table.remove(tid) else { return };
        if emptied && slot.css_set != ROOT_SET {
            self.emptied.insert(slot.css_set);
        }
        self.adopted.remove(&tid);
        self.seen.remove(&tid);
        self.unlist(tid, slot.tgid);
    }

    /// Takes out those that were found dead. First what they have done before is applied: their children are where they were.
    fn bury(&mut self, machine: &dyn Machine) {
        if self.doomed.is_empty() {
            return;
        }
        self.drain(machine);
        self.apply(machine);
        for (tid, slot) in std::mem::take(&mut self.doomed) {
            if self.table.get(tid) == Some(slot) {
                self.remove(tid);
            }
        }
    }

    fn unlist(&mut self, tid: Tid, tgid: Tid) {
        if let Some(threads) = self.threads.get_mut(&tgid) {
            threads.retain(|thread| *thread != tid);
            if threads.is_empty() {
                self.threads.remove(&tgid);
            }
        }
    }

    /// The known threads of a process but the main one.
    fn others(&self, tgid: Tid) -> Vec<Tid> {
        self.threads.get(&tgid).cloned().unwrap_or_default()
    }

    /// The css_set of a process's known threads, that of the main one first, and whether there are others.
    fn css_set_of(&self, tgid: Tid) -> Option<(CssSetId, bool)> {
        let others = self.threads.get(&tgid).into_iter().flatten().copied();
        let mut sets = [tgid].into_iter().chain(others).filter_map(|tid| self.table.get(tid)).map(|slot| slot.css_set);
        let first = sets.next()?;
        Some((first, sets.any(|css_set| css_set != first)))
    }

    /// The css_set that a child of this process has, as far as it can be known.
    fn guess(&mut self, tgid: Tid) -> Option<CssSetId> {
        let (css_set, split) = self.css_set_of(tgid)?;
        self.stats.guessed += u64::from(split);
        Some(css_set)
    }

    /// Takes in what the source tells.
    fn drain(&mut self, machine: &dyn Machine) {
        let before = self.queue.len();
        let deaf = self.source.is_deaf();
        let lost = self.source.drain(&mut self.queue);
        // What is not heard is looked for each time, and not lost.
        self.stats.lost += u64::from(lost && !self.lost && !deaf && !self.source.is_deaf());
        self.lost |= lost;
        self.stats.events += (self.queue.len() - before) as u64;
        // Whoever has been told of had started by now.
        self.now = machine.uptime().unwrap_or(u64::MAX);
    }

    fn apply(&mut self, machine: &dyn Machine) {
        let mut next = 0;
        while let Some(event) = self.queue.get(next).copied() {
            next += 1;
            match event {
                Event::Fork { creator, exact, parent, child, tgid } => {
                    let known = self.table.get(creator).filter(|_| exact).map(|slot| slot.css_set);
                    match known.or_else(|| self.guess(parent)) {
                        Some(css_set) => self.fork(child, born(machine, &self.table, (child, tgid), (creator, css_set))),
                        // The creator's own birth may have been lost: both are found in /proc.
                        None if self.lost => {}
                        None => {
                            self.stats.guessed += 1;
                            let parent = machine.task(tgid).ok().and_then(|info| self.css_set_of(info.ppid));
                            self.fork(child, unseen(tgid, parent.map_or(ROOT_SET, |(css_set, _)| css_set)));
                        }
                    }
                }
                Event::Exit { tid, doubtful } => {
                    let late = self.late.remove(&tid);
                    let Some(slot) = self.table.get(tid) else { continue };
                    // Whoever has executed a program since lives under the number of the one who has exited.
                    let replaced = || {
                        let execs = self.queue[next..].iter().any(|event| matches!(event, Event::Exec { tgid } if *tgid == tid));
                        execs && !self.others(tid).is_empty()
                    };
                    if !(doubtful || late && !replaced()) || !is_alive(machine, tid, slot.tgid) {
                        self.remove(tid);
                    } else if doubtful {
                        self.source.unheard(tid);
                    }
                }
                Event::Exec { tgid } => self.exec(machine, tgid, next),
            }
        }
        self.queue.clear();
    }

    fn fork(&mut self, child: Tid, slot: Slot) {
        let assumed = self.adopted.remove(&child);
        match self.table.get(child) {
            None => {}
            Some(found) if Some(found) == assumed => {
                if self.table.replace(child, found, slot) == Ok(true) && found.css_set != ROOT_SET {
                    self.emptied.insert(found.css_set);
                }
                return;
            }
            // Found before this was told, and moved since.
            Some(found) if assumed.is_some() && found.tgid == slot.tgid => return,
            // The exit of whoever had the pid is lost, or comes late.
            Some(_) => {
                self.remove(child);
                self.late.insert(child);
            }
        }
        self.insert(child, slot);
    }

    /// Of the threads of a process one is left. All others have exited or will be told to have, but not the one that is the main
    /// thread from now on under its former tid. The events from `next` on of the queue are not applied yet.
    fn exec(&mut self, machine: &dyn Machine, tgid: Tid, next: usize) {
        let known = self.others(tgid);
        let leader = self.table.get(tgid);
        let Some(any) = known.first().copied() else {
            // It was about to do so when /proc was read, which shows neither the former tid nor the new one then.
            if leader.is_none() && !self.lost {
                self.stats.guessed += 1;
                self.insert(tgid, Slot::new(tgid, ROOT_SET));
            }
            return;
        };
        let split = self.css_set_of(tgid).is_some_and(|(_, split)| split);
        let mut left = known.clone();
        let mut leader_exits = false;
        for round in 0.. {
            let exits = |tid: Tid| self.queue[next..].iter().any(|event| matches!(event, Event::Exit { tid: dead, .. } if *dead == tid));
            left.retain(|tid| !exits(*tid));
            leader_exits = exits(tgid);
            if !split || left.len() + usize::from(leader.is_some() && !leader_exits) <= 1 {
                break;
            }
            if round == PATIENCE {
                self.stats.guessed += 1;
                break;
            }
            wait(round);
            self.drain(machine);
        }
        let survivor = match leader {
            None => Some(left.first().copied().unwrap_or(any)),
            Some(_) => left.first().copied().filter(|_| leader_exits),
        };
        if let Some(survivor) = survivor {
            self.remove(tgid);
            self.table.rename(survivor, tgid);
            self.seen.insert(tgid, self.now);
        }
        known.into_iter().for_each(|tid| self.remove(tid));
        self.threads.remove(&tgid);
        if leader.is_some() {
            self.late.insert(tgid);
        }
    }

    /// Whether the process is the one that is in the table by this pid.
    fn is_same(&self, tid: Tid, info: &TaskInfo) -> bool {
        self.seen.get(&tid).is_none_or(|seen| info.start_time <= *seen)
    }

    /// Records a task that is there without anybody having told, unless it is about to be gone.
    fn adopt(&mut self, machine: &dyn Machine, tid: Tid, slot: Slot) {
        if self.table.get(tid).is_some_and(|old| old.tgid != slot.tgid) {
            self.remove(tid);
        }
        // In this order: whoever is not exiting after the insertion is taken out when he exits.
        if self.insert(tid, slot) {
            self.adopted.insert(tid, slot);
            if !self.lives(machine, tid, slot.tgid) {
                self.doomed.push((tid, slot));
            }
        }
    }

    /// Begins to make the table what /proc says. `new` makes the slots of those whom nobody has told of.
    fn begin(&mut self, machine: &dyn Machine, new: fn(Tid, CssSetId) -> Slot) {
        self.drain(machine);
        self.apply(machine);
        self.lost = false;
        self.rescan = Some(Rescan { left: machine.processes(), listed: FxHashSet::default(), began: self.now, new });
    }

    /// Goes on with it until it is done, or `end` has come. What is told meanwhile is applied, also to those that have just been found.
    fn go_on(&mut self, machine: &dyn Machine, end: Option<Instant>) {
        let Some(mut rescan) = self.rescan.take() else { return };
        let mut done = 0;
        while let Some(tgid) = rescan.left.pop() {
            // Its buffer may be small.
            self.drain(machine);
            self.apply(machine);
            self.look_at(machine, tgid, &mut rescan);
            done += 1;
            if done >= AT_LEAST && end.is_some_and(|end| machine.now() >= end) {
                break;
            }
        }
        if rescan.left.is_empty() {
            self.stats.rescans += 1;
            let Rescan { listed, began, .. } = rescan;
            let old = |tid: Tid| self.seen.get(&tid).is_none_or(|seen| *seen <= began);
            let gone = |tid: Tid, tgid: Tid| !machine.is_thread_of(tgid, tid) || !is_alive(machine, tid, tgid);
            let dead = |(tid, slot): &(Tid, Slot)| !listed.contains(tid) && old(*tid) && gone(*tid, slot.tgid);
            let dead: Vec<(Tid, Slot)> = self.table.iter().filter(dead).collect();
            self.doomed.extend(dead);
        } else {
            self.rescan = Some(rescan);
        }
        self.bury(machine);
    }

    /// Makes the table what /proc says of a process, and before of those whom it descends from as far as they are not known.
    fn look_at(&mut self, machine: &dyn Machine, tgid: Tid, rescan: &mut Rescan) {
        let (mut line, mut next) = (Vec::new(), tgid);
        let mut css_set = ROOT_SET;
        while let Ok(info) = machine.task(next) {
            if !self.is_same(next, &info) {
                self.others(next).into_iter().chain([next]).for_each(|tid| self.remove(tid));
            }
            if let Some((known, split)) = self.css_set_of(next) {
                css_set = known;
                if next == tgid {
                    let threads = self.list(machine, tgid, &info, rescan);
                    return self.complete(machine, &threads, (rescan.new)(tgid, css_set), split);
                }
                break;
            }
            line.push((next, info));
            next = info.ppid;
            if line.iter().any(|(seen, _)| *seen == next) {
                break;
            }
        }
        for (tgid, info) in line.into_iter().rev() {
            let threads = self.list(machine, tgid, &info, rescan);
            self.stats.guessed += u64::from(!threads.is_empty());
            threads.into_iter().for_each(|tid| self.adopt(machine, tid, (rescan.new)(tgid, css_set)));
        }
    }

    /// The live threads of a process.
    fn list(&self, machine: &dyn Machine, tgid: Tid, info: &TaskInfo, rescan: &mut Rescan) -> Vec<Tid> {
        let mut threads = all_threads(machine, tgid);
        threads.retain(|tid| *tid != tgid || !info.zombie);
        rescan.listed.extend(threads.iter().copied());
        threads
    }

    /// Records those threads of a known process that nobody has told of, with this slot, which is a guess if the process is split.
    fn complete(&mut self, machine: &dyn Machine, threads: &[Tid], slot: Slot, split: bool) {
        for tid in threads.iter().copied() {
            let known = self.table.get(tid).is_some_and(|known| known.tgid == slot.tgid);
            // Where all threads are together it does not matter whether the tid is another thread's now.
            if known && split && machine.task(tid).is_ok_and(|info| !self.is_same(tid, &info)) {
                self.remove(tid);
            } else if known {
                continue;
            }
            self.stats.guessed += u64::from(split);
            self.adopt(machine, tid, slot);
        }
    }
}

impl<S: Source> Tracker for EventLog<S> {
    fn name(&self) -> &'static str {
        self.source.name()
    }

    fn table(&self) -> &Arc<Table> {
        &self.table
    }

    fn activate(&mut self, machine: &dyn Machine, on: bool) -> io::Result<()> {
        if on && !self.active {
            self.source.start()?;
            let Stats { lost, rescans, guessed, .. } = self.stats;
            self.active = true;
            self.begin(machine, Slot::new);
            self.go_on(machine, None);
            self.stats = Stats { lost: lost + u64::from(self.lost), rescans, ..self.stats };
            self.sync(machine);
            // All were in the root group.
            self.stats.guessed = guessed;
        } else if !on && self.active {
            self.source.stop();
            self.active = false;
            let all: Vec<Tid> = self.table.iter().map(|(tid, _)| tid).collect();
            all.into_iter().for_each(|tid| self.remove(tid));
            self.table.tidy();
            self.queue.clear();
            self.late.clear();
            self.adopted.clear();
            self.seen.clear();
            self.doomed.clear();
            (self.lost, self.rescan) = (false, None);
        }
        Ok(())
    }

    fn is_active(&self) -> bool {
        self.active
    }

    fn knows_all(&self) -> bool {
        self.active && self.source.hears_all()
    }

    fn tells_exits(&self) -> bool {
        !self.source.exits_late()
    }

    fn is_prompt(&self) -> bool {
        self.source.is_prompt()
    }

    fn pause(&self) -> Duration {
        self.source.pause()
    }

    fn cpus_changed(&mut self) {
        self.source.cpus_changed();
    }

    fn sync(&mut self, machine: &dyn Machine) {
        if !self.active {
            return;
        }
        self.drain(machine);
        self.apply(machine);
        let end = machine.now() + BUDGET;
        if self.rescan.is_none() && self.lost {
            self.begin(machine, unseen);
        }
        if self.rescan.is_some() {
            self.go_on(machine, Some(end));
            self.drain(machine);
            self.apply(machine);
        }
        if self.source.is_deaf() {
            self.lost = false;
        }
    }

    fn know(&mut self, machine: &dyn Machine, tgid: Tid) {
        if !self.active {
            return;
        }
        if self.source.listen_to(machine, tgid) {
            // Those who were born before are where their parents are now.
            self.begin(machine, unseen);
            self.go_on(machine, None);
        }
        for round in 0..=PATIENCE {
            self.sync(machine);
            let mut missing = all_threads(machine, tgid);
            missing.retain(|tid| self.table.get(*tid).is_none_or(|slot| slot.tgid != tgid) && self.lives(machine, *tid, tgid));
            if missing.is_empty() {
                break;
            }
            // Who has just become visible is about to be told of, with his creator.
            if round < PATIENCE {
                wait(round);
            } else {
                missing.into_iter().for_each(|tid| self.adopt(machine, tid, Slot::new(tgid, ROOT_SET)));
                self.bury(machine);
            }
        }
    }

    fn reap(&mut self, machine: &dyn Machine, members: &[(Tid, Slot)]) -> bool {
        if !self.source.exits_late() {
            return false;
        }
        let gone = |tid: Tid, tgid: Tid| !machine.is_thread_of(tgid, tid) || tid == tgid && machine.task(tid).is_ok_and(|info| info.zombie);
        let dead: Vec<(Tid, Slot)> = members.iter().copied().filter(|(tid, slot)| gone(*tid, slot.tgid)).collect();
        if dead.is_empty() {
            return false;
        }
        // Their last children are where they were.
        self.drain(machine);
        self.apply(machine);
        let mut any = false;
        for (tid, Slot { tgid, .. }) in dead {
            if self.table.get(tid).is_none_or(|slot| slot.tgid != tgid) || !gone(tid, tgid) {
                any = true;
                continue;
            }
            any = true;
            if tid == tgid || !is_alive(machine, tgid, tgid) {
                self.remove(tid);
            } else if self.table.get(tgid).is_some() {
                // If it is executing a program instead, the main thread's exit is still to be told, and means the former one's.
                self.late.insert(tgid);
                self.remove(tid);
            } else {
                // The main thread was dead and lives again: another one is executing a program, and has become it.
                self.stats.guessed += u64::from(self.css_set_of(tgid).is_some_and(|(_, split)| split));
                self.table.rename(tid, tgid);
                self.seen.remove(&tid);
                self.seen.insert(tgid, self.now);
                self.unlist(tid, tgid);
            }
        }
        any
    }

    fn take_emptied(&mut self) -> Vec<CssSetId> {
        std::mem::take(&mut self.emptied).into_iter().collect()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        if self.active { self.source.fd() } else { None }
    }

    fn stats(&self) -> Stats {
        self.stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitmap::Bitmap;
    use crate::sys::TaskFlags;
    use crate::sys::{Caller, Creds, Errno, PidNs};
    use std::collections::BTreeMap;
    use std::ffi::OsStr;
    use std::sync::{Arc, Mutex, MutexGuard};

    /// What happens: a machine that knows only tasks, and what of that a source will tell.
    #[derive(Default)]
    struct World {
        tasks: BTreeMap<Tid, TaskInfo>,
        time: u64,
        told: Vec<Event>,
        /// Told only after the next drain.
        late: Vec<Event>,
        lost: bool,
        deaf: bool,
        exits_late: bool,
        /// Whoever is asked for was not listened to.
        begins: bool,
    }

    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<World>>);

    impl Fake {
        fn world(&self) -> MutexGuard<'_, World> {
            self.0.lock().expect("no panic")
        }

        fn tell(&self, event: Event) {
            let mut world = self.world();
            if !world.deaf {
                world.told.push(event);
            }
        }

        fn appears(&self, child: Tid, tgid: Tid, ppid: Tid) {
            let mut world = self.world();
            world.time += 1;
            let info = TaskInfo { tgid, ppid, zombie: false, flags: TaskFlags::empty(), start_time: world.time };
            assert!(world.tasks.insert(child, info).is_none_or(|before| before.zombie), "{child} is taken");
        }

        fn process(&self, creator: Tid, child: Tid) {
            let parent = self.world().tasks[&creator].tgid;
            self.appears(child, child, parent);
            self.tell(Event::Fork { creator, exact: true, parent, child, tgid: child });
        }

        fn thread(&self, creator: Tid, child: Tid, exact: bool) {
            let TaskInfo { tgid, ppid, .. } = self.world().tasks[&creator];
            self.appears(child, tgid, ppid);
            self.tell(Event::Fork { creator: if exact { creator } else { tgid }, exact, parent: tgid, child, tgid });
        }

        /// A main thread becomes a zombie.
        fn dies(&self, tid: Tid) {
            let mut world = self.world();
            if world.tasks[&tid].tgid == tid {
                world.tasks.entry(tid).and_modify(|info| info.zombie = true);
            } else {
                world.tasks.remove(&tid);
            }
        }

        fn exit(&self, tid: Tid) {
            self.dies(tid);
            self.tell(Event::Exit { tid, doubtful: false });
        }

        /// The machine's part of an exec: nothing is told.
        fn de_thread(&self, tid: Tid) {
            let mut world = self.world();
            let TaskInfo { tgid, .. } = world.tasks[&tid];
            world.tasks.retain(|other, info| info.tgid != tgid || *other == tgid);
            world.tasks.entry(tgid).and_modify(|info| info.zombie = false);
        }

        fn exec(&self, tid: Tid) {
            let tgid = self.world().tasks[&tid].tgid;
            let threads = self.threads(tgid).expect("some");
            let zombie = self.world().tasks[&tgid].zombie;
            for other in threads.into_iter().filter(|other| *other != tid && !(*other == tgid && zombie)) {
                self.tell(Event::Exit { tid: other, doubtful: false });
            }
            self.de_thread(tid);
            self.tell(Event::Exec { tgid });
        }

        fn reap(&self, tid: Tid) {
            assert!(self.world().tasks.remove(&tid).is_some_and(|info| info.zombie));
        }

        /// Nothing is told from here on, and that is known.
        fn deaf(&self) {
            let mut world = self.world();
            (world.deaf, world.lost) = (true, true);
        }

        /// A log of a machine with a shell (10) that has a child (20) with threads (21 to 23), all in the root group.
        fn log(&self) -> EventLog<Fake> {
            self.appears(1, 1, 0);
            self.process(1, 10);
            self.process(10, 20);
            (21..24).for_each(|tid| self.thread(20, tid, true));
            self.world().told.clear();
            let mut log = EventLog::new(self.clone(), 32768).expect("memory");
            log.activate(self, true).expect("a fake source starts");
            assert_eq!(all(&log), [(1, 1), (10, 1), (20, 1), (21, 1), (22, 1), (23, 1)]);
            assert_eq!(log.table().get(22), Some(Slot::new(20, ROOT_SET)));
            log
        }
    }

    impl Source for Fake {
        fn name(&self) -> &'static str {
            "fake"
        }

        fn start(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn stop(&mut self) {}

        fn drain(&mut self, events: &mut Vec<Event>) -> bool {
            let mut world = self.world();
            events.append(&mut world.told);
            world.told = std::mem::take(&mut world.late);
            let lost = std::mem::take(&mut world.lost);
            world.deaf &= !lost;
            lost
        }

        fn listen_to(&mut self, _: &dyn Machine, _: Tid) -> bool {
            self.world().begins
        }

        fn exits_late(&self) -> bool {
            self.world().exits_late
        }

        fn fd(&self) -> Option<BorrowedFd<'_>> {
            None
        }
    }

    impl Machine for Fake {
        fn task(&self, tid: Tid) -> Result<TaskInfo, Errno> {
            self.world().tasks.get(&tid).copied().ok_or(Errno::ESRCH)
        }
        fn is_thread_of(&self, tgid: Tid, tid: Tid) -> bool {
            self.task(tid).is_ok_and(|info| info.tgid == tgid)
        }
        fn threads(&self, tgid: Tid) -> Result<Vec<Tid>, Errno> {
            Ok(self.world().tasks.iter().filter(|(_, info)| info.tgid == tgid).map(|(tid, _)| *tid).collect())
        }
        fn thread_count(&self, tgid: Tid) -> Result<usize, Errno> {
            self.threads(tgid).map(|threads| threads.len())
        }
        fn processes(&self) -> Vec<Tid> {
            // The young come first, as after a lap of pids.
            self.world().tasks.iter().filter(|(tid, info)| info.tgid == **tid).map(|(tid, _)| *tid).rev().collect()
        }
        fn uptime(&self) -> Option<u64> {
            Some(self.world().time)
        }
        fn now(&self) -> Instant {
            Instant::now()
        }
        fn pid_max(&self) -> Tid {
            32768
        }
        fn nr_cpu_ids(&self) -> usize {
            1
        }
        fn config_nr_cpus(&self) -> usize {
            1
        }
        fn nr_node_ids(&self) -> usize {
            1
        }
        fn online_cpus(&self) -> Bitmap {
            Bitmap::first(1)
        }
        fn own_cpus(&self) -> Bitmap {
            Bitmap::first(1)
        }
        fn allowed_mems(&self) -> Bitmap {
            Bitmap::first(1)
        }
        fn relax_domain_level_max(&self) -> i64 {
            0
        }
        fn creds(&self, _: Tid) -> Result<Creds, Errno> {
            Err(Errno::ESRCH)
        }
        fn last_pid(&self) -> Option<Tid> {
            None
        }
        fn affinity(&self, _: Tid) -> Result<Bitmap, Errno> {
            Err(Errno::ESRCH)
        }
        fn set_affinity(&self, _: Tid, _: &Bitmap) -> Result<(), Errno> {
            Err(Errno::ESRCH)
        }
        fn migrate_pages(&self, _: Tid, _: &Bitmap, _: &Bitmap) -> Result<(), Errno> {
            Err(Errno::ESRCH)
        }
        fn parallelism(&self) -> usize {
            1
        }
        fn caller(&self, _: Tid) -> Result<Caller, Errno> {
            Err(Errno::ESRCH)
        }
        fn tid_from(&self, _: &PidNs, _: Tid) -> Result<Tid, Errno> {
            Err(Errno::ESRCH)
        }
        fn tid_in(&self, _: &PidNs, _: Tid) -> Result<Tid, Errno> {
            Err(Errno::ESRCH)
        }
        fn root_is_global(&self) -> bool {
            true
        }
        fn run_release_agent(&self, _: &OsStr, _: &OsStr) {}
    }

    /// Who is where, and that the counts and the list of threads agree with it.
    fn all(log: &EventLog<Fake>) -> Vec<(Tid, CssSetId)> {
        let all: Vec<(Tid, CssSetId)> = log.table().iter().map(|(tid, slot)| (tid, slot.css_set)).collect();
        for css_set in 1..10 {
            assert_eq!(log.table().count(css_set), all.iter().filter(|(_, of)| *of == css_set).count() as u64, "css_set {css_set}");
        }
        let mut listed: Vec<Tid> = log.threads.values().flatten().copied().collect();
        listed.sort_unstable();
        let threads = log.table().iter().filter(|(tid, slot)| *tid != slot.tgid).map(|(tid, _)| tid);
        assert_eq!(listed, threads.collect::<Vec<_>>(), "threads");
        all
    }

    fn place(log: &EventLog<Fake>, tid: Tid, css_set: CssSetId) {
        let old = log.table().get(tid).expect("known");
        log.table().replace(tid, old, Slot::new(old.tgid, css_set)).expect("nobody else writes");
    }

    fn css_set(log: &EventLog<Fake>, tid: Tid) -> Option<CssSetId> {
        log.table().get(tid).map(|slot| slot.css_set)
    }

    #[test]
    fn children_start_where_their_creators_are() {
        let fake = Fake::default();
        let mut log = fake.log();
        place(&log, 10, 5);
        place(&log, 22, 6);
        fake.process(10, 30);
        fake.process(30, 31);
        fake.process(22, 32);
        fake.thread(22, 33, true);
        fake.process(20, 34);
        fake.exit(30);
        log.sync(&fake);
        let places: Vec<_> = (30..35).map(|tid| css_set(&log, tid)).collect();
        assert_eq!(places, [None, Some(5), Some(6), Some(6), Some(1)]);
        assert_eq!(log.table().get(33), Some(Slot::new(20, 6)));
        assert_eq!(log.stats(), Stats { events: 6, ..Stats::default() });
        all(&log);
        log.activate(&fake, false).expect("ends");
        assert_eq!(all(&log), []);
    }

    #[test]
    fn a_thread_whose_creator_is_not_told() {
        let fake = Fake::default();
        let mut log = fake.log();
        (20..24).for_each(|tid| place(&log, tid, 5));
        fake.exit(20);
        fake.thread(21, 30, false);
        log.sync(&fake);
        assert_eq!((css_set(&log, 20), css_set(&log, 30), log.stats().guessed), (None, Some(5), 0), "together");
        let fake = Fake::default();
        let mut log = fake.log();
        place(&log, 20, 5);
        fake.thread(22, 30, false);
        log.sync(&fake);
        assert_eq!((css_set(&log, 30), log.stats().guessed), (Some(5), 1), "the main thread's");
    }

    #[test]
    fn creators_that_nobody_knows() {
        let fake = Fake::default();
        let mut log = fake.log();
        (21..24).for_each(|tid| place(&log, tid, 7));
        place(&log, 20, 7);
        fake.tell(Event::Fork { creator: 99, exact: true, parent: 20, child: 30, tgid: 30 });
        fake.tell(Event::Fork { creator: 99, exact: true, parent: 99, child: 31, tgid: 31 });
        log.sync(&fake);
        assert_eq!((css_set(&log, 30), css_set(&log, 31), log.stats().guessed), (Some(7), Some(ROOT_SET), 1));
    }

    #[test]
    fn known_before_the_birth_is_told() {
        let fake = Fake::default();
        let mut log = fake.log();
        place(&log, 22, 6);
        (30..32).for_each(|tid| fake.appears(tid, 20, 10));
        log.know(&fake, 20);
        assert_eq!(log.table().get(30), Some(Slot::new(20, ROOT_SET)));
        place(&log, 30, 8);
        (30..32).for_each(|child| fake.tell(Event::Fork { creator: 22, exact: true, parent: 20, child, tgid: 20 }));
        log.sync(&fake);
        assert_eq!((css_set(&log, 30), css_set(&log, 31)), (Some(8), Some(6)), "moved, and its creator's");
        all(&log);
    }

    #[test]
    fn emptied_css_sets_are_told_once() {
        let fake = Fake::default();
        let mut log = fake.log();
        place(&log, 10, 5);
        fake.process(10, 30);
        fake.exit(10);
        log.sync(&fake);
        assert_eq!(log.take_emptied(), []);
        fake.exit(30);
        fake.exit(23);
        log.sync(&fake);
        assert_eq!((log.take_emptied(), log.take_emptied()), (vec![5], vec![]));
    }

    #[test]
    fn exits_that_may_not_be() {
        let fake = Fake::default();
        let mut log = fake.log();
        fake.tell(Event::Exec { tgid: 10 });
        fake.tell(Event::Exit { tid: 10, doubtful: true });
        fake.dies(23);
        fake.tell(Event::Exit { tid: 23, doubtful: true });
        log.sync(&fake);
        assert_eq!((css_set(&log, 10), css_set(&log, 23)), (Some(ROOT_SET), None));
        fake.world().tasks.entry(10).and_modify(|info| info.flags = TaskFlags::EXITING);
        fake.tell(Event::Exit { tid: 10, doubtful: true });
        log.sync(&fake);
        assert_eq!(css_set(&log, 10), None);
    }

    #[test]
    fn a_program_executed_by_another_thread() {
        let fake = Fake::default();
        let mut log = fake.log();
        place(&log, 22, 6);
        fake.exec(22);
        log.sync(&fake);
        assert_eq!(all(&log), [(1, 1), (10, 1), (20, 6)]);
        fake.thread(20, 30, false);
        log.sync(&fake);
        assert_eq!((css_set(&log, 30), log.stats().guessed), (Some(6), 0));
        fake.exec(20);
        fake.exit(20);
        log.sync(&fake);
        assert_eq!((all(&log), log.take_emptied()), (vec![(1, 1), (10, 1)], vec![6]));
    }

    #[test]
    fn exits_told_after_the_exec() {
        for split in [false, true] {
            let fake = Fake::default();
            let mut log = fake.log();
            (20..24).for_each(|tid| place(&log, tid, 5));
            if split {
                place(&log, 22, 6);
            }
            fake.de_thread(22);
            fake.tell(Event::Exit { tid: 21, doubtful: false });
            fake.tell(Event::Exec { tgid: 20 });
            fake.tell(Event::Exit { tid: 23, doubtful: false });
            fake.world().late.push(Event::Exit { tid: 20, doubtful: false });
            log.sync(&fake);
            log.sync(&fake);
            assert_eq!(all(&log), [(1, 1), (10, 1), (20, if split { 6 } else { 5 })]);
            assert_eq!(log.stats().guessed, 0);
            fake.exit(20);
            log.sync(&fake);
            assert_eq!(all(&log), [(1, 1), (10, 1)]);
        }
    }

    #[test]
    fn the_dead_that_are_not_told_yet() {
        let fake = Fake::default();
        let mut log = fake.log();
        (20..24).for_each(|tid| place(&log, tid, 5));
        fake.world().exits_late = true;
        fake.dies(10);
        fake.dies(21);
        let members: Vec<_> = log.table().iter().collect();
        log.reap(&fake, &members);
        assert_eq!(all(&log), [(1, 1), (20, 5), (22, 5), (23, 5)]);
        // In the middle of an exec: the others' exits have been told, the exec has not.
        [20, 23].iter().for_each(|tid| fake.tell(Event::Exit { tid: *tid, doubtful: false }));
        fake.de_thread(22);
        log.sync(&fake);
        log.reap(&fake, &log.table().iter().collect::<Vec<_>>());
        assert_eq!((all(&log), log.take_emptied()), (vec![(1, 1), (20, 5)], vec![]));
        fake.tell(Event::Exec { tgid: 20 });
        log.sync(&fake);
        assert_eq!(css_set(&log, 20), Some(5));
    }

    #[test]
    fn the_former_main_threads_exit_comes_last() {
        let fake = Fake::default();
        let mut log = fake.log();
        (20..24).for_each(|tid| place(&log, tid, 5));
        fake.world().exits_late = true;
        fake.de_thread(22);
        log.reap(&fake, &log.table().iter().collect::<Vec<_>>());
        for event in [Event::Exec { tgid: 20 }, Event::Exit { tid: 20, doubtful: false }] {
            fake.tell(event);
            log.sync(&fake);
            assert_eq!(all(&log), [(1, 1), (10, 1), (20, 5)]);
        }
    }

    #[test]
    fn losses_are_made_up_for() {
        let fake = Fake::default();
        let mut log = fake.log();
        place(&log, 10, 5);
        (20..24).for_each(|tid| place(&log, tid, 6));
        fake.process(10, 300);
        fake.deaf();
        fake.process(300, 299);
        fake.process(299, 298);
        fake.thread(299, 40, true);
        fake.thread(22, 41, true);
        fake.process(1, 42);
        fake.exit(23);
        fake.exit(10);
        log.sync(&fake);
        let root = [(1, 1), (42, 1)];
        let mut expected = vec![(20, 6), (21, 6), (22, 6), (40, 5), (41, 6), (298, 5), (299, 5), (300, 5)];
        expected.extend(root);
        expected.sort_unstable();
        assert_eq!(all(&log), expected);
        assert_eq!(log.table().get(41), Some(unseen(20, 6)));
        assert_eq!(log.stats(), Stats { events: 1, lost: 1, rescans: 1, guessed: 3, asked: 0 });
        fake.process(41, 50);
        log.sync(&fake);
        assert_eq!((css_set(&log, 50), log.stats().lost), (Some(6), 1));
    }

    #[test]
    fn creators_whose_birth_is_lost() {
        let fake = Fake::default();
        let mut log = fake.log();
        place(&log, 10, 5);
        fake.deaf();
        fake.process(10, 30);
        fake.world().deaf = false;
        fake.process(30, 31);
        fake.thread(31, 32, true);
        log.sync(&fake);
        assert_eq!(all(&log), [(1, 1), (10, 5), (20, 1), (21, 1), (22, 1), (23, 1), (30, 5), (31, 5), (32, 5)]);
    }

    #[test]
    fn pids_used_again_in_a_loss() {
        let fake = Fake::default();
        let mut log = fake.log();
        place(&log, 10, 5);
        (20..24).for_each(|tid| place(&log, tid, 6));
        fake.process(10, 30);
        fake.process(10, 31);
        log.sync(&fake);
        place(&log, 31, 7);
        fake.deaf();
        // A process takes another's pid, and a thread that of a process.
        [30, 31].iter().for_each(|tid| {
            fake.exit(*tid);
            fake.reap(*tid);
        });
        fake.process(1, 31);
        fake.thread(31, 30, true);
        log.sync(&fake);
        assert_eq!((log.table().get(30), log.table().get(31)), (Some(Slot::new(31, 1)), Some(Slot::new(31, 1))));
        assert_eq!(log.take_emptied(), [7]);
        // Within a process that is spread over css_sets a thread that takes another's pid is a new one.
        place(&log, 20, 8);
        fake.deaf();
        fake.exit(22);
        fake.thread(20, 22, true);
        log.sync(&fake);
        assert_eq!(log.table().get(22), Some(unseen(20, 8)));
        all(&log);
    }

    #[test]
    fn losses_hide_programs_and_dead_main_threads() {
        let fake = Fake::default();
        let mut log = fake.log();
        (20..24).for_each(|tid| place(&log, tid, 6));
        fake.exit(20);
        log.sync(&fake);
        fake.deaf();
        fake.exec(22);
        log.sync(&fake);
        assert_eq!(all(&log), [(1, 1), (10, 1), (20, 6)]);
        fake.thread(20, 30, true);
        fake.deaf();
        fake.exit(20);
        log.sync(&fake);
        assert_eq!(all(&log), [(1, 1), (10, 1), (30, 6)]);
        fake.deaf();
        fake.exit(30);
        fake.exit(10);
        log.sync(&fake);
        assert_eq!((all(&log), log.take_emptied()), (vec![(1, 1)], vec![6]));
    }

    #[test]
    fn pids_used_again_as_told() {
        let fake = Fake::default();
        let mut log = fake.log();
        place(&log, 10, 5);
        fake.process(10, 30);
        fake.exit(30);
        fake.reap(30);
        fake.thread(20, 30, true);
        log.sync(&fake);
        assert_eq!((log.table().get(30), log.take_emptied()), (Some(Slot::new(20, ROOT_SET)), vec![]));
        all(&log);
    }

    #[test]
    fn exits_told_after_the_pid_is_used_again() {
        let fake = Fake::default();
        let mut log = fake.log();
        place(&log, 10, 5);
        fake.process(10, 30);
        log.sync(&fake);
        fake.dies(30);
        fake.reap(30);
        place(&log, 10, 6);
        fake.process(10, 30);
        fake.tell(Event::Exit { tid: 30, doubtful: false });
        log.sync(&fake);
        assert_eq!((log.table().get(30), log.take_emptied()), (Some(Slot::new(30, 6)), vec![5]));
        fake.exit(30);
        log.sync(&fake);
        assert_eq!(css_set(&log, 30), None);
        all(&log);
    }

    #[test]
    fn children_of_the_dead_are_where_they_were() {
        for lost in [false, true] {
            let fake = Fake::default();
            let mut log = fake.log();
            place(&log, 10, 5);
            fake.process(10, 30);
            log.sync(&fake);
            fake.world().exits_late = true;
            let members: Vec<_> = log.table().iter().collect();
            // Told when 30 has been found dead, or behind a gap.
            fake.process(30, 31);
            fake.dies(30);
            fake.world().lost = lost;
            log.reap(&fake, &members);
            log.sync(&fake);
            assert_eq!((css_set(&log, 30), css_set(&log, 31), log.stats().guessed), (None, Some(5), 0));
            all(&log);
        }
    }

    #[test]
    fn who_is_listened_to_has_children_already() {
        let fake = Fake::default();
        let mut log = fake.log();
        fake.process(20, 30);
        fake.process(30, 31);
        fake.world().told.clear();
        fake.world().begins = true;
        log.know(&fake, 20);
        assert_eq!((css_set(&log, 30), css_set(&log, 31)), (Some(ROOT_SET), Some(ROOT_SET)));
        (20..24).for_each(|tid| place(&log, tid, 5));
        fake.process(30, 32);
        fake.process(20, 33);
        log.sync(&fake);
        assert_eq!((css_set(&log, 32), css_set(&log, 33)), (Some(ROOT_SET), Some(5)));
        assert_eq!((log.stats().lost, log.stats().rescans), (0, 1));
        all(&log);
    }

    #[test]
    fn repairs_go_on_with_the_next_look() {
        let fake = Fake::default();
        let mut log = fake.log();
        place(&log, 10, 5);
        fake.deaf();
        (100..1000).for_each(|child| fake.process(10, child));
        for _ in 0..100 {
            log.sync(&fake);
        }
        assert_eq!((log.table().count(5), log.stats().lost, log.stats().rescans), (901, 1, 1));
        all(&log);
    }

    #[test]
    fn nobody_is_known_while_it_sleeps() {
        let fake = Fake::default();
        let mut log = EventLog::new(fake.clone(), 32768).expect("memory");
        fake.appears(1, 1, 0);
        fake.process(1, 10);
        log.sync(&fake);
        log.know(&fake, 10);
        assert_eq!(all(&log), []);
    }
}
