//! A fanotify group that is asked before a file is opened to be executed (fanotify(7),
//! `FAN_OPEN_EXEC_PERM`, Linux 5.0).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// include/uapi/linux/fanotify.h, Linux 5.19.
const FAN_MARK_EVICTABLE: u32 = 0x200;

const METADATA: usize = size_of::<libc::fanotify_event_metadata>();

/// A process that waits for an answer, because it wants to execute a file.
#[derive(Debug)]
pub(crate) struct Question {
    /// The process; 0 if it is in no pid namespace that we see.
    pub(crate) pid: u32,
    /// What it wants to execute. Reading it raises no events.
    pub(crate) file: File,
}

/// A group. When it is closed, which is what the end of its process does however it comes, the kernel
/// lets everybody go on who waits for an answer.
#[derive(Debug)]
pub(crate) struct Group(OwnedFd);

impl Group {
    /// A group that is asked about nothing yet. Needs CAP_SYS_ADMIN.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = libc::FAN_CLASS_CONTENT
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_UNLIMITED_QUEUE
            | libc::FAN_UNLIMITED_MARKS;
        let file_flags = libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC;
        // SAFETY: Plain numbers go in, a descriptor comes out.
        let group = unsafe { libc::fanotify_init(flags, file_flags.cast_unsigned()) };
        if group < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: A new descriptor, which nobody else has.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(group) }))
    }

    /// From now on the group is asked about this file, or directory.
    pub(crate) fn ask_about(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.mark(libc::FAN_MARK_ADD, libc::FAN_OPEN_EXEC_PERM, file)
    }

    /// From now on the group is asked about all files of the filesystem that `file` is on.
    pub(crate) fn ask_about_filesystem(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
        self.mark(flags, libc::FAN_OPEN_EXEC_PERM, file)
    }

    /// The group is not asked about this file any more, until it is changed.
    pub(crate) fn ignore(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_IGNORED_MASK;
        let mark = |flags| self.mark(flags, libc::FAN_OPEN_EXEC_PERM, file);
        // Linux 5.19 can forget such a mark with its inode.
        mark(flags | FAN_MARK_EVICTABLE).or_else(|_| mark(flags))
    }

    /// Forgets which files to ignore.
    pub(crate) fn forget_ignored(&self) -> io::Result<()> {
        let file = File::open("/")?;
        // Flushed are marks on files, not those on filesystems.
        self.mark(libc::FAN_MARK_FLUSH, 0, file.as_fd())
    }

    fn mark(&self, flags: u32, mask: u64, file: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: Both descriptors are open. Without a path, the second one is meant.
        let result = unsafe {
            libc::fanotify_mark(
                self.0.as_raw_fd(),
                flags,
                mask,
                file.as_raw_fd(),
                std::ptr::null(),
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Who waits for an answer and was not handed out yet.
    pub(crate) fn questions(&self) -> Vec<Question> {
        let mut buffer = [0; 64 * METADATA];
        let Ok(length) = rustix::io::read(&self.0, &mut buffer) else {
            return Vec::new();
        };
        let mut questions = Vec::new();
        let mut rest = &buffer[..length];
        while rest.len() >= METADATA {
            let field = |offset: usize| {
                let mut bytes = [0; 4];
                bytes.copy_from_slice(&rest[offset..offset + 4]);
                i32::from_ne_bytes(bytes)
            };
            let fd = field(std::mem::offset_of!(libc::fanotify_event_metadata, fd));
            let pid = field(std::mem::offset_of!(libc::fanotify_event_metadata, pid));
            if fd >= 0 {
                questions.push(Question {
                    pid: pid.cast_unsigned(),
                    // SAFETY: A new descriptor, which the kernel made for this event.
                    file: unsafe { File::from_raw_fd(fd) },
                });
            }
            let length = field(0).cast_unsigned() as usize;
            rest = rest.get(length.max(METADATA)..).unwrap_or_default();
        }
        questions
    }

    /// Lets a process go on that waits for an answer about this file.
    pub(crate) fn allow(&self, file: &File) {
        let mut response = [0; size_of::<libc::fanotify_response>()];
        response[..4].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
        response[4..].copy_from_slice(&libc::FAN_ALLOW.to_ne_bytes());
        // If it fails, the process has been killed meanwhile.
        let _ = rustix::io::write(&self.0, &response);
    }
}

impl AsFd for Group {
    /// Readable when somebody waits for an answer.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
