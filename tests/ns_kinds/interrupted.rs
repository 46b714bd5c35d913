//! What a target sees of moves that meet it in the middle of something: results, errors and time of its blocked calls, its signals, its
//! registers, its children. The moves are writes to `cgroup.procs`, as echo(1) makes them.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use libc::{EBUSY, EINVAL, ESRCH};
use nix::sys::signal::Signal;

use crate::blocked::{CALLS, MICROS, io_uring_is_disabled, is_fragile};
use crate::common::namespaces::{enter, good, group, link, mount, ns_of, set, value};
use crate::common::{Mount, ids, skipped, state, text, wait_until};
use crate::target::{Target, program, report, rounds};

/// What several threads can enter.
const SHARED: [&str; 5] = ["mnt", "uts", "ipc", "net", "cgroup"];
const ALL: [&str; 7] = ["mnt", "uts", "ipc", "net", "cgroup", "pid", "time"];

/// Two groups with namespaces of their own of these kinds.
fn pair(mount: &Mount, name: &str, kinds: &[&str]) -> [PathBuf; 2] {
    ["1", "2"].map(|n| {
        let dir = group(mount, &format!("{name}{n}"));
        for kind in kinds {
            good(&dir, set(&dir, kind, "new"));
        }
        dir
    })
}

/// Whoever lives is where the group is.
fn is_there(group: &Path, target: &Target, kinds: &[&str]) -> bool {
    let tids: Vec<i32> = std::fs::read_dir(format!("/proc/{}/task", target.pid()))
        .map(|entries| entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
        .unwrap_or_default();
    kinds.iter().all(|kind| {
        let shown = PathBuf::from(value(group, &format!("ns.{kind}")));
        let there = |tid: i32| std::fs::read_link(format!("/proc/{tid}/ns/{}", link(kind)));
        tids.iter().all(|tid| there(*tid).map_or(true, |there| there == shown))
    })
}

/// One call, while its process is moved to and fro; three times at least, once for each beginning of the call.
fn one_call(groups: &[PathBuf; 2], kinds: &[&str], (name, result, errno, handled): (&str, i64, i32, i64), threads: &str) -> usize {
    // It may be over before a loaded machine gets there: once more, then.
    for _ in 0..50 {
        let mut target = Target::new(&["call", name, threads]);
        // Into the call; it makes no difference to the target.
        std::thread::sleep(Duration::from_millis(20));
        let mut moves = 0;
        while !target.has_said() {
            let to = &groups[moves % 2];
            match enter(to, "cgroup.procs", target.pid()) {
                Ok(_) => {
                    assert!(target.has_said() || is_there(to, &target, kinds), "{name}");
                    moves += 1;
                }
                // It has ended in between.
                Err(error) => assert!(error == ESRCH || target.has_said(), "{name}: errno {error}: {}", value(to, "ns.last_error")),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let said = target.said();
        let fragile = is_fragile(name, said.errno);
        assert!(fragile || (said.result, said.errno, said.extra) == (result, errno, handled), "{name}: {said:?} after {moves} moves");
        // A clock may be read a little before the call that the limit counts from.
        assert!(fragile || said.micros > MICROS - 5_000, "{name}: too short: {said:?} after {moves} moves");
        if moves >= 3 || fragile && moves > 0 {
            return moves;
        }
    }
    panic!("{name}: never moved three times");
}

/// All of them, some at a time.
fn all_calls(test: &str, kinds: &[&str], threads: &str) {
    let Some(mount) = mount() else { return };
    let groups = pair(&mount, "all", kinds);
    // A semaphore or a message queue is in its ipc namespace.
    let without: Vec<&str> = kinds.iter().copied().filter(|kind| *kind != "ipc").collect();
    let same_ipc = pair(&mount, "ipc", &without);
    let mut calls = CALLS.to_vec();
    if io_uring_is_disabled() {
        skipped(&format!("{test}: io_uring_enter"), "io_uring is disabled");
        calls.retain(|(name, ..)| *name != "io_uring_enter");
    }
    let (calls, moves) = (Mutex::new(calls), Mutex::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let next = calls.lock().expect("no panic").pop();
                    let Some(call) = next else { break };
                    let ipc = matches!(call.0, "semop" | "msgrcv");
                    let (groups, kinds) = if ipc { (&same_ipc, &without[..]) } else { (&groups, kinds) };
                    let made = one_call(groups, kinds, call, threads);
                    *moves.lock().expect("no panic") += made;
                }
            });
        }
    });
    report(test, &format!("{} calls, {} moves", CALLS.len(), moves.into_inner().expect("no panic")));
}

#[test]
fn calls_of_one_thread_go_on() {
    all_calls("calls_of_one_thread_go_on", &ALL, "1");
}

#[test]
fn calls_of_a_thread_of_several_go_on() {
    all_calls("calls_of_a_thread_of_several_go_on", &SHARED, "5");
}

