//! The gRPC service: authentication of callers, checks of fields, status codes.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tonic::{Request, Response, Status};

use super::callers::{Caller, Callers};
use super::leases::{LeaseError, LeaseId, LeaseUpdate, Leases, Registration};
use super::proto;
use super::proto::registry_server::Registry;
use crate::config::{NAME_RULE, is_name};
use crate::control::caller_conns::Peer;

const TTL_DEFAULT_MS: u32 = 15_000;
const TTL_MIN_MS: u32 = 1_000;
const TTL_MAX_MS: u32 = 600_000;
/// Heartbeats in a time to live: two may be lost.
const HEARTBEATS_PER_TTL: u32 = 3;
const WEIGHT_MAX: u32 = 1000;
/// Shortest time between two warnings of refused tokens; the warning says how many.
const WARN_EVERY: Duration = Duration::from_secs(10);

const NO_CALLER: &str = "send the metadata `authorization: Bearer <token>` with a token of a \
                         [[registry_token]] of this gateway";

/// State that the calls, the task that sends news and the handle share.
pub struct Shared {
    leases: Mutex<Leases>,
    callers: Mutex<Arc<Callers>>,
    refused: Mutex<Refusals>,
    /// Notified after each change of the leases.
    pub changed: Notify,
}

#[derive(Default)]
struct Refusals {
    count: u64,
    warned: Option<Instant>,
}

impl Shared {
    /// State without a lease.
    pub fn new(callers: Callers) -> Self {
        Self {
            leases: Mutex::default(),
            callers: Mutex::new(Arc::new(callers)),
            refused: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Locks the leases, for as long as a look-up takes.
    pub fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().expect("nothing panics while it holds this")
    }

    /// Puts other callers in force.
    pub fn set_callers(&self, callers: Callers) {
        *self.callers.lock().expect("nothing panics while it holds this") = Arc::new(callers);
    }

    /// Authenticates a call before its message is read; its caller is put beside it.
    pub fn authenticate(&self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let callers = self.callers.lock().expect("nothing panics while it holds this").clone();
        let peer = request.extensions().get::<Peer>().cloned();
        let token = bearer(&request);
        let Some(caller) = token.and_then(|token| callers.find(token)) else {
            self.warn(peer.and_then(|peer| peer.address), token.is_some());
            return Err(Status::unauthenticated(NO_CALLER));
        };
        if let Some(peer) = peer {
            peer.prove();
        }
        request.extensions_mut().insert(caller.clone());
        Ok(request)
    }

    fn warn(&self, peer: Option<SocketAddr>, had_token: bool) {
        let now = Instant::now();
        let mut refused = self.refused.lock().expect("nothing panics while it holds this");
        refused.count += 1;
        if refused.warned.is_none_or(|then| now - then >= WARN_EVERY) {
            let why = if had_token { "its token is unknown" } else { "it shows no token" };
            let peer = peer.map_or("?".into(), |peer| peer.to_string());
            let count = refused.count;
            tracing::warn!(
                peer,
                why,
                count,
                "registry_refused: a caller cannot register; compare its token with \
                 [[registry_token]]"
            );
            *refused = Refusals { count: 0, warned: Some(now) };
        }
    }
}

/// Token of the one `authorization`; its scheme in any case (RFC 9110 section 11.1).
fn bearer<T>(request: &Request<T>) -> Option<&[u8]> {
    let mut values = request.metadata().get_all("authorization").iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.as_encoded_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

pub struct RegistryService(pub Arc<Shared>);

#[tonic::async_trait]
impl Registry for RegistryService {
    async fn register(
        &self,
        request: Request<proto::RegisterRequest>,
    ) -> Result<Response<proto::RegisterResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        name("service", &asked.service)?;
        name("instance", &asked.instance)?;
        if !caller.may_change(&asked.service) {
            return Err(status(LeaseError::Forbidden(asked.service.into())));
        }
        let entry = entry(&asked)?;
        let ttl_ms = entry.ttl.as_millis() as u32;
        let lease = LeaseId(rand::random());
        let now = Instant::now();
        let result = self.0.leases().register(&caller.name, &asked.instance, entry, lease, now);
        result.map_err(status)?;
        self.0.changed.notify_one();
        Ok(Response::new(proto::RegisterResponse {
            lease: format!("{:032x}", lease.0),
            ttl_ms,
            heartbeat_ms: ttl_ms / HEARTBEATS_PER_TTL,
        }))
    }

    async fn heartbeat(
        &self,
        request: Request<proto::HeartbeatRequest>,
    ) -> Result<Response<proto::HeartbeatResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        let lease = lease(&asked.lease)?;
        if let Some(weight) = asked.weight
            && !(1..=WEIGHT_MAX).contains(&weight)
        {
            return Err(invalid("weight", "must be 1 to 1000, or absent"));
        }
        let change = LeaseUpdate { weight: asked.weight, draining: asked.draining };
        let may = |service: &str| caller.may_change(service);
        let result = self.0.leases().heartbeat(&caller.name, lease, change, may, Instant::now());
        let ttl = result.map_err(status)?;
        self.0.changed.notify_one();
        Ok(Response::new(proto::HeartbeatResponse { ttl_ms: ttl.as_millis() as u32 }))
    }

