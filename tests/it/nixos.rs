//! What NixOS is given: the flake, the module and the tests of virtual machines. nixpkgs is not needed: Nix itself evaluates all of it
//! against the stand-ins in `nixos/`, and what comes out is handed to the programs it is for.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::nix::hash_part;
use crate::support::server::{BINARY, command};
use crate::support::{
    Narwire, Nix, Random, assert_same_bytes, eventually, fixture, printed, run, run_failing, text,
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Each option of the module in use, but for nginx.
const EVERYTHING: &str = r#"{
  enable = true;
  openFirewall = true;
  listen = [ 5000 "127.0.0.1:5001" "192.0.2.1:5002" "unix:/run/narwire-local.sock" ];
  storeDir = "/nix/store";
  cacheDir = "/srv/nars";
  signKeyPaths = [ "/var/lib/secret/first" "/var/lib/secret/second" ];
  priority = 17;
  workers = 2;
  tokens = "/var/lib/tokens/tokens";
  upload.enable = true;
  upload.directory = "/srv/uploads";
  upload.requireSignature = [ "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
  settings = { cache-size = "50G"; drain-timeout = 100; private = true; };
}"#;

/// The folders and files of the project that have Nix in them, and what those refer to.
const FLAKE: [&str; 10] = [
    "flake.nix",
    "nix",
    "nixos-test",
    "tests/it/nixos",
    "Cargo.toml",
    "Cargo.lock",
    "deploy/grafana",
    "deploy/post-build-hook",
    "deploy/prometheus",
    "systemd",
];

/// nixpkgs' `lib`, or what stands in for it.
fn library() -> String {
    std::env::var("NARWIRE_TEST_NIXPKGS_LIB").unwrap_or_else(|_| format!("{ROOT}/tests/it/nixos/lib.nix"))
}

/// The command that prints an expression's value as JSON. `evaluate` makes a configuration of a list of modules.
fn evaluation(nix: &Nix, expression: &str) -> Command {
    let folder = format!("{ROOT}/tests/it/nixos");
    let mut command = nix.command("nix-instantiate");
    command.args(["--eval", "--strict", "--json", "--expr"]).arg(format!(
        "let lib = import {library}; pkgs = import {folder}/pkgs.nix {{ inherit lib; }};
         evaluate = import {folder}/evaluate.nix {{ inherit lib pkgs; }};
         module = {ROOT}/nix/module.nix; in {expression}",
        library = library(),
    ));
    command
}

/// A system with these options of `services.narwire`, and more of NixOS's own.
fn system(options: &str, more: &str) -> String {
    format!("evaluate [ module {{ services.narwire = {options}; }} {{ {more} }} ]")
}

fn evaluate(options: &str) -> Value {
    let printed = run(&mut evaluation(&Nix::installed(), &system(options, "")));
    serde_json::from_str(&printed).unwrap()
}

/// `narwire.toml` as NixOS writes it, in a folder of its own.
fn settings_file(evaluated: &Value) -> (PathBuf, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("narwire.toml");
    fs::write(&file, toml::to_string(&evaluated["settings"]).unwrap()).unwrap();
    (file, folder)
}

/// The check that NixOS makes when a system is built.
fn check(file: &Path) -> Command {
    let mut check = Command::new(BINARY);
    check.args(["check", "--settings-only", "--config"]).arg(file);
    check
}

fn nix_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|file| file.extension().is_some_and(|extension| extension == "nix"));
    files.chain(folders.iter().flat_map(|folder| nix_files(folder))).collect()
}

#[test]
fn every_nix_file_is_understood_by_each_nix() {
    let mut files = vec![Path::new(ROOT).join("flake.nix")];
    files.extend(
        ["nix", "nixos-test", "tests/it/nixos"]
            .iter()
            .flat_map(|folder| nix_files(&Path::new(ROOT).join(folder))),
    );
    assert!(files.len() > 12, "{files:?}");
    for nix in Nix::all() {
        run(nix.command("nix-instantiate").arg("--parse").args(&files));
    }
}

