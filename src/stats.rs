//! Statistics: closed lists of counters and histograms, one set a shard, added up at export.

pub mod call_times;
pub mod report;

use hdrhistogram::Histogram;

use crate::ids::TenantId;
pub use call_times::CallTimes;
pub use report::{Gauges, HeldOwner, InstanceReport, Report, Signal};

macro_rules! counters {
    ($($(#[doc = $help:literal])* $name:ident = $label:literal,)*) => {
        /// Everything that is counted. Each count is a plain add on the shard that sees the event.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        pub enum Counter { $($(#[doc = $help])* $name,)* }

        impl Counter {
            /// All counters, in their order.
            pub(crate) const ALL: &[Counter] = &[$(Counter::$name,)*];
            /// Name in statistics, metrics and logs.
            pub fn name(self) -> &'static str {
                match self { $(Counter::$name => $label,)* }
            }
            /// Help text of the counter.
            pub(crate) fn help(self) -> &'static str {
                match self { $(Counter::$name => concat!($($help),*).trim_ascii(),)* }
            }
        }
    };
}

counters! {
    /// TCP connections accepted.
    Accepted = "accepted",
    /// Connections over `connections_max`, answered 503.
    AcceptRefused = "accept_refused",
    /// Connections over `limits.unauthenticated_max`, answered 503.
    UnauthenticatedRefused = "unauthenticated_refused",
    /// Connections answered 429, because what is left of `conn.connections_max` is kept for
    /// addresses that have fewer.
    ConnectionsOverShare = "connections_over_share",
    /// Connections answered 429, because what is left of `limits.unauthenticated_max` is kept for
    /// addresses that have fewer.
    UnauthenticatedOverShare = "unauthenticated_over_share",
    /// Connections over `limits.address_unauthenticated_max`, answered 429.
    AddressUnauthenticatedRefused = "address_unauthenticated_refused",
    /// Connections over `limits.address_connections_max`, answered 429.
    AddressConnectionsRefused = "address_connections_refused",
    /// Connections over `limits.address_connects_per_s`, answered 429.
    AddressConnectsRefused = "address_connects_refused",
    /// Clients over `session.per_user_max` that signed in and were refused: 429, 403, or closed.
    UserConnectionsRefused = "user_connections_refused",
    /// Times the connections of a user were pinged because one more wanted a place.
    UserConnectionsTested = "user_connections_tested",
    /// Clients over `limits.user_connects_per_s` that signed in: 429, or closed with 1013.
    UserConnectsRefused = "user_connects_refused",
    /// Clients handed to another shard, because this one had no room.
    HandedOver = "handed_over",
    /// Connections sent to their user's home shard.
    MovedOut = "moved_out",
    /// Connections taken over as those of users of this shard.
    MovedIn = "moved_in",
    /// Connections that did not move yet, because a lane was full.
    MoveDelayed = "move_delayed",
    /// Connections closed with 1013 or 503, because their home shard was full.
    MoveRefused = "move_refused",
    /// Connections cut because their shard had no place for them at all, or ended.
    MoveLost = "move_lost",
    /// Failures of accept(): no free file descriptor, or an aborted connection.
    AcceptFailed = "accept_failed",
    /// Connections that began with bytes other than a PROXY protocol header.
    ProxyRefused = "proxy_refused",
    /// Upgrade requests of proxies in `forwarded.from` that named no client.
    ForwardedMissing = "forwarded_missing",
    /// Requests of proxies in `forwarded.from` in which an entry that decides was no address.
    ForwardedUnclear = "forwarded_unclear",
    /// Handshakes of TLS that were completed with certificates.
    TlsHandshakes = "tls_handshakes",
    /// Handshakes of TLS that were completed by a ticket of an earlier one.
    TlsResumed = "tls_resumed",
    /// Clients that left during the handshake of TLS.
    TlsAbandoned = "tls_abandoned",
    /// TLS ended because the client's bytes are not TLS.
    TlsFailedNotTls = "tls_failed_not_tls",
    /// TLS ended because client and gateway share no version, cipher suite or group.
    TlsFailedIncompatible = "tls_failed_incompatible",
    /// TLS ended because no certificate covers the name that was asked for.
    TlsFailedName = "tls_failed_name",
    /// TLS ended because the client offers protocols without HTTP/1.1.
    TlsFailedProtocol = "tls_failed_protocol",
    /// TLS ended because the client's certificate is missing or not valid.
    TlsFailedCertificate = "tls_failed_certificate",
    /// TLS ended by an alert of the client.
    TlsFailedAlert = "tls_failed_alert",
    /// TLS ended because the client broke the protocol.
    TlsFailedBroken = "tls_failed_broken",
    /// Upgrades answered 101.
    Upgraded = "upgraded",
    /// Handshakes answered with an HTTP error.
    HandshakeRefused = "handshake_refused",
    /// Handshakes not finished in time.
    HandshakeTimeout = "handshake_timeout",
    /// Times the shard did not run for 250 ms or longer: it was stopped or starved.
    Pauses = "pauses",
    /// Connections that have ended, for any cause.
    Closed = "closed",
    /// Closed with 1002, 1003, 1007 or 1009.
    ClosedProtocol = "closed_protocol",
    /// Closed with 1008.
    ClosedPolicy = "closed_policy",
    /// Closed with 1013, because the user is over a limit.
    ClosedTryLater = "closed_try_later",
    /// Closed with 4001.
    ClosedSlow = "closed_slow",
    /// WebSocket pings sent to clients from which nothing had come for `conn.heartbeat_ms`, or
    /// whose user wants one more connection than it may have.
    Pings = "pings",
    /// Closed with 4002.
    ClosedNoHeartbeat = "closed_no_heartbeat",
    /// Closed with 4004.
    ClosedTokenExpired = "closed_token_expired",
    /// Closed with 4005.
    ClosedNoAuth = "closed_no_auth",
    /// Closed with 4502.
    ClosedElsewhere = "closed_elsewhere",
    /// Closed with 4500.
    ClosedBadToken = "closed_bad_token",
    /// Tokens that were accepted.
    AuthOk = "auth_ok",
    /// Entries of the claim groups that were left out of tokens that were accepted.
    AuthGroupsLeftOut = "auth_groups_left_out",
    /// Tokens neither accepted nor refused, because their key was not known and a newer set of
    /// keys may hold it: 503 or UNAVAILABLE.
    AuthKeysMissing = "auth_keys_missing",
    /// Tokens that waited for a later turn to be verified.
    AuthDelayed = "auth_delayed",
    /// Tokens not verified, because too many of their user or address waited: 503 or UNAVAILABLE.
    AuthWaitRefused = "auth_wait_refused",
    /// Tokens refused for their form or header.
    AuthRefusedForm = "auth_refused_form",
    /// Tokens refused because their key or algorithm is not known.
    AuthRefusedKey = "auth_refused_key",
    /// Tokens refused for their signature.
    AuthRefusedSignature = "auth_refused_signature",
    /// Tokens refused because a claim is missing or has the wrong form.
    AuthRefusedClaim = "auth_refused_claim",
    /// Tokens refused because they expired, or are from the future.
    AuthRefusedTime = "auth_refused_time",
    /// Tokens refused because they have another issuer or audience, or a tenant that is not
    /// configured.
    AuthRefusedParty = "auth_refused_party",
    /// Sign-ins refused because the client's page is not one of its tenant's.
    AuthRefusedOrigin = "auth_refused_origin",
    /// Closed with 1001.
    ClosedDrain = "closed_drain",
    /// Bytes received from clients.
    BytesIn = "bytes_in",
    /// Bytes sent to clients.
    BytesOut = "bytes_out",
    /// Data frames and control frames received.
    FramesIn = "frames_in",
    /// send() calls to clients.
    Sends = "sends",
    /// recv() calls on client sockets.
    Receives = "receives",
    /// Messages handled as system messages.
    SystemMessages = "system_messages",
    /// Messages handled as business messages.
    BusinessMessages = "business_messages",
    /// Messages handled as gateway messages.
    GatewayMessages = "gateway_messages",
    /// Bytes of the frames of messages that were read.
    MessageBytes = "message_bytes",
    /// Connections of tenants over their quota: 429, or closed with 1013.
    QuotaConnectsRefused = "quota_connects_refused",
    /// Messages over their tenant's quota.
    QuotaMessagesRefused = "quota_messages_refused",
    /// Messages that could not be read.
    BadMessages = "bad_messages",
    /// Errors answered to system messages.
    SystemErrors = "system_errors",
    /// Errors answered to business messages.
    BusinessErrors = "business_errors",
    /// Errors answered to gateway messages.
    GatewayErrors = "gateway_errors",
    /// Terminal answers written to connections.
    Answers = "answers",
    /// Terminal answers kept for a client that lost its connection.
    AnswersKept = "answers_kept",
    /// Messages whose session ended before the answer, or whose answer found no room in its window.
    AnswersUndeliverable = "answers_undeliverable",
    /// Sessions made resumable.
    SessionsResumable = "sessions_resumable",
    /// Sessions resumed without a gap.
    SessionsResumed = "sessions_resumed",
    /// Sessions resumed, of which frames are missing.
    SessionsGap = "sessions_gap",
    /// Sessions that could not be resumed: away for longer than `session.ttl_ms`, or crowded out.
    SessionsLostExpired = "sessions_lost_expired",
    /// Sessions that could not be resumed: of a gateway before its restart, or of another one.
    SessionsLostRestarted = "sessions_lost_restarted",
    /// Sessions that could not be resumed: their clients had left.
    SessionsLostEnded = "sessions_lost_ended",
    /// Sessions that could not be resumed: no such id, or another secret or user.
    SessionsLostUnknown = "sessions_lost_unknown",
    /// Sessions resumed while their old connection was still there; it is closed with 4000.
    SessionTakeovers = "session_takeovers",
    /// Resumable sessions that ended because their clients left, signed in, or broke a rule.
    SessionsEnded = "sessions_ended",
    /// Sessions that ended because they were away for `session.ttl_ms`.
    SessionsExpired = "sessions_expired",
    /// Sessions that ended because more were away than `session.away_max` or their user's or
    /// address's part, or by a lower `session.kept_total_bytes_max`.
    SessionsCrowdedOut = "sessions_crowded_out",
    /// Frames dropped before their clients confirmed them: by newer ones, or with their session.
    SessionFramesDropped = "session_frames_dropped",
    /// Pushes that came to this shard: of callers, services and clients.
    Pushes = "pushes",
    /// Pushes of them that were refused: nobody got them.
    PushesRefused = "pushes_refused",
    /// Pushes to sessions that went before their client took them: for a newer one of their key,
    /// because too many waited, or because their time was over.
    PushesDropped = "pushes_dropped",
    /// Pushes to sessions among those dropped that went for a newer one of their key.
    Conflated = "conflated",
    /// Pushes written to clients, each counted once for each client.
    Deliveries = "deliveries",
    /// Writes to clients' sockets straight from the log of a group: one may have many pushes.
    DeliverySends = "delivery_sends",
    /// Pushes of groups that members missed because they read too slowly.
    DeliveriesMissed = "deliveries_missed",
    /// Times that a member was told of a gap in its group's pushes.
    GroupGaps = "group_gaps",
    /// Gaps among them that were told when the member joined or came back, and not because it reads
    /// slowly.
    GroupGapsOnReturn = "group_gaps_on_return",
    /// Messages about the people of a group that its home here gave to all shards with members.
    PresenceFrames = "presence_frames",
    /// Sessions that joined a group.
    GroupJoins = "group_joins",
    /// Sessions that left a group, or ended in it.
    GroupLeaves = "group_leaves",
    /// Events to services that were lost, each counted once for each service.
    EventsLost = "events_lost",
    /// Joins that were refused.
    GroupJoinsRefused = "group_joins_refused",
    /// Connections that a service closed.
    ClosedByService = "closed_by_service",
    /// One-way messages that were refused.
    OneWayRefused = "one_way_refused",
    /// Times reading a connection was paused for its unanswered messages, or for the bytes of
    /// answers that wait or are expected.
    ReadPaused = "read_paused",
    /// Times reading a connection was paused because it sent more and more over a rate.
    ReadHeld = "read_held",
    /// Messages over `limits.address_messages_per_s`.
    AddressMessagesRefused = "address_messages_refused",
    /// Messages over `limits.user_messages_per_s`.
    UserMessagesRefused = "user_messages_refused",
    /// Messages whose instance was found in the route cache.
    CacheHits = "cache_hits",
    /// Messages whose instance was looked up on the ring.
    CacheMisses = "cache_misses",
    /// Messages without a route or an instance.
    FailedRoutes = "failed_routes",
    /// Messages put in the queue.
    Enqueued = "enqueued",
    /// Messages taken out of the queue, sent or expired.
    Dequeued = "dequeued",
    /// Messages that were duplicates.
    Duplicates = "duplicates",
    /// Messages refused because what is left of the room for ids is kept for those that hold less.
    DedupOverShare = "dedup_over_share",
    /// Messages refused by the queue.
    QueueRejected = "queue_rejected",
    /// Messages refused because their owner has its share of an instance's queue.
    QueueOverShare = "queue_over_share",
    /// Calls started.
    Calls = "calls",
    /// Messages in those calls.
    Dispatched = "dispatched",
    /// Messages the service answered with OK.
    DispatchOk = "dispatch_ok",
    /// Messages whose dispatch ended in an error.
    DispatchFailed = "dispatch_failed",
    /// Messages sent again.
    Retries = "retries",
    /// Retries not made because the retry budget was used up.
    RetryBudgetSpent = "retry_budget_spent",
    /// Messages moved to another instance.
    FailedOver = "failed_over",
    /// Outcomes of calls that had ended before.
    StaleOutcomes = "stale_outcomes",
    /// Response items for requests that were not in the batch.
    UnknownResponses = "unknown_responses",
    /// Clients that the lane to another shard did not take.
    LaneRefused = "lane_refused",
    /// Events that the lane to the control thread did not take.
    LaneLost = "lane_lost",
    /// Connections to services opened.
    BackendConnects = "backend_connects",
    /// Attempts to connect to a service that failed.
    BackendConnectFailed = "backend_connect_failed",
    /// Connections to services lost or closed.
    BackendDisconnects = "backend_disconnects",
}

