//! FUSE layer: the only module that names fuser. Decode, call, reply.

mod housekeeper;
mod lane;
mod mount;

pub use mount::MountError;

use crate::cgroup::{Hierarchy, Locked, ROOT};
use crate::controllers::SUBSYS;
use crate::error::{Error, Result};
use crate::options::MountOptions;
use crate::sys::Machine;
use crate::sys::linux::Linux;
use crate::tracker;
use crate::vfs::{Client, RootAttr, SetAttr, Stat, Vfs, XattrMode};
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, Session, SessionACL, TimeOrNow,
    WriteFlags,
};
use housekeeper::Housekeeper;
use lane::{Lane, Turn};
use nix::unistd::{getegid, geteuid};
use parking_lot::Mutex;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

/// All changes come through us, so what the kernel has been told stays true.
const TTL: Duration = Duration::from_secs(86_400);

/// The largest request: writes past a file's limit are refused, not cut.
const MAX_WRITE: u32 = 1 << 20;

/// More than any file takes: what is longer need not be kept to be refused.
const MAX_COMMAND: usize = 64 << 10;

/// A mounted hierarchy and the threads that serve it.
#[derive(Debug)]
pub struct Server {
    session: JoinHandle<io::Result<()>>,
    dir: PathBuf,
    vfs: Weak<Vfs>,
}

impl Server {
    /// Mounts a new hierarchy on `dir`: mount(2) or fusermount3, FUSE handshake done, threads running. Does not detach.
    ///
    /// # Errors
    /// What kept it from being mounted, and what to do about it.
    pub fn mount(dir: &Path, options: &MountOptions) -> std::result::Result<Self, MountError> {
        let machine = Arc::new(Linux::new().map_err(MountError::Proc)?);
        let vfs = Arc::new(new_vfs(machine, options).map_err(MountError::Tracker)?);
        let dir = dir.canonicalize().map_err(|error| MountError::Dir(dir.to_owned(), error))?;
        let fd = mount::mount(&dir, options)?;
        let weak = Arc::downgrade(&vfs);
        let serve = || -> io::Result<JoinHandle<io::Result<()>>> {
            let face = Face::new(vfs, options.xattr)?;
            let session = Session::from_fd(face, fd, SessionACL::All, fuser::Config::default())?;
            thread::Builder::new().name("fuse".into()).spawn(move || session.run())
        };
        match serve() {
            Ok(session) => Ok(Self { session, dir, vfs: weak }),
            Err(error) => {
                mount::give_up(&dir);
                Err(MountError::Serve(error))
            }
        }
    }

    /// Takes the mount away, which nobody is to use.
    pub fn give_up(&self) {
        mount::give_up(&self.dir);
    }

    /// Lets go of the groups' namespaces, which have copies of the mount, and keep it alive when it is not to be seen any more.
    pub fn unpin(&self) -> impl FnOnce() + Send + 'static {
        let vfs = self.vfs.clone();
        move || {
            if let Some(vfs) = vfs.upgrade() {
                vfs.hierarchy().lock().change(crate::controllers::ns::unpin);
            }
        }
    }

    /// Serves until the file system is unmounted.
    ///
    /// # Errors
    /// What ended the session instead.
    pub fn join(self) -> io::Result<()> {
        let ended = self.session.join().unwrap_or_else(|_| Err(io::Error::other("the serving thread panicked")));
        match ended {
            // The kernel may call the end of a lazily unmounted file system an abort.
            Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) && !mount::is_dead(&self.dir) => Ok(()),
            // Nobody answers any more.
            ended => ended.inspect_err(|_| mount::give_up(&self.dir)),
        }
    }
}

