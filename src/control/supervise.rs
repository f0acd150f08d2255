//! What the service manager is told (sd_notify): ready, reloading, stopping, and that every shard
//! still answers. Without NOTIFY_SOCKET all of it does nothing.
//!
//! The watchdog speaks for the shards, not for this thread: a beat goes out only after a gathering
//! that every shard answered, so that one that is stuck leads to a restart.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// Beats in the time in which the manager wants one: two, as sd_watchdog_enabled(3) advises.
const BEATS: u32 = 2;
/// After a gathering that a shard missed the next one is made this much of the time later, so that
/// there are three more before the manager acts.
const RETRIES: u32 = 8;

/// The line to the service manager.
#[derive(Debug)]
pub struct Supervisor {
    /// The manager restarts a process that is silent for so long; `None` = it does not watch.
    watchdog: Option<Duration>,
    /// When a gathering for the watchdog is to be made.
    due: Option<Instant>,
}

impl Supervisor {
    /// As NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID say.
    pub fn from_environment(now: Instant) -> Self {
        Self::new(sd_notify::watchdog_enabled().filter(|time| !time.is_zero()), now)
    }

    /// With a watchdog that wants to hear something each `watchdog`.
    pub fn new(watchdog: Option<Duration>, now: Instant) -> Self {
        // The first beat at once: the manager counts from the start of the process.
        Self { watchdog, due: watchdog.map(|_| now) }
    }

    /// Everything that is configured is served, or is again after [`Self::reloading`]. `status` is
    /// what `systemctl status` shows.
    pub fn ready(&self, status: &str) {
        tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// The configuration is being read again; [`Self::ready`] ends that, whatever came of it.
    pub fn reloading(&self) {
        // The manager holds the time against the moment at which it sent the signal.
        match NotifyState::monotonic_usec_now() {
            Ok(at) => tell(&[NotifyState::Reloading, at]),
            Err(_) => tell(&[NotifyState::Reloading]),
        }
    }

    /// The stop has begun, for this reason.
    pub fn stopping(&self, why: &str) {
        tell(&[NotifyState::Stopping, NotifyState::Status(&format!("draining: {why}"))]);
    }

    /// When [`Self::is_due`] turns true.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether a gathering is to be made now; then not again before its end ([`Self::beat`]) or
    /// the time for another.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let (Some(due), Some(watchdog)) = (self.due, self.watchdog) else { return false };
        let is_due = due <= now;
        if is_due {
            self.due = Some(now + watchdog / BEATS);
        }
        is_due
    }

    /// A gathering ended, whoever asked for it. `alive`: every shard that was asked has answered.
    pub fn beat(&mut self, alive: bool, now: Instant) {
        let Some(watchdog) = self.watchdog else { return };
        if alive {
            tell(&[NotifyState::Watchdog]);
            self.due = Some(now + watchdog / BEATS);
        } else {
            self.due = Some(now + watchdog / RETRIES);
        }
    }
}

/// Sends one datagram. A manager that cannot be reached changes nothing here: what it would do is
/// its own decision.
fn tell(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(
            %error,
            "supervisor_not_told: the service manager waits for it; check NOTIFY_SOCKET"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn without_a_watchdog_nothing_is_due() {
        let now = Instant::now();
        let mut supervisor = Supervisor::new(None, now);
        assert!(!supervisor.is_due(now + 100 * SECOND));
        supervisor.beat(true, now);
        assert_eq!(supervisor.due(), None);
    }

    #[test]
    fn a_beat_is_due_twice_in_the_watchdogs_time_and_sooner_after_a_missed_one() {
        let now = Instant::now();
        let mut supervisor = Supervisor::new(Some(8 * SECOND), now);
        assert!(supervisor.is_due(now), "the manager counts from the start");
        assert!(!supervisor.is_due(now + SECOND), "one gathering at a time");
        supervisor.beat(true, now + SECOND);
        assert_eq!(supervisor.due(), Some(now + 5 * SECOND));
        assert!(supervisor.is_due(now + 5 * SECOND));
        supervisor.beat(false, now + 6 * SECOND);
        assert_eq!(supervisor.due(), Some(now + 7 * SECOND));
        // A gathering that never ends does not end the watch.
        assert!(supervisor.is_due(now + 7 * SECOND));
        assert_eq!(supervisor.due(), Some(now + 11 * SECOND));
    }
}
