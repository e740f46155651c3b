use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use tempfile::TempDir;

use super::*;
use crate::codec::build_id::BuildId;
use crate::codec::hash::Sha256;
use crate::codec::nar::naive::{self, Tree};
use crate::codec::narinfo::{NarInfo, PathInfo};
use crate::codec::realisation::{DrvOutput, OutputName};
use crate::codec::signature::{KeyName, SecretKey, Signature};
use crate::codec::store_path::HashPart;
use crate::limits::{IMPORT_REPORT_LEN_MAX, QUARANTINED_FILES_MAX, SIGNATURES_MAX};
use crate::store::directory::FileFacts;

const OUT: &str = "0000000000000000000000000000000a-out";

fn settings(directory: &Path) -> UploadSettings {
    UploadSettings {
        directory: directory.to_path_buf(),
        store_dir: StoreDir::parse("/nix/store").unwrap(),
        len_max: 1 << 30,
        free_min: Some(0),
    }
}

/// A directory that is uploaded to.
struct Fixture {
    temp: TempDir,
    folder: Arc<UploadFolder>,
}

impl Fixture {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut UploadSettings)) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mut settings = settings(temp.path());
        change(&mut settings);
        let folder = Arc::new(UploadFolder::open(settings).unwrap());
        Self { temp, folder }
    }

    fn path(&self) -> &Path {
        self.temp.path()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(name)).unwrap()
    }

    /// Uploads as a connection does: each piece is looked at, and written to the file if there is one.
    fn upload(&self, target: Target, coding: Option<&str>, body: &[u8]) -> Result<Accepted, Refusal> {
        let upload = begin_and_push(&self.folder, target, coding, body, 1000)?;
        upload.finish(&mut |_| Ok(false))
    }

    fn put(&self, target: Target, body: &[u8]) -> Result<bool, Refusal> {
        self.upload(target, None, body).map(|accepted| accepted.is_new)
    }

    fn put_nar(&self, file: &NarFile) -> Result<bool, Refusal> {
        self.put(file.target(), &file.bytes)
    }

    fn put_narinfo(&self, narinfo: &NarInfo) -> Result<bool, Refusal> {
        self.put(Target::File(CacheFile::NarInfo(narinfo.info.path.hash_part())), text_of(narinfo).as_bytes())
    }

    fn narinfo(&self, path: &str) -> NarInfo {
        let text = self.read(&format!("{}.narinfo", &path[..32]));
        NarInfo::parse(&text, &self.folder.settings.store_dir).unwrap()
    }

    /// What is remembered of a file is remembered by this.
    fn key(&self, url: &str, compression: Compression) -> KnownNar {
        let facts = FileFacts::of(File::open(self.path().join(url)).unwrap()).unwrap();
        KnownNar { name: url["nar/".len()..].into(), facts, compression }
    }

    /// Nothing but what has its name is there.
    fn assert_no_drafts(&self) {
        for folder in names(&self.path().join(".narwire-uploads")) {
            assert_eq!(names(&self.path().join(".narwire-uploads").join(folder)), Vec::<String>::new());
        }
    }
}

fn begin_and_push(
    folder: &Arc<UploadFolder>,
    target: Target,
    coding: Option<&str>,
    body: &[u8],
    piece_len: usize,
) -> Result<Upload, Refusal> {
    let mut upload = folder.begin(target, coding, Some(body.len() as u64))?;
    for (number, piece) in body.chunks(piece_len).enumerate() {
        if let Some(file) = upload.file() {
            let file = File::from(file.try_clone_to_owned().unwrap());
            file.write_all_at(piece, (number * piece_len) as u64).unwrap();
        }
        let mut piece = Bytes::copy_from_slice(piece);
        while !piece.is_empty() {
            upload.push(&mut piece)?;
        }
    }
    Ok(upload)
}

/// A NAR in a file.
struct NarFile {
    nar: Vec<u8>,
    bytes: Vec<u8>,
    compression: Compression,
}

impl NarFile {
    fn new(contents: &str, compression: Compression) -> Self {
        let contents = contents.repeat(50).into_bytes();
        Self::of(naive::nar(&Tree::Regular { executable: false, contents }), compression)
    }

    fn of(nar: Vec<u8>, compression: Compression) -> Self {
        let bytes = match compression {
            Compression::None => nar.clone(),
            Compression::Zstd => zstd::encode_all(&nar[..], 3).unwrap(),
            Compression::Xz => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
                encoder.write_all(&nar).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&nar).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Bzip2 => {
                let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
                encoder.write_all(&nar).unwrap();
                encoder.finish().unwrap()
            }
            other => panic!("{other:?}"),
        };
        Self { nar, bytes, compression }
    }

    /// As Nix names it, which has nothing for gzip.
    fn target(&self) -> Target {
        let compression = Compression::of_suffix(self.compression.suffix()).unwrap();
        Target::Nar { file_hash: Sha256::digest(&self.bytes), compression }
    }

    fn url(&self) -> String {
        format!("nar/{}.nar{}", Sha256::digest(&self.bytes).to_nix32(), self.compression.suffix())
    }

    fn narinfo(&self, path: &str, references: &[&str]) -> NarInfo {
        let info = PathInfo {
            path: StorePath::parse_base_name(path).unwrap(),
            nar_hash: Sha256::digest(&self.nar),
            nar_size: self.nar.len() as u64,
            references: references.iter().map(|name| StorePath::parse_base_name(name).unwrap()).collect(),
            deriver: None,
            signatures: Vec::new(),
            ca: None,
        };
        let file_hash = Sha256::digest(&self.bytes);
        NarInfo::new(info, self.url(), self.compression, file_hash, self.bytes.len() as u64)
    }
}

fn text_of(narinfo: &NarInfo) -> String {
    let mut text = String::new();
    narinfo.write(&StoreDir::parse("/nix/store").unwrap(), &mut text);
    text
}

fn key(number: u8) -> SecretKey {
    SecretKey::from_seed(KeyName::parse(&format!("key-{number}")).unwrap(), &[number; 32])
}

fn sign(narinfo: &mut NarInfo, key: &SecretKey) {
    narinfo.info.sign(&StoreDir::parse("/nix/store").unwrap(), std::slice::from_ref(key));
}

/// Names in a directory, sorted.
fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Whether something was refused with this kind and a sentence that has these words in it, and that can be shown.
macro_rules! assert_refused {
    ($result:expr, $kind:ident, $words:expr) => {
        match $result {
            Err(Refusal::$kind(text)) => {
                let text = text.to_string();
                assert!(text.contains($words), "{text}");
                assert!(text.len() <= REASON_LEN_MAX && !text.chars().any(char::is_control), "{text:?}");
            }
            other => panic!("{other:?}, and not {}", stringify!($kind)),
        }
    };
}

#[test]
fn an_upload_can_go_from_thread_to_thread() {
    fn is_sent<T: Send + 'static>() {}
    fn is_shared<T: Send + Sync + 'static>() {}
    is_sent::<Upload>();
    is_shared::<UploadFolder>();
}

