//! A function's code, disassembled into the few properties that choosing a probe site needs, and
//! what follows from them: the stack check, the depth of the stack at each instruction, and where
//! the prologue spills the arguments.
//!
//! Both machines share this model. Offsets count from the stack pointer at the function's entry:
//! the caller's argument slots are at +8, +16, …, the frame is below zero.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::{Abi, Arch, Vaddr, amd64, arm64};

/// Larger functions are refused; those of `crypto/tls` have a few kB.
pub(crate) const MAX_CODE: u64 = 64 << 10;
/// The check is done after at most this many instructions.
const MAX_PROLOGUE: usize = 12;
/// `runtime.morestack` is called after spilling at most every argument register.
const MAX_MORESTACK_BLOCK: usize = 48;

/// How control goes on after an instruction, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// To the next one.
    Plain,
    /// To the next one, without any effect.
    Nop,
    /// amd64 `push %rbp`.
    PushFramePointer,
    /// Compares against `g.stackguard0`, in the way of the given ABI.
    StackCompare(Abi),
    /// To the target or the next one. `below_or_equal`: on the flags that the stack check uses.
    ConditionalJump { target: u64, below_or_equal: bool },
    /// To the target.
    Jump { target: u64 },
    /// To where a register says.
    IndirectJump,
    /// Into a function, and if that returns, to the next one.
    Call { target: Option<u64> },
    /// Back to the caller.
    Return,
    /// Nowhere: a trap, or padding between functions.
    Stop,
}

/// What an instruction does to the stack pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StackChange {
    /// Adds this many bytes.
    By(i64),
    /// Something that can't be followed.
    Unknown,
}

/// A read or write of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// Bytes from the stack pointer before the instruction.
    pub(crate) offset: i64,
    /// Bytes.
    pub(crate) size: i64,
    /// The argument register that all 8 bytes come from or go to.
    pub(crate) argument: Option<u8>,
}

/// One instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) address: u64,
    pub(crate) kind: Kind,
    pub(crate) stack: StackChange,
    /// What it writes to the stack.
    pub(crate) stores: [Option<Access>; 2],
    /// What it reads from the stack.
    pub(crate) loads: [Option<Access>; 2],
    /// Argument registers that it writes, one bit each.
    pub(crate) written: u16,
}

/// The stack check that most functions begin with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StackCheck {
    /// Its conditional jump, as an index into the steps.
    pub(crate) jump: usize,
    /// Where the code that calls `runtime.morestack` and starts over lies.
    block: (usize, usize),
    /// The ABI whose registers it uses.
    pub(crate) abi: Abi,
}

/// Names the function that starts at an address.
pub(crate) type Namer<'a> = &'a dyn Fn(Vaddr) -> Option<&'a [u8]>;

/// A disassembled function.
pub(crate) struct Code {
    pub(crate) range: Range<Vaddr>,
    pub(crate) steps: Vec<Step>,
}

/// What is wrong at which address.
pub(crate) type Fault = (Vaddr, String);

impl Code {
    /// Disassembles `bytes`, which begin at the start of `range` and fill it.
    pub(crate) fn disassemble(
        range: Range<Vaddr>,
        bytes: &[u8],
        arch: Arch,
    ) -> Result<Self, Fault> {
        let steps = match arch {
            Arch::Amd64 => amd64::disassemble(range.start.0, bytes)?,
            Arch::Arm64 => arm64::disassemble(range.start.0, bytes)?,
        };
        if steps.is_empty() {
            return Err((range.start, "the function is empty".into()));
        }
        Ok(Self { range, steps })
    }

    pub(crate) fn index_of(&self, address: u64) -> Option<usize> {
        self.steps
            .binary_search_by_key(&address, |step| step.address)
            .ok()
    }

    fn calls_morestack(step: &Step, name: Namer<'_>) -> bool {
        match step.kind {
            Kind::Call {
                target: Some(target),
            } => name(Vaddr(target)).is_some_and(|n| n.starts_with(b"runtime.morestack")),
            _ => false,
        }
    }

