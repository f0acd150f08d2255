//! What was told of the records of one name: each change is told once. Pure.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::RETRY_MAX;
use crate::control::discovery::{FoundInstance, SourceContents, SourceEvent};

/// Pauses after failed lookups, growing.
pub(super) struct Backoff {
    first: Duration,
    next: Duration,
    rng: StdRng,
}

impl Backoff {
    pub(super) fn new(first: Duration, seed: u64) -> Self {
        Self { first, next: first, rng: StdRng::seed_from_u64(seed) }
    }

    fn after_failure(&mut self) -> Duration {
        let pause = self.next.mul_f64(self.rng.random_range(0.8..=1.2));
        self.next = self.next.mul_f64(1.6).min(RETRY_MAX);
        pause
    }

    fn after_success(&mut self) {
        self.next = self.first;
    }
}

/// What one lookup found.
#[derive(Default)]
pub(super) struct Found {
    /// Instances, sorted.
    pub(super) instances: Vec<FoundInstance>,
    /// Whether there were records, which end with their time to live.
    pub(super) has_records: bool,
    /// Reason why records were left out.
    pub(super) left_out: Option<String>,
    /// Reason why the instances may not be those of now.
    pub(super) stale: Option<String>,
    /// Error of a type of record that is not needed.
    pub(super) unneeded: Option<String>,
}

impl Found {
    /// Nothing was found, for this reason.
    pub(super) fn nothing(why: String) -> Self {
        Self { stale: Some(why), ..Self::default() }
    }
}

/// The state of one service that was sent.
pub(super) struct Told {
    service: Arc<str>,
    backoff: Backoff,
    /// Instances.
    sent: Vec<FoundInstance>,
    /// Reason for being stale.
    stale: Option<String>,
    /// Reason why records were left out.
    left_out: Option<String>,
    /// Error of the type of record that is not needed.
    unneeded: Option<String>,
}

impl Told {
    pub(super) fn new(service: Arc<str>, backoff: Backoff) -> Self {
        let (stale, left_out, unneeded) = (None, None, None);
        Self { service, backoff, sent: Vec::new(), stale, left_out, unneeded }
    }

    pub(super) fn service(&self) -> Arc<str> {
        self.service.clone()
    }

    /// Takes in what a lookup found. Returns the events to send, and the pause before the next
    /// lookup.
    pub(super) fn take(&mut self, found: Found, ttl: Duration) -> (Vec<SourceEvent>, Duration) {
        let Found { instances, has_records, left_out, stale, unneeded } = found;
        let mut events = Vec::new();
        self.note_left_out(left_out, &mut events);
        let changed = self.note_found(instances, &mut events);
        // What failed may have addresses after all, so it is asked for again before the time to
        // live of the others ends, and more and more seldom.
        let pause = match &stale {
            None if unneeded.is_none() => {
                self.backoff.after_success();
                ttl
            }
            None => ttl.min(self.backoff.after_failure()),
            Some(_) if has_records => ttl.min(self.backoff.after_failure()),
            Some(_) => self.backoff.after_failure(),
        };
        self.note_stale(stale, changed, &mut events);
        self.note_unneeded(unneeded, &mut events);
        (events, pause)
    }

    /// Notes why records were left out; an event if that is new.
    fn note_left_out(&mut self, left_out: Option<String>, events: &mut Vec<SourceEvent>) {
        if left_out != self.left_out {
            let at = format!("service {}", self.service);
            events.extend(left_out.clone().map(|why| SourceEvent::Bad { at, why }));
            self.left_out = left_out;
        }
    }

    /// Notes the instances that were found; an event if they changed. Whether they did. No instance
    /// at all may be a mistake in the zone, so that changes nothing.
    fn note_found(&mut self, found: Vec<FoundInstance>, events: &mut Vec<SourceEvent>) -> bool {
        let changed = !found.is_empty() && found != self.sent;
        if changed {
            self.sent = found;
            let instances = self.sent.clone();
            let contents = SourceContents { instances, ..SourceContents::default() };
            events.push(SourceEvent::Contents { contents, by: "dns".into() });
        }
        changed
    }

    /// Notes why the source is stale, or that it is not; an event if that is new. `changed`: the
    /// contents were sent, which ends being stale at the receiver.
    fn note_stale(&mut self, why: Option<String>, changed: bool, events: &mut Vec<SourceEvent>) {
        match why {
            Some(why) => {
                let line = self.stale_line(&why);
                if changed || self.stale.as_ref() != Some(&line) {
                    events.push(SourceEvent::Stale { why: line.clone() });
                }
                self.stale = Some(line);
            }
            None => {
                if self.stale.take().is_some() && !changed {
                    events.push(SourceEvent::Fresh);
                }
            }
        }
    }

    /// Notes the error of a type of record that is not needed; an event if that is new.
    fn note_unneeded(&mut self, why: Option<String>, events: &mut Vec<SourceEvent>) {
        if why != self.unneeded {
            events.extend(why.as_ref().map(|why| {
                let service = &self.service;
                let why = format!(
                    "one type of address (A or AAAA) of service {service} cannot be looked up, \
                     and the other is used: {why}"
                );
                SourceEvent::Note { why }
            }));
            self.unneeded = why;
        }
    }

    fn stale_line(&self, why: &str) -> String {
        let Self { service, sent, .. } = self;
        let kept = match sent.len() {
            0 => "it has no instance from there yet".to_owned(),
            n => format!("the {n} found before stay"),
        };
        format!(
            "cannot look up the addresses of service {service}: {why}; {kept}; \
             check its key dns, and the name servers in [dns] servers or /etc/resolv.conf"
        )
    }
}
