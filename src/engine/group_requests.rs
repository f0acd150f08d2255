//! Messages of clients about groups: ids 9010 to 9015 of the gateway's range.

use std::sync::Arc;

use crate::engine::Context;
use crate::engine::clients::Clients;
use crate::engine::clients::conn::Claim;
use crate::engine::clients::joining::{Joining, MAY_NOT, Wanted, may_join, read_name};
use crate::engine::groups::asks::Asked;
use crate::engine::groups::presence::read_cursor;
use crate::engine::source::Source;
use crate::ids::{GroupKey, SessionKey};
use crate::message::{Category, ClientMessage, EventReason, Micros, Priority, Reason, Reject};
use crate::push::{Body, Excepted, GroupName, Kind, PUSH_KEY_BYTES_MAX};
use crate::wire::{client, groups};

/// Pushes in one answer of history, at most.
const HISTORY_MAX: usize = 1_000;
/// Bytes of their payloads, at most: an answer is not to fill an outbox.
const HISTORY_BYTES_MAX: usize = 128 << 10;

const JOIN_FORM: Reject = Reject::new(
    Reason::BadMessage,
    "the payload must be {\"group\": text, \"since\": {\"epoch\": text, \"offset\": number}}; \
     since may be absent",
);
const LEAVE_FORM: Reject = Reject::new(Reason::BadMessage, "the payload must be {\"group\": text}");
const HISTORY_FORM: Reject = Reject::new(
    Reason::BadMessage,
    "the payload must be {\"group\": text, \"since\": {\"epoch\": text, \"offset\": number}, \
     \"limit\": number, \"newest_first\": true or false}; all but group may be absent",
);
const MEMBERS_FORM: Reject = Reject::new(
    Reason::BadMessage,
    "the payload must be {\"group\": text, \"limit\": number, \"after\": text}; all but group may \
     be absent",
);
const AFTER_BAD: Reject = Reject::new(
    Reason::BadMessage,
    "after: must be `next` of the page before, or absent for the first page",
);
const PUBLISH_FORM: Reject = Reject::new(
    Reason::BadMessage,
    "the payload must be {\"group\": text, \"msg_id\": number, \"payload\": value, \"key\": text, \
     \"to_me\": true or false}; all but group and msg_id may be absent",
);
const PUBLISH_ID: Reject = Reject::new(
    Reason::BadMessage,
    "msg_id: a number above 0 and outside of the gateway's own range (gateway.ids) is wanted",
);
const KEY_LONG: Reject = Reject::new(Reason::TooLarge, "key: at most 64 bytes");
const PAYLOAD_LARGE: Reject =
    Reject::new(Reason::TooLarge, "payload: more bytes than push.bytes_max");

/// Handles a message about groups: `number` is its place in the gateway's range. `None`: it is
/// answered, or will be.
pub(super) fn on_group_message(
    cx: &mut Context<'_>,
    clients: &mut Clients,
    source: &Source,
    message: &ClientMessage<'_>,
    number: u32,
    now: Micros,
) -> Option<Result<(), Reject>> {
    Some(match number {
        10 => on_join(cx, clients, source, message, now),
        11 => on_leave(cx, clients, source, message),
        12 => {
            let list = list(clients, source);
            answer(cx, clients, source, message, &client::payload(source.encoding, &list));
            Ok(())
        }
        13 => on_members(cx, clients, source, message, now),
        14 => on_history(cx, clients, source, message),
        15 => on_publish(cx, clients, source, message, now),
        _ => return None,
    })
}

fn answer(
    cx: &mut Context<'_>,
    clients: &mut Clients,
    source: &Source,
    message: &ClientMessage<'_>,
    payload: &[u8],
) {
    if message.seq > 0 {
        clients.reply_ok(cx, source.conn, Category::Gateway, message, "", payload);
    }
}

/// Name of a group in the tenant of the sender.
fn name_of(clients: &Clients, source: &Source, name: &str) -> Result<GroupName, Reject> {
    let conn = clients.conns.get(source.conn).expect("the sender of a message is there");
    read_name(&conn.session, name)
}

