//! Pushes to sessions: of a list, of users, of a tenant, of everybody.
//!
//! A push is written into a session's outbox, and kept there with a number if the session can be
//! resumed. For a client that reads slowly it waits apart ([`super::waiting`]), where a newer one
//! of its key takes its place. All sessions of a tenant or of the shard get their turn in steps, so
//! that a push to everybody delays nobody's answer.

use std::sync::Arc;

use crate::engine::Context;
use crate::engine::clients::conn::Phase;
use crate::engine::clients::deliveries::encode_push;
use crate::engine::clients::sessions::Seat;
use crate::engine::clients::waiting::WaitingCaps;
use crate::engine::clients::{Clients, append};
use crate::engine::groups::log::{Reader, is_excepted};
use crate::ids::{ConnId, SessionKey, TenantId};
use crate::message::{Encoding, Micros, ServerMessage};
use crate::push::{Addressees, Body, Counts, Push, Receipt, ReceiptPart};
use crate::routing::affinity_hash;
use crate::stats::Counter;
use crate::wire::client;

/// Bytes that may wait in the outbox of a session that gets a push at once: beyond them it waits
/// apart. As many as are copied for one flush.
const OUTBOX_BYTES_MAX: usize = 16 << 10;
/// Pushes that may wait for one session.
const WAITING_ITEMS_MAX: usize = 64;
/// Bytes of them.
pub const WAITING_BYTES_MAX: usize = 128 << 10;

/// What became of a push to one session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// It is in the outbox.
    Placed,
    /// It waits for its client.
    Queued,
    /// It went, as its time was over.
    Dropped,
    /// There is no connection; whether it is kept for one.
    Offline { is_kept: bool },
    /// The session is none of the addressees.
    Excepted,
}

/// A push whose addressees are counted when they were flushed.
#[derive(Debug)]
pub struct Direct {
    /// Number of the receipt, if one is wanted.
    number: Option<u64>,
    counts: Counts,
    /// Sessions in whose outbox it is.
    placed: Vec<SessionKey>,
    offline_users: Vec<Box<str>>,
}

/// A push to all sessions, or to those of a tenant, under way.
#[derive(Debug)]
pub struct Wave {
    body: Arc<Body>,
    tenant: Option<TenantId>,
    /// The next slot of sessions: each keeps its own, whatever connection it is on meanwhile.
    next: usize,
    /// Slots when it began: sessions that came later are not addressed.
    end: usize,
    direct: Direct,
}

impl Direct {
    fn new(number: Option<u64>) -> Self {
        let (counts, placed, offline_users) = (Counts::default(), Vec::new(), Vec::new());
        Self { number, counts, placed, offline_users }
    }

    fn note(&mut self, key: SessionKey, fate: Fate) {
        match fate {
            Fate::Placed if self.number.is_some() => self.placed.push(key),
            Fate::Placed | Fate::Excepted => {}
            Fate::Queued => self.counts.queued += 1,
            Fate::Dropped => self.counts.dropped += 1,
            Fate::Offline { is_kept } => {
                self.counts.offline += 1;
                self.counts.kept += u64::from(is_kept);
            }
        }
    }
}

impl Clients {
    /// Delivers a push to sessions of this shard.
    pub fn push_direct(
        &mut self,
        cx: &mut Context<'_>,
        push: Push,
        number: Option<u64>,
        now: Micros,
    ) {
        let mut direct = Direct::new(number);
        match push.to {
            Addressees::Sessions(sessions) => {
                for id in sessions {
                    let key = self.sessions.index.find(&id);
                    let is_of_tenant = |clients: &mut Self, key: &SessionKey| {
                        let session = clients.session_mut(*key).map(|(session, _)| session);
                        session.is_some_and(|session| session.owner.tenant == push.tenant)
                    };
                    match key.filter(|key| is_of_tenant(self, key)) {
                        Some(key) => {
                            let fate = self.push_to(cx, key, &push.body, now);
                            direct.note(key, fate);
                        }
                        None => direct.counts.offline += 1,
                    }
                }
            }
            Addressees::Users(users) => {
                for user in users {
                    self.push_to_user(cx, push.tenant, user, &push.body, &mut direct, now);
                }
            }
            Addressees::Tenant | Addressees::Everyone => {
                let tenant = (push.to == Addressees::Tenant).then_some(push.tenant);
                let (body, end) = (push.body, self.sessions.slots());
                self.waves.push_back(Wave { body, tenant, next: 0, end, direct });
                return;
            }
            Addressees::Group(_) => unreachable!("the home of the group has numbered it"),
        }
        if direct.number.is_some() {
            self.placed.push(direct);
        }
    }

