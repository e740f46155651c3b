//! A NAR that is compressed while it is sent: what a reader gets for a path of which no compressed file is kept.
//!
//! Nobody waits for a reader, and no worker compresses. All that an encoder is (the place in the NAR, the open root, the hash so
//! far, the frame that is begun) lives in one object. It rests in the body while the reader takes what is there; then it goes to a
//! thread of the encoding plane, makes the next chunk, and comes back.
//!
//! The hash of the NAR is known at its end, and the frame is finished only when it is the one that the database says. So nobody
//! gets a whole frame of anything else; on a mismatch the download is broken off.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, TryRecvError};

use rustix::io::Errno;
use tracing::{error, warn};

use super::known_path::KnownPath;
use super::lookup::SharedStore;
use super::nar_body::{Failed, Root, SharedLayout};
use super::plane::{Plane, Toolbox};
use super::refusal::Failure;
use super::request::{Damaged, Message};
use crate::codec::hash::Sha256;
use crate::codec::nar::layout::{self, Cursor, FileRange, Layout};
use crate::codec::zstd::{FrameEncoder, FrameError};
use crate::limits::{ENCODE_INPUT_LEN_MAX, ENCODE_LEVEL, ENCODED_CHUNK_LEN_BYTES, ENCODERS_MAX, STALL_MAX_S};
use crate::ring::body::{Body, Lookup, Piece};
use crate::ring::inbox::Mailbox;
use crate::ring::op::ConnectionId;
use crate::ring::reactor;
use crate::store::walk;
use crate::store::{StoreError, fault};

/// Counts the encoders that there are.
#[derive(Clone, Debug, Default)]
pub struct Encoders(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    admitted: AtomicUsize,
    /// Those that were refused since one was admitted, or a stalled one gave way for.
    refused: AtomicUsize,
}

/// The right to be one of [`ENCODERS_MAX`] encoders.
#[derive(Debug)]
pub struct Admission(Encoders);

impl Encoders {
    /// Lets one more in; none while there are too many.
    pub fn admit(&self) -> Option<Admission> {
        let admission = Admission(self.clone());
        // One that is refused counts until it is dropped, which is now.
        let is_admitted = self.0.admitted.fetch_add(1, Ordering::Relaxed) < ENCODERS_MAX;
        if is_admitted {
            self.0.refused.store(0, Ordering::Relaxed);
        } else {
            self.0.refused.fetch_add(1, Ordering::Relaxed);
        }
        is_admitted.then_some(admission)
    }

