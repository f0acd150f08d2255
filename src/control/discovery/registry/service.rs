//! The gRPC side: who calls, what the fields must be, which status says what.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tonic::{Request, Response, Status};

use super::book::{Book, Change, Entry, Lease, Refused};
use super::callers::{Caller, Callers};
use super::conns::Peer;
use super::proto;
use super::proto::registry_server::Registry;
use crate::config::{NAME_RULE, is_name};

const TTL_DEFAULT_MS: u32 = 15_000;
const TTL_MIN_MS: u32 = 1_000;
const TTL_MAX_MS: u32 = 600_000;
/// Heartbeats in a time to live: two may be lost.
const HEARTBEATS_PER_TTL: u32 = 3;
const WEIGHT_MAX: u32 = 1000;
/// Refused tokens are warned about this often at most, with their number.
const WARN_EVERY: Duration = Duration::from_secs(10);

const NO_CALLER: &str = "send the metadata `authorization: Bearer <token>` with a token of a \
                         [[registry_token]] of this gateway";

/// What the calls, the teller and the handle share.
pub struct Shared {
    book: Mutex<Book>,
    callers: Mutex<Arc<Callers>>,
    refused: Mutex<Refusals>,
    /// Rung after each change in the book.
    pub changed: Notify,
}

#[derive(Default)]
struct Refusals {
    count: u64,
    warned: Option<Instant>,
}

impl Shared {
    /// With an empty book.
    pub fn new(callers: Callers) -> Self {
        Self {
            book: Mutex::default(),
            callers: Mutex::new(Arc::new(callers)),
            refused: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// The book, for as long as it takes to look something up.
    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("nothing panics while it holds this")
    }

    /// From now on these are the callers.
    pub fn set_callers(&self, callers: Callers) {
        *self.callers.lock().expect("nothing panics while it holds this") = Arc::new(callers);
    }

    /// Lets a call in, with its caller beside it, before its message is read.
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
            let what = if had_token { "an unknown token" } else { "no token" };
            let peer = peer.map_or("?".into(), |peer| peer.to_string());
            let count = refused.count;
            tracing::warn!(
                peer,
                count,
                "registry_refused a caller with {what}: compare its token with [[registry_token]]"
            );
            *refused = Refusals { count: 0, warned: Some(now) };
        }
    }
}

/// The token of the one `authorization`; its scheme in any case (RFC 9110 section 11.1).
fn bearer<T>(request: &Request<T>) -> Option<&[u8]> {
    let mut values = request.metadata().get_all("authorization").iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.as_encoded_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

/// `shardgate.registry.v1.Registry`
pub struct Service(pub Arc<Shared>);

#[tonic::async_trait]
impl Registry for Service {
    async fn register(
        &self,
        request: Request<proto::RegisterRequest>,
    ) -> Result<Response<proto::RegisterResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        name("service", &asked.service)?;
        name("instance", &asked.instance)?;
        if !caller.may_change(&asked.service) {
            return Err(status(Refused::Forbidden(asked.service.into())));
        }
        let entry = entry(&asked)?;
        let ttl_ms = entry.ttl.as_millis() as u32;
        let lease = Lease(rand::random());
        let now = Instant::now();
        let told = self.0.book().register(&caller.name, &asked.instance, entry, lease, now);
        told.map_err(status)?;
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
        let change = Change { weight: asked.weight, draining: asked.draining };
        let may = |service: &str| caller.may_change(service);
        let told = self.0.book().heartbeat(&caller.name, lease, change, may, Instant::now());
        let ttl = told.map_err(status)?;
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
        let told = self.0.book().deregister(&caller.name, lease, may, Instant::now());
        told.map_err(status)?;
        self.0.changed.notify_one();
        Ok(Response::new(proto::DeregisterResponse {}))
    }
}

/// Whom [`Shared::authenticate`] found.
fn caller<T>(request: &Request<T>) -> Result<Arc<Caller>, Status> {
    let found = request.extensions().get::<Arc<Caller>>().cloned();
    found.ok_or_else(|| Status::unauthenticated(NO_CALLER))
}

fn invalid(field: &str, rule: &str) -> Status {
    Status::invalid_argument(format!("{field}: {rule}"))
}

fn name(field: &str, value: &str) -> Result<(), Status> {
    if is_name(value) { Ok(()) } else { Err(invalid(field, NAME_RULE)) }
}

/// The rest of what is registered, checked.
fn entry(asked: &proto::RegisterRequest) -> Result<Entry, Status> {
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
    Ok(Entry {
        service: asked.service.as_str().into(),
        address,
        weight: asked.weight.max(1),
        draining: asked.draining,
        ttl: Duration::from_millis(ttl_ms.into()),
    })
}

/// `::ffff:10.0.0.7` is 10.0.0.7. Other IPv6 addresses keep their scope.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        IpAddr::V6(_) => address,
    }
}

/// A lease as it was given out; what cannot be one is as unknown as one that ended.
fn lease(text: &str) -> Result<Lease, Status> {
    let as_given = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let id = u128::from_str_radix(text, 16).ok().filter(|_| as_given);
    id.map(Lease).ok_or_else(|| status(Refused::NotFound))
}

fn status(refused: Refused) -> Status {
    match refused {
        Refused::NotFound => Status::not_found(
            "no such lease of this caller: it ran out, was replaced, or the gateway was \
             restarted; Register again",
        ),
        Refused::Taken { by_other_caller: true } => Status::already_exists(
            "instance: another caller holds this name; choose another, or wait until it leaves",
        ),
        Refused::Taken { by_other_caller: false } => Status::already_exists(
            "instance: this caller holds the name for another service; names are unique among \
             all instances of the gateway",
        ),
        Refused::Forbidden(service) => Status::permission_denied(format!(
            "service: this token is not good for {service}; name it in the services of its \
             [[registry_token]]"
        )),
        Refused::Full(max) => Status::resource_exhausted(format!(
            "{max} instances are registered, and no more are allowed; let old ones run out"
        )),
    }
}
