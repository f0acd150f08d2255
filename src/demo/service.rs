//! The answers of one demo service to a batch.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use tonic::{Code, Request, Response, Status};

use super::ask::{Ask, DELAY_MS_MAX};
use super::proto::backend_server::Backend;
use super::proto::{BaseRequest, BaseResponse, BatchRequest, BatchResponse, Encoding, Priority};
use super::{CHAT, rooms};
use crate::message::status;
use crate::wire::push::generated::PushMessage;

/// Most affinity keys that are counted: 100,000 of some 100 bytes are 10 MB. A further key gets an
/// error.
const COUNTED_KEYS_MAX: usize = 100_000;

/// Key of a count: one affinity key of one tenant. The kind keeps a room apart from a user of the
/// same name.
#[derive(PartialEq, Eq, Hash)]
struct CountKey {
    tenant: String,
    kind: &'static str,
    value: String,
}

/// A demo service: its names and counts.
pub struct Demo {
    service: &'static str,
    instance: String,
    /// The counts. The lock is never contended, as one thread serves all; tonic asks for `Sync`.
    counts: Mutex<HashMap<CountKey, u64>>,
}

/// Fields that a batch has once for all its items.
struct Caller {
    gateway: String,
    shard: u32,
    boot_id: u64,
}

impl Demo {
    /// The service called `service`, which names itself `instance` in its answers.
    pub fn new(service: &'static str, instance: String) -> Self {
        Self { service, instance, counts: Mutex::default() }
    }

    /// The answer to an item with a request, which may come with `pushes`.
    fn answer(
        &self,
        caller: &Caller,
        request: BaseRequest,
        ask: &Ask,
        pushes: &mut Vec<PushMessage>,
    ) -> BaseResponse {
        let mut response = BaseResponse { request_id: request.request_id, ..Default::default() };
        if let Some(code) = ask.fail {
            response.status = code;
            response.message = format!("{} fails with {code}, as asked", self.instance);
            response.retry_after_ms = ask.retry_after_ms;
        } else if ask.who {
            response.payload = self.who(caller, &request);
        } else if ask.count {
            match self.count(request) {
                Some(payload) => response.payload = payload,
                None => {
                    response.status = status::RESOURCE_EXHAUSTED;
                    response.message = format!("{} counts enough keys", self.instance);
                }
            }
        } else {
            response.payload = request.payload.clone();
            if self.service == CHAT {
                rooms::enter(&request, ask, &mut response, pushes);
            }
        }
        response
    }

    /// Counts the item's affinity key; `None` if no further key is counted.
    fn count(&self, request: BaseRequest) -> Option<Bytes> {
        let (kind, value) = if !request.key.is_empty() {
            ("key", request.key)
        } else if !request.user.is_empty() {
            ("user", request.user)
        } else {
            ("session", request.session)
        };
        let shown = value.clone();
        let key = CountKey { tenant: request.tenant, kind, value };
        let mut counts = self.counts.lock().expect("no holder panics: panics abort");
        if counts.len() >= COUNTED_KEYS_MAX && !counts.contains_key(&key) {
            return None;
        }
        let count = counts.entry(key).or_insert(0);
        *count += 1;
        Some(to_bytes(&serde_json::json!({
            "service": self.service,
            "instance": self.instance,
            "user_or_session": shown,
            "count": *count,
        })))
    }

    /// All fields that the service got with the item.
    fn who(&self, caller: &Caller, request: &BaseRequest) -> Bytes {
        let payload: serde_json::Value =
            serde_json::from_slice(&request.payload).unwrap_or_default();
        to_bytes(&serde_json::json!({
            "service": self.service,
            "instance": self.instance,
            "gateway": caller.gateway,
            "shard": caller.shard,
            // The 64 random bits would lose digits as a number in a browser.
            "boot_id": format!("{:016x}", caller.boot_id),
            "request_id": request.request_id,
            "msg_id": request.msg_id,
            "seq": request.seq,
            "session": request.session,
            "user": request.user,
            "tenant": request.tenant,
            "priority": Priority::try_from(request.priority).ok().map(|p| p.as_str_name()),
            "payload": payload,
            "id": request.id,
            "key": request.key,
            "received_unix_us": request.received_unix_us,
            "timeout_ms": request.timeout_ms,
            "attempt": request.attempt,
            "traceparent": request.traceparent,
            "encoding": Encoding::try_from(request.encoding).ok().map(|e| e.as_str_name()),
        }))
    }
}

fn to_bytes(value: &serde_json::Value) -> Bytes {
    Bytes::from(value.to_string())
}

#[tonic::async_trait]
impl Backend for Demo {
    /// Answers in list order. The response waits for the longest delay asked for in the batch.
    async fn handle(
        &self,
        request: Request<BatchRequest>,
    ) -> Result<Response<BatchResponse>, Status> {
        let BatchRequest { gateway, shard, requests, boot_id } = request.into_inner();
        let caller = Caller { gateway, shard, boot_id };
        let mut responses = Vec::with_capacity(requests.len());
        let (mut delay_ms, mut fail_call) = (0, None);
        let mut pushes = Vec::new();
        for request in requests {
            let response = match Ask::read(&request.payload) {
                None => BaseResponse {
                    request_id: request.request_id,
                    payload: request.payload,
                    ..Default::default()
                },
                Some(ask) => {
                    delay_ms = ask.delay_ms.min(DELAY_MS_MAX).max(delay_ms);
                    fail_call = fail_call.or(ask.fail_call);
                    self.answer(&caller, request, &ask, &mut pushes)
                }
            };
            responses.push(response);
        }
        if delay_ms > 0 {
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        }
        match fail_call {
            None => Ok(Response::new(BatchResponse { responses, pushes })),
            Some(code) => {
                let text = format!("{} fails the call with {code}, as asked", self.instance);
                Err(Status::new(Code::from_i32(code), text))
            }
        }
    }
}
