//! Everything at once: whatever the order, each answer is one of those possible, and what is
//! there afterwards fits together.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::errno::Errno::{EBUSY, EEXIST, EINVAL, ENODEV, ENOENT, ENOSPC};
use nix::fcntl::renameat;
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, mkdir, unlinkat};

use super::actor::Actor;
use super::trees::{both, configured, free, has_no_complaints, lacks_root};
use crate::common::{OursSub, Target, affinity, ids, read, try_affinity, wait_until, write};

type Outcome = Result<(), Errno>;

fn make(dir: &Path) -> Outcome {
    mkdir(dir, Mode::from_bits_truncate(0o755))
}

fn remove(dir: &Path) -> Outcome {
    unlinkat(nix::fcntl::AT_FDCWD, dir, UnlinkatFlags::RemoveDir)
}

fn mv(from: &Path, to: &Path) -> Outcome {
    renameat(nix::fcntl::AT_FDCWD, from, nix::fcntl::AT_FDCWD, to)
}

fn put(file: &Path, text: &str) -> Outcome {
    write(file, text).map(|_| ()).map_err(Errno::from_raw)
}

fn get(file: &Path) -> Outcome {
    read(file).map(|_| ()).map_err(Errno::from_raw)
}

fn list(dir: &Path) -> Outcome {
    let entries = fs::read_dir(dir).map_err(|e| Errno::from_raw(e.raw_os_error().expect("an errno")))?;
    // An entry may be gone by now, but none is broken.
    entries.for_each(|entry| assert!(!entry.expect("an entry").file_name().is_empty()));
    Ok(())
}

fn xorshift(mut state: u64) -> impl FnMut(usize) -> usize {
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below
    }
}

fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let seed = now.as_nanos() as u64 | 1;
    println!("seed {seed}");
    seed
}

/// Groups below `dir`, with itself.
fn groups(dir: &Path) -> Vec<PathBuf> {
    let mut all = vec![dir.to_owned()];
    let children = fs::read_dir(dir).expect("readdir").map(|e| e.expect("entry"));
    let children: Vec<_> = children.filter(|e| e.file_type().expect("type").is_dir()).map(|e| e.path()).collect();
    assert_eq!(fs::metadata(dir).expect("stat").nlink(), 2 + children.len() as u64, "{}", dir.display());
    children.iter().for_each(|child| all.extend(groups(child)));
    all
}

/// Each member is in one group, in all that tells it, and runs where that allows.
fn fits_together(tree: &Path, members: &[i32]) {
    let mut homes = HashMap::new();
    for group in groups(tree) {
        let cpus: Vec<usize> = match crate::common::text(group.join("cpuset.cpus")).as_str() {
            "0-1" => vec![0, 1],
            "" => vec![],
            one => vec![one.parse().expect("a CPU")],
        };
        for tid in ids(group.join("tasks")) {
            assert_eq!(homes.insert(tid, group.clone()), None, "{tid} is in two groups");
            assert_eq!(affinity(tid), cpus, "{tid} in {}", group.display());
        }
    }
    for member in members {
        assert!(homes.contains_key(member), "{member} is nowhere");
    }
    assert_eq!(homes.len(), members.len());
}

/// Threads that do everything to a few names.
fn storm(tree: &Path) {
    const THREADS: u64 = 8;
    const STEPS: usize = 400;
    let seed = seed();
    let targets: Vec<_> = (0..4).map(|_| Target::new()).collect();
    let members: Vec<_> = targets.iter().map(Target::pid).collect();
    for member in &members {
        put(&tree.join("tasks"), &member.to_string()).expect("attach");
    }
    thread::scope(|scope| {
        for n in 0..THREADS {
            let members = &members;
            scope.spawn(move || {
                let mut random = xorshift(seed.wrapping_mul(2 * n + 3));
                for _ in 0..STEPS {
                    step(tree, members, &mut random);
                }
            });
        }
    });
    fits_together(tree, &members);
    for member in &members {
        put(&tree.join("tasks"), &member.to_string()).expect("attach");
    }
    // What is left can go, and the server is well.
    for group in groups(tree).iter().skip(1).rev() {
        assert_eq!(remove(group), Ok(()), "{}", group.display());
    }
    fits_together(tree, &members);
    assert_eq!(fs::metadata(tree).expect("stat").nlink(), 2);
}

