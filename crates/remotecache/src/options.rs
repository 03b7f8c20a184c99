//! The attributes of `--export-cache` and `--import-cache`, read once.

use std::collections::BTreeMap;

use base::{Digest, Fault};
use image::{BadAttribute, Compression, CompressionOptions, Flavor, Reference};

use crate::document::Form;

/// Where a cache is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A name in a registry.
    Registry {
        /// The name, with a tag or digest.
        reference: Reference,
        /// Plain HTTP and unknown certificates will do.
        insecure: bool,
    },
    /// A directory of the client, by the name that the client knows it by.
    Local {
        /// The directory.
        dir: String,
    },
    /// The image itself.
    Inline,
}

/// Which results a cache has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Those that the build's own result consists of.
    #[default]
    Min,
    /// All.
    Max,
}

/// A cache to write.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// Where to.
    pub place: Place,
    /// What.
    pub mode: Mode,
    /// As what.
    pub form: Form,
    /// How layers are compressed.
    pub compression: CompressionOptions,
    /// Its failure is not the build's.
    pub ignore_error: bool,
    /// What is to be said of attributes that mean nothing here, and of values that count as others.
    pub remarks: Vec<String>,
}

/// What BuildKit's caches know, of one type or the other, and its clients write for all.
const ELSEWHERE: [&str; 9] = ["dest", "digest", "name", "push", "ref", "registry.insecure", "reset", "src", "tag"];

/// A cache to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportOptions {
    /// Where from.
    pub place: Place,
    /// Of a local cache: its manifest; none where the client found no cache.
    pub digest: Option<Digest>,
    /// What people see.
    pub name: String,
    /// Attributes that mean nothing here.
    pub unknown: Vec<String>,
}

impl ExportOptions {
    /// Reads the attributes of a cache to write; unknown ones are refused by name.
    pub fn read(kind: &str, attrs: &BTreeMap<String, String>) -> Result<ExportOptions, Fault> {
        let mut attrs = Attributes { what: "cache export", kind, rest: attrs.clone() };
        let place = match kind {
            "registry" => attrs.registry()?,
            "local" => {
                // What the client does with them is its own affair.
                attrs.take("tag");
                attrs.take("reset");
                Place::Local { dir: attrs.need("dest")? }
            }
            "inline" => Place::Inline,
            other => return Err(unsupported("cache export", other)),
        };
        let mut remarks = Vec::new();
        let mode = match attrs.take("mode").as_deref() {
            None | Some("" | "min") => Mode::Min,
            Some("max") => Mode::Max,
            // As with BuildKit, here and below.
            Some(other) => {
                remarks.push(format!("`mode={other}` of a cache export counts as min: it is neither min nor max"));
                Mode::Min
            }
        };
        let ignore_error = match attrs.boolean("ignore-error") {
            Ok(ignore) => ignore.unwrap_or(false),
            Err(fault) => {
                remarks.push(format!("{fault}: it counts as false"));
                false
            }
        };
        let (mut form, mut compression) = (Form::default(), CompressionOptions::new(Compression::Gzip, 1));
        if place != Place::Inline {
            let oci = attrs.boolean("oci-mediatypes")?.unwrap_or(true);
            let image_manifest = attrs.boolean("image-manifest")?.unwrap_or(oci);
            if image_manifest && !oci {
                return Err(Fault::user(
                    "cache export attribute `image-manifest=true` conflicts with `oci-mediatypes=false`",
                ));
            }
            form = Form { image_manifest, flavor: if oci { Flavor::Oci } else { Flavor::Docker } };
            let level = attrs.rest.get("compression-level").cloned();
            compression = attrs.compression()?;
            remarks.extend(compression.remark(level.as_deref()));
        }
        let is_refused = |key: &&String| place != Place::Inline && !ELSEWHERE.contains(&key.as_str());
        if let Some(key) = attrs.rest.keys().find(is_refused) {
            return Err(Fault::user(format!("cache export type={kind}: attribute `{key}` is not supported")));
        }
        // An image's own attributes say how its layers are.
        if place != Place::Inline {
            let meaningless = |key| format!("attribute `{key}` of a cache export means nothing here");
            remarks.extend(attrs.rest.into_keys().map(meaningless));
        }
        Ok(ExportOptions { place, mode, form, compression, ignore_error, remarks })
    }

