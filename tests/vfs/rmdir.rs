//! rmdir(2): what keeps a group, what does not.

use std::path::Path;

use nix::errno::Errno::{EACCES, EBUSY, EINVAL, ENOENT, ENOTDIR, ENOTEMPTY};

use super::actor::{Actor, at};
use super::trees::{both, both_roots, configured};
use crate::common::{Target, TempDir, ids, state, wait_until};

fn zombie(pid: i32) -> bool {
    state(pid, pid) == Some('Z')
}

fn names(tree: &Path) {
    let a = Actor::new();
    a.mkdir(&tree.join("x"), 0o755).expect("mkdir");
    a.mkdir(&tree.join("x/y"), 0o755).expect("mkdir");
    for (name, errno) in [
        ("x", EBUSY),
        ("tasks", ENOTDIR),
        ("tasks/", ENOTDIR),
        ("tasks/x", ENOTDIR),
        ("nothing", ENOENT),
        ("nothing/x", ENOENT),
        ("x/y/.", EINVAL),
        ("x/y/..", ENOTEMPTY),
        (".", EINVAL),
        ("..", ENOTEMPTY),
    ] {
        assert_eq!(a.rmdir(&at(tree, name)), Err(errno), "{name}");
    }
    assert_eq!(a.rmdir(&tree.join("x/y/")), Ok(0));
    assert_eq!(a.rmdir(&tree.join("x")), Ok(0));
    assert_eq!(a.rmdir(&tree.join("x")), Err(ENOENT));
}

fn members_keep_it(tree: &Path) {
    let (a, member) = (Actor::new(), Actor::new());
    let g = tree.join("g");
    configured(&g);
    a.put(&g.join("tasks"), member.id.to_string()).expect("attach");
    assert_eq!(a.rmdir(&g), Err(EBUSY));
    assert_eq!(ids(g.join("tasks")), [member.id]);
    a.put(&tree.join("tasks"), member.id.to_string()).expect("attach");
    assert_eq!(a.rmdir(&g), Ok(0));
}

fn born_inside(tree: &Path) {
    let (a, member) = (Actor::new(), Actor::new());
    let g = tree.join("g");
    configured(&g);
    a.put(&g.join("tasks"), member.id.to_string()).expect("attach");
    let child = member.fork();
    a.put(&tree.join("tasks"), member.id.to_string()).expect("attach");
    assert_eq!(a.rmdir(&g), Err(EBUSY), "the child is in it");
    assert_eq!(ids(g.join("tasks")), [child.id]);
    child.quit();
    wait_until("the child is a zombie", || zombie(child.id));
    assert_eq!(a.rmdir(&g), Ok(0));
}

fn zombies_do_not(tree: &Path) {
    let (a, parent) = (Actor::new(), Actor::new());
    let g = tree.join("g");
    configured(&g);
    let child = parent.fork();
    a.put(&g.join("cgroup.procs"), child.id.to_string()).expect("attach");
    child.quit();
    wait_until("the child is a zombie", || zombie(child.id));
    assert_eq!(a.text(&g.join("tasks")).as_deref(), Ok(""));
    assert_eq!(a.text(&g.join("cgroup.procs")).as_deref(), Ok(""));
    assert_eq!(a.rmdir(&g), Ok(0));
}

fn a_dead_leader_with_live_threads_does(tree: &Path) {
    let (a, member) = (Actor::new(), Actor::new());
    let g = tree.join("g");
    configured(&g);
    let thread = member.thread();
    a.put(&g.join("cgroup.procs"), member.id.to_string()).expect("attach");
    // The leader is what carried the orders, so nobody can be told anything any more.
    member.leave();
    wait_until("the leader is dead", || zombie(member.id));
    assert_eq!(ids(g.join("tasks")), [thread.id]);
    assert_eq!(ids(g.join("cgroup.procs")), [member.id]);
    assert_eq!(a.rmdir(&g), Err(EBUSY));
    drop((thread, member));
    assert_eq!(a.rmdir(&g), Ok(0));
}

/// Whoever has waited for the last member can remove the group at once.
fn at_once_after_waiting(tree: &Path) {
    let a = Actor::new();
    let g = tree.join("g");
    for round in 0..20 {
        configured(&g);
        let member = Actor::new();
        if round % 2 == 1 {
            member.park(10);
        }
        a.put(&g.join("cgroup.procs"), member.id.to_string()).expect("attach");
        // Ends it and waits.
        drop(member);
        assert_eq!(a.rmdir(&g), Ok(0), "round {round}");
    }
}

