//! Tracker layer: the back end that needs no privilege and no event source.
//!
//! Pids are handed out in ascending order, so the tasks born since the last look have the pids between the
//! last pid then and the last pid now: only these are looked up, and if there are none, one small read tells.
//! A pid that is taken but shows no task belongs to one that is dead already or whose fork is still under way;
//! it is looked up again for a while.
//!
//! What it cannot know: the creator of a child whose parent has exited before anybody looked (such a child is
//! taken for a child of whoever adopted it); which thread of a process that is spread over groups has created
//! a thread or child (the affinity that it inherited decides, else the main thread); that another thread
//! than the main one has executed a program; a task made with a pid of the caller's choice (clone3's `set_tid`).

use super::{Fork, Tracker};
use crate::cgroup::{CgroupId, Members, Task};
use crate::sys::{Machine, TaskInfo, Tid};
use rustc_hash::FxHashSet;
use std::time::{Duration, Instant};

/// How long a fork may take between taking a pid and being visible.
const FORK_TIME: Duration = Duration::from_millis(200);

/// See the module.
#[derive(Debug, Default)]
pub struct Scan {
    last_pid: Option<Tid>,
    /// Pids taken by a fork that may be under way, and until when to look for them.
    pending: Vec<(Tid, Instant)>,
    /// All tasks at the last look, where the machine does not tell its last pid.
    seen: FxHashSet<Tid>,
}

impl Scan {
    /// The pids that have been taken since the last look.
    fn taken(&mut self, machine: &dyn Machine) -> Vec<Tid> {
        let Some(now) = machine.last_pid() else {
            let all = machine.processes().into_iter().flat_map(|tgid| machine.threads(tgid).unwrap_or_default());
            let all: FxHashSet<Tid> = all.collect();
            let new = all.difference(&self.seen).copied().collect();
            self.seen = all;
            return new;
        };
        match self.last_pid.replace(now) {
            Some(then) if then <= now => (then + 1..=now).collect(),
            Some(then) => (then + 1..machine.pid_max()).chain(1..=now).collect(),
            None => Vec::new(),
        }
    }

    /// Forgets all history: what exists now is where `members` says.
    fn start(&mut self, machine: &dyn Machine) {
        self.pending.clear();
        self.taken(machine);
    }
}

/// The thread of process `tgid` that has created `child`, if it is in a group.
fn creator<'m>(machine: &dyn Machine, members: &'m Members, tgid: Tid, child: Tid) -> Option<&'m Task> {
    let first = members.of_process(tgid).next()?;
    // A child has its creator's affinity until it asks for another.
    let Ok(mask) = machine.affinity(child) else { return Some(first) };
    let alike = |tid| machine.affinity(tid).as_ref() == Ok(&mask);
    let leader = members.get(tgid);
    let leader_alive = leader.is_some() || machine.task(tgid).is_ok_and(|info| !info.zombie);
    if leader_alive && alike(tgid) {
        return leader;
    }
    let thread = members.of_process(tgid).find(|task| alike(task.tid));
    if leader_alive { thread.or(leader) } else { thread.or(Some(first)) }
}

/// Puts a task that has just been found into its creator's group.
fn born(machine: &dyn Machine, members: &mut Members, fork: &dyn Fork, tid: Tid, info: &TaskInfo) {
    match members.get(tid) {
        Some(known) if known.start_time == info.start_time => return,
        // The pid of a dead member, used again.
        Some(_) => members.remove(tid),
        None => {}
    }
    let parent = if info.tgid == tid { info.ppid } else { info.tgid };
    if let Some(creator) = creator(machine, members, parent, tid) {
        let state = fork.fork(creator.cgroup, tid, &creator.state);
        members.place(Task { tid, tgid: info.tgid, start_time: info.start_time, cgroup: creator.cgroup, state });
    }
}

/// Whether every known thread of a process is alive, by the number that the process has.
fn all_alive(machine: &dyn Machine, members: &Members, tgid: Tid) -> bool {
    let count = members.count_process(tgid);
    // The leader's death does not change the number.
    count > 1 && machine.thread_count(tgid) == Ok(count) && machine.task(tgid).is_ok_and(|info| !info.zombie)
}

/// Whether a member is alive, and still the same task.
fn alive(machine: &dyn Machine, task: &Task) -> bool {
    if task.tid == task.tgid {
        machine.task(task.tid).is_ok_and(|info| !info.zombie && info.start_time == task.start_time)
    } else {
        // A thread that is not the leader leaves no zombie, and a reused pid has been noticed by `sync`.
        machine.affinity(task.tid).is_ok()
    }
}

impl Tracker for Scan {
    fn sync(&mut self, machine: &dyn Machine, members: &mut Members, fork: &dyn Fork) {
        if members.is_empty() {
            self.start(machine);
            return;
        }
        let taken = self.taken(machine);
        if taken.is_empty() && self.pending.is_empty() {
            return;
        }
        let now = machine.now();
        let pending = std::mem::take(&mut self.pending);
        // The older ones first: a child's parent has a place before the child is looked up.
        for (tid, until) in pending.into_iter().chain(taken.into_iter().map(|tid| (tid, now + FORK_TIME))) {
            // Far cheaper than /proc for the many that are dead already.
            match machine.affinity(tid).and_then(|_| machine.task(tid)) {
                Ok(info) if info.zombie => members.remove(tid),
                Ok(info) => born(machine, members, fork, tid, &info),
                Err(_) if until > now => self.pending.push((tid, until)),
                Err(_) => {}
            }
        }
    }

    fn reap(&mut self, machine: &dyn Machine, members: &mut Members, id: CgroupId) {
        let processes: FxHashSet<Tid> = members.of_group(id).map(|task| task.tgid).collect();
        // A process whose known threads are all there needs no look at each of them.
        let whole: FxHashSet<Tid> = processes.into_iter().filter(|&tgid| all_alive(machine, members, tgid)).collect();
        let rest = members.of_group(id).filter(|task| !whole.contains(&task.tgid));
        let dead: Vec<Tid> = rest.filter(|task| !alive(machine, task)).map(|task| task.tid).collect();
        dead.into_iter().for_each(|tid| members.remove(tid));
    }

    fn births_since(&self, machine: &dyn Machine) -> bool {
        let now = machine.last_pid();
        now.is_none() || now != self.last_pid || !self.pending.is_empty()
    }

    fn live_member(&mut self, machine: &dyn Machine, members: &mut Members, id: CgroupId) -> Option<Task> {
        loop {
            let task = members.of_group(id).next()?.clone();
            if alive(machine, &task) {
                return Some(task);
            }
            members.remove(task.tid);
        }
    }
}
