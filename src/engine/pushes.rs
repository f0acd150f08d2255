//! Pushes and groups: the steps that take what control and other shards send, and those at the end
//! of a turn.

use std::sync::Arc;

use rand::Rng;

use crate::engine::clients::Clients;
use crate::engine::groups::lane::{Confirmed, Deliver, Publish};
use crate::engine::{Context, Engine};
use crate::ids::{GroupKey, ShardId};
use crate::message::{Micros, Reason, Reject};
use crate::push::{
    Addressees, Body, GroupName, Origin, Position, Push, Receipt, ReceiptPart, Submit,
};
use crate::stats::Counter;

/// Items that shards sent of which one turn takes care: as many as it takes from a lane.
const OWN_BUDGET: usize = crate::limits::LANE_BUDGET;

const NO_RULE: Reject = Reject::new(
    Reason::NoRoute,
    "no [[group]] rule has this name: add one, or push to a name that one has",
);
const NO_ROOM: Reject = Reject::later(
    Reason::QueueFull,
    "the group's home shard has as many groups as it may (groups.names_max)",
    1_000,
);
const LAGS: Reject = Reject::later(
    Reason::QueueFull,
    "pushes come faster than the group's members can be told: send fewer, or later",
    100,
);

impl Engine {
    /// Takes work about pushes that control, or another shard, sent.
    pub fn on_submit(&mut self, submit: Submit, now: Micros) {
        let (clients, _, mut cx) = self.parts();
        match submit {
            Submit::Push(push) => clients.on_push(&mut cx, push, now),
            Submit::Join { number, tenant, whom, groups, info } => {
                let info = (!info.is_empty()).then(|| Arc::from(&info[..]));
                clients.join_all(&mut cx, number, tenant, &whom, (&groups, &info), now);
            }
            Submit::Leave { number, tenant, whom, groups, reason } => {
                clients.leave_by_service(&mut cx, number, tenant, &whom, &groups, &reason);
            }
            Submit::Disconnect { number, tenant, whom, code, reason, keep_session } => {
                let how = (code, &*reason, keep_session);
                clients.disconnect(&mut cx, number, tenant, &whom, how, now);
            }
            Submit::Forget { number, group } => {
                let is_known = clients.groups.forget(&group);
                clients.tell_done(&mut cx, number, u32::from(is_known), 0);
            }
        }
    }

    /// Takes an item of another shard's about a group.
    pub fn on_deliver(&mut self, item: Deliver, now: Micros) {
        let (clients, _, mut cx) = self.parts();
        clients.on_deliver(&mut cx, item, now);
    }

    /// Takes back an item for which the lane to `shard` had no room.
    pub fn deliver_refused(&mut self, shard: ShardId, item: Deliver, now: Micros) {
        let (clients, _, mut cx) = self.parts();
        cx.stats.inc(Counter::LaneRefused);
        if let Some(ask) = clients.groups.refused(shard, item) {
            clients.refuse_ask(&mut cx, ask, LAGS, now);
        }
    }

    /// Whether there is something about pushes that the next turn can do at once.
    pub fn has_pushes(&self) -> bool {
        let clients = &self.clients;
        clients.groups.has_work()
            || !clients.more_to_send.is_empty()
            || !clients.waves.is_empty()
            || !clients.to_count.is_empty()
    }

    /// The part of the end of a turn that is about pushes: what the last flush made of them is
    /// counted, homes tell shards, and members are told.
    pub(super) fn end_turn_of_pushes(&mut self, now: Micros) {
        let (clients, _, mut cx) = self.parts();
        clients.count_deliveries(&mut cx, now);
        clients.count_direct(&mut cx);
        for _ in 0..OWN_BUDGET {
            let Some(item) = clients.groups.next_own() else { break };
            clients.on_deliver(&mut cx, item, now);
        }
        clients.tell_join_calls(&mut cx);
        clients.go_on_with_waves(&mut cx, now);
        clients.pass_over_members(&mut cx);
        clients.to_count.append(&mut clients.placed);
        clients.groups.take_out(&mut cx.effects.deliver);
    }

