//! What services and callers push, as they write it: in protobuf, and as the JSON of the HTTP door.

pub(crate) mod json;

use std::collections::HashSet;
use std::hash::Hash;

pub use self::json::{read_call, read_request, write_answer};
use crate::ids::{SessionId, TenantId};
use crate::message::{Micros, Priority, Reason};
use crate::push::{
    Addressees, Body, EXCEPT_MAX, Excepted, GROUP_NAME_BYTES_MAX, GROUPS_PER_PUSH_MAX, GroupName,
    Kind, NameFault, PUSH_ID_BYTES_MAX, PUSH_KEY_BYTES_MAX,
};
use crate::wire::json::is_json;

/// Messages, server and client generated from proto/shardgate/push/v1/push.proto.
#[allow(missing_docs)]
pub mod generated {
    tonic::include_proto!("shardgate.push.v1");
}

/// Whether a field is left out of JSON, as it is out of protobuf.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Longest time for which a caller may wait for counts.
const WAIT_MS_MAX: u32 = 5_000;
/// Time for which a caller waits that names none.
const WAIT_MS: u32 = 1_000;

/// What a push is checked against: settings that are in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of one payload: `push.bytes_max`.
    pub bytes_max: usize,
    /// Sessions or users of one push: `push.users_max`.
    pub users_max: usize,
    /// The first and the last id of the gateway's own: `gateway.ids`.
    pub gateway_ids: (u32, u32),
    /// Whether there is more than one tenant: `auth.tenants`.
    pub has_tenants: bool,
}

/// The time of a push.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrived {
    /// On the clock of deadlines.
    pub now: Micros,
    /// In milliseconds since 1970.
    pub unix_ms: i64,
}

/// The addressees of a push, each once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// Sessions.
    Sessions(Vec<SessionId>),
    /// All sessions of these users.
    Users(Vec<Box<str>>),
    /// Members of these groups.
    Groups(Vec<GroupName>),
    /// All sessions of the tenant.
    Tenant,
    /// All sessions.
    Everyone,
}

impl Target {
    /// The same, each part of which is sent for itself: of groups each one.
    pub fn addressees(self) -> Vec<Addressees> {
        match self {
            Self::Sessions(sessions) => vec![Addressees::Sessions(sessions)],
            Self::Users(users) => vec![Addressees::Users(users)],
            Self::Groups(groups) => groups.into_iter().map(Addressees::Group).collect(),
            Self::Tenant => vec![Addressees::Tenant],
            Self::Everyone => vec![Addressees::Everyone],
        }
    }
}

/// A push that keeps the rules. What its caller may is not checked here.
#[derive(Clone, Debug)]
pub struct CheckedPush {
    /// Name of the tenant; empty = the default tenant.
    pub tenant: String,
    /// The addressees.
    pub to: Target,
    /// The content.
    pub body: Body,
    /// Whether its caller waits for counts.
    pub is_counted: bool,
    /// How long it waits: milliseconds, 1 to 5,000.
    pub wait_ms: u32,
}

/// A rule that a push breaks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PushFault {
    /// The reason, for programs.
    pub reason: Reason,
    /// The field, its value and the rule.
    pub text: String,
}

fn bad(text: String) -> PushFault {
    PushFault { reason: Reason::BadMessage, text }
}

fn too_large(text: String) -> PushFault {
    PushFault { reason: Reason::TooLarge, text }
}

