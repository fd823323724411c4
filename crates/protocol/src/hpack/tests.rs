use proptest::prelude::*;

use super::*;

/// A field as a decoder sees it.
type Seen = (Option<Vec<u8>>, Option<Vec<u8>>);

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<Seen>, Malformed> {
    let mut fields = Vec::new();
    let own = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
    decoder.decode(block, &mut |name, value| {
        fields.push((own(name), own(value)))
    })?;
    Ok(fields)
}

fn known(fields: &[(&str, &str)]) -> Vec<Seen> {
    let own = |text: &str| Some(text.as_bytes().to_vec());
    fields.iter().map(|(n, v)| (own(n), own(v))).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: String = hex.split_whitespace().collect();
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect()
}

#[test]
fn integers_of_rfc_7541_c_1() {
    assert_eq!(Input(&bytes("0a")).integer(5), Ok(10));
    assert_eq!(Input(&bytes("1f 9a 0a")).integer(5), Ok(1337));
    assert_eq!(Input(&bytes("2a")).integer(8), Ok(42));
}

#[test]
fn integers_are_bounded() {
    let most = bytes("1f e0 ff ff ff 0f");
    assert_eq!(Input(&most).integer(5), Ok(u32::MAX as usize));
    assert!(Input(&bytes("1f e1 ff ff ff 0f")).integer(5).is_err());
    assert!(Input(&bytes("1f 80 80 80 80 80 00")).integer(5).is_err());
    assert!(Input(&bytes("1f 80")).integer(5).is_err());
}

#[test]
fn single_fields_of_rfc_7541_c_2() {
    let cases = [
        (
            "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
            ("custom-key", "custom-header"),
            55,
        ),
        (
            "040c 2f73 616d 706c 652f 7061 7468",
            (":path", "/sample/path"),
            0,
        ),
        (
            "1008 7061 7373 776f 7264 0673 6563 7265 74",
            ("password", "secret"),
            0,
        ),
        ("82", (":method", "GET"), 0),
    ];
    for (block, field, size) in cases {
        let mut decoder = Decoder::new();
        assert_eq!(decode(&mut decoder, &bytes(block)), Ok(known(&[field])));
        assert_eq!(decoder.table.size(), size);
    }
}

/// A header block, what it says, and the size of the dynamic table behind it.
type Block<'a> = (&'a str, &'a [(&'a str, &'a str)], usize);

fn check_sequence(max: Option<usize>, steps: [Block<'_>; 3]) {
    let mut decoder = Decoder::new();
    if let Some(max) = max {
        decoder.table.resize(max);
    }
    for (block, fields, size) in steps {
        assert_eq!(decode(&mut decoder, &bytes(block)), Ok(known(fields)));
        assert_eq!(decoder.table.size(), size);
    }
}

const REQUESTS: [&[(&str, &str)]; 3] = [
    &[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "www.example.com"),
    ],
    &[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "www.example.com"),
        ("cache-control", "no-cache"),
    ],
    &[
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/index.html"),
        (":authority", "www.example.com"),
        ("custom-key", "custom-value"),
    ],
];

#[test]
fn requests_of_rfc_7541_c_3() {
    check_sequence(
        None,
        [
            (
                "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                REQUESTS[0],
                57,
            ),
            ("8286 84be 5808 6e6f 2d63 6163 6865", REQUESTS[1], 110),
            (
                "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
                REQUESTS[2],
                164,
            ),
        ],
    );
}

#[test]
fn requests_with_huffman_of_rfc_7541_c_4() {
    check_sequence(
        None,
        [
            (
                "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
                REQUESTS[0],
                57,
            ),
            ("8286 84be 5886 a8eb 1064 9cbf", REQUESTS[1], 110),
            (
                "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
                REQUESTS[2],
                164,
            ),
        ],
    );
}

