//! Requests that wait in a backlog, shared out between their owners: promise 3.
//!
//! A tree of three levels: tenants; in a tenant users and addresses; under an address its sessions
//! without a user. Users and those sessions are the *owners*, each with the requests that it may
//! send next, the most urgent first. A *group* (all of it, a tenant, an address) shares between its
//! members by virtual time, as worst-case fair queueing does (Bennett and Zhang, WF2Q+, 1997): a
//! member's next request may *start* when those before it are paid for, and the group's clock runs
//! by what is served, divided by the weights of the members in backlog: each pays for what it gets,
//! divided by its own. Tenants have weights, all others 1. Among members whose start has
//! come, the one with the most urgent request is next, so members without a backlog go in the order
//! of arrival and class; a member that had more than its part is *ahead*, and waits until the clock
//! has come to its start. With nobody else to serve the clock is put forward, so no slot stays
//! unused. A member that has nothing waiting any more owes nothing.

mod even;
mod idle;
mod run;
mod weights;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use hashbrown::HashMap;

use crate::engine::dispatcher::backlog::run::Run;
use crate::engine::dispatcher::ordering::Ordering;
use crate::engine::dispatcher::request::Requests;
use crate::engine::held::Held;
use crate::engine::owner::{Holder, OwnerName};
use crate::engine::slab::Slab;
use crate::engine::weights::Weights;
use crate::ids::{InstanceId, MsgKey, OwnerKey, TenantId, Ticket};

/// Sort key: virtual deadline in microseconds, class, number of arrival.
pub(crate) type Rank = (u64, usize, u64);

/// A request that may be taken, and its generation when it was listed: each is listed once a
/// generation.
pub(crate) type Entry = (Rank, MsgKey, u32);

/// Parts of a microsecond in which virtual time counts, so that the clock of a group with 10,000
/// members still runs. With 100 slots busy 2^64 / 2^14 us are 130 days of backlog without an end;
/// with its last owner it begins anew.
const PARTS: u64 = 1 << 14;

/// Most messages of an owner that are thought to have been sent together, and so are read, sent and
/// answered together: a client's pipeline is mostly shorter.
const TOGETHER: usize = 8;
/// Longest time of a slot, in microseconds, that an owner may have more than its share to keep its
/// messages together: what takes longer is not worth it.
const TOGETHER_US_MAX: u64 = 1_000;
/// Outdated places that a group may have besides as many as it has members.
const OUTDATED_MAX: usize = 64;
/// Slots of nodes that a tick looks at, to give back the memory of owners that are gone: 10,000 of
/// them in two rounds of 0.8 s.
const TRIMMED_PER_TICK: usize = 128;
/// Ticks without an owner after which nothing is kept: a second.
const UNUSED_TICKS: u32 = 100;

/// The place of a member in its group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Place {
    /// Nothing of it may be taken, as far as is known.
    #[default]
    None,
    /// Listed among those that may be served, with the rank of its most urgent request or a more
    /// urgent one.
    Listed(Rank),
    /// Listed among those that had more than their part, with the time at which it may be served.
    Ahead(u64),
}

/// An owner or a group.
#[derive(Debug, Default)]
struct Node {
    /// None of the root.
    name: Option<OwnerName>,
    group: Option<OwnerKey>,
    place: Place,
    /// Time on the group's clock at which its next request may start.
    start: u64,
    /// Requests that wait, parked ones included.
    held: Held,
    /// Requests in flight that were taken from here.
    in_flight: usize,
    /// Requests of an owner that may be taken; some may have left.
    entries: BinaryHeap<Reverse<Entry>>,
    /// Clock of a group.
    now: u64,
    /// Members of a group that hold something, and the sum of their weights.
    members: u64,
    weights: u64,
    /// Weight of its part of its group's; 0 of the root, which has none.
    weight: u64,
    /// Members of a group that may be served; outdated places among them.
    listed: BinaryHeap<Reverse<(Rank, OwnerKey)>>,
    /// Members of a group that are ahead; outdated places among them.
    ahead: BinaryHeap<Reverse<(u64, OwnerKey)>>,
}

impl Node {
    /// Begins the time of a group anew, which has no member any more: all places in it are
    /// outdated.
    fn forget_members(&mut self) {
        self.now = 0;
        self.listed.clear();
        self.ahead.clear();
    }

