//! The way in of a business message: route -> deduplicate -> pick instance -> admit -> enqueue.

use std::borrow::Cow;

use crate::engine::answer::Answer;
use crate::engine::clients::Clients;
use crate::engine::clients::conn::Claim;
use crate::engine::clients::quotas::quota_text;
use crate::engine::dispatcher::Dispatcher;
use crate::engine::dispatcher::dedup::{self, Lookup, NoRoom, Scope};
use crate::engine::dispatcher::fill::{Fill, admit_percent, percent_of};
use crate::engine::dispatcher::ordering::StreamName;
use crate::engine::dispatcher::request::{Assignment, NewRequest, State};
use crate::engine::dispatcher::route_cache::RouteKey;
use crate::engine::owner::Party;
use crate::engine::source::Source;
use crate::engine::{Context, REQUESTS_MAX};
use crate::ids::{DedupKey, InstanceId, MsgKey, StreamKey};
use crate::message::{ClientMessage, Encoding, Micros, Reason, Reject};
use crate::routing::quota::Thing;
use crate::routing::{Failover, HashedBy, Order, PayloadKind, Route, Sender, affinity, choose};
use crate::stats::Counter;
use crate::wire::json;

/// Refusal of an id that no route has.
pub(in crate::engine) const NO_ROUTE: Reject =
    Reject::new(Reason::NoRoute, "no route has this msg_id: send an id that a service owns");
const NO_INSTANCE: Reject = Reject::later(
    Reason::Unavailable,
    "no instance of the service can be reached: send the message again",
    1_000,
);
const QUEUE_FULL: Reject = Reject::later(
    Reason::QueueFull,
    "too many messages wait for this service: send the message again later",
    100,
);
const IDS_OF_USER: &str =
    "too many ids of this user are remembered: send the message later, or without an id";
const IDS_OF_SESSION: &str = "too many ids of this session, or of all sessions of its address, are \
                              remembered: sign in, or send the message later, or without an id";
const IDS_FULL: &str = "too many ids are remembered: send the message later, or without an id";
/// Requests under way from which on no duplicate may wait: three quarters of [`REQUESTS_MAX`]. Of
/// others there are no more than queues and calls hold, 10,000 and as many an instance by default;
/// a duplicate waits outside of both, up to 64 for each of them.
const DUPLICATES_BELOW: usize = REQUESTS_MAX / 4 * 3;
/// Refusal of a client without a user.
pub(in crate::engine) const NEEDS_USER: Reject = Reject::new(
    Reason::Unauthenticated,
    "only clients that signed in may send this message: send auth with a token first",
);
const DRAINING: Reject = Reject::later(
    Reason::Draining,
    "the gateway stops and takes no new messages: connect again",
    1_000,
);

impl Dispatcher {
    /// Lets a business message in, or refuses it. The caller answers a refusal.
    pub fn submit(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        from: &Source,
        message: &ClientMessage<'_>,
        now: Micros,
    ) -> Result<(), Reject> {
        if cx.drain.is_some() {
            return Err(DRAINING);
        }
        let config = cx.config;
        let Some(route) = config.snapshot.route(from.sender.tenant, message.msg_id) else {
            let shard = cx.config.shard;
            cx.stats.route_failed(shard, message.msg_id, "", "no route", now);
            return Err(NO_ROUTE);
        };
        if from.lacks_user(route) {
            return Err(NEEDS_USER);
        }
        let payload = payload_of(message, from.encoding, route.payload)?;
        let new = NewRequest { from, message, payload: &payload, route, now };
        let dedup = match self.deduplicate(cx, clients, &new)? {
            DedupDecision::NotAsked => None,
            DedupDecision::First(key) => Some(key),
            DedupDecision::Done => return Ok(()),
        };
        let admitted = self.enqueue(cx, clients, &new, dedup);
        if let (Err(_), Some(key)) = (&admitted, dedup) {
            self.dedup.release(key);
        }
        admitted.map(|_| ())
    }