    /// The stack check, or `None` if the function has none and never calls `runtime.morestack`.
    pub(crate) fn stack_check(&self, name: Namer<'_>) -> Result<Option<StackCheck>, Fault> {
        let fault = |address: u64, problem: &str| Err((Vaddr(address), problem.to_owned()));
        let mut compare = None;
        for (index, step) in self.steps.iter().enumerate().take(MAX_PROLOGUE) {
            match step.kind {
                Kind::StackCompare(abi) => compare = Some(abi),
                Kind::ConditionalJump {
                    target,
                    below_or_equal,
                } => {
                    let Some(abi) = compare else { break };
                    if !below_or_equal {
                        return fault(
                            step.address,
                            "the stack check jumps on other flags than expected",
                        );
                    }
                    if self.steps.iter().take(index).any(|s| {
                        s.stack != StackChange::By(0)
                            || s.stores.iter().any(Option::is_some)
                            || (abi == Abi::Register && s.written != 0)
                    }) {
                        return fault(
                            step.address,
                            "arguments or stack pointer change before the stack check",
                        );
                    }
                    let Some(block) = self.morestack_block(target, name) else {
                        return fault(
                            step.address,
                            "the stack check does not lead to runtime.morestack",
                        );
                    };
                    return Ok(Some(StackCheck {
                        jump: index,
                        block,
                        abi,
                    }));
                }
                Kind::Plain | Kind::Nop => {}
                _ => break,
            }
        }
        match self
            .steps
            .iter()
            .find(|step| Self::calls_morestack(step, name))
        {
            Some(step) => fault(
                step.address,
                "it calls runtime.morestack, but its stack check has an unknown form",
            ),
            None => Ok(None),
        }
    }

    /// First and last step of the code at `target`, which calls `runtime.morestack` and starts over.
    fn morestack_block(&self, target: u64, name: Namer<'_>) -> Option<(usize, usize)> {
        let first = self.index_of(target)?;
        let mut called = false;
        for (index, step) in self
            .steps
            .iter()
            .enumerate()
            .skip(first)
            .take(MAX_MORESTACK_BLOCK)
        {
            match step.kind {
                Kind::Call { .. } if !called => {
                    called = Self::calls_morestack(step, name);
                    called.then_some(())?;
                }
                Kind::Jump { target } => {
                    return (called && target == self.range.start.0).then_some((first, index));
                }
                Kind::Plain | Kind::Nop => {}
                _ => return None,
            }
        }
        None
    }

    /// Follows the stack pointer through the whole function.
    ///
    /// Fails where two ways to an instruction disagree, where a jump leads into the middle of one or
    /// out of the function: then it isn't understood.
    pub(crate) fn depths(&self) -> Result<Depths, Fault> {
        let fault = |address: u64, problem: &str| Err((Vaddr(address), problem.to_owned()));
        let mut depths: Vec<i64> = Vec::with_capacity(self.steps.len());
        let mut expected = BTreeMap::from([(self.range.start.0, 0)]);
        let (mut linear, mut frame) = (Some(0), 0);
        // A call before padding or other code need not return.
        let mut after_call = false;
        for step in &self.steps {
            let depth = match (linear, expected.get(&step.address)) {
                (Some(linear), Some(&jumped)) if linear != jumped && !after_call => {
                    return fault(
                        step.address,
                        "the depth of its stack depends on the way taken",
                    );
                }
                (_, Some(&jumped)) => jumped,
                (Some(linear), None) => linear,
                // Only reached from further down, which is checked there.
                (None, None) => frame,
            };
            depths.push(depth);
            let StackChange::By(change) = step.stack else {
                return fault(step.address, "the stack pointer changes in an unknown way");
            };
            let next = depth.saturating_add(change);
            frame = next.min(frame);
            linear = Some(next);
            match step.kind {
                Kind::ConditionalJump { target, .. } | Kind::Jump { target } => {
                    let known = match self.index_of(target) {
                        None => {
                            return fault(
                                step.address,
                                "a jump leads out of the function or into an instruction",
                            );
                        }
                        Some(index) => depths.get(index).copied(),
                    };
                    let known = known.or_else(|| expected.get(&target).copied());
                    if known.is_some_and(|depth| depth != next) {
                        return fault(
                            step.address,
                            "the depth of its stack depends on the way taken",
                        );
                    }
                    expected.insert(target, next);
                    if matches!(step.kind, Kind::Jump { .. }) {
                        linear = None;
                    }
                }
                Kind::Return | Kind::Stop => linear = None,
                Kind::IndirectJump => return fault(step.address, "it has an indirect jump"),
                _ => {}
            }
            after_call = match step.kind {
                Kind::Nop => after_call,
                kind => matches!(kind, Kind::Call { .. }),
            };
        }
        Ok(Depths(depths))
    }

