//! What no compiler checks: the arrows between layers, where unsafe code may be, and plain tidiness of the text.

#![allow(clippy::unwrap_used)] // a test that cannot go on panics

use std::fs;
use std::path::{Path, PathBuf};

/// Each layer of `src` with the layers it may name. Everybody may name itself and `limits`.
const LAYERS: [(&str, &[&str]); 11] = [
    ("limits", &[]),
    ("residency", &[]),
    ("tally", &[]),
    ("codec", &[]),
    ("store", &["codec", "tally"]),
    ("ring", &["codec", "residency", "tally"]),
    ("background", &["codec", "store", "residency", "tally"]),
    ("server", &["codec", "store", "ring", "background", "tally"]),
    ("push", &["codec", "store", "tally"]),
    ("cli", &["codec", "store", "ring", "background", "server", "push", "tally"]),
    ("main", &["codec", "store", "ring", "background", "server", "push", "cli"]),
];

/// What a layer has no business with, although it may name the rest of the same: the ring knows HTTP framing and no Nix, the
/// store knows Nix and no HTTP. In `codec` the names behind a brace would escape [`IMPURE`].
const FOREIGN: [(&str, &[&str]); 3] = [
    ("codec", &["std::{", "std::os", "std::env"]),
    (
        "ring",
        &[
            "codec::base32",
            "codec::build_id",
            "codec::cache_info",
            "codec::hash",
            "codec::http::route",
            "codec::nar",
            "codec::realisation",
            "codec::signature",
            "codec::store_path",
        ],
    ),
    ("store", &["codec::http"]),
];

/// What the pure layer must not name: files, sockets, clocks, threads, the kernel, the database, the log.
const IMPURE: [&str; 9] =
    ["std::fs", "std::net", "std::time", "std::thread", "rustix", "libc", "io_uring", "rusqlite", "tracing"];

/// The files that may talk to the kernel in ways the compiler cannot check.
const UNSAFE_FILES: [&str; 10] = [
    "benches/harness/server.rs",
    "benches/ring/bare_ring.rs",
    "src/background/priority.rs",
    "src/push/hosts.rs",
    "src/residency.rs",
    "src/ring/buffer_ring.rs",
    "src/ring/capability.rs",
    "src/ring/uring.rs",
    "src/store/catalog/map.rs",
    "src/store/change.rs",
];

/// The runtime that ends the process where something is missing: at home where that cannot happen, a stranger elsewhere.
const RUNTIME: &str = "glommio";

/// Where it may be named.
const RUNTIME_PLACES: [&str; 2] = ["src/background/", "benches/ring/glommio_echo.rs"];

/// Longest comment line. Characters. rustfmt holds the code to 110 and leaves comments alone.
const COMMENT_LEN_MAX: usize = 140;

/// Words that have no place in the repository, each with the reason. They are split here so that this file passes.
const BANNED: [(&str, &str); 4] = [
    (concat!("TO", "DO"), "do it, or open an issue"),
    (concat!("FIX", "ME"), "do it, or open an issue"),
    (concat!("todo", "!("), "no stubs"),
    (concat!("/wo", "rk/"), "no path of one developer's machine"),
];

#[test]
fn the_tree_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut faults = Vec::new();
    for file in text_files(root) {
        let name = file.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&file).unwrap();
        faults.extend(check(&name, &text));
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn the_checker_catches_each_kind_of_fault() {
    let caught = |name: &str, text: &str| !check(name, text).is_empty();
    assert!(caught("src/codec/hash.rs", "use crate::store::db;\n"));
    assert!(caught("src/codec/hash.rs", "use super::super::store;\n"));
    assert!(caught("src/store/db.rs", "fn f() { crate::ring::run() }\n"));
    assert!(caught("src/server/worker.rs", "use crate::{cli, codec};\n"));
    assert!(caught("src/codec/nar/token.rs", "let now = std::time::Instant::now();\n"));
    assert!(caught("src/codec/hash.rs", "use std::{fmt, fs};\n"));
    assert!(caught("src/ring/body.rs", "use crate::codec::store_path::StorePath;\n"));
    assert!(caught("src/ring/body.rs", "use crate::codec::http::route::Route;\n"));
    assert!(caught("src/store/db.rs", "use crate::codec::http::Status;\n"));
    assert!(caught("src/codec/hash.rs", "#![allow(unsafe_code)]\n"));
    assert!(caught("src/server/mod.rs", &format!("use {RUNTIME}::LocalExecutor;\n")));
    assert!(!caught("src/background/fill.rs", &format!("use {RUNTIME}::LocalExecutor;\n")));
    assert!(caught("src/lib.rs", "let x = 1; \n"));
    assert!(caught("src/lib.rs", &format!("// {}\n", "x".repeat(COMMENT_LEN_MAX))));
    assert!(caught("README.md", concat!("see /wo", "rk/here\n")));
    assert!(caught("README.md", "no line end"));
    assert!(!caught("src/server/worker.rs", "use crate::codec::http;\nuse crate::ring::Ring;\n"));
    assert!(!caught(
        "src/codec/hash.rs",
        "//! What std::fs reads is none of our business, see [`crate::store`].\n"
    ));
}

