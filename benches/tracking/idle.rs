//! How often a server wakes up that has nothing to do.

use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

use crate::Run;
use crate::roles::Worker;
use crate::server::{BackEnd, Server, beat};
use crate::table::{Row, Tables};

/// What follows any change has passed then.
const SETTLE: Duration = Duration::from_millis(2500);

/// The server of each back end, with more options.
fn servers(run: &Run, options: &str) -> io::Result<Vec<(BackEnd, Server)>> {
    run.back_ends.iter().map(|b| Ok((*b, Server::new(*b, &run.stage, options)?))).collect()
}

/// Gives each server two groups, and then, if `watch` agrees, a member that does nothing.
fn populate(run: &Run, servers: &[(BackEnd, Server)], watch: impl FnOnce() -> io::Result<()>) -> io::Result<Vec<Worker>> {
    for (_, server) in servers {
        server.group("a", "0-1")?;
        server.group("b", "0")?;
    }
    watch()?;
    let mut workers = Vec::new();
    for (back_end, server) in servers {
        let worker = Worker::new(&run.stage.program(), back_end.uid(&run.stage), &run.stage.path(""))?;
        server.enter("a", worker.pid())?;
        workers.push(worker);
    }
    Ok(workers)
}

/// All servers at once: they do not concern each other.
pub(crate) fn idle(run: &Run, tables: &mut Tables) -> io::Result<()> {
    let plain = servers(run, "")?;
    watch(run, &plain, "no groups", Some(0.0), tables)?;
    let workers = populate(run, &plain, || watch(run, &plain, "groups without members", Some(0.0), tables))?;
    watch(run, &plain, "a member that does nothing", Some(1.0), tables)?;
    for ((_, server), worker) in plain.iter().zip(&workers) {
        server.check("a", worker.pid())?;
    }
    drop((plain, workers));
    let with_agent = servers(run, ",release_agent=/bin/true")?;
    let _workers = populate(run, &with_agent, || Ok(()))?;
    with_agent.iter().try_for_each(|(_, server)| fs::write(server.path("a/notify_on_release"), "1"))?;
    watch(run, &with_agent, "the same with a release agent", None, tables)?;
    // Nobody has to be told that the workers end.
    with_agent.iter().try_for_each(|(_, server)| fs::write(server.path("a/notify_on_release"), "0"))
}

fn watch(run: &Run, servers: &[(BackEnd, Server)], state: &str, goal: Option<f64>, tables: &mut Tables) -> io::Result<()> {
    beat();
    thread::sleep(SETTLE);
    let look = || servers.iter().map(|(_, s)| Ok((s.sleeps()?, s.cpu()?))).collect::<io::Result<Vec<_>>>();
    let before = look()?;
    thread::sleep(run.scale.idle);
    let seconds = run.scale.idle.as_secs_f64();
    for (((back_end, _), before), after) in servers.iter().zip(before).zip(look()?) {
        let earlier = |name: &str| before.0.iter().find(|(n, _)| n == name).map_or(0, |(_, count)| *count);
        let woken = after.0.iter().map(|(name, n)| (name.as_str(), n.saturating_sub(earlier(name)))).filter(|(_, n)| *n > 0);
        // Whatever device comes or goes, and each mount brings one, is told to all who follow CPUs.
        let (devices, woken): (Vec<_>, Vec<_>) = woken.partition(|(name, _)| name.starts_with("hotplug "));
        let count: u64 = woken.iter().map(|(_, n)| n).sum();
        let (rate, cpu) = (count as f64 / seconds, (after.1 - before.1).as_secs_f64() * 1e6 / seconds);
        let row = Row::figure(&format!("wake-ups of an idle server: {state}"), format!("{rate:.1}/s, {cpu:.0} µs of CPU time a second"));
        // The window may hold one look more than its seconds.
        let hit = goal.is_some_and(|goal| count as f64 <= goal * seconds + if goal > 0.0 { 1.0 } else { 0.0 });
        if goal.is_some() && !hit {
            tables.remark(format!("{back_end}: {state}: woken in {seconds} s: {woken:?}"));
        }
        if !devices.is_empty() {
            tables.remark(format!("{back_end}: {state}: not counted are the kernel's device events for others: {devices:?}"));
        }
        tables.push(
            back_end,
            match goal {
                Some(goal) => row.goal(format!("{goal}/s"), hit),
                None => row,
            },
        );
    }
    Ok(())
}
