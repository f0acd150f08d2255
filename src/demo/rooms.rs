//! The rooms of the demo service `chat`: what a message does to one besides its answer.

use bytes::Bytes;

use super::ask::Ask;
use super::proto::{BaseRequest, BaseResponse};
use crate::message::status;
use crate::wire::push::generated::{PushMessage, To};

/// Id of the pushes that bring a line, from this service and from clients that publish one.
pub const LINE_ID: u32 = 2100;

/// Longest line, so that nobody fills the page of all others.
const LINE_CHARS_MAX: usize = 500;

/// The room of who names none.
const LOBBY: &str = "room:lobby";

/// Does what `ask` asks of rooms: `response` takes the session in or out, and a line is added to
/// `pushes`. Which rooms there are is a matter of the gateway's configuration.
pub fn enter(
    request: &BaseRequest,
    ask: &Ask,
    response: &mut BaseResponse,
    pushes: &mut Vec<PushMessage>,
) {
    response.join.extend(ask.join.clone());
    response.leave.extend(ask.leave.clone());
    let Some(text) = &ask.say else { return };
    if text.trim().is_empty() || text.chars().count() > LINE_CHARS_MAX {
        response.status = status::INVALID_ARGUMENT;
        response.message = format!("a line has 1 to {LINE_CHARS_MAX} characters");
        response.payload = Bytes::new();
        return;
    }
    let from = if request.user.is_empty() { &request.session } else { &request.user };
    let room = ask.room.clone().unwrap_or_else(|| LOBBY.to_owned());
    let to = To { tenant: request.tenant.clone(), groups: vec![room], ..To::default() };
    let payload = serde_json::json!({ "text": text, "from": from }).to_string().into();
    pushes.push(PushMessage { to: Some(to), msg_id: LINE_ID, payload, ..PushMessage::default() });
}
