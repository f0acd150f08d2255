//! Runs: what an owner has waiting goes into a call together, so that its client gets the answers
//! in one write.

use std::cmp::Reverse;

use super::{Backlog, Entry, Look, TOGETHER_US_MAX};
use crate::ids::OwnerKey;

/// Most messages of an owner that one call takes in a row: as many as a client may have without an
/// answer by default. Answers that come in one call are one write to their client; what that saves
/// stands in perf/NOTES.md.
pub(super) const RUN: usize = 32;
/// Time in the order by which the last message of a run may be less urgent than the first: 5 ms,
/// the delay of the class high, so that a run holds up no class for longer than that.
const RUN_US_MAX: u64 = 5_000;

/// Requests of one owner that a call takes in a row. They are charged together, at its end: a
/// charge is some steps on each level of the tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    owner: OwnerKey,
    length: usize,
    /// Virtual deadline of the first one: nobody else's was more urgent.
    began_us: u64,
    /// Cost that is not charged yet.
    owed_us: u64,
}

impl Backlog {
    /// The next request of the owner of the last one, for the same call, while the run is short.
    /// The owner pays for what it gets so, and waits the longer for its next turn.
    pub fn next_of_run(&mut self, cost_us: u64, look: &mut Look<'_>) -> Option<(Entry, OwnerKey)> {
        let Run { owner, length, began_us, .. } = self.run?;
        if length >= RUN || length as u64 * cost_us >= TOGETHER_US_MAX {
            return None;
        }
        let entry = self.first_where(owner, |_| true, look)?;
        (entry.0.0 <= began_us.saturating_add(RUN_US_MAX)).then_some((entry, owner))
    }

    /// Takes the request that [`Self::next`] told, of `bytes`, into a call, and charges its owner
    /// `cost_us`.
    pub fn take(&mut self, owner: OwnerKey, bytes: usize, cost_us: u64) {
        let taken = self.node_mut(owner).entries.pop();
        match self.run.as_mut().filter(|run| run.owner == owner) {
            Some(run) => {
                run.length += 1;
                run.owed_us += cost_us;
            }
            None => {
                self.end_run();
                let began_us = taken.map_or(0, |Reverse(((deadline_us, ..), ..))| deadline_us);
                self.run = Some(Run { owner, length: 1, began_us, owed_us: cost_us });
            }
        }
        self.count_in_flight(owner);
        self.leave(owner, bytes);
    }

    /// Ends a run: its owner is charged for it.
    pub(super) fn end_run(&mut self) {
        if let Some(Run { owner, owed_us, .. }) = self.run.take() {
            self.charge(owner, owed_us);
        }
    }
}
