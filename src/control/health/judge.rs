//! Rules for a service as a whole: how many instances may be ejected, and when all are used.

use std::cmp::Reverse;
use std::time::Instant;

use super::{Health, HealthEvent, Trust, Why};
use crate::config::settings::HealthSettings;

/// Result of a judgement of one service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Share of its keys that each instance gets, in percent, in the order given; 0 = none.
    pub shares: Vec<u8>,
    /// Whether too few are healthy, so that all get all their keys: a suspect is better than none.
    pub panic: bool,
    /// Changes, each with the index of its instance.
    pub events: Vec<(usize, HealthEvent)>,
    /// Time of the next judgement, if nothing happens before.
    pub next: Option<Instant>,
}

/// Number of `instances` that may be ejected at once: the percentage, but one of several in any
/// case, and never all.
fn ejected_max(settings: &HealthSettings, instances: usize) -> usize {
    if settings.ejected_percent_max == 0 {
        return 0;
    }
    let share = instances * settings.ejected_percent_max as usize / 100;
    share.max(1).min(instances.saturating_sub(1))
}

/// Makes the changes that are due in one service, to its instances that do not drain. To be called
/// after each input to one of them, when one comes or goes or the settings change, and at `next`.
///
/// An instance on trial keeps its place among the ejected ones, so that there is always room for it
/// to go back; only when instances went away meanwhile there may be none. Then ejections end early,
/// too.
pub fn judge(settings: &HealthSettings, service: &mut [&mut Health], now: Instant) -> Verdict {
    let mut events = each(service, |health| health.advance(settings, now));
    let max = ejected_max(settings, service.len());
    events.extend(release_excess(settings, service, max, now));
    events.extend(eject_due(settings, service, max, now));
    events.extend(each(service, |health| health.try_again(settings, now)));
    let healthy = service.iter().filter(|h| !h.is_down() && !h.is_ejected()).count();
    let panic = healthy * 100 < settings.panic_percent as usize * service.len();
    let share = |h: &&mut Health| if panic { 100 } else { h.share_percent(settings, now) };
    Verdict {
        shares: service.iter().map(share).collect(),
        panic,
        events,
        next: service.iter().filter_map(|h| h.next_change(settings, now)).min(),
    }
}

/// Applies `act` to all instances. Returns the changes, with the indices of the instances.
fn each(
    service: &mut [&mut Health],
    act: impl Fn(&mut Health) -> Option<HealthEvent>,
) -> Vec<(usize, HealthEvent)> {
    let act = |(index, health): (usize, &mut &mut Health)| Some((index, act(health)?));
    service.iter_mut().enumerate().filter_map(act).collect()
}

/// Ends the ejections that would end first, until no more than `max` are left.
fn release_excess(
    settings: &HealthSettings,
    service: &mut [&mut Health],
    max: usize,
    now: Instant,
) -> Vec<(usize, HealthEvent)> {
    let until = |(index, health): (usize, &&mut Health)| match health.trust {
        Trust::Ejected { until, .. } => Some((until, index)),
        Trust::Trusted { .. } | Trust::Trial { .. } | Trust::Warming { .. } => None,
    };
    let mut ejected: Vec<_> = service.iter().enumerate().filter_map(until).collect();
    ejected.sort_unstable();
    let excess = ejected.len().saturating_sub(max);
    let released = ejected[..excess].iter();
    released.filter_map(|(_, i)| Some((*i, service[*i].release(settings, now)?))).collect()
}

/// Ejects the instances that failed enough while there is room: first those that fail their trial,
/// then by failures. One that finds no room keeps its count and is judged again.
fn eject_due(
    settings: &HealthSettings,
    service: &mut [&mut Health],
    max: usize,
    now: Instant,
) -> Vec<(usize, HealthEvent)> {
    let wants = |(index, health): (usize, &&mut Health)| {
        Some((index, health.wants_ejection(settings, now)?))
    };
    let mut due: Vec<(usize, Why)> = service.iter().enumerate().filter_map(wants).collect();
    due.sort_by_key(|(i, _)| Reverse((service[*i].is_on_trial(), service[*i].row(settings))));
    let mut events = Vec::new();
    for (index, why) in due {
        let ejected = service.iter().filter(|h| h.is_ejected()).count();
        let on_trial = service.iter().filter(|h| h.is_on_trial()).count();
        let taken = if service[index].is_on_trial() { ejected } else { ejected + on_trial };
        if taken < max {
            events.push((index, service[index].eject(settings, why, now)));
        }
    }
    events
}
