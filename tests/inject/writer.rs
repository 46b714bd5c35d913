//! A target that sleeps in a write to a file system of ours: it cannot stop before it is answered, and then sees the injection's result.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, UNIX_EPOCH};

use cgfuse::inject::{Arg, Namespace, Plan, Syscall, Target as Whom};
use fuser::{
    BackgroundSession, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, MountOption, OpenFlags,
    ReplyAttr, ReplyEntry, ReplyOpen, ReplyWrite, Request, Session, WriteFlags,
};
use nix::errno::Errno;

use super::target::{DEADLINE, Target, UTS, call, holder, injector, setns};
use crate::common::{TempDir, can_mount, is_root, skipped};

/// A file system of one file, whose writes wait for the test.
struct OneFile(Mutex<Sender<ReplyWrite>>);

fn attr(ino: u64) -> FileAttr {
    let directory = ino == 1;
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if directory { FileType::Directory } else { FileType::RegularFile },
        perm: if directory { 0o755 } else { 0o666 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for OneFile {
    fn lookup(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.entry(&Duration::MAX, &attr(2), Generation(0));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::MAX, &attr(ino.into()));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _ = self.0.lock().expect("sender").send(reply);
    }
}

fn mount(dir: &TempDir) -> (BackgroundSession, Receiver<ReplyWrite>, PathBuf) {
    let (sender, writes) = channel();
    let mut config = fuser::Config::default();
    config.mount_options = vec![MountOption::FSName("cgfuse-test".into()), MountOption::DefaultPermissions];
    let session = Session::new(OneFile(Mutex::new(sender)), dir.path(), &config).and_then(Session::spawn).expect("mounted");
    (session, writes, dir.path().join("file"))
}

#[test]
fn the_write_tells() {
    if !is_root() || !can_mount() {
        return skipped("the_write_tells", "not root, or no /dev/fuse");
    }
    let dir = TempDir::new();
    let (_session, writes, file) = mount(&dir);
    let (holder, mut injector) = (holder(UTS), injector());
    let good = setns(holder.pid(), holder.pid(), UTS);
    let mut bad = Plan::default();
    bad.step(call(Syscall::Unshare, [Arg::Int(u64::MAX)]), vec![]);
    for threads in ["1", "5"] {
        let mut target = Target::new(&["writer", file.to_str().expect("a name"), threads]);
        for round in 0..200 {
            let plan = if round % 2 == 0 { &good } else { &bad };
            target.send();
            let reply = writes.recv_timeout(DEADLINE).expect("a write");
            let mut answered = false;
            let result = injector.inject_writer(Whom::Process(target.pid()), plan, DEADLINE, target.pid(), || {
                reply.written(5);
                answered = true;
            });
            assert!(answered);
            let said = target.said();
            match result {
                Ok(_) => {
                    assert_eq!((round % 2, said.result, said.errno), (0, 5, 0));
                    assert_eq!(target.namespace(Namespace::Uts), holder.namespace(Namespace::Uts));
                }
                Err(error) => assert_eq!((round % 2, said.result, said.errno, error.errno()), (1, -1, Errno::EINVAL as i32, Errno::EINVAL)),
            }
        }
        target.untouched();
    }
}

/// The target can be refused before the answer: then the caller answers.
#[test]
fn refused_before() {
    if !is_root() || !can_mount() {
        return skipped("refused_before", "not root, or no /dev/fuse");
    }
    let dir = TempDir::new();
    let (_session, writes, file) = mount(&dir);
    let target = Target::new(&["writer", file.to_str().expect("a name"), "1"]);
    let mut target = target;
    target.send();
    let reply = writes.recv_timeout(DEADLINE).expect("a write");
    let mut plan = Plan::default();
    plan.step(call(Syscall::Setns, [Arg::Fd(3)]), vec![]);
    let mut answered = false;
    let result = injector().inject_writer(Whom::Process(target.pid()), &plan, DEADLINE, target.pid(), || answered = true);
    assert!(result.is_err() && !answered);
    reply.error(fuser::Errno::EINVAL);
    assert_eq!(target.said().errno, Errno::EINVAL as i32);
    target.untouched();
}
