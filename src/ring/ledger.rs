//! What a worker counts: written by its thread alone, read by whoever looks.
//!
//! [`Figures`] are the numbers; the [`Ledger`] is where the worker writes them, and what it has to remember for that. Nothing in it waits,
//! and no clock is read for a request: what is asked and answered between two waits took as long as that turn at most, which is said at
//! its end of all of them together.

use std::sync::Arc;
use std::time::Instant;

use super::Traffic;
use super::service::{Ending, Witness};
use crate::codec::http::Status;
use crate::limits::TOPICS_MAX;
use crate::tally::{Histogram, OwnCount, Tally as _, classes};

/// Upper ends of the classes of [`Figures::batches`]; a larger batch has a class of its own.
pub const BATCH_BOUNDS: [u64; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];

/// What a request is about. The service says so, and the ring counts by it without knowing what it means. Below [`TOPICS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topic(pub u8);

impl Topic {
    /// Of what is no request.
    pub const MALFORMED: Self = Self(0);
}

/// Everything that one worker counts. The numbers only grow. Two workers share no line of the processor's cache, nor two that it fetches
/// together.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Figures {
    /// By [`Topic`].
    pub topics: [TopicFigures; TOPICS_MAX],
    /// Requests whose head was whole.
    pub begun: OwnCount,
    /// Those of them that were answered to the end, or given up. What is answered from memory has its end when the answer waits to be sent.
    pub ended: OwnCount,
    /// Answers whose body was streamed and broke off, by [`Truncation`].
    pub truncated: [OwnCount; Truncation::ALL.len()],
    /// Connections that this worker has accepted, for itself or for another one.
    pub accepted: OwnCount,
    /// Connections that were turned away because their address has too many.
    pub turned_away: OwnCount,
    /// Connections that this worker has begun to serve.
    pub opened: OwnCount,
    /// Those of them that have ended, by [`Farewell`].
    pub closed: [OwnCount; Farewell::ALL.len()],
    /// What the kernel has taken, by [`Way`].
    pub sends: [SendFigures; Way::ALL.len()],
    /// How often a long file was found not to be in memory.
    pub cold_reads: OwnCount,
    /// Entries handed to the ring.
    pub submissions: OwnCount,
    /// Completions taken from it.
    pub completions: OwnCount,
    /// Turns in which the kernel had more completions than the ring had room for.
    pub overflows: OwnCount,
    /// From the return of a wait to the next one.
    pub turns: Histogram<OwnCount>,
    /// Turns by the number of their completions, in classes; all of these together are [`Figures::completions`].
    pub batches: [OwnCount; BATCH_BOUNDS.len() + 1],
    /// How often something had to wait for one of these, or was refused because of it, by [`RingLimit`].
    pub limits: [OwnCount; RingLimit::ALL.len()],
}

/// For simulations.
#[cfg(any(test, fuzzing))]
impl Figures {
    /// Checks what holds when everybody has gone.
    pub fn assert_at_rest(&self) {
        assert_eq!(self.begun.get(), self.ended.get(), "requests are in flight");
        assert_eq!(self.opened.get(), total(&self.closed), "each connection ends once");
        let answered: u64 = self.topics.iter().map(|topic| total(&topic.statuses)).sum();
        let first_bytes: u64 = self.topics.iter().map(|topic| topic.first_byte.read().count()).sum();
        let transfers: u64 = self.topics.iter().map(|topic| topic.transfer.read().count()).sum();
        assert!(answered <= self.begun.get(), "nothing is answered twice");
        // One that breaks at once has no first byte.
        assert!((answered - total(&self.truncated)..=answered).contains(&first_bytes), "first bytes");
        assert!(transfers + total(&self.truncated) <= answered, "nothing ends in both ways");
        assert_eq!(total(&self.batches), self.turns.read().count());
    }
}

/// All of these together.
#[cfg(any(test, fuzzing))]
pub fn total(counts: &[OwnCount]) -> u64 {
    counts.iter().map(OwnCount::get).sum()
}

/// What is counted of requests about one topic.
#[derive(Debug, Default)]
pub struct TopicFigures {
    /// Answers, in the order of [`Status::ALL`].
    pub statuses: [OwnCount; Status::ALL.len()],
    /// Of heads and bodies: of those that are streamed what the kernel has taken, of those in memory what was put in line for it. Bytes.
    pub sent_bytes: OwnCount,
    /// From the request being understood to the head of the answer being handed to the kernel.
    pub first_byte: Histogram<OwnCount>,
    /// From there to the last byte being taken by the socket, of answers with a body that is streamed to its end.
    pub transfer: Histogram<OwnCount>,
}

