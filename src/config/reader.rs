//! A typed view of dotted keys. It notes every problem and goes on with the default.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::Provenance;
use super::hint;
use super::nearest::nearest;
use super::problem::{Problem, Source, shown_at};
use super::raw::{self, Field, Node, Value};
use super::rule::{Bounds, Key, Rule, TextRule};
use super::words::{self, ADDRESS_RULE, PATH_RULE, is_address, is_path};

/// Problems, warnings, sources and rules that a reader collected.
#[derive(Debug, Default)]
pub struct Report {
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
    pub provenance: Vec<Provenance>,
    /// Keys that were read, without the numbers of tables: `route.timeout_ms`.
    pub keys: BTreeMap<String, Key>,
}

impl Report {
    pub fn absorb(&mut self, other: Report) {
        self.problems.extend(other.problems);
        self.warnings.extend(other.warnings);
        self.provenance.extend(other.provenance);
        self.keys.extend(other.keys);
    }
}

/// A key that a source set.
#[derive(Clone, Debug)]
pub struct Entry {
    pub key: String,
    pub value: Value,
    pub source: Source,
    /// The text as given, in sources where quotes are optional (environment, flags).
    pub verbatim: Option<String>,
}

/// Entries made of a file's fields.
pub fn entries(fields: Vec<Field>, file: &Source) -> Vec<Entry> {
    let at = |line| match file {
        Source::File(name, _) => Source::File(name.clone(), line),
        Source::Env(_) | Source::Flag(_) | Source::Found(_) | Source::Default => file.clone(),
    };
    let entry =
        |f: Field| Entry { source: at(f.line), key: f.key, value: f.node.value, verbatim: None };
    raw::flatten(fields).into_iter().map(entry).collect()
}

/// Integer types of settings.
pub trait Number: Copy + TryFrom<u64> + TryInto<u64> {}
impl<T: Copy + TryFrom<u64> + TryInto<u64>> Number for T {}

/// Reads keys one by one; keys that were set and not read are problems in the end.
pub struct Reader {
    /// Prefix of each key in problems, e.g. `route[2].`.
    prefix: String,
    /// Source that problems about missing keys name: the table's, or none.
    table_source: Source,
    set: BTreeMap<String, (usize, Entry)>,
    known: Vec<&'static str>,
    /// Keys whose values are never shown.
    secrets: Vec<&'static str>,
    pub report: Report,
}

impl Reader {
    /// A reader of `layers`. Of two values of one key the one in the later layer counts.
    pub fn new(layers: Vec<Vec<Entry>>) -> Self {
        let mut set = BTreeMap::new();
        for (layer, entries) in layers.into_iter().enumerate() {
            for entry in entries {
                set.insert(entry.key.clone(), (layer, entry));
            }
        }
        let (prefix, known, secrets) = (String::new(), Vec::new(), Vec::new());
        Self {
            prefix,
            table_source: Source::Default,
            set,
            known,
            secrets,
            report: Report::default(),
        }
    }

    /// A reader of the table `node` in a list; `None`, and a problem, if it is no table.
    pub fn of_table(
        prefix: String,
        node: Node,
        list: &Source,
        report: &mut Report,
    ) -> Option<Self> {
        let table_source = match list {
            Source::File(name, _) => Source::File(name.clone(), node.line),
            Source::Env(_) | Source::Flag(_) | Source::Found(_) | Source::Default => list.clone(),
        };
        let Value::Table(fields) = node.value else {
            let (value, key) = (shown_at(&prefix, node.value.to_string()), prefix);
            let rule = "must be a table, { key = value, ... }".into();
            report.problems.push(Problem { source: table_source, key, value, rule });
            return None;
        };
        let mut reader = Self::new(vec![entries(fields, &table_source)]);
        reader.prefix = format!("{prefix}.");
        reader.table_source = table_source;
        Some(reader)
    }

    /// Keys that were read.
    pub fn known(&self) -> &[&'static str] {
        &self.known
    }

    /// The source of `key`; of the whole reader if `key` was not set.
    pub fn source(&self, key: &str) -> Source {
        self.set.get(key).map_or(self.table_source.clone(), |(_, entry)| entry.source.clone())
    }

    /// Whether a source set `key`.
    pub fn is_set(&self, key: &str) -> bool {
        self.set.contains_key(key)
    }

    /// Notes a problem with the value of `key`, or with its absence.
    pub fn problem(&mut self, key: &str, rule: impl Into<String>) {
        let problem = self.about(key, rule.into());
        self.report.problems.push(problem);
    }

