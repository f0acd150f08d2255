//! Traces that are recorded: at most one a shard. A trace is complete when the shard has sent its
//! last piece; one whose shard ends, or stops to answer, is what has come until then.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::ids::ShardId;
use crate::trace::{MARKS_MAX, Mark, Piece, TraceEnd};

/// Time after the end of a trace in which its last piece may come; a shard sends it with its next
/// turn, which takes milliseconds.
const LATE_MAX: Duration = Duration::from_secs(1);
/// Traces at once: each takes 6 MB of memory, and a few times as much as JSON.
const TRACES_MAX: usize = 4;

/// A trace of a shard.
#[derive(Clone, Debug)]
pub struct Trace {
    pub shard: ShardId,
    pub marks: Vec<Mark>,
    /// How it ended; `None` = the shard stopped to answer.
    pub end: Option<TraceEnd>,
}

/// Reason why there is no trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TraceRefusal {
    /// There are only so many shards.
    NoSuchShard(usize),
    /// The shard does not serve, so that it has no turns.
    NotServing,
    /// The shard is being traced, or too many others are.
    Busy,
}

/// Where a trace goes to.
pub type TraceReply = oneshot::Sender<Result<Trace, TraceRefusal>>;

#[derive(Debug)]
struct OpenTrace {
    number: u64,
    until: Instant,
    trace: Trace,
    reply: TraceReply,
}

/// The traces under way.
#[derive(Debug, Default)]
pub struct Traces {
    open: Vec<OpenTrace>,
    last_number: u64,
}

impl Traces {
    /// Notes a trace of `shard` that is to last so long, and gives its number; `None` = it is
    /// refused, and answered.
    pub fn begin(
        &mut self,
        shard: ShardId,
        lasts: Duration,
        reply: TraceReply,
        now: Instant,
    ) -> Option<u64> {
        let is_busy = self.open.iter().any(|open| open.trace.shard == shard);
        if is_busy || self.open.len() >= TRACES_MAX {
            // The client may have gone away.
            let _ = reply.send(Err(TraceRefusal::Busy));
            return None;
        }
        self.last_number += 1;
        let (number, until) = (self.last_number, now + lasts + LATE_MAX);
        let trace = Trace { shard, marks: Vec::new(), end: None };
        self.open.push(OpenTrace { number, until, trace, reply });
        Some(number)
    }

    /// Takes in a piece; drops one that comes too late.
    pub fn take(&mut self, mut piece: Piece) {
        let Some(open) = self.open.iter_mut().find(|open| open.number == piece.number) else {
            return;
        };
        debug_assert!(open.trace.marks.len() + piece.marks.len() <= MARKS_MAX);
        open.trace.marks.append(&mut piece.marks);
        open.trace.end = piece.end;
    }

    /// Ends the traces of a shard that has ended.
    pub fn shard_ended(&mut self, shard: ShardId, now: Instant) {
        for open in self.open.iter_mut().filter(|open| open.trace.shard == shard) {
            open.until = now;
        }
    }

    /// Replies to those whose trace is complete or late.
    pub fn turn(&mut self, now: Instant) {
        let done = |open: &mut OpenTrace| open.trace.end.is_some() || open.until <= now;
        for open in self.open.extract_if(.., done) {
            let _ = open.reply.send(Ok(open.trace));
        }
    }

    /// End of the first trace's time.
    pub fn due(&self) -> Option<Instant> {
        self.open.iter().map(|open| open.until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{COUNTED, Step};

    const SECOND: Duration = Duration::from_secs(1);

    fn piece(number: u64, end: Option<TraceEnd>) -> Piece {
        let counts = [0; COUNTED.len()];
        let mark = Mark { step: Step::Wait, until_ns: 5_000, ran_ns: 0, counts };
        Piece { number, marks: vec![mark], end }
    }

    #[test]
    fn a_trace_is_all_pieces_of_its_shard_and_the_next_may_follow() {
        let (now, mut traces) = (Instant::now(), Traces::default());
        let (reply, mut result) = oneshot::channel();
        let number = traces.begin(ShardId(1), SECOND, reply, now).unwrap();
        let (reply, mut refused) = oneshot::channel();
        assert_eq!(traces.begin(ShardId(1), SECOND, reply, now), None);
        assert_eq!(refused.try_recv().unwrap().unwrap_err(), TraceRefusal::Busy);
        traces.take(piece(number, None));
        traces.take(piece(number + 1, Some(TraceEnd::Complete)));
        traces.turn(now);
        assert!(result.try_recv().is_err(), "that was another trace's piece");
        traces.take(piece(number, Some(TraceEnd::Complete)));
        traces.turn(now);
        let trace = result.try_recv().unwrap().unwrap();
        assert_eq!((trace.marks.len(), trace.end), (2, Some(TraceEnd::Complete)));
        let (reply, _result) = oneshot::channel();
        assert!(traces.begin(ShardId(1), SECOND, reply, now).is_some());
    }

    #[test]
    fn a_trace_of_a_shard_that_stops_to_answer_is_what_has_come() {
        let (now, mut traces) = (Instant::now(), Traces::default());
        let (reply, mut late) = oneshot::channel();
        let number = traces.begin(ShardId(0), SECOND, reply, now).unwrap();
        let (reply, mut ended) = oneshot::channel();
        traces.begin(ShardId(1), SECOND, reply, now).unwrap();
        traces.take(piece(number, None));
        traces.shard_ended(ShardId(1), now);
        traces.turn(now);
        assert_eq!(ended.try_recv().unwrap().unwrap().marks.len(), 0);
        assert_eq!(traces.due(), Some(now + SECOND + LATE_MAX));
        traces.turn(now + SECOND + LATE_MAX);
        let trace = late.try_recv().unwrap().unwrap();
        assert_eq!((trace.marks.len(), trace.end, traces.due()), (1, None, None));
    }

    #[test]
    fn traces_of_all_shards_at_once_are_refused() {
        let (now, mut traces) = (Instant::now(), Traces::default());
        let begun = (0..10).filter(|shard| {
            let (reply, _) = oneshot::channel();
            traces.begin(ShardId(*shard), SECOND, reply, now).is_some()
        });
        assert_eq!(begun.count(), TRACES_MAX);
    }
}
