//! The half of a shard towards the services: requests under way, from a message that is let in to
//! its one answer. It knows the sender of a message, and answers through `Clients`; nothing else
//! of the clients.

pub(super) mod admission;
mod answer;
mod answer_weights;
pub(super) mod backlog;
pub mod batch;
mod calls;
mod check;
mod deadlines;
pub mod dedup;
mod endings;
mod events;
mod failover;
mod failures;
mod fill;
mod held_back;
pub mod instances;
pub mod ordering;
mod outcome;
pub mod queue;
pub mod request;
mod retry;
mod retry_budget;
pub mod route_cache;
mod share;
pub(super) mod slots;
mod slow_owners;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::{Rng, rngs::StdRng};

use crate::config::settings::{QueueSettings, ShardSettings};
use crate::engine::clients::Clients;
use crate::engine::dispatcher::answer_weights::AnswerWeights;
use crate::engine::dispatcher::batch::BodyWriter;
use crate::engine::dispatcher::calls::CallInFlight;
use crate::engine::dispatcher::dedup::DedupWindow;
use crate::engine::dispatcher::fill::QueueFill;
use crate::engine::dispatcher::held_back::HeldBack;
use crate::engine::dispatcher::instances::{InstanceState, Instances};
use crate::engine::dispatcher::ordering::Ordering;
use crate::engine::dispatcher::queue::InstanceQueue;
use crate::engine::dispatcher::request::Requests;
use crate::engine::dispatcher::retry_budget::RetryBudget;
use crate::engine::dispatcher::route_cache::RouteCache;
use crate::engine::dispatcher::slots::Line;
use crate::engine::dispatcher::slow_owners::SlowOwners;
use crate::engine::slab::Slab;
use crate::engine::{Context, REQUESTS_MAX};
use crate::ids::{InstanceId, MsgKey, StreamKey, TenantId, Ticket};
use crate::message::Micros;
use crate::routing::{Snapshot, TenantTable};
use crate::stats::{Gauges, HeldOwner};

/// Expired dedup ids, and cache entries, that a tick drops at most: 100,000 of each a second.
const EXPIRE_BUDGET: usize = 1_000;
/// Slots of requests whose memory a tick gives back at most.
const TRIM_BUDGET: usize = 64;

/// The requests of a shard, and all state that belongs to them.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    pub requests: Requests,
    pub ordering: Ordering,
    pub calls: Slab<Ticket, CallInFlight>,
    pub instances: Instances,
    pub cache: RouteCache,
    pub dedup: DedupWindow,
    weights: AnswerWeights,
    retries: RetryBudget,
    fill: QueueFill,
    slow: SlowOwners,
    held_back: HeldBack,
    ready: ReadyList,
    window: BatchWindow,
    /// Retries that are not due yet, the earliest first.
    delayed: BinaryHeap<Reverse<(Micros, Delayed)>>,
    /// Number of requests since the start.
    arrivals: u64,
    /// Lower bound of the deadlines of all requests.
    deadline_next: Micros,
    /// End of the last time in which the shard was stopped.
    resumed_at: Option<Micros>,
    body: BodyWriter,
}

/// Instances whose queue is examined when the turn ends, each once.
#[derive(Debug, Default)]
struct ReadyList(Vec<InstanceId>);

impl ReadyList {
    /// Adds the instance `id`, whose state is `state`.
    fn add(&mut self, id: InstanceId, state: &mut InstanceState) {
        if !std::mem::replace(&mut state.ready, true) {
            self.0.push(id);
        }
    }

    fn pop(&mut self) -> Option<InstanceId> {
        self.0.pop()
    }
}

/// Instances whose requests wait for a fuller batch, and the time at which the first of those waits
/// is over.
#[derive(Debug, Default)]
struct BatchWindow {
    instances: Vec<InstanceId>,
    due: Option<Micros>,
}

impl BatchWindow {
    /// Lets the requests of an instance wait until `due`.
    fn wait(&mut self, instance: InstanceId, due: Micros) {
        self.due = Some(self.due.map_or(due, |at| at.min(due)));
        if !self.instances.contains(&instance) {
            self.instances.push(instance);
        }
    }

