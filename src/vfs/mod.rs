//! VFS layer: what kernfs is to the kernel's cgroup. Inodes, attributes, open files and what is read from and
//! written to them; knows nothing of FUSE.

mod attr;
mod callers;
mod xattr;

pub use attr::{Attr, SetAttr, Stat};
pub use xattr::XattrMode;

use crate::cgroup::{CgroupId, FILES, Hierarchy, Locked, ROOT, Writer, parse};
use crate::controllers::{CftFlags, Cftype, Ids, Show, Store};
use crate::error::{Error, Result};
use crate::sys::Tid;
use attr::{Node, Slot};
use callers::Callers;
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;
use slab::Slab;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

/// An inode number: the group's serial number and the row of the file in the table. Never used again.
pub type Ino = u64;

/// Rows that a group's inodes leave room for.
const SLOTS: u64 = 256;

/// S_ISGID.
const SETGID: u16 = 0o2000;

/// The inode of the group `id` itself; the root's is 1, as FUSE wants it.
fn dir_ino(id: CgroupId) -> Ino {
    id * SLOTS + 1
}

/// The group and, for a control file, its row.
fn locate(ino: Ino) -> (CgroupId, Slot) {
    let slot = (ino - 1) % SLOTS;
    ((ino - 1) / SLOTS, slot.checked_sub(1).map(|row| row as u8))
}

/// The group whose own inode this is.
fn group(ino: Ino) -> Result<CgroupId> {
    match locate(ino) {
        (id, None) => Ok(id),
        (_, Some(_)) => Err(Error::NotDir),
    }
}

/// Who a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// Filesystem uid.
    pub uid: u32,
    /// Filesystem gid.
    pub gid: u32,
    /// The thread, 0 if it is not visible in the server's pid namespace.
    pub tid: Tid,
}

/// How the root group looks.
#[derive(Clone, Copy, Debug)]
pub struct RootAttr {
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its permissions.
    pub mode: u16,
}

/// A control file of this hierarchy: its full name and its row.
struct File {
    name: String,
    cft: &'static Cftype,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirent {
    /// The inode.
    pub ino: Ino,
    /// Whether it is a group.
    pub is_dir: bool,
    /// The name.
    pub name: Vec<u8>,
}

/// What a descriptor of a client stands for.
enum Handle {
    File { ino: Ino, opener_uid: u32, opener_caps: u64, read: AtomicBool, text: Mutex<Snapshot> },
    Dir { ino: Ino, entries: Mutex<Arc<Vec<Dirent>>> },
}

/// A file's content as a descriptor has read it so far (struct seq_file).
#[derive(Default)]
struct Snapshot {
    text: Vec<u8>,
    /// Where the last read ended; a read elsewhere shows new content.
    next: u64,
}

/// A hierarchy as a tree of files.
pub struct Vfs {
    hierarchy: Hierarchy,
    files: Vec<File>,
    by_name: FxHashMap<&'static [u8], u8>,
    /// Attributes of the groups, removed ones included as long as a client knows their inode.
    nodes: RwLock<FxHashMap<CgroupId, Node>>,
    handles: Mutex<Slab<Arc<Handle>>>,
    callers: Callers,
}

impl Vfs {
    /// A view of a hierarchy. `noprefix` leaves the controllers' names out of the files'.
    pub fn new(hierarchy: Hierarchy, noprefix: bool, root: RootAttr) -> Self {
        let base = FILES.iter().map(|cft| File { name: cft.name.to_owned(), cft });
        let prefixed = |ss: &str, cft: &Cftype| if noprefix { cft.name.to_owned() } else { format!("{ss}.{}", cft.name) };
        let of_subsys = hierarchy.subsys().iter().flat_map(|ss| ss.files.iter().map(move |cft| File { name: prefixed(ss.name, cft), cft }));
        let files: Vec<File> = base.chain(of_subsys).collect();
        let leak = |file: &File| -> &'static [u8] { Box::leak(file.name.clone().into_boxed_str()).as_bytes() };
        let by_name = files.iter().enumerate().map(|(row, file)| (leak(file), row as u8)).collect();
        let node = Node::new(Attr::new(root.mode, root.uid, root.gid, SystemTime::now()));
        let nodes = RwLock::new(FxHashMap::from_iter([(ROOT, node)]));
        Self { hierarchy, files, by_name, nodes, handles: Mutex::default(), callers: Callers::default() }
    }

    /// The hierarchy.
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    fn file(&self, slot: Slot) -> Option<&File> {
        self.files.get(usize::from(slot?))
    }

