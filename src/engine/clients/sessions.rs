//! The sessions of a shard: where each is, and what becomes of those without a connection.
//!
//! ```text
//!   (none) --accept--> at a connection --ends, not resumable, or its client left--> (none)
//!                        |      ^   \--resumed on another one: that takes its place
//!              ends      v      |
//!            unintended away ---+ resumed
//!                         \--ttl, too many, too large--> (none), remembered as ended
//! ```
//!
//! A session that is away is bounded: in time by `session.ttl_ms`, in number by `session.away_max`
//! and a part of it for each user or address, in bytes by `session.kept_total_bytes_max`. The one
//! that is away longest ends first.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound;

use hashbrown::HashMap;

use crate::engine::clients::index::{INDEXED_BYTES, SessionIndex};
use crate::engine::clients::kept;
use crate::engine::clients::session::Session;
use crate::engine::owner::{Address, Holder, Party};
use crate::engine::slab::{SLAB_ENTRIES_CAP, Slab};
use crate::engine::stats::Stats;
use crate::ids::{ConnId, SessionId, SessionKey, SessionSecret};
use crate::message::Micros;
use crate::stats::Counter;

/// Ended sessions that are remembered, so that a client that comes back late is told why: 146 bytes
/// each where their table is half empty, 2.3 MiB. A storm of 15,000 that come back too late is told
/// the truth.
const ENDED_MAX: usize = 16_384;
/// Part of `session.away_max` that the sessions of one user may have, of whom nothing says how many
/// it may have connected, or those of one address that have not signed in: a half, as a carrier may
/// have many clients behind one address, and a program many connections of one user.
const PARTY_PART: usize = 2;

/// Bytes of a session's seat.
pub const SEAT_BYTES: usize = Slab::<SessionKey, Seat>::SLOT_BYTES;
/// Bytes of a resumable session's window while that is empty.
pub const RESUMABLE_BYTES: usize = kept::STAYS_BYTES + 4 * kept::STAYS_ITEMS;
/// Bytes of the tables for a session that is away, beside the session itself: its seat, its places
/// in the index, and those in two orders (a B-tree's nodes are 6/11 full or more).
pub const AWAY_BYTES: usize = SEAT_BYTES
    + INDEXED_BYTES
    + 2 * (size_of::<(Micros, SessionKey)>() + size_of::<(PartyName, Micros, SessionKey)>())
    + 2 * (size_of::<(Holder, u32)>() + 1);
/// Bytes of what is remembered of ended sessions, at most.
pub const ENDED_BYTES: usize =
    ENDED_MAX * (2 * (size_of::<(SessionId, Ended)>() + 1) + size_of::<SessionId>());

/// The place of a session.
#[derive(Debug)]
pub enum Seat {
    /// It is on this connection, which owns it.
    At(ConnId),
    /// It has no connection.
    Away(Box<Session>),
}

/// Why a session ended before its client came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It was away for `session.ttl_ms`.
    Expired,
    /// It was away longest when there were too many, or their frames too large.
    Crowded,
    /// Its client left, signed in as somebody, or broke a rule.
    Left,
}

#[derive(Clone, Copy, Debug)]
struct Ended {
    /// The secrets that would have resumed it.
    secrets: [SessionSecret; 2],
    why: End,
}

/// A party as a key with an order: a tenant, whether it is a user, and a hash or an address.
type PartyName = (u64, bool, [u8; 8]);

fn party_name(holder: &Holder) -> PartyName {
    let (is_user, name) = match holder.party {
        Party::User(user) => (true, user.to_be_bytes()),
        Party::Address(Address::V6(network)) => (false, network),
        Party::Address(Address::V4([a, b, c, d])) => (false, [0, 0, 0, 0, a, b, c, d]),
    };
    (holder.tenant.0, is_user, name)
}

/// The caps of sessions that are away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AwayCaps {
    /// Sessions of all parties.
    pub items: usize,
    /// Sessions that a user may have connected; 0 = no limit.
    pub of_user: usize,
}

