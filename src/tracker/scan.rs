//! Tracker layer: the back end that needs no privilege and no event source.
//!
//! Pids are handed out in ascending order, so the tasks born since the last look have the pids between the
//! last pid then and the last pid now: only these are looked up, and if there are none, one small read tells.
//! A pid that shows no task belongs to one that is dead already or whose fork is still under way; as long as it
//! may be the latter it is looked up again.
//!
//! What it cannot know:
//! - the creator of a child whose parent has exited before anybody looked: the child is taken for one of whoever has adopted
//!   it. So is a child made with CLONE_PARENT;
//! - which thread of a process that is spread over groups has created a thread: the affinity that was inherited decides,
//!   else the main thread. Nor which has created a child, if it has exited since: another thread has adopted the child;
//! - which of several threads of one group has created a child, if they wish for different CPUs and have the same;
//! - that another thread than the main one has executed a program while the main one lived;
//! - a task made with a pid of the caller's choice (clone3's `set_tid`), and anything born more than one lap of pids ago.

use super::table::{CssSetId, ROOT_SET, Slot, Table};
use super::{Stats, Tracker, born};
use crate::sys::{Errno, Machine, Tid};
use rustc_hash::{FxHashMap, FxHashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a fork may take between taking a pid and being visible: on a machine at its limits a creator of low priority waits for
/// seconds in the middle. A dead group leader's pid stays taken longer.
const FORK_TIME: Duration = Duration::from_secs(10);

/// A fork that has been under way for so long is looked for less and less often.
const AGED: Duration = Duration::from_millis(5);

/// How long a pid may take between counting as the last one and being taken: some instructions under a spin lock.
const ALLOC_TIME: Duration = Duration::from_millis(2);

/// When more pids than this have been taken, all tasks are listed instead.
const MANY_PIDS: Tid = 50_000;

/// So many of the last pids may belong to forks that were under way when nobody had been looking.
const IN_FLIGHT: usize = 32;

/// How often the threads of a process are listed again before a storm of new ones is left to the looks to come.
const MAX_ROUNDS: usize = 100;

/// So many processes that make threads are remembered.
const MAKERS: usize = 4;

/// A task that has just been found. When it started is not known of a thread of a process known for making threads.
struct Newborn {
    tgid: Tid,
    ppid: Tid,
    zombie: bool,
    start_time: Option<u64>,
}

/// See the module. The table holds the members, and all other threads of their processes.
#[derive(Debug)]
pub struct Scan {
    table: Arc<Table>,
    active: bool,
    last_pid: Option<Tid>,
    /// Pids without a task that a fork under way may have, and since when.
    pending: Vec<(Tid, Instant)>,
    /// Those that have been so for some time, and when to look again: after as long again.
    aged: Vec<(Tid, Instant, Instant)>,
    /// The processes that have made threads lately, the last one first.
    makers: Vec<Tid>,
    /// Processes in the table whose main thread has died while others lived: its tid is free for the one that executes a program.
    headless: FxHashSet<Tid>,
    /// When the main threads in the table started: a reused tid is not mistaken for its predecessor.
    starts: FxHashMap<Tid, u64>,
    emptied: Vec<CssSetId>,
    stats: Stats,
    /// All tasks at the last look and when they started, where the machine does not tell its last pid.
    seen: FxHashMap<Tid, u64>,
}

impl Scan {
    /// A tracker for pids below `pid_max`.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new(pid_max: Tid) -> io::Result<Self> {
        Ok(Self {
            table: Arc::new(Table::anonymous(pid_max)?),
            active: false,
            last_pid: None,
            pending: Vec::new(),
            aged: Vec::new(),
            makers: Vec::new(),
            headless: FxHashSet::default(),
            starts: FxHashMap::default(),
            emptied: Vec::new(),
            stats: Stats::default(),
            seen: FxHashMap::default(),
        })
    }

    /// Whether a process has threads in the table.
    fn knows(&self, tgid: Tid) -> bool {
        self.table.get(tgid).is_some() || self.headless.contains(&tgid)
    }

    /// Records a task.
    fn add(&mut self, tid: Tid, slot: Slot, start_time: Option<u64>) {
        self.table.insert(tid, slot);
        if tid == slot.tgid {
            self.headless.remove(&tid);
            self.starts.extend(start_time.map(|start| (tid, start)));
        }
    }

    /// Forgets a task that has exited.
    fn remove(&mut self, tid: Tid) {
        let Some((slot, emptied)) = self.table.remove(tid) else { return };
        if emptied {
            self.emptied.push(slot.css_set);
        }
        self.starts.remove(&tid);
        if tid == slot.tgid || self.headless.contains(&slot.tgid) {
            if !self.table.of_process(slot.tgid).is_empty() {
                self.headless.insert(slot.tgid);
            } else {
                self.headless.remove(&slot.tgid);
            }
        }
    }

    /// Whether a task in the table is alive, and still the same.
    fn alive(&self, machine: &dyn Machine, tid: Tid, tgid: Tid) -> bool {
        if tid == tgid {
            let same = |start| self.starts.get(&tid).is_none_or(|known| *known == start);
            machine.task(tid).map_or_else(|errno| errno != Errno::ESRCH, |info| !info.zombie && same(info.start_time))
        } else {
            // A thread that is not the leader leaves no zombie.
            machine.is_thread_of(tgid, tid)
        }
    }

    /// The pids that have been taken since the last look, in their order.
    fn taken(&mut self, machine: &dyn Machine) -> Vec<Tid> {
        let Some(now) = machine.last_pid() else { return self.unseen(machine) };
        let Some(then) = self.last_pid.replace(now) else { return Vec::new() };
        if then == now {
            return Vec::new();
        }
        let pid_max = machine.pid_max();
        let distance = |tid: Tid| (tid - then - 1).rem_euclid(pid_max);
        let count = distance(now) + 1;
        if count < MANY_PIDS {
            let wraps = now < then;
            let first = then + 1..=if wraps { pid_max - 1 } else { now };
            return first.chain(1..=if wraps { now } else { 0 }).collect();
        }
        // So many that a look at everybody is shorter.
        let all = machine.processes().into_iter().flat_map(|tgid| machine.threads(tgid).unwrap_or_default());
        let mut new: Vec<Tid> = all.filter(|tid| distance(*tid) < count).collect();
        new.sort_unstable_by_key(|tid| distance(*tid));
        new
    }

    /// The same where only a look at everybody can tell.
    fn unseen(&mut self, machine: &dyn Machine) -> Vec<Tid> {
        let tids = machine.processes().into_iter().flat_map(|tgid| machine.threads(tgid).unwrap_or_default());
        let all: FxHashMap<Tid, u64> = tids.filter_map(|tid| Some((tid, machine.task(tid).ok()?.start_time))).collect();
        let mut new: Vec<(u64, Tid)> =
            all.iter().filter(|(tid, start)| self.seen.get(tid) != Some(start)).map(|(tid, start)| (*start, *tid)).collect();
        new.sort_unstable();
        self.seen = all;
        new.into_iter().map(|(_, tid)| tid).collect()
    }

    /// What there is to know of a newborn. Of another thread of a process that makes threads that is no more than the process: to
    /// ask /proc of a thread that is just dying can take the time of a whole storm (the kernel's `d_invalidate`).
    fn look_up(&mut self, machine: &dyn Machine, tid: Tid) -> Result<Newborn, Errno> {
        if let Some(tgid) = self.makers.iter().copied().find(|tgid| *tgid != tid && machine.is_thread_of(*tgid, tid)) {
            return Ok(Newborn { tgid, ppid: 0, zombie: false, start_time: None });
        }
        let info = machine.task(tid)?;
        if info.tgid != tid {
            self.makers.insert(0, info.tgid);
            self.makers.truncate(MAKERS);
        }
        Ok(Newborn { tgid: info.tgid, ppid: info.ppid, zombie: info.zombie, start_time: Some(info.start_time) })
    }

    /// A pid that shows no task: looks again later, if a fork under way may have it.
    fn wait_for(&mut self, machine: &dyn Machine, tid: Tid, since: Instant, now: Instant, recent: bool) {
        let age = now.saturating_duration_since(since);
        // Only one of the last pids can be between counting as the last one and being taken.
        if !may_be_under_way(machine, tid, if recent { age } else { age.max(ALLOC_TIME) }) {
            return;
        }
        if age < AGED { self.pending.push((tid, since)) } else { self.aged.push((tid, since, now + age)) }
    }

    /// Begins: what exists now is in the root group, and what is being born is not yet.
    fn start(&mut self, machine: &dyn Machine) {
        self.taken(machine);
        let now = machine.now();
        if let Some(last) = self.last_pid {
            let invisible = |tid: &Tid| may_be_under_way(machine, *tid, Duration::ZERO);
            self.pending = ((last - IN_FLIGHT as Tid).max(1)..=last).filter(invisible).map(|tid| (tid, now)).collect();
        }
    }

    /// The thread of process `tgid` that has created `child`, if the process is known. The one that the affinity speaks for is taken
    /// where nothing else tells; those of `newborn` may not have a place yet.
    fn creator(&mut self, machine: &dyn Machine, newborn: &[Tid], (tgid, child, is_thread): (Tid, Tid, bool)) -> Option<(Tid, Slot)> {
        if !self.knows(tgid) {
            return None;
        }
        let threads: Vec<(Tid, Slot)> = self.table.of_process(tgid).into_iter().filter(|(tid, _)| *tid != child).collect();
        let first = *threads.first()?;
        if threads.iter().all(|(_, slot)| slot.css_set == first.1.css_set) {
            return Some(first);
        }
        // The kernel tells the thread that a process is a child of, as long as that thread lives.
        let is_parent = |tid: Tid| machine.children(tid).is_ok_and(|children| children.contains(&child));
        if !is_thread && let Some(parent) = threads.iter().find(|(tid, _)| is_parent(*tid)) {
            return Some(*parent);
        }
        self.stats.guessed += 1;
        let leader = self.table.get(tgid).filter(|_| self.alive(machine, tgid, tgid)).map(|slot| (tgid, slot));
        let member = threads.iter().find(|(_, slot)| slot.css_set != ROOT_SET).copied();
        let otherwise = leader.or(member);
        // A child has its creator's affinity until it asks for another.
        let Ok(mask) = machine.affinity(child) else { return otherwise };
        let alike = |tid: Tid| machine.affinity(tid).as_ref() == Ok(&mask);
        if leader.is_some() && alike(tgid) {
            return leader;
        }
        let thread = threads.iter().find(|(tid, slot)| slot.css_set != ROOT_SET && alike(*tid));
        let in_root = |(tid, slot): &&(Tid, Slot)| {
            slot.css_set == ROOT_SET && is_older(machine, *tid, child) && !newborn.contains(tid) && alike(*tid)
        };
        thread.or_else(|| threads.iter().find(in_root)).copied().or(otherwise)
    }

    /// Puts a task that has just been found into its creator's css_set, if that is known.
    fn born(&mut self, machine: &dyn Machine, newborn: &[Tid], tid: Tid, info: &Newborn) {
        self.stats.events += 1;
        let is_thread = info.tgid != tid;
        match self.table.get(tid) {
            Some(slot) if slot.tgid == info.tgid && (is_thread || info.start_time == self.starts.get(&tid).copied()) => return,
            // The pid of a dead task, used again.
            Some(_) => self.remove(tid),
            None => {}
        }
        let parent = if is_thread { info.tgid } else { info.ppid };
        let Some((creator, slot)) = self.creator(machine, newborn, (parent, tid, is_thread)) else { return };
        if is_thread || slot.css_set != ROOT_SET {
            self.add(tid, born(machine, &self.table, (tid, info.tgid), (creator, slot.css_set)), info.start_time);
        }
    }

    /// A dead main thread that lives again is another thread of the process that has executed a program (`de_thread`).
    fn follow_exec(&mut self, machine: &dyn Machine) {
        for tgid in self.headless.iter().copied().collect::<Vec<_>>() {
            let Some(info) = machine.task(tgid).ok().filter(|info| !info.zombie) else { continue };
            let threads = self.table.of_process(tgid);
            if let Some((tid, slot)) = threads.into_iter().find(|(tid, _)| !machine.is_thread_of(tgid, *tid)) {
                self.add(tgid, Slot { fresh: true, ..slot }, Some(info.start_time));
                self.remove(tid);
            }
        }
    }
}

