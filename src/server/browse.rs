//! What people see who look around: a search, what is known of a path, and what is in it. All of it is made on threads of the
//! plane for texts, so no worker waits for it, and no NAR and no narinfo does.
//!
//! No Nix client asks for any of this. It goes over all sources at once, in their order: the first that has a path is the one whose
//! path it is, as for its narinfo.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::figures::{Query, SharedFigures};
use super::lookup::{SharedStore, TextRoom};
use super::page::browse::{self, Spot};
use super::page::details::{self, Details, Referrers, nar_link};
use super::page::index::BaseUrl;
use super::page::missing;
use super::page::parts::{contents_url, path_url};
use super::page::search::{self, Results, Unfinished};
use super::plane::{Demand, Toolbox};
use super::refusal::Failure;
use super::representation::{JSON_TYPE, Made, MadeContent, NARINFO_CACHE_CONTROL};
use crate::codec::hash::Sha256;
use crate::codec::http::field::ETag;
use crate::codec::http::response::{CacheControl, Fields};
use crate::codec::http::route::{ContentsRequest, Route};
use crate::codec::http::{Status, media};
use crate::codec::nar::find::{Found, Listed};
use crate::codec::nar::inner_path::InnerPath;
use crate::codec::narinfo::{Compression, NarInfo};
use crate::codec::search::Pattern;
use crate::codec::store_path::{HashPart, StoreDir, StorePath};
use crate::limits::{
    BROWSED_AT_ONCE_LEN_MAX, BROWSED_ENTRIES_MAX, BROWSED_START_LEN, BROWSED_TIME_MAX, BROWSING_JOBS_MAX,
    INDEX_BUSY_POLL, LONG_LOOKS_MAX, PAGES_LEN_MAX, REFERRERS_COUNTED_MAX, REFERRERS_SHOWN_MAX,
    REFERRERS_TIME_MAX, SEARCH_BATCH, SEARCH_FOUND_MAX, SEARCH_TIME_MAX,
};
use crate::store::cache_index::{CacheIndex, Coverage};
use crate::store::db::{Database, Surroundings};
use crate::store::directory::Directory;
use crate::store::inside::{self, Entries, Node};
use crate::store::nar_file::{self, Outcome};
use crate::store::{StoreError, log, walk};
use crate::tally::{Count, Tally as _};

/// Shows people around in all sources.
pub struct Browser {
    places: Vec<Place>,
    store_dir: StoreDir,
    /// Who waits for an answer.
    visits: Arc<AtomicUsize>,
    /// Those who keep a thread busy for long.
    long_looks: Arc<AtomicUsize>,
    /// Pages that are being sent.
    pages: TextRoom,
    figures: Arc<SharedFigures>,
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
    /// The keys that paths are signed with here.
    pub public_keys: &'a [String],
    /// Whether they still wait.
    pub demand: &'a Demand,
}

/// Leave to use the threads that others need as well; somebody else gets it when it is dropped.
pub struct Leave(Arc<AtomicUsize>);

impl Leave {
    /// One of those that may be given, unless all are.
    fn of(given: &Arc<AtomicUsize>, count_max: usize) -> Option<Self> {
        let leave = Self(Arc::clone(given));
        (given.fetch_add(1, Ordering::Relaxed) < count_max).then_some(leave)
    }
}

