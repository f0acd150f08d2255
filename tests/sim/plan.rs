//! The plan of a seed: shards, their settings, services and routes, clients, and the faults that
//! occur. Each option is on or off by the seed ("swarm"), so that runs differ in kind.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use shardgate::auth::Verifier;
use shardgate::auth::load::{FetchedSets, LocalKeys};
use shardgate::auth::mint::{SigningKey, Wanted, mint};
use shardgate::config::Overrides;
use shardgate::config::load::{Files, from_files};
use shardgate::config::settings::{
    Algorithm, AuthKey, AuthMode, AuthSettings, ConnectionsMax, GatewaySettings, KeySource,
    PerUser, ShardSettings, StopSettings, Tenants,
};
use shardgate::ids::{InstanceId, ServiceId};
use shardgate::message::Priority;
use shardgate::routing::Ring;
use shardgate::routing::{
    Failover, HashOn, Instance, Mode, Order, PayloadKind, Route, Service, Share, Snapshot,
    TenantTable,
};

use crate::dice::Dice;
use crate::greedy::Greed;
use crate::pushes::PushPlan;
use crate::sessions::SessionPlan;
use crate::tenants::{OWN_SERVICES, TenantPlan, tenant_of};

/// Names of the services; the last one is called in unary mode.
pub const SERVICES: [&str; 4] = ["logic", "chat", "fight", "legacy"];
/// Index of the service that is called in unary mode.
pub const UNARY: u16 = 3;

/// Faults and habits, in percent unless said otherwise; 0 = does not occur.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Calls that fail as a whole.
    pub fail: u64,
    /// Calls that are never answered.
    pub hang: u64,
    /// Answers that are not a BatchResponse.
    pub garbage: u64,
    /// Items with an error, missing, answered twice, or unknown.
    pub item: u64,
    /// Mean time between link flaps in milliseconds; 0 = none.
    pub flap_ms: u64,
    /// Mean time between snapshots in milliseconds; 0 = none.
    pub adopt_ms: u64,
    /// Client actions that end the connection.
    pub leave: u64,
    /// Clients that read slowly.
    pub slow: u64,
    /// Client actions that break a rule.
    pub bad: u64,
    /// Messages that repeat an earlier one with the same id.
    pub repeat: u64,
    /// Messages with an id.
    pub with_id: u64,
    /// Messages that want no answer.
    pub one_way: u64,
    /// Payloads of some thousand bytes.
    pub large: u64,
    /// Writes and reads in small pieces.
    pub split: u64,
    /// Ticks that come late.
    pub stall: u64,
    /// Messages with a deadline of a few milliseconds.
    pub short_deadline: u64,
    /// Client actions that sign in, and upgrades with a token.
    pub sign_in: u64,
    /// Lanes to a home shard that are full.
    pub full: u64,
    /// Longest usual answer time of an instance, in microseconds.
    pub answer_us: u64,
}

impl Faults {
    /// Nothing occurs.
    pub fn none() -> Self {
        Self {
            fail: 0,
            hang: 0,
            garbage: 0,
            item: 0,
            flap_ms: 0,
            adopt_ms: 0,
            leave: 0,
            slow: 0,
            bad: 0,
            repeat: 0,
            with_id: 0,
            one_way: 0,
            large: 0,
            split: 0,
            stall: 0,
            short_deadline: 0,
            sign_in: 0,
            full: 0,
            answer_us: 300,
        }
    }
}