    /// The part of a tick that is about pushes.
    pub(super) fn tick_of_pushes(&mut self, now: Micros) {
        let (clients, _, mut cx) = self.parts();
        clients.groups.tell_refused();
        clients.end_asks(&mut cx, now);
        clients.push_ids.expire(now);
        let push = &cx.config.gateway.push;
        let settings = &cx.config.settings.groups;
        clients.groups.tend(settings, now, |name| push.rule(name));
        clients.make_rosters();
        clients.note_absent(&mut cx, now);
        let told = clients.groups.tell_presence(settings, now, cx.config.unix_us(now) / 1000);
        cx.stats.add(Counter::PresenceFrames, told);
    }
}

impl Clients {
    pub(super) fn on_push(&mut self, cx: &mut Context<'_>, push: Push, now: Micros) {
        let (number, is_counted) = match push.origin {
            Origin::Control { number, is_counted } => (Some(number), is_counted),
            Origin::Service => (None, false),
        };
        cx.stats.inc(Counter::Pushes);
        if let Addressees::Group(name) = &push.to {
            let name = name.clone();
            let counted = number.filter(|_| is_counted);
            let result = self.number(cx, &name, &push.body, push.caller, counted, now);
            if result.is_err() {
                cx.stats.inc(Counter::PushesRefused);
            }
            if let Some(number) = number {
                self.tell_numbered(cx, number, name, result);
            }
            return;
        }
        let settings = &cx.config.gateway.push;
        let until = now.plus_ms(settings.dedup_ms);
        let id = (push.caller, push.tenant, "", &*push.body.id);
        let nowhere = || Ok::<_, Reject>(Position::default());
        let is_known = match self.push_ids.once(id, settings.dedup_entries_max, until, nowhere) {
            Ok((_, is_known)) => is_known,
            Err(_) => false,
        };
        let counted = number.filter(|_| is_counted);
        if !is_known {
            self.push_direct(cx, push, counted, now);
        } else if let Some(number) = counted {
            let part = ReceiptPart::Counted {
                counts: Default::default(),
                offline_users: Vec::new(),
                is_duplicate: true,
            };
            cx.effects.receipts.push(Receipt { number, shard: cx.config.shard, part });
        }
    }

    /// Numbers a push at the home of its group. True: it was numbered before, by its id. A group
    /// is never born with epoch 0, which stands for what is no epoch.
    fn number(
        &mut self,
        cx: &mut Context<'_>,
        name: &GroupName,
        body: &Arc<Body>,
        caller: u64,
        counted: Option<u64>,
        now: Micros,
    ) -> Result<(Position, bool), Reject> {
        let push = &cx.config.gateway.push;
        let settings = &cx.config.settings.groups;
        let rule = push.rule(&name.name).ok_or(NO_RULE)?;
        let until = now.plus_ms(push.dedup_ms);
        let id = (caller, name.tenant, &*name.name, &*body.id);
        let Self { groups, push_ids, .. } = self;
        push_ids.once(id, push.dedup_entries_max, until, || {
            let epoch = cx.rng.next_u32().max(1);
            groups.home_mut(name, rule, settings, epoch, now).ok_or(NO_ROOM)?;
            groups.publish(name, body, counted, settings, now).ok_or(LAGS)
        })
    }

    fn tell_numbered(
        &self,
        cx: &mut Context<'_>,
        number: u64,
        group: GroupName,
        result: Result<(Position, bool), Reject>,
    ) {
        let part = match result {
            Ok((position, is_duplicate)) => {
                let interest = self.groups.home(&group).map_or(&[][..], |home| home.interest());
                let shards = match is_duplicate {
                    true => Vec::new(),
                    // One that is told of the group only later has no member that is addressed.
                    false => interest.iter().filter(|i| i.is_begun).map(|i| i.shard).collect(),
                };
                ReceiptPart::Numbered { group, position, is_duplicate, shards }
            }
            Err(reject) => ReceiptPart::Refused { group: Some(group), reject },
        };
        cx.effects.receipts.push(Receipt { number, shard: cx.config.shard, part });
    }

