//! The home of a group: one shard that numbers its pushes, keeps what is kept of them, and tells
//! the shards with members.
//!
//! A shard with members has *interest*: it has asked for places, and is told every push from then
//! on, in order. How far each was told is a number, so a lane that is full loses nothing: the home
//! goes on from there in a later turn. Only what was dropped from the log meanwhile is lost; the
//! shard sees that by the jump in the offsets, and tells its members.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::config::settings::{GroupRule, Keep};
use crate::engine::groups::lane::{Confirmed, Deliver, Frame, KeptAll};
use crate::engine::groups::log::{Retention, cost};
use crate::engine::groups::newest::Newest;
use crate::engine::groups::presence::Everybody;
use crate::ids::ShardId;
use crate::message::Micros;
use crate::push::{Body, GroupName, Position};

/// Pushes that go to a shard as one item of its lane.
const FRAMES_PER_ITEM: usize = 64;

/// A push that was numbered.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The push.
    pub frame: Frame,
    /// Time at which it was numbered.
    pub since: Micros,
}

/// A shard with members of the group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interest {
    /// The shard.
    pub shard: ShardId,
    /// Last offset that it was told. The lane may still refuse what it was told in this turn.
    pub told: u64,
    /// The turn in which it was told that, and the last offset that it was told before.
    told_in: u64,
    told_before: u64,
    /// Places that it has for members.
    pub granted: u32,
    /// Places granted, and asked for, of which it was not told yet.
    unconfirmed: Option<(u32, u32)>,
    /// Whether it is told of pushes.
    pub is_begun: bool,
    /// The last offset when that began. It counts the addressees of those above, also of those that
    /// came while its lane refused the beginning.
    begun_at: u64,
    /// Whether it was told what is kept.
    has_kept: bool,
    /// Whether its members cannot be told as fast as pushes come.
    pub is_lagging: bool,
}

impl Interest {
    /// Takes note of places of which the shard is to be told.
    fn owe(&mut self, granted: u32, asked: u32) {
        let owed = self.unconfirmed.get_or_insert((0, 0));
        owed.0 += granted;
        owed.1 += asked;
    }

    /// Takes note that it is told everything up to `offset` in the turn with this number.
    fn tell(&mut self, offset: u64, turn: u64) {
        if turn > self.told_in {
            (self.told_before, self.told_in) = (self.told, turn);
        }
        self.told = offset;
    }

    /// Last offset that its lane has surely taken, in the turn with this number.
    fn taken(&self, turn: u64) -> u64 {
        if turn > self.told_in { self.told } else { self.told.min(self.told_before) }
    }
}

/// The home part of a group.
#[derive(Debug)]
pub struct Home {
    /// Its name.
    pub name: GroupName,
    /// The rule for it.
    pub rule: Arc<GroupRule>,
    /// Its life, and the number of the last push.
    pub position: Position,
    kept: VecDeque<Kept>,
    bytes: usize,
    newest: Newest,
    /// Pushes that are not kept, for the shards that have members now.
    transient: Vec<Frame>,
    interest: Vec<Interest>,
    /// The people of all shards; `None` until one has told of some.
    pub everybody: Option<Box<Everybody>>,
    /// Whether it is on the list of those that have something to tell.
    pub is_listed: bool,
    /// Time of the last push or change of interest.
    pub touched: Micros,
}

impl Home {
    /// A group that is born, with an epoch drawn by chance.
    pub fn new(name: GroupName, rule: Arc<GroupRule>, epoch: u32, now: Micros) -> Self {
        Self {
            name,
            rule,
            position: Position { epoch, offset: 0 },
            kept: VecDeque::new(),
            bytes: 0,
            newest: Newest::default(),
            transient: Vec::new(),
            interest: Vec::new(),
            everybody: None,
            is_listed: false,
            touched: now,
        }
    }

    /// Bytes of what is kept, with their overhead.
    pub fn bytes(&self) -> usize {
        self.bytes + self.newest.bytes()
    }

    /// The shards with members.
    pub fn interest(&self) -> &[Interest] {
        &self.interest
    }

    /// Places of all shards together.
    pub fn granted(&self) -> u32 {
        self.interest.iter().map(|interest| interest.granted).sum()
    }

    /// Whether nothing of it needs to be remembered: no shard is told, and nothing is kept.
    pub fn is_idle(&self) -> bool {
        self.interest.is_empty() && self.kept.is_empty() && self.newest.is_empty()
    }