    /// Takes all waiting instances if the first wait is over.
    fn take_due(&mut self, now: Micros) -> Vec<InstanceId> {
        if self.due.is_none_or(|at| at > now) {
            return Vec::new();
        }
        self.due = None;
        std::mem::take(&mut self.instances)
    }
}

/// A stream, or a request without one, that waits for a retry to be due.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Delayed {
    Stream(StreamKey),
    Request(MsgKey),
}

impl Dispatcher {
    /// A dispatcher without requests. Seeds of hashes are drawn from `rng`.
    pub fn new(settings: &ShardSettings, snapshot: &Snapshot, rng: &mut StdRng) -> Self {
        let mut dispatcher = Self {
            requests: Slab::with_capacity_max(REQUESTS_MAX),
            ordering: Ordering::new(REQUESTS_MAX),
            calls: Slab::with_capacity_max(REQUESTS_MAX),
            instances: Instances::new(snapshot, &settings.queue),
            cache: RouteCache::new(&settings.cache, rng.next_u64()),
            dedup: DedupWindow::new(&settings.dedup, rng.next_u64()),
            weights: AnswerWeights::default(),
            retries: RetryBudget::new(settings.retry.budget_percent),
            fill: QueueFill::default(),
            slow: SlowOwners::default(),
            held_back: HeldBack::default(),
            ready: ReadyList::default(),
            window: BatchWindow::default(),
            delayed: BinaryHeap::new(),
            arrivals: 0,
            deadline_next: Micros(u64::MAX),
            resumed_at: None,
            body: BodyWriter::default(),
        };
        dispatcher.dedup.set_weights(&snapshot.tenants);
        dispatcher
    }

    /// Bytes of each request under way, with its tenant.
    pub fn queued_bytes(&self) -> impl Iterator<Item = (TenantId, usize)> {
        self.requests.iter().map(|(_, request)| (request.holder.tenant, request.bytes()))
    }

    /// Replaces the settings of all parts.
    pub fn set_settings(&mut self, settings: &ShardSettings) {
        self.instances.set_settings(&settings.queue);
        self.retries.set_percent(settings.retry.budget_percent);
        self.cache.set_ttl(settings.cache.ttl_ms);
        self.dedup.set_limits(&settings.dedup);
    }

    /// Applies the instances of a new snapshot, which is in force already. Requests under way keep
    /// the route by which they were let in; requests that wait for an instance that does not take
    /// them any more move to the next one, or are answered.
    pub fn apply(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        same_rings: bool,
        now: Micros,
    ) {
        // The cache holds owners on the rings, which health does not change.
        if !same_rings {
            self.cache.flush();
        }
        self.instances.apply(&cx.config.snapshot);
        self.apply_weights(&cx.config.snapshot.tenants);
        self.reroute_waiting(cx, clients, now);
    }

    /// Gives what waits the weights of its tenants: of a reload, also for what came before it.
    fn apply_weights(&mut self, tenants: &TenantTable) {
        self.dedup.set_weights(tenants);
        for (_, request) in self.requests.iter_mut() {
            request.weight = tenants.weight(request.holder.tenant);
        }
        for (_, state) in self.instances.iter_mut() {
            state.queues.iter_mut().for_each(|queue| queue.set_weights(|id| tenants.weight(id)));
        }
    }

    /// Takes note that the shard was stopped until `now`, for `us` microseconds: the end of a call
    /// that was in flight, or of a connection soon after, says nothing about its instance.
    pub fn on_pause(&mut self, us: u64, now: Micros) {
        self.dedup.put_off(us);
        self.resumed_at = Some(now);
    }

    /// Whether the shard was stopped at a time since `at`.
    fn has_paused_since(&self, at: Micros) -> bool {
        self.resumed_at.is_some_and(|resumed| at <= resumed)
    }

