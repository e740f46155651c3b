//! The nodes, which are asked at their `/metrics`: each by a thread of its own, so that none waits for another.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::figures::{Figures, Scrape};
use crate::codec::exposition::ExpositionError;
use crate::limits::{EXPOSITION_LEN_MAX, TOP_TICK};
use crate::push::client::{Answer, Cache, ClientError};

/// A node with what it is to be compared with.
pub struct Node {
    cache: Cache,
    /// What it said last, and when.
    before: Option<(Scrape, Instant)>,
}

/// What there is to show of a node: its figures, or in words why there are none.
pub type Seen = Result<Figures, String>;

/// What was seen last of each node. Older news are gone: a terminal that is stopped must not keep them all.
#[derive(Clone)]
pub struct News(Arc<[Mutex<Option<Seen>>]>);

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Client(ClientError),
    // Whoever reads this reads the URL in front of it.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    #[error(
        "wants to know who asks ({0}): name a file with a token with --token-file, put a login into the URL, or into a netrc file"
    )]
    Unauthorized(Answer),
    #[error("it has no /metrics: name the node itself, for a load balancer may hide them")]
    Absent,
    #[error("its /metrics are longer than {EXPOSITION_LEN_MAX} bytes")]
    TooLong,
    #[error("its /metrics are not in the text format of Prometheus: {0}")]
    Malformed(#[from] ExpositionError),
    #[error("its /metrics are not those of a narwire")]
    Stranger,
}

impl From<ClientError> for LookError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Unreachable { cause, .. } => Self::Unreachable(cause),
            ClientError::Unauthorized { answer, .. } => Self::Unauthorized(answer),
            error => Self::Client(error),
        }
    }
}

impl News {
    fn of(nodes_len: usize) -> Self {
        Self((0..nodes_len).map(|_| Mutex::default()).collect())
    }

    fn put(&self, index: usize, seen: Seen) {
        *self.0[index].lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
    }

    /// What is new, with the node's index.
    pub fn take(&self) -> impl Iterator<Item = (usize, Seen)> {
        let slots = self.0.iter().map(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner).take());
        slots.enumerate().filter_map(|(index, seen)| Some((index, seen?)))
    }
}

impl Node {
    /// A node that was not asked yet.
    pub fn new(cache: Cache) -> Self {
        Self { cache, before: None }
    }

    /// Where it is.
    pub fn name(&self) -> String {
        self.cache.address().to_string()
    }

    /// Asks it, and compares what it says with what it said before.
    fn look(&mut self) -> Result<Figures, LookError> {
        let text = self.cache.fetch("metrics", EXPOSITION_LEN_MAX)?.ok_or(LookError::Absent)?;
        if text.len() as u64 >= EXPOSITION_LEN_MAX {
            return Err(LookError::TooLong);
        }
        let (after, now) = (Scrape::read(&text)?, Instant::now());
        if !after.is_of_narwire() {
            return Err(LookError::Stranger);
        }
        let before =
            self.before.as_ref().map(|(before, then)| (before, now.duration_since(*then).as_secs_f64()));
        let figures = Figures::between(before, &after);
        self.before = Some((after, now));
        Ok(figures)
    }

    fn see(&mut self) -> Seen {
        self.look().map_err(|error| error.to_string())
    }
}

/// Asks all nodes, and once more after the interval, and says of each by its name what came of it.
pub fn look_twice(nodes: Vec<Node>, interval: Duration) -> Vec<(String, Seen)> {
    let look_twice = |mut node: Node| {
        let first = node.see();
        if first.is_ok() {
            thread::sleep(interval);
        }
        (node.name(), first.and_then(|_| node.see()))
    };
    thread::scope(|scope| {
        let threads: Vec<_> = nodes.into_iter().map(|node| scope.spawn(|| look_twice(node))).collect();
        let seen = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        seen.collect()
    })
}

