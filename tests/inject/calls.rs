//! A call that blocks while its thread is injected into again and again ends with the same result, and not before its time.

use std::path::Path;
use std::time::Duration;

use cgfuse::inject::{Arg, Namespace, Plan, Syscall, Target as Whom};
use nix::errno::Errno;

use super::blocked::{CALLS, MICROS, io_uring_is_disabled, is_fragile};
use super::target::{DEADLINE, NET, Target, UTS, call, holder, injector, program, report, setns, setns_file};
use crate::common::{is_root, skipped};

pub(super) fn all_calls(test: &str, program: &Path) {
    let mut injector = injector();
    let homes = [holder(UTS | NET), holder(UTS | NET)];
    let (mut rounds, mut worst) = (0, 0);
    let mut calls: Vec<_> = CALLS.to_vec();
    if io_uring_is_disabled() {
        skipped(&format!("{test}: io_uring_enter"), "io_uring is disabled");
        calls.retain(|(name, ..)| *name != "io_uring_enter");
    }
    // A call may be over before an injector of a loaded machine gets there: once more, then.
    let mut attempts = 0;
    while let Some(&(name, result, errno, handled)) = calls.first() {
        let mut target = Target::with(program, &["call", name], |_| {});
        // Into the call; it makes no difference to the target.
        std::thread::sleep(Duration::from_millis(20));
        let mut moves = 0;
        while !target.has_said() {
            let home = homes[moves % 2].pid();
            let plan = if moves % 5 == 4 { setns_file(home, Namespace::Net) } else { setns(home, home, UTS | NET) };
            match injector.inject(Whom::Process(target.pid()), &plan, DEADLINE) {
                Ok(_) => moves += 1,
                // It has ended in between.
                Err(error) => assert!(error.errno() == Errno::ESRCH || target.has_said(), "{name}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(15));
        }
        let said = target.said();
        let fragile = is_fragile(name, said.errno);
        assert!(fragile || (said.result, said.errno, said.extra) == (result, errno, handled), "{name}: {said:?} after {moves} moves");
        // A clock may be read a little before the call that the limit counts from.
        assert!(fragile || said.micros > MICROS - 5_000, "{name}: too short: {said:?}");
        assert!(said.micros < 100 * MICROS, "{name}: too long: {said:?}");
        attempts += 1;
        assert!(moves > 0 || attempts < 100, "{name}: never moved");
        if moves > 0 {
            calls.remove(0);
        }
        rounds += moves;
        worst = worst.max(said.micros - MICROS);
    }
    report(test, &format!("{} calls, {rounds} injections, at most {} ms beyond their time", CALLS.len(), worst / 1000));
}

/// Also where the injection fails before anything was modified, or concerns another thread.
#[test]
fn failures_are_not_noticed() {
    let mut injector = injector();
    let mut bad = Plan::default();
    bad.step(call(Syscall::Unshare, [Arg::Int(u64::MAX)]), vec![]);
    // Executed by one thread for all.
    let mut shared = Plan::default();
    let root = shared.data(*b"/\0");
    shared.step(call(Syscall::Chdir, [root]), vec![]);
    let cases = [
        ("1", DEADLINE, &bad, Some(Errno::EINVAL)),
        ("3", DEADLINE, &bad, Some(Errno::EINVAL)),
        ("1", Duration::ZERO, &bad, Some(Errno::EBUSY)),
        ("3", Duration::ZERO, &bad, Some(Errno::EBUSY)),
        ("3", DEADLINE, &shared, None),
    ];
    for (name, result) in
        [("epoll_wait-infinite", 1), ("io_uring_enter", 0), ("semop", 0), ("sigwaitinfo", 10), ("nanosleep", 0), ("read-pipe", 8)]
    {
        if name == "io_uring_enter" && io_uring_is_disabled() {
            skipped("failures_are_not_noticed: io_uring_enter", "io_uring is disabled");
            continue;
        }
        for (threads, deadline, plan, expected) in cases {
            let mut target = Target::new(&["call", name, threads]);
            std::thread::sleep(Duration::from_millis(20));
            let mut times = 0;
            while !target.has_said() {
                let error = injector.inject(Whom::Process(target.pid()), plan, deadline).err().map(|error| error.errno());
                assert!(error == expected || error == Some(Errno::ESRCH), "{error:?}");
                times += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            let said = target.said();
            assert_eq!((said.result, said.errno), (result, 0), "{name}, {threads} threads, {deadline:?}, {expected:?}, {times} times");
            assert!(said.micros < 100 * MICROS, "{name}: too long: {said:?}");
        }
    }
}

#[test]
fn blocked_calls_go_on() {
    if !is_root() {
        return skipped("blocked_calls_go_on", "not root");
    }
    all_calls("blocked_calls_go_on", program());
}