const RESPONSES: [&[(&str, &str)]; 3] = [
    &[
        (":status", "302"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
        ("location", "https://www.example.com"),
    ],
    &[
        (":status", "307"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
        ("location", "https://www.example.com"),
    ],
    &[
        (":status", "200"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
        ("location", "https://www.example.com"),
        ("content-encoding", "gzip"),
        (
            "set-cookie",
            "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
        ),
    ],
];

#[test]
fn responses_with_eviction_of_rfc_7541_c_5() {
    check_sequence(
        Some(256),
        [
            (
                "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133
                 2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70
                 6c65 2e63 6f6d",
                RESPONSES[0],
                222,
            ),
            ("4803 3330 37c1 c0bf", RESPONSES[1], 222),
            (
                "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d
                 54c0 5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049
                 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e
                 3d31",
                RESPONSES[2],
                215,
            ),
        ],
    );
}

#[test]
fn responses_with_huffman_and_eviction_of_rfc_7541_c_6() {
    check_sequence(
        Some(256),
        [
            (
                "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6
                 2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
                RESPONSES[0],
                222,
            ),
            ("4883 640e ffc1 c0bf", RESPONSES[1], 222),
            (
                "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab
                 77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f
                 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
                RESPONSES[2],
                215,
            ),
        ],
    );
}

#[test]
fn huffman_strings_with_wrong_ends_are_refused() {
    // "a" is 00011, padded by three ones.
    assert_eq!(huffman::decode(&[0b0001_1111]), Some(b"a".to_vec()));
    assert_eq!(huffman::decode(&[0b0001_1000]), None, "padding of zeros");
    assert_eq!(
        huffman::decode(&[0b0001_1111, 0xff]),
        None,
        "padding of a byte"
    );
    assert_eq!(huffman::decode(&[0xff; 4]), None, "EOS");
}

#[test]
fn blocks_that_no_peer_accepts_are_errors_and_leave_nothing_known() {
    let cases = [
        ("80", "index 0"),
        ("be", "an index beyond the table"),
        ("82 20", "a size update behind a field"),
        ("3f e2 1f", "a table of 4097 bytes"),
        ("40 05 61", "a short string"),
        ("ff", "a short integer"),
    ];
    for (block, what) in cases {
        let mut decoder = Decoder::new();
        decode(&mut decoder, &bytes("40 01 61 01 62")).unwrap();
        assert_eq!(decode(&mut decoder, &bytes("be")), Ok(known(&[("a", "b")])));
        let block = if block == "be" { "bf" } else { block };
        assert!(decode(&mut decoder, &bytes(block)).is_err(), "{what}");
        assert_eq!(decode(&mut decoder, &bytes("be")), Ok(vec![(None, None)]));
    }
}

#[test]
fn the_other_side_can_allow_a_larger_table() {
    let mut decoder = Decoder::new();
    decoder.allow(Some(8192));
    assert_eq!(decode(&mut decoder, &bytes("3f e1 3f")), Ok(vec![]));
}

#[test]
fn late_decoder_knows_the_newest_entries_and_no_others() {
    let mut decoder = Decoder::joined();
    let unknown = (None, None);
    assert_eq!(decode(&mut decoder, &bytes("82 be")).unwrap()[1], unknown);
    // A new entry with a name of its own, then one that takes its name from before.
    decode(&mut decoder, &bytes("40 01 61 01 62")).unwrap();
    let fields = decode(&mut decoder, &bytes("7f 00 01 63")).unwrap();
    assert_eq!(fields, [(None, Some(b"c".to_vec()))]);
    let fields = decode(&mut decoder, &bytes("be bf c0")).unwrap();
    assert_eq!(fields[0], (None, Some(b"c".to_vec())));
    assert_eq!(fields[1..2], known(&[("a", "b")])[..]);
    assert_eq!(fields[2], unknown);
}

#[test]
fn late_decoder_knows_all_once_the_table_was_emptied() {
    let mut decoder = Decoder::joined();
    assert_eq!(
        decode(&mut decoder, &bytes("20 3f e1 1f 82")),
        Ok(known(&[(":method", "GET")]))
    );
    assert!(decode(&mut decoder, &bytes("be")).is_err());
}

#[test]
fn table_of_any_size_holds_no_more_than_the_limit() {
    let mut decoder = Decoder::joined();
    decode(&mut decoder, &bytes("3f e1 ff ff 07")).unwrap();
    let mut block = bytes("40 01 61 7f 81 03");
    block.extend([b'x'; 512]);
    for _ in 0..200 {
        decode(&mut decoder, &block).unwrap();
        assert!(decoder.table.size() <= MAX_TABLE);
    }
    let held = decoder.table.len();
    assert_eq!(held, MAX_TABLE / (512 + 1 + 32));
    let last = decode(&mut decoder, &[0xff, (61 + held - 127) as u8]).unwrap();
    assert_eq!(last[0].0.as_deref(), Some(b"a".as_slice()));
    let older = decode(&mut decoder, &[0xff, (62 + held - 127) as u8]).unwrap();
    assert_eq!(older, [(None, None)]);
}

/// What an encoder does next.
#[derive(Clone, Debug)]
enum Act {
    Resize(usize),
    Insert {
        name: usize,
        value: u8,
        length: usize,
    },
    Refer(usize),
    EndOfBlock,
}

/// An encoder with a table of its own.
#[derive(Default)]
struct Encoder {
    table: Vec<(Vec<u8>, Vec<u8>)>,
    max: usize,
}

impl Encoder {
    fn integer(out: &mut Vec<u8>, pattern: u8, prefix: u32, value: usize) {
        let full = (1usize << prefix) - 1;
        if value < full {
            out.push(pattern | value as u8);
            return;
        }
        out.push(pattern | full as u8);
        let mut rest = value - full;
        while rest >= 128 {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
    }

    fn evict(&mut self) {
        let size = |table: &[(Vec<u8>, Vec<u8>)]| -> usize {
            table.iter().map(|(n, v)| n.len() + v.len() + 32).sum()
        };
        while size(&self.table) > self.max {
            self.table.pop();
        }
    }

    /// Adds a step to a block; returns the field that the step stands for.
    fn step(&mut self, step: &Act, out: &mut Vec<u8>) -> Option<(Vec<u8>, Vec<u8>)> {
        match *step {
            Act::Resize(max) => {
                if out.is_empty() {
                    self.max = max;
                    self.evict();
                    Self::integer(out, 0x20, 5, max);
                }
                None
            }
            Act::Insert {
                name,
                value,
                length,
            } => {
                let value = vec![value; length];
                let name = match self.table.len() {
                    count if name < count => {
                        Self::integer(out, 0x40, 6, 62 + name);
                        self.table[name].0.clone()
                    }
                    _ => {
                        let text = format!("name-{name}").into_bytes();
                        out.push(0x40);
                        Self::integer(out, 0, 7, text.len());
                        out.extend(&text);
                        text
                    }
                };
                Self::integer(out, 0, 7, length);
                out.extend(&value);
                self.table.insert(0, (name.clone(), value.clone()));
                self.evict();
                Some((name, value))
            }
            Act::Refer(index) => {
                let count = self.table.len();
                (count > 0).then(|| {
                    Self::integer(out, 0x80, 7, 62 + index % count);
                    self.table[index % count].clone()
                })
            }
            Act::EndOfBlock => None,
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Act>> {
    let step = prop_oneof![
        1 => prop_oneof![Just(0), 30..200usize, 200..4096usize].prop_map(Act::Resize),
        6 => (0..12usize, any::<u8>(), prop_oneof![8 => 0..40usize, 1 => 100..5000usize])
            .prop_map(|(name, value, length)| Act::Insert { name, value, length }),
        8 => (0..100usize).prop_map(Act::Refer),
        4 => Just(Act::EndOfBlock),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    #[test]
    fn from_any_block_on_what_is_known_is_right(steps in steps(), lost in 0..20usize) {
        let mut encoder = Encoder { max: DEFAULT_TABLE, ..Encoder::default() };
        let (mut whole, mut late) = (Decoder::new(), Decoder::joined());
        let mut gap = Decoder::new();
        let (mut block, mut sent, mut number) = (Vec::new(), Vec::new(), 0);
        for step in steps.iter().chain([&Act::EndOfBlock]) {
            if !matches!(step, Act::EndOfBlock) {
                sent.extend(encoder.step(step, &mut block));
                continue;
            }
            let expected: Vec<Seen> =
                sent.drain(..).map(|(name, value)| (Some(name), Some(value))).collect();
            prop_assert_eq!(decode(&mut whole, &block), Ok(expected.clone()));
            if number >= lost {
                let partly = decode(&mut late, &block);
                let partly = partly.map_err(TestCaseError::fail)?;
                prop_assert_eq!(partly.len(), expected.len());
                for (seen, sent) in partly.iter().zip(&expected) {
                    prop_assert!(seen.0.is_none() || seen.0 == sent.0);
                    prop_assert!(seen.1.is_none() || seen.1 == sent.1);
                }
            }
            if number == lost {
                gap.forget();
            } else {
                let partly = decode(&mut gap, &block).map_err(TestCaseError::fail)?;
                for (seen, sent) in partly.iter().zip(&expected) {
                    prop_assert!(seen.0.is_none() || seen.0 == sent.0);
                    prop_assert!(seen.1.is_none() || seen.1 == sent.1);
                }
            }
            block.clear();
            number += 1;
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(blocks in prop::collection::vec(
        prop::collection::vec(any::<u8>(), 0..300), 0..20,
    )) {
        let (mut whole, mut late) = (Decoder::new(), Decoder::joined());
        for block in &blocks {
            let _ = decode(&mut whole, block);
            let _ = decode(&mut late, block);
            prop_assert!(whole.table.size() <= MAX_TABLE && late.table.size() <= MAX_TABLE);
        }
    }
}
