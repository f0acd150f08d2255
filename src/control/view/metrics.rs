//! `/metrics`: Prometheus text 0.0.4, made of one gathering at each scrape. Labels are shards,
//! words of this program, and names of the configuration and the sources: nothing that a client
//! chooses.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use hdrhistogram::Histogram as Recorded;
use prometheus::TextEncoder;
use prometheus::proto::{
    Bucket, Counter as Count, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use super::tenants::Use;
use super::{Overview, ProcessInfo, Sum, fault_name, present, reports, seen_by, standing};
use crate::control::active_config::Reloads;
use crate::control::jwks::TENANT_SOURCE;
use crate::control::shards::{ShardState, ShardView};
use crate::control::sources::SourceState;
use crate::ids::InstanceId;
use crate::message::{EventKind, EventResult, Reason};
use crate::routing::{Instance, OTHER_TENANTS, Tenant};
use crate::stats::{Counter, Gauges, InstanceReport, Report, Stage, TenantCounter};

/// Upper bounds of the buckets, in microseconds: 1, 2.5, 5 a decade from 50 us, which is a message
/// through an idle gateway, to a minute, which is an hour's worth of timeouts.
const BUCKETS_US: [u64; 19] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// Function that makes the metric of an instance with these labels.
type MakeMetric<'a> = &'a dyn Fn(&Instance, &[(&str, &str)]) -> Metric;

/// Gauge of a shard: name, help and value.
type Level = (&'static str, &'static str, fn(&Gauges) -> f64);

const LEVELS: [Level; 32] = [
    ("connections", "Open connections, handshakes included.", |g| g.connections as f64),
    ("sessions", "Upgraded connections.", |g| g.sessions as f64),
    ("sessions_resumable", "Sessions that can be resumed.", |g| g.sessions_resumable as f64),
    ("sessions_away", "Sessions without a connection.", |g| g.sessions_away as f64),
    ("session_kept_bytes", "Bytes of frames kept for sessions.", |g| g.session_kept_bytes as f64),
    ("unauthenticated", "Connections that are not known yet.", |g| g.unauthenticated as f64),
    ("limited_users", "Users that limits are kept for.", |g| g.limited_users as f64),
    ("limited_addresses", "Addresses that limits are kept for.", |g| g.limited_addresses as f64),
    ("unanswered_messages", "Messages without an answer.", |g| g.unanswered as f64),
    ("queue_messages", "Messages waiting in queues.", |g| g.queue_items as f64),
    ("queue_bytes", "Payload bytes waiting in queues.", |g| g.queue_bytes as f64),
    ("queue_usage_ratio", "Fill of the fuller of both caps of the queue.", |g| g.usage_ratio),
    ("throttling", "Whether the shard throttles.", |g| f64::from(g.is_throttling)),
    ("cache_entries", "Entries in the route cache.", |g| g.cache_entries as f64),
    ("cache_active_entries", "Unexpired entries in the route cache.", |g| g.cache_active as f64),
    ("dedup_entries", "Ids in the dedup window.", |g| g.dedup_entries as f64),
    ("dedup_bytes", "Bytes held by the dedup window.", |g| g.dedup_bytes as f64),
    ("calls_in_flight", "Calls to services in flight.", |g| g.calls_in_flight as f64),
    ("slow_owners", "Owners whose messages on a route were slow lately.", |g| g.slow_owners as f64),
    ("outbox_bytes", "Bytes that clients have not taken yet.", |g| g.outbox_bytes as f64),
    ("connection_bytes", "Memory that connections hold.", |g| g.connection_bytes as f64),
    ("groups", "Groups with members on the shard.", |g| g.groups as f64),
    ("group_members", "Memberships of sessions in groups.", |g| g.group_members as f64),
    ("group_log_bytes", "Bytes of pushes that groups keep.", |g| g.group_log_bytes as f64),
    ("group_passes", "Groups whose members are told of pushes now.", |g| g.group_passes as f64),
    ("group_lane_depth", "Items of other shards about groups.", |g| g.group_lane_items as f64),
    ("pushes_waiting", "Pushes that wait for slow clients.", |g| g.pushes_waiting as f64),
    ("events_waiting", "Events that services were not told yet.", |g| g.events_waiting as f64),
    ("push_waves", "Pushes on their way to all of a tenant or all.", |g| g.push_waves as f64),
    ("push_ids", "Ids of pushes that are remembered.", |g| g.push_ids as f64),
    ("sessions_indexed", "Sessions that pushes find.", |g| g.sessions_indexed as f64),
    ("users_indexed", "Users that pushes find.", |g| g.users_indexed as f64),
];

/// Text of all metrics. The error is one line.
pub fn metrics(info: &ProcessInfo, overview: &Overview) -> Result<String, String> {
    let mut families = Vec::new();
    process(info, overview, &mut families);
    of_shards(overview, &mut families);
    certificates(overview, &mut families);
    stages(overview, &mut families);
    instances(overview, &mut families);
    tenants(overview, &mut families);
    discovery(overview, &mut families);
    super::pushes::metrics(&overview.pushes, &mut families);
    // A family without a series shows nothing (and the encoder takes none).
    families.retain(|family| !family.get_metric().is_empty());
    TextEncoder::new().encode_to_string(&families).map_err(|error| error.to_string())
}

pub(super) fn family(
    name: &str,
    help: &str,
    kind: MetricType,
    metrics: impl IntoIterator<Item = Metric>,
) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(format!("shardgate_{name}"));
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics.into_iter().collect());
    family
}

