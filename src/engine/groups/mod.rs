//! Groups of clients: a group is a log, a member a cursor, and a write pulls.
//!
//! ```text
//!   push -> home (one shard: numbers, keeps) -> lanes -> group (each shard with members: log)
//!                                                          -> pass -> members that are behind
//!                                                                     -> flush pulls frames
//! ```
//!
//! A push is encoded once for a shard and an encoding, and nothing of it is copied for a member: so
//! delivery, a client that reads slowly and one that comes back are one code path with different
//! cursors. This directory knows no connection and no session beyond its key; the half towards
//! clients puts sessions in ([`crate::engine::clients::joining`]) and writes the frames
//! ([`crate::engine::clients::deliveries`]).

pub mod asks;
pub mod group;
pub mod home;
pub mod lane;
pub mod log;
pub mod newest;
pub mod presence;
pub mod push_ids;
pub mod roster;
mod upkeep;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use hashbrown::HashMap;

use crate::config::settings::{GroupRule, GroupSettings, Keep};
use crate::engine::groups::asks::Asks;
use crate::engine::groups::group::{Counted, Group};
use crate::engine::groups::home::Home;
use crate::engine::groups::lane::Deliver;
use crate::engine::groups::log::Retention;
use crate::engine::slab::Slab;
use crate::ids::{GroupKey, HomeKey, ShardId};
use crate::message::Micros;
use crate::push::{Body, GroupName, Kind, Position};

/// Part of the free bytes of all logs that one may have: with 1,000 that are full the last 1 % is
/// free.
const FREE_PART: usize = 8;
/// Items that wait for room in lanes and keep those behind them waiting: as many as a lane has.
const AGAIN_MAX: usize = crate::limits::DELIVER_ITEMS_MAX;
/// Places that are asked for at once where there are many: so that most members who join need no
/// word of the home.
const PLACES_AT_ONCE: u32 = 64;
/// Members of a group, allowed by its rule, from which places are asked for in advance. In smaller
/// ones the last place is to be had wherever its client is.
const MANY_MEMBERS: u32 = 4_096;

/// The groups of a shard: those with members here, and those whose home it is.
#[derive(Debug)]
pub struct Groups {
    shard: ShardId,
    shards: u16,
    names: HashMap<GroupName, GroupKey>,
    groups: Slab<GroupKey, Group>,
    home_names: HashMap<GroupName, HomeKey>,
    homes: Slab<HomeKey, Home>,
    /// Groups with a pass under way, the next one first.
    pub passes: VecDeque<GroupKey>,
    /// Groups of which pushes are to be counted, as a pass is over.
    pub to_count: Vec<GroupKey>,
    /// Homes with something to tell.
    telling: VecDeque<HomeKey>,
    /// Homes with something to tell that a lane had no room for.
    behind: Vec<HomeKey>,
    /// Items for this shard itself.
    own: VecDeque<Deliver>,
    /// Items for other shards.
    pub out: Vec<(ShardId, Deliver)>,
    /// Items that a lane refused, and that are states: told again with the next turn.
    again: Vec<(ShardId, Deliver)>,
    /// Groups whose home may have to be told of their people, by the time.
    rosters_due: BTreeSet<(Micros, GroupKey)>,
    /// Homes whose members may have to be told of people, by the time.
    presence_due: BTreeSet<(Micros, HomeKey)>,
    /// Groups whose rule tells of people now, or does so no more.
    pub rosters_to_make: Vec<GroupKey>,
    /// Sessions that wait for a word of a home.
    pub asks: Asks,
    /// Memberships of all sessions.
    pub memberships: usize,
    /// Bytes of all logs, of homes and groups.
    pub log_bytes: usize,
    /// Slots at which the upkeep goes on: groups, then homes.
    upkeep_at: [usize; 2],
    /// Number of the turn: what homes told in an earlier one was not refused by a lane.
    turn: u64,
}

/// Bytes of an entry of the table of names, which is half empty at worst, and of the longest name
/// with its two counts.
const NAME_BYTES: usize = 2 * (size_of::<(GroupName, GroupKey)>() + 1)
    + 2 * size_of::<usize>()
    + crate::push::GROUP_NAME_BYTES_MAX;
