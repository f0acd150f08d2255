//! Rules of single keys: what a value may be, in which unit it counts, and the words for both.
//! Problems, the comments in the files and the guide's page of keys all take them from here.

use std::fmt;

/// Milliseconds of a minute, an hour and a day, for the bounds of times.
pub const MINUTE_MS: u64 = 60_000;
#[allow(missing_docs)]
pub const HOUR_MS: u64 = 60 * MINUTE_MS;
#[allow(missing_docs)]
pub const DAY_MS: u64 = 24 * HOUR_MS;
/// Largest table of a shard: one entry for each slot that a key can number.
pub(super) const SLOTS_MAX: u64 = 1 << crate::ids::SLOT_BITS;
/// Largest byte cap of a shard: 64 GiB, as much as a large host has for each of a few cores.
pub(super) const SHARD_BYTES_MAX: u64 = 64 << 30;

/// The whole numbers that a key takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    zero: Option<&'static str>,
    min: u64,
    max: u64,
}

impl Bounds {
    /// Numbers from `min` to `max`.
    pub const fn new(min: u64, max: u64) -> Self {
        Self { zero: None, min, max }
    }

    /// 0 with the meaning `meaning`, or a number from `min` to `max`.
    pub const fn or_zero(meaning: &'static str, min: u64, max: u64) -> Self {
        Self { zero: Some(meaning), min, max }
    }

    /// Whether a key with these bounds takes `n`.
    pub fn admits(self, n: u64) -> bool {
        (self.min..=self.max).contains(&n) || (n == 0 && self.zero.is_some())
    }

    fn range(self, unit: &str) -> String {
        let Self { zero, min, max } = self;
        let zero = zero.map_or(String::new(), |meaning| format!("0 = {meaning}, or "));
        let large = in_large_units(max, unit).map_or(String::new(), |text| format!(" ({text})"));
        format!("{zero}{min} to {max}{large}")
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { zero, min, max } = self;
        write!(f, "must be a whole number from {min} to {max}")?;
        zero.map_or(Ok(()), |meaning| write!(f, ", or 0 for {meaning}"))
    }
}

/// A limit of many digits in a larger unit, if it is a whole number of it.
fn in_large_units(n: u64, unit: &str) -> Option<String> {
    let units: &[(u64, &str)] = match unit {
        "bytes" => &[(1 << 30, "GiB"), (1 << 20, "MiB")],
        "ms" => &[(DAY_MS, "d"), (HOUR_MS, "h"), (MINUTE_MS, "min")],
        "s" => &[(DAY_MS / 1000, "d"), (HOUR_MS / 1000, "h")],
        _ => &[],
    };
    let (size, name) = units.iter().find(|(size, _)| n >= *size && n.is_multiple_of(*size))?;
    Some(format!("{} {name}", n / size))
}

/// The strings that a key takes. `Display` is the rule as problems tell it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TextRule {
    what: &'static str,
    hint: &'static str,
    may_be_empty: bool,
}

impl TextRule {
    /// Strings that `what` describes; problems add `hint` to it, e.g. an example.
    pub const fn new(what: &'static str, hint: &'static str) -> Self {
        Self { what, hint, may_be_empty: false }
    }

    /// The same strings, or the empty one.
    pub const fn or_empty(self) -> Self {
        Self { may_be_empty: true, ..self }
    }

    /// Whether a key with this rule takes `text`, given whether it is as described.
    pub fn admits(self, text: &str, is_valid: impl FnOnce(&str) -> bool) -> bool {
        (self.may_be_empty && text.is_empty()) || is_valid(text)
    }

    fn range(self) -> String {
        let empty = if self.may_be_empty { "empty, or " } else { "" };
        format!("{empty}{}", self.what)
    }
}

impl fmt::Display for TextRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "must be {}{}", self.range(), self.hint)
    }
}

/// What the value of a key may be. `Display` is the rule as problems tell it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rule {
    /// A whole number.
    Number(Bounds),
    /// A whole number or "auto".
    NumberOrAuto(Bounds),
    /// A list of so many whole numbers.
    Numbers(usize, Bounds),
    /// `true` or `false`.
    Boolean,
    /// One word of a closed list.
    Word(Vec<&'static str>),
    /// A string.
    Text(TextRule),
    /// A list of strings.
    Texts(TextRule),
    /// A list of at most so many tables.
    Tables(usize),
    /// A table, which may be empty.
    Table,
}

/// Ends of the names of keys and the unit of their numbers: the first one that fits.
const UNITS: [(&str, &str); 10] = [
    ("connects_per_s", "connections/s"),
    ("messages_per_s", "messages/s"),
    ("pushes_per_s", "pushes/s"),
    ("deliveries_per_s", "deliveries/s"),
    ("frames_per_s", "frames/s"),
    ("bytes_per_s", "bytes/s"),
    ("ms", "ms"),
    ("us", "us"),
    ("bytes", "bytes"),
    ("percent", "percent"),
];

/// Unit of a key whose number is a count, or which is no number.
const NO_UNIT: &str = "none";

