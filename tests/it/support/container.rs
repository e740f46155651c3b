//! Containers of the image that `deploy/oci/build` makes, run as Docker and podman do it: by crun and runc, under the profile shipped
//! beside the image, and without their daemons.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Narwire, eventually, run, text};

/// The user of the image.
pub const USER: u32 = 50_000;

/// The image as its user unpacks it: the files and `config.json` of a container.
pub struct Image {
    folder: TempDir,
    files: Vec<String>,
    config: Value,
}

/// A container that can be started.
pub struct Container {
    runtime: &'static str,
    /// Each has a user of its own, for what a user may lock in memory is counted for all processes together.
    user: u32,
    /// What the runtime is told.
    pub config: Value,
    folder: TempDir,
}

/// One that runs. Dropping it ends it.
pub struct Running {
    pub server: Narwire,
    container: Container,
}

/// The static binary that is in the image: what the tests build on their own has the C library outside.
pub fn static_binary() -> PathBuf {
    let path = std::env::var_os("NARWIRE_TEST_STATIC").map(PathBuf::from);
    let path = path.expect("NARWIRE_TEST_STATIC names the static binary: deploy/package static makes it, and tests/run does all of this");
    assert!(path.is_file(), "NARWIRE_TEST_STATIC: no file {}", path.display());
    path
}

/// A file of the repository.
pub fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Makes the image.
pub fn build(output: &Path) {
    let mut build = Command::new(shipped("deploy/oci/build"));
    run(build.arg(static_binary()).arg(output).env("SOURCE_DATE_EPOCH", "1700000000").stdin(Stdio::null()));
}

/// The profile shipped beside the image.
pub fn profile() -> Value {
    serde_json::from_slice(&fs::read(shipped("deploy/oci/seccomp.json")).unwrap()).unwrap()
}

