//! Each kind with 1, 5, 100 and 1,000 threads, on every way there is: into a new namespace, an adopted one, a nested group, back out, with
//! a change of a populated group, and with a last step that fails.

use std::path::{Path, PathBuf};

use crate::common::namespaces::{enter, good, group, mine, mount, ns_of, process, set, value};
use crate::common::{Mount, Target, ids};
use libc::{EINVAL, ENOENT, EPERM, EUSERS};

/// What a process with several threads is told, if it is refused.
fn refusal(kind: &str, threads: usize) -> Option<i32> {
    match kind {
        "user" | "pid" if threads > 1 => Some(EINVAL),
        "time" if threads > 1 => Some(EUSERS),
        _ => None,
    }
}

/// The groups of one kind.
struct Groups {
    /// Whose namespace is adopted. It goes before the mount, of which its mount namespace has a copy.
    _holder: Target,
    mount: Mount,
    kind: &'static str,
    made: PathBuf,
    nested: PathBuf,
    by_pid: PathBuf,
    by_path: PathBuf,
    /// Without anything of its own.
    plain: PathBuf,
    /// With a root directory that does not exist.
    bad: PathBuf,
}

impl Groups {
    fn new(kind: &'static str) -> Option<Self> {
        let mount = mount()?;
        let new = |name: &str| group(&mount, name);
        let (made, other) = (new("made"), new("other"));
        let (nested, by_pid, by_path, plain, bad) = (new("made/nested"), new("pid"), new("path"), new("plain"), new("bad"));
        let holder = Target::new();
        for dir in [&made, &other] {
            good(dir, set(dir, kind, "new"));
        }
        good(&nested, set(&nested, if kind == "uts" { "ipc" } else { "uts" }, "new"));
        // A pid or time namespace is its children's: what a process is in itself is what a path of it leads to.
        let (pid, path) = match kind {
            "pid" | "time" => {
                let holder: i32 = value(&other, "ns.effective").split(['/', ' ']).find_map(|word| word.parse().ok()).expect("a holder");
                (holder, format!("/proc/{holder}/ns/{kind}"))
            }
            _ => {
                good(&other, enter(&other, "cgroup.procs", holder.pid()));
                (holder.pid(), format!("/proc/{}/ns/{kind}", holder.pid()))
            }
        };
        good(&by_pid, set(&by_pid, kind, &pid.to_string()));
        good(&by_path, set(&by_path, kind, &path));
        for dir in [&by_pid, &by_path] {
            assert_eq!(value(dir, &format!("ns.{kind}")), value(&other, &format!("ns.{kind}")));
        }
        good(&bad, set(&bad, kind, "new"));
        good(&bad, set(&bad, "root", "/nowhere"));
        Some(Self { mount, kind, _holder: holder, made, nested, by_pid, by_path, plain, bad })
    }

    /// What is effective in a group, as its owner shows it.
    fn shown(&self, dir: &Path) -> String {
        let owner = if dir == self.nested { &self.made } else { dir };
        value(owner, &format!("ns.{}", self.kind))
    }

    #[track_caller]
    fn moves(&self, dir: &Path, target: &Target, tids: &[i32]) {
        good(dir, enter(dir, "cgroup.procs", target.pid()));
        self.is_in(dir, target, tids);
    }

    /// All threads are where the group is, and members of it.
    #[track_caller]
    fn is_in(&self, dir: &Path, target: &Target, tids: &[i32]) {
        let expected = if dir == self.mount.dir() || dir == self.plain { mine(self.kind) } else { self.shown(dir) };
        for tid in tids {
            assert_eq!(ns_of(*tid, self.kind), expected, "{tid} in {}", dir.display());
        }
        if dir != self.mount.dir() {
            let mut members = ids(dir.join("tasks"));
            members.sort_unstable();
            assert_eq!(members, target.tids(), "{}", dir.display());
        }
    }
}

/// Where a thread is: all its namespaces, its root and its working directory.
pub(super) fn place(tid: i32) -> Vec<PathBuf> {
    let kinds = ["mnt", "uts", "ipc", "net", "cgroup", "user", "pid_for_children", "time_for_children"];
    let links = kinds.map(|kind| format!("ns/{kind}")).into_iter().chain(["root".to_owned(), "cwd".to_owned()]);
    links.map(|link| std::fs::read_link(format!("/proc/{tid}/{link}")).expect("a link")).collect()
}

