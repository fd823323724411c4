//! Translates classic BPF, as libpcap makes it, to an eBPF program for the ingress and egress hooks.
//!
//! eBPF has instructions for classic BPF's loads (LD_ABS, LD_IND), but a packet that is too short for
//! one ends the program with 0, which at these hooks means that the packet passes without other
//! programs being asked. So the packet is read with `bpf_skb_load_bytes`, which says so when it can't.
//!
//! The kernel takes a VLAN tag out of a packet and keeps it beside it; on the wire, in a capture file
//! and for the expression it is a part of the packet. So everything is translated twice for Ethernet:
//! once for packets without such a tag, and once with loads that see it where it belongs.
//!
//! The instruction set: Linux, Documentation/networking/filter.rst (classic) and
//! Documentation/bpf/standardization/instruction-set.rst; the meaning of corner cases (division by
//! zero, shifts by 32 and more) is that of libpcap's `bpf_filter.c`.

use libbpf_rs::libbpf_sys::bpf_insn;

use crate::LinkType;
use crate::libpcap::Instruction;

/// What goes on with a packet that matches: a tail call through this map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Continuation {
    /// Descriptor of a program array.
    pub(crate) programs: i32,
    /// Index in it.
    pub(crate) index: u32,
}

/// Which way the packets of a program go; `inbound` and `outbound` ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Ingress,
    Egress,
}

/// What can't be translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Untranslatable {
    #[error(
        "it needs something that only a capture by libpcap itself has (code {code:#x}, {k:#x})"
    )]
    Instruction { code: u16, k: u32 },
    #[error("`protochain` is a loop; name the protocol instead")]
    Loop,
    #[error("it is too long")]
    TooLong,
}

/// Translates `program`. The result ends with a tail call if it matches, and with TC_ACT_UNSPEC
/// otherwise: the packet goes its way in any case.
pub(crate) fn translate(
    program: &[Instruction],
    link_type: LinkType,
    hook: Hook,
    continuation: Continuation,
) -> Result<Vec<bpf_insn>, Untranslatable> {
    let mut assembler = Assembler::default();
    assembler.mov64_register(SKB, R1);
    // Classic BPF's memory and registers are used before they are set by nobody, but the kernel
    // insists.
    assembler.mov32(A, 0);
    assembler.mov32(X, 0);
    let memory_used = program
        .iter()
        .any(|instruction| matches!(instruction.code & 0xe7, 0x60 | 0x61 | 0x02 | 0x03));
    if memory_used {
        for slot in 0..MEMORY_SLOTS {
            assembler.push(ST_MEM | SIZE_W, FP, 0, memory_slot(slot), 0);
        }
    }
    if link_type == LinkType::Ethernet {
        assembler.load_field(R0, SKB_VLAN_PRESENT);
        assembler.jump_if(JEQ, R0, 0, Label::Untagged(0));
        // TAG = protocol and control information, as the four bytes on the wire.
        assembler.load_field(TAG, SKB_VLAN_PROTOCOL);
        assembler.swap_to_big_endian(TAG, 2);
        assembler.push(ALU64 | LSH | OPERAND_K, TAG, 0, 0, 16);
        assembler.load_field(R0, SKB_VLAN_TCI);
        assembler.push(ALU64 | OR | OPERAND_X, TAG, R0, 0, 0);
        assembler.body(program, hook, Variant::Tagged)?;
    }
    assembler.body(program, hook, Variant::Untagged)?;

    assembler.place(Label::Match);
    assembler.mov64_register(R1, SKB);
    assembler.push(LD_IMM64, R2, PSEUDO_MAP_FD, 0, continuation.programs);
    assembler.push(0, 0, 0, 0, 0);
    assembler.mov32(R3, continuation.index);
    assembler.call(HELPER_TAIL_CALL);
    assembler.place(Label::NoMatch);
    assembler.push(ALU64 | MOV | OPERAND_K, R0, 0, 0, TC_ACT_UNSPEC);
    assembler.push(JMP | EXIT, 0, 0, 0, 0);
    assembler.finish()
}

