//! What a peer may ask, and what it has to hear: from the trees, the history of the database and what others have uploaded, and from
//! nothing of the code that answers.

use std::ops::Range;

use super::super::topic::Subject;
use super::ground::{Ground, State};
use crate::codec::hash::{Sha256, Sha256Digest};
use crate::codec::http::Status;
use crate::codec::nar::naive::{Tree, nar};
use crate::ring::ledger::{Figures, total};
use crate::ring::sim::{End, Random};
use crate::tally::Tally as _;

/// What a peer asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    NarInfo(usize),
    Nar {
        path: usize,
        form: usize,
        range: Wanted,
    },
    /// Compressed on its way.
    Zstd(usize),
    Listing(usize),
    /// A NAR of another hash than the path has.
    OtherNar(usize),
    Nothing,
    Health,
    Version,
    CacheInfo,
    Metrics,
    /// Something that is uploaded.
    Item(usize),
    Put(usize),
    /// An upload that ends in the middle.
    HalfPut(usize),
}

/// Which part of a NAR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    Whole,
    From(usize),
    FromTo(usize, usize),
    Last(usize),
    /// If it is another one than that.
    IfChanged,
}

/// A request as it was said.
#[derive(Clone, Debug)]
pub struct Said {
    pub ask: Ask,
    pub is_head: bool,
    pub bytes: Vec<u8>,
    /// Its head ends here. Bytes from the beginning of all that the peer says.
    pub head_end: usize,
}

/// When something was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    pub turn: u64,
    pub version: usize,
}

/// An answer, as far as it has come.
#[derive(Clone, Debug)]
pub struct Heard {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    pub is_whole: bool,
    /// When its first byte was there.
    pub since: Moment,
}

/// Something to upload.
pub struct Item {
    pub target: String,
    pub body: Vec<u8>,
    /// What is refused because it is not what it says.
    pub is_good: bool,
    /// What has to be there before.
    pub needs: Option<usize>,
    /// Where it lies in the directory.
    pub file: String,
}

/// What can be uploaded.
pub fn items() -> Vec<Item> {
    let tree = |seed, len| {
        super::ground::directory([(
            "contents".to_owned(),
            super::ground::file(super::ground::bytes(seed, len)),
        )])
    };
    let nar_item = |tree: &Tree, is_compressed: bool| {
        let nar = nar(tree);
        let body = if is_compressed { zstd::encode_all(&nar[..], 1).unwrap() } else { nar };
        let suffix = if is_compressed { ".zst" } else { "" };
        let file = format!("nar/{}.nar{suffix}", hash(&body).to_nix32());
        Item { target: format!("/{file}"), body, is_good: true, needs: None, file }
    };
    let narinfo_item = |index: usize, item: &Item, tree: &Tree, is_good: bool| {
        let nar = nar(tree);
        let hash_part = format!("{index}").repeat(32);
        let nar_size = nar.len() + usize::from(!is_good) * 8;
        let body = format!(
            "StorePath: /nix/store/{hash_part}-x\nURL: {}\nCompression: {}\nFileHash: sha256:{}\nFileSize: {}\n\
             NarHash: sha256:{}\nNarSize: {nar_size}\nReferences: \n",
            item.file,
            if item.body.starts_with(b"\x28\xb5\x2f\xfd") { "zstd" } else { "none" },
            hash(&item.body).to_nix32(),
            item.body.len(),
            hash(&nar).to_nix32(),
        );
        let file = format!("{hash_part}.narinfo");
        Item { target: format!("/{file}"), body: body.into_bytes(), is_good, needs: None, file }
    };
    let (short, long, packed) = (tree(1, 500), tree(2, 600_000), tree(3, 90_000));
    let mut items = vec![nar_item(&short, false), nar_item(&long, false), nar_item(&packed, true)];
    // Of the right length, and with other bytes.
    let mut bad = nar_item(&tree(4, 200_000), false);
    *bad.body.last_mut().unwrap() ^= 1;
    bad.is_good = false;
    for (index, tree, is_good) in
        [(0, &short, true), (1, &long, true), (2, &packed, true), (0, &short, false)]
    {
        let mut item = narinfo_item(items.len(), &items[index], tree, is_good);
        item.needs = Some(index);
        items.push(item);
    }
    items.push(bad);
    let log = "log/0c8r7p9x1m5h3fya2d4g6jbk7lnqsvwz-x.drv".to_owned();
    let body = super::ground::bytes(9, 20_000);
    items.push(Item { target: format!("/{log}"), body, is_good: true, needs: None, file: log });
    items
}