/// The counters of one shard.
#[derive(Clone, Debug)]
pub struct Counters {
    values: Vec<u64>,
}

impl Default for Counters {
    fn default() -> Self {
        Self { values: vec![0; Counter::ALL.len()] }
    }
}

impl Counters {
    /// Adds one to a counter.
    #[inline]
    pub(crate) fn inc(&mut self, counter: Counter) {
        self.values[counter as usize] += 1;
    }
    /// Adds `n` to a counter.
    #[inline]
    pub(crate) fn add(&mut self, counter: Counter, n: u64) {
        self.values[counter as usize] += n;
    }
    /// The present value of a counter.
    pub fn get(&self, counter: Counter) -> u64 {
        self.values[counter as usize]
    }
    /// Adds all counters of `other`.
    pub(crate) fn merge(&mut self, other: &Counters) {
        for (a, b) in self.values.iter_mut().zip(&other.values) {
            *a += b;
        }
    }
}

/// Everything that is counted for a tenant of the configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum TenantCounter {
    /// Messages of its users.
    Messages,
    /// Bytes of those messages.
    MessageBytes,
    /// Terminal answers written to its users' connections.
    Answers,
    /// Error answers, by any reason.
    Errors,
    /// Connections over `quota.connections_max`.
    ConnectionsRefused,
    /// Connections over `quota.connects_per_s`.
    ConnectsRefused,
    /// Messages over `quota.messages_per_s` or `quota.bytes_per_s`.
    RateRefused,
    /// Messages over `quota.queued_bytes_max` or `quota.dedup_ids_max`.
    RoomRefused,
}

