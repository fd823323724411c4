//! Bodies and messages: what is kept of them, and their content codings undone (RFC 9110 section 8.4).
//!
//! Bytes are kept from the beginning up to a limit or the first gap: what follows a gap in a
//! compressed body means nothing. Decoding stops at the limit too, so that no body, however well it
//! is compressed, takes more memory or time than its limit allows.

use std::io::{self, BufRead, BufReader, Read};

use brotli_decompressor::Decompressor as Brotli;
use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use ruzstd::decoding::StreamingDecoder as ZstdFrame;

use crate::budget::{Budget, Kept};
use crate::event::{Cause, Missing};

/// Codings on top of each other that are undone.
const CODINGS_MAX: usize = 4;

/// The largest window that zstd may ask for as a content coding (RFC 9659).
const ZSTD_WINDOW_MAX: u64 = 8 << 20;

/// What is known of a body, of a message, or of what an upgraded connection carries.
#[derive(Debug)]
pub struct Body {
    /// Bytes that were sent, transfer coding and framing removed: missing ones included.
    pub length: u64,
    /// How many of these were lost, unreadable or not captured.
    pub missing: Missing,
    kept: Kept,
    state: ContentState,
    decoded: bool,
}

/// How much of the content is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentState {
    /// All of it.
    Whole,
    /// The beginning: there was more than the limit, or bytes are missing behind it.
    Cut,
    /// What could be decoded before something that is not this coding.
    Undecodable(Coding),
    /// Still encoded, in a coding that we don't know.
    UnknownCoding,
}

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 1950; or RFC 1951, which some send instead.
    Deflate,
    /// RFC 7932.
    Brotli,
    /// RFC 8878.
    Zstd,
}

impl Coding {
    /// The name in `Content-Encoding`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }

    fn named(name: &[u8]) -> Option<Self> {
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        Some(match () {
            () if is("gzip") || is("x-gzip") => Self::Gzip,
            () if is("deflate") => Self::Deflate,
            () if is("br") => Self::Brotli,
            () if is("zstd") => Self::Zstd,
            () => return None,
        })
    }
}

impl Body {
    pub(crate) fn new(budget: &Budget) -> Self {
        Self {
            length: 0,
            missing: Missing::default(),
            kept: Kept::new(budget),
            state: ContentState::Whole,
            decoded: false,
        }
    }

    /// A message that was decoded elsewhere: `length` bytes on the wire, of which some are missing.
    pub(crate) fn of(
        content: &[u8],
        length: u64,
        missing: Missing,
        limit: usize,
        budget: &Budget,
    ) -> Self {
        let mut body = Self::new(budget);
        body.push(content, limit);
        body.length = length;
        body.missing = missing;
        if missing.bytes > 0 {
            body.cut();
        }
        body
    }

    /// The content: what is kept of it, decoded once the body is complete.
    pub fn content(&self) -> &[u8] {
        &self.kept
    }

    /// How much of the content that is.
    pub fn state(&self) -> ContentState {
        self.state
    }

    /// Whether the content is not what was sent: a content coding was undone.
    pub fn is_decoded(&self) -> bool {
        self.decoded
    }

    /// Takes the next bytes and returns how many of them were kept.
    pub(crate) fn push(&mut self, bytes: &[u8], limit: usize) -> usize {
        self.length = self.length.saturating_add(bytes.len() as u64);
        if self.state != ContentState::Whole {
            return 0;
        }
        let kept = self.kept.push(bytes, limit);
        if kept < bytes.len() {
            self.state = ContentState::Cut;
        }
        kept
    }

    /// Counts bytes that are kept elsewhere.
    pub(crate) fn count(&mut self, bytes: u64) {
        self.length = self.length.saturating_add(bytes);
    }

    /// Is told that the next bytes are missing.
    pub(crate) fn skip(&mut self, bytes: u64, cause: Cause) {
        self.length = self.length.saturating_add(bytes);
        self.missing.add(bytes, cause);
        self.state = ContentState::Cut;
    }

    /// No more will come, and yet it is not complete.
    pub(crate) fn cut(&mut self) {
        if self.state == ContentState::Whole {
            self.state = ContentState::Cut;
        }
    }

    /// Undoes the codings, the last one first.
    pub(crate) fn decode(&mut self, codings: &[u8], limit: usize, budget: &Budget) {
        let Some(codings) = codings_of(codings) else {
            self.state = ContentState::UnknownCoding;
            return;
        };
        if codings.is_empty() || self.kept.is_empty() {
            return;
        }
        let whole = self.state == ContentState::Whole;
        let (content, state) = decode(&self.kept, whole, &codings, limit);
        let length = content.len();
        self.decoded = true;
        self.kept = Kept::of(content, budget);
        self.state = if self.kept.len() < length {
            ContentState::Cut
        } else {
            state
        };
    }
}

/// The codings of a `Content-Encoding` or `grpc-encoding` value in the order of their application;
/// `None` if one of them is unknown or there are too many.
fn codings_of(value: &[u8]) -> Option<Vec<Coding>> {
    let names = value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    let codings: Option<Vec<_>> = names
        .filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity"))
        .take(CODINGS_MAX + 1)
        .map(Coding::named)
        .collect();
    codings.filter(|codings| codings.len() <= CODINGS_MAX)
}

