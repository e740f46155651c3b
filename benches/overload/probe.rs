//! The well-behaved client: it asks for narinfos, one after another, and notes how long each takes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::harness::load::{connect, fetch};
use crate::harness::process;

/// Between two requests.
const PAUSE: Duration = Duration::from_millis(1);
/// So many requests on one connection, and then a new one.
const REQUESTS_EACH: usize = 20;

/// One request.
#[derive(Clone, Copy)]
pub struct Sample {
    pub at: Instant,
    /// From the request (of the first on a connection: from the connecting) to the end of the answer; `None` if there was none.
    pub wait: Option<Duration>,
}

/// A client that asks until it is dropped.
pub struct Probe {
    samples: Arc<Mutex<Vec<Sample>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Probe {
    pub fn start(address: SocketAddr, request: Vec<u8>) -> Self {
        let (samples, is_over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (shared, over) = (Arc::clone(&samples), Arc::clone(&is_over));
        let thread = thread::spawn(move || {
            let _ = process::pin(1);
            while !over.load(Ordering::Relaxed) {
                let mut at = Instant::now();
                let mut connection = connect(address);
                for _ in 0..REQUESTS_EACH {
                    let fetched =
                        connection.as_mut().ok().and_then(|socket| fetch(socket, &request, 200).ok());
                    let wait = fetched.is_some().then(|| at.elapsed());
                    shared.lock().unwrap_or_else(PoisonError::into_inner).push(Sample { at, wait });
                    thread::sleep(PAUSE);
                    if wait.is_none() {
                        break;
                    }
                    at = Instant::now();
                }
            }
        });
        Self { samples, is_over, thread: Some(thread) }
    }

    /// What was asked for between two moments, in the order of asking.
    pub fn between(&self, from: Instant, to: Instant) -> Vec<Sample> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.iter().filter(|sample| sample.at >= from && sample.at < to).copied().collect()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The wait that so many percent stay below. Milliseconds.
pub fn wait_ms(samples: &[Sample], percent: usize) -> f64 {
    let mut waits: Vec<_> = samples.iter().filter_map(|sample| sample.wait).collect();
    waits.sort_unstable();
    let wait = waits.get(waits.len() * percent / 100).or(waits.last());
    wait.map_or(f64::NAN, |wait| wait.as_secs_f64() * 1e3)
}

/// Requests without an answer.
pub fn failed(samples: &[Sample]) -> usize {
    samples.iter().filter(|sample| sample.wait.is_none()).count()
}