impl TenantCounter {
    /// All of them, in their order.
    pub(crate) const ALL: [Self; 8] = [
        Self::Messages,
        Self::MessageBytes,
        Self::Answers,
        Self::Errors,
        Self::ConnectionsRefused,
        Self::ConnectsRefused,
        Self::RateRefused,
        Self::RoomRefused,
    ];

    /// Name in statistics and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::MessageBytes => "message_bytes",
            Self::Answers => "answers",
            Self::Errors => "errors",
            Self::ConnectionsRefused => "connections_refused",
            Self::ConnectsRefused => "connects_refused",
            Self::RateRefused => "rate_refused",
            Self::RoomRefused => "room_refused",
        }
    }

    /// Help text of the metric.
    pub(crate) fn help(self) -> &'static str {
        match self {
            Self::Messages => "Messages of a tenant's users.",
            Self::MessageBytes => "Bytes of the messages of a tenant's users.",
            Self::Answers => "Terminal answers written to a tenant's users.",
            Self::Errors => "Error answers to a tenant's users.",
            Self::ConnectionsRefused => "Connections over a tenant's connections_max.",
            Self::ConnectsRefused => "Connections over a tenant's connects_per_s.",
            Self::RateRefused => "Messages over a tenant's messages_per_s or bytes_per_s.",
            Self::RoomRefused => "Messages over a tenant's queued_bytes_max or dedup_ids_max.",
        }
    }
}

