//! Command line: taking a mount away, as root or through fusermount3.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::exit::{Exit, Failure};
use super::mountinfo::{self, Mount};
use crate::sys::handover;

/// Whether a mount in use may stay until its last user is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// In use is an error.
    Wait,
    /// Out of sight at once, ended when the last user is gone.
    Lazy,
}

/// Why a mount could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Open files or working directories are on it.
    #[error("target is busy")]
    Busy,
    /// It needs fusermount3, which is not there.
    #[error("not permitted, and {NO_FUSERMOUNT}")]
    NoFusermount,
    /// fusermount3 said no.
    #[error("{0}")]
    Fusermount(String),
    /// Anything else.
    #[error("{}", .0.desc())]
    Other(Errno),
}

/// What to tell a user without fusermount3.
pub const NO_FUSERMOUNT: &str = "fusermount3, which ordinary users need, is not installed: apt install fuse3";

/// Unmounts the uppermost mount at `path`, which is without symbolic links.
pub fn unmount(path: &Path, urgency: Urgency) -> Result<(), UnmountError> {
    let lazy = if urgency == Urgency::Lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    match umount2(path, MntFlags::UMOUNT_NOFOLLOW | lazy) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => through_fusermount(path, urgency),
        Err(Errno::EBUSY) => Err(UnmountError::Busy),
        Err(errno) => Err(UnmountError::Other(errno)),
    }
}

/// Takes a mount out of sight, by its open root, and no other one that is there by now. Nothing to do if somebody else just has.
pub fn detach(root: &File, mount: &Mount) -> Result<(), UnmountError> {
    let there = || mountinfo::locate(&mount.point).is_ok_and(|place| place.mount.is_some_and(|top| top.is(mount)));
    if !there() {
        return Ok(());
    }
    match umount2(&*format!("/proc/self/fd/{}", root.as_raw_fd()), MntFlags::MNT_DETACH) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => through_fusermount(&mount.point, Urgency::Lazy),
        Err(_) if !there() => Ok(()),
        Err(errno) => Err(UnmountError::Other(errno)),
    }
}

fn through_fusermount(path: &Path, urgency: Urgency) -> Result<(), UnmountError> {
    let program = fusermount().ok_or(UnmountError::NoFusermount)?;
    let mut command = Command::new(program);
    command.arg("-u").args((urgency == Urgency::Lazy).then_some("-z")).arg("--").arg(path);
    let output = command.output().map_err(|error| UnmountError::Fusermount(format!("fusermount3: {error}")))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false if said.contains("busy") => Err(UnmountError::Busy),
        false => Err(UnmountError::Fusermount(said.trim().to_owned())),
    }
}

/// The setuid program that mounts and unmounts for ordinary users.
pub fn fusermount() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_else(|| OsString::from("/bin:/usr/bin"));
    env::split_paths(&path).map(|dir| dir.join("fusermount3")).find(|candidate| candidate.is_file())
}

/// `cgfuse umount DIR`.
pub fn run(dir: &Path, urgency: Urgency) -> Result<(), Failure> {
    // Where the caller ignores it, there is no fusermount3 to wait for.
    handover::set_ignored(libc::SIGCHLD, false);
    let shown = dir.display();
    let failure = |message: String| Failure::new(Exit::Failure, message);
    // The working directory may be below the mount.
    let place = mountinfo::locate(&std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned()));
    let place = place.map_err(|error| failure(format!("{shown}: {}", reason(&error))))?;
    let mount = place.mount.ok_or_else(|| failure(format!("{shown}: not mounted")))?;
    if !mount.is_cgfuse() {
        return Err(failure(format!("{shown}: not a cgfuse mount but one of type {}; use umount(8)", mount.fstype)));
    }
    unmount(&place.path, urgency).map_err(|error| {
        let advice = match &error {
            UnmountError::Busy => " ('fuser -vm DIR' shows by whom; --lazy detaches it)",
            UnmountError::Fusermount(said) if said.contains("mtab") => "; was it mounted by another user?",
            _ => "",
        };
        failure(format!("{shown}: {error}{advice}"))
    })
}

/// The kernel's words for an error, without Rust's "(os error 2)".
pub fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => Errno::from_raw(code).desc().to_owned(),
        None => error.to_string(),
    }
}
