//! Sending files of all lengths: sendfile, copying by system calls, copying by a ring, and what narwire makes of them.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use narwire::codec::hash::Sha256;

use crate::any_server::{AnyServer, BareProcess};
use crate::harness::load::{Reading, Until, request, thread_time};
use crate::harness::process::empty_page_cache;
use crate::harness::report::median;
use crate::harness::server::{Kind, Server};
use crate::harness::site::Site;
use crate::harness::trees::noise;
use crate::{Flags, on_core};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const LENS: [u64; 9] =
    [4 * KIB, 16 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, MIB, 16 * MIB, 256 * MIB, 1024 * MIB];
const QUICK_LENS: [u64; 3] = [4 * KIB, 128 * KIB, 16 * MIB];
/// Lengths and numbers of the files that are cold.
const COLD: [(u64, usize); 2] = [(MIB, 64), (256 * MIB, 1)];
const QUICK_COLD: [(u64, usize); 1] = [(MIB, 16)];
/// The bare servers, named as [`crate::bare_server`] knows them.
const BARE: [&str; 5] = ["sendfile", "copy-65536", "copy-262144", "ring-65536", "ring-262144"];
/// The last one knows what follows, and asks for it before it waits.
const BARE_COLD: [&str; 6] =
    ["sendfile", "copy-65536", "copy-262144", "ring-65536", "ring-262144", "ahead-524288"];
/// What cat(1) reads at a time.
const CAT_LEN: usize = 128 * 1024;
const COLD_TIMEOUT: Duration = Duration::from_secs(20);

/// Files of one length, for narwire and for the bare servers.
struct Bodies {
    folder: PathBuf,
    requests: Vec<Vec<u8>>,
}

/// All servers of the bodies, narwire last.
fn servers<'a>(bare: &[&str], bodies: &Bodies, narwire: &'a Server) -> anyhow::Result<Vec<AnyServer<'a>>> {
    let bare = bare.iter().map(|name| Ok(AnyServer::Bare(BareProcess::start(name, &bodies.folder)?)));
    bare.chain([Ok(AnyServer::Narwire(narwire))]).collect()
}

/// The file is in memory: CPU time.
pub fn hot(flags: &Flags) -> anyhow::Result<String> {
    let site = Site::create()?;
    let narwire = Server::start(Kind::NarwireDirectory, &site, 1, "0")?;
    let rounds = flags.rounds.min(3);
    let measured = flags.measured / 4;
    let until = Until::Time { warm_up: measured / 5, measured };
    let mut text = format!(
        "Files, hot: CPU s/GB and, behind it, GB/s; one connection, medians of {rounds} rounds of {:.2} s\n\
         Compared with narwire, serving the file from a cache directory; the ratio is narwire's CPU by that of the cheapest bare server\n\
         discarded: the client drops the body inside the kernel; read: it copies it out\n\n{:<20}",
        measured.as_secs_f64(),
        ""
    );
    for name in BARE.iter().chain(&["narwire"]) {
        write!(text, " {name:>14}")?;
    }
    text.push_str("   ratio\n");
    for len_bytes in if flags.is_quick { &QUICK_LENS[..] } else { &LENS } {
        let bodies = Bodies::create(&site, *len_bytes, 1)?;
        let servers = servers(&BARE, &bodies, &narwire)?;
        for (reading, name) in [(Reading::Discard, "discarded"), (Reading::Copy, "read")] {
            let mut cpu = vec![Vec::new(); servers.len()];
            let mut gb_per_s = vec![Vec::new(); servers.len()];
            for _ in 0..rounds {
                for (index, server) in servers.iter().enumerate() {
                    let outcome = server.load(1, &bodies.requests, reading, until)?;
                    let gb = outcome.groups[0].bytes as f64 / 1e9;
                    cpu[index].push(outcome.server.as_secs_f64() / gb);
                    gb_per_s[index].push(gb / outcome.elapsed.as_secs_f64());
                }
            }
            write!(text, "{:>9} {name:<10}", length(*len_bytes))?;
            for (cpu, gb_per_s) in cpu.iter().zip(&gb_per_s) {
                write!(text, " {:>8.3} {:>5.2}", median(cpu), median(gb_per_s))?;
            }
            let bare = cpu[..BARE.len()].iter().map(|values| median(values)).fold(f64::INFINITY, f64::min);
            writeln!(text, " {:>6.2}x", median(&cpu[BARE.len()]) / bare)?;
        }
        bodies.remove(&site)?;
    }
    Ok(text)
}

