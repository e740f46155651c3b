//! `narwire man`: the manual pages, one for each command, out of what `--help` says.
//!
//! What stands below the flags there is text in a form that people read at once and this module takes apart: lines such as `Examples:`
//! are headings, indented lines are entries (two blanks end what an entry is about), and all others are paragraphs. So a page
//! cannot say something else than the help does. Only what the help has no room for is written here, in the same form.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::iter;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::arguments::{CommandLine, ManArguments};
use crate::codec::http::date::format_imf_fixdate;

/// In the order in which manual pages have them.
const HEADINGS: [&str; 6] = ["Keys", "Exit status", "Environment", "Files", "Signals", "Examples"];

/// For commands that say nothing else.
const EXIT_STATUS: &str = "\
Exit status:
  0  the command did what it was asked to, or was ended by a signal
  1  it broke at work, or could not write its output
  2  the command line, the settings or the machine have to change first; one line on standard error says what";

/// For commands that read a store as the server does.
const STORE: &str = "\
Files:
  /nix/var/nix/db/db.sqlite  the database of the live store, which is only read
  /etc/narwire/narwire.toml  the settings of the service (--config)
  /var/cache/narwire         the NAR cache of the service
  /var/lib/narwire           where the service takes uploads, if its settings say so";

/// For commands that serve.
const SIGNALS: &str = "\
Signals:
  SIGTERM, SIGINT
    drain: nobody new is accepted, and answers under way are finished, for at most --drain-timeout; a second signal ends at once
  SIGHUP
    read again what may change while serving; what is wrong is said in the log, and leaves all as it was";

/// For `push`.
const CREDENTIALS: &str = "\
Files:
  /etc/nix/netrc             user and password for the host of the cache, as Nix has them
  /nix/var/nix/db/db.sqlite  the database of the live store, which is only read";

/// Beside those of the help.
const EXAMPLES: &str = "\
Examples:
  narwire push --to https://cache.example.org --token-file token --all
    upload all valid paths of the store; what is there already is not sent again
  narwire scrub --config /etc/narwire/narwire.toml --json
    look for damage in all that the service serves from its store, and print one JSON object
  narwire key generate cache.example.org-1
    print a key pair
  narwire token list --file tokens
    which tokens there are, and what each of them is good for
  narwire token revoke --file tokens --name ci
    from the next reload of the server on, that token is refused
  narwire demo ~/folder
    serve what is in a folder as a store
  narwire completions bash > /usr/local/share/bash-completion/completions/narwire
    complete the command line in bash, for everybody on this machine
  narwire completions zsh > /usr/local/share/zsh/site-functions/_narwire
    the same in zsh
  narwire man /usr/local/share/man/man1
    write the pages to where man(1) looks for them";

/// Pages of others that say more.
const OTHERS: [&str; 3] = ["nix.conf(5)", "nix-store(1)", "systemd.socket(5)"];

/// Why not all pages are there.
#[derive(Debug, thiserror::Error)]
pub enum ManError {
    /// The folder, or a page in it.
    #[error("cannot write {}: {cause}", .path.display())]
    Unwritable {
        /// What was to be made.
        path: PathBuf,
        /// From mkdir(2), open(2) or write(2).
        cause: io::Error,
    },
    /// The variable that dates the pages.
    #[error("SOURCE_DATE_EPOCH={0}: not a number of seconds since 1970")]
    Date(String),
}

/// Writes all pages. Their date is that of the variable, so that a package is the same bytes whenever it is built, or else today.
pub fn write(arguments: &ManArguments, source_date_epoch: Option<OsString>) -> Result<(), ManError> {
    let now =
        || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs()).to_string();
    let date = date(&source_date_epoch.map_or_else(now, |seconds| seconds.to_string_lossy().into_owned()))?;
    let folder = &arguments.directory;
    let pages = fs::create_dir_all(folder).and_then(|()| pages(&date));
    for (name, page) in pages.map_err(|cause| ManError::Unwritable { path: folder.clone(), cause })? {
        let path = folder.join(name);
        fs::write(&path, page).map_err(|cause| ManError::Unwritable { path, cause })?;
    }
    Ok(())
}

/// `Nov 22, 2026`, which every formatter of pages understands.
fn date(seconds: &str) -> Result<String, ManError> {
    let number = seconds.parse().map_err(|_| ManError::Date(seconds.to_owned()))?;
    let fixdate = String::from_utf8_lossy(&format_imf_fixdate(number)).into_owned();
    Ok(match fixdate.split(' ').collect::<Vec<_>>()[..] {
        [_, day, month, year, ..] => format!("{month} {day}, {year}"),
        _ => fixdate,
    })
}

