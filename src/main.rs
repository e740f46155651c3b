//! The binary: exit codes only. 0 is success, 2 a configuration that has to change first, 1 everything else.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = std::env::args_os().collect();
    match narwire::cli::run(arguments, |name| std::env::var_os(name)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            narwire::cli::complain(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}
