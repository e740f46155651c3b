//! Tokens: what a client shows to be let in, what the server keeps of it, and how it comes in a request.
//!
//! A token is `<name>.<43 characters>`: a name, by which it is found and spoken of, and 32 random bytes in URL-safe base64. The server
//! keeps one line of each, `<name>:<scopes>:<salt>:<hash>`, with SHA-256 of salt and secret. A secret that nobody can guess needs
//! no slow hash: whoever reads the file learns nothing that lets him in.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet;
use base64::display::Base64Display;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::limits::{AUTHORIZATION_LEN_MAX, TOKEN_NAME_LEN_MAX};

/// Bytes of a secret.
pub const SECRET_LEN_BYTES: usize = 32;
/// Bytes of a salt: two tokens never share one.
pub const SALT_LEN_BYTES: usize = 16;

/// Characters of a secret in a token.
const SECRET_CHARACTERS: usize = 43;

/// What a token may be good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// To read what is served.
    Read,
    /// To upload.
    Write,
}

/// What a token is good for: at least one thing. To write does not mean to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scopes {
    read: bool,
    write: bool,
}

/// The name of a token: ASCII letters, digits, `-`, `_` and `.`, at least one and at most [`TOKEN_NAME_LEN_MAX`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenName(Arc<str>);

/// A token, as its owner has it. Its memory is wiped when it is dropped, and no message shows it.
pub struct Token {
    name: TokenName,
    secret: Zeroizing<[u8; SECRET_LEN_BYTES]>,
}

/// What the server keeps of a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// How it is found.
    pub name: TokenName,
    /// What it is good for.
    pub scopes: Scopes,
    salt: [u8; SALT_LEN_BYTES],
    hash: [u8; 32],
}

/// All tokens that are in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    records: BTreeMap<TokenName, Record>,
}

/// Why a line is no record, or a text no token. The messages repeat nothing of the text but the name of a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not four fields.
    #[error("expected <name>:<scopes>:<salt>:<hash>, as `narwire token create` writes it")]
    Fields,
    /// No name.
    #[error(
        "a token's name has letters, digits, `-`, `_` and `.` only, at least one and at most {TOKEN_NAME_LEN_MAX}"
    )]
    Name,
    /// No scopes.
    #[error("a token's scopes are read, write, or both: read,write")]
    Scopes,
    /// No salt.
    #[error("the salt is not base64 of {SALT_LEN_BYTES} bytes")]
    Salt,
    /// No hash.
    #[error("the hash is not base64 of 32 bytes")]
    Hash,
    /// No secret.
    #[error("what follows the name is not URL-safe base64 of {SECRET_LEN_BYTES} bytes")]
    Secret,
    /// A second line of one name.
    #[error("there is a line of the name {0} already")]
    Repeated(TokenName),
}

/// Why a text is no list of records.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}: {cause}")]
pub struct TokensError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub cause: TokenError,
}

impl Scopes {
    /// Whether these contain `scope`.
    pub fn include(self, scope: Scope) -> bool {
        match scope {
            Scope::Read => self.read,
            Scope::Write => self.write,
        }
    }
}

/// `read`, `write`, or both with a comma between them, in any order and each once.
impl FromStr for Scopes {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut scopes = Self { read: false, write: false };
        for word in text.split(',') {
            let scope = match word {
                "read" => &mut scopes.read,
                "write" => &mut scopes.write,
                _ => return Err(TokenError::Scopes),
            };
            if std::mem::replace(scope, true) {
                return Err(TokenError::Scopes);
            }
        }
        Ok(scopes)
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match (self.read, self.write) {
            (true, false) => "read",
            (false, true) => "write",
            _ => "read,write",
        })
    }
}

impl TokenName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TokenName {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        if is_name(text.as_bytes()) { Ok(Self(text.into())) } else { Err(TokenError::Name) }
    }
}

impl fmt::Display for TokenName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for TokenName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, formatter)
    }
}

impl Borrow<str> for TokenName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

