//! Places for the connections of a listener: bounded in number, and none is kept from a newcomer by
//! a client that says nothing.
//!
//! A connection waits for a request until that is complete (at the registry: until it has shown a
//! good token), is answered, and takes its answer. When all places are taken and another client
//! comes, the place goes to it of the connection that has waited longest: drops of a request do not
//! count, so that a client that sends one byte after the other waits like one that sends none. A
//! connection that is being answered is never closed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use crate::limits::BACKLOG;

/// Longest time in which all clients of a full backlog get a place: probes wait a second.
const BACKLOG_TIME: Duration = Duration::from_millis(800);
/// Time in which a client takes nothing of its answer before its place may be taken: a client that
/// reads takes something each round trip.
const STALL: Duration = Duration::from_millis(200);

/// State of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Its request is not complete.
    Waits,
    /// Its request is being answered.
    Answered,
    /// Its answer is being written.
    Takes,
}

/// A connection in the table.
#[derive(Debug)]
struct Held {
    peer: SocketAddr,
    phase: Phase,
    /// Time of the accept; in [`Phase::Takes`], of the last byte that the client took.
    since: Instant,
    /// Dropped with the row: then the connection ends.
    _open: oneshot::Sender<()>,
}

impl Held {
    /// Time from which on the place may be given to another client; `None` = it is not.
    fn due(&self, grace: Duration) -> Option<Instant> {
        match self.phase {
            Phase::Waits => Some(self.since + grace),
            Phase::Answered => None,
            Phase::Takes => Some(self.since + STALL),
        }
    }
}

/// The connections of a listener.
#[derive(Debug, Default)]
struct Table {
    /// Number of the next one: none is used twice.
    next: u64,
    rows: BTreeMap<u64, Held>,
}

/// The places of a listener.
#[derive(Debug)]
pub struct Slots {
    max: usize,
    /// Least time that a connection has for its request, however many come: with 512 places and a
    /// backlog of 4,096 clients, 800 ms x 512 / 4,096 = 100 ms.
    grace: Duration,
    table: Mutex<Table>,
    /// Told when a place is free.
    freed: Notify,
}

/// The place of a connection, given back when it is dropped.
#[derive(Debug)]
pub struct Slot {
    number: u64,
    slots: Arc<Slots>,
}

/// Ends when the place is given to another client.
pub type GivenAway = oneshot::Receiver<()>;

impl Slots {
    /// Places for `max` connections.
    pub fn new(max: usize) -> Arc<Self> {
        let grace = BACKLOG_TIME.mul_f64(max as f64 / f64::from(BACKLOG)).min(BACKLOG_TIME);
        Arc::new(Self { max, grace, table: Mutex::default(), freed: Notify::new() })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no holder panics")
    }

    /// Takes a place for an accepted connection, from another one if none is free. Waits while all
    /// others are being answered, or have not had their least time.
    pub async fn take(self: &Arc<Self>, peer: SocketAddr) -> (Slot, GivenAway, Option<SocketAddr>) {
        let given_up = self.room().await;
        let (open, given_away) = oneshot::channel();
        let held = Held { peer, phase: Phase::Waits, since: Instant::now(), _open: open };
        let mut table = self.table();
        let number = table.next;
        table.next += 1;
        table.rows.insert(number, held);
        (Slot { number, slots: self.clone() }, given_away, given_up)
    }

    /// Waits until a place is free. The client that gave up its place for that, if one did.
    async fn room(&self) -> Option<SocketAddr> {
        loop {
            let freed = self.freed.notified();
            let due = {
                let mut table = self.table();
                if table.rows.len() < self.max {
                    return None;
                }
                let rows = table.rows.iter();
                let due =
                    rows.filter_map(|(number, held)| Some((held.due(self.grace)?, *number))).min();
                match due {
                    Some((due, number)) if due <= Instant::now() => {
                        return table.rows.remove(&number).map(|held| held.peer);
                    }
                    Some((due, _)) => due,
                    // One that is being answered becomes due when it begins to take its answer.
                    None => Instant::now() + STALL,
                }
            };
            tokio::select! {
                () = freed => {}
                () = tokio::time::sleep_until(due.into()) => {}
            }
        }
    }
}

impl Slot {
    fn change(&self, act: impl FnOnce(&mut Held)) {
        // Without a row the place has been given away.
        if let Some(held) = self.slots.table().rows.get_mut(&self.number) {
            act(held);
        }
    }

    /// Notes that the request is complete: from now on the connection is not closed for another.
    pub fn answers(&self) {
        self.change(|held| held.phase = Phase::Answered);
    }

    /// Notes that the answer begins.
    pub fn sends(&self) {
        self.change(|held| {
            held.phase = Phase::Takes;
            held.since = Instant::now();
        });
    }

    /// Notes that the client took something.
    pub fn took(&self) {
        self.change(|held| {
            if held.phase == Phase::Takes {
                held.since = Instant::now();
            }
        });
    }

    /// Whether the request is not complete.
    pub fn waits(&self) -> bool {
        let table = self.slots.table();
        table.rows.get(&self.number).is_none_or(|held| held.phase == Phase::Waits)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.table().rows.remove(&self.number);
        self.slots.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

    /// Whether a place was given to another client.
    fn is_gone(given_away: &mut GivenAway) -> bool {
        !matches!(given_away.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }

    #[tokio::test]
    async fn the_one_that_waited_longest_gives_way_and_none_that_is_answered() {
        let slots = Slots::new(3);
        let (answered, mut first, _) = slots.take(PEER).await;
        answered.answers();
        let (_idle, mut second, _) = slots.take(PEER).await;
        let (_late, mut third, given_up) = slots.take(PEER).await;
        assert_eq!(given_up, None, "there was room");
        let before = Instant::now();
        let (newcomer, mut fourth, given_up) = slots.take(PEER).await;
        assert!(before.elapsed() < STALL, "it did not wait for an answer to end");
        assert_eq!(given_up, Some(PEER));
        let gone = [&mut first, &mut second, &mut third, &mut fourth].map(is_gone);
        assert_eq!(gone, [false, true, false, false]);
        drop(newcomer);
        let (_, _, given_up) = slots.take(PEER).await;
        assert_eq!(given_up, None, "its place was free");
    }

    #[tokio::test]
    async fn everybody_has_the_least_time() {
        let slots = Slots::new(128);
        assert_eq!(slots.grace, Duration::from_millis(25));
        let before = Instant::now();
        let mut held = Vec::new();
        for _ in 0..3 * 128 {
            held.push(slots.take(PEER).await);
        }
        // The first 128 come at once, and each 128 after them the least time later.
        assert!(before.elapsed() >= 2 * slots.grace);
    }

    #[tokio::test]
    async fn who_takes_nothing_of_an_answer_gives_way() {
        let slots = Slots::new(1);
        let (slot, mut reader, _) = slots.take(PEER).await;
        slot.answers();
        assert!(!slot.waits());
        slot.sends();
        let before = Instant::now();
        let (_next, _, given_up) = slots.take(PEER).await;
        assert!(before.elapsed() >= STALL && given_up.is_some() && is_gone(&mut reader));
        slot.took(); // a late note changes nothing
        assert!(slot.waits(), "it has no place any more");
    }
}
