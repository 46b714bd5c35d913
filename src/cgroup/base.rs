//! Model layer: the control files that every hierarchy has (kernel/cgroup/cgroup-v1.c: `cgroup1_base_files`).

use super::{CgroupId, Hierarchy, Locked, Tree, Writer};
use crate::controllers::{CftFlags, Cftype, Ids, Show, Store};
use crate::error::{Error, Result};
use crate::sys::Machine;

/// The longest release agent (`release_agent_path` has PATH_MAX bytes).
const RELEASE_AGENT_MAX: usize = 4095;

/// The table.
pub static FILES: &[Cftype] = &[
    Cftype::new("cgroup.procs", Show::Members(Ids::Processes), Store::Attach(Ids::Processes)),
    Cftype::new("cgroup.clone_children", Show::Number(|tree, id| flag(tree, id).1), Store::U64(write_clone_children)),
    Cftype::new("cgroup.sane_behavior", Show::Number(|_, _| 0), Store::None).on(CftFlags::ONLY_ON_ROOT),
    Cftype::new("tasks", Show::Members(Ids::Threads), Store::Attach(Ids::Threads)),
    Cftype::new("notify_on_release", Show::Number(|tree, id| flag(tree, id).0), Store::U64(write_notify_on_release)),
    Cftype::new("release_agent", Show::Text(show_release_agent), Store::Text(write_release_agent))
        .on(CftFlags::ONLY_ON_ROOT.union(CftFlags::OPENER_CAPABLE))
        .max(|_: &dyn Machine| RELEASE_AGENT_MAX),
    // Of this file system alone.
    Cftype::new("cgfuse.stat", Show::Whole(Hierarchy::stat), Store::None).on(CftFlags::ONLY_ON_ROOT),
];

/// `notify_on_release` and `cgroup.clone_children`.
fn flag(tree: &Tree, id: CgroupId) -> (i64, i64) {
    tree.get(id).map_or((0, 0), |group| (group.notify_on_release.into(), group.clone_children.into()))
}

fn write_clone_children(locked: &Locked<'_>, id: CgroupId, value: u64) -> Result<()> {
    locked.change(|tree| tree.get_mut(id).map(|group| group.clone_children = value != 0))
}

fn write_notify_on_release(locked: &Locked<'_>, id: CgroupId, value: u64) -> Result<()> {
    locked.has_live_tasks(id);
    locked.hierarchy.release();
    locked.change(|tree| tree.get_mut(id).map(|group| group.notify_on_release = value != 0))
}

fn show_release_agent(tree: &Tree, _: CgroupId) -> Vec<u8> {
    [&tree.release_agent, &b"\n"[..]].concat()
}

/// `cgroup_release_agent_write`: the agent runs with the server's rights, so only who has them may name it.
fn write_release_agent(locked: &Locked<'_>, writer: &Writer<'_>, _: CgroupId, text: &[u8]) -> Result<()> {
    if !locked.is_trusted(writer) {
        return Err(Error::Perm);
    }
    locked.notice_deaths();
    locked.hierarchy.set_release_agent(text.to_vec());
    Ok(())
}
