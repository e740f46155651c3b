//! netrc files: who one is at which host. Read as libcurl reads them (`lib/netrc.c`), and so as Nix does: the first entry that fits holds,
//! what is not known is skipped, and a backslash means something only between quotes. Pure.

use zeroize::Zeroizing;

/// A name and its password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// May be empty.
    pub user: String,
    /// May be empty.
    pub password: Zeroizing<String>,
}

/// The first entry of `text` for this host, or for all (`default`). With a `user`, only one of that name, or of none.
pub fn find(text: &str, host: &str, user: Option<&str>) -> Option<Login> {
    let mut found: Option<Entry> = None;
    let mut words = Words { rest: text };
    let fits = |entry: &Entry| {
        entry.is_for_host && (user.is_none() || entry.user.is_none() || entry.user.as_deref() == user)
    };
    while let Some(word) = words.next_word(true) {
        match word.as_str() {
            "machine" | "default" => {
                if let Some(entry) = found.take().filter(fits) {
                    return Some(entry.login(user));
                }
                let is_for_host = *word == "default"
                    || words.next_word(false).is_some_and(|name| name.eq_ignore_ascii_case(host));
                found = Some(Entry { is_for_host, user: None, password: None });
            }
            "login" => {
                let value = words.next_word(false);
                if let Some(entry) = &mut found {
                    entry.user = value.map(|value| value.to_string());
                }
            }
            "password" => {
                let value = words.next_word(false);
                if let Some(entry) = &mut found {
                    entry.password = value;
                }
            }
            "account" => drop(words.next_word(false)),
            "macdef" => words.skip_macro(),
            _ => {}
        }
    }
    found.filter(fits).map(|entry| entry.login(user))
}

struct Entry {
    is_for_host: bool,
    user: Option<String>,
    password: Option<Zeroizing<String>>,
}

impl Entry {
    fn login(self, wanted: Option<&str>) -> Login {
        let user = self.user.or_else(|| wanted.map(str::to_owned)).unwrap_or_default();
        Login { user, password: self.password.unwrap_or_default() }
    }
}

struct Words<'a> {
    rest: &'a str,
}

impl Words<'_> {
    /// The next word, without its quotes. Where a keyword may stand, a `#` begins a comment; a password may begin with one.
    fn next_word(&mut self, is_keyword: bool) -> Option<Zeroizing<String>> {
        self.rest = self.rest.trim_ascii_start();
        while is_keyword && self.rest.starts_with('#') {
            self.rest = self.rest.split_once('\n').map_or("", |(_, after)| after).trim_ascii_start();
        }
        if let Some(quoted) = self.rest.strip_prefix('"') {
            return Some(self.quoted(quoted.len()));
        }
        let end =
            self.rest.find(|character: char| character.is_ascii_whitespace()).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!word.is_empty()).then(|| Zeroizing::new(word.to_owned()))
    }

    /// What stands between quotes, of which the first has been passed and leaves so many bytes.
    fn quoted(&mut self, left: usize) -> Zeroizing<String> {
        let mut word = Zeroizing::new(String::with_capacity(left));
        let mut characters = self.rest[self.rest.len() - left..].chars();
        while let Some(character) = characters.next() {
            match character {
                '"' => break,
                '\\' => word.extend(characters.next().map(|escaped| match escaped {
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    other => other,
                })),
                other => word.push(other),
            }
        }
        self.rest = characters.as_str();
        word
    }

    /// A macro ends with an empty line.
    fn skip_macro(&mut self) {
        self.rest = self.rest.split_once("\n\n").map_or("", |(_, after)| after);
    }
}

/// Any text is read to its end; an entry in front of it counts, whatever the text is.
#[cfg(any(test, fuzzing))]
pub fn fuzz_netrc(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    for user in [None, Some("a"), Some("")] {
        let Some(login) = find(text, "host", user) else { continue };
        assert!(user.is_none_or(|user| user == login.user), "another user than {user:?}");
        assert!(login.user.len() + login.password.len() <= text.len() + 1);
    }
    let before = format!("machine HOST login \"a\" password \"b c\"\nmachine other {text}");
    let found = find(&before, "host", None).map(|login| (login.user, login.password.to_string()));
    assert_eq!(found, Some(("a".to_owned(), "b c".to_owned())));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn login(text: &str, host: &str) -> Option<(String, String)> {
        find(text, host, None).map(|login| (login.user, login.password.to_string()))
    }

    #[expect(clippy::unnecessary_wraps, reason = "it is compared with what may be none")]
    fn pair(user: &str, password: &str) -> Option<(String, String)> {
        Some((user.to_owned(), password.to_owned()))
    }

    #[test]
    fn the_first_entry_of_a_host_holds() {
        let text = "machine a.org login one password first\n\
                    machine b.org\n\tlogin two\n\tpassword second\n\
                    machine a.org login three password third\n\
                    default login anybody password last\n\
                    machine c.org login late password late\n";
        assert_eq!(login(text, "a.org"), pair("one", "first"));
        assert_eq!(login(text, "B.ORG"), pair("two", "second"));
        assert_eq!(login(text, "c.org"), pair("anybody", "last"));
        assert_eq!(login("machine a.org login one password first", "b.org"), None);
    }

    #[test]
    fn any_order_and_any_space_will_do() {
        for text in [
            "machine a.org password p login l",
            "machine\na.org\r\n  account x login l\tpassword p",
            "# a comment machine a.org login no password no\nmachine a.org login l # another\n password p",
            "macdef init\nmachine a.org login no password no\n\nmachine a.org login l password p",
            "machine a.org login \"l\" password \"p\"",
            "machine a.org port 80 login l password p future",
        ] {
            assert_eq!(login(text, "a.org"), pair("l", "p"), "{text}");
        }
    }

    #[test]
    fn passwords_are_taken_as_curl_takes_them() {
        for (written, meant) in [
            ("a\\b", "a\\b"),
            ("#hash", "#hash"),
            ("\"two words\"", "two words"),
            ("\"\\\"q\\\" \\\\ \\n\"", "\"q\" \\ \n"),
            ("\"open", "open"),
            ("pässword", "pässword"),
        ] {
            let text = format!("machine a.org login l password {written}");
            assert_eq!(login(&text, "a.org"), pair("l", meant), "{text}");
        }
    }

    #[test]
    fn what_is_missing_is_empty_and_a_wanted_user_is_looked_for() {
        assert_eq!(login("machine a.org password p", "a.org"), pair("", "p"));
        assert_eq!(login("machine a.org login l", "a.org"), pair("l", ""));
        let text = "machine a.org login one password first machine a.org login two password second \
                    machine a.org password third";
        let password = |user| find(text, "a.org", Some(user)).map(|login| login.password.to_string());
        assert_eq!(password("two").as_deref(), Some("second"));
        assert_eq!(password("three").as_deref(), Some("third"));
        assert_eq!(find(text, "a.org", Some("three")).map(|login| login.user).as_deref(), Some("three"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String, words in "(machine|default|login|password|macdef|#|\"|\\\\|a|\n| ){0,40}") {
            let _ = (login(&text, "a"), login(&words, "a"));
        }

        #[test]
        fn whatever_is_quoted_comes_back(user in "[^\"\\\\]{1,20}", password in "[^\"\\\\]{1,20}") {
            let text = format!("machine a.org login \"{user}\" password \"{password}\"");
            prop_assert_eq!(login(&text, "a.org"), Some((user, password)));
        }
    }
}
