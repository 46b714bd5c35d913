//! Tracker layer: an assembler for BPF programs (Documentation/bpf/standardization/instruction-set.rst). All operations have 64 bits
//! unless their names say otherwise.

use crate::sys::bpf::Insn;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reg(u8);

/// What a helper returns, and what [`Asm::compare_exchange`] expects and finds.
pub(super) const R0: Reg = Reg(0);
/// The first argument of a helper and of the program. Helpers leave nothing in R0 to R5.
pub(super) const R1: Reg = Reg(1);
pub(super) const R2: Reg = Reg(2);
pub(super) const R3: Reg = Reg(3);
pub(super) const R4: Reg = Reg(4);
/// R6 to R9 outlive calls.
pub(super) const R6: Reg = Reg(6);
pub(super) const R7: Reg = Reg(7);
pub(super) const R8: Reg = Reg(8);
pub(super) const R9: Reg = Reg(9);
/// The end of the stack, which has 512 bytes.
pub(super) const FP: Reg = Reg(10);

/// A register or a number, which is extended with its sign.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operand {
    Reg(Reg),
    Imm(i32),
}

impl From<Reg> for Operand {
    fn from(reg: Reg) -> Self {
        Self::Reg(reg)
    }
}

impl From<i32> for Operand {
    fn from(imm: i32) -> Self {
        Self::Imm(imm)
    }
}

/// A place in a program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Label(usize);

/// The helper functions in use (BPF_FUNC_*).
#[derive(Clone, Copy, Debug)]
pub(super) enum Helper {
    MapLookupElem = 1,
    GetCurrentPidTgid = 14,
    GetCurrentTask = 35,
    ProbeReadKernel = 113,
    RingbufOutput = 130,
}

const ALU64: u8 = 0x07;
const JMP: u8 = 0x05;
const REG: u8 = 0x08;

/// A program in the making. Methods append what they are called after.
#[derive(Debug, Default)]
pub(super) struct Asm {
    code: Vec<Insn>,
    labels: Vec<Option<usize>>,
    /// The jumps and where they go.
    jumps: Vec<(usize, Label)>,
}

impl Asm {
    fn push(&mut self, code: u8, dst: Reg, src: Reg, off: i16, imm: i32) {
        self.code.push(Insn::new(code, dst.0, src.0, off, imm));
    }

    fn push_with(&mut self, code: u8, dst: Reg, operand: Operand) {
        match operand {
            Operand::Reg(src) => self.push(code | REG, dst, src, 0, 0),
            Operand::Imm(imm) => self.push(code, dst, R0, 0, imm),
        }
    }

    pub(super) fn mov(&mut self, dst: Reg, src: impl Into<Operand>) {
        self.push_with(ALU64 | 0xb0, dst, src.into());
    }

    pub(super) fn add(&mut self, dst: Reg, src: impl Into<Operand>) {
        self.push_with(ALU64, dst, src.into());
    }

    pub(super) fn or(&mut self, dst: Reg, src: impl Into<Operand>) {
        self.push_with(ALU64 | 0x40, dst, src.into());
    }

    pub(super) fn and(&mut self, dst: Reg, src: impl Into<Operand>) {
        self.push_with(ALU64 | 0x50, dst, src.into());
    }

    pub(super) fn xor(&mut self, dst: Reg, src: impl Into<Operand>) {
        self.push_with(ALU64 | 0xa0, dst, src.into());
    }

    pub(super) fn shift_left(&mut self, dst: Reg, bits: impl Into<Operand>) {
        self.push_with(ALU64 | 0x60, dst, bits.into());
    }

    pub(super) fn shift_right(&mut self, dst: Reg, bits: i32) {
        self.push_with(ALU64 | 0x70, dst, bits.into());
    }

    pub(super) fn load(&mut self, dst: Reg, base: Reg, off: i16) {
        self.push(0x79, dst, base, off, 0);
    }

    pub(super) fn load_32(&mut self, dst: Reg, base: Reg, off: i16) {
        self.push(0x61, dst, base, off, 0);
    }

    pub(super) fn store(&mut self, base: Reg, off: i16, src: Reg) {
        self.push(0x7b, base, src, off, 0);
    }

