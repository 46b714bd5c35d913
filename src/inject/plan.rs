//! Injection: what is to be executed, in whom.

use super::error::{Flaw, InjectError};
use crate::sys::Tid;
use std::fmt;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// How many descriptors a plan can hand over.
pub const MAX_FDS: usize = 32;
/// How many steps a plan can have.
pub const MAX_STEPS: usize = 64;
/// How many calls a plan can have, those for undoing included.
pub const MAX_CALLS: usize = 256;
/// How many bytes of arguments a plan can have: they share one page with the message that brings descriptors.
pub const MAX_DATA: usize = 2048;

/// In whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every thread of a process, also those that it creates meanwhile.
    Process(Tid),
    /// One thread.
    Thread(Tid),
}

impl Target {
    /// The number it was named by.
    #[must_use]
    pub fn tid(self) -> Tid {
        match self {
            Self::Process(tid) | Self::Thread(tid) => tid,
        }
    }
}

/// The system calls that can be injected: none of them sleeps for long, and none touches the restart block of the one that was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "they are section 2 of the manual")]
pub enum Syscall {
    Setns,
    Unshare,
    Chroot,
    Chdir,
    Fchdir,
    Prctl,
    SetMempolicy,
    PidfdOpen,
    Close,
    Mmap,
    Munmap,
    Socketpair,
    Recvmsg,
}

/// Name and numbers of a [`Syscall`].
#[allow(dead_code, reason = "each machine reads its own columns")]
pub(super) struct Row {
    pub(super) call: Syscall,
    pub(super) name: &'static str,
    pub(super) x86_64: u32,
    pub(super) i386: u32,
    pub(super) aarch64: u32,
}

const fn row(call: Syscall, name: &'static str, x86_64: u32, i386: u32, aarch64: u32) -> Row {
    Row { call, name, x86_64, i386, aarch64 }
}

/// In the order of [`Syscall`].
pub(super) const SYSCALLS: [Row; 13] = [
    row(Syscall::Setns, "setns", 308, 346, 268),
    row(Syscall::Unshare, "unshare", 272, 310, 97),
    row(Syscall::Chroot, "chroot", 161, 61, 51),
    row(Syscall::Chdir, "chdir", 80, 12, 49),
    row(Syscall::Fchdir, "fchdir", 81, 133, 50),
    row(Syscall::Prctl, "prctl", 157, 172, 167),
    row(Syscall::SetMempolicy, "set_mempolicy", 238, 276, 237),
    row(Syscall::PidfdOpen, "pidfd_open", 434, 434, 434),
    row(Syscall::Close, "close", 3, 6, 57),
    // mmap2 on i386: the offset, always 0 here, counts in pages.
    row(Syscall::Mmap, "mmap", 9, 192, 222),
    row(Syscall::Munmap, "munmap", 11, 91, 215),
    row(Syscall::Socketpair, "socketpair", 53, 360, 199),
    row(Syscall::Recvmsg, "recvmsg", 47, 372, 212),
];

impl Syscall {
    /// Whether it changes what threads share among each other: root and working directory. It is then executed by one of those that share them, when
    /// all have executed the steps before.
    pub(super) fn is_shared(self) -> bool {
        matches!(self, Self::Chroot | Self::Chdir | Self::Fchdir)
    }

    pub(super) fn row(self) -> &'static Row {
        &SYSCALLS[self as usize]
    }
}

impl fmt::Display for Syscall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().name)
    }
}

/// A namespace of a thread, as a file in /proc/PID/ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "they are the kinds of namespaces(7)")]
pub enum Namespace {
    Mnt,
    Uts,
    Ipc,
    Net,
    User,
    Cgroup,
    /// That of its future children; a process's own never changes.
    PidForChildren,
    Time,
}

impl Namespace {
    /// All of them.
    pub const ALL: [Self; 8] = [Self::Mnt, Self::Uts, Self::Ipc, Self::Net, Self::User, Self::Cgroup, Self::PidForChildren, Self::Time];

    /// The name in /proc/PID/ns.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::Mnt => "mnt",
            Self::Uts => "uts",
            Self::Ipc => "ipc",
            Self::Net => "net",
            Self::User => "user",
            Self::Cgroup => "cgroup",
            Self::PidForChildren => "pid_for_children",
            Self::Time => "time",
        }
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file())
    }
}

/// An argument of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// A number.
    Int(u64),
    /// The number that a descriptor of the plan has in the target; see [`Plan::fd`].
    Fd(usize),
    /// The address in the target of bytes of the plan; see [`Plan::data`].
    Data(usize),
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Self::Int(value)
    }
}

impl From<i32> for Arg {
    fn from(value: i32) -> Self {
        Self::Int(i64::from(value).cast_unsigned())
    }
}

/// A system call with its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// Which.
    pub call: Syscall,
    /// With what; those not given are 0.
    pub args: [Arg; 6],
}

