//! Disks that fail or take for ever, and a process that may open no more files. What goes through the ring meets a real disk here: a
//! file system on a loop device.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Advice, fadvise};
use tempfile::TempDir;

use super::files::half_read;
use crate::support::client::request_head;
use crate::support::nar_cache::Nar;
use crate::support::upload::{Package, Packing, UploadDir};
use crate::support::{Narwire, Nix, Random, Store, assert_same_bytes, eventually, run};

/// A file system of its own in a file; it goes away with the value.
struct LoopDisk {
    /// Where the file is, and where the file system is mounted.
    folder: TempDir,
}

impl LoopDisk {
    /// None, with a word, where none can be had.
    fn new() -> Option<Self> {
        let disk = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(disk.path()).unwrap();
        fs::File::create(disk.image()).unwrap().set_len(256 << 20).unwrap();
        let made =
            Command::new("mkfs.ext4").args(["-q", "-E", "lazy_itable_init=1"]).arg(disk.image()).output();
        let mounted = Command::new("mount").args(["-o", "loop"]).arg(disk.image()).arg(disk.path()).output();
        match (made, mounted) {
            (Ok(made), Ok(mounted)) if made.status.success() && mounted.status.success() => Some(disk),
            (made, mounted) => {
                eprintln!("SKIPPED: no loop device: {made:?} {mounted:?}");
                None
            }
        }
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// The block device, as the kernel numbers it.
    fn device(&self) -> String {
        let device = fs::metadata(self.path()).unwrap().dev();
        format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
    }

    /// Writes a cache directory of one package, and forgets what it has written.
    fn write(&self, package: &Package) {
        fs::create_dir_all(self.path().join("nar")).unwrap();
        fs::write(self.path().join(&package.narinfo_target()[1..]), package.narinfo()).unwrap();
        fs::write(self.path().join(&package.nar_target()[1..]), &package.file).unwrap();
        run(Command::new("sync").arg("-f").arg(self.path()));
        forget(&self.path().join(&package.nar_target()[1..]));
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // Lazily, for a server may still be ending; the loop device goes with the mount.
        let _absent = Command::new("umount").arg("-l").arg(self.path()).output();
    }
}

/// Takes a file out of memory.
fn forget(file: &Path) {
    fadvise(fs::File::open(file).unwrap(), 0, None, Advice::DontNeed).unwrap();
}

/// A control group that may read so many bytes a second of a device; it goes away with the value.
struct Throttle {
    group: PathBuf,
    hierarchy: TempDir,
}

impl Throttle {
    /// Puts a process into it. None, with a word, where there is no such thing.
    fn new(process: u32, device: &str, bytes_per_second: u64) -> Option<Self> {
        let hierarchy = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "cgroup", "-o", "blkio", "none"])
            .arg(hierarchy.path())
            .output();
        if !mounted.is_ok_and(|mounted| mounted.status.success()) {
            eprintln!("SKIPPED: there is no cgroup hierarchy of version 1 with blkio");
            return None;
        }
        let group = hierarchy.path().join(format!("narwire-test-{process}"));
        let throttle = Self { group, hierarchy };
        fs::create_dir(&throttle.group).ok()?;
        let limit = throttle.group.join("blkio.throttle.read_bps_device");
        if fs::write(limit, format!("{device} {bytes_per_second}")).is_err() {
            eprintln!("SKIPPED: this kernel does not throttle disks");
            return None;
        }
        fs::write(throttle.group.join("cgroup.procs"), process.to_string()).ok()?;
        Some(throttle)
    }

    /// The disk is as fast as ever.
    fn lift(&self, device: &str) {
        fs::write(self.group.join("blkio.throttle.read_bps_device"), format!("{device} 0")).unwrap();
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        // Whoever is left in it goes to the root, for a group with processes cannot be removed.
        let processes = fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
        for process in processes.lines() {
            let _gone = fs::write(self.hierarchy.path().join("cgroup.procs"), process);
        }
        let _absent = fs::remove_dir(&self.group);
        let _absent = Command::new("umount").arg(self.hierarchy.path()).output();
    }
}

fn packages() -> [Package; 2] {
    ['1', '2'].map(|digit| Package::new(digit, &Random(digit.into()).bytes(8_000_000), Packing::None))
}

