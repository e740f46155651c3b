//! narinfos that are uploaded: everything they say is looked up before anybody is told of the path.

use super::nar::parse_url;
use super::{Refusal, UploadFolder, quoted, reason};
use crate::codec::content_address;
use crate::codec::nar::verify::NarFacts;
use crate::codec::narinfo::{NarInfo, PathInfo};
use crate::codec::signature::Signature;
use crate::codec::store_path::{HashPart, StorePath};
use crate::limits::{CACHED_NARINFO_LEN_MAX, SIGNATURES_MAX};
use crate::store::StoreError;
use crate::store::directory::narinfo_name;

/// Whether a path that is not in the directory is served all the same.
pub(super) type IsKnown<'a> = &'a mut dyn FnMut(&StorePath) -> Result<bool, StoreError>;

impl UploadFolder {
    /// Takes the text of a narinfo, and says whether there was none of that path.
    pub(super) fn take_narinfo(
        &self,
        hash_part: HashPart,
        text: &[u8],
        is_known: IsKnown<'_>,
    ) -> Result<bool, Refusal> {
        let text = str::from_utf8(text)
            .map_err(|_| Refusal::Malformed("a narinfo is text, and this is none".to_owned()))?;
        let narinfo = NarInfo::parse(text, &self.settings.store_dir)
            .map_err(|error| Refusal::Malformed(reason(format_args!("not a narinfo: {error}"))))?;
        if narinfo.info.path.hash_part() != hash_part {
            let text = format!("the narinfo is of {}, and its name says {hash_part}", narinfo.info.path);
            return Err(Refusal::Mismatch(text));
        }
        self.keep_narinfo(narinfo, is_known)
    }

    /// Gives a narinfo its name if all of it is true, and says whether there was none of that path.
    pub(super) fn keep_narinfo(&self, mut narinfo: NarInfo, is_known: IsKnown<'_>) -> Result<bool, Refusal> {
        check_count(&narinfo.info.signatures)?;
        content_address::check(&self.settings.store_dir, &narinfo.info).map_err(|error| {
            Refusal::Mismatch(reason(format_args!("the narinfo of {}: {error}", narinfo.info.path)))
        })?;
        self.check_signed(&narinfo.info)?;
        let facts = self.check_nar(&narinfo)?;
        self.check_references(&narinfo.info, is_known)?;
        narinfo.compression = facts.compression;
        narinfo.file_hash = Some(facts.file_hash);
        narinfo.file_size = Some(facts.file_size);
        self.point("narinfo: checked")?;
        let name = narinfo_name(narinfo.info.path.hash_part());
        let _lock = self.lock(&name);
        let found = self.root.read_text(&name, CACHED_NARINFO_LEN_MAX)?;
        // One that cannot be read is of no use to anybody.
        let older = found.as_deref().and_then(|text| NarInfo::parse(text, &self.settings.store_dir).ok());
        if let Some(older) = older {
            unite(&mut narinfo.info, older.info)?;
        }
        let mut text = String::new();
        narinfo.write(&self.settings.store_dir, &mut text);
        if text.len() > CACHED_NARINFO_LEN_MAX {
            let text = format!(
                "with the signatures that are there the narinfo has more than {CACHED_NARINFO_LEN_MAX} bytes"
            );
            return Err(Refusal::TooLarge(text));
        }
        self.keep_text(&text, found.as_deref(), &self.root, &name)?;
        Ok(found.is_none())
    }

    /// What the cache has of a path, if that can be read.
    pub(super) fn narinfo(&self, hash_part: HashPart) -> Result<Option<NarInfo>, StoreError> {
        self.root.narinfo(hash_part, &self.settings.store_dir)
    }

    /// Whether a key that is required has signed it.
    fn check_signed(&self, info: &PathInfo) -> Result<(), Refusal> {
        let keys = self.required_keys();
        if keys.is_empty() {
            return Ok(());
        }
        let fingerprint = info.fingerprint(&self.settings.store_dir);
        let is_signed = info
            .signatures
            .iter()
            .any(|signature| keys.iter().any(|key| key.verify(&fingerprint, signature)));
        if is_signed {
            return Ok(());
        }
        let names: Vec<_> = keys.iter().map(|key| key.key_name().as_str()).collect();
        Err(Refusal::Unsigned(reason(format_args!(
            "{} has no valid signature by {}: sign it first (nix store sign)",
            info.path,
            names.join(" or ")
        ))))
    }

