//! Alarms of tasks: who waits in the readiness set for a socket may wait for a time, too. The set's
//! wait ends with the first that is due, so no timer of the executor is needed, whose reactor is
//! visited rarely.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::message::Micros;
use crate::readiness::timers::Timers;

/// The alarms of one set.
pub(super) struct Alarms {
    /// The time at which [`Micros`] is zero.
    start: Instant,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    timers: Timers,
    /// Task of each alarm, by its number; none of a free one.
    wakers: Vec<Option<Waker>>,
}

/// The alarm of a task, with one time; dropped, it is cleared.
pub struct Alarm {
    alarms: Rc<Alarms>,
    number: usize,
}

impl Alarms {
    /// No alarm yet.
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self { start: Instant::now(), state: RefCell::default() })
    }

    fn now(&self) -> Micros {
        Micros(self.start.elapsed().as_micros() as u64)
    }

    /// A new alarm, not set, that wakes `waker`.
    pub(super) fn add(self: &Rc<Self>, waker: Waker) -> Alarm {
        let wakers = &mut self.state.borrow_mut().wakers;
        let number = wakers.iter().position(Option::is_none).unwrap_or(wakers.len());
        match wakers.get_mut(number) {
            Some(free) => *free = Some(waker),
            None => wakers.push(Some(waker)),
        }
        Alarm { alarms: self.clone(), number }
    }

    /// Time until the first alarm; `None` if none is set.
    pub(super) fn until_next(&self) -> Option<Duration> {
        let next = self.state.borrow().timers.earliest()?;
        Some(Duration::from_micros(next.since(self.now())))
    }

    /// Wakes the tasks whose time has come. True if there was one.
    pub(super) fn ring_due(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let State { timers, wakers } = &mut *state;
        if timers.earliest().is_none() {
            return false;
        }
        let (now, mut rung) = (self.now(), false);
        while let Some(number) = timers.pop_due(now) {
            rung = true;
            if let Some(waker) = &wakers[number] {
                waker.wake_by_ref();
            }
        }
        rung
    }
}

impl Alarm {
    /// Sets the alarm to `wait` from now; a time that was set before is forgotten.
    pub(crate) fn set_after(&self, wait: Duration) {
        let at = Micros(self.alarms.now().0.saturating_add(wait.as_micros() as u64));
        self.alarms.state.borrow_mut().timers.set(self.number, at);
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let mut state = self.alarms.state.borrow_mut();
        state.timers.clear(self.number);
        state.wakers[self.number] = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Wakes(AtomicUsize);
    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn an_alarm_wakes_its_task_once_and_one_that_is_dropped_nobody() {
        let alarms = Alarms::new();
        let wakes = [(); 3].map(|()| Arc::new(Wakes::default()));
        let [now, later, dropped] = [0, 1, 2].map(|n| alarms.add(Waker::from(wakes[n].clone())));
        assert_eq!((alarms.until_next(), alarms.ring_due()), (None, false));
        later.set_after(Duration::from_secs(3_600));
        dropped.set_after(Duration::ZERO);
        drop(dropped);
        now.set_after(Duration::from_secs(10));
        now.set_after(Duration::ZERO);
        assert_eq!(alarms.until_next(), Some(Duration::ZERO));
        assert_eq!([alarms.ring_due(), alarms.ring_due()], [true, false]);
        assert_eq!(wakes.map(|w| w.0.load(Ordering::SeqCst)), [1, 0, 0]);
        assert!(alarms.until_next().is_some_and(|wait| wait > Duration::from_secs(3_000)));
        // Its number is free.
        assert_eq!(alarms.add(Waker::noop().clone()).number, 2);
    }
}
