//! What the kernel says of this process: `/proc`, opened while that can be opened, and read again at each scrape.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{RawDir, SeekFrom};
use rustix::process::Resource;
use rustix::time::{ClockId, Timespec};

/// Files that say how the process is.
#[derive(Debug)]
pub struct ProcessFiles {
    stat: File,
    statm: File,
    /// Read by one at a time, for its position is one.
    descriptors: Mutex<File>,
    /// Seconds since 1970.
    started_s: f64,
}

/// How the process is at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProcessFigures {
    /// What all threads have used. Seconds.
    pub cpu_s: f64,
    /// Memory that is there. Bytes.
    pub resident_bytes: u64,
    /// Addresses that mean something. Bytes.
    pub virtual_bytes: u64,
    /// Descriptors that are open.
    pub open_descriptors: u64,
    /// As many as there may be; none where there is no limit.
    pub descriptors_max: Option<u64>,
    /// When it began. Seconds since 1970.
    pub started_s: f64,
    /// Its threads.
    pub threads: u64,
}

/// What is of interest in `/proc/self/stat` (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    threads: u64,
    /// After the machine's start, in ticks.
    started_ticks: u64,
    virtual_bytes: u64,
}

impl ProcessFiles {
    /// Opens them; none where `/proc` is not there.
    pub fn open() -> Option<Self> {
        let stat = File::open("/proc/self/stat").ok()?;
        let statm = File::open("/proc/self/statm").ok()?;
        let descriptors = Mutex::new(File::open("/proc/self/fd").ok()?);
        let started_ticks = Stat::parse(&read(&stat).ok()?)?.started_ticks;
        let ticks_per_s = rustix::param::clock_ticks_per_second();
        let age_s =
            seconds(rustix::time::clock_gettime(ClockId::Boottime)) - ratio(started_ticks, ticks_per_s);
        let started_s = seconds(rustix::time::clock_gettime(ClockId::Realtime)) - age_s;
        Some(Self { stat, statm, descriptors, started_s })
    }

    /// How the process is; none where the kernel says nothing that can be understood.
    pub fn figures(&self) -> Option<ProcessFigures> {
        let Stat { threads, virtual_bytes, .. } = Stat::parse(&read(&self.stat).ok()?)?;
        let statm = read(&self.statm).ok()?;
        let resident_pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
        Some(ProcessFigures {
            cpu_s: seconds(rustix::time::clock_gettime(ClockId::ProcessCPUTime)),
            resident_bytes: resident_pages * rustix::param::page_size() as u64,
            virtual_bytes,
            open_descriptors: self.count_descriptors().ok()?,
            descriptors_max: rustix::process::getrlimit(Resource::Nofile).current,
            started_s: self.started_s,
            threads,
        })
    }

    fn count_descriptors(&self) -> io::Result<u64> {
        let descriptors = self.descriptors.lock().unwrap_or_else(PoisonError::into_inner);
        // Since Linux 6.2 that is their number; before it is 0. To list ten thousand takes some ten milliseconds.
        match u64::try_from(rustix::fs::fstat(&*descriptors)?.st_size) {
            Ok(count @ 1..) => Ok(count),
            _ => Self::list_descriptors(&descriptors),
        }
    }

    fn list_descriptors(descriptors: &File) -> io::Result<u64> {
        rustix::fs::seek(descriptors, SeekFrom::Start(0))?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(descriptors, &mut buffer);
        let mut count = 0;
        while let Some(entry) = entries.next() {
            let name = entry?;
            count += u64::from(!matches!(name.file_name().to_bytes(), b"." | b".."));
        }
        Ok(count)
    }
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name, in which anything may stand.
        let (_, fields) = text.rsplit_once(") ")?;
        let field = |number: usize| fields.split(' ').nth(number - 3)?.trim_end().parse().ok();
        Some(Self { threads: field(20)?, started_ticks: field(22)?, virtual_bytes: field(23)? })
    }
}

/// The whole of a file of `/proc`, made anew.
fn read(file: &File) -> io::Result<String> {
    let mut buffer = [0; 1024];
    let len = file.read_at(&mut buffer, 0)?;
    Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
}

fn seconds(time: Timespec) -> f64 {
    let whole = u32::try_from(time.tv_sec).map_or(0.0, f64::from);
    whole + u32::try_from(time.tv_nsec).map_or(0.0, f64::from) / 1e9
}

#[expect(clippy::cast_precision_loss, reason = "ticks since the start of a machine are far below 2^53")]
fn ratio(ticks: u64, ticks_per_s: u64) -> f64 {
    ticks as f64 / ticks_per_s as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::now_s;

    #[test]
    fn a_program_may_have_any_name() {
        let fields: Vec<_> = (4..=52).map(|number| number.to_string()).collect();
        let text = format!("7 (a) b (c)) S {}\n", fields.join(" "));
        assert_eq!(Stat::parse(&text), Some(Stat { threads: 20, started_ticks: 22, virtual_bytes: 23 }));
        assert_eq!((Stat::parse("7 (a) S 1 2"), Stat::parse("")), (None, None));
    }

    #[test]
    fn this_process_is_as_the_kernel_says() {
        let files = ProcessFiles::open().unwrap();
        let before = files.figures().unwrap();
        let opened: Vec<_> = (0..200).map(|_| File::open("/dev/null").unwrap()).collect();
        let after = files.figures().unwrap();
        // Other tests open and close files meanwhile, but not that many.
        assert!(after.open_descriptors > before.open_descriptors + 100, "{before:?} {after:?}");
        let listed = ProcessFiles::list_descriptors(&files.descriptors.lock().unwrap()).unwrap();
        assert!(listed.abs_diff(after.open_descriptors) < 50, "{listed} {after:?}");
        drop(opened);
        assert!(before.cpu_s > 0.0 && after.cpu_s >= before.cpu_s);
        assert!(before.threads >= 2 && before.resident_bytes > 1 << 20);
        assert!(before.virtual_bytes > before.resident_bytes);
        assert!(before.descriptors_max.is_none_or(|max| max >= before.open_descriptors));
        let age_s = f64::from(u32::try_from(now_s()).unwrap()) - before.started_s;
        assert!((-2.0..86_400.0).contains(&age_s), "{age_s}");
    }
}