#[test]
fn a_disk_that_takes_for_ever_keeps_only_those_waiting_who_ask_for_what_it_has() {
    let Some(disk) = LoopDisk::new() else { return };
    let [first, second] = packages();
    disk.write(&first);
    disk.write(&second);
    let server = Narwire::start([disk.path().to_str().unwrap(), "--workers", "1"]);
    let narinfo = first.narinfo_target();
    server.get(&narinfo).expect(200);
    let before = server.descriptors();
    // A NAR takes more than a minute, and the others wait for the same disk.
    let process = u32::try_from(server.pid().as_raw_nonzero().get()).unwrap();
    let Some(throttle) = Throttle::new(process, &disk.device(), 100_000) else { return };
    let mut patient = half_read(&server, &first.nar_target(), &[("Connection", "close")]);
    let impatient: Vec<_> = (0..4)
        .map(|_| {
            let mut connection = server.connect();
            connection.send(request_head("GET", &second.nar_target(), &[]));
            connection
        })
        .collect();
    let mut others = server.connect();
    for _ in 0..200 {
        assert_eq!(others.get(&narinfo).expect(200).text(), first.narinfo());
    }
    // They give up while the disk has their reads.
    for connection in impatient {
        connection.reset();
    }
    for _ in 0..200 {
        others.get(&narinfo).expect(200);
    }
    let come = patient.received_so_far();
    assert!(come < first.file.len(), "{come} bytes came of a disk that takes for ever");
    throttle.lift(&disk.device());
    patient.expect_rest(&first.file);
    drop((patient, others));
    eventually("nothing is left", || server.descriptors() <= before);
    assert_same_bytes(&server.get(&second.nar_target()).expect(200).body, &second.file, "the second");
}

#[test]
fn a_disk_that_fails_in_the_middle_of_a_file_breaks_its_download_and_nothing_else() {
    let Some(disk) = LoopDisk::new() else { return };
    let [failing, sound] = packages();
    disk.write(&failing);
    let elsewhere = UploadDir::new();
    sound.put(&mut elsewhere.serve().connect());
    let server = Narwire::start([elsewhere.path(), &disk.path()]);
    for package in [&sound, &failing] {
        server.get(&package.narinfo_target()).expect(200);
    }
    // Only metadata is left of the disk: what is not in memory cannot be read.
    fs::File::options().write(true).open(disk.image()).unwrap().set_len(64 * 1024).unwrap();
    forget(&disk.path().join(&failing.nar_target()[1..]));
    for _ in 0..3 {
        let mut connection = server.connect();
        connection.send(request_head("GET", &failing.nar_target(), &[("Connection", "close")]));
        let Some(head) = connection.head() else { continue };
        if head.status == 200 {
            let received = connection.rest();
            assert!(
                failing.file.starts_with(&received) && received.len() < failing.file.len(),
                "{}",
                received.len()
            );
            assert!(connection.was_reset());
        } else {
            assert!([500, 503].contains(&head.status), "{head:?}");
        }
    }
    assert_same_bytes(&server.get(&sound.nar_target()).expect(200).body, &sound.file, "another file");
    assert_eq!(server.get(&sound.narinfo_target()).expect(200).text(), sound.narinfo());
    server.get("/nix-cache-info").expect(200);
}

#[test]
fn a_process_that_may_open_nothing_more_says_so_and_goes_on_when_it_may() {
    let store = Store::new(Nix::installed());
    let nars: Vec<_> =
        (1..4).map(|index| Nar::of(&store, &store.add_folder("served", index, 300_000))).collect();
    let directory = UploadDir::new();
    let flags =
        [directory.flags(), store.flags(), vec!["--with-store".into(), "--workers".into(), "1".into()]];
    let server = Narwire::start(flags.concat());
    let there = Package::new('1', &vec![7; 100_000], Packing::Zstd);
    there.put(&mut server.connect());
    let mut connections: Vec<_> = (0..8).map(|_| server.connect()).collect();
    for connection in &mut connections {
        for nar in &nars {
            connection.get(&format!("/{}.narinfo", nar.hash_part())).expect(200);
        }
    }
    let limit = |files: usize| {
        let pid = server.pid().as_raw_nonzero().to_string();
        run(Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={files}:")]));
    };
    let before = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(4096);
    // The lowest number that is free is above it.
    limit(3);
    for connection in &mut connections {
        // What is known is answered.
        connection.get(&format!("/{}.narinfo", nars[0].hash_part())).expect(200);
        for target in [&nars[0].targets()[0], &format!("/{}.ls", nars[1].hash_part()), &there.nar_target()] {
            let reply = connection.get(target);
            assert!([500, 503].contains(&reply.status), "{target}: {reply:?}");
        }
    }
    let mut uploading = connections.pop().unwrap();
    let other = Package::new('2', &vec![8; 100_000], Packing::Zstd);
    let reply = uploading.put(&other.nar_target(), &other.file);
    assert!([500, 503, 507].contains(&reply.status), "{reply:?}");
    limit(usize::try_from(before).unwrap());
    let refused = server.count("narwire_limits_hit_total{limit=\"descriptors\"}");
    assert!(refused >= Some(16), "a NAR and a file for each of eight: {refused:?}");
    for connection in &mut connections {
        for nar in &nars {
            assert_same_bytes(&connection.get(&nar.targets()[0]).expect(200).body, &nar.bytes, &nar.path);
        }
        assert_same_bytes(&connection.get(&there.nar_target()).expect(200).body, &there.file, "a file");
    }
    other.put(&mut server.connect());
    directory.assert_sound();
    assert!(directory.staged().is_empty(), "{:?}", directory.staged());
}
