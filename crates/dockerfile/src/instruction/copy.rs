//! `COPY` and `ADD`.

use super::{Kind, flag::Flags, words};
use crate::error::{Error, Result};
use crate::parse::{Heredoc, Line, chomp};

/// `COPY` or `ADD`.
#[derive(Clone, Debug)]
pub struct Copy {
    /// `ADD`: addresses are fetched, archives unpacked.
    pub add: bool,
    /// Paths, patterns, addresses.
    pub sources: Vec<String>,
    /// Files written in the Dockerfile itself.
    pub inline: Vec<Inline>,
    /// Where to.
    pub dest: String,
    /// `--from`: a stage, its number, an image or a named context.
    pub from: Option<String>,
    /// `--chown`.
    pub chown: String,
    /// `--chmod`.
    pub chmod: String,
    /// `--link`: a layer of its own, independent of what is below.
    pub link: bool,
    /// `--parents`: directories of the sources are kept.
    pub parents: bool,
    /// `--exclude`.
    pub exclude: Vec<String>,
    /// `--keep-git-dir`.
    pub keep_git_dir: Option<bool>,
    /// `--checksum`.
    pub checksum: String,
    /// `--unpack`.
    pub unpack: Option<bool>,
}

/// A file written as a here-document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inline {
    /// Its name.
    pub name: String,
    /// Its content.
    pub content: String,
    /// Variables in it are expanded.
    pub expand: bool,
}

pub(super) fn parse(line: &Line, flags: &mut Flags<'_>, add: bool) -> Result<Kind> {
    let name = if add { "ADD" } else { "COPY" };
    let text = |flag: Option<String>| flag.unwrap_or_default();
    let mut copy = Copy {
        add,
        sources: Vec::new(),
        inline: Vec::new(),
        dest: String::new(),
        from: None,
        chown: text(flags.text("chown")?),
        chmod: text(flags.text("chmod")?),
        link: flags.switch("link")?.unwrap_or(false),
        parents: false,
        exclude: flags.texts("exclude")?,
        keep_git_dir: None,
        checksum: String::new(),
        unpack: None,
    };
    if add {
        copy.keep_git_dir = flags.switch("keep-git-dir")?;
        copy.checksum = text(flags.text("checksum")?);
        copy.unpack = flags.switch("unpack")?;
    } else {
        copy.from = flags.text("from")?.filter(|from| !from.is_empty());
        copy.parents = flags.switch("parents")?.unwrap_or(false);
    }
    let (dest, sources) = match words(line) {
        [] => return Err(Error::new(format!("{name} needs a source and a destination"))),
        [one] => return Err(Error::new(format!("{name} needs a source and a destination, and has only `{one}`"))),
        [sources @ .., dest] => (dest, sources),
    };
    if Heredoc::parse(dest).ok().flatten().is_some() {
        return Err(Error::new(format!("the destination of {name} is a here-document: `{dest}`")));
    }
    dest.clone_into(&mut copy.dest);
    for source in sources {
        let Some(doc) = Heredoc::parse(source).ok().flatten() else {
            copy.sources.push(source.clone());
            continue;
        };
        let mut written = line.heredocs.iter().rev();
        let content = written.find(|have| have.name == doc.name).map_or("", |have| &have.content);
        let content = if doc.chomp { chomp(content) } else { content.to_owned() };
        copy.inline.push(Inline { name: doc.name, content, expand: doc.expand });
    }
    Ok(Kind::Copy(Box::new(copy)))
}
