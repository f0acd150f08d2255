//! Answers about groups, their members, and the sessions of users.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use crate::engine::Engine;
use crate::engine::clients::conn::Conn;
use crate::engine::clients::session::Session;
use crate::engine::clients::sessions::Seat;
use crate::engine::groups::group::Group;
use crate::engine::groups::home::{Home, Interest};
use crate::ids::{SessionId, SessionKey, TenantId};
use crate::inspect::{
    GroupDetail, GroupInfo, HISTORY_BYTES_MAX, HistoryInfo, InterestInfo, KeptPush, MemberInfo,
    MembersInfo, PAGE_MAX, SessionInfo, TOP_MAX,
};
use crate::message::{Encoding, Micros};
use crate::push::{Body, GroupName, Position};
use crate::routing::affinity_hash;

impl Engine {
    /// The session with this key, and its connection if it has one.
    fn session(&self, key: SessionKey) -> Option<(&Session, Option<&Conn>)> {
        match self.clients.sessions.seat(key)? {
            Seat::At(id) => self.clients.conns.get(*id).map(|conn| (&*conn.session, Some(conn))),
            Seat::Away(session) => Some((session, None)),
        }
    }

    fn group(&self, name: &GroupName) -> Option<&Group> {
        self.clients.groups.get(self.clients.groups.find(name)?)
    }

    /// The sessions of a group, with their connections.
    fn sessions_in(&self, group: &Group) -> impl Iterator<Item = (&Session, Option<&Conn>)> {
        group.members().iter().filter_map(|member| self.session(member.session))
    }

    /// A page of a group's members. All are visited; as many are kept as are asked for.
    pub(super) fn members(
        &self,
        name: &GroupName,
        limit: usize,
        after: Option<&SessionId>,
    ) -> MembersInfo {
        let Some(group) = self.group(name) else { return MembersInfo::default() };
        let limit = limit.min(PAGE_MAX);
        // The top of the heap is the greatest id of the kept ones, the next to be replaced.
        let mut kept: BinaryHeap<(&str, SessionKey)> = BinaryHeap::with_capacity(limit + 1);
        let (mut sessions, mut parties) = (0, HashSet::new());
        for (session, _) in self.sessions_in(group) {
            sessions += 1;
            parties.insert(party_of(session));
            let id = session.id.as_str();
            let is_asked = after.is_none_or(|after| id > after.as_str());
            if is_asked && (kept.len() < limit || kept.peek().is_some_and(|(last, _)| id < *last)) {
                kept.push((id, session.key));
                if kept.len() > limit {
                    kept.pop();
                }
            }
        }
        let keys = kept.into_sorted_vec().into_iter();
        let members = keys.filter_map(|(_, key)| self.session(key)).map(|(session, conn)| {
            let user = session.user().map_or("", |user| &user.user);
            MemberInfo {
                session: session.id,
                user: user.into(),
                is_away: conn.is_none(),
                info: group.info_of(session.key).map_or_else(Bytes::new, Bytes::from_owner),
            }
        });
        MembersInfo { members: members.collect(), sessions, users: parties.len() as u64 }
    }

    /// The members of a group here, counted, and its position if its home is here.
    pub(super) fn group_info(&self, name: &GroupName) -> GroupInfo {
        let mut info = GroupInfo {
            position: self.clients.groups.home(name).map(|home| home.position),
            ..GroupInfo::default()
        };
        let Some(group) = self.group(name) else { return info };
        let mut parties = HashSet::new();
        for (session, conn) in self.sessions_in(group) {
            info.sessions += 1;
            info.away += u64::from(conn.is_none());
            parties.insert(party_of(session));
        }
        info.users = parties.len() as u64;
        info
    }

    /// What a group keeps, if its home is here. With a gap the oldest push that is kept comes
    /// first, or the newest.
    pub(super) fn history(
        &self,
        name: &GroupName,
        since: Option<Position>,
        limit: usize,
        newest_first: bool,
    ) -> Option<HistoryInfo> {
        let home = self.clients.groups.home(name)?;
        let (position, all) = (home.position, kept_of(home));
        let is_gap = since.is_some_and(|since| {
            let missed = position.offset.checked_sub(since.offset);
            let left = all.iter().filter(|(offset, _)| *offset > since.offset).count();
            // Numbers rise by one: none is missing if there are as many.
            since.epoch != position.epoch || missed != Some(left as u64)
        });
        let from = since.filter(|_| !is_gap).map_or(0, |since| since.offset);
        let all = all.into_iter().filter(|(offset, _)| *offset > from);
        let mut pushes: Vec<_> = all.collect();
        if newest_first {
            pushes.reverse();
        }
        let mut bytes = 0;
        let fits = |(_, body): &(u64, &Arc<Body>)| {
            bytes += body.payload.len();
            bytes <= HISTORY_BYTES_MAX || bytes == body.payload.len()
        };
        let pushes = pushes.into_iter().take(limit.min(PAGE_MAX)).take_while(fits);
        let pushes = pushes.map(|(offset, body)| kept_push(offset, body)).collect();
        Some(HistoryInfo { position, is_gap, pushes })
    }

