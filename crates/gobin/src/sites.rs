//! Which instructions to probe, and why not others.
//!
//! Entry probes go behind the stack check, on an instruction that the kernel emulates. `Read` is
//! probed at its one call of `runtime.memmove`, else at its returns. Nothing is taken for granted:
//! what a site relies on is verified in the code, and where it isn't there the site is refused.

use crate::code::{Code, Depths, Fault, Kind, MAX_CODE, Namer, StackCheck, slot_offset};
use crate::elf::Elf;
use crate::pclntab::{FoundFunction, Pclntab};
use crate::plan::{Argument, EntryProbe, Function, Location, ReadProbe, Site, SiteKind};
use crate::{Abi, Arch, Error, GoVersion, Vaddr};

/// `Read` has 7 returns in every version from Go 1.15 to 1.27, but for `-N -l` and `-race`.
const MAX_RETURNS: usize = 64;
const MEMMOVE: &[u8] = b"runtime.memmove";

/// What is known of the executable when sites are chosen.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) elf: &'a Elf<'a>,
    pub(crate) pclntab: &'a Pclntab<'a>,
    pub(crate) go_version: &'a GoVersion,
    pub(crate) abi: Abi,
}

/// The sites in one function, or why there are none.
pub(crate) enum Chosen {
    Entry(Result<EntryProbe, Error>),
    Read {
        copy: Result<ReadProbe, Error>,
        returns: Result<ReadProbe, Error>,
    },
}

pub(crate) fn choose(
    context: Context<'_>,
    function: Function,
    symbol: &str,
    found: &FoundFunction,
) -> Chosen {
    let chooser = match Chooser::new(context, symbol, found) {
        Ok(chooser) => chooser,
        Err(error) if function == Function::Read => {
            return Chosen::Read {
                copy: Err(error.clone()),
                returns: Err(error),
            };
        }
        Err(error) => return Chosen::Entry(Err(error)),
    };
    if function == Function::Read {
        return chooser.read();
    }
    Chosen::Entry(chooser.entry(function))
}

struct Chooser<'a> {
    context: Context<'a>,
    symbol: &'a str,
    code: Code,
    check: Option<StackCheck>,
}

