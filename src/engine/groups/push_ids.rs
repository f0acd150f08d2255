//! The ids of pushes that were taken lately: one with the same id of the same caller is taken once.

use std::collections::VecDeque;

use hashbrown::HashMap;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::ids::TenantId;
use crate::message::Micros;
use crate::push::Position;

/// Bytes of a remembered id: its entry in a table that is half empty at worst, and its place in the
/// order.
pub const PUSH_ID_BYTES: usize =
    2 * (size_of::<(u128, Position)>() + 1) + size_of::<(Micros, u128)>();

/// Ids, by a hash of 128 bits of caller, tenant, group and id: two of a million are equal once
/// in 10^26.
#[derive(Debug, Default)]
pub struct PushIds {
    known: HashMap<u128, Position>,
    order: VecDeque<(Micros, u128)>,
}

impl PushIds {
    /// The number that the push with this id got, if it was taken before; else it is remembered
    /// with the number that `take` gives it, if that takes it.
    pub fn once<E>(
        &mut self,
        (caller, tenant, scope, id): (u64, TenantId, &str, &str),
        entries_max: usize,
        until: Micros,
        take: impl FnOnce() -> Result<Position, E>,
    ) -> Result<(Position, bool), E> {
        if id.is_empty() {
            return take().map(|position| (position, false));
        }
        let key = key(caller, tenant, scope, id);
        if let Some(position) = self.known.get(&key) {
            return Ok((*position, true));
        }
        let position = take()?;
        while self.order.len() >= entries_max.max(1) {
            self.forget_oldest();
        }
        self.known.insert(key, position);
        self.order.push_back((until, key));
        Ok((position, false))
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.order.pop_front() {
            self.known.remove(&key);
        }
    }

    /// Forgets those whose time is over: part of the tick.
    pub fn expire(&mut self, now: Micros) {
        while self.order.front().is_some_and(|(until, _)| *until <= now) {
            self.forget_oldest();
        }
    }

    /// Number of ids.
    pub fn count(&self) -> usize {
        self.known.len()
    }
}

fn key(caller: u64, tenant: TenantId, scope: &str, id: &str) -> u128 {
    let text = [&tenant.0.to_le_bytes(), scope.as_bytes(), b"\0", id.as_bytes()].concat();
    xxh3_128_with_seed(&text, caller)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_once_for_each_caller_and_scope_until_its_time_is_over() {
        let mut ids = PushIds::default();
        let mut offset = 0;
        let mut push = |ids: &mut PushIds, caller, scope, id| {
            ids.once((caller, TenantId(7), scope, id), 10, Micros(5), || {
                offset += 1;
                Ok::<_, ()>(Position { epoch: 1, offset })
            })
            .map(|(position, is_known)| (position.offset, is_known))
        };
        assert_eq!(push(&mut ids, 1, "room:7", "a"), Ok((1, false)));
        assert_eq!(push(&mut ids, 1, "room:7", "a"), Ok((1, true)));
        assert_eq!(push(&mut ids, 2, "room:7", "a"), Ok((2, false)));
        assert_eq!(push(&mut ids, 1, "room:8", "a"), Ok((3, false)));
        assert_eq!(push(&mut ids, 1, "room:7", ""), Ok((4, false)));
        assert_eq!(push(&mut ids, 1, "room:7", ""), Ok((5, false)));
        ids.expire(Micros(4));
        assert_eq!(ids.count(), 3);
        ids.expire(Micros(5));
        assert_eq!((ids.count(), push(&mut ids, 1, "room:7", "a")), (0, Ok((6, false))));
    }

    #[test]
    fn a_push_that_is_refused_leaves_its_id_free_and_the_oldest_ids_go() {
        let mut ids = PushIds::default();
        let at = |offset| Position { epoch: 0, offset };
        let refused = ids.once((1, TenantId(7), "", "a"), 2, Micros(9), || Err("full"));
        assert_eq!((refused, ids.count()), (Err("full"), 0));
        for (n, id) in ["a", "b", "c"].into_iter().enumerate() {
            let taken =
                ids.once((1, TenantId(7), "", id), 2, Micros(9), || Ok::<_, ()>(at(n as u64)));
            assert_eq!(taken, Ok((at(n as u64), false)));
        }
        let again = ids.once((1, TenantId(7), "", "a"), 2, Micros(9), || Ok::<_, ()>(at(9)));
        assert_eq!((again, ids.count()), (Ok((at(9), false)), 2));
        let other = ids.once((1, TenantId(8), "", "a"), 2, Micros(9), || Ok::<_, ()>(at(5)));
        assert_eq!(other, Ok((at(5), false)), "of another tenant");
    }
}
