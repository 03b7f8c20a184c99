//! The changes of an overlay layer: a walk over its own directory.

use std::ffi::CStr;

use super::merged::Merged;
use super::same::same;
use super::sequence::{Kind, Sequence};
use super::{Stop, trees};

/// Reports what `upper` (one directory) changes on `base`.
pub(super) fn walk<E>(upper: &Merged, base: &Merged, to: &mut Sequence<'_, E>) -> Result<(), Stop<E>> {
    let at = |name: &CStr| {
        let path = upper.path_of(name);
        move |e| Stop::Walk(path, e)
    };
    for name in upper.raw_names().map_err(at(c""))? {
        let Some(node) = upper.look_raw(&name).map_err(at(&name))? else { continue };
        let old = if base.is_nothing() { None } else { base.look(&name).map_err(at(&name))? };
        let path = upper.path_of(&name);
        if node.is_whiteout() {
            // A whiteout of nothing says nothing.
            if old.is_some() {
                to.change(Kind::Delete, path, None)?;
            }
            continue;
        }
        match &old {
            None => to.change(Kind::Add, path, Some(&node))?,
            // Copied up, and then not changed: a directory for the sake of what is in it, most of all.
            Some(old) if !to.keeps(&path) && same(old, &node).map_err(at(&name))? => {}
            Some(_) => to.change(Kind::Modify, path, Some(&node))?,
        }
        if !node.is_dir() {
            continue;
        }
        let inside = upper.descend(&name).map_err(at(&name))?;
        let below = if old.as_ref().is_some_and(|old| old.is_dir()) {
            base.descend(&name).map_err(at(&name))?
        } else {
            Merged::nothing()
        };
        if old.is_some() && inside.is_opaque().map_err(at(&name))? {
            trees::walk(&below, &inside.topmost(), to)?;
        } else {
            walk(&inside, &below, to)?;
        }
    }
    Ok(())
}
