//! Slots: how many calls an instance may have in flight from this shard (promises 4 and 6).
//!
//! `batch.in_flight_max` is right for short calls. A *long* call does not count against it, so that
//! ten slow messages are no reason for others to wait, as long as the instance has shown since the
//! call became long that it lives: an instance that is gone does not swallow more and more calls.
//! Calls of owners that were slow lately have slots of their own. The last slots are for owners
//! that have nothing in flight.

use crate::config::settings::BatchSettings;
use crate::ids::Ticket;
use crate::message::Micros;
use crate::routing::Mode;

/// Least time after which a call counts as long: 50 ms, ten times what a service of short answers
/// takes.
const LONG_US: u64 = 50_000;
/// Time after which a call is not young any more, a tenth of [`LONG_US`]. Young calls do not keep
/// others from a slot for long, so nobody is looked for whom one is kept.
const YOUNG_US: u64 = 5_000;
/// Times the typical time of a call after which it counts as long.
const LONG_TIMES: u64 = 4;
/// Most slots kept for owners that have nothing in flight, and part of all slots that they are.
const KEPT_MAX: usize = 2;
const KEPT_PART: usize = 4;

/// The line in which a request waits for its instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Line {
    /// For all but the following.
    #[default]
    Prompt,
    /// For messages whose owner and route were slow lately: their calls carry no others.
    Slow,
}

impl Line {
    pub const ALL: [Self; 2] = [Self::Prompt, Self::Slow];
}

/// A call in flight to an instance, as far as its slots are concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Occupied {
    pub ticket: Ticket,
    pub line: Line,
    pub started: Micros,
}

/// The room for another call of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Room {
    /// So many more calls may leave.
    Free(usize),
    /// One more may leave, with requests of those that its slot is kept for.
    Kept(Kept),
    /// None may leave.
    None,
}

/// The owners that a slot is kept for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kept {
    /// Owners that have nothing in flight.
    Owner,
    /// Owners whose user or address has nothing in flight.
    Party,
}

/// What would make room for another call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wait {
    /// Time at which a call is not young any more, or becomes long.
    pub look_again: Option<Micros>,
    /// Whether a sign of life of the instance would.
    pub is_silent: bool,
}

/// The calls in flight from a shard to an instance.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    occupied: Vec<Occupied>,
    /// Time of the last sign that the instance lives.
    alive_at: Micros,
    /// Time at which the instance was last asked for one.
    asked_at: Micros,
    /// Time at which a call last ended that was not long.
    prompt_at: Micros,
    /// Typical time of a call, by route.
    typical: Typical,
}

impl Slots {
    /// Number of calls in flight.
    pub fn len(&self) -> usize {
        self.occupied.len()
    }

    /// Takes note that a call leaves.
    pub fn occupy(&mut self, occupied: Occupied) {
        self.occupied.push(occupied);
    }

    /// Takes note that a call has ended, which began with a request of `route`; `answered`: the
    /// instance said so. Returns the line of the call.
    pub fn free(&mut self, ticket: Ticket, route: u32, answered: bool, now: Micros) -> Line {
        let at = self.occupied.iter().position(|o| o.ticket == ticket);
        let at = at.expect("a call in flight has its slot");
        let Occupied { started, line, .. } = self.occupied.swap_remove(at);
        if !answered {
            return line;
        }
        let took_us = now.since(started);
        self.alive_at = now;
        if took_us <= self.long_us() {
            self.prompt_at = now;
        }
        if line == Line::Prompt {
            self.typical.record(route, took_us);
        }
        line
    }

    /// Whether the instance is to be asked for a sign of life: not more often than a call can
    /// become long.
    pub fn ask(&mut self, now: Micros) -> bool {
        let is_due = now.since(self.asked_at) >= LONG_US;
        if is_due {
            self.asked_at = now;
        }
        is_due
    }

