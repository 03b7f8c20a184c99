//! `http://` and `https://`: one file, as a tree of its own.
//!
//! What was downloaded is kept with its ETag; the server is asked whether that is still what it has. A host named
//! `buildkit-session` is the client itself, which uploads the file.

use std::io::{self, Read};
use std::sync::Arc;

use base::{Digest, Fault, Kind};
use bytes::Bytes;
use http_client::{Method, Request, Response, StatusCode, Url, header};
use image::layer::compression::Decompressor;
use jiff::Timestamp;
use llb::pb;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::super::OpContext;
use super::git::Asking;
use super::http_answer::{http_time, rfc9110};
use super::identifier::{Source, bad, unknown};
use super::one_file::{OneFile, Trouble, number};
use crate::core::{blocking, store_fault};
use crate::tree::Tree;

/// What is known of downloads, by what was asked for.
const DOWNLOADS: &str = "downloads";
/// The host that stands for the client.
const CLIENT: &str = "buildkit-session";
/// Secrets with these names in front of a host's are sent to it.
const AUTH_HEADER: &str = "HTTP_AUTH_HEADER_";
const AUTH_TOKEN: &str = "HTTP_AUTH_TOKEN_";
/// Headers that a build may set; others are left out, as in BuildKit.
const HEADERS: [&str; 2] = ["Accept", "User-Agent"];
/// The one encoding that servers are told of: what is sent so is unpacked, as Go's HTTP client does.
const GZIP: &str = "gzip";
/// Whom servers may take us for: some give builders other files than browsers.
const LIKE: &str = "buildkit/v0.29";
/// Pieces of a body that were received and not written yet.
const QUEUE: usize = 16;

/// A file of the web.
#[derive(Clone, Debug)]
pub(crate) struct HttpSource {
    url: Url,
    /// As it was written.
    text: String,
    checksum: Option<Digest>,
    filename: String,
    /// 0: the usual ones.
    mode: u32,
    uid: u32,
    gid: u32,
    auth_secret: String,
    headers: Vec<(String, String)>,
}

/// A file that was downloaded.
#[derive(Clone, Debug)]
pub(crate) struct Download {
    digest: Digest,
    pub(super) filename: String,
    pub(super) modified: Option<Timestamp>,
    pub(super) tree: Tree,
}

/// What is kept of it.
#[derive(Serialize, Deserialize)]
struct Kept {
    etag: String,
    digest: Digest,
    filename: String,
    /// Seconds since 1970.
    modified: Option<i64>,
    snapshot: String,
}

impl HttpSource {
    pub(crate) fn read(op: &pb::SourceOp) -> Result<HttpSource, Fault> {
        let text = &op.identifier;
        let url = text.parse::<Url>();
        let url =
            url.map_err(|e| Fault::because(Kind::User, format!("bad address `{}`", base::redact_url(text)), e))?;
        let mut source = HttpSource {
            url,
            text: text.clone(),
            checksum: None,
            filename: String::new(),
            mode: 0,
            uid: 0,
            gid: 0,
            auth_secret: String::new(),
            headers: Vec::new(),
        };
        for (key, value) in &op.attrs {
            match key.as_str() {
                "http.checksum" => {
                    source.checksum = Some(value.parse().map_err(|_| bad(key, value, "not a digest of SHA-256"))?);
                }
                "http.filename" => source.filename.clone_from(value),
                "http.perm" => source.mode = number(key, value)? & 0o7777,
                "http.uid" => source.uid = number(key, value)?,
                "http.gid" => source.gid = number(key, value)?,
                "http.authheadersecret" => source.auth_secret.clone_from(value),
                _ => match key.strip_prefix("http.header.") {
                    Some(name) => {
                        let known = HEADERS.iter().find(|known| known.eq_ignore_ascii_case(name));
                        source.headers.extend(known.map(|known| ((*known).to_owned(), value.clone())));
                    }
                    None => return Err(unknown(key)),
                },
            }
        }
        source.headers.sort();
        Ok(source)
    }

    /// What the file is called; what the server says of that, if it was asked.
    fn file_name(&self, disposition: Option<&str>) -> String {
        super::http_answer::file_name(&self.filename, &self.url, disposition)
    }

    /// How it is told from other downloads, whatever the server answers.
    fn id(&self) -> Digest {
        let HttpSource { text, filename, mode, uid, gid, auth_secret, headers, .. } = self;
        let parts = (text, filename, mode, uid, gid, auth_secret, headers);
        Digest::of(serde_json::to_vec(&parts).unwrap_or_default())
    }

