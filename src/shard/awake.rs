//! The time in which a shard ran, and the pauses in which it did not: its process was stopped or
//! frozen, or its core was taken away.
//!
//! The monotonic clock runs on through such a pause (only a suspended machine stops it), and bytes
//! go on to arrive in the kernel. So whoever is judged by the time since its last byte is judged by
//! what the shard itself did not do, unless pauses are left out.

use std::cell::Cell;
use std::rc::Rc;

use crate::limits::{PAUSE_MS, TICK_MS};
use crate::message::Micros;

const PAUSE_US: u64 = PAUSE_MS * 1000;
/// Part of a gap that is no pause, but the wait for the tick.
const TICK_US: u64 = TICK_MS * 1000;

/// The clock of a shard without its pauses. Copies share one state.
#[derive(Clone, Debug, Default)]
pub(crate) struct AwakeClock(Rc<Cell<Began>>);

/// The begin of the present turn.
#[derive(Clone, Copy, Debug, Default)]
struct Began {
    /// By the monotonic clock; `None` before the first turn.
    at: Option<Micros>,
    /// Microseconds of pauses before it.
    paused_us: u64,
}

impl AwakeClock {
    /// Begins a turn at `now`. If the shard was stopped since the begin of the last one: for how
    /// many microseconds.
    pub(crate) fn begin_turn(&self, now: Micros) -> Option<u64> {
        let Began { at, paused_us } = self.0.get();
        let gap = at.map_or(0, |at| now.since(at));
        // The clock has come as far as a pause is long, see below, and never goes back.
        let paused_us = paused_us + gap.saturating_sub(PAUSE_US);
        self.0.set(Began { at: Some(now), paused_us });
        (gap > PAUSE_US).then(|| gap - TICK_US)
    }

    /// The time `now` without the pauses: it is never further from the begin of the turn than a
    /// pause is long, so a pause that no turn has noticed yet is left out, too.
    pub(crate) fn awake(&self, now: Micros) -> Micros {
        let Began { at, paused_us } = self.0.get();
        let now = at.map_or(now, |at| now.min(Micros(at.0 + PAUSE_US)));
        Micros(now.0.saturating_sub(paused_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pause_is_left_out_whether_a_turn_has_noticed_it_or_not() {
        let clock = AwakeClock::default();
        assert_eq!(clock.begin_turn(Micros(5_000_000)), None, "the first turn");
        assert_eq!(clock.begin_turn(Micros(5_000_000 + PAUSE_US)), None, "busy, not stopped");
        let before = Micros(5_000_000 + PAUSE_US);
        let after = Micros(before.0 + 3_600_000_000);
        assert_eq!(clock.awake(after), Micros(before.0 + PAUSE_US), "nobody has noticed yet");
        assert_eq!(clock.begin_turn(after), Some(3_600_000_000 - TICK_US));
        assert_eq!(clock.awake(after), Micros(before.0 + PAUSE_US), "and it has not gone back");
    }

    proptest! {
        #[test]
        fn time_without_pauses_is_never_faster_than_time(
            gaps in prop::collection::vec(0..2_000_000_u64, 1..50),
        ) {
            let clock = AwakeClock::default();
            let mut now = Micros(0);
            clock.begin_turn(now);
            for gap in gaps {
                let (was, then) = (now, clock.awake(now));
                now.0 += gap;
                let before_the_turn = clock.awake(now);
                clock.begin_turn(now);
                prop_assert_eq!(clock.awake(now), before_the_turn);
                let passed = clock.awake(now).since(then);
                prop_assert!(passed <= now.since(was));
                prop_assert!(gap > PAUSE_US || passed == gap, "{} of {}", passed, gap);
            }
        }
    }
}
