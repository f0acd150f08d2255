//! Presence at the home of a group: the people of all shards, and what members were told of them.
//!
//! Each shard tells how many people it has, and their names while they are few. The home tells all
//! members what changed, by one message for all, at most once in `presence_ms`. What members were
//! told is remembered as they see it: the list of members (id 9013) is answered from that, so that
//! who reads it and applies all later changes is never wrong, whichever comes first.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::config::settings::{GroupRule, GroupSettings, PresenceKind};
use crate::engine::groups::Groups;
use crate::engine::groups::roster::{Info, Names, People, PersonName, Seen};
use crate::ids::{HomeKey, SessionId, ShardId};
use crate::message::{Encoding, Micros, Priority};
use crate::push::{Body, GroupName, Kind, Presence};
use crate::wire::client;

/// People whom one message names. With more, members read the list again.
const CHANGES_MAX: usize = 100;
/// People of one page of a list.
const PAGE_MAX: usize = 1_000;
/// Bytes of their names, at most: an answer is not to fill an outbox.
const PAGE_BYTES_MAX: usize = 128 << 10;
/// Time after which a home whose shards cannot keep up tries again, in milliseconds.
const LATER_MS: u64 = 100;

/// The people of one shard.
#[derive(Debug)]
struct Part {
    shard: ShardId,
    count: u32,
    /// Whether all of them are named.
    has_names: bool,
}

/// The people of a group, at its home.
#[derive(Debug)]
pub struct Everybody {
    parts: Vec<Part>,
    /// The ones who are named, with their shard.
    people: BTreeMap<PersonName, (ShardId, Seen)>,
    /// People of whom members know, and what was said of them; `None`: there are too many.
    shown: Option<BTreeMap<PersonName, Info>>,
    /// The count that members know of.
    shown_count: u64,
    /// Whether some members may have missed a message.
    is_missed: bool,
    /// Time before which members are told nothing.
    next_at: Micros,
    is_listed: bool,
}

impl Default for Everybody {
    fn default() -> Self {
        Self {
            parts: Vec::new(),
            people: BTreeMap::new(),
            shown: Some(BTreeMap::new()),
            shown_count: 0,
            is_missed: false,
            next_at: Micros(0),
            is_listed: false,
        }
    }
}

/// What members are told.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Word {
    /// People who came, or have another `info`.
    joined: Vec<(PersonName, Info)>,
    left: Vec<PersonName>,
    reset: bool,
}

/// A page of the list of members.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// The people, as members know of them, and whether they are away now.
    pub people: Vec<(PersonName, Seen)>,
    /// Whether there are more behind them.
    pub has_more: bool,
    /// How many there are in all.
    pub count: u64,
}

impl Everybody {
    /// How many there are.
    fn count(&self) -> u64 {
        self.parts.iter().map(|part| u64::from(part.count)).sum()
    }

    /// How many there are on other shards than `shard`.
    pub fn elsewhere(&self, shard: ShardId) -> u64 {
        let others = self.parts.iter().filter(|part| part.shard != shard);
        others.map(|part| u64::from(part.count)).sum()
    }

    /// Takes the word of a shard.
    fn take(&mut self, shard: ShardId, people: People) {
        let at = self.parts.iter().position(|part| part.shard == shard).unwrap_or_else(|| {
            self.parts.push(Part { shard, count: 0, has_names: false });
            self.parts.len() - 1
        });
        let part = &mut self.parts[at];
        let had_names = part.has_names;
        let of_shard = |(name, seen): (PersonName, Seen)| (name, (shard, seen));
        part.count = people.count;
        part.has_names = people.names != Names::None;
        match people.names {
            Names::None | Names::All(_) if had_names => {
                self.people.retain(|_, (of, _)| *of != shard)
            }
            Names::None | Names::All(_) | Names::Changes { .. } => {}
        }
        match people.names {
            Names::None => {}
            Names::All(names) => self.people.extend(names.into_iter().map(of_shard)),
            Names::Changes { came, left } => {
                self.people.extend(came.into_iter().map(of_shard));
                for name in left {
                    if self.people.get(&name).is_some_and(|(of, _)| *of == shard) {
                        self.people.remove(&name);
                    }
                }
            }
        }
    }

    /// Forgets the people of a shard.
    fn forget(&mut self, shard: ShardId) {
        self.parts.retain(|part| part.shard != shard);
        self.people.retain(|_, (of, _)| *of != shard);
    }