fn labels(pairs: &[(&str, &str)]) -> Vec<LabelPair> {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    pairs.iter().map(pair).collect()
}

pub(super) fn gauge(pairs: &[(&str, &str)], value: f64) -> Metric {
    let mut metric = Metric::from_label(labels(pairs));
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    metric.set_gauge(gauge);
    metric
}

pub(super) fn count(pairs: &[(&str, &str)], value: u64) -> Metric {
    let mut metric = Metric::from_label(labels(pairs));
    let mut count = Count::default();
    count.set_value(value as f64);
    metric.set_counter(count);
    metric
}

fn process(info: &ProcessInfo, overview: &Overview, out: &mut Vec<MetricFamily>) {
    let directory = &overview.directory;
    let mut level = |name, help, value| {
        out.push(family(name, help, MetricType::GAUGE, [gauge(&[], value)]));
    };
    level("uptime_seconds", "Time since the start.", info.started.elapsed().as_secs_f64());
    level("draining", "Whether the gateway stops.", f64::from(overview.draining));
    level("snapshot_version", "Version that is published.", directory.snapshot.version as f64);
    if let Some((_, problems)) = &directory.reloads.last {
        let ok = f64::from(problems.is_empty());
        level("last_reload_ok", "Whether the last reload was taken.", ok);
    }
    let version = [("version", env!("CARGO_PKG_VERSION")), ("node", info.node.as_str())];
    let build = gauge(&version, 1.0);
    out.push(family("build_info", "What runs here.", MetricType::GAUGE, [build]));
    let Reloads { taken, refused, .. } = directory.reloads;
    let reloads = [count(&[("result", "ok")], taken), count(&[("result", "refused")], refused)];
    out.push(family("reloads_total", "Reloads by result.", MetricType::COUNTER, reloads));
    let dropped = info.log_dropped.iter().map(|d| count(&[], d.get() as u64));
    let help = "Log lines lost because stderr did not take them.";
    out.push(family("log_lines_dropped_total", help, MetricType::COUNTER, dropped));
}

