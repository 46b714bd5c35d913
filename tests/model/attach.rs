//! Moving threads and processes: all or none, and what forks, exits and reuses pids meanwhile.

use crate::fake::{At, FakeMachine, INIT, KDEVTMPFS, KTHREADD, MIGRATION, NS_OFFSET};
use crate::world::{World, client, root};
use cgfuse::sys::{Errno, PidNs, Tid};
use std::fs::File;
use std::sync::Arc;

/// A machine with 4 CPUs, groups /a on 0-1 and /b on 2-3, and /empty without CPUs.
fn world() -> World {
    on(FakeMachine::new(4, 1))
}

fn on(machine: FakeMachine) -> World {
    let world = World::new(machine);
    world.group("/a", "0-1");
    world.group("/b", "2-3");
    world.mkdir("/empty").expect("mkdir");
    world
}

/// A process with `n` threads besides the main one.
fn process(world: &World, n: usize) -> Vec<Tid> {
    let leader = world.machine.process(0);
    [leader].into_iter().chain((0..n).map(|_| world.machine.thread(leader))).collect()
}

fn affinities(world: &World, tids: &[Tid]) -> Vec<String> {
    tids.iter().map(|&tid| world.affinity(tid)).collect()
}

#[test]
fn tasks_moves_one_thread_and_procs_all() {
    let world = world();
    let tids = process(&world, 2);
    world.attach("/a", tids[1]).expect("tasks");
    assert_eq!(affinities(&world, &tids), ["0-3", "0-1", "0-3"]);
    assert_eq!((world.tasks("/a"), world.procs("/a")), (vec![tids[1]], vec![tids[0]]));
    assert!(world.procs("/").contains(&tids[0]), "a process that is spread over groups shows up in each");
    world.attach_process("/b", tids[2]).expect("any of its threads names a process");
    assert_eq!((affinities(&world, &tids), world.tasks("/b"), world.tasks("/a")), (vec!["2-3".into(); 3], tids.clone(), vec![]));
    world.attach_process("/", tids[0]).expect("back");
    assert_eq!((affinities(&world, &tids), world.tasks("/b")), (vec!["0-3".into(); 3], vec![]));
}

#[test]
fn a_thread_that_refuses_leaves_all_as_they_were() {
    for refused in 0..4 {
        for errno in [Errno::EPERM, Errno::EINVAL, Errno::EBUSY] {
            let world = world();
            let tids = process(&world, 3);
            world.machine.sched_setaffinity(tids[1], [1, 2]).expect("an own wish");
            let before = affinities(&world, &tids);
            world.machine.refuse(tids[refused], errno);
            assert_eq!(world.attach_process("/a", tids[0]), Err(errno));
            assert_eq!((affinities(&world, &tids), world.tasks("/a")), (before, vec![]));
            world.machine.allow(tids[refused]);
            world.attach_process("/a", tids[0]).expect("now it can");
            assert_eq!(affinities(&world, &tids), ["0-1", "1", "0-1", "0-1"]);
        }
    }
}

#[test]
fn a_refused_move_between_groups_keeps_place_and_wish() {
    let world = world();
    let tids = process(&world, 2);
    world.attach_process("/a", tids[0]).expect("attach");
    world.machine.sched_setaffinity(tids[1], [1, 2]).expect("a wish that reaches into the other group");
    world.machine.refuse(tids[2], Errno::EPERM);
    assert_eq!(world.attach_process("/b", tids[0]), Err(Errno::EPERM));
    assert_eq!((world.tasks("/a"), world.tasks("/b")), (tids.clone(), vec![]));
    assert_eq!(affinities(&world, &tids), ["0-1", "1-2", "0-1"]);
    world.machine.allow(tids[2]);
    world.attach_process("/b", tids[0]).expect("attach");
    assert_eq!(affinities(&world, &tids), ["2-3", "2", "2-3"]);
    world.attach_process("/a", tids[0]).expect("attach");
    assert_eq!(affinities(&world, &tids), ["0-1", "1", "0-1"]);
}

