//! What a blob that is read as a file states for its key.

use base::Digest;

use crate::go_json::Object;

/// The key of a blob under a name; [`source`](super::source) makes the vertex's of it. Where it is read from does not
/// count.
pub fn blob(digest: Digest, filename: &str, mode: u32, uid: u32, gid: u32) -> Digest {
    let json = Object::new()
        .required("Digest", &digest.to_string())
        .required("Filename", filename)
        .raw("Perm", &mode.to_string())
        .raw("UID", &uid.to_string())
        .raw("GID", &gid.to_string());
    Digest::of(json.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_over_the_text_that_go_writes() {
        let digest = Digest::of("x");
        let text = format!(r#"{{"Digest":"{digest}","Filename":"","Perm":420,"UID":1,"GID":2}}"#);
        assert_eq!(blob(digest, "", 0o644, 1, 2), Digest::of(text));
    }
}
