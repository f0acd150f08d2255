//! Connecting of a channel: one round over the addresses of its instance, again after a pause.
//!
//! The addresses are tried in their order, the next one as soon as an attempt fails, or has had a
//! moment without success (RFC 8305); the first that answers is used. So one address that is dead
//! or swallows packets costs that moment, not the instance.

use std::net::SocketAddr;

use super::{DownCause, Driver, Link, LinkId, Peer, Phase};
use crate::message::Micros;

/// Time that an attempt has for itself: RFC 8305 section 8 recommends 250 ms, which is less than a
/// person notices and more than a round trip around the world.
const ALONE_US: u64 = 250_000;

/// A round over the addresses.
#[derive(Default)]
pub(super) struct Round {
    /// Addresses that were tried; 0 = no round is under way.
    tried: usize,
    /// Time at which the next address is tried beside the attempts that are under way.
    next_at: Micros,
}

impl Driver {
    /// Starts a round if there is no connection for new calls, or the next attempt of one.
    pub(super) fn connect_if_wanted(&mut self) {
        let closing = self.shared.closing.get() && self.waiting.is_empty();
        let now = self.now;
        let serves = |link: &Link| link.phase == Phase::Ready && link.replace_at > now;
        if closing || self.links.iter().any(serves) {
            return;
        }
        while let Some(address) = self.next_address() {
            self.round.tried += 1;
            self.round.next_at = Micros(now.0.saturating_add(ALONE_US));
            let id = LinkId(self.links_made);
            self.links_made = self.links_made.wrapping_add(1);
            let peer = Peer { address, tls: self.tls.clone() };
            match Link::connect(id, peer, &self.registry, &self.signals, now, &self.settings) {
                Ok(link) => {
                    let finish_by = link.finish_by;
                    self.links.push(link);
                    self.wake_by(finish_by);
                }
                Err(e) => self.attempt_failed(address, &e.to_string()),
            }
        }
    }

    /// The address to try now; `None`: its time has not come, or there is none left.
    fn next_address(&mut self) -> Option<SocketAddr> {
        let due = if self.is_connecting() {
            self.round.next_at
        } else if self.round.tried == 0 {
            self.connect_at
        } else {
            self.now
        };
        let address = self.instance.addresses.iter().nth(self.round.tried)?;
        if self.now < due {
            self.wake_by(due);
            return None;
        }
        Some(address)
    }

    fn is_connecting(&self) -> bool {
        self.links.iter().any(|link| link.phase == Phase::Connecting)
    }

    /// Takes note that an attempt failed. With the last one the round has failed, and the next one
    /// comes after a pause.
    pub(super) fn attempt_failed(&mut self, address: SocketAddr, why: &str) {
        let all = self.instance.addresses.iter().count();
        if self.is_connecting() || self.round.tried < all {
            return;
        }
        self.round = Round::default();
        let delay_us = self.backoff.after_failure();
        self.connect_at = Micros(self.now.0.saturating_add(delay_us));
        self.wake_by(self.connect_at);
        if all == 1 {
            self.report_down(DownCause::Unreachable, why);
        } else {
            let why = format!("{why} at {address}, the last of its {all} addresses to fail");
            self.report_down(DownCause::Unreachable, &why);
        }
    }

    /// Ends the round: the connection at `index` is ready, and other attempts are given up.
    pub(super) fn end_round(&mut self, index: usize) {
        self.round = Round::default();
        for (other, link) in self.links.iter_mut().enumerate() {
            if other != index && link.phase == Phase::Connecting {
                link.drain(self.now, 0);
                self.wake_at = self.wake_at.min(link.finish_by);
            }
        }
    }
}
