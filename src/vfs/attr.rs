//! VFS layer: modes, owners and times of groups and their files (struct kernfs_iattrs).

use super::Ino;
use super::xattr::Xattrs;
use rustc_hash::FxHashMap;
use std::time::SystemTime;

/// A control file's row in the table; `None` is the group itself.
pub(super) type Slot = Option<u8>;

/// What can be set of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Permissions with set-id and sticky bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last access.
    pub atime: SystemTime,
    /// Last change of content.
    pub mtime: SystemTime,
    /// Last change of attributes.
    pub ctime: SystemTime,
}

impl Attr {
    pub(super) fn new(mode: u16, uid: u32, gid: u32, now: SystemTime) -> Self {
        Self { mode, uid, gid, atime: now, mtime: now, ctime: now }
    }
}

/// What stat(2) tells. Sizes are always 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The inode.
    pub ino: Ino,
    /// A group, else a control file.
    pub is_dir: bool,
    /// 1 for a file, 2 and the number of child groups for a group.
    pub nlink: u32,
    /// The rest.
    pub attr: Attr,
}

/// A change of attributes; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permissions.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size: checked, without effect.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SystemTime>,
    /// Last change.
    pub mtime: Option<SystemTime>,
    /// Last change of attributes.
    pub ctime: Option<SystemTime>,
}

/// A group's inodes. What nobody has changed of its files follows from the group's birth and the table.
pub(super) struct Node {
    pub(super) dir: Attr,
    born: (u32, u32, SystemTime),
    files: Option<Box<FxHashMap<u8, Attr>>>,
    pub(super) xattrs: Option<Box<FxHashMap<Slot, Xattrs>>>,
    /// How many times the client has been told of one of the inodes and has not forgotten it.
    pub(super) lookups: u64,
    pub(super) removed: bool,
    /// kernfs keeps a directory's times only from the first change of its attributes on.
    keeps_times: bool,
}

impl Node {
    pub(super) fn new(dir: Attr) -> Self {
        Self { dir, born: (dir.uid, dir.gid, dir.mtime), files: None, xattrs: None, lookups: 0, removed: false, keeps_times: false }
    }

    pub(super) fn file(&self, slot: Slot, mode: u16) -> Attr {
        let changed = self.files.as_ref().zip(slot).and_then(|(files, row)| files.get(&row).copied());
        let (uid, gid, born) = self.born;
        changed.unwrap_or_else(|| Attr::new(mode, uid, gid, born))
    }

    pub(super) fn set(&mut self, slot: Slot, mode: u16, set: &SetAttr) {
        let old = if slot.is_some() { self.file(slot, mode) } else { self.dir };
        let changed = set.mode.is_some() || set.uid.is_some() || set.gid.is_some() || set.atime.is_some() || set.mtime.is_some();
        let new = Attr {
            mode: set.mode.map_or(old.mode, |mode| mode & 0o7777),
            uid: set.uid.unwrap_or(old.uid),
            gid: set.gid.unwrap_or(old.gid),
            atime: set.atime.unwrap_or(old.atime),
            mtime: set.mtime.unwrap_or(old.mtime),
            ctime: set.ctime.unwrap_or(if changed { SystemTime::now() } else { old.ctime }),
        };
        match slot {
            Some(row) if new != old => {
                self.files.get_or_insert_default().insert(row, new);
            }
            Some(_) => {}
            None => {
                self.dir = new;
                self.keeps_times |= changed;
            }
        }
    }

    pub(super) fn entries_changed(&mut self, now: SystemTime) {
        if self.keeps_times {
            (self.dir.mtime, self.dir.ctime) = (now, now);
        }
    }
}
