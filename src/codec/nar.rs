//! The NAR format: one file system object and all below it, as one sequence of bytes that depends on nothing else.
//!
//! ```text
//! nar   = "nix-archive-1" node
//! node  = "(" "type" "regular" [ "executable" "" ] "contents" contents ")"
//!       | "(" "type" "symlink" "target" target ")"
//!       | "(" "type" "directory" entry* ")"
//! entry = "entry" "(" "name" name "node" node ")"
//! ```
//!
//! Each terminal is a *word*: its length as a little-endian `u64`, its bytes, zero bytes up to a multiple of 8. The
//! entries of a directory stand in strictly increasing order of the unsigned bytes of their names. Times, owners and all
//! permissions but the owner's execute bit are left out. (Source: `src/libutil/archive.cc` of Nix.)
//!
//! - [`token`]: the framing as byte constants. Required reading for the other three.
//! - [`layout`]: a tree as *framing in one arena plus file ranges*, of which any slice can be looked up.
//! - [`decode`]: bytes in at any split, events out.
//! - [`find`]: one thing out of a NAR that goes by.
//! - [`inner_path`]: where in a tree something is.
//! - [`listing`]: the `.ls` file that tells where in a NAR each file lies.
//! - [`verify`]: from the bytes of a file that holds a NAR, compressed or not, to its hashes and sizes.

pub mod decode;
pub mod find;
pub mod inner_path;
pub mod layout;
pub mod listing;
#[cfg(any(test, fuzzing))]
pub(crate) mod naive;
pub mod token;
pub mod verify;

use crate::limits::{NAR_DEPTH_MAX, NAR_NAME_LEN_MAX, NAR_TARGET_LEN_MAX};

/// What makes a tree no NAR, whether it comes from a disk or from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// A name is empty or longer than [`NAR_NAME_LEN_MAX`].
    #[error("the length of a name is not 1 to {NAR_NAME_LEN_MAX} bytes")]
    NameLength,
    /// A name is `.` or `..`, or holds a slash or a NUL.
    #[error("a name is `.` or `..` or holds a slash or a NUL")]
    NameBytes,
    /// A name does not come after the one before it in the same directory, or repeats it.
    #[error("the entries of a directory are not in strictly increasing order of their names")]
    NameOrder,
    /// The target of a symbolic link is empty or longer than [`NAR_TARGET_LEN_MAX`].
    #[error("the length of a link's target is not 1 to {NAR_TARGET_LEN_MAX} bytes")]
    TargetLength,
    /// The target of a symbolic link holds a NUL.
    #[error("a link's target holds a NUL")]
    TargetBytes,
    /// There are more than [`NAR_DEPTH_MAX`] levels.
    #[error("the tree has more than {NAR_DEPTH_MAX} levels")]
    Depth,
    /// The lengths add up to more than a `u64` can count.
    #[error("the NAR is longer than 2^64 - 1 bytes")]
    Length,
}

/// The length of a symbolic link's target, if it is allowed.
fn target_len(len_bytes: u64) -> Result<usize, TreeError> {
    usize::try_from(len_bytes)
        .ok()
        .filter(|len| (1..=NAR_TARGET_LEN_MAX).contains(len))
        .ok_or(TreeError::TargetLength)
}

fn check_target(target: &[u8]) -> Result<(), TreeError> {
    target_len(target.len() as u64)?;
    if memchr::memchr(0, target).is_some() {
        return Err(TreeError::TargetBytes);
    }
    Ok(())
}

/// The length of an entry's name, if it is allowed.
fn name_len(len_bytes: u64) -> Result<usize, TreeError> {
    usize::try_from(len_bytes)
        .ok()
        .filter(|len| (1..=NAR_NAME_LEN_MAX).contains(len))
        .ok_or(TreeError::NameLength)
}

fn check_name(name: &[u8]) -> Result<(), TreeError> {
    name_len(name.len() as u64)?;
    if matches!(name, b"." | b"..") || memchr::memchr2(b'/', 0, name).is_some() {
        return Err(TreeError::NameBytes);
    }
    Ok(())
}

/// Where in a tree a depth-first traversal stands; the one place that knows the rules of names, order and depth.
///
/// Holds at most `NAR_DEPTH_MAX` names, whatever the size of the tree.
#[derive(Debug, Default)]
struct Position {
    /// The names from the root down to the current node, joined by slashes. Between two entries this is still the path
    /// of the entry just left, whose last name is what the next name must exceed.
    path: Vec<u8>,
    /// For each open directory, where the name of its current entry begins in `path`.
    name_starts: Vec<usize>,
}

impl Position {
    /// The path of the current node relative to the root, which itself is empty.
    fn path(&self) -> &[u8] {
        &self.path
    }

    /// The number of directories around the current node, 0 for the root.
    fn level(&self) -> usize {
        self.name_starts.len()
    }

    /// The current node is a directory: what follows is in it.
    fn enter_directory(&mut self) {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.name_starts.push(self.path.len());
    }

    /// Moves on to the entry `name` of the innermost open directory.
    fn enter_entry(&mut self, name: &[u8]) -> Result<(), TreeError> {
        check_name(name)?;
        if self.level() >= NAR_DEPTH_MAX {
            return Err(TreeError::Depth);
        }
        let start = self.name_starts.last().copied().unwrap_or(0);
        // Before the first entry the name here is empty, and every name exceeds the empty one.
        if name <= &self.path[start..] {
            return Err(TreeError::NameOrder);
        }
        self.path.truncate(start);
        self.path.extend_from_slice(name);
        Ok(())
    }

    /// Closes the innermost open directory, which becomes the current node again.
    fn leave_directory(&mut self) {
        let start = self.name_starts.pop().unwrap_or(0);
        // Without the slash before it; the root has none.
        self.path.truncate(start.saturating_sub(1));
    }
}
