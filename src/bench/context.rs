//! The part of a thread of the load that all its connections use: clock, counts, what may be sent.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::envelope::{Answer, Writer};
use super::plan::Plan;
use super::tally::Tally;

/// Bytes of one read: a few hundred small answers.
const READ_BYTES: usize = 64 << 10;

/// State that the connections of a thread share.
pub struct Context<'a> {
    pub plan: &'a Plan,
    pub address: SocketAddr,
    pub epoll: &'a OwnedFd,
    pub rng: StdRng,
    pub writer: Writer,
    pub tally: Tally,
    pub scratch: Vec<u8>,
    pub timeout_ns: u64,
    /// Whether messages are sent now.
    pub is_sending: bool,
    /// Messages that are due from then on count.
    pub measured_from: u64,
    /// Whether answers are counted for the rate.
    pub is_counting: bool,
    /// Messages without an answer.
    pub open: usize,
    /// Connections that are not yet ready for their first message.
    pub connecting: usize,
    /// Connections that messages are sent on; slow readers are none of them.
    pub ready: usize,
    /// Connections that were there once, or failed to be.
    pub tried: usize,
    /// Connections that wait for their turn to connect, by its time.
    pub waiting: BinaryHeap<Reverse<(u64, usize)>>,
    /// Messages that may still be sent and count; `None` = any number.
    pub left: Option<u64>,
    clock: Instant,
    now: u64,
}

impl<'a> Context<'a> {
    /// The state of a thread before its first connection. Times count from `clock`.
    pub fn new(plan: &'a Plan, address: SocketAddr, epoll: &'a OwnedFd, clock: Instant) -> Self {
        Self {
            plan,
            address,
            epoll,
            rng: StdRng::from_rng(&mut rand::rng()),
            writer: Writer::new(plan.encoding, &plan.mix),
            tally: Tally::new(plan.mix.len()),
            scratch: vec![0; READ_BYTES],
            timeout_ns: plan.timeout.as_nanos() as u64,
            is_sending: false,
            measured_from: u64::MAX,
            is_counting: false,
            open: 0,
            connecting: 0,
            ready: 0,
            tried: 0,
            waiting: BinaryHeap::new(),
            left: None,
            clock,
            now: 0,
        }
    }

    /// Time of the run in nanoseconds, as of the last look at the clock.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Looks at the clock.
    pub fn tick(&mut self) {
        self.now = self.clock.elapsed().as_nanos() as u64;
    }

    /// Whether another message may be sent.
    pub fn may_send(&self) -> bool {
        self.left != Some(0)
    }

    /// Notes a message that was due at `due`; returns whether it counts.
    pub fn sends_one(&mut self, due: u64) -> bool {
        self.open += 1;
        let measured = due >= self.measured_from;
        if measured {
            self.tally.sent += 1;
            self.left = self.left.map(|left| left.saturating_sub(1));
        }
        measured
    }

    /// Notes an answer for the rate.
    pub fn answered_one(&mut self, answer: &Answer<'_>) {
        if self.is_counting {
            self.tally.answered_in_time += 1;
            self.tally.ok_in_time += u64::from(answer.is_ok());
        }
    }

    /// Has a connection wait until `at` for its turn to connect.
    pub fn wait(&mut self, index: usize, at: u64) {
        self.waiting.push(Reverse((at, index)));
    }
}
