//! From what is wanted to what is true: looks at the machine, reads keys, opens each source once, and gives the
//! [`Config`] that a server can rely on, or the one line that says what is missing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, CWD};

use super::settings::{Settings, StoreSettings, UploadBounds};
use crate::codec::cache_info::CacheInfo;
use crate::codec::store_path::StoreDir;
use crate::limits::CACHE_INFO_LEN_MAX;
use crate::server::config::{Config, Rules, SourceConfig};
use crate::store::db::Database;
use crate::store::keys::{SecretKeyFileError, read_secret_key};
use crate::store::nar_cache::{CacheFolder, CacheFolderError};
use crate::store::tokens::{self, TokenFileError};
use crate::store::upload::UploadSettings;
use crate::store::{LocalStore, StoreError, folder_of};

/// Where Nix keeps its store unless told otherwise.
const STORE_DIR_DEFAULT: &str = "/nix/store";

/// What the machine lacks.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// See its cause.
    #[error(transparent)]
    SecretKey(#[from] SecretKeyFileError),
    /// See its cause.
    #[error(transparent)]
    TokenFile(#[from] TokenFileError),
    /// A cache directory is missing, no directory, or not readable.
    #[error("cannot serve {} as a cache directory: {cause}; commands are listed by narwire --help", .path.display())]
    Directory {
        /// As typed.
        path: PathBuf,
        /// From opendir(3).
        cause: io::Error,
    },
    /// The `nix-cache-info` of a cache directory is of no use to any client.
    #[error("{}: {cause}", .path.display())]
    CacheInfo {
        /// The file.
        path: PathBuf,
        /// In words.
        cause: String,
    },
    /// Two sources name their paths differently, and no client could use both.
    #[error(
        "{} is for the store directory {found}, not {expected}; serve it alone, or give the right --store-dir",
        .directory.display()
    )]
    StoreDirDiffers {
        /// A cache directory.
        directory: PathBuf,
        /// In its `nix-cache-info`.
        found: String,
        /// Of the other sources, or as typed.
        expected: String,
    },
    /// The files of the live store cannot be listed.
    #[error("cannot read the store {}: {cause}; where it is, is said by --store-dir and --real-store", .path.display())]
    RealStore {
        /// Where they should be.
        path: PathBuf,
        /// From opendir(3).
        cause: io::Error,
    },
    /// There is no Nix here.
    #[error(
        "there is no Nix database {}; name it with --db, serve a cache directory (narwire DIR), or try narwire demo",
        .0.display()
    )]
    NoDatabase(PathBuf),
    /// Of two who write into one directory, one is the wrong one.
    #[error(
        "the NAR cache {} would be inside of {}, which is served: give it a directory of its own with --cache-dir",
        .directory.display(), .served.display()
    )]
    NarCacheInside {
        /// As typed.
        directory: PathBuf,
        /// A cache directory or the store.
        served: PathBuf,
    },
    /// See its cause.
    #[error(transparent)]
    NarCache(#[from] CacheFolderError),
    /// The directory for uploads cannot be written.
    #[error(
        "uploads cannot be written to {}: {cause}; it must be writable by the user this program runs as (the first DIR is the \
         one that is written to)",
        .path.display()
    )]
    UploadsUnwritable {
        /// As typed.
        path: PathBuf,
        /// From access(2).
        cause: io::Error,
    },
    /// A NAR cache is written to by somebody else, and what does not fit is removed from it.
    #[error("uploads cannot be kept in {}, which is a NAR cache (it has .narwire): name another directory first", .0.display())]
    UploadsInNarCache(PathBuf),
    /// What is in the store is Nix's.
    #[error("uploads cannot be kept in {}, which is inside of the store: name another directory first", .0.display())]
    UploadsInStore(PathBuf),
    /// The database is there, and cannot be used.
    #[error(transparent)]
    Database(#[from] StoreError),
}

