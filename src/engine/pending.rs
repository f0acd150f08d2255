//! A message that was read and has no terminal answer yet, and the ordered stream it belongs to.
//!
//! Slots are reused with their buffers, so that a message in the steady state allocates nothing.

use std::sync::Arc;

use bytes::Bytes;

use crate::auth::Identity;
use crate::ids::{
    ConnId, DedupKey, InstanceId, MsgKey, ServiceId, SessionId, StreamKey, TenantId, Ticket,
};
use crate::limits;
use crate::message::{Encoding, Micros, Priority};
use crate::routing::{Failover, Order, PayloadKind};

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
pub struct Rule {
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
pub struct Pending {
    /// Where it is.
    pub place: Place,
    /// Who gets the answer.
    pub conn: ConnId,
    /// Its id.
    pub msg_id: u32,
    /// The client's number; 0 = one-way.
    pub seq: u64,
    /// How it is handled.
    pub rule: Rule,
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

impl Default for Pending {
    fn default() -> Self {
        Self {
            place: Place::Waiting,
            conn: ConnId(0),
            msg_id: 0,
            seq: 0,
            rule: Rule {
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

impl Pending {
    /// Bytes that count against caps: payload and the two strings.
    pub fn bytes(&self) -> usize {
        self.payload.as_slice().len() + self.id.len() + self.key.len()
    }
}

/// The messages of one session to one service with one hash key.
#[derive(Debug)]
pub struct Stream {
    /// Whose: compared in full.
    pub name: StreamName,
    /// The call that carries messages of it; none may start before that has ended.
    pub busy: Option<Ticket>,
    /// Arrival of the last message of its call that has its answer although it may have run: what
    /// was sent before that one must not be sent again after it.
    pub passed: u64,
    /// Waits for a retry to be due: nothing of it may be taken.
    pub delayed: bool,
    /// First and last of its waiting messages, in the order sent.
    pub head: Option<MsgKey>,
    /// See `head`.
    pub tail: Option<MsgKey>,
    /// The instance its messages wait for or are with.
    pub instance: InstanceId,
    /// State of the instances when that was chosen.
    pub epoch: u64,
}

/// What a stream is known by. Two keys of a session with one 64-bit hash share a stream: they go
/// to one instance anyway, so that costs no correctness.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamName {
    /// Session.
    pub session: SessionId,
    /// Service.
    pub service: ServiceId,
    /// Affinity hash.
    pub hash: u64,
}
