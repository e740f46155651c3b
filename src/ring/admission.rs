//! Who may be connected: how many in all, how many from one address. The one thing that workers count together.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::pool::Exemptions;
use crate::limits::EXEMPTIONS_MAX;

/// The connections of all workers.
///
/// They are counted when they come and when they go, never when they ask for something.
#[derive(Debug)]
pub struct Admission {
    /// Connections that have a place with a worker, for each worker.
    loads: Box<[AtomicUsize]>,
    /// All of them together.
    taken: AtomicUsize,
    all_max: usize,
    addresses: Option<Addresses>,
    exemptions: Exemptions,
}

/// How many connections each address has. There are no more addresses in it than connections that were accepted.
#[derive(Debug)]
struct Addresses {
    counts: Mutex<HashMap<IpAddr, usize>>,
    each_max: usize,
}

/// A connection that counts for its address, from its acceptance to its end. Dropping it ends that.
#[derive(Debug)]
pub struct Visit {
    admission: Arc<Admission>,
    address: Option<IpAddr>,
}

/// A connection that has a place with a worker. Dropping it gives the place back.
#[derive(Debug)]
pub struct Place {
    visit: Visit,
    worker: usize,
}

impl Admission {
    /// For so many workers: at most `all_max` connections, and `per_address_max` from one address.
    pub fn new(workers: usize, all_max: usize, per_address_max: Option<usize>) -> Arc<Self> {
        let addresses = per_address_max.map(|each_max| Addresses { counts: Mutex::default(), each_max });
        let loads = (0..workers).map(|_| AtomicUsize::new(0)).collect();
        let exemptions = Exemptions::new(EXEMPTIONS_MAX);
        Arc::new(Self { loads, taken: AtomicUsize::new(0), all_max, addresses, exemptions })
    }

    /// Which connections may have the kernel keep more than others.
    pub fn exemptions(&self) -> Exemptions {
        self.exemptions.clone()
    }

    /// Whether anybody has to know from where a connection comes.
    pub fn asks_for_addresses(&self) -> bool {
        self.addresses.is_some()
    }

    /// Lets a connection in from this address, as far as its address is concerned; `None` if that has too many. Those without an address
    /// (unix sockets) do not count.
    pub fn visit(self: &Arc<Self>, address: Option<IpAddr>) -> Option<Visit> {
        let address = match (&self.addresses, address) {
            (Some(addresses), Some(address)) => {
                let client = client_of(address);
                let mut counts = addresses.counts.lock().unwrap_or_else(PoisonError::into_inner);
                let count = counts.entry(client).or_default();
                if *count >= addresses.each_max {
                    return None;
                }
                *count += 1;
                Some(client)
            }
            _ => None,
        };
        Some(Visit { admission: Arc::clone(self), address })
    }

    /// A place with the worker that has fewest connections, with `own` if that is one of them. Gives the visit back if there is none.
    pub fn place(&self, visit: Visit, own: usize) -> Result<Place, Visit> {
        // Counted before it is looked at, so that no two take the last one.
        if self.taken.fetch_add(1, Ordering::Relaxed) >= self.all_max {
            self.taken.fetch_sub(1, Ordering::Relaxed);
            return Err(visit);
        }
        let loads = self.loads.iter().map(|load| load.load(Ordering::Relaxed));
        let least = loads.enumerate().min_by_key(|&(worker, load)| (load, worker != own));
        let worker = least.map_or(own, |(worker, _)| worker);
        self.loads[worker].fetch_add(1, Ordering::Relaxed);
        Ok(Place { visit, worker })
    }

    /// A place with this worker, also if there is none: for who has come before a drain began.
    pub fn last_place(&self, visit: Visit, worker: usize) -> Place {
        self.taken.fetch_add(1, Ordering::Relaxed);
        self.loads[worker].fetch_add(1, Ordering::Relaxed);
        Place { visit, worker }
    }
}

/// For simulations.
#[cfg(test)]
impl Admission {
    /// Whether no place is free.
    pub fn is_full(&self) -> bool {
        self.taken.load(Ordering::Relaxed) >= self.all_max
    }

