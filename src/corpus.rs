//! Every file of `fuzz/corpus` through the body of its fuzz target: what was found once is not found again, without a fuzzer.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::{background, cli, codec, push, ring, server, store};

/// What a target does with an input.
type Body = fn(&[u8]);

/// The fuzz targets. `fuzz/fuzz_targets` has a file for each.
const TARGETS: [(&str, Body); 27] = [
    ("base32", codec::base32::fuzz_base32),
    ("cache_info", codec::cache_info::fuzz_cache_info),
    ("catalog", store::catalog::fuzz_catalog),
    ("configuration", cli::file::fuzz_file),
    ("connection", ring::sim::fuzz_connection),
    ("content_address", codec::content_address::fuzz_content_address),
    ("decompress", codec::decompress::fuzz_decompress),
    ("export", codec::export::fuzz_export),
    ("exposition", codec::exposition::fuzz_exposition),
    ("hash", codec::hash::fuzz_hash),
    ("http_body", codec::http::body::fuzz_body),
    ("http_fields", codec::http::field::fuzz_fields),
    ("http_head", codec::http::request::fuzz_head),
    ("http_route", codec::http::route::fuzz_route),
    ("keys", codec::signature::fuzz_keys),
    ("listing", codec::nar::listing::fuzz_listing),
    ("nar_decode", codec::nar::decode::fuzz_decode),
    ("nar_layout", codec::nar::layout::fuzz_layout),
    ("narinfo", codec::narinfo::fuzz_narinfo),
    ("netrc", push::netrc::fuzz_netrc),
    ("proxy", server::proxy::fuzz_proxy),
    ("realisation", codec::realisation::fuzz_realisation),
    ("scrub_state", background::scrub::fuzz_scrub_state),
    ("search", codec::search::fuzz_search),
    ("store_path", codec::store_path::fuzz_store_path),
    ("token", codec::token::fuzz_token),
    ("upload", store::upload::fuzz_upload),
];

#[test]
fn what_fuzzing_has_found_interesting_is_still_right() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (target, body) in TARGETS {
        let inputs: Vec<_> =
            fs::read_dir(folder.join(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!inputs.is_empty(), "{target} has no corpus");
        for input in inputs {
            let data = fs::read(&input).unwrap();
            if let Err(panic) = std::panic::catch_unwind(|| body(&data)) {
                eprintln!("{} breaks {target}", input.display());
                std::panic::resume_unwind(panic);
            }
        }
    }
}

#[test]
fn every_target_is_listed() {
    let listed: BTreeSet<_> = TARGETS.iter().map(|(target, _)| (*target).to_owned()).collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let there: BTreeSet<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(listed, there);
}
