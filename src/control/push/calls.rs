//! Work of callers besides pushes: who is in which group, what a group keeps, and whose connections
//! are closed. All of it may be done again: what is done stays so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use super::answer;
use super::callers::Caller;
use super::desk::{Desk, Job, Rules, Waits};
use super::receipts::{Awaited, Outcome};
use super::refusal::Refused;
use super::send::check_tenant;
use crate::config::settings::PushVerb;
use crate::ids::{SessionId, TenantId};
use crate::message::{Priority, Reason};
use crate::push::{GROUPS_PER_PUSH_MAX, GroupName, Submit, Whom};
use crate::routing::addressing::whom_by_shard;
use crate::wire;
use crate::wire::push::generated as proto;

/// Longest wait for the shards.
const WAIT: Duration = Duration::from_secs(1);
/// Bytes of a member's `info`.
const INFO_BYTES_MAX: usize = 256;
/// Bytes of the reason that a session left a group for.
const LEAVE_REASON_BYTES_MAX: usize = 64;
/// Bytes of the reason in a close frame (RFC 6455 section 5.5: 125, of which the code has two).
const CLOSE_REASON_BYTES_MAX: usize = 123;
/// Close code of who is thrown out, without a wish of the caller.
const KICKED: u16 = 4501;

/// A caller's call, let in by its rate, its right and its tenant.
pub struct Call<'a> {
    pub desk: &'a Arc<Desk>,
    pub caller: &'a Caller,
    pub rules: Arc<Rules>,
    pub tenant: TenantId,
}

pub fn invalid(why: impl Into<String>) -> Refused {
    Refused::new(Reason::BadMessage, why)
}

impl<'a> Call<'a> {
    /// Lets the caller do this in the tenant with that name.
    pub fn new(
        desk: &'a Arc<Desk>,
        caller: &'a Caller,
        verb: PushVerb,
        tenant: &str,
    ) -> Result<Self, Refused> {
        desk.open()?;
        let rules = {
            let mut inner = desk.lock();
            inner.enter(caller, Instant::now())?;
            inner.rules.clone()
        };
        check_tenant(tenant, rules.config.gateway.auth.tenants)?;
        caller.may(verb, tenant)?;
        Ok(Self { desk, caller, rules, tenant: TenantId::of(tenant) })
    }

    /// A group that the caller may.
    pub fn group(&self, name: &str) -> Result<GroupName, Refused> {
        let group = wire::push::group("group", self.tenant, name)?;
        self.caller.may_group(name)?;
        Ok(group)
    }

    /// Groups that the caller may: one at least, and at most `max`.
    pub fn groups(&self, names: &[String], max: usize) -> Result<Vec<GroupName>, Refused> {
        match names.len() {
            0 => Err(invalid("groups: name one at least")),
            n if n > max => Err(invalid(format!("groups: at most {max} in one call"))),
            _ => names.iter().map(|name| self.group(name)).collect(),
        }
    }

    fn whom(&self, sessions: &[String], users: Vec<String>) -> Result<Whom, Refused> {
        let max = self.rules.config.gateway.push.users_max;
        match sessions.len() + users.len() {
            0 => return Err(invalid("sessions, users: name one at least")),
            n if n > max => {
                let why = format!("sessions, users: at most {max} in one call (push.users_max)");
                return Err(invalid(why));
            }
            _ => {}
        }
        let read = |id: &String| SessionId::read(id);
        let sessions: Option<Vec<_>> = sessions.iter().map(read).collect();
        let sessions = sessions.ok_or_else(|| {
            invalid("sessions: one is no id of a session, which `welcome` and `auth_ok` tell")
        })?;
        Ok(Whom { sessions, users: users.into_iter().map(Into::into).collect() })
    }

    /// Sends work to the shards of `whom`, made by `make` for each part under one number, and waits
    /// until all have done it.
    async fn work(
        &self,
        whom: Whom,
        make: impl Fn(u64, Whom) -> Submit,
    ) -> Result<Outcome, Refused> {
        let waits = {
            let mut inner = self.desk.lock();
            let number = inner.receipts.number();
            let parts = whom_by_shard(whom, self.tenant, inner.shards());
            let awaited = parts.iter().map(|(shard, _, known)| (*shard, *known)).collect();
            let send = |(shard, whom, _)| (shard, make(number, whom));
            let sends = parts.into_iter().map(send).collect();
            let awaited = Some(Awaited::Shards(awaited));
            inner.send(vec![Job { group: None, number, sends, awaited }], Priority::High)?
        };
        self.done(Waits::new(self.desk, waits, Instant::now() + WAIT)).await
    }

