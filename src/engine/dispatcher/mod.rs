//! The half of a shard towards the services: requests under way, from the message that was let in
//! to its one answer. Of the clients it knows only what it is handed: who sends a message, and
//! [`Clients`] to answer to.

pub(crate) mod admission;
pub(crate) mod answer;
pub mod batch;
pub mod calls;
mod check;
mod deadlines;
pub mod dedup;
mod failover;
mod fill;
pub mod instances;
pub mod ordering;
mod outcome;
pub mod queue;
pub mod request;
mod retry;
pub mod retry_budget;
pub mod route_cache;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::{Rng, rngs::StdRng};

use crate::config::settings::{QueueSettings, ShardSettings};
use crate::engine::clients::Clients;
use crate::engine::dispatcher::batch::BodyWriter;
use crate::engine::dispatcher::calls::CallInFlight;
use crate::engine::dispatcher::dedup::DedupWindow;
use crate::engine::dispatcher::fill::QueueFill;
use crate::engine::dispatcher::instances::{InstanceState, Instances};
use crate::engine::dispatcher::ordering::Ordering;
use crate::engine::dispatcher::queue::{InstanceQueue, Requests};
use crate::engine::dispatcher::retry_budget::RetryBudget;
use crate::engine::dispatcher::route_cache::RouteCache;
use crate::engine::slab::Slab;
use crate::engine::{Context, REQUESTS_MAX};
use crate::ids::{InstanceId, MsgKey, StreamKey, Ticket};
use crate::message::Micros;
use crate::routing::Snapshot;
use crate::stats::Gauges;

/// Dedup ids and cache entries dropped in a tick at most: 100,000 a second.
const EXPIRE_BUDGET: usize = 1_000;
/// Slots given back to the allocator in a tick at most.
const TRIM_BUDGET: usize = 64;

/// The requests of a shard and everything that is kept for them.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    pub requests: Requests,
    pub ordering: Ordering,
    pub calls: Slab<Ticket, CallInFlight>,
    pub instances: Instances,
    pub cache: RouteCache,
    pub dedup: DedupWindow,
    retries: RetryBudget,
    fill: QueueFill,
    ready: ReadyList,
    window: BatchWindow,
    /// Retries that are not due yet.
    delayed: BinaryHeap<Reverse<(Micros, Delayed)>>,
    /// Requests that have arrived since the start.
    arrivals: u64,
    /// No request has a deadline before this.
    deadline_next: Micros,
    body: BodyWriter,
}

/// Instances to look at when the turn ends, each once.
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

/// Instances whose requests wait for company, and when the first of those has waited enough.
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

    /// The instances that waited, if the first of them has waited enough.
    fn take_due(&mut self, now: Micros) -> Vec<InstanceId> {
        if self.due.is_none_or(|at| at > now) {
            return Vec::new();
        }
        self.due = None;
        std::mem::take(&mut self.instances)
    }
}

/// A retry that is to go on at a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Delayed {
    Stream(StreamKey),
    Request(MsgKey),
}

impl Dispatcher {
    /// No request under way. Seeds of hashes are drawn from `rng`.
    pub fn new(settings: &ShardSettings, snapshot: &Snapshot, rng: &mut StdRng) -> Self {
        Self {
            requests: Slab::with_capacity_max(REQUESTS_MAX),
            ordering: Ordering::new(REQUESTS_MAX),
            calls: Slab::with_capacity_max(REQUESTS_MAX),
            instances: Instances::new(snapshot, &settings.queue),
            cache: RouteCache::new(&settings.cache, rng.next_u64()),
            dedup: DedupWindow::new(&settings.dedup, rng.next_u64()),
            retries: RetryBudget::new(settings.retry.budget_percent),
            fill: QueueFill::default(),
            ready: ReadyList::default(),
            window: BatchWindow::default(),
            delayed: BinaryHeap::new(),
            arrivals: 0,
            deadline_next: Micros(u64::MAX),
            body: BodyWriter::default(),
        }
    }

    /// Works by new settings.
    pub fn set_settings(&mut self, settings: &ShardSettings) {
        self.instances.set_settings(&settings.queue);
        self.retries.set_percent(settings.retry.budget_percent);
        self.cache.set_ttl(settings.cache.ttl_ms);
        self.dedup.set_limits(&settings.dedup);
    }

    /// Takes the instances of a new snapshot, which is in force already. Requests under way keep
    /// the route they were admitted by; those that wait for an instance that takes them no more
    /// move to the next, or are answered.
    pub fn apply(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        same_rings: bool,
        now: Micros,
    ) {
        // The cache knows owners on the rings; health does not change those.
        if !same_rings {
            self.cache.flush();
        }
        self.instances.apply(&cx.config.snapshot);
        self.reroute_waiting(cx, clients, now);
    }

    /// Drops what is not needed any more, and reports how instances did: part of a tick.
    pub fn clean_up(&mut self, cx: &mut Context<'_>, now: Micros) {
        self.dedup.expire(now, EXPIRE_BUDGET);
        self.cache.expire(now, EXPIRE_BUDGET);
        self.requests.trim(TRIM_BUDGET);
        for (_, state) in self.instances.iter_mut() {
            state.queue.compact(&self.requests);
        }
        self.instances.take_report(&mut cx.effects.signals);
        self.instances.prune();
    }

    /// The earliest time at which something waits to be done; ticks come besides it.
    pub fn next_due(&self) -> Option<Micros> {
        let delayed = self.delayed.peek().map(|&Reverse((at, _))| at);
        match (delayed, self.window.due) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Fills in the levels of this half.
    pub fn report_into(&self, gauges: &mut Gauges, settings: &QueueSettings, now: Micros) {
        gauges.unanswered = self.requests.len() as u64;
        gauges.queue_items = self.fill.items as u64;
        gauges.queue_bytes = self.fill.bytes as u64;
        gauges.usage_ratio = self.fill.of(settings).ratio();
        gauges.is_throttling = self.fill.throttling;
        gauges.cache_entries = self.cache.len() as u64;
        gauges.cache_active = self.cache.active(now) as u64;
        gauges.dedup_entries = self.dedup.len() as u64;
        gauges.dedup_bytes = self.dedup.bytes() as u64;
        gauges.calls_in_flight = self.calls.len() as u64;
    }

    /// Changes the queue of an instance.
    fn with_queue<R>(
        &mut self,
        id: InstanceId,
        change: impl FnOnce(&mut InstanceQueue, &mut Requests) -> R,
    ) -> R {
        let queue = &mut self.instances.get_mut(id).queue;
        self.fill.change(queue, |queue| change(queue, &mut self.requests))
    }

    /// Lets an instance be looked at when the turn ends.
    fn mark_ready(&mut self, id: InstanceId) {
        self.ready.add(id, self.instances.get_mut(id));
    }

    /// Lets the first waiting request of a freed stream, or one without a stream, be taken, if it
    /// is parked.
    fn resume_head(&mut self, head: Option<MsgKey>, instance: InstanceId) {
        let state = self.instances.get_mut(instance);
        if let Some(head) = head {
            state.queue.resume(head, &mut self.requests);
        }
        self.ready.add(instance, state);
    }
}
