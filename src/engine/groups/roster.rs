//! The people of a group on one shard, and what its home was told of them.
//!
//! People are users, and sessions that have not signed in: a second tab of a user is nobody new. A
//! user is on one shard, so the shards' numbers add up. What changed is told as a state and not as
//! events: who came and went between two words is never told, and a word that a lane refused is
//! followed by one that says all.

use std::sync::Arc;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

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

/// A JSON text of a service about a session that it put into a group; `None` = it gave none.
pub type Info = Option<Arc<[u8]>>;

/// How a session stands to others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Standing {
    /// It is on a connection.
    #[default]
    Here,
    /// It lost its connection less than `session.grace_ms` ago: it counts as there.
    Away,
    /// It lost its connection before that, or is in the group no more.
    Absent,
}

/// A person as others see it, but for the name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// The last that a service said of one of its sessions.
    pub info: Info,
    /// Whether none of its sessions is on a connection.
    pub is_away: bool,
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
    All(Vec<(PersonName, Seen)>),
    /// People who came or are seen in another way, and who left, since the word before.
    #[allow(missing_docs)]
    Changes { came: Vec<(PersonName, Seen)>, left: Vec<PersonName> },
}

/// State of the home as this shard knows it.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// Unknown: the next word says all.
    Nothing,
    /// So many people.
    Count(u32),
    /// All names, but for those who changed since, of whom this is what the home was told; `None`:
    /// it does not know them.
    Names(HashMap<PersonName, Option<Seen>>),
}

/// The sessions of a person that are there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sessions {
    /// On a connection.
    pub here: u32,
    /// Without one.
    pub away: u32,
    info: Info,
}

impl Sessions {
    fn of(&mut self, standing: Standing) -> Option<&mut u32> {
        match standing {
            Standing::Here => Some(&mut self.here),
            Standing::Away => Some(&mut self.away),
            Standing::Absent => None,
        }
    }

    fn seen(&self) -> Option<Seen> {
        let Self { here, away, info } = self;
        (here + away > 0).then(|| Seen { info: info.clone(), is_away: *here == 0 })
    }
}

/// The people of a group on this shard.
#[derive(Debug)]
pub struct Roster {
    people: HashMap<PersonName, Sessions>,
    told: Told,
    /// Time before which the home is told nothing.
    next_at: Micros,
    is_listed: bool,
}

impl Default for Roster {
    fn default() -> Self {
        let (people, told) = (HashMap::new(), Told::Nothing);
        Self { people, told, next_at: Micros(0), is_listed: false }
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
        self.people.len() as u32
    }

    /// Sessions of each person.
    pub fn people(&self) -> &HashMap<PersonName, Sessions> {
        &self.people
    }

    /// Takes note that a session of a person stands in another way than before: absent is one that
    /// was no member, or is none any more.
    pub fn moves(&mut self, person: PersonName, was: Standing, is: Standing) {
        self.change(person, |sessions| {
            if let Some(count) = sessions.of(was) {
                *count = count.saturating_sub(1);
            }
            if let Some(count) = sessions.of(is) {
                *count += 1;
            }
        });
    }

    /// Takes note of what a service says of a person who is there.
    pub fn set_info(&mut self, person: PersonName, info: Arc<[u8]>) {
        self.change(person, |sessions| sessions.info = Some(info));
    }

    /// Changes a person. One who is seen as the home was told has not changed.
    fn change(&mut self, person: PersonName, act: impl FnOnce(&mut Sessions)) {
        let before = self.people.get(&person).and_then(Sessions::seen);
        let sessions = self.people.entry(person.clone()).or_default();
        act(sessions);
        let after = sessions.seen();
        if after.is_none() {
            self.people.remove(&person);
        }
        if before != after
            && let Told::Names(changed) = &mut self.told
        {
            match changed.entry(person) {
                Entry::Occupied(known) if *known.get() == after => drop(known.remove()),
                Entry::Occupied(_) => {}
                Entry::Vacant(place) => drop(place.insert(before)),
            }
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
                let (mut came, mut left) = (Vec::new(), Vec::new());
                for (name, _) in changed {
                    match self.people.get(&name).and_then(Sessions::seen) {
                        Some(seen) => came.push((name, seen)),
                        None => left.push(name),
                    }
                }
                Names::Changes { came, left }
            }
            Told::Nothing | Told::Count(_) => {
                let seen = |(name, sessions): (&PersonName, &Sessions)| {
                    Some((name.clone(), sessions.seen()?))
                };
                Names::All(self.people.iter().filter_map(seen).collect())
            }
        };
        Some(People { count, names })
    }

    /// Takes note that the home was not told the last word.
    pub fn refused(&mut self) {
        self.told = Told::Nothing;
    }

    /// Bytes of memory that it holds.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.people.capacity() * (size_of::<(PersonName, Sessions)>() + 1)
    }
}

