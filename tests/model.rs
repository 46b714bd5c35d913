//! The model on a fake machine: the hierarchy, its controllers and the tracker without a mount, with any number of
//! CPUs and nodes, and with races staged to the step.
//!
//! Environment: `PROPTEST_CASES=n` sets how many random histories are tried.

/// Threads' affinities: wishes, wide masks, memory.
#[path = "model/affinity.rs"]
mod affinity;
/// Members whose CPUs are set by others, where that is told.
#[path = "model/asked.rs"]
mod asked;
/// Moving: all or none, and what happens meanwhile.
#[path = "model/attach.rs"]
mod attach;
/// The machine.
#[path = "model/fake.rs"]
mod fake;
/// Files and groups in general.
#[path = "model/files.rs"]
mod files;
/// What the tracker without an event source cannot know.
#[path = "model/gaps.rs"]
mod gaps;
/// CPUs and nodes that come and go.
#[path = "model/hotplug.rs"]
mod hotplug;
/// Random histories against the reference.
#[path = "model/random.rs"]
mod random;
/// The rules of the kernel's hierarchy, written down once more.
#[path = "model/reference.rs"]
mod reference;
/// The release agent.
#[path = "model/release.rs"]
mod release;
/// The tables of control files.
#[path = "model/tables.rs"]
mod tables;
/// A hierarchy on a fake machine.
#[path = "model/world.rs"]
mod world;
