//! What FUSE cannot hide, with our value. Everything else is compared.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use nix::errno::Errno::ENAMETOOLONG;
use nix::unistd::{Whence, lseek, write};

use super::common::{self, Mount, OursSub, Target, raw};

fn mounted() -> Option<Mount> {
    if common::can_mount() {
        return Some(Mount::new());
    }
    common::skipped(std::thread::current().name().unwrap_or("?"), "no access to /dev/fuse");
    None
}

/// The kernel's is CGROUP_SUPER_MAGIC, 0x27e0eb.
#[test]
fn the_type_of_the_file_system_is_that_of_fuse() {
    let Some(mount) = mounted() else { return };
    let found = nix::sys::statfs::statfs(mount.dir()).expect("statfs").filesystem_type();
    assert_eq!(found, nix::sys::statfs::FUSE_SUPER_MAGIC);
}

/// The kernel takes whatever fits into PATH_MAX; FUSE does so since Linux 6.13 or thereabouts.
#[test]
fn names_longer_than_1024_bytes_may_be_refused() {
    let Some(mount) = mounted() else { return };
    let dir = |n| fs::create_dir(mount.dir().join("n".repeat(n))).map_err(|e| common::errno(&e));
    assert_eq!(dir(1024), Ok(()));
    assert!([Ok(()), Err(ENAMETOOLONG as i32)].contains(&dir(1025)));
}

/// The kernel says ENODEV; here neither call reaches the server.
#[test]
fn an_empty_write_and_a_seek_ignore_that_the_group_is_gone() {
    let Some(mount) = mounted() else { return };
    let group = mount.dir().join("a");
    fs::create_dir(&group).expect("mkdir");
    let file = File::options().read(true).write(true).open(group.join("cpuset.cpus")).expect("open");
    fs::remove_dir(&group).expect("rmdir");
    assert_eq!(write(&file, b""), Ok(0));
    assert_eq!(lseek(file.as_fd(), 0, Whence::SeekSet), Ok(0));
    assert_eq!(write(&file, b"0"), Err(nix::errno::Errno::ENODEV));
}

/// The kernel says ENOENT: it forgets the name with the group. FUSE's side of the kernel knows it as long as the file is open.
#[test]
fn a_file_that_is_open_can_be_named_in_a_removed_group() {
    use nix::{errno::Errno, fcntl::OFlag, fcntl::openat, sys::stat::Mode};
    let Some(mount) = mounted() else { return };
    let group = mount.dir().join("a");
    fs::create_dir(&group).expect("mkdir");
    let (dir, _tasks) = (File::open(&group).expect("open"), File::open(group.join("tasks")).expect("open"));
    fs::remove_dir(&group).expect("rmdir");
    assert_eq!(openat(&dir, "tasks", OFlag::O_RDONLY, Mode::empty()).err(), Some(Errno::ENODEV));
    assert_eq!(openat(&dir, "notify_on_release", OFlag::O_RDONLY, Mode::empty()).err(), Some(Errno::ENOENT));
}

/// The kernel says EINVAL beyond 2^31-1, the largest file of its cgroup file system.
#[test]
fn one_may_seek_beyond_the_largest_file() {
    let Some(mount) = mounted() else { return };
    let file = File::open(mount.dir().join("cpuset.cpus")).expect("open");
    assert_eq!(lseek(file.as_fd(), 1 << 40, Whence::SeekSet), Ok(1 << 40));
}

/// The kernel says ENODEV, as both of us do for a shared one.
#[test]
fn a_private_mapping_works() {
    let Some(mount) = mounted() else { return };
    let file = File::open(mount.dir().join("cpuset.cpus")).expect("open");
    assert_eq!(raw::mmap(file.as_fd(), libc::MAP_PRIVATE), Ok(()));
}

/// The kernel gives the text; FUSE looks at the size, which is 0, before it asks.
#[test]
fn sendfile_and_splice_find_nothing() {
    let Some(mount) = mounted() else { return };
    let file = File::open(mount.dir().join("cpuset.cpus")).expect("open");
    let (_from, to) = nix::unistd::pipe().expect("pipe");
    assert_eq!(raw::sendfile(to.as_fd(), file.as_fd(), 4096), Ok(0));
    assert_eq!(raw::splice(file.as_fd(), to.as_fd(), 4096), Ok(0));
}

/// The kernel says EINVAL.
#[test]
fn a_mask_beyond_the_group_is_not_refused() {
    let Some(sub) = mounted().map(|mount| OursSub::below(&Arc::new(mount))) else { return };
    common::write(sub.dir().join("cpuset.cpus"), "0").expect("cpus");
    let mut target = Target::new();
    common::write(sub.dir().join("tasks"), target.pid().to_string()).expect("attach");
    assert_eq!(common::affinity(target.pid()), [0]);
    assert_eq!(target.setaffinity(target.pid(), &[1]), Ok(()));
}

/// The kernel remembers it as the thread's own wish and keeps to it when the group widens.
#[test]
fn a_mask_equal_to_the_present_one_goes_unnoticed() {
    let Some(sub) = mounted().map(|mount| OursSub::below(&Arc::new(mount))) else { return };
    common::write(sub.dir().join("cpuset.cpus"), "0").expect("cpus");
    let mut target = Target::new();
    common::write(sub.dir().join("tasks"), target.pid().to_string()).expect("attach");
    assert_eq!(target.setaffinity(target.pid(), &[0]), Ok(()));
    common::write(sub.dir().join("cpuset.cpus"), "0-1").expect("cpus");
    assert_eq!(common::affinity(target.pid()), [0, 1]);
}

/// The kernel keeps the process where that thread was, as do the trackers that are told of it. /proc does not tell who called execve(2).
#[test]
fn execve_by_a_thread_elsewhere_leaves_the_process_with_its_leader() {
    if mounted().is_none() {
        return;
    }
    let sub = OursSub::below(&Arc::new(Mount::with_options("tracker=scan")));
    let mut target = Target::new();
    let thread = target.thread();
    common::write(sub.dir().join("tasks"), target.pid().to_string()).expect("attach");
    target.exec(thread);
    // But if the server looks in the middle, and sees the main thread dead, it knows.
    let found = common::ids(sub.dir().join("tasks"));
    assert!(found.is_empty() || found == [target.pid()], "{found:?}");
}

/// The kernel shows the old list for about a second.
#[test]
fn tasks_read_again_from_the_start_are_fresh() {
    let Some(sub) = mounted().map(|mount| OursSub::below(&Arc::new(mount))) else { return };
    let target = Target::new();
    let file = File::open(sub.dir().join("tasks")).expect("open");
    let mut text = [0_u8; 64];
    assert_eq!(nix::sys::uio::pread(&file, &mut text, 0), Ok(0));
    let line = format!("{}\n", target.pid());
    common::write(sub.dir().join("tasks"), &line).expect("attach");
    assert_eq!(nix::sys::uio::pread(&file, &mut text, 0), Ok(line.len()));
    assert_eq!(&text[..line.len()], line.as_bytes());
}

/// The kernel changes a directory's mtime then only if it has once been chmod'ed or touched.
#[test]
fn mkdir_does_not_turn_back_the_time_of_the_directory() {
    let Some(sub) = mounted().map(|mount| OursSub::below(&Arc::new(mount))) else { return };
    let before = fs::metadata(sub.dir()).expect("stat");
    fs::create_dir(sub.dir().join("a")).expect("mkdir");
    let after = fs::metadata(sub.dir()).expect("stat");
    let time = |m: &fs::Metadata| (m.mtime(), m.mtime_nsec());
    assert!(time(&after) >= time(&before));
}
