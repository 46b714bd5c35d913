//! What the tests of the ns controller share: groups with namespaces, and who is where.

use super::{Mount, Target, is_root, skipped, text, write};
use std::fs;
use std::path::{Path, PathBuf};

/// An ordinary user.
pub const USER: u32 = 1000;

/// The kinds, and what shows where a task's next child will be.
pub const KINDS: [(&str, &str); 8] = [
    ("mnt", "mnt"),
    ("uts", "uts"),
    ("ipc", "ipc"),
    ("net", "net"),
    ("cgroup", "cgroup"),
    ("user", "user"),
    ("pid", "pid_for_children"),
    ("time", "time_for_children"),
];

/// What a process with several threads may change.
pub const SHARED: [&str; 5] = ["mnt", "uts", "ipc", "net", "cgroup"];

/// The name in /proc/PID/ns of what shows where a task's next child will be.
pub fn link(kind: &str) -> &'static str {
    KINDS.iter().find(|(name, _)| *name == kind).expect("a kind").1
}

/// A task's namespace of a kind, as /proc shows it.
pub fn ns_of(tid: i32, kind: &str) -> String {
    let link = fs::read_link(format!("/proc/{tid}/ns/{}", link(kind))).expect("a namespace");
    link.into_os_string().into_string().expect("text")
}

/// The test's own.
pub fn mine(kind: &str) -> String {
    ns_of(std::process::id().cast_signed(), kind)
}

/// A mount of the ns controller alone, if this is root.
pub fn mount() -> Option<Mount> {
    if !is_root() {
        skipped(std::thread::current().name().unwrap_or_default(), "needs root");
        return None;
    }
    Some(Mount::with_options("ns"))
}

/// A new group.
pub fn group(mount: &Mount, name: &str) -> PathBuf {
    let dir = mount.dir().join(name);
    fs::create_dir(&dir).expect("mkdir");
    dir
}

/// Writes to a group's file of a kind.
pub fn set(group: &Path, kind: &str, value: &str) -> Result<usize, i32> {
    write(group.join(format!("ns.{kind}")), value)
}

/// Panics with the group's own words if something has failed.
#[track_caller]
pub fn good<T>(group: &Path, done: Result<T, i32>) {
    if let Err(errno) = done {
        panic!("errno {errno}: {}", text(group.join("ns.last_error")));
    }
}

/// Moves a task by writing its number to `file`.
pub fn enter(group: &Path, file: &str, id: i32) -> Result<usize, i32> {
    write(group.join(file), id.to_string())
}

/// The last line but the newline of a file.
pub fn value(group: &Path, file: &str) -> String {
    text(group.join(file)).trim_end().to_owned()
}

/// A process with so many threads besides the main one.
pub fn process(threads: usize) -> (Target, Vec<i32>) {
    let mut target = Target::new();
    let mut tids = vec![target.pid()];
    tids.extend((0..threads).map(|_| target.thread()));
    (target, tids)
}
