//! The outcome of an analysis: which instructions to probe, and where each finds its arguments.

use std::fmt;

use crate::{Abi, Arch, ConnectionPlan, Error, FileOffset, GoVersion, Vaddr};

/// The functions of `crypto/tls` that we look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    /// `(*Conn).writeRecordLocked(typ recordType, data []byte) (int, error)`: all plaintext that
    /// leaves, before it is split into records.
    WriteRecordLocked,
    /// `(*Conn).Read(b []byte) (int, error)`: all plaintext that arrives.
    Read,
    /// `(*Config).writeKeyLog(label string, clientRandom, secret []byte) error`; before Go 1.12
    /// without the label.
    WriteKeyLog,
    /// `keysFromMasterSecret(version uint16, suite *cipherSuite, masterSecret, clientRandom,
    /// serverRandom []byte, macLen, keyLen, ivLen int)`: TLS 1.2 and older, resumed or not.
    KeysFromMasterSecret,
    /// `(*Conn).Close() error`.
    Close,
}

impl Function {
    /// Every function, in the order in which reports list them.
    pub const ALL: [Self; 5] = [
        Self::WriteRecordLocked,
        Self::Read,
        Self::WriteKeyLog,
        Self::KeysFromMasterSecret,
        Self::Close,
    ];

    /// The name in pclntab, for the package with this import path (`crypto/tls`, or a copy's).
    pub fn symbol(self, package: &str) -> String {
        let suffix = match self {
            Self::WriteRecordLocked => "(*Conn).writeRecordLocked",
            Self::Read => "(*Conn).Read",
            Self::WriteKeyLog => "(*Config).writeKeyLog",
            Self::KeysFromMasterSecret => "keysFromMasterSecret",
            Self::Close => "(*Conn).Close",
        };
        format!("{package}.{suffix}")
    }
}

/// Why an instruction was chosen as a probe site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SiteKind {
    /// amd64 `push %rbp` behind the stack check: emulated by the kernel, runs once a call.
    PushFramePointer,
    /// The stack check's own conditional jump: emulated, but runs again after the stack has grown.
    /// A hit whose flags say that the jump will be taken (to `runtime.morestack`) must be ignored:
    /// amd64 `jbe` is taken when CF or ZF is set, arm64 `b.ls` when C is clear or Z is set.
    StackCheckJump,
    /// First instruction of a function that has no stack check and thus never starts twice.
    FirstInstruction,
    /// The single `call runtime.memmove` in `Read`, which copies plaintext to the caller's buffer.
    MemmoveCall,
    /// A return instruction.
    Return,
}

/// The instruction and the reason for it, in words.
impl fmt::Display for SiteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PushFramePointer => {
                "push of the frame pointer behind the stack check: emulated by the kernel, runs \
                 once a call"
            }
            Self::StackCheckJump => {
                "the stack check's own jump: emulated by the kernel; hits that lead to \
                 runtime.morestack are ignored"
            }
            Self::FirstInstruction => "first instruction: the function has no stack check",
            Self::MemmoveCall => {
                "the one call of runtime.memmove, which copies plaintext to the caller: emulated by \
                 the kernel, runs only with data"
            }
            Self::Return => "return: results and the caller's argument slots are at hand",
        })
    }
}

/// One instruction to probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    /// Its address as linked.
    pub vaddr: Vaddr,
    /// Where that is in the file: what the kernel wants to know.
    pub offset: FileOffset,
    /// Why this one.
    pub kind: SiteKind,
}

/// Where a value is at the moment a site is hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Location {
    /// In the n-th integer argument register of Go's register ABI: amd64 AX, BX, CX, DI, SI, R8,
    /// R9, R10, R11; arm64 X0 to X15.
    ArgumentRegister(u8),
    /// In memory, this many bytes above the stack pointer as it is at the site.
    Stack(u32),
}

impl Location {
    /// The place as assembly of this machine writes it: `%rax`, `0x70(%rsp)`; `x0`, `[sp, #112]`.
    pub fn assembly(self, arch: Arch) -> String {
        const AMD64: [&str; 9] = [
            "%rax", "%rbx", "%rcx", "%rdi", "%rsi", "%r8", "%r9", "%r10", "%r11",
        ];
        match (self, arch) {
            (Self::ArgumentRegister(n), Arch::Amd64) => AMD64
                .get(usize::from(n))
                .copied()
                .unwrap_or("%?")
                .to_owned(),
            (Self::ArgumentRegister(n), Arch::Arm64) => format!("x{n}"),
            (Self::Stack(offset), Arch::Amd64) => format!("{offset:#x}(%rsp)"),
            (Self::Stack(offset), Arch::Arm64) => format!("[sp, #{offset}]"),
        }
    }
}

