//! Uploads by real Nix clients: three versions, every compression, and all that they send beside NARs.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::nginx::Nginx;
use crate::support::nix::hash_part;
use crate::support::nix_upload::{
    assert_same_files, contents_beneath, copy_command, copy_up, create_token, kill, nar_target,
};
use crate::support::upload::UploadDir;
use crate::support::{
    Connection, CuttingProxy, Narwire, Nix, Store, assert_same_bytes, eventually, fixture, printed, run,
    run_failing, text,
};

/// References, one to itself, derivers, programs, links, empty ones, and names that are hard to write.
const NAMES: [&str; 11] = [
    "program-1.0",
    "program-1.0-doc",
    "text",
    "fixed-flat",
    "a+b?c=d_e-1.2",
    "empty-file",
    "empty-folder",
    "executable",
    "dangling-link",
    "deep",
    "odd",
];
/// As long as most: a few hundred kilobytes.
const FILES: (usize, usize) = (20, 20_000);
/// More than a megabyte each: before such bodies every curl waits to be told to go on.
const LONG_NAMES: [&str; 2] = ["sizes", "large"];
/// What a client waits for that gives up at once.
const ONE_ATTEMPT: &str = "download-attempts = 1";
const REALISATIONS: &str = "experimental-features = nix-command ca-derivations";
const WITH_ALL: &str = "write-nar-listing=true&index-debug-info=true";

/// Every version with another one, of which the first writes and the second reads.
fn pairs() -> impl Iterator<Item = (Nix, Nix)> {
    let mut readers = Nix::all();
    readers.rotate_left(1);
    Nix::all().into_iter().zip(readers)
}

/// These paths, brought into an empty store, are those that were sent.
#[track_caller]
fn assert_copies_back(server: &Narwire, reader: Nix, source: &Store, paths: &[&str]) {
    let (key, destination) = (&fixture().key, Store::new(reader));
    destination.copy_from(&server.url(), key, paths);
    destination.verify(key);
    for path in paths {
        assert_eq!(destination.nar_hash(path), source.nar_hash(path), "{path}");
    }
}

/// From a store to an empty directory and back into another store, with every pair of versions.
fn copies_up_and_back(compression: &str) {
    let fixture = fixture();
    let folder = Store::new(Nix::installed());
    let several = folder.add_folder("several", FILES.0, FILES.1);
    let paths = NAMES.map(|name| fixture.path(name));
    for (writer, reader) in pairs() {
        let (cache, options) = (UploadDir::new(), format!("compression={compression}"));
        let server = cache.serve();
        copy_up(&writer, &fixture.store, &server.url(), &options, &fixture.key, &paths);
        copy_up(&writer, &folder, &server.url(), &options, &fixture.key, &[&several]);
        cache.assert_sound();
        for (store, path) in paths.iter().map(|path| (&fixture.store, *path)).chain([(&folder, &*several)]) {
            assert_eq!(cache.narinfo(path).field("Compression"), compression, "{path}");
            assert_same_bytes(&cache.nar(path), &store.dump(path), path);
        }
        let verify = ["store", "verify", "--store", &server.url(), "--option", "trusted-public-keys"];
        reader.run("nix", &[&verify[..], &[&fixture.key.public], &paths].concat());
        assert_copies_back(&server, reader, &fixture.store, &paths);
        assert_copies_back(&server, Nix::newest(), &folder, &[&several]);
    }
}

#[test]
fn uncompressed_paths_are_copied_up_and_back() {
    copies_up_and_back("none");
}

#[test]
fn xz_compressed_paths_are_copied_up_and_back() {
    copies_up_and_back("xz");
}

#[test]
fn zstd_compressed_paths_are_copied_up_and_back() {
    copies_up_and_back("zstd");
}

#[test]
fn gzip_compressed_paths_are_copied_up_and_back() {
    copies_up_and_back("gzip");
}

#[test]
fn bzip2_compressed_paths_are_copied_up_and_back() {
    copies_up_and_back("bzip2");
}

#[test]
fn br_compressed_paths_are_copied_up_and_back() {
    copies_up_and_back("br");
}

#[test]
fn long_paths_are_copied_up_and_back() {
    let fixture = fixture();
    let paths = LONG_NAMES.map(|name| fixture.path(name));
    for ((writer, reader), compression) in pairs().zip(["none", "zstd", "none"]) {
        let cache = UploadDir::new();
        let server = cache.serve();
        let options = format!("compression={compression}");
        copy_up(&writer, &fixture.store, &server.url(), &options, &fixture.key, &paths);
        cache.assert_sound();
        assert_copies_back(&server, reader, &fixture.store, &paths);
    }
}

