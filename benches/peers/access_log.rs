//! What the access log costs: the same narinfo with none of it, with a line for one request in a hundred, and with a line for each.

use crate::harness::load::{Group, Reading};
use crate::harness::server::{Kind, Server};
use crate::row::{Bench, Ending, Figure, Row};
use crate::works::{MANY_CONNECTIONS, Works};

pub const ACCESS_LOG: &str = "narinfo, hot, by access log";

const LOGGING: &[Kind] = &[Kind::NarwireSampling, Kind::NarwireLoggingNowhere, Kind::NarwireLogging];
/// The others are compared with the first, which logs nothing.
const ALL: &[Kind] =
    &[Kind::Narwire, Kind::NarwireSampling, Kind::NarwireLoggingNowhere, Kind::NarwireLogging];

/// Measures the row; its servers are there for as long as it takes.
pub fn measure(works: &Works, bench: &mut Bench<'_>) -> anyhow::Result<()> {
    if !bench.flags.wants(ACCESS_LOG) {
        return Ok(());
    }
    let count = bench.servers.len();
    for kind in LOGGING {
        bench.servers.push(Server::start(*kind, &works.fixture, 1, "0")?);
    }
    let result = bench.measure(&[Row {
        name: ACCESS_LOG,
        figure: Figure::MicrosecondsPerRequest,
        ending: Ending::Timed,
        groups: vec![Group::new(MANY_CONNECTIONS, &works.fixture.narinfos[..1], 200, Reading::Copy)],
        servers: ALL,
        floor: None,
    }]);
    bench.servers.truncate(count);
    result
}
