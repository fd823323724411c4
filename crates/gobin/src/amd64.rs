//! amd64 code, disassembled with iced-x86.
//!
//! The order of argument registers is that of `src/cmd/compile/abi-internal.md` of Go 1.24; the
//! forms of the stack check are those of `src/cmd/internal/obj/x86/obj6.go` (`stacksplit`).

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfo, InstructionInfoFactory,
    Mnemonic, OpAccess, OpKind, Register,
};

use crate::code::{Access, Fault, Kind, StackChange, Step};
use crate::{Abi, Vaddr};

/// AX, BX, CX, DI, SI, R8, R9, R10, R11.
const ARGUMENTS: [Register; 9] = [
    Register::RAX,
    Register::RBX,
    Register::RCX,
    Register::RDI,
    Register::RSI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
];

/// `g.stackguard0`.
const STACK_GUARD: u64 = 0x10;

pub(crate) fn disassemble(start: u64, bytes: &[u8]) -> Result<Vec<Step>, Fault> {
    let mut decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
    let mut factory = InstructionInfoFactory::new();
    let mut steps = Vec::new();
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() {
            return Err((Vaddr(instruction.ip()), "undecodable instruction".into()));
        }
        steps.push(step(&instruction, factory.info(&instruction)));
    }
    Ok(steps)
}

fn step(instruction: &Instruction, info: &InstructionInfo) -> Step {
    let mut written = 0;
    let mut writes_sp = false;
    for used in info
        .used_registers()
        .iter()
        .filter(|used| is_write(used.access()))
    {
        let register = used.register().full_register();
        writes_sp |= register == Register::RSP;
        if let Some(index) = argument(register) {
            written |= 1 << index;
        }
    }
    let mut stores = [None; 2];
    let mut loads = [None; 2];
    for used in info.used_memory() {
        if used.base() != Register::RSP || used.index() != Register::None {
            continue;
        }
        let access = |register| Access {
            offset: used.displacement().cast_signed(),
            size: i64::try_from(used.memory_size().size()).unwrap_or(i64::MAX),
            argument: register,
        };
        if is_write(used.access()) {
            set_first(&mut stores, access(moved(instruction, 1)));
        } else {
            set_first(&mut loads, access(moved(instruction, 0)));
        }
    }
    Step {
        address: instruction.ip(),
        kind: kind(instruction),
        stack: stack_change(instruction, writes_sp),
        stores,
        loads,
        written,
    }
}

fn set_first(slots: &mut [Option<Access>; 2], access: Access) {
    if let Some(slot) = slots.iter_mut().find(|slot| slot.is_none()) {
        *slot = Some(access);
    }
}

fn is_write(access: OpAccess) -> bool {
    !matches!(
        access,
        OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
    )
}

fn argument(register: Register) -> Option<u8> {
    ARGUMENTS
        .iter()
        .position(|&r| r == register)
        .and_then(|index| u8::try_from(index).ok())
}

/// The argument register that a `mov` has as this operand.
fn moved(instruction: &Instruction, operand: u32) -> Option<u8> {
    (instruction.mnemonic() == Mnemonic::Mov && instruction.op_kind(operand) == OpKind::Register)
        .then(|| argument(instruction.op_register(operand)))?
}

fn kind(instruction: &Instruction) -> Kind {
    match instruction.flow_control() {
        FlowControl::ConditionalBranch => Kind::ConditionalJump {
            target: instruction.near_branch_target(),
            below_or_equal: instruction.mnemonic() == Mnemonic::Jbe,
        },
        FlowControl::UnconditionalBranch => Kind::Jump {
            target: instruction.near_branch_target(),
        },
        FlowControl::IndirectBranch => Kind::IndirectJump,
        FlowControl::Call => Kind::Call {
            target: Some(instruction.near_branch_target()),
        },
        FlowControl::IndirectCall => Kind::Call { target: None },
        FlowControl::Return => Kind::Return,
        FlowControl::Interrupt | FlowControl::Exception => Kind::Stop,
        FlowControl::Next | FlowControl::XbeginXabortXend => match instruction.mnemonic() {
            Mnemonic::Nop => Kind::Nop,
            Mnemonic::Push if instruction.op0_register() == Register::RBP => Kind::PushFramePointer,
            Mnemonic::Cmp => stack_compare(instruction).map_or(Kind::Plain, Kind::StackCompare),
            _ => Kind::Plain,
        },
    }
}

/// `cmp SP-or-copy, 0x10(g)`: g is R14 where registers pass arguments, loaded into CX before.
fn stack_compare(instruction: &Instruction) -> Option<Abi> {
    if instruction.op1_kind() != OpKind::Memory
        || instruction.memory_displacement64() != STACK_GUARD
        || instruction.memory_index() != Register::None
    {
        return None;
    }
    match instruction.memory_base() {
        Register::R14 => Some(Abi::Register),
        Register::RCX => Some(Abi::Stack),
        _ => None,
    }
}

fn stack_change(instruction: &Instruction, writes_sp: bool) -> StackChange {
    let by_immediate = || {
        (instruction.op0_register() == Register::RSP && instruction.op1_kind() != OpKind::Register)
            .then(|| instruction.try_immediate(1).ok())
            .flatten()
            .map(u64::cast_signed)
    };
    let change = match instruction.mnemonic() {
        // Calls leave the stack as it was, returns end the matter.
        _ if !writes_sp => Some(0),
        Mnemonic::Call | Mnemonic::Ret => Some(0),
        Mnemonic::Push | Mnemonic::Pushfq => Some(-8),
        Mnemonic::Pop if instruction.op0_register() == Register::RSP => None,
        Mnemonic::Pop | Mnemonic::Popfq => Some(8),
        Mnemonic::Sub => by_immediate().and_then(i64::checked_neg),
        Mnemonic::Add => by_immediate(),
        _ => None,
    };
    change.map_or(StackChange::Unknown, StackChange::By)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_prologue_of_go_1_24() {
        // cmp 0x10(%r14),%rsp; jbe +0x30; push %rbp; mov %rsp,%rbp; add $-0x80,%rsp;
        // mov %rax,0x90(%rsp); mov 0x98(%rsp),%rbx; ret; int3
        let bytes = [
            0x49, 0x3b, 0x66, 0x10, 0x76, 0x30, 0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xc4, 0x80,
            0x48, 0x89, 0x84, 0x24, 0x90, 0, 0, 0, 0x48, 0x8b, 0x9c, 0x24, 0x98, 0, 0, 0, 0xc3,
            0xcc,
        ];
        let steps = disassemble(0x1000, &bytes).unwrap();
        let kinds: Vec<Kind> = steps.iter().map(|s| s.kind).collect();
        assert_eq!(
            kinds,
            [
                Kind::StackCompare(Abi::Register),
                Kind::ConditionalJump {
                    target: 0x1036,
                    below_or_equal: true
                },
                Kind::PushFramePointer,
                Kind::Plain,
                Kind::Plain,
                Kind::Plain,
                Kind::Plain,
                Kind::Return,
                Kind::Stop,
            ]
        );
        assert_eq!(steps[4].stack, StackChange::By(-128));
        let expected = Access {
            offset: 0x90,
            size: 8,
            argument: Some(0),
        };
        assert_eq!(steps[5].stores, [Some(expected), None]);
        assert_eq!(steps[6].loads[0].unwrap().argument, Some(1));
        assert_eq!(steps[6].written, 0b10);
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200), start: u64) {
            let _ = disassemble(start, &bytes);
        }
    }
}
