//! Groups become empty while nobody looks: the agent runs for each, and never for one that has a member.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::storm::{Random, Storm, cannot_mount, group, report, rounds, settles};
use crate::common::{Mount, TempDir, is_root, skipped, write};

#[test]
fn the_agent_runs_for_each_empty_group() {
    const TEST: &str = "the_agent_runs_for_each_empty_group";
    if cannot_mount(TEST) {
        return;
    }
    if !is_root() {
        return skipped(TEST, "only root's mount runs the agent as root");
    }
    let (temp, mut random) = (TempDir::new(), Random::new());
    let (agent, log) = (temp.path().join("agent"), temp.path().join("log"));
    fs::write(&agent, format!("#!/bin/sh\necho \"$1\" >> {}\n", log.display())).expect("an agent");
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).expect("chmod");
    let mount = Mount::with_options(&format!("release_agent={}", agent.display()));
    write(mount.dir().join("notify_on_release"), "1").expect("notify");
    let runs = || {
        let mut runs: HashMap<String, usize> = HashMap::new();
        fs::read_to_string(&log).unwrap_or_default().lines().for_each(|line| *runs.entry(line.to_owned()).or_default() += 1);
        runs
    };
    // One that always has a member, though children and threads of it come and go.
    let kept = group(mount.dir(), "kept", "0-1");
    let mut keeper = Storm::new('m', 2, 3);
    write(kept.join("cgroup.procs"), keeper.pid().to_string()).expect("attach");
    let (rounds, mut emptied, mut anomalies) = (rounds(20), HashMap::<String, usize>::new(), Vec::new());
    for round in 0..rounds {
        keeper.go();
        let mut storm = Storm::new('n', 0, 1);
        let names: Vec<_> = (0..4).map(|i| format!("g{round}-{i}")).collect();
        for name in &names {
            group(mount.dir(), name, "0-1");
        }
        // Filled and emptied some times; the last time for good.
        for _ in 0..1 + random.below(3) {
            let tids = storm.spawn(names.len());
            for (child, name) in tids.chunks(4).zip(&names) {
                // One thread or the process.
                let file = ["tasks", "cgroup.procs"][random.below(2)];
                write(mount.dir().join(name).join(file), child[0].to_string()).expect("attach");
                *emptied.entry(format!("/{name}")).or_default() += 1;
            }
            if random.below(4) == 0 {
                let name = mount.dir().join(&names[0]).join("tasks");
                write(name, tids[0].to_string()).expect("attach");
            }
            storm.cull();
        }
        keeper.stop();
        if !settles(|| {
            let runs = runs();
            names.iter().all(|name| runs.contains_key(&format!("/{name}")))
        }) {
            let runs = runs();
            let missing: Vec<_> = names.iter().filter(|name| !runs.contains_key(&format!("/{name}"))).collect();
            anomalies.push(format!("round {round}: no run for {missing:?}"));
        }
        for name in &names {
            if let Err(error) = fs::remove_dir(mount.dir().join(name)) {
                anomalies.push(format!("round {round}: rmdir {name}: {error}"));
            }
        }
    }
    let runs = runs();
    if runs.contains_key("/kept") {
        anomalies.push("a run for a populated group".to_owned());
    }
    for (path, n) in &runs {
        let times = emptied.get(path).copied().unwrap_or(0);
        if *n > times {
            anomalies.push(format!("{n} runs for {path}, which became empty {times} times"));
        }
    }
    let (times, ran): (usize, usize) = (emptied.values().sum(), runs.values().sum());
    let births = keeper.stop();
    report(
        TEST,
        &format!("rounds={rounds} groups={} emptied={times} runs={ran} births={births} anomalies={}", emptied.len(), anomalies.len()),
    );
    assert!(anomalies.is_empty(), "{anomalies:#?}");
}