/// Whether a pid that shows no task may belong to a fork that has been under way for so long.
fn may_be_under_way(machine: &dyn Machine, tid: Tid, age: Duration) -> bool {
    machine.affinity(tid).is_err() && (age < ALLOC_TIME || age < FORK_TIME && machine.is_taken(tid))
}

/// Whether a task was there before another, as far as pids can tell: they ascend, and wrap around.
fn is_older(machine: &dyn Machine, tid: Tid, than: Tid) -> bool {
    tid != than && (tid - than).rem_euclid(machine.pid_max()) > machine.pid_max() / 2
}

/// The threads of a process. A list of one whose threads come and go may end early: it is made again until there is nothing new in it.
fn list(machine: &dyn Machine, tgid: Tid, last_pid: Option<Tid>) -> FxHashSet<Tid> {
    let mut all = FxHashSet::default();
    for _ in 0..MAX_ROUNDS {
        let before = all.len();
        let Ok(threads) = machine.threads(tgid) else { break };
        let quiet = machine.last_pid().is_some_and(|pid| last_pid == Some(pid));
        let complete = quiet && machine.thread_count(tgid) == Ok(threads.len());
        all.extend(threads);
        if complete || all.len() == before {
            break;
        }
    }
    all
}

impl Tracker for Scan {
    fn name(&self) -> &'static str {
        "scan"
    }

    fn table(&self) -> &Arc<Table> {
        &self.table
    }

    fn activate(&mut self, machine: &dyn Machine, on: bool) -> io::Result<()> {
        if on && !self.active {
            self.start(machine);
        } else if !on && self.active {
            let tids: Vec<Tid> = self.table.iter().map(|(tid, _)| tid).collect();
            tids.into_iter().for_each(|tid| self.remove(tid));
            self.table.tidy();
            (self.last_pid, self.pending, self.aged, self.emptied) = Default::default();
            self.seen.clear();
        }
        self.active = on;
        Ok(())
    }

    fn is_active(&self) -> bool {
        self.active
    }

    fn knows_all(&self) -> bool {
        false
    }

    fn tells_exits(&self) -> bool {
        false
    }

    fn is_prompt(&self) -> bool {
        false
    }

    fn sync(&mut self, machine: &dyn Machine) {
        if !self.active {
            return;
        }
        let now = machine.now();
        let due = self.aged.extract_if(.., |(_, _, next)| *next <= now).map(|(tid, since, _)| (tid, since));
        self.pending.extend(due);
        self.follow_exec(machine);
        let taken = self.taken(machine);
        if taken.is_empty() && self.pending.is_empty() {
            return;
        }
        // The older ones first: a child's parent has a place before the child is looked up.
        let mut newborn = std::mem::take(&mut self.pending);
        let again = newborn.len();
        newborn.extend(taken.into_iter().map(|tid| (tid, now)));
        let tids: Vec<Tid> = newborn.iter().map(|(tid, _)| *tid).collect();
        for (i, (tid, since)) in newborn.into_iter().enumerate() {
            // Looked for again, and placed by somebody meanwhile.
            if i < again && self.table.get(tid).is_some() {
                continue;
            }
            // Far cheaper than /proc for the many that are dead already.
            match machine.affinity(tid).and_then(|_| self.look_up(machine, tid)) {
                Ok(info) if info.zombie => self.remove(tid),
                Ok(info) => self.born(machine, &tids, tid, &info),
                Err(_) => self.wait_for(machine, tid, since, now, i + IN_FLIGHT >= tids.len()),
            }
        }
    }

    fn know(&mut self, machine: &dyn Machine, tgid: Tid) {
        if self.knows(tgid) {
            // Who is missing was born since.
            self.sync(machine);
            // A dead main thread counts until all are dead.
            let headless = self.headless.contains(&tgid);
            let known = self.table.of_process(tgid).len() + usize::from(headless);
            if machine.thread_count(tgid) == Ok(known) && (headless || self.alive(machine, tgid, tgid)) {
                return;
            }
            let newborn: Vec<Tid> = list(machine, tgid, self.last_pid).into_iter().filter(|tid| self.table.get(*tid).is_none()).collect();
            for tid in newborn.iter().copied().filter(|tid| *tid != tgid) {
                self.born(machine, &newborn, tid, &Newborn { tgid, ppid: 0, zombie: false, start_time: None });
            }
            let known = self.table.of_process(tgid);
            self.reap(machine, &known);
            return;
        }
        let mut listed = list(machine, tgid, self.last_pid);
        let leader = machine.task(tgid).ok();
        if leader.is_none_or(|info| info.zombie) {
            listed.remove(&tgid);
            self.headless.extend((!listed.is_empty()).then_some(tgid));
        }
        for tid in listed {
            // The pid of a dead task, used again.
            self.remove(tid);
            self.add(tid, Slot::new(tgid, ROOT_SET), leader.map(|info| info.start_time));
        }
    }

    fn reap(&mut self, machine: &dyn Machine, members: &[(Tid, Slot)]) -> bool {
        let mut processes: FxHashMap<Tid, (usize, Vec<Tid>)> = FxHashMap::default();
        members.iter().for_each(|(tid, slot)| processes.entry(slot.tgid).or_default().1.push(*tid));
        if processes.values().any(|(_, tids)| tids.len() > 1) {
            for (_, slot) in self.table.iter() {
                processes.entry(slot.tgid).and_modify(|(known, _)| *known += 1);
            }
        }
        // Somebody born since the look might have made up for one who has died.
        let quiet = machine.last_pid().is_some_and(|pid| self.last_pid == Some(pid))
            && !self.pending.iter().any(|(tid, _)| machine.affinity(*tid).is_ok());
        let mut dead = Vec::new();
        for (tgid, (known, tids)) in processes {
            // As many threads as are known, and the main one alive: its death would not change the number.
            let whole = quiet && known > 1 && self.alive(machine, tgid, tgid) && machine.thread_count(tgid) == Ok(known);
            if !whole {
                dead.extend(tids.into_iter().filter(|tid| !self.alive(machine, *tid, tgid)));
            }
        }
        let any = !dead.is_empty();
        dead.into_iter().for_each(|tid| self.remove(tid));
        any
    }

    fn exited(&mut self, tid: Tid) {
        self.remove(tid);
    }

    fn take_emptied(&mut self) -> Vec<CssSetId> {
        std::mem::take(&mut self.emptied)
    }

    fn stats(&self) -> Stats {
        self.stats
    }
}
