//! Machines on one switch: network namespaces of their own, which nothing outlives.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::run;

/// A network namespace. It is there for as long as a process is in it, and the one that makes it ends with its standard input: so
/// nothing is left when the test ends, in whatever way.
pub struct Machine {
    holder: Child,
    pub address: &'static str,
}

impl Machine {
    /// A machine on no network.
    fn new(address: &'static str) -> Self {
        let mut unshare = Command::new("unshare");
        unshare.args(["--net", "sh", "-c", "ip link set lo up && echo ready && exec cat"]);
        let mut holder = unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "a network namespace (iproute2 is needed)");
        Self { holder, address }
    }

    /// The same command on this machine, with only those variables that were given to it.
    pub fn command(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.env_clear().env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()));
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        inside.arg(format!("--net={}", self.namespace())).arg(command.get_program()).args(command.get_args());
        inside
    }

    /// A socket that listens on this machine; who has it may be anywhere.
    pub fn listen(&self, port: u16) -> TcpListener {
        let namespace = File::open(self.namespace()).unwrap();
        let address = (self.address, port);
        // Only the thread moves, and ends there.
        let bind = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            TcpListener::bind(address).unwrap()
        };
        thread::spawn(bind).join().unwrap()
    }

    /// How many bytes it has sent to others.
    pub fn sent_bytes(&self) -> u64 {
        let devices = fs::read_to_string(format!("/proc/{}/net/dev", self.holder.id())).unwrap();
        let counts = devices.lines().find_map(|line| line.trim().strip_prefix("eth0:")).unwrap();
        counts.split_whitespace().nth(8).unwrap().parse().unwrap()
    }

    /// Nothing comes from it any more, and nothing reaches it.
    pub fn unplug(&self) {
        self.ip("link set eth0 down");
    }

    fn namespace(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    fn ip(&self, arguments: &str) {
        run(&mut self.command(Command::new("ip").args(arguments.split_whitespace())));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ended = self.holder.wait();
    }
}

/// A machine to which others are connected.
pub struct Switch {
    pub machine: Machine,
    ports: u32,
}

impl Switch {
    pub fn new(address: &'static str) -> Self {
        let machine = Machine::new(address);
        machine.ip("link add switch type bridge");
        machine.ip(&format!("address add {address}/24 dev switch"));
        machine.ip("link set switch up");
        Self { machine, ports: 0 }
    }

    /// One more machine.
    pub fn connect(&mut self, address: &'static str) -> Machine {
        let machine = Machine::new(address);
        let (port, holder) = (self.ports, machine.holder.id());
        self.ports += 1;
        self.machine.ip(&format!("link add port{port} type veth peer name eth0 netns {holder}"));
        self.machine.ip(&format!("link set port{port} master switch up"));
        machine.ip(&format!("address add {address}/24 dev eth0"));
        machine.ip("link set eth0 up");
        machine
    }

    /// One more machine, to which so much goes in a second and no more, as `tc` writes it.
    pub fn connect_slowly(&mut self, address: &'static str, rate: &str) -> Machine {
        let machine = self.connect(address);
        let shape =
            format!("qdisc add dev port{} root tbf rate {rate} burst 256kb latency 200ms", self.ports - 1);
        run(&mut self.machine.command(Command::new("tc").args(shape.split_whitespace())));
        machine
    }
}
