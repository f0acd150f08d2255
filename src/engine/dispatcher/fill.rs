//! Fill of the queues against their caps, and which messages are let in (promise 5).

use crate::config::settings::QueueSettings;
use crate::engine::dispatcher::queue::InstanceQueue;
use crate::message::Priority;

/// Fill of a queue against its caps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fill {
    pub items: usize,
    pub bytes: usize,
    pub items_max: usize,
    pub bytes_max: usize,
}

impl Fill {
    /// Whether one more message of `bytes` fits below `percent` of both caps.
    pub fn admits(&self, bytes: usize, percent: u32) -> bool {
        let percent = percent as usize;
        (self.items + 1) * 100 <= self.items_max * percent
            && (self.bytes + bytes) * 100 <= self.bytes_max * percent
    }

    /// Whether one of both is at `percent` of its cap or above.
    #[inline]
    pub fn reaches(&self, percent: u32) -> bool {
        let is_at = |fill: usize, cap: usize| {
            fill.saturating_mul(100) >= cap.saturating_mul(percent as usize)
        };
        is_at(self.items, self.items_max) || is_at(self.bytes, self.bytes_max)
    }

    /// The same fill against `percent` of both caps.
    pub fn part(&self, percent: u32) -> Self {
        let Self { items_max, bytes_max, .. } = *self;
        Self {
            items_max: percent_of(items_max, percent),
            bytes_max: percent_of(bytes_max, percent),
            ..*self
        }
    }

    /// The fuller of both as a ratio, 0 to 1.
    pub fn ratio(&self) -> f64 {
        let of = |used: usize, max: usize| used as f64 / max.max(1) as f64;
        of(self.items, self.items_max).max(of(self.bytes, self.bytes_max))
    }
}

/// So many percent of `cap`, rounded down, whatever its size. In two steps: the product may not fit
/// in 64 bits, and a division of 128 costs as much as all else that is looked at here.
pub(crate) fn percent_of(cap: usize, percent: u32) -> usize {
    let percent = percent as usize;
    (cap / 100).saturating_mul(percent).saturating_add(cap % 100 * percent / 100)
}

/// Percent of the caps up to which messages of a class are let in. `thresholds` are the settings
/// for each class, critical first.
pub(crate) fn admit_percent(thresholds: &[u32; 4], priority: Priority, backpressure: bool) -> u32 {
    if backpressure { thresholds[priority.index()] } else { 100 }
}

/// Requests that wait in all queues of the shard together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct QueueFill {
    pub items: usize,
    pub bytes: usize,
    /// Whether the fill has passed `throttle_on_percent`, and `throttle_off_percent` not yet again.
    pub throttling: bool,
}

impl QueueFill {
    /// The fill against the shard's caps.
    pub fn of(&self, settings: &QueueSettings) -> Fill {
        Fill {
            items: self.items,
            bytes: self.bytes,
            items_max: settings.items_max,
            bytes_max: settings.bytes_max,
        }
    }

    /// Changes one queue and follows it, so that the sums of the shard stay right.
    pub fn change<R>(
        &mut self,
        queue: &mut InstanceQueue,
        change: impl FnOnce(&mut InstanceQueue) -> R,
    ) -> R {
        let (items, bytes) = (queue.items, queue.bytes);
        let result = change(queue);
        self.items = self.items + queue.items - items;
        self.bytes = self.bytes + queue.bytes - bytes;
        result
    }

    pub fn update_throttling(&mut self, settings: &QueueSettings) {
        let percent = (self.of(settings).ratio() * 100.0) as u32;
        self.throttling = if self.throttling {
            percent >= settings.throttle_off_percent
        } else {
            percent >= settings.throttle_on_percent
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_is_that_of_wide_numbers() {
        for cap in [0, 1, 7, 99, 100, 101, 2_499, 1 << 36, usize::MAX] {
            for percent in [1, 25, 30, 70, 85, 99, 100] {
                let wide = cap as u128 * u128::from(percent) / 100;
                assert_eq!(percent_of(cap, percent) as u128, wide, "{percent} % of {cap}");
            }
        }
    }

    #[test]
    fn admission_follows_the_fuller_of_items_and_bytes() {
        let fill = Fill { items: 69, bytes: 10, items_max: 100, bytes_max: 1_000 };
        assert!(fill.admits(1, 70) && !fill.admits(691, 70) && !fill.admits(1, 69));
        assert_eq!(fill.ratio(), 0.69);
        assert_eq!(admit_percent(&[100, 95, 85, 70], Priority::Low, true), 70);
        assert_eq!(admit_percent(&[100, 95, 85, 70], Priority::Low, false), 100);
    }
}