/// Makes the configuration of the server that `settings` want, on a machine with so many `cores` for this process.
pub fn load(settings: Settings, cores: usize) -> Result<Config, LoadError> {
    let (rules, rule_places) = (rules(&settings)?, rule_places(&settings));
    let store_dir = store_dir(&settings)?;
    let mut sources = Vec::new();
    if let Some(store) = settings.store {
        sources.push(SourceConfig::Store(local_store(store, &store_dir)?));
    }
    sources.extend(settings.directories.into_iter().map(SourceConfig::Directory));
    if let Some(nar_cache) = &settings.nar_cache {
        refuse_inside(&nar_cache.directory, &sources)?;
        CacheFolder::look(&nar_cache.directory, &store_dir)?;
    }
    let uploads = match settings.uploads {
        Some(bounds) => upload_settings(bounds, &store_dir, &sources)?,
        None => None,
    };
    Ok(Config {
        listen: settings.listen,
        sources,
        store_dir,
        workers: settings.workers.unwrap_or(cores),
        connections: settings.connections,
        sandbox: settings.sandbox,
        is_browsable: settings.is_browsable,
        removed_at_end: None,
        nar_cache: settings.nar_cache,
        uploads,
        rules,
        rule_places,
        capabilities_off: settings.capabilities_off,
    })
}

/// Reads what can change while the server runs.
pub fn rules(settings: &Settings) -> Result<Rules, LoadError> {
    let mut access = settings.access.clone();
    if let Some(token_file) = &access.token_file {
        access.tokens = Arc::new(tokens::read(token_file)?);
    }
    let secret_keys = settings.secret_key_files.iter().map(|path| read_secret_key(path));
    Ok(Rules {
        secret_keys: secret_keys.collect::<Result<_, _>>()?,
        required_keys: Arc::clone(&settings.required_keys),
        priority: settings.priority,
        drain_timeout: settings.drain_timeout,
        access,
        trusted_proxies: Arc::clone(&settings.trusted_proxies),
        access_log: settings.access_log,
    })
}

/// What has to stay readable so that the rules can be read again. That is the folder of each file, for another file may take its place
/// or lie beside it then; but of folders in which everything lies (somebody's home, `/`, and what is right beneath it, such as /etc), the
/// file alone.
fn rule_places(settings: &Settings) -> Vec<PathBuf> {
    let files =
        settings.config_file.iter().chain(&settings.secret_key_files).chain(&settings.access.token_file);
    // Not from the database of users, which home_dir() would ask where the variable is not set: its modules are shared libraries, and
    // crash a static program.
    let home = std::env::var_os("HOME").map(|home| resolve(Path::new(&home)));
    let mut places = Vec::new();
    for file in files {
        // A link may be changed to lead elsewhere in its folder, and the file that it leads to be replaced in its own.
        for file in [Some(file.clone()), file.canonicalize().ok()].into_iter().flatten() {
            let folder = folder_of(&file);
            let real = resolve(folder);
            let is_everybodys =
                |folder: &Path| folder.parent().is_none_or(|parent| parent.parent().is_none());
            let is_home = Some(&real) == home.as_ref() || real.parent() == Some(Path::new("/home"));
            let is_everything = is_home || is_everybodys(&real);
            let place = if is_everything { file } else { folder.to_path_buf() };
            if !places.contains(&place) {
                places.push(place);
            }
        }
    }
    places
}

/// How many cores this process may use (sched_getaffinity(2)): each worker will be bound to one.
pub fn cores() -> usize {
    let allowed = rustix::thread::sched_getaffinity(None).ok();
    allowed.and_then(|cores| usize::try_from(cores.count()).ok()).unwrap_or(1).max(1)
}

/// What was typed; or the live store's; or what the directories agree on. Whatever it is, every directory must agree.
fn store_dir(settings: &Settings) -> Result<StoreDir, LoadError> {
    let mut chosen = settings.store_dir.clone();
    if chosen.is_none() && settings.store.is_some() {
        chosen = Some(nix_store_dir());
    }
    for directory in &settings.directories {
        let assumed = chosen.clone().unwrap_or_else(nix_store_dir);
        let Some(found) = announced_store_dir(directory, &assumed)? else { continue };
        let expected = chosen.get_or_insert_with(|| found.clone());
        if *expected != found {
            return Err(LoadError::StoreDirDiffers {
                directory: directory.clone(),
                found: found.as_str().to_owned(),
                expected: expected.as_str().to_owned(),
            });
        }
    }
    Ok(chosen.unwrap_or_else(nix_store_dir))
}

fn nix_store_dir() -> StoreDir {
    StoreDir::parse(STORE_DIR_DEFAULT).expect("the default store directory is one")
}