    /// Takes note of a sign that the instance lives.
    pub fn is_alive(&mut self, now: Micros) {
        self.alive_at = now;
    }

    /// Time from which on a call counts as long, in microseconds: over 50 ms, and four times what a
    /// call of its fastest route typically takes.
    pub fn long_us(&self) -> u64 {
        LONG_US.max(self.typical.least_us() * LONG_TIMES)
    }

    /// Whether a call that has taken since `started` is slow because of its own requests: it is
    /// long, and another one was prompt since it was. When the instance stops for a moment, no call
    /// is to blame.
    pub fn is_slow(&self, started: Micros, now: Micros) -> bool {
        let long_us = self.long_us();
        now.since(started) > long_us && self.prompt_at.0 > started.0 + long_us
    }

    /// Calls of the prompt line in flight that are not long: those by which batches are delayed.
    pub fn short(&self, now: Micros) -> usize {
        let young = |o: &&Occupied| o.line == Line::Prompt && now.since(o.started) <= LONG_US;
        let count = self.occupied.iter().filter(young).count();
        // Mostly there is none that is older.
        match count == self.occupied.len() {
            true => count,
            false => self.counted(Line::Prompt, now),
        }
    }

    /// Calls of a line in flight.
    pub fn tickets(&self, line: Line) -> impl Iterator<Item = Ticket> {
        self.occupied.iter().filter(move |o| o.line == line).map(|o| o.ticket)
    }

    /// Time until which all calls of a line are young; `None` if one is not, or if there is none.
    pub fn young_until(&self, line: Line, now: Micros) -> Option<Micros> {
        let oldest = self.occupied.iter().filter(|o| o.line == line).map(|o| o.started).min()?;
        let until = Micros(oldest.0 + YOUNG_US);
        (until > now).then_some(until)
    }

    /// Calls of a line in flight that count against its slots.
    fn counted(&self, line: Line, now: Micros) -> usize {
        let long_us = self.long_us();
        let counts = |o: &&Occupied| o.line == line && !self.is_proven(o, long_us, now);
        self.occupied.iter().filter(counts).count()
    }

    /// Whether a call is long, and the instance has shown since that it lives.
    fn is_proven(&self, o: &Occupied, long_us: u64, now: Micros) -> bool {
        now.since(o.started) > long_us && self.alive_at.0 > o.started.0 + long_us
    }

    /// The room for another call of `line`.
    pub fn room(&self, settings: &BatchSettings, mode: Mode, line: Line, now: Micros) -> Room {
        let max = slots(settings, mode);
        let kept = KEPT_MAX.min(max / KEPT_PART);
        let open = max - kept;
        if self.len() < open {
            return Room::Free(open - self.len());
        }
        let counted = self.counted(line, now);
        // Of the slots of the line, and of all.
        let all = long_slots(settings, mode);
        let left = max.saturating_sub(counted).min(all.saturating_sub(self.len()));
        match (line, left.saturating_sub(kept)) {
            (_, free @ 1..) => Room::Free(free),
            (Line::Slow, 0) => Room::None,
            (Line::Prompt, 0) => match left {
                0 => Room::None,
                1 if kept > 1 => Room::Kept(Kept::Party),
                _ => Room::Kept(Kept::Owner),
            },
        }
    }

    /// What would make room where there is none for anybody, or none for those that wait.
    pub fn wait(&self, now: Micros) -> Wait {
        let long_us = self.long_us();
        let after = |us| self.occupied.iter().map(move |o| Micros(o.started.0 + us));
        let ends = after(YOUNG_US).chain(after(long_us + 1));
        let silent =
            |o: &Occupied| now.since(o.started) > long_us && !self.is_proven(o, long_us, now);
        Wait {
            look_again: ends.filter(|at| *at > now).min(),
            is_silent: self.occupied.iter().any(silent),
        }
    }
}

