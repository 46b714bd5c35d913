//! The server or the injector is killed in the middle of moves: no target dies, none stays stopped, all threads of one are together, and
//! the next server moves them on.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use libc::{EBUSY, ECONNABORTED, EIO, ENOTCONN};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::namespaces::{enter, set};
use crate::common::place::Place;
use crate::common::random::Random;
use crate::common::{is_root, skipped, state, text, wait_until};
use crate::target::{Target, report, rounds};

/// What several threads can enter.
const SHARED: [&str; 4] = ["uts", "ipc", "net", "cgroup"];

/// Two groups with namespaces of their own.
fn groups(dir: &Path) -> [PathBuf; 2] {
    ["a", "b"].map(|name| {
        let group = dir.join(name);
        std::fs::create_dir(&group).expect("mkdir");
        for kind in SHARED {
            set(&group, kind, "new").expect(kind);
        }
        group
    })
}

/// Those who judge for themselves, and threads that just work.
struct Targets {
    endure: Target,
    signals: Target,
    busy: Target,
}

impl Targets {
    fn new() -> Targets {
        Targets { endure: Target::new(&["endure"]), signals: Target::new(&["signals", "2000000000"]), busy: Target::new(&["busy", "12"]) }
    }

    fn pids(&self) -> [i32; 3] {
        [&self.endure, &self.signals, &self.busy].map(Target::pid)
    }

    /// Nobody is stopped, traced, disturbed or torn apart.
    fn are_well(&mut self, round: usize) {
        for target in [&self.endure, &self.signals, &self.busy] {
            target.untouched();
            let apart = apart(target.pid());
            assert!(apart.is_empty(), "round {round}: {apart:?}");
        }
        self.endure.send();
        assert_eq!(self.endure.said().extra, 0, "round {round}: disturbed");
        assert!(!self.signals.has_said(), "round {round}");
        let count = self.busy.alive();
        wait_until("the threads work", || self.busy.alive() != count);
        assert_eq!(self.busy.tids().len(), 12, "round {round}");
    }

    /// Signals have come in order, and all of them.
    fn end(&mut self, test: &str) -> i64 {
        self.signals.send();
        let said = self.signals.said();
        assert_eq!((said.micros, said.extra), (0, 0), "{test}: out of order, lost or spurious EINTR: {said:?}");
        said.result
    }
}

/// The kinds of which the threads of a process are in different namespaces, and who is where.
fn apart(pid: i32) -> Vec<(&'static str, Vec<(PathBuf, PathBuf)>)> {
    let task = format!("/proc/{pid}/task");
    let tids: Vec<PathBuf> = std::fs::read_dir(task).expect("it lives").map(|entry| entry.expect("a thread").path()).collect();
    let places = |kind| -> Vec<(PathBuf, PathBuf)> {
        let there = |tid: &PathBuf| std::fs::read_link(tid.join("ns").join(kind)).expect("it lives");
        tids.iter().map(|tid| (tid.clone(), there(tid))).collect()
    };
    let all = SHARED.iter().map(|kind| (*kind, places(kind)));
    all.filter(|(_, places)| places.iter().any(|(_, place)| *place != places[0].1)).collect()
}

/// Moves these to and fro until told to end or `judge`, which is given each error, says so.
fn move_all(groups: &[PathBuf; 2], pids: [i32; 3], stop: &AtomicBool, moves: &AtomicUsize, judge: impl Fn(i32, &Path, i32) -> bool + Sync) {
    thread::scope(|scope| {
        for pid in pids {
            let judge = &judge;
            scope.spawn(move || {
                for n in 0_usize.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    match enter(&groups[n % 2], "cgroup.procs", pid) {
                        Ok(_) => _ = moves.fetch_add(1, Ordering::SeqCst),
                        Err(errno) if judge(errno, &groups[n % 2], pid) => break,
                        Err(_) => {}
                    }
                }
            });
        }
    });
}

