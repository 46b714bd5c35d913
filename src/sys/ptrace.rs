//! System layer: ptrace(2) and what goes with it: another process's registers, memory and stops.
//!
//! Thin: one function per request, no policy. "Stopped" in a comment means in a ptrace-stop of the calling process's.

use super::{Errno, Tid};
use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

const PTRACE_SEIZE: u32 = 0x4206;
const PTRACE_INTERRUPT: u32 = 0x4207;
const PTRACE_GETSIGMASK: u32 = 0x420a;
const PTRACE_SETSIGMASK: u32 = 0x420b;
const PTRACE_GET_SYSCALL_INFO: u32 = 0x420e;
const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
const PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4210;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;
/// The stops of system calls are told from SIGTRAPs.
pub const TRACESYSGOOD: usize = 1;
/// The thread's seccomp filters rest while it is traced. Needs CAP_SYS_ADMIN and a tracer without filters.
const SUSPEND_SECCOMP: usize = 1 << 21;

/// A process's general registers in the machine's own layout.
#[cfg(target_arch = "x86_64")]
pub type Regs = libc::user_regs_struct;
/// A process's general registers in the machine's own layout: x0-x30, sp, pc, pstate.
#[cfg(target_arch = "aarch64")]
pub type Regs = libc::user_regs_struct;

/// `data` is a number here, or the address of something that outlives the call and is what the request takes.
fn request(request: u32, tid: Tid, addr: usize, data: usize) -> Result<i64, Errno> {
    // SAFETY: every caller in this module passes as `addr` and `data` what its request takes; the kernel checks the rest.
    let result = unsafe { libc::syscall(libc::SYS_ptrace, request as usize, tid as isize, addr, data) };
    if result == -1 { Err(Errno::last()) } else { Ok(result) }
}

/// PTRACE_SEIZE: begins to trace a thread without stopping it. The kernel lets go of it when the caller ends.
///
/// # Errors
/// EPERM if it is traced already, is a kernel thread, dead, or not to be traced by the caller; ESRCH.
pub fn seize(tid: Tid, options: usize) -> Result<(), Errno> {
    request(PTRACE_SEIZE, tid, 0, options).map(drop)
}

/// PTRACE_O_SUSPEND_SECCOMP, beside [`TRACESYSGOOD`]: the filters of a stopped thread rest until it is let go.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, or with filters of our own; EINVAL if the kernel has no such option.
pub fn suspend_seccomp(tid: Tid) -> Result<(), Errno> {
    request(libc::PTRACE_SETOPTIONS, tid, 0, TRACESYSGOOD | SUSPEND_SECCOMP).map(drop)
}

