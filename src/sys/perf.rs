//! System layer: perf_event_open(2): events that record forks, exits and executed programs, and the rings that they are written to.

use super::Tid;
use super::shared::Words;
use crate::bitmap::Bitmap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;

/// `struct perf_event_attr` as of PERF_ATTR_SIZE_VER3.
#[repr(C)]
#[derive(Default)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_watermark: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
    branch_sample_type: u64,
    sample_regs_user: u64,
    sample_stack_user: u32,
    clockid: i32,
}

const PERF_TYPE_SOFTWARE: u32 = 1;
const PERF_COUNT_SW_DUMMY: u64 = 9;
const PERF_SAMPLE_TIME: u64 = 1 << 2;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;

// Bits of `flags`.
const DISABLED: u64 = 1 << 0;
const INHERIT: u64 = 1 << 1;
const EXCLUDE_KERNEL: u64 = 1 << 5;
const EXCLUDE_HV: u64 = 1 << 6;
const COMM: u64 = 1 << 9;
const TASK: u64 = 1 << 13;
const WATERMARK: u64 = 1 << 14;
const SAMPLE_ID_ALL: u64 = 1 << 18;
const COMM_EXEC: u64 = 1 << 24;
const USE_CLOCKID: u64 = 1 << 25;

const PERF_EVENT_IOC_SET_OUTPUT: libc::c_ulong = 0x2405;

/// Whose forks, exits and executed programs an event records.
#[derive(Clone, Copy, Debug)]
pub enum Of {
    /// Those of every task. Needs CAP_PERFMON, or `kernel.perf_event_paranoid` below 1.
    Everybody,
    /// Those of a thread and all of its descendants that are born from here on, threads and processes. Needs the right to read the
    /// thread's memory (ptrace(2), PTRACE_MODE_READ_REALCREDS).
    Family(Tid),
    /// None: the event only owns a ring. It is attached to this thread.
    Nobody(Tid),
}

