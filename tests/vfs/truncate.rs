//! truncate(2), ftruncate(2), fallocate(2), fsync(2): accepted or not, never with an effect.

use std::fs;
use std::path::Path;

use nix::errno::Errno::{EACCES, EBADF, EFBIG, EINVAL, EISDIR, ENOENT, EOPNOTSUPP};

use super::actor::{Actor, Outcome};
use super::trees::both;

fn truncate(a: &Actor, path: &Path, len: i64) -> Outcome {
    a.call(libc::SYS_truncate, [path.into(), len.into()])
}

fn ftruncate(a: &Actor, fd: i64, len: i64) -> Outcome {
    a.call(libc::SYS_ftruncate, [fd.into(), len.into()])
}

fn lengths(tree: &Path) {
    let a = Actor::new();
    for name in ["cpuset.cpus", "tasks", "notify_on_release", "cpuset.effective_cpus"] {
        let file = tree.join(name);
        let before = a.text(&file);
        let fd = a.open(&file, libc::O_RDWR).expect("open");
        for len in [0, 1, 4096, i64::from(i32::MAX)] {
            assert_eq!(truncate(&a, &file, len), Ok(0), "{name} to {len}");
            assert_eq!(ftruncate(&a, fd, len), Ok(0), "{name} to {len}");
            assert_eq!(fs::metadata(&file).expect("stat").len(), 0, "{name} to {len}");
            assert_eq!(a.text(&file), before, "{name} to {len}");
        }
        for len in [1 << 31, 1 << 32, 1 << 40, i64::MAX] {
            assert_eq!(truncate(&a, &file, len), Err(EFBIG), "{name} to {len}");
            assert_eq!(ftruncate(&a, fd, len), Err(EFBIG), "{name} to {len}");
        }
        for len in [-1, i64::MIN] {
            assert_eq!(truncate(&a, &file, len), Err(EINVAL), "{name} to {len}");
            assert_eq!(ftruncate(&a, fd, len), Err(EINVAL), "{name} to {len}");
        }
        a.close(fd).expect("close");
    }
}

fn wrong_targets(tree: &Path) {
    let a = Actor::new();
    assert_eq!(truncate(&a, tree, 0), Err(EISDIR));
    assert_eq!(truncate(&a, &tree.join("nothing"), 0), Err(ENOENT));
    let fd = a.open(&tree.join("tasks"), libc::O_RDONLY).expect("open");
    assert_eq!(ftruncate(&a, fd, 0), Err(EINVAL));
    a.close(fd).expect("close");
    let fd = a.open(tree, libc::O_RDONLY).expect("open");
    assert_eq!(ftruncate(&a, fd, 0), Err(EINVAL));
    a.close(fd).expect("close");
}

fn needs_write_permission(tree: &Path) {
    let (a, user) = (Actor::new(), Actor::user(65534));
    let file = tree.join("notify_on_release");
    assert_eq!(truncate(&user, &file, 0), Err(EACCES));
    a.chmod(&file, 0o666).expect("chmod");
    assert_eq!(truncate(&user, &file, 0), Ok(0));
    assert_eq!(truncate(&user, &tree.join("cpuset.effective_cpus"), 0), Err(EACCES));
}

fn nothing_to_allocate(tree: &Path) {
    let a = Actor::new();
    let file = tree.join("cpuset.cpus");
    let before = a.text(&file);
    let fd = a.open(&file, libc::O_RDWR).expect("open");
    let allocate = |mode: i32| a.call(libc::SYS_fallocate, [fd.into(), mode.into(), 0.into(), 10.into()]);
    for mode in [0, libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE] {
        assert_eq!(allocate(mode), Err(EOPNOTSUPP), "mode {mode}");
    }
    assert_eq!(a.text(&file), before);
    a.close(fd).expect("close");
    let fd = a.open(&file, libc::O_RDONLY).expect("open");
    assert_eq!(a.call(libc::SYS_fallocate, [fd.into(), 0.into(), 0.into(), 10.into()]), Err(EBADF));
    a.close(fd).expect("close");
}

fn nothing_to_sync(tree: &Path) {
    let a = Actor::new();
    let fd = a.open(&tree.join("tasks"), libc::O_RDWR).expect("open");
    for nr in [libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_syncfs] {
        assert_eq!(a.call(nr, [fd.into()]), Ok(0), "call {nr}");
    }
    a.close(fd).expect("close");
    let fd = a.open(tree, libc::O_RDONLY).expect("open");
    assert_eq!(a.call(libc::SYS_syncfs, [fd.into()]), Ok(0));
    // A group cannot be synchronised.
    assert_eq!(a.call(libc::SYS_fsync, [fd.into()]), Err(EINVAL));
    assert_eq!(a.call(libc::SYS_fdatasync, [fd.into()]), Err(EINVAL));
    a.close(fd).expect("close");
}

both! { lengths wrong_targets needs_write_permission nothing_to_allocate nothing_to_sync }