    /// What `us` microseconds of a slot cost a member on its group's clock.
    fn own(&self, us: u64) -> u64 {
        us * PARTS / self.weight.max(1)
    }

    /// Whether most places of a group's members are outdated. After they are dropped each member
    /// has one place at most, so that costs a few steps for each that was listed or left since.
    fn has_outdated(&self) -> bool {
        let places = self.listed.len().max(self.ahead.len());
        places > 2 * self.members as usize + OUTDATED_MAX
    }
}

/// The places that are current, each once.
fn current<T: Ord>(places: BinaryHeap<T>, is_current: impl Fn(&T) -> bool) -> BinaryHeap<T> {
    let mut places = places.into_vec();
    places.retain(is_current);
    places.sort_unstable();
    places.dedup();
    BinaryHeap::from(places)
}

/// Everything by which it is decided whether an entry may be taken now.
pub(crate) struct Look<'a> {
    pub instance: InstanceId,
    /// Call for which requests are taken.
    pub ticket: Ticket,
    pub requests: &'a mut Requests,
    pub ordering: &'a Ordering,
    /// Entries whose request does not wait there any more, as far as they are counted.
    pub stale: &'a mut usize,
}

impl Look<'_> {
    /// Whether the entry is current and may be taken. One that may not is to be dropped: its stream
    /// lists it again when it is free.
    pub fn is_eligible(&mut self, &(_, key, generation): &Entry) -> bool {
        match self.requests.get_mut(key) {
            Some(request) if request.is_listed_at(self.instance, generation) => {
                let eligible = self.ordering.is_eligible(request.stream, key, self.ticket);
                request.position.resumed = eligible;
                eligible
            }
            Some(_) | None => {
                *self.stale = self.stale.saturating_sub(1);
                false
            }
        }
    }
}

/// The owners of which something waits for an instance, or is in flight to it.
#[derive(Debug)]
pub(crate) struct Backlog {
    nodes: Slab<OwnerKey, Node>,
    names: HashMap<OwnerName, OwnerKey>,
    root: OwnerKey,
    /// Weights of the tenants of which something waits.
    tenants: Weights,
    /// Owners with nothing in flight, by the rank of their first request, outdated ones among them:
    /// first those whose user or address had nothing in flight either when they were listed.
    idle: [BinaryHeap<Reverse<(Rank, OwnerKey)>>; 2],
    /// Owner that was last given a kept slot, and the call in it.
    last_idle: Option<(OwnerKey, Ticket)>,
    /// The run that the last request was taken in.
    run: Option<Run>,
    /// Ticks since there was an owner.
    unused_ticks: u32,
    /// Virtual time that an owner with a few messages may be ahead: see [`TOGETHER`].
    slack: u64,
}

impl Backlog {
    /// No owner yet.
    pub fn new() -> Self {
        let mut nodes = Slab::growing();
        let root = nodes.insert_with(|node: &mut Node| *node = Node::default());
        Self {
            nodes,
            names: HashMap::new(),
            root,
            tenants: Weights::default(),
            idle: Default::default(),
            last_idle: None,
            run: None,
            unused_ticks: 0,
            slack: 0,
        }
    }

    /// Counts a request of `holder` that waits, for its owner and for the groups above; its tenant
    /// has `weight` from now on. It is taken only once it is listed.
    pub fn join(&mut self, holder: &Holder, weight: u32, bytes: usize) -> OwnerKey {
        self.end_run();
        let owner = self.find_or_make(OwnerName::of(holder));
        let mut at = Some(owner);
        while let Some(key) = at {
            let node = self.node_mut(key);
            let begins = node.held.items == 0;
            node.held.items += 1;
            node.held.bytes += bytes;
            at = node.group;
            let Some(group) = at else { break };
            let before = if begins { 0 } else { node.weight };
            if let Some(OwnerName::Tenant(_)) = node.name {
                node.weight = u64::from(weight.max(1));
            }
            let after = node.weight;
            self.reweigh(group, before, after);
            if begins {
                let group = self.node_mut(group);
                group.members += 1;
                // What it owed is forgotten.
                let now = group.now;
                let node = self.node_mut(key);
                (node.start, node.place) = (now, Place::None);
            }
        }
        owner
    }

