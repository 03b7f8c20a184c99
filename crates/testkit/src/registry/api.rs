//! The distribution API over maps.

use std::collections::{HashMap, HashSet};

use base::Digest;
use bytes::Bytes;
use hyper::{HeaderMap, Method, StatusCode, header};

use super::auth::decode;
use super::{Builder, Headers, Locations};

/// Everything that is stored.
#[derive(Debug, Default)]
pub(crate) struct State {
    blobs: HashMap<Digest, Bytes>,
    repositories: HashMap<String, Repository>,
    uploads: HashMap<String, Upload>,
    begun: u64,
}

#[derive(Debug, Default)]
struct Repository {
    blobs: HashSet<Digest>,
    manifests: HashMap<Digest, (String, Bytes)>,
    tags: HashMap<String, Digest>,
}

#[derive(Debug)]
struct Upload {
    repository: String,
    data: Vec<u8>,
}

/// An answer before faults and the wire get at it.
#[derive(Debug)]
pub(super) struct Reply {
    pub status: StatusCode,
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
}

impl Reply {
    pub(super) fn empty(status: StatusCode) -> Reply {
        Reply { status, headers: Vec::new(), body: Bytes::new() }
    }

    pub(super) fn error(status: StatusCode, code: &str, message: &str) -> Reply {
        let body = format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#);
        Reply { body: body.into(), ..Reply::empty(status).with("content-type", "application/json") }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }
}

/// A request taken apart.
pub(super) struct Ask<'a> {
    pub method: &'a Method,
    pub query: &'a str,
    pub headers: &'a HeaderMap,
    pub body: &'a Bytes,
    pub route: Route<'a>,
}

/// `/v2/<name>/<what>/<reference>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    Base,
    Manifest(&'a str, &'a str),
    Blob(&'a str, &'a str),
    BeginUpload(&'a str),
    Upload(&'a str, &'a str),
    Nothing,
}

impl Route<'_> {
    pub(super) fn of(path: &str) -> Route<'_> {
        if path == "/v2/" || path == "/v2" {
            return Route::Base;
        }
        let Some(rest) = path.strip_prefix("/v2/") else { return Route::Nothing };
        if let Some((name, id)) = rest.rsplit_once("/blobs/uploads/") {
            return if id.is_empty() { Route::BeginUpload(name) } else { Route::Upload(name, id) };
        }
        if let Some((name, reference)) = rest.rsplit_once("/manifests/") {
            return Route::Manifest(name, reference);
        }
        match rest.rsplit_once("/blobs/") {
            Some((name, digest)) => Route::Blob(name, digest),
            None => Route::Nothing,
        }
    }

    /// What a token must allow.
    pub(super) fn needs(&self, method: &Method, query: &str) -> Vec<(String, &'static str)> {
        let reading = *method == Method::GET || *method == Method::HEAD;
        match self {
            Route::Base | Route::Nothing => Vec::new(),
            Route::Manifest(name, _) | Route::Blob(name, _) if reading => vec![((*name).to_owned(), "pull")],
            Route::Manifest(name, _) | Route::Blob(name, _) | Route::Upload(name, _) | Route::BeginUpload(name) => {
                let mut needs = vec![((*name).to_owned(), "pull,push")];
                needs
                    .extend(decode(query).into_iter().filter(|(key, _)| key == "from").map(|(_, from)| (from, "pull")));
                needs
            }
        }
    }
}

impl State {
    pub(super) fn answer(&mut self, options: &Builder, base: &str, ask: &Ask<'_>) -> Reply {
        let get = *ask.method == Method::GET || *ask.method == Method::HEAD;
        match ask.route {
            Route::Base if get => Reply::empty(StatusCode::OK),
            Route::Manifest(name, reference) if get => self.get_manifest(options, name, reference),
            Route::Manifest(name, reference) if *ask.method == Method::PUT => {
                self.accept_manifest(name, reference, ask)
            }
            Route::Blob(name, digest) if get => self.get_blob(name, digest, ask),
            Route::BeginUpload(name) if *ask.method == Method::POST => self.begin_upload(options, base, name, ask),
            Route::Upload(name, id) => self.upload(options, base, name, id, ask),
            _ => Reply::error(StatusCode::NOT_FOUND, "UNSUPPORTED", "the operation is unsupported"),
        }
    }