    /// Whether somebody was refused for whom nobody has given way yet; now somebody has.
    fn give_way(&self) -> bool {
        let less = |refused: usize| refused.checked_sub(1);
        self.0.refused.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    /// How many there are.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.0.admitted.load(Ordering::Relaxed)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.0.admitted.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is to be encoded.
pub struct Order {
    path: Arc<KnownPath>,
    shared: Arc<SharedStore>,
    root: Option<OwnedFd>,
    admission: Admission,
}

impl Order {
    /// The NAR of `path`, whose root is open. An error when there is no descriptor for another thread.
    pub fn new(
        path: Arc<KnownPath>,
        shared: Arc<SharedStore>,
        root: &Root,
        admission: Admission,
    ) -> Result<Self, Errno> {
        let root = match root {
            Root::Open(opened) => Some(opened.file.duplicate()?),
            Root::Unneeded => None,
        };
        Ok(Self { path, shared, root, admission })
    }
}

/// Where encoders work, and for whom.
#[derive(Clone)]
pub struct Workshop {
    /// The threads.
    pub plane: Plane,
    /// Who is told that something was made, or nothing can be.
    pub mailbox: Mailbox<reactor::Message<Message>>,
    /// Whose body it is.
    pub id: ConnectionId,
    /// What to say of the path if it turns out to be damaged.
    pub damaged: Damaged,
}

/// A compressed NAR on its way to one client. Of what was made it has the last chunk.
pub struct EncodedBody {
    layout: Rc<SharedLayout>,
    workshop: Workshop,
    encoders: Encoders,
    work: Work,
    /// What was made last.
    chunk: Vec<u8>,
    /// Where that stands in the frame.
    chunk_start: u64,
}

/// Where the encoder is.
enum Work {
    /// There will be one.
    Ordered(Order),
    /// Here: the reader has not taken everything, or the layout is behind.
    Resting(Box<Encoder>),
    /// On a thread, which sends what comes of it.
    UnderWay(Receiver<Product>),
    /// Gone: it has made the end of the frame. Its place is given back when the reader has that: until then it takes memory.
    Finished { _place: Admission },
    /// Gone: there will be no end. The cause was logged.
    Broken,
}

/// What a thread gives back.
enum Product {
    /// A chunk behind which there is more. It is empty when the layout was behind.
    Chunk(Box<Encoder>, Vec<u8>),
    /// The last chunk, and the place.
    LastChunk(Vec<u8>, Admission),
    /// None. The cause was logged.
    Nothing(Failure),
}

impl EncodedBody {
    /// The NAR of `order`, whose layout this is. Nothing is made before the first piece is asked for.
    pub fn new(order: Order, layout: Rc<SharedLayout>, workshop: Workshop) -> Self {
        let encoders = order.admission.0.clone();
        Self { layout, workshop, encoders, work: Work::Ordered(order), chunk: Vec::new(), chunk_start: 0 }
    }

    /// Goes on behind the chunk, all of which the reader has: takes what was made, or has something made.
    fn proceed(&mut self) {
        self.chunk_start += self.chunk.len() as u64;
        self.chunk.clear();
        if let Work::UnderWay(receiver) = &self.work {
            match receiver.try_recv() {
                Ok(product) => self.take(product),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => self.work = Work::Broken,
            }
        }
        let position = match &self.work {
            Work::Ordered(_) => 0,
            Work::Resting(encoder) if self.chunk.is_empty() => encoder.position,
            _ => return,
        };
        match self.layout.sendable() {
            Ok(Some(layout)) if layout.is_complete() || layout.known_len_bytes() > position => {
                self.begin_chunk(Layout::clone(&layout));
            }
            // The walk is behind; what it finds next wakes the connection.
            Ok(_) => {}
            Err(Failed) => self.work = Work::Broken,
        }
    }

    fn take(&mut self, product: Product) {
        (self.work, self.chunk) = match product {
            Product::Chunk(encoder, chunk) => (Work::Resting(encoder), chunk),
            Product::LastChunk(chunk, admission) => (Work::Finished { _place: admission }, chunk),
            Product::Nothing(failure) => {
                // What says something about this moment says nothing about the path.
                if failure != Failure::Busy {
                    self.layout.fail();
                }
                (Work::Broken, Vec::new())
            }
        };
    }

    /// Has a chunk made out of what the layout knows.
    fn begin_chunk(&mut self, layout: Layout) {
        let (sender, receiver) = mpsc::channel();
        let work = std::mem::replace(&mut self.work, Work::UnderWay(receiver));
        let (chunk, Workshop { plane, mailbox, id, damaged }) =
            (std::mem::take(&mut self.chunk), self.workshop.clone());
        let job = move |_: &mut Toolbox| {
            let encoder = match work {
                Work::Ordered(order) => Encoder::begin(order).map(Box::new),
                Work::Resting(encoder) => Ok(encoder),
                Work::UnderWay(_) | Work::Finished { .. } | Work::Broken => return,
            };
            let product = encoder.and_then(|encoder| encoder.make_chunk(&layout, chunk));
            let product = product.unwrap_or_else(|trouble| Product::Nothing(trouble.log()));
            let is_damaged = matches!(product, Product::Nothing(failure) if failure != Failure::Busy);
            // A body that has gone with its connection wants nothing any more, and what was made goes too.
            if sender.send(product).is_ok() {
                let message = Message::Encoded { id, damaged: is_damaged.then_some(damaged) };
                let _ = mailbox.send(reactor::Message::Node(message));
            }
        };
        if plane.submit(job).is_err() {
            warn!("too much is to be encoded; a download was broken off");
            self.work = Work::Broken;
        }
    }
}

impl Body for EncodedBody {
    fn piece_at(&mut self, position: u64) -> Lookup<'_> {
        if position >= self.chunk_start + self.chunk.len() as u64 {
            self.proceed();
        }
        let skipped = position.checked_sub(self.chunk_start).and_then(|len| usize::try_from(len).ok());
        match skipped.and_then(|len| self.chunk.get(len..)) {
            Some(rest) if !rest.is_empty() => Lookup::Piece(Piece::Bytes(rest)),
            Some(_) => match &self.work {
                Work::Ordered(_) | Work::Resting(_) | Work::UnderWay(_) => Lookup::NotYet,
                Work::Finished { .. } => Lookup::End,
                Work::Broken => Lookup::Broken,
            },
            // It was forgotten, or was never made.
            None => Lookup::Broken,
        }
    }

    fn yields(&mut self, stalled_s: u64) -> bool {
        let yields = stalled_s > STALL_MAX_S && self.encoders.give_way();
        if yields {
            warn!(
                "a download of a compressed NAR was broken off: its client takes nothing, and others wait for its place"
            );
        }
        yields
    }
}

/// A NAR in the middle of being encoded.
struct Encoder {
    path: Arc<KnownPath>,
    root: Option<walk::Root>,
    /// Everything of the NAR before this is in the frame.
    position: u64,
    cursor: Cursor,
    /// The file that the position is in, and where its contents begin in the NAR.
    file: Option<(u64, OwnedFd)>,
    hasher: Sha256,
    frame: FrameEncoder,
    admission: Admission,
}

/// Why nothing can be made.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a NAR cannot be encoded: {0}")]
    Frame(#[from] FrameError),
}

impl Trouble {
    /// Logs it and says what it means.
    fn log(&self) -> Failure {
        match self {
            Self::Store(error) => Failure::log(error),
            Self::Frame(_) => {
                error!("{self}");
                Failure::Busy
            }
        }
    }
}

impl Encoder {
    fn begin(order: Order) -> Result<Self, Trouble> {
        fault::may_panic("encode: begun");
        let Order { path, shared, root, admission } = order;
        let name = shared.places().real_store.join(path.base_name());
        Ok(Self {
            frame: FrameEncoder::new(ENCODE_LEVEL, Some(path.nar_size))?,
            root: root.map(|descriptor| walk::Root::new(descriptor, name)).transpose()?,
            path,
            position: 0,
            cursor: Cursor::default(),
            file: None,
            hasher: Sha256::new(),
            admission,
        })
    }

