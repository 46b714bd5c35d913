//! How tasks come and go.

use std::os::fd::AsFd;

use cgfuse::sys::Tid;
use cgfuse::tracker::Tracker;
use cgfuse::tracker::bpf::Bpf;
use cgfuse::tracker::table::{ROOT_SET, Slot};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, gettid, pipe2, read};

use super::tasks::{Tasks, linux, place, soon, start, untruths};
use crate::storm::rounds;

/// A process whose leader is in 5 and whose other thread is in 6: both.
fn split(bpf: &Bpf, kind: &str) -> (Tasks, Tid, Tid) {
    let mut tasks = Tasks::new(&[kind]);
    let ids = tasks.ids();
    let (leader, thread) = (ids[0], ids[1]);
    for (tid, css_set) in [(leader, 5), (thread, 6)] {
        assert_eq!(bpf.table().get(tid), Some(Slot::new(leader, ROOT_SET)), "children of a task that is not known are in the root");
        let seen = Slot::new(leader, css_set);
        assert_eq!(bpf.table().replace(tid, Slot::new(leader, ROOT_SET), seen), Ok(false));
    }
    (tasks, leader, thread)
}

fn emptied(bpf: &mut Bpf) -> Vec<u32> {
    // Not by other tests: each has its own tracker.
    bpf.take_emptied()
}

#[test]
fn a_child_shows_when_fork_returns_and_is_gone_when_it_is_reaped() {
    let Some(bpf) = start("a_child_shows_when_fork_returns_and_is_gone_when_it_is_reaped") else { return };
    place(&bpf, gettid().as_raw(), 5);
    for _ in 0..rounds(3_000) {
        // Processes that other tests start meanwhile must not have it.
        let (end, life) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        // SAFETY: the child makes system calls only.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Child => {
                drop(life);
                let _ = read(&end, &mut [0]);
                cgfuse::sys::process::exit_at_once(0);
            }
            ForkResult::Parent { child } => {
                let tid = child.as_raw();
                assert_eq!(bpf.table().get(tid), Some(Slot::new(tid, 5)));
                assert_eq!(bpf.table().count(5), 2);
                drop(life);
                waitpid(child, None).expect("a child");
                assert_eq!((bpf.table().get(tid), bpf.table().count(5)), (None, 1));
            }
        }
    }
}

#[test]
fn a_child_is_where_its_creating_thread_is() {
    let Some(bpf) = start("a_child_is_where_its_creating_thread_is") else { return };
    for kind in ["thread", "fork", "vfork", "parent"] {
        let (mut tasks, leader, _) = split(&bpf, kind);
        tasks.go();
        let tid = tasks.ids()[0];
        assert_eq!(bpf.table().get(tid), Some(Slot::new(if kind == "thread" { leader } else { tid }, 6)), "{kind}");
        assert_eq!((bpf.table().count(5), bpf.table().count(6)), (1, 2), "{kind}");
        tasks.go();
        assert_eq!(tasks.line(), "gone");
        if kind == "parent" {
            waitpid(Pid::from_raw(tid), None).expect("our child");
        }
        // A thread that has been joined may be seen a little longer.
        assert!(bpf.table().get(tid).is_none() || (kind == "thread" && soon(|| bpf.table().get(tid).is_none())), "{kind}");
        drop(tasks);
        assert!(soon(|| (bpf.table().count(5), bpf.table().count(6)) == (0, 0)), "{kind}");
    }
}

#[test]
fn a_thread_that_executes_a_program_becomes_the_process() {
    let Some(mut bpf) = start("a_thread_that_executes_a_program_becomes_the_process") else { return };
    bpf.announce(true);
    let (mut tasks, leader, thread) = split(&bpf, "exec");
    tasks.go();
    assert_eq!(tasks.ids(), [leader]);
    assert_eq!((bpf.table().get(leader), bpf.table().get(thread)), (Some(Slot { fresh: true, ..Slot::new(leader, 6) }), None));
    assert_eq!((bpf.table().count(5), bpf.table().count(6)), (0, 1));
    assert_eq!(emptied(&mut bpf), [5], "the old leader was the last one");
    drop(tasks);
    assert_eq!((bpf.table().get(leader), emptied(&mut bpf)), (None, vec![6]));
}

#[test]
fn a_leader_may_leave_first() {
    let Some(bpf) = start("a_leader_may_leave_first") else { return };
    let (mut tasks, leader, thread) = split(&bpf, "leave");
    tasks.go();
    assert!(soon(|| bpf.table().get(leader).is_none()), "a zombie is no member");
    assert_eq!(bpf.table().get(thread), Some(Slot::new(leader, 6)));
    assert_eq!(bpf.table().of_process(leader).len(), 1);
    tasks.go();
    assert_eq!(tasks.ids(), [thread]);
    assert_eq!((bpf.table().count(5), bpf.table().count(6)), (0, 1));
}

