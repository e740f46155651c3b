//! The goals of the design beside what was measured.

use std::fmt::Write as _;

use crate::cached;
use crate::cold;
use crate::flags::Flags;
use crate::harness::server::Kind;
use crate::memory;
use crate::row::{Floor, Results};
use crate::works::{
    FIRST_BYTE_MANY, FIRST_BYTE_ONE, LARGE_DISCARDED, LARGE_READ, MANY_FIRST_DISCARDED, MANY_FIRST_READ,
    NARINFO_ALL, NARINFO_HOT, NARINFO_MISSING, NARINFO_WHILE_LARGE, NARINFO_WHILE_MANY, RANGE_HUGE,
    RANGE_MANY,
};

/// Which side of its bound a figure has to be on.
#[derive(Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

struct Goal {
    work: &'static str,
    bound: Bound,
    /// What the figure is a multiple of, or its unit.
    of: &'static str,
    /// `None`: a row that it needs was left out.
    figure: Option<f64>,
}

/// The table, in Markdown, of those goals whose rows were measured. The bare ring is left to another bench.
pub fn table(results: &Results, flags: &Flags) -> String {
    let mut text = String::from("| work | goal | measured | |\n|---|---|---|---|\n");
    for goal in goals(results, flags) {
        let Some(figure) = goal.figure else { continue };
        let (sign, bound, is_reached) = match goal.bound {
            Bound::AtMost(bound) => ("≤", bound, figure <= bound),
            Bound::AtLeast(bound) => ("≥", bound, figure >= bound),
        };
        let verdict = if is_reached { "reached" } else { "**missed**" };
        let bound = (bound * 100.0).round() / 100.0;
        let _ = writeln!(text, "| {} | {sign} {bound} {} | {figure:.2} | {verdict} |", goal.work, goal.of);
    }
    text
}

