//! What is known of a store path, made small: a worker remembers a hundred thousand of them.
//!
//! A narinfo says all that is known, so it is the only thing that is kept, in one piece with the fields that differ from
//! answer to answer. The reply is a copy of it.

use std::ops::Range;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use bytes::Bytes;

use super::figures::SharedFigures;
use super::representation::{Conditions, Content, NARINFO_CACHE_CONTROL, NARINFO_TYPE, Representation};
use crate::codec::base32::DIGEST_DIGITS;
use crate::codec::hash::{Sha256, Sha256Digest};
use crate::codec::http::Status;
use crate::codec::http::field::ETag;
use crate::codec::http::response::Fields;
use crate::codec::http::route::{NarAddress, NarCompression, NarRequest};
use crate::codec::narinfo::{Compression, NarInfo, PathInfo};
use crate::codec::signature::SecretKey;
use crate::codec::store_path::{HashPart, StoreDir, StorePath};
use crate::ring::service::{Reply, ReplyBody};
use crate::store::catalog::Stored;
use crate::tally::Tally as _;

/// Where in [`KnownPath::text`] the opaque part of the entity tag is: behind `ETag: "`.
const ETAG_OPAQUE: Range<usize> = 7..7 + DIGEST_DIGITS;
/// The line of a narinfo that tells its file from all others; [`NarInfo::write`] says in which order they are.
const FILE_HASH_LINE: usize = 3;
/// Room for most narinfos, so that few grow while they are written. Bytes.
const NARINFO_LEN_TYPICAL: usize = 2048;

/// A valid path and what is said of it.
#[derive(Debug)]
pub struct KnownPath {
    /// Hash of the path as a NAR.
    pub nar_hash: Sha256Digest,
    /// Size of the path as a NAR. Bytes.
    pub nar_size: u64,
    /// `ETag`, `Content-Length`, the blank line, and the narinfo.
    text: Box<str>,
    /// Where in `text` the narinfo begins.
    narinfo_start: usize,
}

/// Makes [`KnownPath`]s for one store.
pub struct Renderer {
    store_dir: StoreDir,
    /// Every narinfo is signed with each of them.
    secret_keys: Arc<[SecretKey]>,
    /// Names the keys, and their order.
    keys_digest: Sha256Digest,
    figures: Arc<SharedFigures>,
}

impl Renderer {
    /// A renderer for paths of `store_dir`, signed with every one of `secret_keys`.
    pub fn new(store_dir: StoreDir, secret_keys: Arc<[SecretKey]>, figures: Arc<SharedFigures>) -> Self {
        let mut digest = Sha256::new();
        for key in &*secret_keys {
            digest.update(format!("{}\n", key.public()).as_bytes());
        }
        Self { store_dir, secret_keys, keys_digest: digest.finish(), figures }
    }

    /// Whether the same keys sign.
    pub fn signs_like(&self, other: &Self) -> bool {
        self.keys_digest == other.keys_digest
    }

    /// How many keys sign.
    pub fn keys_count(&self) -> usize {
        self.secret_keys.len()
    }

    /// Renders and signs the narinfo of a path, whose NAR is also there `compressed` perhaps; or says that `previous` is it.
    ///
    /// Signing is most of the work, and after a commit to the database nearly every answer is the same as before. Signatures
    /// follow from what they sign and the key (RFC 8032), so the text before it is signed and the keys tell whether it is.
    pub fn render(
        &self,
        info: PathInfo,
        compressed: Option<&Stored>,
        previous: Option<&Arc<KnownPath>>,
    ) -> Arc<KnownPath> {
        let (coding, file_hash, file_size) = match compressed {
            None => (NarCompression::None, info.nar_hash, info.nar_size),
            Some(stored) => (NarCompression::Zstd, stored.file_hash, stored.file_size),
        };
        let url = nar_url(&info, coding);
        let compression = if compressed.is_some() { Compression::Zstd } else { Compression::None };
        let mut narinfo = NarInfo::new(info, url, compression, file_hash, file_size);
        let mut text = String::with_capacity(NARINFO_LEN_TYPICAL);
        narinfo.write(&self.store_dir, &mut text);
        let opaque = self.etag_opaque(&text);
        if let Some(previous) = previous.filter(|previous| previous.etag_opaque() == opaque) {
            return Arc::clone(previous);
        }
        self.sign(&mut narinfo.info);
        text.clear();
        narinfo.write(&self.store_dir, &mut text);
        Arc::new(KnownPath::new(&narinfo.info, &opaque, &text))
    }

