//! The text that shows a run, and compares it with an earlier one.

use std::fmt::Write as _;

use crate::bench::{Counted, Record, Resumed, Times};
use crate::cli::chart::time;
use crate::cli::table::aligned;

/// Ratios nearer to 1 than this are called the same. A choice: rare times, such as the maximum, may
/// differ by more.
const NOISE: f64 = 0.05;
/// Part of the 99th percentile from which the delay of a message's write is worth a line.
const NOTABLE: f64 = 0.1;

/// Shows a run, and what is different from `before`.
pub fn text(record: &Record, before: Option<&Record>) -> String {
    let mut out = format!("{}\n{}\n", record.url, record.load);
    let early = if record.ended_early { ", ended early" } else { "" };
    let _ = writeln!(out, "{} s measured{early}\n", record.seconds);
    out += &counts(record);
    out.push('\n');
    out += &times(record);
    if record.timed_out > 0 {
        let count = grouped(record.timed_out);
        let _ = writeln!(out, "the {count} that timed out are in none of these times");
    }
    out += &ends(record);
    out += &record.resumed.as_ref().map(resumed).unwrap_or_default();
    out += &own(record);
    if let Some(cpu) = record.cpu_us_per_message {
        let _ = write!(out, "\nCPU of the processes of --pid: {cpu} us a message\n");
    }
    for line in &record.advice {
        let _ = write!(out, "\n{line}\n");
    }
    if record.ok == 0 {
        out += "\nno message was answered with success\n";
    }
    if let Some(before) = before {
        out.push('\n');
        out += &compared(record, before);
    }
    out
}

/// How every message ended.
fn counts(record: &Record) -> String {
    let row = |name: &str, count: u64, more: String| [name.to_owned(), grouped(count), more];
    let a_second = |per_s: f64| format!("{} a second", grouped(per_s.round() as u64));
    let mut rows = vec![
        row("sent", record.sent, String::new()),
        row("ok", record.ok, a_second(record.ok_per_s)),
    ];
    for (reason, Counted { count, example }) in &record.errors {
        rows.push(row(reason, *count, example.clone()));
    }
    for (name, count, what) in [
        ("timed out", record.timed_out, "no answer within --timeout"),
        ("lost", record.lost, "their connection ended first"),
        ("unanswered", record.unanswered, "when the run was ended"),
        ("unsent", record.unsent, "due, and not sent before the end"),
        ("late", record.late_answers, "answers after --timeout"),
        ("doubled", record.doubled, "answers to a message that had one"),
        ("unasked", record.unasked, "answers to nothing that was sent"),
    ] {
        if count > 0 {
            rows.push(row(name, count, what.into()));
        }
    }
    aligned(["", "messages", ""], &rows)
}

/// Percentiles of the times.
fn times(record: &Record) -> String {
    let mut all = vec![("ok".to_owned(), &record.latency_us)];
    all.extend(record.by_id.iter().map(|(id, times)| (format!("ok, id {id}"), times)));
    all.push(("errors".into(), &record.error_latency_us));
    all.push(("connecting".into(), &record.connect_us));
    if let Some(resumed) = &record.resumed {
        all.push(("back after a loss".into(), &resumed.back_us));
        let around = resumed.around_cut_us.iter().zip(0..);
        all.extend(around.map(|(times, second)| (around_cut(second), times)));
    }
    all.retain(|(_, times)| times.count > 0);
    let row = |(name, t): (String, &Times)| {
        let [p50, p90, p99, p99_9, max] = [t.p50, t.p90, t.p99, t.p99_9, t.max].map(time);
        [name, p50, p90, p99, p99_9, max]
    };
    let rows: Vec<_> = all.into_iter().map(row).collect();
    aligned(["time", "p50", "p90", "p99", "p99.9", "max"], &rows)
}

/// The row of the answers that came in a second around the cut.
fn around_cut(second: usize) -> String {
    match second {
        0 => "the second before the cut".into(),
        _ => format!("second {second} after it"),
    }
}

/// What came of the sessions.
fn resumed(resumed: &Resumed) -> String {
    let row = |name: &str, count: u64, what: &str| [name.to_owned(), grouped(count), what.into()];
    let mut rows = vec![row("losses", resumed.losses, "of their connection")];
    rows.extend(resumed.outcomes.iter().map(|(name, count)| row(name, *count, "")));
    rows.extend([
        row("away", resumed.away, "when the run ended"),
        row("answers lost", resumed.answers_lost, "with their session, or not within --timeout"),
        row("answers doubled", resumed.answers_doubled, "to a message that had one"),
    ]);
    format!("\n{}", aligned(["session", "count", ""], &rows))
}

