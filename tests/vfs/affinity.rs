//! `cpuset.cpus` is real: where threads run, what they asked for themselves, what cannot be moved.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno::{EBUSY, EINVAL, ENOSPC};

use super::actor::{Actor, Arg, Outcome};
use super::trees::{both, configured, free, on_kernel, on_ours, test_name};
use crate::common::{Target, affinity, ids, skipped, state, wait_until};

fn moves(a: &Actor, file: &Path, pid: i32) -> Outcome {
    a.put(file, pid.to_string()).map(|_| 0)
}

/// A group of these CPUs.
fn group(tree: &Path, name: &str, cpus: &str) -> PathBuf {
    let dir = tree.join(name);
    Actor::new().put(&configured(&dir).join("cpuset.cpus"), cpus).expect("cpus");
    dir
}

/// Fields of /proc/PID/task/TID/stat behind the name, the state being 0.
fn stat(pid: i32, tid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    Some(text[text.rfind(')')? + 2..].split(' ').map(str::to_owned).collect())
}

fn last_ran_on(pid: i32, tid: i32) -> usize {
    stat(pid, tid).expect("a thread")[36].parse().expect("a CPU")
}

fn running_threads_are_pinned(tree: &Path) {
    let (a, busy) = (Actor::new(), Actor::new());
    let tids = [busy.spin(), busy.spin(), busy.spin()];
    let g = group(tree, "g", "1");
    moves(&a, &g.join("cgroup.procs"), busy.id).expect("attach");
    for cpu in [1, 0, 1, 0] {
        a.put(&g.join("cpuset.cpus"), cpu.to_string()).expect("cpus");
        for tid in tids {
            assert_eq!(affinity(tid), [cpu]);
            assert_eq!(last_ran_on(busy.id, tid), cpu);
        }
    }
    a.put(&g.join("cpuset.cpus"), "0-1").expect("cpus");
    assert_eq!(affinity(tids[0]), [0, 1]);
    // One alone.
    let one = group(tree, "one", "1");
    moves(&a, &one.join("tasks"), tids[1]).expect("attach");
    assert_eq!([affinity(tids[0]), affinity(tids[1])], [vec![0, 1], vec![1]]);
    assert_eq!(last_ran_on(busy.id, tids[1]), 1);
}

fn many_threads(tree: &Path) {
    let (a, many) = (Actor::new(), Actor::new());
    many.park(300);
    let g = group(tree, "g", "1");
    moves(&a, &g.join("cgroup.procs"), many.id).expect("attach");
    let tids = ids(g.join("tasks"));
    assert_eq!(tids.len(), 301);
    assert!(tids.iter().all(|tid| affinity(*tid) == [1]));
    a.put(&g.join("cpuset.cpus"), "0").expect("cpus");
    assert!(tids.iter().all(|tid| affinity(*tid) == [0]));
    moves(&a, &tree.join("cgroup.procs"), many.id).expect("attach");
    assert!(tids.iter().all(|tid| affinity(*tid) == [0, 1]));
}

/// A mask of one's own from before: honoured where possible, and never forgotten.
fn own_mask_from_before(tree: &Path) {
    let a = Actor::new();
    let mut target = Target::new();
    let pid = target.pid();
    target.setaffinity(pid, &[1]).expect("setaffinity");
    let (g, zero) = (group(tree, "g", "0-1"), group(tree, "zero", "0"));
    let cpus = |cpus: &str| a.put(&g.join("cpuset.cpus"), cpus).expect("cpus");
    let root = tree.parent().expect("the root");
    moves(&a, &g.join("tasks"), pid).expect("attach");
    assert_eq!(affinity(pid), [1]);
    cpus("0");
    assert_eq!(affinity(pid), [0], "nothing in common");
    cpus("0-1");
    assert_eq!(affinity(pid), [1], "again what it asked for");
    cpus("1");
    assert_eq!(affinity(pid), [1]);
    moves(&a, &zero.join("tasks"), pid).expect("attach");
    assert_eq!(affinity(pid), [0]);
    moves(&a, &g.join("tasks"), pid).expect("attach");
    assert_eq!(affinity(pid), [1]);
    moves(&a, &zero.join("tasks"), pid).expect("attach");
    moves(&a, &root.join("tasks"), pid).expect("attach");
    assert_eq!(affinity(pid), [1], "leaving gives it back");
}

