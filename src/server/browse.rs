//! What people see who look around: a search, what is known of a path, and what is in it. All of it is made on threads of the
//! plane for texts, so no worker waits for it, and no NAR and no narinfo does.
//!
//! No Nix client asks for any of this. It goes over all sources at once, in their order: the first that has a path is the one whose
//! path it is, as for its narinfo.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::lookup::{SharedStore, TextRoom};
use super::page::details::{self, Details, Referrers};
use super::page::index::BaseUrl;
use super::page::missing;
use super::page::search::{self, Results};
use super::plane::{Demand, Toolbox};
use super::refusal::Failure;
use super::representation::{JSON_TYPE, Made, NARINFO_CACHE_CONTROL};
use crate::codec::http::Status;
use crate::codec::http::route::{Route, encode_escapes};
use crate::codec::narinfo::NarInfo;
use crate::codec::search::Pattern;
use crate::codec::store_path::{HashPart, StoreDir, StorePath};
use crate::limits::{
    LONG_LOOKS_MAX, PAGES_LEN_MAX, REFERRERS_COUNTED_MAX, REFERRERS_SHOWN_MAX, REFERRERS_TIME_MAX,
    SEARCH_BATCH, SEARCH_FOUND_MAX, SEARCH_TIME_MAX,
};
use crate::store::cache_index::{CacheIndex, Coverage};
use crate::store::db::Surroundings;
use crate::store::directory::Directory;
use crate::store::log;

/// Shows people around in all sources.
pub struct Browser {
    places: Vec<Place>,
    store_dir: StoreDir,
    /// Those who keep a thread busy for long.
    long_looks: AtomicUsize,
    /// Pages that are being sent.
    pages: TextRoom,
}

/// A source, as threads see it.
pub enum Place {
    /// A live store.
    Store(Arc<SharedStore>),
    /// A cache directory.
    Directory(Box<SharedDirectory>),
}

/// A cache directory, and what was found out about it.
pub struct SharedDirectory {
    directory: Directory,
    index: Mutex<CacheIndex>,
}

/// Who looks, and for how long.
pub struct Visit<'a> {
    /// Whether absence is to be a page as well.
    pub is_page: bool,
    /// The URL of this cache, as the visitor knows it.
    pub base_url: &'a BaseUrl,
    /// Whether they still wait.
    pub demand: &'a Demand,
}

/// Somebody who keeps a thread busy for long.
struct LongLook<'a>(&'a AtomicUsize);

impl Drop for LongLook<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Place {
    /// The cache directory behind `descriptor`; `path` is for messages.
    pub fn directory(descriptor: OwnedFd, path: PathBuf) -> Self {
        let directory = Directory::new(descriptor, path);
        Self::Directory(Box::new(SharedDirectory { directory, index: Mutex::default() }))
    }

    /// What the narinfo of a path says here.
    fn narinfo(
        &self,
        toolbox: &mut Toolbox,
        hash_part: HashPart,
        store_dir: &StoreDir,
    ) -> Result<Option<NarInfo>, Failure> {
        match self {
            Self::Store(store) => {
                let known = store.look_up(toolbox, hash_part, None)?;
                // It was written by the same program, so it can be read.
                Ok(known.present_path().and_then(|path| NarInfo::parse(path.narinfo(), store_dir).ok()))
            }
            Self::Directory(shared) => {
                shared.directory.narinfo(hash_part, store_dir).map_err(|error| Failure::log(&error))
            }
        }
    }

    /// Whether the build log of a derivation is here.
    fn has_log(&self, derivation: &StorePath) -> bool {
        match self {
            Self::Store(store) => log::is_there(store.places(), derivation),
            Self::Directory(shared) => shared.directory.has(&format!("log/{derivation}")).unwrap_or(false),
        }
    }
}

impl SharedDirectory {
    /// Brings the index up to date as far as there is time, and asks it.
    fn ask_index<T>(
        &self,
        store_dir: &StoreDir,
        goes_on: &dyn Fn() -> bool,
        question: impl FnOnce(&CacheIndex) -> T,
    ) -> Result<(T, Coverage), Failure> {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let coverage =
            index.refresh(&self.directory, store_dir, goes_on).map_err(|error| Failure::log(&error))?;
        Ok((question(&index), coverage))
    }
}

/// A search under way.
struct Search<'a> {
    pattern: &'a Pattern,
    goes_on: &'a dyn Fn() -> bool,
    found: Vec<StorePath>,
    looked_at: u64,
    /// Paths of those places that were not searched to their end.
    missed: u64,
}

