//! Namespaces and directories of processes with one and many threads.

use std::collections::BTreeSet;
use std::path::PathBuf;

use cgfuse::inject::{Arg, Descriptor, Namespace, Plan, Syscall, Target as Whom};

use super::target::{CGROUP, DEADLINE, IPC, MNT, NET, Target, UTS, call, file, holder, injector, namespace, setns};
use crate::common::{TempDir, is_root, skipped};

const KINDS: [(Namespace, i32); 5] =
    [(Namespace::Net, NET), (Namespace::Uts, UTS), (Namespace::Ipc, IPC), (Namespace::Mnt, MNT), (Namespace::Cgroup, CGROUP)];

fn link(tid: i32, name: &str) -> PathBuf {
    std::fs::read_link(format!("/proc/{tid}/{name}")).expect("a link")
}

/// Each kind alone, there and back, of a process with so many threads.
fn each_kind(threads: usize) {
    let holder = holder(NET | UTS | IPC | MNT | CGROUP);
    let mut injector = injector();
    let mut target = Target::new(&["idle", &threads.to_string()]);
    let back = Target::new(&["idle", "1"]);
    assert_eq!(target.tids().len(), threads);
    for (kind, flag) in KINDS {
        // A mount namespace alone cannot be entered by one of several threads that share their directories.
        let flags = if kind == Namespace::Mnt && threads > 1 { MNT | UTS } else { flag };
        for (to, from) in [(&holder, &back), (&back, &holder)] {
            let mut plan = setns(to.pid(), from.pid(), flags);
            plan.expect.push((kind, to.namespace(kind)));
            let report = injector.inject(Whom::Process(target.pid()), &plan, DEADLINE).unwrap_or_else(|e| panic!("{kind}, {threads}: {e}"));
            assert_eq!(report.threads, threads, "{kind}");
            let there: BTreeSet<u64> = target.namespaces(kind).into_iter().collect();
            assert_eq!(there, BTreeSet::from([to.namespace(kind)]), "{kind}");
        }
    }
    target.untouched();
    target.alive();
}

#[test]
fn one_thread() {
    if !is_root() {
        return skipped("one_thread", "not root");
    }
    each_kind(1);
}

#[test]
fn five_threads() {
    if !is_root() {
        return skipped("five_threads", "not root");
    }
    each_kind(5);
}

#[test]
fn a_hundred_threads() {
    if !is_root() {
        return skipped("a_hundred_threads", "not root");
    }
    each_kind(100);
}

#[test]
fn a_thousand_threads() {
    if !is_root() {
        return skipped("a_thousand_threads", "not root");
    }
    each_kind(1000);
}

/// All kinds at once, by descriptors that are handed over.
#[test]
fn by_files() {
    if !is_root() {
        return skipped("by_files", "not root");
    }
    let holder = holder(NET | UTS | IPC | CGROUP);
    let mut injector = injector();
    for threads in ["1", "7"] {
        let mut target = Target::new(&["busy", threads]);
        let fds = std::fs::read_dir(format!("/proc/{}/fd", target.pid())).expect("fds").count();
        let mut plan = Plan::default();
        for kind in [Namespace::Net, Namespace::Uts, Namespace::Ipc, Namespace::Cgroup] {
            let fd = plan.fd(file(format!("/proc/{}/ns/{kind}", holder.pid())));
            plan.step(call(Syscall::Setns, [fd, 0.into()]), vec![]);
            plan.expect.push((kind, holder.namespace(kind)));
        }
        injector.inject(Whom::Process(target.pid()), &plan, DEADLINE).expect("moved");
        target.alive();
        // Nothing is left: descriptors, memory.
        assert_eq!(std::fs::read_dir(format!("/proc/{}/fd", target.pid())).expect("fds").count(), fds);
    }
}

/// Threads that do not share their descriptors each get them.
#[test]
fn threads_with_descriptors_of_their_own() {
    if !is_root() {
        return skipped("threads_with_descriptors_of_their_own", "not root");
    }
    let holder = holder(NET | UTS);
    let mut injector = injector();
    let mut target = Target::new(&["own-files", "5"]);
    let fds = |tid| std::fs::read_dir(format!("/proc/{tid}/fd")).expect("fds").count();
    let before: Vec<usize> = target.tids().into_iter().map(fds).collect();
    let mut plan = Plan::default();
    let (net, uts) = (plan.fd(file(format!("/proc/{}/ns/net", holder.pid()))), plan.fd(Descriptor::Pidfd(holder.pid())));
    plan.step(call(Syscall::Setns, [net, 0.into()]), vec![]).step(call(Syscall::Setns, [uts, UTS.into()]), vec![]);
    let report = injector.inject(Whom::Process(target.pid()), &plan, DEADLINE).expect("moved");
    assert_eq!(report.threads, 5);
    for kind in [Namespace::Net, Namespace::Uts] {
        assert_eq!(target.namespaces(kind), vec![holder.namespace(kind); 5]);
    }
    assert_eq!(target.tids().into_iter().map(fds).collect::<Vec<_>>(), before);
    target.alive();
}

