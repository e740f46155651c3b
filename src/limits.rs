//! Every bound of the program, in one place, with what it buys.

use std::time::Duration;

// Requests.

/// A request head longer than this is answered 431 (414 when the request line alone is longer). Bytes.
pub const HEAD_LEN_MAX: usize = 16 * 1024;
/// More header fields than this are answered 431.
pub const HEAD_FIELDS_MAX: usize = 64;
/// A request target longer than this is answered 414. Bytes.
pub const TARGET_LEN_MAX: usize = 4 * 1024;
/// Longest request line read before 414: the target, and room for a method, two spaces and `HTTP/1.1`. Bytes.
pub const REQUEST_LINE_LEN_MAX: usize = TARGET_LEN_MAX + 32;
/// All chunk extensions of one request body together; nobody sends any. Bytes.
pub const CHUNK_EXTENSIONS_LEN_MAX: usize = 1024;
/// All trailer fields of one chunked request body together; they are read and dropped. Bytes.
pub const TRAILERS_LEN_MAX: usize = 4 * 1024;
/// Longest opaque part of an entity tag of ours: two nix32 SHA-256 digests, a separator and a suffix fit. Bytes.
pub const ETAG_OPAQUE_LEN_MAX: usize = 124;
/// An `Authorization` field longer than this has no token. Bytes; a token has at most 108 of them, 144 in base64.
pub const AUTHORIZATION_LEN_MAX: usize = 1024;
/// Longest name of a token. Bytes.
pub const TOKEN_NAME_LEN_MAX: usize = 64;
/// Longest name of a machine, and of one of its labels, that the page at `/` repeats: those of the DNS (RFC 1035). Bytes.
pub const HOST_LEN_MAX: usize = 253;
/// See there. Bytes.
pub const HOST_LABEL_LEN_MAX: usize = 63;
/// Longest decoded segment of a request path: the longest name a Linux directory entry can have. Bytes.
pub const SEGMENT_LEN_MAX: usize = 255;
/// Longest text to search for: more than a store path has, wherever the store is. What is longer is cut. Bytes.
pub const SEARCH_TEXT_LEN_MAX: usize = 512;

const _: () =
    assert!(TARGET_LEN_MAX < HEAD_LEN_MAX, "a target that is just allowed must leave room for its fields");
const _: () = assert!(REQUEST_LINE_LEN_MAX < HEAD_LEN_MAX, "414 must be decided before 431");

// NARs and store paths.

/// A tree of more levels than this is no NAR: the root is one, what lies in it the next. (Nix 2.34.7 and later refuse
/// it as well: `narMaxDepth`.)
pub const NAR_DEPTH_MAX: usize = 64;
/// Longest name of a directory entry. Bytes.
pub const NAR_NAME_LEN_MAX: usize = 255;
/// Longest target of a symbolic link. Bytes.
pub const NAR_TARGET_LEN_MAX: usize = 4095;
/// Longest path of a file below the root of its NAR: what one `openat` takes (PATH_MAX without its NUL). Bytes.
pub const NAR_PATH_LEN_MAX: usize = 4095;
/// Longest name of a store path, the part after `<hash part>-`. Nix's own bound: a base name with `.drv.chroot`
/// behind it is then still a file name of at most 255 bytes. Bytes.
pub const STORE_NAME_LEN_MAX: usize = 211;

// The ring. All numbers are per worker.

/// Operations that can be queued between two calls of the kernel; more wait in the program.
pub const SUBMISSION_ENTRIES: u32 = 1024;
/// The least a worker is content with where the kernel has not the memory for more: it wants each queue in one piece, and pieces of
/// these are of a size that it makes room for.
pub const SUBMISSION_ENTRIES_MIN: u32 = 128;
/// Completions that fit, for each submission that can be queued, before the kernel has to keep them aside.
pub const COMPLETIONS_PER_SUBMISSION: u32 = 8;
/// Kernel threads for what cannot be done without waiting (cold opens, mostly). Per kind.
pub const IO_WORKERS_MAX: u32 = 8;
/// Small files that are open in the ring's own table at once; more are ordinary descriptors. Eight buffers' worth, 4 KiB.
pub const DIRECT_FILES: u32 = 512;
/// Buffers that received bytes lie in until they are looked at, which is at once. A power of two.
pub const RECEIVE_BUFFERS: u16 = 256;
/// Length of one of them. Bytes; a Nix client's request is about 200.
pub const RECEIVE_BUFFER_LEN_BYTES: u32 = 4096;
/// Connections of all workers, whatever the limit of open files is; more wait in the kernel's backlog.
pub const CONNECTIONS_MAX: usize = 1 << 20;
/// Idle connections that are looked for at a time when others need their places: reading a table of 10,000 takes as long as accepting
/// several.
pub const EVICTION_BATCH: usize = 64;

const _: () = assert!(RECEIVE_BUFFERS.is_power_of_two(), "the kernel masks the ring's tail");
const _: () = assert!(CONNECTIONS_MAX < 1 << 24, "a packed token has 24 bits for the slot");

// Sending.

