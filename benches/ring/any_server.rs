//! narwire and the bare servers: each is a process of its own on core 0, and all are asked and measured in the same way.

use std::io::{self, BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;

use crate::harness::load::{self, Group, Outcome, Reading, Until};
use crate::harness::server::{self, Server};
use crate::on_core;

/// One of the servers, whatever it is.
pub enum AnyServer<'a> {
    Bare(BareProcess),
    Narwire(&'a Server),
}

impl AnyServer<'_> {
    /// Asks from core 1; every answer has status 200.
    pub fn load(
        &self,
        connections: usize,
        requests: &[Vec<u8>],
        reading: Reading,
        until: Until,
    ) -> anyhow::Result<Outcome> {
        let address = match self {
            Self::Bare(bare) => bare.address,
            Self::Narwire(narwire) => narwire.address,
        };
        let groups = || [Group::new(connections, requests, 200, reading)];
        Ok(on_core(1, || load::run(address, &groups(), until, &|| self.time()))??)
    }

    /// CPU time of all its threads.
    fn time(&self) -> io::Result<Duration> {
        match self {
            Self::Bare(bare) => server::process_time(bare.child.id()),
            Self::Narwire(narwire) => narwire.time(),
        }
    }
}

/// A running server on core 0, ended by its process id when this is dropped.
pub struct BareProcess {
    child: Child,
    address: SocketAddr,
}

impl BareProcess {
    /// Starts this program once more, as the bare server of this name (see [`crate::bare_server`]).
    pub fn start(name: &str, of: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new("setpriv");
        // Whatever ends this process ends the server.
        command.args(["--pdeathsig", "KILL", "taskset", "-c", "0"]).arg(std::env::current_exe()?);
        command.args(["--serve", name]).arg(of).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot run setpriv (util-linux)")?;
        let output = child.stdout.take();
        let mut server = Self { child, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        // It says its address, or ends.
        let mut line = String::new();
        BufReader::new(output.context("no output")?).read_line(&mut line)?;
        server.address = line.trim().parse().with_context(|| format!("{name} has not started"))?;
        Ok(server)
    }
}

impl Drop for BareProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
