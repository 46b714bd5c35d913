//! The ns controller on a real mount, from all sides: every kind, every way in and out, every number of threads, and
//! what fails in the middle.

mod common;
mod sandbox;

/// Of the calls that block, whether io_uring is there.
#[allow(dead_code, reason = "the injector's own tests use the rest")]
#[path = "inject/blocked.rs"]
mod blocked;
/// A process that judges for itself.
#[allow(dead_code, reason = "the injector's own tests use the rest")]
#[path = "inject/target.rs"]
mod target;

mod ns_kinds {
    mod clients; // targets that are clients themselves
    mod families; // children that are born during moves
    mod interrupted; // what a target sees
    mod killed; // the server dies, the injector dies
    mod matrix; // kinds, threads, ways
    mod random; // histories against a reference
    mod rollback; // what fails in the middle
    mod strangers; // users of a server of root's
    mod tools; // nsenter and ip
    mod users; // a server of an ordinary user's
}