pub fn hash(bytes: &[u8]) -> Sha256Digest {
    let mut hasher = Sha256::new();
    hasher.update(bytes);
    hasher.finish()
}

impl Ask {
    /// A question as a seed wants it.
    pub fn drawn(random: &mut Random, ground: &Ground, items: &[Item], uploads_percent: usize) -> Self {
        if random.chance(uploads_percent) {
            let index = random.below(items.len());
            return if random.chance(60) { Self::Put(index) } else { Self::Item(index) };
        }
        let mut path = ground.drawn(random);
        if path == super::ground::MANY && random.chance(50) {
            path = 0;
        }
        let len = ground.paths[path].nar.len();
        match random.below(40) {
            0..=12 => Self::NarInfo(path),
            13..=27 => {
                let range = match random.below(12) {
                    0 => Wanted::From(random.below(len + 2)),
                    1 => {
                        let start = random.below(len);
                        Wanted::FromTo(start, start + random.below(len))
                    }
                    2 => Wanted::Last(1 + random.below(len + 5)),
                    3 => Wanted::IfChanged,
                    _ => Wanted::Whole,
                };
                Self::Nar { path, form: random.below(3), range }
            }
            28..=31 => Self::Zstd(path),
            32..=33 => Self::Listing(path),
            34 => Self::OtherNar(path),
            35 => Self::Nothing,
            36 => Self::Health,
            37 => Self::Version,
            38 => Self::CacheInfo,
            _ => Self::Metrics,
        }
    }

    /// What it is counted as.
    fn subject(&self, items: &[Item]) -> Subject {
        match self {
            Self::NarInfo(_) | Self::Nothing => Subject::NarInfo,
            Self::Nar { .. } | Self::Zstd(_) | Self::OtherNar(_) => Subject::Nar,
            Self::Listing(_) => Subject::Listing,
            Self::Health => Subject::Health,
            Self::Version => Subject::Other,
            Self::CacheInfo => Subject::CacheInfo,
            Self::Metrics => Subject::Metrics,
            Self::Put(_) | Self::HalfPut(_) => Subject::Upload,
            Self::Item(item) => match &*items[*item].target {
                target if target.ends_with(".narinfo") => Subject::NarInfo,
                target if target.starts_with("/log/") => Subject::Log,
                _ => Subject::Nar,
            },
        }
    }