    fn sign(&self, info: &mut PathInfo) {
        if self.secret_keys.is_empty() {
            return;
        }
        let began = Instant::now();
        info.sign(&self.store_dir, &self.secret_keys);
        self.figures.signing.observe(began.elapsed());
        self.figures.signatures.add(self.secret_keys.len() as u64);
    }

    /// Names the narinfo that comes of a text by signing it. The digest of the keys has a fixed length, so no two pairs of
    /// keys and text run together into the same bytes.
    fn etag_opaque(&self, unsigned: &str) -> String {
        let mut digest = Sha256::new();
        digest.update(&self.keys_digest.0);
        digest.update(unsigned.as_bytes());
        digest.finish().to_nix32()
    }
}

impl KnownPath {
    fn new(info: &PathInfo, etag_opaque: &str, narinfo: &str) -> Self {
        let fields = format!("ETag: \"{etag_opaque}\"\r\nContent-Length: {}\r\n\r\n", narinfo.len());
        Self {
            nar_hash: info.nar_hash,
            nar_size: info.nar_size,
            narinfo_start: fields.len(),
            // Exactly as long as it is: what a growing string had to spare would be kept as well.
            text: [&*fields, narinfo].concat().into_boxed_str(),
        }
    }

    /// Its narinfo, rendered and signed.
    pub fn narinfo(&self) -> &str {
        &self.text[self.narinfo_start..]
    }

    /// The answer to a request for the narinfo.
    pub fn reply(self: Arc<Self>, conditions: &Conditions) -> Reply {
        // The fields that are the same for all. Not shared by counting: all workers would count in one place.
        static FIELDS: LazyLock<Bytes> = LazyLock::new(|| {
            let fields = Fields::new().content_type(NARINFO_TYPE).cache_control(NARINFO_CACHE_CONTROL);
            fields.accept_ranges().unfinished()
        });
        if conditions.are_none() {
            let fields_len = self.narinfo_start;
            let body = ReplyBody::Rendered { text: self, fields_len };
            return Reply { status: Status::Ok, fields: Bytes::from_static(&FIELDS), body };
        }
        let narinfo = Representation {
            content_type: NARINFO_TYPE,
            cache_control: NARINFO_CACHE_CONTROL,
            etag: ETag::new(self.etag_opaque().as_bytes()),
            content: Content::Bytes(Bytes::copy_from_slice(self.narinfo().as_bytes())),
        };
        narinfo.reply(conditions)
    }

    /// Whether its narinfo tells of this compressed NAR, or of none.
    pub fn tells_of(&self, compressed: Option<&Stored>) -> bool {
        let file_hash = compressed.map_or(self.nar_hash, |stored| stored.file_hash);
        let line = self.narinfo().lines().nth(FILE_HASH_LINE).unwrap_or_default();
        let told = line.strip_prefix("FileHash: sha256:");
        told.and_then(|digits| Sha256Digest::from_nix32(digits.as_bytes())) == Some(file_hash)
    }

    /// `<hash part>-<name>`, which ends the first line of every narinfo.
    pub fn base_name(&self) -> &str {
        let line = self.narinfo().lines().next().unwrap_or_default();
        line.rsplit('/').next().unwrap_or_default()
    }

    /// The path.
    pub fn store_path(&self) -> StorePath {
        StorePath::parse_base_name(self.base_name()).expect("the narinfo was rendered from one")
    }

    /// The digits in front of the base name.
    pub fn hash_part(&self) -> HashPart {
        let digits = self.base_name().split('-').next().unwrap_or_default();
        HashPart::parse(digits.as_bytes()).expect("the narinfo was rendered from a path")
    }

    /// Memory that it takes. Bytes.
    pub fn memory_len(&self) -> usize {
        const COUNTERS_LEN: usize = 2 * size_of::<usize>();
        allocated_len(size_of::<Self>() + COUNTERS_LEN) + allocated_len(self.text.len())
    }

    fn etag_opaque(&self) -> &str {
        &self.text[ETAG_OPAQUE]
    }
}

