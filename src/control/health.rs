//! Who is trusted with messages: health checks (active) and outlier ejection (passive) of each
//! instance, and the rules that hold for a whole service. Pure: facts and the time go in.
//!
//! ```text
//! checks:  unchecked -> up <-> down            (down: no messages)
//! trust:   trusted -> ejected -> trial -> warming -> trusted
//!             ^ `--------^ ^--------'  |         |
//!             |            `-----------+---------' fails again
//! ```
//!
//! The two are independent: an instance gets messages when it is neither down nor ejected.

mod facts;
mod judge;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

pub use self::facts::{CallWindow, Check, HealthEvent, Standing, Why};
pub use self::judge::judge;
use crate::config::settings::HealthSettings;
use crate::ids::ShardId;

/// Successes that end a trial before its time. One that fails every other call gets as far once in
/// 2^3 = 8 trials; more would make a service with few calls wait for the clock in any case.
const TRIAL_SUCCESSES: u32 = 3;
/// Steps of a slow start. Each adds a tenth of the keys, so no step doubles what an instance that
/// has a cold cache has just coped with, but for the first ones.
const WARM_UP_STEPS: u32 = 10;

/// What health checks say.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Checks {
    /// Never answered, or without a health service. Counts as healthy.
    Unchecked { failed: u32 },
    /// Healthy.
    Up { failed: u32 },
    /// Gets nothing.
    Down { succeeded: u32, why: String },
}

/// Failures held against an instance that gets messages.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Record {
    /// Failed calls in a row, by shard.
    rows: BTreeMap<ShardId, u32>,
    /// When connections were lost, oldest first, by shard; at most `eject_losses` each.
    losses: BTreeMap<ShardId, VecDeque<Instant>>,
}

impl Record {
    fn window(&mut self, window: CallWindow) {
        let row = self.rows.entry(window.shard).or_default();
        *row = if window.ok { 0 } else { *row }.saturating_add(window.failures);
    }

    fn lost(&mut self, settings: &HealthSettings, shard: ShardId, now: Instant) {
        let losses = self.losses.entry(shard).or_default();
        losses.push_back(now);
        while losses.len() > settings.eject_losses as usize {
            losses.pop_front();
        }
    }

    fn row(&self) -> u32 {
        self.rows.values().fold(0, |sum, row| sum.saturating_add(*row))
    }

    /// Why this is enough for an ejection, if it is.
    fn why(&self, settings: &HealthSettings, now: Instant) -> Option<Why> {
        let row = self.row();
        if settings.eject_after > 0 && row >= settings.eject_after {
            return Some(Why::Failures(row));
        }
        if settings.eject_losses == 0 {
            return None;
        }
        self.losses.iter().find_map(|(shard, losses)| {
            let recent = |at: &&Instant| now.saturating_duration_since(**at) < settings.eject;
            let count = losses.iter().filter(recent).count() as u32;
            (count >= settings.eject_losses).then_some(Why::Losses { shard: *shard, count })
        })
    }
}

/// What its calls say.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Trust {
    /// Gets all its keys. `past` ejections are forgotten `eject_max` after `since`.
    Trusted { since: Instant, past: u32, record: Record },
    /// Gets nothing.
    Ejected { until: Instant, nth: u32, why: Why },
    /// Gets `trial_percent` of its keys. `failed`: is to be ejected, and there was no room yet.
    Trial { until: Instant, nth: u32, passed: u32, failed: Option<Why> },
    /// Gets more and more of its keys.
    Warming { since: Instant, past: u32, record: Record },
}

impl Trust {
    fn trial(settings: &HealthSettings, nth: u32, now: Instant) -> Self {
        Trust::Trial { until: now + settings.trial, nth, passed: 0, failed: None }
    }

    /// Trusted, by way of a slow start if there is one.
    fn back(settings: &HealthSettings, past: u32, now: Instant) -> Self {
        let (since, record) = (now, Record::default());
        if settings.slow_start.is_zero() {
            Trust::Trusted { since, past, record }
        } else {
            Trust::Warming { since, past, record }
        }
    }

    /// The event of having come to [`Trust::back`].
    fn back_event(settings: &HealthSettings) -> HealthEvent {
        if settings.slow_start.is_zero() { HealthEvent::Trusted } else { HealthEvent::Warming }
    }
}

/// The health of one instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Health {
    checks: Checks,
    trust: Trust,
}

impl Health {
    /// A new instance: used at once, for nothing is known against it.
    pub fn new(now: Instant) -> Self {
        Self {
            checks: Checks::Unchecked { failed: 0 },
            trust: Trust::Trusted { since: now, past: 0, record: Record::default() },
        }
    }

    /// Takes in what a health check found.
    pub fn check(
        &mut self,
        settings: &HealthSettings,
        check: Check,
        now: Instant,
    ) -> Option<HealthEvent> {
        match check {
            Check::Succeeded => self.succeeded(settings, settings.up_after, now),
            Check::Serving => self.succeeded(settings, 1, now),
            Check::Failed { why } => self.failed(why, settings.down_after),
            Check::NotServing { why } => self.failed(why, 1),
            Check::NotImplemented => {
                let was = std::mem::replace(&mut self.checks, Checks::Unchecked { failed: 0 });
                match was {
                    Checks::Unchecked { .. } => None,
                    Checks::Up { .. } => Some(HealthEvent::Unchecked),
                    Checks::Down { .. } => {
                        self.come_back(settings, now);
                        Some(HealthEvent::Unchecked)
                    }
                }
            }
        }
    }

