//! Store paths that somebody changed behind Nix's back: refused or cut off, never complete and wrong.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::support::nix::hash_part;
use crate::support::{Narwire, Nix, Store, fixture};

/// The server may keep the contents of files of this length in memory. Bytes.
const TINY: usize = 3000;
/// Files of this length it has to read each time. Bytes.
const NOT_TINY: usize = 6000;

/// Damages a path of some files, once before the server has read it and once after. From then on a NAR that comes to its
/// end is the one that Nix once registered; whatever else comes is refused or cut off.
#[track_caller]
fn never_complete_and_wrong(damage: impl Fn(&Path)) {
    for (read_before, file_len) in [(false, TINY), (true, TINY), (false, NOT_TINY), (true, NOT_TINY)] {
        let store = Store::new(Nix::installed());
        let path = store.add_folder("damaged", 50, file_len);
        let registered = store.dump(&path);
        let healthy = store.add_bytes("healthy", b"next door");
        let server = store.serve();
        let target = server.nar_target(hash_part(&path));
        if read_before {
            server.get(&target).expect(200);
        }
        damage(&store.real(&path));
        for _ in 0..3 {
            // The connection may also end before the head.
            let Some(reply) = server.connect().try_request("GET", &target, &[]) else { continue };
            match reply.status {
                200 => {
                    assert!(!reply.complete || reply.body == registered, "{} wrong bytes", reply.body.len());
                }
                _ => drop(reply.expect_absent()),
            }
        }
        server.nar(hash_part(&healthy)).expect(200);
    }
}

/// The file in the middle.
fn victim(real: &Path) -> PathBuf {
    let file = real.join("file-00025");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    file
}

#[test]
fn a_file_made_shorter() {
    never_complete_and_wrong(|real| {
        File::options().write(true).open(victim(real)).unwrap().set_len(2900).unwrap();
    });
}

#[test]
fn a_file_made_empty() {
    never_complete_and_wrong(|real| drop(File::create(victim(real)).unwrap()));
}

#[test]
fn a_file_made_longer() {
    never_complete_and_wrong(|real| {
        File::options().append(true).open(victim(real)).unwrap().write_all(b"x").unwrap();
    });
}

#[test]
fn a_file_removed() {
    never_complete_and_wrong(|real| fs::remove_file(victim(real)).unwrap());
}

#[test]
fn a_file_added() {
    never_complete_and_wrong(|real| fs::write(real.join("unexpected"), "x").unwrap());
}

#[test]
fn a_file_replaced_by_a_link() {
    never_complete_and_wrong(|real| {
        fs::remove_file(victim(real)).unwrap();
        symlink("/etc/passwd", real.join("file-00025")).unwrap();
    });
}

#[test]
fn a_file_replaced_by_a_folder() {
    never_complete_and_wrong(|real| {
        fs::remove_file(victim(real)).unwrap();
        fs::create_dir(real.join("file-00025")).unwrap();
    });
}

#[test]
fn a_file_replaced_by_a_pipe() {
    never_complete_and_wrong(|real| {
        fs::remove_file(victim(real)).unwrap();
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, real.join("file-00025"), mode).unwrap();
    });
}

#[test]
fn a_file_made_executable() {
    never_complete_and_wrong(|real| {
        fs::set_permissions(victim(real), fs::Permissions::from_mode(0o755)).unwrap();
    });
}

#[test]
fn the_whole_path_removed() {
    never_complete_and_wrong(|real| fs::remove_dir_all(real).unwrap());
}

#[test]
fn the_whole_path_replaced_by_a_link() {
    never_complete_and_wrong(|real| {
        fs::rename(real, real.with_extension("moved")).unwrap();
        symlink(real.with_extension("moved"), real).unwrap();
    });
}

#[test]
fn a_file_of_the_same_size_and_other_contents_is_refused_by_the_client() {
    let (fixture, store) = (fixture(), Store::new(Nix::installed()));
    let path = store.add_folder("damaged", 50, NOT_TINY);
    let server = store.serve_signed(&fixture.key);
    fs::write(victim(&store.real(&path)), [0; NOT_TINY]).unwrap();
    for nix in Nix::all() {
        let complaint = Store::new(nix).copy_from_failing(&server.url(), &fixture.key, &[&path]);
        assert!(complaint.contains("hash mismatch") || complaint.contains("does not exist"), "{complaint}");
    }
}

