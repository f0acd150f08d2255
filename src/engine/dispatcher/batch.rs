//! The bytes of a call: many small requests copied together, large payloads by reference.

use bytes::{BufMut, Bytes, BytesMut};

use crate::engine::dispatcher::request::{Payload, Request};
use crate::ids::MsgKey;
use crate::message::{CallBody, Micros};
use crate::wire::backend::{self, RequestFields};

/// Length of the gRPC prefix: a flag for compression and a big-endian u32 length.
const PREFIX: usize = 5;

/// Step in which the arena grows: 64 KiB, some 500 small requests.
const ARENA_BYTES: usize = 64 << 10;

/// The gateway as services see it: part of every batch of a shard.
#[derive(Clone, Debug)]
pub struct GatewayIdentity {
    /// Name of the node.
    pub gateway: String,
    /// Number of the shard.
    pub shard: u32,
    /// Number of this run of the gateway: request ids are unique together with it.
    pub boot_id: u64,
    /// Unix time of [`Micros`] 0 by the wall clock of today, in microseconds: the shell tells it
    /// with each tick.
    pub unix_at_boot_us: i64,
}

impl GatewayIdentity {
    /// Unix time of `at`, in microseconds.
    pub(crate) fn unix_us(&self, at: Micros) -> i64 {
        self.unix_at_boot_us.saturating_add(at.0 as i64)
    }
}

/// Writes one call's body. The arena's memory is used again once the sent bytes are gone.
#[derive(Debug, Default)]
pub struct BodyWriter {
    arena: BytesMut,
    scratch: Vec<u8>,
    body: CallBody,
    /// Bytes of the message written so far, payloads by reference included.
    len: usize,
    /// The first segment, held back until the length of the message is known.
    first: Option<BytesMut>,
}

impl BodyWriter {
    /// Begins the body of a batch with the head of a `BatchRequest`.
    pub fn begin_batch(&mut self, identity: &GatewayIdentity) {
        self.begin();
        self.scratch.clear();
        backend::write_batch_head(
            &mut self.scratch,
            &identity.gateway,
            identity.shard,
            identity.boot_id,
        );
        self.arena.extend_from_slice(&self.scratch);
        self.len += self.scratch.len();
    }

    fn begin(&mut self) {
        debug_assert!(self.first.is_none() && self.arena.is_empty());
        if self.arena.capacity() < PREFIX + 1024 {
            self.arena.reserve(ARENA_BYTES);
        }
        self.arena.put_bytes(0, PREFIX);
        self.len = 0;
        self.body = CallBody::default();
    }

    /// Appends one request to the batch.
    #[inline]
    pub fn push(
        &mut self,
        key: MsgKey,
        request: &Request,
        identity: &GatewayIdentity,
        now: Micros,
    ) {
        let payload = request.payload.as_slice();
        let fields = fields(key, request, identity, now);
        self.scratch.clear();
        backend::write_request_head(&mut self.scratch, &fields, payload.len());
        self.arena.extend_from_slice(&self.scratch);
        self.len += self.scratch.len() + payload.len();
        match &request.payload {
            Payload::Small(bytes) => self.arena.extend_from_slice(bytes),
            Payload::Large(bytes) => self.push_shared(bytes.clone()),
        }
    }

    /// Writes the body of a call whose message is the payload itself (unary mode).
    pub(crate) fn unary(&mut self, request: &Request) -> CallBody {
        self.begin();
        self.len += request.payload.as_slice().len();
        match &request.payload {
            Payload::Small(bytes) => self.arena.extend_from_slice(bytes),
            Payload::Large(bytes) => self.push_shared(bytes.clone()),
        }
        self.finish()
    }

    fn push_shared(&mut self, bytes: Bytes) {
        let before = self.arena.split();
        match &self.first {
            None => self.first = Some(before),
            Some(_) => self.body.push(before.freeze()),
        }
        if self.arena.capacity() < 1024 {
            self.arena.reserve(ARENA_BYTES);
        }
        self.body.push(bytes);
    }

    /// Drops the body that was begun.
    pub(crate) fn discard(&mut self) {
        self.arena.clear();
        self.first = None;
        self.body = CallBody::default();
        self.len = 0;
    }

    /// Bytes of the message so far.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Finishes the body and returns it.
    pub fn finish(&mut self) -> CallBody {
        let rest = self.arena.split();
        let length = u32::try_from(self.len).expect("a batch is capped far below 4 GiB");
        let (mut first, rest) = match self.first.take() {
            Some(first) => (first, Some(rest)),
            None => (rest, None),
        };
        first[1..PREFIX].copy_from_slice(&length.to_be_bytes());
        let mut body = CallBody::default();
        body.push(first.freeze());
        body.append(std::mem::take(&mut self.body));
        if let Some(rest) = rest {
            body.push(rest.freeze());
        }
        body
    }
}

#[inline]
fn fields<'a>(
    key: MsgKey,
    request: &'a Request,
    identity: &GatewayIdentity,
    now: Micros,
) -> RequestFields<'a> {
    RequestFields {
        request_id: key.0,
        msg_id: request.msg_id,
        seq: request.seq,
        session: request.session.as_str(),
        user: request.user.as_deref().map_or("", |user| &user.user),
        tenant: request.user.as_deref().and_then(|user| user.tenant.as_deref()).unwrap_or(""),
        priority: request.handling.priority,
        id: &request.id,
        key: &request.key,
        received_unix_us: identity.unix_us(request.received),
        timeout_ms: timeout_ms(request.deadline, now),
        attempt: request.attempt,
        traceparent: &request.traceparent,
        encoding: request.encoding,
    }
}

/// Time until the deadline, rounded up: a service takes 0 for "no limit".
fn timeout_ms(deadline: Micros, now: Micros) -> u32 {
    u32::try_from(deadline.since(now).div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests;
