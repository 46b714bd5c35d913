//! Attributes: modes, sizes, link counts, owners, times.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::actor::Actor;
use super::trees::{both, both_roots, on_ours};

/// Files that nobody can write; all others are 0644.
pub(crate) const READ_ONLY: [&str; 5] =
    ["cpuset.effective_cpus", "cpuset.effective_mems", "cpuset.memory_pressure", "cgroup.sane_behavior", "cgfuse.stat"];

fn stat(path: &Path) -> Metadata {
    fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn files_of(dir: &Path) -> Vec<(String, Metadata)> {
    let entries = fs::read_dir(dir).expect("readdir").map(|e| e.expect("entry"));
    let names = entries.map(|e| e.file_name().into_string().expect("a plain name"));
    // Groups of other tests may go meanwhile.
    let stats = names.filter_map(|name| Some((name.clone(), fs::symlink_metadata(dir.join(&name)).ok()?)));
    stats.filter(|(_, meta)| !meta.is_dir()).collect()
}

fn files_are_empty_regular_files(tree: &Path) {
    let files = files_of(tree);
    assert!(!files.is_empty());
    for (name, meta) in files {
        let type_ = meta.file_type();
        assert!(type_.is_file() && !type_.is_fifo(), "{name}");
        let mode = if READ_ONLY.contains(&&*name) { 0o100_444 } else { 0o100_644 };
        assert_eq!(meta.mode(), mode, "{name}");
        assert_eq!((meta.nlink(), meta.size(), meta.blocks(), meta.blksize()), (1, 0, 0, 4096), "{name}");
        assert_eq!((meta.uid(), meta.gid()), (0, 0), "{name}");
        assert_eq!(meta.dev(), stat(tree).dev(), "{name}");
    }
}

fn the_root_directory(root: &Path) {
    let meta = stat(root);
    assert_eq!(meta.mode(), 0o040_555);
    assert_eq!((meta.size(), meta.blocks(), meta.blksize()), (0, 0, 4096));
    assert_eq!((meta.uid(), meta.gid()), (0, 0));
}

fn size_stays_zero(tree: &Path) {
    let a = Actor::new();
    let file = tree.join("notify_on_release");
    for flags in [libc::O_WRONLY, libc::O_WRONLY | libc::O_APPEND, libc::O_RDWR | libc::O_TRUNC] {
        let fd = a.open(&file, flags).expect("open");
        assert_eq!(a.write(fd, "1\n"), Ok(2));
        assert_eq!(a.lseek(fd, 0, libc::SEEK_END), Ok(0));
        assert_eq!((stat(&file).size(), stat(&file).blocks()), (0, 0));
        a.close(fd).expect("close");
    }
    assert_eq!(a.put(&file, "0"), Ok(1));
    assert_eq!(a.call(libc::SYS_truncate, [(&file).into(), 4096.into()]), Ok(0));
    assert_eq!(stat(&file).size(), 0);
    a.text(&file).expect("read");
    assert_eq!(stat(&file).size(), 0);
}

fn links_count_child_groups(tree: &Path) {
    let a = Actor::new();
    let g = |name: &str| tree.join(name);
    let links = |name: &str| stat(&tree.join(name)).nlink();
    assert_eq!(links(""), 2);
    for name in ["a", "b", "a/c", "a/d", "a/c/e"] {
        a.mkdir(&g(name), 0o755).expect("mkdir");
    }
    assert_eq!([links(""), links("a"), links("b"), links("a/c"), links("a/d")], [4, 4, 2, 3, 2]);
    assert_eq!([stat(tree).size(), stat(tree).blocks(), stat(tree).blksize()], [0, 0, 4096]);
    a.rename(&g("a/c"), &g("a/x"), 0).expect("rename");
    a.rename(&g("a"), &g("z"), 0).expect("rename");
    assert_eq!([links(""), links("z"), links("z/x")], [4, 4, 3]);
    a.rmdir(&g("z/x/e")).expect("rmdir");
    assert_eq!(links("z/x"), 2);
    for name in ["z/x", "z/d", "z", "b"] {
        a.rmdir(&g(name)).expect("rmdir");
    }
    assert_eq!(links(""), 2);
}

fn failures_leave_links_alone(tree: &Path) {
    let a = Actor::new();
    a.mkdir(&tree.join("a"), 0o755).expect("mkdir");
    assert!(a.mkdir(&tree.join("a"), 0o755).is_err());
    assert!(a.mkdir(&tree.join("b\nc"), 0o755).is_err());
    assert!(a.rmdir(&tree.join("tasks")).is_err());
    assert!(a.rename(&tree.join("a"), &tree.join("tasks"), 0).is_err());
    assert_eq!(stat(tree).nlink(), 3);
    a.rmdir(&tree.join("a")).expect("rmdir");
}

fn times(path: &Path) -> [i64; 6] {
    let m = stat(path);
    [m.atime(), m.atime_nsec(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()]
}

fn use_does_not_change_times(tree: &Path) {
    let a = Actor::new();
    for name in ["tasks", "cpuset.cpus", "notify_on_release", "cpuset.effective_cpus"] {
        let file = tree.join(name);
        let before = times(&file);
        assert_eq!(before[..2], before[2..4], "{name}: accessed and modified when created");
        a.text(&file).expect("read");
        if name == "notify_on_release" {
            assert_eq!(a.put(&file, "1"), Ok(1));
            assert_eq!(a.put(&file, "0"), Ok(1));
        }
        assert_eq!(times(&file), before, "{name}");
    }
}

/// The two timespecs of utimensat(2).
fn stamps(times: [i64; 4]) -> Vec<u8> {
    times.iter().flat_map(|n| n.to_ne_bytes()).collect()
}

fn set_times_stick(tree: &Path) {
    let a = Actor::new();
    let g = tree.join("g");
    a.mkdir(&g, 0o755).expect("mkdir");
    for path in [g.join("notify_on_release"), g.clone()] {
        let set = stamps([1000, 7, 2000, 9]);
        let args = [libc::AT_FDCWD.into(), (&path).into(), set[..].into(), 0.into()];
        assert_eq!(a.call(libc::SYS_utimensat, args), Ok(0));
        a.put(&g.join("notify_on_release"), "1").expect("write");
        a.text(&g.join("notify_on_release")).expect("read");
        assert_eq!(times(&path)[..4], [1000, 7, 2000, 9], "{}", path.display());
    }
    let moved = tree.join("moved");
    a.rename(&g, &moved, 0).expect("rename");
    assert_eq!(times(&moved.join("notify_on_release"))[..4], [1000, 7, 2000, 9]);
    a.rmdir(&moved).expect("rmdir");
}

fn fstat_is_stat(tree: &Path) {
    for name in ["", "tasks", "cpuset.cpus"] {
        let path = tree.join(name);
        let open = fs::File::open(&path).expect("open").metadata().expect("fstat");
        let meta = stat(&path);
        assert_eq!((open.ino(), open.mode(), open.nlink()), (meta.ino(), meta.mode(), meta.nlink()), "{name}");
    }
}

/// The kernel leaves a directory's mtime at its creation until the first chmod, chown or utime;
/// FUSE has no reason to copy that. It must not go back, nor be that of tomorrow.
#[test]
fn differs_mtime_of_a_directory() {
    on_ours(|tree| {
        let a = Actor::new();
        let mtime = || stat(tree).modified().expect("mtime");
        let before = mtime();
        a.mkdir(&tree.join("g"), 0o755).expect("mkdir");
        let between = mtime();
        a.rmdir(&tree.join("g")).expect("rmdir");
        assert!(before <= between && between <= mtime());
        assert!(mtime() <= std::time::SystemTime::now());
    });
}

both! {
    files_are_empty_regular_files size_stays_zero links_count_child_groups failures_leave_links_alone
    use_does_not_change_times set_times_stick fstat_is_stat
}
both_roots! { files_of_the_root the_root_directory }

fn files_of_the_root(root: &Path) {
    files_are_empty_regular_files(root);
}
