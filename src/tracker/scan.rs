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

use super::{Fork, Tracker};
use crate::cgroup::{CgroupId, Members, Task};
use crate::controllers::TaskState;
use crate::sys::{Errno, Machine, Tid};
use rustc_hash::{FxHashMap, FxHashSet};
use std::time::{Duration, Instant};

/// How long a fork may take between taking a pid and being visible: on a machine at its limits a creator of low priority waits for
/// seconds in the middle. A dead group leader's pid stays taken longer.
const FORK_TIME: Duration = Duration::from_secs(10);

/// A fork that has been under way for so long is looked for less and less often.
const AGED: Duration = Duration::from_millis(5);

/// How long a pid may take between counting as the last one and being taken: some instructions under a spin lock.
const ALLOC_TIME: Duration = Duration::from_millis(2);

/// How long a task that has gone to the root group is remembered for its children's sake.
const RELEASED_TIME: Duration = Duration::from_secs(1);

/// When more pids than this have been taken, all tasks are listed instead.
const MANY_PIDS: Tid = 50_000;

/// So many of the last pids may belong to forks that were under way when nobody had been looking.
const IN_FLIGHT: usize = 32;

/// So many processes that make threads are remembered.
const MAKERS: usize = 4;

/// A task that has just been found. When it started is not known of a thread of a process known for making threads.
struct Newborn {
    tgid: Tid,
    ppid: Tid,
    zombie: bool,
    start_time: Option<u64>,
}

/// The threads of a process that have gone to the root group: one of them as it was then, all of them, when, and the last pid then.
#[derive(Debug)]
struct Released {
    task: Task,
    tids: FxHashSet<Tid>,
    since: Instant,
    last_pid: Option<Tid>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Scan {
    last_pid: Option<Tid>,
    /// Pids without a task that a fork under way may have, and since when.
    pending: Vec<(Tid, Instant)>,
    /// Those that have been so for some time, and when to look again: after as long again.
    aged: Vec<(Tid, Instant, Instant)>,
    /// The processes that have made threads lately, the last one first.
    makers: Vec<Tid>,
    /// Newborns without a creator among the members are remembered in `held`, with their processes.
    hold: bool,
    held: Vec<(Tid, Tid)>,
    /// Processes of which a thread has gone to the root group lately, with that thread.
    released: FxHashMap<Tid, Released>,
    /// All tasks at the last look and when they started, where the machine does not tell its last pid.
    seen: FxHashMap<Tid, u64>,
}

impl Scan {
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

    /// Forgets all history: what exists now is where `members` says, and what is being born is not yet.
    fn start(&mut self, machine: &dyn Machine) {
        let before = self.last_pid;
        self.taken(machine);
        let now = machine.now();
        for (tid, since) in std::mem::take(&mut self.pending) {
            self.wait_for(machine, tid, since, now, true);
        }
        if let Some(last) = self.last_pid.filter(|last| Some(*last) != before) {
            let invisible = |tid: &Tid| may_be_under_way(machine, *tid, Duration::ZERO);
            self.pending = ((last - IN_FLIGHT as Tid).max(1)..=last).filter(invisible).map(|tid| (tid, now)).collect();
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

/// The thread of process `tgid` that has created `child`, if it is in a group. Those of `newborn` may not have a place yet.
fn creator<'m>(
    machine: &dyn Machine,
    members: &'m Members,
    newborn: &[Tid],
    (tgid, child, is_thread): (Tid, Tid, bool),
) -> Option<&'m Task> {
    let first = members.of_process(tgid).next()?;
    let together = members.is_complete(tgid) && members.of_process(tgid).all(|task| task.cgroup == first.cgroup);
    let others = || machine.threads(tgid).unwrap_or_default().into_iter().filter(|tid| *tid != child);
    // Spread over groups: the kernel tells the thread that a process is a child of, as long as that thread lives.
    if !together
        && !is_thread
        && let Some(tid) = others().find(|tid| machine.children(*tid).is_ok_and(|children| children.contains(&child)))
    {
        return members.get(tid);
    }
    // A child has its creator's affinity until it asks for another.
    let Ok(mask) = machine.affinity(child) else { return Some(first) };
    let alike = |tid| machine.affinity(tid).as_ref() == Ok(&mask);
    let leader = members.get(tgid);
    let leader_alive = leader.is_some() || machine.task(tgid).is_ok_and(|info| !info.zombie);
    if leader_alive && alike(tgid) {
        return leader;
    }
    let thread = members.of_process(tgid).find(|task| task.tid != child && alike(task.tid));
    if thread.is_some() {
        return thread;
    }
    let in_root = |tid: &Tid| *tid != tgid && members.get(*tid).is_none() && is_older(machine, *tid, child) && !newborn.contains(tid);
    if !together && others().filter(in_root).any(alike) {
        return None;
    }
    if leader_alive { leader } else { Some(first) }
}

/// The thread that has gone to the root group while `child` was born of its process: no thread that is there has the child's CPUs.
fn released_creator<'r>(
    machine: &dyn Machine,
    released: &'r FxHashMap<Tid, Released>,
    newborn: &[Tid],
    tgid: Tid,
    child: Tid,
) -> Option<&'r Task> {
    let task = &released.get(&tgid)?.task;
    let mask = machine.affinity(child).ok()?;
    let has_them = |tid| is_older(machine, tid, child) && !newborn.contains(&tid) && machine.affinity(tid).as_ref() == Ok(&mask);
    let inherited = machine.threads(tgid).ok()?.into_iter().any(has_them);
    (!inherited).then_some(task)
}

