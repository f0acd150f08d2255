//! `/tenants` and `/stats?tenant=`: what tenants use, and their quotas.

use std::cmp::Reverse;

use serde_json::{Map, Value, json};

use super::{Overview, reports};
use crate::ids::TenantId;
use crate::routing::Tenant;
use crate::stats::{Report, TenantCounter, TenantReport};

/// Tenants in one answer.
pub const TOP_MAX: usize = 1_000;

/// Use of one tenant by some shards.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Use {
    pub counts: [u64; TenantCounter::ALL.len()],
    pub connections: u64,
    queued_bytes: u64,
    dedup_ids: u64,
}

impl Use {
    /// Sum of what these shards report.
    pub fn of<'a>(id: TenantId, reports: impl Iterator<Item = &'a Report>) -> Self {
        let mut sum = Self::default();
        for found in reports.filter_map(|report| find(report, id)) {
            sum.counts.iter_mut().zip(found.counts).for_each(|(sum, count)| *sum += count);
            sum.connections += found.connections;
            sum.queued_bytes += found.queued_bytes;
            sum.dedup_ids += found.dedup_ids;
        }
        sum
    }

    fn fields(&self) -> Map<String, Value> {
        let counts = TenantCounter::ALL.iter().zip(self.counts);
        let counts: Map<_, _> =
            counts.map(|(counter, n)| (counter.name().to_owned(), n.into())).collect();
        let fields = [
            ("connections", self.connections.into()),
            ("queued_bytes", self.queued_bytes.into()),
            ("dedup_ids", self.dedup_ids.into()),
            ("counters", counts.into()),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

fn find(report: &Report, id: TenantId) -> Option<&TenantReport> {
    report.tenants.iter().find(|tenant| tenant.id == id)
}

/// The tenants with the most messages, at most `top`.
pub fn tenants(overview: &Overview, top: usize) -> Value {
    let table = &overview.directory.snapshot.tenants;
    let mut all: Vec<(&Tenant, Use)> =
        table.list().iter().map(|t| (t, Use::of(t.id, reports(overview)))).collect();
    let messages = |used: &Use| used.counts[TenantCounter::Messages as usize];
    all.sort_by(|(a, used_by_a), (b, used_by_b)| {
        Reverse(messages(used_by_a)).cmp(&Reverse(messages(used_by_b))).then(a.name.cmp(&b.name))
    });
    let count = all.len();
    all.truncate(top.min(TOP_MAX));
    json!({
        "tenants": count,
        "top": all.iter().map(|(tenant, used)| one(tenant, used)).collect::<Vec<_>>(),
        "top_by": "messages since the tenant was configured",
    })
}

/// One tenant in sum and by shard. The error is one line: it is not configured.
pub fn tenant(overview: &Overview, name: &str) -> Result<Value, String> {
    let table = &overview.directory.snapshot.tenants;
    let found = table.get(TenantId::of(name)).filter(|tenant| *tenant.name == *name);
    let Some(tenant) = found else {
        let shown: String = name.chars().take(64).collect();
        return Err(format!("no [[tenant]] is named {shown:?}; GET /tenants lists them"));
    };
    let mut body = one(tenant, &Use::of(tenant.id, reports(overview)));
    let shard = |report: &Report| {
        let mut fields = Use::of(tenant.id, std::iter::once(report)).fields();
        fields.insert("shard".into(), report.shard.0.into());
        Value::Object(fields)
    };
    body["shards"] = reports(overview).map(shard).collect();
    Ok(body)
}

fn one(tenant: &Tenant, used: &Use) -> Value {
    let mut fields = used.fields();
    let quota = &tenant.quota;
    fields.insert("name".into(), (*tenant.name).into());
    fields.insert("weight".into(), tenant.weight.into());
    fields.insert("routes".into(), tenant.routes.len().into());
    fields.insert(
        "quota".into(),
        json!({
            "connections_max": quota.connections_max,
            "connects_per_s": quota.connects_per_s,
            "messages_per_s": quota.messages_per_s,
            "bytes_per_s": quota.bytes_per_s,
            "queued_bytes_max": quota.queued_bytes_max,
            "dedup_ids_max": quota.dedup_ids_max,
        }),
    );
    Value::Object(fields)
}