/// The fields that differ, and the narinfo.
impl AsRef<[u8]> for KnownPath {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

/// What the allocator takes for a piece: a word of its own in front, and all of it a multiple of two words.
const fn allocated_len(len: usize) -> usize {
    (len + size_of::<usize>()).next_multiple_of(2 * size_of::<usize>())
}

/// Where the NAR of a path is, relative to the cache. It names the contents, so it is right as long as it works.
pub fn nar_url(info: &PathInfo, compression: NarCompression) -> String {
    let address = NarAddress::NarHash { nar_hash: info.nar_hash, hash_part: info.path.hash_part() };
    NarRequest { address, compression }.to_string()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::codec::http::Method;
    use crate::codec::http::request::{self, Parsed};
    use crate::codec::signature::{KeyName, Signature};
    use crate::store::nar_cache::Coding;

    /// A path with five references and, once rendered, two signatures: about what most paths of a distribution have.
    pub(in crate::server) fn typical() -> Arc<KnownPath> {
        renderer(&[1]).render(info(), None, None)
    }

    fn renderer(seeds: &[u8]) -> Renderer {
        let keys = seeds
            .iter()
            .map(|&seed| SecretKey::from_seed(KeyName::parse("cache.example.org-1").unwrap(), &[seed; 32]));
        Renderer::new(StoreDir::parse("/nix/store").unwrap(), keys.collect(), Arc::default())
    }

    fn info() -> PathInfo {
        let path = |digit: char, name: &str| {
            StorePath::parse_base_name(&format!("{}-{name}", digit.to_string().repeat(32))).unwrap()
        };
        PathInfo {
            path: path('5', "hello-2.12.1"),
            nar_hash: Sha256Digest([5; 32]),
            nar_size: 226_560,
            references: "01234".chars().map(|digit| path(digit, "glibc-2.39-52")).collect(),
            deriver: Some(path('6', "hello-2.12.1.drv")),
            signatures: vec![Signature {
                key_name: KeyName::parse("cache.nixos.org-1").unwrap(),
                bytes: [7; 64],
            }],
            ca: None,
        }
    }

    fn conditions(field: &str) -> Conditions {
        let head = format!("GET / HTTP/1.1\r\nHost: here\r\n{field}\r\n");
        let Ok(Parsed::Complete { request, .. }) = request::parse(head.as_bytes(), 0) else {
            panic!("{head}")
        };
        assert_eq!(request.method, Method::Get);
        Conditions::of(&request)
    }

    #[test]
    fn the_kept_answer_says_what_any_answer_says() {
        let path = typical();
        let Reply { status, fields, body } = Arc::clone(&path).reply(&Conditions::default());
        let ReplyBody::Rendered { text, fields_len } = body else { panic!("a narinfo is kept") };
        let (rest, narinfo) = (*text).as_ref().split_at(fields_len);
        assert_eq!((status, narinfo), (Status::Ok, path.narinfo().as_bytes()));
        let kept = String::from_utf8([&fields, rest].concat()).unwrap();

        let made = Representation {
            content_type: NARINFO_TYPE,
            cache_control: NARINFO_CACHE_CONTROL,
            etag: ETag::new(path.etag_opaque().as_bytes()),
            content: Content::Bytes(Bytes::copy_from_slice(narinfo)),
        };
        let made = String::from_utf8(made.reply(&Conditions::default()).fields.to_vec()).unwrap();
        let sorted = |fields: &str| {
            let mut lines: Vec<_> =
                fields.strip_suffix("\r\n\r\n").unwrap().split("\r\n").map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&kept), sorted(&made));
    }

    #[test]
    fn conditions_and_ranges_are_heard() {
        let path = typical();
        let etag = format!("\"{}\"", path.etag_opaque());
        let reply = Arc::clone(&path).reply(&conditions(&format!("If-None-Match: {etag}\r\n")));
        assert_eq!(reply.status, Status::NotModified);
        assert!(reply.fields.windows(etag.len()).any(|window| window == etag.as_bytes()));
        let reply = Arc::clone(&path).reply(&conditions("Range: bytes=0-8\r\n"));
        let ReplyBody::Bytes(bytes) = reply.body else { panic!("a part is no kept answer") };
        assert_eq!((reply.status, &*bytes), (Status::PartialContent, &b"StorePath"[..]));
    }

    #[test]
    fn a_known_path_knows_its_path() {
        let (path, info) = (typical(), info());
        assert_eq!((path.store_path(), path.hash_part()), (info.path.clone(), info.path.hash_part()));
        assert_eq!((path.nar_hash, path.nar_size), (info.nar_hash, info.nar_size));
        let narinfo = NarInfo::parse(path.narinfo(), &StoreDir::parse("/nix/store").unwrap()).unwrap();
        assert_eq!(narinfo.info.signatures.len(), 2);
        assert!(path.narinfo().contains("\nURL: nar/"));
    }

