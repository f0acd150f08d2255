//! Logging: text or JSON lines on stderr, through a bounded queue that loses lines, not time.
//!
//! A stderr whose reader has stopped must not stop a shard, so lines go to a thread of their own;
//! what does not fit is dropped and counted. Characters that are not plain ([`is_plain`]) are
//! escaped, so that no value can forge a line, turn it around or talk to a terminal; long values
//! are cut; warnings that repeat are counted ([`repeats`]), and the last ones kept ([`recent`]).

pub mod recent;
pub mod repeats;

use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::log_filter;
use crate::plain::is_plain;

/// Lines that wait for stderr: 8,192 of at most 8 KiB are 64 MiB at the very worst, 1 MiB usually.
const LINES_MAX: usize = 8_192;
/// Longest line; a longer one is cut.
const LINE_BYTES_MAX: usize = 8 << 10;
/// Bytes of all waiting lines at most.
pub const LOG_BYTES: u64 = (LINES_MAX * LINE_BYTES_MAX) as u64;
/// Longest value of a field; a longer one is cut, so that the others of its line are still read.
const VALUE_BYTES_MAX: usize = 1 << 10;
/// Text in the place of what was cut.
const CUT: &str = " [cut]";

/// Owner of the log's threads; dropping it writes the lines that wait, for at most about a second.
pub struct LogGuard {
    // Before the worker: it logs its counts when it is dropped.
    _reporter: repeats::Reporter,
    _worker: WorkerGuard,
    dropped: DroppedLines,
}

impl LogGuard {
    /// Counter of lines lost because stderr did not take them.
    pub fn dropped(&self) -> DroppedLines {
        self.dropped.clone()
    }
}

/// Counter of lost log lines.
#[derive(Clone)]
pub struct DroppedLines(ErrorCounter);

impl DroppedLines {
    /// Lines lost since boot.
    pub fn get(&self) -> usize {
        self.0.dropped_lines()
    }
}

/// Installs the process's logging. `filter` is the setting `log`, e.g. `info` or
/// `info,shardgate=debug`. The error is one line: the rule that the filter breaks, or that logging
/// was set up before.
pub fn init(filter: &str, json: bool) -> Result<LogGuard, String> {
    let text = filter.to_owned();
    let filter =
        log_filter::read(filter).map_err(|why| format!("log.filter = {filter:?}: {why}"))?;
    let (lines, worker) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES_MAX)
        .thread_name("log")
        .finish(io::stderr());
    let dropped = DroppedLines(lines.error_counter());
    let (filter, handle) = reload::Layer::new(filter);
    let (collapse, reporter) = repeats::collapse().map_err(|error| error.to_string())?;
    let writer = CleanLines { lines, json };
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer);
    let base = tracing_subscriber::registry().with(filter).with(collapse).with(recent::Keep);
    let installed = if json {
        base.with(layer.json().flatten_event(true)).try_init()
    } else {
        let fields = debug_fn(|to, field, value| write_field(to, field.name(), value));
        base.with(layer.fmt_fields(fields.delimited(" "))).try_init()
    };
    installed.map_err(|error| error.to_string())?;
    let change: ReloadFilter = Box::new(move |f| handle.reload(f).map_err(|e| e.to_string()));
    // Logging is set up once a process, so this is the first to be here.
    ACTIVE.get_or_init(|| Active { change, filter: Mutex::new(text) });
    Ok(LogGuard { _reporter: reporter, _worker: worker, dropped })
}

/// Function that puts another filter in force.
type ReloadFilter = Box<dyn Fn(Targets) -> Result<(), String> + Send + Sync>;

/// Logging of the process. There is one, as there is one stderr.
struct Active {
    change: ReloadFilter,
    /// Text of the filter in force.
    filter: Mutex<String>,
}

static ACTIVE: OnceLock<Active> = OnceLock::new();

/// Puts another filter in force. The error is one line: the rule that `filter` breaks.
pub fn set_filter(filter: &str) -> Result<(), String> {
    let shown: String = filter.chars().take(80).collect();
    let read = log_filter::read(filter).map_err(|why| format!("filter = {shown:?}: {why}"))?;
    let active = ACTIVE.get().ok_or("logging is not set up in this process")?;
    (active.change)(read)?;
    *active.filter.lock().unwrap_or_else(PoisonError::into_inner) = filter.to_owned();
    tracing::warn!(filter, "log_filter_changed: this log filter is in force");
    Ok(())
}