    /// A success; `enough` in a row end being down.
    fn succeeded(
        &mut self,
        settings: &HealthSettings,
        enough: u32,
        now: Instant,
    ) -> Option<HealthEvent> {
        let event = match &mut self.checks {
            Checks::Unchecked { .. } => Some(HealthEvent::Checked),
            Checks::Up { .. } => None,
            Checks::Down { succeeded, .. } => {
                *succeeded = succeeded.saturating_add(1);
                if *succeeded < enough {
                    return None;
                }
                self.come_back(settings, now);
                Some(HealthEvent::CheckedUp)
            }
        };
        self.checks = Checks::Up { failed: 0 };
        event
    }

    /// A failure; `enough` in a row make it down. What its calls did before is forgotten when it
    /// comes back, and counts for nothing until then.
    fn failed(&mut self, why: String, enough: u32) -> Option<HealthEvent> {
        match &mut self.checks {
            Checks::Unchecked { failed } | Checks::Up { failed } => {
                *failed = failed.saturating_add(1);
                if *failed < enough {
                    return None;
                }
            }
            Checks::Down { succeeded, why: last } => {
                (*succeeded, *last) = (0, why);
                return None;
            }
        }
        self.checks = Checks::Down { succeeded: 0, why: why.clone() };
        Some(HealthEvent::CheckedDown { why })
    }

    /// No longer down. Its keys come back by and by, whatever it was before: a trial or slow start
    /// that ran while it got nothing has proved nothing.
    fn come_back(&mut self, settings: &HealthSettings, now: Instant) {
        match self.trust {
            Trust::Ejected { .. } => {}
            Trust::Trial { nth, .. } => self.trust = Trust::trial(settings, nth, now),
            Trust::Trusted { past, .. } | Trust::Warming { past, .. } => {
                self.trust = Trust::back(settings, past, now);
            }
        }
    }

    /// Takes in calls of a shard. What happens to messages that a down or ejected instance still
    /// had, or gets because nobody else is left, is not held against it.
    pub fn window(
        &mut self,
        settings: &HealthSettings,
        window: CallWindow,
        now: Instant,
    ) -> Option<HealthEvent> {
        if self.is_down() {
            return None;
        }
        match &mut self.trust {
            Trust::Trusted { record, .. } | Trust::Warming { record, .. } => {
                record.window(window);
                None
            }
            Trust::Ejected { .. } => None,
            Trust::Trial { nth, passed, failed, .. } => {
                if window.failures > 0 && settings.eject_after > 0 {
                    *failed = Some(Why::CallOnTrial);
                } else if window.ok && window.failures == 0 {
                    *passed += 1;
                }
                if *passed < TRIAL_SUCCESSES || failed.is_some() {
                    return None;
                }
                self.trust = Trust::back(settings, *nth, now);
                Some(Trust::back_event(settings))
            }
        }
    }

    /// Takes in that a shard lost an established connection.
    pub fn lost(&mut self, settings: &HealthSettings, shard: ShardId, now: Instant) {
        if self.is_down() {
            return;
        }
        match &mut self.trust {
            Trust::Trusted { record, .. } | Trust::Warming { record, .. } => {
                record.lost(settings, shard, now);
            }
            Trust::Ejected { .. } => {}
            Trust::Trial { failed, .. } => {
                if settings.eject_losses > 0 {
                    *failed = Some(Why::LossOnTrial);
                }
            }
        }
    }

    /// Whether it failed enough to be ejected. That is carried out by [`judge`], if there is room.
    pub fn wants_ejection(&self, settings: &HealthSettings, now: Instant) -> Option<Why> {
        if self.is_down() {
            return None;
        }
        match &self.trust {
            Trust::Trusted { record, .. } | Trust::Warming { record, .. } => {
                record.why(settings, now)
            }
            Trust::Ejected { .. } => None,
            Trust::Trial { failed, .. } => *failed,
        }
    }

    fn eject(&mut self, settings: &HealthSettings, why: Why, now: Instant) -> HealthEvent {
        let nth = match &self.trust {
            Trust::Trusted { past, .. } | Trust::Warming { past, .. } => *past,
            Trust::Ejected { nth, .. } | Trust::Trial { nth, .. } => *nth,
        };
        let nth = nth.saturating_add(1);
        let length = settings.eject.saturating_mul(nth).min(settings.eject_max);
        self.trust = Trust::Ejected { until: now + length, nth, why };
        HealthEvent::Ejected { why, length, nth }
    }

    /// Ends an ejection before its time.
    fn release(&mut self, settings: &HealthSettings, now: Instant) -> Option<HealthEvent> {
        let Trust::Ejected { nth, .. } = self.trust else { return None };
        self.trust = Trust::trial(settings, nth, now);
        Some(HealthEvent::OnTrial)
    }

