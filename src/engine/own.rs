//! What the gateway answers itself: system messages, and the ids of its own range.

use crate::engine::Engine;
use crate::ids::ConnId;
use crate::message::{Category, ClientMessage, Micros, Reason, Reject};
use crate::routing::affinity;
use crate::wire::client;

/// 9000: the payload comes back.
const ECHO: u32 = 0;
/// 9001: the gateway's clock.
const TIME: u32 = 1;
/// 9002: what the gateway knows of this connection.
const WHO_AM_I: u32 = 2;
/// 9003: where a message would go.
const EXPLAIN: u32 = 3;

const UNIMPLEMENTED: Reject =
    Reject::new(Reason::Unimplemented, "this gateway does not serve this message");

impl Engine {
    /// `ping`, `heartbeat`, `auth`, `resume`.
    pub(super) fn on_system(&mut self, id: ConnId, message: &ClientMessage<'_>, now: Micros) {
        let encoding = self.conns.get(id).expect("the caller has it").encoding;
        match message.kind.as_ref() {
            "ping" => {
                let unix_ms = (self.origin.unix_at_boot_us + now.0 as i64) / 1000;
                let payload = client::payload(encoding, &client::Pong { unix_ms });
                self.own_reply(id, message, "pong", &payload);
            }
            "heartbeat" if message.seq == 0 => {}
            "heartbeat" => self.own_reply(id, message, "", &[]),
            "auth" => self.on_auth(id, message, now),
            // Sessions do not outlive their connection yet: the type is known, and not served.
            "resume" => {
                let why = "sessions are not resumed by this gateway yet";
                let reject = Reject::new(Reason::Unimplemented, why);
                self.own_error(id, message, Category::System, reject, now);
            }
            _ => self.own_error(id, message, Category::System, UNIMPLEMENTED, now),
        }
    }

    /// An id of the gateway's range.
    pub(super) fn on_gateway(&mut self, id: ConnId, message: &ClientMessage<'_>, now: Micros) {
        let conn = self.conns.get(id).expect("the caller has it");
        let encoding = conn.encoding;
        let payload = match message.msg_id - self.gateway.gateway_ids.0 {
            ECHO => message.payload.to_vec(),
            TIME => {
                let unix_us = self.origin.unix_at_boot_us + now.0 as i64;
                client::payload(encoding, &client::Time { unix_us })
            }
            WHO_AM_I => {
                let user = conn.identity.user.as_deref();
                let who = client::WhoAmI {
                    session: conn.session.as_str().to_owned(),
                    user: user.map_or("", |user| &user.user).to_owned(),
                    tenant: user.and_then(|u| u.tenant.as_deref()).unwrap_or("").to_owned(),
                    node: self.gateway.node.clone(),
                    shard: u32::from(self.shard.0),
                    peer: conn.identity.peer.to_string(),
                };
                client::payload(encoding, &who)
            }
            EXPLAIN if self.gateway.explain_to_clients => {
                match self.explain(id, message.payload, now) {
                    Ok(explanation) => client::payload(encoding, &explanation),
                    Err(reject) => {
                        self.own_error(id, message, Category::Gateway, reject, now);
                        return;
                    }
                }
            }
            _ => {
                self.own_error(id, message, Category::Gateway, UNIMPLEMENTED, now);
                return;
            }
        };
        if message.seq > 0 {
            self.own_reply(id, message, "", &payload);
        }
    }

    /// Where a message of this client would go; `payload` names it.
    fn explain(
        &mut self,
        id: ConnId,
        payload: &[u8],
        now: Micros,
    ) -> Result<client::Explanation, Reject> {
        let conn = self.conns.get(id).expect("the caller has it");
        let question = client::read_explain(conn.encoding, payload).ok_or(Reject::new(
            Reason::BadMessage,
            "the payload must be {\"msg_id\": number, \"key\": text}; key may be absent",
        ))?;
        let snapshot = self.snapshot.clone();
        let Some((_, route)) = snapshot.route(question.msg_id) else {
            return Err(Reject::new(Reason::NoRoute, "no route for this msg_id"));
        };
        let tenant = conn.sender.tenant;
        let (hashed_by, hash) = affinity(route.hash_on, &conn.sender, &question.key);
        let picked = self.pick(tenant, route.service, hash, route.failover, now);
        let name = picked.ok().and_then(|id| snapshot.instance(id)).map(|i| i.name.to_string());
        Ok(client::Explanation {
            msg_id: question.msg_id,
            route: format!("{}-{}", route.first, route.last),
            service: snapshot.services[route.service.0 as usize].name.to_string(),
            hash_on: hashed_by.name().to_owned(),
            instance: name.unwrap_or_default(),
            version: snapshot.version,
        })
    }
}
