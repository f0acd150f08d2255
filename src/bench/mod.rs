//! The load generator: connections that send messages to a gateway, count every answer, and measure
//! how long they took.
//!
//! A [`Plan`] says what is to be done, [`run()`] does it in a few threads, a [`Record`] is the
//! result. Each thread is a `worker` with an epoll set of its own, in which every socket stands
//! (edge-triggered, as in the gateway); a `link` is one connection, its `window` the messages that
//! wait for their answers. In an open loop `pace` gives the times at which messages are due, and
//! latency counts from then, whether or not a connection was free to take the message: a gateway
//! that stalls cannot hide what it delayed. With a `session` that is resumed, a link that loses its
//! connection goes on with its window on the next one.

mod context;
mod envelope;
mod fault;
mod link;
mod pace;
mod plan;
mod process;
mod record;
mod resumes;
mod run;
mod session;
mod shared;
mod tally;
mod target;
mod times;
mod upgrade;
mod window;
mod wire;
mod worker;

pub use plan::{Arrivals, Kind, Load, Plan, Sessions, filler};
pub use record::{Record, decoded};
pub use resumes::Resumed;
pub use run::{SOURCES_MAX, run};
pub use tally::Counted;
pub use target::Target;
pub use times::{NS_PER_US, Times};
