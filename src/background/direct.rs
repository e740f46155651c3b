//! Files read and written beside the page cache, which is the server's most valuable memory and belongs to what is served.
//!
//! Direct I/O is glommio's. It opens files by name and ends the process when a name has vanished, a device describes itself in
//! another way than usual, or a file system cannot be asked about; so each file is opened by us, glommio gets
//! `/proc/self/fd/<n>`, which stays as long as we hold it, and each device and its file system are looked at before. Where direct
//! I/O is not to be had, files are read and written as usual, and what was not in memory before is taken out again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::num::NonZero;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;

use glommio::io::{DmaBuffer, DmaFile, OpenOptions, ReadResult};
use glommio::{GlommioError, Task, allocate_dma_buffer_global, spawn_local};
use rustix::fs::{Advice, OFlags, SeekFrom};
use rustix::io::Errno;

use super::executor::Runtime;
use crate::limits::{BACKGROUND_PIECE_LEN_BYTES, UNKNOWN_RESIDENCY_LEN_MAX, WAITED_FOR_LEN_MAX};
use crate::residency::is_in_memory;
use crate::store::fault;

/// What is known of the disks: which of them take direct I/O.
pub struct Disks {
    runtime: Runtime,
    /// By device number.
    ways: RefCell<HashMap<u64, Way>>,
}

/// How the files of a device are read and written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Beside the page cache, and it is not known whether they can be polled for. glommio finds out with the first file, by
    /// reading its first block.
    Unknown,
    /// Beside the page cache.
    Direct,
    /// Beside the page cache, but not by glommio.
    Waiting,
    /// Through it.
    Cached,
}

/// What to do about a file that is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resident {
    /// It is taken from there: that costs least.
    Used,
    /// The disk is read nevertheless: it is what the question is about.
    Ignored,
}

impl Disks {
    /// Nothing is known yet.
    pub fn new(runtime: Runtime) -> Rc<Self> {
        Rc::new(Self { runtime, ways: RefCell::default() })
    }

    /// What carries the tasks.
    pub fn runtime(&self) -> Runtime {
        self.runtime
    }

    /// The file for direct I/O by the executor, if its device takes that.
    async fn open(&self, file: &fs::File, is_written: bool) -> Option<(u64, DmaFile)> {
        let status = rustix::fs::fstat(file).ok()?;
        let (device, way) = (status.st_dev, self.way(file, status.st_dev));
        if !matches!(way, Way::Unknown | Way::Direct) {
            return None;
        }
        // A first block that needs no disk would let glommio believe that every device can be polled.
        let has_block = if is_written {
            way == Way::Direct || file.write_all_at(&[0; PAGE_LEN_BYTES], 0).is_ok()
        } else {
            way == Way::Direct || rustix::fs::seek(file, SeekFrom::Data(0)) == Ok(0)
        };
        if !has_block {
            return None;
        }
        let name = format!("/proc/self/fd/{}", file.as_raw_fd());
        let opened = OpenOptions::new().read(true).write(is_written).dma_open(name).await;
        if way == Way::Unknown && is_written {
            rustix::fs::ftruncate(file, 0).ok()?;
        }
        match opened {
            Ok(direct) => {
                self.ways.borrow_mut().insert(device, Way::Direct);
                Some((device, direct))
            }
            Err(error) => {
                self.refused(device, &system_error(error));
                None
            }
        }
    }

    /// Lets a file itself be read beside the page cache, if its device takes that.
    fn bypass(&self, file: &fs::File) -> Option<u64> {
        let device = rustix::fs::fstat(file).ok()?.st_dev;
        if self.way(file, device) == Way::Cached {
            return None;
        }
        match rustix::fs::fcntl_setfl(file, OFlags::DIRECT) {
            Ok(()) => Some(device),
            Err(error) => {
                self.refused(device, &error.into());
                None
            }
        }
    }

