//! Reader and writer together: each is tested with what Nix wrote and with the other.

use proptest::prelude::*;

use super::*;
use crate::codec::signature::{KeyName, PublicKey, SecretKey};
use crate::codec::store_path::StorePathError;

// Written by `nix copy --to file://…?compression=zstd` of Nix 2.8, from a store where `nix store sign` had
// signed twice.
const SELF_REFERRING: &str = "\
StorePath: /nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-self
URL: nar/1a25dqa9pkai2lc8m4ynbp5j46ggd11rrg01wl0f1s5ckx9ly0za.nar.zst
Compression: zstd
FileHash: sha256:1a25dqa9pkai2lc8m4ynbp5j46ggd11rrg01wl0f1s5ckx9ly0za
FileSize: 129
NarHash: sha256:0i9pjcpjx7m8xszjbb0wgnwli0k0kwcw5g11lahmcfjdmpvd3b1x
NarSize: 168
References: 00bgd045z0d4icpbc2yyz4gx48ak44la-self 21jmr586qsj2jawxwsx2i6yry53lg0g1-libc 776052jvikfcx9x4896q5y9jdvk6z8zm-lib-z 7sp5vil8frbxzw472b4n0fc4gi4v4jh3-lib.a
Deriver: g47vqhkj49ij8cvw8aw85c5qpgl4qih6-self.drv
Sig: cache.example.org-1:fK/XFB33xKuN3seyNe4a/qFwUGujyJKzW1VKv/6IL9RO18Hq2qihUpHXSgC/9liauc+JZxhZd99pTBovRpxiDg==
Sig: other.example.org-2:QBeGJGfW/D0PXrYMHtIdxBLTtPWPjwaPqMfzOF7ddA3dULpPyBBje8XZsCL757VU1Ci6mTc9WzmrRk60DIlwCA==
";

// The same from `?compression=none`, of a path that is named after its content and refers to nothing.
const CONTENT_ADDRESSED: &str = "\
StorePath: /nix/store/k72bmjzw4b1c3iz02d6x3hck3x8rdv0i-a+b_c-1.0
URL: nar/13qyb0yiqm0lwbvcxyd86wrmj468vggaymza21s4fv64bf4p8n7j.nar
Compression: none
FileHash: sha256:13qyb0yiqm0lwbvcxyd86wrmj468vggaymza21s4fv64bf4p8n7j
FileSize: 480
NarHash: sha256:13qyb0yiqm0lwbvcxyd86wrmj468vggaymza21s4fv64bf4p8n7j
NarSize: 480
References:\x20
Sig: cache.example.org-1:3pxPB29GPCS9g5KC2qvlqdEgVJuefoouNM8WA/+QogMkUKtnsTlJH910NXiBwNM1z6iJ4JyZKZE7hGCCEDIPCA==
CA: fixed:r:sha256:13qyb0yiqm0lwbvcxyd86wrmj468vggaymza21s4fv64bf4p8n7j
";

const REFERENCE: &str = "21jmr586qsj2jawxwsx2i6yry53lg0g1-libc";

fn nix_store() -> StoreDir {
    StoreDir::parse("/nix/store").unwrap()
}

fn parse(text: &str) -> Result<NarInfo, NarInfoError> {
    NarInfo::parse(text, &nix_store())
}

fn write(narinfo: &NarInfo) -> String {
    let mut text = String::new();
    narinfo.write(&nix_store(), &mut text);
    text
}

/// The content-addressed sample, with one line replaced.
fn with_line(field: &str, line: &str) -> Result<NarInfo, NarInfoError> {
    let old = CONTENT_ADDRESSED.lines().find(|line| line.starts_with(&format!("{field}:"))).unwrap();
    parse(&CONTENT_ADDRESSED.replacen(&format!("{old}\n"), line, 1))
}

fn field_error(result: Result<NarInfo, NarInfoError>) -> FieldError {
    match result.unwrap_err() {
        NarInfoError::Field { reason, .. } => reason,
        other => panic!("{other}"),
    }
}