/// Files whose rest is at least this long are sent without copying when they are in memory. Bytes.
pub const SENDFILE_LEN_MIN: u64 = 128 * 1024;
/// Most that one sendfile call is asked for: the budget of one connection in one turn of the loop. With more, a short answer waits
/// longer behind long ones, and a local client reads what is no longer in the CPU's cache (PERF.md has both). Bytes.
pub const SENDFILE_LEN_MAX: usize = 256 * 1024;
/// The same for a connection that nobody shares the worker with at the moment: each call costs 5 us besides. Who comes meanwhile
/// waits a quarter of a millisecond. Bytes.
pub const SENDFILE_ALONE_LEN_MAX: usize = 2 * 1024 * 1024;
/// What the kernel takes for a peer beyond what is on its way to it. Without it 5,000 readers that stop fill what all sockets of a machine
/// with 24 GB may take together. It costs CPU where a peer reads fast (PERF.md has the table). Bytes.
pub const UNSENT_LEN_MAX: u32 = 128 * 1024;
/// Connections of all workers for which the kernel takes what it likes, up to 4 MiB each (`tcp_wmem`): the first that are sent a long body,
/// until they end. 256 MiB.
pub const EXEMPTIONS_MAX: usize = 64;
/// What requests are about, in classes: each has half a KiB of counters with every worker.
pub const TOPICS_MAX: usize = 16;
/// A body that is worth an exemption: a shorter one is mostly on its way before the bound is met. Bytes.
pub const EXEMPT_BODY_LEN_MIN: u64 = 1024 * 1024;
/// No further file is sent in a turn in which this much was: about a millisecond, which is what short answers wait for. Bytes.
pub const SENDFILE_TURN_LEN_MAX: usize = 2 * 1024 * 1024;
/// The same for the calls, most of which bring little when thousands of peers read slowly.
pub const SENDFILE_TURN_CALLS_MAX: usize = 16;
/// A buffer that small files and framing are packed into. Bytes.
pub const PACK_BUFFER_LEN_BYTES: usize = 256 * 1024;
/// Pack buffers that are in use at once; further connections wait for one. Per worker: 16 MiB.
pub const PACK_BUFFERS_MAX: usize = 64;
/// Files that are opened and read side by side for one buffer. Look-ahead that keeps a disk busy.
pub const PACK_FILES_MAX: usize = 64;
/// Answers up to about this length are collected in a buffer that is used again. Bytes.
pub const ANSWER_BUFFER_LEN_BYTES: usize = 16 * 1024;
/// Answer buffers that are kept for use again. Per worker: 4 MiB.
pub const ANSWER_BUFFERS_KEPT: usize = 256;
/// Answers collected behind one that is being sent, before no further request is looked at. Bytes.
pub const ANSWERS_WAITING_LEN_MAX: usize = 64 * 1024;
/// Bodies in memory up to this length go out with their head. Bytes.
pub const INLINE_BODY_LEN_MAX: usize = 32 * 1024;
/// Requests received while others are answered, before the connection is no longer read. Bytes.
pub const INPUT_LEN_MAX: usize = 32 * 1024;

const _: () = assert!(
    SENDFILE_LEN_MIN < (PACK_BUFFER_LEN_BYTES - ANSWER_BUFFER_LEN_BYTES) as u64,
    "a file that is too short for sendfile fits into an empty buffer behind its head",
);
const _: () = assert!(PACK_FILES_MAX <= 256, "a packed token has eight bits for the file's index");
const _: () = assert!(HEAD_LEN_MAX <= INPUT_LEN_MAX, "the longest head can be waited for");

// Receiving.

/// Most of a request's body that is handed over at once: a piece lies in one buffer, and while it is looked at and written
/// another one fills. Bytes.
pub const INTAKE_PIECE_LEN_BYTES: usize = 256 * 1024;
/// Buffers for them that are in use at once; further connections wait for one, and do not receive. Per worker: 16 MiB.
pub const INTAKE_BUFFERS_MAX: usize = 64;
/// A body that has still at least this much to come is received straight into these buffers; a shorter one comes as requests do,
/// [`RECEIVE_BUFFER_LEN_BYTES`] at a time, which saves telling the kernel so twice. Bytes.
pub const INTAKE_DIRECT_LEN_MIN: usize = 64 * 1024;

// Time.

/// A connection without a request is closed after this time. Nix keeps idle connections for up to 118 s. Seconds.
pub const IDLE_TIMEOUT_S: u64 = 150;
/// A request head has to be complete this long after its first byte, however it drips. Seconds.
pub const HEAD_TIMEOUT_S: u64 = 15;
/// A peer that takes less than [`SEND_PROGRESS_LEN_MIN`] in this time is gone, or wants to keep a place busy. Nix may stop reading for five
/// minutes. Time in which nothing was there for it to take does not count. Seconds.
pub const PROGRESS_TIMEOUT_S: u64 = 600;
/// What a peer takes of a body in a [`PROGRESS_TIMEOUT_S`] at least: 220 bytes a second, a twentieth of what a telephone line brings. A
/// smaller number would say little, because the kernel takes more room than that into account only in large steps. Bytes.
pub const SEND_PROGRESS_LEN_MIN: u64 = 128 * 1024;
/// A body of which less than [`RECEIVE_PROGRESS_LEN_MIN`] comes in this time is given up. Time in which nobody here would take a byte does
/// not count. Seconds.
pub const RECEIVE_TIMEOUT_S: u64 = 120;
/// What comes of a body in a [`RECEIVE_TIMEOUT_S`] at least, unless it ends before: 270 bytes a second, as above. Bytes.
pub const RECEIVE_PROGRESS_LEN_MIN: u64 = 32 * 1024;
/// While others are refused, a NAR that is compressed on its way, or has a large layout, is broken off when its peer has taken less than
/// [`SEND_PROGRESS_LEN_MIN`] for this long: its place is one of [`ENCODERS_MAX`], or it takes a part of [`LAYOUTS_ALIVE_LEN_MAX`]. Seconds.
pub const STALL_MAX_S: u64 = 60;
/// A layout that takes less than this is not worth breaking off a download for: of those that are alive, 500 have room. Bytes.
pub const YIELDING_LAYOUT_LEN_MIN: usize = 1024 * 1024;
/// How long a closing connection still reads, so that the peer sees the answer and not a reset. Seconds.
pub const LINGER_TIMEOUT_S: u64 = 2;
/// How long a connection that was used or accepted may stay idle while its worker drains, so that a request which is on its way is not
/// lost. Seconds.
pub const LAST_REQUEST_TIMEOUT_S: u64 = 1;
/// What happens with each connection while there are too many is logged this often. Seconds.
pub const COMPLAINT_INTERVAL_S: u64 = 60;
/// How much a closing connection still reads. Bytes; curl sends up to 1 MiB without asking, and in the middle of a longer body
/// there may be 4 MiB in the client's kernel and 6 MiB in ours (the limits of `tcp_wmem` and `tcp_rmem`). A peer that is still
/// writing when its bytes are refused sees a reset and not the answer.
pub const LINGER_LEN_MAX: usize = 16 * 1024 * 1024;

