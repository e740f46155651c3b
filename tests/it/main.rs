//! The integration suite: the real binary, real Nix clients, real sockets. One program, so that it links once.
//!
//! | file           | promises about                                                                    |
//! |----------------|-----------------------------------------------------------------------------------|
//! | `store.rs`     | a live Nix store, as real Nix clients see it                                      |
//! | `directory.rs` | a cache directory made by `nix copy --to file://…`                                |
//! | `access.rs`    | who may read and upload: tokens, and how they are made, revoked and read again    |
//! | `browse.rs`   | what people see who look around: a search, a path, what is in it                    |
//! | `range.rs`     | HEAD, ranges, entity tags and their preconditions                                 |
//! | `resume.rs`    | downloads that are cut on the way                                                 |
//! | `encode.rs`    | NARs of a live store that are compressed on their way                             |
//! | `nar_cache.rs` | NARs that are kept encoded, as clients see them                                   |
//! | `nar_cache_faults.rs` | the same when it is killed, and when disks are full, broken or gone        |
//! | `page_cache.rs` | memory, which is left to what is asked for                                       |
//! | `http.rs`      | HTTP/1.1 itself: connections, the small fixed routes                              |
//! | `conformance.rs` | framing and refusals, case by case: a table that the simulated ring is asked as well |
//! | `container.rs` | the image of `deploy/oci` in containers, under the profile beside it                  |
//! | `metrics.rs`   | what `/metrics` says, held against what has happened                              |
//! | `listen.rs`    | sockets, signals, and bad configuration: what an operator meets                   |
//! | `logs.rs`      | what is logged, how, and of whom                                                 |
//! | `reload.rs`    | settings, keys and tokens that are read again while it serves                     |
//! | `restart.rs`   | a new process in the place of the old one, while clients ask                      |
//! | `nix_serve.rs` | the same binary under the name `nix-serve`                                        |
//! | `nixos.rs`    | the flake, the NixOS module and its tests, as far as they go without nixpkgs       |
//! | `gc.rs`        | the garbage collector at work while a path is served                              |
//! | `damage.rs`    | store paths that somebody changed behind Nix's back                               |
//! | `dashboards.rs` | the rules of `deploy/prometheus`, the dashboard of `deploy/grafana`: what they name exists |
//! | `faults.rs`    | a hostile machine: threads that panic, disks that hang, databases that break, and more |
//! | `browser.rs`   | the pages, as a real browser shows them                                           |
//! | `changes.rs`   | a database that is written, locked or replaced while paths are asked for          |
//! | `fleet.rs`     | several nodes behind HAProxy and nginx: kills, upgrades, who gets what             |
//! | `extras.rs`    | listings, logs, debug symbols and realisations of a live store                    |
//! | `cli.rs`       | `demo`, `check`, `key generate`, and what the machine may refuse                  |
//! | `packages.rs`  | manual pages, completions, and the Debian package, from its installation to its purge |
//! | `push.rs`      | uploading with `narwire push`                                                    |
//! | `s6.rs`        | the service directory of `deploy/s6` under s6-svscan                              |
//! | `sandbox.rs`   | what a running server has given up                                                |
//! | `slow.rs`      | clients that stop reading                                                         |
//! | `overload.rs`  | clients that are too many, too slow, or want too much at once                      |
//! | `top.rs`       | `narwire top`, in a pipe and in a terminal                                         |
//! | `upload.rs`    | what is uploaded to a cache directory, and what is refused                         |
//! | `upload_clients.rs` | uploads by real Nix clients                                              |
//! | `upload_faults.rs` | the same when it is killed, and when disks are full or broken              |
//! | `support/`     | the server under test, a raw HTTP client, a cutting proxy, Nix and its stores     |
//!
//! A test states a promise in its name and keeps to five or ten lines; what would make it longer belongs in `support`.
//! Deadlines only end a test that hangs; nothing here measures time. `NARWIRE_TEST_WITHOUT=all` runs the same suite
//! with every optional kernel capability switched off. `tests/run` provides the newer versions of Nix.

#![allow(clippy::unwrap_used)] // a test that cannot go on panics

mod access;
mod browse;
mod browser;
mod changes;
mod cli;
mod conformance;
mod container;
mod damage;
mod dashboards;
mod directory;
mod encode;
mod extras;
mod faults;
mod fleet;
mod gc;
mod http;
mod listen;
mod logs;
mod metrics;
mod nar_cache;
mod nar_cache_faults;
mod nix_serve;
mod nixos;
mod overload;
mod packages;
mod page_cache;
mod push;
mod range;
mod reload;
mod restart;
mod resume;
mod s6;
mod sandbox;
mod slow;
mod store;
mod support;
mod top;
mod upload;
mod upload_clients;
mod upload_faults;
