//! gRPC over HTTP/2, and gRPC-Web: what a call is, and the messages in its bodies
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>, PROTOCOL-WEB.md).

use crate::body::Body;
use crate::budget::Budget;
use crate::event::{Cause, Field, RequestHead};
use crate::exchange::field_value;

/// Flags of a message (the first byte of its prefix).
const COMPRESSED: u8 = 0x01;
const WEB_TRAILERS: u8 = 0x80;

/// Bytes that are kept of what a status says in words.
const MESSAGE_MAX: usize = 4096;

/// A call of a method.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grpc {
    /// Package and service, from the path; empty if that is not known.
    pub service: Vec<u8>,
    /// Method, from the path; empty if that is not known.
    pub method: Vec<u8>,
    /// `grpc-status`; `None` until it comes, or if it never does.
    pub status: Option<u32>,
    /// `grpc-message`, percent-decoded.
    pub message: Option<Vec<u8>>,
}

impl Grpc {
    /// The call that a request makes.
    pub(crate) fn of(request: Option<&RequestHead>) -> Self {
        let target = request.and_then(|request| request.target.as_deref());
        let path = target.unwrap_or_default();
        let path = path.strip_prefix(b"/").unwrap_or(path);
        let slash = path.iter().rposition(|&byte| byte == b'/');
        let (service, method) = match slash {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&path[..0], path),
        };
        Self {
            service: service.to_vec(),
            method: method.to_vec(),
            status: None,
            message: None,
        }
    }

    /// Takes the outcome from trailers, or from the only head of a response without a body.
    pub(crate) fn outcome(&mut self, fields: &[Field]) {
        let status = field_value(fields, "grpc-status");
        if let Some(status) = status.and_then(|status| str::from_utf8(status).ok()?.parse().ok()) {
            self.status = Some(status);
        }
        if let Some(message) = field_value(fields, "grpc-message") {
            let message = &message[..message.len().min(MESSAGE_MAX)];
            self.message = Some(percent_decoded(message));
        }
    }

    /// The status' name in the specification (`statuscodes.md`).
    pub fn status_name(&self) -> Option<&'static str> {
        const NAMES: [&str; 17] = [
            "OK",
            "CANCELLED",
            "UNKNOWN",
            "INVALID_ARGUMENT",
            "DEADLINE_EXCEEDED",
            "NOT_FOUND",
            "ALREADY_EXISTS",
            "PERMISSION_DENIED",
            "RESOURCE_EXHAUSTED",
            "FAILED_PRECONDITION",
            "ABORTED",
            "OUT_OF_RANGE",
            "UNIMPLEMENTED",
            "INTERNAL",
            "UNAVAILABLE",
            "DATA_LOSS",
            "UNAUTHENTICATED",
        ];
        NAMES.get(usize::try_from(self.status?).ok()?).copied()
    }
}

/// Whether a body of this type holds gRPC messages. gRPC-Web's text variant is base64: not taken apart.
pub(crate) fn is_grpc(content_type: &[u8]) -> bool {
    let starts = |prefix: &[u8]| {
        let start = content_type.get(..prefix.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    starts(b"application/grpc") && !starts(b"application/grpc-web-text")
}

/// Undoes `%41`; what is no such escape stays as it is.
fn percent_decoded(value: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&first, behind)) = rest.split_first() {
        let digit = |at: usize| char::from(*behind.get(at)?).to_digit(16);
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high << 4 | low) as u8);
                rest = &behind[2..];
            }
            _ => {
                decoded.push(first);
                rest = behind;
            }
        }
    }
    decoded
}

/// A message as it was sent.
#[derive(Debug)]
pub(crate) struct Framed {
    pub(crate) compressed: bool,
    /// It holds the trailers of gRPC-Web.
    pub(crate) trailers: bool,
    pub(crate) body: Body,
}

/// Finds the messages in the bytes of one body.
#[derive(Debug)]
pub(crate) struct Deframer {
    prefix: [u8; 5],
    prefix_length: usize,
    /// The message in hand, and how many bytes of it are to come.
    message: Option<(Framed, u32)>,
    broken: bool,
}

impl Deframer {
    pub(crate) fn new() -> Self {
        Self {
            prefix: [0; 5],
            prefix_length: 0,
            message: None,
            broken: false,
        }
    }