    #[test]
    fn the_same_facts_are_the_same_answer() {
        let (renderer, path) = (renderer(&[1]), typical());
        assert!(Arc::ptr_eq(&path, &renderer.render(info(), None, Some(&path))));
        let again = renderer.render(info(), None, None);
        assert_eq!(again.text, path.text, "signatures follow from what they sign");
    }

    #[test]
    fn other_facts_or_keys_are_another_answer() {
        let path = typical();
        let mut others = vec![
            PathInfo { nar_hash: Sha256Digest([6; 32]), ..info() },
            PathInfo { nar_size: 226_568, ..info() },
            PathInfo { references: info().references[1..].to_vec(), ..info() },
            PathInfo { deriver: None, ..info() },
            PathInfo { signatures: Vec::new(), ..info() },
            PathInfo { ca: Some("text:sha256:x".to_owned()), ..info() },
        ];
        // What is signed already, and so is sent as before, is nevertheless another state of the database.
        let own =
            renderer(&[1]).secret_keys[0].sign(&info().fingerprint(&StoreDir::parse("/nix/store").unwrap()));
        others.push(PathInfo { signatures: vec![info().signatures[0].clone(), own], ..info() });
        for other in others {
            let rendered = renderer(&[1]).render(other.clone(), None, Some(&path));
            assert!(!Arc::ptr_eq(&path, &rendered), "{other:?}");
            assert_ne!(path.etag_opaque(), rendered.etag_opaque(), "{other:?}");
            assert_eq!(rendered.text, renderer(&[1]).render(other, None, None).text);
        }
        for seeds in [&[][..], &[2], &[1, 2], &[2, 1]] {
            let rendered = renderer(seeds).render(info(), None, Some(&path));
            assert_ne!(path.etag_opaque(), rendered.etag_opaque(), "{seeds:?}");
            assert_ne!(path.narinfo(), rendered.narinfo(), "{seeds:?}");
        }
        assert_ne!(
            renderer(&[1, 2]).render(info(), None, None).etag_opaque(),
            renderer(&[2, 1]).render(info(), None, None).etag_opaque(),
            "the order of signatures is part of the answer"
        );
    }

    #[test]
    fn a_compressed_nar_is_told_of_and_signed_as_before() {
        let flat = typical();
        let stored = Stored {
            coding: Coding::Zstd,
            file_hash: Sha256Digest([9; 32]),
            file_size: 4711,
            nar_size: flat.nar_size,
            fill_us: 0,
        };
        let compressed = renderer(&[1]).render(info(), Some(&stored), Some(&flat));
        let parse = |path: &KnownPath| {
            NarInfo::parse(path.narinfo(), &StoreDir::parse("/nix/store").unwrap()).unwrap()
        };
        let narinfo = parse(&compressed);
        assert_eq!((narinfo.compression, narinfo.file_size), (Compression::Zstd, Some(4711)));
        assert_eq!(narinfo.file_hash, Some(stored.file_hash));
        assert_eq!(narinfo.url, nar_url(&info(), NarCompression::Zstd));
        assert_eq!(narinfo.info.signatures, parse(&flat).info.signatures);
        assert_ne!(compressed.etag_opaque(), flat.etag_opaque());
        assert!(flat.tells_of(None) && !flat.tells_of(Some(&stored)));
        assert!(compressed.tells_of(Some(&stored)) && !compressed.tells_of(None));
        assert!(!compressed.tells_of(Some(&Stored { file_hash: Sha256Digest([8; 32]), ..stored })));
    }

    #[test]
    fn nothing_is_kept_beside_what_is_counted() {
        let renderer = renderer(&[1]);
        let mut path = None;
        let allocated = allocation_counter::measure(|| path = Some(renderer.render(info(), None, None)));
        let (path, kept_len) = (path.unwrap(), usize::try_from(allocated.bytes_current).unwrap());
        assert_eq!(allocated.count_current, 2, "the path, and its text");
        assert!(
            (kept_len..kept_len + 2 * 24).contains(&path.memory_len()),
            "{kept_len} {}",
            path.memory_len()
        );
        assert!(path.memory_len() < 1152, "{}", path.memory_len());
    }
}
