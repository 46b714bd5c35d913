//! Names: found, not found, not allowed to be looked for.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno::{EACCES, ELOOP, ENOENT, ENOTDIR};

use super::actor::{Actor, at};
use super::trees::{both, both_roots};

/// stat(2) by way of open(O_PATH), which does nothing but look up.
fn find(a: &Actor, path: &Path) -> super::actor::Outcome {
    let fd = a.open(path, libc::O_PATH)?;
    a.close(fd)
}

fn missing_names(tree: &Path) {
    let a = Actor::new();
    for name in [&b"nothing"[..], b"TASKS", b"tasks ", b"tasks\n", b"\xff\xfe", b" ", b"...", b"cpuset.cpu"] {
        assert_eq!(find(&a, &at(tree, name)), Err(ENOENT), "{name:?}");
    }
    for len in [255, 256, 1000] {
        assert_eq!(find(&a, &at(tree, vec![b'x'; len])), Err(ENOENT), "{len} bytes");
    }
    assert_eq!(find(&a, &tree.join("nothing/tasks")), Err(ENOENT));
    assert_eq!(find(&a, &at(tree, "")), Ok(0));
}

fn below_a_file(tree: &Path) {
    let a = Actor::new();
    for name in ["tasks/x", "tasks/", "tasks/.", "tasks/..", "tasks/../tasks"] {
        assert_eq!(find(&a, &at(tree, name)), Err(ENOTDIR), "{name}");
    }
}

fn dots_and_slashes(tree: &Path) {
    let a = Actor::new();
    a.mkdir(&tree.join("g"), 0o755).expect("mkdir");
    let ino = |name: &str| fs::metadata(at(tree, name)).expect(name).ino();
    for name in ["g/", "g/.", "./g", "g/../g", "g//", "g/./../g/"] {
        assert_eq!(ino(name), ino("g"), "{name}");
    }
    assert_eq!(ino("g/.."), ino(""));
    assert_eq!(a.open(&at(tree, "g"), libc::O_NOFOLLOW | libc::O_PATH).and_then(|fd| a.close(fd)), Ok(0));
    // No symbolic links here, so never this.
    assert_ne!(find(&a, &tree.join("g/tasks")), Err(ELOOP));
    a.rmdir(&tree.join("g")).expect("rmdir");
}

fn names_of_any_bytes(tree: &Path) {
    let a = Actor::new();
    let names = [
        &b" "[..],
        b"a b",
        b"\t",
        b"\x01",
        b"\xff\xfe",
        b"...",
        b".hidden",
        b"*",
        b"\\",
        b"cpuset.foo",
        b"cgroup.foo",
        b"release_agent",
        b"cgroup.sane_behavior",
        "\u{e9}\u{4e2d}".as_bytes(),
        b"-rf",
        b"%s%n",
    ];
    for name in names {
        let dir = at(tree, name);
        assert_eq!(a.mkdir(&dir, 0o755), Ok(0), "{name:?}");
        assert_eq!(find(&a, &dir.join("tasks")), Ok(0), "{name:?}");
    }
    let listed: HashSet<_> = fs::read_dir(tree).expect("readdir").map(|e| e.expect("entry").path()).collect();
    for name in names {
        let dir = at(tree, name);
        assert!(listed.contains(&dir), "{name:?}");
        assert_eq!(a.rmdir(&dir), Ok(0), "{name:?}");
        assert_eq!(find(&a, &dir), Err(ENOENT), "{name:?}");
    }
}

/// A name not found once must not stay so, nor one found.
fn a_name_comes_and_goes(tree: &Path) {
    let (a, b) = (Actor::new(), Actor::new());
    let (x, y) = (tree.join("x"), tree.join("y"));
    for _ in 0..20 {
        assert_eq!(find(&a, &x), Err(ENOENT));
        b.mkdir(&x, 0o755).expect("mkdir");
        assert_eq!(find(&a, &x.join("tasks")), Ok(0));
        assert_eq!(find(&a, &y), Err(ENOENT));
        b.rename(&x, &y, 0).expect("rename");
        assert_eq!(find(&a, &x), Err(ENOENT));
        assert_eq!(find(&a, &y.join("tasks")), Ok(0));
        b.rmdir(&y).expect("rmdir");
        assert_eq!(find(&a, &y.join("tasks")), Err(ENOENT));
        assert_eq!(find(&a, &y), Err(ENOENT));
    }
}