fn is_name(text: &[u8]) -> bool {
    (1..=TOKEN_NAME_LEN_MAX).contains(&text.len())
        && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

impl Token {
    /// The token of a secret that nobody can guess, from the caller's source of randomness.
    pub fn new(name: TokenName, secret: &[u8; SECRET_LEN_BYTES]) -> Self {
        Self { name, secret: Zeroizing::new(*secret) }
    }

    /// Parses `<name>.<secret>`.
    pub fn parse(text: &[u8]) -> Result<Self, TokenError> {
        // A name may have dots, a secret has none.
        let dot = text.iter().rposition(|&byte| byte == b'.').ok_or(TokenError::Secret)?;
        let (name, secret) = (&text[..dot], &text[dot + 1..]);
        let name = str::from_utf8(name).map_err(|_| TokenError::Name)?.parse()?;
        let secret = decode(&URL_SAFE_NO_PAD, secret).ok_or(TokenError::Secret)?;
        Ok(Self { name, secret })
    }

    /// The text of the token. Wiped when dropped.
    pub fn to_text(&self) -> Zeroizing<String> {
        // Reserved in one piece: a string that grew would leave copies behind.
        let mut text = Zeroizing::new(String::with_capacity(self.name.0.len() + 1 + SECRET_CHARACTERS));
        text.push_str(&self.name.0);
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(*self.secret, &mut text);
        text
    }

    /// What to keep of it. `salt` is random.
    pub fn record(&self, scopes: Scopes, salt: [u8; SALT_LEN_BYTES]) -> Record {
        Record { name: self.name.clone(), scopes, salt, hash: salted(&salt, &self.secret) }
    }

    /// How it is found.
    pub fn name(&self) -> &TokenName {
        &self.name
    }
}

/// Shows the name only.
impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Token").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Record {
    /// Whether it is of this secret. Takes the same time whatever the secret is.
    fn is_of(&self, secret: &[u8; SECRET_LEN_BYTES]) -> bool {
        salted(&self.salt, secret).ct_eq(&self.hash).into()
    }
}

fn salted(salt: &[u8; SALT_LEN_BYTES], secret: &[u8; SECRET_LEN_BYTES]) -> [u8; 32] {
    Sha256::new().chain_update(salt).chain_update(secret).finalize().into()
}

impl FromStr for Record {
    type Err = TokenError;

    fn from_str(line: &str) -> Result<Self, TokenError> {
        let mut fields = line.split(':');
        let (Some(name), Some(scopes), Some(salt), Some(hash), None) =
            (fields.next(), fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Err(TokenError::Fields);
        };
        Ok(Self {
            name: name.parse()?,
            scopes: scopes.parse()?,
            salt: *decode(&BASE64, salt.as_bytes()).ok_or(TokenError::Salt)?,
            hash: *decode(&BASE64, hash.as_bytes()).ok_or(TokenError::Hash)?,
        })
    }
}

/// The line, without its end.
impl fmt::Display for Record {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base64 = |bytes| Base64Display::new(bytes, &BASE64);
        let Self { name, scopes, salt, hash } = self;
        write!(formatter, "{name}:{scopes}:{}:{}", base64(salt), base64(hash))
    }
}

/// Shows what is no secret, not even a salted one.
impl fmt::Debug for Record {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, scopes, .. } = self;
        let mut shown = formatter.debug_struct("Record");
        shown.field("name", name).field("scopes", scopes).finish_non_exhaustive()
    }
}

impl Tokens {
    /// The record of a token, if that is in force. Whether there is a token of that name shows in the time this takes; how much of
    /// its secret is right does not.
    pub fn verify(&self, token: &Token) -> Option<&Record> {
        self.get(token.name.as_str()).filter(|record| record.is_of(&token.secret))
    }

