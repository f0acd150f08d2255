//! The tests of places under way: whose connections were asked whether they are there, which of
//! them are silent, and who waits. What happens to one user's connection costs nothing for the
//! others' tests: when everybody comes back at once there are as many tests as users.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::ids::{ConnId, LimiterKey};
use crate::message::Micros;

/// The test of one user's connections.
#[derive(Debug)]
struct PlaceTest {
    /// End of the time to answer; until then nobody is asked again.
    until: Micros,
    /// Whether that time is over: what waits is decided now, and the test is forgotten.
    is_over: bool,
    /// Whether it is on the list of those that changed.
    is_changed: bool,
    /// Connections that were asked, the oldest one first.
    asked: VecDeque<ConnId>,
    /// Asked connections that have given no sign since and are still there.
    silent: BTreeSet<ConnId>,
    /// Connections that wait for a place, the first one first.
    newcomers: VecDeque<ConnId>,
}

/// The tests under way.
#[derive(Debug, Default)]
pub struct PlaceTests {
    by_user: BTreeMap<LimiterKey, PlaceTest>,
    /// Users whose time to answer is not over, in the order in which it ends: all have equally
    /// long, so that is the order in which they were asked.
    by_end: VecDeque<LimiterKey>,
    /// Users for whose newcomers something may be decided, each once.
    changed: VecDeque<LimiterKey>,
}

impl PlaceTests {
    /// Whether a test of the user is under way.
    pub fn has(&self, user: LimiterKey) -> bool {
        self.by_user.contains_key(&user)
    }

    /// Begins a test of connections that were asked, the oldest one first. Its end is not before
    /// that of any other.
    pub fn begin(&mut self, user: LimiterKey, asked: VecDeque<ConnId>, until: Micros) {
        let silent = asked.iter().copied().collect();
        let newcomers = VecDeque::new();
        let (is_over, is_changed) = (false, false);
        let test = PlaceTest { until, is_over, is_changed, asked, silent, newcomers };
        let old = self.by_user.insert(user, test);
        assert!(old.is_none(), "{user:?} is tested already");
        self.by_end.push_back(user);
    }

    /// Lets a connection wait, unless as many wait as may be dead. False: it does not wait.
    pub fn wait(&mut self, user: LimiterKey, newcomer: ConnId) -> bool {
        let Some(test) = self.by_user.get_mut(&user) else { return false };
        let may = test.newcomers.len() < test.silent.len();
        if may {
            test.newcomers.push_back(newcomer);
        }
        may
    }

    /// Time in which the user's connections may still answer, in microseconds.
    pub fn rest_us(&self, user: LimiterKey, now: Micros) -> u64 {
        self.by_user.get(&user).map_or(0, |test| test.until.since(now))
    }

    /// A connection of the user has shown that it is there.
    #[inline]
    pub fn answered(&mut self, user: LimiterKey, id: ConnId) {
        if self.by_user.is_empty() {
            return;
        }
        let Some(test) = self.by_user.get_mut(&user) else { return };
        if test.silent.remove(&id) && test.silent.is_empty() {
            note(user, test, &mut self.changed);
        }
    }

    /// A connection of the user has given its place back.
    pub fn left(&mut self, user: LimiterKey, id: ConnId) {
        let Some(test) = self.by_user.get_mut(&user) else { return };
        test.silent.remove(&id);
        note(user, test, &mut self.changed);
    }

    /// A connection that waited does so no more.
    pub fn forget(&mut self, user: LimiterKey, newcomer: ConnId) {
        if let Some(test) = self.by_user.get_mut(&user) {
            test.newcomers.retain(|id| *id != newcomer);
        }
    }

    /// There may be places for all, by new settings.
    pub fn note_all(&mut self) {
        for (user, test) in &mut self.by_user {
            note(*user, test, &mut self.changed);
        }
    }

    /// Notes the tests whose time is over.
    pub fn end_due(&mut self, now: Micros) {
        while let Some(user) = self.by_end.front() {
            let test = self.by_user.get_mut(user).expect("it ends after its time");
            if test.until > now {
                return;
            }
            test.is_over = true;
            note(*user, test, &mut self.changed);
            self.by_end.pop_front();
        }
    }

    /// A user for whose newcomers something may be decided: the same one until that is
    /// [`Self::decided`].
    pub fn next_changed(&self) -> Option<LimiterKey> {
        self.changed.front().copied()
    }

