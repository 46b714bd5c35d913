//! The goals about many threads and many groups.

use std::fs::{self, File};
use std::io::{self, Seek};
use std::path::Path;

use crate::cases::moves;
use crate::children::{Served, Target};
use crate::measure::{Batch, Samples, interleave, repeat, there_and_back};
use crate::raw;
use crate::report::{Goal, Mode, Report};
use crate::world::{MASK_A, MASK_B, World, after_fork, alternate, cat, control, names, put, two_groups};

/// One process for our mount, one that raw calls and the kernel share: who pins a thread of ours
/// from outside changes what it wishes for.
struct Processes {
    ours: Target,
    others: Target,
}

impl Processes {
    fn new(world: &World, threads: usize, report: &mut Report) -> io::Result<Option<Self>> {
        let both = Target::new(threads).and_then(|ours| Ok(Self { ours, others: Target::new(threads)? }));
        let processes = match both {
            Ok(processes) => processes,
            Err(why) => {
                report.remark(format!("skipped: {threads} threads: {why}"));
                return Ok(None);
            }
        };
        put(&control(&world.ours.dir().join("a"), "cgroup.procs")?, processes.ours.pid().to_string().as_bytes())?;
        if let Some(kernel) = &world.kernel {
            put(&control(&kernel.dir().join("a"), "cgroup.procs")?, processes.others.pid().to_string().as_bytes())?;
        }
        Ok(Some(processes))
    }
}

/// To a group from the root, where nothing is known of the threads yet, and back. Two operations of a batch are one round.
fn enter_and_leave<'a>(dir: &Path, pid: i32) -> io::Result<Batch<'a, 1>> {
    let (inside, root) = (control(&dir.join("b"), "cgroup.procs")?, control(dir, "cgroup.procs")?);
    Ok(repeat(alternate(true, false, move |enter| put(if enter { &inside } else { &root }, pid.to_string().as_bytes()))))
}