/// Checks a push. The first rule that it breaks is told.
pub fn check(
    message: generated::PushMessage,
    limits: &Limits,
    arrived: Arrived,
) -> Result<CheckedPush, PushFault> {
    let is_counted = match message.receipt {
        0 => false,
        1 => true,
        other => return Err(bad(format!("receipt: {other} is none; COUNTED (1) or 0"))),
    };
    if message.wait_ms > WAIT_MS_MAX {
        let n = message.wait_ms;
        return Err(bad(format!("wait_ms: {n} is more than {WAIT_MS_MAX}")));
    }
    let wait_ms = if message.wait_ms == 0 { WAIT_MS } else { message.wait_ms };
    let to = message.to.unwrap_or_default();
    let tenant = to.tenant.clone();
    check_tenant(&tenant, to.everyone, limits.has_tenants)?;
    let to = target(to, limits)?;
    let (first, last) = limits.gateway_ids;
    let msg_id = message.msg_id;
    if msg_id == 0 || (first..=last).contains(&msg_id) {
        return Err(bad(format!(
            "msg_id: {msg_id} is none that a service can push; it must not be 0, and not among \
             the gateway's own, {first} to {last}"
        )));
    }
    let is_bytes = is_bytes(message.kind, &message.payload, limits.bytes_max)?;
    check_text("key", &message.key, PUSH_KEY_BYTES_MAX)?;
    check_text("id", &message.id, PUSH_ID_BYTES_MAX)?;
    let body = Body {
        kind: Kind::Push,
        msg_id,
        payload: message.payload,
        is_bytes,
        key: message.key.into(),
        id: message.id.into(),
        from: "".into(),
        except: excepted(message.except.unwrap_or_default())?,
        priority: priority(message.priority)?,
        is_transient: message.transient,
        expires: match message.ttl_ms {
            0 => Micros(u64::MAX),
            ms => arrived.now.plus_ms(u64::from(ms)),
        },
        unix_ms: arrived.unix_ms,
    };
    Ok(CheckedPush { tenant, to, body, is_counted, wait_ms })
}

fn check_tenant(tenant: &str, is_everyone: bool, has_tenants: bool) -> Result<(), PushFault> {
    match has_tenants {
        false if !tenant.is_empty() => Err(bad(format!(
            "to.tenant: {} names a tenant, and there is only one (auth.tenants = \"one\"); leave \
             it out",
            shown(tenant)
        ))),
        true if tenant.is_empty() && !is_everyone => Err(bad(
            "to.tenant: is missing; name the tenant of the addressees (auth.tenants = \"many\")"
                .into(),
        )),
        false | true => Ok(()),
    }
}

/// The addressees, if they are of exactly one kind.
fn target(to: generated::To, limits: &Limits) -> Result<Target, PushFault> {
    let kinds = [
        ("sessions", !to.sessions.is_empty()),
        ("users", !to.users.is_empty()),
        ("groups", !to.groups.is_empty()),
        ("tenant_all", to.tenant_all),
        ("everyone", to.everyone),
    ];
    let given: Vec<&str> = kinds.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
    match given[..] {
        ["sessions"] => sessions(&to.sessions, limits.users_max).map(Target::Sessions),
        ["users"] => users(to.users, limits.users_max).map(Target::Users),
        ["groups"] => groups(TenantId::of(&to.tenant), &to.groups).map(Target::Groups),
        ["tenant_all"] => Ok(Target::Tenant),
        ["everyone"] => Ok(Target::Everyone),
        [] => Err(bad(
            "to: names nobody; set one of sessions, users, groups, tenant_all, everyone".into(),
        )),
        _ => Err(bad(format!("to: {} are set; set exactly one of them", given.join(" and ")))),
    }
}

fn sessions(list: &[String], max: usize) -> Result<Vec<SessionId>, PushFault> {
    check_count("to.sessions", list.len(), max)?;
    let read = |(at, text): (usize, &String)| session(&format!("to.sessions[{at}]"), text);
    list.iter().enumerate().map(read).collect::<Result<_, _>>().map(each_once)
}

fn session(field: &str, text: &str) -> Result<SessionId, PushFault> {
    let rule = "is no id of a session: 16 characters, as the client's welcome has them";
    SessionId::read(text).ok_or_else(|| bad(format!("{field}: {} {rule}", shown(text))))
}

