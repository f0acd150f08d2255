//! Failover: waiting requests follow the state of the instances, in order (promises 2, 7 and 9).

use crate::engine::Context;
use crate::engine::answer::Answer;
use crate::engine::clients::Clients;
use crate::engine::dispatcher::Dispatcher;
use crate::engine::dispatcher::instances::Link;
use crate::engine::dispatcher::request::{Request, State};
use crate::engine::dispatcher::retry::UNAVAILABLE;
use crate::engine::dispatcher::route_cache::RouteKey;
use crate::ids::{InstanceId, MsgKey, StreamKey};
use crate::limits::CATCH_UP_MS;
use crate::message::Micros;
use crate::routing::Failover;
use crate::stats::Counter;

impl Dispatcher {
    /// Moves all waiting requests of a stream to `instance`, in order.
    pub fn move_stream(&mut self, cx: &mut Context<'_>, key: StreamKey, instance: InstanceId) {
        let epoch = self.instances.epoch;
        let stream = self.ordering.get_mut(key);
        stream.instance = instance;
        stream.epoch = epoch;
        let mut next = stream.head;
        while let Some(key) = next {
            let request = self.requests.get(key).expect("linked requests exist");
            next = request.links.next;
            self.move_request(cx, key, instance);
        }
    }

    fn move_request(&mut self, cx: &mut Context<'_>, key: MsgKey, instance: InstanceId) {
        let request = self.requests.get(key).expect("the caller has it");
        let (from, line) = (request.instance, request.position.line);
        if from == instance {
            return;
        }
        cx.stats.inc(Counter::FailedOver);
        self.with_queue(from, line, |queue, requests| {
            queue.compact(requests);
            let request = requests.get_mut(key).expect("the caller has it");
            queue.forget(request);
            request.instance = instance;
        });
        self.with_queue(instance, line, |queue, requests| queue.put_back(key, requests));
    }

    /// Moves an idle stream to the instance to which its hash belongs now, or answers its requests
    /// if there is none.
    pub fn reroute_stream(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        key: StreamKey,
        now: Micros,
    ) {
        let stream = self.ordering.get(key);
        debug_assert!(stream.busy.is_none());
        let Some(head) = stream.head else { return };
        let request = self.requests.get(head).expect("linked requests exist");
        let reroute = Reroute { instance: stream.instance, ..Reroute::of(request) };
        let Some(target) = self.target_of(cx, &reroute, now) else {
            while let Some(head) = self.ordering.get_alive(key).and_then(|s| s.head) {
                self.withdraw_waiting(cx, head);
                self.finish(cx, clients, head, &Answer::reject(&UNAVAILABLE), now);
            }
            return;
        };
        self.move_stream(cx, key, target);
        let stream = self.ordering.get(key);
        if !stream.delayed {
            let head = stream.head;
            self.resume_head(head, target);
        }
    }

    /// Takes note that a connection to an instance broke, which no success on another excuses.
    pub fn on_connection_broken(&mut self, id: InstanceId, now: Micros) {
        // What the peer did because we did not answer it comes within this time after a pause.
        let is_ours = self.has_paused_since(Micros(now.0.saturating_sub(CATCH_UP_MS * 1000)));
        if !is_ours && let Some(state) = self.instances.find_mut(id) {
            state.history.lost();
        }
    }

    /// Takes note of a sign that an instance lives: its calls that take long make room for others.
    pub fn on_alive(&mut self, id: InstanceId, now: Micros) {
        if let Some(state) = self.instances.find_mut(id) {
            state.slots.is_alive(now);
            self.ready.add(id, state);
        }
    }

    /// Takes a change of the link to an instance; `why`: the reason why it is down.
    pub fn on_link(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        id: InstanceId,
        link: Link,
        why: &str,
        now: Micros,
    ) {
        // A channel can report once more after its instance was forgotten.
        let Some(state) = self.instances.find_mut(id) else { return };
        if state.why.as_deref() != Some(why) {
            state.why = (!why.is_empty()).then(|| why.into());
        }
        if state.link == link {
            return;
        }
        state.link = link;
        self.instances.epoch += 1;
        match link {
            Link::Connecting => {}
            // Requests that wait for an instance that is down, because no other was up, can go on.
            Link::Up => {
                self.mark_ready(id);
                self.reroute_waiting(cx, clients, now);
            }
            Link::Down => self.reroute_waiting(cx, clients, now),
        }
    }

    /// Moves requests that wait for an instance that does not take them any more to the next one on
    /// the ring, in the order of their arrival, or answers them if there is none.
    pub fn reroute_waiting(&mut self, cx: &mut Context<'_>, clients: &mut Clients, now: Micros) {
        if self.fill.items == 0 {
            return;
        }
        let mut waiting: Vec<(u64, MsgKey)> = self
            .requests
            .iter()
            .filter(|(_, r)| r.state == State::Waiting && !self.may_stay_at(r.instance, r.hash))
            .map(|(key, r)| (r.arrival, key))
            .collect();
        waiting.sort_unstable();
        for (_, key) in waiting {
            // An earlier request of its stream may have taken it along, or have been answered with
            // it.
            let Some(request) = self.requests.get(key) else { continue };
            if self.may_stay_at(request.instance, request.hash) || request.state != State::Waiting {
                continue;
            }
            match request.stream {
                // A busy stream is rerouted when its call has ended.
                Some(stream) if self.ordering.get(stream).busy.is_some() => {}
                Some(stream) => self.reroute_stream(cx, clients, stream, now),
                None => self.reroute_request(cx, clients, key, now),
            }
        }
    }

    /// Whether a request with this hash that waits for `id` may go on waiting there.
    pub fn may_stay_at(&self, id: InstanceId, hash: u64) -> bool {
        let state = self.instances.get(id);
        state.is_usable() && state.share.takes(hash)
    }

    /// Moves a request without a stream to the instance to which its hash belongs now, or answers
    /// it if there is none.
    pub fn reroute_request(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        key: MsgKey,
        now: Micros,
    ) {
        let reroute = Reroute::of(self.requests.get(key).expect("the caller has it"));
        let Some(target) = self.target_of(cx, &reroute, now) else {
            self.withdraw_waiting(cx, key);
            self.finish(cx, clients, key, &Answer::reject(&UNAVAILABLE), now);
            return;
        };
        self.move_request(cx, key, target);
        if !self.requests.get(key).expect("moved").delayed {
            self.resume_head(Some(key), target);
        }
    }

    /// The instance to which waiting requests belong now: the one that has their hash. The instance
    /// that has just failed them gets them again only if there is no other.
    fn target_of(
        &mut self,
        cx: &mut Context<'_>,
        reroute: &Reroute,
        now: Micros,
    ) -> Option<InstanceId> {
        let &Reroute { key, failover, instance, failed_on } = reroute;
        let owner = self.pick(cx, &key, failover, now).ok()?;
        if Some(owner) != failed_on {
            return Some(owner);
        }
        if instance != owner && self.instances.takes(instance, key.hash) {
            return Some(instance);
        }
        Some(self.pick_other(cx, &key, failover, Some(owner)).unwrap_or(owner))
    }
}

/// Everything that decides to which instance a waiting request, or a stream, is moved.
struct Reroute {
    key: RouteKey,
    failover: Failover,
    /// Instance for which the requests wait now.
    instance: InstanceId,
    /// Instance that failed the first of them, if one did.
    failed_on: Option<InstanceId>,
}

impl Reroute {
    fn of(request: &Request) -> Self {
        Self {
            key: request.route_key(),
            failover: request.handling.failover,
            instance: request.instance,
            failed_on: request.failed_on,
        }
    }
}