#[test]
fn the_server() {
    const TEST: &str = "the_server";
    if !is_root() {
        return skipped(TEST, "needs root");
    }
    let rounds = rounds(120);
    let (mut random, mut place, mut targets) = (Random::new(), Place::new(), Targets::new());
    let moves = AtomicUsize::new(0);
    for round in 0..rounds {
        place.serve(&["-o", "ns"]);
        let groups = groups(&place.dir());
        let (stop, pids, before) = (AtomicBool::new(false), targets.pids(), moves.load(Ordering::SeqCst));
        thread::scope(|scope| {
            // Nobody hangs: each ends with an error that says so.
            let dead = |errno, group: &Path, _| {
                let why = || std::fs::read_to_string(group.join("ns.last_error"));
                assert!(matches!(errno, ENOTCONN | ECONNABORTED), "round {round}: errno {errno}: {:?}", why());
                true
            };
            let (groups, stop, moves) = (&groups, &stop, &moves);
            scope.spawn(move || move_all(groups, pids, stop, moves, dead));
            let enough = before + random.below(20);
            wait_until("they move", || moves.load(Ordering::SeqCst) >= enough);
            thread::sleep(Duration::from_micros(random.below(3_000) as u64));
            place.kill();
        });
        targets.are_well(round);
    }
    let signals = targets.end(TEST);
    report(
        TEST,
        &format!("seed {seed}: {rounds} servers killed, {} moves, {signals} signals in order", moves.into_inner(), seed = random.seed),
    );
}

/// The pid of a server's injector.
fn injector(server: i32) -> Option<i32> {
    let threads = std::fs::read_dir(format!("/proc/{server}/task")).ok()?.flatten();
    let children: String = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok()).collect();
    let is_injector = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("--injector"));
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(is_injector)
}

#[test]
fn the_injector() {
    const TEST: &str = "the_injector";
    if !is_root() {
        return skipped(TEST, "needs root");
    }
    let wanted = rounds(600);
    let (mut random, mut place, mut targets) = (Random::new(), Place::new(), Targets::new());
    let server = place.serve(&["-o", "ns"]);
    let groups = groups(&place.dir());
    let (stop, moves, failed, busy) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let pids = targets.pids();
    thread::scope(|scope| {
        // EBUSY: places for code that a killed injector's threads have not left yet.
        let judge = |errno, group: &Path, pid| {
            let apart = apart(pid);
            assert!(apart.is_empty(), "errno {errno}: {}: {apart:?}\n{}", text(group.join("ns.last_error")), place.log());
            match errno {
                EIO => failed.fetch_add(1, Ordering::SeqCst),
                EBUSY => busy.fetch_add(1, Ordering::SeqCst),
                _ => panic!("errno {errno}: {}", text(group.join("ns.last_error"))),
            };
            false
        };
        let (groups, stop, moves) = (&groups, &stop, &moves);
        let movers = scope.spawn(move || move_all(groups, pids, stop, moves, judge));
        let mut kills = 0;
        while kills < wanted && !movers.is_finished() {
            thread::sleep(Duration::from_micros(random.below(40_000) as u64));
            let Some(injector) = injector(server) else { continue };
            kills += usize::from(kill(Pid::from_raw(injector), Signal::SIGKILL).is_ok());
            wait_until("it is gone", || matches!(state(injector, injector), None | Some('Z' | 'X')));
        }
        stop.store(true, Ordering::SeqCst);
    });
    for pid in pids {
        for group in &groups {
            wait_until("they move again", || enter(group, "cgroup.procs", pid).is_ok());
        }
    }
    targets.are_well(wanted);
    let signals = targets.end(TEST);
    let figures = [moves, failed, busy].map(AtomicUsize::into_inner);
    let [moves, failed, busy] = figures;
    let seed = random.seed;
    report(
        TEST,
        &format!("seed {seed}: {wanted} injectors killed, {moves} moves, {failed} failed, {busy} without room, {signals} signals in order"),
    );
}
