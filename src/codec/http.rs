//! HTTP/1.1: vocabulary shared by the request and response codecs.

pub mod body;
mod class;
pub mod date;
pub mod field;
pub mod media;
#[cfg(any(test, fuzzing))]
mod oracle;
pub mod request;
pub mod response;
pub mod route;

/// A request method (RFC 9110 section 9). Names are case-sensitive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// GET
    Get,
    /// HEAD: answered as GET, without the body.
    Head,
    /// PUT: an upload.
    Put,
    /// POST
    Post,
    /// DELETE
    Delete,
    /// OPTIONS: the only method whose target may be `*`.
    Options,
    /// Any other token. The answer is 501, where a known method that a resource does not have gets 405.
    Other,
}

impl Method {
    /// The method of this name; the caller has made sure that the name is a token.
    pub fn of(name: &[u8]) -> Self {
        match name {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"PUT" => Self::Put,
            b"POST" => Self::Post,
            b"DELETE" => Self::Delete,
            b"OPTIONS" => Self::Options,
            _ => Self::Other,
        }
    }

    /// Its name, as far as it is known.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Put => "PUT",
            Self::Post => "POST",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
            Self::Other => "OTHER",
        }
    }
}

/// The protocol version of a request. A later minor version is served as HTTP/1.1 (RFC 9110 section 2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// HTTP/1.0: no chunked bodies, no interim responses, closes unless asked not to.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// A status code this server can answer with (RFC 9110 section 15, RFC 6585 section 5).
///
/// 429 is missing on purpose: Nix 2.31 to 2.34 sleeps a minute on it. Overload is 503 with `Retry-After`.
/// 202 is missing as well: Nix takes it for an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each name is the phrase of its code")]
pub enum Status {
    Ok = 200,
    Created = 201,
    NoContent = 204,
    PartialContent = 206,
    SeeOther = 303,
    NotModified = 304,
    BadRequest = 400,
    Unauthorized = 401,
    Forbidden = 403,
    NotFound = 404,
    MethodNotAllowed = 405,
    RequestTimeout = 408,
    Conflict = 409,
    LengthRequired = 411,
    PreconditionFailed = 412,
    ContentTooLarge = 413,
    UriTooLong = 414,
    UnsupportedMediaType = 415,
    RangeNotSatisfiable = 416,
    ExpectationFailed = 417,
    MisdirectedRequest = 421,
    UnprocessableContent = 422,
    RequestHeaderFieldsTooLarge = 431,
    InternalServerError = 500,
    NotImplemented = 501,
    ServiceUnavailable = 503,
    HttpVersionNotSupported = 505,
    InsufficientStorage = 507,
}

impl Status {
    /// Every status, for tables of counters and for tests.
    pub const ALL: [Self; 28] = [
        Self::Ok,
        Self::Created,
        Self::NoContent,
        Self::PartialContent,
        Self::SeeOther,
        Self::NotModified,
        Self::BadRequest,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::Conflict,
        Self::LengthRequired,
        Self::PreconditionFailed,
        Self::ContentTooLarge,
        Self::UriTooLong,
        Self::UnsupportedMediaType,
        Self::RangeNotSatisfiable,
        Self::ExpectationFailed,
        Self::MisdirectedRequest,
        Self::UnprocessableContent,
        Self::RequestHeaderFieldsTooLarge,
        Self::InternalServerError,
        Self::NotImplemented,
        Self::ServiceUnavailable,
        Self::HttpVersionNotSupported,
        Self::InsufficientStorage,
    ];

    /// Its place in [`Status::ALL`].
    pub fn index(self) -> usize {
        const PLACES: [u8; 512] = {
            let mut places = [0; 512];
            let mut place = 0_u8;
            while (place as usize) < Status::ALL.len() {
                places[Status::ALL[place as usize] as usize] = place;
                place += 1;
            }
            places
        };
        usize::from(PLACES[usize::from(self.code())])
    }

    /// The three-digit code.
    pub fn code(self) -> u16 {
        self as u16
    }

    /// The whole status line, with its CRLF.
    pub fn line(self) -> &'static str {
        match self {
            Self::Ok => "HTTP/1.1 200 OK\r\n",
            Self::Created => "HTTP/1.1 201 Created\r\n",
            Self::NoContent => "HTTP/1.1 204 No Content\r\n",
            Self::PartialContent => "HTTP/1.1 206 Partial Content\r\n",
            Self::SeeOther => "HTTP/1.1 303 See Other\r\n",
            Self::NotModified => "HTTP/1.1 304 Not Modified\r\n",
            Self::BadRequest => "HTTP/1.1 400 Bad Request\r\n",
            Self::Unauthorized => "HTTP/1.1 401 Unauthorized\r\n",
            Self::Forbidden => "HTTP/1.1 403 Forbidden\r\n",
            Self::NotFound => "HTTP/1.1 404 Not Found\r\n",
            Self::MethodNotAllowed => "HTTP/1.1 405 Method Not Allowed\r\n",
            Self::RequestTimeout => "HTTP/1.1 408 Request Timeout\r\n",
            Self::Conflict => "HTTP/1.1 409 Conflict\r\n",
            Self::LengthRequired => "HTTP/1.1 411 Length Required\r\n",
            Self::PreconditionFailed => "HTTP/1.1 412 Precondition Failed\r\n",
            Self::ContentTooLarge => "HTTP/1.1 413 Content Too Large\r\n",
            Self::UriTooLong => "HTTP/1.1 414 URI Too Long\r\n",
            Self::UnsupportedMediaType => "HTTP/1.1 415 Unsupported Media Type\r\n",
            Self::RangeNotSatisfiable => "HTTP/1.1 416 Range Not Satisfiable\r\n",
            Self::ExpectationFailed => "HTTP/1.1 417 Expectation Failed\r\n",
            Self::MisdirectedRequest => "HTTP/1.1 421 Misdirected Request\r\n",
            Self::UnprocessableContent => "HTTP/1.1 422 Unprocessable Content\r\n",
            Self::RequestHeaderFieldsTooLarge => "HTTP/1.1 431 Request Header Fields Too Large\r\n",
            Self::InternalServerError => "HTTP/1.1 500 Internal Server Error\r\n",
            Self::NotImplemented => "HTTP/1.1 501 Not Implemented\r\n",
            Self::ServiceUnavailable => "HTTP/1.1 503 Service Unavailable\r\n",
            Self::HttpVersionNotSupported => "HTTP/1.1 505 HTTP Version Not Supported\r\n",
            Self::InsufficientStorage => "HTTP/1.1 507 Insufficient Storage\r\n",
        }
    }

    /// The phrase alone, as a short error body shows it.
    pub fn phrase(self) -> &'static str {
        // The line is ASCII of a fixed shape: "HTTP/1.1 ", three digits, a space, the phrase, CRLF.
        let line = self.line();
        &line[13..line.len() - 2]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_say_their_code_and_phrase() {
        for status in Status::ALL {
            assert_eq!(status.line(), format!("HTTP/1.1 {} {}\r\n", status.code(), status.phrase()));
            assert!(status.line().len() <= response::STATUS_LINE_LEN_MAX);
        }
    }

    #[test]
    fn a_status_knows_its_place() {
        assert!(Status::ALL.iter().enumerate().all(|(place, status)| status.index() == place));
    }

    #[test]
    fn methods_are_case_sensitive() {
        assert_eq!(Method::of(b"GET"), Method::Get);
        assert_eq!(Method::of(b"get"), Method::Other);
        assert_eq!(Method::of(b"PATCH"), Method::Other);
    }
}
