//! Sessions that wait for a word of a group's home: about a place, or a push of theirs.

use std::collections::BTreeMap;

use crate::engine::groups::roster::Info;
use crate::ids::SessionKey;
use crate::message::Micros;
use crate::push::{GroupName, Position};

/// The word that a session waits for.
#[derive(Clone, PartialEq, Debug)]
pub enum Wish {
    /// A place in the group; from where it wants to read on.
    Join {
        /// The group.
        group: GroupName,
        /// What its client says of it.
        asked: Asked,
    },
    /// The number of a push.
    Publish,
    /// The people of a group.
    Members,
}

/// The particulars of a join, by the client or by a service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Asked {
    /// Place up to which it has the group's pushes.
    pub since: Option<Position>,
    /// Whether it wants to be told who comes and goes; `None` = as before, and at first not.
    pub presence: Option<bool>,
    /// What a service says of it; `None` = as before.
    pub info: Info,
}

/// A session that waits.
#[derive(Clone, PartialEq, Debug)]
pub struct Ask {
    /// The session.
    pub session: SessionKey,
    /// Number of the message that is answered; 0 = nobody is answered.
    pub seq: u64,
    /// Its id.
    pub msg_id: u32,
    /// Time at which it is told that no word came.
    pub due: Micros,
    /// The word.
    pub wish: Wish,
}

/// All that wait, by the number of their ask: they are due in that order, while the time does not
/// change.
#[derive(Debug, Default)]
pub struct Asks {
    waiting: BTreeMap<u64, Ask>,
    last: u64,
}

impl Asks {
    /// Puts one in. Returns its number.
    pub fn put(&mut self, ask: Ask) -> u64 {
        self.last += 1;
        self.waiting.insert(self.last, ask);
        self.last
    }

    /// Number of the last one.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Whether one of those behind `after`, up to `last`, still waits.
    pub fn has_between(&self, after: u64, last: u64) -> bool {
        after < last && self.waiting.range(after + 1..=last).next().is_some()
    }

    /// Takes the one with this number out, if it still waits.
    pub fn take(&mut self, number: u64) -> Option<Ask> {
        self.waiting.remove(&number)
    }

    /// Takes one out that is due.
    pub fn take_due(&mut self, now: Micros) -> Option<(u64, Ask)> {
        let (number, ask) = self.waiting.first_key_value()?;
        let number = (ask.due <= now).then_some(*number)?;
        Some((number, self.waiting.remove(&number)?))
    }

    /// Whether a session waits for a place in a group.
    pub fn has_join(&self, session: SessionKey, name: &GroupName) -> bool {
        self.waiting.values().any(|ask| match &ask.wish {
            Wish::Join { group, .. } => ask.session == session && group == name,
            Wish::Publish | Wish::Members => false,
        })
    }

    /// Sessions that wait.
    pub fn iter(&self) -> impl Iterator<Item = &Ask> {
        self.waiting.values()
    }
}
