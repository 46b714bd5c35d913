//! System calls that nix (with the features we use) does not wrap, and threads of other users.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn c(bytes: &[u8]) -> Result<CString, i32> {
    CString::new(bytes).map_err(|_| libc::EINVAL)
}

fn check(n: isize) -> Result<usize, i32> {
    usize::try_from(n).map_err(|_| super::errno(&io::Error::last_os_error()))
}

/// Runs `f` in a thread with a umask of its own and, if `uid` is not 0, with that uid and
/// gid, no supplementary groups and no capabilities. The rest of the process is not touched.
pub fn in_thread<T: Send>(uid: u32, umask: u32, f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).expect("unshare");
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
            if uid != 0 {
                become_user(uid);
            }
            f()
        });
        thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e))
    })
}

/// Only the calling thread: the raw calls, unlike glibc's, do not reach the other threads.
fn become_user(uid: u32) {
    let id = libc::c_long::from(uid);
    // SAFETY: no memory is involved (the group list is empty).
    assert_eq!(unsafe { libc::syscall(libc::SYS_setgroups, 0, 0) }, 0, "setgroups");
    // SAFETY: no memory is involved.
    assert_eq!(unsafe { libc::syscall(libc::SYS_setresgid, id, id, id) }, 0, "setresgid");
    // SAFETY: no memory is involved.
    assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, id, id, id) }, 0, "setresuid");
}

/// setxattr(2).
pub fn setxattr(path: &Path, name: &[u8], value: &[u8], flags: i32) -> Result<(), i32> {
    let (path, name) = (c(path.as_os_str().as_bytes())?, c(name)?);
    // SAFETY: the strings end in NUL, `value` is as long as said.
    let n = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    check(n as isize).map(|_| ())
}

/// getxattr(2).
pub fn getxattr(path: &Path, name: &[u8]) -> Result<Vec<u8>, i32> {
    let (path, name) = (c(path.as_os_str().as_bytes())?, c(name)?);
    let mut value = vec![0_u8; 65536];
    // SAFETY: the strings end in NUL, `value` is as long as said.
    let n = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(check(n)?);
    Ok(value)
}

/// listxattr(2), the names sorted.
pub fn listxattr(path: &Path) -> Result<Vec<String>, i32> {
    let path = c(path.as_os_str().as_bytes())?;
    let mut list = vec![0_u8; 65536];
    // SAFETY: the path ends in NUL, `list` is as long as said.
    let n = unsafe { libc::listxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    list.truncate(check(n)?);
    let names = list.split(|b| *b == 0).filter(|n| !n.is_empty());
    let mut names: Vec<_> = names.map(|n| String::from_utf8_lossy(n).into_owned()).collect();
    names.sort();
    Ok(names)
}

/// removexattr(2).
pub fn removexattr(path: &Path, name: &[u8]) -> Result<(), i32> {
    let (path, name) = (c(path.as_os_str().as_bytes())?, c(name)?);
    // SAFETY: the strings end in NUL.
    let n = unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) };
    check(n as isize).map(|_| ())
}

/// mmap(2) of one readable page, unmapped again at once.
pub fn mmap(fd: BorrowedFd<'_>, flags: i32) -> Result<(), i32> {
    // SAFETY: a new mapping at an address the kernel chooses.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, flags, fd.as_raw_fd(), 0) };
    if page == libc::MAP_FAILED {
        return Err(super::errno(&io::Error::last_os_error()));
    }
    // SAFETY: our own page, which nobody has a reference into.
    unsafe { libc::munmap(page, 4096) };
    Ok(())
}

/// sendfile(2) from the file's position.
pub fn sendfile(to: BorrowedFd<'_>, from: BorrowedFd<'_>, n: usize) -> Result<usize, i32> {
    let at = std::ptr::null_mut();
    // SAFETY: no memory is involved (the offset is the descriptor's own).
    check(unsafe { libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), at, n) })
}

/// splice(2) from the file's position into a pipe.
pub fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, n: usize) -> Result<usize, i32> {
    let at = std::ptr::null_mut();
    // SAFETY: no memory is involved (the offsets are the descriptors' own).
    check(unsafe { libc::splice(from.as_raw_fd(), at, to.as_raw_fd(), at, n, 0) })
}

/// sched_setaffinity(2) on any thread.
pub fn setaffinity(tid: i32, cpus: &[usize]) -> Result<(), i32> {
    let mut mask = [0_u64; 1024];
    for cpu in cpus {
        mask[cpu / 64] |= 1 << (cpu % 64);
    }
    // SAFETY: the kernel reads `size_of_val(&mask)` bytes of `mask`.
    let n = unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid, size_of_val(&mask), mask.as_ptr()) };
    check(n as isize).map(|_| ())
}
