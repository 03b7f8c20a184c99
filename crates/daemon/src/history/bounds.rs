//! What a record may take up: clients put into it what they like.

use std::collections::HashMap;

use proto::Message as _;
use proto::moby::buildkit::v1 as wire;

/// What one record may take up in the database.
pub(super) const MOST: usize = 256 << 10;
/// What all of them may, with those that are pinned.
pub(super) const MOST_IN_ALL: u64 = 64 << 20;
/// What a record takes up beside what it says.
const BESIDE: u64 = 512;
/// Of a value that is longer, a record that is too large has the beginning.
const MOST_OF_VALUE: usize = 1 << 10;
/// The same of the words of an error.
const MOST_OF_ERROR: usize = 32 << 10;

/// What a record takes up.
pub(super) fn size(record: &wire::BuildHistoryRecord) -> u64 {
    record.encoded_len() as u64 + BESIDE
}

/// Cuts what a record is too large for, and says so there.
pub(super) fn fit(record: &mut wire::BuildHistoryRecord) {
    if record.encoded_len() <= MOST {
        return;
    }
    // What exporters say of images is read by programs.
    let words = maps(record).flat_map(HashMap::iter_mut).filter(|(key, _)| !key.starts_with("containerimage."));
    words.for_each(|(_, value)| cut(value, MOST_OF_VALUE));
    if let Some(error) = &mut record.error {
        cut(&mut error.message, MOST_OF_ERROR);
    }
    if record.encoded_len() <= MOST {
        return;
    }
    // Many short ones, then, or long names.
    let left_out: usize = maps(record).map(|map| map.drain().count()).sum();
    record.exporters.clear();
    record.frontend_attrs.insert("..".to_owned(), format!("{left_out} attributes are left out"));
    if record.encoded_len() > MOST {
        record.result = None;
    }
}

/// All attributes of a record.
fn maps(record: &mut wire::BuildHistoryRecord) -> impl Iterator<Item = &mut HashMap<String, String>> {
    let exporters = record.exporters.iter_mut().map(|exporter| &mut exporter.attrs);
    let result = record.result.iter_mut();
    let results = result.flat_map(|result| result.result_deprecated.iter_mut().chain(result.results.values_mut()));
    let results = results.map(|result| &mut result.annotations);
    [&mut record.frontend_attrs, &mut record.exporter_response].into_iter().chain(exporters).chain(results)
}

fn cut(text: &mut String, most: usize) {
    if text.len() > most {
        let left_out = text.len() - text.floor_char_boundary(most);
        text.truncate(text.len() - left_out);
        text.push_str(&format!(".. ({left_out} bytes are left out)"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs<const N: usize>(pairs: [(&str, String); N]) -> HashMap<String, String> {
        pairs.map(|(key, value)| (key.to_owned(), value)).into()
    }

    #[test]
    fn records_that_are_too_large_are_cut_and_say_so() {
        let long = "ä".repeat(1 << 20);
        let error = proto::rpc::Status { message: long.clone(), ..Default::default() };
        let annotations = attrs([("a", long.clone())]);
        let descriptor = wire::Descriptor { digest: "sha256:0".to_owned(), annotations, ..Default::default() };
        let result = wire::BuildResultInfo { results: [(0, descriptor)].into(), ..Default::default() };
        let mut record = wire::BuildHistoryRecord {
            r#ref: "r".to_owned(),
            frontend_attrs: attrs([("target", "x".to_owned()), ("long", long.clone())]),
            exporters: vec![wire::Exporter { r#type: "image".to_owned(), attrs: attrs([("name", long)]) }],
            error: Some(error),
            result: Some(result),
            ..Default::default()
        };
        fit(&mut record);
        assert!(record.encoded_len() < MOST);
        assert_eq!(record.frontend_attrs["target"], "x");
        let value = &record.exporters[0].attrs["name"];
        assert!(value.starts_with("ää") && value.ends_with("ä.. (2096128 bytes are left out)"), "{value}");
        assert!(record.error.clone().expect("an error").message.len() > MOST_OF_ERROR);
        assert_eq!(record.result.as_ref().expect("a result").results[&0].digest, "sha256:0");
        let before = record.clone();
        fit(&mut record);
        assert_eq!(record, before);

        record.frontend_attrs = (0..20_000).map(|n| (format!("attribute-{n}"), "x".to_owned())).collect();
        fit(&mut record);
        assert_eq!(record.frontend_attrs, attrs([("..", "20002 attributes are left out".to_owned())]));
        assert!(record.encoded_len() < MOST && record.error.is_some());
    }
}