impl Drop for Leave {
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
                let narinfo = shared.directory.narinfo(hash_part, store_dir);
                // What tells of another path is as good as absent: a page would lead in a circle.
                let is_its_own = |narinfo: &NarInfo| narinfo.info.path.hash_part() == hash_part;
                Ok(narinfo.map_err(|error| Failure::log(&error))?.filter(is_its_own))
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
    /// Brings the index up to date as far as there is time, and asks it; not when somebody else does so all that time.
    fn ask_index<T>(
        &self,
        store_dir: &StoreDir,
        goes_on: &dyn Fn() -> bool,
        question: impl FnOnce(&CacheIndex) -> T,
    ) -> Result<Option<(T, Coverage)>, Failure> {
        let mut index = loop {
            match self.index.try_lock() {
                Ok(index) => break index,
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
                Err(TryLockError::WouldBlock) if goes_on() => thread::sleep(INDEX_BUSY_POLL),
                Err(TryLockError::WouldBlock) => return Ok(None),
            }
        };
        let coverage =
            index.refresh(&self.directory, store_dir, goes_on).map_err(|error| Failure::log(&error))?;
        Ok(Some((question(&index), coverage)))
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

impl Browser {
    /// Shows what is in `places`.
    pub fn new(places: Vec<Place>, store_dir: StoreDir, figures: Arc<SharedFigures>) -> Self {
        let pages = TextRoom::new(PAGES_LEN_MAX, Arc::clone(&figures));
        Self { places, store_dir, visits: Arc::default(), long_looks: Arc::default(), pages, figures }
    }

    /// Leave to ask for anything, unless too many wait: they do so among those who want a log or a listing.
    pub fn admit(&self) -> Result<Leave, Failure> {
        Leave::of(&self.visits, BROWSING_JOBS_MAX).ok_or_else(|| refused(&self.figures.browsing_refused))
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
            Route::Contents(request) => self.contents(request, visit, toolbox)?,
            _ => None,
        };
        match made {
            None if visit.is_page => self.page(Status::NotFound, missing(route, true)).map(Some),
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

    fn details(
        &self,
        hash_part: HashPart,
        visit: &Visit<'_>,
        toolbox: &mut Toolbox,
    ) -> Result<Option<Made>, Failure> {
        let Some((place, narinfo)) = self.find(hash_part, toolbox)? else { return Ok(None) };
        let path = &narinfo.info.path;
        let (referrers, surroundings) = self.referrers(path, place, visit, toolbox)?;
        let deriver = narinfo.info.deriver.as_ref();
        let document = details::page(&Details {
            narinfo: &narinfo,
            store_dir: &self.store_dir,
            base_url: &visit.base_url.to_string(),
            public_keys: visit.public_keys,
            registered_s: surroundings.as_ref().map(|surroundings| surroundings.registered_s),
            closure: surroundings.and_then(|surroundings| surroundings.closure),
            referrers: &referrers,
            has_log: deriver.is_some_and(|deriver| self.places.iter().any(|place| place.has_log(deriver))),
        });
        self.page(Status::Ok, document).map(Some)
    }

    /// What refers to a path in any source, and what else is known where it is served from.
    fn referrers(
        &self,
        path: &StorePath,
        home: &Place,
        visit: &Visit<'_>,
        toolbox: &mut Toolbox,
    ) -> Result<(Referrers, Option<Surroundings>), Failure> {
        let (mut referrers, mut of_home) = (Referrers::default(), None);
        let mut time = self.time_shares(REFERRERS_TIME_MAX, visit.demand);
        for place in &self.places {
            let goes_on = time.next();
            match place {
                Place::Store(store) => {
                    let is_home = ptr::eq(place, home);
                    let Some(mut found) = surroundings(store, path, is_home, toolbox)? else { continue };
                    referrers.may_be_more |= found.referrers_count >= REFERRERS_COUNTED_MAX;
                    referrers.count += found.referrers_count;
                    referrers.paths.append(&mut found.referrers);
                    if is_home {
                        of_home = Some(found);
                    }
                }
                Place::Directory(directory) => {
                    let Some(_long) = self.look_long() else {
                        referrers.may_be_more = true;
                        continue;
                    };
                    let asked = directory.ask_index(&self.store_dir, &goes_on, |index| {
                        first_by_name(index.referrers(path.hash_part()))
                    })?;
                    let Some(((first, count), coverage)) = asked else {
                        referrers.may_be_more = true;
                        continue;
                    };
                    referrers.may_be_more |= !coverage.is_whole();
                    referrers.count += count;
                    referrers.paths.extend(first);
                }
            }
        }
        let Referrers { paths, count, .. } = &mut referrers;
        sort_by_name(paths);
        let with_twins = paths.len();
        paths.dedup();
        // Those that two sources have are counted once, as far as both of them are here.
        *count = count.saturating_sub((with_twins - paths.len()) as u64).max(paths.len() as u64);
        paths.truncate(REFERRERS_SHOWN_MAX);
        Ok((referrers, of_home))
    }

    /// What is in a path, of the first source that has the path.
    fn contents(
        &self,
        request: &ContentsRequest,
        visit: &Visit<'_>,
        toolbox: &mut Toolbox,
    ) -> Result<Option<Made>, Failure> {
        for place in &self.places {
            let narinfo = match place.narinfo(toolbox, request.hash_part, &self.store_dir) {
                Ok(Some(narinfo)) => narinfo,
                Ok(None) | Err(Failure::Damaged) => continue,
                Err(failure) => return Err(failure),
            };
            let path = &narinfo.info.path;
            let found = match place {
                Place::Store(store) => look_into_store(store, &narinfo, request, visit, toolbox),
                Place::Directory(directory) => {
                    // A flat one as well: it can be a million small files, of which each is met with on the way.
                    let is_long = narinfo.info.nar_size > BROWSED_AT_ONCE_LEN_MAX;
                    let _long = if is_long { Some(self.must_look_long()?) } else { None };
                    self.look_into_nar(&directory.directory, &narinfo, request, visit)
                }
            };
            let inside = match found {
                Ok(Some(inside)) => inside,
                Ok(None) => return Ok(None),
                Err(Failure::Damaged) => continue,
                Err(failure) => return Err(failure),
            };
            let spot = Spot { store_dir: &self.store_dir, path, inner: &request.path };
            return match inside {
                // What it has is relative to it.
                Inside::Directory { .. } if !request.has_slash => {
                    let query = if request.is_listing_wanted { "?listing" } else { "" };
                    Ok(Some(Made::elsewhere(&format!(
                        "{}/{query}",
                        contents_url(path, &request.path).trim_end_matches('/')
                    ))))
                }
                Inside::Directory { entries, count } => {
                    self.page(Status::Ok, browse::directory(&spot, &entries, count)).map(Some)
                }
                // Nothing is in a file. The root has a slash because of what its page leads to.
                Inside::File { inner, .. }
                    if request.has_slash && !inner.is_root() && inner == request.path =>
                {
                    Ok(None)
                }
                Inside::File { name, inner, start, content } => {
                    let tag = [&narinfo.info.nar_hash.0, inner.as_bytes()].concat();
                    Ok(Some(Made {
                        etag: ETag::new(Sha256::digest(&tag).to_nix32().as_bytes()),
                        cache_control: CONTENTS_CACHE_CONTROL,
                        fields: file_guards(),
                        content,
                        ..Made::immutable(media::of(&name, &start), Bytes::new())
                    }))
                }
                Inside::Link { target, depth } => match destination(&spot, &target, depth) {
                    Some((path, inner)) if (&path, &inner) != (spot.path, spot.inner) => {
                        Ok(Some(Made::elsewhere(&contents_url(&path, &inner))))
                    }
                    _ => self.page(Status::Ok, browse::link(&spot, &target)).map(Some),
                },
                Inside::TooMuch => self
                    .page(
                        Status::NotImplemented,
                        browse::too_much(&spot, &nar_link(&narinfo.url).unwrap_or_default()),
                    )
                    .map(Some),
                Inside::TooSlow => self
                    .page(
                        Status::ServiceUnavailable,
                        browse::too_slow(&spot, &nar_link(&narinfo.url).unwrap_or_default()),
                    )
                    .map(Some),
            };
        }
        Ok(None)
    }

    /// What is in a path of a cache directory, which is a NAR in a file.
    fn look_into_nar(
        &self,
        directory: &Directory,
        narinfo: &NarInfo,
        request: &ContentsRequest,
        visit: &Visit<'_>,
    ) -> Result<Option<Inside>, Failure> {
        let path = &narinfo.info.path;
        let failed = |error: StoreError| Failure::log(&error);
        // Elsewhere, or of a shape that nobody serves here.
        let Some(name) = Route::parse(format!("/{}", narinfo.url).as_bytes()).file_name() else {
            return Ok(None);
        };
        let Some(file) = directory.open_beneath(name.as_str()).map_err(failed)? else { return Ok(None) };
        let (goes_on, compression) = (within(BROWSED_TIME_MAX, visit.demand), narinfo.compression);
        // Without a slash it is enough that it is a directory: what is in it is asked for next.
        let entries_max = if request.has_slash { BROWSED_ENTRIES_MAX } else { 0 };
        let look = |inner: &InnerPath| {
            nar_file::find(&file, name.as_str(), compression, inner, entries_max, &goes_on).map_err(failed)
        };
        let mut inner = request.path.clone();
        let mut found = look(&inner)?;
        if let (Outcome::Found(Some(Found::Directory { .. })), Some(index)) = (&found, index_of(request)) {
            let of_index = look(&index)?;
            if matches!(of_index, Outcome::Found(Some(Found::Regular { .. }))) {
                (inner, found) = (index, of_index);
            }
        }
        let found = match found {
            Outcome::Found(None) => return Ok(None),
            Outcome::Found(Some(found)) => found,
            Outcome::Stopped => return Ok(Some(Inside::TooSlow)),
        };
        Ok(Some(match found {
            Found::Directory { entries, count } => Inside::Directory { entries, count },
            Found::Symlink { target, depth } => Inside::Link { target, depth },
            Found::Regular { contents: Some(contents), .. } => {
                let start = contents[..contents.len().min(BROWSED_START_LEN)].to_vec();
                let content = MadeContent::Bytes(self.pages.claim(contents)?);
                Inside::File { name: file_name(path, &inner), inner, start, content }
            }
            Found::Regular { size, contents_offset, .. } if compression == Compression::None => {
                let start_len = usize::try_from(size).unwrap_or(usize::MAX).min(BROWSED_START_LEN);
                let start = inside::start(&file, contents_offset, start_len);
                let content =
                    MadeContent::FilePart(file, contents_offset..contents_offset.saturating_add(size));
                Inside::File { name: file_name(path, &inner), inner, start, content }
            }
            Found::Regular { .. } => Inside::TooMuch,
        }))
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

    /// Divides that time between the places.
    fn time_shares<'a>(&self, time_max: Duration, demand: &'a Demand) -> TimeShares<'a> {
        let places_left = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
        TimeShares { end: Instant::now() + time_max, places_left, demand }
    }

    /// Leave to keep a thread busy for long, unless too many do.
    fn look_long(&self) -> Option<Leave> {
        Leave::of(&self.long_looks, LONG_LOOKS_MAX)
    }

    /// The same for a visit that is nothing without it.
    fn must_look_long(&self) -> Result<Leave, Failure> {
        self.look_long().ok_or_else(|| refused(&self.figures.looks_refused))
    }
}

/// What somebody hears for whom there is no leave.
fn refused(count: &Count) -> Failure {
    count.add(1);
    Failure::Busy
}

/// What is in a path of a live store. As for a NAR, the root is opened first, which keeps the garbage collector away, and the path has
/// to be valid after that.
fn look_into_store(
    store: &SharedStore,
    narinfo: &NarInfo,
    request: &ContentsRequest,
    visit: &Visit<'_>,
    toolbox: &mut Toolbox,
) -> Result<Option<Inside>, Failure> {
    let path = &narinfo.info.path;
    let failed = |error: StoreError| Failure::log(&error);
    let Some(root) = walk::open_root(store.places(), path).map_err(failed)? else { return Ok(None) };
    let now = store.look_up(toolbox, request.hash_part, None)?;
    if now.present_path().is_none_or(|now| now.nar_hash != narinfo.info.nar_hash) {
        return Ok(None);
    }
    let file = |inner: &InnerPath, file: OwnedFd, size: u64| Inside::File {
        name: file_name(path, inner),
        inner: inner.clone(),
        start: inside::start(&file, 0, BROWSED_START_LEN),
        content: MadeContent::File(file, size),
    };
    Ok(match inside::open(&root, &request.path).map_err(failed)? {
        None => None,
        Some(Node::Regular(opened, size)) => Some(file(&request.path, opened, size)),
        Some(Node::Symlink { target, depth }) => Some(Inside::Link { target, depth }),
        Some(Node::Directory(directory)) => {
            if let Some(index) = index_of(request)
                && let Some(Node::Regular(opened, size)) = inside::open(&root, &index).map_err(failed)?
            {
                return Ok(Some(file(&index, opened, size)));
            }
            if !request.has_slash {
                return Ok(Some(Inside::Directory { entries: Vec::new(), count: 0 }));
            }
            let goes_on = within(BROWSED_TIME_MAX, visit.demand);
            let listed = inside::list(&directory, &root, BROWSED_ENTRIES_MAX, &goes_on).map_err(failed)?;
            Some(
                listed.map_or(Inside::TooSlow, |Entries { entries, count }| Inside::Directory {
                    entries,
                    count,
                }),
            )
        }
    })
}

/// What was found in a path.
enum Inside {
    Directory {
        /// The first of them.
        entries: Vec<Listed>,
        count: u64,
    },
    File {
        name: Vec<u8>,
        /// Where it is, which need not be what was asked for.
        inner: InnerPath,
        /// What it begins with.
        start: Vec<u8>,
        content: MadeContent,
    },
    Link {
        target: Vec<u8>,
        /// How many names lead to it.
        depth: usize,
    },
    /// It is not taken out of its NAR.
    TooMuch,
    /// The time was up.
    TooSlow,
}

/// Others may keep what is in a path for a while: it can be deleted. The entity tag tells whether it is the same later.
const CONTENTS_CACHE_CONTROL: CacheControl = CacheControl::MaxAge(300);

/// What keeps a file of a store path from doing anything in the name of this cache: it is shown, with its pictures, styles and fonts, and
/// nothing in it runs or sends a form. It keeps its origin, for without one a browser would take those from another site's, which get
/// nothing; who runs no script can do nothing with an origin.
fn file_guards() -> Fields {
    const POLICY: &str = "sandbox allow-same-origin; default-src 'none'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; \
                          font-src 'self'; media-src 'self'; base-uri 'none'; form-action 'none'";
    Fields::new().content_security_policy(POLICY).no_sniff().referrer_policy("no-referrer").same_origin()
}

/// The page that a directory has of its own, if that may be shown.
fn index_of(request: &ContentsRequest) -> Option<InnerPath> {
    is_index(request).then(|| request.path.join(b"index.html").ok()).flatten()
}

fn is_index(request: &ContentsRequest) -> bool {
    request.has_slash && !request.is_listing_wanted
}

/// What a file is called, for its type.
fn file_name(path: &StorePath, inner: &InnerPath) -> Vec<u8> {
    inner.last().unwrap_or(path.name().as_bytes()).to_vec()
}

/// Where in the store a link leads that `depth` names of the place lead to, and with it the rest of these names.
fn destination(spot: &Spot<'_>, target: &[u8], depth: usize) -> Option<(StorePath, InnerPath)> {
    let store_dir = spot.store_dir.as_str().as_bytes();
    let mut names: Vec<&[u8]> = Vec::new();
    let target = if target.starts_with(b"/") {
        target.strip_prefix(store_dir)?.strip_prefix(b"/")?
    } else if depth > 0 {
        // Relative to the directory that the link is in; the root itself is in the store directory.
        names.push(spot.path.base_name().as_bytes());
        names.extend(spot.inner.names().take(depth - 1));
        target
    } else {
        target
    };
    for name in target.split(|&byte| byte == b'/').chain(spot.inner.names().skip(depth)) {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()?),
            name => names.push(name),
        }
    }
    let (base_name, rest) = names.split_first()?;
    let path = StorePath::parse_base_name(str::from_utf8(base_name).ok()?).ok()?;
    let mut inner = InnerPath::default();
    for name in rest {
        inner.push(name).ok()?;
    }
    Some((path, inner))
}

