//! What is delicate: signals in order, registers, restartable sequences, syscall user dispatch, stacks without room, stopped processes.

use std::time::Duration;

use cgfuse::inject::{InjectError, Injector, Namespace, Target as Whom};
use nix::sys::signal::Signal;

use super::target::{DEADLINE, Said, Target, UTS, holder, injector, report, rounds, setns};
use crate::common::{is_root, skipped, state, wait_until};

/// Moves it to and fro until it says something; how often.
pub(super) fn until_it_speaks(target: &mut Target, injector: &mut Injector, pause: Duration) -> (Said, usize) {
    let homes = [holder(UTS), holder(UTS)];
    let mut moves = 0;
    while !target.has_said() {
        let home = homes[moves % 2].pid();
        match injector.inject(Whom::Process(target.pid()), &setns(home, home, UTS), DEADLINE) {
            Ok(_) => moves += 1,
            Err(InjectError::Gone { .. }) => {}
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
    let n = rounds(60_000) / 16 * 16;
    let mut target = Target::new(&["signals", &n.to_string()]);
    let (said, moves) = until_it_speaks(&mut target, &mut injector(), Duration::ZERO);
    report("signals_in_order", &format!("{moves} injections, {} of {n} signals, {said:?}", said.result));
    assert_eq!((said.result, said.micros, said.extra), (n as i64, 0, 0), "received, out of order, spurious EINTR");
    assert!(moves > 10);
}

#[test]
fn registers() {
    if !is_root() || cfg!(not(target_arch = "x86_64")) {
        return skipped("registers", "not root, or not x86-64");
    }
    let mut target = Target::new(&["registers", &rounds(6).to_string()]);
    let (said, moves) = until_it_speaks(&mut target, &mut injector(), Duration::ZERO);
    report("registers", &format!("{moves} injections, {} checks, {} wrong", said.result, said.extra));
    assert_eq!(said.extra, 0);
    assert!(moves > 100);
}

#[test]
fn restartable_sequences() {
    if !is_root() || cfg!(not(target_arch = "x86_64")) {
        return skipped("restartable_sequences", "not root, or not x86-64");
    }
    let mut target = Target::new(&["rseq", &rounds(6).to_string()]);
    let (said, moves) = until_it_speaks(&mut target, &mut injector(), Duration::ZERO);
    let figures = format!("{moves} injections, {} sequences, {} aborted, {} violated", said.result, said.micros, said.extra);
    report("restartable_sequences", &figures);
    assert_eq!(said.extra, 0);
    assert!(moves > 100);
}

#[test]
fn syscall_user_dispatch() {
    if !is_root() {
        return skipped("syscall_user_dispatch", "not root");
    }
    let mut target = Target::new(&["dispatch", &rounds(6).to_string()]);
    let (said, moves) = until_it_speaks(&mut target, &mut injector(), Duration::from_micros(300));
    report("syscall_user_dispatch", &format!("{moves} injections, {} calls, {} not dispatched", said.result, said.extra));
    assert_eq!(said.extra, 0);
    assert!(moves > 100);
}

/// Not a byte of the target's stack is written.
#[test]
fn stacks_without_room() {
    if !is_root() || cfg!(not(target_arch = "x86_64")) {
        return skipped("stacks_without_room", "not root, or not x86-64");
    }
    let mut target = Target::new(&["tight-stack", &rounds(3).to_string()]);
    let (said, moves) = until_it_speaks(&mut target, &mut injector(), Duration::ZERO);
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
                        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("kill");
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
