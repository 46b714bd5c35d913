//! What holds for every control file and every group: the order of checks, snapshots, names.

use crate::world::{World, root};
use cgfuse::cgroup::FILES;
use cgfuse::controllers::{SUBSYS, Store};
use cgfuse::sys::{Errno, Machine};

/// Every file of a group below the root, with whether it can be written and its limit.
fn files(world: &World) -> Vec<(String, bool, usize)> {
    let core = FILES.iter().map(|cft| (cft.name.to_owned(), cft));
    let all = core.chain(SUBSYS.iter().flat_map(|ss| ss.files.iter().map(|cft| (format!("{}.{}", ss.name, cft.name), cft))));
    let here = all.filter(|(_, cft)| cft.is_in(false));
    here.map(|(name, cft)| (name, !matches!(cft.store, Store::None), (cft.max_write)(&*world.machine))).collect()
}

#[test]
fn what_is_too_long_is_not_even_looked_at() {
    let world = World::with(2, 1);
    world.mkdir("/a").expect("mkdir");
    for (name, _, max) in files(&world) {
        let path = format!("/a/{name}");
        assert_eq!(world.write(&path, vec![b'x'; max + 1]), Err(Errno::E2BIG), "{name}");
        assert_eq!(world.write(&path, vec![b'x'; max]), Err(Errno::EINVAL), "{name}");
        assert_eq!(world.write(&path, ""), Ok(()), "{name}: nothing happens");
    }
}

#[test]
fn files_of_a_removed_group() {
    let world = World::with(2, 1);
    for (name, _, max) in files(&world) {
        world.mkdir("/a").expect("mkdir");
        let fh = world.open(&format!("/a/{name}")).expect("open");
        world.rmdir("/a").expect("rmdir");
        world.mkdir("/a").expect("another of the same name");
        assert_eq!(world.write_to(fh, root(), vec![b'0'; max + 1]), Err(Errno::E2BIG), "{name}");
        for text in ["", "0", "x"] {
            assert_eq!(world.write_to(fh, root(), text), Err(Errno::ENODEV), "{name} {text:?}");
        }
        assert_eq!(world.vfs.read(fh, 0, 100, root()).map_err(|error| error.errno()), Err(Errno::ENODEV), "{name}");
        world.rmdir("/a").expect("rmdir");
    }
}

#[test]
fn a_descriptor_reads_one_rendering_to_its_end() {
    let world = World::with(8, 1);
    world.group("/a", "0-3");
    let fh = world.open("/a/cpuset.cpus").expect("open");
    let read = |offset, size| String::from_utf8(world.vfs.read(fh, offset, size, root()).expect("read")).expect("text");
    assert_eq!(read(0, 1), "0");
    world.write("/a/cpuset.cpus", "4-7").expect("cpus");
    assert_eq!((read(1, 2), read(3, 10), read(4, 10)), ("-3".into(), "\n".into(), String::new()));
    assert_eq!((read(0, 10), read(2, 1), read(100, 1)), ("4-7\n".into(), "7".into(), String::new()));
    let fh = world.open("/a/cpuset.cpus").expect("open");
    world.write("/a/cpuset.cpus", "1").expect("cpus");
    assert_eq!(world.vfs.read(fh, 0, 10, root()), Ok(b"1\n".to_vec()), "as of the first read, not of the open");
}

#[test]
fn names_of_groups() {
    let world = World::with(2, 1);
    for name in ["x".repeat(255), "x".repeat(4000), "cgroup.foo".into(), ".hidden".into(), " ".into(), "*\\\t\u{1}".into()] {
        assert_eq!((world.mkdir(&format!("/{name}")), world.mkdir(&format!("/{name}"))), (Ok(()), Err(Errno::EEXIST)), "{name:?}");
        assert_eq!(world.rmdir(&format!("/{name}")), Ok(()), "{name:?}");
    }
    for name in ["a\nb", "\n", "a\n"] {
        assert_eq!(world.mkdir(&format!("/{name}")), Err(Errno::EINVAL), "{name:?}");
    }
    world.mkdir("/a").expect("mkdir");
    for (name, _, _) in files(&world) {
        assert_eq!(world.mkdir(&format!("/a/{name}")), Err(Errno::EEXIST), "{name}");
    }
    world.mkdir("/a/release_agent").expect("only the root has such a file");
    assert_eq!(world.mkdir("/gone/a"), Err(Errno::ENOENT));
    assert_eq!(world.rmdir("/a/tasks"), Err(Errno::ENOTDIR));
}

