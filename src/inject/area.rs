//! Injection: where the code goes. The vDSO ends in the middle of a page; the rest of that page is ours.
//!
//! Every process has the vDSO, it is executable, and its pages are private copies once written to. The rest is divided into slots, one for each thread
//! that executes calls at the same time. A slot is zero when nobody uses it. One that is not belongs to a thread whose injector was
//! killed: it finds its own way back (see `slot`), but may be interrupted by a signal handler on the way, so the slot stays its own
//! until it is certain that it has left.

use super::arch::{self, Abi};
use super::error::{InjectError, Unknown};
use crate::sys::ptrace::{self, Regs, UserDispatch};
use crate::sys::{Errno, Tid};
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;

const AT_SYSINFO_EHDR: u64 = 33;
const PAGE: u64 = 4096;
/// Marks an owner's word; the lower half is the thread.
const OWNED: u64 = 0x6367_6675 << 32;
/// How far up a stack a signal handler's frame is looked for.
const DEPTH: u64 = 64 << 10;
/// So many threads make calls at the same time at most.
const MAX_SLOTS: usize = 32;

/// The slots of a process.
#[derive(Debug)]
pub(super) struct Area {
    pub(super) abi: Abi,
    /// Any stopped thread of the process.
    tid: Tid,
    /// /proc/TID/mem, where it can be opened for writing.
    mem: Option<File>,
    /// Where all slots are.
    range: Range<u64>,
    free: Vec<u64>,
    used: Vec<u64>,
}

impl Area {
    /// Looks at the vDSO of a stopped thread's process. `regs` tells the registers of a thread that is stopped, `None` for others; `is_thread` whether
    /// a thread belongs to the process.
    pub(super) fn find(tid: Tid, regs: impl Fn(Tid) -> Option<Regs>, is_thread: impl Fn(Tid) -> bool) -> Result<Self, InjectError> {
        let unknown = InjectError::Foreign { tid, what: Unknown::Vdso };
        let Some((abi, start, len)) = auxv_vdso(tid).and_then(|base| slack(tid, base)).or_else(|| slack(tid, mapped_vdso(tid)?)) else {
            return Err(unknown);
        };
        let slots = (len / abi.slot_len()).min(MAX_SLOTS);
        let mut bytes = vec![0; slots * abi.slot_len()];
        ptrace::read_memory(tid, start, &mut bytes).map_err(|_| unknown.clone())?;
        let mem = OpenOptions::new().write(true).open(format!("/proc/{tid}/mem")).ok();
        let mut area = Self { abi, tid, mem, range: start..start + bytes.len() as u64, free: Vec::new(), used: Vec::new() };
        if slots == 0 {
            return Err(unknown);
        }
        for (i, slot) in bytes.chunks_exact(abi.slot_len()).enumerate() {
            let at = start + (i * abi.slot_len()) as u64;
            let owner = slot.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
            let is_free = match owner {
                0 => slot.iter().all(|byte| *byte == 0),
                _ if owner & !0xffff_ffff == OWNED => {
                    let owner = owner as u32 as Tid;
                    regs(owner).map_or_else(|| !is_thread(owner), |regs| has_left(owner, abi, &regs, &area.range))
                }
                // Not ours.
                _ => false,
            };
            if is_free {
                area.free.push(at);
                if owner != 0 {
                    area.used.push(at);
                }
            }
        }
        if area.free.is_empty() { Err(InjectError::NoRoom { tid }) } else { Ok(area) }
    }

    /// What a thread's syscall user dispatch must be while it is in a slot; `None` if it need not change. The slots are exempt then, beside what
    /// is exempt anyway, and all between.
    ///
    /// # Errors
    /// The exempt range wraps around (PR_SYS_DISPATCH_INCLUSIVE_ON), which cannot be set from outside.
    pub(super) fn exempt(&self, dispatch: &UserDispatch) -> Result<Option<UserDispatch>, Unknown> {
        let (start, end) = (self.range.start, self.range.end);
        let is_exempt = |at: u64| at.wrapping_sub(dispatch.offset) < dispatch.len;
        if dispatch.mode == 0 || (is_exempt(start) && is_exempt(end - 1)) {
            return Ok(None);
        }
        let (mut low, mut high) = (start, end);
        if dispatch.len != 0 {
            low = low.min(dispatch.offset);
            high = high.max(dispatch.offset.checked_add(dispatch.len).ok_or(Unknown::Dispatch)?);
        }
        Ok(Some(UserDispatch { offset: low, len: high - low, ..*dispatch }))
    }

    /// Whether who is there has not made the call yet that a killed injector wanted of him.
    pub(super) fn is_before_call(&self, pc: u64) -> bool {
        self.range.contains(&pc) && (pc - self.range.start) as usize % self.abi.slot_len() == self.abi.code_at()
    }