    async fn deregister(
        &self,
        request: Request<proto::DeregisterRequest>,
    ) -> Result<Response<proto::DeregisterResponse>, Status> {
        let caller = caller(&request)?;
        let lease = lease(&request.get_ref().lease)?;
        let may = |service: &str| caller.may_change(service);
        let result = self.0.leases().deregister(&caller.name, lease, may, Instant::now());
        result.map_err(status)?;
        self.0.changed.notify_one();
        Ok(Response::new(proto::DeregisterResponse {}))
    }
}

/// The caller that [`Shared::authenticate`] found.
fn caller<T>(request: &Request<T>) -> Result<Arc<Caller>, Status> {
    let found = request.extensions().get::<Arc<Caller>>().cloned();
    found.ok_or_else(|| Status::unauthenticated(NO_CALLER))
}

fn invalid(field: &str, rule: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("{field}: {rule}"))
}

fn name(field: &str, value: &str) -> Result<(), Status> {
    if is_name(value) { Ok(()) } else { Err(invalid(field, NAME_RULE)) }
}

/// Checks the other fields of a registration.
fn entry(asked: &proto::RegisterRequest) -> Result<Registration, Status> {
    let rule = "must be an IP address and a port above 0 at which the gateway can reach the \
                instance, e.g. \"10.0.0.7:50001\"";
    let address = asked.address.parse::<SocketAddr>().ok();
    let address = address
        .map(canonical)
        .filter(|a| a.port() != 0 && !a.ip().is_unspecified() && !a.ip().is_multicast())
        .ok_or_else(|| invalid("address", rule))?;
    if asked.weight > WEIGHT_MAX {
        return Err(invalid("weight", "must be 1 to 1000, or 0 for 1"));
    }
    let ttl_ms = match asked.ttl_ms {
        0 => TTL_DEFAULT_MS,
        ms @ TTL_MIN_MS..=TTL_MAX_MS => ms,
        _ => return Err(invalid("ttl_ms", "must be 1000 to 600000, or 0 for 15000")),
    };
    Ok(Registration {
        service: asked.service.as_str().into(),
        address,
        weight: asked.weight.max(1),
        draining: asked.draining,
        ttl: Duration::from_millis(ttl_ms.into()),
    })
}

/// Turns `::ffff:10.0.0.7` into 10.0.0.7. Other IPv6 addresses keep their scope.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        IpAddr::V6(_) => address,
    }
}

/// Parses the id of a lease. A text that cannot be one is refused like a lease that ended.
fn lease(text: &str) -> Result<LeaseId, Status> {
    let as_given = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let id = u128::from_str_radix(text, 16).ok().filter(|_| as_given);
    id.map(LeaseId).ok_or_else(|| status(LeaseError::NotFound))
}

fn status(refused: LeaseError) -> Status {
    match refused {
        LeaseError::NotFound => Status::not_found(
            "no such lease of this caller: it ran out, was replaced, or the gateway was \
             restarted; Register again",
        ),
        LeaseError::Taken { by_other_caller: true } => Status::already_exists(
            "instance: another caller holds this name; choose another, or wait until it leaves",
        ),
        LeaseError::Taken { by_other_caller: false } => Status::already_exists(
            "instance: this caller holds the name for another service; names are unique among \
             all instances of the gateway",
        ),
        LeaseError::Forbidden(service) => Status::permission_denied(format!(
            "service: this token is not good for {service}; name it in the services of its \
             [[registry_token]]"
        )),
        LeaseError::Full(max) => Status::resource_exhausted(format!(
            "{max} instances are registered, and no more are allowed; let old ones run out"
        )),
    }
}
