//! `narwire token`: who may read and upload, as a file of salted hashes.

use std::fmt::Write as _;
use std::path::Path;

use zeroize::Zeroizing;

use super::arguments::{TokenCommand, TokenCreateArguments, TokenListArguments, TokenRevokeArguments};
use crate::codec::token::{SALT_LEN_BYTES, SECRET_LEN_BYTES, Scope, Token};
use crate::store::tokens::{self, TokenFileError};

/// Why the file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum TokenCommandError {
    /// See its cause.
    #[error(transparent)]
    File(#[from] TokenFileError),
    /// The kernel gives no random bytes.
    #[error("the system gives no random bytes: {0}")]
    NoEntropy(getrandom::Error),
}

/// What to print. A secret is wiped from memory when it was.
pub struct Printed {
    /// On standard error: explanations.
    pub explanation: String,
    /// On standard output: what a script would take.
    pub result: Zeroizing<String>,
}

/// Does it.
pub fn run(command: &TokenCommand) -> Result<Printed, TokenCommandError> {
    match command {
        TokenCommand::Create(arguments) => create(arguments),
        TokenCommand::List(TokenListArguments { file }) => list(file),
        TokenCommand::Revoke(arguments) => revoke(arguments),
    }
}

fn create(arguments: &TokenCreateArguments) -> Result<Printed, TokenCommandError> {
    let TokenCreateArguments { file, name, scope } = arguments;
    let mut secret = Zeroizing::new([0; SECRET_LEN_BYTES]);
    let mut salt = [0; SALT_LEN_BYTES];
    getrandom::fill(&mut *secret).map_err(TokenCommandError::NoEntropy)?;
    getrandom::fill(&mut salt).map_err(TokenCommandError::NoEntropy)?;
    let token = Token::new(name.clone(), &secret);
    tokens::append(file, &token.record(*scope, salt))?;
    let token = token.to_text();
    let mut result = Zeroizing::new(String::with_capacity(token.len() + 1));
    result.push_str(&token);
    result.push('\n');
    Ok(Printed { explanation: explain(arguments), result })
}

/// How the token that follows is used, without showing it: what is explained often ends in a log.
fn explain(TokenCreateArguments { file, name, scope }: &TokenCreateArguments) -> String {
    let what = match (scope.include(Scope::Read), scope.include(Scope::Write)) {
        (true, true) => "read and upload",
        (true, false) => "read",
        (false, _) => "upload",
    };
    let (file, name) = (file.display(), name.as_str());
    format!(
        "Token {name} may {what}. It is shown this once; {file} has a salted hash of it.\n\
         The server must be able to read that file; since it has no secret, `chmod 644` does no harm.\n\
         A server that runs takes it up on SIGHUP (systemctl reload narwire).\n\
         Nix sends it when its netrc-file (/etc/nix/netrc) has this line, with the host of the cache and the token:\n\
         \n  machine CACHE-HOST login {name} password TOKEN\n\n\
         curl: --user {name}:TOKEN, or --oauth2-bearer TOKEN. The token:\n"
    )
}

fn list(file: &Path) -> Result<Printed, TokenCommandError> {
    let tokens = tokens::read(file)?;
    let width = tokens.iter().map(|record| record.name.as_str().len()).max().unwrap_or(0);
    let mut result = Zeroizing::new(String::new());
    for record in tokens.iter() {
        // Writing to a String cannot fail.
        let _ = writeln!(result, "{:width$}  {}", record.name.as_str(), record.scopes);
    }
    let explanation =
        if tokens.is_empty() { format!("{} has no token\n", file.display()) } else { String::new() };
    Ok(Printed { explanation, result })
}

fn revoke(TokenRevokeArguments { file, name }: &TokenRevokeArguments) -> Result<Printed, TokenCommandError> {
    tokens::remove(file, name)?;
    let explanation = format!(
        "Token {name} is revoked. A server that runs takes that up on SIGHUP (systemctl reload narwire).\n"
    );
    Ok(Printed { explanation, result: Zeroizing::new(String::new()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create_in(file: &Path, name: &str, scope: &str) -> Result<Printed, TokenCommandError> {
        let arguments = TokenCreateArguments {
            file: file.into(),
            name: name.parse().unwrap(),
            scope: scope.parse().unwrap(),
        };
        run(&TokenCommand::Create(arguments))
    }

    fn printed(command: &TokenCommand) -> String {
        run(command).unwrap().result.to_string()
    }

    #[test]
    fn what_is_created_verifies_is_listed_and_can_be_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokens");
        let token = create_in(&file, "ci", "write,read").unwrap().result;
        create_in(&file, "laptop", "read").unwrap();
        let shown = Token::parse(token.strip_suffix('\n').unwrap().as_bytes()).unwrap();
        let record = tokens::read(&file).unwrap().verify(&shown).unwrap().clone();
        assert!(record.scopes.include(Scope::Read) && record.scopes.include(Scope::Write));

        let list = TokenCommand::List(TokenListArguments { file: file.clone() });
        assert_eq!(printed(&list), "ci      read,write\nlaptop  read\n");
        let revoke =
            TokenCommand::Revoke(TokenRevokeArguments { file: file.clone(), name: "ci".parse().unwrap() });
        assert_eq!(printed(&revoke), "");
        assert_eq!(printed(&list), "laptop  read\n");
        assert!(tokens::read(&file).unwrap().verify(&shown).is_none());
    }

    #[test]
    fn the_explanation_shows_how_to_use_the_token_and_not_the_token() {
        let folder = tempfile::tempdir().unwrap();
        let Printed { explanation, result } =
            create_in(&folder.path().join("tokens"), "ci", "write").unwrap();
        assert!(explanation.contains("machine CACHE-HOST login ci password TOKEN"), "{explanation}");
        assert!(explanation.contains("may upload") && explanation.contains("SIGHUP"), "{explanation}");
        let secret = result.trim_ascii_end().rsplit_once('.').unwrap().1;
        assert!(!explanation.contains(secret), "{explanation}");
    }

    #[test]
    fn two_tokens_differ() {
        let folder = tempfile::tempdir().unwrap();
        let token = |file: &str| create_in(&folder.path().join(file), "ci", "read").unwrap().result;
        assert_ne!(token("a"), token("b"));
    }
}
