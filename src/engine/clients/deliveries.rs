//! Pushes of groups on their way to members: a pass tells those who are behind, and the flush of
//! each pulls what it has not read.
//!
//! Frames are written from the group's log as they lie there, so a delivery copies nothing and
//! allocates nothing. A frame that the kernel took a part of is finished from the outbox: it is the
//! only one of which a slow client holds a copy. Answers come first, because the outbox is written
//! before the log is.

use crate::config::settings::SlowMember;
use crate::engine::Context;
use crate::engine::clients::conn::{Conn, Phase};
use crate::engine::clients::session::Session;
use crate::engine::clients::sessions::Seat;
use crate::engine::clients::{Clients, append, mark_dirty};
use crate::engine::groups::group::{Group, Member};
use crate::engine::groups::log::{Entry, Next, Reader, is_excepted};
use crate::ids::{ConnId, GroupKey, SessionKey};
use crate::message::{Encoding, Micros, ServerMessage};
use crate::push::{Body, Counts, Kind, Receipt, ReceiptPart};
use crate::stats::Counter;
use crate::wire::{client, groups, json, protobuf};

/// Bytes of frames that are copied for one flush, where they are: of several groups, behind other
/// bytes, or for a transport that holds on to what it was given. A record of TLS.
const COPIED_BYTES_MAX: usize = 16 << 10;

/// Frames that a flush was given out of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pulled {
    id: ConnId,
    group: GroupKey,
    slot: u8,
    from: u64,
    to: u64,
    bytes: usize,
}

/// A gap in a group's pushes that a member is to be told of.
struct Missed {
    slot: u8,
    dropped: u64,
}

impl Clients {
    /// Goes on with the passes over members, `groups.sweep_members` of them: connections that are
    /// behind are flushed with this turn.
    pub fn pass_over_members(&mut self, cx: &mut Context<'_>) {
        for id in std::mem::take(&mut self.more_to_send) {
            if let Some(conn) = self.conns.get_mut(id) {
                mark_dirty(conn, id, cx.effects);
            }
        }
        let mut left = cx.config.settings.groups.sweep_members;
        while left > 0
            && let Some(&key) = self.groups.passes.front()
        {
            let Self { groups, sessions, conns, .. } = self;
            let Some(group) = groups.get_mut(key) else {
                groups.passes.pop_front();
                continue;
            };
            let end = group.log.end();
            let members = group.pass(left);
            left -= members.len().clamp(1, left);
            for member in members {
                if member.at < end
                    && let Some(Seat::At(id)) = sessions.seat(member.session)
                    && let Some(conn) = conns.get_mut(*id)
                {
                    set_behind(conn, *id, member.slot, cx.effects);
                }
            }
            let is_over = !group.goes_on();
            if is_over && !group.counted.is_empty() {
                groups.to_count.push(key);
            }
            // The others have their turn, whether it is over or not.
            groups.passes.rotate_left(1);
            if is_over {
                groups.passes.pop_back();
            }
        }
    }

    /// Has a member read what is new in a slot, if its session is on a connection.
    pub(super) fn tell_behind(&mut self, cx: &mut Context<'_>, key: SessionKey, slot: u8) {
        if let Some(Seat::At(id)) = self.sessions.seat(key)
            && let Some(conn) = self.conns.get_mut(*id)
        {
            set_behind(conn, *id, slot, cx.effects);
        }
    }

    /// The bytes that a connection's flush is to write now: its outbox, or else frames of a log.
    /// `is_copied`: they must stay as they are until they are sent.
    #[inline]
    pub fn bytes_to_send(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        is_copied: bool,
        now: Micros,
    ) -> &[u8] {
        self.pulled = None;
        let is_behind =
            |conn: &Conn| conn.is_behind && conn.phase == Phase::Open && !conn.outbox.is_stuck();
        if self.conns.get(id).is_some_and(is_behind) {
            self.pull(cx, id, is_copied, now);
        }
        if let Some(pulled) = self.pulled
            && let Some(encoding) = self.conns.get(id).map(|conn| conn.encoding)
        {
            let log = self.groups.get(pulled.group).map(|group| &group.log);
            return log.map_or(&[], |log| log.frames(pulled.from, pulled.to, encoding));
        }
        self.conns.get(id).map_or(&[], |conn| conn.outbox.pending())
    }