    /// Whether the NAR is there, and is what the narinfo says of it.
    fn check_nar(&self, narinfo: &NarInfo) -> Result<NarFacts, Refusal> {
        let NarInfo { info, url, compression, file_hash, file_size } = narinfo;
        let shown = quoted(url);
        let Some(name) = parse_url(url) else {
            let text =
                format!("the URL of the narinfo is {shown}, and has to be a file in nar/ of this cache");
            return Err(Refusal::Malformed(text));
        };
        let Some(facts) = self.nar_facts(name, *compression)? else {
            let text = format!("the narinfo is of {shown}, which is not in the cache: upload it first");
            return Err(Refusal::Conflict(text));
        };
        // A field that is not there says nothing, but for the compression: then it is bzip2.
        let says = |field: &str, said: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
            Err(Refusal::Mismatch(format!(
                "the {field} of the narinfo is {said}, and of {shown} it is {found}"
            )))
        };
        if *compression != facts.compression {
            return says("Compression", &compression.as_str(), &facts.compression.as_str());
        }
        if let Some(said) = file_hash.filter(|said| *said != facts.file_hash) {
            return says("FileHash", &said, &facts.file_hash);
        }
        if let Some(said) = file_size.filter(|said| *said != facts.file_size) {
            return says("FileSize", &said, &facts.file_size);
        }
        if info.nar_hash != facts.nar_hash {
            return says("NarHash", &info.nar_hash, &facts.nar_hash);
        }
        if info.nar_size != facts.nar_size {
            return says("NarSize", &info.nar_size, &facts.nar_size);
        }
        Ok(facts)
    }

    /// Whether all that the path needs can be had here.
    pub(super) fn check_references(&self, info: &PathInfo, is_known: IsKnown<'_>) -> Result<(), Refusal> {
        for reference in info.references.iter().filter(|reference| **reference != info.path) {
            let found = self.narinfo(reference.hash_part())?;
            let is_here = found.is_some_and(|narinfo| narinfo.info.path == *reference);
            if !is_here && !is_known(reference)? {
                return Err(Refusal::Conflict(format!(
                    "{} refers to {reference}, which is not in the cache: upload that first",
                    info.path
                )));
            }
        }
        Ok(())
    }
}

/// Whether what was known of a path before is the same: who trusts the one must not get the other.
pub(super) fn check_same(info: &PathInfo, older: &PathInfo) -> Result<(), Refusal> {
    let differs = [
        ("store path", info.path != older.path),
        ("NarHash", info.nar_hash != older.nar_hash),
        ("NarSize", info.nar_size != older.nar_size),
        ("References", info.references != older.references),
    ];
    match differs.into_iter().find(|(_, differs)| *differs) {
        Some((field, _)) => Err(Refusal::Conflict(format!(
            "{} is in the cache with another {field}, and is not replaced",
            info.path
        ))),
        None => Ok(()),
    }
}

/// Adds what was known of the same path before.
fn unite(info: &mut PathInfo, older: PathInfo) -> Result<(), Refusal> {
    check_same(info, &older)?;
    let PathInfo { signatures, deriver, ca, .. } = older;
    unite_signatures(&mut info.signatures, signatures)?;
    info.deriver = deriver.or(info.deriver.take());
    // That of the newer one was looked at.
    info.ca = info.ca.take().or(ca);
    Ok(())
}

/// Puts the signatures that were there before in front.
pub(super) fn unite_signatures(
    signatures: &mut Vec<Signature>,
    older: Vec<Signature>,
) -> Result<(), Refusal> {
    for signature in std::mem::replace(signatures, older) {
        if !signatures.contains(&signature) {
            signatures.push(signature);
        }
    }
    check_count(signatures)
}

/// Whether there are few enough to be looked at.
pub(super) fn check_count(signatures: &[Signature]) -> Result<(), Refusal> {
    if signatures.len() <= SIGNATURES_MAX {
        return Ok(());
    }
    Err(Refusal::TooLarge(format!("there would be more than {SIGNATURES_MAX} signatures: leave some out")))
}