    /// Delivers a push to all sessions of a user. Without one, or with none on a connection, the
    /// user is offline.
    fn push_to_user(
        &mut self,
        cx: &mut Context<'_>,
        tenant: TenantId,
        user: Box<str>,
        body: &Arc<Body>,
        direct: &mut Direct,
        now: Micros,
    ) {
        let hash = affinity_hash(tenant, user.as_bytes());
        let keys = self.sessions.index.of_user(tenant, hash).to_vec();
        let mut is_online = false;
        for &key in &keys {
            let fate = self.push_to(cx, key, body, now);
            is_online |= !matches!(fate, Fate::Offline { .. });
            direct.note(key, fate);
        }
        if keys.is_empty() {
            direct.counts.offline += 1;
        }
        if !is_online && direct.number.is_some() {
            direct.offline_users.push(user);
        }
    }

    /// Delivers a push to one session.
    fn push_to(
        &mut self,
        cx: &mut Context<'_>,
        key: SessionKey,
        body: &Arc<Body>,
        now: Micros,
    ) -> Fate {
        let ttl_over = body.expires <= now;
        let Some((session, at)) = self.session_mut(key) else {
            return Fate::Offline { is_kept: false };
        };
        let user = session.user().map(|user| &*user.user);
        let (id, encoding) = (session.id.as_str(), Encoding::Json);
        let reader = Reader { session: id, user, encoding, wants_presence: false };
        if is_excepted(body, &reader) {
            return Fate::Excepted;
        }
        let is_resumable = session.resumption.is_some();
        let has_waiting = session.waiting.as_deref().is_some_and(|waiting| !waiting.is_empty());
        let conn = at.and_then(|id| Some((id, self.conns.get(id)?)));
        let open = conn.filter(|(_, conn)| conn.phase == Phase::Open);
        match open {
            _ if ttl_over => {
                cx.stats.inc(Counter::PushesDropped);
                Fate::Dropped
            }
            Some((_, conn))
                if has_waiting || is_behind(conn.outbox.is_stuck(), conn.outbox.len()) =>
            {
                match self.put_waiting(cx, key, body.clone()) {
                    true => Fate::Queued,
                    false => Fate::Dropped,
                }
            }
            Some((id, conn)) => {
                let is_first = !conn.takes_pushes;
                if is_first && let Some(conn) = self.conns.get_mut(id) {
                    conn.note_push(id, cx.effects);
                }
                self.place_push(cx, key, id, body);
                Fate::Placed
            }
            None if is_resumable && !body.is_transient => {
                let is_kept = self.keep_push(cx, key, body);
                Fate::Offline { is_kept }
            }
            None => Fate::Offline { is_kept: false },
        }
    }

    /// Writes a push into the outbox of a session's connection: numbered and kept, if the session
    /// can be resumed and the push is to be kept.
    fn place_push(&mut self, cx: &mut Context<'_>, key: SessionKey, id: ConnId, body: &Body) {
        cx.stats.inc(Counter::Deliveries);
        let is_numbered =
            |session: &super::Session| session.resumption.is_some() && !body.is_transient;
        if self.session_mut(key).is_some_and(|(session, _)| is_numbered(session)) {
            let message = message_of(body);
            self.deliver_numbered(cx, key, &message);
            return;
        }
        let Some(conn) = self.conns.get_mut(id) else { return };
        let encoding = conn.encoding;
        append(conn, id, &mut self.buffers, cx.effects, |out| {
            encode_push(out, encoding, "", 0, body);
        });
    }

    /// Keeps a push for a session without a connection: numbered, or while it has a key, waiting
    /// for a newer one to take its place.
    fn keep_push(&mut self, cx: &mut Context<'_>, key: SessionKey, body: &Arc<Body>) -> bool {
        if !body.key.is_empty() {
            return self.put_waiting(cx, key, body.clone());
        }
        let message = message_of(body);
        self.deliver_numbered(cx, key, &message) == super::reply::Delivery::Kept
    }

