//! The gRPC service.

use std::sync::Arc;

use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status, Streaming};

use super::asks::{self, Ask};
use super::callers::Caller;
use super::desk::Desk;
use super::feed;
use super::reads::Reads;
use super::refusal::Refused;
use super::send;
use super::tally::Door;
use crate::message::Reason;
use crate::wire::push::generated as proto;
use crate::wire::push::generated::push_server::Push;

/// The service, for callers that the layer around it has found.
#[derive(Clone)]
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
    /// Answers a call besides pushes, or gives its status.
    async fn answer<A: Ask>(&self, request: Request<A>) -> Result<Response<A::Answer>, Status> {
        let by = caller(&request)?;
        let answer = asks::answer(&self.desk, &self.reads, &by, request.into_inner());
        answer.await.map(Response::new).map_err(|refused| status(&refused))
    }
}

#[tonic::async_trait]
impl Push for PushService {
    type FeedStream = ReceiverStream<Result<proto::FeedResponse, Status>>;

    async fn feed(
        &self,
        request: Request<Streaming<proto::FeedRequest>>,
    ) -> Result<Response<Self::FeedStream>, Status> {
        let by = caller(&request)?;
        Ok(Response::new(feed::open(&self.desk, &by, request.into_inner())))
    }

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
        self.answer(request).await
    }

    async fn leave(
        &self,
        request: Request<proto::LeaveRequest>,
    ) -> Result<Response<proto::LeaveResponse>, Status> {
        self.answer(request).await
    }

    async fn members(
        &self,
        request: Request<proto::MembersRequest>,
    ) -> Result<Response<proto::MembersResponse>, Status> {
        self.answer(request).await
    }

    async fn count(
        &self,
        request: Request<proto::CountRequest>,
    ) -> Result<Response<proto::CountResponse>, Status> {
        self.answer(request).await
    }

    async fn history(
        &self,
        request: Request<proto::HistoryRequest>,
    ) -> Result<Response<proto::HistoryResponse>, Status> {
        self.answer(request).await
    }

    async fn forget(
        &self,
        request: Request<proto::ForgetRequest>,
    ) -> Result<Response<proto::ForgetResponse>, Status> {
        self.answer(request).await
    }

    async fn sessions(
        &self,
        request: Request<proto::SessionsRequest>,
    ) -> Result<Response<proto::SessionsResponse>, Status> {
        self.answer(request).await
    }

    async fn disconnect(
        &self,
        request: Request<proto::DisconnectRequest>,
    ) -> Result<Response<proto::DisconnectResponse>, Status> {
        self.answer(request).await
    }
}