    /// Lists a request of `owner` as one that may be taken.
    pub fn list(&mut self, owner: OwnerKey, entry: Entry) {
        self.node_mut(owner).entries.push(Reverse(entry));
        self.list_idle(owner);
        let mut at = owner;
        while let Some(group) = self.node(at).group {
            let Some(rank) = self.first(at) else { return };
            match self.node(at).place {
                Place::Ahead(_) => return,
                Place::Listed(listed) if listed <= rank => return,
                Place::Listed(_) => {}
                // While it had nothing to send it earned nothing.
                Place::None => {
                    let now = self.node(group).now;
                    let node = self.node_mut(at);
                    node.start = node.start.max(now);
                }
            }
            self.put(at);
            at = group;
        }
    }

    /// Counts out a request of `owner` that waits no more. Returns the number of entries that are
    /// dropped with the owner.
    pub fn leave(&mut self, owner: OwnerKey, bytes: usize) -> usize {
        let mut at = Some(owner);
        while let Some(key) = at {
            let node = self.node_mut(key);
            let weight = node.weight;
            node.held.items -= 1;
            node.held.bytes -= bytes;
            let ends = node.held.items == 0;
            if ends {
                node.place = Place::None;
            }
            at = node.group;
            if let (true, Some(group)) = (ends, at) {
                self.reweigh(group, weight, 0);
                let node = self.node_mut(group);
                node.members -= 1;
                if node.has_outdated() {
                    self.drop_outdated(group);
                }
            }
        }
        self.forget_unused(owner)
    }

    /// The request to be taken next, and its owner; `None` if none may be taken.
    pub fn next(&mut self, look: &mut Look<'_>) -> Option<(Entry, OwnerKey)> {
        self.end_run();
        self.settle(self.root, look)?;
        let mut at = self.root;
        while let Some(&Reverse((_, member))) = self.node(at).listed.peek() {
            at = member;
        }
        let &Reverse(entry) = self.node(at).entries.peek().expect("settled");
        Some((entry, at))
    }

    /// Takes note of what a request costs now, in microseconds of a slot.
    pub fn note_cost(&mut self, cost_us: u64) {
        self.slack = (TOGETHER as u64 * cost_us).min(TOGETHER_US_MAX) * PARTS;
    }

    /// Takes note that a request of `owner`, which was charged `charged_us` when it was taken, is
    /// in flight no more, and cost `cost_us` in truth. Returns the number of entries that are
    /// dropped with the owner.
    pub fn give_back(&mut self, owner: OwnerKey, charged_us: u64, cost_us: u64) -> usize {
        self.end_run();
        let mut at = Some(owner);
        // Whether a member below is listed now that was ahead.
        let mut more = false;
        while let Some(key) = at {
            let node = self.node_mut(key);
            node.in_flight -= 1;
            let (cost, charged) = (node.own(cost_us), node.own(charged_us));
            node.start = (node.start + cost).saturating_sub(charged);
            let place = node.place;
            at = node.group;
            let start = self.eligible_at(key);
            let is_moved = match place {
                Place::Ahead(listed) => listed != start,
                // Its first request may be one of that member's, more urgent than the others.
                Place::Listed(rank) => more && self.first(key).is_some_and(|first| first < rank),
                Place::None => false,
            };
            // One that is listed although it is ahead now is found out when it is its turn.
            if is_moved {
                self.put(key);
                more = true;
            }
        }
        self.list_idle(owner);
        self.forget_unused(owner)
    }

    /// Number and bytes of the requests that wait of a tenant, of a user or an address in it, and
    /// of a session under that.
    pub fn held(&self, holder: &Holder) -> [Held; 3] {
        let tenant = OwnerName::Tenant(holder.tenant);
        let party = OwnerName::Party(holder.tenant, holder.party);
        [tenant, party, OwnerName::of(holder)].map(|name| {
            let node = self.names.get(&name).and_then(|key| self.nodes.get(*key));
            node.map_or(Held::default(), |node| node.held)
        })
    }

    /// Users and addresses of a tenant of which something waits.
    pub fn parties(&self, tenant: TenantId) -> u64 {
        let tenant = self.names.get(&OwnerName::Tenant(tenant));
        tenant.map_or(0, |key| self.node(*key).members)
    }

