//! Targets whose threads wait for answers of the file system that moves them.

use std::time::Duration;

use crate::common::Mount;
use crate::common::namespaces::{enter, good, group, mount, set};
use crate::target::{Target, report, rounds};

/// Groups that have these kinds of their own.
fn groups(mount: &Mount, kinds: &[&str]) {
    for name in ["a", "b"] {
        let dir = group(mount, name);
        for kind in kinds {
            good(&dir, set(&dir, kind, "new"));
        }
    }
}

/// Lets them go on for some time; what they have asked for was done, each time.
fn all_is_done(test: &str, mut clients: Target, mut meanwhile: impl FnMut()) {
    let end = std::time::Instant::now() + Duration::from_millis(rounds(3_000) as u64);
    while std::time::Instant::now() < end {
        meanwhile();
    }
    clients.send();
    let said = clients.said();
    report(test, &format!("{} requests", said.result));
    assert_eq!((said.extra, said.errno), (0, 0), "{test}: refused: {said:?}");
}

#[test]
fn threads_that_move_their_process_at_the_same_time() {
    let Some(mount) = mount() else { return };
    groups(&mount, &["uts", "net"]);
    let dir = mount.dir().to_str().expect("text");
    for threads in ["2", "8"] {
        let clients = Target::new(&["clients", threads, dir]);
        let test = format!("threads_that_move_their_process_at_the_same_time {threads}");
        all_is_done(&test, clients, || std::thread::sleep(Duration::from_millis(1)));
    }
}

#[test]
fn somebody_else_moves_those_who_wait() {
    let Some(mount) = mount() else { return };
    groups(&mount, &["uts", "ipc"]);
    let dir = mount.dir();
    // Its own files: writers of one file wait for each other in the kernel.
    let other = group(&mount, "other");
    good(&other, set(&other, "uts", "new"));
    let clients = Target::new(&["clients", "3", dir.to_str().expect("text")]);
    let pid = clients.pid();
    all_is_done("somebody_else_moves_those_who_wait", clients, || good(&other, enter(&other, "cgroup.procs", pid)));
}
