//! A thread's CPUs: what its group has, and as much of its own wish as fits; and the memory that follows.

use crate::fake::FakeMachine;
use crate::world::World;
use cgfuse::bitmap::Bitmap;
use cgfuse::sys::{Errno, Tid};

/// A task that has asked for `wish` in the root and is in /a with `cpus`, on a machine with 8 CPUs.
fn wishing(wish: &[usize], cpus: &str) -> (World, Tid) {
    let world = World::with(8, 2);
    world.group("/a", cpus);
    let tid = world.machine.process(0);
    world.machine.sched_setaffinity(tid, wish.iter().copied()).expect("a wish");
    world.attach("/a", tid).expect("attach");
    (world, tid)
}

#[test]
fn a_wish_survives_narrowing_and_comes_back() {
    let (world, tid) = wishing(&[1, 2, 3], "0-7");
    assert_eq!(world.affinity(tid), "1-3");
    for (cpus, want) in [("2-5", "2-3"), ("3", "3"), ("4-5", "4-5"), ("0", "0"), ("1,5", "1"), ("0-7", "1-3")] {
        world.write("/a/cpuset.cpus", cpus).expect("cpus");
        assert_eq!(world.affinity(tid), want, "{cpus}");
    }
}

#[test]
fn a_wish_survives_a_disjoint_group_and_the_root() {
    let (world, tid) = wishing(&[1, 2], "0-3");
    world.group("/b", "4-7");
    for (group, want) in [("/b", "4-7"), ("/a", "1-2"), ("/b", "4-7"), ("", "1-2"), ("/b", "4-7"), ("/a", "1-2")] {
        world.attach(group, tid).expect("attach");
        assert_eq!(world.affinity(tid), want, "{group}");
    }
}

#[test]
fn a_wish_made_inside_counts_whole() {
    let (world, tid) = wishing(&[0, 1, 2, 3, 4, 5, 6, 7], "0-3");
    world.machine.sched_setaffinity(tid, [2, 3, 4, 5]).expect("wider than the group");
    for (cpus, want) in [("0-2", "2"), ("0-7", "2-5"), ("5-7", "5")] {
        world.write("/a/cpuset.cpus", cpus).expect("cpus");
        assert_eq!(world.affinity(tid), want, "{cpus}");
    }
    world.attach("", tid).expect("attach");
    assert_eq!(world.affinity(tid), "2-5");
}

#[test]
fn a_mask_outside_the_group_is_no_wish() {
    let (world, tid) = wishing(&[1, 2], "0-3");
    world.machine.sched_setaffinity(tid, [6]).expect("the kernel of the fake machine knows no group");
    world.write("/a/cpuset.cpus", "0-6").expect("cpus");
    assert_eq!(world.affinity(tid), "1-2", "put back by the next change");
}

#[test]
fn asking_for_everything_is_no_wish() {
    let (world, tid) = wishing(&[1], "0-3");
    world.machine.sched_setaffinity(tid, 0..8).expect("everything");
    world.write("/a/cpuset.cpus", "2-3").expect("cpus");
    assert_eq!(world.affinity(tid), "2-3");
    world.attach("", tid).expect("attach");
    assert_eq!(world.affinity(tid), "0-7");
}

#[test]
fn threads_of_a_process_have_wishes_of_their_own() {
    let world = World::with(8, 1);
    world.group("/a", "0-3");
    let leader = world.machine.process(0);
    let threads: Vec<Tid> = (0..3).map(|_| world.machine.thread(leader)).collect();
    world.machine.sched_setaffinity(threads[0], [0]).expect("a wish");
    world.machine.sched_setaffinity(threads[1], [3, 4]).expect("a wish");
    world.attach_process("/a", leader).expect("attach");
    let all = || [leader, threads[0], threads[1], threads[2]].map(|tid| world.affinity(tid));
    assert_eq!(all(), ["0-3", "0", "3", "0-3"]);
    world.write("/a/cpuset.cpus", "3-6").expect("cpus");
    assert_eq!(all(), ["3-6", "3-6", "3-4", "3-6"]);
    world.attach_process("", leader).expect("attach");
    assert_eq!(all(), ["0-7", "0", "3-4", "0-7"]);
}

#[test]
fn what_does_not_concern_cpus_touches_no_affinity() {
    let (world, tid) = wishing(&[1], "0-3");
    world.machine.sched_setaffinity(tid, [6, 7]).expect("outside, so that any touch would show");
    world.write("/a/cpuset.cpus", "0-3\n").expect("the same");
    world.write("/a/cpuset.mems", "0").expect("nodes");
    for flag in [
        "cpu_exclusive",
        "mem_exclusive",
        "mem_hardwall",
        "memory_migrate",
        "memory_spread_page",
        "memory_spread_slab",
        "sched_load_balance",
    ] {
        world.write(&format!("/a/cpuset.{flag}"), "1").expect(flag);
    }
    world.rename("/a", "/b").expect("rename");
    world.attach("/b", tid).expect("where it is");
    assert_eq!(world.affinity(tid), "6-7");
}

