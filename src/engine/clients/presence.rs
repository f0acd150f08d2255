//! People of groups, towards clients: who counts as there, and who may read the list.
//!
//! A session without a connection counts as there until `session.grace_ms` is over: a client that
//! comes back in time has never left for others. Its membership stays beyond that.

use hashbrown::HashMap;

use crate::config::settings::{PresenceKind, Who};
use crate::engine::Context;
use crate::engine::clients::Clients;
use crate::engine::clients::conn::Claim;
use crate::engine::clients::joining::{MAY_NOT, Wanted};
use crate::engine::clients::session::Session;
use crate::engine::clients::sessions::Seat;
use crate::engine::groups::asks::{Ask, Wish};
use crate::engine::groups::group::Member;
use crate::engine::groups::lane::{Deliver, List};
use crate::engine::groups::presence::{Page, cursor, person};
use crate::engine::groups::roster::{Info, PersonName, Roster, Seen, Standing};
use crate::ids::{GroupKey, SessionKey};
use crate::message::{Micros, Reject};
use crate::push::GroupName;
use crate::wire::client;

/// Sessions that become absent in a tick: 100,000 a second.
const ABSENT_BUDGET: usize = 1_000;

/// The groups of a session.
fn groups_of(session: &Session) -> Vec<GroupKey> {
    let memberships = session.groups.as_deref().into_iter().flat_map(|all| all.iter());
    memberships.map(|(_, membership)| membership.group).collect()
}

impl Clients {
    /// Takes note of sessions that are away for longer than the grace: part of the tick.
    pub(crate) fn note_absent(&mut self, cx: &mut Context<'_>, now: Micros) {
        let grace_us = cx.config.settings.session.grace_ms * 1000;
        let before = Micros(now.0.saturating_sub(grace_us));
        for _ in 0..ABSENT_BUDGET {
            let Some(key) = self.sessions.next_absent(before) else { return };
            let Some(Seat::Away(session)) = self.sessions.seat_mut(key) else { continue };
            let (person, groups) = (session.person(), groups_of(session));
            let was = std::mem::replace(&mut session.standing, Standing::Absent);
            for group in groups {
                self.groups.moves(group, person.clone(), was, Standing::Absent);
            }
            self.tell_absence(cx, key);
        }
    }

    /// Takes note that a session lost its connection.
    pub(super) fn is_gone(&mut self, session: &mut Session) {
        let was = std::mem::replace(&mut session.standing, Standing::Away);
        for group in groups_of(session) {
            self.groups.moves(group, session.person(), was, Standing::Away);
        }
    }

    /// Takes note that a session is on a connection again.
    pub(super) fn is_back(&mut self, key: SessionKey) {
        let Some((session, _)) = self.session_mut(key) else { return };
        let was = std::mem::replace(&mut session.standing, Standing::Here);
        let (person, groups) = (session.person(), groups_of(session));
        for group in groups {
            self.groups.moves(group, person.clone(), was, Standing::Here);
        }
    }

    /// Makes the rosters of groups whose rule tells of people since a reload, and drops those of
    /// groups whose rule does so no more: part of the tick.
    pub(crate) fn make_rosters(&mut self) {
        for key in std::mem::take(&mut self.groups.rosters_to_make) {
            let people = self.people_in(key);
            let Some(group) = self.groups.get_mut(key) else { continue };
            group.roster = Roster::of(&group.rule);
            for (person, standing, info) in people {
                self.groups.moves(key, person.clone(), Standing::Absent, standing);
                if let Some(info) = info.filter(|_| standing != Standing::Absent) {
                    self.groups.set_info(key, person, info);
                }
            }
        }
    }

    /// The person of each member, how its session stands, and what a service said of it.
    fn people_in(&self, key: GroupKey) -> Vec<(PersonName, Standing, Info)> {
        let Some(group) = self.groups.get(key) else { return Vec::new() };
        let session = |key| match self.sessions.seat(key)? {
            Seat::At(id) => Some(&*self.conns.get(*id)?.session),
            Seat::Away(session) => Some(&**session),
        };
        let member = |member: &Member| {
            let session = session(member.session)?;
            Some((session.person(), session.standing, group.info_of(member.session)))
        };
        group.members().iter().filter_map(member).collect()
    }