impl Search<'_> {
    /// Whether as many were found as a page has, and one more.
    fn is_full(&self) -> bool {
        self.found.len() > SEARCH_FOUND_MAX
    }

    fn store(&mut self, store: &SharedStore, toolbox: &mut Toolbox) -> Result<(), Failure> {
        let prefix = format!("{}/", store.places().store_dir);
        let wanted = |base_name: &str| self.pattern.is_met_by(base_name);
        // What begins with these digits stands together.
        if let Pattern::Names { digits: Some(digits), .. } = self.pattern {
            let after = format!("{prefix}{digits}");
            let limit = u32::try_from(SEARCH_FOUND_MAX).unwrap_or(u32::MAX);
            let scan = store.ask_database(toolbox, |database| database.scan(&after, limit, &wanted))?;
            self.found.extend(scan.found);
        }
        let (mut after, before) = (Some(prefix), self.looked_at);
        while let Some(last) = after
            && !self.is_full()
        {
            if !(self.goes_on)() {
                let all = store.ask_database(toolbox, super::super::store::db::Database::count)?;
                self.missed += all.saturating_sub(self.looked_at - before);
                break;
            }
            let scan = store.ask_database(toolbox, |database| database.scan(&last, SEARCH_BATCH, &wanted))?;
            self.found.extend(scan.found);
            self.looked_at += scan.looked_at;
            after = scan.last;
        }
        Ok(())
    }

    fn directory(&mut self, directory: &SharedDirectory, store_dir: &StoreDir) -> Result<(), Failure> {
        let left = (SEARCH_FOUND_MAX + 1).saturating_sub(self.found.len());
        let (found, coverage) = directory.ask_index(store_dir, self.goes_on, |index| {
            index.find(|name| self.pattern.is_met_by(name)).take(left).cloned().collect::<Vec<_>>()
        })?;
        self.found.extend(found);
        self.looked_at += coverage.read;
        self.missed += coverage.all - coverage.read + u64::from(coverage.is_full);
        Ok(())
    }
}

impl Browser {
    /// Shows what is in `places`.
    pub fn new(places: Vec<Place>, store_dir: StoreDir) -> Self {
        Self { places, store_dir, long_looks: AtomicUsize::new(0), pages: TextRoom::new(PAGES_LEN_MAX) }
    }

    /// What `route` shows; nothing when there is nothing, unless the visitor wants that said on a page.
    pub fn show(
        &self,
        route: &Route,
        visit: &Visit<'_>,
        toolbox: &mut Toolbox,
    ) -> Result<Option<Made>, Failure> {
        let made = match route {
            Route::NarInfoJson(hash_part) => self.narinfo_json(*hash_part, toolbox)?,
            Route::Search(text) => self.search(text, visit, toolbox)?,
            Route::Details(hash_part) => self.details(*hash_part, visit, toolbox)?,
            _ => None,
        };
        match made {
            None if visit.is_page => self.page(Status::NotFound, missing()).map(Some),
            made => Ok(made),
        }
    }

    fn page(&self, status: Status, document: String) -> Result<Made, Failure> {
        Ok(Made::page(status, self.pages.claim(document.into_bytes())?))
    }

    fn narinfo_json(&self, hash_part: HashPart, toolbox: &mut Toolbox) -> Result<Option<Made>, Failure> {
        let found = self.find(hash_part, toolbox)?;
        Ok(found.map(|(_, narinfo)| Made {
            cache_control: NARINFO_CACHE_CONTROL,
            ..Made::immutable(JSON_TYPE, narinfo.to_json(&self.store_dir))
        }))
    }

    fn search(&self, text: &str, visit: &Visit<'_>, toolbox: &mut Toolbox) -> Result<Option<Made>, Failure> {
        let pattern = Pattern::of(text, &self.store_dir);
        if let Pattern::Path(hash_part) = pattern
            && let Some((_, narinfo)) = self.find(hash_part, toolbox)?
        {
            return Ok(Some(Made::elsewhere(&path_url(&narinfo.info.path))));
        }
        let goes_on = within(SEARCH_TIME_MAX, visit.demand);
        let mut search =
            Search { pattern: &pattern, goes_on: &goes_on, found: Vec::new(), looked_at: 0, missed: 0 };
        if let Pattern::Names { .. } = pattern {
            let _long = self.look_long()?;
            for place in &self.places {
                match place {
                    Place::Store(store) => search.store(store, toolbox)?,
                    Place::Directory(directory) => search.directory(directory, &self.store_dir)?,
                }
                if search.is_full() {
                    break;
                }
            }
        }
        let Search { mut found, looked_at, missed, .. } = search;
        sort_by_name(&mut found);
        found.dedup();
        let has_more = found.len() > SEARCH_FOUND_MAX;
        found.truncate(SEARCH_FOUND_MAX);
        let unfinished = (missed > 0 && !has_more).then_some((looked_at, looked_at + missed));
        let results = Results { text, pattern: &pattern, found: &found, has_more, unfinished };
        self.page(Status::Ok, search::page(&results)).map(Some)
    }

