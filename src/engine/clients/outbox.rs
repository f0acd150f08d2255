//! The bytes that wait for a client, in buffers of a pool.

use crate::message::Micros;

/// Bytes for a client that the kernel has not taken yet. The buffer belongs to a pool: an idle
/// connection holds none.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
    /// Whether all that waits are pushes of groups: their client is skipped, and not closed, if it
    /// reads too slowly.
    is_pushed: bool,
    /// Since when the kernel has taken nothing although bytes wait; `None` if none wait, or none of
    /// them were offered to it yet.
    stuck_since: Option<Micros>,
}

/// Buffers with more than this capacity are not kept: 16 KiB hold some 200 small replies.
pub const POOLED_BYTES_MAX: usize = 16 << 10;
/// Buffers kept for reuse: 256 x 16 KiB = 4 MiB a shard at most.
pub const POOLED_MAX: usize = 256;
/// Sent bytes are cut off the front when they are this many and the larger half: the remaining
/// bytes are then moved at most once for each byte sent.
const COMPACT_BYTES: usize = 64 << 10;

impl Outbox {
    /// The bytes that wait.
    pub fn pending(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Number of bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Bytes of memory that it holds.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Whether no byte waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The buffer to append to.
    pub(super) fn writer(&mut self, pool: &mut Vec<Vec<u8>>) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0
            && let Some(buffer) = pool.pop()
        {
            self.bytes = buffer;
        }
        self.is_pushed = false;
        &mut self.bytes
    }

    /// The buffer to append pushes of groups to.
    pub(super) fn pusher(&mut self, pool: &mut Vec<Vec<u8>>) -> &mut Vec<u8> {
        let is_pushed = self.is_empty() || self.is_pushed;
        self.writer(pool);
        self.is_pushed = is_pushed;
        &mut self.bytes
    }

    /// Whether pushes of groups are all that waits.
    pub fn is_pushed(&self) -> bool {
        self.is_pushed
    }

    /// Whether bytes wait that were offered to the kernel and not taken: its buffer is full.
    pub fn is_stuck(&self) -> bool {
        self.stuck_since.is_some()
    }

    /// How many microseconds the kernel has taken nothing of the bytes that wait.
    pub fn stuck_us(&self, now: Micros) -> u64 {
        self.stuck_since.map_or(0, |since| now.since(since))
    }

    /// Leaves out a time in which the shard was stopped, up to `now`.
    pub fn put_off(&mut self, us: u64, now: Micros) {
        self.stuck_since = self.stuck_since.map(|since| Micros(since.0 + us).min(now));
    }

    /// Takes note that the bytes that wait were offered to the kernel, and drops the `n` that it
    /// took.
    pub fn sent(&mut self, n: usize, pool: &mut Vec<Vec<u8>>, now: Micros) {
        let since = self.stuck_since.filter(|_| n == 0).unwrap_or(now);
        if n > 0 {
            self.advance(n, pool);
        }
        self.stuck_since = (!self.is_empty()).then_some(since);
    }

    /// Drops everything that waits.
    pub fn discard(&mut self, pool: &mut Vec<Vec<u8>>) {
        self.advance(self.len(), pool);
        self.stuck_since = None;
    }

    /// Drops the first `n` bytes.
    fn advance(&mut self, n: usize, pool: &mut Vec<Vec<u8>>) {
        self.sent += n;
        debug_assert!(self.sent <= self.bytes.len());
        if self.is_empty() {
            self.sent = 0;
            let mut buffer = std::mem::take(&mut self.bytes);
            if buffer.capacity() <= POOLED_BYTES_MAX && pool.len() < POOLED_MAX {
                buffer.clear();
                pool.push(buffer);
            }
        } else if self.sent >= COMPACT_BYTES && self.sent >= self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests;
