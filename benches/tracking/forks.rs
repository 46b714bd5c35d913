//! Forks without a program behind them: what the workloads are made of. All `unsafe` of this benchmark.
#![allow(unsafe_code)]

use std::io;

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, pause};

fn exit() -> ! {
    // SAFETY: ends the process at once; no handler or destructor runs.
    unsafe { libc::_exit(0) }
}

/// A child that exits at once, and is waited for.
pub(crate) fn fork_and_wait() -> io::Result<()> {
    // SAFETY: the caller has one thread, and the child calls _exit(2) only.
    match unsafe { fork() }? {
        ForkResult::Child => exit(),
        ForkResult::Parent { child } => waitpid(child, None).map(drop).map_err(io::Error::from),
    }
}

/// Some processes that fork for ever, whose children fork three times and exit, each leaving orphans; as many as the limit allows.
/// Ends with the pid namespace that the caller is the first process of.
pub(crate) fn fork_bomb(seeds: usize) -> io::Result<()> {
    // SAFETY: no handler is installed; the kernel reaps the dead, orphans as well.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
    let mut left = seeds;
    while left > 0 {
        // SAFETY: the caller has one thread, and its descendants allocate nothing.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => forever(),
            Ok(ForkResult::Parent { .. }) => left -= 1,
            // The first ones take all there is.
            Err(Errno::EAGAIN) => std::thread::yield_now(),
            Err(e) => return Err(e.into()),
        }
    }
    loop {
        pause();
    }
}

fn forever() -> ! {
    loop {
        // SAFETY: as in `fork_bomb`.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => thrice(),
            Err(Errno::EAGAIN) => std::thread::yield_now(),
            Ok(ForkResult::Parent { .. }) | Err(_) => {}
        }
    }
}

fn thrice() -> ! {
    let mut left = 3;
    while left > 0 {
        // SAFETY: as in `fork_bomb`.
        left = match unsafe { fork() } {
            Ok(ForkResult::Child) => 3,
            Ok(ForkResult::Parent { .. }) => left - 1,
            Err(_) => 0,
        };
    }
    exit()
}
