//! The release agent: when a group is announced, and when not.

use crate::fake::{FakeMachine, INIT};
use crate::world::{World, client, root};
use cgfuse::sys::{Errno, Tid};

/// /a and /a/b want to be announced.
fn world() -> World {
    let world = World::with(4, 1);
    world.write("/release_agent", "/sbin/agent").expect("agent");
    world.write("/notify_on_release", "1").expect("flag");
    world.group("/a", "0-1");
    world.group("/a/b", "0");
    world
}

fn member(world: &World, group: &str) -> Tid {
    let tid = world.machine.process(0);
    world.attach(group, tid).expect("attach");
    tid
}

#[test]
fn the_last_task_is_moved_away() {
    let world = world();
    let tids = [member(&world, "/a/b"), member(&world, "/a/b")];
    world.attach("/a", tids[0]).expect("attach");
    assert_eq!(world.released(), [""; 0]);
    world.attach("/a", tids[1]).expect("attach");
    assert_eq!(world.machine.take_released(), [("/sbin/agent".into(), "/a/b".into())]);
}

#[test]
fn the_last_task_exits() {
    let world = world();
    let (first, last) = (member(&world, "/a/b"), member(&world, "/a/b"));
    world.machine.kill(first);
    world.settle();
    assert_eq!(world.released(), [""; 0]);
    world.machine.exit_group(last);
    world.settle();
    assert_eq!(world.released(), ["/a/b"], "at death, reaped or not");
    world.machine.reap(last);
    world.settle();
    assert_eq!(world.released(), [""; 0], "once");
}

#[test]
fn a_dead_main_thread_is_not_the_end() {
    let world = world();
    let leader = member(&world, "/a/b");
    let thread = world.machine.thread(leader);
    world.settle();
    world.machine.exit(leader);
    world.settle();
    assert_eq!(world.released(), [""; 0]);
    world.machine.exit(thread);
    world.settle();
    assert_eq!(world.released(), ["/a/b"]);
}

#[test]
fn a_child_keeps_the_group() {
    let world = world();
    let parent = member(&world, "/a/b");
    let child = world.machine.fork(parent);
    world.attach("/a", parent).expect("attach");
    assert_eq!((world.released(), world.tasks("/a/b")), (vec![], vec![child]));
}

#[test]
fn a_group_with_children_is_not_announced_until_they_are_gone() {
    let world = world();
    let tid = member(&world, "/a");
    world.attach("", tid).expect("attach");
    assert_eq!(world.released(), [""; 0]);
    world.write("/a/b/notify_on_release", "0").expect("the child's flag does not matter");
    world.rmdir("/a/b").expect("rmdir");
    assert_eq!(world.released(), ["/a"]);
}

#[test]
fn a_group_that_never_had_tasks_is_announced_when_its_last_child_goes() {
    let world = world();
    world.mkdir("/a/c").expect("mkdir");
    world.rmdir("/a/b").expect("rmdir");
    assert_eq!(world.released(), [""; 0], "not the last child");
    world.rmdir("/a/c").expect("rmdir");
    assert_eq!(world.released(), ["/a"]);
    world.rmdir("/a").expect("rmdir");
    assert_eq!(world.released(), [""; 0], "neither the removed group nor the root");
}

#[test]
fn a_group_with_tasks_is_not_announced_when_its_last_child_goes() {
    let world = world();
    let tid = member(&world, "/a");
    world.rmdir("/a/b").expect("rmdir");
    assert_eq!(world.released(), [""; 0]);
    world.machine.kill(tid);
    world.settle();
    assert_eq!(world.released(), ["/a"]);
}

#[test]
fn a_task_that_died_before_the_last_child_was_removed() {
    let world = world();
    let tid = member(&world, "/a");
    world.machine.kill(tid);
    world.rmdir("/a/b").expect("rmdir");
    world.settle();
    assert_eq!(world.released(), ["/a"], "once");
}

#[test]
fn what_announces_nothing() {
    let world = world();
    let tid = member(&world, "/a/b");
    world.attach("/a/b", tid).expect("where it is");
    world.write("/a/notify_on_release", "1").expect("again");
    world.rename("/a", "/c").expect("rename");
    world.mkdir("/d").expect("mkdir");
    world.write("/d/notify_on_release", "1").expect("empty already");
    world.rmdir("/d").expect("rmdir");
    world.settle();
    assert_eq!(world.released(), [""; 0]);
    world.attach("", tid).expect("attach");
    assert_eq!(world.released(), ["/c/b"], "by the new name");
}

