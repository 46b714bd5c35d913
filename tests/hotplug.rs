//! CPU 1 goes and comes back: what Linux v1 does to its hierarchy, ours must do to itself.
//!
//! The kernel's hierarchy and ours see the same switch, each with the same groups and members,
//! so whatever is asserted here has been proven on the kernel in the same run.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{CpusExclusive, KERNEL_ROOT, KernelCpuset, OursSub, Target, affinity, ids, is_root, skipped, text, wait_until, write};

const ONLINE: &str = "/sys/devices/system/cpu/cpu1/online";

/// CPU 1 is off while this lives. The shell behind it switches the CPU on at the end of its
/// input, so also when the test is killed.
struct Cpu1Off(Child);

impl Cpu1Off {
    fn new() -> Cpu1Off {
        let script = format!("echo 0 > {ONLINE} && echo off >&2; cat; echo 1 > {ONLINE}");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).stdin(Stdio::piped()).stderr(Stdio::null());
        let guard = Cpu1Off(shell.spawn().expect("sh"));
        wait_until("CPU 1 is off", || online() == "0");
        guard
    }
}

impl Drop for Cpu1Off {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
        assert!(online() == "1" || std::thread::panicking(), "CPU 1 stays off");
    }
}

fn online() -> String {
    fs::read_to_string(ONLINE).expect("state of CPU 1").trim().to_owned()
}

/// Why this machine cannot run the tests, if it cannot.
fn obstacle() -> Option<&'static str> {
    if !is_root() {
        return Some("needs root");
    }
    if fs::read_to_string(ONLINE).is_ok_and(|state| state.trim() == "1")
        && fs::OpenOptions::new().write(true).open(ONLINE).is_ok()
        && fs::read_to_string("/sys/devices/system/cpu/online").is_ok_and(|list| list.trim() == "0-1")
    {
        None
    } else {
        Some("needs the CPUs 0 and 1, of which 1 can be switched off")
    }
}

/// A group in each of the two hierarchies.
struct Trees {
    kernel: Option<KernelCpuset>,
    ours: OursSub,
}

impl Trees {
    /// None, with a line on stderr, where somebody else has groups of the kernel's: they would
    /// lose CPU 1 for good.
    fn new() -> Option<Trees> {
        let kernel = KernelCpuset::alone();
        let is_others = kernel.is_none() && Path::new(KERNEL_ROOT).join("cpuset.cpus").exists();
        (!is_others).then(|| Trees { kernel, ours: OursSub::new() })
    }

    /// The sub group of each, a child of the hierarchy's root.
    fn subs(&self) -> Vec<PathBuf> {
        let kernel = self.kernel.iter().map(|group| group.dir().to_owned());
        kernel.chain([self.ours.dir().to_owned()]).collect()
    }
}

fn group(dir: &Path, cpus: &str) -> PathBuf {
    fs::create_dir(dir).expect("mkdir");
    write(dir.join("cpuset.cpus"), cpus).expect("cpus");
    write(dir.join("cpuset.mems"), "0").expect("mems");
    dir.to_owned()
}

fn enter(dir: &Path, target: &Target) {
    write(dir.join("cgroup.procs"), target.pid().to_string()).expect("attach");
}

/// Ours hears of the switch by a message, so it may come a little later.
#[track_caller]
fn becomes(file: PathBuf, value: &str) {
    let what = format!("{} reads {value:?}", file.display());
    wait_until(&what, || text(&file) == value);
}

#[track_caller]
fn runs_on(target: &Target, cpus: &[usize], what: &str) {
    wait_until(&format!("affinity {cpus:?} {what}"), || affinity(target.pid()) == cpus);
}

/// Runs `before` in each hierarchy, then switches CPU 1 off, runs `off`, switches it on, runs `on`.
fn across<S>(test: &str, before: fn(&Path) -> S, off: fn(&Path, &mut S), on: fn(&Path, &mut S)) {
    if let Some(why) = obstacle() {
        return skipped(test, why);
    }
    let _turn = CpusExclusive::new();
    let Some(trees) = Trees::new() else { return };
    let mut states: Vec<_> = trees.subs().into_iter().map(|sub| (before(&sub), sub)).collect();
    let cpu1 = Cpu1Off::new();
    for (state, sub) in &mut states {
        off(sub, state);
    }
    drop(cpu1);
    for (state, sub) in &mut states {
        on(sub, state);
    }
}

fn root_of(sub: &Path) -> &Path {
    sub.parent().expect("the hierarchy's root")
}

