//! Attributes of the process: what its programs may become, and who may look into its memory.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::CapabilitySet;

use super::Lack;
use crate::server::config::{Config, SourceConfig};

/// How many threads the process has that carry out its program; 1 where nobody can tell.
pub(super) fn threads() -> usize {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return 1 };
    // Those that the kernel keeps for a ring, also for a while after it was closed, never leave the kernel.
    let is_of_kernel =
        |task: &fs::DirEntry| fs::read(task.path().join("comm")).is_ok_and(|name| name.starts_with(b"iou-"));
    tasks.filter_map(Result::ok).filter(|task| !is_of_kernel(task)).count()
}

/// Whether the garbage collector has to see what this process has open, and can do so only as long as it is dumpable.
///
/// The collector reads `/proc/<pid>/fd`. Of a process that is not dumpable only who has `CAP_SYS_PTRACE` can read that, which root has
/// outside of containers. Where this process runs as the owner of the store and has not got it, the collector is taken to be alike: a
/// Nix of a single user, or one in a container. It would not see which paths are being sent, and delete them.
pub(super) fn is_readable_needed(config: &Config) -> bool {
    let user = rustix::process::geteuid().as_raw();
    let is_owner = config.sources.iter().any(|source| match source {
        SourceConfig::Store(store) => fs::metadata(&store.real_store).is_ok_and(|store| store.uid() == user),
        SourceConfig::Directory(_) => false,
    });
    let may_trace = rustix::thread::capabilities(None)
        .is_ok_and(|capabilities| capabilities.effective.contains(CapabilitySet::SYS_PTRACE));
    is_owner && !may_trace
}

/// No program that this process could start has more rights than it, and no dump of its memory is written; unless
/// `is_readable_needed` nobody without privileges reads that memory or what it has open.
pub(super) fn confine(is_readable_needed: bool) -> Vec<Lack> {
    let no_core = Rlimit { current: Some(0), maximum: Some(0) };
    let mut done = vec![
        ("programs that are started could gain privileges", rustix::thread::set_no_new_privs(true)),
        ("memory dumps are written", rustix::process::setrlimit(Resource::Core, no_core)),
    ];
    if !is_readable_needed {
        let hidden = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
        done.push(("other programs of this user can read its memory", hidden));
    }
    let refused =
        done.into_iter().filter_map(|(what, done)| done.err().map(|errno| (what, errno.to_string())));
    refused.map(|(what, cause)| Lack::Process { what, cause }).collect()
}