    /// Whether some shard cannot tell its members as fast as pushes come, or was not told itself
    /// of half of the `bytes` that may be kept.
    pub fn is_lagging(&self, bytes: usize) -> bool {
        self.interest
            .iter()
            .any(|interest| interest.is_lagging || self.untold(interest) > bytes / 2)
    }

    fn untold(&self, interest: &Interest) -> usize {
        if interest.told == self.position.offset || !interest.is_begun {
            return 0;
        }
        let newer = self.kept.iter().rev().take_while(|kept| kept.frame.offset > interest.told);
        newer.map(|kept| cost(&kept.frame.body)).sum()
    }

    /// Gives a push its number and keeps it until the shards are told, and as long as the rule
    /// says. One that is not kept gets none. `counted`: number of the receipt that counts it.
    pub fn publish(
        &mut self,
        body: &Arc<Body>,
        counted: Option<u64>,
        bytes_max: usize,
        now: Micros,
    ) -> Position {
        self.touched = now;
        if body.is_transient {
            self.transient.push(Frame { offset: 0, body: body.clone(), counted });
            return self.position;
        }
        self.position.offset += 1;
        let offset = self.position.offset;
        self.bytes += cost(body);
        let frame = Frame { offset, body: body.clone(), counted };
        self.kept.push_back(Kept { frame, since: now });
        if self.rule.keep == Keep::Last && !body.key.is_empty() {
            self.newest.put(offset, body.clone(), bytes_max);
        }
        self.position
    }

    /// Drops what is not kept any more, in the turn with this number.
    pub fn trim(&mut self, retention: Retention, turn: u64, now: Micros) {
        let told = match self.rule.keep {
            // Nothing is kept once all shards were told, and their lanes had room for it.
            Keep::None | Keep::Last => {
                self.interest.iter().map(|i| i.taken(turn)).min().unwrap_or(u64::MAX)
            }
            Keep::Recent | Keep::History => 0,
        };
        while let Some(oldest) = self.kept.front() {
            let is_over = self.bytes > retention.bytes || now.since(oldest.since) >= retention.us;
            if !is_over && oldest.frame.offset > told {
                break;
            }
            self.bytes -= cost(&oldest.frame.body);
            self.kept.pop_front();
        }
    }

    /// Drops everything that is kept. Numbers go on.
    pub fn forget(&mut self) {
        self.kept.clear();
        self.newest.clear();
        self.bytes = 0;
        for interest in &mut self.interest {
            interest.told = self.position.offset;
        }
    }

    /// The pushes that are kept, the oldest first.
    pub fn kept(&self) -> impl DoubleEndedIterator<Item = &Kept> {
        self.kept.iter()
    }

    /// The newest push of each key with its offset, the oldest first, if the rule keeps those.
    pub fn newest(&self) -> impl Iterator<Item = (u64, &Arc<Body>)> {
        self.newest.above(0)
    }

    /// Takes note that `shard` wants `wanted` places for members: as many are granted as the rule
    /// leaves. It is told so, and of every push from now on.
    pub fn ask(&mut self, shard: ShardId, wanted: u32, now: Micros) {
        self.touched = now;
        let left = self.rule.members_max.saturating_sub(self.granted());
        let granted = wanted.min(left);
        let interest = self.interest_of(shard);
        interest.granted += granted;
        interest.owe(granted, wanted);
    }

    fn interest_of(&mut self, shard: ShardId) -> &mut Interest {
        let found = self.interest.iter().position(|interest| interest.shard == shard);
        let index = found.unwrap_or_else(|| {
            self.interest.push(Interest {
                shard,
                told: 0,
                told_in: 0,
                told_before: 0,
                granted: 0,
                unconfirmed: None,
                is_begun: false,
                begun_at: 0,
                has_kept: false,
                is_lagging: false,
            });
            self.interest.len() - 1
        });
        &mut self.interest[index]
    }

    /// Takes places back that `shard` has no members for; `is_last`: it is not to be told any more.
    /// Returns the numbers of receipts that wait for its count of pushes of which it was not told:
    /// nobody there is addressed.
    pub fn release(&mut self, shard: ShardId, places: u32, is_last: bool, now: Micros) -> Vec<u64> {
        self.touched = now;
        let found = self.interest.iter().position(|i| i.shard == shard);
        let Some(index) = found else { return Vec::new() };
        let interest = &mut self.interest[index];
        interest.granted = interest.granted.saturating_sub(places);
        if !is_last || interest.unconfirmed.is_some() || interest.granted > 0 {
            return Vec::new();
        }
        let Interest { told, is_begun, .. } = self.interest.swap_remove(index);
        let untold = self.kept.iter().rev().take_while(|kept| kept.frame.offset > told);
        untold.filter(|_| is_begun).filter_map(|kept| kept.frame.counted).collect()
    }