    fn details(
        &self,
        hash_part: HashPart,
        visit: &Visit<'_>,
        toolbox: &mut Toolbox,
    ) -> Result<Option<Made>, Failure> {
        let Some((place, narinfo)) = self.find(hash_part, toolbox)? else { return Ok(None) };
        let path = &narinfo.info.path;
        let surroundings = match place {
            Place::Store(store) => surroundings(store, path, toolbox)?,
            Place::Directory(_) => None,
        };
        let referrers = self.referrers(path, visit, toolbox)?;
        let deriver = narinfo.info.deriver.as_ref();
        let document = details::page(&Details {
            narinfo: &narinfo,
            store_dir: &self.store_dir,
            base_url: &visit.base_url.to_string(),
            registered_s: surroundings.as_ref().map(|surroundings| surroundings.registered_s),
            closure: surroundings.and_then(|surroundings| surroundings.closure),
            referrers: &referrers,
            has_log: deriver.is_some_and(|deriver| self.places.iter().any(|place| place.has_log(deriver))),
        });
        self.page(Status::Ok, document).map(Some)
    }

    /// What refers to a path in any source.
    fn referrers(
        &self,
        path: &StorePath,
        visit: &Visit<'_>,
        toolbox: &mut Toolbox,
    ) -> Result<Referrers, Failure> {
        let mut referrers = Referrers::default();
        let goes_on = within(REFERRERS_TIME_MAX, visit.demand);
        for place in &self.places {
            match place {
                Place::Store(store) => {
                    let Some(found) = surroundings(store, path, toolbox)? else { continue };
                    referrers.may_be_more |= found.referrers_count >= REFERRERS_COUNTED_MAX;
                    referrers.count += found.referrers_count;
                    referrers.paths.extend(found.referrers);
                }
                Place::Directory(directory) => {
                    let Ok(_long) = self.look_long() else {
                        referrers.may_be_more = true;
                        continue;
                    };
                    let (found, coverage) = directory.ask_index(&self.store_dir, &goes_on, |index| {
                        index.referrers(path.hash_part()).cloned().collect::<Vec<_>>()
                    })?;
                    referrers.may_be_more |= !coverage.is_whole();
                    referrers.count += found.len() as u64;
                    referrers.paths.extend(found);
                }
            }
        }
        let Referrers { paths, count, .. } = &mut referrers;
        sort_by_name(paths);
        let with_twins = paths.len();
        paths.dedup();
        // Those that two sources have are counted once, as far as both of them are here.
        *count -= (with_twins - paths.len()) as u64;
        paths.truncate(REFERRERS_SHOWN_MAX);
        Ok(referrers)
    }

    /// The first source that has a path, and what its narinfo says.
    fn find(&self, hash_part: HashPart, toolbox: &mut Toolbox) -> Result<Option<(&Place, NarInfo)>, Failure> {
        for place in &self.places {
            match place.narinfo(toolbox, hash_part, &self.store_dir) {
                Ok(Some(narinfo)) => return Ok(Some((place, narinfo))),
                // Damage is as good as absence, and another source may have it.
                Ok(None) | Err(Failure::Damaged) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(None)
    }

    /// Leave to keep a thread busy for long, unless too many do.
    fn look_long(&self) -> Result<LongLook<'_>, Failure> {
        let look = LongLook(&self.long_looks);
        if self.long_looks.fetch_add(1, Ordering::Relaxed) < LONG_LOOKS_MAX {
            Ok(look)
        } else {
            Err(Failure::Busy)
        }
    }
}

/// What a live store knows of a path of any source.
fn surroundings(
    store: &SharedStore,
    path: &StorePath,
    toolbox: &mut Toolbox,
) -> Result<Option<Surroundings>, Failure> {
    match store.ask_database(toolbox, |database| database.surroundings(path)) {
        Err(Failure::Damaged) => Ok(None),
        found => found,
    }
}

/// Whether somebody still waits, and not for longer than that.
fn within(time_max: Duration, demand: &Demand) -> impl Fn() -> bool {
    let begin = Instant::now();
    move || demand.is_there() && begin.elapsed() < time_max
}

/// By what people read first.
fn sort_by_name(paths: &mut [StorePath]) {
    paths.sort_by(|one, other| (one.name(), one).cmp(&(other.name(), other)));
}

/// The URL of the page of a path.
fn path_url(path: &StorePath) -> String {
    format!("/path/{}", encode_escapes(path.base_name().as_bytes()))
}
