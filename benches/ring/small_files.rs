//! Reading many small files: what each way of opening, reading and closing takes, when the files are in memory and when not.

use std::ffi::CString;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::ReadWriteFlags;
use rustix::time::ClockId;

use crate::bare_ring::{BareRing, Done, OPEN_FLAGS, Parts};
use crate::harness::process::empty_page_cache;
use crate::harness::report::median;
use crate::harness::site::Site;
use crate::{Flags, on_core};

const FILES_PER_DIRECTORY: usize = 100;
/// As many as narwire opens side by side for one buffer, and more.
const SIDE_BY_SIDE: usize = 64;
const MORE_SIDE_BY_SIDE: usize = 256;
/// narwire's `IO_WORKERS_MAX`, and more.
const KERNEL_THREADS: u32 = narwire::limits::IO_WORKERS_MAX;
const MORE_KERNEL_THREADS: u32 = 64;

/// One way of reading a file whose name and length are known.
#[derive(Clone, Copy)]
enum Way {
    Calls(Calls),
    Ring(Chaining, usize, u32),
}

/// System calls for one file after another.
#[derive(Clone, Copy)]
enum Calls {
    OpenReadClose,
    OpenStatReadClose,
    Open2ReadClose,
    Open2StatReadClose,
    StatOpen2ReadClose,
    Open2StatNowaitClose,
    Stat,
}

/// How the operations on one file follow each other.
#[derive(Clone, Copy)]
enum Chaining {
    /// Open, read, then close(2).
    Separate,
    /// The same with openat instead of openat2.
    SeparatePlain,
    /// Open, fstat(2), read, then close(2).
    SeparateStat,
    /// Open, read, close, each an entry.
    SeparateClose,
    /// Open into a direct descriptor, read, close: three linked entries.
    Chain,
    /// The same, where only the close has a completion; a file that has grown stays unseen.
    QuietChain,
}

/// Files in directories, as a store path has them.
struct Tree {
    root: OwnedFd,
    directories: Vec<OwnedFd>,
    /// From the root.
    long_names: Vec<CString>,
    /// From their directories.
    short_names: Vec<CString>,
    len_bytes: usize,
}

/// What names are relative to.
#[derive(Clone, Copy, PartialEq)]
enum Base {
    Root,
    Directory,
}

/// What reading all files took, per file.
#[derive(Clone, Copy)]
struct Cost {
    cpu_us: f64,
    wall_us: f64,
}

/// Everything is in memory: CPU time.
pub fn hot(flags: &Flags) -> anyhow::Result<String> {
    let site = Site::create()?;
    let mut trees = Vec::new();
    for (len_bytes, depth) in [(133, 2), (133, 6), (2048, 2), (16 * 1024, 2)] {
        let name = format!("{len_bytes}-{depth}");
        trees.push((depth, Tree::create(&site.root().join(name), files(flags), len_bytes, depth)?));
    }
    on_core(0, || read_hot(&trees, files(flags), flags.rounds))?
}

/// Nothing is in memory: wall time.
pub fn cold(flags: &Flags) -> anyhow::Result<String> {
    let site = Site::create()?;
    let tree = Tree::create(&site.root().join("cold"), files(flags), 133, 2)?;
    on_core(0, || read_cold(&tree, files(flags), flags))?
}

fn files(flags: &Flags) -> usize {
    if flags.is_quick { 4_000 } else { 20_000 }
}

