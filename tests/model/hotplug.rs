//! CPUs and nodes that come and go, by v1's rules: what a group loses is lost for good, and the tasks of a group
//! that has nothing left go up to the nearest ancestor that has.

use crate::fake::FakeMachine;
use crate::world::World;
use cgfuse::sys::Errno;

#[test]
fn the_root_follows_and_a_group_loses_for_good() {
    let world = World::with(4, 1);
    world.group("/a", "0-2");
    world.group("/a/b", "1-2");
    let tids = ["/a", "/a/b"].map(|group| {
        let tid = world.machine.process(0);
        world.attach(group, tid).expect("attach");
        tid
    });
    let cpus = || ["", "/a", "/a/b"].map(|group| world.read(&format!("{group}/cpuset.cpus")).expect("cpus").trim().to_owned());
    let affinity = || tids.map(|tid| world.affinity(tid));
    world.set_online(1, false);
    assert_eq!((cpus(), affinity()), (["0,2-3", "0,2", "2"].map(Into::into), ["0,2", "2"].map(Into::into)));
    assert_eq!(world.read("/a/cpuset.effective_cpus"), Ok("0,2\n".into()));
    world.set_online(1, true);
    assert_eq!((cpus(), affinity()), (["0-3", "0,2", "2"].map(Into::into), ["0,2", "2"].map(Into::into)));
    world.write("/a/cpuset.cpus", "0-2").expect("given again");
    assert_eq!(affinity(), ["0-2", "2"]);
}

#[test]
fn tasks_of_an_emptied_group_go_to_the_nearest_that_can_run_them() {
    let world = World::with(4, 1);
    world.group("/a", "0-1");
    world.group("/a/b", "1");
    world.group("/a/b/c", "1");
    world.group("/alone", "1");
    let tids = ["/a/b/c", "/a/b", "/alone"].map(|group| {
        let tid = world.machine.process(0);
        world.attach(group, tid).expect("attach");
        tid
    });
    world.set_online(1, false);
    assert_eq!((world.tasks("/a"), world.tasks("/a/b"), world.tasks("/a/b/c")), (tids[..2].to_vec(), vec![], vec![]));
    assert!(world.tasks("/alone").is_empty() && world.tasks("/").contains(&tids[2]));
    assert_eq!(tids.map(|tid| world.affinity(tid)), ["0", "0", "0,2-3"]);
    assert_eq!(world.read("/a/b/c/cpuset.cpus"), Ok("\n".into()));
    assert_eq!(world.attach("/a/b/c", tids[0]), Err(Errno::ENOSPC));
    world.set_online(1, true);
    assert_eq!((world.tasks("/a"), world.read("/a/b/cpuset.cpus")), (tids[..2].to_vec(), Ok("\n".into())));
    assert_eq!(tids.map(|tid| world.affinity(tid)), ["0", "0", "0-3"]);
}

#[test]
fn an_emptied_group_is_announced() {
    let world = World::with(2, 1);
    world.group("/a", "1");
    world.write("/release_agent", "/agent").expect("agent");
    world.write("/a/notify_on_release", "1").expect("flag");
    world.attach("/a", world.machine.process(0)).expect("attach");
    world.set_online(1, false);
    assert_eq!(world.released(), ["/a"]);
}

#[test]
fn a_group_without_a_cpu_online_keeps_wishes() {
    let world = World::with(4, 1);
    world.group("/a", "0-1");
    let tid = world.machine.process(0);
    world.machine.sched_setaffinity(tid, [1]).expect("a wish");
    world.attach("/a", tid).expect("attach");
    world.set_online(1, false);
    assert_eq!(world.affinity(tid), "0");
    world.set_online(1, true);
    assert_eq!(world.affinity(tid), "0");
    world.write("/a/cpuset.cpus", "0-1").expect("given again");
    assert_eq!(world.affinity(tid), "1");
}