/// Bytes of a group on a shard, without members and pushes.
pub const GROUP_BYTES: usize = Slab::<GroupKey, Group>::SLOT_BYTES + NAME_BYTES;
/// Bytes of a group at its home, without pushes.
pub const HOME_BYTES: usize = Slab::<HomeKey, Home>::SLOT_BYTES + NAME_BYTES;

impl Groups {
    /// No group yet, on `shard` of `shards`.
    pub fn new(shard: ShardId, shards: u16) -> Self {
        Self {
            shard,
            shards: shards.max(1),
            names: HashMap::new(),
            groups: Slab::growing(),
            home_names: HashMap::new(),
            homes: Slab::growing(),
            passes: VecDeque::new(),
            to_count: Vec::new(),
            telling: VecDeque::new(),
            behind: Vec::new(),
            own: VecDeque::new(),
            out: Vec::new(),
            again: Vec::new(),
            rosters_due: BTreeSet::new(),
            presence_due: BTreeSet::new(),
            rosters_to_make: Vec::new(),
            asks: Asks::default(),
            memberships: 0,
            log_bytes: 0,
            upkeep_at: [0; 2],
            turn: 1,
        }
    }

    /// The group with this name, if it is here.
    pub fn find(&self, name: &GroupName) -> Option<GroupKey> {
        self.names.get(name).copied()
    }

    /// A group that is here.
    #[inline]
    pub fn get(&self, key: GroupKey) -> Option<&Group> {
        self.groups.get(key)
    }

    /// The same, to be changed.
    #[inline]
    pub fn get_mut(&mut self, key: GroupKey) -> Option<&mut Group> {
        self.groups.get_mut(key)
    }

    /// Number of groups with members here.
    pub fn count(&self) -> usize {
        self.groups.len()
    }

    /// The groups with members here.
    pub fn iter(&self) -> impl Iterator<Item = (GroupKey, &Group)> {
        self.groups.iter()
    }

    /// The groups whose home is here.
    pub fn homes(&self) -> impl Iterator<Item = (HomeKey, &Home)> {
        self.homes.iter()
    }

    /// The home part of the group with this name, if it is here.
    pub fn home(&self, name: &GroupName) -> Option<&Home> {
        self.homes.get(*self.home_names.get(name)?)
    }

    /// The group with this name, made if it is not here yet; `None`: there are as many as there may
    /// be.
    pub fn enter(
        &mut self,
        name: &GroupName,
        rule: &Arc<GroupRule>,
        settings: &GroupSettings,
        now: Micros,
    ) -> Option<GroupKey> {
        if let Some(key) = self.find(name) {
            return Some(key);
        }
        if self.groups.len() >= settings.names_max {
            return None;
        }
        let key = self.groups.insert(Group::new(name.clone(), rule.clone(), now));
        self.names.insert(name.clone(), key);
        Some(key)
    }

    /// The home part of the group with this name, born with `epoch` if it is not here yet; `None`:
    /// there are as many as there may be.
    pub fn home_mut(
        &mut self,
        name: &GroupName,
        rule: &Arc<GroupRule>,
        settings: &GroupSettings,
        epoch: u32,
        now: Micros,
    ) -> Option<&mut Home> {
        let key = match self.home_names.get(name) {
            Some(key) => *key,
            None if self.homes.len() >= settings.names_max => return None,
            None => {
                let home = Home::new(name.clone(), rule.clone(), epoch, now);
                let key = self.homes.insert(home);
                self.home_names.insert(name.clone(), key);
                key
            }
        };
        self.homes.get_mut(key)
    }

    /// A home part that is here, to be changed.
    pub fn known_home(&mut self, name: &GroupName) -> Option<&mut Home> {
        self.homes.get_mut(*self.home_names.get(name)?)
    }

