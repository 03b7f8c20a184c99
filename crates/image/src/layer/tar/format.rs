//! Which format can hold a header, and which PAX records it needs: the rules of Go's `archive/tar`.
//!
//! ustar is taken where every field fits, else PAX, else GNU, within what [`Header::format`] wishes for. A wish for PAX
//! allows ustar unless a time needs a record. These rules decide the bytes, and so the digests, of every layer.

use super::block::{self, Field, fits_binary, fits_octal};
use super::header::{Format, Header, Time};
use super::pax::{self, Records};

/// How to write a header.
pub(super) struct Plan {
    pub format: Format,
    /// Records for the PAX header; unused for other formats.
    pub records: Records,
}

/// Why no format holds a header.
pub(super) type Refused = String;

/// Chooses the format.
pub(super) fn plan(header: &Header) -> Result<Plan, Refused> {
    let mut fit =
        Fit { format: Format::ALL, records: Records::new(), prefer_pax: false, header, refused: String::new() };
    fit.text("name", &header.path, block::NAME, pax::PATH);
    fit.text("link target", &header.link, block::LINK, pax::LINKPATH);
    fit.text("user name", &header.uname, block::UNAME, pax::UNAME);
    fit.text("group name", &header.gname, block::GNAME, pax::GNAME);
    fit.number("mode", header.mode.into(), block::MODE, None);
    fit.number("uid", header.uid.into(), block::UID, Some(pax::UID));
    fit.number("gid", header.gid.into(), block::GID, Some(pax::GID));
    let size = i64::try_from(header.size).map_err(|_| format!("size {} is too large", header.size))?;
    fit.number("size", size, block::SIZE, Some(pax::SIZE));
    fit.number("device", header.device.0.into(), block::MAJOR, None);
    fit.number("device", header.device.1.into(), block::MINOR, None);
    fit.time(Some(header.mtime), block::MTIME, pax::MTIME);
    fit.time(header.atime, block::GNU_ATIME, pax::ATIME);
    fit.time(header.ctime, block::GNU_CTIME, pax::CTIME);
    fit.extra_records();
    fit.finish()
}

struct Fit<'a> {
    format: Format,
    records: Records,
    prefer_pax: bool,
    header: &'a Header,
    /// The last reason why PAX is out; PAX is what everything else falls back to.
    refused: String,
}

impl Fit<'_> {
    fn exclude(&mut self, format: Format, what: &str) {
        self.format = self.format.without(format);
        if format == Format::PAX {
            self.refused = format!("{what} does not fit");
        }
    }

    fn keep_record(&mut self, key: &[u8], text: impl FnOnce() -> Vec<u8>) {
        // A record that was read and still agrees is written again.
        if let Some(value) = self.header.records.get(key)
            && *value == text()
        {
            self.records.insert(key.to_vec(), value.clone());
        }
    }

    fn text(&mut self, what: &str, text: &[u8], field: Field, key: &[u8]) {
        let too_long = text.len() > field.len();
        let long_in_gnu = key == pax::PATH || key == pax::LINKPATH;
        if text.contains(&0) || (too_long && !long_in_gnu) {
            self.exclude(Format::GNU, what);
        }
        if too_long || !is_ascii_text(text) {
            if key != pax::PATH || split_ustar(text).is_none() {
                self.exclude(Format::USTAR, what);
            }
            self.records.insert(key.to_vec(), text.to_vec());
        }
        self.keep_record(key, || text.to_vec());
    }

    fn number(&mut self, what: &str, value: i64, field: Field, key: Option<&[u8]>) {
        if !fits_binary(field.len(), value) {
            self.exclude(Format::GNU, what);
        }
        let text = || value.to_string().into_bytes();
        if !fits_octal(field.len(), value) {
            self.exclude(Format::USTAR, what);
            match key {
                Some(key) => _ = self.records.insert(key.to_vec(), text()),
                None => self.exclude(Format::PAX, what),
            }
        }
        if let Some(key) = key {
            self.keep_record(key, text);
        }
    }

    fn time(&mut self, time: Option<Time>, field: Field, key: &[u8]) {
        let Some(time) = time.filter(|time| !time.is_go_zero()) else { return };
        if !fits_binary(field.len(), time.secs) {
            self.exclude(Format::GNU, "time");
        }
        let is_mtime = key == pax::MTIME;
        let fits = is_mtime && fits_octal(field.len(), time.secs);
        if !fits {
            self.exclude(Format::USTAR, "time");
        }
        if !fits || time.nanos != 0 {
            self.prefer_pax = true;
            self.records.insert(key.to_vec(), pax::format_time(time));
        }
        self.keep_record(key, || pax::format_time(time));
    }

    fn extra_records(&mut self) {
        let header = self.header;
        for (name, value) in &header.xattrs {
            let key = [pax::XATTR, name].concat();
            self.records.entry(key).or_insert_with(|| value.clone());
        }
        for (key, value) in &header.records {
            if !pax::is_basic(key) && !key.starts_with(pax::SPARSE) {
                self.records.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        if !header.xattrs.is_empty() || !header.records.is_empty() {
            self.format = self.format.only(Format::PAX);
        }
    }

    fn finish(self) -> Result<Plan, Refused> {
        if let Some((key, _)) = self.records.iter().find(|(key, value)| !pax::is_valid(key, value)) {
            let what = String::from_utf8_lossy(key);
            return Err(format!("{what} holds a NUL byte or its key holds `=`"));
        }
        let mut wish = self.header.format;
        if wish.has(Format::PAX) && !self.prefer_pax {
            wish = wish.or(Format::USTAR);
        }
        let allowed = if wish == Format::UNKNOWN { self.format } else { self.format.only(wish) };
        let format = [Format::USTAR, Format::PAX, Format::GNU].into_iter().find(|format| allowed.has(*format));
        match format {
            Some(format) => Ok(Plan { format, records: self.records }),
            None if self.refused.is_empty() => Err("no tar format can hold it".to_owned()),
            None => Err(self.refused),
        }
    }
}

fn is_ascii_text(text: &[u8]) -> bool {
    text.iter().all(|b| (1..0x80).contains(b))
}

/// Splits a long name at a slash into ustar's prefix and name, the prefix as long as can be.
pub(super) fn split_ustar(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let prefix_len = block::PREFIX.len();
    let name_len = block::NAME.len();
    if path.len() <= name_len || !is_ascii_text(path) {
        return None;
    }
    let search = match path.len() {
        len if len > prefix_len + 1 => prefix_len + 1,
        len if path.ends_with(b"/") => len - 1,
        len => len,
    };
    let slash = path[..search].iter().rposition(|b| *b == b'/').filter(|slash| *slash > 0 && *slash <= prefix_len)?;
    let name = &path[slash + 1..];
    (!name.is_empty() && name.len() <= name_len).then_some((&path[..slash], name))
}
