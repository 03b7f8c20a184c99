//! Spans as a build's record keeps them: one JSON document after another, as Go's `tracetest.SpanStub` is written.

use proto::otlp::{AnyValue, KeyValue, ResourceSpans, Scope, Span, Value};
use serde_json::json;

/// All spans, one after another.
pub(super) fn json(resources: &[ResourceSpans]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for resource in resources {
        let of = resource.resource.as_ref().map_or(&[][..], |resource| &resource.attributes);
        for scope in &resource.scope_spans {
            for span in &scope.spans {
                let stub = stub(span, of, scope.scope.as_ref());
                bytes.extend(serde_json::to_vec_pretty(&stub).unwrap_or_default());
                bytes.push(b'\n');
            }
        }
    }
    bytes
}

fn stub(span: &Span, resource: &[KeyValue], scope: Option<&Scope>) -> serde_json::Value {
    let hex = |bytes: &[u8], length: usize| -> String {
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        if text.len() == 2 * length { text } else { "0".repeat(2 * length) }
    };
    let context = |trace: &[u8], id: &[u8], remote: bool| {
        json!({
            "TraceID": hex(trace, 16), "SpanID": hex(id, 8), "TraceFlags": format!("{:02x}", span.flags & 0xff),
            "TraceState": span.trace_state, "Remote": remote,
        })
    };
    let time = |nanos: u64| jiff::Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_default().to_string();
    let attributes = |attributes: &[KeyValue]| match attributes {
        [] => serde_json::Value::Null,
        some => some.iter().map(attribute).collect(),
    };
    let events: Vec<_> = span
        .events
        .iter()
        .map(|event| {
            json!({
                "Name": event.name, "Attributes": attributes(&event.attributes), "DroppedAttributeCount": 0,
                "Time": time(event.time_unix_nano),
            })
        })
        .collect();
    let status = span.status.clone().unwrap_or_default();
    let code = ["Unset", "Ok", "Error"].get(usize::try_from(status.code).unwrap_or(0)).unwrap_or(&"Unset");
    let parent = match &span.parent_span_id[..] {
        [] => context(&[], &[], false),
        id => context(&span.trace_id, id, true),
    };
    let library = scope.cloned().unwrap_or_default();
    json!({
        "Name": span.name,
        "SpanContext": context(&span.trace_id, &span.span_id, false),
        "Parent": parent,
        "SpanKind": span.kind,
        "StartTime": time(span.start_time_unix_nano),
        "EndTime": time(span.end_time_unix_nano),
        "Attributes": attributes(&span.attributes),
        "Events": if events.is_empty() { serde_json::Value::Null } else { events.into() },
        "Links": null,
        "Status": { "Code": code, "Description": status.message },
        "DroppedAttributes": 0, "DroppedEvents": 0, "DroppedLinks": 0, "ChildSpanCount": 0,
        "Resource": attributes(resource),
        "InstrumentationLibrary": { "Name": library.name, "Version": library.version, "SchemaURL": "", "Attributes": null },
    })
}

fn attribute(attribute: &KeyValue) -> serde_json::Value {
    let (kind, value) = match &attribute.value {
        Some(AnyValue { value: Some(Value::Bool(value)) }) => ("BOOL", json!(value)),
        Some(AnyValue { value: Some(Value::Int(value)) }) => ("INT64", json!(value)),
        Some(AnyValue { value: Some(Value::Double(value)) }) => ("FLOAT64", json!(value)),
        Some(AnyValue { value: Some(Value::Text(value)) }) => ("STRING", json!(value)),
        _ => ("STRING", json!("")),
    };
    json!({ "Key": attribute.key, "Value": { "Type": kind, "Value": value } })
}
