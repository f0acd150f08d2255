//! A message that was read and has no terminal answer yet, and the ordered stream it belongs to.
//!
//! Slots are reused with their buffers, so that a message in the steady state allocates nothing.

use std::sync::Arc;

use bytes::Bytes;

use crate::auth::Identity;
use crate::engine::source::Source;
use crate::ids::{
    ConnId, DedupKey, InstanceId, MsgKey, ServiceId, SessionId, StreamKey, TenantId, Ticket,
};
use crate::limits;
use crate::message::{ClientMessage, Encoding, Micros, Priority};
use crate::routing::{Failover, Order, PayloadKind, Route};

/// Where a message is.
///
/// ```text
///   Waiting --taken--> InFlight --answered--> (gone)
///      ^                  |
///      +---- surely not run, or idempotent, and time and budget left
///   Duplicate --the first one's answer--> (gone)
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Place {
    /// In the queue of its instance.
    #[default]
    Waiting,
    /// In a call.
    InFlight(Ticket),
    /// A duplicate that waits for the answer of the first.
    Duplicate,
}

/// What a message's route said when it was admitted: a new snapshot does not change a message
/// that is under way.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Handling {
    /// Who handles it.
    pub service: ServiceId,
    /// Class.
    pub priority: Priority,
    /// What is kept in order.
    pub order: Order,
    /// What the payload is.
    pub payload: PayloadKind,
    /// May run twice.
    pub idempotent: bool,
    /// Where to when the instance fails.
    pub failover: Failover,
    /// Whether the service's error text reaches the client.
    pub service_text: bool,
}

impl Handling {
    /// What `route` says now.
    pub fn of(route: &Route) -> Self {
        Self {
            service: route.service,
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
    /// The bytes for the service.
    pub payload: &'a [u8],
    pub route: &'a Route,
    /// When it was read.
    pub now: Micros,
}

/// Payload bytes: small ones in a buffer that stays with the slot, large ones shared.
#[derive(Debug)]
pub enum Payload {
    /// Up to [`limits::PAYLOAD_BY_REFERENCE_BYTES`].
    Small(Vec<u8>),
    /// By reference; a retry sends the same bytes.
    Large(Bytes),
}

impl Default for Payload {
    fn default() -> Self {
        Self::Small(Vec::new())
    }
}

impl Payload {
    /// Takes over a copy of `bytes`: the one copy between the receive buffer and the batch.
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

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Small(buffer) => buffer,
            Self::Large(bytes) => bytes,
        }
    }
}

/// A message under way.
#[derive(Debug)]
pub struct Request {
    /// Where it is.
    pub place: Place,
    /// Who gets the answer.
    pub conn: ConnId,
    /// Its id.
    pub msg_id: u32,
    /// The client's number; 0 = one-way.
    pub seq: u64,
    /// How it is handled.
    pub rule: Handling,
    /// gRPC method, of a unary service.
    pub method: Option<Arc<str>>,
    /// Whether it left its class queue to wait with its stream.
    pub parked: bool,
    /// Parked, and listed among those that may be taken again.
    pub resumed: bool,
    /// How often it was put back into a queue: tells the present stay from those before it.
    pub stay: u32,
    /// Waits for a retry to be due, without a stream: not to be taken.
    pub delayed: bool,
    /// Responses seen for it in the answer that is being read.
    pub responses: u8,
    /// Attempts made.
    pub attempt: u32,
    /// Whether an attempt that failed may have been executed: nothing that says it did not run may
    /// be answered any more.
    pub may_have_run: bool,
    /// When it was read.
    pub received: Micros,
    /// When the answer stops being worth having.
    pub deadline: Micros,
    /// Number in the order of arrival on this shard: ties are first come, first served.
    pub arrival: u64,
    /// What its instance was picked by.
    pub hash: u64,
    /// The instance it waits for or is with.
    pub instance: InstanceId,
    /// The instance that failed it before, if one did.
    pub failed_on: Option<InstanceId>,
    /// Its stream; `None` with `order = "none"`.
    pub stream: Option<StreamKey>,
    /// Neighbours among the waiting messages of its stream.
    pub next: Option<MsgKey>,
    /// See `next`.
    pub prev: Option<MsgKey>,
    /// Tenant.
    pub tenant: TenantId,
    /// Session, for the service.
    pub session: SessionId,
    /// User, for the service; `None` before authentication.
    pub user: Option<Arc<Identity>>,
    /// The client's encoding, for the service.
    pub encoding: Encoding,
    /// Its place in the dedup window, if it has an id.
    pub dedup: Option<DedupKey>,
    /// Idempotency key.
    pub id: String,
    /// Affinity key.
    pub key: String,
    /// Payload.
    pub payload: Payload,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            place: Place::Waiting,
            conn: ConnId(0),
            msg_id: 0,
            seq: 0,
            rule: Handling {
                service: ServiceId(0),
                priority: Priority::Normal,
                order: Order::None,
                payload: PayloadKind::Json,
                idempotent: false,
                failover: Failover::None,
                service_text: false,
            },
            method: None,
            parked: false,
            resumed: false,
            stay: 0,
            delayed: false,
            responses: 0,
            attempt: 0,
            may_have_run: false,
            received: Micros(0),
            deadline: Micros(0),
            arrival: 0,
            hash: 0,
            instance: InstanceId(0),
            failed_on: None,
            stream: None,
            next: None,
            prev: None,
            tenant: TenantId(0),
            session: SessionId::from_random(0),
            user: None,
            encoding: Encoding::Json,
            dedup: None,
            id: String::new(),
            key: String::new(),
            payload: Payload::default(),
        }
    }
}

impl Request {
    /// Makes the slot of a request that has ended the one of a new request; the buffers stay. Every
    /// field is named, so that none can keep the value of the slot's last request by mistake.
    pub(crate) fn reset(&mut self, new: &NewRequest<'_>, arrival_number: u64) {
        let NewRequest { from, message, payload: bytes, route, now } = *new;
        let timeout_ms = match message.deadline_ms {
            0 => route.timeout_ms,
            ms => ms.min(route.timeout_ms),
        };
        let Self {
            place,
            conn,
            msg_id,
            seq,
            rule,
            method,
            parked,
            resumed,
            stay,
            delayed,
            responses,
            attempt,
            may_have_run,
            received,
            deadline,
            arrival,
            hash,
            instance,
            failed_on,
            stream,
            next,
            prev,
            tenant,
            session,
            user,
            encoding,
            dedup,
            id,
            key,
            payload,
        } = self;
        *place = Place::Waiting;
        *conn = from.conn;
        *msg_id = message.msg_id;
        *seq = message.seq;
        *rule = Handling::of(route);
        method.clone_from(&route.method);
        (*parked, *resumed, *stay, *delayed) = (false, false, 0, false);
        (*responses, *attempt, *may_have_run) = (0, 0, false);
        *received = now;
        *deadline = now.plus_ms(u64::from(timeout_ms));
        *arrival = arrival_number;
        (*hash, *instance, *failed_on) = (0, InstanceId(0), None);
        (*stream, *next, *prev) = (None, None, None);
        *tenant = from.sender.tenant;
        *session = from.session;
        user.clone_from(&from.user);
        *encoding = from.encoding;
        *dedup = None;
        id.clear();
        id.push_str(&message.id);
        key.clear();
        key.push_str(&message.key);
        payload.set(bytes);
    }

    /// Bytes that count against caps: payload and the two strings.
    pub fn bytes(&self) -> usize {
        self.payload.as_slice().len() + self.id.len() + self.key.len()
    }
}
