//! Something fails in the middle, by design: all threads are where they were, and the group says which one, which step, and what to do.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Sender, channel};

use cgfuse::inject::Target as Whom;
use cgfuse::sys::ptrace;
use libc::{EBUSY, EINVAL, EMFILE, ENOENT, ENOSPC, ENOTDIR, EPERM};

use super::matrix::place;
use crate::common::namespaces::{enter, good, group, mine, mount, ns_of, process, set, value};
use crate::common::{Mount, TempDir, affinity, ids, is_root, raw, skipped, state, text, wait_until, write};
use crate::target::{CGROUP, DEADLINE, IPC, NET, Target, UTS, holder, injector, setns};

/// A target of which one thread cannot go, and how that is told.
struct Case {
    _tracer: Option<Tracer>,
    target: Target,
    /// The thread; 0 where it may be any.
    victim: i32,
    errno: i32,
    says: &'static [&'static str],
}

impl Case {
    fn new(target: Target, victim: i32, errno: i32, says: &'static [&'static str]) -> Self {
        Self { _tracer: None, target, victim, errno, says }
    }
}

/// Traces a thread until it is dropped; the tracer's end is what lets go.
struct Tracer {
    _end: Sender<()>,
}

impl Tracer {
    fn new(tid: i32) -> Self {
        let ((end, ended), (traces, traced)) = (channel::<()>(), channel());
        std::thread::spawn(move || {
            ptrace::seize(tid, 0).expect("seize");
            traces.send(()).expect("the test waits");
            let _ = ended.recv();
        });
        traced.recv().expect("traced");
        Self { _end: end }
    }
}

/// A target in a directory of its own.
fn start(dir: &TempDir, args: &[&str]) -> Target {
    Target::with(crate::target::program(), args, |command| {
        command.current_dir(dir.path());
    })
}

fn without_capabilities(target: &Target) -> i32 {
    let weak = |tid: &i32| text(format!("/proc/{tid}/status")).contains("CapEff:\t0000000000000000");
    target.tids().into_iter().find(weak).expect("a thread without capabilities")
}

/// All of them.
fn cases(dir: &TempDir) -> Vec<Case> {
    let mut cases = Vec::new();
    for place in ["0", "3", "7"] {
        let target = start(dir, &["weak", "9", place]);
        let victim = without_capabilities(&target);
        cases.push(Case::new(target, victim, EPERM, &["setns", "EPERM", "CAP_SYS_ADMIN"]));
        let mut target = start(dir, &["full", "9", place]);
        let victim = target.alive() as i32;
        cases.push(Case::new(target, victim, EMFILE, &["descriptor", "EMFILE", "RLIMIT_NOFILE"]));
    }
    let target = start(dir, &["busy", "9"]);
    let victim = target.tids()[4];
    let tracer = Some(Tracer::new(victim));
    cases.push(Case { _tracer: tracer, ..Case::new(target, victim, EBUSY, &["traced by", "try again"]) });
    let target = start(dir, &["vfork"]);
    wait_until("the child runs", || state(target.pid(), target.pid()) == Some('D'));
    let victim = target.pid();
    cases.push(Case::new(target, victim, EBUSY, &["does not stop", "vfork", "try again"]));
    if crate::blocked::io_uring_is_disabled() {
        skipped("rollback: io_uring", "disabled");
    } else {
        let target = start(dir, &["uring"]);
        let victim = target.tids().into_iter().find(|tid| *tid != target.pid()).expect("a worker");
        cases.push(Case::new(target, victim, EBUSY, &["kernel worker", "io_uring"]));
    }
    // It has gone elsewhere by itself.
    let target = start(dir, &["busy", "9"]);
    let (victim, there) = (target.tids()[5], holder(UTS));
    injector().inject(Whom::Thread(victim), &setns(there.pid(), there.pid(), UTS), DEADLINE).expect("moved");
    cases.push(Case::new(target, victim, EBUSY, &["not that of its process's other threads", "one by one"]));
    cases
}

/// Nobody has moved, the process goes on, and the reason is told.
#[track_caller]
fn nothing_has_changed(case: &mut Case, before: &[(i32, Vec<PathBuf>)], group: &Path) {
    for (tid, before) in before {
        assert_eq!(&place(*tid), before, "{tid}: {:?}", case.says);
    }
    let why = value(group, "ns.last_error");
    assert!(case.victim == 0 || why.starts_with(&format!("{}: ", case.victim)), "{}: {why}", case.victim);
    for word in case.says {
        assert!(why.contains(word), "{why}: {word}");
    }
    let traced = case.says[0].starts_with("traced");
    if !traced {
        case.target.untouched();
    }
    if state(case.target.pid(), case.target.pid()) != Some('D') {
        case.target.alive();
    }
}

