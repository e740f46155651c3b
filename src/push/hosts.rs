//! How the name of a host becomes addresses: as the C library does it, but for a program that is linked statically.
//!
//! What `/etc/nsswitch.conf` names beside `files` and `dns` is a shared library. A static program would load it, and the C library of the
//! machine with it; unless that is by chance the very version that is in the program, it crashes.

#![allow(unsafe_code)]

/// From now on a static program asks `/etc/hosts` and DNS, and nobody else, whatever the machine's configuration says. To be called before
/// the first name is looked up.
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
pub fn ask_files_and_dns_alone() {
    unsafe extern "C" {
        // nss.h of glibc.
        fn __nss_configure_lookup(
            database: *const std::ffi::c_char,
            services: *const std::ffi::c_char,
        ) -> std::ffi::c_int;
    }
    // SAFETY: both strings end with a zero and live for ever. It fails only for a database that does not exist, and changes nothing then.
    unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
}

/// Another program does as the machine's configuration says.
#[cfg(not(all(target_env = "gnu", target_feature = "crt-static")))]
pub fn ask_files_and_dns_alone() {}