/* eBPF: registers. R6 to R9 survive calls. */
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const SKB: u8 = 6;
const A: u8 = 7;
const X: u8 = 8;
const TAG: u8 = 9;
const FP: u8 = 10;

/* eBPF: parts of an opcode. The operations of ALU and JMP have the numbers of classic BPF. */
const ALU: u8 = 0x04;
const ALU64: u8 = 0x07;
const JMP: u8 = 0x05;
const JMP32: u8 = 0x06;
const LDX_MEM: u8 = 0x61;
const ST_MEM: u8 = 0x62;
const STX_MEM: u8 = 0x63;
const LD_IMM64: u8 = 0x18;
const SIZE_W: u8 = 0x00;
const SIZE_H: u8 = 0x08;
const SIZE_B: u8 = 0x10;
const SIZE_DW: u8 = 0x18;
const OPERAND_K: u8 = 0x00;
const OPERAND_X: u8 = 0x08;
const ADD: u8 = 0x00;
const OR: u8 = 0x40;
const AND: u8 = 0x50;
const LSH: u8 = 0x60;
const RSH: u8 = 0x70;
const NEG: u8 = 0x80;
const MOV: u8 = 0xb0;
const END_TO_BIG: u8 = 0xd8; // in class ALU: ALU | 0xd0 | 0x08, of which ALU is added
const JA: u8 = 0x00;
const JEQ: u8 = 0x10;
const JGT: u8 = 0x20;
const JGE: u8 = 0x30;
const JNE: u8 = 0x50;
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;
const PSEUDO_MAP_FD: u8 = 1;
const HELPER_TAIL_CALL: i32 = 12;
const HELPER_SKB_LOAD_BYTES: i32 = 26;
const TC_ACT_UNSPEC: i32 = -1;

/* struct __sk_buff (include/uapi/linux/bpf.h) */
const SKB_LENGTH: i16 = 0;
const SKB_PACKET_TYPE: i16 = 4;
const SKB_VLAN_PRESENT: i16 = 20;
const SKB_VLAN_TCI: i16 = 24;
const SKB_VLAN_PROTOCOL: i16 = 28;

/* The stack: classic BPF's memory, what was read of the packet, and where to read it. */
const MEMORY_SLOTS: u32 = 16;
const BUFFER: i16 = -72;
const ADDRESS: i16 = -80;

const fn memory_slot(slot: u32) -> i16 {
    -64 + 4 * slot as i16
}

/// Where a VLAN tag stands in an Ethernet packet.
const TAG_START: u32 = 12;
const TAG_END: u32 = 16;

/// include/uapi/linux/if_packet.h
const PACKET_OUTGOING: u32 = 4;

/// Whether there is a tag beside the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Untagged,
    Tagged,
}

/// What a jump leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    /// The translation of a classic instruction.
    Untagged(usize),
    Tagged(usize),
    /// A place within such a translation.
    Local(usize),
    Match,
    NoMatch,
}

#[derive(Default)]
struct Assembler {
    instructions: Vec<bpf_insn>,
    jumps: Vec<(usize, Label)>,
    untagged: Vec<usize>,
    tagged: Vec<usize>,
    locals: Vec<usize>,
    matched: usize,
    unmatched: usize,
}

