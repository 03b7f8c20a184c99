//! Files that tell scripts what was built: `--metadata-file`, `--iidfile`, `--ref-file`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use base::{Fault, Kind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

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

/// Removes what an earlier build wrote, where links lead too; a pipe stays, and what standard output is redirected to.
pub fn remove(path: &Path) -> Result<(), Fault> {
    let removed = match std::fs::canonicalize(path) {
        Ok(file) if file.is_file() && !is_standard_output(&file) => std::fs::remove_file(file),
        _ => Ok(()),
    };
    removed.map_err(|error| Fault::because(Kind::Environment, format!("cannot replace `{}`", path.display()), error))
}

/// Whether it is the file behind `/dev/stdout` or `/dev/stderr`.
fn is_standard_output(file: &Path) -> bool {
    ["/proc/self/fd/1", "/proc/self/fd/2"].iter().any(|stream| std::fs::canonicalize(stream).is_ok_and(|to| to == file))
}

/// Writes a file so that nobody sees a half of it.
pub fn write_whole(path: &Path, content: &str) -> Result<(), Fault> {
    let failed = |error| Fault::because(Kind::Environment, format!("cannot write `{}`", path.display()), error);
    let meta = std::fs::metadata(path);
    if path.is_symlink() || meta.is_ok_and(|meta| !meta.is_file()) {
        // A pipe, /dev/stdout, a link to where it is to go: nothing to rename over.
        return std::fs::write(path, content).map_err(failed);
    }
    let name = path.file_name().ok_or_else(|| failed(std::io::ErrorKind::IsADirectory.into()))?;
    let mut temporary = name.to_owned();
    temporary.push(format!(".tmp{}", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let written = std::fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        failed(error)
    })
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
        remove(&link).expect("removed");
        assert!(link.is_symlink() && !file.exists());
        remove(&link).expect("nothing to remove");
    }
}
