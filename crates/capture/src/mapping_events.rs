//! Word of files that processes map executable, such as shared libraries that they load.
//!
//! Source: perf_event_open(2), `PERF_RECORD_MMAP2`. The kernel tells of them as of the address space of
//! programs that are profiled; nothing is counted or sampled.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use libbpf_rs::libbpf_sys::{self, perf_event_attr, perf_event_mmap_page};
use memmap2::{MmapOptions, MmapRaw};
use rustix::event::epoll;

/// Tells a file apart without looking at it: device (major, minor), inode and its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MappedFileId(u32, u32, u64, u64);

/// A process has mapped a file executable.
#[derive(Clone, Debug)]
pub struct MappingEvent {
    /// The process, in our pid namespace.
    pub pid: u32,
    /// The file.
    pub file: MappedFileId,
    /// Its path as the process has it.
    pub(crate) path: PathBuf,
    /// Its inode number, on whatever device.
    pub inode: u64,
}

/// Tells of all processes; gone when this is dropped.
#[derive(Debug)]
pub struct MappingEvents {
    processors: Vec<Processor>,
    /// Readable when one of the rings is.
    ready: OwnedFd,
    is_patient: bool,
}

/// Two rings, one of which is written to: a ring's watermark can't be changed, and each wake-up costs the
/// process that maps a file an interrupt.
#[derive(Debug)]
struct Processor {
    /// Wakes up for each file.
    at_once: Ring,
    /// Wakes up when it is half full.
    patient: Ring,
}

/// For about 250 files on each processor: a program that starts maps a handful.
const RING_PAGES: usize = 8;

/// A record is no larger, with a path of 4 KiB and a word of what was lost.
const RECORD_MAX: usize = 4096 + 256;

// <linux/perf_event.h>, `_IO('$', 0)` and `_IO('$', 1)`.
const PERF_EVENT_IOC_ENABLE: libc::Ioctl = 0x2400;
const PERF_EVENT_IOC_DISABLE: libc::Ioctl = 0x2401;

impl MappingEvents {
    /// Begins to watch.
    pub fn watch() -> io::Result<Self> {
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut processors = Vec::new();
        for number in 0..libbpf_rs::num_possible_cpus().map_err(io::Error::other)? {
            match Processor::open(number) {
                Ok(processor) => {
                    for ring in processor.rings() {
                        let data = epoll::EventData::new_u64(0);
                        epoll::add(&ready, &ring.event, data, epoll::EventFlags::IN)?;
                    }
                    processors.push(processor);
                }
                // It is offline.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            processors,
            ready,
            is_patient: false,
        })
    }

    /// Whether to be readable only when there is a lot to drain, for who drains it from time to time: that
    /// spares the processes that map files. As it begins, this is readable as soon as there is anything.
    pub fn set_patient(&mut self, is_patient: bool) -> io::Result<()> {
        if is_patient == self.is_patient {
            return Ok(());
        }
        for Processor { at_once, patient } in &self.processors {
            let (next, last) = match is_patient {
                true => (patient, at_once),
                false => (at_once, patient),
            };
            // In between, what happens is told twice.
            next.control(PERF_EVENT_IOC_ENABLE)?;
            last.control(PERF_EVENT_IOC_DISABLE)?;
        }
        self.is_patient = is_patient;
        Ok(())
    }

    /// Hands on what was heard of since the last call. Whether there may have been more than room for it:
    /// then look at all processes.
    pub fn drain(&mut self, mut each: impl FnMut(&MappingEvent)) -> bool {
        let mut lost = false;
        for ring in self.processors.iter().flat_map(Processor::rings) {
            let was_full = ring.drain(|kind, record| match kind {
                libbpf_sys::PERF_RECORD_MMAP2 => {
                    if let Some(event) = parse(record) {
                        each(&event);
                    }
                }
                libbpf_sys::PERF_RECORD_LOST => lost = true,
                _ => {}
            });
            lost |= was_full;
        }
        lost
    }
}