/// The whole of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub shards: usize,
    pub clients: usize,
    pub gateway: Arc<GatewaySettings>,
    /// Verifies tokens, if clients sign in.
    pub verifier: Option<Arc<Verifier>>,
    pub settings: ShardSettings,
    pub routes: Vec<Route>,
    pub faults: Faults,
    /// Pause between a client's bursts, at most.
    pub pause_us: u64,
    pub burst: u64,
    /// Time for which clients send.
    pub active_us: u64,
    /// Time at which the stop begins, if there is one.
    pub drain_at_us: Option<u64>,
    pub stop: StopSettings,
    /// Cap of the lanes to and from control.
    pub lane_items: usize,
    /// Time at which the wall clock is set, and by how many seconds.
    pub clock_step: Option<(u64, i64)>,
    /// Time at which the process is stopped, and for how long.
    pub pause: Option<(u64, u64)>,
    /// Time of one read of a socket: with more than 500 the second read ends a client's share of
    /// the turn.
    pub read_us: u64,
    /// The way in which some clients are greedy, if some are.
    pub greed: Option<Greed>,
    /// Tenants of the users, if they are configured.
    pub tenants: Option<TenantPlan>,
    /// Clients that resume their sessions, if there are some.
    pub sessions: Option<SessionPlan>,
    /// Groups and pushes, if there are any.
    pub pushes: Option<PushPlan>,
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        let mut d = Dice::new(seed ^ 0x7368_6172_6467_6174);
        let active_us = d.range(300, 2_500) * 1_000;
        let drain_at_us = d.chance(35).then(|| d.range(100_000, active_us));
        let mut gateway =
            GatewaySettings { explain_to_clients: d.chance(50), ..GatewaySettings::default() };
        let verifier = d.chance(60).then(|| sign_in(&mut gateway, &mut d));
        let (mut routes, mut faults) = (routes(&mut d), faults(&mut d));
        if verifier.is_none() {
            faults.sign_in = 0;
            routes.iter_mut().for_each(|route| route.needs_user = false);
        }
        Self {
            seed,
            shards: d.range(1, 4) as usize,
            clients: d.range(1, 12) as usize,
            gateway: Arc::new(gateway),
            verifier,
            settings: settings(&mut d),
            routes,
            faults,
            pause_us: d.pick(&[2_000, 20_000, 100_000]),
            burst: d.pick(&[1, 3, 10, 30]),
            active_us,
            drain_at_us,
            stop: StopSettings {
                grace: Duration::from_millis(d.pick(&[0, 20, 500, 4_000])),
                spread: Some(Duration::from_millis(d.pick(&[0, 0, 100, 2_000]))),
                ..StopSettings::default()
            },
            lane_items: d.pick(&[1, 2, 8]),
            clock_step: d.chance(20).then(|| (d.below(active_us), d.pick(&[-5, 5, 700]))),
            pause: None,
            read_us: d.pick(&[0, 0, 0, 700]),
            greed: None,
            tenants: None,
            sessions: None,
            pushes: None,
        }
    }

    /// A plan in which the process is stopped, and in which no client gives cause to be closed.
    pub fn with_pause(seed: u64) -> Self {
        let mut plan = Self::new(seed);
        let mut d = Dice::new(seed ^ 0x7061_7573);
        plan.pause = Some((d.below(plan.active_us), d.range(300_000, 200_000_000)));
        let Faults { leave, slow, bad, .. } = &mut plan.faults;
        (*leave, *slow, *bad) = (0, 0, 0);
        let defaults = ShardSettings::default();
        let conn = &mut plan.settings.conn;
        conn.heartbeat_ms = defaults.conn.heartbeat_ms;
        conn.write_timeout_ms = 200;
        conn.handshake_timeout_ms = 1_000;
        conn.frames_per_s_max = 0;
        conn.outbox_bytes_max = defaults.conn.outbox_bytes_max;
        plan.settings.limits = defaults.limits;
        Arc::make_mut(&mut plan.gateway).auth.timeout = Duration::from_secs(10);
        plan
    }

    /// A plan in which clients sign in while they have messages under way, mostly without a move.
    pub fn with_sign_in(seed: u64) -> Self {
        let mut plan = Self::new(seed);
        let mut d = Dice::new(seed ^ 0x7369_676e);
        plan.verifier = Some(sign_in(Arc::make_mut(&mut plan.gateway), &mut d));
        Arc::make_mut(&mut plan.gateway).auth.required = false;
        plan.shards = d.range(1, 2) as usize;
        (plan.burst, plan.pause_us) = (d.pick(&[3, 10]), d.pick(&[2_000, 20_000]));
        plan.drain_at_us = None;
        for route in &mut plan.routes {
            route.order = if d.chance(80) { Order::Session } else { Order::None };
            (route.timeout_ms, route.needs_user) = (1_500, false);
        }
        let Faults { bad, leave, sign_in, short_deadline, answer_us, .. } = &mut plan.faults;
        (*bad, *leave, *sign_in, *short_deadline) = (0, 1, 40, 0);
        *answer_us = d.pick(&[3_000, 30_000]);
        let defaults = ShardSettings::default();
        plan.settings.limits = defaults.limits;
        plan.settings.conn = defaults.conn;
        plan.settings.batch.items_max = d.pick(&[1, 3]);
        plan
    }

    /// The route of a message.
    pub fn route(&self, msg_id: u32) -> Option<&Route> {
        self.routes.iter().find(|r| (r.first..=r.last).contains(&msg_id))
    }
}