/// Every fault of one file, as `file:line: what`. `name` is relative to the repository.
fn check(name: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut fault = |what: String| faults.push(format!("{name}:{}: {what}", index + 1));
        if line.trim_end() != line {
            fault("white space at the end of the line".into());
        }
        for (word, reason) in BANNED.into_iter().filter(|(word, _)| line.contains(word)) {
            fault(format!("{word}: {reason}"));
        }
        if Path::new(name).extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        if line.trim_start().starts_with("//") {
            if line.chars().count() > COMMENT_LEN_MAX {
                fault(format!("longer than {COMMENT_LEN_MAX} characters"));
            }
            continue;
        }
        if allows_unsafe(line) && !UNSAFE_FILES.contains(&name) && name != "tests/tidy.rs" {
            fault("unsafe code in a file that is not in the list of tests/tidy.rs".into());
        }
        if names_path(line, RUNTIME) && !RUNTIME_PLACES.iter().any(|place| name.starts_with(place)) {
            fault(format!("{RUNTIME} is named outside of {}", RUNTIME_PLACES[0]));
        }
        if let Some(layer) = layer_of(name) {
            for other in upward_names(layer, line) {
                fault(format!("{layer} must not name {other}"));
            }
            for (_, foreign) in FOREIGN.into_iter().filter(|(known, _)| *known == layer) {
                for other in foreign.iter().filter(|other| line.contains(**other)) {
                    fault(format!("{layer} must not name {other}"));
                }
            }
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        faults.push(format!("{name}: the last line has no end"));
    }
    faults
}

/// `store` for `src/store/db.rs`, `main` for `src/main.rs`. `lib.rs` only lists the layers.
fn layer_of(name: &str) -> Option<&'static str> {
    let module = name.strip_prefix("src/")?.split('/').next()?;
    LAYERS.iter().map(|(layer, _)| *layer).find(|layer| *layer == module.trim_end_matches(".rs"))
}

/// What a line of `layer` names and should not.
fn upward_names(layer: &str, line: &str) -> Vec<String> {
    let below = LAYERS.iter().find(|(name, _)| *name == layer).map_or(&[][..], |(_, below)| below);
    let forbidden = LAYERS.iter().map(|(other, _)| *other);
    let forbidden = forbidden.filter(|other| *other != layer && *other != "limits" && !below.contains(other));
    let mut found: Vec<String> =
        forbidden.filter(|other| names_module(line, other)).map(str::to_owned).collect();
    if line.contains("crate::{") {
        found.push("several layers in one line".to_owned());
    }
    if layer == "codec" {
        found.extend(IMPURE.iter().filter(|path| names_path(line, path)).map(|path| (*path).to_owned()));
    }
    found
}

fn names_module(line: &str, module: &str) -> bool {
    ["crate::", "super::", "narwire::"]
        .iter()
        .any(|from_root| names_word(line, &format!("{from_root}{module}")))
}

/// Whether `path` is used, or something beneath it; the words alone may also be part of a text.
fn names_path(line: &str, path: &str) -> bool {
    names_word(line, &format!("use {path}")) || line.contains(&format!("{path}::"))
}

/// Whether `word` stands in `line` with no letter, digit or underscore before or after it.
fn names_word(line: &str, word: &str) -> bool {
    let joins = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    line.match_indices(word).any(|(start, _)| {
        let bytes = line.as_bytes();
        !joins(start.checked_sub(1).and_then(|before| bytes.get(before)))
            && !joins(bytes.get(start + word.len()))
    })
}

fn allows_unsafe(line: &str) -> bool {
    ["allow(unsafe_code", "expect(unsafe_code"].iter().any(|allowance| line.contains(allowance))
}

/// The repository's own text: sources, documents and scripts, not what is built or fetched.
fn text_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() && !["target", "result", ".git", "corpus", "artifacts"].contains(&name.as_str()) {
            files.extend(text_files(&path));
        }
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if path.is_file()
            && (["rs", "md", "toml", "nix", "sh", "service"].contains(&extension) || name == "run")
        {
            files.push(path);
        }
    }
    files
}
