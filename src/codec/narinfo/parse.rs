//! Text → NarInfo, line by line as Nix's own reader takes it apart.
//!
//! That reader is positional: a name runs to the next colon, its value begins two bytes behind the colon,
//! whatever the byte between is, and runs to the next line feed *from there*. `References:` without its space
//! therefore takes the next line for its value. Both sides must read the same text alike, so this reader does
//! the same.

use super::{Compression, NarInfo, PathInfo};
use crate::codec::hash::{HashError, Sha256Digest};
use crate::codec::signature::{Signature, SignatureError};
use crate::codec::store_path::{StoreDir, StorePath, StorePathError};

/// Why a text is no narinfo.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarInfoError {
    /// A line without colon: an empty last line, for example.
    #[error("line {line}: expected a colon")]
    NoColon {
        /// Counted from 1.
        line: usize,
    },
    /// The text ends within a value: every line must end with a line feed.
    #[error("line {line}: expected a line feed at the end")]
    NoLineFeed {
        /// Counted from 1.
        line: usize,
    },
    /// A field is there, but its value is not what it should be.
    #[error("line {line}: {reason}")]
    Field {
        /// Counted from 1.
        line: usize,
        /// Which field, and what is wrong with it.
        reason: FieldError,
    },
    /// A field that every narinfo must have is absent, or its value is empty or zero.
    #[error("{0} is missing")]
    Missing(&'static str),
}

/// What is wrong with the value of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// `StorePath`, which must be a full path.
    #[error("StorePath: {0}")]
    StorePath(StorePathError),
    /// `Compression`.
    #[error("Compression: the name is unknown")]
    Compression,
    /// `FileHash`.
    #[error("FileHash: {0}")]
    FileHash(HashError),
    /// `FileSize`.
    #[error("FileSize: not a number of bytes")]
    FileSize,
    /// `NarHash`.
    #[error("NarHash: {0}")]
    NarHash(HashError),
    /// `NarSize`.
    #[error("NarSize: not a number of bytes")]
    NarSize,
    /// One of the `References`, which must be base names.
    #[error("References: {0}")]
    Reference(StorePathError),
    /// A second list of `References`.
    #[error("References: given twice")]
    ReferencesTwice,
    /// `Deriver`, which must be a base name.
    #[error("Deriver: {0}")]
    Deriver(StorePathError),
    /// `Sig`.
    #[error("Sig: {0}")]
    Signature(SignatureError),
    /// A second `CA`.
    #[error("CA: given twice")]
    CaTwice,
}

impl NarInfo {
    /// Parses a narinfo of a store with that store directory.
    ///
    /// Of `References` and `CA` a second value is an error; of any other field but `Sig` the last one counts,
    /// and fields that are not known are skipped. Time and memory are linear in the text, whose length the
    /// caller bounds.
    pub fn parse(text: &str, store_dir: &StoreDir) -> Result<Self, NarInfoError> {
        let mut fields = Fields::default();
        let mut rest = text;
        let mut line = 1;
        while !rest.is_empty() {
            let (name, value, next) = split_field(rest, line)?;
            fields.set(name, value, store_dir).map_err(|reason| NarInfoError::Field { line, reason })?;
            rest = next;
            line += 1;
        }
        fields.finish()
    }
}

/// What the lines so far have said.
#[derive(Default)]
struct Fields {
    path: Option<StorePath>,
    url: String,
    compression: Option<Compression>,
    file_hash: Option<Sha256Digest>,
    file_size: u64,
    nar_hash: Option<Sha256Digest>,
    nar_size: u64,
    references: Vec<StorePath>,
    deriver: Option<StorePath>,
    signatures: Vec<Signature>,
    ca: Option<String>,
}

impl Fields {
    fn set(&mut self, name: &str, value: &str, store_dir: &StoreDir) -> Result<(), FieldError> {
        match name {
            "StorePath" => {
                self.path = Some(StorePath::parse_full(store_dir, value).map_err(FieldError::StorePath)?);
            }
            "URL" => value.clone_into(&mut self.url),
            "Compression" => self.compression = parse_compression(value)?,
            "FileHash" => self.file_hash = Some(Sha256Digest::parse(value).map_err(FieldError::FileHash)?),
            "FileSize" => self.file_size = parse_size(value).ok_or(FieldError::FileSize)?,
            "NarHash" => self.nar_hash = Some(Sha256Digest::parse(value).map_err(FieldError::NarHash)?),
            "NarSize" => self.nar_size = parse_size(value).ok_or(FieldError::NarSize)?,
            "References" if !self.references.is_empty() => return Err(FieldError::ReferencesTwice),
            "References" => self.references = parse_references(value)?,
            "Deriver" if value == "unknown-deriver" => {}
            "Deriver" => {
                self.deriver = Some(StorePath::parse_base_name(value).map_err(FieldError::Deriver)?);
            }
            "Sig" => self.signatures.push(Signature::parse(value).map_err(FieldError::Signature)?),
            "CA" if self.ca.is_some() => return Err(FieldError::CaTwice),
            "CA" => self.ca = (!value.is_empty()).then(|| value.to_owned()),
            _ => {}
        }
        Ok(())
    }

    fn finish(self) -> Result<NarInfo, NarInfoError> {
        let path = self.path.ok_or(NarInfoError::Missing("StorePath"))?;
        let nar_hash = self.nar_hash.ok_or(NarInfoError::Missing("NarHash"))?;
        if self.url.is_empty() {
            return Err(NarInfoError::Missing("URL"));
        }
        if self.nar_size == 0 {
            return Err(NarInfoError::Missing("NarSize"));
        }
        Ok(NarInfo {
            info: PathInfo {
                path,
                nar_hash,
                nar_size: self.nar_size,
                references: self.references,
                deriver: self.deriver,
                signatures: self.signatures,
                ca: self.ca,
            },
            url: self.url,
            // The format is older than the field.
            compression: self.compression.unwrap_or(Compression::Bzip2),
            file_hash: self.file_hash,
            file_size: (self.file_size > 0).then_some(self.file_size),
        })
    }
}

/// Name, value and what follows of a text that is not empty.
pub(super) fn split_field(text: &str, line: usize) -> Result<(&str, &str, &str), NarInfoError> {
    let (name, after_colon) = text.split_once(':').ok_or(NarInfoError::NoColon { line })?;
    // A value can begin within a character of several bytes only where no writer of narinfos put it.
    let from_value = after_colon.get(1..).ok_or(NarInfoError::NoLineFeed { line })?;
    let (value, next) = from_value.split_once('\n').ok_or(NarInfoError::NoLineFeed { line })?;
    Ok((name, value, next))
}

fn parse_compression(value: &str) -> Result<Option<Compression>, FieldError> {
    if value.is_empty() {
        return Ok(None);
    }
    Compression::parse(value).map(Some).ok_or(FieldError::Compression)
}

/// Decimal digits only: `u64::from_str` alone would take a plus sign as well.
fn parse_size(value: &str) -> Option<u64> {
    let digits_only = value.bytes().all(|byte| byte.is_ascii_digit());
    digits_only.then(|| value.parse().ok()).flatten()
}

/// Base names between any number of spaces, brought into the order that the fingerprint needs.
fn parse_references(value: &str) -> Result<Vec<StorePath>, FieldError> {
    let names = value.split(' ').filter(|name| !name.is_empty());
    let mut references = names
        .map(StorePath::parse_base_name)
        .collect::<Result<Vec<_>, _>>()
        .map_err(FieldError::Reference)?;
    references.sort_unstable();
    references.dedup();
    Ok(references)
}
