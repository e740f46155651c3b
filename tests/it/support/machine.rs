//! A machine of the test's own, without a virtual one: systemd as the first process of new namespaces, with a network of its own, on
//! this machine's files below a layer that is thrown away. What is installed here is installed there.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

use super::{PATIENCE, eventually, printed};

/// From the new namespaces to systemd. `$0` is an empty directory. A policy of this machine about services is not one of the test's.
/// /dev/shm is the machine's own, for systemd removes from it what belongs to a dynamic user whose service ends.
const BOOT: &str = r#"set -e
mount -t tmpfs -o mode=755 tmpfs "$0"
cd "$0"
mkdir upper work root
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root
cd root
mount -t proc proc proc
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 none sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs tmpfs dev/shm
mkdir run/outside
pivot_root . run/outside
umount -l /run/outside
rm -f /usr/sbin/policy-rc.d
exec env -i container=narwire PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=basic.target --show-status=0 --log-target=null"#;

/// A running machine. Dropping it ends all of its processes.
pub struct Machine {
    outside: Child,
    inside: String,
    group: PathBuf,
    _directory: TempDir,
}

impl Machine {
    /// Starts systemd, and waits until it has come to rest.
    pub fn boot() -> Self {
        assert!(rustix::process::geteuid().is_root(), "only root may boot systemd in namespaces");
        let directory = tempfile::tempdir().unwrap();
        let unified = Path::new("/sys/fs/cgroup/unified");
        let groups = if unified.is_dir() { unified } else { Path::new("/sys/fs/cgroup") };
        let group = groups.join(directory.path().file_name().unwrap());
        fs::create_dir(&group).unwrap();
        let script = r#"echo $$ >"$1/cgroup.procs" && shift && exec "$@""#;
        let mut outside = Command::new("sh");
        outside.args(["-c", script, "sh"]).arg(&group);
        // It ends with this test, however that ends.
        outside.args(["setpriv", "--pdeathsig", "KILL", "unshare"]);
        outside.args(["--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--net", "--cgroup"]);
        outside.args(["sh", "-c", BOOT]).arg(directory.path()).stdin(Stdio::null());
        let outside = outside.spawn().unwrap();
        let mut machine = Self { outside, inside: String::new(), group, _directory: directory };
        let children = format!("/proc/{0}/task/{0}/children", machine.outside.id());
        eventually("systemd runs in its namespaces", || {
            assert!(machine.outside.try_wait().unwrap().is_none(), "no systemd in namespaces");
            fs::read_to_string(&children).unwrap_or_default().trim().clone_into(&mut machine.inside);
            !machine.inside.is_empty() && machine.output("test -S /run/systemd/private").status.success()
        });
        machine.run("ip link set lo up; systemctl is-system-running --wait");
        machine
    }

    /// Carries out lines of shell there, which must succeed, and gives what they print.
    pub fn run(&self, script: &str) -> String {
        let output = self.output(script);
        assert!(output.status.success(), "{script}\nfailed:\n{}", printed(&output));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// The same, whatever comes of it.
    pub fn output(&self, script: &str) -> Output {
        self.command(script).stdin(Stdio::null()).output().unwrap()
    }

    /// Lines of shell that are yet to be carried out there.
    pub fn command(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        let patience = PATIENCE.as_secs().to_string();
        command.args([
            "--all",
            "--wdns=/",
            "--target",
            &self.inside,
            "timeout",
            &patience,
            "sh",
            "-c",
            script,
        ]);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Brings a file of this machine there.
    pub fn copy(&self, file: &Path, to: &str) {
        let mut writer = self.command(&format!("cat >{to}")).stdin(Stdio::piped()).spawn().unwrap();
        writer.stdin.take().unwrap().write_all(&fs::read(file).unwrap()).unwrap();
        assert!(writer.wait().unwrap().success(), "cannot copy {}", file.display());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.outside.kill();
        let _ = self.outside.wait();
        // Its processes end with the first one, and the groups are empty a moment later.
        eventually("the groups of the machine are gone", || remove_groups(&self.group));
    }
}

fn remove_groups(group: &Path) -> bool {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_groups(&entry.path());
        }
    }
    fs::remove_dir(group).is_ok()
}
