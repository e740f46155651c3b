//! The floors: what the kernel alone takes for the same bytes. Each runs on a thread of this process on core 0.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::fs::{Mode, OFlags};
use rustix::thread::gettid;

use super::load::thread_time;
use super::process;

/// What one read takes at most.
const READ_LEN_MAX: usize = 256 * 1024;

/// Files that are read one after another by name, and sent to nobody.
#[derive(Clone)]
pub struct Files {
    root: PathBuf,
    /// Relative to the root, with their lengths: a file that is read to its end needs not be asked whether there is more.
    files: Vec<(CString, u64)>,
}

/// What it took to read all of them.
#[derive(Clone, Copy)]
pub struct Time {
    pub cpu: Duration,
    pub wall: Duration,
}

impl Files {
    /// All regular files of a tree, in the order of a NAR.
    pub fn of(root: &Path) -> anyhow::Result<Self> {
        let mut files = Vec::new();
        collect(root, root, &mut files)?;
        Ok(Self { root: root.to_path_buf(), files })
    }

    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Length of the longest and of all files. Bytes.
    pub fn len_bytes(&self) -> (u64, u64) {
        let lens = self.files.iter().map(|(_, len_bytes)| *len_bytes);
        (lens.clone().max().unwrap_or(0), lens.sum())
    }

    /// Opens, reads and closes each.
    pub fn read(&self) -> anyhow::Result<Time> {
        let root = rustix::fs::open(&self.root, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                process::pin(0)?;
                let mut buffer = vec![0; READ_LEN_MAX];
                let (begin, start) = (thread_time(), Instant::now());
                for (name, len_bytes) in &self.files {
                    let file =
                        rustix::fs::openat(&root, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
                    let mut offset = 0;
                    while offset < *len_bytes {
                        match rustix::io::pread(&file, &mut buffer, offset)? {
                            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                            len => offset += len as u64,
                        }
                    }
                }
                Ok(Time { cpu: thread_time().saturating_sub(begin), wall: start.elapsed() })
            });
            reader.join().unwrap_or_else(|_| Err(io::Error::other("the bare loop panicked")))
        })
        .context("cannot read the files")
    }
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<(CString, u64)>) -> anyhow::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, metadata) = (entry.path(), entry.metadata()?);
        if metadata.is_dir() {
            collect(root, &path, files)?;
        } else if metadata.is_file() {
            let name = CString::new(path.strip_prefix(root)?.as_os_str().as_bytes())?;
            files.push((name, metadata.len()));
        }
    }
    Ok(())
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
        thread::spawn(move || {
            let _ = process::pin(0)
                .and_then(|()| sender.send(gettid().as_raw_nonzero().get()).map_err(io::Error::other));
            for socket in listener.incoming() {
                // A client that goes away in the middle is how every round ends.
                let _ = socket.and_then(|socket| serve(socket, &file));
            }
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