#[test]
fn a_refused_change_of_cpus_leaves_file_and_threads_as_they_were() {
    for refused in 0..3 {
        let world = world();
        let tids = process(&world, 2);
        world.attach_process("/a", tids[0]).expect("attach");
        world.machine.sched_setaffinity(tids[1], [1]).expect("an own wish");
        world.machine.refuse(tids[refused], Errno::EPERM);
        assert_eq!(world.write("/a/cpuset.cpus", "0,2"), Err(Errno::EPERM));
        assert_eq!(
            (world.read("/a/cpuset.cpus").as_deref(), affinities(&world, &tids)),
            (Ok("0-1\n"), vec!["0-1".into(), "1".into(), "0-1".into()])
        );
        world.machine.allow(tids[refused]);
        world.write("/a/cpuset.cpus", "0,2").expect("now they can");
        assert_eq!(affinities(&world, &tids), ["0,2", "0,2", "0,2"]);
        world.write("/a/cpuset.cpus", "1-3").expect("cpus");
        assert_eq!(affinities(&world, &tids), ["1-3", "1", "1-3"], "the wish has survived");
    }
}

#[test]
fn many_threads_are_all_or_none_with_several_workers_too() {
    let world = on(FakeMachine::new(4, 1).with_parallelism(4));
    let tids = process(&world, 1999);
    world.machine.refuse(tids[1500], Errno::EPERM);
    assert_eq!(world.attach_process("/a", tids[0]), Err(Errno::EPERM));
    assert!(tids.iter().all(|&tid| world.affinity(tid) == "0-3") && world.tasks("/a").is_empty());
    world.machine.allow(tids[1500]);
    world.attach_process("/a", tids[0]).expect("attach");
    assert!(tids.iter().all(|&tid| world.affinity(tid) == "0-1") && world.tasks("/a") == tids);
    world.machine.refuse(tids[7], Errno::EPERM);
    assert_eq!(world.write("/a/cpuset.cpus", "3"), Err(Errno::EPERM));
    assert!(tids.iter().all(|&tid| world.affinity(tid) == "0-1"));
}

#[test]
fn a_thread_that_exits_before_it_is_set_does_not_hinder_the_others() {
    let world = world();
    let tids = process(&world, 3);
    let gone = tids[2];
    world.machine.at(At::BeforeSet(tids[1]), move |machine| machine.exit(gone));
    world.attach_process("/a", tids[0]).expect("attach");
    assert_eq!(world.tasks("/a"), [tids[0], tids[1], tids[3]]);
    let gone = tids[3];
    world.machine.at(At::BeforeSet(gone), move |machine| machine.exit(gone));
    world.write("/a/cpuset.cpus", "1").expect("cpus");
    assert_eq!((world.tasks("/a"), world.affinity(tids[1])), (vec![tids[0], tids[1]], "1".into()));
}

#[test]
fn exits_and_births_between_the_list_and_the_move() {
    // The process is listed or counted several times: each of these is a moment.
    for (moment, others) in [(0, false), (1, false), (2, false), (0, true), (1, true), (2, true)] {
        let world = world();
        if others {
            world.attach("/b", world.machine.process(0)).expect("somebody else");
            world.settle();
        }
        let tids = process(&world, 3);
        let (leader, gone) = (tids[0], tids[2]);
        staged(&world.machine, leader, moment, move |machine| {
            machine.exit(gone);
            machine.thread(leader);
        });
        world.attach_process("/a", leader).expect("attach");
        // Reading lists it too.
        while world.machine.hooks_left() > 0 {
            world.tasks("/a");
        }
        world.settle();
        let tasks = world.tasks("/a");
        assert!(tasks.len() == 4 && !tasks.contains(&gone), "{moment} {others}: {tasks:?}");
        assert_eq!(affinities(&world, &tasks), ["0-1"; 4], "{moment} {others}");
    }
}

/// Runs `f` when the process has been listed `skip` times more, if that happens.
fn staged(machine: &FakeMachine, tgid: Tid, skip: usize, f: impl FnOnce(&FakeMachine) + Send + 'static) {
    match skip {
        0 => machine.at(At::Listed(tgid), f),
        _ => machine.at(At::Listed(tgid), move |machine| staged(machine, tgid, skip - 1, f)),
    }
}

