//! `narwire top`: what one node or several are doing, in a terminal, or as a table for scripts, from what they say at `/metrics`.
//!
//! [`figures`] reckons, [`screen`] draws what it is given ([`grid`]: into the room there is) and [`table`] prints it, all without asking
//! anybody; [`nodes`] asks. Here is what holds them together, and the terminal.

mod figures;
mod grid;
mod nodes;
mod screen;
mod table;

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, Write, stdout};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{panic, thread};

use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::disable_raw_mode;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::{flag, low_level};

use self::nodes::Node;
use self::screen::{Next, Screen};
use super::push::CERTIFICATES;
use super::{Failure, print};
use crate::limits::{
    PORT_DEFAULT, TOP_ANSWER_TIMEOUT, TOP_END_MAX, TOP_INTERVAL_DEFAULT_S, TOP_INTERVAL_MAX_S,
    TOP_INTERVAL_MIN_S, TOP_NODES_MAX, TOP_TICK,
};
use crate::push::address::{Address, AddressError};
use crate::push::client::{Cache, CertificatesError};
use crate::push::credentials::{self, CredentialsError};
use crate::store::fault;

const HELP: &str = "\
Throughput, requests, the wait for the first byte, hit ratios, connections, queues, damage and more: of each node, and of all together. A \
figure that a node does not have is shown as a dash. All but totals since the start are of the last interval. \
Requests for metrics are left out, but for their row among the routes. A node that does not answer is asked again.

Keys:
  up, down, tab   choose a node, or all of them
  p               pause, and go on
  ?               what the figures mean
  q, Esc, Ctrl-C  quit

Where a token is needed (a server with --private), it comes from the URL (http://USER:PASSWORD@HOST), --token-file, or a netrc file as \
Nix has it (--netrc-file).

Environment:
  NIX_SSL_CERT_FILE                   trust the certificates in this file, and no others
  NO_COLOR                            draw without colors
  all_proxy, https_proxy, http_proxy  a proxy for all requests: the first of them that is set
  no_proxy                            hosts to reach without it

Examples:
  narwire top
    watch the server on this machine
  narwire top http://node1:5000 http://node2:5000 http://node3:5000
    watch three, and their sum; past the load balancer, which may hide /metrics
  narwire top --once --interval 10 https://cache.example.org
    print what the next ten seconds bring, a figure in each line
  narwire top --once | awk '$1 == \"requests_per_second\" { print $2 }'
    one figure alone
  narwire top --json http://node1:5000 http://node2:5000 | jq .all.figures.throughput_bytes_per_second
    the same for programs, of two nodes together

Exit status:
  0  it was quit, or all nodes have answered
  1  it has printed what it knows, and some node has not answered
  2  something has to be changed first";

/// Each of them ends it.
const SIGNALS: [i32; 3] = [SIGHUP, SIGINT, SIGTERM];
/// A shell's exit status of a program that was ended by a signal is above this by the number of that.
const SIGNALLED: i32 = 128;

/// Arguments of `top`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct TopArguments {
    /// Nodes to watch, with or without http:// and /metrics [default: http://127.0.0.1:5000]
    #[arg(value_name = "URL")]
    pub nodes: Vec<String>,
    /// How often they are asked [default: 2]
    #[arg(long, value_name = "SECONDS", value_parser = interval)]
    pub interval: Option<Duration>,
    /// Ask twice, print a table and exit; it is so by itself where standard output is no terminal
    #[arg(long)]
    pub once: bool,
    /// The same as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Take the token from the last line of this file, as `narwire token create` prints it
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Take user and password from this netrc file [default: /etc/nix/netrc if it can be read]
    #[arg(long, value_name = "FILE")]
    pub netrc_file: Option<PathBuf>,
    /// Break where this says, for tests
    #[arg(long, value_name = "SPEC", hide = true)]
    pub fault: Option<String>,
}

