//! A binary cache elsewhere, over HTTP: asks it what it has, and puts files into it. Tries again what may succeed, unless it is only
//! watched ([`Cache::fetch`]).
//!
//! Blocking; one value for all threads. Connections are kept and used again.

use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ureq::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, LOCATION, RETRY_AFTER};
use ureq::http::{HeaderMap, HeaderValue, Method, Request, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, SendBody, Timeout};

use super::address::Address;
use super::credentials::Authorization;
use super::hosts::ask_files_and_dns_alone;
use super::retry::{self, Verdict};
use crate::codec::cache_info::CacheInfo;
use crate::codec::plain::is_plain;
use crate::codec::store_path::StoreDir;
use crate::limits::{
    CACHE_INFO_LEN_MAX, PUSH_ANSWER_LEN_MAX, PUSH_ANSWER_TIMEOUT, PUSH_CONNECT_TIMEOUT, PUSH_EXPECT_LEN_MIN,
    PUSH_EXPECT_TIMEOUT, PUSH_FAILURES_IN_A_ROW_MAX, PUSH_JOBS_MAX, PUSH_QUERIES_MAX, PUSH_STALL_TIMEOUT,
};
use crate::store::now_s;

/// A cache that can be uploaded to.
pub struct Cache {
    agent: Agent,
    address: Address,
    authorization: Option<HeaderValue>,
    /// Requests that failed however often they were tried, since the last one that was answered.
    failures_in_a_row: AtomicU32,
    /// How long is waited for the answer to a question.
    answer_timeout: Duration,
}

/// A kind of file of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `nix-cache-info`.
    CacheInfo,
    /// A narinfo.
    NarInfo,
    /// A NAR, however it is compressed.
    Nar,
}

/// Waits between two tries, and says for what; false when somebody has interrupted it.
pub type Wait<'a> = dyn Fn(Duration, &ClientError) -> bool + 'a;

/// What can be sent more than once.
pub trait Upload {
    /// Length in bytes.
    fn len_bytes(&self) -> u64;
    /// From the beginning.
    fn open(&mut self) -> io::Result<Box<dyn Read + '_>>;
}

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no connection to the cache, or none that can be trusted.
    #[error("cannot reach {address}: {cause}")]
    Unreachable {
        /// The cache.
        address: String,
        /// In words.
        cause: String,
        /// Whether a later try may succeed.
        is_transient: bool,
    },
    /// The connection ended before the answer.
    #[error("{method} {name}: {cause}")]
    Broken {
        /// Of the request.
        method: Method,
        /// The file.
        name: String,
        /// In words.
        cause: String,
    },
    /// The cache wants to know who one is, or does not like the answer.
    #[error(
        "{address} wants to know who asks ({answer}): name a file with a token with --token-file, put a login into the URL, or into a netrc file"
    )]
    Unauthorized {
        /// The cache.
        address: String,
        /// Status and reason.
        answer: Answer,
    },
    /// The cache knows who one is, or does not care, and does not want it.
    #[error(
        "{method} {name} is not allowed: {answer}; has the token the right to, as `narwire token create --scope read,write` gives it?"
    )]
    Forbidden {
        /// Of the request.
        method: Method,
        /// The file.
        name: String,
        /// What was said.
        answer: Answer,
    },
    /// Any other answer that is none that was hoped for.
    #[error("{method} {name}: {answer}")]
    Answered {
        /// Of the request.
        method: Method,
        /// The file.
        name: String,
        /// What was said.
        answer: Answer,
    },
    /// One time too many.
    #[error("{0}; {PUSH_FAILURES_IN_A_ROW_MAX} requests in a row have failed, however often they were tried")]
    TooOften(Box<ClientError>),
    /// What was to be sent cannot be read.
    #[error("cannot read the encoded NAR: {0}")]
    Source(io::Error),
    /// There is something else in its place.
    #[error("{0} is no binary cache: its nix-cache-info says no StoreDir")]
    NoCache(String),
    /// Its paths are named differently, and it would refuse ours, or spoil itself with them.
    #[error("{address} is for the store directory {theirs}, and this store's is {ours}")]
    StoreDirDiffers {
        /// The cache.
        address: String,
        /// Its.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// Somebody wants it to end.
    #[error("interrupted")]
    Interrupted,
}