/// Puts a task that has just been found into its creator's group, if that is known.
fn born(
    machine: &dyn Machine,
    members: &mut Members,
    fork: &dyn Fork,
    (newborn, released): (&[Tid], &FxHashMap<Tid, Released>),
    tid: Tid,
    info: &Newborn,
) -> bool {
    match members.get(tid) {
        Some(known) if info.start_time.is_some() && known.start_time == info.start_time => return true,
        // The pid of a dead member, used again: nobody is placed before his birth has been looked for.
        Some(_) => members.exited(tid),
        None => {}
    }
    let is_thread = info.tgid != tid;
    let parent = if is_thread { info.tgid } else { info.ppid };
    let creator = creator(machine, members, newborn, (parent, tid, is_thread));
    let creator = creator.or_else(|| released_creator(machine, released, newborn, parent, tid));
    let Some(creator) = creator else { return false };
    let state = fork.fork(tid, creator);
    let cgroup = creator.cgroup;
    members.place(Task { tid, tgid: info.tgid, start_time: info.start_time, cgroup, state });
    true
}

/// A dead main thread that lives again is another thread of the process that has executed a program (`de_thread`).
fn follow_exec(machine: &dyn Machine, members: &mut Members) {
    let headless: Vec<Tid> = members.headless().collect();
    for tgid in headless {
        let Some(info) = machine.task(tgid).ok().filter(|info| !info.zombie) else { continue };
        let executed = members.of_process(tgid).find(|task| !alive(machine, task)).cloned();
        if let Some(thread) = executed {
            members.place(Task { tid: tgid, start_time: Some(info.start_time), ..thread });
        }
    }
}

/// Whether a process that has no thread in the root group has as many threads as are known of it, the main one alive.
fn has_as_many(machine: &dyn Machine, members: &Members, tgid: Tid) -> bool {
    let known = members.count_process(tgid);
    known > 1
        && members.is_complete(tgid)
        // The leader's death does not change the number.
        && machine.task(tgid).is_ok_and(|info| !info.zombie)
        && machine.thread_count(tgid) == Ok(known)
}

/// Whether a member is alive, and still the same task.
fn alive(machine: &dyn Machine, task: &Task) -> bool {
    if task.tid == task.tgid {
        machine.task(task.tid).is_ok_and(|info| !info.zombie && task.start_time.is_none_or(|start| start == info.start_time))
    } else {
        // A thread that is not the leader leaves no zombie.
        machine.is_thread_of(task.tgid, task.tid)
    }
}