/// The name of each file, and its contents.
fn pages(date: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut root = CommandLine::command().disable_help_subcommand(true);
    root.build();
    with_descendants(&root)
        .into_iter()
        .map(|command| Ok((format!("{}.1", name(command)), page(&root, command, date)?)))
        .collect()
}

fn with_descendants(command: &Command) -> Vec<&Command> {
    let below = command.get_subcommands().flat_map(with_descendants);
    iter::once(command).chain(below).collect()
}

/// `narwire-key-generate`.
fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn page(root: &Command, command: &Command, date: &str) -> io::Result<Vec<u8>> {
    let text = Text::of(root, command);
    let man = Man::new(command.clone())
        .title(name(command).to_uppercase())
        .date(date)
        .source(format!("narwire {}", env!("CARGO_PKG_VERSION")))
        .manual("Nix binary caches");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    synopsis(command).to_writer(&mut page)?;
    man.render_description_section(&mut page)?;
    text.render_paragraphs().to_writer(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    text.render_sections().to_writer(&mut page)?;
    see_also(root, command).to_writer(&mut page)?;
    Ok(plain(&String::from_utf8_lossy(&page)).into_bytes())
}

/// As the help has it: that of clap_mangen lists the flags once more.
fn synopsis(command: &Command) -> Roff {
    let usage = command.clone().render_usage().to_string();
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    for (index, line) in usage.trim_start_matches("Usage:").lines().enumerate() {
        if index > 0 {
            roff.control("br", []);
        }
        roff.text([bold(line.trim())]);
    }
    roff
}

/// In ASCII, and without a blank line, for some formatters of pages know no other letters and all warn of blank lines.
fn plain(page: &str) -> String {
    let letter = |letter: char| {
        if letter.is_ascii() { letter.to_string() } else { format!("\\[u{:04X}]", u32::from(letter)) }
    };
    page.replace(".br\n\n.br\n", ".sp\n").chars().map(letter).collect()
}

/// What a page says beside the flags.
#[derive(Debug, Default)]
struct Text {
    paragraphs: Vec<String>,
    entries: Vec<Entry>,
}

/// Of a section.
#[derive(Debug, Clone)]
struct Entry {
    heading: String,
    term: String,
    text: String,
}

impl Text {
    fn of(root: &Command, command: &Command) -> Self {
        let has = |flag: &str| command.get_arguments().any(|argument| argument.get_id() == flag);
        let of_root = Self::help(root);
        // What serves is the same with and without the name of the command.
        let mut text = if has("listen") { Self::help(root) } else { Self::help(command) };
        if has("listen") {
            text.add(SIGNALS);
        }
        if has("to") {
            text.add(CREDENTIALS);
        } else if has("db") {
            text.add(STORE);
        }
        if !text.entries.iter().any(|entry| entry.heading == "Exit status") {
            text.add(EXIT_STATUS);
        }
        if name(command) != name(root) {
            text.entries.retain(|entry| entry.heading != "Examples");
            text.entries
                .extend(of_root.entries.into_iter().filter(|entry| is_example_of(root, command, entry)));
            let more = Self::parse(EXAMPLES).entries;
            text.entries.extend(more.into_iter().filter(|entry| is_example_of(root, command, entry)));
        }
        text
    }

    fn help(command: &Command) -> Self {
        Self::parse(&command.get_after_help().map(ToString::to_string).unwrap_or_default())
    }

    fn add(&mut self, text: &str) {
        self.entries.extend(Self::parse(text).entries);
    }

    fn parse(text: &str) -> Self {
        let (mut parsed, mut heading, mut goes_on) = (Self::default(), "", false);
        for line in text.lines() {
            let indentation = line.len() - line.trim_start().len();
            match (indentation, line.trim()) {
                (_, "") => {}
                (0, line) if line.ends_with(':') => heading = line.trim_end_matches(':'),
                (0, line) => match parsed.paragraphs.last_mut().filter(|_| goes_on) {
                    Some(paragraph) => *paragraph = format!("{paragraph} {line}"),
                    None => parsed.paragraphs.push(line.to_owned()),
                },
                (2, line) => {
                    let (term, text) = line.split_once("  ").unwrap_or((line, ""));
                    let [heading, term, text] = [heading, term, text.trim_start()].map(str::to_owned);
                    parsed.entries.push(Entry { heading, term, text });
                }
                (_, line) => {
                    if let Some(entry) = parsed.entries.last_mut() {
                        let separator = if entry.text.is_empty() { "" } else { " " };
                        entry.text.extend([separator, line]);
                    }
                }
            }
            goes_on = indentation == 0 && !line.is_empty() && !line.ends_with(':');
        }
        parsed
    }

    fn render_paragraphs(&self) -> Roff {
        let mut roff = Roff::new();
        for paragraph in &self.paragraphs {
            roff.control("PP", []).text([roman(paragraph)]);
        }
        roff
    }

    fn render_sections(&self) -> Roff {
        let mut roff = Roff::new();
        for heading in HEADINGS {
            let mut entries = self.entries.iter().filter(|entry| entry.heading == heading).peekable();
            if entries.peek().is_some() {
                roff.control("SH", [heading.to_uppercase().as_str()]);
            }
            for entry in entries {
                roff.control("TP", []).text([bold(&entry.term)]).text([roman(&entry.text)]);
            }
        }
        roff
    }
}

/// Whether an example shows what `command` does. Of the commands of `root`, the one without a name serves.
fn is_example_of(root: &Command, command: &Command, example: &Entry) -> bool {
    let typed = format!("{} ", example.term);
    let names = |command: &Command| typed.starts_with(&format!("{} ", name(command).replace('-', " ")));
    let serves = name(command) == "narwire-serve" && !root.get_subcommands().any(names);
    example.heading == "Examples" && (names(command) || serves)
}

/// The pages of the commands above and below, and those of others.
fn see_also(root: &Command, command: &Command) -> Roff {
    let mut pages: Vec<String> = with_descendants(root)
        .into_iter()
        .map(name)
        .filter(|other| *other != name(command))
        .filter(|other| name(command).starts_with(other) || other.starts_with(name(command)))
        .map(|other| format!("{other}(1)"))
        .collect();
    pages.extend(OTHERS.map(str::to_owned));
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]).text([roman(pages.join(", "))]);
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_pages() -> Vec<(String, String)> {
        let pages = pages("Nov 22, 2026").unwrap();
        pages.into_iter().map(|(name, page)| (name, String::from_utf8(page).unwrap())).collect()
    }

    #[test]
    fn the_text_below_the_flags_is_taken_apart() {
        let text = "Examples:\n  a --b  does it\n  a --long\n       also\n       this\n\nOne.\nTwo.\n\nThree.\nFiles:\n  /x  is x";
        let text = Text::parse(text);
        assert_eq!(text.paragraphs, ["One. Two.", "Three."]);
        let entries = text.entries.iter().map(|entry| [&*entry.heading, &*entry.term, &*entry.text]);
        let wanted = [
            ["Examples", "a --b", "does it"],
            ["Examples", "a --long", "also this"],
            ["Files", "/x", "is x"],
        ];
        assert!(entries.eq(wanted), "{text:?}");
    }

    #[test]
    fn nothing_of_the_help_is_lost_on_the_way_to_a_page() {
        let mut root = CommandLine::command();
        root.build();
        for command in with_descendants(&root) {
            for entry in Text::of(&root, command).entries {
                let is_shown = HEADINGS.contains(&entry.heading.as_str()) && !entry.text.is_empty();
                assert!(is_shown, "{}: {entry:?}", name(command));
            }
        }
        let examples = Text::parse(EXAMPLES).entries;
        let shown =
            |entry: &Entry| root.get_subcommands().any(|command| is_example_of(&root, command, entry));
        assert_eq!(
            examples.iter().find(|entry| !shown(entry) || entry.text.is_empty()).map(|entry| &entry.term),
            None
        );
    }

    #[test]
    fn each_page_is_whole() {
        for (name, page) in text_pages() {
            for heading in
                ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "\"EXIT STATUS\"", "EXAMPLES", "\"SEE ALSO\""]
            {
                assert_eq!(
                    page.matches(&format!("\n.SH {heading}\n")).count(),
                    1,
                    "{heading} of {name}:\n{page}"
                );
            }
        }
    }

    #[test]
    fn a_page_is_ascii() {
        let pages = text_pages();
        assert!(
            pages.iter().any(|(_, page)| page.contains("http://\\[u2026]")),
            "something had to be changed"
        );
        for (name, page) in pages {
            assert!(page.is_ascii() && !page.contains("\n\n"), "{name}");
        }
    }

    #[test]
    fn a_date_is_that_of_the_variable() {
        assert_eq!(date("1795305600").unwrap(), "Nov 22, 2026");
        let said = date("today").unwrap_err().to_string();
        assert!(said.starts_with("SOURCE_DATE_EPOCH=today: "), "{said}");
    }
}