/// Why nothing, or not all, is shown.
#[derive(Debug, thiserror::Error)]
pub enum TopFailure {
    /// Something else was named.
    #[error("URL {number}: {cause}")]
    Address {
        /// Which one, counted from 1: it may have a password, and so is not repeated.
        number: usize,
        /// What is wrong with it.
        cause: String,
    },
    /// It would be counted twice.
    #[error("{0} is named twice: its figures would count double")]
    Twice(Address),
    /// More than anybody can look at.
    #[error(
        "{0} nodes are more than the {TOP_NODES_MAX} that can be watched at once: Prometheus is for that"
    )]
    TooMany(usize),
    /// See its cause.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// See its cause.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    /// The system does not let signals be noticed.
    #[error("cannot take signals: {0}")]
    Signals(io::Error),
    /// The system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// It cannot be drawn on, or has gone.
    #[error("cannot use this terminal: {0}; --once prints a table instead")]
    Terminal(io::Error),
    /// Why was printed.
    #[error("{silent} of {nodes} {} not answered", if *.silent == 1 { "nodes has" } else { "nodes have" })]
    Silent {
        /// How many.
        silent: usize,
        /// Of how many.
        nodes: usize,
    },
}

impl TopFailure {
    /// 1 if the same command may succeed; 2 if something has to be changed before.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Silent { .. } | Self::Thread(_) => 1,
            _ => 2,
        }
    }
}

/// Shows what the nodes do until somebody has seen enough, or prints it once.
pub fn run(arguments: &TopArguments, variable: impl Fn(&str) -> Option<OsString>) -> Result<(), Failure> {
    if let Some(spec) = &arguments.fault {
        fault::plan(spec).map_err(Failure::Usage)?;
    }
    let nodes = nodes(arguments, variable)?;
    let interval = arguments.interval.unwrap_or(Duration::from_secs_f64(TOP_INTERVAL_DEFAULT_S));
    if arguments.once || arguments.json || !stdout().is_terminal() {
        once(nodes, interval, arguments.json)
    } else {
        Ok(watch(nodes, interval)?)
    }
}