#[test]
fn the_root_shrinks_and_comes_back() {
    let all = |sub: &Path| {
        let root = root_of(sub);
        becomes(root.join("cpuset.cpus"), "0-1");
        becomes(root.join("cpuset.effective_cpus"), "0-1");
        assert_eq!(text(root.join("cpuset.mems")), "0");
    };
    across(
        "the_root_shrinks_and_comes_back",
        all,
        |sub, ()| {
            let root = root_of(sub);
            becomes(root.join("cpuset.cpus"), "0");
            becomes(root.join("cpuset.effective_cpus"), "0");
            assert_eq!(text(root.join("cpuset.mems")), "0");
            // Still EACCES, as always in the root.
            assert_eq!(write(root.join("cpuset.cpus"), "0"), Err(libc::EACCES));
        },
        |sub, ()| {
            let root = root_of(sub);
            becomes(root.join("cpuset.cpus"), "0-1");
            becomes(root.join("cpuset.effective_cpus"), "0-1");
        },
    );
}

#[test]
fn groups_lose_the_cpu_for_good() {
    across(
        "groups_lose_the_cpu_for_good",
        |sub| {
            let both = group(&sub.join("both"), "0-1");
            let (plain, mut wishing) = (Target::new(), Target::new());
            wishing.setaffinity(wishing.pid(), &[1]).expect("setaffinity");
            enter(&both, &plain);
            enter(&both, &wishing);
            (plain, wishing)
        },
        |sub, (plain, wishing)| {
            for dir in [sub.to_owned(), sub.join("both")] {
                becomes(dir.join("cpuset.cpus"), "0");
                becomes(dir.join("cpuset.effective_cpus"), "0");
                assert_eq!(text(dir.join("cpuset.mems")), "0");
            }
            runs_on(plain, &[0], "while CPU 1 is off");
            // Its own mask has nothing in common with the group now.
            runs_on(wishing, &[0], "although it wishes CPU 1");
            assert_eq!(ids(sub.join("both/tasks")), sorted([plain.pid(), wishing.pid()]));
        },
        |sub, (plain, wishing)| {
            becomes(root_of(sub).join("cpuset.cpus"), "0-1");
            for dir in [sub.to_owned(), sub.join("both")] {
                assert_eq!(text(dir.join("cpuset.cpus")), "0");
                assert_eq!(text(dir.join("cpuset.effective_cpus")), "0");
            }
            runs_on(plain, &[0], "for good");
            runs_on(wishing, &[0], "for good");
            // Whoever configured it must do so again, from the top.
            assert_eq!(write(sub.join("both/cpuset.cpus"), "0-1"), Err(libc::EACCES));
            assert_eq!(write(sub.join("cpuset.cpus"), "0-1"), Ok(3));
            assert_eq!(write(sub.join("both/cpuset.cpus"), "0-1"), Ok(3));
            assert_eq!(affinity(plain.pid()), [0, 1]);
            assert_eq!(affinity(wishing.pid()), [1]);
        },
    );
}

#[test]
fn tasks_of_an_emptied_group_move_up() {
    across(
        "tasks_of_an_emptied_group_move_up",
        |sub| {
            let one = group(&sub.join("one"), "1");
            let both = group(&sub.join("both"), "0-1");
            let nested = group(&both.join("nested"), "1");
            let deep = group(&nested.join("deep"), "1");
            let (mut a, b, c) = (Target::new(), Target::new(), Target::new());
            // Of a, one thread only.
            let thread = a.thread();
            write(one.join("tasks"), thread.to_string()).expect("attach");
            enter(&nested, &b);
            enter(&deep, &c);
            (a, thread, b, c)
        },
        |sub, (a, thread, b, c)| {
            for dir in ["one", "both/nested", "both/nested/deep"] {
                let dir = sub.join(dir);
                becomes(dir.join("cpuset.cpus"), "");
                becomes(dir.join("cpuset.effective_cpus"), "");
                becomes(dir.join("tasks"), "");
                // mems are as they were; a group without CPUs takes nobody.
                assert_eq!(text(dir.join("cpuset.mems")), "0");
                assert_eq!(write(dir.join("tasks"), a.pid().to_string()), Err(libc::ENOSPC));
            }
            wait_until("the thread is in the sub group", || ids(sub.join("tasks")) == [*thread]);
            // Not to nested: it is empty too.
            let both = sorted([b.pid(), c.pid()]);
            wait_until("the others are in both", || ids(sub.join("both/tasks")) == both);
            wait_until("the thread runs on CPU 0", || affinity(*thread) == [0]);
            runs_on(b, &[0], "in both");
            runs_on(c, &[0], "in both");
        },
        |sub, (_a, thread, b, c)| {
            becomes(root_of(sub).join("cpuset.cpus"), "0-1");
            for dir in ["one", "both/nested", "both/nested/deep"] {
                assert_eq!(text(sub.join(dir).join("cpuset.cpus")), "", "{dir} stays empty");
            }
            assert_eq!(ids(sub.join("tasks")), [*thread]);
            assert_eq!(ids(sub.join("both/tasks")), sorted([b.pid(), c.pid()]));
            assert_eq!(affinity(b.pid()), [0]);
        },
    );
}

