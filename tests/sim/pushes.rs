//! Pushes and groups: what control and services push, into worlds whose members are those of
//! [`crate::members`], and the checks at the end of promises 15 to 19 and 22.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use shardgate::config::settings::{
    ConnectionsMax, GroupRule, GroupSettings, JoinBy, Keep, Pattern, PushRights, PushTo,
    SessionSettings, ShardSettings, SlowMember, Tenants, Who,
};
use shardgate::demo::proto::{BaseResponse, BatchResponse};
use shardgate::ids::{ShardId, TenantId};
use shardgate::message::Micros;
use shardgate::push::{Origin, Push, Submit};
use shardgate::routing::addressing::by_shard;
use shardgate::wire::push::generated::{Except, PushMessage, To};
use shardgate::wire::push::{Arrived, Limits, check};

use crate::OnFailure;
use crate::dice::Dice;
use crate::members::{GROUPS, HALL};
use crate::plan::{Faults, Plan, SERVICES, UNIX_AT_BOOT_S};
use crate::push_oracle::{Sent, Target};
use crate::tenants::TENANTS;
use crate::world::{Event, World};

/// Seeds of a run of the test.
const SEEDS: u64 = 40;
/// Longest time of sessions whose end a run waits for.
const WAITED_FOR_MS: u64 = 2_000;

/// Groups and pushes of a plan.
#[derive(Clone, Debug)]
pub struct PushPlan {
    pub members: usize,
    /// Percent of members that read slowly, or not at all.
    pub slow: u64,
    /// Percent of a member's actions that break its connection off.
    pub breaks: u64,
    /// Longest time between two pushes of control.
    pub pause_us: u64,
    /// Whether logs have room for everything.
    pub is_roomy: bool,
}

fn rules(d: &mut Dice, is_roomy: bool) -> Vec<Arc<GroupRule>> {
    let recent_ms = if is_roomy { 120_000 } else { d.pick(&[30, 500, 120_000]) };
    let slow = d.pick(&[SlowMember::Skip, SlowMember::Skip, SlowMember::Latest, SlowMember::Close]);
    let rule = |name: &str, keep| GroupRule {
        join: JoinBy::Anybody,
        publish: Who::Members,
        keep,
        recent_ms,
        slow,
        ..GroupRule::new(name)
    };
    let small = GroupRule { members_max: d.range(1, 4) as u32, ..rule("small:*", Keep::Recent) };
    let hall = GroupRule { join: JoinBy::None, publish: Who::None, ..rule("hall:*", Keep::Recent) };
    let rules = [
        rule("room:*", Keep::Recent),
        rule("last:*", Keep::Last),
        rule("hist:*", Keep::History),
        rule("none:*", Keep::None),
        small,
        hall,
    ];
    rules.into_iter().map(Arc::new).collect()
}

/// Rights of services: all, some, and none.
fn services() -> BTreeMap<Arc<str>, Arc<PushRights>> {
    let all = |text: &str| vec![Pattern(text.into())];
    let logic = PushRights {
        tenants: all("*"),
        to: vec![PushTo::Session, PushTo::User, PushTo::Group, PushTo::Tenant, PushTo::Everyone],
        groups: all("*"),
        joins: all("*"),
        may: Vec::new(),
    };
    let chat = PushRights {
        tenants: all("even"),
        to: vec![PushTo::Session, PushTo::Group],
        groups: all("room:*"),
        joins: all("room:*"),
        may: Vec::new(),
    };
    [("logic", logic), ("chat", chat)].map(|(name, r)| (name.into(), Arc::new(r))).into()
}