    /// Numbers a push at the home of its group, which is here, and lets it tell the shards. `None`:
    /// members cannot be told as fast as pushes come.
    pub fn publish(
        &mut self,
        name: &GroupName,
        body: &Arc<Body>,
        counted: Option<u64>,
        settings: &GroupSettings,
        now: Micros,
    ) -> Option<Position> {
        let (rule, turn) = (self.home(name)?.rule.clone(), self.turn);
        let retention = self.retention(&rule, settings);
        let home = self.known_home(name)?;
        if home.is_lagging(settings.lag_bytes_max) {
            return None;
        }
        let before = home.bytes();
        let position = home.publish(body, counted, settings.lag_bytes_max, now);
        home.trim(retention, turn, now);
        let after = home.bytes();
        self.log_bytes = self.log_bytes + after - before;
        self.list_home(name);
        Some(position)
    }

    /// Lists a home that has something to tell.
    pub fn list_home(&mut self, name: &GroupName) {
        let Some(key) = self.home_names.get(name) else { return };
        let Some(home) = self.homes.get_mut(*key) else { return };
        if !std::mem::replace(&mut home.is_listed, true) {
            self.telling.push_back(*key);
        }
    }

    /// Lets a home tell at once what it has to: a shard that asked is told of the place before a
    /// push that it sent behind that is numbered.
    pub fn tell_now(&mut self, name: &GroupName) {
        let (mut told, turn) = (Vec::new(), self.turn);
        let Some(home) = self.known_home(name) else { return };
        let has_more = home.tell(turn, &mut told);
        for (shard, item) in told {
            self.send(shard, item);
        }
        if has_more {
            self.list_home(name);
        }
    }

    /// Gives an item to a shard.
    pub fn send(&mut self, to: ShardId, item: Deliver) {
        match to == self.shard {
            true => self.own.push_back(item),
            false => self.out.push((to, item)),
        }
    }

    /// The next item for this shard itself, after homes have told what they have to.
    pub fn next_own(&mut self) -> Option<Deliver> {
        if self.own.is_empty() {
            self.tell_one();
        }
        self.own.pop_front()
    }

    /// Lets the next home that has something to tell do so. A home with more than one item for a
    /// shard comes again after the others.
    fn tell_one(&mut self) {
        let Some(key) = self.telling.pop_front() else { return };
        let Some(home) = self.homes.get_mut(key) else { return };
        let mut told = Vec::new();
        home.is_listed = home.tell(self.turn, &mut told);
        if home.is_listed {
            self.telling.push_back(key);
        }
        for (shard, item) in told {
            self.send(shard, item);
        }
    }

    /// Whether there is something that the next turn can do at once.
    pub fn has_work(&self) -> bool {
        let Self { passes, to_count, telling, own, .. } = self;
        !(passes.is_empty() && to_count.is_empty() && telling.is_empty() && own.is_empty())
    }

    /// Whether something of it is still to be told, to shards or to members.
    #[cfg(test)]
    pub(crate) fn is_under_way(&self) -> bool {
        !(self.passes.is_empty() && self.telling.is_empty() && self.own.is_empty())
    }

    /// Moves the items for other shards into `effects`, which ends a turn. What is for a shard
    /// whose lane refused an item that is to be told again waits behind that, so that nothing
    /// overtakes it.
    pub fn take_out(&mut self, effects: &mut Vec<(ShardId, Deliver)>) {
        self.turn += 1;
        for (to, item) in std::mem::take(&mut self.out) {
            let waits = self.again.iter().any(|(shard, _)| *shard == to);
            let is_ordered = match &item {
                Deliver::Ask { .. }
                | Deliver::Release { .. }
                | Deliver::Lagging { .. }
                | Deliver::Publish(_) => true,
                Deliver::People { .. }
                | Deliver::List(_)
                | Deliver::Listed { .. }
                | Deliver::Confirmed(_)
                | Deliver::Frames { .. }
                | Deliver::Published { .. } => false,
            };
            match waits && is_ordered && self.again.len() < AGAIN_MAX {
                true => self.again.push((to, item)),
                false => effects.push((to, item)),
            }
        }
    }

