//! What members are told, and the oracle of promises 15, 16, 17, 19 and 22.

use std::collections::{BTreeMap, BTreeSet};

use shardgate::ids::ShardId;
use shardgate::push::Counts;
use shardgate::wire::client::GroupOutcome;
use shardgate::wire::push::generated::PushMessage;

use crate::dice::Dice;
use crate::members::{Member, Room};

/// Time by which a push may be read after its end: what the kernel took before that is on its way.
pub const READ_US: u64 = 20_000;

/// The addressees of a push.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    Group(String),
    Sessions(Vec<String>),
    Users(Vec<String>),
    Tenant,
    Everyone,
}

/// A push.
#[derive(Clone, Debug)]
pub struct Sent {
    pub payload: String,
    pub at: u64,
    pub tenant: &'static str,
    pub target: Target,
    pub key: String,
    pub except_sessions: Vec<String>,
    pub except_users: Vec<String>,
    /// Time from which it is not delivered.
    pub expires: u64,
    pub is_transient: bool,
    /// Its caller, and the id that it gave.
    pub id_of: Option<(String, String)>,
    /// Whether its caller may send it.
    pub is_forbidden: bool,
    /// Whether it was refused, so that nobody gets it.
    pub is_refused: bool,
    pub is_duplicate: bool,
    /// Its place, if that is known.
    pub position: Option<(String, u64)>,
    /// Members whose sessions got it.
    pub got: BTreeSet<usize>,
    /// Parts of what control was told.
    pub told: Told,
}

/// What control was told of a push.
#[derive(Clone, Debug, Default)]
pub struct Told {
    pub is_counted: bool,
    /// Shards that it was sent to.
    pub shards: Vec<ShardId>,
    /// Words of the group's home.
    pub numbered: u32,
    pub refused: u32,
    /// Shards that the home named.
    pub awaited: Vec<ShardId>,
    pub counted: BTreeMap<u16, Counts>,
    pub duplicates: u32,
}

impl Sent {
    pub fn new(payload: String, at: u64) -> Self {
        Self {
            payload,
            at,
            tenant: "",
            target: Target::Everyone,
            key: String::new(),
            except_sessions: Vec::new(),
            except_users: Vec::new(),
            expires: u64::MAX,
            is_transient: false,
            id_of: None,
            is_forbidden: false,
            is_refused: false,
            is_duplicate: false,
            position: None,
            got: BTreeSet::new(),
            told: Told::default(),
        }
    }

    pub fn excepts_life(&self, life: &Life) -> bool {
        let user = life.user.map(|user| format!("user-{user}"));
        self.except_sessions.contains(&life.session)
            || user.is_some_and(|user| {
                self.except_users.contains(&user) && self.tenant_is(life.tenant)
            })
    }

    /// The group that it is for; empty: it is for none.
    pub fn group(&self) -> &str {
        match &self.target {
            Target::Group(group) => group,
            Target::Sessions(_) | Target::Users(_) | Target::Tenant | Target::Everyone => "",
        }
    }

    /// Whether it goes to this session itself.
    pub fn is_direct_to(&self, life: &Life) -> bool {
        let is_named = match &self.target {
            Target::Group(_) => false,
            Target::Sessions(all) => all.contains(&life.session),
            Target::Users(all) => {
                life.user.is_some_and(|user| all.contains(&format!("user-{user}")))
            }
            Target::Tenant | Target::Everyone => true,
        };
        is_named && self.tenant_is(life.tenant)
    }

    pub fn tenant_is(&self, tenant: &str) -> bool {
        self.target == Target::Everyone || self.tenant == tenant
    }
}

/// A session from its begin to its end.
#[derive(Debug, Default)]
pub struct Life {
    pub session: String,
    pub user: Option<usize>,
    pub tenant: &'static str,
    pub begun: u64,
    pub ended: Option<u64>,
    /// Pushes to the session itself that it got.
    pub direct: BTreeSet<usize>,
    /// The ones that it is told it does not get, and whether it does not know how many.
    pub dropped: u64,
    pub has_gap: bool,
}

impl Life {
    /// Whether its client knew of it by then.
    pub fn is_known_at(&self, at: u64) -> bool {
        !self.session.is_empty() && self.begun < at
    }
}

/// Time in which a session reads a group without a word between.
#[derive(Debug)]
pub struct Stint {
    pub life: usize,
    pub key: LogKey,
    pub from: u64,
    /// The first offset that is to come.
    pub begin: u64,
    pub got: BTreeMap<u64, usize>,
    /// The ones without an offset.
    pub transient: Vec<usize>,
    /// Offsets of which it was told that they are missing.
    pub gaps: Vec<(u64, u64)>,
    /// The newest of each key that it was given when it joined, up to this place.
    pub newest: Option<(u64, BTreeSet<u64>)>,
    pub is_open: bool,
    pub until: u64,
}

