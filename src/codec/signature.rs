//! Ed25519 keys and signatures in Nix's text form `<key name>:<base64>`, and the fingerprint that is signed.
//!
//! The key name ends at the first colon. Clients look trusted keys up by that name.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::hazmat::{ExpandedSecretKey, raw_sign};
use ed25519_dalek::{SigningKey, VerifyingKey};
use sha2::Sha512;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use super::hash::Sha256Digest;
use super::store_path::{StoreDir, StorePath};

/// The name of a key, such as `cache.example.org-1`: not empty, and without colon, white space and control
/// characters, so that it can stand in every format that holds signatures.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName(Arc<str>);

/// Why a text is no key or signature. The messages never repeat any of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// No colon, so no name.
    #[error("expected `<key name>:<base64>`, found no colon")]
    NoColon,
    /// The name is empty or has a character that a key name must not have.
    #[error("a key name must not be empty, nor contain a colon, white space or control characters")]
    KeyName,
    /// What follows the colon is not base 64 with its padding.
    #[error("what follows the key name is not base64")]
    NotBase64,
    /// The number of bytes is wrong for this kind of key or signature.
    #[error("expected {expected} bytes of base64 after the key name")]
    WrongLength {
        /// How many bytes there should be.
        expected: usize,
    },
    /// The bytes are no point of the curve, so no public key.
    #[error("the public key is not valid")]
    NotAPublicKey,
    /// The second half of a secret key does not belong to the first.
    #[error("the secret key is damaged: its public half does not belong to its secret half")]
    HalvesDiffer,
}

/// A signing key. What is secret of it is in memory once, however often it is cloned, is wiped when the last clone is dropped, and no
/// message shows it.
#[derive(Clone)]
pub struct SecretKey {
    key_name: KeyName,
    public: VerifyingKey,
    seed: Arc<dyn SeedMemory>,
}

/// Memory for the seed of a signing key.
pub trait SeedMemory: ZeroizeOnDrop + Send + Sync {
    /// What is in it.
    fn seed(&self) -> &[u8; 32];
}

impl SeedMemory for Zeroizing<[u8; 32]> {
    fn seed(&self) -> &[u8; 32] {
        self
    }
}

/// A key that verifies signatures.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    key_name: KeyName,
    key: VerifyingKey,
}

/// A detached signature.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature {
    /// Whose it is.
    pub key_name: KeyName,
    /// RFC 8032's 64 bytes.
    pub bytes: [u8; 64],
}

/// What a signature of a store path signs: `1;<path>;<NAR hash>;<NAR size>;<references>`, with full paths,
/// and the references (a reference to itself included) joined by commas. `references` must be sorted and free
/// of repetitions.
pub fn fingerprint(
    store_dir: &StoreDir,
    path: &StorePath,
    nar_hash: &Sha256Digest,
    nar_size: u64,
    references: &[StorePath],
) -> String {
    debug_assert!(references.is_sorted_by(|left, right| left < right));
    let mut text = String::with_capacity(fingerprint_len_max(store_dir, path, references));
    // Writing to a `String` cannot fail.
    let _ = write!(text, "1;{store_dir}/{path};{nar_hash};{nar_size};");
    for (index, reference) in references.iter().enumerate() {
        let separator = if index == 0 { "" } else { "," };
        let _ = write!(text, "{separator}{store_dir}/{reference}");
    }
    text
}

