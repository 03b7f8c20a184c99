//! [`Fault`]: the error that a user sees. Place, cause, way out.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;

use crate::Digest;

/// An error on its way to a person: what failed, why, where in which file, and what to try.
///
/// Rooms below the engine have error enums of their own; the engine turns them into a `Fault` once, where the
/// place is known. `Display` is the whole cause chain in one line; a printer lays out the excerpt and
/// the hint.
#[derive(Clone)]
pub struct Fault(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: Kind,
    message: String,
    source: Option<Arc<dyn StdError + Send + Sync>>,
    hint: Option<String>,
    places: Vec<(Arc<SourceFile>, Vec<SourceSpan>)>,
    vertex: Option<(Digest, String)>,
    exit_code: Option<i32>,
    log_tail: Vec<u8>,
    left: Option<Arc<dyn Any + Send + Sync>>,
    origin: &'static Location<'static>,
}

/// Whose move it is. Decides the gRPC code and whether a retry makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The input is wrong: a Dockerfile, a flag, a step that exits with 1.
    User,
    /// The machine or pod lacks something: a right, space, a program.
    Environment,
    /// A registry or another server failed or refused.
    Remote,
    /// The build was cancelled.
    Cancelled,
    /// A mistake of ours.
    Internal,
}

/// A file that a build was described in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceFile {
    /// The name that people know it by.
    pub name: String,
    /// Its bytes.
    pub data: Vec<u8>,
    /// `Dockerfile` or another language's name, for displays.
    pub language: String,
    /// The marshalled LLB that it was read by, for clients that want to look again. Empty where that is not known.
    pub definition: Vec<u8>,
}

/// Lines and columns of a source file; lines count from 1, columns from 0, ends are inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceSpan {
    /// First line and column.
    pub start: (u32, u32),
    /// Last line and column.
    pub end: (u32, u32),
}

impl SourceSpan {
    /// Whole lines `first..=last`.
    pub const fn lines(first: u32, last: u32) -> SourceSpan {
        SourceSpan { start: (first, 0), end: (last, 0) }
    }
}

impl Fault {
    /// A fault with a message of its own: lower case, no full stop.
    #[track_caller]
    pub fn new(kind: Kind, message: impl Into<String>) -> Fault {
        Fault(Box::new(Inner {
            kind,
            message: message.into(),
            source: None,
            hint: None,
            places: Vec::new(),
            vertex: None,
            exit_code: None,
            log_tail: Vec::new(),
            left: None,
            origin: Location::caller(),
        }))
    }

    /// The input is wrong.
    #[track_caller]
    pub fn user(message: impl Into<String>) -> Fault {
        Fault::new(Kind::User, message)
    }

    /// The build was cancelled.
    #[track_caller]
    pub fn cancelled() -> Fault {
        Fault::new(Kind::Cancelled, "build cancelled")
    }

    /// `doing` failed because of `source`. The message must not repeat the source.
    #[track_caller]
    pub fn because(kind: Kind, doing: impl Into<String>, source: impl StdError + Send + Sync + 'static) -> Fault {
        let mut fault = Fault::new(kind, doing);
        fault.0.source = Some(Arc::new(source));
        fault
    }

    /// Puts what was being done in front.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Fault {
        self.0.message = format!("{doing}: {}", self.0.message);
        self
    }

    /// What to try next. The first hint, given where most is known, wins.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Fault {
        self.0.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Puts a better hint in the place of what was hinted at.
    #[must_use]
    pub fn better_hint(mut self, hint: impl Into<String>) -> Fault {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds a place; the first one is the one to show.
    #[must_use]
    pub fn at(mut self, file: &Arc<SourceFile>, spans: &[SourceSpan]) -> Fault {
        self.0.places.push((file.clone(), spans.to_vec()));
        self
    }

    /// Names the vertex that failed. The innermost one wins.
    #[must_use]
    pub fn vertex(mut self, digest: Digest, name: &str) -> Fault {
        self.0.vertex.get_or_insert_with(|| (digest, name.to_owned()));
        self
    }

    /// The exit code of the step that failed.
    #[must_use]
    pub fn exit_code(mut self, code: i32) -> Fault {
        self.0.exit_code = Some(code);
        self
    }

    /// The last output of the step that failed.
    #[must_use]
    pub fn log_tail(mut self, tail: impl Into<Vec<u8>>) -> Fault {
        self.0.log_tail = tail.into();
        self
    }

    /// Hands on what the failure left behind, to whoever knows its type. It lives as long as the fault and its clones.
    #[must_use]
    pub fn leaves<T: Any + Send + Sync>(mut self, left: T) -> Fault {
        self.0.left = Some(Arc::new(left));
        self
    }

    /// Whose move it is.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The message and the chain of causes, `: ` between them, without repeats.
    pub fn cause(&self) -> String {
        let mut out = self.0.message.clone();
        let mut next: Option<&dyn StdError> = self.0.source.as_deref().map(|e| e as &dyn StdError);
        while let Some(error) = next {
            let text = error.to_string();
            if !out.ends_with(&text) {
                out.push_str(": ");
                out.push_str(&text);
            }
            next = error.source();
        }
        out
    }

    /// The first cause of this type.
    pub fn find<E: StdError + 'static>(&self) -> Option<&E> {
        let mut next: Option<&(dyn StdError + 'static)> = self.0.source.as_deref().map(|e| e as _);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref() {
                return Some(found);
            }
            next = error.source();
        }
        None
    }

    /// What caused it.
    pub fn get_source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }

    /// What to try next.
    pub fn get_hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Where, most specific first.
    pub fn places(&self) -> &[(Arc<SourceFile>, Vec<SourceSpan>)] {
        &self.0.places
    }

    /// The vertex that failed and its name.
    pub fn get_vertex(&self) -> Option<(Digest, &str)> {
        self.0.vertex.as_ref().map(|(digest, name)| (*digest, name.as_str()))
    }

    /// The exit code of the step that failed.
    pub fn get_exit_code(&self) -> Option<i32> {
        self.0.exit_code
    }

    /// What the failure left behind, if it is of this type.
    pub fn get_left<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.0.left.clone()?.downcast().ok()
    }

    /// Where in our own sources it was made: for who looks for the reason there.
    pub fn origin(&self) -> &'static Location<'static> {
        self.0.origin
    }

    /// The last output of the step that failed.
    pub fn get_log_tail(&self) -> &[u8] {
        &self.0.log_tail
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause())
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fault")
            .field("kind", &self.0.kind)
            .field("cause", &self.cause())
            .field("vertex", &self.0.vertex)
            .field("hint", &self.0.hint)
            .finish_non_exhaustive()
    }
}

impl StdError for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cause_walks_the_chain_once() {
        let io = std::io::Error::other("no space left");
        let fault = Fault::because(Kind::Environment, "cannot write `/x`", io).context("layer 3").hint("prune");
        assert_eq!(fault.to_string(), "layer 3: cannot write `/x`: no space left");
        assert!(fault.find::<std::io::Error>().is_some() && fault.find::<fmt::Error>().is_none());
        assert_eq!(fault.hint("other").get_hint(), Some("prune"));
    }
}
