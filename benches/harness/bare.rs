//! The floors: what the kernel alone takes for the same bytes. Each runs on a thread of this process on core 0.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use rustix::fs::{Mode, OFlags};
use rustix::thread::{CpuSet, gettid};

use super::load::thread_time;

/// CPU time of opening, reading and closing every file of `root`, whose names are known, one after another.
pub fn read_files(root: &Path) -> anyhow::Result<Duration> {
    let mut names = Vec::new();
    for directory in fs::read_dir(root)? {
        for file in fs::read_dir(directory?.path())? {
            let file = file?.path();
            names.push(std::ffi::CString::new(file.strip_prefix(root)?.to_str().context("UTF-8")?)?);
        }
    }
    names.sort();
    let root = rustix::fs::open(root, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    on_core_0(move || {
        let mut buffer = vec![0; 4096];
        let begin = thread_time();
        for name in &names {
            let file = rustix::fs::openat(&root, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::io::pread(&file, &mut buffer, 0)?;
        }
        Ok(thread_time().saturating_sub(begin))
    })
    .join()
    .unwrap_or_else(|_| Err(io::Error::other("the bare loop panicked")))
    .context("cannot read the files")
}

/// A server of one file and one connection at a time: a blocking sendfile, and nothing else.
pub struct Sendfile {
    pub address: SocketAddr,
    thread: i32,
}

impl Sendfile {
    /// Serves until this process ends.
    pub fn start(file: &Path) -> anyhow::Result<Self> {
        let file = File::open(file)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let (sender, receiver) = std::sync::mpsc::channel();
        on_core_0(move || {
            let _ = sender.send(gettid().as_raw_nonzero().get());
            for socket in listener.incoming() {
                // A client that goes away in the middle is how every round ends.
                let _ = socket.and_then(|socket| serve(socket, &file));
            }
            Ok(())
        });
        Ok(Self { address, thread: receiver.recv()? })
    }

    /// CPU time of the thread.
    pub fn time(&self) -> io::Result<Duration> {
        let statistics = fs::read_to_string(format!("/proc/self/task/{}/schedstat", self.thread))?;
        let time = statistics.split(' ').next().unwrap_or_default().parse().map_err(io::Error::other)?;
        Ok(Duration::from_nanos(time))
    }
}

fn serve(mut socket: TcpStream, file: &File) -> io::Result<()> {
    let len = file.metadata()?.len();
    let mut request = [0; 4096];
    while socket.read(&mut request)? > 0 {
        socket.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n").as_bytes())?;
        let mut offset = 0;
        while offset < len {
            let rest = usize::try_from(len - offset).unwrap_or(usize::MAX);
            rustix::fs::sendfile(&socket, file, Some(&mut offset), rest)?;
        }
    }
    Ok(())
}

fn on_core_0<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> thread::JoinHandle<io::Result<T>> {
    thread::spawn(move || {
        let mut core = CpuSet::new();
        core.set(0);
        rustix::thread::sched_setaffinity(None, &core)?;
        work()
    })
}
