//! Members that change their own affinity: within the group's CPUs it is their wish; beyond, they are put back, and the wish is remembered as
//! the kernel remembers it.

use super::family::{Family, Node};
use super::side::{BPF, Config, NETLINK, NETLINK_USER, PERF, SCAN, Side, USER, test_name};
use crate::common::kernels::THERE;
use crate::common::{affinity, raw, skipped, wait_until};

/// A group `g` with these CPUs, and a member.
struct World {
    side: Side,
    family: Family,
}

fn world(side: Option<Side>, uid: u32, cpus: &str) -> Option<(World, Node)> {
    let side = side?;
    if affinity(0) != [0, 1] {
        skipped(&test_name(), "needs the CPUs 0 and 1, no more");
        return None;
    }
    side.group("g", cpus);
    let (family, node) = Family::new(uid);
    side.write("g/cgroup.procs", &node.tid.to_string()).expect("attach");
    Some((World { side, family }, node))
}

impl World {
    fn cpus(&self, cpus: &str) {
        self.side.write("g/cpuset.cpus", cpus).expect("cpus");
    }

    /// Ours follows within a second; the kernel has not let it happen.
    #[track_caller]
    fn comes_to(&self, tid: i32, cpus: &[usize]) {
        if self.side.is_kernels() {
            assert_eq!(affinity(tid), cpus);
        } else {
            wait_until(&format!("{tid} runs on {cpus:?} instead of {:?}", affinity(tid)), || affinity(tid) == cpus);
        }
    }

    fn drift(&self) -> u64 {
        if self.side.is_kernels() { 0 } else { self.side.stat()["drift"] }
    }

    /// It has been counted that a task was put back, if it was, which only ours has to.
    fn counts(&self, before: u64) {
        if !self.side.is_kernels() {
            wait_until("it is counted", || self.drift() > before);
            if std::env::var_os(THERE).is_some() {
                wait_until("it is told", || self.side.stat()["asked"] >= self.drift());
            }
        }
    }
}

/// By itself, by another one's hand, in a thread.
fn widens(side: Option<Side>, uid: u32) {
    let Some((w, mut node)) = world(side, uid, "0") else { return };
    let before = w.drift();
    node.does("affinity 0,1");
    w.comes_to(node.tid, &[0]);
    w.counts(before);
    // It has a wish now, which is to run everywhere.
    w.cpus("1");
    assert_eq!(affinity(node.tid), [1]);
    w.cpus("0-1");
    assert_eq!(affinity(node.tid), [0, 1]);
    w.cpus("0");
    let before = w.drift();
    let tid = node.tid;
    w.side.run(|| raw::setaffinity(tid, &[0, 1])).expect("setaffinity");
    w.comes_to(tid, &[0]);
    w.counts(before);
    let mut thread = w.family.born(&mut node, "thread");
    // Not necessarily counted: whoever is new is looked at anyway.
    thread.does("affinity 0,1");
    w.comes_to(thread.tid, &[0]);
    assert_eq!(affinity(node.tid), [0]);
}

/// Within the group that is everybody's right.
fn narrows(side: Option<Side>, uid: u32) {
    let Some((w, mut node)) = world(side, uid, "0-1") else { return };
    let before = w.drift();
    node.does("affinity 1");
    // Everybody born from now on has it from his creator.
    let (child, thread) = (w.family.born(&mut node, "fork"), w.family.born(&mut node, "thread"));
    let all = [node.tid, child.tid, thread.tid];
    for (cpus, want) in [("0-1", vec![1]), ("0", vec![0]), ("0-1", vec![1]), ("1", vec![1]), ("0-1", vec![1])] {
        w.cpus(cpus);
        all.iter().for_each(|tid| assert_eq!(affinity(*tid), want, "{cpus}"));
    }
    assert_eq!(w.drift(), before, "nobody was put back");
    // And leaving does not take it away.
    w.side.write("cgroup.procs", &node.tid.to_string()).expect("attach");
    assert_eq!((affinity(node.tid), affinity(thread.tid)), (vec![1], vec![1]));
}

/// A child that is born after the change is where its creator should be, and wishes what its creator wishes.
fn is_inherited(side: Option<Side>, uid: u32) {
    let Some((w, mut node)) = world(side, uid, "0") else { return };
    node.does("affinity 0,1");
    let (mut child, thread) = (w.family.born(&mut node, "fork"), w.family.born(&mut node, "thread"));
    let grandchild = w.family.born(&mut child, "fork");
    let all = [node.tid, child.tid, thread.tid, grandchild.tid];
    all.iter().for_each(|tid| w.comes_to(*tid, &[0]));
    w.cpus("1");
    all.iter().for_each(|tid| w.comes_to(*tid, &[1]));
    w.cpus("0-1");
    all.iter().for_each(|tid| w.comes_to(*tid, &[0, 1]));
}

/// Before anybody has looked at the newborn, they have changed their minds.
fn newborns(side: Option<Side>, uid: u32) {
    let Some((w, mut node)) = world(side, uid, "0-1") else { return };
    let (mut child, mut thread) = (w.family.born(&mut node, "fork"), w.family.born(&mut node, "thread"));
    child.does("affinity 1");
    thread.does("affinity 0");
    let grandchild = w.family.born(&mut child, "fork");
    let tids = [node.tid, child.tid, thread.tid, grandchild.tid];
    for (cpus, want) in [("0", [&[0][..], &[0], &[0], &[0]]), ("0-1", [&[0, 1], &[1], &[0], &[1]]), ("1", [&[1], &[1], &[1], &[1]])] {
        w.cpus(cpus);
        assert_eq!(tids.map(affinity), want.map(<[usize]>::to_vec), "{cpus}");
    }
}

/// Outside its group: the kernel refuses that (EINVAL), here it lasts until somebody looks.
fn goes_outside(side: Side, uid: u32) {
    let Some((w, mut node)) = world(Some(side), uid, "0") else { return };
    for _ in 0..2 {
        let before = w.drift();
        node.does("affinity 1");
        w.comes_to(node.tid, &[0]);
        w.counts(before);
    }
    w.cpus("0-1");
    w.cpus("1");
    assert_eq!(affinity(node.tid), [1]);
    // However often: once in the log.
    let said = w.side.log().lines().filter(|line| line.contains(&node.tid.to_string())).count();
    if uid == 0 {
        assert_eq!(said, 1, "{}", w.side.log());
    }
}

fn all(config: Config) {
    let Some(side) = Side::ours(config) else { return };
    goes_outside(side, config.uid);
    for script in [widens, narrows, is_inherited, newborns] {
        script(Side::ours(config), config.uid);
    }
}

#[test]
fn drift_of_the_kernel() {
    for script in [widens, narrows, is_inherited, newborns] {
        script(Side::cpuset(), 0);
    }
}

#[test]
fn drift_bpf() {
    all(BPF);
}

#[test]
fn drift_perf() {
    all(PERF);
}

#[test]
fn drift_netlink() {
    all(NETLINK);
}

#[test]
fn drift_netlink_of_a_user() {
    assert_eq!(NETLINK_USER.uid, USER);
    all(NETLINK_USER);
}

#[test]
fn drift_scan() {
    all(SCAN);
}
