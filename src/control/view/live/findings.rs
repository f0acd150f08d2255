//! Findings: sentences about the last seconds that `/health` does not say, each with the part that
//! it is about. They are for people who look, and no ground for alerts: a threshold that is wrong
//! for one gateway does no harm.

use serde_json::{Value, json};

use super::{InstanceNow, Overview, TenantNow, grew, reports};
use crate::control::live::Reading;
use crate::control::live::row::{Row, ShardRow};
use crate::stats::Counter;

/// Least p99 of an instance that counts as slow, 20 ms: below that nobody notices.
const SLOW_US: u64 = 20_000;
/// Times the p99 of the others of its service from which it counts as slow.
const SLOW_TIMES: u64 = 3;
/// Calls in ten seconds below which a p99 says nothing.
const CALLS_MIN: u64 = 10;
/// Least number of failures in ten seconds that counts, and the part of the messages in percent.
const FAILURES_MIN: u64 = 5;
const FAILURES_PERCENT: u64 = 5;
/// Rows by which shards are compared.
const SKEW_ROWS: usize = 10;
/// Times what the other shards have on average from which a shard counts as skewed.
const SKEW_TIMES: f64 = 3.0;
/// Least load of a skewed shard: a third of a core, or so many connections.
const SKEW_BUSY_PERMILLE: f64 = 333.0;
const SKEW_CONNECTIONS: f64 = 20.0;
/// Time after which an owner is not held back any more, in microseconds: ten seconds.
const HELD_US: u64 = 10_000_000;

fn finding(part: &str, name: &str, text: String) -> Value {
    json!({ "part": part, "name": name, "text": text })
}

/// All findings, by the order of the dashboard.
pub fn findings(
    reading: &Reading,
    instances: &[InstanceNow<'_>],
    tenants: &[TenantNow<'_>],
) -> Vec<Value> {
    let mut all = shards(&reading.minute);
    all.extend(instances.iter().flat_map(|one| instance(one, instances)));
    all.extend(held_back(&reading.overview));
    all.extend(clients(&reading.minute));
    all.extend(tenants.iter().filter_map(tenant));
    all
}

/// Shards that do not answer, throttle, or have far more to do than the others.
fn shards(minute: &[std::sync::Arc<Row>]) -> Vec<Value> {
    let Some(last) = minute.last() else { return Vec::new() };
    let rows = &minute[minute.len().saturating_sub(SKEW_ROWS)..];
    let mut all = Vec::new();
    for (at, shard) in last.shards.iter().enumerate() {
        let name = shard.shard.to_string();
        if shard.is_silent {
            all.push(finding("shard", &name, format!("shard {name} does not answer")));
            continue;
        }
        if shard.is_throttling {
            let percent = shard.usage_permille / 10;
            let text = format!("shard {name} throttles: its queue is {percent} % full");
            all.push(finding("shard", &name, text));
        }
        let busy = compare(rows, at, |shard| f64::from(shard.busy_permille));
        let conns = compare(rows, at, |shard| shard.connections as f64);
        if let Some((own, others)) = busy.filter(|(own, _)| *own >= SKEW_BUSY_PERMILLE) {
            let (own, others) = (own / 10.0, others / 10.0);
            let text = format!("shard {name} is {own:.0} % busy, the others {others:.0} %");
            all.push(finding("shard", &name, text));
        } else if let Some((own, others)) = conns.filter(|(own, _)| *own >= SKEW_CONNECTIONS) {
            let text =
                format!("shard {name} has {own:.0} connections, the others {others:.0} each");
            all.push(finding("shard", &name, text));
        }
    }
    all
}

/// Averages of a shard and of the others, if it has far more; `at`: its place in the rows.
fn compare(
    rows: &[std::sync::Arc<Row>],
    at: usize,
    of: impl Fn(&ShardRow) -> f64,
) -> Option<(f64, f64)> {
    let (mut own, mut others, mut count) = (0.0, 0.0, 0.0);
    for row in rows {
        own += of(row.shards.get(at)?);
        others += row.shards.iter().map(&of).sum::<f64>() - of(row.shards.get(at)?);
        count += row.shards.len() as f64 - 1.0;
    }
    let (own, others) = (own / rows.len() as f64, others / count);
    (count > 0.0 && own > others * SKEW_TIMES).then_some((own, others))
}

/// An instance that fails, is slower than the others of its service, or has all slots taken.
fn instance(one: &InstanceNow<'_>, all: &[InstanceNow<'_>]) -> Vec<Value> {
    let name = &*one.instance.name;
    let mut found = Vec::new();
    let mut add = |text: String| found.push(finding("instance", name, text));
    if let Some(why) = one.why {
        add(format!("{name} is {}: {why}", one.standing));
    }
    let (ok, failed) = (one.lately.ok, one.lately.failed);
    if failed >= FAILURES_MIN && failed * 100 >= (ok + failed) * FAILURES_PERCENT {
        add(format!("{failed} of {} messages failed at {name}", ok + failed));
    }
    let p99 = |i: &InstanceNow<'_>| {
        let times = &i.lately.times;
        times.quantile(0.99).filter(|_| times.calls() >= CALLS_MIN)
    };
    let is_other = |i: &&InstanceNow<'_>| {
        i.instance.service == one.instance.service && i.instance.id != one.instance.id
    };
    let mut others: Vec<u64> = all.iter().filter(is_other).filter_map(p99).collect();
    others.sort_unstable();
    let median = others.get(others.len() / 2).copied();
    if let (Some(own), Some(median)) = (p99(one), median)
        && own >= SLOW_US
        && own >= median * SLOW_TIMES
    {
        let [own, median] = [own, median].map(milliseconds);
        add(format!("{name} is slow: p99 {own} ms, the others of its service {median} ms"));
    }
    let (waiting, in_flight) = (one.now.waiting, one.now.in_flight);
    if waiting > 0 && in_flight >= one.slots as u64 {
        add(format!("{name} has all {in_flight} slots taken, and {waiting} messages wait for it"));
    }
    found
}

