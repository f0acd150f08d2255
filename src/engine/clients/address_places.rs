//! Places that clients take, by address: connections, and those that have not signed in. One
//! address may not take the last of them.
//!
//! Most places are for whoever comes first. The last quarter of those for connections that have not
//! signed in, and the last sixteenth of all connections, are kept for addresses that have no more
//! than they would leave there. So an address without a connection is refused only where no place
//! is left at all; the first that takes all it can get leaves half of what is kept, and so on.
//!
//! Connections that have not signed in come and go in seconds, and a quarter of their places is
//! missed by nobody. Connections stay, and behind a balancer that tells no addresses all of them
//! are one address's: so only a sixteenth is kept of them. Neither is a limit of `[limits]`: those
//! are for addresses that are to have less than nearly all.

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use crate::engine::clients::Clients;
use crate::engine::owner::Address;

/// Of as many places as this one is the last sixteenth; of fewer none is kept.
const PLACES_MIN: usize = 16;
/// Part of `limits.unauthenticated_max` that is kept: a quarter.
const UNAUTHENTICATED_KEPT: usize = 4;
/// Part of `conn.connections_max` that is kept: a sixteenth.
const CONNECTIONS_KEPT: usize = 16;

/// Places of one kind, besides that of the connection that wants one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Places {
    /// Most places; 0 = no limit.
    pub max: usize,
    /// Places that are taken.
    pub taken: usize,
}

/// The kind of places of which an address has too many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OverShare {
    /// Connections.
    Connections,
    /// Connections that have not signed in.
    Unauthenticated,
}

/// Places that an address takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Taken {
    connections: u32,
    unauthenticated: u32,
}

/// The addresses of all connections whose client is known.
#[derive(Debug, Default)]
pub struct AddressPlaces {
    addresses: HashMap<Address, Taken>,
}

impl AddressPlaces {
    /// Bytes of an address: its entry at a load of 7/16.
    pub const ENTRY_BYTES: usize = (size_of::<(Address, Taken)>() + 1) * 16 / 7;

    /// Whether an address may have one more connection, among these.
    pub fn may_connect(&self, address: &Address, connections: Places) -> bool {
        let taken = self.addresses.get(address).map_or(0, |taken| taken.connections);
        connections.are_left_for(taken, CONNECTIONS_KEPT)
    }

    /// Counts one more connection, if its address may have it.
    pub fn join(
        &mut self,
        address: Address,
        connections: Places,
        unauthenticated: Option<Places>,
    ) -> Result<(), OverShare> {
        if !self.may_connect(&address, connections) {
            return Err(OverShare::Connections);
        }
        let taken = self.addresses.get(&address).map_or(0, |taken| taken.unauthenticated);
        if unauthenticated.is_some_and(|all| !all.are_left_for(taken, UNAUTHENTICATED_KEPT)) {
            return Err(OverShare::Unauthenticated);
        }
        self.count(address, unauthenticated.is_some());
        Ok(())
    }

    /// Counts a connection that is there, allowed or not.
    pub fn count(&mut self, address: Address, unauthenticated: bool) {
        let taken = self.addresses.entry(address).or_default();
        taken.connections += 1;
        taken.unauthenticated += u32::from(unauthenticated);
    }

    /// A connection of the address that had not signed in has, or it ends.
    pub fn authenticated(&mut self, address: Address) {
        if let Some(taken) = self.addresses.get_mut(&address) {
            taken.unauthenticated -= 1;
        }
    }

    /// A connection of the address is gone.
    pub fn leave(&mut self, address: Address) {
        let Entry::Occupied(mut entry) = self.addresses.entry(address) else { return };
        entry.get_mut().connections -= 1;
        if entry.get().connections == 0 {
            entry.remove();
        }
    }
}

impl Places {
    /// Whether there is one for an address that has `own`, if the last `1 / kept` are for those
    /// that leave as many as they have.
    fn are_left_for(self, own: u32, kept: usize) -> bool {
        let Self { max, taken } = self;
        let left = max.saturating_sub(taken);
        let kept = if max < PLACES_MIN { 0 } else { max / kept };
        max == 0 || left > kept || (own as usize) < left
    }
}

impl Clients {
    /// Checks that every connection has its place at its address.
    pub(super) fn check_address_places(&self) -> Result<(), String> {
        let mut counted: HashMap<Address, Taken> = HashMap::new();
        for (_, conn) in self.conns.iter() {
            let Some(place) = conn.limits.place else { continue };
            let taken = counted.entry(place).or_default();
            taken.connections += 1;
            taken.unauthenticated += u32::from(conn.limits.unauthenticated);
        }
        let kept = &self.limits.address_places.addresses;
        if *kept == counted { Ok(()) } else { Err(format!("{kept:?}, in truth {counted:?}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(n: u8) -> Address {
        Address::V4([192, 0, 2, n])
    }

    /// Connections that an address opens until it is refused; they sign in if `known`.
    fn open(places: &mut AddressPlaces, taken: &mut usize, n: u8, known: bool) -> usize {
        let before = *taken;
        loop {
            let all = Places { max: 160, taken: *taken };
            let unauthenticated = (!known).then_some(all);
            let connections = if known { all } else { Places { max: 0, taken: 0 } };
            match places.join(address(n), connections, unauthenticated) {
                Ok(()) => *taken += 1,
                Err(_) => return *taken - before,
            }
        }
    }

    #[test]
    fn one_address_leaves_the_last_places_to_others() {
        let mut places = AddressPlaces::default();
        let mut taken = 0;
        let opened = [1, 2, 3, 4].map(|n| open(&mut places, &mut taken, n, true));
        assert_eq!(opened, [150, 5, 3, 1], "a sixteenth of all connections is kept");
        let mut places = AddressPlaces::default();
        let mut taken = 0;
        let opened = [1, 2, 3, 4].map(|n| open(&mut places, &mut taken, n, false));
        assert_eq!(opened, [120, 20, 10, 5], "a quarter of those that have not signed in");
    }

    proptest! {
        #[test]
        fn an_address_without_a_connection_has_one_of_those_that_are_left(
            max in 1_usize..100,
            steps in prop::collection::vec((0_u8..5, any::<bool>()), 0..300),
        ) {
            let mut places = AddressPlaces::default();
            let mut list: Vec<u8> = Vec::new();
            for (n, comes) in steps {
                let taken = list.len();
                let all = Places { max, taken };
                let own = list.iter().filter(|other| **other == n).count();
                if !comes {
                    if let Some(at) = list.iter().position(|other| *other == n) {
                        list.swap_remove(at);
                        places.authenticated(address(n));
                        places.leave(address(n));
                    }
                } else if places.join(address(n), Places { max: 0, taken }, Some(all)).is_ok() {
                    prop_assert!(taken < max);
                    list.push(n);
                } else {
                    prop_assert!(taken >= max || (own >= max - taken && max - taken <= max / 4));
                }
                let all = places.addresses.values().map(|taken| taken.connections as usize);
                prop_assert_eq!(all.sum::<usize>(), list.len());
            }
        }
    }
}
