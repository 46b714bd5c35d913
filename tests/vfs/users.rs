//! Strangers on the mount: they move their own processes, through files they may write, no more.

use std::fs;
use std::path::Path;

use nix::errno::Errno::{EACCES, EINVAL, ENOSPC, EPERM, ESRCH};

use super::actor::{Actor, Outcome};
use super::trees::{both, configured, lacks_root};
use crate::common::{Mount, ids};

const ALICE: u32 = 65534;
const BOB: u32 = 54321;
const ROOT: u32 = 0;
const KTHREADD: i32 = 2;

/// A group whose `tasks` and `cgroup.procs` everybody may write.
fn open_house(tree: &Path) -> std::path::PathBuf {
    let g = tree.join("open");
    configured(&g);
    for name in ["tasks", "cgroup.procs"] {
        Actor::new().chmod(&g.join(name), 0o666).expect("chmod");
    }
    g
}

fn moves(a: &Actor, file: &Path, pid: i32) -> Outcome {
    a.put(file, pid.to_string()).map(|_| 0)
}

fn own_processes_only(tree: &Path) {
    let g = open_house(tree);
    let (alice, alices, bobs, roots) = (Actor::user(ALICE), Actor::user(ALICE), Actor::user(BOB), Actor::new());
    for name in ["tasks", "cgroup.procs"] {
        let file = g.join(name);
        assert_eq!(moves(&alice, &file, bobs.id), Err(EACCES), "{name}");
        assert_eq!(moves(&alice, &file, roots.id), Err(EACCES), "{name}");
        assert_eq!(moves(&alice, &file, 1), Err(EACCES), "{name}");
        assert_eq!(moves(&alice, &file, KTHREADD), Err(EINVAL), "{name}");
        assert_eq!(moves(&alice, &file, i32::MAX), Err(ESRCH), "{name}");
        assert_eq!(alice.put(&file, "garbage"), Err(EINVAL), "{name}");
        assert_eq!(ids(&file), [], "{name}");
        assert_eq!(moves(&alice, &file, alices.id), Ok(0), "{name}");
        assert_eq!(alice.put(&file, "0"), Ok(1), "{name}");
        assert_eq!(ids(&file).len(), 2, "{name}");
        // Nor away from here.
        assert_eq!(moves(&alice, &tree.join(name), alices.id), Err(EACCES), "{name}");
        for pid in [alice.id, alices.id] {
            assert_eq!(moves(&roots, &tree.join(name), pid), Ok(0), "{name}");
        }
    }
}

/// Where the task is now does not matter, not even a group one could not enter.
fn out_of_groups_of_others(tree: &Path) {
    let g = open_house(tree);
    let (a, alice) = (Actor::new(), Actor::user(ALICE));
    let closed = tree.join("closed");
    configured(&closed);
    moves(&a, &closed.join("tasks"), alice.id).expect("attach");
    a.chmod(&closed, 0o700).expect("chmod");
    assert_eq!(alice.put(&g.join("tasks"), "0"), Ok(1));
    assert_eq!(ids(g.join("tasks")), [alice.id]);
    assert_eq!(a.rmdir(&closed), Ok(0));
}

/// The errnos that come first.
fn precedence(tree: &Path) {
    let a = Actor::new();
    let (alice, roots) = (Actor::user(ALICE), Actor::new());
    let g = tree.join("bare");
    a.mkdir(&g, 0o755).expect("mkdir");
    a.chmod(&g.join("tasks"), 0o666).expect("chmod");
    let file = g.join("tasks");
    assert_eq!(moves(&alice, &file, roots.id), Err(EACCES), "before ENOSPC");
    assert_eq!(moves(&alice, &file, i32::MAX), Err(ESRCH));
    assert_eq!(moves(&alice, &file, KTHREADD), Err(EINVAL));
    assert_eq!(alice.put(&file, "0"), Err(ENOSPC));
    a.put(&g.join("cpuset.cpus"), "0").expect("cpus");
    assert_eq!(alice.put(&file, "0"), Err(ENOSPC), "no mems yet");
    a.put(&g.join("cpuset.mems"), "0").expect("mems");
    assert_eq!(alice.put(&file, "0"), Ok(1));
}

