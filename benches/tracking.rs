//! What keeping membership true costs, for each back end the machine allows.
//!
//! `cargo bench --bench tracking [-- [--quick] [NAME...]]`; a name is a case or a back end.
//!
//! Workloads run as members of a group, and as nobody's members while no server runs at all, in turn. It needs root and the
//! CPUs 0 and 1, asserts nothing, and prints the Markdown tables of doc/PERFORMANCE.md.

#[allow(dead_code)]
#[path = "ops/children.rs"]
mod children;
#[allow(dead_code)]
#[path = "ops/many.rs"]
mod many;
#[allow(dead_code)]
#[path = "ops/measure.rs"]
mod measure;
#[path = "ops/nullfs.rs"]
mod nullfs;
#[path = "ops/raw.rs"]
mod raw;
#[allow(dead_code)]
#[path = "ops/report.rs"]
mod report;
#[allow(dead_code)]
#[path = "ops/world.rs"]
mod world;
// `many` asks for it.
#[allow(dead_code)]
#[path = "ops/cases.rs"]
mod cases;

#[path = "tracking/bomb.rs"]
mod bomb;
#[path = "tracking/forks.rs"]
mod forks;
#[path = "tracking/idle.rs"]
mod idle;
#[path = "tracking/overhead.rs"]
mod overhead;
#[path = "tracking/release.rs"]
mod release;
#[path = "tracking/roles.rs"]
mod roles;
#[path = "tracking/server.rs"]
mod server;
#[path = "tracking/sizes.rs"]
mod sizes;
#[path = "tracking/stage.rs"]
mod stage;
#[path = "tracking/table.rs"]
mod table;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use measure::Pace;
use server::{BACK_ENDS, BackEnd};
use stage::Stage;
use table::Tables;

/// How big the run is.
#[derive(Clone, Copy, Debug)]
struct Scale {
    /// How often a workload runs as member, not as member, not, and as member again.
    quads: usize,
    /// How long a workload runs each time; long, since a server looks around every second.
    block: Duration,
    /// How long an idle server is watched.
    idle: Duration,
    /// How often the latency beside a fork bomb is taken, and for how long at most.
    samples: usize,
    /// How often a group becomes empty.
    releases: usize,
    /// Sizes of groups that are read, and of processes that are moved.
    tasks: &'static [usize],
    pace: Pace,
}

impl Scale {
    /// The figures that the goals speak of; some twenty minutes.
    const FULL: Self = Self {
        quads: 8,
        block: Duration::from_millis(350),
        idle: Duration::from_secs(10),
        samples: 500,
        releases: 150,
        tasks: &[1, 100, 1000, 10_000],
        pace: Pace { budget: Duration::from_millis(2000), batch: Duration::from_millis(5) },
    };

    /// Shows that everything runs; under two minutes.
    const QUICK: Self = Self {
        quads: 2,
        block: Duration::from_millis(20),
        idle: Duration::from_secs(2),
        samples: 20,
        releases: 10,
        tasks: &[1, 100, 1000],
        pace: Pace { budget: Duration::from_millis(100), batch: Duration::from_millis(1) },
    };
}

/// What a case needs.
struct Run {
    scale: Scale,
    stage: Stage,
    back_ends: Vec<BackEnd>,
}

type Case = fn(&Run, &mut Tables) -> io::Result<()>;

/// Everything there is to measure, by the name a filter takes.
const CASES: [(&str, Case); 6] = [
    ("overhead", overhead::overhead),
    ("cpu", overhead::cpu),
    ("idle", idle::idle),
    ("sizes", sizes::sizes),
    ("release", release::release),
    ("bomb", bomb::bomb),
];

fn run(arguments: &[String]) -> io::Result<()> {
    let (mut scale, mut names) = (Scale::FULL, Vec::new());
    for argument in arguments {
        match argument.as_str() {
            "--bench" => {} // cargo says so
            "--quick" => scale = Scale::QUICK,
            name if CASES.iter().any(|(case, _)| *case == name) || BACK_ENDS.iter().any(|b| b.tracker == name) => names.push(name),
            other => return Err(io::Error::other(format!("{other}: neither a case nor a back end"))),
        }
    }
    let all = raw::mask(0)?;
    if all & world::MASK_A != world::MASK_A {
        return Err(io::Error::other("CPUs 0 and 1 are needed"));
    }
    children::hide_mounts();
    server::watch();
    let mut tables = Tables::default();
    tables.remark(report::machine());
    tables.remark(format!("{scale:?}"));
    let stage = Stage::new()?;
    let named = |list: &[&str]| names.iter().any(|name| list.contains(name));
    let trackers = BACK_ENDS.map(|b| b.tracker);
    let wanted = BACK_ENDS.into_iter().filter(|b| !named(&trackers) || names.contains(&b.tracker));
    let back_ends = wanted.filter(|b| b.try_out(&stage).inspect_err(|why| tables.remark(format!("skipped: {b}: {why}"))).is_ok()).collect();
    let run = Run { scale, stage, back_ends };
    for (name, case) in CASES {
        let wanted = !named(&CASES.map(|(name, _)| name)) || names.contains(&name);
        if wanted && let Err(e) = case(&run, &mut tables) {
            tables.remark(format!("{name}: not measured: {e}"));
        }
        raw::set_mask(0, all)?;
    }
    tables.remark(format!("at the end: load {}", std::fs::read_to_string("/proc/loadavg")?.trim()));
    println!("{tables}");
    Ok(())
}

fn main() -> ExitCode {
    if let Some(code) = release::play_agent() {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = children::play_role(&arguments).or_else(|| roles::play(&arguments)).unwrap_or_else(|| run(&arguments));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("tracking: {e}");
            ExitCode::FAILURE
        }
    }
}