impl Plan {
    /// A plan with members of groups and pushes to them.
    pub fn with_pushes(seed: u64) -> Self {
        let mut plan = Self::new(seed);
        let mut d = Dice::new(seed ^ 0x7075_7368);
        let is_roomy = d.chance(60);
        plan.pushes = Some(PushPlan {
            members: d.range(2, 9) as usize,
            slow: d.pick(&[0, 0, 30, 60]),
            breaks: d.pick(&[0, 2, 8, 25]),
            pause_us: d.pick(&[5_000, 10_000, 40_000]),
            is_roomy,
        });
        (plan.clients, plan.clock_step) = (0, None);
        plan.active_us = d.range(400, 1_000) * 1_000;
        plan.drain_at_us = d.chance(10).then(|| d.range(300_000, plan.active_us));
        plan.pause = d.chance(10).then(|| (d.below(plan.active_us), d.range(300_000, 3_000_000)));
        (plan.burst, plan.pause_us) = (d.pick(&[1, 2, 4]), d.pick(&[2_000, 20_000]));
        plan.lane_items = d.pick(&[2, 8, 64]);
        let gateway = Arc::make_mut(&mut plan.gateway);
        gateway.auth.required = false;
        gateway.push.groups = rules(&mut d, is_roomy);
        gateway.push.services = services();
        let Faults { bad, slow, repeat, full, .. } = &mut plan.faults;
        (*bad, *slow, *repeat, *full) = (0, 0, 0, d.pick(&[0, 0, 10, 60]));
        let defaults = ShardSettings::default();
        let s = &mut plan.settings;
        s.conn = defaults.conn;
        s.conn.connections_max = ConnectionsMax::Set(1_000);
        s.limits = defaults.limits;
        s.session = SessionSettings {
            ttl_ms: d.pick(&[300, 1_500, 60_000]),
            kept_items_max: d.pick(&[4, 256, 256]),
            ..defaults.session
        };
        s.groups = GroupSettings {
            sweep_members: d.pick(&[1, 2, 128]),
            linger_ms: d.pick(&[10, 100, 10_000]),
            join_timeout_ms: d.pick(&[50, 5_000]),
            per_session_max: d.pick(&[3, 64]),
            lag_bytes_max: if is_roomy { 1 << 20 } else { d.pick(&[2_000, 10_000]) },
            log_total_bytes_max: if is_roomy { 256 << 20 } else { d.pick(&[64 << 10, 256 << 20]) },
            ..defaults.groups
        };
        plan
    }
}

impl World {
    /// Control pushes something, or puts sessions into a group.
    pub fn pushes(&mut self) {
        let Some(plan) = self.plan.pushes.clone() else { return };
        if !self.active {
            return;
        }
        for _ in 0..self.dice.range(1, 3) {
            let message = self.push_message();
            self.push_of_control(message);
        }
        let after = self.dice.range(1, plan.pause_us);
        self.at(after, Event::Push);
    }

    /// The names of some sessions or users, of one tenant.
    fn some_sessions(&mut self, tenant: &str) -> Vec<String> {
        let of_tenant = self.fan.lives.iter().rev().take(20).filter(|l| l.tenant == tenant);
        let all: Vec<_> =
            of_tenant.filter(|life| !life.session.is_empty()).map(|l| l.session.clone()).collect();
        all.into_iter().filter(|_| self.dice.chance(30)).collect()
    }

