//! Turns in which tokens are verified: a few in each turn of the shard, by parties in rotation.
//!
//! A signature is the costliest thing that an unknown client can ask for. So only a few of them
//! delay the clients that talk, and one user or address that sends tokens as fast as it can delays
//! no other: each of those that wait has one of its tokens verified before any has a second one.
//! Within a party it goes by who came first. That is fair to its sessions, because each has one
//! token that waits: nothing more is read of it meanwhile.

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::engine::owner::Party;
use crate::ids::ConnId;

/// Tokens verified in a turn; further ones wait for the next.
pub const VERIFICATIONS_PER_TURN: u32 = 8;
/// Tokens of a user or an address that wait at most: the last of them for 1,024 turns. Of those
/// that come with an upgrade request, or where every client must sign in, the default of
/// `limits.unauthenticated_max` lets an address have 7,500.
pub const WAITING_MAX: usize = 8_192;

/// The tokens that wait to be verified, as the connections that showed them.
#[derive(Debug)]
pub struct TokenTurns {
    /// Verifications that are left in this turn.
    left: u32,
    /// Connections of each party that has some, first come first served.
    waiting: HashMap<Party, VecDeque<ConnId>>,
    /// The parties, the next one first.
    parties: VecDeque<Party>,
    /// A connection that has waited and is to take its turn now.
    called: Option<ConnId>,
}

impl Default for TokenTurns {
    /// No token waits.
    fn default() -> Self {
        let (left, called) = (VERIFICATIONS_PER_TURN, None);
        Self { left, waiting: HashMap::new(), parties: VecDeque::new(), called }
    }
}

impl TokenTurns {
    /// Begins a turn: its budget is whole.
    pub fn begin(&mut self) {
        (self.left, self.called) = (VERIFICATIONS_PER_TURN, None);
    }

    /// Whether a token may be verified now: the turn's budget is not spent, and nobody waits
    /// longer.
    pub fn take(&mut self, id: ConnId) -> bool {
        let is_called = self.called == Some(id);
        let may = self.left > 0 && (is_called || self.parties.is_empty());
        if is_called {
            self.called = None;
        }
        self.left -= u32::from(may);
        may
    }

    /// Lets a token of `party` wait. False if too many of them do.
    #[must_use]
    pub fn wait(&mut self, id: ConnId, party: Party) -> bool {
        let waiting = self.waiting.entry(party).or_default();
        if waiting.len() >= WAITING_MAX {
            return false;
        }
        if waiting.is_empty() {
            self.parties.push_back(party);
        }
        waiting.push_back(id);
        true
    }

    /// The connection whose turn it is now, if the budget is not spent: the longest waiting one of
    /// the party that has waited the longest for a turn. [`Self::take`] lets it.
    pub fn call_next(&mut self) -> Option<ConnId> {
        self.called = None;
        if self.left == 0 {
            return None;
        }
        let party = self.parties.pop_front()?;
        let waiting = self.waiting.get_mut(&party)?;
        self.called = waiting.pop_front();
        if waiting.is_empty() {
            self.waiting.remove(&party);
        } else {
            self.parties.push_back(party);
        }
        self.called
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::owner::Address;

    fn address(n: u8) -> Party {
        Party::Address(Address::V4([192, 0, 2, n]))
    }

    fn turn(turns: &mut TokenTurns) -> Vec<u64> {
        turns.begin();
        let mut verified = Vec::new();
        while let Some(id) = turns.call_next() {
            assert!(turns.take(id));
            verified.push(id.0);
        }
        verified
    }

    #[test]
    fn an_address_with_many_tokens_delays_no_other_by_more_than_one() {
        let mut turns = TokenTurns::default();
        for n in 1..=100 {
            assert!(turns.wait(ConnId(n), address(1)));
        }
        assert_eq!(turn(&mut turns), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(turns.wait(ConnId(201), address(2)));
        assert!(turns.wait(ConnId(301), Party::User(3)));
        assert!(turns.wait(ConnId(302), Party::User(3)));
        assert_eq!(turn(&mut turns), [9, 201, 301, 10, 302, 11, 12, 13]);
    }

    #[test]
    fn one_that_comes_has_its_turn_at_once_only_if_nobody_waits() {
        let mut turns = TokenTurns::default();
        turns.begin();
        assert!(turns.take(ConnId(1)));
        assert!(turns.wait(ConnId(2), address(1)) && turns.wait(ConnId(3), address(1)));
        assert!(!turns.take(ConnId(9)));
        assert_eq!(turns.call_next(), Some(ConnId(2)));
        assert!(!turns.take(ConnId(9)), "another one was called");
        assert!(turns.take(ConnId(2)) && !turns.take(ConnId(2)), "once");
    }

    #[test]
    fn the_tokens_of_a_party_that_wait_have_a_cap_of_their_own() {
        let mut turns = TokenTurns::default();
        let all = WAITING_MAX as u64;
        assert!((1..=all).all(|n| turns.wait(ConnId(n), address(1))));
        assert!(!turns.wait(ConnId(all + 1), address(1)));
        assert!(turns.wait(ConnId(all + 1), address(2)), "another address");
        assert_eq!(turn(&mut turns).len(), VERIFICATIONS_PER_TURN as usize);
        assert!(turns.wait(ConnId(all + 2), address(1)));
        // Nothing is left of who has been served.
        while !turn(&mut turns).is_empty() {}
        assert!(turns.waiting.is_empty() && turns.parties.is_empty());
    }
}
