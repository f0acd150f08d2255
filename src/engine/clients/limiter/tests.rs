//! The table against a model that is a plain list and forgets nobody, and its bound.

use super::*;
use crate::engine::owner::Address;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000;
/// Names in the tests; texts as long as they like.
const NAMES: u8 = 4;

fn flow(rate: u32, burst_s: u32) -> Rate {
    Rate { per_s: rate, burst: rate * burst_s }
}

#[derive(Clone, Debug)]
enum Event {
    Wait(u64),
    Join {
        name: u8,
        unknown: bool,
    },
    Count {
        name: u8,
        unknown: bool,
    },
    /// Of the n-th connection that is open.
    Known(usize),
    Leave(usize),
    Message(usize),
    ClientRule(ClientRule),
    Expire(usize),
}

fn rules() -> impl Strategy<Value = ClientRule> {
    let flows = || (0u32..8, 1u32..4).prop_map(|(rate, burst_s)| flow(rate, burst_s));
    (0u32..4, 0u32..3, flows(), flows()).prop_map(
        |(connections_max, unauthenticated_max, connects, messages)| ClientRule {
            connections_max,
            unauthenticated_max,
            connects,
            messages,
        },
    )
}

fn events() -> impl Strategy<Value = Event> {
    let who = || (0..NAMES, any::<bool>());
    prop_oneof![
        4 => (0..SECOND).prop_map(Event::Wait),
        6 => who().prop_map(|(name, unknown)| Event::Join { name, unknown }),
        1 => who().prop_map(|(name, unknown)| Event::Count { name, unknown }),
        2 => any::<usize>().prop_map(Event::Known),
        5 => any::<usize>().prop_map(Event::Leave),
        6 => any::<usize>().prop_map(Event::Message),
        1 => rules().prop_map(Event::ClientRule),
        3 => (0usize..3).prop_map(Event::Expire),
    ]
}

/// Millionths of a token; `None` = full.
type Level = Option<u64>;

/// Time passes in it for all buckets at once, and nobody is ever forgotten.
#[derive(Clone, Copy, Default)]
struct Known {
    conns: u32,
    unknown: u32,
    connects: Level,
    messages: Level,
}

fn fill(level: &mut Level, flow: Rate, us: u64) {
    let full = u64::from(flow.burst) * SECOND;
    *level = level.map(|l| l + us * u64::from(flow.per_s)).filter(|l| *l < full);
}

fn take(level: &mut Level, flow: Rate) -> Result<(), u64> {
    let there = level.unwrap_or(u64::from(flow.burst) * SECOND);
    match there.checked_sub(SECOND) {
        Some(left) => {
            *level = Some(left);
            Ok(())
        }
        None => Err((SECOND - there).div_ceil(u64::from(flow.per_s))),
    }
}

impl Known {
    fn wait(&mut self, rule: &ClientRule, us: u64) {
        fill(&mut self.connects, rule.connects, us);
        fill(&mut self.messages, rule.messages, us);
    }