    fn way(&self, file: &fs::File, device: u64) -> Way {
        let find_out = || match self.runtime {
            Runtime::Executor if is_of_this_machine(file) && is_as_usual(device) => Way::Unknown,
            Runtime::Executor | Runtime::Thread => Way::Waiting,
        };
        *self.ways.borrow_mut().entry(device).or_insert_with(find_out)
    }

    /// Remembers a device that does not take this kind of direct I/O at all; perhaps it takes the other.
    fn refused(&self, device: u64, error: &io::Error) {
        if !matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::OPNOTSUPP)) {
            return;
        }
        if let Some(way) = self.ways.borrow_mut().get_mut(&device) {
            *way = match way {
                Way::Unknown | Way::Direct => Way::Waiting,
                Way::Waiting | Way::Cached => Way::Cached,
            };
        }
    }
}

/// File systems that answer statfs(2) from this machine's memory: ext2 to ext4, XFS, Btrfs, Bcachefs, F2FS, ZFS, tmpfs, and overlays,
/// which ask what they lie on. glommio asks for each file, and ends the process when there is no answer: a server of files that is
/// away, or a program, gives none even to who has the file open.
const LOCAL_FILE_SYSTEMS: [u32; 8] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0xca45_1a4e, 0xf2f5_2010, 0x2fc1_2fc1, 0x0102_1994, 0x794c_7630];

/// Whether a file is on one of [`LOCAL_FILE_SYSTEMS`].
fn is_of_this_machine(file: &fs::File) -> bool {
    let kind = rustix::fs::fstatfs(file).map(|status| status.f_type);
    kind.is_ok_and(|kind| LOCAL_FILE_SYSTEMS.iter().any(|&known| i64::from(known) == kind))
}

/// What a device says of its queue.
const NUMBERS: [&str; 7] = [
    "rotational",
    "minimum_io_size",
    "optimal_io_size",
    "logical_block_size",
    "physical_block_size",
    "max_sectors_kb",
    "max_segment_size",
];

/// Whether a device describes itself in the way that glommio expects. It reads these files once per device, and each that it
/// cannot read ends the process.
fn is_as_usual(device: u64) -> bool {
    let folder = format!("/sys/dev/block/{}:0", rustix::fs::major(device));
    let folder = match fs::canonicalize(folder) {
        Ok(folder) => folder,
        // No block device, such as a tmpfs or an overlay.
        Err(error) => return error.kind() == io::ErrorKind::NotFound,
    };
    let read = |name: &str| fs::read_to_string(folder.join("queue").join(name)).ok();
    let is_number = |name: &&str| {
        read(name)
            .is_some_and(|text| text.trim_matches('\n').parse::<isize>().is_ok_and(|number| number >= 0))
    };
    let is_cache_known = read("write_cache")
        .is_some_and(|text| ["write back", "write through"].contains(&text.trim_matches('\n')));
    let are_parts_known =
        || fs::read_dir(folder.join("slaves")).is_ok_and(|mut parts| parts.all(|part| part.is_ok()));
    NUMBERS.iter().all(is_number) && is_cache_known && are_parts_known()
}

/// Reads one file from its beginning, piece by piece.
pub struct Reader {
    disks: Rc<Disks>,
    file: fs::File,
    /// Length that the file must have. Bytes.
    size: u64,
    /// How much was read. Bytes; at most `size`.
    position: u64,
    source: Source,
}

/// Where pieces come from.
enum Source {
    /// From beside the page cache. The next piece is being read while the last one is looked at.
    Direct { file: Rc<DmaFile>, device: u64, next: Option<Task<io::Result<ReadResult>>>, piece: ReadResult },
    /// From beside the page cache as well, while the thread waits: for short files, whose opening by the executor costs more.
    Waiting { device: u64, buffer: DmaBuffer },
    /// From the page cache, where they stay if they were there.
    Cached { buffer: Vec<u8>, were_there: bool },
}

