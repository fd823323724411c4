//! Encoded blocks that wait to be written, in memory that is used again: to take it from the system for
//! each packet would cost more than all else.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

/// Where a block is: in which segment, counted from the first ever, and where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    segment: u64,
    range: Range<usize>,
}

impl Stored {
    /// Whether `next` follows without anything between, so that both can be taken as one.
    pub(crate) fn is_followed_by(&self, next: &Self) -> bool {
        self.segment == next.segment && self.range.end == next.range.start
    }

    /// Takes in the block that follows.
    pub(crate) fn extend(&mut self, next: &Self) {
        self.range.end = next.range.end;
    }
}

/// Blocks in the order of their arrival.
#[derive(Debug, Default)]
pub(crate) struct BlockStore {
    /// Those with blocks that wait; the last one is being filled.
    segments: VecDeque<Segment>,
    /// Number of the first one.
    first: u64,
    /// Empty ones, to be used again.
    spare: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Segment {
    bytes: Vec<u8>,
    /// How many of its bytes have been given back.
    released: usize,
}

impl Segment {
    fn room(&self) -> usize {
        self.bytes.capacity() - self.bytes.len()
    }

    fn is_done(&self) -> bool {
        self.released == self.bytes.len()
    }
}

impl BlockStore {
    /// Bytes of a segment. A larger block has one of its own.
    const SEGMENT: usize = 1 << 20;

    /// Takes a block of at most `length` bytes, which `encode` appends.
    pub(crate) fn push(
        &mut self,
        length: usize,
        encode: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<Stored> {
        let mut segment = match self.segments.pop_back() {
            Some(last) if last.room() >= length => last,
            full => {
                self.segments.extend(full);
                let mut bytes = self.spare.pop().unwrap_or_default();
                bytes.reserve_exact(length.max(Self::SEGMENT));
                Segment { bytes, released: 0 }
            }
        };
        let start = segment.bytes.len();
        let result = encode(&mut segment.bytes);
        if result.is_err() {
            segment.bytes.truncate(start);
        }
        let stored = Stored {
            segment: self.first + self.segments.len() as u64,
            range: start..segment.bytes.len(),
        };
        self.segments.push_back(segment);
        result.map(|()| stored)
    }

    /// The bytes of a block, or of several that follow each other.
    pub(crate) fn bytes(&self, block: &Stored) -> &[u8] {
        &self.segments[self.index(block)].bytes[block.range.clone()]
    }

    /// Forgets a block, or several that follow each other.
    pub(crate) fn release(&mut self, block: &Stored) {
        let index = self.index(block);
        self.segments[index].released += block.range.len();
        while self.segments.front().is_some_and(Segment::is_done)
            && let Some(mut done) = self.segments.pop_front()
        {
            self.first += 1;
            done.bytes.clear();
            self.spare.push(done.bytes);
        }
    }

    /// Gives the memory of one segment back if more of them are spare than used: after a rush, little by
    /// little.
    pub(crate) fn trim(&mut self) {
        if self.spare.len() > self.segments.len() {
            self.spare.pop();
        }
    }

    fn index(&self, block: &Stored) -> usize {
        (block.segment - self.first) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(store: &mut BlockStore, byte: u8, length: usize) -> Stored {
        let encode = |out: &mut Vec<u8>| {
            out.resize(out.len() + length, byte);
            Ok(())
        };
        store.push(length, encode).unwrap()
    }

    #[test]
    fn blocks_are_found_until_they_are_released_in_any_order() {
        let mut store = BlockStore::default();
        // Three of them fill a segment.
        let length = BlockStore::SEGMENT / 3;
        let mut blocks: Vec<_> = (0..10).map(|byte| push(&mut store, byte, length)).collect();
        let large = push(&mut store, 10, 2 * BlockStore::SEGMENT);
        blocks.push(large);
        assert_eq!(store.segments.len(), 5);
        for position in [4, 0, 3, 0, 0, 4, 1, 0, 1, 1, 0] {
            for block in &blocks {
                let byte = store.bytes(block)[0];
                assert!(store.bytes(block).iter().all(|&other| other == byte));
            }
            store.release(&blocks.remove(position));
        }
        assert_eq!((store.segments.len(), store.spare.len()), (0, 5));
    }

    #[test]
    fn memory_is_used_again_and_given_back_little_by_little() {
        let mut store = BlockStore::default();
        for _ in 0..100 {
            let [a, b] = [1, 2].map(|byte| push(&mut store, byte, BlockStore::SEGMENT));
            store.release(&a);
            store.release(&b);
        }
        assert_eq!(store.spare.len(), 2);
        store.trim();
        assert_eq!(store.spare.len(), 1);
        store.trim();
        store.trim();
        assert_eq!(store.spare.len(), 0);
    }

    #[test]
    fn neighbours_can_be_taken_as_one() {
        let mut store = BlockStore::default();
        let mut first = push(&mut store, 1, 2);
        let second = push(&mut store, 2, 1);
        let third = push(&mut store, 3, 1);
        assert!(first.is_followed_by(&second) && !first.is_followed_by(&third));
        first.extend(&second);
        assert_eq!(store.bytes(&first), [1, 1, 2]);
        store.release(&first);
        assert_eq!(store.bytes(&third), [3]);
    }

    #[test]
    fn a_block_that_fails_leaves_nothing() {
        let mut store = BlockStore::default();
        let result = store.push(1, |out| {
            out.push(1);
            Err(io::Error::other("too long"))
        });
        assert!(result.is_err());
        let block = push(&mut store, 2, 1);
        assert_eq!(store.bytes(&block), [2]);
    }
}
