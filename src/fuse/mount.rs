//! FUSE layer: mounting, by mount(2) where that is allowed and by the set-user-id program fusermount3 elsewhere.
//!
//! Done here, not by fuser: its way of unmounting when a session ends also takes away a mount below ours.

use crate::options::{MountFlags, MountOptions, SUBTYPE};
use crate::sys::fd::receive_fd;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MntFlags, MsFlags};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{getegid, geteuid};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const DEVICE: &str = "/dev/fuse";
const FUSERMOUNT: &str = "fusermount3";

/// Why a file system could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point.
    #[error("{}: {}", .0.display(), .1)]
    Dir(PathBuf, io::Error),
    /// /proc is needed to find tasks.
    #[error("cannot read /proc/self/status: {0}; mount /proc first")]
    Proc(io::Error),
    /// The back end that was asked for does not work here.
    #[error("cannot follow forks and exits: {0}; without '-o tracker=' the best way that works is taken")]
    Tracker(io::Error),
    /// No FUSE in the kernel, or no access to it.
    #[error("cannot open {DEVICE}: {}{}", .0, device_hint(.0))]
    Device(io::Error),
    /// mount(2) has refused.
    #[error("mount(2): {}", .0.desc())]
    Mount(Errno),
    /// fusermount3 cannot be run.
    #[error("cannot run {FUSERMOUNT}, which mounts for ordinary users: {0}; on Debian: apt install fuse3")]
    NoFusermount(io::Error),
    /// fusermount3 has refused; the text is its own.
    #[error("{0}")]
    Fusermount(String),
    /// Mounted, but the handshake with the kernel failed.
    #[error("cannot serve: {0}")]
    Serve(io::Error),
}

fn device_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; load the module with 'modprobe fuse'",
        io::ErrorKind::PermissionDenied => "; its mode should be 0666",
        _ => "; is FUSE part of the kernel? Try 'modprobe fuse'",
    }
}

/// Mounts on `dir` and gives the descriptor on which the kernel's requests arrive.
pub(super) fn mount(dir: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let device = OpenOptions::new().read(true).write(true).open(DEVICE);
    let direct = match device {
        Ok(device) => mount_directly(device, dir, options),
        // fusermount3 may open it for us.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !geteuid().is_root() => Err(MountError::Mount(Errno::EPERM)),
        Err(error) => Err(MountError::Device(error)),
    };
    match direct {
        Err(MountError::Mount(Errno::EPERM)) if !geteuid().is_root() => mount_by_fusermount(dir, options),
        other => other,
    }
}

fn allow_other(options: &MountOptions) -> bool {
    options.allow_other.unwrap_or(geteuid().is_root())
}

fn mount_directly(device: File, dir: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let others = if allow_other(options) { ",allow_other" } else { "" };
    let (fd, uid, gid) = (device.as_raw_fd(), geteuid(), getegid());
    let data = format!("fd={fd},rootmode=40000,user_id={uid},group_id={gid},default_permissions{others},subtype={SUBTYPE}");
    let flags = [
        (MountFlags::READ_ONLY, MsFlags::MS_RDONLY),
        (MountFlags::NOSUID, MsFlags::MS_NOSUID),
        (MountFlags::NODEV, MsFlags::MS_NODEV),
        (MountFlags::NOEXEC, MsFlags::MS_NOEXEC),
        (MountFlags::NOATIME, MsFlags::MS_NOATIME),
        (MountFlags::SYNC, MsFlags::MS_SYNCHRONOUS),
        (MountFlags::DIRSYNC, MsFlags::MS_DIRSYNC),
    ];
    let flags = flags.iter().filter(|(flag, _)| options.flags.contains(*flag)).map(|(_, ms)| *ms).collect();
    nix::mount::mount(Some(options.source.as_str()), dir, Some("fuse"), flags, Some(data.as_str())).map_err(MountError::Mount)?;
    Ok(device.into())
}

fn mount_by_fusermount(dir: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let words = [
        (true, format!("fsname={},subtype={SUBTYPE},default_permissions", options.source.replace('\\', r"\\").replace(',', r"\,"))),
        (allow_other(options), "allow_other".to_owned()),
        (options.flags.contains(MountFlags::READ_ONLY), "ro".to_owned()),
        (options.flags.contains(MountFlags::NOEXEC), "noexec".to_owned()),
        (options.flags.contains(MountFlags::NOATIME), "noatime".to_owned()),
        (options.flags.contains(MountFlags::SYNC), "sync".to_owned()),
        (options.flags.contains(MountFlags::DIRSYNC), "dirsync".to_owned()),
    ];
    let list: Vec<String> = words.into_iter().filter(|(wanted, _)| *wanted).map(|(_, word)| word).collect();
    let pair = || -> io::Result<(OwnedFd, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty())?;
        fcntl(&ours, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        Ok((ours, theirs))
    };
    let (ours, theirs) = pair().map_err(MountError::NoFusermount)?;
    let mut command = Command::new(FUSERMOUNT);
    command.arg("-o").arg(list.join(",")).arg("--").arg(dir).env("_FUSE_COMMFD", theirs.as_raw_fd().to_string());
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(MountError::NoFusermount)?;
    drop(theirs);
    let fd = receive_fd(&ours);
    let output = child.wait_with_output().map_err(MountError::NoFusermount)?;
    match fd {
        Ok(fd) if output.status.success() => Ok(fd),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(MountError::Fusermount(if said.is_empty() { format!("{FUSERMOUNT}: {}", output.status) } else { said }))
        }
    }
}

/// Whether there is a mount on `dir` that nobody serves. stat(2) may be answered from the kernel's cache, statfs(2) is not.
pub(super) fn is_dead(dir: &Path) -> bool {
    nix::sys::statfs::statfs(dir).is_err_and(|errno| errno == Errno::ENOTCONN)
}

/// Takes away a mount that nobody will ever serve.
pub(super) fn give_up(dir: &Path) {
    if nix::mount::umount2(dir, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_err() {
        let unmounted = Command::new(FUSERMOUNT).args(["-u", "-z", "--"]).arg(dir).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            log::warn!("{}: a dead mount stays; remove it with '{FUSERMOUNT} -u -z'", dir.display());
        }
    }
}
