//! Events on their way to services: a request each, with nobody who gets its answer.
//!
//! An event is hashed by its user and is in the stream of its session, so that an instance gets it
//! in its order among the messages of that session. It is sent again as long as the service can
//! not be reached or breaks off; what no instance takes waits outside the queues, and with it what
//! follows it, so that the order holds over that, too.

use std::borrow::Cow;

use crate::engine::Context;
use crate::engine::answer::Answer;
use crate::engine::clients::Clients;
use crate::engine::dispatcher::Dispatcher;
use crate::engine::dispatcher::request::NewRequest;
use crate::engine::dispatcher::route_cache::RouteKey;
use crate::engine::events::{Event, EventEnd, NO_SESSION};
use crate::engine::owner::{Holder, Party};
use crate::engine::source::Source;
use crate::ids::{ConnId, MsgKey, ServiceId, StreamKey, TenantId};
use crate::message::{
    ClientMessage, Encoding, EventReason, EventResult, Micros, Priority, Reason, status,
};
use crate::routing::{Failover, HashOn, Order, PayloadKind, Route, affinity};
use crate::wire::events::{EventFields, write_event};

/// Time for an event from the queue to its answer, once it is let in: that of a message by default.
/// A call, and the stream of a session, is held no longer than by a message.
const TRY_MS: u32 = 5_000;

/// The owner of all events, for whom they share queues with those of messages: none of them takes a
/// part of a client's.
const EVENTS: Holder = Holder { tenant: TenantId::DEFAULT, party: Party::User(0), session: 0 };

/// The rules by which events of one kind go to a service.
fn route(service: ServiceId, msg_id: u32) -> Route {
    Route {
        first: msg_id,
        last: msg_id,
        service,
        priority: Priority::Low,
        timeout_ms: TRY_MS,
        order: Order::Session,
        hash_on: HashOn::User,
        payload: PayloadKind::Bytes,
        idempotent: true,
        failover: Failover::Next,
        method: None,
        service_text: false,
        needs_user: false,
        only_for: None,
    }
}

/// The sender of an event: its session, with no connection.
fn source(event: &Event) -> Source {
    Source {
        conn: ConnId(0),
        session_key: event.subject.key,
        session: event.subject.session,
        sender: event.subject.sender,
        before: None,
        user: event.subject.user.clone(),
        holder: EVENTS,
        encoding: Encoding::Json,
        must_sign_in: false,
    }
}

fn payload(event: &Event, number: u64) -> Vec<u8> {
    let peer = event.peer.map(|peer| peer.to_string()).unwrap_or_default();
    write_event(&EventFields {
        kind: event.kind.name(),
        group: event.group.as_deref().unwrap_or_default(),
        reason: event.reason.map_or("", EventReason::name),
        count: event.count,
        number,
        peer: &peer,
    })
}

impl Dispatcher {
    /// Lets events that wait into the queues of their instances, each line in its order and as far
    /// as it goes.
    pub fn send_events(&mut self, cx: &mut Context<'_>, clients: &mut Clients, now: Micros) {
        if !clients.events.begin_sending() {
            return;
        }
        for line in 0..clients.events.lines() {
            while let Some((service, number, event)) = clients.events.take_first(line) {
                match self.send_event(cx, clients, (service, number), &event, now) {
                    Some(key) => clients.events.is_sent(line, number, event, key),
                    None => {
                        clients.events.put_back(line, number, event);
                        break;
                    }
                }
            }
        }
    }

    fn send_event(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        (service, number): (ServiceId, u64),
        event: &Event,
        now: Micros,
    ) -> Option<MsgKey> {
        let (from, route) = (source(event), route(service, event.kind.msg_id()));
        let (_, hash) = affinity(route.hash_on, &from.sender, "");
        // Asked here, so that an event that waits is not counted as a failure of routing each time.
        let key = RouteKey { tenant: from.sender.tenant, service, hash };
        self.pick_other(cx, &key, route.failover, None)?;
        let id = format!("{}.{number}", event.subject.session.as_str());
        let message = ClientMessage {
            msg_id: event.kind.msg_id(),
            id: Cow::Borrowed(&id),
            ..ClientMessage::default()
        };
        let payload = payload(event, number);
        let new =
            NewRequest { from: &from, message: &message, payload: &payload, route: &route, now };
        let key = self.enqueue(cx, clients, &new, None).ok()?;
        self.requests.get_mut(key).expect("just put in").session_key = NO_SESSION;
        Some(key)
    }

    /// Ends a request that was an event, and that is in no queue. If it is to wait again, so do
    /// those behind it in its stream.
    pub(super) fn end_event(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        key: MsgKey,
        answer: &Answer<'_>,
        now: Micros,
    ) {
        let stream = self.requests.get(key).and_then(|request| request.stream);
        self.release(cx, key);
        let end = end_of(answer);
        clients.events.ends(cx, key, end, now);
        if end != EventEnd::Again {
            return;
        }
        for later in self.events_in(stream) {
            self.withdraw_waiting(cx, later);
            self.release(cx, later);
            clients.events.ends(cx, later, end, now);
        }
    }

    /// The events that wait in a stream, the last one first.
    fn events_in(&mut self, stream: Option<StreamKey>) -> Vec<MsgKey> {
        let mut found = Vec::new();
        let stream = stream.and_then(|stream| self.ordering.get_alive(stream));
        let mut next = stream.and_then(|stream| stream.tail);
        while let Some(key) = next
            && let Some(request) = self.requests.get(key)
        {
            if request.session_key == NO_SESSION {
                found.push(key);
            }
            next = request.links.prev;
        }
        found
    }
}

/// What the answer to an event says of it.
fn end_of(answer: &Answer<'_>) -> EventEnd {
    match answer.reason {
        None if answer.status == status::OK => EventEnd::Told(EventResult::Ok),
        None => EventEnd::Told(EventResult::Failed),
        Some(Reason::Unavailable | Reason::Expired | Reason::QueueFull) => EventEnd::Again,
        Some(
            Reason::NoRoute
            | Reason::RateLimited
            | Reason::OutcomeUnknown
            | Reason::TooLarge
            | Reason::Duplicate
            | Reason::Draining
            | Reason::Unauthenticated
            | Reason::Forbidden
            | Reason::BadMessage
            | Reason::BadServiceReply
            | Reason::Unimplemented
            | Reason::Internal,
        ) => EventEnd::Lost,
    }
}
