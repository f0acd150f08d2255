//! A business message on its way in: route -> dedup -> pick instance -> admit -> enqueue.

use std::borrow::Cow;

use crate::engine::Engine;
use crate::engine::answer::Answer;
use crate::engine::cache::RouteKey;
use crate::engine::dedup::{self, Owner, Seen};
use crate::engine::pending::{Place, Rule, StreamName};
use crate::engine::queue::{Fill, InstanceQueue, Messages, admit_percent};
use crate::engine::streams::Streams;
use crate::ids::{ConnId, DedupKey, InstanceId, MsgKey, ServiceId, TenantId};
use crate::message::{ClientMessage, Encoding, Micros, Reason, Reject};
use crate::routing::{Failover, Order, PayloadKind, Route, affinity, choose};
use crate::stats::Counter;
use crate::wire::json;

/// Why an instance could not be picked, or a message not be let in.
const NO_ROUTE: Reject = Reject::new(Reason::NoRoute, "no route for this msg_id");
const NO_INSTANCE: Reject = Reject {
    reason: Reason::Unavailable,
    text: "no instance of the service can be reached",
    retry_after_ms: 1_000,
};
const QUEUE_FULL: Reject = Reject {
    reason: Reason::QueueFull,
    text: "too many messages wait for this service",
    retry_after_ms: 100,
};
const NEEDS_USER: Reject = Reject::new(
    Reason::Unauthenticated,
    "only clients that signed in may send this: send an auth message first",
);
const DRAINING: Reject = Reject {
    reason: Reason::Draining,
    text: "the gateway is stopping; connect again",
    retry_after_ms: 1_000,
};

impl Engine {
    /// Takes a business message in, or says why not. The refusal is answered by the caller.
    pub(super) fn submit(
        &mut self,
        id: ConnId,
        message: &ClientMessage<'_>,
        now: Micros,
    ) -> Result<(), Reject> {
        if self.drain.is_some() {
            return Err(DRAINING);
        }
        let snapshot = self.snapshot.clone();
        let Some((_, route)) = snapshot.route(message.msg_id) else {
            self.route_failed(message.msg_id, "", "no route", now);
            return Err(NO_ROUTE);
        };
        let conn = self.conns.get(id).expect("the caller has it");
        // Those who came before a reload asked for tokens go on as they were let in.
        let must = self.auth.required && conn.auth_by != Micros(u64::MAX);
        if (route.needs_user || must) && conn.identity.user.is_none() {
            return Err(NEEDS_USER);
        }
        let encoding = conn.encoding;
        let payload = payload_of(message, encoding, route.payload)?;
        let dedup = match self.deduplicate(id, message, &payload, route, now)? {
            Dedup::NotAsked => None,
            Dedup::First(key) => Some(key),
            Dedup::Done => return Ok(()),
        };
        let admitted = self.enqueue(id, message, &payload, route, dedup, now);
        if let (Err(_), Some(key)) = (&admitted, dedup) {
            self.dedup.release(key);
        }
        admitted
    }

    fn enqueue(
        &mut self,
        id: ConnId,
        message: &ClientMessage<'_>,
        payload: &[u8],
        route: &Route,
        dedup: Option<DedupKey>,
        now: Micros,
    ) -> Result<(), Reject> {
        let conn = self.conns.get(id).expect("the caller has it");
        let tenant = conn.sender.tenant;
        let (_, hash) = affinity(route.hash_on, &conn.sender, &message.key);
        let name = StreamName { session: conn.session, service: route.service, hash };
        let ordered = route.order == Order::Session;
        // A stream changes instance only after its call has ended.
        let bound = ordered.then(|| self.streams.find(&name)).flatten();
        let picked = self.pick(tenant, route.service, hash, route.failover, now);
        let instance = match (bound, picked) {
            (Some(stream), _) => self.streams.get(stream).instance,
            (None, Ok(instance)) => instance,
            (None, Err(reject)) => {
                let service = snapshot_name(self, route.service);
                self.route_failed(message.msg_id, &service, reject.text, now);
                return Err(reject);
            }
        };
        let bytes = payload.len() + message.id.len() + message.key.len();
        self.admit(instance, route, bytes)?;
        let key = self.insert(id, message, payload, route, now);
        let pending = self.messages.get_mut(key).expect("just inserted");
        (pending.hash, pending.instance, pending.dedup) = (hash, instance, dedup);
        if ordered {
            let stream = match bound {
                Some(stream) => stream,
                None => self.streams.open(name, instance, self.instances.epoch),
            };
            self.messages.get_mut(key).expect("just inserted").stream = Some(stream);
        }
        self.counters.inc(Counter::Enqueued);
        self.with_queue(instance, |queue, messages, streams| queue.push(key, messages, streams));
        self.touch(instance);
        Ok(())
    }

