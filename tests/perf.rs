//! What perf task events tell, compared to what real processes have done: as root of the whole machine, as an ordinary user of single
//! processes. `CGFUSE_STRESS=FACTOR` makes the storms longer or shorter.

// System calls that std lacks.
#![allow(unsafe_code)]

mod common;

use cgfuse::sys::linux::Linux;
use cgfuse::sys::{Machine, TaskFlags, TaskInfo, Tid};
use cgfuse::tracker::Tracker;
use cgfuse::tracker::events::{Event, EventLog, Source};
use cgfuse::tracker::perf::{Members, SystemWide};
use cgfuse::tracker::table::{ROOT_SET, Slot};
use common::{CpusExclusive, TempDir, as_user, compiled, is_root, raw, skipped, spawn, state};
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Barrier, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Nobody in particular; root's tests are that user where one is needed.
const USER: u32 = 65534;

/// The user of the families. To be asked first by a thread that is the test's user still: what starts processes must be so, too.
fn user() -> u32 {
    static USER_OF_FAMILIES: OnceLock<u32> = OnceLock::new();
    *USER_OF_FAMILIES.get_or_init(|| {
        binary();
        spawn(Command::new("true")).and_then(|mut child| child.wait()).expect("true");
        if is_root() { USER } else { 0 }
    })
}

fn rounds(full: usize) -> usize {
    let factor = std::env::var("CGFUSE_STRESS").ok().and_then(|text| text.parse().ok()).unwrap_or(0.1);
    ((full as f64 * factor) as usize).max(1)
}

/// The figures of a test, past the harness' capture.
fn report(test: &str, figures: &str) {
    let _ = writeln!(std::io::stderr(), "perf: {test}: {figures}");
}

/// CPUs must not come and go.
fn hold_cpus() -> Option<Flock<File>> {
    Flock::lock(File::open("/tmp/cgfuse-tests-cpus.lock").ok()?, FlockArg::LockShared).ok()
}

/// family.c, compiled once for all runs.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| compiled("tests/perf/family.c"))
}

/// Creator, child, the child's process.
type Birth = (Tid, Tid, Tid);

