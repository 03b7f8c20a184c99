//! The build context: a session's directory, a git repository, a download or LLB of the client.

use llb::build::{Builder, Constraints, CopyInfo, Defaults, FileAction, Http, State};
use llb::pb;

use crate::ask::{Ask, ReadRequest};
use crate::error::{Error, Result};
use crate::git::Repository;
use crate::options::Options;

/// Where `COPY` copies from.
#[derive(Debug)]
pub(crate) enum Context {
    /// A directory of the session.
    Local,
    /// A git repository.
    Git { repository: Repository, typed: String },
    /// An archive, or a single file: then it is the Dockerfile.
    Download { url: String, archive: bool },
    /// LLB of the client.
    Input(pb::Definition),
}

/// The name that a downloaded context has.
const DOWNLOADED: &str = "context";

impl Context {
    /// Sees what the options ask for. Looks at the first bytes of a download.
    pub fn find(options: &Options, session: &str, ask: &dyn Ask) -> Result<Context> {
        let Some(typed) = &options.remote_context else {
            return Ok(ask.input("context")?.map_or(Context::Local, Context::Input));
        };
        let wrong = |what: String| Error::option("context", what);
        if let Some(repository) = Repository::parse(typed).map_err(wrong)? {
            return Ok(Context::Git { repository, typed: typed.clone() });
        }
        if !typed.starts_with("http://") && !typed.starts_with("https://") {
            return Ok(Context::Local);
        }
        let mut builder = Builder::new();
        let state = download(&mut builder, typed, "[internal] load remote build context");
        let defaults = Defaults { platform: base::Platform::host(), local_unique: session.to_owned() };
        let definition = builder.marshal(&state, &defaults)?;
        let log_name = "[internal] load remote build context".to_owned();
        let paths = vec![DOWNLOADED.to_owned()];
        let read = ReadRequest { definition, local: None, paths, limit: Some(1024), log_name };
        let head = ask.read_files(&read)?.into_iter().next().flatten().unwrap_or_default();
        Ok(Context::Download { url: typed.clone(), archive: is_archive(&head) })
    }

    /// The Dockerfile's name: a download that is no archive is the Dockerfile.
    pub fn filename<'a>(&self, asked: &'a str) -> &'a str {
        if matches!(self, Context::Download { archive: false, .. }) { DOWNLOADED } else { asked }
    }

    /// What the Dockerfile is read from; none for a directory of the session.
    pub fn dockerfile(&self, builder: &mut Builder, options: &Options, ask: &dyn Ask) -> Result<Option<State>> {
        if options.dockerfile_name.is_some() {
            return Ok(None);
        }
        if let Some(input) = ask.input("dockerfile")? {
            return Ok(Some(builder.import(&input)?));
        }
        match self {
            Context::Local | Context::Input(_) => Ok(None),
            remote => remote.unscoped(builder, options),
        }
    }

    /// The context as a state; none for a directory of the session.
    pub fn state(&self, builder: &mut Builder, options: &Options) -> Result<Option<State>> {
        let Some(state) = self.unscoped(builder, options)? else { return Ok(None) };
        let Some(subdir) = &options.context_subdir else { return Ok(Some(state)) };
        let mut copy = CopyInfo { contents_only: true, ..CopyInfo::new(&state, subdir, "/") };
        copy.create_dest = false;
        let copy = vec![FileAction::Copy(Box::new(copy))];
        Ok(Some(builder.file(&State::scratch(), copy, Constraints::default())))
    }

    /// The one source that the context is made of; none for a directory of the session.
    pub fn source(&self, options: &Options, defaults: &Defaults) -> Result<Option<pb::SourceOp>> {
        let mut builder = Builder::new();
        let Some(state) = self.unscoped(&mut builder, options)? else { return Ok(None) };
        let source = llb::only_source(&builder.marshal(&state, defaults)?);
        let source = source.map_err(|error| Error::new(format!("malformed context: {error}")))?;
        Ok(source.filter(|source| !source.identifier.starts_with("local://")))
    }

    fn unscoped(&self, builder: &mut Builder, options: &Options) -> Result<Option<State>> {
        Ok(Some(match self {
            Context::Local => return Ok(None),
            Context::Input(definition) => builder.import(definition)?,
            Context::Git { repository, typed } => {
                let mut git = repository.source();
                git.keep_git_dir |= options.keep_git_dir;
                if options.build_args.get("SOURCE_DATE_EPOCH").is_some_and(|epoch| !epoch.is_empty())
                    && git.mtime.is_empty()
                {
                    "commit".clone_into(&mut git.mtime);
                }
                let shown = Repository::shown(typed);
                builder.git(&git, Constraints::named(format!("[internal] load git source {shown}")))
            }
            Context::Download { url, archive } => {
                let state = download(builder, url, "[internal] load remote build context");
                if !archive {
                    return Ok(Some(state));
                }
                let mut copy = CopyInfo { unpack: true, ..CopyInfo::new(&state, DOWNLOADED, "/") };
                copy.create_dest = false;
                let copy = vec![FileAction::Copy(Box::new(copy))];
                builder.file(&State::scratch(), copy, Constraints::default())
            }
        }))
    }
}

/// A download under the name that contexts have.
pub(crate) fn download(builder: &mut Builder, url: &str, name: &str) -> State {
    let http = Http { url: url.to_owned(), filename: DOWNLOADED.to_owned(), checksum: None };
    builder.http(&http, Constraints::named(name))
}

fn is_archive(head: &[u8]) -> bool {
    const MAGIC: [&[u8]; 3] = [b"BZh", b"\x1f\x8b\x08", b"\xfd7zXZ\0"];
    MAGIC.iter().any(|magic| head.starts_with(magic)) || is_tar(head)
}

/// A tar header: its checksum, which counts itself as spaces, holds.
fn is_tar(head: &[u8]) -> bool {
    let Some(header) = head.get(..512) else { return false };
    let digits = header[148..156].trim_ascii_start();
    let end = digits.iter().position(|b| !(b'0'..=b'7').contains(b)).unwrap_or(digits.len());
    let stated = std::str::from_utf8(&digits[..end]).ok().and_then(|text| u32::from_str_radix(text, 8).ok());
    let sum: u32 = header[..148].iter().chain(&header[156..]).map(|b| u32::from(*b)).sum::<u32>() + 8 * u32::from(b' ');
    stated == Some(sum)
}
