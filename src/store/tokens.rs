//! The file of tokens: read by servers, changed by `narwire token`. It has salted hashes only, so it may be read by everybody; who
//! could write to it could let himself in.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags};
use tempfile::NamedTempFile;

use crate::codec::token::{Record, TokenName, Tokens, TokensError, without_record};
use crate::limits::TOKEN_FILE_LEN_MAX;
use crate::store::folder_of;

/// Why a file of tokens was refused, or not changed.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// The system refused to open or read it.
    #[error(
        "cannot read token file {}: {source}; it must be readable by the user this program runs as, and is made by `narwire token \
         create --file {} --name NAME --scope read,write`",
        path.display(), path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is a folder, a device or the like.
    #[error("token file {} is not a regular file", .0.display())]
    NotRegular(PathBuf),
    /// Everybody on the machine could let himself in.
    #[error("token file {} can be written by everybody (mode {mode:04o}): run `chmod o-w {}`", path.display(), path.display())]
    WritableByEverybody {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Longer than [`TOKEN_FILE_LEN_MAX`].
    #[error("token file {} is longer than {TOKEN_FILE_LEN_MAX} bytes: revoke the tokens that nobody needs", .0.display())]
    TooLong(PathBuf),
    /// A line of it is no record.
    #[error("{}:{source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Which line, and why.
        source: TokensError,
    },
    /// A name is given once.
    #[error("token file {} has a token {name} already: choose another name, or revoke that one first", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
        /// The name.
        name: TokenName,
    },
    /// Nothing to revoke.
    #[error("token file {} has no token {name}: `narwire token list --file {}` shows those it has", path.display(), path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The name.
        name: TokenName,
    },
    /// The system refused to write it; it is as before.
    #[error("cannot write token file {}: {source}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// Reads the tokens in `path`. Links are followed.
pub fn read(path: &Path) -> Result<Tokens, TokenFileError> {
    let unreadable = |source| TokenFileError::Unreadable { path: path.to_path_buf(), source };
    let mut file = open(OpenOptions::new().read(true), path).map_err(unreadable)?;
    Ok(Content::of(&mut file, path)?.tokens)
}

/// Puts a record at the end of the file, and waits until it is on the disk. A file that is not there is made, for its owner alone.
///
/// Two who do this at once both succeed, unless for the same name.
pub fn append(path: &Path, record: &Record) -> Result<(), TokenFileError> {
    let unwritable = |source| TokenFileError::Unwritable { path: path.to_path_buf(), source };
    let mut options = OpenOptions::new();
    let mut file = open_to_change(options.read(true).append(true).create(true).mode(0o600), path)?;
    let Content { text, tokens } = Content::of(&mut file, path)?;
    if tokens.get(record.name.as_str()).is_some() {
        return Err(TokenFileError::Exists { path: path.to_path_buf(), name: record.name.clone() });
    }
    // An editor may have left the last line without its end.
    let line_end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    let line = format!("{line_end}{record}\n");
    if text.len() + line.len() > TOKEN_FILE_LEN_MAX {
        return Err(TokenFileError::TooLong(path.to_path_buf()));
    }
    if let Err(error) = file.write_all(line.as_bytes()).and_then(|()| file.sync_all()) {
        // Half a line would make the whole file unreadable. If this fails as well, the file says at which line.
        let _ = file.set_len(text.len() as u64);
        return Err(unwritable(error));
    }
    sync_folder(path).map_err(unwritable)
}

/// Takes the record of that name out of the file. All of it is written anew beside it and takes its place at once, with the same owner
/// and mode.
pub fn remove(path: &Path, name: &TokenName) -> Result<(), TokenFileError> {
    let unwritable = |source| TokenFileError::Unwritable { path: path.to_path_buf(), source };
    let mut file = open_to_change(OpenOptions::new().read(true), path)?;
    let Content { text, tokens } = Content::of(&mut file, path)?;
    if tokens.get(name.as_str()).is_none() {
        return Err(TokenFileError::Unknown { path: path.to_path_buf(), name: name.clone() });
    }
    // What a link leads to is replaced, not the link.
    let target = path.canonicalize().map_err(unwritable)?;
    replace(&target, &file, &without_record(&text, name)).map_err(unwritable)
}

fn replace(target: &Path, file: &File, text: &str) -> io::Result<()> {
    let metadata = file.metadata()?;
    let mut new = NamedTempFile::new_in(folder_of(target))?;
    new.write_all(text.as_bytes())?;
    // A server that runs as somebody else has to be able to read it as before. Setting the owner clears bits of the mode.
    std::os::unix::fs::fchown(new.as_file(), Some(metadata.uid()), Some(metadata.gid()))?;
    new.as_file().set_permissions(Permissions::from_mode(metadata.mode() & 0o7777))?;
    new.as_file().sync_all()?;
    new.persist(target)?;
    sync_folder(target)
}

/// A file that is looked at, and what it says.
struct Content {
    text: String,
    tokens: Tokens,
}

impl Content {
    fn of(file: &mut File, path: &Path) -> Result<Self, TokenFileError> {
        let path = || path.to_path_buf();
        let unreadable = |source| TokenFileError::Unreadable { path: path(), source };
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(TokenFileError::NotRegular(path()));
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o002 != 0 {
            return Err(TokenFileError::WritableByEverybody { path: path(), mode });
        }
        let mut text = String::new();
        file.take(TOKEN_FILE_LEN_MAX as u64 + 1).read_to_string(&mut text).map_err(unreadable)?;
        if text.len() > TOKEN_FILE_LEN_MAX {
            return Err(TokenFileError::TooLong(path()));
        }
        match text.parse() {
            Ok(tokens) => Ok(Self { text, tokens }),
            Err(source) => Err(TokenFileError::Malformed { path: path(), source }),
        }
    }
}