    /// Takes note whether `shard` can tell its members as fast as pushes come.
    pub fn set_lagging(&mut self, shard: ShardId, is_lagging: bool) {
        if let Some(interest) = self.interest.iter_mut().find(|i| i.shard == shard) {
            interest.is_lagging = is_lagging;
        }
    }

    /// The items that tell the shards what they were not told, at most one item of pushes each, in
    /// the turn with this number. Whether there is more.
    pub fn tell(&mut self, turn: u64, out: &mut Vec<(ShardId, Deliver)>) -> bool {
        let Self { interest, kept, newest, position, name, transient, everybody, .. } = self;
        let (mut has_more, epoch) = (false, position.epoch);
        for interest in interest.iter_mut() {
            if let Some((places, asked)) = interest.unconfirmed.take() {
                if !std::mem::replace(&mut interest.is_begun, true) {
                    interest.begun_at = position.offset;
                }
                let is_first = !std::mem::replace(&mut interest.has_kept, true);
                let confirmed = Confirmed {
                    group: name.clone(),
                    position: *position,
                    places,
                    asked,
                    elsewhere: everybody.as_deref().map_or(0, |all| all.elsewhere(interest.shard)),
                    kept: is_first.then(|| Box::new(all_of(kept, newest, interest.begun_at))),
                };
                if is_first {
                    interest.tell(position.offset, turn);
                }
                out.push((interest.shard, Deliver::Confirmed(confirmed)));
            }
            if !interest.is_begun {
                continue;
            }
            if !transient.is_empty() {
                let (group, frames) = (name.clone(), transient.clone());
                out.push((interest.shard, Deliver::Frames { group, epoch, frames, up_to: 0 }));
            }
            if interest.told >= position.offset {
                continue;
            }
            let told = interest.told;
            let skip = kept.partition_point(|kept| kept.frame.offset <= told);
            let frames = kept.range(skip..).take(FRAMES_PER_ITEM);
            let frames: Vec<Frame> = frames.map(|kept| kept.frame.clone()).collect();
            interest.tell(frames.last().map_or(position.offset, |frame| frame.offset), turn);
            has_more |= interest.told < position.offset;
            // Without frames it tells that the last ones are not kept any more.
            let (group, up_to) = (name.clone(), interest.told);
            out.push((interest.shard, Deliver::Frames { group, epoch, frames, up_to }));
        }
        transient.clear();
        has_more
    }

    /// Takes note that `shard`'s lane did not take what it was to be told.
    pub fn tell_again(&mut self, shard: ShardId, refused: &Deliver) {
        let Some(interest) = self.interest.iter_mut().find(|i| i.shard == shard) else { return };
        match refused {
            Deliver::Confirmed(confirmed) => {
                interest.owe(confirmed.places, confirmed.asked);
                if confirmed.kept.is_some() {
                    interest.has_kept = false;
                    interest.told = interest.told.min(interest.begun_at);
                }
            }
            // Pushes without a number are lost: they are the ones that are not kept.
            Deliver::Frames { frames, up_to, .. } => {
                let first = frames.first().map_or(*up_to, |frame| frame.offset);
                if let Some(before) = first.checked_sub(1) {
                    interest.told = interest.told.min(before);
                }
            }
            Deliver::Ask { .. }
            | Deliver::Release { .. }
            | Deliver::Lagging { .. }
            | Deliver::Publish(_)
            | Deliver::Published { .. }
            | Deliver::People { .. }
            | Deliver::List(_)
            | Deliver::Listed { .. } => {}
        }
    }
}

/// Everything that is kept, for a shard that counts the pushes above `begun_at`.
fn all_of(kept: &VecDeque<Kept>, newest: &Newest, begun_at: u64) -> KeptAll {
    let newest = newest.above(0).map(|(offset, body)| (offset, body.clone())).collect();
    KeptAll { frames: kept.iter().cloned().collect(), newest, begun_at }
}

#[cfg(test)]
mod tests;
