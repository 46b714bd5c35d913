//! A hierarchy on a fake machine, by the names of its files.

use crate::fake::{FakeMachine, INIT, Told};
use cgfuse::cgroup::{Hierarchy, ROOT};
use cgfuse::controllers::SUBSYS;
use cgfuse::error::{Error, Result as ModelResult};
use cgfuse::sys::{Errno, Machine, Tid};
use cgfuse::tracker::events::EventLog;
use cgfuse::tracker::{Scan, Tracker};
use cgfuse::vfs::{Client, Ino, RootAttr, Vfs};
use std::sync::Arc;
use std::time::Duration;

/// The outcome of an operation as a program sees it.
pub(crate) type Outcome<T = ()> = Result<T, Errno>;

/// Longer than anything that the server does on its own takes to be due.
pub(crate) const LONG: Duration = Duration::from_secs(11);

/// The inode of the root group.
const ROOT_INO: Ino = ROOT + 1;

pub(crate) struct World {
    pub(crate) machine: Arc<FakeMachine>,
    pub(crate) vfs: Vfs,
}

/// A client with a uid; its thread is init unless that matters.
pub(crate) fn client(uid: u32, tid: Tid) -> Client {
    Client { uid, gid: uid, tid }
}

/// Root, by init.
pub(crate) fn root() -> Client {
    client(0, INIT)
}

fn errno<T>(result: ModelResult<T>) -> Outcome<T> {
    result.map_err(Error::errno)
}

impl World {
    pub(crate) fn new(machine: FakeMachine) -> Self {
        Self::owned_by(machine, 0)
    }

    /// A server that runs as that user.
    pub(crate) fn owned_by(machine: FakeMachine, owner: u32) -> Self {
        let machine = Arc::new(machine);
        let scan = Scan::new(machine.pid_max()).expect("memory");
        Self::tracked_by(machine, Box::new(scan), owner)
    }

    /// A server that the machine tells of every birth and death.
    pub(crate) fn told(machine: FakeMachine) -> Self {
        let machine = Arc::new(machine);
        let log = EventLog::new(Told(machine.clone()), machine.pid_max()).expect("memory");
        Self::tracked_by(machine, Box::new(log), 0)
    }

    pub(crate) fn tracked_by(machine: Arc<FakeMachine>, tracker: Box<dyn Tracker>, owner: u32) -> Self {
        let hierarchy = Hierarchy::new(machine.clone(), SUBSYS.to_vec(), tracker, owner);
        Self { machine, vfs: Vfs::new(hierarchy, false, RootAttr { uid: owner, gid: owner, mode: 0o555 }) }
    }

    /// A machine with so many CPUs and nodes.
    pub(crate) fn with(cpus: usize, nodes: usize) -> Self {
        Self::new(FakeMachine::new(cpus, nodes))
    }

    /// The inode of `/a/b` or `/a/b/tasks`.
    pub(crate) fn ino(&self, path: &str) -> Outcome<Ino> {
        let names = path.split('/').filter(|name| !name.is_empty());
        names.into_iter().try_fold(ROOT_INO, |parent, name| errno(self.vfs.lookup(parent, name.as_bytes())).map(|stat| stat.ino))
    }

    fn split(path: &str) -> (&str, &str) {
        path.rsplit_once('/').expect("an absolute path")
    }

    pub(crate) fn mkdir(&self, path: &str) -> Outcome {
        let (parent, name) = Self::split(path);
        let parent = self.ino(parent)?;
        errno(self.vfs.mkdir(&self.vfs.hierarchy().lock(), parent, name.as_bytes(), 0o755, root())).map(drop)
    }

    pub(crate) fn rmdir(&self, path: &str) -> Outcome {
        let (parent, name) = Self::split(path);
        let parent = self.ino(parent)?;
        errno(self.vfs.rmdir(&self.vfs.hierarchy().lock(), parent, name.as_bytes()))
    }

    pub(crate) fn rename(&self, from: &str, to: &str) -> Outcome {
        let ((parent, name), (new_parent, new_name)) = (Self::split(from), Self::split(to));
        let (parent, new_parent) = (self.ino(parent)?, self.ino(new_parent)?);
        errno(self.vfs.rename(&self.vfs.hierarchy().lock(), parent, name.as_bytes(), new_parent, new_name.as_bytes()))
    }