/// The sessions of a shard.
#[derive(Debug)]
pub struct Sessions {
    seats: Slab<SessionKey, Seat>,
    /// All of them, by what services know of them.
    pub index: SessionIndex,
    /// Number of the resumable ones.
    resumable: usize,
    /// The ones without a connection, the one that is away longest first.
    away: BTreeSet<(Micros, SessionKey)>,
    /// The last of those that were found to be away for longer than the grace.
    absent_to: (Micros, SessionKey),
    /// The same of each party.
    away_of: BTreeSet<(PartyName, Micros, SessionKey)>,
    /// Number of those of each party.
    counts: HashMap<PartyName, u32>,
    ended: HashMap<SessionId, Ended>,
    /// The remembered ones, the oldest first.
    ended_order: VecDeque<SessionId>,
    /// Bytes of all frames that are kept.
    pub kept_bytes: usize,
    /// Frames that were dropped before their clients confirmed them, and are not counted yet.
    pub frames_dropped: u64,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            seats: Slab::with_capacity_max(SLAB_ENTRIES_CAP),
            index: SessionIndex::default(),
            resumable: 0,
            away: BTreeSet::new(),
            absent_to: (Micros(0), SessionKey(0)),
            away_of: BTreeSet::new(),
            counts: HashMap::new(),
            ended: HashMap::new(),
            ended_order: VecDeque::new(),
            kept_bytes: 0,
            frames_dropped: 0,
        }
    }
}

impl Sessions {
    /// Gives a session that is on `conn` its seat.
    pub fn sit(&mut self, session: &mut Session, conn: ConnId) {
        session.key = self.seats.insert(Seat::At(conn));
        self.index.add(session);
    }

    /// The place of a session; `None` if it has ended.
    #[inline]
    pub fn seat(&self, key: SessionKey) -> Option<&Seat> {
        self.seats.get(key)
    }

    /// The same, to be changed.
    #[inline]
    pub fn seat_mut(&mut self, key: SessionKey) -> Option<&mut Seat> {
        self.seats.get_mut(key)
    }

    /// Takes note that a session is on `conn` now.
    pub fn change_seat(&mut self, key: SessionKey, conn: ConnId) {
        *self.seats.get_mut(key).expect("the caller has it") = Seat::At(conn);
    }

    /// Ends the seat of a session that is on a connection.
    pub fn stand_up(&mut self, session: &Session) {
        self.seats.remove(session.key);
        self.index.remove(session);
    }

    /// Takes note that a session can be resumed from now on.
    pub fn became_resumable(&mut self) {
        self.resumable += 1;
    }

    /// Why the session with this id and secret ended, if that is remembered.
    pub fn end_of(&self, id: &SessionId, secret: SessionSecret) -> Option<End> {
        let ended = self.ended.get(id)?;
        let [present, former] = ended.secrets;
        (present.equals(secret) | former.equals(secret)).then_some(ended.why)
    }

    /// Number of resumable sessions, and of those without a connection.
    pub fn len(&self) -> (usize, usize) {
        (self.resumable, self.away.len())
    }

    /// Whether there is no seat for one more session.
    pub fn is_full(&self) -> bool {
        self.seats.is_full()
    }

    /// Slots of seats, of which some may be free.
    pub fn slots(&self) -> usize {
        self.seats.slots()
    }

    /// The session in a slot, which it keeps while it lives.
    pub fn slot_at(&self, slot: usize) -> Option<(SessionKey, &Seat)> {
        self.seats.slot_at(slot)
    }

    /// Sessions with a seat.
    pub fn seats(&self) -> usize {
        self.seats.len()
    }

    /// Takes a resumable session that lost its connection, at `now`.
    pub fn goes_away(&mut self, mut session: Box<Session>, now: Micros) {
        let party = party_name(&session.holder());
        session.away_since = now;
        if let Some(resumption) = session.resumption.as_deref_mut() {
            resumption.kept.shrink();
        }
        let key = session.key;
        self.away.insert((now, key));
        self.away_of.insert((party, now, key));
        *self.counts.entry(party).or_default() += 1;
        *self.seats.get_mut(key).expect("a session has a seat") = Seat::Away(session);
    }

    /// Takes a session that is away out, for the connection `conn`.
    pub fn comes_back(&mut self, key: SessionKey, conn: ConnId) -> Option<Box<Session>> {
        let seat = self.seats.get_mut(key)?;
        let Seat::Away(session) = std::mem::replace(seat, Seat::At(conn)) else {
            unreachable!("the caller has seen that it is away")
        };
        self.forget_away(&session);
        Some(session)
    }

    /// Ends a session that is away.
    pub fn end_away(&mut self, key: SessionKey, why: End) -> Option<Box<Session>> {
        let Some(Seat::Away(session)) = self.seats.remove(key) else { return None };
        self.forget_away(&session);
        self.forget(&session, why);
        self.index.remove(&session);
        Some(session)
    }