/// A semaphore stays in its ipc namespace: who waits for it and is moved waits for one that is not there.
#[test]
fn system_v_ipc_stays() {
    let Some(mount) = mount() else { return };
    let groups = pair(&mount, "web", &["ipc"]);
    for name in ["semop", "msgrcv"] {
        let mut target = Target::new(&["call", name]);
        wait_until("it waits", || text(format!("/proc/{}/wchan", target.pid())) != "0" && state(target.pid(), target.pid()) == Some('S'));
        wait_until("it is moved in the call", || {
            assert!(!target.has_said());
            good(&groups[0], enter(&groups[0], "cgroup.procs", target.pid()));
            true
        });
        let said = target.said();
        assert!((said.result, said.errno) == (-1, EINVAL) || (said.result, said.errno) == (-1, libc::EIDRM), "{name}: {said:?}");
    }
}

/// A time namespace with another clock: what is relative takes its time, what is absolute looks at the new clock.
#[test]
fn another_clock() {
    const OFFSET: i64 = 100_000;
    let Some(mount) = mount() else { return };
    let late = group(&mount, "late");
    let offset = format!("--monotonic={OFFSET}");
    let args = ["--time", &offset, "--fork", "--kill-child", program().to_str().expect("text"), "idle", "1"];
    let holder = Target::with(Path::new("/usr/bin/unshare"), &args, |_| {});
    let child = text(format!("/proc/{0}/task/{0}/children", holder.pid()));
    good(&late, set(&late, "time", &format!("/proc/{}/ns/time", child.trim())));
    for (name, result, errno, _) in CALLS {
        if !matches!(
            name,
            "nanosleep" | "clock_nanosleep-relative" | "poll" | "select" | "futex-relative" | "timerfd" | "clock_nanosleep-absolute"
        ) {
            continue;
        }
        let mut target = Target::new(&["call", name]);
        std::thread::sleep(Duration::from_millis(20));
        // Where a loaded machine comes too late it says so itself.
        let moved = enter(&late, "cgroup.procs", target.pid()).is_ok();
        let said = target.said();
        assert_eq!((said.result, said.errno), (result, errno), "{name}");
        let elapsed = said.micros - if said.micros > OFFSET * 500_000 { OFFSET * 1_000_000 } else { 0 };
        assert!(moved || said.micros < OFFSET * 500_000);
        assert!(elapsed > MICROS - 5_000 || name == "clock_nanosleep-absolute", "{name}: {said:?}");
    }
}

/// Moved to and fro until it says something, which it is told to after so many moves.
fn until_told(groups: &[PathBuf; 2], target: &mut Target, times: usize) -> (crate::target::Said, usize) {
    let mut moves = 0;
    while !target.has_said() {
        if moves == times {
            target.send();
        }
        match enter(&groups[moves % 2], "cgroup.procs", target.pid()) {
            Ok(_) => moves += 1,
            Err(errno) => assert!(errno == ESRCH || target.has_said(), "errno {errno}: {}", value(&groups[moves % 2], "ns.last_error")),
        }
    }
    (target.said(), moves)
}

/// Queued signals in order and none lost, registers, restartable sequences, dispatched system calls, stacks without room.
#[test]
fn what_it_counts_is_right() {
    let Some(mount) = mount() else { return };
    let groups = pair(&mount, "web", &ALL);
    let times = rounds(450);
    for mode in ["signals", "registers", "rseq", "dispatch", "tight-stack"] {
        if mode != "signals" && cfg!(not(target_arch = "x86_64")) {
            skipped(&format!("what_it_counts_is_right: {mode}"), "not x86-64");
            continue;
        }
        let mut target = Target::new(&[mode, if mode == "signals" { "2000000000" } else { "3600" }]);
        let (said, moves) = until_told(&groups, &mut target, times);
        report("what_it_counts_is_right", &format!("{mode}: {moves} moves, {said:?}"));
        assert!(said.result > 0);
        assert_eq!(said.extra, 0, "{mode}: {said:?}");
        assert!(mode != "signals" || said.micros == 0, "out of order: {said:?}");
    }
}

/// An ignored SIGTRAP stays ignored, masks and handlers are what they were.
#[test]
fn signals_are_treated_as_before() {
    let Some(mount) = mount() else { return };
    let groups = pair(&mount, "web", &SHARED);
    // SigQ is the user's.
    let own = ["SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"];
    let signals = |target: &Target| {
        let of = |tid| {
            text(format!("/proc/{tid}/status"))
                .lines()
                .filter_map(|line| line.split_once(":\t"))
                .filter(|(name, _)| own.contains(name))
                .map(|(name, mask)| (name.to_owned(), u64::from_str_radix(mask, 16).expect("a mask")))
                .collect::<Vec<_>>()
        };
        target.tids().into_iter().map(of).collect::<Vec<_>>()
    };
    for threads in ["1", "5"] {
        let args = ["--ignore-signal=TRAP,USR2", "--block-signal=TRAP,HUP", program().to_str().expect("text"), "busy", threads];
        let mut target = Target::with(Path::new("/usr/bin/env"), &args, |_| {});
        // A thread that begins has all of them blocked.
        wait_until("all threads run", || signals(&target).iter().all(|own| own.contains(&("SigBlk".to_owned(), 0x11))));
        let before = signals(&target);
        let has = |name: &str, bits: u64| before[0].iter().any(|(own, mask)| own == name && mask & bits == bits);
        assert!(has("SigIgn", 0x810), "{before:?}");
        for n in 0..6 {
            good(&groups[n % 2], enter(&groups[n % 2], "cgroup.procs", target.pid()));
            assert_eq!(signals(&target), before);
        }
        // One that fails.
        good(&groups[0], set(&groups[0], "root", "/nowhere"));
        assert_eq!(enter(&groups[0], "cgroup.procs", target.pid()), Err(libc::ENOENT));
        assert_eq!(signals(&target), before);
        good(&groups[0], set(&groups[0], "root", "inherit"));
        target.alive();
        target.untouched();
    }
}

