//! Injection: the registers of aarch64. Compiled and reviewed, never run: there was no such machine.
//!
//! Two differences from x86. The kernel sets a call that it will repeat up again before the tracer sees the stop (pc at the `svc`,
//! x0 the first argument), and forgets about it when other calls are made: what it would have decided is decided in
//! [`resumed`]. And a jump needs a register, so there is no code that finds its own way back: if the injector is killed
//! between the first changed register and the last restored one, that thread is lost. 32-bit processes are refused.

use super::plan::Syscall;
use crate::sys::ptrace::{Regs, UserDispatch};

/// How a process's code is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abi {
    /// 64-bit.
    Long,
}

/// `svc #0`.
const SVC: [u8; 4] = 0xd400_0001_u32.to_le_bytes();
/// An instruction that traps.
const BRK: [u8; 4] = 0xd420_0000_u32.to_le_bytes();
const RESTART_SYSCALL: u64 = 128;
const CODE_AT: u64 = 16;

impl Abi {
    /// Where in a slot the call is.
    pub(super) fn code_at(self) -> usize {
        CODE_AT as usize
    }

    /// By the class in an ELF header.
    pub(super) fn of_elf(class: u8) -> Option<Self> {
        (class == 2).then_some(Self::Long)
    }

    /// What a thread executes just now. Bit 4 of pstate is nRW.
    pub(super) fn of_regs(regs: &Regs) -> Option<Self> {
        (regs.pstate & 0x10 == 0).then_some(Self::Long)
    }

    /// The width of a pointer and of a `long` in bytes.
    pub(super) fn word(self) -> usize {
        8
    }

    /// An address that a call has returned.
    pub(super) fn address(self, value: i64) -> u64 {
        value.cast_unsigned()
    }

    /// Bytes of a slot; see [`slot`].
    pub(super) fn slot_len(self) -> usize {
        32
    }

    pub(super) fn number(self, call: Syscall) -> u64 {
        call.row().aarch64.into()
    }
}

/// The instruction that the thread is at.
pub(super) fn pc(regs: &Regs) -> u64 {
    regs.pc
}

/// The stack's end.
pub(super) fn sp(regs: &Regs) -> u64 {
    regs.sp
}

/// Lets the thread go on elsewhere.
pub(super) fn set_pc(regs: &mut Regs, pc: u64) {
    regs.pc = pc;
}

/// Not to be told from the registers.
pub(super) fn in_syscall(_: &Regs) -> bool {
    false
}

/// The registers to go on with after other calls have been made; `at_svc`: the next instruction is an `svc`.
///
/// The kernel has put the call's number away only for those that go on where they were: nanosleep, relative clock_nanosleep and futex with a time limit
/// are repeated as restart_syscall(2), as the kernel itself does. ppoll is repeated by its arguments, in which the kernel counts down.
pub(super) fn resumed(regs: &Regs, _: Abi, at_svc: bool) -> Regs {
    let mut regs = *regs;
    // clock_nanosleep(clock, TIMER_ABSTIME, ...) and futex without a limit are simply made again.
    let sleeps = match regs.regs[8] {
        101 => true,
        115 => regs.regs[1] & 1 == 0,
        98 => regs.regs[3] != 0 && matches!(regs.regs[1] & 0x7f, 0 | 9),
        _ => false,
    };
    if at_svc && sleeps {
        regs.regs[8] = RESTART_SYSCALL;
    }
    regs
}

/// The length of an instruction that makes a system call: `svc`.
pub(super) const CALL_LEN: u64 = 4;

/// See [`mended`].
pub(super) const TURNS_AWAY: bool = false;

/// Not to be told from the registers: whether a call has given EINTR of its own.
pub(super) fn mended(_: &Regs, _: Abi) -> Option<Regs> {
    None
}

/// The registers for a call from the slot at `slot`.
pub(super) fn for_call(regs: &Regs, abi: Abi, slot: u64, call: Syscall, args: [u64; 6]) -> Regs {
    let mut regs = parked(regs, abi, slot);
    regs.pc = slot + CODE_AT;
    regs.regs[8] = abi.number(call);
    regs.regs[..6].copy_from_slice(&args);
    regs
}

/// The registers for doing nothing.
pub(super) fn parked(regs: &Regs, _: Abi, slot: u64) -> Regs {
    let mut regs = *regs;
    regs.pc = slot + CODE_AT + CALL_LEN;
    // BTYPE: a jump by ptrace is no indirect branch.
    regs.pstate &= !0xc00;
    regs
}

/// Makes a write(2) that was answered with success fail after all.
pub(super) fn fail_write(regs: &mut Regs, _: Abi, errno: i32) {
    // write, writev, pwrite64, pwritev, pwritev2.
    if [64, 66, 68, 70, 287].contains(&regs.regs[8]) && regs.regs[0].cast_signed() >= 0 {
        regs.regs[0] = i64::from(-errno).cast_unsigned();
    }
}

/// The code that a thread executes: a system call and a trap.
pub(super) fn slot(abi: Abi, _at: u64, owner: u64, _: &Regs, mask: u64, _: Option<&UserDispatch>) -> Vec<u8> {
    let mut slot = Vec::with_capacity(abi.slot_len());
    slot.extend(owner.to_le_bytes());
    slot.extend(mask.to_le_bytes());
    slot.extend(SVC);
    slot.resize(abi.slot_len(), 0);
    slot[20..24].copy_from_slice(&BRK);
    slot
}

/// Whether these bytes are the instruction of a system call.
pub(super) fn is_syscall(code: [u8; 4]) -> bool {
    code == SVC
}
