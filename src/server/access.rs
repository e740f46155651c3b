//! Who may do what: tokens against what a request carries.
//!
//! What everybody may do costs nothing. A token costs one hash, right or wrong. Who sends wrong ones is soon told to come later, so
//! that the log stays readable; a right token always passes, because many people may share the address of a proxy.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::config::AccessConfig;
use super::figures::{NodeFigures, NodeLimit};
use super::proxy::TrustedProxies;
use crate::codec::http::Status;
use crate::codec::http::request::Request;
use crate::codec::http::response::Fields;
pub use crate::codec::token::Scope;
use crate::codec::token::{TokenName, presented};
use crate::limits::{FAILING_CLIENTS_MAX, FAILURE_WINDOW, REFUSALS_LOGGED_MAX, WRONG_TOKENS_MAX};
use crate::ring::admission::client_of;
use crate::ring::service::{Caller, Reply};
use crate::tally::Tally as _;

/// What one worker knows of who may do what.
#[derive(Debug)]
pub struct Access {
    config: AccessConfig,
    proxies: TrustedProxies,
    failures: Failures,
    figures: Arc<NodeFigures>,
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Refused {
    /// It has no token.
    NoToken,
    /// It has something else than a token that is in force. The name, if there is a token of that name.
    WrongToken(Option<TokenName>),
    /// It has a token that is good for something else.
    OtherScope(TokenName),
}

impl Access {
    /// Access as it is configured, with these proxies before it.
    pub fn new(config: AccessConfig, proxies: TrustedProxies, figures: Arc<NodeFigures>) -> Self {
        Self { config, proxies, failures: Failures::new(Instant::now()), figures }
    }

    /// From now on this is in force.
    pub fn change(&mut self, config: AccessConfig, proxies: TrustedProxies) {
        self.config = config;
        self.proxies = proxies;
    }

    /// Whether who has no token may not even read.
    pub fn is_private(&self) -> bool {
        self.config.is_private
    }

    /// Called about once a second.
    pub fn tick(&mut self) {
        self.failures.tick();
    }

    /// Whether `request` may do something of that scope; if not, what it is answered.
    pub fn check(&mut self, caller: &Caller<'_>, request: &Request<'_>, scope: Scope) -> Result<(), Reply> {
        self.permit(request.authorization, scope).map_err(|refused| {
            // Who has gone may have come from anywhere.
            let peer = caller.address().ok();
            let client = peer.and_then(|peer| self.proxies.client_address(peer, request.x_forwarded_for));
            self.refuse(&refused, client, scope, Instant::now())
        })
    }

    /// Whether somebody with this `Authorization` may do something of that scope.
    fn permit(&self, authorization: Option<&[u8]>, scope: Scope) -> Result<(), Refused> {
        let is_for_everybody = match scope {
            Scope::Read => !self.config.is_private,
            Scope::Write => self.config.is_upload_anonymous,
        };
        if is_for_everybody {
            return Ok(());
        }
        let Some(authorization) = authorization else { return Err(Refused::NoToken) };
        let Some(token) = presented(authorization) else { return Err(Refused::WrongToken(None)) };
        match self.config.tokens.verify(&token) {
            Some(record) if record.scopes.include(scope) => Ok(()),
            Some(record) => Err(Refused::OtherScope(record.name.clone())),
            // A name that nobody gave may be a secret that got into the wrong place.
            None => {
                let known = self.config.tokens.get(token.name().as_str());
                Err(Refused::WrongToken(known.map(|record| record.name.clone())))
            }
        }
    }