fn needs_search_permission(tree: &Path) {
    let (a, user) = (Actor::new(), Actor::user(65534));
    let g = tree.join("g");
    a.mkdir(&g, 0o700).expect("mkdir");
    assert_eq!(find(&user, &g), Ok(0));
    assert_eq!(find(&user, &g.join("tasks")), Err(EACCES));
    assert_eq!(find(&user, &g.join("nothing")), Err(EACCES));
    // Search alone is enough to use what one knows the name of.
    a.chmod(&g, 0o711).expect("chmod");
    assert_eq!(find(&user, &g.join("tasks")), Ok(0));
    assert_eq!(user.open(&g, libc::O_RDONLY), Err(EACCES));
    a.chmod(&g, 0o744).expect("chmod");
    assert_eq!(find(&user, &g.join("tasks")), Err(EACCES));
    a.rmdir(&g).expect("rmdir");
}

fn inode_numbers(tree: &Path) {
    let a = Actor::new();
    for name in ["a", "a/b", "c"] {
        a.mkdir(&tree.join(name), 0o755).expect("mkdir");
    }
    let mut seen = HashSet::new();
    let mut first = Vec::new();
    for dir in ["", "a", "a/b", "c"] {
        for entry in fs::read_dir(tree.join(dir)).expect("readdir") {
            let path = entry.expect("entry").path();
            let ino = fs::metadata(&path).expect("stat").ino();
            assert!(seen.insert(ino), "{} shares its number", path.display());
            first.push((path, ino));
        }
    }
    a.mkdir(&tree.join("d"), 0o755).expect("mkdir");
    a.rmdir(&tree.join("d")).expect("rmdir");
    for (path, ino) in first {
        assert_eq!(fs::metadata(&path).expect("stat").ino(), ino, "{}", path.display());
    }
    for name in ["a/b", "a", "c"] {
        a.rmdir(&tree.join(name)).expect("rmdir");
    }
}

const EVERYWHERE: [&str; 17] = [
    "tasks",
    "cgroup.procs",
    "cgroup.clone_children",
    "notify_on_release",
    "cpuset.cpus",
    "cpuset.mems",
    "cpuset.cpu_exclusive",
    "cpuset.mem_exclusive",
    "cpuset.mem_hardwall",
    "cpuset.memory_migrate",
    "cpuset.memory_spread_page",
    "cpuset.memory_spread_slab",
    "cpuset.sched_load_balance",
    "cpuset.sched_relax_domain_level",
    "cpuset.effective_cpus",
    "cpuset.effective_mems",
    "cpuset.memory_pressure",
];
const ROOT_ONLY: [&str; 3] = ["cgroup.sane_behavior", "release_agent", "cpuset.memory_pressure_enabled"];

fn files(dir: &Path) -> HashSet<String> {
    let entries = fs::read_dir(dir).expect("readdir").map(|e| e.expect("entry"));
    let files = entries.filter(|e| e.file_type().expect("type").is_file());
    files.map(|e| e.file_name().into_string().expect("a plain name")).collect()
}

fn the_files_of_a_group(tree: &Path) {
    assert_eq!(files(tree), EVERYWHERE.map(str::to_owned).into());
    let a = Actor::new();
    for name in ROOT_ONLY {
        assert_eq!(find(&a, &tree.join(name)), Err(ENOENT), "{name}");
    }
}

fn the_files_of_the_root(root: &Path) {
    let all: HashSet<_> = EVERYWHERE.into_iter().chain(ROOT_ONLY).map(str::to_owned).collect();
    let mut listed = files(root);
    // The one that the kernel does not have.
    listed.remove("cgfuse.stat");
    assert_eq!(listed, all);
}

both! {
    missing_names below_a_file dots_and_slashes names_of_any_bytes a_name_comes_and_goes
    needs_search_permission inode_numbers the_files_of_a_group
}
both_roots! { the_files_of_the_root }