#[test]
fn a_task_that_is_gone_before_it_is_set_is_no_such_task() {
    let world = world();
    let tid = world.machine.process(0);
    world.machine.at(At::BeforeSet(tid), move |machine| machine.kill(tid));
    assert_eq!(world.attach("/a", tid), Err(Errno::ESRCH));
    let tid = world.machine.process(0);
    world.machine.at(At::BeforeSet(tid), move |machine| machine.kill(tid));
    assert_eq!(world.attach_process("/a", tid), Err(Errno::ESRCH));
    assert!(world.tasks("/a").is_empty());
}

#[test]
fn a_task_that_becomes_a_zombie_meanwhile_is_no_error() {
    let world = world();
    let tid = world.machine.process(0);
    world.machine.refuse(tid, Errno::EPERM);
    world.machine.at(At::BeforeSet(tid), move |machine| machine.exit_group(tid));
    assert_eq!((world.attach("/a", tid), world.tasks("/a")), (Ok(()), vec![]));
}

#[test]
fn zombies_are_written_without_effect_and_the_reaped_are_no_such_task() {
    let world = world();
    let (tid, member) = (world.machine.process(0), world.machine.process(0));
    world.attach("/a", member).expect("attach");
    for zombie in [tid, member] {
        world.machine.exit_group(zombie);
        for group in ["/a", "/b", "/empty"] {
            assert_eq!((world.attach(group, zombie), world.attach_process(group, zombie)), (Ok(()), Ok(())), "{group}");
            assert!(!world.tasks(group).contains(&zombie));
        }
        world.machine.reap(zombie);
        for group in ["/a", "/b", "/empty"] {
            assert_eq!(
                (world.attach(group, zombie), world.attach_process(group, zombie)),
                (Err(Errno::ESRCH), Err(Errno::ESRCH)),
                "{group}"
            );
        }
    }
}

#[test]
fn a_member_that_has_exited_unseen_is_no_such_task() {
    let world = world();
    let tids = process(&world, 2);
    world.attach_process("/a", tids[0]).expect("attach");
    world.machine.exit(tids[2]);
    assert_eq!(world.attach("/a", tids[2]), Err(Errno::ESRCH));
    assert_eq!(world.attach_process("/b", tids[2]), Err(Errno::ESRCH));
    assert_eq!(world.tasks("/a"), tids[..2]);
    world.machine.kill(tids[0]);
    assert_eq!(world.attach("/a", tids[0]), Err(Errno::ESRCH));
}

#[test]
fn a_dead_main_thread_names_the_process_that_lives_on() {
    let world = world();
    let tids = process(&world, 1);
    world.machine.exit(tids[0]);
    assert_eq!((world.attach("/a", tids[0]), world.tasks("/a")), (Ok(()), vec![]));
    assert_eq!(world.attach_process("/empty", tids[0]), Err(Errno::ENOSPC), "the living thread cannot run there");
    assert_eq!(world.attach_process("/empty", tids[1]), Err(Errno::ENOSPC));
    world.attach_process("/a", tids[0]).expect("attach");
    assert_eq!((world.tasks("/a"), world.procs("/a")), (vec![tids[1]], vec![tids[0]]));
    assert_eq!(world.rmdir("/a"), Err(Errno::EBUSY));
    world.machine.exit(tids[1]);
    assert_eq!((world.tasks("/a"), world.procs("/a"), world.rmdir("/a")), (vec![], vec![], Ok(())));
}

#[test]
fn a_dead_thread_does_not_hide_one_that_is_elsewhere() {
    let world = world();
    let tids = process(&world, 2);
    world.attach("/a", tids[0]).expect("attach");
    world.attach("/a", tids[1]).expect("attach");
    world.machine.exit(tids[1]);
    assert_eq!(world.tasks("/a"), [tids[0]]);
    world.attach("/a", tids[2]).expect("attach");
    let fourth = world.machine.thread(tids[0]);
    world.attach("/", fourth).expect("attach");
    world.machine.exit(tids[2]);
    world.attach_process("/b", tids[0]).expect("attach");
    assert_eq!((world.tasks("/b"), world.affinity(fourth)), (vec![tids[0], fourth], "2-3".into()));
}

