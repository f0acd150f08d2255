//! `shardgate drain`, `shardgate reload` and `shardgate trace`: requests to the gateway that runs.

use std::path::Path;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::client::{self, Answer};
use super::{EXIT_START, EXIT_USAGE, Form, Output};
use crate::config::{Config, Problems};

/// Drains the gateway or an instance, or ends the drain of an instance.
pub fn drain(
    loaded: Result<Config, Problems>,
    instance: Option<&str>,
    undo: bool,
    form: Form,
) -> Output {
    let path = match instance {
        None => "/drain".to_owned(),
        Some(id) => {
            let id = utf8_percent_encode(id, NON_ALPHANUMERIC);
            format!("/instances/{id}/{}", if undo { "undrain" } else { "drain" })
        }
    };
    ask(loaded, &path, form, |_| match (instance, undo) {
        (None, _) => "the gateway drains: it answers what it has read and ends".to_owned(),
        (Some(id), false) => format!("{id} gets no new messages and finishes those that it has"),
        (Some(id), true) => format!("{id} gets its keys again"),
    })
}

/// Has the gateway read its files again.
pub fn reload(loaded: Result<Config, Problems>, form: Form) -> Output {
    ask(loaded, "/reload", form, |answer| reloaded(&answer.body))
}

/// Records the turns of a shard for `ms` milliseconds, and writes them to `file`.
pub fn trace(loaded: Result<Config, Problems>, shard: u16, ms: u64, file: &Path) -> Output {
    let admin = match loaded {
        Ok(config) => config.gateway.admin,
        Err(problems) => return Output::wrong(problems.to_string(), EXIT_USAGE),
    };
    let path = format!("/trace?shard={shard}&ms={ms}");
    let trace = match client::post_lasting(&admin, &path, Duration::from_millis(ms)) {
        Ok(answer) if answer.is_ok() => answer.body,
        Ok(answer) => return Output::wrong(refused(&answer), code(answer.status)),
        Err(why) => return Output::wrong(why.text().to_owned(), EXIT_START),
    };
    let (name, end) = (file.display(), trace["otherData"]["end"].as_str().unwrap_or_default());
    match std::fs::write(file, trace.to_string()) {
        Ok(()) => Output::fine(format!(
            "wrote {name} ({end}); open it at https://ui.perfetto.dev: it stays on your machine"
        )),
        Err(error) => Output::wrong(format!("{name}: {error}; name another file"), EXIT_START),
    }
}

/// A reload in lines: what is new (+), gone (-) or different (~), and what is suspicious.
fn reloaded(body: &Value) -> String {
    let list = |key: &str| body[key].as_array().cloned().unwrap_or_default();
    let (changes, warnings) = (list("changes"), list("warnings"));
    let version = &body["version"];
    let mut out = match changes.len() {
        0 => format!(
            "reloaded: no setting changed, and the files that they name were read again (version \
             {version})\n"
        ),
        1 => format!("reloaded: 1 change (version {version})\n"),
        n => format!("reloaded: {n} changes (version {version})\n"),
    };
    for change in &changes {
        out += &format!("{}\n", change_line(change));
    }
    for warning in &warnings {
        out += &format!("warning: {}\n", warning.as_str().unwrap_or_default());
    }
    out
}

/// A change in one line: `~ conn.heartbeat_ms 30000 -> 20000`, `+ route 5000-5099 -> upper`.
fn change_line(change: &Value) -> String {
    let key = change["key"].as_str().unwrap_or_default();
    let thing = match key.strip_suffix(']').and_then(|whole| whole.rsplit_once('[')) {
        // A table of a list as a whole.
        Some((list, name)) => format!("{list} {name}"),
        None => key.to_owned(),
    };
    let with = |value: &str| {
        let table = toml::from_str::<toml::Table>(&format!("it = {value}"));
        let service = table.as_ref().ok().and_then(|t| t.get("it")?.get("service")?.as_str());
        service.map_or_else(|| format!("= {value}"), |service| format!("-> {service}"))
    };
    match (change["old"].as_str(), change["new"].as_str()) {
        (Some(old), Some(new)) => format!("~ {thing} {old} -> {new}"),
        (None, Some(new)) => format!("+ {thing} {}", with(new)),
        (Some(old), None) => format!("- {thing} {}", with(old)),
        (None, None) => format!("~ {thing}"),
    }
}

fn ask(
    loaded: Result<Config, Problems>,
    path: &str,
    form: Form,
    done: impl FnOnce(&Answer) -> String,
) -> Output {
    // Only the address is needed of the files, but a wrong file says nothing reliable.
    let admin = match loaded {
        Ok(config) => config.gateway.admin,
        Err(problems) => return Output::wrong(problems.to_string(), EXIT_USAGE),
    };
    let text = |answer: &Answer, line: String| match form {
        Form::Text => line,
        Form::Json => answer.text(),
    };
    match client::post(&admin, path, &json!({})) {
        Ok(answer) if answer.is_ok() => Output::fine(text(&answer, done(&answer))),
        Ok(answer) => Output::wrong(text(&answer, refused(&answer)), code(answer.status)),
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
    fn a_reload_tells_what_is_new_gone_and_different() {
        fn of(key: &str, old: Option<&str>, new: Option<&str>) -> Value {
            json!({"key": key, "old": old, "new": new})
        }
        let body = json!({"version": 4, "warnings": ["a:1: odd"], "changes": [
            of("conn.heartbeat_ms", Some("30000"), Some("20000")),
            of("route[5000-5099]", None, Some("{ service = \"upper\" }")),
            of("route[1000-1999].timeout_ms", Some("5000"), Some("100")),
            of("service[chat]", Some("{ mode = \"batch\" }"), None),
            of("service[logic].instances[a]", None, Some("{ address = \"127.0.0.1:1\" }")),
        ]});
        assert_eq!(
            reloaded(&body),
            "reloaded: 5 changes (version 4)\n\
             ~ conn.heartbeat_ms 30000 -> 20000\n\
             + route 5000-5099 -> upper\n\
             ~ route[1000-1999].timeout_ms 5000 -> 100\n\
             - service chat = { mode = \"batch\" }\n\
             + service[logic].instances a = { address = \"127.0.0.1:1\" }\n\
             warning: a:1: odd\n"
        );
        let none = reloaded(&json!({"version": 4, "warnings": [], "changes": []}));
        let text = "reloaded: no setting changed, and the files that they name were read again";
        assert_eq!(none, format!("{text} (version 4)\n"));
    }

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
