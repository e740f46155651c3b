//! What else is in a cache: texts that stand for themselves.

use std::fmt::Display;

use super::nar::parse_url;
use super::narinfo::{check_count, unite_signatures};
use super::{
    BUILD_TRACE_NAME, DEBUG_INFO_NAME, LOG_NAME, REALISATIONS_NAME, Refusal, UploadFolder, quoted, reason,
};
use crate::codec::build_id::BuildId;
use crate::codec::cache_info::CacheInfo;
use crate::codec::nar::listing;
use crate::codec::realisation::{DrvOutput, OutputName, Realisation};
use crate::codec::store_path::{HashPart, StorePath};
use crate::limits::UPLOADED_JSON_LEN_MAX;
use crate::store::StoreError;
use crate::store::directory::Directory;
use crate::store::nar_cache::CACHE_INFO_NAME;

impl UploadFolder {
    /// Takes what a cache says of itself, unless it has said something already.
    pub(super) fn take_cache_info(&self, text: &[u8]) -> Result<bool, Refusal> {
        let cache_info = utf8("nix-cache-info", text)?;
        let cache_info = CacheInfo::parse(cache_info, &self.settings.store_dir)
            .map_err(|error| malformed("nix-cache-info", error))?;
        if cache_info.store_dir != self.settings.store_dir {
            let text = format!(
                "this is a cache of {}, and not of {}",
                self.settings.store_dir,
                quoted(cache_info.store_dir.as_str())
            );
            return Err(Refusal::Conflict(text));
        }
        let _lock = self.lock(CACHE_INFO_NAME);
        if self.root.file(CACHE_INFO_NAME)?.is_some() {
            self.root.sync()?;
            return Ok(false);
        }
        self.staging.drafts.write(text, &self.root, CACHE_INFO_NAME)?;
        Ok(true)
    }

    /// Takes the listing of a NAR.
    pub(super) fn take_listing(&self, hash_part: HashPart, text: &[u8]) -> Result<bool, Refusal> {
        listing::check(text).map_err(|error| malformed("a listing", error))?;
        self.replace(&self.root, &format!("{hash_part}.ls"), text)
    }

    /// Takes a build log, which may be anything.
    pub(super) fn take_log(&self, derivation: &StorePath, text: &[u8]) -> Result<bool, Refusal> {
        let directory = self.subdirectory(LOG_NAME)?;
        self.replace(&directory, derivation.base_name(), text)
    }

    /// Takes what the output of a derivation has become, as Nix wrote it up to 2.34.
    pub(super) fn take_realisation(&self, id: &DrvOutput, text: &[u8]) -> Result<bool, Refusal> {
        let parse = |text: &str| Realisation::parse_keyed_json(text);
        let (found, realisation) =
            parse(utf8("a realisation", text)?).map_err(|error| malformed("a realisation", error))?;
        if found != *id {
            return Err(Refusal::Mismatch(format!("the realisation is of {found}, and its name says {id}")));
        }
        let older = |text: &str| Some(parse(text).ok()?.1);
        let directory = self.subdirectory(REALISATIONS_NAME)?;
        self.keep_realisation(&directory, &format!("{id}.doi"), realisation, older, |realisation| {
            realisation.to_keyed_json(id)
        })
    }

    /// The same as later versions write it.
    pub(super) fn take_build_trace(
        &self,
        derivation: &StorePath,
        output: &OutputName,
        text: &[u8],
    ) -> Result<bool, Refusal> {
        let realisation = Realisation::parse_build_trace_json(utf8("a build trace", text)?)
            .map_err(|error| malformed("a build trace", error))?;
        let older = |text: &str| Realisation::parse_build_trace_json(text).ok();
        // There are as many of these as derivations, and most of them are new: their names are brought to the disk each time.
        let directory = self.subdirectory(BUILD_TRACE_NAME)?.beneath_or_new(derivation.base_name())?;
        let name = format!("{output}.doi");
        self.keep_realisation(&directory, &name, realisation, older, Realisation::to_build_trace_json)
    }