/// A mask asked for as a member.
fn own_mask_as_a_member(tree: &Path) {
    let a = Actor::new();
    let mut target = Target::new();
    let pid = target.pid();
    let g = group(tree, "g", "0-1");
    let cpus = |cpus: &str| a.put(&g.join("cpuset.cpus"), cpus).expect("cpus");
    moves(&a, &g.join("tasks"), pid).expect("attach");
    target.setaffinity(pid, &[0]).expect("setaffinity");
    assert_eq!(affinity(pid), [0]);
    cpus("1");
    assert_eq!(affinity(pid), [1]);
    cpus("0-1");
    assert_eq!(affinity(pid), [0]);
    // Wide again by its own wish.
    target.setaffinity(pid, &[0, 1]).expect("setaffinity");
    cpus("1");
    cpus("0-1");
    assert_eq!(affinity(pid), [0, 1]);
    moves(&a, &tree.parent().expect("the root").join("tasks"), pid).expect("attach");
    assert_eq!(affinity(pid), [0, 1]);
}

fn leaving_gives_back(tree: &Path) {
    let a = Actor::new();
    let (zero, one) = (group(tree, "zero", "0"), group(tree, "one", "1"));
    let root = tree.parent().expect("the root");
    let mut target = Target::new();
    let (pid, thread) = (target.pid(), target.thread());
    target.setaffinity(thread, &[0]).expect("setaffinity");
    for first in [&zero, &one] {
        moves(&a, &first.join("cgroup.procs"), pid).expect("attach");
        moves(&a, &one.join("cgroup.procs"), pid).expect("attach");
        assert_eq!((affinity(pid), affinity(thread)), (vec![1], vec![1]));
        moves(&a, &root.join("cgroup.procs"), pid).expect("attach");
        assert_eq!((affinity(pid), affinity(thread)), (free(), vec![0]));
    }
}

/// Children and new threads inherit what their maker asked for, not only what it had.
fn inherited(tree: &Path) {
    let a = Actor::new();
    let mut target = Target::new();
    let pid = target.pid();
    target.setaffinity(pid, &[1]).expect("setaffinity");
    let g = group(tree, "g", "0-1");
    let cpus = |cpus: &str| a.put(&g.join("cpuset.cpus"), cpus).expect("cpus");
    moves(&a, &g.join("tasks"), pid).expect("attach");
    let (child, thread) = (target.fork(), target.thread());
    cpus("0");
    let (late_child, late_thread) = (target.fork(), target.thread());
    for id in [child, thread, late_child, late_thread] {
        assert_eq!(affinity(id), [0]);
    }
    cpus("0-1");
    for id in [child, thread, late_child, late_thread] {
        assert_eq!(affinity(id), [1]);
    }
}

fn each_thread_its_own(tree: &Path) {
    let a = Actor::new();
    let mut target = Target::new();
    let (leader, t0, t1) = (target.pid(), target.thread(), target.thread());
    target.setaffinity(t0, &[0]).expect("setaffinity");
    target.setaffinity(t1, &[1]).expect("setaffinity");
    let g = group(tree, "g", "0-1");
    moves(&a, &g.join("cgroup.procs"), leader).expect("attach");
    let masks = || [affinity(leader), affinity(t0), affinity(t1)];
    assert_eq!(masks(), [vec![0, 1], vec![0], vec![1]]);
    a.put(&g.join("cpuset.cpus"), "0").expect("cpus");
    assert_eq!(masks(), [vec![0], vec![0], vec![0]]);
    a.put(&g.join("cpuset.cpus"), "1").expect("cpus");
    assert_eq!(masks(), [vec![1], vec![1], vec![1]]);
    a.put(&g.join("cpuset.cpus"), "0-1").expect("cpus");
    assert_eq!(masks(), [vec![0, 1], vec![0], vec![1]]);
}