    /// Makes a group that can run tasks.
    pub(crate) fn group(&self, path: &str, cpus: &str) {
        self.mkdir(path).expect("mkdir");
        let mems = self.read(&format!("{}/cpuset.mems", Self::split(path).0)).expect("the parent's nodes");
        self.write(&format!("{path}/cpuset.mems"), mems).expect("cpuset.mems");
        self.write(&format!("{path}/cpuset.cpus"), cpus).expect("cpuset.cpus");
    }

    /// One write(2) by root.
    pub(crate) fn write(&self, path: &str, data: impl AsRef<[u8]>) -> Outcome {
        self.write_by(root(), root(), path, data)
    }

    /// One write(2) by `writer` through a descriptor that `opener` has opened.
    pub(crate) fn write_by(&self, opener: Client, writer: Client, path: &str, data: impl AsRef<[u8]>) -> Outcome {
        let fh = errno(self.vfs.open(self.ino(path)?, opener))?;
        let done = self.write_to(fh, writer, data);
        self.vfs.release(fh);
        done
    }

    /// One write(2) through an open descriptor.
    pub(crate) fn write_to(&self, fh: u64, writer: Client, data: impl AsRef<[u8]>) -> Outcome {
        errno(self.vfs.write(&mut self.vfs.hierarchy().lock(), fh, data.as_ref(), writer, &|| ()))
    }

    /// Moves a thread.
    pub(crate) fn attach(&self, group: &str, tid: Tid) -> Outcome {
        self.write(&format!("{group}/tasks"), tid.to_string())
    }

    /// Moves a process.
    pub(crate) fn attach_process(&self, group: &str, tid: Tid) -> Outcome {
        self.write(&format!("{group}/cgroup.procs"), tid.to_string())
    }

    pub(crate) fn open(&self, path: &str) -> Outcome<u64> {
        errno(self.vfs.open(self.ino(path)?, root()))
    }

    pub(crate) fn read(&self, path: &str) -> Outcome<String> {
        self.read_by(root(), path)
    }

    pub(crate) fn read_by(&self, reader: Client, path: &str) -> Outcome<String> {
        let fh = self.open(path)?;
        let text = errno(self.vfs.read(fh, 0, usize::MAX, reader));
        self.vfs.release(fh);
        text.map(|text| String::from_utf8(text).expect("control files hold text"))
    }

    /// The ids in a membership file.
    pub(crate) fn ids(&self, path: &str) -> Vec<Tid> {
        self.read(path).expect("a membership file").lines().map(|line| line.parse().expect("a number")).collect()
    }

    pub(crate) fn tasks(&self, group: &str) -> Vec<Tid> {
        self.ids(&format!("{group}/tasks"))
    }

    pub(crate) fn procs(&self, group: &str) -> Vec<Tid> {
        self.ids(&format!("{group}/cgroup.procs"))
    }

    /// What sched_getaffinity(2) shows of a thread, as a list.
    pub(crate) fn affinity(&self, tid: Tid) -> String {
        self.machine.affinity(tid).expect("a thread").to_string()
    }

    /// What the server does on its own, as often as it is due within [`LONG`].
    pub(crate) fn settle(&self) {
        let end = self.machine.now() + LONG;
        while let Some(due) = self.vfs.hierarchy().next_housekeeping().filter(|due| *due <= end) {
            self.machine.pass(due.saturating_duration_since(self.machine.now()));
            self.vfs.hierarchy().housekeeping();
        }
    }

    /// A CPU goes or comes, and the server is told.
    pub(crate) fn set_online(&self, cpu: usize, online: bool) {
        self.machine.set_online(cpu, online);
        self.vfs.hierarchy().lock().hotplug();
    }

    /// A node goes or comes, and the server is told.
    pub(crate) fn set_node(&self, node: usize, online: bool) {
        self.machine.set_node(node, online);
        self.vfs.hierarchy().lock().hotplug();
    }

    /// What has been announced since the last call, by the paths of the groups.
    pub(crate) fn released(&self) -> Vec<String> {
        let mut paths: Vec<_> = self.machine.take_released().into_iter().map(|(_, path)| path).collect();
        paths.sort();
        paths
    }
}
