//! `shardgate config`: every key, its value and the value's origin.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::client;
use super::table::aligned;
use super::{EXIT_START, EXIT_USAGE, Output};
use crate::config::{Config, Problems, Provenance};

/// Form in which the settings are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table for people.
    #[default]
    Table,
    /// Lines of TOML with the origin as a comment.
    Toml,
    /// An array of objects: key, value, source.
    Json,
}

/// Shows the settings that the files, the environment and the flags make, or those that are in
/// force.
pub fn show(loaded: Result<Config, Problems>, in_force: bool, format: Format) -> Output {
    let config = match loaded {
        Ok(config) => config,
        Err(problems) => return Output::wrong(problems.to_string(), EXIT_USAGE),
    };
    if in_force {
        return match client::get(&config.gateway.admin, "/config") {
            Ok(answer) if answer.is_ok() => Output::fine(in_force_as(&answer.body, format)),
            Ok(answer) => Output::wrong(answer.why(), EXIT_START),
            Err(why) => Output::wrong(why.text().to_owned(), EXIT_START),
        };
    }
    let rows: Vec<Row> = config.provenance.iter().map(Row::of).collect();
    Output::fine(rendered(&rows, format))
}

/// A key with its value and origin.
struct Row {
    key: String,
    /// Value as TOML.
    value: String,
    source: String,
}

impl Row {
    fn of((key, value, source): &Provenance) -> Self {
        Self { key: key.clone(), value: value.clone(), source: source.to_string() }
    }
}

/// Shows the gateway's answer. Keys are listed like those of the files; an answer of another form
/// (of another version) is shown as it came.
fn in_force_as(body: &Value, format: Format) -> String {
    let list = body["settings"].as_array();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let row = |item: &Value| {
        let (key, value, source) = (item.get("key")?, item.get("value")?, item.get("source")?);
        Some(Row { key: text(key), value: text(value), source: text(source) })
    };
    let rows: Option<Vec<Row>> = list.and_then(|l| l.iter().map(row).collect());
    match (rows, format) {
        (_, Format::Json) | (None, Format::Table | Format::Toml) => {
            serde_json::to_string_pretty(body).expect("JSON of JSON")
        }
        (Some(rows), Format::Table | Format::Toml) => rendered(&rows, format),
    }
}

fn rendered(rows: &[Row], format: Format) -> String {
    match format {
        Format::Table => {
            let cells = |r: &Row| [r.key.clone(), r.value.clone(), r.source.clone()];
            let rows: Vec<_> = rows.iter().map(cells).collect();
            aligned(["KEY", "VALUE", "FROM"], &rows)
        }
        Format::Json => {
            let object = |r: &Row| json!({"key": r.key, "value": r.value, "source": r.source});
            let list: Vec<_> = rows.iter().map(object).collect();
            serde_json::to_string_pretty(&list).expect("strings only")
        }
        Format::Toml => toml(rows),
    }
}

/// Writes TOML: keys with dots, one a line; those of `N.toml` follow under its name, and elements
/// of a list of tables under theirs.
fn toml(rows: &[Row]) -> String {
    let mut files: BTreeMap<String, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        let file = row.key.split_once('/').map_or(String::new(), |(n, _)| format!("{n}.toml"));
        files.entry(file).or_default().push(row);
    }
    let mut out = String::new();
    for (file, rows) in files {
        if !file.is_empty() {
            out += &format!("\n# {file}\n");
        }
        let mut table = "";
        for row in in_toml_order(rows) {
            let key = row.key.split_once('/').map_or(row.key.as_str(), |(_, key)| key);
            let (element, key) = key.rsplit_once("].").unwrap_or(("", key));
            if table != element {
                table = element;
                // service[0].instances[1 -> service.instances
                let name = |part: &str| part.split('[').next().unwrap_or_default().to_owned();
                let names: Vec<String> = element.split('.').map(name).collect();
                out += &format!("\n[[{}]]\n", names.join("."));
            }
            out += &format!("{key} = {}  # {}\n", row.value, row.source);
        }
    }
    out
}

/// Sorts rows: those in no list first; then each element, its own keys before those of its lists.
fn in_toml_order(rows: Vec<&Row>) -> Vec<&Row> {
    let element =
        |row: &Row| row.key.split_once("].").map_or("", |(element, _)| element).to_owned();
    let mut seen: Vec<String> = vec![String::new()];
    for row in &rows {
        if !seen.contains(&element(row)) {
            seen.push(element(row));
        }
    }
    let mut rows = rows;
    rows.sort_by_key(|row| {
        let place = seen.iter().position(|e| *e == element(row)).unwrap_or_default();
        (place, row.key.matches("].").count())
    });
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;
    use crate::config::load::{Files, from_files};

    fn show_default(format: Format) -> String {
        let flags = Overrides { listen: Some("127.0.0.1:7000".into()), ..Overrides::default() };
        let env = [("SHARDGATE__ADMIN__TOKEN".into(), "very-secret-token-1".into())];
        let said = show(from_files(Files::embedded(), &env, &flags), false, format);
        assert_eq!(said.code, 0, "{}", said.text);
        assert!(!said.text.contains("very-secret"), "a secret is shown");
        said.text
    }

    #[test]
    fn every_key_is_shown_with_its_origin() {
        let text = show_default(Format::Table);
        let line = |key: &str| {
            let found = text.lines().find(|line| line.split_whitespace().next() == Some(key));
            found.unwrap_or_else(|| panic!("{key} in {text}")).to_owned()
        };
        let words: Vec<String> = line("listen").split_whitespace().map(str::to_owned).collect();
        assert_eq!(words, ["listen", "\"127.0.0.1:7000\"", "flag", "--listen"]);
        assert!(line("admin.token").contains("environment SHARDGATE__ADMIN__TOKEN"));
        assert!(line("queue.items_max").contains("built-in default.toml:"));
    }

    #[test]
    fn the_toml_is_toml_and_the_json_is_json() {
        let text = show_default(Format::Toml);
        let table: toml::Table = toml::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert_eq!(table["service"][2]["instances"][0]["id"].as_str(), Some("fight-1"));
        let list: Vec<Value> = serde_json::from_str(&show_default(Format::Json)).expect("JSON");
        assert!(list.iter().any(|row| row["key"] == "conn.connections_max"));
    }

    #[test]
    fn what_the_gateway_lists_is_shown_like_the_files() {
        let body =
            json!({"version": 3, "settings": [{"key": "a.b", "value": "1", "source": "default"}]});
        assert_eq!(in_force_as(&body, Format::Table), "KEY  VALUE  FROM\na.b  1      default\n");
        let odd = json!({"something": "else"});
        assert!(in_force_as(&odd, Format::Table).contains("something"));
    }
}