/// Of the writer the effective id counts, of the target the real and the saved one.
fn which_ids_count(tree: &Path) {
    let g = open_house(tree);
    let a = Actor::new();
    let file = g.join("tasks");
    for (target, writer, outcome) in [
        // (real, effective, saved) of both.
        ((ALICE, BOB, BOB), (ALICE, ALICE, ALICE), Ok(0)),
        ((BOB, BOB, ALICE), (ALICE, ALICE, ALICE), Ok(0)),
        ((BOB, ALICE, BOB), (ALICE, ALICE, ALICE), Err(EACCES)),
        ((BOB, BOB, BOB), (ALICE, ALICE, ALICE), Err(EACCES)),
        ((ALICE, ALICE, ALICE), (ALICE, BOB, BOB), Err(EACCES)),
        ((ALICE, ALICE, ALICE), (BOB, BOB, ALICE), Err(EACCES)),
        ((ALICE, ALICE, ALICE), (BOB, ALICE, BOB), Ok(0)),
        ((BOB, BOB, BOB), (ALICE, ROOT, ALICE), Ok(0)),
        ((ALICE, BOB, BOB), (ROOT, ALICE, ROOT), Ok(0)),
        ((BOB, BOB, BOB), (ROOT, ALICE, ROOT), Err(EACCES)),
        ((ROOT, ALICE, ROOT), (ALICE, ALICE, ALICE), Err(EACCES)),
    ] {
        let (t, w) = (Actor::new(), Actor::new());
        t.setresuid(target.0, target.1, target.2).expect("setresuid");
        w.setresuid(writer.0, writer.1, writer.2).expect("setresuid");
        assert_eq!(moves(&w, &file, t.id), outcome, "target {target:?}, writer {writer:?}");
        assert_eq!(ids(&file).contains(&t.id), outcome.is_ok(), "target {target:?}, writer {writer:?}");
        moves(&a, &tree.join("tasks"), t.id).expect("attach");
    }
}

/// A process of alice's that has capabilities (of a set-user-id program, say) may be hers, but
/// to set its scheduling takes as many: the cpuset's own veto.
fn more_capable_than_the_writer(tree: &Path) {
    let g = open_house(tree);
    let alice = Actor::user(ALICE);
    let mighty = Actor::new();
    mighty.setresuid(ALICE, ROOT, ALICE).expect("setresuid");
    assert_eq!(moves(&alice, &g.join("tasks"), mighty.id), Err(EPERM));
    assert_eq!(ids(g.join("tasks")), []);
}

/// The credentials that opened the file count, not those that write.
fn opened_by_root_used_by_a_user(tree: &Path) {
    let g = open_house(tree);
    for way in ["setuid", "fork", "pass"] {
        let (roots, bobs, alices) = (Actor::new(), Actor::user(BOB), Actor::user(ALICE));
        let opener = Actor::new();
        let (writer, fd) = hand_over(&opener, way, &g.join("tasks"), |writer| writer.become_user(ALICE), |_| ());
        let write = |pid: i32| writer.write(fd, pid.to_string()).map(|_| 0);
        // Allowed by the opener's credentials, refused by cpuset: the task has capabilities.
        assert_eq!(write(roots.id), Err(EPERM), "{way}");
        // bob's has none either.
        assert_eq!(write(bobs.id), Ok(0), "{way}");
        assert_eq!(write(alices.id), Ok(0), "{way}");
        assert_eq!(writer.write(fd, "0"), Ok(1), "{way}");
        assert_eq!(ids(g.join("tasks")).len(), 3, "{way}");
    }
}

