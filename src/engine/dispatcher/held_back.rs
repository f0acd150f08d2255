//! The log line about owners who have been held back for a while (promise 6): those who run a
//! gateway want to know of it before they are asked.

use crate::engine::Context;
use crate::engine::dispatcher::share::Level;
use crate::engine::pace::Pace;
use crate::engine::source::Source;
use crate::ids::InstanceId;
use crate::message::Micros;

/// Time without a refusal after which the next one is the first again: a second.
const GAP_US: u64 = 1_000_000;
/// Time for which an owner must have been refused: five seconds. A burst is no news.
const LONG_US: u64 = 5_000_000;
/// Time between two lines of a shard: ten seconds.
const EVERY_US: u64 = 10_000_000;

/// Refusals of messages whose owner has its share of a queue, as far as the log is concerned.
#[derive(Debug, Default)]
pub(crate) struct HeldBack {
    /// The first of those that go on, and the last one.
    since: Micros,
    last: Micros,
    /// Lines about those that go on for long.
    lines: Pace,
}

impl HeldBack {
    /// Takes note of a refusal. Returns the number of those that went on for long, since the last
    /// line about them, if one is due.
    fn note(&mut self, now: Micros) -> Option<u64> {
        if now.since(self.last) > GAP_US {
            self.since = now;
        }
        self.last = now;
        let is_long = now.since(self.since) >= LONG_US;
        if is_long { self.lines.note(EVERY_US, now) } else { None }
    }

    /// Logs a refusal of a message of `from`, if owners have been held back for long. `held`:
    /// messages that wait on the level that is full.
    pub fn tell(
        &mut self,
        cx: &Context<'_>,
        from: &Source,
        instance: InstanceId,
        (level, held): (Level, usize),
        now: Micros,
    ) {
        let Some(count) = self.note(now) else { return };
        let user = from.user.as_deref();
        let tenant = user.and_then(|user| user.tenant.as_deref());
        let user = user.map(|user| &*user.user);
        let instance = cx.config.snapshot.instance(instance).map(|instance| &*instance.name);
        tracing::warn!(
            shard = cx.config.shard.0,
            instance,
            session = from.session.as_str(),
            user,
            tenant,
            full = level.name(),
            held,
            count,
            "owner_held_back: it has its share of the messages that wait for the instance, so more \
             of it are refused, and no one else's; is it a flood, or is the service too slow?"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_not_told_and_a_flood_once_in_ten_seconds() {
        let mut held_back = HeldBack::default();
        let at = Micros::from_ms;
        // Bursts of two seconds, one every four.
        for n in 0..10 {
            let told = (0..20).find_map(|k| held_back.note(at(n * 4_000 + k * 100)));
            assert_eq!(told, None);
        }
        let told = (0..300).filter_map(|k| Some((k, held_back.note(at(100_000 + k * 100))?)));
        let told: Vec<(u64, u64)> = told.collect();
        assert_eq!(told, [(50, 1), (150, 100), (250, 100)]);
    }
}