/// What does not change the set leaves masks alone.
fn what_does_not_matter(tree: &Path) {
    let a = Actor::new();
    let mut target = Target::new();
    let pid = target.pid();
    let g = group(tree, "g", "0-1");
    moves(&a, &g.join("tasks"), pid).expect("attach");
    target.setaffinity(pid, &[1]).expect("setaffinity");
    for (name, text) in [
        ("cpuset.cpus", "0-1"),
        ("cpuset.cpus", "1,0"),
        ("cpuset.mems", "0"),
        ("cpuset.mem_hardwall", "1"),
        ("cpuset.memory_migrate", "1"),
        ("cpuset.sched_load_balance", "0"),
        ("cpuset.sched_load_balance", "1"),
        ("notify_on_release", "1"),
        ("notify_on_release", "0"),
        ("cgroup.clone_children", "1"),
    ] {
        assert_eq!(a.put(&g.join(name), text), Ok(text.len() as i64), "{name}");
        assert_eq!(affinity(pid), [1], "{name}");
    }
    assert_eq!(a.put(&g.join("cpuset.cpus"), "x"), Err(EINVAL));
    a.rename(&g, &tree.join("h"), 0).expect("rename");
    a.mkdir(&tree.join("h/child"), 0o755).expect("mkdir");
    assert_eq!(affinity(pid), [1]);
    // A child group is none of its parent's members' business.
    a.put(&tree.join("h/child/cpuset.cpus"), "0").expect("cpus");
    assert_eq!(affinity(pid), [1]);
    assert_eq!(a.rmdir(&tree.join("h/child")), Ok(0));
}

/// A group needs both before somebody can be in it.
fn bare_groups_take_nobody(tree: &Path) {
    let (a, target) = (Actor::new(), Target::new());
    let g = tree.join("g");
    a.mkdir(&g, 0o755).expect("mkdir");
    for (name, set) in [("cpuset.cpus", "0"), ("cpuset.mems", "0")] {
        for file in ["tasks", "cgroup.procs"] {
            assert_eq!(moves(&a, &g.join(file), target.pid()), Err(ENOSPC), "before {name}");
        }
        a.put(&g.join(name), set).expect(name);
        assert_eq!(affinity(target.pid()), free());
    }
    assert_eq!(moves(&a, &g.join("tasks"), target.pid()), Ok(0));
    assert_eq!(affinity(target.pid()), [0]);
    for name in ["cpuset.cpus", "cpuset.mems"] {
        assert_eq!(a.put(&g.join(name), "\n"), Err(ENOSPC), "{name}");
    }
    assert_eq!(affinity(target.pid()), [0]);
}

fn stopped_and_real_time_threads(tree: &Path) {
    let (a, target) = (Actor::new(), Actor::new());
    let g = group(tree, "g", "1");
    for policy in [libc::SCHED_FIFO, libc::SCHED_RR, libc::SCHED_BATCH, libc::SCHED_IDLE] {
        let priority = i32::from(policy == libc::SCHED_FIFO || policy == libc::SCHED_RR).to_ne_bytes();
        let set = a.call(libc::SYS_sched_setscheduler, [target.id.into(), policy.into(), priority[..].into()]);
        assert_eq!(set, Ok(0), "policy {policy}");
        moves(&a, &g.join("tasks"), target.id).expect("attach");
        assert_eq!(affinity(target.id), [1], "policy {policy}");
        moves(&a, &tree.join("tasks"), target.id).expect("attach");
        assert_eq!(affinity(target.id), [0, 1], "policy {policy}");
    }
    let kill = |signal: i32| a.call(libc::SYS_kill, [target.id.into(), signal.into()]).expect("kill");
    kill(libc::SIGSTOP);
    wait_until("it has stopped", || state(target.id, target.id) == Some('T'));
    moves(&a, &g.join("cgroup.procs"), target.id).expect("attach");
    assert_eq!(affinity(target.id), [1]);
    assert_eq!(state(target.id, target.id), Some('T'), "it is not woken");
    kill(libc::SIGCONT);
    assert_eq!(target.call(libc::SYS_getpid, []), Ok(i64::from(target.id)));
}

