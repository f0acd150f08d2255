//! The last warnings and errors of the log, for `/live`: the same lines, with the same values, as
//! far as the filter in force lets them be written.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use super::{CUT, Truncated, write_field};
use crate::plain::is_plain;

/// Lines that are kept.
pub const LINES_MAX: usize = 100;
/// Longest line; a longer one is cut.
const LINE_BYTES_MAX: usize = 2 << 10;
/// Bytes of all lines at most, escaped.
pub const RECENT_BYTES: u64 = (LINES_MAX * LINE_BYTES_MAX) as u64;

/// A line of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// Number since the start of the process, from 1 on.
    pub number: u64,
    /// Time, in milliseconds since 1970.
    pub unix_ms: u64,
    pub level: Level,
    /// Module that wrote it.
    pub target: &'static str,
    /// Message and fields.
    pub text: Box<str>,
}

/// The last lines, oldest first.
#[derive(Debug)]
struct Recent {
    lines: VecDeque<Line>,
    count: u64,
}

/// Lines of this process. There is one log.
static RECENT: Mutex<Recent> = Mutex::new(Recent::new());

impl Recent {
    const fn new() -> Self {
        Self { lines: VecDeque::new(), count: 0 }
    }

    fn add(&mut self, level: Level, target: &'static str, text: Box<str>, unix_ms: u64) {
        self.count += 1;
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(Line { number: self.count, unix_ms, level, target, text });
    }

    fn since(&self, number: u64) -> Vec<Line> {
        self.lines.iter().filter(|line| line.number > number).cloned().collect()
    }
}

/// The lines after number `since`, oldest first.
pub fn since(number: u64) -> Vec<Line> {
    RECENT.lock().unwrap_or_else(PoisonError::into_inner).since(number)
}

/// Layer that keeps warnings and errors. Repeats are left out before it; so the lock is taken a few
/// times a second at most.
pub struct Keep;

impl<S: Subscriber> Layer<S> for Keep {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        // Level orders by verbosity: ERROR is the least.
        if *metadata.level() > Level::WARN {
            return;
        }
        let text = text_of(event);
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis());
        let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
        recent.add(*metadata.level(), metadata.target(), text, unix_ms as u64);
    }
}

/// Message and fields of an event on one line, as the log writes them: cut, and without what could
/// talk to a terminal.
fn text_of(event: &Event<'_>) -> Box<str> {
    let mut fields = Fields { text: String::new() };
    event.record(&mut fields);
    let mut out = String::with_capacity(fields.text.len());
    let mut short = Truncated { to: &mut out, left: LINE_BYTES_MAX - CUT.len() };
    let mut whole = true;
    for c in fields.text.chars() {
        whole &= match is_plain(c) {
            true => short.write_char(c).is_ok(),
            false => write!(short, "{}", c.escape_default()).is_ok(),
        };
        if !whole {
            break;
        }
    }
    if !whole {
        out.push_str(CUT);
    }
    out.into()
}

struct Fields {
    text: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        // A string takes every text.
        let _ = write_field(&mut self.text, field.name(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_given_once() {
        let mut recent = Recent::new();
        for n in 1..=250 {
            recent.add(Level::WARN, "shardgate::shard", format!("line {n}").into(), n);
        }
        let all = recent.since(0);
        assert_eq!((all.len(), &*all[0].text, all[99].number), (LINES_MAX, "line 151", 250));
        assert_eq!(
            recent.since(248).iter().map(|line| line.number).collect::<Vec<_>>(),
            [249, 250]
        );
        assert_eq!(recent.since(250), []);
    }

    #[test]
    fn a_warning_is_kept_as_the_log_writes_it_and_an_info_is_not() {
        use tracing_subscriber::layer::SubscriberExt;
        let before = since(0).last().map_or(0, |line| line.number);
        let long = "ü".repeat(10_000);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Keep), || {
            tracing::info!("recent_test: not this");
            tracing::warn!(peer = "a\u{1b}[2J\nERROR", n = 7, "recent_test: this");
            tracing::error!(why = long, "recent_test: cut");
        });
        let lines = since(before);
        let own = lines.iter().filter(|line| line.text.contains("recent_test"));
        let told: Vec<(Level, &str)> = own.map(|line| (line.level, &*line.text)).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        let expected = "recent_test: this peer=\"a\\u{1b}[2J\\nERROR\" n=7";
        assert_eq!(told[0], (Level::WARN, expected));
        assert!(told[1].1.ends_with(CUT) && told[1].1.len() <= LINE_BYTES_MAX, "{told:?}");
    }
}
