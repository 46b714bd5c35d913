//! How a server answers while a fork bomb burns in one of its groups.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::Run;
use crate::children::Served;
use crate::nullfs::Serving;
use crate::report::Time;
use crate::roles::Bomb;
use crate::server::{BackEnd, Server, beat};
use crate::table::{Row, Sorted, Tables};
use crate::world::{cat, put};

/// As many processes as the bomb may be.
const LIMIT: usize = 400;

/// It does not burn longer.
const LONGEST: Duration = Duration::from_secs(30);

/// What is asked of the server, by name; the directory is the hierarchy.
type Operation = fn(&Path) -> io::Result<()>;
const OPERATIONS: [(&str, Operation); 3] = [
    ("cat tasks", |dir| cat(&dir.join("b/tasks"), &mut [0; 65536]).map(drop)),
    ("echo", |dir| put(&OpenOptions::new().write(true).custom_flags(libc::O_TRUNC).open(dir.join("b/notify_on_release"))?, b"0\n")),
    ("mkdir", |dir| fs::create_dir(dir.join("new"))),
];

fn show(times: &Sorted) -> String {
    let [half, most, all] = [0.5, 0.99, 1.0].map(|share| Time(times.quantile(share)));
    format!("p50 {half}, p99 {most}, max {all}")
}

/// Each back end beside a bomb of its own.
pub(crate) fn bomb(run: &Run, tables: &mut Tables) -> io::Result<()> {
    for back_end in &run.back_ends {
        if let Err(e) = beside(run, *back_end, tables) {
            tables.remark(format!("{back_end}: fork bomb: not measured: {e}"));
        }
    }
    Ok(())
}

fn beside(run: &Run, back_end: BackEnd, tables: &mut Tables) -> io::Result<()> {
    let null = Served::null(Serving { threads: 1, clone_fd: false, atomic_o_trunc: true, xattr: true })?;
    fs::create_dir(null.dir().join("b"))?;
    let server = Server::new(back_end, &run.stage, "")?;
    server.group("b", "0-1")?;
    let mut bomb = Bomb::new(&run.stage.program(), run.stage.uid, LIMIT)?;
    server.enter("b", bomb.pid)?;
    bomb.light()?;
    thread::sleep(Duration::from_secs(1));
    let forks = || -> io::Result<u64> {
        let stat = fs::read_to_string("/proc/stat")?;
        Ok(stat.lines().find_map(|line| line.strip_prefix("processes ")?.parse().ok()).unwrap_or(0))
    };
    let (begin, before, cpu) = (Instant::now(), forks()?, server.cpu()?);
    let mut times: [[Vec<f64>; 2]; 3] = Default::default();
    while times[0][0].len() < run.scale.samples && begin.elapsed() < LONGEST {
        beat();
        for ((_, operation), times) in OPERATIONS.iter().zip(&mut times) {
            for (dir, times) in [null.dir(), server.dir()].into_iter().zip(times) {
                let start = Instant::now();
                operation(dir)?;
                times.push(start.elapsed().as_secs_f64() * 1e9);
            }
        }
        [null.dir(), server.dir()].into_iter().try_for_each(|dir| fs::remove_dir(dir.join("new")))?;
    }
    let (samples, seconds) = (times[0][0].len(), begin.elapsed().as_secs_f64());
    let (forks, cpu) = ((forks()? - before) as f64 / seconds, (server.cpu()? - cpu).as_secs_f64() / seconds);
    let members = server.members("b")?.len();
    for ((name, _), [null, ours]) in OPERATIONS.iter().zip(times.map(|both| both.map(Sorted::new))) {
        let hit = ours.quantile(0.99) < 50e6;
        let row = Row::figure(&format!("{name} beside a fork bomb, {samples} times"), show(&ours));
        tables.push(&back_end, Row { floor: format!("null: {}", show(&null)), ..row }.goal("p99 < 50 ms", hit));
    }
    tables.remark(format!(
        "{back_end}: the bomb: {members} members, {forks:.0} forks a second, {:.0} % of a CPU for the server; {}",
        cpu * 100.0,
        server.stats()
    ));
    drop(bomb);
    // The killed are members until they get a CPU to exit on.
    let end = Instant::now() + Duration::from_secs(10);
    let mut left = server.members("b")?;
    while !left.is_empty() && Instant::now() < end {
        thread::sleep(Duration::from_millis(10));
        left = server.members("b")?;
    }
    if !left.is_empty() {
        tables.remark(format!("{back_end}: {} members are left of the bomb: {left:?}", left.len()));
    }
    Ok(())
}
