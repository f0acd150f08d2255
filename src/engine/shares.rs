//! Shares of what is limited: how much of it each owner holds, and whether an owner may take more.
//!
//! Three quarters of it are free for whoever comes first, so that one owner alone has the use of
//! them. The last quarter is kept for owners that hold little, in three parts: one for tenants, one
//! for the parties of a tenant (users, and addresses whose sessions have not signed in), and one
//! for the sessions of an address.
//!
//! ```text
//!   0                                          3/4      7/8     15/16     1
//!   |  free for whoever comes first             | sessions | parties | tenants |
//! ```
//!
//! One rule holds everywhere: nobody may hold more than it leaves. A tenant takes from its part
//! only what leaves as much of it as the tenant holds then. The parties of a tenant together take
//! from theirs only as much as they leave to those of other tenants; and of what they still may
//! take, each party leaves as much as it holds then. The same for the sessions of an address. Who
//! is too large for one part is asked again by the next. So
//!
//! * a tenant that holds nothing is refused only where nothing is left of its part, whatever the
//!   others hold; a party or a session where nothing is left, or where those beside it have as much
//!   of the part as they leave to all others;
//! * the first greedy one leaves half of what is there to those that come, the second a quarter,
//!   and so on; of equals each may have as much as is left for one more;
//! * an address that opens more sessions takes no more of what is kept for other addresses, because
//!   all of its sessions count there, and of what is kept for sessions at most half. The same for
//!   the users of a tenant.
//!
//! Tenants have weights, all others 1: what an owner holds counts as many times as the heaviest of
//! the tenants that hold something is heavier than its own. So a tenant of weight 4 may hold four
//! times what one of weight 1 may hold beside it.
//!
//! The parts know no number of owners: many that hold next to nothing make nobody's part smaller.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::engine::owner::{Holder, OwnerName};
use crate::engine::weights::Weights;
use crate::ids::TenantId;
use crate::routing::TenantTable;

/// Pieces into which a thing must be divisible so that something of it can be kept: of less than
/// sixteen pieces a sixteenth is none. Those are taken by whoever comes.
const PIECES_MIN: usize = 16;
/// The thing that is divided into parts; of the others only what is held is counted.
const DIVIDED: usize = 0;
/// Index that is no node's.
const NONE: u32 = u32::MAX;

/// The part of a thing that an amount of it was taken from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    /// Three quarters, free for whoever comes first.
    Free,
    /// A sixteenth, kept for tenants.
    Tenants,
    /// A sixteenth, kept for users and addresses of a tenant.
    Parties,
    /// An eighth, kept for sessions of an address, and after their own part for everybody else
    /// who holds little.
    Sessions,
}

/// An owner that holds something, as an index: good as long as it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ShareKey(u32);

/// An owner that is asked about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asker<'a> {
    /// By its names: it may hold nothing.
    Named(&'a Holder),
    /// One that holds something.
    Known(ShareKey),
}

/// What a tenant, a party or a session holds.
#[derive(Clone, Copy, Debug)]
struct Node<const N: usize> {
    name: OwnerName,
    /// The level above; of a vacant node the next vacant one.
    parent: u32,
    /// Nodes below that hold something.
    children: u32,
    held: [usize; N],
    /// Part of it that those below took of the part that is kept for them.
    lent: usize,
}

/// What each owner holds of `N` things that are limited; the first of them is divided into parts.
#[derive(Debug)]
pub(crate) struct Shares<const N: usize> {
    nodes: Vec<Node<N>>,
    /// Indexes into `nodes`, by name.
    table: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// The first vacant node.
    vacant: u32,
    /// Weights of the tenants that hold something.
    tenants: Weights,
    /// Weights of the tenants of the configuration, by id; of all others 1.
    weights: Vec<(TenantId, u32)>,
    held: [usize; N],
    /// Amount taken of each [`Part`].
    taken: [usize; 4],
}

/// Nodes of an owner on the three levels, as far as they hold something. A user has one node as
/// party and as session.
type Path<'a, const N: usize> = [Option<&'a Node<N>>; 3];