    /// Puts a message into the queue of the instance that it goes to.
    pub(super) fn enqueue(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        new: &NewRequest<'_>,
        dedup: Option<DedupKey>,
    ) -> Result<MsgKey, Reject> {
        let NewRequest { from, message, route, now, .. } = *new;
        let (_, hash) = affinity(route.hash_on, &from.sender, &message.key);
        let name = StreamName { session: from.session_key, service: route.service, hash };
        let ordered = route.order == Order::Session;
        // A stream changes its instance only after its call has ended.
        let bound = ordered.then(|| self.ordering.find(&name)).flatten();
        let key = RouteKey { tenant: from.sender.tenant, service: route.service, hash };
        let picked = self.pick(cx, &key, route.failover, now);
        let instance = match (bound, picked) {
            (Some(stream), _) => self.ordering.get(stream).instance,
            (None, Ok(instance)) => instance,
            (None, Err(reject)) => {
                let service = &cx.config.snapshot.services[usize::from(route.service.0)].name;
                let shard = cx.config.shard;
                cx.stats.route_failed(shard, message.msg_id, service, reject.text, now);
                return Err(reject);
            }
        };
        if !cx.tenants.is_empty() {
            check_quota(cx, new)?;
        }
        self.check_queue_caps(cx, instance, new)?;
        let stream = ordered.then(|| {
            let epoch = self.instances.epoch;
            bound.unwrap_or_else(|| self.ordering.open(name, instance, epoch))
        });
        if let Some(stream) = stream {
            self.keep_order_over_sign_in(stream, new);
        }
        let answer_bytes = match message.seq {
            0 => 0,
            _ => self.weights.largest(instance, route.first),
        };
        let state = State::Waiting;
        let (line, company) = self.slow.place(&from.holder, route.first);
        // A stream waits in one line.
        let last = stream.and_then(|stream| self.ordering.get(stream).tail);
        let last = last.and_then(|last| self.requests.get(last));
        let place = (last.map_or(line, |last| last.position.line), company);
        let weight = cx.config.snapshot.tenants.weight(from.holder.tenant);
        let assigned =
            Assignment { state, hash, instance, stream, dedup, answer_bytes, place, weight };
        let key = self.insert(cx, clients, new, &assigned);
        cx.stats.inc(Counter::Enqueued);
        let Self { requests, ordering, instances, fill, ready, .. } = self;
        let state = instances.get_mut(instance);
        fill.change(state.queue_mut(place.0), |queue| queue.push(key, requests, ordering));
        ready.add(instance, state);
        Ok(key)
    }

    /// Lets `stream`, in which a message is about to be put, wait for those of its session from
    /// before the sign-in with which the message would have been in one stream: signing in changes
    /// the hash by which instances are picked, and not the order.
    fn keep_order_over_sign_in(&mut self, stream: StreamKey, new: &NewRequest<'_>) {
        let NewRequest { from, message, route, .. } = *new;
        let Some(before) = &from.before else { return };
        let (_, hash) = affinity(route.hash_on, before, &message.key);
        let name = StreamName { session: from.session_key, service: route.service, hash };
        if let Some(leader) = self.ordering.find(&name)
            && leader != stream
            && self.ordering.has_unsigned(leader, &self.requests)
        {
            self.ordering.follow(stream, leader);
        }
    }

    /// The instance to which a client's message would go, for an explanation.
    pub fn explain(
        &mut self,
        cx: &mut Context<'_>,
        route: &Route,
        sender: &Sender,
        key: &str,
        now: Micros,
    ) -> (HashedBy, Option<InstanceId>) {
        let (by, hash) = affinity(route.hash_on, sender, key);
        let key = RouteKey { tenant: sender.tenant, service: route.service, hash };
        (by, self.pick(cx, &key, route.failover, now).ok())
    }