    /// Waits, and gives what all shards did; else what of it is missing.
    async fn done(&self, waits: Waits) -> Result<Outcome, Refused> {
        let outcomes = waits.outcomes().await;
        let outcome = outcomes.into_iter().next().map(|(_, outcome)| outcome).unwrap_or_default();
        if let Some((_, reject)) = outcome.refused.first() {
            return Err(Refused::from(*reject));
        }
        if !outcome.silent.is_empty() {
            let shards: Vec<u16> = outcome.silent.iter().map(|shard| shard.0).collect();
            let why = format!(
                "shards {shards:?} did not answer within {} ms: it may be done; do it again",
                WAIT.as_millis()
            );
            return Err(Refused::new(Reason::OutcomeUnknown, why));
        }
        Ok(outcome)
    }
}

/// Puts sessions into groups.
pub async fn join(
    call: Call<'_>,
    asked: proto::JoinRequest,
) -> Result<proto::JoinResponse, Refused> {
    let groups = call.groups(&asked.groups, GROUPS_PER_PUSH_MAX)?;
    let whom = call.whom(&asked.sessions, asked.users)?;
    let info = asked.info;
    let is_json = || serde_json::from_slice::<&RawValue>(&info).is_ok();
    if info.len() > INFO_BYTES_MAX || !(info.is_empty() || is_json()) {
        return Err(invalid(format!("info: one JSON text of at most {INFO_BYTES_MAX} bytes")));
    }
    let info = bytes::Bytes::copy_from_slice(&info);
    let groups: Vec<_> = groups.into_iter().map(|group| group.name).collect();
    let tenant = call.tenant;
    let outcome = call.work(whom, |number, whom| Submit::Join {
        number,
        tenant,
        whom,
        groups: groups.clone(),
        info: info.clone(),
    });
    let Outcome { joined, offline, positions, .. } = outcome.await?;
    let position = |(group, position): &(Arc<str>, _)| proto::GroupPosition {
        group: group.to_string(),
        position: Some(answer::position(*position)),
    };
    let positions = positions.iter().map(position).collect();
    Ok(proto::JoinResponse { joined, offline, positions })
}

/// Takes sessions out of groups.
pub async fn leave(
    call: Call<'_>,
    asked: proto::LeaveRequest,
) -> Result<proto::LeaveResponse, Refused> {
    let groups = call.groups(&asked.groups, GROUPS_PER_PUSH_MAX)?;
    let whom = call.whom(&asked.sessions, asked.users)?;
    if asked.reason.len() > LEAVE_REASON_BYTES_MAX {
        return Err(invalid(format!("reason: at most {LEAVE_REASON_BYTES_MAX} bytes")));
    }
    let groups: Vec<_> = groups.into_iter().map(|group| group.name).collect();
    let (tenant, reason): (_, Box<str>) = (call.tenant, asked.reason.into());
    let outcome = call.work(whom, |number, whom| Submit::Leave {
        number,
        tenant,
        whom,
        groups: groups.clone(),
        reason: reason.clone(),
    });
    Ok(proto::LeaveResponse { left: outcome.await?.done })
}

/// Closes connections.
pub async fn disconnect(
    call: Call<'_>,
    asked: proto::DisconnectRequest,
) -> Result<proto::DisconnectResponse, Refused> {
    let code = match asked.code {
        0 => KICKED,
        code @ 4000..=4999 => code as u16,
        _ => return Err(invalid("code: 4000 to 4999, or 0 for 4501")),
    };
    if asked.reason.len() > CLOSE_REASON_BYTES_MAX {
        return Err(invalid(format!("reason: at most {CLOSE_REASON_BYTES_MAX} bytes")));
    }
    let whom = call.whom(&asked.sessions, asked.users)?;
    let (tenant, reason): (_, Box<str>) = (call.tenant, asked.reason.into());
    let keep_session = asked.keep_session;
    let outcome = call.work(whom, |number, whom| {
        let reason = reason.clone();
        Submit::Disconnect { number, tenant, whom, code, reason, keep_session }
    });
    let Outcome { done, ended, .. } = outcome.await?;
    Ok(proto::DisconnectResponse { closed: done, ended })
}

/// Drops what a group keeps.
pub async fn forget(
    call: Call<'_>,
    asked: proto::ForgetRequest,
) -> Result<proto::ForgetResponse, Refused> {
    let group = call.group(&asked.group)?;
    let waits = {
        let mut inner = call.desk.lock();
        let number = inner.receipts.number();
        let home = group.home(inner.shards());
        let sends = vec![(home, Submit::Forget { number, group })];
        let awaited = Some(Awaited::Shards(vec![(home, 0)]));
        inner.send(vec![Job { group: None, number, sends, awaited }], Priority::High)?
    };
    call.done(Waits::new(call.desk, waits, Instant::now() + WAIT)).await?;
    Ok(proto::ForgetResponse {})
}
