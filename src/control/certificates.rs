//! Warns of certificates that expire: clients and services refuse an expired one at once, and
//! nothing else in the gateway would say why.

use std::time::{Duration, Instant};

use crate::tls::load::CertificateInfo;

/// Remaining life below which a certificate is warned of: two weeks are enough to renew by hand,
/// and programs renew at a third of 90 days.
const SOON_S: i64 = 14 * 86_400;
/// Time between two checks, and so between two warnings.
const EVERY: Duration = Duration::from_secs(86_400);

/// The schedule of the checks.
#[derive(Debug)]
pub struct CertificateWatch {
    due: Instant,
}

impl CertificateWatch {
    /// A schedule whose first check is due at `now`.
    pub fn new(now: Instant) -> Self {
        Self { due: now }
    }

    /// Time of the next check.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Makes a check due at `now`, for other certificates.
    pub fn check_again(&mut self, now: Instant) {
        self.due = now;
    }

    /// Logs which of `certificates` expire soon, if a check is due. `unix_s` is the wall clock in
    /// seconds.
    pub fn turn(&mut self, certificates: &[CertificateInfo], now: Instant, unix_s: i64) {
        if self.due > now {
            return;
        }
        self.due = now + EVERY;
        for certificate in certificates {
            let left = certificate.expires - unix_s;
            let file = &*certificate.file;
            if left < 0 {
                tracing::error!(
                    file,
                    "tls_certificate_expired: the other side refuses it; renew it and reload"
                );
            } else if left < SOON_S {
                let days = left / 86_400;
                tracing::warn!(
                    file,
                    days,
                    "tls_certificate_expires: this certificate expires soon; renew it and reload"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_due_at_once_then_each_day_and_again_when_others_are_in_force() {
        let start = Instant::now();
        let mut watch = CertificateWatch::new(start);
        assert!(watch.due() <= start);
        watch.turn(&[], start, 0);
        assert_eq!(watch.due(), start + EVERY);
        watch.turn(&[], start + EVERY / 2, 0);
        assert_eq!(watch.due(), start + EVERY, "not before its time");
        watch.check_again(start + EVERY / 2);
        watch.turn(&[], start + EVERY / 2, 0);
        assert_eq!(watch.due(), start + EVERY / 2 + EVERY);
    }
}
