//! What a control group file system does not have: new files, links, devices, maps.

use std::path::Path;

use nix::errno::Errno::{EACCES, EEXIST, EINVAL, EISDIR, ENODEV, ENOENT, ENOTDIR, ENOTTY, EOPNOTSUPP, EPERM, EXDEV};

use super::actor::{Actor, Arg, Outcome, at};
use super::trees::{both, on_ours};
use crate::common::TempDir;

const NOBODY: u32 = 65534;

fn mknod(a: &Actor, path: &Path, mode: u32) -> Outcome {
    let dev = if matches!(mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK) { 0x103 } else { 0 };
    a.call(libc::SYS_mknodat, [libc::AT_FDCWD.into(), path.into(), (mode | 0o644).into(), dev.into()])
}

fn symlink(a: &Actor, path: &Path) -> Outcome {
    a.call(libc::SYS_symlinkat, ["tasks".into(), libc::AT_FDCWD.into(), path.into()])
}

fn link(a: &Actor, from: &Path, to: &Path) -> Outcome {
    let here = || Arg::from(libc::AT_FDCWD);
    a.call(libc::SYS_linkat, [here(), from.into(), here(), to.into(), 0.into()])
}

fn names_in(dir: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = std::fs::read_dir(dir).expect("readdir").map(|e| e.expect("entry").file_name()).collect();
    names.sort();
    names
}

/// All that makes a new name, by somebody who may write to the directory.
fn refuses_new_names(a: &Actor, tree: &Path) {
    let before = names_in(tree);
    for name in ["new", "cpuset.new", "new\nline", "x y"] {
        let new = at(tree, name);
        for access in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR] {
            for flags in [0, libc::O_EXCL, libc::O_TRUNC, libc::O_NOFOLLOW, libc::O_EXCL | libc::O_APPEND] {
                assert_eq!(a.open(&new, access | libc::O_CREAT | flags), Err(EACCES), "{name} {access:o} {flags:o}");
            }
        }
        assert_eq!(mknod(a, &new, libc::S_IFREG), Err(EACCES), "{name}");
        assert_eq!(mknod(a, &new, 0), Err(EACCES), "{name}");
        for kind in [libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFCHR, libc::S_IFBLK] {
            assert_eq!(mknod(a, &new, kind), Err(EPERM), "{name} {kind:o}");
        }
        assert_eq!(symlink(a, &new), Err(EPERM), "{name}");
        assert_eq!(link(a, &tree.join("tasks"), &new), Err(EPERM), "{name}");
        assert_eq!(link(a, &tree.join("g"), &new), Err(EPERM), "{name}");
    }
    assert_eq!(names_in(tree), before);
}

fn new_names_by_root(tree: &Path) {
    let a = Actor::new();
    a.mkdir(&tree.join("g"), 0o755).expect("mkdir");
    refuses_new_names(&a, tree);
    a.rmdir(&tree.join("g")).expect("rmdir");
}

/// The owner of a directory hears the same as root.
fn new_names_by_their_owner(tree: &Path) {
    let (a, user) = (Actor::new(), Actor::user(NOBODY));
    a.chown(tree, NOBODY, NOBODY).expect("chown");
    a.chown(&tree.join("tasks"), NOBODY, NOBODY).expect("chown");
    user.mkdir(&tree.join("g"), 0o755).expect("mkdir");
    refuses_new_names(&user, tree);
    assert_eq!(user.unlink(&tree.join("tasks")), Err(EPERM));
    user.rmdir(&tree.join("g")).expect("rmdir");
}

fn by_strangers(tree: &Path) {
    let user = Actor::user(NOBODY);
    let new = tree.join("new");
    assert_eq!(user.open(&new, libc::O_CREAT | libc::O_WRONLY), Err(EACCES));
    assert_eq!(mknod(&user, &new, libc::S_IFREG), Err(EACCES));
    assert_eq!(mknod(&user, &new, libc::S_IFIFO), Err(EACCES));
    assert_eq!(symlink(&user, &new), Err(EACCES));
    // Not its owner: fs.protected_hardlinks.
    assert_eq!(link(&user, &tree.join("tasks"), &new), Err(EPERM));
    assert_eq!(user.unlink(&tree.join("tasks")), Err(EACCES));
    assert_eq!(user.unlink(&new), Err(ENOENT));
}

fn names_that_are_taken(tree: &Path) {
    let a = Actor::new();
    a.mkdir(&tree.join("g"), 0o755).expect("mkdir");
    for name in ["tasks", "g", "cpuset.effective_cpus"] {
        let old = tree.join(name);
        assert_eq!(a.open(&old, libc::O_CREAT | libc::O_EXCL | libc::O_RDWR), Err(EEXIST), "{name}");
        assert_eq!(mknod(&a, &old, libc::S_IFREG), Err(EEXIST), "{name}");
        assert_eq!(mknod(&a, &old, libc::S_IFIFO), Err(EEXIST), "{name}");
        assert_eq!(symlink(&a, &old), Err(EEXIST), "{name}");
        assert_eq!(link(&a, &tree.join("notify_on_release"), &old), Err(EEXIST), "{name}");
    }
    assert_eq!(a.open(&tree.join("g"), libc::O_CREAT | libc::O_RDWR), Err(EISDIR));
    assert_eq!(a.open(&tree.join("nothing/x"), libc::O_CREAT | libc::O_RDWR), Err(ENOENT));
    assert_eq!(a.open(&tree.join("tasks/x"), libc::O_CREAT | libc::O_RDWR), Err(ENOTDIR));
    assert_eq!(link(&a, &tree.join("nothing"), &tree.join("new")), Err(ENOENT));
    assert_eq!(mknod(&a, &tree.join("new"), libc::S_IFDIR), Err(EPERM));
    assert_eq!(mknod(&a, &tree.join("new"), libc::S_IFLNK), Err(EINVAL));
    a.rmdir(&tree.join("g")).expect("rmdir");
}

