//! A machine that exists only in memory: any process tree, any number of CPUs, time that passes when told to.

use cgfuse::bitmap::Bitmap;
use cgfuse::sys::{Caller, Creds, Errno, Machine, PidNs, TaskFlags, TaskInfo, Tid};
use cgfuse::tracker::events::{Event, Source};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// CAP_SYS_ADMIN and CAP_SYS_NICE and what else root has.
pub(crate) const ALL_CAPS: u64 = (1 << 41) - 1;

pub(crate) const INIT: Tid = 1;
pub(crate) const KTHREADD: Tid = 2;
/// A kernel thread that is bound to its CPU.
pub(crate) const MIGRATION: Tid = 3;
/// A kernel thread that is not.
pub(crate) const KDEVTMPFS: Tid = 4;

/// A thread.
#[derive(Clone, Debug)]
struct Thread {
    tgid: Tid,
    ppid: Tid,
    /// The thread of the parent that it is a child of.
    creator: Tid,
    zombie: bool,
    flags: TaskFlags,
    start_time: u64,
    /// All that it may use, CPUs that are offline included.
    mask: Bitmap,
    uid: u32,
    suid: u32,
    caps: u64,
    pid_ns: Option<PidNs>,
}

/// A fork under way: the affinity has been copied, a pid may have been taken, and nobody can see it yet.
#[derive(Debug)]
pub(crate) struct Birth {
    thread: Thread,
    is_thread: bool,
    /// The creating thread and its process.
    by: (Tid, Tid),
    pub(crate) tid: Option<Tid>,
}

/// What is about to happen or has happened when a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// A thread's affinity is about to be set.
    BeforeSet(Tid),
    /// A thread's affinity has been set.
    AfterSet(Tid),
    /// The threads of a process have been listed or counted.
    Listed(Tid),
}

type Hook = (At, Box<dyn FnOnce(&FakeMachine) + Send>);

struct State {
    cpus: usize,
    online: Bitmap,
    server_cpus: Bitmap,
    mems: Bitmap,
    threads: BTreeMap<Tid, Thread>,
    in_flight: BTreeSet<Tid>,
    last_pid: Tid,
    first_pid: Tid,
    pid_max: Tid,
    tells_last_pid: bool,
    tells_children: bool,
    global_root: bool,
    parallelism: usize,
    births: u64,
    time: Duration,
    refuses: BTreeMap<Tid, Errno>,
    set: Vec<(Tid, String)>,
    migrated: Vec<(Tid, String, String)>,
    released: Vec<(String, String)>,
    refuses_migrate: Option<Errno>,
    /// What has happened to tasks since a source of events last told, if there is one.
    told: Option<Vec<Event>>,
}

/// See the module.
pub(crate) struct FakeMachine {
    state: Mutex<State>,
    hooks: Mutex<Vec<Hook>>,
    epoch: Instant,
}

/// Pids of the tasks in a pid namespace are lower by this.
pub(crate) const NS_OFFSET: Tid = 100;

impl FakeMachine {
    /// A machine with nothing but init and three kernel threads.
    pub(crate) fn new(cpus: usize, nodes: usize) -> Self {
        let all = Bitmap::first(cpus);
        let kernel = TaskFlags::KTHREAD;
        let threads =
            [(INIT, TaskFlags::empty()), (KTHREADD, kernel), (MIGRATION, kernel | TaskFlags::NO_SETAFFINITY), (KDEVTMPFS, kernel)];
        let thread = |(tid, flags): (Tid, TaskFlags)| {
            let ppid = if flags.is_empty() || tid == KTHREADD { 0 } else { KTHREADD };
            let start_time = tid as u64;
            let mask = all.clone();
            (
                tid,
                Thread {
                    tgid: tid,
                    ppid,
                    creator: ppid,
                    zombie: false,
                    flags,
                    start_time,
                    mask,
                    uid: 0,
                    suid: 0,
                    caps: ALL_CAPS,
                    pid_ns: None,
                },
            )
        };
        let state = State {
            cpus,
            online: all.clone(),
            server_cpus: all.clone(),
            mems: Bitmap::first(nodes),
            threads: threads.into_iter().map(thread).collect(),
            in_flight: BTreeSet::new(),
            last_pid: 299,
            first_pid: 300,
            pid_max: 32768,
            tells_last_pid: true,
            tells_children: true,
            global_root: true,
            parallelism: 1,
            births: 100,
            time: Duration::ZERO,
            refuses: BTreeMap::new(),
            set: Vec::new(),
            migrated: Vec::new(),
            released: Vec::new(),
            refuses_migrate: None,
            told: None,
        };
        Self { state: Mutex::new(state), hooks: Mutex::default(), epoch: Instant::now() }
    }

