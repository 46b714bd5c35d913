//! A fork bomb inside a group: the server answers, the members are right, and the group's own file is enough to end it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::family::start;
use super::side::{BPF, Config, NETLINK, PERF, SCAN, Side, test_name};
use crate::common::{PATIENCE, affinity, holds_within, state, wait_until};
use crate::storm::{report, rounds};

/// So many processes the bomb may have.
const LIMIT: usize = 120;

/// The live processes of a user.
fn processes_of(uid: u32) -> BTreeSet<i32> {
    let entries = fs::read_dir("/proc").expect("proc").flatten();
    let of_user = entries.filter(|e| e.metadata().is_ok_and(|meta| meta.uid() == uid));
    let pids = of_user.filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(|pid| !matches!(state(*pid, *pid), None | Some('Z' | 'X'))).collect()
}

fn bomb(config: Config, lenient: bool) {
    let Some(side) = Side::ours(config) else { return };
    side.group("g", "1");
    // A user who is nobody else's, also when two such tests run at once.
    let uid = 100_000 + std::process::id() * 8 + u32::from(config.tracker.as_bytes()[0]) % 8;
    let mut first = start(&["bomb", &LIMIT.to_string(), &uid.to_string()], 0, |command| {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
    });
    let (mut fuse, mut line) = (first.stdin.take().expect("piped"), String::new());
    BufReader::new(first.stdout.take().expect("piped")).read_line(&mut line).expect("the bomb answers");
    side.write("g/cgroup.procs", line.trim()).expect("attach");
    fuse.write_all(b"!").expect("the bomb listens");
    wait_until("the bomb has gone off", || side.ids("g/tasks").len() > LIMIT / 2);
    let (mut slowest, mut reads, end) = (Duration::ZERO, 0, Instant::now() + Duration::from_millis(rounds(1000) as u64));
    while Instant::now() < end {
        let begin = Instant::now();
        let members = side.ids("g/tasks").len() + side.ids("g/cgroup.procs").len();
        slowest = slowest.max(begin.elapsed());
        reads += 1;
        assert!(members <= 2 * (LIMIT + 1), "{members} members");
    }
    // Stopped, one after the other, until there are none who could have forked.
    let group = || side.ids("g/tasks").into_iter().collect::<BTreeSet<_>>();
    let moving = |pid: &i32| !matches!(state(*pid, *pid), None | Some('Z' | 'X' | 'T'));
    wait_until("all have stopped", || {
        let members = group();
        members.iter().for_each(|pid| _ = kill(Pid::from_raw(*pid), Signal::SIGSTOP));
        !members.iter().any(moving) && members == group()
    });
    let (members, truth) = (group(), processes_of(uid));
    report(&test_name(), &format!("reads={reads} slowest={slowest:?} members={} {}", members.len(), side.doubts()));
    let missing: Vec<_> = truth.difference(&members).collect();
    let strange: Vec<_> = members.difference(&truth).collect();
    // Children whose parents have exited are the documented gap; there are none, for nobody exits here.
    assert!(
        strange.is_empty() && (missing.is_empty() || lenient && missing.len() * 10 < truth.len()),
        "missing {missing:?}, strange {strange:?}"
    );
    wait_until("their CPUs are the group's", || members.iter().all(|pid| affinity(*pid) == [1]));
    wait_until("all are killed", || {
        let members = group();
        members.iter().for_each(|pid| _ = kill(Pid::from_raw(*pid), Signal::SIGKILL));
        members.is_empty()
    });
    // Who exits is no member any more before he is dead.
    let are_dead = lenient || holds_within(PATIENCE, || processes_of(uid).is_empty());
    let left = processes_of(uid);
    left.iter().for_each(|pid| _ = kill(Pid::from_raw(*pid), Signal::SIGKILL));
    drop(fuse);
    first.wait().expect("a child of ours");
    assert!(are_dead, "{left:?} are left");
    wait_until("the group goes", || fs::remove_dir(side.dir().join("g")).is_ok());
}

#[test]
fn bomb_bpf() {
    bomb(BPF, false);
}

#[test]
fn bomb_perf() {
    bomb(PERF, false);
}

#[test]
fn bomb_netlink() {
    bomb(NETLINK, false);
}

#[test]
fn bomb_scan() {
    bomb(SCAN, true);
}