impl Image {
    /// The image, made once by each run of the tests.
    pub fn get() -> &'static Self {
        static IMAGE: OnceLock<Image> = OnceLock::new();
        IMAGE.get_or_init(Self::unpack)
    }

    fn unpack() -> Self {
        let folder =
            tempfile::Builder::new().prefix("image-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let archive = folder.path().join("narwire.oci.tar");
        build(&archive);
        let layout = folder.path().join("layout");
        fs::create_dir(&layout).unwrap();
        run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&layout));
        let bundle = folder.path().join("bundle");
        run(Command::new("umoci")
            .args(["unpack", "--image", &format!("{}:latest", text(&layout))])
            .arg(&bundle));
        let config = serde_json::from_slice(&fs::read(bundle.join("config.json")).unwrap()).unwrap();
        let mut image = Self { folder, files: Vec::new(), config };
        image.files = leaves(&image.root());
        image
    }

    /// What was in it before runtimes made folders there, to mount something: its files, and folders in which nothing is.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// What umoci makes of the image's configuration.
    pub fn config(&self) -> &Value {
        &self.config
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("bundle/rootfs")
    }

    /// A server in a container, with the capabilities that this run of the suite allows, at a port that is free.
    pub fn server(&self, runtime: &'static str, flags: &[&str]) -> Container {
        let mut flags = [&["--listen", "127.0.0.1:0"], flags].concat();
        let capabilities_off = std::env::var("NARWIRE_TEST_WITHOUT").ok();
        if let Some(capabilities) = &capabilities_off {
            flags.extend(["--without", capabilities]);
        }
        self.container(runtime, &flags)
    }

    /// A container as strict as they come: the shipped profile, no capabilities, nothing can be written. Its network is that of the
    /// test, or nobody could connect.
    pub fn container(&self, runtime: &'static str, flags: &[&str]) -> Container {
        static USERS: AtomicU32 = AtomicU32::new(USER);
        let user = USERS.fetch_add(1, Ordering::Relaxed);
        let mut config = self.config.clone();
        config["root"] = json!({ "path": self.root(), "readonly": true });
        let process = &mut config["process"];
        process["terminal"] = json!(false);
        process["user"] = json!({ "uid": user, "gid": user });
        process["capabilities"] = json!({});
        process["args"].as_array_mut().unwrap().extend(flags.iter().map(|flag| json!(flag)));
        let linux = &mut config["linux"];
        linux["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "network");
        linux["seccomp"] = profile();
        // What they hold of resources is not the matter here.
        linux.as_object_mut().unwrap().remove("resources");
        config["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "cgroup");
        let folder = tempfile::Builder::new().prefix("container-").tempdir().unwrap();
        Container { runtime, user, config, folder }
    }
}

impl Container {
    /// Shows a folder or file of the machine to the container.
    pub fn mount(mut self, source: &Path, destination: &str, right: &str) -> Self {
        self.config["mounts"].as_array_mut().unwrap().push(json!({
            "destination": destination,
            "type": "bind",
            "source": source,
            "options": ["rbind", "nosuid", "nodev", right],
        }));
        self
    }

    /// The same for a new folder that the container's user may write to; gives it, too.
    pub fn mount_new(self, destination: &str) -> (Self, PathBuf) {
        let folder = self.folder.path().join(destination.trim_start_matches('/').replace('/', "-"));
        fs::create_dir(&folder).unwrap();
        chown(&folder, Some(self.user), Some(self.user)).unwrap();
        (self.mount(&folder, destination, "rw"), folder)
    }

    /// The same for a copy of a file that nobody else may read.
    pub fn mount_secret(self, source: &Path, destination: &str) -> Self {
        let copy = self.folder.path().join("secret");
        fs::copy(source, &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o400)).unwrap();
        chown(&copy, Some(self.user), Some(self.user)).unwrap();
        self.mount(&copy, destination, "ro")
    }

    /// Limits a resource, to both the limit in force and the one that could be.
    pub fn limit(mut self, resource: &str, limit: u64) -> Self {
        self.config["process"]["rlimits"] = json!([{ "type": resource, "hard": limit, "soft": limit }]);
        self
    }

    /// What starts it; the command is there as long as the container runs, and has its exit status.
    pub fn command(&self) -> Command {
        let folder = self.folder.path();
        self.make_mount_points();
        fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        let mut command = self.runtime();
        command
            .arg("run")
            .arg("--bundle")
            .arg(folder)
            .arg("--pid-file")
            .arg(self.pid_file())
            .arg(self.name());
        command.stdin(Stdio::null());
        command
    }

    /// Many containers share one root, and a runtime fails where another makes the same folder in it at the same time.
    fn make_mount_points(&self) {
        let root = PathBuf::from(self.config["root"]["path"].as_str().unwrap());
        for mount in self.config["mounts"].as_array().unwrap() {
            let destination = mount["destination"].as_str().unwrap();
            let point = root.join(destination.trim_start_matches('/'));
            let is_within_another =
                ["/dev/", "/proc/", "/sys/"].iter().any(|parent| destination.starts_with(parent));
            let is_file = mount["source"].as_str().is_some_and(|source| Path::new(source).is_file());
            if is_within_another || point.exists() {
                continue;
            }
            fs::create_dir_all(if is_file { point.parent().unwrap() } else { &point }).unwrap();
            if is_file {
                File::create(&point).unwrap();
            }
        }
    }

    pub fn start(self) -> Running {
        let mut running = self.start_or_end();
        assert!(!running.server.has_exited(), "it has ended");
        running
    }

    /// The same where the server may end before it listens; whether it does is the caller's to ask.
    pub fn start_or_end(self) -> Running {
        let server = Narwire::spawn(&mut self.command());
        let mut running = Running { server, container: self };
        eventually("the server in the container listens or ends", || {
            running.server.output().contains("listening on ") || running.server.has_exited()
        });
        running
    }

    fn runtime(&self) -> Command {
        let mut command = Command::new(if self.runtime == "crun" { "unshare" } else { self.runtime });
        if self.runtime == "crun" {
            // It refuses machines that have both versions of control groups, also where it shall make none. So it is shown none.
            let script = "mount -t tmpfs none /sys/fs/cgroup && exec \"$@\"";
            command.args(["--mount", "sh", "-c", script, "sh", "crun", "--cgroup-manager=disabled"]);
        }
        command.arg("--root").arg(self.folder.path().join("state"));
        command
    }

    fn name(&self) -> &str {
        self.folder.path().file_name().unwrap().to_str().unwrap()
    }

    fn pid_file(&self) -> PathBuf {
        self.folder.path().join("pid")
    }
}

impl Running {
    /// The first process of the container, as the machine counts.
    pub fn pid(&self) -> Pid {
        let mut pid = None;
        eventually("the runtime has written the number of the process", || {
            let text = fs::read_to_string(self.container.pid_file()).unwrap_or_default();
            pid = text.parse().ok().and_then(Pid::from_raw);
            pid.is_some()
        });
        pid.unwrap()
    }

    /// As `docker stop` and `docker kill --signal` do it.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// A line of `/proc/<pid>/status`.
    pub fn status(&self, name: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid().as_raw_pid())).unwrap();
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        value.unwrap_or_else(|| panic!("no {name} in {status}")).to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut delete = self.container.runtime();
        // It may be gone; then there is nothing to do, and the runtime says so.
        let _gone = delete.args(["delete", "--force", self.container.name()]).output();
    }
}

fn leaves(folder: &Path) -> Vec<String> {
    let found = run(Command::new("find").arg(folder).args([
        "-mindepth",
        "1",
        "(",
        "!",
        "-type",
        "d",
        "-o",
        "-empty",
        ")",
        "-printf",
        "%P\\n",
    ]));
    let mut found: Vec<String> = found.lines().map(str::to_owned).collect();
    found.sort();
    found
}