/// The filter in force; `None` if this process has set up no logging.
pub fn filter() -> Option<String> {
    let active = ACTIVE.get()?;
    Some(active.filter.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// Writes a field of a text line, its value cut. (JSON lines are cut when they are whole.)
fn write_field(to: &mut dyn fmt::Write, name: &str, value: &dyn fmt::Debug) -> fmt::Result {
    if name != "message" {
        write!(to, "{name}=")?;
    }
    let mut short = Truncated { to, left: VALUE_BYTES_MAX };
    // An error of `short` is the end of its room; one of `to` is a lack of memory, which other
    // writes show.
    let whole = write!(short, "{value:?}").is_ok();
    if whole { Ok(()) } else { to.write_str(CUT) }
}

/// Writer that takes so many bytes, and then no more.
struct Truncated<'a> {
    to: &'a mut dyn fmt::Write,
    left: usize,
}

impl fmt::Write for Truncated<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = text.floor_char_boundary(self.left);
        self.left -= end;
        self.to.write_str(&text[..end])?;
        if end < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

/// Cuts the long strings of a JSON line; `None` if it is no JSON.
fn cut_values(line: &str) -> Option<String> {
    let mut value: serde_json::Value = serde_json::from_str(line).ok()?;
    for value in value.as_object_mut()?.values_mut() {
        if let serde_json::Value::String(text) = value
            && text.len() > VALUE_BYTES_MAX
        {
            text.truncate(text.floor_char_boundary(VALUE_BYTES_MAX));
            text.push_str(CUT);
        }
    }
    Some(value.to_string())
}

/// Maker of writers that clean each line before it is queued.
struct CleanLines {
    lines: NonBlocking,
    json: bool,
}

impl<'a> MakeWriter<'a> for CleanLines {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> LineWriter {
        LineWriter { lines: self.lines.clone(), json: self.json }
    }
}

/// Writer of one line: the subscriber writes a whole line with one call.
struct LineWriter {
    lines: NonBlocking,
    json: bool,
}

impl Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.write_all(clean(line, self.json).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Escapes what is not plain in `line` but the newline at its end, and cuts it to the limit.
fn clean(line: &[u8], json: bool) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.strip_suffix('\n').unwrap_or(&text);
    // A shorter line has no value that is too long.
    let cut = (json && text.len() > VALUE_BYTES_MAX).then(|| cut_values(text)).flatten();
    let text = cut.as_deref().unwrap_or(text);
    if json && text.len() > LINE_BYTES_MAX {
        // Half a JSON object is no JSON.
        return format!(
            "{{\"level\":\"WARN\",\"message\":\"line left out\",\"bytes\":{}}}\n",
            text.len()
        );
    }
    let mut out = String::with_capacity(text.len().min(LINE_BYTES_MAX) + 16);
    for c in text.chars() {
        if out.len() >= LINE_BYTES_MAX {
            out.push_str(CUT);
            break;
        }
        match is_plain(c) {
            true => out.push(c),
            false if json => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| {
                let _ = write!(out, "\\u{unit:04x}"); // a String takes every text
            }),
            false => out.extend(c.escape_default()),
        }
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_can_neither_forge_a_line_nor_talk_to_a_terminal() {
        let line = "INFO peer=x\n\rERROR forged\u{1b}[2J\u{9b}K\u{7f} ü\n".as_bytes();
        let expected = "INFO peer=x\\n\\rERROR forged\\u{1b}[2J\\u{9b}K\\u{7f} ü\n";
        assert_eq!(clean(line, false), expected);
    }

    #[test]
    fn a_users_id_cannot_turn_a_line_around() {
        let line = "INFO user=\u{202e}nimda\u{2066} \u{5e9}\u{5dc} x=1\n".as_bytes();
        let expected = "INFO user=\\u{202e}nimda\\u{2066} \u{5e9}\u{5dc} x=1\n";
        assert_eq!(clean(line, false), expected, "letters from right to left stay");
        // The value of a JSON line stays what it was.
        for id in ["\u{202e}a", "a\u{7f}\u{9b}b", "\u{e0041}", "a\n\"", "\u{5e9}"] {
            let line = serde_json::json!({ "user": id }).to_string() + "\n";
            let cleaned = clean(line.as_bytes(), true);
            assert!(cleaned.trim_end().chars().all(is_plain), "{cleaned:?}");
            let value: serde_json::Value = serde_json::from_str(&cleaned).unwrap();
            assert_eq!(value["user"], id);
        }
    }

    #[test]
    fn a_long_line_is_cut_and_a_long_json_line_is_left_out() {
        let long = "x".repeat(1 << 20);
        assert!(clean(long.as_bytes(), false).len() < LINE_BYTES_MAX + 16);
        let json = clean(long.as_bytes(), true);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["bytes"], 1 << 20);
    }

    #[test]
    fn a_long_value_is_cut_and_the_others_stay() {
        let long = "ü".repeat(10_000);
        let mut text = String::new();
        write_field(&mut text, "why", &long).unwrap();
        assert!(text.starts_with("why=\"üü") && text.ends_with(CUT), "{text}");
        assert!(text.len() <= VALUE_BYTES_MAX + "why=".len() + CUT.len());
        let mut text = String::new();
        write_field(&mut text, "message", &format_args!("instance_down")).unwrap();
        write_field(&mut text, "n", &7).unwrap();
        assert_eq!(text, "instance_downn=7");
        let json = serde_json::json!({"level": "WARN", "why": long, "peer": "a"}).to_string();
        let json: serde_json::Value = serde_json::from_str(&clean(json.as_bytes(), true)).unwrap();
        assert_eq!((&json["level"], &json["peer"]), (&"WARN".into(), &"a".into()));
        let why = json["why"].as_str().unwrap();
        assert!(why.len() <= VALUE_BYTES_MAX + CUT.len() && why.ends_with(CUT), "{}", why.len());
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_named() {
        let error = init("inof", false).err().unwrap();
        assert!(error.starts_with("log.filter = \"inof\": must be a level"), "{error}");
        let error = set_filter("info,,=[").unwrap_err();
        assert!(error.starts_with("filter = \"info,,=[\": must be a level"), "{error}");
        let error = set_filter(&"a=info,".repeat(200)).unwrap_err();
        assert!(error.contains("at most 1024 bytes") && error.len() < 400, "{error}");
    }
}
