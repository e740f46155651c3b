//! What people see who look around: a search, what is known of a path, and what is in it. All of it is made on threads of the
//! plane for texts, so no worker waits for it, and no NAR and no narinfo does.
//!
//! No Nix client asks for any of this. It goes over all sources at once, in their order: the first that has a path is the one whose
//! path it is, as for its narinfo.

mod contents;
mod search;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use super::figures::{Query, SharedFigures};
use super::known_path::nar_url;
use super::lookup::{SharedStore, TextRoom};
use super::page::details::{self, Details, Referrers};
use super::page::index::BaseUrl;
use super::page::missing;
use super::plane::{Demand, Toolbox};
use super::refusal::Failure;
use super::representation::{JSON_TYPE, Made, NARINFO_CACHE_CONTROL};
use crate::codec::cache_file::CacheFile;
use crate::codec::http::Status;
use crate::codec::http::route::{Look, NarCompression};
use crate::codec::narinfo::{Compression, NarInfo};
use crate::codec::store_path::{HashPart, StoreDir, StorePath};
use crate::limits::{
    BROWSING_JOBS_MAX, INDEX_BUSY_POLL, LONG_LOOKS_MAX, PAGES_LEN_MAX, REFERRERS_COUNTED_MAX,
    REFERRERS_SHOWN_MAX, REFERRERS_TIME_MAX,
};
use crate::store::cache_index::{CacheIndex, Coverage};
use crate::store::db::Surroundings;
use crate::store::directory::Directory;
use crate::store::log;
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

    /// The same for who only wants to look into the path: what is made by signing is left out.
    fn unsigned_narinfo(
        &self,
        toolbox: &mut Toolbox,
        hash_part: HashPart,
        store_dir: &StoreDir,
    ) -> Result<Option<NarInfo>, Failure> {
        let Self::Store(store) = self else { return self.narinfo(toolbox, hash_part, store_dir) };
        let Some(info) = store.path_info(toolbox, hash_part)? else { return Ok(None) };
        let url = nar_url(&info, NarCompression::None);
        let (nar_hash, nar_size) = (info.nar_hash, info.nar_size);
        Ok(Some(NarInfo::new(info, url, Compression::None, nar_hash, nar_size)))
    }

    /// Whether the listing of a path that is here is here as well.
    fn has_listing(&self, hash_part: HashPart) -> bool {
        match self {
            Self::Store(_) => true,
            Self::Directory(shared) => shared.has(&CacheFile::Listing(hash_part)),
        }
    }

    /// Whether the build log of a derivation is here.
    fn has_log(&self, derivation: &StorePath) -> bool {
        match self {
            Self::Store(store) => log::is_there(store.places(), derivation),
            Self::Directory(shared) => shared.has(&CacheFile::Log(derivation.clone())),
        }
    }
}

impl SharedDirectory {
    fn has(&self, file: &CacheFile) -> bool {
        self.directory.has(&file.to_string()).unwrap_or(false)
    }

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

    /// What somebody sees; nothing when there is nothing, unless the visitor wants that said on a page.
    pub fn show(
        &self,
        look: &Look,
        visit: &Visit<'_>,
        toolbox: &mut Toolbox,
    ) -> Result<Option<Made>, Failure> {
        let made = match look {
            Look::NarInfoJson(hash_part) => self.narinfo_json(*hash_part, toolbox)?,
            Look::Search(text) => self.search(text, visit, toolbox)?,
            Look::Details(hash_part) => self.details(*hash_part, visit, toolbox)?,
            Look::Contents(request) => self.contents(request, visit, toolbox)?,
        };
        match made {
            None if visit.is_page => self.page(Status::NotFound, missing(Some(look), true)).map(Some),
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
        let derivation = if path.is_derivation() { Some(path) } else { deriver };
        let document = details::page(&Details {
            narinfo: &narinfo,
            store_dir: &self.store_dir,
            base_url: &visit.base_url.to_string(),
            public_keys: visit.public_keys,
            registered_s: surroundings.as_ref().map(|surroundings| surroundings.registered_s),
            closure: surroundings.and_then(|surroundings| surroundings.closure),
            referrers: &referrers,
            has_deriver: deriver
                .is_some_and(|deriver| matches!(self.find(deriver.hash_part(), toolbox), Ok(Some(_)))),
            logged: derivation.filter(|derivation| self.places.iter().any(|place| place.has_log(derivation))),
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
    use crate::codec::http::route::Route;
    use crate::codec::nar::naive::{Tree, nar};
    use crate::limits::{BROWSED_AT_ONCE_LEN_MAX, SEARCH_FOUND_MAX};
    use crate::server::page::index::base_url;
    use crate::server::plane::Interest;
    use crate::server::representation::MadeContent;

    const HERE: &str = "0c8r7p9x1m5h3fya2d4g6jbk7lnqsvwz-here";
    const OTHER: &str = "1c8r7p9x1m5h3fya2d4g6jbk7lnqsvwz-other";

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

    fn look(target: &str) -> Look {
        let Route::Look(look) = Route::parse(target.as_bytes()) else { panic!("{target}") };
        look
    }

    /// What comes of a visit: a status, or why there is none.
    fn visit(browser: &Browser, target: &str) -> Result<Option<Status>, Failure> {
        let (interest, base_url) = (Interest::default(), base_url_of_a_request());
        let visit =
            Visit { is_page: false, base_url: &base_url, public_keys: &[], demand: &interest.demand() };
        let made = browser.show(&look(target), &visit, &mut Toolbox::default())?;
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
        let look = look(&format!("/serve/{path}"));
        let made = browser.show(&look, &visit, &mut Toolbox::default()).unwrap().unwrap();
        assert_eq!(made.status, Status::ServiceUnavailable);
    }

    fn text(browser: &Browser, target: &str) -> String {
        let (interest, base_url) = (Interest::default(), base_url_of_a_request());
        let visit =
            Visit { is_page: true, base_url: &base_url, public_keys: &[], demand: &interest.demand() };
        let made = browser.show(&look(target), &visit, &mut Toolbox::default());
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
}