    /// All is decided that can be now for the newcomers of [`Self::next_changed`].
    pub fn decided(&mut self) {
        let user = self.changed.pop_front().expect("there was one");
        let test = self.by_user.get_mut(&user).expect("it is listed once");
        test.is_changed = false;
        if test.is_over {
            self.by_user.remove(&user);
        }
    }

    /// The connection of the user that has waited longest.
    pub fn first_newcomer(&self, user: LimiterKey) -> Option<ConnId> {
        self.by_user.get(&user)?.newcomers.front().copied()
    }

    /// Whether the connection waits for a place of the user.
    pub fn has_newcomer(&self, user: LimiterKey, id: ConnId) -> bool {
        self.by_user.get(&user).is_some_and(|test| test.newcomers.contains(&id))
    }

    /// Whether some of the user's connections may still answer.
    pub fn may_answer(&self, user: LimiterKey) -> bool {
        self.by_user.get(&user).is_some_and(|test| !test.is_over && !test.silent.is_empty())
    }

    /// Takes the oldest connection that has not answered, if the time for it is over.
    pub fn take_dead(&mut self, user: LimiterKey) -> Option<ConnId> {
        let test = self.by_user.get_mut(&user).filter(|test| test.is_over)?;
        loop {
            let oldest = test.asked.pop_front()?;
            if test.silent.remove(&oldest) {
                return Some(oldest);
            }
        }
    }

    /// Leaves out a time in which the shard was stopped.
    pub fn put_off(&mut self, us: u64) {
        self.by_user.values_mut().for_each(|test| test.until.0 += us);
    }
}

/// Puts a user on the list of those for whom something may be decided, once.
fn note(user: LimiterKey, test: &mut PlaceTest, changed: &mut VecDeque<LimiterKey>) {
    if !std::mem::replace(&mut test.is_changed, true) {
        changed.push_back(user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(n: u32) -> LimiterKey {
        LimiterKey::new(1, n)
    }

    fn conn(n: u32) -> ConnId {
        ConnId::new(1, n)
    }

    /// The users that are looked at now.
    fn looked_at(tests: &mut PlaceTests) -> Vec<LimiterKey> {
        let mut users = Vec::new();
        while let Some(user) = tests.next_changed() {
            users.push(user);
            tests.decided();
        }
        users
    }

    #[test]
    fn of_ten_thousand_users_only_those_are_looked_at_for_whom_something_has_changed() {
        const USERS: u32 = 10_000;
        let mut tests = PlaceTests::default();
        for n in 0..USERS {
            tests.begin(user(n), [conn(2 * n), conn(2 * n + 1)].into(), Micros(u64::from(n)));
            assert!(tests.wait(user(n), conn(2 * USERS + n)));
        }
        assert_eq!(looked_at(&mut tests), []);
        // One of two answers: the other may be dead.
        tests.answered(user(7), conn(14));
        assert_eq!(looked_at(&mut tests), []);
        tests.answered(user(7), conn(15));
        tests.left(user(9), conn(18));
        tests.left(user(9), conn(19));
        assert_eq!(looked_at(&mut tests), [user(7), user(9)]);
        tests.end_due(Micros(1));
        assert_eq!(looked_at(&mut tests), [user(0), user(1)]);
        assert!(!tests.has(user(1)) && tests.has(user(2)));
        tests.put_off(10);
        tests.end_due(Micros(12));
        assert_eq!(looked_at(&mut tests), [user(2)]);
        tests.end_due(Micros(20_000));
        assert_eq!(looked_at(&mut tests).len(), USERS as usize - 3, "each once");
        assert!(tests.by_user.is_empty() && tests.by_end.is_empty());
    }

    #[test]
    fn the_oldest_that_is_silent_and_there_is_taken_for_dead_when_the_time_is_over() {
        let mut tests = PlaceTests::default();
        tests.begin(user(1), (0..4).map(conn).collect(), Micros(5));
        assert!((10..14).all(|n| tests.wait(user(1), conn(n))));
        assert!(!tests.wait(user(1), conn(14)), "as many wait as may be dead");
        tests.forget(user(1), conn(10));
        assert!(tests.wait(user(1), conn(14)), "one has gone");
        tests.answered(user(1), conn(0));
        tests.left(user(1), conn(2));
        assert_eq!(tests.take_dead(user(1)), None);
        assert!(tests.may_answer(user(1)));
        tests.end_due(Micros(5));
        assert_eq!(tests.take_dead(user(1)), Some(conn(1)));
        assert_eq!(tests.take_dead(user(1)), Some(conn(3)));
        assert_eq!(tests.take_dead(user(1)), None);
        assert_eq!(tests.first_newcomer(user(1)), Some(conn(11)));
    }
}