impl Part {
    /// How much of `max` the part has.
    fn of(self, max: usize) -> usize {
        match self {
            Part::Free => max - max / 4,
            Part::Tenants | Part::Parties => max / 16,
            Part::Sessions => max / 8,
        }
    }
}

impl<const N: usize> Shares<N> {
    /// Bytes of memory for an owner that holds something and shares nothing with another: two nodes
    /// (a session and its address, or a user and its tenant), each with its place in the table, 5
    /// bytes at a load of 7/16 or more.
    pub const OWNER_BYTES: usize = 2 * (size_of::<Node<N>>() + 12);

    /// Nobody holds anything. Room for `owners` is reserved, of which untouched pages cost address
    /// space only.
    pub fn with_capacity(owners: usize) -> Self {
        Self {
            nodes: Vec::with_capacity(owners),
            table: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            vacant: NONE,
            tenants: Weights::default(),
            weights: Vec::new(),
            held: [0; N],
            taken: [0; 4],
        }
    }

    /// Gives tenants their weights.
    pub fn set_weights(&mut self, table: &TenantTable) {
        let weights = table.list().iter().map(|tenant| (tenant.id, tenant.weight));
        if weights.clone().eq(self.weights.iter().copied()) {
            return;
        }
        self.weights = weights.collect();
        let names = self.table.iter().map(|at| self.nodes[*at as usize].name);
        let mut tenants = Weights::default();
        for name in names {
            if let OwnerName::Tenant(id) = name {
                tenants.change(0, self.weight(id));
            }
        }
        self.tenants = tenants;
    }

    fn weight(&self, tenant: TenantId) -> u64 {
        let place = self.weights.binary_search_by_key(&tenant, |(id, _)| *id);
        place.map_or(1, |at| u64::from(self.weights[at].1.max(1)))
    }

    /// How much of a thing all owners hold together.
    #[cfg(test)]
    pub fn held(&self, thing: usize) -> usize {
        self.held[thing]
    }

    /// The part of the divided thing, of which there is `max`, that `holder` may take `amount`
    /// from.
    #[inline]
    pub fn part_for(&self, holder: &Holder, amount: usize, max: usize) -> Option<Part> {
        if self.left(Part::Free, max) >= amount {
            return Some(Part::Free);
        }
        self.kept_for(holder, amount, max)
    }

    #[cold]
    fn kept_for(&self, holder: &Holder, amount: usize, max: usize) -> Option<Part> {
        if self.held[DIVIDED] + amount > max {
            return None;
        }
        if is_indivisible(amount, max) {
            return Some(Part::Free);
        }
        let [tenant, party, session] = self.path(Asker::Named(holder));
        let weight = self.weight(holder.tenant);
        let heaviest = self.tenants.heaviest().max(weight);
        let weighed = |amount: usize| (amount as u64 * heaviest / weight) as usize;
        let held = |node: Option<&Node<N>>| weighed(node.map_or(0, |node| node.held[DIVIDED]));
        let lent = |node: Option<&Node<N>>| weighed(node.map_or(0, |node| node.lent));
        // What is left for the taker and those beside it: of a part, half of what is over what they
        // have of it.
        let may = |left: usize, own: usize| amount <= left && own <= left - amount;
        let left = |part: Part, lent: usize| self.left(part, max).saturating_sub(lent) / 2;
        if may(self.left(Part::Tenants, max), held(tenant)) {
            Some(Part::Tenants)
        } else if may(left(Part::Parties, lent(tenant)), held(party)) {
            Some(Part::Parties)
        } else if may(left(Part::Sessions, lent(party)), held(session)) {
            Some(Part::Sessions)
        } else {
            None
        }
    }

    fn left(&self, part: Part, max: usize) -> usize {
        part.of(max).saturating_sub(self.taken[part as usize])
    }

    /// Whether somebody who holds less could take `amount` of the divided thing.
    pub fn is_kept(&self, amount: usize, max: usize) -> bool {
        let parts = [Part::Tenants, Part::Parties, Part::Sessions];
        !is_indivisible(amount, max) && parts.iter().any(|part| self.left(*part, max) >= amount)
    }

