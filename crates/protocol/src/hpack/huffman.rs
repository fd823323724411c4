//! HPACK's Huffman code (RFC 7541 section 5.2 and appendix B).

/// Length in bits of every octet's code (RFC 7541 appendix B). The code is canonical: codes of one
/// length are consecutive numbers in the order of the octets, so the lengths are all there is to know.
/// `EOS`, which never occurs in a valid string, is the last code of 30 bits.
#[rustfmt::skip]
const CODE_LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

/// Shortest and longest code, in bits.
const SHORTEST: u32 = 5;
const LONGEST: u32 = 30;

/// The codes, as decoding needs them: the first one of each length, and the octets in their order.
struct Code {
    /// By length: the first code of this length, the first one that is longer (both left-aligned in
    /// 32 bits; a longer code compares as greater or equal), and where its octets begin in `octets`.
    lengths: [(u32, u32, u16); LONGEST as usize + 1],
    octets: [u8; 256],
}

static CODE: Code = Code::new();

impl Code {
    const fn new() -> Self {
        let mut code = Self {
            lengths: [(0, 0, 0); LONGEST as usize + 1],
            octets: [0; 256],
        };
        let mut next: u32 = 0;
        let mut position = 0;
        let mut length = SHORTEST;
        while length <= LONGEST {
            let (first, begins) = (next, position);
            let mut octet = 0;
            while octet < 256 {
                if CODE_LENGTHS[octet] as u32 == length {
                    code.octets[position] = octet as u8;
                    position += 1;
                    next += 1 << (32 - length);
                }
                octet += 1;
            }
            code.lengths[length as usize] = (first, next, begins as u16);
            length += 1;
        }
        code
    }

    /// The octet whose code begins `window`, and the code's length; `None` for `EOS`.
    fn octet(&self, window: u32) -> Option<(u8, u32)> {
        (SHORTEST..=LONGEST).find_map(|length| {
            let (first, end, begins) = self.lengths[length as usize];
            (window < end).then(|| {
                let index = (window - first) >> (32 - length);
                (self.octets[usize::from(begins) + index as usize], length)
            })
        })
    }
}

/// Decodes a whole string. `None` if it is not one: `EOS` in it, or padding that is too long or not all
/// ones.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(bytes.len() * 8 / SHORTEST as usize);
    let mut input = bytes.iter();
    // The next `count` bits are the low ones of `bits`.
    let (mut bits, mut count) = (0u64, 0u32);
    loop {
        while count <= 32 {
            let Some(&byte) = input.next() else { break };
            bits = bits << 8 | u64::from(byte);
            count += 8;
        }
        if count == 0 {
            return Some(text);
        }
        let aligned = bits << (64 - count) | u64::MAX >> count;
        match CODE.octet((aligned >> 32) as u32) {
            Some((octet, length)) if length <= count => {
                text.push(octet);
                count -= length;
            }
            _ => return (count < 8 && aligned == u64::MAX).then_some(text),
        }
    }
}