#[test]
fn a_birth_may_take_longer_than_two_moves() {
    for (is_thread, to, cpus) in [(true, "/c", "1-3"), (false, "/c", "1-3"), (true, "/", "0-3"), (false, "/", "0-3")] {
        let world = world();
        world.group("/c", "1-3");
        let leader = process(&world, 1)[0];
        world.attach_process("/a", leader).expect("attach");
        let birth = world.machine.begin(leader, is_thread);
        world.attach_process("/b", leader).expect("attach");
        world.attach_process(to, leader).expect("attach");
        let child = world.machine.appear(birth);
        world.settle();
        assert_eq!(world.affinity(child), cpus, "{to}: neither the CPUs of the last group nor of the one before");
    }
}

#[test]
fn what_a_thread_was_given_is_no_wish_of_the_main_one_whose_pid_it_gets() {
    for file in ["procs", "cpus"] {
        let world = on(FakeMachine::new(4, 1).with_pid_max(320));
        let filler = world.machine.process(0);
        while world.machine.thread(filler) < 319 {}
        let leader = filler + 1;
        world.machine.kill(filler);
        // Pids wrap: the thread's is the lower one.
        while world.machine.process(0) < 319 {}
        (leader..319).for_each(|tid| world.machine.kill(tid));
        let thread = world.machine.thread(319);
        assert!(thread < 319);
        let write = |round| match (file, round) {
            ("procs", round) => world.attach_process(["/", "/a"][round], 319),
            (_, 0) => world.write("/a/cpuset.cpus", "0-3"),
            _ => world.write("/a/cpuset.cpus", "0-1"),
        };
        world.attach_process("/a", 319).expect("attach");
        write(0).expect("wide");
        world.machine.at(At::AfterSet(thread), move |machine| machine.exec(thread));
        write(1).expect("narrow");
        assert_eq!((world.machine.hooks_left(), world.tasks("/a"), world.affinity(319)), (0, vec![319], "0-1".into()), "{file}");
        world.attach_process("/", 319).expect("attach");
        assert_eq!(world.affinity(319), "0-3", "{file}");
    }
}

#[test]
fn who_gets_the_main_threads_tid_behind_its_change_is_changed_too() {
    for file in ["procs", "cpus"] {
        let world = World::told(FakeMachine::new(4, 1));
        world.group("/a", "0");
        world.group("/b", "0-3");
        let leader = world.machine.process(0);
        let thread = world.machine.thread(leader);
        world.attach_process("/a", leader).expect("attach");
        world.settle();
        world.machine.at(At::AfterSet(leader), move |machine| machine.exec(thread));
        let done = if file == "procs" { world.attach_process("/b", leader) } else { world.write("/a/cpuset.cpus", "0-3") };
        done.expect(file);
        assert_eq!((world.machine.hooks_left(), world.affinity(leader)), (0, "0-3".into()), "{file}");
        world.settle();
        assert_eq!(world.affinity(leader), "0-3", "{file}: it has asked for nothing");
    }
}

#[test]
fn a_thread_born_during_the_move_is_moved() {
    let world = world();
    let tids = process(&world, 1);
    let (leader, second) = (tids[0], tids[1]);
    world.machine.at(At::AfterSet(leader), move |machine| {
        machine.thread(second);
    });
    world.machine.at(At::AfterSet(second), move |machine| {
        machine.thread(leader);
    });
    world.attach_process("/a", leader).expect("attach");
    let tasks = world.tasks("/a");
    assert_eq!((tasks.len(), world.machine.hooks_left()), (4, 0));
    assert_eq!(affinities(&world, &tasks), ["0-1"; 4]);
    assert_eq!(world.attach("/b", tasks[3]), Ok(()));
    assert_eq!(world.attach("/", tasks[2]), Ok(()));
    assert_eq!(world.affinity(tasks[2]), "0-3", "what it was born with during the move is no wish of its own");
}

/// Stages a fork whose affinity is copied before its creator is moved, whose pid is taken before or during the
/// move, and which becomes visible after it.
fn in_flight(is_thread: bool, pid_before: bool, others: bool) {
    let world = world();
    if others {
        world.attach("/b", world.machine.process(0)).expect("somebody else");
    }
    let leader = world.machine.process(0);
    let mut birth = world.machine.begin(leader, is_thread);
    if pid_before {
        world.machine.allocate(&mut birth);
    }
    world.attach_process("/a", leader).expect("attach");
    let child = world.machine.appear(birth);
    let what = format!("thread: {is_thread}, pid taken before: {pid_before}, other members: {others}");
    // Whoever reads that it is a member finds it where members may be.
    assert_eq!((world.tasks("/a"), world.affinity(child)), (vec![leader, child], "0-1".into()), "{what}");
    world.attach_process("/", child).expect("attach");
    assert_eq!(world.affinity(child), "0-3", "{what}: no wish of its own");
}

