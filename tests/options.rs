//! What the mount options do to a real mount.

mod common;

use common::{Mount, can_mount, raw, read, skipped, text, write};
use nix::errno::Errno;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

fn mounted(options: &str) -> Option<Mount> {
    if can_mount() {
        return Some(Mount::with_options(options));
    }
    skipped(std::thread::current().name().unwrap_or("?"), "no access to /dev/fuse");
    None
}

fn mode_and_owner(path: &Path) -> (u32, u32, u32) {
    let meta = path.metadata().expect("stat");
    (meta.mode() & 0o7777, meta.uid(), meta.gid())
}

#[test]
fn noprefix_leaves_the_controller_out_of_the_names() {
    let Some(mount) = mounted("cpuset,noprefix") else { return };
    assert!(!text(mount.dir().join("cpus")).is_empty());
    assert_eq!(read(mount.dir().join("cpuset.cpus")), Err(Errno::ENOENT as i32));
    assert!(mount.dir().join("cgroup.procs").exists() && mount.dir().join("release_agent").exists());
}

#[test]
fn clone_children_and_release_agent_are_the_roots_first_values() {
    let Some(mount) = mounted("clone_children,release_agent=/no/such/agent") else { return };
    assert_eq!(text(mount.dir().join("cgroup.clone_children")), "1");
    assert_eq!(text(mount.dir().join("release_agent")), "/no/such/agent");
    let group = mount.dir().join("a");
    std::fs::create_dir(&group).expect("mkdir");
    assert_eq!(text(group.join("cpuset.cpus")), text(mount.dir().join("cpuset.cpus")));
}

#[test]
fn mode_uid_and_gid_are_the_roots() {
    let Some(mount) = mounted("mode=1770,uid=7,gid=8") else { return };
    assert_eq!(mode_and_owner(mount.dir()), (0o1770, 7, 8));
    assert_eq!(mode_and_owner(&mount.dir().join("tasks")), (0o644, 7, 8));
}

#[test]
fn ro_takes_no_writes() {
    let Some(mount) = mounted("ro") else { return };
    let rofs = Errno::EROFS as i32;
    assert_eq!(write(mount.dir().join("notify_on_release"), "1"), Err(rofs));
    assert_eq!(std::fs::create_dir(mount.dir().join("a")).map_err(|e| common::errno(&e)), Err(rofs));
    assert_eq!(text(mount.dir().join("notify_on_release")), "0");
}

#[test]
fn noxattr_has_no_attributes_and_xattr_has() {
    let Some(mount) = mounted("noxattr") else { return };
    let unsupported = Errno::EOPNOTSUPP as i32;
    let file = mount.dir().join("tasks");
    assert_eq!(raw::setxattr(&file, b"user.a", b"x", 0), Err(unsupported));
    assert_eq!(raw::getxattr(&file, b"user.a"), Err(unsupported));
    assert_eq!(raw::listxattr(&file), Err(unsupported));
    assert_eq!(raw::removexattr(&file, b"user.a"), Err(unsupported));
    assert_eq!(write(mount.dir().join("notify_on_release"), "1"), Ok(1));

    let Some(mount) = mounted("noxattr,xattr") else { return };
    let file = mount.dir().join("tasks");
    assert_eq!(raw::setxattr(&file, b"user.a", b"x", 0), Ok(()));
    assert_eq!(raw::getxattr(&file, b"user.a"), Ok(b"x".to_vec()));
}
