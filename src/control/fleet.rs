//! Health of all instances: results of calls and of health checks go to [`super::health`], and
//! shares of keys come out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use super::compose::Member;
use super::discovery::FoundInstance;
use super::health::{CallWindow, Check, Health, HealthEvent, judge};
use super::probe::{self, CheckResult, Probe, Target};
use crate::config::settings::HealthSettings;
use crate::ids::{InstanceId, ServiceId, ShardId};
use crate::routing::Share;
use crate::stats::Signal;
use crate::tls::service::ServicesTls;

/// An instance with its health.
#[derive(Debug)]
struct FleetEntry {
    member: Member,
    health: Health,
    /// Task of the instance's health checks, while they are on.
    probe: Option<Probe>,
    share: Share,
}

/// Judgement of one instance, in words.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// State: `ok`, `unchecked`, `down`, `ejected`, `trial` or `warming`.
    pub standing: &'static str,
    /// Reason why the instance is down or ejected.
    pub why: Option<String>,
}

/// All instances, with the settings they are judged by.
#[derive(Debug)]
pub struct Fleet {
    entries: HashMap<InstanceId, FleetEntry>,
    settings: HealthSettings,
    /// TLS towards services.
    tls: ServicesTls,
    /// Services with too few healthy instances.
    panicking: BTreeSet<ServiceId>,
    /// Time of the next change that needs no event.
    next: Option<Instant>,
    seed: u64,
    /// Sender of the probes' results.
    checks: mpsc::Sender<CheckResult>,
}

impl Fleet {
    /// A fleet without instances. Probes send to `checks`; `seed` spreads them in time.
    pub fn new(
        settings: HealthSettings,
        tls: ServicesTls,
        seed: u64,
        checks: mpsc::Sender<CheckResult>,
    ) -> Self {
        let (entries, panicking) = (HashMap::new(), BTreeSet::new());
        Self { entries, settings, tls, panicking, next: None, seed, checks }
    }

    /// Takes in the present instances: starts probes of new ones, and stops those of instances that
    /// are gone.
    pub fn follow(&mut self, members: &BTreeMap<Arc<str>, Member>, now: Instant) {
        let here: HashMap<InstanceId, &Member> = members.values().map(|m| (m.id, m)).collect();
        self.entries.retain(|id, _| here.contains_key(id));
        for (id, member) in here {
            match self.entries.get_mut(&id) {
                Some(entry) => entry.member.clone_from(member),
                None => {
                    let probe = self.probe(member);
                    let (member, health) = (member.clone(), Health::new(now));
                    self.entries
                        .insert(id, FleetEntry { member, health, probe, share: Share::ALL });
                }
            }
        }
    }

    fn probe(&self, member: &Member) -> Option<Probe> {
        let seed = self.seed ^ u64::from(member.id.0);
        let checks = self.checks.clone();
        let target = target(&member.found, &self.tls);
        probe::start(member.id, target, &self.settings, seed, checks)
    }

    /// Puts other settings in force.
    pub fn configure(&mut self, settings: &HealthSettings, tls: &ServicesTls, now: Instant) {
        let asks = |s: &HealthSettings| (s.check_every, s.check_timeout);
        let asks_change = asks(&self.settings) != asks(settings);
        let changed = |m: &&Member| asks_change || !tls.same(&self.tls, &m.found.service);
        let members = self.entries.values().map(|e| &e.member).filter(changed);
        let members: Vec<Member> = members.cloned().collect();
        self.settings.clone_from(settings);
        self.tls.clone_from(tls);
        self.next = Some(now);
        for member in members {
            let probe = self.probe(&member);
            if let Some(entry) = self.entries.get_mut(&member.id) {
                if probe.is_none() {
                    // An instance that is not checked any more must not stay down for ever.
                    let event = entry.health.check(settings, Check::NotImplemented, now);
                    event.iter().for_each(|event| log_event(&entry.member, &entry.health, event));
                }
                entry.probe = probe;
            }
        }
    }

    /// Takes in results of calls that a shard made to instances.
    pub fn take_signals(&mut self, shard: ShardId, signals: &[Signal], now: Instant) {
        for signal in signals {
            let Some(entry) = self.entries.get_mut(&signal.instance) else { continue };
            let settings = &self.settings;
            (0..signal.losses).for_each(|_| entry.health.lost(settings, shard, now));
            if signal.ok || signal.failures > 0 {
                let window = CallWindow { shard, ok: signal.ok, failures: signal.failures };
                let event = entry.health.window(settings, window, now);
                event.iter().for_each(|event| log_event(&entry.member, &entry.health, event));
            }
        }
        self.next = Some(now);
    }