#[test]
fn a_path_is_there_when_its_nar_and_its_narinfo_are_in_whatever_compression() {
    use Compression::{Bzip2, Gzip, None, Xz, Zstd};
    for (number, compression) in [None, Gzip, Zstd, Xz, Bzip2].into_iter().enumerate() {
        let fixture = Fixture::new();
        let file = NarFile::new(&format!("number {number}"), compression);
        assert!(fixture.put_nar(&file).unwrap());
        assert_eq!(fs::read(fixture.path().join(file.url())).unwrap(), file.bytes);
        let narinfo = file.narinfo(OUT, &[OUT]);
        assert!(fixture.put_narinfo(&narinfo).unwrap());
        assert_eq!(fixture.narinfo(OUT), narinfo);
        assert!(!fixture.put_nar(&file).unwrap(), "it is there");
        assert!(!fixture.put_narinfo(&narinfo).unwrap(), "it is there");
        fixture.assert_no_drafts();
        assert_eq!(names(fixture.path()).len(), 3);
    }
}

#[test]
fn what_the_narinfo_does_not_say_is_added() {
    let fixture = Fixture::new();
    let file = NarFile::new("contents", Compression::Zstd);
    fixture.put_nar(&file).unwrap();
    let whole = file.narinfo(OUT, &[]);
    fixture.put_narinfo(&NarInfo { file_hash: None, file_size: None, ..whole.clone() }).unwrap();
    assert_eq!(fixture.narinfo(OUT), whole);
}

#[test]
fn a_nar_is_what_its_name_says_or_it_is_not_there() {
    let fixture = Fixture::new();
    let file = NarFile::new("contents", Compression::Zstd);
    let other = NarFile::new("others", Compression::Zstd);
    assert_refused!(fixture.put(other.target(), &file.bytes), Mismatch, "its name says");
    let cut = &file.bytes[..file.bytes.len() - 1];
    assert_refused!(fixture.put(file.target(), cut), Malformed, "ends too early");
    let longer = [&file.bytes[..], b"x"].concat();
    assert!(fixture.put(file.target(), &longer).is_err());
    let mut changed = file.bytes.clone();
    changed[40] ^= 1;
    assert!(fixture.put(file.target(), &changed).is_err());
    let no_nar = NarFile::of(b"no NAR at all".to_vec(), Compression::Zstd);
    assert_refused!(fixture.put_nar(&no_nar), Malformed, "not a NAR");
    let no_nar = NarFile::of(b"no NAR at all".to_vec(), Compression::None);
    assert_refused!(fixture.put_nar(&no_nar), Malformed, "not a NAR");
    let Target::Nar { file_hash, .. } = file.target() else { unreachable!() };
    let mislabelled = Target::Nar { file_hash, compression: Compression::Xz };
    assert_refused!(fixture.put(mislabelled, &file.bytes), Malformed, "the xz data");
    for compression in [Compression::Lzip, Compression::Lz4] {
        let target = Target::Nar { file_hash, compression };
        assert_refused!(fixture.put(target, &file.bytes), UnknownCoding, "compression=zstd");
    }
    assert_refused!(
        fixture.upload(file.target(), Some("gzip"), &file.bytes),
        UnknownCoding,
        "Content-Encoding"
    );
    assert!(!fixture.path().join("nar").exists());
    fixture.assert_no_drafts();
}

#[test]
fn what_is_dropped_before_its_end_leaves_nothing() {
    let fixture = Fixture::new();
    let file = NarFile::new("contents", Compression::Zstd);
    let upload = begin_and_push(&fixture.folder, file.target(), None, &file.bytes[..20], 10).unwrap();
    let folders = fixture.path().join(".narwire-uploads");
    let [own] = &names(&folders)[..] else { panic!("one folder") };
    assert_eq!(names(&folders.join(own)).len(), 1);
    drop(upload);
    fixture.assert_no_drafts();
}

#[test]
fn a_file_that_was_not_written_as_it_came_is_not_taken() {
    let fixture = Fixture::new();
    let file = NarFile::new("contents", Compression::Zstd);
    let upload = begin_and_push(&fixture.folder, file.target(), None, &file.bytes, 1 << 20).unwrap();
    rustix::fs::ftruncate(upload.file().unwrap(), 5).unwrap();
    let error = upload.finish(&mut |_| Ok(false)).unwrap_err();
    assert!(matches!(error, Refusal::Failed(StoreError::Damaged { .. })), "{error}");
    assert!(!fixture.path().join("nar").exists());
}

#[test]
fn lengths_are_bounded_whether_they_are_told_or_not() {
    let fixture = Fixture::with(|settings| settings.len_max = 2000);
    let long = NarFile::new(&"x".repeat(100), Compression::None);
    assert_refused!(fixture.put_nar(&long), TooLarge, "2000");
    let mut upload = fixture.folder.begin(long.target(), None, None).unwrap();
    assert_refused!(upload.push(&mut Bytes::from(long.bytes.clone())), TooLarge, "2000");
    // It is short, and its NAR is not.
    let packed = NarFile::new(&"x".repeat(100), Compression::Zstd);
    assert!(packed.bytes.len() < 200);
    assert_refused!(fixture.put_nar(&packed), TooLarge, "2000");
    drop(upload);
    for (target, len) in [
        (Target::File(CacheFile::CacheInfo), CACHE_INFO_LEN_MAX + 1),
        (
            Target::File(CacheFile::NarInfo(HashPart::parse(&[b'0'; 32]).unwrap())),
            CACHED_NARINFO_LEN_MAX as u64 + 1,
        ),
        (Target::File(CacheFile::Log(StorePath::parse_base_name(OUT).unwrap())), LOG_LEN_MAX + 1),
    ] {
        let refused = fixture.folder.begin(target, None, Some(len));
        assert_refused!(refused, TooLarge, &(len - 1).to_string());
    }
    fixture.assert_no_drafts();
}

#[test]
fn room_is_kept_free_and_made_beforehand() {
    let fixture = Fixture::with(|settings| settings.free_min = Some(u64::MAX / 2));
    let file = NarFile::new("contents", Compression::Zstd);
    assert_refused!(fixture.put_nar(&file), NoRoom, "have to stay free");
    assert_refused!(fixture.put(Target::File(CacheFile::CacheInfo), b""), NoRoom, "have to stay free");
    fixture.assert_no_drafts();
    let fixture = Fixture::new();
    let upload = fixture.folder.begin(file.target(), None, Some(10 << 20)).unwrap();
    let status = rustix::fs::fstat(upload.file().unwrap()).unwrap();
    assert_eq!(status.st_size, 0);
    // Where the file system has the promise.
    assert!(status.st_blocks == 0 || status.st_blocks * 512 >= 10 << 20, "{}", status.st_blocks);
    drop(upload);
    // A body whose length is not known asks as it comes, and what it does not need is given back.
    let len = 3 * usize::try_from(crate::limits::UPLOAD_ROOM_LEN_BYTES).unwrap() + 1000;
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    });
    let nar = naive::nar(&Tree::Regular { executable: false, contents: noise.take(len).collect() });
    let file = NarFile::of(nar, Compression::None);
    let mut upload = fixture.folder.begin(file.target(), None, None).unwrap();
    File::from(upload.file().unwrap().try_clone_to_owned().unwrap()).write_all(&file.bytes).unwrap();
    let mut rest = Bytes::from(file.bytes.clone());
    while !rest.is_empty() {
        upload.push(&mut rest).unwrap();
    }
    upload.finish(&mut |_| Ok(false)).unwrap();
    let status = rustix::fs::stat(fixture.path().join(file.url())).unwrap();
    assert!(status.st_blocks * 512 < status.st_size + (1 << 20), "{} blocks", status.st_blocks);
}