    /// What members are to be told now, if there is anything.
    fn word(&mut self, rule: &GroupRule) -> Option<Word> {
        let count = self.count();
        let is_missed = std::mem::take(&mut self.is_missed);
        let is_same = std::mem::replace(&mut self.shown_count, count) == count && !is_missed;
        let may_name = match rule.presence {
            PresenceKind::Off => return None,
            PresenceKind::Count => return (!is_same).then(Word::default),
            PresenceKind::Names => count <= u64::from(rule.names_max),
        };
        if !may_name || self.parts.iter().any(|part| !part.has_names) {
            // Who has a list of names has one that is wrong from now on.
            let reset = self.shown.take().is_some() || is_missed;
            return (reset || !is_same).then(|| Word { reset, ..Word::default() });
        }
        let Some(shown) = self.shown.as_mut().filter(|_| !is_missed) else {
            let info = |(name, (_, seen)): (&PersonName, &(ShardId, Seen))| {
                (name.clone(), seen.info.clone())
            };
            self.shown = Some(self.people.iter().map(info).collect());
            return Some(Word { reset: true, ..Word::default() });
        };
        let news = |(name, (_, seen)): (&PersonName, &(ShardId, Seen))| {
            (shown.get(name) != Some(&seen.info)).then(|| (name.clone(), seen.info.clone()))
        };
        let joined: Vec<_> = self.people.iter().filter_map(news).collect();
        let left: Vec<_> =
            shown.keys().filter(|name| !self.people.contains_key(*name)).cloned().collect();
        shown.retain(|name, _| self.people.contains_key(name));
        shown.extend(joined.iter().cloned());
        match joined.len() + left.len() {
            0 if is_same => None,
            1..=CHANGES_MAX | 0 => Some(Word { joined, left, reset: false }),
            _ => Some(Word { reset: true, ..Word::default() }),
        }
    }

    /// The people behind `after`, `limit` at most, as members know of them.
    fn page(&self, after: Option<&PersonName>, limit: usize) -> Page {
        let begin = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = (begin, Bound::Unbounded);
        let behind = self.shown.iter().flat_map(|shown| shown.range::<PersonName, _>(range));
        let mut behind = behind.peekable();
        let (mut people, mut bytes) = (Vec::new(), 0);
        let size = |name: &PersonName, info: &Info| {
            text_of(name).len() + info.as_deref().map_or(0, <[u8]>::len)
        };
        while people.len() < limit.min(PAGE_MAX)
            && let Some((name, info)) =
                behind.next_if(|(name, info)| bytes + size(name, info) <= PAGE_BYTES_MAX)
        {
            bytes += size(name, info);
            let is_away = self.people.get(name).is_some_and(|(_, seen)| seen.is_away);
            people.push((name.clone(), Seen { info: info.clone(), is_away }));
        }
        let has_more = !people.is_empty() && behind.peek().is_some();
        Page { people, has_more, count: self.shown_count }
    }
}

fn text_of(name: &PersonName) -> &str {
    match name {
        PersonName::User(user) => user,
        PersonName::Session(session) => session.as_str(),
    }
}

/// A person as clients see it.
pub fn person(name: &PersonName, info: &Info, away: bool) -> client::Person {
    let info = info.as_deref().unwrap_or_default().to_vec();
    let mut person = client::Person { info, away, ..client::Person::default() };
    match name {
        PersonName::User(user) => person.user = user.to_string(),
        PersonName::Session(session) => person.session = session.as_str().to_owned(),
    }
    person
}

/// The place behind a person, as clients see it: `u` and the name of a user, or `s` and the id of a
/// session.
pub fn cursor(name: &PersonName) -> String {
    match name {
        PersonName::User(user) => format!("u{user}"),
        PersonName::Session(session) => format!("s{}", session.as_str()),
    }
}

/// Reads the place that a client names; the inner `None` is the one before all.
pub fn read_cursor(text: &str) -> Option<Option<PersonName>> {
    if text.is_empty() {
        return Some(None);
    }
    match (text.strip_prefix('u'), text.strip_prefix('s')) {
        (Some(user), _) => Some(Some(PersonName::User(user.into()))),
        (None, Some(session)) => SessionId::read(session).map(|id| Some(PersonName::Session(id))),
        (None, None) => None,
    }
}