#[test]
fn the_flake_has_what_the_manual_promises() {
    let folder = tempfile::tempdir().unwrap();
    for name in FLAKE {
        let to = folder.path().join(name);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        run(Command::new("cp").arg("-r").arg(Path::new(ROOT).join(name)).arg(to));
    }
    // What is built is not looked at, only that it is there.
    fs::create_dir(folder.path().join("src")).unwrap();
    let flake = format!("path:{}", text(folder.path()));
    let stand_in = format!("{flake}/tests/it/nixos");
    let store = folder.path().join("store");
    let of_flake = |nix: &Nix, arguments: &[&str], output: &str| {
        let mut command = nix.command("nix");
        command.args(["--extra-experimental-features", "nix-command flakes", "--store"]).arg(&store);
        command.args(arguments).args(["--no-write-lock-file", "--override-input", "nixpkgs", &stand_in]);
        run(command.arg(format!("{flake}{output}")))
    };
    for nix in Nix::all() {
        of_flake(&nix, &["flake", "check", "--no-build"], "");
    }
    let shown = of_flake(&Nix::newer(), &["flake", "show", "--json"], "");
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let names = |output: &Value| output.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        names(&shown["packages"]["x86_64-linux"]),
        ["container", "default", "image", "narwire", "static"]
    );
    assert_eq!(names(&shown["nixosModules"]), ["default"]);
    assert_eq!(names(&shown["overlays"]), ["default"]);
    assert_eq!(names(&shown["devShells"]["x86_64-linux"]), ["default"]);
    assert_eq!(shown["formatter"]["x86_64-linux"]["type"], "derivation");
    let tests = nix_files(&Path::new(ROOT).join("nixos-test"))
        .into_iter()
        .filter(|file| fs::read_to_string(file).unwrap().contains("testScript"));
    let tests = tests.map(|file| format!("nixos-{}", file.file_stem().unwrap().to_str().unwrap()));
    let wanted: BTreeSet<_> = tests.chain(["format", "package"].map(str::to_owned)).collect();
    assert_eq!(names(&shown["checks"]["x86_64-linux"]), wanted.into_iter().collect::<Vec<_>>());

    // The machine of the image has the module as the flake hands it out.
    let image = of_flake(&Nix::newer(), &["eval", "--raw"], "#packages.x86_64-linux.image.text");
    let image: Value = serde_json::from_str(&image).unwrap();
    assert_eq!((&image["failures"], &image["ports"]), (&json!([]), &json!([5000])));
    let package = of_flake(&Nix::newer(), &["eval", "--raw"], "#packages.x86_64-linux.narwire.outPath");
    assert_eq!(image["unitPackages"], json!([package]));
    let static_arguments =
        of_flake(&Nix::newer(), &["eval", "--json"], "#packages.x86_64-linux.static.arguments.env");
    let static_arguments: Value = serde_json::from_str(&static_arguments).unwrap();
    let flags = static_arguments["RUSTFLAGS"].as_str().unwrap();
    let script = fs::read_to_string("deploy/package").unwrap();
    for flag in ["-C target-feature=+crt-static", r#"--cfg getrandom_backend="linux_getrandom""#] {
        assert!(flags.contains(flag) && script.replace('\'', "").contains(flag), "{flag}: {flags}");
    }
}

#[test]
fn a_module_that_says_nothing_changes_nothing() {
    let nothing = evaluate("{ }");
    assert_eq!(nothing["settings"], json!({}));
    assert_eq!(
        (&nothing["services"], &nothing["sockets"], &nothing["etc"]),
        (&json!({}), &json!({}), &json!({}))
    );
}