/// Goal 5: moving and re-pinning all threads of a process.
pub(crate) fn threads(world: &World, report: &mut Report) -> io::Result<()> {
    for threads in world.scale.threads {
        if let Some(processes) = Processes::new(world, threads, report)? {
            world.modes(&[], |mode| {
                compare(world, mode, &format!("move of {threads} threads"), move_all(world, &processes)?, report)?;
                compare(world, mode, &format!("re-pinning of {threads} threads"), repin(world, &processes)?, report)?;
                let name = format!("move of {threads} threads from the root and back");
                let mut contenders = move_all(world, &processes)?;
                contenders[2] = enter_and_leave(world.ours.dir(), processes.ours.pid())?;
                let results = interleave(world.scale.pace, contenders)?;
                report.ratio(mode, &name, &results[2][0], ("raw calls", &results[0][0]), Goal::None);
                put(&control(&world.ours.dir().join("a"), "cgroup.procs")?, processes.ours.pid().to_string().as_bytes())?;
                let wrong = processes.ours.tids.iter().filter(|tid| raw::mask(**tid).ok() != Some(MASK_A)).count();
                if wrong > 0 {
                    report.remark(format!("{wrong} of {threads} threads have the wrong mask: the figures are void"));
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// `contenders`: raw calls, raw calls that look first, ours, the kernel.
fn compare(world: &World, mode: Mode, name: &str, contenders: Vec<Batch<'_, 1>>, report: &mut Report) -> io::Result<()> {
    let results = interleave(world.scale.pace, contenders)?;
    let ours = &results[2][0];
    let goal = if mode == Mode::Pinned { Goal::AtMost(1.15) } else { Goal::BelowPinned };
    report.ratio(mode, name, ours, ("raw calls", &results[0][0]), goal);
    report.ratio(mode, name, ours, ("raw calls + getaffinity", &results[1][0]), Goal::None);
    if let Some([kernel]) = results.get(3) {
        report.ratio(mode, name, ours, ("kernel", kernel), Goal::None);
    }
    Ok(())
}

fn set_all(tids: &[i32], mask: u64, look_first: bool) -> io::Result<()> {
    for &tid in tids {
        if look_first {
            raw::mask(tid)?;
        }
        raw::set_mask(tid, mask)?;
    }
    Ok(())
}

/// Listing the threads of a process and pinning each, in turn to one of the masks.
pub(crate) fn moving_by_calls<'a>(pid: i32, look_first: bool) -> io::Result<Batch<'a, 1>> {
    let mut task = File::open(format!("/proc/{pid}/task"))?;
    let (mut buffer, mut tids) = (Vec::new(), Vec::new());
    Ok(repeat(alternate(MASK_B, MASK_A, move |mask| {
        tids.clear();
        task.rewind()?;
        raw::numbers(&task, &mut buffer, |tid| tids.push(tid))?;
        set_all(&tids, mask, look_first)
    })))
}

/// Moves of a process between the groups `a` and `b` of `dir`.
pub(crate) fn moving_by_file<'a>(dir: &Path, pid: i32) -> io::Result<Batch<'a, 1>> {
    let (a, b) = (control(&dir.join("a"), "cgroup.procs")?, control(&dir.join("b"), "cgroup.procs")?);
    Ok(repeat(alternate(true, false, move |to_b| put(if to_b { &b } else { &a }, pid.to_string().as_bytes()))))
}

fn move_all<'a>(world: &'a World, processes: &'a Processes) -> io::Result<Vec<Batch<'a, 1>>> {
    let others = processes.others.pid();
    let mut contenders =
        vec![moving_by_calls(others, false)?, moving_by_calls(others, true)?, moving_by_file(world.ours.dir(), processes.ours.pid())?];
    if let Some(kernel) = &world.kernel {
        contenders.push(moving_by_file(kernel.dir(), others)?);
    }
    Ok(contenders)
}

fn repin<'a>(world: &'a World, processes: &'a Processes) -> io::Result<Vec<Batch<'a, 1>>> {
    let raw_calls = |look_first: bool| -> Batch<'a, 1> {
        repeat(alternate(MASK_B, MASK_A, move |mask| set_all(&processes.others.tids, mask, look_first)))
    };
    let by_file = |dir: &Path| -> io::Result<Batch<'a, 1>> {
        let cpus = control(&dir.join("a"), "cpuset.cpus")?;
        Ok(repeat(alternate("0", "0-1", move |list| put(&cpus, list.as_bytes()))))
    };
    let mut contenders = vec![raw_calls(false), raw_calls(true), by_file(world.ours.dir())?];
    if let Some(kernel) = &world.kernel {
        contenders.push(by_file(kernel.dir())?);
    }
    Ok(contenders)
}

/// What `cat tasks` does in the group `a` of `dir`.
pub(crate) fn reading<'a>(dir: &Path) -> Batch<'a, 1> {
    let (path, mut buffer) = (dir.join("a/tasks"), vec![0; 128 * 1024]);
    repeat(move || cat(&path, &mut buffer).map(drop))
}

/// Goal 6: reading a long `tasks`, on a quiet machine and with a fork before each reading.
pub(crate) fn cat_tasks(world: &World, report: &mut Report) -> io::Result<()> {
    let threads = world.scale.threads[1];
    let Some(kernel) = &world.kernel else { return Ok(()) };
    let Some(processes) = Processes::new(world, threads, report)? else { return Ok(()) };
    for dir in [kernel.dir(), world.ours.dir()] {
        let lines = fs::read_to_string(dir.join("a/tasks"))?.lines().count();
        if lines != threads {
            report.remark(format!("{}/a/tasks has {lines} lines instead of {threads}", dir.display()));
        }
    }
    let listing = || -> io::Result<Batch<'_, 1>> {
        let (mut task, mut buffer) = (File::open(format!("/proc/{}/task", processes.others.pid()))?, Vec::new());
        Ok(repeat(move || {
            task.rewind()?;
            raw::numbers(&task, &mut buffer, |_| {})
        }))
    };
    world.modes(&[], |mode| {
        let name = format!("cat tasks of {threads} threads");
        let contenders = vec![reading(kernel.dir()), reading(world.ours.dir()), listing()?];
        let quiet = interleave(world.scale.pace, contenders)?;
        report.ratio(mode, &name, &quiet[1][0], ("kernel", &quiet[0][0]), Goal::AtMost(0.5));
        report.ratio(mode, &name, &quiet[1][0], ("listing /proc/PID/task", &quiet[2][0]), Goal::None);
        let contenders = vec![after_fork(reading(kernel.dir())), after_fork(reading(world.ours.dir()))];
        let forked = interleave(world.scale.pace, contenders)?;
        report.ratio(mode, &format!("{name}, a fork before each"), &forked[1][0], ("kernel", &forked[0][0]), Goal::None);
        Ok(())
    })
}

/// Names of the operations of [`operations`], in its order.
const OPERATIONS: [&str; 4] = ["write of a control file", "mkdir + rmdir", "move of one thread", "read of a small file"];

/// The operations whose cost must not depend on the number of groups.
fn operations<'a>(dir: &'a Path, tid: i32) -> io::Result<[Batch<'a, 1>; 4]> {
    let migrate = control(&dir.join("a"), "cpuset.memory_migrate")?;
    let paths = names(dir, 64);
    let mut next = (0..paths.len()).cycle();
    let (file, mut buffer) = (dir.join("a/cpuset.cpus"), vec![0; 4096]);
    let turnover = move || {
        let path = &paths[next.next().unwrap_or(0)];
        fs::create_dir(path)?;
        fs::remove_dir(path)
    };
    Ok([
        repeat(alternate(b"1", b"0", move |text| put(&migrate, text))),
        repeat(turnover),
        moves(dir, tid)?,
        repeat(move || cat(&file, &mut buffer).map(drop)),
    ])
}

/// Goals 7 and 8: cost and memory with many groups.
pub(crate) fn groups(world: &World, report: &mut Report) -> io::Result<()> {
    let count = world.scale.groups;
    let (few, many) = (Served::ours("cpuset")?, Served::ours("cpuset")?);
    let idle = many.resident()? as f64;
    for (server, groups) in [(&few, 8), (&many, count - 2)] {
        two_groups(server.dir())?;
        (0..groups).try_for_each(|i| fs::create_dir(server.dir().join(format!("g{i}"))))?;
    }
    let full = many.resident()? as f64;
    let (one, other) = (Target::new(2)?, Target::new(2)?);
    world.modes(&[&few, &many], |mode| {
        let contenders = operations(few.dir(), one.tids[1])?.into_iter().zip(operations(many.dir(), other.tids[1])?);
        for ((with_few, with_many), name) in contenders.zip(OPERATIONS) {
            let results = interleave(world.scale.pace, vec![with_few, with_many])?;
            let [few, many]: [&Samples; 2] = [&results[0][0], &results[1][0]];
            report.ratio(mode, &format!("{name}, {count} groups"), many, ("10 groups", few), Goal::AtMost(1.2));
        }
        Ok(())
    })?;
    report.size("resident when idle", idle, Some(20.0 * 1_048_576.0));
    report.size(&format!("a group (of {count})"), (full - idle) / count as f64, Some(2048.0));
    for i in 0..count - 2 {
        fs::read(many.dir().join(format!("g{i}/cpuset.cpus")))?;
    }
    let looked_at = many.resident()? as f64;
    report.size("a group whose cpuset.cpus has been read", (looked_at - idle) / count as f64, None);
    // `there_and_back` keeps the groups it makes until it removes them all: what is left then?
    let _ = there_and_back(|_| Ok(()), |i| fs::remove_dir(many.dir().join(format!("g{i}"))))(count - 2)?;
    report.size("resident after removing them all", many.resident()? as f64, None);
    Ok(())
}
