//! The attributes of an `--output`, read once. What is not known, or not supported yet, is refused by name.

use std::collections::{BTreeMap, BTreeSet};

use base::{Fault, Platform};
use image::{BadAttribute, CompressionOptions};

/// Attributes shared by the image exporters (`image`, `oci`, `docker`).
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// Image names, in the order given.
    pub names: Vec<String>,
    /// OCI media types instead of Docker's. Unset: the exporter's own default.
    pub oci_types: Option<bool>,
    /// How layers are compressed.
    pub compression: CompressionOptions,
    /// Seconds since 1970 that no timestamp of the image may exceed.
    pub epoch: Option<i64>,
    /// Also those inside of layers.
    pub rewrite_timestamp: bool,
    /// Foreign layers keep their media type and URLs.
    pub prefer_nondist_layers: bool,
    /// Annotations by the place they go to.
    pub annotations: Vec<Annotation>,
    /// The image config, in the place of the result's own.
    pub config: Option<String>,
}

/// One annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotation {
    /// Where it goes.
    pub place: AnnotationPlace,
    /// For one platform only, in its text form.
    pub platform: Option<String>,
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// What an annotation describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnnotationPlace {
    /// The manifest (the default).
    Manifest,
    /// The manifest's descriptor in an index.
    ManifestDescriptor,
    /// The index.
    Index,
    /// The index's descriptor in an OCI layout.
    IndexDescriptor,
}

/// Attributes of `type=image`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PushOptions {
    /// Push to the registry of each name.
    pub push: bool,
    /// Push without a tag.
    pub push_by_digest: bool,
    /// Allow plain HTTP and unknown certificates.
    pub insecure: bool,
    /// `<prefix>@<digest>` for images without a name.
    pub dangling_prefix: Option<String>,
    /// The prefix counts only where no name is given.
    pub dangling_empty_only: bool,
}

/// What becomes of files of a directory that are not in the result. The client sees to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale {
    /// They stay.
    Stays,
    /// They are removed.
    Goes,
}

/// Takes attributes out one by one; what is left in the end was not understood.
pub struct Attributes {
    exporter: &'static str,
    rest: BTreeMap<String, String>,
    asked: BTreeSet<&'static str>,
}

