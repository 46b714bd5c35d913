//! The floor: a FUSE file system with the tree of a cpuset hierarchy and nothing behind it.
//!
//! It answers every request as fast as fuser can carry it, with the session settings of the real
//! server, so that a ratio against it shows what the model costs and not what FUSE costs.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr, Request, Session,
    SessionACL, TimeOrNow, WriteFlags,
};

/// The control files of a cpuset group; the last ones exist in the root only.
const FILES: [&str; 20] = [
    "tasks",
    "cgroup.procs",
    "cgroup.clone_children",
    "notify_on_release",
    "cpuset.cpus",
    "cpuset.mems",
    "cpuset.effective_cpus",
    "cpuset.effective_mems",
    "cpuset.cpu_exclusive",
    "cpuset.mem_exclusive",
    "cpuset.mem_hardwall",
    "cpuset.memory_migrate",
    "cpuset.memory_pressure",
    "cpuset.memory_spread_page",
    "cpuset.memory_spread_slab",
    "cpuset.sched_load_balance",
    "cpuset.sched_relax_domain_level",
    "cgroup.sane_behavior",
    "release_agent",
    "cpuset.memory_pressure_enabled",
];

/// How many of [`FILES`] a group below the root has.
const GROUP_FILES: usize = 17;

/// Inode numbers of one group: the directory first, then its files.
const INODES_PER_GROUP: u64 = 32;

const TTL: Duration = Duration::from_secs(86_400);

/// How a session is served; the same for the floor and for the real server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Serving {
    /// Event loop threads.
    pub(crate) threads: usize,
    /// A `/dev/fuse` descriptor for each of them.
    pub(crate) clone_fd: bool,
    /// `O_TRUNC` travels with OPEN instead of costing a SETATTR.
    pub(crate) atomic_o_trunc: bool,
    /// Extended attributes exist. If they do, the kernel asks for `security.capability` at every open that truncates.
    pub(crate) xattr: bool,
}

/// Mounts the null file system at `dir` and serves it until it is unmounted.
pub(crate) fn serve(dir: &Path, serving: Serving) -> io::Result<()> {
    let mut config = fuser::Config::default();
    config.mount_options = vec![MountOption::FSName("cgfuse-null".into()), MountOption::DefaultPermissions];
    config.acl = SessionACL::All;
    config.n_threads = Some(serving.threads);
    config.clone_fd = serving.clone_fd;
    let null = NullFs { serving, groups: Mutex::default() };
    Session::new(null, dir, &config)?.run()
}

#[derive(Default)]
struct Groups {
    next: u64,
    by_name: HashMap<(u64, OsString), u64>,
}

struct NullFs {
    serving: Serving,
    groups: Mutex<Groups>,
}

/// The group an inode belongs to, and the file's index (0 = the directory itself).
fn place(ino: INodeNo) -> (u64, u64) {
    let n = u64::from(ino) - 1;
    (n / INODES_PER_GROUP, n % INODES_PER_GROUP)
}

fn attr(group: u64, file: u64) -> FileAttr {
    let directory = file == 0;
    FileAttr {
        ino: INodeNo(group * INODES_PER_GROUP + file + 1),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if directory { FileType::Directory } else { FileType::RegularFile },
        perm: if directory { 0o755 } else { 0o644 },
        nlink: if directory { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn files(group: u64) -> &'static [&'static str] {
    &FILES[..if group == 0 { FILES.len() } else { GROUP_FILES }]
}

impl Filesystem for NullFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        if self.serving.atomic_o_trunc {
            config.add_capabilities(InitFlags::FUSE_ATOMIC_O_TRUNC).map_err(|_| io::Error::other("the kernel lacks ATOMIC_O_TRUNC"))?;
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (group, _) = place(parent);
        if let Some(i) = files(group).iter().position(|f| *f == name) {
            return reply.entry(&TTL, &attr(group, i as u64 + 1), Generation(0));
        }
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        match groups.by_name.get(&(group, name.to_owned())) {
            Some(&child) => reply.entry(&TTL, &attr(child, 0), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let (group, file) = place(ino);
        reply.attr(&TTL, &attr(group, file));
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (group, file) = place(ino);
        reply.attr(&TTL, &attr(group, file));
    }

    fn mkdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        let (group, _) = place(parent);
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.next += 1;
        let child = groups.next;
        groups.by_name.insert((group, name.to_owned()), child);
        drop(groups);
        reply.entry(&TTL, &attr(child, 0), Generation(0));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (group, _) = place(parent);
        let removed = self.groups.lock().unwrap_or_else(PoisonError::into_inner).by_name.remove(&(group, name.to_owned()));
        match removed {
            Some(_) => reply.ok(),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        _size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(if offset == 0 { b"0\n" } else { b"" });
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.written(data.len() as u32);
    }

    fn getxattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(if self.serving.xattr { Errno::NO_XATTR } else { Errno::ENOSYS });
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _offset: u64, reply: ReplyDirectory) {
        reply.ok();
    }
}
