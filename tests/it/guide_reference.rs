//! The reference pages of the guide against the program: each route, metric, log event, close code
//! and reason has one row, and no row names what is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use crate::support::{Config, Gateway, demo};
use crate::tidy::{ROOT, code, sources, without_tests};

/// A row of a table in the guide: the page with the heading above it, and the cells.
#[derive(Clone, Debug)]
struct Row {
    page: String,
    heading: String,
    /// The first cell, without its backticks.
    name: String,
    cells: Vec<String>,
}

/// Rows of all pages whose first cell is one name in backticks.
fn rows() -> Vec<Row> {
    let mut found = Vec::new();
    let dir = format!("{ROOT}/src/guide");
    for entry in fs::read_dir(dir).expect("the guide").flatten() {
        let page = entry.file_name().to_string_lossy().into_owned();
        if !page.ends_with(".md") {
            continue;
        }
        let text = fs::read_to_string(entry.path()).expect("UTF-8");
        let mut heading = String::new();
        for line in text.lines() {
            if let Some(title) = line.strip_prefix("## ") {
                heading = title.to_owned();
            }
            let Some(inner) = line.strip_prefix('|').and_then(|l| l.strip_suffix('|')) else {
                continue;
            };
            let cells: Vec<String> = inner.split('|').map(|cell| cell.trim().to_owned()).collect();
            let name = cells[0].strip_prefix('`').and_then(|cell| cell.strip_suffix('`'));
            let Some(name) = name.filter(|name| !name.contains('`')).map(str::to_owned) else {
                continue;
            };
            found.push(Row { page: page.clone(), heading: heading.clone(), name, cells });
        }
    }
    found
}

/// Compares the rows that `is_one` selects with the names of the program.
fn compare(what: &str, program: &BTreeSet<String>, is_one: impl Fn(&Row) -> bool) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for row in rows().into_iter().filter(is_one) {
        *counts.entry(row.name).or_default() += 1;
    }
    let lacks: Vec<_> = program.iter().filter(|name| !counts.contains_key(*name)).collect();
    let strange: Vec<_> = counts.keys().filter(|name| !program.contains(*name)).collect();
    let twice: Vec<_> = counts.iter().filter(|(_, n)| **n > 1).map(|(name, _)| name).collect();
    assert!(
        lacks.is_empty() && strange.is_empty() && twice.is_empty(),
        "{what}: without a row {lacks:?}; rows without a {what} {strange:?}; with more rows \
         {twice:?}"
    );
}

fn text_of(path: &str) -> String {
    fs::read_to_string(format!("{ROOT}/{path}")).expect("a file of the repository")
}

/// Texts in quotes that directly follow `before` in `text`.
fn quoted_after(text: &str, before: &str) -> Vec<String> {
    let starts = text.match_indices(before).map(|(at, _)| text[at + before.len()..].trim_start());
    let names = starts.filter_map(|rest| rest.strip_prefix('"')?.split('"').next());
    names.map(str::to_owned).collect()
}