/// What a live store knows of a path of any source, with its closure if it is served from there.
fn surroundings(
    store: &SharedStore,
    path: &StorePath,
    is_home: bool,
    toolbox: &mut Toolbox,
) -> Result<Option<Surroundings>, Failure> {
    match store.ask_database(toolbox, Query::Referrers, |database| database.surroundings(path, is_home)) {
        Err(Failure::Damaged) => Ok(None),
        found => found,
    }
}

/// Time that places share: one that is slow takes nothing of what the others get, and one that is quick leaves them its rest.
struct TimeShares<'a> {
    end: Instant,
    places_left: u32,
    demand: &'a Demand,
}

impl<'a> TimeShares<'a> {
    /// The share of the next place, from now on.
    fn next(&mut self) -> impl Fn() -> bool + use<'a> {
        let share = self.end.saturating_duration_since(Instant::now()) / self.places_left.max(1);
        self.places_left = self.places_left.saturating_sub(1);
        within(share, self.demand)
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

/// The first of them by name, as many as are shown, and how many there are.
fn first_by_name<'a>(paths: impl Iterator<Item = &'a StorePath>) -> (Vec<StorePath>, u64) {
    let (mut first, mut count) = (BTreeSet::new(), 0);
    for path in paths {
        count += 1;
        first.insert((path.name(), path));
        if first.len() > REFERRERS_SHOWN_MAX {
            first.pop_last();
        }
    }
    (first.into_iter().map(|(_, path)| path.clone()).collect(), count)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::codec::http::request::{Parsed, parse};
    use crate::codec::nar::naive::{Tree, nar};
    use crate::server::page::index::base_url;
    use crate::server::plane::Interest;

    const HERE: &str = "0c8r7p9x1m5h3fya2d4g6jbk7lnqsvwz-here";
    const OTHER: &str = "1c8r7p9x1m5h3fya2d4g6jbk7lnqsvwz-other";

    /// Where a link leads whose place, with what stands behind it, is `inner`.
    fn leads(inner: &str, depth: usize, target: &str) -> Option<String> {
        let mut path = InnerPath::default();
        inner.split('/').filter(|name| !name.is_empty()).for_each(|name| path.push(name.as_bytes()).unwrap());
        let (store_dir, here) =
            (StoreDir::parse("/nix/store").unwrap(), StorePath::parse_base_name(HERE).unwrap());
        let spot = Spot { store_dir: &store_dir, path: &here, inner: &path };
        let target = target.replace("HERE", HERE).replace("OTHER", OTHER);
        let (path, inner) = destination(&spot, target.as_bytes(), depth)?;
        let text = format!("{path}:{}", String::from_utf8_lossy(inner.as_bytes()));
        Some(text.replace(HERE, "HERE").replace(OTHER, "OTHER"))
    }

    #[test]
    fn links_lead_to_what_is_in_the_store() {
        for (inner, depth, target, expected) in [
            ("a/link", 2, "x", "HERE:a/x"),
            ("a/link", 2, "./x//y/", "HERE:a/x/y"),
            ("a/link", 2, "../x", "HERE:x"),
            ("a/link", 2, "../../HERE", "HERE:"),
            ("a/link", 2, "../../OTHER/b", "OTHER:b"),
            ("a/link/c/d", 2, "../b", "HERE:b/c/d"),
            ("link", 1, "/nix/store/OTHER", "OTHER:"),
            ("link/c", 1, "/nix/store/OTHER/b", "OTHER:b/c"),
            ("link", 1, "/nix/store/HERE/..//OTHER", "OTHER:"),
            ("", 0, "OTHER", "OTHER:"),
            ("c", 0, "/nix/store/OTHER/b", "OTHER:b/c"),
        ] {
            assert_eq!(leads(inner, depth, target).as_deref(), Some(expected), "{inner} {target}");
        }
    }

    fn narinfo(folder: &Path, base_name: &str, url: &str, nar_size: u64, references: &str) {
        let text = format!(
            "StorePath: /nix/store/{base_name}\nURL: {url}\nCompression: none\n\
             NarHash: sha256:1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s\nNarSize: {nar_size}\n\
             References: {references}\n"
        );
        fs::write(folder.join(format!("{}.narinfo", &base_name[..32])), text).unwrap();
    }

    fn browser(folders: &[&Path]) -> Browser {
        let place = |folder: &&Path| {
            Place::directory(OwnedFd::from(fs::File::open(folder).unwrap()), folder.to_path_buf())
        };
        let places = folders.iter().map(place).collect();
        Browser::new(places, StoreDir::parse("/nix/store").unwrap(), Arc::default())
    }

    /// A cache directory with one path, whose NAR is said to have that length.
    fn cache(nar_size: u64) -> (tempfile::TempDir, Browser, StorePath) {
        let folder = tempfile::tempdir().unwrap();
        let path = StorePath::parse_base_name(HERE).unwrap();
        let file = Tree::Regular { executable: false, contents: b"contents".to_vec() };
        let url = format!("nar/{}.nar", "1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s");
        fs::create_dir(folder.path().join("nar")).unwrap();
        fs::write(folder.path().join(&url), nar(&file)).unwrap();
        narinfo(folder.path(), HERE, &url, nar_size, "");
        let browser = browser(&[folder.path()]);
        (folder, browser, path)
    }

    fn base_url_of_a_request() -> BaseUrl {
        let Ok(Parsed::Complete { request, .. }) = parse(b"GET / HTTP/1.1\r\nHost: cache\r\n\r\n", 0) else {
            panic!("no request")
        };
        base_url(&request, false)
    }

    /// What comes of a visit: a status, or why there is none.
    fn visit(browser: &Browser, target: &str) -> Result<Option<Status>, Failure> {
        let (interest, base_url) = (Interest::default(), base_url_of_a_request());
        let visit =
            Visit { is_page: false, base_url: &base_url, public_keys: &[], demand: &interest.demand() };
        let made = browser.show(&Route::parse(target.as_bytes()), &visit, &mut Toolbox::default())?;
        Ok(made.map(|made| made.status))
    }

    #[test]
    fn who_takes_long_needs_leave_and_who_does_not_needs_none() {
        let (_short, quick, path) = cache(BROWSED_AT_ONCE_LEN_MAX);
        let (_long, slow, _) = cache(BROWSED_AT_ONCE_LEN_MAX + 1);
        let contents = format!("/serve/{path}");
        for (browser, of_contents) in [(&quick, Ok(Some(Status::Ok))), (&slow, Err(Failure::Busy))] {
            let looks: Vec<_> = (0..LONG_LOOKS_MAX).map(|_| browser.look_long().unwrap()).collect();
            assert_eq!(visit(browser, "/search?q=here"), Err(Failure::Busy));
            assert_eq!(visit(browser, &format!("/path/{path}")), Ok(Some(Status::Ok)));
            assert_eq!(visit(browser, &contents), of_contents);
            // The page of a path is shown without what would have taken long.
            let refused = 1 + u64::from(of_contents.is_err());
            assert_eq!(browser.figures.looks_refused.get(), refused);
            drop(looks);
            assert_eq!(visit(browser, "/search?q=here"), Ok(Some(Status::Ok)));
            assert_eq!(visit(browser, &contents), Ok(Some(Status::Ok)));
        }
    }

    #[test]
    fn what_was_not_found_in_time_is_not_said_to_be_absent() {
        let (_folder, browser, path) = cache(1);
        let base_url = base_url_of_a_request();
        let demand = Interest::default().demand();
        let visit = Visit { is_page: true, base_url: &base_url, public_keys: &[], demand: &demand };
        let route = Route::parse(format!("/serve/{path}").as_bytes());
        let made = browser.show(&route, &visit, &mut Toolbox::default()).unwrap().unwrap();
        assert_eq!(made.status, Status::ServiceUnavailable);
    }

    fn text(browser: &Browser, target: &str) -> String {
        let (interest, base_url) = (Interest::default(), base_url_of_a_request());
        let visit =
            Visit { is_page: true, base_url: &base_url, public_keys: &[], demand: &interest.demand() };
        let made = browser.show(&Route::parse(target.as_bytes()), &visit, &mut Toolbox::default());
        let MadeContent::Bytes(text) = made.ok().flatten().unwrap().content else { panic!("no page") };
        String::from_utf8(text.to_vec()).unwrap()
    }

    #[test]
    fn what_two_sources_have_is_found_once_and_hides_nothing() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [one, two] = folders.each_ref().map(tempfile::TempDir::path);
        let write = |folder, number: usize| {
            narinfo(folder, &format!("{number:032}-many"), "nar/x.nar", 1, HERE);
        };
        (0..150).for_each(|number| write(one, number));
        (0..SEARCH_FOUND_MAX).for_each(|number| write(two, number));
        narinfo(one, HERE, "nar/x.nar", 1, "");
        let browser = browser(&[one, two]);
        assert!(text(&browser, "/search?q=many").contains(">200 paths.<"));
        assert!(text(&browser, &format!("/path/{HERE}")).contains("Referrers (200)"));
        write(two, SEARCH_FOUND_MAX);
        let shown = text(&browser, "/search?q=many");
        assert!(shown.contains(">200 paths, and there are more"), "{shown}");
    }

    #[test]
    fn an_index_that_somebody_else_has_is_not_waited_for_for_ever() {
        let (_folder, browser, path) = cache(1);
        let Place::Directory(directory) = &browser.places[0] else { panic!("a directory") };
        let (index, store_dir) = (directory.index.lock().unwrap(), browser.store_dir.clone());
        let find = |goes_on| directory.ask_index(&store_dir, goes_on, |index| index.find(|_| true).count());
        assert!(find(&|| false).unwrap().is_none());
        let shown = text(&browser, &format!("/path/{path}"));
        assert!(shown.contains("Referrers (at least 0)"), "{shown}");
        drop(index);
        assert_eq!(find(&|| true).unwrap().unwrap().0, 1);
    }

    #[test]
    fn a_place_that_is_slow_leaves_time_to_those_behind_it() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [slow, other] = folders.each_ref().map(tempfile::TempDir::path);
        narinfo(other, HERE, "nar/x.nar", 1, "");
        narinfo(other, OTHER, "nar/x.nar", 1, HERE);
        let browser = browser(&[slow, other]);
        let Place::Directory(directory) = &browser.places[0] else { panic!("a directory") };
        let _index = directory.index.lock().unwrap();
        let shown = text(&browser, "/search?q=other");
        assert!(shown.contains(OTHER) && shown.contains("Search again"), "{shown}");
        let shown = text(&browser, &format!("/path/{HERE}"));
        assert!(shown.contains(OTHER) && shown.contains("Referrers (at least 1)"), "{shown}");
    }

    #[test]
    fn a_narinfo_of_another_path_is_none() {
        let folder = tempfile::tempdir().unwrap();
        narinfo(folder.path(), OTHER, "nar/x.nar", 1, "");
        fs::rename(
            folder.path().join(format!("{}.narinfo", &OTHER[..32])),
            folder.path().join(format!("{}.narinfo", &HERE[..32])),
        )
        .unwrap();
        let browser = browser(&[folder.path()]);
        for target in [format!("/path/{HERE}"), format!("/path/{OTHER}"), format!("/serve/{HERE}/")] {
            assert_eq!(visit(&browser, &target), Ok(None), "{target}");
        }
        assert!(text(&browser, "/search?q=other").contains("no such path here"));
    }

    #[test]
    fn so_many_wait_and_no_more() {
        let (_folder, browser, _) = cache(1);
        let mut visits: Vec<_> = (0..BROWSING_JOBS_MAX).map(|_| browser.admit().ok().unwrap()).collect();
        assert_eq!(browser.admit().err(), Some(Failure::Busy));
        visits.pop();
        assert!(browser.admit().is_ok());
        assert_eq!((browser.figures.browsing_refused.get(), browser.figures.looks_refused.get()), (1, 0));
    }

    #[test]
    fn links_that_lead_out_lead_nowhere() {
        for (inner, depth, target) in [
            ("a/link", 2, "../.."),
            ("a/link", 2, "../../.."),
            ("a/link", 2, "../../../../etc/passwd"),
            ("a/link", 2, "../../no-store-path/x"),
            ("link", 1, "/etc/passwd"),
            ("link", 1, "/nix/store"),
            ("link", 1, "/nix/store/"),
            ("link", 1, "/nix/storeOTHER"),
            ("link", 1, "/nix/store/../../etc"),
            ("link", 1, "/nix/store/.links/x"),
            ("", 0, "../x"),
        ] {
            assert_eq!(leads(inner, depth, target), None, "{target}");
        }
    }
}
