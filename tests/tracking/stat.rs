//! `cgfuse.stat`: which back end is at work and what it has seen. And which one is chosen.

use std::os::unix::fs::PermissionsExt;

use super::family::{Family, allowed};
use super::side::{BPF, Config, NETLINK, NETLINK_USER, PERF, PERF_USER, SCAN, SCAN_USER, Side, USER, refusal, test_name};
use crate::common::{self, is_root, skipped, wait_until};

const ROWS: [&str; 8] = ["tracker", "events", "lost", "rescans", "guessed", "asked", "drift", "css_sets"];

#[test]
fn stat_is_flat_keyed_and_read_only() {
    let Some(side) = Side::best(0, "") else { return };
    let file = side.dir().join("cgfuse.stat");
    let meta = std::fs::metadata(&file).expect("stat");
    assert_eq!((meta.permissions().mode() & 0o7777, meta.len()), (0o444, 0));
    let text = String::from_utf8(common::read(&file).expect("read")).expect("text");
    assert!(text.ends_with('\n'));
    let rows: Vec<_> = text.lines().map(|line| line.split_once(' ').expect("a name and a value")).collect();
    assert_eq!(rows.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ROWS);
    assert!(["bpf", "perf", "netlink", "scan"].contains(&rows[0].1), "{text}");
    rows[1..].iter().for_each(|(name, value)| assert!(value.parse::<u64>().is_ok(), "{name} {value}"));
    // As the kernel's own files that are read only: root may open them, and the write is refused.
    let twin = side.dir().join("cpuset.effective_cpus");
    for text in ["", "0", "tracker scan\n"] {
        assert_eq!(common::write(&file, text), common::write(&twin, text), "{text:?}");
    }
    assert_eq!(common::write(&file, "0"), Err(libc::EINVAL));
    // For the root only.
    side.group("g", "0");
    assert!(!side.dir().join("g/cgfuse.stat").exists());
    let Some(users) = Side::best(USER, "") else { return };
    assert_eq!(users.write("cgfuse.stat", "0"), Err(libc::EACCES));
}

/// Every back end counts what happens.
#[test]
fn stat_counts_move() {
    for config in [BPF, PERF, NETLINK, SCAN, NETLINK_USER, PERF_USER, SCAN_USER] {
        let Some(side) = Side::ours(config) else { continue };
        assert_eq!(side.tracker(), config.tracker);
        side.group("g", "0");
        let (family, mut node) = Family::new(config.uid);
        let before = side.stat();
        side.write("g/cgroup.procs", &node.tid.to_string()).expect("attach");
        let children: Vec<_> = (0..20).map(|_| family.born(&mut node, "fork")).collect();
        let mut want: Vec<i32> = children.iter().map(|child| child.tid).chain([node.tid]).collect();
        want.sort_unstable();
        assert_eq!(side.ids("g/tasks"), want, "{config:?}");
        let after = side.stat();
        assert!(after["css_sets"] >= 1, "{config:?}: {after:?}");
        assert_eq!(after["lost"], before["lost"], "{config:?}");
        // Of a process that is listened to from now on, /proc is read once, with whoever has come since the last time.
        if config != PERF_USER {
            assert_eq!(after["guessed"], before["guessed"], "{config:?}");
        }
        // Twenty forks. Where BPF programs keep the table nobody hears of them.
        if config != BPF {
            wait_until(&format!("{config:?} counts: {before:?} {:?}", side.stat()), || side.stat()["events"] >= before["events"] + 20);
        }
        drop((children, node));
        drop(family);
        wait_until("the group is empty", || side.ids("g/tasks").is_empty());
    }
}

/// Without a wish the best one that works.
#[test]
fn the_best_one_is_chosen() {
    for (uid, order) in [(0, &["bpf", "perf", "netlink", "scan"][..]), (USER, &["netlink", "perf", "scan"])] {
        let Some(side) = Side::best(uid, "") else { continue };
        let best = order.iter().find(|name| allowed(name, uid)).expect("scan works everywhere");
        assert_eq!(side.tracker(), *best, "uid {uid}");
        let not: Vec<_> = order.iter().take_while(|name| *name != best).collect();
        if !not.is_empty() {
            skipped(&test_name(), &format!("this machine forbids {not:?} to uid {uid}"));
        }
    }
}

/// What does not work is not replaced by something else in silence.
#[test]
fn wrong_trackers_are_refused() {
    if !is_root() || !common::can_mount() {
        return skipped(&test_name(), "needs root and /dev/fuse");
    }
    for name in ["", "bpff", "BPF", "auto,tracker=none"] {
        let said = refusal(SCAN, &format!("tracker={name}"));
        assert!(said.contains("tracker"), "{name}: {said}");
    }
    if !allowed("bpf", USER) && Side::best(USER, "").is_some() {
        let said = refusal(Config { tracker: "bpf", uid: USER }, "tracker=bpf");
        assert!(said.contains("bpf"), "{said}");
    }
}