    /// What stat(2) tells of an inode, be its group removed or not.
    ///
    /// # Errors
    /// ENOENT for an inode that nobody can know.
    pub fn stat(&self, ino: Ino) -> Result<Stat> {
        let (id, slot) = locate(ino);
        let children = || self.hierarchy.tree().get(id).map_or(0, |group| group.children.len());
        let file = self.file(slot);
        let nlink = if file.is_some() { 1 } else { 2 + children() as u32 };
        let nodes = self.nodes.read();
        let node = nodes.get(&id).ok_or(Error::NotFound)?;
        let attr = file.map_or(node.dir, |file| node.file(slot, file.cft.mode()));
        Ok(Stat { ino, is_dir: file.is_none(), nlink, attr })
    }

    /// Finds a name in a group, and counts that the client knows the inode now.
    ///
    /// # Errors
    /// ENOENT if there is no such name or no such group any more; ENOTDIR below a file.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Stat> {
        let ino = self.find(group(parent)?, name)?;
        let stat = self.stat(ino)?;
        if let Some(node) = self.nodes.write().get_mut(&locate(ino).0) {
            node.lookups += 1;
        }
        Ok(stat)
    }

    fn find(&self, id: CgroupId, name: &[u8]) -> Result<Ino> {
        let tree = self.hierarchy.tree();
        let group = tree.get(id).map_err(|_| Error::NotFound)?;
        let row = self.by_name.get(name).filter(|row| self.files[usize::from(**row)].cft.is_in(id == ROOT));
        let file = row.map(|row| dir_ino(id) + 1 + u64::from(*row));
        file.or_else(|| group.children.get(name).map(|child| dir_ino(*child))).ok_or(Error::NotFound)
    }

    /// The client has forgotten that it knows an inode, `n` times.
    pub fn forget(&self, ino: Ino, n: u64) {
        let (id, _) = locate(ino);
        let mut nodes = self.nodes.write();
        if let Some(node) = nodes.get_mut(&id) {
            node.lookups = node.lookups.saturating_sub(n);
            if node.removed && node.lookups == 0 {
                nodes.remove(&id);
            }
        }
    }

    /// Changes attributes (`kernfs_iop_setattr`). Whether the client may is the VFS's business.
    ///
    /// # Errors
    /// EFBIG for a size that no control file can have, ENOENT for an inode that nobody can know.
    pub fn set_attr(&self, ino: Ino, set: &SetAttr) -> Result<Stat> {
        // MAX_NON_LFS
        if set.size.is_some_and(|size| size > i32::MAX as u64) {
            return Err(Error::FileTooBig);
        }
        let (id, slot) = locate(ino);
        let mode = self.file(slot).map_or(0, |file| file.cft.mode());
        if let Some(node) = self.nodes.write().get_mut(&id) {
            node.set(slot, mode, set);
        }
        self.stat(ino)
    }

    /// Makes a group (`cgroup_mkdir`): it and its files belong to the client.
    ///
    /// # Errors
    /// EINVAL for a newline in the name, EEXIST, ENOENT below a removed group.
    pub fn mkdir(&self, locked: &Locked<'_>, parent: Ino, name: &[u8], mode: u16, client: Client) -> Result<Stat> {
        let up = group(parent)?;
        if self.find(up, name).is_ok() {
            return Err(Error::Exists);
        }
        let id = locked.mkdir(up, name).map_err(removed_is_not_found)?;
        let now = SystemTime::now();
        let mut nodes = self.nodes.write();
        let inherited = nodes.get(&up).filter(|node| node.dir.mode & SETGID != 0).map(|node| node.dir.gid);
        let setgid = if inherited.is_some() { SETGID } else { 0 };
        let mut node = Node::new(Attr::new(mode & 0o1777 | setgid, client.uid, inherited.unwrap_or(client.gid), now));
        node.lookups = 1;
        nodes.insert(id, node);
        nodes.entry(up).and_modify(|node| node.entries_changed(now));
        drop(nodes);
        self.stat(dir_ino(id))
    }

    /// Removes a group (`cgroup_rmdir`).
    ///
    /// # Errors
    /// ENOENT, ENOTDIR for a control file, EBUSY for a group in use.
    pub fn rmdir(&self, locked: &Locked<'_>, parent: Ino, name: &[u8]) -> Result<()> {
        let up = group(parent)?;
        let id = group(self.find(up, name)?)?;
        locked.rmdir(id).map_err(removed_is_not_found)?;
        let mut nodes = self.nodes.write();
        nodes.entry(up).and_modify(|node| node.entries_changed(SystemTime::now()));
        if let Some(node) = nodes.get_mut(&id) {
            node.removed = true;
            if node.lookups == 0 {
                nodes.remove(&id);
            }
        }
        Ok(())
    }

    /// Renames a group below its parent (`cgroup1_rename`).
    ///
    /// # Errors
    /// EINVAL for a newline in the name, ENOTDIR for a control file, EIO for another parent, EEXIST, ENOENT.
    pub fn rename(&self, locked: &Locked<'_>, parent: Ino, name: &[u8], new_parent: Ino, new_name: &[u8]) -> Result<()> {
        let (up, to) = (group(parent)?, group(new_parent)?);
        let ino = self.find(up, name)?;
        if new_name.contains(&b'\n') {
            return Err(Error::Invalid);
        }
        let id = group(ino)?;
        if up == to && self.find(up, new_name).is_ok() {
            return Err(Error::Exists);
        }
        locked.rename(id, to, new_name).map_err(removed_is_not_found)
    }

    /// Opens a control file: its content is that of the first read.
    ///
    /// # Errors
    /// ENODEV if the group has been removed.
    pub fn open(&self, ino: Ino, client: Client) -> Result<u64> {
        let (id, slot) = locate(ino);
        self.hierarchy.tree().get(id)?;
        let decide = self.file(slot).is_some_and(|file| file.cft.flags.contains(CftFlags::OPENER_CAPABLE));
        let caller = if decide { self.hierarchy.machine().caller(client.tid).ok() } else { None };
        let opener_caps = caller.map_or(0, |caller| caller.creds.cap_effective);
        Ok(self.add_handle(Handle::File { ino, opener_uid: client.uid, opener_caps, read: AtomicBool::new(false), text: Mutex::default() }))
    }

    /// Opens a group for listing it.
    ///
    /// # Errors
    /// ENOENT if it has been removed.
    pub fn open_dir(&self, ino: Ino) -> Result<u64> {
        self.hierarchy.tree().get(locate(ino).0).map_err(removed_is_not_found)?;
        Ok(self.add_handle(Handle::Dir { ino, entries: Mutex::default() }))
    }

    fn add_handle(&self, handle: Handle) -> u64 {
        self.handles.lock().insert(Arc::new(handle)) as u64
    }

    fn handle(&self, fh: u64) -> Result<Arc<Handle>> {
        self.handles.lock().get(fh as usize).cloned().ok_or(Error::Removed)
    }

    /// The descriptor is closed.
    pub fn release(&self, fh: u64) {
        let _ = self.handles.lock().try_remove(fh as usize);
    }

    /// The entries of an open directory; those it had at the read of offset 0.
    ///
    /// # Errors
    /// ENOENT if the group has been removed.
    pub fn read_dir(&self, fh: u64, rewind: bool) -> Result<Arc<Vec<Dirent>>> {
        let handle = self.handle(fh)?;
        let Handle::Dir { ino, entries } = &*handle else { return Err(Error::NotDir) };
        let mut entries = entries.lock();
        if rewind {
            *entries = Arc::new(self.list(*ino)?);
        }
        Ok(entries.clone())
    }

    fn list(&self, ino: Ino) -> Result<Vec<Dirent>> {
        let (id, _) = locate(ino);
        let tree = self.hierarchy.tree();
        let group = tree.get(id).map_err(removed_is_not_found)?;
        let dir = |ino, name: &[u8]| Dirent { ino, is_dir: true, name: name.to_vec() };
        let files = self.files.iter().enumerate().filter(|(_, file)| file.cft.is_in(id == ROOT));
        let files = files.map(|(row, file)| Dirent { ino: ino + 1 + row as u64, is_dir: false, name: file.name.clone().into_bytes() });
        let groups = group.children.iter().map(|(name, child)| dir(dir_ino(*child), name));
        Ok([dir(ino, b"."), dir(dir_ino(group.parent), b"..")].into_iter().chain(files).chain(groups).collect())
    }

    /// Whether reading this may take long: many members to list.
    pub fn is_slow_read(&self, fh: u64) -> bool {
        let Ok(handle) = self.handle(fh) else { return false };
        let Handle::File { ino, .. } = &*handle else { return false };
        let (id, slot) = locate(*ino);
        let members = self.file(slot).is_some_and(|file| matches!(file.cft.show, Show::Members(_)));
        // Children among them may have to be moved first.
        members && (self.hierarchy.is_large(id) || self.hierarchy.is_slow_for_one(ROOT))
    }

    /// Reads from a control file (`kernfs_seq_show`): up to `size` bytes, none at its end.
    ///
    /// # Errors
    /// ENODEV if the group has been removed.
    pub fn read(&self, fh: u64, offset: u64, size: usize, client: Client) -> Result<Vec<u8>> {
        let handle = self.handle(fh)?;
        let Handle::File { ino, text, read, .. } = &*handle else { return Err(Error::Invalid) };
        let mut snapshot = text.lock();
        let again = offset == 0 || offset != snapshot.next;
        // What has been shown in part is shown to its end, even if the group has been removed.
        if again || offset >= snapshot.text.len() as u64 {
            self.hierarchy.tree().get(locate(*ino).0)?;
        }
        if again {
            snapshot.text = self.show(*ino, client)?;
        }
        let start = snapshot.text.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
        let end = snapshot.text.len().min(start.saturating_add(size));
        let data = snapshot.text[start..end].to_vec();
        snapshot.next = offset + data.len() as u64;
        if data.is_empty() {
            // The end has been seen.
            snapshot.text = Vec::new();
        } else {
            read.store(true, Ordering::Relaxed);
        }
        Ok(data)
    }

    /// Whether a file has been read through this descriptor: before that, poll(2) takes its content for news (`kernfs_generic_poll`).
    pub fn has_been_read(&self, fh: u64) -> bool {
        self.handle(fh).is_ok_and(|handle| matches!(&*handle, Handle::File { read, .. } if read.load(Ordering::Relaxed)))
    }

    fn show(&self, ino: Ino, client: Client) -> Result<Vec<u8>> {
        let (id, slot) = locate(ino);
        let file = self.file(slot).ok_or(Error::Invalid)?;
        match file.cft.show {
            Show::Number(show) => Ok(format!("{}\n", show(&self.hierarchy.tree(), id)).into_bytes()),
            Show::Text(show) => Ok(show(&self.hierarchy.tree(), id)),
            Show::Whole(show) => Ok(show(&self.hierarchy)),
            Show::Members(ids) => {
                // Who is not visible from here is shown our numbers.
                let visible = client.tid != 0;
                let pid_ns = if visible { self.callers.get(self.hierarchy.machine(), client)?.pid_ns } else { None };
                self.hierarchy.show_members(id, ids, pid_ns.as_ref())
            }
        }
    }

    /// Whether this write may take long: many tasks to change.
    pub fn is_slow_write(&self, fh: u64, data: &[u8], client: Client) -> bool {
        let Ok(handle) = self.handle(fh) else { return false };
        let Handle::File { ino, .. } = &*handle else { return false };
        let (id, slot) = locate(*ino);
        match self.file(slot).map(|file| file.cft.store) {
            Some(Store::Attach(ids)) => {
                let foreign = self.callers.get(self.hierarchy.machine(), client).is_ok_and(|caller| caller.pid_ns.is_some());
                let tid = match parse::pid(data) {
                    Ok(0) => client.tid,
                    Ok(tid) => tid,
                    Err(_) => return false,
                };
                foreign || ids == Ids::Processes && self.hierarchy.is_large_process(tid) || self.hierarchy.is_slow(id)
            }
            Some(Store::Text(_)) if self.file(slot).is_some_and(|file| file.cft.flags.contains(CftFlags::SLOW)) => true,
            Some(Store::Text(_)) => self.hierarchy.is_slow(id),
            _ => false,
        }
    }

    /// Writes to a control file: one command, taken whole (`cgroup_file_write`). `answer` lets the write succeed before it is done, for a
    /// writer who is to be stopped.
    ///
    /// # Errors
    /// E2BIG past the file's limit, ENODEV if the group has been removed, EINVAL if the file takes no writes, and
    /// whatever the file's handler says.
    pub fn write(&self, locked: &mut Locked<'_>, fh: u64, data: &[u8], client: Client, answer: &dyn Fn()) -> Result<()> {
        let handle = self.handle(fh)?;
        let Handle::File { ino, opener_uid, opener_caps, .. } = &*handle else { return Err(Error::Invalid) };
        let (id, slot) = locate(*ino);
        let file = self.file(slot).ok_or(Error::Invalid)?;
        if data.len() > (file.cft.max_write)(self.hierarchy.machine()) {
            return Err(Error::TooBig);
        }
        locked.tree().get(id)?;
        if data.is_empty() {
            return Ok(());
        }
        let text = data.split(|&c| c == 0).next().unwrap_or_default();
        let caller = || self.callers.get(self.hierarchy.machine(), client);
        let writer = Writer {
            opener_uid: *opener_uid,
            opener_caps: *opener_caps,
            tid: client.tid,
            caller: &caller,
            answer,
            answered: Cell::new(false),
        };
        let done = match file.cft.store {
            Store::None => Err(Error::Invalid),
            Store::U64(store) => parse::u64(text).and_then(|value| store(locked, id, value)),
            Store::S64(store) => parse::s64(text).and_then(|value| store(locked, id, value)),
            Store::Text(store) => store(locked, &writer, id, crate::bitmap::strip(text)),
            Store::Attach(ids) => locked.attach(&writer, id, text, ids),
        };
        if let Err(error) = done {
            let path = locked.tree().path(id);
            let shown = text[..text.len().min(64)].escape_ascii();
            log::debug!("{}: {} <- '{shown}': {error}", path.escape_ascii(), file.name);
        }
        done
    }
}

/// An operation on a name fails with ENOENT where one on an open file fails with ENODEV.
fn removed_is_not_found(error: Error) -> Error {
    if error == Error::Removed { Error::NotFound } else { error }
}
