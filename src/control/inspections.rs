//! Queries under way: sent to every shard that serves, answered when all shards have answered or
//! the time is over.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::ids::ShardId;
use crate::inspect::{Inspection, Query};

/// Longest wait for a shard's answer; slower ones are left out. A shard answers between two turns,
/// which take milliseconds.
const QUERY_TIMEOUT: Duration = Duration::from_secs(1);
/// Queries of operators at once; more are refused. Each may cost a shard a pass over its
/// connections.
const QUERIES_MAX: usize = 4;
/// Queries of callers at the doors of pushes at once; more are refused. Most cost a shard a
/// look-up; one for members costs a pass over the group's on it, some 2 ms of 100,000.
pub const READS_MAX: usize = 16;

/// Answers of all shards to one query.
#[derive(Clone, Debug, Default)]
pub struct QueryResult {
    /// Answers that came in time, by shard.
    pub answers: Vec<(ShardId, Inspection)>,
    /// Shards that did not answer in time.
    pub silent: Vec<ShardId>,
}

#[derive(Debug)]
struct OpenQuery {
    number: u64,
    is_of_operator: bool,
    until: Instant,
    result: QueryResult,
    reply: oneshot::Sender<QueryResult>,
}

/// The queries under way.
#[derive(Debug, Default)]
pub struct Inspections {
    open: Vec<OpenQuery>,
    last_number: u64,
}

impl Inspections {
    /// Notes a query that `shards` are to answer and gives its number. With too many under way it
    /// is refused: `None`, and `reply` is dropped.
    pub fn begin(
        &mut self,
        query: &Query,
        shards: Vec<ShardId>,
        reply: oneshot::Sender<QueryResult>,
        now: Instant,
    ) -> Option<u64> {
        let is_of_operator = query.is_of_operator();
        let max = if is_of_operator { QUERIES_MAX } else { READS_MAX };
        let open = self.open.iter().filter(|open| open.is_of_operator == is_of_operator);
        if open.count() >= max {
            return None;
        }
        self.last_number += 1;
        let (number, until) = (self.last_number, now + QUERY_TIMEOUT);
        let result = QueryResult { answers: Vec::new(), silent: shards };
        self.open.push(OpenQuery { number, is_of_operator, until, result, reply });
        Some(number)
    }

    /// Takes in the answer of a shard; drops one that comes too late.
    pub fn take(&mut self, shard: ShardId, number: u64, inspection: Inspection) {
        let Some(open) = self.open.iter_mut().find(|open| open.number == number) else { return };
        open.result.silent.retain(|waiting| *waiting != shard);
        open.result.answers.push((shard, inspection));
    }

    /// Marks a shard as ended: nothing more is expected of it.
    pub fn shard_ended(&mut self, shard: ShardId) {
        for open in &mut self.open {
            open.result.silent.retain(|waiting| *waiting != shard);
        }
    }

    /// Replies to the queries that are complete or late.
    pub fn turn(&mut self, now: Instant) {
        let done = |open: &mut OpenQuery| open.result.silent.is_empty() || open.until <= now;
        for mut open in self.open.extract_if(.., done) {
            open.result.answers.sort_by_key(|(shard, _)| *shard);
            // The client may have gone away.
            let _ = open.reply.send(open.result);
        }
    }

    /// End of the first query's time.
    pub fn due(&self) -> Option<Instant> {
        self.open.iter().map(|open| open.until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOP: Query = Query::TopTalkers(1);

    #[test]
    fn a_result_is_complete_or_says_who_is_missing() {
        let (now, shards) = (Instant::now(), || vec![ShardId(0), ShardId(1)]);
        let none = || Inspection::Conns(Vec::new());
        let mut inspections = Inspections::default();
        let (reply, mut first_result) = oneshot::channel();
        let first = inspections.begin(&TOP, shards(), reply, now).unwrap();
        let (reply, mut second_result) = oneshot::channel();
        let second = inspections.begin(&TOP, shards(), reply, now).unwrap();
        inspections.take(ShardId(1), first, none());
        inspections.take(ShardId(0), second, none());
        inspections.take(ShardId(0), 77, none());
        inspections.turn(now);
        assert!(first_result.try_recv().is_err());
        assert_eq!(inspections.due(), Some(now + QUERY_TIMEOUT));
        inspections.take(ShardId(0), first, none());
        inspections.turn(now);
        let result = first_result.try_recv().unwrap();
        let by: Vec<u16> = result.answers.iter().map(|(shard, _)| shard.0).collect();
        assert_eq!((by, result.silent.len()), (vec![0, 1], 0));
        inspections.turn(now + QUERY_TIMEOUT);
        let result = second_result.try_recv().unwrap();
        assert_eq!((result.answers.len(), result.silent), (1, vec![ShardId(1)]));
        assert_eq!(inspections.due(), None);
    }

    #[test]
    fn too_many_queries_are_refused_at_once() {
        let now = Instant::now();
        let mut inspections = Inspections::default();
        let mut results = Vec::new();
        for _ in 0..QUERIES_MAX {
            let (reply, result) = oneshot::channel();
            assert!(inspections.begin(&TOP, vec![ShardId(0)], reply, now).is_some());
            results.push(result);
        }
        let (reply, mut refused) = oneshot::channel();
        assert_eq!(inspections.begin(&TOP, vec![ShardId(0)], reply, now), None);
        assert_eq!(refused.try_recv().unwrap_err(), oneshot::error::TryRecvError::Closed);
        let (reply, result) = oneshot::channel();
        let read = Query::Groups(Vec::new());
        let begun = inspections.begin(&read, vec![ShardId(0)], reply, now);
        assert!(begun.is_some(), "callers have places of their own");
        results.push(result);
        inspections.shard_ended(ShardId(0));
        inspections.turn(now);
        assert!(results.iter_mut().all(|result| result.try_recv().is_ok()));
    }
}