    /// How many threads can make calls at the same time.
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Writes a free slot for a thread. Nothing else of the thread is changed.
    pub(super) fn take(&mut self, tid: Tid, regs: &Regs, mask: u64, dispatch: Option<&UserDispatch>) -> Result<u64, Errno> {
        let Some(&at) = self.free.last() else { return Err(Errno::EBUSY) };
        let code = arch::slot(self.abi, at, OWNED | u64::from(tid.cast_unsigned()), regs, mask, dispatch);
        self.write(at, &code)?;
        self.free.pop();
        self.used.push(at);
        Ok(at)
    }

    /// Gives a slot back when its thread has its registers again.
    pub(super) fn give_back(&mut self, slot: u64) {
        self.free.push(slot);
    }

    /// Zeroes what has been used. To be called while the process is still stopped.
    pub(super) fn clean(&mut self) {
        self.used.sort_unstable();
        self.used.dedup();
        for at in std::mem::take(&mut self.used) {
            // If it fails, the next injection finds that the owner has left.
            let _ = self.write(at, &vec![0; self.abi.slot_len()]);
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        // Some kernels are told not to write to protected pages by this way (proc_mem.force_override).
        match self.mem.as_ref().map(|mem| mem.write_all_at(bytes, at)) {
            Some(Ok(())) => Ok(()),
            _ => ptrace::poke(self.tid, at, bytes),
        }
    }
}

/// Whether a thread neither executes a slot nor will come back to one from a signal handler. The frame of a handler is on the same
/// stack, above the handler's own; it holds the address to come back to. Any slot, not only this one: the way back from one may lead to another, if several
/// injectors were killed in a row.
fn has_left(tid: Tid, abi: Abi, regs: &Regs, slots: &Range<u64>) -> bool {
    if slots.contains(&arch::pc(regs)) {
        return false;
    }
    let word = abi.word();
    let base = arch::sp(regs) & !7;
    let mut page = [0; PAGE as usize];
    let mut at = base;
    while at < base + DEPTH {
        let len = (PAGE - at % PAGE) as usize;
        // The stack's end.
        if ptrace::read_memory(tid, at, &mut page[..len]).is_err() {
            break;
        }
        if page[..len].chunks_exact(word).any(|word| slots.contains(&number(word))) {
            return false;
        }
        at += len as u64;
    }
    true
}

/// A little-endian number.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The start of the vDSO as the kernel has told the process.
fn auxv_vdso(tid: Tid) -> Option<u64> {
    // Some twenty entries.
    let mut buf = [0; 1024];
    let len = File::open(format!("/proc/{tid}/auxv")).ok()?.read_at(&mut buf, 0).ok()?;
    let auxv = &buf[..len];
    let long = |word: &[u8]| word.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    let find =
        |word: usize| auxv.chunks_exact(2 * word).find(|entry| long(&entry[..word]) == AT_SYSINFO_EHDR).map(|entry| long(&entry[word..]));
    find(8).or_else(|| find(4))
}

/// The start of the vDSO where it has been moved.
fn mapped_vdso(tid: Tid) -> Option<u64> {
    let maps = std::fs::read(format!("/proc/{tid}/maps")).ok()?;
    let maps = String::from_utf8_lossy(&maps);
    let line = maps.lines().find(|line| line.ends_with("[vdso]"))?;
    u64::from_str_radix(line.split('-').next()?, 16).ok()
}

/// What kind of image is at `base`, and what is behind its end up to the page's, aligned.
fn slack(tid: Tid, base: u64) -> Option<(Abi, u64, usize)> {
    let mut header = [0; 64];
    ptrace::read_memory(tid, base, &mut header).ok()?;
    if !header.starts_with(b"\x7fELF") {
        return None;
    }
    let abi = Abi::of_elf(header[4])?;
    let half = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
    // e_shoff, e_shentsize, e_shnum: the section headers are the last thing in the image.
    let (shoff, size, number) = match abi.word() {
        8 => (u64::from_le_bytes(*header[0x28..].first_chunk()?), half(0x3a), half(0x3c)),
        _ => (u32::from_le_bytes(*header[0x20..].first_chunk()?).into(), half(0x2e), half(0x30)),
    };
    let end = shoff.checked_add(size * number)?;
    let aligned = end.next_multiple_of(16);
    let page_end = end.next_multiple_of(PAGE);
    // An image of more than 16 pages is none that this was written for.
    (shoff != 0 && page_end <= 16 * PAGE).then(|| (abi, base + aligned, page_end.saturating_sub(aligned) as usize))
}
