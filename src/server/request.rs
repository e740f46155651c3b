//! A request on its way through the sources: what it wants, what it waits for, what they say to it.

use std::ffi::CString;
use std::sync::Arc;

use super::config::{AccessConfig, AccessLog};
use super::layouts::WalkNews;
use super::live_store::Awaited;
use super::lookup::Known;
use super::page::index::Index;
use super::plane::{Demand, Interest};
use super::proxy::TrustedProxies;
use super::refusal::Failure;
use super::representation::{Conditions, Made};
use super::uploads::News;
use crate::codec::cache_info::CacheInfo;
use crate::codec::http::route::Route;
use crate::codec::store_path::HashPart;
use crate::ring::descriptor::Descriptor;
use crate::ring::op::ConnectionId;
use crate::ring::service::Reply;
use crate::store::catalog::NarKey;
use crate::store::change::Stamp;

/// What a request wants.
pub struct Wish {
    /// The resource.
    pub route: Route,
    /// Which part of it, and when.
    pub conditions: Conditions,
}

/// What a request waits for.
pub enum Stage {
    /// Something of a live store.
    Store(Awaited),
    /// A file of a cache directory to be opened.
    File,
    /// [`Message::Made`], which is made for as long as this is held.
    Made(Interest),
}

/// What a source says to a wish.
pub enum Step {
    /// This is the answer.
    Reply(Reply),
    /// It does not have it.
    Absent,
    /// A message will bring it.
    Wait(Stage),
    /// A file has to be opened first.
    Open {
        /// The directory.
        directory: Descriptor,
        /// Relative to the directory.
        path: CString,
        /// What goes on then.
        stage: Stage,
    },
}

/// What other threads say.
#[derive(Debug)]
pub enum Message {
    /// What is known of a hash part.
    Known {
        /// Of which source.
        source: usize,
        /// The hash part.
        hash_part: HashPart,
        /// What was found.
        result: Result<Known, Failure>,
    },
    /// What a walk has found.
    Walk {
        /// In which source.
        source: usize,
        /// Of which NAR.
        key: NarKey,
        /// For whom it was begun: the NAR may be walked for somebody else by now.
        demand: Demand,
        /// What it was.
        news: WalkNews,
    },
    /// What was made for one request.
    Made {
        /// Whose request.
        id: ConnectionId,
        /// What came of it.
        result: Result<Option<Made>, Failure>,
    },
    /// The body of a connection has more, or an end.
    Encoded {
        /// Which connection.
        id: ConnectionId,
        /// What was found out about its path.
        damaged: Option<Damaged>,
    },
    /// What has become of an upload.
    Upload(News),
    /// What is in force from now on.
    Terms(Arc<Terms>),
}

/// What does not depend on a source, and can change while the server runs.
#[derive(Debug)]
pub struct Terms {
    /// `/`
    pub index: Index,
    /// What `/nix-cache-info` says.
    pub cache_info: CacheInfo,
    /// Who may do what.
    pub access: AccessConfig,
    /// Whose word on who asks, and for which name, is taken.
    pub proxies: TrustedProxies,
    /// Of which requests a line is logged.
    pub access_log: AccessLog,
}

/// A path whose tree is not what the database says.
#[derive(Clone, Copy, Debug)]
pub struct Damaged {
    /// In which source.
    pub source: usize,
    /// Which NAR.
    pub key: NarKey,
    /// The state of the database when it began to be sent.
    pub stamp: Stamp,
}
