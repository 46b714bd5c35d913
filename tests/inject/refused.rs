//! What cannot be injected into: the error says why, and nothing has changed.

use std::time::{Duration, Instant};

use cgfuse::inject::{Arg, InjectError, Namespace, Plan, Syscall, Target as Whom};
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

/// A parent that waits for a vfork child does not stop before that; the injector gives up and lets go.
#[test]
fn a_vfork_parent() {
    let mut injector = injector();
    let mut target = Target::new(&["vfork"]);
    wait_until("the child runs", || state(target.pid(), target.pid()) == Some('D'));
    let start = Instant::now();
    let error = injector.inject(Whom::Process(target.pid()), &nothing(), Duration::from_millis(100)).expect_err("does not stop");
    assert_eq!((error.errno(), error), (Errno::EBUSY, InjectError::NotStopping { tid: target.pid(), state: 'D' }));
    assert!(start.elapsed() < Duration::from_secs(5));
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
    if std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|text| text.trim() != "0") {
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
