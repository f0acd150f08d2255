//! The outbox against a plain vector.

use proptest::prelude::*;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_outbox_gives_what_was_written_in_order(
        steps in prop::collection::vec((any::<bool>(), 0..40_000usize), 1..60),
    ) {
        let mut pool = Vec::new();
        let mut outbox = Outbox::default();
        let mut model: Vec<u8> = Vec::new();
        let mut next = 0_u8;
        for (writes, n) in steps {
            if writes {
                let bytes: Vec<u8> = (1..=n).map(|i| next.wrapping_add(i as u8)).collect();
                next = next.wrapping_add(n as u8);
                outbox.writer(&mut pool).extend_from_slice(&bytes);
                model.extend(bytes);
            } else {
                let n = n.min(model.len());
                outbox.sent(n, &mut pool, Micros(7));
                model.drain(..n);
            }
            prop_assert_eq!(outbox.pending(), &model[..]);
            prop_assert_eq!((outbox.len(), outbox.is_empty()), (model.len(), model.is_empty()));
            // Sent bytes do not pile up.
            prop_assert!(outbox.bytes.len() <= 2 * model.len().max(COMPACT_BYTES));
            prop_assert!(pool.iter().all(|b| b.is_empty() && b.capacity() <= POOLED_BYTES_MAX));
        }
    }
}

#[test]
fn an_empty_outbox_holds_no_buffer_and_the_pool_is_bounded() {
    let mut pool = Vec::new();
    let mut all: Vec<Outbox> = (0..POOLED_MAX + 50).map(|_| Outbox::default()).collect();
    for outbox in &mut all {
        outbox.writer(&mut pool).push(1);
    }
    for outbox in &mut all {
        outbox.sent(1, &mut pool, Micros(7));
        assert_eq!(outbox.bytes.capacity(), 0);
    }
    assert_eq!(pool.len(), POOLED_MAX);
    all[0].writer(&mut pool).push(2);
    assert_eq!((pool.len(), all[0].pending()), (POOLED_MAX - 1, &[2][..]));
}

#[test]
fn an_outbox_is_stuck_from_the_first_flush_that_left_bytes_and_took_none() {
    let (mut pool, mut outbox) = (Vec::new(), Outbox::default());
    outbox.writer(&mut pool).extend_from_slice(&[0; 10]);
    assert_eq!(outbox.stuck_us(Micros(900)), 0, "nobody has offered it yet");
    outbox.sent(0, &mut pool, Micros(1_000));
    outbox.sent(0, &mut pool, Micros(1_500));
    assert_eq!(outbox.stuck_us(Micros(2_000)), 1_000);
    outbox.sent(4, &mut pool, Micros(2_000));
    assert_eq!(outbox.stuck_us(Micros(2_300)), 300, "some went: the time begins anew");
    outbox.put_off(200, Micros(2_300));
    assert_eq!(outbox.stuck_us(Micros(2_300)), 100);
    outbox.put_off(5_000, Micros(2_300));
    assert_eq!(outbox.stuck_us(Micros(2_300)), 0, "and never from a time to come");
    outbox.sent(6, &mut pool, Micros(2_400));
    assert_eq!(outbox.stuck_us(Micros(9_000)), 0);
}
