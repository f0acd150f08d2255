//! `shardgate drain` and `shardgate reload`: requests to the gateway that runs.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::client::{self, Answer};
use super::{EXIT_START, EXIT_USAGE, Output};
use crate::config::{Config, Problems};

/// Drains the gateway or an instance, or ends the drain of an instance.
pub fn drain(loaded: Result<Config, Problems>, instance: Option<&str>, undo: bool) -> Output {
    let path = match instance {
        None => "/drain".to_owned(),
        Some(id) => {
            let id = utf8_percent_encode(id, NON_ALPHANUMERIC);
            format!("/instances/{id}/{}", if undo { "undrain" } else { "drain" })
        }
    };
    ask(loaded, &path, |answer| {
        let what = match (instance, undo) {
            (None, _) => "the gateway drains: it answers what it has read and ends".to_owned(),
            (Some(id), false) => {
                format!("{id} gets no new messages and finishes those that it has")
            }
            (Some(id), true) => format!("{id} gets its keys again"),
        };
        with_details(what, answer)
    })
}

/// Has the gateway read its files again.
pub fn reload(loaded: Result<Config, Problems>) -> Output {
    ask(loaded, "/reload", |answer| with_details("reloaded".into(), answer))
}

/// A sentence, with the gateway's answer if that has a text.
fn with_details(what: String, answer: &Answer) -> String {
    let empty = match &answer.body {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    };
    if empty { what } else { format!("{what}\n{}", answer.text()) }
}

fn ask(
    loaded: Result<Config, Problems>,
    path: &str,
    done: impl FnOnce(&Answer) -> String,
) -> Output {
    // Only the address is needed of the files, but a wrong file says nothing reliable.
    let admin = match loaded {
        Ok(config) => config.gateway.admin,
        Err(problems) => return Output::wrong(problems.to_string(), EXIT_USAGE),
    };
    match client::post(&admin, path, &json!({})) {
        Ok(answer) if answer.is_ok() => Output::fine(done(&answer)),
        Ok(answer) => Output::wrong(refused(&answer), code(answer.status)),
        Err(why) => Output::wrong(why.text().to_owned(), EXIT_START),
    }
}

/// Exit code of a refusal: the request was wrong (a configuration, a name), or could not be carried
/// out.
fn code(status: u16) -> u8 {
    match status {
        400 | 404 | 409 | 422 => EXIT_USAGE,
        _ => EXIT_START,
    }
}

/// Text of a refusal: problems one a line if the gateway lists them, else its answer.
fn refused(answer: &Answer) -> String {
    let text = |p: &Value| p.as_str().map_or_else(|| p.to_string(), str::to_owned);
    match answer.body["problems"].as_array() {
        Some(list) => {
            let lines: Vec<String> = list.iter().map(text).collect();
            format!("{}\nthe gateway refused this: nothing was changed", lines.join("\n"))
        }
        None => {
            format!("the gateway refused this with {}: {}", answer.status, answer.why())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_told_one_a_line() {
        let body = json!({"problems": ["a:1: x", "b:2: y"]});
        let text = refused(&Answer { status: 422, body });
        assert_eq!(text, "a:1: x\nb:2: y\nthe gateway refused this: nothing was changed");
        let text = refused(&Answer { status: 403, body: json!({"error": "Host is wrong"}) });
        assert_eq!(text, "the gateway refused this with 403: Host is wrong");
        let text = refused(&Answer { status: 502, body: "no upstream\n".into() });
        assert_eq!(text, "the gateway refused this with 502: no upstream");
        assert_eq!((code(422), code(404), code(403), code(500)), (64, 64, 1, 1));
    }
}