fn opened_by_a_user_used_by_root(tree: &Path) {
    let g = open_house(tree);
    for way in ["setuid", "fork", "pass"] {
        let (roots, bobs, alices) = (Actor::new(), Actor::user(BOB), Actor::user(ALICE));
        let opener = Actor::new();
        let open_as = |opener: &Actor| assert_eq!(opener.setresuid(u32::MAX, ALICE, ROOT), Ok(0));
        let back = |writer: &Actor| assert_eq!(writer.setresuid(ROOT, ROOT, ROOT), Ok(0));
        let (writer, fd) = hand_over(&opener, way, &g.join("tasks"), back, open_as);
        let write = |pid: i32| writer.write(fd, pid.to_string()).map(|_| 0);
        assert_eq!(write(roots.id), Err(EACCES), "{way}");
        assert_eq!(write(bobs.id), Err(EACCES), "{way}");
        assert_eq!(writer.write(fd, "0"), Err(EACCES), "{way}: not even itself");
        assert_eq!(ids(g.join("tasks")), [], "{way}");
        assert_eq!(write(alices.id), Ok(0), "{way}");
        // Opened anew it can.
        assert_eq!(writer.put(&g.join("tasks"), "0"), Ok(1), "{way}");
    }
}

/// `opener` opens `file` after `before_open`; who then has it, after `before_write`, and where.
fn hand_over(opener: &Actor, way: &str, file: &Path, before_write: impl Fn(&Actor), before_open: impl Fn(&Actor)) -> (Actor, i64) {
    // Born first, when the descriptor is to be passed, not inherited.
    let receiver = (way == "pass").then(|| opener.fork());
    before_open(opener);
    let fd = opener.open(file, libc::O_WRONLY).expect("open");
    let (writer, fd) = match receiver {
        Some(receiver) => {
            let fd = opener.give(&receiver, fd);
            (receiver, fd)
        }
        None if way == "fork" => (opener.fork(), fd),
        None => (opener.clone(), fd),
    };
    before_write(&writer);
    (writer, fd)
}

/// Who has become root in a user namespace of his own is still himself here.
fn in_a_user_namespace(tree: &Path) {
    let g = open_house(tree);
    let (alice, roots, bobs) = (Actor::user(ALICE), Actor::new(), Actor::user(BOB));
    alice.call(libc::SYS_unshare, [libc::CLONE_NEWUSER.into()]).expect("unshare");
    assert_eq!(moves(&alice, &g.join("tasks"), roots.id), Err(EACCES));
    assert_eq!(moves(&alice, &g.join("tasks"), bobs.id), Err(EACCES));
    assert_eq!(moves(&alice, &tree.join("tasks"), alice.id), Err(EACCES));
    assert_eq!(alice.mkdir(&g.join("x"), 0o755), Err(EACCES));
    assert_eq!(alice.put(&g.join("tasks"), "0"), Ok(1));
    assert_eq!(ids(g.join("tasks")), [alice.id]);
}

/// Each thread of a user's process is the user's.
fn threads_of_ones_own(tree: &Path) {
    let g = open_house(tree);
    let (alice, alices, roots) = (Actor::user(ALICE), Actor::user(ALICE), Actor::new());
    let (thread, foreign) = (alices.thread(), roots.thread());
    assert_eq!(moves(&alice, &g.join("tasks"), thread.id), Ok(0));
    assert_eq!(moves(&alice, &g.join("tasks"), foreign.id), Err(EACCES));
    assert_eq!(ids(g.join("tasks")), [thread.id]);
    assert_eq!(ids(g.join("cgroup.procs")), [alices.id]);
}

#[test]
fn strangers_are_kept_out_on_demand() {
    if lacks_root() {
        return;
    }
    let mount = Mount::with_options("noallow_other");
    let alice = Actor::user(ALICE);
    assert_eq!(alice.open(&mount.dir().join("tasks"), libc::O_RDONLY), Err(EACCES));
    assert_eq!(alice.open(mount.dir(), libc::O_RDONLY), Err(EACCES));
    assert!(fs::read(mount.dir().join("tasks")).is_ok());
}

both! {
    own_processes_only out_of_groups_of_others precedence which_ids_count more_capable_than_the_writer
    opened_by_root_used_by_a_user opened_by_a_user_used_by_root in_a_user_namespace threads_of_ones_own
}
