//! Content addresses: what the `CA` of a narinfo says of a path that is named after its content, and which path that makes.
//!
//! ```text
//! text:sha256:<nix32>                    a text, and what it refers to
//! fixed:r:sha256:<nix32>                 a NAR, and what it refers to
//! fixed:[r:|git:]<algorithm>:<nix32>     anything else, which refers to nothing
//! ```
//!
//! A client recomputes the path and does without signatures then. One that finds another path, or another hash than that of the
//! NAR, takes nothing at all, so a wrong one makes a path useless. (Source: Nix's manual, "Complete Store Path Calculation".)

use super::hash::{Sha256, Sha256Digest, encode_hex};
use super::narinfo::PathInfo;
use super::store_path::{StoreDir, StorePath, StorePathError};

/// Why a path does not have the content address that it is said to have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentAddressError {
    /// It is none that is known.
    #[error("the CA is none: expected text:sha256:<hash> or fixed:[r:|git:]<algorithm>:<hash>")]
    Unknown,
    /// Paths of this kind refer to nothing, or not to themselves.
    #[error("a path with this CA has no such references")]
    References,
    /// It belongs to another path.
    #[error("the CA is that of {0}")]
    OtherPath(StorePath),
    /// It is that of another NAR.
    #[error("the CA is of another NAR than the NarHash")]
    OtherNar,
    /// There is no path of that name.
    #[error(transparent)]
    StorePath(#[from] StorePathError),
}

/// Whether the path has the content address that it is said to have, as far as can be seen without its content; yes if it has none.
pub fn check(store_dir: &StoreDir, info: &PathInfo) -> Result<(), ContentAddressError> {
    let Some(ca) = &info.ca else { return Ok(()) };
    let is_self_referring = info.references.contains(&info.path);
    let (kind, inner) = if let Some(hash) = ca.strip_prefix("text:") {
        let ("sha256", hash) = parse_hash(hash)? else { return Err(ContentAddressError::Unknown) };
        if is_self_referring {
            return Err(ContentAddressError::References);
        }
        (with_references("text", store_dir, info), hash)
    } else {
        let method_and_hash = ca.strip_prefix("fixed:").ok_or(ContentAddressError::Unknown)?;
        let prefix =
            ["r:", "git:"].into_iter().find(|prefix| method_and_hash.starts_with(prefix)).unwrap_or("");
        match (prefix, parse_hash(&method_and_hash[prefix.len()..])?) {
            ("r:", ("sha256", hash)) => {
                // That of one that refers to itself is made while its own hash part is left out.
                if !is_self_referring && hash != info.nar_hash.to_hex() {
                    return Err(ContentAddressError::OtherNar);
                }
                (with_references("source", store_dir, info), hash)
            }
            (_, (algorithm, hash)) => {
                if !info.references.is_empty() {
                    return Err(ContentAddressError::References);
                }
                let text = format!("fixed:out:{prefix}{algorithm}:{hash}:");
                ("output:out".to_owned(), Sha256::digest(text.as_bytes()).to_hex())
            }
        }
    };
    let path = make_path(store_dir, &kind, &inner, info.path.name())?;
    if path == info.path { Ok(()) } else { Err(ContentAddressError::OtherPath(path)) }
}

/// The path of a tree that refers to nothing and is named after the hash of its NAR.
pub fn path_of_tree(
    store_dir: &StoreDir,
    name: &str,
    nar_hash: Sha256Digest,
) -> Result<StorePath, StorePathError> {
    make_path(store_dir, "source", &nar_hash.to_hex(), name)
}

/// SHA-256 of what a path is made of, folded to 20 bytes. `inner` is a hash in base 16.
fn make_path(store_dir: &StoreDir, kind: &str, inner: &str, name: &str) -> Result<StorePath, StorePathError> {
    let digest = Sha256::digest(format!("{kind}:sha256:{inner}:{store_dir}:{name}").as_bytes());
    let mut folded = [0; 20];
    for (index, byte) in digest.0.iter().enumerate() {
        folded[index % 20] ^= byte;
    }
    StorePath::parse_base_name(&format!("{}-{name}", nix_base32::to_nix_base32(&folded)))
}

