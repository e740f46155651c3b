//! Numbers that are counted in passing, and read by whoever looks: no lock, and nothing that waits.
//!
//! Who counts alone uses [`OwnCount`], whose writes are plain: a worker counts each request. What several threads count together is a
//! [`Count`].

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper ends of the classes of a [`Histogram`], in nanoseconds; what is longer has a class of its own. From what is answered from memory
/// to a download over a slow line.
pub const BOUNDS_NS: [u64; 16] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
    60_000_000_000,
];

/// Something that is counted.
pub trait Tally: Default {
    /// So many more.
    fn add(&self, more: u64);

    /// How many there have been.
    fn get(&self) -> u64;
}

/// What any thread may count.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

/// What one thread counts, and the others only read. If two did, some would be lost.
#[derive(Debug, Default)]
pub struct OwnCount(AtomicU64);

impl Tally for Count {
    fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Tally for OwnCount {
    fn add(&self, more: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Count {
    /// None yet.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }
}

/// What is so at the moment, and may become less. Any thread may say so; the last one is right.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// It is so much now.
    pub fn set(&self, now: u64) {
        self.0.store(now, Ordering::Relaxed);
    }

    /// How much it is.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long something took, in classes.
#[derive(Debug, Default)]
pub struct Histogram<C> {
    classes: [C; BOUNDS_NS.len() + 1],
    sum_ns: C,
}

/// What a [`Histogram`] said at one moment. While it is counted, the sum may be of a moment later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// How many were in each class, the last of which has no upper end.
    pub classes: [u64; BOUNDS_NS.len() + 1],
    /// All of them together. Nanoseconds.
    pub sum_ns: u64,
}

impl<C: Tally> Histogram<C> {
    /// Something took so long.
    pub fn observe(&self, took: Duration) {
        self.observe_times(took, 1);
    }

    /// So many things took so long.
    pub fn observe_times(&self, took: Duration, times: u64) {
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.classes[BOUNDS_NS.partition_point(|&bound_ns| bound_ns < took_ns)].add(times);
        self.sum_ns.add(took_ns.saturating_mul(times));
    }

    /// What was observed until now.
    pub fn read(&self) -> Observed {
        Observed { classes: array::from_fn(|class| self.classes[class].get()), sum_ns: self.sum_ns.get() }
    }
}

impl Observed {
    /// The same with what was observed elsewhere.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            classes: array::from_fn(|class| self.classes[class] + other.classes[class]),
            sum_ns: self.sum_ns.wrapping_add(other.sum_ns),
        }
    }

    /// How many were observed.
    pub fn count(&self) -> u64 {
        self.classes.iter().sum()
    }
}

/// An enum whose variants are classes of things that are counted.
macro_rules! classes {
    ($(#[$attribute:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $label:literal,)+ }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// Each of them, in the order of their numbers.
            pub const ALL: [Self; [$($label),+].len()] = [$(Self::$variant),+];

            /// As metrics name it.
            pub fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }
        }
    };
}

pub(crate) use classes;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_first_class_whose_end_it_does_not_pass() {
        let histogram = Histogram::<OwnCount>::default();
        for (took_ns, class) in [(0, 0), (100_000, 0), (100_001, 1), (60_000_000_000, 15), (u64::MAX, 16)] {
            let before = histogram.read().classes[class];
            histogram.observe(Duration::from_nanos(took_ns));
            assert_eq!(histogram.read().classes[class], before + 1, "{took_ns} ns");
        }
        assert_eq!(histogram.read().count(), 5);
    }

    #[test]
    fn what_several_observe_is_counted_together() {
        let one = Histogram::<Count>::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| one.observe(Duration::from_micros(1))));
            }
        });
        let both = one.read().and(one.read());
        assert_eq!((both.count(), both.sum_ns), (8000, 8_000_000));
    }
}