    /// What people see while it is written.
    pub fn title(&self) -> &'static str {
        match self.place {
            Place::Registry { .. } => "exporting cache to registry",
            Place::Local { .. } => "exporting cache to client directory",
            Place::Inline => "exporting inline cache",
        }
    }
}

impl ImportOptions {
    /// Reads the attributes of a cache to read.
    pub fn read(kind: &str, attrs: &BTreeMap<String, String>) -> Result<ImportOptions, Fault> {
        let mut attrs = Attributes { what: "cache import", kind, rest: attrs.clone() };
        let mut digest = None;
        let (place, name) = match kind {
            // An image with a cache in it is in a registry.
            "registry" | "inline" => {
                let name = attrs.rest.get("ref").cloned().unwrap_or_default();
                (attrs.registry()?, name)
            }
            "local" => {
                let dir = attrs.need("src")?;
                // Without one there is no cache: BuildKit's client says so and goes on, as it must on the first day.
                if let Some(text) = attrs.take("digest").filter(|text| !text.is_empty()) {
                    let parsed = text.parse::<Digest>();
                    digest = Some(parsed.map_err(|error| attrs.bad("digest", &text, &error.to_string()))?);
                }
                attrs.take("tag");
                let name = format!("local:{dir}");
                (Place::Local { dir }, name)
            }
            other => return Err(unsupported("cache import", other)),
        };
        Ok(ImportOptions { place, digest, name, unknown: attrs.rest.into_keys().collect() })
    }
}

fn unsupported(what: &str, kind: &str) -> Fault {
    match kind {
        "" => Fault::user(format!("{what} without a type")),
        "gha" | "s3" | "azblob" => Fault::user(format!("{what} type={kind} is not supported yet"))
            .hint("there are registry, local and, for export, inline"),
        _ => Fault::user(format!("no {what} of type `{kind}`: there are registry, local and, for export, inline")),
    }
}

/// Takes attributes out one by one.
struct Attributes<'a> {
    what: &'static str,
    kind: &'a str,
    rest: BTreeMap<String, String>,
}

