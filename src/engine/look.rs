//! A closer look at one shard: for an operator, without changing anything.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::engine::Engine;
use crate::engine::clients::conn::{Conn, Phase};
use crate::engine::dispatcher::instances::Link;
use crate::engine::dispatcher::route_cache::RouteKey;
use crate::ids::ConnId;
use crate::look::{ConnSeen, Question, RouteSeen, Seen, TOP_MAX};
use crate::message::Micros;
use crate::routing::{Failover, choose};

impl Engine {
    /// Answers `question`. Connections are looked at once each, with a heap of at most
    /// [`TOP_MAX`] of them.
    pub fn look(&self, question: &Question, now: Micros) -> Seen {
        match question {
            Question::Talkers(top) => Seen::Conns(self.talkers((*top).min(TOP_MAX), now)),
            Question::Session(session) => {
                let of_it = |conn: &&Conn| conn.session.id.as_str() == session;
                let found = self.clients.conns.iter().map(|(_, conn)| conn).find(of_it);
                Seen::Conns(found.map(|conn| seen(conn, now)).into_iter().collect())
            }
            &Question::Route { tenant, service, hash, next } => {
                let key = RouteKey { tenant, service, hash };
                let failover = if next { Failover::Next } else { Failover::None };
                Seen::Route(self.route_seen(key, failover, now))
            }
        }
    }

    fn talkers(&self, top: usize, now: Micros) -> Vec<ConnSeen> {
        // The least of those kept is on top, to be replaced.
        let mut kept: BinaryHeap<Reverse<(u64, ConnId)>> = BinaryHeap::with_capacity(top + 1);
        for (id, conn) in self.clients.conns.iter() {
            if kept.len() < top || kept.peek().is_some_and(|least| conn.messages > least.0.0) {
                kept.push(Reverse((conn.messages, id)));
                if kept.len() > top {
                    kept.pop();
                }
            }
        }
        let ids = kept.into_sorted_vec();
        let conns = ids.into_iter().filter_map(|Reverse((_, id))| self.clients.conns.get(id));
        conns.map(|conn| seen(conn, now)).collect()
    }

    /// As [`Engine::pick`] would decide, without its traces in the cache and the counters.
    fn route_seen(&self, key: RouteKey, failover: Failover, now: Micros) -> RouteSeen {
        let cached = self.dispatcher.cache.peek(&key, now);
        let service = self.config.snapshot.services.get(usize::from(key.service.0));
        let chosen = service.and_then(|service| {
            let owner = cached.map(|(owner, _)| owner).or_else(|| service.ring.pick(key.hash));
            let share = |id| self.dispatcher.instances.share(id);
            choose(&service.ring, owner, key.hash, failover, None, share)
        });
        let own =
            self.dispatcher.instances.iter().filter(|(_, i)| i.service == key.service && i.present);
        let links = own.map(|(id, instance)| {
            let link = match instance.link {
                Link::Connecting => "connecting",
                Link::Up => "up",
                Link::Down => "down",
            };
            (id, link)
        });
        let mut links: Vec<_> = links.collect();
        links.sort_unstable();
        RouteSeen { version: self.config.snapshot.version, cached, chosen, links }
    }
}

fn seen(conn: &Conn, now: Micros) -> ConnSeen {
    ConnSeen {
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
        unanswered: conn.unanswered,
        unanswered_bytes: conn.unanswered_bytes as u64,
        outbox_bytes: conn.outbox.len() as u64,
        paused: !conn.holds.is_empty(),
        age_us: now.since(conn.opened),
        heard_us: now.since(conn.heard),
    }
}

#[cfg(test)]
mod tests;