fn read_hot(trees: &[(usize, Tree)], files: usize, rounds: usize) -> anyhow::Result<String> {
    let ring = |chaining| Way::Ring(chaining, SIDE_BY_SIDE, KERNEL_THREADS);
    let ways = [
        ("openat, pread, close", Way::Calls(Calls::OpenReadClose)),
        ("openat, fstat, pread, close", Way::Calls(Calls::OpenStatReadClose)),
        ("openat2, pread, close", Way::Calls(Calls::Open2ReadClose)),
        ("openat2, fstat, pread, close", Way::Calls(Calls::Open2StatReadClose)),
        ("openat2, fstat, preadv2 NOWAIT, close", Way::Calls(Calls::Open2StatNowaitClose)),
        ("fstatat, openat2, pread, close", Way::Calls(Calls::StatOpen2ReadClose)),
        ("fstatat alone (the walk)", Way::Calls(Calls::Stat)),
        ("ring: openat2, read; close(2)", ring(Chaining::Separate)),
        ("ring: openat, read; close(2)", ring(Chaining::SeparatePlain)),
        ("ring: openat2; fstat(2); read; close(2)", ring(Chaining::SeparateStat)),
        ("ring: openat2, read, close", ring(Chaining::SeparateClose)),
        ("ring: openat2-read-close linked, direct", ring(Chaining::Chain)),
        ("the same, completion of close only", ring(Chaining::QuietChain)),
    ];
    let columns: Vec<_> = trees
        .iter()
        .flat_map(|(depth, tree)| [Base::Root, Base::Directory].map(|base| (*depth, tree, base)))
        .collect();
    let mut costs = vec![vec![Vec::new(); columns.len()]; ways.len()];
    // The first round brings everything into memory.
    for round in 0..=rounds {
        for (column, (_, tree, base)) in columns.iter().enumerate() {
            for (row, (name, way)) in ways.iter().enumerate() {
                let cost = tree.read(*way, *base).with_context(|| (*name).to_owned())?;
                if round > 0 {
                    costs[row][column].push(cost.cpu_us);
                }
            }
        }
    }
    let mut text = format!(
        "Small files, hot: CPU µs per file; {files} files, medians of {rounds} rounds; the ring has {SIDE_BY_SIDE} files under way\n\
         Compared with the first line; \"dir\": opened relative to a descriptor of the file's directory that is open already\n\n{:<42}",
        ""
    );
    for (depth, tree, base) in &columns {
        let base = if *base == Base::Root { "root" } else { "dir" };
        write!(text, " {:>14}", format!("{} B/{depth} {base}", tree.len_bytes))?;
    }
    text.push('\n');
    for (row, (name, _)) in ways.iter().enumerate() {
        write!(text, "{name:<42}")?;
        for (column, values) in costs[row].iter().enumerate() {
            let ratios: Vec<_> =
                values.iter().zip(&costs[0][column]).map(|(own, first)| own / first).collect();
            write!(text, " {:>7.2} {:>5.2}x", median(values), median(&ratios))?;
        }
        text.push('\n');
    }
    Ok(text)
}

fn read_cold(tree: &Tree, files: usize, flags: &Flags) -> anyhow::Result<String> {
    if let Err(error) = empty_page_cache() {
        return Ok(format!(
            "Small files, cold: left out, for emptying the page cache needs root ({error:#})\n"
        ));
    }
    let rounds = if flags.is_quick { 1 } else { flags.rounds.min(3) };
    let mut ways = vec![("openat2, fstat, pread, close", Way::Calls(Calls::Open2StatReadClose))];
    for chaining in [Chaining::Separate, Chaining::Chain] {
        let name = match chaining {
            Chaining::Chain => "ring: openat2-read-close linked, direct",
            _ => "ring: openat2, read; close(2)",
        };
        for (side_by_side, threads) in [
            (SIDE_BY_SIDE, KERNEL_THREADS),
            (SIDE_BY_SIDE, MORE_KERNEL_THREADS),
            (MORE_SIDE_BY_SIDE, KERNEL_THREADS),
            (MORE_SIDE_BY_SIDE, MORE_KERNEL_THREADS),
        ] {
            ways.push((name, Way::Ring(chaining, side_by_side, threads)));
        }
    }
    let mut costs = vec![Vec::new(); ways.len()];
    for _ in 0..rounds {
        for ((_, way), costs) in ways.iter().zip(&mut costs) {
            empty_page_cache()?;
            costs.push(tree.read(*way, Base::Root)?);
        }
    }
    let mut text = format!(
        "Small files, cold (page cache emptied before each): {files} files of {} B, medians of {rounds} rounds\n\
         Compared with the first line, one file after another\n\n{:<42} {:>12} {:>8} {:>12} {:>10} {:>14}\n",
        tree.len_bytes, "", "side by side", "threads", "wall µs/file", "faster", "CPU µs/file"
    );
    for ((name, way), row) in ways.iter().zip(&costs) {
        let (side_by_side, threads) = match way {
            Way::Calls(_) => (1, 1),
            Way::Ring(_, side_by_side, threads) => (*side_by_side, *threads),
        };
        let faster: Vec<_> =
            row.iter().zip(&costs[0]).map(|(own, first)| first.wall_us / own.wall_us).collect();
        let wall: Vec<_> = row.iter().map(|cost| cost.wall_us).collect();
        let cpu: Vec<_> = row.iter().map(|cost| cost.cpu_us).collect();
        writeln!(
            text,
            "{name:<42} {side_by_side:>12} {threads:>8} {:>12.1} {:>9.1}x {:>14.1}",
            median(&wall),
            median(&faster),
            median(&cpu)
        )?;
    }
    Ok(text)
}

