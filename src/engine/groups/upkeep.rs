//! The upkeep of groups: what is over is dropped, and who has no members any more is told less.

use std::sync::Arc;

use crate::config::settings::{GroupRule, GroupSettings, PresenceKind};
use crate::engine::groups::lane::Deliver;
use crate::engine::groups::{Groups, PLACES_AT_ONCE};
use crate::ids::{GroupKey, HomeKey};
use crate::message::Micros;

/// Ticks in which every group is looked at once: 100 x 10 ms = 1 s.
const SWEEP_TICKS: usize = 100;
/// Time after its last push in which a group's frames stay encoded: a second, in which members that
/// read slowly mostly catch up.
const FRAMES_US: u64 = 1_000_000;

impl Groups {
    /// Looks at the next hundredth of the groups: part of the tick. `rule` finds the rule of a
    /// name; a group whose rule is gone keeps the one it had.
    pub fn tend<'a>(
        &mut self,
        settings: &GroupSettings,
        now: Micros,
        rule: impl Fn(&str) -> Option<&'a Arc<GroupRule>>,
    ) {
        let slots = self.groups.slots();
        for _ in 0..slots.div_ceil(SWEEP_TICKS) {
            self.upkeep_at[0] = next(self.upkeep_at[0], slots);
            if let Some((key, group)) = self.groups.slot_at(self.upkeep_at[0]) {
                let rule = rule(&group.name.name).cloned();
                self.tend_group(key, rule, settings, now);
            }
        }
        let slots = self.homes.slots();
        for _ in 0..slots.div_ceil(SWEEP_TICKS) {
            self.upkeep_at[1] = next(self.upkeep_at[1], slots);
            if let Some((key, home)) = self.homes.slot_at(self.upkeep_at[1]) {
                let rule = rule(&home.name.name).cloned();
                self.tend_home(key, rule, settings, now);
            }
        }
    }

    fn tend_group(
        &mut self,
        key: GroupKey,
        rule: Option<Arc<GroupRule>>,
        settings: &GroupSettings,
        now: Micros,
    ) {
        self.trim(key, settings, now);
        self.note_lag(key, settings);
        let Some(group) = self.groups.get_mut(key) else { return };
        if let Some(rule) = rule.filter(|rule| !Arc::ptr_eq(rule, &group.rule)) {
            group.rule = rule;
            self.list_roster(key);
        }
        let Some(group) = self.groups.get_mut(key) else { return };
        if (group.rule.presence != PresenceKind::Off) != group.roster.is_some() {
            self.rosters_to_make.push(key);
        }
        let newest = group.log.iter().next_back().map_or(Micros(0), |entry| entry.since);
        if !group.sweep.is_listed && now.since(newest) >= FRAMES_US {
            group.log.drop_frames();
        }
        let is_empty = group.members().is_empty() && group.joiners.is_empty() && group.asked == 0;
        if !is_empty {
            group.idle_since = now;
        }
        let is_told = group.counted.is_empty() && !group.sweep.is_listed;
        let is_over =
            is_empty && is_told && now.since(group.idle_since) >= settings.linger_ms * 1000;
        let stock = 2 * PLACES_AT_ONCE;
        let places = if is_over { group.free } else { group.free.saturating_sub(stock) };
        if places == 0 && !is_over {
            return;
        }
        group.free -= places;
        let group_name = group.name.clone();
        if is_over && let Some(group) = self.groups.remove(key) {
            self.names.remove(&group_name);
            self.log_bytes -= group.bytes();
        }
        let (home, from) = (group_name.home(self.shards), self.shard);
        self.send(home, Deliver::Release { group: group_name, from, places, is_last: is_over });
    }

    fn tend_home(
        &mut self,
        key: HomeKey,
        rule: Option<Arc<GroupRule>>,
        settings: &GroupSettings,
        now: Micros,
    ) {
        let turn = self.turn;
        let Some(home) = self.homes.get(key) else { return };
        let retention = self.retention(&home.rule, settings);
        let Some(home) = self.homes.get_mut(key) else { return };
        let before = home.bytes();
        home.trim(retention, turn, now);
        self.log_bytes = self.log_bytes + home.bytes() - before;
        if let Some(rule) = rule.filter(|rule| !Arc::ptr_eq(rule, &home.rule)) {
            home.rule = rule;
            self.list_presence(key);
        }
        let Some(home) = self.homes.get_mut(key) else { return };
        // Its epoch and its last offset are worth something while a client may come back.
        let kept_us = home.rule.recent_ms.max(settings.linger_ms) * 1000;
        if home.is_idle() && !home.is_listed && now.since(home.touched) >= kept_us {
            let name = home.name.clone();
            self.homes.remove(key);
            self.home_names.remove(&name);
        }
    }
}

fn next(at: usize, slots: usize) -> usize {
    if at + 1 < slots { at + 1 } else { 0 }
}
