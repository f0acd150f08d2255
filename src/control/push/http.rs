//! HTTP at the doors: who is let in, `POST /push`, and the other calls with JSON.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_stream::StreamExt;

use super::asks::{self, Ask};
use super::callers::Caller;
use super::desk::Desk;
use super::reads::Reads;
use super::refusal::Refused;
use super::send;
use super::service::{self, PushService};
use super::tally::Door;
use crate::control::caller_conns::Peer;
use crate::control::headers::{bearer, is_json};
use crate::message::Reason;
use crate::wire::push::generated as proto;
use crate::wire::push::generated::push_server::PushServer;
use crate::wire::push::{read_call, read_request, write_answer};

/// Largest body of a call: 1 MiB of gRPC with its prefix of 5 bytes.
const BODY_BYTES_MAX: usize = (1 << 20) + 5;
/// Longest time in which a call is sent, from its headers to the end of its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the rest of a body that nobody reads: a round trip around the world and more.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(1);
/// Bodies that are received at once; others wait for their turn. 64 of the largest are 64 MiB.
const BODIES_MAX: usize = 64;

const NO_CALLER: &str = "send `authorization: Bearer <token>` with a token of a [[push_caller]] of \
                         this gateway";

const NO_PATH: &str = "this path is not served: POST /push, /join, /leave, /members, /count, \
                       /history, /forget, /sessions or /disconnect, or gRPC";

/// The path of the call whose body is a stream that does not end by itself.
const FEED_PATH: &str = "/shardgate.push.v1.Push/Feed";

/// The path of gRPC calls; the name of the method follows.
const GRPC_PATH: &str = "/shardgate.push.v1.Push/{method}";

/// State of the layer that lets callers in.
#[derive(Clone)]
struct Entrance {
    desk: Arc<Desk>,
    bodies: Arc<Semaphore>,
}

/// Everything that is answered at the doors.
pub fn router(desk: &Arc<Desk>, reads: Reads) -> Router {
    let service = PushService { desk: desk.clone(), reads };
    let calls = Router::new()
        .route("/join", post(call::<proto::JoinRequest>))
        .route("/leave", post(call::<proto::LeaveRequest>))
        .route("/members", post(call::<proto::MembersRequest>))
        .route("/count", post(call::<proto::CountRequest>))
        .route("/history", post(call::<proto::HistoryRequest>))
        .route("/forget", post(call::<proto::ForgetRequest>))
        .route("/sessions", post(call::<proto::SessionsRequest>))
        .route("/disconnect", post(call::<proto::DisconnectRequest>))
        .with_state(service.clone());
    let grpc = PushServer::new(service).max_decoding_message_size(BODY_BYTES_MAX);
    let entrance = Entrance { desk: desk.clone(), bodies: Arc::new(Semaphore::new(BODIES_MAX)) };
    Router::new()
        .route("/push", post(push).with_state(desk.clone()))
        .merge(calls)
        .route_service(GRPC_PATH, grpc)
        .fallback(async || error(StatusCode::NOT_FOUND, NO_PATH, None))
        .layer(from_fn_with_state(entrance, enter))
}

/// Layer around everything: finds the caller by its token, and receives the whole call before
/// anything is done for it, so that who has no token makes the gateway hold and decode nothing. A
/// feed is read as it comes, as its credit allows.
async fn enter(State(entrance): State<Entrance>, request: Request, next: Next) -> Response {
    let is_grpc = is_grpc(request.headers());
    let peer = request.extensions().get::<Peer>().cloned();
    let Some(caller) = entrance.caller(request.headers(), peer.as_ref()) else {
        let refused = Refused::new(Reason::Unauthenticated, NO_CALLER);
        return refuse_unread(&refused, is_grpc, request.into_body()).await;
    };
    if let Some(peer) = peer {
        peer.prove();
    }
    if let Err(refused) = entrance.desk.open() {
        return refuse_unread(&refused, is_grpc, request.into_body()).await;
    }
    let (mut parts, body) = request.into_parts();
    if is_grpc && parts.uri.path() == FEED_PATH {
        parts.extensions.insert(caller);
        return next.run(Request::from_parts(parts, body)).await;
    }
    let body = match entrance.receive(body).await {
        Ok(body) => body,
        Err((status, why)) if is_grpc => {
            let code = match status {
                StatusCode::PAYLOAD_TOO_LARGE => tonic::Code::ResourceExhausted,
                _ => tonic::Code::DeadlineExceeded,
            };
            return tonic::Status::new(code, why).into_http();
        }
        // The rest of the body may still come: it is not read.
        Err((status, why)) => return and_close(error(status, why, None)),
    };
    parts.extensions.insert(caller);
    let arrived = Instant::now();
    let mut response = next.run(Request::from_parts(parts, body.into())).await;
    entrance.desk.lock().tally.note_time(arrived.elapsed());
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, no_store);
    response
}

impl Entrance {
    fn caller(&self, headers: &HeaderMap, peer: Option<&Peer>) -> Option<Arc<Caller>> {
        let token = bearer(headers);
        let mut inner = self.desk.lock();
        let rules = inner.rules.clone();
        let caller = token.and_then(|token| rules.callers.find(token)).cloned();
        if caller.is_none() {
            inner.tally.unknown += 1;
            let peer = peer.and_then(|peer| peer.address);
            inner.refusals.note_unknown(peer, token.is_some(), Instant::now());
        }
        caller
    }