#[test]
fn the_flag_is_that_of_the_moment() {
    let world = world();
    let tid = member(&world, "/a/b");
    world.write("/a/b/notify_on_release", "0").expect("flag");
    world.attach("", tid).expect("attach");
    world.write("/a/b/notify_on_release", "1").expect("too late");
    world.settle();
    assert_eq!(world.released(), [""; 0]);
    world.attach("/a/b", tid).expect("attach");
    world.attach("", tid).expect("attach");
    assert_eq!(world.released(), ["/a/b"]);
}

#[test]
fn a_flag_set_after_the_death_comes_too_late() {
    let world = world();
    let tid = member(&world, "/a/b");
    world.write("/a/b/notify_on_release", "0").expect("flag");
    world.settle();
    world.machine.kill(tid);
    world.write("/a/b/notify_on_release", "1").expect("flag");
    world.settle();
    assert_eq!(world.released(), [""; 0]);
}

#[test]
fn an_agent_named_after_the_death_comes_too_late() {
    let world = world();
    world.write("/release_agent", "\n").expect("none");
    let tid = member(&world, "/a/b");
    world.settle();
    world.machine.kill(tid);
    world.write("/release_agent", "/late").expect("agent");
    world.settle();
    assert_eq!(world.machine.take_released(), []);
}

#[test]
fn no_agent_no_announcement() {
    let world = world();
    world.write("/release_agent", "\n").expect("none");
    let tid = member(&world, "/a/b");
    world.attach("", tid).expect("attach");
    world.write("/release_agent", "/late").expect("agent");
    world.settle();
    assert_eq!(world.released(), [""; 0], "not made up for later");
}

#[test]
fn a_zombie_that_is_written_announces_nothing() {
    let world = world();
    world.group("/z", "0");
    let tid = member(&world, "/a/b");
    world.machine.exit_group(tid);
    world.attach("/z", tid).expect("no effect");
    world.settle();
    world.machine.reap(tid);
    world.settle();
    assert_eq!(world.released(), ["/a/b"], "/z never had a task");
}

#[test]
fn a_move_that_fails_announces_nothing() {
    let world = world();
    world.write("/notify_on_release", "1").expect("flag");
    world.group("/y", "1");
    let leader = member(&world, "/a/b");
    let thread = world.machine.thread(leader);
    world.machine.refuse(thread, Errno::EPERM);
    assert_eq!(world.attach_process("/y", leader), Err(Errno::EPERM));
    world.settle();
    assert_eq!((world.released(), world.tasks("/a/b").len()), (vec![], 2));
}

#[test]
fn a_death_noticed_by_a_write_is_announced_too() {
    let world = world();
    let tid = member(&world, "/a/b");
    world.settle();
    world.machine.kill(tid);
    world.write("/a/b/cpuset.cpus", "\n").expect("nobody is in the way");
    world.settle();
    assert_eq!(world.released(), ["/a/b"]);
}

#[test]
fn the_agents_path_is_taken_as_it_is() {
    let world = world();
    for (text, want) in [("/a b\n", "/a b\n"), ("  /x\ny \n", "/x\ny\n"), ("\n", "\n"), (" ", "\n"), ("no/such", "no/such\n")] {
        world.write("/release_agent", text).expect(text);
        assert_eq!(world.read("/release_agent").as_deref(), Ok(want), "{text:?}");
    }
    assert_eq!(world.write("/release_agent", "x".repeat(4095)), Ok(()));
    assert_eq!(world.write("/release_agent", "x".repeat(4096)), Err(Errno::E2BIG));
    assert_eq!(world.write("/a/release_agent", "x"), Err(Errno::ENOENT));
}

#[test]
fn naming_an_agent_needs_cap_sys_admin() {
    let world = world();
    let (nobody, weak) = (world.machine.process(65534), world.machine.process(0));
    world.machine.set_caps(weak, !(1 << 21));
    let nobody = client(65534, nobody);
    assert_eq!(world.write_by(nobody, nobody, "/release_agent", "/x"), Err(Errno::EPERM));
    assert_eq!(world.write_by(nobody, root(), "/release_agent", "/x"), Err(Errno::EPERM), "the opener's capabilities count");
    assert_eq!(world.write_by(client(0, weak), root(), "/release_agent", "/x"), Err(Errno::EPERM));
    assert_eq!(world.read("/release_agent"), Ok("/sbin/agent\n".into()));
    // The agent of an ordinary user's server has no more rights than he.
    let users = World::owned_by(FakeMachine::new(2, 1), 1000);
    assert_eq!(users.write_by(client(1000, INIT), client(1000, INIT), "/release_agent", "/x"), Ok(()));
    assert_eq!(users.write_by(client(1001, INIT), client(1001, INIT), "/release_agent", "/x"), Err(Errno::EPERM));
}
