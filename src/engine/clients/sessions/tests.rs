//! Sessions that are away, against a plain list.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::engine::clients::resumption::Resumption;
use crate::ids::ShardId;
use crate::message::Encoding;

fn session(sessions: &mut Sessions, n: u64, address: u8) -> Box<Session> {
    let ip = IpAddr::from([127, 0, 0, address]);
    let mut session = Box::new(Session::new(SessionId::new(ShardId(0), n.into()), ip, Micros(0)));
    sessions.sit(&mut session, ConnId(1));
    let secret = SessionSecret::new(n.into());
    session.resumption = Some(Box::new(Resumption::new(Encoding::Json, secret)));
    sessions.became_resumable();
    session
}

#[derive(Clone, Debug)]
enum Step {
    /// A session of this address goes away.
    Leaves(u8),
    /// The n-th of those that are away comes back.
    Returns(usize),
    /// The one away longest ends.
    Expires,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_u8).prop_map(Step::Leaves),
        2 => (0..20_usize).prop_map(Step::Returns),
        1 => Just(Step::Expires),
    ]
}

proptest! {
    /// Against a plain list in the order of leaving.
    #[test]
    fn sessions_away_are_those_of_a_list_that_ends_at_its_front(
        steps in proptest::collection::vec(step(), 1..60),
        items in 1..8_usize,
    ) {
        let mut sessions = Sessions::default();
        let caps = AwayCaps { items, of_user: 0 };
        // Address and key, the one away longest first.
        let mut model: Vec<(u8, SessionKey)> = Vec::new();
        for (n, step) in (1..).zip(steps) {
            match step {
                Step::Leaves(address) => {
                    let session = session(&mut sessions, n, address);
                    let (holder, key) = (session.holder(), session.key);
                    sessions.goes_away(session, Micros(n));
                    model.push((address, key));
                    let of = |model: &[(u8, SessionKey)]| {
                        model.iter().filter(|(a, _)| *a == address).count()
                    };
                    let most = |model: &[(u8, SessionKey)]| {
                        items.div_ceil(PARTY_PART).min(items.saturating_sub(model.len()).max(1))
                    };
                    while let Some(crowded) = sessions.crowded_out(&holder, caps) {
                        let at = match of(&model) > most(&model) {
                            true => model.iter().position(|(a, _)| *a == address),
                            false => Some(0),
                        };
                        prop_assert_eq!(model.remove(at.expect("there")).1, crowded);
                        sessions.end_away(crowded, End::Crowded);
                    }
                    prop_assert!(of(&model) <= most(&model) && model.len() <= items);
                }
                Step::Returns(at) if at < model.len() => {
                    let (_, key) = model.remove(at);
                    let session = sessions.comes_back(key, ConnId(2)).expect("away");
                    prop_assert_eq!(session.key, key);
                    prop_assert!(matches!(sessions.seat(key), Some(Seat::At(ConnId(2)))));
                }
                Step::Expires if !model.is_empty() => {
                    let (_, key) = model.remove(0);
                    prop_assert_eq!(sessions.longest_away().map(|(_, key)| key), Some(key));
                    sessions.end_away(key, End::Expired);
                    prop_assert!(sessions.seat(key).is_none());
                }
                Step::Returns(_) | Step::Expires => {}
            }
            sessions.check().map_err(TestCaseError::fail)?;
            prop_assert_eq!(sessions.len().1, model.len());
        }
    }
}

#[test]
fn the_end_of_a_session_is_told_to_its_secret_alone_and_the_oldest_ends_are_forgotten() {
    let mut sessions = Sessions::default();
    for n in 0..=ENDED_MAX as u64 {
        let session = session(&mut sessions, n, 1);
        sessions.forget(&session, End::Left);
        sessions.stand_up(&session);
    }
    let end = |n: u64, secret: u64| {
        let id = SessionId::new(ShardId(0), n.into());
        sessions.end_of(&id, SessionSecret::new(secret.into()))
    };
    assert_eq!(end(5, 5), Some(End::Left));
    assert_eq!(end(5, 6), None);
    assert_eq!(end(0, 0), None, "one too many");
    assert_eq!(sessions.ended.len(), ENDED_MAX);
}