impl Reader {
    /// A reader of a file that must have `size` bytes.
    pub async fn open(disks: &Rc<Disks>, file: OwnedFd, size: u64, resident: Resident) -> Self {
        let file = fs::File::from(file);
        // A file system that cannot say so has no disk, or the kernel is older than the question: then only what is short is
        // taken for resident, as it costs more to open twice than it takes in memory.
        let were_there =
            is_in_memory(file.as_fd(), 0, size.max(1)).unwrap_or(size <= UNKNOWN_RESIDENCY_LEN_MAX);
        let source = match resident {
            Resident::Used if were_there => Source::cached(size, were_there),
            Resident::Used | Resident::Ignored => {
                let direct = if size > WAITED_FOR_LEN_MAX { disks.open(&file, false).await } else { None };
                match direct {
                    Some((device, file)) => {
                        let file = Rc::new(file);
                        Source::Direct { file, device, next: None, piece: ReadResult::default() }
                    }
                    None => match disks.bypass(&file) {
                        Some(device) => Source::Waiting { device, buffer: page_buffer(piece_len(size)) },
                        None => Source::cached(size, were_there),
                    },
                }
            }
        };
        Self { disks: Rc::clone(disks), file, size, position: 0, source }
    }

    /// The next piece, at most [`BACKGROUND_PIECE_LEN_BYTES`] long; none at the end.
    ///
    /// # Errors
    /// `UnexpectedEof` for a file that is shorter than it must be; what the system says.
    pub async fn next(&mut self) -> io::Result<Option<&[u8]>> {
        let wanted = piece_len(self.size - self.position);
        if wanted == 0 {
            return Ok(None);
        }
        if let Source::Direct { file, device, next, piece } = &mut self.source {
            let read = match next.take() {
                Some(task) => task.await,
                None => read_direct(Rc::clone(file), self.position, wanted).await,
            };
            match read {
                Ok(read) if read.len() >= wanted => {
                    *piece = read;
                    self.position += wanted as u64;
                    let next_len = piece_len(self.size - self.position);
                    if next_len > 0 {
                        *next = Some(spawn_local(read_direct(Rc::clone(file), self.position, next_len)));
                    }
                    let Source::Direct { piece, .. } = &self.source else { return Ok(None) };
                    return Ok(Some(&piece[..wanted]));
                }
                // Asked again in another way, which says what is wrong, or that only the direct one was.
                Ok(_) => {}
                Err(error) => self.disks.refused(*device, &error),
            }
            self.source = Source::cached(self.size, false);
        }
        if let Source::Waiting { device, buffer } = &mut self.source {
            let read = rustix::io::retry_on_intr(|| {
                rustix::io::pread(&self.file, buffer.as_bytes_mut(), self.position)
            });
            match read {
                Ok(read) if read >= wanted => {
                    self.position += wanted as u64;
                    let Source::Waiting { buffer, .. } = &self.source else { return Ok(None) };
                    return Ok(Some(&buffer.as_bytes()[..wanted]));
                }
                Ok(_) => {}
                Err(error) => self.disks.refused(*device, &error.into()),
            }
            self.end_bypass();
            self.source = Source::cached(self.size, false);
        }
        let Source::Cached { buffer, were_there } = &mut self.source else { return Ok(None) };
        let buffer = &mut buffer[..wanted];
        self.file.read_exact_at(buffer, self.position)?;
        if !*were_there {
            // If it is refused, the kernel takes it out when it needs the memory.
            let _ =
                rustix::fs::fadvise(&self.file, self.position, NonZero::new(wanted as u64), Advice::DontNeed);
        }
        self.position += wanted as u64;
        Ok(Some(buffer))
    }
}