impl Assembler {
    fn body(
        &mut self,
        program: &[Instruction],
        hook: Hook,
        variant: Variant,
    ) -> Result<(), Untranslatable> {
        let label = |index: usize| match variant {
            Variant::Untagged => Label::Untagged(index),
            Variant::Tagged => Label::Tagged(index),
        };
        for (index, instruction) in program.iter().enumerate() {
            self.place(label(index));
            let &Instruction {
                code,
                jump_true,
                jump_false,
                k,
            } = instruction;
            let refused = Untranslatable::Instruction { code, k };
            let size = match code & 0x18 {
                0x00 => 4,
                0x08 => 2,
                _ => 1,
            };
            match code {
                _ if instruction.loads_packet_type() => match hook {
                    Hook::Ingress => self.load_field(A, SKB_PACKET_TYPE),
                    Hook::Egress => self.mov32(A, PACKET_OUTGOING),
                },
                // ld [k], ldh [k], ldb [k]
                0x20 | 0x28 | 0x30 if k > i32::MAX as u32 => return Err(refused),
                0x20 | 0x28 | 0x30 => self.load_at(A, k, size, variant),
                // ld [x + k], …
                0x40 | 0x48 | 0x50 => self.load_relative(k, size, variant),
                // ld #len, ldx #len
                0x80 => self.load_length(A, variant),
                0x81 => self.load_length(X, variant),
                // ld #k, ldx #k
                0x00 => self.mov32(A, k),
                0x01 => self.mov32(X, k),
                // ld M[k], ldx M[k], st M[k], stx M[k]
                0x60 | 0x61 | 0x02 | 0x03 if k >= MEMORY_SLOTS => return Err(refused),
                0x60 => self.push(LDX_MEM | SIZE_W, A, FP, memory_slot(k), 0),
                0x61 => self.push(LDX_MEM | SIZE_W, X, FP, memory_slot(k), 0),
                0x02 => self.push(STX_MEM | SIZE_W, FP, A, memory_slot(k), 0),
                0x03 => self.push(STX_MEM | SIZE_W, FP, X, memory_slot(k), 0),
                // ldx 4*([k]&0xf)
                0xb1 if k > i32::MAX as u32 => return Err(refused),
                0xb1 => {
                    self.load_at(X, k, 1, variant);
                    self.push(ALU | AND | OPERAND_K, X, 0, 0, 0xf);
                    self.push(ALU | LSH | OPERAND_K, X, 0, 0, 2);
                }
                // add, sub, mul, div, or, and, lsh, rsh, mod, xor with k
                0x34 | 0x94 if k == 0 => return Err(refused),
                0x64 | 0x74 if k >= 32 => self.mov32(A, 0),
                0x04 | 0x14 | 0x24 | 0x34 | 0x44 | 0x54 | 0x64 | 0x74 | 0x94 | 0xa4 => {
                    self.push(code as u8, A, 0, 0, k.cast_signed());
                }
                // … with x
                0x3c | 0x9c => {
                    self.jump_if(JEQ, X, 0, Label::NoMatch);
                    self.push(code as u8, A, X, 0, 0);
                }
                0x6c | 0x7c => {
                    let (zero, done) = (self.local(), self.local());
                    self.jump_if(JGE, X, 32, zero);
                    self.push(code as u8, A, X, 0, 0);
                    self.jump(done);
                    self.place(zero);
                    self.mov32(A, 0);
                    self.place(done);
                }
                0x0c | 0x1c | 0x2c | 0x4c | 0x5c | 0xac => self.push(code as u8, A, X, 0, 0),
                0x84 => self.push(ALU | NEG, A, 0, 0, 0),
                // ja, jeq, jgt, jge, jset
                0x05 if k > i32::MAX as u32 => return Err(Untranslatable::Loop),
                0x05 => self.jump(label(index + 1 + k as usize)),
                0x15 | 0x25 | 0x35 | 0x45 | 0x1d | 0x2d | 0x3d | 0x4d => {
                    let by_register = code as u8 & OPERAND_X;
                    let (source, immediate) = if by_register != 0 {
                        (X, 0)
                    } else {
                        (0, k.cast_signed())
                    };
                    let opcode = JMP32 | (code as u8 & 0xf0) | by_register;
                    self.jumps.push((
                        self.instructions.len(),
                        label(index + 1 + jump_true as usize),
                    ));
                    self.push(opcode, A, source, 0, immediate);
                    if jump_false != 0 {
                        self.jump(label(index + 1 + jump_false as usize));
                    }
                }
                // ret #k, ret a
                0x06 if k == 0 => self.jump(Label::NoMatch),
                0x06 => self.jump(Label::Match),
                0x16 => {
                    self.jump_if(JNE, A, 0, Label::Match);
                    self.jump(Label::NoMatch);
                }
                // tax, txa
                0x07 => self.mov64_register(X, A),
                0x87 => self.mov64_register(A, X),
                _ => return Err(refused),
            }
        }
        Ok(())
    }