fn places(target: &Target) -> Vec<(i32, Vec<PathBuf>)> {
    target.tids().into_iter().map(|tid| (tid, place(tid))).collect()
}

#[test]
fn a_thread_that_cannot_go_keeps_all() {
    let Some(mount) = mount() else { return };
    let (old, web) = (group(&mount, "old"), group(&mount, "web"));
    for kind in ["net", "mnt", "uts"] {
        good(&web, set(&web, kind, "new"));
    }
    let dir = TempDir::new();
    for mut case in cases(&dir) {
        let pid = case.target.pid();
        // It costs nothing to be a member of a group that manages nothing.
        good(&old, enter(&old, "cgroup.procs", pid));
        let (before, members) = (places(&case.target), ids(old.join("tasks")));
        assert_eq!(enter(&web, "cgroup.procs", pid), Err(case.errno), "{}", value(&web, "ns.last_error"));
        nothing_has_changed(&mut case, &before, &web);
        assert_eq!((ids(old.join("tasks")), ids(web.join("tasks"))), (members, vec![]));
    }
    // Who can go can, and then there is no error.
    let mut target = start(&dir, &["busy", "9"]);
    good(&web, enter(&web, "cgroup.procs", target.pid()));
    assert_eq!(value(&web, "ns.last_error"), "");
    target.alive();
}

/// The group is changed: those who have gone come back, in it and below it, and the group is as it was.
#[test]
fn a_member_that_cannot_go_keeps_the_group() {
    let Some(mount) = mount() else { return };
    let dir = TempDir::new();
    for below in [false, true] {
        let name = if below { "below" } else { "beside" };
        let (web, deep) = (group(&mount, name), group(&mount, &format!("{name}/deep")));
        let mut others = [start(&dir, &["busy", "3"]), start(&dir, &["busy", "1"]), start(&dir, &["busy", "2"])];
        for (other, group) in others.iter().zip([&web, &deep, &web]) {
            good(group, enter(group, "cgroup.procs", other.pid()));
        }
        for mut case in cases(&dir) {
            let pid = case.target.pid();
            let home = if below { &deep } else { &web };
            good(home, enter(home, "cgroup.procs", pid));
            let before = places(&case.target);
            let whole: Vec<_> = others.iter().map(places).collect();
            for (file, text) in [("uts", "new"), ("mnt", "new"), ("root", "/proc")] {
                // Changing directories is done by one for all, with nothing in hand; and who is elsewhere in one kind may go in another.
                if file == "root" && case.errno != EBUSY || file != "uts" && case.says[0].starts_with("not that of") {
                    continue;
                }
                assert_eq!(set(&web, file, text), Err(case.errno), "{file}: {:?}", case.says);
                assert_eq!((value(&web, &format!("ns.{file}")), value(&web, "ns.effective")), ("inherit".to_owned(), String::new()));
                nothing_has_changed(&mut case, &before, &web);
                assert_eq!(others.iter().map(places).collect::<Vec<_>>(), whole);
            }
            good(mount.dir(), enter(mount.dir(), "cgroup.procs", pid));
        }
        // The members that could go still can.
        good(&web, set(&web, "uts", "new"));
        for other in &mut others {
            other.alive();
            other.untouched();
            other.tids().into_iter().for_each(|tid| assert_eq!(ns_of(tid, "uts"), value(&web, "ns.uts")));
        }
    }
}

/// The last step, a root directory that is not there or is none, fails after a mount namespace was entered, which has cost both directories.
#[test]
fn directories_come_back() {
    let Some(mount) = mount() else { return };
    let (dir, jail) = (TempDir::new(), TempDir::new());
    std::fs::create_dir(jail.path().join("inner")).expect("a directory");
    let (old, web) = (group(&mount, "old"), group(&mount, "web"));
    good(&old, set(&old, "root", jail.path().to_str().expect("text")));
    for kind in ["mnt", "net", "ipc"] {
        good(&web, set(&web, kind, "new"));
    }
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("a file");
    for threads in ["1", "9", "100"] {
        for jailed in [false, true] {
            let mut target = start(&dir, &["busy", threads]);
            let home = if jailed { old.as_path() } else { mount.dir() };
            good(home, enter(home, "cgroup.procs", target.pid()));
            let before = places(&target);
            if !jailed {
                assert_eq!(before[0].1[9], dir.path());
            }
            for (root, errno, name) in [("/nowhere", ENOENT, "ENOENT"), (file.to_str().expect("text"), ENOTDIR, "ENOTDIR")] {
                good(&web, set(&web, "root", root));
                assert_eq!(enter(&web, "cgroup.procs", target.pid()), Err(errno), "{}", value(&web, "ns.last_error"));
                let why = value(&web, "ns.last_error");
                assert!(why.contains("chroot") && why.contains(name) && why.contains("must be a directory"), "{why}");
                assert_eq!(places(&target), before, "{threads} threads, in a jail: {jailed}");
                assert_eq!(ids(web.join("tasks")), []);
                target.alive();
                target.untouched();
            }
        }
    }
}

