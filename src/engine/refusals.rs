//! How often refusals of clients are logged: each cause once a second at most.

use crate::engine::pace::Pace;
use crate::message::Micros;
use crate::stats::Counter;

/// Time between two lines of one cause of a shard: one second.
const EVERY_US: u64 = 1_000_000;

/// Causes that do not hide each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    /// The origin of a page is not listed.
    Origin,
    /// An upgrade request was answered with this HTTP status.
    Upgrade(u16),
    /// A connection was over the limit that this text tells.
    Limit(&'static str),
    /// A connection was closed with this code.
    Close(u16),
    /// What else has a counter of its own: a PROXY header, TLS, a token.
    Counted(Counter),
}

/// The causes seen so far: some thirty at most, as there are so many statuses, texts and counters.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Vec<(Cause, Pace)>);

impl Refusals {
    /// Takes note of a refusal. Returns the number of those since the cause's last line, this one
    /// included, if a line is due: then it is to be written.
    pub(crate) fn note(&mut self, cause: Cause, now: Micros) -> Option<u64> {
        if let Some((_, pace)) = self.0.iter_mut().find(|(known, _)| *known == cause) {
            return pace.note(EVERY_US, now);
        }
        let mut pace = Pace::default();
        let count = pace.note(EVERY_US, now);
        self.0.push((cause, pace));
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_line_a_second_of_each_cause_and_none_is_lost_from_the_count() {
        let mut refusals = Refusals::default();
        let mut lines: Vec<(u64, Cause, u64)> = Vec::new();
        let causes = [Cause::Origin, Cause::Upgrade(400), Cause::Upgrade(426)];
        // Four a millisecond, for five seconds.
        for n in 0..20_000u64 {
            for cause in causes {
                if let Some(count) = refusals.note(cause, Micros(7 + n * 250)) {
                    lines.push((n, cause, count));
                }
            }
        }
        for cause in causes {
            let own: Vec<_> = lines.iter().filter(|line| line.1 == cause).collect();
            let told: Vec<_> = own.iter().map(|line| (line.0, line.2)).collect();
            assert_eq!(told, [(0, 1), (4000, 4000), (8000, 4000), (12000, 4000), (16000, 4000)]);
        }
        assert_eq!(refusals.note(Cause::Origin, Micros(60_000_000)), Some(4000), "the last ones");
    }
}