    /// How much must be given back of [`Part::Free`] before anybody may take `amount` of the
    /// divided thing.
    pub fn lacking(&self, amount: usize, max: usize) -> usize {
        match is_indivisible(amount, max) {
            true => (self.held[DIVIDED] + amount).saturating_sub(max),
            false => (self.taken[Part::Free as usize] + amount).saturating_sub(Part::Free.of(max)),
        }
    }

    /// Whether an owner is within its part of a thing with `amount` more: of the whole each tenant
    /// that holds something has a part by its weight, and in it an equal one each of its parties
    /// and one that is to come, and in that of an address each of its sessions and one that is to
    /// come. The first of an owner that holds nothing is within it, whatever its size. For what can
    /// be taken away again from one that is over its part.
    pub fn is_within(&self, asker: Asker<'_>, thing: usize, amount: usize, max: usize) -> bool {
        let path = self.path(asker);
        let [held_by_tenant, held_by_party, own] =
            path.map(|node| node.map_or(0, |node| node.held[thing]));
        let below = |node: Option<&Node<N>>| node.map_or(0, |node| node.children as usize);
        let [tenant, party, session] = path;
        let weight = self.weight(self.tenant_of(asker));
        let weights = self.tenants.sum() + if tenant.is_none() { weight } else { 0 };
        let of_tenant = ((max as u64 * weight / weights) as usize).max(1);
        let of_party = of_tenant / (below(tenant) + 1);
        let is_fair = |held: usize, part: usize| held == 0 || held + amount <= part;
        let is_user = session.is_some_and(|node| matches!(node.name, OwnerName::Party(..)));
        let of_session = if is_user { of_party } else { of_party / (below(party) + 1) };
        held_by_tenant + amount <= of_tenant
            && is_fair(held_by_party, of_party)
            && is_fair(own, of_session)
    }

    /// How much of a thing a tenant holds.
    pub fn held_by(&self, tenant: TenantId, thing: usize) -> usize {
        let at = self.find(&OwnerName::Tenant(tenant));
        at.map_or(0, |at| self.nodes[at as usize].held[thing])
    }

    /// Whether `owner` is who asks.
    pub fn is(&self, asker: Asker<'_>, owner: ShareKey) -> bool {
        match asker {
            Asker::Named(holder) => self.nodes[owner.0 as usize].name == OwnerName::of(holder),
            Asker::Known(key) => key == owner,
        }
    }

    /// Counts what `holder` takes: of the divided thing from `part`.
    #[inline]
    pub fn take(&mut self, holder: &Holder, amounts: [usize; N], part: Part) -> ShareKey {
        let leaf = self.find_or_insert(holder);
        self.taken[part as usize] += amounts[DIVIDED];
        self.lend(leaf, part, |lent| lent + amounts[DIVIDED]);
        self.each_level(leaf, amounts, |held, amount| held + amount);
        ShareKey(leaf)
    }

    /// Counts what an owner, which holds something, takes more of a thing that is not divided.
    pub fn take_more(&mut self, owner: ShareKey, thing: usize, amount: usize) {
        let mut amounts = [0; N];
        amounts[thing] = amount;
        self.each_level(owner.0, amounts, |held, amount| held + amount);
    }

    /// Counts what an owner gives back, which holds as much: of the divided thing to `part`.
    #[inline]
    pub fn give_back(&mut self, owner: ShareKey, amounts: [usize; N], part: Part) {
        self.taken[part as usize] -= amounts[DIVIDED];
        self.lend(owner.0, part, |lent| lent - amounts[DIVIDED]);
        self.each_level(owner.0, amounts, |held, amount| held - amount);
        let mut at = owner.0;
        while at != NONE && self.nodes[at as usize].held == [0; N] {
            let parent = self.nodes[at as usize].parent;
            self.remove(at);
            at = parent;
        }
    }

    /// Notes what was taken of a part where all that those below took of it is counted.
    #[inline]
    fn lend(&mut self, leaf: u32, part: Part, change: impl Fn(usize) -> usize) {
        let at = match part {
            Part::Free | Part::Tenants => return,
            Part::Parties => self.party_and_tenant(leaf).1,
            Part::Sessions => self.party_and_tenant(leaf).0,
        };
        let node = &mut self.nodes[at as usize];
        node.lent = change(node.lent);
    }