#[test]
fn groups_nest_deeply() {
    let world = World::with(2, 1);
    world.write("/cgroup.clone_children", "1").expect("flag");
    let paths: Vec<String> = (1..=200).map(|depth| "/x".repeat(depth)).collect();
    paths.iter().for_each(|path| world.mkdir(path).expect("mkdir"));
    let tid = world.machine.process(0);
    world.attach(&paths[199], tid).expect("attach");
    assert_eq!((world.tasks(&paths[199]), world.read(&format!("{}/cpuset.cpus", paths[199])).as_deref()), (vec![tid], Ok("0-1\n")));
    assert_eq!(world.rmdir(&paths[100]), Err(Errno::EBUSY));
    world.machine.kill(tid);
    paths.iter().rev().for_each(|path| world.rmdir(path).expect("rmdir"));
}

#[test]
fn a_group_of_zombies_goes_away() {
    let world = World::with(2, 1);
    world.group("/a", "0");
    let tid = world.machine.process(0);
    world.attach("/a", tid).expect("attach");
    assert_eq!(world.rmdir("/a"), Err(Errno::EBUSY));
    world.machine.exit_group(tid);
    assert_eq!((world.machine.task(tid).map(|info| info.zombie), world.rmdir("/a")), (Ok(true), Ok(())));
}

#[test]
fn a_removed_group_constrains_nobody() {
    let world = World::with(4, 1);
    world.group("/a", "0-1");
    world.group("/a/b", "0-1");
    world.group("/x", "2");
    world.write("/x/cpuset.cpu_exclusive", "1").expect("flag");
    assert_eq!(world.write("/a/cpuset.cpus", "0"), Err(Errno::EBUSY));
    world.rmdir("/a/b").expect("rmdir");
    assert_eq!((world.write("/a/cpuset.cpus", "0"), world.write("/a/cpuset.cpus", "2")), (Ok(()), Err(Errno::EINVAL)));
    world.rmdir("/x").expect("rmdir");
    assert_eq!(world.write("/a/cpuset.cpus", "2"), Ok(()));
}

#[test]
fn first_error_of_several() {
    let world = World::with(4, 2);
    world.group("/p", "0-1");
    world.group("/p/a", "0");
    world.group("/p/a/c", "0");
    world.group("/p/b", "1");
    world.write("/p/cpuset.cpu_exclusive", "1").expect("flag");
    world.write("/p/b/cpuset.cpu_exclusive", "1").expect("flag");
    let cpus = |text: &str| world.write("/p/a/cpuset.cpus", text);
    assert_eq!(cpus("2"), Err(Errno::EBUSY), "neither covers the child nor fits the parent");
    assert_eq!(cpus("0-2"), Err(Errno::EACCES), "neither fits the parent nor spares the sibling");
    assert_eq!(cpus("0-1"), Err(Errno::EINVAL));
    world.attach("/p/a", world.machine.process(0)).expect("attach");
    assert_eq!(cpus(""), Ok(()), "an empty write is none");
    assert_eq!(cpus("\n"), Err(Errno::EBUSY));
    world.rmdir("/p/a/c").expect("rmdir");
    assert_eq!((cpus("\n"), world.write("/p/a/cpuset.mems", "\n")), (Err(Errno::ENOSPC), Err(Errno::ENOSPC)));
    assert_eq!(world.write("/p/cpuset.cpu_exclusive", "0"), Err(Errno::EBUSY));
    world.group("/q", "2-3");
    world.group("/q/a", "2");
    world.group("/q/b", "2-3");
    assert_eq!(world.write("/q/a/cpuset.cpu_exclusive", "1"), Err(Errno::EACCES));
    world.write("/q/cpuset.cpu_exclusive", "1").expect("flag");
    assert_eq!(world.write("/q/a/cpuset.cpu_exclusive", "1"), Err(Errno::EINVAL));
    assert_eq!(world.write("/cpuset.cpus", "garbage"), Err(Errno::EACCES));
    assert_eq!(world.write("/cpuset.cpu_exclusive", "0"), Err(Errno::EBUSY));
}
