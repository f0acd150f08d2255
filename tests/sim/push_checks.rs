//! What has become of each push at the end: the checks of promises 15 to 17.

use std::collections::BTreeMap;

use crate::push_oracle::{Fan, Life, Sent, Stint, Target};

/// Time after which a session that was told to its client gets what is sent to it.
const KNOWN_US: u64 = 0;

impl Fan {
    /// Promises 16, 17 and 19: of every push in a stint that its member lacks it is known why.
    pub fn check_stint(&mut self, stint: usize, ended: bool, now: u64) {
        let stint = &self.stints[stint];
        let life = &self.lives[stint.life];
        let Some(numbered) = self.numbered.get(&stint.key) else { return };
        let is_read = stint.is_open && !ended && life.ended.is_none();
        let last = match is_read {
            true => numbered.keys().next_back().copied().unwrap_or(0),
            false => stint.got.keys().next_back().copied().unwrap_or(0),
        };
        for offset in stint.begin..=last {
            let is_told = stint.gaps.iter().any(|(from, to)| (*from..=*to).contains(&offset));
            if stint.got.contains_key(&offset) || is_told {
                continue;
            }
            // One that a service pushed, and nobody has got.
            let Some(n) = numbered.get(&offset) else { continue };
            let sent = &self.sent[*n];
            let is_same = |n: &usize| self.sent[*n].key == sent.key;
            let mut newer = stint.got.range(offset..).map(|(_, n)| n);
            let mut later = numbered.range(offset + 1..);
            let is_missed = later.any(|(at, n)| {
                is_same(n) && stint.gaps.iter().any(|(from, to)| (*from..=*to).contains(at))
            });
            let mut transient = stint.transient.iter().filter(|other| **other > *n);
            let is_replaced = !sent.key.is_empty()
                && (transient.any(is_same) || newer.any(is_same) || is_missed || !is_read);
            let is_over = sent.expires <= now;
            assert!(
                sent.excepts_life(life) || is_over || is_replaced,
                "promise 16: {life:?} lacks {offset}: {sent:?} of {stint:?}"
            );
        }
    }

    /// Promise 17: who joined a group that keeps the newest of each key was given them.
    pub fn check_newest(&mut self, stint: usize, now: u64) {
        let stint = &self.stints[stint];
        let life = &self.lives[stint.life];
        let Some((up_to, given)) = &stint.newest else { return };
        let Some(numbered) = self.numbered.get(&stint.key) else { return };
        // What came later shows that all of it came.
        if stint.got.is_empty() && !(stint.is_open && life.ended.is_none()) {
            return;
        }
        let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
        for (offset, n) in numbered.range(..=*up_to) {
            let sent = &self.sent[*n];
            if !sent.key.is_empty() {
                newest.insert(&sent.key, *offset);
            }
        }
        for (key, offset) in newest {
            let sent = &self.sent[numbered[&offset]];
            let is_excused = sent.excepts_life(life) || sent.expires <= now;
            // One that nobody knows of may be newer: a service's that was over before it was read.
            let is_newer = (offset + 1..=*up_to).any(|at| !numbered.contains_key(&at));
            assert!(
                given.contains(&offset) || is_excused || is_newer,
                "promise 17: the newest of {key} is at {offset}, not given: {stint:?}"
            );
        }
    }

    /// Promise 15: control was told what became of each addressee.
    pub fn check_result(&mut self, n: usize, is_roomy: bool) {
        let sent = &self.sent[n];
        let told = &sent.told;
        if sent.is_refused {
            assert!(told.counted.is_empty() && told.refused == 1, "promise 15: {sent:?}");
            return;
        }
        let is_group = matches!(sent.target, Target::Group(_));
        if is_group {
            assert_eq!(told.numbered, 1, "promise 15: {sent:?}");
        }
        if !told.is_counted {
            assert!(told.counted.is_empty(), "promise 15: {sent:?}");
            return;
        }
        let shards = if is_group { &told.awaited } else { &told.shards };
        let mut awaited: Vec<u16> = shards.iter().map(|shard| shard.0).collect();
        awaited.sort_unstable();
        let counted: Vec<u16> = told.counted.keys().copied().collect();
        let may_lack = is_group && (sent.is_transient || !is_roomy);
        assert!(may_lack || awaited == counted, "promise 15: not all shards count {sent:?}");
        if told.duplicates > 0 || counted != awaited {
            return;
        }
        self.check_counts(n);
    }