fn is_code(name: &str) -> bool {
    name.len() == 4 && name.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_reason(name: &str) -> bool {
    name.len() > 4 && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

/// Whether a name is a word of small letters, digits and underscores.
fn is_event(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.bytes().all(plain)
}

#[test]
fn each_close_code_and_each_reason_has_one_row() {
    let lines = text_of("src/wire/close.rs");
    let consts = lines.lines().filter_map(|line| line.strip_prefix("pub(crate) const "));
    let number = |line: &str| Some(line.split_once(": u16 = ")?.1.strip_suffix(';')?.to_owned());
    let codes: BTreeSet<String> = consts.filter_map(number).collect();
    assert!(codes.len() > 10, "{codes:?}");
    compare("close code", &codes, |row| is_code(&row.name));
    let lines = text_of("src/message.rs");
    let arms = lines.lines().filter_map(|line| line.trim().strip_prefix("Reason::"));
    let name = |arm: &str| Some(arm.split_once(" => \"")?.1.split('"').next()?.to_owned());
    let reasons: BTreeSet<String> = arms.filter_map(name).collect();
    assert!(reasons.len() > 10, "{reasons:?}");
    compare("reason", &reasons, |row| is_reason(&row.name));
}

#[test]
fn each_route_and_each_metric_has_one_row() {
    let (_services, [logic, ..]) = demo();
    let config = Config::new().service("logic", &[("logic-1", logic)]).route(1000, "logic", "");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["logic-1"]);
    assert_eq!(gateway.admin_post("/reload", "").0, 200);
    let (_, list) = gateway.request("GET /", "", "");
    let methods = ["GET", "POST"];
    let routes: BTreeSet<String> = list
        .lines()
        .map(|line| line.split_whitespace().take(2).collect::<Vec<_>>())
        .filter(|words| words.len() == 2 && methods.contains(&words[0]))
        .filter(|words| words[1].starts_with('/'))
        .map(|words| words.join(" "))
        .collect();
    assert!(routes.len() > 20, "{list}");
    let is_route = |name: &str| methods.iter().any(|m| name.starts_with(&format!("{m} /")));
    compare("route", &routes, |row| is_route(&row.name));

    let metrics = metrics_of_the_source();
    let is_metric = |row: &Row| row.name.starts_with("shardgate_");
    compare("metric", &metrics, is_metric);
    let (status, scraped) = gateway.request("GET /metrics", "", "");
    assert_eq!(status, 200);
    let kinds: BTreeMap<&str, &str> =
        scraped.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    assert!(kinds.len() > 100, "{scraped}");
    let strange: Vec<_> = kinds.keys().filter(|name| !metrics.contains(**name)).collect();
    assert!(strange.is_empty(), "the source is read well enough: {strange:?}");
    for row in rows().into_iter().filter(is_metric) {
        let Some(kind) = kinds.get(&*row.name) else { continue };
        assert_eq!((&*row.page, &*row.cells[1]), ("metrics.md", *kind), "{}", row.name);
        assert_eq!(labels(&row.cells[3]), labels_of(&scraped, &row.name), "{}", row.name);
    }
    for path in ["/stats", "/routing/stats"] {
        let (heading, stats) =
            (format!("Fields of {path} that no metric shows"), gateway.admin_get(path));
        let fields: Vec<Row> = rows().into_iter().filter(|row| row.heading == heading).collect();
        assert!(!fields.is_empty(), "{heading}");
        for row in fields {
            let steps: Vec<&str> = row.name.split('.').collect();
            assert!(has(&stats, &steps), "{path} has no {}", row.name);
        }
    }
}

/// Names of all metrics, as the source makes them: those of `/metrics` depend on what happened.
fn metrics_of_the_source() -> BTreeSet<String> {
    let view = text_of("src/control/view/metrics.rs");
    let stats = text_of("src/stats.rs");
    let levels = view.split_once("const LEVELS").and_then(|(_, rest)| rest.split_once("];"));
    let mut names = quoted_after(levels.expect("the table of levels").0, "    (");
    for maker in ["family(", "level(", "counted("] {
        names.extend(quoted_after(&view, maker));
    }
    let pushes = text_of("src/control/view/pushes.rs");
    for maker in ["family(", "counter("] {
        names.extend(quoted_after(&pushes, maker));
    }
    let counters = stats.split_once("\ncounters! {").and_then(|(_, rest)| rest.split_once("\n}\n"));
    let labels = quoted_after(counters.expect("the list of counters").0, " = ");
    names.extend(labels.iter().map(|label| format!("{label}_total")));
    let tenants = stats.split_once("impl TenantCounter").map(|(_, rest)| rest);
    let tenants = tenants.and_then(|rest| rest.split_once("    /// Help text"));
    let labels = quoted_after(tenants.expect("the names of tenants' counters").0, " => ");
    names.extend(labels.iter().map(|label| format!("tenant_{label}_total")));
    names.into_iter().map(|name| format!("shardgate_{name}")).collect()
}

/// Names in a cell that lists labels.
fn labels(cell: &str) -> BTreeSet<String> {
    let names = cell.split(',').map(|name| name.trim().trim_matches('`').to_owned());
    names.filter(|name| !name.is_empty()).collect()
}

/// Labels of the series of a metric, without the bounds of buckets.
fn labels_of(scraped: &str, metric: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in scraped.lines() {
        let Some(rest) = line.strip_prefix(metric) else { continue };
        let rest = rest.strip_prefix("_bucket").unwrap_or(rest);
        let Some(inner) = rest.strip_prefix('{').and_then(|r| r.split_once('}')) else { continue };
        found.extend(
            inner.0.split("\",").filter_map(|pair| pair.split('=').next()).map(str::to_owned),
        );
    }
    found.remove("le");
    found
}

/// Whether `value` has the field of `steps`, where `*` is any name or element.
fn has(value: &Value, steps: &[&str]) -> bool {
    let Some((step, rest)) = steps.split_first() else { return true };
    match (value, *step) {
        (Value::Object(fields), "*") => fields.values().any(|value| has(value, rest)),
        (Value::Array(items), "*") => items.iter().any(|value| has(value, rest)),
        (Value::Object(fields), name) => fields.get(name).is_some_and(|value| has(value, rest)),
        (_, _) => false,
    }
}

/// An event in the source: its level and its text.
struct Event {
    file: String,
    level: &'static str,
    text: String,
}

/// The events of a file: the first text of each macro that logs. A macro that gets its text from
/// another one has none.
fn events(file: &str, text: &str) -> Vec<Event> {
    let blanked = code(text);
    let product = without_tests(file, &blanked);
    let mut found = Vec::new();
    for level in ["error", "warn", "info", "debug", "trace"] {
        for (at, call) in product.match_indices(&format!("{level}!(")) {
            if product[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let inner = &product[at + call.len()..];
            let (mut depth, mut end) = (1, 0);
            for (n, byte) in inner.bytes().enumerate() {
                depth += i32::from(byte == b'(') - i32::from(byte == b')');
                end = n;
                if depth == 0 {
                    break;
                }
            }
            let from = at + call.len();
            let Some(quote) = text[from..from + end].find('"') else { continue };
            let said = text[from + quote + 1..].split('"').next().unwrap_or_default();
            found.push(Event { file: file.to_owned(), level, text: said.to_owned() });
        }
    }
    found
}

#[test]
fn each_log_event_has_a_name_a_sentence_and_one_row() {
    let all: Vec<Event> = sources()
        .iter()
        .filter(|(path, _)| path.starts_with("src/"))
        .flat_map(|(path, text)| events(path, text))
        .collect();
    assert!(all.len() > 50, "it sees events: {}", all.len());
    let mut named: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    let mut nameless = BTreeSet::new();
    for Event { file, level, text } in &all {
        match text.split_once(": ") {
            Some((name, sentence)) if is_event(name) && !sentence.is_empty() => {
                named.entry(name.to_owned()).or_default().insert(level);
            }
            Some(_) | None => {
                nameless.insert((file.as_str(), text.as_str()));
            }
        }
    }
    assert!(nameless.is_empty(), "an event is `name: sentence`: {nameless:?}");
    let names = named.keys().cloned().collect();
    compare("log event", &names, |row| row.page == "events.md");
    for row in rows().into_iter().filter(|row| row.page == "events.md") {
        let levels = &named[&row.name];
        let is_of_many = levels.len() > 1;
        assert!(is_of_many || levels.contains(&*row.cells[1]), "{}: {levels:?}", row.name);
    }
}
