//! `/live`: the last five minutes second by second, and the state of everything now, made for who
//! asks each second: of rows and log lines only what has come since the last answer.

mod findings;

use serde_json::{Map, Value, json};

use self::findings::findings;
use super::health::health;
use super::{Overview, ProcessInfo, reports, standing, unreachable_why};
use crate::config::settings::ShardSettings;
use crate::control::live::row::Row;
use crate::control::live::totals::{InstanceTotals, TenantTotals, Totals};
use crate::control::live::{ROW_TIME, ROWS_MAX, Reading};
use crate::control::log::recent::Line;
use crate::routing::{Instance, Mode, Service, Tenant};
use crate::stats::{Counter, Gauges, Stage, TenantCounter};

/// Instances in one answer.
const INSTANCES_MAX: usize = 200;
/// Tenants in one answer.
const TENANTS_MAX: usize = 20;
/// Time for which an owner that was held back is shown, in microseconds: a minute.
const HELD_SHOWN_US: u64 = 60_000_000;

/// The end of an answer: what the reader has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mark {
    boot_id: u64,
    /// Number of the last row.
    pub row: u64,
    /// Number of the last line of the log.
    pub line: u64,
}

impl Mark {
    /// Reads a mark; `None` = the text is none.
    pub fn read(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '-');
        let boot_id = u64::from_str_radix(parts.next()?, 16).ok()?;
        let mut number = || parts.next()?.parse().ok();
        Some(Self { boot_id, row: number()?, line: number()? })
    }

    /// This mark, if it is of the run `boot_id`; else that of a reader who has nothing.
    pub fn of_run(self, boot_id: u64) -> Self {
        if self.boot_id == boot_id { self } else { Self::default() }
    }
}

/// An instance with its last ten to twenty seconds.
struct InstanceNow<'a> {
    instance: &'a Instance,
    service: &'a Service,
    now: InstanceTotals,
    /// Calls and messages of that time.
    lately: InstanceTotals,
    /// Calls that it may have in flight from all shards.
    slots: usize,
    standing: &'static str,
    why: Option<&'a str>,
}

/// A tenant with its last ten to twenty seconds.
struct TenantNow<'a> {
    tenant: &'a Tenant,
    now: TenantTotals,
    lately: [u64; TenantCounter::ALL.len()],
}

impl TenantNow<'_> {
    fn lately(&self, counter: TenantCounter) -> u64 {
        self.lately[counter as usize]
    }

    /// Connections and messages over a quota.
    fn refused(&self) -> u64 {
        use TenantCounter::{ConnectionsRefused, ConnectsRefused, RateRefused, RoomRefused};
        let all = [ConnectionsRefused, ConnectsRefused, RateRefused, RoomRefused];
        all.iter().map(|&counter| self.lately(counter)).sum()
    }
}

/// The body of `/live` for a reader who has all up to `mark`: `reading` has the rows, and `lines`
/// are the log's, that it lacks.
pub fn live(info: &ProcessInfo, mark: Mark, reading: &Reading, lines: &[Line]) -> Value {
    let Reading { overview, earlier, .. } = reading;
    let now = Totals::of(reports(overview), overview.at);
    let since = earlier.at.unwrap_or(info.started);
    let over_ms = overview.at.saturating_duration_since(since).as_millis() as u64;
    let mut instances = instances(overview, &now, earlier);
    let mut tenants = tenants(overview, &now, earlier);
    let found = findings(reading, &instances, &tenants);
    let (instance_count, tenant_count) = (instances.len(), tenants.len());
    // Those with the most trouble are shown, in the order of their names.
    instances.sort_by_key(|i| std::cmp::Reverse((i.lately.failed, i.now.waiting, i.lately.ok)));
    instances.truncate(INSTANCES_MAX);
    instances.sort_by_key(|i| (&i.service.name, &i.instance.name));
    let use_of = |t: &TenantNow<'_>| (t.refused(), t.lately(TenantCounter::Messages));
    tenants.sort_by_key(|t| (std::cmp::Reverse(use_of(t)), &t.tenant.name));
    tenants.truncate(TENANTS_MAX);
    let line = lines.last().map_or(mark.line, |line| line.number);
    json!({
        "mark": format!("{:x}-{}-{line}", info.boot_id, reading.newest),
        "node": info.node,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": info.started.elapsed().as_secs(),
        "row_ms": ROW_TIME.as_millis() as u64,
        "rows_max": ROWS_MAX,
        "over_ms": over_ms,
        "health": health_part(info, overview),
        "findings": found,
        "rows": reading.rows.iter().map(|row| row_json(row)).collect::<Vec<_>>(),
        "shards": overview.shards.iter().map(super::health::shard_health).collect::<Vec<_>>(),
        "instances": {
            "count": instance_count,
            "shown": instances.iter().map(instance_json).collect::<Vec<_>>(),
        },
        "tenants": {
            "count": tenant_count,
            "shown": tenants.iter().map(tenant_json).collect::<Vec<_>>(),
        },
        "held_back": held_back(overview),
        "warnings": lines.iter().map(line_json).collect::<Vec<_>>(),
    })
}