    /// Which of the first `COUNT` argument registers the prologue stores to the caller's slots, and
    /// which of those nothing overwrites later.
    pub(crate) fn spills<const COUNT: usize>(
        &self,
        depths: &Depths,
        check: Option<&StackCheck>,
    ) -> [bool; COUNT] {
        let mut spilled = [None; COUNT];
        let mut written = 0u16;
        let start = check.map_or(0, |check| check.jump + 1);
        for (index, step) in self.steps.iter().enumerate().skip(start) {
            if !matches!(step.kind, Kind::Plain | Kind::Nop | Kind::PushFramePointer) {
                break;
            }
            for store in step.stores.iter().flatten() {
                let Some(register) = store.argument else {
                    continue;
                };
                let to = depths.offset_from_entry(index, store.offset);
                if let Some(slot @ None) = spilled.get_mut(usize::from(register))
                    && written & (1 << register) == 0
                    && to == Some(slot_offset(register))
                {
                    *slot = Some(index);
                }
            }
            written |= step.written;
        }
        let mut register = 0;
        spilled.map(|spill| {
            let kept = spill.is_some() && !self.is_overwritten(register, depths, check, spill);
            register += 1;
            kept
        })
    }

    /// Whether anything but `except` stores to the slot of the n-th argument word.
    pub(crate) fn is_overwritten(
        &self,
        word: u8,
        depths: &Depths,
        check: Option<&StackCheck>,
        except: Option<usize>,
    ) -> bool {
        let slot = slot_offset(word);
        self.steps.iter().enumerate().any(|(index, step)| {
            // The block saves the registers there too, and the function starts over behind it.
            let in_block = check.is_some_and(|c| (c.block.0..=c.block.1).contains(&index));
            Some(index) != except
                && !in_block
                && step.stores.iter().flatten().any(|store| {
                    depths
                        .offset_from_entry(index, store.offset)
                        .is_none_or(|to| to < slot + 8 && slot < to.saturating_add(store.size))
                })
        })
    }
}

/// Where the caller keeps the n-th word of arguments, as seen from the entry's stack pointer.
pub(crate) fn slot_offset(word: u8) -> i64 {
    8 * (i64::from(word) + 1)
}

/// The stack pointer at each step, relative to the entry's; never positive in sound code.
pub(crate) struct Depths(Vec<i64>);

impl Depths {
    pub(crate) fn at(&self, index: usize) -> Option<i64> {
        self.0.get(index).copied()
    }

    /// An offset from the step's stack pointer as one from the entry's.
    pub(crate) fn offset_from_entry(&self, index: usize, offset: i64) -> Option<i64> {
        self.at(index)?.checked_add(offset)
    }

