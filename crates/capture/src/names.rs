//! Host and service names in a statically linked executable.

/// Has names looked up in `/etc/hosts`, `/etc/services` and the like, and by DNS, and by nothing
/// else, whatever `/etc/nsswitch.conf` says. To be called before the first thread is started.
///
/// Other services are plugins, shared libraries that want the very C library that they were made
/// for. A statically linked executable has its own, which is another one on most machines, so a
/// plugin may crash it. Does nothing where the executable is linked dynamically.
pub fn look_names_up_without_plugins() {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    configure();
}

#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
fn configure() {
    use std::ffi::{c_char, c_int};

    // SAFETY: The declaration is that of glibc's nss.h.
    unsafe extern "C" {
        fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
    }
    for (database, services) in [
        (c"hosts", c"files dns"),
        (c"networks", c"files dns"),
        (c"services", c"files"),
        (c"protocols", c"files"),
        (c"ethers", c"files"),
        (c"passwd", c"files"),
    ] {
        // SAFETY: Both are strings with their NUL, which glibc copies.
        let failed = unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) };
        debug_assert_eq!(failed, 0, "{database:?}");
    }
}
