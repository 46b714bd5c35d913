//! What cannot be injected into: the error says why, and nothing has changed.

use std::time::Duration;

use cgfuse::inject::{Arg, InjectError, Injector, Namespace, Plan, Syscall, Target as Whom};
use cgfuse::sys::ptrace;
use nix::errno::Errno;
use nix::unistd::Pid;

use super::target::{DEADLINE, NET, Target, UTS, call, holder, injector, setns};
use crate::common::{is_root, skipped, state, wait_until};

fn nothing() -> Plan {
    let mut plan = Plan::default();
    plan.step(call(Syscall::Prctl, [Arg::from(libc::PR_GET_DUMPABLE)]), vec![]);
    plan
}

#[test]
fn nobody() {
    let mut injector = injector();
    let target = Target::new(&["idle", "1"]);
    let pid = target.pid();
    drop(target);
    let error = injector.inject(Whom::Process(pid), &nothing(), DEADLINE).expect_err("gone");
    assert_eq!((error.errno(), error), (Errno::ESRCH, InjectError::Gone { tid: pid }));
}

#[test]
fn ourselves() {
    let mut injector = injector();
    let own = nix::unistd::getpid().as_raw();
    assert_eq!(injector.inject(Whom::Process(own), &nothing(), DEADLINE), Err(InjectError::Itself { tid: own }));
    injector.start().expect("starts");
    let helper = injector.pid().expect("a process");
    assert_eq!(injector.inject(Whom::Process(helper), &nothing(), DEADLINE), Err(InjectError::Itself { tid: helper }));
}

#[test]
fn kernel_threads() {
    if !is_root() {
        return skipped("kernel_threads", "not root");
    }
    let kthreadd = std::fs::read_to_string("/proc/2/comm").unwrap_or_default();
    if kthreadd.trim() != "kthreadd" {
        return skipped("kernel_threads", "none visible");
    }
    assert_eq!(injector().inject(Whom::Process(2), &nothing(), DEADLINE), Err(InjectError::KernelThread { tid: 2 }));
}

#[test]
fn zombies() {
    let mut child = std::process::Command::new("true").spawn().expect("true");
    let pid = child.id().cast_signed();
    wait_until("it is dead", || state(pid, pid) == Some('Z'));
    assert_eq!(injector().inject(Whom::Process(pid), &nothing(), DEADLINE), Err(InjectError::Gone { tid: pid }));
    child.wait().expect("wait");
}

/// Somebody traces it: the error tells who.
#[test]
fn traced() {
    let target = Target::new(&["idle", "2"]);
    // The tracer is this thread; the kernel tells the thread's number.
    let pid = Pid::from_raw(target.pid());
    ptrace::seize(target.pid(), 0).expect("seize");
    let error = injector().inject(Whom::Process(target.pid()), &nothing(), DEADLINE).expect_err("traced");
    let InjectError::Traced { tid, tracer } = error else { panic!("{error}") };
    assert_eq!((tid, tracer), (target.pid(), nix::unistd::gettid().as_raw()));
    assert_eq!(error.errno(), Errno::EBUSY);
    ptrace::interrupt(target.pid()).expect("interrupt");
    nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::__WALL)).expect("stopped");
    ptrace::detach(target.pid()).expect("detach");
    injector().inject(Whom::Process(target.pid()), &nothing(), DEADLINE).expect("free again");
    target.untouched();
}

/// The injector gives up and lets go. On a loaded machine it may not even get to say why; once more, then.
fn assert_does_not_stop(injector: &mut Injector, target: &Target) {
    for _ in 0..100 {
        let error = injector.inject(Whom::Process(target.pid()), &nothing(), Duration::from_millis(100)).expect_err("does not stop");
        assert_eq!(error.errno(), Errno::EBUSY, "{error}");
        if !matches!(error, InjectError::Unsettled { .. }) {
            return assert_eq!(error, InjectError::NotStopping { tid: target.pid(), state: 'D' });
        }
    }
    panic!("never heard why");
}

/// A frozen process (cgroup v1) does not stop either: it stays frozen, and goes on unharmed afterwards.
#[test]
fn frozen() {
    if !is_root() {
        return skipped("frozen", "not root");
    }
    let root = std::path::Path::new("/sys/fs/cgroup/freezer");
    if !root.join("tasks").exists() {
        return skipped("frozen", "no freezer hierarchy of cgroup v1");
    }
    let group = Freezer(root.join(format!("cgfuse-test-inject-{}", std::process::id())));
    std::fs::create_dir(&group.0).expect("mkdir");
    let holder = holder(UTS);
    let mut injector = injector();
    for (mode, threads) in [("idle", "1"), ("busy", "4")] {
        let mut target = Target::new(&[mode, threads]);
        let home = target.namespaces(Namespace::Uts);
        std::fs::write(group.0.join("cgroup.procs"), target.pid().to_string()).expect("into the group");
        group.set("FROZEN");
        assert_does_not_stop(&mut injector, &target);
        assert_eq!(group.state(), "FROZEN");
        assert_eq!(target.namespaces(Namespace::Uts), home);
        let busy = std::fs::read_to_string(format!("/proc/{}/status", target.pid())).expect("status");
        assert!(busy.contains("TracerPid:\t0"), "{busy}");
        group.set("THAWED");
        target.alive();
        target.untouched();
        injector.inject(Whom::Process(target.pid()), &setns(holder.pid(), holder.pid(), UTS), DEADLINE).expect("now it does");
        target.alive();
        target.untouched();
    }
}

