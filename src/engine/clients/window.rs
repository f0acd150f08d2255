//! Events in a window of fixed length.

use crate::message::Micros;

/// A count of events, and the time since which they are counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Window {
    since: Micros,
    count: u32,
}

impl Window {
    /// Counts `n` more, and returns how many there were in the present window of `length_us`.
    pub fn add(&mut self, n: u32, now: Micros, length_us: u64) -> u32 {
        if now.since(self.since) >= length_us {
            *self = Self { since: now, count: 0 };
        }
        self.count = self.count.saturating_add(n);
        self.count
    }

    /// Whether the window of the last event is over.
    pub fn has_ended(&self, now: Micros, length_us: u64) -> bool {
        now.since(self.since) >= length_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_counts_from_its_first_event() {
        let mut window = Window::default();
        assert_eq!(window.add(2, Micros(500), 1_000), 2);
        assert_eq!(window.add(3, Micros(999), 1_000), 5);
        assert_eq!(window.add(1, Micros(1_000), 1_000), 1);
        assert_eq!(window.add(u32::MAX, Micros(1_001), 1_000), u32::MAX);
    }
}
