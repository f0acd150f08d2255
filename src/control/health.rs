//! Health of instances: health checks (active) and outlier ejection (passive) of each instance, and
//! the rules that hold for a whole service. Pure: facts and the time go in.
//!
//! ```text
//! checks:  unchecked -> up <-> down            (down: no messages)
//! trust:   trusted -> ejected -> trial -> warming -> trusted
//!             ^ `--------^ ^--------'  |         |
//!             |            `-----------+---------' fails again
//! ```
//!
//! Checks and trust are independent: an instance gets messages when it is neither down nor ejected.
//! Before an ejection ends, and before a trial that no message tried ends well, the instance has to
//! answer a question of the gateway: silence is no reason to send it messages.

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

/// Successes that end a trial before its time. An instance that fails every other call gets as far
/// once in 2^3 = 8 trials; more would make a service with few calls wait for the clock in any case.
const TRIAL_SUCCESSES: u32 = 3;
/// Steps of a slow start. Each adds a tenth of the keys, so that no step but the first ones doubles
/// the load that an instance with a cold cache has just coped with.
const WARM_UP_STEPS: u32 = 10;

/// State by health checks.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Checks {
    /// The instance never answered, or has no health service. Counts as healthy.
    Unchecked { failed: u32 },
    /// The instance is healthy.
    Up { failed: u32 },
    /// The instance gets no messages.
    Down { succeeded: u32, why: String },
}

/// Failed calls of a shard in a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Row {
    count: u32,
    /// Time of the first, and of the last.
    since: Instant,
    last: Instant,
}

/// Failures held against an instance that gets messages.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Record {
    /// Failed calls in a row, by shard.
    rows: BTreeMap<ShardId, Row>,
    /// Times of lost connections, oldest first, by shard; at most `eject_losses` each.
    losses: BTreeMap<ShardId, VecDeque<Instant>>,
}

impl Record {
    fn window(&mut self, window: CallWindow, now: Instant) {
        if window.ok {
            self.rows.remove(&window.shard);
        }
        if window.failures > 0 {
            let begun = Row { count: 0, since: now, last: now };
            let row = self.rows.entry(window.shard).or_insert(begun);
            row.count = row.count.saturating_add(window.failures);
            row.last = now;
        }
    }

    fn lost(&mut self, settings: &HealthSettings, shard: ShardId, now: Instant) {
        let losses = self.losses.entry(shard).or_default();
        losses.push_back(now);
        while losses.len() > settings.eject_losses as usize {
            losses.pop_front();
        }
    }

    /// Failed calls in a row of all shards together, and the time of the first of them. Shards that
    /// met their last one longer than an ejection before the newest say nothing of it: they have
    /// not called the instance since.
    fn row(&self, settings: &HealthSettings) -> Option<(u32, Instant)> {
        let newest = self.rows.values().map(|row| row.last).max()?;
        let is_near = |row: &&Row| newest.saturating_duration_since(row.last) < settings.eject;
        let near = || self.rows.values().filter(is_near);
        let since = near().map(|row| row.since).min()?;
        Some((near().fold(0, |sum, row| sum.saturating_add(row.count)), since))
    }

    /// Number of failed calls that are enough for an ejection, and the time from which on they are:
    /// calls that fail together have one cause, and the instance may go on answering others.
    fn full_row(&self, settings: &HealthSettings) -> Option<(u32, Instant)> {
        let (count, since) = self.row(settings)?;
        let is_full = settings.eject_after > 0 && count >= settings.eject_after;
        is_full.then(|| (count, since + settings.eject_span))
    }

