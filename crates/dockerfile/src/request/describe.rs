//! `frontend.subrequests.describe`: which questions there are.

use serde_json::{Value, json};

use super::{Answer, Definition, VERSION, outline, result, targets, text};

pub(super) const DEFINITION: Definition =
    Definition { name: "frontend.subrequests.describe", description: "List available subrequest types", options: None };

pub(super) fn answer() -> Answer {
    // As upstream, which does not list the checks.
    let all = [&outline::DEFINITION, &targets::DEFINITION, &DEFINITION];
    let named = |(name, description): &(&str, &str)| json!({ "name": name, "description": description });
    let described = |definition: &&Definition| {
        json!({
            "name": definition.name,
            "version": VERSION,
            "type": "rpc",
            "description": definition.description,
            "opts": definition.options.map(|options| options.iter().map(named).collect::<Vec<Value>>()),
            "inputs": null,
            "metadata": [named(&("result.json", "")), named(&("result.txt", ""))],
            "refs": null,
        })
    };
    let json = Value::Array(all.iter().map(described).collect());
    let rows = all.iter().map(|definition| {
        let name = definition.name.strip_prefix("frontend.").unwrap_or(definition.name);
        vec![name.to_owned(), VERSION.to_owned(), definition.description.to_owned()]
    });
    result(&json, text::table(&["NAME", "VERSION", "DESCRIPTION"], rows.collect(), 1))
}