#[test]
fn many_tiny_paths_are_copied_up_and_back() {
    // Each refers to the one before, so that there is but one order.
    let text = "builtins.foldl' (text: n: builtins.toFile \"text-${toString n}\" \"after ${text}\") \
        \"nothing\" (builtins.genList (n: n) 150)";
    let store = Store::new(Nix::installed());
    let evaluate = ["--store", store.uri(), "--eval", "--read-write-mode", "--expr", text];
    let last = store.nix.run("nix-instantiate", &evaluate).trim_matches('"').to_owned();
    for (writer, reader) in pairs() {
        let cache = UploadDir::new();
        let server = cache.serve();
        copy_up(&writer, &store, &server.url(), "compression=none", &fixture().key, &[&last]);
        cache.assert_sound();
        assert_eq!(cache.files().iter().filter(|name| name.ends_with(".narinfo")).count(), 150);
        assert_copies_back(&server, reader, &store, &[&last]);
    }
}

/// The files that a client writes into a directory itself: a copy with these options, and the log of a derivation.
fn written_by_itself(nix: &Nix, options: &str, paths: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_all(nix, &format!("file://{}", text(folder.path())), options, paths);
    folder
}

fn write_all(nix: &Nix, cache: &str, options: &str, paths: &[&str]) {
    let fixture = fixture();
    copy_up(nix, &fixture.store, cache, options, &fixture.key, paths);
    let log = ["store", "copy-log", "--from", fixture.store.uri(), "--to", &format!("{cache}?{options}")];
    nix.run("nix", &[&log[..], &[fixture.path("library-1.0.drv")]].concat());
}

/// The files of a directory as clients see them: what a cache says of itself is its own.
fn without_cache_info(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = contents_beneath(folder);
    files.remove("nix-cache-info");
    files
}

#[test]
fn what_was_uploaded_is_what_nix_writes_into_a_directory_itself() {
    // The names in `odd` are no UTF-8, which no listing can have.
    let paths: Vec<_> =
        NAMES.iter().filter(|name| **name != "odd").map(|name| fixture().path(name)).collect();
    for nix in Nix::all() {
        for compression in ["none", "zstd", "xz"] {
            let options = format!("compression={compression}&{WITH_ALL}");
            let (cache, wanted) = (UploadDir::new(), written_by_itself(&nix, &options, &paths));
            let server = cache.serve();
            write_all(&nix, &server.url(), &options, &paths);
            let (found, wanted) = (without_cache_info(cache.path()), without_cache_info(wanted.path()));
            assert_same_files(&found, &wanted);
            for part in [".ls", ".narinfo", ".drv", ".debug"] {
                assert!(found.keys().any(|name| name.ends_with(part)), "{part}: {:?}", found.keys());
            }
            // And it is served like that.
            let mut connection = server.connect();
            for (name, contents) in &found {
                let target = format!("/{}", name.replace('?', "%3F"));
                assert_same_bytes(&connection.get(&target).expect(200).body, contents, name);
            }
        }
    }
}

#[test]
fn metadata_in_any_coding_is_kept_as_plain_text() {
    let paths = ["program-1.0", "text", "deep"].map(|name| fixture().path(name));
    let nix = Nix::newest();
    let plain = format!("compression=zstd&{WITH_ALL}");
    let wanted = without_cache_info(written_by_itself(&nix, &plain, &paths).path());
    for coding in ["none", "gzip", "br", "zstd", "xz", "bzip2"] {
        let coded =
            format!("{plain}&narinfo-compression={coding}&ls-compression={coding}&log-compression={coding}");
        let cache = UploadDir::new();
        let server = cache.serve();
        write_all(&nix, &server.url(), &coded, &paths);
        assert_same_files(&without_cache_info(cache.path()), &wanted);
        let log = nix.run("nix", &["log", "--store", &server.url(), fixture().path("library-1.0")]);
        assert_eq!(log, "the builder speaks", "{coding}");
    }
}