    /// Reason for an ejection, if the failures are enough.
    fn why(&self, settings: &HealthSettings, now: Instant) -> Option<Why> {
        if let Some((count, from)) = self.full_row(settings)
            && from <= now
        {
            return Some(Why::Failures(count));
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

/// A question of the gateway to an instance that is to prove that it lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Question {
    /// It is not time for one.
    NotYet,
    /// It is to be asked.
    Due,
    /// It was asked, and the answer, or word that there is none, is to come.
    Asked,
}

/// State by the results of calls.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Trust {
    /// The instance gets all its keys. `past` ejections are forgotten `eject_max` after `since`.
    Trusted { since: Instant, past: u32, record: Record },
    /// The instance gets no messages.
    Ejected { until: Instant, nth: u32, why: Why, question: Question },
    /// The instance gets `trial_percent` of its keys. `failed`: it is to be ejected again, and
    /// there was no room yet.
    Trial { until: Instant, nth: u32, passed: u32, failed: Option<Why>, question: Question },
    /// The instance gets more and more of its keys.
    Warming { since: Instant, past: u32, record: Record },
}

impl Trust {
    fn trial(settings: &HealthSettings, nth: u32, now: Instant) -> Self {
        let (until, question) = (now + settings.trial, Question::NotYet);
        Trust::Trial { until, nth, passed: 0, failed: None, question }
    }

    /// State after a trial: a slow start if one is configured, else trusted.
    fn back(settings: &HealthSettings, past: u32, now: Instant) -> Self {
        let (since, record) = (now, Record::default());
        if settings.slow_start.is_zero() {
            Trust::Trusted { since, past, record }
        } else {
            Trust::Warming { since, past, record }
        }
    }

    /// Event of a change to [`Trust::back`].
    fn back_event(settings: &HealthSettings) -> HealthEvent {
        if settings.slow_start.is_zero() { HealthEvent::Trusted } else { HealthEvent::Warming }
    }
}

/// Health of one instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Health {
    checks: Checks,
    trust: Trust,
}

impl Health {
    /// Health of a new instance. It is used at once, as nothing is known against it.
    pub fn new(now: Instant) -> Self {
        Self {
            checks: Checks::Unchecked { failed: 0 },
            trust: Trust::Trusted { since: now, past: 0, record: Record::default() },
        }
    }

    /// Takes in the result of a health check.
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
            Check::Answered => self.answered(settings, now),
            Check::Silent => {
                self.silent(settings, now);
                None
            }
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

    /// Takes in the answer to a question: an ejection, or a trial that nothing else has ended,
    /// ends.
    fn answered(&mut self, settings: &HealthSettings, now: Instant) -> Option<HealthEvent> {
        match self.trust {
            Trust::Ejected { question: Question::Asked, .. } => self.release(settings, now),
            Trust::Trial { question: Question::Asked, failed: None, nth, .. } => {
                self.trust = Trust::back(settings, nth, now);
                Some(Trust::back_event(settings))
            }
            Trust::Trusted { .. }
            | Trust::Ejected { .. }
            | Trust::Trial { .. }
            | Trust::Warming { .. } => None,
        }
    }

    /// Takes in that a question got no answer: it is asked again after the time of a trial.
    fn silent(&mut self, settings: &HealthSettings, now: Instant) {
        match &mut self.trust {
            Trust::Ejected { until, question: question @ Question::Asked, .. }
            | Trust::Trial { until, question: question @ Question::Asked, .. } => {
                (*until, *question) = (now + settings.trial, Question::NotYet);
            }
            Trust::Trusted { .. }
            | Trust::Ejected { .. }
            | Trust::Trial { .. }
            | Trust::Warming { .. } => {}
        }
    }

    /// Whether the instance is to be asked a question now. True once for each question: the caller
    /// asks it, and gives back [`Check::Answered`] or [`Check::Silent`].
    pub fn take_question(&mut self) -> bool {
        match &mut self.trust {
            Trust::Ejected { question: question @ Question::Due, .. }
            | Trust::Trial { question: question @ Question::Due, .. } => {
                *question = Question::Asked;
                true
            }
            Trust::Trusted { .. }
            | Trust::Ejected { .. }
            | Trust::Trial { .. }
            | Trust::Warming { .. } => false,
        }
    }

    /// Takes in a success; `enough` in a row end being down.
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

    /// Takes in a failure; `enough` in a row make the instance down. Calls before and while it is
    /// down do not count when it comes back.
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

    /// Ends being down. The keys come back step by step, whatever the state was before: a trial or
    /// slow start that ran while the instance got nothing has proved nothing.
    fn come_back(&mut self, settings: &HealthSettings, now: Instant) {
        match self.trust {
            Trust::Ejected { .. } => {}
            Trust::Trial { nth, .. } => self.trust = Trust::trial(settings, nth, now),
            Trust::Trusted { past, .. } | Trust::Warming { past, .. } => {
                self.trust = Trust::back(settings, past, now);
            }
        }
    }

