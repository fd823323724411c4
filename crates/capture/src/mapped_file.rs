//! The bytes of a file, by mapping it: of a large executable only a small part is ever touched.
//!
//! Others may truncate the file while we read. The kernel answers an access behind its end, as one that the
//! medium fails to serve, with SIGBUS, which would be the end of us. Here the whole mapping is replaced by
//! zeros instead, and the caller learns that what it found is worth nothing.
//!
//! Source: mmap(2); sigaction(2), `si_code` and `si_addr`; signal-safety(7).

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering, compiler_fence};
use std::sync::{Once, OnceLock};
use std::{io, ptr, slice};

use memmap2::MmapOptions;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// Has `look` look at a file's bytes, in this thread only. `None` if some of them could not be had, so that it
/// saw zeros. They may change while it looks, and are not to be trusted anyhow.
pub(crate) fn with_bytes<T>(file: &File, look: impl FnOnce(&[u8]) -> T) -> io::Result<Option<T>> {
    if file.metadata()?.len() == 0 {
        return Ok(Some(look(&[]))); // The kernel maps no empty files.
    }
    catch_bus_errors();
    // Shared: into private mappings the kernel puts the breakpoints of uprobes (valid_vma in
    // kernel/events/uprobes.c), also where nobody executes them, and we would read these.
    let map = MmapOptions::new().map_raw_read_only(file)?;
    let region = Region {
        start: map.as_mut_ptr().cast(),
        length: map.len().next_multiple_of(rustix::param::page_size()),
        is_lost: AtomicBool::new(false),
        outer: INNERMOST.get(),
    };
    let entered = Entered::new(&region);
    // SAFETY: So many bytes are mapped, readable, until the end of this function: either the file's, or
    // zeros. Nobody writes to them through this process.
    let bytes = unsafe { slice::from_raw_parts(map.as_ptr(), map.len()) };
    let found = look(bytes);
    drop(entered);
    Ok((!region.is_lost.load(Ordering::Relaxed)).then_some(found))
}

/// Memory where accesses may fail.
#[derive(Debug)]
struct Region {
    start: *mut c_void,
    /// Whole pages.
    length: usize,
    /// It has been replaced by zeros.
    is_lost: AtomicBool,
    /// The one that was read when this thread began to read this one.
    outer: *const Region,
}

thread_local! {
    /// What this thread reads. Needs neither to be initialised nor to be dropped, so that a signal handler may
    /// look at it; and as SIGBUS comes to the thread that made the access, no other thread's is ever wanted.
    static INNERMOST: Cell<*const Region> = const { Cell::new(ptr::null()) };
}

/// While this lives, accesses to a region may fail.
struct Entered<'a>(&'a Region);

impl<'a> Entered<'a> {
    fn new(region: &'a Region) -> Self {
        INNERMOST.set(region);
        // No access may come before it, nor behind the end.
        compiler_fence(Ordering::SeqCst);
        Self(region)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        INNERMOST.set(self.0.outer);
    }
}

/// What was done about SIGBUS before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs the handler, once.
fn catch_bus_errors() {
    static INSTALLED: Once = Once::new();

    INSTALLED.call_once(|| {
        // SAFETY: All zeros is a valid value: no flags, an empty mask, SIG_DFL.
        let (mut ours, mut previous) = unsafe { std::mem::zeroed::<[libc::sigaction; 2]>() }.into();
        ours.sa_sigaction = on_bus_error as *const () as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: Both structures are complete and live until the calls return. The handler does what
        // handlers may do only: it reads memory, and makes system calls.
        unsafe {
            // If that fails, it was the default.
            libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut previous);
            // The handler may be called at once.
            let _ = PREVIOUS.set(previous);
            // If that fails, all is as it was before.
            libc::sigaction(libc::SIGBUS, &raw const ours, ptr::null_mut());
        }
    });
}

extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: With SA_SIGINFO the kernel passes a valid structure. It has an address if the kernel itself
    // sent the signal, and something else there otherwise, which we don't look at then.
    let (is_fault, address) = unsafe { ((*info).si_code > 0, (*info).si_addr()) };
    if is_fault && replace_with_zeros(address) {
        return;
    }
    // Not ours. The access is made again, and fails again, with whatever was there before us in place.
    // SAFETY: All zeros is SIG_DFL; the structure lives until the call returns.
    unsafe {
        let default = std::mem::zeroed();
        let previous = PREVIOUS.get().unwrap_or(&default);
        libc::sigaction(signal, previous, ptr::null_mut());
        if !is_fault {
            // Somebody sent it, and will not do so again.
            libc::raise(signal);
        }
    }
}

/// If this thread reads a region there. Only what a signal handler may do.
fn replace_with_zeros(address: *mut c_void) -> bool {
    let mut next = INNERMOST.get();
    // SAFETY: Regions are on the stack of this very thread, and are taken off this list before they end.
    while let Some(region) = unsafe { next.as_ref() } {
        let offset = (address as usize).checked_sub(region.start as usize);
        if offset.is_some_and(|offset| offset < region.length) {
            region.is_lost.store(true, Ordering::Relaxed);
            let flags = MapFlags::PRIVATE | MapFlags::FIXED;
            // SAFETY: These are the whole pages of our own mapping, which nobody else can be using; it stays
            // mapped and readable. With rustix this is the bare system call.
            let zeros =
                unsafe { mmap_anonymous(region.start, region.length, ProtFlags::READ, flags) };
            return zeros.is_ok();
        }
        next = region.outer;
    }
    false
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;
    use crate::own_process::in_own_process;

    const PAGE: u64 = 4096;

    fn file(pages: u64) -> File {
        let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
        let content = vec![7; (pages * PAGE) as usize];
        std::os::unix::fs::FileExt::write_all_at(&file, &content, 0).unwrap();
        file
    }

    #[test]
    fn a_file_that_loses_bytes_while_it_is_read_is_zeros_and_no_end_of_us() {
        let (outer, inner) = (file(3), file(5));
        let seen = with_bytes(&outer, |outer_bytes| {
            let seen = with_bytes(&inner, |bytes| {
                inner.set_len(PAGE + 1).unwrap();
                assert_eq!(bytes[PAGE as usize], 7);
                bytes[4 * PAGE as usize]
            });
            assert_eq!(seen.unwrap(), None);
            let seen = with_bytes(&inner, |bytes| {
                outer.set_len(0).unwrap();
                (bytes[0], outer_bytes[0], bytes.len() as u64)
            });
            assert_eq!(seen.unwrap(), Some((7, 0, PAGE + 1)));
            outer_bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>()
        });
        assert_eq!(seen.unwrap(), None);
        assert_eq!(with_bytes(&outer, <[u8]>::len).unwrap(), Some(0));
        assert!(INNERMOST.get().is_null());
    }

    #[test]
    fn bus_errors_elsewhere_end_the_process() {
        const NAME: &str = "mapped_file::tests::bus_errors_elsewhere_end_the_process";

        if let Some(output) = in_own_process(NAME) {
            assert_eq!(output.status.signal(), Some(libc::SIGBUS));
            return;
        }
        let (ours, other) = (file(1), file(1));
        let map = MmapOptions::new().map_raw_read_only(&other).unwrap();
        other.set_len(0).unwrap();
        let _ = with_bytes(&ours, |bytes| {
            // SAFETY: It is mapped.
            bytes[0] ^ unsafe { map.as_ptr().read_volatile() }
        });
        unreachable!("a byte behind the file's end was read");
    }
}