    /// Takes a link to debug symbols. The archive comes later, or never: whoever follows the link sees that.
    pub(super) fn take_debug_info(
        &self,
        build_id: BuildId,
        has_suffix: bool,
        text: &[u8],
    ) -> Result<bool, Refusal> {
        let link: DebugLink =
            serde_json::from_slice(text).map_err(|error| malformed("a debug link", error))?;
        if link.archive.strip_prefix("../").and_then(parse_url).is_none() {
            let archive = quoted(&link.archive);
            return Err(malformed(
                "a debug link",
                format_args!("its archive is {archive}, and no file in ../nar/"),
            ));
        }
        if link.member.split('/').any(|component| matches!(component, "" | "." | "..")) {
            let member = quoted(&link.member);
            return Err(malformed(
                "a debug link",
                format_args!("its member is {member}, and no file in an archive"),
            ));
        }
        let suffix = if has_suffix { ".debug" } else { "" };
        let name = format!("{}{suffix}", build_id.as_str());
        let directory = self.subdirectory(DEBUG_INFO_NAME)?;
        self.replace(&directory, &name, text)
    }

    /// Keeps a realisation unless there is another one, together with the signatures of what is there.
    fn keep_realisation(
        &self,
        directory: &Directory,
        name: &str,
        mut realisation: Realisation,
        parse: impl FnOnce(&str) -> Option<Realisation>,
        write: impl FnOnce(&Realisation) -> String,
    ) -> Result<bool, Refusal> {
        check_count(&realisation.signatures)?;
        let _lock = self.lock(name);
        let found = directory.read_text(name, UPLOADED_JSON_LEN_MAX)?;
        if let Some(older) = found.as_deref().and_then(parse) {
            if older.out_path != realisation.out_path {
                return Err(Refusal::Conflict(format!(
                    "the output is in the cache as {}, and is not replaced with {}",
                    older.out_path, realisation.out_path
                )));
            }
            // They are signed as well.
            if older.dependent_realisations != realisation.dependent_realisations {
                return Err(Refusal::Conflict(format!(
                    "the output is in the cache as {} with other dependent realisations, and is not replaced",
                    older.out_path
                )));
            }
            unite_signatures(&mut realisation.signatures, older.signatures)?;
        }
        let text = write(&realisation);
        if text.len() > UPLOADED_JSON_LEN_MAX {
            let text =
                format!("with the signatures that are there it has more than {UPLOADED_JSON_LEN_MAX} bytes");
            return Err(Refusal::TooLarge(text));
        }
        self.keep_text(&text, found.as_deref(), directory, name)?;
        Ok(found.is_none())
    }

    /// Writes a text unless it is what was found there.
    pub(super) fn keep_text(
        &self,
        text: &str,
        found: Option<&str>,
        directory: &Directory,
        name: &str,
    ) -> Result<(), StoreError> {
        if found == Some(text) {
            // The process that wrote it may have ended before its name was on the disk.
            return directory.sync();
        }
        self.staging.drafts.write(text.as_bytes(), directory, name)
    }

    /// Puts a text in the place of what has its name.
    fn replace(&self, directory: &Directory, name: &str, text: &[u8]) -> Result<bool, Refusal> {
        let is_new = directory.file(name)?.is_none();
        self.staging.drafts.write(text, directory, name)?;
        Ok(is_new)
    }
}

/// Where debug symbols are. (Source: `src/libstore/binary-cache-store.cc` of Nix.)
#[derive(serde::Deserialize)]
struct DebugLink {
    archive: String,
    member: String,
}

fn utf8<'a>(what: &str, text: &'a [u8]) -> Result<&'a str, Refusal> {
    str::from_utf8(text).map_err(|error| malformed(what, error))
}

fn malformed(what: &str, cause: impl Display) -> Refusal {
    Refusal::Malformed(reason(format_args!("not {what}: {cause}")))
}
