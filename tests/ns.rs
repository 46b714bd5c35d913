//! The ns controller on a real mount: running processes move into their group's namespaces.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use common::namespaces::{KINDS, SHARED, enter, good, group, link, mine, mount, ns_of, process, set, value};
use common::{Target, ids, text, wait_until, write};
use libc::{EBUSY, EINVAL, EPERM, ESRCH, EUSERS};

/// In and out again, with as many threads: each in the group's namespace, and then where it was.
fn there_and_back(kind: &str, threads: usize) {
    let Some(mount) = mount() else { return };
    let web = group(&mount, "web");
    assert_eq!(value(&web, &format!("ns.{kind}")), "inherit");
    good(&web, set(&web, kind, "new"));
    let made = value(&web, &format!("ns.{kind}"));
    assert!(made.starts_with(kind) && made != mine(kind), "{made}");
    let (mut target, tids) = process(threads);
    good(&web, enter(&web, "cgroup.procs", target.pid()));
    let seen = made.replace(kind, link(kind).split('_').next().expect("a name"));
    for tid in &tids {
        assert_eq!(ns_of(*tid, kind), seen, "{tid}");
    }
    assert_eq!(ids(web.join("tasks")).len(), tids.len());
    // It works as before, and its children are there too.
    let child = target.fork();
    assert_eq!(ns_of(child, kind), seen);
    if kind != "pid" {
        let thread = target.thread();
        assert_eq!(ns_of(thread, kind), seen);
        target.end_thread(thread);
    }
    good(mount.dir(), enter(mount.dir(), "cgroup.procs", target.pid()));
    for tid in &tids {
        assert_eq!(ns_of(*tid, kind), mine(kind), "{tid}");
    }
    assert_eq!(ns_of(child, kind), seen, "who stays, stays");
}

macro_rules! kinds {
    ($($kind:ident)*) => {
        $(
            mod $kind {
                #[test]
                fn one_thread() {
                    super::there_and_back(stringify!($kind), 0);
                }
                #[test]
                fn five_threads() {
                    super::there_and_back(stringify!($kind), 4);
                }
                #[test]
                fn a_hundred_threads() {
                    super::there_and_back(stringify!($kind), 99);
                }
            }
        )*
    };
}

kinds! { mnt uts ipc net cgroup }

#[test]
fn a_thousand_threads() {
    there_and_back("net", 999);
}

#[test]
fn pid_is_for_children() {
    there_and_back("pid", 0);
}

#[test]
fn time_is_entered_alone() {
    there_and_back("time", 0);
}

#[test]
fn several_threads_refuse_what_only_one_can() {
    let Some(mount) = mount() else { return };
    let (target, tids) = process(2);
    for (kind, errno) in [("user", EINVAL), ("time", EUSERS), ("pid", EINVAL)] {
        let web = group(&mount, kind);
        good(&web, set(&web, kind, "new"));
        assert_eq!(enter(&web, "cgroup.procs", target.pid()), Err(errno), "{kind}");
        let why = value(&web, "ns.last_error");
        assert!(why.contains(&target.pid().to_string()) && why.contains("several threads"), "{why}");
        assert!(tids.iter().all(|tid| ns_of(*tid, kind) == mine(kind)));
        assert_eq!(ids(web.join("tasks")), []);
    }
}

#[test]
fn a_user_namespace_is_one_way() {
    let Some(mount) = mount() else { return };
    let web = group(&mount, "web");
    good(&web, set(&web, "user", "new"));
    let target = Target::new();
    good(&web, enter(&web, "cgroup.procs", target.pid()));
    assert_eq!(ns_of(target.pid(), "user"), value(&web, "ns.user"));
    assert_eq!(text(format!("/proc/{}/uid_map", target.pid())).split_whitespace().collect::<Vec<_>>(), ["0", "0", "4294967295"]);
    assert_eq!(enter(mount.dir(), "cgroup.procs", target.pid()), Err(EPERM));
    assert!(value(mount.dir(), "ns.last_error").contains("cannot be left"));
    assert_eq!(ids(web.join("tasks")), [target.pid()]);
}

