//! Pauses: times in which the shard was stopped (SIGSTOP, a frozen cgroup, a core that was taken
//! away). What clients sent meanwhile is in the kernel, and what they were owed was not sent, so
//! nobody is judged by that time.

use crate::engine::clients::Clients;
use crate::limits::CATCH_UP_MS;
use crate::message::Micros;

impl Clients {
    /// Takes note that the shard was stopped until `now`, for `us` microseconds. Everything that
    /// counts the time since something is put off by as much; and for [`CATCH_UP_MS`], in which
    /// what came meanwhile is read, nobody is judged: what has piled up is not a rate.
    ///
    /// A shard that is stopped again and again within that time closes nobody for being late. The
    /// caps of bytes and messages hold without a clock.
    pub fn on_pause(&mut self, us: u64, now: Micros) {
        self.catching_up_until = now.plus_ms(CATCH_UP_MS);
        self.limits.catch_up_until(self.catching_up_until);
        for (_, conn) in self.conns.iter_mut() {
            conn.put_off(us, now);
        }
        self.place_tests.iter_mut().for_each(|test| test.put_off(us, now));
    }

    /// Whether the shard still reads what came during a pause.
    pub fn is_catching_up(&self, now: Micros) -> bool {
        now < self.catching_up_until
    }
}

#[cfg(test)]
mod tests;
