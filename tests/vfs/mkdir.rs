//! mkdir(2): names, modes, owners, what a new group holds.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno::{EACCES, EEXIST, EINVAL, ENAMETOOLONG, ENOENT, ENOTDIR};

use super::actor::{Actor, at};
use super::trees::{both, both_roots, on_ours};

const NOBODY: u32 = 65534;

fn stat(path: &Path) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(path).expect("stat");
    (meta.mode() & 0o7777, meta.uid(), meta.gid())
}

fn modes_and_umask(tree: &Path) {
    let a = Actor::new();
    let g = tree.join("g");
    for (umask, mode, result) in [
        (0o022, 0o777, 0o755),
        (0, 0o777, 0o777),
        (0, 0, 0),
        (0o077, 0o755, 0o700),
        (0o777, 0o777, 0),
        (0, 0o1777, 0o1777),
        (0o022, 0o1777, 0o1755),
        (0, 0o6777, 0o777),
        (0, 0o7777, 0o1777),
        (0, 0o40755, 0o755),
        (0, 0o111, 0o111),
    ] {
        a.call(libc::SYS_umask, [umask.into()]).expect("umask");
        assert_eq!(a.mkdir(&g, mode), Ok(0));
        assert_eq!(stat(&g), (result, 0, 0), "umask {umask:o}, mode {mode:o}");
        assert_eq!(stat(&g.join("tasks")), (0o644, 0, 0), "umask {umask:o}, mode {mode:o}");
        assert_eq!(stat(&g.join("cpuset.memory_pressure")), (0o444, 0, 0), "umask {umask:o}, mode {mode:o}");
        a.rmdir(&g).expect("rmdir");
    }
}

fn belongs_to_its_maker(tree: &Path) {
    let (a, user) = (Actor::new(), Actor::user(NOBODY));
    a.chmod(tree, 0o777).expect("chmod");
    let g = tree.join("g");
    assert_eq!(user.mkdir(&g, 0o750), Ok(0));
    assert_eq!(stat(&g), (0o750, NOBODY, NOBODY));
    for entry in fs::read_dir(&g).expect("readdir").map(|e| e.expect("entry")) {
        let meta = entry.metadata().expect("stat");
        assert_eq!((meta.uid(), meta.gid()), (NOBODY, NOBODY), "{:?}", entry.file_name());
    }
    // Who makes one in it does so for himself; the owner may remove it nevertheless.
    a.mkdir(&g.join("roots"), 0o755).expect("mkdir");
    assert_eq!(stat(&g.join("roots")), (0o755, 0, 0));
    assert_eq!(user.rmdir(&g.join("roots")), Ok(0));
    assert_eq!(user.rmdir(&g), Ok(0));
    // fsuid and fsgid are what counts.
    let odd = Actor::new();
    odd.call(libc::SYS_setfsgid, [12.into()]).expect("setfsgid");
    odd.call(libc::SYS_setfsuid, [11.into()]).expect("setfsuid");
    assert_eq!(odd.mkdir(&g, 0o755), Ok(0));
    assert_eq!((stat(&g), stat(&g.join("tasks"))), ((0o755, 11, 12), (0o644, 11, 12)));
    a.rmdir(&g).expect("rmdir");
}

fn needs_write_and_search(tree: &Path) {
    let (a, user) = (Actor::new(), Actor::user(NOBODY));
    let g = tree.join("g");
    a.mkdir(&g, 0o755).expect("mkdir");
    assert_eq!(user.mkdir(&g.join("x"), 0o755), Err(EACCES));
    for mode in [0o722, 0o711, 0o744, 0o766] {
        a.chmod(&g, mode).expect("chmod");
        assert_eq!(user.mkdir(&g.join("x"), 0o755), Err(EACCES), "{mode:o}");
    }
    // What exists is found first, as everywhere.
    a.chmod(&g, 0o755).expect("chmod");
    assert_eq!(user.mkdir(&g.join("tasks"), 0o755), Err(EEXIST));
    a.chmod(&g, 0o733).expect("chmod");
    assert_eq!(user.mkdir(&g.join("x"), 0o755), Ok(0));
    a.rmdir(&g.join("x")).expect("rmdir");
    a.rmdir(&g).expect("rmdir");
}

