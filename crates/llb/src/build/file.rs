//! The op that changes files without running anything.

use super::{Builder, Constraints, Op, Output, State};
use crate::path;

/// One change. Relative paths count from the working directory of the state that is changed.
#[derive(Clone, Debug)]
pub enum FileAction {
    /// Makes a directory.
    Mkdir {
        /// Where.
        path: String,
        /// Permission bits.
        mode: u32,
        /// Make what is missing above it.
        parents: bool,
        /// Owner.
        owner: Option<Owner>,
        /// Time, in nanoseconds since 1970.
        created: Option<i64>,
    },
    /// Writes a file.
    Mkfile {
        /// Where.
        path: String,
        /// Permission bits.
        mode: u32,
        /// What.
        data: Vec<u8>,
        /// Owner.
        owner: Option<Owner>,
        /// Time, in nanoseconds since 1970.
        created: Option<i64>,
    },
    /// Copies from a state.
    Copy(Box<CopyInfo>),
}

/// How to copy.
#[derive(Clone, Debug)]
pub struct CopyInfo {
    /// From what.
    pub source: State,
    /// What of it.
    pub src: String,
    /// Where to. A final slash means a directory.
    pub dest: String,
    /// New permissions.
    pub chmod: Option<Chmod>,
    /// New owner.
    pub owner: Option<Owner>,
    /// Symbolic links in `src` are followed.
    pub follow_symlinks: bool,
    /// Of a directory, its contents.
    pub contents_only: bool,
    /// Only what matches.
    pub include: Vec<String>,
    /// Not what matches.
    pub exclude: Vec<String>,
    /// What `include` must have found.
    pub required: Vec<String>,
    /// Archives are unpacked.
    pub unpack: bool,
    /// `dest` is made if it is missing.
    pub create_dest: bool,
    /// `src` is a pattern.
    pub wildcard: bool,
    /// A pattern may match nothing.
    pub empty_wildcard: bool,
}

impl CopyInfo {
    /// A plain copy that makes its destination.
    pub fn new(source: &State, src: &str, dest: &str) -> CopyInfo {
        CopyInfo {
            source: source.clone(),
            src: src.to_owned(),
            dest: dest.to_owned(),
            chmod: None,
            owner: None,
            follow_symlinks: false,
            contents_only: false,
            include: Vec::new(),
            exclude: Vec::new(),
            required: Vec::new(),
            unpack: false,
            create_dest: true,
            wildcard: false,
            empty_wildcard: false,
        }
    }
}

/// New permissions of copied files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chmod {
    /// These bits.
    Bits(u32),
    /// As `chmod` takes them: `u+rwX,go=rX`.
    Symbolic(String),
}

/// Owner and group; a missing one stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub user: Option<User>,
    /// The group.
    pub group: Option<User>,
}

/// A user or group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// By number.
    Id(u32),
    /// By name, looked up in the state that is changed.
    Name(String),
}

impl Owner {
    /// `user[:group]`, names or numbers.
    pub fn parse(text: &str) -> Owner {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        Owner { user: Some(User::parse(user)), group: group.map(User::parse) }
    }

    /// By numbers.
    pub fn ids(uid: u32, gid: u32) -> Owner {
        Owner { user: Some(User::Id(uid)), group: Some(User::Id(gid)) }
    }
}

impl User {
    fn parse(text: &str) -> User {
        // Numbers are 32 bit signed upstream; what does not fit is a name. Without text it is number 0.
        match text.parse::<i32>() {
            _ if text == "root" || text.is_empty() => User::Id(0),
            Ok(id) => User::Id(id.cast_unsigned()),
            Err(_) => User::Name(text.to_owned()),
        }
    }
}

#[derive(Debug)]
pub(super) struct FileNode {
    pub base: Option<Output>,
    pub dir: String,
    pub actions: Vec<FileAction>,
}

impl Builder {
    /// Changes a state by actions, one after the other.
    pub fn file(&mut self, state: &State, actions: Vec<FileAction>, constraints: Constraints) -> State {
        let node = FileNode { base: state.output, dir: state.dir().to_owned(), actions };
        let output = self.push(Op::File(node), constraints);
        state.with_output(Some(output))
    }
}

impl CopyInfo {
    /// The source path as it is marshalled: absolute, from the source's own directory.
    pub(super) fn source_path(&self) -> String {
        let src = path::clean(&self.src);
        if path::is_abs(&src) { src } else { path::join(&[self.source.dir(), &src]) }
    }
}
