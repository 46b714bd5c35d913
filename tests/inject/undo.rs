//! All or none: what was done is taken back when a later step, or another thread, fails.

use cgfuse::inject::{Descriptor, InjectError, Namespace, Plan, Syscall, Target as Whom};
use nix::errno::Errno;

use super::target::{DEADLINE, NET, Target, UTS, call, file, holder, injector, namespace, setns};
use crate::common::{is_root, skipped};

/// The second step fails in every thread.
#[test]
fn a_later_step_fails() {
    if !is_root() {
        return skipped("a_later_step_fails", "not root");
    }
    let (holder, home) = (holder(NET | UTS), Target::new(&["idle", "1"]));
    let mut injector = injector();
    for (threads, by_file) in [("1", false), ("1", true), ("9", false), ("9", true), ("100", false)] {
        let mut target = Target::new(&["busy", threads]);
        let fds = std::fs::read_dir(format!("/proc/{}/fd", target.pid())).expect("fds").count();
        let mut plan = Plan::default();
        let to = plan.fd(Descriptor::Pidfd(holder.pid()));
        let (back, flags) = match by_file {
            true => (plan.fd(file(format!("/proc/{}/ns/uts", home.pid()))), 0),
            false => (plan.fd(Descriptor::Pidfd(home.pid())), UTS),
        };
        plan.step(call(Syscall::Setns, [to, UTS.into()]), vec![call(Syscall::Setns, [back, flags.into()])]);
        plan.step(call(Syscall::Fchdir, [to]), vec![]);
        let error = injector.inject(Whom::Process(target.pid()), &plan, DEADLINE).expect_err("fails");
        assert!(matches!(error, InjectError::Call { step: 1, call: Syscall::Fchdir, errno: Errno::ENOTDIR, .. }), "{error}");
        for uts in target.namespaces(Namespace::Uts) {
            assert_eq!(uts, home.namespace(Namespace::Uts), "{threads} {by_file}");
        }
        assert_eq!(std::fs::read_dir(format!("/proc/{}/fd", target.pid())).expect("fds").count(), fds);
        target.alive();
        target.untouched();
    }
}

/// One thread of many cannot: it has no privileges any more. Which one it is makes no difference.
#[test]
fn one_thread_fails() {
    if !is_root() {
        return skipped("one_thread_fails", "not root");
    }
    let (holder, home) = (holder(NET | UTS), Target::new(&["idle", "1"]));
    let mut injector = injector();
    for threads in [5, 40] {
        for place in [0, 1, threads / 2, threads - 1] {
            let mut target = Target::new(&["busy", &threads.to_string()]);
            let victim = target.tids()[place];
            // A thread whose namespaces are not those that the plan expects of all fails by design.
            injector.inject(Whom::Thread(victim), &setns(holder.pid(), holder.pid(), UTS), DEADLINE).expect("moved");
            let mut plan = setns(holder.pid(), home.pid(), NET);
            plan.expect.push((Namespace::Uts, home.namespace(Namespace::Uts)));
            let error = injector.inject(Whom::Process(target.pid()), &plan, DEADLINE).expect_err("fails");
            assert_eq!(error, InjectError::Mismatch { tid: victim, kind: Namespace::Uts }, "{error}");
            for net in target.namespaces(Namespace::Net) {
                assert_eq!(net, home.namespace(Namespace::Net));
            }
            target.alive();
            target.untouched();
        }
    }
}

/// One thread of a batch has no capabilities: its call fails while the others' succeed.
#[test]
fn one_thread_of_a_batch_fails() {
    if !is_root() {
        return skipped("one_thread_of_a_batch_fails", "not root");
    }
    let (holder, home) = (holder(NET), Target::new(&["idle", "1"]));
    let mut injector = injector();
    for threads in [5, 40] {
        for place in [0, 1, threads / 2, threads - 2] {
            let mut target = Target::new(&["weak", &threads.to_string(), &place.to_string()]);
            let plan = setns(holder.pid(), home.pid(), NET);
            let error = injector.inject(Whom::Process(target.pid()), &plan, DEADLINE).expect_err("fails");
            let InjectError::Call { tid, step: 0, errno: Errno::EPERM, .. } = error else { panic!("{error}") };
            let status = std::fs::read_to_string(format!("/proc/{tid}/status")).expect("status");
            assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
            for net in target.namespaces(Namespace::Net) {
                assert_eq!(net, home.namespace(Namespace::Net), "{threads} {place}");
            }
            target.alive();
            target.untouched();
        }
    }
}

/// One thread has a full descriptor table of its own: what the plan brings cannot be handed over.
#[test]
fn one_table_is_full() {
    if !is_root() {
        return skipped("one_table_is_full", "not root");
    }
    let (holder, home) = (holder(NET), Target::new(&["idle", "1"]));
    let mut injector = injector();
    for by_file in [false, true] {
        let mut target = Target::new(&["full", "9", "4"]);
        let victim = target.alive() as i32;
        let mut plan = setns(holder.pid(), home.pid(), NET);
        if by_file {
            plan.fds[0] = file(format!("/proc/{}/ns/net", holder.pid()));
        }
        let error = injector.inject(Whom::Process(target.pid()), &plan, DEADLINE).expect_err("fails");
        assert_eq!(error, InjectError::Descriptor { tid: victim, index: 0, errno: Errno::EMFILE }, "{error}");
        for tid in target.tids() {
            assert_eq!(namespace(tid, Namespace::Net), home.namespace(Namespace::Net), "{tid}");
        }
        target.alive();
        target.untouched();
    }
}

/// What cannot be taken back is said.
#[test]
fn undoing_fails() {
    if !is_root() {
        return skipped("undoing_fails", "not root");
    }
    let holder = holder(NET);
    let mut injector = injector();
    let mut target = Target::new(&["idle", "4"]);
    let mut plan = Plan::default();
    let to = plan.fd(Descriptor::Pidfd(holder.pid()));
    plan.step(call(Syscall::Setns, [to, NET.into()]), vec![call(Syscall::Fchdir, [to])]);
    plan.expect.push((Namespace::Uts, 1));
    let error = injector.inject(Whom::Process(target.pid()), &plan, DEADLINE).expect_err("fails");
    let InjectError::NotUndone { cause, errno: Errno::ENOTDIR, threads: 4, .. } = &error else { panic!("{error}") };
    assert!(matches!(**cause, InjectError::Mismatch { kind: Namespace::Uts, .. }), "{error}");
    assert_eq!(error.errno(), Errno::EIO);
    target.alive();
    target.untouched();
}
