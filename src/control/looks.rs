//! Questions under way: asked of every shard that serves, answered when all have answered or their
//! time is over.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::ids::ShardId;
use crate::look::Seen;

/// A shard that does not answer within this is left out. It answers between two turns, which take
/// milliseconds.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);
/// Questions under way. Each may cost a shard a pass over its connections, so more are refused.
const LOOKS_MAX: usize = 4;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// By shards, those that answered in time.
    pub seen: Vec<(ShardId, Seen)>,
    /// The others.
    pub silent: Vec<ShardId>,
}

/// Who waits for it. Dropped if the question is refused.
pub type Asker = oneshot::Sender<Look>;

#[derive(Debug)]
struct Open {
    number: u64,
    until: Instant,
    asker: Asker,
    look: Look,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Looks {
    open: Vec<Open>,
    numbers: u64,
}

impl Looks {
    /// Notes a question that `shards` are to answer; its number, unless there are too many.
    pub fn ask(&mut self, shards: Vec<ShardId>, asker: Asker, now: Instant) -> Option<u64> {
        if self.open.len() >= LOOKS_MAX {
            return None;
        }
        self.numbers += 1;
        let look = Look { seen: Vec::new(), silent: shards };
        self.open.push(Open { number: self.numbers, until: now + LOOK_TIMEOUT, asker, look });
        Some(self.numbers)
    }

    /// A shard's answer. One that comes too late is dropped.
    pub fn take(&mut self, shard: ShardId, number: u64, seen: Seen) {
        let Some(open) = self.open.iter_mut().find(|open| open.number == number) else { return };
        open.look.silent.retain(|waiting| *waiting != shard);
        open.look.seen.push((shard, seen));
    }

    /// A shard that ended answers nothing any more.
    pub fn ended(&mut self, shard: ShardId) {
        for open in &mut self.open {
            open.look.silent.retain(|waiting| *waiting != shard);
        }
    }

    /// Answers those that are complete or late.
    pub fn turn(&mut self, now: Instant) {
        let done = |open: &mut Open| open.look.silent.is_empty() || open.until <= now;
        for mut open in self.open.extract_if(.., done) {
            open.look.seen.sort_by_key(|(shard, _)| *shard);
            // Who asked may have gone away.
            let _ = open.asker.send(open.look);
        }
    }

    /// When the next one is given up.
    pub fn due(&self) -> Option<Instant> {
        self.open.iter().map(|open| open.until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::look::Seen;

    #[test]
    fn an_answer_is_complete_or_says_who_is_missing() {
        let (now, shards) = (Instant::now(), || vec![ShardId(0), ShardId(1)]);
        let mut looks = Looks::default();
        let (first, mut told_first) = oneshot::channel();
        let (second, mut told_second) = oneshot::channel();
        let first = looks.ask(shards(), first, now).unwrap();
        let second = looks.ask(shards(), second, now).unwrap();
        looks.take(ShardId(1), first, Seen::Conns(Vec::new()));
        looks.take(ShardId(0), second, Seen::Conns(Vec::new()));
        looks.take(ShardId(0), 77, Seen::Conns(Vec::new()));
        looks.turn(now);
        assert!(told_first.try_recv().is_err() && looks.due() == Some(now + LOOK_TIMEOUT));
        looks.take(ShardId(0), first, Seen::Conns(Vec::new()));
        looks.turn(now);
        let look = told_first.try_recv().unwrap();
        let by: Vec<u16> = look.seen.iter().map(|(shard, _)| shard.0).collect();
        assert_eq!((by, look.silent.len()), (vec![0, 1], 0));
        looks.turn(now + LOOK_TIMEOUT);
        let look = told_second.try_recv().unwrap();
        assert_eq!((look.seen.len(), look.silent), (1, vec![ShardId(1)]));
        assert_eq!(looks.due(), None);
    }

    #[test]
    fn too_many_questions_are_refused_at_once() {
        let now = Instant::now();
        let mut looks = Looks::default();
        let mut told = Vec::new();
        for _ in 0..LOOKS_MAX {
            let (asker, answer) = oneshot::channel();
            assert!(looks.ask(vec![ShardId(0)], asker, now).is_some());
            told.push(answer);
        }
        let (asker, mut refused) = oneshot::channel();
        assert_eq!(looks.ask(vec![ShardId(0)], asker, now), None);
        assert_eq!(refused.try_recv().unwrap_err(), oneshot::error::TryRecvError::Closed);
        looks.ended(ShardId(0));
        looks.turn(now);
        assert!(told.iter_mut().all(|answer| answer.try_recv().is_ok()));
    }
}
