//! Pushes that wait for a session whose client reads slowly, or that is away.
//!
//! They have no number yet: they get it when they are placed, so that what is more urgent, and what
//! is newer of its key, goes first.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::engine::groups::log::cost;
use crate::message::Micros;
use crate::push::Body;

/// The caps of what waits for one session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WaitingCaps {
    /// Number of pushes.
    pub items: usize,
    /// Bytes of them with their overhead.
    pub bytes: usize,
}

/// The pushes that wait for a session.
#[derive(Debug, Default)]
pub struct Waiting {
    /// In the order of their arrival.
    waits: VecDeque<Waits>,
    bytes: usize,
    /// Pushes that went because there were too many, of which the client was not told yet.
    pub dropped: u64,
}

/// A push that waits.
#[derive(Debug)]
struct Waits {
    body: Arc<Body>,
    /// Latest end of the pushes of its key that went for it. If it is over itself before that, the
    /// client lacks a push that it could still have had, and is told so.
    stands_for: Micros,
}

/// Pushes that went for one that was put in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Gone {
    /// It has not found room itself, and is one of those that were crowded out.
    pub itself: bool,
    /// It is a newer one of their key.
    pub replaced: u64,
    /// There was no room for all.
    pub crowded_out: u64,
}

impl Waiting {
    /// Whether none waits and the client was told of all that went.
    pub fn is_empty(&self) -> bool {
        self.waits.is_empty() && self.dropped == 0
    }

    /// Number of those that wait.
    pub fn len(&self) -> usize {
        self.waits.len()
    }

    /// Puts a push in. One of the same key goes for it; while there are too many, the least urgent
    /// ones go, of those the oldest.
    pub fn put(&mut self, body: Arc<Body>, caps: WaitingCaps) -> Gone {
        let mut gone = Gone::default();
        let mut stands_for = Micros(0);
        let same = |waits: &Waits| !body.key.is_empty() && waits.body.key == body.key;
        if let Some(older) = self.waits.iter().position(same).and_then(|at| self.remove(at)) {
            stands_for = older.stands_for.max(older.body.expires);
            gone.replaced += 1;
        }
        self.bytes += cost(&body);
        self.waits.push_back(Waits { body: body.clone(), stands_for });
        while self.waits.len() > caps.items || self.bytes > caps.bytes {
            let least = self.waits.iter().map(|waits| waits.body.priority).max();
            let is_least = |waits: &Waits| Some(waits.body.priority) == least;
            let Some(went) = self.waits.iter().position(is_least).and_then(|at| self.remove(at))
            else {
                break;
            };
            gone.itself |= Arc::ptr_eq(&went.body, &body);
            self.dropped += 1;
            gone.crowded_out += 1;
        }
        gone
    }

    fn remove(&mut self, index: usize) -> Option<Waits> {
        let waits = self.waits.remove(index)?;
        self.bytes -= cost(&waits.body);
        Some(waits)
    }

    /// Drops those whose time is over, and returns their number.
    pub fn expire(&mut self, now: Micros) -> u64 {
        let before = self.waits.len();
        let is_missed = |waits: &&Waits| waits.body.expires <= now && waits.stands_for > now;
        self.dropped += self.waits.iter().filter(is_missed).count() as u64;
        self.waits.retain(|waits| waits.body.expires > now);
        if self.waits.len() < before {
            self.bytes = self.waits.iter().map(|waits| cost(&waits.body)).sum();
        }
        (before - self.waits.len()) as u64
    }

    /// Takes the next one out: the most urgent, of those the oldest.
    pub fn take(&mut self) -> Option<Arc<Body>> {
        let first = self.waits.iter().map(|waits| waits.body.priority).min();
        let index = self.waits.iter().position(|waits| Some(waits.body.priority) == first)?;
        self.remove(index).map(|waits| waits.body)
    }

    /// Bytes of memory that it holds.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.bytes + self.waits.capacity() * size_of::<Waits>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::groups::log::tests::body_with;
    use crate::message::Priority;