/// A group in a life of its own: tenant, name and epoch.
pub type LogKey = (&'static str, String, String);

/// Members, pushes, and what was seen.
#[derive(Debug, Default)]
pub struct Fan {
    pub members: Vec<Member>,
    pub lives: Vec<Life>,
    pub sent: Vec<Sent>,
    pub stints: Vec<Stint>,
    pub numbered: BTreeMap<LogKey, BTreeMap<u64, usize>>,
    /// Members by the units of their messages.
    pub units: BTreeMap<u64, usize>,
    /// The pushes that were delivered of those with one id.
    pub by_id: BTreeMap<(String, &'static str, String, String), usize>,
    /// Pushes of control with an id, by its caller.
    pub by_control: BTreeMap<(u64, String), PushMessage>,
    pub is_settling: bool,
    pub seen: BTreeMap<String, u64>,
}

impl Fan {
    pub fn saw(&mut self, what: &str, count: u64) {
        *self.seen.entry(what.to_owned()).or_default() += count;
    }

    /// Some place in a group that was told before.
    pub fn some_position(
        &self,
        tenant: &str,
        group: &str,
        dice: &mut Dice,
    ) -> Option<(String, u64)> {
        let known: Vec<_> =
            self.numbered.iter().filter(|(key, _)| key.0 == tenant && key.1 == group).collect();
        let ((.., epoch), offsets) = known.last()?;
        let last = *offsets.keys().next_back()?;
        Some((epoch.clone(), last.saturating_sub(dice.below(4))))
    }

    /// A member begins a session.
    pub fn begins_life(&mut self, c: usize) {
        let life = self.lives.len();
        let member = &mut self.members[c];
        member.life = life;
        member.asked.clear();
        member.by_service.clear();
        (member.offset, member.may_skip) = (0, false);
        let life = Life { user: member.user, tenant: member.tenant, ..Life::default() };
        self.lives.push(life);
        self.members[c].session.clear();
        let rooms: Vec<Room> = std::mem::take(&mut self.members[c].rooms).into_values().collect();
        rooms.into_iter().for_each(|room| self.stints[room.stint].is_open = false);
    }

    /// A member's connection breaks.
    pub fn breaks(&mut self, c: usize, now: u64) {
        let member = &self.members[c];
        if !member.is_resumable && !self.lives.is_empty() {
            self.lives[member.life].ended.get_or_insert(now);
            let rooms = std::mem::take(&mut self.members[c].rooms);
            rooms.into_values().for_each(|room| self.stints[room.stint].is_open = false);
        }
    }

    /// A push has this place.
    pub fn is_numbered(&mut self, key: &LogKey, offset: u64, n: usize) {
        let known = *self.numbered.entry(key.clone()).or_default().entry(offset).or_insert(n);
        assert_eq!(known, n, "promise 16: two pushes at {offset} of {key:?}");
        let place = (key.2.clone(), offset);
        let known = self.sent[n].position.get_or_insert(place.clone());
        assert_eq!(*known, place, "promise 16: push {n} has two places");
        self.has_id(n);
    }

    /// A push is taken: no other one of its id is.
    pub fn has_id(&mut self, n: usize) {
        let sent = &self.sent[n];
        let Some((caller, id)) = sent.id_of.clone() else { return };
        let scope = match &sent.target {
            Target::Group(group) => group.clone(),
            _ => String::new(),
        };
        let first = *self.by_id.entry((caller, sent.tenant, scope, id)).or_insert(n);
        assert_eq!(first, n, "promise 16: an id is taken twice: {:?}", self.sent[n]);
    }

    /// A member is in a group from this place on.
    pub fn enters(&mut self, c: usize, group: &str, told: &GroupOutcome, now: u64, is_last: bool) {
        let at = told.position.clone().expect("a place");
        let member = &self.members[c];
        let key = (member.tenant, group.to_owned(), at.epoch.clone());
        let keeps_newest = is_last && told.outcome != "resumed";
        let stint = self.stints.len();
        self.stints.push(Stint {
            life: member.life,
            key,
            from: now,
            begin: at.offset + 1,
            got: BTreeMap::new(),
            transient: Vec::new(),
            gaps: Vec::new(),
            newest: keeps_newest.then(|| (at.offset, BTreeSet::new())),
            is_open: true,
            until: now,
        });
        let newest = keeps_newest.then_some(0);
        let room = Room { epoch: at.epoch, next: at.offset + 1, newest, stint };
        if let Some(old) = self.members[c].rooms.insert(group.to_owned(), room) {
            self.stints[old.stint].is_open = false;
        }
    }

    pub fn quits(&mut self, c: usize, group: &str) -> bool {
        let room = self.members[c].rooms.remove(group);
        if let Some(room) = &room {
            self.stints[room.stint].is_open = false;
        }
        room.is_some()
    }
}
