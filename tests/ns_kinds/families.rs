//! Children that are born while their creators move: who is a member of a group is in its namespaces.

use std::path::Path;

use crate::common::namespaces::{enter, good, group, mine, mount, ns_of, set, value};
use crate::common::{ids, state};
use crate::target::{Target, report, rounds};

/// Members that are elsewhere than their group.
fn astray(group: &Path, shown: &[(&str, String)]) -> Vec<(i32, String)> {
    let elsewhere = |tid: &i32| {
        shown.iter().find_map(|(kind, ns)| {
            let now = std::fs::read_link(format!("/proc/{tid}/ns/{kind}")).ok()?;
            let dead = matches!(state(*tid, *tid), None | Some('Z' | 'X'));
            (now.as_os_str() != ns.as_str() && !dead).then(|| now.display().to_string())
        })
    };
    ids(group.join("tasks")).into_iter().filter_map(|tid| Some((tid, elsewhere(&tid)?))).collect()
}

/// Whole families that fork all the time, moved parent by parent.
fn families(test: &str, threads: &str, kinds: &[&'static str]) {
    let Some(mount) = mount() else { return };
    let groups = ["a", "b"].map(|name| {
        let dir = group(&mount, name);
        kinds.iter().for_each(|kind| good(&dir, set(&dir, kind, "new")));
        let shown: Vec<(&str, String)> = kinds.iter().map(|kind| (*kind, value(&dir, &format!("ns.{kind}")))).collect();
        (dir, shown)
    });
    let mut target = Target::new(&["family", threads]);
    let (mut members, mut home) = (0, 0);
    let moves = rounds(600);
    for n in 0..moves {
        // To and fro, and home now and then.
        if n % 5 == 4 {
            good(mount.dir(), enter(mount.dir(), "cgroup.procs", target.pid()));
            assert_eq!(ns_of(target.pid(), kinds[0]), mine(kinds[0]));
            home += 1;
        } else {
            let (to, shown) = &groups[n % 2];
            good(to, enter(to, "cgroup.procs", target.pid()));
            assert_eq!(ns_of(target.pid(), kinds[0]), shown[0].1);
        }
        for (dir, shown) in &groups {
            let wrong = astray(dir, shown);
            assert!(wrong.is_empty(), "{test}: after {n} moves, in {}: {wrong:?}\n{}", dir.display(), mount.log());
            members += ids(dir.join("tasks")).len();
        }
    }
    report(test, &format!("{moves} moves, {home} of them home, {members} members looked at"));
    target.alive();
    target.untouched();
}

#[test]
fn of_one_thread() {
    families("of_one_thread", "2", &["uts", "net"]);
}

#[test]
fn of_several_threads() {
    families("of_several_threads", "5", &["uts", "ipc", "mnt"]);
}