#[test]
fn a_child_in_flight_during_the_move_is_found() {
    in_flight(false, false, true);
    in_flight(false, true, true);
    in_flight(false, false, false);
}

#[test]
fn a_thread_in_flight_during_the_move_is_found() {
    in_flight(true, false, true);
    in_flight(true, true, true);
    in_flight(true, false, false);
}

#[test]
fn a_birth_in_flight_during_the_first_move_of_all_is_found() {
    in_flight(true, true, false);
    in_flight(false, true, false);
}

/// As in the kernel, the child was born before the move, in the old group, or after it.
fn born_before_or_after(world: &World, child: Tid) -> bool {
    let place = (world.tasks("/a").contains(&child), world.affinity(child));
    [(true, "0-1".into()), (false, "0-3".into())].contains(&place)
}

#[test]
fn a_child_born_during_a_move_to_the_root_keeps_no_cpus_of_the_group() {
    for is_thread in [false, true] {
        for moment in 0..3 {
            let world = world();
            let leader = world.machine.process(0);
            world.attach("/a", leader).expect("attach");
            let at = [At::Listed(leader), At::BeforeSet(leader), At::AfterSet(leader)][moment];
            world.machine.at(at, move |machine| {
                machine.appear(machine.begin(leader, is_thread));
            });
            world.attach_process("", leader).expect("attach");
            let child = leader + 1;
            world.settle();
            assert!(born_before_or_after(&world, child), "thread: {is_thread}, {at:?}: {}", world.affinity(child));
        }
    }
}

#[test]
fn a_birth_in_flight_during_a_move_to_the_root_keeps_no_cpus_of_the_group() {
    for (is_thread, pid_before, others) in
        [(false, false, true), (false, true, true), (true, false, true), (true, true, false), (false, false, false)]
    {
        let world = world();
        if others {
            world.attach("/b", world.machine.process(0)).expect("somebody else");
        }
        let leader = world.machine.process(0);
        world.attach("/a", leader).expect("attach");
        let mut birth = world.machine.begin(leader, is_thread);
        if pid_before {
            world.machine.allocate(&mut birth);
        }
        world.attach_process("", leader).expect("attach");
        let child = world.machine.appear(birth);
        world.settle();
        let shown = world.affinity(child);
        assert!(born_before_or_after(&world, child), "thread: {is_thread}, pid before: {pid_before}, others: {others}: {shown}");
    }
}

#[test]
fn a_birth_in_flight_during_a_change_of_cpus_is_found() {
    for (is_thread, pid_before) in [(false, false), (false, true), (true, false), (true, true)] {
        let world = world();
        let leader = world.machine.process(0);
        world.attach("/a", leader).expect("attach");
        world.settle();
        let mut birth = world.machine.begin(leader, is_thread);
        if pid_before {
            world.machine.allocate(&mut birth);
        }
        world.write("/a/cpuset.cpus", "3").expect("cpus");
        let child = world.machine.appear(birth);
        world.settle();
        assert_eq!(
            (world.affinity(child), world.tasks("/a")),
            ("3".into(), vec![leader, child]),
            "thread: {is_thread}, pid before: {pid_before}"
        );
        world.write("/a/cpuset.cpus", "1-3").expect("cpus");
        assert_eq!(world.affinity(child), "1-3", "no wish of its own");
    }
}

#[test]
fn a_child_born_between_its_parents_change_and_the_look_has_no_wish() {
    for is_thread in [false, true] {
        let world = world();
        let leader = world.machine.process(0);
        world.attach("/a", leader).expect("attach");
        world.machine.at(At::AfterSet(leader), move |machine| {
            machine.appear(machine.begin(leader, is_thread));
        });
        world.write("/a/cpuset.cpus", "0").expect("narrow");
        let tasks = world.tasks("/a");
        assert_eq!((tasks.len(), affinities(&world, &tasks)), (2, vec!["0".into(); 2]));
        world.write("/a/cpuset.cpus", "0-1").expect("widen");
        assert_eq!(affinities(&world, &tasks), ["0-1"; 2], "thread: {is_thread}");
    }
}

