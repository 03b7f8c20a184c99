//! Files that tell scripts what was built: `--metadata-file`, `--iidfile`, `--ref-file`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use base::{Fault, Kind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{Access, AtFlags, CWD};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::daemonless::signals::cut_short;

/// The exporter's answers as the JSON that buildctl and buildx write: values that are a base64 JSON object (such
/// as `containerimage.descriptor`) become that object.
pub fn metadata_json(response: &BTreeMap<String, String>) -> String {
    let fields: Map<String, Value> = response
        .iter()
        .map(|(key, text)| (key.clone(), decoded(text).unwrap_or_else(|| text.clone().into())))
        .collect();
    serde_json::to_string_pretty(&fields).expect("maps of strings are JSON")
}

fn decoded(text: &str) -> Option<Value> {
    let object: Map<String, Value> = serde_json::from_slice(&STANDARD.decode(text).ok()?).ok()?;
    (!object.is_empty()).then_some(Value::Object(object))
}

/// The image's id: the digest of its configuration where there is one image, else that of what was pushed.
pub fn image_id(response: &BTreeMap<String, String>) -> Option<&str> {
    ["containerimage.config.digest", "containerimage.digest"]
        .iter()
        .find_map(|key| response.get(*key))
        .map(String::as_str)
}

/// Prepares the answers of a build before anything of it can fail: what an earlier build wrote nobody must take for
/// this one's.
pub fn prepare_all<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Result<(), Fault> {
    // The first that cannot be written keeps none of the others.
    let prepared: Vec<_> = paths.map(|path| prepare(path)).collect();
    prepared.into_iter().collect()
}

/// Finds out whether an answer can be written, before the build. Removes what an earlier build wrote, where links lead
/// too; a pipe stays, and what standard output is redirected to.
fn prepare(path: &Path) -> Result<(), Fault> {
    let ready = match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Err(std::io::ErrorKind::IsADirectory.into()),
        // Opening a pipe would wait for who reads it.
        Ok(meta) if !meta.is_file() => Ok(rustix::fs::accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS)),
        Ok(_) if std::fs::canonicalize(path).is_ok_and(|file| is_standard_output(&file)) => Ok(Ok(())),
        Ok(_) => forget(path).map(Ok),
        // Opening makes it, also behind a link.
        Err(_) => open(path).and_then(|_| forget(path)).map(Ok),
    };
    ready.and_then(|accessible| Ok(accessible?)).map_err(|error| cannot_write(path, error))
}

fn open(path: &Path) -> std::io::Result<File> {
    File::options().write(true).create(true).truncate(false).open(path)
}

/// Removes a file, or what it says where it is to stay: it may be all that a container was given of a directory.
fn forget(path: &Path) -> std::io::Result<()> {
    let file = std::fs::canonicalize(path)?;
    std::fs::remove_file(&file).or_else(|_| open(&file)?.set_len(0))
}

fn cannot_write(path: &Path, error: std::io::Error) -> Fault {
    let hint = match error.kind() {
        std::io::ErrorKind::NotFound => Some("make its directory first"),
        std::io::ErrorKind::IsADirectory => Some("name a file, not a directory"),
        _ => None,
    };
    let fault = Fault::because(Kind::Environment, format!("cannot write `{}`", path.display()), error);
    hint.into_iter().fold(fault, Fault::hint)
}

/// Whether it is the file behind `/dev/stdout` or `/dev/stderr`.
fn is_standard_output(file: &Path) -> bool {
    ["/proc/self/fd/1", "/proc/self/fd/2"].iter().any(|stream| std::fs::canonicalize(stream).is_ok_and(|to| to == file))
}

/// Writes an answer, unless that is called off.
pub async fn write(path: PathBuf, content: String, cancel: &CancellationToken) -> Result<(), Fault> {
    unless_cancelled(path, cancel, move |path| write_whole(path, &content)).await
}

/// Opens or writes a file on a thread that nobody waits for once that is called off: a pipe may wait for its reader
/// without end.
pub async fn unless_cancelled<T: Send + 'static>(
    path: PathBuf,
    cancel: &CancellationToken,
    work: impl FnOnce(&Path) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let failed = format!("cannot write `{}`", path.display());
    tokio::select! {
        // What is done is not called off any more.
        biased;
        done = tokio::task::spawn_blocking(move || work(&path)) => {
            done.unwrap_or_else(|error| Err(Fault::because(Kind::Internal, failed, error)))
        }
        () = cancel.cancelled() => Err(cut_short("build cancelled").context(failed)),
    }
}

