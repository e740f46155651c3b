//! What a worker counts: written by its thread alone, read by whoever looks.

use crate::codec::http::Status;
use crate::limits::TOPICS_MAX;
use crate::tally::{Histogram, OwnCount, classes};

/// Upper ends of the classes of [`Figures::batches`]; a larger batch has a class of its own.
pub const BATCH_BOUNDS: [u64; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];

/// What a request is about. The service says so, and the ring counts by it without knowing what it means. Below [`TOPICS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topic(pub u8);

impl Topic {
    /// Of what is no request.
    pub const MALFORMED: Self = Self(0);
}

/// Everything that one worker counts. The numbers only grow.
#[derive(Debug, Default)]
pub struct Figures {
    /// By [`Topic`].
    pub topics: [TopicFigures; TOPICS_MAX],
    /// Requests whose head was whole.
    pub begun: OwnCount,
    /// Those of them that were answered to the end, or given up.
    pub ended: OwnCount,
    /// Answers that broke off, by [`Truncation`].
    pub truncated: [OwnCount; Truncation::ALL.len()],
    /// Connections that this worker has accepted, for itself or for another one.
    pub accepted: OwnCount,
    /// Connections that were turned away because their address has too many.
    pub turned_away: OwnCount,
    /// Connections that this worker has begun to serve.
    pub opened: OwnCount,
    /// Those of them that have ended, by [`Farewell`].
    pub closed: [OwnCount; Farewell::ALL.len()],
    /// Bytes on their way to peers, by [`Way`].
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
    /// Turns by the number of their completions, in classes.
    pub batches: [OwnCount; BATCH_BOUNDS.len() + 1],
    /// How often something had to wait for one of these, or was refused because of it, by [`RingLimit`].
    pub limits: [OwnCount; RingLimit::ALL.len()],
}

/// What is counted of requests about one topic.
#[derive(Debug, Default)]
pub struct TopicFigures {
    /// Answers, in the order of [`Status::ALL`].
    pub statuses: [OwnCount; Status::ALL.len()],
    /// Of heads and bodies, as the kernel has taken them. Bytes.
    pub sent_bytes: OwnCount,
    /// From the end of the request's head to the head of the answer being handed to the kernel.
    pub first_byte: Histogram<OwnCount>,
    /// From there to the last byte being taken by the socket, of answers with a body that is streamed.
    pub transfer: Histogram<OwnCount>,
}

/// What is counted of one way to send.
#[derive(Debug, Default)]
pub struct SendFigures {
    /// Operations.
    pub count: OwnCount,
    /// What the kernel has taken of them. Bytes.
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
        /// The peer has ended it, between two requests.
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
        /// Files that the process may have open, or memory: a connection could not be accepted.
        Descriptors = "descriptors",
        /// Buffers that are packed: a transfer had to wait for one.
        SendBuffers = "send_buffers",
        /// Buffers that uploads come into: one had to wait.
        IntakeBuffers = "intake_buffers",
    }
}