/// What is counted of one way to send.
#[derive(Debug, Default)]
pub struct SendFigures {
    /// Operations that the kernel has taken something of.
    pub count: OwnCount,
    /// What it has taken of them. Bytes.
    pub sent_bytes: OwnCount,
}

classes! {
    /// Why an answer broke off.
    Truncation {
        /// Its body could not be finished: a fault of this machine.
        Body = "body",
        /// The peer has gone.
        Peer = "peer",
        /// The peer took too little for too long.
        Slow = "slow",
    }
}

classes! {
    /// Why a connection has ended.
    Farewell {
        /// The peer has ended it.
        Peer = "peer",
        /// The peer has reset it, or it broke.
        Reset = "reset",
        /// Nothing was asked for some time.
        Idle = "idle",
        /// A head or a body did not come in time.
        Timeout = "timeout",
        /// The peer took too little for too long.
        Slow = "slow",
        /// Somebody else needed its place.
        Evicted = "evicted",
        /// One side said that an answer was to be the last.
        LastAnswer = "last_answer",
        /// What came was no request.
        Malformed = "malformed",
        /// A body could not be finished.
        BrokenBody = "broken_body",
    }
}

classes! {
    /// How bytes are sent.
    Way {
        /// Answers that are in memory, with their heads.
        Memory = "memory",
        /// Buffers of framing and files that were read into them.
        Packed = "packed",
        /// Ranges of files that are in memory, by sendfile(2).
        SendFile = "sendfile",
        /// Ranges of files that were not in memory, read through the ring.
        Read = "read",
    }
}

classes! {
    /// What there is only so much of.
    RingLimit {
        /// Connections: one had to wait until another had gone.
        Connections = "connections",
        /// Files that the process may have open, or memory: a connection could not be accepted, or a file not be opened.
        Descriptors = "descriptors",
        /// Buffers that are packed: a transfer had to wait for one.
        SendBuffers = "send_buffers",
        /// Buffers that uploads come into: one had to wait.
        IntakeBuffers = "intake_buffers",
        /// Connections for which the kernel takes what it likes: a long body is sent without that.
        Exemptions = "exemptions",
    }
}

impl Farewell {
    /// Whether the connection ends in a reset, so that the peer cannot take what it has for the whole.
    pub fn is_reset(self) -> bool {
        matches!(self, Self::Reset | Self::Slow | Self::BrokenBody)
    }

    /// Why an answer broke off on a connection that has ended like this.
    fn truncation(self) -> Truncation {
        match self {
            Self::BrokenBody => Truncation::Body,
            Self::Slow => Truncation::Slow,
            _ => Truncation::Peer,
        }
    }
}

const _: () = assert!(TOPICS_MAX <= u32::BITS as usize);

/// Where a worker writes its [`Figures`].
pub struct Ledger {
    figures: Arc<Figures>,
    /// When the last wait returned.
    now: Instant,
    /// How many requests were understood since then, and their answers begun, by [`Topic`].
    prompt: [u32; TOPICS_MAX],
    /// The topics of which there are some, a bit for each: there are few in one turn.
    prompted: u32,
    /// The others whose answers were begun since then, and when they were understood. At most one for each connection, since what comes
    /// behind it is understood now.
    late: Vec<(Topic, Instant)>,
}

/// A request from being understood to its end.
pub struct Account {
    topic: Topic,
    witness: Option<Witness>,
    /// When it was understood.
    begun: Instant,
    status: Option<Status>,
    /// When the head of the answer was handed to the kernel.
    first_byte: Option<Instant>,
    sent_len_bytes: u64,
}

impl Ledger {
    /// An account of what happens from `now` on.
    pub fn new(figures: Arc<Figures>, now: Instant) -> Self {
        Self { figures, now, prompt: [0; TOPICS_MAX], prompted: 0, late: Vec::new() }
    }