#[test]
fn the_writer_moves_himself() {
    let Some(mount) = mount() else { return };
    let web = group(&mount, "web");
    good(&web, set(&web, "uts", "new"));
    for threads in [0, 4] {
        let (mut target, tids) = process(threads);
        for tid in [tids[0], tids[tids.len() - 1]] {
            for number in [0, target.pid()] {
                assert_eq!(target.write(tid, &web.join("cgroup.procs"), number.to_string().as_bytes()), Ok(number.to_string().len()));
                assert!(tids.iter().all(|tid| ns_of(*tid, "uts") == value(&web, "ns.uts")));
                let home = mount.dir().join("cgroup.procs");
                assert_eq!(target.write(tid, &home, b"0"), Ok(1));
                assert!(tids.iter().all(|tid| ns_of(*tid, "uts") == mine("uts")));
            }
        }
        // One that is refused sees why.
        let (time, last) = (web.join("ns.time"), tids[tids.len() - 1]);
        if threads > 0 {
            assert_eq!(write(&time, "new"), Ok(3));
            assert_eq!(target.write(last, &web.join("cgroup.procs"), b"0"), Err(EUSERS));
            assert!(tids.iter().all(|tid| ns_of(*tid, "uts") == mine("uts")), "all or none");
        }
    }
}

#[test]
fn a_thread_moves_alone() {
    let Some(mount) = mount() else { return };
    let web = group(&mount, "web");
    for kind in ["net", "mnt"] {
        good(&web, set(&web, kind, "new"));
    }
    let (mut target, tids) = process(3);
    good(&web, enter(&web, "tasks", tids[2]));
    for tid in &tids {
        let there = *tid == tids[2];
        for kind in ["net", "mnt"] {
            assert_eq!(ns_of(*tid, kind) == value(&web, &format!("ns.{kind}")), there, "{tid} {kind}");
        }
    }
    // Whom it creates is where it is.
    let (thread, child) = (target.thread_from(tids[2]), target.fork_from(tids[2]));
    for tid in [thread, child] {
        assert_eq!(ns_of(tid, "net"), value(&web, "ns.net"));
        assert!(ids(web.join("tasks")).contains(&tid));
    }
    good(mount.dir(), enter(mount.dir(), "tasks", tids[2]));
    assert_eq!((ns_of(tids[2], "net"), ns_of(tids[2], "mnt")), (mine("net"), mine("mnt")));
}

#[test]
fn members_move_when_the_group_changes() {
    let Some(mount) = mount() else { return };
    let web = group(&mount, "web");
    let members: Vec<(Target, Vec<i32>)> = [0, 3, 0].into_iter().map(process).collect();
    for (target, _) in &members {
        good(&web, enter(&web, "cgroup.procs", target.pid()));
    }
    let tids: Vec<i32> = members.iter().flat_map(|(_, tids)| tids.clone()).collect();
    for value_of in ["new", "new", "inherit", "new"] {
        for kind in SHARED {
            good(&web, set(&web, kind, value_of));
            let shown = value(&web, &format!("ns.{kind}"));
            let expected = if value_of == "new" { shown.clone() } else { mine(kind) };
            assert_eq!(shown == "inherit", value_of == "inherit");
            tids.iter().for_each(|tid| assert_eq!(ns_of(*tid, kind), expected, "{tid} {kind}"));
        }
    }
    // One who cannot go keeps all of them.
    let before: Vec<_> = tids.iter().map(|tid| ns_of(*tid, "time")).collect();
    assert_eq!(set(&web, "time", "new"), Err(EUSERS));
    assert_eq!(tids.iter().map(|tid| ns_of(*tid, "time")).collect::<Vec<_>>(), before);
    assert_eq!(value(&web, "ns.time"), "inherit");
    assert!(value(&web, "ns.last_error").contains(&members[1].0.pid().to_string()));
}