/// Most short calls that an instance may have in flight from this shard.
pub(super) fn slots(settings: &BatchSettings, mode: Mode) -> usize {
    match mode {
        Mode::Batch => settings.in_flight_max,
        Mode::Unary => settings.calls_max,
    }
}

/// Most calls that an instance may have in flight from this shard, long ones included.
pub(super) fn long_slots(settings: &BatchSettings, mode: Mode) -> usize {
    match mode {
        Mode::Batch => settings.in_flight_long_max.max(settings.in_flight_max),
        Mode::Unary => settings.calls_max,
    }
}

/// Typical time of calls to an instance, by route: what a fifth of them does not exceed, about. A
/// slower call moves the estimate up by a sixteenth, a faster one down by a quarter (frugal
/// streaming; Ma, Muthukrishnan and Sandler, 2013). So a crowd of slow calls does not soon count as
/// usual, and if there was nothing else for long, 13 prompt calls bring 2 s back below 50 ms.
#[derive(Debug, Default)]
struct Typical(Vec<(u32, u64)>);

/// Routes of an instance whose times are told apart; further ones count as the last of them.
const ROUTES_MAX: usize = 16;

impl Typical {
    fn record(&mut self, route: u32, took_us: u64) {
        let at = match self.0.iter().position(|(r, _)| *r == route) {
            Some(at) => at,
            None if self.0.len() < ROUTES_MAX => {
                // One slow call is no measure of what is usual.
                self.0.push((route, took_us.min(LONG_US / LONG_TIMES)));
                return;
            }
            None => ROUTES_MAX - 1,
        };
        let (_, typical) = &mut self.0[at];
        match took_us.cmp(typical) {
            std::cmp::Ordering::Greater => *typical += *typical / 16 + 1,
            std::cmp::Ordering::Less => *typical -= *typical / 4,
            std::cmp::Ordering::Equal => {}
        }
    }

