//! Many clients make, remove, rename, list and populate groups: in the end the tree is one that their successes explain.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::thread;

use super::storm::{Random, cannot_mount, report, rounds};
use crate::common::{Mount, Target, errno, ids, read, write};

const CLIENTS: usize = 8;
const NAMES: [&str; 8] = ["a", "b", "c", "a/x", "a/y", "b/x", "b/x/deep", "c/y"];

#[derive(Default)]
struct Counts {
    /// Groups made and not removed, as the clients were told.
    groups: AtomicIsize,
    successes: AtomicUsize,
}

fn client(root: &Path, targets: &[i32], steps: usize, mut random: Random, counts: &Counts) {
    for _ in 0..steps {
        let dir = root.join(NAMES[random.below(NAMES.len())]);
        let pid = targets[random.below(targets.len())].to_string();
        let (outcome, possible): (Result<(), i32>, &[i32]) = match random.below(9) {
            0..2 => {
                let made = fs::create_dir(&dir).map_err(|e| errno(&e));
                counts.groups.fetch_add(isize::from(made.is_ok()), Ordering::SeqCst);
                (made, &[libc::EEXIST, libc::ENOENT])
            }
            2 => {
                let gone = fs::remove_dir(&dir).map_err(|e| errno(&e));
                counts.groups.fetch_sub(isize::from(gone.is_ok()), Ordering::SeqCst);
                (gone, &[libc::EBUSY, libc::ENOENT])
            }
            3 => {
                let to = dir.with_file_name(["a", "b", "c", "x", "y"][random.below(5)]);
                (fs::rename(&dir, to).map_err(|e| errno(&e)), &[libc::ENOENT, libc::EEXIST])
            }
            4 => (write(dir.join("tasks"), &pid).map(drop), &[libc::ENOENT, libc::ENODEV]),
            5 => (write(dir.join("cgroup.procs"), &pid).map(drop), &[libc::ENOENT, libc::ENODEV]),
            6 => (write(root.join("tasks"), &pid).map(drop), &[]),
            7 => (read(dir.join("tasks")).map(drop), &[libc::ENOENT, libc::ENODEV]),
            _ => {
                let listed = fs::read_dir(&dir).map(|entries| entries.for_each(|e| assert!(e.is_ok())));
                (listed.map_err(|e| errno(&e)), &[libc::ENOENT])
            }
        };
        match outcome {
            Ok(()) => _ = counts.successes.fetch_add(1, Ordering::Relaxed),
            Err(errno) => assert!(possible.contains(&errno), "errno {errno} for {}", dir.display()),
        }
    }
}

/// All groups, parents first.
fn walk(root: &Path) -> Vec<PathBuf> {
    let mut all = vec![root.to_owned()];
    let mut next = 0;
    while let Some(dir) = all.get(next).cloned() {
        let entries = fs::read_dir(&dir).expect("a listed group").map(|e| e.expect("an entry"));
        let groups: Vec<_> = entries.filter(|e| e.file_type().expect("d_type").is_dir()).map(|e| e.path()).collect();
        assert_eq!(fs::metadata(&dir).expect("stat").nlink(), 2 + groups.len() as u64, "{}", dir.display());
        all.extend(groups);
        next += 1;
    }
    all
}

#[test]
fn the_tree_is_what_the_clients_were_told() {
    const TEST: &str = "the_tree_is_what_the_clients_were_told";
    if cannot_mount(TEST) {
        return;
    }
    // New groups have CPUs at once.
    let mount = Mount::with_options("clone_children");
    let (root, counts) = (mount.dir(), Counts::default());
    let targets: Vec<_> = (0..5).map(|_| Target::new()).collect();
    let pids: Vec<_> = targets.iter().map(Target::pid).collect();
    let (rounds, steps) = (rounds(6), 250);
    for round in 0..rounds {
        thread::scope(|scope| {
            (0..CLIENTS).for_each(|i| {
                let random = Random(Random::new().0.wrapping_add(i as u64 * 7919) | 1);
                let (pids, counts) = (&pids, &counts);
                scope.spawn(move || client(root, pids, steps, random, counts));
            });
        });
        let groups = walk(root);
        assert_eq!(groups.len() as isize - 1, counts.groups.load(Ordering::SeqCst), "round {round}: {groups:?}");
        let mut homes = HashMap::new();
        for group in &groups {
            for tid in ids(group.join("tasks")).into_iter().filter(|tid| pids.contains(tid)) {
                assert_eq!(homes.insert(tid, group.clone()), None, "{tid} is in two groups");
            }
        }
        assert_eq!(homes.len(), pids.len(), "round {round}: {homes:?}");
    }
    pids.iter().for_each(|pid| _ = write(root.join("tasks"), pid.to_string()).expect("attach"));
    walk(root).iter().skip(1).rev().for_each(|group| fs::remove_dir(group).expect("rmdir"));
    assert_eq!(fs::metadata(root).expect("stat").nlink(), 2);
    let successes = counts.successes.into_inner();
    report(TEST, &format!("rounds={rounds} operations={} successes={successes} anomalies=0", rounds * steps * CLIENTS));
}