    fn join(&mut self, rule: &ClientRule, unknown: bool) -> Result<(), Over> {
        if rule.connections_max > 0 && self.conns >= rule.connections_max {
            return Err(Over::Connections);
        }
        if unknown && rule.unauthenticated_max > 0 && self.unknown >= rule.unauthenticated_max {
            return Err(Over::Unauthenticated);
        }
        if rule.connects.per_s > 0 {
            take(&mut self.connects, rule.connects).map_err(Over::Rate)?;
        }
        self.conns += 1;
        self.unknown += u32::from(unknown);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// So what is forgotten was as good as new, and a change holds from its time on.
    #[test]
    fn the_table_allows_what_a_list_that_forgets_nobody_allows(
        first in rules(),
        events in prop::collection::vec(events(), 1..120),
    ) {
        let mut now = Micros(5);
        let mut rule = first;
        let mut parties = Limiter::new(7);
        parties.set_rule(rule, now);
        let mut model = [Known::default(); NAMES as usize];
        let mut open: Vec<(u8, LimiterKey, bool)> = Vec::new();
        for event in events {
            match event {
                Event::Wait(us) => {
                    now.0 += us;
                    model.iter_mut().for_each(|known| known.wait(&rule, us));
                }
                Event::Join { name, unknown } => {
                    let full = rule.connections_max > 0
                        && model[name as usize].conns >= rule.connections_max;
                    prop_assert_eq!(parties.is_full(&name), full);
                    let wanted = model[name as usize].join(&rule, unknown);
                    let joined = parties.join(&name, unknown, now);
                    prop_assert_eq!(joined.map(|_| ()), wanted);
                    open.extend(joined.ok().map(|key| (name, key, unknown)));
                }
                Event::Count { name, unknown } => {
                    let known = &mut model[name as usize];
                    known.conns += 1;
                    known.unknown += u32::from(unknown);
                    open.push((name, parties.count(&name, unknown, now), unknown));
                }
                Event::Known(n) if !open.is_empty() => {
                    let at = n % open.len();
                    let (name, key, unknown) = &mut open[at];
                    if std::mem::take(unknown) {
                        parties.authenticated(*key);
                        model[*name as usize].unknown -= 1;
                    }
                }
                Event::Leave(n) if !open.is_empty() => {
                    let (name, key, unknown) = open.swap_remove(n % open.len());
                    parties.leave(key, unknown);
                    let known = &mut model[name as usize];
                    known.conns -= 1;
                    known.unknown -= u32::from(unknown);
                }
                Event::Message(n) if !open.is_empty() && rule.messages.per_s > 0 => {
                    let (name, key, _) = open[n % open.len()];
                    let wanted = take(&mut model[name as usize].messages, rule.messages);
                    prop_assert_eq!(parties.take_message(key, now), wanted);
                }
                Event::ClientRule(new) => {
                    parties.set_rule(new, now);
                    rule = new;
                    // One that held more than is full now is full.
                    model.iter_mut().for_each(|known| known.wait(&rule, 0));
                }
                Event::Expire(budget) => parties.expire(budget, now),
                Event::Known(_) | Event::Leave(_) | Event::Message(_) => {}
            }
            let mut counts: Vec<(u32, u32)> =
                parties.counts().map(|(_, conns, unknown)| (conns, unknown)).collect();
            counts.retain(|(conns, _)| *conns > 0);
            let mut wanted: Vec<(u32, u32)> =
                model.iter().map(|known| (known.conns, known.unknown)).collect();
            wanted.retain(|(conns, _)| *conns > 0);
            counts.sort_unstable();
            wanted.sort_unstable();
            prop_assert_eq!(counts, wanted);
        }
        // Longer than any bucket takes: who has no connection is forgotten.
        now.0 += 10 * SECOND;
        parties.expire(1_000, now);
        prop_assert_eq!(parties.len(), model.iter().filter(|known| known.conns > 0).count());
        open.iter().for_each(|(_, key, unknown)| parties.leave(*key, *unknown));
        parties.expire(1_000, now);
        parties.expire(1_000, Micros(now.0 + 10 * SECOND));
        prop_assert!(parties.is_empty());
    }
}

#[test]
fn over_the_cap_who_left_the_longest_ago_is_forgotten_and_nobody_who_is_there() {
    let rule = ClientRule { connects: flow(1, 1), ..ClientRule::default() };
    let now = Micros(1);
    let mut parties = Limiter::new(1);
    parties.set_rule(rule, now);
    let stays = parties.join(&u32::MAX, false, now).expect("the first");
    let room = IDLE_MAX as u32 + 1;
    for name in 0..room + 100 {
        let key = parties.join(&name, false, now).expect("its first connection");
        parties.leave(key, false);
        assert!(parties.len() <= room as usize);
    }
    assert_eq!(parties.len(), room as usize);
    assert_eq!(parties.join(&(room + 99), false, now), Err(Over::Rate(SECOND)), "remembered");
    assert_eq!(parties.join(&u32::MAX, false, now), Err(Over::Rate(SECOND)));
    let first = parties.join(&0, false, now).expect("it was forgotten");
    assert_ne!(first, stays);
    // All of them are as good as new a second later, and take no time at once.
    parties.expire(1_000, Micros(now.0 + SECOND));
    assert_eq!(parties.len(), room as usize + 1 - 1_000);
}

#[test]
fn who_comes_and_goes_all_the_time_does_not_keep_the_others_from_being_forgotten() {
    let rule = ClientRule { connects: flow(100, 1), ..ClientRule::default() };
    let mut parties = Limiter::new(1);
    parties.set_rule(rule, Micros(0));
    for name in [1, 2, 3] {
        let key = parties.join(&name, false, Micros(0)).expect("allowed");
        parties.leave(key, false);
    }
    for ms in (0..1_000).step_by(10) {
        let now = Micros::from_ms(ms);
        let key = parties.join(&1, false, now).expect("allowed");
        parties.leave(key, false);
        parties.expire(10, now);
    }
    assert_eq!(parties.len(), 1);
}

#[test]
fn an_address_is_a_host_in_ipv4_and_a_network_in_ipv6() {
    let of = |text: &str| Address::of(text.parse().expect("an address"));
    assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
    assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff:ffff:ffff:ffff"));
    assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
}

#[test]
fn a_party_takes_about_a_hundred_bytes() {
    let sizes = [Limiter::<Address>::ENTRY_BYTES, Limiter::<User>::ENTRY_BYTES];
    assert!(sizes.iter().all(|bytes| (64..=160).contains(bytes)), "{sizes:?}");
}
