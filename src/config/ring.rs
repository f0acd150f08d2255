//! Consistent hashing: a ring of instance ids.

use crate::ids::InstanceId;

/// Points of all instances of one service, sorted by position.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    points: Vec<(u64, InstanceId)>,
}

impl Ring {
    /// A ring of `(id, name, weight)` with `points_per_weight` points each.
    pub fn new<'a>(
        instances: impl IntoIterator<Item = (InstanceId, &'a str, u32)>,
        points_per_weight: u32,
    ) -> Self {
        let mut points = Vec::new();
        for (id, name, weight) in instances {
            for n in 0..weight * points_per_weight {
                let at = xxhash_rust::xxh3::xxh3_64_with_seed(name.as_bytes(), u64::from(n));
                points.push((at, id));
            }
        }
        points.sort_unstable();
        Self { points }
    }

    /// Owner of `hash`: the first point at or after it.
    pub fn pick(&self, hash: u64) -> Option<InstanceId> {
        self.walk(hash).next()
    }

    /// Points from `hash` clockwise, each once; an instance appears as often as it has points.
    pub fn walk(&self, hash: u64) -> impl Iterator<Item = InstanceId> + '_ {
        let at = self.points.partition_point(|&(p, _)| p < hash);
        self.points[at..].iter().chain(&self.points[..at]).map(|&(_, id)| id)
    }

    /// The next instance after `not` for `hash`: where its keys go when `not` fails.
    pub fn next_distinct(&self, hash: u64, not: &[InstanceId]) -> Option<InstanceId> {
        self.walk(hash).find(|id| !not.contains(id))
    }

    /// Whether it has no instance.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }
}
