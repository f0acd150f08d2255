//! The client's side of the tests: an executor, a channel, and a record of its events.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use glommio::{LocalExecutorBuilder, Placement};

use crate::readiness::{ReadySet, yield_once};

use crate::backend::channel::{Channel, ChannelEvent, open};
use crate::backend::framing::prefix;
use crate::config::settings::BackendSettings;
use crate::ids::{InstanceId, ServiceId, Ticket};
use crate::message::{Call, CallBody, CallError, Micros};
use crate::routing::{Addresses, Instance, Share};
use crate::tls::service::ServiceTls;

/// Longest wait in the set before a test looks for its condition again.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Longest wait for a condition.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `test` on an executor of its own. An executor that loses its core for a whole preempt timer
/// before its first task sleeps for ever (see `shard::begin`), so the timer is long: nothing here
/// is busy for that long.
pub(super) fn run(test: impl Future<Output = ()>) {
    LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(65_536)
        .preempt_timer(PATIENCE)
        .make()
        .unwrap()
        .run(test);
}

/// Quick settings: reconnect after about 50 ms, no keepalive, no age.
pub(super) fn settings() -> BackendSettings {
    BackendSettings {
        connect_timeout_ms: 2_000,
        backoff_ms: 50,
        backoff_max_ms: 100,
        keepalive_ms: 0,
        tcp_user_timeout_ms: 0,
        keepalive_timeout_ms: 1_000,
        age_max_ms: 0,
    }
}

pub(super) struct Rig {
    pub(super) channel: Channel,
    pub(super) events: Rc<RefCell<Vec<ChannelEvent>>>,
    ended: Rc<Cell<bool>>,
    sent: u32,
    chain: Chain,
    /// Ends the task that waits in the set.
    _life: Rc<()>,
}

type Chain = Rc<RefCell<Option<Box<dyn FnMut(Ticket)>>>>;

impl Rig {
    pub(super) fn open(address: SocketAddr, settings: BackendSettings) -> Self {
        Self::secured(address.into(), settings, None)
    }

    /// Like [`Self::open`], with several addresses.
    pub(super) fn open_at(addresses: Addresses, settings: BackendSettings) -> Self {
        Self::secured(addresses, settings, None)
    }

    /// Like [`Self::open_at`], with these settings of TLS.
    pub(super) fn secured(
        addresses: Addresses,
        settings: BackendSettings,
        tls: Option<Arc<ServiceTls>>,
    ) -> Self {
        let start = Instant::now();
        let instance = Instance {
            id: InstanceId(3),
            service: ServiceId(0),
            name: "test-1".into(),
            addresses,
            weight: 1,
            share: Share::ALL,
            draining: false,
        };
        let events = Rc::new(RefCell::new(Vec::new()));
        let record = Rc::clone(&events);
        let chain = Chain::default();
        let its_chain = Rc::clone(&chain);
        let mut set = ReadySet::new().unwrap();
        let registry = set.registry();
        // With the rig it ends, and then the executor has nothing to run.
        let life = Rc::new(());
        let its_life = Rc::downgrade(&life);
        glommio::spawn_local(async move {
            while its_life.strong_count() > 0 {
                set.poll(LOOK_EVERY, &mut Vec::new()).unwrap();
                yield_once().await;
            }
        })
        .detach();
        let (channel, task) = open(
            instance,
            tls,
            settings,
            registry,
            1,
            move || Micros(start.elapsed().as_micros() as u64),
            move |event| {
                if let (ChannelEvent::Outcome(o), Some(next)) =
                    (&event, its_chain.borrow_mut().as_mut())
                {
                    next(o.ticket);
                }
                record.borrow_mut().push(event);
            },
        );
        let ended = Rc::new(Cell::new(false));
        let its_ended = Rc::clone(&ended);
        glommio::spawn_local(async move {
            task.await;
            its_ended.set(true);
        })
        .detach();
        Self { channel, events, ended, sent: 0, chain, _life: life }
    }

