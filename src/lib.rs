//! narwire: a Nix binary cache that serves at the speed of the network card.
//!
//! Layers, arrows only downward (`tests/tidy.rs` checks them, ARCHITECTURE.md explains them):
//!
//! ```text
//!            main → cli → { server → { background → store, ring }, push → store } → codec
//! ```
//!
//! - [`codec`] is pure: bytes and values in, bytes and values out. No file, socket, clock, ring or log.
//! - [`store`] is state on disk: the Nix database, directory walks, keys. Blocking; its callers choose the thread.
//! - [`ring`] is the kernel: operations, buffers, connections, sending. It knows HTTP framing and no Nix.
//! - [`background`] makes and keeps the NAR cache, behind everything else.
//! - [`server`] is policy: workers, routes, handlers, configuration.
//! - [`push`] uploads what a store has to a cache elsewhere.
//! - [`cli`] is what a person types.
//! - [`limits`] names every bound; all layers may read it.
//! - [`tally`] is numbers that are counted in passing; all layers may count.
//! - [`residency`] is one question to the kernel, asked by more than one layer.

pub mod background;
pub mod cli;
pub mod codec;
#[cfg(test)]
mod corpus;
pub mod limits;
pub mod push;
pub mod residency;
pub mod ring;
pub mod server;
pub mod store;
pub mod tally;
