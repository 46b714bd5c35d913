//! Births, moves, programs and deaths in masses. Afterwards the members are those that the storm itself knows, and run where their group says;
//! on the kernel's hierarchy as on ours.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::sys::signal::Signal;

use super::family::start;
use super::side::{BPF, Config, NETLINK, NETLINK_USER, PERF, PERF_USER, SCAN, SCAN_USER, Side, test_name};
use crate::common::{TempDir, as_user, ids, write};
use crate::storm::{Birth, Random, Storm, astray, report, rounds, settles};

/// What is asked of a back end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strict {
    /// Nobody is in the wrong group.
    Exact,
    /// Nobody, unless the counts of cgfuse.stat say that it may be so.
    UnlessDoubted,
    /// Few births, which a documented gap explains.
    Few,
    /// A documented gap concerns all births.
    Gap,
}

/// The top and two groups, with their CPUs.
struct Places(Vec<(PathBuf, Vec<usize>)>);

impl Places {
    fn new(side: &Side, name: &str) -> Places {
        let mut places = vec![(side.dir().to_owned(), vec![0, 1])];
        for (group, cpu) in [("x", 0_usize), ("y", 1)] {
            let group = format!("{name}-{group}");
            side.group(&group, &cpu.to_string());
            places.push((side.dir().join(&group), vec![cpu]));
        }
        Places(places)
    }

    fn try_attach(&self, place: usize, file: &str, id: i32) -> Result<(), i32> {
        write(self.0[place].0.join(file), id.to_string()).map(drop)
    }

    fn attach(&self, place: usize, file: &str, id: i32) {
        self.try_attach(place, file, id).unwrap_or_else(|errno| panic!("attach {id}: errno {errno}"));
    }

    /// Where everybody is; whoever is in no list is at the top.
    fn homes(&self) -> HashMap<i32, usize> {
        (1..self.0.len()).flat_map(|i| ids(self.0[i].0.join("tasks")).into_iter().map(move |tid| (tid, i))).collect()
    }

    /// All is over: nobody is left, and the groups go at once.
    fn end(&self, seen: &mut Seen) {
        let empty = |i: usize| ids(self.0[i].0.join("tasks")).is_empty() && ids(self.0[i].0.join("cgroup.procs")).is_empty();
        for i in 1..self.0.len() {
            if !settles(|| empty(i)) {
                seen.wrong.push(format!("the end: {:?} in {i}", ids(self.0[i].0.join("tasks"))));
            }
            if let Err(error) = fs::remove_dir(&self.0[i].0) {
                seen.wrong.push(format!("the end: rmdir: {error}"));
            }
        }
    }

    /// Of tasks that are in the right group.
    fn check_cpus(&self, round: usize, place: usize, tids: &[i32], seen: &mut Seen) {
        seen.late += astray(tids, &self.0[place].1).len();
        if !settles(|| astray(tids, &self.0[place].1).is_empty()) {
            seen.never.push(format!("round {round}, place {place}: {:?}", astray(tids, &self.0[place].1)));
        }
    }
}

#[derive(Debug, Default)]
struct Seen {
    moves: usize,
    births: usize,
    /// Places of tasks that were compared with the one they must have.
    certain: usize,
    /// Members that had yet to get their CPUs when the storm had come to rest.
    late: usize,
    /// Births in the wrong group.
    misplaced: Vec<String>,
    /// Everything else that is in the wrong group, or listed and not there.
    wrong: Vec<String>,
    /// On the wrong CPUs for good.
    never: Vec<String>,
}

impl Seen {
    fn enough(&self) -> bool {
        self.wrong.len() > 20 || self.never.len() > 3
    }
}

/// A storm as the user to whom the hierarchy belongs.
fn storm(config_uid: u32, kind: char, creators: usize, ring: usize) -> Storm {
    Storm::with(kind, creators, ring, |command| {
        if config_uid != 0 {
            as_user(command, config_uid);
        }
    })
}