#[test]
fn what_nix_wrote_is_written_back_byte_for_byte() {
    for text in [SELF_REFERRING, CONTENT_ADDRESSED] {
        assert_eq!(write(&parse(text).unwrap()), text);
    }
}

#[test]
fn every_field_is_read() {
    let NarInfo { info, url, compression, file_hash, file_size } = parse(SELF_REFERRING).unwrap();
    assert_eq!(info.path.name(), "self");
    assert_eq!(url, "nar/1a25dqa9pkai2lc8m4ynbp5j46ggd11rrg01wl0f1s5ckx9ly0za.nar.zst");
    assert_eq!(compression, Compression::Zstd);
    assert_eq!(file_hash.unwrap().to_nix32(), "1a25dqa9pkai2lc8m4ynbp5j46ggd11rrg01wl0f1s5ckx9ly0za");
    assert_eq!(file_size, Some(129));
    assert_eq!(info.nar_hash.to_nix32(), "0i9pjcpjx7m8xszjbb0wgnwli0k0kwcw5g11lahmcfjdmpvd3b1x");
    assert_eq!(info.nar_size, 168);
    assert_eq!(
        info.references.iter().map(StorePath::name).collect::<Vec<_>>(),
        ["self", "libc", "lib-z", "lib.a"]
    );
    assert_eq!(info.deriver.unwrap().name(), "self.drv");
    assert_eq!(info.signatures.len(), 2);
    assert_eq!(info.ca, None);
    let ca = parse(CONTENT_ADDRESSED).unwrap().info.ca;
    assert_eq!(ca.unwrap(), "fixed:r:sha256:13qyb0yiqm0lwbvcxyd86wrmj468vggaymza21s4fv64bf4p8n7j");
}

#[test]
fn the_signatures_of_nix_verify() {
    let info = parse(SELF_REFERRING).unwrap().info;
    let fingerprint = info.fingerprint(&nix_store());
    for (public, signature) in [
        "cache.example.org-1:+HhLo9hZyQ767XG9WxBUYS/FQu1JPr79CTsEv0KNK9c=",
        "other.example.org-2:9v/Iqovm99vOoEKYkTqWBh+L21/sZGkeUzFkcazFE8Y=",
    ]
    .iter()
    .zip(&info.signatures)
    {
        assert!(PublicKey::parse(public).unwrap().verify(&fingerprint, signature));
    }
}

#[test]
fn every_prefix_is_whole_or_refused() {
    for text in [SELF_REFERRING, CONTENT_ADDRESSED] {
        let first_optional = text.find("References").unwrap();
        for end in 0..text.len() {
            let prefix = &text[..end];
            let is_whole = end >= first_optional && prefix.ends_with('\n');
            assert_eq!(parse(prefix).is_ok(), is_whole, "{prefix}");
        }
    }
}

#[test]
fn the_space_after_references_is_part_of_the_format() {
    assert_eq!(with_line("References", "References: \n").unwrap().info.references, []);
    assert_eq!(with_line("References", "").unwrap().info.references, []);
    // Without it, the next line is taken for the value.
    let swallowed = with_line("References", "References:\n");
    assert!(matches!(field_error(swallowed), FieldError::Reference(_)));
    let text = CONTENT_ADDRESSED.split_inclusive("References:").next().unwrap();
    assert_eq!(parse(&format!("{text}\n")), Err(NarInfoError::NoLineFeed { line: 8 }));
}

#[test]
fn line_ends_are_line_feeds() {
    let unended = CONTENT_ADDRESSED.trim_end();
    assert!(matches!(parse(unended), Err(NarInfoError::NoLineFeed { line: 10 })));
    let blank_line_at_the_end = format!("{CONTENT_ADDRESSED}\n");
    assert!(matches!(parse(&blank_line_at_the_end), Err(NarInfoError::NoColon { line: 11 })));
    let carriage_returns = CONTENT_ADDRESSED.replace('\n', "\r\n");
    assert_eq!(field_error(parse(&carriage_returns)), FieldError::StorePath(StorePathError::NameCharacter));
}

