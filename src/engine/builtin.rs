//! Messages that the gateway answers itself: system messages, and the ids of its own range.

use crate::engine::Context;
use crate::engine::clients::Clients;
use crate::engine::dispatcher::Dispatcher;
use crate::engine::dispatcher::admission::{NEEDS_USER, NO_ROUTE};
use crate::engine::group_requests::on_group_message;
use crate::engine::source::Source;
use crate::message::{Category, ClientMessage, Micros, Reason, Reject};
use crate::wire::client;

/// 9000: the payload comes back.
const ECHO: u32 = 0;
/// 9001: the gateway's clock.
const TIME: u32 = 1;
/// 9002: what the gateway knows of this connection.
const WHO_AM_I: u32 = 2;
/// 9003: where a message would go.
const EXPLAIN: u32 = 3;

const UNIMPLEMENTED: Reject = Reject::new(
    Reason::Unimplemented,
    "this gateway serves neither this type nor this id of its own range",
);

/// Handles `ping`, `heartbeat`, `auth` and `resume`, or says why not.
pub(super) fn on_system(
    cx: &mut Context<'_>,
    clients: &mut Clients,
    source: &Source,
    message: &ClientMessage<'_>,
    now: Micros,
) -> Result<(), Reject> {
    let id = source.conn;
    match message.kind.as_ref() {
        "ping" => {
            let unix_ms = cx.config.unix_us(now) / 1000;
            let payload = client::payload(source.encoding, &client::Pong { unix_ms });
            clients.reply_ok(cx, id, Category::System, message, "pong", &payload);
            Ok(())
        }
        "heartbeat" if message.seq == 0 => Ok(()),
        "heartbeat" => {
            clients.reply_ok(cx, id, Category::System, message, "", &[]);
            Ok(())
        }
        "auth" => clients.on_auth(cx, id, message, now),
        "resume" => clients.on_resume(cx, source, message, now),
        _ => Err(UNIMPLEMENTED),
    }
}

/// Handles an id of the gateway's range, or says why not.
pub(super) fn on_gateway(
    cx: &mut Context<'_>,
    clients: &mut Clients,
    dispatcher: &mut Dispatcher,
    source: &Source,
    message: &ClientMessage<'_>,
    now: Micros,
) -> Result<(), Reject> {
    let config = cx.config;
    let encoding = source.encoding;
    let number = message.msg_id - config.gateway.gateway_ids.0;
    if let Some(done) = on_group_message(cx, clients, source, message, number, now) {
        return done;
    }
    let payload = match number {
        ECHO => message.payload.to_vec(),
        TIME => client::payload(encoding, &client::Time { unix_us: config.unix_us(now) }),
        WHO_AM_I => {
            let user = source.user.as_deref();
            let who = client::WhoAmI {
                session: source.session.as_str().to_owned(),
                user: user.map_or("", |user| &user.user).to_owned(),
                tenant: user.and_then(|u| u.tenant.as_deref()).unwrap_or("").to_owned(),
                node: config.gateway.node.clone(),
                shard: u32::from(config.shard.0),
                peer: clients.address_of(source.conn),
            };
            client::payload(encoding, &who)
        }
        EXPLAIN if config.gateway.explain_to_clients => {
            let explanation = explain(cx, dispatcher, source, message.payload, now)?;
            client::payload(encoding, &explanation)
        }
        _ => return Err(UNIMPLEMENTED),
    };
    if message.seq > 0 {
        clients.reply_ok(cx, source.conn, Category::Gateway, message, "", &payload);
    }
    Ok(())
}

/// Says where a message of this client would go; `payload` names it.
fn explain(
    cx: &mut Context<'_>,
    dispatcher: &mut Dispatcher,
    source: &Source,
    payload: &[u8],
    now: Micros,
) -> Result<client::Explanation, Reject> {
    let question = client::read_explain(source.encoding, payload).ok_or(Reject::new(
        Reason::BadMessage,
        "the payload must be {\"msg_id\": number, \"key\": text}; key may be absent",
    ))?;
    let snapshot = &cx.config.snapshot;
    let Some(route) = snapshot.route(source.sender.tenant, question.msg_id) else {
        return Err(NO_ROUTE);
    };
    // What the message itself would be told.
    if source.lacks_user(route) {
        return Err(NEEDS_USER);
    }
    let (by, picked) = dispatcher.explain(cx, route, &source.sender, &question.key, now);
    let name = picked.and_then(|id| snapshot.instance(id)).map(|i| i.name.to_string());
    Ok(client::Explanation {
        msg_id: question.msg_id,
        route: format!("{}-{}", route.first, route.last),
        service: snapshot.services[usize::from(route.service.0)].name.to_string(),
        hash_on: by.name().to_owned(),
        instance: name.unwrap_or_default(),
        version: snapshot.version,
    })
}
