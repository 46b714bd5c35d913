//! What an operation costs, as ratios to floors measured in the same run.
//!
//! `cargo bench --bench ops [-- [--quick] [--threads N] [--clone-fd] [NAME...]]`
//!
//! Floors: a null FUSE file system with the same tree (`null`), raw system calls, and the kernel's
//! own hierarchy where the machine has one. It needs root and the CPUs 0 and 1, asserts nothing,
//! and prints the Markdown tables of doc/PERFORMANCE.md.

#[path = "ops/cases.rs"]
mod cases;
#[path = "ops/children.rs"]
mod children;
#[path = "ops/many.rs"]
mod many;
#[path = "ops/measure.rs"]
mod measure;
#[path = "ops/nullfs.rs"]
mod nullfs;
#[path = "ops/raw.rs"]
mod raw;
#[path = "ops/report.rs"]
mod report;
#[path = "ops/world.rs"]
mod world;

use std::io;
use std::process::ExitCode;

use nullfs::Serving;
use report::Report;
use world::{Scale, World};

type Case = fn(&World, &mut Report) -> io::Result<()>;

/// Everything there is to measure, by the name a filter takes.
const CASES: [(&str, Case); 7] = [
    ("write", cases::write),
    ("echo", cases::echo),
    ("mkdir", cases::mkdir),
    ("move", cases::move_one),
    ("threads", many::threads),
    ("cat", many::cat_tasks),
    ("groups", many::groups),
];

struct Arguments {
    scale: Scale,
    serving: Serving,
    names: Vec<String>,
}

impl Arguments {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let quick = std::env::var_os("CGFUSE_BENCH_QUICK").is_some_and(|v| v == "1");
        let mut parsed = Self {
            scale: if quick { Scale::QUICK } else { Scale::FULL },
            serving: Serving { threads: 1, clone_fd: false, atomic_o_trunc: true, xattr: false },
            names: Vec::new(),
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bench" => {} // cargo says so
                "--quick" => parsed.scale = Scale::QUICK,
                "--clone-fd" => parsed.serving.clone_fd = true,
                "--threads" => {
                    let count = arguments.next().and_then(|n| n.parse().ok());
                    parsed.serving.threads = count.ok_or("--threads takes a number")?;
                }
                name if CASES.iter().any(|(case, _)| *case == name) => parsed.names.push(name.into()),
                other => return Err(format!("{other}: not one of {:?}", CASES.map(|(name, _)| name))),
            }
        }
        Ok(parsed)
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    children::hide_mounts();
    let mut report = Report::default();
    report.remark(report::machine());
    let Serving { threads, clone_fd, .. } = arguments.serving;
    report.remark(format!("null file systems: {threads} event loop thread(s), clone_fd {clone_fd}"));
    let world = World::new(arguments.scale, arguments.serving, &mut report)?;
    for (name, case) in CASES {
        let wanted = arguments.names.is_empty() || arguments.names.iter().any(|n| n == name);
        if wanted && let Err(e) = case(&world, &mut report) {
            report.remark(format!("{name}: not measured: {e}"));
        }
    }
    println!("{report}");
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = children::play_role(&arguments)
        .unwrap_or_else(|| Arguments::parse(&arguments).map_err(io::Error::other).and_then(|arguments| run(&arguments)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("ops: {e}");
            ExitCode::FAILURE
        }
    }
}
