//! The URL of a cache, taken apart: where it is, and who one is there.

use std::fmt;
use std::str::FromStr;

use ureq::http::Uri;
use zeroize::Zeroizing;

use crate::codec::hash::Sha256Digest;
use crate::codec::http::route::decode_escapes;
use crate::codec::narinfo::Compression;
use crate::codec::store_path::HashPart;

/// Where a cache is. What is shown of it has no credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// Scheme, host, port and folder, without a slash at the end.
    base: String,
    /// As netrc files name it.
    pub host: String,
    /// The name before the host.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<Zeroizing<String>>,
}

/// Why a text is no address of a cache. The messages never repeat credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// There is no `://`.
    #[error("a cache is named with its scheme, such as http://{0} or https://{0}")]
    NoScheme(String),
    /// Another scheme.
    #[error(
        "caches are reached over http or https, not {0}; to upload, `nix copy --to {0}://…` may know how"
    )]
    Scheme(String),
    /// Something follows that is no place.
    #[error(
        "leave out what begins with `?` or `#`: what Nix is told there, `narwire push` is told with --compression, --level and --secret-key-file"
    )]
    Query,
    /// No host, no port, or characters that must be escaped.
    #[error("that is no valid URL: {0}")]
    Malformed(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let malformed = |cause: &dyn fmt::Display| AddressError::Malformed(cause.to_string());
        let Some((scheme, rest)) = text.split_once("://") else {
            let shown = text.rsplit('@').next().unwrap_or_default();
            return Err(AddressError::NoScheme(shown.to_owned()));
        };
        let scheme = scheme.to_ascii_lowercase();
        if scheme != "http" && scheme != "https" {
            return Err(AddressError::Scheme(scheme));
        }
        if rest.contains(['?', '#']) {
            return Err(AddressError::Query);
        }
        let (authority, folder) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
        let (userinfo, place) = match authority.rsplit_once('@') {
            Some((userinfo, place)) => (Some(userinfo), place),
            None => (None, authority),
        };
        let base = format!("{scheme}://{place}{}", folder.trim_end_matches('/'));
        let uri: Uri = base.parse().map_err(|error| malformed(&error))?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| malformed(&"it has no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if let Some((_, port)) = place.rsplit_once(':').filter(|_| !place.ends_with(']')) {
            port.parse::<u16>().map_err(|_| malformed(&"the port is none"))?;
        }
        let decode = |text: &str| {
            decode_escapes(text.as_bytes())
                .ok_or_else(|| malformed(&"the user or the password has a bad escape"))
        };
        let (user, password) = match userinfo.map(|userinfo| userinfo.split_once(':').ok_or(userinfo)) {
            None | Some(Err("")) => (None, None),
            Some(Err(user)) => (Some(decode(user)?), None),
            Some(Ok((user, password))) => (Some(decode(user)?), Some(Zeroizing::new(decode(password)?))),
        };
        Ok(Self { base, host, user, password })
    }
}

impl Address {
    /// The URL of a file of the cache; `name` has no character that would have to be escaped.
    pub fn of(&self, name: &str) -> String {
        format!("{}/{name}", self.base)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.base)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.base)
    }
}

/// The name of a narinfo in a cache.
pub fn narinfo_name(hash_part: HashPart) -> String {
    format!("{hash_part}.narinfo")
}

/// The name of a NAR in a cache, and its `URL` in a narinfo: after the hash of the file, as Nix names it, so that whoever has it knows what
/// has to be in it.
pub fn nar_name(file_hash: &Sha256Digest, compression: Compression) -> String {
    let suffix = if compression == Compression::Zstd { ".zst" } else { "" };
    format!("nar/{}.nar{suffix}", file_hash.to_nix32())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::hash::Sha256;

    fn parse(text: &str) -> Result<Address, AddressError> {
        text.parse()
    }

    #[test]
    fn files_are_beneath_the_folder_of_the_cache() {
        for (text, expected) in [
            ("http://cache.example.org", "http://cache.example.org/x"),
            ("https://cache.example.org/", "https://cache.example.org/x"),
            ("HTTP://cache.example.org:8080/nix/main//", "http://cache.example.org:8080/nix/main/x"),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5000/x"),
            ("http://[::1]:5000/a%20b", "http://[::1]:5000/a%20b/x"),
            ("http://[::1]", "http://[::1]/x"),
            ("https://user:secret@cache.example.org/a@b", "https://cache.example.org/a@b/x"),
        ] {
            assert_eq!(parse(text).unwrap().of("x"), expected);
        }
    }

    #[test]
    fn credentials_are_decoded_and_never_shown() {
        let credentials = |text| {
            let address = parse(text).unwrap();
            let shown = format!("{address} {address:?}");
            assert!(!shown.contains("secret") && !shown.contains("user"), "{shown}");
            (address.host, address.user, address.password.map(|password| password.to_string()))
        };
        let (host, user) = ("h".to_owned(), Some("user".to_owned()));
        assert_eq!(credentials("http://h"), (host.clone(), None, None));
        assert_eq!(credentials("http://@h"), (host.clone(), None, None));
        assert_eq!(credentials("http://user@h:1/p"), (host.clone(), user.clone(), None));
        assert_eq!(
            credentials("http://user:secret%3A%40%2f@h"),
            (host.clone(), user.clone(), Some("secret:@/".to_owned()))
        );
        assert_eq!(credentials("http://user:secret:@h"), (host, user, Some("secret:".to_owned())));
        assert_eq!(credentials("http://[::1]:80").0, "::1");
    }

    #[test]
    fn what_is_no_cache_is_refused_with_the_mend() {
        for (text, word) in [
            ("cache.example.org", "http://cache.example.org"),
            ("user:hunter2@cache.example.org", "https://cache.example.org"),
            ("", "http://"),
            ("s3://bucket", "nix copy --to s3://"),
            ("file:///srv/cache", "nix copy --to file://"),
            ("http://h?compression=zstd", "--compression"),
            ("http://h/#top", "`#`"),
            ("http://", "no valid URL"),
            ("http://:80", "no valid URL"),
            ("http://h:65536", "port"),
            ("http://h:/x", "port"),
            ("http://h h/", "no valid URL"),
            ("http://user:hunter2%zz@h", "bad escape"),
            ("http://user:hunter2@h h", "no valid URL"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(word) && !error.contains("hunter2"), "{text:?}: {error}");
        }
    }

    #[test]
    fn nars_are_named_after_their_files() {
        let hash = Sha256::digest(b"foo\n");
        let digits = "0k4lwj58f2w5yh92ilrwy9917pycipbrdrr13vbb3yd02j09vfxm";
        assert_eq!(nar_name(&hash, Compression::None), format!("nar/{digits}.nar"));
        assert_eq!(nar_name(&hash, Compression::Zstd), format!("nar/{digits}.nar.zst"));
        let hash_part = HashPart::parse(b"47m1vxqd5zpw8vvlsz1wi5zf5xpiki9c").unwrap();
        assert_eq!(narinfo_name(hash_part), "47m1vxqd5zpw8vvlsz1wi5zf5xpiki9c.narinfo");
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_taken_is_a_url(text: String, likely in "https?://[a-z@:%/.\\[\\]0-9]{0,20}") {
            for text in [text, likely] {
                if let Ok(address) = parse(&text) {
                    prop_assert!(address.of("nix-cache-info").parse::<Uri>().is_ok(), "{}", text);
                }
            }
        }
    }
}
