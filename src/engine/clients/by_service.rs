//! What services do about sessions of a shard besides pushing: put them into groups, take them out,
//! and close their connections.

use std::sync::Arc;

use crate::engine::Context;
use crate::engine::clients::Clients;
use crate::engine::clients::joining::{Joined, Joining, Wanted, outcome_of};
use crate::engine::clients::sessions::{End, Seat};
use crate::engine::groups::asks::Asked;
use crate::engine::groups::roster::Info;
use crate::ids::{SessionKey, TenantId};
use crate::message::{Encoding, EventReason, Micros, Reject, ServerMessage};
use crate::push::{GroupName, Receipt, ReceiptPart, Whom};
use crate::routing::affinity_hash;
use crate::stats::Counter;
use crate::wire::client;

/// A service's call to put sessions into groups, of which some may wait for a place.
#[derive(Debug)]
pub struct JoinCall {
    number: u64,
    /// The asks that it made: those behind the first number, up to the second.
    asks: (u64, u64),
    sessions: Vec<SessionKey>,
    groups: Vec<GroupName>,
    offline: u32,
}

impl Clients {
    /// The sessions that are meant and are here, each once, and how many sessions and users are
    /// not.
    fn find_all(&mut self, tenant: TenantId, whom: &Whom) -> (Vec<SessionKey>, u32) {
        let (mut found, mut absent) = (Vec::new(), 0);
        for id in &whom.sessions {
            let key = self.sessions.index.find(id);
            let is_of_tenant = |clients: &mut Self, key: SessionKey| {
                clients.session_mut(key).is_some_and(|(s, _)| s.owner.tenant == tenant)
            };
            match key.filter(|key| is_of_tenant(self, *key)) {
                Some(key) => found.push(key),
                None => absent += 1,
            }
        }
        for user in &whom.users {
            let keys = self.sessions.index.of_user(tenant, affinity_hash(tenant, user.as_bytes()));
            absent += u32::from(keys.is_empty());
            found.extend_from_slice(keys);
        }
        found.sort_unstable();
        found.dedup();
        (found, absent)
    }

    /// Puts sessions into groups, whatever the rules say of who joins by itself, and remembers
    /// `info` of each. They are told by `joined`.
    pub fn join_all(
        &mut self,
        cx: &mut Context<'_>,
        number: u64,
        tenant: TenantId,
        whom: &Whom,
        (groups, info): (&[Arc<str>], &Info),
        now: Micros,
    ) {
        let (sessions, offline) = self.find_all(tenant, whom);
        let after = self.groups.asks.last();
        for &key in &sessions {
            self.join_by_service(cx, key, tenant, (groups, info), now);
        }
        let asks = (after, self.groups.asks.last());
        let groups = groups.iter().map(|name| GroupName { tenant, name: name.clone() }).collect();
        self.joins.push(JoinCall { number, asks, sessions, groups, offline });
        self.tell_join_calls(cx);
    }

    /// Tells control of joins of which none waits for a word of a home any more: a push that comes
    /// after the answer reaches those who joined.
    pub fn tell_join_calls(&mut self, cx: &mut Context<'_>) {
        for call in std::mem::take(&mut self.joins) {
            if self.groups.asks.has_between(call.asks.0, call.asks.1) {
                self.joins.push(call);
                continue;
            }
            let JoinCall { number, sessions, groups, offline, .. } = call;
            let is_in = |clients: &mut Self, key: SessionKey, name: &GroupName| {
                let group = clients.groups.find(name);
                let session = clients.session_mut(key).map(|(session, _)| &*session);
                let memberships = session.and_then(|session| session.groups.as_deref());
                group.zip(memberships).is_some_and(|(group, all)| all.slot_of(group).is_some())
            };
            let in_all = sessions.iter().filter(|key| groups.iter().all(|g| is_in(self, **key, g)));
            let joined = in_all.count() as u32;
            let position =
                |group: &GroupName| Some((group.name.clone(), self.groups.position(group)?));
            let positions = groups.iter().filter_map(position).collect();
            let part = ReceiptPart::Joined { joined, offline, positions };
            cx.effects.receipts.push(Receipt { number, shard: cx.config.shard, part });
        }
    }

    /// Puts a session into groups of which a service, or its token, names it a member.
    pub fn join_by_service(
        &mut self,
        cx: &mut Context<'_>,
        key: SessionKey,
        tenant: TenantId,
        (groups, info): (&[Arc<str>], &Info),
        now: Micros,
    ) {
        for name in groups {
            let group = GroupName::new(tenant, name).ok();
            let config = cx.config;
            let rule = group.as_ref().and_then(|group| config.gateway.push.rule(&group.name));
            let (Some(group), Some(rule)) = (group, rule) else {
                cx.stats.inc(Counter::GroupJoinsRefused);
                continue;
            };
            let asked = Asked { info: info.clone(), ..Asked::default() };
            match self.join(cx, key, (&group, rule), asked, Wanted::default(), now) {
                Ok(Joining::Done(joined)) => {
                    self.tell_joined(cx, key, Wanted::default(), &group, Ok(joined));
                    self.write_newest(cx, key, &group, &joined, now);
                }
                Ok(Joining::Waits) => {}
                Err(_) => cx.stats.inc(Counter::GroupJoinsRefused),
            }
        }
    }

