//! The way of pushes from a caller to the shards, and of their answers back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::answer;
use super::callers::Caller;
use super::desk::{Desk, Inner, Job, Rules, Waits};
use super::receipts::Awaited;
use super::refusal::Refused;
use super::rights::kind;
use super::tally::{Door, KINDS};
use crate::clock::unix_now;
use crate::config::settings::{PushSettings, Tenants};
use crate::ids::TenantId;
use crate::message::Reason;
use crate::push::{Addressees, GroupName, Origin, Push, Submit};
use crate::routing::addressing::by_shard;
use crate::wire::push::generated as proto;
use crate::wire::push::{Arrived, CheckedPush, Limits, Target, check};

/// Sends the pushes of a call to the shards, each for itself, and waits for what is known of them.
/// The whole call is refused if the gateway takes none, if there are too many, or if the rate of
/// the caller let none in.
pub async fn send(
    desk: &Arc<Desk>,
    caller: &Arc<Caller>,
    door: Door,
    pushes: Vec<proto::PushMessage>,
) -> Result<proto::SendResponse, Refused> {
    desk.open()?;
    let rules = desk.lock().rules.clone();
    let (count, max) = (pushes.len(), rules.config.gateway.push.batch_max);
    if count > max {
        let why = format!("pushes: {count} in one call, of which push.batch_max allows {max}");
        let refused = Refused::new(Reason::BadMessage, why);
        desk.lock().note_refusal(caller, &refused, Instant::now());
        return Err(refused);
    }
    let sending = Sending { desk: desk.clone(), caller: caller.clone(), door, rules };
    let results = match caller.deliveries_per_s {
        0 => sending.at_once(pushes).await,
        // What is owed is charged though the caller goes away.
        _ => tokio::spawn(sending.in_turn(pushes)).await.unwrap_or_default(),
    };
    let limited = Reason::RateLimited.name();
    match results.first() {
        Some(first) if results.iter().all(|result| result.reason == limited) => {
            let wait = Duration::from_millis(first.retry_after_ms.into());
            Err(Refused::new(Reason::RateLimited, first.message.clone()).after(wait))
        }
        Some(_) | None => Ok(proto::SendResponse { results }),
    }
}

/// The pushes of one call, or of one request of a feed.
#[derive(Clone)]
pub struct Sending {
    pub desk: Arc<Desk>,
    pub caller: Arc<Caller>,
    pub door: Door,
    pub rules: Arc<Rules>,
}

/// A push that was sent.
pub struct Sent {
    waits: Waits,
    /// Whether its answer has counts.
    has_counts: bool,
    wait: Duration,
}

impl Sent {
    async fn result(self) -> (proto::PushResult, u64) {
        let fates = self.waits.outcomes().await;
        let totals = fates.iter().map(|(_, outcome)| outcome.total());
        let deliveries = totals.map(|all| all.written + all.queued + all.kept).sum();
        let wait_ms = self.wait.as_millis() as u64;
        (answer::sent(&fates, self.has_counts, wait_ms), deliveries)
    }
}

impl Sending {
    /// Sends all of them, and then waits.
    async fn at_once(self, pushes: Vec<proto::PushMessage>) -> Vec<proto::PushResult> {
        let sent: Vec<_> = pushes.into_iter().map(|push| self.push(push, false)).collect();
        let mut results = Vec::with_capacity(sent.len());
        for push in sent {
            let result = match push {
                Ok(sent) => self.result(sent).await,
                Err(refused) => answer::refused(&refused),
            };
            results.push(result);
        }
        results
    }

    /// Waits for what is known of a push, and takes its deliveries into account.
    pub async fn result(&self, sent: Sent) -> proto::PushResult {
        let (result, deliveries) = sent.result().await;
        self.note_deliveries(deliveries);
        result
    }

    /// Sends one after the other, and one at a time of all calls of the caller: its size is known
    /// when it was counted, and the next one comes in only if the rate allows.
    pub async fn in_turn(self, pushes: Vec<proto::PushMessage>) -> Vec<proto::PushResult> {
        let mut results = Vec::with_capacity(pushes.len());
        for push in pushes {
            let turn = self.desk.lock().account(&self.caller, Instant::now()).turn.clone();
            let _turn = turn.lock().await;
            let result = match self.push(push, true) {
                Ok(sent) => self.result(sent).await,
                Err(refused) => answer::refused(&refused),
            };
            results.push(result);
        }
        results
    }

    fn note_deliveries(&self, deliveries: u64) {
        if deliveries > 0 {
            let mut inner = self.desk.lock();
            inner.account(&self.caller, Instant::now()).deliveries.charge(deliveries);
            inner.tally.of(&self.caller.name).deliveries += deliveries;
        }
    }