/// A value that a probe needs, by its Go name: `c`, `typ`, `data.ptr`, `data.len`, …
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Argument {
    /// Its name in the Go source; parts of a slice or string have `.ptr` and `.len` behind it.
    pub name: &'static str,
    /// Where it is.
    pub location: Location,
}

/// A probe that runs once per call, with the call's arguments at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryProbe {
    /// The instruction.
    pub site: Site,
    /// All arguments' words that we use, in the order of the signature. For
    /// [`Function::WriteKeyLog`] the label is missing before Go 1.12, when it was always
    /// `CLIENT_RANDOM`, and the last argument is called `secret` in every version. `typ` and
    /// `version` are a byte and two bytes wide: mask what is read.
    pub arguments: Vec<Argument>,
}

/// How plaintext is taken from `(*Conn).Read`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadProbe {
    /// At the one call of `runtime.memmove`.
    Copy {
        /// The call instruction.
        site: Site,
        /// Where the receiver `c` was spilled to; always on the stack.
        receiver: Location,
        /// First byte of the plaintext.
        source: Location,
        /// Its length in bytes.
        length: Location,
    },
    /// At every return.
    Returns {
        /// The return instructions.
        sites: Vec<Site>,
        /// The receiver `c`, in the caller's frame.
        receiver: Location,
        /// First byte of the caller's buffer `b`.
        buffer: Location,
        /// The length of `b`, an upper bound of what was read.
        capacity: Location,
        /// The result `n`, bytes read.
        count: Location,
        /// Why the copy could not be used, in words.
        because: String,
    },
}

impl ReadProbe {
    /// Every instruction that is to be probed.
    pub fn sites(&self) -> &[Site] {
        match self {
            Self::Copy { site, .. } => std::slice::from_ref(site),
            Self::Returns { sites, .. } => sites,
        }
    }
}

/// Which of the two ways to read is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadSitePreference {
    /// The copy where the binary has it, else the returns.
    #[default]
    Auto,
    /// The copy, or nothing.
    Copy,
    /// The returns, even where the copy would do.
    Returns,
}

/// All that capturing plaintext needs to know of one executable.
#[derive(Clone, Debug)]
pub struct ProbePlan {
    /// The import path of the package, `crypto/tls` or a copy's. From an untrusted file: escape before
    /// printing.
    pub package: String,
    /// The machine it runs on.
    pub arch: Arch,
    /// How arguments are passed.
    pub abi: Abi,
    /// Which Go built it.
    pub go_version: GoVersion,
    /// `(*Conn).writeRecordLocked`.
    pub write: EntryProbe,
    /// `(*Conn).Read`.
    pub read: ReadProbe,
    /// `(*Conn).Close`, or why it can't be probed.
    pub close: Result<EntryProbe, Error>,
    /// Where a connection's addresses and what the handshake agreed on are, or why that isn't known.
    pub connections: Result<ConnectionPlan, Error>,
    /// The offset of `goid` in `runtime.g`, in bytes, if it is known.
    pub goroutine_id: Option<u32>,
}

/// All that capturing keys needs to know of one executable. At least one of the probes is there.
#[derive(Clone, Debug)]
pub struct KeyPlan {
    /// The import path of the package, as in a [`ProbePlan`].
    pub package: String,
    /// The machine it runs on.
    pub arch: Arch,
    /// How arguments are passed.
    pub abi: Abi,
    /// `(*Config).writeKeyLog`, or why it can't be probed: the keys of TLS 1.3 and QUIC, and those
    /// of full handshakes before TLS 1.3.
    pub key_log: Result<EntryProbe, Error>,
    /// `keysFromMasterSecret`, or why it can't be probed: all keys before TLS 1.3, those of resumed
    /// sessions among them.
    pub master_secret: Result<EntryProbe, Error>,
}

/// What can be probed of an executable's TLS packages, and why the rest can't.
#[derive(Clone, Debug)]
pub struct Plans<P> {
    /// One for each package; at least one.
    pub plans: Vec<P>,
    /// Of packages that can't be probed.
    pub refusals: Vec<Error>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_as_assembly() {
        assert_eq!(Location::ArgumentRegister(3).assembly(Arch::Amd64), "%rdi");
        assert_eq!(Location::ArgumentRegister(3).assembly(Arch::Arm64), "x3");
        assert_eq!(Location::ArgumentRegister(200).assembly(Arch::Amd64), "%?");
        assert_eq!(Location::Stack(112).assembly(Arch::Amd64), "0x70(%rsp)");
        assert_eq!(Location::Stack(112).assembly(Arch::Arm64), "[sp, #112]");
    }
}
