//! What options of sockets cost and save: a server that sends as narwire does, by sendfile in steps to whoever takes something.
//!
//! They are set as defaults of the network namespace, which is what the options of a single socket come to.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_tcp_user_timeout};
use rustix::time::Timespec;

use crate::harness::load::{connect, thread_time};
use crate::harness::process;
use crate::harness::report::median;
use crate::harness::server::socket_memory_kib;

const LOWAT: &str = "/proc/sys/net/ipv4/tcp_notsent_lowat";
const WMEM: &str = "/proc/sys/net/ipv4/tcp_wmem";
const FILE_LEN: usize = 256 << 20;
/// As `SENDFILE_LEN_MAX`.
const STEP_LEN: usize = 256 * 1024;
const STALLED: usize = 100;
const SETTLED: Duration = Duration::from_millis(400);
const MEASURED: Duration = Duration::from_millis(700);
const ROUNDS: usize = 3;
const ASKED_ONCE: EventFlags = EventFlags::OUT.union(EventFlags::ONESHOT);
/// For the peer that stops reading.
const USER_TIMEOUT: Duration = Duration::from_secs(3);
const STOPPED: Duration = Duration::from_secs(10);

/// A row: what is set to what. KiB.
const ROWS: [(&str, Option<usize>, Option<usize>); 8] = [
    ("as the kernel has it", None, None),
    ("TCP_NOTSENT_LOWAT 1 MiB", Some(1024), None),
    ("TCP_NOTSENT_LOWAT 512 KiB", Some(512), None),
    ("TCP_NOTSENT_LOWAT 256 KiB", Some(256), None),
    ("TCP_NOTSENT_LOWAT 128 KiB", Some(128), None),
    ("TCP_NOTSENT_LOWAT 64 KiB", Some(64), None),
    ("send buffer at most 512 KiB", None, Some(512)),
    ("send buffer at most 256 KiB", None, Some(256)),
];

/// What a row has seen.
#[derive(Clone, Default)]
struct Column {
    stopped_kib: f64,
    /// CPU and speed of each round, with one reader and with several.
    streamed: [(Vec<f64>, Vec<f64>); 2],
}

/// The section of the report.
pub fn measure() -> anyhow::Result<String> {
    let wmem = fs::read_to_string(WMEM)?;
    let mut file = tempfile::tempfile_in("/dev/shm")?;
    let piece = vec![7; 1 << 20];
    for _ in 0..FILE_LEN / piece.len() {
        file.write_all(&piece)?;
    }
    let mut text = format!(
        "\nSocket options: what the kernel holds for each of {STALLED} readers that have stopped (KiB; pages of the file are counted),\n\
         and server CPU (s/GB) and throughput (GB/s) with 1 and 8 readers on another core, medians of {ROUNDS}.\n\n\
         {:<30} {:>12} {:>16} {:>16}\n",
        "", "stopped", "1 reader", "8 readers"
    );
    let mut columns = vec![Column::default(); ROWS.len()];
    for _ in 0..ROUNDS {
        for ((_, lowat, buffer), column) in ROWS.iter().zip(&mut columns) {
            fs::write(LOWAT, lowat.map_or(u32::MAX.to_string(), |kib| (kib * 1024).to_string()))
                .context(LOWAT)?;
            let limited = |kib: usize| format!("4096 16384 {}", kib * 1024);
            fs::write(WMEM, buffer.map_or(wmem.clone(), limited)).context(WMEM)?;
            column.stopped_kib = stopped(&file)?;
            for (readers, (cpu, speed)) in [1, 8].into_iter().zip(&mut column.streamed) {
                let (cpu_now, speed_now) = streamed(&file, readers)?;
                cpu.push(cpu_now);
                speed.push(speed_now);
            }
        }
    }
    fs::write(LOWAT, u32::MAX.to_string())?;
    fs::write(WMEM, wmem)?;
    for ((name, ..), column) in ROWS.iter().zip(columns) {
        let [one, eight] = column.streamed;
        let cell =
            |(cpu, speed): (Vec<f64>, Vec<f64>)| format!("{:.3} {:>6.2}", median(&cpu), median(&speed));
        writeln!(text, "{name:<30} {:>12.0} {:>16} {:>16}", column.stopped_kib, cell(one), cell(eight))?;
    }
    for timeout in [None, Some(USER_TIMEOUT)] {
        let option = timeout.map_or("not set".to_owned(), |timeout| format!("{} s", timeout.as_secs()));
        let outcome = paused(&file, timeout)?;
        writeln!(
            text,
            "\nTCP_USER_TIMEOUT {option}, a peer that is there and does not read for {} s: {outcome}",
            STOPPED.as_secs()
        )?;
    }
    Ok(text)
}

