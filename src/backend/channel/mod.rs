//! A channel: it takes calls and returns outcomes, over connections to one instance that come and
//! go.
//!
//! One task serves a channel, and no task a call. The task is a single poll loop ([`driver`]): it
//! takes new calls, polls the connections that were woken, then the calls that were woken, and last
//! sends the bytes that these gathered, so that the frames of one turn leave in one write. No
//! future in it is ever cancelled: a call that is given up is a stream that is reset.
mod call;
mod driver;
mod io;
mod link;
mod request;
mod signals;
mod stream;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use crate::backend::status;
use crate::config::settings::BackendSettings;
use crate::ids::Ticket;
use crate::message::{Call, Micros, Outcome};
use crate::readiness::Registry;
use crate::routing::Instance;
use crate::tls::service::ServiceTls;

use driver::Driver;
use signals::Signals;

/// An event of a channel for its owner.
#[derive(Debug)]
pub enum ChannelEvent {
    /// A connection to this address is ready: the server's SETTINGS arrived. It comes again for
    /// each connection that replaces another.
    Up(SocketAddr),
    /// A connection was lost or an attempt failed, and there is no other. It does not come after
    /// [`Channel::close`].
    Down {
        /// What the loss says of the service.
        cause: DownCause,
        /// Reason, for the log.
        why: String,
    },
    /// A connection is to be replaced, by its age or because of other TLS settings, and the attempt
    /// failed. It stays in use, and there will be another attempt.
    NotReplaced {
        /// Reason, for the log.
        why: String,
    },
    /// A byte has come since [`Channel::ask`].
    Alive,
    /// A call ended; there is exactly one such event for each call.
    Outcome(Outcome),
}

/// What the loss of the only connection, or a failed attempt, says of the service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DownCause {
    /// A connection broke with calls in flight, or right after it was made.
    Broken,
    /// The service closed its connections in order (GOAWAY, or FIN with no call in flight), and is
    /// not back yet: a restart takes a while.
    GoneAway,
    /// No connection could be made.
    Unreachable,
    /// A call got no answer in its time, and not a byte has come since it was sent, not even the
    /// answer to a PING. The connection stays, and is used again ([`ChannelEvent::Up`]) at the
    /// first byte.
    Silent,
}

/// The handle of a channel to one instance. Clones name the same channel.
#[derive(Clone)]
pub struct Channel {
    shared: Rc<Shared>,
}

/// An order to the task. Orders are taken in sequence.
enum Order {
    Send(Call),
    Cancel(Ticket),
    Configure(Box<BackendSettings>),
    Secure(Option<Arc<ServiceTls>>),
    Ask,
}

struct Shared {
    orders: RefCell<VecDeque<Order>>,
    closing: Cell<bool>,
    /// Whether the task has returned: then [`Channel::send`] itself answers calls.
    ended: Cell<bool>,
    up: Cell<bool>,
    signals: Arc<Signals>,
    on_event: RefCell<Box<dyn FnMut(ChannelEvent)>>,
}

impl Channel {
    /// Makes a call. Never blocks. Its outcome is an event of the channel's task; only after the
    /// end of the task ([`Channel::close`]) this function itself calls the event handler, so do not
    /// hold a borrow here that the handler needs.
    pub fn send(&self, call: Call) {
        self.order(Order::Send(call));
    }

    /// Gives up a call: RST_STREAM with CANCEL. Its outcome comes all the same (CANCELLED, unless
    /// it ended before). An unknown ticket is ignored.
    pub fn cancel(&self, ticket: Ticket) {
        self.order(Order::Cancel(ticket));
    }

    /// Changes the settings. Running timers keep their time.
    pub fn configure(&self, settings: &BackendSettings) {
        self.order(Order::Configure(Box::new(settings.clone())));
    }

    /// Changes TLS towards the service; `None` = none. Connections are replaced in order: a new one
    /// takes the calls as soon as it is ready, and the old one finishes those that it has.
    pub fn secure(&self, tls: Option<Arc<ServiceTls>>) {
        self.order(Order::Secure(tls));
    }

    /// Asks the instance for a sign of life, as it has calls in flight that take long: its next
    /// byte is told ([`ChannelEvent::Alive`]).
    pub fn ask(&self) {
        self.order(Order::Ask);
    }

    /// Finishes the calls in flight, then ends; the task returns. New calls fail at once.
    pub fn close(&self) {
        self.shared.closing.set(true);
        self.shared.signals.wake_task();
    }

    /// Whether there is a connection that takes calls.
    pub fn is_up(&self) -> bool {
        self.shared.up.get()
    }

    fn order(&self, order: Order) {
        let shared = &self.shared;
        shared.orders.borrow_mut().push_back(order);
        if shared.ended.get() {
            shared.refuse_all();
        } else {
            shared.signals.wake_task();
        }
    }
}

impl Shared {
    fn emit(&self, event: ChannelEvent) {
        (self.on_event.borrow_mut())(event);
    }

    /// Answers orders that come after the end. If the handler sends again from within, the loop
    /// that is running answers that call.
    fn refuse_all(&self) {
        let Ok(mut on_event) = self.on_event.try_borrow_mut() else {
            return;
        };
        loop {
            let order = self.orders.borrow_mut().pop_front();
            match order {
                Some(Order::Send(call)) => {
                    let result = Err(status::not_connected("the channel is closed"));
                    on_event(ChannelEvent::Outcome(Outcome { ticket: call.ticket, result }));
                }
                Some(Order::Cancel(_) | Order::Configure(_) | Order::Secure(_) | Order::Ask) => {}
                None => return,
            }
        }
    }
}

/// Opens a channel to `instance`, with or without TLS. The future is its task: spawn it once, on
/// the thread that calls this, and never drop it unfinished (it ends after [`Channel::close`]).
///
/// Its sockets join the set of `registry`, whose owner polls it. `seed` decides the jitter. `clock`
/// is read once a turn. `on_event` runs inside the task; it may call the channel.
pub fn open(
    instance: Instance,
    tls: Option<Arc<ServiceTls>>,
    settings: BackendSettings,
    registry: Registry,
    seed: u64,
    clock: impl Fn() -> Micros + 'static,
    on_event: impl FnMut(ChannelEvent) + 'static,
) -> (Channel, impl Future<Output = ()>) {
    let shared = Rc::new(Shared {
        orders: RefCell::new(VecDeque::new()),
        closing: Cell::new(false),
        ended: Cell::new(false),
        up: Cell::new(false),
        signals: Arc::new(Signals::default()),
        on_event: RefCell::new(Box::new(on_event)),
    });
    let channel = Channel { shared: Rc::clone(&shared) };
    let clock = Box::new(clock);
    let mut driver = Driver::new(shared, instance, tls, settings, registry, seed, clock);
    (channel, poll_fn(move |cx| driver.poll(cx)))
}