/// Slot of a group among those of the sender.
fn slot_of(clients: &Clients, source: &Source, name: &GroupName) -> Option<(GroupKey, u8)> {
    let conn = clients.conns.get(source.conn)?;
    let group = clients.groups.find(name)?;
    Some((group, conn.session.groups.as_deref()?.slot_of(group)?))
}

fn on_join(
    cx: &mut Context<'_>,
    clients: &mut Clients,
    source: &Source,
    message: &ClientMessage<'_>,
    now: Micros,
) -> Result<(), Reject> {
    let join = groups::read_join(source.encoding, message.payload).ok_or(JOIN_FORM)?;
    let name = name_of(clients, source, &join.group)?;
    if source.must_sign_in && source.user.is_none() {
        return Err(MAY_NOT);
    }
    let conn = clients.conns.get(source.conn).expect("the sender of a message is there");
    // A member may tell anew where it is, whoever let it in.
    let rule = match (slot_of(clients, source, &name), may_join(cx, &conn.session, &name)) {
        (_, Ok(rule)) => rule.clone(),
        (Some((group, _)), Err(_)) => clients.groups.get(group).ok_or(MAY_NOT)?.rule.clone(),
        (None, Err(reject)) => return Err(reject),
    };
    let key = source.session_key;
    let wanted = Wanted { seq: message.seq, msg_id: message.msg_id };
    let asked = Asked { since: join.since, presence: Some(join.presence), info: None };
    match clients.join(cx, key, (&name, &rule), asked, wanted, now)? {
        Joining::Done(joined) => {
            clients.tell_joined(cx, key, wanted, &name, Ok(joined));
            clients.write_newest(cx, key, &name, &joined, now);
        }
        Joining::Waits if message.seq > 0 => clients.accepted(source.conn, Claim::default()),
        Joining::Waits => {}
    }
    Ok(())
}

fn on_leave(
    cx: &mut Context<'_>,
    clients: &mut Clients,
    source: &Source,
    message: &ClientMessage<'_>,
) -> Result<(), Reject> {
    let name = groups::read_leave(source.encoding, message.payload).ok_or(LEAVE_FORM)?;
    let name = name_of(clients, source, &name)?;
    // To leave a group twice is no mistake, as to join one is none.
    if let Some((_, slot)) = slot_of(clients, source, &name) {
        clients.leave(cx, source.session_key, slot, EventReason::Left);
    }
    answer(cx, clients, source, message, &[]);
    Ok(())
}

/// The groups of a session, and where each stands.
fn list(clients: &Clients, source: &Source) -> client::GroupList {
    let memberships = clients.conns.get(source.conn).and_then(|c| c.session.groups.as_deref());
    let groups = memberships.into_iter().flat_map(|all| all.iter());
    let outcome = |(_, membership): (u8, crate::engine::clients::membership::Membership)| {
        let group = clients.groups.get(membership.group)?;
        let member = group.members().get(membership.index as usize)?;
        let position = group.log.position_before(member.at, group.position);
        Some(client::GroupOutcome {
            group: group.name.name.to_string(),
            outcome: "joined".to_owned(),
            position: Some(groups::position(position)),
            count: clients.groups.present(membership.group),
        })
    };
    client::GroupList { groups: groups.filter_map(outcome).collect() }
}

fn on_members(
    cx: &mut Context<'_>,
    clients: &mut Clients,
    source: &Source,
    message: &ClientMessage<'_>,
    now: Micros,
) -> Result<(), Reject> {
    let asked = groups::read_members_of(source.encoding, message.payload).ok_or(MEMBERS_FORM)?;
    let name = name_of(clients, source, &asked.group)?;
    let after = read_cursor(&asked.after).ok_or(AFTER_BAD)?;
    let conn = clients.conns.get(source.conn).expect("the sender of a message is there");
    clients.may_list(cx, &conn.session, &name)?;
    // Nobody waits for the answer of one that wants none.
    if message.seq > 0 {
        clients.accepted(source.conn, Claim::default());
        let wanted = Wanted { seq: message.seq, msg_id: message.msg_id };
        clients.ask_for_members(cx, source.session_key, wanted, name, (after, asked.limit), now);
    }
    Ok(())
}

