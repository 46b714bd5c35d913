//! Membership, black box: the kernel's own hierarchies and ours hold the same tasks, whatever back end tells of forks and exits, and whoever
//! runs it. `CGFUSE_STRESS=FACTOR` makes the long ones longer.

// One binary: what the modules share is not for anybody else.
#![allow(unreachable_pub)]

mod common;
#[path = "stress/storm.rs"]
#[allow(dead_code)]
mod storm; // a process in a storm of its own making

mod tracking {
    mod agent; // the release agent, once for each emptying
    mod bomb; // a fork bomb inside a group
    mod drift; // members change their own affinity
    mod family; // tasks that are born and die in every way
    mod side; // the kernel's hierarchies, and ours with each back end and as each user
    mod stat; // cgfuse.stat
    mod storms; // moves, births, programs and deaths in masses
    mod traces; // the same scripted families, task by task
}

// What is told, by whom, and that drift is told.
on_other_kernels!("tests/tracking/family.c", "tracking::drift::drift_bpf", "tracking::traces::traces_bpf");