#[test]
fn realisations_are_uploaded_with_their_outputs() {
    let expression = r#"derivation {
      name = "addressed";
      system = builtins.currentSystem;
      builder = "/bin/sh";
      args = [ "-c" "echo contents > $out" ];
      __contentAddressed = true;
      outputHashMode = "recursive";
      outputHashAlgo = "sha256";
    }"#;
    for ((nix, reader), outputs) in pairs().zip(["", "^*", "^*"]) {
        let store = Store::new(nix.configured(REALISATIONS));
        let derivation = store.instantiate(expression);
        let output = store.build(&derivation, &[]).remove(0);
        let installable = format!("{derivation}{outputs}");
        let cache = UploadDir::new();
        let server = cache.serve();
        let folder = tempfile::tempdir().unwrap();
        for to in [server.url(), format!("file://{}", text(folder.path()))] {
            let copy = ["copy", "--store", store.uri(), "--to", &format!("{to}?compression=none")];
            store.nix.run("nix", &[&copy[..], &[&installable]].concat());
            // Once more, for what is there already.
            store.nix.run("nix", &[&copy[..], &["--refresh", &installable]].concat());
        }
        let found = without_cache_info(cache.path());
        assert_same_files(&found, &without_cache_info(folder.path()));
        let name = found.keys().find(|name| name.starts_with("realisations/sha256:")).unwrap();
        for target in [format!("/{name}"), format!("/{}", name.replace('!', "%21"))] {
            let reply = server.get(&target).expect(200);
            let realisation: Value = serde_json::from_slice(&reply.body).unwrap();
            assert_eq!(realisation["outPath"], output.trim_start_matches("/nix/store/"));
        }
        let destination = Store::new(reader.configured(REALISATIONS));
        destination.copy_from(&server.url(), &fixture().key, &[&output]);
        assert_eq!(destination.nar_hash(&output), store.nar_hash(&output));
    }
}

#[test]
fn an_export_is_imported_and_copied_back() {
    let fixture = fixture();
    let paths = NAMES.map(|name| fixture.path(name));
    for (writer, reader) in pairs() {
        let cache = UploadDir::new();
        let server = cache.serve();
        let query = ["--store", fixture.store.uri(), "-qR"];
        let closure = writer.run("nix-store", &[&query[..], &paths].concat());
        let mut export = writer
            .command("nix-store")
            .args(["--store", fixture.store.uri(), "--export"])
            .args(closure.lines())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // From a pipe, so in chunks.
        let answer = run(Command::new("curl")
            .args(["--silent", "--show-error", "--fail-with-body", "--data-binary", "@-"])
            .args(["-H", "Transfer-Encoding: chunked", &format!("{}/import", server.url())])
            .stdin(export.stdout.take().unwrap()));
        assert!(export.wait().unwrap().success());
        for path in closure.lines() {
            assert!(answer.contains(path.trim_start_matches("/nix/store/")), "{path} in {answer}");
            assert_same_bytes(&cache.nar(path), &fixture.store.dump(path), path);
        }
        cache.assert_sound();
        let destination = Store::new(reader);
        let copy = ["copy", "--from", &server.url(), "--to", destination.uri(), "--no-check-sigs"];
        destination.nix.run("nix", &[&copy[..], &paths].concat());
        destination.nix.run("nix", &["store", "verify", "--all", "--no-trust", "--store", destination.uri()]);
    }
}

#[test]
fn what_is_there_already_is_copied_again_by_every_version() {
    let fixture = fixture();
    let paths = NAMES.map(|name| fixture.path(name));
    let cache = UploadDir::new();
    let server = cache.serve();
    for nix in Nix::all().into_iter().chain(Nix::all()) {
        copy_up(&nix, &fixture.store, &server.url(), "compression=zstd", &fixture.key, &paths);
    }
    cache.assert_sound();
    assert_copies_back(&server, Nix::installed(), &fixture.store, &paths);
}