const _: () =
    assert!(IDLE_TIMEOUT_S > 120, "a client that uses an idle connection again must not find it closed");

// The store.

/// How long one statement waits for a lock of the Nix database before it fails as busy. Nix itself waits an hour; a
/// server's lookup thread must come back before its clients do.
pub const DATABASE_BUSY_TIMEOUT_MS: u64 = 2_000;
/// How often a query on an immutable database is repeated because the file changed under it.
pub const DATABASE_REOPEN_MAX: u32 = 4;
/// A file changed less than this ago may change again within the same tick of its timestamps. Milliseconds.
pub const TIMESTAMP_SETTLE_MS: u64 = 100;
/// Entries in the first part that a walk hands over: few, so that the first byte leaves early.
pub const WALK_FIRST_PART_ENTRIES: usize = 512;
/// Entries in a later part; parts double up to this, so that a large tree costs few hand-overs.
pub const WALK_PART_ENTRIES_MAX: usize = 16 * 1024;
/// A directory with more entries than this is announced before all of its names are read: they cannot be visited in
/// order before the last is known, and reading 50,000 names takes 15 ms.
pub const WALK_ANNOUNCE_ENTRIES: usize = 4 * 1024;
/// Files of at most this length are kept in a layout when they are in memory during the walk. Bytes. The first request then
/// needs to open them once and not twice, later ones not at all, for what is often less memory than a record of them.
pub const KEPT_FILE_LEN_MAX: usize = 4 * 1024;
/// All contents that are kept in one layout; what is beyond is read when it is sent. A file may take what a thousandth or two
/// of the rest is, so that in a large tree there is room for many of the tiniest instead of a few longer ones. Bytes.
pub const KEPT_CONTENTS_LEN_MAX: usize = 8 * 1024 * 1024;
/// How long contents that could not be compared with a NAR hash, because the rest of their NAR is not in memory, are taken for
/// what is on disk.
pub const UNCOMPARED_CONTENTS_KEPT: Duration = Duration::from_mins(10);
/// Most files that a walk does not try to read after several that were not in memory, so that of a cold tree few are opened in vain.
/// A single one is followed by no pause: it happens among thousands that are there.
pub const WALK_COLD_PAUSE_FILES: usize = 31;
/// A build log longer than this once decompressed is refused. Bytes.
pub const LOG_LEN_MAX: u64 = 64 * 1024 * 1024;
/// A secret key file longer than this is none. Bytes.
pub const SECRET_KEY_FILE_LEN_MAX: usize = 4 * 1024;
/// A file of tokens longer than this is none. Bytes; each token takes some 100.
pub const TOKEN_FILE_LEN_MAX: usize = 1024 * 1024;
/// Files that the catalog of the NAR cache has room for, and damaged paths, all together: a NAR that is kept in both codings is two.
/// Its file is sparse, 128 MiB at most, and takes as much memory as it takes room.
pub const CATALOG_RECORDS: usize = 1 << 20;
/// Records of the catalog among which one has its place: what a lookup looks at, at most. The buckets of a catalog that is half full
/// hold eight on average, and one in a hundred of them is full.
pub const CATALOG_BUCKET_RECORDS: usize = 16;
/// A narinfo of the NAR cache longer than this is none of ours. Bytes; 10,000 references take 600 KiB.
pub const CACHED_NARINFO_LEN_MAX: usize = 4 * 1024 * 1024;
/// Damaged files of the NAR cache, or of a directory of uploads, that are kept for somebody to look at; what is found beyond is deleted.
pub const QUARANTINED_FILES_MAX: usize = 16;
/// Paths read from the database at a time while looking for debug symbols.
pub const DEBUG_INFO_BATCH: u32 = 1024;

const _: () =
    assert!(LAYOUTS_LEN_MAX < LAYOUTS_ALIVE_LEN_MAX as u64, "those that are kept leave room for others");
const _: () = assert!(
    (4 * KEPT_CONTENTS_LEN_MAX as u64) < LAYOUTS_LEN_MAX,
    "several layouts with contents can be kept"
);
const _: () = assert!(WALK_FIRST_PART_ENTRIES <= WALK_PART_ENTRIES_MAX, "parts only grow");

const _: () =
    assert!(CATALOG_RECORDS.is_multiple_of(CATALOG_BUCKET_RECORDS), "the catalog has whole buckets");
const _: () = assert!(LOG_LEN_MAX < MADE_LEN_MAX as u64, "the longest log can be sent");
const _: () =
    assert!(ENCODERS_MAX <= PLANE_QUEUE_LEN_MAX, "each encoder has one job at most, and it finds a place");

