//! The section `[push]`, the lists `[[push_caller]]` and `[[group]]`, and what services may push.

use std::net::SocketAddr;
use std::sync::Arc;

use super::reader::Reader;
use super::rule::{Bounds, DAY_MS, HOUR_MS, MINUTE_MS, SLOTS_MAX, TextRule};
use super::settings::*;
use super::words::{ADDRESS_RULE, NAME_RULE, TOKEN_RULE, is_address, is_name, is_token};
use crate::limits::MESSAGE_BYTES_CAP;
use crate::message::Priority;
use crate::push::GROUP_NAME_BYTES_MAX;

/// Most callers: each is a service, or a program of one.
const CALLERS_MAX: usize = 1024;
/// Most rules of groups: they are tried one by one, at each join.
const RULES_MAX: usize = 256;
/// Pushes that a full outbox has room for at least.
const PUSHES_OF_AN_OUTBOX: usize = 4;
/// Most users, or sessions, of one push.
const USERS_MAX: u64 = 10_000;
/// Most pushes of a feed under way. HTTP/2 ends a connection on which many more small frames wait
/// to be read, some 2,600 with a push each.
const FEED_CREDIT_MAX: u64 = 2_000;
/// Most bytes of a group's history.
const HISTORY_BYTES_MAX: u64 = 64 << 20;

pub(super) const PATTERN_RULE: TextRule = TextRule::new(
    "a name, or the beginning of names and a star",
    ", at most 128 visible characters, e.g. \"room:*\"",
);
const SERVICE_PUSH_RULE: TextRule = TextRule::new(
    "session, user, tenant, everyone, group:PATTERN or join:PATTERN",
    ", e.g. [\"user\", \"group:room:*\", \"join:room:*\"]",
);

const KINDS: [(&str, PushTo); 5] = [
    ("session", PushTo::Session),
    ("user", PushTo::User),
    ("group", PushTo::Group),
    ("tenant", PushTo::Tenant),
    ("everyone", PushTo::Everyone),
];
const VERBS: [(&str, PushVerb); 4] = [
    ("push", PushVerb::Push),
    ("join", PushVerb::Join),
    ("read", PushVerb::Read),
    ("disconnect", PushVerb::Disconnect),
];

/// Whether `s` can be a pattern: what a group's name can be, and `*` at the end.
fn is_pattern(s: &str) -> bool {
    let begin = s.strip_suffix('*').unwrap_or(s);
    (1..=GROUP_NAME_BYTES_MAX).contains(&s.len())
        && begin.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'*')
}

/// Reads a pattern, or says the rule that it breaks.
pub(super) fn pattern(s: &str) -> Result<Pattern, String> {
    match is_pattern(s) {
        true => Ok(Pattern(s.into())),
        false => Err(PATTERN_RULE.to_string()),
    }
}

/// Reads the section `[push]`, and `[[push_caller]]`. Rules of groups are read later: they name
/// services.
pub fn push(r: &mut Reader) -> PushSettings {
    let d = PushSettings::default();
    let listen = r.text("push.listen", "", is_address, ADDRESS_RULE.or_empty());
    let listen = listen.parse::<SocketAddr>().ok();
    let (tls_cert, tls_key) = (r.file("push.tls_cert"), r.file("push.tls_key"));
    r.both_or_neither(["push.tls_cert", "push.tls_key"], [tls_cert.is_some(), tls_key.is_some()]);
    let bytes = Bounds::new(1, MESSAGE_BYTES_CAP as u64);
    let dedup = Bounds::new(1, SLOTS_MAX);
    let settings = PushSettings {
        listen,
        tls_cert,
        tls_key,
        bytes_max: r.number("push.bytes_max", d.bytes_max, bytes),
        batch_max: r.number("push.batch_max", d.batch_max, Bounds::new(1, 1_000)),
        users_max: r.number("push.users_max", d.users_max, Bounds::new(1, USERS_MAX)),
        feed_credit: r.number("push.feed_credit", d.feed_credit, Bounds::new(1, FEED_CREDIT_MAX)),
        dedup_ms: r.number("push.dedup_ms", d.dedup_ms, Bounds::new(100, DAY_MS)),
        dedup_entries_max: r.number("push.dedup_entries_max", d.dedup_entries_max, dedup),
        callers: callers(r),
        ..d
    };
    let Some(listen) = listen else { return settings };
    if settings.callers.is_empty() {
        let rule = "needs at least one [[push_caller]]: nobody could push";
        r.problem("push.listen", rule);
    }
    if !listen.ip().is_loopback() && settings.tls_cert.is_none() {
        let rule = "is not a loopback address: tokens would travel in the clear; set push.tls_cert \
                    and push.tls_key, or listen on 127.0.0.1";
        r.problem("push.listen", rule);
    }
    settings
}

