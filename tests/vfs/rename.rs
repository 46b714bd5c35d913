//! Groups get new names within their parent; everything else is refused.

use std::path::Path;

use nix::errno::Errno::{EACCES, EBUSY, EEXIST, EINVAL, EIO, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EPERM, EXDEV};

use super::actor::{Actor, at};
use super::trees::{both, configured};
use crate::common::affinity;

/// What must be there afterwards: `a/b/c`, `d`, and the files.
fn populate(tree: &Path) -> Actor {
    let actor = Actor::new();
    for name in ["a", "a/b", "a/b/c", "d"] {
        actor.mkdir(&tree.join(name), 0o755).expect("mkdir");
    }
    actor
}

fn still_as_populated(a: &Actor, tree: &Path) {
    for name in ["a/b/c/tasks", "d/tasks", "tasks"] {
        assert!(a.text(&tree.join(name)).is_ok(), "{name}");
    }
    for name in ["a/b/c", "a/b", "a", "d"] {
        assert_eq!(a.rmdir(&tree.join(name)), Ok(0), "{name}");
    }
}

fn within_the_parent(tree: &Path) {
    let a = Actor::new();
    let member = Actor::new();
    member.setaffinity(0, &[0, 1]).expect("setaffinity");
    let (x, y) = (tree.join("x"), tree.join("y"));
    configured(&x);
    configured(&x.join("child"));
    a.put(&x.join("cpuset.cpus"), "0-1").expect("cpus");
    a.put(&x.join("child/cpuset.cpus"), "1").expect("cpus");
    a.put(&x.join("child/tasks"), member.id.to_string()).expect("attach");
    let fd = a.open(&x.join("cpuset.cpus"), libc::O_RDWR).expect("open");
    assert_eq!(a.rename(&x, &y, 0), Ok(0));
    assert_eq!(a.text(&x.join("tasks")), Err(ENOENT));
    assert_eq!(a.text(&y.join("child/tasks")), Ok(format!("{}\n", member.id)));
    assert_eq!(affinity(member.id), [1]);
    // The open descriptor follows.
    assert_eq!(a.read(fd, 10).as_deref(), Ok(&b"0-1\n"[..]));
    assert_eq!(a.write(fd, "1"), Ok(1));
    assert_eq!(a.text(&y.join("cpuset.cpus")).as_deref(), Ok("1\n"));
    a.close(fd).expect("close");
    // The old name is free for another one.
    assert_eq!(a.mkdir(&x, 0o755), Ok(0));
    assert_eq!(a.text(&x.join("cpuset.cpus")).as_deref(), Ok("\n"));
    assert_eq!(a.rename(&y, &x, 0), Err(EEXIST));
    assert_eq!(a.rmdir(&x), Ok(0));
    assert_eq!(a.rename(&y, &x, 0), Ok(0));
    assert_eq!(a.rename(&x, &x, 0), Ok(0));
    assert_eq!(a.rename(&x.join("child"), &x.join("other"), 0), Ok(0));
    assert_eq!(a.text(&x.join("other/tasks")), Ok(format!("{}\n", member.id)));
    assert_eq!(a.put(&tree.join("tasks"), member.id.to_string()).map(|_| ()), Ok(()));
    assert_eq!(a.rmdir(&x.join("other")), Ok(0));
    assert_eq!(a.rmdir(&x), Ok(0));
}

fn a_directory_somebody_is_in(tree: &Path) {
    let (a, b) = (Actor::new(), Actor::new());
    a.mkdir(&tree.join("x"), 0o755).expect("mkdir");
    b.call(libc::SYS_chdir, [(&tree.join("x")).into()]).expect("chdir");
    assert_eq!(a.rename(&tree.join("x"), &tree.join("y"), 0), Ok(0));
    let cwd = std::fs::read_link(format!("/proc/{}/cwd", b.id)).expect("cwd");
    assert_eq!(cwd, tree.join("y"));
    assert_eq!(b.text(Path::new("tasks")).as_deref(), Ok(""));
    b.call(libc::SYS_chdir, [Path::new("/").into()]).expect("chdir");
    assert_eq!(a.rmdir(&tree.join("y")), Ok(0));
}

fn to_other_groups(tree: &Path) {
    let a = populate(tree);
    let mv = |from: &str, to: &str| a.rename(&at(tree, from), &at(tree, to), 0);
    for (from, to, errno) in [
        ("a", "d", EEXIST),
        ("d", "a", EEXIST),
        ("a/b", "a", ENOTEMPTY),
        ("a/b/c", "a", ENOTEMPTY),
        ("a/b", "a/", ENOTEMPTY),
        ("a", "a/x", EINVAL),
        ("a", "a/b", EINVAL),
        ("a", "a/b/c", EINVAL),
        ("d", "a/x", EIO),
        ("a/b", "x", EIO),
        ("a/b/c", "a/x", EIO),
        ("d", "a/b", EIO),
        ("a/b", "d", EIO),
    ] {
        assert_eq!(mv(from, to), Err(errno), "{from} -> {to}");
    }
    still_as_populated(&a, tree);
}

