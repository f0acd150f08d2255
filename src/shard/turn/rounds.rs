//! The order in which clients are read: rounds over the connections that have some, by deficit
//! round robin in two lists, as fq_codel serves flows (RFC 8290, section 4.2). A connection is a
//! flow here, and the work that its bytes cost is counted in place of bytes.
//!
//! - Who becomes ready enters the *new* list, which goes first, with a small quantum of work. It
//!   goes by arrival, and if it is long by owners ([`Arrivals`]).
//! - Who has used its quantum up goes to the end of the *old* list, with a larger one. That list is
//!   shared between owners first, and between the connections of an owner second ([`Rota`]).
//! - Who is new and has nothing left to read goes to the end of the old list, too, if that has
//!   members: it must wait for a whole round before it can be new again. Otherwise whoever sends a
//!   little, again and again, would always go first, and those in the old list never.
//! - Who is old, has nothing left and owes nothing leaves.
//!
//! What one costs beyond its quantum (one large message) is a debt: it sits rounds out until they
//! have paid for it. Who has nobody beside it has all that is left of a turn, and no debt from it.

use crate::engine::owner::Holder;
use crate::ids::ConnId;
use crate::shard::turn::arrivals::Arrivals;
use crate::shard::turn::rota::{Member, Rota};

/// Work that a connection may cost in a round, in units of [`crate::engine::work::Work`]: 32 us, a
/// 16th of a turn's reading by default. A read of 4 KiB with the smallest frames, 682 pings of 6
/// bytes, costs about as much: a smaller quantum would make receiving the larger part of the work,
/// and a larger one a round longer. With 200 that flood a round takes 6.4 ms.
pub(super) const QUANTUM: i64 = 32_000;
/// Work that a connection may cost before it counts as one that floods: 8 us, a read and some 20
/// small messages. Whoever became ready waits for all of them that did before; if those are more
/// than two turns read, from then on for one of each other owner. A message of more than two reads,
/// which may take half a millisecond, is never completed among the new ones.
pub(super) const NEW_QUANTUM: i64 = 8_000;

/// One of the two lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum List {
    /// Connections that became ready since they were last on a list.
    #[default]
    New,
    /// Connections that had a quantum already.
    Old,
}

/// The visit of a connection: it is on no list meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Visit {
    pub id: ConnId,
    /// Work that it may cost now; `None` = all that is left of the turn, as nobody else waits.
    pub credit: Option<i64>,
    from: From,
    member: Member,
}

/// The list from which a visited connection was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum From {
    /// The new list; with the owner whose turn it was, if it goes by owners.
    New(Option<Holder>),
    /// The old list, of which an owner had its round.
    Old(Holder),
}

impl Visit {
    /// The list from which it was taken.
    pub fn list(&self) -> List {
        match self.from {
            From::New(_) => List::New,
            From::Old(_) => List::Old,
        }
    }
}

/// What a visit has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Left {
    /// There may be more to read or to decode.
    Something,
    /// The next bytes are still to come, or the connection must not be read.
    Nothing,
}

/// The connections to read, in their order.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    new: Arrivals,
    old: Rota,
    /// The list that was read last.
    last: List,
}

impl Rounds {
    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.new.is_empty() && self.old.is_empty()
    }

    /// Whether somebody is on `list`.
    pub fn has(&self, list: List) -> bool {
        match list {
            List::New => !self.new.is_empty(),
            List::Old => !self.old.is_empty(),
        }
    }

    /// The list that a turn reads; `None`: nobody waits. While both have members they take turns,
    /// so that what new ones ask is on its way before the old ones are read. So it is with answers
    /// that have come meanwhile (`has_answers`) and are written at the end of a turn.
    #[inline]
    pub fn next_list(&mut self, has_answers: bool) -> Option<List> {
        let is_first = self.has(List::New) || has_answers;
        self.last = match (is_first, self.has(List::Old), self.last) {
            (false, false, _) => return None,
            (true, false, _) | (true, true, List::Old) => List::New,
            (false, true, _) | (true, true, List::New) => List::Old,
        };
        Some(self.last)
    }

    /// Forgets everybody.
    pub fn clear(&mut self) {
        self.new.clear();
        self.old.clear();
    }

    /// Begins a turn's reading of a list.
    pub fn begin(&mut self, list: List, owner_of: impl Fn(ConnId) -> Option<Holder>) {
        match list {
            List::New => self.new.begin(owner_of),
            List::Old => {}
        }
    }

    /// Ends a turn's reading of a list.
    pub fn pause(&mut self, list: List) {
        match list {
            List::New => self.new.end(),
            List::Old => {}
        }
    }

    /// Puts in a connection that is on no list and became ready.
    #[inline]
    pub fn add(&mut self, id: ConnId) {
        self.new.push(Member { id, credit: NEW_QUANTUM });
    }

    /// Takes out the next connection of a list. It is given back by [`Self::end`], or is gone.
    #[inline]
    pub fn next(&mut self, list: List) -> Option<Visit> {
        let (from, member) = match list {
            List::New => self.new.pop().map(|(member, owner)| (From::New(owner), member))?,
            List::Old => self.old.pop().map(|(owner, member)| (From::Old(owner), member))?,
        };
        let credit = (!self.is_empty()).then_some(member.credit);
        Some(Visit { id: member.id, credit, from, member })
    }

    /// Ends the visit of a connection of `owner`, which has cost `used`. True: it is still on a
    /// list.
    #[inline]
    pub fn end(
        &mut self,
        visit: Visit,
        used: i64,
        left: Left,
        owner: impl FnOnce() -> Option<Holder>,
    ) -> bool {
        let Visit { credit, from, mut member, .. } = visit;
        let is_alone = credit.is_none();
        // The rounds of one that is alone are over as soon as they began.
        let used = if is_alone { member.credit } else { used };
        member.credit -= used;
        match (left, from) {
            (Left::Nothing, From::New(_)) if !self.has(List::Old) => false,
            (Left::Nothing, From::Old(owner)) if is_alone || member.credit > 0 => {
                self.old.charge(owner, used);
                false
            }
            (Left::Something, From::New(owner)) if member.credit > 0 => {
                // The turn was over before its quantum was.
                self.new.push_front(member, owner);
                true
            }
            (Left::Something, From::Old(owner)) if member.credit > 0 => {
                self.old.push_front(owner, member, used);
                true
            }
            (Left::Something | Left::Nothing, _) => {
                if member.credit <= 0 {
                    member.credit += QUANTUM;
                }
                let Some(owner) = owner() else { return false };
                self.old.push(owner, member, used);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests;
