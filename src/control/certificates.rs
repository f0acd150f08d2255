//! Watches the certificates in force: clients turn away at once when one has expired, and nothing
//! else in the gateway would say why.

use std::time::{Duration, Instant};

use crate::tls::load::InForce;

/// From here on it is told: two weeks leave time for who renews by hand, and those who renew by
/// program do it at a third of 90 days.
const SOON_S: i64 = 14 * 86_400;
/// How often it is told.
const EVERY: Duration = Duration::from_secs(86_400);

/// When the certificates are looked at again.
#[derive(Debug)]
pub struct Watch {
    due: Instant,
}

impl Watch {
    /// The first look is at `now`.
    pub fn new(now: Instant) -> Self {
        Self { due: now }
    }

    /// When [`Self::turn`] has something to do.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Others are in force: looks at them at `now`.
    pub fn again(&mut self, now: Instant) {
        self.due = now;
    }

    /// Says in the log which of `certificates` end soon, if it is time for that. `unix` is the wall
    /// clock in seconds.
    pub fn turn(&mut self, certificates: &[InForce], now: Instant, unix: i64) {
        if self.due > now {
            return;
        }
        self.due = now + EVERY;
        for certificate in certificates {
            let left = certificate.expires - unix;
            let file = &*certificate.file;
            if left < 0 {
                tracing::error!(
                    file,
                    "tls_certificate_expired: clients turn away; renew it and reload"
                );
            } else if left < SOON_S {
                let days = left / 86_400;
                tracing::warn!(file, days, "tls_certificate_expires: renew it and reload");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_at_once_then_each_day_and_again_when_others_are_in_force() {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        assert!(watch.due() <= start);
        watch.turn(&[], start, 0);
        assert_eq!(watch.due(), start + EVERY);
        watch.turn(&[], start + EVERY / 2, 0);
        assert_eq!(watch.due(), start + EVERY, "not before its time");
        watch.again(start + EVERY / 2);
        watch.turn(&[], start + EVERY / 2, 0);
        assert_eq!(watch.due(), start + EVERY / 2 + EVERY);
    }
}
