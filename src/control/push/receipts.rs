//! Work under way at the shards: what is awaited of which shard, and what has come. A waiter is
//! told once all of it has, or takes what there is when its time is over.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::ids::ShardId;
use crate::message::Reject;
use crate::push::{Counts, Position, Receipt, ReceiptPart};

/// Pieces of work that are awaited at once; more are refused. A piece is answered within some
/// milliseconds, so that 16,384 are a few million a second; at some 300 bytes each they are 5 MB.
pub const WAITS_MAX: usize = 16_384;

/// The answers that are awaited of a piece of work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Awaited {
    /// Of a push to a group: the number that its home gives it, and with `is_counted` the counts of
    /// the shards that the home names.
    #[allow(missing_docs)]
    Group { home: ShardId, is_counted: bool },
    /// One answer of each of these shards, with the addressees that are known to be theirs.
    Shards(Vec<(ShardId, u64)>),
}

/// What became of a piece of work, as far as it is known.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Outcome {
    /// Position of the push in its group.
    pub position: Option<Position>,
    /// Counts by shard: those that shards sent, and those that are sure without them.
    pub counts: Vec<(ShardId, Counts)>,
    /// Users without a session.
    pub offline_users: Vec<Box<str>>,
    /// Shards that did not answer in time, or ended before they did.
    pub silent: Vec<ShardId>,
    /// Refusals, by shard.
    pub refused: Vec<(ShardId, Reject)>,
    /// Shards that did it, or had done it before.
    pub answered: usize,
    /// Of those: shards that had seen the id of the push before.
    pub duplicates: usize,
    /// Sessions that joined.
    pub joined: u32,
    /// Sessions and users that are not here.
    pub offline: u32,
    /// Positions of groups that were joined.
    pub positions: Vec<(Arc<str>, Position)>,
    /// Sessions of which something was done.
    pub done: u32,
    /// Sessions that ended by it.
    pub ended: u32,
}

impl Outcome {
    /// Whether the push was delivered before under its id, and nobody got it now.
    pub fn is_duplicate(&self) -> bool {
        self.duplicates > 0 && self.duplicates == self.answered
    }

    /// The refusal, if nobody did anything.
    pub fn refusal(&self) -> Option<Reject> {
        let nothing = self.answered == 0 && self.silent.is_empty();
        self.refused.first().map(|(_, reject)| *reject).filter(|_| nothing)
    }

    /// Counts of all shards.
    pub fn total(&self) -> Counts {
        let mut total = Counts::default();
        self.counts.iter().for_each(|(_, counts)| total.add(counts));
        total
    }

    /// Notes a group's position: everything above the highest one comes to all who joined.
    fn add_position(&mut self, (group, position): (Arc<str>, Position)) {
        match self.positions.iter_mut().find(|(known, _)| *known == group) {
            Some((_, at)) if at.offset < position.offset => *at = position,
            Some(_) => {}
            None => self.positions.push((group, position)),
        }
    }

    fn add_silent(&mut self, shard: ShardId, addressees: u64) {
        self.silent.push(shard);
        self.counts.push((shard, Counts { unknown: addressees, ..Counts::default() }));
    }
}

#[derive(Debug)]
struct Wait {
    /// Home of the group that has not numbered the push.
    home: Option<ShardId>,
    is_counted: bool,
    /// Shards that have not answered, with the addressees that are known to be theirs.
    shards: Vec<(ShardId, u64)>,
    outcome: Outcome,
    done: oneshot::Sender<Outcome>,
}

impl Wait {
    fn is_complete(&self) -> bool {
        self.home.is_none() && self.shards.is_empty()
    }

    /// Strikes a shard off those that are awaited; its known addressees, if it was.
    fn strike(&mut self, shard: ShardId) -> Option<u64> {
        let place = self.shards.iter().position(|(awaited, _)| *awaited == shard)?;
        Some(self.shards.swap_remove(place).1)
    }

    /// Notes that nothing will come of this shard any more.
    fn end_shard(&mut self, shard: ShardId) {
        if self.home == Some(shard) {
            self.home = None;
            self.outcome.counts.clear();
            self.outcome.add_silent(shard, 0);
        }
        if let Some(addressees) = self.strike(shard) {
            self.outcome.add_silent(shard, addressees);
        }
    }

    /// Notes that nothing more will come at all.
    fn end(mut self) -> Outcome {
        if let Some(home) = self.home {
            self.end_shard(home);
        }
        for (shard, addressees) in std::mem::take(&mut self.shards) {
            self.outcome.add_silent(shard, addressees);
        }
        self.outcome
    }