/// A user namespace cannot be left, so what comes after it has to be possible, or the move says that it was not undone.
#[test]
fn a_user_namespace_and_a_root_that_is_not_there() {
    let Some(mount) = mount() else { return };
    let web = group(&mount, "web");
    for kind in ["user", "mnt", "net"] {
        good(&web, set(&web, kind, "new"));
    }
    good(&web, set(&web, "root", "/nowhere"));
    let dir = TempDir::new();
    let mut target = start(&dir, &["busy", "1"]);
    let before = places(&target);
    assert_eq!(enter(&web, "cgroup.procs", target.pid()), Err(ENOENT));
    let why = value(&web, "ns.last_error");
    let same = places(&target) == before;
    assert!(same || why.contains("taking it back failed"), "{why}");
    assert_eq!(ids(web.join("tasks")), []);
    target.alive();
    target.untouched();
}

/// A mount of both controllers with a group that takes tasks, on CPU 0.
fn both() -> Option<(Mount, PathBuf)> {
    if !is_root() {
        skipped(std::thread::current().name().unwrap_or_default(), "needs root");
        return None;
    }
    let mount = Mount::with_options("cpuset,ns");
    let web = group(&mount, "web");
    for file in ["cpuset.mems", "cpuset.cpus"] {
        let all = value(mount.dir(), file);
        write(web.join(file), all.split([',', '-']).next().expect("the first")).expect("write");
    }
    Some((mount, web))
}

/// A controller that refuses before, or fails before or after: nothing of the others' stays.
#[test]
fn all_controllers_or_none() {
    let Some((mount, web)) = both() else { return };
    let all = affinity(std::process::id().cast_signed());
    if all.len() < 2 {
        return skipped("all_controllers_or_none", "one CPU only");
    }
    let empty = group(&mount, "empty");
    for dir in [&web, &empty] {
        for kind in ["net", "mnt"] {
            good(dir, set(dir, kind, "new"));
        }
    }
    let dir = TempDir::new();
    let check = |target: &Target, to: &Path, errno: i32| {
        let cpus = |target: &Target| target.tids().into_iter().map(affinity).collect::<Vec<_>>();
        let (before, had) = (places(target), cpus(target));
        assert_eq!(enter(to, "cgroup.procs", target.pid()), Err(errno), "{}", value(to, "ns.last_error"));
        assert_eq!((places(target), cpus(target)), (before, had), "errno {errno}");
        assert_eq!(ids(to.join("tasks")), []);
    };
    // cpuset refuses beforehand.
    let target = start(&dir, &["busy", "9"]);
    check(&target, &empty, ENOSPC);
    assert_eq!(value(&empty, "ns.last_error"), "", "nothing of ours");
    // cpuset fails, at a thread whose CPUs cannot be taken: ns has not begun.
    let tid = target.tids()[6];
    let chrt =
        Command::new("chrt").args(["-d", "-T", "1000000", "-P", "100000000", "-D", "100000000", "-p", "0", &tid.to_string()]).status();
    match chrt {
        Ok(status) if status.success() => check(&target, &web, EBUSY),
        _ => skipped("all_controllers_or_none: a deadline thread", "chrt -d fails"),
    }
    // ns fails, when all threads have had their CPUs changed; each has what it had, also who had a wish of its own.
    for place in ["0", "4", "7"] {
        let target = start(&dir, &["weak", "9", place]);
        raw::setaffinity(target.tids()[2], &all[1..2]).expect("sched_setaffinity");
        check(&target, &web, EPERM);
        let why = value(&web, "ns.last_error");
        assert!(why.starts_with(&format!("{}: ", without_capabilities(&target))), "{why}");
    }
    // And then it works, with both.
    let target = start(&dir, &["busy", "9"]);
    good(&web, enter(&web, "cgroup.procs", target.pid()));
    for tid in target.tids() {
        assert_eq!((affinity(tid), ns_of(tid, "net")), (vec![all[0]], value(&web, "ns.net")));
    }
    // One that leaves and cannot: CPUs of the group, and its namespace.
    let _tracer = Tracer::new(target.tids()[3]);
    assert_eq!(enter(mount.dir(), "cgroup.procs", target.pid()), Err(EBUSY));
    for tid in target.tids() {
        assert_eq!((affinity(tid), ns_of(tid, "net")), (vec![all[0]], value(&web, "ns.net")));
    }
}