// Uploads.

/// A zstd frame of an upload that needs a longer window than this power of two is refused: zstd's own decoder has the same bound,
/// and its highest level takes all of it, 128 MiB.
pub const UPLOAD_ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// What the decoder of an xz file may take. Its highest level needs 65 MiB. Bytes.
pub const UPLOAD_XZ_MEMORY_LEN_MAX: u64 = 80 * 1024 * 1024;
/// What is decoded and hashed of an upload at once: some 10 ms of a thread, before somebody else has a turn. Bytes.
pub const VERIFIED_AT_ONCE_LEN_MAX: usize = 4 * 1024 * 1024;
/// The buffer that an upload is decoded into. Bytes.
pub const DECODED_BUFFER_LEN_BYTES: usize = 128 * 1024;
/// References of one path in an export: the largest environments have some 10,000.
pub const EXPORT_REFERENCES_MAX: usize = 64 * 1024;
/// A signature in an export, which nobody looks at, is no longer than this. Bytes.
pub const EXPORT_SIGNATURE_LEN_MAX: usize = 64 * 1024;
/// An import answers with the paths that it has taken, as far as they fit into this. Bytes.
pub const IMPORT_REPORT_LEN_MAX: usize = 64 * 1024;
/// How much room is made for an upload at once whose length nobody knows, or on a file system that cannot promise any. Bytes.
pub const UPLOAD_ROOM_LEN_BYTES: u64 = 8 * 1024 * 1024;
/// A realisation or a debug link longer than this is none. Bytes.
pub const UPLOADED_JSON_LEN_MAX: usize = 1024 * 1024;
/// Signatures of one path; each may have to be verified, and whoever uploads can add some. Three is many.
pub const SIGNATURES_MAX: usize = 256;
/// Texts that are being uploaded (narinfos, listings, logs and the like) are kept in memory until they are whole, all together; those
/// beyond are answered 503, or 413 when some of them was read already. Bytes.
pub const UPLOADED_TEXTS_LEN_MAX: usize = 256 * 1024 * 1024;
/// Files in `nar/` whose hashes are remembered, or what is wrong with them, so that a narinfo that names one does not have to wait until
/// it was read again. About 300 bytes each.
pub const NAR_FACTS_MAX: usize = 64 * 1024;
/// How often a file is looked at that is another one by the time it is read.
pub const NAR_TRIES_MAX: usize = 5;
/// Names among which the locks are divided that are held while one is compared with what is there and replaced.
pub const UPLOAD_LOCKS: usize = 64;

const _: () = assert!(
    LOG_LEN_MAX < UPLOADED_TEXTS_LEN_MAX as u64 && CACHED_NARINFO_LEN_MAX < UPLOADED_TEXTS_LEN_MAX,
    "the longest text finds room"
);
const _: () = assert!(DECODED_BUFFER_LEN_BYTES <= VERIFIED_AT_ONCE_LEN_MAX, "a whole buffer is looked at");

// The server.