fn of_shards(overview: &Overview, out: &mut Vec<MetricFamily>) {
    let is_up = |s: &ShardView| !s.silent && s.state == ShardState::Ready;
    let up = overview
        .shards
        .iter()
        .map(|s| gauge(&[("shard", &s.shard.to_string())], f64::from(is_up(s))));
    out.push(family("shard_up", "Whether the shard serves and answers.", MetricType::GAUGE, up));
    let each = |of: &dyn Fn(&Report) -> f64| -> Vec<Metric> {
        let one = |r: &Report| gauge(&[("shard", &r.shard.to_string())], of(r));
        reports(overview).map(one).collect()
    };
    let help = "Version of the snapshot that the shard works by.";
    let versions = each(&|report| report.gauges.snapshot_version as f64);
    out.push(family("shard_snapshot_version", help, MetricType::GAUGE, versions));
    for (name, help, of) in LEVELS {
        out.push(family(name, help, MetricType::GAUGE, each(&|report| of(&report.gauges))));
    }
    for &counter in Counter::ALL {
        let one = |r: &Report| count(&[("shard", &r.shard.to_string())], r.counters.get(counter));
        let name = format!("{}_total", counter.name());
        let counts = reports(overview).map(one);
        out.push(family(&name, counter.help(), MetricType::COUNTER, counts));
    }
    let reasons = reports(overview).flat_map(|report| {
        let shard = report.shard.to_string();
        let one = move |(reason, n): (&Reason, u64)| {
            count(&[("shard", &shard), ("reason", reason.name())], n)
        };
        Reason::ALL.iter().zip(report.reasons).map(one).collect::<Vec<_>>()
    });
    out.push(family("refusals_total", "Error answers by reason.", MetricType::COUNTER, reasons));
    let faults = reports(overview).flat_map(|report| {
        let shard = report.shard.to_string();
        let faults = report.faults.iter();
        let one = |&(fault, n): &_| count(&[("shard", &shard), ("fault", fault_name(fault))], n);
        faults.map(one).collect::<Vec<_>>()
    });
    out.push(family("call_faults_total", "Failed calls by fault.", MetricType::COUNTER, faults));
    let events = reports(overview).flat_map(|report| {
        let shard = report.shard.to_string();
        let each = EventKind::ALL.iter().flat_map(|kind| EventResult::ALL.map(|end| (*kind, end)));
        let one = |(kind, end): (EventKind, EventResult)| {
            let labels = [("shard", &*shard), ("kind", kind.name()), ("result", end.name())];
            count(&labels, report.events.get(kind, end))
        };
        each.map(one).collect::<Vec<_>>()
    });
    let help = "Events to services by kind and result.";
    out.push(family("events_total", help, MetricType::COUNTER, events));
}

/// Families by tenant: those that ask for it by their names, all others, and clients of none, as
/// `_other`; so the sum of a family is the figure of the whole gateway.
fn tenants(overview: &Overview, out: &mut Vec<MetricFamily>) {
    let list = overview.directory.snapshot.tenants.list();
    let (named, unnamed): (Vec<_>, Vec<_>) = list.iter().partition(|t| t.has_metrics);
    if named.is_empty() {
        return;
    }
    let used = |tenants: Vec<&Tenant>| -> Vec<(Arc<str>, Use)> {
        let of = |tenant: &Tenant| (tenant.name.clone(), Use::of(tenant.id, reports(overview)));
        tenants.into_iter().map(of).collect()
    };
    let (named, unnamed) = (used(named), used(unnamed));
    let sum = Sum::of(reports(overview));
    let all = |counter: Counter| sum.counters.get(counter);
    let help = "Upgraded connections of a tenant's users.";
    let of = |used: &Use| used.connections;
    let other = left(sum.gauges.sessions, &named, of);
    let each = named.iter().map(|(name, used)| gauge(&[("tenant", name)], of(used) as f64));
    let each = each.chain([gauge(&[("tenant", OTHER_TENANTS)], other as f64)]);
    out.push(family("tenant_connections", help, MetricType::GAUGE, each));
    for counter in TenantCounter::ALL {
        let of = |used: &Use| used.counts[counter as usize];
        let other = match counter {
            TenantCounter::Messages => {
                let kinds =
                    [Counter::SystemMessages, Counter::BusinessMessages, Counter::GatewayMessages];
                left(kinds.map(all).iter().sum(), &named, of)
            }
            TenantCounter::MessageBytes => left(all(Counter::MessageBytes), &named, of),
            TenantCounter::Answers => left(all(Counter::Answers), &named, of),
            TenantCounter::Errors => left(sum.reasons.iter().sum(), &named, of),
            // Nobody else has a quota.
            TenantCounter::ConnectionsRefused
            | TenantCounter::ConnectsRefused
            | TenantCounter::RateRefused
            | TenantCounter::RoomRefused => unnamed.iter().map(|(_, used)| of(used)).sum(),
        };
        let each = named.iter().map(|(name, used)| count(&[("tenant", name)], of(used)));
        let each = each.chain([count(&[("tenant", OTHER_TENANTS)], other)]);
        let name = format!("tenant_{}_total", counter.name());
        out.push(family(&name, counter.help(), MetricType::COUNTER, each));
    }
}