    /// Takes in calls of a shard. Calls to an instance that is down or ejected do not count: it got
    /// them before, or because no other is left.
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
                record.window(window, now);
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

    /// Takes in the loss of an established connection of a shard.
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

    /// Reason for an ejection, if the instance failed enough. [`judge`] carries it out, if there is
    /// room.
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
        let (until, question) = (now + length, Question::NotYet);
        self.trust = Trust::Ejected { until, nth, why, question };
        HealthEvent::Ejected { why, length, nth }
    }

    /// Ends an ejection before its time.
    fn release(&mut self, settings: &HealthSettings, now: Instant) -> Option<HealthEvent> {
        let Trust::Ejected { nth, .. } = self.trust else { return None };
        self.trust = Trust::trial(settings, nth, now);
        Some(HealthEvent::OnTrial)
    }

    /// Makes the change that is due by time alone.
    fn advance(&mut self, settings: &HealthSettings, now: Instant) -> Option<HealthEvent> {
        match &mut self.trust {
            Trust::Trusted { since, past, .. } => {
                let due = *past > 0 && *since + settings.eject_max <= now;
                due.then(|| {
                    *past = 0;
                    HealthEvent::Forgiven
                })
            }
            Trust::Trial { until, nth, failed: None, passed: 1.., .. } if *until <= now => {
                self.trust = Trust::back(settings, *nth, now);
                Some(Trust::back_event(settings))
            }
            Trust::Ejected { until, question: question @ Question::NotYet, .. }
            | Trust::Trial { until, failed: None, question: question @ Question::NotYet, .. }
                if *until <= now =>
            {
                *question = Question::Due;
                None
            }
            Trust::Warming { since, past, .. } if *since + settings.slow_start <= now => {
                let (past, record) = (*past, Record::default());
                self.trust = Trust::Trusted { since: now, past, record };
                Some(HealthEvent::Trusted)
            }
            Trust::Ejected { .. } | Trust::Trial { .. } | Trust::Warming { .. } => None,
        }
    }

    /// Begins a new trial, if the last one is over, was failed, and found no room for an ejection.
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

    /// Time of the next change of state or share that needs no event.
    pub fn next_change(&self, settings: &HealthSettings, now: Instant) -> Option<Instant> {
        match &self.trust {
            Trust::Trusted { since, past, record } => {
                let forgiven = (*past > 0).then(|| *since + settings.eject_max);
                forgiven.into_iter().chain(self.next_ejection(record, settings, now)).min()
            }
            // A question that is asked is ended by its answer, or by word that there is none.
            Trust::Ejected { question: Question::Due | Question::Asked, .. }
            | Trust::Trial { question: Question::Due | Question::Asked, .. } => None,
            Trust::Ejected { until, .. } | Trust::Trial { until, .. } => Some(*until),
            Trust::Warming { since, record, .. } => {
                let step = warm_up_step(settings, *since, now) + 1;
                let warmer = *since + settings.slow_start * step.min(WARM_UP_STEPS) / WARM_UP_STEPS;
                self.next_ejection(record, settings, now).into_iter().chain([warmer]).min()
            }
        }
    }

    /// Time from which on the failures so far are enough for an ejection, if it is to come.
    fn next_ejection(
        &self,
        record: &Record,
        settings: &HealthSettings,
        now: Instant,
    ) -> Option<Instant> {
        let (_, from) = record.full_row(settings)?;
        (from > now && !self.is_down()).then_some(from)
    }

    /// Share of its keys that the instance gets, in percent, as far as it alone is concerned; 0 if
    /// and only if it is down or ejected.
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

    /// State in one word.
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

    /// Reason why the instance gets no messages, one line for people. `None` if it gets some.
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

    /// Failed calls in a row; the instance with the most is ejected first.
    fn row(&self, settings: &HealthSettings) -> u32 {
        match &self.trust {
            Trust::Trusted { record, .. } | Trust::Warming { record, .. } => {
                record.row(settings).map_or(0, |(count, _)| count)
            }
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
