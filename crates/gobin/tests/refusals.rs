//! What is no Go program that can be probed is refused with the reason.

use std::process::Command;

use gobin::Error;

fn error(bytes: &[u8]) -> Error {
    gobin::analyze(bytes).map(|_| ()).unwrap_err()
}

/// The first bytes of an ELF file with the given class, byte order, type and machine.
fn elf(class: u8, order: u8, kind: u8, machine: u8) -> Vec<u8> {
    let mut bytes = vec![0u8; 120];
    bytes[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, order, 1]);
    bytes[0x10] = kind;
    bytes[0x12] = machine;
    bytes[0x20] = 64;
    bytes[0x36] = 56;
    bytes[0x38] = 1;
    bytes
}

#[test]
fn each_refusal_says_what_was_found_and_what_to_do() {
    let cases: [(&[u8], &str); 8] = [
        (
            b"",
            "not an ELF file but an empty file; give the path of a Linux executable built by Go",
        ),
        (
            b"hello\n",
            "not an ELF file but a text file; give the path of a Linux executable built by Go",
        ),
        (
            &elf(1, 1, 2, 3),
            "an ELF file for a 32-bit machine; only amd64 (x86-64) and arm64 (aarch64) are supported",
        ),
        (
            &elf(2, 2, 2, 62),
            "an ELF file for a big-endian machine; only amd64 (x86-64) and arm64 (aarch64) are supported",
        ),
        (
            &elf(2, 1, 2, 243),
            "an ELF file for RISC-V; only amd64 (x86-64) and arm64 (aarch64) are supported",
        ),
        (
            &elf(2, 1, 1, 62),
            "an object file (.o), not an executable; give the path of the linked program",
        ),
        (
            &elf(2, 1, 4, 62),
            "a core dump, not an executable; give the path of the linked program",
        ),
        (
            &elf(2, 1, 2, 62)[..80],
            "the file is truncated: by its ELF headers it has 120 bytes or more, but there are 80; copy or build it again",
        ),
    ];
    for (bytes, expected) in cases {
        assert_eq!(error(bytes).to_string(), expected);
    }
    assert_eq!(error(&elf(2, 1, 2, 62)), Error::NotGo);
}

#[test]
fn a_c_program_is_not_go() {
    let directory = std::env::temp_dir().join(format!("gobin-refusals-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (source, program) = (directory.join("main.c"), directory.join("main"));
    std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let status = Command::new("cc")
        .arg("-o")
        .arg(&program)
        .arg(&source)
        .status()
        .unwrap();
    assert!(status.success());
    let bytes = std::fs::read(&program).unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    assert_eq!(error(&bytes), Error::NotGo);
}