/// What a cache has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The code.
    pub status: u16,
    /// The first line of what it said, or the customary name of the code; may be empty.
    pub said: String,
    /// How long it wants to be left alone.
    pub retry_after: Option<Duration>,
}

/// Certificates that vouch for caches beside, or instead of, those of the system.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the certificates in {path} (NIX_SSL_CERT_FILE): {cause}")]
pub struct CertificatesError {
    path: String,
    cause: String,
}

impl Cache {
    /// The cache at this address. Nothing is asked yet. With a `certificate_file`, only certificates in it vouch for the cache, else
    /// those that the system trusts.
    pub fn new(
        address: Address,
        authorization: Option<&Authorization>,
        certificate_file: Option<&Path>,
    ) -> Result<Self, CertificatesError> {
        let roots = certificate_file.map_or(Ok(RootCerts::PlatformVerifier), read_certificates)?;
        let connections = PUSH_JOBS_MAX + PUSH_QUERIES_MAX;
        ask_files_and_dns_alone();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // A body can only be sent once, and nobody else is to get the credentials.
            .max_redirects(0)
            .user_agent(concat!("narwire/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("")
            .max_idle_connections(connections)
            .max_idle_connections_per_host(connections)
            .timeout_connect(Some(PUSH_CONNECT_TIMEOUT))
            .timeout_resolve(Some(PUSH_CONNECT_TIMEOUT))
            .timeout_await_100(Some(PUSH_EXPECT_TIMEOUT))
            .timeout_per_read(Some(PUSH_STALL_TIMEOUT))
            .timeout_per_write(Some(PUSH_STALL_TIMEOUT))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .build();
        // The file of a token was looked through for what no field can hold, and base 64 has nothing of it.
        let authorization = authorization.and_then(|authorization| {
            let mut value = HeaderValue::from_str(authorization).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        Ok(Self {
            agent: config.new_agent(),
            address,
            authorization,
            failures_in_a_row: AtomicU32::new(0),
            answer_timeout: PUSH_ANSWER_TIMEOUT,
        })
    }

    /// The same, which is not waited for longer than this when it is asked something.
    #[must_use]
    pub fn answering_within(self, answer_timeout: Duration) -> Self {
        Self { answer_timeout, ..self }
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Whether it has a file of this name.
    pub fn has(&self, name: &str, wait: &Wait<'_>) -> Result<bool, ClientError> {
        self.persist(wait, || {
            let response = self.ask(Method::HEAD, name, HeaderMap::new(), SendBody::none())?;
            self.judge(Method::HEAD, name, response).map(|found| found.is_some())
        })
    }

    /// What is in a file, if there is such a file; of one longer than `len_max` bytes, the beginning. One try.
    pub fn fetch(&self, name: &str, len_max: u64) -> Result<Option<String>, ClientError> {
        let response = self.ask(Method::GET, name, HeaderMap::new(), SendBody::none())?;
        let Some(mut body) = self.judge(Method::GET, name, response)? else { return Ok(None) };
        let mut bytes = Vec::new();
        let read = body.as_reader().take(len_max).read_to_end(&mut bytes);
        read.map_err(|error| self.failure(Method::GET, name, &error.into()))?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Puts a file of this name into it.
    pub fn put(
        &self,
        name: &str,
        kind: Kind,
        upload: &mut dyn Upload,
        wait: &Wait<'_>,
    ) -> Result<(), ClientError> {
        let len = upload.len_bytes();
        self.persist(wait, || {
            let mut fields = HeaderMap::new();
            fields.insert(CONTENT_TYPE, HeaderValue::from_static(kind.content_type()));
            fields.insert(CONTENT_LENGTH, HeaderValue::from(len));
            if len >= PUSH_EXPECT_LEN_MIN {
                fields.insert(EXPECT, HeaderValue::from_static("100-continue"));
            }
            let mut source = Source { reader: upload.open().map_err(ClientError::Source)?, error: None };
            let response = self.ask(Method::PUT, name, fields, SendBody::from_reader(&mut source));
            // The failure of the connection is only its consequence.
            if let Some(error) = source.error {
                return Err(ClientError::Source(error));
            }
            self.judge(Method::PUT, name, response?).map(drop)
        })
    }

    /// Whether it is a cache for this store directory. One that is empty is made one, as Nix does, unless it `is_rehearsal`.
    pub fn greet(
        &self,
        store_dir: &StoreDir,
        is_rehearsal: bool,
        wait: &Wait<'_>,
    ) -> Result<(), ClientError> {
        const NAME: &str = "nix-cache-info";
        let Some(text) = self.persist(wait, || self.fetch(NAME, CACHE_INFO_LEN_MAX))? else {
            if is_rehearsal {
                return Ok(());
            }
            let text = format!("StoreDir: {store_dir}\n");
            return self.put(NAME, Kind::CacheInfo, &mut text.as_bytes(), wait);
        };
        // A page about something else has no such line.
        if !text.lines().any(|line| line.starts_with("StoreDir:")) {
            return Err(ClientError::NoCache(self.address.to_string()));
        }
        let theirs = CacheInfo::parse(&text, store_dir).map(|info| info.store_dir);
        let theirs = theirs.map_err(|_| ClientError::NoCache(self.address.to_string()))?;
        if theirs == *store_dir {
            return Ok(());
        }
        let (theirs, ours) = (theirs.to_string(), store_dir.to_string());
        Err(ClientError::StoreDirDiffers { address: self.address.to_string(), theirs, ours })
    }

    /// Tries until there is an answer that another try would not change.
    fn persist<T>(
        &self,
        wait: &Wait<'_>,
        mut request: impl FnMut() -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let mut tries = 0;
        loop {
            let error = match request() {
                Err(error) if error.is_transient() => error,
                answer => {
                    self.failures_in_a_row.store(0, Ordering::Relaxed);
                    return answer;
                }
            };
            tries += 1;
            let chance = getrandom::u32().unwrap_or_default();
            match retry::wait_after(tries, error.retry_after(), chance) {
                Some(delay) if wait(delay, &error) => {}
                Some(_) => return Err(ClientError::Interrupted),
                None => {
                    let failures = self.failures_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
                    let is_hopeless = failures >= PUSH_FAILURES_IN_A_ROW_MAX;
                    return Err(if is_hopeless { ClientError::TooOften(Box::new(error)) } else { error });
                }
            }
        }
    }

    fn ask(
        &self,
        method: Method,
        name: &str,
        fields: HeaderMap,
        body: SendBody<'_>,
    ) -> Result<Response<Body>, ClientError> {
        let mut request = Request::builder().method(&method).uri(self.address.of(name));
        if let Some(known) = request.headers_mut() {
            known.extend(fields);
            if let Some(authorization) = &self.authorization {
                known.insert(AUTHORIZATION, authorization.clone());
            }
        }
        let run = |request| {
            if method == Method::PUT {
                return self.agent.run(request);
            }
            // It has nothing to look at first.
            let (answer, connect) = (self.answer_timeout, PUSH_CONNECT_TIMEOUT.min(self.answer_timeout));
            let configured = self.agent.configure_request(request).timeout_per_read(Some(answer));
            let configured = configured.timeout_connect(Some(connect)).timeout_resolve(Some(connect));
            self.agent.run(configured.build())
        };
        let answer = request.body(body).map_err(ureq::Error::from).and_then(run);
        answer.map_err(|error| self.failure(method, name, &error))
    }

    /// The body of a good answer; `None` when there is no such file. What was not wanted is read to its end, if that is near, so that the
    /// connection can be used again.
    fn judge(
        &self,
        method: Method,
        name: &str,
        mut response: Response<Body>,
    ) -> Result<Option<Body>, ClientError> {
        let status = response.status().as_u16();
        let verdict = retry::verdict(status);
        if verdict == Verdict::Fine && method == Method::GET {
            return Ok(Some(response.into_body()));
        }
        let answer = Answer::of(&mut response);
        let name = name.to_owned();
        match (verdict, status) {
            (Verdict::Fine, _) => Ok(Some(response.into_body())),
            // What cannot be put there is not just absent.
            (Verdict::Absent, _) if method != Method::PUT => Ok(None),
            (_, 401 | 407) => Err(ClientError::Unauthorized { address: self.address.to_string(), answer }),
            (_, 403) => Err(ClientError::Forbidden { method, name, answer }),
            _ => Err(ClientError::Answered { method, name, answer }),
        }
    }

    fn failure(&self, method: Method, name: &str, error: &ureq::Error) -> ClientError {
        use io::ErrorKind::{
            AddrNotAvailable, ConnectionRefused, HostUnreachable, InvalidData, NetworkUnreachable,
            PermissionDenied,
        };
        let (is_transient, is_unreachable) = match error {
            ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            // It may be the proxy that cannot reach the cache.
            | ureq::Error::ConnectProxyFailed(_)
            | ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => (true, true),
            ureq::Error::Io(cause) => match cause.kind() {
                ConnectionRefused | HostUnreachable | NetworkUnreachable | AddrNotAvailable => (true, true),
                // rustls does not trust what it was shown.
                InvalidData | PermissionDenied => (false, true),
                _ => (true, false),
            },
            ureq::Error::Timeout(_) | ureq::Error::Protocol(_) => (true, false),
            // TLS, a proxy that is none, and what cannot happen.
            _ => (false, true),
        };
        let cause = match error {
            ureq::Error::Timeout(Timeout::PerRead) => "there is no answer".to_owned(),
            ureq::Error::Timeout(Timeout::PerWrite) => "nothing more is taken".to_owned(),
            error => in_words(error),
        };
        if is_unreachable {
            ClientError::Unreachable { address: self.address.to_string(), cause, is_transient }
        } else {
            ClientError::Broken { method, name: name.to_owned(), cause }
        }
    }
}

impl ClientError {
    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { is_transient, .. } => *is_transient,
            Self::Broken { .. } | Self::TooOften(_) => true,
            Self::Answered { answer, .. } => retry::verdict(answer.status) == Verdict::Again,
            _ => false,
        }
    }

    /// Whether other uploads would fail alike, so that none need be tried.
    pub fn is_general(&self) -> bool {
        match self {
            Self::Answered { answer, .. } => {
                matches!(answer.status, 405 | 507) || is_redirection(answer.status)
            }
            // A narinfo alone may also lack the signature that is wanted.
            Self::Forbidden { name, .. } => name.starts_with("nar/"),
            Self::Broken { .. } | Self::Source(_) => false,
            _ => true,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Answered { answer, .. } => answer.retry_after,
            _ => None,
        }
    }
}

impl Answer {
    /// Reads what was said, as far as that is short.
    fn of(response: &mut Response<Body>) -> Self {
        let status = response.status();
        let field =
            |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let retry_after = field(RETRY_AFTER).and_then(|value| retry::retry_after(&value, now_s()));
        let location = field(LOCATION).filter(|_| is_redirection(status.as_u16()));
        let mut bytes = Vec::new();
        // What cannot be read is not needed.
        let _ = response.body_mut().as_reader().take(PUSH_ANSWER_LEN_MAX).read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('<'));
        let said = match (location, line) {
            (Some(location), _) => format!("it is at {}; name that instead", printable(&location)),
            (None, Some(line)) => printable(line),
            (None, None) => status.canonical_reason().unwrap_or_default().to_owned(),
        };
        Self { status: status.as_u16(), said, retry_after }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.status)?;
        if self.said.is_empty() { Ok(()) } else { write!(formatter, " {}", self.said) }
    }
}

impl Kind {
    fn content_type(self) -> &'static str {
        match self {
            Self::CacheInfo => "text/x-nix-cache-info",
            Self::NarInfo => "text/x-nix-narinfo",
            Self::Nar => "application/x-nix-nar",
        }
    }
}

impl Upload for &[u8] {
    fn len_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn open(&mut self) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(*self))
    }
}