/// PTRACE_INTERRUPT: asks a traced thread to stop.
pub fn interrupt(tid: Tid) -> Result<(), Errno> {
    request(PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// PTRACE_CONT: lets a stopped thread run, with that signal if not 0.
pub fn resume(tid: Tid, signal: i32) -> Result<(), Errno> {
    request(libc::PTRACE_CONT, tid, 0, signal as usize).map(drop)
}

/// PTRACE_SYSCALL: lets a stopped thread run to the next entry to or exit from a system call, with that signal if not 0.
pub fn resume_to_syscall(tid: Tid, signal: i32) -> Result<(), Errno> {
    request(libc::PTRACE_SYSCALL, tid, 0, signal as usize).map(drop)
}

/// PTRACE_DETACH: lets go of a stopped thread.
pub fn detach(tid: Tid) -> Result<(), Errno> {
    request(libc::PTRACE_DETACH, tid, 0, 0).map(drop)
}

/// The registers of a stopped thread.
#[cfg(target_arch = "x86_64")]
pub fn regs(tid: Tid) -> Result<Regs, Errno> {
    let mut regs = MaybeUninit::<Regs>::zeroed();
    request(libc::PTRACE_GETREGS, tid, 0, regs.as_mut_ptr() as usize)?;
    // SAFETY: integers, zeroed before and filled now.
    Ok(unsafe { regs.assume_init() })
}

/// Sets the registers of a stopped thread.
#[cfg(target_arch = "x86_64")]
pub fn set_regs(tid: Tid, regs: &Regs) -> Result<(), Errno> {
    request(libc::PTRACE_SETREGS, tid, 0, &raw const *regs as usize).map(drop)
}

/// The registers of a stopped thread. EOPNOTSUPP for a 32-bit one.
#[cfg(target_arch = "aarch64")]
pub fn regs(tid: Tid) -> Result<Regs, Errno> {
    let mut regs = MaybeUninit::<Regs>::zeroed();
    let mut iov = libc::iovec { iov_base: regs.as_mut_ptr().cast(), iov_len: size_of::<Regs>() };
    request(libc::PTRACE_GETREGSET, tid, libc::NT_PRSTATUS as usize, &raw mut iov as usize)?;
    if iov.iov_len != size_of::<Regs>() {
        return Err(Errno::EOPNOTSUPP);
    }
    // SAFETY: integers, zeroed before and filled now.
    Ok(unsafe { regs.assume_init() })
}

/// Sets the registers of a stopped thread.
#[cfg(target_arch = "aarch64")]
pub fn set_regs(tid: Tid, regs: &Regs) -> Result<(), Errno> {
    let iov = libc::iovec { iov_base: (&raw const *regs).cast_mut().cast(), iov_len: size_of::<Regs>() };
    request(libc::PTRACE_SETREGSET, tid, libc::NT_PRSTATUS as usize, &raw const iov as usize).map(drop)
}

/// PTRACE_GETSIGMASK: the signals that a stopped thread blocks, bit n-1 for signal n; under sigsuspend(2) and its like the
/// mask that they will restore.
pub fn signal_mask(tid: Tid) -> Result<u64, Errno> {
    let mut mask = 0_u64;
    request(PTRACE_GETSIGMASK, tid, size_of::<u64>(), &raw mut mask as usize)?;
    Ok(mask)
}

/// PTRACE_SETSIGMASK.
pub fn set_signal_mask(tid: Tid, mask: u64) -> Result<(), Errno> {
    request(PTRACE_SETSIGMASK, tid, size_of::<u64>(), &raw const mask as usize).map(drop)
}

/// Where a thread that PTRACE_SYSCALL has let run is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyscallStop {
    /// About to enter the kernel.
    Entry,
    /// Returning this.
    Exit(Result<i64, Errno>),
    /// Not in a system call's stop.
    Other,
}

/// PTRACE_GET_SYSCALL_INFO.
pub fn syscall_stop(tid: Tid) -> Result<SyscallStop, Errno> {
    // struct ptrace_syscall_info: op (byte 0), then from byte 24 for an exit: rval, is_error.
    let mut info = [0_u64; 11];
    request(PTRACE_GET_SYSCALL_INFO, tid, size_of_val(&info), info.as_mut_ptr() as usize)?;
    Ok(match info[0].to_le_bytes()[0] {
        1 | 3 => SyscallStop::Entry,
        2 if info[4].to_le_bytes()[0] != 0 => SyscallStop::Exit(Err(Errno::from_raw(-(info[3] as i64) as i32))),
        2 => SyscallStop::Exit(Ok(info[3] as i64)),
        _ => SyscallStop::Other,
    })
}

/// PTRACE_GET_RSEQ_CONFIGURATION: the address of a thread's `struct rseq`, if it has registered one. `None` before Linux 5.13 too.
pub fn rseq(tid: Tid) -> Option<u64> {
    let mut config = [0_u64; 3];
    request(PTRACE_GET_RSEQ_CONFIGURATION, tid, size_of_val(&config), config.as_mut_ptr() as usize).ok()?;
    Some(config[0]).filter(|address| *address != 0)
}

/// What prctl(PR_SET_SYSCALL_USER_DISPATCH) has set: `struct ptrace_sud_config`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserDispatch {
    /// 0: off.
    pub mode: u64,
    /// Address of the byte that switches it.
    pub selector: u64,
    /// Start of the code that is exempt.
    pub offset: u64,
    /// Its length.
    pub len: u64,
}

/// A stopped thread's syscall user dispatch; `None` before Linux 6.4, which does not tell.
pub fn user_dispatch(tid: Tid) -> Option<UserDispatch> {
    let mut config = UserDispatch::default();
    let got = request(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, size_of::<UserDispatch>(), &raw mut config as usize);
    got.is_ok().then_some(config)
}

/// Whether a thread is about to take SIGSYS since a system call of its was dispatched (SYS_USER_DISPATCH).
pub fn is_dispatched(tid: Tid, signal: i32) -> bool {
    const SYS_USER_DISPATCH: i32 = 2;
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let got = signal == libc::SIGSYS && request(libc::PTRACE_GETSIGINFO, tid, 0, info.as_mut_ptr() as usize).is_ok();
    // SAFETY: zeroed or written by the kernel, it is a siginfo.
    got && unsafe { info.assume_init() }.si_code == SYS_USER_DISPATCH
}