    /// Goes on with the NAR until a chunk is full, enough was read, or the layout knows no more.
    fn make_chunk(mut self: Box<Self>, layout: &Layout, mut chunk: Vec<u8>) -> Result<Product, Trouble> {
        let mut buffer = vec![0; READ_LEN];
        let enough = self.position.saturating_add(ENCODE_INPUT_LEN_MAX);
        while chunk.len() < ENCODED_CHUNK_LEN_BYTES && self.position < enough {
            let contents = match layout.piece_at(self.position, &mut self.cursor) {
                layout::Lookup::Piece(layout::Piece::Bytes(bytes)) => &bytes[..bytes.len().min(READ_LEN)],
                layout::Lookup::Piece(layout::Piece::File(range)) => {
                    let len = self.read(&range, &mut buffer)?;
                    &buffer[..len]
                }
                layout::Lookup::NotYet => break,
                layout::Lookup::End => return self.finish(chunk),
            };
            self.hasher.update(contents);
            self.frame.update(contents, &mut chunk)?;
            self.position += contents.len() as u64;
        }
        Ok(Product::Chunk(self, chunk))
    }

    /// Ends the frame, if it is one of the right NAR.
    fn finish(self: Box<Self>, mut chunk: Vec<u8>) -> Result<Product, Trouble> {
        let Self { path, position, hasher, frame, admission, .. } = *self;
        if (position, hasher.finish()) != (path.nar_size, path.nar_hash) {
            let reason = "its NAR has not the hash that the database says";
            return Err(damaged(&path, reason).into());
        }
        frame.finish(&mut chunk)?;
        Ok(Product::LastChunk(chunk, admission))
    }

