//! What the benches of the pure parts work on: heads as clients send them, a narinfo like those of a distribution, trees.

#![allow(dead_code, reason = "each bench uses its part")]

use std::sync::Arc;

use narwire::codec::hash::Sha256;
use narwire::codec::nar::layout::{Builder, Layout, Piece};
use narwire::codec::narinfo::{Compression, NarInfo, PathInfo};
use narwire::codec::signature::{KeyName, SecretKey};
use narwire::codec::store_path::{StoreDir, StorePath};
use narwire::limits::{HEAD_FIELDS_MAX, HEAD_LEN_MAX, TARGET_LEN_MAX};

/// Request heads as they were seen on the wire, by client.
pub const HEADS: &[(&str, &str)] = &[
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

/// A digest in Nix base32.
pub const NIX32: &str = "0c5b8vw40dy178xlpddw65q9gf1h2186jcc3p4swinwggbllv8mk";

/// The target of the NAR with that digest.
pub const NAR_TARGET: &[u8] =
    b"/nar/0c5b8vw40dy178xlpddw65q9gf1h2186jcc3p4swinwggbllv8mk.nar?hash=7rjj86a15146cq1d3qy068lml7n7ykzm";

/// The head that one client sends.
pub fn head(client: &str) -> &'static [u8] {
    let (_, head) = HEADS.iter().find(|(name, _)| *name == client).expect("a client of the list");
    head.as_bytes()
}

/// The most fields there can be, none of which means anything.
pub fn head_of_many_fields() -> Vec<u8> {
    let fields: Vec<_> = (1..HEAD_FIELDS_MAX).map(|field| format!("X-Field-{field}: value\r\n")).collect();
    format!("GET / HTTP/1.1\r\nHost: cache.example.org\r\n{}\r\n", fields.concat()).into()
}

/// The longest target.
pub fn head_of_long_target() -> Vec<u8> {
    let target = "a".repeat(TARGET_LEN_MAX - 1);
    format!("GET /{target} HTTP/1.1\r\nHost: cache.example.org\r\n\r\n").into()
}

/// The longest head: one long value.
pub fn head_of_long_value() -> Vec<u8> {
    let start = "GET / HTTP/1.1\r\nHost: cache.example.org\r\nCookie: ";
    let value = "a".repeat(HEAD_LEN_MAX - start.len() - 4);
    format!("{start}{value}\r\n\r\n").into()
}

/// The store of Nix.
pub fn store_dir() -> StoreDir {
    StoreDir::parse("/nix/store").expect("a store directory")
}

/// A signing key, always the same.
pub fn key() -> SecretKey {
    SecretKey::from_seed(KeyName::parse("cache.example.org-1").expect("a key name"), &[7; 32])
}

/// A signed narinfo with twelve references, like those of a distribution's packages.
pub fn narinfo() -> NarInfo {
    let path = |index: u8, name: &str| {
        let hash_part = nix_base32::to_nix_base32(&Sha256::digest(&[index]).0[..20]);
        StorePath::parse_base_name(&format!("{hash_part}-{name}")).expect("a store path")
    };
    let nar_hash = Sha256::digest(b"nar");
    let mut references: Vec<_> = (1..=12).map(|index| path(index, &format!("library-{index}.4.2"))).collect();
    references.sort();
    let mut info = PathInfo {
        path: path(0, "program-1.27.3"),
        nar_hash,
        nar_size: 12_345_678,
        references,
        deriver: Some(path(99, "program-1.27.3.drv")),
        signatures: Vec::new(),
        ca: None,
    };
    info.signatures = vec![key().sign(&info.fingerprint(&store_dir()))];
    NarInfo {
        url: format!("nar/{}.nar?hash={}", nar_hash.to_nix32(), info.path.hash_part()),
        info,
        compression: Compression::None,
        file_hash: Some(nar_hash),
        file_size: Some(12_345_678),
    }
}

/// The text of a narinfo.
pub fn narinfo_text(narinfo: &NarInfo) -> String {
    let mut text = String::new();
    narinfo.write(&store_dir(), &mut text);
    text
}

/// A node of a tree, its contents left out.
pub enum Tree {
    /// A regular file: whether it is executable, and its length in bytes.
    Regular(bool, u64),
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
    /// A directory with its entries, in the order of a NAR.
    Directory(Vec<(Vec<u8>, Tree)>),
}

impl Tree {
    /// Many small files, in directories of 100.
    pub fn of_small_files(file_count: usize) -> Self {
        let file = |index: usize| (format!("file-{index:04}").into(), Self::Regular(false, 133));
        let directory = |index: usize| {
            (format!("directory-{index:04}").into(), Self::Directory((0..100).map(file).collect()))
        };
        Self::Directory((0..file_count / 100).map(directory).collect())
    }

    /// How many regular files there are.
    pub fn file_count(&self) -> usize {
        match self {
            Self::Regular(..) => 1,
            Self::Symlink(_) => 0,
            Self::Directory(entries) => entries.iter().map(|(_, node)| node.file_count()).sum(),
        }
    }

    /// The layout of the NAR of this tree, in one part.
    pub fn layout(&self) -> Layout {
        let mut builder = Builder::new();
        self.add_to(&mut builder);
        let (part, len_bytes) = builder.finish();
        let mut layout = Layout::new();
        layout.push(Arc::new(part.expect("no NAR is empty")));
        layout.complete(len_bytes);
        layout
    }

    fn add_to(&self, builder: &mut Builder) {
        let added = match self {
            Self::Regular(executable, len_bytes) => builder.regular(*executable, *len_bytes),
            Self::Symlink(target) => builder.symlink(target),
            Self::Directory(entries) => builder.directory().and_then(|()| {
                for (name, node) in entries {
                    builder.entry(name)?;
                    node.add_to(builder);
                }
                builder.end_directory()
            }),
        };
        added.expect("a tree that a NAR can hold");
    }
}

/// The NAR of a layout, its files full of one letter.
pub fn nar(layout: &Layout) -> Vec<u8> {
    let mut nar = Vec::new();
    for piece in layout.pieces(0..layout.known_len_bytes()) {
        match piece {
            Piece::Bytes(bytes) => nar.extend_from_slice(bytes),
            Piece::File(range) => {
                nar.resize(nar.len() + usize::try_from(range.len).expect("fits in memory"), b'x');
            }
        }
    }
    nar
}

/// A chunked body of 1 MiB in chunks of so many bytes.
pub fn chunked_body(chunk_len: usize) -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..(1 << 20) / chunk_len {
        body.extend_from_slice(format!("{chunk_len:x}\r\n").as_bytes());
        body.resize(body.len() + chunk_len, b'x');
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"0\r\n\r\n");
    body
}

/// xorshift64: the same offsets in every run.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