/// The files are not in memory: wall and CPU time.
pub fn cold(flags: &Flags) -> anyhow::Result<String> {
    let site = Site::create()?;
    let narwire = Server::start(Kind::NarwireDirectory, &site, 1, "0")?;
    if let Err(error) = empty_page_cache() {
        return Ok(format!("Files, cold: left out, for emptying the page cache needs root ({error:#})\n"));
    }
    let rounds = if flags.is_quick { 1 } else { flags.rounds.min(3) };
    let mut text = format!(
        "Files, cold (page cache emptied before each): wall s/GB and CPU s/GB, medians of {rounds} rounds; the client reads\n\
         Compared with reading the same files one after another, {} KiB at a time, for nobody (cat)\n\n{:<20} {:>15}",
        CAT_LEN / 1024,
        "",
        "cat"
    );
    for name in BARE_COLD.iter().chain(&["narwire"]) {
        write!(text, " {name:>15}")?;
    }
    text.push('\n');
    for (len_bytes, files) in if flags.is_quick { &QUICK_COLD[..] } else { &COLD } {
        let bodies = Bodies::create(&site, *len_bytes, *files)?;
        let servers = servers(&BARE_COLD, &bodies, &narwire)?;
        let until = Until::Requests(*files, COLD_TIMEOUT);
        let gb = (*len_bytes * *files as u64) as f64 / 1e9;
        let mut costs = vec![(Vec::new(), Vec::new()); 1 + servers.len()];
        for _ in 0..rounds {
            empty_page_cache()?;
            let (wall, cpu) = on_core(0, || cat(&bodies.folder))??;
            costs[0].0.push(wall.as_secs_f64() / gb);
            costs[0].1.push(cpu.as_secs_f64() / gb);
            for (server, (wall, cpu)) in servers.iter().zip(&mut costs[1..]) {
                empty_page_cache()?;
                let outcome = server.load(1, &bodies.requests, Reading::Copy, until)?;
                wall.push(outcome.elapsed.as_secs_f64() / gb);
                cpu.push(outcome.server.as_secs_f64() / gb);
            }
        }
        write!(text, "{files:>5} x {:<12}", length(*len_bytes))?;
        for (wall, cpu) in &costs {
            write!(text, " {:>8.2} {:>6.2}", median(wall), median(cpu))?;
        }
        text.push('\n');
        bodies.remove(&site)?;
    }
    Ok(text)
}

/// Wall and CPU time of reading all files of a folder.
fn cat(folder: &Path) -> io::Result<(Duration, Duration)> {
    let mut buffer = vec![0; CAT_LEN];
    let (start, begin) = (Instant::now(), thread_time());
    for entry in fs::read_dir(folder)? {
        let mut file = File::open(entry?.path())?;
        while file.read(&mut buffer)? > 0 {}
    }
    Ok((start.elapsed(), thread_time().saturating_sub(begin)))
}

fn length(len_bytes: u64) -> String {
    if len_bytes < MIB { format!("{} KiB", len_bytes / KIB) } else { format!("{} MiB", len_bytes / MIB) }
}

impl Bodies {
    /// The same files under two names: for narwire in its cache directory, and in a folder of their own.
    fn create(site: &Site, len_bytes: u64, files: usize) -> anyhow::Result<Self> {
        let folder = site.root().join(format!("{len_bytes}-{files}"));
        fs::create_dir(&folder)?;
        let mut requests = Vec::new();
        for number in 0..files {
            let name = Sha256::digest(format!("{len_bytes}-{number}").as_bytes());
            let target = format!("nar/{}.nar", nix_base32::to_nix_base32(&name.0));
            let file = folder.join(number.to_string());
            write_noise(&mut File::create(&file)?, len_bytes)?;
            fs::hard_link(&file, site.flat.join(&target))?;
            requests.push(request(&target, ""));
        }
        // Pages that wait to be written cost whoever comes next.
        rustix::fs::sync();
        Ok(Self { folder, requests })
    }

    /// Makes room on the disk.
    fn remove(self, site: &Site) -> io::Result<()> {
        for entry in fs::read_dir(site.flat.join("nar"))? {
            fs::remove_file(entry?.path())?;
        }
        fs::remove_dir_all(self.folder)
    }
}

fn write_noise(file: &mut File, len_bytes: u64) -> io::Result<()> {
    let piece = noise(len_bytes.min(MIB) as usize, len_bytes);
    for _ in 0..len_bytes.div_ceil(MIB) {
        io::Write::write_all(file, &piece)?;
    }
    Ok(())
}
