//! The upgrade of a connection: 101 and a `welcome`, or an HTTP error.

use crate::engine::Context;
use crate::engine::clients::conn::Phase;
use crate::engine::clients::introduction::Request;
use crate::engine::clients::limits::OpenRefusal;
use crate::engine::clients::sign_in::UpgradeDecision;
use crate::engine::clients::{Clients, append, set_ending};
use crate::engine::refusals::Cause;
use crate::ids::ConnId;
use crate::message::{Encoding, Micros, ServerMessage};
use crate::stats::Counter;
use crate::wire::client;
use crate::wire::handshake::{self, Progress, ShownToken};

/// Answer to a page that may be one of a tenant's.
const PAGES_UNKNOWN: &str =
    "the gateway does not know all pages that may connect at the moment: try again";

/// The state of an upgrade after more bytes of its request.
pub(crate) enum Handshake {
    /// The request is not complete, or was refused: more bytes are read.
    ReadMore,
    /// The request waits for its token's turn, for a move, or for a place among its user's
    /// connections: nothing more is read.
    Waits,
    /// The request was answered 101. The bytes from `consumed` on are frames: those of `held` if
    /// the request came in pieces, else those that were just received.
    Upgraded { consumed: usize, held: Option<Vec<u8>> },
}

impl Clients {
    /// Reads on in an upgrade request. Also called with no bytes, to go on with a complete request
    /// that was held.
    pub fn shake_hands(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        input: &[u8],
        now: Micros,
    ) -> Handshake {
        let (progress, held) = self.read_request(cx, id, input);
        match progress {
            Progress::Partial => Handshake::ReadMore,
            Progress::Refuse { response, status, why, origin, told } => {
                if !self.take_forwarded(cx, id, told, Request::Refused, now) {
                    return Handshake::ReadMore;
                }
                if origin.is_some() && self.sign_in.awaits_tenants() {
                    self.refuse_upgrade(cx, id, 503, PAGES_UNKNOWN, 1_000, now);
                    return Handshake::ReadMore;
                }
                cx.stats.inc(Counter::HandshakeRefused);
                match origin {
                    Some(origin) => log_origin(cx, &origin, now),
                    None => log_refusal(cx, status, &why, now),
                }
                self.linger(cx, id, &response, now);
                Handshake::ReadMore
            }
            Progress::Upgrade { consumed, response, encoding, token, page, told } => {
                if !self.take_forwarded(cx, id, told, Request::Upgrade, now) {
                    return Handshake::ReadMore;
                }
                let token = token.as_ref().map(ShownToken::expose);
                match self.decide_upgrade(cx, id, token, page.as_ref(), now) {
                    UpgradeDecision::As(identity) => {
                        self.upgrade(cx, id, &response, encoding);
                        self.entered(cx, id, identity, page, now);
                        Handshake::Upgraded { consumed, held }
                    }
                    UpgradeDecision::Later => {
                        let conn = self.conns.get_mut(id).expect("the caller has it");
                        let held = held.unwrap_or_else(|| input.to_vec());
                        conn.handshake = Some(Box::new((held, 0)));
                        Handshake::Waits
                    }
                    UpgradeDecision::Refused(status, why, after_ms) => {
                        self.refuse_upgrade(cx, id, status, &why, after_ms, now);
                        Handshake::ReadMore
                    }
                }
            }
        }
    }

    /// Reads on in the request of a connection, which holds what is not complete. Returns the whole
    /// request if it came in pieces.
    fn read_request(
        &mut self,
        cx: &Context<'_>,
        id: ConnId,
        input: &[u8],
    ) -> (Progress, Option<Vec<u8>>) {
        let forwarded = self.asked(cx, id);
        let conn = self.conns.get_mut(id).expect("the caller has it");
        match conn.handshake.take() {
            None => {
                let mut scanned = 0;
                let progress = handshake::try_upgrade(&self.rules, forwarded, input, &mut scanned);
                if let Progress::Partial = progress {
                    conn.handshake = Some(Box::new((input.to_vec(), scanned)));
                }
                (progress, None)
            }
            Some(mut held) => {
                let (request, scanned) = &mut *held;
                request.extend_from_slice(input);
                let progress = handshake::try_upgrade(&self.rules, forwarded, request, scanned);
                if let Progress::Partial = progress {
                    conn.handshake = Some(held);
                    return (progress, None);
                }
                (progress, Some(held.0))
            }
        }
    }

