//! A request: a message that was read and has no terminal answer yet.
//!
//! Slots are reused with their buffers, so that a message in the steady state allocates nothing.

use std::sync::Arc;

use bytes::Bytes;

use crate::auth::Identity;
use crate::engine::clients::conn::Claim;
use crate::engine::dispatcher::route_cache::RouteKey;
use crate::engine::dispatcher::slots::Line;
use crate::engine::dispatcher::slow_owners::ANY_COMPANY;
use crate::engine::owner::{Holder, Party};
use crate::engine::slab::Slab;
use crate::engine::source::Source;
use crate::ids::{
    DedupKey, InstanceId, MsgKey, OwnerKey, ServiceId, SessionId, SessionKey, ShardId, StreamKey,
    TenantId, Ticket,
};
use crate::limits;
use crate::message::{ClientMessage, Encoding, Micros, Priority};
use crate::routing::{Failover, Order, PayloadKind, Route};

/// Requests under way, by key.
pub type Requests = Slab<MsgKey, Request>;

/// The state of a request.
///
/// ```text
///   Waiting --taken--> InFlight --answered--> (gone)
///      ^                  |
///      +------------------+  surely not run, or idempotent; with time and budget left
///
///   Duplicate --answer of the first--> (gone)
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// The request is in the queue of its instance.
    Waiting,
    /// The request is in this call.
    InFlight(Ticket),
    /// The request repeats one under way, and gets the answer of that one.
    Duplicate,
}

/// Rules of the route by which a request was let in. A new snapshot does not change them.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Handling {
    pub service: ServiceId,
    /// First id of the route.
    pub route: u32,
    pub priority: Priority,
    pub order: Order,
    /// Kind of the payload.
    pub payload: PayloadKind,
    /// Whether the message may run twice.
    pub idempotent: bool,
    /// Whether the request goes to another instance when its own fails.
    pub failover: Failover,
    /// Whether the service's error text reaches the client.
    pub service_text: bool,
}

impl Handling {
    /// The rules of `route`.
    pub fn of(route: &Route) -> Self {
        Self {
            service: route.service,
            route: route.first,
            priority: route.priority,
            order: route.order,
            payload: route.payload,
            idempotent: route.idempotent,
            failover: route.failover,
            service_text: route.service_text,
        }
    }
}

/// A message that is about to become a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewRequest<'a> {
    pub from: &'a Source,
    pub message: &'a ClientMessage<'a>,
    /// Payload in the form for the service.
    pub payload: &'a [u8],
    pub route: &'a Route,
    /// Time at which the message was read.
    pub now: Micros,
}

impl NewRequest<'_> {
    /// The time after which an answer is worth nothing: the client's deadline, at most the route's.
    pub fn deadline(&self) -> Micros {
        let timeout_ms = match self.message.deadline_ms {
            0 => self.route.timeout_ms,
            ms => ms.min(self.route.timeout_ms),
        };
        self.now.plus_ms(u64::from(timeout_ms))
    }

    /// Whether the client asks for an earlier deadline than the route's.
    #[inline]
    pub fn is_shortened(&self) -> bool {
        (1..self.route.timeout_ms).contains(&self.message.deadline_ms)
    }

    /// Bytes that count against caps: payload, idempotency key, affinity key and traceparent.
    pub fn bytes(&self) -> usize {
        let ClientMessage { id, key, traceparent, .. } = self.message;
        self.payload.len() + id.len() + key.len() + traceparent.len()
    }
}

/// Decisions about a message that is let in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Assignment {
    pub state: State,
    /// Affinity hash, by which the instance was picked.
    pub hash: u64,
    pub instance: InstanceId,
    pub stream: Option<StreamKey>,
    pub dedup: Option<DedupKey>,
    /// Bytes that the answer is expected to have, if it is large; else 0.
    pub answer_bytes: usize,
    /// Line in which it waits, and most messages of a call with it.
    pub place: (Line, u16),
    /// Weight of its tenant.
    pub weight: u32,
}

impl Assignment {
    /// The decisions about a duplicate, which goes to no instance.
    pub const DUPLICATE: Self = Self {
        state: State::Duplicate,
        hash: 0,
        instance: InstanceId(0),
        stream: None,
        dedup: None,
        answer_bytes: 0,
        place: (Line::Prompt, ANY_COMPANY),
        weight: 1,
    };
}