    /// The numbers, for what is counted and not remembered.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// A turn has ended when the worker began to wait, and the next one begins now.
    pub fn turn(&mut self, waited_since: Instant, now: Instant, traffic: Traffic) {
        let Traffic { submissions, completions, has_overflowed } = traffic;
        let took = waited_since.saturating_duration_since(self.now);
        while self.prompted != 0 {
            let topic = self.prompted.trailing_zeros() as usize;
            self.prompted &= self.prompted - 1;
            let times = std::mem::take(&mut self.prompt[topic]);
            self.figures.topics[topic].first_byte.observe_times(took, u64::from(times));
        }
        for (topic, begun) in self.late.drain(..) {
            let topic = &self.figures.topics[usize::from(topic.0)];
            topic.first_byte.observe(waited_since.saturating_duration_since(begun));
        }
        self.now = now;
        self.figures.turns.observe(took);
        self.figures.batches[BATCH_BOUNDS.partition_point(|&bound| bound < completions)].add(1);
        self.figures.submissions.add(submissions);
        self.figures.completions.add(completions);
        self.figures.overflows.add(u64::from(has_overflowed));
    }

    /// A request was understood.
    pub fn begin(&self, topic: Topic, witness: Option<Witness>) -> Account {
        self.figures.begun.add(1);
        Account { topic, witness, begun: self.now, status: None, first_byte: None, sent_len_bytes: 0 }
    }

    /// It is answered.
    pub fn answered(&self, account: &mut Account, status: Status) {
        self.topic(account).statuses[status.index()].add(1);
        account.status = Some(status);
    }

    /// The head of its answer is handed to the kernel, if that was not said before.
    pub fn first_byte(&mut self, account: &mut Account) {
        if account.first_byte.is_some() {
            return;
        }
        account.first_byte = Some(self.now);
        if account.begun == self.now {
            self.prompt[usize::from(account.topic.0)] += 1;
            self.prompted |= 1 << account.topic.0;
        } else {
            self.late.push((account.topic, account.begun));
        }
    }

    /// So much more of its answer has gone.
    pub fn went(&self, account: &mut Account, len: usize) {
        self.topic(account).sent_bytes.add(len as u64);
        account.sent_len_bytes += len as u64;
    }

    /// Something was said about it that is not its answer.
    pub fn said(&self, account: &Account, len: usize) {
        self.topic(account).sent_bytes.add(len as u64);
    }

    /// All of its answer, which was in memory, waits to be sent.
    pub fn answered_whole(&self, account: Account) {
        self.end(account, true);
    }

    /// The last byte of its answer, which was streamed, was taken.
    pub fn streamed_whole(&self, account: Account) {
        if let Some(first_byte) = account.first_byte {
            self.topic(&account).transfer.observe(self.now.saturating_duration_since(first_byte));
        }
        self.end(account, true);
    }

    /// Its connection has ended before that.
    pub fn cut(&self, account: Account, farewell: Farewell) {
        if account.status.is_some() {
            self.figures.truncated[farewell.truncation() as usize].add(1);
        }
        self.end(account, false);
    }

    /// The kernel has taken so much.
    pub fn sent(&self, way: Way, len: usize) {
        let figures = &self.figures.sends[way as usize];
        figures.count.add(1);
        figures.sent_bytes.add(len as u64);
    }

    /// There was not enough of this.
    pub fn hit(&self, limit: RingLimit) {
        self.figures.limits[limit as usize].add(1);
    }

    fn end(&self, account: Account, is_whole: bool) {
        self.figures.ended.add(1);
        if let Some(witness) = account.witness {
            witness(&Ending { status: account.status, sent_len_bytes: account.sent_len_bytes, is_whole });
        }
    }

    fn topic(&self, account: &Account) -> &TopicFigures {
        &self.figures.topics[usize::from(account.topic.0)]
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;

    const TOPIC: Topic = Topic(3);

    /// A ledger, and the clock that it is told.
    struct Bench {
        ledger: Ledger,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let now = Instant::now();
            Self { ledger: Ledger::new(Arc::default(), now), now }
        }

        /// The turn has taken so many milliseconds, and then the worker waits for so many.
        fn turn(&mut self, took_ms: u64, waits_ms: u64) {
            let waited_since = self.now + Duration::from_millis(took_ms);
            self.now = waited_since + Duration::from_millis(waits_ms);
            self.ledger.turn(waited_since, self.now, Traffic::default());
        }

        fn topic(&self) -> &TopicFigures {
            &self.ledger.figures.topics[usize::from(TOPIC.0)]
        }
    }