/// Threads of the kernel, and whether their affinity may be set.
fn kernel_threads() -> Vec<(i32, String, bool)> {
    const PF_KTHREAD: u64 = 0x0020_0000;
    const PF_NO_SETAFFINITY: u64 = 0x0400_0000;
    let pids = fs::read_dir("/proc").expect("proc").filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    let thread = |pid: i32| {
        let flags: u64 = stat(pid, pid)?[6].parse().ok()?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (flags & PF_KTHREAD != 0).then(|| (pid, name.trim().to_owned(), flags & PF_NO_SETAFFINITY == 0))
    };
    pids.filter_map(thread).collect()
}

fn bound_kernel_threads(tree: &Path) {
    let a = Actor::new();
    let g = group(tree, "g", "1");
    let bound = kernel_threads().into_iter().filter(|(_, _, free)| !free);
    // Workers come and go; these stay.
    let stay = |name: &str| ["migration/", "ksoftirqd/", "cpuhp/"].iter().any(|kind| name.starts_with(kind));
    let mut tried = 0;
    for (pid, name, _) in bound.filter(|(_, name, _)| stay(name)) {
        let before = affinity(pid);
        for file in ["tasks", "cgroup.procs"] {
            assert_eq!(moves(&a, &g.join(file), pid), Err(EINVAL), "{name}");
        }
        assert_eq!(affinity(pid), before, "{name}");
        tried += 1;
    }
    if tried == 0 {
        skipped(&test_name(), "no kernel threads to be seen");
    }
    assert_eq!(ids(g.join("tasks")), []);
}

/// Others can be moved. Both trees by turns: there is one such thread for all of us.
#[test]
fn free_kernel_threads() {
    let check = |tree: &Path| {
        let a = Actor::new();
        let known = ["khungtaskd", "ksmd", "kcompactd0"];
        let Some((pid, name, _)) = kernel_threads().into_iter().find(|(_, name, free)| *free && known.contains(&&**name)) else {
            return skipped(&test_name(), "no kernel thread that may be moved");
        };
        let before = affinity(pid);
        let g = group(tree, "g", "1");
        assert_eq!(moves(&a, &g.join("tasks"), pid), Ok(0), "{name}");
        let (members, inside) = (ids(g.join("tasks")), affinity(pid));
        moves(&a, &tree.parent().expect("the root").join("tasks"), pid).expect("back");
        assert_eq!((members, inside, affinity(pid)), (vec![pid], vec![1], before), "{name}");
    };
    on_kernel(check);
    on_ours(check);
}

/// sched_setattr(2) to SCHED_DEADLINE.
fn make_deadline(a: &Actor, tid: i32) -> Outcome {
    let mut attr = [48u32, 6, 0, 0, 0, 0].map(u32::to_ne_bytes).concat();
    attr.extend([1_000_000u64, 100_000_000, 100_000_000].map(u64::to_ne_bytes).concat());
    a.call(libc::SYS_sched_setattr, [tid.into(), attr[..].into(), 0.into()])
}