/// A process that founds families by order; see family.c.
struct Family {
    process: Child,
    orders: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl Family {
    fn new(uid: u32) -> Family {
        let mut command = Command::new(binary());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        if uid != 0 {
            as_user(&mut command, uid);
        }
        let mut process = spawn(command).expect("it starts");
        let orders = process.stdin.take();
        let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let (send, answers) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| send.send(line)));
        Family { process, orders, answers }
    }

    fn pid(&self) -> Tid {
        self.process.id() as Tid
    }

    fn send(&mut self, order: &str) {
        writeln!(self.orders.as_ref().expect("piped"), "{order}").expect("it reads");
    }

    /// The answer to an order; what is to be done meanwhile.
    fn wait(&mut self, mut meanwhile: impl FnMut()) -> (Vec<Birth>, Option<Tid>) {
        let (mut births, mut alive) = (Vec::new(), None);
        loop {
            let line = match self.answers.try_recv() {
                Ok(line) => line,
                Err(TryRecvError::Empty) => {
                    meanwhile();
                    continue;
                }
                Err(TryRecvError::Disconnected) => panic!("the family is dead"),
            };
            if line == "end" {
                return (births, alive);
            }
            let ids: Vec<Tid> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
            match ids[..] {
                [creator, child, tgid] => births.push((creator, child, tgid)),
                [pid] => alive = Some(pid),
                _ => panic!("{line}"),
            }
        }
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        // It ends at the end of its orders; the thread may not be allowed to kill it.
        self.orders = None;
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Follows one family by what a source tells.
struct Replay {
    source: Box<dyn Source>,
    machine: Linux,
    alive: BTreeMap<Tid, Tid>,
    births: BTreeMap<Birth, usize>,
    doubtful: Vec<Tid>,
    events: usize,
    losses: usize,
    time: Duration,
}

impl Replay {
    fn new(source: Box<dyn Source>, family: &Family) -> Replay {
        let alive = BTreeMap::from([(family.pid(), family.pid())]);
        let machine = Linux::new().expect("a machine");
        let mut replay =
            Replay { source, machine, alive, births: BTreeMap::new(), doubtful: Vec::new(), events: 0, losses: 0, time: Duration::ZERO };
        replay.source.start().expect("it starts");
        replay.source.listen_to(&replay.machine, family.pid());
        replay
    }

    /// Waits until it is time, but not long, and takes in what has happened.
    fn wait(&mut self) {
        match self.source.fd() {
            Some(fd) => {
                let _ = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(2_u8));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
        self.drain();
    }

    fn drain(&mut self) {
        let mut events = Vec::new();
        let begin = Instant::now();
        self.losses += usize::from(self.source.drain(&mut events));
        self.time += begin.elapsed();
        self.events += events.len();
        for event in events {
            match event {
                Event::Fork { creator, exact, parent, child, tgid } => {
                    if let Some(process) = self.alive.get(&creator).copied() {
                        assert!(exact && process == parent);
                        assert_eq!(self.alive.insert(child, tgid), None, "{event:?}");
                        *self.births.entry((creator, child, tgid)).or_default() += 1;
                    }
                }
                Event::Exit { tid, doubtful } => {
                    if doubtful && self.alive.contains_key(&tid) {
                        self.doubtful.push(tid);
                        let lives = |info: TaskInfo| !info.zombie && !info.flags.contains(TaskFlags::EXITING);
                        if self.machine.task(tid).is_ok_and(lives) {
                            self.source.unheard(tid);
                            continue;
                        }
                    }
                    self.alive.remove(&tid);
                }
                Event::Exec { tgid } => {
                    let threads: Vec<Tid> = self.alive.iter().filter(|(_, process)| **process == tgid).map(|(tid, _)| *tid).collect();
                    if let [thread] = threads[..] {
                        self.alive.remove(&thread);
                        self.alive.insert(tgid, tgid);
                    }
                }
            }
        }
    }

    /// Lets the family do something. Everything must have been told when it says so, but for the exits of its last threads.
    fn order(&mut self, family: &mut Family, order: &str) -> Option<Tid> {
        family.send(order);
        let (births, alive) = family.wait(|| self.wait());
        self.drain();
        for birth in births {
            let nr = self.births.get_mut(&birth).filter(|nr| **nr > 0).unwrap_or_else(|| panic!("{order}: {birth:?} was not told"));
            *nr -= 1;
        }
        alive
    }

    /// Only these are left.
    fn ends_with(&mut self, tids: &[Tid]) {
        for _ in 0..1_000 {
            if self.alive.keys().eq(tids) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
            self.drain();
        }
        let left: Vec<Tid> = self.alive.keys().copied().collect();
        assert_eq!(left, tids);
    }

    /// Births that have not been confirmed.
    fn others(&self) -> BTreeSet<Birth> {
        self.births.iter().filter(|(_, nr)| **nr > 0).map(|(birth, _)| *birth).collect()
    }

    fn figures(&self) -> String {
        let each = self.time.as_nanos() / self.events.max(1) as u128;
        format!("{} events, {} losses, {} ns to drain one", self.events, self.losses, each)
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.source.stop();
    }
}

/// As root with the whole machine, and as an ordinary user with single processes.
fn with_each(test: &str, what: impl Fn(&str, Box<dyn Source>, &mut Family) + Sync) {
    let _cpus = hold_cpus();
    system_wide(test, |source| what(&format!("{test}, whole machine"), Box::new(source), &mut Family::new(user())));
    members(test, |source| what(&format!("{test}, members"), Box::new(source), &mut Family::new(user())));
}

fn system_wide(test: &str, what: impl FnOnce(SystemWide)) {
    let mut source = SystemWide::new().expect("epoll");
    match source.start() {
        Ok(()) => {
            source.stop();
            what(source);
        }
        Err(error) => skipped(test, &error.to_string()),
    }
}

fn members(test: &str, what: impl Fn(Members) + Sync) {
    raw::in_thread(user(), 0o022, || {
        let mut source = Members::default();
        match source.start() {
            Ok(()) => {
                source.stop();
                what(source);
            }
            Err(error) => skipped(test, &error.to_string()),
        }
    });
}

#[test]
fn a_storm_of_forks_on_all_cpus() {
    with_each("storm", |test, source, family| {
        let mut replay = Replay::new(source, family);
        let begin = Instant::now();
        let n = rounds(15_750);
        replay.order(family, &format!("storm {n}"));
        assert_eq!(replay.others(), BTreeSet::new());
        replay.ends_with(&[family.pid()]);
        assert_eq!(replay.losses, 0);
        report(test, &format!("{} forks and as many threads, {}, {:?}", 4 * n, replay.figures(), begin.elapsed()));
    });
}

/// The table of whoever is told follows, for all members, through storms and programs.
fn table_follows<S: Source>(test: &str, source: S) {
    const SET: u32 = 5;
    let (machine, mut family) = (Linux::new().expect("a machine"), Family::new(user()));
    let pid = family.pid();
    let mut log = EventLog::new(source, machine.pid_max()).expect("memory");
    log.activate(&machine, true).expect("it starts");
    log.know(&machine, pid);
    assert_eq!(log.table().replace(pid, Slot::new(pid, ROOT_SET), Slot::new(pid, SET)), Ok(false));
    let mut most = 0;
    for order in [format!("storm {}", rounds(3_000)), format!("exec {}", binary().display()), "kinds".into()] {
        family.send(&order);
        let (births, _) = family.wait(|| {
            log.sync(&machine);
            most = most.max(log.table().count(SET));
        });
        for (_, child, _) in births.iter().filter(|(_, child, _)| state(*child, *child) == Some('Z')) {
            waitpid(Pid::from_raw(*child), None).expect("our child");
        }
        // A thread's exit may be told a moment after it has been joined.
        common::wait_until("nobody else is left", || {
            log.sync(&machine);
            log.table().count(SET) == 1
        });
        assert_eq!(log.table().get(pid), Some(Slot::new(pid, SET)), "{order}");
    }
    let stats = log.stats();
    assert!(stats.lost == 0 && most > 3);
    report(test, &format!("{} events, {} creators guessed, up to {most} members at once", stats.events, stats.guessed));
    log.activate(&machine, false).expect("it stops");
}

#[test]
fn the_table_follows() {
    let _cpus = hold_cpus();
    system_wide("table", |source| table_follows("table, whole machine", source));
    members("table", |source| table_follows("table, members", source));
}

#[test]
fn every_kind_of_birth_names_the_exact_creator() {
    with_each("kinds", |_, source, family| {
        let mut replay = Replay::new(source, family);
        family.send("kinds");
        let (births, _) = family.wait(|| replay.wait());
        replay.drain();
        let told: BTreeSet<Birth> = replay.births.keys().copied().collect();
        assert_eq!(told, births.iter().copied().collect());
        // The child made with CLONE_PARENT is ours to reap.
        for (_, child, _) in births.iter().filter(|(_, child, _)| state(*child, *child) == Some('Z')) {
            waitpid(Pid::from_raw(*child), None).expect("our child");
        }
        replay.ends_with(&[family.pid()]);
        assert_eq!(replay.losses, 0);
    });
}

#[test]
fn a_program_executed_by_another_thread_than_the_main_one() {
    with_each("exec", |_, source, family| {
        let mut replay = Replay::new(source, family);
        for _ in 0..20 {
            replay.births.clear();
            replay.order(family, &format!("exec {}", binary().display()));
            // The program itself has forked once, as the main thread.
            let others = replay.others();
            assert!(others.len() == 1 && others.iter().all(|(creator, child, tgid)| creator != child && child == tgid), "{others:?}");
        }
        replay.ends_with(&[family.pid()]);
        assert_eq!(replay.losses, 0);
    });
}

#[test]
fn a_process_lives_on_after_a_set_user_id_program_although_an_exit_is_told() {
    if !is_root() {
        return skipped("set-user-ID", "needs root to make such a program");
    }
    let temp = TempDir::new();
    let program = temp.path().join("family");
    fs::copy(binary(), &program).expect("a copy");
    fs::set_permissions(&program, Permissions::from_mode(0o4755)).expect("chmod");
    with_each("set-user-ID", |test, source, family| {
        let mut replay = Replay::new(source, family);
        let child = replay.order(family, &format!("setuid {}", program.display())).expect("alive");
        if replay.doubtful.is_empty() {
            return skipped(test, "the file system is mounted nosuid");
        }
        assert_eq!(replay.doubtful, [child]);
        assert!(replay.alive.contains_key(&child));
        let deaf = replay.source.is_deaf();
        assert_eq!(deaf, !replay.source.hears_all(), "only inherited events are gone");
        replay.order(family, "release");
        if deaf {
            // /proc must be read as long as it lives, and once more.
            assert!(replay.losses > 0);
            replay.drain();
            let losses = replay.losses;
            replay.drain();
            assert!(!replay.source.is_deaf() && replay.losses == losses);
        } else {
            assert_eq!(replay.others().len(), 1, "its own child");
            replay.ends_with(&[family.pid()]);
            assert_eq!(replay.losses, 0);
        }
    });
}

#[test]
fn who_may_not_listen_is_told_why() {
    if !is_root() {
        return skipped("refusal", "needs root to be others");
    }
    let level = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").expect("perf");
    if level.trim().parse::<i32>().expect("a number") < 1 {
        return skipped("refusal", "everybody may");
    }
    let error = raw::in_thread(USER, 0o022, || SystemWide::new().expect("epoll").start()).expect_err("EACCES");
    assert_eq!(error.to_string(), format!("perf: perf_event_paranoid is {}: Permission denied (os error 13)", level.trim()));
    // Somebody else's process: each look reports a loss while it lives.
    let family = Mutex::new(Some(Family::new(0)));
    members("refusal", |mut source| {
        let family = family.lock().expect("alone").take().expect("once");
        source.start().expect("it starts");
        source.listen_to(&Linux::new().expect("a machine"), family.pid());
        assert!(source.is_deaf() && source.drain(&mut Vec::new()) && source.drain(&mut Vec::new()));
        drop(family);
        assert!(source.drain(&mut Vec::new()) && !source.drain(&mut Vec::new()) && !source.is_deaf());
    });
}

#[test]
fn a_process_that_makes_and_ends_threads_incessantly_is_followed_or_a_loss_is_told() {
    let _cpus = hold_cpus();
    members("churn", |mut source| {
        let mut family = Family::new(user());
        let machine = Linux::new().expect("a machine");
        family.send("churn");
        family.wait(std::thread::yield_now);
        let (n, mut unstable, mut wrong, mut time) = (rounds(1_000), 0, 0, Duration::ZERO);
        for _ in 0..n {
            source.start().expect("it starts");
            let begin = Instant::now();
            source.listen_to(&machine, family.pid());
            time += begin.elapsed();
            let mut events = Vec::new();
            if source.drain(&mut events) {
                unstable += 1;
                source.stop();
                continue;
            }
            // Every creator must be heard from now on.
            let mut creators = BTreeSet::new();
            let end = Instant::now() + Duration::from_secs(1);
            while creators.len() < 4 && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(1));
                source.drain(&mut events);
                creators.extend(events.drain(..).filter_map(|event| match event {
                    Event::Fork { creator, parent, .. } if parent == family.pid() => Some(creator),
                    _ => None,
                }));
            }
            wrong += usize::from(creators.len() < 4);
            source.stop();
        }
        family.send("rest");
        family.wait(std::thread::yield_now);
        report(
            "churn",
            &format!("{n} attaches of {:?}, {unstable} told as losses, in {wrong} not all of 4 creators heard", time / n as u32),
        );
    });
}

