//! open(2): every flag.

use std::path::Path;

use nix::errno::Errno::{EACCES, EBADF, EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, EOPNOTSUPP, EPERM};

use super::actor::{Actor, Outcome};
use super::stat::READ_ONLY;
use super::trees::both;

const NOBODY: u32 = 65534;

/// open and close.
fn opened(a: &Actor, path: &Path, flags: i32) -> Outcome {
    a.open(path, flags).and_then(|fd| a.close(fd))
}

fn harmless_flags(tree: &Path) {
    let a = Actor::new();
    for flags in [
        0,
        libc::O_APPEND,
        libc::O_NONBLOCK,
        libc::O_SYNC,
        libc::O_DSYNC,
        libc::O_CLOEXEC,
        libc::O_TRUNC,
        libc::O_NOCTTY,
        libc::O_NOFOLLOW,
        libc::O_NOATIME,
        libc::O_CREAT,
        libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND,
    ] {
        for access in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR] {
            for name in ["tasks", "cpuset.cpus", "cpuset.effective_cpus", "cpuset.memory_pressure"] {
                assert_eq!(opened(&a, &tree.join(name), access | flags), Ok(0), "{name} {access:o} {flags:o}");
            }
        }
    }
}

fn flags_that_fail(tree: &Path) {
    let a = Actor::new();
    let file = tree.join("notify_on_release");
    assert_eq!(opened(&a, &file, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL), Err(EEXIST));
    assert_eq!(opened(&a, &file, libc::O_RDONLY | libc::O_DIRECTORY), Err(ENOTDIR));
    assert_eq!(opened(&a, &file, libc::O_RDONLY | libc::O_DIRECT), Err(EINVAL));
    assert_eq!(opened(&a, &file, libc::O_RDWR | libc::O_DIRECT), Err(EINVAL));
    assert_eq!(opened(&a, &tree.join("nothing"), libc::O_WRONLY), Err(ENOENT));
    assert_eq!(opened(&a, &file.join("x"), libc::O_RDONLY), Err(ENOTDIR));
    assert_eq!(opened(&a, &file.join(""), libc::O_RDONLY), Err(ENOTDIR));
}

fn groups(tree: &Path) {
    let a = Actor::new();
    assert_eq!(opened(&a, tree, libc::O_RDONLY), Ok(0));
    assert_eq!(opened(&a, tree, libc::O_RDONLY | libc::O_DIRECTORY), Ok(0));
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC, libc::O_RDONLY | libc::O_CREAT] {
        assert_eq!(opened(&a, tree, flags), Err(EISDIR), "{flags:o}");
    }
    assert_eq!(opened(&a, tree, libc::O_RDONLY | libc::O_CREAT | libc::O_DIRECTORY), Err(EINVAL));
    assert_eq!(opened(&a, tree, libc::O_TMPFILE | libc::O_RDWR), Err(EOPNOTSUPP));
    let fd = a.open(tree, libc::O_RDONLY).expect("open");
    assert_eq!(a.write(fd, "0"), Err(EBADF));
    a.close(fd).expect("close");
}

fn access_modes_are_kept(tree: &Path) {
    let a = Actor::new();
    let file = tree.join("notify_on_release");
    let fd = a.open(&file, libc::O_WRONLY).expect("open");
    assert_eq!(a.read(fd, 10), Err(EBADF));
    a.close(fd).expect("close");
    let fd = a.open(&file, libc::O_RDONLY).expect("open");
    assert_eq!(a.write(fd, "1"), Err(EBADF));
    a.close(fd).expect("close");
    let fd = a.open(&file, libc::O_PATH).expect("open");
    assert_eq!(a.read(fd, 10), Err(EBADF));
    assert_eq!(a.write(fd, "1"), Err(EBADF));
    a.close(fd).expect("close");
    assert_eq!(a.text(&file).as_deref(), Ok("0\n"));
}

fn truncating_changes_nothing(tree: &Path) {
    let a = Actor::new();
    let file = tree.join("cpuset.cpus");
    let before = a.text(&file);
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY] {
        assert_eq!(opened(&a, &file, flags | libc::O_TRUNC), Ok(0));
        assert_eq!(opened(&a, &file, flags | libc::O_TRUNC | libc::O_CREAT), Ok(0));
        assert_eq!(a.text(&file), before);
    }
    assert_eq!(opened(&a, &tree.join("cpuset.effective_cpus"), libc::O_WRONLY | libc::O_TRUNC), Ok(0));
    assert_eq!(a.text(&tree.join("cpuset.effective_cpus")), before);
}

