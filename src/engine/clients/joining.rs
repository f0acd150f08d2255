//! Sessions come into groups and leave them.
//!
//! A session joins at once where its shard has a free place of the group; else it waits until the
//! group's home has granted one, which takes a round over two lanes. Everything that is numbered
//! after the position that it is told is delivered, or told as a gap. A membership belongs to the
//! session: it stays while that is away, and ends with it.

use std::sync::Arc;

use crate::config::settings::{GroupRule, JoinBy, Keep};
use crate::engine::Context;
use crate::engine::clients::Clients;
use crate::engine::clients::conn::Claim;
use crate::engine::clients::membership::Membership;
use crate::engine::clients::session::Session;
use crate::engine::clients::sessions::Seat;
use crate::engine::clients::telling::subject;
use crate::engine::groups::asks::{Ask, Asked, Wish};
use crate::engine::groups::group::{Joiner, Member};
use crate::engine::groups::lane::Confirmed;
use crate::engine::groups::log::{Reader, is_excepted};
use crate::engine::groups::roster::{Info, PersonName, Standing};
use crate::ids::{ConnId, GroupKey, SessionKey, TenantId};
use crate::message::{EventReason, Micros, Reason, Reject};
use crate::push::{Body, GroupName, NameFault, Position};
use crate::stats::Counter;
use crate::wire::{client, groups};

/// No rule has the name, or the client may not join: it is told the same, so that it does not learn
/// which groups there are.
pub const MAY_NOT: Reject =
    Reject::new(Reason::Forbidden, "this client may not do this with this group");
const NAME_EMPTY: Reject = Reject::new(Reason::BadMessage, "group: a name is wanted");
const NAME_LONG: Reject = Reject::new(Reason::TooLarge, "group: a name has at most 128 bytes");
const NAME_BAD: Reject =
    Reject::new(Reason::BadMessage, "group: a name has printable ASCII characters and no space");
const TOO_MANY: Reject = Reject::new(
    Reason::TooLarge,
    "this session is in as many groups as it may (groups.per_session_max): leave one",
);
const TABLE_FULL: Reject = Reject::later(
    Reason::QueueFull,
    "this shard has as many groups or members as it may: try again later",
    1_000,
);
const GROUP_FULL: Reject =
    Reject::later(Reason::QueueFull, "the group has as many members as it may", 1_000);
pub(super) const NO_WORD: Reject = Reject::later(
    Reason::Unavailable,
    "the group's home shard did not answer in time: try again",
    1_000,
);

/// How a join went on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Joined {
    /// Whether it goes on where its client was (`resumed`), begins now (`joined`), or pushes are
    /// missing (`gap`).
    pub outcome: &'static str,
    /// The place that it begins at: what comes after it is delivered.
    pub position: Position,
    /// People in the group, itself among them, if the rule tells of them.
    pub count: u64,
}

/// The state of a join.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Joining {
    /// It is done.
    Done(Joined),
    /// A word of the group's home is awaited.
    Waits,
}

/// A message that wants an answer; its seq is 0 if it wants none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wanted {
    /// Its number.
    pub seq: u64,
    /// Its id.
    pub msg_id: u32,
}

/// The group of a session's tenant with this name.
pub fn read_name(session: &Session, name: &str) -> Result<GroupName, Reject> {
    GroupName::new(session.owner.tenant, name).map_err(|fault| match fault {
        NameFault::Empty => NAME_EMPTY,
        NameFault::TooLong => NAME_LONG,
        NameFault::Character => NAME_BAD,
    })
}

/// The rule by which a client may join the group by itself.
pub(crate) fn may_join<'a>(
    cx: &Context<'a>,
    session: &Session,
    group: &GroupName,
) -> Result<&'a Arc<GroupRule>, Reject> {
    let rule = cx.config.gateway.push.rule(&group.name).ok_or(MAY_NOT)?;
    let may = match rule.join {
        JoinBy::Anybody => true,
        JoinBy::User => session.user().is_some(),
        JoinBy::Claim => session
            .user()
            .is_some_and(|user| user.groups.iter().any(|claimed| **claimed == *group.name)),
        JoinBy::None => false,
    };
    if may { Ok(rule) } else { Err(MAY_NOT) }
}

