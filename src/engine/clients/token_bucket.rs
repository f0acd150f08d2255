//! Events at a rate: token buckets.

use crate::message::Micros;

/// Millionths of a token: one microsecond at a rate of one a second. All arithmetic is in them, so
/// nothing is ever rounded and the sustained rate is the configured one to the token.
const TOKEN: u64 = 1_000_000;

/// The flow into buckets: `per_s` tokens a second, of which at most `burst` stay. Kept once for all
/// buckets of a kind, so that a change of the settings holds for every one of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rate {
    /// Tokens that flow in each second.
    pub per_s: u32,
    /// Tokens of a full bucket.
    pub burst: u32,
}

impl Rate {
    const fn full(self) -> u64 {
        self.burst as u64 * TOKEN
    }
}

/// A bucket of tokens.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    /// Millionths of a token in it at `at`; `u64::MAX` = full, whatever the burst is.
    level: u64,
    at: Micros,
}

impl TokenBucket {
    /// A bucket that is full.
    pub fn new(now: Micros) -> Self {
        Self { level: u64::MAX, at: now }
    }

    /// Takes `n` tokens, or none and tells after how many microseconds `n` will be there if nobody
    /// takes any before; `u64::MAX` = never (`n` over the burst, or a rate of 0).
    #[inline]
    pub fn take(&mut self, rate: Rate, n: u32, now: Micros) -> Result<(), u64> {
        self.level = self.level(rate, now);
        self.at = self.at.max(now);
        let need = u64::from(n) * TOKEN;
        match need.checked_sub(self.level) {
            None | Some(0) => {
                self.level -= need;
                Ok(())
            }
            Some(_) if need > rate.full() || rate.per_s == 0 => Err(u64::MAX),
            Some(missing) => Err(missing.div_ceil(u64::from(rate.per_s))),
        }
    }

    /// Whether it is full: as good as a new one.
    pub fn is_full(&self, rate: Rate, now: Micros) -> bool {
        self.level(rate, now) == rate.full()
    }

    /// `rate` is about to change: what has flowed in until now has done so by it, and a bucket that
    /// is full stays full.
    pub fn settle(&mut self, rate: Rate, now: Micros) {
        self.level = if self.is_full(rate, now) { u64::MAX } else { self.level(rate, now) };
        self.at = self.at.max(now);
    }

    #[inline]
    fn level(&self, rate: Rate, now: Micros) -> u64 {
        let flown = now.since(self.at).saturating_mul(u64::from(rate.per_s));
        self.level.saturating_add(flown).min(rate.full())
    }
}

#[cfg(test)]
mod tests;
