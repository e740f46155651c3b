//! The cases of `cases.txt`, and what is right about the bytes that come back. The simulated ring (`src/ring/sim/conformance.rs`) and the
//! real server are asked the same, so this file is part of both.

use std::collections::HashSet;

/// The request behind each case. It is answered once, or not at all if the connection has ended.
pub const CANARY: &str = "GET /version HTTP/1.1\r\nHost: canary\r\nConnection: close\r\n\r\n";

/// What its answer begins with.
pub const SONG: &str = "narwire ";

pub struct Case {
    pub name: &'static str,
    answers: Vec<Expected>,
    goes_on: bool,
    request: &'static str,
}

#[derive(Clone, Copy)]
struct Expected {
    status: u16,
    has_body: bool,
}

/// All of them.
pub fn cases() -> Vec<Case> {
    let lines = include_str!("cases.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let cases: Vec<_> = lines.map(Case::parse).collect();
    let names: HashSet<_> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len(), "a name stands twice");
    cases
}

impl Case {
    fn parse(line: &'static str) -> Self {
        let mut rest = line;
        let mut word = || {
            let (word, after) = rest.split_once(' ').unwrap_or_else(|| panic!("five columns: {line}"));
            rest = after.trim_start();
            word
        };
        let (name, section, answers, then) = (word(), word(), word(), word());
        let (rfc, section) = section.split_once('-').unwrap_or_default();
        let is_section = section.split('.').all(|number| number.parse::<u8>().is_ok());
        assert!(rfc.len() == 4 && rfc.parse::<u16>().is_ok() && is_section, "RFC and section: {line}");
        assert!(["on", "end"].contains(&then), "on or end: {line}");
        let answers = answers.split(',').filter(|answer| *answer != "-").flat_map(|answer| {
            let (count, answer) = answer.split_once('*').unwrap_or(("1", answer));
            let status = answer.trim_end_matches('-').parse().expect(line);
            let has_body = !answer.ends_with('-') && status != 100;
            std::iter::repeat_n(Expected { status, has_body }, count.parse().expect(line))
        });
        Self { name, answers: answers.collect(), goes_on: then == "on", request: rest }
    }

    /// The bytes of the request; what is uploaded in it is named after a number.
    pub fn request(&self, number: usize) -> Vec<u8> {
        let put = format!("PUT /log/{number:032}-a.drv HTTP/1.1|Host: a|");
        let mut text = self
            .request
            .replace("{get}", "GET / HTTP/1.1|Host: a|")
            .replace("{chunked}", "{put}Transfer-Encoding: chunked||")
            .replace("{put}", &put);
        while let Some((before, repeated)) = text.split_once('{') {
            let (repeated, after) = repeated.split_once('}').expect(self.name);
            let (count, repeated) = repeated.split_once('*').expect(self.name);
            text = [before, &repeated.repeat(count.parse().expect(self.name)), after].concat();
        }
        self.unescape(&text)
    }

    fn unescape(&self, text: &str) -> Vec<u8> {
        let (mut bytes, mut chars) = (Vec::new(), text.chars());
        while let Some(char) = chars.next() {
            match char {
                '|' => bytes.extend_from_slice(b"\r\n"),
                '\\' => bytes.push(match chars.next() {
                    Some('r') => b'\r',
                    Some('n') => b'\n',
                    Some('t') => b'\t',
                    Some('s') => b' ',
                    Some('0') => 0,
                    Some('\\') => b'\\',
                    Some('x') => {
                        let digits: String = chars.by_ref().take(2).collect();
                        u8::from_str_radix(&digits, 16).expect(self.name)
                    }
                    escape => panic!("{}: no such escape: {escape:?}", self.name),
                }),
                char => bytes.push(u8::try_from(char).expect(self.name)),
            }
        }
        bytes
    }

    /// What is wrong with what was received for the request and the canary, until the connection ended.
    pub fn judge(&self, received: &[u8]) -> Result<(), String> {
        let mut rest = received;
        for (index, expected) in self.answers.iter().enumerate() {
            let is_last = !self.goes_on && index + 1 == self.answers.len();
            let answer = Answer::take(&mut rest, expected.has_body)?;
            // What is uploaded may have been there.
            let status = if answer.status == 200 && expected.status == 201 { 201 } else { answer.status };
            if status != expected.status {
                return Err(format!("answer {index} is {status} instead of {}", expected.status));
            }
            answer.check(is_last)?;
        }
        if self.goes_on {
            let answer = Answer::take(&mut rest, true)?;
            answer.check(true)?;
            if answer.status != 200 || !answer.body.starts_with(SONG.as_bytes()) {
                return Err(format!("the request behind it is answered with {}", answer.status));
            }
        }
        if rest.is_empty() { Ok(()) } else { Err(format!("more is answered: {}", rest.escape_ascii())) }
    }
}

struct Answer<'a> {
    status: u16,
    fields: Vec<(String, &'a str)>,
    body: &'a [u8],
}

impl<'a> Answer<'a> {
    fn take(rest: &mut &'a [u8], has_body: bool) -> Result<Self, String> {
        let malformed = |what: &str| format!("{what}: {}", rest.escape_ascii());
        let head_len = rest.windows(4).position(|window| window == b"\r\n\r\n");
        let (head, after) = rest.split_at(head_len.ok_or_else(|| malformed("no whole answer"))?);
        let after = &after[4..];
        let mut lines = str::from_utf8(head).map_err(|_| malformed("no text"))?.split("\r\n");
        let status_line = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
        let status = status_line.and_then(|line| line.split(' ').next()?.parse().ok());
        let status = status.ok_or_else(|| malformed("no status line"))?;
        let mut fields = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(": ").ok_or_else(|| malformed("no field"))?;
            fields.push((name.to_ascii_lowercase(), value));
        }
        let mut answer = Self { status, fields, body: &[] };
        *rest = after;
        if has_body {
            let len = answer.field("content-length").and_then(|len| len.parse().ok());
            let split = len.and_then(|len| after.split_at_checked(len));
            (answer.body, *rest) = split.ok_or_else(|| format!("no whole body of {status}"))?;
        }
        Ok(answer)
    }

    fn field(&self, name: &str) -> Option<&'a str> {
        let mut values = self.fields.iter().filter(|(field, _)| field == name);
        let value = values.next();
        assert!(values.next().is_none(), "{name} twice");
        value.map(|(_, value)| *value)
    }

    /// What every answer of this status must have.
    fn check(&self, is_last: bool) -> Result<(), String> {
        let missing = |what: &str| Err(format!("{} without {what}: {:?}", self.status, self.fields));
        if self.status == 100 {
            return Ok(());
        }
        if self.field("date").is_none() {
            return missing("Date");
        }
        if self.status == 405 && self.field("allow").is_none() {
            return missing("Allow");
        }
        if (self.field("connection") == Some("close")) != is_last {
            return Err(format!("{} says of the connection: {:?}", self.status, self.field("connection")));
        }
        Ok(())
    }
}
