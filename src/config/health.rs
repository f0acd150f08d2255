//! The keys of `[health]` and `[ejection]`.

use super::reader::Reader;
use super::rule::{Bounds, HOUR_MS, MINUTE_MS};
use super::settings::*;

/// Reads `[health]` and `[ejection]`.
pub fn health(r: &mut Reader) -> HealthSettings {
    let d = HealthSettings::default();
    let percent = Bounds::new(0, 100);
    let hour = Bounds::new(100, HOUR_MS);
    let settings = HealthSettings {
        check_every: r.milliseconds(
            "health.check_ms",
            d.check_every,
            Bounds::or_zero("never", 100, HOUR_MS),
        ),
        check_timeout: r.milliseconds(
            "health.timeout_ms",
            d.check_timeout,
            Bounds::new(10, MINUTE_MS),
        ),
        up_after: r.number("health.up_after", d.up_after, Bounds::new(1, 100)),
        down_after: r.number("health.down_after", d.down_after, Bounds::new(1, 100)),
        panic_percent: r.number("health.panic_percent", d.panic_percent, percent),
        slow_start: r.milliseconds(
            "health.slow_start_ms",
            d.slow_start,
            Bounds::or_zero("at once", 100, HOUR_MS),
        ),
        eject_after: r.number(
            "ejection.failures",
            d.eject_after,
            Bounds::or_zero("never", 1, 10_000),
        ),
        eject_span: r.milliseconds(
            "ejection.failures_ms",
            d.eject_span,
            Bounds::or_zero("at once", 10, MINUTE_MS),
        ),
        eject_losses: r.number(
            "ejection.losses",
            d.eject_losses,
            Bounds::or_zero("never", 1, 10_000),
        ),
        eject: r.milliseconds("ejection.ms", d.eject, hour),
        eject_max: r.milliseconds("ejection.ms_max", d.eject_max, hour),
        ejected_percent_max: r.number("ejection.percent_max", d.ejected_percent_max, percent),
        trial_percent: r.number("ejection.trial_percent", d.trial_percent, Bounds::new(1, 100)),
        trial: r.milliseconds("ejection.trial_ms", d.trial, hour),
    };
    r.relation(
        settings.eject <= settings.eject_max,
        ["ejection.ms", "ejection.ms_max"],
        "ejection.ms must not be above ejection.ms_max",
    );
    settings
}