    fn take(&mut self, shard: ShardId, part: ReceiptPart, ended: &BTreeSet<ShardId>) {
        match part {
            ReceiptPart::Numbered { position, is_duplicate, shards, .. } => {
                if self.home.take_if(|home| *home == shard).is_none() {
                    return;
                }
                self.outcome.position = Some(position);
                self.outcome.answered += 1;
                self.outcome.duplicates += usize::from(is_duplicate);
                let awaited = if self.is_counted { shards } else { Vec::new() };
                // Shards may have counted before the home's word came.
                self.outcome.counts.retain(|(counted, _)| awaited.contains(counted));
                let has_counted = |shard: &ShardId| {
                    self.outcome.counts.iter().any(|(counted, _)| counted == shard)
                };
                let missing: BTreeSet<_> =
                    awaited.into_iter().filter(|shard| !has_counted(shard)).collect();
                self.shards = missing.iter().map(|shard| (*shard, 0)).collect();
                missing.intersection(ended).for_each(|shard| self.end_shard(*shard));
            }
            ReceiptPart::Refused { reject, .. } => {
                if self.home.take_if(|home| *home == shard).is_some() {
                    // A refused push has reached nobody.
                    self.outcome.counts.clear();
                    self.outcome.refused.push((shard, reject));
                } else if let Some(dropped) = self.strike(shard) {
                    self.outcome.refused.push((shard, reject));
                    self.outcome.counts.push((shard, Counts { dropped, ..Counts::default() }));
                }
            }
            ReceiptPart::Counted { counts, offline_users, is_duplicate } => {
                let is_early = self.home.is_some()
                    && self.is_counted
                    && self.outcome.counts.iter().all(|(counted, _)| *counted != shard);
                let is_direct = self.outcome.position.is_none() && self.home.is_none();
                if !is_early && self.strike(shard).is_none() {
                    return;
                }
                self.outcome.counts.push((shard, counts));
                self.outcome.offline_users.extend(offline_users);
                // Of a group's push the home says whether it was seen before.
                if is_direct {
                    self.outcome.answered += 1;
                    self.outcome.duplicates += usize::from(is_duplicate);
                }
            }
            ReceiptPart::Joined { joined, offline, positions } => {
                if self.strike(shard).is_some() {
                    self.outcome.answered += 1;
                    self.outcome.joined += joined;
                    self.outcome.offline += offline;
                    positions.into_iter().for_each(|at| self.outcome.add_position(at));
                }
            }
            ReceiptPart::Done { done, ended } => {
                if self.strike(shard).is_some() {
                    self.outcome.answered += 1;
                    self.outcome.done += done;
                    self.outcome.ended += ended;
                }
            }
        }
    }
}

/// The table of work that is awaited.
#[derive(Debug, Default)]
pub struct Receipts {
    waits: HashMap<u64, Wait>,
    /// Number of the last piece of work.
    last: u64,
    ended: BTreeSet<ShardId>,
}

impl Receipts {
    /// A number that no piece of work has had.
    pub fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Whether no more than [`WAITS_MAX`] are awaited with `more` of them.
    pub fn has_room(&self, more: usize) -> bool {
        self.waits.len() + more <= WAITS_MAX
    }

    /// Awaits the answers to the work with this number.
    pub fn begin(&mut self, number: u64, awaited: Awaited) -> oneshot::Receiver<Outcome> {
        let (done, outcome) = oneshot::channel();
        let (home, is_counted, shards) = match awaited {
            Awaited::Group { home, is_counted } => (Some(home), is_counted, Vec::new()),
            Awaited::Shards(shards) => (None, false, shards),
        };
        let mut wait = Wait { home, is_counted, shards, outcome: Outcome::default(), done };
        self.ended.iter().for_each(|shard| wait.end_shard(*shard));
        self.keep(number, wait);
        outcome
    }

    fn keep(&mut self, number: u64, wait: Wait) {
        if wait.is_complete() {
            // The caller may have gone away.
            let _ = wait.done.send(wait.outcome);
        } else {
            self.waits.insert(number, wait);
        }
    }

    /// Takes in what a shard tells. What nobody awaits any more is dropped.
    pub fn take(&mut self, receipt: Receipt) {
        let Receipt { number, shard, part } = receipt;
        if let Some(mut wait) = self.waits.remove(&number) {
            wait.take(shard, part, &self.ended);
            self.keep(number, wait);
        }
    }

    /// Notes that a shard has ended: nothing is awaited of it any more.
    pub fn shard_ended(&mut self, shard: ShardId) {
        self.ended.insert(shard);
        let mut waits = std::mem::take(&mut self.waits);
        for (number, mut wait) in waits.drain() {
            wait.end_shard(shard);
            self.keep(number, wait);
        }
    }

    /// Ends the wait: what is known by now. `None`: all had come before.
    pub fn end(&mut self, number: u64) -> Option<Outcome> {
        self.waits.remove(&number).map(Wait::end)
    }

    /// Pieces of work that are awaited.
    pub fn len(&self) -> usize {
        self.waits.len()
    }
}

#[cfg(test)]
mod tests;
