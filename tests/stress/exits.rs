//! Members exit in masses while others list them.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::storm::{Random, Storm, cannot_mount, group, report, rounds};
use crate::common::{Mount, ids, read, write};

/// Whom nobody may list any more. A fork may use their pids again, and ends the generation.
#[derive(Default)]
struct Reaped {
    tids: HashSet<i32>,
    generation: usize,
}

struct World {
    reaped: Mutex<Reaped>,
    done: AtomicBool,
    reads: AtomicUsize,
    anomalies: Mutex<Vec<String>>,
}

impl World {
    fn with_reaped<T>(&self, f: impl FnOnce(&mut Reaped) -> T) -> T {
        f(&mut self.reaped.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn anomaly(&self, text: String) {
        self.anomalies.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    /// Opens and reads a list again and again.
    fn reader(&self, file: &Path) {
        while !self.done.load(Ordering::Relaxed) {
            let (dead, generation) = self.with_reaped(|reaped| (reaped.tids.clone(), reaped.generation));
            let text = match read(file) {
                Ok(bytes) => String::from_utf8(bytes).expect("digits"),
                Err(errno) => return self.anomaly(format!("{}: errno {errno}", file.display())),
            };
            self.reads.fetch_add(1, Ordering::Relaxed);
            let numbers: Result<Vec<i32>, _> = text.lines().map(str::parse).collect();
            let Ok(numbers) = numbers else {
                return self.anomaly(format!("{}: {text:?}", file.display()));
            };
            if !numbers.is_sorted_by(|a, b| a < b) || !(text.is_empty() || text.ends_with('\n')) {
                self.anomaly(format!("{}: {text:?}", file.display()));
            }
            let listed: Vec<_> = numbers.iter().filter(|tid| dead.contains(tid)).collect();
            if !listed.is_empty() && self.with_reaped(|reaped| reaped.generation) == generation {
                self.anomaly(format!("{}: the dead {listed:?} are listed", file.display()));
            }
        }
    }
}

#[test]
fn the_reaped_are_not_listed() {
    if cannot_mount("the_reaped_are_not_listed") {
        return;
    }
    let (mount, mut random) = (Mount::new(), Random::new());
    let world = World { reaped: Mutex::default(), done: AtomicBool::new(false), reads: AtomicUsize::new(0), anomalies: Mutex::default() };
    let (mut exits, rounds) = (0, rounds(40));
    let g = group(mount.dir(), "g", "0-1");
    thread::scope(|scope| {
        for file in ["tasks", "cgroup.procs"] {
            let (world, file) = (&world, g.join(file));
            scope.spawn(move || world.reader(&file));
        }
        for round in 0..rounds {
            let mut storm = Storm::new('n', 0, 1);
            // The parent is a member too, or only its children, which are put there one by one.
            let inherit = round % 2 == 0;
            if inherit {
                write(g.join("cgroup.procs"), storm.pid().to_string()).expect("attach");
            }
            for _ in 0..1 + random.below(3) {
                world.with_reaped(|reaped| *reaped = Reaped { tids: HashSet::new(), generation: reaped.generation + 1 });
                let children = storm.spawn(1 + random.below(12));
                if !inherit {
                    children.iter().for_each(|tid| _ = write(g.join("tasks"), tid.to_string()).expect("attach"));
                }
                let listed = ids(g.join("tasks"));
                if let Some(missing) = children.iter().find(|tid| !listed.contains(tid)) {
                    world.anomaly(format!("round {round}: {missing} is not listed, of {children:?}"));
                }
                exits += children.len();
                storm.cull();
                world.with_reaped(|reaped| reaped.tids.extend(&children));
                let left: Vec<_> = ids(g.join("tasks")).into_iter().filter(|tid| children.contains(tid)).collect();
                if !left.is_empty() {
                    world.anomaly(format!("round {round}: {left:?} are reaped and listed"));
                }
            }
            let pid = storm.pid();
            if round % 4 == 0 {
                // All at once: the children see their parent die.
                let children = storm.spawn(10);
                exits += children.len();
            }
            storm.end();
            world.with_reaped(|reaped| reaped.tids.insert(pid));
            if ids(g.join("cgroup.procs")).contains(&pid) {
                world.anomaly(format!("round {round}: {pid} is reaped and listed"));
            }
            super::storm::settles(|| ids(g.join("tasks")).is_empty());
        }
        world.done.store(true, Ordering::Relaxed);
    });
    let anomalies = world.anomalies.into_inner().unwrap_or_else(PoisonError::into_inner);
    report(
        "the_reaped_are_not_listed",
        &format!("rounds={rounds} exits={exits} reads={} anomalies={}", world.reads.into_inner(), anomalies.len()),
    );
    assert!(anomalies.is_empty(), "{anomalies:#?}");
    assert_eq!(ids(g.join("tasks")), []);
    assert_eq!(ids(g.join("cgroup.procs")), []);
    fs::remove_dir(&g).expect("rmdir");
}

/// As soon as the reaper knows, the group can go, whoever lists it meanwhile; and a reader gets ENODEV then, or nothing.
#[test]
fn groups_go_with_their_last_member() {
    if cannot_mount("groups_go_with_their_last_member") {
        return;
    }
    let mount = Mount::new();
    let (done, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (rounds, mut busy) = (rounds(60), 0);
    let g = mount.dir().join("g");
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                match read(g.join("tasks")) {
                    Ok(_) => _ = reads.fetch_add(1, Ordering::Relaxed),
                    Err(errno) => assert!([libc::ENOENT, libc::ENODEV].contains(&errno), "errno {errno}"),
                }
            }
        });
        let mut storm = Storm::new('n', 0, 1);
        for _ in 0..rounds {
            group(mount.dir(), "g", "0-1");
            let children = storm.spawn(3);
            children.iter().for_each(|tid| _ = write(g.join("tasks"), tid.to_string()).expect("attach"));
            storm.cull();
            if let Err(error) = fs::remove_dir(&g) {
                busy += 1;
                eprintln!("rmdir: {error}, {:?}", ids(g.join("tasks")));
                let _ = fs::remove_dir(&g);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    report("groups_go_with_their_last_member", &format!("rounds={rounds} reads={} busy={busy}", reads.into_inner()));
    assert_eq!(busy, 0);
}