/// Whole processes are moved while their threads create and join threads.
fn processes(side: &Side, uid: u32, rounds: usize) -> Seen {
    let (places, mut random, mut seen) = (Places::new(side, "p"), Random::new(), Seen::default());
    let mut storm = storm(uid, 't', 4, 8);
    let pid = storm.pid();
    let mut at = 1;
    places.attach(at, "cgroup.procs", pid);
    for round in 0..rounds {
        if seen.enough() {
            break;
        }
        storm.go();
        for _ in 0..=random.below(3) {
            at = (at + 1 + random.below(2)) % 3;
            places.attach(at, "cgroup.procs", pid);
            seen.moves += 1;
        }
        seen.births = storm.stop();
        let mut truth: BTreeSet<i32> = storm.births().iter().map(|birth| birth.id).collect();
        truth.extend(storm.creators());
        truth.insert(pid);
        // Those that have been joined are gone soon.
        assert!(settles(|| storm.tids().into_iter().collect::<BTreeSet<_>>() == truth), "{:?}: {truth:?}", storm.tids());
        for place in 1..3 {
            let listed: BTreeSet<i32> = ids(places.0[place].0.join("tasks")).into_iter().collect();
            let want = if place == at { &truth } else { &BTreeSet::new() };
            if listed != *want {
                let (missing, strange): (Vec<_>, Vec<_>) = (want.difference(&listed).collect(), listed.difference(want).collect());
                seen.wrong.push(format!("round {round}: at {at}: place {place} lacks {missing:?}, has {strange:?}"));
            }
            if ids(places.0[place].0.join("cgroup.procs")) != if place == at { vec![pid] } else { vec![] } {
                seen.wrong.push(format!("round {round}: at {at}: cgroup.procs of {place}"));
            }
        }
        seen.certain += truth.len();
        places.check_cpus(round, at, &truth.into_iter().collect::<Vec<_>>(), &mut seen);
    }
    storm.end();
    places.end(&mut seen);
    seen
}

/// Single threads are moved while they bear threads or children, from the top and back to it.
fn threads(side: &Side, uid: u32, kind: char, rounds: usize) -> Seen {
    // Where places are guessed, one that is possible may be the wrong one.
    let exact = side.is_kernels() || ["bpf", "perf"].contains(&&*side.tracker());
    let (places, mut random, mut seen) = (Places::new(side, &kind.to_string()), Random::new(), Seen::default());
    let mut storm = storm(uid, kind, 3, 6);
    let (pid, tids) = (storm.pid(), storm.creators());
    // Per creator, the place in its every second epoch; an epoch is odd while the creator is being moved.
    let mut history: HashMap<i32, Vec<usize>> = tids.iter().map(|tid| (*tid, vec![0])).collect();
    for round in 0..rounds {
        if seen.enough() {
            break;
        }
        storm.go();
        for _ in 0..1 + random.below(6) {
            let (nr, to) = (random.below(tids.len()), random.below(3));
            let places_of = history.get_mut(&tids[nr]).expect("a creator");
            let epoch = 2 * (places_of.len() as i32 - 1);
            storm.set_epoch(nr, epoch + 1);
            places.attach(to, "tasks", tids[nr]);
            places_of.push(to);
            storm.set_epoch(nr, epoch + 2);
            seen.moves += 1;
        }
        seen.births = storm.stop();
        let births = storm.births();
        if kind == 't' {
            let all = 1 + tids.len() + births.len();
            assert!(settles(|| storm.tids().len() == all), "{:?}: {births:?}", storm.tids());
        }
        let homes = places.homes();
        let home = |tid: i32| homes.get(&tid).copied().unwrap_or(0);
        let mut right = Vec::new();
        for (tid, history) in &history {
            let want = *history.last().expect("a place");
            if home(*tid) == want {
                right.push(*tid);
            } else {
                seen.wrong.push(format!("round {round}: creator {tid} in {} instead of {want}", home(*tid)));
            }
        }
        for birth in &births {
            let possible = possible(&history, birth);
            seen.certain += usize::from(possible.len() == 1);
            if !possible.contains(&home(birth.id)) {
                seen.misplaced.push(format!("round {round}: {birth:?} in {}, not {possible:?}", home(birth.id)));
            } else if possible.len() == 1 || exact {
                right.push(birth.id);
            }
        }
        // Nobody else: neither the dead nor strangers.
        let known = |tid: &i32| *tid == pid || tids.contains(tid) || births.iter().any(|birth| birth.id == *tid);
        let strangers: Vec<_> = homes.keys().filter(|tid| !known(tid)).collect();
        if !strangers.is_empty() {
            seen.wrong.push(format!("round {round}: {strangers:?} are listed"));
        }
        for place in 0..3 {
            let here: Vec<i32> = right.iter().copied().filter(|tid| home(*tid) == place).collect();
            places.check_cpus(round, place, &here, &mut seen);
        }
    }
    storm.end();
    places.end(&mut seen);
    seen
}

