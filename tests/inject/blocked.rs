//! The calls that the target blocks in, and how each ends if nothing disturbs it.

use nix::errno::Errno;

const EINTR: i32 = Errno::EINTR as i32;
const ETIMEDOUT: i32 = Errno::ETIMEDOUT as i32;
const EAGAIN: i32 = Errno::EAGAIN as i32;

/// How long the target's calls block.
pub(crate) const MICROS: i64 = 400_000;

/// Name, result, errno, signal handlers run.
pub(crate) const CALLS: [(&str, i64, i32, i64); 37] = [
    ("pause", -1, EINTR, 1),
    ("nanosleep", 0, 0, 0),
    ("nanosleep-signal", -1, EINTR, 1),
    ("clock_nanosleep-relative", 0, 0, 0),
    ("clock_nanosleep-absolute", 0, 0, 0),
    ("poll", 0, 0, 0),
    ("poll-infinite", 1, 0, 0),
    ("ppoll", 0, 0, 0),
    ("ppoll-signal", -1, EINTR, 1),
    ("select", 0, 0, 0),
    ("pselect", 0, 0, 0),
    ("futex", 0, 0, 0),
    ("futex-relative", -1, ETIMEDOUT, 0),
    ("futex-absolute", -1, ETIMEDOUT, 0),
    ("read-pipe", 8, 0, 0),
    ("read-signal", -1, EINTR, 1),
    ("read-restart", 8, 0, 1),
    ("write-pipe", 4096, 0, 0),
    ("recv", 8, 0, 0),
    ("accept", 1, 0, 0),
    ("waitpid", 1, 0, 0),
    ("waitid", 1, 0, 0),
    ("sigsuspend", -1, EINTR, 1),
    ("sigwaitinfo", 10, 0, 0),
    ("epoll_wait-infinite", 1, 0, 0),
    ("io_uring_enter", 0, 0, 0),
    ("semop", 0, 0, 0),
    ("msgrcv", 4, 0, 0),
    ("eventfd", 8, 0, 0),
    ("timerfd", 8, 0, 0),
    ("inotify", 1, 0, 0),
    ("flock", 0, 0, 0),
    ("setlkw", 0, 0, 0),
    ("mq_timedreceive", 3, 0, 0),
    ("spin", 1, 0, 0),
    // The kernel's own EINTR, which has no limit to count on.
    ("sigtimedwait", -1, EAGAIN, 0),
    ("epoll_wait-finite", 0, 0, 0),
];

/// These may end so when their thread is stopped in any way: with EINTR, see signal(7), or as a wait for a value that has changed meanwhile.
const FRAGILE: [(&str, i32); 3] = [("epoll_wait-finite", EINTR), ("sigtimedwait", EINTR), ("futex", EAGAIN)];

pub(crate) fn is_fragile(name: &str, errno: i32) -> bool {
    FRAGILE.contains(&(name, errno))
}

pub(crate) fn io_uring_is_disabled() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|text| text.trim() != "0")
}