    /// Notes a warning about `key`: like [`Self::problem`], but it does not stop a start.
    pub fn warning(&mut self, key: &str, rule: impl Into<String>) {
        let problem = self.about(key, rule.into());
        self.report.warnings.push(problem);
    }

    /// Notes a problem between two keys unless `holds`. It names the key that the stronger layer
    /// set, because that one was changed.
    pub fn relation(&mut self, holds: bool, keys: [&str; 2], rule: impl Into<String>) {
        if holds {
            return;
        }
        let layer = |key| self.set.get(key).map(|&(layer, _)| layer);
        let at = if layer(keys[1]) > layer(keys[0]) { keys[1] } else { keys[0] };
        self.problem(at, rule);
    }

    fn about(&self, key: &str, rule: String) -> Problem {
        let at = format!("{}{key}", self.prefix);
        let shown = |(_, entry): &(_, Entry)| shown_at(&at, self.shown(entry));
        let value = self.set.get(key).map_or(String::new(), shown);
        Problem { source: self.source(key), key: at, value, rule }
    }

    /// Notes that `key` is known, with its rule.
    fn know(&mut self, key: &'static str, rule: &Rule, default: Option<String>) {
        self.known.push(key);
        let name = without_indices(&self.prefix) + key;
        // Each further table of a list has the same keys.
        self.report.keys.entry(name).or_insert_with(|| Key { rule: rule.clone(), default });
    }

    /// The entry of `key`, which counts as known from now on.
    fn entry(&mut self, key: &'static str, rule: &Rule, default: &dyn ToString) -> Option<Entry> {
        self.know(key, rule, Some(default.to_string()));
        self.read(key, default)
    }

    /// The entry of a key that is known; without one, `default` is noted as its value.
    fn read(&mut self, key: &'static str, default: &dyn ToString) -> Option<Entry> {
        let entry = self.set.get(key).map(|(_, entry)| entry.clone());
        let (value, source) = match &entry {
            Some(entry) => (self.shown(entry), entry.source.clone()),
            None => (default.to_string(), Source::Default),
        };
        self.report.provenance.push((format!("{}{key}", self.prefix), value, source));
        entry
    }

    /// Reads a whole number.
    pub fn number<T: Number>(&mut self, key: &'static str, default: T, bounds: Bounds) -> T {
        let shown = default.try_into().unwrap_or(u64::MAX);
        let rule = Rule::Number(bounds);
        let Some(entry) = self.entry(key, &rule, &shown) else { return default };
        as_number(&entry.value, bounds).unwrap_or_else(|| {
            self.no_number(key, &entry, &rule);
            default
        })
    }

    /// Reads a whole number; `None` = "auto".
    pub fn number_or_auto<T: Number>(&mut self, key: &'static str, bounds: Bounds) -> Option<T> {
        let rule = Rule::NumberOrAuto(bounds);
        let entry = self.entry(key, &rule, &r#""auto""#)?;
        if matches!(&entry.value, Value::Text(s) if s == "auto") {
            return None;
        }
        let n = as_number(&entry.value, bounds);
        if n.is_none() {
            self.no_number(key, &entry, &rule);
        }
        n
    }

    /// Notes that the value of `key` is no number that `rule` admits.
    fn no_number(&mut self, key: &str, entry: &Entry, rule: &Rule) {
        let unit = rule.unit(key);
        self.problem(key, format!("{rule}{}", hint::number(&entry.value, unit)));
    }

    /// Reads a list of `N` whole numbers.
    pub fn numbers<T: Number, const N: usize>(
        &mut self,
        key: &'static str,
        default: [T; N],
        bounds: Bounds,
    ) -> [T; N] {
        let shown = default.map(|n| n.try_into().unwrap_or(u64::MAX));
        let rule = Rule::Numbers(N, bounds);
        let entry = self.entry(key, &rule, &format!("{shown:?}"));
        entry.and_then(|entry| self.as_numbers(&entry, &rule, bounds)).unwrap_or(default)
    }

    /// Reads a list of `N` whole numbers without a default; `None`, and a problem, if there is no
    /// valid one. `form` shows what to write.
    pub fn required_numbers<T: Number, const N: usize>(
        &mut self,
        key: &'static str,
        bounds: Bounds,
        form: &str,
    ) -> Option<[T; N]> {
        let rule = Rule::Numbers(N, bounds);
        self.know(key, &rule, None);
        if !self.is_set(key) {
            self.problem(key, format!("is missing; write {form}"));
            return None;
        }
        let entry = self.read(key, &"")?;
        self.as_numbers(&entry, &rule, bounds)
    }

    fn as_numbers<T: Number, const N: usize>(
        &mut self,
        entry: &Entry,
        rule: &Rule,
        bounds: Bounds,
    ) -> Option<[T; N]> {
        let list = if let Value::List(list) = &entry.value {
            list.iter().map(|n| as_number(&n.value, bounds)).collect()
        } else {
            None
        };
        let numbers = list.and_then(|list: Vec<T>| <[T; N]>::try_from(list).ok());
        if numbers.is_none() {
            self.problem(&entry.key, rule.to_string());
        }
        numbers
    }

    /// Reads `true` or `false`.
    pub fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        match self.entry(key, &Rule::Boolean, &default).map(|e| e.value) {
            None => default,
            Some(Value::Bool(b)) => b,
            Some(other) => {
                self.problem(key, format!("{}{}", Rule::Boolean, hint::boolean(&other)));
                default
            }
        }
    }

