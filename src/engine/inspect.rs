//! Answers to queries of operators and callers about this shard. Nothing is changed by them.

mod groups;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::engine::Engine;
use crate::engine::clients::conn::{Conn, Phase};
use crate::engine::dispatcher::instances::Link;
use crate::engine::dispatcher::route_cache::RouteKey;
use crate::engine::owner::{Holder, Party};
use crate::ids::{ConnId, TenantId};
use crate::inspect::{Asked, ConnInfo, Inspection, Query, RouteInfo, TOP_MAX};
use crate::message::Micros;
use crate::routing::{Failover, choose};

impl Engine {
    /// Answers `query`. Each connection is visited once at most; a heap of at most [`TOP_MAX`] of
    /// them is kept.
    pub fn inspect(&self, query: &Query, now: Micros) -> Inspection {
        match query {
            Query::TopTalkers(top) => Inspection::Conns(self.top_talkers((*top).min(TOP_MAX), now)),
            Query::Session(session) => {
                let found = self.conn_of(session);
                Inspection::Conns(found.map(|conn| conn_info(conn, now)).into_iter().collect())
            }
            &Query::Route { tenant, service, route, hash, next, ref sender } => {
                let key = RouteKey { tenant, service, hash };
                let failover = if next { Failover::Next } else { Failover::None };
                let mut info = self.route_info(key, failover, now);
                info.shares = info
                    .chosen
                    .zip(self.holder_of(tenant, sender))
                    .map(|(id, holder)| self.dispatcher.shares_at(id, &holder, route));
                Inspection::Route(info)
            }
            Query::Members { group, limit, after } => {
                Inspection::Members(self.members(group, *limit, after.as_ref()))
            }
            Query::Groups(groups) => {
                Inspection::Groups(groups.iter().map(|name| self.group_info(name)).collect())
            }
            Query::History { group, since, limit, newest_first } => {
                Inspection::History(self.history(group, *since, *limit, *newest_first))
            }
            Query::SessionsOf { tenant, users } => {
                Inspection::Sessions(self.sessions_of(*tenant, users))
            }
            Query::TopGroups(top) => Inspection::TopGroups(self.top_groups(*top)),
            Query::GroupDetails(groups) => {
                let details = groups.iter().map(|name| self.group_detail(name, now));
                Inspection::GroupDetails(details.collect())
            }
        }
    }

    fn conn_of(&self, session: &str) -> Option<&Conn> {
        let of_session = |conn: &&Conn| conn.session.id.as_str() == session;
        self.clients.conns.iter().map(|(_, conn)| conn).find(of_session)
    }

    /// The owner that messages of a sender count for; `None` if the shard does not know it.
    fn holder_of(&self, tenant: TenantId, sender: &Asked) -> Option<Holder> {
        match sender {
            Asked::Nobody => None,
            Asked::User(user) => Some(Holder { tenant, party: Party::User(*user), session: 0 }),
            Asked::Session(session) => self.conn_of(session).map(|conn| conn.session.holder()),
        }
    }

    fn top_talkers(&self, top: usize, now: Micros) -> Vec<ConnInfo> {
        // The top of the heap is the least of the kept ones, the next to be replaced.
        let mut kept: BinaryHeap<Reverse<(u64, ConnId)>> = BinaryHeap::with_capacity(top + 1);
        for (id, conn) in self.clients.conns.iter() {
            if kept.len() < top || kept.peek().is_some_and(|least| conn.work > least.0.0) {
                kept.push(Reverse((conn.work, id)));
                if kept.len() > top {
                    kept.pop();
                }
            }
        }
        let ids = kept.into_sorted_vec();
        let conns = ids.into_iter().filter_map(|Reverse((_, id))| self.clients.conns.get(id));
        conns.map(|conn| conn_info(conn, now)).collect()
    }

    /// Decision of `Dispatcher::pick`, without a trace in the cache and the counters.
    fn route_info(&self, key: RouteKey, failover: Failover, now: Micros) -> RouteInfo {
        let cached = self.dispatcher.cache.peek(&key, now);
        let service = self.config.snapshot.services.get(usize::from(key.service.0));
        let chosen = service.and_then(|service| {
            let owner = cached.map(|(owner, _)| owner).or_else(|| service.ring.pick(key.hash));
            let share = |id| self.dispatcher.instances.share(id);
            choose(&service.ring, owner, key.hash, failover, None, share)
        });
        let present =
            self.dispatcher.instances.iter().filter(|(_, i)| i.service == key.service && i.present);
        let links = present.map(|(id, instance)| {
            let link = match instance.link {
                Link::Connecting => "connecting",
                Link::Up => "up",
                Link::Down => "down",
            };
            (id, link)
        });
        let mut links: Vec<_> = links.collect();
        links.sort_unstable();
        let version = self.config.snapshot.version;
        RouteInfo { version, cached, chosen, links, shares: None }
    }
}

fn conn_info(conn: &Conn, now: Micros) -> ConnInfo {
    ConnInfo {
        session: conn.session.id,
        peer: conn.peer,
        phase: match conn.phase {
            Phase::Handshake => "handshake",
            Phase::Open => "open",
            Phase::Closing { .. } => "closing",
            Phase::Lingering { .. } => "lingering",
            Phase::Finished { .. } => "finished",
        },
        encoding: conn.encoding,
        messages: conn.messages,
        work: conn.work,
        unanswered: conn.session.unanswered,
        unanswered_bytes: conn.session.unanswered_bytes as u64,
        outbox_bytes: conn.outbox.len() as u64,
        paused: !conn.holds.is_empty(),
        age_us: now.since(conn.opened),
        heard_us: now.since(conn.heard),
    }
}

#[cfg(test)]
mod tests;