impl Attributes<'_> {
    fn take(&mut self, key: &str) -> Option<String> {
        self.rest.remove(key)
    }

    fn need(&mut self, key: &str) -> Result<String, Fault> {
        let text = self.take(key).filter(|text| !text.is_empty());
        text.ok_or_else(|| Fault::user(format!("{} type={} needs `{key}=`", self.what, self.kind)))
    }

    fn boolean(&mut self, key: &str) -> Result<Option<bool>, Fault> {
        let Some(text) = self.take(key) else { return Ok(None) };
        match text.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Some(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Some(false)),
            _ => Err(self.bad(key, &text, "expected true or false")),
        }
    }

    fn bad(&self, key: &str, value: &str, why: &str) -> Fault {
        Fault::user(format!("{} type={}: bad value `{value}` of `{key}`: {why}", self.what, self.kind))
    }

    fn registry(&mut self) -> Result<Place, Fault> {
        let text = self.need("ref")?;
        let reference = text.parse::<Reference>().map_err(|error| self.bad("ref", &text, &error.to_string()))?;
        let insecure = self.boolean("registry.insecure")?.unwrap_or(false);
        Ok(Place::Registry { reference: reference.or_latest(), insecure })
    }

    fn compression(&mut self) -> Result<CompressionOptions, Fault> {
        let (kind, level) = (self.take("compression"), self.take("compression-level"));
        let force = self.boolean("force-compression")?.unwrap_or(false);
        CompressionOptions::read(kind.as_deref(), level.as_deref(), force).map_err(|bad| match bad {
            BadAttribute::Unsupported(what) => {
                Fault::user(format!("{} attribute `{what}` is not supported yet", self.what))
            }
            BadAttribute::Value { key, value, why } => self.bad(key, &value, &why),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs(text: &str) -> BTreeMap<String, String> {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn attributes_of_exports_are_read() {
        let text =
            "ref=example.com/cache,mode=max,image-manifest=false,compression=zstd,compression-level=3,ignore-error=1";
        let read = ExportOptions::read("registry", &attrs(text)).expect("good");
        assert_eq!((read.mode, read.form.image_manifest, read.ignore_error), (Mode::Max, false, true));
        assert_eq!((read.compression.kind, read.compression.level), (Compression::Zstd, Some(3)));
        let Place::Registry { reference, insecure: false } = read.place else { panic!("a registry") };
        assert_eq!(reference.to_string(), "example.com/cache:latest");
        let docker = ExportOptions::read("local", &attrs("dest=d,oci-mediatypes=false,tag=x")).expect("good");
        assert_eq!((docker.form.image_manifest, docker.form.flavor), (false, Flavor::Docker));
        assert_eq!(ExportOptions::read("inline", &attrs("mode=max")).expect("good").place, Place::Inline);
        let stray = ExportOptions::read("local", &attrs("dest=d,ref=,push=true")).expect("good");
        let meaningless = |key| format!("attribute `{key}` of a cache export means nothing here");
        assert_eq!(stray.remarks, ["push", "ref"].map(meaningless));
    }

    #[test]
    fn values_that_count_as_others_are_said() {
        for (text, said) in [
            ("mode=MAX", "`mode=MAX` of a cache export counts as min: it is neither min nor max"),
            (
                "ignore-error=x",
                "cache export type=local: bad value `x` of `ignore-error`: expected true or false: it counts as false",
            ),
            ("compression=zstd,compression-level=99", "`compression-level=99` of zstd counts as 22"),
        ] {
            let read = ExportOptions::read("local", &attrs(&format!("dest=d,{text}"))).expect(text);
            assert_eq!((read.mode, read.ignore_error), (Mode::Min, false));
            assert_eq!(read.remarks, [said]);
        }
        let read = ExportOptions::read("local", &attrs("dest=d,compression=zstd,oci-mediatypes=false")).expect("good");
        assert_eq!((read.compression.kind, read.form.flavor), (Compression::Zstd, Flavor::Docker));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (kind, text, said) in [
            ("gha", "", "cache export type=gha is not supported yet"),
            ("ftp", "", "no cache export of type `ftp`: there are registry, local and, for export, inline"),
            ("registry", "", "cache export type=registry needs `ref=`"),
            ("local", "dest=,mode=min", "cache export type=local needs `dest=`"),
            ("local", "dest=d,color=red", "cache export type=local: attribute `color` is not supported"),
            (
                "registry",
                "ref=a,image-manifest=true,oci-mediatypes=false",
                "cache export attribute `image-manifest=true` conflicts with `oci-mediatypes=false`",
            ),
        ] {
            let fault = ExportOptions::read(kind, &attrs(text)).expect_err(said);
            assert_eq!(fault.to_string(), said);
        }
        for (kind, text, said) in [
            ("s3", "", "cache import type=s3 is not supported yet"),
            ("inline", "", "cache import type=inline needs `ref=`"),
            ("local", "digest=x", "cache import type=local needs `src=`"),
        ] {
            assert_eq!(ImportOptions::read(kind, &attrs(text)).expect_err(said).to_string(), said);
        }
    }

    #[test]
    fn what_an_import_does_not_know_is_kept_to_be_said() {
        let read = ImportOptions::read("registry", &attrs("ref=a:b,mode=max")).expect("good");
        assert_eq!((read.name.as_str(), read.unknown), ("a:b", vec!["mode".to_owned()]));
        // A client that found none names none.
        assert_eq!(ImportOptions::read("local", &attrs("src=d")).expect("a miss").digest, None);
    }
}