const SECRET: &str = "01234567890123456789012345678901";
/// Unix time at which a run begins.
pub const UNIX_AT_BOOT_S: i64 = 1_700_000_000;

/// Settings for clients that sign in, and the verifier of their tokens.
fn sign_in(gateway: &mut GatewaySettings, d: &mut Dice) -> Arc<Verifier> {
    let source = KeySource::Secret(SECRET.into());
    gateway.auth = AuthSettings {
        mode: AuthMode::Jwt,
        required: d.chance(30),
        tenants: d.pick(&[Tenants::One, Tenants::Many]),
        timeout: Duration::from_millis(d.pick(&[100, 10_000])),
        leeway: Duration::ZERO,
        keys: vec![AuthKey { id: "k".into(), algorithm: Algorithm::Hs256, source }],
        ..AuthSettings::default()
    };
    verifier(gateway)
}

/// A verifier of tokens by the settings in `gateway`.
pub fn verifier(gateway: &GatewaySettings) -> Arc<Verifier> {
    let files = from_files(Files::embedded(), &[], &Overrides::default());
    let mut config = files.expect("the built-in files are right");
    config.gateway.auth = gateway.auth.clone();
    let keys = LocalKeys::read(&config).expect("no files");
    keys.verifier(&config, &FetchedSets::default()).expect("tokens are on")
}

/// A token of the user numbered `user`.
pub fn token(user: usize, now_us: u64, lifetime_s: u32) -> String {
    let wanted = Wanted {
        algorithm: Algorithm::Hs256,
        key_id: Some("k"),
        user: &format!("user-{user}"),
        tenant: Some(tenant_of(user)),
        groups: &[],
        issuer: None,
        audience: None,
        now_unix_s: UNIX_AT_BOOT_S + (now_us / 1_000_000) as i64,
        lifetime_s,
    };
    mint(&wanted, SigningKey::Secret(SECRET.as_bytes())).expect("a token")
}

fn settings(d: &mut Dice) -> ShardSettings {
    let mut s = ShardSettings::default();
    s.conn.connections_max = ConnectionsMax::Set(d.pick(&[4, 64]));
    s.conn.message_bytes_max = 16 << 10;
    s.conn.unanswered_max = d.pick(&[1, 2, 5, 30, 256]);
    s.conn.unanswered_bytes_max = d.pick(&[200, 20_000, 1 << 20]);
    s.conn.outbox_bytes_max = d.pick(&[17 << 10, 64 << 10, 1 << 20]);
    s.conn.heartbeat_ms = d.pick(&[100, 30_000, 30_000]);
    s.conn.write_timeout_ms = d.pick(&[200, 10_000]);
    s.conn.close_timeout_ms = d.pick(&[100, 2_000]);
    s.conn.handshake_timeout_ms = d.pick(&[100, 5_000]);
    s.conn.bad_messages_max = d.pick(&[3, 1_000]);
    s.conn.frames_per_s_max = d.pick(&[0, 0, 0, 300]);
    s.queue.items_max = d.pick(&[100, 400, 10_000]);
    s.queue.bytes_max = d.pick(&[64 << 10, 64 << 20]);
    s.queue.instance_percent = d.pick(&[25, 100]);
    s.queue.backpressure = d.chance(70);
    s.batch.items_max = d.pick(&[1, 3, 10, 100]);
    s.batch.bytes_max = d.pick(&[20 << 10, 1 << 20]);
    s.batch.window_ms = d.pick(&[0, 2, 10]);
    s.batch.in_flight_max = d.pick(&[1, 2, 10]);
    s.batch.eager_max = d.pick(&[1, 2, 10]);
    s.batch.calls_max = d.pick(&[1, 4, 100]);
    s.retry.delay_ms = d.pick(&[1, 20, 100]);
    s.retry.delay_max_ms = 200;
    s.retry.attempts_max = d.pick(&[1, 2, 3, 5]);
    s.retry.budget_percent = d.pick(&[0, 20, 100]);
    s.dedup.enabled = d.chance(90);
    s.dedup.entries_max = d.pick(&[10, 5_000]);
    s.dedup.reply_bytes_max = d.pick(&[10, 4_096]);
    s.cache.entries_max = d.pick(&[0, 3, 1_000]);
    // All clients have one address.
    s.limits.address.connections_max = d.pick(&[0, 0, 0, 0, 0, 12]);
    s.limits.address.messages_per_s = d.pick(&[0, 0, 0, 0, 50, 500]);
    s.limits.user.connections_max = d.pick(&[0, 0, 0, 1, 2]);
    s.limits.per_user = d.pick(&[PerUser::Many, PerUser::Newest, PerUser::Oldest]);
    s.limits.unauthenticated_max = d.pick(&[10_000, 10_000, 10_000, 2]);
    s
}