/// Sets a stopped thread's syscall user dispatch.
pub fn set_user_dispatch(tid: Tid, config: &UserDispatch) -> Result<(), Errno> {
    let data = &raw const *config as usize;
    request(PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG, tid, size_of::<UserDispatch>(), data).map(drop)
}

/// PTRACE_POKEDATA: writes `bytes`, a multiple of a word, into a stopped thread's memory, whatever its protection. A private page
/// is copied first.
pub fn poke(tid: Tid, address: u64, bytes: &[u8]) -> Result<(), Errno> {
    for (i, word) in bytes.chunks_exact(size_of::<usize>()).enumerate() {
        let word = word.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte));
        request(libc::PTRACE_POKEDATA, tid, address as usize + i * size_of::<usize>(), word)?;
    }
    Ok(())
}

/// process_vm_readv(2): fills `into` from a process's memory. EFAULT if part of it is not there.
pub fn read_memory(tid: Tid, address: u64, into: &mut [u8]) -> Result<(), Errno> {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: into.len() };
    // SAFETY: `local` is the exclusively borrowed `into`; the other one is in another address space, where the kernel checks it.
    match unsafe { libc::process_vm_readv(tid, &raw const local, 1, &raw const remote, 1, 0) } {
        -1 => Err(Errno::last()),
        n if n as usize == into.len() => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// process_vm_writev(2): writes `bytes` to a process's writable memory. EFAULT if part of it is not there.
pub fn write_memory(tid: Tid, address: u64, bytes: &[u8]) -> Result<(), Errno> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: the kernel only reads from `local`; the other one is in another address space, where the kernel checks it.
    match unsafe { libc::process_vm_writev(tid, &raw const local, 1, &raw const remote, 1, 0) } {
        -1 => Err(Errno::last()),
        n if n as usize == bytes.len() => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// What threads can share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Shared {
    /// The table of descriptors: KCMP_FILES.
    Files = 2,
    /// Root and working directory: KCMP_FS.
    Directories = 3,
}

/// kcmp(2): whether two threads share it. ENOSYS without CONFIG_KCMP.
pub fn share(a: Tid, b: Tid, what: Shared) -> Result<bool, Errno> {
    // SAFETY: five numbers.
    match unsafe { libc::syscall(libc::SYS_kcmp, a, b, what as i32, 0_usize, 0_usize) } {
        -1 => Err(Errno::last()),
        order => Ok(order == 0),
    }
}

/// A copy of descriptor `fd` of a thread of process `tgid`.
///
/// # Errors
/// EINVAL before Linux 6.9 if the main thread is dead or has other descriptors than this one.
pub fn copy_fd(tgid: Tid, tid: Tid, fd: i32) -> Result<OwnedFd, Errno> {
    // PIDFD_THREAD: the thread's own table.
    match pidfd_getfd(tid, libc::O_EXCL as u32, fd) {
        Err(Errno::EINVAL) => {}
        copy => return copy,
    }
    let copy = pidfd_getfd(tgid, 0, fd).map_err(|_| Errno::EINVAL)?;
    // The main thread's is the thread's if it is the same file.
    let (there, here) = (nix::sys::stat::stat(format!("/proc/{tgid}/task/{tid}/fd/{fd}").as_str())?, nix::sys::stat::fstat(&copy)?);
    if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino) { Ok(copy) } else { Err(Errno::EINVAL) }
}

fn pidfd_getfd(tid: Tid, flags: u32, fd: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: two numbers.
    let pidfd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, tid, flags) })?;
    // SAFETY: new, and nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd as RawFd) };
    // SAFETY: three numbers.
    let copy = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })?;
    // SAFETY: new, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy as RawFd) })
}

/// What has become of a traced thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// At the entry to or exit from a system call.
    Syscall,
    /// Stopped as PTRACE_INTERRUPT asked, or with its whole process (SIGSTOP), or the latter has ended.
    Stop,
    /// About to take this signal, unless the tracer lets it run with another.
    Signal(i32),
    /// Ended and reaped.
    Gone,
}

/// A thread's next event. `None` when the timer of [`Ticks`] has interrupted.
///
/// One thread, since to ask for any would have the kernel look at all of them.
///
/// # Errors
/// ECHILD if it is not traced.
pub fn wait(tid: Tid) -> Result<Option<Event>, Errno> {
    look(libc::P_PID, tid, 0).map(|found| found.map(|(_, event)| event))
}

/// The same, faster, for a thread that blocks all signals that can be: only SIGSTOP would be lost if we were killed (and SIGSYS, where that is not blocked).
///
/// # Errors
/// ECHILD if it is not traced.
pub fn wait_blocking(tid: Tid) -> Result<Option<Event>, Errno> {
    wait_for(tid, libc::__WALL).map(|found| found.map(|(_, event)| event))
}

