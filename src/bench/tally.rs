//! The counts of a run. Every message that was sent ends in exactly one of them.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::envelope::Answer;
use super::fault::Fault;
use super::resumes::Resumes;
use super::times::histogram;

/// A count, with the first text that said why.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counted {
    /// How often.
    pub count: u64,
    /// The first sentence that came with it; empty = none did.
    pub example: String,
}

impl Counted {
    fn add(&mut self, count: u64, example: &str) {
        self.count += count;
        if self.example.is_empty() {
            example.clone_into(&mut self.example);
        }
    }
}

/// The counts.
#[derive(Debug)]
pub struct Tally {
    /// Messages that were sent: the sum of the next five and of those that `errors` count.
    pub sent: u64,
    /// Answered with success.
    pub ok: u64,
    /// Given up after the timeout.
    pub timed_out: u64,
    /// Their connection ended first.
    pub lost: u64,
    /// Still waiting when the run was ended early.
    pub unanswered: u64,
    /// Answered with an error, by its reason, or `STATUS_N` if the service itself answered.
    pub errors: BTreeMap<String, Counted>,
    /// Answers that came after their message was given up.
    pub late: u64,
    /// Answers to a message that had one.
    pub doubled: u64,
    /// Answers to nothing that was sent.
    pub unasked: u64,
    /// Successes that came while it was counted, whenever they were sent.
    pub ok_in_time: u64,
    /// Answers of any kind that came while it was counted.
    pub answered_in_time: u64,
    /// Times from due to success, in nanoseconds, by the kind of the message.
    pub latencies: Vec<Histogram<u64>>,
    /// Times from due to an error.
    pub error_latencies: Histogram<u64>,
    /// Times from the beginning of a connection to the end of its welcome or sign-in.
    pub connects: Histogram<u64>,
    /// Ends of connections by the gateway, by close code; `None` = without one.
    pub closes: BTreeMap<Option<u16>, Counted>,
    /// Attempts to connect that failed.
    pub faults: BTreeMap<Fault, Counted>,
    /// Connections that were replaced as planned.
    pub churned: u64,
    /// Messages that slow readers sent.
    pub slow_sent: u64,
    /// Answers that they read.
    pub slow_answered: u64,
    /// Sessions that are resumed.
    pub resumes: Resumes,
}

impl Tally {
    /// No counts, for a mix of so many kinds.
    pub fn new(kinds: usize) -> Self {
        Self {
            sent: 0,
            ok: 0,
            timed_out: 0,
            lost: 0,
            unanswered: 0,
            errors: BTreeMap::new(),
            late: 0,
            doubled: 0,
            unasked: 0,
            ok_in_time: 0,
            answered_in_time: 0,
            latencies: (0..kinds).map(|_| histogram()).collect(),
            error_latencies: histogram(),
            connects: histogram(),
            closes: BTreeMap::new(),
            faults: BTreeMap::new(),
            churned: 0,
            slow_sent: 0,
            slow_answered: 0,
            resumes: Resumes::new(),
        }
    }

    /// Counts the answer to a message of the kind `kind`, `ns` after that was due.
    pub fn answered(&mut self, answer: &Answer<'_>, kind: u16, ns: u64) {
        if answer.is_ok() {
            self.ok += 1;
            self.latencies[usize::from(kind)].saturating_record(ns);
            return;
        }
        self.error_latencies.saturating_record(ns);
        match self.errors.get_mut(&*answer.reason) {
            Some(known) => known.count += 1,
            None => {
                let key = match &*answer.reason {
                    "" => format!("STATUS_{}", answer.status),
                    reason => reason.to_owned(),
                };
                self.errors.entry(key).or_default().add(1, &answer.message);
            }
        }
    }

    /// Counts the end of a connection by the gateway.
    pub fn closed(&mut self, code: Option<u16>, why: &str) {
        self.closes.entry(code).or_default().add(1, why);
    }

    /// Counts a failed attempt to connect.
    pub fn failed(&mut self, fault: Fault, why: &str) {
        self.faults.entry(fault).or_default().add(1, why);
    }

    /// Times from due to success of all kinds.
    pub fn all_latencies(&self) -> Histogram<u64> {
        let mut all = histogram();
        for one in &self.latencies {
            all.add(one).expect("same bounds");
        }
        all
    }

    /// Messages that were answered with an error.
    pub fn refused(&self) -> u64 {
        self.errors.values().map(|counted| counted.count).sum()
    }

    /// Adds the counts of another thread.
    pub fn merge(&mut self, other: Self) {
        self.sent += other.sent;
        self.ok += other.ok;
        self.timed_out += other.timed_out;
        self.lost += other.lost;
        self.unanswered += other.unanswered;
        self.late += other.late;
        self.doubled += other.doubled;
        self.unasked += other.unasked;
        self.ok_in_time += other.ok_in_time;
        self.answered_in_time += other.answered_in_time;
        self.churned += other.churned;
        self.slow_sent += other.slow_sent;
        self.slow_answered += other.slow_answered;
        let add = |own: &mut Histogram<u64>, other| own.add(other).expect("same bounds");
        for (own, other) in self.latencies.iter_mut().zip(&other.latencies) {
            add(own, other);
        }
        add(&mut self.error_latencies, &other.error_latencies);
        add(&mut self.connects, &other.connects);
        self.resumes.merge(other.resumes);
        merge(&mut self.errors, other.errors);
        merge(&mut self.closes, other.closes);
        merge(&mut self.faults, other.faults);
    }
}

fn merge<K: Ord>(own: &mut BTreeMap<K, Counted>, other: BTreeMap<K, Counted>) {
    for (key, counted) in other {
        own.entry(key).or_default().add(counted.count, &counted.example);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart_and_their_times_are_not_those_of_successes() {
        let mut tally = Tally::new(1);
        let refused = Answer {
            status: 8,
            reason: "QUEUE_FULL".into(),
            message: "why".into(),
            ..Answer::default()
        };
        tally.answered(&Answer::default(), 0, 1000);
        tally.answered(&refused, 0, 9_000_000);
        tally.answered(&refused, 0, 9_000_000);
        tally.answered(&Answer { status: 9, ..Answer::default() }, 0, 9_000_000);
        let mut all = Tally::new(1);
        all.merge(tally);
        let counts: Vec<_> = all.errors.iter().map(|(key, n)| (key.as_str(), n.count)).collect();
        assert_eq!(counts, [("QUEUE_FULL", 2), ("STATUS_9", 1)]);
        assert_eq!((all.ok, all.refused(), &*all.errors["QUEUE_FULL"].example), (1, 3, "why"));
        assert!(all.latencies[0].max() < 2000 && all.error_latencies.min() > 8_000_000);
    }
}
