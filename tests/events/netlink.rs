//! The proc connector.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use cgfuse::sys::Machine;
use cgfuse::tracker::events::{EventLog, Source};
use cgfuse::tracker::netlink::Netlink;
use cgfuse::tracker::{Stats, Tracker};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::common::{is_root, skipped, wait_until};

use super::births::{Births, Watch, as_both};

const PID_MAX: i32 = 1 << 22;

/// The buffer that an ordinary user may have on most machines (net.core.rmem_max).
const USUAL_ROOM: usize = 212_992;

fn watch(source: Netlink) -> Watch<EventLog<Netlink>> {
    Watch::new(EventLog::new(source, PID_MAX).expect("memory"))
}

#[test]
fn births_of_each_kind() {
    as_both("events::netlink::births_of_each_kind", || {
        let mut births = Births::new();
        let mut watch = watch(Netlink::default());
        let [main, thread, server] = births.tids[..] else { panic!("three threads") };
        [(main, 5), (thread, 6), (server, 7)].into_iter().for_each(|(tid, css_set)| watch.place(tid, css_set));
        for (who, css_set) in [("m", 5), ("t", 6)] {
            let child = births.born(&format!("{who} fork"));
            watch.expect("fork", &[(child, Some(css_set))]);
            let child = births.born(&format!("{who} vfork"));
            watch.expect("vfork and exec", &[(child, Some(css_set))]);
            let child = births.born(&format!("{who} parent"));
            watch.expect("CLONE_PARENT: the parent's", &[(child, Some(1))]);
        }
        // The process is spread over css_sets, and the creating thread is not told: the main one's.
        let guessed = watch.tracker.stats().guessed;
        let made = births.born("t thread");
        watch.expect("thread", &[(made, Some(5))]);
        assert_eq!(watch.tracker.stats().guessed, guessed + 1);
        [main, thread, server, made].into_iter().for_each(|tid| watch.place(tid, 8));
        let more = births.born("t thread");
        watch.expect("thread of a process that is in one", &[(more, Some(8))]);
        assert_eq!(watch.tracker.stats(), Stats { guessed: guessed + 1, lost: 0, rescans: 0, ..watch.tracker.stats() });
        watch.agrees_with_proc();
    });
}

#[test]
fn exits_and_programs() {
    as_both("events::netlink::exits_and_programs", || {
        let mut births = Births::new();
        let mut watch = watch(Netlink::default());
        let [main, thread, server] = births.tids[..] else { panic!("three threads") };
        [(main, 5), (thread, 6), (server, 7)].into_iter().for_each(|(tid, css_set)| watch.place(tid, css_set));
        let child = births.born("t fork");
        births.exit("m", main);
        watch.expect("the main thread exits", &[(main, None), (thread, Some(6)), (server, Some(7))]);
        let now = births.order("t exec");
        assert_eq!(now[0], main);
        watch.expect("another executes a program", &[(main, Some(6)), (thread, None), (server, None), (child, Some(6))]);
        watch.expect("its threads", &[(now[1], Some(6)), (now[2], Some(6))]);
        watch.place(now[1], 8);
        let again = births.order("t exec");
        watch.expect("while the main one lives", &[(main, Some(8)), (again[1], Some(8)), (now[1], None)]);
        let again = births.order("m exec");
        watch.expect("the main one does", &[(main, Some(8)), (again[1], Some(8)), (again[2], Some(8))]);
        births.exit("t", again[1]);
        watch.expect("a thread exits", &[(again[1], None), (main, Some(8))]);
        drop(births);
        watch.expect("all end", &[(main, None), (again[2], None)]);
        let mut emptied = watch.tracker.take_emptied();
        emptied.retain(|css_set| watch.tracker.table().count(*css_set) == 0);
        assert!(emptied.contains(&8), "{emptied:?}");
        assert_eq!((watch.tracker.stats().guessed, watch.tracker.stats().lost), (0, 0));
        watch.agrees_with_proc();
    });
}