/// Names of an image, as they stand behind `name=`.
pub(crate) fn names(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

impl Attributes {
    /// The attributes of one `--output type=<exporter>`.
    pub fn new(exporter: &'static str, attrs: &BTreeMap<String, String>) -> Attributes {
        Attributes { exporter, rest: attrs.clone(), asked: BTreeSet::new() }
    }

    /// A text; empty counts as given.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        self.asked.insert(key);
        self.rest.remove(key)
    }

    /// A boolean as Go's `strconv.ParseBool` reads it.
    pub fn boolean(&mut self, key: &'static str) -> Result<Option<bool>, Fault> {
        let Some(text) = self.text(key) else { return Ok(None) };
        match text.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Some(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Some(false)),
            _ => Err(self.bad(key, &text, "expected true or false")),
        }
    }

    fn flag(&mut self, key: &'static str) -> Result<bool, Fault> {
        Ok(self.boolean(key)?.unwrap_or(false))
    }

    /// The same where a key without a value says yes.
    fn switch(&mut self, key: &'static str) -> Result<bool, Fault> {
        match self.rest.get(key).is_some_and(String::is_empty) {
            true => Ok(self.text(key).is_some()),
            false => self.flag(key),
        }
    }

    fn bad(&self, key: &str, value: &str, why: &str) -> Fault {
        Fault::user(format!("output type={}: bad value `{value}` of `{key}`: {why}", self.exporter))
    }

    /// The names of all that could have been taken, and of what was not.
    pub(crate) fn finish(self) -> (BTreeSet<&'static str>, Vec<String>) {
        (self.asked, self.rest.into_keys().collect())
    }

    /// The attributes of image exporters.
    pub fn image(&mut self) -> Result<ImageOptions, Fault> {
        let names = names(&self.text("name").unwrap_or_default());
        let options = ImageOptions {
            names,
            oci_types: self.boolean("oci-mediatypes")?,
            compression: self.compression()?,
            epoch: self.epoch()?,
            rewrite_timestamp: self.flag("rewrite-timestamp")?,
            prefer_nondist_layers: self.flag("prefer-nondist-layers")?,
            annotations: self.annotations()?,
            config: self.text("containerimage.config").filter(|config| !config.is_empty()),
        };
        // Said about attestations, which this version makes none of: nothing to do, nothing lost.
        for key in ["attestation-inline", "oci-artifact"] {
            self.flag(key)?;
        }
        Ok(options)
    }

    /// The attributes that only `type=image` has.
    pub fn push(&mut self) -> Result<PushOptions, Fault> {
        let options = PushOptions {
            push: self.switch("push")?,
            push_by_digest: self.switch("push-by-digest")?,
            insecure: self.switch("registry.insecure")?,
            dangling_prefix: self.text("dangling-name-prefix").filter(|p| !p.is_empty()),
            dangling_empty_only: self.switch("danging-name-empty-only")?,
        };
        // There is no image store beside the build cache, as with BuildKit's OCI worker.
        for key in ["name-canonical", "store", "unpack", "unsafe-internal-store-allow-incomplete"] {
            self.switch(key)?;
        }
        Ok(options)
    }

    /// `source-date-epoch`, for every exporter.
    pub fn epoch(&mut self) -> Result<Option<i64>, Fault> {
        match self.text("source-date-epoch") {
            None => Ok(None),
            Some(text) if text.is_empty() => Ok(None),
            Some(text) => match text.parse::<i64>() {
                Ok(seconds) if seconds >= 0 => Ok(Some(seconds)),
                _ => Err(self.bad("source-date-epoch", &text, "expected seconds since 1970")),
            },
        }
    }

    /// `mode`, of directories.
    pub(crate) fn stale(&mut self) -> Result<Stale, Fault> {
        let Some(text) = self.text("mode") else { return Ok(Stale::Stays) };
        match text.trim().to_ascii_lowercase().as_str() {
            "" | "copy" => Ok(Stale::Stays),
            "delete" => Ok(Stale::Goes),
            _ => Err(self.bad("mode", &text, "expected copy or delete")),
        }
    }

    fn compression(&mut self) -> Result<CompressionOptions, Fault> {
        let (kind, force, level) =
            (self.text("compression"), self.switch("force-compression")?, self.text("compression-level"));
        CompressionOptions::read(kind.as_deref(), level.as_deref(), force).map_err(|bad| match bad {
            BadAttribute::Unsupported(what) => Fault::user(format!("output attribute `{what}` is not supported yet")),
            BadAttribute::Value { key, value, why } => self.bad(key, &value, &why),
        })
    }

    /// `annotation[-place][\[platform\]].key=value`
    pub(crate) fn annotations(&mut self) -> Result<Vec<Annotation>, Fault> {
        let mut annotations = Vec::new();
        let mut failed = None;
        self.rest.retain(|full, value| match Annotation::read(full, value) {
            Ok(Some(annotation)) => {
                annotations.push(annotation);
                false
            }
            Ok(None) => true,
            Err(fault) => {
                failed.get_or_insert(fault);
                false
            }
        });
        failed.map_or(Ok(annotations), Err)
    }
}

