//! The messages of groups towards clients: what clients ask, and how JSON clients see payloads of
//! either kind.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use prost::Message as _;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::message::Encoding;
use crate::push::Position;
use crate::wire::client::generated::{self, GroupPosition, Kept, Publish};
use crate::wire::json::{self, fields};

/// The place `at` as clients and callers see it.
pub fn position(at: Position) -> generated::Position {
    generated::Position { epoch: at.epoch_text(), offset: at.offset }
}

/// The place `at` in the group `group`, as clients see it.
pub fn group_position(group: &str, at: Position) -> GroupPosition {
    GroupPosition { group: group.to_owned(), position: Some(position(at)) }
}

fn place_of(at: &generated::Position) -> Position {
    Position::shown(&at.epoch, at.offset)
}

/// The question of id 9010: put me into this group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Join {
    /// Name of the group, unchecked.
    pub group: String,
    /// Begin after this push; `None` = with the next one.
    pub since: Option<Position>,
    /// Whether to tell who comes and goes.
    pub presence: bool,
}

/// The question of id 9013: who is in this group?
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MembersOf {
    /// Name of the group, unchecked.
    pub group: String,
    /// Most members of the answer; 0 = as many as there may be.
    pub limit: u32,
    /// Where the page before ended; empty = from the first.
    pub after: String,
}

/// The question of id 9014: what does this group keep?
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HistoryOf {
    /// Name of the group, unchecked.
    pub group: String,
    /// Only what comes after this push; `None` = all.
    pub since: Option<Position>,
    /// Most pushes of the answer; 0 = the position alone.
    pub limit: u32,
    /// Whether the newest comes first.
    pub newest_first: bool,
}

/// The question of id 9015: push this to the group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publication {
    /// Name of the group, unchecked.
    pub group: String,
    /// Id that members dispatch on, unchecked.
    pub msg_id: u32,
    /// One JSON text, unless `is_bytes`; empty = none.
    pub payload: Bytes,
    /// Whether JSON clients get `payload_base64`.
    pub is_bytes: bool,
    /// The key by which a newer one replaces it, unchecked; empty = none.
    pub key: String,
    /// Whether the publisher gets it, too.
    pub to_me: bool,
}

/// Reads the request of id 9010.
pub fn read_join(encoding: Encoding, payload: &[u8]) -> Option<Join> {
    match encoding {
        Encoding::Json => {
            let [group, since, presence] = values(payload, ["group", "since", "presence"])?;
            let since = optional(since, read_position)?.as_ref().map(place_of);
            Some(Join { group: text(group)?, since, presence: truth(presence)? })
        }
        Encoding::Protobuf => {
            let generated::Join { group, since, presence } =
                generated::Join::decode(payload).ok()?;
            Some(Join { group, since: since.as_ref().map(place_of), presence })
        }
    }
}

/// Reads the request of id 9011: the name of a group, unchecked.
pub fn read_leave(encoding: Encoding, payload: &[u8]) -> Option<String> {
    match encoding {
        Encoding::Json => {
            let [group] = values(payload, ["group"])?;
            text(group)
        }
        Encoding::Protobuf => generated::Leave::decode(payload).ok().map(|leave| leave.group),
    }
}

/// Reads the request of id 9013.
pub fn read_members_of(encoding: Encoding, payload: &[u8]) -> Option<MembersOf> {
    match encoding {
        Encoding::Json => {
            let [group, limit, after] = values(payload, ["group", "limit", "after"])?;
            Some(MembersOf { group: text(group)?, limit: narrow(limit)?, after: text(after)? })
        }
        Encoding::Protobuf => {
            let generated::MembersOf { group, limit, after } =
                generated::MembersOf::decode(payload).ok()?;
            Some(MembersOf { group, limit, after })
        }
    }
}

/// Reads the request of id 9014.
pub fn read_history_of(encoding: Encoding, payload: &[u8]) -> Option<HistoryOf> {
    match encoding {
        Encoding::Json => {
            let [group, since, limit, newest_first] =
                values(payload, ["group", "since", "limit", "newest_first"])?;
            let since = optional(since, read_position)?.as_ref().map(place_of);
            let (group, limit) = (text(group)?, narrow(limit)?);
            Some(HistoryOf { group, since, limit, newest_first: truth(newest_first)? })
        }
        Encoding::Protobuf => {
            let generated::HistoryOf { group, since, limit, newest_first } =
                generated::HistoryOf::decode(payload).ok()?;
            Some(HistoryOf { group, since: since.as_ref().map(place_of), limit, newest_first })
        }
    }
}

