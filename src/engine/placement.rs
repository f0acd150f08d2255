//! Where messages wait: they follow the state of the instances, in order (promises 2, 7 and 9).

use crate::engine::Engine;
use crate::engine::answer::Answer;
use crate::engine::instances::Link;
use crate::engine::outcome::UNAVAILABLE;
use crate::engine::pending::Place;
use crate::ids::{InstanceId, MsgKey, ServiceId, StreamKey, TenantId};
use crate::message::Micros;
use crate::routing::Failover;
use crate::stats::Counter;

impl Engine {
    /// Brings all waiting messages of a stream to `instance`, in order.
    pub(super) fn move_stream(&mut self, key: StreamKey, instance: InstanceId) {
        let epoch = self.instances.epoch;
        let stream = self.streams.get_mut(key);
        stream.instance = instance;
        stream.epoch = epoch;
        let mut next = stream.head;
        while let Some(key) = next {
            let message = self.messages.get(key).expect("linked messages exist");
            next = message.next;
            self.move_message(key, instance);
        }
    }

    fn move_message(&mut self, key: MsgKey, instance: InstanceId) {
        let message = self.messages.get(key).expect("the caller has it");
        let from = message.instance;
        if from == instance {
            return;
        }
        self.counters.inc(Counter::FailedOver);
        self.with_queue(from, |queue, messages, _| {
            queue.compact(from, messages);
            queue.forget(messages.get(key).expect("the caller has it"));
        });
        self.messages.get_mut(key).expect("the caller has it").instance = instance;
        self.with_queue(instance, |queue, messages, _| queue.put_back(key, messages));
    }

    /// Brings an idle stream to where its key belongs now, or answers its messages if that is
    /// nowhere.
    pub(super) fn place_stream(&mut self, key: StreamKey, now: Micros) {
        let stream = self.streams.get(key);
        debug_assert!(stream.busy.is_none());
        let Some(head) = stream.head else { return };
        let name = stream.name;
        let message = self.messages.get(head).expect("linked messages exist");
        let waits = Waits {
            tenant: message.tenant,
            service: name.service,
            hash: name.hash,
            failover: message.rule.failover,
            instance: stream.instance,
            failed_on: message.failed_on,
        };
        let Some(target) = self.home(&waits, now) else {
            while let Some(head) = self.streams.get_alive(key).and_then(|s| s.head) {
                self.withdraw_waiting(head);
                self.finish(head, &Answer::reject(&UNAVAILABLE), now);
            }
            return;
        };
        self.move_stream(key, target);
        let stream = self.streams.get(key);
        if !stream.delayed {
            let head = stream.head;
            self.resume_head(head, target);
        }
    }

    /// The link to an instance changed.
    pub fn on_link(&mut self, id: InstanceId, link: Link, now: Micros) {
        // A channel can have a last word when its instance is gone and forgotten.
        let Some(state) = self.instances.find_mut(id) else { return };
        if state.link == link {
            return;
        }
        if state.link == Link::Up && link == Link::Down {
            state.form.lost();
        }
        state.link = link;
        self.instances.epoch += 1;
        match link {
            Link::Connecting => {}
            // What waits for one that is down because nobody else was up can go on.
            Link::Up => {
                self.touch(id);
                self.replace_waiting(now);
            }
            Link::Down => self.replace_waiting(now),
        }
    }

    /// Messages that wait for an instance that does not take them any more go to the next on the
    /// ring, in the order in which they came; those with nowhere to go are answered.
    pub(super) fn replace_waiting(&mut self, now: Micros) {
        if self.queue_items == 0 {
            return;
        }
        let mut waiting: Vec<(u64, MsgKey)> = self
            .messages
            .iter()
            .filter(|(_, m)| m.place == Place::Waiting && !self.is_at_home(m.instance, m.hash))
            .map(|(key, m)| (m.arrival, key))
            .collect();
        waiting.sort_unstable();
        for (_, key) in waiting {
            // Moved or answered with an earlier one of its stream?
            let Some(message) = self.messages.get(key) else { continue };
            if self.is_at_home(message.instance, message.hash) || message.place != Place::Waiting {
                continue;
            }
            match message.stream {
                // A busy stream is placed anew when its call has ended.
                Some(stream) if self.streams.get(stream).busy.is_some() => {}
                Some(stream) => self.place_stream(stream, now),
                None => self.place_message(key, now),
            }
        }
    }

    /// Whether a message that waits there may stay.
    pub(super) fn is_at_home(&self, id: InstanceId, hash: u64) -> bool {
        let state = self.instances.get(id);
        state.is_usable() && state.share.takes(hash)
    }

    /// Brings a message without a stream to where its key belongs now, or answers it.
    pub(super) fn place_message(&mut self, key: MsgKey, now: Micros) {
        let message = self.messages.get(key).expect("the caller has it");
        let waits = Waits {
            tenant: message.tenant,
            service: message.rule.service,
            hash: message.hash,
            failover: message.rule.failover,
            instance: message.instance,
            failed_on: message.failed_on,
        };
        let Some(target) = self.home(&waits, now) else {
            self.withdraw_waiting(key);
            self.finish(key, &Answer::reject(&UNAVAILABLE), now);
            return;
        };
        self.move_message(key, target);
        if !self.messages.get(key).expect("moved").delayed {
            self.resume_head(Some(key), target);
        }
    }

    /// Where it belongs now, if anywhere: with who has its hash. The one that has just failed it is
    /// only gone back to if there is no other.
    fn home(&mut self, waits: &Waits, now: Micros) -> Option<InstanceId> {
        let &Waits { tenant, service, hash, failover, instance, failed_on } = waits;
        let owner = self.pick(tenant, service, hash, failover, now).ok()?;
        if Some(owner) != failed_on {
            return Some(owner);
        }
        if instance != owner && self.instances.takes(instance, hash) {
            return Some(instance);
        }
        Some(self.pick_other(service, hash, failover, Some(owner)).unwrap_or(owner))
    }
}

/// What decides where a message, or the messages of a stream, should wait.
struct Waits {
    tenant: TenantId,
    service: ServiceId,
    hash: u64,
    failover: Failover,
    /// Where they wait now.
    instance: InstanceId,
    /// Who has failed the first of them.
    failed_on: Option<InstanceId>,
}
