//! arm64 code, decoded as far as needed: words of four bytes, by the top-level encodings of the Arm
//! Architecture Reference Manual, C4.1.
//!
//! The forms of prologue and epilogue are those of `src/cmd/internal/obj/arm64/obj7.go` of Go 1.15
//! to 1.27. An instruction that isn't known is taken to write the register in its lowest bits.

use crate::code::{Access, Fault, Kind, StackChange, Step};
use crate::{Abi, Vaddr};

const SP: u32 = 31;
/// The goroutine, in both ABIs.
const G: u32 = 28;
/// X0 to X15.
const ARGUMENTS: u32 = 16;
const RET: u32 = 0xd65f_03c0;
const NOP: u32 = 0xd503_201f;

pub(crate) fn disassemble(start: u64, bytes: &[u8]) -> Result<Vec<Step>, Fault> {
    if !start.is_multiple_of(4) || !bytes.len().is_multiple_of(4) {
        return Err((Vaddr(start), "its code is not aligned to 4 bytes".into()));
    }
    let mut state = State::default();
    let words = bytes
        .chunks_exact(4)
        .filter_map(|w| w.try_into().ok())
        .map(u32::from_le_bytes);
    let addresses = (0u64..).map(|index| start.wrapping_add(4 * index));
    Ok(addresses
        .zip(words)
        .map(|(address, word)| state.step(address, word))
        .collect())
}

/// What must be remembered of earlier instructions.
#[derive(Default)]
struct State {
    /// A register that holds the stack pointer plus a constant: large frames are set up in X20.
    alias: Option<(u32, i64)>,
    /// A register that holds `g.stackguard0`.
    guard: Option<u32>,
}

impl State {
    fn step(&mut self, address: u64, word: u32) -> Step {
        let mut step = Step {
            address,
            kind: Kind::Plain,
            stack: StackChange::By(0),
            stores: [None; 2],
            loads: [None; 2],
            written: 0,
        };
        let mut destinations = [None; 2];
        if let Some(kind) = branch(address, word) {
            step.kind = kind;
        } else if let Some(access) = Transfer::decode(word) {
            destinations = self.transfer(&access, &mut step);
        } else if let Some(sum) = Sum::decode(word) {
            destinations = self.sum(&sum, &mut step);
        } else if let Some((n, m)) = compare(word) {
            if self.guard == Some(m) && (n == SP || self.alias.is_some_and(|(r, _)| r == n)) {
                let abi = if m == 16 { Abi::Register } else { Abi::Stack };
                step.kind = Kind::StackCompare(abi);
            }
        } else if word == NOP {
            step.kind = Kind::Nop;
        } else {
            self.forget(word & 31);
            destinations = [Some(word & 31), None];
        }
        for destination in destinations.into_iter().flatten() {
            if destination < ARGUMENTS {
                step.written |= 1 << destination;
            }
        }
        step
    }

    /// Forgets what was known of a register that is written.
    fn forget(&mut self, register: u32) {
        self.alias = self.alias.filter(|&(r, _)| r != register);
        self.guard = self.guard.filter(|&r| r != register);
    }

    fn transfer(&mut self, access: &Transfer, step: &mut Step) -> [Option<u32>; 2] {
        let (changed, offset) = match access.mode {
            Mode::Offset => (None, access.offset),
            Mode::PreIndex => (Some(access.offset), access.offset),
            Mode::PostIndex => (Some(access.offset), 0),
        };
        if access.base == SP {
            if let Some(change) = changed {
                step.stack = StackChange::By(change);
                self.alias = None;
            }
            let slots = if access.load {
                &mut step.loads
            } else {
                &mut step.stores
            };
            for (index, slot) in slots.iter_mut().enumerate().take(access.registers()) {
                let argument = access
                    .register(index)
                    .filter(|&r| access.size == 8 && r < ARGUMENTS);
                *slot = Some(Access {
                    offset: offset + access.size * i64::try_from(index).unwrap_or(0),
                    size: access.size,
                    argument: argument.and_then(|r| u8::try_from(r).ok()),
                });
            }
        }
        let mut destinations = [None; 2];
        if access.load {
            destinations = [access.register(0), access.register(1)];
            destinations
                .into_iter()
                .flatten()
                .for_each(|r| self.forget(r));
            if access.base == G && access.offset == 16 && access.size == 8 {
                self.guard = access.register(0);
            }
        }
        if changed.is_some() && access.base != SP {
            self.forget(access.base);
            if let Some(free) = destinations.iter_mut().find(|d| d.is_none()) {
                *free = Some(access.base);
            }
        }
        destinations
    }

