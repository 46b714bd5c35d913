//! The release agent runs once for each emptying, whoever looks or not.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::family::binary;
use super::side::{BPF, Config, NETLINK, PERF, SCAN, Side, test_name};
use crate::common::{TempDir, wait_until, write};
use crate::storm::{Random, Storm, report, rounds};

/// Where the agent is and what it has noted.
struct Notes(TempDir);

impl Notes {
    fn new() -> Notes {
        let notes = Notes(TempDir::new());
        fs::copy(binary(), notes.agent()).expect("an agent");
        fs::set_permissions(notes.agent(), fs::Permissions::from_mode(0o755)).expect("chmod");
        notes
    }

    fn agent(&self) -> PathBuf {
        self.0.path().join("agent")
    }

    fn runs(&self) -> HashMap<String, usize> {
        let mut runs = HashMap::new();
        let text = fs::read_to_string(self.0.path().join("log")).unwrap_or_default();
        text.lines().for_each(|line| *runs.entry(line.to_owned()).or_default() += 1);
        runs
    }
}

/// Groups that are emptied and filled again; between emptyings nobody reads anything of theirs.
fn once_per_emptying(config: Config, emptyings: usize) {
    let notes = Notes::new();
    let Some(side) = Side::with_options(config, &format!("release_agent={}", notes.agent().display())) else { return };
    side.write("notify_on_release", "1").expect("notify");
    let mut random = Random::new();
    // One that always has members, though children and threads of them come and go: the load.
    side.group("kept", "0-1");
    let mut keeper = Storm::new('m', 2, 3);
    side.write("kept/cgroup.procs", &keeper.pid().to_string()).expect("attach");
    keeper.go();
    let names: Vec<_> = (0..16).map(|i| format!("g{i}")).collect();
    names.iter().for_each(|name| side.group(name, "0-1"));
    // Some of the groups have a child: of the two only the lower one can be emptied.
    side.group("g0/below", "0-1");
    let mut storm = Storm::new('n', 0, 1);
    let rounds = emptyings.div_ceil(names.len());
    for round in 1..=rounds {
        let tids = storm.spawn(names.len());
        for (child, name) in tids.chunks(4).zip(&names) {
            let into = if name == "g0" { "g0/below" } else { name };
            let dir = side.dir().join(into);
            // The first thread, another one, or all.
            match random.below(3) {
                0 => write(dir.join("tasks"), child[0].to_string()),
                1 => write(dir.join("tasks"), child[3].to_string()),
                _ => write(dir.join("cgroup.procs"), child[0].to_string()),
            }
            .expect("attach");
        }
        // One is emptied by a move, all others by deaths.
        let leaves = 1 + random.below(names.len() - 1);
        let members = side.ids(&format!("{}/tasks", names[leaves]));
        members.iter().for_each(|tid| _ = side.write("kept/tasks", &tid.to_string()).expect("attach"));
        storm.cull();
        let done = |n: Option<&usize>| n.copied().unwrap_or(0) >= round;
        wait_until(&format!("the agent has run in round {round}"), || {
            let runs = notes.runs();
            names.iter().all(|name| done(runs.get(&format!("/{}", if name == "g0" { "g0/below" } else { name }))))
        });
    }
    let births = keeper.stop();
    // Were there more than there must be, they would come before this one.
    side.group("last", "0-1");
    let mut last = Storm::new('n', 0, 1);
    let child = last.spawn(1)[0];
    side.write("last/cgroup.procs", &child.to_string()).expect("attach");
    last.cull();
    wait_until("the last run", || notes.runs().contains_key("/last"));
    let mut runs = notes.runs();
    report(
        &test_name(),
        &format!("emptyings={} runs={} births={births} {}", rounds * names.len() + 1, runs.values().sum::<usize>(), side.doubts()),
    );
    assert_eq!(runs.remove("/last"), Some(1));
    let wrong: Vec<_> = runs.iter().filter(|(_, n)| **n != rounds).collect();
    assert!(wrong.is_empty() && runs.len() == names.len(), "{rounds} rounds: {wrong:?}");
}

#[test]
fn agent_bpf() {
    once_per_emptying(BPF, rounds(6_000));
}

#[test]
fn agent_perf() {
    once_per_emptying(PERF, rounds(500));
}

#[test]
fn agent_netlink() {
    once_per_emptying(NETLINK, rounds(500));
}

#[test]
fn agent_scan() {
    once_per_emptying(SCAN, rounds(200));
}
