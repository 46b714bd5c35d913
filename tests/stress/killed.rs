//! The server dies in the middle of moves and changes: nobody hangs, no process suffers, and the next server heals the mount.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use super::storm::{Random, Storm, cannot_mount, group, report, rounds};
use crate::common::place::Place;
use crate::common::{Target, is_root, read, skipped, state, try_affinity, wait_until, write};

/// Does `step` again and again until it fails; how it failed.
fn until_it_fails(done: &Arc<AtomicUsize>, mut step: impl FnMut(usize) -> Result<(), i32> + Send + 'static) -> JoinHandle<i32> {
    let done = Arc::clone(done);
    let mut repeat = move || {
        (0..).find_map(|i| match step(i) {
            Ok(()) => {
                done.fetch_add(1, Ordering::SeqCst);
                None
            }
            Err(errno) => Some(errno),
        })
    };
    thread::spawn(move || repeat().expect("it fails some time"))
}

fn clients(dir: &Path, pids: &[i32], done: &Arc<AtomicUsize>) -> Vec<JoinHandle<i32>> {
    let groups = [group(dir, "a", "0"), group(dir, "b", "1")];
    let movers = pids.iter().map(|pid| {
        let (groups, pid) = (groups.clone(), pid.to_string());
        until_it_fails(done, move |i| write(groups[i % 2].join("cgroup.procs"), &pid).map(drop))
    });
    let mut clients: Vec<_> = movers.collect();
    for g in groups {
        let tasks = g.join("tasks");
        clients.push(until_it_fails(done, move |i| write(g.join("cpuset.cpus"), ["0", "0-1", "1"][i % 3]).map(drop)));
        clients.push(until_it_fails(done, move |_| read(&tasks).map(drop)));
    }
    clients
}

#[test]
fn nobody_suffers() {
    const TEST: &str = "nobody_suffers";
    if cannot_mount(TEST) {
        return;
    }
    if !is_root() {
        return skipped(TEST, "the dead mounts are unmounted as root");
    }
    let mut place = Place::new();
    let (mut random, rounds) = (Random::new(), rounds(8));
    let (mut target, mut storm) = (Target::new(), Storm::new('m', 2, 4));
    (0..300).for_each(|_| _ = target.thread());
    let threads = target.tids();
    let (mut operations, mut errnos) = (0, std::collections::BTreeMap::new());
    for round in 0..rounds {
        place.serve(&[]);
        storm.go();
        let done = Arc::new(AtomicUsize::new(0));
        let clients = clients(&place.dir(), &[target.pid(), storm.pid()], &done);
        let enough = 1 + random.below(60);
        wait_until("the clients are at work", || done.load(Ordering::SeqCst) >= enough);
        (0..random.below(2000)).for_each(|_| std::hint::spin_loop());
        place.kill();
        wait_until("no client hangs", || clients.iter().all(JoinHandle::is_finished));
        for client in clients {
            *errnos.entry(client.join().expect("a client")).or_insert(0) += 1;
        }
        operations += done.load(Ordering::SeqCst);
        storm.stop();
        assert_eq!(target.tids(), threads, "round {round}");
        for tid in &threads {
            let state = state(target.pid(), *tid);
            assert!(matches!(state, Some('S' | 'R' | 'D')), "round {round}: {tid} is {state:?}");
            let mask = try_affinity(*tid).expect("it lives");
            assert!([&[0][..], &[1], &[0, 1]].contains(&&*mask), "round {round}: {tid} runs on {mask:?}");
        }
        // It still obeys.
        target.setaffinity(threads[0], &[0, 1]).expect("affinity");
    }
    place.serve(&[]);
    report(TEST, &format!("rounds={rounds} operations={operations} errnos={errnos:?} births={}", storm.stop()));
    let refused = |errno: &i32| [libc::ENOTCONN, libc::ECONNABORTED].contains(errno);
    assert!(errnos.keys().all(refused), "{errnos:?}");
}
