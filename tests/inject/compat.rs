//! 32-bit processes under a 64-bit injector.

use std::collections::BTreeSet;

use cgfuse::inject::{Arg, Namespace, Plan, Syscall, Target as Whom};

use super::calls::all_calls;
use super::signals::ordered;
use super::target::{DEADLINE, NET, Target, UTS, call, file, holder, injector, program32};
use crate::common::{TempDir, is_root, skipped};

macro_rules! program {
    ($test:literal) => {
        match program32() {
            Some(program) if is_root() => program,
            _ => return skipped($test, "not root, or no 32-bit compiler"),
        }
    };
}

#[test]
fn blocked_calls_go_on() {
    all_calls("compat::blocked_calls_go_on", program!("compat::blocked_calls_go_on"));
}

#[test]
fn threads_and_arguments() {
    let program = program!("compat::threads_and_arguments");
    let holder = holder(NET | UTS);
    let mut injector = injector();
    for threads in ["1", "20"] {
        let mut target = Target::with(program, &["busy", threads], |_| {});
        let dir = TempDir::new();
        let mut plan = Plan::default();
        let (net, uts) =
            (plan.fd(file(format!("/proc/{}/ns/net", holder.pid()))), plan.fd(cgfuse::inject::Descriptor::Pidfd(holder.pid())));
        let (name, path) = (plan.data(*b"renamed\0"), plan.data([dir.path().as_os_str().as_encoded_bytes(), b"\0"].concat()));
        plan.step(call(Syscall::Setns, [net, 0.into()]), vec![]).step(call(Syscall::Setns, [uts, UTS.into()]), vec![]);
        plan.step(call(Syscall::Prctl, [Arg::from(libc::PR_SET_NAME), name]), vec![]).step(call(Syscall::Chdir, [path]), vec![]);
        injector.inject(Whom::Process(target.pid()), &plan, DEADLINE).expect("moved");
        for kind in [Namespace::Net, Namespace::Uts] {
            assert_eq!(target.namespaces(kind).into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([holder.namespace(kind)]));
        }
        assert_eq!(std::fs::read_link(format!("/proc/{}/cwd", target.pid())).expect("cwd"), dir.path());
        target.alive();
        target.untouched();
    }
}

#[test]
fn signals_in_order() {
    let program = program!("compat::signals_in_order");
    ordered("compat::signals_in_order", program, 1500);
}