    pub(super) fn put_blob(&mut self, repository: &str, bytes: Bytes) -> Digest {
        let digest = Digest::of(&bytes);
        self.blobs.insert(digest, bytes);
        self.repository(repository).blobs.insert(digest);
        digest
    }

    pub(super) fn put_manifest(&mut self, repository: &str, tag: &str, media_type: &str, bytes: Bytes) -> Digest {
        let digest = Digest::of(&bytes);
        let repository = self.repository(repository);
        repository.manifests.insert(digest, (media_type.to_owned(), bytes));
        repository.tags.insert(tag.to_owned(), digest);
        digest
    }

    pub(super) fn blob(&self, repository: &str, digest: &Digest) -> Option<Bytes> {
        self.repositories.get(repository)?.blobs.get(digest).and_then(|digest| self.blobs.get(digest)).cloned()
    }

    pub(super) fn manifest(&self, repository: &str, reference: &str) -> Option<(String, Bytes)> {
        let repository = self.repositories.get(repository)?;
        let digest = reference.parse().ok().or_else(|| repository.tags.get(reference).copied())?;
        repository.manifests.get(&digest).cloned()
    }

    fn repository(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.to_owned()).or_default()
    }

    fn get_manifest(&self, options: &Builder, name: &str, reference: &str) -> Reply {
        let Some((media_type, bytes)) = self.manifest(name, reference) else {
            return Reply::error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown");
        };
        let digest = Digest::of(&bytes);
        let reply = Reply { body: bytes, ..Reply::empty(StatusCode::OK).with("content-type", media_type) };
        match options.digest_headers {
            Headers::Sent => reply.with("docker-content-digest", digest.to_string()),
            Headers::Missing => reply,
        }
    }

    fn accept_manifest(&mut self, name: &str, reference: &str, ask: &Ask<'_>) -> Reply {
        let invalid = |message: &str| Reply::error(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message);
        let digest = Digest::of(ask.body);
        if reference.contains(':') && reference != digest.to_string() {
            return Reply::error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "digest does not match");
        }
        let Ok(document) = serde_json::from_slice::<serde_json::Value>(ask.body) else { return invalid("no JSON") };
        let media_type = ask.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let repository = self.repository(name);
        let has = |item: &serde_json::Value| {
            let digest: Option<Digest> = item["digest"].as_str().and_then(|text| text.parse().ok());
            digest.is_some_and(|d| repository.blobs.contains(&d) || repository.manifests.contains_key(&d))
        };
        let list = |key: &str| document[key].as_array().cloned().unwrap_or_default();
        let named = list("layers").into_iter().chain(list("manifests")).chain(document.get("config").cloned());
        for item in named {
            if !has(&item) && item.get("urls").is_none() {
                return Reply::error(StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry");
            }
        }
        repository.manifests.insert(digest, (media_type.to_owned(), ask.body.clone()));
        if !reference.contains(':') {
            repository.tags.insert(reference.to_owned(), digest);
        }
        Reply::empty(StatusCode::CREATED)
            .with("location", format!("/v2/{name}/manifests/{digest}"))
            .with("docker-content-digest", digest.to_string())
    }

    fn get_blob(&self, name: &str, digest: &str, ask: &Ask<'_>) -> Reply {
        let Some(bytes) = digest.parse().ok().and_then(|digest| self.blob(name, &digest)) else {
            return Reply::error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "blob unknown to registry");
        };
        let reply = Reply::empty(StatusCode::OK)
            .with("content-type", "application/octet-stream")
            .with("accept-ranges", "bytes")
            .with("docker-content-digest", digest);
        let range = ask.headers.get(header::RANGE).and_then(|value| value.to_str().ok());
        let Some(range) = range.and_then(|text| text.strip_prefix("bytes=")) else {
            return Reply { body: bytes, ..reply };
        };
        let (first, last) = range.split_once('-').unwrap_or((range, ""));
        let first: usize = first.parse().unwrap_or(0);
        if first >= bytes.len() {
            return Reply::empty(StatusCode::RANGE_NOT_SATISFIABLE)
                .with("content-range", format!("bytes */{}", bytes.len()));
        }
        let end = last.parse::<usize>().map_or(bytes.len(), |last| bytes.len().min(last + 1));
        let content_range = format!("bytes {first}-{}/{}", end - 1, bytes.len());
        Reply { status: StatusCode::PARTIAL_CONTENT, body: bytes.slice(first..end), ..reply }
            .with("content-range", content_range)
    }

    fn begin_upload(&mut self, options: &Builder, base: &str, name: &str, ask: &Ask<'_>) -> Reply {
        let query = decode(ask.query);
        let field = |key: &str| query.iter().find(|(k, _)| k == key).map(|(_, value)| value.clone());
        if let (Some(mount), Some(from)) = (field("mount"), field("from"))
            && let Ok(digest) = mount.parse()
            && self.blob(&from, &digest).is_some()
        {
            self.repository(name).blobs.insert(digest);
            return created(name, &digest);
        }
        self.begun += 1;
        let id = format!("upload-{}", self.begun);
        self.uploads.insert(id.clone(), Upload { repository: name.to_owned(), data: Vec::new() });
        Reply::empty(StatusCode::ACCEPTED).with("location", location(options, base, name, &id)).with("range", "0-0")
    }

    fn upload(&mut self, options: &Builder, base: &str, name: &str, id: &str, ask: &Ask<'_>) -> Reply {
        if options.largest_upload.is_some_and(|largest| ask.body.len() as u64 > largest) {
            // As a proxy in front would say it.
            let body = "<html><head><title>413 Request Entity Too Large</title></head></html>";
            return Reply { body: body.into(), ..Reply::empty(StatusCode::PAYLOAD_TOO_LARGE) };
        }
        let unknown = || Reply::error(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry");
        // The state is the proof that clients keep the query of the location.
        if decode(ask.query).iter().all(|(key, value)| key != "_state" || value != &state_of(id)) {
            return unknown();
        }
        let Some(upload) = self.uploads.get_mut(id).filter(|upload| upload.repository == name) else {
            return unknown();
        };
        let range = |upload: &Upload| format!("0-{}", upload.data.len().saturating_sub(1));
        match *ask.method {
            Method::GET => Reply::empty(StatusCode::NO_CONTENT)
                .with("location", location(options, base, name, id))
                .with("range", range(upload)),
            Method::PATCH => {
                let stated = ask.headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let first = stated.and_then(|text| text.split_once('-')?.0.parse::<usize>().ok());
                if first.is_some_and(|first| first != upload.data.len()) {
                    return Reply::empty(StatusCode::RANGE_NOT_SATISFIABLE).with("range", range(upload));
                }
                upload.data.extend_from_slice(ask.body);
                Reply::empty(StatusCode::ACCEPTED)
                    .with("location", location(options, base, name, id))
                    .with("range", range(upload))
            }
            Method::PUT => {
                let query = decode(ask.query);
                let wanted = query.iter().find(|(key, _)| key == "digest").map_or("", |(_, value)| value.as_str());
                let mut data = std::mem::take(&mut upload.data);
                data.extend_from_slice(ask.body);
                self.uploads.remove(id);
                let digest = Digest::of(&data);
                if wanted != digest.to_string() {
                    let message = "provided digest did not match uploaded content";
                    return Reply::error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message);
                }
                self.put_blob(name, data.into());
                created(name, &digest)
            }
            _ => Reply::error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "the operation is unsupported"),
        }
    }
}

fn created(name: &str, digest: &Digest) -> Reply {
    Reply::empty(StatusCode::CREATED)
        .with("location", format!("/v2/{name}/blobs/{digest}"))
        .with("docker-content-digest", digest.to_string())
}

fn state_of(id: &str) -> String {
    format!("state of/{id}=")
}

fn location(options: &Builder, base: &str, name: &str, id: &str) -> String {
    let state: String =
        url::form_urlencoded::Serializer::new(String::new()).append_pair("_state", &state_of(id)).finish();
    match options.locations {
        Locations::Absolute => format!("{base}/v2/{name}/blobs/uploads/{id}?{state}"),
        Locations::Path => format!("/v2/{name}/blobs/uploads/{id}?{state}"),
        Locations::Relative => format!("./{id}?{state}"),
    }
}