/// A kind of path, and what this one refers to.
fn with_references(kind: &str, store_dir: &StoreDir, info: &PathInfo) -> String {
    let mut text = kind.to_owned();
    for reference in info.references.iter().filter(|reference| **reference != info.path) {
        text.push(':');
        text.push_str(&reference.full(store_dir));
    }
    if info.references.contains(&info.path) {
        text.push_str(":self");
    }
    text
}

/// The algorithm and the hash in base 16 of `<algorithm>:<nix32>`.
fn parse_hash(text: &str) -> Result<(&str, String), ContentAddressError> {
    let parsed = text.split_once(':').and_then(|(algorithm, digits)| {
        let digits_len = match algorithm {
            "md5" => 26,
            "sha1" => 32,
            "sha256" | "blake3" => 52,
            "sha512" => 103,
            _ => return None,
        };
        let bytes = (digits.len() == digits_len).then(|| nix_base32::from_nix_base32(digits))??;
        Some((algorithm, encode_hex(&bytes)))
    });
    parsed.ok_or(ContentAddressError::Unknown)
}

/// The content address of a narinfo belongs to one path at most: when another one is named, it is that of the other, and of no third.
#[cfg(any(test, fuzzing))]
pub fn fuzz_content_address(data: &[u8]) {
    use super::narinfo::NarInfo;
    let (Ok(text), Ok(store_dir)) = (str::from_utf8(data), StoreDir::parse("/nix/store")) else { return };
    let Ok(NarInfo { mut info, .. }) = NarInfo::parse(text, &store_dir) else { return };
    let other = match check(&store_dir, &info) {
        Ok(()) if info.ca.is_none() => return,
        Ok(()) => info.path.clone(),
        Err(ContentAddressError::OtherPath(path)) => path,
        Err(_) => return,
    };
    // A reference to the path itself is made of something else.
    if info.references.contains(&info.path) || info.references.contains(&other) {
        return;
    }
    info.path = other.clone();
    assert_eq!(check(&store_dir, &info), Ok(()));
    let third = format!("{}-{}", "0".repeat(32), info.path.name());
    info.path = StorePath::parse_base_name(&third).expect("a name that was a name before");
    if info.path != other && !info.references.contains(&info.path) {
        assert_eq!(check(&store_dir, &info), Err(ContentAddressError::OtherPath(other)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = "094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic";

    fn store_dir() -> StoreDir {
        StoreDir::parse("/nix/store").unwrap()
    }

    fn info(path: &str, references: &[&str], ca: &str) -> PathInfo {
        let parse = |path: &str| StorePath::parse_base_name(path).unwrap();
        PathInfo {
            path: parse(path),
            nar_hash: Sha256Digest::from_nix32(ca.rsplit(':').next().unwrap().as_bytes())
                .unwrap_or(Sha256::digest(b"")),
            nar_size: 1,
            references: references.iter().copied().map(parse).collect(),
            deriver: None,
            signatures: Vec::new(),
            ca: Some(ca.to_owned()),
        }
    }

    const MD5: &str = "4jqlbi14cxf6wpcajbphm40hax";
    const SHA1: &str = "9m1skbnr5i43n3yypvda5s65vhfwdx5a";
    const SHA512: &str = "11w1pmwfdpz9pisbhp5qiv38q6dmidq2ipcqykw3p0sb6yrqcij79rwcwcjbxyzwbdal349qbxrncbk7pmd6snljrfpiwv2pljd4wcv";
    const REFERENCE: &str = "gw80lp9prdc4zdcvv2pw1dvaimr90gjs-a";
    const SELF: &str = "3qkvi9kwid84rhqh4in5ky16sl865p5n-self";

    /// As Nix 2.8 makes them: `nix-store --print-fixed-path`, `builtins.toFile`, `nix store make-content-addressed`.
    fn paths_of_nix() -> Vec<PathInfo> {
        vec![
            info("hqz6hj2mdfgq0drx81q5vw87wm6v0yls-x-1.0", &[], &format!("fixed:sha256:{HELLO}")),
            info("0f97q2an0y4a29ljdw34rbg03p55l7cn-x-1.0", &[], &format!("fixed:r:sha256:{HELLO}")),
            info("l1zqvm0nzg8ggfiaszbv4vxsfnapm0ip-x-1.0", &[], &format!("fixed:sha1:{SHA1}")),
            info("p7bzyh8afrrhbh9327kyn4aijkz4acsw-x-1.0", &[], &format!("fixed:r:sha1:{SHA1}")),
            info("pa7lzdjy3lsa14khjss2nggbmkjy00wx-x-1.0", &[], &format!("fixed:md5:{MD5}")),
            info("y3f47k4fxrk7x57306iwdca3bdwpq5a6-x-1.0", &[], &format!("fixed:r:md5:{MD5}")),
            info("fx9s8avdl38qn95r35rv80fp7dmxw3ji-x-1.0", &[], &format!("fixed:sha512:{SHA512}")),
            info("axf2x1gjs30vir14jak6hb381cpn34fl-x-1.0", &[], &format!("fixed:r:sha512:{SHA512}")),
            info("z9jb2lsfiw3n57jaspwc7y1p4ga22k49-x-1.0", &[], &format!("text:sha256:{HELLO}")),
            info(
                "x2afhkwwk1wixxbsnla8ks9rqqpxggnr-x-1.0",
                &["vmg5na96ajnh1v932j9jdzfc3022vbh9-a"],
                "text:sha256:1i3j188p5a4g3qgvbqsyw7nzxh780skzdxa3saai4qm0ygc8db5m",
            ),
            info(
                "43lzyw44pyh2xv11kqkzsn1xd86717jl-x-1.0",
                &[REFERENCE],
                "fixed:r:sha256:0jk2nn2948vfhq3axbizac4k6d0fmryg073p2jxds2gh3d85w7bh",
            ),
            info(
                SELF,
                &[SELF, REFERENCE],
                "fixed:r:sha256:0097x21ra4h6mj30j8g1g32yjwvgb4s8s5dl7zsjs89vwv2q73jx",
            ),
        ]
    }

    #[test]
    fn the_paths_that_nix_makes_are_right_and_no_others() {
        let other = StorePath::parse_base_name("0000000000000000000000000000000a-x-1.0").unwrap();
        for info in paths_of_nix() {
            assert_eq!(check(&store_dir(), &info), Ok(()), "{info:?}");
            let changed = PathInfo { path: other.clone(), ..info.clone() };
            assert!(check(&store_dir(), &changed).is_err(), "{changed:?}");
            let references = [&[other.clone()][..], &info.references].concat();
            let changed = PathInfo { references, ..info.clone() };
            assert!(check(&store_dir(), &changed).is_err(), "{changed:?}");
            assert!(check(&StoreDir::parse("/gnu/store").unwrap(), &info).is_err(), "{info:?}");
            assert_eq!(check(&store_dir(), &PathInfo { ca: None, ..changed }), Ok(()));
        }
    }

    #[test]
    fn a_tree_is_named_after_its_nar() {
        let [_, info, ..] = &paths_of_nix()[..] else { panic!("there are more") };
        assert_eq!(path_of_tree(&store_dir(), "x-1.0", info.nar_hash), Ok(info.path.clone()));
        let changed = PathInfo { nar_hash: Sha256::digest(b"other"), ..info.clone() };
        assert_eq!(check(&store_dir(), &changed), Err(ContentAddressError::OtherNar));
    }

    #[test]
    fn what_is_no_content_address_is_refused() {
        for ca in [
            "",
            "text",
            "text:",
            "text:sha256",
            "text:sha256:",
            &format!("text:sha1:{SHA1}"),
            &format!("text:r:sha256:{HELLO}"),
            "fixed:",
            "fixed:r:",
            "fixed:sha256:x",
            &format!("fixed:sha1:{HELLO}"),
            &format!("fixed:x:sha256:{HELLO}"),
            &format!("fixed:sha256:{}", "z".repeat(52)),
            &format!("fixed:sha256:{}é", &HELLO[2..]),
            &format!("sha256:{HELLO}"),
        ] {
            let info = info("0000000000000000000000000000000a-x-1.0", &[], ca);
            assert_eq!(check(&store_dir(), &info), Err(ContentAddressError::Unknown), "{ca}");
        }
    }
}
