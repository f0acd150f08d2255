//! The gRPC service.

use std::sync::Arc;
use std::time::Instant;

use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status};

use super::callers::Caller;
use super::calls::{self, Call};
use super::desk::Desk;
use super::reads::Reads;
use super::refusal::Refused;
use super::send;
use super::tally::Door;
use crate::config::settings::PushVerb;
use crate::message::Reason;
use crate::wire::push::generated as proto;
use crate::wire::push::generated::push_server::Push;

/// The service, for callers that the layer around it has found.
pub struct PushService {
    pub desk: Arc<Desk>,
    pub reads: Reads,
}

/// The status of a call that is refused as a whole; a client that retries by itself is told when
/// (gRFC A6, server pushback).
pub fn status(refused: &Refused) -> Status {
    let mut status = Status::new(Code::from(refused.reason.status() as i32), refused.why.clone());
    if refused.retry_after_ms > 0 {
        let metadata = status.metadata_mut();
        metadata.insert("grpc-retry-pushback-ms", refused.retry_after_ms.into());
    }
    if let Ok(reason) = MetadataValue::try_from(refused.reason.name()) {
        status.metadata_mut().insert("reason", reason);
    }
    status
}

/// The caller that the layer around the service found.
fn caller<T>(request: &Request<T>) -> Result<Arc<Caller>, Status> {
    let found = request.extensions().get::<Arc<Caller>>().cloned();
    found.ok_or_else(|| status(&Refused::new(Reason::Internal, "the call has no caller")))
}

impl PushService {
    /// Makes the answer of a call, or its status; a refusal is counted.
    fn answer<T>(&self, by: &Caller, result: Result<T, Refused>) -> Result<Response<T>, Status> {
        result.map(Response::new).map_err(|refused| {
            self.desk.lock().note_refusal(by, &refused, Instant::now());
            status(&refused)
        })
    }
}

/// Answers a call: lets its caller in, and gives both to a function of [`calls`] or [`Reads`].
macro_rules! call {
    ($self:ident, $request:ident, $verb:ident, $answer:expr) => {{
        let by = caller(&$request)?;
        let asked = $request.into_inner();
        let result = match Call::new(&$self.desk, &by, PushVerb::$verb, &asked.tenant) {
            Ok(call) => $answer(call, asked).await,
            Err(refused) => Err(refused),
        };
        $self.answer(&by, result)
    }};
}

#[tonic::async_trait]
impl Push for PushService {
    async fn send(
        &self,
        request: Request<proto::SendRequest>,
    ) -> Result<Response<proto::SendResponse>, Status> {
        let by = caller(&request)?;
        let pushes = request.into_inner().pushes;
        // Refusals of single pushes were counted one by one.
        let response = send::send(&self.desk, &by, Door::Grpc, pushes).await;
        response.map(Response::new).map_err(|refused| status(&refused))
    }

    async fn join(
        &self,
        request: Request<proto::JoinRequest>,
    ) -> Result<Response<proto::JoinResponse>, Status> {
        call!(self, request, Join, calls::join)
    }

    async fn leave(
        &self,
        request: Request<proto::LeaveRequest>,
    ) -> Result<Response<proto::LeaveResponse>, Status> {
        call!(self, request, Join, calls::leave)
    }

    async fn members(
        &self,
        request: Request<proto::MembersRequest>,
    ) -> Result<Response<proto::MembersResponse>, Status> {
        call!(self, request, Read, |call, asked| self.reads.members(call, asked))
    }

    async fn count(
        &self,
        request: Request<proto::CountRequest>,
    ) -> Result<Response<proto::CountResponse>, Status> {
        call!(self, request, Read, |call, asked| self.reads.count(call, asked))
    }

    async fn history(
        &self,
        request: Request<proto::HistoryRequest>,
    ) -> Result<Response<proto::HistoryResponse>, Status> {
        call!(self, request, Read, |call, asked| self.reads.history(call, asked))
    }

    async fn forget(
        &self,
        request: Request<proto::ForgetRequest>,
    ) -> Result<Response<proto::ForgetResponse>, Status> {
        call!(self, request, Push, calls::forget)
    }

    async fn sessions(
        &self,
        request: Request<proto::SessionsRequest>,
    ) -> Result<Response<proto::SessionsResponse>, Status> {
        call!(self, request, Read, |call, asked| self.reads.sessions(call, asked))
    }

    async fn disconnect(
        &self,
        request: Request<proto::DisconnectRequest>,
    ) -> Result<Response<proto::DisconnectResponse>, Status> {
        call!(self, request, Disconnect, calls::disconnect)
    }
}
