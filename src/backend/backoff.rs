//! Delays between attempts to connect: gRPC's connection-backoff.md, pure and seeded.

/// Growth from one failure to the next (connection-backoff.md: MULTIPLIER 1.6), in tenths.
const MULTIPLIER_TENTHS: u64 = 16;
/// Jitter to either side (connection-backoff.md: JITTER 0.2), in percent.
const BACKOFF_JITTER_PERCENT: u64 = 20;

/// State of the delays of one channel.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first_us: u64,
    max_us: u64,
    next_us: u64,
    short_lives: u32,
    random: u64,
}

impl Backoff {
    /// Delays from `first_ms` to `max_ms`; the same `seed` gives the same delays.
    pub(crate) fn new(first_ms: u64, max_ms: u64, seed: u64) -> Self {
        let first_us = first_ms.max(1).saturating_mul(1000);
        let max_us = max_ms.saturating_mul(1000).max(first_us);
        Self { first_us, max_us, next_us: first_us, short_lives: 0, random: seed }
    }

    /// Changes the bounds; a delay that has grown stays within them.
    pub(crate) fn set_bounds(&mut self, first_ms: u64, max_ms: u64) {
        self.first_us = first_ms.max(1).saturating_mul(1000);
        self.max_us = max_ms.saturating_mul(1000).max(self.first_us);
        self.next_us = self.next_us.clamp(self.first_us, self.max_us);
    }

    /// Microseconds to wait after an attempt that failed.
    pub(crate) fn after_failure(&mut self) -> u64 {
        let delay = self.next_us;
        self.next_us = (delay.saturating_mul(MULTIPLIER_TENTHS) / 10).min(self.max_us);
        self.jitter(delay, BACKOFF_JITTER_PERCENT)
    }

    /// Microseconds to wait after the loss of a connection that had been ready for `lived_us`.
    ///
    /// There is no wait, except that connections which are repeatedly lost before the first delay
    /// is over count as failures: otherwise a server that accepts and closes at once would be
    /// called in a tight loop.
    pub(crate) fn after_loss(&mut self, lived_us: u64) -> u64 {
        if lived_us >= self.first_us {
            self.short_lives = 0;
            self.next_us = self.first_us;
            return 0;
        }
        self.short_lives = self.short_lives.saturating_add(1);
        if self.short_lives == 1 { 0 } else { self.after_failure() }
    }

    /// Notes that a server answered: the next failure counts as the first, unless several
    /// connections were lost early.
    pub(crate) fn connected(&mut self) {
        if self.short_lives < 2 {
            self.next_us = self.first_us;
        }
    }

    /// `value` plus or minus up to `percent` of it.
    pub(crate) fn jitter(&mut self, value: u64, percent: u64) -> u64 {
        let span = value / 100 * percent;
        value - span + self.random() % (2 * span + 1)
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): jitter needs no more.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within(delay_us: u64, nominal_us: u64) -> bool {
        (nominal_us * 8 / 10..=nominal_us * 12 / 10).contains(&delay_us)
    }

    #[test]
    fn delays_grow_by_1_6_to_the_maximum_within_the_jitter() {
        let mut backoff = Backoff::new(1_000, 120_000, 7);
        let mut nominal = 1_000_000;
        for _ in 0..20 {
            let delay = backoff.after_failure();
            assert!(within(delay, nominal), "{delay} for {nominal}");
            nominal = (nominal * 16 / 10).min(120_000_000);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_delays() {
        let delays = |seed| {
            let mut backoff = Backoff::new(1_000, 120_000, seed);
            (0..8).map(|_| backoff.after_failure()).collect::<Vec<_>>()
        };
        assert_eq!(delays(3), delays(3));
        assert_ne!(delays(3), delays(4));
    }

    #[test]
    fn only_a_server_that_answered_starts_the_delays_again() {
        let mut backoff = Backoff::new(1_000, 120_000, 1);
        backoff.after_failure();
        assert!(within(backoff.after_failure(), 1_600_000));
        backoff.connected();
        assert!(within(backoff.after_failure(), 1_000_000));
    }

    #[test]
    fn one_short_life_is_forgiven_and_a_row_of_them_is_slowed_down() {
        let mut backoff = Backoff::new(1_000, 120_000, 1);
        backoff.connected();
        assert_eq!(backoff.after_loss(10), 0);
        backoff.connected();
        assert!(within(backoff.after_loss(10), 1_000_000));
        backoff.connected();
        assert!(within(backoff.after_loss(10), 1_600_000));
        assert_eq!(backoff.after_loss(1_000_000), 0);
        assert_eq!(backoff.after_loss(10), 0);
    }

    #[test]
    fn extreme_settings_do_not_overflow() {
        let mut backoff = Backoff::new(u64::MAX, 0, 1);
        backoff.after_failure();
        backoff.after_failure();
        assert_eq!(Backoff::new(0, 0, 1).after_failure() / 10_000, 0);
    }
}
