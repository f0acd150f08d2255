//! Pushes of clients to their groups (id 9015): on their way to the group's home, and its answer.

use std::sync::Arc;

use crate::config::settings::Who;
use crate::engine::Context;
use crate::engine::clients::Clients;
use crate::engine::clients::conn::Claim;
use crate::engine::clients::joining::{MAY_NOT, Wanted};
use crate::engine::clients::session::Session;
use crate::engine::groups::asks::{Ask, Wish};
use crate::engine::groups::lane::{Deliver, Publish};
use crate::ids::SessionKey;
use crate::message::{Micros, Reason, Reject};
use crate::push::{Body, GroupName, Position};
use crate::wire::{client, groups};

/// The home did not answer in time: it may have numbered the push.
const NO_WORD: Reject = Reject::new(
    Reason::OutcomeUnknown,
    "the group's home shard did not answer in time: the push may have been delivered",
);

impl Clients {
    /// Whether a session may publish to a group.
    pub fn may_publish(
        &self,
        cx: &Context<'_>,
        session: &Session,
        name: &GroupName,
    ) -> Result<(), Reject> {
        let rule = cx.config.gateway.push.rule(&name.name).ok_or(MAY_NOT)?;
        let may = match rule.publish {
            Who::None => false,
            Who::Members => self.is_member(session, name),
            Who::User => session.user().is_some(),
        };
        if may { Ok(()) } else { Err(MAY_NOT) }
    }

    /// Sends a client's push to the group's home. It is answered when that has numbered it, if the
    /// client wants that: its `seq` is above 0.
    pub fn publish(
        &mut self,
        cx: &Context<'_>,
        ask: Ask,
        name: GroupName,
        body: Arc<Body>,
        caller: u64,
    ) {
        let (session, has_answer) = (ask.session, ask.seq > 0);
        let ask = if has_answer { self.groups.asks.put(ask) } else { 0 };
        let from = cx.config.shard;
        let home = name.home(cx.config.shards);
        let publish = Publish { group: name, body, from, session, ask, caller };
        self.groups.send(home, Deliver::Publish(publish));
    }

    /// The ask of a client's push.
    pub fn ask_for_number(
        &self,
        cx: &Context<'_>,
        session: SessionKey,
        seq: u64,
        msg_id: u32,
        now: Micros,
    ) -> Ask {
        let due = now.plus_ms(cx.config.settings.groups.join_timeout_ms);
        Ask { session, seq, msg_id, due, wish: Wish::Publish }
    }

    /// Answers a session to which no word of the home has come about its push.
    pub(super) fn publish_is_late(&mut self, cx: &mut Context<'_>, ask: &Ask, now: Micros) {
        self.answer_publish(cx, ask, Err(NO_WORD), now);
    }

    pub(super) fn answer_publish(
        &mut self,
        cx: &mut Context<'_>,
        ask: &Ask,
        result: Result<Position, Reject>,
        now: Micros,
    ) {
        let wanted = Wanted { seq: ask.seq, msg_id: ask.msg_id };
        match result {
            Ok(position) => {
                let encoding = self.encoding_of(ask.session);
                let payload = client::payload(encoding, &groups::position(position));
                self.answer_gateway(cx, ask.session, wanted, &payload);
            }
            Err(reject) => self.answer_reject(cx, ask.session, wanted, &reject),
        }
        self.settle(cx, ask.session, Claim::default(), now);
    }

    /// Takes the home's word on a client's push.
    pub fn on_published(
        &mut self,
        cx: &mut Context<'_>,
        ask: u64,
        result: Result<Position, Reject>,
        now: Micros,
    ) {
        if let Some(ask) = self.groups.asks.take(ask) {
            self.answer_publish(cx, &ask, result, now);
        }
    }

    /// Refuses what a session asked a home for, as a lane had no room for the question.
    pub fn refuse_ask(&mut self, cx: &mut Context<'_>, ask: u64, reject: Reject, now: Micros) {
        let Some(ask) = self.groups.asks.take(ask) else { return };
        match ask.wish {
            Wish::Members => self.answer_members(cx, &ask, Err(super::joining::NO_WORD), now),
            Wish::Publish | Wish::Join { .. } => self.answer_publish(cx, &ask, Err(reject), now),
        }
    }
}
