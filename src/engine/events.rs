//! Events that wait for their services, and those on their way to them.
//!
//! Each service that asks for events has a line of its own here. An event gets the line's next
//! number and waits until the dispatcher lets it into the queue of an instance, in the order of
//! the numbers; what could not be delivered comes back to its place. A line never holds up another,
//! nor a message: over `events.items_max`, and after `events.ttl_ms`, events are lost, and the next
//! one says how many.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::auth::Identity;
use crate::config::settings::EventRights;
use crate::engine::Context;
use crate::engine::refusals::Cause;
use crate::ids::{MsgKey, ServiceId, SessionId, SessionKey, ShardId, TenantId};
use crate::message::{EventCounts, EventKind, EventReason, EventResult, Micros};
use crate::routing::{Sender, Snapshot};
use crate::stats::Counter;

/// Time after which a client that says nothing is told of as connected: until then it may still
/// resume another session, of which there is nothing to tell.
const SETTLE_MS: u64 = 500;

/// Bytes of an event that waits or is on its way, without the name of its group and of its user,
/// which others hold.
pub const EVENT_BYTES: usize =
    2 * (size_of::<(u64, Event)>() + size_of::<(MsgKey, (ServiceId, u64))>() + 1);

/// The session that an event is about, as it was then.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its key, by which the event is in one stream with its messages.
    pub key: SessionKey,
    /// Its public id.
    pub session: SessionId,
    /// Tenant and hashes by which its messages are routed.
    pub sender: Sender,
    /// Its user, if it signed in.
    pub user: Option<Arc<Identity>>,
}

impl Subject {
    /// No session: that of events that are about the shard.
    fn none(shard: ShardId) -> Self {
        let session = SessionId::new(shard, 0);
        let sender = Sender::of_session(session.as_str());
        Self { key: NO_SESSION, session, sender, user: None }
    }
}

/// The key of no session: requests that are events have it, so that nothing is answered to anybody.
pub const NO_SESSION: SessionKey = SessionKey(0);

/// Something that happened, for one service.
#[derive(Clone, Debug)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The session that it happened to.
    pub subject: Subject,
    /// The group that it is about.
    pub group: Option<Arc<str>>,
    /// Why a session or a membership ended.
    pub reason: Option<EventReason>,
    /// Address of the client, of one that connected.
    pub peer: Option<SocketAddr>,
    /// Events that were lost.
    pub count: u64,
    /// Time at which it happened.
    pub at: Micros,
}

/// The end of the way of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EventEnd {
    /// The service has answered it.
    Told(EventResult),
    /// No instance took it: it waits again.
    Again,
    /// It may have come to the service, or not.
    Lost,
}

/// The events of one service.
#[derive(Debug)]
struct EventLine {
    service: ServiceId,
    rights: Arc<EventRights>,
    /// The last number given.
    last: u64,
    /// Events that wait, by number.
    waiting: BTreeMap<u64, Event>,
    /// Events on their way, by number.
    sent: BTreeMap<u64, Event>,
    /// Events lost of which none that waits tells.
    lost: u64,
}

impl EventLine {
    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn len(&self) -> usize {
        self.waiting.len() + self.sent.len()
    }

    /// Has the next event tell of those that were lost: one that waits to do so tells of all.
    fn tell_lost(&mut self, shard: ShardId, now: Micros) {
        let count = std::mem::take(&mut self.lost);
        if count == 0 {
            return;
        }
        let is_of_lost = |event: &&mut Event| event.kind == EventKind::Lost;
        if let Some(waits) = self.waiting.values_mut().find(is_of_lost) {
            waits.count += count;
            return;
        }
        let number = self.number();
        let subject = Subject::none(shard);
        let (kind, group, reason, peer) = (EventKind::Lost, None, None, None);
        let lost = Event { kind, subject, group, reason, peer, count, at: now };
        self.waiting.insert(number, lost);
    }
}

/// The events of a shard.
#[derive(Debug, Default)]
pub struct Events {
    lines: Vec<EventLine>,
    /// Whether a service asks for any.
    is_on: bool,
    /// Whether something waits that was not tried since the last tick.
    is_fresh: bool,
    /// The events that requests are.
    requests: HashMap<MsgKey, (ServiceId, u64)>,
    /// Sessions that are told of as connected when their time comes, in its order.
    settling: VecDeque<(Micros, SessionKey)>,
    /// Events that ended, by kind and result.
    pub(crate) counts: EventCounts,
}