fn new_vfs(machine: Arc<dyn Machine>, options: &MountOptions) -> io::Result<Vfs> {
    let chosen = |name: &str| options.controllers.as_ref().is_none_or(|names| names.iter().any(|chosen| chosen == name));
    let subsys = SUBSYS.iter().copied().filter(|ss| chosen(ss.name)).collect();
    let tracker = tracker::open(&*machine, options.tracker)?;
    log::info!("forks and exits are followed by {}", tracker.name());
    let hierarchy = Hierarchy::new(machine, subsys, tracker, geteuid().as_raw());
    hierarchy.lock().change(|tree| {
        if let Ok(root) = tree.get_mut(crate::cgroup::ROOT) {
            root.clone_children = options.clone_children;
        }
    });
    hierarchy.set_release_agent(options.release_agent.clone().unwrap_or_default().into_bytes());
    let root = RootAttr {
        uid: options.uid.unwrap_or(geteuid().as_raw()),
        gid: options.gid.unwrap_or(getegid().as_raw()),
        // The kernel's 0555 is for root, whom modes do not bind; an owner who is not root must be able to make groups.
        mode: options.mode.map_or(if geteuid().is_root() { 0o555 } else { 0o755 }, |mode| mode as u16),
    };
    Ok(Vfs::new(hierarchy, options.noprefix, root))
}

/// The FUSE side of a hierarchy. One thread takes the requests: with several, each operation would cost one
/// more change of context. What may take long goes to a thread of its own, so that nothing waits behind it.
struct Face {
    vfs: Arc<Vfs>,
    /// Without extended attributes the kernel is told so once, and does not ask again.
    xattr: bool,
    housekeeper: Housekeeper,
    /// Changes that are slow or must wait for one, in their order.
    writes: Lane,
    /// Long lists.
    reads: Lane,
}

impl Face {
    fn new(vfs: Arc<Vfs>, xattr: bool) -> io::Result<Self> {
        let (writes, reads) = (Lane::new("slow-writes", &vfs)?, Lane::new("slow-reads", &vfs)?);
        if let Some(nsproxy) = vfs.hierarchy().machine().nsproxy() {
            let lanes = [writes.turn_away(), reads.turn_away()];
            nsproxy.on_waiting(move |threads| lanes.iter().for_each(|turn_away| turn_away(threads)));
        }
        Ok(Self { writes, reads, housekeeper: Housekeeper::new(&vfs)?, xattr, vfs })
    }

    /// The right to change the hierarchy, if nobody has it and having it here keeps nobody waiting: whoever gives it back may find children that
    /// are still to be moved, and must not wait for them here.
    fn try_lock(&self) -> Option<Locked<'_>> {
        let hierarchy = self.vfs.hierarchy();
        if hierarchy.is_slow_for_one(ROOT) { None } else { hierarchy.try_lock() }
    }

    /// Runs a change of the hierarchy, at once if nobody else has it, else behind whoever has, and answers when it is free again.
    fn change<R: Send + 'static, T>(
        &self,
        client: Client,
        reply: R,
        change: impl FnOnce(&Vfs, &Locked<'_>) -> Result<T> + Send + 'static,
        answer: impl FnOnce(R, Result<T>) + Send + 'static,
    ) {
        match self.try_lock() {
            Some(locked) => {
                let done = change(&self.vfs, &locked);
                drop(locked);
                answer(reply, done);
            }
            None => self.writes.put(client.tid, move |turn| {
                let done = match turn {
                    Turn::Now(vfs) => change(vfs, &vfs.hierarchy().lock()),
                    Turn::Again => Err(Error::Restart),
                };
                answer(reply, done);
            }),
        }
        self.housekeeper.look(&self.vfs);
    }
}

fn client(req: &Request) -> Client {
    Client { uid: req.uid(), gid: req.gid(), tid: req.pid() as i32 }
}

fn errno(error: Error) -> Errno {
    Errno::from_i32(error.errno() as i32)
}

