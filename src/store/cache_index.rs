//! What the narinfos of a cache directory say of names and references, so that a path can be found by its name, and what refers to
//! it: a directory can only be asked for a hash part.
//!
//! It is made when somebody searches, as far as the time of that search goes, and the next one goes on. A narinfo is read once: the
//! directory is listed again when it has changed, and then only what is new, or has another inode, is read.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::mem;
use std::time::{Duration, SystemTime};

use rustix::fs::{Dir, Stat};
use tracing::warn;

use super::StoreError;
use super::directory::{Directory, NARINFO_SUFFIX};
use crate::codec::narinfo::NarInfo;
use crate::codec::store_path::{HashPart, StoreDir, StorePath};
use crate::limits::{INDEX_ENTRIES_MAX, INDEX_LEN_MAX, TIMESTAMP_SETTLE_MS};

/// The index of one directory.
#[derive(Debug, Default)]
pub struct CacheIndex {
    /// When the directory was changed last before it was listed; none if it could be changed again without that being seen.
    listed: Option<Changed>,
    entries: BTreeMap<HashPart, Narinfo>,
    /// Those that are not read.
    unread: Vec<HashPart>,
    /// Whether the directory was not listed to its end since it has changed.
    is_interrupted: bool,
    /// Narinfos for which there was no room when it was listed last: it has more than [`INDEX_ENTRIES_MAX`].
    left_out: u64,
    /// What the contents take. Bytes.
    len: usize,
}

/// When the contents of a directory and its status were changed: seconds and nanoseconds.
type Changed = (i64, u64, i64, u64);

/// One narinfo.
#[derive(Debug)]
struct Narinfo {
    inode: u64,
    /// Whether it is one that was found when the directory was listed last.
    is_there: bool,
    /// What it says; nothing when it was not read, or cannot be.
    contents: Option<Box<Contents>>,
}

#[derive(Debug)]
struct Contents {
    path: StorePath,
    references: Box<[HashPart]>,
}

/// How far the index goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coverage {
    /// Narinfos that were read.
    pub read: u64,
    /// Narinfos that there are, as far as they were counted.
    pub all: u64,
    /// Whether all of them were counted.
    pub is_counted: bool,
    /// Whether the rest will never be read, because it would take too much memory.
    pub is_full: bool,
}

impl Coverage {
    /// Whether nothing is missing.
    pub fn is_whole(self) -> bool {
        self.read == self.all && self.is_counted
    }
}