/// What a client is told of a membership.
pub(super) fn outcome_of(
    name: &str,
    outcome: &str,
    position: Option<Position>,
    count: u64,
) -> client::GroupOutcome {
    client::GroupOutcome {
        group: name.to_owned(),
        outcome: outcome.to_owned(),
        position: position.map(groups::position),
        count,
    }
}

impl Clients {
    /// Puts a session into a group, by `rule`: at once, or when its home has a place.
    pub fn join(
        &mut self,
        cx: &mut Context<'_>,
        key: SessionKey,
        (name, rule): (&GroupName, &Arc<GroupRule>),
        asked: Asked,
        wanted: Wanted,
        now: Micros,
    ) -> Result<Joining, Reject> {
        let settings = &cx.config.settings.groups;
        let Some((session, _)) = self.session_mut(key) else { return Err(NO_WORD) };
        let memberships = session.groups.get_or_insert_default();
        let (count, has_slot) = (memberships.len(), memberships.free_slot().is_some());
        let known = self.groups.find(name);
        if let Some(group) = known
            && let Some(joined) = self.join_again(cx, key, group, &asked)
        {
            return Ok(Joining::Done(joined));
        }
        if count >= settings.per_session_max || !has_slot {
            return Err(TOO_MANY);
        }
        let is_full = self.groups.memberships >= settings.members_max;
        let group = match is_full {
            true => None,
            false => self.groups.enter(name, rule, settings, now),
        };
        let group_key = group.ok_or(TABLE_FULL)?;
        let group = self.groups.get(group_key).ok_or(TABLE_FULL)?;
        if group.is_confirmed && group.free > 0 && group.joiners.is_empty() {
            return Ok(Joining::Done(self.seat_member(cx, group_key, key, &asked)));
        }
        let ask = Ask {
            session: key,
            seq: wanted.seq,
            msg_id: wanted.msg_id,
            due: now.plus_ms(settings.join_timeout_ms),
            wish: Wish::Join { group: name.clone(), asked },
        };
        let ask = self.groups.asks.put(ask);
        if let Some(group) = self.groups.get_mut(group_key) {
            group.joiners.push_back(Joiner { session: key, ask });
        }
        self.groups.ask_for_places(group_key);
        Ok(Joining::Waits)
    }

    /// Puts a session into the groups that its user's token names, where the rule goes by that, and
    /// takes it out of those that the token names no more. Its client is told.
    pub(super) fn follow_claims(&mut self, cx: &mut Context<'_>, key: SessionKey, now: Micros) {
        let Some((session, _)) = self.session_mut(key) else { return };
        let Some(user) = session.owner.user().cloned() else { return };
        let tenant = session.owner.tenant;
        let memberships = session.groups.as_deref();
        let all: Vec<_> = memberships.into_iter().flat_map(|all| all.iter()).collect();
        let mut present = Vec::new();
        for (slot, membership) in all {
            let Some(group) = self.groups.get(membership.group) else { continue };
            let (name, by) = (group.name.clone(), group.rule.join);
            if by == JoinBy::Claim && !user.groups.contains(&name.name) {
                self.leave(cx, key, slot, EventReason::Token);
                self.tell_left(cx, key, &name, "TOKEN");
            } else {
                present.push(name.name);
            }
        }
        let config = cx.config;
        let is_claimed = |name: &&Arc<str>| {
            let rule = config.gateway.push.rule(name);
            rule.is_some_and(|rule| rule.join == JoinBy::Claim) && !present.contains(name)
        };
        let claimed: Vec<Arc<str>> = user.groups.iter().filter(is_claimed).cloned().collect();
        self.join_by_service(cx, key, tenant, (&claimed, &None), now);
    }

    /// A session that is in the group joins it once more: it goes on from where its client is.
    fn join_again(
        &mut self,
        cx: &mut Context<'_>,
        key: SessionKey,
        group: GroupKey,
        asked: &Asked,
    ) -> Option<Joined> {
        let (session, _) = self.session_mut(key)?;
        let slot = session.groups.as_deref()?.slot_of(group)?;
        let index = session.groups.as_deref()?.get(slot)?.index;
        if let Some(presence) = asked.presence
            && let Some(group) = self.groups.get_mut(group)
        {
            group.member_mut(index).wants_presence = presence;
        }
        self.note_info(key, group, &asked.info);
        Some(self.set_cursor(cx, key, slot, asked.since))
    }

