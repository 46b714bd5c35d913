//! Injection: why it failed, as a closed list. [`InjectError::errno`] is the only place where a reason becomes an errno.

use super::plan::{Namespace, Syscall};
use crate::sys::{Errno, Tid};

/// Why nothing was changed, or ([`InjectError::NotUndone`], [`InjectError::Died`]) what is left.
///
/// Every message says which thread, what failed, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// The target has ended.
    #[error("{tid}: no such task (any more)")]
    Gone {
        /// The task asked for.
        tid: Tid,
    },
    /// The target is the injector or the process that has started it.
    #[error("{tid}: cannot stop the process that does the stopping; start it in the group instead")]
    Itself {
        /// The task asked for.
        tid: Tid,
    },
    /// The kernel does not allow to trace it.
    #[error("{tid}: ptrace is not permitted: another user's process, more privileges than ours, or Yama (kernel.yama.ptrace_scope)")]
    NotPermitted {
        /// The first thread that was refused.
        tid: Tid,
    },
    /// Somebody traces it already.
    #[error("{tid}: traced by process {tracer} (a debugger, strace); try again when that has detached")]
    Traced {
        /// The traced thread.
        tid: Tid,
        /// Its tracer.
        tracer: Tid,
    },
    /// A kernel thread.
    #[error("{tid}: a kernel thread; it never runs in user space")]
    KernelThread {
        /// The thread.
        tid: Tid,
    },
    /// It has seccomp filters that could kill it, and suspending them needs CAP_SYS_ADMIN.
    #[error("{tid}: has seccomp filters; injecting needs CAP_SYS_ADMIN to suspend them")]
    Seccomp {
        /// The thread.
        tid: Tid,
    },
    /// An io_uring or other kernel-side worker of the process; it would stay behind.
    #[error("{tid}: a kernel worker of the process (io_uring), which cannot be moved; stop it, or accept that it stays behind")]
    IoWorker {
        /// The worker.
        tid: Tid,
    },
    /// It did not stop before the deadline.
    #[error("{tid}: does not stop (state {state}): waits in the kernel, or for a vfork child to execute or end; try again later")]
    NotStopping {
        /// A thread that went on.
        tid: Tid,
        /// Its state letter in /proc/PID/stat.
        state: char,
    },
    /// The process kept executing or creating threads until the deadline.
    #[error("{tid}: does not settle (creates threads or executes programs all the time); try again later")]
    Unsettled {
        /// The process.
        tid: Tid,
    },
    /// A plan is for one thread, and the process has several.
    #[error("{tid}: has several threads by now; try again")]
    Several {
        /// The process.
        tid: Tid,
    },
    /// Code that is not known here: x32, 32-bit code in a 64-bit process, no vDSO.
    #[error("{tid}: cannot inject: {what}")]
    Foreign {
        /// The thread.
        tid: Tid,
        /// What is unknown.
        what: Unknown,
    },
    /// Injectors that were killed have left all places for code in use.
    #[error("{tid}: no room for code: a former injector was killed and its threads have not recovered yet; try again later")]
    NoRoom {
        /// The thread.
        tid: Tid,
    },
    /// A descriptor could not be handed over.
    #[error(
        "{tid}: cannot give it descriptor {index} of the plan: {errno} (EMFILE: raise its RLIMIT_NOFILE; EINVAL: its main thread is dead or has other descriptors, which takes Linux 6.9)"
    )]
    Descriptor {
        /// The thread.
        tid: Tid,
        /// Which of [`Plan::fds`](super::Plan::fds).
        index: usize,
        /// From the target's pidfd_open, socketpair or recvmsg, or our sendmsg.
        errno: Errno,
    },
    /// Memory for arguments could not be had.
    #[error("{tid}: cannot allocate memory in it: {errno}")]
    Memory {
        /// The thread.
        tid: Tid,
        /// From its mmap, or from writing there.
        errno: Errno,
    },
    /// A step failed.
    #[error("{tid}: step {step}, {call}: {errno}{}", advice(*.call, *.errno))]
    Call {
        /// The thread.
        tid: Tid,
        /// Which of [`Plan::steps`](super::Plan::steps).
        step: usize,
        /// The system call.
        call: Syscall,
        /// What it returned.
        errno: Errno,
    },
    /// All steps succeeded, and a namespace is not the expected one.
    #[error("{tid}: its {kind} namespace is not the expected one afterwards")]
    Mismatch {
        /// The thread.
        tid: Tid,
        /// Which namespace.
        kind: Namespace,
    },
    /// Something failed, and so did taking back what had been done.
    #[error("{cause}; taking it back failed in {threads} thread(s), first {tid}: {errno}")]
    NotUndone {
        /// What failed first.
        cause: Box<InjectError>,
        /// The first thread that is not as it was.
        tid: Tid,
        /// What its undo call returned.
        errno: Errno,
        /// How many are not.
        threads: usize,
    },
    /// The injector process was killed. The target goes on; nothing of it is stopped or damaged.
    #[error("the injector was killed {}", if *.modified { "in the middle: some threads may have been moved" } else { "before it changed anything" })]
    Died {
        /// Whether some of the steps may have been executed.
        modified: bool,
    },
    /// The plan makes no sense.
    #[error("invalid plan: {0}")]
    Invalid(Flaw),
    /// The injector's own system calls failed.
    #[error("the injector cannot work: {0}")]
    System(Errno),
}

