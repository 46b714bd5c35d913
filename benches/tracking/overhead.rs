//! What tracking costs those who are tracked, and the server.

use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

use crate::Run;
use crate::raw;
use crate::report::Time;
use crate::roles::{Job, Worker};
use crate::server::{BackEnd, Server, beat};
use crate::stage::Stage;
use crate::table::{Row, Sorted, Tables};

/// The group of the members.
const GROUP: &str = "m";

/// Time for what the kernel does after a server has come or gone.
const SETTLE: Duration = Duration::from_millis(30);

/// What forty jobs of a small make(1) do, and what a shell does instead where there is none.
const MAKEFILE: &str = "JOBS := $(addprefix j,0 1 2 3 4 5 6 7 8 9)\nJOBS := $(JOBS) $(addprefix 1,$(JOBS)) $(addprefix 2,$(JOBS)) $(addprefix 3,$(JOBS))\n\
                        all: $(JOBS)\n$(JOBS): ; @/bin/true; /bin/true; /bin/true\n";
const SCRIPT: &str = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do\n\
                      for j in 1 2; do (/bin/true; /bin/true; /bin/true) & done; wait\ndone\n";

/// What is limited.
#[derive(Clone, Copy)]
enum Goal {
    AtMost(f64),
    NotMeasurable,
}

/// The loads, and what of them may cost how much.
const LOADS: [(Job, &str, Goal); 3] = [
    (Job::Fork, "fork + exit + wait", Goal::AtMost(1.03)),
    (Job::Thread, "thread create + join", Goal::AtMost(1.08)),
    (Job::Make, "make -j2, 40 jobs", Goal::NotMeasurable),
];

/// Where worker and server may run: the mask, the same as a list.
const MODES: [(&str, u64, &str); 2] = [("one CPU", 0b10, "1"), ("two CPUs", 0b11, "0-1")];

/// One worker, in turn a member of a group and nobody's while there is no server.
struct Contest<'a> {
    stage: &'a Stage,
    /// None: there is never a server.
    back_end: Option<BackEnd>,
    mask: u64,
    cpus: &'a str,
    worker: Worker,
    server: Option<Server>,
}

impl Contest<'_> {
    /// Makes the worker a member, or ends the server.
    fn be(&mut self, member: bool) -> io::Result<()> {
        match self.back_end {
            Some(back_end) if member && self.server.is_none() => {
                let server = Server::new(back_end, self.stage, "")?;
                server.group(GROUP, self.cpus)?;
                server.enter(GROUP, self.worker.pid())?;
                self.server = Some(server);
            }
            _ if !member => {
                self.server = None;
                // As the server does; only then has it been asked for, which makes forks dearer.
                raw::set_mask(self.worker.pid(), self.mask)?;
            }
            _ => {}
        }
        thread::sleep(SETTLE);
        Ok(())
    }

    /// The time that a block takes.
    fn block(&mut self, member: bool, job: Job, times: usize) -> io::Result<f64> {
        beat();
        self.be(member)?;
        self.worker.run(job, times / 10 + 1)?;
        Ok(self.worker.run(job, times)?.as_secs_f64() * 1e9 / times as f64)
    }
}

/// The ratios of the members' loops to those of nobody's members.
pub(crate) fn overhead(run: &Run, tables: &mut Tables) -> io::Result<()> {
    let stage = &run.stage;
    fs::write(stage.path("load.mk"), MAKEFILE)?;
    fs::write(stage.path("load.sh"), SCRIPT)?;
    for (mode, mask, cpus) in MODES {
        raw::set_mask(0, mask)?;
        for (job, name, goal) in LOADS {
            for back_end in [None].into_iter().chain(run.back_ends.iter().copied().map(Some)) {
                let title = back_end.map_or("no server against no server: the noise".into(), |b| b.to_string());
                let uid = back_end.and_then(|b| b.uid(stage));
                let worker = Worker::new(&stage.program(), uid, &stage.path(""))?;
                let mut contest = Contest { stage, back_end, mask, cpus, worker, server: None };
                match compare(run, &mut contest, job) {
                    Ok(blocks) => tables.push(&title, row(&format!("{name}, {mode}"), &blocks, back_end.map(|_| goal))),
                    Err(e) => tables.remark(format!("{title}: {name}: not measured: {e}")),
                }
                if let Some(server) = &contest.server
                    && let Err(e) = server.check(GROUP, contest.worker.pid())
                {
                    tables.remark(format!("{title}: {name}: the figures are void: {e}"));
                }
            }
        }
    }
    Ok(())
}

/// Nanoseconds per operation: as member, not, not, as member.
fn compare(run: &Run, contest: &mut Contest<'_>, job: Job) -> io::Result<Vec<[f64; 4]>> {
    contest.be(false)?;
    contest.worker.run(job, 1)?;
    let times = contest.worker.calibrate(job, run.scale.block)?;
    (0..run.scale.quads)
        .map(|_| {
            let mut quad = [0.0; 4];
            for (time, member) in quad.iter_mut().zip([true, false, false, true]) {
                *time = contest.block(member, job, times)?;
            }
            Ok(quad)
        })
        .collect()
}

fn row(what: &str, quads: &[[f64; 4]], goal: Option<Goal>) -> Row {
    let median = |of: fn(&[f64; 4]) -> f64| Sorted::new(quads.iter().map(of).collect()).median();
    let ratios = Sorted::new(quads.iter().map(|[a, b, c, d]| (a + d) / (b + c)).collect());
    let (ratio, (low, high)) = (ratios.median(), ratios.confidence());
    let row = Row {
        what: what.into(),
        floor: Time(median(|[_, b, c, _]| f64::midpoint(*b, *c))).to_string(),
        ours: Time(median(|[a, _, _, d]| f64::midpoint(*a, *d))).to_string(),
        ratio: format!("{ratio:.3} [{low:.3}..{high:.3}]"),
        goal: None,
    };
    match goal {
        Some(Goal::AtMost(most)) => row.goal(format!("≤ {most:.2}"), ratio <= most),
        Some(Goal::NotMeasurable) => row.goal("1 not excluded", low <= 1.0),
        None => row,
    }
}

/// The CPU time of the server while members fork and nobody reads; what it does up to a second and a half later counts as well.
pub(crate) fn cpu(run: &Run, tables: &mut Tables) -> io::Result<()> {
    for back_end in &run.back_ends {
        let server = Server::new(*back_end, &run.stage, "")?;
        let mut worker = Worker::new(&run.stage.program(), back_end.uid(&run.stage), &run.stage.path(""))?;
        server.group(GROUP, "0-1")?;
        server.enter(GROUP, worker.pid())?;
        for (job, name) in [(Job::Fork, "forks"), (Job::Thread, "threads created")] {
            // What follows a move has passed.
            thread::sleep(Duration::from_millis(1500));
            let times = worker.calibrate(job, run.scale.block * 10)?.max(1000);
            thread::sleep(Duration::from_millis(1500));
            let before = server.cpu()?;
            let time = worker.run(job, times)?;
            thread::sleep(Duration::from_millis(1500));
            let spent = (server.cpu()? - before).as_secs_f64() * 1e9;
            let what = format!("CPU time of the server per 1,000 {name}, of {times} in {:.1} s", time.as_secs_f64());
            tables.push(back_end, Row::figure(&what, Time(spent * 1000.0 / times as f64)));
        }
        server.check(GROUP, worker.pid())?;
        tables.remark(format!("{back_end}: after the forks and threads of one member: {}", server.stats()));
    }
    Ok(())
}
