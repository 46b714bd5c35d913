//! What is delicate: signals in order, registers, restartable sequences, syscall user dispatch, stacks without room, stopped processes.

use std::path::Path;
use std::time::Duration;

use cgfuse::inject::{Descriptor, InjectError, Namespace, Plan, Syscall, Target as Whom};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::target::{DEADLINE, NET, Said, Target, UTS, call, file, holder, injector, program, report, rounds, setns};
use crate::common::{Mount, Stopped, is_root, skipped, state, wait_until};

/// Moves it to and fro until it says something, which it is told to after so many times; how often.
fn until_told(target: &mut Target, times: usize, pause: Duration) -> (Said, usize) {
    let (injector, homes) = (&mut injector(), [holder(UTS), holder(UTS)]);
    let mut moves = 0;
    while !target.has_said() {
        if moves == times {
            target.send();
        }
        let home = homes[moves % 2].pid();
        match injector.inject(Whom::Process(target.pid()), &setns(home, home, UTS), DEADLINE) {
            Ok(_) => moves += 1,
            Err(InjectError::Gone { .. }) => {}
            // It was on, which Linux tells since 6.4.
            Err(error) if error.errno() == Errno::EOPNOTSUPP && !tells_of_dispatch() => moves += 1,
            Err(error) => panic!("{error}"),
        }
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    (target.said(), moves)
}

#[test]
fn signals_in_order() {
    if !is_root() {
        return skipped("signals_in_order", "not root");
    }
    ordered("signals_in_order", program(), 4500);
}

/// What is sent arrives, in order, and nothing else is noticed.
pub(super) fn ordered(test: &str, program: &Path, times: usize) {
    let mut target = Target::with(program, &["signals", "2000000000"], |_| {});
    let (said, moves) = until_told(&mut target, rounds(times), Duration::ZERO);
    report(test, &format!("{moves} injections, {} signals, {} out of order, {} lost or EINTR", said.result, said.micros, said.extra));
    assert!(said.result > 0);
    assert_eq!((said.micros, said.extra), (0, 0), "out of order, lost or spurious EINTR");
}

/// Whoever sends a signal to a process while it stands still means its main thread, if that can take it. Here it stands still because the server of a
/// file system does not answer.
#[test]
fn signals_for_a_stopped_process_are_the_main_threads() {
    const TEST: &str = "signals_for_a_stopped_process_are_the_main_threads";
    const CHDIR: &str = "80 ";
    if !is_root() || cfg!(not(target_arch = "x86_64")) {
        return skipped(TEST, "not root, or not x86-64");
    }
    let mount = Mount::new();
    let mut injector = injector();
    let mut target = Target::new(&["awaited", "6"]);
    let n = rounds(60) as i64;
    let mut taken_by_others = 0;
    for round in 1..=n {
        let mut plan = Plan::default();
        let path = plan.data(format!("{}/none-{round}\0", mount.dir().display()));
        plan.step(call(Syscall::Chdir, [path]), vec![]);
        let result = std::thread::scope(|scope| {
            let server = Stopped::new(mount.server_pid());
            let injection = scope.spawn(|| injector.inject(Whom::Process(target.pid()), &plan, DEADLINE));
            let is_there = |tid: &i32| std::fs::read_to_string(format!("/proc/{tid}/syscall")).is_ok_and(|call| call.starts_with(CHDIR));
            wait_until("a thread waits for the server", || target.tids().iter().any(is_there));
            target.signal(Signal::SIGUSR1);
            drop(server);
            injection.join().expect("it returns")
        });
        assert!(matches!(result, Err(InjectError::Call { errno: Errno::ENOENT, .. })), "{result:?}");
        wait_until("the signal has arrived", || {
            target.send();
            let said = target.said();
            taken_by_others = said.extra;
            said.result == round
        });
    }
    report(TEST, &format!("{n} signals, {taken_by_others} taken by others"));
    // On a loaded machine the main thread may not get a CPU as long as the others wait for it.
    assert!(taken_by_others <= n / 10, "{taken_by_others} of {n} taken by others");
}

/// One that comes in the microseconds in which the threads go on may be taken by another; none is lost.
#[test]
fn signals_for_the_process() {
    if !is_root() {
        return skipped("signals_for_the_process", "not root");
    }
    for (threads, times) in [("2", 3_000), ("6", 1_000)] {
        let mut target = Target::new(&["sent", threads]);
        let (said, moves) = until_told(&mut target, rounds(times), Duration::from_micros(100));
        let figures = format!("{threads} threads: {moves} injections, {} signals, {} taken by others", said.result, said.extra);
        report("signals_for_the_process", &figures);
        assert!(said.result > 0 && said.micros == 0, "a signal was lost: {said:?}");
    }
}

#[test]
fn registers() {
    if !is_root() || cfg!(not(target_arch = "x86_64")) {
        return skipped("registers", "not root, or not x86-64");
    }
    let mut target = Target::new(&["registers", "3600"]);
    let (said, moves) = until_told(&mut target, rounds(15_000), Duration::ZERO);
    report("registers", &format!("{moves} injections, {} checks, {} wrong", said.result, said.extra));
    assert_eq!(said.extra, 0);
}

#[test]
fn restartable_sequences() {
    if !is_root() || cfg!(not(target_arch = "x86_64")) {
        return skipped("restartable_sequences", "not root, or not x86-64");
    }
    let mut target = Target::new(&["rseq", "3600"]);
    let (said, moves) = until_told(&mut target, rounds(15_000), Duration::ZERO);
    let figures = format!("{moves} injections, {} sequences, {} aborted, {} violated", said.result, said.micros, said.extra);
    report("restartable_sequences", &figures);
    assert_eq!(said.extra, 0);
}

fn tells_of_dispatch() -> bool {
    let release = nix::sys::utsname::uname().expect("uname").release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(4))
}