    fn some_tenant(&mut self) -> &'static str {
        let is_many = self.plan.gateway.auth.tenants == Tenants::Many;
        if is_many { self.dice.pick(&TENANTS) } else { "" }
    }

    /// A push, which goes somewhere.
    fn push_message(&mut self) -> PushMessage {
        let tenant = self.some_tenant();
        let mut to = To { tenant: tenant.into(), ..To::default() };
        match self.dice.below(20) {
            0..=12 => to.groups = vec![self.dice.pick(&GROUPS).into()],
            13..=15 => to.sessions = self.some_sessions(tenant),
            16 | 17 => {
                let users = (0..12).map(|n| format!("user-{}", 200 + n));
                to.users = users.filter(|_| self.dice.chance(20)).collect();
            }
            18 => to.tenant_all = true,
            _ => (to.everyone, to.tenant) = (true, String::new()),
        }
        if to == (To { tenant: tenant.into(), ..To::default() }) {
            to.groups = vec![GROUPS[0].into()];
        }
        let mut message = PushMessage { to: Some(to), msg_id: 7_001, ..PushMessage::default() };
        if self.dice.chance(30) {
            message.key = self.dice.pick(&["k0", "k1", "k2"]).into();
        }
        if self.dice.chance(20) {
            let users = (0..3).map(|_| format!("user-{}", 200 + self.dice.below(9))).collect();
            let mut sessions = self.some_sessions(tenant);
            sessions.truncate(4);
            message.except = Some(Except { sessions, users });
        }
        if self.dice.chance(15) {
            message.ttl_ms = self.dice.pick(&[1, 5, 50, 400]);
        }
        message.transient = self.dice.chance(12);
        message.priority = self.dice.below(5) as i32;
        message.receipt = i32::from(self.dice.chance(80));
        message
    }

    /// Takes a push of `caller` into the oracle's books. Its number stands in its payload.
    fn books(&mut self, message: &mut PushMessage, caller: &str) -> usize {
        let n = self.fan.sent.len();
        let payload = self.push_payload(n);
        message.payload = payload.clone().into();
        let to = message.to.clone().expect("it has addressees");
        let target = match &to {
            to if !to.groups.is_empty() => Target::Group(to.groups[0].clone()),
            to if !to.sessions.is_empty() => Target::Sessions(to.sessions.clone()),
            to if !to.users.is_empty() => Target::Users(to.users.clone()),
            to if to.tenant_all => Target::Tenant,
            _ => Target::Everyone,
        };
        let tenant = TENANTS.into_iter().find(|name| *name == to.tenant).unwrap_or("");
        let except = message.except.clone().unwrap_or_default();
        let expires = match message.ttl_ms {
            0 => u64::MAX,
            ms => self.now + u64::from(ms) * 1_000,
        };
        self.fan.sent.push(Sent {
            tenant,
            target,
            key: message.key.clone(),
            except_sessions: except.sessions,
            except_users: except.users,
            expires,
            is_transient: message.transient,
            id_of: (!message.id.is_empty()).then(|| (caller.to_owned(), message.id.clone())),
            ..Sent::new(payload, self.now)
        });
        n
    }

    fn push_of_control(&mut self, mut message: PushMessage) {
        let caller = self.dice.below(2) + 1;
        if self.dice.chance(25) {
            let id = format!("i{}", self.dice.below(8));
            // One id of one caller names one push: it goes to the same addressees.
            match self.fan.by_control.get(&(caller, id.clone())) {
                Some(first) if self.dice.chance(70) => message = first.clone(),
                _ => message.id = format!("{id}-{}", self.fan.sent.len()),
            }
            self.fan.by_control.insert((caller, id), message.clone());
        }
        let n = self.books(&mut message, &format!("control {caller}"));
        let gateway = &self.plan.gateway;
        let limits = Limits {
            bytes_max: gateway.push.bytes_max,
            users_max: gateway.push.users_max,
            gateway_ids: gateway.gateway_ids,
            has_tenants: gateway.auth.tenants == Tenants::Many,
        };
        let unix_ms = UNIX_AT_BOOT_S * 1_000 + (self.now / 1_000) as i64;
        let arrived = Arrived { now: Micros(self.now), unix_ms };
        let checked = check(message, &limits, arrived).expect("a good push");
        let tenant = TenantId::of(&checked.tenant);
        let body = Arc::new(checked.body);
        let is_counted = checked.is_counted;
        let origin = Origin::Control { number: n as u64, is_counted };
        let mut parts: Vec<(ShardId, Submit)> = Vec::new();
        for to in checked.to.addressees() {
            for (shard, to, _) in by_shard(to, tenant, self.plan.shards as u16) {
                let push = Push { origin, caller, tenant, to, body: body.clone() };
                parts.push((shard, Submit::Push(push)));
            }
        }
        let told = &mut self.fan.sent[n].told;
        told.is_counted = is_counted;
        told.shards = parts.iter().map(|(shard, _)| *shard).collect();
        self.fan.saw("pushes", 1);
        if !self.send_pushes(parts) {
            self.fan.sent[n].is_refused = true;
            self.fan.sent[n].told.refused = 1;
            self.fan.saw("push of full lanes", 1);
        }
    }

    /// An instance pushes and joins in its answer to a call.
    pub fn speaks(&mut self, s: usize, ticket: u64, body: Bytes) -> Bytes {
        if self.plan.pushes.is_none() {
            return body;
        }
        let call = &self.calls[&(s, ticket)];
        let units: BTreeMap<u64, u64> =
            call.items.iter().map(|item| (item.request_id, item.unit)).collect();
        let instance = self.instances.iter().find(|it| it.id.0 == call.instance);
        let Some(service) = instance.map(|it| SERVICES[usize::from(it.service.0)]) else {
            return body;
        };
        let mut batch = BatchResponse::decode(body).expect("made by an instance");
        let mut seen = Vec::new();
        for response in &mut batch.responses {
            if let Some(unit) = units.get(&response.request_id)
                && let Some(c) = self.fan.units.get(unit).copied()
                && !seen.contains(unit)
            {
                seen.push(*unit);
                self.joins_by_service(service, c, response);
            }
        }
        for _ in 0..self.dice.below(6).saturating_sub(3) {
            let mut message = self.push_message();
            if let Some(to) = &mut message.to
                && self.plan.gateway.auth.tenants == Tenants::Many
                && !to.everyone
            {
                to.tenant = self.dice.pick(&TENANTS).into();
            }
            let n = self.books(&mut message, service);
            let sent = &mut self.fan.sent[n];
            sent.is_forbidden = !may_push(&self.plan, service, sent);
            let word = if sent.is_forbidden { "push forbidden" } else { "push of a service" };
            self.fan.saw(word, 1);
            batch.pushes.push(message);
        }
        batch.encode_to_vec().into()
    }

    fn joins_by_service(&mut self, service: &str, c: usize, response: &mut BaseResponse) {
        if !self.dice.chance(40) {
            return;
        }
        let group = self.dice.pick(&[HALL, HALL, "room:1", "small:1"]);
        let rights = self.plan.gateway.push.services.get(service);
        let tenant = self.fan.members[c].tenant;
        let may = rights.is_some_and(|r| r.has_tenant(tenant) && r.has_join(group));
        let leaves = self.dice.chance(30);
        match leaves {
            true => response.leave.push(group.into()),
            false => response.join.push(group.into()),
        }
        if may {
            let by = self.fan.members[c].by_service.entry(group.into()).or_default();
            *by = (by.0 | !leaves, by.1 | leaves);
        } else {
            self.fan.saw("join forbidden", 1);
        }
    }

    /// Promise 19: in no group are more members than its rule allows, on all shards together.
    pub fn check_members(&self) {
        let mut counts = BTreeMap::new();
        for shard in &self.shards {
            for (name, members) in shard.engine.view().groups {
                *counts.entry(name).or_insert(0) += members;
            }
        }
        for (name, members) in counts {
            let rule = self.plan.gateway.push.rule(&name.name).expect("a rule");
            let most = rule.members_max as usize;
            assert!(members <= most, "promise 19: {members} in {name:?}, of {most}");
        }
    }

    /// Checks what must hold of pushes when nothing is under way any more.
    fn check_pushes(&mut self) {
        let ended = self.draining;
        for stint in 0..self.fan.stints.len() {
            self.fan.check_stint(stint, ended, self.now);
            if self.plan.pushes.as_ref().is_some_and(|pushes| pushes.is_roomy) {
                self.fan.check_newest(stint, self.now);
            }
        }
        let is_roomy = self.plan.pushes.as_ref().is_some_and(|pushes| pushes.is_roomy);
        for n in 0..self.fan.sent.len() {
            let sent = &self.fan.sent[n];
            assert!(!sent.is_refused || sent.got.is_empty(), "promise 15: {sent:?}");
            assert!(!sent.is_duplicate || sent.got.is_empty(), "promise 16: {sent:?}");
            if !sent.told.shards.is_empty() && !ended {
                self.fan.check_result(n, is_roomy);
            }
        }
        if !ended {
            self.fan.check_direct(self.now);
        }
    }

    /// Lets members come back and read everything, checks, and lets all of it end.
    fn end_pushes(&mut self) {
        if !self.draining {
            self.settle_members();
        }
        self.run(self.now.max(self.paused_until));
        self.run(self.now + 200_000);
        self.take_events();
        self.run(self.now + 200_000);
        self.take_events();
        self.check_end();
        self.check_pushes();
        let (ttl_ms, linger_ms) =
            (self.plan.settings.session.ttl_ms, self.plan.settings.groups.linger_ms);
        if self.draining || ttl_ms.max(linger_ms) > WAITED_FOR_MS {
            return;
        }
        for p in 0..self.peers.len() {
            let peer = &mut self.peers[p];
            (peer.reset, peer.gone) = (true, true);
            self.readable(p);
        }
        for member in &mut self.fan.members {
            member.current = None;
        }
        self.run(self.now + (ttl_ms + linger_ms) * 1_000 + 4_000_000);
        for (s, shard) in self.shards.iter().enumerate() {
            let view = shard.engine.view();
            assert_eq!(view.groups, [], "promise 19: groups of shard {s} stay for ever");
            assert_eq!(view.interest, 0, "promise 19: shards are told of groups without a member");
        }
    }
}