/// The places that a birth may have been in.
fn possible(history: &HashMap<i32, Vec<usize>>, birth: &Birth) -> BTreeSet<usize> {
    let history = &history[&birth.creator];
    let (first, last) = (birth.epochs.0 / 2, (birth.epochs.1 + 1) / 2);
    (first..=last).filter_map(|k| history.get(k as usize).copied()).collect()
}

/// Processes that execute themselves; see `execs` in family.c.
struct Execs {
    child: Child,
    flags: File,
    pids: Vec<i32>,
    _temp: TempDir,
}

impl Execs {
    fn new(uid: u32, n: usize) -> Execs {
        let temp = TempDir::new();
        let path = temp.path().join("flags");
        fs::write(&path, [0; 4096]).expect("flags");
        let flags = File::options().read(true).write(true).open(&path).expect("flags");
        let args = ["execs", path.to_str().expect("a plain path"), &n.to_string()];
        let mut child = start(&args, uid, |command| {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("the pids");
        let pids = line.split_whitespace().map(|word| word.parse().expect("a pid")).collect();
        Execs { child, flags, pids, _temp: temp }
    }

    fn number(&self, nr: usize) -> i32 {
        let mut bytes = [0; 4];
        self.flags.read_exact_at(&mut bytes, 4 * nr as u64).expect("flags");
        i32::from_ne_bytes(bytes)
    }

    /// Odd: they run. Even: all are at rest when this returns.
    fn generation(&self, generation: i32) {
        self.flags.write_all_at(&generation.to_ne_bytes(), 0).expect("flags");
        if generation % 2 == 0 {
            let rest = || (0..self.pids.len()).all(|i| self.number(1 + 2 * i) == generation);
            assert!((0..10).any(|_| settles(rest)), "they come to rest");
        }
    }

    fn count(&self) -> usize {
        (0..self.pids.len()).map(|i| self.number(2 + 2 * i) as usize).sum()
    }
}

impl Drop for Execs {
    fn drop(&mut self) {
        // Its children are killed with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processes are moved while they execute programs, from all kinds of threads.
fn programs(side: &Side, uid: u32, rounds: usize) -> Seen {
    let (places, mut random, mut seen) = (Places::new(side, "x"), Random::new(), Seen::default());
    let execs = Execs::new(uid, 3);
    let mut at = vec![1; execs.pids.len()];
    execs.pids.iter().for_each(|pid| places.attach(1, "cgroup.procs", *pid));
    for round in 0..rounds {
        if seen.enough() {
            break;
        }
        execs.generation(2 * round as i32 + 1);
        for _ in 0..1 + random.below(8) {
            let (nr, to) = (random.below(at.len()), random.below(3));
            // Whatever it is doing, it is there.
            match places.try_attach(to, "cgroup.procs", execs.pids[nr]) {
                Ok(()) => at[nr] = to,
                Err(errno) => seen.wrong.push(format!("round {round}: {} to {to}: errno {errno}", execs.pids[nr])),
            }
            seen.moves += 1;
        }
        let enough = execs.count() + 3;
        settles(|| execs.count() >= enough);
        execs.generation(2 * round as i32 + 2);
        for place in 1..3 {
            let mut want: Vec<i32> = execs.pids.iter().zip(&at).filter(|(_, at)| **at == place).map(|(pid, _)| *pid).collect();
            want.sort_unstable();
            seen.certain += want.len();
            for file in ["tasks", "cgroup.procs"] {
                let listed = ids(places.0[place].0.join(file));
                if let Some(dead) = listed.iter().find(|tid| !execs.pids.contains(tid)) {
                    seen.wrong.push(format!("round {round}: {file} of {place}: {dead} is gone"));
                } else if listed != want {
                    seen.misplaced.push(format!("round {round}: {file} of {place}: {listed:?} instead of {want:?}"));
                }
            }
        }
        for (pid, place) in execs.pids.iter().zip(&at) {
            places.check_cpus(round, *place, &[*pid], &mut seen);
        }
    }
    seen.births = execs.count();
    drop(execs);
    places.end(&mut seen);
    seen
}

/// Members die in masses while they are moved and listed.
fn deaths(side: &Side, uid: u32, rounds: usize) -> Seen {
    let (places, mut random, mut seen) = (Places::new(side, "d"), Random::new(), Seen::default());
    let (done, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
    let all = |place: usize| ids(places.0[place].0.join("tasks"));
    let work = || {
        let mut storm = storm(uid, 'n', 0, 1);
        places.attach(1, "cgroup.procs", storm.pid());
        for round in 0..rounds {
            if seen.enough() {
                break;
            }
            let children = storm.spawn(2 + random.below(10));
            seen.births += children.len();
            seen.certain += children.len();
            let listed = all(1);
            if let Some(missing) = children.iter().find(|tid| !listed.contains(tid)) {
                seen.wrong.push(format!("round {round}: {missing} is not listed"));
            }
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                // Each child is four threads, the first of which is the process.
                let move_all = || {
                    for (i, tid) in children.iter().enumerate().cycle() {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let file = ["tasks", "cgroup.procs"][i % 2];
                        let _ = write(places.0[1 + (i / 4) % 2].0.join(file), tid.to_string());
                    }
                };
                // The first ones as the user that we are: a new thread is born with that.
                scope.spawn(move_all);
                storm.cull();
                stop.store(true, Ordering::Relaxed);
            });
            for place in 1..3 {
                let left: Vec<_> = all(place).into_iter().filter(|tid| children.contains(tid)).collect();
                if !left.is_empty() {
                    seen.wrong.push(format!("round {round}: {left:?} are reaped and listed in {place}"));
                }
            }
            if all(1) != [storm.pid()] || !all(2).is_empty() {
                seen.wrong.push(format!("round {round}: {:?} and {:?} are left", all(1), all(2)));
            }
            seen.moves += children.len();
        }
        storm.end();
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for place in 1..3 {
                    assert!(all(place).is_sorted_by(|a, b| a < b));
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let mut work = work;
        work();
        done.store(true, Ordering::Relaxed);
    });
    places.end(&mut seen);
    seen
}

/// Members are born and die while the server is stopped: it catches up before it answers.
fn unwatched(side: &Side, uid: u32, rounds: usize) -> Seen {
    let (places, mut seen) = (Places::new(side, "u"), Seen::default());
    let mut storms = [storm(uid, 'm', 2, 8), storm(uid, 'd', 2, 8)];
    let mut at = [1, 2];
    for round in 0..rounds {
        if seen.enough() {
            break;
        }
        at.swap(0, 1);
        // All of a storm is in one group, whoever has just been moved or not.
        for (storm, place) in storms.iter_mut().zip(at) {
            places.attach(place, "cgroup.procs", storm.pid());
            storm.births().iter().for_each(|birth| places.attach(place, "cgroup.procs", birth.id));
        }
        side.signal(Signal::SIGSTOP);
        let before: usize = storms.iter_mut().map(Storm::stop).sum();
        loop {
            storms.iter_mut().for_each(Storm::go);
            thread::yield_now();
            let births: usize = storms.iter_mut().map(Storm::stop).sum();
            if births >= before + 300 {
                seen.births = births;
                break;
            }
        }
        side.signal(Signal::SIGCONT);
        for (storm, place) in storms.iter_mut().zip(at) {
            let mut truth: BTreeSet<i32> = storm.births().iter().map(|birth| birth.id).collect();
            truth.extend(storm.creators());
            truth.insert(storm.pid());
            let count = || storm.tids().iter().filter(|tid| !truth.contains(tid)).count();
            assert!(settles(|| count() == 0), "{:?}: {truth:?}", storm.tids());
            let listed: BTreeSet<i32> = ids(places.0[place].0.join("tasks")).into_iter().collect();
            seen.certain += truth.len();
            if listed != truth {
                let (missing, strange): (Vec<_>, Vec<_>) = (truth.difference(&listed).collect(), listed.difference(&truth).collect());
                seen.misplaced.push(format!("round {round}: {place} lacks {missing:?}, has {strange:?}"));
            }
            places.check_cpus(round, place, &truth.intersection(&listed).copied().collect::<Vec<_>>(), &mut seen);
        }
        seen.moves += 2;
    }
    storms.into_iter().for_each(Storm::end);
    places.end(&mut seen);
    seen
}

/// What is not as it has to be.
fn judge(side: &Side, storm: &str, seen: &Seen, strict: Strict, doubts: &str) -> Option<String> {
    let Seen { moves, births, certain, late, misplaced, wrong, never } = seen;
    let figures = format!("moves={moves} births={births} certain={certain} late={late} misplaced={}", misplaced.len());
    report(&test_name(), &format!("{storm}: {figures} wrong={} never={} {}", wrong.len(), never.len(), side.doubts()));
    let forgiven = match strict {
        Strict::Exact => 0,
        Strict::UnlessDoubted if side.doubts() == doubts => 0,
        Strict::UnlessDoubted | Strict::Gap => misplaced.len(),
        Strict::Few => certain / 10,
    };
    // Whose place is guessed may have the CPUs of another one.
    let guessed = strict == Strict::Gap || strict == Strict::UnlessDoubted && side.doubts() != doubts;
    let fine = wrong.is_empty() && (never.is_empty() || guessed) && misplaced.len() <= forgiven;
    let first = |list: &[String]| list.iter().take(20).cloned().collect::<Vec<_>>();
    let lists = [("wrong", wrong), ("never", never), ("misplaced", misplaced)].map(|(name, list)| (name, first(list)));
    (!fine).then(|| format!("{storm}: {} {lists:#?}", side.doubts()))
}

type Body = fn(&Side, u32, usize) -> Seen;

const STORMS: [(&str, Body, usize); 9] = [
    ("processes among threads", processes, 40),
    ("threads among children", |side, uid, rounds| threads(side, uid, 'f', rounds), 40),
    ("threads among threads", |side, uid, rounds| threads(side, uid, 't', rounds), 30),
    ("threads among both", |side, uid, rounds| threads(side, uid, 'm', rounds), 30),
    ("children of dead threads", |side, uid, rounds| threads(side, uid, 'e', rounds), 20),
    ("children of dead children", |side, uid, rounds| threads(side, uid, 'd', rounds), 20),
    ("programs", programs, 30),
    ("deaths", deaths, 20),
    ("unwatched", unwatched, 3),
];

/// All storms, or those that `CGFUSE_STORM` is part of the name of; some concern a gap.
fn storms(side: Option<Side>, uid: u32, strict: Strict, gaps: &[&str]) {
    let Some(side) = side else { return };
    let only = std::env::var("CGFUSE_STORM").unwrap_or_default();
    let mut failures = Vec::new();
    for (name, body, full) in STORMS.into_iter().filter(|(name, ..)| name.contains(&only)) {
        let doubts = side.doubts();
        let seen = side.run(|| body(&side, uid, rounds(full)));
        let strict = match strict {
            _ if gaps.contains(&name) => Strict::Gap,
            // What perf tells of the whole machine has to be read in time.
            Strict::Exact if name == "unwatched" && !side.is_kernels() && side.tracker() == "perf" => Strict::UnlessDoubted,
            strict => strict,
        };
        failures.extend(judge(&side, name, &seen, strict, &doubts));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn ours(config: Config, strict: Strict, gaps: &[&str]) {
    storms(Side::ours(config), config.uid, strict, gaps);
}

/// The storms themselves know the truth.
#[test]
fn storms_of_the_kernel() {
    storms(Side::cpuset(), 0, Strict::Exact, &[]);
}

#[test]
fn storms_bpf() {
    ours(BPF, Strict::Exact, &[]);
}

#[test]
fn storms_perf() {
    // A CPU that is taken away from the machine while it writes an event tells it late, and what depends on that is guessed.
    ours(PERF, Strict::UnlessDoubted, &[]);
}

#[test]
fn storms_netlink() {
    ours(NETLINK, Strict::UnlessDoubted, &[]);
}

#[test]
fn storms_netlink_of_a_user() {
    ours(NETLINK_USER, Strict::UnlessDoubted, &[]);
}

#[test]
fn storms_perf_of_a_user() {
    // Of a process that nobody has followed yet, births at the moment of its first move are missed.
    ours(PERF_USER, Strict::UnlessDoubted, &["threads among children", "children of dead threads", "children of dead children"]);
}

/// Children whose creators are gone, threads of processes in several groups and who has executed a program are guessed.
const GUESSED: [&str; 6] =
    ["unwatched", "threads among threads", "threads among both", "children of dead threads", "children of dead children", "programs"];

#[test]
fn storms_scan() {
    ours(SCAN, Strict::Few, &GUESSED);
}

#[test]
fn storms_scan_of_a_user() {
    ours(SCAN_USER, Strict::Few, &GUESSED);
}