fn across_file_systems(tree: &Path) {
    let a = Actor::new();
    let temp = TempDir::new();
    let file = temp.path().join("file");
    std::fs::write(&file, "").expect("a file");
    assert_eq!(link(&a, &file, &tree.join("new")), Err(EXDEV));
    assert_eq!(link(&a, &tree.join("tasks"), &temp.path().join("new")), Err(EXDEV));
    assert_eq!(a.rename(&file, &tree.join("tasks"), 0), Err(EXDEV));
    assert_eq!(a.rename(&tree.join("tasks"), &temp.path().join("new"), 0), Err(EXDEV));
}

fn unlink(tree: &Path) {
    let a = Actor::new();
    a.mkdir(&tree.join("g"), 0o755).expect("mkdir");
    for (name, errno) in [
        ("tasks", EPERM),
        ("cpuset.cpus", EPERM),
        ("cpuset.effective_cpus", EPERM),
        ("g", EISDIR),
        ("g/", EISDIR),
        (".", EISDIR),
        ("nothing", ENOENT),
        ("tasks/", ENOTDIR),
        ("g/tasks", EPERM),
    ] {
        assert_eq!(a.unlink(&at(tree, name)), Err(errno), "{name}");
    }
    assert!(tree.join("g/tasks").exists());
    a.rmdir(&tree.join("g")).expect("rmdir");
}

fn unnamed_files_and_links(tree: &Path) {
    let a = Actor::new();
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDWR | libc::O_EXCL] {
        assert_eq!(a.open(tree, libc::O_TMPFILE | flags), Err(EOPNOTSUPP), "{flags:o}");
    }
    for name in ["tasks", ""] {
        let path = tree.join(name);
        let args = [libc::AT_FDCWD.into(), (&path).into(), Arg::Out(100), 100.into()];
        assert_eq!(a.call(libc::SYS_readlinkat, args), Err(EINVAL), "{name}");
    }
}

fn map(a: &Actor, fd: i64, prot: i32, flags: i32) -> Outcome {
    a.call(libc::SYS_mmap, [Arg::Null, 4096.into(), prot.into(), flags.into(), fd.into(), 0.into()])
}

fn shared_maps(tree: &Path) {
    let a = Actor::new();
    let fd = a.open(&tree.join("cpuset.cpus"), libc::O_RDWR).expect("open");
    assert_eq!(map(&a, fd, libc::PROT_READ, libc::MAP_SHARED), Err(ENODEV));
    assert_eq!(map(&a, fd, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED), Err(ENODEV));
    a.close(fd).expect("close");
}

/// The kernel says ENODEV to a private map too. FUSE makes one; it is of no use (the size is 0,
/// so touching it is SIGBUS) and does no harm.
#[test]
fn differs_private_maps() {
    on_ours(|tree| {
        let a = Actor::new();
        let fd = a.open(&tree.join("cpuset.cpus"), libc::O_RDONLY).expect("open");
        assert!(map(&a, fd, libc::PROT_READ, libc::MAP_PRIVATE).is_ok());
        a.close(fd).expect("close");
        assert_eq!(a.text(&tree.join("cpuset.cpus")).as_deref(), Ok("0-1\n"));
    });
}

fn devices_and_locks(tree: &Path) {
    let a = Actor::new();
    let fd = a.open(&tree.join("cpuset.cpus"), libc::O_RDWR).expect("open");
    let tcgets = 0x5401;
    assert_eq!(a.call(libc::SYS_ioctl, [fd.into(), tcgets.into(), Arg::Out(64)]), Err(ENOTTY));
    assert_eq!(a.call(libc::SYS_ioctl, [fd.into(), 0x1234_5678.into(), Arg::Out(64)]), Err(ENOTTY));
    for how in [libc::LOCK_SH, libc::LOCK_EX, libc::LOCK_UN] {
        assert_eq!(a.call(libc::SYS_flock, [fd.into(), how.into()]), Ok(0));
    }
    // Always ready, for both.
    let mut poll = (fd as i32).to_ne_bytes().to_vec();
    poll.extend((libc::POLLIN | libc::POLLOUT).to_ne_bytes());
    poll.extend([0, 0]);
    let timeout = [0u8; 16];
    let args = [poll[..].into(), 1.into(), timeout[..].into(), Arg::Null, 8.into()];
    assert_eq!(a.call(libc::SYS_ppoll, args), Ok(1));
    a.close(fd).expect("close");
    let fd = a.open(tree, libc::O_RDONLY).expect("open");
    assert_eq!(a.call(libc::SYS_ioctl, [fd.into(), tcgets.into(), Arg::Out(64)]), Err(ENOTTY));
    a.close(fd).expect("close");
}

both! {
    new_names_by_root new_names_by_their_owner by_strangers names_that_are_taken across_file_systems unlink
    unnamed_files_and_links shared_maps devices_and_locks
}
