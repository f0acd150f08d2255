//! The result of a run: what is shown, stored, and compared with a later one.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize};

use super::plan::{Load, Plan, Sessions};
use super::resumes::Resumed;
use super::tally::{Counted, Tally};
use super::times::{Times, histogram, micros, rounded};
use super::worker::Outcome;
use crate::config::program;

/// Version of the stored form; another one is refused.
const FORM: u32 = 1;
/// Share of the messages that were due, in percent, above which those that were not sent mean that
/// the rate was not reached.
const UNSENT_PERCENT_MAX: u64 = 1;
/// CPU time of a thread of the load, in percent of a core, above which that thread is the limit.
const BUSY_PERCENT: f64 = 90.0;
/// Why there is no CPU time of the processes that were named.
const NO_CPU: &str = "the CPU time a message is not known: nothing was answered, a process of \
                      --pid or some of its threads ended, or /proc/PID/task/*/schedstat cannot \
                      be read";

/// A run that was made.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Version of this form.
    pub shardgate_bench: u32,
    /// Version of the program.
    pub version: String,
    /// Unix time of the end, in seconds.
    pub at_unix_s: i64,
    /// URL of the gateway.
    pub url: String,
    /// The load, in words.
    pub load: String,
    /// Seconds that were counted.
    pub seconds: f64,
    /// Whether it was ended before its time.
    pub ended_early: bool,
    /// Connections that were wanted.
    pub connections: usize,
    /// Connections that were there when the load began.
    pub connected: usize,
    /// Messages that were sent: the sum of the next five, and of the errors.
    pub sent: u64,
    /// Answered with success.
    pub ok: u64,
    /// Answered with an error, by reason; `STATUS_N` is the service's own.
    pub errors: BTreeMap<String, Counted>,
    /// Given up after the timeout.
    pub timed_out: u64,
    /// Their connection ended first.
    pub lost: u64,
    /// Still waiting when the run was ended early.
    pub unanswered: u64,
    /// Answers after the timeout.
    pub late_answers: u64,
    /// Answers to a message that had one.
    pub doubled: u64,
    /// Answers to nothing that was sent.
    pub unasked: u64,
    /// Successes in a second.
    pub ok_per_s: f64,
    /// Answers of any kind in a second.
    pub answered_per_s: f64,
    /// From due to success.
    pub latency_us: Times,
    /// From due to an error.
    pub error_latency_us: Times,
    /// From connecting to the end of the welcome, or of the sign-in.
    pub connect_us: Times,
    /// From due to success by message id, if there are several.
    pub by_id: BTreeMap<u32, Times>,
    /// Ends of connections by the gateway, by close code; `none` = without a close frame.
    pub closes: BTreeMap<String, Counted>,
    /// Attempts to connect that failed, by reason.
    pub failed_connects: BTreeMap<String, Counted>,
    /// Connections that were replaced as planned.
    pub replaced: u64,
    /// What came of sessions, if they are resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed: Option<Resumed>,
    /// Messages that slow readers sent.
    pub slow_sent: u64,
    /// Answers that they read.
    pub slow_answered: u64,
    /// Rate of an open loop that was wanted.
    pub wanted_per_s: Option<u64>,
    /// Messages that were due and could not be sent any more.
    pub unsent: u64,
    /// Longest time from due to written, in microseconds.
    pub sent_late_max_us: f64,
    /// CPU time of the busiest thread of the load, in percent of a core.
    pub load_cpu_percent: f64,
    /// CPU time of the processes that were named, in microseconds an answer.
    pub cpu_us_per_message: Option<f64>,
    /// What to do about that which went wrong.
    pub advice: Vec<String>,
    /// Histogram of the successes in nanoseconds: V2, compressed, in base64.
    pub histogram: String,
}