    /// Counts a refusal, logs it unless it is for want of any token or too many were, and says what to answer.
    fn refuse(&mut self, refused: &Refused, client: Option<IpAddr>, scope: Scope, now: Instant) -> Reply {
        let is_wrong = matches!(refused, Refused::WrongToken(_));
        let wait = if is_wrong { self.failures.count_wrong(client, now) } else { None };
        let who = || client.map_or("somebody".to_owned(), |address| address.to_string());
        let why = match refused {
            Refused::NoToken => None,
            Refused::WrongToken(None) => Some("an unknown token".to_owned()),
            Refused::WrongToken(Some(name)) => Some(format!("a wrong secret for token {name}")),
            Refused::OtherScope(name) => Some(format!("token {name} may not {}", verb(scope))),
        };
        match why {
            // Many a client sends its token only when it was asked for one.
            None => debug!("asked {} for a token to {}", who(), verb(scope)),
            Some(why) if self.failures.is_worth_a_line(wait.is_some(), now) => {
                warn!("refused to let {} {}: {why}", who(), verb(scope));
            }
            Some(_) => {}
        }
        match (refused, wait) {
            (_, Some(wait)) => {
                self.figures.limits[NodeLimit::WrongTokens as usize].add(1);
                let seconds = u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
                let text = "too many wrong tokens came from your address; try again later\n";
                Reply::text_with(Status::ServiceUnavailable, Fields::new().retry_after(seconds), text)
            }
            (Refused::NoToken, None) => unauthorized(format!(
                "a token is needed to {}: put `machine HOST login NAME password TOKEN` into Nix's netrc-file\n",
                verb(scope)
            )),
            (Refused::WrongToken(_), None) => {
                unauthorized("this token is not in force here; it may have been revoked\n".to_owned())
            }
            (Refused::OtherScope(name), None) => {
                let scope_name = if scope == Scope::Read { "read" } else { "write" };
                let verb = verb(scope);
                Reply::text(
                    Status::Forbidden,
                    format!("token {name} may not {verb}: it has no scope {scope_name}\n"),
                )
            }
        }
    }
}

fn verb(scope: Scope) -> &'static str {
    match scope {
        Scope::Read => "read",
        Scope::Write => "upload",
    }
}

/// Nix sends its netrc without being asked; others wait for the challenge.
fn unauthorized(text: String) -> Reply {
    let fields = Fields::new().www_authenticate("Basic realm=\"narwire\", Bearer realm=\"narwire\"");
    Reply::text_with(Status::Unauthorized, fields, text)
}

/// The failures of one window of time.
#[derive(Debug)]
struct Failures {
    began: Instant,
    /// Wrong tokens; those whose address nobody knows are one client.
    wrong: HashMap<Option<IpAddr>, u32>,
    /// Wrong tokens of all for whom there was no place.
    wrong_of_others: u32,
    logged: u32,
    /// Refusals beside those that were logged.
    unlogged: u64,
}

impl Failures {
    fn new(now: Instant) -> Self {
        Self { began: now, wrong: HashMap::new(), wrong_of_others: 0, logged: 0, unlogged: 0 }
    }

    /// Counts a wrong token. If that was one too many, how long until it is forgotten.
    fn count_wrong(&mut self, address: Option<IpAddr>, now: Instant) -> Option<Duration> {
        self.roll(now);
        let client = address.map(client_of);
        let has_place = self.wrong.len() < FAILING_CLIENTS_MAX || self.wrong.contains_key(&client);
        let count = if has_place { self.wrong.entry(client).or_default() } else { &mut self.wrong_of_others };
        *count = count.saturating_add(1);
        (*count > WRONG_TOKENS_MAX).then(|| FAILURE_WINDOW.saturating_sub(now.duration_since(self.began)))
    }

    /// Whether to log a refusal; else it is counted.
    fn is_worth_a_line(&mut self, is_one_too_many: bool, now: Instant) -> bool {
        self.roll(now);
        let is_worth = !is_one_too_many && self.logged < REFUSALS_LOGGED_MAX;
        if is_worth {
            self.logged += 1;
        } else {
            self.unlogged += 1;
        }
        is_worth
    }

    /// Nobody else may come to say what was not logged.
    fn tick(&mut self) {
        if self.unlogged > 0 {
            self.roll(Instant::now());
        }
    }

