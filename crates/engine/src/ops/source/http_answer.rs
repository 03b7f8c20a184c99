//! What a server says of a file: what it is called, and when it was changed.

use http_client::Url;
use jiff::Timestamp;
use jiff::fmt::{rfc2822, strtime};

use super::one_file::safe_name;

/// What the file is called: what the build says, or the server, or the address.
pub(super) fn file_name(wanted: &str, address: &Url, disposition: Option<&str>) -> String {
    if !wanted.is_empty() {
        return safe_name(wanted);
    }
    if let Some(name) = disposition.and_then(disposed) {
        return safe_name(&name);
    }
    safe_name(&decoded(
        address.path_segments().and_then(|mut parts| parts.rfind(|part| !part.is_empty())).unwrap_or(""),
    ))
}

/// The name in `Content-Disposition`.
fn disposed(text: &str) -> Option<String> {
    let mut found = None;
    let mut is_quoted = false;
    let ends = |c: char| {
        is_quoted ^= c == '"';
        c == ';' && !is_quoted
    };
    for parameter in text.split(ends).skip(1) {
        let Some((name, value)) = parameter.split_once('=') else { continue };
        let value = value.trim();
        match name.trim().to_ascii_lowercase().as_str() {
            // What can say more wins (RFC 6266).
            "filename*" => {
                let encoded = value.splitn(3, '\'').nth(2)?;
                found = Some(decoded(encoded));
                break;
            }
            "filename" => found = Some(value.trim_matches('"').replace("\\\"", "\"")),
            _ => {}
        }
    }
    found.filter(|name| !name.is_empty() && !name.ends_with('/'))
}

/// Bytes that stand as `%xx`.
pub(super) fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = |digit: u8| (digit as char).to_digit(16);
        match (first, after) {
            (b'%', [one, two, left @ ..]) if hex(*one).is_some() && hex(*two).is_some() => {
                bytes.push((hex(*one).unwrap_or(0) * 16 + hex(*two).unwrap_or(0)) as u8);
                rest = left;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A time in any of the three forms that HTTP knows (RFC 9110, 5.6.7).
pub(super) fn http_time(text: &str) -> Option<Timestamp> {
    if let Ok(time) = rfc2822::parse(text) {
        return Some(time.timestamp());
    }
    let plain = text.trim().trim_end_matches(" GMT").trim_end_matches(" UTC");
    let forms = ["%A, %d-%b-%y %H:%M:%S", "%a %b %e %H:%M:%S %Y"];
    let time = forms.iter().find_map(|form| strtime::parse(form, plain).ok()?.to_datetime().ok())?;
    time.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|time| time.timestamp())
}

/// A time as HTTP writes it.
pub(super) fn rfc9110(time: Timestamp) -> String {
    rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_by_the_build_the_server_or_the_address() {
        for (url, filename, disposition, name) in [
            ("https://h/a/b.txt?x=/y#z", "", None, "b.txt"),
            ("https://h/a%20b/", "", None, "a b"),
            ("https://h", "", None, "download"),
            ("https://h/..%2f", "", None, "download"),
            ("https://h/a", "x/y", Some("attachment; filename=z"), "y"),
            ("https://h/a", "", Some("attachment; filename=\"p/z.tar\""), "z.tar"),
            ("https://h/a", "", Some("attachment; filename=z; filename*=UTF-8''%c3%a4"), "ä"),
            ("https://h/a", "", Some("attachment; filename=\"z.tar\";"), "z.tar"),
            ("https://h/a", "", Some("attachment; filename=\"z;1.tar\"; size=3"), "z;1.tar"),
            ("https://h/a", "", Some("inline"), "a"),
            ("https://h/a", "", Some("attachment; filename=.."), "download"),
        ] {
            let address = url.parse().expect(url);
            assert_eq!(file_name(filename, &address, disposition), name, "{url} {filename} {disposition:?}");
        }
    }

    #[test]
    fn times_are_written_as_http_does() {
        assert_eq!(rfc9110(Timestamp::UNIX_EPOCH), "Thu, 01 Jan 1970 00:00:00 GMT");
        let written = "Sun, 06 Nov 1994 08:49:37 GMT";
        for text in
            [written, "Sunday, 06-Nov-94 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 UTC", "Sun Nov  6 08:49:37 1994"]
        {
            assert_eq!(http_time(text).map(rfc9110).as_deref(), Some(written), "{text}");
        }
        assert_eq!(http_time("yesterday"), None);
    }
}
