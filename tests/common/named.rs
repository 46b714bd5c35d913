//! Named hierarchies of the kernel's, and how they go.

use super::TempDir;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;

/// Mounts a named hierarchy in a mount namespace that is gone when this returns.
pub fn mount_named(name: &str) -> nix::Result<OwnedFd> {
    let temp = TempDir::new();
    let options = format!("none,name={name}");
    let mounts = || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        mount(Some("cgroup"), temp.path(), Some("cgroup"), MsFlags::empty(), Some(&*options))?;
        let root = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(temp.path());
        // At once: who else leaves it to the end of the namespace may have to wait.
        umount2(temp.path(), MntFlags::MNT_DETACH)?;
        Ok(root.expect("the root of the hierarchy").into())
    };
    thread::scope(|scope| scope.spawn(mounts).join().expect("a thread"))
}

/// Of hierarchies that tests have made.
pub fn names() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let names = text.lines().filter_map(|line| line.split(':').nth(1)?.strip_prefix("name=cgfuse-test-"));
    names.map(|rest| format!("cgfuse-test-{rest}")).collect()
}

/// Hierarchies of tests that were killed.
pub fn dead_names() -> Vec<String> {
    let dead = |name: &String| {
        let pid = name.strip_prefix("cgfuse-test-").and_then(|rest| rest.split('-').next()).unwrap_or_default();
        !Path::new("/proc").join(pid).exists()
    };
    names().into_iter().filter(dead).collect()
}

/// Removes all groups of a hierarchy, which goes some time after its last mount. One that was unmounted while a group of it was being taken
/// down stays, until it is mounted and unmounted once more.
pub fn remove(name: &str) {
    let there = || names().iter().any(|other| other == name);
    for _ in 0..30 {
        if !there() {
            return;
        }
        // Where it is already going this waits, and makes a new one.
        let Ok(root) = mount_named(name) else { return };
        let path = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
        let below = fs::read_dir(&path).into_iter().flatten().flatten();
        let groups: Vec<_> = below.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).collect();
        groups.iter().for_each(|e| empty(&path, &e.path()));
        drop(root);
        for _ in 0..500 {
            if !there() {
                return;
            }
            thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    eprintln!("the hierarchy {name} stays");
}

/// Moves everybody out of a group and removes it.
pub fn empty(root: &Path, dir: &Path) {
    let below = fs::read_dir(dir).into_iter().flatten().flatten();
    below.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).for_each(|e| empty(root, &e.path()));
    for tid in fs::read_to_string(dir.join("tasks")).unwrap_or_default().lines() {
        let _ = fs::write(root.join("tasks"), tid);
    }
    let _ = fs::remove_dir(dir);
}
