//! The goals, one function each: what a single operation costs.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::children::Target;
use crate::measure::{Batch, interleave, repeat, there_and_back};
use crate::raw;
use crate::report::{Goal, Report};
use crate::world::{MASK_A, MASK_B, World, after_fork, alternate, control, names, put};

/// Directories made in a row at most; a batch is not larger.
const NAMES: usize = 2000;

/// Writes of one byte to a file held open.
fn writes<'a>(group: &Path, file: &str) -> io::Result<Batch<'a, 1>> {
    let file = control(group, file)?;
    Ok(repeat(alternate(b"1", b"0", move |text| put(&file, text))))
}

/// Goal 1: a write costs what FUSE costs.
pub(crate) fn write(world: &World, report: &mut Report) -> io::Result<()> {
    world.modes(&[], |mode| {
        let mut contenders = vec![
            writes(&world.null.dir().join("a"), "cpuset.memory_migrate")?,
            writes(&world.ours.dir().join("a"), "cpuset.memory_migrate")?,
        ];
        if let Some(kernel) = &world.kernel {
            contenders.push(writes(&kernel.dir().join("a"), "cpuset.memory_migrate")?);
        }
        let results = interleave(world.scale.pace, contenders)?;
        let name = "write of a control file";
        report.ratio(mode, name, &results[1][0], ("null", &results[0][0]), Goal::AtMost(1.10));
        if let Some([kernel]) = results.get(2) {
            report.ratio(mode, name, &results[1][0], ("kernel", kernel), Goal::None);
        }
        Ok(())
    })
}

/// What a shell's `echo 1 > file` does.
fn echoes<'a>(group: &Path, file: &str) -> Batch<'a, 1> {
    let path = group.join(file);
    repeat(alternate(b"1\n", b"0\n", move |text| {
        let file = OpenOptions::new().write(true).custom_flags(libc::O_TRUNC).open(&path)?;
        put(&file, text)
    }))
}

/// Goal 2: an `echo` saves a round trip against a file system that has not thought of it.
pub(crate) fn echo(world: &World, report: &mut Report) -> io::Result<()> {
    world.modes(&[], |mode| {
        let dirs =
            [world.null_setattr.dir(), world.null_xattr.dir(), world.null.dir(), world.ours.dir(), world.ours_noxattr.dir()].into_iter();
        let dirs = dirs.chain(world.kernel.as_ref().map(|k| k.dir()));
        let contenders: Vec<_> = dirs.map(|dir| echoes(&dir.join("a"), "notify_on_release")).collect();
        let results = interleave(world.scale.pace, contenders)?;
        let (name, ours) = ("echo (open, write, close)", &results[3][0]);
        report.ratio(mode, name, ours, ("null without ATOMIC_O_TRUNC", &results[0][0]), Goal::AtMost(0.8));
        report.ratio(mode, name, ours, ("null with xattrs, without ATOMIC_O_TRUNC", &results[1][0]), Goal::None);
        report.ratio(mode, name, ours, ("null", &results[2][0]), Goal::None);
        let noxattr = format!("{name}, option noxattr");
        report.ratio(mode, &noxattr, &results[4][0], ("null without ATOMIC_O_TRUNC", &results[0][0]), Goal::AtMost(0.8));
        report.ratio(mode, &noxattr, &results[4][0], ("null", &results[2][0]), Goal::None);
        if let Some([kernel]) = results.get(5) {
            report.ratio(mode, name, ours, ("kernel", kernel), Goal::None);
        }
        Ok(())
    })
}

fn directories<'a>(dir: &Path) -> Batch<'a, 2> {
    let making = names(dir, NAMES);
    let removing = making.clone();
    there_and_back(move |i| fs::create_dir(&making[i]), move |i| fs::remove_dir(&removing[i]))
}

/// Goal 3: making and removing a group.
pub(crate) fn mkdir(world: &World, report: &mut Report) -> io::Result<()> {
    world.modes(&[], |mode| {
        let dirs = [world.null.dir(), world.ours.dir()].into_iter();
        let dirs = dirs.chain(world.kernel.as_ref().map(|k| k.dir()));
        let contenders: Vec<_> = dirs.map(directories).collect();
        let results = interleave(world.scale.pace, contenders)?;
        for (phase, name) in ["mkdir", "rmdir"].into_iter().enumerate() {
            let ours = &results[1][phase];
            report.ratio(mode, name, ours, ("null", &results[0][phase]), Goal::AtMost(1.15));
            if let Some(kernel) = results.get(2) {
                report.ratio(mode, name, ours, ("kernel", &kernel[phase]), Goal::Below);
            }
        }
        Ok(())
    })
}

/// Moves of the thread `tid` between the groups `a` and `b` of `dir`, both `tasks` files held open.
pub(crate) fn moves<'a>(dir: &Path, tid: i32) -> io::Result<Batch<'a, 1>> {
    let (a, b) = (control(&dir.join("a"), "tasks")?, control(&dir.join("b"), "tasks")?);
    let text = tid.to_string();
    put(&a, text.as_bytes())?;
    Ok(repeat(alternate(true, false, move |to_b| put(if to_b { &b } else { &a }, text.as_bytes()))))
}

/// What a move stands for: a round trip and the system calls.
fn bare_moves<'a>(null: &Path, tid: i32, look_first: bool) -> io::Result<Batch<'a, 1>> {
    let file = control(&null.join("a"), "tasks")?;
    let text = tid.to_string();
    Ok(repeat(alternate(MASK_B, MASK_A, move |mask| {
        put(&file, text.as_bytes())?;
        if look_first {
            raw::mask(tid)?;
        }
        raw::set_mask(tid, mask)
    })))
}

/// Goal 4: moving one thread.
pub(crate) fn move_one(world: &World, report: &mut Report) -> io::Result<()> {
    let (bare, ours, kernels) = (Target::new(2)?, Target::new(2)?, Target::new(2)?);
    world.modes(&[], |mode| {
        let mut contenders = vec![
            bare_moves(world.null.dir(), bare.tids[1], false)?,
            bare_moves(world.null.dir(), bare.tids[1], true)?,
            moves(world.ours.dir(), ours.tids[1])?,
        ];
        if let Some(kernel) = &world.kernel {
            contenders.push(moves(kernel.dir(), kernels.tids[1])?);
        }
        let results = interleave(world.scale.pace, contenders)?;
        let (name, mine) = ("move of one thread", &results[2][0]);
        report.ratio(mode, name, mine, ("null write + setaffinity", &results[0][0]), Goal::AtMost(1.2));
        report.ratio(mode, name, mine, ("null write + getaffinity + setaffinity", &results[1][0]), Goal::None);
        if let Some([kernel]) = results.get(3) {
            report.ratio(mode, name, mine, ("kernel", kernel), Goal::None);
        }
        let bare = bare_moves(world.null.dir(), bare.tids[1], true)?;
        let contenders = vec![after_fork(bare), after_fork(moves(world.ours.dir(), ours.tids[1])?)];
        let forked = interleave(world.scale.pace, contenders)?;
        let floor = ("null write + getaffinity + setaffinity", &forked[0][0]);
        report.ratio(mode, &format!("{name}, a fork before each"), &forked[1][0], floor, Goal::None);
        put(&control(&world.ours.dir().join("b"), "tasks")?, ours.tids[1].to_string().as_bytes())?;
        if raw::mask(ours.tids[1])? != MASK_B {
            report.remark(format!("{name}: it had no effect, its figures are void"));
        }
        Ok(())
    })
}
