//! System layer: memory of atomic words, private to the server or shared with a BPF map.

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// A mapping of 64-bit words that start as zero. Pages that nobody has touched take no memory.
#[derive(Debug)]
pub struct Words {
    memory: NonNull<c_void>,
    len: usize,
}

// SAFETY: the memory is only reachable as atomic words.
unsafe impl Send for Words {}
// SAFETY: the same.
unsafe impl Sync for Words {}

impl Words {
    /// `len` words of memory.
    ///
    /// # Errors
    /// ENOMEM if there is not enough of it, EINVAL for a length of 0.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let memory = unsafe { mmap_anonymous(None, bytes(len)?, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }?;
        Ok(Self { memory, len })
    }

    /// The first `len` words of something that can be mapped, shared with whoever else has it.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn shared(fd: impl AsFd, len: usize) -> io::Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let memory = unsafe { mmap(None, bytes(len)?, protection, MapFlags::MAP_SHARED, fd, 0) }?;
        Ok(Self { memory, len })
    }
}

fn bytes(len: usize) -> io::Result<NonZeroUsize> {
    len.checked_mul(size_of::<u64>()).and_then(NonZeroUsize::new).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is that long, aligned to a page, lives as long as `self`, and everybody who has it uses atomic operations.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.len) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and every slice of it borrows from `self`.
        let unmapped = unsafe { munmap(self.memory, self.len * size_of::<u64>()) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}