fn users(list: Vec<String>, max: usize) -> Result<Vec<Box<str>>, PushFault> {
    check_count("to.users", list.len(), max)?;
    if let Some(at) = list.iter().position(String::is_empty) {
        return Err(bad(format!("to.users[{at}]: \"\" is no name of a user")));
    }
    Ok(each_once(list.into_iter().map(String::into_boxed_str).collect()))
}

fn groups(tenant: TenantId, list: &[String]) -> Result<Vec<GroupName>, PushFault> {
    check_count("to.groups", list.len(), GROUPS_PER_PUSH_MAX)?;
    let read = |(at, name): (usize, &String)| group(&format!("to.groups[{at}]"), tenant, name);
    list.iter().enumerate().map(read).collect::<Result<_, _>>().map(each_once)
}

/// The group `name` of `tenant`, which stands in `field` of a request.
pub fn group(field: &str, tenant: TenantId, name: &str) -> Result<GroupName, PushFault> {
    GroupName::new(tenant, name).map_err(|fault| match fault {
        NameFault::Empty => bad(format!("{field}: \"\" is no name of a group")),
        NameFault::TooLong => too_large(format!(
            "{field}: a name of {} bytes; at most {GROUP_NAME_BYTES_MAX}",
            name.len()
        )),
        NameFault::Character => bad(format!(
            "{field}: {} is no name of a group: visible ASCII characters without spaces",
            shown(name)
        )),
    })
}

fn each_once<T: Clone + Eq + Hash>(mut list: Vec<T>) -> Vec<T> {
    let mut seen = HashSet::with_capacity(list.len());
    list.retain(|one| seen.insert(one.clone()));
    list
}

fn check_count(field: &str, count: usize, max: usize) -> Result<(), PushFault> {
    match count > max {
        true => Err(bad(format!("{field}: {count} of them; at most {max}"))),
        false => Ok(()),
    }
}

fn check_text(field: &str, text: &str, max: usize) -> Result<(), PushFault> {
    match text.len() > max {
        true => Err(too_large(format!("{field}: {} bytes; at most {max}", text.len()))),
        false => Ok(()),
    }
}

fn is_bytes(kind: i32, payload: &[u8], max: usize) -> Result<bool, PushFault> {
    if payload.len() > max {
        let len = payload.len();
        return Err(too_large(format!("payload: {len} bytes; at most {max} (push.bytes_max)")));
    }
    match kind {
        // A push without a payload is a signal: that it came is all that it says.
        0 | 1 if payload.is_empty() || is_json(payload) => Ok(false),
        0 | 1 => Err(bad("payload: is not one JSON text, which its kind JSON says; with kind = \
                          BYTES it may be anything"
            .into())),
        2 => Ok(true),
        other => Err(bad(format!("kind: {other} is none; JSON (1) or BYTES (2)"))),
    }
}

fn priority(number: i32) -> Result<Priority, PushFault> {
    match number {
        0 | 3 => Ok(Priority::Normal),
        1 => Ok(Priority::Critical),
        2 => Ok(Priority::High),
        4 => Ok(Priority::Low),
        other => Err(bad(format!("priority: {other} is none; 1 (critical) to 4 (low)"))),
    }
}

fn excepted(except: generated::Except) -> Result<Vec<Excepted>, PushFault> {
    let generated::Except { sessions, users } = except;
    check_count("except", sessions.len() + users.len(), EXCEPT_MAX)?;
    let sessions = sessions
        .iter()
        .enumerate()
        .map(|(at, text)| session(&format!("except.sessions[{at}]"), text).map(Excepted::Session));
    let users = users.into_iter().map(|user| Ok(Excepted::User(user.into_boxed_str())));
    sessions.chain(users).collect()
}

/// A value in a sentence: without control characters, and cut if it is long.
fn shown(text: &str) -> String {
    let cut: String = text.chars().take(64).collect();
    let rest = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{rest}")
}

#[cfg(test)]
mod tests;