/// Questions that wait for a thread of the lookup plane; more are answered 503. Per plane.
pub const PLANE_QUEUE_LEN_MAX: usize = 1024;
/// Threads that ask databases; each has a connection of its own.
pub const LOOKUP_THREADS: usize = 4;
/// Threads that walk directories for NARs; a slow disk keeps them all waiting, and nobody else.
pub const WALK_THREADS: usize = 8;
/// Threads that make listings, read logs and look for debug symbols. A listing of a large tree takes a tenth of a second of one, so these
/// are fewer.
pub const TEXT_THREADS: usize = 4;
/// Threads that answer `/metrics`: however many ask, they share what one has written.
pub const METRICS_THREADS: usize = 1;
/// How far all of these stand back behind the workers: a worker that shares a core with a walk runs at once when the walk has found
/// something, and not after the walk's slice of time, which is 3 ms.
pub const WALK_NICE: i32 = 10;
/// Threads that compress NARs on their way to a client; each keeps a core busy.
pub const ENCODE_THREADS: usize = 4;
/// How far these stand back: as far as walks do, for the same reason.
pub const ENCODE_NICE: i32 = WALK_NICE;
/// NARs of a live store that are compressed on their way at once; more are answered 503. Each takes 1.4 MiB for zstd's state and
/// some 0.5 MiB for the chunk that its client has not taken: 128 MiB, however slow the clients are. And a descriptor or two.
pub const ENCODERS_MAX: usize = 64;
/// Compression level of these. Nothing is kept, so each download pays again; level 3 would take 1.7 times as long and 3.7 MiB for a
/// tenth less to send.
pub const ENCODE_LEVEL: i32 = 1;
/// A chunk of such a NAR has at least this length, unless it is the last one or much was read for little. Bytes.
pub const ENCODED_CHUNK_LEN_BYTES: usize = 192 * 1024;
/// Most that is read for a chunk: about 10 ms of a thread, before somebody else has a turn. Bytes.
pub const ENCODE_INPUT_LEN_MAX: u64 = 4 * 1024 * 1024;
/// Memory for what is known of store paths: some 110,000 with a narinfo of 900 bytes (five references, two signatures), at
/// about 1,200 bytes each. Who has more, and is asked for all of it, pays for the database again. Per worker. Bytes.
pub const KNOWN_PATHS_LEN_MAX: u64 = 128 * 1024 * 1024;
/// Memory for layouts of NARs that were sent. Per worker. Bytes.
pub const LAYOUTS_LEN_MAX: u64 = 64 * 1024 * 1024;
/// Memory for all layouts, those that are walked or being sent included: no walk begins above it, and the answer is 503. A walk
/// that has begun goes on, and takes 250 to 300 bytes an entry and the contents that it keeps. Per worker. Bytes.
pub const LAYOUTS_ALIVE_LEN_MAX: usize = 512 * 1024 * 1024;
/// How long a damaged path is absent before its tree is looked at again.
pub const DAMAGE_REMEMBERED: Duration = Duration::from_secs(10);
/// Damaged paths that are remembered. Per worker.
pub const DAMAGED_PATHS_MAX: usize = 4096;
/// Listings and decompressed logs that are being sent, all together; more are answered 503. Bytes.
pub const MADE_LEN_MAX: usize = 256 * 1024 * 1024;
/// Pages that were made and are being sent, all together; more are answered 503. Bytes.
pub const PAGES_LEN_MAX: usize = 64 * 1024 * 1024;
/// Searches, and looks into long NARs, at once: each can keep a thread of the plane for texts busy for seconds, and two are left
/// to logs, listings and other pages. More are answered 503.
pub const LONG_LOOKS_MAX: usize = TEXT_THREADS / 2;
/// Requests of people who look around that wait for a thread of the plane for texts, or have one; more are answered 503, so that logs,
/// listings and debug symbols never wait behind more than these.
pub const BROWSING_JOBS_MAX: usize = 32;
/// A name of which less than this was typed is not searched for. Bytes.
pub const SEARCH_NAME_LEN_MIN: usize = 2;
/// Digits of a hash part that are taken for its beginning: of a million paths one begins with these, and with three digits thirty, among
/// which the names would be lost.
pub const SEARCH_DIGITS_MIN: usize = 4;
/// Paths on the page of a search.
pub const SEARCH_FOUND_MAX: usize = 200;
/// How long a search may take in all sources together, which share it; then it says how far it has come. A live store of a million paths
/// takes about one second.
pub const SEARCH_TIME_MAX: Duration = Duration::from_secs(4);
/// Paths that are looked at in the database with one statement: some milliseconds, before a search looks whether it is still wanted.
pub const SEARCH_BATCH: u32 = 4096;
/// Entries of a directory on the page that lists it.
pub const BROWSED_ENTRIES_MAX: usize = 4096;
/// Longest file that is taken out of a compressed NAR for a browser; for a longer one the NAR has to be fetched. Bytes.
pub const BROWSED_FILE_LEN_MAX: u64 = 16 * 1024 * 1024;
/// A NAR that is not longer than this, unpacked, is looked into without leave: it takes a tenth of a second or two. Bytes.
pub const BROWSED_AT_ONCE_LEN_MAX: u64 = 32 * 1024 * 1024;
/// How long one may look into a path: a directory can have millions of entries, and a compressed NAR has to be decoded from its beginning.
pub const BROWSED_TIME_MAX: Duration = Duration::from_secs(5);
/// What is read of a file to guess what it is. Bytes.
pub const BROWSED_START_LEN: usize = 1024;
/// Narinfos of a cache directory that can be found by their names. Each takes some 350 bytes of memory.
pub const INDEX_ENTRIES_MAX: usize = 1 << 18;
/// Memory for what these say. For each directory. Bytes.
pub const INDEX_LEN_MAX: usize = 96 * 1024 * 1024;
/// How long who finds such an index in use sleeps before looking again, as long as there is time.
pub const INDEX_BUSY_POLL: Duration = Duration::from_millis(10);
/// How long the page of a path may look for what refers to it in all cache directories together, which share it.
pub const REFERRERS_TIME_MAX: Duration = Duration::from_secs(1);
/// References on the page of a path.
pub const REFERENCES_SHOWN_MAX: usize = 500;
/// Referrers on the page of a path.
pub const REFERRERS_SHOWN_MAX: usize = 200;
/// Referrers that are counted: some 10 ms of the database. There are paths on which nearly all others depend.
pub const REFERRERS_COUNTED_MAX: u64 = 100_000;
/// Paths of a closure that are added up for the page of a path: some 50 ms of the database.
pub const CLOSURE_PATHS_MAX: u64 = 10_000;
/// A `nix-cache-info` longer than this is none. Bytes.
pub const CACHE_INFO_LEN_MAX: u64 = 64 * 1024;
/// A NAR whose files are shorter than this on average costs most to make again, and gains most from being kept as it is: shorter
/// files are copied, longer ones sent without. Bytes.
pub const SMALL_FILES_MEAN_LEN: u64 = SENDFILE_LEN_MIN;
/// How long to wait before opening a NAR cache is tried again.
pub const CACHE_OPEN_INTERVAL: Duration = Duration::from_secs(5);
/// NARs and exports that are uploaded at once, divided among the workers. Each takes a piece or two of its body, a descriptor or two,
/// and what it needs to be decoded: 9 MiB for xz as Nix makes it, 8 MiB for zstd, 128 MiB if somebody wants to cost memory, so 4 GiB
/// in the worst case. One Nix sends 25 at once.
pub const UPLOADS_MAX: usize = 32;
/// A worker has at least so many of these places, however many workers there are.
pub const UPLOADS_PER_WORKER_MIN: usize = 2;
/// Everything else that is uploaded at once, divided among the workers: short texts, which never wait for a NAR.
pub const SHORT_UPLOADS_MAX: usize = 256;
/// A worker has at least so many of these places.
pub const SHORT_UPLOADS_PER_WORKER_MIN: usize = 8;
/// Uploads that wait for a place; more are answered 503. Nothing of them is read meanwhile. Nix before 2.33 cannot send a body a
/// second time, and sends a short one without asking, so it is better to let it wait than to send it away. Per worker and kind.
pub const UPLOADS_WAITING_MAX: usize = 128;
/// Threads that look into what is uploaded, and bring it to the disk; most of the time they wait for that.
pub const UPLOAD_THREADS: usize = 16;
/// How far these stand back: as far as walks do, for the same reason.
pub const UPLOAD_NICE: i32 = WALK_NICE;
/// How often a database that is busy is asked about a reference, [`DATABASE_BUSY_TIMEOUT_MS`] each time.
pub const REFERENCE_TRIES_MAX: usize = 10;
/// Longest reason that is given for a refusal: Nix shows no body of 1 KiB or more. Bytes.
pub const REASON_LEN_MAX: usize = 1000;
/// Wrong tokens that a client may send in a window before it is told to come later; it may be several people behind one address, and a
/// Nix with a revoked token sends 25 at once. Per worker.
pub const WRONG_TOKENS_MAX: u32 = 100;
/// How long wrong tokens are remembered: all of them until the window ends.
pub const FAILURE_WINDOW: Duration = Duration::from_mins(1);
/// Clients whose wrong tokens are counted one by one in a window; those of all others are counted together. Some 200 KiB. Per worker.
pub const FAILING_CLIENTS_MAX: usize = 4096;
/// Refusals of tokens, wrong or for something else, that are logged in a window; the rest is counted. Per worker.
pub const REFUSALS_LOGGED_MAX: u32 = 10;
/// Lines that one place in the program logs in a [`LOG_WINDOW`], whatever it says in them; the rest is counted. There are some 80 such
/// places, so a flood of requests that all meet a fault writes less than 1 MiB a minute, and not as much as there are requests.
pub const LOGGED_ALIKE_MAX: u32 = 60;
/// How long that is.
pub const LOG_WINDOW: Duration = Duration::from_mins(1);
/// Longest value that goes to the journal; the rest is cut off. Bytes.
pub const JOURNAL_FIELD_LEN_MAX: usize = 8 * 1024;
/// A line that has more fields than this goes to the journal without the rest of them: all of it has to fit into a datagram, of which a
/// socket takes 200 KiB. Bytes.
pub const JOURNAL_FIELDS_LEN_MAX: usize = 64 * 1024;
/// Lines of the log that wait to be written; what does not fit is counted and left out. Half a second of 8000 requests a second in the
/// access log, or 40 ms of 100 000.
pub const LOG_QUEUE_LINES_MAX: usize = 4096;
/// What these lines take. So many of the longest of the access log, or 2 KiB each. Bytes.
pub const LOG_QUEUE_LEN_BYTES_MAX: usize = 10 * 1024 * 1024;
/// Lines of the log are written together that come within this time, so that no worker has to wake their thread more often.
pub const LOG_GATHER: Duration = Duration::from_millis(10);
/// How often it is said how many lines are missing, for as long as there are always others to write.
pub const LOG_MISSING_INTERVAL: Duration = Duration::from_secs(1);
/// Longest target, and longest user agent, in the access log; the rest is cut off. Bytes.
pub const ACCESS_TEXT_LEN_MAX: usize = 1024;
/// How long the process waits at its end for the log to be written.
pub const LOG_FLUSH_WAIT: Duration = Duration::from_secs(2);
/// How long the process waits at its end for the workers to end answers that take too long.
pub const BREAK_OFF_WAIT: Duration = Duration::from_secs(1);
/// What is said last, before the process ends, is written in pieces of what a pipe takes at once (PIPE_BUF), so that nobody who does not
/// read it keeps the process from ending. Bytes.
pub const LAST_WORDS_PIECE_LEN: usize = 4096;
/// How long is waited for room to say that.
pub const LAST_WORDS_WAIT: Duration = Duration::from_secs(1);
/// Connections that wait to be accepted, per listener; the kernel caps it at `net.core.somaxconn` (4096 as well since
/// Linux 5.4). A closure download opens 25 connections at once per client.
pub const LISTEN_BACKLOG: i32 = 4096;