#[test]
fn a_narinfo_is_about_a_nar_that_is_there_and_says_what_is_true() {
    let fixture = Fixture::new();
    let file = NarFile::new("contents", Compression::Zstd);
    let other = NarFile::new("others", Compression::Xz);
    let narinfo = file.narinfo(OUT, &[]);
    assert_refused!(fixture.put_narinfo(&narinfo), Conflict, "upload it first");
    fixture.put_nar(&file).unwrap();
    assert_refused!(
        fixture.put_narinfo(&NarInfo { url: other.url(), ..narinfo.clone() }),
        Conflict,
        "upload it first"
    );
    for (field, wrong) in [
        ("FileHash", NarInfo { file_hash: Some(Sha256::digest(b"x")), ..narinfo.clone() }),
        ("FileSize", NarInfo { file_size: Some(1), ..narinfo.clone() }),
        ("Compression", NarInfo { compression: Compression::None, ..narinfo.clone() }),
        ("Compression", NarInfo { compression: Compression::Bzip2, ..narinfo.clone() }),
        ("Compression", NarInfo { compression: Compression::Lzip, ..narinfo.clone() }),
    ] {
        assert_refused!(fixture.put_narinfo(&wrong), Mismatch, field);
    }
    let mut wrong = narinfo.clone();
    wrong.info.nar_hash = Sha256::digest(b"x");
    assert_refused!(fixture.put_narinfo(&wrong), Mismatch, "NarHash");
    let mut wrong = narinfo.clone();
    wrong.info.nar_size += 1;
    assert_refused!(fixture.put_narinfo(&wrong), Mismatch, "NarSize");
    for url in [
        "nar/",
        "nar/../x",
        "/nar/x",
        "x",
        "https://example.org/nar/x",
        "nar/.x",
        "nar/a/b",
        "nar/x?y",
        "nar/%41",
        "nar/\u{1b}[31m",
        &format!("nar/{}", "x".repeat(256)),
    ] {
        let wrong = NarInfo { url: url.to_owned(), ..narinfo.clone() };
        assert_refused!(fixture.put_narinfo(&wrong), Malformed, "URL");
    }
    let text = text_of(&narinfo);
    let elsewhere = Target::File(CacheFile::NarInfo(HashPart::parse(&[b'0'; 32]).unwrap()));
    assert_refused!(fixture.put(elsewhere, text.as_bytes()), Mismatch, "its name says");
    let here = || Target::File(CacheFile::NarInfo(narinfo.info.path.hash_part()));
    assert_refused!(fixture.put(here(), text.replace("/nix/", "/gnu/").as_bytes()), Malformed, "StorePath");
    assert_refused!(fixture.put(here(), b"\xff\xfe"), Malformed, "text");
    assert_refused!(fixture.put(here(), b""), Malformed, "StorePath is missing");
    for len in 0..text.len() {
        let cut = fixture.put(here(), &text.as_bytes()[..len]);
        // What is left of it at a line's end may be all that is needed.
        assert!(cut.is_err() || text.as_bytes()[len - 1] == b'\n', "{len}");
    }
    assert_eq!(names(fixture.path()).iter().filter(|name| name.ends_with(".narinfo")).count(), 1);
}

#[test]
fn what_a_path_refers_to_is_here_or_served_from_elsewhere() {
    let fixture = Fixture::new();
    let (file, dependency) =
        (NarFile::new("a", Compression::Zstd), "0000000000000000000000000000000d-dependency");
    fixture.put_nar(&file).unwrap();
    let narinfo = file.narinfo(OUT, &[OUT, dependency]);
    assert_refused!(fixture.put_narinfo(&narinfo), Conflict, dependency);
    let text = text_of(&narinfo);
    let begun = || {
        let target = Target::File(CacheFile::NarInfo(narinfo.info.path.hash_part()));
        begin_and_push(&fixture.folder, target, None, text.as_bytes(), 100).unwrap()
    };
    let failed = begun().finish(&mut |path| Err(StoreError::damaged(path.base_name(), "a test")));
    assert!(matches!(failed, Err(Refusal::Failed(_))));
    assert!(!fixture.path().join(format!("{}.narinfo", &OUT[..32])).exists());
    let mut asked = Vec::new();
    let accepted = begun().finish(&mut |path| {
        asked.push(path.base_name().to_owned());
        Ok(true)
    });
    assert_eq!((accepted.unwrap().is_new, asked), (true, vec![dependency.to_owned()]));
    // Another path of that hash part is not the one that is needed, and what nobody can read is none.
    let beside = fixture.path().join(format!("{}.narinfo", &dependency[..32]));
    fs::write(&beside, text_of(&file.narinfo(&format!("{}-beside", &dependency[..32]), &[]))).unwrap();
    assert_refused!(fixture.put_narinfo(&narinfo), Conflict, dependency);
    fs::write(&beside, "").unwrap();
    assert_refused!(fixture.put_narinfo(&narinfo), Conflict, dependency);
    fs::remove_file(beside).unwrap();
    // From here on it is there itself.
    fixture.put_narinfo(&NarFile::narinfo(&file, dependency, &[])).unwrap();
    assert!(!fixture.put_narinfo(&narinfo).unwrap());
}