impl Reader {
    /// Lets the file be read as usual again: others may have its description too, such as the root that it was opened for.
    fn end_bypass(&self) {
        if matches!(self.source, Source::Waiting { .. }) {
            // If it is refused, whoever reads next gets an error and no wrong bytes.
            let _ = rustix::fs::fcntl_setfl(&self.file, OFlags::empty());
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.end_bypass();
    }
}

impl Source {
    fn cached(size: u64, were_there: bool) -> Self {
        Self::Cached { buffer: vec![0; piece_len(size)], were_there }
    }
}

async fn read_direct(file: Rc<DmaFile>, position: u64, len: usize) -> io::Result<ReadResult> {
    // Every position is a multiple of the length of a whole piece, and the last length is made one of a page.
    let len = len.next_multiple_of(PAGE_LEN_BYTES);
    file.read_at_aligned(position, len).await.map_err(system_error)
}

/// Writes one new file from its beginning.
pub struct Writer {
    disks: Rc<Disks>,
    file: Rc<fs::File>,
    /// None where there is no direct I/O.
    direct: Option<Rc<DmaFile>>,
    buffer: Buffer,
    /// How much of the buffer is filled. Bytes; less than all of it.
    filled: usize,
    /// Where the buffer goes. Bytes.
    position: u64,
    /// The buffer before this one, on its way.
    under_way: Option<Task<io::Result<()>>>,
}

/// Memory that bytes wait in until they are a piece.
enum Buffer {
    Direct(DmaBuffer),
    Cached(Vec<u8>),
}

impl Buffer {
    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Direct(buffer) => buffer.as_bytes_mut(),
            Self::Cached(buffer) => buffer,
        }
    }
}

impl Writer {
    /// A writer of an empty file.
    pub async fn open(disks: &Rc<Disks>, file: OwnedFd) -> Self {
        let file = fs::File::from(file);
        let direct = disks.open(&file, true).await.map(|(_, direct)| Rc::new(direct));
        let buffer = buffer(direct.as_deref());
        let (disks, file) = (Rc::clone(disks), Rc::new(file));
        Self { disks, file, direct, buffer, filled: 0, position: 0, under_way: None }
    }

    /// Appends bytes. They are on their way once they are a piece.
    ///
    /// # Errors
    /// What the system said to these or to an earlier piece.
    pub async fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = &mut self.buffer.bytes()[self.filled..];
            let (now, later) = bytes.split_at(bytes.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            let is_full = now.len() == room.len();
            self.filled += now.len();
            bytes = later;
            if is_full {
                self.send().await?;
            }
        }
        Ok(())
    }

    /// How much was appended. Bytes.
    pub fn len(&self) -> u64 {
        self.position + self.filled as u64
    }

    /// Writes the rest. The file is as long as what was appended, and not yet synchronized.
    pub async fn finish(mut self) -> io::Result<u64> {
        let len = self.len();
        if self.filled > 0 {
            // Direct I/O writes whole blocks; what is too much is cut off again.
            let filled = self.filled;
            self.buffer.bytes()[filled..].fill(0);
            if let Buffer::Direct(buffer) = &mut self.buffer {
                buffer.trim_to_size(filled.next_multiple_of(PAGE_LEN_BYTES));
            }
            self.send().await?;
        }
        if let Some(under_way) = self.under_way.take() {
            under_way.await?;
        }
        rustix::fs::ftruncate(&*self.file, len)?;
        if self.direct.is_none() {
            // Only what is on disk can be taken out of memory.
            let file = Rc::clone(&self.file);
            let copy = file.try_clone()?;
            self.disks.runtime().wait_for(move || rustix::fs::fdatasync(&copy)).await?;
            let _ = rustix::fs::fadvise(&*file, 0, None, Advice::DontNeed);
        }
        Ok(len)
    }

    /// Sends the buffer off, once the one before has arrived.
    async fn send(&mut self) -> io::Result<()> {
        if let Some(under_way) = self.under_way.take() {
            under_way.await?;
        }
        fault::point("fill: write")?;
        let (position, filled) = (self.position, self.filled);
        self.position += filled as u64;
        self.filled = 0;
        match &mut self.buffer {
            Buffer::Cached(buffer) => self.file.write_all_at(&buffer[..filled], position),
            Buffer::Direct(_) => {
                let Buffer::Direct(full) =
                    std::mem::replace(&mut self.buffer, buffer(self.direct.as_deref()))
                else {
                    return Ok(());
                };
                let Some(direct) = self.direct.clone() else { return Ok(()) };
                self.under_way =
                    Some(spawn_local(write_direct(direct, Rc::clone(&self.file), full, position)));
                Ok(())
            }
        }
    }
}