    /// Pids wrap around here.
    pub(crate) fn with_pid_max(self, pid_max: Tid) -> Self {
        self.state().pid_max = pid_max;
        self
    }

    /// The machine does not tell its last pid.
    pub(crate) fn without_last_pid(self) -> Self {
        self.state().tells_last_pid = false;
        self
    }

    /// The machine does not tell the children of a thread.
    pub(crate) fn without_children(self) -> Self {
        self.state().tells_children = false;
        self
    }

    /// The server may use only these CPUs.
    pub(crate) fn with_server_cpus(self, cpus: &[usize]) -> Self {
        self.state().server_cpus = cpus.iter().copied().collect();
        self
    }

    /// The server works with that many threads.
    pub(crate) fn with_parallelism(self, n: usize) -> Self {
        self.state().parallelism = n;
        self
    }

    /// uid 0 is that of a user namespace.
    pub(crate) fn in_user_namespace(self) -> Self {
        self.state().global_root = false;
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn thread_state<T>(&self, tid: Tid, f: impl FnOnce(&Thread) -> T) -> Result<T, Errno> {
        self.state().threads.get(&tid).map(f).ok_or(Errno::ESRCH)
    }

    /// Runs `f` once, the next time that this happens.
    pub(crate) fn at(&self, at: At, f: impl FnOnce(&FakeMachine) + Send + 'static) {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).push((at, Box::new(f)));
    }

    /// Forgets what has not happened.
    pub(crate) fn clear_hooks(&self) {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// How many hooks have not run.
    pub(crate) fn hooks_left(&self) -> usize {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn reach(&self, at: At) {
        let hook = {
            let mut hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
            hooks.iter().position(|(when, _)| *when == at).map(|i| hooks.remove(i))
        };
        if let Some((_, f)) = hook {
            f(self);
        }
    }

    /// Begins a fork or the creation of a thread: what the child has is copied now.
    pub(crate) fn begin(&self, creator: Tid, is_thread: bool) -> Birth {
        let state = self.state();
        let mut thread = state.threads[&creator].clone();
        assert!(!thread.zombie, "the dead do not fork");
        let by = (creator, thread.tgid);
        if !is_thread {
            (thread.ppid, thread.creator) = (thread.tgid, creator);
        }
        Birth { thread, is_thread, by, tid: None }
    }

    /// The child gets a pid.
    pub(crate) fn allocate(&self, birth: &mut Birth) -> Tid {
        let mut state = self.state();
        let mut tid = state.last_pid;
        loop {
            tid = if tid + 1 >= state.pid_max { state.first_pid } else { tid + 1 };
            assert_ne!(tid, state.last_pid, "no pid is free");
            if !state.threads.contains_key(&tid) && !state.in_flight.contains(&tid) {
                break;
            }
        }
        state.last_pid = tid;
        state.in_flight.insert(tid);
        birth.tid = Some(tid);
        tid
    }

    /// The child is there.
    pub(crate) fn appear(&self, mut birth: Birth) -> Tid {
        let tid = match birth.tid {
            Some(tid) => tid,
            None => self.allocate(&mut birth),
        };
        let mut state = self.state();
        state.in_flight.remove(&tid);
        state.births += 1;
        let start_time = state.births;
        let tgid = if birth.is_thread { birth.thread.tgid } else { tid };
        state.tell(Event::Fork { creator: birth.by.0, exact: true, parent: birth.by.1, child: tid, tgid });
        state.threads.insert(tid, Thread { tgid, start_time, zombie: false, ..birth.thread });
        tid
    }

    /// fork(2).
    pub(crate) fn fork(&self, creator: Tid) -> Tid {
        self.appear(self.begin(creator, false))
    }

    /// A new thread of the creator's process.
    pub(crate) fn thread(&self, creator: Tid) -> Tid {
        self.appear(self.begin(creator, true))
    }

    /// A process of its own, a child of init.
    pub(crate) fn process(&self, uid: u32) -> Tid {
        let tid = self.fork(INIT);
        self.setuid(tid, uid);
        tid
    }

    /// fork(2) with CLONE_PARENT.
    pub(crate) fn fork_sibling(&self, creator: Tid) -> Tid {
        let mut birth = self.begin(creator, false);
        let parent = self.state().threads[&creator].clone();
        (birth.thread.ppid, birth.thread.creator) = (parent.ppid, parent.creator);
        self.appear(birth)
    }

    /// clone3(2) with a pid of the caller's choice.
    pub(crate) fn fork_as(&self, creator: Tid, tid: Tid) {
        let mut birth = self.begin(creator, false);
        birth.tid = Some(tid);
        self.appear(birth);
    }

    /// A fork that takes a pid and fails, or whose child is gone before anybody looks.
    pub(crate) fn burn_pids(&self, n: usize) {
        for _ in 0..n {
            let mut birth = self.begin(INIT, false);
            let tid = self.allocate(&mut birth);
            self.state().in_flight.remove(&tid);
        }
    }

    /// A thread ends; its children go to another thread of its process. The last one of a process leaves a zombie, and
    /// its children go to init.
    pub(crate) fn exit(&self, tid: Tid) {
        let mut state = self.state();
        let tgid = state.threads[&tid].tgid;
        state.tell(Event::Exit { tid, doubtful: false });
        if tid == tgid {
            state.threads.entry(tid).and_modify(|thread| thread.zombie = true);
        } else {
            state.threads.remove(&tid);
        }
        let other = state.threads.iter().find(|(_, thread)| thread.tgid == tgid && !thread.zombie).map(|(tid, _)| *tid);
        for child in state.threads.values_mut().filter(|thread| thread.ppid == tgid && thread.creator == tid) {
            child.creator = other.unwrap_or(INIT);
        }
        if other.is_none() {
            state.threads.values_mut().filter(|thread| thread.ppid == tgid).for_each(|thread| thread.ppid = INIT);
        }
    }

    /// All threads of a process end.
    pub(crate) fn exit_group(&self, tgid: Tid) {
        for tid in self.threads(tgid).unwrap_or_default() {
            if self.thread_state(tid, |thread| !thread.zombie) == Ok(true) {
                self.exit(tid);
            }
        }
    }

    /// waitpid(2) for a process that has ended.
    pub(crate) fn reap(&self, tgid: Tid) {
        let mut state = self.state();
        assert!(!state.threads.values().any(|thread| thread.tgid == tgid && !thread.zombie), "{tgid} lives");
        state.threads.remove(&tgid);
    }

    /// A process ends and is waited for.
    pub(crate) fn kill(&self, tgid: Tid) {
        self.exit_group(tgid);
        self.reap(tgid);
    }

    /// A thread executes a program: the others end, and it takes the process's pid.
    pub(crate) fn exec(&self, tid: Tid) {
        let mut state = self.state();
        let own = state.threads[&tid].clone();
        let start_time = state.threads[&own.tgid].start_time;
        let others = state.threads.iter().filter(|(other, thread)| thread.tgid == own.tgid && **other != tid && !thread.zombie);
        let others: Vec<Tid> = others.map(|(other, _)| *other).collect();
        others.into_iter().for_each(|tid| state.tell(Event::Exit { tid, doubtful: false }));
        state.tell(Event::Exec { tgid: own.tgid });
        state.threads.retain(|_, thread| thread.tgid != own.tgid);
        state.threads.values_mut().filter(|thread| thread.ppid == own.tgid).for_each(|thread| thread.creator = own.tgid);
        state.threads.insert(own.tgid, Thread { start_time, ..own });
    }

    /// Gives a process another owner, as a program with set-uid root does when it drops its rights.
    pub(crate) fn setuid(&self, tgid: Tid, uid: u32) {
        let caps = if uid == 0 { ALL_CAPS } else { 0 };
        for thread in self.state().threads.values_mut().filter(|thread| thread.tgid == tgid) {
            (thread.uid, thread.suid, thread.caps) = (uid, uid, caps);
        }
    }

    /// Sets the saved uid alone.
    pub(crate) fn set_suid(&self, tgid: Tid, suid: u32) {
        self.state().threads.values_mut().filter(|thread| thread.tgid == tgid).for_each(|thread| thread.suid = suid);
    }

    /// Sets the capabilities alone.
    pub(crate) fn set_caps(&self, tgid: Tid, caps: u64) {
        self.state().threads.values_mut().filter(|thread| thread.tgid == tgid).for_each(|thread| thread.caps = caps);
    }

    /// Puts a process into a pid namespace of its own.
    pub(crate) fn set_pid_ns(&self, tgid: Tid, ns: &PidNs) {
        self.state().threads.values_mut().filter(|thread| thread.tgid == tgid).for_each(|thread| thread.pid_ns = Some(ns.clone()));
    }

    /// sched_setaffinity(2) by somebody who is not the server.
    pub(crate) fn sched_setaffinity(&self, tid: Tid, cpus: impl IntoIterator<Item = usize>) -> Result<(), Errno> {
        self.state().set_mask(tid, &cpus.into_iter().collect())
    }

    /// From now on, setting this thread's affinity fails.
    pub(crate) fn refuse(&self, tid: Tid, errno: Errno) {
        self.state().refuses.insert(tid, errno);
    }

    /// Setting this thread's affinity works again.
    pub(crate) fn allow(&self, tid: Tid) {
        self.state().refuses.remove(&tid);
    }

    /// From now on, migrate_pages(2) fails.
    pub(crate) fn refuse_migrate(&self, errno: Errno) {
        self.state().refuses_migrate = Some(errno);
    }

    /// A CPU goes offline or comes back. A thread without a CPU left is let run anywhere (`select_fallback_rq`).
    pub(crate) fn set_online(&self, cpu: usize, online: bool) {
        let mut state = self.state();
        state.online = state.online.iter().filter(|&id| id != cpu).chain(online.then_some(cpu)).collect();
        let (all, online) = (Bitmap::first(state.cpus), state.online.clone());
        state.threads.values_mut().filter(|thread| !thread.mask.intersects(&online)).for_each(|thread| thread.mask = all.clone());
    }

    /// A node's memory goes or comes back.
    pub(crate) fn set_node(&self, node: usize, online: bool) {
        let mut state = self.state();
        state.mems = state.mems.iter().filter(|&id| id != node).chain(online.then_some(node)).collect();
    }

    /// Lets time pass.
    pub(crate) fn pass(&self, time: Duration) {
        self.state().time += time;
    }

    /// What a thread may use, CPUs that are offline included.
    pub(crate) fn mask(&self, tid: Tid) -> Bitmap {
        self.thread_state(tid, |thread| thread.mask.clone()).unwrap_or_default()
    }

    /// What the server has set since the last call.
    pub(crate) fn take_set(&self) -> Vec<(Tid, String)> {
        std::mem::take(&mut self.state().set)
    }

    /// The calls of migrate_pages(2) since the last call.
    pub(crate) fn take_migrated(&self) -> Vec<(Tid, String, String)> {
        std::mem::take(&mut self.state().migrated)
    }

    /// The release agents started since the last call, and for which group.
    pub(crate) fn take_released(&self) -> Vec<(String, String)> {
        std::mem::take(&mut self.state().released)
    }
}

impl State {
    fn tell(&mut self, event: Event) {
        if let Some(told) = &mut self.told {
            told.push(event);
        }
    }

    fn set_mask(&mut self, tid: Tid, cpus: &Bitmap) -> Result<(), Errno> {
        let (all, online) = (Bitmap::first(self.cpus), self.online.clone());
        let thread = self.threads.get_mut(&tid).ok_or(Errno::ESRCH)?;
        if thread.flags.contains(TaskFlags::NO_SETAFFINITY) || !cpus.intersects(&online) {
            return Err(Errno::EINVAL);
        }
        thread.mask = cpus.and(&all);
        Ok(())
    }
}

/// The machine tells of every birth and death.
pub(crate) struct Told(pub(crate) Arc<FakeMachine>);

impl Source for Told {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn start(&mut self) -> io::Result<()> {
        self.0.state().told = Some(Vec::new());
        Ok(())
    }

    fn stop(&mut self) {
        self.0.state().told = None;
    }

    fn drain(&mut self, events: &mut Vec<Event>) -> bool {
        events.extend(self.0.state().told.iter_mut().flat_map(std::mem::take));
        false
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Machine for FakeMachine {
    fn nr_cpu_ids(&self) -> usize {
        self.state().cpus
    }

    fn config_nr_cpus(&self) -> usize {
        self.state().cpus.max(256)
    }

    fn nr_node_ids(&self) -> usize {
        1024
    }

    fn online_cpus(&self) -> Bitmap {
        self.state().online.clone()
    }

    fn own_cpus(&self) -> Bitmap {
        self.state().server_cpus.clone()
    }

    fn allowed_mems(&self) -> Bitmap {
        self.state().mems.clone()
    }

    fn relax_domain_level_max(&self) -> i64 {
        1
    }

    fn task(&self, tid: Tid) -> Result<TaskInfo, Errno> {
        self.thread_state(tid, |thread| TaskInfo {
            tgid: thread.tgid,
            ppid: thread.ppid,
            zombie: thread.zombie,
            flags: thread.flags,
            start_time: thread.start_time,
        })
    }

    fn creds(&self, tid: Tid) -> Result<Creds, Errno> {
        let creds = |thread: &Thread| {
            let Thread { uid, suid, caps, .. } = *thread;
            Creds { uid, suid, cap_permitted: caps, cap_effective: caps }
        };
        self.thread_state(tid, creds)
    }

    fn is_thread_of(&self, tgid: Tid, tid: Tid) -> bool {
        self.thread_state(tid, |thread| thread.tgid) == Ok(tgid)
    }

    fn threads(&self, tgid: Tid) -> Result<Vec<Tid>, Errno> {
        // As below /proc, any thread's id will do.
        let tgid = self.thread_state(tgid, |thread| thread.tgid)?;
        let threads = self.state().threads.iter().filter(|(_, thread)| thread.tgid == tgid).map(|(tid, _)| *tid).collect();
        self.reach(At::Listed(tgid));
        Ok(threads)
    }

    fn thread_count(&self, tgid: Tid) -> Result<usize, Errno> {
        self.threads(tgid).map(|threads| threads.len())
    }

    fn children(&self, tid: Tid) -> Result<Vec<Tid>, Errno> {
        let state = self.state();
        if !state.tells_children {
            return Err(Errno::ENOENT);
        }
        let child = |(child, thread): &(&Tid, &Thread)| thread.tgid == **child && thread.creator == tid;
        Ok(state.threads.iter().filter(child).map(|(child, _)| *child).collect())
    }

    fn is_taken(&self, pid: Tid) -> bool {
        let state = self.state();
        state.threads.contains_key(&pid) || state.in_flight.contains(&pid)
    }

    fn processes(&self) -> Vec<Tid> {
        self.state().threads.iter().filter(|(tid, thread)| thread.tgid == **tid).map(|(tid, _)| *tid).collect()
    }

    fn last_pid(&self) -> Option<Tid> {
        let state = self.state();
        state.tells_last_pid.then_some(state.last_pid)
    }

    fn pid_max(&self) -> Tid {
        self.state().pid_max
    }

    fn affinity(&self, tid: Tid) -> Result<Bitmap, Errno> {
        let online = self.online_cpus();
        self.thread_state(tid, |thread| thread.mask.and(&online))
    }

    fn set_affinity(&self, tid: Tid, cpus: &Bitmap) -> Result<(), Errno> {
        self.reach(At::BeforeSet(tid));
        {
            let mut state = self.state();
            if !state.threads.contains_key(&tid) {
                return Err(Errno::ESRCH);
            }
            if let Some(errno) = state.refuses.get(&tid) {
                return Err(*errno);
            }
            state.set_mask(tid, cpus)?;
            state.set.push((tid, cpus.to_string()));
        }
        self.reach(At::AfterSet(tid));
        Ok(())
    }

    fn migrate_pages(&self, tgid: Tid, from: &Bitmap, to: &Bitmap) -> Result<(), Errno> {
        let mut state = self.state();
        state.migrated.push((tgid, from.to_string(), to.to_string()));
        state.refuses_migrate.map_or(Ok(()), Err)
    }

    fn parallelism(&self) -> usize {
        self.state().parallelism
    }

    fn caller(&self, tid: Tid) -> Result<Caller, Errno> {
        Ok(Caller { creds: self.creds(tid)?, pid_ns: self.thread_state(tid, |thread| thread.pid_ns.clone())? })
    }

    fn tid_from(&self, ns: &PidNs, nr: Tid) -> Result<Tid, Errno> {
        let tid = nr + NS_OFFSET;
        self.tid_in(ns, tid).map(|_| tid)
    }

    fn tid_in(&self, ns: &PidNs, tid: Tid) -> Result<Tid, Errno> {
        let same = |thread: &Thread| thread.pid_ns.as_ref().is_some_and(|own| std::sync::Arc::ptr_eq(&own.0, &ns.0));
        if self.thread_state(tid, same)? { Ok(tid - NS_OFFSET) } else { Err(Errno::ESRCH) }
    }

    fn root_is_global(&self) -> bool {
        self.state().global_root
    }

    fn run_release_agent(&self, agent: &OsStr, path: &OsStr) {
        self.state().released.push((agent.to_string_lossy().into_owned(), path.to_string_lossy().into_owned()));
    }

    fn now(&self) -> Instant {
        self.epoch + self.state().time
    }
}