fn to_and_from_files(tree: &Path) {
    let a = populate(tree);
    let mv = |from: &str, to: &str| a.rename(&at(tree, from), &at(tree, to), 0);
    for (from, to, errno) in [
        ("tasks", "x", ENOTDIR),
        ("tasks", "cpuset.cpus", ENOTDIR),
        ("tasks", "a/tasks", ENOTDIR),
        ("tasks", "a", EISDIR),
        ("a", "tasks", ENOTDIR),
        ("a", "d/tasks", ENOTDIR),
        ("tasks/", "x", ENOTDIR),
        ("a", "tasks/x", ENOTDIR),
        ("a/b", "a/tasks", ENOTDIR),
    ] {
        assert_eq!(mv(from, to), Err(errno), "{from} -> {to}");
    }
    still_as_populated(&a, tree);
}

fn missing_and_special_names(tree: &Path) {
    let a = populate(tree);
    let mv = |from: &str, to: &str| a.rename(&at(tree, from), &at(tree, to), 0);
    for (from, to, errno) in [
        ("nothing", "x", ENOENT),
        ("nothing", "a", ENOENT),
        ("a", "nothing/x", ENOENT),
        ("a", ".", EBUSY),
        ("a", "..", EBUSY),
        ("a", "d/.", EBUSY),
        ("a/.", "x", EBUSY),
        ("a/..", "x", EBUSY),
        ("a", "x\ny", EINVAL),
        ("a", "\n", EINVAL),
        ("a", "x\n", EINVAL),
    ] {
        assert_eq!(mv(from, to), Err(errno), "{from} -> {to:?}");
    }
    assert_eq!(a.rename(&tree.join("a"), Path::new("/tmp/cgfuse-test-elsewhere"), 0), Err(EXDEV));
    assert_eq!(a.rename(Path::new("/etc/hostname"), &tree.join("x"), 0), Err(EXDEV));
    still_as_populated(&a, tree);
}

fn names_of_many_kinds(tree: &Path) {
    let a = Actor::new();
    let mut from = tree.join("start");
    a.mkdir(&from, 0o755).expect("mkdir");
    for name in [&b" "[..], b"\xff\xfe", b"cpuset.foo", b"release_agent", b"...", &[b'x'; 255], &[b'y'; 256], &[b'z'; 1000]] {
        let to = at(tree, name);
        assert_eq!(a.rename(&from, &to, 0), Ok(0), "{} bytes", name.len());
        assert_eq!(a.text(&to.join("tasks")).as_deref(), Ok(""));
        from = to;
    }
    a.rmdir(&from).expect("rmdir");
}

fn with_flags(tree: &Path) {
    let a = populate(tree);
    let mv = |from: &str, to: &str, flags: u32| a.rename(&at(tree, from), &at(tree, to), flags);
    assert_eq!(mv("a", "d", libc::RENAME_NOREPLACE), Err(EEXIST));
    assert_eq!(mv("a", "tasks", libc::RENAME_NOREPLACE), Err(EEXIST));
    assert_eq!(mv("a", "x", libc::RENAME_NOREPLACE), Err(EINVAL));
    assert_eq!(mv("a", "d", libc::RENAME_EXCHANGE), Err(EINVAL));
    assert_eq!(mv("a", "x", libc::RENAME_EXCHANGE), Err(ENOENT));
    assert_eq!(mv("a", "x", libc::RENAME_WHITEOUT), Err(EINVAL));
    assert_eq!(mv("a", "x", 1 << 30), Err(EINVAL));
    still_as_populated(&a, tree);
}

fn needs_write_permission(tree: &Path) {
    let a = populate(tree);
    let user = Actor::user(65534);
    let mv = |from: &str, to: &str| user.rename(&at(tree, from), &at(tree, to), 0);
    assert_eq!(mv("a", "x"), Err(EACCES));
    assert_eq!(mv("a", "d"), Err(EACCES));
    assert_eq!(mv("a/b", "a/x"), Err(EACCES));
    a.chmod(&tree.join("a"), 0o777).expect("chmod");
    assert_eq!(mv("a/b", "a/x"), Ok(0));
    assert_eq!(mv("a/x", "a/b"), Ok(0));
    a.chmod(&tree.join("a"), 0o1777).expect("chmod");
    assert_eq!(mv("a/b", "a/x"), Err(EPERM));
    still_as_populated(&a, tree);
}

both! {
    within_the_parent a_directory_somebody_is_in to_other_groups to_and_from_files missing_and_special_names
    names_of_many_kinds with_flags needs_write_permission
}
