//! The bound of an ordered stop: how long control waits for the shards to end.

use std::time::{Duration, Instant};

use crate::limits::PAUSE_MS;

/// Time beyond `stop.grace` in which a shard writes its last errors and awaits the Close frames of
/// clients.
const STOP_MARGIN: Duration = Duration::from_secs(10);
/// Time between two looks at the clock during a stop, so that a gap between them is a pause of the
/// process. A pause is measured so much too short: a hundred of them fit into the margin.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The time at which a stop is given up. A time in which the process was stopped (SIGSTOP, a frozen
/// cgroup) is left out, as the shards leave it out of their grace.
#[derive(Debug)]
pub struct StopBound {
    until: Instant,
    /// The last look at the clock.
    seen: Instant,
}

impl StopBound {
    /// Of a stop that begins now.
    pub fn new(grace: Duration, now: Instant) -> Self {
        Self { until: now + grace + STOP_MARGIN, seen: now }
    }

    /// Looks at the clock: with each turn of control, and at [`Self::due`].
    pub fn look(&mut self, now: Instant) {
        let gap = now.saturating_duration_since(self.seen);
        if gap > Duration::from_millis(PAUSE_MS) {
            self.until += gap - LOOK_EVERY;
        }
        self.seen = now;
    }

    /// Whether the stop was to be complete by the last look.
    pub fn is_over(&self) -> bool {
        self.until <= self.seen
    }

    /// Time of the next look.
    pub fn due(&self) -> Instant {
        self.until.min(self.seen + LOOK_EVERY)
    }
}

const _: () = assert!(LOOK_EVERY.as_millis() < PAUSE_MS as u128);

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    #[test]
    fn a_pause_of_any_length_during_a_stop_takes_nothing_from_its_time() {
        for pause_s in [1, 40, 3_600] {
            let began = Instant::now();
            let mut stop = StopBound::new(GRACE, began);
            let mut now = began;
            let mut run = |stop: &mut StopBound, for_s: u64| {
                let end = now + Duration::from_secs(for_s);
                while now < end {
                    now = stop.due().max(now + Duration::from_millis(1)).min(end);
                    stop.look(now);
                }
                let over = stop.is_over();
                now += Duration::from_secs(pause_s);
                over
            };
            assert!(!run(&mut stop, 20));
            assert!(!run(&mut stop, 19), "the first pause does not count");
            assert!(run(&mut stop, 2), "40 s and two pauses have passed");
        }
    }

    #[test]
    fn without_a_pause_a_stop_is_given_up_after_grace_and_margin() {
        let mut now = Instant::now();
        let end = now + GRACE + STOP_MARGIN;
        let mut stop = StopBound::new(GRACE, now);
        while !stop.is_over() {
            now = stop.due();
            stop.look(now);
        }
        assert_eq!(now, end);
    }
}