#[test]
fn children_are_born_where_their_creator_is() {
    let world = world();
    let parent = world.machine.process(0);
    world.attach("/a", parent).expect("attach");
    let child = world.machine.fork(parent);
    let grandchild = world.machine.fork(child);
    let thread = world.machine.thread(grandchild);
    assert_eq!(world.tasks("/a"), [parent, child, grandchild, thread]);
    world.machine.sched_setaffinity(parent, [1]).expect("a wish");
    let heir = world.machine.fork(parent);
    assert_eq!(world.tasks("/a").len(), 5);
    world.write("/a/cpuset.cpus", "0-3").expect("cpus");
    assert_eq!((world.affinity(heir), world.affinity(child)), ("1".into(), "0-3".into()), "a wish is inherited");
}

#[test]
fn threads_of_a_newborn_process_are_born_with_it() {
    for machine in [FakeMachine::new(4, 1), FakeMachine::new(4, 1).without_last_pid(), FakeMachine::new(4, 1).without_children()] {
        let world = on(machine);
        let parent = world.machine.process(0);
        world.attach("/a", parent).expect("attach");
        world.machine.sched_setaffinity(parent, 0..4).expect("everything");
        let child = world.machine.fork(parent);
        let threads = [world.machine.thread(child), world.machine.thread(child)];
        assert_eq!(world.tasks("/a"), [parent, child, threads[0], threads[1]]);
        world.settle();
        assert_eq!(affinities(&world, &[child, threads[0], threads[1]]), ["0-1"; 3]);
    }
}

#[test]
fn a_thread_of_a_spread_process_gives_birth_where_it_is() {
    let world = world();
    let tids = process(&world, 2);
    world.attach("/a", tids[0]).expect("attach");
    world.attach("/b", tids[1]).expect("attach");
    let (in_b, in_root) = (world.machine.fork(tids[1]), world.machine.fork(tids[2]));
    assert_eq!((world.tasks("/a"), world.tasks("/b")), (vec![tids[0]], vec![tids[1], in_b]));
    assert!(world.tasks("/").contains(&in_root), "its creator is in the root");
    assert_eq!(world.affinity(in_root), "0-3");
}

#[test]
fn a_reused_pid_is_a_stranger() {
    let world = on(FakeMachine::new(4, 1).with_pid_max(310));
    let tids = process(&world, 2);
    world.attach_process("/a", tids[0]).expect("attach");
    world.machine.burn_pids(3);
    assert_eq!(world.tasks("/a"), tids);
    world.machine.exit(tids[2]);
    // The next lap: the pid of the dead thread is taken by another process, all between two looks.
    world.machine.burn_pids(4);
    assert_eq!(world.machine.process(0), tids[2], "the pid is reused");
    assert_eq!((world.tasks("/a"), world.affinity(tids[2])), (tids[..2].to_vec(), "0-3".into()));
    world.write("/a/cpuset.cpus", "0").expect("cpus");
    assert_eq!(world.affinity(tids[2]), "0-3");
    world.attach("/b", tids[2]).expect("the stranger may be moved like anybody");
    assert_eq!(world.tasks("/b"), [tids[2]]);
}

#[test]
fn a_reused_pid_of_a_process_may_be_a_child_of_the_group() {
    let world = on(FakeMachine::new(4, 1).with_pid_max(306));
    let (parent, old) = (world.machine.process(0), world.machine.process(0));
    world.attach("/a", parent).expect("attach");
    world.attach("/b", old).expect("attach");
    world.machine.burn_pids(2);
    assert_eq!(world.tasks("/b"), [old]);
    world.machine.kill(old);
    world.machine.burn_pids(2);
    assert_eq!(world.machine.fork(parent), old, "the pid is reused");
    assert_eq!((world.tasks("/a"), world.tasks("/b"), world.affinity(old)), (vec![parent, old], vec![], "0-1".into()));
}

