//! What services that ask for events are told of sessions and their groups.
//!
//! A session is told of as connected when it is clear that it is one: with its first message for a
//! service or for the gateway's ids, when it is made resumable, or a moment after it began. Until
//! then its client may resume another session on its connection, and of that there is nothing to
//! tell. Everything else is told of sessions that were: what a session ends with is told if it was
//! told that it began.

use std::sync::Arc;

use crate::engine::Context;
use crate::engine::clients::Clients;
use crate::engine::clients::conn::Phase;
use crate::engine::clients::session::Session;
use crate::engine::clients::sessions::Seat;
use crate::engine::events::{Event, Subject};
use crate::ids::{ConnId, SessionKey};
use crate::message::{EventKind, EventReason, Micros};
use crate::wire::close;

/// Sessions that are told of as connected in a tick: 100,000 a second.
const SETTLE_BUDGET: usize = 1_000;

/// The reason for which a connection ends that is closed with `code` by the gateway.
pub(super) fn reason_of(code: u16) -> EventReason {
    match code {
        close::GOING_AWAY => EventReason::GatewayStop,
        close::TOO_SLOW => EventReason::Slow,
        close::TOKEN_EXPIRED | close::NO_AUTH | close::BAD_TOKEN => EventReason::Token,
        close::SIGNED_IN_ELSEWHERE | close::RESUMED_ELSEWHERE => EventReason::Replaced,
        _ => EventReason::Closed,
    }
}

/// The session now, as an event has it.
pub(super) fn subject(session: &Session) -> Subject {
    Subject {
        key: session.key,
        session: session.id,
        sender: session.sender,
        user: session.owner.user().cloned(),
    }
}

impl Clients {
    /// Takes note that a connection has a session of which services may be told soon.
    pub(super) fn begins_to_settle(&mut self, id: ConnId) {
        if self.events.is_on()
            && let Some(conn) = self.conns.get(id)
        {
            self.events.settles(conn.session.key, self.ticked);
        }
    }

    /// Tells services of the session of a connection, and of the groups that it is in, if they were
    /// not told yet, and if it may send them messages.
    pub(in crate::engine) fn announce(&mut self, cx: &mut Context<'_>, id: ConnId) {
        if !self.events.is_on() {
            return;
        }
        let required = self.sign_in.required;
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.phase == Phase::Open) else {
            return;
        };
        let lacks_user = conn.session.user().is_none() && conn.must_sign_in(required);
        if conn.session.is_told || lacks_user {
            return;
        }
        conn.session.is_told = true;
        let (subject, peer) = (subject(&conn.session), conn.peer);
        let memberships = conn.session.groups.as_deref();
        let groups: Vec<_> = memberships.into_iter().flat_map(|all| all.iter()).collect();
        let (kind, at) = (EventKind::Connected, self.ticked);
        let (group, reason, count, peer) = (None, None, 0, Some(peer));
        let connected = Event { kind, subject, group, reason, peer, count, at };
        self.events.tell(cx, &connected);
        for (_, membership) in groups {
            let Some(group) = self.groups.get(membership.group) else { continue };
            let name = group.name.name.clone();
            self.tell_group(cx, connected.subject.clone(), EventKind::Joined, name, None);
        }
    }

    fn tell_group(
        &mut self,
        cx: &mut Context<'_>,
        subject: Subject,
        kind: EventKind,
        group: Arc<str>,
        reason: Option<EventReason>,
    ) {
        let (group, peer, count, at) = (Some(group), None, 0, self.ticked);
        self.events.tell(cx, &Event { kind, subject, group, reason, peer, count, at });
    }

    /// Tells services that a session came into a group.
    pub(super) fn tell_join(&mut self, cx: &mut Context<'_>, key: SessionKey, group: &Arc<str>) {
        if !self.events.is_on() {
            return;
        }
        let Some((session, _)) = self.session_mut(key) else { return };
        if session.is_told {
            let subject = subject(session);
            self.tell_group(cx, subject, EventKind::Joined, group.clone(), None);
        }
    }

    /// Tells services that a session is in a group no more.
    pub(super) fn tell_leave(
        &mut self,
        cx: &mut Context<'_>,
        subject: Option<Subject>,
        group: &Arc<str>,
        reason: EventReason,
    ) {
        if let Some(subject) = subject {
            self.tell_group(cx, subject, EventKind::Left, group.clone(), Some(reason));
        }
    }

    /// The session as an event has it, if services were told that it is there.
    pub(super) fn subject_of(&self, session: &Session) -> Option<Subject> {
        (session.is_told && self.events.is_on()).then(|| subject(session))
    }

    /// Tells services that a session is there no more, if they were told that it is.
    pub(super) fn tell_end(
        &mut self,
        cx: &mut Context<'_>,
        subject: Option<Subject>,
        reason: EventReason,
    ) {
        let Some(subject) = subject else { return };
        let (kind, at) = (EventKind::Disconnected, self.ticked);
        let (group, peer, reason, count) = (None, None, Some(reason), 0);
        self.events.tell(cx, &Event { kind, subject, group, reason, peer, count, at });
    }

    /// Ends the memberships of a connection's session whose client signs in, and tells services
    /// that it is there no more.
    pub(super) fn ends_as_replaced(&mut self, cx: &mut Context<'_>, id: ConnId) {
        self.leave_with_notice(cx, id, "SIGNED_IN");
        let Some(conn) = self.conns.get(id) else { return };
        let subject = self.subject_of(&conn.session);
        self.tell_end(cx, subject, EventReason::Replaced);
        if let Some(conn) = self.conns.get_mut(id) {
            conn.session.is_told = false;
        }
    }

    /// Tells services that a session whose client did not come back within the grace is there no
    /// more. It may come back still, with its groups: then they are told so.
    pub(super) fn tell_absence(&mut self, cx: &mut Context<'_>, key: SessionKey) {
        let Some(Seat::Away(session)) = self.sessions.seat_mut(key) else { return };
        if !self.events.is_on() || !std::mem::take(&mut session.is_told) {
            return;
        }
        let (subject, reason) = (subject(session), session.parting);
        let memberships = session.groups.as_deref();
        let groups: Vec<_> = memberships.into_iter().flat_map(|all| all.iter()).collect();
        for (_, membership) in groups {
            let Some(group) = self.groups.get(membership.group) else { continue };
            let name = group.name.name.clone();
            let left = Some(reason);
            self.tell_group(cx, subject.clone(), EventKind::Left, name, left);
        }
        self.tell_end(cx, Some(subject), reason);
    }

    /// Tells services of sessions that have settled: part of the tick.
    pub(in crate::engine) fn tell_settled(&mut self, cx: &mut Context<'_>, now: Micros) {
        for _ in 0..SETTLE_BUDGET {
            let Some(key) = self.events.next_settled(now) else { return };
            if let Some(&Seat::At(id)) = self.sessions.seat(key) {
                self.announce(cx, id);
            }
        }
    }
}