    /// The string in `entry`, if it is one that `rule` and `valid` admit; else a problem.
    fn string(
        &mut self,
        key: &str,
        entry: Entry,
        valid: impl FnOnce(&str) -> bool,
        rule: TextRule,
    ) -> Option<String> {
        let ((Value::Text(s), _) | (_, Some(s))) = (entry.value, entry.verbatim) else {
            self.problem(key, format!("must be a string, in quotes, and {rule}"));
            return None;
        };
        if rule.admits(&s, valid) {
            return Some(s);
        }
        self.problem(key, rule.to_string());
        None
    }

    /// Reads a string that `valid` admits; `rule` describes those.
    pub fn text(
        &mut self,
        key: &'static str,
        default: &str,
        valid: impl FnOnce(&str) -> bool,
        rule: TextRule,
    ) -> String {
        let entry = self.entry(key, &Rule::Text(rule), &format!("{default:?}"));
        let text = entry.and_then(|entry| self.string(key, entry, valid, rule));
        text.unwrap_or_else(|| default.to_owned())
    }

    /// Reads a string that is never shown: neither in problems nor in [`Provenance`]. `None` = not
    /// set, or empty.
    pub fn secret(
        &mut self,
        key: &'static str,
        valid: impl FnOnce(&str) -> bool,
        rule: TextRule,
    ) -> Option<String> {
        self.secrets.push(key);
        Some(self.text(key, "", valid, rule)).filter(|text| !text.is_empty())
    }

    /// The value of an entry as it may be shown: a secret is redacted, and nothing is shown of a
    /// list of tables, whose keys are not known here.
    fn shown(&self, entry: &Entry) -> String {
        if entry.value.is_tables() {
            return String::new();
        }
        let empty = matches!(&entry.value, Value::Text(s) if s.is_empty());
        match self.secrets.contains(&entry.key.as_str()) && !empty {
            true => "\"<redacted>\"".into(),
            false => entry.value.to_string(),
        }
    }

    /// Reads a string without a default; `None`, and a problem, if there is no valid one.
    pub fn required_text(
        &mut self,
        key: &'static str,
        valid: impl FnOnce(&str) -> bool,
        rule: TextRule,
    ) -> Option<String> {
        self.know(key, &Rule::Text(rule), None);
        if !self.is_set(key) {
            self.problem(key, format!("is missing; {rule}"));
            return None;
        }
        let entry = self.read(key, &"")?;
        self.string(key, entry, valid, rule)
    }