impl KeyName {
    /// Parses a key name.
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        let forbidden =
            |character: char| character == ':' || character.is_whitespace() || character.is_control();
        if text.is_empty() || text.contains(forbidden) {
            return Err(SignatureError::KeyName);
        }
        Ok(Self(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SecretKey {
    /// Parses `<key name>:<base64 of seed and public key>`, the content of a secret key file. White space at
    /// the end is ignored: editors leave a line feed there.
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        let (key_name, bytes) = parse_named::<64>(text.trim_ascii_end())?;
        let key = SigningKey::from_keypair_bytes(&bytes).map_err(|_| SignatureError::HalvesDiffer)?;
        Ok(Self::new(key_name, &key))
    }

    /// The key that belongs to a seed: 32 bytes that nobody can guess, from the caller's source of
    /// randomness.
    pub fn from_seed(key_name: KeyName, seed: &[u8; 32]) -> Self {
        Self::new(key_name, &SigningKey::from_bytes(seed))
    }

    fn new(key_name: KeyName, key: &SigningKey) -> Self {
        let mut seed = Arc::new(Zeroizing::new([0; 32]));
        if let Some(seed) = Arc::get_mut(&mut seed) {
            // Where it stays: what is moved leaves a copy behind.
            seed.copy_from_slice(key.as_bytes());
        }
        Self { key_name, public: key.verifying_key(), seed }
    }

    /// The same key, whose seed `keep` has put into other memory.
    #[must_use]
    pub fn kept_in(self, keep: impl FnOnce(&[u8; 32]) -> Arc<dyn SeedMemory>) -> Self {
        Self { seed: keep(self.seed.seed()), ..self }
    }

    /// Signs a fingerprint.
    pub fn sign(&self, fingerprint: &str) -> Signature {
        // What `SigningKey` does as well for each signature. The expanded key wipes itself.
        let expanded = ExpandedSecretKey::from(self.seed.seed());
        let signature = raw_sign::<Sha512>(&expanded, fingerprint.as_bytes(), &self.public);
        Signature { key_name: self.key_name.clone(), bytes: signature.to_bytes() }
    }

    /// The key that verifies what this one signs.
    pub fn public(&self) -> PublicKey {
        PublicKey { key_name: self.key_name.clone(), key: self.public }
    }

    /// The name that its signatures carry.
    pub fn key_name(&self) -> &KeyName {
        &self.key_name
    }

    /// The content of a secret key file, without a line feed, as Nix writes it. Wiped when dropped.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; 64]);
        bytes[..32].copy_from_slice(self.seed.seed());
        bytes[32..].copy_from_slice(self.public.as_bytes());
        // Reserved in one piece: a string that grew would leave copies behind.
        let mut text = Zeroizing::new(String::with_capacity(self.key_name.0.len() + 1 + BASE64_OF_64_BYTES));
        text.push_str(&self.key_name.0);
        text.push(':');
        BASE64.encode_string(*bytes, &mut text);
        text
    }
}

/// Shows the name only.
impl fmt::Debug for SecretKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SecretKey").field("key_name", &self.key_name).finish_non_exhaustive()
    }
}

impl PublicKey {
    /// Parses `<key name>:<base64 of 32 bytes>`, as it stands in `trusted-public-keys`.
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        let (key_name, bytes) = parse_named::<32>(text)?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| SignatureError::NotAPublicKey)?;
        Ok(Self { key_name, key })
    }

    /// Whether `signature` carries this key's name and was made by it for `fingerprint`. Keys and signatures
    /// that would fit more than one text are refused, as by Nix.
    pub fn verify(&self, fingerprint: &str, signature: &Signature) -> bool {
        let bytes = ed25519_dalek::Signature::from_bytes(&signature.bytes);
        self.key_name == signature.key_name && self.key.verify_strict(fingerprint.as_bytes(), &bytes).is_ok()
    }

    /// The name that signatures are looked up by.
    pub fn key_name(&self) -> &KeyName {
        &self.key_name
    }
}

impl Signature {
    /// Parses `<key name>:<base64 of 64 bytes>`.
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        let (key_name, bytes) = parse_named::<64>(text)?;
        Ok(Self { key_name, bytes: *bytes })
    }

    /// The 64 bytes alone, for the formats that keep the name apart.
    pub fn to_base64(&self) -> String {
        BASE64.encode(self.bytes)
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for KeyName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, formatter)
    }
}

/// The form of `trusted-public-keys`.
impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_named(formatter, &self.key_name, self.key.as_bytes())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// The form of a narinfo's `Sig` line and of the database.
impl fmt::Display for Signature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_named(formatter, &self.key_name, &self.bytes)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Characters of 64 bytes in base 64.
const BASE64_OF_64_BYTES: usize = 88;

fn write_named(formatter: &mut fmt::Formatter<'_>, key_name: &KeyName, bytes: &[u8]) -> fmt::Result {
    write!(formatter, "{key_name}:{}", base64::display::Base64Display::new(bytes, &BASE64))
}