    /// The request, and how long its head is.
    pub fn say(
        &self,
        random: &mut Random,
        ground: &Ground,
        items: &[Item],
        is_head: bool,
    ) -> (Vec<u8>, usize) {
        let nar_name = |path: usize, form: usize, suffix: &str| {
            let facts = &ground.paths[path];
            let (hash_part, nar_hash) = (facts.path.hash_part(), facts.nar_hash.to_nix32());
            match form {
                0 => format!("/nar/{nar_hash}.nar{suffix}?hash={}", hash_part.as_str()),
                1 => format!("/nar/{}-{nar_hash}.nar{suffix}", hash_part.as_str()),
                _ => format!("/nar/{}.nar{suffix}", hash_part.as_str()),
            }
        };
        let hash_part = |path: usize| ground.paths[path].path.hash_part();
        let mut fields = String::new();
        let target = match self {
            Self::NarInfo(path) => format!("/{}.narinfo", hash_part(*path).as_str()),
            Self::Nar { path, form, range } => {
                match range {
                    Wanted::Whole => {}
                    Wanted::From(start) => fields = format!("Range: bytes={start}-\r\n"),
                    Wanted::FromTo(start, last) => fields = format!("Range: bytes={start}-{last}\r\n"),
                    Wanted::Last(len) => fields = format!("Range: bytes=-{len}\r\n"),
                    Wanted::IfChanged => {
                        fields =
                            format!("If-None-Match: \"{}\"\r\n", ground.paths[*path].nar_hash.to_nix32());
                    }
                }
                nar_name(*path, *form, "")
            }
            Self::Zstd(path) => nar_name(*path, 0, ".zst"),
            Self::Listing(path) => format!("/{}.ls", hash_part(*path).as_str()),
            Self::OtherNar(path) => {
                format!("/nar/{}.nar?hash={}", "0".repeat(52), hash_part(*path).as_str())
            }
            Self::Nothing => format!("/{}.narinfo", "z".repeat(32)),
            Self::Health => "/health".to_owned(),
            Self::Version => "/version".to_owned(),
            Self::CacheInfo => "/nix-cache-info".to_owned(),
            Self::Metrics => "/metrics".to_owned(),
            Self::Item(item) | Self::Put(item) | Self::HalfPut(item) => items[*item].target.clone(),
        };
        let (Self::Put(item) | Self::HalfPut(item)) = self else {
            let method = if is_head { "HEAD" } else { "GET" };
            let head = format!("{method} {target} HTTP/1.1\r\nHost: here\r\n{fields}\r\n").into_bytes();
            let len = head.len();
            return (head, len);
        };
        let body = &items[*item].body;
        if random.chance(20) {
            fields.push_str("Expect: 100-continue\r\n");
        }
        let chunk_len = random.chance(35).then(|| random.pick(&[body.len() / 20 + 1, 5_000, 1 << 20]));
        let framing = match chunk_len {
            None => format!("Content-Length: {}", body.len()),
            Some(_) => "Transfer-Encoding: chunked".to_owned(),
        };
        let mut says =
            format!("PUT {target} HTTP/1.1\r\nHost: here\r\n{fields}{framing}\r\n\r\n").into_bytes();
        let head_len = says.len();
        match chunk_len {
            None => says.extend_from_slice(body),
            Some(len) => {
                for chunk in body.chunks(len) {
                    says.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                    says.extend_from_slice(chunk);
                    says.extend_from_slice(b"\r\n");
                }
                says.extend_from_slice(b"0\r\n\r\n");
            }
        }
        if matches!(self, Self::HalfPut(_)) {
            says.truncate(head_len + random.below(says.len() - head_len));
        }
        (says, head_len)
    }
}

/// Understands what a peer hears, as it comes.
#[derive(Debug, Default)]
pub struct Ear {
    /// All before this is understood. Bytes.
    position: usize,
    pub answers: Vec<Heard>,
    /// When the first byte behind `position` came.
    since: Option<Moment>,
}

impl Ear {
    /// Listens to `sent`; `asked` are the requests that it answers.
    pub fn listen(&mut self, sent: &[u8], asked: &[Said], now: Moment) {
        while self.position < sent.len() {
            let since = *self.since.get_or_insert(now);
            let rest = &sent[self.position..];
            // What is no answer to a request is one to what cannot be understood; there is none here.
            let Some(said) = asked.get(self.answers.len()) else {
                panic!("an answer to nothing: {}", rest[..rest.len().min(200)].escape_ascii())
            };
            let Some((heard, len)) = understand(rest, said.is_head, since) else { return };
            if heard.status == 100 {
                self.position += len;
                self.since = None;
                continue;
            }
            if !heard.is_whole {
                return;
            }
            self.answers.push(heard);
            self.position += len;
            self.since = None;
        }
    }

    /// What there is of an answer that is not whole.
    pub fn rest(&self, sent: &[u8], asked: &[Said]) -> Option<Heard> {
        let rest = &sent[self.position..];
        let said = asked.get(self.answers.len())?;
        understand(rest, said.is_head, self.since?).map(|(heard, _)| heard)
    }

    /// Whether something has come behind the last whole answer.
    pub fn is_amid(&self, sent: &[u8]) -> bool {
        self.position < sent.len()
    }
}