#[test]
fn a_task_whose_wish_is_offline_can_leave() {
    let world = World::with(2, 1);
    world.group("/a", "0-1");
    let tid = world.machine.process(0);
    world.machine.sched_setaffinity(tid, [1]).expect("a wish");
    world.attach("/a", tid).expect("attach");
    world.set_online(1, false);
    assert_eq!((world.attach("", tid), world.affinity(tid)), (Ok(()), "0".into()));
}

#[test]
fn a_task_whose_wish_is_offline_leaves_an_emptied_group() {
    let world = World::with(2, 1);
    world.group("/a", "1");
    let tid = world.machine.process(0);
    world.machine.sched_setaffinity(tid, [1]).expect("a wish");
    world.attach("/a", tid).expect("attach");
    world.set_online(1, false);
    assert_eq!((world.tasks("/a"), world.affinity(tid)), (vec![], "0".into()));
    assert!(world.tasks("/").contains(&tid));
}

#[test]
fn leaving_while_a_cpu_is_offline_does_not_lose_it() {
    let world = World::with(4, 1);
    world.group("/a", "0");
    let tid = world.machine.process(0);
    world.attach("/a", tid).expect("attach");
    world.set_online(3, false);
    world.attach("", tid).expect("attach");
    assert_eq!(world.affinity(tid), "0-2");
    world.set_online(3, true);
    assert_eq!(world.affinity(tid), "0-3");
}

#[test]
fn entering_while_a_cpu_is_offline_leaves_it_behind() {
    let world = World::with(3, 1);
    world.set_online(0, false);
    world.group("/a", "1-2");
    let tid = world.machine.process(0);
    world.attach("/a", tid).expect("attach");
    world.set_online(0, true);
    assert_eq!(world.affinity(tid), "1-2");
    world.attach("", tid).expect("attach");
    assert_eq!(world.affinity(tid), "0-2");
}

#[test]
fn the_root_has_only_what_the_server_may_use() {
    let world = World::new(FakeMachine::new(4, 1).with_server_cpus(&[0, 1]));
    world.set_online(1, false);
    assert_eq!(world.read("/cpuset.cpus"), Ok("0\n".into()));
    world.set_online(1, true);
    world.set_online(3, false);
    assert_eq!(world.read("/cpuset.cpus"), Ok("0-1\n".into()));
}

#[test]
fn nodes_follow_the_same_rules() {
    let world = World::with(2, 4);
    world.group("/a", "0");
    world.group("/a/b", "0");
    world.write("/a/b/cpuset.mems", "2").expect("mems");
    let tid = world.machine.process(0);
    world.attach("/a/b", tid).expect("attach");
    world.set_node(2, false);
    let mems = || ["", "/a", "/a/b"].map(|group| world.read(&format!("{group}/cpuset.effective_mems")).expect("mems").trim().to_owned());
    assert_eq!((mems(), world.tasks("/a")), (["0-1,3", "0-1,3", ""].map(Into::into), vec![tid]));
    assert_eq!(world.write("/a/cpuset.mems", "2"), Err(Errno::EINVAL), "a node that is not there");
    world.set_node(2, true);
    assert_eq!(mems(), ["0-3", "0-1,3", ""]);
}

#[test]
fn cpus_that_are_offline_cannot_be_given() {
    let world = World::with(4, 1);
    world.group("/a", "0");
    world.set_online(2, false);
    for (text, want) in [("2", Err(Errno::EINVAL)), ("0-3", Err(Errno::EINVAL)), ("4", Err(Errno::ERANGE)), ("0,3", Ok(()))] {
        assert_eq!(world.write("/a/cpuset.cpus", text), want, "{text}");
    }
}

#[test]
fn an_event_without_a_change_changes_nothing() {
    let world = World::with(4, 1);
    world.group("/a", "0-1");
    let tid = world.machine.process(0);
    world.attach("/a", tid).expect("attach");
    world.machine.take_set();
    world.vfs.hierarchy().lock().hotplug();
    world.set_online(3, false);
    assert_eq!((world.machine.take_set(), world.read("/a/cpuset.cpus").as_deref()), (vec![], Ok("0-1\n")));
}
