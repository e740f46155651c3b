//! A search for paths by their names in all sources.

use std::collections::BTreeSet;

use super::{Browser, Place, SharedDirectory, Visit, sort_by_name};
use crate::codec::http::Status;
use crate::codec::search::Pattern;
use crate::codec::store_path::{StoreDir, StorePath};
use crate::limits::{SEARCH_BATCH, SEARCH_FOUND_MAX, SEARCH_TIME_MAX};
use crate::server::figures::Query;
use crate::server::lookup::SharedStore;
use crate::server::page::parts::path_url;
use crate::server::page::search::{self, Results, Unfinished};
use crate::server::plane::Toolbox;
use crate::server::refusal::Failure;
use crate::server::representation::Made;
use crate::store::db::Database;

impl Browser {
    /// The page of what is found by `text`, or where to the one path is that it names.
    pub(super) fn search(
        &self,
        text: &str,
        visit: &Visit<'_>,
        toolbox: &mut Toolbox,
    ) -> Result<Option<Made>, Failure> {
        let pattern = Pattern::of(text, &self.store_dir);
        if let Pattern::Path(hash_part) = pattern
            && let Some((_, narinfo)) = self.find(hash_part, toolbox)?
        {
            return Ok(Some(Made::elsewhere(&path_url(&narinfo.info.path))));
        }
        let mut time = self.time_shares(SEARCH_TIME_MAX, visit.demand);
        let mut search = Search {
            pattern: &pattern,
            found: BTreeSet::new(),
            looked_at: 0,
            missed: 0,
            is_time_up: false,
            is_kept: false,
            too_large: None,
        };
        if let Pattern::Names { .. } = pattern {
            let _long = self.must_look_long()?;
            for place in &self.places {
                let goes_on = time.next();
                match place {
                    Place::Store(store) => search.store(store, toolbox, &goes_on)?,
                    Place::Directory(directory) => search.directory(directory, &self.store_dir, &goes_on)?,
                }
                if search.is_full() {
                    break;
                }
            }
        }
        let has_more = search.is_full();
        let Search { found, looked_at, missed, is_time_up, is_kept, too_large, .. } = search;
        let mut found: Vec<_> = found.into_iter().collect();
        sort_by_name(&mut found);
        found.truncate(SEARCH_FOUND_MAX);
        let unfinished = Unfinished { looked_at, all: looked_at + missed, is_kept };
        let unfinished = (is_time_up && !has_more).then_some(unfinished);
        let too_large = too_large.filter(|_| !has_more);
        let results = Results { text, pattern: &pattern, found: &found, has_more, unfinished, too_large };
        self.page(Status::Ok, search::page(&results)).map(Some)
    }
}

/// A search under way.
struct Search<'a> {
    pattern: &'a Pattern,
    /// What several sources have counts once.
    found: BTreeSet<StorePath>,
    looked_at: u64,
    /// Paths of those places that were not searched to their end, as far as they were counted.
    missed: u64,
    /// Whether there are such places.
    is_time_up: bool,
    /// Whether another search goes on in one of them: what was read of a directory is kept, a store is looked through from its beginning.
    is_kept: bool,
    /// How many paths are known of those directories that are too large, and of how many.
    too_large: Option<(u64, u64)>,
}

impl Search<'_> {
    /// Whether as many were found as a page has, and one more.
    fn is_full(&self) -> bool {
        self.found.len() > SEARCH_FOUND_MAX
    }

    fn store(
        &mut self,
        store: &SharedStore,
        toolbox: &mut Toolbox,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<(), Failure> {
        let prefix = format!("{}/", store.places().store_dir);
        let wanted = |base_name: &str| self.pattern.is_met_by(base_name);
        // What begins with these digits stands together.
        if let Pattern::Names { digits: Some(digits), .. } = self.pattern {
            let after = format!("{prefix}{digits}");
            let limit = u32::try_from(SEARCH_FOUND_MAX).unwrap_or(u32::MAX);
            let scan = store
                .ask_database(toolbox, Query::Search, |database| database.scan(&after, limit, &wanted))?;
            self.found.extend(scan.found);
        }
        let (mut after, before) = (Some(prefix), self.looked_at);
        while let Some(last) = after
            && !self.is_full()
        {
            if !goes_on() {
                let all = store.ask_database(toolbox, Query::Search, Database::count)?;
                self.missed += all.saturating_sub(self.looked_at - before);
                self.is_time_up = true;
                break;
            }
            let scan = store.ask_database(toolbox, Query::Search, |database| {
                database.scan(&last, SEARCH_BATCH, &wanted)
            })?;
            self.found.extend(scan.found);
            self.looked_at += scan.looked_at;
            after = scan.last;
        }
        Ok(())
    }

    fn directory(
        &mut self,
        directory: &SharedDirectory,
        store_dir: &StoreDir,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<(), Failure> {
        let found = &mut self.found;
        let asked = directory.ask_index(store_dir, goes_on, |index| {
            for path in index.find(|name| self.pattern.is_met_by(name)) {
                if found.len() > SEARCH_FOUND_MAX {
                    break;
                }
                if !found.contains(path) {
                    found.insert(path.clone());
                }
            }
        })?;
        let Some(((), coverage)) = asked else {
            (self.is_time_up, self.is_kept) = (true, true);
            return Ok(());
        };
        self.looked_at += coverage.read;
        if coverage.is_full {
            let (known, all) = self.too_large.unwrap_or_default();
            self.too_large = Some((known + coverage.read, all + coverage.all));
        } else if !coverage.is_whole() {
            self.missed += coverage.all.saturating_sub(coverage.read);
            (self.is_time_up, self.is_kept) = (true, true);
        }
        Ok(())
    }
}
