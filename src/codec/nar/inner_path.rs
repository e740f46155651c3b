//! Where in a tree something is.

use std::fmt;

use super::{TreeError, check_name};
use crate::limits::{NAR_DEPTH_MAX, NAR_PATH_LEN_MAX};

/// The names from the root of a tree down to one of its files. Each is a name that a NAR can have, so none leads up or out.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InnerPath {
    /// The names, joined by slashes.
    joined: Vec<u8>,
    depth: usize,
}

impl InnerPath {
    /// Goes down to `name`.
    pub fn push(&mut self, name: &[u8]) -> Result<(), TreeError> {
        check_name(name)?;
        if self.depth >= NAR_DEPTH_MAX || self.joined.len() + name.len() >= NAR_PATH_LEN_MAX {
            return Err(TreeError::Depth);
        }
        if !self.is_root() {
            self.joined.push(b'/');
        }
        self.joined.extend_from_slice(name);
        self.depth += 1;
        Ok(())
    }

    /// The path that goes on with `name`.
    pub fn join(&self, name: &[u8]) -> Result<Self, TreeError> {
        let mut path = self.clone();
        path.push(name)?;
        Ok(path)
    }

    /// Whether it is that of the root.
    pub fn is_root(&self) -> bool {
        self.depth == 0
    }

    /// How many names there are.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// The names, from the root down.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.joined.split(|&byte| byte == b'/').take(self.depth)
    }

    /// The last name; the root has none.
    pub fn last(&self) -> Option<&[u8]> {
        self.names().last()
    }

    /// The names, joined by slashes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.joined
    }
}

impl fmt::Debug for InnerPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.joined.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_down() {
        let mut path = InnerPath::default();
        assert!(path.is_root() && path.last().is_none() && path.names().next().is_none());
        for (depth, name) in [&b"a"[..], b"\xff b", b"..."].into_iter().enumerate() {
            path.push(name).unwrap();
            assert_eq!((path.last(), path.depth()), (Some(name), depth + 1));
        }
        assert_eq!((path.as_bytes(), path.names().count()), (&b"a/\xff b/..."[..], 3));
        assert_eq!(path.join(b"x").unwrap().as_bytes(), b"a/\xff b/.../x");
    }

    #[test]
    fn what_leads_elsewhere_is_no_name() {
        let mut path = InnerPath::default();
        for name in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0"] {
            assert!(path.push(name).is_err());
        }
        assert!(path.is_root());
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let fill = |name: &[u8]| {
            let mut path = InnerPath::default();
            while path.push(name).is_ok() {}
            path
        };
        assert_eq!(fill(b"a").depth(), NAR_DEPTH_MAX);
        assert!((NAR_PATH_LEN_MAX - 255..=NAR_PATH_LEN_MAX).contains(&fill(&[b'a'; 255]).as_bytes().len()));
    }
}
