//! `narwire top`: as a table in a pipe, and drawn in a real terminal.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{Action, tcflow};
use serde_json::Value;

use crate::support::nar_cache::CacheDir;
use crate::support::server::BINARY;
use crate::support::upload::UploadDir;
use crate::support::{Narwire, PATIENCE, eventually, fixture, run, text};

/// A port at which nobody listens.
const NOBODY: &str = "http://127.0.0.1:1";

/// What `narwire top` with these arguments prints into a pipe, says, and exits with.
fn piped(arguments: &[&str]) -> (String, String, Option<i32>) {
    let mut command = Command::new(BINARY);
    command.arg("top").args(arguments).args(["--interval", "0.2"]);
    if !arguments.contains(&"--token-file") {
        command.args(["--netrc-file", "/dev/null"]);
    }
    let output = command.env_clear().stdin(Stdio::null()).output().unwrap();
    let utf8 = |bytes| String::from_utf8(bytes).unwrap();
    (utf8(output.stdout), utf8(output.stderr), output.status.code())
}

/// The words of the line of a figure, without its name.
#[track_caller]
fn figures<'a>(table: &'a str, name: &str) -> Vec<&'a str> {
    let mut lines = table.lines().map(|line| line.split_whitespace());
    let line = lines.find_map(|mut words| (words.next() == Some(name)).then_some(words));
    line.unwrap_or_else(|| panic!("{name} is not in\n{table}")).collect()
}

#[test]
fn one_node_is_a_table_in_a_pipe() {
    let folder = UploadDir::new();
    let server = folder.serve();
    let (table, said, status) = piped(&[&format!("{}/metrics", server.url())]);
    assert_eq!((said.as_str(), status), ("", Some(0)));
    assert_eq!(figures(&table, "figure"), [server.url()]);
    assert_eq!(figures(&table, "up"), ["1"]);
    assert_eq!(figures(&table, "uploads_waiting"), ["0"]);
    assert_eq!(figures(&table, "uploads{result=\"stored\"}"), ["0"]);
}

#[test]
fn a_server_that_does_everything_has_every_figure() {
    let (cache, uploads) = (CacheDir::new(), UploadDir::new());
    let flags = [fixture().store.flags(), cache.flags("all", "zstd"), uploads.flags()].concat();
    let server = Narwire::start(flags.into_iter().chain(["--with-store".to_owned()]));
    let (table, _, status) = piped(&[&server.url()]);
    assert_eq!(status, Some(0));
    // Nothing was asked for but the figures, which do not count themselves.
    let of_requests =
        ["nar_cache_hit_ratio", "answer_cache_hit_ratio", "layout_cache_hit_ratio", "first_byte_p"];
    let unknown: Vec<_> = table.lines().filter(|line| line.ends_with("–")).collect();
    assert!(unknown.iter().all(|line| of_requests.iter().any(|name| line.starts_with(name))), "{unknown:#?}");
    for name in ["requests_per_second", "throughput_bytes_per_second", "requests_in_flight"] {
        assert_eq!(figures(&table, name), ["0"], "{name}");
    }
    let scrapes = figures(&table, "requests_per_second{route=\"metrics\"}");
    assert!(scrapes[0].parse::<f64>().unwrap() > 0.0, "the scrapes themselves");
    for name in
        ["queue_length{plane=\"walk\"}", "limits_hit{limit=\"descriptors\"}", "uploads{result=\"failed\"}"]
    {
        assert_eq!(figures(&table, name), ["0"]);
    }
}

#[test]
fn a_node_that_is_down_is_said_and_does_not_hide_the_other() {
    let folder = UploadDir::new();
    let server = folder.serve();
    let url = server.url();
    let (table, said, status) = piped(&["--once", NOBODY, &url]);
    assert_eq!(status, Some(1));
    assert_eq!(figures(&table, "figure"), [NOBODY, &url, "all"]);
    assert_eq!(figures(&table, "up"), ["0", "1", "1"]);
    assert_eq!(figures(&table, "uploads_under_way"), ["–", "0", "0"]);
    assert!(said.contains(&format!("narwire: {NOBODY}: cannot be reached: Connection refused")), "{said}");
    assert!(said.ends_with("narwire: 1 of 2 nodes has not answered\n"), "{said}");
}

