//! Where a check runs: the kernel's hierarchy proves the check, ours must pass it.

use std::path::Path;

use crate::common::{KERNEL_ROOT, KernelCpuset, Mount, OursSub, affinity, is_root, read, skipped, write};

/// Name of the running test, for messages.
pub(crate) fn test_name() -> String {
    std::thread::current().name().unwrap_or("?").to_owned()
}

/// True, and says so, when the test needs root and is not.
pub(crate) fn lacks_root() -> bool {
    let lacks = !is_root();
    if lacks {
        skipped(&test_name(), "needs root");
    }
    lacks
}

/// Runs `check` in a group of the kernel's hierarchy.
pub(crate) fn on_kernel(check: fn(&Path)) {
    if let Some(group) = KernelCpuset::new()
        && two_cpus(group.dir())
    {
        check(group.dir());
    }
}

/// Narrows a tree to the CPUs 0 and 1, so that what is tested is the same on all machines.
fn two_cpus(tree: &Path) -> bool {
    let two = write(tree.join("cpuset.cpus"), "0-1").is_ok();
    if !two {
        skipped(&test_name(), "needs the CPUs 0 and 1");
    }
    two
}

/// The CPUs of who is in no group.
pub(crate) fn free() -> Vec<usize> {
    affinity(0)
}

/// Runs `check` in a group of a mount of ours, whose server must not complain.
pub(crate) fn on_ours(check: fn(&Path)) {
    if !lacks_root() {
        let ours = OursSub::new();
        if two_cpus(ours.dir()) {
            check(ours.dir());
        }
        has_no_complaints(ours.mount());
    }
}

/// Fails when the server has logged that something went wrong on its side.
pub(crate) fn has_no_complaints(mount: &Mount) {
    for line in mount.log().lines() {
        // An errno is called `os error N`, and somebody else's at that; ENOEXEC has the word in its own text.
        let lower = line.to_lowercase().replace("os error", "").replace("exec format error", "");
        let mut words = lower.split(|c: char| !c.is_ascii_alphabetic());
        let complaint = words.find(|word| ["panic", "panicked", "error", "bug"].contains(word));
        assert_eq!(complaint, None, "the server says: {line}");
    }
}

/// Runs `check` on the top of the kernel's hierarchy, which it must leave as it was.
pub(crate) fn on_kernel_root(check: fn(&Path)) {
    // Held for its locks, and for saying why where there is none.
    if let Some(_group) = KernelCpuset::new() {
        check(Path::new(KERNEL_ROOT));
    }
}

/// Runs `check` on the top of a mount of ours.
pub(crate) fn on_ours_root(check: fn(&Path)) {
    if !lacks_root() {
        let mount = Mount::with_options("cpuset");
        check(mount.dir());
        has_no_complaints(&mount);
    }
}

/// Makes two tests of each `fn check(tree: &Path)`: below the kernel's root and below ours.
macro_rules! both {
    ($($name:ident)*) => { $(mod $name {
        #[test]
        fn kernel() {
            $crate::vfs::trees::on_kernel(super::$name);
        }
        #[test]
        fn ours() {
            $crate::vfs::trees::on_ours(super::$name);
        }
    })* };
}

/// The same at the top of the two hierarchies.
macro_rules! both_roots {
    ($($name:ident)*) => { $(mod $name {
        #[test]
        fn kernel() {
            $crate::vfs::trees::on_kernel_root(super::$name);
        }
        #[test]
        fn ours() {
            $crate::vfs::trees::on_ours_root(super::$name);
        }
    })* };
}

pub(crate) use {both, both_roots};

/// Makes the group `dir` with the cpus and mems of its parent.
pub(crate) fn configured(dir: &Path) -> &Path {
    let parent = dir.parent().expect("a parent");
    std::fs::create_dir(dir).unwrap_or_else(|e| panic!("mkdir {}: {e}", dir.display()));
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let set = read(parent.join(file)).expect("the parent's set");
        write(dir.join(file), set).expect("the parent's set fits");
    }
    dir
}
