//! The same script on the kernel's own cpuset v1 hierarchy and on our mount, with the same
//! outcome: errno by errno, content by content, affinity by affinity.
//!
//! Environment: `CGFUSE_SEED=n` repeats a random script, `CGFUSE_PARITY_SCRIPTS` and
//! `CGFUSE_PARITY_STEPS` set how many and how long; `CGFUSE_PARITY_ORACLE=1` compares the
//! kernel with itself; `CGFUSE_PARITY_SHOW=1` prints every step with its outcome.

// One binary: what the modules share is not for anybody else.
#![allow(unreachable_pub)]

mod common;
/// Running on both sides, and the report.
#[path = "parity/compare.rs"]
mod compare;
/// Scripts: control files and the core files.
#[path = "parity/content.rs"]
mod content;
/// Scripts: the cpuset controller.
#[path = "parity/cpuset.rs"]
mod cpuset;
/// What FUSE cannot hide.
#[path = "parity/differences.rs"]
mod differences;
/// Random scripts.
#[path = "parity/random.rs"]
mod random;
/// Scripts for our root alone.
#[path = "parity/root.rs"]
mod root;
/// The steps.
#[path = "parity/step.rs"]
mod step;
/// Scripts: the tree.
#[path = "parity/tree.rs"]
mod tree;
/// Running a script.
#[path = "parity/world.rs"]
mod world;

use std::collections::HashSet;
use std::time::{SystemTime, UNIX_EPOCH};

use compare::Script;

macro_rules! scripts {
    ($($name:ident = $make:path, $alone:expr;)*) => {
        $(#[test]
        fn $name() {
            compare::check(&Script { name: stringify!($name), alone: $alone, steps: $make() });
        })*

        fn all() -> Vec<Script> {
            vec![$(Script { name: stringify!($name), alone: $alone, steps: $make() },)*]
        }
    };
}

const SHARED: bool = false;
const ALONE: bool = true;

scripts! {
    files = tree::files, SHARED;
    nlink_and_times = tree::nlink_and_times, SHARED;
    mkdir_modes = tree::mkdir_modes, SHARED;
    mkdir_names = tree::mkdir_names, SHARED;
    removed_groups = tree::removed_groups, SHARED;
    rmdir_rules = tree::rmdir_rules, SHARED;
    rename_rules = tree::rename_rules, SHARED;
    forbidden = tree::forbidden, SHARED;
    chmod_chown = tree::chmod_chown, SHARED;
    odd_calls = tree::odd_calls, SHARED;
    polling = tree::polling, SHARED;
    xattrs = tree::xattrs, SHARED;

    reading = content::reading, SHARED;
    writing = content::writing, SHARED;
    numbers = content::numbers, SHARED;
    pid_syntax = content::pid_syntax, SHARED;
    writer_moves_itself = content::writer_moves_itself, SHARED;
    threads_and_processes = content::threads_and_processes, SHARED;
    exec_in_a_group = content::exec_in_a_group, SHARED;
    exec_after_the_leader = content::exec_after_the_leader, SHARED;
    born_of_split_processes = content::born_of_split_processes, SHARED;
    the_gone = content::the_gone, SHARED;
    credentials = content::credentials, SHARED;
    core_flags = content::core_flags, SHARED;

    list_syntax = cpuset::list_syntax, SHARED;
    node_syntax = cpuset::node_syntax, SHARED;
    acceptance = cpuset::acceptance, SHARED;
    exclusive = cpuset::exclusive, ALONE;
    exclusive_and_empty = cpuset::exclusive_and_empty, ALONE;
    flags = cpuset::flags, SHARED;
    inheritance = cpuset::inheritance, SHARED;
    clone_children_and_exclusive = cpuset::clone_children_and_exclusive, ALONE;
    effective = cpuset::effective, SHARED;
    affinity_follows = cpuset::affinity_follows, SHARED;
    own_masks = cpuset::own_masks, SHARED;
    own_masks_born_overruled = cpuset::own_masks_born_overruled, SHARED;
    own_masks_like_a_former_set = cpuset::own_masks_like_a_former_set, SHARED;
    precedence = cpuset::precedence, SHARED;
    precedence_exclusive = cpuset::precedence_exclusive, ALONE;
}

#[test]
fn there_are_at_least_300_distinct_steps() {
    let mut distinct = HashSet::new();
    for script in all() {
        distinct.extend(script.steps.into_iter().map(|step| (step.uid, step.act)));
    }
    eprintln!("{} distinct hand-written steps", distinct.len());
    assert!(distinct.len() >= 300);
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

#[test]
fn random_scripts() {
    if !common::is_root() {
        return common::skipped("random_scripts", "some steps are another user's");
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
    let first = setting("CGFUSE_SEED", u64::try_from(now % 1_000_000_000_000).expect("small"));
    let count = setting("CGFUSE_PARITY_SCRIPTS", 60);
    let steps = usize::try_from(setting("CGFUSE_PARITY_STEPS", 80)).expect("small");
    eprintln!("random scripts: CGFUSE_SEED={first}");
    let mount = compare::mount();
    let mut reports = Vec::new();
    for seed in first..first + count {
        if let Some(report) = random::check(&mount, random::script(seed, steps)) {
            reports.push(format!("CGFUSE_SEED={seed} CGFUSE_PARITY_SCRIPTS=1 CGFUSE_PARITY_STEPS={steps} repeats it; shrunk:\n{report}"));
        }
        // A few different ones tell more than one, a hundred do not.
        if reports.len() == 5 {
            break;
        }
    }
    assert!(reports.is_empty(), "{}", reports.join("\n\n"));
}

#[test]
fn root_core_files() {
    compare::check_root("root_core_files", &root::core_files());
}

#[test]
fn root_release_agent() {
    compare::check_root("root_release_agent", &root::release_agent());
}
