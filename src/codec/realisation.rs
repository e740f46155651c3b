//! Realisations: which store path a content-addressed derivation's output has become. Experimental in Nix,
//! and met in two forms:
//!
//! ```text
//! realisations/sha256:<hex>!<output>.doi      up to Nix 2.34; the key is a hash of the derivation
//!     {"dependentRealisations":{…},"id":"sha256:<hex>!<output>","outPath":"<base name>",
//!      "signatures":["<key name>:<base64>"]}
//! build-trace-v2/<derivation>/<output>.doi    from Nix 2.35; the key is the derivation's path, in the URL only
//!     {"outPath":"<base name>","signatures":[{"keyName":"<key name>","sig":"<base64>"}]}
//! ```
//!
//! Both are written as Nix writes its JSON: keys in alphabetical order, no white space.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::hash::{HashError, Sha256Digest};
use super::signature::{Signature, SignatureError};
use super::store_path::{StorePath, StorePathError, check_name};

/// The name of a derivation's output, such as `out` or `dev`: the rules of a store path's name, of which it
/// is the last part.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutputName(Arc<str>);

/// One output of a derivation, named by the derivation's hash (the one "modulo" its fixed-output inputs).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DrvOutput {
    /// Hash of the derivation.
    pub drv_hash: Sha256Digest,
    /// Which of its outputs.
    pub output_name: OutputName,
}

/// What an output has become, without the key under which it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Realisation {
    /// The store path.
    pub out_path: StorePath,
    /// Who vouches for it.
    pub signatures: Vec<Signature>,
    /// The realisations of its inputs, which only the old form has.
    pub dependent_realisations: BTreeMap<DrvOutput, StorePath>,
}