/// A group of the kernel's freezer; dropped, it is thawed, emptied and removed.
struct Freezer(std::path::PathBuf);

impl Freezer {
    fn state(&self) -> String {
        std::fs::read_to_string(self.0.join("freezer.state")).expect("freezer.state").trim().to_owned()
    }

    fn set(&self, state: &str) {
        std::fs::write(self.0.join("freezer.state"), state).expect("freezer.state");
        wait_until(state, || self.state() == state);
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("freezer.state"), "THAWED");
        let tasks = std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        for pid in tasks.split_whitespace() {
            let _ = std::fs::write(self.0.join("../cgroup.procs"), pid);
        }
        // Whoever has just been killed may still be there.
        wait_until("the group is empty", || std::fs::remove_dir(&self.0).is_ok() || !self.0.exists());
    }
}

/// A parent that waits for a vfork child does not stop before that; the injector gives up and lets go.
#[test]
fn a_vfork_parent() {
    let mut injector = injector();
    let mut target = Target::new(&["vfork"]);
    wait_until("the child runs", || state(target.pid(), target.pid()) == Some('D'));
    assert_does_not_stop(&mut injector, &target);
    target.send();
    assert_eq!(target.said().result, 0);
    assert_eq!(target.line(), "ready");
    target.untouched();
    injector.inject(Whom::Process(target.pid()), &nothing(), DEADLINE).expect("now it does");
    target.alive();
}

/// The deadline holds when some threads have stopped already: they go on.
#[test]
fn an_invalid_plan() {
    let mut plan = nothing();
    plan.step(call(Syscall::Setns, [Arg::Fd(0), NET.into()]), vec![]);
    let own = nix::unistd::getpid().as_raw();
    assert_eq!(injector().inject(Whom::Process(own), &plan, DEADLINE).expect_err("invalid").errno(), Errno::EINVAL);
}

/// Filters that would kill rest while the calls are made, where CAP_SYS_ADMIN allows it; without, they are respected.
#[test]
fn seccomp() {
    if !is_root() {
        return skipped("seccomp", "not root");
    }
    let own = std::fs::read_to_string("/proc/self/status").expect("status");
    if !own.contains("Seccomp:\t0") {
        return skipped("seccomp", "we have filters ourselves");
    }
    let holder = holder(UTS);
    let mut injector = injector();
    let mut target = Target::new(&["filtered"]);
    injector.inject(Whom::Process(target.pid()), &setns(holder.pid(), holder.pid(), UTS), DEADLINE).expect("moved");
    assert_eq!(target.namespace(Namespace::Uts), holder.namespace(Namespace::Uts));
    target.alive();
    let status = std::fs::read_to_string(format!("/proc/{}/status", target.pid())).expect("status");
    assert!(status.contains("Seccomp:\t2"));
}

#[test]
fn io_uring() {
    if !is_root() {
        return skipped("io_uring", "not root");
    }
    if super::blocked::io_uring_is_disabled() {
        return skipped("io_uring", "disabled");
    }
    let holder = holder(UTS);
    let mut injector = injector();
    let mut target = Target::new(&["uring"]);
    let mut plan = setns(holder.pid(), holder.pid(), UTS);
    let error = injector.inject(Whom::Process(target.pid()), &plan, DEADLINE).expect_err("a worker");
    assert!(matches!(error, InjectError::IoWorker { tid } if tid != target.pid()), "{error}");
    target.untouched();
    plan.skip_io_workers = true;
    let report = injector.inject(Whom::Process(target.pid()), &plan, DEADLINE).expect("moved");
    assert_eq!((report.threads, report.skipped), (1, 1));
    target.alive();
}

/// The injected call's own refusal leaves everything as it was.
#[test]
fn the_call_itself() {
    let mut injector = injector();
    let mut target = Target::new(&["busy", "3"]);
    let mut plan = Plan::default();
    // Not a namespace.
    let null = plan.fd(super::target::file("/dev/null"));
    plan.step(call(Syscall::Setns, [null, 0.into()]), vec![]);
    let error = injector.inject(Whom::Process(target.pid()), &plan, DEADLINE).expect_err("fails");
    assert!(matches!(error, InjectError::Call { step: 0, call: Syscall::Setns, errno: Errno::EINVAL, .. }), "{error}");
    target.alive();
    target.untouched();
}

/// A plan for a single thread is none for several, and changes nothing.
#[test]
fn several() {
    if !is_root() {
        return skipped("several", "not root");
    }
    let home = holder(UTS);
    let mut injector = injector();
    let mut plan = setns(home.pid(), home.pid(), UTS);
    plan.single = true;
    let mut target = Target::new(&["busy", "2"]);
    let before = target.namespaces(Namespace::Uts);
    let error = injector.inject(Whom::Process(target.pid()), &plan, DEADLINE).expect_err("it has two");
    assert_eq!(error, InjectError::Several { tid: target.pid() });
    assert_eq!(target.namespaces(Namespace::Uts), before);
    target.alive();
    target.untouched();
    let target = Target::new(&["idle", "1"]);
    injector.inject(Whom::Process(target.pid()), &plan, DEADLINE).expect("it has one");
    assert_eq!(target.namespace(Namespace::Uts), home.namespace(Namespace::Uts));
}