fn another_user(tree: &Path) {
    let (a, user) = (Actor::new(), Actor::user(NOBODY));
    for name in ["tasks", "cpuset.cpus", "cpuset.effective_cpus"] {
        let file = tree.join(name);
        assert_eq!(opened(&user, &file, libc::O_RDONLY), Ok(0), "{name}");
        for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC, libc::O_WRONLY | libc::O_TRUNC] {
            assert_eq!(opened(&user, &file, flags), Err(EACCES), "{name} {flags:o}");
        }
        assert_eq!(opened(&user, &file, libc::O_RDONLY | libc::O_CREAT), Ok(0), "{name}");
        assert_eq!(opened(&user, &file, libc::O_RDONLY | libc::O_NOATIME), Err(EPERM), "{name}");
    }
    let file = tree.join("notify_on_release");
    a.chmod(&file, 0o622).expect("chmod");
    assert_eq!(opened(&user, &file, libc::O_RDONLY), Err(EACCES));
    assert_eq!(opened(&user, &file, libc::O_RDWR), Err(EACCES));
    assert_eq!(user.put(&file, "1"), Ok(1));
    assert_eq!(a.text(&file).as_deref(), Ok("1\n"));
    // Root needs no permission.
    a.chmod(&file, 0).expect("chmod");
    assert_eq!(a.put(&file, "0"), Ok(1));
    assert_eq!(a.text(&file).as_deref(), Ok("0\n"));
    assert_eq!(opened(&user, &file, libc::O_RDONLY), Err(EACCES));
    assert_eq!(opened(&user, &file, libc::O_WRONLY), Err(EACCES));
}

/// Permission bits count at open only.
fn permission_is_of_the_open(tree: &Path) {
    let (a, user) = (Actor::new(), Actor::user(NOBODY));
    let file = tree.join("notify_on_release");
    a.chmod(&file, 0o666).expect("chmod");
    let fd = user.open(&file, libc::O_RDWR).expect("open");
    a.chmod(&file, 0o600).expect("chmod");
    assert_eq!(user.write(fd, "1"), Ok(1));
    assert_eq!(user.lseek(fd, 0, libc::SEEK_SET), Ok(0));
    assert_eq!(user.read(fd, 10).as_deref(), Ok(&b"1\n"[..]));
    assert_eq!(opened(&user, &file, libc::O_RDONLY), Err(EACCES));
    user.close(fd).expect("close");
}

/// Root opens read-only files for writing; the write then says EINVAL.
fn read_only_files_for_writing(tree: &Path) {
    let a = Actor::new();
    for name in READ_ONLY.iter().filter(|name| tree.join(name).exists()) {
        let fd = a.open(&tree.join(name), libc::O_RDWR).expect("open");
        assert_eq!(a.write(fd, "1"), Err(EINVAL), "{name}");
        assert_eq!(a.write(fd, ""), Ok(0), "{name}");
        assert!(!a.read(fd, 100).expect("read").is_empty(), "{name}");
        a.close(fd).expect("close");
    }
}

fn again_through_proc(tree: &Path) {
    let a = Actor::new();
    let file = tree.join("notify_on_release");
    let fd = a.open(&file, libc::O_RDONLY).expect("open");
    let again = Path::new("/proc").join(a.id.to_string()).join("fd").join(fd.to_string());
    assert_eq!(a.put(&again, "1"), Ok(1));
    assert_eq!(a.text(&file).as_deref(), Ok("1\n"));
    assert_eq!(a.put(&again, "0"), Ok(1));
    a.close(fd).expect("close");
}

fn a_thousand_descriptors(tree: &Path) {
    let a = Actor::new();
    let file = tree.join("notify_on_release");
    let fds: Vec<_> = (0..1000).map(|_| a.open(&file, libc::O_RDWR).expect("open")).collect();
    for (i, fd) in fds.iter().enumerate() {
        assert_eq!(a.write(*fd, if i % 2 == 0 { "1" } else { "0" }), Ok(1));
    }
    for fd in &fds {
        assert_eq!(a.lseek(*fd, 0, libc::SEEK_SET), Ok(0));
        assert_eq!(a.read(*fd, 10).as_deref(), Ok(&b"0\n"[..]));
    }
    for fd in fds {
        a.close(fd).expect("close");
    }
}

both! {
    harmless_flags flags_that_fail groups access_modes_are_kept truncating_changes_nothing another_user
    permission_is_of_the_open read_only_files_for_writing again_through_proc a_thousand_descriptors
}
