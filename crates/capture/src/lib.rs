//! All contact with the kernel.