    /// Takes in the result of a health check.
    pub fn take_check(&mut self, result: CheckResult, now: Instant) {
        // A result that was under way when checks were switched off must not count.
        let is_answer = matches!(result.check, Check::Answered | Check::Silent);
        let is_wanted = |e: &&mut FleetEntry| is_answer || e.probe.is_some();
        let entry = self.entries.get_mut(&result.instance).filter(is_wanted);
        let Some(entry) = entry else { return };
        let event = entry.health.check(&self.settings, result.check, now);
        event.iter().for_each(|event| log_event(&entry.member, &entry.health, event));
        self.next = Some(now);
    }

    /// Time of the next [`Self::judge`].
    pub fn due(&self) -> Option<Instant> {
        self.next
    }

    /// Judges all services. Whether a share changed.
    pub fn judge(&mut self, now: Instant) -> bool {
        let mut services: BTreeMap<ServiceId, Vec<&mut FleetEntry>> = BTreeMap::new();
        for entry in self.entries.values_mut().filter(|e| !e.member.is_draining()) {
            services.entry(entry.member.service).or_default().push(entry);
        }
        let mut changed = false;
        let mut panicking = BTreeSet::new();
        self.next = None;
        for (service, mut entries) in services {
            entries.sort_by(|a, b| a.member.found.name.cmp(&b.member.found.name));
            let mut healths: Vec<&mut Health> = entries.iter_mut().map(|e| &mut e.health).collect();
            let verdict = judge(&self.settings, &mut healths, now);
            for (index, event) in &verdict.events {
                log_event(&entries[*index].member, &entries[*index].health, event);
            }
            for (entry, percent) in entries.iter_mut().zip(verdict.shares) {
                let share = Share::percent(percent);
                changed |= entry.share != share;
                entry.share = share;
                if entry.health.take_question() {
                    let Member { id, found, .. } = &entry.member;
                    let target = target(found, &self.tls);
                    let limit = self.settings.check_timeout;
                    probe::ask_whether_it_lives(*id, &target, limit, self.checks.clone());
                }
            }
            if verdict.panic {
                panicking.insert(service);
            }
            self.next = [self.next, verdict.next].into_iter().flatten().min();
            let name = &entries[0].member.found.service;
            match (self.panicking.contains(&service), verdict.panic) {
                (false, true) => tracing::error!(
                    service = %name,
                    "service_panic: too few instances are healthy, so all are used; read their \
                     logs, or lower health.panic_percent"
                ),
                (true, false) => tracing::info!(
                    service = %name,
                    "service_recovered: enough instances are healthy again, and only they are used"
                ),
                (true, true) | (false, false) => {}
            }
        }
        self.panicking = panicking;
        changed
    }

    /// Share of its keys that an instance gets.
    pub fn share(&self, id: InstanceId) -> Share {
        self.entries.get(&id).map_or(Share::ALL, |entry| entry.share)
    }

    /// Judgements of all instances.
    pub fn judged(&self) -> HashMap<InstanceId, Judgement> {
        let judged = |(id, entry): (&InstanceId, &FleetEntry)| {
            let health = &entry.health;
            (*id, Judgement { standing: health.standing().name(), why: health.why() })
        };
        self.entries.iter().map(judged).collect()
    }

    /// Names of services whose instances are all used because too few are healthy.
    pub fn panicking(&self) -> Vec<Arc<str>> {
        let in_panic = |e: &&FleetEntry| self.panicking.contains(&e.member.service);
        let names = self.entries.values().filter(in_panic).map(|e| e.member.found.service.clone());
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// Place of an instance, with TLS if its service has that.
fn target(found: &FoundInstance, tls: &ServicesTls) -> Target {
    Target { addresses: found.addresses.clone(), tls: tls.of(&found.service).cloned() }
}

/// Logs a change of an instance's health.
fn log_event(member: &Member, health: &Health, event: &HealthEvent) {
    let (service, instance) = (&*member.found.service, &*member.found.name);
    let standing = health.standing().name();
    macro_rules! info {
        ($text:literal) => {
            tracing::info!(service, instance, standing, $text)
        };
    }
    match event {
        HealthEvent::Ejected { why, length, nth } => tracing::warn!(
            service,
            instance,
            standing,
            %why,
            nth,
            length_ms = length.as_millis() as u64,
            "instance_ejected: its calls fail, so other instances get its keys for this time"
        ),
        HealthEvent::CheckedDown { why } => tracing::warn!(
            service,
            instance,
            standing,
            why,
            "instance_checked_down: its health checks fail, so other instances get its keys"
        ),
        HealthEvent::OnTrial => {
            info!("instance_on_trial: it answers again, so it gets a small part of its keys")
        }
        HealthEvent::Warming => info!("instance_warming: it gets its keys back step by step"),
        HealthEvent::Trusted => info!("instance_trusted: it gets all its keys"),
        HealthEvent::Forgiven => info!("instance_forgiven: its past ejections count no more"),
        HealthEvent::Checked => info!("instance_checked: it answers health checks"),
        HealthEvent::CheckedUp => info!("instance_checked_up: its health checks succeed again"),
        HealthEvent::Unchecked => {
            info!("instance_unchecked: it has no health checks, so it counts as healthy");
        }
    }
}
