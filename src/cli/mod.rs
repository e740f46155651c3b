//! What a person types, in three steps: [`arguments`] (what was typed), [`settings`] (what is wanted), and [`load`]
//! (what is true: the server's [`Config`]). Precedence: flag, environment, file, default.

pub mod arguments;
pub mod check;
pub mod completions;
pub mod demo;
pub mod environment;
pub mod file;
pub mod key;
pub mod load;
pub mod log;
pub mod man;
pub mod nix_serve;
pub mod push;
pub mod scrub;
pub mod settings;
pub mod size;
pub mod token;
pub mod top;

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::iter::successors;
use std::path::Path;
use std::sync::Arc;

use tracing::{info, warn};

use crate::server::config::{Config, ReadAgain, SandboxMode, SourceConfig};
use crate::server::listen::Listener;
use crate::server::machine::say_at_last;
use crate::server::scribe::{LogKind, Scribe};
use crate::server::{self, RunError};
use crate::store::{StoreError, fault};
use arguments::{CheckArguments, Command, CommandLine, KeyCommand, ServeArguments};
use environment::{Environment, EnvironmentError};
use file::FileError;
use key::KeyGenerateError;
use load::LoadError;
use log::{Log, LogFormat, LogLevel};
use scrub::ScrubError;
use settings::{Settings, SettingsError};
use token::{Printed, TokenCommandError};

/// What a server of a live store says that keeps no NARs.
const HINT: &str = "there is no NAR cache: with --cache-dir DIR, NARs that are asked for again are kept compressed on \
                    disk, and sent like files";

/// What else is to be known where something could not be read again.
const DENIED: &str =
    "in the sandbox, only what lies in a folder that was named at the start can be read: start narwire anew";

