//! Store path → layout parts: one pass over a tree in NAR order, handing over what it knows as it goes.
//!
//! Every component is opened relative to the descriptor of its directory and never through a link, so a link swapped
//! in meanwhile leads nowhere. The open directories stand on a stack of its own, at most [`NAR_DEPTH_MAX`] of them.
//!
//! A walk can take the contents of tiny files along ([`Kept`]): it has to look at each of them anyway, and then nobody has to
//! open them again. It takes what is in memory. What is not is left to be read side by side with others.

use std::ffi::CStr;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat};
use rustix::io::{Errno, ReadWriteFlags};

use crate::codec::hash::{Sha256, Sha256Digest};
use crate::codec::nar::layout::{BuildError, Builder, Layout, Part, Piece};
use crate::codec::store_path::StorePath;
use crate::limits::{
    KEPT_CONTENTS_LEN_MAX, KEPT_FILE_LEN_MAX, NAR_DEPTH_MAX, WALK_ANNOUNCE_ENTRIES, WALK_COLD_PAUSE_FILES,
    WALK_FIRST_PART_ENTRIES, WALK_PART_ENTRIES_MAX,
};
use crate::store::{LocalStore, StoreError};

/// The opened root of a store path.
///
/// For a directory or a file an ordinary descriptor, which is what keeps Nix's garbage collector away: it reads
/// `/proc/<pid>/fd`, where files registered with a ring do not appear.
#[derive(Debug)]
pub struct Root {
    /// The descriptor; for [`RootKind::Symlink`] an `O_PATH` one.
    pub descriptor: OwnedFd,
    /// What it is.
    pub kind: RootKind,
    /// Where it was opened; for messages.
    pub path: PathBuf,
}

/// What a store path can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootKind {
    /// A directory, opened for reading.
    Directory,
    /// A regular file, opened for reading.
    Regular {
        /// Whether its owner may execute it.
        executable: bool,
        /// Length in bytes.
        size: u64,
    },
    /// A symbolic link.
    Symlink,
}

/// Which contents a layout is to have among its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Those of files that are tiny and in memory: at most [`KEPT_FILE_LEN_MAX`] bytes each and [`KEPT_CONTENTS_LEN_MAX`]
    /// together. The less is left of these, the shorter a file must be.
    Tiny,
    /// None.
    Nothing,
}

/// How a walk ended.
#[derive(Debug)]
pub enum Walked {
    /// The sink has every part but the last.
    Complete {
        /// The last part, together with the news that it is the last.
        last_part: Option<Part>,
        /// To be compared with the database's narSize.
        len_bytes: u64,
    },
    /// The sink asked to stop, or it was not wanted any more.
    Stopped,
}

/// Opens a store path's root. `None` when it is not there.
pub fn open_root(store: &LocalStore, path: &StorePath) -> Result<Option<Root>, StoreError> {
    open_root_at(&store.real_store.join(path.base_name()))
}

/// Opens the root of any tree; the last component of `path` is not followed when it is a link.
pub(super) fn open_root_at(path: &Path) -> Result<Option<Root>, StoreError> {
    let absent = |error: Errno| {
        (error == Errno::NOENT).then_some(None).ok_or_else(|| StoreError::io("open", path, error))
    };
    let status = match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(status) => status,
        Err(error) => return absent(error),
    };
    // The kind is asked for first, because opening a pipe would wait and opening a device may do anything.
    let flags = match FileType::from_raw_mode(status.st_mode) {
        FileType::Directory => OFlags::RDONLY | OFlags::DIRECTORY,
        FileType::RegularFile => OFlags::RDONLY,
        FileType::Symlink => OFlags::PATH,
        other => return Err(not_archivable(path, other)),
    };
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let descriptor = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Ok(descriptor) => descriptor,
        Err(error) => return absent(error),
    };
    Root::new(descriptor, path.to_path_buf()).map(Some)
}

impl Root {
    /// A root that is open already; `path` is for messages.
    pub fn new(descriptor: OwnedFd, path: PathBuf) -> Result<Self, StoreError> {
        let status =
            rustix::fs::fstat(&descriptor).map_err(|error| StoreError::io("examine", &path, error))?;
        let kind = match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => RootKind::Directory,
            FileType::RegularFile => {
                RootKind::Regular { executable: is_executable(&status), size: size_of_file(&status) }
            }
            FileType::Symlink => RootKind::Symlink,
            other => return Err(not_archivable(&path, other)),
        };
        Ok(Self { descriptor, kind, path })
    }
}

/// Lays out the tree at `root`, calling `sink` with each part.
///
/// The first part comes after [`WALK_FIRST_PART_ENTRIES`] entries, each later one may be twice as long as the one
/// before; a tree smaller than that is one part. What stands before a directory of more than
/// [`WALK_ANNOUNCE_ENTRIES`] entries is handed over while its names are read.
pub fn walk(
    root: &Root,
    kept: Kept,
    sink: &mut dyn FnMut(Part) -> ControlFlow<()>,
) -> Result<Walked, StoreError> {
    walk_while(&|| true, root, kept, sink)
}

