//! Tasks come, go and execute programs while they are moved, by the number of rounds: CGFUSE_STRESS=FACTOR makes it longer. Each test prints
//! what it has seen.

use std::collections::HashMap;

use cgfuse::sys::Tid;
use cgfuse::tracker::Tracker;
use cgfuse::tracker::bpf::Bpf;
use cgfuse::tracker::table::CssSetId;

use super::tasks::{Tasks, place, soon, start, untruths};
use crate::storm::{Birth, Random, Storm, report, rounds};

/// The css_sets of these tests.
const SETS: [CssSetId; 3] = [2, 3, 4];

/// Moves all threads of a process: one look at them, and one more at the main thread, which a thread may have become meanwhile. How many.
fn move_process(bpf: &mut Bpf, tgid: Tid, css_set: CssSetId) -> usize {
    bpf.redirect(Some((tgid, css_set)));
    let moved = bpf.table().of_process(tgid).into_iter().filter(|(tid, _)| place(bpf, *tid, css_set)).count();
    place(bpf, tgid, css_set);
    bpf.redirect(None);
    moved
}

/// The threads of a process that are not in a css_set. A program that the kernel is running at this moment has yet to find out.
fn left_behind(bpf: &Bpf, tgid: Tid, css_set: CssSetId) -> Vec<Tid> {
    let wrong = bpf.table().of_process(tgid).into_iter().filter(|(_, slot)| slot.css_set != css_set);
    let stays = |tid: &Tid| !soon(|| bpf.table().get(*tid).is_none_or(|slot| slot.tgid != tgid || slot.css_set == css_set));
    wrong.map(|(tid, _)| tid).filter(stays).collect()
}

/// All that the tests have made is gone.
fn assert_empty(bpf: &Bpf) {
    let empty = soon(|| SETS.iter().all(|css_set| bpf.table().count(*css_set) == 0));
    assert!(empty, "{:?}", SETS.map(|css_set| bpf.table().count(css_set)));
    assert_eq!(untruths(bpf, 2..5), [""; 0]);
}

#[test]
fn processes_are_moved_while_their_threads_create_threads() {
    const TEST: &str = "processes_are_moved_while_their_threads_create_threads";
    let Some(mut bpf) = start(TEST) else { return };
    let (mut random, mut storm) = (Random::new(), Storm::new('t', 4, 8));
    let (pid, rounds) = (storm.pid(), rounds(60));
    let (mut moves, mut threads, mut births) = (0, 0, 0);
    for round in 0..rounds {
        storm.go();
        let mut here = 0;
        for _ in 0..100 {
            here = SETS[random.below(3)];
            threads += move_process(&mut bpf, pid, here);
            moves += 1;
            let left = left_behind(&bpf, pid, here);
            assert!(left.is_empty(), "round {round}: {left:?} not in {here} after {moves} moves");
            if random.below(8) == 0 {
                bpf.table().tidy();
            }
        }
        births = storm.stop();
        let truth = storm.tids();
        let table = || bpf.table().of_process(pid).into_iter().map(|(tid, _)| tid).collect::<Vec<_>>();
        assert!(soon(|| table() == storm.tids()), "round {round}: {:?}, not {truth:?}", table());
        assert!(bpf.table().of_process(pid).into_iter().all(|(_, slot)| slot.css_set == here));
        assert!(soon(|| bpf.table().count(here) == storm.tids().len() as u64), "round {round}");
    }
    storm.end();
    assert_empty(&bpf);
    report(TEST, &format!("moves={moves} threads={threads} births={births} left_behind=0"));
}

/// Where the creators of a storm have been, by their epochs; an epoch is odd while the creator is being moved.
type History = HashMap<Tid, Vec<CssSetId>>;

fn possible(history: &History, birth: &Birth) -> Vec<CssSetId> {
    let (first, last) = (birth.epochs.0 / 2, (birth.epochs.1 + 1) / 2);
    (first..=last).filter_map(|epoch| history[&birth.creator].get(epoch as usize).copied()).collect()
}