    /// The key of what was found.
    fn key(&self, filename: &str, checksum: Digest, modified: Option<Timestamp>) -> Digest {
        llb::key::http(&llb::key::Http {
            filename,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            checksum,
            modified: &modified.map(rfc9110).unwrap_or_default(),
            auth_secret: &self.auth_secret,
            headers: &self.headers,
        })
    }

    fn failed(&self, error: http_client::Error) -> Fault {
        let hint = error.proxy_hint();
        let fault = Fault::because(Kind::Remote, format!("cannot download `{}`", base::redact_url(&self.text)), error);
        match hint {
            Some(hint) => fault.hint(hint),
            None => fault,
        }
    }
}

/// What a client may know of a file before it is read.
#[derive(Clone, Debug)]
pub struct HttpDescription {
    /// Of the file.
    pub digest: Digest,
    /// What it is called.
    pub filename: String,
    /// When it was changed last, where the server says so.
    pub modified: Option<Timestamp>,
}

impl Asking<'_> {
    /// Finds out what there is to download, by doing so: the build reads what was found now.
    pub(crate) async fn describe_file(&self, op: &pb::SourceOp) -> Result<HttpDescription, Fault> {
        let Source::Http(source) = Source::read(op)? else {
            return Err(Fault::new(Kind::Internal, "no source of the web"));
        };
        if let Some(digest) = source.checksum {
            return Ok(HttpDescription { digest, filename: source.file_name(None), modified: None });
        }
        let Download { digest, filename, modified, .. } = &*download(self, &source).await?;
        Ok(HttpDescription { digest: *digest, filename: filename.clone(), modified: *modified })
    }
}

/// The digest that stands for what is there now.
pub(super) async fn key(ctx: &OpContext, source: &HttpSource) -> Result<Digest, Fault> {
    if let Some(checksum) = source.checksum {
        // Nobody need be asked what it is.
        return Ok(source.key(&source.file_name(None), checksum, None));
    }
    let download = download(&Asking::of(ctx), source).await?;
    Ok(source.key(&download.filename, download.digest, download.modified))
}

pub(super) async fn run(ctx: &OpContext, source: &HttpSource) -> Result<Tree, Fault> {
    let download = download(&Asking::of(ctx), source).await?;
    match source.checksum {
        Some(wanted) if wanted != download.digest => {
            let shown = base::redact_url(&source.text);
            Err(Fault::user(format!("digest mismatch for {shown}: {} (expected: {wanted})", download.digest)))
        }
        _ => Ok(download.tree.clone()),
    }
}

/// The file; one build asks for it once.
pub(super) async fn download(asking: &Asking<'_>, source: &HttpSource) -> Result<Arc<Download>, Fault> {
    let cell = asking.jobs[0].download(source.id());
    let download = cell.get_or_try_init(|| async {
        tokio::select! {
            fetched = fetch(asking, source) => fetched.map(Arc::new),
            () = asking.cancel.cancelled() => Err(Fault::cancelled()),
        }
    });
    download.await.cloned()
}

async fn fetch(asking: &Asking<'_>, source: &HttpSource) -> Result<Download, Fault> {
    if source.url.host_str() == Some(CLIENT) {
        let body = upload(asking, source).await?;
        let about = About { filename: source.file_name(None), ..About::default() };
        return save(asking, source, about, body).await;
    }
    let client = asking.core.http.client(&http_client::TlsIdentity::default()).map_err(|e| source.failed(e))?;
    let kept = kept(asking, source);
    let mut request = request(asking, source).await?;
    if let Some((kept, tree)) = &kept {
        // Not every server compares what it is asked to compare: the answer is compared here, too.
        let mut head = request.clone();
        head.method = Method::HEAD;
        let head = head.header(header::IF_NONE_MATCH, &kept.etag);
        if let Ok(answer) = client.send(&head).await
            && is_same(&answer, kept)
        {
            return Ok(known(source, kept, tree));
        }
        request = request.header(header::IF_NONE_MATCH, &kept.etag);
    }
    let answer = client.send(&request).await.map_err(|e| source.failed(e))?;
    match (answer.status(), &kept) {
        (StatusCode::NOT_MODIFIED, Some((kept, tree))) => return Ok(known(source, kept, tree)),
        (status, _) if !status.is_success() => {
            let shown = base::redact_url(&source.text);
            let text = format!("cannot download `{shown}`: invalid response status {}", status.as_u16());
            return Err(Fault::new(Kind::Remote, text));
        }
        _ => {}
    }
    let text = |name| answer.header(name).map(str::to_owned);
    let (etag, modified) = (text(header::ETAG), text(header::LAST_MODIFIED));
    let modified = modified.and_then(|text| http_time(&text));
    let about = About {
        filename: source.file_name(answer.header(header::CONTENT_DISPOSITION)),
        packed: answer.header(header::CONTENT_ENCODING).is_some_and(|name| name.trim().eq_ignore_ascii_case(GZIP)),
        etag,
        modified,
    };
    let (sender, body) = mpsc::channel(QUEUE);
    let mut answer = answer;
    let reading = tokio::spawn(async move {
        while let Some(chunk) = answer.chunk().await.transpose() {
            let ends = chunk.is_err();
            let chunk = chunk.map_err(|e| Fault::because(Kind::Remote, "the download broke off", e));
            if sender.send(chunk).await.is_err() || ends {
                break;
            }
        }
    });
    let saved = save(asking, source, about, body).await;
    // Nobody listens any more.
    reading.abort();
    saved
}