#[test]
fn each_option_arrives_where_it_belongs() {
    let evaluated = evaluate(EVERYTHING);
    assert_eq!(evaluated["failures"], json!([]));
    assert_eq!(
        evaluated["settings"],
        json!({
            "cache-dir": "/srv/nars",
            "cache-size": "50G",
            "directories": ["/srv/uploads"],
            "drain-timeout": 100,
            "priority": 17,
            "private": true,
            "require-signature": ["cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="],
            "secret-key-file": ["sign-key-0", "sign-key-1"],
            "store-dir": "/nix/store",
            "upload-token-file": "/var/lib/tokens/tokens",
            "with-store": true,
            "workers": 2
        })
    );
    // Nobody else can reach the loopback.
    assert_eq!(evaluated["ports"], json!([5000, 5002]));
    assert_eq!(
        lines(&evaluated["sockets"]["narwire"]),
        [
            "[Socket]",
            "ListenStream=",
            "ListenStream=5000",
            "ListenStream=127.0.0.1:5001",
            "ListenStream=192.0.2.1:5002",
            "ListenStream=/run/narwire-local.sock"
        ]
    );
    assert_eq!(
        lines(&evaluated["services"]["narwire"]),
        [
            "[Service]",
            "X-StopIfChanged=false",
            "LoadCredential=sign-key-0:/var/lib/secret/first",
            "LoadCredential=sign-key-1:/var/lib/secret/second",
            "ReadWritePaths=/srv/nars",
            "ReadWritePaths=/srv/uploads",
            "TimeoutStopSec=115"
        ]
    );
    assert_eq!(
        evaluated["tmpfiles"],
        json!(["d /srv/nars 0755 narwire narwire - -", "d /srv/uploads 0755 narwire narwire - -"])
    );
    assert_eq!(evaluated["users"], json!(["narwire"]));
    run(&mut check(&settings_file(&evaluated).0));
}

fn lines(unit: &Value) -> Vec<&str> {
    unit.as_str().unwrap().lines().filter(|line| !line.is_empty()).collect()
}

#[test]
fn by_itself_the_service_is_that_of_other_systems() {
    let evaluated = evaluate("{ enable = true; }");
    assert_eq!(lines(&evaluated["services"]["narwire"]), ["[Service]", "X-StopIfChanged=false"]);
    assert_eq!(lines(&evaluated["sockets"]["narwire"]), ["[Socket]", "ListenStream=", "ListenStream=5000"]);
    assert_eq!((&evaluated["ports"], &evaluated["users"]), (&json!([]), &json!([])));
    // In a place that a running server can read again, and where the unit looks for it.
    assert_eq!(evaluated["etc"]["narwire/narwire.toml"]["mode"], "0444");
    let unit = fs::read_to_string(format!("{ROOT}/systemd/narwire.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/bin/narwire --config /etc/narwire/narwire.toml\n"), "{unit}");
    run(&mut check(&settings_file(&evaluated).0));
    let without_cache = evaluate("{ enable = true; cacheDir = null; }");
    assert_eq!(
        lines(&without_cache["services"]["narwire"]),
        ["[Service]", "X-StopIfChanged=false", "CacheDirectory="]
    );
}

/// The check is made with the very command that is in the derivation of the file, but for where things are.
#[test]
fn wrong_settings_fail_the_build_of_the_system() {
    let evaluated = evaluate("{ enable = true; settings.prioritty = 3; }");
    let build = evaluated["etc"]["narwire/narwire.toml"]["command"].as_str().unwrap();
    let (file, folder) = settings_file(&evaluated);
    let words: Vec<_> = build.lines().next().unwrap().split(' ').collect();
    let [program, arguments @ .., unchecked] = &words[..] else { panic!("{build}") };
    assert!(program.ends_with("/bin/narwire"), "{build}");
    let out = folder.path().join("out");
    let build = build.replace(program, BINARY).replace(unchecked, text(&file));
    assert_eq!(arguments, ["check", "--settings-only", "--config"]);
    let complaint = run_failing(Command::new("sh").args(["-e", "-c", &build]).env("out", &out));
    assert!(complaint.contains("prioritty"), "{complaint}");
    assert!(!out.exists());
    let contradiction = evaluate("{ enable = true; settings.private = true; }");
    let complaint = run_failing(&mut check(&settings_file(&contradiction).0));
    assert!(complaint.contains("upload-token-file"), "{complaint}");
}