    /// Finds frames for a connection that is behind.
    fn pull(&mut self, cx: &mut Context<'_>, id: ConnId, is_copied: bool, now: Micros) {
        let mut missed = None;
        let Self { conns, groups, buffers, pulled, .. } = self;
        let Some(conn) = conns.get_mut(id) else { return };
        let Conn { session, outbox, encoding, is_behind, .. } = conn;
        let encoding = *encoding;
        let Session { id: session, owner, groups: Some(memberships), .. } = &mut **session else {
            return;
        };
        let user = owner.user().map(|user| &*user.user);
        let session = session.as_str();
        let is_direct = !is_copied && outbox.is_empty() && memberships.only_behind().is_some();
        let mut slot = 0;
        while let Some(next) = memberships.next_behind(slot) {
            slot = next;
            if outbox.len() >= COPIED_BYTES_MAX {
                break;
            }
            let found = memberships.get(slot).and_then(|m| Some((m, groups.get_mut(m.group)?)));
            let Some((membership, group)) = found else {
                memberships.set_read(slot);
                continue;
            };
            let &mut Member { at, wants_presence, .. } = group.member_mut(membership.index);
            let reader = Reader { session, user, encoding, wants_presence };
            let Group { name, log, .. } = group;
            let encode = |out: &mut Vec<u8>, entry: &Entry| {
                encode_push(out, encoding, &name.name, entry.offset, &entry.body);
            };
            let cursor = match log.next(at, &reader, now, encode) {
                Next::End => {
                    memberships.set_read(slot);
                    log.end()
                }
                Next::Missed { first } => {
                    missed = Some(Missed { slot, dropped: first - at });
                    break;
                }
                Next::Single { place } => {
                    if let Some(entry) = log.get(place) {
                        encode(outbox.pusher(buffers), entry);
                        cx.stats.inc(Counter::Deliveries);
                    }
                    place + 1
                }
                // Behind a frame that was made for this member alone it is copied.
                Next::Frames { bytes, from, to } if is_direct && outbox.is_empty() => {
                    let (group_key, bytes) = (membership.group, bytes.len());
                    *pulled = Some(Pulled { id, group: group_key, slot, from, to, bytes });
                    // Up to here the member has read, or does not get it.
                    from
                }
                Next::Frames { bytes, from, to } => {
                    outbox.pusher(buffers).extend_from_slice(bytes);
                    cx.stats.add(Counter::Deliveries, to - from);
                    to
                }
            };
            group.member_mut(membership.index).at = cursor;
            if pulled.is_some() {
                return;
            }
        }
        *is_behind = !memberships.is_read();
        if let Some(missed) = missed {
            self.tell_missed(cx, id, &missed, now);
        }
    }

    /// Does with a member that reads too slowly as its group's rule says.
    fn tell_missed(&mut self, cx: &mut Context<'_>, id: ConnId, missed: &Missed, now: Micros) {
        let Missed { slot, dropped } = *missed;
        let Some(conn) = self.conns.get(id) else { return };
        let membership = conn.session.groups.as_deref().and_then(|groups| groups.get(slot));
        let Some(membership) = membership else { return };
        let Some(group) = self.groups.get_mut(membership.group) else { return };
        let (first, end) = (group.log.first(), group.log.end());
        let at = match group.rule.slow {
            SlowMember::Skip | SlowMember::Close => first,
            // With keys the older ones of each are passed over in any case.
            SlowMember::Latest if group.log.has_keys() => first,
            SlowMember::Latest => end.saturating_sub(1).max(first),
        };
        let dropped = dropped + (at - first);
        group.member_mut(membership.index).at = at;
        cx.stats.add(Counter::DeliveriesMissed, dropped);
        cx.stats.inc(Counter::GroupGaps);
        let is_closed = group.rule.slow == SlowMember::Close;
        let gap = client::Gap {
            group: group.name.name.to_string(),
            dropped,
            position: Some(groups::position(group.log.position_before(at, group.position))),
            reason: "SLOW".to_owned(),
        };
        let payload = client::payload(conn.encoding, &gap);
        let message = ServerMessage { kind: "gap", payload: &payload, ..ServerMessage::default() };
        self.write(cx, id, &message);
        if is_closed {
            self.close_slow(cx, id, now);
            return;
        }
        // What is left comes behind it, with the next flush.
        self.more_to_send.push(id);
    }

    /// Takes note that the kernel took `n` bytes of what [`Self::bytes_to_send`] gave. Returns how
    /// many of them were the outbox's.
    #[inline]
    pub fn on_pulled_sent(&mut self, cx: &mut Context<'_>, id: ConnId, n: usize) -> usize {
        let Some(pulled) = self.pulled.take().filter(|pulled| pulled.id == id) else {
            if n > 0 && self.conns.get(id).is_some_and(|conn| conn.is_behind) {
                self.more_to_send.push(id);
            }
            return n;
        };
        let Self { conns, groups, buffers, more_to_send, .. } = self;
        let (Some(conn), Some(group)) = (conns.get_mut(id), groups.get_mut(pulled.group)) else {
            return 0;
        };
        if n == 0 {
            return 0;
        }
        let Pulled { slot, from, to, bytes, .. } = pulled;
        let cursor = if n >= bytes {
            to
        } else {
            let Some((cursor, rest)) = group.log.cut(from, n, conn.encoding) else { return 0 };
            if !rest.is_empty() {
                conn.outbox.pusher(buffers).extend_from_slice(rest);
            }
            cursor
        };
        cx.stats.add(Counter::Deliveries, cursor - from);
        cx.stats.inc(Counter::DeliverySends);
        let Some(memberships) = conn.session.groups.as_deref_mut() else { return 0 };
        let Some(membership) = memberships.get(slot) else { return 0 };
        group.member_mut(membership.index).at = cursor;
        if cursor == group.log.end() {
            memberships.set_read(slot);
            conn.is_behind = !memberships.is_read();
        }
        if conn.is_behind && n >= bytes {
            more_to_send.push(id);
        }
        0
    }