/// The message that tells members of it.
fn body_of(name: &GroupName, word: &Word, everybody: &Everybody, unix_ms: i64) -> Body {
    let told = client::Presence {
        group: name.name.to_string(),
        count: everybody.count(),
        // Who is away for a moment is told to those who ask, and to nobody else.
        joined: word.joined.iter().map(|(name, info)| person(name, info, false)).collect(),
        left: word.left.iter().map(|name| person(name, &None, false)).collect(),
        reset: word.reset,
    };
    let parts = everybody.parts.iter().map(|part| (part.shard, part.count)).collect();
    let protobuf = Bytes::from(client::payload(Encoding::Protobuf, &told));
    Body {
        kind: Kind::Presence(Box::new(Presence { protobuf, parts })),
        msg_id: 0,
        payload: client::payload(Encoding::Json, &told).into(),
        is_bytes: false,
        key: "".into(),
        id: "".into(),
        from: "".into(),
        except: Vec::new(),
        priority: Priority::Normal,
        is_transient: true,
        expires: Micros(u64::MAX),
        unix_ms,
    }
}

impl Groups {
    /// Takes a shard's word about the people of a group whose home is here.
    pub fn take_people(&mut self, name: &GroupName, from: ShardId, people: People) {
        let Some(&key) = self.home_names.get(name) else { return };
        let Some(home) = self.homes.get_mut(key) else { return };
        // A shard that is not told of pushes has no members.
        if !home.interest().iter().any(|interest| interest.shard == from) {
            return;
        }
        home.everybody.get_or_insert_default().take(from, people);
        self.list_presence(key);
    }

    /// Forgets the people of a shard that has no members any more.
    pub fn forget_people(&mut self, name: &GroupName, of: ShardId) {
        let Some(&key) = self.home_names.get(name) else { return };
        let Some(home) = self.homes.get_mut(key) else { return };
        if home.interest().iter().any(|interest| interest.shard == of) {
            return;
        }
        if let Some(everybody) = home.everybody.as_deref_mut() {
            everybody.forget(of);
            self.list_presence(key);
        }
    }

    /// Takes note that a lane had no room for a message about people.
    pub(super) fn presence_refused(&mut self, key: HomeKey) {
        if let Some(everybody) = self.homes.get_mut(key).and_then(|h| h.everybody.as_deref_mut()) {
            everybody.is_missed = true;
            self.list_presence(key);
        }
    }

    /// Lists a home whose members may have to be told of people.
    pub(super) fn list_presence(&mut self, key: HomeKey) {
        if let Some(everybody) = self.homes.get_mut(key).and_then(|h| h.everybody.as_deref_mut())
            && !std::mem::replace(&mut everybody.is_listed, true)
        {
            self.presence_due.insert((everybody.next_at, key));
        }
    }

    /// Tells homes of people, and members of them: part of the tick. Returns to the members of how
    /// many groups.
    pub fn tell_presence(&mut self, settings: &GroupSettings, now: Micros, unix_ms: i64) -> u64 {
        self.tell_people(now);
        let mut told = 0;
        while let Some(&(due, key)) = self.presence_due.first()
            && due <= now
        {
            self.presence_due.pop_first();
            let Some(home) = self.homes.get_mut(key) else { continue };
            let is_lagging = home.is_lagging(settings.lag_bytes_max);
            let Some(everybody) = home.everybody.as_deref_mut() else { continue };
            if is_lagging {
                everybody.next_at = now.plus_ms(LATER_MS);
                self.presence_due.insert((everybody.next_at, key));
                continue;
            }
            everybody.is_listed = false;
            let Some(word) = everybody.word(&home.rule) else { continue };
            everybody.next_at = now.plus_ms(home.rule.presence_ms);
            let name = home.name.clone();
            let body = Arc::new(body_of(&name, &word, everybody, unix_ms));
            self.publish(&name, &body, None, settings, now);
            told += 1;
        }
        told
    }

    /// A page of the members of a group whose home is here, as its rule allows it.
    pub fn page(&self, name: &GroupName, after: Option<&PersonName>, limit: u32) -> Page {
        let limit = if limit == 0 { usize::MAX } else { limit as usize };
        match self.home(name).and_then(|home| Some((home.everybody.as_deref()?, &home.rule))) {
            Some((all, rule)) if rule.presence == PresenceKind::Names => all.page(after, limit),
            Some((all, _)) => all.page(after, 0),
            None => Page { people: Vec::new(), has_more: false, count: 0 },
        }
    }
}

#[cfg(test)]
mod tests;