    /// Sets the cursor of a member to what its client has, if that is known and kept.
    pub(super) fn set_cursor(
        &mut self,
        cx: &mut Context<'_>,
        key: SessionKey,
        slot: u8,
        since: Option<Position>,
    ) -> Joined {
        let none = Joined { outcome: "lost", position: Position::default(), count: 0 };
        let Some((session, _)) = self.session_mut(key) else { return none };
        let Some(membership) = session.groups.as_deref().and_then(|groups| groups.get(slot)) else {
            return none;
        };
        let Some(group) = self.groups.get_mut(membership.group) else { return none };
        let position = group.position;
        let is_kept = group.rule.keep != Keep::None;
        let found = since.map(|since| match since.epoch == position.epoch {
            true if is_kept || since.offset == position.offset => {
                group.log.place_after(since.offset, position.offset)
            }
            true | false => None,
        });
        let (outcome, at) = match found {
            None => ("joined", group.log.end()),
            Some(Some(at)) => ("resumed", at),
            Some(None) => ("gap", group.log.end()),
        };
        let end = group.log.end();
        group.member_mut(membership.index).at = at;
        if at < end {
            self.tell_behind(cx, key, slot);
        }
        if outcome == "gap" {
            cx.stats.inc(Counter::GroupGaps);
            cx.stats.inc(Counter::GroupGapsOnReturn);
        }
        let position = match outcome {
            "resumed" => since.unwrap_or(position),
            _ => position,
        };
        Joined { outcome, position, count: self.groups.present(membership.group) }
    }

    /// Makes a session a member of a group that has a free place.
    fn seat_member(
        &mut self,
        cx: &mut Context<'_>,
        group_key: GroupKey,
        key: SessionKey,
        asked: &Asked,
    ) -> Joined {
        let none = Joined { outcome: "lost", position: Position::default(), count: 0 };
        let Some((session, _)) = self.session_mut(key) else { return none };
        let (person, standing) = (session.person(), session.standing);
        let memberships = session.groups.get_or_insert_default();
        let Some(slot) = memberships.free_slot() else { return none };
        let Some(group) = self.groups.get_mut(group_key) else { return none };
        let at = group.log.end();
        let wants_presence = asked.presence.unwrap_or(false);
        let index = group.add(Member { session: key, at, since: at, slot, wants_presence });
        self.groups.moves(group_key, person, Standing::Absent, standing);
        self.groups.memberships += 1;
        if let Some((session, _)) = self.session_mut(key) {
            let membership = Membership { group: group_key, index };
            session.groups.get_or_insert_default().put(slot, membership);
        }
        self.note_info(key, group_key, &asked.info);
        cx.stats.inc(Counter::GroupJoins);
        if self.events.is_on()
            && let Some(group) = self.groups.get(group_key)
        {
            let name = group.name.name.clone();
            self.tell_join(cx, key, &name);
        }
        self.set_cursor(cx, key, slot, asked.since)
    }

    /// Takes note of what a service says of a member.
    fn note_info(&mut self, key: SessionKey, group_key: GroupKey, info: &Info) {
        let Some(info) = info else { return };
        let Some((session, _)) = self.session_mut(key) else { return };
        let (person, standing) = (session.person(), session.standing);
        let Some(group) = self.groups.get_mut(group_key) else { return };
        group.set_info(key, info.clone());
        if standing != Standing::Absent {
            self.groups.set_info(group_key, person, info.clone());
        }
    }