/// What the load itself took, and added.
fn own(record: &Record) -> String {
    let mut out =
        format!("\nthe busiest thread of the load took {} % of a core\n", record.load_cpu_percent);
    let late = record.sent_late_max_us;
    if record.latency_us.count > 0 && late > record.latency_us.p99 * NOTABLE {
        let late = time(late);
        let _ = writeln!(out, "messages were written up to {late} after they were due");
    }
    out
}

/// Connections that were not there, or did not stay.
fn ends(record: &Record) -> String {
    let mut lines = Vec::new();
    if record.connected < record.connections {
        let (there, wanted) = (record.connected, record.connections);
        lines.push(format!("connections when the load began: {there} of {wanted}"));
    }
    if record.replaced > 0 {
        lines.push(format!("connections replaced as planned: {}", record.replaced));
    }
    for (reason, counted) in &record.failed_connects {
        lines.push(said(format!("connecting failed {} times: {reason}", counted.count), counted));
    }
    for (code, counted) in &record.closes {
        let how = match code.as_str() {
            "none" => "without a close frame".to_owned(),
            code => format!("with {code}"),
        };
        lines.push(said(format!("the gateway closed {} times {how}", counted.count), counted));
    }
    if record.slow_sent > 0 {
        let (sent, read) = (grouped(record.slow_sent), grouped(record.slow_answered));
        lines.push(format!("slow readers sent {sent} messages and read {read} answers"));
    }
    if lines.is_empty() { String::new() } else { format!("\n{}\n", lines.join("\n")) }
}

fn said(line: String, counted: &Counted) -> String {
    if counted.example.is_empty() { line } else { format!("{line}: {}", counted.example) }
}

/// The ratios to an earlier run.
fn compared(record: &Record, before: &Record) -> String {
    let row = |name: &str, now: f64, was: f64, shown: fn(f64) -> String, is_better_less: bool| {
        let ratio = now / was;
        let verdict = match (ratio, is_better_less) {
            _ if !ratio.is_finite() => "",
            (ratio, _) if (ratio - 1.0).abs() < NOISE => "as before",
            (ratio, true) if ratio < 1.0 => "better",
            (ratio, false) if ratio > 1.0 => "better",
            _ => "worse",
        };
        let ratio = if ratio.is_finite() { format!("{ratio:.2}x") } else { "-".into() };
        [name.to_owned(), shown(now), shown(was), ratio, verdict.to_owned()]
    };
    let per_s = |value: f64| grouped(value.round() as u64);
    let (now, was) = (&record.latency_us, &before.latency_us);
    let mut rows = vec![row("ok a second", record.ok_per_s, before.ok_per_s, per_s, false)];
    // Without a success there is no time: 0 would be the best of all.
    if now.count > 0 && was.count > 0 {
        rows.extend([
            row("p50", now.p50, was.p50, time, true),
            row("p90", now.p90, was.p90, time, true),
            row("p99", now.p99, was.p99, time, true),
            row("p99.9", now.p99_9, was.p99_9, time, true),
            row("max", now.max, was.max, time, true),
        ]);
    }
    if let (Some(now), Some(was)) = (record.cpu_us_per_message, before.cpu_us_per_message) {
        rows.push(row("CPU a message", now, was, time, true));
    }
    let mut out = aligned(["", "this run", "that run", "ratio", ""], &rows);
    if record.load != before.load {
        let _ = write!(out, "\nthe loads differ; that one was: {}\n", before.load);
    }
    out
}