fn its_constraints_go_with_it(tree: &Path) {
    let a = Actor::new();
    for name in ["x", "y", "x/z"] {
        configured(&tree.join(name));
    }
    let cpus = tree.join("x/cpuset.cpus");
    assert_eq!(a.put(&cpus, "0"), Err(EBUSY), "the child needs both");
    assert_eq!(a.rmdir(&tree.join("x/z")), Ok(0));
    assert_eq!(a.put(&cpus, "0"), Ok(1));
    assert_eq!(a.rmdir(&tree.join("y")), Ok(0));
    assert_eq!(a.put(&cpus, "0-1"), Ok(3));
    assert_eq!(a.rmdir(&tree.join("x")), Ok(0));
    // A new one of the name starts afresh.
    a.mkdir(&tree.join("x"), 0o755).expect("mkdir");
    assert_eq!(a.text(&tree.join("x/cpuset.cpus")).as_deref(), Ok("\n"));
    assert_eq!(a.rmdir(&tree.join("x")), Ok(0));
}

fn needs_write_permission(tree: &Path) {
    let (a, user) = (Actor::new(), Actor::user(65534));
    a.mkdir(&tree.join("x"), 0o777).expect("mkdir");
    assert_eq!(user.rmdir(&tree.join("x")), Err(EACCES));
    assert_eq!(user.rmdir(&tree.join("nothing")), Err(ENOENT));
    assert_eq!(user.rmdir(&tree.join("tasks")), Err(EACCES));
    a.chmod(tree, 0o777).expect("chmod");
    assert_eq!(user.rmdir(&tree.join("x")), Ok(0));
}

/// Opened files and working directories do not hold a group.
fn use_does_not_keep_it(tree: &Path) {
    let (a, b) = (Actor::new(), Actor::new());
    let g = tree.join("g");
    a.mkdir(&g, 0o755).expect("mkdir");
    a.open(&g.join("tasks"), libc::O_RDWR).expect("open");
    b.call(libc::SYS_chdir, [(&g).into()]).expect("chdir");
    assert_eq!(a.rmdir(&g), Ok(0));
}

/// A program whose one segment would be the kernel's: found out when the process has none to go back to.
fn bad_program(path: &Path) {
    let mut image = vec![0x7f, b'E', b'L', b'F', if cfg!(target_pointer_width = "64") { 2 } else { 1 }, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let machine: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    image.extend([2, machine].map(u16::to_le_bytes).as_flattened());
    image.extend(1_u32.to_le_bytes());
    image.extend([0x40_0078_u64, 64, 0].map(u64::to_le_bytes).as_flattened());
    image.extend(0_u32.to_le_bytes());
    image.extend([64_u16, 56, 1, 64, 0, 0].map(u16::to_le_bytes).as_flattened());
    image.extend([1_u32, 5].map(u32::to_le_bytes).as_flattened());
    image.extend([0, 0xffff_8000_0000_0000, 0xffff_8000_0000_0000, 120, 120, 0x1000_u64].map(u64::to_le_bytes).as_flattened());
    std::fs::write(path, image).expect("a file");
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
}

/// A thread that has taken over its process's pid and dies before its program begins.
fn a_program_that_fails_late(tree: &Path) {
    let a = Actor::new();
    let (g, dir) = (tree.join("g"), TempDir::new());
    configured(&g);
    bad_program(&dir.path().join("program"));
    let mut member = Target::new();
    let thread = member.thread();
    a.put(&g.join("cgroup.procs"), member.pid().to_string()).expect("attach");
    member.exec_and_die(thread, &dir.path().join("program"));
    assert_eq!(a.rmdir(&g), Ok(0), "{:?}", ids(g.join("tasks")));
}

fn the_root(root: &Path) {
    let (a, user) = (Actor::new(), Actor::user(65534));
    assert_eq!(a.rmdir(root), Err(EBUSY));
    assert_eq!(a.rmdir(&root.join("tasks")), Err(ENOTDIR));
    assert!(user.rmdir(root).is_err());
}

both! {
    names members_keep_it born_inside zombies_do_not a_dead_leader_with_live_threads_does at_once_after_waiting
    a_program_that_fails_late its_constraints_go_with_it needs_write_permission use_does_not_keep_it
}
both_roots! { the_root }