/// Splits at the first colon and decodes what follows. The buffer is wiped on every way out: it may hold a
/// secret key.
fn parse_named<const LEN: usize>(text: &str) -> Result<(KeyName, Zeroizing<[u8; LEN]>), SignatureError> {
    let (key_name, base64) = text.split_once(':').ok_or(SignatureError::NoColon)?;
    let key_name = KeyName::parse(key_name)?;
    let mut bytes = Zeroizing::new([0; LEN]);
    match BASE64.decode_slice(base64, bytes.as_mut_slice()) {
        Ok(len_bytes) if len_bytes == LEN => Ok((key_name, bytes)),
        Ok(_) | Err(base64::DecodeSliceError::OutputSliceTooSmall) => {
            Err(SignatureError::WrongLength { expected: LEN })
        }
        Err(base64::DecodeSliceError::DecodeError(_)) => Err(SignatureError::NotBase64),
    }
}

/// Enough for the whole text, so that it is allocated once.
fn fingerprint_len_max(store_dir: &StoreDir, path: &StorePath, references: &[StorePath]) -> usize {
    const FIXED_LEN: usize = "1;;sha256:;;".len() + 52 + 20;
    let full_len = |path: &StorePath| store_dir.as_str().len() + 1 + path.base_name().len();
    FIXED_LEN + full_len(path) + references.iter().map(|reference| full_len(reference) + 1).sum::<usize>()
}