impl<'a> Chooser<'a> {
    fn new(context: Context<'a>, symbol: &'a str, found: &FoundFunction) -> Result<Self, Error> {
        let fail = |(at, problem): Fault| Error::NoUsableSite {
            symbol: symbol.to_owned(),
            at,
            problem,
        };
        let range = found.range.clone();
        let length = range
            .end
            .0
            .checked_sub(range.start.0)
            .filter(|length| (1..=MAX_CODE).contains(length))
            .ok_or_else(|| fail((range.start, "its size is implausible".into())))?;
        if !context.elf.is_executable(range.start) {
            return Err(fail((
                range.start,
                "it lies outside of the executable segments".into(),
            )));
        }
        let bytes = context
            .elf
            .bytes_at(range.start, length)
            .ok_or_else(|| fail((range.start, "it reaches beyond its segment".into())))?;
        let code = Code::disassemble(range, bytes, context.elf.arch()).map_err(fail)?;
        let name = |entry: Vaddr| context.pclntab.name_of_function_at(entry);
        let check = code.stack_check(&name as Namer<'_>).map_err(fail)?;
        if check.is_some_and(|check| check.abi != context.abi) {
            return Err(Error::AbiMismatch {
                symbol: symbol.to_owned(),
                go_version: context.go_version.clone(),
                arch: context.elf.arch(),
            });
        }
        Ok(Self {
            context,
            symbol,
            code,
            check,
        })
    }

    fn fail(&self, (at, problem): Fault) -> Error {
        Error::NoUsableSite {
            symbol: self.symbol.to_owned(),
            at,
            problem,
        }
    }

    fn fail_at_entry(&self, problem: &str) -> Error {
        self.fail((self.code.range.start, problem.to_owned()))
    }

    fn site(&self, index: usize, kind: SiteKind) -> Result<Site, Error> {
        let step = self
            .code
            .steps
            .get(index)
            .ok_or_else(|| self.fail_at_entry("it ends too early"))?;
        let vaddr = Vaddr(step.address);
        let outside = || self.fail((vaddr, "the instruction is not in the file".into()));
        let offset = self.context.elf.file_offset(vaddr).ok_or_else(outside)?;
        Ok(Site {
            vaddr,
            offset,
            kind,
        })
    }

    fn entry(&self, function: Function) -> Result<EntryProbe, Error> {
        let site = match &self.check {
            None => self.site(0, SiteKind::FirstInstruction),
            Some(check) => match self.code.steps.get(check.jump + 1).map(|step| step.kind) {
                Some(Kind::PushFramePointer) => {
                    self.site(check.jump + 1, SiteKind::PushFramePointer)
                }
                _ => self.site(check.jump, SiteKind::StackCheckJump),
            },
        }?;
        let arguments = arguments(function, self.context.go_version)
            .iter()
            .map(|&(name, word)| Argument {
                name,
                location: match self.context.abi {
                    Abi::Register => Location::ArgumentRegister(word),
                    Abi::Stack => Location::Stack(u32::from(word + 1) * 8),
                },
            })
            .collect();
        Ok(EntryProbe { site, arguments })
    }

    fn read(&self) -> Chosen {
        let depths = match self.code.depths() {
            Ok(depths) => depths,
            Err(fault) => {
                let error = self.fail(fault);
                return Chosen::Read {
                    copy: Err(error.clone()),
                    returns: Err(error),
                };
            }
        };
        // In the register ABI the prologue must put them there; in the stack ABI the caller did.
        let check = self.check.as_ref();
        let slots: [bool; 3] = match self.context.abi {
            Abi::Register => self.code.spills(&depths, check),
            Abi::Stack => {
                [0, 1, 2].map(|word| !self.code.is_overwritten(word, &depths, check, None))
            }
        };
        let copy = self.copy(&depths, slots);
        let because = copy
            .as_ref()
            .err()
            .map_or_else(String::new, |error| match error {
                Error::NoUsableSite { problem, .. } => problem.clone(),
                error => error.to_string(),
            });
        Chosen::Read {
            returns: self.returns(&depths, slots, because),
            copy,
        }
    }

    fn copy(&self, depths: &Depths, slots: [bool; 3]) -> Result<ReadProbe, Error> {
        let is_memmove =
            |target| self.context.pclntab.name_of_function_at(Vaddr(target)) == Some(MEMMOVE);
        let mut calls = self
            .code
            .steps
            .iter()
            .enumerate()
            .filter(|(_, step)| match step.kind {
                Kind::Call {
                    target: Some(target),
                } => is_memmove(target),
                _ => false,
            });
        let (index, step) = calls
            .next()
            .ok_or_else(|| self.fail_at_entry("it has no call of runtime.memmove"))?;
        if calls.next().is_some() {
            return Err(self.fail_at_entry("it has more than one call of runtime.memmove"));
        }
        let [receiver_kept, buffer_kept, _] = slots;
        if !receiver_kept || !buffer_kept {
            return Err(
                self.fail_at_entry("receiver and buffer are not kept in the caller's slots")
            );
        }
        if !self.copies_to_buffer(index, depths) {
            return Err(self.fail((
                Vaddr(step.address),
                "its call of runtime.memmove does not copy to the caller's buffer".into(),
            )));
        }
        let receiver = self.slot(index, 0, depths)?;
        let (source, length) = match self.context.abi {
            Abi::Register => (Location::ArgumentRegister(1), Location::ArgumentRegister(2)),
            Abi::Stack => {
                let first = self.outgoing();
                self.check_outgoing(index, first)?;
                (Location::Stack(first + 8), Location::Stack(first + 16))
            }
        };
        Ok(ReadProbe::Copy {
            site: self.site(index, SiteKind::MemmoveCall)?,
            receiver,
            source,
            length,
        })
    }

    /// Whether `b`'s pointer is loaded from its slot somewhere between the call and the last call
    /// before it.
    fn copies_to_buffer(&self, index: usize, depths: &Depths) -> bool {
        self.before(index).any(|(index, step)| {
            step.loads
                .iter()
                .flatten()
                .any(|load| depths.offset_from_entry(index, load.offset) == Some(slot_offset(1)))
        })
    }

    /// The steps between a call and the last one before it, backwards.
    fn before(&self, index: usize) -> impl Iterator<Item = (usize, &crate::code::Step)> {
        let steps = self.code.steps.get(..index).unwrap_or_default();
        steps.iter().enumerate().rev().take_while(|(_, step)| {
            !matches!(step.kind, Kind::Call { .. } | Kind::Return | Kind::Stop)
        })
    }

    /// Where a callee's first argument goes in the stack ABI, from the stack pointer at the call:
    /// on arm64 the word below is the callee's for the link register.
    fn outgoing(&self) -> u32 {
        match self.context.elf.arch() {
            Arch::Amd64 => 0,
            Arch::Arm64 => 8,
        }
    }

    /// Verifies that all three of `memmove`'s arguments are stored before the call.
    fn check_outgoing(&self, index: usize, first: u32) -> Result<(), Error> {
        let stored = |word: i64| {
            let offset = i64::from(first) + 8 * word;
            self.before(index)
                .flat_map(|(_, step)| step.stores.iter().flatten())
                .any(|store| {
                    store.offset <= offset && offset + 8 <= store.offset.saturating_add(store.size)
                })
        };
        if (0..3).all(stored) {
            return Ok(());
        }
        Err(self.fail_at_entry(
            "the arguments of its call of runtime.memmove are not where they should be",
        ))
    }

    fn slot(&self, index: usize, word: u8, depths: &Depths) -> Result<Location, Error> {
        depths
            .offset_from_step(index, slot_offset(word))
            .map(Location::Stack)
            .ok_or_else(|| self.fail_at_entry("the depth of its stack is implausible"))
    }

    fn returns(
        &self,
        depths: &Depths,
        slots: [bool; 3],
        because: String,
    ) -> Result<ReadProbe, Error> {
        if slots != [true; 3] {
            return Err(
                self.fail_at_entry("receiver and buffer are not kept in the caller's slots")
            );
        }
        let is_return = |&(_, step): &(usize, &crate::code::Step)| step.kind == Kind::Return;
        let mut sites = Vec::new();
        for (index, step) in self.code.steps.iter().enumerate().filter(is_return) {
            let at = Vaddr(step.address);
            if depths.at(index) != Some(0) {
                return Err(self.fail((at, "it returns with an unbalanced stack".into())));
            }
            if sites.len() == MAX_RETURNS {
                return Err(self.fail((at, "it has too many returns".into())));
            }
            sites.push(self.site(index, SiteKind::Return)?);
        }
        if sites.is_empty() {
            return Err(self.fail_at_entry("it never returns"));
        }
        let slot = |word: u8| Location::Stack(8 * (u32::from(word) + 1));
        Ok(ReadProbe::Returns {
            sites,
            receiver: slot(0),
            buffer: slot(1),
            capacity: slot(2),
            count: match self.context.abi {
                Abi::Register => Location::ArgumentRegister(0),
                Abi::Stack => slot(4),
            },
            because,
        })
    }
}

/// Name and position of each word of the arguments that we use. The position is that of the register
/// and that on the stack: the first argument that no longer fits into registers comes after these.
type Words = &'static [(&'static str, u8)];

fn arguments(function: Function, version: &GoVersion) -> Words {
    match function {
        Function::WriteRecordLocked => &[("c", 0), ("typ", 1), ("data.ptr", 2), ("data.len", 3)],
        Function::Read => &[("c", 0), ("b.ptr", 1), ("b.len", 2)],
        Function::WriteKeyLog if version.at_least(1, 12) => &[
            ("c", 0),
            ("label.ptr", 1),
            ("label.len", 2),
            ("clientRandom.ptr", 3),
            ("clientRandom.len", 4),
            ("secret.ptr", 6),
            ("secret.len", 7),
        ],
        // No label: it was always CLIENT_RANDOM.
        Function::WriteKeyLog => &[
            ("c", 0),
            ("clientRandom.ptr", 1),
            ("clientRandom.len", 2),
            ("secret.ptr", 4),
            ("secret.len", 5),
        ],
        Function::KeysFromMasterSecret => &[
            ("version", 0),
            ("masterSecret.ptr", 2),
            ("masterSecret.len", 3),
            ("clientRandom.ptr", 5),
            ("clientRandom.len", 6),
        ],
        Function::Close => &[("c", 0)],
    }
}