    /// Forgets that a session can be resumed; who tries to is told why.
    pub fn forget(&mut self, session: &Session, why: End) {
        let Some(resumption) = session.resumption.as_deref() else { return };
        self.kept_bytes -= resumption.kept.size();
        self.frames_dropped += resumption.kept.count() as u64;
        self.resumable -= 1;
        if self.ended_order.len() >= ENDED_MAX
            && let Some(oldest) = self.ended_order.pop_front()
        {
            self.ended.remove(&oldest);
        }
        self.ended_order.push_back(session.id);
        self.ended.insert(session.id, Ended { secrets: resumption.secrets(), why });
    }

    /// Makes a session one that cannot be resumed any more, as its client left it, if it can.
    pub(crate) fn end_resumption(&mut self, stats: &mut Stats, session: &mut Session) {
        if session.resumption.is_some() {
            self.forget(session, End::Left);
            session.resumption = None;
            stats.inc(Counter::SessionsEnded);
        }
    }

    /// The session that is to end for want of room: of the party of `holder` if that has more away
    /// than its part or than places are free, else of all, if they are more than `caps` allow.
    pub fn crowded_out(&self, holder: &Holder, caps: AwayCaps) -> Option<SessionKey> {
        let party = party_name(holder);
        let most = match holder.party {
            Party::User(_) if caps.of_user > 0 => caps.of_user,
            Party::User(_) | Party::Address(_) => caps.items.div_ceil(PARTY_PART),
        };
        // No more than what is free: so a few parties with many leave places to others.
        let free = caps.items.saturating_sub(self.away.len());
        let most = most.min(free.max(1));
        if self.counts.get(&party).is_some_and(|count| *count as usize > most) {
            let first = (party, Micros(0), SessionKey(0));
            return self.away_of.range(first..).next().map(|(_, _, key)| *key);
        }
        if self.away.len() > caps.items { self.longest_away().map(|(_, key)| key) } else { None }
    }

    /// The session that is away longest, and since when.
    pub fn longest_away(&self) -> Option<(Micros, SessionKey)> {
        self.away.first().copied()
    }

    /// A session that is away since before `before`, each mostly once.
    pub fn next_absent(&mut self, before: Micros) -> Option<SessionKey> {
        let behind = (Bound::Excluded(self.absent_to), Bound::Unbounded);
        let next = self.away.range(behind).next().copied().filter(|(since, _)| *since < before)?;
        self.absent_to = next;
        Some(next.1)
    }

    /// Leaves out a time in which the shard was stopped, up to `now`: what was away goes on being
    /// so for as long.
    pub fn put_off(&mut self, us: u64, now: Micros) {
        let later = |at: Micros| Micros(at.0.saturating_add(us)).min(now);
        self.away = self.away.iter().map(|(at, key)| (later(*at), *key)).collect();
        self.away_of = self.away_of.iter().map(|(p, at, key)| (*p, later(*at), *key)).collect();
        // Their order is another one: those that were found are found once more.
        self.absent_to = (Micros(0), SessionKey(0));
        for (_, key) in &self.away {
            if let Some(Seat::Away(session)) = self.seats.get_mut(*key) {
                session.away_since = later(session.away_since);
            }
        }
    }

    fn forget_away(&mut self, session: &Session) {
        let party = party_name(&session.holder());
        self.away.remove(&(session.away_since, session.key));
        self.away_of.remove(&(party, session.away_since, session.key));
        if let Some(count) = self.counts.get_mut(&party) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&party);
            }
        }
    }

    /// Checks that the orders of those that are away agree with each other.
    pub fn check(&self) -> Result<(), String> {
        let (away, of) = (self.away.len(), self.away_of.len());
        let counted: u32 = self.counts.values().sum();
        let seated = self.iter_away().count();
        match [of, counted as usize, seated] == [away; 3] {
            true => Ok(()),
            false => Err(format!("away: {away}, {of} by party, {counted} counted, {seated} seats")),
        }
    }

    /// The sessions that are away.
    pub fn iter_away(&self) -> impl Iterator<Item = &Session> {
        self.away.iter().filter_map(|(_, key)| match self.seats.get(*key) {
            Some(Seat::Away(session)) => Some(&**session),
            Some(Seat::At(_)) | None => None,
        })
    }
}

#[cfg(test)]
mod tests;