    /// Sets the cursors of a session that was resumed to what its client has of each group, and
    /// says what became of each. A group of which the client says nothing has a gap: nobody knows
    /// what it got of that.
    pub(super) fn go_on_in_groups(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        shown: &[(String, Position)],
    ) -> Vec<client::GroupOutcome> {
        let Some(key) = self.key_at(id) else { return Vec::new() };
        let Some((session, _)) = self.session_mut(key) else { return Vec::new() };
        let memberships = session.groups.as_deref();
        let all: Vec<_> = memberships.into_iter().flat_map(|all| all.iter()).collect();
        let mut outcomes = Vec::new();
        for (slot, membership) in all {
            let Some(group) = self.groups.get(membership.group) else { continue };
            let name = group.name.name.clone();
            let since = shown.iter().find(|(shown, _)| *shown == *name).map(|(_, at)| *at);
            let joined = self.set_cursor(cx, key, slot, Some(since.unwrap_or_default()));
            let Joined { outcome, position, count } = joined;
            outcomes.push(outcome_of(&name, outcome, Some(position), count));
        }
        let is_known = |name: &str| outcomes.iter().any(|outcome| outcome.group == name);
        let lost: Vec<_> = shown.iter().filter(|(name, _)| !is_known(name)).collect();
        outcomes.extend(lost.into_iter().map(|(name, _)| outcome_of(name, "lost", None, 0)));
        outcomes
    }

    /// Writes the newest push of each key for a session that has just joined, where the group keeps
    /// those and they are for this session still.
    pub fn write_newest(
        &mut self,
        cx: &mut Context<'_>,
        key: SessionKey,
        name: &GroupName,
        joined: &Joined,
        now: Micros,
    ) {
        let Some(Seat::At(id)) = self.sessions.seat(key) else { return };
        let id = *id;
        let Some(conn) = self.conns.get(id) else { return };
        let user = conn.session.user().map(|user| &*user.user);
        let (session, encoding) = (conn.session.id.as_str(), conn.encoding);
        let reader = Reader { session, user, encoding, wants_presence: false };
        let Some(group) = self.groups.find(name).and_then(|key| self.groups.get(key)) else {
            return;
        };
        if group.rule.keep != Keep::Last || joined.outcome == "resumed" {
            return;
        }
        let is_for = |body: &Body| body.expires > now && !is_excepted(body, &reader);
        let newest = group.newest.above(0).filter(|(_, body)| is_for(body));
        let newest: Vec<_> = newest.map(|(offset, body)| (offset, body.clone())).collect();
        for (offset, body) in newest {
            self.write_push(cx, id, &name.name, offset, &body);
        }
    }

    /// Takes a session out of the group in a slot.
    pub fn leave(
        &mut self,
        cx: &mut Context<'_>,
        key: SessionKey,
        slot: u8,
        reason: EventReason,
    ) -> Option<GroupName> {
        let is_on = self.events.is_on();
        let (session, _) = self.session_mut(key)?;
        let there = (session.person(), session.standing);
        let subject = (is_on && session.is_told).then(|| subject(session));
        let membership = session.groups.as_deref_mut()?.take(slot)?;
        let name = self.leave_group(cx, membership, there)?;
        self.tell_leave(cx, subject, &name.name, reason);
        Some(name)
    }

    /// Ends all memberships of a session that ends, and tells services of its end.
    pub(super) fn leave_all(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut Session,
        reason: EventReason,
    ) {
        let subject = self.subject_of(session);
        let memberships = session.groups.take();
        for (_, membership) in memberships.iter().flat_map(|all| all.iter()) {
            let there = (session.person(), session.standing);
            if let Some(name) = self.leave_group(cx, membership, there) {
                self.tell_leave(cx, subject.clone(), &name.name, reason);
            }
        }
        self.tell_end(cx, subject, reason);
    }

    /// Ends a membership of a session that is this person and stands in this way.
    fn leave_group(
        &mut self,
        cx: &mut Context<'_>,
        left: Membership,
        (person, standing): (PersonName, Standing),
    ) -> Option<GroupName> {
        cx.stats.inc(Counter::GroupLeaves);
        self.groups.memberships -= 1;
        let group = self.groups.get_mut(left.group)?;
        let name = group.name.clone();
        if let Some((moved, is_passed_over)) = group.remove(left.index) {
            if let Some((session, _)) = self.session_mut(moved.session)
                && let Some(memberships) = session.groups.as_deref_mut()
            {
                memberships.set_index(moved.slot, left.index);
            }
            if is_passed_over {
                self.tell_behind(cx, moved.session, moved.slot);
            }
        }
        self.groups.moves(left.group, person, standing, Standing::Absent);
        Some(name)
    }

