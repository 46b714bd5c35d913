//! Everything that is measured against each other, side by side.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::children::{KernelGroup, Served};
use crate::measure::{Batch, Pace};
use crate::nullfs::Serving;
use crate::raw;
use crate::report::{Mode, Report};

/// The masks of the two groups `a` and `b` of every contender.
pub(crate) const MASK_A: u64 = 0b11;
pub(crate) const MASK_B: u64 = 0b01;

/// How big the run is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) pace: Pace,
    /// Threads of the processes that are moved and re-pinned.
    pub(crate) threads: [usize; 2],
    /// Groups of the server that has many.
    pub(crate) groups: usize,
}

impl Scale {
    /// The figures the goals speak of; under four minutes.
    pub(crate) const FULL: Self = Self {
        pace: Pace { budget: Duration::from_millis(2500), batch: Duration::from_millis(5) },
        threads: [1000, 10_000],
        groups: 10_000,
    };

    /// Shows that everything runs; under twenty seconds.
    pub(crate) const QUICK: Self =
        Self { pace: Pace { budget: Duration::from_millis(120), batch: Duration::from_millis(1) }, threads: [100, 1000], groups: 1000 };
}

/// The contenders.
pub(crate) struct World {
    pub(crate) null: Served,
    /// Without ATOMIC_O_TRUNC: it gets a SETATTR for every `echo`.
    pub(crate) null_setattr: Served,
    /// The same with extended attributes.
    pub(crate) null_xattr: Served,
    pub(crate) ours: Served,
    /// Ours without extended attributes.
    pub(crate) ours_noxattr: Served,
    pub(crate) kernel: Option<KernelGroup>,
    pub(crate) scale: Scale,
    all: u64,
    one: u64,
}

impl World {
    /// Starts them all; the CPUs we may use must include 0 and 1.
    pub(crate) fn new(scale: Scale, serving: Serving, report: &mut Report) -> io::Result<Self> {
        let all = raw::mask(0)?;
        if all & MASK_A != MASK_A {
            return Err(io::Error::other("CPUs 0 and 1 are needed"));
        }
        let kernel = KernelGroup::new().map_err(|why| report.remark(format!("skipped: the kernel's figures: {why}"))).ok();
        let world = Self {
            null: Served::null(Serving { atomic_o_trunc: true, ..serving })?,
            null_setattr: Served::null(Serving { atomic_o_trunc: false, ..serving })?,
            null_xattr: Served::null(Serving { atomic_o_trunc: false, xattr: true, ..serving })?,
            ours: Served::ours("cpuset")?,
            ours_noxattr: Served::ours("cpuset,noxattr")?,
            kernel,
            scale,
            all,
            // CPU 0 is where most machines handle their interrupts.
            one: 0b10,
        };
        let kernel = world.kernel.as_ref().map(|k| k.dir());
        for dir in [world.null.dir(), world.null_setattr.dir(), world.null_xattr.dir(), world.ours.dir(), world.ours_noxattr.dir()]
            .into_iter()
            .chain(kernel)
        {
            two_groups(dir)?;
        }
        Ok(world)
    }

    /// Runs `measure` with everybody on one CPU, then without bounds.
    pub(crate) fn modes(&self, others: &[&Served], mut measure: impl FnMut(Mode) -> io::Result<()>) -> io::Result<()> {
        let servers =
            || [&self.null, &self.null_setattr, &self.null_xattr, &self.ours, &self.ours_noxattr].into_iter().chain(others.iter().copied());
        for (mode, mask) in [(Mode::Pinned, self.one), (Mode::Unpinned, self.all)] {
            raw::set_mask(0, mask)?;
            servers().try_for_each(|server| server.confine(mask))?;
            measure(mode)?;
        }
        Ok(())
    }
}

/// Makes the groups `a` (CPUs 0-1) and `b` (CPU 0).
pub(crate) fn two_groups(dir: &Path) -> io::Result<()> {
    for (group, cpus) in [("a", "0-1"), ("b", "0")] {
        let group = dir.join(group);
        fs::create_dir(&group)?;
        put(&control(&group, "cpuset.cpus")?, cpus.as_bytes())?;
        put(&control(&group, "cpuset.mems")?, b"0")?;
    }
    Ok(())
}

/// A control file held open for writing.
pub(crate) fn control(group: &Path, file: &str) -> io::Result<File> {
    OpenOptions::new().write(true).open(group.join(file))
}

/// One command to a control file.
pub(crate) fn put(mut file: &File, text: &[u8]) -> io::Result<()> {
    match file.write(text)? {
        n if n == text.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// What `cat` does; the number of bytes.
pub(crate) fn cat(file: &Path, buffer: &mut [u8]) -> io::Result<usize> {
    let mut file = File::open(file)?;
    let mut total = 0;
    loop {
        match file.read(buffer)? {
            0 => return Ok(total),
            n => total += n,
        }
    }
}

/// Calls `to` with the two arguments in turn.
pub(crate) fn alternate<T: Copy>(first: T, second: T, mut to: impl FnMut(T) -> io::Result<()>) -> impl FnMut() -> io::Result<()> {
    let mut turn = false;
    move || {
        turn = !turn;
        to(if turn { first } else { second })
    }
}

/// `N` paths made beforehand, so that formatting is not measured.
pub(crate) fn names(dir: &Path, count: usize) -> Vec<PathBuf> {
    (0..count).map(|i| dir.join(format!("n{i}"))).collect()
}

/// Has a process born elsewhere before each operation, in time not counted.
pub(crate) fn after_fork<'a>(mut batch: Batch<'a, 1>) -> Batch<'a, 1> {
    Box::new(move |n| {
        let mut total = Duration::ZERO;
        for _ in 0..n {
            Command::new("/bin/true").status()?;
            let [time] = batch(1)?;
            total += time;
        }
        Ok([total])
    })
}