    const CAPS: WaitingCaps = WaitingCaps { items: 3, bytes: 100_000 };
    const REPLACED: Gone = Gone { itself: false, replaced: 1, crowded_out: 0 };
    const CROWDED_OUT: Gone = Gone { itself: false, replaced: 0, crowded_out: 1 };

    fn of_class(key: &str, priority: Priority) -> Arc<Body> {
        Arc::new(Body { priority, ..(*body_with(key, 1)).clone() })
    }

    fn until(key: &str, end: u64) -> Arc<Body> {
        Arc::new(Body { expires: Micros(end), ..(*body_with(key, 1)).clone() })
    }

    fn keys(waiting: &mut Waiting) -> Vec<String> {
        std::iter::from_fn(|| waiting.take()).map(|body| body.key.to_string()).collect()
    }

    #[test]
    fn the_newest_of_a_key_waits_and_the_most_urgent_goes_first() {
        let mut waiting = Waiting::default();
        assert_eq!(waiting.put(of_class("a", Priority::Normal), CAPS), Gone::default());
        assert_eq!(waiting.put(of_class("b", Priority::High), CAPS), Gone::default());
        assert_eq!(waiting.put(of_class("a", Priority::Normal), CAPS), REPLACED);
        assert_eq!((waiting.len(), waiting.dropped), (2, 0));
        assert_eq!(keys(&mut waiting), ["b", "a"]);
        assert!(waiting.is_empty());
    }

    #[test]
    fn when_too_many_wait_the_least_urgent_go_and_are_told() {
        let mut waiting = Waiting::default();
        for (key, class) in [("a", Priority::Normal), ("b", Priority::Low), ("c", Priority::Normal)]
        {
            assert_eq!(waiting.put(of_class(key, class), CAPS), Gone::default());
        }
        assert_eq!(waiting.put(of_class("d", Priority::Critical), CAPS), CROWDED_OUT);
        assert_eq!(waiting.put(of_class("e", Priority::Normal), CAPS), CROWDED_OUT);
        assert_eq!(waiting.dropped, 2);
        assert_eq!(keys(&mut waiting), ["d", "c", "e"]);
    }

    #[test]
    fn a_push_less_urgent_than_all_that_wait_finds_no_room() {
        let mut waiting = Waiting::default();
        for key in ["a", "b", "c"] {
            waiting.put(of_class(key, Priority::Normal), CAPS);
        }
        let gone = waiting.put(of_class("d", Priority::Low), CAPS);
        assert_eq!(gone, Gone { itself: true, ..CROWDED_OUT });
        assert_eq!((waiting.dropped, keys(&mut waiting).len()), (1, 3));
    }

    #[test]
    fn a_push_whose_time_is_over_is_not_taken() {
        let mut waiting = Waiting::default();
        waiting.put(until("a", 5), CAPS);
        waiting.put(of_class("b", Priority::Normal), CAPS);
        assert_eq!((waiting.expire(Micros(5)), waiting.dropped), (1, 0));
        assert_eq!(keys(&mut waiting), ["b"]);
        assert_eq!(waiting.memory_bytes(), size_of::<Waiting>() + 4 * size_of::<Waits>());
    }

    #[test]
    fn who_gets_neither_a_push_nor_the_one_that_went_for_it_is_told() {
        let mut waiting = Waiting::default();
        for (end, newer, newest) in [(u64::MAX, 5, 6), (9, 6, 5), (9, 5, 20), (4, 5, 5)] {
            waiting.put(until("a", end), CAPS);
            waiting.put(until("a", newer), CAPS);
            waiting.put(until("a", newest), CAPS);
            let late = waiting.expire(Micros(7));
            assert_eq!(late, u64::from(newest <= 7));
            // The client could have had the first one, had no other one come.
            assert_eq!(std::mem::take(&mut waiting.dropped), u64::from(late > 0 && end > 7));
            assert_eq!(keys(&mut waiting).len() as u64, 1 - late);
        }
    }
}
