//! What the guard and the capture say to each other: frames of one size on a stream socket, with a
//! descriptor beside some of them.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// From the guard: its group is there, or `number` is the error why it is not.
    Ready,
    /// From the guard: process `pid` wants to execute the file beside it, and waits until `number`, a
    /// time of CLOCK_MONOTONIC in ns; 0 if it was not held.
    Starting,
    /// From the guard: the answer to [`Kind::Mark`]; `number` is the error, or 0.
    Marked,
    /// From the guard: the answer to [`Kind::AreYouThere`].
    Here,
    /// To the guard: the one of this `id` may go on.
    Release,
    /// To the guard: the same, and whoever executes that file need not be held until it changes.
    Ignore,
    /// To the guard: hold programs of the filesystem that the file beside it is on.
    Mark,
    /// To the guard.
    AreYouThere,
}

const KINDS: [Kind; 8] = [
    Kind::Ready,
    Kind::Starting,
    Kind::Marked,
    Kind::Here,
    Kind::Release,
    Kind::Ignore,
    Kind::Mark,
    Kind::AreYouThere,
];

/// A message, but for its descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) pid: u32,
    /// Which program that starts: they are numbered from 1.
    pub(super) id: u64,
    pub(super) number: u64,
    /// How many programs that were not held the guard could not tell of by now.
    pub(super) untold: u64,
}

/// Bytes of a message.
const FRAME: usize = 32;

impl Message {
    pub(super) const fn new(kind: Kind) -> Self {
        Self {
            kind,
            pid: 0,
            id: 0,
            number: 0,
            untold: 0,
        }
    }

    /// Sends it without waiting. A frame is so small that it goes as a whole or not at all.
    pub(super) fn send(
        self,
        socket: BorrowedFd<'_>,
        file: Option<BorrowedFd<'_>>,
    ) -> rustix::io::Result<()> {
        let frame = self.to_bytes();
        let files = file.as_slice();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            beside.push(SendAncillaryMessage::ScmRights(files));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(socket, &[IoSlice::new(&frame)], &mut beside, flags)?;
        Ok(())
    }

    /// Takes the next one if there is one already. An error if the other end is gone, or does not keep
    /// to the protocol.
    pub(super) fn receive(
        socket: BorrowedFd<'_>,
    ) -> rustix::io::Result<Option<(Self, Option<OwnedFd>)>> {
        let mut frame = [0; FRAME];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut parts = [IoSliceMut::new(&mut frame)];
        let received = match recvmsg(socket, &mut parts, &mut beside, flags) {
            Ok(received) => received,
            Err(Errno::AGAIN) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let mut file = None;
        for message in beside.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                file = files.last();
            }
        }
        if received.bytes != FRAME {
            return Err(Errno::CONNRESET);
        }
        let message = Self::from_bytes(&frame).ok_or(Errno::PROTO)?;
        Ok(Some((message, file)))
    }

    fn to_bytes(self) -> [u8; FRAME] {
        let mut frame = [0; FRAME];
        let kind = KINDS.iter().position(|&kind| kind == self.kind);
        frame[0] = kind.unwrap_or_default() as u8;
        frame[4..8].copy_from_slice(&self.pid.to_ne_bytes());
        frame[8..16].copy_from_slice(&self.id.to_ne_bytes());
        frame[16..24].copy_from_slice(&self.number.to_ne_bytes());
        frame[24..].copy_from_slice(&self.untold.to_ne_bytes());
        frame
    }

    fn from_bytes(frame: &[u8; FRAME]) -> Option<Self> {
        let number = |offset: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&frame[offset..offset + 8]);
            u64::from_ne_bytes(bytes)
        };
        let mut pid = [0; 4];
        pid.copy_from_slice(&frame[4..8]);
        Some(Self {
            kind: *KINDS.get(usize::from(frame[0]))?,
            pid: u32::from_ne_bytes(pid),
            id: number(8),
            number: number(16),
            untold: number(24),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn messages_arrive_one_by_one_with_their_files() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert_eq!(Message::receive(theirs.as_fd()).unwrap().map(|m| m.0), None);
        let file = File::open("/proc/self/comm").unwrap();
        for (index, kind) in KINDS.into_iter().enumerate() {
            let message = Message {
                pid: u32::MAX,
                id: index as u64,
                number: u64::MAX - 1,
                untold: 1 << 40,
                ..Message::new(kind)
            };
            let beside = (index % 2 == 0).then(|| file.as_fd());
            message.send(ours.as_fd(), beside).unwrap();
        }
        for (index, kind) in KINDS.into_iter().enumerate() {
            let (message, beside) = Message::receive(theirs.as_fd()).unwrap().unwrap();
            assert_eq!((message.kind, message.id), (kind, index as u64));
            assert_eq!((message.pid, message.untold), (u32::MAX, 1 << 40));
            assert_eq!(message.number, u64::MAX - 1);
            assert_eq!(beside.is_some(), index % 2 == 0);
            if index == 0 {
                let mut comm = String::new();
                File::from(beside.unwrap())
                    .read_to_string(&mut comm)
                    .unwrap();
                assert!(!comm.is_empty());
            }
        }
        drop(ours);
        // A program that another test starts just now has a copy until it executes.
        let deadline = Instant::now() + Duration::from_secs(60);
        while Message::receive(theirs.as_fd()).is_ok() {
            assert!(Instant::now() < deadline);
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_full_socket_is_an_error_and_loses_no_half_message() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut sent = 0;
        while Message::new(Kind::Here).send(ours.as_fd(), None).is_ok() {
            sent += 1;
        }
        assert!(sent > 100, "{sent}");
        let mut received = 0;
        while Message::receive(theirs.as_fd()).unwrap().is_some() {
            received += 1;
        }
        assert_eq!(received, sent);
    }
}