    /// Takes back an item that the lane to `shard` has no room for: it is told again in a later
    /// turn, and what nobody keeps is lost. Returns the sessions' ask that has failed, if it was
    /// one.
    pub fn refused(&mut self, shard: ShardId, item: Deliver) -> Option<u64> {
        match &item {
            Deliver::Confirmed(confirmed) => {
                let name = confirmed.group.clone();
                self.refuse_home(&name, shard, &item);
                None
            }
            Deliver::Frames { group, .. } => {
                let name = group.clone();
                self.refuse_home(&name, shard, &item);
                None
            }
            Deliver::Ask { .. }
            | Deliver::Release { .. }
            | Deliver::Lagging { .. }
            | Deliver::Listed { .. }
            | Deliver::Published { .. } => {
                self.again.push((shard, item));
                None
            }
            Deliver::People { group, .. } => {
                self.people_refused(group);
                None
            }
            Deliver::Publish(publish) => Some(publish.ask),
            Deliver::List(list) => Some(list.ask),
        }
    }

    fn refuse_home(&mut self, name: &GroupName, shard: ShardId, item: &Deliver) {
        let Some(key) = self.home_names.get(name) else { return };
        let Some(home) = self.homes.get_mut(*key) else { return };
        home.tell_again(shard, item);
        // With the next tick: a lane that is full is not tried once a turn.
        let key = *key;
        self.behind.push(key);
        if let Deliver::Frames { frames, .. } = item
            && frames.iter().any(|frame| matches!(frame.body.kind, Kind::Presence(_)))
        {
            self.presence_refused(key);
        }
    }

    /// Tells again what lanes had no room for: part of the tick.
    pub fn tell_refused(&mut self) {
        let newer = std::mem::replace(&mut self.out, std::mem::take(&mut self.again));
        self.out.extend(newer);
        for key in std::mem::take(&mut self.behind) {
            if let Some(home) = self.homes.get_mut(key)
                && !std::mem::replace(&mut home.is_listed, true)
            {
                self.telling.push_back(key);
            }
        }
    }

    /// Asks the home for as many places as sessions wait for, and some more in large groups.
    pub fn ask_for_places(&mut self, key: GroupKey) {
        let Some(group) = self.groups.get_mut(key) else { return };
        let wanted = group.joiners.len() as u32;
        if wanted <= group.asked {
            return;
        }
        let ahead = match group.rule.members_max >= MANY_MEMBERS {
            true => PLACES_AT_ONCE,
            false => 0,
        };
        let places = wanted - group.asked + ahead;
        group.asked += places;
        let name = group.name.clone();
        let (home, from) = (name.home(self.shards), self.shard);
        self.send(home, Deliver::Ask { group: name, from, places });
    }

    /// The bytes and the time for which a log keeps pushes, as its rule and what is free allow.
    pub fn retention(&self, rule: &GroupRule, settings: &GroupSettings) -> Retention {
        let (history_bytes, history_ms) = match rule.keep {
            Keep::History => (
                rule.history_bytes,
                match rule.history_ms {
                    0 => u64::MAX / 1000,
                    ms => ms,
                },
            ),
            Keep::None | Keep::Recent | Keep::Last => (0, 0),
        };
        let free = settings.log_total_bytes_max.saturating_sub(self.log_bytes);
        Retention {
            bytes: settings.lag_bytes_max.max(history_bytes).min(free / FREE_PART),
            us: rule.recent_ms.max(history_ms) * 1000,
        }
    }

    /// Gives places back to the home of a group that is not here any more.
    pub fn give_back(&mut self, name: &GroupName, places: u32) {
        let (home, from, group) = (name.home(self.shards), self.shard, name.clone());
        self.send(home, Deliver::Release { group, from, places, is_last: true });
    }