/// Opens an event that records what happens on one CPU, with times of CLOCK_MONOTONIC.
///
/// # Errors
/// Those of perf_event_open(2): EACCES (EPERM of a seccomp filter) if it is not allowed, ESRCH if the thread is gone or about to be,
/// ENODEV for [`Of::Everybody`] on a CPU that is offline, EMFILE, ENOSYS.
pub fn open(of: Of, cpu: usize) -> io::Result<OwnedFd> {
    let (pid, flags) = match of {
        Of::Everybody => (-1, TASK | COMM | COMM_EXEC),
        Of::Family(tid) => (tid, TASK | COMM | COMM_EXEC | INHERIT),
        Of::Nobody(tid) => (tid, DISABLED),
    };
    let attr = Attr {
        kind: PERF_TYPE_SOFTWARE,
        size: size_of::<Attr>() as u32,
        config: PERF_COUNT_SW_DUMMY,
        sample_type: PERF_SAMPLE_TIME,
        // A watermark of 0 is half of the ring. An ordinary user must not look into the kernel, and there is nothing to see.
        flags: flags | EXCLUDE_KERNEL | EXCLUDE_HV | WATERMARK | SAMPLE_ID_ALL | USE_CLOCKID,
        clockid: libc::CLOCK_MONOTONIC,
        ..Attr::default()
    };
    let cpu = libc::c_int::try_from(cpu).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel reads `size` bytes of `attr` and writes nothing but `size`, if that is not what it expects.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attr, pid, cpu, -1, PERF_FLAG_FD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just installed the descriptor for this process, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// A descriptor of a process that is readable when all of its threads have exited, whether or not it has been waited for.
///
/// # Errors
/// Those of pidfd_open(2): ESRCH if there is no such process.
pub fn pidfd(tgid: Tid) -> io::Result<OwnedFd> {
    // SAFETY: the call touches no memory.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, tgid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just installed the descriptor for this process, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// The CPUs of /sys/devices/system/cpu/`which`: `online`, or `present` for those that can be brought online, too.
///
/// # Errors
/// What reading the file says.
pub fn cpus(which: &str) -> io::Result<Bitmap> {
    let text = std::fs::read(format!("/sys/devices/system/cpu/{which}"))?;
    Bitmap::parse_list(&text, 1 << 16).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// What a record tells; see `enum perf_event_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// PERF_RECORD_FORK. Tasks outside the pid namespace of whoever has opened the event are 0 or -1, here and below.
    Fork {
        /// The thread that has called fork(2).
        creator: Tid,
        /// The creator's process.
        parent: Tid,
        /// The new task.
        child: Tid,
        /// Its process.
        tgid: Tid,
    },
    /// PERF_RECORD_EXIT: a task exits, or must not be looked at any more because it has executed a set-user-ID or unreadable program.
    Exit {
        /// The task.
        tid: Tid,
    },
    /// PERF_RECORD_COMM with PERF_RECORD_MISC_COMM_EXEC: a process has executed a program.
    Exec {
        /// The process.
        tgid: Tid,
    },
    /// PERF_RECORD_LOST: there was no room for some records before this one.
    Lost,
}

const PERF_RECORD_LOST: u32 = 2;
const PERF_RECORD_COMM: u32 = 3;
const PERF_RECORD_EXIT: u32 = 4;
const PERF_RECORD_FORK: u32 = 7;
const PERF_RECORD_MISC_COMM_EXEC: u16 = 1 << 13;

/// `data_head` and `data_tail` of `struct perf_event_mmap_page`, in words.
const DATA_HEAD: usize = 1024 / WORD;
const DATA_TAIL: usize = DATA_HEAD + 1;
const WORD: usize = size_of::<u64>();

/// The longest record is shorter than that, a PERF_RECORD_LOST before it included: while there is that much room, nothing is lost.
const MARGIN: u64 = 256;

/// The ring of one CPU. Its descriptor becomes readable whenever half of it has been written.
#[derive(Debug)]
pub struct Ring {
    event: OwnedFd,
    words: Words,
    /// The first word behind the control page.
    first: usize,
}

impl Ring {
    /// Gives an event a ring of so many bytes, a power of two of pages.
    ///
    /// # Errors
    /// Those of mmap(2): EPERM if that is more than RLIMIT_MEMLOCK and `kernel.perf_event_mlock_kb` allow, ENOMEM, EINVAL.
    pub fn new(event: OwnedFd, size: usize) -> io::Result<Self> {
        // The control page.
        let page = match nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)? {
            Some(size) => size as usize,
            None => 4096,
        };
        let words = Words::shared(&event, (page + size) / WORD)?;
        Ok(Self { event, words, first: page / WORD })
    }

    /// Makes another event of the same CPU write to this ring, even after the ring's own event is closed.
    ///
    /// # Errors
    /// EINVAL if it is of another CPU.
    pub fn take(&self, event: &OwnedFd) -> io::Result<()> {
        // SAFETY: the call touches no memory.
        match unsafe { libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_SET_OUTPUT, self.event.as_raw_fd()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Tells the records that are there and not later than `until` (nanoseconds) with their times, in their order, and makes room for others.
    /// Whether there may have been too little room for some, of which [`Record::Lost`] tells only when another record has been written.
    pub fn read(&mut self, until: u64, mut tell: impl FnMut(u64, Record)) -> bool {
        let tail = self.words[DATA_TAIL].load(Relaxed);
        let head = self.words[DATA_HEAD].load(Acquire);
        let mut at = tail;
        let mut broken = false;
        while at < head {
            let header = self.word(at);
            let len = u64::from(header.size);
            if len < WORD as u64 * 2 || len > head - at {
                (broken, at) = (true, head);
                break;
            }
            // sample_id_all puts the time last.
            let time = self.raw(at + len - WORD as u64);
            if time > until {
                break;
            }
            if let Some(record) = self.record(at, header) {
                tell(time, record);
            }
            at += len;
        }
        self.words[DATA_TAIL].store(at, Release);
        // In this order: whoever has found no room before the store has left a head that shows it.
        fence(SeqCst);
        let written = self.words[DATA_HEAD].load(Acquire) - tail;
        broken || written + MARGIN > self.size()
    }

    fn record(&self, at: u64, header: Header) -> Option<Record> {
        let word = WORD as u64;
        match header.kind {
            PERF_RECORD_FORK => {
                let (tgid, parent) = self.pair(at + word);
                let (child, creator) = self.pair(at + 2 * word);
                Some(Record::Fork { creator, parent, child, tgid })
            }
            PERF_RECORD_EXIT => Some(Record::Exit { tid: self.pair(at + 2 * word).0 }),
            PERF_RECORD_COMM if header.misc & PERF_RECORD_MISC_COMM_EXEC != 0 => Some(Record::Exec { tgid: self.pair(at + word).0 }),
            PERF_RECORD_LOST => Some(Record::Lost),
            _ => None,
        }
    }

    /// The bytes of the ring.
    fn size(&self) -> u64 {
        ((self.words.len() - self.first) * WORD) as u64
    }

    /// The word at a position of the stream of records, which are whole words. What is between tail and head does not change.
    fn raw(&self, at: u64) -> u64 {
        self.words[self.first + (at % self.size()) as usize / WORD].load(Relaxed)
    }

    fn word(&self, at: u64) -> Header {
        let [a, b, c, d, e, f, g, h] = self.raw(at).to_ne_bytes();
        Header { kind: u32::from_ne_bytes([a, b, c, d]), misc: u16::from_ne_bytes([e, f]), size: u16::from_ne_bytes([g, h]) }
    }

    fn pair(&self, at: u64) -> (Tid, Tid) {
        let [a, b, c, d, e, f, g, h] = self.raw(at).to_ne_bytes();
        (Tid::from_ne_bytes([a, b, c, d]), Tid::from_ne_bytes([e, f, g, h]))
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// `struct perf_event_header`.
#[derive(Clone, Copy)]
struct Header {
    kind: u32,
    misc: u16,
    size: u16,
}