fn may_push(plan: &Plan, service: &str, sent: &Sent) -> bool {
    let Some(rights) = plan.gateway.push.services.get(service) else { return false };
    let (kind, group) = match &sent.target {
        Target::Group(group) => (PushTo::Group, Some(group)),
        Target::Sessions(_) => (PushTo::Session, None),
        Target::Users(_) => (PushTo::User, None),
        Target::Tenant => (PushTo::Tenant, None),
        Target::Everyone => (PushTo::Everyone, None),
    };
    let may_tenant = kind == PushTo::Everyone || rights.has_tenant(sent.tenant);
    may_tenant && rights.to.contains(&kind) && group.is_none_or(|group| rights.has_group(group))
}

/// Promises 15 to 19 and 22, in worlds of one to four shards: members join, leave, publish, read
/// slowly, break off at every byte and come back; control and services push to all kinds of
/// addressees, with keys, exceptions, ends and ids, over lanes that refuse.
#[test]
fn pushes_reach_whom_they_are_for_in_every_world() {
    let seeds = crate::number("SHARDGATE_SIM_SEEDS").unwrap_or(SEEDS);
    let first = crate::number("SHARDGATE_SIM_FIRST").unwrap_or(0);
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for seed in first..first + seeds {
        let _on_failure = OnFailure(seed);
        let mut world = crate::finish(Plan::with_pushes(seed));
        world.end_pushes();
        for (what, count) in world.fan.seen {
            *seen.entry(what).or_default() += count;
        }
    }
    println!("{seeds} seeds: {seen:?}");
}