    /// Takes the next bytes and hands out the messages that end with them. Says what is wrong with
    /// them, once.
    pub(crate) fn push(
        &mut self,
        mut bytes: &[u8],
        limit: usize,
        budget: &Budget,
        mut sink: impl FnMut(Framed),
    ) -> Result<(), &'static str> {
        while !self.broken {
            if let Some((mut message, left)) = self.message.take() {
                let count = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let (now, behind) = bytes.split_at(count);
                message.body.push(now, limit);
                bytes = behind;
                match left - count as u32 {
                    0 => sink(message),
                    left => {
                        self.message = Some((message, left));
                        break;
                    }
                }
            } else if bytes.is_empty() {
                break;
            } else if self.prefix_length < self.prefix.len() {
                let count = bytes.len().min(self.prefix.len() - self.prefix_length);
                let (now, behind) = bytes.split_at(count);
                self.prefix[self.prefix_length..][..count].copy_from_slice(now);
                self.prefix_length += count;
                bytes = behind;
                if self.prefix_length == self.prefix.len() {
                    self.begin(budget)?;
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, budget: &Budget) -> Result<(), &'static str> {
        let [flags, length @ ..] = self.prefix;
        self.prefix_length = 0;
        if flags & !(COMPRESSED | WEB_TRAILERS) != 0 {
            self.broken = true;
            return Err("flags of a gRPC message");
        }
        let message = Framed {
            compressed: flags & COMPRESSED != 0,
            trailers: flags & WEB_TRAILERS != 0,
            body: Body::new(budget),
        };
        self.message = Some((message, u32::from_be_bytes(length)));
        Ok(())
    }

    /// Is told that the next bytes are missing: where the next message begins is not known any more.
    /// What there is of the one in hand is returned.
    pub(crate) fn skip(&mut self, bytes: u64, cause: Cause) -> Option<Framed> {
        if let Some((message, left)) = &mut self.message
            && bytes < u64::from(*left)
        {
            message.body.skip(bytes, cause);
            *left -= bytes as u32;
            return None;
        }
        self.broken = true;
        self.give_up(cause)
    }

    /// No more bytes come: returns what there is of the message in hand.
    pub(crate) fn end(&mut self) -> Option<Framed> {
        self.give_up(Cause::Lost)
    }

    fn give_up(&mut self, cause: Cause) -> Option<Framed> {
        let (mut message, left) = self.message.take()?;
        message.body.skip(u64::from(left), cause);
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::Missing;

    fn framed(flags: u8, message: &[u8]) -> Vec<u8> {
        let length = (message.len() as u32).to_be_bytes();
        [&[flags], &length[..], message].concat()
    }

    /// Flags and bytes of the messages in these parts of a body.
    fn messages<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<(bool, Vec<u8>)> {
        let (mut deframer, budget) = (Deframer::new(), Budget::new(1 << 20));
        let mut found = Vec::new();
        for part in parts {
            let take = |message: Framed| {
                found.push((message.compressed, message.body.content().to_vec()));
            };
            deframer.push(part, 1 << 16, &budget, take).unwrap();
        }
        assert!(deframer.end().is_none());
        found
    }

    #[test]
    fn messages_are_found_wherever_the_body_is_cut() {
        let all = [framed(0, b"one"), framed(1, b""), framed(0, &[7; 300])].concat();
        let expected = [
            (false, b"one".to_vec()),
            (true, Vec::new()),
            (false, vec![7; 300]),
        ];
        for cut in 0..=all.len() {
            let (before, behind) = all.split_at(cut);
            assert_eq!(messages([before, behind]), expected, "cut at {cut}");
        }
        assert_eq!(messages(all.chunks(1)), expected);
    }

    #[test]
    fn a_gap_within_a_message_keeps_the_next_one() {
        let (mut deframer, budget) = (Deframer::new(), Budget::new(1 << 20));
        let mut found = Vec::new();
        let mut take = |message: Framed| {
            found.push((message.body.content().to_vec(), message.body.missing.bytes))
        };
        let all = [framed(0, &[1; 100]), framed(0, b"two")].concat();
        deframer.push(&all[..25], 1000, &budget, &mut take).unwrap();
        assert!(deframer.skip(10, Cause::Lost).is_none());
        deframer.push(&all[35..], 1000, &budget, &mut take).unwrap();
        assert_eq!(found, [(vec![1; 20], 10), (b"two".to_vec(), 0)]);
    }

    #[test]
    fn a_gap_over_a_messages_end_ends_the_search() {
        let (mut deframer, budget) = (Deframer::new(), Budget::new(1 << 20));
        deframer
            .push(&framed(0, &[1; 100])[..50], 1000, &budget, |_| panic!())
            .unwrap();
        let cut = deframer.skip(60, Cause::LeftOut).unwrap();
        let missing = Missing {
            bytes: 55,
            left_out: 55,
        };
        assert_eq!((cut.body.length, cut.body.missing), (100, missing));
        deframer
            .push(&framed(0, b"never seen"), 1000, &budget, |_| panic!())
            .unwrap();
    }

    #[test]
    fn lengths_are_not_believed() {
        let (mut deframer, budget) = (Deframer::new(), Budget::new(1 << 20));
        deframer
            .push(b"\0\xff\xff\xff\xffabc", 1000, &budget, |_| panic!())
            .unwrap();
        assert!(budget.used() <= 1000);
        assert_eq!(deframer.end().unwrap().body.content(), b"abc");
        let wrong = Deframer::new().push(b"GET / HTTP/1.1", 1000, &budget, |_| ());
        assert!(wrong.is_err());
    }

    #[test]
    fn methods_and_outcomes_are_read() {
        let request = RequestHead {
            version: crate::Version::Http2,
            method: Some(b"POST".to_vec()),
            scheme: None,
            authority: None,
            target: Some(b"/etcdserverpb.KV/Put".to_vec()),
            fields: Vec::new(),
            unknown_fields: 0,
            wire_length: 0,
        };
        let mut call = Grpc::of(Some(&request));
        assert_eq!(
            (&call.service[..], &call.method[..]),
            (&b"etcdserverpb.KV"[..], &b"Put"[..])
        );
        let field = |name: &str, value: &str| Field {
            name: name.into(),
            value: Some(value.into()),
        };
        call.outcome(&[
            field("grpc-status", "5"),
            field("grpc-message", "no%20such%C3%A9 100%"),
        ]);
        assert_eq!(
            (call.status, call.status_name()),
            (Some(5), Some("NOT_FOUND"))
        );
        assert_eq!(
            call.message.as_deref(),
            Some("no such\u{e9} 100%".as_bytes())
        );
    }

    proptest! {
        #[test]
        fn random_bytes_do_no_harm(parts in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..100), 0..20)
        ) {
            let (mut deframer, budget) = (Deframer::new(), Budget::new(10_000));
            for part in &parts {
                let _ = deframer.push(part, 1000, &budget, |_| ());
                if part.len() % 5 == 0 {
                    deframer.skip(part.len() as u64, Cause::Lost);
                }
            }
            prop_assert!(budget.used() <= 1000);
        }
    }
}
