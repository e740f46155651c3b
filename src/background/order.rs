//! Which file goes first when room is needed.

use std::cmp::Ordering;

use crate::limits::EVICTION_CLASS_S;
use crate::store::catalog::{Entry, Record, Stored};

/// How much room is needed, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// The cache has reached its size: what was not used for long goes.
    Size,
    /// The file system has not enough left: what is easily made again goes, for it is not the cache that grows.
    Disk,
}

/// Puts those that go first in front; those that are no files are left out.
///
/// A file that was not used for twice as long goes before one that was; between two that were not used for about as long, the
/// one goes that took less time to make for each of its bytes.
pub fn sort(records: &mut Vec<Record>, pressure: Pressure, now_s: u64) {
    records.retain(|record| matches!(record.entry, Entry::Stored(_)));
    records.sort_by(|left, right| {
        let by_value = by_value(left, right);
        match pressure {
            Pressure::Size => idle_class(right, now_s).cmp(&idle_class(left, now_s)).then(by_value),
            Pressure::Disk => by_value,
        }
        .then(idle_s(right, now_s).cmp(&idle_s(left, now_s)))
    });
}

/// Doubles of [`EVICTION_CLASS_S`] that a file was not used for.
fn idle_class(record: &Record, now_s: u64) -> u32 {
    (idle_s(record, now_s) / EVICTION_CLASS_S + 1).ilog2()
}

/// For how long a file was not used. Seconds.
fn idle_s(record: &Record, now_s: u64) -> u64 {
    match now_s.checked_sub(record.last_used_s) {
        Some(idle_s) => idle_s,
        // Clocks are set back by a little now and then.
        None if record.last_used_s - now_s < EVICTION_CLASS_S => 0,
        // One that was far ahead said this, and until then the file would be the last to go.
        None => now_s,
    }
}

/// Compares what files took to make for each of their bytes.
fn by_value(left: &Record, right: &Record) -> Ordering {
    let (Entry::Stored(left), Entry::Stored(right)) = (&left.entry, &right.entry) else {
        return Ordering::Equal;
    };
    let product = |one: &Stored, other: &Stored| u128::from(one.fill_us) * u128::from(other.file_size.max(1));
    product(left, right).cmp(&product(right, left))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::hash::Sha256Digest;
    use crate::codec::store_path::HashPart;
    use crate::store::catalog::RootMark;
    use crate::store::nar_cache::Coding;

    const NOW_S: u64 = 1_000_000_000;

    fn record(index: u8, idle_s: u64, fill_us: u32, file_size: u64) -> Record {
        let digest = Sha256Digest([index; 32]);
        let stored =
            Stored { coding: Coding::Zstd, file_hash: digest, file_size, nar_size: file_size, fill_us };
        let nar = (HashPart::parse(&[b'0'; 32]).unwrap(), digest);
        Record { nar, entry: Entry::Stored(stored), last_used_s: NOW_S - idle_s }
    }

    fn order(records: &[Record], pressure: Pressure) -> Vec<u8> {
        let mut records = records.to_vec();
        sort(&mut records, pressure, NOW_S);
        records.iter().map(|record| record.nar.1.0[0]).collect()
    }

    #[test]
    fn what_was_not_used_for_long_goes_first_and_then_what_is_cheap() {
        let hour = 3600;
        let records = [
            record(0, 10, 1, 1_000_000),
            record(1, 20, 1_000_000, 1),
            record(2, 30 * hour, 1_000_000, 1),
            record(3, 29 * hour, 1, 1_000_000),
            record(4, 300 * hour, 1_000, 1_000),
        ];
        assert_eq!(order(&records, Pressure::Size), [4, 3, 2, 0, 1]);
        assert_eq!(order(&records, Pressure::Disk), [3, 0, 4, 2, 1]);
    }

    #[test]
    fn a_clock_that_was_ahead_keeps_no_file() {
        let ahead = |index, by_s| Record { last_used_s: NOW_S + by_s, ..record(index, 0, 1_000_000, 1) };
        let records = [record(0, 10, 1_000, 1), ahead(1, 60), ahead(2, 30 * 24 * 3600)];
        assert_eq!(order(&records, Pressure::Size), [2, 0, 1]);
    }

    #[test]
    fn a_mark_of_damage_is_no_file() {
        let mark = RootMark { inode: 1, changed_s: 1, changed_ns: 1 };
        let marked = Record { entry: Entry::Damaged(mark), ..record(0, 10, 1, 1) };
        assert_eq!(order(&[marked, record(1, 1, 1, 1)], Pressure::Size), [1]);
    }

    proptest! {
        #[test]
        fn agrees_with_taking_the_next_one_by_looking_at_all(
            drawn in prop::collection::vec((0..1u64 << 24, 1..1000u32, 1..1000u64), 0..40),
            is_size: bool,
        ) {
            let pressure = if is_size { Pressure::Size } else { Pressure::Disk };
            let records = (0..).zip(drawn).map(|(index, (idle_s, us, size))| record(index, idle_s, us, size));
            let mut left: Vec<_> = records.collect();
            for index in order(&left.clone(), pressure) {
                let class = |record: &&Record| ((NOW_S - record.last_used_s) / EVICTION_CLASS_S + 1).ilog2();
                // A division, where the code multiplies.
                let value = |record: &Record| match record.entry {
                    Entry::Stored(stored) => {
                        f64::from(stored.fill_us) / f64::from(u32::try_from(stored.file_size).unwrap())
                    }
                    Entry::Damaged(_) => unreachable!(),
                };
                let oldest = left.iter().map(|record| class(&record)).max();
                let eligible: Vec<_> =
                    left.iter().filter(|record| !is_size || Some(class(record)) == oldest).collect();
                let taken = eligible.iter().find(|record| record.nar.1.0[0] == index);
                let taken = value(taken.expect("it is not the turn of its class"));
                prop_assert!(eligible.iter().all(|record| taken <= value(record) * (1.0 + f64::EPSILON)));
                left.retain(|record| record.nar.1.0[0] != index);
            }
            prop_assert!(left.is_empty());
        }
    }
}