impl Record {
    /// The result of all threads, with the CPU time of the plan's processes, at Unix time `now` in
    /// seconds.
    pub fn new(
        plan: &Plan,
        outcomes: Vec<Outcome>,
        cpu_ns: Option<u64>,
        ended_early: bool,
        now: i64,
    ) -> Self {
        let joined = Joined::of(plan, outcomes);
        let tally = joined.tally;
        let seconds = joined.counted_ns as f64 / 1e9;
        let per_s = |count: u64| if seconds > 0.0 { rounded(count as f64 / seconds) } else { 0.0 };
        let all = tally.all_latencies();
        let answered = tally.answered_in_time;
        let cpu_ns = cpu_ns.filter(|_| !plan.pids.is_empty() && answered > 0);
        let mut record = Self {
            shardgate_bench: FORM,
            version: env!("CARGO_PKG_VERSION").into(),
            at_unix_s: now,
            url: plan.target.url(),
            load: plan.in_words(),
            seconds: (seconds * 1000.0).round() / 1000.0,
            ended_early,
            connections: plan.connections,
            connected: joined.connected,
            sent: tally.sent,
            ok: tally.ok,
            timed_out: tally.timed_out,
            lost: tally.lost,
            unanswered: tally.unanswered,
            late_answers: tally.late,
            doubled: tally.doubled,
            unasked: tally.unasked,
            ok_per_s: per_s(tally.ok_in_time),
            answered_per_s: per_s(answered),
            latency_us: Times::of(&all),
            error_latency_us: Times::of(&tally.error_latencies),
            connect_us: Times::of(&tally.connects),
            by_id: by_id(plan, &tally),
            closes: closes(&tally),
            failed_connects: failed_connects(&tally),
            replaced: tally.churned,
            resumed: match plan.sessions {
                Sessions::Resumed { .. } => Some(resumed(&tally)),
                Sessions::End => None,
            },
            slow_sent: tally.slow_sent,
            slow_answered: tally.slow_answered,
            wanted_per_s: match plan.load {
                Load::Open { per_s, .. } => Some(per_s),
                Load::Closed { .. } => None,
            },
            unsent: joined.unsent,
            sent_late_max_us: micros(joined.late_max_ns as f64),
            load_cpu_percent: joined.load_cpu_percent,
            cpu_us_per_message: cpu_ns
                .map(|ns| (ns as f64 / 10.0 / answered as f64).round() / 100.0),
            advice: Vec::new(),
            errors: tally.errors,
            histogram: written(&all),
        };
        let faults = tally.faults.keys();
        record.advice = faults.map(|fault| format!("{fault}: {}", fault.way_out(plan))).collect();
        record.advise(joined.is_held_back);
        if !plan.pids.is_empty() && cpu_ns.is_none() {
            record.advice.push(NO_CPU.into());
        }
        record
    }

    /// Reads what was stored. The error is a reason, to follow the file's name.
    pub fn read(text: &str) -> Result<Self, String> {
        let not = "is no run that bench --save has stored";
        let form = serde_json::from_str::<serde_json::Value>(text).map_err(|_| not.to_owned())?;
        match form["shardgate_bench"].as_u64() {
            None => return Err(not.into()),
            Some(form) if form != u64::from(FORM) => {
                return Err("was stored by another version: make it again".into());
            }
            Some(_) => {}
        }
        let record: Self =
            serde_json::from_value(form).map_err(|error| format!("{not}: {error}"))?;
        record.histogram()?;
        Ok(record)
    }

    /// Histogram of the successes, in nanoseconds.
    pub fn histogram(&self) -> Result<Histogram<u64>, String> {
        decoded(&self.histogram)
    }

    /// Adds what to do about errors, a busy load, and a rate that was not reached; `is_held_back` =
    /// connections that were there took no more.
    fn advise(&mut self, is_held_back: bool) {
        let program = program();
        for reason in self.errors.keys() {
            let way_out = match reason.as_str() {
                "NO_ROUTE" => format!(
                    "`{program} routes` shows the ids that have a service; name one with --mix"
                ),
                "UNAUTHENTICATED" => {
                    format!("sign in with --token; `{program} gen token --user alice` makes one")
                }
                "RATE_LIMITED" => format!(
                    "`{program} guide limits` explains the limits; users are spread with \
                     --tokens, addresses with --sources"
                ),
                "UNAVAILABLE" => format!(
                    "the service is not there; `{program} doctor` and the gateway's log say more"
                ),
                _ => continue,
            };
            self.advice.push(format!("{reason}: {way_out}"));
        }
        let is_busy = self.load_cpu_percent > BUSY_PERCENT;
        if is_busy {
            self.advice.push(format!(
                "a thread of the load was busy for {} % of the time, so that the load was a limit: \
                 try more --threads, on cores of their own",
                self.load_cpu_percent
            ));
        }
        let due = self.sent + self.unsent;
        if self.unsent * 100 > due * UNSENT_PERCENT_MAX {
            let who = match (is_busy, is_held_back) {
                (true, _) => "the load itself was the limit",
                (false, true) => "the gateway took no more",
                (false, false) => {
                    "connections were not there, or other programs took this machine's time"
                }
            };
            let wanted = self.wanted_per_s.unwrap_or(0);
            let sent = if self.seconds > 0.0 { self.sent as f64 / self.seconds } else { 0.0 };
            self.advice.push(format!(
                "it fell behind: {sent:.0} messages a second were sent, not {wanted}; {who}"
            ));
        }
    }
}

/// The results of all threads as one.
struct Joined {
    tally: Tally,
    counted_ns: u64,
    unsent: u64,
    is_held_back: bool,
    late_max_ns: u64,
    connected: usize,
    /// CPU time of the busiest thread, in percent of a core.
    load_cpu_percent: f64,
}

