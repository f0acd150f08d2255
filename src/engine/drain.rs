//! The drain: an ordered stop, its grace, and the pace at which connections are closed.

use crate::config::settings::StopSettings;
use crate::message::Micros;

/// State of an ordered stop.
#[derive(Clone, Debug)]
pub(crate) struct Drain {
    began: Micros,
    /// Time at which the grace is over.
    pub until: Micros,
    pub settings: StopSettings,
    /// Number of connections that were open when the stop began.
    conns: u64,
    /// Number of connections that were closed since then.
    pub closed: u64,
    /// Number of messages that got an error instead of their service's answer because of the stop.
    pub cut_off: u64,
}

impl Drain {
    /// A stop that begins with `conns` open connections.
    pub fn new(settings: StopSettings, conns: usize, now: Micros) -> Self {
        let until = Micros(now.0 + settings.grace.as_micros() as u64);
        Self { began: now, until, settings, conns: conns as u64, closed: 0, cut_off: 0 }
    }

    /// Leaves out a time in which the shard was stopped.
    pub fn put_off(&mut self, us: u64) {
        self.began.0 += us;
        self.until.0 += us;
    }

    /// Whether the grace is over.
    pub fn is_over(&self, now: Micros) -> bool {
        self.until <= now
    }

    /// Number of connections that may be closed now: evenly over `spread`, and all of them after it
    /// or after the grace.
    pub fn may_close(&self, now: Micros) -> u64 {
        let spread_us = self.settings.spread.min(self.settings.grace).as_micros() as u64;
        let gone_us = now.since(self.began);
        if gone_us >= spread_us {
            return u64::MAX;
        }
        // One more than the share of the time that has passed, so that the first is closed at once.
        let due = u128::from(self.conns) * u128::from(gone_us) / u128::from(spread_us) + 1;
        (due as u64).saturating_sub(self.closed)
    }
}