/// What an earlier build downloaded, if it is there still.
fn kept(asking: &Asking<'_>, source: &HttpSource) -> Option<(Kept, Tree)> {
    let bytes = asking.core.store.kv(DOWNLOADS).get(source.id().to_string()).ok()??;
    let kept: Kept = serde_json::from_slice(&bytes).ok()?;
    let hold = asking.core.store.snapshots().hold(&kept.snapshot.parse().ok()?)?;
    Some((kept, Tree::snapshot(hold)))
}

fn known(source: &HttpSource, kept: &Kept, tree: &Tree) -> Download {
    let filename = if source.filename.is_empty() { kept.filename.clone() } else { source.file_name(None) };
    let modified = kept.modified.and_then(|seconds| Timestamp::from_second(seconds).ok());
    Download { digest: kept.digest, filename, modified, tree: tree.clone() }
}

/// Whether an answer without a body is about what is kept.
fn is_same(answer: &Response, kept: &Kept) -> bool {
    match (answer.status(), answer.header(header::ETAG)) {
        (StatusCode::OK | StatusCode::NOT_MODIFIED, Some(etag)) => weak(etag) == kept.etag,
        // It was asked about this one only.
        (status, None) => status == StatusCode::NOT_MODIFIED,
        _ => false,
    }
}

/// An ETag without what says that it is weak.
fn weak(etag: &str) -> &str {
    etag.strip_prefix("W/").unwrap_or(etag)
}

async fn request(asking: &Asking<'_>, source: &HttpSource) -> Result<Request, Fault> {
    let mut request = Request::get(source.url.clone())
        .header(header::ACCEPT_ENCODING, GZIP)
        .header(header::USER_AGENT, &format!("{} {LIKE}", http_client::USER_AGENT));
    for (name, value) in &source.headers {
        let name = if name == HEADERS[0] { header::ACCEPT } else { header::USER_AGENT };
        request = request.header(name, value);
    }
    let host = source.url.host_str().unwrap_or_default();
    let secrets = match source.auth_secret.as_str() {
        "" => vec![(format!("{AUTH_HEADER}{host}"), ""), (format!("{AUTH_TOKEN}{host}"), "Bearer ")],
        name => vec![(name.to_owned(), "")],
    };
    for (name, kind) in secrets {
        match crate::job::secret(asking.jobs, &name).await? {
            Some(secret) => {
                // Files of secrets often end with a line break.
                let value = String::from_utf8_lossy(secret.expose()).trim_end_matches(['\r', '\n']).to_owned();
                let value = format!("{kind}{value}");
                if http_client::header::HeaderValue::from_str(&value).is_err() {
                    return Err(Fault::user(format!("secret {name} is no value of an HTTP header")));
                }
                request = request.header(header::AUTHORIZATION, &value);
            }
            None if !source.auth_secret.is_empty() => {
                return Err(Fault::user(format!(
                    "secret {name}: not found, which `{}` needs",
                    base::redact_url(&source.text)
                )));
            }
            None => {}
        }
    }
    Ok(request)
}

/// The file from the client that has it.
async fn upload(asking: &Asking<'_>, source: &HttpSource) -> Result<mpsc::Receiver<Result<Bytes, Fault>>, Fault> {
    for job in asking.jobs {
        if let Some(body) = job.session.upload(CLIENT, source.url.path()).await? {
            return Ok(body);
        }
    }
    Err(Fault::user(format!("the client uploads nothing as `{}`", base::redact_url(&source.text))))
}

