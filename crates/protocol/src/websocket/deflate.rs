//! The permessage-deflate extension (RFC 7692).

use flate2::{Decompress, FlushDecompress, Status};

use crate::event::{Side, Trouble};

/// Bytes to which a message may be decompressed before it is given up.
pub const INFLATED_MAX: usize = 64 << 20;

/// What both sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extension {
    /// Indexed by [`Side::index`]: this side's messages refer to those before.
    context_takeover: [bool; 2],
}

impl Extension {
    /// Reads the response's `Sec-WebSocket-Extensions`. Windows are always as large as they can be,
    /// so the agreed size does not matter.
    pub(super) fn parse(extensions: &[u8]) -> Option<Self> {
        extensions
            .split(|byte| *byte == b',')
            .find_map(|extension| {
                let mut parameters = extension
                    .split(|byte| *byte == b';')
                    .map(<[u8]>::trim_ascii);
                let name = parameters.next()?;
                if !name.eq_ignore_ascii_case(b"permessage-deflate") {
                    return None;
                }
                let mut context_takeover = [true; 2];
                for parameter in parameters {
                    if parameter.eq_ignore_ascii_case(b"client_no_context_takeover") {
                        context_takeover[Side::Client.index()] = false;
                    } else if parameter.eq_ignore_ascii_case(b"server_no_context_takeover") {
                        context_takeover[Side::Server.index()] = false;
                    }
                }
                Some(Self { context_takeover })
            })
    }
}

/// Decompresses what one side sends.
#[derive(Debug)]
pub(super) struct Inflater {
    /// From the first compressed message on.
    decompress: Option<Decompress>,
    context_takeover: bool,
    /// The window is not what the sender's is.
    lost: bool,
    /// Bytes of this message.
    inflated: usize,
    /// The message's last block was seen.
    ended: bool,
}

impl Inflater {
    /// Bytes of memory that decompression takes: the window, codes and an output block.
    const MEMORY: usize = 96 << 10;

    /// Bytes of memory.
    pub(super) fn held(&self) -> usize {
        self.decompress.as_ref().map_or(0, |_| Self::MEMORY)
    }

    pub(super) fn new(side: Side, extension: Extension) -> Self {
        Self {
            decompress: None,
            context_takeover: extension.context_takeover[side.index()],
            lost: false,
            inflated: 0,
            ended: false,
        }
    }

    /// A compressed message begins. Returns whether it can be decompressed.
    pub(super) fn begin(&mut self) -> bool {
        self.inflated = 0;
        if !self.context_takeover {
            if let Some(decompress) = &mut self.decompress {
                decompress.reset(false);
            }
            self.lost = false;
        } else if self.ended {
            // Behind a final block the decompressor forgets its window; the sender need not.
            self.lost = true;
        }
        self.ended = false;
        !self.lost
    }

    /// Some of a message is missing.
    pub(super) fn lose(&mut self) {
        self.lost = true;
    }

    /// Hands the decompressed bytes to `take`.
    pub(super) fn inflate(
        &mut self,
        mut bytes: &[u8],
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Trouble> {
        let mut output = [0; 8192];
        while !self.ended {
            let decompress = self
                .decompress
                .get_or_insert_with(|| Decompress::new(false));
            let (read, written) = (decompress.total_in(), decompress.total_out());
            let status = decompress.decompress(bytes, &mut output, FlushDecompress::Sync);
            let read = usize::try_from(decompress.total_in() - read).unwrap_or(usize::MAX);
            let written = usize::try_from(decompress.total_out() - written).unwrap_or(usize::MAX);
            bytes = bytes.get(read..).unwrap_or_default();
            let plain = output.get(..written).unwrap_or_default();
            let Ok(status) = status else {
                // What stands before the mistake is the same wherever the bytes were cut.
                take(plain);
                self.lost = true;
                return Err(Trouble::Malformed("deflate"));
            };
            self.inflated += written;
            if self.inflated > INFLATED_MAX {
                self.lost = true;
                return Err(Trouble::TooMuch(
                    "bytes of a decompressed message",
                    INFLATED_MAX,
                ));
            }
            take(plain);
            self.ended = status == Status::StreamEnd;
            if bytes.is_empty() && written < output.len() || read == 0 && written == 0 {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read() {
        let of = |value: &str| Extension::parse(value.as_bytes()).map(|e| e.context_takeover);
        assert_eq!(of(""), None);
        assert_eq!(of("x-webkit-deflate-frame"), None);
        assert_eq!(of("permessage-deflate"), Some([true, true]));
        assert_eq!(
            of("foo, Permessage-Deflate; server_no_context_takeover; client_max_window_bits=12"),
            Some([true, false])
        );
        assert_eq!(
            of("permessage-deflate;client_no_context_takeover"),
            Some([false, true])
        );
    }
}
