//! The Nix database, read-only.
//!
//! Opened live: in write-ahead-log mode a reader takes part in SQLite's locking and sees every commit. Only when
//! nobody has the database open and this process may not create the log's files is it opened as immutable, and then
//! anew after each change of the file; a database with a log beside it is never opened like that, for what is in the
//! log would be missing.
//!
//! Each question is one statement, so a row and its references come from one snapshot, and no read transaction
//! outlives the answer (a long one would keep Nix from resetting its log).
//!
//! Tables: `src/libstore/schema.sql` and `src/libstore/ca-specific-schema.sql` of Nix.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::FromSql;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row};
use rustix::io::Errno;

use crate::codec::hash::Sha256Digest;
use crate::codec::narinfo::PathInfo;
use crate::codec::realisation::{DrvOutput, OutputName, Realisation};
use crate::codec::signature::Signature;
use crate::codec::store_path::{HashPart, StorePath};
use crate::limits::{
    CLOSURE_PATHS_MAX, DATABASE_BUSY_TIMEOUT_MS, DATABASE_REOPEN_MAX, REFERRERS_COUNTED_MAX,
    REFERRERS_SHOWN_MAX,
};
use crate::store::change::{attributes, identity};
use crate::store::{DatabaseFault, LocalStore, StoreError};

/// The version in the file `schema` beside the database that this program reads. Nix has written 10 since 2015.
pub const SCHEMA_VERSION: &str = "10";

/// One connection to the Nix database. One per thread.
///
/// Follows the file when it is replaced, and reopens an immutable one after each change of it.
pub struct Database {
    store: LocalStore,
    opened: Opened,
}

/// How the database is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// With locks and log: every commit is seen.
    Live,
    /// Without either, because the log cannot be created: worth a warning, for each change costs a reopening.
    /// Granting write access to the database's folder or running a Nix daemon mends it.
    Immutable,
}

/// Row identifier in the table of valid paths. A later registration has a larger one; none is used twice. The default
/// lies before all of them.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct RowId(i64);

/// A row of the table of valid paths, or why it is damaged.
pub type ValidPath = (RowId, Result<StorePath, StoreError>);

/// What the database knows of a path beside what its narinfo says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// When it was registered. Seconds since 1970.
    pub registered_s: u64,
    /// What refers to it, itself excepted: any [`REFERRERS_SHOWN_MAX`] of these, in the order of the database.
    pub referrers: Vec<StorePath>,
    /// How many there are, or [`REFERRERS_COUNTED_MAX`] if there are more.
    pub referrers_count: u64,
    /// How many paths it needs, itself included, and the length of their NARs together in bytes; none when that was not asked for, or when
    /// these are more than [`CLOSURE_PATHS_MAX`].
    pub closure: Option<(u64, u64)>,
}

/// What a part of a search has found.
#[derive(Debug, PartialEq, Eq)]
pub struct Scan {
    /// What was wanted, in the order of their paths.
    pub found: Vec<StorePath>,
    /// How many were looked at.
    pub looked_at: u64,
    /// Where the rest begins: after this text. None when there is no rest.
    pub last: Option<String>,
}

impl Database {
    /// Opens the store's database and checks that it is one.
    pub fn open(store: &LocalStore) -> Result<Self, StoreError> {
        Ok(Self { store: store.clone(), opened: Opened::open(store)? })
    }

    /// How the database is open now; may change with a reopening.
    pub fn access(&self) -> Access {
        self.opened.access
    }

    /// What the database knows of the path with this hash part. `None` when no such path is valid.
    pub fn path_info(&mut self, hash_part: HashPart) -> Result<Option<PathInfo>, StoreError> {
        // '.' follows '-': all names with this hash part and no other lie between the two.
        let prefix = format!("{}/{}", self.store.store_dir.as_str(), hash_part.as_str());
        let (first, end) = (format!("{prefix}-"), format!("{prefix}."));
        self.ask(|opened, store| {
            let mut statement = opened.prepare(
                "select path, hash, narSize, deriver, sigs, ca, \
                   (select group_concat(target.path, ' ') from Refs \
                      join ValidPaths as target on target.id = Refs.reference where Refs.referrer = source.id) \
                 from ValidPaths as source where path >= ?1 and path < ?2 limit 1",
            )?;
            let row = statement.query_row([&first, &end], PathRow::read).optional();
            let row = row.map_err(|error| opened.fault_in_row(&prefix, error))?;
            row.map(|row| row.parse(store)).transpose()
        })
    }

