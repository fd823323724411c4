//! Which response answers which request.
//!
//! HTTP/1 pairs by order alone (RFC 9112 section 9.3.2). While both streams are known without a hole
//! since a moment when nothing was outstanding, the order is certain. When heads are missing it is in
//! doubt: requests that were outstanding before are still answered in order, but later requests and
//! responses are reported without their counterpart, until a request begins
//!
//! - while nothing is outstanding and no response is under way, and
//! - exactly one response began since the request before it, so that requests and responses
//!   alternate. (Not asked of the first request of a connection whose beginning was not seen.)
//!
//! That is proof enough for every client but one that pipelines. On a connection that has been seen
//! to pipeline the order, once in doubt, stays in doubt.

use std::collections::VecDeque;

use super::head::Asked;
use crate::event::{StreamId, Trouble};

/// Requests without a response that are remembered.
pub const OUTSTANDING_MAX: usize = 1000;

#[derive(Debug)]
pub(super) struct Pairing {
    /// Requests whose responses come next, in order.
    queue: VecDeque<Outstanding>,
    /// Why the order behind the queue is not certain.
    doubt: Option<Trouble>,
    /// What of the client's stream was not understood, from which offset on, since a request of which
    /// nothing was seen was last answered.
    missed: Option<(u64, Trouble)>,
    /// Why the connection's beginning is not known, until the first request.
    joined: Option<Trouble>,
    /// The same, from the first request until something is answered.
    unproven: Option<Trouble>,
    /// Proven: a request began before the response to its predecessor was complete.
    pipelined: bool,
    /// The client's stream has no hole since the last request began.
    exact: bool,
    /// Final responses that began since the last request did and since the last hole of the server's
    /// stream.
    responses: u64,
    /// Of a response to no known request of which there was only a 1xx.
    interim: Option<StreamId>,
    /// No request began since a part of the only outstanding response was missed.
    rest_missing: bool,
    last: u64,
}

#[derive(Debug)]
struct Outstanding {
    id: StreamId,
    asked: Asked,
}

/// To what a response belongs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) id: StreamId,
    /// What was asked, if that is known.
    pub(super) asked: Option<Asked>,
    /// Why not.
    pub(super) doubt: Option<Trouble>,
    /// Where the request may have been, and why it was not seen.
    pub(super) missed: Option<(u64, Trouble)>,
}

/// A request's place.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) id: StreamId,
    /// Why no response can be paired with it.
    pub(super) doubt: Option<Trouble>,
    /// Requests with which no response can be paired any more, and why.
    pub(super) given_up: Option<(Vec<StreamId>, Trouble)>,
}

impl Pairing {
    /// Bytes of memory.
    pub(super) fn held(&self) -> usize {
        self.queue.capacity() * size_of::<Outstanding>()
    }

    /// Of a connection that is seen from its beginning, or not.
    pub(super) fn new(from_beginning: bool) -> Self {
        Self::behind((!from_beginning).then_some(Trouble::MidStream))
    }

    /// Of a connection of which something is missing before.
    pub(super) fn behind_gap() -> Self {
        Self::behind(Some(Trouble::Unpaired))
    }

    fn behind(doubt: Option<Trouble>) -> Self {
        Self {
            queue: VecDeque::new(),
            doubt: doubt.clone(),
            missed: None,
            joined: doubt,
            unproven: None,
            pipelined: false,
            exact: false,
            responses: 0,
            interim: None,
            rest_missing: false,
            last: 0,
        }
    }

    /// A request begins; `between` says that no response is under way.
    pub(super) fn request(&mut self, asked: Asked, between: bool) -> Asking {
        let id = self.fresh();
        let given_up = self.doubt_before_request();
        if self.doubt.is_some() && self.is_certain_again(between) {
            self.doubt = None;
            self.missed = None;
            self.unproven = self.joined.take();
        }
        self.joined = None;
        self.exact = true;
        self.responses = 0;
        self.rest_missing = false;
        if self.doubt.is_none() {
            self.queue.push_back(Outstanding { id, asked });
        }
        Asking {
            id,
            doubt: self.doubt.clone(),
            given_up,
        }
    }