#[test]
fn unknown_fields_are_skipped() {
    let text = format!("Future: yes\nSystem: x86_64-linux\n{CONTENT_ADDRESSED}:: \n");
    assert_eq!(parse(&text), parse(CONTENT_ADDRESSED));
}

#[test]
fn what_stands_behind_nar_says_the_compression_where_nix_lets_it() {
    for suffix in [".br", ".bz2", ".lz4", ".lzip", ".xz", ".zst"] {
        assert_eq!(Compression::of_suffix(suffix).unwrap().suffix(), suffix);
    }
    assert_eq!(Compression::of_suffix(""), Some(Compression::None));
    assert_eq!(Compression::Gzip.suffix(), "");
    for suffix in [".gz", ".zstd", "xz", ".", ".xz.xz"] {
        assert_eq!(Compression::of_suffix(suffix), None, "{suffix:?}");
    }
}

#[test]
fn compression_absent_or_empty_is_bzip2() {
    assert_eq!(with_line("Compression", "").unwrap().compression, Compression::Bzip2);
    assert_eq!(with_line("Compression", "Compression: \n").unwrap().compression, Compression::Bzip2);
    assert_eq!(field_error(with_line("Compression", "Compression: rar\n")), FieldError::Compression);
    for compression in Compression::ALL {
        let line = format!("Compression: {}\n", compression.as_str());
        assert_eq!(with_line("Compression", &line).unwrap().compression, compression);
    }
}

#[test]
fn four_fields_must_be_there() {
    for field in ["StorePath", "URL", "NarHash", "NarSize"] {
        assert_eq!(with_line(field, ""), Err(NarInfoError::Missing(field)));
    }
    assert_eq!(with_line("URL", "URL: \n"), Err(NarInfoError::Missing("URL")));
    assert_eq!(with_line("NarSize", "NarSize: 0\n"), Err(NarInfoError::Missing("NarSize")));
    assert_eq!(parse(""), Err(NarInfoError::Missing("StorePath")));
}

#[test]
fn what_describes_the_file_may_be_absent() {
    assert_eq!(with_line("FileHash", "").unwrap().file_hash, None);
    assert_eq!(with_line("FileSize", "").unwrap().file_size, None);
    assert_eq!(with_line("FileSize", "FileSize: 0\n").unwrap().file_size, None);
    let narinfo = with_line("URL", "URL: https://example.org/nar/x.nar?hash=1\n").unwrap();
    assert_eq!(narinfo.url, "https://example.org/nar/x.nar?hash=1");
}

#[test]
fn hashes_may_have_any_form() {
    let nar_hash = parse(CONTENT_ADDRESSED).unwrap().info.nar_hash;
    for text in [
        "sha256:f25874895bc46c477410ea57afdedbc810593337a8f9cef6e214541c3d581e8f",
        "sha256-8lh0iVvEbEd0EOpXr97byBBZMzeo+c724hRUHD1YHo8=",
        "sha256:8lh0iVvEbEd0EOpXr97byBBZMzeo+c724hRUHD1YHo8=",
    ] {
        let narinfo = with_line("NarHash", &format!("NarHash: {text}\n")).unwrap();
        assert_eq!(narinfo.info.nar_hash, nar_hash, "{text}");
        assert_eq!(write(&narinfo), CONTENT_ADDRESSED, "and are written in one");
    }
    assert!(matches!(field_error(with_line("NarHash", "NarHash: sha256:1\n")), FieldError::NarHash(_)));
    assert!(matches!(field_error(with_line("FileHash", "FileHash: \n")), FieldError::FileHash(_)));
}