impl Invocation {
    /// A call with up to six arguments.
    ///
    /// # Panics
    /// With more than six.
    #[must_use]
    pub fn new<const N: usize>(call: Syscall, args: [Arg; N]) -> Self {
        let mut all = [Arg::Int(0); 6];
        all[..N].copy_from_slice(&args);
        Self { call, args: all }
    }
}

/// A call that each thread makes, and how to take it back.
///
/// One that changes directories (chroot, chdir, fchdir) is made by one of the threads that share them, after all threads have made the
/// calls of the steps before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The call. Any error it returns fails the step.
    pub call: Invocation,
    /// What takes it back, made in this order by a thread that has made the call when a later step or another thread fails.
    pub undo: Vec<Invocation>,
}

/// A descriptor that the target is to have while it executes the steps.
#[derive(Clone, Debug)]
pub enum Descriptor {
    /// The target opens it itself, by pidfd_open(2): the number is that of the process *in the target's pid namespace*.
    /// The cheapest way: no memory, no socket.
    Pidfd(Tid),
    /// Anything, handed over through a socket. Open-file-description and all, it becomes the target's.
    File(Arc<OwnedFd>),
}

/// What each thread of a target executes, all or none.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In this order in each thread, not more than [`MAX_STEPS`]; one thread goes ahead, the leader comes last.
    pub steps: Vec<Step>,
    /// Open in the target while it executes, closed afterwards. Those that only undo calls use are handed over only for undoing.
    pub fds: Vec<Descriptor>,
    /// Readable by the target while it executes.
    pub data: Vec<Vec<u8>>,
    /// Namespaces, by inode number, that every thread must be in afterwards; else everything is taken back.
    pub expect: Vec<(Namespace, u64)>,
    /// For a single thread: refused if the process has got more.
    pub single: bool,
    /// Leave the kernel's workers of the process (io_uring) behind instead of refusing.
    pub skip_io_workers: bool,
    /// A thread of the target that sleeps in a write(2) which only the caller's answer ends. See [`Injector::inject_writer`](super::Injector::inject_writer).
    pub(super) writer: Option<Tid>,
}

impl Plan {
    /// Adds a descriptor; the argument that stands for its number.
    pub fn fd(&mut self, descriptor: Descriptor) -> Arg {
        self.fds.push(descriptor);
        Arg::Fd(self.fds.len() - 1)
    }

    /// Adds bytes; the argument that stands for their address.
    pub fn data(&mut self, bytes: impl Into<Vec<u8>>) -> Arg {
        self.data.push(bytes.into());
        Arg::Data(self.data.len() - 1)
    }

    /// Adds a step.
    pub fn step(&mut self, call: Invocation, undo: Vec<Invocation>) -> &mut Self {
        self.steps.push(Step { call, undo });
        self
    }

    /// The steps in sections, each of which is to be complete in all threads before the next one begins: the steps, and whether they are made
    /// by one of those that share what they change.
    pub(super) fn sections(&self) -> Vec<(Range<usize>, bool)> {
        let mut sections: Vec<(Range<usize>, bool)> = Vec::new();
        for (number, step) in self.steps.iter().enumerate() {
            let shared = step.call.call.is_shared();
            match sections.last_mut() {
                Some((steps, same)) if *same == shared => steps.end = number + 1,
                _ => sections.push((number..number + 1, shared)),
            }
        }
        sections
    }

    /// All calls, those for undoing included.
    fn invocations(&self) -> impl Iterator<Item = &Invocation> {
        self.steps.iter().flat_map(|step| std::iter::once(&step.call).chain(&step.undo))
    }

    /// The descriptors that these calls use.
    pub(super) fn fds_of<'a>(&self, calls: impl Iterator<Item = &'a Invocation>) -> Vec<usize> {
        let used: Vec<Arg> = calls.flat_map(|call| call.args).collect();
        (0..self.fds.len()).filter(|index| used.contains(&Arg::Fd(*index))).collect()
    }

    pub(super) fn check(&self) -> Result<(), InjectError> {
        let dangling = |arg: &Arg| match *arg {
            Arg::Int(_) => false,
            Arg::Fd(index) => index >= self.fds.len(),
            Arg::Data(index) => index >= self.data.len(),
        };
        if self.invocations().any(|call| call.args.iter().any(dangling)) {
            return Err(InjectError::Invalid(Flaw::Dangling));
        }
        // Each is aligned to 8 bytes.
        let data: usize = self.data.iter().map(|bytes| bytes.len().next_multiple_of(8)).sum();
        if self.steps.len() > MAX_STEPS || self.invocations().count() > MAX_CALLS || self.fds.len() > MAX_FDS || data > MAX_DATA {
            return Err(InjectError::Invalid(Flaw::TooLarge));
        }
        Ok(())
    }
}

/// What an injection has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Threads that have executed all steps.
    pub threads: usize,
    /// Workers of the kernel that were left behind.
    pub skipped: usize,
    /// Nanoseconds from the first request to stop until the last thread was let go.
    pub stopped_ns: u64,
    /// Nanoseconds from the arrival of the request to its end, in the injector process.
    pub total_ns: u64,
}