    fn on_deliver(&mut self, cx: &mut Context<'_>, item: Deliver, now: Micros) {
        match item {
            Deliver::Ask { group, from, places } => self.on_ask(cx, group, from, places, now),
            Deliver::Release { group, from, places, is_last } => {
                let home = self.groups.known_home(&group);
                let untold = home.map(|home| home.release(from, places, is_last, now));
                tell_nobody(cx, from, untold.into_iter().flatten());
                if is_last {
                    self.groups.forget_people(&group, from);
                }
            }
            Deliver::Lagging { group, from, is_lagging } => {
                if let Some(home) = self.groups.known_home(&group) {
                    home.set_lagging(from, is_lagging);
                }
            }
            Deliver::Publish(publish) => self.on_publish_at_home(cx, publish, now),
            Deliver::Confirmed(confirmed) => {
                if let Some(kept) = confirmed.kept.as_deref() {
                    // Members come after them.
                    let frames = kept.frames.iter().map(|kept| &kept.frame);
                    let counted = frames.filter(|frame| frame.offset > kept.begun_at);
                    tell_nobody(cx, cx.config.shard, counted.filter_map(|frame| frame.counted));
                }
                self.on_confirmed(cx, confirmed, now);
            }
            Deliver::Frames { group, epoch, frames, up_to } => {
                let is_current = |key: &GroupKey| {
                    self.groups
                        .get(*key)
                        .is_some_and(|group| group.is_confirmed && group.position.epoch == epoch)
                };
                match self.groups.find(&group).filter(is_current) {
                    Some(key) => {
                        self.groups.append(key, frames, up_to, &cx.config.settings.groups, now);
                    }
                    // The last member left meanwhile: the home was told so.
                    None => {
                        let counted = frames.iter().filter_map(|frame| frame.counted);
                        tell_nobody(cx, cx.config.shard, counted);
                    }
                }
            }
            Deliver::People { group, from, people } => {
                self.groups.take_people(&group, from, *people);
            }
            Deliver::List(list) => self.on_list(*list),
            Deliver::Listed { ask, page } => self.on_listed(cx, ask, &page, now),
            Deliver::Published { ask, result, .. } => self.on_published(cx, ask, result, now),
        }
    }

    fn on_ask(
        &mut self,
        cx: &mut Context<'_>,
        group: GroupName,
        from: ShardId,
        places: u32,
        now: Micros,
    ) {
        let settings = &cx.config.settings.groups;
        let rule = cx.config.gateway.push.rule(&group.name);
        let epoch = cx.rng.next_u32().max(1);
        let home = rule.and_then(|rule| self.groups.home_mut(&group, rule, settings, epoch, now));
        match home {
            Some(home) => {
                home.ask(from, places, now);
                self.groups.tell_now(&group);
            }
            // No place is granted: those who wait are told.
            None => {
                let position = Position::default();
                let (places, asked) = (0, places);
                let refused =
                    Confirmed { group, position, places, asked, elsewhere: 0, kept: None };
                self.groups.send(from, Deliver::Confirmed(refused));
            }
        }
    }

    fn on_publish_at_home(&mut self, cx: &mut Context<'_>, publish: Publish, now: Micros) {
        cx.stats.inc(Counter::Pushes);
        let Publish { group, body, from, session, ask, caller } = publish;
        let result = self.number(cx, &group, &body, caller, None, now);
        if result.is_err() {
            cx.stats.inc(Counter::PushesRefused);
        }
        if ask > 0 {
            let result = result.map(|(position, _)| position);
            self.groups.send(from, Deliver::Published { session, ask, result });
        }
    }

    pub(super) fn tell_done(&self, cx: &mut Context<'_>, number: u64, done: u32, ended: u32) {
        let part = ReceiptPart::Done { done, ended };
        cx.effects.receipts.push(Receipt { number, shard: cx.config.shard, part });
    }
}

/// Tells control of pushes, by their receipts, that nobody on `shard` is addressed by.
fn tell_nobody(cx: &mut Context<'_>, shard: ShardId, counted: impl Iterator<Item = u64>) {
    for number in counted {
        let (counts, offline_users) = Default::default();
        let part = ReceiptPart::Counted { counts, offline_users, is_duplicate: false };
        cx.effects.receipts.push(Receipt { number, shard, part });
    }
}
