//! Random scripts over the same steps, reproducible by their seed, shrunk when they differ.

use std::sync::Arc;

use super::common::Mount;
use super::compare::{self, Script};
use super::step::OnFd as On;
use super::step::*;

/// SplitMix64.
pub struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).expect("small")
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn of<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }
}

const GROUPS: [&str; 9] = ["", "a", "a", "b", "b", "a/c", "a/d", "b/c", "a/c/e"];
const NAMES: [&str; 10] = ["a", "b", "a/c", "a/d", "b/c", "a/c/e", "f", "a/f", "a/c/e/g", "\u{e9} x"];
const CPUS: [&str; 14] = ["0", "1", "0-1", "0,1", "\n", "0-1", "0", "1", "0-1:1/2", "N", "2", "1-0", "x", "0\n1"];
const MEMS: [&str; 8] = ["0", "0", "0", "\n", "0-0", "1", "1024", "all"];
const FLAGS: [&str; 9] = [
    "cpuset.cpu_exclusive",
    "cpuset.cpu_exclusive",
    "cpuset.mem_exclusive",
    "cpuset.mem_hardwall",
    "cpuset.memory_migrate",
    "cpuset.memory_spread_page",
    "cpuset.sched_load_balance",
    "notify_on_release",
    "cgroup.clone_children",
];
const VALUES: [&str; 9] = ["0", "1", "0", "1", "1\n", "2", "4294967296", "-1", "x"];
const PIDS: [&[u8]; 8] = [b"{d}", b"{d}", b"{d}", b"{d}\n", b" 0x{x} ", b"0{o}", b"{d} 1", b"-{d}"];
const READABLE: [&str; 8] = [
    "cpuset.cpus",
    "cpuset.mems",
    "cpuset.effective_cpus",
    "cpuset.effective_mems",
    "cpuset.cpu_exclusive",
    "cpuset.mem_exclusive",
    "notify_on_release",
    "cgroup.clone_children",
];
const MODES: [u32; 7] = [0o755, 0o777, 0o1777, 0o700, 0o2777, 0o644, 0o666];

fn at(group: &str, file: &str) -> String {
    if group.is_empty() { file.to_owned() } else { format!("{group}/{file}") }
}

/// A random script: a small tree, `steps` steps, and a look at everything.
pub fn script(seed: u64, steps: usize) -> Script {
    let mut rng = Rng(seed);
    let rng = &mut rng;
    let alone = rng.chance(50);
    let mut script = prelude(rng, alone);
    script.extend((0..steps).map(|_| step(rng)).filter(|step| alone || !makes_exclusive(step)));
    script.extend(epilogue());
    Script { name: "random", alone, steps: script }
}

/// Whether the step makes our own group exclusive, which siblings may forbid.
fn makes_exclusive(step: &Step) -> bool {
    matches!(&step.act, Act::Write(path, _) if path.0.starts_with(b"cpuset.") && path.0.ends_with(b"exclusive"))
}

fn prelude(rng: &mut Rng, alone: bool) -> Vec<Step> {
    let mut s = vec![start(0), start(1), start_as(2, NOBODY)];
    if alone {
        s.extend([write("cpuset.cpu_exclusive", "1"), write("cpuset.mem_exclusive", "1")]);
    }
    if rng.chance(30) {
        s.push(write("cgroup.clone_children", "1"));
    }
    for group in ["a", "b", "a/c"] {
        s.push(mkdir(group));
        if rng.chance(80) {
            s.extend([write(at(group, "cpuset.cpus"), rng.of(&CPUS[..4])), write(at(group, "cpuset.mems"), "0")]);
        }
        if rng.chance(40) {
            s.extend([chmod(at(group, "tasks"), 0o666), chmod(at(group, "cgroup.procs"), 0o666), chmod(group, 0o777)]);
        }
    }
    s
}

fn epilogue() -> Vec<Step> {
    let mut s = Vec::new();
    for group in ["", "a", "b", "a/c", "a/d", "b/c", "a/c/e", "f", "a/f"] {
        s.push(list(group));
        s.extend(["tasks", "cgroup.procs", "cpuset.cpus", "cpuset.mems", "cpuset.effective_cpus"].map(|file| read(at(group, file))));
    }
    for p in 0..4 {
        s.push(affinity(P(p)));
        s.extend((1..5).map(|n| affinity(T(p, n))));
        s.extend((1..5).map(|n| affinity(C(p, n))));
    }
    s
}

fn any_thread(rng: &mut Rng) -> Task {
    let p = rng.of(&[0, 0, 1, 2, 3]);
    if rng.chance(50) { P(p) } else { T(p, 1 + rng.below(3)) }
}

fn any_task(rng: &mut Rng) -> Task {
    if rng.chance(30) { C(rng.below(3), 1 + rng.below(3)) } else { any_thread(rng) }
}

