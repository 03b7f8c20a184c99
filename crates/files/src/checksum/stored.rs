//! A tree as bytes, to be kept beside its snapshot.
//!
//! ```text
//! "hwcs" version flavor node            numbers: LEB128; digests: 32 bytes
//! node = name-length name flags [kind | target-length target | entry-count node*] [digest] [contents]
//! ```
//!
//! The version is a promise: readers of another one begin anew.

use base::Digest;

use super::Flavor;
use super::nodes::{Node, NodeId, Nodes, ROOT, What};
use crate::stat::Kind;

const MAGIC: &[u8] = b"hwcs\x01";

const FILE: u8 = 0;
const LINK: u8 = 1;
const DIR: u8 = 2;
const LISTED_DIR: u8 = 3;
const TYPE: u8 = 3;
const HAS_DIGEST: u8 = 4;
const HAS_CONTENTS: u8 = 8;

const KINDS: [Kind; 5] = [Kind::File, Kind::Char, Kind::Block, Kind::Fifo, Kind::Socket];

pub(super) fn to_bytes(flavor: Flavor, nodes: &Nodes) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.push((flavor == Flavor::Context).into());
    let mut todo = vec![ROOT];
    while let Some(id) = todo.pop() {
        put_node(&mut bytes, nodes.node(id));
        todo.extend(nodes.children(id).iter().rev());
    }
    bytes
}

/// None if the bytes are not what [`to_bytes`] wrote.
pub(super) fn from_bytes(bytes: &[u8]) -> Option<(Flavor, Nodes)> {
    let mut rest = bytes.strip_prefix(MAGIC)?;
    let flavor = match take(&mut rest, 1)? {
        [0] => Flavor::Snapshot,
        _ => Flavor::Context,
    };
    let mut nodes = Vec::new();
    // Directories whose entries follow, and how many are missing.
    let mut open: Vec<(NodeId, usize)> = Vec::new();
    loop {
        let (node, entries) = take_node(&mut rest)?;
        let id = NodeId::try_from(nodes.len()).ok()?;
        nodes.push(node);
        if let Some((dir, missing)) = open.last_mut() {
            *missing -= 1;
            add_child(&mut nodes, *dir, id)?;
        } else if !nodes[0].is_dir() {
            return None;
        }
        open.push((id, entries));
        while open.last().is_some_and(|(_, missing)| *missing == 0) {
            open.pop();
        }
        if open.is_empty() {
            return rest.is_empty().then_some((flavor, Nodes(nodes)));
        }
    }
}

/// Fails if the names are not in order, for look-ups rely on it.
fn add_child(nodes: &mut [Node], dir: NodeId, id: NodeId) -> Option<()> {
    let before = match &nodes[dir as usize].what {
        What::Dir { children: Some(children), .. } => children.last().copied(),
        _ => return None,
    };
    if before.is_some_and(|before| nodes[before as usize].name >= nodes[id as usize].name) {
        return None;
    }
    match &mut nodes[dir as usize].what {
        What::Dir { children: Some(children), .. } => children.push(id),
        _ => return None,
    }
    Some(())
}

fn put_node(bytes: &mut Vec<u8>, node: &Node) {
    put_text(bytes, &node.name);
    let contents = match &node.what {
        What::Dir { contents, .. } => *contents,
        _ => None,
    };
    let kind = match &node.what {
        What::File(_) => FILE,
        What::Link(_) => LINK,
        What::Dir { children: None, .. } => DIR,
        What::Dir { children: Some(_), .. } => LISTED_DIR,
    };
    let has = |digest: Option<Digest>, flag| if digest.is_some() { flag } else { 0 };
    bytes.push(kind | has(node.digest, HAS_DIGEST) | has(contents, HAS_CONTENTS));
    match &node.what {
        What::File(kind) => bytes.push(KINDS.iter().position(|known| known == kind).unwrap_or(0) as u8),
        What::Link(target) => put_text(bytes, target),
        What::Dir { children: Some(children), .. } => put_number(bytes, children.len()),
        What::Dir { children: None, .. } => {}
    }
    for digest in [node.digest, contents].into_iter().flatten() {
        bytes.extend_from_slice(digest.as_bytes());
    }
}

/// A node and how many entries follow it.
fn take_node(rest: &mut &[u8]) -> Option<(Node, usize)> {
    let name = take_text(rest)?;
    let flags = take(rest, 1)?[0];
    let mut entries = 0;
    let mut what = match flags & TYPE {
        FILE => What::File(*KINDS.get(usize::from(take(rest, 1)?[0]))?),
        LINK => What::Link(take_text(rest)?.into()),
        DIR => What::Dir { children: None, contents: None },
        _ => {
            entries = take_number(rest)?;
            What::Dir { children: Some(Vec::new()), contents: None }
        }
    };
    let digest = take_digest(rest, flags & HAS_DIGEST != 0)?;
    let stored = take_digest(rest, flags & HAS_CONTENTS != 0)?;
    match &mut what {
        What::Dir { contents, .. } => *contents = stored,
        _ if stored.is_some() => return None,
        _ => {}
    }
    Some((Node { digest, ..Node::new(name, what) }, entries))
}

fn put_number(bytes: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take_number(rest: &mut &[u8]) -> Option<usize> {
    let mut number = 0_usize;
    for shift in (0..35).step_by(7) {
        let byte = take(rest, 1)?[0];
        number |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

fn put_text(bytes: &mut Vec<u8>, text: &[u8]) {
    put_number(bytes, text.len());
    bytes.extend_from_slice(text);
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = take_number(rest)?;
    take(rest, len)
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(len)?;
    *rest = left;
    Some(taken)
}

fn take_digest(rest: &mut &[u8], there: bool) -> Option<Option<Digest>> {
    if !there {
        return Some(None);
    }
    let bytes: [u8; 32] = take(rest, 32)?.try_into().ok()?;
    Some(Some(Digest::from_bytes(bytes)))
}
