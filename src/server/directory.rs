//! A cache directory, the layout that `nix copy --to file://…` writes: every resource is a file of the same name.
//!
//! Nothing is remembered: what another process adds, replaces or removes is seen by the next request.

use std::ffi::CString;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use tracing::error;

use super::refusal::{Failure, overloaded};
use super::representation::{
    CACHE_INFO_TYPE, Content, IMMUTABLE_CACHE_CONTROL, JSON_TYPE, NAR_TYPE, NARINFO_CACHE_CONTROL,
    NARINFO_TYPE, Representation, TEXT_TYPE,
};
use super::request::{Stage, Step, Wish};
use crate::codec::cache_file::CacheFile;
use crate::codec::cache_info::CacheInfo;
use crate::codec::http::field::ETag;
use crate::codec::http::response::CacheControl;
use crate::codec::http::route::Route;
use crate::limits::{CACHE_INFO_LEN_MAX, ETAG_OPAQUE_LEN_MAX};
use crate::ring::body::FileBody;
use crate::ring::descriptor::Descriptor;
use crate::ring::op::{FileKind, FileStatus, OpenedFile};

/// The directory, seen by one worker.
pub struct Directory {
    descriptor: Descriptor,
    shared: Arc<OwnedFd>,
}

/// Reads what a directory says of itself, on a thread that may wait.
pub struct CacheInfoReader(Arc<OwnedFd>);

impl Directory {
    /// The directory behind `shared`.
    pub fn new(shared: Arc<OwnedFd>) -> Result<Self, Errno> {
        let descriptor = Descriptor::from(rustix::io::fcntl_dupfd_cloexec(&*shared, 0)?);
        Ok(Self { descriptor, shared })
    }

    /// Which file answers a request.
    pub fn ask(&self, route: &Route) -> Step {
        let Some(name) = route.file_name() else { return Step::Absent };
        let Ok(path) = CString::new(name.as_str()) else { return Step::Absent };
        Step::Open { directory: self.descriptor.clone(), path, stage: Stage::File }
    }

    /// Goes on after the file was opened.
    pub fn opened(&self, wish: &Wish, result: Result<OpenedFile, Errno>) -> Step {
        let OpenedFile { file, status } = match result {
            Ok(opened) if opened.status.kind == FileKind::Regular => opened,
            // Links are not followed: what they lead to may be anywhere.
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NAMETOOLONG) => {
                return Step::Absent;
            }
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => {
                error!("cannot open a file of the cache directory: {errno}");
                return Step::Reply(overloaded());
            }
            Err(errno) => {
                let name = wish.route.file_name();
                let name = name.as_ref().map_or("", |name| name.as_str());
                error!("cannot open {name} in the cache directory: {errno}");
                return Step::Reply(Failure::Broken.reply());
            }
        };
        let (content_type, cache_control) = kind(&wish.route);
        let body = Box::new(FileBody { file, len_bytes: status.len_bytes });
        let content = Content::Body(body, status.len_bytes);
        let representation = Representation { content_type, cache_control, etag: etag(&status), content };
        Step::Reply(representation.reply(&wish.conditions))
    }

    /// Reads `nix-cache-info` elsewhere.
    pub fn cache_info_reader(&self) -> CacheInfoReader {
        CacheInfoReader(Arc::clone(&self.shared))
    }
}

impl CacheInfoReader {
    /// What the directory says of itself, and for the rest what `otherwise` says: Nix writes the store directory alone.
    pub fn read(&self, otherwise: &CacheInfo) -> Result<String, Failure> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let opened = rustix::fs::openat2(&*self.0, c"nix-cache-info", flags, Mode::empty(), resolve);
        let mut text = match opened {
            Ok(file) => read_text(file).map_err(|error| {
                error!("cannot read nix-cache-info: {error}");
                Failure::Broken
            })?,
            Err(Errno::NOENT) => String::new(),
            Err(errno) => {
                error!("cannot open nix-cache-info: {errno}");
                let is_passing = matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOMEM);
                return Err(if is_passing { Failure::Busy } else { Failure::Broken });
            }
        };
        let mut defaults = String::new();
        otherwise.write(&mut defaults);
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        for line in defaults.split_inclusive('\n') {
            let key_len = line.find(':').map_or(line.len(), |colon| colon + 1);
            if !text.lines().any(|said| said.starts_with(&line[..key_len])) {
                text.push_str(line);
            }
        }
        Ok(text)
    }

    /// Whether the directory answers.
    pub fn probe(&self) -> Result<(), Failure> {
        match rustix::fs::statat(&*self.0, c".", AtFlags::empty()) {
            Ok(stat) if stat.st_nlink > 0 => Ok(()),
            Ok(_) => {
                error!("the cache directory was removed");
                Err(Failure::Broken)
            }
            Err(errno) => {
                error!("the cache directory does not answer: {errno}");
                Err(Failure::Broken)
            }
        }
    }
}

fn read_text(file: OwnedFd) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::from(file).take(CACHE_INFO_LEN_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// The media type of a file, and how long others may keep it.
fn kind(route: &Route) -> (&'static str, CacheControl) {
    let Route::File(file) = route else { return (NAR_TYPE, IMMUTABLE_CACHE_CONTROL) };
    match file {
        CacheFile::CacheInfo => (CACHE_INFO_TYPE, NARINFO_CACHE_CONTROL),
        CacheFile::NarInfo(_) => (NARINFO_TYPE, NARINFO_CACHE_CONTROL),
        CacheFile::Log(_) => (TEXT_TYPE, IMMUTABLE_CACHE_CONTROL),
        CacheFile::Listing(_)
        | CacheFile::Realisation(_)
        | CacheFile::BuildTrace { .. }
        | CacheFile::DebugInfo { .. } => (JSON_TYPE, IMMUTABLE_CACHE_CONTROL),
    }
}

/// Names one version of one file: a replaced file has another inode, a changed one another time.
fn etag(status: &FileStatus) -> Option<ETag> {
    let FileStatus { inode, len_bytes, modified_s, modified_ns, .. } = status;
    let mut opaque = [0; ETAG_OPAQUE_LEN_MAX];
    let mut rest = &mut opaque[..];
    write!(rest, "{inode:x}-{len_bytes:x}-{modified_s:x}.{modified_ns:x}").ok()?;
    let len = ETAG_OPAQUE_LEN_MAX - rest.len();
    ETag::new(&opaque[..len])
}
