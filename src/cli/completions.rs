//! `narwire completions`: what makes a shell complete the command line.

use clap::{Command, CommandFactory};
use clap_complete::{generate, shells};

use super::arguments::{CommandLine, Shell};

/// The script for `shell`.
pub fn script(shell: Shell) -> String {
    let (mut command, name, mut script) = (visible(&CommandLine::command()), "narwire", Vec::new());
    match shell {
        Shell::Bash => generate(shells::Bash, &mut command, name, &mut script),
        Shell::Zsh => generate(shells::Zsh, &mut command, name, &mut script),
        Shell::Fish => generate(shells::Fish, &mut command, name, &mut script),
    }
    String::from_utf8_lossy(&script).into_owned()
}

/// The same command without its hidden flags, which the scripts would offer like all others.
fn visible(command: &Command) -> Command {
    let shown = Command::new(command.get_name().to_owned())
        .args(command.get_arguments().filter(|argument| !argument.is_hide_set()))
        .subcommands(command.get_subcommands().map(visible))
        .about(command.get_about().cloned().unwrap_or_default());
    match command.get_version() {
        Some(version) => shown.version(version.to_owned()),
        None => shown,
    }
}