/// The answer at the start of `sent`, and how long it is if it is whole. None while its head is not.
fn understand(sent: &[u8], is_head: bool, since: Moment) -> Option<(Heard, usize)> {
    let head_len = memchr::memmem::find(sent, b"\r\n\r\n")? + 4;
    let head = String::from_utf8(sent[..head_len].to_vec()).expect("a head is text");
    assert!(head.starts_with("HTTP/1.1 "), "{head}");
    let status: u16 = head[9..12].parse().expect("a status");
    let body = &sent[head_len..];
    let heard =
        |body: &[u8], is_whole| Heard { status, head: head.clone(), body: body.to_vec(), is_whole, since };
    if status == 100 || status == 304 || is_head {
        return Some((heard(&[], true), head_len));
    }
    if let Some(len) = field(&head, "Content-Length") {
        let len: usize = len.parse().expect("a length");
        let is_whole = body.len() >= len;
        return Some((heard(&body[..len.min(body.len())], is_whole), head_len + len));
    }
    assert_eq!(field(&head, "Transfer-Encoding"), Some("chunked"), "a body has an end: {head}");
    let (mut decoded, mut rest) = (Vec::new(), body);
    while let Some(line_len) = memchr::memmem::find(rest, b"\r\n") {
        let len =
            usize::from_str_radix(str::from_utf8(&rest[..line_len]).expect("text"), 16).expect("a size");
        rest = &rest[line_len + 2..];
        if rest.len() < len + 2 {
            decoded.extend_from_slice(&rest[..len.min(rest.len())]);
            break;
        }
        decoded.extend_from_slice(&rest[..len]);
        assert_eq!(&rest[len..len + 2], b"\r\n", "the end of a chunk");
        rest = &rest[len + 2..];
        if len == 0 {
            return Some((heard(&decoded, true), sent.len() - rest.len()));
        }
    }
    Some((heard(&decoded, false), 0))
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// What one peer asked and heard.
pub struct Talk {
    pub asked: Vec<Said>,
    /// When the head of each was there; later ones were not.
    pub said: Vec<Moment>,
    pub ear: Ear,
    /// It resets, or does not read: what it hears may end anywhere.
    pub is_cut: bool,
    pub end: Option<End>,
}

/// What was wrong in this world besides what the ground knows.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each of them happens on its own")]
pub struct Troubles {
    /// Something was scarce, so 503 may be heard.
    pub is_scarce: bool,
    /// Files could not be opened, read or written.
    pub has_bad_disk: bool,
    /// The worker ended in the middle.
    pub is_drained: bool,
    /// Who has no token may do nothing.
    pub is_private: bool,
    /// There are fewer places than peers, so one that has not asked for anything for a second may lose its own.
    pub has_few_places: bool,
}

/// Knows what has to be heard.
pub struct Judge<'a> {
    pub ground: &'a Ground,
    pub items: &'a [Item],
    pub troubles: Troubles,
    pub talks: &'a [Talk],
}

/// A verdict on one answer.
type Verdict = Result<(), String>;

