//! The counts of sessions that are resumed, and the times around a cut.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::pace::SECOND_NS;
use super::times::{Times, histogram};
use crate::wire::client;

/// Seconds after a cut whose answers are told apart; the sessions are back long before.
const SECONDS: u64 = 10;

/// The counts of a thread.
#[derive(Debug)]
pub struct Resumes {
    /// What sessions were told, by outcome, with its reason: `resumed`, `lost EXPIRED`.
    outcomes: BTreeMap<String, u64>,
    /// Connections that were lost or cut under a session.
    pub losses: u64,
    /// Sessions without a connection at the end.
    pub away: u64,
    /// Times from the loss of a connection to the next one on which the session goes on.
    back: Histogram<u64>,
    /// Time of the cut, in nanoseconds of the run; `u64::MAX` = there is none.
    pub cut: u64,
    /// Times from due to an answer: those that came in the second before the cut, and in each one
    /// after it.
    around: Vec<Histogram<u64>>,
}

impl Resumes {
    /// No counts.
    pub fn new() -> Self {
        Self {
            outcomes: BTreeMap::new(),
            losses: 0,
            away: 0,
            back: histogram(),
            cut: u64::MAX,
            around: Vec::new(),
        }
    }

    /// Counts what a session was told.
    pub fn told(&mut self, told: &client::Resumed) {
        let name = [&*told.outcome, &*told.reason].join(" ");
        *self.outcomes.entry(name.trim_end().to_owned()).or_default() += 1;
    }

    /// Counts the return of a session that was without a connection for `ns`.
    pub fn is_back(&mut self, ns: u64) {
        self.back.saturating_record(ns);
    }

    /// Counts an answer that came at `now`, `ns` after its message was due.
    pub fn answered(&mut self, now: u64, ns: u64) {
        let Some(index) = second(now, self.cut) else { return };
        if self.around.len() <= index {
            self.around.resize_with(index + 1, histogram);
        }
        self.around[index].saturating_record(ns);
    }

    /// The result, with the answers that were lost and doubled.
    pub fn resumed(&self, answers_lost: u64, answers_doubled: u64) -> Resumed {
        Resumed {
            outcomes: self.outcomes.clone(),
            losses: self.losses,
            away: self.away,
            answers_lost,
            answers_doubled,
            back_us: Times::of(&self.back),
            around_cut_us: self.around.iter().map(Times::of).collect(),
        }
    }

    /// Adds the counts of another thread.
    pub fn merge(&mut self, other: Self) {
        for (name, count) in other.outcomes {
            *self.outcomes.entry(name).or_default() += count;
        }
        self.losses += other.losses;
        self.away += other.away;
        self.back.add(other.back).expect("same bounds");
        let most = self.around.len().max(other.around.len());
        self.around.resize_with(most, histogram);
        for (own, other) in self.around.iter_mut().zip(&other.around) {
            own.add(other).expect("same bounds");
        }
    }
}

/// Place of an answer that came at `now`: 0 in the second before the cut, 1 in the first one after
/// it; `None` = not near it.
fn second(now: u64, cut: u64) -> Option<usize> {
    let since = now.checked_sub(cut.saturating_sub(SECOND_NS))?;
    (since / SECOND_NS <= SECONDS).then_some((since / SECOND_NS) as usize)
}

/// What came of the sessions of a run that resumes them.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Resumed {
    /// What sessions were told, by outcome, with its reason: `new`, `resumed`, `lost EXPIRED`.
    pub outcomes: BTreeMap<String, u64>,
    /// Connections that were lost or cut under a session.
    pub losses: u64,
    /// Sessions without a connection at the end.
    pub away: u64,
    /// Messages that count and have no answer: those whose session was lost, or to which none came
    /// within the timeout of the last resume.
    pub answers_lost: u64,
    /// Answers to a message that had one.
    pub answers_doubled: u64,
    /// From the loss of a connection to the next one on which the session goes on. The maximum is
    /// the time until all were back.
    pub back_us: Times,
    /// From due to an answer, of those that came in the second before the cut, and in each second
    /// after it; without a cut there are none.
    pub around_cut_us: Vec<Times>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart_by_the_second_around_the_cut() {
        let cut = 100 * SECOND_NS;
        for (now, place) in [
            (0, None),
            (99 * SECOND_NS - 1, None),
            (99 * SECOND_NS, Some(0)),
            (cut - 1, Some(0)),
            (cut, Some(1)),
            (cut + SECOND_NS, Some(2)),
            (cut + 10 * SECOND_NS - 1, Some(10)),
            (cut + 10 * SECOND_NS, None),
        ] {
            assert_eq!(second(now, cut), place, "{now}");
        }
        assert_eq!(second(100 * SECOND_NS, u64::MAX), None);
        let (mut one, mut other) = (Resumes::new(), Resumes::new());
        (one.cut, other.cut) = (cut, cut);
        one.answered(cut - 1, 1_000);
        other.answered(cut + SECOND_NS, 2_000);
        one.merge(other);
        let counts: Vec<u64> = one.around.iter().map(Histogram::len).collect();
        assert_eq!(counts, [1, 0, 1]);
    }

    #[test]
    fn outcomes_have_their_reasons() {
        let mut resumes = Resumes::new();
        for (outcome, reason) in [("new", ""), ("lost", "EXPIRED"), ("lost", "EXPIRED")] {
            let (outcome, reason) = (outcome.into(), reason.into());
            resumes.told(&client::Resumed { outcome, reason, ..Default::default() });
        }
        let outcomes: Vec<_> = resumes.outcomes.iter().map(|(k, n)| (k.as_str(), *n)).collect();
        assert_eq!(outcomes, [("lost EXPIRED", 2), ("new", 1)]);
    }
}