    /// Begins another window if this one is over.
    fn roll(&mut self, now: Instant) {
        if now.duration_since(self.began) < FAILURE_WINDOW {
            return;
        }
        if self.unlogged > 0 {
            warn!("refused {} more requests since then, for want of a right token", self.unlogged);
        }
        *self = Self::new(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::token::Token;
    use crate::ring::service::ReplyBody;

    const REALM: &str = "WWW-Authenticate: Basic realm=\"narwire\", Bearer realm=\"narwire\"\r\n";

    fn token(name: &str, secret: u8) -> Token {
        Token::new(name.parse().unwrap(), &[secret; 32])
    }

    fn bearer(name: &str, secret: u8) -> String {
        format!("Bearer {}", *token(name, secret).to_text())
    }

    /// Tokens `r`, `w` and `rw` with the secrets 1, 2 and 3.
    fn access(is_private: bool, is_upload_anonymous: bool) -> Access {
        let records =
            [("r", "read", 1), ("w", "write", 2), ("rw", "read,write", 3)].map(|(name, scopes, secret)| {
                format!("{}\n", token(name, secret).record(scopes.parse().unwrap(), [secret; 16]))
            });
        let tokens = Arc::new(records.concat().parse().unwrap());
        let config = AccessConfig { token_file: None, tokens, is_upload_anonymous, is_private };
        Access::new(config, TrustedProxies::new(Arc::default()), Arc::default())
    }

    fn text(reply: &Reply) -> (u16, String) {
        let ReplyBody::Bytes(body) = &reply.body else { panic!("no text") };
        let text = [reply.fields.as_ref(), body].concat();
        (reply.status.code(), String::from_utf8(text).unwrap())
    }

    fn address(text: &str) -> Option<IpAddr> {
        text.parse().ok()
    }

    #[test]
    fn who_may_what() {
        use Refused::{NoToken, OtherScope, WrongToken};
        use Scope::{Read, Write};
        let name = |text: &str| text.parse::<TokenName>().unwrap();
        let (open, closed) = (access(false, false), access(true, false));
        for (access, authorization, scope, expected) in [
            (&open, None, Read, Ok(())),
            (&open, Some("nonsense".to_owned()), Read, Ok(())),
            (&open, Some(bearer("r", 9)), Read, Ok(())),
            (&access(false, true), None, Write, Ok(())),
            (&access(false, true), Some(bearer("w", 9)), Write, Ok(())),
            (&access(true, true), None, Write, Ok(())),
            (&access(true, true), None, Read, Err(NoToken)),
            (&open, None, Write, Err(NoToken)),
            (&open, Some(bearer("w", 2)), Write, Ok(())),
            (&open, Some(bearer("rw", 3)), Write, Ok(())),
            (&open, Some(bearer("r", 1)), Write, Err(OtherScope(name("r")))),
            (&open, Some(bearer("w", 1)), Write, Err(WrongToken(Some(name("w"))))),
            (&open, Some(bearer("r", 2)), Write, Err(WrongToken(Some(name("r"))))),
            (&open, Some(bearer("eve", 2)), Write, Err(WrongToken(None))),
            (&open, Some("nonsense".to_owned()), Write, Err(WrongToken(None))),
            (&open, Some(String::new()), Write, Err(WrongToken(None))),
            (&closed, None, Read, Err(NoToken)),
            (&closed, Some(bearer("r", 1)), Read, Ok(())),
            (&closed, Some(bearer("rw", 3)), Read, Ok(())),
            (&closed, Some(bearer("w", 2)), Read, Err(OtherScope(name("w")))),
            (&closed, Some(bearer("w", 2)), Write, Ok(())),
            (&closed, Some(bearer("r", 1)), Write, Err(OtherScope(name("r")))),
        ] {
            let found = access.permit(authorization.as_ref().map(String::as_bytes), scope);
            assert_eq!(found, expected, "{authorization:?} {scope:?}");
        }
    }

    #[test]
    fn other_tokens_take_the_place_of_all() {
        let mut access = access(false, false);
        let other = token("other", 7).record("write".parse().unwrap(), [0; 16]).to_string();
        let tokens = Arc::new(other.parse().unwrap());
        let config = AccessConfig { tokens, ..AccessConfig::default() };
        access.change(config, TrustedProxies::new(Arc::default()));
        let permit = |authorization: String| access.permit(Some(authorization.as_bytes()), Scope::Write);
        assert_eq!(permit(bearer("other", 7)), Ok(()));
        assert_eq!(permit(bearer("w", 2)), Err(Refused::WrongToken(None)));
    }

    #[test]
    fn each_refusal_has_its_status_and_its_mend() {
        let mut access = access(true, false);
        let now = Instant::now();
        let name: TokenName = "ci".parse().unwrap();
        for (refused, scope, status, part) in [
            (Refused::NoToken, Scope::Read, 401, "to read: put `machine HOST"),
            (Refused::NoToken, Scope::Write, 401, "to upload: put `machine HOST"),
            (Refused::WrongToken(None), Scope::Write, 401, "revoked"),
            (Refused::WrongToken(Some(name.clone())), Scope::Write, 401, "revoked"),
            (
                Refused::OtherScope(name.clone()),
                Scope::Write,
                403,
                "token ci may not upload: it has no scope write",
            ),
            (Refused::OtherScope(name), Scope::Read, 403, "token ci may not read: it has no scope read"),
        ] {
            let (found, shown) = text(&access.refuse(&refused, address("192.0.2.1"), scope, now));
            assert_eq!((found, shown.starts_with(REALM)), (status, status == 401), "{refused:?}: {shown}");
            assert!(shown.contains(part) && shown.contains("no-store"), "{refused:?}: {shown}");
        }
    }

    #[test]
    fn too_many_wrong_tokens_are_told_to_come_later() {
        let mut access = access(true, false);
        let now = Instant::now();
        let mut wrong = |client, after: Duration| {
            let refused = Refused::WrongToken(None);
            text(&access.refuse(&refused, address(client), Scope::Read, now + after))
        };
        for _ in 0..WRONG_TOKENS_MAX {
            assert_eq!(wrong("192.0.2.1", Duration::ZERO).0, 401);
        }
        let (status, shown) = wrong("192.0.2.1", Duration::from_secs(20));
        assert_eq!(status, 503);
        assert!(shown.contains("Retry-After: 40\r\n"), "{shown}");
        assert_eq!(wrong("192.0.2.2", Duration::from_secs(20)).0, 401, "others are not concerned");
        assert_eq!(wrong("192.0.2.1", FAILURE_WINDOW).0, 401, "it is forgotten");

        // Whoever sends none, or a good one for something else, guesses at nothing.
        for refused in [Refused::NoToken, Refused::OtherScope("ci".parse().unwrap())] {
            for _ in 0..2 * WRONG_TOKENS_MAX {
                let reply = access.refuse(&refused, address("192.0.2.3"), Scope::Write, now);
                assert_ne!(reply.status, Status::ServiceUnavailable);
            }
        }
    }

    #[test]
    fn who_is_asked_for_a_token_takes_no_line_from_a_wrong_one() {
        let mut access = access(true, false);
        let now = Instant::now();
        for _ in 0..2 * REFUSALS_LOGGED_MAX {
            access.refuse(&Refused::NoToken, address("192.0.2.1"), Scope::Read, now);
        }
        assert_eq!((access.failures.logged, access.failures.unlogged), (0, 0));
        access.refuse(&Refused::WrongToken(None), address("192.0.2.1"), Scope::Read, now);
        assert_eq!(access.failures.logged, 1);
    }

    #[test]
    fn an_ipv6_client_is_a_prefix() {
        assert_eq!(address("2001:db8:1:2:3:4:5:6").map(client_of), address("2001:db8:1:2::"));
        assert_eq!(address("192.0.2.7").map(client_of), address("192.0.2.7"));
    }

    #[test]
    fn memory_is_bounded_and_who_comes_late_shares() {
        let now = Instant::now();
        let mut failures = Failures::new(now);
        let client = |index: usize| Some(IpAddr::from(u32::try_from(index).unwrap().to_be_bytes()));
        for index in 0..FAILING_CLIENTS_MAX {
            assert_eq!(failures.count_wrong(client(index), now), None);
        }
        for index in 0..WRONG_TOKENS_MAX as usize {
            assert_eq!(failures.count_wrong(client(FAILING_CLIENTS_MAX + index), now), None);
        }
        assert!(failures.count_wrong(client(2 * FAILING_CLIENTS_MAX), now).is_some());
        assert_eq!(failures.count_wrong(client(0), now), None, "who has a place keeps it");
        assert_eq!(failures.wrong.len(), FAILING_CLIENTS_MAX);
    }

    #[test]
    fn few_refusals_are_logged_and_the_rest_is_counted() {
        let now = Instant::now();
        let mut failures = Failures::new(now);
        let worth = (0..1000).filter(|_| failures.is_worth_a_line(false, now)).count();
        assert_eq!(worth, REFUSALS_LOGGED_MAX as usize);
        assert_eq!(failures.unlogged, 1000 - worth as u64);
        assert!(!failures.is_worth_a_line(true, now + FAILURE_WINDOW), "one too many is no news");
        assert!(failures.is_worth_a_line(false, now + FAILURE_WINDOW));
    }

    proptest! {
        /// The twin keeps every failure and looks through all of them each time.
        #[test]
        fn counts_as_its_naive_twin(
            events in prop::collection::vec((0..2_u8, prop_oneof![99 => Just(0), 1 => 0..70_u64]), 0..800),
        ) {
            let start = Instant::now();
            let mut failures = Failures::new(start);
            let (mut now, mut window) = (start, start);
            let mut all: Vec<(u8, Instant)> = Vec::new();
            for (who, pause_s) in events {
                now += Duration::from_secs(pause_s);
                if now >= window + FAILURE_WINDOW {
                    window = now;
                }
                all.push((who, now));
                let count = all.iter().filter(|(other, at)| *other == who && *at >= window).count();
                let expected = count > WRONG_TOKENS_MAX as usize;
                let found = failures.count_wrong(Some(IpAddr::from([192, 0, 2, who])), now);
                prop_assert_eq!(found.is_some(), expected);
                if let Some(wait) = found {
                    prop_assert_eq!(now + wait, window + FAILURE_WINDOW);
                }
            }
        }
    }
}