fn nodes(
    arguments: &TopArguments,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Vec<Node>, TopFailure> {
    let here = [format!("http://127.0.0.1:{PORT_DEFAULT}")];
    let typed = if arguments.nodes.is_empty() { &here[..] } else { &arguments.nodes };
    if typed.len() > TOP_NODES_MAX {
        return Err(TopFailure::TooMany(typed.len()));
    }
    let certificates = variable(CERTIFICATES).filter(|value| !value.is_empty()).map(PathBuf::from);
    let (token_file, netrc_file) = (arguments.token_file.as_deref(), arguments.netrc_file.as_deref());
    let mut known = HashSet::new();
    let mut nodes = Vec::new();
    for (index, typed) in typed.iter().enumerate() {
        let address = address(typed).map_err(|cause| {
            // The words for caches are about what somebody does to one.
            let cause = match cause {
                AddressError::Scheme(scheme) => format!("nodes are asked over http or https, not {scheme}"),
                AddressError::Query => "leave out what begins with `?` or `#`".to_owned(),
                cause => cause.to_string(),
            };
            TopFailure::Address { number: index + 1, cause }
        })?;
        if !known.insert(address.to_string()) {
            return Err(TopFailure::Twice(address));
        }
        let authorization = credentials::find(&address, token_file, netrc_file)?;
        let cache = Cache::new(address, authorization.as_ref(), certificates.as_deref())?;
        nodes.push(Node::new(cache.answering_within(TOP_ANSWER_TIMEOUT)));
    }
    Ok(nodes)
}

/// Prometheus is told of the same places with the path, or as a host and a port.
fn address(typed: &str) -> Result<Address, AddressError> {
    let typed = typed.trim_end_matches('/');
    let typed = typed.strip_suffix("/metrics").unwrap_or(typed);
    if typed.contains("://") { typed.parse() } else { format!("http://{typed}").parse() }
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds =
        text.parse().ok().filter(|seconds| (TOP_INTERVAL_MIN_S..=TOP_INTERVAL_MAX_S).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| {
        format!(
            "expected a number of seconds from {TOP_INTERVAL_MIN_S} to {TOP_INTERVAL_MAX_S}, such as 2 or 0.5"
        )
    })
}

fn once(nodes: Vec<Node>, interval: Duration, is_json: bool) -> Result<(), Failure> {
    let seen = nodes::look_twice(nodes, interval);
    print(&if is_json { table::json(&seen, interval) } else { table::text(&seen) })?;
    let mut silent = 0;
    for (name, cause) in seen.iter().filter_map(|(name, seen)| Some((name, seen.as_ref().err()?))) {
        silent += 1;
        // Nobody may be reading any more.
        let _ = writeln!(io::stderr(), "narwire: {name}: {cause}");
    }
    match silent {
        0 => Ok(()),
        silent => Err(TopFailure::Silent { silent, nodes: seen.len() }.into()),
    }
}

fn watch(nodes: Vec<Node>, interval: Duration) -> Result<(), TopFailure> {
    let ended = Arc::new(AtomicBool::new(false));
    notice_signals(Arc::clone(&ended)).map_err(TopFailure::Signals)?;
    let mut screen = Screen::new(nodes.iter().map(Node::name).collect(), interval);
    let is_paused = Arc::new(AtomicBool::new(false));
    let news = nodes::watch(nodes, interval, &is_paused).map_err(TopFailure::Thread)?;
    let keyboard = Keyboard::open().map_err(TopFailure::Terminal)?;
    let mut shown = Shown::new().map_err(TopFailure::Terminal)?;
    let mut next_tick = Instant::now() + interval;
    let mut is_outdated = true;
    while !ended.load(Ordering::Relaxed) {
        if is_outdated {
            shown.0.draw(|frame| screen.draw(frame)).map_err(TopFailure::Terminal)?;
            fault::may_panic("top: drawn");
            is_outdated = false;
        }
        if keyboard.is_gone_within(TOP_TICK).map_err(TopFailure::Terminal)? {
            break;
        }
        while event::poll(Duration::ZERO).map_err(TopFailure::Terminal)? {
            is_outdated = true;
            if let Event::Key(key) = event::read().map_err(TopFailure::Terminal)?
                && screen.press(key) == Next::Quit
            {
                return Ok(());
            }
            is_paused.store(screen.is_paused(), Ordering::Relaxed);
        }
        for (index, seen) in news.take() {
            screen.take(index, seen);
            is_outdated = true;
        }
        if Instant::now() >= next_tick {
            screen.tick();
            next_tick = Instant::now() + interval;
            is_outdated = true;
        }
    }
    Ok(())
}

/// Has the first signal say that this is the end, and the second one be it. A terminal that is stopped keeps whoever writes to it, also who
/// would leave it as it was: then the process ends all the same, after a moment, and what is left of the picture stays.
fn notice_signals(ended: Arc<AtomicBool>) -> io::Result<()> {
    // Before the others are told: a first signal must not be taken for the second.
    for signal in SIGNALS {
        flag::register_conditional_shutdown(signal, SIGNALLED + signal, Arc::clone(&ended))?;
    }
    let mut signals = Signals::new(SIGNALS)?;
    let end = move || {
        let Some(signal) = signals.forever().next() else { return };
        ended.store(true, Ordering::Relaxed);
        thread::sleep(TOP_END_MAX);
        let _ = disable_raw_mode();
        low_level::exit(SIGNALLED + signal);
    };
    thread::Builder::new().name("signals".to_owned()).spawn(end).map(drop)
}

/// Where keys come from: what crossterm reads, which never comes back from a terminal that was closed.
struct Keyboard(OwnedFd);

impl Keyboard {
    fn open() -> io::Result<Self> {
        let stdin = io::stdin();
        let descriptor = if stdin.is_terminal() {
            stdin.as_fd().try_clone_to_owned()?
        } else {
            File::open("/dev/tty")?.into()
        };
        Ok(Self(descriptor))
    }

    /// Waits for a key, for so long at most. Whether the terminal was closed.
    fn is_gone_within(&self, wait: Duration) -> io::Result<bool> {
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        let wait = Timespec::try_from(wait).map_err(io::Error::other)?;
        match poll(&mut polled, Some(&wait)) {
            Ok(_) => Ok(polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)),
            // A signal: that the terminal has another size is among what is read, and the others are looked at anyway.
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The terminal while it is drawn on. It is as before once this is dropped, and when a thread panics.
struct Shown(DefaultTerminal);

impl Shown {
    fn new() -> io::Result<Self> {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            // Of the program that made it invisible nothing else is left.
            let _ = execute!(stdout(), Show);
            hook(panic);
        }));
        ratatui::try_init().map(Self).inspect_err(|_| ratatui::restore())
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::arguments::{self, Command};

    fn typed(line: &str) -> Result<TopArguments, String> {
        let words = line.split_whitespace().map(OsString::from).collect();
        match arguments::parse(words).map_err(|error| error.to_string())?.command {
            Some(Command::Top(arguments)) => Ok(arguments),
            other => panic!("{line}: {other:?}"),
        }
    }

    fn names(line: &str) -> Result<Vec<String>, TopFailure> {
        let arguments = typed(&format!("{line} --netrc-file /dev/null")).unwrap();
        Ok(nodes(&arguments, |_| None)?.iter().map(Node::name).collect())
    }

    #[test]
    fn every_flag_is_understood() {
        let line = "narwire top http://a http://b --interval 0.5 --once --json --token-file t --netrc-file n";
        let arguments = typed(line).unwrap();
        assert_eq!(arguments.nodes, ["http://a", "http://b"]);
        assert_eq!(arguments.interval, Some(Duration::from_millis(500)));
        assert!(arguments.once && arguments.json);
        assert_eq!((arguments.token_file, arguments.netrc_file), (Some("t".into()), Some("n".into())));
    }

    #[test]
    fn an_interval_is_a_number_of_seconds() {
        for text in ["0", "0.01", "-1", "NaN", "inf", "1e9", "2s", ""] {
            assert!(interval(text).unwrap_err().contains("such as 2"), "{text:?}");
            typed(&format!("narwire top --interval={text}")).unwrap_err();
        }
        assert_eq!(interval("10"), Ok(Duration::from_secs(10)));
    }

    #[test]
    fn nodes_are_named_as_in_a_browser_or_as_for_prometheus() {
        assert_eq!(names("narwire top").unwrap(), ["http://127.0.0.1:5000"]);
        let line = "narwire top http://a:1/metrics https://user:secret@b/cache/ http://c/metrics/ d:5000 [::1]:1/metrics";
        let nodes = ["http://a:1", "https://b/cache", "http://c", "http://d:5000", "http://[::1]:1"];
        assert_eq!(names(line).unwrap(), nodes);
    }

    #[test]
    fn what_cannot_be_watched_is_refused_with_the_mend() {
        let many: Vec<String> = (0..=TOP_NODES_MAX).map(|number| format!("http://h{number}")).collect();
        let many = format!("narwire top {}", many.join(" "));
        for (line, word) in [
            ("narwire top http://a s3://b", "URL 2: nodes are asked over http or https, not s3"),
            ("narwire top http://a?compression=xz", "URL 1: leave out what begins with `?` or `#`"),
            ("narwire top localhost:port", "URL 1: that is no valid URL"),
            ("narwire top http://a http://user:secret@a/metrics", "http://a is named twice"),
            ("narwire top http://u:secret@a --token-file /x", "--token-file"),
            ("narwire top http://a --token-file /nonexistent", "/nonexistent"),
            (&many, "65 nodes"),
        ] {
            let failure = names(line).unwrap_err();
            let text = failure.to_string();
            assert!(text.contains(word) && !text.contains("secret"), "{line}: {text}");
            assert_eq!((text.lines().count(), failure.exit_code()), (1, 2), "{text}");
        }
    }

    #[test]
    fn who_has_not_answered_may_answer_later() {
        for (silent, text) in [(1, "1 of 3 nodes has not answered"), (2, "2 of 3 nodes have not answered")] {
            let failure = TopFailure::Silent { silent, nodes: 3 };
            assert_eq!((failure.to_string().as_str(), failure.exit_code()), (text, 1));
        }
    }
}