/// What threads and children cost their creator while somebody listens, in microseconds each.
#[test]
fn what_listening_costs() {
    let _cpus = hold_cpus();
    let n = rounds(20_000);
    let run = |family: &mut Family, what: &str, meanwhile: &mut dyn FnMut()| {
        let begin = Instant::now();
        family.send(&format!("{what} {n}"));
        family.wait(|| {
            std::thread::sleep(Duration::from_millis(20));
            meanwhile();
        });
        begin.elapsed().as_micros() as f64 / n as f64
    };
    members("costs", |mut source| {
        let barrier = Barrier::new(101);
        let (start, listen, stop) = std::thread::scope(|scope| {
            (0..100).for_each(|_| drop(scope.spawn(|| barrier.wait())));
            let (machine, me) = (Linux::new().expect("a machine"), nix::unistd::getpid().as_raw());
            let mut times = Vec::new();
            let mut time = |what: &mut dyn FnMut(&mut Members)| {
                let begin = Instant::now();
                what(&mut source);
                times.push(begin.elapsed());
            };
            time(&mut |source| source.start().expect("it starts"));
            time(&mut |source| {
                source.listen_to(&machine, me);
            });
            time(&mut Members::stop);
            barrier.wait();
            (times[0], times[1], times[2])
        });
        report("costs, members", &format!("{start:?} to start, {listen:?} to listen to a process of 100 threads, {stop:?} to stop"));
        let mut family = Family::new(user());
        let mut pairs = Vec::new();
        for what in ["threads", "forks"] {
            pairs.push(format!("{what} unheard {:.1}", run(&mut family, what, &mut || ())));
            let mut replay = Replay::new(Box::new(Members::default()), &family);
            pairs.push(format!("followed {:.1} ({})", run(&mut family, what, &mut || replay.drain()), replay.figures()));
        }
        report("costs, members", &pairs.join(", "));
    });
    system_wide("costs", |mut source| {
        let mut family = Family::new(user());
        let mut pairs = Vec::new();
        let begin = Instant::now();
        source.start().expect("it starts");
        let (start, begin) = (begin.elapsed(), Instant::now());
        source.stop();
        report("costs, whole machine", &format!("{start:?} to start, {:?} to stop", begin.elapsed()));
        for what in ["threads", "forks"] {
            pairs.push(format!("{what} unheard {:.1}", run(&mut family, what, &mut || ())));
            let mut replay = Replay::new(Box::new(SystemWide::new().expect("epoll")), &family);
            pairs.push(format!("heard {:.1} ({})", run(&mut family, what, &mut || replay.drain()), replay.figures()));
        }
        report("costs, whole machine", &pairs.join(", "));
    });
}