// The background plane.

/// What is read, hashed, encoded and written at once: a millisecond or so of work between two looks at who else wants to go on, and
/// at the highest levels of zstd a hundred. Bytes.
pub const BACKGROUND_PIECE_LEN_BYTES: usize = 256 * 1024;
/// Memory for direct I/O that is registered with the kernel; more is allocated as it is needed. Two fills and a scrub read and
/// write with two pieces each. Bytes.
pub const BACKGROUND_MEMORY_LEN_BYTES: usize = 4 * 1024 * 1024;
/// How long the end of the background plane is waited for: it ends between two pieces of work, and whatever it leaves is like after
/// a crash.
pub const BACKGROUND_END_MAX: Duration = Duration::from_secs(5);
/// How often is looked whether it has ended.
pub const BACKGROUND_END_POLL: Duration = Duration::from_millis(2);
/// Operations that can be queued between two calls of the kernel; there are few at a time.
pub const BACKGROUND_RING_ENTRIES: usize = 64;
/// Threads beside the executor, for what waits: a walk for each fill, two for comparing trees, which wait for the executor to take
/// what they find, and one that is always free for the database and the folder.
pub const BACKGROUND_THREADS: usize = FILLS_MAX + 3;
/// NARs that are encoded at the same time: one waits for its disk while the other is compressed.
pub const FILLS_MAX: usize = 2;
/// How often is looked whether workers have put in hints and doubts. A worker that had to wake the plane would have to take a lock
/// that the plane may hold while it is kept from its core.
pub const INBOX_INTERVAL: Duration = Duration::from_millis(100);
/// Hints that wait to be looked at; of more in an [`INBOX_INTERVAL`] the rest is dropped.
pub const HINTS_LEN_MAX: usize = 1024;
/// Cached files that wait to be looked at because they could not be sent; more are dropped.
pub const DOUBTS_LEN_MAX: usize = 64;
/// NARs that wait to be encoded; of more the hints are dropped, and whoever asks again gives new ones.
pub const FILL_QUEUE_LEN_MAX: usize = 1024;
/// NARs of which is remembered that they were asked for once: twice as many at most. 2 MiB.
pub const ASKED_ONCE_MAX: usize = 32 * 1024;
/// How often is looked whether the database has new paths, when all of them are encoded.
pub const FOLLOW_INTERVAL: Duration = Duration::from_secs(5);
/// How often all valid paths are gone through again, for those that could not be encoded, or whose files were put aside.
pub const FOLLOW_AGAIN_INTERVAL: Duration = Duration::from_hours(1);
/// Paths that are taken from the database at once to be encoded.
pub const FOLLOW_BATCH: u32 = 256;
/// How often is looked whether the roots of damaged paths are others than before: until then a mended path is absent.
pub const MENDED_LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How often is looked whether the NAR cache can be written, and has room.
pub const HOUSEKEEPING_INTERVAL: Duration = Duration::from_mins(1);
/// How long to wait before a cache that failed is tried again: doubled each time.
pub const STUCK_RETRY_MIN: Duration = Duration::from_secs(10);
/// Longest such wait.
pub const STUCK_RETRY_MAX: Duration = Duration::from_mins(5);
/// How much room is made at once for a NAR that is being encoded. Bytes.
pub const FILL_ROOM_LEN_BYTES: u64 = 64 * 1024 * 1024;
/// Evictions go on until this part of the cache is free, so that not every fill has to look at all records.
pub const EVICTION_SLACK: u64 = 64;
/// What the cache may take of its file system unless it is told: a part of this many.
pub const LEN_SHARE_DEFAULT: u64 = 4;
/// What stays free on the file system unless it is told: a part of this many.
pub const FREE_SHARE_DEFAULT: u64 = 20;
/// How long a path is left alone that could not be encoded, or did not have to be.
pub const LEFT_ALONE_FOR: Duration = Duration::from_mins(10);
/// Paths of which that is remembered.
pub const LEFT_ALONE_MAX: usize = 4096;
/// Store paths that a scrub asks the database for at once.
pub const SCRUB_BATCH: u32 = 256;
/// Between the beginnings of two passes of the slow scrub.
pub const SCRUB_INTERVAL: Duration = Duration::from_hours(24);
/// A scrub that is run by hand goes on with one that began no longer ago than this: what that has read may have changed since.
pub const SCRUB_RESUMED_MAX: Duration = Duration::from_hours(24);
/// How often it is written down how far a scrub has come: what was looked at since is looked at again after a kill.
pub const SCRUB_KEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Names of damaged paths, damaged files and of what cannot be read, that a pass remembers. Of each; all are counted.
pub const SCRUB_FINDINGS_MAX: usize = 256;
/// What is written down of a pass is shorter than this, or it is none of ours. Bytes.
pub const SCRUB_STATE_LEN_MAX: usize = 4 * 1024 * 1024;
/// A cached frame that needs a longer window than this power of two was not made here: level 19 takes 8 MiB.
pub const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// A tree whose layout takes more is not encoded: a million entries or so. Per fill. Bytes.
pub const BACKGROUND_LAYOUT_LEN_MAX: usize = 256 * 1024 * 1024;
/// Cached files that were not used for less time than this are equally recent; from there on classes of idleness double. Seconds.
pub const EVICTION_CLASS_S: u64 = 3600;
/// A file of at most this length is read at once beside the page cache, and nobody else goes on meanwhile: it takes a disk as
/// long as a piece takes a core, and by way of the executor four times as much of the core. Bytes.
pub const WAITED_FOR_LEN_MAX: u64 = 64 * 1024;
/// A file of at most this length is read through the page cache where nobody can tell whether it is there. Bytes.
pub const UNKNOWN_RESIDENCY_LEN_MAX: u64 = 64 * 1024;