#[test]
fn contradictions_are_refused_with_what_mends_them() {
    for (options, more, words) in [
        ("{ enable = true; settings.port = 80; }", "", "Set services.narwire.listen instead"),
        ("{ enable = true; settings.listen = [ \"[::]:80\" ]; }", "", "Set services.narwire.listen instead"),
        ("{ enable = true; listen = [ ]; }", "", "Name a port"),
        ("{ enable = true; signKeyPaths = [ ./Cargo.toml ]; }", "", "write its path in quotes"),
        ("{ enable = true; signKeyPaths = [ \"/nix/store/key\" ]; }", "", "Keep the key elsewhere"),
        ("{ enable = true; upload.enable = true; }", "", "Set services.narwire.tokens"),
        (
            "{ enable = true; openFirewall = true; listen = [ \"127.0.0.1:80\" ]; }",
            "",
            "Remove it, or name a port",
        ),
        ("{ enable = true; }", "services.nix-serve.enable = true;", "both listen on port 5000"),
    ] {
        let printed = run(&mut evaluation(&Nix::installed(), &system(options, more)));
        let evaluated: Value = serde_json::from_str(&printed).unwrap();
        let [failure] = evaluated["failures"].as_array().unwrap().as_slice() else {
            panic!("{options}: {printed}")
        };
        assert!(failure.as_str().unwrap().contains(words), "{options}: {failure}");
    }
}

#[test]
fn what_no_option_takes_is_no_configuration() {
    for (options, more, words) in [
        ("{ enable = true; prioritty = 3; }", "", "services.narwire.prioritty' does not exist"),
        (
            "{ enable = true; }",
            "systemd.service.narwire.serviceConfig.User = \"x\";",
            "systemd.service' does not exist",
        ),
        (
            "{ enable = true; upload.folder = \"/srv\"; }",
            "",
            "services.narwire.upload.folder' does not exist",
        ),
        ("{ enable = \"yes\"; }", "", "is not of type `boolean'"),
        ("{ enable = true; workers = 0; }", "", "services.narwire.workers' is not of type"),
        ("{ enable = true; listen = [ \"localhost\" ]; }", "", "is not of type"),
        ("{ enable = true; listen = [ 70000 ]; }", "", "is not of type"),
        ("{ enable = true; tokens = \"tokens\"; }", "", "services.narwire.tokens' is not of type"),
        ("{ enable = true; priority = 1; settings.priority = 2; }", "", "conflicting definition values"),
    ] {
        let complaint = run_failing(&mut evaluation(&Nix::installed(), &system(options, more)));
        assert!(complaint.contains(words), "{options}: {complaint}");
    }
}

/// What these tests would miss, if the stand-in let it pass: a module that sets what NixOS does not have.
#[test]
fn a_module_with_a_slip_of_the_pen_is_caught() {
    let folder = tempfile::tempdir().unwrap();
    let module = fs::read_to_string(format!("{ROOT}/nix/module.nix")).unwrap();
    for (right, wrong) in [
        ("      stopIfChanged = ", "      stopIfChange = "),
        ("      listenStreams = ", "      listenStream = "),
        ("        recommendedProxySettings = ", "        recommendedProxySetting = "),
        ("    networking.firewall.allowedTCPPorts = ", "    networking.firewall.allowedTcpPorts = "),
        ("      mode = ", "      permissions = "),
    ] {
        assert_eq!(module.matches(right).count(), 1, "{right}");
        let copy = folder.path().join("module.nix");
        fs::write(&copy, module.replace(right, wrong)).unwrap();
        let copy = text(&copy);
        let options = "enable = true; openFirewall = true; listen = [ 80 ]; nginx.virtualHost = \"x\"; package = pkgs.hello;";
        let broken = format!("evaluate [ {copy} {{ services.narwire = {{ {options} }}; }} ]");
        let complaint = run_failing(&mut evaluation(&Nix::installed(), &broken));
        let name = wrong.trim().split(['.', ' ']).rev().find(|word| word.len() > 1).unwrap();
        assert!(complaint.contains(&format!("{name}' does not exist")), "{name}: {complaint}");
    }
}

