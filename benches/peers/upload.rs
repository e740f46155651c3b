//! NARs that are sent: what it costs to take them, beside nginx, which takes any file for what it says it is.
//!
//! narwire looks at what comes while it comes: it hashes the file, decompresses it, reads the NAR in it and hashes that, and
//! the narinfo has to agree. nginx's WebDAV writes a file and renames it. "bare work" is the hashing and decompressing alone:
//! who verifies cannot cost less than that and nginx together.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, Read as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use narwire::codec::hash::{Sha256, Sha256Digest};
use narwire::codec::nar::layout::Builder;
use narwire::codec::store_path::StorePath;

use crate::harness::load::{Outcome, Seen, connect, fetch, thread_time};
use crate::harness::process;
use crate::harness::server::{Kind, Server};
use crate::harness::site::{Nar, store_path};
use crate::row::{Bench, Figure, Results};
use crate::works::Works;

/// Flat and compressed.
const LARGE: [&str; 2] = ["upload of one large NAR", "upload of the toolchain's NAR, .zst"];
const SMALL: [&str; 2] =
    ["upload of NARs of 64 KiB, with narinfos", "upload of NARs of 64 KiB, .zst, with narinfos"];
const SERVERS: &[Kind] = &[Kind::NarwireUploads, Kind::NginxDav];
const BARE: &str = "bare work";

/// The clients of many small ones. They share a core.
const CONNECTIONS: usize = 8;
/// What Nix's own default is for zstd.
const ZSTD_LEVEL: i32 = 3;
const SMALL_FILE_LEN: usize = 64 * 1024;
/// What is read at once by the bare work. Bytes.
const PIECE_LEN: usize = 256 * 1024;
/// Where every server is; the clients are on the next core.
const SERVER_CORE: usize = 0;

/// One file as a client sends it, and then the narinfo.
struct Parcel {
    nar: Put,
    narinfo: Put,
}

/// A request.
struct Put {
    head: Vec<u8>,
    body: Body,
}

enum Body {
    Bytes(Vec<u8>),
    /// Sent by the kernel: the client has only one core.
    File(PathBuf, u64),
}

/// Measures all of it; the servers of `bench` are idle meanwhile.
pub fn measure(works: &Works, bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let rows: Vec<_> = LARGE.iter().chain(&SMALL).filter(|row| bench.flags.wants(row)).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let site = &works.fixture.site;
    writeln!(
        bench.report,
        "\nuploads to {}: narwire hashes and decompresses what comes, and reads the NARs; nginx writes it. {BARE}: the hashes and \
         the decompression alone. GB are of what is sent",
        site.uploads().parent().unwrap_or(Path::new("/")).display()
    )?;
    let folder = site.uploads().join("sent");
    fs::create_dir_all(&folder)?;
    for (names, small) in [(LARGE, false), (SMALL, true)] {
        for (name, is_compressed) in names.into_iter().zip([false, true]) {
            if !bench.flags.wants(name) {
                continue;
            }
            eprintln!("{name}");
            let parcels = match (small, is_compressed) {
                (false, false) => vec![large(&folder, works, &works.fixture.large, false)?],
                (false, true) => vec![large(&folder, works, &works.toolchain[0], true)?],
                (true, _) => small_ones(works, bench.flags.upload_paths, is_compressed)?,
            };
            let figure = if small { Figure::MicrosecondsPerRequest } else { Figure::SecondsPerGb };
            measure_row(works, bench, name, figure, &parcels, is_compressed)?;
        }
    }
    Ok(())
}

fn measure_row(
    works: &Works,
    bench: &mut Bench<'_>,
    name: &'static str,
    figure: Figure,
    parcels: &[Parcel],
    is_compressed: bool,
) -> anyhow::Result<()> {
    let site = &works.fixture.site;
    for _ in 0..bench.flags.rounds {
        for &kind in SERVERS {
            let server = Server::start(kind, site, 1, &SERVER_CORE.to_string())?;
            let connections = CONNECTIONS.min(parcels.len());
            let outcome = send_all(&server, parcels, connections)
                .map_err(|error| server.explain(error.into()))
                .context(name)?;
            bench.results.add_round(name, kind.name(), figure, &outcome);
            check(&server, parcels).map_err(|error| server.explain(error))?;
            drop(server);
            fs::remove_dir_all(site.uploads().join(kind.name()))?;
        }
        add_bare(&mut bench.results, name, figure, parcels, is_compressed)?;
    }
    bench.write_lines(name, figure, SERVERS, Some(BARE))
}

