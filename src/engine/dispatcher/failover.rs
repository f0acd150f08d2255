//! Where messages wait: they follow the state of the instances, in order (promises 2, 7 and 9).

use crate::engine::Context;
use crate::engine::answer::Answer;
use crate::engine::clients::Clients;
use crate::engine::dispatcher::Dispatcher;
use crate::engine::dispatcher::instances::Link;
use crate::engine::dispatcher::request::{Request, State};
use crate::engine::dispatcher::retry::UNAVAILABLE;
use crate::engine::dispatcher::route_cache::RouteKey;
use crate::ids::{InstanceId, MsgKey, StreamKey};
use crate::message::Micros;
use crate::routing::Failover;
use crate::stats::Counter;

impl Dispatcher {
    /// Brings all waiting messages of a stream to `instance`, in order.
    pub fn move_stream(&mut self, cx: &mut Context<'_>, key: StreamKey, instance: InstanceId) {
        let epoch = self.instances.epoch;
        let stream = self.ordering.get_mut(key);
        stream.instance = instance;
        stream.epoch = epoch;
        let mut next = stream.head;
        while let Some(key) = next {
            let request = self.requests.get(key).expect("linked requests exist");
            next = request.links.next();
            self.move_request(cx, key, instance);
        }
    }

    fn move_request(&mut self, cx: &mut Context<'_>, key: MsgKey, instance: InstanceId) {
        let request = self.requests.get(key).expect("the caller has it");
        let from = request.instance;
        if from == instance {
            return;
        }
        cx.stats.inc(Counter::FailedOver);
        self.with_queue(from, |queue, requests| {
            queue.compact(requests);
            let request = requests.get_mut(key).expect("the caller has it");
            queue.forget(request);
            request.instance = instance;
        });
        self.with_queue(instance, |queue, requests| queue.put_back(key, requests));
    }

    /// Brings an idle stream to where its key belongs now, or answers its messages if that is
    /// nowhere.
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
        let waits = Waits { instance: stream.instance, ..Waits::of(request) };
        let Some(target) = self.target_of(cx, &waits, now) else {
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

    /// The link to an instance changed.
    pub fn on_link(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        id: InstanceId,
        link: Link,
        now: Micros,
    ) {
        // A channel can have a last word when its instance is gone and forgotten.
        let Some(state) = self.instances.find_mut(id) else { return };
        if state.link == link {
            return;
        }
        if state.link == Link::Up && link == Link::Down {
            state.history.lost();
        }
        state.link = link;
        self.instances.epoch += 1;
        match link {
            Link::Connecting => {}
            // What waits for one that is down because nobody else was up can go on.
            Link::Up => {
                self.mark_ready(id);
                self.reroute_waiting(cx, clients, now);
            }
            Link::Down => self.reroute_waiting(cx, clients, now),
        }
    }

    /// Messages that wait for an instance that does not take them any more go to the next on the
    /// ring, in the order in which they came; those with nowhere to go are answered.
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
            // Moved or answered with an earlier one of its stream?
            let Some(request) = self.requests.get(key) else { continue };
            if self.may_stay_at(request.instance, request.hash) || request.state != State::Waiting {
                continue;
            }
            match request.stream {
                // A busy stream is placed anew when its call has ended.
                Some(stream) if self.ordering.get(stream).busy.is_some() => {}
                Some(stream) => self.reroute_stream(cx, clients, stream, now),
                None => self.reroute_request(cx, clients, key, now),
            }
        }
    }

    /// Whether a message that waits there may stay.
    pub fn may_stay_at(&self, id: InstanceId, hash: u64) -> bool {
        let state = self.instances.get(id);
        state.is_usable() && state.share.takes(hash)
    }

    /// Brings a message without a stream to where its key belongs now, or answers it.
    pub fn reroute_request(
        &mut self,
        cx: &mut Context<'_>,
        clients: &mut Clients,
        key: MsgKey,
        now: Micros,
    ) {
        let waits = Waits::of(self.requests.get(key).expect("the caller has it"));
        let Some(target) = self.target_of(cx, &waits, now) else {
            self.withdraw_waiting(cx, key);
            self.finish(cx, clients, key, &Answer::reject(&UNAVAILABLE), now);
            return;
        };
        self.move_request(cx, key, target);
        if !self.requests.get(key).expect("moved").delayed {
            self.resume_head(Some(key), target);
        }
    }

    /// Where it belongs now, if anywhere: with who has its hash. The one that has just failed it is
    /// only gone back to if there is no other.
    fn target_of(
        &mut self,
        cx: &mut Context<'_>,
        waits: &Waits,
        now: Micros,
    ) -> Option<InstanceId> {
        let &Waits { key, failover, instance, failed_on } = waits;
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

/// What decides where a message, or the messages of a stream, should wait.
struct Waits {
    key: RouteKey,
    failover: Failover,
    /// Where they wait now.
    instance: InstanceId,
    /// Who has failed the first of them.
    failed_on: Option<InstanceId>,
}

impl Waits {
    fn of(request: &Request) -> Self {
        Self {
            key: request.route_key(),
            failover: request.handling.failover,
            instance: request.instance,
            failed_on: request.failed_on,
        }
    }
}