/// Sees that a push fits into what each shard has for a client and for a group. Where nobody set
/// `push.bytes_max`, it is lowered to that.
pub fn relations<'a>(
    r: &mut Reader,
    push: &mut PushSettings,
    shards: impl Iterator<Item = &'a ShardSettings>,
) {
    for shard in shards {
        let outbox = shard.conn.outbox_bytes_max;
        let max = (outbox / PUSHES_OF_AN_OUTBOX).min(shard.groups.lag_bytes_max);
        if push.bytes_max > max && !r.is_set("push.bytes_max") {
            push.bytes_max = max;
        }
        r.relation(
            push.bytes_max <= max,
            ["push.bytes_max"; 2],
            format!(
                "must be at most {max}: a quarter of conn.outbox_bytes_max {outbox}, and not more \
                 than groups.lag_bytes_max {}",
                shard.groups.lag_bytes_max
            ),
        );
    }
}

fn callers(r: &mut Reader) -> Vec<PushCaller> {
    let (list, source) = r.list("push_caller", CALLERS_MAX);
    if list.len() > CALLERS_MAX {
        r.problem("push_caller", format!("at most {CALLERS_MAX} of them"));
        return Vec::new();
    }
    let mut callers: Vec<PushCaller> = Vec::new();
    for (index, node) in list.into_iter().enumerate() {
        let prefix = format!("push_caller[{index}]");
        let Some(mut table) = Reader::of_table(prefix, node, &source, &mut r.report) else {
            continue;
        };
        let caller = caller(&mut table, &callers);
        table.unknown(&[], "");
        r.report.absorb(table.report);
        callers.extend(caller);
    }
    callers
}

/// Reads a caller; `None` if it has no valid name.
fn caller(r: &mut Reader, others: &[PushCaller]) -> Option<PushCaller> {
    let name = r.required_text("name", is_name, NAME_RULE);
    let token = r.secret("token", is_token, TOKEN_RULE.or_empty()).map(Secret::from);
    let token_file = r.file("token_file");
    if token.is_some() == token_file.is_some() {
        r.problem("token", "set one of token and token_file");
    }
    if token.is_some() && others.iter().any(|other| other.token == token) {
        r.problem("token", "is the token of another caller, too; each needs one of its own");
    }
    if name.as_deref().is_some_and(|name| others.iter().any(|c| &*c.name == name)) {
        r.problem("name", "is the name of another caller; rename one");
    }
    let words = Priority::ALL.map(|class| (class.name(), class));
    let rate = Bounds::or_zero("no limit", 1, u64::from(u32::MAX));
    let caller = PushCaller {
        name: name.as_deref().unwrap_or_default().into(),
        token,
        token_file,
        rights: caller_rights(r),
        priority_max: r.word("priority_max", Priority::High, &words),
        pushes_per_s: r.number("pushes_per_s", 0, rate),
        deliveries_per_s: r.number("deliveries_per_s", 0, rate),
    };
    name.map(|_| caller)
}

fn caller_rights(r: &mut Reader) -> PushRights {
    let tenants = r.texts_as("tenants", "[\"*\"]", pattern, PATTERN_RULE);
    let groups = r.texts_as("groups", "[]", pattern, PATTERN_RULE).unwrap_or_default();
    let rights = PushRights {
        tenants: tenants.unwrap_or_else(everybody),
        to: words(r, "to", "[]", &KINDS, KINDS_RULE).unwrap_or_default(),
        joins: groups.clone(),
        groups,
        may: words(r, "may", "[\"push\"]", &VERBS, VERBS_RULE)
            .unwrap_or_else(|| vec![PushVerb::Push]),
    };
    if rights.may.contains(&PushVerb::Push) && rights.to.is_empty() {
        let rule = "must name at least one kind of addressee: session, user, group, tenant or \
                    everyone";
        r.problem("to", rule);
    }
    let names_groups = rights.to.contains(&PushTo::Group) || rights.may.contains(&PushVerb::Join);
    if names_groups && rights.groups.is_empty() {
        r.problem("groups", "must name the groups that this caller may use, e.g. [\"room:*\"]");
    }
    rights
}

const KINDS_RULE: TextRule = TextRule::new("session, user, group, tenant or everyone", "");
const VERBS_RULE: TextRule = TextRule::new("push, join, read or disconnect", "");

fn everybody() -> Vec<Pattern> {
    vec![Pattern("*".into())]
}

/// Reads a list of words of a closed list.
pub(super) fn words<T: Copy>(
    r: &mut Reader,
    key: &'static str,
    shown: &str,
    words: &[(&str, T)],
    rule: TextRule,
) -> Option<Vec<T>> {
    let read = |s: &str| {
        let found = words.iter().find(|(word, _)| *word == s);
        found.map(|(_, value)| *value).ok_or_else(|| rule.to_string())
    };
    r.texts_as(key, shown, read, rule)
}

/// A right of a service.
enum ServiceRight {
    To(PushTo),
    Group(Pattern),
    Join(Pattern),
}