    /// Reads `size` bytes at an offset that is known now.
    fn load_at(&mut self, to: u8, offset: u32, size: u32, variant: Variant) {
        if variant == Variant::Untagged || offset + size <= TAG_START {
            self.mov32(R2, offset);
            self.read_packet(BUFFER, size);
        } else if offset >= TAG_END {
            self.mov32(R2, offset - (TAG_END - TAG_START));
            self.read_packet(BUFFER, size);
        } else {
            for byte in 0..size {
                let place = BUFFER + byte as i16;
                let offset = offset + byte;
                if offset < TAG_START {
                    self.mov32(R2, offset);
                    self.read_packet(place, 1);
                } else if offset < TAG_END {
                    self.mov64_register(R1, TAG);
                    let shift = 8 * (TAG_END - 1 - offset);
                    self.push(ALU64 | RSH | OPERAND_K, R1, 0, 0, shift.cast_signed());
                    self.push(STX_MEM | SIZE_B, FP, R1, place, 0);
                } else {
                    self.mov32(R2, offset - (TAG_END - TAG_START));
                    self.read_packet(place, 1);
                }
            }
        }
        self.take_buffer(to, size);
    }

    /// Reads `size` bytes at X + `offset` to A.
    fn load_relative(&mut self, offset: u32, size: u32, variant: Variant) {
        // In 64 bits: a sum that does not fit in 32 is beyond every packet.
        self.mov32(R2, offset);
        self.push(ALU64 | ADD | OPERAND_X, R2, X, 0, 0);
        self.mov32(R1, i32::MAX as u32);
        self.jumps.push((self.instructions.len(), Label::NoMatch));
        self.push(JMP | JGT | OPERAND_X, R2, R1, 0, 0);
        if variant == Variant::Untagged {
            self.read_packet(BUFFER, size);
            self.take_buffer(A, size);
            return;
        }
        let (by_bytes, done) = (self.local(), self.local());
        let tag_length = (TAG_END - TAG_START).cast_signed();
        self.push(STX_MEM | SIZE_DW, FP, R2, ADDRESS, 0);
        self.jump_if_less(R2, TAG_END, by_bytes);
        self.push(ALU64 | ADD | OPERAND_K, R2, 0, 0, -tag_length);
        self.read_packet(BUFFER, size);
        self.jump(done);
        self.place(by_bytes);
        for byte in 0..size {
            let place = BUFFER + byte as i16;
            let (outside, shifted, next) = (self.local(), self.local(), self.local());
            self.push(LDX_MEM | SIZE_DW, R2, FP, ADDRESS, 0);
            self.push(ALU64 | ADD | OPERAND_K, R2, 0, 0, byte.cast_signed());
            self.jump_if_less(R2, TAG_START, outside);
            self.jump_if(JGE, R2, TAG_END, shifted);
            // TAG >> 8 * (15 - offset)
            self.push(ALU64 | MOV | OPERAND_K, R3, 0, 0, TAG_END.cast_signed() - 1);
            self.push(ALU64 | 0x10 | OPERAND_X, R3, R2, 0, 0);
            self.push(ALU64 | LSH | OPERAND_K, R3, 0, 0, 3);
            self.push(ALU64 | AND | OPERAND_K, R3, 0, 0, 0x1f);
            self.mov64_register(R1, TAG);
            self.push(ALU64 | RSH | OPERAND_X, R1, R3, 0, 0);
            self.push(STX_MEM | SIZE_B, FP, R1, place, 0);
            self.jump(next);
            self.place(shifted);
            self.push(ALU64 | ADD | OPERAND_K, R2, 0, 0, -tag_length);
            self.place(outside);
            self.read_packet(place, 1);
            self.place(next);
        }
        self.place(done);
        self.take_buffer(A, size);
    }