/// Opens without waiting for the other end of a pipe that somebody has put there.
fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

/// Opens the file that is at `path` once nobody else is changing it.
fn open_to_change(options: &mut OpenOptions, path: &Path) -> Result<File, TokenFileError> {
    let failed = |source| TokenFileError::Unwritable { path: path.to_path_buf(), source };
    loop {
        let file = open(options, path).map_err(failed)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(|errno| failed(errno.into()))?;
        // Whoever had it may have put another file in its place.
        let id = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let (own, found) = (file.metadata().map_err(failed)?, std::fs::metadata(path));
        if found.is_ok_and(|found| id(found) == id(own)) {
            return Ok(file);
        }
    }
}

/// Waits until the name is on the disk.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use super::*;
    use crate::codec::token::Token;

    fn name(text: &str) -> TokenName {
        text.parse().unwrap()
    }

    fn record(text: &str) -> Record {
        Token::new(name(text), &[7; 32]).record("read,write".parse().unwrap(), [9; 16])
    }

    fn names(path: &Path) -> Vec<String> {
        read(path).unwrap().iter().map(|record| record.name.to_string()).collect()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn records_are_added_listed_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        append(&path, &record("ci")).unwrap();
        assert_eq!(mode(&path), 0o600);
        append(&path, &record("bob")).unwrap();
        assert_eq!(names(&path), ["bob", "ci"]);
        let before = fs::read(&path).unwrap();
        assert!(matches!(append(&path, &record("ci")), Err(TokenFileError::Exists { .. })));
        assert!(matches!(remove(&path, &name("eve")), Err(TokenFileError::Unknown { .. })));
        assert_eq!(fs::read(&path).unwrap(), before);
        remove(&path, &name("ci")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", record("bob")));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn what_people_wrote_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        // As an editor leaves it.
        fs::write(&path, format!("# the laptop\n{}", record("laptop"))).unwrap();
        append(&path, &record("ci")).unwrap();
        let all = format!("# the laptop\n{}\n{}\n", record("laptop"), record("ci"));
        assert_eq!(fs::read_to_string(&path).unwrap(), all);
        remove(&path, &name("laptop")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("# the laptop\n{}\n", record("ci")));
    }

    #[test]
    fn removing_keeps_the_mode_and_the_link() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("tokens"), folder.path().join("link"));
        append(&path, &record("ci")).unwrap();
        set_mode(&path, 0o644);
        std::os::unix::fs::symlink("tokens", &link).unwrap();
        remove(&link, &name("ci")).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!((mode(&path), read(&path).unwrap().len()), (0o644, 0));
    }

    #[test]
    fn who_changes_the_file_at_once_loses_nothing() {
        const EACH: usize = 25;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        append(&path, &record("first")).unwrap();
        thread::scope(|scope| {
            for who in ["a", "b", "c"] {
                let path = &path;
                scope.spawn(move || {
                    for index in 0..EACH {
                        append(path, &record(&format!("{who}-{index}"))).unwrap();
                        append(path, &record(&format!("{who}-gone"))).unwrap();
                        remove(path, &name(&format!("{who}-gone"))).unwrap();
                    }
                });
            }
        });
        assert_eq!(read(&path).unwrap().len(), 1 + 3 * EACH);
    }

    #[test]
    fn a_file_is_refused_with_its_name_and_the_mend() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let shown = |error: TokenFileError| {
            let text = error.to_string();
            assert!(text.contains(path.to_str().unwrap()), "{text}");
            assert_eq!(text.lines().count(), 1, "{text}");
            text
        };
        assert!(shown(read(&path).unwrap_err()).contains("narwire token create --file"));
        fs::write(&path, format!("# tokens\n{}x\n", record("ci"))).unwrap();
        let text = shown(read(&path).unwrap_err());
        assert!(text.contains("tokens:2: the hash is not base64"), "{text}");
        shown(append(&path, &record("bob")).unwrap_err());
        shown(remove(&path, &name("ci")).unwrap_err());
        fs::write(&path, [0xff]).unwrap();
        assert!(shown(read(&path).unwrap_err()).contains("UTF-8"));
        fs::write(&path, "#".repeat(TOKEN_FILE_LEN_MAX + 1)).unwrap();
        assert!(shown(read(&path).unwrap_err()).contains("longer"));
        fs::write(&path, "#".repeat(TOKEN_FILE_LEN_MAX)).unwrap();
        read(&path).unwrap();
        assert!(shown(append(&path, &record("bob")).unwrap_err()).contains("longer"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(shown(read(&path).unwrap_err()).contains("not a regular file"));
        fs::remove_dir(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        assert!(shown(read(&path).unwrap_err()).contains("not a regular file"));
    }

    #[test]
    fn a_file_that_everybody_can_write_is_refused_and_one_that_everybody_can_read_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        append(&path, &record("ci")).unwrap();
        for (mode, is_refused) in
            [(0o400, false), (0o644, false), (0o664, false), (0o666, true), (0o602, true)]
        {
            set_mode(&path, mode);
            match read(&path) {
                Ok(tokens) => assert!(!is_refused && tokens.len() == 1, "{mode:o}"),
                Err(error) => {
                    assert!(is_refused && error.to_string().contains("chmod o-w"), "{mode:o}: {error}");
                }
            }
        }
    }

    #[test]
    fn a_file_in_a_missing_folder_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let error = append(&folder.path().join("missing/tokens"), &record("ci")).unwrap_err();
        assert!(matches!(error, TokenFileError::Unwritable { .. }), "{error}");
    }
}