#[test]
fn programs_read_the_sum_of_two_nodes() {
    let folders = [UploadDir::new(), UploadDir::new()];
    let servers = folders.each_ref().map(UploadDir::serve);
    let [one, other] = servers.each_ref().map(Narwire::url);
    let (json, _, status) = piped(&["--json", &one, &other]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((status, &json["all"]["up"]), (Some(0), &Value::from(2)));
    assert_eq!(json["nodes"][1]["url"], other);
    assert_eq!(json["nodes"][0]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(json["all"]["figures"]["uploads_by_result"]["stored"], 0.0);
}

#[test]
fn a_private_node_is_watched_with_a_token() {
    let folder = UploadDir::new();
    let tokens = folder.path().join("tokens");
    let mut create = Command::new(BINARY);
    create.args(["token", "create", "--name", "watcher", "--scope", "read", "--file", text(&tokens)]);
    let token = folder.path().join("token");
    fs::write(&token, run(&mut create)).unwrap();
    let server = Narwire::start([text(folder.path()), "--upload-token-file", text(&tokens), "--private"]);
    let url = server.url();
    let (_, said, status) = piped(&[&url]);
    assert!(said.contains("401") && said.contains("--token-file"), "{said}");
    assert_eq!(status, Some(1));
    let (table, said, status) = piped(&[&url, "--token-file", text(&token)]);
    assert_eq!((figures(&table, "up"), said.as_str(), status), (vec!["1"], "", Some(0)));
}

#[test]
fn what_makes_no_sense_is_one_line() {
    for (arguments, word) in [
        (&["s3://bucket"][..], "not s3"),
        (&["http://h", "--interval", "0"], "--interval"),
        (&["http://h", "http://h/metrics"], "twice"),
    ] {
        let output = Command::new(BINARY).arg("top").args(arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{said}");
        assert!(said.contains(word), "{said}");
    }
}

/// `narwire top` in a terminal, which a shell looks at before and after.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    output: Arc<Mutex<Vec<u8>>>,
}

const COLUMNS: usize = 100;
const LINES: usize = 30;

impl Terminal {
    fn open(arguments: &str) -> Self {
        let program = format!("{BINARY} top {arguments} --interval 0.2 --netrc-file /dev/null");
        let program = format!("sh -c 'echo \"pid:$$;\"; exec \"$@\"' sh {program}");
        let line = format!(
            "stty cols {COLUMNS} rows {LINES}; echo \"before:$(stty -g);\"; {program}; echo \"status:$?;\"; \
             echo \"after:$(stty -g);\""
        );
        let mut script = Command::new("script");
        script.args(["--quiet", "--flush", "--return", "--command", &line, "/dev/null"]);
        script.env("TERM", "xterm").env("SHELL", "/bin/sh").env_remove("NO_COLOR");
        let mut child =
            script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let output = Arc::new(Mutex::new(Vec::new()));
        let (mut stream, collected) = (child.stdout.take().unwrap(), Arc::clone(&output));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = stream.read(&mut buffer) {
                collected.lock().unwrap().extend_from_slice(&buffer[..len]);
            }
        });
        Self { keys: child.stdin.take().unwrap(), child, output }
    }

    fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap()).into_owned()
    }

    /// What the shell has printed behind `name:`, once it has.
    fn printed(&self, name: &str) -> String {
        let mut value = None;
        eventually(name, || {
            let output = self.output();
            let rest = output.split_once(&format!("{name}:")).map(|(_, rest)| rest);
            value = rest.and_then(|rest| rest.split_once(';')).map(|(value, _)| value.to_owned());
            value.is_some()
        });
        value.unwrap()
    }

    /// What somebody in front of it sees.
    fn picture(&self) -> String {
        let output = self.output();
        let mut cells = vec![vec![' '; COLUMNS]; LINES];
        let (mut line, mut column) = (0, 0);
        let drawn = output.split_once("\x1b[?1049h").map_or("", |(_, drawn)| drawn);
        let mut characters = drawn.chars();
        while let Some(character) = characters.next() {
            if character != '\x1b' {
                if let Some(cell) = cells.get_mut(line).and_then(|line: &mut Vec<char>| line.get_mut(column))
                {
                    *cell = character;
                }
                column += 1;
                continue;
            }
            let mut sequence = String::new();
            while !sequence.ends_with(|character: char| character.is_alphabetic()) {
                let Some(character) = characters.next() else { break };
                sequence.push(character);
            }
            // All others are about colors and modes.
            let place = sequence.strip_prefix('[').and_then(|sequence| sequence.strip_suffix('H'));
            if let Some((to_line, to_column)) = place.and_then(|place| place.split_once(';'))
                && let (Ok(to_line), Ok(to_column)) = (to_line.parse::<usize>(), to_column.parse::<usize>())
            {
                (line, column) = (to_line - 1, to_column - 1);
            }
        }
        cells.into_iter().map(|line| line.into_iter().chain(['\n']).collect::<String>()).collect()
    }

    #[track_caller]
    fn wait_for(&self, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.picture().contains(words) {
            assert!(Instant::now() < deadline, "{words:?} was never shown:\n{}", self.picture());
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Waits for the end, and looks whether the terminal is as it was; gives the exit status and what was printed behind the picture.
    #[track_caller]
    fn end(&self) -> (String, String) {
        assert_eq!(self.printed("before"), self.printed("after"), "of the line discipline");
        let output = self.output();
        let (picture, behind) = output.split_once("\x1b[?1049l").expect("the first screen is shown again");
        assert!(picture.contains("\x1b[?1049h"), "{output:?}");
        assert!(
            output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l"),
            "the cursor is there again: {output:?}"
        );
        (self.printed("status"), behind.to_owned())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Its shell gets SIGHUP with the terminal, and what that runs hears that it was closed.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

#[test]
fn it_draws_in_a_terminal_and_leaves_it_as_it_was() {
    let folder = UploadDir::new();
    let server = folder.serve();
    for key in ["q", "\x1b", "\x03"] {
        let mut terminal = Terminal::open(&server.url());
        terminal.wait_for(&format!("narwire top  {}  version {}", server.url(), env!("CARGO_PKG_VERSION")));
        terminal.wait_for("│uploads              0 +0│");
        terminal.press(key);
        assert_eq!(terminal.end().0, "0", "{key:?}");
    }
}

#[test]
fn it_ends_with_its_terminal() {
    let folder = UploadDir::new();
    let server = folder.serve();
    let mut terminal = Terminal::open(&server.url());
    terminal.wait_for("damaged paths");
    let pid = Pid::from_raw(terminal.printed("pid").parse().unwrap()).unwrap();
    terminal.child.kill().unwrap();
    eventually("it has ended", || is_over(pid));
}

/// Who is nobody's child is waited for by init, which may not be there.
fn is_over(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    status.is_empty() || status.contains(") Z ")
}

#[test]
fn a_terminal_that_is_stopped_does_not_keep_it() {
    let folder = UploadDir::new();
    let server = folder.serve();
    let terminal = Terminal::open(&server.url());
    terminal.wait_for("damaged paths");
    let pid = Pid::from_raw(terminal.printed("pid").parse().unwrap()).unwrap();
    let device = fs::File::open(format!("/proc/{}/fd/0", pid.as_raw_nonzero())).unwrap();
    tcflow(&device, Action::OOff).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    // The shell behind it is kept as well.
    eventually("it has ended", || is_over(pid));
    tcflow(&device, Action::OOn).unwrap();
    assert_eq!(terminal.printed("before"), terminal.printed("after"));
    assert_eq!(terminal.printed("status"), "143");
}

#[test]
fn a_node_that_comes_back_is_shown_again() {
    let folders = [UploadDir::new(), UploadDir::new()];
    let [server, other] = folders.each_ref().map(UploadDir::serve);
    let mut terminal = Terminal::open(&format!("{} {NOBODY} {}", server.url(), other.url()));
    terminal.wait_for("narwire top  3 nodes");
    terminal.wait_for("1 of 3 silent");
    terminal.wait_for(&format!("│{NOBODY} "));
    terminal.wait_for(" Connection refused");
    let address = other.address().to_string();
    drop(other);
    terminal.wait_for("2 of 3 silent");
    let mut command = Command::new(BINARY);
    let again = Narwire::spawn(command.args(folders[1].flags()).args(["--listen", &address]));
    again.wait_for("listening on");
    terminal.wait_for("1 of 3 silent");
    terminal.press("?");
    terminal.wait_for("choose a node, or all of them");
    terminal.press("?\x1b[B");
    terminal.wait_for(&format!("narwire top  {}  version", server.url()));
    terminal.press("q");
    assert_eq!(terminal.end().0, "0");
}

#[test]
fn a_signal_and_a_panic_leave_the_terminal_as_it_was() {
    let folder = UploadDir::new();
    let server = folder.serve();
    let terminal = Terminal::open(&format!("{} --fault \"panic@top: drawn\"", server.url()));
    let (status, behind) = terminal.end();
    assert_ne!(status, "0");
    assert!(behind.contains("a fault was planned at \"top: drawn\""), "{behind}");

    let terminal = Terminal::open(&server.url());
    terminal.wait_for("damaged paths");
    let pid = Pid::from_raw(terminal.printed("pid").parse().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(terminal.end().0, "0");
}