/// Reads the request of id 9015. `None` also if a payload that is said to be JSON is none.
pub fn read_publish(encoding: Encoding, payload: &[u8]) -> Option<Publication> {
    match encoding {
        Encoding::Json => {
            let whole = std::str::from_utf8(payload).ok()?;
            let [group, msg_id, key, to_me, base64] =
                fields::values(whole, ["group", "msg_id", "key", "to_me", "payload_base64"])?;
            let [value] = fields::values_and_nulls(whole, ["payload"])?;
            let bytes = optional(base64, read_base64)?.filter(|bytes| !bytes.is_empty());
            if bytes.is_some() && value.is_some() {
                return None;
            }
            let is_bytes = bytes.is_some();
            let value = || Bytes::copy_from_slice(value.unwrap_or_default().as_bytes());
            Some(Publication {
                group: text(group)?,
                msg_id: narrow(msg_id)?,
                payload: bytes.map_or_else(value, Bytes::from),
                is_bytes,
                key: text(key)?,
                to_me: truth(to_me)?,
            })
        }
        Encoding::Protobuf => {
            let Publish { group, msg_id, payload, key, to_me, is_json } =
                Publish::decode(payload).ok()?;
            let is_good = !is_json || payload.is_empty() || json::is_json(&payload);
            let (payload, is_bytes) = (Bytes::from(payload), !is_json);
            is_good.then_some(Publication { group, msg_id, payload, is_bytes, key, to_me })
        }
    }
}

/// The values of keys in an object, which a payload is. No payload has none of them.
fn values<'a, const N: usize>(payload: &'a [u8], keys: [&str; N]) -> Option<[Option<&'a str>; N]> {
    fields::values(std::str::from_utf8(payload).ok()?, keys)
}

/// What `read` finds in a value, if there is one. The outer `None`: it finds nothing.
fn optional<'a, T>(
    value: Option<&'a str>,
    read: impl Fn(&'a str) -> Option<T>,
) -> Option<Option<T>> {
    match value {
        None => Some(None),
        Some(value) => read(value).map(Some),
    }
}

/// The string in a value; without one it is empty.
fn text(value: Option<&str>) -> Option<String> {
    fields::string(value.unwrap_or("\"\"")).map(Cow::into_owned)
}

/// The number of 32 bits in a value; without one it is 0.
fn narrow(value: Option<&str>) -> Option<u32> {
    fields::whole_number(value.unwrap_or("0"))?.try_into().ok()
}

/// The truth in a value; without one it is false.
fn truth(value: Option<&str>) -> Option<bool> {
    match value {
        None | Some("false") => Some(false),
        Some("true") => Some(true),
        Some(_) => None,
    }
}

fn read_base64(value: &str) -> Option<Vec<u8>> {
    json::decode_base64(&fields::string(value)?).ok()
}

fn read_position(value: &str) -> Option<generated::Position> {
    let [epoch, offset] = fields::values(value, ["epoch", "offset"])?;
    let offset = fields::whole_number(offset.unwrap_or("0"))?;
    Some(generated::Position { epoch: text(epoch)?, offset })
}

/// Reads a list of places in groups.
pub(crate) fn read_positions(value: &str) -> Option<Vec<GroupPosition>> {
    let list: Vec<&RawValue> = serde_json::from_str(value).ok()?;
    let read = |entry: &RawValue| {
        let [group, position] = fields::values(entry.get(), ["group", "position"])?;
        let position = optional(position, read_position)?;
        Some(GroupPosition { group: text(group)?, position })
    };
    list.into_iter().map(read).collect()
}

/// Writes one JSON text as the value that it is; what is none, or empty, as `null`.
pub(crate) fn write_value<S: Serializer>(text: &[u8], to: S) -> Result<S::Ok, S::Error> {
    value(text).serialize(to)
}

fn value(text: &[u8]) -> Option<&RawValue> {
    serde_json::from_slice(text).ok()
}

/// A payload as JSON shows it.
#[derive(Serialize)]
pub(crate) struct Content<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

impl<'a> Content<'a> {
    /// Bytes that are said to be JSON, and are not, are shown as bytes.
    pub(crate) fn new(payload: &'a [u8], is_json: bool) -> Self {
        let value = if is_json { value(payload) } else { None };
        let bytes = (value.is_none() && !payload.is_empty()).then(|| STANDARD.encode(payload));
        Self { payload: value, payload_base64: bytes }
    }
}

impl Serialize for Kept {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown<'a> {
            offset: u64,
            msg_id: u32,
            #[serde(flatten)]
            content: Content<'a>,
            unix_ms: i64,
            key: &'a str,
        }
        let Kept { offset, msg_id, ref payload, unix_ms, ref key, is_json } = *self;
        Shown { offset, msg_id, content: Content::new(payload, is_json), unix_ms, key }
            .serialize(to)
    }
}

impl Serialize for Publish {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown<'a> {
            group: &'a str,
            msg_id: u32,
            #[serde(flatten)]
            content: Content<'a>,
            key: &'a str,
            to_me: bool,
        }
        let Publish { ref group, msg_id, ref payload, ref key, to_me, is_json } = *self;
        Shown { group, msg_id, content: Content::new(payload, is_json), key, to_me }.serialize(to)
    }
}

#[cfg(test)]
mod tests;