    /// Does what is due by time alone.
    fn advance(&mut self, settings: &HealthSettings, now: Instant) -> Option<HealthEvent> {
        match &mut self.trust {
            Trust::Trusted { since, past, .. } => {
                let due = *past > 0 && *since + settings.eject_max <= now;
                due.then(|| {
                    *past = 0;
                    HealthEvent::Forgiven
                })
            }
            Trust::Ejected { until, .. } if *until <= now => self.release(settings, now),
            Trust::Trial { until, nth, failed: None, .. } if *until <= now => {
                self.trust = Trust::back(settings, *nth, now);
                Some(Trust::back_event(settings))
            }
            Trust::Warming { since, past, .. } if *since + settings.slow_start <= now => {
                let (past, record) = (*past, Record::default());
                self.trust = Trust::Trusted { since: now, past, record };
                Some(HealthEvent::Trusted)
            }
            Trust::Ejected { .. } | Trust::Trial { .. } | Trust::Warming { .. } => None,
        }
    }

    /// Begins a trial anew that is over, was failed, and found no room for an ejection.
    fn try_again(&mut self, settings: &HealthSettings, now: Instant) -> Option<HealthEvent> {
        match self.trust {
            Trust::Trial { until, nth, failed: Some(_), .. } if until <= now => {
                self.trust = Trust::trial(settings, nth, now);
                Some(HealthEvent::OnTrial)
            }
            Trust::Trusted { .. }
            | Trust::Ejected { .. }
            | Trust::Trial { .. }
            | Trust::Warming { .. } => None,
        }
    }

    /// When its state or share changes by time alone.
    pub fn next_change(&self, settings: &HealthSettings, now: Instant) -> Option<Instant> {
        match &self.trust {
            Trust::Trusted { since, past, .. } => (*past > 0).then(|| *since + settings.eject_max),
            Trust::Ejected { until, .. } | Trust::Trial { until, .. } => Some(*until),
            Trust::Warming { since, .. } => {
                let step = warm_up_step(settings, *since, now) + 1;
                Some(*since + settings.slow_start * step.min(WARM_UP_STEPS) / WARM_UP_STEPS)
            }
        }
    }

    /// Share of its keys that it gets, in percent, as far as it alone is concerned; 0 if and only
    /// if it is down or ejected.
    pub fn share_percent(&self, settings: &HealthSettings, now: Instant) -> u8 {
        if self.is_down() {
            return 0;
        }
        let first = settings.trial_percent.clamp(1, 100);
        let share = match &self.trust {
            Trust::Trusted { .. } => 100,
            Trust::Ejected { .. } => 0,
            Trust::Trial { .. } => first,
            Trust::Warming { since, .. } => {
                let step = warm_up_step(settings, *since, now);
                first + (100 - first) * step / WARM_UP_STEPS
            }
        };
        share as u8
    }

    /// In a word.
    pub fn standing(&self) -> Standing {
        match (&self.checks, &self.trust) {
            (Checks::Down { .. }, _) => Standing::Down,
            (Checks::Unchecked { .. } | Checks::Up { .. }, trust) => match trust {
                Trust::Ejected { .. } => Standing::Ejected,
                Trust::Trial { .. } => Standing::Trial,
                Trust::Warming { .. } => Standing::Warming,
                Trust::Trusted { .. } => match self.checks {
                    Checks::Up { .. } => Standing::Ok,
                    Checks::Unchecked { .. } | Checks::Down { .. } => Standing::Unchecked,
                },
            },
        }
    }

    /// Why it gets no messages: one line, for people. `None` if it gets some.
    pub fn why(&self) -> Option<String> {
        match (&self.checks, &self.trust) {
            (Checks::Down { why, .. }, _) => Some(why.clone()),
            (_, Trust::Ejected { why, .. }) => Some(why.to_string()),
            (_, Trust::Trusted { .. } | Trust::Trial { .. } | Trust::Warming { .. }) => None,
        }
    }

    fn is_down(&self) -> bool {
        matches!(self.checks, Checks::Down { .. })
    }

    fn is_ejected(&self) -> bool {
        matches!(self.trust, Trust::Ejected { .. })
    }

    fn is_on_trial(&self) -> bool {
        matches!(self.trust, Trust::Trial { .. })
    }

    /// What it has failed so far: who has failed most is ejected first.
    fn row(&self) -> u32 {
        match &self.trust {
            Trust::Trusted { record, .. } | Trust::Warming { record, .. } => record.row(),
            Trust::Ejected { .. } | Trust::Trial { .. } => 0,
        }
    }
}

/// Steps of a slow start that are done, 0 to [`WARM_UP_STEPS`].
fn warm_up_step(settings: &HealthSettings, since: Instant, now: Instant) -> u32 {
    let (done, all) = (now.saturating_duration_since(since), settings.slow_start);
    if all <= done {
        return WARM_UP_STEPS;
    }
    (done * WARM_UP_STEPS).as_nanos().checked_div(all.as_nanos()).unwrap_or_default() as u32
}