    /// Reads from the start of a range, at least one byte; returns how many.
    fn read(&mut self, range: &FileRange<'_>, buffer: &mut [u8]) -> Result<usize, StoreError> {
        // A layout without a root has all contents.
        let Some(root) = &self.root else {
            return Err(damaged(&self.path, "it is another tree than before"));
        };
        let contents_start = self.position - range.offset;
        let file = match &mut self.file {
            Some((start, file)) if *start == contents_start => file,
            other => &mut other.insert((contents_start, walk::open_file(root, range.path)?)).1,
        };
        let wanted = usize::try_from(range.len).map_or(buffer.len(), |len| len.min(buffer.len()));
        loop {
            match rustix::io::pread(&*file, &mut buffer[..wanted], range.offset) {
                Ok(0) => return Err(damaged(&self.path, "a file is shorter than before")),
                Ok(len) => return Ok(len),
                Err(Errno::INTR) => {}
                Err(errno) => {
                    let name = OsStr::from_bytes(range.path.to_bytes());
                    let (path, source) = (root.path.join(name), errno.into());
                    return Err(StoreError::Io { path, operation: "read", source });
                }
            }
        }
    }
}

/// What is read, hashed and compressed at a time: as much as a block of a frame holds. Bytes.
const READ_LEN: usize = 128 * 1024;

fn damaged(path: &KnownPath, reason: &str) -> StoreError {
    StoreError::Damaged { subject: path.base_name().to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::ops::ControlFlow;
    use std::os::fd::AsFd as _;
    use std::time::Duration;

    use super::*;
    use crate::codec::nar::layout::Part;
    use crate::ring::descriptor::Descriptor;
    use crate::ring::inbox::{Inbox, inbox};
    use crate::ring::op::OpenedFile;
    use crate::ring::sys;
    use crate::server::layouts::key_of;
    use crate::server::nar_body::Footprint;
    use crate::store::demo::DemoStore;
    use crate::store::walk::{Kept, Walked};

    const ID: ConnectionId = ConnectionId { slot: 0, generation: 1 };

    struct Bench {
        demo: DemoStore,
        shared: Arc<SharedStore>,
        plane: Plane,
        mailbox: Mailbox<reactor::Message<Message>>,
        inbox: Inbox<reactor::Message<Message>>,
    }

    impl Bench {
        /// A store of one path with these files.
        fn new(files: &[(&str, Vec<u8>)]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let tree = folder.path().join("tree");
            fs::create_dir(&tree).unwrap();
            for (name, contents) in files {
                fs::write(tree.join(name), contents).unwrap();
            }
            Self::of(DemoStore::create(Some(folder.path()), &mut |_| {}).unwrap())
        }

        fn of(demo: DemoStore) -> Self {
            let shared = Arc::new(SharedStore::open(demo.store.clone(), None).unwrap());
            let (mailbox, inbox) = inbox().unwrap();
            Self { demo, shared, plane: Plane::start("e", 1, 0).unwrap(), mailbox, inbox }
        }

        /// What the database says of a path of the store.
        fn path(&self, index: usize) -> Arc<KnownPath> {
            let hash_part = self.demo.paths[index].hash_part();
            self.shared.look_up(&mut Toolbox::default(), hash_part, None).unwrap().path.unwrap()
        }

        /// All parts of a path's layout, and the length of its NAR.
        fn parts(&self, path: &KnownPath) -> (Vec<Part>, u64) {
            let root = walk::open_root(&self.demo.store, &path.store_path()).unwrap().unwrap();
            let mut parts = Vec::new();
            let walked = walk::walk(&root, Kept::Nothing, &mut |part| {
                parts.push(part);
                ControlFlow::Continue(())
            });
            let Walked::Complete { last_part, len_bytes } = walked.unwrap() else {
                panic!("nobody stops it")
            };
            parts.extend(last_part);
            (parts, len_bytes)
        }

        fn body(&self, path: &Arc<KnownPath>, layout: &Rc<SharedLayout>) -> EncodedBody {
            let name = self.demo.store.real_store.join(path.base_name());
            let root = if name.is_symlink() {
                Root::Unneeded
            } else {
                let opened = OwnedFd::from(fs::File::open(name).unwrap());
                let status = sys::status(opened.as_fd()).unwrap();
                Root::Open(OpenedFile { file: Descriptor::from(opened), status })
            };
            let admission = self.shared.encoders().admit().unwrap();
            let order = Order::new(Arc::clone(path), Arc::clone(&self.shared), &root, admission).unwrap();
            let damaged = Damaged { source: 0, key: key_of(path), stamp: self.shared.counter().stamp() };
            let (plane, mailbox) = (self.plane.clone(), self.mailbox.clone());
            EncodedBody::new(order, Rc::clone(layout), Workshop { plane, mailbox, id: ID, damaged })
        }

        /// Whether a path was found damaged, when something has come of a job.
        fn news(&self) -> bool {
            for _ in 0..10_000 {
                if let Some(reactor::Message::Node(Message::Encoded { id, damaged })) = self.inbox.next() {
                    assert_eq!(id, ID);
                    return damaged.is_some();
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            panic!("the plane says nothing");
        }

        /// Takes all that can be had; says whether it is the whole frame, as far as that is known.
        fn take(&self, body: &mut EncodedBody, frame: &mut Vec<u8>) -> Option<bool> {
            loop {
                match body.piece_at(frame.len() as u64) {
                    Lookup::Piece(Piece::Bytes(bytes)) => frame.extend_from_slice(bytes),
                    Lookup::Piece(Piece::File(_)) => panic!("a frame is in no file"),
                    Lookup::End => return Some(true),
                    Lookup::Broken => return Some(false),
                    Lookup::NotYet => {
                        if !matches!(body.work, Work::UnderWay(_)) {
                            return None;
                        }
                        self.news();
                    }
                }
            }
        }
    }

    fn empty_layout(path: &KnownPath) -> Rc<SharedLayout> {
        Rc::new(SharedLayout::new(path.nar_size, None, Footprint::default()))
    }

    /// A layout of these parts that is all there.
    fn layout_of(path: &KnownPath, parts: &(Vec<Part>, u64)) -> Rc<SharedLayout> {
        let layout = empty_layout(path);
        for part in &parts.0 {
            layout.push(part.clone());
        }
        assert!(layout.complete(parts.1));
        layout
    }

    fn layout(bench: &Bench, path: &KnownPath) -> Rc<SharedLayout> {
        layout_of(path, &bench.parts(path))
    }

    /// Bytes that hardly get shorter.
    fn noise(len: usize) -> Vec<u8> {
        let words = (0u64..).flat_map(|word| Sha256::digest(&word.to_ne_bytes()).0);
        words.take(len).collect()
    }

    #[test]
    fn the_frame_holds_the_nar() {
        let files = [("a", noise(1_000_000)), ("b", Vec::new()), ("c", vec![7; 20_000_000]), ("d", noise(3))];
        for bench in [Bench::new(&files), Bench::of(DemoStore::create(None, &mut |_| {}).unwrap())] {
            for index in 0..bench.demo.paths.len() {
                let path = bench.path(index);
                let mut body = bench.body(&path, &layout(&bench, &path));
                let mut frame = Vec::new();
                assert_eq!(bench.take(&mut body, &mut frame), Some(true));
                let nar = zstd::decode_all(&frame[..]).unwrap();
                assert_eq!((nar.len() as u64, Sha256::digest(&nar)), (path.nar_size, path.nar_hash));
            }
        }
    }

    #[test]
    fn a_piece_can_be_had_again_until_what_follows_it_was_asked_for() {
        let bench = Bench::new(&[("a", noise(3_000_000))]);
        let path = bench.path(0);
        let mut body = bench.body(&path, &layout(&bench, &path));
        assert!(matches!(body.piece_at(0), Lookup::NotYet));
        bench.news();
        let Lookup::Piece(Piece::Bytes(chunk)) = body.piece_at(0) else { panic!("it was made") };
        let chunk = chunk.to_vec();
        for start in [chunk.len() - 1, 0, 100] {
            let Lookup::Piece(Piece::Bytes(rest)) = body.piece_at(start as u64) else { panic!("it is kept") };
            assert_eq!(rest, &chunk[start..]);
        }
        assert!(matches!(body.piece_at(chunk.len() as u64), Lookup::NotYet));
    }

    /// A short NAR is encoded at once, and then takes memory for as long as its reader does not read.
    #[test]
    fn a_place_is_taken_until_the_reader_has_the_last_chunk() {
        let bench = Bench::new(&[("a", noise(10_000))]);
        let path = bench.path(0);
        let mut body = bench.body(&path, &layout(&bench, &path));
        assert!(matches!(body.piece_at(0), Lookup::NotYet));
        bench.news();
        assert!(matches!(body.piece_at(0), Lookup::Piece(_)));
        let others: Vec<_> = (1..ENCODERS_MAX).map(|_| bench.shared.encoders().admit().unwrap()).collect();
        assert!(bench.shared.encoders().admit().is_none());
        drop(body);
        assert!(bench.shared.encoders().admit().is_some());
        drop(others);
    }

    #[test]
    fn it_follows_a_walk() {
        let bench = Bench::new(&[("a", noise(600_000)), ("b", noise(10))]);
        let path = bench.path(0);
        let shared = empty_layout(&path);
        let (mut body, mut frame) = (bench.body(&path, &shared), Vec::new());
        assert_eq!(bench.take(&mut body, &mut frame), None, "nothing is known");
        let (parts, len_bytes) = bench.parts(&path);
        for part in parts {
            shared.push(part);
        }
        assert_eq!(bench.take(&mut body, &mut frame), None, "the tree may be larger than that");
        assert!(shared.complete(len_bytes));
        assert_eq!(bench.take(&mut body, &mut frame), Some(true));
        assert_eq!(Sha256::digest(&zstd::decode_all(&frame[..]).unwrap()), path.nar_hash);
    }

    #[test]
    fn a_tree_that_is_not_the_databases_is_broken_off_and_reported() {
        let bench = Bench::new(&[("a", noise(100)), ("b", noise(3_000_000))]);
        let path = bench.path(0);
        let file = bench.demo.store.real_store.join(path.base_name()).join("b");
        let mut permissions = fs::metadata(&file).unwrap().permissions();
        #[expect(clippy::permissions_set_readonly_false, reason = "it is a file of this test")]
        permissions.set_readonly(false);
        fs::set_permissions(&file, permissions).unwrap();
        let parts = bench.parts(&path);
        let damages: [&dyn Fn(); 3] = [
            &|| fs::write(&file, vec![0; 3_000_000]).unwrap(),
            &|| fs::File::options().write(true).open(&file).unwrap().set_len(100_000).unwrap(),
            &|| fs::remove_file(&file).unwrap(),
        ];
        for damage in damages {
            damage();
            let shared = layout_of(&path, &parts);
            let (mut body, mut is_damaged) = (bench.body(&path, &shared), false);
            let mut frame = Vec::new();
            loop {
                match body.piece_at(frame.len() as u64) {
                    Lookup::Piece(Piece::Bytes(bytes)) => frame.extend_from_slice(bytes),
                    Lookup::NotYet => is_damaged |= bench.news(),
                    Lookup::Broken => break,
                    other => panic!("{other:?}"),
                }
            }
            assert!(is_damaged && !shared.is_sound());
            assert!(zstd::decode_all(&frame[..]).is_err(), "the frame has no end");
            let mut body = bench.body(&path, &shared);
            assert!(
                matches!(body.piece_at(0), Lookup::Broken),
                "nobody begins with a layout that has failed"
            );
        }
    }

    #[test]
    fn there_are_so_many_encoders_and_no_more() {
        let encoders = Encoders::default();
        let mut admissions: Vec<_> = (0..ENCODERS_MAX).map(|_| encoders.admit().unwrap()).collect();
        for _ in 0..3 {
            assert!(encoders.admit().is_none());
        }
        admissions.pop();
        assert!(encoders.admit().is_some());
    }

    #[test]
    fn a_reader_that_stalls_gives_way_once_for_each_who_was_refused() {
        let bench = Bench::new(&[("a", noise(3_000_000))]);
        let path = bench.path(0);
        let layout = layout(&bench, &path);
        let encoders = bench.shared.encoders().clone();
        let mut bodies: Vec<_> = (0..3).map(|_| bench.body(&path, &layout)).collect();
        assert!(!bodies[0].yields(STALL_MAX_S + 1), "nobody wants its place");
        let others: Vec<_> = (bodies.len()..ENCODERS_MAX).map(|_| encoders.admit().unwrap()).collect();
        assert!(encoders.admit().is_none());
        assert!(!bodies[0].yields(STALL_MAX_S), "it may be slow");
        assert!(bodies[1].yields(STALL_MAX_S + 1));
        assert!(!bodies[2].yields(STALL_MAX_S + 1), "one was refused");
        bodies.remove(1);
        assert!(encoders.admit().is_some());
        drop(others);
        // Who was refused has a place by now, or has gone elsewhere.
        let others: Vec<_> = (bodies.len()..ENCODERS_MAX).map(|_| encoders.admit().unwrap()).collect();
        assert!(encoders.admit().is_none());
        drop(others);
        assert!(encoders.admit().is_some());
        assert!(!bodies[0].yields(STALL_MAX_S + 1));
    }

    #[test]
    fn an_encoder_ends_with_its_body() {
        let bench = Bench::new(&[("a", noise(3_000_000))]);
        let path = bench.path(0);
        let layout = layout(&bench, &path);
        let alive = |bench: &Bench| bench.shared.encoders().0.admitted.load(Ordering::Relaxed);
        let mut body = bench.body(&path, &layout);
        assert!(matches!(body.piece_at(0), Lookup::NotYet));
        drop(body);
        for _ in 0..10_000 {
            if alive(&bench) == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("it is still there");
    }

    /// What [`ENCODERS_MAX`] says that one takes.
    #[test]
    fn an_encoder_takes_no_more_memory_than_was_counted_on() {
        let mut frame = Vec::new();
        let mut encoder = FrameEncoder::new(ENCODE_LEVEL, Some(1 << 40)).unwrap();
        encoder.update(&noise(1_000_000), &mut frame).unwrap();
        assert!(encoder.memory_len_bytes() < 1_468_006, "{}", encoder.memory_len_bytes());

        let bench = Bench::new(&[("a", noise(3_000_000)), ("b", vec![0; 9_000_000])]);
        let path = bench.path(0);
        let mut body = bench.body(&path, &layout(&bench, &path));
        let mut position = 0;
        loop {
            match body.piece_at(position) {
                Lookup::Piece(piece) => position += piece.len_bytes(),
                Lookup::NotYet => drop(bench.news()),
                _ => break,
            }
            assert!(body.chunk.capacity() <= 544 * 1024, "{}", body.chunk.capacity());
        }
    }
}
