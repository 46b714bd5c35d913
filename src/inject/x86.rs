//! Injection: the registers and the code of x86-64, and of 32-bit processes under it.

use super::plan::Syscall;
use crate::sys::ptrace::{Regs, UserDispatch};

/// -ERESTARTSYS, -ERESTARTNOINTR, -ERESTARTNOHAND, -ERESTART_RESTARTBLOCK: what a stopped thread's call returns to the kernel itself, which
/// makes it again, or EINTR of it, once the thread goes on.
const RESTART_SYS: i64 = -512;
const RESTART_NOINTR: i64 = -513;
const RESTART_NOHAND: i64 = -514;
const RESTART_BLOCK: i64 = -516;
const EINTR: i64 = -4;
/// -ERESTART, which no call returns to a program.
const TURNED_AWAY: i64 = -85;

/// The length of an instruction that makes a system call: `syscall`, `int $0x80`.
pub(super) const CALL_LEN: u64 = 2;

/// Whether [`mended`] can have a call made again that its server has turned away.
pub(super) const TURNS_AWAY: bool = true;

/// With it io_uring_enter(2) may have a time limit.
const IORING_ENTER_EXT_ARG: u64 = 8;
const DIRECTION: u64 = 0x400;
const OVERFLOW: u64 = 0x800;
const TRAP: u64 = 0x100;
/// SF, ZF, AF, PF, CF.
const SAHF: u64 = 0xd5;

/// How a process's code is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abi {
    /// 64-bit.
    Long,
    /// 32-bit.
    Compat,
}

impl Abi {
    /// By the class in an ELF header.
    pub(super) fn of_elf(class: u8) -> Option<Self> {
        match class {
            1 => Some(Self::Compat),
            2 => Some(Self::Long),
            _ => None,
        }
    }

    /// What a thread executes just now.
    pub(super) fn of_regs(regs: &Regs) -> Option<Self> {
        match regs.cs {
            0x33 => Some(Self::Long),
            0x23 => Some(Self::Compat),
            _ => None,
        }
    }

    /// The width of a pointer and of a `long` in bytes.
    pub(super) fn word(self) -> usize {
        match self {
            Self::Long => 8,
            Self::Compat => 4,
        }
    }

    /// An address that a call has returned.
    pub(super) fn address(self, value: i64) -> u64 {
        match self {
            Self::Long => value.cast_unsigned(),
            Self::Compat => u64::from(value as u32),
        }
    }

    /// Bytes of a slot; see [`slot`].
    pub(super) fn slot_len(self) -> usize {
        match self {
            Self::Long => 208,
            Self::Compat => 128,
        }
    }

    /// Where in a slot the call is.
    pub(super) fn code_at(self) -> usize {
        match self {
            Self::Long => 24,
            Self::Compat => 16,
        }
    }

    pub(super) fn number(self, call: Syscall) -> u64 {
        match self {
            Self::Long => call.row().x86_64.into(),
            Self::Compat => call.row().i386.into(),
        }
    }
}

/// The instruction that the thread is at.
pub(super) fn pc(regs: &Regs) -> u64 {
    regs.rip
}

/// The stack's end.
pub(super) fn sp(regs: &Regs) -> u64 {
    regs.rsp
}

/// Lets the thread go on elsewhere.
pub(super) fn set_pc(regs: &mut Regs, pc: u64) {
    regs.rip = pc;
}

/// Whether the thread was stopped in a system call, rather than between two instructions.
pub(super) fn in_syscall(regs: &Regs) -> bool {
    regs.orig_rax.cast_signed() >= 0
}

/// The registers to go on with after other calls have been made: the same ones. The kernel then decides whether to make an
/// interrupted call again, with the signals that have come meanwhile. `_at_call` matters on other machines only.
pub(super) fn resumed(regs: &Regs, abi: Abi, _at_call: bool) -> Regs {
    mended(regs, abi).unwrap_or(*regs)
}

/// Some calls give EINTR of their own, whatever has interrupted them: the registers for having them made again, where no time limit is
/// lost by it. And for those whose server has turned them away, so that their thread could stop.
pub(super) fn mended(regs: &Regs, abi: Abi) -> Option<Regs> {
    let restart = match result(regs, abi) {
        EINTR if repeats(regs, abi) => RESTART_NOHAND,
        TURNED_AWAY => RESTART_NOINTR,
        _ => return None,
    };
    Some(Regs { rax: restart.cast_unsigned(), ..*regs })
}

/// What a call returns, or nothing special.
fn result(regs: &Regs, abi: Abi) -> i64 {
    match abi {
        _ if !in_syscall(regs) => 0,
        Abi::Long => regs.rax.cast_signed(),
        Abi::Compat => i64::from(regs.rax as i32),
    }
}

