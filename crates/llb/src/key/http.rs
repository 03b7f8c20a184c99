//! What a downloaded file states for its key.

use base::Digest;

use crate::go_json::Object;

/// A file that a server has.
#[derive(Clone, Copy, Debug)]
pub struct Http<'a> {
    /// What it is called.
    pub filename: &'a str,
    /// Its permissions; 0 for the usual ones.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its content.
    pub checksum: Digest,
    /// `Last-Modified`, as HTTP writes times.
    pub modified: &'a str,
    /// The secret that it was asked for with.
    pub auth_secret: &'a str,
    /// Names and values of headers that the build set.
    pub headers: &'a [(String, String)],
}

/// The key of a downloaded file; [`source`](super::source) makes the vertex's of it.
pub fn http(file: &Http<'_>) -> Digest {
    let json = Object::new()
        .required("Filename", file.filename)
        .raw("Perm", &file.mode.to_string())
        .raw("UID", &file.uid.to_string())
        .raw("GID", &file.gid.to_string())
        .required("Checksum", &file.checksum.to_string())
        .str("LastModTime", file.modified)
        .str("AuthHeaderSecret", file.auth_secret)
        .array("Header", file.headers, |(name, value)| {
            Object::new().required("Name", name).required("Value", value).end()
        });
    Digest::of(json.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_over_the_text_that_go_writes() {
        let file = Http {
            filename: "f&",
            mode: 0,
            uid: 0,
            gid: 0,
            checksum: Digest::of("x"),
            modified: "",
            auth_secret: "",
            headers: &[],
        };
        let checksum = file.checksum;
        let text = format!(r#"{{"Filename":"f\u0026","Perm":0,"UID":0,"GID":0,"Checksum":"{checksum}"}}"#);
        assert_eq!(http(&file), Digest::of(text));
        let headers = [("Accept".to_owned(), "a".to_owned())];
        let more = Http { mode: 420, modified: "t", auth_secret: "s", headers: &headers, ..file };
        let text = format!(
            r#"{{"Filename":"f\u0026","Perm":420,"UID":0,"GID":0,"Checksum":"{checksum}","LastModTime":"t","AuthHeaderSecret":"s","Header":[{{"Name":"Accept","Value":"a"}}]}}"#
        );
        assert_eq!(http(&more), Digest::of(text));
    }
}