/// Use of a shard by one tenant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TenantReport {
    /// The tenant.
    pub id: TenantId,
    /// Counts since the tenant was configured, in the order of [`TenantCounter::ALL`].
    pub counts: [u64; TenantCounter::ALL.len()],
    /// Upgraded connections of its users.
    pub connections: u64,
    /// Bytes of messages without an answer.
    pub queued_bytes: u64,
    /// Ids that are remembered.
    pub dedup_ids: u64,
}

/// Stages of a message's way; each has a histogram of microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Stage {
    /// Time from the arrival of bytes at this machine to their reading, of a sample of connections;
    /// one value a read.
    Unread,
    /// Time of a turn's reading of client sockets; one value a turn that reads.
    Reading,
    /// Time to receive and decode a message: a turn's time, divided by its messages.
    Decode,
    /// Time from the enqueueing of a message to its place in a batch.
    QueueWait,
    /// Time from the enqueueing of a batch's oldest message to the batch's departure; one value a
    /// batch.
    BatchWait,
    /// Time from the hand-over of a call to its connection to its outcome; one value a batch.
    RoundTrip,
    /// Time from an answer's entry into the outbox to the kernel's acceptance of its bytes; one
    /// value a flush.
    ReplyFlush,
    /// Time from the reading of a message to the writing of its answer.
    Whole,
    /// Delay of the shard's answer to the pulse thread.
    Stall,
}