    /// Typical time of the fastest route; 0 before the first call.
    fn least_us(&self) -> u64 {
        self.0.iter().map(|(_, typical)| *typical).min().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000;

    fn settings() -> BatchSettings {
        crate::config::settings::ShardSettings::default().batch
    }

    fn at(ms: u64) -> Micros {
        Micros::from_ms(ms)
    }

    /// Slots with `n` calls of a line, which began at `ms`.
    fn occupied(n: u64, line: Line, ms: u64) -> Slots {
        let mut slots = Slots::default();
        (0..n).for_each(|n| {
            slots.occupy(Occupied { ticket: Ticket::new(1, n as u32), line, started: at(ms) });
        });
        slots
    }

    fn room(slots: &Slots, line: Line, ms: u64) -> Room {
        slots.room(&settings(), Mode::Batch, line, at(ms))
    }

    #[test]
    fn the_last_two_slots_are_kept() {
        let rooms: Vec<Room> =
            (0..11).map(|n| room(&occupied(n, Line::Prompt, 0), Line::Prompt, 1)).collect();
        for (n, found) in rooms[..8].iter().enumerate() {
            assert_eq!(*found, Room::Free(8 - n));
        }
        assert_eq!(rooms[8], Room::Kept(Kept::Owner));
        assert_eq!(rooms[9], Room::Kept(Kept::Party));
        assert_eq!(rooms[10], Room::None);
        let slots = occupied(10, Line::Prompt, 0);
        let wait = |us| Wait { look_again: Some(Micros(us)), is_silent: false };
        assert_eq!(slots.wait(at(1)), wait(YOUNG_US), "when they are not young any more");
        assert_eq!(slots.wait(at(5)), wait(50 * MS + 1), "when they are long");
        let young = |line, ms| slots.young_until(line, at(ms));
        assert_eq!(young(Line::Prompt, 4), Some(at(5)));
        assert_eq!((young(Line::Prompt, 5), young(Line::Slow, 0)), (None, None));
        assert_eq!(room(&occupied(8, Line::Slow, 0), Line::Slow, 1), Room::None, "no slow one");
        assert_eq!(room(&occupied(8, Line::Slow, 0), Line::Prompt, 1), Room::Free(8));
    }

    #[test]
    fn long_calls_make_room_once_the_instance_has_shown_that_it_lives() {
        let mut slots = occupied(10, Line::Prompt, 0);
        assert_eq!(room(&slots, Line::Prompt, 51), Room::None);
        let wait = Wait { look_again: None, is_silent: true };
        assert_eq!(slots.wait(at(51)), wait, "it may be gone");
        slots.is_alive(at(50));
        assert_eq!(slots.wait(at(51)), wait);
        slots.is_alive(at(51));
        assert_eq!(room(&slots, Line::Prompt, 51), Room::Free(8));
        // Never more than all, and the last ones are not for slow calls.
        let mut slots = occupied(98, Line::Slow, 0);
        slots.is_alive(at(51));
        assert_eq!(room(&slots, Line::Slow, 60), Room::None);
        assert_eq!(room(&slots, Line::Prompt, 60), Room::Kept(Kept::Owner));
        slots.occupy(Occupied { ticket: Ticket::new(2, 1), line: Line::Prompt, started: at(60) });
        slots.occupy(Occupied { ticket: Ticket::new(2, 2), line: Line::Prompt, started: at(60) });
        assert_eq!(room(&slots, Line::Prompt, 60), Room::None);
    }

    #[test]
    fn a_call_is_long_by_what_is_typical_and_slow_only_while_others_are_prompt() {
        let mut slots = Slots::default();
        let call = |slots: &mut Slots, route, from, to| {
            let ticket = Ticket::new(9, 9);
            slots.occupy(Occupied { ticket, line: Line::Prompt, started: at(from) });
            slots.free(ticket, route, true, at(to));
        };
        (0..300).for_each(|n| call(&mut slots, 1, n, n + 30));
        assert!((100 * MS..140 * MS).contains(&slots.long_us()), "{}", slots.long_us());
        // All calls ended late because the instance stood still.
        assert!(!slots.is_slow(at(330), at(2_000)));
        call(&mut slots, 1, 1_900, 1_930);
        assert!(slots.is_slow(at(330), at(2_000)) && !slots.is_slow(at(1_950), at(2_000)));
        (0..300).for_each(|n| call(&mut slots, 2, 3_000 + n, 3_001 + n));
        assert_eq!(slots.long_us(), 50 * MS, "by the fastest route");
    }

    #[test]
    fn what_is_usual_follows_the_prompt_calls_soon_and_the_slow_ones_slowly() {
        let mut typical = Typical::default();
        (0..1_000).for_each(|_| typical.record(1, 2_000 * MS));
        (0..13).for_each(|_| typical.record(1, MS));
        assert!(typical.least_us() < 50 * MS, "{}", typical.least_us());
        // Three slow ones to each prompt one.
        (0..1_000).for_each(|n| typical.record(1, if n % 4 == 0 { MS } else { 2_000 * MS }));
        assert!(typical.least_us() < 10 * MS, "{}", typical.least_us());
    }

    #[test]
    fn few_slots_are_all_open_and_unary_calls_have_no_more_for_long_ones() {
        let few = BatchSettings { in_flight_max: 3, in_flight_long_max: 3, ..settings() };
        let slots = occupied(2, Line::Prompt, 0);
        assert_eq!(slots.room(&few, Mode::Batch, Line::Prompt, at(1)), Room::Free(1));
        let mut slots = occupied(98, Line::Prompt, 0);
        slots.is_alive(at(60));
        let room = |slots: &Slots| slots.room(&settings(), Mode::Unary, Line::Prompt, at(70));
        assert_eq!(room(&slots), Room::Kept(Kept::Owner));
        let slots = occupied(99, Line::Prompt, 69);
        assert_eq!(room(&slots), Room::Kept(Kept::Party));
    }
}