fn routes(d: &mut Dice) -> Vec<Route> {
    let mut routes = Vec::new();
    for service in 0..SERVICES.len() as u16 {
        let unary = service == UNARY;
        // One way of hashing a service, so that a stream has messages of several routes.
        let hash_on = d.pick(&[HashOn::User, HashOn::Session, HashOn::Key]);
        for part in 0..4 {
            let first = 1_000 * (u32::from(service) + 1) + 100 * part;
            let bytes = unary || d.chance(25);
            routes.push(Route {
                first,
                last: first + 99,
                service: ServiceId(service),
                priority: d.pick(&Priority::ALL),
                timeout_ms: d.pick(&[30, 300, 1_500]),
                order: if d.chance(75) { Order::Session } else { Order::None },
                hash_on: if d.chance(80) { hash_on } else { HashOn::Key },
                payload: if bytes { PayloadKind::Bytes } else { PayloadKind::Json },
                idempotent: d.chance(40),
                failover: if d.chance(75) { Failover::Next } else { Failover::None },
                method: unary.then(|| Arc::from("/game.Legacy/Do")),
                service_text: d.chance(50),
                needs_user: d.chance(20),
                only_for: None,
            });
        }
    }
    routes
}

fn faults(d: &mut Dice) -> Faults {
    // A quarter of the runs has no faults of services: there the strict rules hold.
    let calm = d.chance(25);
    let mut some = |percent: &[u64]| if calm { 0 } else { d.pick(percent) };
    let (fail, hang) = (some(&[0, 0, 5, 30]), some(&[0, 0, 2, 10]));
    let (garbage, item) = (some(&[0, 0, 5]), some(&[0, 0, 5, 20]));
    let (flap_ms, adopt_ms) = (some(&[0, 20, 100, 500]), some(&[0, 30, 300]));
    Faults {
        fail,
        hang,
        garbage,
        item,
        flap_ms,
        adopt_ms,
        leave: d.pick(&[0, 0, 1, 5]),
        slow: d.pick(&[0, 0, 30]),
        bad: d.pick(&[0, 0, 3]),
        repeat: d.pick(&[0, 10, 30]),
        with_id: d.pick(&[0, 20, 80]),
        one_way: d.pick(&[0, 5, 50]),
        large: d.pick(&[0, 0, 5, 30]),
        split: d.pick(&[0, 20, 90]),
        stall: d.pick(&[0, 0, 5]),
        short_deadline: d.pick(&[0, 0, 10, 50]),
        sign_in: d.pick(&[5, 30, 100]),
        full: d.pick(&[0, 10, 60]),
        answer_us: d.pick(&[300, 3_000, 30_000]),
    }
}

/// Number of services.
pub fn services(plan: &Plan) -> usize {
    SERVICES.len() + plan.tenants.as_ref().map_or(0, |_| OWN_SERVICES.len())
}

fn service_name(n: usize) -> &'static str {
    SERVICES.iter().chain(&OWN_SERVICES).nth(n).expect("a service of a plan")
}

/// A snapshot of the plan's routes in which `instances` and `tenants` exist.
pub fn snapshot(
    version: u64,
    plan: &Plan,
    instances: &[Instance],
    tenants: TenantTable,
) -> Arc<Snapshot> {
    let services = (0..services(plan)).map(|n| {
        let own = instances.iter().filter(|i| usize::from(i.service.0) == n);
        Service {
            name: Arc::from(service_name(n)),
            mode: if n == usize::from(UNARY) { Mode::Unary } else { Mode::Batch },
            ring: Ring::new(own.map(|i| (i.id, &*i.name, i.weight)), 8).into(),
        }
    });
    Arc::new(Snapshot {
        version,
        routes: plan.routes.clone(),
        tenants,
        services: services.collect(),
        instances: instances.to_vec(),
    })
}

/// The instance numbered `id`.
pub fn instance(id: u32, service: u16, d: &mut Dice) -> Instance {
    Instance {
        id: InstanceId(id),
        service: ServiceId(service),
        name: format!("{}-{id}", service_name(usize::from(service))).into(),
        addresses: SocketAddr::from(([127, 0, 0, 1], 50_000 + id as u16)).into(),
        weight: d.range(1, 3) as u32,
        share: Share::ALL,
        draining: false,
    }
}
