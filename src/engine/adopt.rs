//! A published state takes the place of the one before: promise 10. Connections keep what they were
//! promised, messages under way keep the rule they were admitted by.

use std::sync::Arc;

use crate::config::settings::{GatewaySettings, ShardSettings};
use crate::engine::conns::Terms;
use crate::engine::{Engine, own};
use crate::mailbox::Published;
use crate::message::Micros;
use crate::routing::Snapshot;

impl Engine {
    /// Routes and works by `published` from now on. Messages that wait for an instance that takes
    /// them no more move to the next, or are answered.
    pub fn adopt(&mut self, published: Published, now: Micros) {
        let Published { snapshot, gateway, settings, auth, tls: _ } = published;
        // Who signed in before stays signed in, whatever the keys are now.
        self.auth.set(auth, &gateway.auth);
        self.apply(gateway, settings, now);
        // The cache knows owners on the rings; health does not change those.
        if !same_rings(&self.snapshot, &snapshot) {
            self.cache.flush();
        }
        self.instances.adopt(&snapshot);
        self.snapshot = own(&snapshot);
        self.replace_waiting(now);
    }

    fn apply(&mut self, gateway: Arc<GatewaySettings>, settings: ShardSettings, now: Micros) {
        let terms = Terms::of(&settings.conn);
        if *self.terms != terms {
            self.message_bytes_high = self.message_bytes_high.max(settings.conn.message_bytes_max);
            self.terms = Arc::new(terms);
        }
        self.rules.origins.clone_from(&gateway.origins);
        self.delays_us = settings.queue.class_delay_ms.map(|ms| ms * 1000);
        self.rates.set(&settings, now);
        self.budget.set_percent(settings.retry.budget_percent);
        self.cache.set_ttl(settings.cache.ttl_ms);
        self.dedup.set_limits(&settings.dedup);
        self.gateway = gateway;
        self.settings = settings;
    }
}

/// Whether every service has the ring it had.
fn same_rings(old: &Snapshot, new: &Snapshot) -> bool {
    old.services.len() == new.services.len()
        && old.services.iter().zip(&new.services).all(|(a, b)| Arc::ptr_eq(&a.ring, &b.ring))
}