/// The thread that writes is the one that fails, or another one of its process: it sees the errno, and none has moved.
#[test]
fn a_writer_whose_move_fails_sees_it() {
    let Some(mount) = mount() else { return };
    let web = group(&mount, "web");
    for kind in ["net", "mnt"] {
        good(&web, set(&web, kind, "new"));
    }
    for threads in [1, 5, 100] {
        let (mut target, tids) = process(threads - 1);
        let before: Vec<_> = tids.iter().map(|tid| place(*tid)).collect();
        for (root, errno) in [("/nowhere", ENOENT), ("/dev/null", ENOTDIR)] {
            good(&web, set(&web, "root", root));
            for by in [tids[0], tids[threads / 2]] {
                for (file, text) in
                    [("cgroup.procs", "0".to_owned()), ("cgroup.procs", target.pid().to_string()), ("tasks", "0".to_owned())]
                {
                    // Its own directories are what a thread would lose by unshare(CLONE_FS), which nobody sees.
                    assert_eq!(target.write(by, &web.join(file), text.as_bytes()), Err(errno), "{file} {text}");
                    assert_eq!(tids.iter().map(|tid| place(*tid)).collect::<Vec<_>>(), before);
                    // Its write returns a moment before everybody is back in the table.
                    wait_until("it is no member", || ids(web.join("tasks")).is_empty());
                }
            }
        }
        if threads > 1 {
            let time = group(&mount, &format!("time{threads}"));
            good(&time, set(&time, "user", "new"));
            assert_eq!(target.write(tids[1], &time.join("cgroup.procs"), b"0"), Err(EINVAL));
        }
        assert_eq!(ns_of(tids[0], "user"), mine("user"));
    }
}

/// One thread is in a namespace of its own of a kind that the group says nothing of, and so is a whole process: a mount namespace alone does not
/// take it elsewhere, neither on the way there nor back.
#[test]
fn what_is_not_managed_is_left_alone() {
    let Some(mount) = mount() else { return };
    let dir = TempDir::new();
    let (web, bad, free) = (group(&mount, "web"), group(&mount, "bad"), group(&mount, "free"));
    for group in [&web, &bad] {
        good(group, set(group, "mnt", "new"));
    }
    good(&bad, set(&bad, "root", "/nowhere"));
    let others = [holder(UTS), holder(UTS | IPC | NET | CGROUP)];
    let flags = [UTS, UTS | IPC | NET | CGROUP];
    for (other, flags) in others.iter().zip(flags) {
        for whole in [false, true] {
            let mut target = start(&dir, &["busy", "5"]);
            let whom = if whole { Whom::Process(target.pid()) } else { Whom::Thread(target.tids()[2]) };
            injector().inject(whom, &setns(other.pid(), other.pid(), flags), DEADLINE).expect("moved");
            let unmanaged = |target: &Target| target.tids().into_iter().map(|tid| place(tid)[1..8].to_vec()).collect::<Vec<_>>();
            let (before, rest) = (places(&target), unmanaged(&target));
            assert_eq!(enter(&bad, "cgroup.procs", target.pid()), Err(ENOENT));
            assert_eq!(places(&target), before, "{flags:x}, all: {whole}");
            good(&web, enter(&web, "cgroup.procs", target.pid()));
            assert_eq!(unmanaged(&target), rest, "{flags:x}, all: {whole}");
            assert!(target.tids().into_iter().all(|tid| ns_of(tid, "mnt") == value(&web, "ns.mnt")));
            good(mount.dir(), enter(mount.dir(), "cgroup.procs", target.pid()));
            assert_eq!(unmanaged(&target), rest, "{flags:x}, all: {whole}");
            assert!(target.tids().into_iter().all(|tid| ns_of(tid, "mnt") == mine("mnt")));
            // With the group, and back because another member cannot.
            let weak = start(&dir, &["weak", "3", "1"]);
            for pid in [target.pid(), weak.pid()] {
                good(&free, enter(&free, "cgroup.procs", pid));
            }
            let before = places(&target);
            assert_eq!(set(&free, "mnt", "new"), Err(EPERM));
            assert_eq!(places(&target), before, "{flags:x}, all: {whole}");
            good(mount.dir(), enter(mount.dir(), "cgroup.procs", weak.pid()));
            target.alive();
            target.untouched();
        }
    }
}