/// What to do about a call that has failed, behind its errno.
fn advice(call: Syscall, errno: Errno) -> &'static str {
    match (call, errno) {
        (Syscall::Setns, Errno::EPERM) => {
            " (entering a namespace needs CAP_SYS_ADMIN in the user namespace that owns it, a mount namespace CAP_SYS_CHROOT too)"
        }
        (Syscall::Setns, Errno::EINVAL) => {
            " (a pid namespace can be entered from the one above it only, a mount or user namespace not by who shares directories with others)"
        }
        (Syscall::Chroot, Errno::EPERM) => " (it needs CAP_SYS_CHROOT)",
        (Syscall::Chroot, Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES | Errno::ELOOP) => {
            " (the path must be a directory where the task sees it)"
        }
        _ => "",
    }
}

/// What of a target is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum Unknown {
    /// No vDSO, or one without room behind its end.
    #[error("no usable vDSO")]
    Vdso,
    /// The thread executes 32-bit code in a 64-bit process, or the reverse.
    #[error("a code segment that does not fit the process")]
    CodeSegment,
    /// Its syscall user dispatch is one that cannot be set from outside.
    #[error("syscall user dispatch of only a range (PR_SYS_DISPATCH_INCLUSIVE_ON)")]
    Dispatch,
    /// Its syscall user dispatch is on, and the kernel does not tell how it is set.
    #[error("syscall user dispatch is on, which takes Linux 6.4")]
    Dispatched,
}

/// What is wrong with a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum Flaw {
    /// An argument names a descriptor or data that the plan does not have.
    #[error("an argument without its descriptor or data")]
    Dangling,
    /// More than `MAX_STEPS` steps, `MAX_FDS` descriptors or `MAX_DATA` bytes, see [`plan`](super::plan).
    #[error("too large")]
    TooLarge,
}

impl InjectError {
    /// The errno for whoever wrote to a control file.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Gone { .. } => Errno::ESRCH,
            Self::Itself { .. } => Errno::EDEADLK,
            Self::NotPermitted { .. } | Self::KernelThread { .. } | Self::Seccomp { .. } => Errno::EPERM,
            Self::Traced { .. }
            | Self::IoWorker { .. }
            | Self::NotStopping { .. }
            | Self::Unsettled { .. }
            | Self::Several { .. }
            | Self::NoRoom { .. } => Errno::EBUSY,
            Self::Foreign { .. } => Errno::EOPNOTSUPP,
            // It is not the target that is gone.
            Self::Descriptor { errno: Errno::ESRCH, .. } | Self::Call { errno: Errno::ESRCH, .. } | Self::System(Errno::ESRCH) => {
                Errno::EIO
            }
            Self::Descriptor { errno, .. } | Self::Memory { errno, .. } | Self::Call { errno, .. } | Self::System(errno) => *errno,
            Self::Mismatch { .. } | Self::Died { .. } => Errno::EIO,
            Self::NotUndone { cause, .. } => cause.errno(),
            Self::Invalid(_) => Errno::EINVAL,
        }
    }
}