    /// Takes the home's word on places: sessions that waited join, in their order.
    pub fn on_confirmed(&mut self, cx: &mut Context<'_>, confirmed: Confirmed, now: Micros) {
        let name = confirmed.group.clone();
        let Some(key) = self.groups.find(&name) else {
            // Gone meanwhile: the places go back.
            self.groups.give_back(&name, confirmed.places);
            return;
        };
        self.groups.confirm(key, confirmed, &cx.config.settings.groups, now);
        loop {
            let Some(group) = self.groups.get_mut(key) else { return };
            if group.free == 0 {
                break;
            }
            let Some(joiner) = group.joiners.pop_front() else { break };
            let Some(ask) = self.groups.asks.take(joiner.ask) else { continue };
            let Wish::Join { asked, .. } = &ask.wish else { continue };
            if !self.is_there(joiner.session) {
                continue;
            }
            // It may have joined by another message, or signed in as somebody, meanwhile.
            let result = if self.tenant_of(joiner.session) != Some(name.tenant) {
                Err(MAY_NOT)
            } else if let Some(joined) = self.join_again(cx, joiner.session, key, asked) {
                Ok(joined)
            } else if self.has_free_slot(cx, joiner.session) {
                Ok(self.seat_member(cx, key, joiner.session, asked))
            } else {
                Err(TOO_MANY)
            };
            self.answer_join(cx, &ask, &name, result, now);
        }
        // All that were asked for have come: nobody else has a place.
        if let Some(group) = self.groups.get_mut(key)
            && group.asked == 0
        {
            for joiner in std::mem::take(&mut group.joiners) {
                if let Some(ask) = self.groups.asks.take(joiner.ask) {
                    self.answer_join(cx, &ask, &name, Err(GROUP_FULL), now);
                }
            }
        }
    }

    fn tenant_of(&mut self, key: SessionKey) -> Option<TenantId> {
        self.session_mut(key).map(|(session, _)| session.owner.tenant)
    }

    fn has_free_slot(&mut self, cx: &Context<'_>, key: SessionKey) -> bool {
        let max = cx.config.settings.groups.per_session_max;
        let Some((session, _)) = self.session_mut(key) else { return false };
        let memberships = session.groups.get_or_insert_default();
        memberships.len() < max && memberships.free_slot().is_some()
    }

    fn answer_join(
        &mut self,
        cx: &mut Context<'_>,
        ask: &Ask,
        name: &GroupName,
        result: Result<Joined, Reject>,
        now: Micros,
    ) {
        let wanted = Wanted { seq: ask.seq, msg_id: ask.msg_id };
        self.tell_joined(cx, ask.session, wanted, name, result);
        if ask.seq > 0 {
            self.settle(cx, ask.session, Claim::default(), now);
        }
        if let Ok(joined) = result {
            self.write_newest(cx, ask.session, name, &joined, now);
        }
    }

    /// Answers sessions to which no word of a home has come: part of the tick.
    pub fn end_asks(&mut self, cx: &mut Context<'_>, now: Micros) {
        while let Some((_, ask)) = self.groups.asks.take_due(now) {
            match &ask.wish {
                Wish::Join { group, .. } => {
                    let group = group.clone();
                    self.answer_join(cx, &ask, &group, Err(NO_WORD), now);
                }
                Wish::Publish => self.publish_is_late(cx, &ask, now),
                Wish::Members => self.answer_members(cx, &ask, Err(NO_WORD), now),
            }
        }
    }

    /// Ends all memberships of a connection's session and tells its client.
    pub(super) fn leave_with_notice(&mut self, cx: &mut Context<'_>, id: ConnId, reason: &str) {
        let Some(key) = self.key_at(id) else { return };
        while let Some(slot) = self.first_slot(key) {
            let Some(name) = self.leave(cx, key, slot, EventReason::Replaced) else { return };
            self.tell_left(cx, key, &name, reason);
        }
    }

    fn first_slot(&mut self, key: SessionKey) -> Option<u8> {
        let (session, _) = self.session_mut(key)?;
        session.groups.as_deref()?.iter().next().map(|(slot, _)| slot)
    }

    /// The session of a connection.
    pub(super) fn key_at(&self, id: ConnId) -> Option<SessionKey> {
        self.conns.get(id).map(|conn| conn.session.key)
    }
}
