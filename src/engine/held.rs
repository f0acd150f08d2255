//! An amount of requests: what an owner, a connection or a queue holds.

/// Requests in number and bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Held {
    pub items: usize,
    pub bytes: usize,
}

impl Held {
    /// One request of so many bytes.
    pub fn one(bytes: usize) -> Self {
        Self { items: 1, bytes }
    }

    /// Adds others.
    pub fn add(&mut self, other: Self) {
        self.items += other.items;
        self.bytes += other.bytes;
    }
}