    /// Reads `size` bytes at the offset in R2 to the stack; a packet that ends before does not match.
    fn read_packet(&mut self, place: i16, size: u32) {
        self.mov64_register(R1, SKB);
        self.mov64_register(R3, FP);
        self.push(ALU64 | ADD | OPERAND_K, R3, 0, 0, place.into());
        self.mov32(R4, size);
        self.call(HELPER_SKB_LOAD_BYTES);
        self.jump_if(JNE, R0, 0, Label::NoMatch);
    }

    fn take_buffer(&mut self, to: u8, size: u32) {
        let code = match size {
            4 => SIZE_W,
            2 => SIZE_H,
            _ => SIZE_B,
        };
        self.push(LDX_MEM | code, to, FP, BUFFER, 0);
        if size > 1 {
            self.swap_to_big_endian(to, size);
        }
    }

    fn load_length(&mut self, to: u8, variant: Variant) {
        self.load_field(to, SKB_LENGTH);
        if variant == Variant::Tagged {
            let tag_length = TAG_END - TAG_START;
            self.push(ALU | ADD | OPERAND_K, to, 0, 0, tag_length.cast_signed());
        }
    }

    fn load_field(&mut self, to: u8, field: i16) {
        self.push(LDX_MEM | SIZE_W, to, SKB, field, 0);
    }

    /// Swaps bytes between the network's order and the machine's.
    fn swap_to_big_endian(&mut self, register: u8, bytes: u32) {
        self.push(ALU | END_TO_BIG, register, 0, 0, 8 * bytes.cast_signed());
    }

    fn mov32(&mut self, to: u8, value: u32) {
        self.push(ALU | MOV | OPERAND_K, to, 0, 0, value.cast_signed());
    }

    fn mov64_register(&mut self, to: u8, from: u8) {
        self.push(ALU64 | MOV | OPERAND_X, to, from, 0, 0);
    }

    fn call(&mut self, helper: i32) {
        self.push(JMP | CALL, 0, 0, 0, helper);
    }

    fn jump(&mut self, to: Label) {
        self.jumps.push((self.instructions.len(), to));
        self.push(JMP | JA, 0, 0, 0, 0);
    }

    /// Compares all 64 bits with a small number.
    fn jump_if(&mut self, comparison: u8, register: u8, with: u32, to: Label) {
        self.jumps.push((self.instructions.len(), to));
        self.push(
            JMP | comparison | OPERAND_K,
            register,
            0,
            0,
            with.cast_signed(),
        );
    }

    fn jump_if_less(&mut self, register: u8, than: u32, to: Label) {
        const JLT: u8 = 0xa0;
        self.jump_if(JLT, register, than, to);
    }

    fn local(&mut self) -> Label {
        self.locals.push(0);
        Label::Local(self.locals.len() - 1)
    }

    fn place(&mut self, label: Label) {
        let here = self.instructions.len();
        match label {
            Label::Untagged(_) => self.untagged.push(here),
            Label::Tagged(_) => self.tagged.push(here),
            Label::Local(index) => self.locals[index] = here,
            Label::Match => self.matched = here,
            Label::NoMatch => self.unmatched = here,
        }
    }

    fn push(&mut self, code: u8, destination: u8, source: u8, offset: i16, immediate: i32) {
        let mut instruction = bpf_insn {
            code,
            off: offset,
            imm: immediate,
            ..Default::default()
        };
        instruction.set_dst_reg(destination);
        instruction.set_src_reg(source);
        self.instructions.push(instruction);
    }