fn step(tree: &Path, members: &[i32], random: &mut impl FnMut(usize) -> usize) {
    const NAMES: [&str; 6] = ["a", "b", "c", "a/x", "a/y", "b/x"];
    const SETS: [&str; 4] = ["0", "1", "0-1", "\n"];
    let group = tree.join(NAMES[random(6)]);
    let member = members[random(members.len())].to_string();
    let (outcome, possible): (Outcome, &[Errno]) = match random(14) {
        0..3 => (make(&group), &[EEXIST, ENOENT]),
        3 => (remove(&group), &[ENOENT, EBUSY]),
        4 => {
            let to = group.with_file_name(["a", "b", "c", "x", "y"][random(5)]);
            // To an ancestor's name it is another error.
            (mv(&group, &to), &[ENOENT, EEXIST])
        }
        5 => (put(&group.join("tasks"), &member), &[ENOENT, ENODEV, ENOSPC]),
        6 => (put(&group.join("cgroup.procs"), &member), &[ENOENT, ENODEV, ENOSPC]),
        7 => (put(&tree.join("tasks"), &member), &[]),
        8 => {
            use Errno::EACCES;
            (put(&group.join("cpuset.cpus"), SETS[random(4)]), &[ENOENT, ENODEV, EBUSY, EACCES, ENOSPC])
        }
        9 => (put(&group.join("cpuset.mems"), "0"), &[ENOENT, ENODEV, Errno::EACCES]),
        10 => (get(&group.join(["tasks", "cpuset.cpus", "cgroup.procs"][random(3)])), &[ENOENT, ENODEV]),
        11 => (list(&group), &[ENOENT]),
        12 => (put(&group.join("cpuset.cpus"), "nonsense"), &[ENOENT, ENODEV, EINVAL]),
        _ => (put(&group.join("cpuset.cpu_exclusive"), "1"), &[ENOENT, ENODEV, Errno::EACCES]),
    };
    if let Err(errno) = outcome {
        assert!(possible.contains(&errno), "{errno} for {}", group.display());
    }
}

/// A process is moved by two at once: in the end all its threads are in one of the two groups.
fn two_movers(tree: &Path) {
    let many = Actor::new();
    many.park(40);
    for (name, cpus) in [("x", "0"), ("y", "1")] {
        put(&configured(&tree.join(name)).join("cpuset.cpus"), cpus).expect("cpus");
    }
    let pid = many.id.to_string();
    thread::scope(|scope| {
        for name in ["x", "y"] {
            let (procs, pid) = (tree.join(name).join("cgroup.procs"), &pid);
            scope.spawn(move || (0..100).for_each(|_| put(&procs, pid).expect("attach")));
        }
    });
    let (x, y) = (ids(tree.join("x/tasks")), ids(tree.join("y/tasks")));
    assert_eq!(x.len().max(y.len()), 41);
    assert_eq!(x.len().min(y.len()), 0);
    assert!(x.iter().all(|tid| affinity(*tid) == [0]));
    assert!(y.iter().all(|tid| affinity(*tid) == [1]));
}

/// Sets change while members come and go: each ends with the mask of the group it is in.
fn sets_against_moves(tree: &Path) {
    let targets: Vec<_> = (0..6).map(|_| Target::new()).collect();
    let members: Vec<_> = targets.iter().map(Target::pid).collect();
    for name in ["x", "y"] {
        configured(&tree.join(name));
    }
    for member in &members {
        put(&tree.join("x/tasks"), &member.to_string()).expect("attach");
    }
    thread::scope(|scope| {
        for name in ["x", "y"] {
            let cpus = tree.join(name).join("cpuset.cpus");
            scope.spawn(move || (0..150).for_each(|i| put(&cpus, ["0", "1", "0-1"][i % 3]).expect("cpus")));
        }
        for half in members.chunks(3) {
            scope.spawn(move || {
                for i in 0..150 {
                    let tasks = tree.join(["x", "y"][i % 2]).join("tasks");
                    put(&tasks, &half[i % 3].to_string()).expect("attach");
                }
            });
        }
    });
    fits_together(tree, &members);
}

/// Attach races with rmdir: either the group stays, with the task, or it goes, without.
fn attach_against_rmdir(tree: &Path) {
    let target = Target::new();
    let pid = target.pid().to_string();
    let g = tree.join("g");
    for round in 0..100 {
        configured(&g);
        let (attached, removed) = thread::scope(|scope| {
            let attach = scope.spawn(|| put(&g.join("tasks"), &pid));
            let removed = remove(&g);
            (attach.join().expect("attach"), removed)
        });
        match (attached, removed) {
            (Ok(()), Err(EBUSY)) => {
                assert_eq!(ids(g.join("tasks")), [target.pid()], "round {round}");
                put(&tree.join("tasks"), &pid).expect("attach");
                assert_eq!(remove(&g), Ok(()), "round {round}");
            }
            (Err(ENODEV | ENOENT), Ok(())) => {}
            other => panic!("round {round}: {other:?}"),
        }
        put(&tree.join("tasks"), &pid).expect("attach");
        assert_eq!(ids(tree.join("tasks")), [target.pid()], "round {round}");
    }
}