    /// The instance that a hash belongs to: cache, else ring; then the next usable one clockwise.
    pub(super) fn pick(
        &mut self,
        tenant: TenantId,
        service: ServiceId,
        hash: u64,
        failover: Failover,
        now: Micros,
    ) -> Result<InstanceId, Reject> {
        let key = RouteKey { tenant, service, hash };
        let owner = match self.cache.get(&key, now) {
            Some(owner) => {
                self.counters.inc(Counter::CacheHits);
                owner
            }
            None => {
                self.counters.inc(Counter::CacheMisses);
                let ring = &self.snapshot.services[service.0 as usize].ring;
                let owner = ring.pick(hash).ok_or(NO_INSTANCE)?;
                self.cache.insert(key, owner, now);
                owner
            }
        };
        if self.instances.takes(owner, hash) {
            return Ok(owner);
        }
        let ring = &self.snapshot.services[service.0 as usize].ring;
        let share = |id| self.instances.share(id);
        choose(ring, Some(owner), hash, failover, None, share).ok_or(NO_INSTANCE)
    }

    /// Who gets the hash when it is not to be `not`.
    pub(super) fn pick_other(
        &self,
        service: ServiceId,
        hash: u64,
        failover: Failover,
        not: Option<InstanceId>,
    ) -> Option<InstanceId> {
        let ring = &self.snapshot.services[service.0 as usize].ring;
        choose(ring, None, hash, failover, not, |id| self.instances.share(id))
    }

    fn admit(&mut self, instance: InstanceId, route: &Route, bytes: usize) -> Result<(), Reject> {
        let settings = &self.settings.queue;
        let percent = admit_percent(&settings.admit_percent, route.priority, settings.backpressure);
        let queue = &self.instances.get(instance).queue;
        // In 128 bits: 64 GiB times 100 is fine, but nothing here says that it is no more.
        let percent_of = u128::from(settings.instance_percent);
        let share = |n: usize| (n as u128 * percent_of / 100) as usize;
        let here = Fill {
            items: queue.items,
            bytes: queue.bytes,
            items_max: share(settings.items_max).max(1),
            bytes_max: share(settings.bytes_max).max(1),
        };
        let fits = self.fill().admits(bytes, percent) && here.admits(bytes, percent);
        if fits && !self.messages.is_full() {
            return Ok(());
        }
        self.counters.inc(Counter::QueueRejected);
        Err(QUEUE_FULL)
    }

    /// Makes the message one that is under way, and counts it at its connection.
    fn insert(
        &mut self,
        id: ConnId,
        message: &ClientMessage<'_>,
        payload: &[u8],
        route: &Route,
        now: Micros,
    ) -> MsgKey {
        let conn = self.conns.get_mut(id).expect("the caller has it");
        let timeout_ms = match message.deadline_ms {
            0 => route.timeout_ms,
            ms => ms.min(route.timeout_ms),
        };
        self.arrivals += 1;
        let arrival = self.arrivals;
        let key = self.messages.insert_with(|pending| {
            pending.place = Place::Waiting;
            pending.conn = id;
            pending.msg_id = message.msg_id;
            pending.seq = message.seq;
            pending.rule = rule(route);
            pending.method.clone_from(&route.method);
            pending.parked = false;
            pending.resumed = false;
            pending.stay = 0;
            pending.delayed = false;
            pending.responses = 0;
            pending.attempt = 0;
            pending.may_have_run = false;
            pending.received = now;
            pending.deadline = now.plus_ms(u64::from(timeout_ms));
            pending.arrival = arrival;
            pending.failed_on = None;
            pending.stream = None;
            pending.next = None;
            pending.prev = None;
            pending.tenant = conn.sender.tenant;
            pending.session = conn.session;
            pending.user.clone_from(&conn.identity.user);
            pending.encoding = conn.encoding;
            pending.dedup = None;
            pending.id.clear();
            pending.id.push_str(&message.id);
            pending.key.clear();
            pending.key.push_str(&message.key);
            pending.payload.set(payload);
        });
        let message = self.messages.get(key).expect("just inserted");
        let bytes = message.bytes();
        self.deadline_next = self.deadline_next.min(message.deadline);
        conn.unanswered += 1;
        conn.unanswered_bytes += bytes;
        key
    }

