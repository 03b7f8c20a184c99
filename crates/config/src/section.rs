//! What a table of the file is made of: [`section!`] declares a struct, its keys and their docs in one place,
//! and derives the reader and the reference from it.
//!
//! Reading *applies*: a key that is present replaces what an earlier file said, a key that is absent leaves it.
//! Lists are replaced whole; tables (such as `[registry."host"]`) are merged key by key.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value in the file: where it stands and what it is.
pub(crate) struct Place<'t> {
    /// The full key: `worker.oci.gc`.
    pub path: String,
    /// Its value.
    pub value: &'t DeValue<'t>,
    /// Bytes of the file.
    pub span: Range<usize>,
}

/// A value that is not what its key wants.
pub(crate) struct Bad {
    /// The full key.
    pub path: String,
    /// Bytes of the file.
    pub span: Range<usize>,
    /// What was expected and found.
    pub message: String,
}

/// A key that no section declares.
pub(crate) struct Unknown {
    /// The full key.
    pub path: String,
    /// Bytes of the file.
    pub span: Range<usize>,
    /// A declared key that looks like it.
    pub nearest: Option<String>,
}

impl Place<'_> {
    /// Fails with what was expected here.
    pub fn expected(&self, what: &str) -> Bad {
        self.bad(format!("expected {what}, found {}", kind_of(self.value)))
    }

    /// Fails with a message of its own.
    pub fn bad(&self, message: impl Into<String>) -> Bad {
        Bad { path: self.path.clone(), span: self.span.clone(), message: message.into() }
    }
}

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// The keys of one table that nobody has taken yet.
pub(crate) struct Keys<'t> {
    prefix: String,
    /// Lower-case key -> key and value as written.
    left: BTreeMap<String, (String, Range<usize>, &'t Spanned<DeValue<'t>>)>,
    declared: Vec<&'static str>,
}

impl<'t> Keys<'t> {
    pub fn new(prefix: &str, table: &'t DeTable<'t>) -> Keys<'t> {
        let entry = |(key, value): (&'t Spanned<_>, &'t Spanned<DeValue<'t>>)| {
            let key: &Spanned<std::borrow::Cow<'t, str>> = key;
            (key.get_ref().to_lowercase(), (key.get_ref().clone().into_owned(), key.span(), value))
        };
        Keys { prefix: prefix.to_owned(), left: table.iter().map(entry).collect(), declared: Vec::new() }
    }

    /// The value of `key`, matched in any case.
    pub fn take(&mut self, key: &'static str) -> Option<Place<'t>> {
        self.declared.push(key);
        let (_, _, value) = self.left.remove(&key.to_lowercase())?;
        Some(Place { path: join(&self.prefix, key), value: value.get_ref(), span: value.span() })
    }

    /// What is left, as keys that nobody declares.
    pub fn finish(self, unknown: &mut Vec<Unknown>) {
        for (lower, (written, span, _)) in self.left {
            let nearest = nearest(&lower, &self.declared).map(|key| join(&self.prefix, key));
            unknown.push(Unknown { path: join(&self.prefix, &written), span, nearest });
        }
    }
}

/// `prefix.key`, with quotes where TOML wants them.
pub(crate) fn join(prefix: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    let key = if bare { key.to_owned() } else { format!("\"{key}\"") };
    if prefix.is_empty() { key } else { format!("{prefix}.{key}") }
}

/// The declared key with the least edits, if they are few.
fn nearest(written: &str, declared: &[&'static str]) -> Option<&'static str> {
    let plain = |key: &str| key.to_lowercase().replace(['-', '_'], "");
    let scored = declared.iter().map(|key| (base::suggest::edits(&plain(written), &plain(key)), *key));
    scored.filter(|(n, key)| *n <= 1 + key.len() / 6).min().map(|(_, key)| key)
}

/// A line of the reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Declared {
    /// The full key.
    pub path: String,
    /// What a value looks like; empty for a table.
    pub form: String,
    /// Its documentation.
    pub docs: String,
}

/// A type that a key can have.
pub(crate) trait Key {
    /// Takes the value at `place`.
    fn apply(&mut self, place: &Place<'_>, unknown: &mut Vec<Unknown>) -> Result<(), Bad>;

    /// What a value looks like, for the reference.
    fn form() -> String;

    /// The keys below this one, for the reference.
    fn below(_prefix: &str, _out: &mut Vec<Declared>) {}
}

/// A table with declared keys.
pub(crate) trait Section {
    /// Takes every key that it declares.
    fn apply_keys(&mut self, keys: &mut Keys<'_>, unknown: &mut Vec<Unknown>) -> Result<(), Bad>;

    /// Lists every key that it declares.
    fn declared(prefix: &str, out: &mut Vec<Declared>);
}

/// Reads a whole table into a section.
pub(crate) fn apply_table<S: Section>(
    section: &mut S,
    path: &str,
    table: &DeTable<'_>,
    unknown: &mut Vec<Unknown>,
) -> Result<(), Bad> {
    let mut keys = Keys::new(path, table);
    section.apply_keys(&mut keys, unknown)?;
    keys.finish(unknown);
    Ok(())
}

/// Declares a section: a struct whose fields are `name: Type = "key"`, then `with { name: Section }` for
/// fields whose keys stand in the same table.
macro_rules! section {
    (
        $(#[doc = $head:literal])+
        pub struct $name:ident {
            $( $(#[doc = $docs:literal])+ $field:ident : $ty:ty = $key:literal, )*
        }
        $( with { $( $(#[doc = $flat_docs:literal])+ $flat:ident : $flat_ty:ty, )* } )?
    ) => {
        $(#[doc = $head])+
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $name {
            $( $(#[doc = $docs])+ pub $field: $ty, )*
            $($( $(#[doc = $flat_docs])+ pub $flat: $flat_ty, )*)?
        }

        impl $crate::section::Section for $name {
            fn apply_keys(
                &mut self,
                keys: &mut $crate::section::Keys<'_>,
                unknown: &mut Vec<$crate::section::Unknown>,
            ) -> Result<(), $crate::section::Bad> {
                $( if let Some(place) = keys.take($key) {
                    $crate::section::Key::apply(&mut self.$field, &place, unknown)?;
                } )*
                $($( self.$flat.apply_keys(keys, unknown)?; )*)?
                Ok(())
            }

            fn declared(prefix: &str, out: &mut Vec<$crate::section::Declared>) {
                $(
                    let path = $crate::section::join(prefix, $key);
                    out.push($crate::section::Declared {
                        path: path.clone(),
                        form: <$ty as $crate::section::Key>::form(),
                        docs: concat!($($docs, "\n"),+).trim().to_owned(),
                    });
                    <$ty as $crate::section::Key>::below(&path, out);
                )*
                $($( <$flat_ty as $crate::section::Section>::declared(prefix, out); )*)?
            }
        }

        impl $crate::section::Key for $name {
            fn apply(
                &mut self,
                place: &$crate::section::Place<'_>,
                unknown: &mut Vec<$crate::section::Unknown>,
            ) -> Result<(), $crate::section::Bad> {
                let table = place.value.as_table().ok_or_else(|| place.expected("a table"))?;
                $crate::section::apply_table(self, &place.path, table, unknown)
            }

            fn form() -> String {
                String::new()
            }

            fn below(prefix: &str, out: &mut Vec<$crate::section::Declared>) {
                <$name as $crate::section::Section>::declared(prefix, out);
            }
        }
    };
}
pub(crate) use section;