    /// Sends one push, and counts it or its refusal. With `is_charged` its deliveries are counted
    /// though the caller does not ask for that.
    pub fn push(&self, push: proto::PushMessage, is_charged: bool) -> Result<Sent, Refused> {
        let now = Instant::now();
        let mut inner = self.desk.lock();
        let sent = self.try_push(&mut inner, push, is_charged, now);
        if let Err(refused) = &sent {
            inner.note_refusal(&self.caller, refused, now);
        }
        sent
    }

    fn try_push(
        &self,
        inner: &mut Inner,
        push: proto::PushMessage,
        is_charged: bool,
        now: Instant,
    ) -> Result<Sent, Refused> {
        inner.enter(&self.caller, now)?;
        let gateway = &self.rules.config.gateway;
        let limits = Limits {
            bytes_max: gateway.push.bytes_max,
            users_max: gateway.push.users_max,
            gateway_ids: gateway.gateway_ids,
            has_tenants: gateway.auth.tenants == Tenants::Many,
        };
        let arrived = Arrived { now: inner.now(now), unix_ms: unix_now().as_millis() as i64 };
        let has_class = push.priority != 0;
        let mut checked = check(push, &limits, arrived)?;
        let asked = has_class.then_some(checked.body.priority);
        let class = self.caller.class(asked)?;
        checked.body.priority = class;
        self.caller.may_push(&checked.to, &checked.tenant)?;
        if let Target::Groups(groups) = &checked.to {
            check_rules(groups, &gateway.push)?;
        }
        let kind = kind_place(&checked.to);
        let (has_counts, wait) =
            (checked.is_counted, Duration::from_millis(checked.wait_ms.into()));
        let jobs = self.jobs(inner, checked, has_counts || is_charged);
        let waits = inner.send(jobs, class)?;
        inner.tally.of(&self.caller.name).pushes[self.door as usize][kind] += 1;
        Ok(Sent { waits: Waits::new(&self.desk, waits, now + wait), has_counts, wait })
    }

    /// The work of a push: one job a group, or one for all its addressees.
    fn jobs(&self, inner: &mut Inner, checked: CheckedPush, is_counted: bool) -> Vec<Job> {
        let CheckedPush { tenant, to, mut body, .. } = checked;
        let tenant = TenantId::of(&tenant);
        // Copied out of the request, which has up to 1 MiB and would live as long as one of its
        // payloads is kept.
        body.payload = Bytes::copy_from_slice(&body.payload);
        let body = Arc::new(body);
        let to = to.addressees();
        let shards = inner.shards();
        let mut jobs = Vec::with_capacity(to.len());
        for to in to {
            let number = inner.receipts.number();
            let group = match &to {
                Addressees::Group(group) => Some(group.clone()),
                Addressees::Sessions(_)
                | Addressees::Users(_)
                | Addressees::Tenant
                | Addressees::Everyone => None,
            };
            let parts = by_shard(to, tenant, shards);
            let awaited = match &group {
                Some(group) => Some(Awaited::Group { home: group.home(shards), is_counted }),
                None => is_counted.then(|| {
                    Awaited::Shards(
                        parts.iter().map(|(shard, _, known)| (*shard, *known)).collect(),
                    )
                }),
            };
            let origin = Origin::Control { number, is_counted };
            let caller = self.caller.hash;
            let part = |(shard, to, _)| {
                let body = body.clone();
                (shard, Submit::Push(Push { origin, caller, tenant, to, body }))
            };
            let sends = parts.into_iter().map(part).collect();
            jobs.push(Job { group, number, sends, awaited });
        }
        jobs
    }
}

/// Place of a kind of addressees among all.
fn kind_place(to: &Target) -> usize {
    KINDS.iter().position(|one| *one == kind(to)).expect("all kinds are there")
}

/// Checks that there is a rule for each of these groups.
fn check_rules(groups: &[GroupName], settings: &PushSettings) -> Result<(), Refused> {
    match groups.iter().find(|group| settings.rule(&group.name).is_none()) {
        None => Ok(()),
        Some(group) => {
            let name = &group.name;
            let why = format!("no [[group]] has a rule for {name}: add one, or correct the name");
            Err(Refused::new(Reason::NoRoute, why))
        }
    }
}

/// Checks that the tenant is named where there are several, and not where there is one.
pub fn check_tenant(tenant: &str, tenants: Tenants) -> Result<(), Refused> {
    let why = match (tenants, tenant) {
        (Tenants::Many, "") => "tenant: name it, as auth.tenants = \"many\"",
        (Tenants::One, "") | (Tenants::Many, _) => return Ok(()),
        (Tenants::One, _) => "tenant: leave it empty, as auth.tenants = \"one\"",
    };
    Err(Refused::new(Reason::BadMessage, why))
}