    /// Additions and subtractions of constants, `mov` from and to SP among them.
    fn sum(&mut self, sum: &Sum, step: &mut Step) -> [Option<u32>; 2] {
        let source = match self.alias {
            _ if sum.source == SP => Some(0),
            Some((register, offset)) if register == sum.source => Some(offset),
            _ => None,
        };
        let value = source.and_then(|offset| offset.checked_add(sum.addend));
        if sum.destination == SP {
            step.stack = value.map_or(StackChange::Unknown, StackChange::By);
            self.alias = None;
            return [None; 2];
        }
        self.forget(sum.destination);
        if let Some(offset) = value {
            self.alias = Some((sum.destination, offset));
        }
        [Some(sum.destination), None]
    }
}

fn branch(address: u64, word: u32) -> Option<Kind> {
    let target = |bits: u32, shift: u32| {
        let field = (word >> shift) & ((1 << bits) - 1);
        let signed = (field << (32 - bits)).cast_signed() >> (32 - bits);
        address.wrapping_add_signed(i64::from(signed) * 4)
    };
    match word {
        RET => return Some(Kind::Return),
        // `udf` pads functions; `0xbea71700` is what Go's linker writes for UNDEF.
        w if w & 0xffff_0000 == 0 || w == 0xbea7_1700 => return Some(Kind::Stop),
        // `brk`.
        w if w & 0xffe0_001f == 0xd420_0000 => return Some(Kind::Stop),
        _ => {}
    }
    match word >> 24 {
        0x14..=0x17 => Some(Kind::Jump {
            target: target(26, 0),
        }),
        0x94..=0x97 => Some(Kind::Call {
            target: Some(target(26, 0)),
        }),
        0x54 => Some(Kind::ConditionalJump {
            target: target(19, 5),
            below_or_equal: word & 0x1f == 9,
        }),
        // cbz, cbnz; tbz, tbnz.
        0x34 | 0x35 | 0xb4 | 0xb5 => Some(Kind::ConditionalJump {
            target: target(19, 5),
            below_or_equal: false,
        }),
        0x36 | 0x37 | 0xb6 | 0xb7 => Some(Kind::ConditionalJump {
            target: target(14, 5),
            below_or_equal: false,
        }),
        // br, blr; `ret` by another register than the link register is a jump.
        0xd6 | 0xd7 => match (word >> 21) & 0xf {
            1 => Some(Kind::Call { target: None }),
            _ => Some(Kind::IndirectJump),
        },
        _ => None,
    }
}

/// `cmp Xn, Xm` or `cmp SP, Xm`: the two registers.
fn compare(word: u32) -> Option<(u32, u32)> {
    let extended = word & 0xffe0_fc1f == 0xeb20_601f;
    let shifted = word & 0xffe0_fc1f == 0xeb00_001f;
    let n = (word >> 5) & 31;
    // In the shifted form, 31 is the zero register.
    (extended || (shifted && n != SP)).then_some((n, (word >> 16) & 31))
}

enum Mode {
    Offset,
    PreIndex,
    PostIndex,
}

/// A load or store with a constant offset from a base register.
struct Transfer {
    load: bool,
    pair: bool,
    /// General registers, not floating-point ones.
    general: bool,
    size: i64,
    base: u32,
    offset: i64,
    mode: Mode,
    first: u32,
    second: u32,
}

impl Transfer {
    fn decode(word: u32) -> Option<Self> {
        let signed = |shift: u32, bits: u32| {
            i64::from((word >> shift << (32 - bits)).cast_signed() >> (32 - bits))
        };
        let general = word & (1 << 26) == 0;
        let (base, first, second) = ((word >> 5) & 31, word & 31, (word >> 10) & 31);
        // Pairs: xx 101 V 0mm L imm7.
        if word & 0x3a00_0000 == 0x2800_0000 {
            let mode = match (word >> 23) & 3 {
                1 => Mode::PostIndex,
                3 => Mode::PreIndex,
                _ => Mode::Offset,
            };
            let size = match (general, word >> 30) {
                (true, 0 | 1) => 4,
                (true, _) => 8,
                (false, scale) => 4 << scale.min(2),
            };
            let (load, offset) = (word & (1 << 22) != 0, signed(15, 7) * size);
            return Some(Self {
                load,
                pair: true,
                general,
                size,
                base,
                offset,
                mode,
                first,
                second,
            });
        }
        // Single registers: xx 111 V 0s op.
        if word & 0x3a00_0000 != 0x3800_0000 {
            return None;
        }
        let opcode = (word >> 22) & 3;
        let scale = if general {
            word >> 30
        } else {
            (word >> 30) | (opcode & 2) << 1
        };
        let size = 1i64 << scale.min(4);
        // Opcode 0 stores; 1 loads, and 2 and 3 load with sign, or other sizes of SIMD registers.
        let load = if general {
            opcode != 0
        } else {
            opcode & 1 != 0
        };
        let (offset, mode) = if word & (1 << 24) != 0 {
            (i64::from((word >> 10) & 0xfff) * size, Mode::Offset)
        } else if word & (1 << 21) != 0 {
            // A register as offset, or an atomic operation: no constant.
            return None;
        } else {
            let mode = match (word >> 10) & 3 {
                1 => Mode::PostIndex,
                3 => Mode::PreIndex,
                _ => Mode::Offset,
            };
            (signed(12, 9), mode)
        };
        Some(Self {
            load,
            pair: false,
            general,
            size,
            base,
            offset,
            mode,
            first,
            second,
        })
    }