/// CPU time of this process: kernel threads that work for a ring count as well.
fn process_time() -> Duration {
    let now = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

impl Tree {
    /// Writes files of `len_bytes` whose names have `depth` components.
    fn create(root: &Path, files: usize, len_bytes: usize, depth: usize) -> anyhow::Result<Self> {
        let open = |path: &Path| rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let above = "level/".repeat(depth - 2);
        let mut tree = Self {
            root: {
                fs::create_dir_all(root)?;
                open(root)?
            },
            directories: Vec::new(),
            long_names: Vec::new(),
            short_names: Vec::new(),
            len_bytes,
        };
        let bytes = vec![b'x'; len_bytes];
        for index in 0..files {
            let directory = format!("{above}directory-{:04}", index / FILES_PER_DIRECTORY);
            let file = format!("file-{:04}", index % FILES_PER_DIRECTORY);
            if index % FILES_PER_DIRECTORY == 0 {
                fs::create_dir_all(root.join(&directory))?;
                tree.directories.push(open(&root.join(&directory))?);
            }
            fs::write(root.join(&directory).join(&file), &bytes)?;
            tree.long_names.push(CString::new(format!("{directory}/{file}"))?);
            tree.short_names.push(CString::new(file)?);
        }
        Ok(tree)
    }

    fn names(&self, base: Base) -> &[CString] {
        match base {
            Base::Root => &self.long_names,
            Base::Directory => &self.short_names,
        }
    }

    fn base(&self, base: Base, file: usize) -> BorrowedFd<'_> {
        match base {
            Base::Root => self.root.as_fd(),
            Base::Directory => self.directories[file / FILES_PER_DIRECTORY].as_fd(),
        }
    }

    /// Reads every file once.
    fn read(&self, way: Way, base: Base) -> io::Result<Cost> {
        match way {
            Way::Calls(calls) => {
                let mut buffer = vec![0; self.len_bytes + 1];
                self.measure(|| self.read_by_calls(calls, base, &mut buffer))
            }
            Way::Ring(chaining, side_by_side, kernel_threads) => {
                let mut ring = BareRing::new(Parts {
                    names: self.names(base).to_vec(),
                    // A file that has grown shows by filling one byte more than expected.
                    buffers: (0..side_by_side).map(|_| vec![0; self.len_bytes + 1].into()).collect(),
                    slots: u32::try_from(side_by_side).unwrap_or(u32::MAX),
                    kernel_threads,
                    receives: false,
                })?;
                self.measure(|| match chaining {
                    Chaining::Chain => self.read_by_chains(&mut ring, base, side_by_side, false),
                    Chaining::QuietChain => self.read_by_chains(&mut ring, base, side_by_side, true),
                    _ => self.read_by_entries(&mut ring, base, side_by_side, chaining),
                })
            }
        }
    }

    fn measure(&self, work: impl FnOnce() -> io::Result<()>) -> io::Result<Cost> {
        let (cpu, wall) = (process_time(), Instant::now());
        work()?;
        let per_file_us = |time: Duration| time.as_secs_f64() * 1e6 / self.long_names.len() as f64;
        Ok(Cost {
            cpu_us: per_file_us(process_time().saturating_sub(cpu)),
            wall_us: per_file_us(wall.elapsed()),
        })
    }

    fn read_by_calls(&self, calls: Calls, base: Base, buffer: &mut [u8]) -> io::Result<()> {
        let flags = OFlags::from_bits_retain(OPEN_FLAGS.cast_unsigned());
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        for (file, name) in self.names(base).iter().enumerate() {
            let base = self.base(base, file);
            if matches!(calls, Calls::Stat | Calls::StatOpen2ReadClose) {
                rustix::fs::statat(base, name, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            let opened = match calls {
                Calls::Stat => continue,
                Calls::OpenReadClose | Calls::OpenStatReadClose => {
                    rustix::fs::openat(base, name, flags | OFlags::NOFOLLOW, Mode::empty())?
                }
                _ => rustix::fs::openat2(base, name, flags, Mode::empty(), resolve)?,
            };
            if matches!(
                calls,
                Calls::OpenStatReadClose | Calls::Open2StatReadClose | Calls::Open2StatNowaitClose
            ) {
                rustix::fs::fstat(&opened)?;
            }
            let len = if matches!(calls, Calls::Open2StatNowaitClose) {
                rustix::io::preadv2(&opened, &mut [IoSliceMut::new(buffer)], 0, ReadWriteFlags::NOWAIT)?
            } else {
                rustix::io::pread(&opened, &mut *buffer, 0)?
            };
            self.check(len)?;
        }
        Ok(())
    }

    /// Opening is one turn around the ring, reading the next.
    fn read_by_entries(
        &self,
        ring: &mut BareRing,
        base: Base,
        side_by_side: usize,
        chaining: Chaining,
    ) -> io::Result<()> {
        let files = self.long_names.len();
        let mut opened: Vec<Option<OwnedFd>> = (0..side_by_side).map(|_| None).collect();
        let (mut next, mut left) = (0, files);
        let open = |ring: &mut BareRing, file, slot| match chaining {
            Chaining::SeparatePlain => ring.open_plain(self.base(base, file), file, slot),
            _ => ring.open(self.base(base, file), file, slot),
        };
        for slot in 0..side_by_side.min(files) as u32 {
            open(ring, next, slot)?;
            next += 1;
        }
        while left > 0 {
            ring.wait()?;
            while let Some((slot, done)) = ring.next() {
                match done? {
                    Done::Opened(file) => {
                        if matches!(chaining, Chaining::SeparateStat) {
                            rustix::fs::fstat(&file)?;
                        }
                        ring.read(file.as_fd(), 0, (slot as usize, 0..self.len_bytes + 1), slot)?;
                        opened[slot as usize] = Some(file);
                    }
                    Done::Read(len) => {
                        self.check(len)?;
                        left -= 1;
                        let file = opened[slot as usize].take();
                        if let (Chaining::SeparateClose, Some(file)) = (chaining, file) {
                            ring.close(file, slot)?;
                        }
                        if next < files {
                            open(ring, next, slot)?;
                            next += 1;
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn read_by_chains(
        &self,
        ring: &mut BareRing,
        base: Base,
        side_by_side: usize,
        is_quiet: bool,
    ) -> io::Result<()> {
        let files = self.long_names.len();
        let whole = |slot: u32| (slot as usize, self.len_bytes + usize::from(!is_quiet));
        let (mut next, mut left) = (0, files);
        // A slot is used again after its last completion.
        let completions = if is_quiet { 1 } else { 3 };
        let mut missing = vec![completions; side_by_side];
        for slot in 0..side_by_side.min(files) as u32 {
            ring.open_read_close(self.base(base, next), next, whole(slot), is_quiet, slot)?;
            next += 1;
        }
        while left > 0 {
            ring.wait()?;
            while let Some((slot, done)) = ring.next() {
                if let Done::Read(len) = done? {
                    self.check(len)?;
                }
                missing[slot as usize] -= 1;
                if missing[slot as usize] == 0 {
                    left -= 1;
                    missing[slot as usize] = completions;
                    if next < files {
                        ring.open_read_close(self.base(base, next), next, whole(slot), is_quiet, slot)?;
                        next += 1;
                    }
                }
            }
        }
        Ok(())
    }

    fn check(&self, len: usize) -> io::Result<()> {
        if len == self.len_bytes { Ok(()) } else { Err(io::Error::other(format!("read {len} bytes"))) }
    }
}