/// Starts all of these at once and waits for them.
fn all_at_once(commands: impl IntoIterator<Item = Command>) -> Vec<Output> {
    let running: Vec<_> = commands
        .into_iter()
        .map(|mut command| command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    running.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
}

#[test]
fn clients_that_race_for_the_same_paths_all_succeed() {
    let fixture = fixture();
    let paths = NAMES.map(|name| fixture.path(name));
    for compressions in [["none"; 6], ["zstd"; 6], ["none", "xz", "zstd", "gzip", "bzip2", "br"]] {
        let cache = UploadDir::new();
        let server = cache.serve();
        let clients: Vec<_> = Nix::all().into_iter().chain(Nix::all()).collect();
        let commands = clients.iter().zip(compressions).map(|(nix, compression)| {
            let options = format!("compression={compression}");
            copy_command(nix, &fixture.store, &server.url(), &options, &fixture.key, &paths)
        });
        for output in all_at_once(commands) {
            assert!(output.status.success(), "{}", printed(&output));
        }
        cache.assert_sound();
        assert!(cache.staged().is_empty(), "{:?}", cache.staged());
        assert_copies_back(&server, Nix::newer(), &fixture.store, &paths);
    }
}

#[test]
fn a_signature_is_added_to_what_is_there() {
    let fixture = fixture();
    let path = fixture.path("program-1.0");
    for (writer, signer) in pairs() {
        let cache = UploadDir::new();
        let server = cache.serve();
        copy_up(&writer, &fixture.store, &server.url(), "compression=zstd", &fixture.key, &[path]);
        let before = cache.narinfo(path);
        let secret = text(&fixture.other_key.secret_file);
        signer.run("nix", &["store", "sign", "--store", &server.url(), "--key-file", secret, "-r", path]);
        let after = cache.narinfo(path);
        assert_eq!(after.fields("Sig").len(), 2, "{after:?}");
        assert!(after.fields("Sig").contains(&before.field("Sig")), "{after:?}");
        cache.assert_sound();
        // Either key will do.
        for key in [&fixture.key, &fixture.other_key] {
            let destination = Store::new(Nix::installed());
            destination.copy_from(&server.url(), key, &[path]);
        }
        // Who uploads it again without the second one takes nothing away.
        let narinfo = cache.contents().remove(&format!("{}.narinfo", hash_part(path))).unwrap();
        let lines = str::from_utf8(&narinfo).unwrap().split_inclusive('\n');
        let unsigned: String = lines.filter(|line| !line.starts_with("Sig: ")).collect();
        server.connect().put(&format!("/{}.narinfo", hash_part(path)), &unsigned).expect(200);
        assert_eq!(cache.narinfo(path), after);
    }
}

#[test]
fn only_what_a_required_key_has_signed_is_taken() {
    let fixture = fixture();
    let (path, name) = (fixture.path("program-1.0"), fixture.key.public.split(':').next().unwrap());
    for nix in Nix::all() {
        let cache = UploadDir::new();
        let server = cache.serve_with(&["--require-signature", &fixture.key.public]);
        let nix = nix.configured(ONE_ATTEMPT);
        let mut wrongly = copy_command(&nix, &fixture.store, &server.url(), "", &fixture.other_key, &[path]);
        let complaint = run_failing(&mut wrongly);
        assert!(complaint.contains("HTTP error 403") && complaint.contains(name), "{complaint}");
        assert!(!cache.files().iter().any(|name| name.ends_with(".narinfo")), "{:?}", cache.files());
        copy_up(&nix, &fixture.store, &server.url(), "", &fixture.key, &[path]);
        cache.assert_sound();
        assert_copies_back(&server, nix, &fixture.store, &[path]);
    }
}

/// A client that has this token for any server here, and gives up at once.
fn with_token(nix: Nix, token: &str) -> Nix {
    let nix = nix.configured(ONE_ATTEMPT);
    let machines = ["127.0.0.1", "localhost"];
    nix.write_netrc(&machines.map(|name| format!("machine {name} login any password {token}\n")).concat());
    nix
}

#[test]
fn a_private_cache_is_written_and_read_with_the_token_of_a_netrc() {
    let fixture = fixture();
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    let both = create_token(&tokens, "builder", "read,write");
    let read = create_token(&tokens, "reader", "read");
    let paths = NAMES.map(|name| fixture.path(name));
    for (writer, reader) in pairs() {
        let cache = UploadDir::new();
        let server = cache.serve_tokens(&tokens, &["--private"]);
        let without = Nix::newest().configured(ONE_ATTEMPT);
        run_failing(&mut copy_command(&without, &fixture.store, &server.url(), "", &fixture.key, &paths));
        let client = with_token(reader.again(), &read);
        let refused =
            run_failing(&mut copy_command(&client, &fixture.store, &server.url(), "", &fixture.key, &paths));
        assert!(refused.contains("403"), "{refused}");
        assert!(!cache.files().iter().any(|name| name.contains("nar")), "{:?}", cache.files());
        let writer = with_token(writer, &both);
        copy_up(&writer, &fixture.store, &server.url(), "", &fixture.key, &paths);
        cache.assert_sound();
        server.get(&format!("/{}.narinfo", hash_part(paths[0]))).expect(401);
        // With a new home: a client remembers for an hour what it was told is not there.
        assert_copies_back(&server, with_token(reader, &read), &fixture.store, &paths);
        let output = server.output();
        for token in [&both, &read] {
            let secret = token.split_once('.').unwrap().1;
            assert!(!output.contains(secret), "{output}");
        }
    }
}

#[test]
fn who_has_no_token_is_told_so() {
    let fixture = fixture();
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    create_token(&tokens, "builder", "write");
    let cache = UploadDir::new();
    let server = cache.serve_tokens(&tokens, &[]);
    let before = cache.files();
    for name in ["small", "sizes"] {
        for nix in Nix::all() {
            let nix = nix.configured(ONE_ATTEMPT);
            let options = "compression=none";
            let path = fixture.path(name);
            let mut copy = copy_command(&nix, &fixture.store, &server.url(), options, &fixture.key, &[path]);
            let complaint = run_failing(&mut copy);
            assert!(complaint.contains("HTTP error 401") && complaint.contains("token"), "{complaint}");
        }
    }
    assert_eq!(cache.files(), before);
    assert!(cache.staged().is_empty());
}

#[test]
fn what_is_refused_is_said_why() {
    let fixture = fixture();
    let cache = UploadDir::new();
    let server = cache.serve_with(&["--upload-max-size", "1M"]);
    // Long and very long ones, and codings that nobody can look into.
    for (name, options, wanted) in [
        ("sizes", "compression=none", ["HTTP error 413", "--upload-max-size"]),
        ("large", "compression=none", ["HTTP error 413", "--upload-max-size"]),
        ("program-1.0", "compression=lz4", ["HTTP error 415", "compression=zstd"]),
        ("program-1.0", "compression=lzip", ["HTTP error 415", "compression=zstd"]),
    ] {
        for nix in Nix::all() {
            let nix = nix.configured(ONE_ATTEMPT);
            let paths = [fixture.path(name)];
            let mut copy = copy_command(&nix, &fixture.store, &server.url(), options, &fixture.key, &paths);
            let complaint = run_failing(&mut copy);
            assert!(wanted.iter().all(|words| complaint.contains(words)), "{complaint}");
        }
    }
    assert!(!cache.files().iter().any(|name| name.contains("nar")), "{:?}", cache.files());
    assert!(cache.staged().is_empty(), "{:?}", cache.staged());
}

#[test]
fn what_a_live_store_has_needs_not_be_uploaded() {
    let fixture = fixture();
    let [library, program] = ["library-1.0", "program-1.0"].map(|name| fixture.path(name));
    for (writer, reader) in pairs() {
        let store = Store::new(Nix::installed());
        let copy = ["copy", "--from", fixture.store.uri(), "--to", store.uri(), "--no-check-sigs", library];
        store.nix.run("nix", &copy);
        let cache = UploadDir::new();
        let flags = [cache.flags(), vec!["--with-store".to_owned()], store.flags(), fixture.key.flags()];
        let server = Narwire::start(flags.concat());
        copy_up(&writer, &fixture.store, &server.url(), "compression=zstd", &fixture.key, &[program]);
        let narinfos: Vec<_> = cache.files().into_iter().filter(|name| name.ends_with(".narinfo")).collect();
        assert_eq!(narinfos, [format!("{}.narinfo", hash_part(program))]);
        assert_same_bytes(&cache.nar(program), &fixture.store.dump(program), program);
        assert_copies_back(&server, reader, &fixture.store, &[program, library]);
    }
}

#[test]
fn a_client_that_is_killed_leaves_nothing() {
    let fixture = fixture();
    for nix in Nix::all() {
        let cache = UploadDir::new();
        let server = cache.serve();
        let before = cache.files();
        let proxy = CuttingProxy::holding_upload(server.address(), 5_000_000);
        let path = fixture.path("large");
        let options = "compression=none";
        let mut client = copy_command(&nix, &fixture.store, &proxy.url(), options, &fixture.key, &[path]);
        let client = client.stderr(Stdio::null()).spawn().unwrap();
        eventually("it has begun", || proxy.cuts_left() == 0 && !cache.staged().is_empty());
        kill(client);
        eventually("nothing is left of it", || cache.staged().is_empty());
        let added: Vec<_> = cache.files().into_iter().filter(|name| !before.contains(name)).collect();
        assert!(added.iter().all(|name| name == "nix-cache-info"), "{added:?}");
        copy_up(&nix, &fixture.store, &server.url(), options, &fixture.key, &[path]);
        cache.assert_sound();
        assert_same_bytes(&cache.nar(path), &fixture.store.dump(path), path);
    }
}

#[test]
fn an_upload_that_is_cut_is_sent_again() {
    let fixture = fixture();
    let path = fixture.path("sizes");
    // Nix 2.26 and older cannot send a body twice: they fail, and are called again by whoever wants it.
    let [installed, newer, newest] = Nix::all();
    for (nix, attempts) in
        [(installed.configured(ONE_ATTEMPT), 3), (newer.configured(ONE_ATTEMPT), 3), (newest, 1)]
    {
        let cache = UploadDir::new();
        let server = cache.serve();
        let proxy = CuttingProxy::for_uploads(server.address(), [1_000_000, 3_000_000]);
        let mut copy =
            copy_command(&nix, &fixture.store, &proxy.url(), "compression=none", &fixture.key, &[path]);
        for _ in 1..attempts {
            run_failing(&mut copy);
            assert!(!cache.files().iter().any(|name| name.contains("nar")), "{:?}", cache.files());
        }
        run(&mut copy);
        assert_eq!(proxy.cuts_left(), 0);
        eventually("nothing is left of the others", || cache.staged().is_empty());
        cache.assert_sound();
        assert_same_bytes(&cache.nar(path), &fixture.store.dump(path), path);
    }
}

#[test]
fn a_proxy_in_front_changes_nothing() {
    let fixture = fixture();
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    let token = create_token(&tokens, "builder", "read,write");
    let paths = NAMES.iter().chain(&["sizes"]).map(|name| fixture.path(name)).collect::<Vec<_>>();
    for (writer, reader) in pairs() {
        for is_encrypted in [false, true] {
            let cache = UploadDir::new();
            let server = cache.serve_tokens(&tokens, &["--private"]);
            let nginx = Nginx::start(server.address());
            let url = if is_encrypted { nginx.tls_url() } else { nginx.url() };
            let trust = ("NIX_SSL_CERT_FILE", nginx.certificate());
            let without = Nix::newest().configured(ONE_ATTEMPT);
            let mut refused =
                copy_command(&without, &fixture.store, &url, "compression=none", &fixture.key, &paths);
            run_failing(refused.env(trust.0, &trust.1));
            let writer = with_token(writer.again(), &token);
            let mut copy =
                copy_command(&writer, &fixture.store, &url, "compression=zstd", &fixture.key, &paths);
            run(copy.env(trust.0, &trust.1));
            cache.assert_sound();
            let destination = Store::new(with_token(reader.again(), &token));
            let copy = ["copy", "--from", &url, "--to", destination.uri(), "--option", "trusted-public-keys"];
            let mut command = destination.nix.command("nix");
            run(command.args(copy).arg(&fixture.key.public).args(&paths).env(trust.0, &trust.1));
            destination.verify(&fixture.key);
        }
    }
}

#[test]
fn what_was_uploaded_is_served_by_every_worker_at_once() {
    let fixture = fixture();
    let cache = UploadDir::new();
    let server = cache.serve_with(&["--workers", "3"]);
    // Enough that each worker has some; all of them were told that it is not there.
    let mut connections: Vec<Connection> = (0..24).map(|_| server.connect()).collect();
    let path = fixture.path("program-1.0");
    let written = written_by_itself(&Nix::installed(), "compression=none", &[path]);
    let files = without_cache_info(written.path());
    let narinfo = format!("{}.narinfo", hash_part(path));
    let reference = format!("{}.narinfo", hash_part(fixture.path("library-1.0")));
    let target = nar_target(&files[&narinfo]);
    for connection in &mut connections {
        connection.get(&format!("/{narinfo}")).expect_absent();
        connection.get(&format!("/{target}")).expect_absent();
    }
    let mut writer = server.connect();
    for name in [&nar_target(&files[&reference]), &reference, &target, &narinfo] {
        writer.put(&format!("/{name}"), &files[name]).expect(201);
        for connection in &mut connections {
            assert_same_bytes(&connection.get(&format!("/{name}")).expect(200).body, &files[name], name);
        }
    }
    // The same once more is no news.
    writer.put(&format!("/{narinfo}"), &files[&narinfo]).expect(200);
}