/// Reads what a service may push in its answers.
pub fn service_rights(r: &mut Reader) -> PushRights {
    let read = |s: &str| {
        if let Some(name) = s.strip_prefix("group:") {
            return pattern(name).map(ServiceRight::Group);
        }
        if let Some(name) = s.strip_prefix("join:") {
            return pattern(name).map(ServiceRight::Join);
        }
        let kind = KINDS.iter().find(|(word, to)| *word == s && *to != PushTo::Group);
        kind.map(|(_, to)| ServiceRight::To(*to)).ok_or_else(|| SERVICE_PUSH_RULE.to_string())
    };
    let list = r.texts_as("push", "[]", read, SERVICE_PUSH_RULE).unwrap_or_default();
    let tenants = r.texts_as("push_tenants", "[\"*\"]", pattern, PATTERN_RULE);
    let mut rights =
        PushRights { tenants: tenants.unwrap_or_else(everybody), ..PushRights::default() };
    for right in list {
        match right {
            ServiceRight::To(to) => rights.to.push(to),
            ServiceRight::Group(pattern) => rights.groups.push(pattern),
            ServiceRight::Join(pattern) => rights.joins.push(pattern),
        }
    }
    if !rights.groups.is_empty() {
        rights.to.push(PushTo::Group);
    }
    if !rights.to.is_empty() {
        rights.may.push(PushVerb::Push);
    }
    if !rights.joins.is_empty() {
        rights.may.push(PushVerb::Join);
    }
    rights
}

/// Reads `[[group]]`. `has_users`: clients can sign in.
pub fn groups(r: &mut Reader, has_users: bool) -> Vec<Arc<GroupRule>> {
    let (list, source) = r.list("group", RULES_MAX);
    if list.len() > RULES_MAX {
        r.problem("group", format!("at most {RULES_MAX} of them"));
        return Vec::new();
    }
    let mut rules: Vec<Arc<GroupRule>> = Vec::new();
    for (index, node) in list.into_iter().enumerate() {
        let prefix = format!("group[{index}]");
        let Some(mut table) = Reader::of_table(prefix, node, &source, &mut r.report) else {
            continue;
        };
        let rule = group(&mut table, has_users);
        if let Some(rule) = &rule {
            check_order(&mut table, rule, &rules);
        }
        table.unknown(&[], "");
        r.report.absorb(table.report);
        rules.extend(rule.map(Arc::new));
    }
    rules
}

/// Notes a rule that is for no name, as rules before it are for all of its own.
fn check_order(r: &mut Reader, rule: &GroupRule, before: &[Arc<GroupRule>]) {
    let same = before.iter().position(|other| other.name == rule.name);
    // A beginning that has the other's beginning has all its names.
    let hides =
        |other: &Arc<GroupRule>| other.name.0.ends_with('*') && other.name.has(&rule.name.0);
    if let Some(at) = same {
        r.problem("name", format!("is also the name of group[{at}]; remove one"));
    } else if let Some(at) = before.iter().position(hides) {
        let other = &before[at].name.0;
        let rule = format!(
            "is never used: {other:?} of group[{at}] has all its names, and the first rule that \
             has a name counts; write this one above it"
        );
        r.problem("name", rule);
    }
}

/// Reads a rule; `None` if it has no valid name.
fn group(r: &mut Reader, has_users: bool) -> Option<GroupRule> {
    let name = r.required_text("name", is_pattern, PATTERN_RULE);
    let d = GroupRule::new(name.as_deref().unwrap_or_default());
    let no_limit = "no limit but the others";
    let history_bytes = Bounds::new(256, HISTORY_BYTES_MAX);
    let rule = GroupRule {
        join: r.word("join", d.join, &JoinBy::WORDS),
        publish: r.word("publish", d.publish, &Who::WORDS),
        list: r.word("list", d.list, &Who::WORDS),
        members_max: r.number("members_max", d.members_max, Bounds::new(1, SLOTS_MAX)),
        keep: r.word("keep", d.keep, &Keep::WORDS),
        recent_ms: r.number("recent_ms", d.recent_ms, Bounds::new(1_000, HOUR_MS)),
        history_items: r.number(
            "history_items",
            d.history_items,
            Bounds::or_zero(no_limit, 1, 1_000_000),
        ),
        history_bytes: r.number("history_bytes", d.history_bytes, history_bytes),
        history_ms: r.number("history_ms", d.history_ms, Bounds::or_zero(no_limit, 1_000, DAY_MS)),
        slow: r.word("slow", d.slow, &SlowMember::WORDS),
        presence: r.word("presence", d.presence, &PresenceKind::WORDS),
        names_max: r.number("names_max", d.names_max, Bounds::new(1, 10_000)),
        presence_ms: r.number("presence_ms", d.presence_ms, Bounds::new(100, MINUTE_MS)),
        name: d.name,
    };
    check_join(r, &rule, has_users);
    for key in ["history_items", "history_bytes", "history_ms"] {
        if rule.keep != Keep::History && r.is_set(key) {
            r.warning(key, "without effect: only keep = \"history\" has a history");
        }
    }
    name.map(|_| rule)
}

fn check_join(r: &mut Reader, rule: &GroupRule, has_users: bool) {
    let needs_users = match rule.join {
        JoinBy::Claim | JoinBy::User => true,
        JoinBy::None | JoinBy::Anybody => false,
    };
    if needs_users && !has_users {
        let text = "nobody can join while auth.mode is \"off\", as no client is a user; set that \
                    to \"jwt\", or this to \"anybody\"";
        r.warning("join", text);
    }
}

#[cfg(test)]
mod tests;