impl Events {
    /// Whether a service asks for events: nothing else is done where none does.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// Works by what the services of `snapshot` ask for now. A line keeps its number for the life
    /// of the process, as services do.
    pub fn apply(&mut self, snapshot: &Snapshot, rights: &BTreeMap<Arc<str>, Arc<EventRights>>) {
        for (index, service) in snapshot.services.iter().enumerate() {
            let id = ServiceId(index as u16);
            let rights = rights.get(&service.name);
            let line = self.lines.iter_mut().find(|line| line.service == id);
            match (line, rights) {
                (Some(line), rights) => {
                    line.rights = rights.cloned().unwrap_or_default();
                    if line.rights.kinds.is_empty() {
                        // It asks for nothing any more.
                        line.waiting.clear();
                        line.lost = 0;
                    }
                }
                (None, Some(rights)) => self.lines.push(EventLine {
                    service: id,
                    rights: rights.clone(),
                    last: 0,
                    waiting: BTreeMap::new(),
                    sent: BTreeMap::new(),
                    lost: 0,
                }),
                (None, None) => {}
            }
        }
        self.is_on = self.lines.iter().any(|line| !line.rights.kinds.is_empty());
        if !self.is_on {
            self.settling.clear();
        }
    }

    /// Events that wait for their services, or are on their way.
    pub fn waiting(&self) -> usize {
        self.lines.iter().map(EventLine::len).sum()
    }