#[test]
fn signatures_are_united_and_nothing_else_is_replaced() {
    let fixture = Fixture::new();
    let (zstd, xz) = (NarFile::new("a", Compression::Zstd), NarFile::new("a", Compression::Xz));
    let other = NarFile::new("b", Compression::Zstd);
    for file in [&zstd, &xz, &other] {
        fixture.put_nar(file).unwrap();
    }
    let mut first = zstd.narinfo(OUT, &[]);
    first.info.deriver =
        Some(StorePath::parse_base_name("0000000000000000000000000000000b-out.drv").unwrap());
    sign(&mut first, &key(1));
    assert!(fixture.put_narinfo(&first).unwrap());
    // Another client has compressed it in another way; which of the two files is named does not matter.
    let mut second = xz.narinfo(OUT, &[]);
    sign(&mut second, &key(2));
    assert!(!fixture.put_narinfo(&second).unwrap());
    let united = fixture.narinfo(OUT);
    assert_eq!(united.url, xz.url());
    assert_eq!(united.info.deriver, first.info.deriver);
    assert_eq!(united.info.signatures, [&first.info.signatures[..], &second.info.signatures].concat());
    assert!(!fixture.put_narinfo(&first).unwrap());
    assert_eq!(fixture.narinfo(OUT).info.signatures, united.info.signatures);
    assert_refused!(fixture.put_narinfo(&other.narinfo(OUT, &[])), Conflict, "another NarHash");
    assert_refused!(fixture.put_narinfo(&zstd.narinfo(OUT, &[OUT])), Conflict, "another References");
    let renamed = zstd.narinfo("0000000000000000000000000000000a-renamed", &[]);
    assert_refused!(fixture.put_narinfo(&renamed), Conflict, "another store path");
    assert_eq!(fixture.narinfo(OUT).info, united.info);
    // One that nobody can read is in nobody's way.
    fs::write(fixture.path().join(format!("{}.narinfo", &OUT[..32])), "what is this").unwrap();
    assert!(!fixture.put_narinfo(&other.narinfo(OUT, &[])).unwrap());
    assert_eq!(fixture.narinfo(OUT), other.narinfo(OUT, &[]));
}

#[test]
fn a_content_address_is_that_of_the_path() {
    let fixture = Fixture::new();
    let file = NarFile::new("a", Compression::Zstd);
    fixture.put_nar(&file).unwrap();
    let nar_hash = Sha256::digest(&file.nar);
    let store_dir = &fixture.folder.settings.store_dir;
    let path = crate::codec::content_address::path_of_tree(store_dir, "x", nar_hash).unwrap();
    let plain = file.narinfo(path.base_name(), &[]);
    fixture.put_narinfo(&plain).unwrap();
    for wrong in ["x".to_owned(), format!("fixed:sha256:{}", nar_hash.to_nix32())] {
        let mut narinfo = plain.clone();
        narinfo.info.ca = Some(wrong);
        assert_refused!(fixture.put_narinfo(&narinfo), Mismatch, "the CA is");
    }
    assert_eq!(fixture.narinfo(path.base_name()), plain);
    // Whoever has not known it takes nothing away.
    let mut right = plain.clone();
    right.info.ca = Some(format!("fixed:r:{nar_hash}"));
    for narinfo in [&right, &plain] {
        fixture.put_narinfo(narinfo).unwrap();
        assert_eq!(fixture.narinfo(path.base_name()), right);
    }
}

#[test]
fn a_narinfo_never_grows_until_it_cannot_be_read() {
    let fixture = Fixture::new();
    let file = NarFile::new("a", Compression::Zstd);
    fixture.put_nar(&file).unwrap();
    let mut narinfo = file.narinfo(OUT, &[]);
    sign(&mut narinfo, &key(1));
    let signature = narinfo.info.signatures[0].clone();
    let numbered = |number: usize| {
        let mut signature = signature.clone();
        signature.bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
        signature
    };
    narinfo.info.signatures = (0..=SIGNATURES_MAX).map(numbered).collect();
    assert_refused!(fixture.put_narinfo(&narinfo), TooLarge, "256 signatures");
    narinfo.info.signatures.pop();
    fixture.put_narinfo(&narinfo).unwrap();
    let kept = fixture.narinfo(OUT);
    narinfo.info.signatures = vec![numbered(SIGNATURES_MAX)];
    assert_refused!(fixture.put_narinfo(&narinfo), TooLarge, "256 signatures");
    // A name of a key can be long, too.
    for number in 0..2 {
        narinfo.info.path = StorePath::parse_base_name(&format!("{}b-out", "0".repeat(31))).unwrap();
        let name = char::from(b'a' + number).to_string().repeat(CACHED_NARINFO_LEN_MAX * 2 / 3);
        let key_name = KeyName::parse(&name).unwrap();
        narinfo.info.signatures = vec![Signature { key_name, bytes: signature.bytes }];
        match number {
            0 => assert!(fixture.put_narinfo(&narinfo).unwrap()),
            _ => assert_refused!(fixture.put_narinfo(&narinfo), TooLarge, "bytes"),
        }
    }
    assert_eq!(fixture.narinfo(OUT), kept);
}

#[test]
fn where_keys_are_required_one_of_them_has_signed() {
    let fixture = Fixture::new();
    fixture.folder.require([key(1).public(), key(2).public()].into());
    let file = NarFile::new("a", Compression::Zstd);
    fixture.put_nar(&file).unwrap();
    let mut narinfo = file.narinfo(OUT, &[]);
    assert_refused!(fixture.put_narinfo(&narinfo), Unsigned, "key-1 or key-2");
    sign(&mut narinfo, &key(3));
    assert_refused!(fixture.put_narinfo(&narinfo), Unsigned, "key-1 or key-2");
    // The name of one that is required, on the signature of something else.
    let mut other = file.narinfo("0000000000000000000000000000000b-other", &[]);
    sign(&mut other, &key(2));
    narinfo.info.signatures.extend(other.info.signatures);
    assert_refused!(fixture.put_narinfo(&narinfo), Unsigned, "no valid signature");
    sign(&mut narinfo, &key(2));
    assert!(fixture.put_narinfo(&narinfo).unwrap());
    // Whoever adds a signature has to have one as well.
    let mut unsigned = file.narinfo(OUT, &[]);
    sign(&mut unsigned, &key(3));
    assert_refused!(fixture.put_narinfo(&unsigned), Unsigned, "no valid signature");
}

#[test]
fn a_nar_that_others_have_put_there_is_read_before_it_is_named() {
    let fixture = Fixture::new();
    let nar = fixture.path().join("nar");
    fs::create_dir(&nar).unwrap();
    for (number, compression) in
        [Compression::Zstd, Compression::Gzip, Compression::None].into_iter().enumerate()
    {
        let file = NarFile::new(&format!("{number}"), compression);
        fs::write(fixture.path().join(file.url()), &file.bytes).unwrap();
        let narinfo = file.narinfo(&format!("{number:032}-x"), &[]);
        fixture.put_narinfo(&narinfo).unwrap();
        assert_eq!(fixture.narinfo(&format!("{number:032}-x")), narinfo);
    }
    // A name that says nothing.
    let file = NarFile::new("named", Compression::Xz);
    fs::write(nar.join("mine"), &file.bytes).unwrap();
    fixture.put_narinfo(&NarInfo { url: "nar/mine".to_owned(), ..file.narinfo(OUT, &[]) }).unwrap();
    // What cannot be looked into, and links, which nobody would be given.
    let narinfo =
        NarInfo { compression: Compression::Lzip, url: "nar/mine2".into(), ..file.narinfo(OUT, &[]) };
    fs::write(nar.join("mine2"), &file.bytes).unwrap();
    assert_refused!(fixture.put_narinfo(&narinfo), UnknownCoding, "lzip");
    std::os::unix::fs::symlink(nar.join("mine"), nar.join("link.nar.xz")).unwrap();
    let narinfo = NarInfo { url: "nar/link.nar.xz".to_owned(), ..file.narinfo(OUT, &[]) };
    assert_refused!(fixture.put_narinfo(&narinfo), Conflict, "upload it first");
}