    /// The record of that name.
    pub fn get(&self, name: &str) -> Option<&Record> {
        self.records.get(name)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

/// A line for each record; empty lines and those that begin with `#` say nothing. White space at the end of a line is ignored.
impl FromStr for Tokens {
    type Err = TokensError;

    fn from_str(text: &str) -> Result<Self, TokensError> {
        let mut records = BTreeMap::new();
        for (line, text) in (1..).zip(text.lines()) {
            let failed = |cause| TokensError { line, cause };
            let Some(record) = line_of_record(text) else { continue };
            let record: Record = record.parse().map_err(failed)?;
            if let Some(record) = records.insert(record.name.clone(), record) {
                return Err(failed(TokenError::Repeated(record.name)));
            }
        }
        Ok(Self { records })
    }
}

/// What of a line has to be a record. `None` where it says nothing.
fn line_of_record(line: &str) -> Option<&str> {
    let line = line.trim_ascii_end();
    (!line.is_empty() && !line.starts_with('#')).then_some(line)
}

/// `text`, which is a list of records, without the one of that name. Everything else stays as it is.
pub fn without_record(text: &str, name: &TokenName) -> String {
    let is_of_name =
        |line: &&str| line_of_record(line).and_then(|record| record.split(':').next()) == Some(name.as_str());
    text.split_inclusive('\n').filter(|line| !is_of_name(line)).collect()
}

/// The token in the value of an `Authorization` field: the password of `Basic` (RFC 7617), which is what Nix sends of its netrc and
/// whose user name does not matter, or what follows `Bearer` (RFC 6750).
///
/// `None` when there is none: another scheme, damaged, or longer than [`AUTHORIZATION_LEN_MAX`].
pub fn presented(authorization: &[u8]) -> Option<Token> {
    if authorization.len() > AUTHORIZATION_LEN_MAX {
        return None;
    }
    let space = authorization.iter().position(|&byte| byte == b' ')?;
    let (scheme, credentials) = (&authorization[..space], authorization[space..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Token::parse(credentials).ok();
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let mut pair = Zeroizing::new([0; AUTHORIZATION_LEN_MAX]);
    let len = BASIC.decode_slice(credentials, pair.as_mut_slice()).ok()?;
    // The user name cannot have a colon.
    let colon = pair[..len].iter().position(|&byte| byte == b':')?;
    Token::parse(&pair[colon + 1..len]).ok()
}

/// The base64 of clients, some of which forget the padding.
const BASIC: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Exactly `LEN` bytes, or nothing. Wiped on every way out: they may be a secret.
fn decode<const LEN: usize>(engine: &GeneralPurpose, text: &[u8]) -> Option<Zeroizing<[u8; LEN]>> {
    let mut bytes = Zeroizing::new([0; LEN]);
    let len = engine.decode_slice(text, bytes.as_mut_slice()).ok()?;
    (len == LEN).then_some(bytes)
}

/// Whatever is taken for a token or a record is written back alike, and a token that is presented is the one that was sent.
#[cfg(any(test, fuzzing))]
pub fn fuzz_token(data: &[u8]) {
    if let Ok(token) = Token::parse(data) {
        assert_eq!(token.to_text().as_bytes(), data);
        let record = token.record(Scopes { read: true, write: false }, [7; SALT_LEN_BYTES]);
        let tokens: Tokens = record.to_string().parse().expect("a record is read back");
        assert_eq!(tokens.verify(&token), Some(&record));
        let basic = format!("Basic {}", BASE64.encode([b"user:", data].concat()));
        assert!(presented(basic.as_bytes()).is_some_and(|same| same.secret == token.secret));
    }
    if let Some(token) = presented(data) {
        let bearer = format!("bearer {}", *token.to_text());
        assert!(presented(bearer.as_bytes()).is_some_and(|same| same.name == token.name));
    }
    if let Ok(text) = str::from_utf8(data)
        && let Ok(tokens) = text.parse::<Tokens>()
    {
        let mut left = text.to_owned();
        for record in tokens.iter() {
            assert_eq!(record.to_string().parse().as_ref(), Ok(record));
            left = without_record(&left, &record.name);
        }
        assert_eq!(left.parse(), Ok(Tokens::default()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: [u8; SECRET_LEN_BYTES] = [7; SECRET_LEN_BYTES];
    const TEXT: &str = "ci.BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc";
    // SHA-256 of 16 bytes 9 and 32 bytes 7, as Python computes it.
    const LINE: &str = "ci:read,write:CQkJCQkJCQkJCQkJCQkJCQ==:mrbPvrLayLRwmJ8lE/jgvfoPfGt/XSaBJfKoS2sic1Q=";

    fn name(text: &str) -> TokenName {
        text.parse().unwrap()
    }

    fn token() -> Token {
        Token::new(name("ci"), &SECRET)
    }

    fn basic(user: &str, password: &str) -> String {
        format!("Basic {}", BASE64.encode(format!("{user}:{password}")))
    }

    #[test]
    fn a_token_and_its_record_are_what_the_first_lines_of_this_file_say() {
        assert_eq!(*token().to_text(), TEXT);
        let record = token().record("read,write".parse().unwrap(), [9; SALT_LEN_BYTES]);
        assert_eq!(record.to_string(), LINE);
        assert_eq!(LINE.parse(), Ok(record));
        let tokens: Tokens = LINE.parse().unwrap();
        assert!(tokens.verify(&Token::parse(TEXT.as_bytes()).unwrap()).is_some());
    }

    #[test]
    fn scopes_are_read_and_written_back() {
        for (text, read, write) in [("read", true, false), ("write", false, true), ("read,write", true, true)]
        {
            let scopes: Scopes = text.parse().unwrap();
            assert_eq!((scopes.include(Scope::Read), scopes.include(Scope::Write)), (read, write));
            assert_eq!(scopes.to_string(), text);
        }
        assert_eq!("write,read".parse::<Scopes>().unwrap().to_string(), "read,write");
        for text in ["", ",", "read,", "Read", "read,read", "read write", "all"] {
            assert_eq!(text.parse::<Scopes>(), Err(TokenError::Scopes), "{text:?}");
        }
    }

    #[test]
    fn names_have_no_character_that_means_something_elsewhere() {
        for text in ["a", "CI-7_x.example.org", &"n".repeat(TOKEN_NAME_LEN_MAX)] {
            assert_eq!(name(text).as_str(), text);
        }
        for text in ["", "a b", "a:b", "a#b", "ä", "a\n", &"n".repeat(TOKEN_NAME_LEN_MAX + 1)] {
            assert_eq!(text.parse::<TokenName>(), Err(TokenError::Name), "{text:?}");
        }
    }

    #[test]
    fn a_file_has_records_comments_and_empty_lines() {
        let other = Token::new(name("b.c"), &[8; 32]).record("read".parse().unwrap(), [0; 16]);
        let text = format!("# who\n\n{LINE} \r\n  \n{other}");
        let tokens: Tokens = text.parse().unwrap();
        assert_eq!(tokens.iter().map(|record| record.name.as_str()).collect::<Vec<_>>(), ["b.c", "ci"]);
        assert_eq!((tokens.len(), tokens.is_empty()), (2, false));
        assert!("# nobody\n".parse::<Tokens>().unwrap().is_empty());

        assert_eq!(without_record(&text, &name("ci")), format!("# who\n\n  \n{other}"));
        assert_eq!(without_record(&text, &name("b.c")), format!("# who\n\n{LINE} \r\n  \n"));
        assert_eq!(without_record(&text, &name("c")), text);
    }

    #[test]
    fn a_malformed_line_is_named_by_number_and_reason() {
        let salt = "CQkJCQkJCQkJCQkJCQkJCQ==";
        for (line, cause) in [
            ("ci", TokenError::Fields),
            (TEXT, TokenError::Fields),
            ("ci:read:AA==", TokenError::Fields),
            (&format!("{LINE}:"), TokenError::Fields),
            (&format!(" {LINE}"), TokenError::Name),
            (&LINE.replacen("ci", "", 1), TokenError::Name),
            (&LINE.replacen("read", "admin", 1), TokenError::Scopes),
            (&LINE.replacen(salt, "", 1), TokenError::Salt),
            (&LINE.replacen(salt, "CQkJ", 1), TokenError::Salt),
            (&LINE.replacen("==", "", 1), TokenError::Salt),
            (&LINE.replacen("=:", "", 1), TokenError::Fields),
            (&LINE[..LINE.len() - 1], TokenError::Hash),
            (&LINE.replacen("mrbP", "mr-P", 1), TokenError::Hash),
            (&LINE.replacen("mrbP", "", 1), TokenError::Hash),
        ] {
            let text = format!("# first\n{line}\n");
            assert_eq!(text.parse::<Tokens>(), Err(TokensError { line: 2, cause }), "{line:?}");
        }
        let error = format!("{LINE}\n\n{LINE}").parse::<Tokens>().unwrap_err();
        assert_eq!(error, TokensError { line: 3, cause: TokenError::Repeated(name("ci")) });
        assert_eq!(error.to_string(), "3: there is a line of the name ci already");
    }

    #[test]
    fn every_prefix_is_refused() {
        for end in 0..TEXT.len() {
            Token::parse(&TEXT.as_bytes()[..end]).unwrap_err();
        }
        for end in 0..LINE.len() {
            LINE[..end].parse::<Record>().unwrap_err();
        }
    }

    #[test]
    fn a_token_comes_as_the_password_of_basic_or_behind_bearer() {
        for value in [
            basic("", TEXT),
            basic("nix", TEXT),
            basic("nix", TEXT).replacen("Basic ", "bAsIc   ", 1),
            basic("nix", TEXT).trim_end_matches('=').to_owned(),
            format!("Bearer {TEXT}"),
            format!("BEARER  {TEXT}"),
        ] {
            let token = presented(value.as_bytes()).unwrap_or_else(|| panic!("{value}"));
            assert_eq!(*token.to_text(), TEXT);
        }
        for value in [
            String::new(),
            TEXT.to_owned(),
            "Basic".to_owned(),
            "Basic ".to_owned(),
            format!("Basic {TEXT}"),
            format!("Basic {}", BASE64.encode(TEXT)),
            basic(TEXT, ""),
            basic("nix", &TEXT[..TEXT.len() - 1]),
            basic("a:b", TEXT),
            format!("Basic  {}!", &basic("nix", TEXT)[6..]),
            format!("Bearer{TEXT}"),
            format!("Bearer {TEXT} {TEXT}"),
            format!("Digest {TEXT}"),
            basic(&"u".repeat(AUTHORIZATION_LEN_MAX), TEXT),
            format!("Bearer {}{TEXT}", " ".repeat(AUTHORIZATION_LEN_MAX)),
        ] {
            assert!(presented(value.as_bytes()).is_none(), "{value}");
        }
    }

    #[test]
    fn secrets_are_neither_shown_nor_left_in_memory() {
        fn is_wiped_on_drop<T: zeroize::ZeroizeOnDrop>(_: &T) {}
        is_wiped_on_drop(&token().secret);
        is_wiped_on_drop(&token().to_text());
        assert_eq!(format!("{:?}", token()), r#"Token { name: "ci", .. }"#);
        let tokens: Tokens = LINE.parse().unwrap();
        assert!(!format!("{tokens:?}").contains("mrbP"), "{tokens:?}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_and_verifies(
            text in "[A-Za-z0-9._-]{1,64}", secret: [u8; 32], salt: [u8; 16], scopes in "read|write|read,write",
        ) {
            let token = Token::new(name(&text), &secret);
            let record = token.record(scopes.parse().unwrap(), salt);
            prop_assert_eq!(record.to_string().parse(), Ok(record.clone()));
            let tokens: Tokens = record.to_string().parse().unwrap();
            for value in [basic(&text, &token.to_text()), format!("bearer {}", *token.to_text())] {
                prop_assert_eq!(tokens.verify(&presented(value.as_bytes()).unwrap()), Some(&record));
            }
        }

        #[test]
        fn no_other_token_verifies(at in 0..TEXT.len(), character in "[A-Za-z0-9._-]") {
            let mut text = TEXT.to_owned();
            text.replace_range(at..=at, &character);
            let tokens: Tokens = LINE.parse().unwrap();
            let verified = Token::parse(text.as_bytes()).is_ok_and(|token| tokens.verify(&token).is_some());
            prop_assert_eq!(verified, text == TEXT);
        }

        #[test]
        fn no_error_repeats_salt_or_hash(at in 0..LINE.len(), characters in "[A-Za-z0-9+/ :=]{0,2}") {
            let mut text = LINE.to_owned();
            text.replace_range(at..=at, &characters);
            if let Err(error) = text.parse::<Tokens>() {
                let shown = format!("{error} {error:?}");
                for start in "ci:read,write:".len()..LINE.len() - 4 {
                    prop_assert!(!shown.contains(&LINE[start..start + 4]), "{}", shown);
                }
            }
        }

        #[test]
        fn what_is_presented_is_what_its_naive_twin_finds(
            scheme in "Basic|basic|Bearer|Negotiate", user in "[a-c:]{0,3}", at in 0..TEXT.len() + 1, junk in "[.:=]?",
        ) {
            let mut password = TEXT.to_owned();
            password.insert_str(at, &junk);
            let pair = format!("{user}:{password}");
            let value = match scheme.as_str() {
                "Bearer" => format!("{scheme} {password}"),
                _ => format!("{scheme} {}", BASE64.encode(&pair)),
            };
            // A user name ends at the first colon, a token's name at the last dot.
            let expected = match scheme.to_lowercase().as_str() {
                "basic" => Some(pair.splitn(2, ':').last().unwrap().to_owned()),
                "bearer" => Some(password),
                _ => None,
            };
            let expected = expected.filter(|text| {
                let Some((name, secret)) = text.rsplit_once('.') else { return false };
                !name.is_empty() && !name.contains([':', '=']) && secret == &TEXT[3..]
            });
            let found = presented(value.as_bytes()).map(|token| token.to_text().to_string());
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, text: String) {
            let _ = Token::parse(&bytes);
            let _ = presented(&bytes);
            let _ = text.parse::<Tokens>();
        }
    }
}
