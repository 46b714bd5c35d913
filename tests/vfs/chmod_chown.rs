//! Modes and owners: they stick, they count, and they delegate a subtree.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno::{EACCES, EBUSY, EPERM};

use super::actor::Actor;
use super::trees::{both, configured, free};
use crate::common::{affinity, wait_until};

const ALICE: u32 = 65534;
const BOB: u32 = 54321;
const KEEP: u32 = u32::MAX;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("stat").mode() & 0o7777
}

fn owner(path: &Path) -> (u32, u32) {
    let meta = fs::symlink_metadata(path).expect("stat");
    (meta.uid(), meta.gid())
}

/// Gives the group and its files to `uid`, as who delegates a subtree does.
fn delegate(dir: &Path, uid: u32) {
    let a = Actor::new();
    a.chown(dir, uid, uid).expect("chown");
    for entry in fs::read_dir(dir).expect("readdir").map(|e| e.expect("entry")) {
        a.chown(&entry.path(), uid, uid).expect("chown");
    }
}

fn modes_stick(tree: &Path) {
    let a = Actor::new();
    let g = tree.join("g");
    a.mkdir(&g, 0o755).expect("mkdir");
    for bits in [0, 0o600, 0o444, 0o777, 0o7777, 0o4755, 0o2644, 0o1000] {
        for path in [g.join("tasks"), g.clone()] {
            assert_eq!(a.chmod(&path, bits), Ok(0));
            assert_eq!(i64::from(mode(&path)), i64::from(bits), "{}", path.display());
        }
    }
    // The type is not a matter of chmod.
    assert_eq!(a.chmod(&g.join("tasks"), 0o100_640), Ok(0));
    assert_eq!(mode(&g.join("tasks")), 0o640);
    let fd = a.open(&g.join("tasks"), libc::O_RDONLY).expect("open");
    assert_eq!(a.call(libc::SYS_fchmod, [fd.into(), 0o604.into()]), Ok(0));
    a.close(fd).expect("close");
    a.chmod(&g, 0o751).expect("chmod");
    let moved = tree.join("moved");
    a.rename(&g, &moved, 0).expect("rename");
    assert_eq!((mode(&moved), mode(&moved.join("tasks")), mode(&moved.join("cpuset.cpus"))), (0o751, 0o604, 0o644));
    a.rmdir(&moved).expect("rmdir");
    // Nothing of it is left for the next of that name.
    a.mkdir(&moved, 0o755).expect("mkdir");
    assert_eq!((mode(&moved), mode(&moved.join("tasks"))), (0o755, 0o644));
    a.rmdir(&moved).expect("rmdir");
}

fn owners_stick(tree: &Path) {
    let a = Actor::new();
    let g = tree.join("g");
    a.mkdir(&g, 0o755).expect("mkdir");
    let tasks = g.join("tasks");
    a.chown(&tasks, ALICE, KEEP).expect("chown");
    a.chown(&g, KEEP, BOB).expect("chown");
    assert_eq!((owner(&tasks), owner(&g), owner(&g.join("cpuset.cpus"))), ((ALICE, 0), (0, BOB), (0, 0)));
    let fd = a.open(&tasks, libc::O_RDONLY).expect("open");
    assert_eq!(a.call(libc::SYS_fchown, [fd.into(), 1.into(), 2.into()]), Ok(0));
    a.close(fd).expect("close");
    assert_eq!(owner(&tasks), (1, 2));
    let moved = tree.join("moved");
    a.rename(&g, &moved, 0).expect("rename");
    assert_eq!((owner(&moved.join("tasks")), owner(&moved)), ((1, 2), (0, BOB)));
    a.rmdir(&moved).expect("rmdir");
}

fn chown_clears_set_id_bits(tree: &Path) {
    let a = Actor::new();
    let file = tree.join("tasks");
    a.chmod(&file, 0o6755).expect("chmod");
    assert_eq!(a.put(&tree.join("notify_on_release"), "1"), Ok(1));
    assert_eq!(mode(&file), 0o6755);
    a.chown(&file, ALICE, KEEP).expect("chown");
    assert_eq!(mode(&file), 0o755);
    let flag = tree.join("notify_on_release");
    a.chmod(&flag, 0o6755).expect("chmod");
    a.put(&flag, "0").expect("write");
    assert_eq!(mode(&flag), 0o6755, "writing does not clear them");
}

