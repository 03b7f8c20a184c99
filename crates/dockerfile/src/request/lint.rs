//! `frontend.lint`: the checks, without a build. All stages are looked at unless one is named.

use serde_json::Value;

use super::{About, Answer, json, result, text};
use crate::error::{Error, Result};
use crate::frontend::{Read, check_settings};
use crate::lint::{Audience, Linter, Settings, Warning};
use crate::lower;

pub(super) const NAME: &str = "frontend.lint";

pub(super) fn answer(about: &About<'_>) -> Result<Answer> {
    let found = about.found;
    let (settings, unreadable) = match check_settings(about.options, found) {
        Ok(settings) => (settings, None),
        Err(error) => (Settings::default(), Some(error)),
    };
    let linter = Linter::new(settings, (&found.file, found.vertex), Audience::Kept);
    let checked = match unreadable {
        Some(error) => Err(error),
        None => Read::new(about, &linter).and_then(|read| lower::check(&read.input(about, &linter))),
    };
    let error = checked.err();
    let mut warnings = linter.into_said();
    let warning = |warning: &Warning| {
        json::object([
            ("ruleName", Some(warning.rule.into())),
            ("description", json::text(warning.description)),
            ("url", json::text(warning.url.unwrap_or_default())),
            ("detail", json::text(&warning.message)),
            ("location", Some(json::location(&warning.spans))),
        ])
    };
    let all: Vec<Value> = warnings.iter().map(warning).collect();
    let json = json::object([
        ("warnings", Some(if all.is_empty() { Value::Null } else { Value::Array(all) })),
        ("sources", Some(Value::Array(vec![json::source(&found.info)]))),
        ("buildError", error.map(build_error)),
    ]);
    let failed = json.get("buildError").is_some() || !warnings.is_empty();
    warnings.sort_by_key(|warning| warning.spans.first().map(|span| span.start.0));
    let mut shown = String::new();
    for warning in &warnings {
        let url = warning.url.map(|url| format!(" - {url}")).unwrap_or_default();
        shown.push_str(&format!("\nWARNING: {}{url}\n{}\n", warning.rule, warning.message));
        shown.push_str(&text::excerpt(&found.file, &warning.spans));
    }
    let mut answer = result(&json, shown);
    answer.insert("result.statuscode".to_owned(), u8::from(failed).to_string().into_bytes());
    Ok(answer)
}

fn build_error(error: Error) -> Value {
    let location = json::location(error.spans());
    json::object([("message", Some(error.into_fault(None).cause().into())), ("location", Some(location))])
}
