//! The recording of a trace ([`crate::trace`]): while there is one, each step of a turn leaves a
//! mark. Without one a step costs a look at a pointer.

use crate::lanes::LaneRefusal;
use crate::mailbox::ShardEvent;
use crate::shard::turn::ShardIo;
use crate::stats::Counters;
use crate::trace::{
    COUNTED, MARKS_MAX, Mark, Nanos, PIECE_MARKS, Piece, STEP_NS_MIN, Step, TraceEnd,
};

/// A trace that is recorded.
#[derive(Debug)]
pub(crate) struct Tracer {
    number: u64,
    began: Nanos,
    /// Longest time of the trace, in nanoseconds.
    lasts_ns: u64,
    /// Time and counters at the last mark.
    last: Nanos,
    counted: [u64; COUNTED.len()],
    /// Marks that are not sent yet.
    marks: Vec<Mark>,
    /// Marks that were sent.
    sent: usize,
}

/// Begins a trace, in place of the one that is recorded.
pub(super) fn begin(io: &mut impl ShardIo, number: u64, lasts_ms: u64) {
    let now = io.nanos();
    io.with(|engine, state| {
        let counted = values(engine.counters());
        state.tracer = Some(Box::new(Tracer::new(number, lasts_ms, now, counted)));
    });
}

/// Notes the end of a step, if a trace is recorded.
#[inline]
pub(super) fn step(io: &mut impl ShardIo, step: Step) {
    if io.state().tracer.is_some() {
        record(io, step);
    }
}

#[cold]
fn record(io: &mut impl ShardIo, step: Step) {
    let now = io.nanos();
    let piece = io.with(|engine, state| {
        let tracer = state.tracer.as_mut()?;
        tracer.mark(step, now, values(engine.counters()));
        // Between turns, so that sending delays no step but the wait.
        if step == Step::Wait { tracer.piece() } else { None }
    });
    if let Some(piece) = piece {
        send(io, piece);
    }
}

/// Sends a piece to control; one that its lane has no room for is kept for the next turn.
fn send(io: &mut impl ShardIo, piece: Piece) {
    let shard = io.state().shard;
    let is_last = piece.end.is_some();
    match io.try_send_event(ShardEvent::Trace { shard, piece }) {
        Ok(()) if !is_last => {}
        Err(LaneRefusal::Full(ShardEvent::Trace { piece, .. })) => {
            if let Some(tracer) = &mut io.state().tracer {
                tracer.take_back(piece.marks);
            }
        }
        // Over, or nobody listens any more.
        Ok(()) | Err(_) => io.state().tracer = None,
    }
}

fn values(counters: &Counters) -> [u64; COUNTED.len()] {
    COUNTED.map(|counter| counters.get(counter))
}

impl Tracer {
    fn new(number: u64, lasts_ms: u64, now: Nanos, counted: [u64; COUNTED.len()]) -> Self {
        let lasts_ns = lasts_ms * 1_000_000;
        Self { number, began: now, lasts_ns, last: now, counted, marks: Vec::new(), sent: 0 }
    }

    /// Notes the end of a step at `now`, with the values of the counters.
    fn mark(&mut self, step: Step, now: Nanos, counted: [u64; COUNTED.len()]) {
        let ns = now.passed.saturating_sub(self.last.passed);
        if ns < STEP_NS_MIN && counted == self.counted || self.is_full() {
            return;
        }
        let mut counts = [0; COUNTED.len()];
        for (count, (now, before)) in counts.iter_mut().zip(counted.iter().zip(self.counted)) {
            *count = now.saturating_sub(before) as u32;
        }
        // Room for a whole piece: growth while it is recorded would be in the trace.
        if self.marks.is_empty() {
            self.marks.reserve(PIECE_MARKS);
        }
        self.marks.push(Mark {
            step,
            until_ns: now.passed.saturating_sub(self.began.passed),
            ran_ns: now.ran.saturating_sub(self.last.ran) as u32,
            counts,
        });
        (self.last, self.counted) = (now, counted);
    }

