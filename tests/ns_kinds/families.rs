//! Children that are born while their creators move: who is a member of a group is in its namespaces, and finds home from there.

use std::path::Path;

use crate::common::namespaces::{enter, good, group, link, mine, mount, set, value};
use crate::common::{ids, state, wait_until};
use crate::target::{Target, report, rounds};

/// What a task has of these kinds, `root` being its root directory; nothing when it is dead.
fn place(tid: i32, kinds: &[&str]) -> Option<Vec<String>> {
    let link = |kind: &&str| if *kind == "root" { "root".to_owned() } else { format!("ns/{}", link(kind)) };
    let links = kinds.iter().map(|kind| std::fs::read_link(format!("/proc/{tid}/{}", link(kind))));
    let place: Vec<String> = links.map(|link| Some(link.ok()?.display().to_string())).collect::<Option<_>>()?;
    (!matches!(state(tid, tid), None | Some('Z' | 'X'))).then_some(place)
}

/// Members that are elsewhere than their group.
fn astray(group: &Path, kinds: &[&str], shown: &[String]) -> Vec<(i32, Vec<String>)> {
    let members = ids(group.join("tasks")).into_iter();
    members.filter_map(|tid| Some((tid, place(tid, kinds)?))).filter(|(_, place)| place != shown).collect()
}

/// The pids of all that execute the target's program.
fn family() -> Vec<i32> {
    let pids = std::fs::read_dir("/proc").expect("/proc").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == crate::target::program())).collect()
}

/// Whole families that fork all the time, moved parent by parent.
fn families(test: &str, threads: &str, kinds: &[&'static str]) {
    let Some(mount) = mount() else { return };
    let groups = ["a", "b"].map(|name| {
        let dir = group(&mount, name);
        let shown: Vec<String> = kinds
            .iter()
            .map(|kind| {
                good(&dir, set(&dir, kind, if *kind == "root" { "/usr" } else { "new" }));
                value(&dir, &format!("ns.{kind}"))
            })
            .collect();
        (dir, shown)
    });
    let home: Vec<String> = kinds.iter().map(|kind| if *kind == "root" { "/".to_owned() } else { mine(kind) }).collect();
    let mut target = Target::new(&["family", threads]);
    let (mut members, mut homes) = (0, 0);
    let moves = rounds(600);
    for n in 0..moves {
        // To and fro, and home now and then.
        let (to, there): (&Path, &Vec<String>) = if n % 5 == 4 { (mount.dir(), &home) } else { (&groups[n % 2].0, &groups[n % 2].1) };
        good(to, enter(to, "cgroup.procs", target.pid()));
        homes += usize::from(to == mount.dir());
        assert_eq!(place(target.pid(), kinds).as_ref(), Some(there));
        for (dir, shown) in &groups {
            let wrong = astray(dir, kinds, shown);
            assert!(wrong.is_empty(), "{test}: after {n} moves, in {}: {wrong:?}\n{}", dir.display(), mount.log());
            members += ids(dir.join("tasks")).len();
        }
    }
    // All go home: whoever is in a group, and those who were born on the way there.
    good(mount.dir(), enter(mount.dir(), "cgroup.procs", target.pid()));
    wait_until("the groups are empty", || {
        let left: Vec<i32> = groups.iter().flat_map(|(dir, _)| ids(dir.join("cgroup.procs"))).collect();
        left.iter().for_each(|pid| assert!(matches!(enter(mount.dir(), "cgroup.procs", *pid), Ok(_) | Err(libc::ESRCH))));
        left.is_empty()
    });
    let lost = || -> Vec<(i32, Vec<String>)> {
        let places = family().into_iter().filter_map(|pid| Some((pid, place(pid, kinds)?)));
        places.filter(|(_, place)| groups.iter().any(|(_, shown)| place.iter().zip(shown).any(|(is, group)| is == group))).collect()
    };
    // Whose birth took longer than the last move is looked at a moment later.
    let mut last = Vec::new();
    let mut found = || {
        last = lost();
        last.is_empty()
    };
    let all_home = (0..1500).any(|_| {
        let home = found();
        if !home {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        home
    });
    assert!(all_home, "{test}: {last:?} are in no group, and not at home\n{}", mount.log());
    report(test, &format!("{moves} moves, {homes} of them home, {members} members looked at"));
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

#[test]
fn with_a_root_directory() {
    families("with_a_root_directory", "2", &["root"]);
}
