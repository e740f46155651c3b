//! Media types by the ends of file names: what browsers show, and nothing that they could as well be told is text or bytes.

/// Text in which no other type was recognised.
pub const TEXT: &str = "text/plain; charset=utf-8";
/// Bytes of which nothing is known.
pub const BYTES: &str = "application/octet-stream";

/// In order of the ends.
const TYPES: [(&str, &str); 48] = [
    ("aac", "audio/aac"),
    ("apng", "image/apng"),
    ("avif", "image/avif"),
    ("bmp", "image/bmp"),
    ("bz2", "application/x-bzip2"),
    ("css", "text/css; charset=utf-8"),
    ("csv", "text/csv; charset=utf-8"),
    ("epub", "application/epub+zip"),
    ("flac", "audio/flac"),
    ("gif", "image/gif"),
    ("gz", "application/gzip"),
    ("htm", "text/html; charset=utf-8"),
    ("html", "text/html; charset=utf-8"),
    ("ico", "image/x-icon"),
    ("jar", "application/java-archive"),
    ("jpeg", "image/jpeg"),
    ("jpg", "image/jpeg"),
    ("js", "text/javascript; charset=utf-8"),
    ("json", "application/json"),
    ("m4a", "audio/mp4"),
    ("map", "application/json"),
    ("md", TEXT),
    ("mjs", "text/javascript; charset=utf-8"),
    ("mp3", "audio/mpeg"),
    ("mp4", "video/mp4"),
    ("nar", "application/x-nix-nar"),
    ("nix", TEXT),
    ("ogg", "audio/ogg"),
    ("opus", "audio/ogg"),
    ("otf", "font/otf"),
    ("pdf", "application/pdf"),
    ("png", "image/png"),
    ("svg", "image/svg+xml"),
    ("tar", "application/x-tar"),
    ("tgz", "application/gzip"),
    ("ttf", "font/ttf"),
    ("txt", TEXT),
    ("wasm", "application/wasm"),
    ("wav", "audio/wav"),
    ("webm", "video/webm"),
    ("webp", "image/webp"),
    ("woff", "font/woff"),
    ("woff2", "font/woff2"),
    ("xhtml", "application/xhtml+xml"),
    ("xml", "application/xml"),
    ("xz", "application/x-xz"),
    ("zip", "application/zip"),
    ("zst", "application/zstd"),
];

/// The type of a file of this name, which begins with `start`.
pub fn of(name: &[u8], start: &[u8]) -> &'static str {
    let end = name.rsplit(|&byte| byte == b'.').next().filter(|end| end.len() < name.len());
    let known = end.and_then(|end| {
        TYPES
            .iter()
            .find(|(known, _)| known.as_bytes().eq_ignore_ascii_case(end))
            .map(|(_, media_type)| *media_type)
    });
    known.unwrap_or(if is_text(start) { TEXT } else { BYTES })
}

/// Whether bytes are UTF-8 that people can read. The last character may be cut.
fn is_text(start: &[u8]) -> bool {
    let text = match str::from_utf8(start) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            str::from_utf8(&start[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.chars().any(|character| character.is_control() && !"\t\n\r\x0c\x1b".contains(character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_types() {
        assert!(TYPES.is_sorted(), "so that nobody adds one twice");
        for (name, expected) in [
            ("index.html", "text/html; charset=utf-8"),
            ("A.PNG", "image/png"),
            ("a.tar.gz", "application/gzip"),
            ("a.nix", TEXT),
            (".svg", "image/svg+xml"),
        ] {
            assert_eq!(of(name.as_bytes(), b"\xff"), expected, "{name}");
        }
    }

    #[test]
    fn what_has_no_known_name_is_text_if_it_can_be_read() {
        for (name, start, expected) in [
            ("README", &b"words\n"[..], TEXT),
            ("a.unknown", "gr\u{fc}n".as_bytes(), TEXT),
            ("cut", &"gr\u{fc}".as_bytes()[..3], TEXT),
            ("empty", b"", TEXT),
            ("html", b"<script>", TEXT),
            ("latin", b"gr\xfcn", BYTES),
            ("elf", b"\x7fELF\x02\x01\x01\0", BYTES),
            ("nul", b"a\0b", BYTES),
        ] {
            assert_eq!(of(name.as_bytes(), start), expected, "{name}");
        }
    }
}