// Pushing.

/// Store paths that are uploaded at once, at least, unless it is said otherwise: while some are compressed others wait for the network.
pub const PUSH_JOBS_DEFAULT_MIN: usize = 4;
/// Most that may be asked for. Each takes a thread, a connection and the state of a compressor: 4 MiB at level 3, 90 at level 19.
pub const PUSH_JOBS_MAX: usize = 64;
/// Connections over which is asked what the cache lacks: fewer than the 25 of a Nix client, and enough to hide a distance.
pub const PUSH_QUERIES_MAX: usize = 16;
/// A NAR that is no longer than this once it is compressed waits in memory for its upload, a longer one in a temporary file. Per job.
/// Bytes.
pub const PUSH_MEMORY_LEN_MAX: usize = 1024 * 1024;
/// How often one request is tried.
pub const PUSH_TRIES_MAX: u32 = 6;
/// Wait before the second try; doubled each time, and shortened at random by up to a half. All of them together are 15 seconds at most: a
/// server that is started again is back by then.
pub const PUSH_BACKOFF_MIN: Duration = Duration::from_millis(500);
/// Longest such wait, and longest between two rounds of a watch.
pub const PUSH_BACKOFF_MAX: Duration = Duration::from_mins(5);
/// A server that wants to be left alone for longer than this is asked again after this.
pub const PUSH_RETRY_AFTER_MAX: Duration = Duration::from_mins(2);
/// So many requests in a row that failed however often they were tried, and the rest is not tried any more.
pub const PUSH_FAILURES_IN_A_ROW_MAX: u32 = 16;
/// How long is waited for a connection.
pub const PUSH_CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A server that takes nothing and says nothing for this long is gone. It may look at a large upload for a while before it answers.
pub const PUSH_STALL_TIMEOUT: Duration = Duration::from_mins(5);
/// A server that is only asked what it has, and says nothing for this long, is gone.
pub const PUSH_ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a server has to say that it wants the body before it is sent anyway: as long as curl waits.
pub const PUSH_EXPECT_TIMEOUT: Duration = Duration::from_secs(1);
/// For a body from this length on the server is asked whether it wants it: one that refuses would not read it, and its answer could be lost
/// with the connection. A shorter one fits into the buffers of a socket. Bytes.
pub const PUSH_EXPECT_LEN_MIN: u64 = 64 * 1024;
/// What a server says for a refusal is looked at no further than this. Bytes.
pub const PUSH_ANSWER_LEN_MAX: u64 = 4 * 1024;
/// How often is looked whether a signal has come, and what there is to show.
pub const PUSH_TICK: Duration = Duration::from_millis(100);
/// Links that are followed from the name of a store path; as many as the kernel follows.
pub const PUSH_LINKS_MAX: usize = 40;
/// Names of store paths that were uploaded, or could not be, that are listed at the end. Of each; all are counted.
pub const PUSH_NAMES_MAX: usize = 64 * 1024;
/// A file with a token, or one of netrc, is no longer than this. Bytes.
pub const CREDENTIALS_FILE_LEN_MAX: u64 = 1024 * 1024;
/// Store paths that are taken from the database at once.
pub const PUSH_BATCH: u32 = 1024;
/// How often a watch looks whether the database has changed.
pub const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// First wait of a watch after something could not be uploaded; doubled each time, up to [`PUSH_BACKOFF_MAX`].
pub const WATCH_BACKOFF_MIN: Duration = Duration::from_secs(5);
/// Store paths that could not be uploaded and that a watch tries again; of more the rest is left to `--all`.
pub const WATCH_PENDING_MAX: usize = 4096;
/// Store paths that a watch remembers to be in the cache, so that not every new path asks for its whole closure again. 8 MiB.
pub const WATCH_KNOWN_MAX: usize = 128 * 1024;