impl Judge<'_> {
    /// Checks everything that was heard.
    pub fn judge(&self, sent: impl Fn(usize) -> Vec<u8>) -> Verdict {
        for (index, talk) in self.talks.iter().enumerate() {
            self.judge_talk(talk, &sent(index)).map_err(|fault| format!("peer {index}: {fault}"))?;
        }
        Ok(())
    }

    /// Checks what the worker has counted of all that, which was so many bytes. It has answered what nobody heard only to peers that are
    /// cut, or when it broke off before the head.
    pub fn judge_figures(&self, figures: &Figures, sent_len: u64) -> Verdict {
        let counted_len: u64 = figures.sends.iter().map(|way| way.sent_bytes.get()).sum();
        is(counted_len == sent_len, "other bytes were counted than sent")?;
        let unheard_max =
            if self.talks.iter().any(|talk| talk.is_cut) { u64::MAX } else { total(&figures.truncated) };
        for subject in Subject::ALL {
            for status in Status::ALL {
                let is_it = |(said, heard): &(&Said, &Heard)| {
                    said.ask.subject(self.items) == subject && heard.status == status.code()
                };
                let heard = self.talks.iter().flat_map(|talk| talk.asked.iter().zip(&talk.ear.answers));
                let heard = heard.filter(is_it).count() as u64;
                let counted = figures.topics[usize::from(subject.topic().0)].statuses[status.index()].get();
                let unheard = counted.checked_sub(heard);
                if unheard.is_none_or(|unheard| unheard > unheard_max) {
                    return Err(format!(
                        "{counted} of {} {status:?} were counted, and {heard} heard",
                        subject.label()
                    ));
                }
            }
        }
        Ok(())
    }

    fn judge_talk(&self, talk: &Talk, sent: &[u8]) -> Verdict {
        let mut is_over = false;
        for (index, heard) in talk.ear.answers.iter().enumerate() {
            if is_over {
                return Err(format!("answer {index} after the last one"));
            }
            let said = &talk.asked[index];
            let Some(at) = talk.said.get(index) else {
                return Err(format!("answer {index} came before it was asked for"));
            };
            self.judge_answer(said, *at, heard).map_err(|fault| {
                format!(
                    "answer {index} to {:?} (head: {}): {fault}\n{}{}",
                    said.ask,
                    said.is_head,
                    heard.head,
                    heard.body[..heard.body.len().min(300)].escape_ascii()
                )
            })?;
            is_over = field(&heard.head, "Connection") == Some("close");
        }
        let index = talk.ear.answers.len();
        if talk.ear.is_amid(sent) {
            if talk.end == Some(End::Orderly) && !talk.is_cut {
                return Err(format!("answer {index} of {} ends in an orderly way", talk.asked.len()));
            }
            let Some(heard) = talk.ear.rest(sent, &talk.asked) else { return Ok(()) };
            let (said, at) = (&talk.asked[index], talk.said[index]);
            let fault =
                |fault| format!("the begun answer {index} to {:?}: {fault}\n{}", said.ask, heard.head);
            self.judge_answer(said, at, &heard).map_err(fault)?;
            if talk.is_cut || self.may_break(&said.ask) {
                return Ok(());
            }
            return Err(fault(format!("{} bytes of its body, and then {:?}", heard.body.len(), talk.end)));
        }
        let next = talk.asked.get(index);
        let is_missing = next.is_some_and(|next| !matches!(next.ask, Ask::HalfPut(_))) && !is_over;
        let may_break = next.is_some_and(|next| self.may_break(&next.ask));
        if is_missing && !talk.is_cut && !self.troubles.is_drained {
            // The reset behind a broken body can come before its first byte.
            if may_break && talk.end == Some(End::Reset) {
                return Ok(());
            }
            // It asked in the moment in which its place was given to another.
            if self.troubles.has_few_places && matches!(talk.end, Some(End::Orderly | End::UnreadReset)) {
                return Ok(());
            }
            return Err(format!(
                "answer {index} of {} to {next:?} is missing, and the end is {:?}",
                talk.asked.len(),
                talk.end
            ));
        }
        Ok(())
    }

    /// Whether the body of an answer may end in a reset.
    fn may_break(&self, ask: &Ask) -> bool {
        match ask {
            Ask::Nar { path, .. } | Ask::Zstd(path) => {
                self.troubles.has_bad_disk || self.ground.paths[*path].is_damaged
            }
            Ask::Item(_) => self.troubles.has_bad_disk,
            _ => false,
        }
    }

    /// Checks an answer, of which only the beginning may be there.
    fn judge_answer(&self, said: &Said, at: Moment, heard: &Heard) -> Verdict {
        if field(&heard.head, "Date").is_none() {
            return Err("it has no date".to_owned());
        }
        if heard.status == 503 {
            if field(&heard.head, "Retry-After").is_none() {
                return Err("it does not say when to come again".to_owned());
            }
            // Another tree was there while it was walked.
            let is_moved = match &said.ask {
                Ask::Nar { path, .. } | Ask::Zstd(path) => {
                    let facts = &self.ground.paths[*path];
                    facts.is_moved || facts.is_damaged
                }
                _ => false,
            };
            let may_refuse = self.troubles.is_scarce || self.troubles.has_bad_disk || is_moved;
            return if may_refuse { Ok(()) } else { Err("nothing was scarce".to_owned()) };
        }
        if self.troubles.is_private && said.ask != Ask::Health {
            return is(heard.status == 401, "it is not for everybody");
        }
        let states = || (at.version..=heard.since.version).map(|version| self.ground.state(version));
        match &said.ask {
            Ask::NarInfo(path) => {
                let facts = &self.ground.paths[*path];
                self.judge_path(*path, states(), false, heard, |heard, signature| {
                    let text = facts.narinfo(signature);
                    is_body(said, heard, text.as_bytes(), text.len())
                })
            }
            Ask::Listing(path) => {
                let text = self.ground.paths[*path].listing.as_bytes();
                self.judge_path(*path, states(), true, heard, |heard, _| {
                    is_body(said, heard, text, text.len())
                })
            }
            Ask::Nar { path, range, .. } => {
                let nar = &self.ground.paths[*path].nar;
                self.judge_path(*path, states(), true, heard, |heard, _| {
                    // Nobody can know of a part that the tree has changed; of the whole its length tells.
                    if self.ground.paths[*path].is_damaged && (!heard.is_whole || heard.status == 206) {
                        return Ok(());
                    }
                    judge_range(said, heard, nar, range)
                })
            }
            Ask::Zstd(path) => {
                let nar = &self.ground.paths[*path].nar;
                self.judge_path(*path, states(), true, heard, |heard, _| {
                    let is_unknown = self.ground.paths[*path].is_damaged && !heard.is_whole;
                    if is_unknown { Ok(()) } else { judge_zstd(said, heard, nar) }
                })
            }
            Ask::OtherNar(_) | Ask::Nothing => is(
                heard.status == 404 || self.troubles.has_bad_disk && heard.status == 500,
                "there is no such thing",
            ),
            Ask::Health => {
                is(heard.status == 200 && (said.is_head || heard.body.starts_with(b"OK\n")), "all is well")
            }
            Ask::Version => is(heard.status == 200, "it has one"),
            Ask::Metrics => is(heard.status == 200, "it counts"),
            Ask::CacheInfo => {
                let has_place = memchr::memmem::find(&heard.body, b"StoreDir: /nix/store\n").is_some();
                is(heard.status == 200 && (said.is_head || has_place), "it is a cache")
            }
            Ask::Item(item) => self.judge_item(*item, said, at, heard),
            Ask::Put(item) => self.judge_put(*item, at, heard),
            Ask::HalfPut(item) => {
                let may_be = [408, 400, 409, 413, 422, 507, 500];
                is(
                    may_be.contains(&heard.status) && self.items[*item].file.len() > 1,
                    "half of it is nothing",
                )
            }
        }
    }

    /// Checks what was said of a path in one of these states of the database.
    fn judge_path<'a>(
        &self,
        path: usize,
        states: impl Iterator<Item = &'a State> + Clone,
        needs_tree: bool,
        heard: &Heard,
        found: impl Fn(&Heard, u32) -> Verdict,
    ) -> Verdict {
        let facts = &self.ground.paths[path];
        let may_lack_tree = needs_tree && (facts.is_damaged || facts.is_moved || self.troubles.has_bad_disk);
        match heard.status {
            404 => is(
                may_lack_tree || states.clone().any(|state| state[path].is_none()),
                "it was valid all the time",
            ),
            500 => is(self.troubles.has_bad_disk, "nothing was wrong with the disk"),
            _ => {
                let mut verdict = Err("it was never valid meanwhile".to_owned());
                for signature in states.filter_map(|state| state[path]) {
                    verdict = found(heard, signature);
                    if verdict.is_ok() {
                        break;
                    }
                }
                verdict
            }
        }
    }

    /// The moments at which the item was asked to be put, and those at which it was acknowledged.
    fn puts(&self, item: usize) -> (Vec<Moment>, Vec<Moment>) {
        let (mut said, mut acknowledged) = (Vec::new(), Vec::new());
        for talk in self.talks {
            for (index, at) in talk.said.iter().enumerate() {
                if talk.asked[index].ask != Ask::Put(item) {
                    continue;
                }
                said.push(*at);
                if let Some(heard) = talk.ear.answers.get(index)
                    && matches!(heard.status, 200 | 201)
                {
                    acknowledged.push(heard.since);
                }
            }
        }
        (said, acknowledged)
    }

    /// Whether the item was acknowledged, by whatever time.
    pub fn is_acknowledged(&self, item: usize) -> bool {
        !self.puts(item).1.is_empty()
    }

    /// Whether somebody has sent the item whole.
    pub fn was_put(&self, item: usize) -> bool {
        !self.puts(item).0.is_empty()
    }

    fn judge_item(&self, item: usize, said: &Said, at: Moment, heard: &Heard) -> Verdict {
        let (put, acknowledged) = self.puts(item);
        let Item { body, is_good, .. } = &self.items[item];
        let is_there = acknowledged.iter().any(|acknowledged| acknowledged.turn < at.turn);
        match heard.status {
            404 => is(!is_there || self.troubles.has_bad_disk, "it was there already"),
            500 => is(self.troubles.has_bad_disk, "nothing was wrong with the disk"),
            200 if *is_good && put.iter().any(|put| put.turn <= heard.since.turn) => {
                is_body(said, heard, body, body.len())
            }
            _ => Err("nobody has put it there".to_owned()),
        }
    }

    fn judge_put(&self, item: usize, at: Moment, heard: &Heard) -> Verdict {
        let Item { is_good, needs, .. } = &self.items[item];
        let (put, acknowledged) = self.puts(item);
        let was_there = acknowledged.iter().any(|acknowledged| acknowledged.turn < at.turn);
        match heard.status {
            200 => is(*is_good && put.len() > 1, "nobody has put it there before"),
            201 => is(*is_good && !was_there, "it was there, or is bad"),
            409 => {
                let has_needed = needs.is_none_or(|needed| {
                    self.puts(needed).1.iter().any(|acknowledged| acknowledged.turn < at.turn)
                });
                is(!has_needed, "what it needs is there")
            }
            400 | 422 => is(!is_good, "it is good"),
            500 | 507 => is(self.troubles.has_bad_disk, "nothing was wrong with the disk"),
            _ => Err("that is no answer to an upload".to_owned()),
        }
    }
}