impl AsFd for MappingEvents {
    /// Readable when there is something to drain.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

impl Processor {
    fn open(number: usize) -> io::Result<Self> {
        let half = (RING_PAGES * rustix::param::page_size() / 2) as u32;
        let processor = Self {
            at_once: Ring::open(number, 1)?,
            patient: Ring::open(number, half)?,
        };
        processor.at_once.control(PERF_EVENT_IOC_ENABLE)?;
        Ok(processor)
    }

    fn rings(&self) -> [&Ring; 2] {
        [&self.at_once, &self.patient]
    }
}

/// What one processor tells of while it is enabled.
#[derive(Debug)]
struct Ring {
    // Unmapped before it is closed.
    map: MmapRaw,
    event: File,
    data_bytes: usize,
}

impl Ring {
    /// Disabled. Wakes up when there are so many bytes.
    fn open(processor: usize, watermark: u32) -> io::Result<Self> {
        let mut attributes = perf_event_attr {
            type_: libbpf_sys::PERF_TYPE_SOFTWARE,
            size: size_of::<perf_event_attr>() as u32,
            config: libbpf_sys::PERF_COUNT_SW_DUMMY.into(),
            ..Default::default()
        };
        attributes.set_mmap(1);
        attributes.set_mmap2(1);
        attributes.set_exclude_kernel(1);
        attributes.set_disabled(1);
        attributes.set_watermark(1);
        attributes.__bindgen_anon_2.wakeup_watermark = watermark;
        const CLOEXEC: libc::c_ulong = 8; // PERF_FLAG_FD_CLOEXEC
        // SAFETY: The attributes have the size that they say, and live until the call returns.
        let descriptor = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                -1 as libc::pid_t,
                processor as libc::c_int,
                -1 as libc::c_int,
                CLOEXEC,
            )
        };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: A new descriptor, which nobody else has; descriptors are ints.
        let event = File::from(unsafe { OwnedFd::from_raw_fd(descriptor as i32) });
        let page = rustix::param::page_size();
        let map = MmapOptions::new()
            .len((1 + RING_PAGES) * page)
            .map_raw(&event)?;
        Ok(Self {
            map,
            event,
            data_bytes: RING_PAGES * page,
        })
    }

    fn control(&self, request: libc::Ioctl) -> io::Result<()> {
        // SAFETY: The requests that are made of perf events here take no argument but flags.
        match unsafe { libc::ioctl(self.event.as_raw_fd(), request, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Hands kind and body of each record on, and gives its room back. Whether the next record may have found
    /// no room before: the kernel tells of those lost only in front of the next one that finds some, and
    /// there need not be any.
    fn drain(&self, mut each: impl FnMut(libbpf_sys::perf_event_type, &[u8])) -> bool {
        let control = self.map.as_mut_ptr().cast::<perf_event_mmap_page>();
        // SAFETY: The first page of the mapping, which is as large, and these fields of it are aligned,
        // and changed by the kernel and here, atomically.
        let (head, tail) = unsafe {
            (
                AtomicU64::from_ptr(&raw mut (*control).data_head),
                AtomicU64::from_ptr(&raw mut (*control).data_tail),
            )
        };
        let end = head.load(Ordering::Acquire);
        let begin = tail.load(Ordering::Relaxed);
        let mut at = begin;
        while at < end {
            // struct perf_event_header: u32 type, u16 misc, u16 size.
            let header = self.copy(at, 8);
            let kind = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
            let size = u16::from_ne_bytes([header[6], header[7]]);
            if size < 8 {
                at = end; // Never so.
                break;
            }
            each(kind, &self.copy(at + 8, usize::from(size) - 8));
            at += u64::from(size);
        }
        tail.store(at, Ordering::Release);
        // What has come meanwhile had no more room than we have given back just now.
        fence(Ordering::SeqCst);
        let filled = head.load(Ordering::Acquire).wrapping_sub(begin);
        filled > (self.data_bytes - RECORD_MAX) as u64
    }

    /// Bytes of the ring's data; they may go on at its beginning.
    fn copy(&self, from: u64, length: usize) -> Vec<u8> {
        let page = self.map.len() - self.data_bytes;
        (0..length)
            .map(|offset| {
                // The size is a power of two, so what is beyond the address space's size does not matter.
                let place = (from as usize).wrapping_add(offset) & (self.data_bytes - 1);
                // SAFETY: Within the mapping, behind its first page. The kernel does not write there before
                // the tail has moved on.
                unsafe { self.map.as_ptr().add(page + place).read() }
            })
            .collect()
    }
}

/// The body of a `PERF_RECORD_MMAP2`: u32 pid, tid, u64 addr, len, pgoff, u32 maj, min, u64 ino,
/// ino_generation, u32 prot, flags, char filename[].
fn parse(record: &[u8]) -> Option<MappingEvent> {
    let u32_at = |at: usize| Some(u32::from_ne_bytes(*record.get(at..)?.first_chunk()?));
    let u64_at = |at: usize| Some(u64::from_ne_bytes(*record.get(at..)?.first_chunk()?));
    let path = record.get(64..)?.split(|&byte| byte == 0).next()?;
    let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
    let inode = u64_at(40)?;
    // Anonymous memory has names too, such as //anon and [vdso].
    let is_file = path.starts_with(b"/") && !path.starts_with(b"//") && inode != 0;
    is_file.then_some(())?;
    Some(MappingEvent {
        pid: u32_at(0)?,
        file: MappedFileId(u32_at(32)?, u32_at(36)?, inode, u64_at(48)?),
        path: PathBuf::from(OsStr::from_bytes(path)),
        inode,
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    #[test]
    #[ignore = "needs root: run `cargo xtask test`"]
    fn libraries_of_a_process_that_starts_are_told_of() {
        let mut events = MappingEvents::watch().unwrap();
        for is_patient in [false, true, true, false] {
            events.set_patient(is_patient).unwrap();
            let mut child = Command::new("true").spawn().unwrap();
            let deadline = Instant::now() + Duration::from_secs(60);
            let mut found = false;
            while !found && Instant::now() < deadline {
                events.drain(|event| {
                    let is_libc = event.path.to_string_lossy().contains("/libc");
                    found |= event.pid == child.id() && is_libc;
                });
                std::thread::yield_now();
            }
            child.wait().unwrap();
            assert!(found, "patient: {is_patient}");
        }
    }

    #[test]
    #[ignore = "needs root: run `cargo xtask test`"]
    fn who_is_patient_is_woken_by_many_files_and_not_by_few() {
        let mut events = MappingEvents::watch().unwrap();
        events.set_patient(true).unwrap();
        // The first ones don't fill half a ring, unless others start many programs as well.
        let started = 60;
        let mut heard_at_once = 0;
        for _ in 0..started {
            Command::new("true").status().unwrap();
            let now = Timespec::default();
            heard_at_once += poll(&mut [PollFd::new(&events, PollFlags::IN)], Some(&now)).unwrap();
        }
        let mut files = 0;
        events.drain(|_| files += 1);
        assert!(files >= started, "{files}");
        assert!(heard_at_once < started, "{heard_at_once} of {started}");
    }

    #[test]
    #[ignore = "needs root: run `cargo xtask test`"]
    fn a_loss_is_told_of_though_nothing_is_mapped_after_it() {
        let program = File::open("/proc/self/exe").unwrap();
        let mut events = MappingEvents::watch().unwrap();
        // More than the rings of all processors have room for.
        for _ in 0..1000 * events.processors.len() {
            // SAFETY: Nobody looks at the memory.
            drop(unsafe { MmapOptions::new().len(1).map_exec(&program) }.unwrap());
        }
        // So what is mapped from now on does not come into those rings.
        events.set_patient(true).unwrap();
        assert!(events.drain(|_| {}));
    }

    #[test]
    fn memory_of_no_file_is_left_out() {
        let record = |path: &str| {
            let mut record = vec![0; 64];
            record[0] = 7;
            record[40] = 9;
            record.extend(path.as_bytes());
            record.extend([0; 8]);
            record
        };
        let event = parse(&record("/lib/libc.so (deleted)")).unwrap();
        assert_eq!((event.pid, event.inode), (7, 9));
        assert_eq!(event.path, PathBuf::from("/lib/libc.so"));
        assert!(parse(&record("//anon")).is_none());
        assert!(parse(&record("[vdso]")).is_none());
        assert!(parse(&record("/x")[..60]).is_none());
    }
}