/// Fails, and changes nothing: neither the threads nor the groups.
#[track_caller]
fn refused(groups: &Groups, dir: &Path, target: &Target, tids: &[i32], errno: i32) {
    let before: Vec<_> = tids.iter().map(|tid| place(*tid)).collect();
    assert_eq!(enter(dir, "cgroup.procs", target.pid()), Err(errno), "{}: {}", dir.display(), value(dir, "ns.last_error"));
    let why = value(dir, "ns.last_error");
    assert!(tids.iter().any(|tid| why.starts_with(&format!("{tid}: "))), "{why}");
    for (tid, before) in tids.iter().zip(before) {
        assert_eq!(place(*tid), before, "{tid} after {}", dir.display());
    }
    assert!(!ids(dir.join("tasks")).iter().any(|tid| tids.contains(tid)), "{}", groups.kind);
}

/// Every way there and back.
fn all_ways(kind: &'static str, threads: usize) {
    let Some(groups) = Groups::new(kind) else { return };
    let Groups { mount, made, nested, by_pid, by_path, plain, bad, .. } = &groups;
    let (target, tids) = process(threads - 1);
    if let Some(errno) = refusal(kind, threads) {
        for dir in [made, nested, by_pid, by_path, bad] {
            refused(&groups, dir, &target, &tids, errno);
        }
        groups.moves(plain, &target, &tids);
        assert_eq!(set(plain, kind, "new"), Err(errno));
        assert_eq!(value(plain, &format!("ns.{kind}")), "inherit");
        groups.is_in(plain, &target, &tids);
        return;
    }
    refused(&groups, bad, &target, &tids, ENOENT);
    for dir in [made, nested, by_pid, by_path] {
        groups.moves(dir, &target, &tids);
    }
    refused(&groups, bad, &target, &tids, ENOENT);
    groups.moves(mount.dir(), &target, &tids);
    groups.moves(plain, &target, &tids);
    // The group goes, its members with it.
    for (text, there) in [("new", true), ("inherit", false)] {
        good(plain, set(plain, kind, text));
        let expected = if there { value(plain, &format!("ns.{kind}")) } else { mine(kind) };
        tids.iter().for_each(|tid| assert_eq!(ns_of(*tid, kind), expected, "{tid} {text}"));
    }
}

/// One way: each with a process of its own.
fn user_ways(threads: usize) {
    if threads > 1 {
        return all_ways("user", threads);
    }
    let Some(groups) = Groups::new("user") else { return };
    let Groups { mount, made, nested, by_pid, by_path, plain, .. } = &groups;
    for dir in [made, nested, by_pid, by_path] {
        let (target, tids) = process(0);
        groups.moves(dir, &target, &tids);
        for other in [mount.dir(), plain.as_path()] {
            let before = place(target.pid());
            assert_eq!(enter(other, "cgroup.procs", target.pid()), Err(EPERM));
            assert!(value(other, "ns.last_error").contains("cannot be left"), "{}", value(other, "ns.last_error"));
            assert_eq!(place(target.pid()), before);
            groups.is_in(dir, &target, &tids);
        }
        // Where it is already is no step; into a sibling there is none.
        if dir == made {
            groups.moves(nested, &target, &tids);
            // At home it has no rights any more, so there is no way back from the nested group's own either.
            let before = place(target.pid());
            assert_eq!(enter(made, "cgroup.procs", target.pid()), Err(EPERM));
            assert_eq!(place(target.pid()), before);
            let (target, tids) = process(0);
            groups.moves(made, &target, &tids);
            refused(&groups, by_pid, &target, &tids, EPERM);
            groups.is_in(made, &target, &tids);
        }
    }
    let (target, tids) = process(0);
    groups.moves(plain, &target, &tids);
    good(plain, set(plain, "user", "new"));
    let made = value(plain, "ns.user");
    assert_eq!(ns_of(target.pid(), "user"), made);
    assert_eq!(set(plain, "user", "inherit"), Err(EPERM));
    assert_eq!((value(plain, "ns.user"), ns_of(target.pid(), "user")), (made.clone(), made));
}

macro_rules! matrix {
    ($($kind:ident)*) => {
        $(
            mod $kind {
                fn ways(threads: usize) {
                    match stringify!($kind) {
                        "user" => super::user_ways(threads),
                        kind => super::all_ways(kind, threads),
                    }
                }
                #[test]
                fn one_thread() {
                    ways(1);
                }
                #[test]
                fn five_threads() {
                    ways(5);
                }
                #[test]
                fn a_hundred_threads() {
                    ways(100);
                }
                #[test]
                fn a_thousand_threads() {
                    ways(1000);
                }
            }
        )*
    };
}

matrix! { mnt uts ipc net cgroup user pid time }
