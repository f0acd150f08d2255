//! A call in flight: its stream, and the response while it arrives.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};

use super::link::LinkId;
use crate::backend::framing::{Assembly, MessageEncoding};
use crate::backend::status;
use crate::ids::Ticket;
use crate::message::{CallBody, CallError, Micros};

/// Times of a call.
#[derive(Clone, Copy)]
pub(super) struct Times {
    /// Time when it was sent.
    pub(super) sent: Micros,
    /// Its deadline as the service was told, which is rounded down.
    pub(super) told: Micros,
    /// Its deadline.
    pub(super) deadline: Micros,
}

pub(super) struct InFlight {
    pub(super) ticket: Ticket,
    pub(super) link: LinkId,
    pub(super) times: Times,
    /// Most bytes of the answer.
    answer_bytes_max: usize,
    request: SendStream<CallBody>,
    reply: Reply,
}

enum Reply {
    Head(ResponseFuture),
    Body(RecvStream, Assembly),
}

impl InFlight {
    pub(super) fn new(
        ticket: Ticket,
        link: LinkId,
        times: Times,
        answer_bytes_max: usize,
        (response, request): (ResponseFuture, SendStream<CallBody>),
    ) -> Self {
        let reply = Reply::Head(response);
        Self { ticket, link, times, answer_bytes_max, request, reply }
    }

    /// Resets the stream, so that the service can stop. Does nothing if the stream has ended.
    pub(super) fn reset(&mut self) {
        self.request.send_reset(Reason::CANCEL);
    }

    /// Takes the bytes that have arrived; ready when the call has ended.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, CallError>> {
        if let Reply::Head(response) = &mut self.reply {
            let response = match ready!(Pin::new(response).poll(cx)) {
                Ok(response) => response,
                Err(e) => return Poll::Ready(Err(status::from_h2(&e))),
            };
            let (head, body) = response.into_parts();
            status::check_head(&head, body.is_end_stream())?;
            let encoding = MessageEncoding::of(&head.headers);
            self.reply = Reply::Body(body, Assembly::new(self.answer_bytes_max, encoding));
        }
        let Reply::Body(body, assembly) = &mut self.reply else {
            return Poll::Pending;
        };
        while let Some(chunk) = ready!(body.poll_data(cx)) {
            let chunk = chunk.map_err(|e| status::from_h2(&e))?;
            // This fails only if more is released than came, which is not the case.
            let _ = body.flow_control().release_capacity(chunk.len());
            assembly.push(chunk).map_err(status::from_framing)?;
        }
        match ready!(body.poll_trailers(cx)) {
            Ok(Some(trailers)) => status::check_trailers(&trailers)?,
            Ok(None) => return Poll::Ready(Err(status::no_trailers())),
            Err(e) => return Poll::Ready(Err(status::from_h2(&e))),
        }
        Poll::Ready(std::mem::take(assembly).finish().map_err(status::from_framing))
    }
}