impl Annotation {
    /// Reads the name of an attribute, or of a word about a result; none if it is none of an annotation.
    fn read(full: &str, value: &str) -> Result<Option<Annotation>, Fault> {
        if !full.starts_with("annotation") {
            return Ok(None);
        }
        let Some((head, key)) = full.split_once('.') else { return Ok(None) };
        // A platform in brackets may itself hold a dot.
        let (head, key) = match full.split_once(']') {
            Some((head, rest)) if head.contains('[') && !rest.is_empty() => {
                (head, rest.strip_prefix('.').unwrap_or(rest))
            }
            _ => (head, key),
        };
        let (place, platform) = match head.split_once('[') {
            Some((place, platform)) => (place, Some(platform.trim_end_matches(']'))),
            None => (head, None),
        };
        let place = match place {
            "annotation" | "annotation-manifest" => AnnotationPlace::Manifest,
            "annotation-manifest-descriptor" => AnnotationPlace::ManifestDescriptor,
            "annotation-index" => AnnotationPlace::Index,
            "annotation-index-descriptor" => AnnotationPlace::IndexDescriptor,
            _ => return Ok(None),
        };
        if key.is_empty() {
            return Err(Fault::user(format!("`{full}` names no annotation")));
        }
        // Platforms have several spellings.
        let spelled = |text: &str| text.parse::<Platform>().map_or_else(|_| text.to_owned(), |known| known.to_string());
        let (key, value) = (key.to_owned(), value.to_owned());
        Ok(Some(Annotation { place, platform: platform.map(spelled), key, value }))
    }
}

impl ImageOptions {
    /// Adds what the result's own words (`annotation.KEY`, ..) say of the image, which counts for more than attributes.
    pub(crate) fn annotate(&mut self, words: &BTreeMap<String, Vec<u8>>) -> Result<(), Fault> {
        for (key, value) in words {
            self.annotations.extend(Annotation::read(key, &String::from_utf8_lossy(value))?);
        }
        Ok(())
    }

    /// The annotations of a place, those for one platform before those for all.
    pub(crate) fn annotations_of(&self, place: AnnotationPlace, platform: Option<&str>) -> BTreeMap<String, String> {
        let all = self.annotations.iter().filter(|annotation| annotation.place == place);
        let (own, general): (Vec<_>, Vec<_>) = all.partition(|annotation| annotation.platform.is_some());
        let own = own.into_iter().filter(|annotation| platform.is_none() || annotation.platform.as_deref() == platform);
        general.into_iter().chain(own).map(|annotation| (annotation.key.clone(), annotation.value.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(pairs: &[(&str, &str)]) -> Attributes {
        let attrs = pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Attributes::new("image", &attrs)
    }

    #[test]
    fn attributes_are_read() {
        let mut attrs = attributes(&[
            ("name", "a, b:1"),
            ("push", "true"),
            ("compression", "zstd"),
            ("compression-level", "22"),
            ("annotation-index.k.x", "v"),
            ("annotation[linux/arm64].a.b", "w"),
            ("source-date-epoch", "0"),
        ]);
        let image = attrs.image().expect("good attributes");
        assert_eq!(image.names, ["a", "b:1"]);
        assert_eq!(image.compression.level, Some(22));
        assert_eq!(image.epoch, Some(0));
        let got: Vec<_> = image.annotations.iter().map(|a| (a.place, a.platform.as_deref(), a.key.as_str())).collect();
        assert!(got.contains(&(AnnotationPlace::Index, None, "k.x")), "{got:?}");
        assert!(got.contains(&(AnnotationPlace::Manifest, Some("linux/arm64"), "a.b")), "{got:?}");
        assert!(attrs.push().expect("good attributes").push);
        assert!(attrs.finish().1.is_empty(), "nothing is left");
    }

    #[test]
    fn bad_attributes_are_refused() {
        for (key, value, wanted) in [
            ("push", "maybe", "expected true or false"),
            ("compression", "lzma", "expected gzip"),
            ("compression", "estargz", "not supported yet"),
            ("compression-level", "10", "expected 0 to 9"),
            ("source-date-epoch", "-1", "seconds since 1970"),
            ("annotation.", "x", "names no annotation"),
        ] {
            let mut attrs = attributes(&[(key, value)]);
            let result = attrs.image().and_then(|_| attrs.push());
            let error = result.expect_err(key).to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
