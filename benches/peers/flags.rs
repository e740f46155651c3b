//! What a person can choose.

use std::time::Duration;

use anyhow::{Context as _, bail};

pub const HELP: &str = "\
cargo bench --bench peers -- [FLAGS]
  --quick            a minute or so: smaller, shorter, fewer rounds, nginx in one way only
  --record           write the report to benches/record/<date>-<commit>.txt as well
  --only WORD        only rows whose name contains WORD (also: cold, memory); the goals that need others are left out
  --upload-paths N   small NARs that are uploaded in one round [2000]
  --paths N          paths in the database [100000]
  --large-mib N      size of the large file [1024]
  --toolchain-part N one in N of the files of the Rust toolchain [1]
  --rounds N         rounds per row [4]
  --seconds S        measured time of one round [1.0]
Needs nginx (Debian: apt-get install nginx-light), two cores, rustc, and 10 GB of disk in the build directory (--quick: 2 GB).";

pub struct Flags {
    pub is_quick: bool,
    pub is_recorded: bool,
    only: Option<String>,
    pub upload_paths: usize,
    pub paths: usize,
    pub large_mib: usize,
    pub toolchain_part: usize,
    pub rounds: usize,
    pub measured: Duration,
    /// Connections of the memory table.
    pub idle_connections: usize,
    pub slow_readers: usize,
}

impl Flags {
    /// `None` when help is wanted.
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Option<Self>> {
        let mut flags = Self {
            is_quick: false,
            is_recorded: false,
            only: None,
            upload_paths: 2000,
            paths: 100_000,
            large_mib: 1024,
            toolchain_part: 1,
            rounds: 4,
            measured: Duration::from_secs(1),
            idle_connections: 10_000,
            slow_readers: 1000,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} wants a value"));
            match argument.as_str() {
                "--help" | "-h" => return Ok(None),
                // Cargo's own.
                "--bench" => {}
                "--quick" => {
                    flags.is_quick = true;
                    (flags.paths, flags.large_mib, flags.toolchain_part) = (10_000, 128, 10);
                    flags.upload_paths = 400;
                    (flags.rounds, flags.measured) = (2, Duration::from_millis(300));
                    (flags.idle_connections, flags.slow_readers) = (2000, 100);
                }
                "--record" => flags.is_recorded = true,
                "--only" => flags.only = Some(value()?),
                "--upload-paths" => flags.upload_paths = value()?.parse()?,
                "--paths" => flags.paths = value()?.parse()?,
                "--large-mib" => flags.large_mib = value()?.parse()?,
                "--toolchain-part" => flags.toolchain_part = value()?.parse()?,
                "--rounds" => flags.rounds = value()?.parse()?,
                "--seconds" => flags.measured = Duration::try_from_secs_f64(value()?.parse()?)?,
                other => bail!("what is {other}?\n{HELP}"),
            }
        }
        if flags.paths == 0
            || flags.upload_paths == 0
            || flags.large_mib == 0
            || flags.toolchain_part == 0
            || !(1..=20).contains(&flags.rounds)
        {
            bail!("paths, mebibytes, parts and rounds begin at 1; rounds end at 20");
        }
        Ok(Some(flags))
    }

    /// With no more connections than this limit of descriptors allows; a server may need two for each.
    pub fn within(mut self, descriptors: u64) -> Self {
        let connections = usize::try_from(descriptors / 2).unwrap_or(usize::MAX);
        self.idle_connections = self.idle_connections.min(connections);
        self.slow_readers = self.slow_readers.min(connections);
        self
    }

    pub fn wants(&self, row: &str) -> bool {
        self.only.as_ref().is_none_or(|only| row.contains(only.as_str()))
    }
}