    /// What the database knows of a valid path beside what its narinfo says. `None` when it is not valid any more.
    pub fn surroundings(
        &mut self,
        path: &StorePath,
        is_closure_wanted: bool,
    ) -> Result<Option<Surroundings>, StoreError> {
        let full = path.full(&self.store.store_dir);
        self.ask(|opened, store| {
            let mut statement =
                opened.prepare("select id, registrationTime from ValidPaths where path = ?1")?;
            let row = statement.query_row([&full], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)));
            let row = row.optional().map_err(|error| opened.fault_in_row(&full, error))?;
            let Some((id, registered_s)) = row else { return Ok(None) };
            let mut statement = opened.prepare(
                "select path from Refs join ValidPaths on id = referrer \
                 where reference = ?1 and referrer != ?1 limit ?2",
            )?;
            let paths = statement.query_map((id, REFERRERS_SHOWN_MAX as u64), |row| row.get::<_, String>(0));
            let paths: Vec<String> =
                paths.and_then(Iterator::collect).map_err(|error| opened.fault_in_row(&full, error))?;
            let referrers =
                paths.iter().filter_map(|path| StorePath::parse_full(&store.store_dir, path).ok()).collect();
            let count = |statement: &str, max: u64| -> Result<(u64, u64), StoreError> {
                let row = opened.prepare(statement)?.query_row((id, max), |row| {
                    Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?.unwrap_or(0)))
                });
                let (count, sum) = row.map_err(|error| opened.fault(error))?;
                Ok((u64::try_from(count).unwrap_or(0), u64::try_from(sum).unwrap_or(0)))
            };
            let (referrers_count, _) = count(
                "select count(*), 0 from \
                   (select 1 from Refs where reference = ?1 and referrer != ?1 limit ?2)",
                REFERRERS_COUNTED_MAX,
            )?;
            let closure = if is_closure_wanted {
                Some(count(
                    "with recursive closure(id) as (select ?1 union \
                       select reference from Refs join closure on referrer = closure.id limit ?2) \
                     select count(*), cast(total(narSize) as integer) from closure join ValidPaths using (id)",
                    CLOSURE_PATHS_MAX + 1,
                )?)
            } else {
                None
            };
            Ok(Some(Surroundings {
                registered_s: u64::try_from(registered_s).unwrap_or(0),
                referrers,
                referrers_count,
                closure: closure.filter(|(count, _)| *count <= CLOSURE_PATHS_MAX),
            }))
        })
    }

    /// Looks at `limit` valid paths at most, in the order of their paths and starting after the text `after`, for those whose base name
    /// is `wanted`. Names that are none are passed over.
    pub fn scan(
        &mut self,
        after: &str,
        limit: u32,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Scan, StoreError> {
        self.ask(|opened, store| {
            // Answered from the index of paths alone.
            let mut statement =
                opened.prepare("select path from ValidPaths where path > ?1 order by path limit ?2")?;
            let mut rows = statement.query((after, limit)).map_err(|error| opened.fault(error))?;
            let mut scan = Scan { found: Vec::new(), looked_at: 0, last: None };
            let mut last = String::new();
            while let Some(row) = rows.next().map_err(|error| opened.fault(error))? {
                scan.looked_at += 1;
                let Ok(path) = row.get_ref(0).map_err(|error| opened.fault(error))?.as_str() else {
                    continue;
                };
                path.clone_into(&mut last);
                let base_name =
                    path.strip_prefix(store.store_dir.as_str()).and_then(|rest| rest.strip_prefix('/'));
                if base_name.is_some_and(wanted) {
                    scan.found.extend(StorePath::parse_full(&store.store_dir, path).ok());
                }
            }
            // Behind an order by text, one that is none would come for ever.
            scan.last = (scan.looked_at == u64::from(limit) && last.as_str() > after).then_some(last);
            Ok(scan)
        })
    }

    /// What an output of a content-addressed derivation has become, by the derivation's hash: Nix 2.4 to 2.34.
    pub fn realisation(&mut self, id: &DrvOutput) -> Result<Option<Realisation>, StoreError> {
        let key = [format!("sha256:{}", id.drv_hash.to_hex()), id.output_name.to_string()];
        self.ask(|opened, store| {
            if !opened.has_table("Realisations")? || !opened.has_table("RealisationsRefs")? {
                return Ok(None);
            }
            opened.realisation(
                store,
                &key,
                "select output.path, source.signatures, \
                   (select group_concat(target.drvPath || '!' || target.outputName || ' ' || target_output.path, ' ') \
                      from RealisationsRefs join Realisations as target on target.id = realisationReference \
                      join ValidPaths as target_output on target_output.id = target.outputPath \
                      where referrer = source.id) \
                 from Realisations as source join ValidPaths as output on output.id = source.outputPath \
                 where source.drvPath = ?1 and source.outputName = ?2 order by source.id limit 1",
            )
        })
    }

    /// What an output of a content-addressed derivation has become, by the derivation's path: Nix 2.35 and later.
    pub fn build_trace(
        &mut self,
        derivation: &StorePath,
        output: &OutputName,
    ) -> Result<Option<Realisation>, StoreError> {
        let key = [derivation.base_name().to_owned(), output.to_string()];
        self.ask(|opened, store| {
            if !opened.has_table("BuildTraceV3")? {
                return Ok(None);
            }
            opened.realisation(
                store,
                &key,
                "select outputPath, signatures, null from BuildTraceV3 \
                 where drvPath = ?1 and outputName = ?2 order by id limit 1",
            )
        })
    }

    /// At most `limit` valid paths with their row identifiers, in order of registration, starting after `after`: the
    /// default at first, then the last identifier of the answer before. Empty when there are no more. A damaged row is an error of
    /// its own, behind which the others come.
    pub fn valid_paths(&mut self, after: RowId, limit: u32) -> Result<Vec<ValidPath>, StoreError> {
        self.ask(|opened, store| {
            let mut statement =
                opened.prepare("select id, path from ValidPaths where id > ?1 order by id limit ?2")?;
            let rows = statement.query_map((after.0, limit), |row| {
                let id: i64 = row.get(0)?;
                let path = match row.get::<_, String>(1) {
                    Ok(path) => parse_path(store, &path, &path),
                    Err(error) => Err(opened.fault_in_row(&format!("number {id}"), error)),
                };
                Ok((RowId(id), path))
            });
            let rows = rows.and_then(Iterator::collect);
            rows.map_err(|error| opened.fault(error))
        })
    }

    /// Row identifier of the path that was registered last; the default when there is none.
    pub fn last_row(&mut self) -> Result<RowId, StoreError> {
        let last = "select max(id) from ValidPaths";
        self.ask(|opened, _| opened.one::<Option<i64>>(last)).map(|last| last.map_or(RowId::default(), RowId))
    }

    /// Number of valid paths.
    pub fn count(&mut self) -> Result<u64, StoreError> {
        self.ask(|opened, _| opened.one("select count(*) from ValidPaths"))
    }

    /// Length of the NARs of all valid paths together, as far as their rows are not damaged. Bytes. Looks at each of them.
    pub fn nar_sizes(&mut self) -> Result<u64, StoreError> {
        // Unlike `sum`, `total` takes any type and has no overflow.
        let sizes = "select cast(total(narSize) as integer) from ValidPaths where narSize > 0";
        self.ask(|opened, _| opened.one(sizes))
    }

    /// Asks the database something cheap that it cannot answer from memory alone; the health check.
    pub fn probe(&mut self) -> Result<(), StoreError> {
        self.last_row().map(drop)
    }

    /// Asks once, and again when an immutable database changed meanwhile, or when a live one cannot be read any more: a writer that
    /// turned the write-ahead log on, and took it away when it closed, leaves a file that this connection can make no log for.
    fn ask<T>(
        &mut self,
        question: impl Fn(&Opened, &LocalStore) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut is_usable = true;
        for attempt in 0..DATABASE_REOPEN_MAX {
            if !is_usable || !self.opened.is_current(&self.store) {
                self.opened = Opened::open(&self.store)?;
            }
            let answer = question(&self.opened, &self.store);
            is_usable = attempt > 0
                || !matches!(&answer, Err(StoreError::Database { fault: DatabaseFault::Unreadable, .. }));
            // Without locks a query can read half of a change, so an answer counts only if there was none.
            let is_whole = self.opened.access == Access::Live || self.opened.is_current(&self.store);
            if is_usable && is_whole {
                return answer;
            }
        }
        Err(StoreError::Database {
            path: self.store.database.clone(),
            fault: DatabaseFault::Busy,
            source: rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY_SNAPSHOT),
                Some("the file changed during each of several queries".to_owned()),
            ),
        })
    }
}