/// An event of any traced thread, without waiting. `None` if there is none.
///
/// # Errors
/// ECHILD if no thread is traced.
pub fn poll() -> Result<Option<(Tid, Event)>, Errno> {
    look(libc::P_ALL, 0, libc::WNOHANG)
}

/// Looks at an event first (WNOWAIT), and leaves a signal where it is: once it was waited for, only we could hand it on, and it would be lost if we
/// were killed (`wait_task_stopped` clears `exit_code`). So the thread must be resumed before anything else is waited for.
fn look(which: libc::idtype_t, tid: Tid, flags: i32) -> Result<Option<(Tid, Event)>, Errno> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let all = libc::__WALL | libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT;
    // SAFETY: the kernel writes one siginfo.
    match unsafe { libc::waitid(which, tid.cast_unsigned(), info.as_mut_ptr(), all | flags) } {
        -1 if Errno::last() == Errno::EINTR => return Ok(None),
        -1 => return Err(Errno::last()),
        _ => {}
    }
    // SAFETY: zeroed or written, it is a siginfo.
    let info = unsafe { info.assume_init() };
    // SAFETY: a member of what waitid(2) writes; 0 if there is none to tell of.
    let tid = unsafe { info.si_pid() };
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    match info.si_code {
        _ if tid == 0 => Ok(None),
        // As waitpid(2) has it.
        libc::CLD_TRAPPED | libc::CLD_STOPPED if matches!(event(status << 8 | 0x7f), Event::Signal(_)) => {
            Ok(Some((tid, event(status << 8 | 0x7f))))
        }
        _ => wait_for(tid, libc::__WALL | libc::WNOHANG),
    }
}

fn wait_for(tid: Tid, flags: i32) -> Result<Option<(Tid, Event)>, Errno> {
    let mut status = 0;
    // SAFETY: the kernel writes one int.
    match unsafe { libc::waitpid(tid, &raw mut status, flags) } {
        -1 if Errno::last() == Errno::EINTR => Ok(None),
        -1 => Err(Errno::last()),
        0 => Ok(None),
        tid => Ok(Some((tid, event(status)))),
    }
}

fn event(status: i32) -> Event {
    const PTRACE_EVENT_STOP: i32 = 128;
    match status {
        _ if !libc::WIFSTOPPED(status) => Event::Gone,
        _ if status >> 16 == PTRACE_EVENT_STOP => Event::Stop,
        _ if libc::WSTOPSIG(status) == libc::SIGTRAP | 0x80 => Event::Syscall,
        // Other events are not asked for.
        _ if status >> 16 != 0 => Event::Stop,
        _ => Event::Signal(libc::WSTOPSIG(status)),
    }
}

/// How many traced threads [`Ticks`] knows.
const MAX_WATCHED: usize = 1 << 16;
/// Traced threads; negative: reaped by the handler.
static WATCHED: [AtomicI32; MAX_WATCHED] = [const { AtomicI32::new(0) }; MAX_WATCHED];
static WATCHED_LEN: AtomicUsize = AtomicUsize::new(0);
/// How many of them were reaped by the handler.
static REAPED: AtomicUsize = AtomicUsize::new(0);
static SEIZING: AtomicBool = AtomicBool::new(false);

/// A timer that interrupts what blocks (SIGALRM), and the way out of a deadlock with execve(2).
///
/// A thread that executes a program waits until its siblings are reaped; those that are traced, the tracer must reap, which
/// cannot, since PTRACE_SEIZE waits for the execve. So the handler reaps the dead while a [`Ticks::seize`] is under way.
#[derive(Debug)]
pub struct Ticks(());