#[test]
fn a_file_that_changed_since_it_was_verified_is_read_again_and_an_upload_heals_it() {
    let fixture = Fixture::new();
    let file = NarFile::new("a", Compression::Zstd);
    let narinfo = file.narinfo(OUT, &[]);
    fixture.put_nar(&file).unwrap();
    let path = fixture.path().join(file.url());
    assert!(fixture.folder.known_nars.contains_key(&fixture.key(&file.url(), Compression::Zstd)));
    // Its length stays, and its time differs.
    let written = File::options().write(true).open(&path).unwrap();
    written.write_all_at(b"damage", 30).unwrap();
    written.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_refused!(fixture.put_narinfo(&narinfo), Conflict, "put aside");
    assert!(!path.exists(), "it would have to be sent again");
    // Another whole NAR under this name.
    fs::write(&path, &NarFile::new("b", Compression::Zstd).bytes).unwrap();
    assert!(!fixture.put_nar(&file).unwrap());
    assert!(fixture.put_narinfo(&narinfo).unwrap());
    assert_eq!(fs::read(path).unwrap(), file.bytes);
}

#[test]
fn a_damaged_file_is_put_aside_so_that_it_is_sent_again() {
    let fixture = Fixture::new();
    let file = NarFile::new("a", Compression::Zstd);
    let narinfo = file.narinfo(OUT, &[]);
    let (name, path) = (file.url()["nar/".len()..].to_owned(), fixture.path().join(file.url()));
    let quarantine = fixture.path().join(".narwire-uploads/quarantine");
    let other = NarFile::new("b", Compression::Zstd).bytes;
    let mut flipped = file.bytes.clone();
    flipped[30] ^= 1;
    let longer = [&file.bytes[..], b"x"].concat();
    for damaged in [&other[..], &flipped, &file.bytes[..20], &longer, b""] {
        fixture.put_nar(&file).unwrap();
        fs::write(&path, damaged).unwrap();
        let reader = File::open(&path).unwrap();
        assert_refused!(fixture.put_narinfo(&narinfo), Conflict, "and is put aside: the same upload will");
        assert_refused!(fixture.put_narinfo(&narinfo), Conflict, "upload it first");
        assert_eq!(fs::read(quarantine.join(&name)).unwrap(), damaged);
        let mut read = vec![0; damaged.len()];
        reader.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(read, damaged, "who has it open goes on");
    }
    // Neither goes it with the next start, nor is there ever more than so many.
    for number in 1..QUARANTINED_FILES_MAX {
        fs::write(quarantine.join(format!("{number}")), "").unwrap();
    }
    drop(UploadFolder::open(settings(fixture.path())).unwrap());
    assert_eq!(fs::read(quarantine.join(&name)).unwrap(), b"");
    assert_eq!(names(&quarantine).len(), QUARANTINED_FILES_MAX);
    fs::rename(quarantine.join(&name), quarantine.join("0")).unwrap();
    fixture.put_nar(&file).unwrap();
    fs::write(&path, &other).unwrap();
    assert_refused!(fixture.put_narinfo(&narinfo), Conflict, "put aside");
    assert!(!path.exists() && !quarantine.join(&name).exists());
    assert!(fixture.put_nar(&file).unwrap());
    assert!(fixture.put_narinfo(&narinfo).unwrap());
}

#[test]
fn whoever_wants_to_know_of_a_file_that_is_being_read_waits_for_what_is_found() {
    let fixture = Fixture::new();
    let file = NarFile::new("a", Compression::Gzip);
    fixture.put_nar(&file).unwrap();
    let key = fixture.key(&file.url(), Compression::None);
    assert!(fixture.folder.known_nars.remove(&key).is_some());
    let quick_cache::sync::GuardResult::Guard(guard) =
        fixture.folder.known_nars.get_value_or_guard(&key, None)
    else {
        panic!("it is forgotten")
    };
    std::thread::scope(|scope| {
        let others: Vec<_> =
            (0..4).map(|_| scope.spawn(|| fixture.put_narinfo(&file.narinfo(OUT, &[])))).collect();
        // It would not be found by anybody who reads the file.
        guard.insert(Err(VerifyError::TooLong { len_max: 7 })).unwrap();
        for other in others {
            assert_refused!(other.join().unwrap(), TooLarge, "longer than 7 bytes");
        }
    });
}

#[test]
fn what_is_wrong_with_a_file_is_remembered_until_it_changes() {
    let fixture = Fixture::new();
    let file = NarFile::new("a", Compression::Xz);
    let path = fixture.path().join("nar/mine");
    fs::create_dir(fixture.path().join("nar")).unwrap();
    fs::write(&path, vec![0; file.bytes.len()]).unwrap();
    let narinfo = NarInfo { url: "nar/mine".to_owned(), ..file.narinfo(OUT, &[]) };
    assert_refused!(fixture.put_narinfo(&narinfo), Conflict, "the file \"nar/mine\" in the cache is damaged");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, &file.bytes).unwrap();
    let written = File::options().write(true).open(&path).unwrap();
    written.set_modified(time).unwrap();
    assert_refused!(fixture.put_narinfo(&narinfo), Conflict, "is damaged");
    written.set_modified(std::time::UNIX_EPOCH).unwrap();
    // Who says that it is something else learns that of that.
    let wrong = NarInfo { compression: Compression::Zstd, ..narinfo.clone() };
    assert_refused!(fixture.put_narinfo(&wrong), Conflict, "is damaged");
    assert!(fixture.put_narinfo(&narinfo).unwrap());
}

#[test]
fn what_is_not_named_by_its_hash_is_left_where_it_is() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.path().join("nar")).unwrap();
    let file = NarFile::new("a", Compression::Zstd);
    let damaged = &file.bytes[..file.bytes.len() - 9];
    // What has the hash that its name says cannot be sent otherwise.
    let no_nar = NarFile::of(b"no NAR".to_vec(), Compression::Zstd);
    let cases = [
        ("nar/mine.nar.zst".to_owned(), damaged),
        ("nar/mine".to_owned(), damaged),
        (file.url().replace(".zst", ".part"), damaged),
        (no_nar.url(), &no_nar.bytes),
    ];
    for (url, bytes) in cases {
        fs::write(fixture.path().join(&url), bytes).unwrap();
        let narinfo = NarInfo { url: url.clone(), ..file.narinfo(OUT, &[]) };
        assert_refused!(fixture.put_narinfo(&narinfo), Conflict, "is damaged");
        assert_eq!(fs::read(fixture.path().join(&url)).unwrap(), bytes);
    }
    assert!(!fixture.path().join(".narwire-uploads/quarantine").exists());
}