/// A key made of any seed signs what its public half verifies, and every text that is taken is written back
/// alike.
#[cfg(any(test, fuzzing))]
pub fn fuzz_keys(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(secret) = SecretKey::parse(&text) {
        assert_eq!(*secret.to_text(), text.trim_ascii_end());
    }
    if let Ok(public) = PublicKey::parse(&text) {
        assert_eq!(public.to_string(), text);
    }
    if let Ok(signature) = Signature::parse(&text) {
        assert_eq!(signature.to_string(), text);
    }
    if let (Some((seed, _)), Ok(key_name)) = (data.split_first_chunk(), KeyName::parse("fuzz-1")) {
        let secret = SecretKey::from_seed(key_name, seed);
        assert!(secret.public().verify(&text, &secret.sign(&text)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Made for these tests with `nix-store --generate-binary-cache-key`, and used nowhere else.
    const SECRET: &str = "cache.example.org-1:mmVRFajGQ6b6vx3RQhs0FGo66CWzvtvTYF7S5QzM2R/4eEuj2FnJDvrtcb1bEFRhL8VC7Uk+vv0JOwS/Qo0r1w==";
    const PUBLIC: &str = "cache.example.org-1:+HhLo9hZyQ767XG9WxBUYS/FQu1JPr79CTsEv0KNK9c=";

    // A path without references, and one that refers to itself and to three others, both signed by `nix store
    // sign`.
    const PLAIN: &str = "1;/nix/store/k72bmjzw4b1c3iz02d6x3hck3x8rdv0i-a+b_c-1.0;\
        sha256:13qyb0yiqm0lwbvcxyd86wrmj468vggaymza21s4fv64bf4p8n7j;480;";
    const PLAIN_SIGNATURE: &str = "cache.example.org-1:3pxPB29GPCS9g5KC2qvlqdEgVJuefoouNM8WA/+QogMkUKtnsTlJH910NXiBwNM1z6iJ4JyZKZE7hGCCEDIPCA==";
    const REFERRING: &str = "1;/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-self;\
        sha256:0i9pjcpjx7m8xszjbb0wgnwli0k0kwcw5g11lahmcfjdmpvd3b1x;168;\
        /nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-self,/nix/store/21jmr586qsj2jawxwsx2i6yry53lg0g1-libc,\
        /nix/store/776052jvikfcx9x4896q5y9jdvk6z8zm-lib-z,/nix/store/7sp5vil8frbxzw472b4n0fc4gi4v4jh3-lib.a";
    const REFERRING_SIGNATURE: &str = "cache.example.org-1:fK/XFB33xKuN3seyNe4a/qFwUGujyJKzW1VKv/6IL9RO18Hq2qihUpHXSgC/9liauc+JZxhZd99pTBovRpxiDg==";

    fn path(base_name: &str) -> StorePath {
        StorePath::parse_base_name(base_name).unwrap()
    }

    fn secret_text(seed: &[u8; 32], public: &[u8; 32]) -> String {
        format!("k:{}", BASE64.encode([*seed, *public].concat()))
    }

    #[test]
    fn fingerprints_are_those_of_nix() {
        let store_dir = StoreDir::parse("/nix/store").unwrap();
        let digest = |text| Sha256Digest::parse(text).unwrap();
        let hash = digest("sha256:13qyb0yiqm0lwbvcxyd86wrmj468vggaymza21s4fv64bf4p8n7j");
        let plain = path("k72bmjzw4b1c3iz02d6x3hck3x8rdv0i-a+b_c-1.0");
        assert_eq!(fingerprint(&store_dir, &plain, &hash, 480, &[]), PLAIN);

        let hash = digest("sha256:0i9pjcpjx7m8xszjbb0wgnwli0k0kwcw5g11lahmcfjdmpvd3b1x");
        let referring = path("00bgd045z0d4icpbc2yyz4gx48ak44la-self");
        let references = [
            referring.clone(),
            path("21jmr586qsj2jawxwsx2i6yry53lg0g1-libc"),
            path("776052jvikfcx9x4896q5y9jdvk6z8zm-lib-z"),
            path("7sp5vil8frbxzw472b4n0fc4gi4v4jh3-lib.a"),
        ];
        assert_eq!(fingerprint(&store_dir, &referring, &hash, 168, &references), REFERRING);
    }

    #[test]
    fn fingerprints_are_allocated_once() {
        let store_dir = StoreDir::parse("/nix/store").unwrap();
        let path = path("k72bmjzw4b1c3iz02d6x3hck3x8rdv0i-a");
        let references = [path.clone()];
        let text = fingerprint(&store_dir, &path, &Sha256Digest([0; 32]), u64::MAX, &references);
        assert!(text.len() <= fingerprint_len_max(&store_dir, &path, &references));
        assert!(
            text.len() + 2 > fingerprint_len_max(&store_dir, &path, &references),
            "and not for much more"
        );
    }

    #[test]
    fn signs_and_verifies_as_nix_does() {
        let secret = SecretKey::parse(SECRET).unwrap();
        let public = PublicKey::parse(PUBLIC).unwrap();
        assert_eq!(secret.public(), public);
        for (fingerprint, signature) in [(PLAIN, PLAIN_SIGNATURE), (REFERRING, REFERRING_SIGNATURE)] {
            assert_eq!(secret.sign(fingerprint).to_string(), signature);
            assert!(public.verify(fingerprint, &Signature::parse(signature).unwrap()));
        }
        assert!(!public.verify(PLAIN, &Signature::parse(REFERRING_SIGNATURE).unwrap()));
    }

    #[test]
    fn a_path_of_the_public_cache_verifies_with_its_public_key() {
        let public =
            PublicKey::parse("cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=").unwrap();
        let fingerprint = "1;/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-net-tools-1.60_p20170221182432;\
            sha256:0lxjvvpr59c2mdram7ympy5ay741f180kv3349hvfc3f8nrmbqf6;464152;\
            /nix/store/7gx4kiv5m0i7d7qkixq2cwzbr10lvxwc-glibc-2.27";
        let signature = Signature::parse(
            "cache.nixos.org-1:sn5s/RrqEI+YG6/PjwdbPjcAC7rcta7sJU4mFOawGvJBLsWkyLtBrT2EuFt/LJjWkTZ+ZWOI9NTtjo/woMdvAg==",
        )
        .unwrap();
        assert!(public.verify(fingerprint, &signature));
    }

    #[test]
    fn a_signature_under_another_name_is_another_key_s() {
        let public = PublicKey::parse(PUBLIC).unwrap();
        let renamed = PLAIN_SIGNATURE.replace("cache.example.org-1", "cache.example.org-2");
        assert!(!public.verify(PLAIN, &Signature::parse(&renamed).unwrap()));
    }

    #[test]
    fn secret_keys_are_written_as_they_are_read() {
        for end in ["", "\n", "\r\n"] {
            assert_eq!(*SecretKey::parse(&format!("{SECRET}{end}")).unwrap().to_text(), SECRET);
        }
        let generated = SecretKey::from_seed(KeyName::parse("k-1").unwrap(), &[7; 32]);
        let read_back = SecretKey::parse(&generated.to_text()).unwrap();
        assert_eq!(read_back.public(), generated.public());
        assert_eq!(read_back.key_name().as_str(), "k-1");
    }

    #[test]
    fn texts_that_are_no_key_are_refused_with_their_reason() {
        let wrong_length = SignatureError::WrongLength { expected: 64 };
        let zeros = |len: usize| format!("k:{}", BASE64.encode(vec![0; len]));
        for (text, error) in [
            (String::new(), SignatureError::NoColon),
            ("name".to_owned(), SignatureError::NoColon),
            (":AAAA".to_owned(), SignatureError::KeyName),
            (SECRET.replacen('.', " ", 1), SignatureError::KeyName),
            (SECRET.replacen('.', "\n", 1), SignatureError::KeyName),
            (SECRET.replacen(":m", "::", 1), SignatureError::NotBase64),
            (SECRET.replace("==", ""), SignatureError::NotBase64),
            ("k:".to_owned(), wrong_length),
            (zeros(32), wrong_length),
            (zeros(63), wrong_length),
            (zeros(65), wrong_length),
            (zeros(66), wrong_length),
            (zeros(640), wrong_length),
            (secret_text(&[7; 32], &[7; 32]), SignatureError::HalvesDiffer),
            (
                secret_text(&[7; 32], SecretKey::parse(SECRET).unwrap().public.as_bytes()),
                SignatureError::HalvesDiffer,
            ),
        ] {
            assert_eq!(SecretKey::parse(&text).unwrap_err(), error, "{text:?}");
        }
        assert_eq!(PublicKey::parse(SECRET).unwrap_err(), SignatureError::WrongLength { expected: 32 });
        assert_eq!(
            PublicKey::parse(&format!("k:{}", BASE64.encode([2; 32]))).unwrap_err(),
            SignatureError::NotAPublicKey
        );
        assert_eq!(Signature::parse(PUBLIC).unwrap_err(), wrong_length);
    }

    #[test]
    fn every_prefix_is_refused() {
        for end in 0..SECRET.len() {
            SecretKey::parse(&SECRET[..end]).unwrap_err();
            Signature::parse(&SECRET[..end]).unwrap_err();
        }
        for end in 0..PUBLIC.len() {
            PublicKey::parse(&PUBLIC[..end]).unwrap_err();
        }
    }

    #[test]
    fn secrets_are_neither_shown_nor_left_in_memory() {
        fn is_wiped_on_drop<T: ZeroizeOnDrop + ?Sized>(_: &T) {}
        let secret = SecretKey::parse(SECRET).unwrap();
        is_wiped_on_drop(&*secret.seed);
        is_wiped_on_drop(&secret.to_text());
        assert_eq!(format!("{secret:?}"), r#"SecretKey { key_name: "cache.example.org-1", .. }"#);
    }

    proptest! {
        #[test]
        fn no_error_repeats_what_it_was_given(damage in 0..SECRET.len(), character in "[A-Za-z0-9+/ :]") {
            let mut text = SECRET.to_owned();
            text.replace_range(damage..=damage, &character);
            if let Err(error) = SecretKey::parse(&text) {
                let shown = format!("{error} {error:?}");
                for start in 20..SECRET.len() - 8 {
                    prop_assert!(!shown.contains(&SECRET[start..start + 8]), "{}", shown);
                }
            }
        }

        #[test]
        fn what_is_signed_verifies_and_nothing_else(seed: [u8; 32], text: String, flipped in 0..512usize) {
            let secret = SecretKey::from_seed(KeyName::parse("k-1").unwrap(), &seed);
            let signature = secret.sign(&text);
            prop_assert!(secret.public().verify(&text, &signature));
            let more_text = format!("{text};");
            prop_assert!(!secret.public().verify(&more_text, &signature));
            let mut damaged = signature;
            damaged.bytes[flipped / 8] ^= 1 << (flipped % 8);
            prop_assert!(!secret.public().verify(&text, &damaged));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = SecretKey::parse(&text);
            let _ = PublicKey::parse(&text);
            let _ = Signature::parse(&text);
        }
    }
}