#[test]
fn births_are_found_over_a_wrap_of_pids() {
    let world = on(FakeMachine::new(4, 1).with_pid_max(320));
    let parent = world.machine.process(0);
    world.attach("/a", parent).expect("attach");
    let mut family = vec![parent];
    for _ in 0..15 {
        let last = *family.last().expect("the parent");
        for _ in 0..7 {
            // Six of seven die, so that there are pids for the next lap.
            let child = world.machine.fork(last);
            if !family.contains(&child) && family.len() < 8 && child % 7 == 0 {
                family.push(child);
            } else {
                world.machine.kill(child);
            }
        }
        let mut sorted = family.clone();
        sorted.sort_unstable();
        assert_eq!(world.tasks("/a"), sorted);
    }
    assert!(family.len() > 3 && family.iter().all(|&tid| world.affinity(tid) == "0-1"));
}

#[test]
fn without_a_last_pid_births_are_found_by_comparison() {
    let world = on(FakeMachine::new(4, 1).without_last_pid());
    let leader = world.machine.process(0);
    world.machine.at(At::AfterSet(leader), move |machine| {
        machine.thread(leader);
    });
    world.attach_process("/a", leader).expect("attach");
    assert_eq!(world.tasks("/a").len(), 2);
    // A chain of generations between two looks.
    let mut chain = vec![leader];
    for _ in 0..20 {
        chain.push(world.machine.fork(chain[chain.len() - 1]));
    }
    assert_eq!(world.tasks("/a").len(), 22);
    assert!(chain.iter().all(|&tid| world.affinity(tid) == "0-1"));
}

#[test]
fn without_a_last_pid_a_reused_tid_is_a_stranger_too() {
    let world = on(FakeMachine::new(4, 1).with_pid_max(305).without_last_pid());
    let tids = process(&world, 1);
    world.attach_process("/a", tids[0]).expect("attach");
    world.machine.exit(tids[1]);
    world.machine.burn_pids(3);
    assert_eq!(world.machine.process(0), tids[1], "the pid is reused");
    assert_eq!(world.tasks("/a"), [tids[0]]);
    world.write("/a/cpuset.cpus", "0").expect("cpus");
    assert_eq!(world.affinity(tids[1]), "0-3");
}

#[test]
fn kernel_threads_move_unless_they_are_bound() {
    let world = world();
    for file in ["/a/tasks", "/a/cgroup.procs", "/empty/tasks"] {
        for bound in [KTHREADD, MIGRATION] {
            assert_eq!(world.write(file, bound.to_string()), Err(Errno::EINVAL), "{file}");
        }
    }
    world.attach("/a", KDEVTMPFS).expect("others may be moved");
    assert_eq!((world.tasks("/a"), world.affinity(KDEVTMPFS)), (vec![KDEVTMPFS], "0-1".into()));
}

#[test]
fn numbers_of_tasks() {
    let world = world();
    let tid = world.machine.process(0);
    for text in
        [format!("{tid}"), format!("+{tid}"), format!(" {tid} \n"), format!("{tid:#x}"), format!("0{tid:o}"), format!("\u{b}{tid}\u{c}\r")]
    {
        assert_eq!((world.write("/a/tasks", &text), world.tasks("/a")), (Ok(()), vec![tid]), "{text:?}");
        world.attach("/", tid).expect("back");
    }
    world.write("/a/tasks", [b"\xa0", tid.to_string().as_bytes(), b"\0garbage"].concat()).expect("up to the NUL");
    for text in ["", "\n", "x", "-1", "1 2", "2147483648", "-2147483649", "99999999999999999999", "1.0", "0x", "08"] {
        let want = if text.is_empty() { Ok(()) } else { Err(Errno::EINVAL) };
        assert_eq!((world.write("/a/tasks", text), world.write("/a/cgroup.procs", text)), (want, want), "{text:?}");
    }
    for text in ["2147483647", "31000"] {
        assert_eq!(world.write("/a/tasks", text), Err(Errno::ESRCH), "{text:?}");
    }
    assert_eq!(world.tasks("/a"), [tid]);
}

#[test]
fn zero_is_the_writer() {
    let world = world();
    let tids = process(&world, 1);
    for text in ["0", "-0", "0x0", "00\n"] {
        world.write_by(root(), client(0, tids[1]), "/a/tasks", text).expect(text);
        assert_eq!(world.tasks("/a"), [tids[1]]);
        world.attach("/", tids[1]).expect("back");
    }
    world.write_by(root(), client(0, tids[1]), "/a/cgroup.procs", "0").expect("its process");
    assert_eq!(world.tasks("/a"), tids);
    assert_eq!(world.write_by(root(), client(0, 0), "/a/tasks", "0"), Err(Errno::ESRCH), "a writer that cannot be seen");
}

