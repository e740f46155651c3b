//! Landlock: which files can be opened, and that no TCP socket is bound or connected. See landlock(7).

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope, make_bitflags,
};
use tracing::warn;

use super::Lack;
use super::policy::{Grant, Right};

/// What this kernel's Landlock knows, found out by asking for it.
#[derive(Clone, Copy)]
struct Known {
    files: BitFlags<AccessFs>,
    network: BitFlags<AccessNet>,
    scopes: BitFlags<Scope>,
}

/// Confines the calling thread and all that it starts. Says what stays open.
pub(super) fn confine(grants: &[Grant]) -> Vec<Lack> {
    let (known, mut lacks) = look();
    if known.files.is_empty() {
        return lacks;
    }
    let writes = grants.iter().any(|grant| grant.right == Right::Write);
    if writes && !known.files.contains(AccessFs::Refer) {
        // Without that right no file goes from one directory to another at all, and drafts do.
        return vec![Lack::Old {
            what: "files are, where a NAR cache or uploads are written,",
            since: "5.19",
        }];
    }
    match restrict(known, grants) {
        Ok(RulesetStatus::FullyEnforced) => {}
        Ok(status) => lacks.push(Lack::Files(format!("{status:?}"))),
        Err(error) => lacks.push(Lack::Files(error.to_string())),
    }
    lacks
}

fn look() -> (Known, Vec<Lack>) {
    let mut known =
        Known { files: AccessFs::from_all(ABI::V1), network: BitFlags::EMPTY, scopes: BitFlags::EMPTY };
    let ruleset = || Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let has_files =
        |access: BitFlags<AccessFs>| ruleset().handle_access(access).and_then(Ruleset::create).is_ok();
    if !has_files(known.files) {
        known.files = BitFlags::EMPTY;
        return (known, vec![Lack::Landlock]);
    }
    let mut lacks = Vec::new();
    for (access, what, since) in [
        (AccessFs::Refer, "moving files between directories is", "5.19"),
        (AccessFs::Truncate, "truncating files is", "6.2"),
        (AccessFs::IoctlDev, "what is asked of devices is", "6.10"),
    ] {
        if has_files(access.into()) {
            known.files |= access;
        } else {
            lacks.push(Lack::Old { what, since });
        }
    }
    let (network, scopes) = (AccessNet::from_all(ABI::V4), Scope::from_all(ABI::V6));
    if ruleset().handle_access(network).and_then(Ruleset::create).is_ok() {
        known.network = network;
    } else {
        lacks.push(Lack::Old { what: "TCP is", since: "6.7" });
    }
    if ruleset().scope(scopes).and_then(Ruleset::create).is_ok() {
        known.scopes = scopes;
    } else {
        lacks.push(Lack::Old { what: "signals and abstract unix sockets are", since: "6.12" });
    }
    (known, lacks)
}

fn restrict(known: Known, grants: &[Grant]) -> Result<RulesetStatus, RulesetError> {
    let mut ruleset =
        Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(known.files)?;
    if !known.network.is_empty() {
        ruleset = ruleset.handle_access(known.network)?;
    }
    if !known.scopes.is_empty() {
        ruleset = ruleset.scope(known.scopes)?;
    }
    let mut ruleset = ruleset.create()?;
    for grant in grants {
        let Some(directory) = place(grant) else {
            let path = grant.path.display();
            warn!("{path} is not there, and with the sandbox it cannot be used before the next start");
            continue;
        };
        ruleset = ruleset.add_rule(PathBeneath::new(directory, access(grant.right) & known.files))?;
    }
    Ok(ruleset.restrict_self()?.ruleset)
}

fn access(right: Right) -> BitFlags<AccessFs> {
    match right {
        Right::ReadFiles => AccessFs::ReadFile.into(),
        Right::Read => make_bitflags!(AccessFs::{ReadFile | ReadDir}),
        Right::Write => make_bitflags!(AccessFs::{
            ReadFile | ReadDir | WriteFile | Truncate | MakeReg | MakeDir | RemoveFile | RemoveDir | Refer
        }),
        Right::Remove => make_bitflags!(AccessFs::{ReadDir | RemoveFile | RemoveDir}),
        Right::RemoveDirectories => AccessFs::RemoveDir.into(),
    }
}

/// The directory that a grant stands for.
///
/// What is only read may be made later (logs are, with the first build). Until then the nearest directory above stands for it, the
/// root excepted. What is written has been made before.
fn place(grant: &Grant) -> Option<PathFd> {
    let generations = if grant.right == Right::Read { usize::MAX } else { 1 };
    let mut candidates = grant.path.ancestors().take(generations);
    candidates.find_map(|path| {
        let is_usable = path == grant.path || path.parent().is_some();
        if is_usable { PathFd::new(path).ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_placed(path: &str, right: Right) -> bool {
        place(&Grant { path: path.into(), right }).is_some()
    }

    #[test]
    fn what_is_not_there_is_stood_for_by_what_is_above_but_never_by_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("made/later");
        let missing = missing.to_str().unwrap();
        assert!(is_placed(missing, Right::Read));
        assert!(!is_placed(missing, Right::Write), "nothing above may be written");
        assert!(!is_placed(missing, Right::ReadFiles));
        assert!(!is_placed("/nonexistent/later", Right::Read));
        assert!(is_placed("/", Right::Read), "who names the root has it");
    }
}