fn on_history(
    cx: &mut Context<'_>,
    clients: &mut Clients,
    source: &Source,
    message: &ClientMessage<'_>,
) -> Result<(), Reject> {
    let asked = groups::read_history_of(source.encoding, message.payload).ok_or(HISTORY_FORM)?;
    let name = name_of(clients, source, &asked.group)?;
    let (group, _) = slot_of(clients, source, &name).ok_or(MAY_NOT)?;
    let group = clients.groups.get(group).ok_or(MAY_NOT)?;
    let since = asked.since.unwrap_or_default();
    let is_known = |since: crate::push::Position| {
        since.epoch == group.position.epoch
            && group.log.place_after(since.offset, group.position.offset).is_some()
    };
    let gap = asked.since.is_some_and(|since| !is_known(since));
    let offset = if gap { 0 } else { since.offset };
    let kept = group.log.iter().rev().filter(|entry| entry.offset > offset);
    let mut kept: Vec<_> = kept.take(group.rule.shown_max()).collect();
    if !asked.newest_first {
        kept.reverse();
    }
    let mut bytes = 0;
    let fits = |entry: &&crate::engine::groups::log::Entry| {
        bytes += entry.body.payload.len();
        bytes <= HISTORY_BYTES_MAX || bytes == entry.body.payload.len()
    };
    let limit = (asked.limit as usize).min(HISTORY_MAX);
    let pushes = kept.into_iter().take(limit).take_while(fits).map(|entry| client::Kept {
        offset: entry.offset,
        msg_id: entry.body.msg_id,
        payload: entry.body.payload.clone(),
        unix_ms: entry.body.unix_ms,
        key: entry.body.key.to_string(),
        is_json: !entry.body.is_bytes,
    });
    let page = client::HistoryPage {
        position: Some(groups::position(group.position)),
        gap,
        pushes: pushes.collect(),
    };
    answer(cx, clients, source, message, &client::payload(source.encoding, &page));
    Ok(())
}

fn on_publish(
    cx: &mut Context<'_>,
    clients: &mut Clients,
    source: &Source,
    message: &ClientMessage<'_>,
    now: Micros,
) -> Result<(), Reject> {
    let push = groups::read_publish(source.encoding, message.payload).ok_or(PUBLISH_FORM)?;
    let name = name_of(clients, source, &push.group)?;
    let conn = clients.conns.get(source.conn).expect("the sender of a message is there");
    clients.may_publish(cx, &conn.session, &name)?;
    let (first, last) = cx.config.gateway.gateway_ids;
    if push.msg_id == 0 || (first..=last).contains(&push.msg_id) {
        return Err(PUBLISH_ID);
    }
    if push.key.len() > PUSH_KEY_BYTES_MAX {
        return Err(KEY_LONG);
    }
    if push.payload.len() > cx.config.gateway.push.bytes_max {
        return Err(PAYLOAD_LARGE);
    }
    let user = source.user.as_deref().map(|user| &*user.user);
    let except = match push.to_me {
        true => Vec::new(),
        false => vec![Excepted::Session(source.session)],
    };
    let body = Body {
        kind: Kind::Push,
        msg_id: push.msg_id,
        payload: push.payload,
        is_bytes: push.is_bytes,
        key: push.key.into(),
        id: (*message.id).into(),
        from: user.unwrap_or(source.session.as_str()).into(),
        except,
        priority: Priority::Normal,
        is_transient: false,
        expires: Micros(u64::MAX),
        unix_ms: cx.config.unix_us(now) / 1000,
    };
    let caller = source.sender.user.unwrap_or(source.sender.session);
    let key: SessionKey = source.session_key;
    let ask = clients.ask_for_number(cx, key, message.seq, message.msg_id, now);
    if message.seq > 0 {
        clients.accepted(source.conn, Claim::default());
    }
    clients.publish(cx, ask, name, Arc::new(body), caller);
    Ok(())
}