    /// The whole body, or a status and what is wrong with it.
    async fn receive(&self, body: Body) -> Result<Bytes, (StatusCode, &'static str)> {
        let receive = async {
            let _place = self.bodies.acquire().await;
            to_bytes(body, BODY_BYTES_MAX).await
        };
        match tokio::time::timeout(BODY_TIMEOUT, receive).await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(_)) => Err((
                StatusCode::PAYLOAD_TOO_LARGE,
                "the body is over 1 MiB, or was not sent whole: send fewer pushes in a request",
            )),
            Err(_) => Err((StatusCode::REQUEST_TIMEOUT, "the body did not come within 10 seconds")),
        }
    }
}

async fn push(
    State(desk): State<Arc<Desk>>,
    Extension(caller): Extension<Arc<Caller>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match read(&headers, &body, read_request) {
        Ok(request) => answer(send::send(&desk, &caller, Door::Http, request.pushes).await),
        Err((status, why)) => error(status, &why, None),
    }
}

/// Answers a call besides pushes.
async fn call<A: Ask + DeserializeOwned>(
    State(service): State<PushService>,
    Extension(caller): Extension<Arc<Caller>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response
where
    A::Answer: Serialize,
{
    match read(&headers, &body, read_call::<A>) {
        Ok(asked) => answer(asks::answer(&service.desk, &service.reads, &caller, asked).await),
        Err((status, why)) => error(status, &why, None),
    }
}

/// Reads a body of JSON; else a status, and what is wrong with it.
fn read<T>(
    headers: &HeaderMap,
    body: &Bytes,
    read: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<T, (StatusCode, String)> {
    if !is_json(headers) {
        let why = "Content-Type must be application/json";
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, why.to_owned()));
    }
    read(body).map_err(|why| (StatusCode::BAD_REQUEST, why))
}

fn answer<T: Serialize>(result: Result<T, Refused>) -> Response {
    match result {
        Ok(answer) => {
            let media = HeaderValue::from_static("application/json");
            ([(header::CONTENT_TYPE, media)], write_answer(&answer)).into_response()
        }
        Err(refused) => refusal(&refused, false),
    }
}

/// Refuses a call before its body is read. What comes of the body is thrown away, so that its
/// caller can call again on this connection: many send headers and body apart, and a connection
/// that closes in between fails them in the middle of a write.
async fn refuse_unread(refused: &Refused, is_grpc: bool, body: Body) -> Response {
    let response = refusal(refused, is_grpc);
    if is_grpc {
        return response; // HTTP/2 ends the stream alone
    }
    let mut chunks = body.into_data_stream();
    let throw_away = async {
        let mut bytes = 0;
        while let Some(chunk) = chunks.next().await {
            bytes += chunk.ok()?.len();
            if bytes > BODY_BYTES_MAX {
                return None;
            }
        }
        Some(())
    };
    match tokio::time::timeout(UNREAD_TIMEOUT, throw_away).await {
        Ok(Some(())) => response,
        Ok(None) | Err(_) => and_close(response),
    }
}

/// The last answer on an HTTP/1.1 connection, which says so.
fn and_close(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The answer to a call that is refused as a whole.
fn refusal(refused: &Refused, is_grpc: bool) -> Response {
    if is_grpc {
        return service::status(refused).into_http();
    }
    let status = match refused.reason {
        Reason::Unauthenticated => StatusCode::UNAUTHORIZED,
        Reason::Forbidden => StatusCode::FORBIDDEN,
        Reason::RateLimited | Reason::QueueFull => StatusCode::TOO_MANY_REQUESTS,
        Reason::Unavailable | Reason::Draining => StatusCode::SERVICE_UNAVAILABLE,
        Reason::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Reason::NoRoute => StatusCode::NOT_FOUND,
        Reason::OutcomeUnknown => StatusCode::GATEWAY_TIMEOUT,
        Reason::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        Reason::BadMessage
        | Reason::Duplicate
        | Reason::Expired
        | Reason::BadServiceReply
        | Reason::Unimplemented => StatusCode::BAD_REQUEST,
    };
    let mut response = error(status, &refused.why, Some(refused));
    if status == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Bearer realm=\"shardgate\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

/// An answer that is no success, as JSON; with the time after which to retry, if there is one.
fn error(status: StatusCode, why: &str, refused: Option<&Refused>) -> Response {
    let reason = refused.map(|refused| refused.reason.name());
    let retry_after_ms = refused.map_or(0, |refused| refused.retry_after_ms);
    let body = json!({ "error": why, "reason": reason, "retry_after_ms": retry_after_ms });
    let mut response = (status, axum::Json(body)).into_response();
    if retry_after_ms > 0 {
        // Whole seconds (RFC 9110 section 10.2.3), at least one.
        let seconds = HeaderValue::from(retry_after_ms.div_ceil(1_000));
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    response
}

/// Whether a call is one of gRPC, by its content type.
fn is_grpc(headers: &HeaderMap) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let media: Option<&HeaderValue> = headers.get(HeaderName::from_static("content-type"));
    media.is_some_and(|media| media.as_bytes().starts_with(GRPC))
}
