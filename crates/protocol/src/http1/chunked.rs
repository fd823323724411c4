//! The chunked transfer coding (RFC 9112 section 7.1), removed as the bytes come.

use super::head::parse_trailers;
use crate::event::{Field, Trouble};

/// Bytes of a line with a chunk's size and extensions.
pub const CHUNK_LINE_MAX: usize = 4096;

/// Bytes of a trailer section.
pub const TRAILERS_MAX: usize = 64 << 10;

/// Where we are in a chunked body.
#[derive(Debug)]
pub(super) struct Chunked(State);

#[derive(Debug)]
enum State {
    Size(SizeLine),
    /// Bytes of the chunk that are still to come.
    Data(u64),
    /// The end of the line behind a chunk.
    DataEnd,
    Trailers(Vec<u8>),
}

#[derive(Debug, Default)]
struct SizeLine {
    size: u64,
    digits: usize,
    /// Bytes of the line so far.
    length: usize,
    /// The digits are over.
    extension: bool,
}

/// What the bytes meant.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step<'a> {
    /// Nothing yet.
    More,
    Data(&'a [u8]),
    /// The body is complete; the trailer fields.
    End(Vec<Field>),
}

impl Chunked {
    /// Bytes of memory.
    pub(super) fn held(&self) -> usize {
        match &self.0 {
            State::Trailers(trailers) => trailers.capacity(),
            _ => 0,
        }
    }

    /// Before the first chunk.
    pub(super) fn new() -> Self {
        Self(State::Size(SizeLine::default()))
    }

    /// Takes some of the bytes, at least one if there are any, and leaves the rest in `input`.
    pub(super) fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Step<'a>, Trouble> {
        if let State::Data(left) = &mut self.0 {
            let (data, rest) = input.split_at(
                usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(input.len()),
            );
            *left -= data.len() as u64;
            *input = rest;
            if *left == 0 {
                self.0 = State::DataEnd;
            }
            return Ok(Step::Data(data));
        }
        while let Some((byte, rest)) = input.split_first() {
            *input = rest;
            if let Some(next) = self.framing(*byte)? {
                match next {
                    Next::State(state) => self.0 = state,
                    Next::End(fields) => return Ok(Step::End(fields)),
                }
                break;
            }
        }
        Ok(Step::More)
    }

    /// Skips missing bytes if they are all of one chunk's data, so that nothing else can be among
    /// them.
    pub(super) fn skip(&mut self, bytes: u64) -> bool {
        match &mut self.0 {
            State::Data(left) if *left >= bytes => {
                *left -= bytes;
                if *left == 0 {
                    self.0 = State::DataEnd;
                }
                true
            }
            _ => false,
        }
    }

    /// Takes a byte that is not data.
    fn framing(&mut self, byte: u8) -> Result<Option<Next>, Trouble> {
        match &mut self.0 {
            State::Size(line) => Ok(line.byte(byte)?.map(Next::State)),
            State::Data(_) => Ok(None),
            State::DataEnd => match byte {
                b'\r' => Ok(None),
                b'\n' => Ok(Some(Next::State(State::Size(SizeLine::default())))),
                _ => Err(Trouble::Malformed("a chunk is longer than its size")),
            },
            State::Trailers(section) => {
                section.push(byte);
                if section.len() > TRAILERS_MAX {
                    return Err(Trouble::TooMuch("bytes of trailers", TRAILERS_MAX));
                }
                if ends_with_empty_line(section) {
                    return parse_trailers(section).map(|fields| Some(Next::End(fields)));
                }
                Ok(None)
            }
        }
    }
}

enum Next {
    State(State),
    End(Vec<Field>),
}

impl SizeLine {
    fn byte(&mut self, byte: u8) -> Result<Option<State>, Trouble> {
        self.length += 1;
        if self.length > CHUNK_LINE_MAX {
            return Err(Trouble::TooMuch("bytes of a chunk's line", CHUNK_LINE_MAX));
        }
        if byte == b'\n' {
            return match (self.digits, self.size) {
                (0, _) => Err(Trouble::Malformed("chunk size")),
                (_, 0) => Ok(Some(State::Trailers(Vec::new()))),
                (_, size) => Ok(Some(State::Data(size))),
            };
        }
        if self.extension {
            return Ok(None);
        }
        match (char::from(byte).to_digit(16), byte) {
            (Some(digit), _) => {
                self.digits += 1;
                if self.size >> 60 != 0 {
                    return Err(Trouble::Malformed("chunk size"));
                }
                self.size = self.size << 4 | u64::from(digit);
            }
            (None, b';' | b' ' | b'\t' | b'\r') if self.digits > 0 => self.extension = true,
            _ => return Err(Trouble::Malformed("chunk size")),
        }
        Ok(None)
    }
}

fn ends_with_empty_line(section: &[u8]) -> bool {
    matches!(section, b"\n" | b"\r\n") || section.ends_with(b"\n\n") || section.ends_with(b"\n\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(mut input: &[u8]) -> Result<(Vec<u8>, Vec<Field>, usize), Trouble> {
        let mut chunked = Chunked::new();
        let mut body = Vec::new();
        while !input.is_empty() {
            match chunked.step(&mut input)? {
                Step::More => {}
                Step::Data(data) => body.extend(data),
                Step::End(fields) => return Ok((body, fields, input.len())),
            }
        }
        Err(Trouble::Malformed("incomplete"))
    }

    #[test]
    fn extensions_and_trailers_are_read() {
        let input =
            b"4;a=b\r\nWiki\r\n6 \r\npedia \r\nE\r\nin \r\n\r\nchunks.\r\n0\r\nA: b\r\n\r\nrest";
        let (body, fields, rest) = decode(input).unwrap();
        assert_eq!(body, b"Wikipedia in \r\n\r\nchunks.");
        assert_eq!(fields.len(), 1);
        assert_eq!(rest, 4);
    }

    #[test]
    fn line_feeds_alone_are_tolerated() {
        assert_eq!(decode(b"1\na\n0\n\n").unwrap().0, b"a");
    }

    #[test]
    fn what_is_no_size_is_malformed() {
        for wrong in [
            &b"\r\n"[..],
            b"x\r\n",
            b";a\r\n",
            b"-1\r\n",
            b"11111111111111111\r\n",
        ] {
            assert_eq!(decode(wrong), Err(Trouble::Malformed("chunk size")));
        }
        assert!(decode(b"1\r\nab\r\n").is_err());
        let endless = [&b"1;"[..], &vec![b'a'; CHUNK_LINE_MAX]].concat();
        assert!(matches!(decode(&endless), Err(Trouble::TooMuch(..))));
        let endless = [&b"0\r\n"[..], &vec![b'a'; TRAILERS_MAX + 1]].concat();
        assert!(matches!(decode(&endless), Err(Trouble::TooMuch(..))));
    }
}