#[test]
fn nested_groups_inherit() {
    let Some(mount) = mount() else { return };
    let (web, deep) = (group(&mount, "web"), group(&mount, "web/deep"));
    good(&web, set(&web, "net", "new"));
    good(&deep, set(&deep, "uts", "new"));
    let target = Target::new();
    good(&deep, enter(&deep, "cgroup.procs", target.pid()));
    assert_eq!(ns_of(target.pid(), "net"), value(&web, "ns.net"));
    assert_eq!(ns_of(target.pid(), "uts"), value(&deep, "ns.uts"));
    assert_eq!(value(&deep, "ns.net"), "inherit");
    let lines = text(deep.join("ns.effective"));
    let owners: Vec<(&str, &str)> =
        lines.lines().map(|line| (line.split(' ').next().unwrap_or_default(), line.rsplit(' ').next().unwrap_or_default())).collect();
    assert_eq!(owners, [("uts", "/web/deep"), ("net", "/web")]);
    // What is above changes what is below.
    good(&web, set(&web, "net", "new"));
    assert_eq!(ns_of(target.pid(), "net"), value(&web, "ns.net"));
    good(&web, enter(&web, "cgroup.procs", target.pid()));
    assert_eq!((ns_of(target.pid(), "net"), ns_of(target.pid(), "uts")), (value(&web, "ns.net"), mine("uts")));
    good(&web, set(&web, "net", "inherit"));
    assert_eq!(ns_of(target.pid(), "net"), mine("net"));
    assert_eq!(text(web.join("ns.effective")), "");
}

#[test]
fn a_namespace_is_adopted_by_pid_and_by_path() {
    let Some(mount) = mount() else { return };
    let (web, other) = (group(&mount, "web"), group(&mount, "other"));
    let (holder, target) = (Target::new(), Target::new());
    good(&web, set(&web, "ipc", "new"));
    good(&web, enter(&web, "cgroup.procs", holder.pid()));
    good(&other, set(&other, "ipc", &holder.pid().to_string()));
    assert_eq!(value(&other, "ns.ipc"), value(&web, "ns.ipc"));
    good(&other, enter(&other, "cgroup.procs", target.pid()));
    assert_eq!(ns_of(target.pid(), "ipc"), value(&web, "ns.ipc"));
    good(&other, set(&other, "user", &std::process::id().to_string()));
    good(&other, enter(&other, "cgroup.procs", holder.pid()));
    // Who is meant is the writer.
    let script = format!("echo /proc/self/ns/uts > {}/ns.uts && exec readlink /proc/self/ns/uts", other.display());
    let output = Command::new("unshare").args(["--uts", "sh", "-c", &script]).output().expect("unshare");
    assert_eq!(value(&other, "ns.uts"), String::from_utf8_lossy(&output.stdout).trim_end());
    assert_ne!(value(&other, "ns.uts"), ns_of(mount.server_pid(), "uts"));
    for (text, errno) in
        [("/proc/self/ns/uts", EINVAL), ("/etc/passwd", EINVAL), ("/nowhere", libc::ENOENT), ("4194000", ESRCH), ("nonsense", EINVAL)]
    {
        assert_eq!(set(&other, "net", text), Err(errno), "{text}");
        let told = value(&other, "ns.last_error");
        assert!(told.starts_with(&format!("{text}: ")), "{told}");
    }
}

/// What was told of one move is not told of the next, which fails for another reason.
#[test]
fn an_error_is_told_once() {
    if !common::is_root() {
        return common::skipped("an_error_is_told_once", "needs root");
    }
    let mount = common::Mount::with_options("cpuset,ns");
    let web = group(&mount, "web");
    assert_eq!(set(&web, "net", "nonsense"), Err(EINVAL));
    assert!(value(&web, "ns.last_error").starts_with("nonsense: "));
    good(&web, set(&web, "net", "new"));
    assert_eq!(value(&web, "ns.last_error"), "");
    assert_eq!(set(&web, "net", "nonsense"), Err(EINVAL));
    good(&web, set(&web, "uts", "inherit"));
    assert_eq!(value(&web, "ns.last_error"), "", "nothing to do");
    assert_eq!(set(&web, "net", "nonsense"), Err(EINVAL));
    assert_eq!(enter(&web, "cgroup.procs", 4_194_000), Err(ESRCH));
    assert_eq!(value(&web, "ns.last_error"), "", "no move");
    assert_eq!(set(&web, "net", "nonsense"), Err(EINVAL));
    // Without CPUs.
    assert_eq!(enter(&web, "cgroup.procs", Target::new().pid()), Err(libc::ENOSPC));
    assert_eq!(value(&web, "ns.last_error"), "");
}

/// The path of a namespace on a file system that does not answer: the writer gets an error, and others go on.
#[test]
fn a_path_that_nobody_answers() {
    let Some(mount) = mount() else { return };
    let other = common::Mount::with_options("cpuset");
    let web = group(&mount, "web");
    let stopped = common::Stopped::new(other.server_pid());
    assert_eq!(set(&web, "net", &format!("/proc/..{}/none", other.dir().display())), Err(libc::EIO));
    assert!(value(&web, "ns.last_error").contains("does not answer"));
    fs::create_dir(mount.dir().join("another")).expect("mkdir");
    drop(stopped);
    good(&web, set(&web, "net", "new"));
}