fn buffer(direct: Option<&DmaFile>) -> Buffer {
    match direct {
        Some(direct) => Buffer::Direct(direct.alloc_dma_buffer(BACKGROUND_PIECE_LEN_BYTES)),
        None => Buffer::Cached(vec![0; BACKGROUND_PIECE_LEN_BYTES]),
    }
}

async fn write_direct(
    direct: Rc<DmaFile>,
    file: Rc<fs::File>,
    buffer: DmaBuffer,
    position: u64,
) -> io::Result<()> {
    let buffer = Rc::new(buffer);
    let written = direct.write_rc_at(Rc::clone(&buffer), position).await.unwrap_or(0);
    // What was not taken is written in the ordinary way, which says why, or succeeds where only the direct way was refused.
    file.write_all_at(&buffer.as_bytes()[written.min(buffer.len())..], position + written as u64)
}

/// Memory for direct I/O of `len` bytes and what is missing to a page.
fn page_buffer(len: usize) -> DmaBuffer {
    allocate_dma_buffer_global(len.max(1).next_multiple_of(PAGE_LEN_BYTES))
}

/// What direct I/O comes in, on every disk.
const PAGE_LEN_BYTES: usize = 4096;

const _: () =
    assert!(WAITED_FOR_LEN_MAX >= PAGE_LEN_BYTES as u64, "what the executor reads has a first block");
const _: () = assert!(
    BACKGROUND_PIECE_LEN_BYTES.is_multiple_of(PAGE_LEN_BYTES),
    "every piece begins where a page does"
);

/// The length of the next piece when `left` bytes are left.
fn piece_len(left: u64) -> usize {
    usize::try_from(left).map_or(BACKGROUND_PIECE_LEN_BYTES, |left| left.min(BACKGROUND_PIECE_LEN_BYTES))
}

