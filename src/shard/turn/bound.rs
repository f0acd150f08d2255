//! The bound of a turn's reading: work, and a look at the clock now and then.

use crate::engine::work;
use crate::message::Micros;

/// Work between two looks at the clock: 50 us. A look costs as much as a small message, and so many
/// of them are a few hundred.
const LOOK_EVERY: i64 = 50_000;
/// What the reading of a turn may still cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    began: Micros,
    us: u64,
    left: i64,
    /// Work since the clock was looked at.
    unseen: i64,
}

impl Bound {
    /// A reading of at most `us` that begins now.
    pub fn new(us: u64, now: Micros) -> Self {
        Self { began: now, us, left: work::of_time(us), unseen: 0 }
    }

    /// Work that is left.
    pub fn left(&self) -> i64 {
        self.left
    }

    /// Takes off what something has cost. If it took longer than its work says, or another process
    /// had the core meanwhile, the clock tells.
    #[inline]
    pub fn spend(&mut self, work: i64, now: impl FnOnce() -> Micros) {
        self.left -= work;
        self.unseen += work;
        if self.unseen >= LOOK_EVERY {
            self.unseen = 0;
            self.left =
                self.left.min(work::of_time(self.us.saturating_sub(now().since(self.began))));
        }
    }

    /// Time since the reading began.
    pub fn taken_us(&self, now: Micros) -> u64 {
        now.since(self.began)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_looked_at_each_fifty_microseconds_of_work() {
        let mut bound = Bound::new(1_000, Micros(7));
        bound.spend(LOOK_EVERY - 1, || unreachable!("there is no need to look"));
        bound.spend(1, || Micros(7 + 40));
        assert_eq!(bound.left(), 950_000, "the units are on the safe side here");
        bound.spend(LOOK_EVERY, || Micros(7 + 600));
        assert_eq!(bound.left(), 400_000, "they were not, or somebody else had the core");
        bound.spend(LOOK_EVERY, || Micros(7 + 3_000));
        assert!(bound.left() <= 0);
    }
}