impl Ticks {
    /// Starts the timer. There must be one at a time; the process must have one thread.
    pub fn start(period: Duration) -> io::Result<Self> {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: a zeroed sigaction is a valid one: SIG_DFL, no flags (so blocking calls are interrupted), empty mask.
        let action = unsafe { action.assume_init_mut() };
        action.sa_sigaction = on_tick as extern "C" fn(i32) as usize;
        // SAFETY: `on_tick` makes only system calls that are async-signal-safe and uses atomics.
        if unsafe { libc::sigaction(libc::SIGALRM, action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        WATCHED_LEN.store(0, Ordering::SeqCst);
        REAPED.store(0, Ordering::SeqCst);
        set_timer(period)?;
        Ok(Self(()))
    }

    /// PTRACE_SEIZE, reaping whoever dies meanwhile.
    pub fn seize(&self, tid: Tid, options: usize) -> Result<(), Errno> {
        SEIZING.store(true, Ordering::SeqCst);
        let seized = seize(tid, options);
        SEIZING.store(false, Ordering::SeqCst);
        let n = WATCHED_LEN.load(Ordering::SeqCst);
        if seized.is_ok() && n < MAX_WATCHED {
            WATCHED[n].store(tid, Ordering::SeqCst);
            WATCHED_LEN.store(n + 1, Ordering::SeqCst);
        }
        seized
    }

    /// Whether the handler has reaped that thread.
    pub fn has_reaped(&self, tid: Tid) -> bool {
        self.reaped(tid).next().is_some()
    }

    /// A thread has the number of one that was reaped: execve(2) gives it the leader's.
    pub fn lives(&self, tid: Tid) {
        self.reaped(tid).for_each(|entry| entry.store(tid, Ordering::SeqCst));
    }

    fn reaped(&self, tid: Tid) -> impl Iterator<Item = &'static AtomicI32> {
        let len = if REAPED.load(Ordering::SeqCst) == 0 { 0 } else { WATCHED_LEN.load(Ordering::SeqCst) };
        WATCHED[..len].iter().filter(move |entry| entry.load(Ordering::SeqCst) == -tid)
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        // Zero disarms; that cannot fail.
        let _ = set_timer(Duration::ZERO);
    }
}

fn set_timer(period: Duration) -> io::Result<()> {
    let time = libc::timeval { tv_sec: period.as_secs() as libc::time_t, tv_usec: period.subsec_micros().into() };
    let timer = libc::itimerval { it_interval: time, it_value: time };
    // SAFETY: the kernel reads `timer`.
    match unsafe { libc::syscall(libc::SYS_setitimer, libc::ITIMER_REAL, &raw const timer, 0_usize) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn on_tick(_: i32) {
    if !SEIZING.load(Ordering::SeqCst) {
        return;
    }
    let errno = Errno::last();
    for entry in &WATCHED[..WATCHED_LEN.load(Ordering::SeqCst)] {
        let tid = entry.load(Ordering::SeqCst);
        // A look first: to wait for an exit alone would take a stop that the tracer has not seen.
        let dead = tid > 0 && wait_for_exit(tid, libc::WNOWAIT).is_some_and(|code| code != libc::CLD_TRAPPED && code != libc::CLD_STOPPED);
        if dead && wait_for_exit(tid, 0).is_some() {
            entry.store(-tid, Ordering::SeqCst);
            REAPED.fetch_add(1, Ordering::SeqCst);
        }
    }
    errno.set();
}

/// waitid(2): why there is something to report of that thread, if there is.
fn wait_for_exit(tid: Tid, flags: i32) -> Option<i32> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = flags | libc::WEXITED | libc::WNOHANG | libc::__WALL;
    // SAFETY: the kernel fills `info` or leaves it.
    let waited = unsafe { libc::waitid(libc::P_PID, tid as libc::id_t, info.as_mut_ptr(), flags) };
    // SAFETY: integers, zeroed before.
    let info = unsafe { info.assume_init() };
    // SAFETY: waitid sets the field, or it is still zero.
    let pid = unsafe { info.si_pid() };
    (waited == 0 && pid == tid).then_some(info.si_code)
}

/// Receives a message and the descriptors that came with it. `None` when the other end is closed.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
    receive_from(socket, buffer).map(|message| message.map(|(len, fds, _)| (len, fds)))
}

/// The same, and the sender's pid as it is here, if the socket has SO_PASSCRED; else 0.
pub fn receive_from(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<(usize, Vec<OwnedFd>, Tid)>> {
    let mut iov = [io::IoSliceMut::new(buffer)];
    let mut space = cmsg_space!([RawFd; 64], UnixCredentials);
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC);
    let message = match message {
        // The last tick of a timer.
        Err(Errno::EINTR) => return receive_from(socket, buffer),
        message => message?,
    };
    let (mut fds, mut sender) = (Vec::new(), 0);
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::ScmRights(received) => {
                for fd in received {
                    // SAFETY: the kernel has just installed the descriptor for this process, and nobody else knows it.
                    fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
            ControlMessageOwned::ScmCredentials(credentials) => sender = credentials.pid(),
            _ => {}
        }
    }
    let truncated = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    match message.bytes {
        _ if truncated => Err(io::ErrorKind::InvalidData.into()),
        0 => Ok(None),
        n => Ok(Some((n, fds, sender))),
    }
}
