//! What requests are about, as metrics tell them apart.

use crate::codec::cache_file::CacheFile;
use crate::codec::http::Method;
use crate::codec::http::route::{Look, Route};
use crate::limits::TOPICS_MAX;
use crate::ring::ledger::Topic;
use crate::tally::classes;

classes! {
    /// What a request is about.
    Subject {
        /// It is no request; the ring says so itself.
        Malformed = "malformed",
        /// Nothing that is served.
        Other = "other",
        /// `/`
        Index = "index",
        /// `/nix-cache-info`
        CacheInfo = "cache_info",
        /// `.narinfo`
        NarInfo = "narinfo",
        /// `.ls`
        Listing = "listing",
        /// A NAR, or a file of one.
        Nar = "nar",
        /// A build log.
        Log = "log",
        /// A realisation, in both of its forms.
        Realisation = "realisation",
        /// Where debug symbols are.
        DebugInfo = "debuginfo",
        /// Whatever would change something.
        Upload = "upload",
        /// What people look at beside `/`.
        Page = "page",
        /// `/health`
        Health = "health",
        /// `/metrics`
        Metrics = "metrics",
    }
}

const _: () = assert!(Subject::ALL.len() <= TOPICS_MAX && Subject::Malformed as u8 == Topic::MALFORMED.0);

impl Subject {
    /// What a request with this method and route is about.
    pub fn of(method: Method, route: &Route) -> Self {
        match (method, route) {
            (Method::Get | Method::Head, route) => Self::of_route(route),
            (Method::Options | Method::Other, _) => Self::Other,
            (Method::Put | Method::Post | Method::Delete, _) => Self::Upload,
        }
    }

    fn of_route(route: &Route) -> Self {
        match route {
            Route::Index => Self::Index,
            Route::File(file) => Self::of_file(file),
            Route::Nar(_) | Route::NarFile(_) => Self::Nar,
            Route::Health => Self::Health,
            Route::Metrics => Self::Metrics,
            Route::Look(Look::NarInfoJson(_)) => Self::NarInfo,
            Route::Look(Look::Search(_) | Look::Details(_) | Look::Contents(_)) => Self::Page,
            Route::Import | Route::Version | Route::NotFound => Self::Other,
        }
    }

    fn of_file(file: &CacheFile) -> Self {
        match file {
            CacheFile::CacheInfo => Self::CacheInfo,
            CacheFile::NarInfo(_) => Self::NarInfo,
            CacheFile::Listing(_) => Self::Listing,
            CacheFile::Log(_) => Self::Log,
            CacheFile::Realisation(_) | CacheFile::BuildTrace { .. } => Self::Realisation,
            CacheFile::DebugInfo { .. } => Self::DebugInfo,
        }
    }

    /// As the ring counts it.
    pub fn topic(self) -> Topic {
        Topic(self as u8)
    }
}