/// Decodes up to `limit` bytes. `whole` says whether all that was encoded is there.
fn decode(
    encoded: &[u8],
    whole: bool,
    codings: &[Coding],
    limit: usize,
) -> (Vec<u8>, ContentState) {
    let mut source: Box<dyn BufRead + '_> = Box::new(encoded);
    for &coding in codings.iter().rev() {
        // Each step has its limit, or else one could keep the next one busy for ever with nothing.
        let step = decoder(coding, source).take(limit as u64 + 1);
        source = Box::new(BufReader::new(step));
    }
    let mut content = Vec::new();
    let result = source.read_to_end(&mut content);
    let state = match (result, codings) {
        _ if content.len() > limit => ContentState::Cut,
        (Ok(_), _) if whole => ContentState::Whole,
        (Err(_), [.., last]) if whole => ContentState::Undecodable(*last),
        _ => ContentState::Cut,
    };
    content.truncate(limit);
    (content, state)
}

fn decoder<'a>(coding: Coding, mut source: Box<dyn BufRead + 'a>) -> Box<dyn Read + 'a> {
    match coding {
        Coding::Gzip => Box::new(MultiGzDecoder::new(source)),
        Coding::Deflate if has_zlib_header(&mut source) => Box::new(ZlibDecoder::new(source)),
        Coding::Deflate => Box::new(DeflateDecoder::new(source)),
        Coding::Brotli if wants_large_window(&mut source) => Box::new(Refused),
        Coding::Brotli => Box::new(Brotli::new(source, 4096)),
        Coding::Zstd => Box::new(Zstd::Between(Some(source))),
    }
}

/// Whether this begins like RFC 1950 says: method 8, and a multiple of 31.
fn has_zlib_header(source: &mut impl BufRead) -> bool {
    matches!(source.fill_buf(), Ok([method, flags, ..])
        if method & 0x0f == 8 && u16::from_be_bytes([*method, *flags]) % 31 == 0)
}

/// Whether this asks for a window of up to 1 GiB, which RFC 7932 (section 9.1) doesn't know.
fn wants_large_window(source: &mut impl BufRead) -> bool {
    matches!(source.fill_buf(), Ok([first, ..]) if first & 0x7f == 0x11)
}

/// What can't be decoded.
struct Refused;

