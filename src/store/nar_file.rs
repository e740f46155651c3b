//! One thing out of a file that holds a NAR, compressed or not.

use std::os::fd::OwnedFd;

use super::StoreError;
use crate::codec::decompress::Decompressor;
use crate::codec::nar::decode::Decoder;
use crate::codec::nar::find::{Finder, Found};
use crate::codec::nar::inner_path::InnerPath;
use crate::codec::narinfo::Compression;
use crate::limits::{BROWSED_FILE_LEN_MAX, DECODED_BUFFER_LEN_BYTES};

/// How a look into a NAR has ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With this, or with nothing at that place.
    Found(Option<Found>),
    /// It was not wanted any more.
    Stopped,
}

/// Looks for what is at `path` in the NAR of `file`, for as long as `goes_on`. Of a directory, its first `entries_max` entries come along;
/// if that is none, it is read no further. The contents of a file come along if the NAR is compressed
/// and they have [`BROWSED_FILE_LEN_MAX`] bytes at most. `name` is for messages.
pub fn find(
    file: &OwnedFd,
    name: &str,
    compression: Compression,
    path: &InnerPath,
    entries_max: usize,
    goes_on: &dyn Fn() -> bool,
) -> Result<Outcome, StoreError> {
    let damaged = |error: &dyn std::fmt::Display| StoreError::damaged(name, error);
    let is_flat = compression == Compression::None;
    let mut finder = Finder::new(path, entries_max, if is_flat { 0 } else { BROWSED_FILE_LEN_MAX });
    let mut decompressor = Decompressor::new(compression).map_err(|error| damaged(&error))?;
    let mut decoder = Decoder::new();
    let (mut input, mut output) = (vec![0; DECODED_BUFFER_LEN_BYTES], vec![0; DECODED_BUFFER_LEN_BYTES]);
    let mut offset = 0;
    while !finder.is_done() {
        if !goes_on() {
            return Ok(Outcome::Stopped);
        }
        // Where nothing is compressed, contents that nobody wants are not read.
        let unwanted_len = finder.unwanted_len();
        if is_flat && unwanted_len > DECODED_BUFFER_LEN_BYTES as u64 {
            decoder.skip_contents(unwanted_len).map_err(|error| damaged(&error))?;
            offset += unwanted_len;
            finder.skipped();
        }
        let len = rustix::io::pread(file, &mut input[..], offset)
            .map_err(|error| StoreError::io("read", name, error))?;
        if len == 0 {
            return Err(damaged(&"it ends too early"));
        }
        offset += len as u64;
        let mut rest = &input[..len];
        while (!rest.is_empty() || decompressor.has_more()) && !finder.is_done() {
            if !goes_on() {
                return Ok(Outcome::Stopped);
            }
            let progress = decompressor.decode(rest, &mut output).map_err(|error| damaged(&error))?;
            rest = &rest[progress.consumed..];
            let decoded = decoder.push(&output[..progress.produced], |event| finder.event(event));
            decoded.map_err(|error| damaged(&error))?;
        }
    }
    Ok(Outcome::Found(finder.finish()))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::codec::nar::naive::{Tree, nar};

    const LONG_LEN: usize = 3 * DECODED_BUFFER_LEN_BYTES;

    fn tree() -> Tree {
        let file = |contents: &[u8]| Tree::Regular { executable: false, contents: contents.to_vec() };
        let folder = BTreeMap::from([
            (b"long".to_vec(), file(&vec![b'x'; LONG_LEN])),
            (b"short".to_vec(), file(b"contents")),
        ]);
        Tree::Directory(BTreeMap::from([
            (b"a".to_vec(), file(&vec![b'y'; LONG_LEN])),
            (b"folder".to_vec(), Tree::Directory(folder)),
            (b"link".to_vec(), Tree::Symlink(b"target".to_vec())),
        ]))
    }

    fn file_of(bytes: &[u8]) -> std::fs::File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn look(bytes: &[u8], compression: Compression, path: &str) -> Result<Outcome, StoreError> {
        let mut inner = InnerPath::default();
        path.split('/').filter(|name| !name.is_empty()).for_each(|name| inner.push(name.as_bytes()).unwrap());
        find(&OwnedFd::from(file_of(bytes)), "a NAR", compression, &inner, 10, &|| true)
    }

    #[test]
    fn what_is_in_a_nar_is_found_compressed_or_not() {
        let flat = nar(&tree());
        let zstd = ::zstd::encode_all(&flat[..], 1).unwrap();
        for (bytes, compression) in [(&flat, Compression::None), (&zstd, Compression::Zstd)] {
            let found = |path: &str| match look(bytes, compression, path).unwrap() {
                Outcome::Found(found) => found,
                Outcome::Stopped => panic!("nobody has stopped it"),
            };
            let Some(Found::Directory { entries, count: 2 }) = found("folder") else { panic!("a directory") };
            assert_eq!(entries[1].name, b"short");
            let Some(Found::Regular { size: 8, contents_offset, contents }) = found("folder/short") else {
                panic!("a file")
            };
            let mut there = [0; 8];
            file_of(&flat).read_exact_at(&mut there, contents_offset).unwrap();
            assert_eq!(&there, b"contents");
            let is_flat = compression == Compression::None;
            assert_eq!(contents, (!is_flat).then(|| b"contents".to_vec()));
            assert_eq!(found("link/x"), Some(Found::Symlink { target: b"target".to_vec(), depth: 1 }));
            assert_eq!(found("folder/x"), None);
        }
    }

    #[test]
    fn a_directory_of_which_nothing_is_wanted_is_not_read() {
        let flat = nar(&tree());
        let zstd = ::zstd::encode_all(&flat[..], 1).unwrap();
        // There is no end to find.
        for (bytes, compression) in [(&flat[..100], Compression::None), (&zstd[..], Compression::Zstd)] {
            let (file, turns) = (OwnedFd::from(file_of(bytes)), Cell::new(0));
            let goes_on = || turns.replace(turns.get() + 1) < 2;
            let found = find(&file, "a NAR", compression, &InnerPath::default(), 0, &goes_on).unwrap();
            assert_eq!(found, Outcome::Found(Some(Found::Directory { entries: Vec::new(), count: 0 })));
        }
    }

    #[test]
    fn a_nar_that_is_cut_or_none_is_damaged() {
        let flat = nar(&tree());
        for bytes in [&flat[..flat.len() / 2], &flat[..50], b"", b"no NAR"] {
            assert!(matches!(look(bytes, Compression::None, "link"), Err(StoreError::Damaged { .. })));
            assert!(matches!(look(bytes, Compression::Xz, "link"), Err(StoreError::Damaged { .. })));
        }
        let file = OwnedFd::from(file_of(&flat));
        let stopped = find(&file, "a NAR", Compression::None, &InnerPath::default(), 10, &|| false).unwrap();
        assert_eq!(stopped, Outcome::Stopped);
    }
}
