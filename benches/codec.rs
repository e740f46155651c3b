//! The pure parts, each on the input it really gets and beside what it can be compared with: httparse for heads, the
//! `nix-base32` crate for digests, the bare hash for a NAR, another commit (`--save-baseline`, `--baseline`) for the rest.
//!
//! `cargo bench --bench codec -- head` runs what has `head` in its name. Trees are one of 20,000 small files, and a real one: the
//! Rust toolchain, or the directory that `NARWIRE_BENCH_TREE` names.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on says where")]

mod input;

use std::ffi::OsString;
use std::fs;
use std::hint::black_box;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use criterion::{BatchSize, Criterion, Throughput, criterion_group};
use narwire::codec::base32;
use narwire::codec::hash::Sha256;
use narwire::codec::http::body::BodyDecoder;
use narwire::codec::http::request::{self, BodyLength, Parsed};
use narwire::codec::nar::decode::{Decoder, Event};
use narwire::codec::nar::layout::{Cursor, Lookup};
use narwire::codec::narinfo::NarInfo;
use narwire::limits::HEAD_FIELDS_MAX;

use input::{HEADS, Random, Tree};

/// Files of the generated tree.
const FILES: usize = 20_000;
/// What a worker packs into one buffer. Bytes.
const SLICE_LEN_BYTES: u64 = 256 * 1024;

fn heads(criterion: &mut Criterion) {
    let worst = [
        ("worst/64-fields", input::head_of_many_fields()),
        ("worst/target-of-4-KiB", input::head_of_long_target()),
        ("worst/value-of-16-KiB", input::head_of_long_value()),
    ];
    let clients = HEADS.iter().map(|(client, head)| (*client, head.as_bytes()));
    let mut group = criterion.benchmark_group("head");
    for (name, head) in clients.chain(worst.iter().map(|(name, head)| (*name, head.as_slice()))) {
        group.throughput(Throughput::Bytes(head.len() as u64));
        group.bench_function(format!("{name}/narwire"), |bencher| {
            bencher.iter(|| {
                let parsed = request::parse(black_box(head), 0);
                assert!(matches!(parsed, Ok(Parsed::Complete { .. })));
                black_box(&parsed);
            });
        });
        // Only the syntax: httparse neither checks nor finds any meaning.
        group.bench_function(format!("{name}/httparse"), |bencher| {
            bencher.iter(|| {
                let mut fields = [httparse::EMPTY_HEADER; HEAD_FIELDS_MAX];
                let mut request = httparse::Request::new(&mut fields);
                assert!(matches!(request.parse(black_box(head)), Ok(httparse::Status::Complete(_))));
                black_box(&request);
            });
        });
    }

    // A head that drips in byte by byte. httparse remembers nothing and begins again each time.
    let head = input::head("browser");
    group.throughput(Throughput::Bytes(head.len() as u64));
    group.bench_function("worst/dripping/narwire", |bencher| {
        bencher.iter(|| {
            let mut scanned_len = 0;
            for len in 1..=head.len() {
                match request::parse(black_box(&head[..len]), scanned_len) {
                    Ok(Parsed::Partial { scanned_len: len }) => scanned_len = len,
                    parsed => assert!(matches!(parsed, Ok(Parsed::Complete { .. })) && len == head.len()),
                }
            }
        });
    });
    group.bench_function("worst/dripping/httparse", |bencher| {
        bencher.iter(|| {
            for len in 1..=head.len() {
                let mut fields = [httparse::EMPTY_HEADER; HEAD_FIELDS_MAX];
                let mut request = httparse::Request::new(&mut fields);
                let status = request.parse(black_box(&head[..len])).unwrap();
                assert_eq!(status.is_complete(), len == head.len());
            }
        });
    });
}

fn digests(criterion: &mut Criterion) {
    let digest = Sha256::digest(b"nar").0;
    let text = base32::encode_digest(&digest);
    let mut group = criterion.benchmark_group("base32");
    group.throughput(Throughput::Bytes(digest.len() as u64));
    group.bench_function("encode/narwire", |bencher| {
        bencher.iter(|| base32::encode_digest(black_box(&digest)));
    });
    group.bench_function("encode/nix-base32", |bencher| {
        bencher.iter(|| nix_base32::to_nix_base32(black_box(&digest)));
    });
    group.bench_function("decode/narwire", |bencher| {
        bencher.iter(|| base32::decode_digest(black_box(text.as_bytes())).unwrap());
    });
    group.bench_function("decode/nix-base32", |bencher| {
        bencher.iter(|| nix_base32::from_nix_base32(black_box(&text)).unwrap());
    });
}