#[test]
fn exclusive_flags_survive() {
    across(
        "exclusive_flags_survive",
        |sub| {
            assert_eq!(write(sub.join("cpuset.cpu_exclusive"), "1"), Ok(1));
            let one = group(&sub.join("one"), "1");
            assert_eq!(write(one.join("cpuset.cpu_exclusive"), "1"), Ok(1));
            group(&sub.join("zero"), "0");
        },
        |sub, ()| {
            becomes(sub.join("one/cpuset.cpus"), "");
            assert_eq!(text(sub.join("cpuset.cpu_exclusive")), "1");
            assert_eq!(text(sub.join("one/cpuset.cpu_exclusive")), "1");
            // It holds on: CPU 0 is the sibling's.
            assert_eq!(write(sub.join("one/cpuset.cpus"), "0"), Err(libc::EINVAL));
        },
        |sub, ()| {
            becomes(root_of(sub).join("cpuset.cpus"), "0-1");
            assert_eq!(text(sub.join("one/cpuset.cpus")), "");
            assert_eq!(text(sub.join("one/cpuset.cpu_exclusive")), "1");
        },
    );
}

#[test]
fn a_list_with_the_missing_cpu_is_invalid() {
    across(
        "a_list_with_the_missing_cpu_is_invalid",
        |sub| {
            group(&sub.join("a"), "0-1");
            group(&sub.join("a/b"), "0");
        },
        |sub, ()| {
            becomes(sub.join("a/cpuset.cpus"), "0");
            // EINVAL before anything else, where the missing CPU would also be outside the
            // parent's (EACCES) or leave a child uncovered (EBUSY).
            for list in ["1", "0-1", "all", "N", "0-1:2/2", "0,1"] {
                assert_eq!(write(sub.join("a/cpuset.cpus"), list), Err(libc::EINVAL), "{list}");
                assert_eq!(text(sub.join("a/cpuset.cpus")), "0", "{list}");
            }
            // But a number beyond the possible CPUs is out of range as ever.
            assert_eq!(write(sub.join("a/cpuset.cpus"), "8192"), Err(libc::ERANGE));
            // The missing CPU is in the range, yet not in the set.
            assert_eq!(write(sub.join("a/cpuset.cpus"), "0-1:1/2"), Ok(7));
        },
        |sub, ()| {
            becomes(root_of(sub).join("cpuset.cpus"), "0-1");
            assert_eq!(write(sub.join("a/cpuset.cpus"), "1"), Err(libc::EBUSY));
            assert_eq!(write(sub.join("a/cpuset.cpus"), "0-1"), Err(libc::EACCES));
        },
    );
}

#[test]
fn groups_made_meanwhile() {
    across(
        "groups_made_meanwhile",
        |sub| {
            write(sub.join("cgroup.clone_children"), "1").expect("clone_children");
        },
        |sub, ()| {
            becomes(sub.join("cpuset.cpus"), "0");
            fs::create_dir(sub.join("new")).expect("mkdir");
            assert_eq!(text(sub.join("new/cpuset.cpus")), "0");
            let target = Target::new();
            enter(&sub.join("new"), &target);
            assert_eq!(affinity(target.pid()), [0]);
        },
        |sub, ()| {
            becomes(root_of(sub).join("cpuset.cpus"), "0-1");
            assert_eq!(text(sub.join("new/cpuset.cpus")), "0");
            // The new member is gone, so nothing holds the group.
            wait_until("the group can go", || fs::remove_dir(sub.join("new")).is_ok());
        },
    );
}

#[test]
fn tasks_that_left_run_on_all_cpus_again() {
    across(
        "tasks_that_left_run_on_all_cpus_again",
        |sub| {
            let target = Target::new();
            enter(&group(&sub.join("one"), "1"), &target);
            assert_eq!(affinity(target.pid()), [1]);
            target
        },
        |sub, target| {
            becomes(sub.join("one/tasks"), "");
            enter(root_of(sub), target);
            runs_on(target, &[0], "in the root");
        },
        |_sub, target| runs_on(target, &[0, 1], "in the root"),
    );
}

/// The scheduler's levels have been counted while all CPUs were there, and are not counted anew.
#[test]
fn relax_levels_stay() {
    fn highest(sub: &Path) -> i32 {
        let accepted = |level: &i32| write(sub.join("cpuset.sched_relax_domain_level"), level.to_string()).is_ok();
        (-1..100).take_while(accepted).last().expect("-1 at least")
    }
    across(
        "relax_levels_stay",
        highest,
        |sub, level| {
            becomes(sub.join("cpuset.cpus"), "0");
            assert_eq!(highest(sub), *level);
        },
        |sub, level| assert_eq!(highest(sub), *level),
    );
}

fn sorted<const N: usize>(mut ids: [i32; N]) -> [i32; N] {
    ids.sort_unstable();
    ids
}