/// One name, many who want it: exactly one gets it.
fn one_name_for_many(tree: &Path) {
    for _ in 0..50 {
        let (made, removed) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| match make(&tree.join("g")) {
                    Ok(()) => assert_eq!(made.fetch_add(1, Ordering::Relaxed), 0),
                    Err(errno) => assert_eq!(errno, EEXIST),
                });
            }
        });
        thread::scope(|scope| {
            for n in 0..6 {
                let removed = &removed;
                scope.spawn(move || {
                    let outcome = if n % 2 == 0 { remove(&tree.join("g")) } else { mv(&tree.join("g"), &tree.join("h")) };
                    match outcome {
                        Ok(()) => assert_eq!(removed.fetch_add(1, Ordering::Relaxed), 0),
                        Err(errno) => assert_eq!(errno, ENOENT),
                    }
                });
            }
        });
        assert_eq!((made.into_inner(), removed.into_inner()), (1, 1));
        let _ = remove(&tree.join("h"));
    }
}

/// All threads, also those that are being made at this moment.
fn a_process_that_grows(tree: &Path) {
    let g = tree.join("g");
    put(&configured(&g).join("cpuset.cpus"), "1").expect("cpus");
    for _ in 0..5 {
        let many = Actor::new();
        let maker = many.clone();
        thread::scope(|scope| {
            scope.spawn(move || maker.park(300));
            wait_until("some are there", || threads(many.id) > 20);
            put(&g.join("cgroup.procs"), &many.id.to_string()).expect("attach");
        });
        let tids = ids(g.join("tasks"));
        assert_eq!(tids.len(), 301);
        assert!(tids.iter().all(|tid| affinity(*tid) == [1]));
        drop(many);
        wait_until("the group is empty", || ids(g.join("tasks")).is_empty());
    }
}

fn threads(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// While 2,000 threads are being moved, files are read: several times during one move, so no
/// reader waits for its end.
fn reading_during_a_migration(tree: &Path) {
    let many = Actor::new();
    many.park(1999);
    for (name, cpus) in [("x", "0"), ("y", "1")] {
        put(&configured(&tree.join(name)).join("cpuset.cpus"), cpus).expect("cpus");
    }
    let pid = many.id.to_string();
    put(&tree.join("x/cgroup.procs"), &pid).expect("attach");
    for file in ["cpuset.cpus", "tasks"] {
        let (moving, done) = (AtomicUsize::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                // Odd while a move is under way.
                for i in 1.. {
                    moving.fetch_add(1, Ordering::SeqCst);
                    put(&tree.join(["x", "y"][i % 2]).join("cgroup.procs"), &pid).expect("attach");
                    moving.fetch_add(1, Ordering::SeqCst);
                    if done.load(Ordering::SeqCst) {
                        break;
                    }
                }
            });
            let mut reads = (0, 0);
            wait_until(&format!("{file} is read three times during one move"), || {
                let before = moving.load(Ordering::SeqCst);
                get(&tree.join(file)).expect("read");
                let same = before % 2 == 1 && moving.load(Ordering::SeqCst) == before;
                reads = match reads {
                    (of, n) if same && of == before => (before, n + 1),
                    _ => (before, usize::from(same)),
                };
                reads.1 >= 3
            });
            done.store(true, Ordering::SeqCst);
        });
    }
    let (x, y) = (ids(tree.join("x/tasks")), ids(tree.join("y/tasks")));
    assert_eq!(x.len() + y.len(), 2000);
    assert!(x.is_empty() || y.is_empty());
}

/// Children are born while their parent is moved to and fro: each is in one of its groups, and
/// runs as that group says.
fn births_during_moves(tree: &Path) {
    let parent = Actor::new();
    for (name, cpus) in [("x", "0"), ("y", "1")] {
        put(&configured(&tree.join(name)).join("cpuset.cpus"), cpus).expect("cpus");
    }
    put(&tree.join("x/tasks"), &parent.id.to_string()).expect("attach");
    let (maker, done) = (parent.clone(), AtomicBool::new(false));
    let mut members = thread::scope(|scope| {
        let mover = scope.spawn(|| {
            for i in 1.. {
                put(&tree.join(["x", "y"][i % 2]).join("cgroup.procs"), &parent.id.to_string()).expect("attach");
                if done.load(Ordering::SeqCst) {
                    break;
                }
            }
        });
        let children: Vec<_> = (0..200).map(|_| maker.fork().id).collect();
        done.store(true, Ordering::SeqCst);
        mover.join().expect("mover");
        children
    });
    members.push(parent.id);
    fits_together(tree, &members);
}

