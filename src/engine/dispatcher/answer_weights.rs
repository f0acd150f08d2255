//! Sizes of answers, by instance and route, as far as they are large: a batch gets no more messages
//! than whose answers are about as large together as one call should be, and a client is not asked
//! for more messages than whose answers its outbox can take.

use hashbrown::HashMap;

use crate::ids::InstanceId;
use crate::limits::LIGHT_ANSWER_BYTES;
use crate::message::Micros;

/// Classes of sizes: light answers, then each class up to twice the size of the one before it. The
/// last begins at 4 KiB x 2^12 = 16 MiB, the largest message that can be configured.
const CLASSES: usize = 14;
/// Time after which old answers count half: a service that answers lightly again is given full
/// batches within a minute.
const HALVE_AFTER_US: u64 = 10_000_000;

/// Answers of an instance to one route, by class of size.
#[derive(Debug, Default)]
struct Sizes([u32; CLASSES]);

impl Sizes {
    fn class(bytes: usize) -> usize {
        let steps = bytes.div_ceil(LIGHT_ANSWER_BYTES).max(1);
        (steps.next_power_of_two().trailing_zeros() as usize).min(CLASSES - 1)
    }

    /// Largest size of a class; of light answers 0, as they need no bound.
    fn bytes(class: usize) -> usize {
        if class == 0 { 0 } else { LIGHT_ANSWER_BYTES << class }
    }

    fn record(&mut self, bytes: usize) {
        let count = &mut self.0[Self::class(bytes)];
        *count = count.saturating_add(1);
    }

    /// Size that 99 of 100 answers do not exceed.
    fn p99(&self) -> usize {
        let all: u64 = self.0.iter().map(|n| u64::from(*n)).sum();
        let mut above = 0;
        for (class, count) in self.0.iter().enumerate().rev() {
            above += u64::from(*count);
            if above * 100 > all {
                return Self::bytes(class);
            }
        }
        0
    }

    fn largest(&self) -> usize {
        self.0.iter().rposition(|count| *count > 0).map_or(0, Self::bytes)
    }

    /// Lets what was seen count half. False: nothing large is left of it.
    fn halve(&mut self) -> bool {
        self.0.iter_mut().for_each(|count| *count /= 2);
        self.largest() > 0
    }
}

/// Sizes of large answers lately. Bounded by routes times instances. Routes with light answers only
/// are not remembered, so they cost a comparison a message.
#[derive(Debug, Default)]
pub(crate) struct AnswerWeights {
    /// By instance, and first id of the route.
    sizes: HashMap<(InstanceId, u32), Sizes>,
    halve_at: Micros,
}

impl AnswerWeights {
    /// Takes note of an answer.
    #[inline]
    pub fn record(&mut self, instance: InstanceId, route: u32, bytes: usize) {
        if bytes > LIGHT_ANSWER_BYTES || !self.sizes.is_empty() {
            self.record_large(instance, route, bytes);
        }
    }

    fn record_large(&mut self, instance: InstanceId, route: u32, bytes: usize) {
        if bytes > LIGHT_ANSWER_BYTES {
            self.sizes.entry((instance, route)).or_default().record(bytes);
        } else if let Some(sizes) = self.sizes.get_mut(&(instance, route)) {
            sizes.record(bytes);
        }
    }

    /// Bytes that one more answer adds to a call, in 99 of 100 cases; 0 of a route whose answers
    /// are light.
    #[inline]
    pub fn p99(&self, instance: InstanceId, route: u32) -> usize {
        if self.sizes.is_empty() {
            return 0;
        }
        self.sizes.get(&(instance, route)).map_or(0, Sizes::p99)
    }

    /// Bytes of the largest answer lately, rounded up; 0 of a route whose answers are light.
    #[inline]
    pub fn largest(&self, instance: InstanceId, route: u32) -> usize {
        if self.sizes.is_empty() {
            return 0;
        }
        self.sizes.get(&(instance, route)).map_or(0, Sizes::largest)
    }

    /// Lets old answers count less. To be called with each tick.
    pub fn age(&mut self, now: Micros) {
        if !self.sizes.is_empty() && now < self.halve_at {
            return;
        }
        // The first large answer counts for the whole of this time.
        self.halve_at = Micros(now.0 + HALVE_AFTER_US);
        self.sizes.retain(|_, sizes| sizes.halve());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTANCE: InstanceId = InstanceId(1);

    #[test]
    fn light_answers_are_not_remembered() {
        let mut weights = AnswerWeights::default();
        (0..1_000).for_each(|_| weights.record(INSTANCE, 1, LIGHT_ANSWER_BYTES));
        assert!(weights.sizes.is_empty());
        assert_eq!((weights.p99(INSTANCE, 1), weights.largest(INSTANCE, 1)), (0, 0));
    }

    #[test]
    fn a_weight_is_at_least_the_answer_and_less_than_twice_as_much() {
        for bytes in [LIGHT_ANSWER_BYTES + 1, 60_000, 65_536, 65_537, 1 << 20, 16 << 20] {
            let mut weights = AnswerWeights::default();
            weights.record(INSTANCE, 1, bytes);
            for weight in [weights.p99(INSTANCE, 1), weights.largest(INSTANCE, 1)] {
                assert!((bytes..2 * bytes).contains(&weight), "{bytes}: {weight}");
            }
            assert_eq!(weights.p99(INSTANCE, 2), 0, "another route");
            assert_eq!(weights.p99(InstanceId(2), 1), 0, "another instance");
        }
    }

    #[test]
    fn one_large_answer_of_two_hundred_does_not_make_batches_small() {
        let mut weights = AnswerWeights::default();
        weights.record(INSTANCE, 1, 1 << 20);
        (0..199).for_each(|_| weights.record(INSTANCE, 1, 100));
        assert_eq!((weights.p99(INSTANCE, 1), weights.largest(INSTANCE, 1)), (0, 1 << 20));
        (0..2).for_each(|_| weights.record(INSTANCE, 1, 1 << 20));
        assert_eq!(weights.p99(INSTANCE, 1), 1 << 20);
    }

    #[test]
    fn the_first_large_answer_counts_for_ten_seconds() {
        let mut weights = AnswerWeights::default();
        weights.age(Micros(1_000_000_000));
        weights.record(INSTANCE, 1, 1 << 20);
        weights.age(Micros(1_000_010_000));
        weights.age(Micros(1_009_999_999));
        assert_eq!(weights.largest(INSTANCE, 1), 1 << 20);
        weights.age(Micros(1_010_000_000));
        assert_eq!(weights.largest(INSTANCE, 1), 0);
    }

    #[test]
    fn a_service_that_answers_lightly_again_is_given_full_batches_again() {
        let mut weights = AnswerWeights::default();
        (0..100).for_each(|_| weights.record(INSTANCE, 1, 60_000));
        let mut seconds = 0;
        while !weights.sizes.is_empty() {
            seconds += 10;
            weights.age(Micros(seconds * 1_000_000));
            weights.age(Micros(seconds * 1_000_000 + 1));
        }
        assert_eq!(seconds, 70, "100 = 2^6.6 answers count as none after seven halvings");
    }
}
