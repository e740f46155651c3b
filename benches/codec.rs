//! The pure parts, each on the input it really gets: heads as clients send them, a narinfo with twelve references, the
//! NAR of 20,000 small files. Times are of this machine; what counts is the comparison beside each (httparse for heads,
//! another commit with criterion's `--baseline` for the rest).

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on says where")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use narwire::codec::hash::Sha256;
use narwire::codec::http::request::{self, Parsed};
use narwire::codec::nar::decode::{Decoder, Event};
use narwire::codec::nar::layout::{Builder, Cursor, Layout, Lookup, Piece};
use narwire::codec::narinfo::{Compression, NarInfo, PathInfo};
use narwire::codec::signature::{KeyName, SecretKey};
use narwire::codec::store_path::{StoreDir, StorePath};
use narwire::limits::HEAD_FIELDS_MAX;

/// Files of the benched NAR: many, small, in directories of 100.
const FILES: usize = 20_000;
const FILES_PER_DIRECTORY: usize = 100;
const FILE_LEN_BYTES: u64 = 133;

/// Request heads as they were seen on the wire, by client.
const HEADS: &[(&str, &str)] = &[
    (
        "nix-2.8",
        "GET /7rjj86a15146cq1d3qy068lml7n7ykzm.narinfo HTTP/1.1\r\nHost: cache.example.org:5000\r\n\
         User-Agent: curl/7.88.1 Nix/2.8.0\r\nAccept: */*\r\n\r\n",
    ),
    (
        "nix-2.26",
        "GET /7rjj86a15146cq1d3qy068lml7n7ykzm.narinfo HTTP/1.1\r\nHost: cache.example.org:5000\r\n\
         User-Agent: curl/8.13.0 Nix/2.26.3\r\nAccept: */*\r\n\
         Accept-Encoding: zstd, br, gzip, deflate, bzip2, xz\r\n\r\n",
    ),
    (
        "nix-2.34-nar",
        "GET /nar/0c5b8vw40dy178xlpddw65q9gf1h2186jcc3p4swinwggbllv8mk.nar?hash=7rjj86a15146cq1d3qy068lml7n7ykzm \
         HTTP/1.1\r\nHost: cache.example.org:5000\r\nUser-Agent: curl/8.23.0 Nix/2.34.8\r\nAccept: */*\r\n\
         Accept-Encoding: deflate, gzip, br, zstd\r\n\r\n",
    ),
    (
        "curl",
        "GET /nix-cache-info HTTP/1.1\r\nHost: localhost:5000\r\nUser-Agent: curl/8.14.1\r\nAccept: */*\r\n\r\n",
    ),
    (
        "browser",
        "GET / HTTP/1.1\r\nHost: cache.example.org:5000\r\nConnection: keep-alive\r\n\
         sec-ch-ua: \"Chromium\";v=\"140\", \"Not=A?Brand\";v=\"24\"\r\nsec-ch-ua-mobile: ?0\r\n\
         sec-ch-ua-platform: \"Linux\"\r\nUpgrade-Insecure-Requests: 1\r\n\
         User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\n\
         Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8\r\n\
         Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-User: ?1\r\nSec-Fetch-Dest: document\r\n\
         Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9\r\n\r\n",
    ),
];

fn heads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("head");
    for (client, head) in HEADS {
        let head = head.as_bytes();
        group.throughput(Throughput::Bytes(head.len() as u64));
        group.bench_function(format!("{client}/narwire"), |bencher| {
            bencher.iter(|| {
                let parsed = request::parse(black_box(head), 0);
                assert!(matches!(parsed, Ok(Parsed::Complete { .. })));
                black_box(&parsed);
            });
        });
        // Only the syntax: httparse neither checks nor finds any meaning.
        group.bench_function(format!("{client}/httparse"), |bencher| {
            bencher.iter(|| {
                let mut fields = [httparse::EMPTY_HEADER; HEAD_FIELDS_MAX];
                let mut request = httparse::Request::new(&mut fields);
                assert!(matches!(request.parse(black_box(head)), Ok(httparse::Status::Complete(_))));
                black_box(&request);
            });
        });
    }
}

fn narinfos(criterion: &mut Criterion) {
    let store_dir = StoreDir::parse("/nix/store").unwrap();
    let key = SecretKey::from_seed(KeyName::parse("cache.example.org-1").unwrap(), &[7; 32]);
    let mut narinfo = narinfo();
    let fingerprint = narinfo.info.fingerprint(&store_dir);
    narinfo.info.signatures = vec![key.sign(&fingerprint)];
    let mut text = String::new();
    narinfo.write(&store_dir, &mut text);

    let mut group = criterion.benchmark_group("narinfo");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("write", |bencher| {
        let mut out = String::new();
        bencher.iter(|| {
            out.clear();
            narinfo.write(&store_dir, &mut out);
            black_box(&out);
        });
    });
    group.bench_function("parse", |bencher| {
        bencher.iter(|| NarInfo::parse(black_box(&text), &store_dir).unwrap());
    });
    group.bench_function("fingerprint", |bencher| bencher.iter(|| narinfo.info.fingerprint(&store_dir)));
    group.bench_function("sign", |bencher| bencher.iter(|| key.sign(black_box(&fingerprint))));
    group.bench_function("fingerprint-sign-write", |bencher| {
        bencher.iter_batched_ref(
            || narinfo.clone(),
            |narinfo| {
                narinfo.info.signatures = vec![key.sign(&narinfo.info.fingerprint(&store_dir))];
                let mut text = String::with_capacity(2048);
                narinfo.write(&store_dir, &mut text);
                text
            },
            BatchSize::SmallInput,
        );
    });
}