#[test]
fn syscall_user_dispatch() {
    if !is_root() {
        return skipped("syscall_user_dispatch", "not root");
    }
    let mut target = Target::new(&["dispatch", "3600"]);
    let (said, moves) = until_told(&mut target, rounds(4500), Duration::from_micros(300));
    report("syscall_user_dispatch", &format!("{moves} injections, {} calls, {} not dispatched", said.result, said.extra));
    assert_eq!(said.extra, 0);
}

/// A plan with everything: memory, descriptors of both ways, a step that fails, its undoing. Every call of the target's own is dispatched
/// all the same.
#[test]
fn syscall_user_dispatch_of_long_plans() {
    if !is_root() {
        return skipped("syscall_user_dispatch_of_long_plans", "not root");
    }
    let (there, home) = (holder(UTS | NET), Target::new(&["idle", "1"]));
    let mut target = Target::new(&["dispatch", "3600"]);
    let mut injector = injector();
    let n = rounds(600);
    for round in 0..n {
        let mut plan = Plan::default();
        let (net, uts) = (plan.fd(file(format!("/proc/{}/ns/net", there.pid()))), plan.fd(Descriptor::Pidfd(there.pid())));
        let (home_net, home_uts) = (plan.fd(file(format!("/proc/{}/ns/net", home.pid()))), plan.fd(Descriptor::Pidfd(home.pid())));
        plan.step(call(Syscall::Setns, [net, 0.into()]), vec![call(Syscall::Setns, [home_net, 0.into()])]);
        plan.step(call(Syscall::Setns, [uts, UTS.into()]), vec![call(Syscall::Setns, [home_uts, UTS.into()])]);
        let path = plan.data(if round % 2 == 0 { &b"/\0"[..] } else { b"/dev/null\0" });
        plan.step(call(Syscall::Chdir, [path]), vec![]);
        let result = injector.inject(Whom::Process(target.pid()), &plan, DEADLINE);
        let at = if round % 2 == 0 { &there } else { &home };
        assert_eq!(result.is_ok(), round % 2 == 0, "{result:?}");
        for kind in [Namespace::Net, Namespace::Uts] {
            assert_eq!(target.namespace(kind), at.namespace(kind));
        }
        // Each time from home.
        if round % 2 == 0 {
            injector.inject(Whom::Process(target.pid()), &setns(home.pid(), home.pid(), UTS | NET), DEADLINE).expect("back");
        }
    }
    target.send();
    let said = target.said();
    report("syscall_user_dispatch_of_long_plans", &format!("{n} plans, {} calls, {} not dispatched", said.result, said.extra));
    assert_eq!(said.extra, 0);
}

/// Not a byte of the target's stack is written.
#[test]
fn stacks_without_room() {
    if !is_root() || cfg!(not(target_arch = "x86_64")) {
        return skipped("stacks_without_room", "not root, or not x86-64");
    }
    let mut target = Target::new(&["tight-stack", "3600"]);
    let (said, moves) = until_told(&mut target, rounds(7500), Duration::ZERO);
    assert_eq!(said.extra, 0, "{moves} injections");
}

/// A stopped process is moved, stays stopped, and its sleep goes on when it is continued.
#[test]
fn stopped() {
    if !is_root() {
        return skipped("stopped", "not root");
    }
    let homes = [holder(UTS), holder(UTS)];
    let mut injector = injector();
    for threads in ["1", "5"] {
        let mut target = Target::new(&["busy", threads]);
        target.signal(Signal::SIGSTOP);
        let all_stopped = |target: &Target| target.tids().iter().all(|tid| state(target.pid(), *tid) == Some('T'));
        wait_until("it is stopped", || all_stopped(&target));
        for home in homes.iter().cycle().take(20) {
            injector.inject(Whom::Process(target.pid()), &setns(home.pid(), home.pid(), UTS), DEADLINE).expect("moved");
            assert_eq!(target.namespace(Namespace::Uts), home.namespace(Namespace::Uts));
            wait_until("it is stopped again", || all_stopped(&target));
        }
        target.signal(Signal::SIGCONT);
        target.alive();
        target.untouched();
    }
}

/// Stop and continue at any moment while it is moved: at the end it runs.
#[test]
fn stop_and_continue() {
    if !is_root() {
        return skipped("stop_and_continue", "not root");
    }
    let homes = [holder(UTS), holder(UTS)];
    let mut injector = injector();
    for threads in ["1", "4"] {
        let mut target = Target::new(&["busy", threads]);
        let pid = target.pid();
        let n = rounds(600);
        std::thread::scope(|scope| {
            let switcher = scope.spawn(move || {
                for i in 0..n as u64 {
                    for signal in [Signal::SIGSTOP, Signal::SIGCONT] {
                        kill(Pid::from_raw(pid), signal).expect("kill");
                        std::thread::sleep(Duration::from_micros(i * 37 % 900));
                    }
                }
            });
            let mut moves = 0;
            while !switcher.is_finished() {
                let home = homes[moves % 2].pid();
                injector.inject(Whom::Process(pid), &setns(home, home, UTS), DEADLINE).expect("moved");
                moves += 1;
            }
            report("stop_and_continue", &format!("{threads} threads, {moves} injections, {n} stops"));
        });
        target.alive();
        target.untouched();
    }
}