/// The store directory in the `nix-cache-info` of a cache directory, `assumed` if it leaves that out; there may be no
/// such file.
fn announced_store_dir(directory: &Path, assumed: &StoreDir) -> Result<Option<StoreDir>, LoadError> {
    list(directory).map_err(|cause| LoadError::Directory { path: directory.to_path_buf(), cause })?;
    let path = directory.join("nix-cache-info");
    let text = match read_bounded(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(LoadError::CacheInfo { path, cause: error.to_string() }),
    };
    match CacheInfo::parse(&text, assumed) {
        Ok(info) => Ok(Some(info.store_dir)),
        Err(error) => Err(LoadError::CacheInfo { path, cause: error.to_string() }),
    }
}

fn local_store(places: StoreSettings, store_dir: &StoreDir) -> Result<LocalStore, LoadError> {
    let real_store = places.real_store.unwrap_or_else(|| PathBuf::from(store_dir.as_str()));
    // Nix keeps `store` and `var` side by side, at the root of a chroot store as well.
    let beside = real_store.parent().unwrap_or(&real_store).to_path_buf();
    let store = LocalStore {
        store_dir: store_dir.clone(),
        database: places.database.unwrap_or_else(|| beside.join("var/nix/db/db.sqlite")),
        log_dir: places.log_dir.unwrap_or_else(|| beside.join("var/log/nix/drvs")),
        real_store,
    };
    if let Err(error) = fs::metadata(&store.database)
        && error.kind() == io::ErrorKind::NotFound
    {
        return Err(LoadError::NoDatabase(store.database));
    }
    list(&store.real_store)
        .map_err(|cause| LoadError::RealStore { path: store.real_store.clone(), cause })?;
    Database::open(&store)?;
    Ok(store)
}

/// A NAR cache in a served directory would be served twice, and one in the store is none of Nix's.
fn refuse_inside(directory: &Path, sources: &[SourceConfig]) -> Result<(), LoadError> {
    let resolved = resolve(directory);
    let served = sources.iter().map(|source| match source {
        SourceConfig::Store(store) => &store.real_store,
        SourceConfig::Directory(path) => path,
    });
    match served.into_iter().find(|served| resolved.starts_with(resolve(served))) {
        None => Ok(()),
        Some(served) => {
            Err(LoadError::NarCacheInside { directory: directory.to_path_buf(), served: served.clone() })
        }
    }
}

/// Uploads into the first directory among `sources`, if it can take them.
fn upload_settings(
    bounds: UploadBounds,
    store_dir: &StoreDir,
    sources: &[SourceConfig],
) -> Result<Option<UploadSettings>, LoadError> {
    let mut directory = None;
    let mut store = None;
    for source in sources {
        match source {
            SourceConfig::Store(places) => store = Some(&places.real_store),
            SourceConfig::Directory(path) => directory = directory.or(Some(path)),
        }
    }
    let Some(directory) = directory.cloned() else { return Ok(None) };
    if CacheFolder::is_at(&directory) {
        return Err(LoadError::UploadsInNarCache(directory));
    }
    if store.is_some_and(|store| resolve(&directory).starts_with(resolve(store))) {
        return Err(LoadError::UploadsInStore(directory));
    }
    // Asked of the kernel, which also knows of file systems that are read-only; nothing is made to find out.
    match rustix::fs::accessat(CWD, &directory, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
        Ok(()) => {}
        Err(errno) => return Err(LoadError::UploadsUnwritable { path: directory, cause: errno.into() }),
    }
    let UploadBounds { len_max, free_min } = bounds;
    Ok(Some(UploadSettings { directory, store_dir: store_dir.clone(), len_max, free_min }))
}

/// The path without links and dots, as far as it exists; the rest is still to be made.
fn resolve(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let resolved = absolute.ancestors().find_map(|ancestor| {
        let rest = absolute.strip_prefix(ancestor).ok()?;
        Some(fs::canonicalize(ancestor).ok()?.join(rest))
    });
    resolved.unwrap_or(absolute)
}

fn list(directory: &Path) -> io::Result<()> {
    fs::read_dir(directory).map(drop)
}

