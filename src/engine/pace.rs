//! How often a line is logged that others can cause as fast as they like: once in a while, with
//! the number of times since the last one, so that a flood costs a shard a comparison each.

use crate::message::Micros;

/// The lines of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Time of the last line.
    last: Option<Micros>,
    /// Number of times after it.
    since: u64,
}

impl Pace {
    /// Counts one more. Returns the number since the last line, this one included, if a line is
    /// due, as that was `every_us` ago or more: then it is to be written.
    pub fn note(&mut self, every_us: u64, now: Micros) -> Option<u64> {
        self.since += 1;
        if self.last.is_some_and(|at| now.since(at) < every_us) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.since))
    }
}