    /// Reads one word of a closed list.
    pub fn word<T: Copy + PartialEq>(
        &mut self,
        key: &'static str,
        default: T,
        words: &[(&'static str, T)],
    ) -> T {
        let shown = words.iter().find(|(_, t)| *t == default).map_or("", |(word, _)| word);
        let rule = Rule::Word(words.iter().map(|(word, _)| *word).collect());
        let entry = self.entry(key, &rule, &format!("{shown:?}"));
        entry.and_then(|entry| self.one_of(key, &entry, words, &rule)).unwrap_or(default)
    }

    /// Reads one word of a closed list, without a default; `None`, and a problem, if it is not
    /// there.
    pub fn required_word<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&'static str, T)],
    ) -> Option<T> {
        let rule = Rule::Word(words.iter().map(|(word, _)| *word).collect());
        self.know(key, &rule, None);
        if !self.is_set(key) {
            self.problem(key, format!("is missing; {rule}"));
            return None;
        }
        let entry = self.read(key, &"")?;
        self.one_of(key, &entry, words, &rule)
    }

    fn one_of<T: Copy>(
        &mut self,
        key: &str,
        entry: &Entry,
        words: &[(&'static str, T)],
        rule: &Rule,
    ) -> Option<T> {
        let found = words.iter().find(|(w, _)| matches!(&entry.value, Value::Text(s) if s == w));
        if found.is_none() {
            self.problem(key, rule.to_string());
        }
        found.map(|(_, value)| *value)
    }

    /// Reads an IP address and a port.
    pub fn address(&mut self, key: &'static str, default: SocketAddr) -> SocketAddr {
        let text = self.text(key, &default.to_string(), is_address, ADDRESS_RULE);
        text.parse().unwrap_or(default)
    }

    /// Reads a duration in milliseconds.
    pub fn milliseconds(
        &mut self,
        key: &'static str,
        default: Duration,
        bounds: Bounds,
    ) -> Duration {
        Duration::from_millis(self.number(key, default.as_millis() as u64, bounds))
    }

    /// Reads a duration in seconds.
    pub fn seconds(&mut self, key: &'static str, default: Duration, bounds: Bounds) -> Duration {
        Duration::from_secs(self.number(key, default.as_secs(), bounds))
    }

    /// Reads the path of a file; empty = none.
    pub fn file(&mut self, key: &'static str) -> Option<PathBuf> {
        let text = self.text(key, "", is_path, PATH_RULE.or_empty());
        (!text.is_empty()).then(|| text.into())
    }

    /// Reads the path of a file that must be named.
    pub fn required_file(&mut self, key: &'static str) -> Option<PathBuf> {
        let valid = |s: &str| !s.is_empty() && is_path(s);
        self.required_text(key, valid, PATH_RULE).map(PathBuf::from)
    }

    /// Notes a problem if only one of two keys is set that make no sense without each other.
    pub fn both_or_neither(&mut self, keys: [&str; 2], set: [bool; 2]) {
        let [first, second] = keys;
        self.relation(
            set[0] == set[1],
            keys,
            format!("{first} and {second} go together: set both"),
        );
    }

    /// Reads a list of strings that `valid` admits.
    pub fn texts(
        &mut self,
        key: &'static str,
        default: &[String],
        valid: impl Fn(&str) -> bool,
        rule: TextRule,
    ) -> Vec<String> {
        let read = |s: &str| match rule.admits(s, &valid) {
            true => Ok(s.to_owned()),
            false => Err(rule.to_string()),
        };
        let texts = self.texts_as(key, &format!("{default:?}"), read, rule);
        texts.unwrap_or_else(|| default.to_vec())
    }

    /// Like [`Self::texts`], with what `read` makes of each string, or the rule that it breaks.
    /// `None` = nobody set the key, or not to a list; `shown` is its default.
    pub fn texts_as<T>(
        &mut self,
        key: &'static str,
        shown: &str,
        read: impl Fn(&str) -> Result<T, String>,
        rule: TextRule,
    ) -> Option<Vec<T>> {
        let list_rule = Rule::Texts(rule);
        let entry = self.entry(key, &list_rule, &shown)?;
        let Value::List(list) = &entry.value else {
            self.problem(key, list_rule.to_string());
            return None;
        };
        let mut out = Vec::new();
        for (i, node) in list.iter().enumerate() {
            let text = if let Value::Text(s) = &node.value { Some(s) } else { None };
            match text.map_or_else(|| Err(rule.to_string()), |s| read(s)) {
                Ok(item) => out.push(item),
                Err(why) => self.problem(key, format!("item {i} = {}: {why}", node.value)),
            }
        }
        Some(out)
    }

    /// Whether a source set the table `key`, or a key in it.
    pub fn table(&mut self, key: &'static str) -> bool {
        self.know(key, &Rule::Table, Some("none".into()));
        let is_other = |(_, e): &(usize, Entry)| !matches!(e.value, Value::Table(_));
        if self.set.get(key).is_some_and(is_other) {
            self.problem(key, Rule::Table.to_string());
            return false;
        }
        let inside = format!("{key}.");
        self.is_set(key) || self.set.keys().any(|set| set.starts_with(&inside))
    }

    /// The tables of a list and its source; none if nobody set the key. The caller refuses more
    /// than `max`.
    pub fn list(&mut self, key: &'static str, max: usize) -> (Vec<Node>, Source) {
        self.know(key, &Rule::Tables(max), Some("[]".into()));
        let source = self.source(key);
        match self.set.get(key).map(|(_, entry)| entry.value.clone()) {
            None => (Vec::new(), source),
            Some(Value::List(list)) => (list, source),
            Some(_) => {
                self.problem(key, format!("must be a list of tables: [[{key}]]"));
                (Vec::new(), source)
            }
        }
    }

    /// Notes a problem for each key that was set and not read. `elsewhere` are keys of another
    /// file, with its name.
    pub fn unknown(&mut self, elsewhere: &[&'static str], other_file: &str) {
        let mut found = Vec::new();
        for (key, (_, entry)) in &self.set {
            let section = format!("{key}.");
            let is_section = self.known.iter().any(|k| k.starts_with(&section));
            let empty = matches!(&entry.value, Value::Table(fields) if fields.is_empty());
            if self.known.contains(&key.as_str()) || (is_section && empty) {
                continue;
            }
            let rule = if is_section {
                format!("is a section, not a value; write [{key}] and its keys below")
            } else {
                self.unknown_rule(entry, elsewhere, other_file)
            };
            found.push((key.clone(), rule));
        }
        for (key, rule) in found {
            self.problem(&key, rule);
        }
    }

    fn unknown_rule(&self, entry: &Entry, elsewhere: &[&str], other_file: &str) -> String {
        let key = entry.key.as_str();
        let is_env = matches!(entry.source, Source::Env(_));
        if elsewhere.contains(&key) && !is_env {
            return format!("unknown key here; it belongs in {other_file}");
        }
        // A table that is not a list has keys of its own.
        let is_table = |word: &str| {
            let inside = format!("{word}.");
            self.known.iter().any(|known| known.starts_with(&inside))
        };
        if let Some((list, _)) = key.split_once('.')
            && self.known.contains(&list)
            && !is_table(list)
        {
            return format!("{list} is a list of tables; write [[{list}]], with two brackets");
        }
        if entry.value.is_tables()
            && let Some(near) = nearest(key, self.known.iter().copied())
        {
            return format!("unknown list; did you mean [[{near}]]?");
        }
        if !self.prefix.is_empty() && TOP_KEYS.contains(&key) {
            return "is a key of the file as a whole; write it above the first [section]".into();
        }
        if matches!(&entry.value, Value::Table(_)) {
            let sections = self.known.iter().filter_map(|k| Some(k.split_once('.')?.0));
            return match nearest(key, sections) {
                Some(near) => format!("unknown section; did you mean [{near}]?"),
                None => "unknown section; remove it".into(),
            };
        }
        if let Some((_, new)) = RENAMED.iter().find(|(old, _)| *old == key) {
            let new = if is_env { words::variable(new) } else { (*new).to_owned() };
            return format!("this key has another name now: set {new} instead");
        }
        let all_keys = format!("All keys: {} guide configuration", words::program());
        let all = self.known.iter().chain(elsewhere.iter().filter(|_| is_env)).copied();
        match nearest(key, all) {
            Some(near) if is_env => {
                format!("unknown variable; did you mean {}? {all_keys}", words::variable(near))
            }
            Some(near) => format!("unknown key; did you mean {near}? {all_keys}"),
            None if is_env => {
                format!("unknown variable: names are made of section and key; unset it. {all_keys}")
            }
            None => format!("unknown key; remove it. {all_keys}"),
        }
    }
}

/// Keys of `gateway.toml` that are in no section: in TOML such a key stands above all sections.
const TOP_KEYS: [&str; 4] = ["listen", "path", "node", "origins"];

/// Keys of earlier versions, and what they are called now.
const RENAMED: [(&str, &str); 1] = [("limits.user_connections_max", "session.per_user_max")];

/// The prefix of keys in a table, without the table's place in its list: `service.instances.`.
fn without_indices(prefix: &str) -> String {
    prefix
        .split('.')
        .map(|part| part.split('[').next().unwrap_or(part))
        .collect::<Vec<_>>()
        .join(".")
}

fn as_number<T: Number>(value: &Value, bounds: Bounds) -> Option<T> {
    let Value::Integer(i) = value else { return None };
    let n = u64::try_from(*i).ok().filter(|&n| bounds.admits(n))?;
    T::try_from(n).ok()
}