    fn is_full(&self) -> bool {
        self.sent + self.marks.len() >= MARKS_MAX
    }

    /// The marks that are to be sent now: a whole piece, or the last one.
    fn piece(&mut self) -> Option<Piece> {
        let end = match self.last.passed.saturating_sub(self.began.passed) >= self.lasts_ns {
            true => Some(TraceEnd::Complete),
            false => self.is_full().then_some(TraceEnd::Full),
        };
        if end.is_none() && self.marks.len() < PIECE_MARKS {
            return None;
        }
        let marks = std::mem::take(&mut self.marks);
        self.sent += marks.len();
        Some(Piece { number: self.number, marks, end })
    }

    /// Takes back the marks of a piece that was not sent.
    fn take_back(&mut self, marks: Vec<Mark>) {
        self.sent -= marks.len();
        self.marks = marks;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: [u64; COUNTED.len()] = [0; COUNTED.len()];

    fn at(us: u64) -> Nanos {
        Nanos { passed: us * 1_000, ran: us * 500 }
    }

    fn tracer() -> Tracer {
        Tracer::new(7, 1_000, at(100), NOTHING)
    }

    #[test]
    fn steps_follow_each_other_with_what_they_counted() {
        let mut tracer = tracer();
        tracer.mark(Step::Wait, at(130), NOTHING);
        let mut counted = NOTHING;
        counted[1] = 4;
        tracer.mark(Step::Read, at(150), counted);
        tracer.mark(Step::Flush, at(160), counted);
        let told: Vec<_> =
            tracer.marks.iter().map(|m| (m.step, m.until_ns, m.ran_ns, m.counts[1])).collect();
        let read = (Step::Read, 50_000, 10_000, 4);
        assert_eq!(told, [(Step::Wait, 30_000, 15_000, 0), read, (Step::Flush, 60_000, 5_000, 0)]);
    }

    #[test]
    fn a_short_step_without_a_count_is_part_of_the_next_one() {
        let mut tracer = tracer();
        let short = Nanos { passed: 100_999, ran: 50_400 };
        tracer.mark(Step::Accept, short, NOTHING);
        tracer.mark(Step::Read, at(110), NOTHING);
        assert_eq!(tracer.marks.len(), 1);
        assert_eq!((tracer.marks[0].until_ns, tracer.marks[0].ran_ns), (10_000, 5_000));
        let mut counted = NOTHING;
        counted[0] = 1;
        tracer.mark(Step::Accept, Nanos { passed: 110_001, ran: 55_001 }, counted);
        assert_eq!(tracer.marks.len(), 2, "something was counted");
    }

    #[test]
    fn a_trace_ends_by_its_time_and_by_its_size() {
        let mut tracer = tracer();
        assert_eq!(tracer.piece(), None);
        tracer.mark(Step::Wait, at(1_000_100), NOTHING);
        let piece = tracer.piece().expect("the time is over");
        assert_eq!((piece.number, piece.end), (7, Some(TraceEnd::Complete)));

        let mut tracer = self::tracer();
        let mut pieces = 0;
        let end = (101..).find_map(|us| {
            tracer.mark(Step::Wait, at(2 * us), NOTHING);
            let piece = tracer.piece()?;
            pieces += 1;
            assert_eq!(piece.marks.len(), PIECE_MARKS);
            piece.end
        });
        assert_eq!((end, pieces * PIECE_MARKS), (Some(TraceEnd::Full), MARKS_MAX));
    }

    #[test]
    fn a_piece_that_was_not_sent_comes_again_with_what_followed() {
        let mut tracer = tracer();
        (101..=2_100).for_each(|us| tracer.mark(Step::Wait, at(2 * us), NOTHING));
        let piece = tracer.piece().expect("a whole piece");
        tracer.take_back(piece.marks.clone());
        tracer.mark(Step::Wait, at(2 * 2_101), NOTHING);
        let again = tracer.piece().expect("it is whole still");
        assert_eq!(again.marks.len(), PIECE_MARKS + 1);
        assert_eq!(again.marks[..PIECE_MARKS], piece.marks);
    }
}