#[test]
fn sizes_are_decimal_numbers() {
    let largest = with_line("NarSize", "NarSize: 18446744073709551615\n").unwrap();
    assert_eq!(largest.info.nar_size, u64::MAX);
    for size in ["", "+1", "-1", " 1", "1 ", "0x1", "1.0", "18446744073709551616"] {
        assert_eq!(
            field_error(with_line("NarSize", &format!("NarSize: {size}\n"))),
            FieldError::NarSize,
            "{size:?}"
        );
        assert_eq!(
            field_error(with_line("FileSize", &format!("FileSize: {size}\n"))),
            FieldError::FileSize,
            "{size:?}"
        );
    }
}

#[test]
fn references_are_base_names_in_any_order() {
    let other = "00bgd045z0d4icpbc2yyz4gx48ak44la-self";
    let narinfo =
        with_line("References", &format!("References:  {REFERENCE}   {other} {REFERENCE}\n")).unwrap();
    assert_eq!(
        narinfo.info.references.iter().map(StorePath::base_name).collect::<Vec<_>>(),
        [other, REFERENCE]
    );
    let full = with_line("References", &format!("References: /nix/store/{REFERENCE}\n"));
    assert!(matches!(field_error(full), FieldError::Reference(_)));
}

#[test]
fn references_and_ca_are_given_once() {
    let references = format!("References: {REFERENCE}\n");
    let twice = with_line("References", &references.repeat(2));
    assert_eq!(field_error(twice), FieldError::ReferencesTwice);
    let after_none = with_line("References", &format!("References: \n{references}")).unwrap();
    assert_eq!(after_none.info.references.len(), 1);
    assert_eq!(field_error(with_line("CA", "CA: text:a\nCA: text:a\n")), FieldError::CaTwice);
    assert_eq!(with_line("CA", "CA: \n").unwrap().info.ca, None);
}

#[test]
fn of_other_fields_the_last_one_counts() {
    assert_eq!(with_line("NarSize", "NarSize: 1\nNarSize: 2\n").unwrap().info.nar_size, 2);
    assert_eq!(with_line("URL", "URL: a\nURL: b\n").unwrap().url, "b");
    let repeated = with_line("Compression", "Compression: xz\nCompression: \n").unwrap();
    assert_eq!(repeated.compression, Compression::Bzip2);
}

#[test]
fn derivers() {
    let deriver = |value: &str| with_line("CA", &format!("Deriver: {value}\n"));
    assert_eq!(deriver("unknown-deriver").unwrap().info.deriver, None);
    assert_eq!(deriver(REFERENCE).unwrap().info.deriver.unwrap().base_name(), REFERENCE);
    assert!(matches!(field_error(deriver("")), FieldError::Deriver(_)));
    assert!(matches!(field_error(deriver(&format!("/nix/store/{REFERENCE}"))), FieldError::Deriver(_)));
}

#[test]
fn a_damaged_signature_spoils_the_narinfo() {
    for signature in ["", "no-colon", "k:", "k:!!!!", "k:AAAA", ":AAAA"] {
        let damaged = with_line("Sig", &format!("Sig: {signature}\n"));
        assert!(matches!(field_error(damaged), FieldError::Signature(_)), "{signature}");
    }
    assert_eq!(with_line("Sig", "").unwrap().info.signatures, []);
}

#[test]
fn a_value_may_not_begin_within_a_character() {
    assert_eq!(parse("Future:é\n"), Err(NarInfoError::NoLineFeed { line: 1 }));
}

#[test]
fn writing_appends() {
    let mut text = "before\n".to_owned();
    parse(CONTENT_ADDRESSED).unwrap().write(&nix_store(), &mut text);
    assert_eq!(text, format!("before\n{CONTENT_ADDRESSED}"));
}

/// The reader's rule with offsets, as one would write it down: name up to the colon, value from two behind
/// it.
fn naive_fields(text: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let find = |byte, from: usize| (from..text.len()).find(|index| text[*index] == byte);
    let mut fields = Vec::new();
    let mut position = 0;
    while position < text.len() {
        let colon = find(b':', position)?;
        let line_end = find(b'\n', colon + 2)?;
        fields.push((&text[position..colon], &text[colon + 2..line_end]));
        position = line_end + 1;
    }
    Some(fields)
}