#[test]
fn the_path_that_is_shown_can_be_entered() {
    let Some(mount) = mount() else { return };
    let web = group(&mount, "web");
    good(&web, set(&web, "net", "new"));
    let effective = value(&web, "ns.effective");
    let path = effective.split(' ').nth(2).expect("a path");
    let output = Command::new("nsenter").arg(format!("--net={path}")).args(["readlink", "/proc/self/ns/net"]).output().expect("nsenter");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), value(&web, "ns.net"));
}

#[test]
fn root_is_a_directory_of_the_members() {
    let Some(mount) = mount() else { return };
    let web = group(&mount, "web");
    let dir = common::TempDir::new();
    let jail = dir.path().join("jail");
    fs::create_dir(&jail).expect("a directory");
    let root = |tid: i32| fs::metadata(format!("/proc/{tid}/root")).map(|meta| (meta.dev(), meta.ino())).expect("a root");
    let there = fs::metadata(&jail).map(|meta| (meta.dev(), meta.ino())).expect("the directory");
    let home = root(std::process::id().cast_signed());
    let (target, tids) = process(3);
    good(&web, enter(&web, "cgroup.procs", target.pid()));
    good(&web, set(&web, "root", jail.to_str().expect("text")));
    assert!(tids.iter().all(|tid| root(*tid) == there));
    good(mount.dir(), enter(mount.dir(), "cgroup.procs", target.pid()));
    assert!(tids.iter().all(|tid| root(*tid) == home));
    good(&web, enter(&web, "cgroup.procs", target.pid()));
    assert!(tids.iter().all(|tid| root(*tid) == there));
    good(&web, set(&web, "root", "inherit"));
    assert!(tids.iter().all(|tid| root(*tid) == home));
    assert_eq!(set(&web, "root", "/nowhere"), Err(libc::ENOENT));
    assert_eq!(value(&web, "ns.root"), "inherit", "all or none");
    assert!(tids.iter().all(|tid| root(*tid) == home));
}

#[test]
fn who_is_traced_is_not_moved() {
    let Some(mount) = mount() else { return };
    let web = group(&mount, "web");
    good(&web, set(&web, "net", "new"));
    let target = Target::new();
    cgfuse::sys::ptrace::seize(target.pid(), 0).expect("seize");
    assert_eq!(enter(&web, "cgroup.procs", target.pid()), Err(EBUSY));
    assert!(value(&web, "ns.last_error").contains("traced by"));
    assert_eq!(ids(web.join("tasks")), []);
}

#[test]
fn a_pid_namespace_has_an_init() {
    let Some(mount) = mount() else { return };
    let web = group(&mount, "web");
    good(&web, set(&web, "pid", "new"));
    // The kinds that come later have holders of their own; the init is the same.
    good(&web, set(&web, "uts", "new"));
    let mut target = Target::new();
    good(&web, enter(&web, "cgroup.procs", target.pid()));
    let child = target.fork();
    assert_eq!(numbers(child), numbers(target.pid()) + 1);
    assert!(ids(web.join("cgroup.procs")).contains(&child));
}

/// How many pids a task has: one for each pid namespace that it is in.
fn numbers(tid: i32) -> usize {
    let status = text(format!("/proc/{tid}/status"));
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).expect("numbers");
    numbers.split_whitespace().count()
}

