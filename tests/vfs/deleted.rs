//! Groups that have been removed while somebody holds them or their files open.

use std::path::{Path, PathBuf};

use nix::errno::Errno::{E2BIG, ENODEV, ENOENT};

use super::actor::{Actor, Arg, Outcome};
use super::trees::{both, configured, on_ours};

fn openat(a: &Actor, dir: i64, name: &str, flags: i32) -> Outcome {
    a.call(libc::SYS_openat, [dir.into(), name.into(), flags.into(), 0.into()])
}

/// An open descriptor of each file of a group that is then removed.
fn orphans(a: &Actor, tree: &Path) -> Vec<(String, i64)> {
    let g = tree.join("gone");
    configured(&g);
    let names = std::fs::read_dir(&g).expect("readdir").map(|e| e.expect("entry").file_name());
    let names: Vec<_> = names.map(|name| name.into_string().expect("a plain name")).collect();
    let open = |name: String| {
        let fd = a.open(&g.join(&name), libc::O_RDWR).expect("open");
        (name, fd)
    };
    let fds: Vec<_> = names.into_iter().map(open).collect();
    assert_eq!(a.rmdir(&g), Ok(0));
    assert_eq!(fds.len(), 17);
    fds
}

fn reading_and_writing(tree: &Path) {
    let a = Actor::new();
    let fds = orphans(&a, tree);
    for again in [false, true] {
        for (name, fd) in &fds {
            assert_eq!(a.read(*fd, 100), Err(ENODEV), "{name}");
            assert_eq!(a.write(*fd, "0"), Err(ENODEV), "{name}");
            assert_eq!(a.write(*fd, "garbage"), Err(ENODEV), "{name}");
            assert_eq!(a.write(*fd, vec![b' '; super::write::limit(name) + 1]), Err(E2BIG), "{name}");
        }
        // A new group of that name is another one.
        if again {
            assert_eq!(a.text(&tree.join("gone/cpuset.cpus")).as_deref(), Ok("\n"));
            assert_eq!(a.rmdir(&tree.join("gone")), Ok(0));
        } else {
            assert_eq!(a.mkdir(&tree.join("gone"), 0o755), Ok(0));
        }
    }
}

/// FUSE answers these two in the kernel, without asking us: an empty write is nothing, and
/// seeking needs no group. Linux says ENODEV to both.
#[test]
fn differs_empty_writes_and_seeking() {
    on_ours(|tree| {
        let a = Actor::new();
        for (name, fd) in orphans(&a, tree) {
            assert_eq!(a.write(fd, ""), Ok(0), "{name}");
            assert_eq!(a.lseek(fd, 3, libc::SEEK_SET), Ok(3), "{name}");
        }
    });
}

fn attributes(tree: &Path) {
    let a = Actor::new();
    for (name, fd) in orphans(&a, tree) {
        let stat = PathBuf::from(format!("/proc/{}/fd/{fd}", a.id));
        let meta = std::fs::metadata(stat).expect("stat");
        assert_eq!(std::os::unix::fs::MetadataExt::nlink(&meta), 1, "{name}");
        assert_eq!(a.call(libc::SYS_fchmod, [fd.into(), 0o600.into()]), Ok(0), "{name}");
        assert_eq!(a.close(fd), Ok(0), "{name}");
    }
}

fn the_rest_of_a_rendering(tree: &Path) {
    let a = Actor::new();
    let g = tree.join("gone");
    configured(&g);
    let fd = a.open(&g.join("cpuset.cpus"), libc::O_RDONLY).expect("open");
    assert_eq!(a.read(fd, 1).as_deref(), Ok(&b"0"[..]));
    assert_eq!(a.rmdir(&g), Ok(0));
    // What was rendered before may still be read, but nothing anew.
    assert_eq!(a.read(fd, 100).as_deref(), Ok(&b"-1\n"[..]));
    assert_eq!(a.read(fd, 100), Err(ENODEV));
    assert_eq!(a.call_sized(libc::SYS_pread64, [fd.into(), Arg::Out(9), 9.into(), 0.into()]), Err(ENODEV));
}

fn opening_again(tree: &Path) {
    let a = Actor::new();
    let (name, fd) = orphans(&a, tree).swap_remove(0);
    let again = PathBuf::from(format!("/proc/{}/fd/{fd}", a.id));
    assert_eq!(a.open(&again, libc::O_RDONLY), Err(ENODEV), "{name}");
}

fn directories(tree: &Path) {
    let a = Actor::new();
    let g = tree.join("gone");
    a.mkdir(&g, 0o755).expect("mkdir");
    let dir = a.open(&g, libc::O_RDONLY | libc::O_DIRECTORY).expect("open");
    a.call(libc::SYS_chdir, [(&g).into()]).expect("chdir");
    assert_eq!(a.rmdir(&g), Ok(0));
    for again in [false, true] {
        assert_eq!(openat(&a, dir, "tasks", libc::O_RDONLY), Err(ENOENT));
        assert_eq!(openat(&a, dir, "tasks", libc::O_RDONLY | libc::O_CREAT), Err(ENOENT));
        assert_eq!(a.call(libc::SYS_mkdirat, [dir.into(), "x".into(), 0o755.into()]), Err(ENOENT));
        assert_eq!(a.mkdir(Path::new("x"), 0o755), Err(ENOENT));
        assert_eq!(a.open(Path::new("tasks"), libc::O_RDONLY), Err(ENOENT));
        assert_eq!(a.call(libc::SYS_getcwd, [Arg::Out(4096), 4096.into()]), Err(ENOENT));
        assert_eq!(a.call(libc::SYS_getdents64, [dir.into(), Arg::Out(4096), 4096.into()]), Err(ENOENT));
        // `..` still leads out.
        assert!(openat(&a, dir, "../tasks", libc::O_RDONLY).and_then(|fd| a.close(fd)).is_ok());
        if again {
            assert_eq!(a.rmdir(&g), Ok(0));
        } else {
            assert_eq!(a.mkdir(&g, 0o755), Ok(0));
        }
    }
    a.call(libc::SYS_chdir, [Path::new("/").into()]).expect("chdir");
}

/// Descriptors of removed groups cost nothing that a new group would miss.
fn many_generations(tree: &Path) {
    let a = Actor::new();
    let g = tree.join("gone");
    let mut fds = Vec::new();
    for generation in 0..100 {
        configured(&g);
        let fd = a.open(&g.join("cpuset.cpus"), libc::O_RDWR).expect("open");
        assert_eq!(a.write(fd, if generation % 2 == 0 { "0" } else { "1" }), Ok(1));
        assert_eq!(a.rmdir(&g), Ok(0));
        fds.push(fd);
    }
    configured(&g);
    for fd in fds {
        assert_eq!(a.write(fd, "0"), Err(ENODEV));
        assert_eq!(a.close(fd), Ok(0));
    }
    assert_eq!(a.text(&g.join("cpuset.cpus")), a.text(&tree.join("cpuset.cpus")));
    assert_eq!(a.rmdir(&g), Ok(0));
}

both! { reading_and_writing attributes the_rest_of_a_rendering opening_again directories many_generations }
