//! Items of the *deliver* lanes, by which shards tell each other of groups. Each is told once, in
//! order, and never awaited; what a lane has no room for comes back to its sender, which tells it
//! again in a later turn.

use std::sync::Arc;

use crate::engine::groups::home::Kept;
use crate::engine::groups::presence::Page;
use crate::engine::groups::roster::{People, PersonName};
use crate::ids::{SessionKey, ShardId};
use crate::message::Reject;
use crate::push::{Body, GroupName, Position};

/// A push with its number; 0 of one that is not kept.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The number.
    pub offset: u64,
    /// The content.
    pub body: Arc<Body>,
    /// Number of the receipt that counts its addressees.
    pub counted: Option<u64>,
}

/// Everything that a home keeps of a group, for a shard that is told of it for the first time.
#[derive(Clone, Debug)]
pub struct KeptAll {
    /// The last pushes.
    pub frames: Vec<Kept>,
    /// The newest push of each key, with its offset.
    pub newest: Vec<(u64, Arc<Body>)>,
    /// The last offset of which control is not told that the shard counts the addressees.
    pub begun_at: u64,
}

/// The home's answer to [`Deliver::Ask`].
#[derive(Clone, Debug)]
pub struct Confirmed {
    /// The group.
    pub group: GroupName,
    /// Where its pushes stand: all later ones follow.
    pub position: Position,
    /// Places for members.
    pub places: u32,
    /// Places that were asked for, which may be more.
    pub asked: u32,
    /// People on other shards.
    pub elsewhere: u64,
    /// Everything that is kept, when the shard is told of the group for the first time.
    pub kept: Option<Box<KeptAll>>,
}

/// A push of a client on its way to the group's home.
#[derive(Clone, Debug)]
pub struct Publish {
    /// The group.
    pub group: GroupName,
    /// The content.
    pub body: Arc<Body>,
    /// Shard of the client.
    pub from: ShardId,
    /// Session of the client.
    pub session: SessionKey,
    /// Number under which it waits for the answer; 0 = it does not.
    pub ask: u64,
    /// Hash of its user or session, in which the push's id is unique.
    pub caller: u64,
}

/// The question of a client who is in a group, on its way to the group's home.
#[derive(Clone, Debug)]
pub struct List {
    /// The group.
    pub group: GroupName,
    /// Shard of the client.
    pub from: ShardId,
    /// Number under which it waits for the answer.
    pub ask: u64,
    /// Person behind whom the list begins; `None` = with the first.
    pub after: Option<PersonName>,
    /// People of the answer, at most; 0 = as many as there may be.
    pub limit: u32,
}

/// An item of a deliver lane.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Deliver {
    /// To the home: `from` wants so many more places for members, and to be told of pushes.
    Ask { group: GroupName, from: ShardId, places: u32 },
    /// To the home: `from` has no members for so many places; `is_last`: it is not to be told of
    /// pushes any more.
    Release { group: GroupName, from: ShardId, places: u32, is_last: bool },
    /// To the home: whether members of `from` cannot be told as fast as pushes come.
    Lagging { group: GroupName, from: ShardId, is_lagging: bool },
    /// To the home: a push of a client.
    Publish(Publish),
    /// To the home: the people of `from`, or what changed of them.
    People { group: GroupName, from: ShardId, people: Box<People> },
    /// To the home: a client asks who is there.
    List(Box<List>),
    /// From the home: who is there.
    Listed { ask: u64, page: Box<Page> },
    /// From the home: places for members.
    Confirmed(Confirmed),
    /// From the home: pushes in order. A jump of the offsets says that the ones between are lost,
    /// and `up_to` that those up to it are, of which none came; 0 = it says nothing.
    Frames { group: GroupName, epoch: u32, frames: Vec<Frame>, up_to: u64 },
    /// From the home: the number of a client's push, or why it has none.
    Published { session: SessionKey, ask: u64, result: Result<Position, Reject> },
}
