//! How many instructions the pure parts take, and a connection without a kernel, counted by callgrind: the same number in every run, on a
//! busy machine as on a quiet one. `benches/check` compares the counts with those that are committed, and is part of the test command.
//!
//! What runs before the counted call (making its input) and after it (dropping its result) is not counted.

mod input;

use std::io;
use std::process::{Command, Stdio};

fn main() {
    let is_missing = |program: &&str| {
        let spawned =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        matches!(spawned, Err(error) if error.kind() == io::ErrorKind::NotFound)
    };
    // The runner starts this program again, below valgrind and with no environment.
    let is_below_valgrind = std::env::args().any(|argument| argument == "--gungraun-run");
    match ["gungraun-runner", "valgrind"].iter().find(|program| !is_below_valgrind && is_missing(program)) {
        Some(missing) => {
            println!("instructions: skipped, there is no {missing}; benches/check installs and uses it");
        }
        None => counted::run(),
    }
}

mod counted {
    #![allow(unused_qualifications, reason = "macros write qualified names")]

    use std::fs::File;
    use std::hint::black_box;
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    use std::time::Instant;

    use bytes::Bytes;
    use gungraun::{Callgrind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
    use narwire::codec::base32;
    use narwire::codec::http::body::BodyDecoder;
    use narwire::codec::http::field::{ByteRange, ETag, accepts_coding};
    use narwire::codec::http::request::{self, BodyLength, Parsed, Request};
    use narwire::codec::http::response::{
        CacheControl, Fields, HEAD_START_LEN_MAX, Persistence, write_head_start,
    };
    use narwire::codec::http::route::Route;
    use narwire::codec::http::{Status, Version, date};
    use narwire::codec::nar::decode::{Decoder, Event};
    use narwire::codec::nar::layout::{Cursor, Layout, Lookup};
    use narwire::codec::narinfo::NarInfo;
    use narwire::ring::Traffic;
    use narwire::ring::connection::{Connection, Context};
    use narwire::ring::descriptor::Descriptor;
    use narwire::ring::ledger::{Ledger, Topic};
    use narwire::ring::op::{ConnectionId, Op, OpenedFile, Outcome, Purpose, Submission};
    use narwire::ring::pool::Pool;
    use narwire::ring::service::{Answer, Called, Caller, Reply, ReplyBody, Service};
    use rustix::io::Errno;

    use super::input::{self, Random, Tree};

    /// Runs all of them, or the one that the runner names.
    pub fn run() {
        main();
    }

    /// Calls of what takes few instructions: what only the first call does, as asking what the CPU can, hardly counts.
    const CALLS: usize = 1000;
    /// Files of the generated tree.
    const FILES: usize = 2_000;
    /// What a worker packs into one buffer. Bytes.
    const SLICE_LEN_BYTES: u64 = 256 * 1024;

    fn call_often<R>(mut call: impl FnMut() -> R) {
        for _ in 0..CALLS {
            black_box(call());
        }
    }

    #[library_benchmark]
    #[bench::nix_2_8(input::head("nix-2.8"))]
    #[bench::nix_2_26(input::head("nix-2.26"))]
    #[bench::nix_2_34_nar(input::head("nix-2.34-nar"))]
    #[bench::curl(input::head("curl"))]
    #[bench::browser(input::head("browser"))]
    #[bench::pipelined(input::head("nix-2.26").repeat(8).leak())]
    #[bench::many_fields(input::head_of_many_fields().leak())]
    #[bench::long_target(input::head_of_long_target().leak())]
    #[bench::long_value(input::head_of_long_value().leak())]
    fn head(head: &[u8]) {
        call_often(|| assert!(matches!(request::parse(black_box(head), 0), Ok(Parsed::Complete { .. }))));
    }

    #[library_benchmark]
    #[bench::browser(input::head("browser"))]
    fn head_dripping(head: &[u8]) {
        let mut scanned_len = 0;
        for len in 1..head.len() {
            let parsed = request::parse(black_box(&head[..len]), scanned_len);
            let Ok(Parsed::Partial { scanned_len: len }) = parsed else { panic!("not partial: {parsed:?}") };
            scanned_len = len;
        }
    }

    #[library_benchmark]
    #[bench::narinfo(b"/7rjj86a15146cq1d3qy068lml7n7ykzm.narinfo")]
    #[bench::nar(input::NAR_TARGET)]
    #[bench::listing(b"/7rjj86a15146cq1d3qy068lml7n7ykzm.ls")]
    #[bench::log(b"/log/7rjj86a15146cq1d3qy068lml7n7ykzm-program-1.27.3.drv")]
    #[bench::absent(b"/favicon.ico")]
    fn route(target: &[u8]) {
        call_often(|| Route::parse(black_box(target)));
    }

    #[library_benchmark]
    fn base32_encode() {
        call_often(|| base32::encode_digest(black_box(&[0xa5; 32])));
    }

    #[library_benchmark]
    fn base32_decode() {
        call_often(|| base32::decode_digest(black_box(input::NIX32.as_bytes())));
    }

    #[library_benchmark]
    #[bench::twelve_references(input::narinfo())]
    fn narinfo_write(narinfo: NarInfo) -> NarInfo {
        let store_dir = input::store_dir();
        let mut text = String::with_capacity(2048);
        call_often(|| {
            text.clear();
            black_box(&narinfo).write(&store_dir, &mut text);
        });
        narinfo
    }

    #[library_benchmark]
    #[bench::twelve_references(input::narinfo_text(&input::narinfo()).leak())]
    fn narinfo_parse(text: &str) {
        let store_dir = input::store_dir();
        call_often(|| NarInfo::parse(black_box(text), &store_dir));
    }

    #[library_benchmark]
    #[bench::twelve_references(input::narinfo())]
    fn fingerprint(narinfo: NarInfo) -> NarInfo {
        let store_dir = input::store_dir();
        call_often(|| black_box(&narinfo).info.fingerprint(&store_dir));
        narinfo
    }

    #[library_benchmark]
    #[bench::small_files(Tree::of_small_files(FILES))]
    fn layout_build(tree: Tree) -> (Layout, Tree) {
        (black_box(&tree).layout(), tree)
    }

    #[library_benchmark]
    #[bench::small_files(Tree::of_small_files(FILES).layout())]
    fn layout_iterate(layout: Layout) -> (u64, Layout) {
        let len_bytes = layout.known_len_bytes();
        (black_box(&layout).pieces(0..len_bytes).map(|piece| piece.len_bytes()).sum(), layout)
    }

    #[library_benchmark]
    #[bench::small_files(Tree::of_small_files(FILES).layout())]
    fn layout_slice(layout: Layout) -> (u64, Layout) {
        let start = layout.known_len_bytes() / 3;
        let pieces = black_box(&layout).pieces(start..start + SLICE_LEN_BYTES);
        (pieces.map(|piece| piece.len_bytes()).sum(), layout)
    }

    #[library_benchmark]
    #[bench::small_files(Tree::of_small_files(FILES).layout())]
    fn layout_random_pieces(layout: Layout) -> (u64, Layout) {
        let mut random = Random(1);
        let piece_len_bytes = |_| {
            let offset = random.next() % layout.known_len_bytes();
            match black_box(&layout).piece_at(offset, &mut Cursor::default()) {
                Lookup::Piece(piece) => piece.len_bytes(),
                Lookup::NotYet | Lookup::End => 0,
            }
        };
        ((0..1000).map(piece_len_bytes).sum(), layout)
    }

    #[library_benchmark]
    #[bench::small_files(input::nar(&Tree::of_small_files(FILES).layout()))]
    fn nar_decode(nar: Vec<u8>) -> (usize, Vec<u8>) {
        let mut decoder = Decoder::new();
        let mut files = 0;
        for chunk in black_box(&nar).chunks(16 * 1024) {
            let pushed =
                decoder.push(chunk, |event| files += usize::from(matches!(event, Event::Regular { .. })));
            pushed.expect("a NAR");
        }
        (files, nar)
    }

    #[library_benchmark]
    #[bench::of_16_bytes(input::chunked_body(16))]
    #[bench::of_1_kib(input::chunked_body(1024))]
    fn chunked_decode(body: Vec<u8>) -> (usize, Vec<u8>) {
        let mut decoder = BodyDecoder::new(BodyLength::Chunked);
        let (mut rest, mut data_len) = (black_box(body.as_slice()), 0);
        while !decoder.is_finished() {
            let decoded = decoder.decode(rest).expect("a chunked body");
            data_len += decoded.data.len();
            rest = &rest[decoded.consumed_len..];
        }
        (data_len, body)
    }

    #[library_benchmark]
    #[bench::from(b"bytes=1048576-")]
    #[bench::between(b"bytes=1048576-2097151")]
    #[bench::suffix(b"bytes=-1024")]
    fn range(value: &[u8]) {
        call_often(|| ByteRange::parse(black_box(value)));
    }

    #[library_benchmark]
    #[bench::one(br#""0c5b8vw40dy178xlpddw65q9gf1h2186jcc3p4swinwggbllv8mk""#)]
    #[bench::third_of_three(br#""a", W/"b", "0c5b8vw40dy178xlpddw65q9gf1h2186jcc3p4swinwggbllv8mk""#)]
    fn if_none_match(value: &[u8]) {
        let etag = ETag::new(input::NIX32.as_bytes()).expect("an entity tag");
        call_often(|| assert!(black_box(etag).is_listed_in(black_box(value))));
    }

    #[library_benchmark]
    fn etag_new() {
        call_often(|| ETag::new(black_box(input::NIX32.as_bytes())));
    }

    #[library_benchmark]
    #[bench::nix_2_26(b"zstd, br, gzip, deflate, bzip2, xz")]
    fn accept_encoding(value: &[u8]) {
        call_often(|| accepts_coding(Some(black_box(value)), "xz"));
    }

    #[library_benchmark]
    fn response_head_start() {
        let mut out = Vec::with_capacity(HEAD_START_LEN_MAX);
        let date = date::format_imf_fixdate(1_795_000_000);
        call_often(|| {
            out.clear();
            let persistence = Persistence::new(black_box(Version::Http11), true);
            write_head_start(&mut out, black_box(Status::Ok), black_box(&date), persistence);
        });
    }

    /// Answers everything with the same narinfo, as what a worker remembers of a path is answered.
    struct Kept {
        text: Arc<Vec<u8>>,
        fields_len: usize,
    }

    impl Kept {
        fn new() -> Self {
            let text = input::narinfo_text(&input::narinfo());
            let fields = Fields::new().content_type("text/x-nix-narinfo").content_length(text.len() as u64);
            let fields = fields.finish();
            Self { text: Arc::new([&fields, text.as_bytes()].concat()), fields_len: fields.len() }
        }
    }

    impl Service for Kept {
        fn call(&mut self, _: &Caller<'_>, _: &Request<'_>) -> Called {
            let text: Arc<dyn AsRef<[u8]> + Send + Sync> = self.text.clone();
            let body = ReplyBody::Rendered { text, fields_len: self.fields_len };
            let answer = Answer::Reply(Reply { status: Status::Ok, fields: Bytes::new(), body });
            Called { topic: Topic(1), witness: None, answer }
        }

        fn opened(&mut self, _: ConnectionId, _: Result<OpenedFile, Errno>) -> Answer {
            unreachable!("nothing is opened")
        }

        fn body(&mut self, _: ConnectionId, _: Bytes) {
            unreachable!("no body is asked for")
        }

        fn received(&mut self, _: ConnectionId) -> Answer {
            unreachable!("no body is asked for")
        }

        fn unwritten(&mut self, _: ConnectionId, _: Errno) -> Answer {
            unreachable!("no body is asked for")
        }

        fn gone(&mut self, _: ConnectionId) {}
    }

    // From a request that was received to its answer being with the kernel, and what is counted of it: each in a turn of its own.
    #[library_benchmark]
    #[bench::one(input::head("nix-2.26"))]
    #[bench::pipelined(input::head("nix-2.26").repeat(8).leak())]
    fn answer_from_memory(head: &[u8]) {
        let id = ConnectionId { slot: 0, generation: 1 };
        let socket = Descriptor::from(OwnedFd::from(File::open("/dev/null").expect("it is there")));
        let now = Instant::now();
        let (mut service, mut pool, mut submissions) = (Kept::new(), Pool::default(), Vec::new());
        let mut ledger = Ledger::new(Arc::default(), now);
        let date = date::format_imf_fixdate(1_795_000_000);
        let mut connection = None;
        for _ in 0..=CALLS {
            let mut context = Context {
                service: &mut service,
                submissions: &mut submissions,
                pool: &mut pool,
                ledger: &mut ledger,
                date: &date,
                now_s: 0,
                sendfile_len_max: 0,
            };
            let connection =
                connection.get_or_insert_with(|| Connection::new(id, socket.clone(), &mut context));
            let outcome = Outcome::Received { result: Ok(black_box(head)), armed: true };
            connection.complete(Purpose::Receive, outcome, &mut context);
            let Some(Submission { op: Op::Send { buffer, range, .. }, .. }) = context.submissions.pop()
            else {
                panic!("it is answered")
            };
            let outcome = Outcome::Sent { result: Ok(range.len()), buffer, range };
            connection.complete(Purpose::Send, outcome, &mut context);
            let traffic = Traffic { submissions: 1, completions: 2, has_overflowed: false };
            ledger.turn(black_box(now), now, traffic);
        }
    }

    #[library_benchmark]
    fn response_fields() {
        let etag = ETag::new(input::NIX32.as_bytes()).expect("an entity tag");
        call_often(|| {
            Fields::new()
                .content_type("application/x-nix-nar")
                .content_length(black_box(1_048_576))
                .etag(&etag)
                .cache_control(CacheControl::MaxAge(31_536_000))
                .accept_ranges()
                .content_range(&black_box(1_048_576..2_097_152), 12_345_678)
                .finish()
        });
    }

    library_benchmark_group!(
        name = codec,
        benchmarks = [
            head,
            head_dripping,
            route,
            base32_encode,
            base32_decode,
            narinfo_write,
            narinfo_parse,
            fingerprint,
            layout_build,
            layout_iterate,
            layout_slice,
            layout_random_pieces,
            nar_decode,
            chunked_decode,
            range,
            if_none_match,
            etag_new,
            accept_encoding,
            response_head_start,
            response_fields,
            answer_from_memory
        ]
    );

    main!(
        config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"])),
        library_benchmark_groups = codec
    );
}
