//! The catalog's file as a whole: made, recognised, and looked through once.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::record::RECORD_LEN_BYTES;
use crate::limits::CATALOG_BUCKET_RECORDS;
use crate::store::fault;

/// The name of the catalog in its directory, and of the one that will take its place.
pub(super) const NAME: &str = "catalog";
const NEW_NAME: &str = "catalog.new";

/// Length of the header. Bytes: a page, so that the buckets begin with one.
pub(super) const HEADER_LEN_BYTES: usize = 4096;
/// What it begins with: name, version, records, records in a bucket. A CRC-32 of that follows, and zeros.
const MAGIC: &[u8; 16] = b"narwire catalog\n";
const VERSION: u32 = 1;
/// Length of a bucket. Bytes.
pub(super) const BUCKET_LEN_BYTES: usize = CATALOG_BUCKET_RECORDS * RECORD_LEN_BYTES;

/// Where the record of a slot is.
pub(super) fn offset_of(slot: usize) -> usize {
    HEADER_LEN_BYTES + slot * RECORD_LEN_BYTES
}

/// Where a bucket is.
pub(super) fn offset_of_bucket(bucket: usize) -> u64 {
    offset_of(bucket * CATALOG_BUCKET_RECORDS) as u64
}

/// Length of the file of a catalog of so many records. Bytes.
pub(super) fn file_len_bytes(records: usize) -> usize {
    HEADER_LEN_BYTES + records * RECORD_LEN_BYTES
}

/// What the header of a catalog of so many records begins with; the rest is zeros.
pub(super) fn header(records: usize) -> [u8; 32] {
    let mut header = [0; 32];
    header[..16].copy_from_slice(MAGIC);
    header[16..20].copy_from_slice(&VERSION.to_le_bytes());
    header[20..24].copy_from_slice(&u32::try_from(records).unwrap_or(u32::MAX).to_le_bytes());
    header[24..28].copy_from_slice(&u32::try_from(CATALOG_BUCKET_RECORDS).unwrap_or(u32::MAX).to_le_bytes());
    let sum = crc32fast::hash(&header[..28]);
    header[28..].copy_from_slice(&sum.to_le_bytes());
    header
}

/// Whether a file is a catalog of so many records: its header says so, and it is as long as that.
pub(super) fn has_header(file: &File, records: usize) -> io::Result<bool> {
    let status = rustix::fs::fstat(file)?;
    let is_file = FileType::from_raw_mode(status.st_mode).is_file();
    if !is_file || u64::try_from(status.st_size).ok() != Some(file_len_bytes(records) as u64) {
        return Ok(false);
    }
    let mut found = [0; 32];
    file.read_exact_at(&mut found, 0)?;
    Ok(found == header(records))
}

/// Makes an empty catalog. It gets its name when it is whole.
pub(super) fn create(directory: BorrowedFd<'_>, records: usize) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::unlinkat(directory, NEW_NAME, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let file = File::from(rustix::fs::openat(directory, NEW_NAME, flags, Mode::from_raw_mode(0o644))?);
    rustix::fs::ftruncate(&file, file_len_bytes(records) as u64)?;
    file.write_all_at(&header(records), 0)?;
    rustix::fs::fsync(&file)?;
    fault::point("catalog: file written")?;
    rustix::fs::renameat(directory, NEW_NAME, directory, NAME)?;
    fault::point("catalog: file renamed")?;
    rustix::fs::fsync(directory)?;
    Ok(file)
}

/// Reads what the file has, passing over what is only length, and tells of each bucket that is not empty.
pub(super) fn survey(
    file: &File,
    buckets: usize,
    found: &mut dyn FnMut(usize) -> io::Result<()>,
) -> io::Result<()> {
    let mut bytes = vec![0; BUCKET_LEN_BYTES];
    let mut bucket = 0;
    while bucket < buckets {
        let data = match rustix::fs::seek(file, SeekFrom::Data(offset_of_bucket(bucket))) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data))?;
        let first = data.saturating_sub(HEADER_LEN_BYTES as u64) / BUCKET_LEN_BYTES as u64;
        bucket = usize::try_from(first).map_or(buckets, |first| first.max(bucket));
        // From here on bucket by bucket, as long as there is something in them.
        while bucket < buckets && offset_of_bucket(bucket) < hole {
            file.read_exact_at(&mut bytes, offset_of_bucket(bucket))?;
            if bytes.iter().any(|&byte| byte != 0) {
                found(bucket)?;
            }
            bucket += 1;
        }
    }
    Ok(())
}