#[test]
fn a_pid_namespace_is_below_that_of_the_group_above() {
    let Some(mount) = mount() else { return };
    let (web, deep) = (group(&mount, "web"), group(&mount, "web/deep"));
    good(&web, set(&web, "pid", "new"));
    good(&deep, set(&deep, "pid", "new"));
    let mut target = Target::new();
    good(&deep, enter(&deep, "cgroup.procs", target.pid()));
    let own = numbers(target.pid());
    let child = target.fork();
    assert_eq!(numbers(child), own + 2);
    // He is where he is for good.
    let now = value(&deep, "ns.pid");
    assert_eq!(set(&deep, "pid", "new"), Err(EINVAL));
    assert!(value(&deep, "ns.last_error").contains("from the one above"), "{}", value(&deep, "ns.last_error"));
    assert_eq!((value(&deep, "ns.pid"), ns_of(target.pid(), "pid")), (now.clone(), now));
    target.reap(child);
    // Who is in the outer one himself goes further down.
    good(&web, enter(&web, "cgroup.procs", target.pid()));
    let child = target.fork();
    assert_eq!(numbers(child), own + 1);
    good(&deep, enter(&deep, "cgroup.procs", child));
    assert_eq!(ns_of(child, "pid"), value(&deep, "ns.pid"));
    good(&web, enter(&web, "cgroup.procs", child));
    assert_eq!(ns_of(child, "pid"), value(&web, "ns.pid"));
    // Another one, while there are members.
    good(&deep, enter(&deep, "cgroup.procs", child));
    good(&deep, set(&deep, "pid", "new"));
    assert_eq!(ns_of(child, "pid"), value(&deep, "ns.pid"));
}

#[test]
fn nothing_is_left() {
    let Some(mut mount) = mount() else { return };
    let web = group(&mount, "web");
    for (kind, _) in KINDS.into_iter().filter(|(kind, _)| *kind != "user") {
        good(&web, set(&web, kind, "new"));
    }
    let holder: i32 = value(&web, "ns.effective").split(['/', ' ']).find_map(|word| word.parse().ok()).expect("a holder's pid");
    assert!(Path::new(&format!("/proc/{holder}")).exists());
    fs::remove_dir(&web).expect("rmdir");
    wait_until("the holder ends", || !Path::new(&format!("/proc/{holder}")).exists());
    let deep = group(&mount, "other");
    good(&deep, set(&deep, "pid", "new"));
    let init: i32 = value(&deep, "ns.effective").split(['/', ' ']).find_map(|word| word.parse().ok()).expect("a holder's pid");
    assert!(mount.stop(nix::sys::signal::Signal::SIGTERM).success());
    wait_until("the init ends with the server", || !Path::new(&format!("/proc/{init}")).exists());
}

/// Its user may kill a holder. A new one is made, and nobody is told that he has failed in something else.
#[test]
fn a_dead_holder_is_replaced() {
    let Some(mount) = mount() else { return };
    let (web, deep) = (group(&mount, "web"), group(&mount, "web/deep"));
    good(&web, set(&web, "uts", "new"));
    let made = value(&web, "ns.uts");
    let holder = || -> i32 { value(&web, "ns.effective").split(['/', ' ']).find_map(|word| word.parse().ok()).expect("a holder") };
    let dead = holder();
    let kill = |pid| {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("kill");
        wait_until("it is dead", || matches!(common::state(pid, pid), None | Some('Z')));
    };
    kill(dead);
    let (mut target, tids) = process(3);
    for (tid, to) in [(tids[0], &web), (tids[3], &deep)] {
        assert_eq!(target.write(tid, &to.join("cgroup.procs"), b"0"), Ok(1));
        assert!(tids.iter().all(|tid| ns_of(*tid, "uts") == made));
    }
    assert!(holder() != dead && value(&web, "ns.uts") == made);
    kill(holder());
    good(&deep, set(&deep, "ipc", "new"));
    good(&web, enter(&web, "cgroup.procs", Target::new().pid()));
}

#[test]
fn what_cannot_be_taken_back_is_said() {
    let Some(mount) = mount() else { return };
    let web = group(&mount, "web");
    good(&web, set(&web, "user", "new"));
    good(&web, set(&web, "root", "/nowhere"));
    let target = Target::new();
    assert_eq!(enter(&web, "cgroup.procs", target.pid()), Err(libc::ENOENT));
    let why = value(&web, "ns.last_error");
    assert!(why.contains("chroot: ENOENT") && why.contains("taking it back failed"), "{why}");
    assert_eq!(ns_of(target.pid(), "user"), value(&web, "ns.user"), "{why}");
}

// Before Linux 6.9 threads have no pidfds.
on_other_kernels!(
    "tests/common/target.c",
    "a_pid_namespace_has_an_init",
    "a_thread_moves_alone",
    "members_move_when_the_group_changes",
    "mnt::five_threads",
    "net::a_hundred_threads",
    "root_is_a_directory_of_the_members",
    "the_writer_moves_himself",
    "time_is_entered_alone",
    "uts::one_thread",
);
