//! What requests are about, as metrics tell them apart.

use crate::codec::http::Method;
use crate::codec::http::route::Route;
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
            Route::CacheInfo => Self::CacheInfo,
            Route::NarInfo(_) | Route::NarInfoJson(_) => Self::NarInfo,
            Route::Listing(_) => Self::Listing,
            Route::Nar(_) | Route::NarFile(_) => Self::Nar,
            Route::Log(_) => Self::Log,
            Route::Realisation(_) | Route::BuildTrace { .. } => Self::Realisation,
            Route::DebugInfo { .. } => Self::DebugInfo,
            Route::Health => Self::Health,
            Route::Metrics => Self::Metrics,
            Route::Search(_) | Route::Details(_) | Route::Contents(_) => Self::Page,
            Route::Import | Route::Version | Route::NotFound => Self::Other,
        }
    }

    /// As the ring counts it.
    pub fn topic(self) -> Topic {
        Topic(self as u8)
    }
}
