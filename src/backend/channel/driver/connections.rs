//! Connections of a channel, from ready to their replacement in order.

use std::sync::Arc;

use super::{AGE_JITTER_PERCENT, ChannelEvent, Driver, LinkId, Phase, Round};
use crate::message::Micros;
use crate::tls::service::ServiceTls;

impl Driver {
    /// Puts other TLS settings in force: attempts under way begin again, and connections are
    /// replaced in order.
    pub(super) fn secure(&mut self, tls: Option<Arc<ServiceTls>>) {
        self.tls = tls;
        self.links.retain(|link| link.phase != Phase::Connecting);
        for link in &mut self.links {
            link.replace_at = link.replace_at.min(self.now);
        }
        self.backoff.connected();
        self.round = Round::default();
        self.connect_at = self.now;
    }

    /// Makes a connection the one for new calls, as the server's SETTINGS arrived; older
    /// connections finish their calls.
    pub(super) fn became_ready(&mut self, index: usize) {
        self.backoff.connected();
        let age_us = self.settings.age_max_ms.saturating_mul(1000);
        let age_us = self.backoff.jitter(age_us, AGE_JITTER_PERCENT);
        let (now, timeout_ms) = (self.now, self.settings.connect_timeout_ms);
        for (other, link) in self.links.iter_mut().enumerate() {
            if other != index && link.phase == Phase::Ready {
                link.drain(now, timeout_ms);
                self.wake_at = self.wake_at.min(link.finish_by);
            }
        }
        self.end_round(index);
        let link = &mut self.links[index];
        let address = link.address;
        link.phase = Phase::Ready;
        link.ready_at = now;
        self.left_at = None;
        if age_us > 0 {
            link.replace_at = Micros(now.0.saturating_add(age_us));
            let replace_at = link.replace_at;
            self.wake_by(replace_at);
        }
        self.shared.up.set(true);
        self.shared.emit(ChannelEvent::Up(address));
    }

    /// Lets a connection take no more calls; another one is wanted at once.
    pub(super) fn retire(&mut self, id: LinkId) {
        let Some(index) = self.links.iter().position(|link| link.id == id) else {
            return;
        };
        let link = &mut self.links[index];
        let (phase, ready_at) = (link.phase, link.ready_at);
        link.drain(self.now, self.settings.connect_timeout_ms);
        let close_by = link.finish_by;
        self.wake_by(close_by);
        if phase == Phase::Ready {
            let lived_us = self.now.since(ready_at);
            self.connect_after(lived_us);
        }
        self.note_up();
    }

    pub(super) fn connect_after(&mut self, lived_us: u64) {
        let delay_us = self.backoff.after_loss(lived_us);
        self.connect_at = Micros(self.now.0.saturating_add(delay_us));
    }
}
