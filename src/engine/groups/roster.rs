//! The people of a group on one shard, and what its home was told of them.
//!
//! People are users, and sessions that have not signed in: a second tab of a user is nobody new. A
//! user is on one shard, so the shards' numbers add up. What changed is told as a state and not as
//! events: who came and went between two words is never told, and a word that a lane refused is
//! followed by one that says all.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::config::settings::{GroupRule, PresenceKind};
use crate::engine::groups::Groups;
use crate::engine::groups::lane::Deliver;
use crate::ids::{GroupKey, SessionId};
use crate::message::Micros;
use crate::push::GroupName;

/// A user, or a session that has not signed in.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum PersonName {
    /// The name of a user.
    User(Arc<str>),
    /// The public id of a session.
    Session(SessionId),
}

/// A shard's word to the home of a group about the people there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct People {
    /// How many there are.
    pub count: u32,
    /// Their names, as far as they are told.
    pub names: Names,
}

/// The part of a shard's word that names people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Names {
    /// Nobody is named: the rule does not want it, or there are too many.
    None,
    /// All of them.
    All(Vec<PersonName>),
    /// People who came and who left since the word before.
    #[allow(missing_docs)]
    Changes { came: Vec<PersonName>, left: Vec<PersonName> },
}

/// State of the home as this shard knows it.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// Unknown: the next word says all.
    Nothing,
    /// So many people.
    Count(u32),
    /// All names, but for those who came (true) or left (false) since.
    Names(HashMap<PersonName, bool>),
}

/// The people of a group on this shard.
#[derive(Debug)]
pub struct Roster {
    /// Sessions of each that are there.
    here: HashMap<PersonName, u32>,
    told: Told,
    /// Time before which the home is told nothing.
    next_at: Micros,
    is_listed: bool,
}

impl Default for Roster {
    fn default() -> Self {
        let (here, told) = (HashMap::new(), Told::Nothing);
        Self { here, told, next_at: Micros(0), is_listed: false }
    }
}

impl Roster {
    /// A roster for groups with this rule; `None`: it tells nothing of people.
    pub fn of(rule: &GroupRule) -> Option<Box<Self>> {
        match rule.presence {
            PresenceKind::Off => None,
            PresenceKind::Count | PresenceKind::Names => Some(Box::default()),
        }
    }

    /// How many people there are.
    pub fn count(&self) -> u32 {
        // Members of a group are below 2^24.
        self.here.len() as u32
    }

    /// Sessions of each person.
    pub fn people(&self) -> &HashMap<PersonName, u32> {
        &self.here
    }

    /// Takes note that a session of a person is there.
    pub fn comes(&mut self, person: PersonName) {
        let sessions = self.here.entry(person.clone()).or_default();
        *sessions += 1;
        if *sessions == 1 {
            self.note(person, true);
        }
    }

    /// Takes note that a session of a person is there no more.
    pub fn goes(&mut self, person: PersonName) {
        let Some(sessions) = self.here.get_mut(&person) else { return };
        *sessions -= 1;
        if *sessions == 0 {
            self.here.remove(&person);
            self.note(person, false);
        }
    }

    /// A person who came and left again, or the other way, has not changed.
    fn note(&mut self, person: PersonName, came: bool) {
        if let Told::Names(changed) = &mut self.told
            && changed.remove(&person).is_none()
        {
            changed.insert(person, came);
        }
    }

    /// What the home is to be told now, if there is anything.
    pub fn take(&mut self, rule: &GroupRule) -> Option<People> {
        let count = self.count();
        let has_names = match rule.presence {
            PresenceKind::Off | PresenceKind::Count => false,
            PresenceKind::Names => count <= rule.names_max,
        };
        if !has_names {
            let is_told = self.told == Told::Count(count);
            self.told = Told::Count(count);
            return (!is_told).then_some(People { count, names: Names::None });
        }
        let names = match std::mem::replace(&mut self.told, Told::Names(HashMap::new())) {
            Told::Names(changed) if changed.is_empty() => return None,
            Told::Names(changed) => {
                let (came, left): (Vec<_>, Vec<_>) = changed.into_iter().partition(|(_, c)| *c);
                let names = |list: Vec<(PersonName, bool)>| {
                    list.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
                };
                Names::Changes { came: names(came), left: names(left) }
            }
            Told::Nothing | Told::Count(_) => Names::All(self.here.keys().cloned().collect()),
        };
        Some(People { count, names })
    }

    /// Takes note that the home was not told the last word.
    pub fn refused(&mut self) {
        self.told = Told::Nothing;
    }

    /// Bytes of memory that it holds.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.here.capacity() * (size_of::<(PersonName, u32)>() + 1)
    }
}

