//! The consumer's side of a BPF ring buffer (Linux: Documentation/bpf/ringbuf.rst and
//! kernel/bpf/ringbuf.c).
//!
//! The map is mapped as one page with the consumer's position (writable), one page with the
//! producers' position, and the data pages twice in a row, so that a record is contiguous even where
//! it wraps around. Each record has a header of 8 bytes, whose first word is its length with two
//! flags: "busy" until it is committed, "discard" if the producer thought better of it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

/// include/uapi/linux/bpf.h: BPF_RINGBUF_BUSY_BIT, BPF_RINGBUF_DISCARD_BIT, BPF_RINGBUF_HDR_SZ
const BUSY: u32 = 1 << 31;
const DISCARD: u32 = 1 << 30;
const HEADER: u64 = 8;

/// The reading end of a ring buffer. There must be only one for each.
#[derive(Debug)]
pub(crate) struct Ring {
    consumer: MmapRaw,
    producer: MmapRaw,
    page: usize,
    size: u64,
}

impl Ring {
    /// Maps the ring buffer of `size` bytes behind a map's descriptor.
    pub(crate) fn map(map: BorrowedFd<'_>, size: u64) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let data = usize::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
        let consumer = MmapOptions::new().len(page).map_raw(map.as_raw_fd())?;
        let producer = MmapOptions::new()
            .offset(page as u64)
            .len(page + 2 * data)
            .map_raw_read_only(map.as_raw_fd())?;
        Ok(Self {
            consumer,
            producer,
            page,
            size,
        })
    }

    /// Hands up to `limit` records to `each`, in the order in which they were reserved, and returns
    /// how many there were. A record's room is free for others soon after `each` has returned.
    ///
    /// Both positions are used by all processors that produce, and each access from here takes the
    /// cache line away from them. So both are touched as seldom as possible: the producers' when
    /// everything known was read, ours when there is as much to free as [`Self::freed_at_once`] says.
    pub(crate) fn drain(&mut self, limit: usize, mut each: impl FnMut(&[u8])) -> usize {
        let mut records = 0;
        let mut position = self.consumer_position().load(Ordering::Relaxed);
        let (mut freed, mut end) = (position, position);
        while records < limit {
            if position >= end {
                end = self.producer_position().load(Ordering::Acquire);
                if position >= end {
                    break;
                }
            }
            let length = self.length_word(position).load(Ordering::Acquire);
            if length & BUSY != 0 {
                break; // Still being written; what follows it has to wait, to stay in order.
            }
            let bytes = length & !DISCARD;
            if length & DISCARD == 0 {
                each(self.payload(position, bytes));
                records += 1;
            }
            position += (u64::from(bytes) + HEADER).next_multiple_of(8);
            if position - freed >= self.freed_at_once() {
                self.consumer_position().store(position, Ordering::Release);
                freed = position;
            }
        }
        self.consumer_position().store(position, Ordering::Release);
        records
    }

    /// How many bytes may be read before their room is given back.
    fn freed_at_once(&self) -> u64 {
        self.size / 64
    }

    /// Whether a record is there to be read.
    pub(crate) fn has_records(&self) -> bool {
        let position = self.consumer_position().load(Ordering::Relaxed);
        position < self.producer_position().load(Ordering::SeqCst)
            && self.length_word(position).load(Ordering::SeqCst) & BUSY == 0
    }

    fn consumer_position(&self) -> &AtomicU64 {
        // SAFETY: The mapping is one page, page-aligned, and lives as long as `self`; the kernel
        // accesses the position atomically.
        unsafe { AtomicU64::from_ptr(self.consumer.as_mut_ptr().cast()) }
    }

    fn producer_position(&self) -> &AtomicU64 {
        // SAFETY: As above. The page is mapped read-only, and we only load from it, which is
        // a plain load for 64 bits on both architectures.
        unsafe { AtomicU64::from_ptr(self.producer.as_mut_ptr().cast()) }
    }

    fn length_word(&self, position: u64) -> &AtomicU32 {
        let offset = self.page + (position & (self.size - 1)) as usize;
        // SAFETY: `position` is a multiple of 8, and modulo the ring's size (a power of two) it
        // lies within the data pages; the word is only loaded from.
        unsafe { AtomicU32::from_ptr(self.producer.as_mut_ptr().add(offset).cast()) }
    }

    fn payload(&self, position: u64, length: u32) -> &[u8] {
        let offset = (position & (self.size - 1)) + HEADER;
        // The kernel does not make records larger than the ring; the minimum keeps the slice inside
        // the mapping whatever the word says.
        let length = u64::from(length).min(2 * self.size - offset);
        // SAFETY: The range lies within the doubly mapped data pages. The record is committed, so
        // no producer writes to it before the consumer's position has moved past it, which `drain`
        // does only after the borrow has ended.
        unsafe {
            std::slice::from_raw_parts(
                self.producer.as_ptr().add(self.page + offset as usize),
                length as usize,
            )
        }
    }
}
