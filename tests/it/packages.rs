//! What narwire is installed as: manual pages and completions, and Debian's package, whose file `NARWIRE_TEST_DEB` names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::support::machine::Machine;
use crate::support::server::BINARY;
use crate::support::{eventually, run};

/// The pages as the program writes them, by the words of their command.
struct Pages {
    folder: TempDir,
    commands: Vec<Vec<String>>,
}

impl Pages {
    fn write() -> Self {
        let folder = tempfile::tempdir().unwrap();
        run(Command::new(BINARY).arg("man").arg(folder.path().join("man1")).env("SOURCE_DATE_EPOCH", "0"));
        let mut names: Vec<String> = fs::read_dir(folder.path().join("man1"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let words =
            |name: &String| name.strip_suffix(".1").unwrap().split('-').skip(1).map(str::to_owned).collect();
        Self { commands: names.iter().map(words).collect(), folder }
    }

    fn file(&self, command: &[String]) -> PathBuf {
        let words: Vec<&str> = ["narwire"].into_iter().chain(command.iter().map(String::as_str)).collect();
        self.folder.path().join("man1").join(format!("{}.1", words.join("-")))
    }
}

/// The long flags and the commands beneath it that a command's help shows.
fn shown_by_help(command: &[String]) -> (BTreeSet<String>, BTreeSet<String>) {
    let help = run(Command::new(BINARY).args(command).arg("--help"));
    let (mut flags, mut commands, mut heading) = (BTreeSet::new(), BTreeSet::new(), "");
    for line in help.lines() {
        heading = if line.is_empty() || line.starts_with(' ') { heading } else { line };
        let mut words = line.split([' ', ',']).filter(|word| !word.is_empty());
        if heading == "Options:" && line.trim_start().starts_with('-') {
            flags.extend(
                words.find(|word| word.starts_with("--")).map(|flag| flag.trim_end_matches("...").to_owned()),
            );
        } else if heading == "Commands:" && line.starts_with("  ") && !line.starts_with("   ") {
            commands.extend(words.next().map(str::to_owned));
        }
    }
    commands.remove("help");
    (flags, commands)
}

#[test]
fn the_pages_show_all_that_help_shows_and_nothing_hidden() {
    let pages = Pages::write();
    for command in &pages.commands {
        let page = run(Command::new("man").arg("-l").arg(pages.file(command)).env("MANWIDTH", "500"));
        let (flags, commands) = shown_by_help(command);
        assert!(flags.contains("--help"), "{command:?}: {flags:?}");
        for flag in flags {
            assert!(page.contains(&flag), "{flag} of {command:?}:\n{page}");
        }
        for name in commands {
            let below: Vec<String> = command.iter().cloned().chain([name]).collect();
            assert!(pages.commands.contains(&below), "{below:?} has no page");
        }
        assert!(!page.contains("--without") && !page.contains("--fault"), "{command:?}:\n{page}");
    }
    assert!(pages.commands.len() > 10, "{:?}", pages.commands);
}

#[test]
fn the_pages_are_formatted_without_a_warning() {
    let pages = Pages::write();
    for command in &pages.commands {
        let file = pages.file(command);
        for formatter in [
            &["mandoc", "-Tlint", "-Wwarning"][..],
            &["groff", "-ww", "-man", "-Tutf8", "-z"],
            &["man", "--warnings=w", "--local-file"],
        ] {
            let output = Command::new(formatter[0]).args(&formatter[1..]).arg(&file).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && said.is_empty(), "{formatter:?} {}: {said}", file.display());
        }
        let lint = run(Command::new("mandoc").args(["-Tlint", "-Wwarning"]).arg(&file));
        assert_eq!(lint, "", "{}", file.display());
        // What apropos(1) reads.
        let whatis = run(Command::new("lexgrog").arg(&file));
        assert!(whatis.contains(" - "), "{whatis}");
    }
}

/// The script for a shell, in a file.
fn completions(shell: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("_narwire");
    fs::write(&file, run(Command::new(BINARY).args(["completions", shell]))).unwrap();
    (folder, file)
}

/// What bash offers for the last word of a line.
fn completed_by_bash(script: &Path, line: &str) -> BTreeSet<String> {
    const COMPLETE: &str = r#"source "$0"
COMP_WORDS=($1) COMP_CWORD=$2 COMP_LINE=$1 COMP_POINT=${#1}
[[ $(complete -p narwire) == *" -F _narwire "* ]] && _narwire narwire "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\n' "${COMPREPLY[@]}""#;
    let last = line.split(' ').count() - 1;
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", COMPLETE]).arg(script).args([line, &last.to_string()]);
    run(&mut bash).lines().map(str::to_owned).collect()
}

/// What fish offers for the last word of a line.
fn completed_by_fish(script: &Path, line: &str) -> BTreeSet<String> {
    const COMPLETE: &str = "source $argv[1]; complete --do-complete $argv[2]";
    let home = tempfile::tempdir().unwrap();
    let mut fish = Command::new("fish");
    fish.args(["--no-config", "-c", COMPLETE]).arg(script).arg(line);
    fish.current_dir(&home).env("HOME", home.path());
    let offered = run(&mut fish);
    offered.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
}

/// Offers for the last word of a line, of the script of a shell.
type Complete = fn(&Path, &str) -> BTreeSet<String>;

#[test]
fn bash_and_fish_complete_commands_and_flags() {
    let ((_first, bash), (_second, fish)) = (completions("bash"), completions("fish"));
    let cache_flags: Vec<String> = shown_by_help(&["serve".to_owned()])
        .0
        .into_iter()
        .filter(|flag| flag.starts_with("--cache-"))
        .collect();
    assert!(cache_flags.len() > 3, "{cache_flags:?}");
    let shells: [(&str, Complete, &Path); 2] =
        [("bash", completed_by_bash, &bash), ("fish", completed_by_fish, &fish)];
    for (shell, complete, script) in shells {
        let assert_offers = |line: &str, wanted: &[&str]| {
            assert_eq!(
                complete(script, line),
                wanted.iter().map(|word| (*word).to_owned()).collect(),
                "{shell}: {line}"
            );
        };
        assert_offers("narwire pu", &["push"]);
        assert_offers("narwire key g", &["generate"]);
        assert_offers("narwire push --compression z", &["zstd"]);
        assert_offers("narwire push --dr", &["--dry-run"]);
        assert_offers("narwire serve --cache-", &cache_flags.iter().map(String::as_str).collect::<Vec<_>>());
        assert_offers("narwire serve --witho", &[]);
    }
}

#[test]
fn the_completions_know_all_that_help_shows_and_nothing_hidden() {
    let pages = Pages::write();
    for (shell, parse) in [("bash", "bash"), ("zsh", "zsh"), ("fish", "fish")] {
        let (_folder, file) = completions(shell);
        run(Command::new(parse).arg("-n").arg(&file));
        let script = fs::read_to_string(&file).unwrap();
        for command in &pages.commands {
            let (flags, commands) = shown_by_help(command);
            // fish writes a flag without its dashes.
            let names = flags
                .iter()
                .map(|flag| flag.trim_start_matches('-'))
                .chain(commands.iter().map(String::as_str));
            for name in names {
                assert!(script.contains(name), "{shell}: {name} of {command:?}");
            }
        }
        for hidden in ["--without", "-l without", "--fault", "-l fault"] {
            assert!(!script.contains(hidden), "{shell}: {hidden}");
        }
    }
}

#[test]
fn pages_that_cannot_be_written_are_one_line_and_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let output = Command::new(BINARY).arg("man").arg(folder.path().join("file/man1")).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{said}");
    assert!(said.contains("file/man1"), "{said}");
}

fn package() -> PathBuf {
    let package = std::env::var_os("NARWIRE_TEST_DEB").map(PathBuf::from);
    package.expect("NARWIRE_TEST_DEB names the package that deploy/package deb has made (tests/run sets it)")
}

fn unpacked() -> TempDir {
    let tree = tempfile::tempdir().unwrap();
    run(Command::new("dpkg-deb").arg("--extract").arg(package()).arg(tree.path()));
    tree
}

/// A field of the package.
fn field(name: &str) -> String {
    run(Command::new("dpkg-deb").arg("--field").arg(package()).arg(name))
}

#[test]
fn the_package_says_what_it_is_and_has_every_file_in_its_place() {
    assert_eq!(field("Version"), env!("CARGO_PKG_VERSION"));
    assert_eq!([field("Package"), field("Architecture"), field("Section")], ["narwire", "amd64", "net"]);
    let listed = run(Command::new("dpkg-deb").arg("--contents").arg(package()));
    let modes: BTreeMap<&str, &str> = listed
        .lines()
        .map(|line| (line.split_whitespace().nth(5).unwrap(), line.split_whitespace().next().unwrap()))
        .collect();
    for (file, mode) in [
        ("./usr/bin/narwire", "-rwxr-xr-x"),
        ("./usr/lib/systemd/system/narwire.socket", "-rw-r--r--"),
        ("./usr/lib/systemd/system/narwire.service", "-rw-r--r--"),
        ("./etc/narwire/narwire.toml", "-rw-r--r--"),
        ("./usr/share/bash-completion/completions/narwire", "-rw-r--r--"),
        ("./usr/share/zsh/vendor-completions/_narwire", "-rw-r--r--"),
        ("./usr/share/fish/vendor_completions.d/narwire.fish", "-rw-r--r--"),
        ("./usr/share/doc/narwire/copyright", "-rw-r--r--"),
        ("./usr/share/doc/narwire/THIRD-PARTY.gz", "-rw-r--r--"),
        ("./usr/share/doc/narwire/NEWS.gz", "-rw-r--r--"),
        ("./usr/share/doc/narwire/examples/post-build-hook", "-rwxr-xr-x"),
        ("./usr/share/doc/narwire/examples/prometheus/rules.yml", "-rw-r--r--"),
        ("./usr/share/doc/narwire/examples/grafana/narwire.json", "-rw-r--r--"),
    ] {
        assert_eq!(modes.get(file), Some(&mode), "{file} in\n{listed}");
    }
    for command in Pages::write().commands {
        let name: Vec<String> = ["narwire".to_owned()].into_iter().chain(command).collect();
        let file = format!("./usr/share/man/man1/{}.1.gz", name.join("-"));
        assert!(modes.contains_key(file.as_str()), "{file} in\n{listed}");
    }
    assert!(listed.lines().all(|line| line.split_whitespace().nth(1) == Some("0/0")), "{listed}");
}

#[test]
fn the_program_of_the_package_runs_where_there_is_nothing_else() {
    let tree = unpacked();
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--root"]).arg(tree.path()).args(["/usr/bin/narwire", "--version"]);
    assert_eq!(run(&mut command), format!("narwire {}", field("Version")));
}

#[test]
fn the_notices_of_the_libraries_are_in_the_package() {
    let tree = unpacked();
    let file = tree.path().join("usr/share/doc/narwire/THIRD-PARTY.gz");
    let notices = run(Command::new("gzip").args(["--decompress", "--stdout"]).arg(file));
    for (library, words) in [("glommio", "Apache"), ("zstd-sys", "BSD"), ("bitmaps", "MPL")] {
        let mut lines = notices.lines().filter(|line| line.starts_with(&format!("{library}-")));
        assert!(lines.next().is_some_and(|line| line.contains(words)), "{library}: {words}");
    }
    assert!(notices.contains("Redistributions of source code must retain"), "the texts are there as well");
}

/// The same package in a later version, with another service file, settings, and so on.
fn upgraded(folder: &Path) -> PathBuf {
    let (tree, file) = (folder.join("tree"), folder.join("later.deb"));
    run(Command::new("dpkg-deb").arg("--raw-extract").arg(package()).arg(&tree));
    let control = tree.join("DEBIAN/control");
    let later = fs::read_to_string(&control).unwrap().replacen("\nVersion: ", "\nVersion: 1:", 1);
    fs::write(&control, later).unwrap();
    run(Command::new("dpkg-deb").args(["--build", "--root-owner-group", "-Znone"]).arg(&tree).arg(&file));
    file
}

/// A machine of the test's own that has a store with one path, and the packages to install.
fn machine() -> Machine {
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine::boot();
    machine.copy(&package(), "/tmp/narwire.deb");
    machine.copy(&upgraded(folder.path()), "/tmp/later.deb");
    machine.run("rm -rf /nix && nix-store --add /etc/machine-id");
    machine
}

#[test]
fn the_service_is_installed_upgraded_under_load_removed_and_purged() {
    if !rustix::process::geteuid().is_root() {
        return; // nobody else can install packages
    }
    let machine = machine();
    let install = |file: &str| machine.run(&format!("dpkg --install --force-confdef /tmp/{file}.deb 2>&1"));
    let property =
        |unit: &str, name: &str| machine.run(&format!("systemctl show --value --property {name} {unit}"));

    // The socket listens, and the service starts with the first connection.
    install("narwire");
    assert_eq!(machine.run("systemctl is-enabled narwire.socket"), "enabled");
    assert_eq!(property("narwire.socket", "ActiveState"), "active");
    assert_eq!(property("narwire.service", "ActiveState"), "inactive");
    let narinfo = "/$(ls /nix/store | grep machine-id | cut -c -32).narinfo";
    let said = machine.run(&format!("curl --silent --fail --max-time 60 http://127.0.0.1:5000{narinfo}"));
    assert!(said.starts_with("StorePath: /nix/store/"), "{said}");
    assert!(
        machine.run("man --where narwire narwire-push").contains("/usr/share/man/man1/narwire-push.1.gz")
    );

    // An upgrade restarts the service alone, keeps changed settings, and refuses nobody.
    machine.run("echo 'priority = 7' >>/etc/narwire/narwire.toml");
    let [socket, process] =
        [property("narwire.socket", "InvocationID"), property("narwire.service", "MainPID")];
    let requests = "while test ! -e /tmp/enough; do \
                    curl --silent --fail --max-time 60 --output /tmp/answer http://127.0.0.1:5000/nix-cache-info; echo $?; done";
    let load = machine.command(requests).stdout(Stdio::piped()).spawn().unwrap();
    install("later");
    eventually("the new process serves", || {
        machine
            .run("curl --silent --fail --max-time 60 http://127.0.0.1:5000/nix-cache-info")
            .ends_with("Priority: 7")
    });
    machine.run("touch /tmp/enough");
    let output = load.wait_with_output().unwrap();
    let codes: BTreeSet<&str> = std::str::from_utf8(&output.stdout).unwrap().lines().collect();
    assert_eq!(codes, ["0"].into(), "exit codes of curl");
    assert_eq!(property("narwire.socket", "InvocationID"), socket);
    assert_ne!(property("narwire.service", "MainPID"), process);

    // Removed, nothing listens; what was configured and cached stays, for the next time.
    machine.run("systemctl enable narwire.service 2>&1; dpkg --remove narwire");
    let said = machine.output("curl --silent http://127.0.0.1:5000/nix-cache-info");
    assert_eq!(said.status.code(), Some(7), "connection refused");
    machine.run("grep 'priority = 7' /etc/narwire/narwire.toml");
    machine.run("ls -d /var/cache/narwire/.narwire");
    install("narwire");
    machine.run(
        "curl --silent --fail --max-time 60 http://127.0.0.1:5000/nix-cache-info | grep -q 'Priority: 7'",
    );

    // Purged, what can be made again is gone, and what cannot is kept and named.
    machine.run("echo upload >/var/lib/private/narwire/file");
    let said = machine.run("dpkg --purge narwire 2>&1");
    assert!(said.contains("what was uploaded is kept in /var/lib/private/narwire"), "{said}");
    let left =
        machine.run("ls -d /etc/narwire /var/cache/narwire /var/cache/private/narwire 2>/dev/null; true");
    assert_eq!(left, "");
    let links = machine.run("find /etc/systemd /var/lib/systemd -name '*narwire*'");
    assert_eq!(links, "");
    machine.run("rm /var/lib/narwire/file");
    install("narwire");
    let said = machine
        .run("dpkg --purge narwire 2>&1; ls /var/lib/narwire /var/lib/private/narwire 2>/dev/null; true");
    assert!(!said.contains("uploaded") && !said.contains("/var/lib"), "{said}");
}