impl Groups {
    /// Takes note that a session of a person stands in another way in a group: see
    /// [`Roster::moves`].
    pub fn moves(&mut self, key: GroupKey, person: PersonName, was: Standing, is: Standing) {
        self.change_roster(key, |roster| roster.moves(person, was, is));
    }

    /// Takes note of what a service says of a person in a group.
    pub fn set_info(&mut self, key: GroupKey, person: PersonName, info: Arc<[u8]>) {
        self.change_roster(key, |roster| roster.set_info(person, info));
    }

    fn change_roster(&mut self, key: GroupKey, act: impl FnOnce(&mut Roster)) {
        let Some(group) = self.groups.get_mut(key) else { return };
        if let Some(roster) = group.roster.as_deref_mut() {
            act(roster);
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

    fn seen(name: &str) -> (PersonName, Seen) {
        (user(name), Seen::default())
    }

    fn changes(came: Vec<(PersonName, Seen)>, left: &[&str]) -> Names {
        Names::Changes { came, left: left.iter().map(|name| user(name)).collect() }
    }

    impl Roster {
        fn comes(&mut self, name: &str) {
            self.moves(user(name), Standing::Absent, Standing::Here);
        }

        fn goes(&mut self, name: &str) {
            self.moves(user(name), Standing::Here, Standing::Absent);
        }
    }

    #[test]
    fn a_second_tab_is_nobody_new_and_who_only_looked_in_is_not_told() {
        let (mut roster, rule) = (Roster::default(), rule(PresenceKind::Names, 10));
        roster.comes("ann");
        let all = Names::All(vec![seen("ann")]);
        assert_eq!(roster.take(&rule), Some(People { count: 1, names: all.clone() }));
        roster.comes("ann");
        roster.comes("bob");
        roster.goes("bob");
        roster.goes("ann");
        assert_eq!(roster.take(&rule), None);
        roster.comes("eve");
        roster.goes("ann");
        let names = changes(vec![seen("eve")], &["ann"]);
        assert_eq!(roster.take(&rule), Some(People { count: 1, names }));
        roster.refused();
        let all = Names::All(vec![seen("eve")]);
        assert_eq!(roster.take(&rule), Some(People { count: 1, names: all }));
    }

    #[test]
    fn names_are_told_again_when_there_are_few_enough() {
        let (mut roster, rule) = (Roster::default(), rule(PresenceKind::Names, 1));
        let told = |roster: &mut Roster| roster.take(&rule).map(|people| people.names);
        roster.comes("ann");
        assert_eq!(told(&mut roster), Some(Names::All(vec![seen("ann")])));
        roster.comes("bob");
        assert_eq!((told(&mut roster), told(&mut roster)), (Some(Names::None), None));
        roster.goes("ann");
        assert_eq!(told(&mut roster), Some(Names::All(vec![seen("bob")])));
    }

    #[test]
    fn a_count_that_is_the_same_is_not_told_again() {
        let (mut roster, rule) = (Roster::default(), rule(PresenceKind::Count, 100));
        roster.comes("ann");
        assert_eq!(roster.take(&rule), Some(People { count: 1, names: Names::None }));
        roster.comes("bob");
        roster.goes("ann");
        assert_eq!(roster.take(&rule), None);
    }

    #[test]
    fn who_breaks_or_is_said_something_new_of_is_seen_in_another_way() {
        let (mut roster, rule) = (Roster::default(), rule(PresenceKind::Names, 10));
        roster.comes("ann");
        roster.take(&rule);
        let told = |roster: &mut Roster| roster.take(&rule).map(|people| people.names);
        roster.moves(user("ann"), Standing::Here, Standing::Away);
        let away = Seen { is_away: true, ..Seen::default() };
        let gone = vec![(user("ann"), away.clone())];
        assert_eq!(told(&mut roster), Some(changes(gone.clone(), &[])));
        roster.comes("ann");
        assert_eq!(told(&mut roster), Some(changes(vec![seen("ann")], &[])), "another tab");
        roster.goes("ann");
        roster.moves(user("ann"), Standing::Away, Standing::Here);
        assert_eq!(told(&mut roster), None, "as it was told before");
        let info: Arc<[u8]> = (*b"{}").into();
        roster.set_info(user("ann"), info.clone());
        let known = Seen { info: Some(info.clone()), is_away: false };
        assert_eq!(told(&mut roster), Some(changes(vec![(user("ann"), known)], &[])));
        roster.set_info(user("ann"), info);
        assert_eq!(told(&mut roster), None, "the same once more");
        roster.goes("ann");
        assert_eq!(told(&mut roster), Some(changes(vec![], &["ann"])));
        roster.comes("ann");
        assert_eq!(told(&mut roster), Some(changes(vec![seen("ann")], &[])), "and forgotten");
    }
}
