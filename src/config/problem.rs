//! Problems of a configuration, one line each: place, key and value, the rule, and the way out.

use std::fmt;
use std::sync::Arc;

/// The origin of a value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Source {
    /// A line of a file (1-based; 0 = the file as a whole).
    File(Arc<str>, usize),
    /// The environment variable of this name.
    Env(Arc<str>),
    /// The command-line flag of this name.
    Flag(&'static str),
    /// A place in a discovery source, e.g. a key in etcd.
    Found(Arc<str>),
    /// No source set the value.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File(name, 0) => f.write_str(name),
            Source::File(name, line) => write!(f, "{name}:{line}"),
            Source::Env(name) => write!(f, "environment {name}"),
            Source::Flag(name) => write!(f, "flag {name}"),
            Source::Found(at) => f.write_str(at),
            Source::Default => f.write_str("default"),
        }
    }
}

/// A problem with one value, or with a file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Problem {
    /// Place of the problem.
    pub(crate) source: Source,
    /// The key, dotted; empty if the problem is about a whole file.
    pub(crate) key: String,
    /// The value as TOML; empty if there is none.
    pub(crate) value: String,
    /// The rule that the value breaks, and the way out.
    pub(crate) rule: String,
}

impl Problem {
    /// A problem with `source` as a whole.
    pub(crate) fn whole(source: Source, rule: impl Into<String>) -> Self {
        Self { source, key: String::new(), value: String::new(), rule: rule.into() }
    }
}

/// Longest value shown in a problem; the line number leads to the rest.
const SHOWN_CHARS_MAX: usize = 80;

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.source)?;
        match (self.key.is_empty(), self.value.is_empty()) {
            (true, _) => {}
            (false, true) => write!(f, "{}: ", self.key)?,
            (false, false) => write!(f, "{} = {}: ", self.key, shortened(&self.value))?,
        }
        f.write_str(&self.rule)
    }
}

/// `text` on one line and not too long for it.
fn shortened(text: &str) -> String {
    let mut out: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if out.len() < text.len() {
        out.push('…');
    }
    out
}

/// All problems of a configuration, in the order of the files and lines. Never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// Both values, or the problems of both.
    pub(crate) fn join<A, B>(a: Result<A, Self>, b: Result<B, Self>) -> Result<(A, B), Self> {
        match (a, b) {
            (Ok(a), Ok(b)) => Ok((a, b)),
            (Err(Self(mut a)), Err(Self(b))) => {
                a.extend(b);
                Err(Self(a))
            }
            (Err(problems), Ok(_)) | (Ok(_), Err(problems)) => Err(problems),
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The text of a value at `path` as far as it may be shown: in tables of keys and tokens it may be
/// a secret, in its place or, by a mistake, in another.
pub(super) fn shown_at(path: &str, value: String) -> String {
    const PLAIN: [&str; 6] =
        ["id", "name", "algorithm", "secret_file", "public_key_file", "token_file"];
    let last = path.rsplit('.').next().unwrap_or(path);
    let is_of_secrets = path.contains("auth_key") || path.contains("registry_token");
    if is_of_secrets && !PLAIN.contains(&last) { String::new() } else { value }
}