/// Position of a waiting request in the queue of its instance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueuePosition {
    /// Whether the request has left its class queue to wait with its stream.
    pub parked: bool,
    /// Whether the request is parked, and listed among those that may be taken again.
    pub resumed: bool,
    /// Number of times that the request was put back into a queue; entries of earlier ones are
    /// stale.
    pub generation: u32,
    /// Line in which the request waits, or from which it was taken.
    pub line: Line,
    /// Most messages of a call with the request.
    pub company: u16,
    /// Place of its owner in the backlog that it waits in, or was taken from; none without one.
    pub owner: Option<OwnerKey>,
    /// Cost charged to the owner when the request was taken, in microseconds of a slot.
    pub charged_us: u64,
}

impl QueuePosition {
    /// Position of a request that is in no queue yet, by what is known of its owner's speed.
    pub fn new((line, company): (Line, u16)) -> Self {
        Self {
            parked: false,
            resumed: false,
            generation: 0,
            line,
            company,
            owner: None,
            charged_us: 0,
        }
    }
}

/// Neighbours of a waiting request in its stream; none of a request that does not wait.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StreamLinks {
    pub next: Option<MsgKey>,
    pub prev: Option<MsgKey>,
}

/// Payload bytes: small ones in a buffer that stays with the slot, large ones shared.
#[derive(Debug)]
pub enum Payload {
    /// Payload below [`limits::PAYLOAD_BY_REFERENCE_BYTES`], in a buffer that is reused.
    Small(Vec<u8>),
    /// Payload that is shared; a retry sends the same bytes.
    Large(Bytes),
}

impl Default for Payload {
    fn default() -> Self {
        Self::Small(Vec::new())
    }
}

impl Payload {
    /// Keeps a copy of `bytes`: the one copy between the receive buffer and the batch.
    pub fn set(&mut self, bytes: &[u8]) {
        if bytes.len() >= limits::PAYLOAD_BY_REFERENCE_BYTES {
            *self = Self::Large(Bytes::copy_from_slice(bytes));
            return;
        }
        match self {
            Self::Small(buffer) => {
                buffer.clear();
                buffer.extend_from_slice(bytes);
            }
            Self::Large(_) => *self = Self::Small(bytes.to_vec()),
        }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Small(buffer) => buffer,
            Self::Large(bytes) => bytes,
        }
    }
}

/// A message under way to a service and back.
#[derive(Debug)]
pub struct Request {
    pub(crate) state: State,
    /// Session that gets the answer.
    pub(crate) session_key: SessionKey,
    /// Id of the message, by which it was routed.
    pub msg_id: u32,
    /// Number that the client gave the message; 0: one-way, without an answer.
    pub seq: u64,
    pub(crate) handling: Handling,
    /// gRPC method, of a unary service.
    pub(crate) method: Option<Arc<str>>,
    pub(crate) position: QueuePosition,
    /// Whether the request, which has no stream, waits for its retry to be due: not to be taken.
    pub(crate) delayed: bool,
    /// Number of responses to the request in the answer that is being read.
    pub(crate) responses: u8,
    /// Number of attempts made.
    pub(crate) attempt: u32,
    /// Whether an attempt that failed may have run: no answer may say any more that the message did
    /// not run.
    pub(crate) may_have_run: bool,
    /// Time at which the message was read.
    pub received: Micros,
    /// Time after which an answer is worth nothing.
    pub deadline: Micros,
    /// Whether the client chose the deadline: it is earlier than the route's.
    pub(crate) is_shortened: bool,
    /// Number in the order of arrival on this shard: ties are first come, first served.
    pub arrival: u64,
    /// Affinity hash, by which the instance was picked.
    pub(crate) hash: u64,
    /// Instance for which the request waits, or in whose call it is.
    pub instance: InstanceId,
    /// Instance that failed the last attempt, if there was one.
    pub(crate) failed_on: Option<InstanceId>,
    /// Ordered stream; `None` with `order = "none"`.
    pub stream: Option<StreamKey>,
    pub(crate) links: StreamLinks,
    /// Owner that the request counts for.
    pub holder: Holder,
    /// Weight of its tenant's part of what is shared.
    pub(crate) weight: u32,
    /// Id of the session, for the service.
    pub session: SessionId,
    /// User, for the service; `None` before authentication.
    pub(crate) user: Option<Arc<Identity>>,
    /// Encoding of the client, for the service.
    pub(crate) encoding: Encoding,
    /// Entry in the dedup window, of a message with an idempotency key.
    pub(crate) dedup: Option<DedupKey>,
    /// Bytes that the answer is expected to have, if it is large; else 0.
    pub(crate) answer_bytes: usize,
    /// Idempotency key that the client gave.
    pub(crate) id: String,
    /// Affinity key that the client gave.
    pub(crate) key: String,
    /// Place of the message in a trace, for the service.
    pub(crate) traceparent: String,
    /// Payload in the form for the service.
    pub payload: Payload,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            state: State::Waiting,
            session_key: SessionKey(0),
            msg_id: 0,
            seq: 0,
            handling: Handling {
                service: ServiceId(0),
                route: 0,
                priority: Priority::Normal,
                order: Order::None,
                payload: PayloadKind::Json,
                idempotent: false,
                failover: Failover::None,
                service_text: false,
            },
            method: None,
            position: QueuePosition::new((Line::Prompt, ANY_COMPANY)),
            delayed: false,
            responses: 0,
            attempt: 0,
            may_have_run: false,
            received: Micros(0),
            deadline: Micros(0),
            is_shortened: false,
            arrival: 0,
            hash: 0,
            instance: InstanceId(0),
            failed_on: None,
            stream: None,
            links: StreamLinks::default(),
            holder: Holder { tenant: TenantId::DEFAULT, party: Party::User(0), session: 0 },
            weight: 1,
            session: SessionId::new(ShardId(0), 0),
            user: None,
            encoding: Encoding::Json,
            dedup: None,
            answer_bytes: 0,
            id: String::new(),
            key: String::new(),
            traceparent: String::new(),
            payload: Payload::default(),
        }
    }
}