fn goals(results: &Results, flags: &Flags) -> Vec<Goal> {
    let (own, nginx) = (Kind::Narwire.name(), Kind::Nginx.name());
    let beside = |row, other| results.ratio(row, own, other);
    let between = |row, other| results.ratio_between((row, own), (other, own));
    let caching = Kind::NarwireCache.name();
    let cached = |row| results.ratio(row, caching, nginx);
    let while_filling = |[at_rest, while_filling]: [&'static str; 2]| {
        results.ratio_between((while_filling, caching), (at_rest, caching))
    };
    let first_bytes =
        |rows: [&'static str; 2]| Some(results.wait50_us(rows[1], own)? / results.wait50_us(rows[0], own)?);
    let at_most = |work, bound, of, figure| Goal { work, bound: Bound::AtMost(bound), of, figure };
    let mib = |row| results.figure(row, own).map(|kib| kib / 1024.0);
    let allowed = |each_kib: f64, connections: usize| 48.0 + each_kib * connections as f64 / 1024.0;
    vec![
        at_most("narinfo hot, CPU per request", 0.65, "× nginx", beside(NARINFO_HOT, nginx)),
        at_most("narinfo, every hash different, warm", 1.3, "× hot", between(NARINFO_ALL, NARINFO_HOT)),
        at_most("narinfo 404", 1.0, "× hot", between(NARINFO_MISSING, NARINFO_HOT)),
        at_most(
            "large NAR discarded, CPU per GB",
            1.05,
            "× sendfile loop",
            beside(LARGE_DISCARDED, Floor::SENDFILE),
        ),
        at_most("large NAR discarded, CPU per GB", 1.0, "× nginx", beside(LARGE_DISCARDED, nginx)),
        at_most("large NAR read, CPU per GB", 1.05, "× sendfile loop", beside(LARGE_READ, Floor::SENDFILE)),
        at_most("large NAR read, CPU per GB", 1.0, "× nginx", beside(LARGE_READ, nginx)),
        at_most(
            "NAR of 20,000 small files, first time, discarded, CPU",
            1.5,
            "× open+read+close",
            beside(MANY_FIRST_DISCARDED, Floor::READ),
        ),
        at_most(
            "NAR of 20,000 small files, first time, read, CPU",
            1.5,
            "× open+read+close",
            beside(MANY_FIRST_READ, Floor::READ),
        ),
        Goal {
            work: "the same, cold page cache",
            bound: Bound::AtLeast(4.0),
            of: "× as fast as one file after another",
            figure: results.ratio(cold::ROW, cold::ONE_BY_ONE, own),
        },
        at_most("first byte, 50,000 files in one directory", 5.0, "ms", results.figure(FIRST_BYTE_ONE, own)),
        at_most(
            "first byte, 50,000 files in 200 directories",
            5.0,
            "ms",
            results.figure(FIRST_BYTE_MANY, own),
        ),
        at_most("Range at 99 % of 20,000 files", 2.0, "× 0 %", first_bytes(RANGE_MANY)),
        at_most("Range at 99 % of a 10 GB file", 2.0, "× 0 %", first_bytes(RANGE_HUGE)),
        at_most("narinfo p99 while 8 large NARs stream", 1.0, "× nginx", beside(NARINFO_WHILE_LARGE, nginx)),
        at_most(
            "narinfo p99 while 8 many-file NARs stream",
            1.0,
            "× nginx",
            beside(NARINFO_WHILE_MANY, nginx),
        ),
        // CPU per GB: at least 0.9 × the speed is at most the inverse.
        at_most(
            "NAR of 20,000 files again, from the NAR cache, CPU",
            1.0 / 0.9,
            "× nginx, flat",
            cached(cached::MANY[0]),
        ),
        at_most(
            "toolchain NAR again, from the NAR cache, CPU",
            1.0 / 0.9,
            "× nginx, flat",
            cached(cached::TOOLCHAIN[0]),
        ),
        at_most(
            "one large file again, from the NAR cache, CPU",
            1.0 / 0.9,
            "× nginx, flat",
            cached(cached::LARGE[0]),
        ),
        at_most(
            "NAR of 20,000 files, .zst from the NAR cache, CPU",
            1.0 / 0.9,
            "× nginx, .zst",
            cached(cached::MANY[2]),
        ),
        at_most(
            "toolchain NAR, .zst from the NAR cache, CPU",
            1.0 / 0.9,
            "× nginx, .zst",
            cached(cached::TOOLCHAIN[2]),
        ),
        at_most(
            "one large file, .zst from the NAR cache, CPU",
            1.0 / 0.9,
            "× nginx, .zst",
            cached(cached::LARGE[2]),
        ),
        at_most(
            "20,000 files are encoded for the NAR cache, CPU",
            1.0,
            "× (2 × a live answer + zstd)",
            results.ratio(cached::FILL, Kind::NarwireCache.name(), cached::FILL_ALLOWED),
        ),
        at_most(
            "narinfo p99 while the NAR cache is filled, one core for both",
            1.5,
            "× at rest",
            while_filling(cached::NARINFO_ONE_CORE),
        ),
        at_most(
            "narinfo p99 while the NAR cache is filled, a core for each",
            1.5,
            "× at rest",
            while_filling(cached::NARINFO_TWO_CORES),
        ),
        at_most("memory at rest", 48.0, "MiB", mib(memory::IDLE)),
        at_most(
            "memory with idle connections, 4 KiB each allowed",
            allowed(4.0, flags.idle_connections),
            "MiB",
            mib(memory::IDLE_CONNECTIONS),
        ),
        at_most(
            "memory with slow readers of a large file, 64 KiB each allowed",
            allowed(64.0, flags.slow_readers),
            "MiB",
            mib(memory::SLOW_LARGE),
        ),
        at_most(
            "memory with slow readers of 20,000 files, 64 KiB each allowed",
            allowed(64.0, flags.slow_readers),
            "MiB",
            mib(memory::SLOW_MANY),
        ),
    ]
}
