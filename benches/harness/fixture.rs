//! A site with what most benches serve.

use std::path::PathBuf;

use super::site::{Nar, Site, narinfo_requests, store_path};
use super::trees::{self, DISTINCT_FILES, FILES_PER_DIRECTORY, SMALL_FILE_LEN, noise};

/// A live store for narwire, the same answers as files for nginx, and the requests for them.
pub struct Fixture {
    pub site: Site,
    /// Requests for the narinfos of all generated paths.
    pub narinfos: Vec<Vec<u8>>,
    pub missing: Vec<Vec<u8>>,
    pub small: Nar,
    pub large: Nar,
    /// The same 20,000 small files as several store paths, so that each can be the first to be asked for.
    pub many: Vec<Nar>,
    /// Where the files of the first of these are.
    pub many_files: PathBuf,
}

impl AsRef<Site> for Fixture {
    fn as_ref(&self) -> &Site {
        &self.site
    }
}

impl Fixture {
    /// Makes `paths` registered paths without contents, and NARs, the large one of `large_mib` MiB, the one of many files
    /// in so many `copies`.
    pub fn create(paths: usize, large_mib: usize, copies: usize) -> anyhow::Result<Self> {
        let site = Site::create()?;
        let mut small =
            site.add_tree("small", 1, |path| Ok(std::fs::write(path, noise(SMALL_FILE_LEN, 1))?))?;
        let mut large = site.add_tree("large", 1, |path| trees::write_large(path, large_mib))?;
        let many = site.add_tree("many", copies, |path| {
            trees::write_many(path, DISTINCT_FILES, FILES_PER_DIRECTORY, None)
        })?;
        let (small, large) = (small.remove(0), large.remove(0));
        let generated = site.add_paths(0..paths)?;
        site.flatten(&generated, &[&small, &large, &many[0]])?;
        Ok(Self {
            narinfos: narinfo_requests(&generated),
            missing: narinfo_requests(&[store_path("missing")]),
            small,
            large,
            many_files: site.tree(&many[0]),
            many,
            site,
        })
    }
}