fn only_the_owner(tree: &Path) {
    let (a, alice, bob) = (Actor::new(), Actor::user(ALICE), Actor::user(BOB));
    let g = tree.join("g");
    a.mkdir(&g, 0o755).expect("mkdir");
    for path in [g.join("tasks"), g.clone()] {
        assert_eq!(alice.chmod(&path, 0o777), Err(EPERM));
        assert_eq!(alice.chown(&path, ALICE, KEEP), Err(EPERM));
        assert_eq!(alice.chown(&path, KEEP, ALICE), Err(EPERM));
    }
    delegate(&g, ALICE);
    for path in [g.join("tasks"), g.clone()] {
        assert_eq!(alice.chmod(&path, 0o750), Ok(0));
        assert_eq!(mode(&path), 0o750);
        assert_eq!(bob.chmod(&path, 0o777), Err(EPERM));
        // Giving away is root's alone; a group one is not in as well.
        assert_eq!(alice.chown(&path, BOB, KEEP), Err(EPERM));
        assert_eq!(alice.chown(&path, KEEP, BOB), Err(EPERM));
        assert_eq!(alice.chown(&path, KEEP, ALICE), Ok(0));
        // Nor can one make a set-gid file of a group one is not in.
        a.chown(&path, ALICE, BOB).expect("chown");
        assert_eq!(alice.chmod(&path, 0o2755), Ok(0));
        assert_eq!(mode(&path), 0o755);
        a.chown(&path, ALICE, ALICE).expect("chown");
    }
    a.rmdir(&g).expect("rmdir");
}

fn times_need_the_owner(tree: &Path) {
    let (a, alice) = (Actor::new(), Actor::user(ALICE));
    let file = tree.join("notify_on_release");
    let zeros = [0u8; 32];
    let utime = |now: bool| {
        let stamps = if now { super::actor::Arg::Null } else { zeros[..].into() };
        alice.call(libc::SYS_utimensat, [libc::AT_FDCWD.into(), (&file).into(), stamps, 0.into()])
    };
    assert_eq!((utime(false), utime(true)), (Err(EPERM), Err(EACCES)));
    a.chmod(&file, 0o666).expect("chmod");
    assert_eq!((utime(false), utime(true)), (Err(EPERM), Ok(0)));
    a.chown(&file, ALICE, KEEP).expect("chown");
    assert_eq!(utime(false), Ok(0));
}

/// What delegation is for: a user splits what was given, for processes of the user's own.
fn a_delegated_subtree_is_usable(tree: &Path) {
    let (a, alice) = (Actor::new(), Actor::user(ALICE));
    let g = tree.join("g");
    configured(&g);
    delegate(&g, ALICE);
    // Groups of one's own, with files of one's own.
    let mine = g.join("mine");
    assert_eq!(alice.mkdir(&mine, 0o755), Ok(0));
    assert_eq!(
        (owner(&mine), owner(&mine.join("tasks")), owner(&mine.join("cpuset.effective_cpus"))),
        ((ALICE, ALICE), (ALICE, ALICE), (ALICE, ALICE))
    );
    assert_eq!(alice.put(&mine.join("cpuset.cpus"), "1"), Ok(1));
    assert_eq!(alice.put(&mine.join("cpuset.mems"), "0"), Ok(1));
    // Processes of one's own, from outside too, oneself, threads.
    let member = Actor::user(ALICE);
    let thread = member.thread();
    assert_eq!(alice.put(&mine.join("cgroup.procs"), member.id.to_string()), Ok(member.id.to_string().len() as i64));
    assert_eq!((affinity(member.id), affinity(thread.id)), (vec![1], vec![1]));
    assert_eq!(alice.put(&g.join("tasks"), thread.id.to_string()), Ok(thread.id.to_string().len() as i64));
    assert_eq!(affinity(thread.id), [0, 1]);
    assert_eq!(alice.put(&mine.join("tasks"), "0"), Ok(1));
    assert_eq!(affinity(alice.id), [1]);
    assert_eq!(alice.rmdir(&mine), Err(EBUSY));
    // Not those of others.
    let roots = Actor::new();
    assert_eq!(alice.put(&mine.join("tasks"), roots.id.to_string()), Err(EACCES));
    assert_eq!(alice.put(&mine.join("cgroup.procs"), roots.id.to_string()), Err(EACCES));
    assert_eq!(affinity(roots.id), free());
    // Nor more than was given, nor what is above.
    a.put(&g.join("cpuset.cpus"), "0-1").expect("write");
    assert_eq!(alice.put(&tree.join("tasks"), alice.id.to_string()), Err(EACCES));
    assert_eq!(alice.put(&tree.join("cpuset.cpus"), "1"), Err(EACCES));
    assert_eq!(alice.mkdir(&tree.join("more"), 0o755), Err(EACCES));
    assert_eq!(alice.rename(&g, &tree.join("h"), 0), Err(EACCES));
    assert_eq!(alice.rename(&mine, &g.join("ours"), 0), Ok(0));
    assert_eq!(alice.put(&g.join("tasks"), "0"), Ok(1));
    member.quit();
    wait_until("the group can go", || alice.rmdir(&g.join("ours")) == Ok(0));
    assert_eq!(alice.rmdir(&g), Err(EACCES));
}

