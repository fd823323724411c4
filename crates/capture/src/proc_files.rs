//! Files in `/proc/PID`. How long some of them are, the process itself decides, which need not mean well: it may
//! have 65530 mappings and more, and call any part of its memory its environment. So they are neither read as
//! a whole nor to whatever end.
//!
//! Source: proc(5); prctl(2), `PR_SET_MM_MAP`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

/// What is read of `/proc/PID/environ`. The kernel lets no program begin with more than 6 MiB.
pub(crate) const ENVIRONMENT_MAX: u64 = 8 * MIB;

/// What is read of `/proc/PID/maps`: half a million mappings.
pub(crate) const MAPS_MAX: u64 = 64 * MIB;

/// What is read of `/proc/PID/mountinfo`: as many mounts as a mount namespace may have (`fs.mount-max`),
/// unless their paths are long.
pub(crate) const MOUNTS_MAX: u64 = 16 * MIB;

const MIB: u64 = 1024 * 1024;

/// The parts of a file that a byte separates, without it, one after the other; of no more than so many bytes
/// of the file, and none from where reading fails.
pub(crate) fn parts(
    path: impl AsRef<Path>,
    separator: u8,
    bytes_max: u64,
) -> io::Result<impl Iterator<Item = Vec<u8>>> {
    let file = File::open(path)?.take(bytes_max);
    Ok(BufReader::new(file).split(separator).map_while(Result::ok))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_end_is_read_to_the_limit() {
        let zeros: Vec<_> = parts("/dev/zero", b'\n', MIB).unwrap().collect();
        assert_eq!(zeros, [vec![0; MIB as usize]]);
        let mut cut = parts("/proc/self/comm", b'\n', 3).unwrap();
        assert_eq!(cut.next().map(|comm| comm.len()), Some(3));
        assert_eq!(cut.next(), None);
    }
}
