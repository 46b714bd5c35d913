//! Controller layer: the table of controllers and what a row of it, and a control file, consists of.
//!
//! A controller is one file here and one line in [`SUBSYS`], [`Css`], [`TaskState`] and [`Before`].

pub mod cpuset;
pub mod ns;

use crate::bitmap::Bitmap;
use crate::cgroup::{Attach, Birth, CgroupId, Change, Hierarchy, Locked, Tree, Writer};
use crate::error::Result;
use crate::sys::{Errno, Machine, Tid};
use bitflags::bitflags;

/// Every controller, in the order in which their files are listed.
pub static SUBSYS: &[&Subsys] = &[&cpuset::SUBSYS, &ns::SUBSYS];

/// The controllers' names, as mount options give them.
pub fn names() -> impl Iterator<Item = &'static str> {
    SUBSYS.iter().map(|ss| ss.name)
}

/// The controllers' state of one group (struct cgroup_subsys_state).
#[derive(Clone, Debug, Default)]
pub struct Css {
    /// The cpuset controller's.
    pub cpuset: cpuset::Css,
    /// The ns controller's.
    pub ns: ns::Css,
}

/// What the controllers know of a task that is in a group, beyond what the group says. A child inherits it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TaskState {
    /// The cpuset controller's.
    pub cpuset: cpuset::TaskCpus,
    /// The ns controller's.
    pub ns: ns::TaskNs,
}

/// What a task had before a change, for taking it back and for knowing a child that was being born meanwhile; nothing where it
/// has not been changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// Its CPUs.
    pub cpuset: Option<Bitmap>,
    /// Its namespaces and its root directory.
    pub ns: Option<std::sync::Arc<ns::Was>>,
}

impl TaskState {
    /// What is known of a child that was born while its creator was on his way: what he had asked for before, and where he is at home now.
    pub fn of_child(before: &Self, now: &Self) -> Self {
        Self { ns: now.ns.clone(), ..before.clone() }
    }
}

/// What a look at a member has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Checked {
    /// It has what it should have, or has it now.
    True,
    /// It had given itself something that its group does not have, and has been put back.
    Drifted,
}

/// See [`Subsys::check`].
pub type Check = fn(&dyn Machine, &Tree, CgroupId, Tid, &mut TaskState, &Birth) -> std::result::Result<Checked, Errno>;

/// A controller (struct cgroup_subsys). Hooks carry the kernel's names; one that is not needed is a function that does nothing.
pub struct Subsys {
    /// The mount option and the prefix of the files.
    pub name: &'static str,
    /// The control files.
    pub files: &'static [Cftype],
    /// A new group starts with this state; the group is in the tree already.
    pub css_online: fn(&mut Tree, CgroupId),
    /// A group is about to be removed; it is still in the tree.
    pub css_offline: fn(&mut Tree, CgroupId),
    /// Whether moving a task into the group, or changing it there, takes long even for one task.
    pub is_slow: fn(&Tree, CgroupId) -> bool,
    /// A move to the group is asked for.
    pub begin_attach: fn(&Locked<'_>, CgroupId),
    /// May these tasks move to that group? Changes nothing. Without a writer it is not a client who wants it.
    pub can_attach: fn(&Locked<'_>, Option<&Writer<'_>>, CgroupId, &[Change]) -> Result<()>,
    /// Makes the move take effect. If it fails, what it did is undone by `cancel_attach`.
    pub prepare_attach: fn(&Locked<'_>, &Attach<'_>, &mut [Change]) -> Result<()>,
    /// Undoes what `prepare_attach` did, on success and on failure of it.
    pub cancel_attach: fn(&dyn Machine, &mut [Change]),
    /// The move is done; what is left cannot fail.
    pub attach: fn(&Locked<'_>, CgroupId, &[Change]),
    /// Looks at a member, and makes true what its group and its state say. If it has asked for something itself, the state changes. The last
    /// argument says what it may have inherited without having asked for it.
    ///
    /// # Errors
    /// ESRCH if it is gone, else what giving it what it should have says.
    pub check: Check,
    /// CPUs or nodes have come or gone.
    pub hotplug: fn(&Locked<'_>),
}

bitflags! {
    /// Where a control file is, and how it is called (enum cftype flags).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CftFlags: u8 {
        /// CFTYPE_ONLY_ON_ROOT.
        const ONLY_ON_ROOT = 1 << 0;
        /// CFTYPE_NOT_ON_ROOT.
        const NOT_ON_ROOT = 1 << 1;
        /// What the opener may do decides about writing (`file_ns_capable`).
        const OPENER_CAPABLE = 1 << 2;
        /// Writing may take long.
        const SLOW = 1 << 3;
    }
}

/// Which ids a membership file shows and takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ids {
    /// `tasks`: threads.
    Threads,
    /// `cgroup.procs`: processes.
    Processes,
}

/// How a control file is read.
#[derive(Clone, Copy)]
pub enum Show {
    /// A number and a newline (`read_u64`, `read_s64`).
    Number(fn(&Tree, CgroupId) -> i64),
    /// Text, given with its newline (`seq_show`).
    Text(fn(&Tree, CgroupId) -> Vec<u8>),
    /// Text about the hierarchy as a whole, given with its newline.
    Whole(fn(&Hierarchy) -> Vec<u8>),
    /// The members, one id a line.
    Members(Ids),
}

/// How a control file is written.
#[derive(Clone, Copy)]
pub enum Store {
    /// Not at all: EINVAL.
    None,
    /// An unsigned number (`write_u64`).
    U64(fn(&Locked<'_>, CgroupId, u64) -> Result<()>),
    /// A signed number (`write_s64`).
    S64(fn(&Locked<'_>, CgroupId, i64) -> Result<()>),
    /// Text without the white space around it (`write`).
    Text(fn(&Locked<'_>, &Writer<'_>, CgroupId, &[u8]) -> Result<()>),
    /// A task to move here.
    Attach(Ids),
}

/// A control file (struct cftype): it exists if and only if it is a row of a table.
pub struct Cftype {
    /// The name behind the controller's prefix.
    pub name: &'static str,
    /// Where it is.
    pub flags: CftFlags,
    /// How it is read.
    pub show: Show,
    /// How it is written; decides the mode.
    pub store: Store,
    /// The longest write in bytes (`max_write_len`), one page unless the table says otherwise.
    pub max_write: fn(&dyn Machine) -> usize,
}

impl Cftype {
    /// A row for a file that is in every group and takes up to a page.
    pub const fn new(name: &'static str, show: Show, store: Store) -> Self {
        Self { name, flags: CftFlags::empty(), show, store, max_write: |_| 4096 }
    }

    /// The row with these flags.
    #[must_use]
    pub const fn on(mut self, flags: CftFlags) -> Self {
        self.flags = flags;
        self
    }

    /// The row with this limit.
    #[must_use]
    pub const fn max(mut self, max_write: fn(&dyn Machine) -> usize) -> Self {
        self.max_write = max_write;
        self
    }

    /// The permissions of a new file (`cgroup_file_mode`).
    pub fn mode(&self) -> u16 {
        if matches!(self.store, Store::None) { 0o444 } else { 0o644 }
    }

    /// Whether a group has the file.
    pub fn is_in(&self, root: bool) -> bool {
        !self.flags.contains(if root { CftFlags::NOT_ON_ROOT } else { CftFlags::ONLY_ON_ROOT })
    }
}