fn read_bounded(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    fs::File::open(path)?.take(CACHE_INFO_LEN_MAX).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::cli::arguments::ServeArguments;
    use crate::store::demo::DemoStore;

    fn load_typed(arguments: ServeArguments) -> Result<Config, LoadError> {
        load(Settings::merge([arguments]).unwrap(), 3)
    }

    /// A cache directory that announces `store_dir`, if any.
    fn cache(store_dir: Option<&str>) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        if let Some(store_dir) = store_dir {
            fs::write(folder.path().join("nix-cache-info"), format!("StoreDir: {store_dir}\n")).unwrap();
        }
        folder
    }

    fn directories(caches: &[&TempDir]) -> ServeArguments {
        let directories = caches.iter().map(|cache| cache.path().to_path_buf()).collect();
        ServeArguments { directories, ..ServeArguments::default() }
    }

    fn store(demo: &DemoStore) -> ServeArguments {
        ServeArguments { real_store: Some(demo.root().join("nix/store")), ..ServeArguments::default() }
    }

    #[test]
    fn folders_of_their_own_stay_readable_and_folders_of_everything_do_not() {
        let places = |file: &str| {
            let typed = ServeArguments { config: Some(file.into()), ..ServeArguments::default() };
            rule_places(&Settings::merge([typed]).unwrap())
        };
        assert_eq!(places("/etc/narwire/narwire.toml"), [PathBuf::from("/etc/narwire")]);
        for file in ["/narwire.toml", "/etc/narwire.toml", "/tmp/narwire.toml", "/home/somebody/narwire.toml"]
        {
            assert_eq!(places(file), [PathBuf::from(file)]);
        }
    }

    #[test]
    fn the_store_directory_is_what_the_directories_agree_on() {
        let (silent, nix, gnu) = (cache(None), cache(Some("/nix/store")), cache(Some("/gnu/store")));
        for (caches, expected) in [
            (&[&silent][..], "/nix/store"),
            (&[&nix], "/nix/store"),
            (&[&gnu], "/gnu/store"),
            (&[&silent, &gnu, &gnu], "/gnu/store"),
        ] {
            assert_eq!(load_typed(directories(caches)).unwrap().store_dir.as_str(), expected);
        }
        let error = load_typed(directories(&[&gnu, &nix])).unwrap_err();
        assert!(
            matches!(&error, LoadError::StoreDirDiffers { directory, .. } if directory == nix.path()),
            "{error}"
        );
        let typed = ServeArguments { store_dir: Some("/other".parse().unwrap()), ..directories(&[&nix]) };
        assert!(matches!(load_typed(typed), Err(LoadError::StoreDirDiffers { .. })));
    }

    #[test]
    fn the_places_of_a_store_follow_from_its_files() {
        let demo = DemoStore::create(None, &mut |_| {}).unwrap();
        let config = load_typed(store(&demo)).unwrap();
        let [SourceConfig::Store(found)] = config.sources.as_slice() else { panic!("{config:?}") };
        assert_eq!(found.database, demo.store.database);
        assert_eq!(found.log_dir, demo.store.log_dir);
        assert_eq!(found.store_dir.as_str(), "/nix/store");
        assert_eq!(config.workers, 3);
    }

    #[test]
    fn a_store_comes_before_the_directories_that_it_agrees_with() {
        let demo = DemoStore::create(None, &mut |_| {}).unwrap();
        let (nix, gnu) = (cache(Some("/nix/store")), cache(Some("/gnu/store")));
        let both = |cache| ServeArguments {
            with_store: true,
            directories: directories(&[cache]).directories,
            ..store(&demo)
        };
        let config = load_typed(both(&nix)).unwrap();
        assert!(matches!(config.sources.as_slice(), [SourceConfig::Store(_), SourceConfig::Directory(_)]));
        assert!(matches!(load_typed(both(&gnu)), Err(LoadError::StoreDirDiffers { .. })));
    }

    #[test]
    fn a_missing_store_is_told_from_a_missing_database() {
        let demo = DemoStore::create(None, &mut |_| {}).unwrap();
        fs::remove_file(&demo.store.database).unwrap();
        assert!(matches!(load_typed(store(&demo)), Err(LoadError::NoDatabase(_))));

        let demo = DemoStore::create(None, &mut |_| {}).unwrap();
        let elsewhere =
            ServeArguments { store_dir: Some("/nonexistent".parse().unwrap()), ..Default::default() };
        let elsewhere = ServeArguments { db: Some(demo.store.database.clone()), ..elsewhere };
        assert!(matches!(load_typed(elsewhere), Err(LoadError::RealStore { .. })));
    }

    #[test]
    fn what_is_no_database_is_refused() {
        let demo = DemoStore::create(None, &mut |_| {}).unwrap();
        fs::write(&demo.store.database, "no database").unwrap();
        assert!(matches!(load_typed(store(&demo)), Err(LoadError::Database(_))));
    }

    #[test]
    fn a_useless_cache_info_is_refused_before_a_client_sees_it() {
        let broken = cache(Some("relative"));
        assert!(matches!(load_typed(directories(&[&broken])), Err(LoadError::CacheInfo { .. })));
    }

    #[test]
    fn a_nar_cache_has_a_directory_of_its_own() {
        let demo = DemoStore::create(None, &mut |_| {}).unwrap();
        let (served, elsewhere) = (cache(None), cache(None));
        let link = elsewhere.path().join("link");
        std::os::unix::fs::symlink(served.path(), &link).unwrap();
        let with_cache_dir = |directory: PathBuf| {
            load_typed(ServeArguments {
                with_store: true,
                directories: directories(&[&served]).directories,
                cache_dir: Some(directory),
                ..store(&demo)
            })
        };
        for inside in [
            served.path().to_path_buf(),
            served.path().join("nars/of/mine"),
            link.join("nars"),
            elsewhere.path().join("link"),
            demo.root().join("nix/store"),
            demo.root().join("nix/store/nars"),
        ] {
            let error = with_cache_dir(inside.clone()).unwrap_err();
            assert!(matches!(error, LoadError::NarCacheInside { .. }), "{}: {error}", inside.display());
        }
        for outside in [elsewhere.path().join("nars"), served.path().with_extension("nars")] {
            let config = with_cache_dir(outside.clone()).unwrap();
            assert_eq!(config.nar_cache.unwrap().directory, outside);
            assert!(!outside.exists(), "loading makes nothing");
        }
    }

    #[test]
    fn what_is_no_nar_cache_is_not_made_one() {
        let demo = DemoStore::create(None, &mut |_| {}).unwrap();
        let foreign = cache(Some("/nix/store"));
        let nar_cache = |place: &TempDir| {
            load_typed(ServeArguments { cache_dir: Some(place.path().to_path_buf()), ..store(&demo) })
        };
        let error = nar_cache(&foreign).unwrap_err();
        assert!(matches!(error, LoadError::NarCache(CacheFolderError::Foreign(_))), "{error}");
        let other = cache(Some("/gnu/store"));
        fs::create_dir(other.path().join(".narwire")).unwrap();
        let error = nar_cache(&other).unwrap_err();
        assert!(matches!(error, LoadError::NarCache(CacheFolderError::OtherStore { .. })), "{error}");
        let empty = cache(None);
        nar_cache(&empty).unwrap();
        assert!(fs::read_dir(empty.path()).unwrap().next().is_none(), "loading makes nothing");
    }

    fn uploads_to(cache: &TempDir) -> ServeArguments {
        ServeArguments { allow_anonymous_upload: true, ..directories(&[cache]) }
    }

    #[test]
    fn uploads_go_to_the_first_directory() {
        let (first, second) = (cache(None), cache(Some("/gnu/store")));
        let arguments =
            ServeArguments { directories: directories(&[&first, &second]).directories, ..uploads_to(&first) };
        let uploads = load_typed(arguments).unwrap().uploads.unwrap();
        assert_eq!(uploads.directory, first.path());
        assert_eq!(uploads.store_dir.as_str(), "/gnu/store");
        assert!(fs::read_dir(first.path()).unwrap().next().is_none(), "loading makes nothing");
        assert_eq!(load_typed(directories(&[&first])).unwrap().uploads, None);
    }

    #[test]
    fn what_cannot_take_uploads_is_refused_before_a_client_comes() {
        let nar_cache = cache(None);
        fs::create_dir(nar_cache.path().join(".narwire")).unwrap();
        let error = load_typed(uploads_to(&nar_cache)).unwrap_err();
        assert!(matches!(error, LoadError::UploadsInNarCache(_)), "{error}");

        let demo = DemoStore::create(None, &mut |_| {}).unwrap();
        let inside = demo.root().join("nix/store/uploads");
        fs::create_dir(&inside).unwrap();
        let arguments = ServeArguments {
            directories: vec![inside],
            with_store: true,
            allow_anonymous_upload: true,
            ..store(&demo)
        };
        let error = load_typed(arguments).unwrap_err();
        assert!(matches!(error, LoadError::UploadsInStore(_)), "{error}");
    }

    #[test]
    fn this_process_has_a_core() {
        assert!(cores() >= 1);
    }
}