    /// Tells a client what became of a join: by the answer that it wants, or by `joined`.
    pub fn tell_joined(
        &mut self,
        cx: &mut Context<'_>,
        key: SessionKey,
        wanted: Wanted,
        name: &GroupName,
        result: Result<Joined, Reject>,
    ) {
        let Wanted { seq, msg_id } = wanted;
        let joined = match result {
            Ok(joined) => joined,
            Err(reject) => {
                cx.stats.inc(Counter::GroupJoinsRefused);
                self.answer_reject(cx, key, wanted, &reject);
                return;
            }
        };
        let outcome = outcome_of(&name.name, joined.outcome, Some(joined.position), joined.count);
        let payload = client::payload(self.encoding_of(key), &outcome);
        if seq > 0 {
            self.answer_gateway(cx, key, wanted, &payload);
            return;
        }
        // A client that joins one-way wants to know nothing; one that was put in is told.
        if msg_id == 0 {
            self.tell_session(cx, key, "joined", &payload);
        }
    }

    /// Encoding in which a session is written to.
    pub(super) fn encoding_of(&self, key: SessionKey) -> Encoding {
        match self.sessions.seat(key) {
            Some(Seat::At(id)) => self.conns.get(*id).map_or(Encoding::Json, |conn| conn.encoding),
            Some(Seat::Away(session)) => {
                session.resumption.as_deref().map_or(Encoding::Json, |r| r.encoding)
            }
            None => Encoding::Json,
        }
    }

    /// Writes a message of the gateway's own to a session that is on a connection.
    pub(super) fn tell_session(
        &mut self,
        cx: &mut Context<'_>,
        key: SessionKey,
        kind: &str,
        payload: &[u8],
    ) {
        if let Some(Seat::At(id)) = self.sessions.seat(key) {
            let id = *id;
            self.write(cx, id, &ServerMessage { kind, payload, ..ServerMessage::default() });
        }
    }

    /// Takes sessions out of groups; they are told by `left`.
    pub fn leave_by_service(
        &mut self,
        cx: &mut Context<'_>,
        number: u64,
        tenant: TenantId,
        whom: &Whom,
        groups: &[Arc<str>],
        reason: &str,
    ) {
        let (found, _) = self.find_all(tenant, whom);
        let mut left = 0;
        for &key in &found {
            left += u32::from(self.leave_named(cx, key, tenant, groups, reason) > 0);
        }
        self.tell_done(cx, number, left, 0);
    }

    /// Takes a session out of groups by their names. Returns of how many.
    pub fn leave_named(
        &mut self,
        cx: &mut Context<'_>,
        key: SessionKey,
        tenant: TenantId,
        groups: &[Arc<str>],
        reason: &str,
    ) -> usize {
        let mut left = 0;
        for name in groups {
            let group = self.groups.find(&GroupName { tenant, name: name.clone() });
            let Some((session, _)) = self.session_mut(key) else { continue };
            let memberships = session.groups.as_deref();
            let slot = group.zip(memberships).and_then(|(group, all)| all.slot_of(group));
            if let Some(name) =
                slot.and_then(|slot| self.leave(cx, key, slot, EventReason::Service))
            {
                left += 1;
                self.tell_left(cx, key, &name, reason);
            }
        }
        left
    }

    /// Tells a client that its session is in a group no more.
    pub(super) fn tell_left(
        &mut self,
        cx: &mut Context<'_>,
        key: SessionKey,
        name: &GroupName,
        reason: &str,
    ) {
        let left =
            client::generated::Leave { group: name.name.to_string(), reason: reason.to_owned() };
        let payload = client::payload(self.encoding_of(key), &left);
        self.tell_session(cx, key, "left", &payload);
    }

    /// Closes the connections of sessions. Without `keep_session` the sessions end, those that are
    /// away too.
    pub fn disconnect(
        &mut self,
        cx: &mut Context<'_>,
        number: u64,
        tenant: TenantId,
        whom: &Whom,
        (code, reason, keep_session): (u16, &str, bool),
        now: Micros,
    ) {
        let (found, _) = self.find_all(tenant, whom);
        let (mut closed, mut ended) = (0, 0);
        for key in found {
            match self.sessions.seat(key) {
                Some(&Seat::At(id)) => {
                    if let Some(conn) = self.conns.get_mut(id) {
                        conn.ends_session |= !keep_session;
                        conn.session.parting = EventReason::Kicked;
                    }
                    cx.stats.inc(Counter::ClosedByService);
                    self.close_only(cx, id, code, reason, now);
                    closed += 1;
                    ended += u32::from(!keep_session);
                }
                Some(Seat::Away(_)) if !keep_session => {
                    self.end_away(cx, key, End::Left, EventReason::Kicked);
                    ended += 1;
                }
                Some(Seat::Away(_)) | None => {}
            }
        }
        self.tell_done(cx, number, closed, ended);
    }
}
