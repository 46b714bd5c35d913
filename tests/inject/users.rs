//! Without privileges: a user's injector, and whose processes it reaches.

use std::os::unix::fs::PermissionsExt;

use cgfuse::inject::{Descriptor, InjectError, Injector, Namespace, Plan, Syscall, Target as Whom};
use nix::errno::Errno;

use super::target::{DEADLINE, IPC, MNT, NET, Target, UTS, call, injector, program, setns};
use crate::common::kernels::THERE;
use crate::common::{TempDir, as_user, is_root, skipped, spawn};

const USER: i32 = libc::CLONE_NEWUSER;
const UID: u32 = 61_234;
const OTHER: u32 = 61_235;

/// An injector process with a user's credentials: a script in between changes them.
fn users_injector(dir: &TempDir) -> Injector {
    let script = dir.path().join("injector");
    let cgfuse = env!("CARGO_BIN_EXE_cgfuse");
    // Not by its name: some shells have one of their own, which changes no users.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let setpriv = std::env::split_paths(&path).map(|dir| dir.join("setpriv")).find(|file| file.exists()).expect("setpriv (util-linux)");
    let setpriv = setpriv.display();
    let text = format!("#!/bin/sh\nexec {setpriv} --reuid {UID} --regid {UID} --clear-groups {cgfuse} \"$@\"\n");
    std::fs::write(&script, text).expect("write");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    Injector::new(script)
}

/// Whether the test can run: as root, with programs that the user can execute.
fn possible(test: &str) -> bool {
    let reachable = |path: &std::path::Path| {
        let mut command = std::process::Command::new("test");
        command.arg("-x").arg(path);
        as_user(&mut command, UID);
        spawn(command).and_then(|mut child| child.wait()).is_ok_and(|status| status.success())
    };
    let possible = is_root() && reachable(program()) && reachable(env!("CARGO_BIN_EXE_cgfuse").as_ref());
    if !possible {
        skipped(test, "not root, or the user cannot execute the programs");
    }
    possible
}

/// With a user namespace of the user's own, all kinds in one step.
#[test]
fn own_process() {
    if !possible("own_process") {
        return;
    }
    let dir = TempDir::new();
    let mut injector = users_injector(&dir);
    let flags = USER | NET | UTS | IPC;
    let holder = Target::user(UID, &["holder", &format!("{flags:x}")]);
    let mut target = Target::user(UID, &["idle", "1"]);
    // Its own user namespace is what it lacks.
    let error = injector.inject(Whom::Process(target.pid()), &setns(holder.pid(), holder.pid(), NET), DEADLINE).expect_err("no privilege");
    assert_eq!(error.errno(), Errno::EPERM, "{error}");
    assert!(matches!(error, InjectError::Call { .. }), "{error}");
    injector.inject(Whom::Process(target.pid()), &setns(holder.pid(), holder.pid(), flags), DEADLINE).expect("moved");
    for kind in [Namespace::User, Namespace::Net, Namespace::Uts, Namespace::Ipc] {
        assert_eq!(target.namespace(kind), holder.namespace(kind), "{kind}");
    }
    target.alive();
    target.untouched();
    // Several threads cannot enter a user namespace: the kernel says so, and nobody has moved.
    let mut target = Target::user(UID, &["idle", "4"]);
    let net = target.namespace(Namespace::Net);
    let error = injector.inject(Whom::Process(target.pid()), &setns(holder.pid(), holder.pid(), flags), DEADLINE).expect_err("threads");
    assert!(matches!(error, InjectError::Call { step: 0, errno: Errno::EINVAL, .. }), "{error}");
    assert_eq!(target.namespaces(Namespace::Net), vec![net; 4]);
    target.alive();
    target.untouched();
}

