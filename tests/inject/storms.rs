//! Targets that do not keep still: threads, children and programs come and go while they are injected into.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use cgfuse::inject::{InjectError, Namespace, Target as Whom};

use super::target::{DEADLINE, Target, UTS, holder, injector, report, rounds, setns};
use crate::common::{is_root, skipped};

/// Injects into it for some time; no error but those that are allowed. How often it succeeded and failed.
fn storm(target: &Target, allowed: impl Fn(&InjectError) -> bool) -> (usize, usize) {
    let homes = [holder(UTS), holder(UTS)];
    let mut injector = injector();
    let (mut moves, mut failures) = (0, 0);
    let end = Instant::now() + Duration::from_millis(rounds(6000) as u64);
    while Instant::now() < end {
        let home = &homes[moves % 2];
        let mut plan = setns(home.pid(), home.pid(), UTS);
        plan.expect.push((Namespace::Uts, home.namespace(Namespace::Uts)));
        match injector.inject(Whom::Process(target.pid()), &plan, DEADLINE) {
            Ok(_) => moves += 1,
            Err(error) if allowed(&error) => failures += 1,
            Err(error) => panic!("after {moves} moves: {error}"),
        }
    }
    (moves, failures)
}

/// No thread that is created during a move stays behind.
#[test]
fn threads_come_and_go() {
    if !is_root() {
        return skipped("threads_come_and_go", "not root");
    }
    for n in ["2", "6"] {
        let mut target = Target::new(&["churn-alive", n]);
        let homes = [holder(UTS), holder(UTS)];
        let mut injector = injector();
        let mut moves = 0;
        let end = Instant::now() + Duration::from_millis(rounds(6000) as u64);
        while Instant::now() < end {
            let home = &homes[moves % 2];
            injector.inject(Whom::Process(target.pid()), &setns(home.pid(), home.pid(), UTS), DEADLINE).expect("moved");
            moves += 1;
            let there: BTreeSet<u64> = target.tids().into_iter().filter_map(|tid| uts(target.pid(), tid)).collect();
            assert_eq!(there, BTreeSet::from([home.namespace(Namespace::Uts)]));
        }
        report("threads_come_and_go", &format!("{n} creators: {moves} injections"));
        target.alive();
        target.untouched();
    }
}

/// Threads that are replaced all the time: those that are listed are gone when they are to be stopped, and have successors.
#[test]
fn threads_replace_themselves() {
    if !is_root() {
        return skipped("threads_replace_themselves", "not root");
    }
    for n in ["1", "3"] {
        let mut target = Target::new(&["chain", n]);
        let homes = [holder(UTS), holder(UTS)];
        let mut injector = injector();
        let (mut moves, mut unsettled) = (0, 0);
        while moves < rounds(9000) {
            let home = &homes[moves % 2];
            match injector.inject(Whom::Process(target.pid()), &setns(home.pid(), home.pid(), UTS), DEADLINE) {
                Ok(_) => moves += 1,
                Err(InjectError::Unsettled { .. }) if unsettled < 10 => {
                    unsettled += 1;
                    continue;
                }
                Err(error) => panic!("after {moves} moves: {error}"),
            }
            let there: BTreeSet<u64> = target.tids().into_iter().filter_map(|tid| uts(target.pid(), tid)).collect();
            assert_eq!(there, BTreeSet::from([home.namespace(Namespace::Uts)]), "after {moves} moves");
        }
        let links = target.alive();
        report("threads_replace_themselves", &format!("{n} chains of {links} threads: {moves} injections, {unsettled} given up"));
        target.untouched();
    }
}

fn uts(pid: i32, tid: i32) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(format!("/proc/{pid}/task/{tid}/ns/uts")).ok().map(|meta| meta.ino())
}

#[test]
fn children_come_and_go() {
    if !is_root() {
        return skipped("children_come_and_go", "not root");
    }
    let target = Target::new(&["fork"]);
    let (moves, _) = storm(&target, |_| false);
    report("children_come_and_go", &format!("{moves} injections"));
    assert!(!target.has_said(), "a child was disturbed");
    target.untouched();
}

/// A thread that is not the leader executes the program again and again.
#[test]
fn programs_come_and_go() {
    if !is_root() {
        return skipped("programs_come_and_go", "not root");
    }
    let n = rounds(1500);
    let mut target = Target::new(&["exec", &n.to_string()]);
    let homes = [holder(UTS), holder(UTS)];
    let mut injector = injector();
    let (mut moves, mut unsettled) = (0, 0);
    while !target.has_said() {
        let home = homes[moves % 2].pid();
        match injector.inject(Whom::Process(target.pid()), &setns(home, home, UTS), Duration::from_secs(20)) {
            Ok(_) => moves += 1,
            Err(InjectError::Unsettled { .. } | InjectError::NotStopping { .. }) => unsettled += 1,
            // At its end.
            Err(InjectError::Gone { .. }) => {}
            Err(error) => panic!("after {moves} moves: {error}"),
        }
    }
    assert_eq!(target.said().result, 0);
    report("programs_come_and_go", &format!("{n} executions, {moves} injections, {unsettled} given up"));
    assert_eq!(unsettled, 0);
}