impl Stage {
    /// All stages, in the order of a message's way.
    pub(crate) const ALL: [Stage; 9] = [
        Stage::Unread,
        Stage::Reading,
        Stage::Decode,
        Stage::QueueWait,
        Stage::BatchWait,
        Stage::RoundTrip,
        Stage::ReplyFlush,
        Stage::Whole,
        Stage::Stall,
    ];

    /// Name in statistics and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Stage::Unread => "unread",
            Stage::Reading => "reading",
            Stage::Decode => "decode",
            Stage::QueueWait => "queue_wait",
            Stage::BatchWait => "batch_wait",
            Stage::RoundTrip => "round_trip",
            Stage::ReplyFlush => "reply_flush",
            Stage::Whole => "whole",
            Stage::Stall => "stall",
        }
    }
}

/// Largest recordable time: 10 minutes, [`crate::limits::TIMEOUT_MS_MAX`]. Longer times count as
/// this one.
const STAGE_US_MAX: u64 = 600_000_000;

/// The histograms of one shard: HDR, two significant digits (relative error at most 1 %), 25 KiB
/// each.
#[derive(Clone, Debug)]
pub struct Histograms {
    stages: Vec<Histogram<u64>>,
}

impl Default for Histograms {
    fn default() -> Self {
        let make = || Histogram::new_with_bounds(1, STAGE_US_MAX, 2).expect("bounds are valid");
        Self { stages: Stage::ALL.iter().map(|_| make()).collect() }
    }
}

impl Histograms {
    /// Records `count` values of `us` microseconds.
    #[inline]
    pub(crate) fn record(&mut self, stage: Stage, us: u64, count: u64) {
        self.stages[stage as usize].saturating_record_n(us, count);
    }
    /// Bytes of all counts. They are allocated at the start.
    pub(crate) fn bytes(&self) -> usize {
        let counts: usize = self.stages.iter().map(Histogram::distinct_values).sum();
        counts * size_of::<u64>()
    }
    /// The histogram of a stage.
    pub(crate) fn get(&self, stage: Stage) -> &Histogram<u64> {
        &self.stages[stage as usize]
    }
    /// Adds all histograms of `other`.
    pub(crate) fn merge(&mut self, other: &Histograms) {
        for (a, b) in self.stages.iter_mut().zip(&other.stages) {
            a.add(b).expect("same bounds");
        }
    }
    /// Adds the values from the time of `earlier` (`None` = the start) to that of `now`. A stage
    /// without any costs nothing.
    pub(crate) fn add_since(&mut self, now: &Histograms, earlier: Option<&Histograms>) {
        for (at, sum) in self.stages.iter_mut().enumerate() {
            let (now, earlier) = (&now.stages[at], earlier.map(|earlier| &earlier.stages[at]));
            if earlier.map_or(0, Histogram::len) == now.len() {
                continue;
            }
            sum.add(now).expect("same bounds");
            if let Some(earlier) = earlier {
                sum.subtract(earlier).expect("a shard takes nothing back");
            }
        }
    }
    /// Forgets all values.
    pub(crate) fn clear(&mut self) {
        self.stages.iter_mut().filter(|stage| !stage.is_empty()).for_each(Histogram::reset);
    }
    /// Takes out what had been recorded before, at the time of `earlier`; all, if that is later.
    pub(crate) fn subtract(&mut self, earlier: &Histograms) {
        for (a, b) in self.stages.iter_mut().zip(&earlier.stages) {
            if a.subtract(b).is_err() {
                a.reset();
            }
        }
    }
}