/// Whether a call that EINTR ended had no time limit: epoll_wait, epoll_pwait and epoll_pwait2, semop and semtimedop, rt_sigtimedwait,
/// io_getevents, io_uring_enter.
fn repeats(regs: &Regs, abi: Abi) -> bool {
    match abi {
        Abi::Long => match regs.orig_rax {
            232 | 281 => (regs.r10 as i32) < 0,
            441 | 220 => regs.r10 == 0,
            65 => true,
            128 => regs.rdx == 0,
            208 => regs.r8 == 0,
            426 => regs.r10 & IORING_ENTER_EXT_ARG == 0,
            _ => false,
        },
        Abi::Compat => match regs.orig_rax as u32 {
            256 | 319 => (regs.rsi as i32) < 0,
            441 | 420 => regs.rsi as u32 == 0,
            // ipc(SEMOP): call number 1; ipc(SEMTIMEDOP): 4, the limit is its sixth argument.
            117 => regs.rbx as u16 == 1 || (regs.rbx as u16 == 4 && regs.rbp as u32 == 0),
            177 | 421 => regs.rdx as u32 == 0,
            247 => regs.rdi as u32 == 0,
            426 => regs.rsi & IORING_ENTER_EXT_ARG == 0,
            _ => false,
        },
    }
}