    /// Promise 8: what is known of the message's id.
    fn deduplicate(
        &mut self,
        id: ConnId,
        message: &ClientMessage<'_>,
        payload: &[u8],
        route: &Route,
        now: Micros,
    ) -> Result<Dedup, Reject> {
        if message.id.is_empty() || !self.settings.dedup.enabled {
            return Ok(Dedup::NotAsked);
        }
        let conn = self.conns.get(id).expect("the caller has it");
        let user = conn.identity.user.clone();
        let session = conn.session;
        let owner = match &user {
            Some(user) => Owner::User(&user.user),
            None => Owner::Session(&session),
        };
        let fingerprint = dedup::fingerprint(message.msg_id, payload);
        let name = self.dedup.id(conn.sender.tenant, owner, &message.id, fingerprint);
        match self.dedup.check(&name, now) {
            Seen::New => self.dedup.begin(&name, now).map(Dedup::First).ok_or(Reject {
                reason: Reason::QueueFull,
                text: "too many ids are remembered; send without an id or later",
                retry_after_ms: 1_000,
            }),
            Seen::Mismatch => Err(Reject::new(
                Reason::BadMessage,
                "this id was used for another msg_id or payload",
            )),
            Seen::FinishedNotStored => {
                self.counters.inc(Counter::Duplicates);
                Err(Reject::new(
                    Reason::Duplicate,
                    "this id was executed before; its answer is not stored",
                ))
            }
            Seen::Finished(reply) => {
                let reply = reply.clone();
                self.counters.inc(Counter::Duplicates);
                let answer = Answer::stored(&reply);
                self.reply(id, message.msg_id, message.seq, &answer, now);
                Ok(Dedup::Done)
            }
            Seen::InFlight(first) => {
                self.counters.inc(Counter::Duplicates);
                self.wait_for(first, id, message, route, now)?;
                Ok(Dedup::Done)
            }
        }
    }

    fn wait_for(
        &mut self,
        first: DedupKey,
        id: ConnId,
        message: &ClientMessage<'_>,
        route: &Route,
        now: Micros,
    ) -> Result<(), Reject> {
        const FULL: Reject = Reject {
            reason: Reason::QueueFull,
            text: "too many duplicates wait for this id",
            retry_after_ms: 1_000,
        };
        if self.messages.is_full() {
            return Err(FULL);
        }
        let key = self.insert(id, message, &[], route, now);
        self.messages.get_mut(key).expect("just inserted").place = Place::Duplicate;
        if self.dedup.add_waiter(first, key, now) {
            return Ok(());
        }
        self.withdraw(key, now);
        Err(FULL)
    }

    /// Changes one queue, keeping the shard's sums right.
    pub(super) fn with_queue<R>(
        &mut self,
        id: InstanceId,
        change: impl FnOnce(&mut InstanceQueue, &mut Messages, &mut Streams) -> R,
    ) -> R {
        let queue = &mut self.instances.get_mut(id).queue;
        let before = (queue.items, queue.bytes);
        let result = change(queue, &mut self.messages, &mut self.streams);
        self.queue_items = self.queue_items + queue.items - before.0;
        self.queue_bytes = self.queue_bytes + queue.bytes - before.1;
        result
    }

    /// Looks at the instance when the turn ends.
    pub(super) fn touch(&mut self, id: InstanceId) {
        let state = self.instances.get_mut(id);
        if !state.touched {
            state.touched = true;
            self.touched.push(id);
        }
    }

    /// One log event for a routing failure, at most one a second.
    fn route_failed(&mut self, msg_id: u32, service: &str, reason: &str, now: Micros) {
        self.counters.inc(Counter::FailedRoutes);
        self.route_failures.since += 1;
        let last = self.route_failures.logged_at;
        if last.is_none_or(|at| now.since(at) >= 1_000_000) {
            let count = std::mem::take(&mut self.route_failures.since);
            self.route_failures.logged_at = Some(now);
            tracing::warn!(
                shard = self.shard.0,
                msg_id,
                service,
                reason,
                count,
                "route_failed: `shardgate explain` with this msg_id says who should have it"
            );
        }
    }
}

/// What deduplication says of a message.
enum Dedup {
    /// No id.
    NotAsked,
    /// The first with this id.
    First(DedupKey),
    /// A duplicate: answered, or waiting.
    Done,
}

fn rule(route: &Route) -> Rule {
    Rule {
        service: route.service,
        priority: route.priority,
        order: route.order,
        payload: route.payload,
        idempotent: route.idempotent,
        failover: route.failover,
        service_text: route.service_text,
    }
}

fn snapshot_name(engine: &Engine, service: ServiceId) -> std::sync::Arc<str> {
    engine.snapshot.services[service.0 as usize].name.clone()
}

/// The bytes for the service.
fn payload_of<'a>(
    message: &'a ClientMessage<'a>,
    encoding: Encoding,
    kind: PayloadKind,
) -> Result<Cow<'a, [u8]>, Reject> {
    match (kind, encoding, &message.payload_base64) {
        (PayloadKind::Json, _, None) | (PayloadKind::Bytes, Encoding::Protobuf, None) => {
            Ok(Cow::Borrowed(message.payload))
        }
        (PayloadKind::Json, _, Some(_)) => Err(Reject::new(
            Reason::BadMessage,
            "this route takes payload, any JSON value, not payload_base64",
        )),
        (PayloadKind::Bytes, _, Some(text)) => json::decode_base64(text).map(Cow::Owned),
        (PayloadKind::Bytes, Encoding::Json, None) if message.payload.is_empty() => {
            Ok(Cow::Borrowed(&[]))
        }
        (PayloadKind::Bytes, Encoding::Json, None) => Err(Reject::new(
            Reason::BadMessage,
            "this route takes payload_base64, bytes, not payload",
        )),
    }
}
