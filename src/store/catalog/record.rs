//! A record as its 128 bytes. All numbers are little-endian.
//!
//! ```text
//!   0  CRC-32 of the bytes from 4 to 124        72  file hash       or  72  inode
//!   4  kind: 0 none, 1 flat, 2 zstd, 3 damaged  104 file size           80  changed, seconds
//!   8  hash part, 32 digits                     112 NAR size            88  changed, nanoseconds
//!  40  NAR hash                                 120 fill time, µs       92  zeros
//! 124  last use, seconds since 1970; not in the CRC, for it changes alone
//! ```

use super::{Entry, Kind, NarKey, Record, RootMark, Stored};
use crate::codec::hash::Sha256Digest;
use crate::codec::store_path::HashPart;
use crate::store::nar_cache::Coding;

/// Length of a record. Bytes; it divides a disk's sector, so that a record is written wholly or not at all.
pub(super) const RECORD_LEN_BYTES: usize = 128;
/// Where the last use is.
pub(super) const LAST_USED_OFFSET: usize = 124;
/// Where the kind is.
pub(super) const KIND_OFFSET: usize = 4;
/// Where the hash part and the NAR hash are.
pub(super) const KEY_OFFSET: usize = 8;

const ENTRY_OFFSET: usize = KEY_OFFSET + KEY_LEN_BYTES;
/// Length of a key. Bytes.
pub(super) const KEY_LEN_BYTES: usize = 64;

/// The bytes of a record.
pub(super) type RecordBytes = [u8; RECORD_LEN_BYTES];

/// No record.
pub(super) const EMPTY: RecordBytes = [0; RECORD_LEN_BYTES];

const _: () = assert!(512_usize.is_multiple_of(RECORD_LEN_BYTES), "no record lies in two sectors");

/// A key as it stands in a record.
pub(super) fn key_bytes((hash_part, nar_hash): &NarKey) -> [u8; KEY_LEN_BYTES] {
    let mut bytes = [0; KEY_LEN_BYTES];
    bytes[..32].copy_from_slice(hash_part.as_bytes());
    bytes[32..].copy_from_slice(&nar_hash.0);
    bytes
}

/// The number of a kind.
pub(super) fn kind_number(kind: Kind) -> u32 {
    match kind {
        Kind::Stored(Coding::Flat) => 1,
        Kind::Stored(Coding::Zstd) => 2,
        Kind::Damaged => 3,
    }
}

/// Record → bytes.
pub(super) fn encode(nar: &NarKey, entry: &Entry, last_used_s: u32) -> RecordBytes {
    let mut bytes = EMPTY;
    bytes[KIND_OFFSET..KEY_OFFSET].copy_from_slice(&kind_number(entry.kind()).to_le_bytes());
    bytes[KEY_OFFSET..ENTRY_OFFSET].copy_from_slice(&key_bytes(nar));
    match entry {
        Entry::Stored(stored) => {
            bytes[72..104].copy_from_slice(&stored.file_hash.0);
            bytes[104..112].copy_from_slice(&stored.file_size.to_le_bytes());
            bytes[112..120].copy_from_slice(&stored.nar_size.to_le_bytes());
            bytes[120..124].copy_from_slice(&stored.fill_us.to_le_bytes());
        }
        Entry::Damaged(mark) => {
            bytes[72..80].copy_from_slice(&mark.inode.to_le_bytes());
            bytes[80..88].copy_from_slice(&mark.changed_s.to_le_bytes());
            bytes[88..92].copy_from_slice(&mark.changed_ns.to_le_bytes());
        }
    }
    let sum = crc32fast::hash(&bytes[KIND_OFFSET..LAST_USED_OFFSET]);
    bytes[..KIND_OFFSET].copy_from_slice(&sum.to_le_bytes());
    bytes[LAST_USED_OFFSET..].copy_from_slice(&last_used_s.to_le_bytes());
    bytes
}

/// Bytes → record. `None` when there is none, or when it is damaged or was read while it was written.
pub(super) fn decode(bytes: &RecordBytes) -> Option<Record> {
    let number = u32::from_le_bytes(field(bytes, KIND_OFFSET));
    let sum = u32::from_le_bytes(field(bytes, 0));
    if number == 0 || crc32fast::hash(&bytes[KIND_OFFSET..LAST_USED_OFFSET]) != sum {
        return None;
    }
    let stored = |coding| {
        Entry::Stored(Stored {
            coding,
            file_hash: Sha256Digest(field(bytes, 72)),
            file_size: u64::from_le_bytes(field(bytes, 104)),
            nar_size: u64::from_le_bytes(field(bytes, 112)),
            fill_us: u32::from_le_bytes(field(bytes, 120)),
        })
    };
    let entry = match number {
        1 => stored(Coding::Flat),
        2 => stored(Coding::Zstd),
        3 => Entry::Damaged(RootMark {
            inode: u64::from_le_bytes(field(bytes, 72)),
            changed_s: i64::from_le_bytes(field(bytes, 80)),
            changed_ns: u32::from_le_bytes(field(bytes, 88)),
        }),
        _ => return None,
    };
    Some(Record {
        nar: (HashPart::parse(&bytes[KEY_OFFSET..40])?, Sha256Digest(field(bytes, 40))),
        entry,
        last_used_s: u64::from(u32::from_le_bytes(field(bytes, LAST_USED_OFFSET))),
    })
}

/// `N` bytes from `offset`, which the layout puts within the record.
fn field<const N: usize>(bytes: &RecordBytes, offset: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[offset..offset + N]);
    field
}
