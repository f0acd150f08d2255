//! The weights of the tenants that hold something of what is shared.

/// Weights of tenants, each as often as a tenant has it. Few differ, so a change costs a few steps.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    /// Each weight and the number of its tenants, the lightest first. One that nobody has any more
    /// stays: a tenant that holds little comes and goes with each message.
    counts: Vec<(u64, u32)>,
    sum: u64,
}

impl Weights {
    /// Counts a tenant with the weight `after` in place of one with `before`; 0 = none.
    pub fn change(&mut self, before: u64, after: u64) {
        if before == after {
            return;
        }
        self.sum = self.sum + after - before;
        let find = |counts: &[(u64, u32)], weight| {
            counts.binary_search_by_key(&weight, |(weight, _)| *weight)
        };
        if after > 0 {
            match find(&self.counts, after) {
                Ok(at) => self.counts[at].1 += 1,
                Err(at) => self.counts.insert(at, (after, 1)),
            }
        }
        if let Ok(at) = find(&self.counts, before) {
            self.counts[at].1 -= 1;
        }
    }

    /// Whether all tenants weigh the same.
    pub fn are_equal(&self) -> bool {
        self.counts.iter().filter(|(_, tenants)| *tenants > 0).count() <= 1
    }

    /// Sum of all weights.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The largest weight; 0 if there is no tenant.
    pub fn heaviest(&self) -> u64 {
        let present = self.counts.iter().rev().find(|(_, tenants)| *tenants > 0);
        present.map_or(0, |(weight, _)| *weight)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn weights_are_those_of_a_list(
            steps in prop::collection::vec((0_usize..6, 0_u64..5), 200),
        ) {
            let (mut weights, mut list) = (Weights::default(), [0; 6]);
            for (at, after) in steps {
                weights.change(list[at], after);
                list[at] = after;
                prop_assert_eq!(weights.sum(), list.iter().sum::<u64>());
                prop_assert_eq!(Some(&weights.heaviest()), list.iter().max());
                let some = || list.iter().filter(|weight| **weight > 0);
                prop_assert_eq!(weights.are_equal(), some().min() == some().max());
                prop_assert!(weights.counts.len() <= 4, "as many as there are weights");
            }
        }
    }
}
