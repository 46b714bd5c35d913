//! A later server goes on, and several trackers do not know of each other.

use cgfuse::tracker::Tracker;
use cgfuse::tracker::bpf::Bpf;
use cgfuse::tracker::table::Slot;

use super::tasks::{Tasks, place, soon, start, untruths};

#[test]
fn a_later_tracker_goes_on() {
    let Some(mut bpf) = start("a_later_tracker_goes_on") else { return };
    let mut tasks = Tasks::new(&["fork"]);
    let ids = tasks.ids();
    place(&bpf, ids[0], 5);
    place(&bpf, ids[1], 6);
    bpf.redirect(Some((ids[0], 9)));
    bpf.announce(true);
    let descriptors = bpf.descriptors().expect("copies");
    drop(bpf);
    tasks.go();
    let child = tasks.ids()[0];
    let mut bpf = Bpf::adopt_descriptors(descriptors).expect("ours");
    assert_eq!(bpf.table().get(child), Some(Slot::new(child, 6)), "born while nobody was there");
    assert_eq!((bpf.table().count(5), bpf.table().count(6)), (1, 2));
    assert_eq!(untruths(&bpf, 2..10), [""; 0]);
    bpf.announce(true);
    tasks.go();
    assert_eq!(tasks.line(), "gone");
    drop(tasks);
    assert_eq!((bpf.table().count(5), bpf.table().count(6)), (0, 0));
    let mut emptied = bpf.take_emptied();
    emptied.sort_unstable();
    assert_eq!(emptied, [5, 6]);
}

#[test]
fn without_descriptors_the_programs_are_gone() {
    let Some(first) = start("without_descriptors_the_programs_are_gone") else { return };
    let Some(second) = start("without_descriptors_the_programs_are_gone") else { return };
    let mut tasks = Tasks::new(&["fork"]);
    let ids = tasks.ids();
    place(&first, ids[1], 5);
    place(&second, ids[1], 8);
    tasks.go();
    let child = tasks.ids()[0];
    assert_eq!((first.table().get(child), second.table().get(child)), (Some(Slot::new(child, 5)), Some(Slot::new(child, 8))));
    drop(first);
    tasks.go();
    assert_eq!(tasks.line(), "gone");
    assert!(soon(|| second.table().count(8) == 1));
}
