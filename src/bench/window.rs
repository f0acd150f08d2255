//! The messages of one connection that have no answer yet, by their numbers: each answer is the
//! first to a message, one too many, or one to nothing.

use std::collections::VecDeque;

/// A message that was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sent {
    /// Time at which it was due, in nanoseconds of the run.
    pub due: u64,
    /// Time at which it was written, in nanoseconds of the run.
    pub at: u64,
    /// Index of its kind in the mix.
    pub kind: u16,
    /// Whether it counts: it was due after the warm-up.
    pub measured: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Open,
    Answered,
    TimedOut,
}

/// Meaning of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answered {
    /// The first one to this message.
    First(Sent),
    /// The first one to a message that was given up before, and counts or not.
    Late { measured: bool },
    /// The message had one before.
    Again,
    /// No message has this number.
    Unasked,
}

/// The window. Its numbers begin at 1 and rise by one.
#[derive(Debug, Default)]
pub struct Window {
    /// Messages up to here have been answered, or were given up long ago, and are forgotten.
    forgotten: u64,
    /// Messages among the forgotten that had no answer.
    without_answer: u64,
    slots: VecDeque<(Sent, State)>,
    /// Messages up to here were looked at by [`Self::expire`].
    looked_at: u64,
    open: usize,
}

impl Window {
    /// Messages that still wait.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Adds a message; returns its number.
    pub fn push(&mut self, sent: Sent) -> u64 {
        self.slots.push_back((sent, State::Open));
        self.open += 1;
        self.forgotten + self.slots.len() as u64
    }

    /// Takes the answer to `seq`.
    pub fn answer(&mut self, seq: u64) -> Answered {
        let Some(index) = seq.checked_sub(self.forgotten + 1) else {
            return self.answer_forgotten(seq);
        };
        let Some((sent, state)) = self.slots.get_mut(index as usize) else {
            return Answered::Unasked;
        };
        let (sent, before) = (*sent, std::mem::replace(state, State::Answered));
        self.forget(0);
        match before {
            State::Open => {
                self.open -= 1;
                Answered::First(sent)
            }
            State::TimedOut => Answered::Late { measured: sent.measured },
            State::Answered => Answered::Again,
        }
    }

    /// Takes the answer to a message that is forgotten. As long as some of them had none it is
    /// taken for one of theirs.
    fn answer_forgotten(&mut self, seq: u64) -> Answered {
        match (seq, self.without_answer) {
            (0, _) => Answered::Unasked,
            (_, 0) => Answered::Again,
            _ => {
                self.without_answer -= 1;
                Answered::Late { measured: true }
            }
        }
    }

    /// Forgets the oldest messages as far as they were answered, or given up and sent at `before`
    /// or earlier.
    fn forget(&mut self, before: u64) {
        while let Some((sent, state)) = self.slots.front() {
            let is_given_up = *state == State::TimedOut && sent.at <= before;
            if *state != State::Answered && !is_given_up {
                return;
            }
            self.without_answer += u64::from(is_given_up);
            self.slots.pop_front();
            self.forgotten += 1;
        }
    }

    /// Gives up messages that were sent `timeout` ago or earlier, and forgets those that were sent
    /// twice as long ago: one that is never answered must not keep all that follow it.
    pub fn expire(&mut self, now: u64, timeout: u64, mut on: impl FnMut(Sent)) {
        self.forget(now.saturating_sub(timeout.saturating_mul(2)));
        let before = now.saturating_sub(timeout);
        self.looked_at = self.looked_at.max(self.forgotten);
        let skip = (self.looked_at - self.forgotten) as usize;
        for (sent, state) in self.slots.iter_mut().skip(skip) {
            if sent.at > before {
                break;
            }
            self.looked_at += 1;
            if *state == State::Open {
                *state = State::TimedOut;
                self.open -= 1;
                on(*sent);
            }
        }
    }

    /// Has everything be as of `now`, when a session goes on, and gives the messages above the
    /// number `received` that still wait: they are written again.
    pub fn resume(&mut self, received: u64, now: u64, mut on: impl FnMut(u64, Sent)) {
        for ((sent, state), number) in self.slots.iter_mut().zip(self.forgotten + 1..) {
            sent.at = now;
            if *state == State::Open && number > received {
                on(number, *sent);
            }
        }
    }

    /// Forgets everything, for a new connection; gives what still waited.
    pub fn clear(&mut self, mut on: impl FnMut(Sent)) {
        let waited = self.slots.iter().filter(|(_, state)| *state == State::Open);
        waited.for_each(|(sent, _)| on(*sent));
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(at: u64) -> Sent {
        Sent { due: at, at, kind: 0, measured: true }
    }

    #[test]
    fn each_answer_is_the_first_one_too_many_or_to_nothing() {
        let mut window = Window::default();
        assert_eq!([window.push(sent(1)), window.push(sent(2)), window.push(sent(3))], [1, 2, 3]);
        assert_eq!(window.answer(2), Answered::First(sent(2)));
        assert_eq!(window.answer(2), Answered::Again);
        assert_eq!(window.answer(1), Answered::First(sent(1)));
        // Both are forgotten now, and still known as answered.
        assert_eq!((window.answer(1), window.answer(2)), (Answered::Again, Answered::Again));
        assert_eq!((window.answer(4), window.answer(0)), (Answered::Unasked, Answered::Unasked));
        assert_eq!((window.open(), window.push(sent(4))), (1, 4));
    }

    #[test]
    fn a_message_is_given_up_once_and_its_answer_is_late() {
        let mut window = Window::default();
        for at in 1..=4 {
            window.push(sent(at));
        }
        window.answer(1);
        let mut gone = Vec::new();
        window.expire(103, 100, |sent| gone.push(sent.at));
        window.expire(103, 100, |sent| gone.push(sent.at));
        assert_eq!((gone, window.open()), (vec![2, 3], 1));
        assert_eq!(window.answer(3), Answered::Late { measured: true });
        assert_eq!(window.answer(3), Answered::Again);
        let mut lost = Vec::new();
        window.clear(|sent| lost.push(sent.at));
        assert_eq!((lost, window.open(), window.push(sent(9))), (vec![4], 0, 1));
    }

    #[test]
    fn what_was_not_received_is_written_again_and_what_waits_has_its_time_from_then() {
        let mut window = Window::default();
        for at in 1..=5 {
            window.push(sent(at));
        }
        window.answer(1);
        window.answer(4);
        let mut again = Vec::new();
        window.resume(2, 1000, |number, sent| again.push((number, sent.at, sent.due)));
        assert_eq!(again, [(3, 1000, 3), (5, 1000, 5)]);
        window.expire(1099, 100, |_| panic!("none has waited for so long since"));
        let mut gone = Vec::new();
        window.expire(1100, 100, |sent| gone.push(sent.due));
        assert_eq!((gone, window.answer(2)), (vec![2, 3, 5], Answered::Late { measured: true }));
    }

    #[test]
    fn a_message_without_an_answer_does_not_keep_all_that_follow_it() {
        let mut window = Window::default();
        window.push(sent(1));
        for at in 2..=1000 {
            let seq = window.push(sent(at));
            assert_eq!(window.answer(seq), Answered::First(sent(at)));
        }
        window.expire(150, 100, |_| ());
        assert_eq!((window.open(), window.slots.len()), (0, 1000));
        window.expire(201, 100, |_| ());
        assert_eq!((window.slots.len(), window.push(sent(300))), (0, 1001));
        assert_eq!(window.answer(1), Answered::Late { measured: true });
        assert_eq!([window.answer(1), window.answer(5)], [Answered::Again, Answered::Again]);
    }
}