fn file_attr(stat: &Stat) -> FileAttr {
    let attr = stat.attr;
    FileAttr {
        ino: INodeNo(stat.ino),
        size: 0,
        blocks: 0,
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        crtime: attr.ctime,
        kind: if stat.is_dir { FileType::Directory } else { FileType::RegularFile },
        perm: attr.mode,
        nlink: stat.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn reply_entry(reply: ReplyEntry, stat: Result<Stat>) {
    match stat {
        Ok(stat) => reply.entry(&TTL, &file_attr(&stat), Generation(0)),
        Err(error) => reply.error(errno(error)),
    }
}

fn reply_attr(reply: ReplyAttr, stat: Result<Stat>) {
    match stat {
        Ok(stat) => reply.attr(&TTL, &file_attr(&stat)),
        Err(error) => reply.error(errno(error)),
    }
}

fn reply_empty(reply: ReplyEmpty, done: Result<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

fn reply_data(reply: ReplyData, data: Result<Vec<u8>>) {
    match data {
        Ok(data) => reply.data(&data),
        Err(error) => reply.error(errno(error)),
    }
}

/// The answer to a write, which is given once.
struct Answer {
    reply: Mutex<Option<ReplyWrite>>,
    len: usize,
}

impl Answer {
    fn new(reply: ReplyWrite, len: usize) -> Self {
        Self { reply: Mutex::new(Some(reply)), len }
    }

    fn give(&self, done: Result<()>) {
        match (self.reply.lock().take(), done) {
            (Some(reply), Ok(())) => reply.written(self.len as u32),
            (Some(reply), Err(error)) => reply.error(errno(error)),
            // It has been let go before, and has seen how it ended all the same.
            (None, _) => {}
        }
    }
}

/// The two-step protocol of getxattr(2) and listxattr(2): the size first, then the data.
fn reply_xattr(reply: ReplyXattr, size: u32, data: Result<Vec<u8>>) {
    match data {
        Ok(data) if size == 0 => reply.size(data.len() as u32),
        Ok(data) if data.len() > size as usize => reply.error(errno(Error::BufferTooSmall)),
        Ok(data) => reply.data(&data),
        Err(error) => reply.error(errno(error)),
    }
}

fn time(time: TimeOrNow) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    }
}

impl Filesystem for Face {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Saves a SETATTR for each `echo`; a kernel too old for it works without.
        let _ = config.add_capabilities(InitFlags::FUSE_ATOMIC_O_TRUNC);
        let _ = config.set_max_write(MAX_WRITE);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        reply_entry(reply, self.vfs.lookup(parent.0, name.as_bytes()));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.vfs.forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply_attr(reply, self.vfs.stat(ino.0));
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mode = mode.map(|mode| mode as u16 & 0o7777);
        let set = SetAttr { mode, uid, gid, size, atime: atime.map(time), mtime: mtime.map(time), ctime };
        reply_attr(reply, self.vfs.set_attr(ino.0, &set));
    }

    fn readlink(&self, _req: &Request, _ino: INodeNo, reply: ReplyData) {
        reply.error(Errno::EINVAL);
    }

    fn mknod(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, mode: u32, _umask: u32, _rdev: u32, reply: ReplyEntry) {
        let regular = matches!(mode & libc::S_IFMT, 0 | libc::S_IFREG);
        reply.error(if regular { Errno::EACCES } else { Errno::EPERM });
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let (name, client) = (name.as_bytes().to_vec(), client(req));
        self.change(client, reply, move |vfs, locked| vfs.mkdir(locked, parent.0, &name, mode as u16, client), reply_entry);
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.change(client(req), reply, move |vfs, locked| vfs.rmdir(locked, parent.0, &name), reply_empty);
    }

    fn symlink(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, _target: &Path, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let (name, newname) = (name.as_bytes().to_vec(), newname.as_bytes().to_vec());
        self.change(client(req), reply, move |vfs, locked| vfs.rename(locked, parent.0, &name, newparent.0, &newname), reply_empty);
    }

    fn link(&self, _req: &Request, _ino: INodeNo, _newparent: INodeNo, _newname: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.0 & libc::O_DIRECT != 0 {
            return reply.error(Errno::EINVAL);
        }
        let open = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        match self.vfs.open(ino.0, client(req)) {
            Ok(fh) => reply.opened(FileHandle(fh), open),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (fh, size, client) = (fh.0, size as usize, client(req));
        if self.vfs.is_slow_read(fh) {
            let housekeeper = self.housekeeper.clone();
            self.reads.put(client.tid, move |turn| {
                let Turn::Now(vfs) = turn else { return reply_data(reply, Err(Error::Restart)) };
                reply_data(reply, vfs.read(fh, offset, size, client));
                housekeeper.look(vfs);
            });
        } else {
            reply_data(reply, self.vfs.read(fh, offset, size, client));
            // It may have taken what the housekeeper would have been woken for.
            self.housekeeper.look(&self.vfs);
        }
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (fh, client) = (fh.0, client(req));
        let len = data.len();
        let slow = self.vfs.is_slow_write(fh, data, client);
        let answer = Answer::new(reply, len);
        if let Some(mut locked) = if slow { None } else { self.try_lock() } {
            let done = self.vfs.write(&mut locked, fh, data, client, &|| answer.give(Ok(())));
            drop(locked);
            if done != Err(Error::Later) {
                answer.give(done);
                return self.housekeeper.look(&self.vfs);
            }
        }
        let data = data[..len.min(MAX_COMMAND)].to_vec();
        let housekeeper = self.housekeeper.clone();
        self.writes.put(client.tid, move |turn| {
            let Turn::Now(vfs) = turn else { return answer.give(Err(Error::Restart)) };
            let done = vfs.write(&mut vfs.hierarchy().lock(), fh, &data, client, &|| answer.give(Ok(())));
            answer.give(done);
            housekeeper.look(vfs);
        });
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        // The kernel does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.vfs.release(fh.0);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.vfs.open_dir(ino.0) {
            Ok(fh) => reply.opened(FileHandle(fh), FopenFlags::empty()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let entries = match self.vfs.read_dir(fh.0, offset == 0) {
            Ok(entries) => entries,
            Err(error) => return reply.error(errno(error)),
        };
        for (i, entry) in entries.iter().enumerate().skip(offset as usize) {
            let kind = if entry.is_dir { FileType::Directory } else { FileType::RegularFile };
            if reply.add(INodeNo(entry.ino), i as u64 + 1, kind, OsStr::from_bytes(&entry.name)) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.vfs.release(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.error(Errno::EINVAL);
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }

    fn setxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, _position: u32, reply: ReplyEmpty) {
        if !self.xattr {
            return reply.error(Errno::ENOSYS);
        }
        let set = XattrMode::from_flags(flags).and_then(|mode| self.vfs.set_xattr(ino.0, name.as_bytes(), value, mode));
        reply_empty(reply, set);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if !self.xattr {
            return reply.error(Errno::ENOSYS);
        }
        reply_xattr(reply, size, self.vfs.get_xattr(ino.0, name.as_bytes()));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if !self.xattr {
            return reply.error(Errno::ENOSYS);
        }
        reply_xattr(reply, size, Ok(self.vfs.list_xattr(ino.0, client(req))));
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if !self.xattr {
            return reply.error(Errno::ENOSYS);
        }
        reply_empty(reply, self.vfs.remove_xattr(ino.0, name.as_bytes()));
    }

    fn create(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, _mode: u32, _umask: u32, _flags: i32, reply: ReplyCreate) {
        reply.error(Errno::EACCES);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        let ready = PollEvents::POLLIN | PollEvents::POLLOUT | PollEvents::POLLRDNORM | PollEvents::POLLWRNORM;
        let news = PollEvents::POLLERR | PollEvents::POLLPRI;
        reply.poll(if self.vfs.has_been_read(fh.0) { ready } else { ready | news });
    }

    fn fallocate(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _offset: u64, _length: u64, _mode: i32, reply: ReplyEmpty) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn lseek(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _offset: i64, _whence: i32, reply: ReplyLseek) {
        // Only SEEK_DATA and SEEK_HOLE come here, and there are no data.
        reply.error(Errno::ENXIO);
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel copies by reading and writing then.
        reply.error(Errno::ENOSYS);
    }
}
