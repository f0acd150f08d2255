//! Pauses: times in which the shard was stopped (SIGSTOP, a frozen cgroup, a core that was taken
//! away). What clients sent meanwhile is in the kernel, and what they were owed was not sent, so
//! nobody is judged by that time.

use crate::engine::clients::Clients;
use crate::limits::CATCH_UP_MS;
use crate::message::Micros;

/// Least time from the end of catching up to the next: 5 s, so that a shard with turns as long as
/// pauses judges its clients in five of six seconds. A pause that is longer itself has piled up
/// more than a rate forgives, and always counts.
const CATCH_UP_APART_MS: u64 = 5_000;

impl Clients {
    /// Takes note that the shard was stopped until `now`, for `us` microseconds. Everything that
    /// counts the time since something is put off by as much; and for [`CATCH_UP_MS`], in which
    /// what came meanwhile is read, nobody is judged by rate or for being late: what has piled up
    /// is not a rate.
    ///
    /// A shard whose own turns are so long that they count as pauses would never judge anybody,
    /// just when that is needed most: so there is a while between two such times. Ends that are
    /// decided already, tokens' ends and caps of bytes and messages hold all the time.
    pub fn on_pause(&mut self, us: u64, now: Micros) {
        let may_catch_up = |last: Micros| now >= last.plus_ms(CATCH_UP_APART_MS);
        if self.catching_up_until.is_none_or(may_catch_up) {
            let until = now.plus_ms(CATCH_UP_MS);
            self.catching_up_until = Some(until);
            self.limits.catch_up_until(until);
        }
        for (_, conn) in self.conns.iter_mut() {
            conn.put_off(us, now);
        }
        self.limits.places.put_off(us);
        self.sessions.put_off(us, now);
    }

    /// Whether the shard still reads what came during a pause.
    pub fn is_catching_up(&self, now: Micros) -> bool {
        self.catching_up_until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests;