/// Stopped, it is moved and stays stopped; continued, it is where it was in its work.
#[test]
fn stopped_ones_stay_stopped() {
    let Some(mount) = mount() else { return };
    let groups = pair(&mount, "web", &SHARED);
    for threads in ["1", "5"] {
        let mut target = Target::new(&["busy", threads]);
        target.signal(Signal::SIGSTOP);
        let all_stopped = |target: &Target| target.tids().iter().all(|tid| state(target.pid(), *tid) == Some('T'));
        wait_until("it is stopped", || all_stopped(&target));
        for n in 0..6 {
            good(&groups[n % 2], enter(&groups[n % 2], "cgroup.procs", target.pid()));
            assert!(is_there(&groups[n % 2], &target, &SHARED));
            wait_until("it is stopped again", || all_stopped(&target));
        }
        target.signal(Signal::SIGCONT);
        target.alive();
        target.untouched();
    }
}

/// Threads, children and programs that come and go while their process moves: whoever is there afterwards is where the group is.
#[test]
fn those_who_come_and_go() {
    let Some(mount) = mount() else { return };
    let groups = pair(&mount, "web", &SHARED);
    for args in [["churn-alive", "3"], ["chain", "2"]] {
        let mut target = Target::new(&args);
        let mut busy = 0;
        let mut moves = 0;
        while moves < rounds(150) {
            let to = &groups[moves % 2];
            match enter(to, "cgroup.procs", target.pid()) {
                Ok(_) => moves += 1,
                // It creates threads all the time, and may be told to wait.
                Err(EBUSY) if busy < 20 => {
                    busy += 1;
                    continue;
                }
                Err(errno) => panic!("{args:?}: errno {errno}: {}", value(to, "ns.last_error")),
            }
            let shown = PathBuf::from(value(to, "ns.net"));
            for tid in target.tids() {
                let net = std::fs::read_link(format!("/proc/{}/task/{tid}/ns/net", target.pid()));
                assert!(net.is_err() || net.as_ref().is_ok_and(|net| *net == shown), "{args:?}: {tid}: {net:?} after {moves} moves");
            }
        }
        report("those_who_come_and_go", &format!("{args:?}: {moves} moves, {busy} given up"));
        target.alive();
        target.untouched();
    }
    // Each child ends as it would.
    let target = Target::new(&["fork"]);
    for n in 0..rounds(300) {
        good(&groups[n % 2], enter(&groups[n % 2], "cgroup.procs", target.pid()));
    }
    assert!(!target.has_said(), "a child was disturbed");
    target.untouched();
}

/// A thread that is not the leader executes the program again and again.
#[test]
fn programs_that_execute() {
    let Some(mount) = mount() else { return };
    let groups = pair(&mount, "web", &SHARED);
    let mut target = Target::new(&["exec", &rounds(600).to_string()]);
    let (mut moves, mut busy) = (0, 0);
    while !target.has_said() {
        let to = &groups[moves % 2];
        match enter(to, "cgroup.procs", target.pid()) {
            Ok(_) => moves += 1,
            Err(EBUSY) => busy += 1,
            Err(ESRCH) if target.has_said() => {}
            Err(errno) => panic!("errno {errno} after {moves} moves: {}", value(to, "ns.last_error")),
        }
    }
    assert_eq!(target.said().result, 0);
    report("programs_that_execute", &format!("{moves} moves, {busy} given up"));
}

/// A dead leader, and filters that would kill.
#[test]
fn those_in_odd_states() {
    let Some(mount) = mount() else { return };
    let groups = pair(&mount, "web", &SHARED);
    for args in [&["dead-leader", "4"][..], &["filtered"]] {
        let mut target = Target::new(args);
        if args.len() > 1 {
            wait_until("the leader is dead", || state(target.pid(), target.pid()) == Some('Z'));
        }
        for to in &groups {
            good(to, enter(to, "cgroup.procs", target.pid()));
            let alive = |tid: &i32| state(target.pid(), *tid) != Some('Z');
            for tid in target.tids().into_iter().filter(alive) {
                assert_eq!(ns_of(tid, "net"), value(to, "ns.net"), "{args:?}");
                assert!(ids(to.join("tasks")).contains(&tid), "{args:?}");
            }
        }
        target.alive();
        target.untouched();
    }
}