/// What was sent last is there.
fn check(server: &Server, parcels: &[Parcel]) -> anyhow::Result<()> {
    let last = parcels.last().context("nothing was sent")?;
    let get = String::from_utf8(last.narinfo.head.clone())?.replacen("PUT", "GET", 1);
    let get = get.replace("Content-Length: ", "X-Length: ");
    let narinfo = fetch(&connect(server.address)?, get.as_bytes(), 200)?;
    ensure!(narinfo.starts_with(b"StorePath: "), "what was uploaded is not there");
    Ok(())
}

/// A NAR of the site, as it is or compressed into a file in `folder`.
fn large(folder: &Path, works: &Works, nar: &Nar, is_compressed: bool) -> anyhow::Result<Parcel> {
    let flat = works.fixture.site.file(nar);
    let file = folder.join(format!("{}.nar.zst", nar.path.hash_part()));
    if !is_compressed {
        return Ok(parcel(&nar.path, nar, nar.hash, Body::File(flat, nar.len_bytes), false));
    }
    if !file.exists() {
        zstd::stream::copy_encode(File::open(flat)?, File::create(&file)?, ZSTD_LEVEL)?;
    }
    let (mut hash, len) = (Sha256::new(), fs::metadata(&file)?.len());
    each_piece(&mut File::open(&file)?, |piece| hash.update(piece))?;
    Ok(parcel(&nar.path, nar, hash.finish(), Body::File(file, len), true))
}

/// Files with pieces of the toolchain, as the contents of store paths are.
fn small_ones(works: &Works, count: usize, is_compressed: bool) -> anyhow::Result<Vec<Parcel>> {
    let mut source = File::open(works.fixture.site.file(&works.toolchain[0]))?;
    let mut contents = vec![0; SMALL_FILE_LEN];
    (0..count)
        .map(|number| {
            source.read_exact(&mut contents).context("the toolchain is too short")?;
            // Pieces of programs repeat.
            contents[..size_of::<u64>()].copy_from_slice(&(number as u64).to_le_bytes());
            let mut builder = Builder::new();
            builder.contents(false, &contents)?;
            let (part, len_bytes) = builder.finish();
            let bytes = part.as_ref().and_then(|part| part.whole_bytes()).context("no bytes")?.to_vec();
            let path = store_path(&format!("uploaded-{number}"));
            let nar = Nar { path: path.clone(), hash: Sha256::digest(&bytes), len_bytes };
            let body = if is_compressed { zstd::bulk::compress(&bytes, ZSTD_LEVEL)? } else { bytes };
            Ok(parcel(&path, &nar, Sha256::digest(&body), Body::Bytes(body), is_compressed))
        })
        .collect()
}

fn parcel(path: &StorePath, nar: &Nar, file_hash: Sha256Digest, body: Body, is_compressed: bool) -> Parcel {
    let (suffix, compression) = if is_compressed { (".zst", "zstd") } else { ("", "none") };
    let (file_hash, nar_hash) = (file_hash.to_nix32(), nar.hash.to_nix32());
    let url = format!("nar/{file_hash}.nar{suffix}");
    let narinfo = format!(
        "StorePath: /nix/store/{path}\nURL: {url}\nCompression: {compression}\nFileHash: sha256:{file_hash}\nFileSize: {}\n\
         NarHash: sha256:{nar_hash}\nNarSize: {}\nReferences: \n",
        body.len(),
        nar.len_bytes
    );
    Parcel {
        nar: put(&url, body),
        narinfo: put(&format!("{}.narinfo", path.hash_part()), Body::Bytes(narinfo.into_bytes())),
    }
}

fn put(target: &str, body: Body) -> Put {
    let head = format!(
        "PUT /{target} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: curl/8.13.0 Nix/2.26.3\r\nAccept: */*\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    Put { head: head.into_bytes(), body }
}

impl Body {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, len) => *len,
        }
    }
}