/// A storm under the eyes of somebody who drains when he is told to, and then sleeps.
fn storm(test: &str, room: usize, args: [&str; 3], time: Duration, sleep: Duration) -> Stats {
    let mut births = Births::with(&["storm", args[0], args[1], args[2]]);
    let mut watch = watch(Netlink::with_room(room));
    let main = births.pid();
    watch.place(main, 5);
    births.order("go");
    let begin = Instant::now();
    let mut longest = Duration::ZERO;
    while begin.elapsed() < time {
        if let Some(fd) = watch.tracker.fd() {
            let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(100u16)).expect("poll");
        }
        let begin = Instant::now();
        watch.sync();
        longest = longest.max(begin.elapsed());
        std::thread::sleep(sleep);
    }
    let count = births.order("stop")[0];
    // Others may make storms too, more than a small buffer bears.
    wait_until("nothing is lost and not repaired", || {
        let before = watch.tracker.stats().lost;
        watch.sync();
        let Stats { lost, rescans, .. } = watch.tracker.stats();
        lost == before && rescans >= lost
    });
    let stats = watch.tracker.stats();
    let _ = writeln!(
        std::io::stderr(),
        "stress: {test}: {args:?}, room {room}, {:.0} births/s, lost {}, rescans {}, guessed {}, longest sync {longest:?}",
        f64::from(count) / begin.elapsed().as_secs_f64(),
        stats.lost,
        stats.rescans,
        stats.guessed,
    );
    let (members, truth) = (watch.members(&[5]), births.tasks());
    assert!(truth.len() > 5, "{truth:?}");
    let astray: Vec<_> = truth.keys().filter(|tid| !members.contains_key(tid)).map(|tid| (*tid, watch.tracker.table().get(*tid))).collect();
    let strangers: Vec<_> = members.keys().filter(|tid| !truth.contains_key(tid)).map(|tid| (*tid, watch.machine.task(*tid))).collect();
    // After a loss a child whose creator has died is taken for one of whoever has adopted it, and is counted.
    let guessed: BTreeSet<_> = astray.iter().filter_map(|(_, slot)| Some(slot.as_ref()?.tgid)).collect();
    let counted = stats.lost > 0 && guessed.len() as u64 <= stats.guessed && astray.iter().all(|(_, slot)| slot.is_some());
    assert!((astray.is_empty() || counted) && strangers.is_empty(), "astray: {astray:?}, strangers: {strangers:?}");
    watch.agrees_with_proc();
    stats
}

fn time() -> Duration {
    let factor = std::env::var("CGFUSE_STRESS").ok().and_then(|text| text.parse().ok()).unwrap_or(0.3);
    Duration::from_secs_f64(factor)
}

#[test]
fn storms() {
    as_both("events::netlink::storms", || {
        for args in [["4", "m", "0"], ["4", "f", "0"], ["2", "t", "0"]] {
            storm("storms", 16 << 20, args, time(), Duration::from_millis(2));
        }
    });
}

#[test]
fn storms_with_the_usual_room() {
    as_both("events::netlink::storms_with_the_usual_room", || {
        for args in [["4", "f", "0"], ["4", "t", "0"]] {
            storm("storms_with_the_usual_room", USUAL_ROOM, args, time(), Duration::from_millis(2));
        }
    });
}

#[test]
fn losses() {
    as_both("events::netlink::losses", || {
        let stats = storm("losses", 4096, ["4", "m", "0"], time(), Duration::from_millis(100));
        assert!(stats.lost > 0 && stats.rescans >= stats.lost, "{stats:?}");
    });
}

/// Says what keeps the source from starting; see [`where_it_does_not_work`].
#[test]
fn start() {
    match Netlink::default().start() {
        Ok(()) => println!("it works"),
        Err(error) => println!("{error}"),
    }
}

#[test]
fn where_it_does_not_work() {
    if !is_root() {
        return skipped("where_it_does_not_work", "needs root");
    }
    let namespaces = "netlink: the proc connector needs the initial pid and user namespaces";
    let network = "netlink: the proc connector needs the initial network namespace: Connection refused";
    for (options, said) in [
        (["--fork", "--pid"], namespaces),
        (["--user", "--map-root-user"], namespaces),
        (["--net", "--ipc"], network),
        (["--ipc", "--uts"], "it works"),
    ] {
        let mut command = Command::new("unshare");
        command.args(options).arg(std::env::current_exe().expect("this program"));
        command.args(["--exact", "events::netlink::start", "--nocapture"]);
        let output = command.output().expect("unshare runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(said), "{options:?}: {text} {}", String::from_utf8_lossy(&output.stderr));
    }
}