fn narinfos(criterion: &mut Criterion) {
    let store_dir = input::store_dir();
    let key = input::key();
    let narinfo = input::narinfo();
    let fingerprint = narinfo.info.fingerprint(&store_dir);
    let text = input::narinfo_text(&narinfo);

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
    let real = real_tree_path();
    for (name, tree) in [("20000-small-files", Tree::of_small_files(FILES)), ("real-tree", read_tree(&real))]
    {
        let layout = tree.layout();
        let len_bytes = layout.known_len_bytes();
        eprintln!("layout/{name}: {} files, {} MB", tree.file_count(), len_bytes / 1_000_000);

        let mut group = criterion.benchmark_group(format!("layout/{name}"));
        group.throughput(Throughput::Elements(tree.file_count() as u64));
        group.bench_function("build", |bencher| bencher.iter(|| tree.layout()));
        group.bench_function("iterate", |bencher| {
            bencher
                .iter(|| black_box(&layout).pieces(0..len_bytes).map(|piece| piece.len_bytes()).sum::<u64>());
        });
        group.throughput(Throughput::Elements(1));
        group.bench_function("slice-of-256-KiB", |bencher| {
            let mut random = Random(1);
            bencher.iter(|| {
                let start = random.next() % len_bytes;
                layout.pieces(start..start + SLICE_LEN_BYTES).map(|piece| piece.len_bytes()).sum::<u64>()
            });
        });
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
}

fn nars(criterion: &mut Criterion) {
    let nar = input::nar(&Tree::of_small_files(FILES).layout());
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
    // What a receiver does with the same bytes anyway.
    group.bench_function("sha256", |bencher| bencher.iter(|| Sha256::digest(black_box(&nar))));
}

fn bodies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("chunked");
    // curl sends chunks of 64 KiB, a proxy those that it received.
    for chunk_len in [16, 1024, 64 * 1024] {
        let body = input::chunked_body(chunk_len);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(format!("decode/chunks-of-{chunk_len}"), |bencher| {
            bencher.iter(|| {
                let mut decoder = BodyDecoder::new(BodyLength::Chunked);
                let (mut rest, mut data_len) = (black_box(body.as_slice()), 0);
                while !decoder.is_finished() {
                    let decoded = decoder.decode(rest).unwrap();
                    data_len += decoded.data.len();
                    rest = &rest[decoded.consumed_len..];
                }
                assert_eq!(data_len, 1 << 20);
            });
        });
    }
}

/// The tree of real files that layouts are made of.
fn real_tree_path() -> PathBuf {
    std::env::var_os("NARWIRE_BENCH_TREE")
        .or_else(|| {
            let printed = Command::new("rustc").args(["--print", "sysroot"]).output().ok()?.stdout;
            Some(OsString::from_vec(printed.trim_ascii_end().to_vec()))
        })
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// The tree at `path`, its contents left out; of special files there are none.
fn read_tree(path: &Path) -> Tree {
    let status = path.symlink_metadata().unwrap();
    if status.is_symlink() {
        return Tree::Symlink(fs::read_link(path).unwrap().into_os_string().into_vec());
    }
    if status.is_file() {
        return Tree::Regular(status.permissions().mode() & 0o100 != 0, status.len());
    }
    let mut entries: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(Result::unwrap)
        .map(|entry| (entry.file_name().into_vec(), read_tree(&entry.path())))
        .collect();
    entries.sort_by(|(name, _), (other, _)| name.cmp(other));
    Tree::Directory(entries)
}

criterion_group!(benches, heads, digests, narinfos, layouts, nars, bodies);

fn main() {
    println!(
        "codec: head beside httparse (which only splits), base32 beside the nix-base32 crate, NAR decoding beside SHA-256 of the \
         same bytes; the rest beside another commit: `-- --save-baseline before` there, `-- --baseline before` here"
    );
    benches();
    Criterion::default().configure_from_args().final_summary();
}