/// An open connection and the files that it stands for.
struct Opened {
    connection: Connection,
    access: Access,
    path: PathBuf,
    /// Which files these were: reopened when others take their place.
    fingerprint: Fingerprint,
}

/// What shows that a connection no longer reads what lies at its path.
#[derive(PartialEq, Eq)]
enum Fingerprint {
    /// Device and inode of the database and of its shared index.
    Live { database: Option<(u64, u64)>, index: Option<(u64, u64)> },
    /// Attributes of the database, and whether there is a log.
    Immutable { database: Option<[i64; 7]>, log: bool },
}

impl Fingerprint {
    fn of(database: &Path, access: Access) -> Self {
        match access {
            Access::Live => {
                Self::Live { database: identity(database), index: identity(&sibling(database, "-shm")) }
            }
            Access::Immutable => Self::Immutable {
                database: std::fs::metadata(database).ok().as_ref().map(attributes),
                log: !is_log_absent(database),
            },
        }
    }
}

impl Opened {
    fn open(store: &LocalStore) -> Result<Self, StoreError> {
        check_schema_version(&store.database)?;
        let path = store.database.clone();
        // What the files were before they were opened: if one is replaced meanwhile, the next question notices. Only
        // the index is looked at afterwards, because opening may create it.
        let immutable = Fingerprint::of(&path, Access::Immutable);
        let database = identity(&path);
        let (connection, access) = connect(store)?;
        let fingerprint = match access {
            Access::Live => Fingerprint::Live { database, index: identity(&sibling(&path, "-shm")) },
            Access::Immutable => immutable,
        };
        let opened = Self { connection, access, path, fingerprint };
        for table in ["ValidPaths", "Refs"] {
            if !opened.has_table(table)? {
                let reason = format!("is no Nix database: it has no table {table}");
                return Err(StoreError::Schema { path: opened.path, reason });
            }
        }
        Ok(opened)
    }

    fn is_current(&self, store: &LocalStore) -> bool {
        self.fingerprint == Fingerprint::of(&store.database, self.access)
    }

    fn has_table(&self, name: &str) -> Result<bool, StoreError> {
        let mut statement =
            self.prepare("select exists(select 1 from sqlite_master where type = 'table' and name = ?1)")?;
        statement.query_row([name], |row| row.get(0)).map_err(|error| self.fault(error))
    }

    fn one<T: FromSql>(&self, statement: &str) -> Result<T, StoreError> {
        self.prepare(statement)?.query_row([], |row| row.get(0)).map_err(|error| self.fault(error))
    }

    fn prepare(&self, statement: &str) -> Result<rusqlite::CachedStatement<'_>, StoreError> {
        self.connection.prepare_cached(statement).map_err(|error| self.fault(error))
    }

    /// `statement` takes derivation and output name, and gives the path, the signatures and the dependencies.
    fn realisation(
        &self,
        store: &LocalStore,
        key: &[String; 2],
        statement: &str,
    ) -> Result<Option<Realisation>, StoreError> {
        let mut statement = self.prepare(statement)?;
        let row = statement.query_row([&key[0], &key[1]], RealisationRow::read).optional();
        let name = key.join("!");
        row.map_err(|error| self.fault_in_row(&name, error))?.map(|row| row.parse(store, &name)).transpose()
    }

    fn fault(&self, error: rusqlite::Error) -> StoreError {
        fault(&self.path, error)
    }

    /// A column of another type than it must have is a damaged row, anything else a fault of the database.
    fn fault_in_row(&self, row: &str, error: rusqlite::Error) -> StoreError {
        match error {
            rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::Utf8Error(..) => damaged_row(row, error),
            other => self.fault(other),
        }
    }
}

/// A row of the valid paths table as the database holds it.
struct PathRow {
    path: String,
    hash: String,
    nar_size: Option<i64>,
    deriver: Option<String>,
    signatures: Option<String>,
    ca: Option<String>,
    references: Option<String>,
}

impl PathRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            path: row.get(0)?,
            hash: row.get(1)?,
            nar_size: row.get(2)?,
            deriver: row.get(3)?,
            signatures: row.get(4)?,
            ca: row.get(5)?,
            references: row.get(6)?,
        })
    }

    fn parse(self, store: &LocalStore) -> Result<PathInfo, StoreError> {
        let damaged = |reason: String| damaged_row(&self.path, reason);
        let mut references = words(self.references.as_deref())
            .map(|reference| parse_path(store, reference, &self.path))
            .collect::<Result<Vec<_>, _>>()?;
        references.sort();
        Ok(PathInfo {
            path: parse_path(store, &self.path, &self.path)?,
            nar_hash: Sha256Digest::from_database_text(&self.hash)
                .map_err(|error| damaged(format!("hash {}: {error}", self.hash)))?,
            nar_size: self
                .nar_size
                .and_then(|size| u64::try_from(size).ok())
                .filter(|&size| size > 0)
                .ok_or_else(|| damaged("has no narSize".to_owned()))?,
            references,
            deriver: match self.deriver.as_deref().filter(|deriver| !deriver.is_empty()) {
                Some(deriver) => Some(parse_path(store, deriver, &self.path)?),
                None => None,
            },
            signatures: parse_signatures(self.signatures.as_deref(), &self.path)?,
            ca: self.ca.filter(|ca| !ca.is_empty()),
        })
    }
}

/// A row of either realisation table.
struct RealisationRow {
    path: String,
    signatures: Option<String>,
    /// `<hash>!<output> <path>` for each dependency, separated by spaces.
    dependencies: Option<String>,
}