    /// The instance to which a hash belongs: its owner by the cache, else by the ring; if that
    /// takes nothing, the next usable one clockwise.
    pub fn pick(
        &mut self,
        cx: &mut Context<'_>,
        key: &RouteKey,
        failover: Failover,
        now: Micros,
    ) -> Result<InstanceId, Reject> {
        let ring = &cx.config.snapshot.services[usize::from(key.service.0)].ring;
        let owner = match self.cache.get(key, now) {
            Some(owner) => {
                cx.stats.inc(Counter::CacheHits);
                owner
            }
            None => {
                cx.stats.inc(Counter::CacheMisses);
                let owner = ring.pick(key.hash).ok_or(NO_INSTANCE)?;
                self.cache.insert(*key, owner, now);
                owner
            }
        };
        if self.instances.takes(owner, key.hash) {
            return Ok(owner);
        }
        let share = |id| self.instances.share(id);
        choose(ring, Some(owner), key.hash, failover, None, share).ok_or(NO_INSTANCE)
    }

    /// The instance to which a hash belongs if `not` is left out.
    pub fn pick_other(
        &self,
        cx: &Context<'_>,
        key: &RouteKey,
        failover: Failover,
        not: Option<InstanceId>,
    ) -> Option<InstanceId> {
        let ring = &cx.config.snapshot.services[usize::from(key.service.0)].ring;
        choose(ring, None, key.hash, failover, not, |id| self.instances.share(id))
    }

    /// Refuses a message that would exceed the caps of its class, for the shard or for the
    /// instance, or the share of its owner.
    fn check_queue_caps(
        &mut self,
        cx: &mut Context<'_>,
        instance: InstanceId,
        new: &NewRequest<'_>,
    ) -> Result<(), Reject> {
        let (priority, bytes) = (new.route.priority, new.bytes());
        let settings = &cx.config.settings.queue;
        let percent = admit_percent(&settings.admit_percent, priority, settings.backpressure);
        let waiting = self.instances.get(instance).waiting();
        let share = |cap: usize| percent_of(cap, settings.instance_percent);
        let here = Fill {
            items: waiting.items,
            bytes: waiting.bytes,
            items_max: share(settings.items_max).max(1),
            bytes_max: share(settings.bytes_max).max(1),
        };
        let all = self.fill.of(settings);
        let fits = all.admits(bytes, percent) && here.admits(bytes, percent);
        let admitted = match fits && !self.requests.is_full() {
            true => self.check_share(cx, instance, new, [here, all], percent),
            false => Err(QUEUE_FULL),
        };
        if admitted.is_err() {
            cx.stats.inc(Counter::QueueRejected);
        }
        admitted
    }

    /// Turns a message into a request under way, and counts it at its connection.
    fn insert(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        new: &NewRequest<'_>,
        assigned: &Assignment,
    ) -> MsgKey {
        self.arrivals += 1;
        let arrival = self.arrivals;
        let key = self.requests.insert_with(|request| request.reset(new, assigned, arrival));
        self.deadline_next = self.deadline_next.min(new.deadline());
        cx.tenants.enqueue(new.from.holder.tenant, new.bytes());
        let claim = Claim { bytes: new.bytes(), answer_bytes: assigned.answer_bytes };
        clients.accepted(new.from.conn, claim);
        key
    }