fn is(is_so: bool, fault: &str) -> Verdict {
    if is_so { Ok(()) } else { Err(fault.to_owned()) }
}

/// Whether this is heard with 200, as far as it was heard.
fn is_body(said: &Said, heard: &Heard, body: &[u8], len: usize) -> Verdict {
    is(heard.status == 200, "200 was due")?;
    is(field(&heard.head, "Content-Length") == Some(&len.to_string()), "another length was due")?;
    judge_bytes(said, heard, body)
}

fn judge_bytes(said: &Said, heard: &Heard, body: &[u8]) -> Verdict {
    if said.is_head {
        return is(heard.body.is_empty(), "a body after HEAD");
    }
    if !body.starts_with(&heard.body) {
        let at = body.iter().zip(&heard.body).position(|(due, heard)| due != heard);
        return Err(format!("other bytes from {at:?} on"));
    }
    is(!heard.is_whole || heard.body.len() == body.len(), "another length")
}

fn judge_range(said: &Said, heard: &Heard, nar: &[u8], range: &Wanted) -> Verdict {
    let len = nar.len();
    // A range is defined for GET alone.
    let part: Range<usize> = match range {
        Wanted::IfChanged => {
            return is(heard.status == 304, "it is the same");
        }
        _ if said.is_head => return is_body(said, heard, nar, len),
        Wanted::Whole => return is_body(said, heard, nar, len),
        Wanted::From(start) | Wanted::FromTo(start, _) if *start >= len => {
            let complete = format!("bytes */{len}");
            return is(
                heard.status == 416 && field(&heard.head, "Content-Range") == Some(&complete),
                "the range lies behind the end",
            );
        }
        Wanted::From(start) => *start..len,
        Wanted::FromTo(start, last) => *start..len.min(last + 1),
        Wanted::Last(last) => len.saturating_sub(*last)..len,
    };
    let wanted = format!("bytes {}-{}/{len}", part.start, part.end - 1);
    is(heard.status == 206, "a part was due")?;
    is(field(&heard.head, "Content-Range") == Some(&wanted), "another range was due")?;
    judge_bytes(said, heard, &nar[part])
}

fn judge_zstd(said: &Said, heard: &Heard, nar: &[u8]) -> Verdict {
    is(heard.status == 200, "200 was due")?;
    if said.is_head {
        return is(heard.body.is_empty(), "a body after HEAD");
    }
    let mut decoded = Vec::new();
    let mut decoder = zstd::stream::read::Decoder::new(&heard.body[..]).map_err(|error| error.to_string())?;
    let whole = std::io::Read::read_to_end(&mut decoder, &mut decoded);
    is(nar.starts_with(&decoded), "other bytes")?;
    is(!heard.is_whole || whole.is_ok() && decoded.len() == nar.len(), "it ended too early")
}