impl CacheIndex {
    /// Brings the index up to date, for as long as `goes_on`.
    pub fn refresh(
        &mut self,
        directory: &Directory,
        store_dir: &StoreDir,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Coverage, StoreError> {
        self.list(directory, goes_on)?;
        self.read(&|hash_part| directory.narinfo(hash_part, store_dir), goes_on);
        Ok(self.coverage())
    }

    /// Reads what is not read, for as long as `goes_on`. What of it cannot be read hides nothing else.
    fn read(
        &mut self,
        narinfo: &dyn Fn(HashPart) -> Result<Option<NarInfo>, StoreError>,
        goes_on: &dyn Fn() -> bool,
    ) {
        while self.len < INDEX_LEN_MAX
            && goes_on()
            && let Some(hash_part) = self.unread.pop()
        {
            let narinfo = match narinfo(hash_part) {
                Ok(Some(narinfo)) if narinfo.info.path.hash_part() == hash_part => narinfo,
                Ok(_) => continue,
                Err(error) if error.is_passing() => {
                    warn!("{error}");
                    self.unread.push(hash_part);
                    break;
                }
                Err(error) => {
                    warn!("{error}; it cannot be found by its name");
                    continue;
                }
            };
            let Some(entry) = self.entries.get_mut(&hash_part) else { continue };
            let references = narinfo.info.references.iter().map(StorePath::hash_part).collect();
            let contents = Contents { path: narinfo.info.path, references };
            self.len += contents.len();
            entry.contents = Some(Box::new(contents));
        }
    }

    fn coverage(&self) -> Coverage {
        let entries_count = self.entries.len() as u64;
        let (read, all) =
            (entries_count.saturating_sub(self.unread.len() as u64), entries_count + self.left_out);
        let is_counted = !self.is_interrupted;
        let is_full = is_counted && read < all && (self.unread.is_empty() || self.len >= INDEX_LEN_MAX);
        Coverage { read, all, is_counted, is_full }
    }

    /// The paths whose base names are `wanted`, by their hash parts.
    pub fn find(&self, wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = &StorePath> {
        self.contents().map(|contents| &contents.path).filter(move |path| wanted(path.base_name()))
    }

    /// The paths that refer to the one with this hash part, itself excepted.
    pub fn referrers(&self, hash_part: HashPart) -> impl Iterator<Item = &StorePath> {
        let refers = move |contents: &&Contents| contents.references.contains(&hash_part);
        self.contents()
            .filter(refers)
            .map(|contents| &contents.path)
            .filter(move |path| path.hash_part() != hash_part)
    }

    fn contents(&self) -> impl Iterator<Item = &Contents> {
        self.entries.values().filter_map(|entry| entry.contents.as_deref())
    }

    /// Looks which narinfos there are, unless the directory is as it was. What an interrupted look has not met with is kept.
    fn list(&mut self, directory: &Directory, goes_on: &dyn Fn() -> bool) -> Result<(), StoreError> {
        const LOOKS_INTERVAL: usize = 1024;
        let failed = |error| StoreError::io("read", directory.path(), error);
        // Before its names are read: what is added meanwhile is found now or the next time.
        let status = rustix::fs::fstat(directory).map_err(failed)?;
        let changed = changed(&status);
        self.is_interrupted = self.listed != Some(changed) && !goes_on();
        if self.is_interrupted || self.listed == Some(changed) {
            return Ok(());
        }
        self.listed = None;
        for entry in self.entries.values_mut() {
            entry.is_there = false;
        }
        self.left_out = 0;
        for (number, name) in Dir::read_from(directory).map_err(failed)?.enumerate() {
            let name = name.map_err(failed)?;
            if number % LOOKS_INTERVAL == LOOKS_INTERVAL - 1 && !goes_on() {
                self.is_interrupted = true;
                break;
            }
            let digits = name.file_name().to_bytes().strip_suffix(NARINFO_SUFFIX.as_bytes());
            let Some(hash_part) = digits.and_then(HashPart::parse) else { continue };
            let found = Narinfo { inode: name.ino(), is_there: true, contents: None };
            let is_room = self.entries.len() < INDEX_ENTRIES_MAX;
            match self.entries.entry(hash_part) {
                Entry::Occupied(mut entry) if entry.get().inode == found.inode => {
                    entry.get_mut().is_there = true;
                }
                Entry::Occupied(mut entry) => {
                    let old = mem::replace(entry.get_mut(), found);
                    self.len -= old.contents.map_or(0, |contents| contents.len());
                }
                Entry::Vacant(entry) if is_room => {
                    entry.insert(found);
                }
                Entry::Vacant(_) => self.left_out += 1,
            }
        }
        let (len, is_interrupted) = (&mut self.len, self.is_interrupted);
        self.entries.retain(|_, entry| {
            let is_kept = entry.is_there || is_interrupted;
            if !is_kept {
                *len -= entry.contents.as_ref().map_or(0, |contents| contents.len());
            }
            is_kept
        });
        // Those that cannot be read are tried again, which is when the directory has changed.
        let unread = self.entries.iter().filter(|(_, entry)| entry.contents.is_none());
        self.unread = unread.map(|(hash_part, _)| *hash_part).collect();
        let age = SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(
                u64::try_from(status.st_mtime.max(status.st_ctime)).unwrap_or(0),
            ))
            .and_then(|changed| changed.elapsed().ok());
        // Two changes within a tick of the clock that file systems use look like one; a second more, since the rest was left out.
        let is_settled = age.is_some_and(|age| age > Duration::from_millis(1000 + TIMESTAMP_SETTLE_MS));
        // What went may have made room for what was left out before that was known.
        let is_room_left = self.left_out > 0 && self.entries.len() < INDEX_ENTRIES_MAX;
        self.listed = (is_settled && !self.is_interrupted && !is_room_left).then_some(changed);
        Ok(())
    }
}

fn changed(status: &Stat) -> Changed {
    (status.st_mtime, status.st_mtime_nsec, status.st_ctime, status.st_ctime_nsec)
}

impl Contents {
    /// What it takes, with its entry in the index. Bytes.
    fn len(&self) -> usize {
        const AROUND: usize =
            size_of::<HashPart>() + size_of::<Narinfo>() + size_of::<Contents>() + 6 * size_of::<usize>();
        AROUND + self.path.base_name().len() + size_of_val(&*self.references)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;
    use std::os::fd::OwnedFd;
    use std::path::Path;

    use rustix::io::Errno;

    use super::*;

    fn path(digit: char, name: &str) -> StorePath {
        StorePath::parse_base_name(&format!("{}-{name}", digit.to_string().repeat(32))).unwrap()
    }

    fn write(folder: &Path, path: &StorePath, references: &[&StorePath]) {
        let references: Vec<_> = references.iter().map(|path| path.base_name()).collect();
        let text = format!(
            "StorePath: /nix/store/{path}\nURL: nar/x.nar\nCompression: none\n\
             NarHash: sha256:1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s\nNarSize: 112\nReferences: {}\n",
            references.join(" ")
        );
        let draft = folder.join("draft");
        fs::write(&draft, text).unwrap();
        fs::rename(draft, folder.join(format!("{}.narinfo", path.hash_part()))).unwrap();
    }

    struct Fixture {
        folder: tempfile::TempDir,
        directory: Directory,
        index: CacheIndex,
        /// Whether it was whole the last time.
        is_whole: bool,
    }

    impl Fixture {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let opened = OwnedFd::from(fs::File::open(folder.path()).unwrap());
            let directory = Directory::new(opened, folder.path().to_path_buf());
            Self { folder, directory, index: CacheIndex::default(), is_whole: false }
        }

        /// As far as `steps` go.
        fn refresh(&mut self, steps: usize) -> (u64, u64) {
            let left = Cell::new(steps);
            let goes_on = || left.replace(left.get().saturating_sub(1)) > 0;
            let store_dir = StoreDir::parse("/nix/store").unwrap();
            let coverage = self.index.refresh(&self.directory, &store_dir, &goes_on).unwrap();
            self.is_whole = coverage.is_whole();
            (coverage.read, coverage.all)
        }

        fn found(&self, name: &str) -> Vec<String> {
            self.index.find(|base_name| base_name.ends_with(name)).map(ToString::to_string).collect()
        }
    }