/// Asks each node again and again, unless it is paused. The threads end with the process.
pub fn watch(nodes: Vec<Node>, interval: Duration, is_paused: &Arc<AtomicBool>) -> io::Result<News> {
    let news = News::of(nodes.len());
    for (index, mut node) in nodes.into_iter().enumerate() {
        let (news, is_paused) = (news.clone(), Arc::clone(is_paused));
        thread::Builder::new().name(format!("node {index}")).spawn(move || {
            loop {
                let next = Instant::now() + interval;
                news.put(index, node.see());
                thread::sleep(next.saturating_duration_since(Instant::now()));
                while is_paused.load(Ordering::Relaxed) {
                    thread::sleep(TOP_TICK);
                }
            }
        })?;
    }
    Ok(news)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    const BUILD: &str = "narwire_build_info{version=\"1\"} 1\n";

    /// A node that gives these answers, one to each request, and then none.
    fn node(answers: Vec<String>) -> Node {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        thread::spawn(move || {
            for answer in answers {
                let (mut peer, _) = listener.accept().unwrap();
                let mut request = [0; 4096];
                let len = peer.read(&mut request).unwrap();
                assert!(request[..len].starts_with(b"GET /metrics HTTP/1.1\r\n"));
                peer.write_all(answer.as_bytes()).unwrap();
            }
        });
        Node::new(Cache::new(address, None, None).unwrap().answering_within(Duration::from_mins(1)))
    }

    fn answer(status: &str, body: &str) -> String {
        let len = body.len();
        format!("HTTP/1.1 {status}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}")
    }

    #[test]
    fn what_is_no_node_is_told_in_words() {
        for (answer, words) in [
            (answer("404 Not Found", ""), "it has no /metrics: name the node itself"),
            (answer("401 Unauthorized", "who?"), "--token-file"),
            (answer("503 Service Unavailable", "busy"), "GET metrics: 503 busy"),
            (answer("200 OK", "<html>\n"), "not in the text format of Prometheus: line 1"),
            (answer("200 OK", "up 1\n"), "not those of a narwire"),
            (answer("200 OK", BUILD).replace("Length: 3", "Length: 9"), "GET metrics"),
            (answer("200 OK", &BUILD[..20]), "line 1: "),
            (answer("200 OK", &"\n".repeat(usize::try_from(EXPOSITION_LEN_MAX).unwrap())), "longer than"),
        ] {
            let error = node(vec![answer]).see().unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let cache = Cache::new(format!("http://{nobody}").parse().unwrap(), None, None).unwrap();
        let error = Node::new(cache).see().unwrap_err();
        assert!(error.starts_with("cannot be reached: Connection refused"), "{error}");
    }

    #[test]
    fn a_node_that_was_away_is_compared_with_what_it_said_last() {
        let count = |count: u64| format!("{BUILD}narwire_http_requests_total{{status=\"200\"}} {count}\n");
        let mut node = node(vec![
            answer("200 OK", &count(1)),
            answer("503 Service Unavailable", ""),
            answer("200 OK", &count(5)),
        ]);
        assert_eq!(node.see().unwrap().requests(), None);
        node.see().unwrap_err();
        assert!(node.see().unwrap().requests().unwrap() > 0.0);
    }

    #[test]
    fn who_does_not_look_finds_the_latest_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let node = Node::new(Cache::new(address, None, None).unwrap());
        let news = watch(vec![node], Duration::ZERO, &Arc::default()).unwrap();
        for count in 1..=5 {
            let (mut peer, _) = listener.accept().unwrap();
            let _request = peer.read(&mut [0; 4096]).unwrap();
            let text = format!("narwire_build_info{{version=\"{count}\"}} 1\n");
            peer.write_all(answer("200 OK", &text).as_bytes()).unwrap();
        }
        // Whoever asks for a sixth time has put down what came before.
        let (_peer, _) = listener.accept().unwrap();
        let seen: Vec<_> = news.take().collect();
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].0, seen[0].1.as_ref().unwrap().version()), (0, Some("5")));
        assert_eq!(news.take().count(), 0);
    }

    #[test]
    fn two_looks_are_enough_for_figures() {
        let nodes = vec![
            node(vec![answer("200 OK", BUILD), answer("200 OK", BUILD)]),
            node(vec![answer("200 OK", BUILD), answer("404 Not Found", "")]),
        ];
        let seen = look_twice(nodes, Duration::from_millis(1));
        assert_eq!(seen[0].1.as_ref().unwrap().version(), Some("1"));
        assert!(seen[1].1.as_ref().unwrap_err().contains("no /metrics"));
    }
}