fn move_creators(test: &str, kind: char) {
    let Some(bpf) = start(test) else { return };
    let (mut random, mut storm) = (Random::new(), Storm::new(kind, 3, 6));
    let creators = storm.creators();
    let mut history: History = creators.iter().map(|tid| (*tid, vec![SETS[0]])).collect();
    creators.iter().for_each(|tid| assert!(place(&bpf, *tid, SETS[0])));
    let (mut moves, mut births, mut certain, rounds) = (0, 0, 0, rounds(100));
    for round in 0..rounds {
        storm.go();
        for _ in 0..50 + random.below(100) {
            let (nr, to) = (random.below(creators.len()), SETS[random.below(3)]);
            let places = history.get_mut(&creators[nr]).expect("a creator");
            let epoch = 2 * (places.len() as i32 - 1);
            storm.set_epoch(nr, epoch + 1);
            assert!(place(&bpf, creators[nr], to));
            places.push(to);
            storm.set_epoch(nr, epoch + 2);
            moves += 1;
            for _ in 0..random.below(20_000) {
                std::hint::spin_loop();
            }
        }
        births = storm.stop();
        for birth in storm.births() {
            let (place, possible) = (bpf.table().get(birth.id).map(|slot| slot.css_set), possible(&history, &birth));
            assert!(place.is_some_and(|place| possible.contains(&place)), "round {round}: {birth:?} in {place:?}, not in {possible:?}");
            certain += usize::from(possible.len() == 1);
        }
        let wrong = untruths(&bpf, 2..5);
        assert!(wrong.is_empty(), "round {round}: {wrong:#?}");
    }
    storm.end();
    assert_empty(&bpf);
    report(test, &format!("moves={moves} births={births} certain={certain} misplaced=0"));
}

#[test]
fn threads_are_moved_while_they_fork() {
    move_creators("threads_are_moved_while_they_fork", 'f');
}

#[test]
fn threads_are_moved_while_they_create_threads() {
    move_creators("threads_are_moved_while_they_create_threads", 'm');
}

#[test]
fn processes_are_moved_while_their_threads_execute_programs() {
    const TEST: &str = "processes_are_moved_while_their_threads_execute_programs";
    const EXECS: usize = 50;
    let Some(mut bpf) = start(TEST) else { return };
    let (mut random, rounds, mut moves) = (Random::new(), rounds(40), 0);
    for round in 0..rounds {
        let mut storms = [(); 2].map(|()| Tasks::new(&["execs", &EXECS.to_string()]));
        let pids = [storms[0].pid(), storms[1].pid()];
        let mut places = [SETS[0]; 2];
        std::thread::scope(|scope| {
            let waiting = storms.each_mut().map(|storm| scope.spawn(|| storm.ids()[0]));
            while !waiting.iter().all(|thread| thread.is_finished()) {
                let nr = random.below(2);
                places[nr] = SETS[random.below(3)];
                move_process(&mut bpf, pids[nr], places[nr]);
                let left = left_behind(&bpf, pids[nr], places[nr]);
                assert!(left.is_empty(), "round {round}: {left:?} not in {} after {moves} moves", places[nr]);
                moves += 1;
            }
            assert_eq!(waiting.map(|thread| thread.join().expect("a thread")), pids);
        });
        for (pid, css_set) in pids.into_iter().zip(places) {
            move_process(&mut bpf, pid, css_set);
            let members: Vec<_> = bpf.table().of_process(pid).into_iter().map(|(tid, slot)| (tid, slot.css_set)).collect();
            assert_eq!(members, [(pid, css_set)], "round {round}");
        }
        let wrong = untruths(&bpf, 2..5);
        assert!(wrong.is_empty(), "round {round}: {wrong:#?}");
    }
    assert_empty(&bpf);
    report(TEST, &format!("moves={moves} execs={} left_behind=0", rounds * EXECS * 2));
}