    fn upgrade(&mut self, cx: &mut Context<'_>, id: ConnId, response: &[u8], encoding: Encoding) {
        let messages_per_s_max = self.messages_per_s_max(id);
        let conn = self.conns.get_mut(id).expect("the caller has it");
        conn.phase = Phase::Open;
        conn.upgraded = true;
        conn.encoding = encoding;
        append(conn, id, &mut self.buffers, cx.effects, |out| out.extend_from_slice(response));
        let terms = &conn.terms;
        let welcome = client::Welcome {
            session: conn.session.id.as_str().to_owned(),
            node: cx.config.gateway.node.clone(),
            shard: u32::from(cx.config.shard.0),
            heartbeat_ms: u32::try_from(terms.heartbeat_ms).unwrap_or(u32::MAX),
            limits: Some(client::Limits {
                message_bytes_max: terms.frames.message_bytes_max as u32,
                unanswered_max: terms.unanswered_max,
                messages_per_s_max,
            }),
            boot: client::boot(cx.config.identity.boot_id),
        };
        cx.stats.inc(Counter::Upgraded);
        self.upgraded += 1;
        let payload = client::payload(encoding, &welcome);
        let kind = "welcome";
        self.write(cx, id, &ServerMessage { kind, payload: &payload, ..Default::default() });
    }

    /// Writes an HTTP answer and gives the client time to read it and close first.
    fn linger(&mut self, cx: &mut Context<'_>, id: ConnId, response: &[u8], now: Micros) {
        self.forget_waits(cx, id, now);
        let until = now.plus_ms(cx.config.settings.conn.close_timeout_ms);
        let Some(conn) = self.conns.get_mut(id) else { return };
        set_ending(conn, id, &mut self.limits, Phase::Lingering { until });
        append(conn, id, &mut self.buffers, cx.effects, |out| out.extend_from_slice(response));
    }

    /// Answers an upgrade request with an error.
    pub fn refuse_upgrade(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        status: u16,
        why: &str,
        after_ms: u32,
        now: Micros,
    ) {
        cx.stats.inc(Counter::HandshakeRefused);
        // The token has its own line.
        if status != 401 {
            log_refusal(cx, status, why, now);
        }
        self.linger(cx, id, &handshake::refuse_for(status, why, after_ms), now);
    }

    /// Answers a client whose address is over a limit. The caller logs it.
    pub fn refuse_over_limit(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        refusal: &OpenRefusal,
        now: Micros,
    ) {
        cx.stats.inc(Counter::HandshakeRefused);
        let OpenRefusal { status, text, retry_after_ms } = *refusal;
        self.linger(cx, id, &handshake::refuse_for(status, text, retry_after_ms), now);
    }

    /// Answers an upgrade request, complete or not, because the gateway stops.
    pub fn refuse_for_stop(&mut self, cx: &mut Context<'_>, id: ConnId, now: Micros) {
        // Nothing for the log: who stops the gateway knows it.
        cx.stats.inc(Counter::HandshakeRefused);
        let response = handshake::refuse_for(503, "the gateway stops: connect again", 1_000);
        self.linger(cx, id, &response, now);
    }

    /// Answers an upgrade request that was not complete in time.
    pub fn handshake_timeout(&mut self, cx: &mut Context<'_>, id: ConnId, now: Micros) {
        cx.stats.inc(Counter::HandshakeTimeout);
        let why = "the upgrade request was not complete in time";
        log_refusal(cx, 408, why, now);
        let response = handshake::refuse(408, why);
        self.linger(cx, id, &response, now);
    }
}

/// Logs a handshake that is answered with an error.
fn log_refusal(cx: &mut Context<'_>, status: u16, why: &str, now: Micros) {
    if let Some(count) = cx.stats.refusals.note(Cause::Upgrade(status), now) {
        tracing::warn!(
            shard = cx.config.shard.0,
            status,
            why,
            count,
            "handshake_refused: an upgrade request is answered with an error"
        );
    }
}

/// Logs the origin of a page that may not connect.
fn log_origin(cx: &mut Context<'_>, origin: &str, now: Micros) {
    if let Some(count) = cx.stats.refusals.note(Cause::Origin, now) {
        tracing::warn!(
            shard = cx.config.shard.0,
            origin,
            count,
            "origin_refused: a page was answered 403; if it is yours, add its origin to the key \
             origins"
        );
    }
}