/// sched_setaffinity(2) refuses to narrow a SCHED_DEADLINE thread (EBUSY), and it is all we
/// have. Linux's own cpuset does not ask it and moves the thread. Ours must refuse and leave
/// nothing half done.
#[test]
fn differs_deadline_threads() {
    on_ours(|tree| {
        if free() != [0, 1] {
            return skipped(&test_name(), "needs the CPUs 0 and 1, no more");
        }
        let a = Actor::new();
        let mut target = Target::new();
        let (leader, t1, t2) = (target.pid(), target.thread(), target.thread());
        target.setaffinity(t2, &[1]).expect("setaffinity");
        if let Err(errno) = make_deadline(&a, t1) {
            return skipped(&test_name(), &format!("SCHED_DEADLINE: {errno}"));
        }
        let masks = || [affinity(leader), affinity(t1), affinity(t2)];
        let all = [vec![0, 1], vec![0, 1], vec![1]];
        let (zero, both) = (group(tree, "zero", "0"), group(tree, "both", "0-1"));
        for (file, pid) in [("tasks", t1), ("cgroup.procs", leader), ("cgroup.procs", t1)] {
            assert_eq!(moves(&a, &zero.join(file), pid), Err(EBUSY), "{file}");
            assert_eq!((masks(), ids(zero.join("tasks"))), (all.clone(), vec![]), "{file}");
        }
        // Where nothing narrows it it can be.
        assert_eq!(moves(&a, &both.join("cgroup.procs"), leader), Ok(0));
        assert_eq!((masks(), ids(both.join("tasks")).len()), (all.clone(), 3));
        assert_eq!(a.put(&both.join("cpuset.cpus"), "0"), Err(EBUSY));
        assert_eq!(a.text(&both.join("cpuset.cpus")).as_deref(), Ok("0-1\n"));
        assert_eq!(a.text(&both.join("cpuset.effective_cpus")).as_deref(), Ok("0-1\n"));
        assert_eq!((masks(), ids(both.join("tasks")).len()), (all, 3));
        target.end_thread(t1);
        assert_eq!(a.put(&both.join("cpuset.cpus"), "0"), Ok(1));
        assert_eq!((affinity(leader), affinity(t2)), (vec![0], vec![0]));
        moves(&a, &tree.join("cgroup.procs"), leader).expect("attach");
        assert_eq!((affinity(leader), affinity(t2)), (vec![0, 1], vec![1]));
    });
}

/// A refused set changes nobody, however many members there are.
fn refused_sets_change_nobody(tree: &Path) {
    let (a, member) = (Actor::new(), Actor::new());
    member.park(20);
    let g = group(tree, "g", "0-1");
    let child = group(&g, "child", "0");
    moves(&a, &g.join("cgroup.procs"), member.id).expect("attach");
    let tids = ids(g.join("tasks"));
    for (text, errno) in [("1", EBUSY), ("\n", EBUSY), ("7-3", EINVAL)] {
        assert_eq!(a.put(&g.join("cpuset.cpus"), text), Err(errno), "{text:?}");
        assert!(tids.iter().all(|tid| affinity(*tid) == [0, 1]), "{text:?}");
        assert_eq!(ids(g.join("tasks")), tids, "{text:?}");
    }
    assert_eq!(a.rmdir(&child), Ok(0));
}

/// Names of CPUs in excess of what a `cpu_set_t` holds are not ours to forget: the mask a
/// thread is given back is the one it had, bit for bit.
fn given_back_bit_for_bit(tree: &Path) {
    let (a, target) = (Actor::new(), Actor::new());
    let mask = || a.call_sized(libc::SYS_sched_getaffinity, [target.id.into(), 1024.into(), Arg::Out(1024)]);
    let before = mask();
    let g = group(tree, "g", "1");
    moves(&a, &g.join("tasks"), target.id).expect("attach");
    assert_ne!(mask(), before);
    moves(&a, &tree.parent().expect("the root").join("tasks"), target.id).expect("attach");
    assert_eq!(mask(), before);
}

both! {
    running_threads_are_pinned many_threads own_mask_from_before own_mask_as_a_member leaving_gives_back inherited
    each_thread_its_own what_does_not_matter bare_groups_take_nobody stopped_and_real_time_threads
    bound_kernel_threads refused_sets_change_nobody given_back_bit_for_bit
}