    /// Deduplicates a message by its id (promise 8): answers a duplicate, lets it wait for the
    /// first message with the id, or remembers the id as being executed.
    fn deduplicate(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        new: &NewRequest<'_>,
    ) -> Result<DedupDecision, Reject> {
        let NewRequest { from, message, payload, now, .. } = *new;
        if message.id.is_empty() || !cx.config.settings.dedup.enabled {
            return Ok(DedupDecision::NotAsked);
        }
        let scope = match &from.user {
            Some(user) => Scope::User(&user.user),
            None => Scope::Session(&from.session),
        };
        let fingerprint = dedup::fingerprint(message.msg_id, payload);
        let name = self.dedup.id(from.holder, scope, &message.id, fingerprint);
        match self.dedup.check(&name, now) {
            Lookup::New
                if !cx
                    .tenants
                    .may_remember(from.holder.tenant, || self.dedup.ids_of(from.holder.tenant)) =>
            {
                cx.stats.inc(Counter::QuotaMessagesRefused);
                let retry_after_ms = self.dedup.wait_ms(from.holder.tenant, now);
                Err(Reject::later(Reason::QueueFull, quota_text(Thing::DedupIds), retry_after_ms))
            }
            Lookup::New => match self.dedup.begin(&name, now) {
                Some(key) => Ok(DedupDecision::First(key)),
                None => {
                    let NoRoom { is_over_share, retry_after_ms } = self.dedup.no_room(&name, now);
                    if is_over_share {
                        cx.stats.inc(Counter::DedupOverShare);
                    }
                    let text = match from.holder.party {
                        _ if !is_over_share => IDS_FULL,
                        Party::User(_) => IDS_OF_USER,
                        Party::Address(_) => IDS_OF_SESSION,
                    };
                    Err(Reject::later(Reason::QueueFull, text, retry_after_ms))
                }
            },
            Lookup::Mismatch => Err(Reject::new(
                Reason::BadMessage,
                "this id was used for another msg_id or payload: give each message its own id",
            )),
            Lookup::FinishedNotStored => {
                cx.stats.inc(Counter::Duplicates);
                Err(Reject::new(
                    Reason::Duplicate,
                    "a message with this id has ended before, and its answer is not stored",
                ))
            }
            Lookup::Finished(reply) => {
                cx.stats.inc(Counter::Duplicates);
                let answer = Answer::stored(reply);
                clients.answer(cx, from.session_key, message.msg_id, message.seq, &answer, now);
                Ok(DedupDecision::Done)
            }
            Lookup::InFlight(first) => {
                cx.stats.inc(Counter::Duplicates);
                self.wait_for(cx, clients, first, new)?;
                Ok(DedupDecision::Done)
            }
        }
    }

    /// Lets a duplicate wait for the answer of the first message with its id.
    fn wait_for(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        first: DedupKey,
        new: &NewRequest<'_>,
    ) -> Result<(), Reject> {
        const FULL: Reject = Reject::later(
            Reason::QueueFull,
            "too many duplicates wait for this id: wait for the answer to the first one",
            1_000,
        );
        if self.requests.len() >= DUPLICATES_BELOW {
            return Err(FULL);
        }
        let new = NewRequest { payload: &[], ..*new };
        if !cx.tenants.is_empty() {
            check_quota(cx, &new)?;
        }
        let key = self.insert(cx, clients, &new, &Assignment::DUPLICATE);
        if self.dedup.add_waiter(first, key, new.now) {
            return Ok(());
        }
        self.undo_insert(cx, clients, key, new.now);
        Err(FULL)
    }
}

/// Refuses a message over its tenant's quota of bytes without an answer.
fn check_quota(cx: &mut Context<'_>, new: &NewRequest<'_>) -> Result<(), Reject> {
    if cx.tenants.has_room(new.from.holder.tenant, new.bytes()) {
        return Ok(());
    }
    cx.stats.inc(Counter::QuotaMessagesRefused);
    // As for a queue that is full.
    Err(Reject { text: quota_text(Thing::QueuedBytes), ..QUEUE_FULL })
}

/// Result of the deduplication of a message.
enum DedupDecision {
    /// The message has no id, or deduplication is off.
    NotAsked,
    /// The message is the first with its id.
    First(DedupKey),
    /// The message is a duplicate that is answered, or waits.
    Done,
}

/// The bytes for the service, in the form that the route asks for.
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
            "this route takes a JSON value in payload: send no payload_base64",
        )),
        (PayloadKind::Bytes, _, Some(text)) => json::decode_base64(text).map(Cow::Owned),
        (PayloadKind::Bytes, Encoding::Json, None) if message.payload.is_empty() => {
            Ok(Cow::Borrowed(&[]))
        }
        (PayloadKind::Bytes, Encoding::Json, None) => Err(Reject::new(
            Reason::BadMessage,
            "this route takes bytes in payload_base64: send no payload",
        )),
    }
}