/// Who is no member has its own namespaces, also when other threads of its process come and go.
#[test]
fn threads_that_are_elsewhere_stay_there() {
    let Some(mount) = mount() else { return };
    let (web, net) = (group(&mount, "web"), group(&mount, "net"));
    good(&web, set(&web, "uts", "new"));
    good(&net, set(&net, "net", "new"));
    let target = crate::target::Target::new(&["apart", "4"]);
    let tids = target.tids();
    let own: Vec<String> = tids.iter().map(|tid| ns_of(*tid, "uts")).collect();
    assert!(own.iter().all(|ns| own.iter().filter(|other| *other == ns).count() == 1), "{own:?}");
    good(&web, enter(&web, "tasks", tids[1]));
    assert_eq!(ns_of(tids[1], "uts"), value(&web, "ns.uts"));
    // The process goes: each from where it is to where it is at home.
    for to in [mount.dir(), net.as_path(), mount.dir()] {
        good(to, enter(to, "cgroup.procs", target.pid()));
        assert_eq!(tids.iter().map(|tid| ns_of(*tid, "uts")).collect::<Vec<_>>(), own);
    }
    // Each finds its own home.
    for tid in &tids {
        good(&web, enter(&web, "tasks", *tid));
        assert_eq!(ns_of(*tid, "uts"), value(&web, "ns.uts"));
    }
    good(mount.dir(), enter(mount.dir(), "cgroup.procs", target.pid()));
    assert_eq!(tids.iter().map(|tid| ns_of(*tid, "uts")).collect::<Vec<_>>(), own);
}

/// Who comes into a group behind somebody, and is where that one was, is there for his own reasons.
#[test]
fn who_comes_behind_keeps_what_he_has() {
    let Some(mount) = mount() else { return };
    let (net, free) = (group(&mount, "net"), group(&mount, "free"));
    let owner = holder(libc::CLONE_NEWNET);
    good(&net, set(&net, "net", &owner.pid().to_string()));
    let first = Target::new(&["idle", "1"]);
    good(&net, enter(&net, "cgroup.procs", first.pid()));
    let path = format!("--net=/proc/{}/ns/net", owner.pid());
    let program = crate::target::program().to_str().expect("text");
    let second = Target::with(Path::new("/usr/bin/nsenter"), &[&path, program, "idle", "1"], |_| {});
    let own = ns_of(second.pid(), "net");
    assert_eq!(own, value(&net, "ns.net"));
    for target in [&first, &second] {
        good(&free, enter(&free, "cgroup.procs", target.pid()));
    }
    assert_eq!((ns_of(first.pid(), "net"), ns_of(second.pid(), "net")), (mine("net"), own));
}

/// A process that shares its directories with another (CLONE_FS) moves without it, and comes back.
#[test]
fn who_shares_directories_moves_alone() {
    let Some(mount) = mount() else { return };
    let dir = TempDir::new();
    let place =
        |pid: i32| ["root", "ns/mnt", "ns/net", "ns/user"].map(|link| std::fs::read_link(format!("/proc/{pid}/{link}")).expect(link));
    // Others mount and unmount meanwhile; who has lost his root directory sees nothing at all.
    let sees = |pid: i32| {
        let sees_mounts = !text(format!("/proc/{pid}/mountinfo")).is_empty();
        (std::fs::read_link(format!("/proc/{pid}/cwd")).expect("cwd"), sees_mounts)
    };
    for kinds in [&["root"][..], &["mnt"], &["net", "mnt"], &["mnt", "root"], &["user"]] {
        let web = group(&mount, &kinds.concat());
        for kind in kinds {
            good(&web, set(&web, kind, if *kind == "root" { dir.path().to_str().expect("text") } else { "new" }));
        }
        for parent_moves in [true, false] {
            let mut target = Target::new(&["fs-child"]);
            let pid = target.pid();
            let child: i32 = text(format!("/proc/{pid}/task/{pid}/children")).trim().parse().expect("a child");
            let (who, other) = if parent_moves { (pid, child) } else { (child, pid) };
            let (before, seen) = (place(other), sees(other));
            good(&web, enter(&web, "cgroup.procs", who));
            assert_ne!(place(who), before, "{kinds:?}");
            assert_eq!((place(other), sees(other)), (before.clone(), seen), "{kinds:?}: no member");
            // A user namespace is one way.
            if kinds != ["user"] {
                good(mount.dir(), enter(mount.dir(), "cgroup.procs", who));
                assert_eq!(place(who), before, "{kinds:?}");
            }
            target.alive();
        }
    }
}