impl Tracker for Scan {
    fn sync(&mut self, machine: &dyn Machine, members: &mut Members, fork: &dyn Fork) {
        let now = machine.now();
        self.released.retain(|_, released| now.saturating_duration_since(released.since) < RELEASED_TIME);
        let due = self.aged.extract_if(.., |(_, _, next)| *next <= now).map(|(tid, since, _)| (tid, since));
        self.pending.extend(due);
        if members.is_empty() && self.released.is_empty() && !self.hold {
            self.start(machine);
            return;
        }
        follow_exec(machine, members);
        let taken = self.taken(machine);
        if taken.is_empty() && self.pending.is_empty() {
            return;
        }
        // The older ones first: a child's parent has a place before the child is looked up.
        let mut newborn = std::mem::take(&mut self.pending);
        let nobody = FxHashMap::default();
        let again = newborn.len();
        newborn.extend(taken.into_iter().map(|tid| (tid, now)));
        let tids: Vec<Tid> = newborn.iter().map(|(tid, _)| *tid).collect();
        for (i, (tid, since)) in newborn.into_iter().enumerate() {
            // Looked for again, and placed by somebody meanwhile.
            if i < again && members.get(tid).is_some() {
                continue;
            }
            // Far cheaper than /proc for the many that are dead already.
            match machine.affinity(tid).and_then(|_| self.look_up(machine, tid)) {
                Ok(info) if info.zombie => members.exited(tid),
                Ok(info) => {
                    // While tasks are on their way, who has been released is not known yet.
                    let released = if self.hold { &nobody } else { &self.released };
                    if !born(machine, members, fork, (&tids, released), tid, &info) && self.hold {
                        self.held.push((tid, info.tgid));
                    }
                }
                Err(_) => self.wait_for(machine, tid, since, now, i + IN_FLIGHT >= tids.len()),
            }
        }
    }

    fn reap(&mut self, machine: &dyn Machine, members: &mut Members, id: CgroupId) {
        let processes: FxHashSet<Tid> = members.of_group(id).map(|task| task.tgid).collect();
        let mut whole: FxHashSet<Tid> = processes.iter().copied().filter(|tgid| has_as_many(machine, members, *tgid)).collect();
        // Somebody born since the look might have made up for one who has died.
        if !whole.is_empty() && (machine.last_pid() != self.last_pid || self.pending.iter().any(|(tid, _)| machine.affinity(*tid).is_ok()))
        {
            whole.clear();
        }
        for tgid in processes.difference(&whole).copied() {
            let dead: Vec<Tid> = members.of_process(tgid).filter(|task| !alive(machine, task)).map(|task| task.tid).collect();
            dead.into_iter().for_each(|tid| members.exited(tid));
            if let Ok(count) = machine.thread_count(tgid) {
                members.all_seen(tgid, count);
            }
        }
    }

    fn hold(&mut self, on: bool) {
        self.hold = on;
        if !on {
            self.pending.extend(self.held.drain(..).map(|(tid, _)| (tid, Instant::now())));
        }
    }

    fn look_again(&mut self, tgid: Tid) -> bool {
        let mine = self.held.extract_if(.., |(_, of)| *of == tgid).map(|(tid, _)| (tid, Instant::now()));
        let before = self.pending.len();
        self.pending.extend(mine);
        self.pending.len() > before
    }

    fn released(&mut self, machine: &dyn Machine, task: &Task) {
        let last_pid = self.last_pid.map(|pid| (pid - IN_FLIGHT as Tid).max(1));
        let mut tids = self.released.remove(&task.tgid).map(|before| before.tids).unwrap_or_default();
        tids.insert(task.tid);
        self.released.insert(task.tgid, Released { task: task.clone(), tids, since: machine.now(), last_pid });
    }

    fn maker_state(&self, machine: &dyn Machine, tgid: Tid, tid: Tid) -> Option<TaskState> {
        let released = self.released.get(&tgid)?;
        if released.tids.contains(&tid) {
            return None;
        }
        // Who was there long before is no child of that time.
        let young = released.last_pid.is_none_or(|then| is_older(machine, then, tid));
        young.then(|| released.task.state.clone())
    }

    fn births_since(&self, machine: &dyn Machine) -> bool {
        let now = machine.last_pid();
        now.is_none() || now != self.last_pid || !self.pending.is_empty()
    }

    fn live_member(&mut self, machine: &dyn Machine, members: &mut Members, id: CgroupId) -> Option<Task> {
        let mut dead = Vec::new();
        let is_alive = |task: &&Task| {
            alive(machine, task) || {
                dead.push(task.tid);
                false
            }
        };
        let found = members.of_group(id).find(is_alive).cloned();
        dead.into_iter().for_each(|tid| members.exited(tid));
        found
    }
}