fn names_that_are_taken(tree: &Path) {
    let a = Actor::new();
    a.mkdir(&tree.join("g"), 0o755).expect("mkdir");
    for (name, errno) in [
        ("g", EEXIST),
        ("g/", EEXIST),
        ("tasks", EEXIST),
        ("cpuset.cpus", EEXIST),
        (".", EEXIST),
        ("..", EEXIST),
        ("g/.", EEXIST),
        ("g/..", EEXIST),
        ("", EEXIST),
        ("nothing/x", ENOENT),
        ("nothing/.", ENOENT),
        ("tasks/x", ENOTDIR),
        ("tasks/", EEXIST),
    ] {
        assert_eq!(a.mkdir(&at(tree, name), 0o755), Err(errno), "{name:?}");
    }
    assert_eq!(a.mkdir(&tree.join("slash/"), 0o755), Ok(0));
    a.rmdir(&tree.join("slash")).expect("rmdir");
    a.rmdir(&tree.join("g")).expect("rmdir");
}

fn newlines(tree: &Path) {
    let a = Actor::new();
    for name in [&b"\n"[..], b"a\n", b"\na", b"a\nb", b"\xff\n", b" \n "] {
        assert_eq!(a.mkdir(&at(tree, name), 0o755), Err(EINVAL), "{name:?}");
    }
    // Other controls are nothing special.
    for name in [&b"\r"[..], b"a\tb", b"\x7f", b"\x1b[31m", b"\x0b"] {
        assert_eq!(a.mkdir(&at(tree, name), 0o755), Ok(0), "{name:?}");
        assert_eq!(a.rmdir(&at(tree, name)), Ok(0), "{name:?}");
    }
}

fn long_names(tree: &Path) {
    let a = Actor::new();
    for len in [255, 256, 300, 1000, 1024] {
        let dir = at(tree, vec![b'n'; len]);
        assert_eq!(a.mkdir(&dir, 0o755), Ok(0), "{len} bytes");
        assert_eq!(a.text(&dir.join("tasks")).as_deref(), Ok(""), "{len} bytes");
        let listed = fs::read_dir(tree).expect("readdir").any(|e| e.expect("entry").path() == dir);
        assert!(listed, "{len} bytes");
        assert_eq!(a.rmdir(&dir), Ok(0), "{len} bytes");
    }
    assert_eq!(a.mkdir(&at(tree, vec![b'n'; 4096]), 0o755), Err(ENAMETOOLONG));
}

/// The kernel takes every name that fits into a path; FUSE ends at 1,024 bytes, or so.
#[test]
fn differs_names_beyond_1024_bytes() {
    on_ours(|tree| {
        let a = Actor::new();
        for len in [1025, 3900] {
            let dir = at(tree, vec![b'n'; len]);
            match a.mkdir(&dir, 0o755) {
                Ok(_) => assert_eq!(a.rmdir(&dir), Ok(0), "{len} bytes"),
                Err(errno) => assert_eq!(errno, ENAMETOOLONG, "{len} bytes"),
            }
            assert!(a.text(&dir.join("tasks")).is_err());
        }
        assert_eq!(a.text(&tree.join("tasks")).as_deref(), Ok(""));
    });
}

fn deep(tree: &Path) {
    let a = Actor::new();
    let mut dirs: Vec<PathBuf> = vec![tree.join("0")];
    (1..200).for_each(|depth: i32| dirs.push(dirs[dirs.len() - 1].join(depth.to_string())));
    for dir in &dirs {
        assert_eq!(a.mkdir(dir, 0o755), Ok(0));
    }
    let deepest = &dirs[dirs.len() - 1];
    assert_eq!(a.put(&deepest.join("notify_on_release"), "1"), Ok(1));
    assert_eq!(a.text(&deepest.join("notify_on_release")).as_deref(), Ok("1\n"));
    for dir in dirs.iter().rev() {
        assert_eq!(a.rmdir(dir), Ok(0));
    }
}