    /// Sends a call with `payload` as its message.
    pub(super) fn send(&mut self, payload: &[u8], timeout_ms: u64) -> Ticket {
        let ticket = Ticket::new(1, self.sent);
        self.sent += 1;
        self.channel.send(call(ticket, payload, timeout_ms));
        ticket
    }

    /// Sends a call whose outcome makes the handler send the next one, `count` in all.
    pub(super) fn send_chain(&mut self, count: u32) -> Ticket {
        let first = self.sent;
        self.sent += count;
        let channel = self.channel.clone();
        let last = self.sent;
        *self.chain.borrow_mut() = Some(Box::new(move |ended: Ticket| {
            let next = ended.slot() as u32 + 1;
            if next < last {
                channel.send(call(Ticket::new(1, next), b"link", 10_000));
            }
        }));
        self.channel.send(call(Ticket::new(1, first), b"link", 10_000));
        Ticket::new(1, first)
    }

    pub(super) fn outcome_count(&self) -> usize {
        let is_one = |event: &&ChannelEvent| matches!(event, ChannelEvent::Outcome(_));
        self.events.borrow().iter().filter(is_one).count()
    }

    /// Waits until `condition` holds.
    pub(super) async fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < PATIENCE, "no {what}; events: {:?}", self.events.borrow());
            yield_once().await;
        }
    }

    fn outcomes(&self, ticket: Ticket) -> Vec<Result<Bytes, CallError>> {
        let is_its = |event: &ChannelEvent| match event {
            ChannelEvent::Outcome(o) if o.ticket == ticket => Some(o.result.clone()),
            ChannelEvent::Outcome(_)
            | ChannelEvent::Alive
            | ChannelEvent::Up(_)
            | ChannelEvent::Down { .. }
            | ChannelEvent::NotReplaced { .. } => None,
        };
        self.events.borrow().iter().filter_map(is_its).collect()
    }

    /// Waits for the outcome of a call.
    pub(super) async fn outcome(&self, ticket: Ticket) -> Result<Bytes, CallError> {
        self.until("outcome", || !self.outcomes(ticket).is_empty()).await;
        self.outcomes(ticket).remove(0)
    }

    pub(super) async fn until_up(&self) {
        self.until("connection", || self.channel.is_up()).await;
    }

    pub(super) async fn until_ended(&self) {
        self.until("end of the task", || self.ended.get()).await;
    }

    /// `Up`s and `Down`s so far.
    pub(super) fn ups_and_downs(&self) -> (usize, usize) {
        let events = self.events.borrow();
        let ups = events.iter().filter(|e| matches!(e, ChannelEvent::Up(_))).count();
        let downs = events.iter().filter(|e| matches!(e, ChannelEvent::Down { .. })).count();
        (ups, downs)
    }

    /// Closes the channel, waits for its task, and checks that each call had one outcome.
    pub(super) async fn close(self) {
        self.channel.close();
        self.until_ended().await;
        for slot in 0..self.sent {
            let outcomes = self.outcomes(Ticket::new(1, slot));
            assert_eq!(outcomes.len(), 1, "call {slot}: {outcomes:?}");
        }
    }
}

fn call(ticket: Ticket, payload: &[u8], timeout_ms: u64) -> Call {
    let mut body = CallBody::default();
    body.push(Bytes::from(prefix(payload.len() as u32).to_vec()));
    let (a, b) = payload.split_at(payload.len() / 2);
    body.push(Bytes::copy_from_slice(a));
    body.push(Bytes::copy_from_slice(b));
    Call {
        ticket,
        instance: InstanceId(3),
        method: "/test.Service/Method".into(),
        body,
        timeout_us: timeout_ms * 1000,
        answer_bytes_max: 1 << 20,
        metadata: vec![("session", "s-1".to_owned())],
    }
}