/// Why a command did not do what it was asked to, in one line for the person who asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A variable makes no sense.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// The configuration file gives no settings.
    #[error(transparent)]
    File(#[from] FileError),
    /// The settings contradict each other.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The machine lacks what the settings want.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// There is no new key.
    #[error(transparent)]
    Key(#[from] KeyGenerateError),
    /// The file of tokens is as it was.
    #[error(transparent)]
    Token(#[from] TokenCommandError),
    /// There is no throw-away store.
    #[error("no demo: {0}")]
    Demo(StoreError),
    /// Nothing, or not all, could be looked at.
    #[error(transparent)]
    Scrub(#[from] ScrubError),
    /// All was looked at, and some of it is damaged; the list was printed.
    #[error("{0}")]
    Damage(scrub::Damage),
    /// Nothing, or not all, could be uploaded.
    #[error(transparent)]
    Push(#[from] push::PushFailure),
    /// Nothing, or not all, could be watched.
    #[error(transparent)]
    Top(#[from] top::TopFailure),
    /// Not all manual pages are there.
    #[error(transparent)]
    Man(#[from] man::ManError),
    /// The server did not start, or broke.
    #[error(transparent)]
    Run(#[from] RunError),
    /// What was to be printed could not be.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
}

impl Failure {
    /// 2 when something has to be changed before the same command can succeed, 1 when it broke at work or found damage.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Run(RunError::Serve(_)) | Self::Output(_) | Self::Damage(_) => 1,
            Self::Push(failure) => failure.exit_code(),
            Self::Top(failure) => failure.exit_code(),
            _ => 2,
        }
    }
}

/// Does what the command line says. `arguments` begin with the name of the program; `variable` is the environment.
pub fn run(arguments: Vec<OsString>, variable: impl Fn(&str) -> Option<OsString>) -> Result<(), Failure> {
    if nix_serve::is_called(arguments.first()) {
        return match nix_serve::parse(arguments, load::cores()) {
            Ok(arguments) => serve(&arguments, variable),
            Err(error) => help_or_failure(&error, "nix-serve --help"),
        };
    }
    let command_line = match arguments::parse(arguments) {
        Ok(command_line) => command_line,
        Err(error) => return help_or_failure(&error, "narwire --help"),
    };
    let CommandLine { command, serve: bare } = command_line;
    match command.unwrap_or(Command::Serve(bare)) {
        Command::Serve(arguments) => serve(&arguments, variable),
        Command::Check(CheckArguments { serve, settings_only: true }) => {
            settings(serve, variable)?;
            print(
                "narwire: the settings are understood, and agree with each other; this machine was not looked at\n",
            )
        }
        Command::Check(CheckArguments { serve, settings_only: false }) => {
            print(&check::report(&configure(serve, variable)?)?)
        }
        Command::Scrub(arguments) => {
            let is_json = arguments.json;
            let settings = settings(arguments.places(), variable)?;
            plan_fault(&settings)?;
            scrub::run(settings, is_json)
        }
        Command::Push(arguments) => push::run(arguments, variable),
        Command::Top(arguments) => top::run(&arguments, variable),
        Command::Key(KeyCommand::Generate(arguments)) => print(&key::generate(&arguments)?),
        Command::Token(command) => {
            let Printed { explanation, result } = token::run(&command)?;
            // A script that keeps the result may have closed the other stream.
            let _ = io::stderr().write_all(explanation.as_bytes());
            print(&result)
        }
        Command::Demo(arguments) => {
            let log = Log::start(variable, &LogLevel::default(), LogFormat::default());
            demo::run(&arguments, log.scribe(), load::cores())
        }
        Command::Completions(arguments) => print(&completions::script(arguments.shell)),
        Command::Man(arguments) => Ok(man::write(&arguments, variable("SOURCE_DATE_EPOCH"))?),
    }
}

fn serve(arguments: &ServeArguments, variable: impl Fn(&str) -> Option<OsString>) -> Result<(), Failure> {
    let started = settings(arguments.clone(), &variable)?;
    let mut log = Log::start(&variable, &started.log_level, started.log_format);
    plan_fault(&started)?;
    let config = load::load(started.clone(), load::cores())?;
    let has_store = config.sources.iter().any(|source| matches!(source, SourceConfig::Store(_)));
    let could_cache = has_store && config.nar_cache.is_none();
    let mut in_force = started.clone();
    let scribe = Arc::clone(log.scribe());
    let read_again = || {
        let rules = rules_again(&mut in_force, &started, || settings(arguments.clone(), &variable));
        log.change(&in_force.log_level);
        let hint = |failure| match started.sandbox {
            SandboxMode::On | SandboxMode::Require if is_denied(&failure) => format!("{failure}; {DENIED}"),
            _ => failure.to_string(),
        };
        rules.map_err(hint)
    };
    let result = server::run(config, &scribe, read_again, |listeners| {
        announce(listeners, &scribe, started.log_format);
        if could_cache {
            info!("{HINT}");
        }
    });
    Ok(result?)
}

/// Whether the operating system said that something is not permitted.
fn is_denied(failure: &Failure) -> bool {
    let first = Some(failure as &dyn Error);
    let mut causes =
        successors(first, |&error| error.source()).filter_map(|error| error.downcast_ref::<io::Error>());
    causes.any(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// What is to hold from now on, of keys and tokens as they are now, and of the settings that `read` gives. Those are taken as a whole: if
/// some of them wait for a restart the others do as well, for who may read what is served now was not asked about what is served next.
fn rules_again(
    in_force: &mut Settings,
    started: &Settings,
    read: impl FnOnce() -> Result<Settings, Failure>,
) -> Result<ReadAgain, Failure> {
    // A pipe, as shells make them of commands, is empty now. What it says was read once.
    if let Some(path) = started.config_file.as_ref().filter(|path| !path.is_file()) {
        return Err(FileError::Gone(path.clone()).into());
    }
    let now = read()?;
    let waiting = now.differing_until_restart(started);
    if waiting.is_empty() {
        let rules = load::rules(&now)?;
        *in_force = now;
        return Ok(ReadAgain { rules, is_restart_pending: false });
    }
    warn!(
        "the settings have changed and wait for a restart, all of them, because these are read at the start only: {}",
        waiting.join("; ")
    );
    Ok(ReadAgain { rules: load::rules(in_force)?, is_restart_pending: true })
}

fn configure(
    arguments: ServeArguments,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Config, Failure> {
    Ok(load::load(settings(arguments, variable)?, load::cores())?)
}

fn settings(
    arguments: ServeArguments,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Settings, Failure> {
    let Environment { arguments: environment, credentials_directory } = Environment::read(variable)?;
    let credentials_directory = credentials_directory.as_deref();
    let here = Path::new("");
    let mut layers = Vec::new();
    let config_file = arguments.config.clone();
    for typed in [arguments, environment] {
        layers.push(typed.with_paths_from(here, credentials_directory));
    }
    if let Some(path) = config_file {
        let folder = path.parent().unwrap_or(here);
        layers.push(file::read(&path)?.with_paths_from(folder, credentials_directory));
    }
    Ok(Settings::merge(layers)?)
}

/// Has the process break where a test wants it to.
fn plan_fault(settings: &Settings) -> Result<(), Failure> {
    settings.fault.as_deref().map_or(Ok(()), |spec| fault::plan(spec).map_err(Failure::Usage))
}

/// One line for each address, once it answers: on standard error, whatever the level, or as one of the objects that are all that may stand
/// there.
fn announce(listeners: &[Listener], scribe: &Arc<Scribe>, format: LogFormat) {
    for url in listeners.iter().map(Listener::url) {
        if format == LogFormat::Json {
            info!(target: log::LISTENING_TARGET, %url, "listening on {url}");
        } else {
            // Nobody may be reading any more; that is no reason not to serve.
            scribe.say(LogKind::Program, format!("narwire: listening on {url}\n").as_bytes());
        }
    }
}

/// Says why a command has failed. Where nobody reads that, the exit code is all that is left to say.
pub fn complain(failure: &Failure) {
    say_at_last(&format!("narwire: {failure}\n"));
}

fn print(text: &str) -> Result<(), Failure> {
    io::stdout().write_all(text.as_bytes()).map_err(Failure::Output)
}

/// Help and version are no failures. Of an error, clap's explanation without the usage that follows it, on one line.
fn help_or_failure(error: &clap::Error, help: &str) -> Result<(), Failure> {
    if error.exit_code() == 0 {
        return error.print().map_err(Failure::Output);
    }
    let rendered = error.render().to_string();
    let paragraphs = rendered.split("\n\n").take_while(|text| !is_usage_or_pointer(text));
    let sentences: Vec<String> = paragraphs.map(on_one_line).collect();
    let line = sentences.join("; ");
    Err(Failure::Usage(format!("{}; see {help}", line.strip_prefix("error: ").unwrap_or(&line))))
}

/// What clap adds to every error alike.
fn is_usage_or_pointer(paragraph: &str) -> bool {
    paragraph.starts_with("Usage:") || paragraph.starts_with("For more information")
}

fn on_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(line: &[&str]) -> Failure {
        run(line.iter().map(OsString::from).collect(), |_| None).unwrap_err()
    }

    #[test]
    fn a_mistyped_flag_is_one_line_that_names_it() {
        for (line, word) in [
            (&["narwire", "--prot", "1"][..], "'--prot' found; tip: a similar argument exists: '--port'"),
            (&["narwire", "-p", "1", "--listen", "[::]:2"], "cannot be used with"),
            (&["narwire", "--listen", "nowhere"], "ADDR:PORT"),
            (&["narwire", "key", "generate"], "<NAME>"),
            (&["nix-serve", "--ssl-cert", "x"], "nix-serve --help"),
            (&["/bin/nix-serve", "--store", "ssh://x"], "ssh://x"),
        ] {
            let failure = failure(line);
            let text = failure.to_string();
            assert!(text.contains(word), "{line:?}: {text}");
            assert_eq!((text.lines().count(), failure.exit_code()), (1, 2), "{line:?}: {text}");
            assert!(!text.contains("error:") && !text.contains("Usage"), "{text}");
        }
    }

    #[test]
    fn settings_for_another_machine_are_settings() {
        let line = "narwire check --settings-only /nonexistent --secret-key-file /nonexistent --workers 64";
        run(line.split(' ').map(OsString::from).collect(), |_| None).unwrap();
    }

    #[test]
    fn what_the_machine_lacks_is_one_line_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "prot = 1").unwrap();
        let (folder, file) = (folder.path().to_str().unwrap(), file.to_str().unwrap());
        for (line, word) in [
            (vec!["narwire", "check", "/nonexistent"], "/nonexistent"),
            (vec!["narwire", "check", file], "cache directory"),
            (vec!["narwire", "check", "--db", "/nonexistent/db"], "narwire demo"),
            (vec!["narwire", "check", folder, "--secret-key-file", "/nonexistent"], "secret key"),
            (vec!["narwire", "check", folder, "--secret-key-file", file], "file"),
            (vec!["narwire", "check", "--config", "/nonexistent"], "configuration file"),
            (vec!["narwire", "check", "--config", file], "prot"),
            (vec!["narwire", "check", folder, "--upload-token-file", "/nonexistent"], "narwire token create"),
            (vec!["narwire", "check", folder, "--upload-token-file", file], "file:1: expected <name>"),
            (vec!["narwire", "check", folder, "--private"], "--upload-token-file"),
            (vec!["narwire", "check", "--allow-anonymous-upload"], "narwire serve DIR"),
            (vec!["narwire", "token", "list", "--file", "/nonexistent"], "token file"),
            (vec!["narwire", "check", folder, "--db", "/x"], "--with-store"),
            (vec!["narwire", "check", folder, "--without", "gravity"], "gravity"),
            (vec!["narwire", "check", "--settings-only", "--config", file], "prot"),
            (vec!["narwire", "check", "--settings-only", "--private"], "--upload-token-file"),
        ] {
            let failure = failure(&line);
            let text = failure.to_string();
            assert!(text.contains(word), "{line:?}: {text}");
            assert_eq!((text.lines().count(), failure.exit_code()), (1, 2), "{line:?}: {text}");
        }
    }
}
