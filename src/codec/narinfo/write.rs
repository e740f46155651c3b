//! NarInfo → text, in the order of fields in which Nix writes them.

use std::fmt::Write as _;

use super::NarInfo;
use crate::codec::store_path::StoreDir;

impl NarInfo {
    /// Appends the narinfo to `text`.
    ///
    /// `References` is written even when there are none, with the space that Nix's reader skips: without it,
    /// the reader takes the next line for the value. `Compression` is written even when there is none: its
    /// absence means bzip2.
    pub fn write(&self, store_dir: &StoreDir, text: &mut String) {
        let Self { info, url, compression, file_hash, file_size } = self;
        // Writing to a `String` cannot fail, so the results are dropped.
        let _ = writeln!(text, "StorePath: {store_dir}/{}", info.path);
        let _ = writeln!(text, "URL: {url}");
        let _ = writeln!(text, "Compression: {}", compression.as_str());
        if let Some(file_hash) = file_hash {
            let _ = writeln!(text, "FileHash: {file_hash}");
        }
        if let Some(file_size) = file_size {
            let _ = writeln!(text, "FileSize: {file_size}");
        }
        let _ = writeln!(text, "NarHash: {}", info.nar_hash);
        let _ = writeln!(text, "NarSize: {}", info.nar_size);
        text.push_str("References: ");
        for (index, reference) in info.references.iter().enumerate() {
            if index > 0 {
                text.push(' ');
            }
            text.push_str(reference.base_name());
        }
        text.push('\n');
        if let Some(deriver) = &info.deriver {
            let _ = writeln!(text, "Deriver: {deriver}");
        }
        for signature in &info.signatures {
            let _ = writeln!(text, "Sig: {signature}");
        }
        if let Some(ca) = &info.ca {
            let _ = writeln!(text, "CA: {ca}");
        }
    }
}
