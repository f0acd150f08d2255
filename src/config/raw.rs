//! TOML text -> a tree of plain values with their lines, and from there to dotted keys.

use std::fmt;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// A value and the line it starts on (1-based).
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    pub value: Value,
    pub line: usize,
}

/// A TOML value, owned.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    Text(String),
    /// A value beyond i128 is its nearest end, which no rule admits.
    Integer(i128),
    Float(String),
    Bool(bool),
    Date(String),
    List(Vec<Node>),
    /// In the order of the text.
    Table(Vec<Field>),
}

impl Value {
    /// Whether it is a list of tables, or begins like one.
    pub fn is_tables(&self) -> bool {
        let Self::List(list) = self else { return false };
        matches!(list.first(), Some(Node { value: Value::Table(_), .. }))
    }
}

/// A key in a table.
#[derive(Clone, PartialEq, Debug)]
pub struct Field {
    pub key: String,
    /// Line of the key.
    pub line: usize,
    pub node: Node,
}

/// A syntax error in TOML.
#[derive(Debug)]
pub struct SyntaxError {
    pub line: usize,
    pub message: String,
}

/// Starts of the lines of a text.
struct Lines(Vec<usize>);

impl Lines {
    fn new(text: &str) -> Self {
        let after = text.bytes().enumerate().filter(|&(_, b)| b == b'\n').map(|(i, _)| i + 1);
        Self(std::iter::once(0).chain(after).collect())
    }

    /// The 1-based line of byte `at`.
    fn at(&self, at: usize) -> usize {
        self.0.partition_point(|&start| start <= at)
    }
}

/// The fields of a document.
pub fn document(text: &str) -> Result<Vec<Field>, SyntaxError> {
    let lines = Lines::new(text);
    match DeTable::parse(text) {
        Ok(table) => Ok(fields(table.into_inner(), &lines)),
        Err(e) => {
            let line = lines.at(e.span().map_or(0, |span| span.start));
            let message = e.message().lines().collect::<Vec<_>>().join(", ");
            Err(SyntaxError { line, message })
        }
    }
}

/// A single value, as in an environment variable. A text that is no TOML value is a string.
pub fn value(text: &str) -> Value {
    match DeValue::parse(text) {
        Ok(value) => node(value, &Lines::new(text)).value,
        Err(_) => Value::Text(text.to_owned()),
    }
}

/// The tree of a JSON value. `null` is an empty string, which no rule admits.
pub fn from_json(json: serde_json::Value) -> Value {
    let node = |json| Node { value: from_json(json), line: 0 };
    match json {
        serde_json::Value::Null => Value::Text(String::new()),
        serde_json::Value::Bool(b) => Value::Bool(b),
        serde_json::Value::Number(n) => match (n.as_u64(), n.as_i64()) {
            (Some(n), _) => Value::Integer(n.into()),
            (None, Some(n)) => Value::Integer(n.into()),
            (None, None) => Value::Float(n.to_string()),
        },
        serde_json::Value::String(s) => Value::Text(s),
        serde_json::Value::Array(list) => Value::List(list.into_iter().map(node).collect()),
        serde_json::Value::Object(map) => {
            let field =
                |(key, json): (String, _)| Field { key: bare(&key), line: 0, node: node(json) };
            Value::Table(map.into_iter().map(field).collect())
        }
    }
}

fn fields(table: DeTable<'_>, lines: &Lines) -> Vec<Field> {
    let mut entries: Vec<_> = table.into_iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let field = |(key, value): (Spanned<DeString<'_>>, _)| {
        let line = lines.at(key.span().start);
        Field { key: bare(key.get_ref()), line, node: node(value, lines) }
    };
    entries.into_iter().map(field).collect()
}

fn node(spanned: Spanned<DeValue<'_>>, lines: &Lines) -> Node {
    let line = lines.at(spanned.span().start);
    let value = match spanned.into_inner() {
        DeValue::String(s) => Value::Text(s.into_owned()),
        DeValue::Integer(i) => {
            let least = if i.as_str().starts_with('-') { i128::MIN } else { i128::MAX };
            Value::Integer(i128::from_str_radix(i.as_str(), i.radix()).unwrap_or(least))
        }
        DeValue::Float(x) => Value::Float(x.as_str().to_owned()),
        DeValue::Boolean(b) => Value::Bool(b),
        DeValue::Datetime(d) => Value::Date(d.to_string()),
        DeValue::Array(list) => Value::List(list.into_iter().map(|v| node(v, lines)).collect()),
        DeValue::Table(table) => Value::Table(fields(table, lines)),
    };
    Node { value, line }
}

/// A key as TOML writes it: quoted if it must be, so that a dot in it is no section.
fn bare(key: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.chars().all(plain) { key.to_owned() } else { format!("{key:?}") }
}

/// Dotted keys with their values: sections are opened, lists stay whole. An empty section is kept,
/// so that a misspelt one is noticed.
pub fn flatten(fields: Vec<Field>) -> Vec<Field> {
    let mut out = Vec::new();
    let mut stack: Vec<Field> = fields.into_iter().rev().collect();
    while let Some(field) = stack.pop() {
        let Field { key, line, node } = field;
        if let Value::Table(inner) = node.value {
            if inner.is_empty() {
                out.push(Field { key, line, node: Node { value: Value::Table(inner), ..node } });
            } else {
                let dotted = |f: Field| Field { key: format!("{key}.{}", f.key), ..f };
                stack.extend(inner.into_iter().rev().map(dotted));
            }
        } else {
            out.push(Field { key, line, node });
        }
    }
    out
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(s) => write!(f, "{s:?}"),
            Value::Integer(i) => i.fmt(f),
            Value::Float(s) | Value::Date(s) => f.write_str(s),
            Value::Bool(b) => b.fmt(f),
            Value::List(list) => {
                f.write_str("[")?;
                for (i, node) in list.iter().enumerate() {
                    write!(f, "{}{}", if i > 0 { ", " } else { "" }, node.value)?;
                }
                f.write_str("]")
            }
            Value::Table(fields) if fields.is_empty() => f.write_str("{}"),
            Value::Table(fields) => {
                f.write_str("{ ")?;
                for (i, field) in fields.iter().enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    write!(f, "{comma}{} = {}", field.key, field.node.value)?;
                }
                f.write_str(" }")
            }
        }
    }
}