    /// Checks that each roster has exactly the people that members are (promise 21).
    pub(super) fn check_rosters(&self) -> Result<(), String> {
        for (key, group) in self.groups.iter() {
            let Some(roster) = group.roster.as_deref() else { continue };
            let mut people = HashMap::<PersonName, (u32, u32)>::new();
            for (person, standing, _) in self.people_in(key) {
                match standing {
                    Standing::Here => people.entry(person).or_default().0 += 1,
                    Standing::Away => people.entry(person).or_default().1 += 1,
                    Standing::Absent => {}
                }
            }
            let known = roster.people().iter();
            let known: HashMap<_, _> =
                known.map(|(person, of)| (person.clone(), (of.here, of.away))).collect();
            let name = &group.name;
            if known != people {
                return Err(format!("people of {name:?}: {known:?}, in truth {people:?}"));
            }
        }
        Ok(())
    }

    /// Whether a session may read who is in a group. Where a rule tells nothing of people nobody
    /// may: nothing is known of them.
    pub fn may_list(
        &self,
        cx: &Context<'_>,
        session: &Session,
        name: &GroupName,
    ) -> Result<(), Reject> {
        let rule = cx.config.gateway.push.rule(&name.name).ok_or(MAY_NOT)?;
        let may = match rule.list {
            Who::None => false,
            Who::Members => self.is_member(session, name),
            Who::User => session.user().is_some(),
        };
        if may && rule.presence != PresenceKind::Off { Ok(()) } else { Err(MAY_NOT) }
    }

    /// Whether a session is in a group, or about to be: what it asks right behind its join is
    /// taken.
    pub(super) fn is_member(&self, session: &Session, name: &GroupName) -> bool {
        let group = self.groups.find(name);
        let memberships = session.groups.as_deref();
        let is_in = group.zip(memberships).is_some_and(|(g, all)| all.slot_of(g).is_some());
        is_in || self.groups.asks.has_join(session.key, name)
    }

    /// Asks the home of a group who is there, behind a person, so many at most.
    pub fn ask_for_members(
        &mut self,
        cx: &Context<'_>,
        session: SessionKey,
        wanted: Wanted,
        group: GroupName,
        (after, limit): (Option<PersonName>, u32),
        now: Micros,
    ) {
        let Wanted { seq, msg_id } = wanted;
        let due = now.plus_ms(cx.config.settings.groups.join_timeout_ms);
        let wish = Wish::Members;
        let ask = self.groups.asks.put(Ask { session, seq, msg_id, due, wish });
        let (home, from) = (group.home(cx.config.shards), cx.config.shard);
        let list = List { group, from, ask, after, limit };
        self.groups.send(home, Deliver::List(Box::new(list)));
    }

    /// Answers another shard that asks who is in a group whose home is here.
    pub(crate) fn on_list(&mut self, list: List) {
        let List { group, from, ask, after, limit } = list;
        let page = Box::new(self.groups.page(&group, after.as_ref(), limit));
        self.groups.send(from, Deliver::Listed { ask, page });
    }

    /// Takes the home's word on who is there.
    pub(crate) fn on_listed(&mut self, cx: &mut Context<'_>, ask: u64, page: &Page, now: Micros) {
        if let Some(ask) = self.groups.asks.take(ask) {
            self.answer_members(cx, &ask, Ok(page), now);
        }
    }

    pub(super) fn answer_members(
        &mut self,
        cx: &mut Context<'_>,
        ask: &Ask,
        result: Result<&Page, Reject>,
        now: Micros,
    ) {
        let wanted = Wanted { seq: ask.seq, msg_id: ask.msg_id };
        match result {
            Ok(page) => {
                let last = page.people.last().map(|(name, _)| name).filter(|_| page.has_more);
                let shown =
                    |(name, Seen { info, is_away }): &(_, Seen)| person(name, info, *is_away);
                let list = client::MemberList {
                    members: page.people.iter().map(shown).collect(),
                    next: last.map(cursor).unwrap_or_default(),
                    count: page.count,
                };
                let payload = client::payload(self.encoding_of(ask.session), &list);
                self.answer_gateway(cx, ask.session, wanted, &payload);
            }
            Err(reject) => self.answer_reject(cx, ask.session, wanted, &reject),
        }
        self.settle(cx, ask.session, Claim::default(), now);
    }
}