impl Groups {
    /// Takes note that a session of a person is in a group, and there.
    pub fn comes(&mut self, key: GroupKey, person: PersonName) {
        let Some(group) = self.groups.get_mut(key) else { return };
        if let Some(roster) = group.roster.as_deref_mut() {
            roster.comes(person);
            self.list_roster(key);
        }
    }

    /// Takes note that a session of a person is not in a group any more, or not there.
    pub fn goes(&mut self, key: GroupKey, person: PersonName) {
        let Some(group) = self.groups.get_mut(key) else { return };
        if let Some(roster) = group.roster.as_deref_mut() {
            roster.goes(person);
            self.list_roster(key);
        }
    }

    /// How many people are in a group, as far as this shard knows: what other shards had when the
    /// home told of them last, and its own. 0 if the rule tells nothing of people.
    pub fn present(&self, key: GroupKey) -> u64 {
        let Some(group) = self.groups.get(key) else { return 0 };
        group.roster.as_deref().map_or(0, |own| group.elsewhere + u64::from(own.count()))
    }

    /// Lists a group whose home may have to be told of its people.
    pub(super) fn list_roster(&mut self, key: GroupKey) {
        let roster = self.groups.get_mut(key).and_then(|group| group.roster.as_deref_mut());
        if let Some(roster) = roster
            && !std::mem::replace(&mut roster.is_listed, true)
        {
            self.rosters_due.insert((roster.next_at, key));
        }
    }

    /// Tells homes of the people here, each at most once in `presence_ms`: part of the tick.
    pub(super) fn tell_people(&mut self, now: Micros) {
        while let Some(&(due, key)) = self.rosters_due.first()
            && due <= now
        {
            self.rosters_due.pop_first();
            let Some(group) = self.groups.get_mut(key) else { continue };
            let Some(roster) = group.roster.as_deref_mut() else { continue };
            roster.is_listed = false;
            let Some(people) = roster.take(&group.rule) else { continue };
            roster.next_at = now.plus_ms(group.rule.presence_ms);
            let name = group.name.clone();
            let (home, from) = (name.home(self.shards), self.shard);
            self.send(home, Deliver::People { group: name, from, people: Box::new(people) });
        }
    }

    /// Takes note that a lane had no room for a word about the people here.
    pub(super) fn people_refused(&mut self, name: &GroupName) {
        let Some(key) = self.find(name) else { return };
        if let Some(roster) = self.groups.get_mut(key).and_then(|group| group.roster.as_deref_mut())
        {
            roster.refused();
            self.list_roster(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(presence: PresenceKind, names_max: u32) -> GroupRule {
        GroupRule { presence, names_max, ..GroupRule::new("room:*") }
    }

    fn user(name: &str) -> PersonName {
        PersonName::User(name.into())
    }

    fn changes(came: &[&str], left: &[&str]) -> Names {
        let names = |list: &[&str]| list.iter().map(|name| user(name)).collect();
        Names::Changes { came: names(came), left: names(left) }
    }

    #[test]
    fn a_second_tab_is_nobody_new_and_who_only_looked_in_is_not_told() {
        let (mut roster, rule) = (Roster::default(), rule(PresenceKind::Names, 10));
        roster.comes(user("ann"));
        let all = Names::All(vec![user("ann")]);
        assert_eq!(roster.take(&rule), Some(People { count: 1, names: all.clone() }));
        roster.comes(user("ann"));
        roster.comes(user("bob"));
        roster.goes(user("bob"));
        roster.goes(user("ann"));
        assert_eq!(roster.take(&rule), None);
        roster.comes(user("eve"));
        roster.goes(user("ann"));
        let names = changes(&["eve"], &["ann"]);
        assert_eq!(roster.take(&rule), Some(People { count: 1, names }));
        roster.refused();
        let all = Names::All(vec![user("eve")]);
        assert_eq!(roster.take(&rule), Some(People { count: 1, names: all }));
    }

    #[test]
    fn names_are_told_again_when_there_are_few_enough() {
        let (mut roster, rule) = (Roster::default(), rule(PresenceKind::Names, 1));
        let told = |roster: &mut Roster| roster.take(&rule).map(|people| people.names);
        roster.comes(user("ann"));
        assert_eq!(told(&mut roster), Some(Names::All(vec![user("ann")])));
        roster.comes(user("bob"));
        assert_eq!((told(&mut roster), told(&mut roster)), (Some(Names::None), None));
        roster.goes(user("ann"));
        assert_eq!(told(&mut roster), Some(Names::All(vec![user("bob")])));
    }

    #[test]
    fn a_count_that_is_the_same_is_not_told_again() {
        let (mut roster, rule) = (Roster::default(), rule(PresenceKind::Count, 100));
        roster.comes(user("ann"));
        assert_eq!(roster.take(&rule), Some(People { count: 1, names: Names::None }));
        roster.comes(user("bob"));
        roster.goes(user("ann"));
        assert_eq!(roster.take(&rule), None);
    }
}
