//! Settings of pushes and groups: `[push]`, `[[push_caller]]`, `[groups]` and `[[group]]`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::Secret;
use crate::message::Priority;
use crate::push::Addressees;

/// A pattern of names: a text, or a beginning followed by `*`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pattern(pub Arc<str>);

impl Pattern {
    /// Whether `name` is one of those that it stands for.
    pub fn has(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(begin) => name.starts_with(begin),
            None => *self.0 == *name,
        }
    }
}

/// The word of a value among `words`, which have all of its kind.
pub fn word_of<T: PartialEq>(words: &[(&'static str, T)], value: &T) -> &'static str {
    words.iter().find(|(_, one)| one == value).map_or("", |(word, _)| word)
}

/// The clients that may join a group by themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JoinBy {
    /// Nobody: services put sessions in.
    None,
    /// Users whose token has a `groups` claim that names the group; they join when they sign in.
    Claim,
    /// Users.
    User,
    /// Everybody.
    Anybody,
}

impl JoinBy {
    /// Its values, by their words in the configuration.
    pub const WORDS: [(&str, Self); 4] = [
        ("none", Self::None),
        ("claim", Self::Claim),
        ("user", Self::User),
        ("anybody", Self::Anybody),
    ];
}

/// Clients that may publish to a group, or list its members.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    /// Nobody but services.
    None,
    /// Its members.
    Members,
    /// Every user of its tenant.
    User,
}

impl Who {
    /// Its values, by their words in the configuration.
    pub const WORDS: [(&str, Self); 3] =
        [("none", Self::None), ("members", Self::Members), ("user", Self::User)];
}

/// The part of a group's pushes that is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// Nothing beyond what members still have to read.
    None,
    /// The last `recent_ms`, for members that come back.
    Recent,
    /// `history_items`, `history_bytes` and `history_ms` of them, for newcomers too.
    History,
    /// The newest of each key, given to those who join.
    Last,
}

impl Keep {
    /// Its values, by their words in the configuration.
    pub const WORDS: [(&str, Self); 4] = [
        ("none", Self::None),
        ("recent", Self::Recent),
        ("history", Self::History),
        ("last", Self::Last),
    ];
}

/// What becomes of a member that reads too slowly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlowMember {
    /// It goes on with the oldest push that is left, and is told how many it missed.
    Skip,
    /// It goes on with the newest of each key, and is told.
    Latest,
    /// It is closed with 4001.
    Close,
}

impl SlowMember {
    /// Its values, by their words in the configuration.
    pub const WORDS: [(&str, Self); 3] =
        [("skip", Self::Skip), ("latest", Self::Latest), ("close", Self::Close)];
}

/// What members are told of each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PresenceKind {
    /// Nothing.
    Off,
    /// How many there are.
    Count,
    /// Names of those who come and go.
    Names,
}

impl PresenceKind {
    /// Its values, by their words in the configuration.
    pub const WORDS: [(&str, Self); 3] =
        [("off", Self::Off), ("count", Self::Count), ("names", Self::Names)];
}

/// A `[[group]]`: the rule of all groups whose name its pattern has. Live.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupRule {
    /// Names that it is for. The first rule that has a name counts.
    pub name: Pattern,
    /// Clients that may join by themselves.
    pub join: JoinBy,
    /// Clients that may publish by id 9015.
    pub publish: Who,
    /// Clients that may list members by id 9013, as far as `presence` tells of them.
    pub list: Who,
    /// Sessions in one group.
    pub members_max: u32,
    /// The part of pushes that is kept.
    pub keep: Keep,
    /// Time for which pushes are kept for members that come back.
    pub recent_ms: u64,
    /// Pushes of history; 0 = no limit but the others.
    pub history_items: usize,
    /// Bytes of history.
    pub history_bytes: usize,
    /// Age of history; 0 = no limit but the others.
    pub history_ms: u64,
    /// What becomes of slow members.
    pub slow: SlowMember,
    /// What members are told of each other.
    pub presence: PresenceKind,
    /// Members up to which names are told.
    pub names_max: u32,
    /// Least time between two presence messages of a group; a shard tells its home no more often.
    pub presence_ms: u64,
}

impl GroupRule {
    /// The rule with its defaults, for the names of `name`.
    pub fn new(name: &str) -> Self {
        Self {
            name: Pattern(name.into()),
            join: JoinBy::None,
            publish: Who::None,
            list: Who::None,
            members_max: 100_000,
            keep: Keep::Recent,
            recent_ms: 120_000,
            history_items: 0,
            history_bytes: 64 << 10,
            history_ms: 0,
            slow: SlowMember::Skip,
            presence: PresenceKind::Off,
            names_max: 100,
            presence_ms: 1_000,
        }
    }

    /// Pushes that are shown to who asks for the history: the newest ones.
    pub fn shown_max(&self) -> usize {
        match self.keep {
            Keep::None => 0,
            Keep::History if self.history_items > 0 => self.history_items,
            Keep::Recent | Keep::Last | Keep::History => usize::MAX,
        }
    }
}

/// The section `[groups]`: caps of a shard. Live, but for `names_max` and `members_max`.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupSettings {
    /// Groups with members or history on a shard. Boot.
    pub names_max: usize,
    /// Memberships of all sessions of a shard. Boot.
    pub members_max: usize,
    /// Groups of one session; at most 64.
    pub per_session_max: usize,
    /// Time in which a join must be confirmed by the group's home shard.
    pub join_timeout_ms: u64,
    /// Bytes of one group's pushes that a slow member may be behind, and that are kept for members
    /// that come back.
    pub lag_bytes_max: usize,
    /// Bytes of all groups' pushes.
    pub log_total_bytes_max: usize,
    /// Members whose turn comes in one turn of a shard.
    pub sweep_members: usize,
    /// Time for which a shard goes on being told of a group after its last member left.
    pub linger_ms: u64,
}