fn layouts(criterion: &mut Criterion) {
    let layout = layout();
    let len_bytes = layout.known_len_bytes();

    let mut group = criterion.benchmark_group("layout");
    group.throughput(Throughput::Elements(FILES as u64));
    group.bench_function("build", |bencher| bencher.iter(self::layout));
    group.bench_function("iterate", |bencher| {
        bencher.iter(|| black_box(&layout).pieces(0..len_bytes).map(|piece| piece.len_bytes()).sum::<u64>());
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("random-piece", |bencher| {
        let mut random = Random(1);
        bencher.iter(|| {
            let offset = random.next() % len_bytes;
            match layout.piece_at(offset, &mut Cursor::default()) {
                Lookup::Piece(piece) => piece.len_bytes(),
                Lookup::NotYet | Lookup::End => panic!("nothing at {offset} of {len_bytes}"),
            }
        });
    });
}

fn decoding(criterion: &mut Criterion) {
    let nar = nar(&layout());
    let mut group = criterion.benchmark_group("nar");
    group.throughput(Throughput::Bytes(nar.len() as u64));
    for chunk_len in [16 * 1024, 256 * 1024] {
        group.bench_function(format!("decode/chunks-of-{}-KiB", chunk_len / 1024), |bencher| {
            bencher.iter(|| {
                let mut decoder = Decoder::new();
                let mut files = 0;
                for chunk in black_box(&nar).chunks(chunk_len) {
                    decoder
                        .push(chunk, |event| files += usize::from(matches!(event, Event::Regular { .. })))
                        .unwrap();
                }
                assert_eq!((decoder.finish().unwrap(), files), (nar.len() as u64, FILES));
            });
        });
    }
    group.bench_function("sha256", |bencher| bencher.iter(|| Sha256::digest(black_box(&nar))));
}

/// A narinfo like those of a distribution's packages.
fn narinfo() -> NarInfo {
    let path = |index: u8, name: &str| {
        let hash_part = nix_base32::to_nix_base32(&Sha256::digest(&[index]).0[..20]);
        StorePath::parse_base_name(&format!("{hash_part}-{name}")).unwrap()
    };
    let nar_hash = Sha256::digest(b"nar");
    let mut references: Vec<_> = (1..=12).map(|index| path(index, &format!("library-{index}.4.2"))).collect();
    references.sort();
    NarInfo {
        info: PathInfo {
            path: path(0, "program-1.27.3"),
            nar_hash,
            nar_size: 12_345_678,
            references,
            deriver: Some(path(99, "program-1.27.3.drv")),
            signatures: Vec::new(),
            ca: None,
        },
        url: format!("nar/{}.nar?hash={}", nar_hash.to_nix32(), path(0, "x").hash_part()),
        compression: Compression::None,
        file_hash: Some(nar_hash),
        file_size: Some(12_345_678),
    }
}

/// The layout of [`FILES`] files.
fn layout() -> Layout {
    let mut builder = Builder::new();
    builder.directory().unwrap();
    for directory in 0..FILES / FILES_PER_DIRECTORY {
        builder.entry(format!("directory-{directory:04}").as_bytes()).unwrap();
        builder.directory().unwrap();
        for file in 0..FILES_PER_DIRECTORY {
            builder.entry(format!("file-{file:04}").as_bytes()).unwrap();
            builder.regular(false, FILE_LEN_BYTES).unwrap();
        }
        builder.end_directory().unwrap();
    }
    builder.end_directory().unwrap();
    let (part, len_bytes) = builder.finish();
    let mut layout = Layout::new();
    layout.push(Arc::new(part.unwrap()));
    layout.complete(len_bytes);
    layout
}

/// The NAR of a layout, its files full of one letter.
fn nar(layout: &Layout) -> Vec<u8> {
    let mut nar = Vec::new();
    for piece in layout.pieces(0..layout.known_len_bytes()) {
        match piece {
            Piece::Framing(bytes) => nar.extend_from_slice(bytes),
            Piece::File(range) => nar.resize(nar.len() + usize::try_from(range.len).unwrap(), b'x'),
        }
    }
    nar
}

/// xorshift64: the same offsets in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

criterion_group!(benches, heads, narinfos, layouts, decoding);
criterion_main!(benches);
