//! Answers that bring nothing, and why.

use std::sync::LazyLock;

use bytes::Bytes;
use tracing::{error, warn};

use crate::codec::http::Status;
use crate::codec::http::response::Fields;
use crate::ring::service::{Reply, ReplyBody};
use crate::store::StoreError;

/// Why there is no answer. The cause was logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Asking again can help.
    Busy,
    /// The thing is there, and is damaged, or no NAR can be made of it: it is as good as not there.
    Damaged,
    /// Somebody has to look after it.
    Broken,
}

impl Failure {
    /// Logs an error and says what it means for a client.
    pub fn log(error: &StoreError) -> Self {
        match error {
            _ if error.is_passing() => {
                warn!("{error}");
                Self::Busy
            }
            StoreError::Damaged { .. } => {
                error!("{error}");
                Self::Damaged
            }
            StoreError::Unservable { .. } => {
                warn!("{error}");
                Self::Damaged
            }
            StoreError::Database { .. } | StoreError::Schema { .. } | StoreError::Io { .. } => {
                error!("{error}");
                Self::Broken
            }
        }
    }

    /// What to tell a client.
    pub fn reply(self) -> Reply {
        match self {
            Self::Busy => overloaded(),
            Self::Damaged => not_found(),
            Self::Broken => {
                Reply::text(Status::InternalServerError, "the cache cannot read its store; see its log\n")
            }
        }
    }
}

/// Nobody has it. Nix takes this for "not here" and asks the next cache.
pub fn not_found() -> Reply {
    const TEXT: &[u8] = b"not found\n";
    // Each client asks several caches, so half of all requests end here: the head is made once. It is not shared by counting,
    // because all workers would count in one place.
    static FIELDS: LazyLock<Bytes> = LazyLock::new(|| Reply::text(Status::NotFound, TEXT).fields);
    let body = ReplyBody::Bytes(Bytes::from_static(TEXT));
    Reply { status: Status::NotFound, fields: Bytes::from_static(&FIELDS), body }
}

/// It has no such method, but these.
pub fn not_allowed(methods: &'static str, text: &'static str) -> Reply {
    Reply::text_with(Status::MethodNotAllowed, Fields::new().allow(methods), text)
}

/// There is no room: never 429, on which Nix 2.31 to 2.34 sleeps for a minute.
pub fn overloaded() -> Reply {
    let fields = Fields::new().retry_after(1);
    Reply::text_with(Status::ServiceUnavailable, fields, "too much to do; try again in a second\n")
}