    #[test]
    fn what_the_directory_has_is_found_and_what_it_loses_is_not() {
        let mut fixture = Fixture::new();
        let (a, b, c) = (path('a', "one"), path('b', "two"), path('c', "one"));
        write(fixture.folder.path(), &a, &[&b, &a]);
        write(fixture.folder.path(), &b, &[]);
        fs::write(fixture.folder.path().join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
        fs::write(fixture.folder.path().join(format!("{}.narinfo", "d".repeat(32))), "no narinfo").unwrap();
        assert_eq!(fixture.refresh(usize::MAX), (3, 3));
        assert_eq!(fixture.found("one"), [a.to_string()]);
        assert_eq!(fixture.index.referrers(b.hash_part()).collect::<Vec<_>>(), [&a]);
        assert_eq!(fixture.index.referrers(a.hash_part()).count(), 0, "itself excepted");

        write(fixture.folder.path(), &c, &[&b]);
        write(fixture.folder.path(), &a, &[]);
        assert_eq!(fixture.refresh(usize::MAX), (4, 4));
        assert_eq!(fixture.found("one"), [a.to_string(), c.to_string()]);
        assert_eq!(fixture.index.referrers(b.hash_part()).collect::<Vec<_>>(), [&c], "it was replaced");

        for name in ["a", "b", "c", "d"] {
            fs::remove_file(fixture.folder.path().join(format!("{}.narinfo", name.repeat(32)))).unwrap();
        }
        assert_eq!(fixture.refresh(usize::MAX), (0, 0));
        assert_eq!((fixture.found("").len(), fixture.index.len), (0, 0));
    }

    #[test]
    fn each_time_goes_on_where_the_one_before_has_ended() {
        let mut fixture = Fixture::new();
        for digit in "0123456789".chars() {
            write(fixture.folder.path(), &path(digit, "x"), &[]);
        }
        let mut read = 0;
        let mut rounds = 0;
        while read < 10 {
            let (now, all) = fixture.refresh(4);
            assert!(now > read && all == 10, "{now} of {all}");
            (read, rounds) = (now, rounds + 1);
        }
        assert!(rounds > 1 && fixture.found("x").len() == 10);
    }

    #[test]
    fn what_cannot_be_read_hides_nothing_else() {
        for (errno, expected) in [
            // It says something about the file: the others are read.
            (Errno::ACCESS, (4, 4, 3)),
            (Errno::IO, (4, 4, 3)),
            // It says something about the moment: the rest is read another time.
            (Errno::MFILE, (2, 4, 2)),
        ] {
            let mut fixture = Fixture::new();
            for digit in "0123".chars() {
                write(fixture.folder.path(), &path(digit, "x"), &[]);
            }
            let (index, directory) = (&mut fixture.index, &fixture.directory);
            index.list(directory, &|| true).unwrap();
            let failing = path('1', "x").hash_part();
            let store_dir = StoreDir::parse("/nix/store").unwrap();
            let narinfo = |hash_part| match hash_part {
                hash_part if hash_part == failing => Err(StoreError::io("read", "x", errno)),
                hash_part => directory.narinfo(hash_part, &store_dir),
            };
            index.read(&narinfo, &|| true);
            let Coverage { read, all, .. } = index.coverage();
            assert_eq!((read, all, index.find(|_| true).count()), expected, "{errno}");

            // Once there is nothing in the way, and the directory was listed again, everything is there.
            assert_eq!(fixture.refresh(usize::MAX), (4, 4));
            assert!(fixture.is_whole && fixture.found("x").len() == 4, "{errno}");
        }
    }

    #[test]
    fn a_listing_that_was_interrupted_loses_nothing() {
        let mut fixture = Fixture::new();
        write(fixture.folder.path(), &path('a', "x"), &[]);
        assert_eq!(fixture.refresh(0), (0, 0));
        assert!(!fixture.is_whole, "there was no time to look what is there");
        for number in 0..3000 {
            let path = StorePath::parse_base_name(&format!("{number:032}-z")).unwrap();
            write(fixture.folder.path(), &path, &[]);
        }
        assert_eq!(fixture.refresh(usize::MAX), (3001, 3001));
        assert!(fixture.is_whole);
        // Before it begins, and on its way.
        for steps in 0..3 {
            write(fixture.folder.path(), &path('b', "y"), &[]);
            assert_eq!(fixture.refresh(steps).0, 3001, "after {steps} steps");
            assert!(!fixture.is_whole && fixture.index.listed.is_none());
            assert_eq!(fixture.found("x"), [path('a', "x").to_string()], "after {steps} steps");
            fs::remove_file(fixture.folder.path().join(format!("{}.narinfo", "b".repeat(32)))).unwrap();
        }
        fs::remove_file(fixture.folder.path().join(format!("{}.narinfo", "a".repeat(32)))).unwrap();
        assert_eq!(fixture.refresh(usize::MAX), (3000, 3000));
        assert!(fixture.is_whole && fixture.found("x").is_empty());
    }

    #[test]
    fn a_directory_that_has_not_changed_is_not_listed_again() {
        let mut fixture = Fixture::new();
        write(fixture.folder.path(), &path('a', "x"), &[]);
        let long_ago = fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
        fs::File::open(fixture.folder.path()).unwrap().set_times(long_ago).unwrap();
        fixture.refresh(usize::MAX);
        assert_eq!(fixture.index.listed, None, "its status was changed a moment ago");
        let status = rustix::fs::fstat(&fixture.directory).unwrap();
        fixture.index.listed = Some(changed(&status));
        assert_eq!(fixture.refresh(0), (1, 1), "no time was needed");
    }
}
