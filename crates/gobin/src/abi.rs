//! Machines, and how Go passes arguments on them.
//!
//! Source: `src/cmd/compile/abi-internal.md` of Go 1.24. Registers since Go 1.17 on amd64 and since
//! Go 1.18 on arm64; the stack before.

use crate::GoVersion;

/// The machine an executable is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// aarch64, little-endian.
    Arm64,
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        })
    }
}

/// How arguments and results are passed between Go functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Abi {
    /// In integer registers (ABIInternal).
    Register,
    /// On the stack, from the word above the return address on (ABI0).
    Stack,
}

impl Abi {
    /// What this version of Go uses on this machine.
    pub fn of(version: &GoVersion, arch: Arch) -> Self {
        let registers = match arch {
            Arch::Amd64 => version.at_least(1, 17),
            Arch::Arm64 => version.at_least(1, 18),
        };
        if registers {
            Self::Register
        } else {
            Self::Stack
        }
    }
}

impl std::fmt::Display for Abi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Register => "register",
            Self::Stack => "stack",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_since_1_17_and_1_18() {
        let abi = |text: &str, arch| Abi::of(&text.parse().unwrap(), arch);
        assert_eq!(abi("go1.16.15", Arch::Amd64), Abi::Stack);
        assert_eq!(abi("go1.17", Arch::Amd64), Abi::Register);
        assert_eq!(abi("go1.17.13", Arch::Arm64), Abi::Stack);
        assert_eq!(abi("go1.18rc1", Arch::Arm64), Abi::Register);
        assert_eq!(abi("go1.9", Arch::Amd64), Abi::Stack);
    }
}
