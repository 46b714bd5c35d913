//! The injector is killed at any moment: no target dies, none stays stopped, none notices.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use cgfuse::inject::{InjectError, Namespace, Plan, Syscall, Target as Whom};
use cgfuse::sys::ptrace::{self, Event};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};

use super::target::{DEADLINE, Target, UTS, call, file, holder, injector, program, program32, report, rounds, setns};
use crate::common::{is_root, skipped, spawn, state, wait_until};

/// Ends another thread of a test, also when a check fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Injects without a pause while the injector is killed at random moments. `check` sees the target after each death.
fn kill_at_random(test: &str, target: &mut Target, plans: [Plan; 2], mut check: impl FnMut(&mut Target)) {
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time").as_nanos() as u64 | 1;
    let mut injector = super::target::injector();
    // What an injection by a fresh process takes.
    let start = Instant::now();
    for plan in plans.iter().cycle().take(10) {
        injector = super::target::injector();
        injector.inject(Whom::Process(target.pid()), plan, DEADLINE).expect("moved");
    }
    let usual = start.elapsed().as_micros() as u64 / 10;
    // The next one to be killed; taken back when it is.
    let (victim, (victims, next)) = (AtomicI32::new(0), mpsc::channel());
    let (stop, kills) = (AtomicBool::new(false), AtomicUsize::new(0));
    let wanted = rounds(900);
    let (mut moves, mut before, mut amid, mut no_room) = (0, 0, 0, 0);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        // Until there are no more.
        let victims = victims;
        scope.spawn(|| {
            let mut random = seed;
            for pid in next {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let end = Instant::now() + Duration::from_micros(random % (2 * usual));
                while Instant::now() < end {
                    std::hint::spin_loop();
                }
                if victim.swap(0, Ordering::SeqCst) == pid && kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
                    kills.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        // Where others keep the machine busy an injector spends most of its time before.
        let enough = |amid| amid > wanted / 50 || kills.load(Ordering::SeqCst) > 10 * wanted;
        while kills.load(Ordering::SeqCst) < wanted || !enough(amid) {
            injector.start().expect("starts");
            let pid = injector.pid().expect("a process");
            if victim.swap(pid, Ordering::SeqCst) != pid {
                victims.send(pid).expect("the killer waits");
            }
            match injector.inject(Whom::Process(target.pid()), &plans[moves % 2], DEADLINE) {
                Ok(_) => moves += 1,
                Err(InjectError::Died { modified }) => {
                    *(if modified { &mut amid } else { &mut before }) += 1;
                    check(target);
                }
                Err(InjectError::NoRoom { .. }) => no_room += 1,
                Err(error) => panic!("{test}: {error}"),
            }
        }
    });
    let kills = kills.into_inner();
    let figures = format!("{kills} kills: {before} before, {amid} amid modification, {moves} injections completed, {no_room} without room");
    report(test, &format!("seed {seed}: {figures}"));
    assert!(amid > 0, "{test}: never killed in the middle");
    check(target);
    target.untouched();
}

fn endures(test: &str, program: &Path) {
    let homes = [holder(UTS), holder(UTS)];
    let mut target = Target::with(program, &["endure"], |_| {});
    let plans = [0, 1].map(|i| setns(homes[i].pid(), homes[1 - i].pid(), UTS));
    kill_at_random(test, &mut target, plans, |target| {
        target.send();
        let said = target.said();
        assert_eq!(said.extra, 0, "{test}: disturbed: {said:?}");
    });
}

#[test]
fn one_thread() {
    if !is_root() {
        return skipped("killed::one_thread", "not root");
    }
    endures("killed::one_thread", program());
}

#[test]
fn one_thread_of_32_bits() {
    match program32() {
        Some(program) if is_root() => endures("killed::one_thread_of_32_bits", program),
        _ => skipped("killed::one_thread_of_32_bits", "not root, or no 32-bit compiler"),
    }
}

#[test]
fn many_threads() {
    if !is_root() {
        return skipped("killed::many_threads", "not root");
    }
    let homes = [holder(UTS), holder(UTS)];
    let mut target = Target::new(&["busy", "12"]);
    let plans = [0, 1].map(|i| setns(homes[i].pid(), homes[1 - i].pid(), UTS));
    kill_at_random("killed::many_threads", &mut target, plans, |target| {
        let count = target.alive();
        let end = Instant::now() + Duration::from_secs(10);
        while target.alive() == count {
            assert!(Instant::now() < end, "no thread runs any more");
        }
    });
    // Each thread runs, and can be moved.
    assert_eq!(target.tids().len(), 12);
    injector().inject(Whom::Process(target.pid()), &setns(homes[0].pid(), homes[1].pid(), UTS), DEADLINE).expect("moved");
    assert_eq!(target.namespaces(Namespace::Uts), vec![homes[0].namespace(Namespace::Uts); 12]);
}

/// Registers, flags and vector registers survive it, wherever the target was.
#[test]
fn registers() {
    if !is_root() || cfg!(not(target_arch = "x86_64")) {
        return skipped("killed::registers", "not root, or not x86-64");
    }
    let homes = [holder(UTS), holder(UTS)];
    let mut target = Target::new(&["registers", "3600"]);
    // Long plans: most of the time is modified time.
    let plans = [0, 1].map(|i| {
        let mut plan = Plan::default();
        let fd = plan.fd(file(format!("/proc/{}/ns/uts", homes[i].pid())));
        for _ in 0..6 {
            plan.step(call(Syscall::Setns, [fd, UTS.into()]), vec![]);
        }
        plan
    });
    kill_at_random("killed::registers", &mut target, plans, |target| assert!(!target.has_said()));
}

/// Signals are neither lost nor reordered, also those that come while a thread finds its way back.
#[test]
fn signals() {
    if !is_root() {
        return skipped("killed::signals", "not root");
    }
    let homes = [holder(UTS), holder(UTS)];
    let mut target = Target::new(&["signals", "2000000000"]);
    let plans = [0, 1].map(|i| setns(homes[i].pid(), homes[1 - i].pid(), UTS));
    kill_at_random("killed::signals", &mut target, plans, |target| assert!(!target.has_said()));
    target.send();
    let said = target.said();
    report("killed::signals", &format!("{} signals", said.result));
    assert_eq!((said.micros, said.extra), (0, 0), "out of order, lost or spurious EINTR: {said:?}");
}

/// Syscall user dispatch comes back.
#[test]
fn dispatch() {
    if !is_root() {
        return skipped("killed::dispatch", "not root");
    }
    let homes = [holder(UTS), holder(UTS)];
    let mut target = Target::new(&["dispatch", "3600"]);
    let plans = [0, 1].map(|i| setns(homes[i].pid(), homes[1 - i].pid(), UTS));
    kill_at_random("killed::dispatch", &mut target, plans, |target| {
        target.send();
        assert_eq!(target.said().extra, 0, "calls that were not dispatched");
    });
}

/// The server is killed: its injector completes what it does, and ends.
#[test]
fn the_server() {
    if !is_root() {
        return skipped("killed::the_server", "not root");
    }
    let homes = [holder(UTS), holder(UTS)];
    let mut target = Target::new(&["endure"]);
    let mut injectors = 0;
    let n = rounds(300);
    for round in 0..n {
        let mut server = Command::new(std::env::current_exe().expect("this program"));
        server.args(["--exact", "inject::killed::server", "--ignored"]).stdout(Stdio::null()).stderr(Stdio::null());
        server.env("CGFUSE_TEST_PIDS", [target.pid(), homes[0].pid(), homes[1].pid()].map(|pid| pid.to_string()).join(" "));
        let mut server = spawn(server).expect("a server");
        let pid = server.id().cast_signed();
        // Its injector is its only child.
        let start = Instant::now();
        let mut injector = None;
        while injector.is_none() && start.elapsed() < DEADLINE {
            let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            let all = threads.filter_map(|entry| std::fs::read_to_string(entry.path().join("children")).ok());
            injector = all.collect::<String>().split_whitespace().next().and_then(|pid| pid.parse::<i32>().ok());
        }
        std::thread::sleep(Duration::from_micros(500 + round as u64 * 977 % 4000));
        server.kill().expect("kill");
        server.wait().expect("wait");
        if let Some(injector) = injector {
            injectors += 1;
            wait_until("the injector ends", || matches!(state(injector, injector), None | Some('Z' | 'X')));
        }
        target.send();
        assert_eq!(target.said().extra, 0, "disturbed");
    }
    target.untouched();
    report("killed::the_server", &format!("{n} servers, {injectors} with an injector"));
}

/// A tracer that is killed when it has seen a signal and before it has handed it on: the target takes it.
#[test]
fn a_signal_that_was_seen() {
    if !is_root() {
        return skipped("killed::a_signal_that_was_seen", "not root");
    }
    let mut target = Target::new(&["awaited", "1"]);
    for round in 1..=20 {
        let mut tracer = Command::new(std::env::current_exe().expect("this program"));
        tracer.args(["--exact", "inject::killed::tracer", "--ignored"]).stdout(Stdio::null()).stderr(Stdio::null());
        tracer.env("CGFUSE_TEST_PIDS", target.pid().to_string());
        let mut tracer = spawn(tracer).expect("a tracer");
        wait_until("it is traced", || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", target.pid())).expect("status");
            !status.contains("TracerPid:\t0")
        });
        target.signal(Signal::SIGUSR1);
        assert_eq!(tracer.wait().expect("wait").signal(), Some(Signal::SIGKILL as i32), "the tracer has seen no signal");
        wait_until("the signal has arrived", || {
            target.send();
            target.said().result == round
        });
    }
    target.untouched();
}

/// The tracer of [`a_signal_that_was_seen`].
#[test]
#[ignore = "a process of another test"]
fn tracer() {
    let Some(pid) = std::env::var("CGFUSE_TEST_PIDS").ok().and_then(|pid| pid.parse().ok()) else { return };
    ptrace::seize(pid, 0).expect("seize");
    while !matches!(ptrace::wait(pid), Ok(Some(Event::Signal(_)))) {}
    kill(getpid(), Signal::SIGKILL).expect("kill");
    std::thread::sleep(DEADLINE);
}

/// The server of [`the_server`]: moves a target to and fro until it is killed.
#[test]
#[ignore = "a process of another test"]
fn server() {
    let Ok(pids) = std::env::var("CGFUSE_TEST_PIDS") else { return };
    let pids: Vec<i32> = pids.split(' ').map(|pid| pid.parse().expect("a pid")).collect();
    let plans = [1, 2].map(|i| setns(pids[i], pids[i], UTS));
    let mut injector = super::target::injector();
    for plan in plans.iter().cycle() {
        let _ = injector.inject(Whom::Process(pids[0]), plan, DEADLINE);
    }
}