    pub(super) fn store_32(&mut self, base: Reg, off: i16, src: Reg) {
        self.push(0x63, base, src, off, 0);
    }

    fn atomic(&mut self, operation: i32, base: Reg, src: Reg) {
        self.push(0xdb, base, src, 0, operation);
    }

    /// Adds `src` to memory; then `src` is what was there.
    pub(super) fn fetch_add(&mut self, base: Reg, src: Reg) {
        self.atomic(0x01, base, src);
    }

    /// Sets the bits of `src` in memory; then `src` is what was there.
    pub(super) fn fetch_or(&mut self, base: Reg, src: Reg) {
        self.atomic(0x41, base, src);
    }

    /// Clears the bits that are not in `src` in memory; then `src` is what was there.
    pub(super) fn fetch_and(&mut self, base: Reg, src: Reg) {
        self.atomic(0x51, base, src);
    }

    /// Puts `src` into memory; then `src` is what was there.
    pub(super) fn exchange(&mut self, base: Reg, src: Reg) {
        self.atomic(0xe1, base, src);
    }

    /// Puts `src` into memory if R0 is there; then R0 is what was there.
    pub(super) fn compare_exchange(&mut self, base: Reg, src: Reg) {
        self.atomic(0xf1, base, src);
    }

    /// A map, as an argument of a helper.
    pub(super) fn load_map(&mut self, dst: Reg, map: BorrowedFd<'_>) {
        self.push(0x18, dst, Reg(1), 0, map.as_raw_fd());
        self.push(0, R0, R0, 0, 0);
    }

    /// The address of a byte of the only value of a map.
    pub(super) fn load_map_value(&mut self, dst: Reg, map: BorrowedFd<'_>, off: i32) {
        self.push(0x18, dst, Reg(2), 0, map.as_raw_fd());
        self.push(0, R0, R0, 0, off);
    }

    pub(super) fn call(&mut self, helper: Helper) {
        self.push(JMP | 0x80, R0, R0, 0, helper as i32);
    }

    /// A place that is to be bound.
    pub(super) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The label is here.
    pub(super) fn bind(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    pub(super) fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(JMP, R0, R0, 0, 0);
    }

    pub(super) fn jump_if_equal(&mut self, a: Reg, b: impl Into<Operand>, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push_with(JMP | 0x10, a, b.into());
    }

    pub(super) fn jump_unless_equal(&mut self, a: Reg, b: impl Into<Operand>, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push_with(JMP | 0x50, a, b.into());
    }

    /// Jumps unless `a` and `b` have a bit in common.
    pub(super) fn jump_unless_any(&mut self, a: Reg, bits: i32, to: Label) {
        let any = self.label();
        self.jumps.push((self.code.len(), any));
        self.push_with(JMP | 0x40, a, bits.into());
        self.jump(to);
        self.bind(any);
    }

    pub(super) fn exit(&mut self) {
        self.push(JMP | 0x90, R0, R0, 0, 0);
    }

    /// The program, with its jumps resolved.
    pub(super) fn finish(mut self) -> Vec<Insn> {
        for (at, label) in self.jumps {
            // A label that was never bound makes a jump to itself, which the verifier refuses.
            let to = self.labels[label.0].unwrap_or(at);
            self.code[at].off = (to as isize - at as isize - 1) as i16;
        }
        self.code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_go_to_their_labels() {
        let mut asm = Asm::default();
        let (back, end) = (asm.label(), asm.label());
        asm.bind(back);
        asm.mov(R0, 7);
        asm.jump_if_equal(R0, R1, end);
        asm.jump_unless_any(R0, 1, end);
        asm.jump(back);
        asm.bind(end);
        asm.exit();
        let expected = [
            Insn::new(0xb7, 0, 0, 0, 7),
            Insn::new(0x1d, 0, 1, 3, 0),
            Insn::new(0x45, 0, 0, 1, 1),
            Insn::new(0x05, 0, 0, 1, 0),
            Insn::new(0x05, 0, 0, -5, 0),
            Insn::new(0x95, 0, 0, 0, 0),
        ];
        assert_eq!(asm.finish(), expected);
    }
}
