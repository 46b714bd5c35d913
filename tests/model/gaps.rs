//! What a tracker that only looks cannot know, as src/tracker/scan.rs and src/controllers/cpuset.rs say: each gap
//! with its outcome, so that a better one shows as a failure here.

use crate::fake::{At, FakeMachine};
use crate::world::{LONG, World};
use cgfuse::sys::{Errno, Tid};

/// /a on 0-1 and /b on 2-3 of 8 CPUs, and a process in /a.
fn world() -> (World, Tid) {
    on(FakeMachine::new(8, 1))
}

fn on(machine: FakeMachine) -> (World, Tid) {
    let world = World::new(machine);
    world.group("/a", "0-1");
    world.group("/b", "2-3");
    let tid = world.machine.process(0);
    world.attach("/a", tid).expect("attach");
    (world, tid)
}

#[test]
fn gap_orphan_before_the_look() {
    let (world, parent) = world();
    let child = world.machine.fork(parent);
    let orphan = world.machine.fork(child);
    world.machine.kill(child);
    assert_eq!(world.tasks("/a"), [parent], "taken for a child of init");
    assert_eq!(world.affinity(orphan), "0-1", "it keeps what it was born with");
    // Adopted by a subreaper in a group, an orphan would be taken for its child.
    let (child, grandchild);
    child = world.machine.fork(parent);
    grandchild = world.machine.fork(child);
    assert_eq!(world.tasks("/a"), [parent, child, grandchild]);
    world.machine.kill(child);
    assert_eq!(world.tasks("/a"), [parent, grandchild], "found in time, it stays");
}

#[test]
fn gap_creator_of_a_thread_among_threads_with_the_same_affinity() {
    let (world, leader) = world();
    world.group("/c", "0-1");
    let thread = world.machine.thread(leader);
    world.attach("/c", thread).expect("attach");
    let (child, late) = (world.machine.fork(thread), world.machine.thread(thread));
    assert_eq!((world.tasks("/a"), world.tasks("/c")), (vec![leader, late], vec![thread, child]), "of a thread, the main one is assumed");
}

#[test]
fn gap_creator_where_the_kernel_does_not_tell_children() {
    let (world, leader) = on(FakeMachine::new(8, 1).without_children());
    world.group("/c", "0-1");
    let threads = [(); 2].map(|()| world.machine.thread(leader));
    world.attach("/c", threads[0]).expect("attach");
    world.attach("/b", threads[1]).expect("attach");
    let children = threads.map(|tid| world.machine.fork(tid));
    assert_eq!((world.tasks("/a"), world.tasks("/c")), (vec![leader, children[0]], vec![threads[0]]), "the main thread is assumed");
    assert_eq!(world.tasks("/b"), [threads[1], children[1]], "unless the affinity tells");
}

#[test]
fn gap_creator_that_has_exited_while_its_process_lives() {
    let (world, leader) = world();
    let thread = world.machine.thread(leader);
    world.attach("/b", thread).expect("attach");
    let child = world.machine.fork(thread);
    world.machine.exit(thread);
    let found = (world.tasks("/a"), world.tasks("/b"));
    assert!([(vec![leader, child], vec![]), (vec![leader], vec![child])].contains(&found), "{found:?}");
}

#[test]
fn gap_wish_of_the_creator_among_threads_with_the_same_affinity() {
    let (world, leader) = world();
    let thread = world.machine.thread(leader);
    world.tasks("/a");
    world.machine.sched_setaffinity(thread, [0]).expect("a wish");
    world.write("/a/cpuset.cpus", "0").expect("both have 0 now");
    let child = world.machine.fork(thread);
    world.tasks("/a");
    world.write("/a/cpuset.cpus", "0-1").expect("cpus");
    assert_eq!([leader, thread, child].map(|tid| world.affinity(tid)), ["0-1", "0", "0"], "the kernel tells whose child it is");
    world.machine.sched_setaffinity(thread, [0]).expect("what it has");
    world.write("/a/cpuset.cpus", "0").expect("both have 0 now");
    let late = world.machine.thread(thread);
    world.tasks("/a");
    world.write("/a/cpuset.cpus", "0-1").expect("cpus");
    assert_eq!([thread, late].map(|tid| world.affinity(tid)), ["0", "0-1"], "of a thread, the main one's wish is assumed");
}

#[test]
fn gap_exec_by_another_thread_while_the_main_one_lives() {
    let (world, leader) = world();
    let thread = world.machine.thread(leader);
    world.attach("/b", thread).expect("attach");
    world.machine.exec(thread);
    assert_eq!((world.tasks("/a"), world.tasks("/b")), (vec![leader], vec![]), "it bears the main thread's name");
    assert_eq!(world.affinity(leader), "2-3");
    world.write("/a/cpuset.cpus", "1").expect("cpus");
    assert_eq!(world.affinity(leader), "1");
}