/// Only `tasks` was given: moving in is possible, configuring is not.
fn a_delegated_file(tree: &Path) {
    let (a, alice) = (Actor::new(), Actor::user(ALICE));
    let g = tree.join("g");
    configured(&g);
    a.chown(&g.join("tasks"), ALICE, KEEP).expect("chown");
    assert_eq!(alice.put(&g.join("tasks"), "0"), Ok(1));
    assert_eq!(alice.put(&g.join("cgroup.procs"), "0"), Err(EACCES));
    assert_eq!(alice.put(&g.join("cpuset.cpus"), "0"), Err(EACCES));
    assert_eq!(alice.mkdir(&g.join("x"), 0o755), Err(EACCES));
    assert_eq!(a.text(&g.join("tasks")), Ok(format!("{}\n", alice.id)));
}

fn set_gid_directories_hand_down_their_group(tree: &Path) {
    let (a, alice) = (Actor::new(), Actor::user(ALICE));
    let g = tree.join("g");
    a.mkdir(&g, 0o755).expect("mkdir");
    a.chown(&g, KEEP, BOB).expect("chown");
    a.chmod(&g, 0o2777).expect("chmod");
    for (who, name, uid) in [(&a, "by-root", 0), (&alice, "by-alice", ALICE)] {
        let child = g.join(name);
        assert_eq!(who.mkdir(&child, 0o755), Ok(0));
        assert_eq!((owner(&child), mode(&child)), ((uid, BOB), 0o2755), "{name}");
        assert_eq!((owner(&child.join("tasks")), mode(&child.join("tasks"))), ((uid, BOB), 0o644), "{name}");
        a.rmdir(&child).expect("rmdir");
    }
    a.rmdir(&g).expect("rmdir");
}

fn sticky_directories_protect_groups(tree: &Path) {
    let (a, alice, bob) = (Actor::new(), Actor::user(ALICE), Actor::user(BOB));
    let g = tree.join("g");
    a.mkdir(&g, 0o755).expect("mkdir");
    a.chmod(&g, 0o1777).expect("chmod");
    let mine = g.join("mine");
    assert_eq!(alice.mkdir(&mine, 0o755), Ok(0));
    assert_eq!(bob.rmdir(&mine), Err(EPERM));
    assert_eq!(bob.rename(&mine, &g.join("yours"), 0), Err(EPERM));
    assert_eq!(bob.mkdir(&mine.join("x"), 0o755), Err(EACCES));
    assert_eq!(alice.rename(&mine, &g.join("still"), 0), Ok(0));
    assert_eq!(alice.rmdir(&g.join("still")), Ok(0));
    // The owner of the sticky directory may.
    a.chown(&g, BOB, KEEP).expect("chown");
    assert_eq!(alice.mkdir(&mine, 0o755), Ok(0));
    assert_eq!(bob.rmdir(&mine), Ok(0));
    // Without the bit, whoever may write may remove.
    a.chmod(&g, 0o777).expect("chmod");
    a.chown(&g, 0, 0).expect("chown");
    assert_eq!(alice.mkdir(&mine, 0o755), Ok(0));
    assert_eq!(bob.rmdir(&mine), Ok(0));
    a.rmdir(&g).expect("rmdir");
}

/// A member of the group of a file has the group's bits.
fn group_bits_count(tree: &Path) {
    let a = Actor::new();
    let alice = Actor::new();
    let groups = BOB.to_ne_bytes();
    alice.call(libc::SYS_setgroups, [1.into(), groups[..].into()]).expect("setgroups");
    alice.setresuid(ALICE, ALICE, ALICE).expect("setresuid");
    let file = tree.join("notify_on_release");
    a.chown(&file, 0, BOB).expect("chown");
    a.chmod(&file, 0o660).expect("chmod");
    assert_eq!(alice.put(&file, "1"), Ok(1));
    assert_eq!(alice.text(&file).as_deref(), Ok("1\n"));
    assert_eq!(Actor::user(ALICE).put(&file, "0"), Err(EACCES));
    a.chmod(&file, 0o606).expect("chmod");
    assert_eq!(alice.put(&file, "0"), Err(EACCES), "the group's bits, not the others'");
}

both! {
    modes_stick owners_stick chown_clears_set_id_bits only_the_owner times_need_the_owner
    a_delegated_subtree_is_usable a_delegated_file set_gid_directories_hand_down_their_group
    sticky_directories_protect_groups group_bits_count
}
