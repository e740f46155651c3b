//! A narinfo as JSON, for who has no parser of narinfos.

use serde_json::json;

use super::NarInfo;
use crate::codec::store_path::StoreDir;

impl NarInfo {
    /// An object with the names and values that `nix path-info --json` has for a path of a binary cache (up to Nix 2.33, and with
    /// `--json-format 1` since), and with the path itself as `path`, as Nix 2.8 has it. What is not known is null.
    pub fn to_json(&self, store_dir: &StoreDir) -> String {
        let Self { info, url, compression, file_hash, file_size } = self;
        json!({
            "path": info.path.full(store_dir),
            "narHash": info.nar_hash.to_sri(),
            "narSize": info.nar_size,
            "references": info.references.iter().map(|path| path.full(store_dir)).collect::<Vec<_>>(),
            "deriver": info.deriver.as_ref().map(|path| path.full(store_dir)),
            "signatures": info.signatures.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "ca": info.ca,
            "url": url,
            "compression": compression.as_str(),
            "downloadHash": file_hash.map(|hash| hash.to_sri()),
            "downloadSize": file_size,
        })
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn all_that_a_narinfo_says_is_told() {
        let store_dir = StoreDir::parse("/nix/store").unwrap();
        let text = "StorePath: /nix/store/00000000000000000000000000000000-a\nURL: nar/x.nar.xz\nCompression: xz\n\
            NarHash: sha256:1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s\nNarSize: 112\n\
            References: 00000000000000000000000000000000-a\n";
        let value = |text: &str| -> Value {
            let narinfo = NarInfo::parse(text, &store_dir).unwrap();
            serde_json::from_str(&narinfo.to_json(&store_dir)).unwrap()
        };
        let least = value(text);
        let expected = json!({
            "path": "/nix/store/00000000000000000000000000000000-a",
            "narHash": "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=",
            "narSize": 112,
            "references": ["/nix/store/00000000000000000000000000000000-a"],
            "deriver": null,
            "signatures": [],
            "ca": null,
            "url": "nar/x.nar.xz",
            "compression": "xz",
            "downloadHash": null,
            "downloadSize": null,
        });
        assert_eq!(least, expected);
        let signature = format!("key-1:{}==", "A".repeat(86));
        let most = value(&format!(
            "{text}FileHash: sha256:1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s\nFileSize: 100\n\
             Deriver: 11111111111111111111111111111111-a.drv\nSig: {signature}\nCA: text:sha256:x\n"
        ));
        assert_eq!(most["deriver"], "/nix/store/11111111111111111111111111111111-a.drv");
        assert_eq!((&most["signatures"], &most["ca"]), (&json!([signature]), &json!("text:sha256:x")));
        assert_eq!((&most["downloadHash"], &most["downloadSize"]), (&expected["narHash"], &json!(100)));
    }
}