/// The part of `/health` that says whether all is well.
fn health_part(info: &ProcessInfo, overview: &Overview) -> Value {
    let (_, mut body) = health(info, overview);
    let names = ["status", "degraded_by", "warnings", "last_reload"];
    names.into_iter().map(|name| (name.to_owned(), body[name].take())).collect::<Map<_, _>>().into()
}

fn row_json(row: &Row) -> Value {
    let counters: Map<_, _> =
        row.counters.iter().map(|(c, n)| (c.name().to_owned(), (*n).into())).collect();
    let reasons: Map<_, _> =
        row.reasons.iter().map(|(r, n)| (r.name().to_owned(), (*n).into())).collect();
    let stages = Stage::ALL.iter().zip(row.stages).filter(|(_, times)| times.count > 0);
    let stages: Map<_, _> = stages
        .map(|(stage, t)| (stage.name().to_owned(), json!([t.count, t.p50_us, t.p99_us])))
        .collect();
    let shards = row.shards.iter().map(|s| {
        json!([
            s.shard.0,
            u8::from(s.is_silent),
            s.busy_permille,
            s.messages,
            s.connections,
            s.unanswered,
            s.queue_items,
            s.usage_permille,
            u8::from(s.is_throttling),
        ])
    });
    json!({
        "n": row.number,
        "unix_ms": row.unix_ms,
        "ms": row.took_ms,
        "counters": counters,
        "reasons": reasons,
        "stages": stages,
        "levels": levels(&row.levels),
        "shards": shards.collect::<Vec<_>>(),
    })
}

fn levels(g: &Gauges) -> Value {
    json!({
        "connections": g.connections,
        "sessions": g.sessions,
        "sessions_away": g.sessions_away,
        "unauthenticated": g.unauthenticated,
        "unanswered": g.unanswered,
        "queue_items": g.queue_items,
        "calls_in_flight": g.calls_in_flight,
        "slow_owners": g.slow_owners,
        "group_members": g.group_members,
    })
}

/// Instances of services that are there, in no particular order.
fn instances<'a>(overview: &'a Overview, now: &Totals, earlier: &Totals) -> Vec<InstanceNow<'a>> {
    let snapshot = &overview.directory.snapshot;
    let settings = &overview.directory.config.shards;
    let each: Vec<ShardSettings> =
        overview.shards.iter().map(|shard| settings.shard(usize::from(shard.shard.0))).collect();
    let slots = |mode: Mode| match mode {
        Mode::Batch => each.iter().map(|settings| settings.batch.in_flight_max).sum(),
        Mode::Unary => each.iter().map(|settings| settings.batch.calls_max).sum(),
    };
    let slots_of = [slots(Mode::Batch), slots(Mode::Unary)];
    let one = |instance: &'a Instance| {
        let service = &snapshot.services[usize::from(instance.service.0)];
        let (now, before) = (now.instance(instance.id), earlier.instance(instance.id));
        let lately = InstanceTotals {
            ok: now.ok.saturating_sub(before.ok),
            failed: now.failed.saturating_sub(before.failed),
            times: now.times.since(&before.times),
            ..InstanceTotals::default()
        };
        let (word, why) = standing(overview, instance.id);
        let unreachable = unreachable_why(overview, instance.id);
        InstanceNow {
            instance,
            service,
            now,
            lately,
            slots: match service.mode {
                Mode::Batch => slots_of[0],
                Mode::Unary => slots_of[1],
            },
            standing: if unreachable.is_some() { "unreachable" } else { word },
            why: unreachable.or(why),
        }
    };
    snapshot.instances.iter().map(one).collect()
}