#[test]
fn gap_exec_after_a_death_that_nobody_saw() {
    for seen in [true, false] {
        let (world, leader) = world();
        let thread = world.machine.thread(leader);
        world.attach("/b", thread).expect("attach");
        world.machine.exit(leader);
        if seen {
            assert_eq!(world.tasks("/a"), []);
        }
        world.machine.exec(thread);
        let want = if seen { (vec![], vec![leader]) } else { (vec![leader], vec![]) };
        assert_eq!((world.tasks("/a"), world.tasks("/b")), want, "the death of the main thread was seen: {seen}");
    }
}

#[test]
fn gap_pid_of_the_callers_choice() {
    let (world, parent) = world();
    world.machine.fork_as(parent, 20000);
    assert_eq!(world.tasks("/a"), [parent], "not among the pids that were due");
    let later = world.machine.fork(20000);
    assert_eq!(world.tasks("/a"), [parent], "nor its children");
    assert_eq!(world.affinity(later), "0-1");
}

#[test]
fn gap_a_lap_of_pids_between_two_looks() {
    let (world, parent) = on(FakeMachine::new(8, 1).with_pid_max(320));
    world.machine.burn_pids(9);
    assert_eq!(world.tasks("/a"), [parent]);
    let child = world.machine.fork(parent);
    // Two pids of the lap are in use, the others come and go.
    world.machine.burn_pids(18);
    assert_eq!((world.tasks("/a"), world.affinity(child)), (vec![parent], "0-1".into()), "a whole lap looks like none");
    world.machine.burn_pids(1);
    assert_eq!(world.tasks("/a"), [parent, child], "until the next birth");
}

#[test]
fn gap_a_fork_that_takes_long() {
    let (world, parent) = world();
    let mut birth = world.machine.begin(parent, false);
    world.machine.allocate(&mut birth);
    world.attach("/b", parent).expect("attach");
    world.settle();
    world.machine.pass(LONG);
    world.tasks("/b");
    let child = world.machine.appear(birth);
    world.settle();
    assert_eq!((world.tasks("/b"), world.affinity(child)), (vec![parent], "0-1".into()), "not looked for any more");
}

#[test]
fn gap_clone_parent() {
    let (world, parent) = world();
    let sibling = world.machine.fork_sibling(parent);
    assert_eq!((world.tasks("/a"), world.affinity(sibling)), (vec![parent], "0-1".into()), "taken for a child of its parent");
}

#[test]
fn gap_a_wish_for_what_the_thread_was_given() {
    let (world, tid) = world();
    world.machine.sched_setaffinity(tid, [0, 1]).expect("what it has");
    world.write("/a/cpuset.cpus", "0-3").expect("cpus");
    assert_eq!(world.affinity(tid), "0-3", "the kernel knows that it has asked for 0-1");
}

#[test]
fn gap_a_wish_replaced_before_the_look_by_a_mask_outside() {
    let (world, tid) = world();
    world.machine.sched_setaffinity(tid, [1]).expect("a wish");
    world.machine.sched_setaffinity(tid, [5]).expect("the kernel of a cpuset would refuse it");
    world.write("/a/cpuset.cpus", "0-3").expect("cpus");
    assert_eq!(world.affinity(tid), "0-3", "the kernel knows that it has asked for 1");
}

#[test]
fn gap_a_mask_outside_the_group_lasts_until_the_next_look() {
    let (world, tid) = world();
    world.machine.sched_setaffinity(tid, [5]).expect("the kernel of a cpuset would refuse it");
    assert_eq!((world.tasks("/a"), world.affinity(tid)), (vec![tid], "5".into()));
    world.settle();
    assert_eq!((world.tasks("/a"), world.affinity(tid)), (vec![tid], "0-1".into()));
    world.machine.sched_setaffinity(tid, [1, 2, 3]).expect("wider than the group");
    world.settle();
    assert_eq!(world.affinity(tid), "1");
    world.write("/a/cpuset.cpus", "0-2").expect("cpus");
    assert_eq!(world.affinity(tid), "1-2", "the wish is remembered");
    assert!(world.read("/cgfuse.stat").expect("readable").contains("\ndrift 2\n"));
}

#[test]
fn gap_a_thread_born_during_the_move_that_refuses() {
    let (world, leader) = world();
    world.machine.at(At::BeforeSet(leader), move |machine| {
        let late = machine.thread(leader);
        machine.refuse(late, Errno::EPERM);
    });
    world.attach_process("/b", leader).expect("the kernel would take all back");
    let tasks = world.tasks("/b");
    assert_eq!(tasks.iter().map(|&tid| world.affinity(tid)).collect::<Vec<_>>(), ["2-3", "0-1"]);
}
