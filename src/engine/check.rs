//! Invariants of an engine's state between any two events, for the simulator and unit tests.

use std::collections::BTreeMap;

use crate::engine::Engine;
use crate::engine::clients::conn::{Hold, Phase};
use crate::engine::clients::session::Session;
use crate::engine::clients::sessions::Seat;
use crate::engine::held::Held;
use crate::ids::{ConnId, SessionKey};
use crate::message::Micros;
use crate::push::GroupName;

/// State of one connection for an observer.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct ConnView {
    pub id: ConnId,
    pub phase: Phase,
    /// Number of messages without an answer.
    pub unanswered: u32,
    /// Whether the connection is not read, for one cause or more.
    pub paused: bool,
}

/// Counts of everything under way in an engine, and its connections.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Number of messages without an answer.
    pub messages: usize,
    /// Number of ordered streams.
    pub streams: usize,
    /// Number of calls in flight.
    pub calls: usize,
    /// State of the connections, by slot.
    pub conns: Vec<ConnView>,
    /// Groups with a part here, and how many members each has here.
    pub groups: Vec<(GroupName, usize)>,
    /// Shards that are told of the groups whose home is here.
    pub interest: usize,
}

/// Fails with the text that `what` makes unless `holds`.
pub(crate) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

impl Engine {
    /// Counts everything under way.
    pub fn view(&self) -> View {
        let conns = self.clients.conns.iter().map(|(id, c)| ConnView {
            id,
            phase: c.phase,
            unanswered: c.session.unanswered,
            paused: !c.holds.is_empty(),
        });
        let groups = self.clients.groups.iter();
        View {
            messages: self.dispatcher.requests.len(),
            streams: self.dispatcher.ordering.len(),
            calls: self.dispatcher.calls.len(),
            conns: conns.collect(),
            groups: groups.map(|(_, group)| (group.name.clone(), group.members().len())).collect(),
            interest: self.clients.groups.homes().map(|(_, home)| home.interest().len()).sum(),
        }
    }

    /// Checks that the parts of the state agree with each other; the error names two that do not.
    /// Costs a pass over everything.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.dispatcher.check(&self.config.settings, &self.stats.counters)?;
        self.tenants.check(self.dispatcher.queued_bytes())?;
        self.check_conns()?;
        self.clients.check_groups()?;
        self.clients.events.check()?;
        self.clients.check_counts()
    }

    /// Checks promise 4, after [`Engine::end_turn`]: no request that may leave waits for an
    /// instance that has nothing in flight, or longer than the window for one that has a free slot.
    pub fn check_no_delay(&self, now: Micros) -> Result<(), String> {
        self.dispatcher.check_no_delay(&self.config.settings.batch, now)
    }

    /// Checks that a session is where its key says, and known by its id if it can be resumed.
    fn check_session(&self, session: &Session, at: Option<ConnId>) -> Result<(), String> {
        let sessions = &self.clients.sessions;
        let seat = match sessions.seat(session.key) {
            Some(Seat::At(conn)) => Some(Some(*conn)),
            Some(Seat::Away(_)) => Some(None),
            None => None,
        };
        ensure(seat == Some(at), || format!("{:?} is at {seat:?}, in truth {at:?}", session.key))?;
        let shard = session.id.shard();
        ensure(shard == self.config.shard, || {
            format!("{} is on {:?}", session.id.as_str(), self.config.shard)
        })?;
        let named = sessions.index.find(&session.id);
        ensure(named == Some(session.key), || format!("{:?} is named {named:?}", session.key))
    }

    fn check_sessions(&self, unanswered: &BTreeMap<SessionKey, Held>) -> Result<(), String> {
        let sessions = &self.clients.sessions;
        let mut kept = 0;
        let mut resumable = 0;
        for session in sessions.iter_away() {
            self.check_session(session, None)?;
            let found = unanswered.get(&session.key).copied().unwrap_or_default();
            let held = Held { items: session.unanswered as usize, bytes: session.unanswered_bytes };
            ensure(found == held, || {
                format!("{:?}: unanswered {held:?}, in truth {found:?}", session.key)
            })?;
        }
        let attached = self.clients.conns.iter().map(|(_, conn)| &*conn.session);
        for resumption in attached.chain(sessions.iter_away()).filter_map(|s| s.resumption.as_ref())
        {
            kept += resumption.kept.size();
            resumable += 1;
        }
        let all = sessions.iter_away().count() + self.clients.conns.len();
        ensure(
            (kept, resumable, all) == (sessions.kept_bytes, sessions.len().0, sessions.seats()),
            || format!("sessions: {kept} bytes of {resumable} of {all}, and {:?}", sessions.len()),
        )?;
        sessions.check()
    }

    fn check_conns(&self) -> Result<(), String> {
        let mut named = self.dispatcher.unanswered();
        for ask in self.clients.groups.asks.iter().filter(|ask| ask.seq > 0) {
            named.entry(ask.session).or_default().items += 1;
        }
        let answer_bytes = self.dispatcher.answer_bytes();
        let mut late = self.dispatcher.late_calls();
        let mut upgraded = 0;
        for (id, conn) in self.clients.conns.iter() {
            let session = &*conn.session;
            self.check_session(session, Some(id))?;
            let found = named.get(&session.key).copied().unwrap_or_default();
            let kept = Held { items: session.unanswered as usize, bytes: session.unanswered_bytes };
            ensure(found == kept, || format!("{id:?}: unanswered {kept:?}, in truth {found:?}"))?;
            ensure(session.unanswered <= conn.terms.unanswered_max, || {
                format!("{id:?}: {} unanswered", session.unanswered)
            })?;
            let expected = answer_bytes.get(&session.key).copied().unwrap_or(0);
            ensure(expected == session.answer_bytes, || {
                format!("{id:?}: answers of {} bytes, in truth {expected}", session.answer_bytes)
            })?;
            // Each cause of a hold is ended by something that exists.
            let holds = conn.holds;
            ensure(!holds.has(Hold::Unanswered) || session.unanswered > 0, || {
                format!("{id:?} is held for answers that never come")
            })?;
            ensure(!holds.has(Hold::Outbox) || conn.outbox_claimed() > 0, || {
                format!("{id:?} is held for an outbox that is empty")
            })?;
            ensure(holds.has(Hold::Token) == conn.pending_auth.is_some(), || {
                format!("{id:?}: {holds:?}, a token waits: {}", conn.pending_auth.is_some())
            })?;
            ensure(holds.has(Hold::Move) == conn.moving.is_some(), || {
                format!("{id:?}: {holds:?}, a move waits: {}", conn.moving.is_some())
            })?;
            ensure(holds.has(Hold::Place) == conn.newcomer.is_some(), || {
                format!("{id:?}: {holds:?}, a newcomer waits: {}", conn.newcomer.is_some())
            })?;
            ensure(conn.newcomer.is_none() || self.clients.waits_for_place(id), || {
                format!("{id:?} waits for a place for ever")
            })?;
            let late = late.remove(&session.key).unwrap_or(0);
            ensure(late == session.late_calls, || {
                format!("{id:?}: {} late calls, in truth {late}", session.late_calls)
            })?;
            let listed =
                self.clients.moves_waiting.contains(&id) || self.effects.moves.contains(&id);
            ensure(conn.moving.is_none() || !session.is_at_rest() || listed, || {
                format!("{id:?} never moves")
            })?;
            upgraded += u64::from(conn.upgraded);
        }
        self.check_sessions(&named)?;
        ensure(upgraded == self.clients.upgraded, || {
            format!("sessions: {}, in truth {upgraded}", self.clients.upgraded)
        })
    }
}