impl RealisationRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { path: row.get(0)?, signatures: row.get(1)?, dependencies: row.get(2)? })
    }

    fn parse(self, store: &LocalStore, row: &str) -> Result<Realisation, StoreError> {
        let mut dependent_realisations = BTreeMap::new();
        let mut dependencies = words(self.dependencies.as_deref());
        while let (Some(id), Some(path)) = (dependencies.next(), dependencies.next()) {
            let id = DrvOutput::parse(id)
                .map_err(|error| damaged_row(row, format!("dependency {id}: {error}")))?;
            dependent_realisations.insert(id, parse_path(store, path, row)?);
        }
        Ok(Realisation {
            out_path: parse_path(store, &self.path, row)?,
            signatures: parse_signatures(self.signatures.as_deref(), row)?,
            dependent_realisations,
        })
    }
}

fn words(column: Option<&str>) -> impl Iterator<Item = &str> {
    column.unwrap_or_default().split_ascii_whitespace()
}

fn parse_path(store: &LocalStore, text: &str, row: &str) -> Result<StorePath, StoreError> {
    StorePath::parse_full(&store.store_dir, text)
        .map_err(|error| damaged_row(row, format!("path {text}: {error}")))
}

fn parse_signatures(column: Option<&str>, row: &str) -> Result<Vec<Signature>, StoreError> {
    let parse =
        |text| Signature::parse(text).map_err(|error| damaged_row(row, format!("signature {text}: {error}")));
    words(column).map(parse).collect()
}

fn damaged_row(row: &str, reason: impl std::fmt::Display) -> StoreError {
    StoreError::damaged(format!("database row of {row}"), reason)
}

/// Opens a connection the best way that works.
pub(super) fn connect(store: &LocalStore) -> Result<(Connection, Access), StoreError> {
    let path = &store.database;
    let mut attempt = 1;
    loop {
        let live = open_connection(path.as_os_str().as_bytes(), OpenFlags::empty());
        let refused = match live {
            Ok(connection) => return Ok((connection, Access::Live)),
            Err(error) => error,
        };
        let cannot_create_log = matches!(
            refused.sqlite_error_code(),
            Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied)
        );
        if cannot_create_log && path.exists() && is_log_absent(path) {
            let uri = immutable_uri(path);
            let connection = open_connection(uri.as_bytes(), OpenFlags::SQLITE_OPEN_URI);
            return Ok((connection.map_err(|error| fault(path, error))?, Access::Immutable));
        }
        // Somebody may have made the log between the two looks.
        if !cannot_create_log || attempt == DATABASE_REOPEN_MAX {
            return Err(fault(path, refused));
        }
        attempt += 1;
    }
}

/// Opens read-only and reads once, because SQLite opens files only when it needs them.
fn open_connection(name: &[u8], flags: OpenFlags) -> rusqlite::Result<Connection> {
    let name = Path::new(std::ffi::OsStr::from_bytes(name));
    let flags = flags | OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(name, flags)?;
    connection.busy_timeout(Duration::from_millis(DATABASE_BUSY_TIMEOUT_MS))?;
    connection.query_row("select count(*) from sqlite_master", [], |_| Ok(()))?;
    Ok(connection)
}

/// Whether a connection that has read something is in write-ahead-log mode.
pub(super) fn is_write_ahead(connection: &Connection, path: &Path) -> Result<bool, StoreError> {
    connection
        .query_row("pragma journal_mode", [], |row| Ok(row.get_ref(0)?.as_str()? == "wal"))
        .map_err(|error| fault(path, error))
}

/// The database's path with `suffix` appended, as SQLite names its companions.
pub(super) fn sibling(database: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = database.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Whether nothing beside the database is a part of it that it lacks. The shared index is none: it is made after the log, removed
/// after it, and without one says nothing.
pub(super) fn is_log_absent(database: &Path) -> bool {
    let is_empty = |path: &Path| std::fs::metadata(path).map_or(true, |metadata| metadata.len() == 0);
    is_empty(&sibling(database, "-wal")) && is_empty(&sibling(database, "-journal"))
}

/// <https://sqlite.org/uri.html>: `%`, `?` and `#` have a meaning and are escaped; the rest stands as it is.
fn immutable_uri(database: &Path) -> String {
    let mut uri = "file:".to_owned();
    for &byte in database.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => uri.push(char::from(byte)),
            _ => uri.extend(['%', hex_digit(byte >> 4), hex_digit(byte & 0x0f)]),
        }
    }
    uri.push_str("?mode=ro&immutable=1");
    uri
}

fn hex_digit(value: u8) -> char {
    char::from(b"0123456789abcdef"[usize::from(value)])
}

/// Compares the file `schema` beside the database. A database copied without it is judged by its tables alone.
fn check_schema_version(database: &Path) -> Result<(), StoreError> {
    let path = database.with_file_name("schema");
    match std::fs::read_to_string(&path) {
        Ok(version) if version.trim() == SCHEMA_VERSION => Ok(()),
        Ok(version) => Err(StoreError::Schema {
            path: database.to_path_buf(),
            reason: format!("has schema {:?}; this program reads schema {SCHEMA_VERSION}", version.trim()),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StoreError::io("read", path, error)),
    }
}

/// Whether there are no descriptors for a database, its log and its shared index: SQLite does not say why it cannot open a file. None of
/// these is opened to find that out, because closing one would give up SQLite's locks on it.
fn lack_of_descriptors() -> Option<Errno> {
    let opened: Result<Vec<_>, _> =
        (0..3).map(|_| rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), 0)).collect();
    opened.err().filter(|errno| matches!(*errno, Errno::MFILE | Errno::NFILE))
}