    /// Counts what became of pushes whose pass is over, and was flushed.
    pub fn count_deliveries(&mut self, cx: &mut Context<'_>, now: Micros) {
        for key in std::mem::take(&mut self.groups.to_count) {
            let Some(group) = self.groups.get_mut(key) else { continue };
            let told = group.told;
            let (due, later): (Vec<_>, Vec<_>) =
                group.counted.drain(..).partition(|counted| counted.place < told);
            group.counted = later;
            for counted in due {
                let counts = self.count_members(key, counted.place, now);
                let shard = cx.config.shard;
                let part =
                    ReceiptPart::Counted { counts, offline_users: Vec::new(), is_duplicate: false };
                cx.effects.receipts.push(Receipt { number: counted.number, shard, part });
            }
        }
    }

    fn count_members(&self, key: GroupKey, place: u64, now: Micros) -> Counts {
        let mut counts = Counts::default();
        let Some(group) = self.groups.get(key) else { return counts };
        let entry = group.log.get(place);
        let is_kept = entry.is_some_and(|entry| entry.offset > 0);
        let is_over = entry.is_none_or(|entry| entry.body.expires <= now);
        for member in group.members() {
            let (session, conn) = match self.sessions.seat(member.session) {
                Some(Seat::At(id)) => match self.conns.get(*id) {
                    Some(conn) => (&*conn.session, Some(conn).filter(|c| c.phase == Phase::Open)),
                    None => continue,
                },
                Some(Seat::Away(session)) => (&**session, None),
                None => continue,
            };
            let user = session.user().map(|user| &*user.user);
            let (session_id, encoding) = (session.id.as_str(), Encoding::Json);
            let reader = Reader { session: session_id, user, encoding, wants_presence: false };
            if entry.is_some_and(|entry| is_excepted(&entry.body, &reader)) || member.since > place
            {
                continue;
            }
            match conn {
                None => {
                    counts.offline += 1;
                    counts.kept += u64::from(is_kept && session.resumption.is_some());
                }
                Some(conn) if member.at > place && conn.outbox.is_empty() => counts.written += 1,
                Some(_) if member.at <= place && is_over => counts.dropped += 1,
                Some(_) => counts.queued += 1,
            }
        }
        counts
    }

    /// Writes pushes for a member that joins, one by one.
    pub(super) fn write_push(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        group: &str,
        offset: u64,
        body: &Body,
    ) {
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.phase == Phase::Open) else {
            return;
        };
        let encoding = conn.encoding;
        cx.stats.inc(Counter::Deliveries);
        append(conn, id, &mut self.buffers, cx.effects, |out| {
            encode_push(out, encoding, group, offset, body);
        });
    }
}

/// Has a connection flushed, as there is something to read for it.
fn set_behind(conn: &mut Conn, id: ConnId, slot: u8, effects: &mut crate::engine::Effects) {
    if let Some(memberships) = conn.session.groups.as_deref_mut() {
        memberships.set_behind(slot);
        conn.is_behind = true;
        conn.note_push(id, effects);
        mark_dirty(conn, id, effects);
    }
}

/// Appends the frame of a push.
pub(super) fn encode_push(
    out: &mut Vec<u8>,
    encoding: Encoding,
    group: &str,
    offset: u64,
    body: &Body,
) {
    let (kind, group, payload) = match (&body.kind, encoding) {
        (Kind::Push, _) => ("push", group, &body.payload),
        // The payload names the group, as in other words of the gateway about one.
        (Kind::Presence(_), Encoding::Json) => ("presence", "", &body.payload),
        (Kind::Presence(told), Encoding::Protobuf) => ("presence", "", &told.protobuf),
    };
    let message = ServerMessage {
        msg_id: body.msg_id,
        kind,
        payload,
        payload_is_bytes: body.is_bytes,
        offset,
        group,
        id: &body.id,
        from: &body.from,
        ..ServerMessage::default()
    };
    match encoding {
        Encoding::Json => json::encode(out, &message),
        Encoding::Protobuf => protobuf::encode(out, &message),
    }
}