fn fields(text: &str) -> Option<Vec<(&[u8], &[u8])>> {
    let mut fields = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, value, next) = parse::split_field(rest, 0).ok()?;
        fields.push((name.as_bytes(), value.as_bytes()));
        rest = next;
    }
    Some(fields)
}

fn store_paths() -> impl Strategy<Value = StorePath> {
    let base_name = "[0-9a-df-np-sv-z]{32}-[a-zA-Z0-9+_?=][-a-zA-Z0-9+._?=]{0,40}";
    base_name.prop_map(|base_name| StorePath::parse_base_name(&base_name).unwrap())
}

fn signatures() -> impl Strategy<Value = Signature> {
    ("[!-9;-~]{1,20}", prop::array::uniform32(any::<u8>()))
        .prop_map(|(key_name, seed)| SecretKey::from_seed(KeyName::parse(&key_name).unwrap(), &seed).sign(""))
}

prop_compose! {
    fn path_infos()(
        path in store_paths(),
        nar_hash: [u8; 32],
        nar_size in 1..=u64::MAX,
        references in prop::collection::btree_set(store_paths(), 0..5),
        deriver in prop::option::of(store_paths()),
        signatures in prop::collection::vec(signatures(), 0..3),
        ca in prop::option::of("(text|fixed:r):sha256:[0-9a-df-np-sv-z]{52}"),
    ) -> PathInfo {
        let nar_hash = Sha256Digest(nar_hash);
        let references = references.into_iter().collect();
        PathInfo { path, nar_hash, nar_size, references, deriver, signatures, ca }
    }
}

prop_compose! {
    fn narinfos()(
        info in path_infos(),
        url in "[^\n]{1,40}",
        compression in prop::sample::select(Compression::ALL.as_slice()),
        file_hash: Option<[u8; 32]>,
        file_size in prop::option::of(1..=u64::MAX),
    ) -> NarInfo {
        NarInfo { info, url, compression, file_hash: file_hash.map(Sha256Digest), file_size }
    }
}

proptest! {
    #[test]
    fn reads_back_what_it_wrote(narinfo in narinfos()) {
        prop_assert_eq!(parse(&write(&narinfo)), Ok(narinfo));
    }

    #[test]
    fn fields_are_split_as_by_the_naive_twin(text in "[a: \n]{0,30}") {
        prop_assert_eq!(fields(&text), naive_fields(text.as_bytes()));
    }

    #[test]
    fn no_damage_panics(at in 0..SELF_REFERRING.len(), character: char) {
        let mut text = SELF_REFERRING.to_owned();
        text.replace_range(at..=at, character.encode_utf8(&mut [0; 4]));
        if let Ok(narinfo) = parse(&text) {
            prop_assert_eq!(parse(&write(&narinfo)), Ok(narinfo));
        }
    }
}

#[test]
fn a_path_may_have_ten_thousand_references_and_signatures() {
    // From the last to the first, and each of them twice.
    let names: Vec<_> = (0..10_000).rev().map(|number| format!("{number:032}-{number}")).collect();
    let twice = [&names[..], &names[..]].concat().join(" ");
    let references = with_line("References", &format!("References: {twice}\n")).unwrap();
    assert_eq!(references.info.references.len(), names.len());
    assert!(references.info.references.is_sorted());
    let signature = CONTENT_ADDRESSED.lines().find(|line| line.starts_with("Sig:")).unwrap();
    let signed = with_line("Sig", &format!("{signature}\n").repeat(10_000)).unwrap();
    assert_eq!(signed.info.signatures.len(), 10_000);
    for narinfo in [references, signed] {
        assert_eq!(parse(&write(&narinfo)).unwrap(), narinfo);
    }
}