#[test]
fn the_opener_decides_who_may_be_moved() {
    let world = world();
    let machine = &world.machine;
    let (rooted, mine, other) = (machine.process(0), machine.process(1000), machine.process(1001));
    let (me, root) = (client(1000, mine), client(0, INIT));
    assert_eq!(world.write_by(me, root, "/a/tasks", rooted.to_string()), Err(Errno::EACCES), "root by another's descriptor");
    assert_eq!(world.write_by(me, me, "/a/tasks", other.to_string()), Err(Errno::EACCES));
    assert_eq!(world.write_by(me, me, "/a/tasks", mine.to_string()), Ok(()));
    assert_eq!(world.write_by(me, root, "/b/tasks", mine.to_string()), Ok(()));
    machine.set_suid(other, 1000);
    assert_eq!(world.write_by(me, me, "/a/cgroup.procs", other.to_string()), Ok(()), "the saved uid counts");
    assert_eq!(world.write_by(root, me, "/a/tasks", rooted.to_string()), Err(Errno::EPERM), "setting its scheduling needs more");
    machine.set_caps(mine, 1 << 23);
    machine.pass(crate::world::LONG);
    assert_eq!(world.write_by(root, me, "/a/tasks", rooted.to_string()), Ok(()), "CAP_SYS_NICE is enough");
}

#[test]
fn checks_come_in_the_kernels_order() {
    let world = world();
    let (rooted, mine) = (world.machine.process(0), world.machine.process(65534));
    let nobody = client(65534, mine);
    let write = |text: &str| world.write_by(nobody, nobody, "/empty/tasks", text);
    assert_eq!(write(&rooted.to_string()), Err(Errno::EACCES));
    assert_eq!(
        (write("31000"), write(&KTHREADD.to_string()), write("garbage")),
        (Err(Errno::ESRCH), Err(Errno::EINVAL), Err(Errno::EINVAL))
    );
    assert_eq!(write(&mine.to_string()), Err(Errno::ENOSPC));
    world.write("/empty/cpuset.cpus", "0").expect("cpus");
    assert_eq!(write(&mine.to_string()), Err(Errno::ENOSPC), "no nodes");
    world.write("/empty/cpuset.mems", "0").expect("mems");
    assert_eq!(write(&mine.to_string()), Ok(()));
}

#[test]
fn the_present_group_changes_nothing() {
    let world = world();
    let tid = world.machine.process(0);
    world.attach("/a", tid).expect("attach");
    world.machine.sched_setaffinity(tid, [0]).expect("a wish");
    world.machine.take_set();
    world.attach("/a", tid).expect("again");
    world.attach_process("/a", tid).expect("again");
    assert_eq!((world.machine.take_set(), world.affinity(tid)), (vec![], "0".into()));
}

#[test]
fn root_of_a_user_namespace_is_nobody_special() {
    let world = World::owned_by(FakeMachine::new(4, 1).in_user_namespace(), 0);
    world.group("/a", "0-1");
    let (own, other) = (world.machine.process(0), world.machine.process(1001));
    assert_eq!((world.attach("/a", own), world.attach("/a", other)), (Ok(()), Err(Errno::EACCES)));
}

#[test]
fn pids_are_those_of_the_clients_namespace() {
    let world = world();
    let ns = PidNs(Arc::new(File::open("/dev/null").expect("a descriptor").into()));
    let (inside, outside) = (world.machine.process(0), world.machine.process(0));
    world.machine.set_pid_ns(inside, &ns);
    let insider = client(0, inside);
    world.write_by(root(), insider, "/a/tasks", (inside - NS_OFFSET).to_string()).expect("its own pid");
    assert_eq!(world.write_by(root(), insider, "/a/tasks", (outside - NS_OFFSET).to_string()), Err(Errno::ESRCH));
    world.attach("/a", outside).expect("attach");
    assert_eq!(world.tasks("/a"), [inside, outside]);
    assert_eq!(world.read_by(insider, "/a/tasks"), Ok(format!("{}\n", inside - NS_OFFSET)));
}