/// The writer is killed in the middle of a migration: it happens to all threads or to none, and
/// nobody waits for the dead.
fn a_killed_writer(tree: &Path) {
    let many = Actor::new();
    many.park(999);
    for (name, cpus) in [("x", "0"), ("y", "1")] {
        put(&configured(&tree.join(name)).join("cpuset.cpus"), cpus).expect("cpus");
    }
    put(&tree.join("x/cgroup.procs"), &many.id.to_string()).expect("attach");
    for i in 1..=10 {
        let writer = Actor::new();
        let pid = nix::unistd::Pid::from_raw(writer.id);
        let (to, text) = (tree.join(["x", "y"][i % 2]).join("cgroup.procs"), many.id.to_string());
        thread::scope(|scope| {
            let write = scope.spawn(move || {
                let fd = writer.open(&to, libc::O_WRONLY)?;
                writer.write(fd, text)
            });
            // Somewhere before, in or after the write.
            (0..i * 20).for_each(|_| thread::yield_now());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            let _ = write.join().expect("no panic");
        });
        let in_group = |name: &str| ids(tree.join(name).join("tasks"));
        wait_until("all threads are in one group", || {
            let (x, y) = (in_group("x"), in_group("y"));
            x.len() + y.len() == 1000 && (x.is_empty() || y.is_empty())
        });
        for (name, cpu) in [("x", 0), ("y", 1)] {
            assert!(in_group(name).iter().all(|tid| affinity(*tid) == [cpu]), "round {i}");
        }
    }
}

/// The server itself is a process like any other: it can be a member, and pinned, and go on.
#[test]
fn the_server_as_a_member() {
    if lacks_root() {
        return;
    }
    let ours = OursSub::new();
    let (g, pid) = (ours.dir().join("g"), ours.mount().server_pid());
    put(&configured(&g).join("cpuset.cpus"), "1").expect("cpus");
    put(&g.join("cgroup.procs"), &pid.to_string()).expect("attach");
    // It may start and end threads meanwhile.
    let pinned_to = |cpus: &[usize]| {
        let threads = ids(g.join("tasks"));
        assert!(threads.contains(&pid) && threads.len() > 1);
        assert!(threads.iter().all(|tid| try_affinity(*tid).map_or_else(|errno| errno == libc::ESRCH, |mask| mask == cpus)));
    };
    pinned_to(&[1]);
    put(&g.join("cpuset.cpus"), "0").expect("cpus");
    pinned_to(&[0]);
    assert_eq!(remove(&g), Err(EBUSY));
    // Its own place does not change what the machine has for others.
    assert_eq!(read(ours.mount().dir().join("cpuset.cpus")), read(ours.mount().dir().join("cpuset.effective_cpus")));
    let other = Target::new();
    put(&ours.dir().join("tasks"), &other.pid().to_string()).expect("attach");
    assert_eq!(crate::common::text(ours.mount().dir().join("cpuset.cpus")), crate::common::text(ours.dir().join("cpuset.cpus")));
    assert_eq!(affinity(other.pid()), free());
    put(&ours.mount().dir().join("cgroup.procs"), &pid.to_string()).expect("attach");
    assert_eq!(affinity(pid), free());
    assert_eq!(remove(&g), Ok(()));
    has_no_complaints(ours.mount());
}

/// Readers and writers of one file: each reader sees a whole value that somebody wrote.
fn values_are_whole(tree: &Path) {
    let file = tree.join("cpuset.cpus");
    thread::scope(|scope| {
        for values in [["0", "0-1"], ["1", "0-1"]] {
            let file = &file;
            scope.spawn(move || (0..200).for_each(|i| put(file, values[i % 2]).expect("write")));
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..300 {
                    let text = read(&file).expect("read");
                    assert!([&b"0\n"[..], b"1\n", b"0-1\n"].contains(&&*text), "{text:?}");
                }
            });
        }
    });
}

both! {
    storm two_movers sets_against_moves attach_against_rmdir one_name_for_many a_process_that_grows
    reading_during_a_migration births_during_moves a_killed_writer values_are_whole
}