/// The part of `whole` that none of the named tenants has.
fn left(whole: u64, named: &[(Arc<str>, Use)], of: impl Fn(&Use) -> u64) -> u64 {
    whole.saturating_sub(named.iter().map(|(_, used)| of(used)).sum())
}

fn certificates(overview: &Overview, out: &mut Vec<MetricFamily>) {
    let all = overview.directory.certificates.iter();
    let each = all.map(|c| gauge(&[("certificate", &c.file)], c.expires as f64));
    let help = "Unix time after which the certificate does not hold.";
    out.push(family("tls_certificate_expires_seconds", help, MetricType::GAUGE, each));
}

fn stages(overview: &Overview, out: &mut Vec<MetricFamily>) {
    let of_shard = |report: &Report| {
        let shard = report.shard.to_string();
        let histograms = &report.histograms;
        Stage::ALL.map(|stage| {
            times(&[("shard", &shard), ("stage", stage.name())], histograms.get(stage))
        })
    };
    let all = reports(overview).flat_map(of_shard);
    let help = "Where the time of a message goes, by stage.";
    out.push(family("stage_seconds", help, MetricType::HISTOGRAM, all));
}

/// Metric of times in microseconds. A recorded value counts in the first bucket that holds the
/// lowest value it may stand for.
pub(super) fn times(pairs: &[(&str, &str)], recorded: &Recorded<u64>) -> Metric {
    let mut counts = [0; BUCKETS_US.len()];
    for step in recorded.iter_recorded() {
        let us = recorded.lowest_equivalent(step.value_iterated_to());
        let index = BUCKETS_US.partition_point(|bound| *bound < us);
        if let Some(count) = counts.get_mut(index) {
            *count += step.count_at_value();
        }
    }
    let mut sum = 0;
    let bucket = |(bound, n): (u64, u64)| {
        sum += n;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(bound as f64 / 1e6);
        bucket.set_cumulative_count(sum);
        bucket
    };
    let mut histogram = Histogram::default();
    histogram.set_bucket(BUCKETS_US.into_iter().zip(counts).map(bucket).collect());
    histogram.set_sample_count(recorded.len());
    histogram.set_sample_sum(recorded.mean() * recorded.len() as f64 / 1e6);
    let mut metric = Metric::from_label(labels(pairs));
    metric.set_histogram(histogram);
    metric
}

