//! Notifications to the service manager (sd_notify): ready, reloading, stopping, and watchdog
//! beats. Without NOTIFY_SOCKET nothing is sent.
//!
//! The watchdog covers the shards, not only this thread: a beat is sent only after a gathering that
//! every shard answered, so that a stuck shard leads to a restart.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// Beats within the watchdog's time: two, as sd_watchdog_enabled(3) advises.
const BEATS: u32 = 2;
/// Fraction of the watchdog's time after which a gathering follows one that a shard missed: an
/// eighth, so that there are three more before the manager acts.
const RETRIES: u32 = 8;

/// Sender of notifications, and schedule of the watchdog's beats.
#[derive(Debug)]
pub struct ServiceManager {
    /// Time without a beat after which the manager restarts the process; `None` = no watchdog.
    watchdog: Option<Duration>,
    /// Time of the next gathering for the watchdog.
    due: Option<Instant>,
}

impl ServiceManager {
    /// Reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID.
    pub fn from_environment(now: Instant) -> Self {
        Self::new(sd_notify::watchdog_enabled().filter(|time| !time.is_zero()), now)
    }

    /// A sender with a watchdog that expects a beat each `watchdog`.
    pub fn new(watchdog: Option<Duration>, now: Instant) -> Self {
        // The first beat at once: the manager counts from the start of the process.
        Self { watchdog, due: watchdog.map(|_| now) }
    }

    /// Reports that everything that is configured is served, or again so after [`Self::reloading`].
    /// `status` is the line that `systemctl status` shows.
    pub fn ready(&self, status: &str) {
        notify(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// Reports that the configuration is being read again; [`Self::ready`] ends that, whatever the
    /// result.
    pub fn reloading(&self) {
        // The manager compares the time with the moment at which it sent the signal.
        match NotifyState::monotonic_usec_now() {
            Ok(at) => notify(&[NotifyState::Reloading, at]),
            Err(_) => notify(&[NotifyState::Reloading]),
        }
    }

    /// Reports that the stop has begun, for this reason.
    pub fn stopping(&self, why: &str) {
        notify(&[NotifyState::Stopping, NotifyState::Status(&format!("draining: {why}"))]);
    }

    /// Time at which [`Self::is_due`] turns true.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether a gathering is to be made now. After `true`, the next is due when this one has ended
    /// ([`Self::beat`]) or when half of the watchdog's time is over.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let (Some(due), Some(watchdog)) = (self.due, self.watchdog) else { return false };
        let is_due = due <= now;
        if is_due {
            self.due = Some(now + watchdog / BEATS);
        }
        is_due
    }

    /// Takes note of the end of a gathering, whoever asked for it. `alive`: every shard that was
    /// asked has answered.
    pub fn beat(&mut self, alive: bool, now: Instant) {
        let Some(watchdog) = self.watchdog else { return };
        if alive {
            notify(&[NotifyState::Watchdog]);
            self.due = Some(now + watchdog / BEATS);
        } else {
            self.due = Some(now + watchdog / RETRIES);
        }
    }
}

/// Sends one datagram. A failure is only logged: the manager itself decides what to do without the
/// notification.
fn notify(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(
            %error,
            "notify_failed: the service manager did not get a notification; check NOTIFY_SOCKET"
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
        let mut manager = ServiceManager::new(None, now);
        assert!(!manager.is_due(now + 100 * SECOND));
        manager.beat(true, now);
        assert_eq!(manager.due(), None);
    }

    #[test]
    fn a_beat_is_due_twice_in_the_watchdogs_time_and_sooner_after_a_missed_one() {
        let now = Instant::now();
        let mut manager = ServiceManager::new(Some(8 * SECOND), now);
        assert!(manager.is_due(now), "the manager counts from the start");
        assert!(!manager.is_due(now + SECOND), "one gathering at a time");
        manager.beat(true, now + SECOND);
        assert_eq!(manager.due(), Some(now + 5 * SECOND));
        assert!(manager.is_due(now + 5 * SECOND));
        manager.beat(false, now + 6 * SECOND);
        assert_eq!(manager.due(), Some(now + 7 * SECOND));
        // A gathering that never ends does not end the watch.
        assert!(manager.is_due(now + 7 * SECOND));
        assert_eq!(manager.due(), Some(now + 11 * SECOND));
    }
}
