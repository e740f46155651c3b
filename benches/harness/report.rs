//! What every report says, and where it is kept.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;

use anyhow::Context as _;

/// The first lines of a report: the command, the commit, the machine and what it did before.
pub fn heading(bench: &str, others: &str) -> anyhow::Result<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let load: Vec<_> = load.split(' ').take(3).collect();
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    Ok(format!(
        "cargo bench --bench {bench} -- {}\n\
         {}; narwire {}, {others}; {} cores, {}; Linux {}; load before: {}; nice {}\n",
        arguments.join(" "),
        output("date", &["-u", "+%F"])?,
        commit()?,
        thread::available_parallelism()?,
        model.trim_start_matches(['\t', ' ', ':']),
        kernel.trim(),
        load.join(" "),
        rustix::process::getpriority_process(None)?,
    ))
}

/// The short name of the commit, with a `+` behind it when the sources were changed since: as it was when first asked for,
/// which is when the bench began.
fn commit() -> anyhow::Result<&'static str> {
    static COMMIT: OnceLock<String> = OnceLock::new();
    if let Some(commit) = COMMIT.get() {
        return Ok(commit);
    }
    let name = output("git", &["rev-parse", "--short", "HEAD"])?;
    let changes = output("git", &["status", "--porcelain", "--", "src", "Cargo.toml", "Cargo.lock"])?;
    Ok(COMMIT.get_or_init(|| if changes.is_empty() { name } else { name + "+" }))
}

/// Writes the report to `benches/record/<date>-<commit><suffix>`.
pub fn record(report: &str, suffix: &str) -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/record");
    fs::create_dir_all(&folder)?;
    let file = folder.join(format!("{}-{}{suffix}", output("date", &["-u", "+%F"])?, commit()?));
    fs::write(&file, report)?;
    eprintln!("recorded in {}", file.display());
    Ok(())
}

fn output(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The value in the middle; the mean of the two there when they are even.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}