#[test]
fn metadata_is_decoded_and_what_cannot_be_is_refused() {
    let fixture = Fixture::new();
    let file = NarFile::new("a", Compression::Zstd);
    fixture.put_nar(&file).unwrap();
    let narinfo = file.narinfo(OUT, &[]);
    let target = || Target::File(CacheFile::NarInfo(narinfo.info.path.hash_part()));
    let text = text_of(&narinfo).into_bytes();
    let coded = |compression| NarFile::of(text.clone(), compression).bytes;
    for (coding, body) in [
        ("identity", text.clone()),
        ("zstd", coded(Compression::Zstd)),
        ("gzip", coded(Compression::Gzip)),
        ("X-GZIP", coded(Compression::Gzip)),
        (" xz ", coded(Compression::Xz)),
        ("bzip2", coded(Compression::Bzip2)),
    ] {
        fixture.upload(target(), Some(coding), &body).unwrap();
        assert_eq!(fixture.narinfo(OUT), narinfo);
        if body != text {
            let cut = &body[..body.len() - 1];
            assert_refused!(fixture.upload(target(), Some(coding), cut), Malformed, "ends too early");
        }
    }
    for coding in ["deflate", "gzip, br", "\u{1b}[0m", "lzip", &"x".repeat(2000)] {
        assert_refused!(fixture.upload(target(), Some(coding), &text), UnknownCoding, "cannot be decoded");
    }
    let bomb = NarFile::of(vec![b'x'; 2 * CACHED_NARINFO_LEN_MAX], Compression::Zstd).bytes;
    assert!(bomb.len() < 2000);
    assert_refused!(
        fixture.upload(target(), Some("zstd"), &bomb),
        TooLarge,
        &CACHED_NARINFO_LEN_MAX.to_string()
    );
}

#[test]
fn texts_share_a_memory_that_is_bounded_and_given_back() {
    let fixture = Fixture::new();
    let log = || Target::File(CacheFile::Log(StorePath::parse_base_name(OUT).unwrap()));
    let begin = || fixture.folder.begin(log(), None, Some(LOG_LEN_MAX));
    let mut begun: Vec<_> =
        (0..UPLOADED_TEXTS_LEN_MAX as u64 / LOG_LEN_MAX).map(|_| begin().unwrap()).collect();
    assert_refused!(begin(), Busy, "try again");
    assert!(fixture.folder.begin(Target::File(CacheFile::CacheInfo), None, Some(20)).is_err());
    begun.pop();
    begin().unwrap();
    // Of one that turns out to be longer than it seemed.
    begun.push(fixture.folder.begin(log(), None, Some(LOG_LEN_MAX - 2 * 4096)).unwrap());
    let mut packed = fixture.folder.begin(log(), Some("zstd"), Some(20)).unwrap();
    let mut bomb = Bytes::from(NarFile::of(vec![b'x'; 1 << 20], Compression::Zstd).bytes);
    assert_refused!(packed.push(&mut bomb), Busy, "try again");
    drop((begun, packed));
    assert_eq!(format!("{:?}", fixture.folder.memory), format!("Memory({UPLOADED_TEXTS_LEN_MAX})"));
}

#[test]
fn what_a_cache_says_of_itself_is_kept_once_it_is_said() {
    let fixture = Fixture::new();
    assert_refused!(
        fixture.put(Target::File(CacheFile::CacheInfo), b"StoreDir: /gnu/store\n"),
        Conflict,
        "/gnu/store"
    );
    assert_refused!(fixture.put(Target::File(CacheFile::CacheInfo), b"Priority: x\n"), Malformed, "Priority");
    assert_refused!(fixture.put(Target::File(CacheFile::CacheInfo), b"\xff"), Malformed, "nix-cache-info");
    assert!(fixture.put(Target::File(CacheFile::CacheInfo), b"StoreDir: /nix/store\n").unwrap());
    assert!(
        !fixture.put(Target::File(CacheFile::CacheInfo), b"StoreDir: /nix/store\nPriority: 1\n").unwrap()
    );
    assert_eq!(fixture.read("nix-cache-info"), "StoreDir: /nix/store\n");
}