fn what_a_new_group_holds(tree: &Path) {
    let a = Actor::new();
    let (p, g) = (tree.join("p"), tree.join("p/g"));
    a.mkdir(&p, 0o755).expect("mkdir");
    let holds = |expected: &[(&str, &str)]| {
        assert_eq!(a.mkdir(&g, 0o755), Ok(0));
        for (name, value) in expected {
            assert_eq!(a.text(&g.join(name)).as_deref(), Ok(&*format!("{value}\n")), "{name}");
        }
        assert_eq!(a.rmdir(&g), Ok(0));
    };
    holds(&[
        ("cpuset.cpus", ""),
        ("cpuset.mems", ""),
        ("cpuset.effective_cpus", ""),
        ("cpuset.effective_mems", ""),
        ("cpuset.cpu_exclusive", "0"),
        ("cpuset.mem_exclusive", "0"),
        ("cpuset.mem_hardwall", "0"),
        ("cpuset.memory_migrate", "0"),
        ("cpuset.memory_spread_page", "0"),
        ("cpuset.memory_spread_slab", "0"),
        ("cpuset.sched_load_balance", "1"),
        ("cpuset.sched_relax_domain_level", "-1"),
        ("cpuset.memory_pressure", "0"),
        ("notify_on_release", "0"),
        ("cgroup.clone_children", "0"),
    ]);
    // Some of it comes from the parent.
    for (name, value) in [
        ("cpuset.cpus", "1"),
        ("cpuset.mems", "0"),
        ("cpuset.mem_hardwall", "1"),
        ("cpuset.memory_migrate", "1"),
        ("cpuset.memory_spread_page", "1"),
        ("cpuset.memory_spread_slab", "1"),
        ("cpuset.sched_load_balance", "0"),
        ("cpuset.sched_relax_domain_level", "0"),
        ("notify_on_release", "1"),
        ("cgroup.clone_children", "1"),
    ] {
        a.put(&p.join(name), value).expect(name);
    }
    holds(&[
        ("cpuset.cpus", "1"),
        ("cpuset.mems", "0"),
        ("cpuset.effective_cpus", "1"),
        ("cpuset.effective_mems", "0"),
        ("cpuset.mem_hardwall", "0"),
        ("cpuset.memory_migrate", "0"),
        ("cpuset.memory_spread_page", "1"),
        ("cpuset.memory_spread_slab", "1"),
        ("cpuset.sched_load_balance", "1"),
        ("cpuset.sched_relax_domain_level", "-1"),
        ("notify_on_release", "1"),
        ("cgroup.clone_children", "1"),
    ]);
    a.rmdir(&p).expect("rmdir");
}

fn many_groups(tree: &Path) {
    let a = Actor::new();
    let dir = |i: usize| tree.join(format!("g{i}"));
    for i in 0..1000 {
        assert_eq!(a.mkdir(&dir(i), 0o755), Ok(0));
    }
    assert_eq!(fs::metadata(tree).expect("stat").nlink(), 1002);
    for i in 0..1000 {
        assert_eq!(a.rmdir(&dir(i)), Ok(0));
    }
    assert_eq!(fs::metadata(tree).expect("stat").nlink(), 2);
}

/// The root's mode is 0555; root may nevertheless, others may not.
fn in_the_root(root: &Path) {
    let (a, user) = (Actor::new(), Actor::user(NOBODY));
    let g = root.join(format!("cgfuse-test-{}-mkdir", std::process::id()));
    assert_eq!(user.mkdir(&g, 0o755), Err(EACCES));
    assert_eq!(a.mkdir(&g, 0o755), Ok(0));
    assert_eq!(stat(&g), (0o755, 0, 0));
    assert_eq!(a.rmdir(&g), Ok(0));
}

both! {
    modes_and_umask belongs_to_its_maker needs_write_and_search names_that_are_taken newlines long_names deep
    what_a_new_group_holds many_groups
}
both_roots! { in_the_root }