    /// Drops entries that `keep` does not want, and outdated places.
    pub fn retain(&mut self, keep: impl Fn(&Entry) -> bool) {
        let all: Vec<OwnerKey> = self.nodes.iter().map(|(key, _)| key).collect();
        for &key in &all {
            self.node_mut(key).entries.retain(|Reverse(entry)| keep(entry));
            self.drop_outdated(key);
        }
        self.list_idle_again();
    }

    /// Gives back memory of owners that are gone: to be called with each tick. True: there has been
    /// no owner for a while, and this one may be dropped.
    pub fn trim(&mut self) -> bool {
        self.nodes.trim(TRIMMED_PER_TICK);
        self.unused_ticks = if self.names.is_empty() { self.unused_ticks + 1 } else { 0 };
        self.unused_ticks >= UNUSED_TICKS
    }

    /// All entries, those of requests that have left included.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.nodes.iter().flat_map(|(_, node)| &node.entries).map(|Reverse(entry)| entry)
    }

    /// Waiting requests of each owner, and number of those in flight. Fails unless the sums of the
    /// groups are those of their members.
    pub fn check(&self) -> Result<Vec<(OwnerKey, Held, usize)>, String> {
        let (mut owners, mut sums) = (Vec::new(), HashMap::new());
        for (key, node) in self.nodes.iter() {
            if let Some(group) = node.group {
                let (sum, flying, weights): &mut (Held, usize, u64) =
                    sums.entry(group).or_default();
                sum.items += node.held.items;
                sum.bytes += node.held.bytes;
                *flying += node.in_flight;
                *weights += if node.held.items > 0 { node.weight } else { 0 };
            }
            if node.name.is_some_and(|name| name.is_owner()) {
                owners.push((key, node.held, node.in_flight));
            }
        }
        for (group, sum) in sums {
            let node = self.node(group);
            if (node.held, node.in_flight, node.weights) != sum {
                let Node { name, held, in_flight, weights, .. } = node;
                let own = (held, in_flight, weights);
                return Err(format!("{name:?} holds {own:?}, its members {sum:?}"));
            }
        }
        Ok(owners)
    }

    /// Whether nobody has anything waiting or in flight.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.nodes.len() == 1
    }

    /// The time on its group's clock from which on a member may be served: its start; earlier if
    /// what it has waiting is so little that it may have been sent together.
    fn eligible_at(&self, at: OwnerKey) -> u64 {
        let node = self.node(at);
        match node.held.items <= TOGETHER {
            true => node.start.saturating_sub(self.slack / node.weight.max(1)),
            false => node.start,
        }
    }

    /// Makes `at`'s place in its group right again: `start` or the first request has changed.
    fn put(&mut self, at: OwnerKey) {
        let Some(key) = self.node(at).group else { return };
        let now = self.node(key).now;
        let start = self.eligible_at(at);
        let place = match start > now {
            true => Place::Ahead(start),
            false => self.first(at).map_or(Place::None, Place::Listed),
        };
        self.node_mut(at).place = place;
        let group = self.node_mut(key);
        match place {
            Place::None => {}
            Place::Listed(rank) => group.listed.push(Reverse((rank, at))),
            Place::Ahead(start) => group.ahead.push(Reverse((start, at))),
        }
        if group.has_outdated() {
            self.drop_outdated(key);
        }
    }

    /// Drops the outdated places of a group. Behind a member that waits for long, none would go.
    fn drop_outdated(&mut self, group: OwnerKey) {
        let node = self.node_mut(group);
        let (listed, ahead) = (std::mem::take(&mut node.listed), std::mem::take(&mut node.ahead));
        let listed =
            current(listed, |&Reverse((rank, member))| self.is_at(member, Place::Listed(rank)));
        let ahead =
            current(ahead, |&Reverse((start, member))| self.is_at(member, Place::Ahead(start)));
        let node = self.node_mut(group);
        (node.listed, node.ahead) = (listed, ahead);
    }

    /// The rank of the first request of an owner or a group, or a more urgent one; `None` if it has
    /// none. Puts the clock of a group forward if all of its members are ahead.
    fn first(&mut self, at: OwnerKey) -> Option<Rank> {
        if let Some(&Reverse((rank, ..))) = self.node(at).entries.peek() {
            return Some(rank);
        }
        loop {
            let Some(&Reverse((rank, member))) = self.node(at).listed.peek() else {
                let start = self.next_start(at)?;
                self.run_clock(at, start);
                continue;
            };
            if self.is_at(member, Place::Listed(rank)) {
                return Some(rank);
            }
            self.node_mut(at).listed.pop();
        }
    }

    /// The earliest start of the members that are ahead.
    fn next_start(&mut self, group: OwnerKey) -> Option<u64> {
        loop {
            let &Reverse((start, member)) = self.node(group).ahead.peek()?;
            if self.is_at(member, Place::Ahead(start)) {
                return Some(start);
            }
            self.node_mut(group).ahead.pop();
        }
    }

    /// Puts a group's clock forward to `now`: members whose start has come may be served.
    fn run_clock(&mut self, group: OwnerKey, now: u64) {
        self.node_mut(group).now = now;
        while let Some(start) = self.next_start(group)
            && start <= now
        {
            let Some(Reverse((_, member))) = self.node_mut(group).ahead.pop() else { return };
            self.put(member);
        }
    }

    /// Makes the first of each group on the way to the request to be taken next the true one.
    fn settle(&mut self, at: OwnerKey, look: &mut Look<'_>) -> Option<Rank> {
        loop {
            let rank = self.first(at)?;
            if let Some(Reverse(entry)) = self.node(at).entries.peek() {
                if look.is_eligible(entry) {
                    return Some(rank);
                }
                self.node_mut(at).entries.pop();
                continue;
            }
            let &Reverse((_, member)) = self.node(at).listed.peek()?;
            let is_ahead = self.eligible_at(member) > self.node(at).now;
            let found = if is_ahead { None } else { self.settle(member, look) };
            if found == Some(rank) {
                return found;
            }
            self.node_mut(at).listed.pop();
            self.put(member);
        }
    }

    /// Charges an owner and the groups above it for a request that was taken.
    fn charge(&mut self, owner: OwnerKey, cost_us: u64) {
        let mut at = owner;
        while let Some(group) = self.nodes.get(at).and_then(|node| node.group) {
            let node = self.node_mut(at);
            node.start += node.own(cost_us);
            let node = self.node(group);
            // With its last request a member has left already, and may have been the only one.
            let now = node.now + cost_us * PARTS / node.weights.max(1);
            if self.node(at).held.items > 0 {
                self.put(at);
            }
            self.run_clock(group, now);
            at = group;
        }
    }

    fn is_at(&self, member: OwnerKey, place: Place) -> bool {
        self.nodes.get(member).is_some_and(|node| node.place == place)
    }

    fn find_or_make(&mut self, name: OwnerName) -> OwnerKey {
        if let Some(&key) = self.names.get(&name) {
            return key;
        }
        let group = name.group().map_or(self.root, |group| self.find_or_make(group));
        let key = self.nodes.insert_with(|node| {
            // The buffers stay, which were emptied at the end of the last owner here.
            let Node { entries, listed, ahead, .. } = std::mem::take(node);
            let (name, group) = (Some(name), Some(group));
            *node = Node { name, group, weight: 1, entries, listed, ahead, ..Node::default() };
        });
        self.names.insert(name, key);
        self.unused_ticks = 0;
        key
    }

    /// Forgets an owner, and the groups above it, that have nothing waiting and nothing in flight.
    /// Returns the number of entries that are dropped with them.
    fn forget_unused(&mut self, owner: OwnerKey) -> usize {
        let (mut dropped, mut at) = (0, owner);
        while let Some(group) = self.node(at).group {
            let node = self.node_mut(at);
            if node.held.items > 0 || node.in_flight > 0 {
                break;
            }
            dropped += node.entries.len();
            node.entries.clear();
            node.forget_members();
            if let Some(name) = node.name {
                self.names.remove(&name);
            }
            self.nodes.release(at);
            at = group;
        }
        if self.names.is_empty() {
            self.node_mut(self.root).forget_members();
        }
        dropped
    }

    fn node(&self, key: OwnerKey) -> &Node {
        self.nodes.get(key).expect("nodes live as long as their requests")
    }

    fn node_mut(&mut self, key: OwnerKey) -> &mut Node {
        self.nodes.get_mut(key).expect("nodes live as long as their requests")
    }
}

#[cfg(test)]
mod tests;
