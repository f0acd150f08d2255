//! The drain: an ordered stop, its grace, and the pace at which connections are closed.

use std::time::Duration;

use crate::config::settings::StopSettings;
use crate::message::Micros;

/// Connections that a shard closes in a second by itself. Each is a handshake elsewhere, of which a
/// core does some 2,000 over TLS: a stop costs the others a quarter of a core for each shard.
const CLOSED_PER_S: u64 = 500;
/// Longest time over which connections are closed by itself. Kubernetes gives a stop 30 s: 5 s for
/// the balancer, `stop.grace` (10 s), of which 2 s are left for the last ones, and 10 s in which
/// control waits for the shards' last words; 5 s are to spare. 10,000 connections of one shard are
/// 1,250 in a second.
const SPREAD_MAX: Duration = Duration::from_secs(8);

/// The time over which `conns` connections are closed if no time is configured: few at once.
fn by_number(conns: u64) -> Duration {
    Duration::from_millis(conns.saturating_mul(1_000) / CLOSED_PER_S).min(SPREAD_MAX)
}

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
        let spread = self.settings.spread.unwrap_or_else(|| by_number(self.conns));
        let spread_us = spread.min(self.settings.grace).as_micros() as u64;
        let gone_us = now.since(self.began);
        if gone_us >= spread_us {
            return u64::MAX;
        }
        // One more than the share of the time that has passed, so that the first is closed at once.
        let due = u128::from(self.conns) * u128::from(gone_us) / u128::from(spread_us) + 1;
        (due as u64).saturating_sub(self.closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds until all of `conns` connections may be closed, by looks at each millisecond, and
    /// the most that one second closes.
    fn pace(settings: StopSettings, conns: usize) -> (f64, u64) {
        let mut drain = Drain::new(settings, conns, Micros(0));
        let (mut in_second, mut most) = (0, 0);
        for ms in 0.. {
            if ms % 1_000 == 0 {
                in_second = 0;
            }
            let now = drain.may_close(Micros(ms * 1_000)).min(conns as u64 - drain.closed);
            drain.closed += now;
            in_second += now;
            most = most.max(in_second);
            if drain.closed == conns as u64 {
                return (ms as f64 / 1_000.0, most);
            }
        }
        unreachable!("a stop ends")
    }

    #[test]
    fn by_default_few_are_closed_at_once_and_ten_thousand_within_the_grace() {
        let default = StopSettings::default();
        let (took_s, _) = pace(default.clone(), 5);
        assert!(took_s < 0.1, "{took_s} s");
        let (took_s, most) = pace(default.clone(), 1_000);
        assert!((1.9..=2.0).contains(&took_s) && most <= 501, "{took_s} s, {most} a second");
        let (took_s, most) = pace(default.clone(), 10_000);
        assert!((7.9..=8.0).contains(&took_s) && most <= 1_251, "{took_s} s, {most} a second");
        // Kubernetes' 30 s: the balancer, the grace, and the shards' last words.
        assert!(Duration::from_secs(5 + 10) + default.grace < Duration::from_secs(30));
        assert!(SPREAD_MAX + Duration::from_secs(2) <= default.grace);
    }

    #[test]
    fn a_configured_time_is_kept_whatever_the_number() {
        for (spread_s, took) in [(0, 0.0..=0.0), (4, 3.5..=4.0), (60, 9.0..=10.0)] {
            let spread = Some(Duration::from_secs(spread_s));
            let (took_s, _) = pace(StopSettings { spread, ..StopSettings::default() }, 20);
            assert!(took.contains(&took_s), "{spread_s} s: {took_s} s");
        }
    }
}
