//! A group's CPUs are changed while its members fork and make threads: all end up with the last ones.

use super::storm::{Random, Storm, astray, cannot_mount, cpus, group, report, rounds, settles};
use crate::common::{Mount, ids, write};

fn run(test: &str, kind: char, rounds: usize) {
    if cannot_mount(test) {
        return;
    }
    let (mount, mut random) = (Mount::new(), Random::new());
    let g = group(mount.dir(), "g", "0-1");
    let mut storm = Storm::new(kind, 4, 6);
    write(g.join("cgroup.procs"), storm.pid().to_string()).expect("attach");
    let (mut writes, mut births, mut late, mut wrong) = (0, 0, 0, Vec::new());
    for round in 0..rounds {
        if wrong.len() > 2 {
            break;
        }
        let mut now = "";
        storm.go();
        for _ in 0..1 + random.below(6) {
            now = ["0", "1", "0-1"][random.below(3)];
            write(g.join("cpuset.cpus"), now).expect("cpus");
            writes += 1;
        }
        births = storm.stop();
        let mut members = [storm.tids(), storm.births().iter().map(|b| b.id).collect()].concat();
        members.sort_unstable();
        members.dedup();
        late += astray(&members, &cpus(now)).len();
        // Every other round the server has to find the late ones by itself.
        if round % 2 == 0 && !settles(|| astray(&members, &cpus(now)).is_empty()) {
            wrong.push(format!("round {round}, {now}, nobody reads: {:?}", astray(&members, &cpus(now))));
        }
        let listed = ids(g.join("tasks"));
        if listed != members {
            let missing: Vec<_> = members.iter().filter(|tid| !listed.contains(tid)).collect();
            let strange: Vec<_> = listed.iter().filter(|tid| !members.contains(tid)).collect();
            wrong.push(format!("round {round}: {missing:?} are no members, {strange:?} are"));
        }
        // Nobody has asked for a mask of its own.
        if !settles(|| astray(&members, &cpus(now)).is_empty()) {
            wrong.push(format!("round {round}, {now}: {:?}", astray(&members, &cpus(now))));
        }
    }
    report(test, &format!("rounds={rounds} writes={writes} births={births} late={late} wrong={}", wrong.len()));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn under_a_storm_of_threads() {
    run("under_a_storm_of_threads", 't', rounds(50));
}

#[test]
fn under_a_storm_of_children() {
    run("under_a_storm_of_children", 'f', rounds(50));
}

#[test]
fn under_both_storms() {
    run("under_both_storms", 'm', rounds(50));
}