    fn registers(&self) -> usize {
        if self.pair { 2 } else { 1 }
    }

    /// The n-th register that is transferred, if it is a general one.
    fn register(&self, index: usize) -> Option<u32> {
        match index {
            0 if self.general => Some(self.first),
            1 if self.general && self.pair => Some(self.second),
            _ => None,
        }
    }
}

/// `add` or `sub` of a constant, 64 bits wide, without flags.
struct Sum {
    destination: u32,
    source: u32,
    addend: i64,
}

impl Sum {
    fn decode(word: u32) -> Option<Self> {
        let negative = match word & 0xff80_0000 {
            0x9100_0000 => false,
            0xd100_0000 => true,
            _ => return None,
        };
        let shift = if word & (1 << 22) != 0 { 12 } else { 0 };
        let amount = i64::from((word >> 10) & 0xfff) << shift;
        let addend = if negative { -amount } else { amount };
        Some(Self {
            destination: word & 31,
            source: (word >> 5) & 31,
            addend,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn steps(words: &[u32]) -> Vec<Step> {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        disassemble(0x1000, &bytes).unwrap()
    }

    #[test]
    fn a_small_frame_of_go_1_24() {
        let steps = steps(&[
            0xf940_0b90, // ldr x16, [x28, #16]
            0xeb30_63ff, // cmp sp, x16
            0x5400_1aa9, // b.ls +0x354
            0xf819_0ffe, // str x30, [sp, #-112]!
            0xf81f_83fd, // stur x29, [sp, #-8]
            0xd100_23fd, // sub x29, sp, #8
            0xf900_3fe0, // str x0, [sp, #120]
            0xa904_7fff, // stp xzr, xzr, [sp, #64]
            0xf847_07fe, // ldr x30, [sp], #112
            0xd65f_03c0, // ret
        ]);
        assert_eq!(steps[1].kind, Kind::StackCompare(Abi::Register));
        assert_eq!(
            steps[2].kind,
            Kind::ConditionalJump {
                target: 0x135c,
                below_or_equal: true
            }
        );
        assert_eq!(steps[3].stack, StackChange::By(-112));
        assert_eq!(steps[5].stack, StackChange::By(0));
        let spill = Access {
            offset: 120,
            size: 8,
            argument: Some(0),
        };
        assert_eq!(steps[6].stores, [Some(spill), None]);
        assert_eq!(steps[7].stores[1].unwrap().offset, 72);
        assert_eq!(steps[8].stack, StackChange::By(112));
        assert_eq!(steps[9].kind, Kind::Return);
    }

    #[test]
    fn a_large_frame_of_go_1_27() {
        let steps = steps(&[
            0xf940_0b90, // ldr x16, [x28, #16]
            0xd103_03f1, // sub x17, sp, #0xc0
            0xeb10_023f, // cmp x17, x16
            0x5400_34a9, // b.ls
            0xd105_03f4, // sub x20, sp, #0x140
            0xa93f_fa9d, // stp x29, x30, [x20, #-8]
            0x9100_029f, // mov sp, x20
            0xd100_23fd, // sub x29, sp, #8
            0xa97f_fbfd, // ldp x29, x30, [sp, #-8]
            0x9105_03ff, // add sp, sp, #0x140
        ]);
        assert_eq!(steps[2].kind, Kind::StackCompare(Abi::Register));
        assert_eq!(steps[6].stack, StackChange::By(-0x140));
        assert_eq!(steps[9].stack, StackChange::By(0x140));
        assert!(steps.iter().all(|s| s.written == 0));
    }

    proptest! {
        #[test]
        fn any_words(words in proptest::collection::vec(any::<u32>(), 0..100), start: u64) {
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            let _ = disassemble(start & !3, &bytes);
            let _ = disassemble(start, &bytes);
        }
    }
}