/// The same for as long as `is_wanted`, which is asked before each entry: between two parts a slow disk may lie.
pub fn walk_while(
    is_wanted: &dyn Fn() -> bool,
    root: &Root,
    kept: Kept,
    sink: &mut dyn FnMut(Part) -> ControlFlow<()>,
) -> Result<Walked, StoreError> {
    let mut walk = Walk {
        is_wanted,
        root,
        builder: Builder::new(),
        keeper: Keeper::new(kept),
        sink,
        open: Vec::new(),
        part_entries: 0,
        part_entries_max: WALK_FIRST_PART_ENTRIES,
        buffer: Box::new_uninit_slice(READ_DIRECTORY_BUFFER_LEN),
    };
    if walk.run()?.is_break() {
        return Ok(Walked::Stopped);
    }
    let (last_part, len_bytes) = walk.builder.finish();
    Ok(Walked::Complete { last_part, len_bytes })
}

/// The hash of a NAR whose parts have all of its bytes.
pub struct WholeHash(Option<Sha256>);

impl Default for WholeHash {
    fn default() -> Self {
        Self(Some(Sha256::new()))
    }
}

impl WholeHash {
    /// Adds the next part.
    pub fn add(&mut self, part: &Part) {
        match (part.whole_bytes(), &mut self.0) {
            (Some(bytes), Some(hasher)) => hasher.update(bytes),
            _ => self.0 = None,
        }
    }

    /// The hash after the last part; none when bytes are missing.
    pub fn finish(self) -> Option<Sha256Digest> {
        self.0.map(Sha256::finish)
    }
}

/// Lays out the whole tree at `root`, unless that is not wanted any more before the end.
pub fn layout_while(
    is_wanted: &dyn Fn() -> bool,
    root: &Root,
    kept: Kept,
) -> Result<Option<Layout>, StoreError> {
    let mut layout = Layout::new();
    let walked = walk_while(is_wanted, root, kept, &mut |part| {
        layout.push(part.into());
        ControlFlow::Continue(())
    })?;
    let Walked::Complete { last_part, len_bytes } = walked else { return Ok(None) };
    if let Some(part) = last_part {
        layout.push(part.into());
    }
    layout.complete(len_bytes);
    Ok(Some(layout))
}

