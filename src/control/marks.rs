//! Marks: moments from which on a reader of `/histograms` asks for what has come since.
//!
//! Each answer to a reader that asks so sets a new mark, which is its next question. A mark is
//! given up when its reader shows the one after it, so a reader that goes from mark to mark holds
//! two at most, however often it asks. New readers push out the oldest marks: those of readers that
//! went away, and, with more than eight readers, of one that asks seldom.

use std::collections::VecDeque;
use std::time::Instant;

use super::gathering::Overview;
use crate::ids::ShardId;
use crate::stats::Histograms;

/// Marks that are kept: those of eight readers.
pub const MARKS_MAX: usize = 16;

/// The histograms of all shards at a moment.
#[derive(Clone, Debug)]
pub struct Moment {
    pub at: Instant,
    shards: Vec<(ShardId, Histograms)>,
}

impl Moment {
    /// The moment of `overview`: of a shard that was silent its last report.
    pub fn of(overview: &Overview) -> Self {
        let reports = overview.shards.iter().filter_map(|shard| shard.report.as_deref());
        let shards = reports.map(|report| (report.shard, report.histograms.clone())).collect();
        Self { at: overview.at, shards }
    }

    /// What each shard has recorded from this moment to that of `overview`.
    pub fn until(&self, overview: &Overview) -> Vec<(ShardId, Histograms)> {
        let Self { shards, .. } = Self::of(overview);
        let since = |(shard, mut now): (ShardId, Histograms)| {
            if let Some((_, before)) = self.shards.iter().find(|(id, _)| *id == shard) {
                now.subtract(before);
            }
            (shard, now)
        };
        shards.into_iter().map(since).collect()
    }
}

#[derive(Debug)]
struct Mark {
    number: u64,
    /// The mark that its reader showed.
    before: Option<u64>,
    moment: Moment,
}

/// The marks that are kept, oldest first.
#[derive(Debug, Default)]
pub struct Marks {
    last: u64,
    kept: VecDeque<Mark>,
}

impl Marks {
    /// The moment of mark `number`, which its reader shows; `None` = it is not kept any more.
    pub fn show(&mut self, number: u64) -> Option<&Moment> {
        let before = self.kept.iter().find(|mark| mark.number == number)?.before;
        self.kept.retain(|mark| Some(mark.number) != before);
        self.kept.iter().find(|mark| mark.number == number).map(|mark| &mark.moment)
    }

    /// Sets a mark for a reader that showed `before`, and gives its number.
    pub fn set(&mut self, before: Option<u64>, moment: Moment) -> u64 {
        if self.kept.len() == MARKS_MAX {
            self.kept.pop_front();
        }
        self.last += 1;
        self.kept.push_back(Mark { number: self.last, before, moment });
        self.last
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tests::report;
    use super::super::view::tests::gathered;
    use super::*;
    use crate::stats::Stage;

    fn moment() -> Moment {
        Moment { at: Instant::now(), shards: Vec::new() }
    }

    #[test]
    fn readers_that_ask_at_their_own_pace_keep_their_marks() {
        let mut marks = Marks::default();
        let slow = marks.set(None, moment());
        let mut fast = marks.set(None, moment());
        for _ in 0..1_000 {
            assert!(marks.show(fast).is_some());
            fast = marks.set(Some(fast), moment());
        }
        assert!(marks.show(slow).is_some() && marks.kept.len() == 3);
    }

    #[test]
    fn an_answer_that_was_lost_can_be_asked_for_again() {
        let mut marks = Marks::default();
        let first = marks.set(None, moment());
        marks.set(Some(first), moment());
        assert!(marks.show(first).is_some());
    }

    /// A reader may guess a mark that another one is about to set.
    #[test]
    fn after_a_mark_of_a_later_moment_there_is_nothing() {
        let mut overview = gathered();
        let mut later = report(ShardId(0));
        later.histograms.record(Stage::Whole, 700, 5);
        overview.shards[0].report = Some(Arc::new(later));
        let moment = Moment::of(&overview);
        overview.shards[0].report = Some(Arc::new(report(ShardId(0))));
        let since = moment.until(&overview);
        assert!(Stage::ALL.iter().all(|stage| since[0].1.get(*stage).is_empty()));
    }

    #[test]
    fn marks_of_readers_that_went_away_make_room() {
        let mut marks = Marks::default();
        let first = marks.set(None, moment());
        for _ in 0..100 {
            marks.set(None, moment());
        }
        assert_eq!(marks.kept.len(), MARKS_MAX);
        assert!(marks.show(first).is_none() && marks.show(101).is_some());
        assert!(marks.show(102).is_none(), "no such mark was set");
    }
}