    /// Connections that have a place, of all workers.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Place {
    /// The worker.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// The same place with another worker.
    pub fn move_to(&mut self, worker: usize) {
        let loads = &self.visit.admission.loads;
        loads[self.worker].fetch_sub(1, Ordering::Relaxed);
        loads[worker].fetch_add(1, Ordering::Relaxed);
        self.worker = worker;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let admission = &self.visit.admission;
        admission.loads[self.worker].fetch_sub(1, Ordering::Relaxed);
        admission.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let (Some(addresses), Some(address)) = (&self.admission.addresses, self.address) else { return };
        let mut counts = addresses.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = counts.entry(address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// Which addresses are one client's: an IPv6 client has as many as it likes below one prefix of 64 bits, and an IPv4 client may come by
/// way of an IPv6 socket.
pub fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Whether one more may come from there.
    fn visit(admission: &Arc<Admission>, address: &str) -> Option<Visit> {
        admission.visit(Some(address.parse().unwrap()))
    }

    #[test]
    fn each_comes_to_the_worker_that_has_fewest() {
        let admission = Admission::new(3, 7, None);
        let mut places = Vec::new();
        for expected in [1, 0, 2, 1, 0, 2] {
            let place = admission.place(admission.visit(None).unwrap(), 1).unwrap();
            assert_eq!(place.worker(), expected);
            places.push(place);
        }
        places.remove(2);
        assert_eq!(admission.place(admission.visit(None).unwrap(), 1).unwrap().worker(), 2);
    }

    #[test]
    fn no_more_than_there_are_places_and_each_is_given_back() {
        let admission = Admission::new(2, 3, None);
        let place = || admission.visit(None).and_then(|visit| admission.place(visit, 0).ok());
        let mut places: Vec<_> = (0..3).map_while(|_| place()).collect();
        assert!(admission.is_full() && place().is_none() && admission.is_full());
        places[0].move_to(1);
        places.pop();
        assert!(!admission.is_full());
        assert!(place().is_some(), "and given back at once");
        let visit = admission.visit(None).unwrap();
        places.push(admission.last_place(visit, 1));
        drop(places);
        assert_eq!(admission.taken(), 0);
        assert!(admission.loads.iter().all(|load| load.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn clients_are_counted_by_address_and_forgotten() {
        let admission = Admission::new(1, 100, Some(2));
        let same = ["2001:db8::1", "2001:db8::ffff:1:2:3", "2001:db8:0:0:8000::"];
        let visits: Vec<_> = same.iter().filter_map(|text| visit(&admission, text)).collect();
        assert_eq!(visits.len(), 2, "one network");
        assert!(visit(&admission, "2001:db8:0:1::1").is_some(), "another one");
        let mapped: Vec<_> = ["192.0.2.1", "::ffff:192.0.2.1", "192.0.2.1"]
            .iter()
            .filter_map(|text| visit(&admission, text))
            .collect();
        assert_eq!(mapped.len(), 2);
        assert!(visit(&admission, "192.0.2.2").is_some());
        let local: Vec<_> = (0..10).filter_map(|_| admission.visit(None)).collect();
        assert_eq!(local.len(), 10);
        drop((visits, mapped, local));
        assert!(admission.addresses.as_ref().unwrap().counts.lock().unwrap().is_empty());
    }

    #[test]
    fn threads_never_take_more_than_there_is() {
        let admission = Admission::new(4, 5, Some(3));
        thread::scope(|scope| {
            for own in 0..4 {
                let admission = &admission;
                scope.spawn(move || {
                    for _ in 0..10_000 {
                        let Some(visit) = visit(admission, "192.0.2.1") else { continue };
                        let Ok(place) = admission.place(visit, own) else { continue };
                        assert!(admission.loads[place.worker()].load(Ordering::Relaxed) <= 3);
                    }
                });
            }
        });
        assert_eq!(admission.taken(), 0);
    }
}