    /// The sessions of users here, in the order of the users.
    pub(super) fn sessions_of(&self, tenant: TenantId, users: &[Box<str>]) -> Vec<SessionInfo> {
        let index = &self.clients.sessions.index;
        let of_user = |name: &str| {
            let hash = affinity_hash(tenant, name.as_bytes());
            let found = index.of_user(tenant, hash).iter().filter_map(|key| self.session(*key));
            let is_asked = |session: &Session| session.user().is_some_and(|u| *u.user == *name);
            let found = found.filter(|(session, _)| is_asked(session));
            found.map(|(session, conn)| self.session_info(session, conn)).collect::<Vec<_>>()
        };
        users.iter().flat_map(|name| of_user(name)).collect()
    }

    fn session_info(&self, session: &Session, conn: Option<&Conn>) -> SessionInfo {
        let memberships = session.groups.as_deref().into_iter().flat_map(|all| all.iter());
        let groups = memberships.filter_map(|(_, one)| self.clients.groups.get(one.group));
        let encoding = match (conn, session.resumption.as_deref()) {
            (Some(conn), _) => conn.encoding,
            (None, Some(resumption)) => resumption.encoding,
            (None, None) => Encoding::Json,
        };
        SessionInfo {
            session: session.id,
            user: session.user().map_or("", |user| &user.user).into(),
            is_away: conn.is_none(),
            since_unix_ms: self.config.unix_us(session.made) / 1000,
            peer: conn.map(|conn| conn.peer),
            encoding,
            groups: groups.map(|group| group.name.name.clone()).collect(),
        }
    }

    /// The groups whose home is here with the most places for members on all shards, and how many
    /// those are: at most `top`.
    pub(super) fn top_groups(&self, top: usize) -> Vec<(GroupName, u64)> {
        let top = top.min(TOP_MAX);
        let mut kept = BinaryHeap::with_capacity(top + 1);
        for (_, home) in self.clients.groups.homes() {
            let places = u64::from(home.granted());
            if kept.len() < top || kept.peek().is_some_and(|Reverse((least, _))| places > *least) {
                kept.push(Reverse((places, &home.name)));
                if kept.len() > top {
                    kept.pop();
                }
            }
        }
        let kept = kept.into_sorted_vec().into_iter();
        kept.map(|Reverse((places, name))| (name.clone(), places)).collect()
    }

    /// What this shard has of a group; `None`: nothing.
    pub(super) fn group_detail(&self, name: &GroupName, now: Micros) -> Option<GroupDetail> {
        let (group, home) = (self.group(name), self.clients.groups.home(name));
        let rule = match (group, home) {
            (Some(group), _) => &group.rule,
            (None, Some(home)) => &home.rule,
            (None, None) => return None,
        };
        let mut detail = GroupDetail {
            rule: rule.name.0.clone(),
            position: home.map(|home| home.position),
            kept_bytes: home.map_or(0, |home| home.bytes() as u64),
            interest: home.map_or_else(Vec::new, interest_of),
            ..GroupDetail::default()
        };
        let Some(group) = group else { return Some(detail) };
        detail.sessions = group.members().len() as u64;
        detail.log_bytes = (group.log.bytes() + group.log.arena_bytes()) as u64;
        detail.is_lagging = group.is_lagging;
        let slowest = group.members().iter().min_by_key(|member| member.at);
        if let Some(slowest) = slowest {
            detail.behind = group.log.end().saturating_sub(slowest.at);
            let oldest = group.log.get(slowest.at.max(group.log.first()));
            detail.behind_us = oldest.map_or(0, |entry| now.since(entry.since));
            detail.slowest = self
                .session(slowest.session)
                .filter(|_| detail.behind > 0)
                .map(|(session, _)| session.id);
        }
        let tenants = self.sessions_in(group).filter_map(|(session, _)| session.user());
        detail.tenant = tenants.map(|user| user.tenant.clone()).next().flatten();
        Some(detail)
    }
}

/// The shards that a home tells.
fn interest_of(home: &Home) -> Vec<InterestInfo> {
    let told =
        |one: &Interest| InterestInfo { shard: one.shard, told: one.told, places: one.granted };
    home.interest().iter().map(told).collect()
}

/// The user of a session by the hash of the name, or the session itself.
fn party_of(session: &Session) -> (bool, u64) {
    match session.sender.user {
        Some(user) => (true, user),
        None => (false, session.sender.session),
    }
}

/// The pushes that a home keeps for whoever asks, by their offsets: no more than its rule says, and
/// of one with `keep = "last"` the newest of each key.
fn kept_of(home: &Home) -> Vec<(u64, &Arc<Body>)> {
    let mut all: Vec<_> = home.newest().collect();
    let kept = home.kept().map(|kept| (kept.frame.offset, &kept.frame.body));
    all.extend(kept);
    all.sort_by_key(|(offset, _)| *offset);
    all.dedup_by_key(|(offset, _)| *offset);
    let over = all.len().saturating_sub(home.rule.shown_max());
    all.drain(..over);
    all
}

fn kept_push(offset: u64, body: &Body) -> KeptPush {
    KeptPush {
        offset,
        msg_id: body.msg_id,
        payload: body.payload.clone(),
        is_bytes: body.is_bytes,
        key: body.key.clone(),
        id: body.id.clone(),
        unix_ms: body.unix_ms,
    }
}