    /// Leaves out what is never reached, which the kernel refuses and libpcap makes now and then, and
    /// fills in where the jumps lead to.
    fn finish(self) -> Result<Vec<bpf_insn>, Untranslatable> {
        let mut targets = vec![None; self.instructions.len()];
        for &(from, label) in &self.jumps {
            let to = match label {
                Label::Untagged(index) => self.untagged.get(index),
                Label::Tagged(index) => self.tagged.get(index),
                Label::Local(index) => self.locals.get(index),
                Label::Match => Some(&self.matched),
                Label::NoMatch => Some(&self.unmatched),
            };
            // A jump behind the end does not happen in what libpcap makes.
            targets[from] = Some(*to.ok_or(Untranslatable::TooLong)?);
        }

        let reached = reached(&self.instructions, &targets);
        let mut places = Vec::with_capacity(reached.len());
        let mut count = 0;
        for &reached in &reached {
            places.push(count);
            count += usize::from(reached);
        }
        let mut program = Vec::with_capacity(count);
        for (index, mut instruction) in self.instructions.into_iter().enumerate() {
            if !reached[index] {
                continue;
            }
            if let Some(to) = targets[index] {
                let distance = places[to] as i64 - places[index] as i64 - 1;
                instruction.off = i16::try_from(distance).map_err(|_| Untranslatable::TooLong)?;
            }
            program.push(instruction);
        }
        Ok(program)
    }
}

/// Which instructions can be reached from the first one.
fn reached(instructions: &[bpf_insn], targets: &[Option<usize>]) -> Vec<bool> {
    let mut reached = vec![false; instructions.len()];
    let mut todo = vec![0];
    while let Some(index) = todo.pop() {
        let (Some(instruction), Some(reached)) = (instructions.get(index), reached.get_mut(index))
        else {
            continue;
        };
        if std::mem::replace(reached, true) {
            continue;
        }
        todo.extend(targets[index]);
        // Nothing follows these two.
        if ![JMP | EXIT, JMP | JA].contains(&instruction.code) {
            todo.push(index + 1);
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libpcap::ANCILLARY_PACKET_TYPE;

    fn translated(code: u16, k: u32) -> Result<Vec<bpf_insn>, Untranslatable> {
        let instruction = |code, k| Instruction {
            code,
            jump_true: 0,
            jump_false: 0,
            k,
        };
        let program = [instruction(code, k), instruction(0x06, 1)];
        let continuation = Continuation {
            programs: 0,
            index: 0,
        };
        translate(&program, LinkType::Ethernet, Hook::Ingress, continuation)
    }

    #[test]
    fn instructions_that_only_a_live_capture_has_are_refused() {
        let vlan_tag_present = 0xFFFF_F000 + 48;
        for (code, k) in [(0x30, vlan_tag_present), (0x34, 0), (0x60, 16), (0xff, 0)] {
            assert_eq!(
                translated(code, k).err(),
                Some(Untranslatable::Instruction { code, k })
            );
        }
        assert!(translated(0x28, ANCILLARY_PACKET_TYPE).is_ok());
        assert!(translated(0x60, 15).is_ok());
    }

    #[test]
    fn jump_that_does_not_reach_is_refused() {
        let load = Instruction {
            code: 0x28,
            jump_true: 0,
            jump_false: 0,
            k: 12,
        };
        let end = Instruction {
            code: 0x06,
            k: 1,
            ..load
        };
        let mut program = vec![load; 8000];
        program.push(end);
        let continuation = Continuation {
            programs: 0,
            index: 0,
        };
        assert_eq!(
            translate(&program, LinkType::RawIp, Hook::Egress, continuation).err(),
            Some(Untranslatable::TooLong)
        );
    }
}
