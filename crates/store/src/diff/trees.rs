//! The changes between two whole trees, walked side by side (continuity `fs/diff.go`, the double walk).

use std::cmp::Ordering;
use std::ffi::CStr;

use super::Stop;
use super::merged::Merged;
use super::same::same;
use super::sequence::{Kind, Sequence};

/// Reports what leads from `old` to `new`.
pub(super) fn walk<E>(old: &Merged, new: &Merged, to: &mut Sequence<'_, E>) -> Result<(), Stop<E>> {
    let at = |name: &CStr| {
        let path = new.path_of(name);
        move |e| Stop::Walk(path, e)
    };
    let (before, after) = (old.names().map_err(at(c""))?, new.names().map_err(at(c""))?);
    let (mut before, mut after) = (before.into_iter().peekable(), after.into_iter().peekable());
    loop {
        let order = match (before.peek(), after.peek()) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => a.cmp(b),
        };
        let gone = if order.is_le() { before.next() } else { None };
        let Some(name) = (if order.is_ge() { after.next() } else { None }) else {
            if let Some(name) = gone {
                to.change(Kind::Delete, new.path_of(&name), None)?;
            }
            continue;
        };
        let Some(node) = new.look(&name).map_err(at(&name))? else { continue };
        let was = if gone.is_some() { old.look(&name).map_err(at(&name))? } else { None };
        let kind = match &was {
            None => Kind::Add,
            Some(was) if same(was, &node).map_err(at(&name))? => Kind::Unmodified,
            Some(_) => Kind::Modify,
        };
        to.change(kind, new.path_of(&name), Some(&node))?;
        if node.is_dir() {
            let below = match was {
                Some(was) if was.is_dir() => old.descend(&name).map_err(at(&name))?,
                _ => Merged::nothing(),
            };
            walk(&below, &new.descend(&name).map_err(at(&name))?, to)?;
        }
    }
}