    #[inline]
    fn each_level(&mut self, leaf: u32, amounts: [usize; N], f: impl Fn(usize, usize) -> usize) {
        for (held, amount) in self.held.iter_mut().zip(amounts) {
            *held = f(*held, amount);
        }
        let mut at = leaf;
        while at != NONE {
            let node = &mut self.nodes[at as usize];
            for (held, amount) in node.held.iter_mut().zip(amounts) {
                *held = f(*held, amount);
            }
            at = node.parent;
        }
    }

    /// Indexes of the party and of the tenant of a leaf.
    fn party_and_tenant(&self, leaf: u32) -> (u32, u32) {
        let node = &self.nodes[leaf as usize];
        match node.name {
            OwnerName::Session(..) => (node.parent, self.nodes[node.parent as usize].parent),
            OwnerName::Party(..) => (leaf, node.parent),
            OwnerName::Tenant(_) => unreachable!("a tenant owns by its parties"),
        }
    }

    fn tenant_of(&self, asker: Asker<'_>) -> TenantId {
        match asker {
            Asker::Named(holder) => holder.tenant,
            Asker::Known(ShareKey(at)) => self.nodes[at as usize].name.tenant(),
        }
    }

    fn path(&self, asker: Asker<'_>) -> Path<'_, N> {
        match asker {
            Asker::Known(ShareKey(leaf)) => {
                let (party, tenant) = self.party_and_tenant(leaf);
                [tenant, party, leaf].map(|at| self.nodes.get(at as usize))
            }
            Asker::Named(holder) => {
                let Holder { tenant, party, .. } = *holder;
                let names = [
                    OwnerName::Tenant(tenant),
                    OwnerName::Party(tenant, party),
                    OwnerName::of(holder),
                ];
                names.map(|name| self.find(&name).map(|at| &self.nodes[at as usize]))
            }
        }
    }

    fn find(&self, name: &OwnerName) -> Option<u32> {
        let same = |at: &u32| self.nodes[*at as usize].name == *name;
        self.table.find(self.hasher.hash_one(name), same).copied()
    }

    /// The node of an owner, which is made with those above it if it holds nothing yet.
    fn find_or_insert(&mut self, holder: &Holder) -> u32 {
        let name = OwnerName::of(holder);
        match self.find(&name) {
            Some(leaf) => leaf,
            None => self.insert_with_parents(name),
        }
    }

    #[cold]
    fn insert_with_parents(&mut self, name: OwnerName) -> u32 {
        let parent = name.group().map_or(NONE, |parent| {
            self.find(&parent).unwrap_or_else(|| self.insert_with_parents(parent))
        });
        match self.nodes.get_mut(parent as usize) {
            Some(parent) => parent.children += 1,
            None => self.tenants.change(0, self.weight(name.tenant())),
        }
        let node = Node { name, parent, children: 0, held: [0; N], lent: 0 };
        let at = match self.nodes.get_mut(self.vacant as usize) {
            Some(vacant) => {
                let at = std::mem::replace(&mut self.vacant, vacant.parent);
                *vacant = node;
                at
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        let Self { table, nodes, hasher, .. } = self;
        let hash = hasher.hash_one(name);
        table.insert_unique(hash, at, |at| hasher.hash_one(nodes[*at as usize].name));
        at
    }

    #[cold]
    fn remove(&mut self, at: u32) {
        let Node { name, parent, .. } = self.nodes[at as usize];
        if let Ok(found) = self.table.find_entry(self.hasher.hash_one(name), |n| *n == at) {
            found.remove();
        }
        match self.nodes.get_mut(parent as usize) {
            Some(parent) => parent.children -= 1,
            None => self.tenants.change(self.weight(name.tenant()), 0),
        }
        self.nodes[at as usize].parent = std::mem::replace(&mut self.vacant, at);
    }
}

/// Whether nothing can be kept of `max` for who takes `amount`.
fn is_indivisible(amount: usize, max: usize) -> bool {
    amount > max / PIECES_MIN
}

#[cfg(test)]
pub(crate) mod tests;