#[test]
fn cpus_that_go_and_come_back_are_listened_to() {
    if !is_root() || !Path::new(Cpu1::ONLINE).exists() {
        return skipped("hotplug", "needs root and a second CPU that can be switched off");
    }
    let _alone = CpusExclusive::new();
    let (cpu1, answers) = Cpu1::new();
    let flip = |on: bool| {
        cpu1.0.send(on).expect("the thread lives");
        answers.recv().expect("it answers")
    };
    if !flip(false) {
        return skipped("hotplug", "the CPU cannot be switched off");
    }
    flip(true);
    system_wide("hotplug", |source| {
        let mut family = Family::new(USER);
        let mut replay = Replay::new(Box::new(source), &family);
        // Seen at each change, and only when it is back.
        for changes in [&[false][..], &[true], &[false, true]] {
            changes.iter().for_each(|on| assert!(flip(*on)));
            let losses = replay.losses;
            replay.source.cpus_changed();
            replay.order(&mut family, "storm 20");
            assert_eq!((replay.others(), replay.losses), (BTreeSet::new(), losses + 1));
            replay.ends_with(&[family.pid()]);
        }
    });
    // Members listen on CPUs that are offline, too.
    flip(false);
    let (answers, back) = (Mutex::new(answers), AtomicBool::new(false));
    members("hotplug", |source| {
        let mut family = Family::new(USER);
        let mut replay = Replay::new(Box::new(source), &family);
        cpu1.0.send(true).expect("the thread lives");
        back.store(answers.lock().expect("alone").recv().expect("it answers"), Ordering::SeqCst);
        replay.source.cpus_changed();
        replay.order(&mut family, "storm 20");
        assert_eq!((replay.others(), replay.losses), (BTreeSet::new(), 0));
        replay.ends_with(&[family.pid()]);
    });
    assert!(back.into_inner(), "skipped, or not switched on");
}

/// A thread, root however is asking, that switches a CPU off and on. On in the end.
struct Cpu1(Sender<bool>, Option<JoinHandle<()>>);

impl Cpu1 {
    const ONLINE: &str = "/sys/devices/system/cpu/cpu1/online";

    fn new() -> (Cpu1, Receiver<bool>) {
        let ((orders, queue), (send, answers)) = (channel(), channel());
        let thread = std::thread::spawn(move || {
            for on in queue {
                let _ = send.send(fs::write(Cpu1::ONLINE, if on { "1" } else { "0" }).is_ok());
            }
            fs::write(Cpu1::ONLINE, "1").expect("on again");
        });
        (Cpu1(orders, Some(thread)), answers)
    }
}

impl Drop for Cpu1 {
    fn drop(&mut self) {
        self.0 = channel().0;
        let _ = self.1.take().map(JoinHandle::join);
    }
}
