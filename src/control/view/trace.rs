//! A trace of a shard's turns in the Trace Event Format of Chrome, which Perfetto opens
//! (ui.perfetto.dev): a slice a turn, one in it for each step, and one for each wait between turns.

use std::fmt::Write;

use serde_json::{Map, json};

use super::ProcessInfo;
use crate::control::traces::Trace;
use crate::trace::{COUNTED, Mark, Step, TraceEnd};

/// Something that lasted.
struct Slice {
    name: &'static str,
    from_ns: u64,
    until_ns: u64,
    ran_ns: u64,
    counts: [u64; COUNTED.len()],
}

impl Slice {
    fn new(name: &'static str, from_ns: u64) -> Self {
        Self { name, from_ns, until_ns: from_ns, ran_ns: 0, counts: [0; COUNTED.len()] }
    }

    /// Goes on to the end of a step.
    fn extend(&mut self, mark: &Mark) {
        self.until_ns = mark.until_ns;
        self.ran_ns += u64::from(mark.ran_ns);
        for (sum, count) in self.counts.iter_mut().zip(mark.counts) {
            *sum += u64::from(count);
        }
    }

    /// Appends the event; times are in microseconds.
    fn write(&self, out: &mut String, trace: &Trace) {
        let mut args = Map::new();
        args.insert("ran_us".into(), us(self.ran_ns).into());
        for (counter, count) in COUNTED.iter().zip(self.counts) {
            if count > 0 {
                args.insert(counter.name().into(), count.into());
            }
        }
        let event = json!({
            "name": self.name,
            "ph": "X",
            "pid": std::process::id(),
            "tid": trace.shard.0,
            "ts": us(self.from_ns),
            "dur": us(self.until_ns.saturating_sub(self.from_ns)),
            "args": args,
        });
        write!(out, ",\n{event}").expect("a string takes it");
    }
}

fn us(ns: u64) -> f64 {
    ns as f64 / 1_000.0
}

/// The trace as JSON.
pub fn json(info: &ProcessInfo, trace: &Trace) -> String {
    let name = |what: &str, name: String| {
        let (pid, tid) = (std::process::id(), trace.shard.0);
        json!({ "name": what, "ph": "M", "pid": pid, "tid": tid, "args": { "name": name } })
    };
    let process = name("process_name", format!("shardgate {}", info.node));
    let thread = name("thread_name", format!("shard {}", trace.shard));
    let mut out = format!("{{\"traceEvents\":[\n{process},\n{thread}");
    let mut turn: Option<Slice> = None;
    let mut from_ns = 0;
    for mark in &trace.marks {
        let mut step = Slice::new(mark.step.name(), from_ns);
        step.extend(mark);
        match mark.step {
            Step::Wait => {
                if let Some(turn) = turn.take() {
                    turn.write(&mut out, trace);
                }
            }
            _ => turn.get_or_insert_with(|| Slice::new("turn", from_ns)).extend(mark),
        }
        step.write(&mut out, trace);
        from_ns = mark.until_ns;
    }
    if let Some(turn) = turn {
        turn.write(&mut out, trace);
    }
    let end = match trace.end {
        Some(TraceEnd::Complete) => "complete",
        Some(TraceEnd::Full) => "full: it has as many steps as a trace may have",
        None => "cut: the shard stopped to answer",
    };
    let about = json!({ "end": end, "version": env!("CARGO_PKG_VERSION") });
    write!(out, "\n],\n\"displayTimeUnit\":\"ns\",\"otherData\":{about}}}\n")
        .expect("a string takes it");
    out
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::tests::about;
    use super::*;
    use crate::ids::ShardId;
    use crate::stats::Counter;

    fn mark(step: Step, until_ns: u64, frames: u32) -> Mark {
        let mut counts = [0; COUNTED.len()];
        let n = COUNTED.iter().position(|counter| *counter == Counter::FramesIn).unwrap();
        counts[n] = frames;
        Mark { step, until_ns, ran_ns: 1_000, counts }
    }

    #[test]
    fn a_turn_holds_its_steps_and_ends_where_the_wait_begins() {
        let marks = vec![
            mark(Step::Wait, 10_500, 0),
            mark(Step::Read, 14_000, 3),
            mark(Step::Flush, 20_000, 0),
            mark(Step::Wait, 30_000, 0),
            mark(Step::Tick, 31_000, 0),
        ];
        let trace = Trace { shard: ShardId(2), marks, end: Some(TraceEnd::Complete) };
        let whole: Value = serde_json::from_str(&json(&about(), &trace)).unwrap();
        assert_eq!(whole["otherData"]["end"], "complete");
        let events = whole["traceEvents"].as_array().unwrap();
        let slices: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
        let shown = slices.iter().map(|event| {
            let time = |key: &str| event[key].as_f64().unwrap();
            (event["name"].as_str().unwrap(), time("ts"), time("dur"))
        });
        let expected = [
            ("wait", 0.0, 10.5),
            ("read", 10.5, 3.5),
            ("flush", 14.0, 6.0),
            ("turn", 10.5, 9.5),
            ("wait", 20.0, 10.0),
            ("tick", 30.0, 1.0),
            ("turn", 30.0, 1.0),
        ];
        assert_eq!(shown.collect::<Vec<_>>(), expected);
        let turn = slices.iter().find(|event| event["name"] == "turn").unwrap();
        assert_eq!((&turn["args"]["frames_in"], &turn["args"]["ran_us"]), (&json!(3), &json!(2.0)));
        assert_eq!((&turn["pid"], &turn["tid"]), (&json!(std::process::id()), &json!(2)));
    }
}
