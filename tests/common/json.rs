//! Looking into `--json` output without fixing where each value stands.

use serde_json::Value;

/// Every string and number in `value`, as text.
pub(crate) fn scalars(value: &Value) -> Vec<String> {
    let mut out = Vec::new();
    collect(value, &mut out);
    out
}

fn collect(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Array(list) => list.iter().for_each(|item| collect(item, out)),
        Value::Object(map) => map.values().for_each(|item| collect(item, out)),
        Value::String(text) => out.push(text.clone()),
        Value::Number(number) => out.push(number.to_string()),
        Value::Null | Value::Bool(_) => {}
    }
}

/// Parses `text` as one JSON value.
#[track_caller]
pub(crate) fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("no JSON ({error}): {text}"))
}

/// Checks that each of `expected` is a value somewhere in `value`.
#[track_caller]
pub(crate) fn has(value: &Value, expected: &[&str]) {
    let found = scalars(value);
    for word in expected {
        assert!(
            found.iter().any(|text| text == word),
            "{word:?} is not in {value:#}"
        );
    }
}