/// The system's own error in what glommio makes of it.
fn system_error(error: GlommioError<()>) -> io::Error {
    match error {
        GlommioError::IoError(error) | GlommioError::EnhancedIoError { source: error, .. } => error,
        other => io::Error::other(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::super::executor;
    use super::*;

    fn contents(len: usize) -> Vec<u8> {
        (0..251).chain(3..250).chain(1..240).cycle().take(len).collect()
    }

    const LENGTHS: [usize; 8] = [
        1,
        100_000,
        PAGE_LEN_BYTES - 1,
        PAGE_LEN_BYTES,
        BACKGROUND_PIECE_LEN_BYTES - 1,
        BACKGROUND_PIECE_LEN_BYTES,
        BACKGROUND_PIECE_LEN_BYTES + 1,
        3 * BACKGROUND_PIECE_LEN_BYTES + 12_345,
    ];

    /// In the folder of the build, because the one for temporary files may be in memory.
    fn folder() -> tempfile::TempDir {
        tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/target").unwrap()
    }

    async fn read(disks: &Rc<Disks>, file: &fs::File, size: u64, resident: Resident) -> io::Result<Vec<u8>> {
        let mut reader = Reader::open(disks, file.try_clone().unwrap().into(), size, resident).await;
        let mut all = Vec::new();
        while let Some(piece) = reader.next().await? {
            all.extend_from_slice(piece);
        }
        Ok(all)
    }

    async fn round_trips(runtime: Runtime) -> Rc<Disks> {
        let disks = Disks::new(runtime);
        let folder = folder();
        for len in LENGTHS {
            let contents = contents(len);
            let file = fs::File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(folder.path().join(len.to_string()))
                .unwrap();
            let mut writer = Writer::open(&disks, file.try_clone().unwrap().into()).await;
            for piece in contents.chunks(100_001) {
                writer.push(piece).await.unwrap();
            }
            assert_eq!(writer.len(), len as u64);
            assert_eq!(writer.finish().await.unwrap(), len as u64);
            assert_eq!(file.metadata().unwrap().len(), len as u64);
            for resident in [Resident::Ignored, Resident::Used] {
                assert!(
                    read(&disks, &file, len as u64, resident).await.unwrap() == contents,
                    "{len} {resident:?}"
                );
            }
            let error = read(&disks, &file, len as u64 + 1, Resident::Ignored).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
        disks
    }

    #[test]
    fn what_is_written_is_read_on_an_executor_and_without() {
        let disks = executor::make().unwrap().run(round_trips(Runtime::Executor));
        let takes_direct = rustix::fs::openat(
            rustix::fs::CWD,
            folder().path(),
            OFlags::TMPFILE | OFlags::DIRECT | OFlags::RDWR,
            rustix::fs::Mode::RUSR,
        );
        if takes_direct.is_ok() {
            assert!(disks.ways.borrow().values().all(|way| *way == Way::Direct));
        }
        futures_lite::future::block_on(round_trips(Runtime::Thread));
    }

    #[test]
    fn a_file_system_that_may_not_answer_is_none_of_the_executors() {
        let of_kernel = fs::File::open("/proc/version").unwrap();
        assert!(!is_of_this_machine(&of_kernel));
        let disks = Disks::new(Runtime::Executor);
        assert!(disks.way(&of_kernel, 1) == Way::Waiting);
        // What was found out of a device stays.
        let file = tempfile::tempfile_in(folder().path()).unwrap();
        assert!(disks.way(&file, 1) == Way::Waiting);
        disks.refused(1, &Errno::INVAL.into());
        assert!(disks.way(&file, 1) == Way::Cached);
    }

    #[test]
    fn what_is_read_or_written_beside_the_page_cache_is_not_in_it() {
        let folder = folder();
        let mut file = tempfile::tempfile_in(folder.path()).unwrap();
        file.write_all(&contents(1 << 20)).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        // A kernel before 6.5, a sandbox, or a file system that cannot tell.
        let Ok(false) = is_in_memory(file.as_fd(), 0, 1) else { return };
        for runtime in [Runtime::Executor, Runtime::Thread] {
            executor::run(async |_| {
                let disks = Disks::new(runtime);
                read(&disks, &file, 1 << 20, Resident::Ignored).await.unwrap();
                assert_eq!(is_in_memory(file.as_fd(), 0, 1), Ok(false), "{runtime:?}");
                let written = tempfile::tempfile_in(folder.path()).unwrap();
                let mut writer = Writer::open(&disks, written.try_clone().unwrap().into()).await;
                writer.push(&contents(1 << 20)).await.unwrap();
                writer.finish().await.unwrap();
                assert_eq!(is_in_memory(written.as_fd(), 0, 1), Ok(false), "{runtime:?}");
            });
        }
    }

    #[test]
    fn reading_what_is_in_memory_leaves_it_there() {
        let mut file = tempfile::tempfile_in(folder().path()).unwrap();
        file.write_all(&contents(1 << 20)).unwrap();
        let Ok(true) = is_in_memory(file.as_fd(), 0, 1 << 20) else { return };
        for resident in [Resident::Ignored, Resident::Used] {
            executor::run(async |runtime| {
                read(&Disks::new(runtime), &file, 1 << 20, resident).await.unwrap();
            });
            assert_eq!(is_in_memory(file.as_fd(), 0, 1 << 20), Ok(true), "{resident:?}");
        }
    }
}