    #[test]
    fn what_is_asked_and_answered_within_a_turn_took_as_long_as_the_turn() {
        let mut bench = Bench::new();
        bench.turn(1, 100);
        for _ in 0..3 {
            let mut account = bench.ledger.begin(TOPIC, None);
            bench.ledger.first_byte(&mut account);
        }
        assert_eq!(bench.topic().first_byte.read().count(), 0, "not before the turn has ended");
        bench.turn(2, 100);
        bench.turn(7, 100);
        let observed = bench.topic().first_byte.read();
        assert_eq!((observed.count(), observed.sum_ns), (3, 6_000_000));
        assert_eq!(observed.classes[4], 3);
        let turns = bench.ledger.figures.turns.read();
        assert_eq!((turns.count(), turns.sum_ns), (3, 10_000_000), "waiting is no part of a turn");
    }

    #[test]
    fn what_takes_several_turns_took_from_the_first_to_the_end_of_the_last() {
        let mut bench = Bench::new();
        let mut account = bench.ledger.begin(TOPIC, None);
        bench.turn(1, 10);
        bench.ledger.answered(&mut account, Status::Ok);
        bench.ledger.first_byte(&mut account);
        bench.turn(2, 40);
        bench.ledger.first_byte(&mut account);
        bench.ledger.went(&mut account, 100);
        bench.turn(3, 50);
        bench.ledger.went(&mut account, 20);
        bench.ledger.streamed_whole(account);
        let topic = bench.topic();
        assert_eq!(topic.first_byte.read().sum_ns, 13_000_000);
        assert_eq!(topic.transfer.read().sum_ns, 95_000_000);
        assert_eq!((topic.first_byte.read().count(), topic.transfer.read().count()), (1, 1));
        assert_eq!(topic.sent_bytes.get(), 120);
        bench.ledger.figures.assert_at_rest();
    }

    #[test]
    fn a_witness_hears_how_it_ended_and_why_it_broke_off_is_counted() {
        let bench = Bench::new();
        let heard = Rc::new(RefCell::new(Vec::new()));
        let begin = || {
            let heard = Rc::clone(&heard);
            bench.ledger.begin(TOPIC, Some(Box::new(move |ending: &Ending| heard.borrow_mut().push(*ending))))
        };
        bench.ledger.cut(begin(), Farewell::Reset);
        for farewell in Farewell::ALL {
            let mut account = begin();
            bench.ledger.answered(&mut account, Status::PartialContent);
            bench.ledger.went(&mut account, 7);
            bench.ledger.cut(account, farewell);
        }
        let mut account = begin();
        bench.ledger.answered(&mut account, Status::NotFound);
        bench.ledger.answered_whole(account);

        let unanswered = Ending { status: None, sent_len_bytes: 0, is_whole: false };
        let broken = Ending { status: Some(Status::PartialContent), sent_len_bytes: 7, is_whole: false };
        let whole = Ending { status: Some(Status::NotFound), sent_len_bytes: 0, is_whole: true };
        let mut expected = vec![unanswered];
        expected.extend([broken; Farewell::ALL.len()]);
        expected.push(whole);
        assert_eq!(heard.take(), expected);
        let truncated = bench.ledger.figures.truncated.each_ref().map(OwnCount::get);
        assert_eq!(truncated, [1, Farewell::ALL.len() as u64 - 2, 1]);
        assert_eq!(bench.topic().statuses[Status::NotFound.index()].get(), 1);
        assert_eq!(bench.ledger.figures.begun.get(), bench.ledger.figures.ended.get());
    }

    #[test]
    fn a_turn_is_in_the_class_of_its_completions() {
        let mut bench = Bench::new();
        for (completions, class) in [(0, 0), (1, 0), (2, 1), (3, 2), (512, 9), (513, 10), (100_000, 10)] {
            let before = bench.ledger.figures.batches[class].get();
            let traffic = Traffic { submissions: 1, completions, has_overflowed: class == 10 };
            bench.ledger.turn(bench.now, bench.now, traffic);
            assert_eq!(bench.ledger.figures.batches[class].get(), before + 1, "{completions}");
        }
        let figures = bench.ledger.figures;
        assert_eq!((figures.submissions.get(), figures.completions.get()), (7, 101_031));
        assert_eq!(figures.overflows.get(), 2);
    }
}
