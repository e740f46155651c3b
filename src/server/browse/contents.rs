//! What is in a store path: a file, a page that lists a directory, or where a link leads. Of a live store it is taken out of the tree, of a
//! cache directory out of the file that holds the NAR.

use std::os::fd::OwnedFd;

use bytes::Bytes;

use super::{Browser, Place, Visit, within};
use crate::codec::hash::Sha256;
use crate::codec::http::field::ETag;
use crate::codec::http::response::{CacheControl, Fields};
use crate::codec::http::route::{ContentsRequest, Route};
use crate::codec::http::{Status, media};
use crate::codec::nar::find::{Found, Listed};
use crate::codec::nar::inner_path::InnerPath;
use crate::codec::narinfo::{Compression, NarInfo};
use crate::codec::store_path::StorePath;
use crate::limits::{BROWSED_AT_ONCE_LEN_MAX, BROWSED_ENTRIES_MAX, BROWSED_START_LEN, BROWSED_TIME_MAX};
use crate::server::lookup::SharedStore;
use crate::server::page::browse::{self, Spot};
use crate::server::page::details::nar_link;
use crate::server::page::parts::contents_url;
use crate::server::plane::Toolbox;
use crate::server::refusal::Failure;
use crate::server::representation::{Made, MadeContent};
use crate::store::directory::Directory;
use crate::store::inside::{self, Entries, Node};
use crate::store::nar_file::{self, Outcome};
use crate::store::{StoreError, walk};