impl Default for GroupSettings {
    fn default() -> Self {
        Self {
            names_max: 65_536,
            members_max: 4_194_304,
            per_session_max: 64,
            join_timeout_ms: 5_000,
            lag_bytes_max: 256 << 10,
            log_total_bytes_max: 256 << 20,
            sweep_members: 128,
            linger_ms: 10_000,
        }
    }
}

/// The section `[push]`. Live, but for the listener and `dedup_entries_max`.
#[derive(Clone, Debug, PartialEq)]
pub struct PushSettings {
    /// Where callers push by gRPC and HTTP; `None` = nowhere. Boot.
    pub listen: Option<SocketAddr>,
    /// Certificate chain, PEM; together with `tls_key`. Boot.
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM. Boot.
    pub tls_key: Option<PathBuf>,
    /// Bytes of one payload: at most a quarter of `conn.outbox_bytes_max`.
    pub bytes_max: usize,
    /// Pushes of one request.
    pub batch_max: usize,
    /// Users or sessions of one push.
    pub users_max: usize,
    /// Pushes of one `Feed` that are on their way, or whose answers were not read.
    pub feed_credit: u32,
    /// Time for which the id of a push is remembered.
    pub dedup_ms: u64,
    /// Ids that a shard remembers. Boot.
    pub dedup_entries_max: usize,
    /// Callers. Live.
    pub callers: Vec<PushCaller>,
    /// Rules of groups. Live.
    pub groups: Vec<Arc<GroupRule>>,
    /// What services may push in their answers, by their names; who is not here may nothing. Live.
    pub services: BTreeMap<Arc<str>, Arc<PushRights>>,
}

impl Default for PushSettings {
    fn default() -> Self {
        Self {
            listen: None,
            tls_cert: None,
            tls_key: None,
            bytes_max: 64 << 10,
            batch_max: 100,
            users_max: 1_000,
            feed_credit: 1_000,
            dedup_ms: 60_000,
            dedup_entries_max: 100_000,
            callers: Vec::new(),
            groups: Vec::new(),
            services: BTreeMap::new(),
        }
    }
}

impl PushSettings {
    /// The rule of the group with this name.
    pub fn rule(&self, group: &str) -> Option<&Arc<GroupRule>> {
        self.groups.iter().find(|rule| rule.name.has(group))
    }
}

/// What a caller may do besides naming whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PushVerb {
    /// Push.
    Push,
    /// Put sessions into groups, and take them out.
    Join,
    /// Read members, counts, history and sessions.
    Read,
    /// Close connections.
    Disconnect,
}

/// The kinds of addressees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PushTo {
    /// Sessions.
    Session,
    /// Users.
    User,
    /// Groups, as far as `groups` has their names.
    Group,
    /// All of a tenant.
    Tenant,
    /// All.
    Everyone,
}

impl PushTo {
    /// The kind of some addressees.
    pub fn of(to: &Addressees) -> Self {
        match to {
            Addressees::Sessions(_) => Self::Session,
            Addressees::Users(_) => Self::User,
            Addressees::Group(_) => Self::Group,
            Addressees::Tenant => Self::Tenant,
            Addressees::Everyone => Self::Everyone,
        }
    }

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::User => "user",
            Self::Group => "group",
            Self::Tenant => "tenant",
            Self::Everyone => "everyone",
        }
    }
}

/// The rights of somebody who pushes: a caller, or a service in its answers.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct PushRights {
    /// Names of tenants; `*` for all.
    pub tenants: Vec<Pattern>,
    /// Kinds of addressees.
    pub to: Vec<PushTo>,
    /// Names of groups to push to.
    pub groups: Vec<Pattern>,
    /// Names of groups to put sessions into; a caller's are the same as `groups`.
    pub joins: Vec<Pattern>,
    /// What it may do.
    pub may: Vec<PushVerb>,
}

impl PushRights {
    /// Whether it has them for `tenant`.
    pub fn has_tenant(&self, tenant: &str) -> bool {
        self.tenants.iter().any(|pattern| pattern.has(tenant))
    }

    /// Whether it may push to the group `name`.
    pub fn has_group(&self, name: &str) -> bool {
        self.groups.iter().any(|pattern| pattern.has(name))
    }

    /// Whether it may put sessions into the group `name`.
    pub fn has_join(&self, name: &str) -> bool {
        self.joins.iter().any(|pattern| pattern.has(name))
    }
}

/// A `[[push_caller]]`. Live.
#[derive(Clone, Debug, PartialEq)]
pub struct PushCaller {
    /// Name of the caller in logs and metrics.
    pub name: Arc<str>,
    /// Token of the caller; `None` = in `token_file`.
    pub token: Option<Secret>,
    /// File that holds the token.
    pub token_file: Option<PathBuf>,
    /// What it may.
    pub rights: PushRights,
    /// The highest class of its pushes.
    pub priority_max: Priority,
    /// Pushes a second; 0 = no limit.
    pub pushes_per_s: u32,
    /// Deliveries a second; 0 = no limit.
    pub deliveries_per_s: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_has_one_name_or_all_with_its_beginning() {
        let has = |pattern: &str, name: &str| Pattern(pattern.into()).has(name);
        assert!(has("room:*", "room:7") && has("room:*", "room:") && has("*", ""));
        assert!(!has("room:*", "room") && !has("room:7", "room:70") && has("room:7", "room:7"));
    }
}