fn fault(path: &Path, source: rusqlite::Error) -> StoreError {
    if source.sqlite_error_code() == Some(ErrorCode::CannotOpen)
        && let Some(errno) = lack_of_descriptors()
    {
        return StoreError::io("open", path, errno);
    }
    let fault = match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed) => {
            DatabaseFault::Busy
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => DatabaseFault::Corrupt,
        Some(
            ErrorCode::CannotOpen
            | ErrorCode::PermissionDenied
            | ErrorCode::ReadOnly
            | ErrorCode::SystemIoFailure,
        ) => DatabaseFault::Unreadable,
        _ => DatabaseFault::Other,
    };
    StoreError::Database { path: path.to_path_buf(), fault, source }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

    use super::*;
    use crate::codec::store_path::StoreDir;
    use crate::store::change::ChangeCounter;

    const A: &str = "0000000000000000000000000000000a-alpha";
    const B: &str = "0000000000000000000000000000000b-beta.1";
    const C: &str = "0000000000000000000000000000000c-gamma.drv";
    const HASH: &str = "sha256:1c37d01af40be2e80691de3cc3df44377a699afbb17c68f080964b2fd071fc13";
    const SIGNATURE: &str =
        "key-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==";

    struct Fixture {
        folder: tempfile::TempDir,
        store: LocalStore,
    }

    impl Fixture {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = LocalStore::beneath(folder.path(), StoreDir::parse("/nix/store").unwrap());
            let database_folder = store.database.parent().unwrap();
            std::fs::create_dir_all(database_folder).unwrap();
            std::fs::write(database_folder.join("schema"), "10").unwrap();
            let fixture = Self { folder, store };
            let writer = fixture.writer();
            writer.pragma_update(None, "journal_mode", "wal").unwrap();
            writer.execute_batch(crate::store::demo::SCHEMA).unwrap();
            fixture
        }

        fn writer(&self) -> Connection {
            let writer = Connection::open(&self.store.database).unwrap();
            // Nobody pulls the plug during a test.
            writer.pragma_update(None, "synchronous", "off").unwrap();
            writer
        }

        fn open(&self) -> Database {
            Database::open(&self.store).unwrap()
        }
    }

    fn full(base_name: &str) -> String {
        format!("/nix/store/{base_name}")
    }

    fn register(writer: &Connection, base_name: &str) {
        writer
            .execute(
                "insert into ValidPaths (path, hash, registrationTime, narSize) values (?1, ?2, 1, 120)",
                (full(base_name), HASH),
            )
            .unwrap();
    }

    fn refer(writer: &Connection, from: &str, to: &str) {
        let id = "(select id from ValidPaths where path = ?)";
        writer.execute(&format!("insert into Refs values ({id}, {id})"), (full(from), full(to))).unwrap();
    }

    fn hash_part(base_name: &str) -> HashPart {
        HashPart::parse(&base_name.as_bytes()[..32]).unwrap()
    }

    fn path(base_name: &str) -> StorePath {
        StorePath::parse_base_name(base_name).unwrap()
    }

    #[test]
    fn a_row_becomes_path_info() {
        let fixture = Fixture::new();
        let writer = fixture.writer();
        for name in [C, B, A] {
            register(&writer, name);
        }
        for to in [C, A, B] {
            refer(&writer, A, to);
        }
        writer
            .execute(
                "update ValidPaths set deriver = ?1, sigs = ?2, ca = 'fixed:r:sha256:x' where path = ?3",
                (full(C), format!("{SIGNATURE} {}", SIGNATURE.replace("key-1", "key-2")), full(A)),
            )
            .unwrap();
        let mut database = fixture.open();
        assert_eq!(database.access(), Access::Live);
        let info = database.path_info(hash_part(A)).unwrap().unwrap();
        assert_eq!(info.path, path(A));
        assert_eq!(info.nar_hash, Sha256Digest::from_database_text(HASH).unwrap());
        assert_eq!(info.nar_size, 120);
        assert_eq!(info.references, [path(A), path(B), path(C)]);
        assert_eq!(info.deriver, Some(path(C)));
        assert_eq!(info.signatures.len(), 2);
        assert_eq!(info.signatures[1].to_string(), SIGNATURE.replace("key-1", "key-2"));
        assert_eq!(info.ca.as_deref(), Some("fixed:r:sha256:x"));

        let bare = database.path_info(hash_part(B)).unwrap().unwrap();
        assert_eq!((bare.references, bare.deriver, bare.ca), (vec![], None, None));
        assert_eq!(database.count().unwrap(), 3);
        database.probe().unwrap();
    }

    #[test]
    fn only_the_very_hash_part_is_found() {
        let fixture = Fixture::new();
        let mut database = fixture.open();
        assert_eq!(database.path_info(hash_part(A)).unwrap(), None, "an empty table");
        database.probe().unwrap();
        register(&fixture.writer(), A);
        register(&fixture.writer(), C);
        assert_eq!(database.path_info(hash_part(B)).unwrap(), None, "between two");
        assert_eq!(database.path_info(HashPart::parse(&[b'z'; 32]).unwrap()).unwrap(), None, "after all");
    }

    #[test]
    fn valid_paths_come_in_order_of_registration_and_in_batches() {
        let fixture = Fixture::new();
        let writer = fixture.writer();
        for name in [C, A, B] {
            register(&writer, name);
        }
        let mut database = fixture.open();
        let mut found = Vec::new();
        let mut after = RowId::default();
        loop {
            let batch = database.valid_paths(after, 2).unwrap();
            let Some((last, _)) = batch.last() else { break };
            after = *last;
            found.extend(batch.into_iter().map(|(_, path)| path.unwrap()));
        }
        assert_eq!(found, [path(C), path(A), path(B)]);
    }

    #[test]
    fn malformed_rows_are_damage_that_names_the_path() {
        for (column, value) in [
            ("hash", "'sha256:12'"),
            ("hash", "'md5:1c37d01af40be2e80691de3cc3df4437'"),
            ("hash", "x'00ff'"),
            ("narSize", "null"),
            ("narSize", "0"),
            ("narSize", "-1"),
            ("narSize", "'many'"),
            ("deriver", "'/elsewhere/x'"),
            ("sigs", "'no-colon'"),
        ] {
            let fixture = Fixture::new();
            register(&fixture.writer(), A);
            fixture.writer().execute(&format!("update ValidPaths set {column} = {value}"), []).unwrap();
            let error = fixture.open().path_info(hash_part(A)).unwrap_err();
            let StoreError::Damaged { subject, .. } = &error else { panic!("{column} = {value}: {error}") };
            assert!(subject.contains(hash_part(A).as_str()), "{error}");
        }
        let fixture = Fixture::new();
        let writer = fixture.writer();
        register(&writer, A);
        register(&writer, "not-a-store-path");
        refer(&writer, A, "not-a-store-path");
        let error = fixture.open().path_info(hash_part(A)).unwrap_err();
        assert!(matches!(&error, StoreError::Damaged { subject, .. } if subject.contains(A)), "{error}");
    }

    #[test]
    fn a_malformed_row_hides_no_other() {
        let fixture = Fixture::new();
        let writer = fixture.writer();
        for name in [A, "not-a-store-path", C, B] {
            register(&writer, name);
        }
        writer.execute("update ValidPaths set narSize = 'many' where path = ?1", [full(A)]).unwrap();
        writer.execute("update ValidPaths set narSize = -1 where path = ?1", [full(B)]).unwrap();
        writer.execute("update ValidPaths set path = x'00ff' where path = ?1", [full(C)]).unwrap();
        let mut database = fixture.open();
        let rows = database.valid_paths(RowId::default(), 10).unwrap();
        assert!(rows.is_sorted_by_key(|(row, _)| *row));
        let found: Vec<_> = rows.into_iter().map(|(_, path)| path.ok()).collect();
        assert_eq!(found, [Some(path(A)), None, None, Some(path(B))]);
        assert_eq!(database.nar_sizes().unwrap(), 240);
        writer.execute("update ValidPaths set narSize = 9223372036854775807", []).unwrap();
        assert_eq!(database.nar_sizes().unwrap(), u64::MAX >> 1, "more than can be said");
    }

    #[test]
    fn a_commit_is_seen_by_the_next_question() {
        let fixture = Fixture::new();
        let mut database = fixture.open();
        let counter = ChangeCounter::open(&fixture.store).unwrap();
        for number in 0..50 {
            let name = format!("{number:032}-path");
            let before = counter.stamp();
            assert_eq!(database.path_info(hash_part(&name)).unwrap(), None);
            register(&fixture.writer(), &name);
            assert_ne!(before, counter.stamp());
            assert!(database.path_info(hash_part(&name)).unwrap().is_some());
        }
    }

    /// The writer keeps one rule in each commit: narSize is the number of references. A row of one snapshot with the
    /// references of another breaks it.
    #[test]
    fn a_row_and_its_references_are_of_one_snapshot() {
        let fixture = Fixture::new();
        let writer = fixture.writer();
        for name in [A, B, C] {
            register(&writer, name);
        }
        refer(&writer, A, A);
        writer.execute("update ValidPaths set narSize = 1", []).unwrap();
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                let more = "insert into Refs select 1, id from ValidPaths where id > 1";
                let fewer = "delete from Refs where reference > 1";
                let count = "update ValidPaths set narSize = (select count(*) from Refs) where id = 1";
                for change in [more, fewer].into_iter().cycle().take(600) {
                    writer.execute_batch(&format!("begin; {change}; {count}; commit")).unwrap();
                }
                writer
            });
            let mut database = fixture.open();
            while !writing.is_finished() {
                let info = database.path_info(hash_part(A)).unwrap().unwrap();
                assert_eq!(info.nar_size, info.references.len() as u64);
            }
            writing.join().unwrap()
        });
    }

    #[test]
    fn surroundings_are_what_refers_to_a_path_and_what_it_needs() {
        let fixture = Fixture::new();
        let writer = fixture.writer();
        for name in [A, B, C] {
            register(&writer, name);
        }
        refer(&writer, A, A);
        refer(&writer, A, B);
        refer(&writer, B, C);
        refer(&writer, A, C);
        writer.execute("update ValidPaths set narSize = id * 100, registrationTime = id * 7", []).unwrap();
        let mut database = fixture.open();
        let mut ask = |name| database.surroundings(&path(name), true).unwrap();
        let of_a = ask(A).unwrap();
        assert_eq!((of_a.registered_s, of_a.referrers, of_a.referrers_count), (7, vec![], 0));
        assert_eq!(of_a.closure, Some((3, 600)));
        let mut of_c = ask(C).unwrap();
        of_c.referrers.sort();
        assert_eq!(
            (of_c.referrers, of_c.referrers_count, of_c.closure),
            (vec![path(A), path(B)], 2, Some((1, 300)))
        );
        writer.execute("delete from Refs", []).unwrap();
        writer.execute("delete from ValidPaths where id = 1", []).unwrap();
        assert_eq!(ask(A), None);
    }

    #[test]
    fn surroundings_are_bounded() {
        let fixture = Fixture::new();
        let writer = fixture.writer();
        register(&writer, A);
        let many = CLOSURE_PATHS_MAX + 1;
        writer
            .execute_batch(&format!(
                "begin; with recursive n(i) as (select 1 union select i + 1 from n where i < {many}) \
                   insert into ValidPaths (path, hash, registrationTime, narSize) \
                   select '/nix/store/' || printf('%032d', i) || '-z', '{HASH}', 1, 1 from n; \
                 insert into Refs select id, 1 from ValidPaths where id > 1; \
                 insert into Refs select 2, id from ValidPaths where id > 2; commit"
            ))
            .unwrap();
        let mut database = fixture.open();
        assert_eq!(database.surroundings(&path(A), false).unwrap().unwrap().closure, None);
        let of_a = database.surroundings(&path(A), true).unwrap().unwrap();
        assert_eq!(of_a.referrers.len(), REFERRERS_SHOWN_MAX);
        assert_eq!((of_a.referrers_count, of_a.closure), (many, Some((1, 120))));
        let needs_all = StorePath::parse_base_name(&format!("{:032}-z", 1)).unwrap();
        let of_it = database.surroundings(&needs_all, true).unwrap().unwrap();
        assert_eq!(of_it.closure, None);
    }

    #[test]
    fn a_scan_goes_over_all_paths_in_steps() {
        let fixture = Fixture::new();
        let writer = fixture.writer();
        for name in [C, A, B] {
            register(&writer, name);
        }
        writer
            .execute(
                "insert into ValidPaths (path, hash, registrationTime) values ('/nix/store/0x', '', 0)",
                [],
            )
            .unwrap();
        let mut database = fixture.open();
        for limit in 1..6 {
            let (mut after, mut found, mut looked_at) = (String::new(), Vec::new(), 0);
            loop {
                let scan = database.scan(&after, limit, &|name| name.contains('a')).unwrap();
                found.extend(scan.found);
                looked_at += scan.looked_at;
                let Some(last) = scan.last else { break };
                after = last;
            }
            assert_eq!((found, looked_at), (vec![path(A), path(B), path(C)], 4), "{limit}");
        }
        assert_eq!(database.scan("", 9, &|name| name == B).unwrap().found, [path(B)]);
    }

    #[test]
    fn what_is_no_nix_database_is_refused() {
        let fixture = Fixture::new();
        let schema = fixture.store.database.with_file_name("schema");
        std::fs::write(&schema, "7\n").unwrap();
        let error = Database::open(&fixture.store).err().unwrap();
        assert!(error.to_string().contains("schema \"7\""), "{error}");
        std::fs::write(&schema, "10\n").unwrap();
        fixture.writer().execute_batch("drop table Refs").unwrap();
        let error = Database::open(&fixture.store).err().unwrap();
        assert!(error.to_string().contains("no table Refs"), "{error}");

        for (content, expected) in
            [(Some("no database at all"), DatabaseFault::Corrupt), (None, DatabaseFault::Unreadable)]
        {
            let fixture = Fixture::new();
            std::fs::remove_file(&fixture.store.database).unwrap();
            if let Some(content) = content {
                std::fs::write(&fixture.store.database, content.repeat(100)).unwrap();
            }
            let error = Database::open(&fixture.store).err().unwrap();
            assert!(matches!(error, StoreError::Database { fault, .. } if fault == expected), "{error}");
        }
    }

    #[test]
    fn a_locked_database_is_busy_and_not_absent() {
        let fixture = Fixture::new();
        let mut database = fixture.open();
        drop(database.path_info(hash_part(A)).unwrap());
        drop(database);
        let writer = fixture.writer();
        writer.pragma_update(None, "journal_mode", "delete").unwrap();
        let mut database = fixture.open();
        writer.execute_batch("begin exclusive").unwrap();
        let error = database.path_info(hash_part(A)).unwrap_err();
        assert!(matches!(error, StoreError::Database { fault: DatabaseFault::Busy, .. }), "{error}");
    }

    #[test]
    fn a_path_that_nix_itself_adds_is_found_by_the_next_question() {
        let demo = crate::store::demo::DemoStore::create(None, &mut |_| {}).unwrap();
        let counter = ChangeCounter::open(&demo.store).unwrap();
        let mut database = Database::open(&demo.store).unwrap();
        for number in 0..3 {
            let source = demo.root().join(format!("added-{number}"));
            std::fs::write(&source, number.to_string()).unwrap();
            let before = counter.stamp();
            let added = Command::new("nix-store")
                .env_remove("NIX_REMOTE")
                .args(["--store".as_ref(), demo.root().as_os_str(), "--add".as_ref(), source.as_os_str()])
                .output();
            let Ok(added) = added else {
                eprintln!("SKIPPED: nix-store is not installed");
                return;
            };
            assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
            let added = String::from_utf8(added.stdout).unwrap();
            let added = StorePath::parse_full(&demo.store.store_dir, added.trim()).unwrap();
            assert_ne!(before, counter.stamp(), "Nix's commit is hidden");
            assert!(counter.still_current());
            assert_eq!(database.path_info(added.hash_part()).unwrap().unwrap().path, added);
        }
    }

    #[test]
    fn a_replaced_database_is_followed() {
        let fixture = Fixture::new();
        let mut database = fixture.open();
        assert_eq!(database.path_info(hash_part(A)).unwrap(), None);
        let other = Fixture::new();
        register(&other.writer(), A);
        for suffix in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(sibling(&fixture.store.database, suffix));
        }
        std::fs::rename(&other.store.database, &fixture.store.database).unwrap();
        assert!(database.path_info(hash_part(A)).unwrap().is_some());
    }

    #[test]
    fn realisations_are_read_from_both_generations_of_tables() {
        let fixture = Fixture::new();
        let writer = fixture.writer();
        register(&writer, A);
        register(&writer, B);
        let mut database = fixture.open();
        let ids = ["out", "dev"].map(|output| DrvOutput::parse(&format!("{HASH}!{output}")).unwrap());
        let out = OutputName::parse("out").unwrap();
        assert_eq!(database.realisation(&ids[0]).unwrap(), None, "no such tables");
        assert_eq!(database.build_trace(&path(C), &out).unwrap(), None, "no such table");
        writer
            .execute_batch(&format!(
                "create table Realisations (id integer primary key, drvPath text not null, \
                   outputName text not null, outputPath integer not null, signatures text, \
                   foreign key (outputPath) references ValidPaths(id) on delete cascade); \
                 create table RealisationsRefs (referrer integer not null, realisationReference integer); \
                 insert into Realisations values (1, '{HASH}', 'out', 1, '{SIGNATURE}'), (2, '{HASH}', 'dev', 2, null); \
                 insert into RealisationsRefs values (1, 2); \
                 create table BuildTraceV3 (id integer primary key, drvPath text not null, \
                   outputName text not null, outputPath text not null, signatures text); \
                 insert into BuildTraceV3 values (1, '{C}', 'out', '/nix/store/{B}', '{SIGNATURE}');"
            ))
            .unwrap();
        let found = database.realisation(&ids[0]).unwrap().unwrap();
        assert_eq!(found.out_path, path(A));
        assert_eq!(found.signatures.len(), 1);
        assert_eq!(found.dependent_realisations, BTreeMap::from([(ids[1].clone(), path(B))]));
        let found = database.realisation(&ids[1]).unwrap().unwrap();
        assert_eq!((found.out_path, found.signatures.len()), (path(B), 0));
        assert_eq!(database.realisation(&DrvOutput::parse(&format!("{HASH}!doc")).unwrap()).unwrap(), None);

        assert_eq!(database.build_trace(&path(C), &out).unwrap().unwrap().out_path, path(B));
        assert_eq!(database.build_trace(&path(A), &out).unwrap(), None);
    }

    #[test]
    fn uris_escape_what_has_a_meaning() {
        assert_eq!(immutable_uri(Path::new("/a b/50%?x#y")), "file:/a%20b/50%25%3fx%23y?mode=ro&immutable=1");
    }

    /// Set for a child process that reads the store beneath the folder this names; see [`reader_process`].
    const READER_ROOT: &str = "NARWIRE_TEST_READER_ROOT";

    /// Not a test of its own: the body of the unprivileged process when the variable is set. For each hash part it is
    /// sent it answers how the database is open, whether the stamp moved since the last time, and whether the path is
    /// there.
    #[test]
    fn reader_process() {
        let Some(root) = std::env::var_os(READER_ROOT) else { return };
        let store = LocalStore::beneath(Path::new(&root), StoreDir::parse("/nix/store").unwrap());
        let mut counter = ChangeCounter::open(&store).unwrap();
        let mut database = Database::open(&store).unwrap();
        let mut last = None;
        for line in std::io::stdin().lines() {
            if !counter.still_current() {
                counter = ChangeCounter::open(&store).unwrap();
            }
            let stamp = counter.stamp();
            let moved = last.replace(stamp) != Some(stamp);
            let found = database.path_info(hash_part(&line.unwrap())).unwrap().is_some();
            println!(
                "\nanswer: {:?} {} {} {}",
                database.access(),
                if counter.is_mapped() { "mapped" } else { "unmapped" },
                if moved { "moved" } else { "same" },
                if found { "found" } else { "absent" },
            );
        }
    }

    /// A process that may read the fixture's database and not write beside it.
    struct Reader {
        child: Child,
        questions: ChildStdin,
        answers: BufReader<ChildStdout>,
    }

    impl Reader {
        /// `None`, with a word on why, when this machine cannot run one.
        fn start(fixture: &Fixture) -> Option<Self> {
            const NOBODY: u32 = 65534;
            let folder = fixture.store.database.parent().unwrap();
            for path in [fixture.folder.path(), folder] {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
            }
            let mut command = Command::new(std::env::current_exe().unwrap());
            command
                .args(["--exact", "store::db::tests::reader_process", "--nocapture", "--test-threads=1"])
                .env(READER_ROOT, fixture.folder.path())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            if !rustix::process::geteuid().is_root() {
                eprintln!("SKIPPED: only root can start a process of another user");
                return None;
            }
            let mut child = match command.uid(NOBODY).gid(NOBODY).spawn() {
                Ok(child) => child,
                Err(error) => {
                    eprintln!("SKIPPED: another user cannot run this program: {error}");
                    return None;
                }
            };
            let (questions, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
            Some(Self { child, questions, answers: BufReader::new(answers) })
        }

        fn ask(&mut self, base_name: &str) -> String {
            writeln!(self.questions, "{base_name}").unwrap();
            let mut line = String::new();
            while !line.starts_with("answer: ") {
                line.clear();
                assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "the reader ended");
            }
            line["answer: ".len()..].trim().to_owned()
        }

        fn end(self) {
            let Self { mut child, questions, .. } = self;
            drop(questions);
            assert!(child.wait().unwrap().success());
        }
    }

    #[test]
    fn an_unprivileged_reader_of_an_idle_database_reopens_it_after_each_change() {
        let fixture = Fixture::new();
        assert!(is_log_absent(&fixture.store.database), "the last writer removed its log");
        let Some(mut reader) = Reader::start(&fixture) else { return };
        assert_eq!(reader.ask(A), "Immutable unmapped moved absent");
        // A writer that comes and goes leaves nothing but a changed file.
        register(&fixture.writer(), A);
        assert_eq!(reader.ask(A), "Immutable unmapped moved found");
        // A writer that stays makes the log that the reader then takes part in.
        let writer = fixture.writer();
        register(&writer, B);
        assert_eq!(reader.ask(B), "Live mapped moved found");
        assert_eq!(reader.ask(B), "Live mapped same found");
        register(&writer, C);
        assert_eq!(reader.ask(C), "Live mapped moved found");
        // From now on the reader's locks keep the log in place.
        writer.execute("delete from ValidPaths where path = ?1", [full(C)]).unwrap();
        drop(writer);
        assert_eq!(reader.ask(C), "Live mapped moved absent");
        reader.end();
    }

    #[test]
    fn an_unprivileged_reader_of_a_log_without_writer_sees_the_next_writer() {
        let fixture = Fixture::new();
        let writer = fixture.writer();
        register(&writer, A);
        // As newer versions of Nix leave it: log and index stay when the last connection closes.
        let places = ["", "-wal", "-shm"].map(|suffix| sibling(&fixture.store.database, suffix));
        let kept = places.each_ref().map(|path| std::fs::read(path).unwrap());
        drop(writer);
        for (path, content) in places.iter().zip(kept) {
            std::fs::write(path, content).unwrap();
        }
        let Some(mut reader) = Reader::start(&fixture) else { return };
        assert_eq!(reader.ask(A), "Live unmapped moved found");
        assert!(reader.ask(B).ends_with("absent"));
        let writer = fixture.writer();
        register(&writer, B);
        assert_eq!(reader.ask(B), "Live mapped moved found");
        register(&writer, C);
        assert_eq!(reader.ask(C), "Live mapped moved found");
        drop(writer);
        assert_eq!(reader.ask(C), "Live mapped same found");
        register(&fixture.writer(), "0000000000000000000000000000000d-delta");
        assert_eq!(reader.ask("0000000000000000000000000000000d-delta"), "Live mapped moved found");
        reader.end();
    }

    #[test]
    fn an_unprivileged_reader_follows_a_replaced_database_that_gets_its_log_later() {
        let fixture = Fixture::new();
        register(&fixture.writer(), A);
        let Some(mut reader) = Reader::start(&fixture) else { return };
        assert_eq!(reader.ask(A), "Immutable unmapped moved found");
        // As a backup is: without a log, until Nix opens it.
        let staged = fixture.folder.path().join("staged");
        fixture.writer().execute("vacuum into ?1", [staged.to_str().unwrap()]).unwrap();
        let new = Connection::open(&staged).unwrap();
        register(&new, B);
        drop(new);
        std::fs::rename(&staged, &fixture.store.database).unwrap();
        assert_eq!(reader.ask(B), "Live unmapped moved found");
        let writer = fixture.writer();
        writer.pragma_update(None, "journal_mode", "wal").unwrap();
        register(&writer, C);
        drop(writer);
        assert_eq!(reader.ask(C), "Immutable unmapped moved found");
        reader.end();
    }

    #[test]
    fn an_unprivileged_reader_is_not_kept_off_by_an_index_without_a_log() {
        let fixture = Fixture::new();
        register(&fixture.writer(), A);
        // As a writer leaves it that was killed while it closed.
        std::fs::write(sibling(&fixture.store.database, "-shm"), vec![0; 32768]).unwrap();
        let Some(mut reader) = Reader::start(&fixture) else { return };
        assert_eq!(reader.ask(A), "Immutable unmapped moved found");
        let writer = fixture.writer();
        register(&writer, B);
        assert_eq!(reader.ask(B), "Live mapped moved found");
        reader.end();
    }
}