/// Sends the file again and again to all who are connected, until it is told to stop. CPU time and bytes so far go into the counters.
fn serve(
    listener: &TcpListener,
    clients: usize,
    file: &File,
    is_over: &AtomicBool,
    cpu_ns: &AtomicU64,
    sent: &AtomicU64,
) -> io::Result<()> {
    process::pin(0)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let mut sockets = Vec::new();
    for index in 0..clients {
        let (socket, _) = listener.accept()?;
        socket.set_nonblocking(true)?;
        epoll::add(&epoll, &socket, EventData::new_u64(index as u64), ASKED_ONCE)?;
        sockets.push((socket, 0u64));
    }
    let mut events = Vec::with_capacity(64);
    let mut ready: Vec<usize> = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        events.clear();
        let wait = if ready.is_empty() { 50_000_000 } else { 0 };
        let wait = Timespec { tv_sec: 0, tv_nsec: wait };
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&wait))?;
        for event in &events {
            let index = usize::try_from(event.data.u64()).unwrap_or(0);
            if !ready.contains(&index) {
                ready.push(index);
            }
        }
        ready.retain(|index| {
            let (socket, at) = &mut sockets[*index];
            if *at >= FILE_LEN as u64 {
                *at = 0;
            }
            let before = *at;
            let result = rustix::fs::sendfile(&*socket, file, Some(at), STEP_LEN);
            sent.fetch_add(*at - before, Ordering::Relaxed);
            let goes_on = result.is_ok_and(|len| len == STEP_LEN);
            if !goes_on {
                // As narwire asks for one poll.
                let data = EventData::new_u64(*index as u64);
                let _ = epoll::modify(&epoll, &*socket, data, ASKED_ONCE);
            }
            goes_on
        });
        cpu_ns.store(u64::try_from(thread_time().as_nanos()).unwrap_or(0), Ordering::Relaxed);
    }
    Ok(())
}

/// Runs `client` against a server that has so many clients.
fn with_server<T>(
    file: &File,
    clients: usize,
    client: impl FnOnce(SocketAddr, &AtomicU64, &AtomicU64) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (is_over, cpu_ns, sent) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        let server = scope.spawn(|| serve(&listener, clients, file, &is_over, &cpu_ns, &sent));
        let result = client(address, &cpu_ns, &sent);
        is_over.store(true, Ordering::Relaxed);
        let served = server.join();
        let result = result?;
        served.map_err(|_| anyhow::anyhow!("the server has panicked"))??;
        Ok(result)
    })
}

fn stopped(file: &File) -> anyhow::Result<f64> {
    with_server(file, STALLED, |address, _, _| {
        let sockets: Vec<_> = (0..STALLED).map(|_| connect(address)).collect::<io::Result<_>>()?;
        // Each takes some, so that the kernel trusts it with more, and stops.
        let mut buffer = vec![0; 1 << 20];
        for _ in 0..4 {
            thread::sleep(SETTLED / 4);
            for mut socket in &sockets {
                let _ = socket.read(&mut buffer)?;
            }
        }
        thread::sleep(SETTLED);
        let kib = socket_memory_kib(address.port()).context("cannot run ss (iproute2)")?;
        Ok(kib as f64 / STALLED as f64)
    })
}

fn streamed(file: &File, readers: usize) -> anyhow::Result<(f64, f64)> {
    with_server(file, readers, |address, cpu_ns, sent| {
        let client = thread::spawn(move || -> io::Result<()> {
            process::pin(1)?;
            let epoll = epoll::create(CreateFlags::CLOEXEC)?;
            let sockets: Vec<TcpStream> =
                (0..readers).map(|_| connect(address)).collect::<io::Result<_>>()?;
            for (index, socket) in sockets.iter().enumerate() {
                socket.set_nonblocking(true)?;
                epoll::add(&epoll, socket, EventData::new_u64(index as u64), EventFlags::IN)?;
            }
            let mut buffer = vec![0; 512 * 1024];
            let mut events = Vec::with_capacity(64);
            let start = Instant::now();
            while start.elapsed() < MEASURED + Duration::from_millis(300) {
                events.clear();
                let wait = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
                epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&wait))?;
                for event in &events {
                    let mut socket = &sockets[usize::try_from(event.data.u64()).unwrap_or(0)];
                    let _ = socket.read(&mut buffer);
                }
            }
            Ok(())
        });
        thread::sleep(Duration::from_millis(200));
        let look = || (cpu_ns.load(Ordering::Relaxed), sent.load(Ordering::Relaxed), Instant::now());
        let (cpu_before, sent_before, start) = look();
        thread::sleep(MEASURED);
        let (cpu, sent, end) = look();
        client.join().map_err(|_| anyhow::anyhow!("the client has panicked"))??;
        let gb = (sent - sent_before) as f64 / 1e9;
        Ok(((cpu - cpu_before) as f64 / 1e9 / gb, gb / (end - start).as_secs_f64()))
    })
}

/// What becomes of a connection whose peer answers the kernel's questions and takes nothing for a while.
fn paused(file: &File, timeout: Option<Duration>) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = connect(listener.local_addr()?)?;
    set_socket_recv_buffer_size(&client, STEP_LEN)?;
    let (socket, _) = listener.accept()?;
    if let Some(timeout) = timeout {
        set_tcp_user_timeout(&socket, u32::try_from(timeout.as_millis())?)?;
    }
    socket.set_nonblocking(true)?;
    let start = Instant::now();
    let mut at = 0;
    while start.elapsed() < STOPPED {
        match rustix::fs::sendfile(&socket, file, Some(&mut at), STEP_LEN) {
            Ok(_) => {}
            Err(rustix::io::Errno::AGAIN) => thread::sleep(Duration::from_millis(100)),
            Err(errno) => {
                return Ok(format!("broken off after {:.0} s ({errno})", start.elapsed().as_secs_f64()));
            }
        }
    }
    Ok("the connection is as it was".to_owned())
}