/// Remembers that it could not be read: the connection that lacks the rest breaks as well.
struct Source<'a> {
    reader: Box<dyn Read + 'a>,
    error: Option<io::Error>,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer).map_err(|error| {
            let kind = error.kind();
            self.error = Some(error);
            kind.into()
        })
    }
}

fn is_redirection(status: u16) -> bool {
    (300..400).contains(&status)
}

/// What a server says goes to a terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|character| is_plain(*character)).take(300).collect()
}

/// Without the library's names for kinds of errors.
fn in_words(error: &dyn fmt::Display) -> String {
    let text = printable(&error.to_string());
    text.trim_start_matches("io: ").to_owned()
}

fn read_certificates(path: &Path) -> Result<RootCerts, CertificatesError> {
    let failed = |cause: &dyn fmt::Display| CertificatesError {
        path: path.display().to_string(),
        cause: cause.to_string(),
    };
    let text = std::fs::read(path).map_err(|error| failed(&error))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&text) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| failed(&error))? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(failed(&"there are none"));
    }
    Ok(RootCerts::Specific(Arc::new(certificates)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> Cache {
        Cache::new("http://cache.test/a".parse().unwrap(), None, None).unwrap()
    }

    fn answered(
        method: Method,
        name: &str,
        status: u16,
        fields: &[(&str, &str)],
        body: &str,
    ) -> Result<bool, ClientError> {
        let mut response = Response::builder().status(status);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        let response = response.body(Body::builder().data(body)).unwrap();
        cache().judge(method, name, response).map(|found| found.is_some())
    }

    #[test]
    fn what_is_there_and_what_is_not_is_told_apart() {
        assert!(answered(Method::HEAD, "x", 200, &[], "").unwrap());
        assert!(!answered(Method::HEAD, "x", 404, &[], "").unwrap());
        assert!(!answered(Method::GET, "x", 410, &[], "").unwrap());
        assert!(answered(Method::PUT, "x", 201, &[], "<html>").unwrap());
        assert!(answered(Method::PUT, "x", 404, &[], "").is_err(), "nginx has no such folder");
    }

    #[test]
    fn refusals_say_what_the_server_said_and_what_helps() {
        let moved = [("location", "https://elsewhere.test/nar/x")];
        for (status, fields, body, words) in [
            (401, &[][..], "no token\nmore", &["http://cache.test/a", "401 no token)", "--token-file"][..]),
            (403, &[], "", &["PUT nar/x", "403 Forbidden", "--scope read,write"]),
            (
                422,
                &[],
                "<html>\n<h1>no</h1>\nthe hash is another\u{1b}[31m\u{202e}",
                &["422 the hash is another[31m"],
            ),
            (418, &[], "", &["418 I'm a teapot"]),
            (599, &[], "", &["PUT nar/x: 599"]),
            (301, &moved, "", &["301 it is at https://elsewhere.test/nar/x; name that"]),
        ] {
            let error = answered(Method::PUT, "nar/x", status, fields, body).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{status}: {error}");
            assert!(error.chars().all(is_plain), "{error}");
        }
    }

    #[test]
    fn it_is_known_what_may_pass_and_what_concerns_all() {
        for (name, status, is_transient, is_general) in [
            ("nar/x", 400, false, false),
            ("nar/x", 401, false, true),
            ("x.narinfo", 401, false, true),
            ("nar/x", 403, false, true),
            ("x.narinfo", 403, false, false),
            ("nar/x", 405, false, true),
            ("x.narinfo", 409, false, false),
            ("nar/x", 413, false, false),
            ("nar/x", 503, true, false),
            ("nar/x", 507, false, true),
            ("nar/x", 308, false, true),
        ] {
            let error = answered(Method::PUT, name, status, &[], "").unwrap_err();
            let found = (error.is_transient(), error.is_general());
            assert_eq!(found, (is_transient, is_general), "{name} {status}");
        }
        let error = answered(Method::PUT, "x", 503, &[("retry-after", "7")], "").unwrap_err();
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
    }

    #[test]
    fn faults_of_the_connection_are_told_apart() {
        let io = |kind: io::ErrorKind| ureq::Error::Io(kind.into());
        for (error, is_transient, is_general) in [
            (ureq::Error::HostNotFound, true, true),
            (ureq::Error::Timeout(Timeout::Connect), true, true),
            (ureq::Error::ConnectProxyFailed("proxy server responded 503/503".to_owned()), true, true),
            (io(io::ErrorKind::ConnectionRefused), true, true),
            (io(io::ErrorKind::ConnectionReset), true, false),
            (io(io::ErrorKind::BrokenPipe), true, false),
            (io(io::ErrorKind::UnexpectedEof), true, false),
            (ureq::Error::Timeout(Timeout::PerRead), true, false),
            (io(io::ErrorKind::InvalidData), false, true),
            (ureq::Error::Tls("no"), false, true),
        ] {
            let error = cache().failure(Method::PUT, "nar/x", &error);
            assert_eq!((error.is_transient(), error.is_general()), (is_transient, is_general), "{error}");
        }
    }

    #[test]
    fn who_is_asked_and_says_nothing_is_not_waited_for_as_after_an_upload() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let cache = Cache::new(address, None, None).unwrap().answering_within(Duration::from_millis(20));
        for method in [Method::GET, Method::HEAD] {
            let error = cache.ask(method, "x", HeaderMap::new(), SendBody::none()).unwrap_err();
            assert!(error.is_transient() && error.to_string().ends_with("there is no answer"), "{error}");
        }
    }

    fn broken() -> ClientError {
        ClientError::Broken { method: Method::HEAD, name: "x".into(), cause: "reset".into() }
    }

    #[test]
    fn what_passes_is_tried_again_until_it_has_been_often_enough() {
        let cache = cache();
        let waits = std::cell::Cell::new(0);
        let wait = |_: Duration, _: &ClientError| {
            waits.set(waits.get() + 1);
            true
        };
        let in_vain = || cache.persist(&wait, || -> Result<(), _> { Err(broken()) }).unwrap_err();
        let mut tries = 0;
        let answer = cache.persist(&wait, || {
            tries += 1;
            if tries < 4 { Err(broken()) } else { Ok(tries) }
        });
        assert_eq!((answer.unwrap(), waits.take()), (4, 3));

        for failure in 1..=PUSH_FAILURES_IN_A_ROW_MAX {
            assert_eq!(in_vain().is_general(), failure == PUSH_FAILURES_IN_A_ROW_MAX);
            assert_eq!(waits.take(), 5);
        }
        // One answer, whatever it is, and there is hope again.
        let refused = cache.persist(&wait, || answered(Method::HEAD, "x", 400, &[], ""));
        assert!(refused.is_err() && waits.take() == 0);
        assert!(!in_vain().is_general());
        let interrupted = cache.persist(&|_, _| false, || -> Result<(), _> { Err(broken()) });
        assert!(matches!(interrupted, Err(ClientError::Interrupted)));
    }

    #[test]
    fn certificates_that_are_none_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("certificates");
        std::fs::write(&file, "none").unwrap();
        for path in [&file, Path::new("/nonexistent")] {
            let error = Cache::new("https://h".parse().unwrap(), None, Some(path)).err().unwrap().to_string();
            assert!(error.contains(path.to_str().unwrap()) && error.contains("NIX_SSL_CERT_FILE"), "{error}");
        }
    }
}