/// What an answer says of its body.
#[derive(Default)]
struct About {
    filename: String,
    etag: Option<String>,
    modified: Option<Timestamp>,
    /// Compressed on its way.
    packed: bool,
}

async fn save(
    asking: &Asking<'_>,
    source: &HttpSource,
    about: About,
    body: mpsc::Receiver<Result<Bytes, Fault>>,
) -> Result<Download, Fault> {
    let About { filename, etag, modified, packed } = about;
    let shown = base::redact_url(&source.text);
    let active = asking.core.prepare(None, &format!("http url {shown}")).await?;
    let dir = active.dir().to_owned();
    let mut task = asking.tasks.start(format!("downloading {shown}"), 0);
    let (mode, uid, gid) = (source.mode, source.uid, source.gid);
    let modified_at = modified.map_or(0, |time| time.as_second());
    let file = OneFile { name: filename.clone(), mode, uid, gid, modified: modified_at };
    let cancel = base::Cancel::new();
    // Who does not wait any more wants no more of it.
    let _unwanted = Unwanted(cancel.clone());
    let store = asking.core.store.clone();
    let digest = blocking(move || {
        let mut pieces = Pieces { body, piece: Bytes::new(), broken: None };
        let mut unpacked;
        let reader: &mut dyn Read = match packed {
            true => {
                let begun = Decompressor::new(&mut pieces, u64::MAX);
                unpacked = begun.map_err(|e| Fault::because(Kind::Remote, "cannot unpack a download", e))?;
                &mut unpacked
            }
            false => &mut pieces,
        };
        match (file.write(&store, &dir, reader, &mut task, &cancel), pieces.broken.take()) {
            (Ok(digest), None) => Ok(digest),
            (_, Some(fault)) | (Err(Trouble::Other(fault)), None) => Err(fault),
            (Err(Trouble::Read(e)), None) => Err(Fault::because(Kind::Remote, "cannot read a download", e)),
        }
    });
    let digest = digest.await?;
    let tree = asking.core.commit(active).await?;
    if let (Some(etag), Tree::Snapshot(hold)) = (etag, &tree) {
        let kept = Kept {
            etag: weak(&etag).to_owned(),
            digest,
            filename: filename.clone(),
            modified: modified.map(|time| time.as_second()),
            snapshot: hold.id().to_string(),
        };
        let bytes = serde_json::to_vec(&kept).unwrap_or_default();
        let (store, key, snapshot) = (asking.core.store.clone(), source.id().to_string(), hold.id());
        let put = move || store.with_room(0, || store.kv(DOWNLOADS).put_with(&key, &bytes, &snapshot));
        blocking(put).await.map_err(|e| store_fault("cannot keep a download", e))?;
    }
    Ok(Download { digest, filename, modified, tree })
}

/// Tells a thread that its work is not wanted any more.
pub(super) struct Unwanted(pub(super) base::Cancel);

impl Drop for Unwanted {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// A body as a stream of bytes, for a thread.
struct Pieces {
    body: mpsc::Receiver<Result<Bytes, Fault>>,
    piece: Bytes,
    /// Why it ended early.
    broken: Option<Fault>,
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.body.blocking_recv() {
                None => return Ok(0),
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(fault)) => {
                    self.broken = Some(fault);
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        let count = buf.len().min(self.piece.len());
        buf[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(url: &str, attrs: &[(&str, &str)]) -> Result<HttpSource, Fault> {
        let attrs = attrs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        HttpSource::read(&pb::SourceOp { identifier: url.to_owned(), attrs })
    }

    #[test]
    fn attributes_are_read_and_unknown_ones_refused() {
        let attrs = [
            ("http.perm", "0644"),
            ("http.uid", "7"),
            ("http.header.user-agent", "me"),
            ("http.header.cookie", "no"),
            ("http.checksum", &Digest::of("x").to_string()),
        ];
        let read = source("https://h/x", &attrs).expect("good attributes");
        assert_eq!((read.mode, read.uid, read.checksum), (0o644, 7, Some(Digest::of("x"))));
        assert_eq!(read.headers, [("User-Agent".to_owned(), "me".to_owned())]);
        for (url, key, value, wanted) in [
            ("https://", "http.perm", "1", "bad address"),
            ("https://h", "http.perm", "x", "`x` is not a number"),
            ("https://h", "http.checksum", "md5:x", "is not a digest of SHA-256"),
            ("https://h", "http.signatureverify", "x", "`http.signatureverify` is not supported yet"),
        ] {
            let error = source(url, &[(key, value)]).expect_err(wanted).to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