fn instance_json(i: &InstanceNow<'_>) -> Value {
    json!({
        "id": &*i.instance.name,
        "service": &*i.service.name,
        "address": i.instance.addresses.first().to_string(),
        "standing": i.standing,
        "why": i.why,
        "draining": i.instance.draining,
        "share_percent": i.instance.share.get(),
        "connected": i.now.connected,
        "waiting": i.now.waiting,
        "in_flight": i.now.in_flight,
        "slots": i.slots,
        "calls": i.lately.times.calls(),
        "ok": i.lately.ok,
        "failed": i.lately.failed,
        "p50_us": i.lately.times.quantile(0.5),
        "p99_us": i.lately.times.quantile(0.99),
    })
}

/// All tenants, in no particular order.
fn tenants<'a>(overview: &'a Overview, now: &Totals, earlier: &Totals) -> Vec<TenantNow<'a>> {
    let one = |tenant: &'a Tenant| {
        let (now, before) = (now.tenant(tenant.id), earlier.tenant(tenant.id));
        let mut lately = now.counts;
        lately.iter_mut().zip(before.counts).for_each(|(n, before)| *n = n.saturating_sub(before));
        TenantNow { tenant, now, lately }
    };
    overview.directory.snapshot.tenants.list().iter().map(one).collect()
}

fn tenant_json(t: &TenantNow<'_>) -> Value {
    json!({
        "name": &*t.tenant.name,
        "messages": t.lately(TenantCounter::Messages),
        "answers": t.lately(TenantCounter::Answers),
        "errors": t.lately(TenantCounter::Errors),
        "refused": t.refused(),
        "queued_bytes": t.now.queued_bytes,
        "dedup_ids": t.now.dedup_ids,
    })
}

/// Owners whose messages were refused in the last minute because they had their share of a queue,
/// the latest first. An owner may be there once for each shard.
fn held_back(overview: &Overview) -> Vec<Value> {
    let mut all: Vec<(u64, Value)> = Vec::new();
    for report in reports(overview) {
        for owner in &report.held_back {
            let ago_us = report.at.since(owner.last);
            if ago_us > HELD_SHOWN_US {
                continue;
            }
            let instance = super::name_of(overview, owner.instance);
            let told = json!({
                "shard": report.shard.0,
                "session": owner.session.as_str(),
                "user": owner.user.as_deref(),
                "tenant": owner.tenant.as_deref(),
                "instance": instance,
                "full": owner.full,
                "held": owner.held,
                "refused": owner.count,
                "ago_ms": ago_us / 1000,
            });
            all.push((ago_us, told));
        }
    }
    all.sort_by_key(|(ago_us, _)| *ago_us);
    all.into_iter().map(|(_, told)| told).collect()
}

fn line_json(line: &Line) -> Value {
    json!({
        "unix_ms": line.unix_ms,
        "level": line.level.as_str(),
        "target": line.target,
        "text": &*line.text,
    })
}

/// Growth of a counter in these rows.
fn grew<'r>(rows: impl IntoIterator<Item = &'r std::sync::Arc<Row>>, counter: Counter) -> u64 {
    rows.into_iter().map(|row| row.grew(counter)).sum()
}

#[cfg(test)]
mod tests;