impl Read for Refused {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// Zstandard frames, one after the other.
enum Zstd<R: Read> {
    Between(Option<R>),
    Within(Box<ZstdFrame<R, ruzstd::decoding::FrameDecoder>>),
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            match self {
                Self::Between(source) => {
                    let Some(mut source) = source.take() else {
                        return Err(io::ErrorKind::InvalidData.into());
                    };
                    if source.fill_buf()?.is_empty() {
                        *self = Self::Between(Some(source));
                        return Ok(0);
                    }
                    let frame = ZstdFrame::new_with_max_window_size(source, ZSTD_WINDOW_MAX)
                        .map_err(io::Error::other)?;
                    *self = Self::Within(Box::new(frame));
                }
                Self::Within(frame) => {
                    let count = frame.read(out)?;
                    if count > 0 || out.is_empty() {
                        return Ok(count);
                    }
                    let Self::Within(frame) = std::mem::replace(self, Self::Between(None)) else {
                        return Ok(0);
                    };
                    *self = Self::Between(Some(frame.into_inner()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use proptest::prelude::*;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn raw_deflate(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        ruzstd::encoding::compress_to_vec(bytes, level)
    }

    fn brotli(bytes: &[u8]) -> Vec<u8> {
        let mut encoded = Vec::new();
        brotli::BrotliCompress(&mut { bytes }, &mut encoded, &Default::default()).unwrap();
        encoded
    }

    fn body(bytes: &[u8]) -> (Body, Budget) {
        let budget = Budget::new(1 << 30);
        let mut body = Body::new(&budget);
        body.push(bytes, 1 << 20);
        (body, budget)
    }

    fn decoded(bytes: &[u8], codings: &str, limit: usize) -> (Vec<u8>, ContentState) {
        let (mut body, budget) = body(bytes);
        body.decode(codings.as_bytes(), limit, &budget);
        (body.content().to_vec(), body.state())
    }

    type Encode = fn(&[u8]) -> Vec<u8>;

    const CODERS: [(&str, Encode); 6] = [
        ("gzip", gzip),
        ("deflate", zlib),
        ("deflate", raw_deflate),
        ("br", brotli),
        ("zstd", zstd),
        ("identity", <[u8]>::to_vec),
    ];

    proptest! {
        #[test]
        fn every_stack_of_codings_is_undone(
            plain in proptest::collection::vec(any::<u8>(), 0..5000),
            stack in proptest::collection::vec(0..CODERS.len(), 0..CODINGS_MAX),
        ) {
            let mut encoded = plain.clone();
            let mut names = Vec::new();
            for &coder in &stack {
                let (name, encode) = CODERS[coder];
                encoded = encode(&encoded);
                names.push(name);
            }
            let (found, state) = decoded(&encoded, &names.join(", "), 1 << 20);
            prop_assert_eq!(found, plain);
            prop_assert_eq!(state, ContentState::Whole);
        }

        #[test]
        fn a_cut_body_gives_its_beginning(
            seed in proptest::collection::vec(any::<u8>(), 1..50),
            coder in 0..CODERS.len(),
            cut in 1..100usize,
        ) {
            let plain = seed.repeat(400);
            let encoded = CODERS[coder].1(&plain);
            let (mut body, budget) = body(&encoded[..encoded.len() * cut / 100]);
            body.skip(1, Cause::Lost);
            body.decode(CODERS[coder].0.as_bytes(), 1 << 20, &budget);
            prop_assert!(plain.starts_with(body.content()));
            prop_assert_eq!(body.state(), ContentState::Cut);
        }

        #[test]
        fn nothing_that_is_sent_does_harm(
            bytes in proptest::collection::vec(any::<u8>(), 0..3000),
            coder in 0..CODERS.len(),
        ) {
            let (found, _) = decoded(&bytes, CODERS[coder].0, 10_000);
            prop_assert!(found.len() <= 10_000);
        }

        #[test]
        fn damaged_bodies_do_no_harm(
            seed in proptest::collection::vec(any::<u8>(), 1..200),
            coder in 0..CODERS.len(),
            at in any::<proptest::sample::Index>(),
            value in any::<u8>(),
        ) {
            let mut encoded = CODERS[coder].1(&seed.repeat(20));
            let at = at.index(encoded.len());
            encoded[at] = value;
            let (found, _) = decoded(&encoded, CODERS[coder].0, 10_000);
            prop_assert!(found.len() <= 10_000);
        }
    }

    #[test]
    fn bombs_go_off_within_their_limit() {
        let zeros = vec![0; 64 << 20];
        for (name, encode) in &CODERS[..5] {
            let bomb = encode(&zeros);
            assert!(bomb.len() < 100_000, "{name}: {}", bomb.len());
            let (found, state) = decoded(&bomb, name, 1 << 20);
            assert_eq!((found.len(), state), (1 << 20, ContentState::Cut), "{name}");
        }
        let bomb = gzip(&gzip(&zeros));
        let (found, state) = decoded(&bomb, "gzip, gzip", 1 << 20);
        assert_eq!((found.len(), state), (1 << 20, ContentState::Cut));
    }

    #[test]
    fn a_coding_that_yields_nothing_for_ever_ends() {
        // Stored deflate blocks of no bytes, in a bomb.
        let nothing = [0, 0, 0, 0xff, 0xff].repeat(10 << 20);
        let (found, _) = decoded(&gzip(&nothing), "deflate, gzip", 1 << 20);
        assert!(found.is_empty());
    }

    #[test]
    fn windows_beyond_the_specifications_are_refused() {
        // Brotli's large window extension, window of 2^30; a zstd frame with a window of 2^27.
        for (bytes, coding) in [
            (&b"\x11\x1e\0\0\0\0\0\0"[..], Coding::Brotli),
            (b"\x28\xb5\x2f\xfd\x00\x88\x01\0\0", Coding::Zstd),
        ] {
            let expected = ContentState::Undecodable(coding);
            assert_eq!(decoded(bytes, coding.name(), 1000).1, expected);
        }
    }

    #[test]
    fn what_is_not_the_coding_says_so_with_what_could_be_decoded() {
        let mut damaged = gzip(&b"All is well. ".repeat(5000));
        let end = damaged.len() - 8;
        damaged[end] ^= 1; // The checksum.
        let (found, state) = decoded(&damaged, "gzip", 1 << 20);
        assert_eq!(state, ContentState::Undecodable(Coding::Gzip));
        assert!(found.starts_with(b"All is well. "));

        let (found, state) = decoded(b"plain", "gzip", 1 << 20);
        assert_eq!(
            (&found[..], state),
            (&b""[..], ContentState::Undecodable(Coding::Gzip))
        );
    }

    #[test]
    fn unknown_codings_are_left_alone() {
        for name in ["compress", "gzip, aws-chunked", "gzip,gzip,gzip,gzip,gzip"] {
            let expected = (b"plain".to_vec(), ContentState::UnknownCoding);
            assert_eq!(decoded(b"plain", name, 1000), expected);
        }
    }

    #[test]
    fn frames_of_zstd_follow_each_other() {
        let frames = [zstd(b"one, "), zstd(b"two")].concat();
        assert_eq!(decoded(&frames, "zstd", 1000).0, b"one, two");
    }

    #[test]
    fn lengths_beyond_counting_are_counted_as_far_as_possible() {
        let (mut body, _) = body(b"seen");
        body.skip(u64::MAX, Cause::Lost);
        body.push(b"seen", 1000);
        body.count(1);
        assert_eq!((body.length, body.missing.bytes), (u64::MAX, u64::MAX));
    }

    #[test]
    fn the_body_of_no_bytes_is_whole_in_every_coding() {
        for (name, _) in CODERS {
            assert_eq!(decoded(b"", name, 100), (Vec::new(), ContentState::Whole));
        }
    }
}