// Watching.

/// Labels of one sample of `/metrics`; ours have three at most.
pub const EXPOSITION_LABELS_MAX: usize = 64;
/// What `/metrics` of a node says is read no further than this: a hundred times what ours says. Bytes.
pub const EXPOSITION_LEN_MAX: u64 = 8 * 1024 * 1024;
/// How often `narwire top` asks unless told otherwise. Seconds.
pub const TOP_INTERVAL_DEFAULT_S: f64 = 2.0;
/// Whoever asks more often sees noise. Seconds.
pub const TOP_INTERVAL_MIN_S: f64 = 0.1;
/// Whoever asks less often has mistaken the unit. Seconds.
pub const TOP_INTERVAL_MAX_S: f64 = 3600.0;
/// A node that says nothing for this long is shown as one that does not answer.
pub const TOP_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often is looked whether a key was pressed, or a node has answered.
pub const TOP_TICK: Duration = Duration::from_millis(50);
/// How long `narwire top` may take to leave the terminal as it was, once a signal has come.
pub const TOP_END_MAX: Duration = Duration::from_secs(1);
/// Nodes that are watched at once: a thread and a connection each.
pub const TOP_NODES_MAX: usize = 64;
/// Throughputs that are remembered of each node: as many as the widest terminal has columns.
pub const TOP_HISTORY_MAX: usize = 512;

// Configuration.

/// Where nix-serve listens, and so every client's configuration expects it.
pub const PORT_DEFAULT: u16 = 5000;
/// `Priority` of nix-serve and harmonia: asked before cache.nixos.org, which says 40.
pub const PRIORITY_DEFAULT: u32 = 30;
/// Nix reads the priority as a C `int`.
pub const PRIORITY_MAX: u32 = i32::MAX.cast_unsigned();
/// More network threads than the largest machine has cores; a typing error would otherwise be a thread each.
pub const WORKERS_MAX: usize = 1024;
/// zstd's own default.
pub const CACHE_LEVEL_DEFAULT: i32 = 3;
/// zstd calls those above ultra: whoever unpacks them needs several times the memory.
pub const CACHE_LEVEL_MAX: i32 = 19;
/// A NAR cache that may hold less than this holds nothing: whoever asks for it has forgotten the unit. Bytes.
pub const CACHE_LEN_MIN: u64 = 64 * 1024;
/// What is read to look for damage unless told otherwise: a terabyte in a day and a half, and no disk notices. Bytes a second.
pub const SCRUB_RATE_DEFAULT: u64 = 8 * 1024 * 1024;
/// Longest file and longest NAR that are taken unless told otherwise: several times the largest that people build. Bytes.
pub const UPLOAD_LEN_MAX_DEFAULT: u64 = 32 * 1024 * 1024 * 1024;
/// Whoever takes no longer uploads than this takes none, and has forgotten the unit. Bytes.
pub const UPLOAD_LEN_MAX_MIN: u64 = 64 * 1024;
/// How long a drain lasts at most unless told otherwise: below the 90 s after which systemd kills. Seconds.
pub const DRAIN_TIMEOUT_DEFAULT_S: u64 = 60;
