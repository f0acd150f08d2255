//! What instances and tenants had done in all at a moment, in sum over the shards.

use std::collections::HashMap;
use std::time::Instant;

use crate::ids::{InstanceId, TenantId};
use crate::stats::{CallTimes, Report, TenantCounter};

/// An instance as all shards see it.
#[derive(Clone, Debug, Default)]
pub struct InstanceTotals {
    /// Shards that have a connection to it.
    pub connected: u64,
    pub waiting: u64,
    pub in_flight: u64,
    pub ok: u64,
    pub failed: u64,
    pub times: CallTimes,
}

/// A tenant in all shards.
#[derive(Clone, Copy, Debug, Default)]
pub struct TenantTotals {
    pub counts: [u64; TenantCounter::ALL.len()],
    pub queued_bytes: u64,
    pub dedup_ids: u64,
}

/// The sums at one moment.
#[derive(Debug, Default)]
pub struct Totals {
    /// The moment; `None` = the start of the process, when all was 0.
    pub at: Option<Instant>,
    pub instances: HashMap<InstanceId, InstanceTotals>,
    pub tenants: HashMap<TenantId, TenantTotals>,
}

impl Totals {
    /// The sums of these reports.
    pub fn of<'a>(reports: impl Iterator<Item = &'a Report>, at: Instant) -> Self {
        let mut totals = Self { at: Some(at), ..Self::default() };
        for report in reports {
            for seen in &report.instances {
                let sum = totals.instances.entry(seen.instance).or_default();
                sum.connected += u64::from(seen.connected);
                sum.waiting += seen.waiting;
                sum.in_flight += seen.in_flight;
                sum.ok += seen.ok;
                sum.failed += seen.failed;
                sum.times.add(&seen.times);
            }
            for used in &report.tenants {
                let sum = totals.tenants.entry(used.id).or_default();
                sum.counts.iter_mut().zip(used.counts).for_each(|(sum, n)| *sum += n);
                sum.queued_bytes += used.queued_bytes;
                sum.dedup_ids += used.dedup_ids;
            }
        }
        totals
    }

    /// An instance, as it was then; all 0 if it was not there.
    pub fn instance(&self, id: InstanceId) -> InstanceTotals {
        self.instances.get(&id).cloned().unwrap_or_default()
    }

    /// A tenant, as it was then; all 0 if it was not there.
    pub fn tenant(&self, id: TenantId) -> TenantTotals {
        self.tenants.get(&id).copied().unwrap_or_default()
    }
}