/// A user namespace and what belongs to it in one step, directories in the next ones. When a later step fails the way back is barred, and the error says so.
#[test]
fn several_steps() {
    if !possible("several_steps") {
        return;
    }
    let dir = TempDir::new();
    let mut injector = users_injector(&dir);
    let flags = USER | NET | UTS | IPC | MNT;
    let holder = Target::user(UID, &["holder", &format!("{flags:x}")]);
    let other = Target::user(UID, &["idle", "1"]);
    for fails in [false, true] {
        let mut target = Target::user(UID, &["idle", "1"]);
        let fds = || std::fs::read_dir(format!("/proc/{}/fd", target.pid())).expect("fds").count();
        let (before, home) = (fds(), target.namespace(Namespace::User));
        let mut plan = Plan::default();
        let (there, back) = (plan.fd(Descriptor::Pidfd(holder.pid())), plan.fd(Descriptor::Pidfd(other.pid())));
        let path = plan.data(if fails { &b"/dev/null\0"[..] } else { b"/dev\0" });
        plan.step(call(Syscall::Setns, [there, flags.into()]), vec![call(Syscall::Setns, [back, (flags & !USER).into()])]);
        plan.step(call(Syscall::Chroot, [path]), vec![]);
        plan.expect = [Namespace::User, Namespace::Net, Namespace::Mnt].map(|kind| (kind, holder.namespace(kind))).to_vec();
        let result = injector.inject(Whom::Process(target.pid()), &plan, DEADLINE);
        assert_ne!(holder.namespace(Namespace::User), home);
        for kind in [Namespace::User, Namespace::Net, Namespace::Uts, Namespace::Ipc, Namespace::Mnt] {
            assert_eq!(target.namespace(kind), holder.namespace(kind), "{kind}: {result:?}");
        }
        match result {
            Ok(_) => assert_eq!(std::fs::read_link(format!("/proc/{}/root", target.pid())).expect("root"), std::path::Path::new("/dev")),
            Err(InjectError::NotUndone { cause, threads: 1, .. }) => {
                assert!(matches!(*cause, InjectError::Call { step: 1, call: Syscall::Chroot, errno: Errno::ENOTDIR, .. }), "{cause}");
            }
            Err(error) => panic!("{error}"),
        }
        assert_eq!(fds(), before);
        target.alive();
        target.untouched();
    }
}

const SCOPE: &str = "/proc/sys/kernel/yama/ptrace_scope";

/// Yama: only descendants may be traced (1), nobody but by root (2). Neither is a process of another parent. A kernel that is ours alone is set to either.
#[test]
fn yama() {
    let Ok(scope) = std::fs::read_to_string(SCOPE) else { return skipped("yama", &format!("the kernel has no Yama (no {SCOPE})")) };
    if !possible("yama") {
        return;
    }
    if std::env::var_os(THERE).is_some() {
        for scope in ["1", "2"] {
            std::fs::write(SCOPE, scope).expect("root sets it");
            yama_forbids();
        }
    } else if scope.trim() == "0" {
        skipped("yama", "kernel.yama.ptrace_scope is 0");
    } else {
        yama_forbids();
    }
}

/// A user; root may.
fn yama_forbids() {
    let dir = TempDir::new();
    let holder = Target::user(UID, &["holder", &format!("{:x}", USER | NET)]);
    let mut target = Target::user(UID, &["idle", "1"]);
    let plan = setns(holder.pid(), holder.pid(), USER | NET);
    let error = users_injector(&dir).inject(Whom::Process(target.pid()), &plan, DEADLINE).expect_err("not a descendant");
    assert_eq!(error, InjectError::NotPermitted { tid: target.pid() });
    assert!(error.to_string().contains("ptrace_scope"), "{error}");
    target.alive();
    target.untouched();
    let mut target = Target::new(&["idle", "1"]);
    injector().inject(Whom::Process(target.pid()), &setns(holder.pid(), holder.pid(), NET), DEADLINE).expect("root may");
    target.alive();
}

/// Others' processes are out of reach.
#[test]
fn others() {
    if !possible("others") {
        return;
    }
    let dir = TempDir::new();
    let mut injector = users_injector(&dir);
    let holder = Target::user(UID, &["holder", &format!("{:x}", USER | NET)]);
    for mut target in [Target::user(OTHER, &["idle", "2"]), Target::new(&["idle", "2"])] {
        let error = injector.inject(Whom::Process(target.pid()), &setns(holder.pid(), holder.pid(), NET), DEADLINE).expect_err("not ours");
        assert_eq!(error, InjectError::NotPermitted { tid: target.pid() });
        target.untouched();
        target.alive();
    }
}

/// Filters cannot be suspended by a user, and could kill: refused before anything is changed.
#[test]
fn filters() {
    if !possible("filters") {
        return;
    }
    let dir = TempDir::new();
    let mut injector = users_injector(&dir);
    let holder = Target::user(UID, &["holder", &format!("{:x}", USER | NET)]);
    let mut target = Target::user(UID, &["filtered"]);
    let error =
        injector.inject(Whom::Process(target.pid()), &setns(holder.pid(), holder.pid(), USER | NET), DEADLINE).expect_err("filters");
    assert_eq!(error, InjectError::Seccomp { tid: target.pid() });
    target.alive();
    target.untouched();
}
