//! System layer: what the kernel tells of a namespace's descriptor (<linux/nsfs.h>).

use crate::sys::Errno;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

mod ioctls {
    use nix::{ioctl_none, ioctl_read_bad, request_code_none};
    ioctl_none!(get_userns, 0xb7, 0x1);
    ioctl_none!(get_nstype, 0xb7, 0x3);
    ioctl_read_bad!(get_owner_uid, request_code_none!(0xb7, 0x4), libc::uid_t);
}

/// The kind, as a CLONE_ flag.
///
/// # Errors
/// EINVAL for what is no namespace.
pub fn kind(ns: impl AsFd) -> Result<i32, Errno> {
    // SAFETY: the descriptor is open for the whole call; the request takes no argument.
    unsafe { ioctls::get_nstype(ns.as_fd().as_raw_fd()) }.map_err(|errno| if errno == Errno::ENOTTY { Errno::EINVAL } else { errno })
}

/// Whom a user namespace belongs to.
///
/// # Errors
/// EINVAL for what is none.
pub fn owner(user: impl AsFd) -> Result<u32, Errno> {
    let mut uid = 0;
    // SAFETY: the descriptor is open for the whole call, which writes one uid.
    unsafe { ioctls::get_owner_uid(user.as_fd().as_raw_fd(), &mut uid) }.map(|_| uid)
}

/// The user namespace that a namespace belongs to; of a user namespace the one above it.
///
/// # Errors
/// EPERM if that is outside ours.
pub fn above(ns: impl AsFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the descriptor is open for the whole call; the request takes no argument and gives a new descriptor.
    let fd = unsafe { ioctls::get_userns(ns.as_fd().as_raw_fd()) }?;
    // SAFETY: the descriptor is new and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