/// Why a text is no realisation.
#[derive(Debug, thiserror::Error)]
pub enum RealisationError {
    /// It is no JSON object with exactly the fields of that form.
    #[error("not a realisation: {0}")]
    Json(#[from] serde_json::Error),
    /// An `id` or a dependent realisation is not `<hash>!<output>`.
    #[error(transparent)]
    DrvOutput(#[from] DrvOutputError),
    /// A store path is none.
    #[error(transparent)]
    StorePath(#[from] StorePathError),
    /// A signature is none.
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

/// Why a text is no `<hash>!<output>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DrvOutputError {
    /// No exclamation mark.
    #[error("expected `<hash>!<output name>`, found no exclamation mark")]
    NoExclamationMark,
    /// What stands before it is no hash.
    #[error("the hash of a derivation output: {0}")]
    Hash(#[from] HashError),
    /// What stands behind it could not be part of a store path's name.
    #[error("the name of a derivation output is empty, too long, or has characters that are not allowed")]
    OutputName,
}

impl OutputName {
    /// Parses the name of an output.
    pub fn parse(text: &str) -> Result<Self, DrvOutputError> {
        check_name(text.as_bytes()).map_err(|_| DrvOutputError::OutputName)?;
        Ok(Self(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl DrvOutput {
    /// Parses `sha256:<hex>!<output name>`.
    pub fn parse(text: &str) -> Result<Self, DrvOutputError> {
        let (drv_hash, output_name) = text.split_once('!').ok_or(DrvOutputError::NoExclamationMark)?;
        Ok(Self {
            drv_hash: Sha256Digest::from_database_text(drv_hash)?,
            output_name: OutputName::parse(output_name)?,
        })
    }
}

impl Realisation {
    /// The content of `realisations/<id>.doi`.
    pub fn to_keyed_json(&self, id: &DrvOutput) -> String {
        let keyed = KeyedJson {
            dependent_realisations: self
                .dependent_realisations
                .iter()
                .map(|(id, path)| (id.to_string(), path.to_string()))
                .collect(),
            id: id.to_string(),
            out_path: self.out_path.to_string(),
            signatures: self
                .signatures
                .iter()
                .map(|signature| SignatureJson::Text(signature.to_string()))
                .collect(),
        };
        to_json(&keyed)
    }

    /// Parses the content of `realisations/<id>.doi`. The caller compares the key with the one asked for.
    pub fn parse_keyed_json(text: &str) -> Result<(DrvOutput, Self), RealisationError> {
        let keyed: KeyedJson = serde_json::from_str(text)?;
        let mut dependent_realisations = BTreeMap::new();
        for (id, path) in &keyed.dependent_realisations {
            dependent_realisations.insert(DrvOutput::parse(id)?, StorePath::parse_base_name(path)?);
        }
        let realisation = Self {
            out_path: StorePath::parse_base_name(&keyed.out_path)?,
            signatures: parse_signatures(&keyed.signatures)?,
            dependent_realisations,
        };
        Ok((DrvOutput::parse(&keyed.id)?, realisation))
    }

    /// The content of `build-trace-v2/<derivation>/<output>.doi`. It has no place for dependent realisations.
    pub fn to_build_trace_json(&self) -> String {
        let to_parts = |signature: &Signature| SignatureJson::Parts {
            key_name: signature.key_name.to_string(),
            sig: signature.to_base64(),
        };
        to_json(&BuildTraceJson {
            out_path: self.out_path.to_string(),
            signatures: self.signatures.iter().map(to_parts).collect(),
        })
    }

    /// Parses the content of `build-trace-v2/<derivation>/<output>.doi`.
    pub fn parse_build_trace_json(text: &str) -> Result<Self, RealisationError> {
        let build_trace: BuildTraceJson = serde_json::from_str(text)?;
        Ok(Self {
            out_path: StorePath::parse_base_name(&build_trace.out_path)?,
            signatures: parse_signatures(&build_trace.signatures)?,
            dependent_realisations: BTreeMap::new(),
        })
    }
}

impl fmt::Display for OutputName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for OutputName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// `sha256:<hex>!<output name>`.
impl fmt::Display for DrvOutput {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sha256:{}!{}", self.drv_hash.to_hex(), self.output_name)
    }
}

/// The old form as it stands in the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KeyedJson {
    #[serde(default)]
    dependent_realisations: BTreeMap<String, String>,
    id: String,
    out_path: String,
    #[serde(default)]
    signatures: Vec<SignatureJson>,
}

/// The new form as it stands in the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BuildTraceJson {
    out_path: String,
    #[serde(default)]
    signatures: Vec<SignatureJson>,
}

/// Each form writes one of these; Nix reads either in both.
#[derive(Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum SignatureJson {
    Text(String),
    #[serde(rename_all = "camelCase")]
    Parts {
        key_name: String,
        sig: String,
    },
}

fn parse_signatures(signatures: &[SignatureJson]) -> Result<Vec<Signature>, SignatureError> {
    let parse = |signature: &SignatureJson| match signature {
        SignatureJson::Text(text) => Signature::parse(text),
        // A colon within the name would leave one within the base 64, so the two cannot be told apart
        // wrongly.
        SignatureJson::Parts { key_name, sig } => Signature::parse(&format!("{key_name}:{sig}")),
    };
    signatures.iter().map(parse).collect()
}

/// Maps with keys of text, texts and lists: nothing that could fail to be JSON.
fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Whatever is taken for a realisation, of either form, is read back alike once it is written, and written alike once it is read.
#[cfg(any(test, fuzzing))]
pub fn fuzz_realisation(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok((id, realisation)) = Realisation::parse_keyed_json(text) {
        let written = realisation.to_keyed_json(&id);
        assert_eq!(Realisation::parse_keyed_json(&written).ok(), Some((id, realisation)));
    }
    if let Ok(realisation) = Realisation::parse_build_trace_json(text) {
        let written = realisation.to_build_trace_json();
        assert_eq!(Realisation::parse_build_trace_json(&written).ok(), Some(realisation));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Written by Nix 2.8 for a derivation that depends on another content-addressed one.
    const KEYED: &str = concat!(
        r#"{"dependentRealisations":{"sha256:0c555bd57ae47b20ca321ed2b1152b11cd1d8251e790b629fbee5a2995c54b75!out":"#,
        r#""qxcjks58b7gx57h1j15pcd2sikja5j1y-low"},"#,
        r#""id":"sha256:f51af8f6cf88f5c95d997d1d3733e6a82b85e0a3aa07437da73311c4840620a9!out","#,
        r#""outPath":"80217n478aixyi6mgbwnvx1xz8as79wl-high","signatures":[]}"#,
    );
    const ZEROS: &str =
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==";

    fn build_trace() -> String {
        format!(
            r#"{{"outPath":"80217n478aixyi6mgbwnvx1xz8as79wl-high","signatures":[{{"keyName":"asdf","sig":"{ZEROS}"}}]}}"#
        )
    }

    #[test]
    fn keyed_form_is_that_of_nix_byte_for_byte() {
        let (id, realisation) = Realisation::parse_keyed_json(KEYED).unwrap();
        assert_eq!(id.output_name.as_str(), "out");
        assert_eq!(realisation.out_path.name(), "high");
        assert_eq!(realisation.dependent_realisations.len(), 1);
        assert_eq!(realisation.to_keyed_json(&id), KEYED);
    }

    #[test]
    fn build_trace_form_is_read_and_written_back() {
        let realisation = Realisation::parse_build_trace_json(&build_trace()).unwrap();
        assert_eq!(realisation.signatures, [Signature::parse(&format!("asdf:{ZEROS}")).unwrap()]);
        assert_eq!(realisation.to_build_trace_json(), build_trace());
    }

    #[test]
    fn one_realisation_has_both_forms() {
        let mut realisation = Realisation::parse_build_trace_json(&build_trace()).unwrap();
        realisation.dependent_realisations.clear();
        let id =
            DrvOutput { drv_hash: Sha256Digest([7; 32]), output_name: OutputName::parse("dev").unwrap() };
        let keyed = realisation.to_keyed_json(&id);
        assert!(keyed.contains(&format!(r#""signatures":["asdf:{ZEROS}"]"#)));
        assert_eq!(Realisation::parse_keyed_json(&keyed).unwrap(), (id, realisation));
    }

    #[test]
    fn either_form_may_hold_either_form_of_signature_or_none() {
        let text = build_trace()
            .replace(&format!(r#"{{"keyName":"asdf","sig":"{ZEROS}"}}"#), &format!(r#""asdf:{ZEROS}""#));
        assert_ne!(text, build_trace());
        assert_eq!(
            Realisation::parse_build_trace_json(&text).unwrap(),
            Realisation::parse_build_trace_json(&build_trace()).unwrap()
        );
        let bare = r#"{"outPath":"80217n478aixyi6mgbwnvx1xz8as79wl-high"}"#;
        assert_eq!(Realisation::parse_build_trace_json(bare).unwrap().signatures, []);
    }

    #[test]
    fn what_is_not_exactly_that_form_is_refused() {
        let refused = |text: &str| Realisation::parse_build_trace_json(text).unwrap_err();
        assert!(matches!(refused(KEYED), RealisationError::Json(_)));
        assert!(matches!(refused("{}"), RealisationError::Json(_)));
        assert!(matches!(refused(&build_trace().replace("sig\"", "signature\"")), RealisationError::Json(_)));
        assert!(matches!(refused(&build_trace().replace("asdf", "as:df")), RealisationError::Signature(_)));
        assert!(matches!(refused(&build_trace().replace("8021", "8O21")), RealisationError::StorePath(_)));
        assert!(matches!(
            refused(&build_trace().replace("8021", "/nix/store/8021")),
            RealisationError::StorePath(_)
        ));
        let keyed_refused = |text: &str| Realisation::parse_keyed_json(text).unwrap_err();
        assert!(matches!(keyed_refused(&build_trace()), RealisationError::Json(_)));
        assert!(matches!(keyed_refused(&KEYED.replace("!out", "")), RealisationError::DrvOutput(_)));
    }

    #[test]
    fn what_is_nested_without_end_is_refused() {
        let bare = r#"{"outPath":"80217n478aixyi6mgbwnvx1xz8as79wl-high","strange":VALUE}"#;
        for (open, value, close) in [("[", "0", "]"), (r#"{"a":"#, "0", "}")] {
            let nested = |levels| [&open.repeat(levels), value, &close.repeat(levels)].concat();
            assert!(Realisation::parse_build_trace_json(&bare.replace("VALUE", &nested(100_000))).is_err());
            assert!(Realisation::parse_build_trace_json(&nested(100_000)).is_err());
            assert!(Realisation::parse_keyed_json(&nested(100_000)).is_err());
        }
    }

    #[test]
    fn every_prefix_is_refused() {
        for end in 0..KEYED.len() {
            Realisation::parse_keyed_json(&KEYED[..end]).unwrap_err();
        }
        let text = build_trace();
        for end in 0..text.len() {
            Realisation::parse_build_trace_json(&text[..end]).unwrap_err();
        }
    }

    #[test]
    fn output_ids_have_a_hash_and_a_name_fit_for_a_file() {
        let hash = "sha256:0c555bd57ae47b20ca321ed2b1152b11cd1d8251e790b629fbee5a2995c54b75";
        let parse = |rest: &str| DrvOutput::parse(&format!("{hash}{rest}"));
        assert_eq!(parse("!out").unwrap().to_string(), format!("{hash}!out"));
        assert_eq!(parse(""), Err(DrvOutputError::NoExclamationMark));
        for name in ["", "..", "a/b", "a!b", "a b", "a\0"] {
            assert_eq!(parse(&format!("!{name}")), Err(DrvOutputError::OutputName), "{name:?}");
        }
        assert_eq!(DrvOutput::parse("md5:0!out"), Err(DrvOutputError::Hash(HashError::NotSha256)));
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = Realisation::parse_keyed_json(&text);
            let _ = Realisation::parse_build_trace_json(&text);
            let _ = DrvOutput::parse(&text);
        }
    }
}