#[test]
fn a_tiny_file_of_the_same_size_and_other_contents_is_found_before_anything_is_sent() {
    let store = Store::new(Nix::installed());
    let path = store.add_folder("damaged", 50, TINY);
    let server = store.serve();
    let target = server.nar_target(hash_part(&path));
    let registered = store.dump(&path);
    fs::write(victim(&store.real(&path)), [0; TINY]).unwrap();
    if says_what_is_in_memory(&victim(&store.real(&path))) {
        server.get(&target).expect_absent();
    } else {
        // Nothing is kept, and the client has to find out.
        eprintln!("SKIPPED: this file system does not say what is in memory");
    }
    store.delete(&path);
    assert_eq!(store.add_folder("damaged", 50, TINY), path);
    assert_eq!(server.get(&target).expect(200).body, registered);
}

/// A tree whose beginning is on its way before its damage is known: nobody gets a whole answer.
#[test]
fn a_large_tree_of_tiny_files_with_other_contents_is_broken_off() {
    let store = Store::new(Nix::installed());
    let path = store.add_folder("damaged", FILES_OF_A_LARGE_TREE, 100);
    let server = store.serve();
    let target = server.nar_target(hash_part(&path));
    fs::write(victim(&store.real(&path)), [0; 100]).unwrap();
    if !says_what_is_in_memory(&victim(&store.real(&path))) {
        return eprintln!("SKIPPED: this file system does not say what is in memory");
    }
    for _ in 0..4 {
        let reply = server.connect().try_request("GET", &target, &[]);
        assert!(reply.is_none_or(|reply| reply.status == 404 || !reply.complete));
    }
}

/// Whether a file that was just written can be known to be in memory: tmpfs always has it there.
fn says_what_is_in_memory(file: &Path) -> bool {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    let file = File::open(file).unwrap();
    let mut byte = [0];
    let read = rustix::io::preadv2(
        &file,
        &mut [std::io::IoSliceMut::new(&mut byte)],
        0,
        rustix::io::ReadWriteFlags::NOWAIT,
    );
    read.is_ok() || rustix::fs::fstatfs(&file).unwrap().f_type.cast_unsigned() == TMPFS_MAGIC
}

/// What is kept in memory has the registered hash: it is as good as the path on disk, as long as that is valid.
#[test]
fn a_nar_that_is_in_memory_outlives_damage_and_ends_with_its_path() {
    let store = Store::new(Nix::installed());
    let path = store.add_folder("damaged", 50, TINY);
    let registered = store.dump(&path);
    let server = Narwire::start([store.flags(), vec!["--workers".into(), "1".into()]].concat());
    let target = server.nar_target(hash_part(&path));
    server.get(&target).expect(200);
    let is_kept = says_what_is_in_memory(&victim(&store.real(&path)));
    fs::write(victim(&store.real(&path)), [0; TINY]).unwrap();
    if !is_kept {
        return eprintln!("SKIPPED: this file system does not say what is in memory");
    }
    assert_eq!(server.get(&target).expect(200).body, registered);
    store.delete(&path);
    server.get(&target).expect_absent();
}

/// More files than the first part of a walk holds: the answer begins before the damage is known.
const FILES_OF_A_LARGE_TREE: usize = 2_000;

/// Damages a large path. One download may be broken off by that; from then on the path is absent, until it is made again.
#[track_caller]
fn remembered(damage: impl Fn(&Path)) {
    for read_before in [false, true] {
        let store = Store::new(Nix::installed());
        let path = store.add_folder("damaged", FILES_OF_A_LARGE_TREE, NOT_TINY);
        let registered = store.dump(&path);
        // Each worker finds out for itself.
        let server = Narwire::start([store.flags(), vec!["--workers".into(), "1".into()]].concat());
        let target = server.nar_target(hash_part(&path));
        if read_before {
            server.get(&target).expect(200);
        }
        damage(&store.real(&path));
        let mut broken_off = 0;
        for _ in 0..20 {
            match server.connect().try_request("GET", &target, &[]) {
                Some(reply) if reply.status == 404 => drop(reply.expect_absent()),
                Some(reply) if reply.complete => assert_eq!(reply.body, registered),
                Some(_) | None => broken_off += 1,
            }
        }
        assert!(broken_off <= 1, "{broken_off} of 20 downloads were broken off (read before: {read_before})");
        server.get(&target).expect_absent();
        store.delete(&path);
        assert_eq!(store.add_folder("damaged", FILES_OF_A_LARGE_TREE, NOT_TINY), path);
        assert_eq!(server.get(&target).expect(200).body, registered);
    }
}

#[test]
fn a_large_tree_without_one_of_its_files_is_broken_off_once() {
    remembered(|real| fs::remove_file(real.join("file-01500")).unwrap());
}

#[test]
fn a_large_tree_with_a_shorter_file_is_broken_off_once() {
    remembered(|real| {
        let file = real.join("file-01500");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        File::options().write(true).open(file).unwrap().set_len(50).unwrap();
    });
}
