//! Bare system calls: what any program has to do for the same effect. All `unsafe` of the benchmark.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl;
use nix::sys::signal::Signal;

/// `sched_setaffinity` with the shortest mask the kernel takes.
pub(crate) fn set_mask(tid: i32, mask: u64) -> io::Result<()> {
    // SAFETY: the kernel reads 8 bytes from a live local.
    let r = unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid, size_of::<u64>(), &raw const mask) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `sched_getaffinity`; CPUs above 63 are not looked at.
pub(crate) fn mask(tid: i32) -> io::Result<u64> {
    let mut mask = [0u64; 128];
    // SAFETY: the kernel writes at most the given length into a live local.
    let r = unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, size_of_val(&mask), mask.as_mut_ptr()) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(mask[0]) }
}

/// Reads numeric directory names (`/proc/PID/task`) with `getdents64` and a large buffer.
pub(crate) fn numbers(dir: &File, buffer: &mut Vec<u8>, mut each: impl FnMut(i32)) -> io::Result<()> {
    const HEADER: usize = 19; // ino u64, off i64, reclen u16, type u8
    buffer.resize(256 * 1024, 0);
    loop {
        // SAFETY: the kernel writes at most the buffer's length into it.
        let n = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buffer.as_mut_ptr(), buffer.len()) };
        match n {
            0 => return Ok(()),
            n if n < 0 => return Err(io::Error::last_os_error()),
            _ => {}
        }
        let mut rest = &buffer[..n as usize];
        while rest.len() > HEADER {
            let record = u16::from_ne_bytes([rest[16], rest[17]]) as usize;
            let digits = rest[HEADER..record].iter().take_while(|c| c.is_ascii_digit());
            match digits.fold(0, |n, c| n * 10 + i32::from(c - b'0')) {
                0 => {} // "." and ".."
                number => each(number),
            }
            rest = &rest[record..];
        }
    }
}

/// Makes the child die with us, whatever ends us.
pub(crate) fn die_with_parent(command: &mut Command) -> &mut Command {
    // SAFETY: prctl(2) is async-signal-safe and touches no memory of the parent.
    unsafe { command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from)) }
}
