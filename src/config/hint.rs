//! Ways out for values of the wrong form: what was probably meant, as it has to be written.

use super::raw::{SyntaxError, Value};

/// Suffixes of times, in microseconds.
const TIMES: [(&str, u64); 12] = [
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("sec", 1_000_000),
    ("seconds", 1_000_000),
    ("m", 60_000_000),
    ("min", 60_000_000),
    ("minutes", 60_000_000),
    ("h", 3_600_000_000),
    ("hours", 3_600_000_000),
    ("d", 86_400_000_000),
    ("days", 86_400_000_000),
];
/// Suffixes of sizes, in bytes.
const SIZES: [(&str, u64); 11] = [
    ("b", 1),
    ("bytes", 1),
    ("k", 1 << 10),
    ("kb", 1 << 10),
    ("kib", 1 << 10),
    ("m", 1 << 20),
    ("mb", 1 << 20),
    ("mib", 1 << 20),
    ("g", 1 << 30),
    ("gb", 1 << 30),
    ("gib", 1 << 30),
];

/// The way out of a value that is no number in `unit`, after its rule; empty = the rule says it.
pub fn number(value: &Value, unit: &str) -> String {
    match value {
        Value::Text(text) => match quoted(text, unit) {
            Some(n) if unit == "none" => format!("; write {n}, without quotes"),
            Some(n) => format!("; write {n}, without quotes: the number is in {unit}"),
            None => "; write a number, without quotes and unit".into(),
        },
        Value::Float(_) => "; write it without point and exponent".into(),
        Value::Integer(_) => String::new(),
        Value::Bool(_) | Value::Date(_) | Value::List(_) | Value::Table(_) => {
            "; write a number".into()
        }
    }
}

/// The number in `unit` that a text such as `30s` or `64 KiB` means.
fn quoted(text: &str, unit: &str) -> Option<u64> {
    let text = text.trim().to_lowercase();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let suffix = text[digits..].trim();
    let factor =
        |all: &[(&str, u64)]| all.iter().find(|(word, _)| *word == suffix).map(|(_, n)| *n);
    match unit {
        _ if suffix.is_empty() => Some(number),
        "us" | "ms" | "s" => {
            let own = TIMES.iter().find(|(word, _)| *word == unit)?.1;
            let us = number.checked_mul(factor(&TIMES)?)?;
            (us % own == 0).then_some(us / own)
        }
        "bytes" => number.checked_mul(factor(&SIZES)?),
        "percent" => (suffix == "%").then_some(number),
        _ => None,
    }
}

/// The way out of a value that is neither `true` nor `false`.
pub fn boolean(value: &Value) -> &'static str {
    match value {
        Value::Text(_) => "; write it without quotes",
        Value::Integer(_) => "; 1 is true, and 0 is false",
        Value::Bool(_) | Value::Float(_) | Value::Date(_) | Value::List(_) | Value::Table(_) => "",
    }
}

/// A problem of a text that is no TOML: where in its line, and the way out. Only the key of the
/// line is shown, as the value may be a secret.
pub fn syntax(error: &SyntaxError, text: &str) -> String {
    let line = text.lines().nth(error.line.saturating_sub(1)).unwrap_or_default();
    // A line without = or : may be a value that goes on from the line before.
    let key = line.split_once(['=', ':']).map_or("", |(key, _)| key.trim());
    let is_key = |c: char| c.is_ascii_alphanumeric() || "_-.[] ".contains(c);
    let word: String = key.chars().take(40).collect();
    let word = if key.chars().all(is_key) { word.as_str() } else { "" };
    let message = &error.message;
    let way_out = if message.contains("duplicate key") {
        "it stands above already: remove one, or write both below one [section]"
    } else if message.contains("carriage return") {
        "end lines with a line feed (LF or CRLF)"
    } else if line.trim_start().starts_with("//") || line.trim_start().starts_with(';') {
        "a comment begins with #"
    } else if line.contains('=') {
        "write texts in straight quotes (\"text\"), numbers without unit (30000, not 30s), and \
         true or false in small letters"
    } else {
        "write key = value, or [section], one a line"
    };
    match word {
        "" => format!("not TOML: {message}; {way_out}"),
        word => format!("not TOML: {word:?}: {message}; {way_out}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_number_is_told_as_it_has_to_be_written() {
        let text = |text: &str, unit| quoted(text, unit);
        assert_eq!(text("8080", "none"), Some(8080));
        assert_eq!(text("30s", "ms"), Some(30_000));
        assert_eq!(text("1.5s", "ms"), None);
        assert_eq!(text("5 min", "s"), Some(300));
        assert_eq!(text("500ms", "s"), None, "no whole number");
        assert_eq!(text("64 KiB", "bytes"), Some(65_536));
        assert_eq!(text("10%", "percent"), Some(10));
        assert_eq!(text("10 apples", "none"), None);
        assert_eq!(text("99999999999999999999d", "ms"), None);
        assert_eq!(text("9999999999999999999d", "ms"), None, "no overflow");
        let value = Value::Text("30s".into());
        assert_eq!(number(&value, "ms"), "; write 30000, without quotes: the number is in ms");
    }

    #[test]
    fn a_syntax_error_shows_the_key_and_never_the_value() {
        let error = SyntaxError { line: 2, message: "string values must be quoted".into() };
        let told = syntax(&error, "a = 1\nadmin.token = very-secret\n");
        assert!(told.starts_with("not TOML: \"admin.token\": string values must be quoted; write"));
        assert!(!told.contains("very-secret"), "{told}");
    }
}