    pub fn check_counts(&self, n: usize) {
        let sent = &self.sent[n];
        let mut counts = shardgate::push::Counts::default();
        sent.told.counted.values().for_each(|some| counts.add(some));
        let sum = counts.addressees();
        let excepted = self.lives.iter().filter(|life| sent.excepts_life(life));
        // Of a group's those that were members all the time.
        let reached = sent.got.iter().filter(|life| {
            let is_member =
                |stint: &&Stint| stint.life == **life && stint.is_open && stint.from < sent.at;
            let has_it = |stint: &Stint| stint.got.values().any(|got| *got == n);
            sent.group().is_empty() || self.stints.iter().filter(is_member).any(has_it)
        });
        let reached = reached.count() as u64;
        assert!(
            reached <= sum - counts.dropped,
            "promise 15: {reached} got it, {counts:?} {sent:?}"
        );
        let (least, most) = match &sent.target {
            Target::Sessions(all) => {
                let excepted = excepted.filter(|life| all.contains(&life.session)).count();
                ((all.len() - excepted) as u64, all.len() as u64)
            }
            Target::Users(all) => {
                let of = |user: &String| {
                    let name = |life: &Life| {
                        life.user.map(|user| format!("user-{user}")).as_ref() == Some(user)
                    };
                    self.lives.iter().any(|life| name(life) && sent.excepts_life(life))
                };
                let may_lack = all.iter().filter(|user| of(user)).count();
                ((all.len() - may_lack) as u64, u64::MAX)
            }
            Target::Tenant | Target::Everyone => {
                let there = self.lives.iter().filter(|life| {
                    life.is_known_at(sent.at) && life.ended.is_none() && sent.tenant_is(life.tenant)
                });
                let there = there.filter(|life| !sent.excepts_life(life));
                (there.count() as u64, u64::MAX)
            }
            Target::Group(_) => (0, u64::MAX),
        };
        assert!((least..=most).contains(&sum), "promise 15: {least}..{most}, {counts:?} {sent:?}");
    }

    /// Whether no earlier push may have the id of this one.
    pub fn is_first_of_its_id(&self, n: usize) -> bool {
        let id = &self.sent[n].id_of;
        id.is_none() || !self.sent[..n].iter().any(|sent| sent.id_of == *id)
    }

    /// Promises 15 and 17: each session has what was pushed to it, or was told that it has not.
    pub fn check_direct(&mut self, now: u64) {
        for life in self.lives.iter().filter(|life| life.ended.is_none() && !life.has_gap) {
            let mut missing = 0;
            for (n, sent) in self.sent.iter().enumerate() {
                let is_meant = life.is_known_at(sent.at + KNOWN_US) && sent.is_direct_to(life);
                let is_void = sent.is_refused || sent.is_forbidden || sent.is_duplicate;
                // What a service pushes may be lost with its answer.
                let is_sent = !sent.told.shards.is_empty() && self.is_first_of_its_id(n);
                let may_lack = sent.is_transient || sent.expires <= now || sent.excepts_life(life);
                if !is_meant || is_void || !is_sent || may_lack || life.direct.contains(&n) {
                    continue;
                }
                // What a service pushes is numbered before it comes, and what is sent within a turn
                // may come in another order.
                let replaces = |(other, newer): (usize, &Sent)| {
                    let is_newer = other > n || newer.told.shards.is_empty() || newer.at == sent.at;
                    // One with an end may be over before it is read.
                    let is_known = life.direct.contains(&other) || newer.expires <= now;
                    let is_meant = newer.key == sent.key && newer.is_direct_to(life);
                    other != n && is_newer && is_meant && is_known
                };
                if !sent.key.is_empty() && self.sent.iter().enumerate().any(replaces) {
                    continue;
                }
                missing += 1;
                assert!(missing <= life.dropped, "promise 15: {life:?} lacks {n}: {sent:?}");
            }
        }
    }
}