    /// A response begins, which is the `last` to its request or a 1xx.
    pub(super) fn response(&mut self, last: bool) -> Answer {
        self.responses += u64::from(last);
        if let Some(front) = self.queue.front() {
            return Answer {
                id: front.id,
                asked: Some(front.asked),
                doubt: None,
                missed: None,
            };
        }
        let id = self.interim.take().unwrap_or_else(|| self.fresh());
        if !last {
            self.interim = Some(id);
        }
        // Nobody answers what was not asked: the request was missed, even if that is not known yet.
        Answer {
            id,
            asked: None,
            doubt: Some(self.doubt.get_or_insert(Trouble::Unpaired).clone()),
            missed: self.missed.take(),
        }
    }

    /// A final response is complete.
    pub(super) fn answered(&mut self, id: StreamId) {
        self.unproven = None;
        if self.queue.front().is_some_and(|front| front.id == id) {
            self.queue.pop_front();
            self.pipelined |= !self.queue.is_empty();
        }
    }

    /// Requests may be missing from this offset of the client's stream on.
    pub(super) fn client_lost(&mut self, offset: u64, why: Trouble) {
        self.doubt = Some(Trouble::Unpaired);
        self.exact = false;
        self.joined = None;
        self.missed = Some(match (self.missed.take(), why) {
            (Some((offset, Trouble::Gap { bytes })), Trouble::Gap { bytes: more }) => {
                let bytes = bytes.saturating_add(more);
                (offset, Trouble::Gap { bytes })
            }
            (Some((offset, Trouble::LeftOut { bytes })), Trouble::LeftOut { bytes: more }) => {
                let bytes = bytes.saturating_add(more);
                (offset, Trouble::LeftOut { bytes })
            }
            (_, why) => (offset, why),
        });
    }

    /// Responses may be missing here. Returns the requests that lose theirs.
    pub(super) fn server_lost(&mut self) -> Vec<StreamId> {
        self.responses = 0;
        self.interim = None;
        // With one request outstanding, nothing but its response can be missing.
        let one = self.queue.len() == 1 || self.queue.is_empty() && self.rest_missing;
        if one && self.doubt.is_none() && self.unproven.is_none() {
            self.rest_missing = true;
            return self.take_queue();
        }
        self.give_up(Trouble::Unpaired)
    }

    /// Whether this request still waits for its response.
    pub(super) fn awaits(&self, id: StreamId) -> bool {
        self.queue.iter().any(|request| request.id == id)
    }

    /// How many requests wait for a response.
    pub(super) fn outstanding(&self) -> usize {
        self.queue.len()
    }

    /// The order is in doubt. Returns the requests with which no response can be paired any more.
    pub(super) fn give_up(&mut self, why: Trouble) -> Vec<StreamId> {
        self.doubt = Some(why);
        self.take_queue()
    }

    fn is_certain_again(&self, between: bool) -> bool {
        let alternates = self.exact && self.responses == 1;
        between
            && !self.pipelined
            && self.queue.is_empty()
            && self.interim.is_none()
            && (self.joined.is_some() || alternates)
    }

    fn doubt_before_request(&mut self) -> Option<(Vec<StreamId>, Trouble)> {
        let why = if self.queue.len() >= OUTSTANDING_MAX {
            Trouble::TooMuch("requests without a response", OUTSTANDING_MAX)
        } else if !self.queue.is_empty()
            && let Some(why) = self.unproven.take()
        {
            why
        } else {
            return None;
        };
        self.unproven = None;
        Some((self.give_up(why.clone()), why))
    }

    fn take_queue(&mut self) -> Vec<StreamId> {
        self.queue.drain(..).map(|request| request.id).collect()
    }

    fn fresh(&mut self) -> StreamId {
        self.last += 1;
        StreamId(self.last)
    }
}