fn instances(overview: &Overview, out: &mut Vec<MetricFamily>) {
    let snapshot = &overview.directory.snapshot;
    let each = |make: MakeMetric<'_>| -> Vec<Metric> {
        let one = |instance: &Instance| {
            let service = &snapshot.services[usize::from(instance.service.0)].name;
            make(instance, &[("service", service), ("instance", &instance.name)])
        };
        snapshot.instances.iter().map(one).collect()
    };
    let sum = |id: InstanceId, of: fn(&InstanceReport) -> u64| -> u64 {
        reports(overview).filter_map(|report| seen_by(report, id)).map(of).sum()
    };
    let mut level = |name, help, of: &dyn Fn(&Instance) -> f64| {
        let metrics = each(&|instance, pairs| gauge(pairs, of(instance)));
        out.push(family(name, help, MetricType::GAUGE, metrics));
    };
    level("instance_connected_shards", "Shards with a connection to the instance.", &|i| {
        sum(i.id, |seen| seen.connected.into()) as f64
    });
    level("instance_waiting_messages", "Messages waiting for the instance.", &|i| {
        sum(i.id, |seen| seen.waiting) as f64
    });
    level("instance_calls_in_flight", "Calls to the instance in flight.", &|i| {
        sum(i.id, |seen| seen.in_flight) as f64
    });
    level("instance_share_ratio", "Share of its keys that the instance gets.", &|i| {
        f64::from(i.share.get()) / 100.0
    });
    level("instance_draining", "Whether the instance gets nothing new.", &|i| {
        f64::from(i.draining)
    });
    let standings = each(&|instance, pairs| {
        let (word, _) = standing(overview, instance.id);
        gauge(&[pairs, &[("standing", word)]].concat(), 1.0)
    });
    let help = "How the instance stands, in the label.";
    out.push(family("instance_standing", help, MetricType::GAUGE, standings));
    let mut counted = |name, help, of: fn(&InstanceReport) -> u64| {
        let metrics = each(&|instance, pairs| count(pairs, sum(instance.id, of)));
        out.push(family(name, help, MetricType::COUNTER, metrics));
    };
    counted("instance_ok_total", "Messages that the instance answered with OK.", |seen| seen.ok);
    counted("instance_failed_total", "Messages to the instance that failed.", |seen| seen.failed);
    let panics = present(overview).map(|service| {
        let panics = overview.directory.panicking.contains(&service.name);
        gauge(&[("service", &service.name)], f64::from(panics))
    });
    let help = "Whether too few instances are healthy, so that all are used.";
    out.push(family("service_panicking", help, MetricType::GAUGE, panics));
}

/// The sources by the names that metrics show. Key sets of tenants without `metrics = true`, of
/// which there may be many, are one together; of a level, the largest is shown.
fn sources_shown(overview: &Overview) -> BTreeMap<Cow<'_, str>, Vec<&SourceState>> {
    let tenants = &overview.directory.config.tenants;
    let mut shown: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (source, state) in &overview.directory.sources {
        let is_shown = source.strip_prefix(TENANT_SOURCE).is_none_or(|name| {
            tenants.iter().any(|tenant| *tenant.name == *name && tenant.has_metrics)
        });
        let name = match is_shown {
            true => Cow::Borrowed(&**source),
            false => Cow::Owned(format!("{TENANT_SOURCE}_other")),
        };
        shown.entry(name).or_default().push(state);
    }
    shown
}

fn discovery(overview: &Overview, out: &mut Vec<MetricFamily>) {
    let sources = sources_shown(overview);
    let each = |of: &dyn Fn(&SourceState) -> f64| -> Vec<Metric> {
        let largest = |states: &[&SourceState]| states.iter().map(|s| of(s)).fold(0.0, f64::max);
        sources.iter().map(|(name, states)| gauge(&[("source", name)], largest(states))).collect()
    };
    let mut level = |name, help, metrics| out.push(family(name, help, MetricType::GAUGE, metrics));
    let stale = each(&|state| {
        let since = state.stale.as_ref().map(|(since, _)| *since);
        since.map_or(0.0, |since| overview.at.saturating_duration_since(since).as_secs_f64())
    });
    let help = "Time since the source could last be asked; 0 = it can be.";
    level("discovery_stale_seconds", help, stale);
    let help = "Instances that the source names.";
    level("discovery_instances", help, each(&|state| state.instances as f64));
    let help = "Values in the source that could not be read, the last few.";
    level("discovery_bad_values", help, each(&|state| state.bad.len() as f64));
}