    /// Whether events are on their way.
    pub fn has_sent(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Tells the services that ask for it, and may serve the tenant, what happened.
    pub(crate) fn tell(&mut self, cx: &mut Context<'_>, event: &Event) {
        let items_max = cx.config.settings.events.items_max;
        let mut held = self.waiting();
        let (tenant, now) = (event.subject.sender.tenant, event.at);
        for line in &mut self.lines {
            let is_wanted = line.rights.wants(event.kind, event.group.as_deref());
            if !is_wanted || !may_hear(cx, line, tenant) {
                continue;
            }
            if held < items_max {
                line.tell_lost(cx.config.shard, now);
                let number = line.number();
                line.waiting.insert(number, event.clone());
                held += 1;
                self.is_fresh = true;
            } else {
                line.number();
                lose(cx, &mut self.counts, line, event, now);
            }
        }
    }

    /// Whether something waits that was not tried since the last tick.
    #[inline]
    pub(crate) fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    /// Begins to try those that wait, in the order of their numbers. False: there is nothing new.
    pub(crate) fn begin_sending(&mut self) -> bool {
        std::mem::take(&mut self.is_fresh)
    }

    /// Number of lines.
    pub(crate) fn lines(&self) -> usize {
        self.lines.len()
    }

    /// Takes the first event of a line that waits, with the number of the service and its own.
    pub(crate) fn take_first(&mut self, line: usize) -> Option<(ServiceId, u64, Event)> {
        let line = self.lines.get_mut(line)?;
        let (number, event) = line.waiting.pop_first()?;
        Some((line.service, number, event))
    }

    /// Puts an event back that was taken: no instance takes it now.
    pub(crate) fn put_back(&mut self, line: usize, number: u64, event: Event) {
        self.lines[line].waiting.insert(number, event);
    }

    /// Takes note that an event that was taken is on its way as the request `key`.
    pub(crate) fn is_sent(&mut self, line: usize, number: u64, event: Event, key: MsgKey) {
        let line = &mut self.lines[line];
        line.sent.insert(number, event);
        self.requests.insert(key, (line.service, number));
    }

    /// The session that the event is about that the request `key` is.
    pub(crate) fn session_of(&self, key: MsgKey) -> Option<SessionKey> {
        let (service, number) = self.requests.get(&key)?;
        let line = self.lines.iter().find(|line| line.service == *service)?;
        Some(line.sent.get(number)?.subject.key)
    }

    /// Takes the end of the request that an event was.
    pub(crate) fn ends(&mut self, cx: &mut Context<'_>, key: MsgKey, end: EventEnd, now: Micros) {
        let Some((service, number)) = self.requests.remove(&key) else { return };
        let Some(line) = self.lines.iter_mut().find(|line| line.service == service) else { return };
        let Some(event) = line.sent.remove(&number) else { return };
        match end {
            EventEnd::Told(result) => self.counts.inc(event.kind, result),
            EventEnd::Again if !line.rights.kinds.is_empty() => {
                line.waiting.insert(number, event);
            }
            EventEnd::Again => {}
            EventEnd::Lost => lose(cx, &mut self.counts, line, &event, now),
        }
    }

    /// Gives up events whose time is over, tells of those that were lost, and has those that wait
    /// tried again: part of the tick.
    pub(crate) fn tend(&mut self, cx: &mut Context<'_>, now: Micros) {
        let settings = &cx.config.settings.events;
        let (ttl_us, items_max) = (settings.ttl_ms * 1000, settings.items_max);
        let mut held = self.waiting();
        for line in &mut self.lines {
            loop {
                let is_of_lost = |event: &Event| event.kind == EventKind::Lost;
                let first = line.waiting.iter().find(|(_, event)| !is_of_lost(event));
                let late = first.filter(|(_, event)| now.since(event.at) >= ttl_us);
                let Some(number) = late.map(|(number, _)| *number) else { break };
                if let Some(event) = line.waiting.remove(&number) {
                    held -= 1;
                    lose(cx, &mut self.counts, line, &event, now);
                }
            }
            if held < items_max {
                line.tell_lost(cx.config.shard, now);
            }
            self.is_fresh |= !line.waiting.is_empty();
        }
    }

    /// Has a session told of as connected a little later, if it is still there.
    pub(crate) fn settles(&mut self, key: SessionKey, now: Micros) {
        self.settling.push_back((now.plus_ms(SETTLE_MS), key));
    }

    /// The next session that is to be told of as connected.
    pub(crate) fn next_settled(&mut self, now: Micros) -> Option<SessionKey> {
        let (due, key) = *self.settling.front()?;
        if due > now {
            return None;
        }
        self.settling.pop_front();
        Some(key)
    }

    /// Checks that requests and lines name each other.
    pub(crate) fn check(&self) -> Result<(), String> {
        let sent: usize = self.lines.iter().map(|line| line.sent.len()).sum();
        match sent == self.requests.len() {
            true => Ok(()),
            false => {
                Err(format!("{sent} events on their way, as {} requests", self.requests.len()))
            }
        }
    }
}

/// Whether the service of a line may serve a tenant: it is for it, and the tenant's routes may lead
/// to it.
fn may_hear(cx: &Context<'_>, line: &EventLine, tenant: TenantId) -> bool {
    let is_for = line.rights.only_for.as_ref();
    if is_for.is_some_and(|ids| ids.binary_search(&tenant).is_err()) {
        return false;
    }
    let Some(tenant) = cx.config.snapshot.tenants.get(tenant) else { return true };
    let services = tenant.services.as_ref();
    let inherits =
        tenant.inherits && services.is_none_or(|ids| ids.binary_search(&line.service).is_ok());
    inherits || tenant.routes.iter().any(|route| route.service == line.service)
}

/// Counts an event that cannot be told; one that tells of lost ones tells of them later.
fn lose(
    cx: &mut Context<'_>,
    counts: &mut EventCounts,
    line: &mut EventLine,
    event: &Event,
    now: Micros,
) {
    if event.kind == EventKind::Lost {
        line.lost += event.count;
        return;
    }
    line.lost += 1;
    counts.inc(event.kind, EventResult::Lost);
    cx.stats.inc(Counter::EventsLost);
    if let Some(count) = cx.stats.refusals.note(Cause::Counted(Counter::EventsLost), now) {
        let service = &cx.config.snapshot.services[usize::from(line.service.0)].name;
        tracing::warn!(
            shard = cx.config.shard.0,
            service = &**service,
            count,
            "events_lost: a service did not take its events in time (events.ttl_ms), or too many \
             waited (events.items_max); the next one that it gets tells it how many"
        );
    }
}