#[test]
fn every_option_is_described() {
    let undescribed = format!(
        "let find = path: option: if option._type or \"\" == \"option\"
           then (if option ? type && builtins.stringLength (option.description or \"\") > 20 then [ ] else [ path ])
           else builtins.concatLists (map (name: find \"${{path}}.${{name}}\" option.${{name}}) (builtins.attrNames option));
         in find \"narwire\" (import {ROOT}/nix/module.nix {{ inherit lib pkgs; config = {{ }}; }}).options.services.narwire"
    );
    assert_eq!(run(&mut evaluation(&Nix::installed(), &undescribed)), "[]");
}

#[test]
fn every_nix_gives_the_same_configuration() {
    let [oldest, newer, newest] = Nix::all().map(|nix| run(&mut evaluation(&nix, &system(EVERYTHING, ""))));
    assert_eq!(oldest, newer);
    assert_eq!(oldest, newest);
}

/// All that is documented restarts the service when it changes, but for what a running server takes over.
#[test]
fn a_setting_that_cannot_be_reloaded_restarts_the_service() {
    let documented = fs::read_to_string(format!("{ROOT}/systemd/narwire.toml")).unwrap();
    let settings = documented.lines().filter_map(|line| line.strip_prefix('#')?.split_once(" = "));
    let settings = settings.filter(|(key, _)| key.starts_with(|first: char| first.is_ascii_lowercase()));
    // These are refused, and the sockets are systemd's.
    let settings = settings.filter(|(key, _)| !["listen", "port"].contains(key));
    let (mut reloaded, mut restarted) = (Vec::new(), 0);
    for (key, value) in settings {
        let value = value.replace("\", \"", "\" \"");
        let evaluated = evaluate(&format!("{{ enable = true; cacheDir = null; settings.{key} = {value}; }}"));
        if evaluated["restartTriggers"].to_string().contains(key) {
            restarted += 1;
        } else {
            reloaded.push(key);
        }
    }
    let expected = ["priority", "private", "require-signature", "trusted-proxy", "log-level", "access-log"];
    assert_eq!(reloaded, expected);
    assert!(restarted > 15, "{restarted}");
}

#[test]
fn what_is_reloaded_is_taken_over_by_a_running_server() {
    let folder = tempfile::tempdir().unwrap();
    let [uploads, secret] = ["uploads", "secret"].map(|name| folder.path().join(name));
    for new in [&uploads, &secret] {
        fs::create_dir(new).unwrap();
    }
    let tokens = secret.join("tokens");
    let mut create = Command::new(BINARY);
    run(create.args(["token", "create", "--name", "ci", "--scope", "write", "--file"]).arg(&tokens));
    let flags = fixture().store.flags();
    let with = |more: &str| {
        evaluate(&format!(
            "{{ enable = true; cacheDir = null; tokens = \"{}\"; upload.enable = true; upload.directory = \"{}\";
               settings.real-store = \"{}\"; settings.db = \"{}\"; {more} }}",
            text(&tokens),
            text(&uploads),
            flags[3],
            flags[5],
        ))
    };
    let before = with("");
    let reload = "settings.private = true; priority = 17;
        upload.requireSignature = [ \"cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=\" ];";
    let after = with(reload);
    let restart = with(&format!("{reload} workers = 3;"));
    assert_eq!(before["restartTriggers"], after["restartTriggers"]);
    assert_ne!(before["restartTriggers"], restart["restartTriggers"]);

    let (file, _folder) = settings_file(&before);
    let mut command = command();
    let server = Narwire::spawn(command.arg("--config").arg(&file).args(["--listen", "127.0.0.1:0"]));
    server.wait_for("listening on ");
    server.get("/nix-cache-info").expect(200);
    let switch = |to: &Value| {
        let new = file.with_extension("new");
        fs::write(&new, toml::to_string(&to["settings"]).unwrap()).unwrap();
        fs::rename(new, &file).unwrap();
        server.signal(Signal::HUP);
    };
    switch(&after);
    // It is private now.
    eventually("the settings are read again", || server.get("/nix-cache-info").status == 401);
    assert!(!server.output().contains("wait for a restart"), "{}", server.output());
    switch(&restart);
    server.wait_for("read at the start only: workers");
}

#[test]
fn the_settings_start_a_server_that_signs_with_its_credentials() {
    let (fixture, folder) = (fixture(), tempfile::tempdir().unwrap());
    let flags = fixture.store.flags();
    let evaluated = evaluate(&format!(
        "{{ enable = true; priority = 17; signKeyPaths = [ \"/var/lib/secret/key\" ]; cacheDir = \"{}\";
           settings = {{ real-store = \"{}\"; db = \"{}\"; }}; }}",
        text(&folder.path().join("nars")),
        flags[3],
        flags[5],
    ));
    fs::copy(&fixture.key.secret_file, folder.path().join("sign-key-0")).unwrap();
    let (file, _folder) = settings_file(&evaluated);
    let mut command = command();
    command
        .arg("--config")
        .arg(file)
        .args(["--listen", "127.0.0.1:0"])
        .env("CREDENTIALS_DIRECTORY", folder.path());
    let server = Narwire::spawn(&mut command);
    server.wait_for("listening on ");
    let info = server.get("/nix-cache-info").expect(200);
    assert!(info.text().contains("Priority: 17\n"), "{}", info.text());
    let narinfo = server.get(&format!("/{}.narinfo", hash_part(fixture.path("program-1.0")))).expect(200);
    let (signer, _) = fixture.key.public.split_once(':').unwrap();
    assert!(narinfo.text().contains(&format!("Sig: {signer}:")), "{}", narinfo.text());
}

/// nginx, told what NixOS would tell it.
#[test]
fn nginx_passes_on_downloads_and_uploads() {
    let folder = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
    let [root, front, tokens] =
        ["", "front", "secret/tokens"].map(|name| text(&folder.path().join(name)).to_owned());
    fs::create_dir(folder.path().join("secret")).unwrap();
    let mut create = Command::new(BINARY);
    create.args(["token", "create", "--file", &tokens, "--name", "ci", "--scope", "write"]);
    let token = run(&mut create).lines().last().unwrap().to_owned();
    let evaluated = evaluate(&format!(
        "{{ enable = true; nginx.virtualHost = \"cache.example.org\"; tokens = \"{tokens}\"; cacheDir = null;
           upload.enable = true; upload.directory = \"{root}uploads\"; settings.with-store = false; }}",
    ));
    // Whoever has nginx in front has no port of narwire's own.
    assert_eq!(
        lines(&evaluated["sockets"]["narwire"]),
        ["[Socket]", "ListenStream=", "ListenStream=/run/narwire.sock"]
    );
    fs::create_dir(format!("{root}uploads")).unwrap();
    let (file, _folder) = settings_file(&evaluated);
    let server =
        Narwire::spawn(command().arg("--config").arg(file).args(["--listen", &format!("unix:{root}back")]));
    server.wait_for("listening on ");

    let location = &evaluated["virtualHosts"]["cache.example.org"]["locations"]["/"];
    assert_eq!(location["recommendedProxySettings"], false);
    let hidden = &evaluated["virtualHosts"]["cache.example.org"]["locations"]["= /metrics"];
    let upstream = &evaluated["upstreams"]["narwire"];
    let servers = upstream["servers"].as_object().unwrap().keys().map(|server| format!("server {server};"));
    let user = if rustix::process::geteuid().is_root() { "user root root;" } else { "" };
    let configuration = format!(
        "daemon off; {user} worker_processes 1; pid {root}pid; events {{ }}
http {{
  access_log off; client_body_temp_path {root}t; proxy_temp_path {root}t; fastcgi_temp_path {root}t; uwsgi_temp_path {root}t;
  scgi_temp_path {root}t;
  upstream narwire {{ {servers} {keep} }}
  server {{
    listen unix:{front}; server_name cache.example.org;
    location / {{ proxy_pass {pass};
{more} }}
    location = /metrics {{ return {status}; }}
  }}
}}
",
        status = hidden["return"].as_str().unwrap(),
        servers = servers.collect::<String>().replace("/run/narwire.sock", &format!("{root}back")),
        keep = upstream["extraConfig"].as_str().unwrap(),
        pass = location["proxyPass"].as_str().unwrap(),
        more = location["extraConfig"].as_str().unwrap(),
    );
    fs::write(folder.path().join("nginx.conf"), configuration).unwrap();
    let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let mut nginx = Command::new("nginx");
    nginx.env("PATH", path).args(["-e", "stderr", "-p", &root, "-c", &format!("{root}nginx.conf")]);
    let _nginx = Narwire::spawn(&mut nginx);
    eventually("nginx listens", || UnixStream::connect(&front).is_ok());

    let curl = |arguments: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["--fail", "--silent", "--show-error", "--unix-socket", &front]);
        run(curl.args(arguments))
    };
    assert!(curl(&["http://cache.example.org/nix-cache-info"]).contains("StoreDir: /nix/store"));
    // The port is that of the URL, wherever nginx listens, and no client can say another.
    let said = curl(&["--header", "X-Forwarded-Host: elsewhere", "http://cache.example.org:8080/"]);
    assert!(said.contains("extra-substituters = http://cache.example.org:8080\n"), "{said}");
    assert!(
        curl(&["--http1.0", "--header", "Host:", "http://cache.example.org/"])
            .contains("http://cache.example.org\n")
    );
    let status = ["--output", "/dev/null", "--write-out", "%{http_code}", "http://cache.example.org/metrics"];
    let mut asked = Command::new("curl");
    asked.args(["--silent", "--unix-socket", &front]).args(status);
    assert_eq!(run(&mut asked), "404", "figures are not for everybody");
    // Longer than what nginx takes by default.
    let nar = folder.path().join("nar");
    fs::write(folder.path().join("noise"), Random(1).bytes(3 << 20)).unwrap();
    let nix = Nix::installed();
    let dump = nix.command("nix-store").arg("--dump").arg(folder.path().join("noise")).output().unwrap();
    fs::write(&nar, &dump.stdout).unwrap();
    let hash = nix.run("nix-hash", &["--type", "sha256", "--base32", "--flat", text(&nar)]);
    let url = format!("http://cache.example.org/nar/{hash}.nar");
    curl(&["--header", &format!("Authorization: Bearer {token}"), "--upload-file", text(&nar), &url]);
    let received = fs::read(format!("{root}uploads/nar/{hash}.nar")).unwrap();
    assert_same_bytes(&received, &dump.stdout, "the uploaded NAR");
}

/// What the build does last is done, with the program that the tests have anyway. systemd itself looks at the units that come out, with
/// what NixOS puts beside them.
#[test]
fn the_package_brings_units_that_systemd_accepts() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    fs::create_dir_all(out.join("bin")).unwrap();
    std::os::unix::fs::symlink(BINARY, out.join("bin/narwire")).unwrap();
    let package = run(&mut evaluation(
        &Nix::installed(),
        &format!(
            "{{ inherit ((pkgs.callPackage {ROOT}/nix/package.nix {{ }}).arguments) postInstall version; }}"
        ),
    ));
    let package: Value = serde_json::from_str(&package).unwrap();
    assert_eq!(package["version"], env!("CARGO_PKG_VERSION"));

    // As nixpkgs has them.
    let tools = r#"
        set -euo pipefail
        substituteInPlace() {
            local file=$1 text; text=$(<"$file"); shift
            while [ $# -gt 0 ]; do
                [ "$1" = --replace-fail ]
                [[ $text = *"$2"* ]] || { echo "not in $file: $2" >&2; exit 1; }
                text=${text//"$2"/"$3"}; shift 3
            done
            printf '%s\n' "$text" >"$file"
        }
        installManPage() { install -D --mode=0644 --target-directory="$out/share/man/man1" "$@"; }
        installShellCompletion() { install -D --mode=0644 --target-directory="$out/share/completions" "$@"; }
    "#;
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    for name in ["deploy", "systemd"] {
        run(Command::new("cp").arg("-r").arg(Path::new(ROOT).join(name)).arg(&source));
    }
    let script = format!("{tools}\n{}", package["postInstall"].as_str().unwrap());
    run(Command::new("bash").args(["-c", &script]).env("out", &out).current_dir(&source));

    assert_eq!(fs::read_link(out.join("bin/nix-serve")).unwrap(), Path::new("narwire"));
    let hook = fs::read_to_string(out.join("libexec/narwire/post-build-hook")).unwrap();
    assert!(
        hook.contains(&format!("    {}/bin/narwire push $NARWIRE_PUSH_FLAGS -- $OUT_PATHS\n", text(&out))),
        "{hook}"
    );
    for name in [
        "man/man1/narwire.1",
        "man/man1/narwire-push.1",
        "completions/narwire.zsh",
        "doc/narwire/narwire.toml",
    ] {
        assert!(out.join("share").join(name).exists(), "{name}");
    }

    let units = folder.path().join("units");
    fs::create_dir(&units).unwrap();
    let evaluated = evaluate(EVERYTHING);
    for (kind, drop_ins) in [("service", &evaluated["services"]), ("socket", &evaluated["sockets"])] {
        let name = format!("narwire.{kind}");
        let unit = fs::read_to_string(out.join("lib/systemd/system").join(&name)).unwrap();
        assert!(!unit.contains("/usr/bin"), "{unit}");
        fs::write(units.join(&name), unit).unwrap();
        fs::create_dir(units.join(format!("{name}.d"))).unwrap();
        fs::write(units.join(format!("{name}.d/overrides.conf")), drop_ins["narwire"].as_str().unwrap())
            .unwrap();
    }
    let verify = |what: &str| {
        let mut verify = Command::new("systemd-analyze");
        verify.env("SYSTEMD_UNIT_PATH", format!("{}:", text(&units))).args(["verify", "--man=no", what]);
        printed(&verify.output().unwrap())
    };
    assert_eq!(verify("narwire.service"), "");
    assert_eq!(verify("narwire.socket"), "");
    // And it would have said so.
    fs::write(units.join("narwire.service.d/wrong.conf"), "[Service]\nProtectHmoe=yes\n").unwrap();
    assert!(verify("narwire.service").contains("ProtectHmoe"));
}

/// Each machine of each test is evaluated, and Python reads what is to be done with them.
#[test]
fn the_tests_of_virtual_machines_are_well_formed() {
    let names = run(&mut evaluation(
        &Nix::installed(),
        &format!("builtins.attrNames (import {ROOT}/nixos-test {{ inherit pkgs; }})"),
    ));
    let names: Vec<String> = serde_json::from_str(&names).unwrap();
    assert!(names.contains(&"acceptance".to_owned()), "{names:?}");
    for name in names {
        let test = format!("(import {ROOT}/nixos-test {{ inherit pkgs; }}).{name}");
        let printed =
            run(&mut evaluation(&Nix::installed(), &format!("{{ inherit ({test}) nodes testScript; }}")));
        let evaluated: Value = serde_json::from_str(&printed).unwrap();
        for (machine, node) in evaluated["nodes"].as_object().unwrap() {
            assert_eq!(node["failures"], json!([]), "{name}: {machine}");
            run(&mut check(&settings_file(node).0));
            for special in node["specialisations"].as_object().unwrap().values() {
                assert_eq!(special["failures"], json!([]), "{name}: {machine}");
            }
        }
        let script = evaluated["testScript"].as_str().unwrap();
        let compile = "import sys; compile(sys.argv[1], sys.argv[2], 'exec')";
        run(Command::new("/usr/bin/python3").args(["-c", compile, script, &name]));
    }
}
