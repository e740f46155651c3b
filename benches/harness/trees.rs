//! What store paths contain.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};

/// The NAR of a file of this length has 848 bytes.
pub const SMALL_FILE_LEN: usize = 736;
/// A file of a tree of many.
pub const MANY_FILE_LEN: usize = 133;
/// Trees of more files than this are links to so many: enough that no cache of the processor holds them.
pub const DISTINCT_FILES: usize = 20_000;
/// Files in a directory of a tree of many, unless all are in one.
pub const FILES_PER_DIRECTORY: usize = 100;

/// Bytes that no disk and no file system makes shorter.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub fn write_large(path: &Path, mib: usize) -> anyhow::Result<()> {
    let mut file = fs::File::create(path)?;
    for seed in 1..=mib {
        file.write_all(&noise(1 << 20, seed as u64))?;
    }
    Ok(())
}

/// A file of which nothing is on disk.
pub fn write_sparse(path: &Path, len_bytes: u64) -> anyhow::Result<()> {
    Ok(fs::File::create(path)?.set_len(len_bytes)?)
}

/// `files` small files in directories of `per_directory`. Those of `pool`, a tree like this, are linked, as often as
/// needed; without a pool they are written.
pub fn write_many(
    path: &Path,
    files: usize,
    per_directory: usize,
    pool: Option<&Path>,
) -> anyhow::Result<()> {
    let place = |number: usize, per_directory: usize| {
        format!("directory-{:05}/file-{:06}", number / per_directory, number % per_directory)
    };
    for number in 0..files {
        let file = path.join(place(number, per_directory));
        if number % per_directory == 0 {
            fs::create_dir_all(file.parent().context("a file lies in a directory")?)?;
        }
        match pool {
            Some(pool) => {
                fs::hard_link(pool.join(place(number % DISTINCT_FILES, FILES_PER_DIRECTORY)), file)?;
            }
            None => fs::write(file, noise(MANY_FILE_LEN, number as u64 + 1))?,
        }
    }
    Ok(())
}

/// The Rust toolchain: its programs, libraries and pages, one in `part` of them. Sizes are mixed in any part.
pub fn write_toolchain(path: &Path, part: usize) -> anyhow::Result<()> {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output().context("cannot run rustc")?;
    ensure!(output.status.success(), "rustc knows no sysroot");
    let sysroot = String::from_utf8(output.stdout)?;
    let mut number = 0;
    link_some(Path::new(sysroot.trim()), path, &mut || {
        number += 1;
        number % part == 0
    })
}

/// Makes `to` the same tree as `from`, of the same files.
pub fn link(from: &Path, to: &Path) -> anyhow::Result<()> {
    link_some(from, to, &mut || true)
}

/// Makes `to` the tree `from` with those of its files that are `wanted`.
fn link_some(from: &Path, to: &Path, wanted: &mut impl FnMut() -> bool) -> anyhow::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    if metadata.is_dir() {
        fs::create_dir(to)?;
        let mut names =
            fs::read_dir(from)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        return names.iter().try_for_each(|name| link_some(&from.join(name), &to.join(name), wanted));
    }
    if metadata.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(from)?, to)?;
    } else if wanted() {
        // Another file system has no links to this one's files.
        fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop))?;
    }
    Ok(())
}