fn milliseconds(us: u64) -> String {
    if us < 10_000 {
        format!("{:.1}", us as f64 / 1000.0)
    } else {
        format!("{}", (us + 500) / 1000)
    }
}

/// Owners that are held back now.
fn held_back(overview: &Overview) -> Vec<Value> {
    let mut all = Vec::new();
    for report in reports(overview) {
        for owner in report.held_back.iter().filter(|o| report.at.since(o.last) <= HELD_US) {
            let who = match (&owner.user, &owner.tenant) {
                (Some(user), Some(tenant)) => format!("user {user} of {tenant}"),
                (Some(user), None) => format!("user {user}"),
                (None, _) => format!("session {}", owner.session.as_str()),
            };
            let at = super::super::name_of(overview, owner.instance).unwrap_or("an instance");
            let text = format!(
                "{who} is held back at {at}: {} waiting are its share, {} more were refused",
                owner.held, owner.count
            );
            all.push(finding("owner", owner.session.as_str(), text));
        }
    }
    all
}

/// Clients that read too slowly, by the last minute.
fn clients(minute: &[std::sync::Arc<Row>]) -> Vec<Value> {
    let mut all = Vec::new();
    let closed = grew(minute, Counter::ClosedSlow);
    if closed > 0 {
        let text = format!(
            "{closed} connections were closed in the last minute: their clients read \
                            too slowly (4001)"
        );
        all.push(finding("closes", "4001", text));
    }
    let missed = grew(minute, Counter::DeliveriesMissed);
    if missed > 0 {
        let text = format!(
            "{missed} pushes were missed in the last minute by members that read \
                            too slowly"
        );
        all.push(finding("pushes", "missed", text));
    }
    all
}

/// A tenant that is over its quota.
fn tenant(one: &TenantNow<'_>) -> Option<Value> {
    let (name, refused) = (&*one.tenant.name, one.refused());
    let text = format!("tenant {name} is over its quota: {refused} refused in the last seconds");
    (refused > 0).then(|| finding("tenant", name, text))
}
