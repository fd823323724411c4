//! Bounded little-endian reads. Every read outside the slice is `None`.

/// `len` bytes from `offset` on.
pub(crate) fn slice_at(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    bytes.get(start..end)
}

fn array_at<const N: usize>(bytes: &[u8], offset: u64) -> Option<[u8; N]> {
    slice_at(bytes, offset, N as u64)?.try_into().ok()
}

/// The little-endian `u32` at `offset`.
pub(crate) fn u32_at(bytes: &[u8], offset: u64) -> Option<u32> {
    array_at(bytes, offset).map(u32::from_le_bytes)
}

/// The little-endian `u64` at `offset`.
pub(crate) fn u64_at(bytes: &[u8], offset: u64) -> Option<u64> {
    array_at(bytes, offset).map(u64::from_le_bytes)
}

/// The bytes before the next NUL, looking no further than `limit` bytes.
pub(crate) fn c_string_at(bytes: &[u8], offset: u64, limit: usize) -> Option<&[u8]> {
    let rest = bytes.get(usize::try_from(offset).ok()?..)?;
    let rest = rest.get(..limit).unwrap_or(rest);
    rest.get(..memchr::memchr(0, rest)?)
}

/// An unsigned varint as Go's `encoding/binary` writes it: its value and what follows it.
pub(crate) fn uvarint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (index, &byte) in bytes.iter().enumerate().take(9) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, bytes.get(index + 1..)?));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stop_at_the_end() {
        let bytes = [1, 0, 0, 0, 2];
        assert_eq!(u32_at(&bytes, 0), Some(1));
        assert_eq!(u32_at(&bytes, 1), Some(0x0200_0000));
        assert_eq!(u32_at(&bytes, 2), None);
        assert_eq!(u32_at(&bytes, u64::MAX), None);
        assert_eq!(slice_at(&bytes, 2, u64::MAX), None);
        assert_eq!(c_string_at(&bytes, 0, 8), Some(&[1][..]));
        assert_eq!(c_string_at(&bytes, 4, 8), None);
    }

    #[test]
    fn varints() {
        assert_eq!(uvarint(&[5, 9]), Some((5, &[9][..])));
        assert_eq!(uvarint(&[0x80, 1]), Some((128, &[][..])));
        assert_eq!(uvarint(&[0xff; 20]), None);
        assert_eq!(uvarint(&[]), None);
    }
}