/// A number with commas between its thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record() -> Record {
        let times = |factor: f64| {
            json!({"count": 1000, "mean": 500.0, "p50": 450.0 * factor, "p90": 900.0 * factor,
                   "p99": 2000.0 * factor, "p99_9": 3000.0 * factor, "max": 12_000.0 * factor})
        };
        let counted = |count: u32, example: &str| json!({"count": count, "example": example});
        let value = json!({
            "shardgate_bench": 1, "version": "0", "at_unix_s": 0, "url": "ws://127.0.0.1:9000/ws",
            "load": "64 connections, closed loop", "seconds": 2.0, "ended_early": true,
            "connections": 64, "connected": 60, "sent": 1011, "ok": 1000,
            "errors": {"QUEUE_FULL": counted(5, "wait")}, "timed_out": 3, "lost": 2,
            "unanswered": 1, "late_answers": 2, "doubled": 0, "unasked": 0, "ok_per_s": 1234.4,
            "answered_per_s": 1240.0, "latency_us": times(1.0), "error_latency_us": times(0.1),
            "connect_us": times(2.0), "by_id": {"1001": times(1.0), "2001": times(2.0)},
            "closes": {"4001": counted(2, "too slow"), "none": counted(1, "")},
            "failed_connects": {"HTTP 429": counted(4, "enough")}, "replaced": 7, "slow_sent": 8,
            "resumed": {"outcomes": {"new": 64, "resumed": 63, "lost EXPIRED": 1}, "losses": 64,
                        "away": 0, "answers_lost": 5, "answers_doubled": 0, "back_us": times(3.0),
                        "around_cut_us": [times(1.0), times(4.0)]},
            "slow_answered": 3, "wanted_per_s": null, "unsent": 0, "sent_late_max_us": 250.0,
            "load_cpu_percent": 10.0, "cpu_us_per_message": 6.5, "advice": ["do this"],
            "histogram": "",
        });
        serde_json::from_value(value).expect("a record")
    }

    #[test]
    fn every_end_of_a_message_and_of_a_connection_has_its_row() {
        let text = text(&record(), None);
        for row in [
            "ws://127.0.0.1:9000/ws\n64 connections, closed loop\n2 s measured, ended early\n",
            "\nsent        1,011\nok          1,000     1,234 a second\n",
            "\nQUEUE_FULL  5         wait\n",
            "\nlate        2         answers after --timeout\n",
            "\nok, id 2001                900 us   1.8 ms  4 ms    6 ms    24 ms\n",
            "\nconnections when the load began: 60 of 64\n",
            "\nconnecting failed 4 times: HTTP 429: enough\n",
            "\nthe gateway closed 2 times with 4001: too slow\n",
            "\nthe gateway closed 1 times without a close frame\n",
            "\nslow readers sent 8 messages and read 3 answers\n",
            "\nCPU of the processes of --pid: 6.5 us a message\n",
            "\nback after a loss          1.35 ms  2.7 ms  6 ms    9 ms    36 ms\n",
            "\nthe second before the cut  450 us   900 us  2 ms    3 ms    12 ms\n",
            "\nsecond 1 after it          1.8 ms   3.6 ms  8 ms    12 ms   48 ms\n",
            "\nlost EXPIRED     1\n",
            "\nanswers lost     5      with their session, or not within --timeout\n",
            "\nthe 3 that timed out are in none of these times\n",
            "\nthe busiest thread of the load took 10 % of a core\n",
            "\nmessages were written up to 250 us after they were due\n",
            "\ndo this\n",
        ] {
            assert!(text.contains(row), "{row} in\n{text}");
        }
        assert!(!text.contains("\ndoubled ") && !text.contains("no message was"), "{text}");
    }

    #[test]
    fn a_comparison_tells_ratios_and_which_way_is_better() {
        let (mut now, before) = (record(), record());
        now.ok_per_s = before.ok_per_s * 2.0;
        now.latency_us.p99 = before.latency_us.p99 * 1.5;
        now.load = "another".into();
        let text = text(&now, Some(&before));
        let line = |name: &str| {
            let found = text.lines().rfind(|line| line.starts_with(name));
            found.unwrap_or_else(|| panic!("{name} in\n{text}")).to_owned()
        };
        assert!(line("ok a second").ends_with("2.00x  better"), "{text}");
        assert!(line("p50").ends_with("1.00x  as before"), "{text}");
        assert!(line("p99 ").ends_with("1.50x  worse"), "{text}");
        assert!(text.contains("the loads differ; that one was: 64 connections"), "{text}");
    }

    #[test]
    fn what_had_no_success_has_no_times_and_is_not_better() {
        let (mut now, before) = (record(), record());
        (now.ok, now.ok_per_s, now.latency_us) = (0, 0.0, Times::default());
        now.by_id.insert(2001, Times::default());
        for (now, before) in [(&now, &before), (&before, &now)] {
            let text = text(now, Some(before));
            let (_, compared) = text.split_once("this run").expect("a comparison");
            assert!(compared.contains("ok a second") && !compared.contains("p50"), "{text}");
        }
        let text = text(&now, Some(&before));
        assert!(text.contains("0.00x  worse") && !text.contains("better"), "{text}");
        assert!(text.contains("ok, id 1001") && !text.contains("ok, id 2001"), "{text}");
    }

    #[test]
    fn thousands_have_commas() {
        let all = [0, 999, 1000, 1_234_567].map(grouped);
        assert_eq!(all, ["0", "999", "1,000", "1,234,567"]);
    }
}