    /// An offset from the entry's stack pointer as one from the step's.
    pub(crate) fn offset_from_step(&self, index: usize, offset: i64) -> Option<u32> {
        u32::try_from(offset.checked_sub(self.at(index)?)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: u64 = 0x1000;
    /// `cmp 0x10(%r14),%rsp`.
    const COMPARE: [u8; 4] = [0x49, 0x3b, 0x66, 0x10];
    /// `push %rbp; mov %rsp,%rbp; sub $0x20,%rsp`.
    const FRAME: [u8; 8] = [0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x20];
    /// `mov %rax,0x30(%rsp)`: the receiver to the caller's slot, with the frame above.
    const SPILL: [u8; 5] = [0x48, 0x89, 0x44, 0x24, 0x30];
    /// `add $0x20,%rsp; pop %rbp; ret`.
    const LEAVE: [u8; 6] = [0x48, 0x83, 0xc4, 0x20, 0x5d, 0xc3];

    /// A function with a stack check whose jump has the given opcode, then frame, body, epilogue,
    /// and the block that calls `runtime.morestack` at 0x9000.
    fn function(jump: u8, body: &[u8]) -> Code {
        let mut bytes = COMPARE.to_vec();
        let inner = [&FRAME[..], body, &LEAVE].concat();
        bytes.extend([jump, u8::try_from(inner.len()).unwrap()]);
        bytes.extend(inner);
        let call = 0x9000 - (ENTRY as i32 + bytes.len() as i32 + 5);
        bytes.push(0xe8);
        bytes.extend(call.to_le_bytes());
        let back = -(bytes.len() as i32 + 5);
        bytes.push(0xe9);
        bytes.extend(back.to_le_bytes());
        let end = Vaddr(ENTRY + bytes.len() as u64);
        Code::disassemble(Vaddr(ENTRY)..end, &bytes, Arch::Amd64).unwrap()
    }

    fn name(at: Vaddr) -> Option<&'static [u8]> {
        (at == Vaddr(0x9000)).then_some(b"runtime.morestack_noctxt")
    }

    #[test]
    fn a_function_of_the_usual_shape_is_understood() {
        let code = function(0x76, &SPILL);
        let check = code.stack_check(&name).unwrap().unwrap();
        assert_eq!((check.jump, check.abi), (1, Abi::Register));
        assert_eq!(code.steps[2].kind, Kind::PushFramePointer);
        let depths = code.depths().unwrap();
        let ret = code
            .steps
            .iter()
            .position(|step| step.kind == Kind::Return)
            .unwrap();
        assert_eq!(depths.at(ret), Some(0));
        assert_eq!(code.spills(&depths, Some(&check)), [true, false]);
    }

    #[test]
    fn a_jump_on_other_flags_is_no_stack_check() {
        // `jb` instead of `jbe`.
        assert!(function(0x72, &SPILL).stack_check(&name).is_err());
    }

    #[test]
    fn a_check_that_leads_elsewhere_is_refused() {
        let unnamed = |_: Vaddr| None;
        // Without the name there is no call of runtime.morestack at all.
        assert!(function(0x76, &SPILL).stack_check(&unnamed).is_err());
    }

    #[test]
    fn a_slot_that_is_written_again_is_not_relied_on() {
        // `mov %rax,0x30(%rsp)`, then `movl $0,0x34(%rsp)`: half of the slot.
        let body = [&SPILL[..], &[0xc7, 0x44, 0x24, 0x34, 0, 0, 0, 0]].concat();
        let code = function(0x76, &body);
        let depths = code.depths().unwrap();
        assert_eq!(code.spills(&depths, None), [false]);
    }

    #[test]
    fn a_receiver_that_changed_before_it_is_stored_is_no_spill() {
        // `xor %eax,%eax` first.
        let body = [&[0x31, 0xc0][..], &SPILL].concat();
        let code = function(0x76, &body);
        let check = code.stack_check(&name).unwrap();
        assert_eq!(
            code.spills(&code.depths().unwrap(), check.as_ref()),
            [false]
        );
    }

    #[test]
    fn a_jump_into_an_instruction_is_refused() {
        // `jmp -1`: into itself.
        assert!(function(0x76, &[0xeb, 0xff]).depths().is_err());
    }

    #[test]
    fn a_stack_that_is_not_followed_is_refused() {
        // `mov %rbp,%rsp`.
        assert!(function(0x76, &[0x48, 0x89, 0xec]).depths().is_err());
        // `jne +1; push %rbx`: deeper on one way than on the other.
        assert!(function(0x76, &[0x75, 0x01, 0x53]).depths().is_err());
    }
}
