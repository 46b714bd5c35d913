//! Whole processes are moved while their threads create and join threads: none is left behind.

use std::path::PathBuf;
use std::thread;

use super::storm::{Random, Storm, astray, cannot_mount, group, report, rounds, settles};
use crate::common::{Mount, ids, write};

/// What one mover has seen.
#[derive(Debug, Default)]
struct Seen {
    moves: usize,
    births: usize,
    /// Threads that had yet to get their CPUs when the storm had come to rest.
    late: usize,
    /// The same after somebody had read the lists.
    late_after_reading: usize,
    left_behind: Vec<String>,
    never: Vec<String>,
}

/// `places` are groups with their CPUs; the first is where the process begins.
fn mover(places: &[(PathBuf, Vec<usize>)], rounds: usize, mut random: Random) -> Seen {
    let mut seen = Seen::default();
    let mut storm = Storm::new('t', 4, 8);
    let (pid, mut at) = (storm.pid().to_string(), 0);
    write(places[0].0.join("cgroup.procs"), &pid).expect("attach");
    for round in 0..rounds {
        if seen.left_behind.len() + seen.never.len() > 2 {
            break;
        }
        storm.go();
        for _ in 0..=random.below(3) {
            at = (at + 1 + random.below(places.len() - 1)) % places.len();
            write(places[at].0.join("cgroup.procs"), &pid).expect("attach");
            seen.moves += 1;
        }
        seen.births = storm.stop();
        let (threads, here) = (storm.tids(), &places[at]);
        seen.late += astray(&threads, &here.1).len();
        // Every other round nobody looks before the server has to have set it right by itself.
        if round % 2 == 0 && !settles(|| astray(&threads, &here.1).is_empty()) {
            let wrong = astray(&threads, &here.1);
            seen.never.push(format!("round {round} in {}: {wrong:?}, nobody reads", here.0.display()));
        }
        let mut listed = ids(here.0.join("tasks"));
        listed.retain(|tid| threads.contains(tid));
        // A thread that has been joined may be seen a little longer.
        let now = storm.tids();
        let missing: Vec<_> = threads.iter().filter(|tid| !listed.contains(tid) && now.contains(tid)).collect();
        if !missing.is_empty() {
            seen.left_behind.push(format!("round {round}: {missing:?} not in {}", here.0.display()));
        }
        for (other, _) in places.iter().filter(|place| place.0 != here.0) {
            let left: Vec<_> = ids(other.join("tasks")).into_iter().filter(|tid| threads.contains(tid)).collect();
            if !left.is_empty() {
                seen.left_behind.push(format!("round {round}: {left:?} in {}", other.display()));
            }
        }
        seen.late_after_reading += astray(&threads, &here.1).len();
        if !settles(|| astray(&threads, &here.1).is_empty()) {
            let wrong = astray(&threads, &here.1);
            seen.never.push(format!("round {round} in {}: {wrong:?}", here.0.display()));
        }
    }
    seen
}

fn judge(test: &str, seen: &Seen) {
    let Seen { moves, births, late, late_after_reading, left_behind, never } = seen;
    let figures = format!("moves={moves} births={births} late={late} late_after_reading={late_after_reading}");
    report(test, &format!("{figures} left_behind={} never={}", left_behind.len(), never.len()));
    assert!(left_behind.is_empty() && never.is_empty(), "{test}: {left_behind:#?} {never:#?}");
}

#[test]
fn between_two_groups() {
    if cannot_mount("between_two_groups") {
        return;
    }
    let mount = Mount::new();
    let places = [("a", 0), ("b", 1)].map(|(name, cpu)| (group(mount.dir(), name, &cpu.to_string()), vec![cpu]));
    let seen = mover(&places, rounds(60), Random::new());
    judge("between_two_groups", &seen);
}

/// In the root nobody is a member, so that late threads must be found differently.
#[test]
fn to_the_root_and_back() {
    if cannot_mount("to_the_root_and_back") {
        return;
    }
    let mount = Mount::new();
    let places = [(mount.dir().to_owned(), vec![0, 1]), (group(mount.dir(), "a", "0"), vec![0]), (group(mount.dir(), "b", "1"), vec![1])];
    let seen = mover(&places, rounds(40), Random::new());
    judge("to_the_root_and_back", &seen);
}

#[test]
fn two_movers_at_once() {
    if cannot_mount("two_movers_at_once") {
        return;
    }
    let mount = Mount::new();
    let places = [("a", 0), ("b", 1)].map(|(name, cpu)| (group(mount.dir(), name, &cpu.to_string()), vec![cpu]));
    let all: Vec<Seen> = thread::scope(|scope| {
        let movers: Vec<_> = (0..2).map(|_| scope.spawn(|| mover(&places, rounds(30), Random::new()))).collect();
        movers.into_iter().map(|mover| mover.join().expect("a mover")).collect()
    });
    all.iter().for_each(|seen| judge("two_movers_at_once", seen));
}