impl Rule {
    /// Unit of the numbers of `key`: it is in the key's name, before `_max` if that is the end.
    pub fn unit(&self, key: &str) -> &'static str {
        let numbers = matches!(self, Self::Number(_) | Self::NumberOrAuto(_) | Self::Numbers(_, _));
        if !numbers {
            return NO_UNIT;
        }
        let name = key.rsplit('.').next().unwrap_or(key);
        let name = name.strip_suffix("_max").unwrap_or(name);
        let ends = |end: &str| {
            let rest = name.strip_suffix(end);
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('_'))
        };
        let found = UNITS.iter().find(|(end, _)| ends(end)).map(|(_, unit)| *unit);
        found.unwrap_or(if ends("s") { "s" } else { NO_UNIT })
    }

    /// The values that `key` takes, as the files and the guide tell them.
    pub fn range(&self, key: &str) -> String {
        let unit = self.unit(key);
        match self {
            Self::Number(bounds) => bounds.range(unit),
            Self::NumberOrAuto(bounds) => format!("\"auto\", or {}", bounds.range(unit)),
            Self::Numbers(count, bounds) => format!("{count} numbers, each {}", bounds.range(unit)),
            Self::Boolean => "true or false".into(),
            Self::Word(words) => either(words),
            Self::Text(rule) => capitalized(&rule.range()),
            Self::Texts(rule) => format!("A list, each {}", rule.range()),
            Self::Tables(max) => format!("A list of at most {max} tables"),
            Self::Table => "A table, which may be empty".into(),
        }
    }
}

/// `text` as the beginning of a sentence.
fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or(String::new(), |first| first.to_ascii_uppercase().to_string() + chars.as_str())
}

/// `"a", "b" or "c"`.
fn either(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        Some(_) | None => quoted.concat(),
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(bounds) => bounds.fmt(f),
            Self::NumberOrAuto(bounds) => write!(f, "{bounds}, or \"auto\""),
            Self::Numbers(count, bounds) => {
                write!(f, "must be a list of {count} numbers; each {bounds}")
            }
            Self::Boolean => f.write_str("must be true or false"),
            Self::Word(words) => {
                let list: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
                write!(f, "must be one of {}", list.join(", "))
            }
            Self::Text(rule) => rule.fmt(f),
            Self::Texts(rule) => write!(f, "must be a list of strings; each {rule}"),
            Self::Tables(max) => write!(f, "must be a list of at most {max} tables"),
            Self::Table => {
                f.write_str("must be a table: { key = value, ... }, or {} for all defaults")
            }
        }
    }
}

/// A key that the program reads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Key {
    /// The values that it takes.
    pub rule: Rule,
    /// Its value as TOML where no source sets it; `None` = it must be set.
    pub default: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_of_a_number_is_in_its_name() {
        let number = Rule::Number(Bounds::new(0, 1));
        for (key, unit) in [
            ("conn.heartbeat_ms", "ms"),
            ("ejection.ms", "ms"),
            ("ejection.failures_ms", "ms"),
            ("ejection.ms_max", "ms"),
            ("retry.delay_max_ms", "ms"),
            ("shard.spin_us", "us"),
            ("auth.jwks_refresh_s", "s"),
            ("conn.message_bytes_max", "bytes"),
            ("conn.send_buffer_bytes", "bytes"),
            ("conn.notsent_bytes", "bytes"),
            ("ejection.percent_max", "percent"),
            ("queue.throttle_on_percent", "percent"),
            ("conn.frames_per_s_max", "frames/s"),
            ("limits.user_messages_per_s", "messages/s"),
            ("limits.address_connects_per_s", "connections/s"),
            ("tenant.quota.bytes_per_s", "bytes/s"),
            ("queue.items_max", "none"),
            ("ejection.losses", "none"),
            ("routing.ring_points", "none"),
        ] {
            assert_eq!(number.unit(key), unit, "{key}");
        }
        assert_eq!(Rule::Numbers(4, Bounds::new(0, 1)).unit("queue.class_delay_ms"), "ms");
        assert_eq!(Rule::Boolean.unit("a.b_ms"), "none", "no number");
    }

    #[test]
    fn ranges_name_every_value_that_is_taken() {
        let range = |rule: Rule, key| rule.range(key);
        let never = Bounds::or_zero("never", 100, 10 * MINUTE_MS);
        assert_eq!(range(Rule::Number(never), "a_ms"), "0 = never, or 100 to 600000 (10 min)");
        assert_eq!(range(Rule::Number(Bounds::new(1, 1 << 20)), "a_bytes"), "1 to 1048576 (1 MiB)");
        assert_eq!(range(Rule::Number(Bounds::new(1, 100)), "a_ms"), "1 to 100");
        assert_eq!(range(Rule::NumberOrAuto(Bounds::new(1, 9)), "a"), "\"auto\", or 1 to 9");
        assert_eq!(range(Rule::Numbers(2, Bounds::new(1, 9)), "a"), "2 numbers, each 1 to 9");
        assert_eq!(range(Rule::Word(vec!["a", "b", "c"]), "a"), "\"a\", \"b\" or \"c\"");
        let file = TextRule::new("the path of a file", ", e.g. a.pem");
        assert_eq!(range(Rule::Text(file.or_empty()), "a"), "Empty, or the path of a file");
        assert_eq!(range(Rule::Texts(file), "a"), "A list, each the path of a file");
        assert_eq!(file.or_empty().to_string(), "must be empty, or the path of a file, e.g. a.pem");
        assert!(file.or_empty().admits("", |_| false) && !file.admits("", |_| false));
        assert!(never.admits(0) && never.admits(100) && !never.admits(99));
    }
}