    /// Lets a push wait for its client; false: it has found no room.
    fn put_waiting(&mut self, cx: &mut Context<'_>, key: SessionKey, body: Arc<Body>) -> bool {
        let caps = WaitingCaps { items: WAITING_ITEMS_MAX, bytes: WAITING_BYTES_MAX };
        let Some((session, at)) = self.session_mut(key) else { return false };
        let gone = session.waiting.get_or_insert_default().put(body, caps);
        cx.stats.add(Counter::PushesDropped, gone.replaced + gone.crowded_out);
        cx.stats.add(Counter::Conflated, gone.replaced);
        if let Some(conn) = at.and_then(|id| self.conns.get_mut(id)) {
            conn.has_waiting = true;
        }
        !gone.itself
    }

    /// Places pushes that waited for a client, as far as it reads: after a flush, and when it comes
    /// back. It is told how many it does not get.
    pub(super) fn place_waiting(&mut self, cx: &mut Context<'_>, id: ConnId, now: Micros) {
        loop {
            let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.phase == Phase::Open) else {
                return;
            };
            if is_behind(conn.outbox.is_stuck(), conn.outbox.len()) {
                return;
            }
            let key = conn.session.key;
            let Some(waiting) = conn.session.waiting.as_deref_mut() else {
                conn.has_waiting = false;
                return;
            };
            let late = waiting.expire(now);
            let dropped = std::mem::take(&mut waiting.dropped);
            let next = waiting.take();
            if waiting.is_empty() {
                conn.session.waiting = None;
                conn.has_waiting = false;
            }
            cx.stats.add(Counter::PushesDropped, late);
            if dropped > 0 {
                let reason = "SLOW".to_owned();
                let gap = client::Gap { dropped, reason, ..client::Gap::default() };
                let payload = client::payload(conn.encoding, &gap);
                let (kind, payload) = ("gap", &payload[..]);
                self.write(cx, id, &ServerMessage { kind, payload, ..ServerMessage::default() });
            }
            match next {
                Some(body) => self.place_push(cx, key, id, &body),
                None => return,
            }
        }
    }

    /// Goes on with pushes to all sessions: `groups.sweep_members` of them in a turn.
    pub fn go_on_with_waves(&mut self, cx: &mut Context<'_>, now: Micros) {
        let mut left = cx.config.settings.groups.sweep_members;
        while left > 0
            && let Some(mut wave) = self.waves.pop_front()
        {
            while left > 0 && !wave.is_over() {
                left -= 1;
                self.push_next(cx, &mut wave, now);
            }
            match wave.is_over() {
                true if wave.direct.number.is_some() => self.placed.push(wave.direct),
                true => {}
                false => self.waves.push_front(wave),
            }
        }
    }

    fn push_next(&mut self, cx: &mut Context<'_>, wave: &mut Wave, now: Micros) {
        wave.next += 1;
        let Some((key, seat)) = self.sessions.slot_at(wave.next - 1) else { return };
        if let Seat::At(id) = seat
            && !self.conns.get(*id).is_some_and(|conn| conn.upgraded)
        {
            return;
        }
        let Some((session, _)) = self.session_mut(key) else { return };
        if wave.tenant.is_none_or(|tenant| session.owner.tenant == tenant) {
            let fate = self.push_to(cx, key, &wave.body, now);
            wave.direct.note(key, fate);
        }
    }

    /// Counts what became of pushes that were placed, and flushed since.
    pub fn count_direct(&mut self, cx: &mut Context<'_>) {
        let shard = cx.config.shard;
        for direct in std::mem::take(&mut self.to_count) {
            let Direct { number, mut counts, placed, offline_users } = direct;
            let Some(number) = number else { continue };
            for key in placed {
                let at = self.session_mut(key).and_then(|(_, at)| at);
                match at.and_then(|id| self.conns.get(id)) {
                    Some(conn) if conn.outbox.is_empty() => counts.written += 1,
                    Some(_) => counts.queued += 1,
                    // Gone at that moment.
                    None => counts.offline += 1,
                }
            }
            let part = ReceiptPart::Counted { counts, offline_users, is_duplicate: false };
            cx.effects.receipts.push(Receipt { number, shard, part });
        }
    }
}

impl Wave {
    fn is_over(&self) -> bool {
        self.next >= self.end
    }
}

/// Whether a client reads too slowly for a push to be put behind what waits for it.
fn is_behind(is_stuck: bool, waiting_bytes: usize) -> bool {
    is_stuck || waiting_bytes >= OUTBOX_BYTES_MAX
}

fn message_of(body: &Body) -> ServerMessage<'_> {
    ServerMessage {
        msg_id: body.msg_id,
        kind: "push",
        payload: &body.payload,
        payload_is_bytes: body.is_bytes,
        id: &body.id,
        from: &body.from,
        ..ServerMessage::default()
    }
}
