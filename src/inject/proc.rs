//! Injection: what /proc tells of a target.

use crate::sys::Tid;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};

/// PF_KTHREAD.
const KTHREAD: u32 = 0x0020_0000;
/// PF_IO_WORKER and PF_USER_WORKER: io_uring, vhost. They are listed as threads and never run in user space.
const WORKER: u32 = 0x10 | 0x4000;

/// Of /proc/PID/task/TID/stat.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stat {
    pub(super) state: char,
    flags: u32,
    /// How many its process has.
    pub(super) threads: usize,
    /// The CPU it ran on last.
    pub(super) cpu: usize,
    policy: i32,
}

impl Stat {
    pub(super) fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
    pub(super) fn is_kernel_thread(&self) -> bool {
        self.flags & KTHREAD != 0
    }
    /// Whether it may keep a CPU from all who are not real-time.
    pub(super) fn is_real_time(&self) -> bool {
        const SCHED_DEADLINE: i32 = 6;
        matches!(self.policy, libc::SCHED_FIFO | libc::SCHED_RR | SCHED_DEADLINE)
    }
    pub(super) fn is_worker(&self) -> bool {
        self.flags & WORKER != 0
    }
}

/// `None` when the thread is gone.
pub(super) fn stat(tgid: Tid, tid: Tid) -> Option<Stat> {
    let mut buf = [0; 1024];
    let len = File::open(format!("/proc/{tgid}/task/{tid}/stat")).ok()?.read_at(&mut buf, 0).ok()?;
    let text = &buf[..len];
    // The name may hold any bytes; behind it comes field 3.
    let text = std::str::from_utf8(&text[text.iter().rposition(|&c| c == b')')? + 1..]).ok()?;
    let mut fields = text.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let flags = fields.nth(5)?.parse().ok()?;
    let threads = fields.nth(10)?.parse().ok()?;
    let cpu = fields.nth(18)?.parse().ok()?;
    let policy = fields.nth(1)?.parse().ok()?;
    Some(Stat { state, flags, threads, cpu, policy })
}

/// Whether a thread has ended, for certain: a failure to look does not say so.
pub(super) fn has_ended(tgid: Tid, tid: Tid) -> bool {
    match stat(tgid, tid) {
        Some(stat) => stat.is_dead(),
        None => std::fs::symlink_metadata(format!("/proc/{tgid}/task/{tid}")).is_err_and(|error| error.kind() == ErrorKind::NotFound),
    }
}

/// The threads of the process that `tid` is a thread of; empty when it is gone.
pub(super) fn threads(tid: Tid) -> Vec<Tid> {
    let entries = std::fs::read_dir(format!("/proc/{tid}/task"));
    entries.map_or_else(|_| Vec::new(), |entries| entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// A line of /proc/TID/status.
pub(super) fn status(tid: Tid, field: &str) -> Option<String> {
    line(&whole_status(tid)?, field).map(str::to_owned)
}

fn whole_status(tid: Tid) -> Option<String> {
    // One call, where it suffices: the kernel makes the whole text for each. Who is in many groups has a longer one.
    let mut buf = [0; 4096];
    let path = format!("/proc/{tid}/status");
    let len = File::open(&path).ok()?.read_at(&mut buf, 0).ok()?;
    let text = if len < buf.len() { buf[..len].to_vec() } else { std::fs::read(&path).ok()? };
    // The name may not be UTF-8.
    Some(String::from_utf8_lossy(&text).into_owned())
}

fn line<'a>(status: &'a str, field: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':').map(str::trim))
}

/// Whether a process's main thread, which nobody holds, has signals for the process to take.
pub(super) fn is_about_to_take_signals(tgid: Tid) -> bool {
    let Some(status) = whole_status(tgid) else { return false };
    let mask = |field| line(&status, field).and_then(|mask| u64::from_str_radix(mask, 16).ok());
    let wanted = mask("ShdPnd").zip(mask("SigBlk")).is_some_and(|(pending, blocked)| pending & !blocked != 0);
    // Stopped, it takes them when it is continued.
    wanted && line(&status, "State").is_some_and(|state| state.starts_with('R'))
}

/// The process of a thread.
pub(super) fn tgid(tid: Tid) -> Option<Tid> {
    status(tid, "Tgid")?.parse().ok()
}

/// Who traces it, if anybody.
pub(super) fn tracer(tid: Tid) -> Option<Tid> {
    status(tid, "TracerPid")?.parse().ok().filter(|tracer| *tracer != 0)
}

/// The inode of a namespace.
pub(super) fn namespace(tid: Tid, file: &str) -> Option<u64> {
    std::fs::metadata(format!("/proc/{tid}/ns/{file}")).ok().map(|meta| meta.ino())
}
