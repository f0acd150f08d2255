//! The owners who are held back (promise 6), for those who run a gateway and want to know of it
//! before they are asked: a short list of them, and a log line when it has lasted for a while.

use crate::engine::Context;
use crate::engine::dispatcher::share::Level;
use crate::engine::pace::Pace;
use crate::engine::source::Source;
use crate::ids::InstanceId;
use crate::message::Micros;
use crate::stats::HeldOwner;

/// Time without a refusal after which the next one is the first again: a second.
const GAP_US: u64 = 1_000_000;
/// Time for which an owner must have been refused: five seconds. A burst is no news.
const LONG_US: u64 = 5_000_000;
/// Time between two lines of a shard: ten seconds.
const EVERY_US: u64 = 10_000_000;

/// Owners in the list: those that were refused last.
const OWNERS_MAX: usize = 8;
/// Time without a refusal after which an owner's next one is its first again: a minute.
const FORGET_US: u64 = 60_000_000;

/// Refusals of messages whose owner has its share of a queue.
#[derive(Debug, Default)]
pub(crate) struct HeldBack {
    /// The first of those that go on, and the last one.
    since: Micros,
    last: Micros,
    /// Lines about those that go on for long.
    lines: Pace,
    /// Owners that were refused, in no order.
    owners: Vec<HeldOwner>,
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

    /// Counts a refusal for its owner: the user, or the session of nobody. One that is new to a
    /// full list takes the place of the owner that was refused longest ago.
    fn list(&mut self, refused: HeldOwner) {
        let is_same = |owner: &&mut HeldOwner| match (&owner.user, &refused.user) {
            (Some(a), Some(b)) => a == b && owner.tenant == refused.tenant,
            (None, None) => owner.session == refused.session,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if let Some(owner) = self.owners.iter_mut().find(is_same) {
            let is_forgotten = refused.last.since(owner.last) > FORGET_US;
            let before = if is_forgotten { 0 } else { owner.count };
            *owner = HeldOwner { count: before + refused.count, ..refused };
        } else if self.owners.len() < OWNERS_MAX {
            self.owners.push(refused);
        } else if let Some(oldest) = self.owners.iter_mut().min_by_key(|owner| owner.last) {
            *oldest = refused;
        }
    }

    /// Owners that were refused, at most [`OWNERS_MAX`], in no order.
    pub fn owners(&self) -> &[HeldOwner] {
        &self.owners
    }

    /// Takes note of a refusal of a message of `from`, and logs it if owners have been held back
    /// for long. `held`: messages that wait on the level that is full.
    pub fn tell(
        &mut self,
        cx: &Context<'_>,
        from: &Source,
        instance: InstanceId,
        (level, held): (Level, usize),
        now: Micros,
    ) {
        let identity = from.user.as_deref();
        self.list(HeldOwner {
            session: from.session,
            user: identity.map(|identity| identity.user.clone()),
            tenant: identity.and_then(|identity| identity.tenant.clone()),
            instance,
            full: level.name(),
            held: held as u64,
            count: 1,
            last: now,
        });
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
    use std::sync::Arc;

    use super::*;
    use crate::ids::{SessionId, ShardId};

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

    #[test]
    fn the_owners_refused_last_are_listed_each_once_and_counted_anew_after_a_minute() {
        let mut held_back = HeldBack::default();
        let refused = |session: u64, user: Option<&str>, ms| HeldOwner {
            session: SessionId::new(ShardId(0), session.into()),
            user: user.map(Arc::from),
            tenant: None,
            instance: InstanceId(0),
            full: Level::Party.name(),
            held: 5,
            count: 1,
            last: Micros::from_ms(ms),
        };
        // Two sessions of a user are one owner, two of nobody are two.
        for (session, user) in [(1, Some("ann")), (2, Some("ann")), (3, None), (4, None)] {
            held_back.list(refused(session, user, session));
        }
        let counts: Vec<u64> = held_back.owners().iter().map(|owner| owner.count).collect();
        assert_eq!(counts, [2, 1, 1]);
        held_back.list(refused(2, Some("ann"), 50_000));
        held_back.list(refused(3, None, 70_000));
        let counts: Vec<u64> = held_back.owners().iter().map(|owner| owner.count).collect();
        assert_eq!(counts, [3, 1, 1], "a minute has passed for one");
        (10..100).for_each(|n| held_back.list(refused(n, None, 100_000 + n)));
        assert_eq!(held_back.owners().len(), OWNERS_MAX);
        assert!(held_back.owners().iter().all(|owner| owner.last >= Micros::from_ms(100_092)));
    }
}
