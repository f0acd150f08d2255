//! A channel: calls in, outcomes out, whatever the connections to the instance do meanwhile.
//!
//! One task a channel and none a call. The task is a single poll loop ([`driver`]): it takes new
//! calls, polls the connections that have something to do, then the calls that have something to
//! do, and last sends what that gathered, so that the frames of one turn leave in one write.
//! Nothing in it is ever cancelled: a call that nobody wants any more is a stream that is reset.
mod call;
mod driver;
mod io;
mod link;
mod request;
mod signals;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

use crate::backend::status;
use crate::config::settings::BackendSettings;
use crate::ids::Ticket;
use crate::message::{Call, Micros, Outcome};
use crate::readiness::Registry;
use crate::routing::Instance;

use driver::Driver;
use signals::Signals;

/// What a channel tells its owner.
#[derive(Debug)]
pub enum ChannelEvent {
    /// A connection is ready: the server's SETTINGS arrived. Again for each one that replaces
    /// another.
    Up,
    /// A connection was lost or an attempt failed, and there is no other. Not when
    /// [`Channel::close`] asked for it.
    Down {
        /// For the log.
        why: String,
    },
    /// A call has ended; exactly one for each call that was sent.
    Outcome(Outcome),
}

/// The handle of a channel to one instance. Clones name the same channel.
#[derive(Clone)]
pub struct Channel {
    shared: Rc<Shared>,
}

/// An order to the task, in the sequence in which they were given.
enum Order {
    Send(Call),
    Cancel(Ticket),
    Configure(Box<BackendSettings>),
}

struct Shared {
    orders: RefCell<VecDeque<Order>>,
    closing: Cell<bool>,
    /// The task has returned; calls are answered by [`Channel::send`] itself.
    ended: Cell<bool>,
    up: Cell<bool>,
    signals: Arc<Signals>,
    on_event: RefCell<Box<dyn FnMut(ChannelEvent)>>,
}

impl Channel {
    /// Makes a call. Never blocks. Its outcome is an event of the channel's task; only when the
    /// task has ended ([`Channel::close`]) does it come out of this function, so hold no borrow
    /// here that the event handler needs.
    pub fn send(&self, call: Call) {
        self.order(Order::Send(call));
    }

    /// Gives up a call: RST_STREAM with CANCEL. Its outcome comes all the same (CANCELLED, unless
    /// it ended before). An unknown ticket is ignored.
    pub fn cancel(&self, ticket: Ticket) {
        self.order(Order::Cancel(ticket));
    }

    /// Changes the settings: at once, but for timers that are running.
    pub fn configure(&self, settings: &BackendSettings) {
        self.order(Order::Configure(Box::new(settings.clone())));
    }

    /// Finishes what is in flight, then ends; the task returns. New calls fail at once.
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

    /// Answers orders that come after the end. A handler that sends again, from within, leaves its
    /// call to the loop that is running.
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
                Some(Order::Cancel(_) | Order::Configure(_)) => {}
                None => return,
            }
        }
    }
}

/// Opens a channel to `instance`. The future is its task: spawn it once, on the thread that calls
/// this, and never drop it unfinished (it ends after [`Channel::close`]).
///
/// Its sockets join the set of `registry`, whose owner looks. `seed` decides the jitter. `clock`
/// is read once a turn. `on_event` runs inside the task; it may call the channel.
pub fn open(
    instance: Instance,
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
    let mut driver = Driver::new(shared, instance, settings, registry, seed, Box::new(clock));
    (channel, poll_fn(move |cx| driver.poll(cx)))
}
