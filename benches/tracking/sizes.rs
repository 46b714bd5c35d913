//! Reading large groups and moving large processes, by back end.

use std::io;

use crate::Run;
use crate::children::{KernelGroup, Target};
use crate::many::{moving_by_calls, moving_by_file, reading};
use crate::measure::{Ratio, Samples, interleave};
use crate::raw;
use crate::report::Time;
use crate::server::{Server, beat};
use crate::table::{Row, Tables};
use crate::world::{MASK_A, control, put, two_groups};

fn row(what: &str, (name, floor): (&str, &Samples), ours: &Samples, most: Option<f64>) -> Row {
    let Ratio { median, min, max } = ours.over(floor);
    let row = Row {
        what: what.into(),
        floor: format!("{name}: {}", Time(floor.median())),
        ours: Time(ours.median()).to_string(),
        ratio: format!("{median:.2} [{min:.2}..{max:.2}]"),
        goal: None,
    };
    most.into_iter().fold(row, |row, most| row.goal(format!("≤ {most:.2}"), median <= most))
}

/// CPU 0 is where most machines handle their interrupts.
const ONE: u64 = 0b10;

/// Everybody on one CPU.
pub(crate) fn sizes(run: &Run, tables: &mut Tables) -> io::Result<()> {
    let all = raw::mask(0)?;
    let kernel = KernelGroup::new().map_err(io::Error::other)?;
    two_groups(kernel.dir())?;
    for &count in run.scale.tasks {
        // What a thread starts with counts as its own wish.
        raw::set_mask(0, all)?;
        let (ours, others) = match Target::new(count).and_then(|ours| Ok((ours, Target::new(count)?))) {
            Ok(both) => both,
            Err(why) => {
                tables.remark(format!("skipped: {count} threads: {why}"));
                continue;
            }
        };
        put(&control(&kernel.dir().join("a"), "cgroup.procs")?, others.pid().to_string().as_bytes())?;
        for back_end in run.back_ends.iter().filter(|b| !b.user) {
            beat();
            // The server offers the CPUs that it starts with.
            raw::set_mask(0, all)?;
            let server = Server::new(*back_end, &run.stage, "")?;
            two_groups(server.dir())?;
            server.enter("a", ours.pid())?;
            server.confine(ONE)?;
            raw::set_mask(0, ONE)?;
            let read = interleave(run.scale.pace, vec![reading(kernel.dir()), reading(server.dir())])?;
            let goal = (count == 10_000).then_some(0.5);
            let what = format!("cat tasks of {count} tasks");
            tables.push(back_end, row(&what, ("kernel", &read[0][0]), &read[1][0], goal));
            let (members, expected) = (server.members("a")?.len(), ours.tids.len());
            if members != expected {
                tables.remark(format!("{back_end}: {what}: void, it lists {members}"));
            }
            if count == 100 {
                continue;
            }
            beat();
            let contenders = vec![moving_by_calls(others.pid(), false)?, moving_by_file(server.dir(), ours.pid())?];
            let moved = interleave(run.scale.pace, contenders)?;
            let what = format!("move of a process of {count} threads");
            let goal = (count >= 1000).then_some(1.15);
            tables.push(back_end, row(&what, ("raw calls", &moved[0][0]), &moved[1][0], goal));
            server.enter("a", ours.pid())?;
            let wrong = ours.tids.iter().filter(|tid| raw::mask(**tid).ok() != Some(MASK_A)).count();
            if wrong > 0 {
                tables.remark(format!("{back_end}: {what}: void, {wrong} have the wrong mask"));
            }
        }
    }
    Ok(())
}