/// Writes a file so that nobody sees a half of it.
pub fn write_whole(path: &Path, content: &str) -> Result<(), Fault> {
    let meta = std::fs::metadata(path);
    // A pipe, /dev/stdout, a link to where it is to go: nothing to rename over.
    let in_place = path.is_symlink() || meta.is_ok_and(|meta| !meta.is_file());
    let written = match in_place {
        true => std::fs::write(path, content),
        false => replace(path, content).or_else(|error| match path.exists() {
            // The file may be ours where its directory is not.
            true => std::fs::write(path, content),
            false => Err(error),
        }),
    };
    written.map_err(|error| cannot_write(path, error))
}

fn replace(path: &Path, content: &str) -> std::io::Result<()> {
    let mut temporary = path.file_name().ok_or(std::io::ErrorKind::IsADirectory)?.to_owned();
    temporary.push(format!(".tmp{}", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .and_then(|()| std::fs::rename(&temporary, path));
    written.inspect_err(|_| _ = std::fs::remove_file(&temporary))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn objects_are_decoded_and_nothing_else() {
        let descriptor = STANDARD.encode(r#"{"mediaType":"m","digest":"sha256:00","size":3}"#);
        let json = metadata_json(&response(&[
            ("containerimage.descriptor", &descriptor),
            ("containerimage.digest", "sha256:00"),
            ("image.name", "a,b"),
            ("number", &STANDARD.encode("12")),
            ("empty", &STANDARD.encode("{}")),
        ]));
        insta::assert_snapshot!(json, @r#"
        {
          "containerimage.descriptor": {
            "mediaType": "m",
            "digest": "sha256:00",
            "size": 3
          },
          "containerimage.digest": "sha256:00",
          "empty": "e30=",
          "image.name": "a,b",
          "number": "MTI="
        }
        "#);
    }

    #[test]
    fn the_configuration_is_the_id() {
        let digest = ("containerimage.digest", "sha256:d");
        assert_eq!(image_id(&response(&[digest, ("containerimage.config.digest", "sha256:c")])), Some("sha256:c"));
        assert_eq!(image_id(&response(&[digest])), Some("sha256:d"));
        assert_eq!(image_id(&response(&[])), None);
    }

    #[test]
    fn files_appear_whole() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("m.json");
        write_whole(&path, "one").expect("written");
        write_whole(&path, "two").expect("replaced");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "two");
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 1);
        let error = write_whole(&dir.path().join("no/m.json"), "x").expect_err("no directory");
        assert!(error.to_string().starts_with("cannot write `"), "{error}");
        write_whole(Path::new("/dev/null"), "x").expect("a device");
    }

    #[test]
    fn links_are_written_through() {
        let dir = tempfile::tempdir().expect("scratch");
        let (link, file) = (dir.path().join("link"), dir.path().join("file"));
        std::os::unix::fs::symlink("file", &link).expect("a link");
        // First it leads nowhere, then to the answer of an earlier build.
        for content in ["one", "two"] {
            write_whole(&link, content).expect("written");
            assert_eq!(std::fs::read_to_string(&file).expect("there"), content);
        }
        for _ in ["there is something to remove", "there is nothing"] {
            prepare(&link).expect("it can be written");
            assert!(link.is_symlink() && !file.exists());
        }
    }

    #[test]
    fn what_cannot_be_written_is_known_before() {
        let dir = tempfile::tempdir().expect("scratch");
        let path = |name: &str| dir.path().join(name);
        let refused = |name: &str| {
            let fault = prepare(&path(name)).expect_err(name);
            (
                fault.cause().replace(dir.path().to_str().expect("text"), ""),
                fault.get_hint().unwrap_or_default().to_owned(),
            )
        };
        std::fs::create_dir(path("dir")).expect("made");
        std::os::unix::fs::symlink("no/file", path("link")).expect("a link");
        std::fs::write(path("file"), "").expect("written");
        let no_dir = "make its directory first".to_owned();
        assert_eq!(
            refused("no/file"),
            ("cannot write `/no/file`: No such file or directory (os error 2)".to_owned(), no_dir.clone())
        );
        assert_eq!(
            refused("link"),
            ("cannot write `/link`: No such file or directory (os error 2)".to_owned(), no_dir)
        );
        assert_eq!(refused("dir").1, "name a file, not a directory");
        assert_eq!(refused("file/x").0, "cannot write `/file/x`: Not a directory (os error 20)");
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 3, "nothing is left of the looking");
    }

    #[test]
    fn pipes_devices_and_new_files_can_be_written() {
        let dir = tempfile::tempdir().expect("scratch");
        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).expect("a pipe");
        // Nobody reads it.
        prepare(&pipe).expect("it can be written");
        prepare(Path::new("/dev/null")).expect("it can be written");
        let new = dir.path().join("new");
        prepare(&new).expect("it can be written");
        assert!(pipe.exists() && !new.exists());
    }
}