/// Opens the regular file at `path` beneath `root`, never through a link. An empty path is the root itself.
pub fn open_file(root: &Root, path: &CStr) -> Result<OwnedFd, StoreError> {
    let failed = |error| StoreError::io("open", root.path.join(display(path)), error);
    if path.is_empty() {
        return root.descriptor.try_clone().map_err(failed);
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(&root.descriptor, path, flags, Mode::empty(), resolve) {
        // Seccomp profiles older than the call answer with these two.
        Err(Errno::NOSYS | Errno::PERM) => {}
        other => return other.map_err(|error| failed(error.into())),
    }
    let mut directory: Option<OwnedFd> = None;
    let mut components = path.to_bytes().split(|&byte| byte == b'/').peekable();
    while let Some(component) = components.next() {
        let beneath = directory.as_ref().unwrap_or(&root.descriptor);
        let kind = if components.peek().is_some() { OFlags::DIRECTORY } else { OFlags::empty() };
        let opened = rustix::fs::openat(beneath, component, flags | kind, Mode::empty());
        directory = Some(opened.map_err(|error| failed(error.into()))?);
    }
    directory.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
}

/// Hash and length in bytes of the NAR of the tree at `root`.
pub fn hash(root: &Root) -> Result<(Sha256Digest, u64), StoreError> {
    let mut hasher = Sha256::new();
    let len_bytes = read::<StoreError>(root, &mut |bytes| {
        hasher.update(bytes);
        Ok(())
    })?;
    Ok((hasher.finish(), len_bytes))
}

/// Hands the NAR of the tree at `root` to `sink`, from the first byte to the last and a piece at a time. Gives its length in bytes,
/// or the first error: of the tree, or of the sink. Holds no more of the layout than a part.
pub fn read<E: From<StoreError>>(
    root: &Root,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
) -> Result<u64, E> {
    let mut buffer = vec![0; READ_BUFFER_LEN];
    let mut read = Ok(());
    let walked = walk(root, Kept::Tiny, &mut |part| {
        read = read_part(root, &part, &mut buffer, sink);
        if read.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    read?;
    // Only a failed read stops the walk, so what is left here is complete.
    let Walked::Complete { last_part, len_bytes } = walked else { return Ok(0) };
    if let Some(part) = last_part {
        read_part(root, &part, &mut buffer, sink)?;
    }
    Ok(len_bytes)
}

const READ_BUFFER_LEN: usize = 256 * 1024;

fn read_part<E: From<StoreError>>(
    root: &Root,
    part: &Part,
    buffer: &mut [u8],
    sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    part.pieces().try_for_each(|piece| match piece {
        Piece::Bytes(bytes) => sink(bytes),
        Piece::File(range) => {
            let file = open_file(root, range.path)?;
            read_file(root, &file, range.path, range.file_size, buffer, sink)
        }
    })
}

fn read_file<E: From<StoreError>>(
    root: &Root,
    file: &OwnedFd,
    path: &CStr,
    size: u64,
    buffer: &mut [u8],
    sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |error: io::Error| StoreError::io("read", root.path.join(display(path)), error);
    let mut offset = 0;
    while offset < size {
        let wanted = usize::try_from(size - offset).map_or(buffer.len(), |left| left.min(buffer.len()));
        match rustix::io::pread(file, &mut buffer[..wanted], offset) {
            Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into()).into()),
            Ok(len) => {
                sink(&buffer[..len])?;
                offset += len as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(failed(error.into()).into()),
        }
    }
    Ok(())
}

/// A walk under way.
struct Walk<'a> {
    is_wanted: &'a dyn Fn() -> bool,
    root: &'a Root,
    builder: Builder,
    keeper: Keeper,
    sink: &'a mut dyn FnMut(Part) -> ControlFlow<()>,
    /// The directories from the root down to where the walk stands.
    open: Vec<OpenDirectory>,
    /// Entries since the last part.
    part_entries: usize,
    part_entries_max: usize,
    /// For what the kernel tells of a directory.
    buffer: Box<[MaybeUninit<u8>]>,
}

/// A directory whose entries are being visited.
struct OpenDirectory {
    descriptor: OwnedFd,
    /// NUL-terminated names, in the order of the directory.
    names: Vec<u8>,
    /// Sorted by name. `next` is the first that was not visited.
    entries: Vec<Entry>,
    next: usize,
}

#[derive(Clone, Copy)]
struct Entry {
    /// Where the name starts in `names`.
    name_start: usize,
    /// Length without the NUL.
    name_len: usize,
    /// What the directory says it is; a hint.
    kind: FileType,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<ControlFlow<()>, StoreError> {
        match self.root.kind {
            RootKind::Regular { executable, size } => {
                let is_read = self.keeper.wants(size) && self.keeper.read(self.root.descriptor.as_fd(), size);
                self.regular(executable, size, is_read)?;
            }
            RootKind::Symlink => {
                let target = rustix::fs::readlinkat(&self.root.descriptor, c"", Vec::new())
                    .map_err(|error| self.failed("read link", error))?;
                self.build(|builder| builder.symlink(target.to_bytes()))?;
            }
            RootKind::Directory => {
                // Opened anew: a duplicate would share its read position with another walk of the same root.
                let descriptor = open_directory(self.root.descriptor.as_fd(), c".");
                if self.enter(descriptor.map_err(|error| self.failed("open", error))?)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        while let Some(directory) = self.open.last_mut() {
            if !(self.is_wanted)() {
                return Ok(ControlFlow::Break(()));
            }
            let Some(&entry) = directory.entries.get(directory.next) else {
                self.build(Builder::end_directory)?;
                self.open.pop();
                continue;
            };
            directory.next += 1;
            if self.visit(entry)?.is_break() || self.hand_over().is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Adds an entry of the innermost open directory, and opens it when it is a directory itself.
    fn visit(&mut self, entry: Entry) -> Result<ControlFlow<()>, StoreError> {
        let Some(directory) = self.open.last() else { return Ok(ControlFlow::Continue(())) };
        let name = directory.name(entry);
        if let Err(error) = self.builder.entry(name.to_bytes()) {
            return Err(self.refused(error));
        }
        let parent = directory.descriptor.as_fd();
        // The hint saves the status of directories and links, whose opening and reading checks the kind again.
        let found = match entry.kind {
            FileType::Directory => open_directory(parent, name).map(Found::Directory),
            FileType::Symlink => rustix::fs::readlinkat(parent, name, Vec::new())
                .map(|target| Found::Symlink(target.into_bytes())),
            _ => examine(parent, name, &mut self.keeper),
        };
        match found.map_err(|error| self.failed("examine", error))? {
            Found::Directory(descriptor) => return self.enter(descriptor),
            Found::Symlink(target) => self.build(|builder| builder.symlink(&target))?,
            Found::Regular { executable, size, is_read } => self.regular(executable, size, is_read)?,
            Found::Other(kind) => return Err(not_archivable(&self.here_path(), kind)),
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Adds a regular file, with the contents that the keeper has read of it.
    fn regular(&mut self, executable: bool, size: u64, is_read: bool) -> Result<(), StoreError> {
        let Self { builder, keeper, .. } = self;
        let added = match keeper.contents(size).filter(|_| is_read) {
            Some(contents) => builder.contents(executable, contents),
            None => builder.regular(executable, size),
        };
        added.map_err(|error| self.refused(error))
    }

    /// Starts a directory: reads and sorts its names.
    fn enter(&mut self, descriptor: OwnedFd) -> Result<ControlFlow<()>, StoreError> {
        self.build(Builder::directory)?;
        let Self { builder, sink, buffer, is_wanted, .. } = self;
        let mut announce = || match builder.take_part() {
            _ if !is_wanted() => ControlFlow::Break(()),
            Some(part) => sink(part),
            None => ControlFlow::Continue(()),
        };
        let directory = OpenDirectory::read(descriptor, buffer, &mut announce);
        match directory.map_err(|error| self.failed("read directory", error))? {
            ControlFlow::Continue(directory) => self.open.push(directory),
            ControlFlow::Break(()) => return Ok(ControlFlow::Break(())),
        }
        debug_assert!(self.open.len() <= NAR_DEPTH_MAX, "the builder bounds the depth");
        Ok(ControlFlow::Continue(()))
    }

    fn hand_over(&mut self) -> ControlFlow<()> {
        self.part_entries += 1;
        if self.part_entries < self.part_entries_max {
            return ControlFlow::Continue(());
        }
        self.part_entries = 0;
        self.part_entries_max = (self.part_entries_max * 2).min(WALK_PART_ENTRIES_MAX);
        match self.builder.take_part() {
            Some(part) => (self.sink)(part),
            None => ControlFlow::Continue(()),
        }
    }

    fn build(&mut self, add: impl FnOnce(&mut Builder) -> Result<(), BuildError>) -> Result<(), StoreError> {
        add(&mut self.builder).map_err(|error| self.refused(error))
    }

    /// What it says of the tree that there can be no NAR of it.
    fn refused(&self, error: BuildError) -> StoreError {
        if error.is_bound() {
            let (subject, reason) = (self.root.path.display().to_string(), error.to_string());
            return StoreError::Unservable { subject, reason };
        }
        StoreError::damaged(self.here_path().display().to_string(), error)
    }

    fn failed(&self, operation: &'static str, error: Errno) -> StoreError {
        StoreError::io(operation, self.here_path(), error)
    }

    /// The path of the entry being visited; only for messages.
    fn here_path(&self) -> PathBuf {
        let mut path = self.root.path.clone();
        for directory in &self.open {
            if let Some(&entry) =
                directory.next.checked_sub(1).and_then(|visited| directory.entries.get(visited))
            {
                path.push(display(directory.name(entry)));
            }
        }
        path
    }
}

/// What an entry turned out to be.
enum Found {
    Directory(OwnedFd),
    Symlink(Vec<u8>),
    Regular { executable: bool, size: u64, is_read: bool },
    Other(FileType),
}

/// Finds out what an entry is that the directory calls neither a directory nor a link.
fn examine(parent: BorrowedFd<'_>, name: &CStr, keeper: &mut Keeper) -> rustix::io::Result<Found> {
    if let Some(found) = keeper.open_first(parent, name) {
        return Ok(found);
    }
    let status = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(match FileType::from_raw_mode(status.st_mode) {
        FileType::RegularFile => {
            let size = size_of_file(&status);
            // Whoever sends a file that cannot be opened will say so.
            let is_read = keeper.wants(size)
                && open_regular(parent, name).is_ok_and(|file| keeper.read(file.as_fd(), size));
            Found::Regular { executable: is_executable(&status), size, is_read }
        }
        FileType::Directory => Found::Directory(open_directory(parent, name)?),
        FileType::Symlink => Found::Symlink(rustix::fs::readlinkat(parent, name, Vec::new())?.into_bytes()),
        other => Found::Other(other),
    })
}

/// Reads tiny files that are in memory.
///
/// A tiny file is opened, read and closed; for any other its status is enough. Which of the two it will be is guessed from
/// the file before it, because of a file that is opened anyway the status costs a third of what it costs by name, and
/// opening and closing one for its status alone costs twice as much.
struct Keeper {
    buffer: Box<[u8]>,
    /// The contents that may still be kept of this tree. Bytes.
    left_len: u64,
    /// Whether the file before was tiny.
    is_tiny_expected: bool,
    /// Files to be passed over because one was not in memory: those after it may not be either.
    pause_files: usize,
    /// What the next pause will be: twice as long after each that was for nothing.
    next_pause_files: usize,
    /// Says that a file is not to be waited for.
    flags: ReadWriteFlags,
}

impl Keeper {
    fn new(kept: Kept) -> Self {
        let (file_len_max, left_len) = match kept {
            Kept::Tiny => (KEPT_FILE_LEN_MAX, KEPT_CONTENTS_LEN_MAX as u64),
            Kept::Nothing => (0, 0),
        };
        Self {
            // One byte more than a file may have, so that one that has grown shows.
            buffer: vec![0; file_len_max + 1].into(),
            left_len,
            is_tiny_expected: false,
            pause_files: 0,
            next_pause_files: 0,
            flags: ReadWriteFlags::NOWAIT,
        }
    }

    /// What was read of a file of `size` bytes.
    fn contents(&self, size: u64) -> Option<&[u8]> {
        usize::try_from(size).ok().and_then(|size| self.buffer.get(..size))
    }

    /// An entry that is probably a tiny file: opens it, then asks for its status. None when that was not done or nothing can be
    /// said.
    fn open_first(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Option<Found> {
        if !self.is_tiny_expected || self.pause_files > 0 {
            return None;
        }
        let file = open_regular(parent, name).ok()?;
        let status = rustix::fs::fstat(&file).ok()?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return None;
        }
        let size = size_of_file(&status);
        let is_read = self.wants(size) && self.read(file.as_fd(), size);
        Some(Found::Regular { executable: is_executable(&status), size, is_read })
    }

    /// Whether a file of `size` bytes is to be read. Asked once for each file.
    fn wants(&mut self, size: u64) -> bool {
        self.is_tiny_expected = size > 0 && size <= self.left_len / KEPT_FILES_MIN;
        let is_paused = self.pause_files > 0;
        self.pause_files = self.pause_files.saturating_sub(1);
        self.is_tiny_expected && !is_paused
    }

    /// Reads a file of `size` bytes if it is in memory; says whether it was.
    fn read(&mut self, file: BorrowedFd<'_>, size: u64) -> bool {
        match rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut self.buffer)], 0, self.flags) {
            Ok(len) if len as u64 == size => {
                self.next_pause_files = 0;
                self.left_len -= size;
                true
            }
            // It changes under our eyes.
            Ok(_) => false,
            Err(Errno::OPNOTSUPP) if is_in_memory_always(file) => {
                self.flags = ReadWriteFlags::empty();
                self.read(file, size)
            }
            Err(_) => {
                self.pause_files = self.next_pause_files;
                self.next_pause_files = (2 * self.pause_files + 1).min(WALK_COLD_PAUSE_FILES);
                false
            }
        }
    }
}

/// What is left for contents is enough for this many files at least.
const KEPT_FILES_MIN: u64 = (KEPT_CONTENTS_LEN_MAX / KEPT_FILE_LEN_MAX) as u64;

/// Opens what is probably a regular file. Opening a pipe must not wait.
pub(super) fn open_regular(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Whether the file system is a tmpfs, which has everything in memory and refuses to promise it.
fn is_in_memory_always(file: BorrowedFd<'_>) -> bool {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    rustix::fs::fstatfs(file).is_ok_and(|status| status.f_type == TMPFS_MAGIC)
}

pub(super) fn open_directory(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

impl OpenDirectory {
    /// Reads and sorts the names, calling `announce` each time there are many more.
    fn read(
        descriptor: OwnedFd,
        buffer: &mut [MaybeUninit<u8>],
        announce: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> rustix::io::Result<ControlFlow<(), Self>> {
        let mut directory = Self { descriptor, names: Vec::new(), entries: Vec::new(), next: 0 };
        let mut entries = RawDir::new(&directory.descriptor, buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            directory.entries.push(Entry {
                name_start: directory.names.len(),
                name_len: name.count_bytes(),
                kind: entry.file_type(),
            });
            directory.names.extend_from_slice(name.to_bytes_with_nul());
            if directory.entries.len().is_multiple_of(WALK_ANNOUNCE_ENTRIES) && announce().is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        let names = &directory.names;
        let name = |entry: &Entry| &names[entry.name_start..entry.name_start + entry.name_len];
        directory.entries.sort_unstable_by(|left, right| name(left).cmp(name(right)));
        Ok(ControlFlow::Continue(directory))
    }

    fn name(&self, entry: Entry) -> &CStr {
        CStr::from_bytes_until_nul(&self.names[entry.name_start..]).unwrap_or_default()
    }
}

const READ_DIRECTORY_BUFFER_LEN: usize = 32 * 1024;

/// The owner's execute bit is the only permission a NAR keeps.
pub(super) fn is_executable(status: &Stat) -> bool {
    Mode::from_raw_mode(status.st_mode).contains(Mode::XUSR)
}

pub(super) fn size_of_file(status: &Stat) -> u64 {
    // The kernel has no negative sizes of regular files.
    u64::try_from(status.st_size).unwrap_or(0)
}

fn not_archivable(path: &Path, kind: FileType) -> StoreError {
    StoreError::damaged(path.display().to_string(), format!("a NAR cannot hold {kind:?}"))
}

fn display(name: &CStr) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::process::Command;
    use std::sync::Arc;

    use super::*;
    use crate::codec::nar::listing::from_layout;

    /// The NAR of a path, by plain recursion over `std::fs`: the oracle.
    fn naive_nar(path: &Path) -> Vec<u8> {
        fn word(out: &mut Vec<u8>, bytes: &[u8]) {
            out.extend((bytes.len() as u64).to_le_bytes());
            out.extend(bytes);
            out.resize(out.len().next_multiple_of(8), 0);
        }
        fn words(out: &mut Vec<u8>, text: &str) {
            text.split(' ').for_each(|text| word(out, text.as_bytes()));
        }
        fn node(out: &mut Vec<u8>, path: &Path) {
            let metadata = path.symlink_metadata().unwrap();
            words(out, "( type");
            if metadata.is_symlink() {
                words(out, "symlink target");
                word(out, path.read_link().unwrap().as_os_str().as_bytes());
            } else if metadata.is_dir() {
                words(out, "directory");
                let mut names: Vec<_> =
                    std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
                names.sort_by(|left, right| left.as_bytes().cmp(right.as_bytes()));
                for name in names {
                    words(out, "entry ( name");
                    word(out, name.as_bytes());
                    words(out, "node");
                    node(out, &path.join(name));
                    words(out, ")");
                }
            } else {
                words(out, "regular");
                if metadata.mode() & 0o100 != 0 {
                    words(out, "executable ");
                }
                words(out, "contents");
                word(out, &std::fs::read(path).unwrap());
            }
            words(out, ")");
        }
        let mut out = Vec::new();
        word(&mut out, b"nix-archive-1");
        node(&mut out, path);
        out
    }

    fn layout(root: &Root, kept: Kept) -> Result<Layout, StoreError> {
        layout_while(&|| true, root, kept).map(Option::unwrap)
    }

    /// The NAR that the layout describes, with the files read the way it says.
    fn nar(root: &Root, kept: Kept) -> Vec<u8> {
        let layout = layout(root, kept).unwrap();
        let mut out = Vec::new();
        for piece in layout.pieces(0..layout.len_bytes().unwrap()) {
            match piece {
                Piece::Bytes(bytes) => out.extend(bytes),
                Piece::File(range) => {
                    let file = std::fs::File::from(open_file(root, range.path).unwrap());
                    let read = io::Read::read_to_end(&mut { file }, &mut out).unwrap();
                    assert_eq!(read as u64, range.file_size);
                }
            }
        }
        out
    }

    fn open(path: &Path) -> Root {
        open_root_at(path).unwrap().unwrap()
    }

    fn assert_like_naive(path: &Path) {
        let root = open(path);
        let expected = naive_nar(path);
        for kept in [Kept::Nothing, Kept::Tiny] {
            assert!(nar(&open(path), kept) == expected, "the NAR of {} differs ({kept:?})", path.display());
        }
        let listings = [Kept::Nothing, Kept::Tiny].map(|kept| from_layout(&layout(&root, kept).unwrap()));
        assert_eq!(listings[0], listings[1]);
        assert_eq!(hash(&root).unwrap(), (Sha256::digest(&expected), expected.len() as u64));
        match Command::new("nix-store").arg("--dump").arg(path).output() {
            Ok(output) => assert!(output.stdout == expected, "nix-store --dump {} differs", path.display()),
            Err(_) => eprintln!("SKIPPED: nix-store is not installed"),
        }
    }

    fn odd_tree(folder: &Path) {
        let name = |bytes: &[u8]| folder.join(std::ffi::OsStr::from_bytes(bytes));
        std::fs::write(name(b"invalid-\xff-utf8"), "1").unwrap();
        std::fs::write(name("ünïcode".as_bytes()), "22").unwrap();
        std::fs::write(name(b"new\nline"), "333").unwrap();
        std::fs::write(name(b"empty"), "").unwrap();
        std::fs::write(name(&[b'l'; 255]), "long").unwrap();
        std::fs::write(name(b"program"), "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(name(b"program"), std::fs::Permissions::from_mode(0o711)).unwrap();
        std::fs::write(name(b"group-program"), "x").unwrap();
        std::fs::set_permissions(name(b"group-program"), std::fs::Permissions::from_mode(0o655)).unwrap();
        symlink("../elsewhere", name(b"link")).unwrap();
        symlink(".", name(b"loop")).unwrap();
        // "foo-x" sorts before "foo/…" in a sorted list of paths, and after "foo" in a NAR.
        std::fs::create_dir_all(name(b"foo/bar")).unwrap();
        std::fs::write(name(b"foo-x"), vec![7; 100_000]).unwrap();
        for len in [KEPT_FILE_LEN_MAX - 1, KEPT_FILE_LEN_MAX, KEPT_FILE_LEN_MAX + 1] {
            std::fs::write(name(format!("of-{len}").as_bytes()), vec![8; len]).unwrap();
        }
        std::fs::write(name(b"foo/bar/deep"), "deep").unwrap();
        std::fs::create_dir(name(b"empty-directory")).unwrap();
    }

    #[test]
    fn trees_are_what_nix_dumps() {
        let folder = tempfile::tempdir().unwrap();
        odd_tree(folder.path());
        assert_like_naive(folder.path());
        for root in ["program", "empty", "link", "loop", "foo-x", "empty-directory"] {
            assert_like_naive(&folder.path().join(root));
        }
    }

    #[test]
    fn the_deepest_tree_that_is_a_nar_is_walked_and_one_deeper_is_not_called_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let mut deepest = folder.path().to_path_buf();
        for _ in 0..NAR_DEPTH_MAX - 2 {
            deepest.push("d");
        }
        std::fs::create_dir_all(&deepest).unwrap();
        std::fs::write(deepest.join("file"), "x").unwrap();
        assert_like_naive(folder.path());
        std::fs::create_dir_all(deepest.join("d/d")).unwrap();
        std::fs::write(deepest.join("d/d/file"), "x").unwrap();
        let error = layout(&open(folder.path()), Kept::Tiny).unwrap_err();
        let subject = folder.path().display().to_string();
        assert_eq!(
            error.to_string(),
            format!("{subject} cannot be served: the tree has more than 64 levels"),
        );
    }

    #[test]
    fn large_trees_come_in_growing_parts_that_join() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..3_000 {
            std::fs::write(folder.path().join(format!("file-{number}")), "x").unwrap();
        }
        let root = open(folder.path());
        let mut parts = Vec::new();
        let walked = walk(&root, Kept::Tiny, &mut |part| {
            parts.push(part);
            ControlFlow::Continue(())
        });
        let (last_part, len_bytes) = complete(walked);
        parts.push(last_part);
        assert!(parts.len() == 3, "512, 1024 and the rest, not {}", parts.len());
        assert!(parts[0].memory_len_bytes() < parts[1].memory_len_bytes());
        let mut layout = Layout::new();
        for part in parts {
            layout.push(Arc::new(part));
        }
        assert_eq!(len_bytes, layout.known_len_bytes());
        assert_like_naive(folder.path());
    }

    /// The last part and the length of a walk that was not stopped.
    fn complete(walked: Result<Walked, StoreError>) -> (Part, u64) {
        match walked.unwrap() {
            Walked::Complete { last_part, len_bytes } => (last_part.unwrap(), len_bytes),
            Walked::Stopped => panic!("nobody has stopped it"),
        }
    }

    #[test]
    fn a_large_directory_is_announced_before_its_entries() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("large")).unwrap();
        for number in 0..WALK_ANNOUNCE_ENTRIES {
            std::fs::write(folder.path().join("large").join(format!("file-{number}")), "x").unwrap();
        }
        let root = open(folder.path());
        let mut lens = Vec::new();
        let walked = walk(&root, Kept::Tiny, &mut |part| {
            lens.push(part.end() - part.start());
            ControlFlow::Continue(())
        });
        let (last_part, len_bytes) = complete(walked);
        assert_eq!(len_bytes, last_part.end());
        assert_eq!(lens.iter().sum::<u64>(), last_part.start());
        assert!(lens[0] < 512, "only the directory's own start");
        assert_like_naive(folder.path());
        assert!(matches!(walk(&root, Kept::Tiny, &mut |_| ControlFlow::Break(())), Ok(Walked::Stopped)));
    }

    #[test]
    fn the_sink_can_stop_the_walk() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..WALK_FIRST_PART_ENTRIES * 2 {
            std::fs::write(folder.path().join(format!("file-{number}")), "").unwrap();
        }
        let mut calls = 0;
        let walked = walk(&open(folder.path()), Kept::Tiny, &mut |_| {
            calls += 1;
            ControlFlow::Break(())
        });
        assert!(matches!(walked, Ok(Walked::Stopped)));
        assert_eq!(calls, 1);
    }

    #[test]
    fn a_walk_that_is_not_wanted_any_more_stops_at_the_next_entry() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..100 {
            std::fs::write(folder.path().join(format!("file-{number}")), "x").unwrap();
        }
        let asked = std::cell::Cell::new(0);
        let is_wanted = || asked.replace(asked.get() + 1) < 10;
        let laid_out = layout_while(&is_wanted, &open(folder.path()), Kept::Tiny).unwrap();
        assert_eq!((laid_out.is_none(), asked.get()), (true, 11));
    }

    /// The files of a tree that its layout with tiny contents has not kept.
    fn ranges(folder: &Path) -> Vec<u64> {
        let layout = layout(&open(folder), Kept::Tiny).unwrap();
        let pieces = layout.pieces(0..layout.known_len_bytes());
        pieces
            .filter_map(|piece| if let Piece::File(range) = piece { Some(range.len) } else { None })
            .collect()
    }

    #[test]
    fn tiny_files_are_kept_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let (longest, longer) = (KEPT_FILE_LEN_MAX, KEPT_FILE_LEN_MAX + 1);
        for (name, len) in [("a", longest), ("b", longer), ("c", 1), ("d", 0), ("e", 2000), ("f", longer)] {
            std::fs::write(folder.path().join(name), vec![1; len]).unwrap();
        }
        std::fs::set_permissions(folder.path().join("e"), std::fs::Permissions::from_mode(0o755)).unwrap();
        if !layout(&open(&folder.path().join("a")), Kept::Tiny).unwrap().is_whole() {
            return eprintln!("SKIPPED: this file system does not say what is in memory");
        }
        assert_eq!(ranges(folder.path()), [longer as u64; 2]);
        assert!(!layout(&open(&folder.path().join("a")), Kept::Nothing).unwrap().is_whole());
        assert_like_naive(folder.path());
    }

    #[test]
    fn what_is_kept_of_one_tree_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let fitting = KEPT_CONTENTS_LEN_MAX / KEPT_FILE_LEN_MAX;
        for number in 0..fitting + 3 {
            std::fs::write(folder.path().join(format!("{number:05}")), vec![1; KEPT_FILE_LEN_MAX]).unwrap();
        }
        std::fs::write(folder.path().join("last"), "1").unwrap();
        assert!(ranges(folder.path()).len() >= 4);
        assert_like_naive(folder.path());
    }

    #[test]
    fn what_is_not_in_memory_is_left_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..3 * WALK_COLD_PAUSE_FILES {
            let path = folder.path().join(number.to_string());
            let mut file = std::fs::File::create(path).unwrap();
            io::Write::write_all(&mut file, b"contents").unwrap();
            file.sync_all().unwrap();
            if number % 7 == 0 {
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            }
        }
        assert_like_naive(folder.path());
    }

    #[test]
    fn pauses_grow_with_each_miss_and_end_with_a_hit() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "1").unwrap();
        // What cannot be read at all is not there either.
        let nothing = std::fs::File::open(folder.path()).unwrap();
        let mut keeper = Keeper::new(Kept::Tiny);
        let mut pause_after = |file: &std::fs::File| {
            keeper.read(file.as_fd(), 1);
            (0..100).take_while(|_| !keeper.wants(1)).count()
        };
        let misses: Vec<_> = (0..7).map(|_| pause_after(&nothing)).collect();
        assert_eq!(misses, [0, 1, 3, 7, 15, 31, 31]);
        let file = std::fs::File::open(folder.path().join("file")).unwrap();
        assert_eq!(pause_after(&file), 0);
        if keeper.left_len < KEPT_CONTENTS_LEN_MAX as u64 {
            keeper.read(nothing.as_fd(), 1);
            assert!(keeper.wants(1), "a single miss is followed by no pause");
        }
    }

    #[test]
    fn a_file_that_changes_while_it_is_looked_at_is_left_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "contents").unwrap();
        let file = std::fs::File::open(folder.path().join("file")).unwrap();
        let mut keeper = Keeper::new(Kept::Tiny);
        assert!(!keeper.read(file.as_fd(), 7));
        assert!(!keeper.read(file.as_fd(), 9));
        assert_eq!(keeper.left_len, KEPT_CONTENTS_LEN_MAX as u64);
    }

    #[test]
    fn pipes_and_sockets_are_damage() {
        let folder = tempfile::tempdir().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
        let error = layout(&open(folder.path()), Kept::Tiny).unwrap_err();
        assert!(
            matches!(&error, StoreError::Damaged { subject, .. } if subject.ends_with("/socket")),
            "{error}"
        );
        let error = open_root_at(&folder.path().join("socket")).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }));
    }

    #[test]
    fn what_is_not_there_is_none_and_what_cannot_be_read_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(open_root_at(&folder.path().join("absent")).unwrap().is_none());
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(open_root_at(&folder.path().join("file/below")).is_err());
    }

    #[test]
    fn files_are_opened_beneath_the_root_and_never_through_links() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::write(tree.join("a/b/file"), "x").unwrap();
        std::fs::write(folder.path().join("secret"), "x").unwrap();
        symlink("a", tree.join("link")).unwrap();
        symlink("file", tree.join("a/b/link")).unwrap();
        let root = open(&tree);
        assert!(open_file(&root, c"a/b/file").is_ok());
        for refused in [c"link/b/file", c"a/b/link", c"../secret", c"a/b/absent"] {
            assert!(open_file(&root, refused).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn two_walks_of_one_root_at_the_same_time_do_not_disturb_each_other() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..2_000 {
            std::fs::write(folder.path().join(format!("file-{number}")), "x").unwrap();
        }
        let root = open(folder.path());
        let expected = naive_nar(folder.path()).len() as u64;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!(layout(&root, Kept::Tiny).unwrap().len_bytes(), Some(expected)));
            }
        });
    }

    #[test]
    fn a_held_root_is_an_ordinary_descriptor() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "x").unwrap();
        for path in [folder.path().to_path_buf(), folder.path().join("file")] {
            let root = open(&path);
            let flags = rustix::fs::fcntl_getfl(&root.descriptor).unwrap();
            assert!(!flags.contains(OFlags::PATH));
        }
    }
}