/// One thread of several moves; the others stay.
#[test]
fn a_single_thread() {
    if !is_root() {
        return skipped("a_single_thread", "not root");
    }
    let holder = holder(NET);
    let mut injector = injector();
    let mut target = Target::new(&["busy", "5"]);
    let home = target.namespace(Namespace::Net);
    let tid = *target.tids().last().expect("a thread");
    injector.inject(Whom::Thread(tid), &setns(holder.pid(), holder.pid(), NET), DEADLINE).expect("moved");
    for other in target.tids() {
        let expected = if other == tid { holder.namespace(Namespace::Net) } else { home };
        assert_eq!(namespace(other, Namespace::Net), expected);
    }
    target.alive();
    target.untouched();
}

/// A dead leader does not keep its threads from moving, and its process ends as it would.
#[test]
fn a_dead_leader() {
    if !is_root() {
        return skipped("a_dead_leader", "not root");
    }
    let holder = holder(UTS);
    let mut injector = injector();
    let mut target = Target::new(&["dead-leader", "4"]);
    let report = injector.inject(Whom::Process(target.pid()), &setns(holder.pid(), holder.pid(), UTS), DEADLINE).expect("moved");
    assert_eq!(report.threads, 4);
    target.alive();
}

/// Root and working directory, with arguments in memory, and back by descriptors.
#[test]
fn chroot_and_chdir() {
    if !is_root() {
        return skipped("chroot_and_chdir", "not root");
    }
    let mut injector = injector();
    for threads in ["1", "6"] {
        let dir = TempDir::new();
        std::fs::create_dir(dir.path().join("sub")).expect("mkdir");
        let mut target = Target::new(&["idle", threads]);
        let cwd = link(target.pid(), "cwd");
        let mut plan = Plan::default();
        let path = plan.data([dir.path().as_os_str().as_encoded_bytes(), b"\0"].concat());
        let sub = plan.data(*b"/sub\0");
        plan.step(call(Syscall::Chroot, [path]), vec![]).step(call(Syscall::Chdir, [sub]), vec![]);
        injector.inject(Whom::Process(target.pid()), &{ plan }, DEADLINE).unwrap_or_else(|e| panic!("{threads}: {e}"));
        for tid in target.tids() {
            assert_eq!(link(tid, "root"), dir.path());
            assert_eq!(link(tid, "cwd"), dir.path().join("sub"));
        }
        let mut plan = Plan::default();
        let (root, old, dot) = (plan.fd(file("/")), plan.fd(file(&cwd)), plan.data(*b".\0"));
        plan.step(call(Syscall::Fchdir, [root]), vec![]).step(call(Syscall::Chroot, [dot]), vec![]);
        plan.step(call(Syscall::Fchdir, [old]), vec![]);
        injector.inject(Whom::Process(target.pid()), &plan, DEADLINE).expect("moved back");
        assert_eq!(link(target.pid(), "root"), PathBuf::from("/"));
        assert_eq!(link(target.pid(), "cwd"), cwd);
        target.alive();
    }
}

/// prctl, set_mempolicy and unshare.
#[test]
fn other_calls() {
    let mut injector = injector();
    let mut target = Target::new(&["idle", "3"]);
    let mut plan = Plan::default();
    let name = plan.data(*b"renamed\0");
    plan.step(call(Syscall::Prctl, [Arg::from(libc::PR_SET_NAME), name]), vec![]);
    plan.step(call(Syscall::Unshare, [libc::CLONE_FS.into()]), vec![]);
    injector.inject(Whom::Process(target.pid()), &plan, DEADLINE).expect("executed");
    for tid in target.tids() {
        assert_eq!(std::fs::read_to_string(format!("/proc/{tid}/comm")).expect("comm"), "renamed\n");
    }
    let mut plan = Plan::default();
    let nodes = plan.data(1_u64.to_le_bytes());
    // MPOL_BIND.
    plan.step(call(Syscall::SetMempolicy, [2.into(), nodes, 64.into()]), vec![]);
    injector.inject(Whom::Process(target.pid()), &plan, DEADLINE).expect("executed");
    let maps = std::fs::read_to_string(format!("/proc/{}/numa_maps", target.pid())).unwrap_or_default();
    assert!(maps.is_empty() || maps.contains("bind:0"), "{maps}");
    target.alive();
    target.untouched();
}