impl Browser {
    /// What is in a path, of the first source that has the path.
    pub(super) fn contents(
        &self,
        request: &ContentsRequest,
        visit: &Visit<'_>,
        toolbox: &mut Toolbox,
    ) -> Result<Option<Made>, Failure> {
        for place in &self.places {
            let narinfo = match place.unsigned_narinfo(toolbox, request.hash_part, &self.store_dir) {
                Ok(Some(narinfo)) => narinfo,
                Ok(None) | Err(Failure::Damaged) => continue,
                Err(failure) => return Err(failure),
            };
            let found = match place {
                Place::Store(store) => look_into_store(store, &narinfo, request, visit, toolbox),
                Place::Directory(directory) => {
                    // A flat one as well: it can be a million small files, of which each is met with on the way.
                    let is_long = narinfo.info.nar_size > BROWSED_AT_ONCE_LEN_MAX;
                    let _long = if is_long { Some(self.must_look_long()?) } else { None };
                    self.look_into_nar(&directory.directory, &narinfo, request, visit)
                }
            };
            match found {
                Ok(Some(inside)) => return self.shown(inside, place, &narinfo, request),
                Ok(None) => return Ok(None),
                Err(Failure::Damaged) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(None)
    }

    /// What a visitor gets who has come to that.
    fn shown(
        &self,
        inside: Inside,
        place: &Place,
        narinfo: &NarInfo,
        request: &ContentsRequest,
    ) -> Result<Option<Made>, Failure> {
        let path = &narinfo.info.path;
        let spot = Spot { store_dir: &self.store_dir, path, inner: &request.path };
        let nar_url = || nar_link(&narinfo.url).unwrap_or_default();
        let (status, document) = match inside {
            // What it has is relative to it.
            Inside::Directory { .. } if !request.has_slash => {
                let query = if request.is_listing_wanted { "?listing" } else { "" };
                let url = contents_url(path, &request.path);
                return Ok(Some(Made::elsewhere(&format!("{}/{query}", url.trim_end_matches('/')))));
            }
            Inside::Directory { entries, count } => {
                let is_cut = count > entries.len() as u64;
                let is_listed = is_cut && place.has_listing(request.hash_part);
                (Status::Ok, browse::directory(&spot, &entries, count, is_listed))
            }
            // Nothing is in a file. The root has a slash because of what its page leads to.
            Inside::File { inner, .. } if request.has_slash && !inner.is_root() && inner == request.path => {
                return Ok(None);
            }
            Inside::File { name, inner, start, content } => {
                let tag = [&narinfo.info.nar_hash.0, inner.as_bytes()].concat();
                return Ok(Some(Made {
                    etag: ETag::new(Sha256::digest(&tag).to_nix32().as_bytes()),
                    cache_control: CONTENTS_CACHE_CONTROL,
                    fields: file_guards(),
                    content,
                    ..Made::immutable(media::of(&name, &start), Bytes::new())
                }));
            }
            Inside::Link { target, depth } => match destination(&spot, &target, depth) {
                Some((path, inner)) if (&path, &inner) != (spot.path, spot.inner) => {
                    return Ok(Some(Made::elsewhere(&contents_url(&path, &inner))));
                }
                _ => (Status::Ok, browse::link(&spot, &target)),
            },
            Inside::TooMuch => (Status::NotImplemented, browse::too_much(&spot, &nar_url())),
            Inside::TooSlow => (Status::ServiceUnavailable, browse::too_slow(&spot, &nar_url())),
        };
        self.page(status, document).map(Some)
    }

    /// What is in a path of a cache directory, which is a NAR in a file.
    fn look_into_nar(
        &self,
        directory: &Directory,
        narinfo: &NarInfo,
        request: &ContentsRequest,
        visit: &Visit<'_>,
    ) -> Result<Option<Inside>, Failure> {
        let path = &narinfo.info.path;
        let failed = |error: StoreError| Failure::log(&error);
        // Elsewhere, or of a shape that nobody serves here.
        let Some(name) = Route::parse(format!("/{}", narinfo.url).as_bytes()).file_name() else {
            return Ok(None);
        };
        let Some(file) = directory.open_beneath(name.as_str()).map_err(failed)? else { return Ok(None) };
        let (goes_on, compression) = (within(BROWSED_TIME_MAX, visit.demand), narinfo.compression);
        // Without a slash it is enough that it is a directory: what is in it is asked for next.
        let entries_max = if request.has_slash { BROWSED_ENTRIES_MAX } else { 0 };
        let look = |inner: &InnerPath| {
            nar_file::find(&file, name.as_str(), compression, inner, entries_max, &goes_on).map_err(failed)
        };
        let mut inner = request.path.clone();
        let mut found = look(&inner)?;
        if let (Outcome::Found(Some(Found::Directory { .. })), Some(index)) = (&found, index_of(request)) {
            let of_index = look(&index)?;
            if matches!(of_index, Outcome::Found(Some(Found::Regular { .. }))) {
                (inner, found) = (index, of_index);
            }
        }
        let found = match found {
            Outcome::Found(None) => return Ok(None),
            Outcome::Found(Some(found)) => found,
            Outcome::Stopped => return Ok(Some(Inside::TooSlow)),
        };
        Ok(Some(match found {
            Found::Directory { entries, count } => Inside::Directory { entries, count },
            Found::Symlink { target, depth } => Inside::Link { target, depth },
            Found::Regular { contents: Some(contents), .. } => {
                let start = contents[..contents.len().min(BROWSED_START_LEN)].to_vec();
                let content = MadeContent::Bytes(self.pages.claim(contents)?);
                Inside::File { name: file_name(path, &inner), inner, start, content }
            }
            Found::Regular { size, contents_offset, .. } if compression == Compression::None => {
                let start_len = usize::try_from(size).unwrap_or(usize::MAX).min(BROWSED_START_LEN);
                let start = inside::start(&file, contents_offset, start_len);
                let content =
                    MadeContent::FilePart(file, contents_offset..contents_offset.saturating_add(size));
                Inside::File { name: file_name(path, &inner), inner, start, content }
            }
            Found::Regular { .. } => Inside::TooMuch,
        }))
    }
}

/// What is in a path of a live store. As for a NAR, the root is opened first, which keeps the garbage collector away, and the path has
/// to be valid after that.
fn look_into_store(
    store: &SharedStore,
    narinfo: &NarInfo,
    request: &ContentsRequest,
    visit: &Visit<'_>,
    toolbox: &mut Toolbox,
) -> Result<Option<Inside>, Failure> {
    let path = &narinfo.info.path;
    let failed = |error: StoreError| Failure::log(&error);
    let Some(root) = walk::open_root(store.places(), path).map_err(failed)? else { return Ok(None) };
    let now = store.path_info(toolbox, request.hash_part)?;
    if now.is_none_or(|now| now.nar_hash != narinfo.info.nar_hash) {
        return Ok(None);
    }
    let file = |inner: &InnerPath, file: OwnedFd, size: u64| Inside::File {
        name: file_name(path, inner),
        inner: inner.clone(),
        start: inside::start(&file, 0, BROWSED_START_LEN),
        content: MadeContent::File(file, size),
    };
    Ok(match inside::open(&root, &request.path).map_err(failed)? {
        None => None,
        Some(Node::Regular(opened, size)) => Some(file(&request.path, opened, size)),
        Some(Node::Symlink { target, depth }) => Some(Inside::Link { target, depth }),
        Some(Node::Directory(directory)) => {
            if let Some(index) = index_of(request)
                && let Some(Node::Regular(opened, size)) = inside::open(&root, &index).map_err(failed)?
            {
                return Ok(Some(file(&index, opened, size)));
            }
            if !request.has_slash {
                return Ok(Some(Inside::Directory { entries: Vec::new(), count: 0 }));
            }
            let goes_on = within(BROWSED_TIME_MAX, visit.demand);
            let listed = inside::list(&directory, &root, BROWSED_ENTRIES_MAX, &goes_on).map_err(failed)?;
            Some(
                listed.map_or(Inside::TooSlow, |Entries { entries, count }| Inside::Directory {
                    entries,
                    count,
                }),
            )
        }
    })
}

/// What was found in a path.
enum Inside {
    Directory {
        /// The first of them.
        entries: Vec<Listed>,
        count: u64,
    },
    File {
        name: Vec<u8>,
        /// Where it is, which need not be what was asked for.
        inner: InnerPath,
        /// What it begins with.
        start: Vec<u8>,
        content: MadeContent,
    },
    Link {
        target: Vec<u8>,
        /// How many names lead to it.
        depth: usize,
    },
    /// It is not taken out of its NAR.
    TooMuch,
    /// The time was up.
    TooSlow,
}

/// Others may keep what is in a path for a while: it can be deleted. The entity tag tells whether it is the same later.
const CONTENTS_CACHE_CONTROL: CacheControl = CacheControl::MaxAge(300);

/// What keeps a file of a store path from doing anything in the name of this cache: it is shown, with its pictures, styles and fonts, and
/// nothing in it runs or sends a form. It keeps its origin, for without one a browser would take those from another site's, which get
/// nothing; who runs no script can do nothing with an origin.
fn file_guards() -> Fields {
    const POLICY: &str = "sandbox allow-same-origin; default-src 'none'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; \
                          font-src 'self'; media-src 'self'; base-uri 'none'; form-action 'none'";
    Fields::new().content_security_policy(POLICY).no_sniff().referrer_policy("no-referrer").same_origin()
}

/// The page that a directory has of its own, if that may be shown.
fn index_of(request: &ContentsRequest) -> Option<InnerPath> {
    is_index(request).then(|| request.path.join(b"index.html").ok()).flatten()
}

fn is_index(request: &ContentsRequest) -> bool {
    request.has_slash && !request.is_listing_wanted
}

/// What a file is called, for its type.
fn file_name(path: &StorePath, inner: &InnerPath) -> Vec<u8> {
    inner.last().unwrap_or(path.name().as_bytes()).to_vec()
}

/// Where in the store a link leads that `depth` names of the place lead to, and with it the rest of these names.
fn destination(spot: &Spot<'_>, target: &[u8], depth: usize) -> Option<(StorePath, InnerPath)> {
    let store_dir = spot.store_dir.as_str().as_bytes();
    let mut names: Vec<&[u8]> = Vec::new();
    let target = if target.starts_with(b"/") {
        target.strip_prefix(store_dir)?.strip_prefix(b"/")?
    } else if depth > 0 {
        // Relative to the directory that the link is in; the root itself is in the store directory.
        names.push(spot.path.base_name().as_bytes());
        names.extend(spot.inner.names().take(depth - 1));
        target
    } else {
        target
    };
    for name in target.split(|&byte| byte == b'/').chain(spot.inner.names().skip(depth)) {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()?),
            name => names.push(name),
        }
    }
    let (base_name, rest) = names.split_first()?;
    let path = StorePath::parse_base_name(str::from_utf8(base_name).ok()?).ok()?;
    let mut inner = InnerPath::default();
    for name in rest {
        inner.push(name).ok()?;
    }
    Some((path, inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::codec::store_path::StoreDir;

    const HERE: &str = "0c8r7p9x1m5h3fya2d4g6jbk7lnqsvwz-here";
    const OTHER: &str = "1c8r7p9x1m5h3fya2d4g6jbk7lnqsvwz-other";

    /// Where a link leads whose place, with what stands behind it, is `inner`.
    fn leads(inner: &str, depth: usize, target: &str) -> Option<String> {
        let mut path = InnerPath::default();
        inner.split('/').filter(|name| !name.is_empty()).for_each(|name| path.push(name.as_bytes()).unwrap());
        let (store_dir, here) =
            (StoreDir::parse("/nix/store").unwrap(), StorePath::parse_base_name(HERE).unwrap());
        let spot = Spot { store_dir: &store_dir, path: &here, inner: &path };
        let target = target.replace("HERE", HERE).replace("OTHER", OTHER);
        let (path, inner) = destination(&spot, target.as_bytes(), depth)?;
        let text = format!("{path}:{}", String::from_utf8_lossy(inner.as_bytes()));
        Some(text.replace(HERE, "HERE").replace(OTHER, "OTHER"))
    }

    #[test]
    fn links_lead_to_what_is_in_the_store() {
        for (inner, depth, target, expected) in [
            ("a/link", 2, "x", "HERE:a/x"),
            ("a/link", 2, "./x//y/", "HERE:a/x/y"),
            ("a/link", 2, "../x", "HERE:x"),
            ("a/link", 2, "../../HERE", "HERE:"),
            ("a/link", 2, "../../OTHER/b", "OTHER:b"),
            ("a/link/c/d", 2, "../b", "HERE:b/c/d"),
            ("link", 1, "/nix/store/OTHER", "OTHER:"),
            ("link/c", 1, "/nix/store/OTHER/b", "OTHER:b/c"),
            ("link", 1, "/nix/store/HERE/..//OTHER", "OTHER:"),
            ("", 0, "OTHER", "OTHER:"),
            ("c", 0, "/nix/store/OTHER/b", "OTHER:b/c"),
        ] {
            assert_eq!(leads(inner, depth, target).as_deref(), Some(expected), "{inner} {target}");
        }
    }

    #[test]
    fn links_that_lead_out_lead_nowhere() {
        for (inner, depth, target) in [
            ("a/link", 2, "../.."),
            ("a/link", 2, "../../.."),
            ("a/link", 2, "../../../../etc/passwd"),
            ("a/link", 2, "../../no-store-path/x"),
            ("link", 1, "/etc/passwd"),
            ("link", 1, "/nix/store"),
            ("link", 1, "/nix/store/"),
            ("link", 1, "/nix/storeOTHER"),
            ("link", 1, "/nix/store/../../etc"),
            ("link", 1, "/nix/store/.links/x"),
            ("", 0, "../x"),
        ] {
            assert_eq!(leads(inner, depth, target), None, "{target}");
        }
    }
}
