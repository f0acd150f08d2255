//! Events: what services are told of sessions and of groups.

/// What happened. The list is closed: services match on the names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum EventKind {
    /// A session is there.
    Connected,
    /// A session is there no more.
    Disconnected,
    /// A session came into a group.
    Joined,
    /// A session is in a group no more.
    Left,
    /// Events that could not be told.
    Lost,
}

impl EventKind {
    /// All kinds, in the order of reports.
    pub(crate) const ALL: [EventKind; 5] =
        [Self::Connected, Self::Disconnected, Self::Joined, Self::Left, Self::Lost];
    /// The kinds that a service may ask for, by their words in the configuration. `lost` comes
    /// unasked.
    pub(crate) const WORDS: [(&str, Self); 4] = [
        ("connected", Self::Connected),
        ("disconnected", Self::Disconnected),
        ("joined", Self::Joined),
        ("left", Self::Left),
    ];

    /// Name on the wire and in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Disconnected => "disconnected",
            Self::Joined => "joined",
            Self::Left => "left",
            Self::Lost => "lost",
        }
    }

    /// Id of its messages. 9104 and 9105 are kept for groups that fill and empty.
    pub(crate) fn msg_id(self) -> u32 {
        match self {
            Self::Connected => 9100,
            Self::Disconnected => 9101,
            Self::Joined => 9102,
            Self::Left => 9103,
            Self::Lost => 9106,
        }
    }
}

/// Why a session, or its membership in a group, ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EventReason {
    /// Its client closed the connection, or that ended in another way and cannot be resumed.
    #[default]
    Closed,
    /// Its client did not come back in time.
    Expired,
    /// A service closed it.
    Kicked,
    /// Its client goes on as another session.
    Replaced,
    /// Its token was refused, or has expired.
    Token,
    /// Its client read too slowly.
    Slow,
    /// The gateway stops.
    GatewayStop,
    /// The client left the group.
    Left,
    /// A service took it out of the group.
    Service,
}

impl EventReason {
    /// Name on the wire.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Closed => "CLOSED",
            Self::Expired => "EXPIRED",
            Self::Kicked => "KICKED",
            Self::Replaced => "REPLACED",
            Self::Token => "TOKEN",
            Self::Slow => "SLOW",
            Self::GatewayStop => "GATEWAY_STOP",
            Self::Left => "LEFT",
            Self::Service => "SERVICE",
        }
    }
}

/// What became of an event towards one service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EventResult {
    /// The service answered it with OK.
    Ok,
    /// The service answered it with another status.
    Failed,
    /// It could not be told.
    Lost,
}

impl EventResult {
    /// All results, in the order of reports.
    pub const ALL: [EventResult; 3] = [Self::Ok, Self::Failed, Self::Lost];

    /// Name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Lost => "lost",
        }
    }
}

/// Numbers of events by kind and result.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct EventCounts([[u64; EventResult::ALL.len()]; EventKind::ALL.len()]);

impl EventCounts {
    /// Counts an event that ended.
    pub fn inc(&mut self, kind: EventKind, result: EventResult) {
        self.0[kind as usize][result as usize] += 1;
    }

    /// The number of one kind and result.
    pub fn get(&self, kind: EventKind, result: EventResult) -> u64 {
        self.0[kind as usize][result as usize]
    }
}
