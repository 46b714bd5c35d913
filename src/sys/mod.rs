//! System layer: the one trait through which everything above reaches the machine, and its Linux implementation.
//!
//! All `unsafe` of the crate is below this module.

#![allow(unsafe_code)]

pub mod bpf;
pub mod connector;
pub mod fd;
pub mod handover;
pub mod linux;
pub mod nsfs;
pub mod perf;
pub mod process;
pub mod ptrace;
pub mod shared;

use crate::bitmap::Bitmap;
use crate::nsproxy::Nsproxy;
use bitflags::bitflags;
use std::ffi::OsStr;
use std::time::Instant;

pub use nix::errno::Errno;

/// A thread id, in the server's pid namespace.
pub type Tid = i32;

/// CAP_SYS_ADMIN as a bit of a capability set.
pub const CAP_SYS_ADMIN: u64 = 1 << 21;
/// CAP_SYS_CHROOT.
pub const CAP_SYS_CHROOT: u64 = 1 << 18;

/// CAP_SYS_NICE as a bit of a capability set.
pub const CAP_SYS_NICE: u64 = 1 << 23;

bitflags! {
    /// The task flags (field 9 of /proc/PID/stat) that decide whether a task may be moved or counts.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TaskFlags: u32 {
        /// PF_EXITING: on its way out.
        const EXITING = 0x0000_0004;
        /// PF_KTHREAD: a kernel thread.
        const KTHREAD = 0x0020_0000;
        /// PF_NO_SETAFFINITY: a thread that the kernel has bound to its CPUs.
        const NO_SETAFFINITY = 0x0400_0000;
    }
}

/// What /proc tells of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskInfo {
    /// The process that the thread belongs to.
    pub tgid: Tid,
    /// The parent process, 0 if it is outside the server's pid namespace.
    pub ppid: Tid,
    /// Dead but not reaped (state Z or X).
    pub zombie: bool,
    /// Flags.
    pub flags: TaskFlags,
    /// Clock ticks since boot at which the task started; with the tid it names a task for ever.
    pub start_time: u64,
}

impl TaskInfo {
    /// Whether it is dead or has begun to exit: it is in no group any more.
    pub fn is_ending(&self) -> bool {
        self.zombie || self.flags.contains(TaskFlags::EXITING)
    }
}

/// A task's credentials, as far as moving it depends on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Creds {
    /// Real user id.
    pub uid: u32,
    /// Saved user id.
    pub suid: u32,
    /// Permitted capabilities.
    pub cap_permitted: u64,
    /// Effective capabilities.
    pub cap_effective: u64,
}

/// A pid namespace other than the server's, by an open descriptor of it.
#[derive(Clone, Debug)]
pub struct PidNs(pub std::sync::Arc<std::os::fd::OwnedFd>);

/// The process that sent a request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Its credentials.
    pub creds: Creds,
    /// Its pid namespace unless that is the server's.
    pub pid_ns: Option<PidNs>,
}

/// The machine as the model sees it. Errors are those of the system call that does the work: ESRCH for a task that is gone.
pub trait Machine: Send + Sync {
    /// One more than the highest CPU id this machine can have (the kernel's `nr_cpu_ids`).
    fn nr_cpu_ids(&self) -> usize;
    /// The size the kernel was built for (CONFIG_NR_CPUS); it bounds the text written to `cpuset.cpus`.
    fn config_nr_cpus(&self) -> usize;
    /// One more than the highest node id the kernel was built for (MAX_NUMNODES).
    fn nr_node_ids(&self) -> usize;
    /// The online CPUs.
    fn online_cpus(&self) -> Bitmap;
    /// The CPUs that the server may use, those that are offline included.
    fn own_cpus(&self) -> Bitmap;
    /// The CPUs that are online and that the server may use.
    fn allowed_cpus(&self) -> Bitmap {
        self.own_cpus().and(&self.online_cpus())
    }
    /// The nodes that have memory and that the server may use.
    fn allowed_mems(&self) -> Bitmap;
    /// The highest `sched_relax_domain_level` that the scheduler's topology has.
    fn relax_domain_level_max(&self) -> i64;

    /// What a task is. ESRCH if there is none.
    fn task(&self, tid: Tid) -> Result<TaskInfo, Errno>;
    /// Whose a task is. ESRCH if there is none.
    fn creds(&self, tid: Tid) -> Result<Creds, Errno>;
    /// Whether the thread exists and belongs to that process; a zombie does.
    fn is_thread_of(&self, tgid: Tid, tid: Tid) -> bool;
    /// The threads of a process, its dead leader included. Not a snapshot. ESRCH if there is none.
    fn threads(&self, tgid: Tid) -> Result<Vec<Tid>, Errno>;
    /// The number of threads of a process, its dead leader included. ESRCH if there is none.
    fn thread_count(&self, tgid: Tid) -> Result<usize, Errno>;
    /// The child processes that a thread has forked and that live. An error where the kernel does not tell (CONFIG_PROC_CHILDREN).
    fn children(&self, _tid: Tid) -> Result<Vec<Tid>, Errno> {
        Err(Errno::ENOSYS)
    }
    /// All processes. Not a snapshot.
    fn processes(&self) -> Vec<Tid>;
    /// The pid allocated last; pids are handed out in ascending order and wrap around below [`Machine::pid_max`].
    /// `None` where the machine cannot tell.
    fn last_pid(&self) -> Option<Tid>;
    /// Of a pid that no task can be found by: whether it may be in use all the same, by a fork that is under way.
    fn is_taken(&self, _pid: Tid) -> bool {
        true
    }
    /// All pids are below this (kernel.pid_max).
    fn pid_max(&self) -> Tid;

    /// sched_getaffinity(2): what is online of a thread's mask.
    fn affinity(&self, tid: Tid) -> Result<Bitmap, Errno>;
    /// sched_setaffinity(2).
    fn set_affinity(&self, tid: Tid, cpus: &Bitmap) -> Result<(), Errno>;
    /// migrate_pages(2): moves a process's pages on `from` to `to`.
    fn migrate_pages(&self, tgid: Tid, from: &Bitmap, to: &Bitmap) -> Result<(), Errno>;
    /// How many threads may share the work of changing many tasks.
    fn parallelism(&self) -> usize;

    /// Who a thread is, for judging its request. ESRCH if it cannot be seen from here.
    fn caller(&self, tid: Tid) -> Result<Caller, Errno>;
    /// The task that is called `nr` in `ns`. ESRCH if there is none.
    fn tid_from(&self, ns: &PidNs, nr: Tid) -> Result<Tid, Errno>;
    /// What a task is called in `ns`. ESRCH if it is not visible there.
    fn tid_in(&self, ns: &PidNs, tid: Tid) -> Result<Tid, Errno>;
    /// Whether a task is in a user namespace that is a child of the server's and belongs to this user, who has all capabilities there
    /// (`cap_capable`).
    fn owns_user_ns(&self, _uid: u32, _tid: Tid) -> bool {
        false
    }
    /// What makes namespaces and has tasks enter them, if this machine has it.
    fn nsproxy(&self) -> Option<&Nsproxy> {
        None
    }
    /// Whether uid 0 is the machine's root, not that of a user namespace.
    fn root_is_global(&self) -> bool;
    /// Starts the release agent for the group at `path` and does not wait for it (`call_usermodehelper`).
    fn run_release_agent(&self, agent: &OsStr, path: &OsStr);
    /// The time, for what is due later.
    fn now(&self) -> Instant;
    /// The time in the unit of [`TaskInfo::start_time`]; `None` where the machine cannot tell.
    fn uptime(&self) -> Option<u64> {
        None
    }
}