    /// Takes the home's word on places, and what is kept when it comes for the first time.
    pub fn confirm(
        &mut self,
        key: GroupKey,
        confirmed: lane::Confirmed,
        settings: &GroupSettings,
        now: Micros,
    ) {
        let lane::Confirmed { position, places, asked, elsewhere, kept, .. } = confirmed;
        let Some(group) = self.groups.get_mut(key) else { return };
        group.free += places;
        group.asked = group.asked.saturating_sub(asked);
        group.elsewhere = elsewhere;
        let Some(kept) = kept else { return };
        group.is_confirmed = true;
        group.position = position;
        let before = group.bytes();
        for home::Kept { frame, since } in kept.frames {
            group.log.push(frame.offset, frame.body, since);
        }
        for (offset, body) in kept.newest {
            group.newest.put(offset, body, settings.lag_bytes_max);
        }
        self.log_bytes = self.log_bytes + group.bytes() - before;
        self.trim(key, settings, now);
    }

    /// Appends pushes to the log of a group that is here, and begins a pass. `up_to`: the last of
    /// those that were lost behind them.
    pub fn append(
        &mut self,
        key: GroupKey,
        frames: Vec<lane::Frame>,
        up_to: u64,
        settings: &GroupSettings,
        now: Micros,
    ) {
        let Some(group) = self.groups.get_mut(key) else { return };
        let before = group.bytes();
        for lane::Frame { offset, body, counted } in frames {
            let expected = group.position.offset + 1;
            if offset > expected {
                group.log.skip(offset - expected);
            }
            if offset > 0 {
                group.position.offset = offset;
            }
            if group.rule.keep == Keep::Last && !body.key.is_empty() && offset > 0 {
                group.newest.put(offset, body.clone(), settings.lag_bytes_max);
            }
            if let Kind::Presence(told) = &body.kind {
                let others = told.parts.iter().filter(|(shard, _)| *shard != self.shard);
                group.elsewhere = others.map(|(_, count)| u64::from(*count)).sum();
            }
            if let Some(number) = counted {
                group.counted.push(Counted { number, place: group.log.end() });
            }
            group.log.push(offset, body, now);
        }
        if up_to > group.position.offset {
            group.log.skip(up_to - group.position.offset);
            group.position.offset = up_to;
        }
        self.log_bytes = self.log_bytes + group.bytes() - before;
        if group.begin_pass() {
            self.passes.push_back(key);
        }
        self.trim(key, settings, now);
        self.note_lag(key, settings);
    }

    /// Drops what the log of a group does not keep.
    pub fn trim(&mut self, key: GroupKey, settings: &GroupSettings, now: Micros) {
        let Some(group) = self.groups.get(key) else { return };
        let retention = self.retention(&group.rule, settings);
        let Some(group) = self.groups.get_mut(key) else { return };
        let before = group.bytes();
        group.log.trim(retention, now);
        self.log_bytes = self.log_bytes + group.bytes() - before;
    }

    /// Tells the home of a group when the pass over its members cannot keep up with pushes: half of
    /// what may be kept has come since it began. Members that do not read do not count.
    pub fn note_lag(&mut self, key: GroupKey, settings: &GroupSettings) {
        let Some(group) = self.groups.get_mut(key) else { return };
        let waiting = match group.sweep.is_listed {
            true if group.log.end() > group.sweep.target + 1 => {
                group.log.bytes_from(group.sweep.target)
            }
            true | false => 0,
        };
        let high = settings.lag_bytes_max / 2;
        let is_lagging = match group.is_lagging {
            true => waiting > high / 2,
            false => waiting > high,
        };
        if is_lagging == group.is_lagging {
            return;
        }
        group.is_lagging = is_lagging;
        let name = group.name.clone();
        let (home, from) = (name.home(self.shards), self.shard);
        self.send(home, Deliver::Lagging { group: name, from, is_lagging });
    }

    /// Drops what is kept of a group whose home is here. Whether it is known.
    pub fn forget(&mut self, name: &GroupName) -> bool {
        let Some(home) = self.known_home(name) else { return false };
        let before = home.bytes();
        home.forget();
        self.log_bytes -= before;
        true
    }

    /// Position of a group as this shard knows it.
    pub fn position(&self, name: &GroupName) -> Option<Position> {
        Some(self.get(self.find(name)?)?.position)
    }
}
