//! The client's part of a session that is resumed: what it shows to come back, and what it has.

use std::fmt;

use rand::RngExt;
use rand::rngs::StdRng;

use super::envelope;
use super::pace::SECOND_NS;
use crate::message::Encoding;
use crate::wire::client::{Resume, Resumed};

/// Bound of the pause before the first attempt to come back; it doubles with each further one.
const PAUSE_NS: u64 = SECOND_NS / 2;
/// Bound of the longest pause.
const PAUSE_NS_MAX: u64 = 20 * SECOND_NS;

/// A session, or none yet.
#[derive(Default)]
pub struct Session {
    /// The id, secret and offset that are shown to go on with it; empty = there is none.
    shown: Resume,
    /// Run of the gateway that the connection of now is with.
    boot: String,
    /// Time at which it lost its connection, in nanoseconds of the run; `None` = it has one.
    lost_at: Option<u64>,
}

impl Session {
    /// Whether the gateway has made one.
    pub fn is_there(&self) -> bool {
        !self.shown.session.is_empty()
    }

    /// The last offset that came.
    pub fn offset(&self) -> u64 {
        self.shown.offset
    }

    /// Takes the offset of an answer; 0 = it has none.
    pub fn came(&mut self, offset: u64) {
        self.shown.offset = self.shown.offset.max(offset);
    }

    /// Takes the run of the gateway that a connection is with.
    pub fn meets(&mut self, boot: String) {
        self.boot = boot;
    }

    /// Appends the message that makes it resumable, or goes on with it.
    pub fn resume(&self, encoding: Encoding, rng: &mut StdRng, out: &mut Vec<u8>) {
        envelope::resume(encoding, &self.shown, rng, out);
    }

    /// Takes what the gateway says of it; returns whether it goes on, with what came of it.
    pub fn resumed(&mut self, told: Resumed) -> bool {
        let goes_on = matches!(&*told.outcome, "resumed" | "gap");
        let offset = if goes_on { self.shown.offset } else { 0 };
        let boot = self.boot.clone();
        self.shown =
            Resume { session: told.session, secret: told.secret, offset, boot, groups: Vec::new() };
        goes_on
    }

    /// Notes that its connection is gone.
    pub fn lost(&mut self, now: u64) {
        self.lost_at = self.lost_at.or(Some(now));
    }

    /// Notes that it is on a connection again; gives the time that it was without one.
    pub fn is_back(&mut self, now: u64) -> Option<u64> {
        self.lost_at.take().map(|lost_at| now.saturating_sub(lost_at))
    }

    /// Whether it was on a connection and has none.
    pub fn is_away(&self) -> bool {
        self.lost_at.is_some()
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without its secret.
        write!(f, "Session({:?}, {})", self.shown.session, self.shown.offset)
    }
}

/// The pause before an attempt to come back after so many that failed: at random from none to its
/// bound, so that those who lost their connections together do not come together.
pub fn pause_ns(failures: u32, rng: &mut StdRng) -> u64 {
    let most = PAUSE_NS.saturating_mul(1 << failures.min(20)).min(PAUSE_NS_MAX);
    rng.random_range(0..=most)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn told(outcome: &str, session: &str) -> Resumed {
        Resumed { session: session.into(), outcome: outcome.into(), ..Resumed::default() }
    }

    #[test]
    fn offsets_go_on_with_a_session_and_begin_anew_with_another() {
        let mut session = Session::default();
        assert!(!session.is_there());
        assert!(!session.resumed(told("new", "a")) && session.is_there());
        session.came(3);
        session.came(0);
        assert!(session.resumed(told("resumed", "a")));
        assert!(session.resumed(told("gap", "a")));
        assert_eq!(session.offset(), 3);
        assert!(!session.resumed(told("lost", "b")));
        assert_eq!(session.offset(), 0);
    }

    #[test]
    fn a_session_is_away_from_the_first_loss_until_it_is_back() {
        let mut session = Session::default();
        assert_eq!(session.is_back(5), None);
        session.lost(10);
        session.lost(20);
        assert!(session.is_away());
        assert_eq!((session.is_back(40), session.is_away()), (Some(30), false));
    }

    #[test]
    fn pauses_are_spread_over_all_of_their_range_and_have_a_bound() {
        let mut rng = StdRng::seed_from_u64(1);
        for (failures, most) in [(0, SECOND_NS / 2), (1, SECOND_NS), (6, 20 * SECOND_NS)] {
            let pauses: Vec<u64> = (0..1000).map(|_| pause_ns(failures, &mut rng)).collect();
            let (least, longest) = (pauses.iter().min(), pauses.iter().max());
            assert!(longest <= Some(&most) && longest > Some(&(most / 10 * 9)), "{longest:?}");
            assert!(least < Some(&(most / 10)), "{least:?}");
        }
        assert!(pause_ns(u32::MAX, &mut rng) <= PAUSE_NS_MAX);
    }
}
