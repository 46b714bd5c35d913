//! The ns controller on a real mount, from all sides: every kind, every way in and out, every number of threads, what fails in the middle,
//! and what a target sees of its moves.

mod common;

/// Blocking calls, and how they end.
#[path = "inject/blocked.rs"]
mod blocked;
/// A process that judges for itself.
#[allow(dead_code, reason = "the injector's own tests use the rest")]
#[path = "inject/target.rs"]
mod target;

mod ns_kinds {
    mod interrupted; // what a target sees of it
    mod matrix; // kinds, threads, ways
    mod rollback; // what fails in the middle
}
