//! A group on a shard that has members of it: who they are, and how far each has read.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::config::settings::GroupRule;
use crate::engine::groups::log::Log;
use crate::engine::groups::newest::Newest;
use crate::engine::groups::roster::{Info, Roster};
use crate::ids::SessionKey;
use crate::message::Micros;
use crate::push::{GroupName, Position};

/// A session in a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// The session.
    pub session: SessionKey,
    /// Cursor: place of the next push that it is to get.
    pub at: u64,
    /// Place of the first push after it joined.
    pub since: u64,
    /// Number of the group among those of its session.
    pub slot: u8,
    /// Whether its client wants to be told who comes and goes.
    pub wants_presence: bool,
}

/// A session that waits until the group's home has a place for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Joiner {
    /// The session.
    pub session: SessionKey,
    /// Number of its ask.
    pub ask: u64,
}

/// A push whose addressees are to be counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counted {
    /// Number of the receipt.
    pub number: u64,
    /// Its place.
    pub place: u64,
}

/// The pass over the members that tells those who are behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sweep {
    /// Whether the group is on the list of those with a pass under way.
    pub is_listed: bool,
    /// Index of the next member.
    pub next: usize,
    /// End of the log when the pass began.
    pub target: u64,
}

/// The part of a group on one shard.
#[derive(Debug)]
pub struct Group {
    /// Its name.
    pub name: GroupName,
    /// The rule for it.
    pub rule: Arc<GroupRule>,
    /// Whether the home has confirmed that this shard is told of its pushes.
    pub is_confirmed: bool,
    /// Last push that came.
    pub position: Position,
    /// The pushes.
    pub log: Log,
    /// The newest push of each key with its offset, if the group keeps those.
    pub newest: Newest,
    members: Vec<Member>,
    /// The people that the members are, if the rule tells of them.
    pub roster: Option<Box<Roster>>,
    /// What services said of members, if they said something.
    infos: Option<Box<HashMap<SessionKey, Arc<[u8]>>>>,
    /// People on other shards, as the home told last.
    pub elsewhere: u64,
    /// Sessions that wait for a place.
    pub joiners: VecDeque<Joiner>,
    /// Places that the home has granted and that no member has.
    pub free: u32,
    /// Places that were asked for and not granted yet.
    pub asked: u32,
    /// The pass under way.
    pub sweep: Sweep,
    /// Place up to which a pass has told all members.
    pub told: u64,
    /// Pushes to be counted when a pass has told all members of them.
    pub counted: Vec<Counted>,
    /// Whether the home was told that members cannot be told as fast as pushes come.
    pub is_lagging: bool,
    /// Time since which it has no member.
    pub idle_since: Micros,
}

impl Group {
    /// A group of which nothing is known yet.
    pub fn new(name: GroupName, rule: Arc<GroupRule>, now: Micros) -> Self {
        Self {
            roster: Roster::of(&rule),
            infos: None,
            elsewhere: 0,
            name,
            rule,
            is_confirmed: false,
            position: Position::default(),
            log: Log::default(),
            newest: Newest::default(),
            members: Vec::new(),
            joiners: VecDeque::new(),
            free: 0,
            asked: 0,
            sweep: Sweep::default(),
            told: 0,
            counted: Vec::new(),
            is_lagging: false,
            idle_since: now,
        }
    }

    /// The members.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The member at `index`, to be changed.
    pub fn member_mut(&mut self, index: u32) -> &mut Member {
        &mut self.members[index as usize]
    }

    /// Puts a member in, which takes a free place. Returns its index.
    pub fn add(&mut self, member: Member) -> u32 {
        debug_assert!(self.free > 0, "a member has a place of the home's");
        self.free -= 1;
        self.members.push(member);
        // `groups.members_max` is below 2^24.
        (self.members.len() - 1) as u32
    }

    /// Takes the member at `index` out. Its place is free, and the last member takes its index: it
    /// is returned, and whether the pass would miss it now.
    pub fn remove(&mut self, index: u32) -> Option<(Member, bool)> {
        let index = index as usize;
        let gone = self.members.swap_remove(index);
        self.free += 1;
        if let Some(infos) = self.infos.as_deref_mut() {
            infos.remove(&gone.session);
            if infos.is_empty() {
                self.infos = None;
            }
        }
        let moved = *self.members.get(index)?;
        let was_ahead = self.members.len() >= self.sweep.next;
        Some((moved, index < self.sweep.next && was_ahead))
    }

    /// Takes note of what a service says of a member.
    pub fn set_info(&mut self, member: SessionKey, info: Arc<[u8]>) {
        self.infos.get_or_insert_default().insert(member, info);
    }

    /// The last that a service said of a member.
    pub fn info_of(&self, member: SessionKey) -> Info {
        self.infos.as_deref()?.get(&member).cloned()
    }

    /// Begins a pass, unless one is under way: it goes on for the pushes that came meanwhile.
    /// Returns whether the group is to be listed.
    pub fn begin_pass(&mut self) -> bool {
        if self.sweep.is_listed {
            return false;
        }
        self.sweep = Sweep { is_listed: true, next: 0, target: self.log.end() };
        true
    }

    /// The next members of the pass, at most `most`.
    pub fn pass(&mut self, most: usize) -> &[Member] {
        let begin = self.sweep.next.min(self.members.len());
        let end = (begin + most).min(self.members.len());
        self.sweep.next = end;
        &self.members[begin..end]
    }

    /// Ends the pass if all members were told; it begins anew if pushes came meanwhile. Whether it
    /// goes on.
    pub fn goes_on(&mut self) -> bool {
        if self.sweep.next < self.members.len() {
            return true;
        }
        self.told = self.sweep.target;
        let is_behind = self.told < self.log.end();
        self.sweep = Sweep { is_listed: is_behind, next: 0, target: self.log.end() };
        is_behind
    }

    /// Bytes of its pushes with their overhead.
    pub fn bytes(&self) -> usize {
        self.log.bytes() + self.newest.bytes()
    }

    /// Bytes of memory that it holds.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.bytes()
            + self.log.arena_bytes()
            + self.members.capacity() * size_of::<Member>()
            + self.roster.as_deref().map_or(0, Roster::memory_bytes)
            + self.infos.as_deref().map_or(0, |infos| {
                let texts: usize = infos.values().map(|info| info.len()).sum();
                infos.capacity() * (size_of::<(SessionKey, Arc<[u8]>)>() + 1) + texts
            })
    }
}