#[test]
fn newborn_threads_of_a_process_are_redirected() {
    let Some(mut bpf) = start("newborn_threads_of_a_process_are_redirected") else { return };
    for (kind, css_set) in [("thread", 9), ("fork", 6)] {
        let (mut tasks, leader, _) = split(&bpf, kind);
        let (mut other, other_leader, _) = split(&bpf, "thread");
        bpf.redirect(Some((leader, 9)));
        tasks.go();
        let tid = tasks.ids()[0];
        assert_eq!(bpf.table().get(tid), Some(Slot::new(if kind == "thread" { leader } else { tid }, css_set)));
        other.go();
        let tid = other.ids()[0];
        assert_eq!(bpf.table().get(tid), Some(Slot::new(other_leader, 6)), "another process");
        bpf.redirect(None);
        assert_eq!(untruths(&bpf, 2..10), [""; 0]);
    }
}

#[test]
fn an_empty_css_set_is_announced_once() {
    let Some(mut bpf) = start("an_empty_css_set_is_announced_once") else { return };
    let readable = |bpf: &Bpf| {
        let fd = bpf.fd().expect("a descriptor");
        poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).expect("poll") == 1
    };
    drop(split(&bpf, "fork"));
    assert!(!readable(&bpf) && emptied(&mut bpf).is_empty(), "nobody wants to know");
    bpf.announce(true);
    let (mut tasks, ..) = split(&bpf, "fork");
    tasks.go();
    let child = tasks.ids()[0];
    place(&bpf, child, 7);
    assert!(!readable(&bpf));
    tasks.go();
    assert_eq!(tasks.line(), "gone");
    assert!(readable(&bpf));
    assert_eq!(emptied(&mut bpf), [7]);
    assert!(!readable(&bpf) && emptied(&mut bpf).is_empty());
    drop(tasks);
    let mut both = emptied(&mut bpf);
    both.sort_unstable();
    assert_eq!(both, [5, 6]);
    assert_eq!((bpf.stats().events, bpf.stats().lost), (3, 0));
    bpf.announce(false);
    drop(split(&bpf, "fork"));
    assert!(!readable(&bpf));
}

#[test]
fn a_sleeper_is_woken() {
    let Some(mut bpf) = start("a_sleeper_is_woken") else { return };
    bpf.announce(true);
    for _ in 0..rounds(100) {
        let (tasks, ..) = split(&bpf, "fork");
        let death = std::thread::spawn(move || drop(tasks));
        let mut told = Vec::new();
        while told.len() < 2 {
            let fd = bpf.fd().expect("a descriptor");
            let woken = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(10_000_u16)).expect("poll");
            assert_eq!(woken, 1, "within ten seconds");
            told.extend(emptied(&mut bpf));
        }
        death.join().expect("a thread");
    }
}

#[test]
fn everybody_is_known() {
    let Some(mut bpf) = start("everybody_is_known") else { return };
    assert_eq!(untruths(&bpf, 2..10), [""; 0]);
    let me = std::process::id() as Tid;
    assert!(bpf.table().get(me).is_some_and(|slot| slot.css_set == ROOT_SET));
    assert!(bpf.table().get(2).is_some(), "a kernel thread");
    // Somebody who was there before the programs and was overlooked; a main thread never is.
    let tid = gettid().as_raw();
    let old = bpf.table().get(tid).expect("known");
    bpf.table().remove_if(tid, old).expect("it is there");
    bpf.know(&linux(), me);
    let known = bpf.table().get(tid);
    assert!(known.is_some() || tid == me, "{known:?}");
}

/// The tid of a thread that executes a program is free some time before that can be seen.
#[test]
fn a_tid_may_be_used_again_while_its_owner_executes_a_program() {
    const TEST: &str = "a_tid_may_be_used_again_while_its_owner_executes_a_program";
    let Some(bpf) = start(TEST) else { return };
    let mut tasks = Tasks::new(&["reuse"]);
    place(&bpf, tasks.pid(), 7);
    let (rounds, mut taken) = (rounds(300), 0);
    for round in 0..rounds {
        let ids = tasks.ids();
        place(&bpf, ids[0], 5);
        place(&bpf, ids[1], 6);
        tasks.go();
        if tasks.line() == "taken" {
            // Somebody else has got the tid.
            taken += 1;
            tasks.go();
            continue;
        }
        let now = |tid| bpf.table().get(tid).map(|slot| (slot.tgid, slot.css_set));
        assert_eq!((now(ids[0]), now(ids[1])), (Some((ids[0], 6)), Some((ids[1], 7))), "round {round}");
        assert_eq!([5, 6, 7].map(|css_set| bpf.table().count(css_set)), [0, 1, 2], "round {round}");
        tasks.go();
    }
    drop(tasks);
    assert!(soon(|| [5, 6, 7].iter().all(|css_set| bpf.table().count(*css_set) == 0)));
    assert_eq!(untruths(&bpf, 2..10), [""; 0]);
    assert!(taken < rounds, "never had the tid");
    crate::storm::report(TEST, &format!("rounds={rounds} taken_by_others={taken}"));
}