/// The registers for a call from the slot at `slot`.
pub(super) fn for_call(regs: &Regs, abi: Abi, slot: u64, call: Syscall, args: [u64; 6]) -> Regs {
    let mut regs = *regs;
    regs.rip = slot + abi.code_at() as u64;
    regs.rax = abi.number(call);
    // No call that the kernel would want to make again.
    regs.orig_rax = u64::MAX;
    regs.eflags &= !TRAP;
    match abi {
        Abi::Long => [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args,
        Abi::Compat => [regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp] = args,
    }
    regs
}

/// The registers for doing nothing but what a slot does by itself.
pub(super) fn parked(regs: &Regs, abi: Abi, slot: u64) -> Regs {
    let mut regs = *regs;
    regs.rip = slot + abi.code_at() as u64 + CALL_LEN;
    regs.orig_rax = u64::MAX;
    regs.eflags &= !TRAP;
    regs
}

/// Makes a write(2) that was answered with success fail after all.
pub(super) fn fail_write(regs: &mut Regs, abi: Abi, errno: i32) {
    // write, pwrite64, writev, pwritev, pwritev2.
    let write = match abi {
        Abi::Long => [1, 18, 20, 296, 328],
        Abi::Compat => [4, 181, 146, 334, 379],
    };
    if in_syscall(regs) && write.contains(&regs.orig_rax) && result(regs, abi) >= 0 {
        regs.rax = i64::from(-errno).cast_unsigned();
    }
}

/// Where the thread would go on, and with what result, without the kernel's help in making an interrupted call again.
fn without_kernel(regs: &Regs, abi: Abi) -> (u64, u64) {
    let restart_syscall = match abi {
        Abi::Long => 219,
        Abi::Compat => 0,
    };
    // Both instructions, `syscall` and `int $0x80`, have two bytes.
    match result(regs, abi) {
        RESTART_SYS | RESTART_NOINTR | RESTART_NOHAND => (regs.rip - 2, regs.orig_rax),
        RESTART_BLOCK => (regs.rip - 2, restart_syscall),
        _ => (regs.rip, regs.rax),
    }
}

/// The code that a thread executes: a system call and, should nobody be there to stop it then, the way back to what it was doing.
///
/// First the owner's word, then data, then code: the call; rt_sigprocmask with the thread's own mask; prctl if its
/// syscall user dispatch was changed; its registers; a jump. The stack is not touched (a goroutine may have none to spare), vector registers
/// neither.
pub(super) fn slot(abi: Abi, at: u64, owner: u64, regs: &Regs, mask: u64, dispatch: Option<&UserDispatch>) -> Vec<u8> {
    let mut slot = Vec::with_capacity(abi.slot_len());
    slot.extend(owner.to_le_bytes());
    slot.extend(mask.to_le_bytes());
    match abi {
        Abi::Long => long(&mut slot, regs, dispatch),
        Abi::Compat => compat(&mut slot, at as u32, regs, dispatch),
    }
    debug_assert!(slot.len() <= abi.slot_len());
    slot.resize(abi.slot_len(), 0xcc);
    slot
}

/// `mov $value, %eax; add $0x7f, %al; sahf`: the overflow flag from the addition, the others from %ah; then `std` or `cld`.
fn flags(code: &mut Vec<u8>, eflags: u64) {
    let value = (eflags & SAHF) << 8 | u64::from(eflags & OVERFLOW != 0);
    code.push(if eflags & DIRECTION == 0 { 0xfc } else { 0xfd });
    imm32(code, &[0xb8], value);
    code.extend([0x04, 0x7f, 0x9e]);
}

fn imm32(code: &mut Vec<u8>, opcode: &[u8], value: u64) {
    code.extend(opcode);
    code.extend((value as u32).to_le_bytes());
}

fn imm64(code: &mut Vec<u8>, opcode: [u8; 2], value: u64) {
    code.extend(opcode);
    code.extend(value.to_le_bytes());
}

/// The displacement from behind it to byte `to` of the slot.
fn relative(code: &mut Vec<u8>, opcode: &[u8], to: i64) {
    let from = (code.len() + opcode.len() + 4) as i64;
    imm32(code, opcode, (to - from).cast_unsigned());
}

fn long(code: &mut Vec<u8>, regs: &Regs, dispatch: Option<&UserDispatch>) {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    const MASK: i64 = 8;
    const PC: i64 = 16;
    let (rip, rax) = without_kernel(regs, Abi::Long);
    code.extend(rip.to_le_bytes());
    code.extend(SYSCALL);
    imm32(code, &[0xb8], 14); // eax: rt_sigprocmask
    imm32(code, &[0xbf], 2); // edi: SIG_SETMASK
    relative(code, &[0x48, 0x8d, 0x35], MASK); // rsi
    code.extend([0x31, 0xd2]); // edx: NULL
    imm32(code, &[0x41, 0xba], 8); // r10d: bytes of the mask
    code.extend(SYSCALL);
    if let Some(dispatch) = dispatch {
        imm32(code, &[0xb8], 157); // eax: prctl
        imm32(code, &[0xbf], 59); // edi: PR_SET_SYSCALL_USER_DISPATCH
        imm32(code, &[0xbe], dispatch.mode); // esi
        imm64(code, [0x48, 0xba], dispatch.offset); // rdx
        imm64(code, [0x49, 0xba], dispatch.len); // r10
        imm64(code, [0x49, 0xb8], dispatch.selector); // r8
        code.extend(SYSCALL);
    }
    imm64(code, [0x48, 0xb9], regs.rcx);
    imm64(code, [0x48, 0xba], regs.rdx);
    imm64(code, [0x48, 0xbe], regs.rsi);
    imm64(code, [0x48, 0xbf], regs.rdi);
    imm64(code, [0x49, 0xb8], regs.r8);
    imm64(code, [0x49, 0xb9], regs.r9);
    imm64(code, [0x49, 0xba], regs.r10);
    imm64(code, [0x49, 0xbb], regs.r11);
    flags(code, regs.eflags);
    imm64(code, [0x48, 0xb8], rax);
    relative(code, &[0xff, 0x25], PC); // jmp *PC(%rip)
}

fn compat(code: &mut Vec<u8>, at: u32, regs: &Regs, dispatch: Option<&UserDispatch>) {
    const INT80: [u8; 2] = [0xcd, 0x80];
    const MASK: u32 = 8;
    let (eip, eax) = without_kernel(regs, Abi::Compat);
    code.extend(INT80);
    imm32(code, &[0xb8], 175); // eax: rt_sigprocmask
    imm32(code, &[0xbb], 2); // ebx: SIG_SETMASK
    imm32(code, &[0xb9], (at + MASK).into()); // ecx
    code.extend([0x31, 0xd2]); // edx: NULL
    imm32(code, &[0xbe], 8); // esi: bytes of the mask
    code.extend(INT80);
    if let Some(dispatch) = dispatch {
        imm32(code, &[0xb8], 172); // eax: prctl
        imm32(code, &[0xbb], 59); // ebx: PR_SET_SYSCALL_USER_DISPATCH
        imm32(code, &[0xb9], dispatch.mode); // ecx
        imm32(code, &[0xba], dispatch.offset); // edx
        imm32(code, &[0xbe], dispatch.len); // esi
        imm32(code, &[0xbf], dispatch.selector); // edi
        code.extend(INT80);
    }
    imm32(code, &[0xbb], regs.rbx);
    imm32(code, &[0xb9], regs.rcx);
    imm32(code, &[0xba], regs.rdx);
    imm32(code, &[0xbe], regs.rsi);
    imm32(code, &[0xbf], regs.rdi);
    imm32(code, &[0xbd], regs.rbp);
    flags(code, regs.eflags);
    imm32(code, &[0xb8], eax);
    relative(code, &[0xe9], i64::from(eip as u32) - i64::from(at)); // jmp eip
}

/// Whether these bytes are the instruction of a system call. It matters on other machines only.
pub(super) fn is_syscall(_: [u8; 4]) -> bool {
    false
}
