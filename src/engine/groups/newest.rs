//! The newest push of each key, for those who join.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::engine::groups::log::cost;
use crate::push::Body;

/// The newest push of each key, with its offset.
#[derive(Debug, Default)]
pub struct Newest {
    offsets: HashMap<Box<str>, u64>,
    bodies: BTreeMap<u64, Arc<Body>>,
    bytes: usize,
}

impl Newest {
    /// Takes a push with a key. Beyond `bytes_max` the oldest ones go.
    pub fn put(&mut self, offset: u64, body: Arc<Body>, bytes_max: usize) {
        if let Some(older) = self.offsets.insert(body.key.clone(), offset) {
            self.remove(older);
        }
        self.bytes += cost(&body);
        self.bodies.insert(offset, body);
        while self.bytes > bytes_max
            && let Some((&oldest, body)) = self.bodies.first_key_value()
        {
            self.offsets.remove(&body.key);
            self.remove(oldest);
        }
    }

    fn remove(&mut self, offset: u64) {
        if let Some(body) = self.bodies.remove(&offset) {
            self.bytes -= cost(&body);
        }
    }

    /// The pushes above `offset`, the oldest first.
    pub fn above(&self, offset: u64) -> impl Iterator<Item = (u64, &Arc<Body>)> {
        self.bodies.range(offset + 1..).map(|(offset, body)| (*offset, body))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bodies.is_empty()
    }

    /// Bytes of the pushes with their overhead.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Drops all.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::groups::log::tests::body_with;

    #[test]
    fn the_newest_of_each_key_stays_and_the_oldest_go_when_there_are_too_many() {
        let mut newest = Newest::default();
        let each = cost(&body_with("a", 10));
        for (offset, key) in [(1, "a"), (2, "b"), (3, "a"), (4, "c")] {
            newest.put(offset, body_with(key, 10), each * 3);
        }
        let found =
            |newest: &Newest, above| newest.above(above).map(|(o, _)| o).collect::<Vec<_>>();
        assert_eq!(found(&newest, 0), [2, 3, 4]);
        assert_eq!(found(&newest, 2), [3, 4]);
        newest.put(5, body_with("d", 10), each * 3);
        assert_eq!((found(&newest, 0), newest.bytes()), (vec![3, 4, 5], 3 * each));
        newest.put(6, body_with("b", 10), each * 9);
        assert_eq!(found(&newest, 0), [3, 4, 5, 6], "its key is free again");
    }
}