#[test]
fn listings_logs_and_debug_links_are_kept_as_they_came() {
    let fixture = Fixture::new();
    let listing = Target::File(CacheFile::Listing(HashPart::parse(&OUT.as_bytes()[..32]).unwrap()));
    let text = r#"{"version":1,"root":{"type":"directory","entries":{}}}"#;
    assert!(fixture.put(listing.clone(), text.as_bytes()).unwrap());
    assert!(!fixture.put(listing.clone(), text.as_bytes()).unwrap());
    assert_eq!(fixture.read(&format!("{}.ls", &OUT[..32])), text);
    assert_refused!(fixture.put(listing, b"{}"), Malformed, "listing");

    let log = Target::File(CacheFile::Log(
        StorePath::parse_base_name("0000000000000000000000000000000b-x.drv").unwrap(),
    ));
    let bytes = b"building\n\x1b[31m\xff\n".repeat(100);
    let coded = NarFile::of(bytes.clone(), Compression::Xz).bytes;
    assert!(fixture.upload(log, Some("xz"), &coded).unwrap().is_new);
    assert_eq!(fs::read(fixture.path().join("log/0000000000000000000000000000000b-x.drv")).unwrap(), bytes);

    let build_id = BuildId::parse(&[b'a'; 40]).unwrap();
    let link = |has_suffix| Target::File(CacheFile::DebugInfo { build_id, has_suffix });
    let text = r#"{"archive":"../nar/x.nar.xz","member":"lib/debug/.build-id/ab/cdef.debug"}"#;
    assert!(fixture.put(link(true), text.as_bytes()).unwrap());
    assert!(fixture.put(link(false), text.as_bytes()).unwrap());
    assert_eq!(fixture.read(&format!("debuginfo/{}.debug", "a".repeat(40))), text);
    for (wrong, word) in [
        ("[]", "debug link"),
        (r#"{"archive":"../nar/x"}"#, "member"),
        (r#"{"archive":"../../etc/passwd","member":"x"}"#, "archive"),
        (r#"{"archive":"nar/x","member":"x"}"#, "archive"),
        (r#"{"archive":"https://example.org/nar/x","member":"x"}"#, "archive"),
        (r#"{"archive":"../nar/x","member":"../x"}"#, "member"),
        (r#"{"archive":"../nar/x","member":"/x"}"#, "member"),
        (r#"{"archive":"../nar/x","member":""}"#, "member"),
    ] {
        assert_refused!(fixture.put(link(true), wrong.as_bytes()), Malformed, word);
    }
}

#[test]
fn a_realisation_is_not_replaced_by_another_and_signatures_are_united() {
    let fixture = Fixture::new();
    let hex = "0c555bd57ae47b20ca321ed2b1152b11cd1d8251e790b629fbee5a2995c54b75";
    let id = DrvOutput::parse(&format!("sha256:{hex}!out")).unwrap();
    let target = || Target::File(CacheFile::Realisation(id.clone()));
    let signature = |number| key(number).sign("x");
    let realisation = |path: &str, number| crate::codec::realisation::Realisation {
        out_path: StorePath::parse_base_name(path).unwrap(),
        signatures: vec![signature(number)],
        dependent_realisations: BTreeMap::new(),
    };
    let other = "0000000000000000000000000000000b-other";
    let text = realisation(OUT, 1).to_keyed_json(&id);
    assert!(fixture.put(target(), text.as_bytes()).unwrap());
    assert_eq!(fixture.read(&format!("realisations/{id}.doi")), text);
    assert!(!fixture.put(target(), realisation(OUT, 2).to_keyed_json(&id).as_bytes()).unwrap());
    let united = crate::codec::realisation::Realisation {
        signatures: vec![signature(1), signature(2)],
        ..realisation(OUT, 1)
    };
    assert_eq!(fixture.read(&format!("realisations/{id}.doi")), united.to_keyed_json(&id));
    assert_refused!(
        fixture.put(target(), realisation(other, 1).to_keyed_json(&id).as_bytes()),
        Conflict,
        other
    );
    // Nobody has signed the one with what the other depends on.
    let mut dependent = realisation(OUT, 3);
    dependent.dependent_realisations.insert(id.clone(), StorePath::parse_base_name(other).unwrap());
    let dependent = dependent.to_keyed_json(&id);
    assert_refused!(fixture.put(target(), dependent.as_bytes()), Conflict, "dependent realisations");
    assert_eq!(fixture.read(&format!("realisations/{id}.doi")), united.to_keyed_json(&id));
    let elsewhere = DrvOutput::parse(&format!("sha256:{hex}!dev")).unwrap();
    assert_refused!(
        fixture.put(Target::File(CacheFile::Realisation(elsewhere)), text.as_bytes()),
        Mismatch,
        "dev"
    );
    assert_refused!(fixture.put(target(), b"{\"\n\": 1}"), Malformed, "not a realisation");

    let derivation = StorePath::parse_base_name("0000000000000000000000000000000c-x.drv").unwrap();
    let output = OutputName::parse("out").unwrap();
    let target =
        || Target::File(CacheFile::BuildTrace { derivation: derivation.clone(), output: output.clone() });
    let file = format!("build-trace-v2/{derivation}/out.doi");
    let text = realisation(OUT, 1).to_build_trace_json();
    assert!(fixture.put(target(), text.as_bytes()).unwrap());
    assert!(!fixture.put(target(), realisation(OUT, 2).to_build_trace_json().as_bytes()).unwrap());
    assert_eq!(fixture.read(&file), united.to_build_trace_json());
    assert_refused!(
        fixture.put(target(), realisation(other, 1).to_build_trace_json().as_bytes()),
        Conflict,
        other
    );
    assert_refused!(fixture.put(target(), b"{}"), Malformed, "build trace");
}

/// An export of files with these contents, each with what it refers to, written naively.
fn export(paths: &[(&str, &[u8], &[&str])]) -> Vec<u8> {
    let mut out = Vec::new();
    let number = |out: &mut Vec<u8>, number: u64| out.extend(number.to_le_bytes());
    let full = |name: &str| format!("/nix/store/{name}").into_bytes();
    for (path, contents, references) in paths {
        number(&mut out, 1);
        out.extend(naive::nar(&Tree::Regular { executable: false, contents: contents.to_vec() }));
        number(&mut out, 0x4558_494e);
        naive::word(&mut out, &full(path));
        number(&mut out, references.len() as u64);
        for reference in *references {
            naive::word(&mut out, &full(reference));
        }
        naive::word(&mut out, b"");
        number(&mut out, 0);
    }
    number(&mut out, 0);
    out
}

const DEPENDENCY: &str = "0000000000000000000000000000000d-dependency";

/// What is there of a path, and that it is what its narinfo says.
fn assert_whole(directory: &Path, path: &str, contents: &[u8]) {
    let text = fs::read_to_string(directory.join(format!("{}.narinfo", &path[..32]))).unwrap();
    let narinfo = NarInfo::parse(&text, &StoreDir::parse("/nix/store").unwrap()).unwrap();
    let file = fs::read(directory.join(&narinfo.url)).unwrap();
    let nar = zstd::decode_all(&file[..]).unwrap();
    assert_eq!(nar, naive::nar(&Tree::Regular { executable: false, contents: contents.to_vec() }));
    assert_eq!(narinfo.info.nar_hash, Sha256::digest(&nar));
    assert_eq!((narinfo.info.nar_size, narinfo.file_size), (nar.len() as u64, Some(file.len() as u64)));
    assert_eq!(narinfo.file_hash, Some(Sha256::digest(&file)));
    assert_eq!(narinfo.url, format!("nar/{}.nar.zst", Sha256::digest(&file).to_nix32()));
}

#[test]
fn an_export_becomes_paths() {
    let fixture = Fixture::new();
    let long = vec![b'x'; 300_000];
    let body = export(&[(DEPENDENCY, &long, &[]), (OUT, b"refers", &[DEPENDENCY, OUT])]);
    let accepted = fixture.upload(Target::Export, None, &body).unwrap();
    let text = format!("/nix/store/{DEPENDENCY}\n/nix/store/{OUT}\n");
    assert_eq!(accepted, Accepted { text, is_new: true });
    assert_whole(fixture.path(), DEPENDENCY, &long);
    assert_whole(fixture.path(), OUT, b"refers");
    assert_eq!(fixture.narinfo(OUT).info.references.len(), 2);
    fixture.assert_no_drafts();
    // A second time nothing is written, unless it is not there any more.
    let before = fs::metadata(fixture.path().join(fixture.narinfo(OUT).url)).unwrap();
    let again = fixture.upload(Target::Export, None, &body).unwrap();
    assert!(!again.is_new && again.text == accepted.text);
    let inode = |metadata: &fs::Metadata| std::os::unix::fs::MetadataExt::ino(metadata);
    let path = fixture.path().join(fixture.narinfo(OUT).url);
    assert_eq!(inode(&fs::metadata(&path).unwrap()), inode(&before));
    fs::remove_file(path).unwrap();
    fixture.upload(Target::Export, None, &body).unwrap();
    assert_whole(fixture.path(), OUT, b"refers");
    // Nothing is in it.
    let none = fixture.upload(Target::Export, None, &export(&[])).unwrap();
    assert_eq!(none, Accepted { text: String::new(), is_new: false });
}

#[test]
fn what_is_whole_stays_when_the_rest_of_an_export_breaks() {
    let body = export(&[(DEPENDENCY, b"first", &[]), (OUT, b"second", &[DEPENDENCY])]);
    for len in [0, 1, 8, 300, body.len() - 9, body.len() - 1] {
        let fixture = Fixture::new();
        assert_refused!(fixture.upload(Target::Export, None, &body[..len]), Malformed, "ends too early");
        fixture.assert_no_drafts();
    }
    let fixture = Fixture::new();
    let mut changed = body.clone();
    let magic = body.windows(4).rposition(|window| window == b"NIXE").unwrap();
    changed[magic] = b'X';
    assert_refused!(
        fixture.upload(Target::Export, None, &changed),
        Malformed,
        "(the path before it was taken)"
    );
    assert_whole(fixture.path(), DEPENDENCY, b"first");
    assert_eq!(names(&fixture.path().join("nar")).len(), 1);
    fixture.assert_no_drafts();
}

#[test]
fn an_import_keeps_the_rules_of_narinfos() {
    let fixture = Fixture::new();
    let without = export(&[(OUT, b"refers", &[DEPENDENCY])]);
    assert_refused!(fixture.upload(Target::Export, None, &without), Conflict, DEPENDENCY);
    assert!(!fixture.path().join("nar").exists());
    let body = export(&[(DEPENDENCY, b"first", &[])]);
    fixture.upload(Target::Export, None, &body).unwrap();
    fixture.upload(Target::Export, None, &without).unwrap();
    let other = export(&[(DEPENDENCY, b"other", &[])]);
    assert_refused!(fixture.upload(Target::Export, None, &other), Conflict, "another NarHash");
    assert_eq!(names(&fixture.path().join("nar")).len(), 2);
    assert_refused!(fixture.upload(Target::Export, Some("zstd"), &body), UnknownCoding, "Content-Encoding");
    let strict = Fixture::new();
    strict.folder.require([key(1).public()].into());
    assert_refused!(strict.upload(Target::Export, None, &body), Unsigned, "nix copy");
    let small = Fixture::with(|settings| settings.len_max = 1000);
    let long = export(&[(OUT, &[0; 1000], &[])]);
    assert_refused!(small.upload(Target::Export, None, &long), TooLarge, "1000 bytes");
    let full = Fixture::with(|settings| settings.free_min = Some(u64::MAX / 2));
    assert_refused!(full.upload(Target::Export, None, &body), NoRoom, "have to stay free");
    for fixture in [fixture, strict, small, full] {
        fixture.assert_no_drafts();
    }
}

#[test]
fn an_import_stops_after_each_path_and_names_them_as_far_as_there_is_room() {
    let fixture = Fixture::new();
    let paths: Vec<_> = (0..8).map(|number| format!("{number:032}-x")).collect();
    let paths: Vec<(&str, &[u8], &[&str])> = paths.iter().map(|path| (&**path, &b"x"[..], &[][..])).collect();
    let mut body = Bytes::from(export(&paths));
    let mut upload = fixture.folder.begin(Target::Export, None, None).unwrap();
    for number in 0..8 {
        upload.push(&mut body).unwrap();
        let kept = names(fixture.path()).iter().filter(|name| name.ends_with(".narinfo")).count();
        assert_eq!(kept, number + 1);
        assert!(!body.is_empty());
    }
    upload.push(&mut body).unwrap();
    assert!(body.is_empty());
    let text = upload.finish(&mut |_| Ok(false)).unwrap().text;
    assert_eq!(text.lines().count(), 8);
    // Most of these are there already, so they cost nothing.
    let long = format!("{}-{}", "0".repeat(32), "n".repeat(211));
    let many: Vec<(&str, &[u8], &[&str])> = vec![(&long, b"x", &[]); 300];
    let text = fixture.upload(Target::Export, None, &export(&many)).unwrap_err().to_string();
    assert!(text.contains("another store path"), "{text}");
    let other = Fixture::new();
    let text = other.upload(Target::Export, None, &export(&many)).unwrap().text;
    let listed = IMPORT_REPORT_LEN_MAX / (long.len() + "/nix/store/\n".len());
    assert!(text.ends_with(&format!("\nand {} more\n", 300 - listed)), "{}", text.lines().count());
    assert!(text.len() < IMPORT_REPORT_LEN_MAX + 100);
}

#[test]
fn a_directory_that_is_something_else_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let settings = settings(temp.path());
    UploadFolder::look(&settings).unwrap();
    assert_eq!(names(temp.path()), Vec::<String>::new(), "looking changes nothing");
    let refused = |expected: &str| {
        for error in [UploadFolder::look(&settings).err(), UploadFolder::open(settings.clone()).err()] {
            let error = error.unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        }
    };
    fs::create_dir(temp.path().join(".narwire")).unwrap();
    refused("is a NAR cache");
    fs::remove_dir(temp.path().join(".narwire")).unwrap();
    fs::write(temp.path().join("nix-cache-info"), "StoreDir: /gnu/store\n").unwrap();
    refused("is a cache of the store /gnu/store, not of /nix/store");
    fs::remove_file(temp.path().join("nix-cache-info")).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    for name in SUBDIRECTORIES {
        let path = temp.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), &path).unwrap();
        refused(&format!("{name}: it is a symbolic link; put a directory in its place"));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        refused(&format!("{name}: it is no directory"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        UploadFolder::look(&settings).unwrap();
    }
    fs::remove_dir_all(temp.path()).unwrap();
    refused("cannot open");
    fs::write(temp.path(), "a file").unwrap();
    refused("cannot open");
    fs::remove_file(temp.path()).unwrap();
    fs::create_dir(temp.path()).unwrap();
    UploadFolder::open(settings).unwrap();
}

#[test]
fn a_directory_is_opened_once_unless_somebody_removes_or_replaces_it() {
    let fixture = Fixture::new();
    let file = NarFile::new("a", Compression::Zstd);
    let opened = || fixture.folder.subdirectory("nar").unwrap();
    fixture.put_nar(&file).unwrap();
    let first = opened();
    assert!(Arc::ptr_eq(&first, &opened()));
    let path = fixture.path().join("nar");
    fs::rename(&path, fixture.path().join("old")).unwrap();
    assert_refused!(fixture.put_narinfo(&file.narinfo(OUT, &[])), Conflict, "upload it first");
    assert!(!path.exists(), "nothing is made to look for something");
    fs::create_dir(&path).unwrap();
    assert!(fixture.put_nar(&file).unwrap());
    assert!(!Arc::ptr_eq(&first, &opened()));
    fs::remove_dir_all(&path).unwrap();
    assert!(fixture.put_nar(&file).unwrap());
    assert!(fixture.put_narinfo(&file.narinfo(OUT, &[])).unwrap());
}

#[test]
fn reasons_are_one_line_that_can_be_shown() {
    assert_eq!(reason("a\n\u{1b}b\u{85}ä"), "a\\n\\u{1b}b\\u{85}ä");
    let long = reason("ä".repeat(REASON_LEN_MAX));
    assert!(long.len() > REASON_LEN_MAX - 2 && long.len() <= REASON_LEN_MAX);
    assert_eq!(quoted("a\"\n"), r#""a\"\n""#);
    assert_eq!(quoted(&"ä".repeat(1000)).len(), QUOTED_LEN_MAX + 2);
}

// Behind the macro that it uses.
mod faults;
