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
    bodies: VecDeque<Arc<Body>>,
    bytes: usize,
    /// Pushes that went because there were too many, of which the client was not told yet.
    pub dropped: u64,
}

/// Pushes that went for one that was put in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Gone {
    /// It is a newer one of their key.
    pub replaced: u64,
    /// There was no room for all.
    pub crowded_out: u64,
}

impl Waiting {
    /// Whether none waits and the client was told of all that went.
    pub fn is_empty(&self) -> bool {
        self.bodies.is_empty() && self.dropped == 0
    }

    /// Number of those that wait.
    pub fn len(&self) -> usize {
        self.bodies.len()
    }

    /// Puts a push in. One of the same key goes for it; while there are too many, the least urgent
    /// ones go, of those the oldest.
    pub fn put(&mut self, body: Arc<Body>, caps: WaitingCaps) -> Gone {
        let mut gone = Gone::default();
        let same = |waits: &Arc<Body>| !body.key.is_empty() && waits.key == body.key;
        if let Some(older) = self.bodies.iter().position(same) {
            self.remove(older);
            gone.replaced += 1;
        }
        self.bytes += cost(&body);
        self.bodies.push_back(body);
        while self.bodies.len() > caps.items || self.bytes > caps.bytes {
            let least = self.bodies.iter().map(|body| body.priority).max();
            let Some(index) = self.bodies.iter().position(|b| Some(b.priority) == least) else {
                break;
            };
            self.remove(index);
            self.dropped += 1;
            gone.crowded_out += 1;
        }
        gone
    }

    fn remove(&mut self, index: usize) {
        if let Some(body) = self.bodies.remove(index) {
            self.bytes -= cost(&body);
        }
    }

    /// Takes the next one out that may still be delivered: the most urgent, of those the oldest.
    /// Returns also how many were too late.
    pub fn take(&mut self, now: Micros) -> (Option<Arc<Body>>, u64) {
        let before = self.bodies.len();
        self.bodies.retain(|body| body.expires > now);
        let late = (before - self.bodies.len()) as u64;
        if late > 0 {
            self.bytes = self.bodies.iter().map(|body| cost(body)).sum();
        }
        let first = self.bodies.iter().map(|body| body.priority).min();
        let index = self.bodies.iter().position(|body| Some(body.priority) == first);
        let body = index.and_then(|index| self.bodies.remove(index));
        if let Some(body) = &body {
            self.bytes -= cost(body);
        }
        (body, late)
    }

    /// Bytes of memory that it holds.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.bytes + self.bodies.capacity() * size_of::<Arc<Body>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::groups::log::tests::body_with;
    use crate::message::Priority;

    const CAPS: WaitingCaps = WaitingCaps { items: 3, bytes: 100_000 };
    const REPLACED: Gone = Gone { replaced: 1, crowded_out: 0 };
    const CROWDED_OUT: Gone = Gone { replaced: 0, crowded_out: 1 };

    fn of_class(key: &str, priority: Priority) -> Arc<Body> {
        Arc::new(Body { priority, ..(*body_with(key, 1)).clone() })
    }

    fn keys(waiting: &mut Waiting) -> Vec<String> {
        std::iter::from_fn(|| waiting.take(Micros(5)).0).map(|body| body.key.to_string()).collect()
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
    fn a_push_whose_time_is_over_is_not_taken() {
        let mut waiting = Waiting::default();
        let late = Body { expires: Micros(5), ..(*body_with("a", 1)).clone() };
        waiting.put(Arc::new(late), CAPS);
        waiting.put(of_class("b", Priority::Normal), CAPS);
        let (taken, late) = waiting.take(Micros(5));
        assert_eq!((taken.map(|body| body.key.clone()), late), (Some("b".into()), 1));
        assert_eq!(waiting.memory_bytes(), size_of::<Waiting>() + 4 * 8);
    }
}
