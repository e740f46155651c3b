//! What makes a test short: the server under test, a raw HTTP client, a cutting proxy, a plain cache to push to, machines on a
//! switch, Nix and its stores.

pub mod browser;
pub mod client;
pub mod container;
pub mod fixture;
pub mod fleet;
pub mod machine;
pub mod nar_cache;
pub mod netns;
pub mod nginx;
pub mod nix;
pub mod nix_upload;
pub mod plain_cache;
pub mod proxy;
pub mod server;
pub mod upload;

pub use browser::Browser;
pub use client::{Connection, Reply};
pub use fixture::fixture;
pub use nix::{Nix, Store};
pub use plain_cache::PlainCache;
pub use proxy::CuttingProxy;
pub use server::Narwire;

use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

/// No step of a test takes this long unless it hangs. What is done in the background takes what all others leave.
pub const PATIENCE: Duration = Duration::from_mins(4);

/// Waits until `reached` says so.
pub fn eventually(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a command to its end and gives what it printed, or panics with all of it.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?} failed:\n{}", printed(&output));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// Runs a command that must fail and gives what it printed.
pub fn run_failing(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(!output.status.success(), "{command:?} did not fail:\n{}", printed(&output));
    printed(&output)
}

/// Both streams of a finished command.
pub fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Fails with the first difference instead of printing megabytes.
#[track_caller]
pub fn assert_same_bytes(found: &[u8], wanted: &[u8], what: &str) {
    if found == wanted {
        return;
    }
    let same = found.iter().zip(wanted).take_while(|(found, wanted)| found == wanted).count();
    panic!("{what}: {} bytes found, {} wanted, the first difference at {same}", found.len(), wanted.len());
}

/// The text of a path that is known to be UTF-8.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A generator with a seed, for places and bytes: xorshift64*, good enough to be surprising and always the same.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Bytes that no compressor makes smaller.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
