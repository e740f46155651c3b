//! How much room there is in the cache, and who is promised some of it.

use std::rc::Rc;

use indicatif::HumanBytes;

use super::order::Pressure;
use super::workshop::Workshop;
use crate::limits::EVICTION_SLACK;

/// What room is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// For what nobody has asked for: nothing goes for it.
    Spare,
    /// For what was asked for, or to keep within the bounds.
    Wanted,
}

/// Whether there is room.
pub enum Room {
    /// There is, and it is kept free.
    Made(Promise),
    /// There is not, for this reason, and nothing more may go.
    None(String),
}

/// Bytes that may be written, and that nobody else is promised. Given back when this is dropped.
pub struct Promise {
    workshop: Rc<Workshop>,
    len: u64,
}

impl Promise {
    /// Takes what [`Bounds::lack`] was asked about.
    pub fn new(workshop: &Rc<Workshop>, len: u64) -> Self {
        workshop.promised_len.set(workshop.promised_len.get() + len);
        Self { workshop: Rc::clone(workshop), len }
    }

    /// What is left of it. Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Makes one of two.
    pub fn join(&mut self, mut other: Self) {
        self.len += std::mem::take(&mut other.len);
    }

    /// Gives bytes back, because they were written or will not be.
    pub fn spend(&mut self, len: u64) {
        let spent = len.min(self.len);
        self.len -= spent;
        self.workshop.promised_len.set(self.workshop.promised_len.get() - spent);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.spend(self.len);
    }
}

/// What the cache takes, and what it may. All of it in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// What all files may take together.
    pub len_max: u64,
    /// What is to stay free on the file system.
    pub free_min: u64,
    /// What is free on it.
    pub free: u64,
    /// What the files that are there take.
    pub used: u64,
    /// What was written of files that are not there yet.
    pub drafted: u64,
    /// What is promised, and not written yet.
    pub promised: u64,
}

/// What is in the way of something that is to fit in.
#[derive(Debug, PartialEq, Eq)]
pub struct Lack {
    /// What is to go: somewhat more than must, so that not every fill has to look at all records. Bytes.
    pub len: u64,
    pub pressure: Pressure,
    /// Half a sentence.
    pub reason: String,
}

impl Bounds {
    /// Whether `len` bytes fit in once all that is there is gone. For what does not, nothing need go.
    pub fn can_hold(&self, len: u64) -> bool {
        let free_at_most = self.free.saturating_add(self.used).saturating_add(self.drafted);
        len <= self.len_max && len.saturating_add(self.free_min) <= free_at_most
    }

    /// What is in the way of `len` more bytes.
    pub fn lack(&self, len: u64) -> Option<Lack> {
        let unwritten = self.promised.saturating_add(len);
        let taken = self.used.saturating_add(self.drafted).saturating_add(unwritten);
        let too_long = taken.saturating_sub(self.len_max);
        let too_little = self.free_min.saturating_add(unwritten).saturating_sub(self.free);
        let (pressure, reason) = if too_little > 0 {
            let (free, free_min) = (HumanBytes(self.free), HumanBytes(self.free_min));
            let reason =
                format!("{free} free on its file system, {free_min} are to stay free (--cache-min-free)");
            (Pressure::Disk, reason)
        } else if too_long > 0 {
            (Pressure::Size, format!("its size of {} is reached (--cache-size)", HumanBytes(self.len_max)))
        } else {
            return None;
        };
        // Of what is there: what may be there can be far more than the disk has.
        let slack = self.len_max.min(self.used) / EVICTION_SLACK;
        Some(Lack { len: too_long.max(too_little).saturating_add(slack), pressure, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds =
        Bounds { len_max: 6400, free_min: 1000, free: 10_000, used: 6400, drafted: 0, promised: 0 };

    #[test]
    fn what_fits_in_is_in_nobodys_way() {
        assert_eq!(BOUNDS.lack(0), None);
        let bounds = Bounds { used: 3000, drafted: 1400, promised: 1000, ..BOUNDS };
        assert_eq!(bounds.lack(1000), None);
        assert!(bounds.lack(1001).is_some_and(|lack| lack.pressure == Pressure::Size));
        assert_eq!(Bounds { free: 1000, used: 0, ..BOUNDS }.lack(0), None);
    }

    #[test]
    fn what_is_promised_is_not_promised_again() {
        let bounds = Bounds { used: 0, free: 3000, ..BOUNDS };
        assert_eq!(bounds.lack(2000), None);
        let bounds = Bounds { promised: 1, ..bounds };
        assert!(bounds.lack(2000).is_some_and(|lack| lack.pressure == Pressure::Disk && lack.len == 1));
    }

    #[test]
    fn what_goes_beyond_need_is_a_part_of_what_is_there() {
        let large = Bounds { len_max: u64::MAX, free_min: 10_001, ..BOUNDS };
        let lack = large.lack(0).unwrap();
        assert_eq!((lack.len, lack.pressure), (101, Pressure::Disk));
        assert_eq!(BOUNDS.lack(1).unwrap().len, 101);
    }

    #[test]
    fn what_can_never_fit_in_is_known_before_anything_goes() {
        assert!(BOUNDS.can_hold(6400) && !BOUNDS.can_hold(6401));
        let small_disk = Bounds { free: 100, used: 3000, drafted: 200, ..BOUNDS };
        assert!(small_disk.can_hold(2300) && !small_disk.can_hold(2301));
    }

    #[test]
    fn the_bound_that_is_reached_is_named() {
        let tight = Bounds { free: 999, ..BOUNDS };
        assert!(tight.lack(0).unwrap().reason.contains("--cache-min-free"));
        assert!(BOUNDS.lack(1).unwrap().reason.contains("--cache-size"));
    }
}