    /// Does the dispatcher's part of a tick: drops expired ids, cache entries and unused memory,
    /// reports on instances, and forgets those that are over.
    pub fn clean_up(&mut self, cx: &mut Context<'_>, now: Micros) {
        self.dedup.expire(now, EXPIRE_BUDGET);
        self.cache.expire(now, EXPIRE_BUDGET);
        self.weights.age(now);
        self.slow.expire(now);
        self.requests.trim(TRIM_BUDGET);
        for (_, state) in self.instances.iter_mut() {
            for queue in &mut state.queues {
                queue.compact(&self.requests);
                queue.trim();
            }
        }
        self.instances.take_report(&mut cx.effects.signals);
        self.instances.prune();
    }

    /// The earliest time at which a retry or a batch is due. Ticks come besides it.
    pub fn next_due(&self) -> Option<Micros> {
        let delayed = self.delayed.peek().map(|&Reverse((at, _))| at);
        match (delayed, self.window.due) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Sets the gauges of this half, but for `cache_active`, which takes a pass over expired
    /// entries.
    pub fn report_into(&self, gauges: &mut Gauges, settings: &QueueSettings) {
        gauges.unanswered = self.requests.len() as u64;
        gauges.queue_items = self.fill.items as u64;
        gauges.queue_bytes = self.fill.bytes as u64;
        gauges.usage_ratio = self.fill.of(settings).ratio();
        gauges.is_throttling = self.fill.throttling;
        gauges.cache_entries = self.cache.len() as u64;
        gauges.dedup_entries = self.dedup.len() as u64;
        gauges.dedup_bytes = self.dedup.bytes() as u64;
        gauges.calls_in_flight = self.calls.len() as u64;
        gauges.slow_owners = self.slow.len() as u64;
    }

    /// Owners of which messages were refused lately because they have their share of a queue.
    pub fn held_back(&self) -> &[HeldOwner] {
        self.held_back.owners()
    }

    /// Changes a queue of an instance, and the sums over all queues with it.
    fn with_queue<R>(
        &mut self,
        id: InstanceId,
        line: Line,
        change: impl FnOnce(&mut InstanceQueue, &mut Requests) -> R,
    ) -> R {
        let queue = self.instances.get_mut(id).queue_mut(line);
        self.fill.change(queue, |queue| change(queue, &mut self.requests))
    }

    /// Has the queue of an instance examined when the turn ends.
    fn mark_ready(&mut self, id: InstanceId) {
        self.ready.add(id, self.instances.get_mut(id));
    }

    /// Lets the streams go on that waited for requests of `leader` from before the sign-in, if none
    /// of those is under way any more.
    fn release_followers(&mut self, leader: StreamKey) {
        if self.ordering.followers(leader).is_empty()
            || self.ordering.has_unsigned(leader, &self.requests)
        {
            return;
        }
        for follower in self.ordering.take_followers(leader) {
            let Some(stream) = self.ordering.get_alive(follower) else { continue };
            stream.leaders -= 1;
            if stream.leaders == 0 && stream.busy.is_none() && !stream.delayed {
                let (head, instance) = (stream.head, stream.instance);
                self.resume_head(head, instance);
            }
        }
    }

    /// Lets `head`, the first waiting request of a free stream or a request without a stream, be
    /// taken again if it is parked.
    fn resume_head(&mut self, head: Option<MsgKey>, instance: InstanceId) {
        if let Some(head) = head
            && let Some(request) = self.requests.get_mut(head)
        {
            let (line, company) = self.slow.place(&request.holder, request.handling.route);
            request.position.company = company;
            if line != request.position.line {
                self.change_line(head, instance, line);
            }
            let Self { instances, requests, .. } = self;
            instances.get_mut(instance).queue_mut(line).resume(head, requests);
        }
        self.mark_ready(instance);
    }

    /// Puts a waiting request, and those that follow it in its stream, in another line of their
    /// instance: a stream waits in one line.
    fn change_line(&mut self, head: MsgKey, instance: InstanceId, line: Line) {
        let mut next = Some(head);
        while let Some(key) = next {
            let request = self.requests.get(key).expect("it waits");
            let from = request.position.line;
            next = request.links.next;
            self.with_queue(instance, from, |queue, requests| {
                queue.compact(requests);
                let request = requests.get_mut(key).expect("it waits");
                queue.forget(request);
                request.position.line = line;
            });
            self.with_queue(instance, line, |queue, requests| queue.put_back(key, requests));
        }
    }
}