impl Request {
    /// Turns the slot of a request that has ended into that of a new one; the buffers stay. Every
    /// field is named, so that none can keep the value of the last request by mistake.
    pub(crate) fn reset(&mut self, new: &NewRequest<'_>, assigned: &Assignment, number: u64) {
        let NewRequest { from, message, payload: bytes, route, now } = *new;
        let Self {
            state,
            session_key,
            msg_id,
            seq,
            handling,
            method,
            position,
            delayed,
            responses,
            attempt,
            may_have_run,
            received,
            deadline,
            is_shortened,
            arrival,
            hash,
            instance,
            failed_on,
            stream,
            links,
            holder,
            weight,
            session,
            user,
            encoding,
            dedup,
            answer_bytes,
            id,
            key,
            traceparent,
            payload,
        } = self;
        *state = assigned.state;
        *session_key = from.session_key;
        *msg_id = message.msg_id;
        *seq = message.seq;
        *handling = Handling::of(route);
        method.clone_from(&route.method);
        (*position, *delayed) = (QueuePosition::new(assigned.place), false);
        (*responses, *attempt, *may_have_run) = (0, 0, false);
        (*received, *deadline, *arrival) = (now, new.deadline(), number);
        *is_shortened = new.is_shortened();
        (*hash, *instance, *failed_on) = (assigned.hash, assigned.instance, None);
        (*stream, *links) = (assigned.stream, StreamLinks::default());
        (*holder, *weight) = (from.holder, assigned.weight);
        *session = from.session;
        user.clone_from(&from.user);
        *encoding = from.encoding;
        (*dedup, *answer_bytes) = (assigned.dedup, assigned.answer_bytes);
        id.clear();
        id.push_str(&message.id);
        key.clear();
        key.push_str(&message.key);
        traceparent.clear();
        traceparent.push_str(&message.traceparent);
        payload.set(bytes);
    }

    /// The key by which the instance is picked.
    pub(crate) fn route_key(&self) -> RouteKey {
        RouteKey { tenant: self.holder.tenant, service: self.handling.service, hash: self.hash }
    }

    /// Whether the request waits for `instance`, and is listed in this generation among those that
    /// may be taken.
    pub(crate) fn is_listed_at(&self, instance: InstanceId, generation: u32) -> bool {
        let QueuePosition { resumed, generation: present, .. } = self.position;
        self.waits_for(instance) && resumed && present == generation
    }

    /// The call that the request is in.
    pub(crate) fn ticket(&self) -> Option<Ticket> {
        match self.state {
            State::InFlight(ticket) => Some(ticket),
            State::Waiting | State::Duplicate => None,
        }
    }

    /// Whether the request is in the queue of `instance`.
    pub(crate) fn waits_for(&self, instance: InstanceId) -> bool {
        self.state == State::Waiting && self.instance == instance
    }

    /// Drops everything that a slot without a request does not need. The small buffers stay.
    pub(crate) fn clear(&mut self) {
        if let Payload::Large(_) = self.payload {
            self.payload = Payload::default();
        }
        self.user = None;
    }

    /// Bytes that count against caps: payload, idempotency key, affinity key and traceparent.
    pub(crate) fn bytes(&self) -> usize {
        let Self { payload, id, key, traceparent, .. } = self;
        payload.as_slice().len() + id.len() + key.len() + traceparent.len()
    }

    /// The share in what the connection may have under way.
    #[inline]
    pub(crate) fn claim(&self) -> Claim {
        Claim { bytes: self.bytes(), answer_bytes: self.answer_bytes }
    }
}