impl Joined {
    fn of(plan: &Plan, outcomes: Vec<Outcome>) -> Self {
        let mut joined = Self {
            tally: Tally::new(plan.mix.len()),
            counted_ns: 0,
            unsent: 0,
            is_held_back: false,
            late_max_ns: 0,
            connected: 0,
            load_cpu_percent: 0.0,
        };
        for one in outcomes {
            joined.counted_ns = joined.counted_ns.max(one.counted_ns);
            joined.unsent += one.unsent;
            joined.is_held_back |= one.is_held_back;
            joined.late_max_ns = joined.late_max_ns.max(one.late_max_ns);
            joined.connected += one.connected;
            let busy = percent(one.own_cpu_ns, one.counted_ns);
            joined.load_cpu_percent = joined.load_cpu_percent.max(busy);
            joined.tally.merge(one.tally);
        }
        joined
    }
}

/// What came of sessions that are resumed.
fn resumed(tally: &Tally) -> Resumed {
    tally.resumes.resumed(tally.lost + tally.timed_out, tally.doubled)
}

/// A part in percent, with one decimal.
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { rounded(part as f64 * 100.0 / whole as f64) }
}

fn by_id(plan: &Plan, tally: &Tally) -> BTreeMap<u32, Times> {
    let mut sums = BTreeMap::new();
    for (kind, one) in plan.mix.iter().zip(&tally.latencies) {
        // Kinds of one id differ in their payloads.
        sums.entry(kind.msg_id).or_insert_with(histogram).add(one).expect("same bounds");
    }
    if sums.len() < 2 {
        return BTreeMap::new();
    }
    sums.iter().map(|(id, sum)| (*id, Times::of(sum))).collect()
}

fn closes(tally: &Tally) -> BTreeMap<String, Counted> {
    let name = |code: &Option<u16>| code.map_or_else(|| "none".into(), |code| code.to_string());
    tally.closes.iter().map(|(code, counted)| (name(code), counted.clone())).collect()
}

fn failed_connects(tally: &Tally) -> BTreeMap<String, Counted> {
    tally.faults.iter().map(|(fault, counted)| (fault.to_string(), counted.clone())).collect()
}

fn written(histogram: &Histogram<u64>) -> String {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new().serialize(histogram, &mut bytes).expect("a Vec takes every byte");
    STANDARD.encode(bytes)
}

/// A histogram that was written in V2, compressed or not, in base64. The error is a reason.
pub fn decoded(text: &str) -> Result<Histogram<u64>, String> {
    let bytes = STANDARD.decode(text).map_err(|error| format!("holds no histogram: {error}"))?;
    let read = Deserializer::new().deserialize(&mut &bytes[..]);
    read.map_err(|error| format!("holds no histogram: {error}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::{Arrivals, Kind, Target};
    use crate::message::Encoding;

    #[test]
    fn what_was_stored_is_read_and_anything_else_is_told() {
        let mut kept = histogram();
        kept.record(1_234_567).expect("in bounds");
        let text = written(&kept);
        assert_eq!(decoded(&text).expect("a histogram"), kept);
        for (text, why) in [
            ("", "is no run"),
            ("{}", "is no run"),
            ("[1]", "is no run"),
            ("{\"shardgate_bench\":99}", "another version"),
            ("{\"shardgate_bench\":1}", "is no run that bench --save has stored: missing field"),
        ] {
            let said = Record::read(text).expect_err(text);
            assert!(said.starts_with(why) || said.contains(why), "{said}");
        }
        assert!(decoded("AAAA").is_err() && decoded("%").is_err());
    }

    /// What a run advises that had so many messages due and unsent, with this share of CPU time.
    fn advice(unsent: u64, is_held_back: bool, cpu_percent: u64) -> String {
        let plan = Plan {
            target: Target::parse("ws://127.0.0.1:1", "/ws").expect("a URL"),
            tls: None,
            encoding: Encoding::Json,
            load: Load::Open { per_s: 100, arrivals: Arrivals::Constant },
            connections: 1,
            slow_readers: 0,
            slow_bytes_per_s: 0,
            mix: vec![Kind { msg_id: 1, weight: 1, payload: String::new() }],
            tokens: Vec::new(),
            sources: 0,
            connects_per_s: 0,
            churn_per_s: 0,
            sessions: Sessions::End,
            warmup: Duration::ZERO,
            duration: None,
            messages: None,
            timeout: Duration::from_secs(1),
            threads: 1,
            cpus: Vec::new(),
            pids: Vec::new(),
        };
        let outcome = Outcome {
            tally: Tally { sent: 100, ..Tally::new(1) },
            is_whole: true,
            counted_ns: 1_000_000_000,
            unsent,
            is_held_back,
            late_max_ns: 0,
            own_cpu_ns: cpu_percent * 10_000_000,
            connected: 1,
        };
        Record::new(&plan, vec![outcome], None, false, 0).advice.join("\n")
    }

    #[test]
    fn a_busy_load_is_told_and_the_gateway_is_blamed_for_what_it_did_not_take() {
        assert_eq!(advice(0, true, 50), "");
        assert!(advice(0, false, 95).contains("busy for 95 %"));
        assert!(advice(50, true, 50).ends_with("not 100; the gateway took no more"));
        assert!(advice(50, false, 50).contains("connections were not there"));
        assert!(advice(50, true, 95).ends_with("the load itself was the limit"));
    }
}