#[test]
fn masks_of_any_size() {
    for cpus in [65, 128, 129, 1024, 1025, 4096] {
        let world = World::with(cpus, 8);
        let last = cpus - 1;
        world.group("/a", &format!("{}-N", cpus - 3));
        assert_eq!(world.read("/a/cpuset.cpus"), Ok(format!("{}-{last}\n", cpus - 3)));
        let tid = world.machine.process(0);
        world.machine.sched_setaffinity(tid, [0, last]).expect("a wish");
        world.attach("/a", tid).expect("attach");
        assert_eq!(world.affinity(tid), last.to_string());
        world.write("/a/cpuset.cpus", "all:1/64").expect("every 64th");
        assert_eq!(world.affinity(tid), if last % 64 == 0 { format!("0,{last}") } else { "0".into() });
        world.write("/a/cpuset.cpus", "1-N:1/3").expect("every third");
        let third: Bitmap = (1..cpus).step_by(3).collect();
        let wish: Bitmap = [0, last].into_iter().filter(|id| third.contains(*id)).collect();
        assert_eq!(world.machine.mask(tid), if wish.is_empty() { third } else { wish });
        world.attach("", tid).expect("attach");
        assert_eq!(world.affinity(tid), format!("0,{last}"));
        assert_eq!(world.write("/a/cpuset.cpus", cpus.to_string()), Err(Errno::ERANGE));
        assert_eq!(world.read("/cpuset.cpus"), Ok(format!("0-{last}\n")));
    }
}

#[test]
fn the_longest_text() {
    let world = World::with(4096, 1);
    world.group("/a", "0");
    let limit = 100 + 6 * 4096;
    let text = |len: usize| "1,".repeat(len / 2);
    assert_eq!(world.write("/a/cpuset.cpus", text(limit)), Ok(()));
    assert_eq!(world.write("/a/cpuset.cpus", text(limit + 2)), Err(Errno::E2BIG));
    assert_eq!(world.write("/a/cpuset.mems", "0,".repeat(3122)), Ok(()));
    assert_eq!(world.write("/a/cpuset.mems", "0,".repeat(3123)), Err(Errno::E2BIG));
    // Every second CPU: the longest list there is.
    let even: Bitmap = (0..4096).step_by(2).collect();
    assert_eq!((world.write("/a/cpuset.cpus", even.to_string()), world.read("/a/cpuset.cpus")), (Ok(()), Ok(format!("{even}\n"))));
}

#[test]
fn the_server_gives_away_no_more_than_it_has() {
    let world = World::new(FakeMachine::new(8, 1).with_server_cpus(&[2, 3, 4]));
    assert_eq!(world.read("/cpuset.cpus"), Ok("2-4\n".into()));
    world.group("/a", "2-3");
    assert_eq!(world.write("/a/cpuset.cpus", "1-3"), Err(Errno::EINVAL));
    let tid = world.machine.process(0);
    world.attach("/a", tid).expect("attach");
    assert_eq!(world.affinity(tid), "2-3");
    world.attach("", tid).expect("attach");
    assert_eq!(world.affinity(tid), "0-7", "what it had before");
}

#[test]
fn memory_follows_a_change_of_nodes() {
    let world = World::with(2, 8);
    world.group("/a", "0");
    world.write("/a/cpuset.mems", "0-1").expect("mems");
    let (leader, other) = (world.machine.process(0), world.machine.process(0));
    world.machine.thread(leader);
    world.attach_process("/a", leader).expect("attach");
    world.attach("/a", other).expect("attach");
    world.write("/a/cpuset.mems", "2-3").expect("mems");
    assert_eq!(world.machine.take_migrated(), [], "not unless it is asked for");
    world.write("/a/cpuset.memory_migrate", "1").expect("flag");
    world.write("/a/cpuset.mems", "2-3").expect("the same");
    assert_eq!(world.machine.take_migrated(), []);
    world.write("/a/cpuset.mems", "5,7").expect("mems");
    let mut migrated = world.machine.take_migrated();
    migrated.sort();
    assert_eq!(migrated, [leader, other].map(|tgid| (tgid, "2-3".to_owned(), "5,7".to_owned())), "once a process");
    world.machine.refuse_migrate(Errno::EPERM);
    assert_eq!((world.write("/a/cpuset.mems", "0"), world.read("/a/cpuset.mems").as_deref()), (Ok(()), Ok("0\n")), "nobody is told");
}

#[test]
fn memory_follows_a_move() {
    let world = World::with(2, 8);
    for (group, mems) in [("/a", "0-1"), ("/b", "2"), ("/same", "2")] {
        world.group(group, "0");
        world.write(&format!("{group}/cpuset.mems"), mems).expect("mems");
    }
    let leader = world.machine.process(0);
    let thread = world.machine.thread(leader);
    let moved = |group: &str, tid: Tid, whole: bool| {
        if whole { world.attach_process(group, tid) } else { world.attach(group, tid) }.expect("attach");
        world.machine.take_migrated()
    };
    assert_eq!(moved("/a", leader, true), [], "the destination's flag decides");
    world.write("/b/cpuset.memory_migrate", "1").expect("flag");
    world.write("/same/cpuset.memory_migrate", "1").expect("flag");
    assert_eq!(moved("/b", thread, false), [], "memory follows the main thread");
    assert_eq!(moved("/b", leader, false), [(leader, "0-1".into(), "2".into())]);
    assert_eq!(moved("/same", leader, true), [], "the same nodes");
    assert_eq!(moved("/a", leader, true), []);
    world.write("/a/cpuset.memory_migrate", "1").expect("flag");
    assert_eq!(moved("/a", leader, true), []);
    assert_eq!(moved("/b", leader, true), [(leader, "0-1".into(), "2".into())], "once, with all its threads");
}

#[test]
fn a_move_that_fails_migrates_no_memory() {
    let world = World::with(2, 8);
    world.group("/a", "0");
    world.write("/a/cpuset.mems", "3").expect("mems");
    world.write("/a/cpuset.memory_migrate", "1").expect("flag");
    let leader = world.machine.process(0);
    let thread = world.machine.thread(leader);
    world.machine.refuse(thread, Errno::EPERM);
    assert_eq!((world.attach_process("/a", leader), world.machine.take_migrated()), (Err(Errno::EPERM), vec![]));
}
