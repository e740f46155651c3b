//! The real server on a machine on which things go wrong, as a user's machine would have them.
//!
//! After each of these: never a wrong byte, never a short body that looks whole, nothing left behind, and the next request is
//! answered right. Crashes between two steps on disk are in `nar_cache_faults.rs` and `upload_faults.rs`.

mod clients;
mod databases;
mod disks;
mod files;
mod injected;
mod panics;
mod stopped;
mod walks;