/// Sends each once, by whichever connection is free.
fn send_all(server: &Server, parcels: &[Parcel], connections: usize) -> io::Result<Outcome> {
    let next = AtomicUsize::new(0);
    let sockets = (0..connections).map(|_| connect(server.address)).collect::<io::Result<Vec<_>>>()?;
    let (start, begin) = (Instant::now(), server.time()?);
    let clients = thread::scope(|scope| {
        let threads: Vec<_> =
            sockets.iter().map(|socket| scope.spawn(|| send_some(socket, parcels, &next))).collect();
        let ended = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("a client panicked"))));
        ended.collect::<io::Result<Vec<_>>>()
    })?;
    let (elapsed, server) = (start.elapsed(), server.time()?.saturating_sub(begin));
    let (mut seen, mut generator) = (Seen::default(), Duration::ZERO);
    for (client, time) in clients {
        seen.requests += client.requests;
        seen.bytes += client.bytes;
        seen.waits_ns.extend(client.waits_ns);
        generator += time;
    }
    seen.waits_ns.sort_unstable();
    Ok(Outcome { groups: vec![seen], elapsed, server, generator })
}

/// One connection; gives what it saw, and the CPU time it took.
fn send_some(socket: &TcpStream, parcels: &[Parcel], next: &AtomicUsize) -> io::Result<(Seen, Duration)> {
    let mut seen = Seen::default();
    while let Some(parcel) = parcels.get(next.fetch_add(1, Ordering::Relaxed)) {
        for put in [&parcel.nar, &parcel.narinfo] {
            let asked = Instant::now();
            send(socket, put)?;
            // 201 is what both say of what was not there before. nginx says it with no body, and with a length.
            fetch(socket, &[], 201)?;
            seen.waits_ns.push(u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX));
            seen.requests += 1;
            seen.bytes += put.body.len();
        }
    }
    Ok((seen, thread_time()))
}

fn send(mut socket: &TcpStream, put: &Put) -> io::Result<()> {
    use io::Write as _;
    socket.write_all(&put.head)?;
    match &put.body {
        Body::Bytes(bytes) => socket.write_all(bytes),
        Body::File(file, len) => {
            let (file, mut offset) = (File::open(file)?, 0);
            while offset < *len {
                let left = usize::try_from(len - offset).unwrap_or(usize::MAX);
                if rustix::fs::sendfile(socket, &file, Some(&mut offset), left)? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Ok(())
        }
    }
}

/// Hashes the files, and what is in them if they are compressed, on a thread that is alone on the servers' core.
fn add_bare(
    results: &mut Results,
    name: &'static str,
    figure: Figure,
    parcels: &[Parcel],
    is_compressed: bool,
) -> anyhow::Result<()> {
    let taken = thread::scope(|scope| {
        let worker = scope.spawn(|| {
            process::pin(SERVER_CORE)?;
            // Files are read before the time is taken.
            let bodies = parcels.iter().map(|parcel| match &parcel.nar.body {
                Body::Bytes(bytes) => Ok(bytes.clone()),
                Body::File(file, _) => fs::read(file),
            });
            let bodies = bodies.collect::<io::Result<Vec<_>>>()?;
            let (begin, start) = (thread_time(), Instant::now());
            for body in &bodies {
                verify(body, is_compressed)?;
            }
            Ok((thread_time().saturating_sub(begin), start.elapsed()))
        });
        worker.join().unwrap_or_else(|_| Err(io::Error::other("the bare work panicked")))
    });
    let (server, elapsed) = taken?;
    let mut seen = Seen { requests: 2 * parcels.len() as u64, bytes: 0, waits_ns: Vec::new() };
    seen.bytes = parcels.iter().map(|parcel| parcel.nar.body.len() + parcel.narinfo.body.len()).sum();
    let outcome = Outcome { groups: vec![seen], elapsed, server, generator: Duration::ZERO };
    results.add_round(name, BARE, figure, &outcome);
    Ok(())
}

fn verify(body: &[u8], is_compressed: bool) -> io::Result<()> {
    let mut file = Sha256::new();
    body.chunks(PIECE_LEN).for_each(|piece| file.update(piece));
    black_box(file.finish());
    if is_compressed {
        let mut nar = Sha256::new();
        each_piece(&mut zstd::stream::Decoder::with_buffer(body)?, |piece| nar.update(piece))?;
        black_box(nar.finish());
    }
    Ok(())
}

fn each_piece(source: &mut impl io::Read, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; PIECE_LEN];
    loop {
        match source.read(&mut buffer)? {
            0 => return Ok(()),
            len => take(&buffer[..len]),
        }
    }
}