fn step(rng: &mut Rng) -> Step {
    let group = rng.of(&GROUPS);
    let step = match rng.below(100) {
        0..9 => mkdir(rng.of(&NAMES)),
        9..13 => rmdir(rng.of(&NAMES)),
        13..15 => rename(rng.of(&NAMES), rng.of(&NAMES)),
        15..29 => write(at(group, "cpuset.cpus"), rng.of(&CPUS)),
        29..34 => write(at(group, "cpuset.mems"), rng.of(&MEMS)),
        34..42 => write(at(group, rng.of(&FLAGS)), rng.of(&VALUES)),
        42..56 => attach_step(rng, group),
        56..60 => read(at(group, rng.of(&READABLE))),
        60..66 => read(at(group, rng.of(&["tasks", "cgroup.procs"]))),
        66..78 => task_step(rng),
        78..85 => affinity(any_task(rng)),
        85..92 => fd_step(rng, group),
        _ => tree_step(rng, group),
    };
    if rng.chance(8) { nobody(step) } else { step }
}

fn attach_step(rng: &mut Rng, group: &str) -> Step {
    let file = rng.of(&["tasks", "tasks", "cgroup.procs"]);
    let path = if rng.chance(6) { at("..", file) } else { at(group, file) };
    if rng.chance(20) {
        return writes(any_thread(rng), path, rng.of(&["0", "0\n", "-0", "00 "]));
    }
    attach_as(path, rng.of(&PIDS), any_task(rng))
}

fn task_step(rng: &mut Rng) -> Step {
    match rng.below(20) {
        0..4 => if_whole(OnTask::Thread(any_thread(rng))),
        4..8 => if_whole(OnTask::Fork(any_thread(rng))),
        8..10 => end_thread(any_thread(rng)),
        10 => kill(C(rng.below(3), 1 + rng.below(3))),
        11 => reap(C(rng.below(3), 1 + rng.below(3))),
        12 => exit(rng.below(4)),
        13 => wait(rng.below(4)),
        // Not by other threads: see `differences`.
        14 => exec(P(rng.below(3))),
        15 => start(3),
        _ => narrow(any_thread(rng), rng.of(&[&[0][..], &[1]])),
    }
}

/// Descriptors: no empty writes and no seeking (see `differences`), no lists of tasks (the
/// kernel keeps those for a second). Number 3 is for `tasks`: whoever writes `0` or `1` there
/// moves himself or init.
fn fd_step(rng: &mut Rng, group: &str) -> Step {
    let n = rng.below(3);
    match rng.below(12) {
        0..3 => hold(n, at(group, rng.of(&READABLE)), libc::O_RDWR),
        3 => hold(3, at(group, "tasks"), libc::O_WRONLY),
        4..6 => h_read(n, rng.of(&[1, 2, 100])),
        6 => h_pread(n, rng.of(&[1, 2, 100]), rng.of(&[0, 1, 2, 5])),
        7..9 => h_write(n, rng.of(&["0", "1", "0-1", "\n", "x"])),
        9 => h_attach(3, "{d}", any_task(rng)),
        10 => on(n, On::Stat),
        _ => on(n, On::Truncate(0)),
    }
}

fn tree_step(rng: &mut Rng, group: &str) -> Step {
    let file = at(group, rng.of(&READABLE));
    let path = if rng.chance(50) { file } else { rng.of(&NAMES).to_owned() };
    match rng.below(16) {
        0..3 => stat(path),
        3 => list(group),
        4..6 => chmod(path, rng.of(&MODES)),
        6 => chown(path, rng.of(&[0, NOBODY]), rng.of(&[0, NOBODY])),
        7 => unlink(path),
        8 => symlink("x", path),
        9 => link(path, "l"),
        10 => mknod(path, rng.of(&['r', 'p'])),
        11 => open(path, libc::O_CREAT | libc::O_RDWR),
        12 => truncate(path, 0),
        13 => setxattr(path, "user.x", "v", 0),
        14 => getxattr(path, "user.x"),
        _ => rename(path, rng.of(&NAMES)),
    }
}

/// Runs the script on both sides; the report of the shrunk script if they differ.
pub fn check(mount: &Option<Arc<Mount>>, script: Script) -> Option<String> {
    let differs = |script: &Script| {
        let kernel = compare::kernel(script)?;
        compare::difference(&script.steps, Some(&kernel), &compare::ours(mount, script))
    };
    let mut report = differs(&script)?;
    let Script { name, alone, mut steps } = script;
    let mut size = steps.len() / 2;
    while size > 0 {
        let mut at = steps.len().saturating_sub(size);
        loop {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + size).min(steps.len()));
            let fewer = Script { name, alone, steps: fewer };
            if let Some(found) = differs(&fewer) {
                (steps, report) = (fewer.steps, found);
            }
            if at == 0 {
                break;
            }
            at = at.saturating_sub(size).min(steps.len().saturating_sub(size));
        }
        size /= 2;
    }
    Some(report)
}
