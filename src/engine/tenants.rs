//! What the tenants of the configuration use on a shard: held against their quotas, and counted.
//! Where there are none it costs a look at an empty list.

use crate::ids::TenantId;
use crate::message::Micros;
use crate::routing::quota::{
    Demand, Part, RATE_PARTS, THINGS, TenantDemand, TenantPart, Thing, equal_part,
};
use crate::routing::{Quota, TenantTable};
use crate::stats::{TenantCounter, TenantReport};

/// Nanoparts of a part: a microsecond at a rate of a part a second is a millionth of a part.
const PART: i128 = 1_000_000;

/// Something over a tenant's quota: the thing, and in how many microseconds there is room again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OverQuota {
    pub thing: Thing,
    pub us: u64,
}

/// An allowance at a rate. What is taken may be larger than all that is there, and is owed then:
/// so the sustained rate holds for pieces of any size.
///
/// What has flowed in stays when the rate becomes smaller, until it is taken: where the users of a
/// tenant go silent on one shard and wake up on another, the part follows a second late, and what
/// flowed in for nobody meanwhile is there when they are back. As the parts of all shards are the
/// quota, no more flows into them together than into one allowance of the whole; but each shard may
/// have a full burst stored.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    /// Millionths of a part that are left at `at`; negative: owed. `None` = full.
    level: Option<i128>,
    at: Micros,
}

impl Allowance {
    const FULL: Self = Self { level: None, at: Micros(0) };

    /// Whether something may be taken of an allowance of `rate` parts a second that holds `burst_s`
    /// seconds of it; if not, how many parts are missing, in millionths.
    fn check(&mut self, rate: u64, burst_s: u32, now: Micros) -> Result<(), u128> {
        self.settle(rate, burst_s, now);
        match self.level.unwrap_or(full(rate, burst_s)) {
            1.. => Ok(()),
            level => Err((1 - level).unsigned_abs()),
        }
    }

    /// Takes `parts`, after a check.
    fn take(&mut self, rate: u64, burst_s: u32, parts: u64) {
        let level = self.level.unwrap_or(full(rate, burst_s));
        self.level = Some(level - i128::from(parts) * PART);
    }

    /// Keeps what is there at `now` by the rate until now, whatever the rate is from now on.
    fn hold(&mut self, rate: u64, burst_s: u32, now: Micros) {
        self.settle(rate, burst_s, now);
        self.level.get_or_insert(full(rate, burst_s));
    }

    /// Leaves no more than a burst of `rate` of what flowed in by another one.
    fn cut(&mut self, rate: u64, burst_s: u32) {
        self.level = self.level.filter(|level| *level < full(rate, burst_s));
    }

    /// Lets flow in what has flowed until `now`, by the rate until now.
    fn settle(&mut self, rate: u64, burst_s: u32, now: Micros) {
        if let Some(before) = self.level {
            let flown = i128::from(now.since(self.at)) * i128::from(rate);
            let full = full(rate, burst_s);
            let level = before.max(full.min(before + flown));
            self.level = (level != full).then_some(level);
        }
        self.at = self.at.max(now);
    }
}

fn full(rate: u64, burst_s: u32) -> i128 {
    // One is let in by the smallest part of a rate, too.
    (i128::from(rate) * i128::from(burst_s) * PART).max(1)
}

/// The account of a tenant.
#[derive(Debug)]
struct Account {
    id: TenantId,
    quota: Quota,
    part: Part,
    /// Allowances at the rates: connections, messages, bytes.
    rates: [Allowance; 3],
    /// Wanted since control was last told: see [`Demand::asked`].
    asked: [u64; THINGS],
    /// Bytes of messages without an answer.
    queued_bytes: u64,
    counts: [u64; TenantCounter::ALL.len()],
}

impl Account {
    fn new(id: TenantId, quota: Quota, part: Part) -> Self {
        Self {
            id,
            quota,
            part,
            rates: [Allowance::FULL; 3],
            asked: [0; THINGS],
            queued_bytes: 0,
            counts: [0; TenantCounter::ALL.len()],
        }
    }

    /// Leaves no more than a burst of what flowed in by other limits.
    fn cut(&mut self, burst_s: u32) {
        for thing in Thing::RATES {
            if let Some(rate) = self.part[thing as usize] {
                self.rates[thing as usize].cut(rate, burst_s);
            }
        }
    }

    /// Whether `amount` may be taken of a rate; if not, after how many microseconds. With several
    /// shards a shard's part may be small for the moment only: who is told a time by that alone
    /// would stay away for long, and the part stay small.
    fn check(&mut self, thing: Thing, amount: u64, terms: Terms, now: Micros) -> Result<(), u64> {
        let Some(rate) = self.part[thing as usize] else { return Ok(()) };
        let asked = &mut self.asked[thing as usize];
        *asked = asked.saturating_add(amount.saturating_mul(RATE_PARTS));
        let checked = self.rates[thing as usize].check(rate, terms.burst_s, now);
        checked.map_err(|missing| {
            let us = |rate: u64| missing.div_ceil(u128::from(rate.max(1)));
            let equal = thing.whole(&self.quota).unwrap_or(rate) / terms.shards as u64;
            let least = match rate < equal {
                true => us(rate).min(us(equal) + u128::from(PARTS_FOLLOW_US)),
                false => us(rate),
            };
            u64::try_from(least).unwrap_or(u64::MAX)
        })
    }

    /// Takes `amount` of a rate, after a check.
    fn take(&mut self, thing: Thing, amount: u64, terms: Terms) {
        if let Some(rate) = self.part[thing as usize] {
            let parts = amount.saturating_mul(RATE_PARTS);
            self.rates[thing as usize].take(rate, terms.burst_s, parts);
        }
    }
}

/// Bytes of the account of a tenant on a shard.
pub(crate) const ACCOUNT_BYTES: usize = size_of::<Account>();

/// Terms that are the same for all tenants.
#[derive(Clone, Copy, Debug)]
struct Terms {
    burst_s: u32,
    shards: usize,
}

/// Time in which the parts of shards follow what is wanted: two divisions.
const PARTS_FOLLOW_US: u64 = 2_000_000;

/// The accounts of all tenants of the configuration.
#[derive(Debug)]
pub(crate) struct TenantLedger {
    /// In the order of the snapshot's [`TenantTable`].
    accounts: Vec<Account>,
    shard: usize,
    shards: usize,
    burst_s: u32,
    /// Time from which on rates are held to: what the kernel took while the shard was stopped comes
    /// at once.
    from: Micros,
    /// Time at which control was last told what is wanted.
    told: Micros,
}

/// Time between two reports of what is wanted: one second.
const TELL_EVERY_US: u64 = 1_000_000;

impl TenantLedger {
    /// The ledger of shard number `shard` of `shards`, without tenants.
    pub fn new(shard: usize, shards: usize) -> Self {
        let (accounts, from, told) = (Vec::new(), Micros(0), Micros(0));
        Self { accounts, shard, shards, burst_s: 1, from, told }
    }

    /// Keeps accounts for the tenants of `table` from now on. Those that stay go on with what they
    /// had; one whose quota changes has an equal part of the new one until control says more.
    pub fn apply(&mut self, table: &TenantTable, burst_s: u32) {
        let is_shorter = burst_s < self.burst_s;
        self.burst_s = burst_s;
        // Both are in the order of ids.
        let mut before = std::mem::take(&mut self.accounts).into_iter().peekable();
        for tenant in table.list() {
            while before.next_if(|account| account.id < tenant.id).is_some() {}
            let known = before.next_if(|account| account.id == tenant.id);
            let part = equal_part(&tenant.quota, self.shard, self.shards);
            self.accounts.push(match known {
                Some(mut account) => {
                    let is_other = account.quota != tenant.quota;
                    if is_other {
                        (account.quota, account.part) = (tenant.quota, part);
                    }
                    if is_other || is_shorter {
                        account.cut(burst_s);
                    }
                    account
                }
                None => Account::new(tenant.id, tenant.quota, part),
            });
        }
    }

    /// Counts anew the bytes of messages without an answer, given by tenant: some of a tenant that
    /// is new came before it.
    pub fn recount(&mut self, queued: impl Iterator<Item = (TenantId, usize)>) {
        self.accounts.iter_mut().for_each(|account| account.queued_bytes = 0);
        if self.accounts.is_empty() {
            return;
        }
        for (id, bytes) in queued {
            if let Some(account) = self.get_mut(id) {
                account.queued_bytes += bytes as u64;
            }
        }
    }

    /// Takes the parts that control gives.
    pub fn set_parts(&mut self, parts: &[TenantPart], now: Micros) {
        let burst_s = self.burst_s;
        for (id, part) in parts {
            let Some(account) = self.get_mut(*id) else { continue };
            for thing in Thing::RATES {
                // What has flowed in until now has done so by the rate until now: a larger part is
                // no reason to be full anew, or users who change the shard would make more of it.
                if let Some(rate) = account.part[thing as usize] {
                    account.rates[thing as usize].hold(rate, burst_s, now);
                }
            }
            let is_limited = |thing: Thing| thing.whole(&account.quota).is_some();
            // Parts of a quota that has changed since are not taken.
            if Thing::ALL.iter().all(|t| part[*t as usize].is_some() == is_limited(*t)) {
                account.part = *part;
            }
        }
    }

    /// Whether no tenant is configured.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }

    /// Counts something of a tenant.
    #[inline]
    pub fn add(&mut self, id: TenantId, counter: TenantCounter, n: u64) {
        if let Some(account) = self.get_mut(id) {
            account.counts[counter as usize] += n;
        }
    }

    /// Counts a message of `bytes` that was read.
    pub fn count_message(&mut self, id: TenantId, bytes: usize) {
        if let Some(account) = self.get_mut(id) {
            account.counts[TenantCounter::Messages as usize] += 1;
            account.counts[TenantCounter::MessageBytes as usize] += bytes as u64;
        }
    }

    /// Refuses a message of `bytes` over the tenant's rate of messages or of bytes.
    pub fn take_message(
        &mut self,
        id: TenantId,
        bytes: usize,
        now: Micros,
    ) -> Result<(), OverQuota> {
        let (terms, passes) = (self.terms(), now < self.from);
        let Some(account) = self.get_mut(id).filter(|_| !passes) else { return Ok(()) };
        let wanted = [(Thing::Messages, 1), (Thing::Bytes, bytes as u64)];
        // What is refused by one of them takes nothing of the other.
        let mut over: Option<OverQuota> = None;
        for (thing, amount) in wanted {
            if let Err(us) = account.check(thing, amount, terms, now)
                && over.is_none_or(|over| over.us < us)
            {
                over = Some(OverQuota { thing, us });
            }
        }
        if let Some(over) = over {
            account.counts[TenantCounter::RateRefused as usize] += 1;
            return Err(over);
        }
        wanted.into_iter().for_each(|(thing, amount)| account.take(thing, amount, terms));
        Ok(())
    }

    /// Counts a connection that begins, and refuses it over the tenant's rate.
    pub fn take_connect(&mut self, id: TenantId, now: Micros) -> Result<(), OverQuota> {
        let (terms, passes) = (self.terms(), now < self.from);
        let Some(account) = self.get_mut(id).filter(|_| !passes) else { return Ok(()) };
        let thing = Thing::Connects;
        account.check(thing, 1, terms, now).map_err(|us| {
            account.counts[TenantCounter::ConnectsRefused as usize] += 1;
            OverQuota { thing, us }
        })?;
        account.take(thing, 1, terms);
        Ok(())
    }

    fn terms(&self) -> Terms {
        Terms { burst_s: self.burst_s, shards: self.shards }
    }

    /// Whether a tenant may have `bytes` more without an answer.
    pub fn has_room(&mut self, id: TenantId, bytes: usize) -> bool {
        self.is_within(id, Thing::QueuedBytes, bytes as u64, None)
    }

    /// Whether a tenant, which has `held` ids here, may have one more.
    pub fn may_remember(&mut self, id: TenantId, held: impl FnOnce() -> usize) -> bool {
        if self.accounts.is_empty() {
            return true;
        }
        let held = held() as u64;
        self.is_within(id, Thing::DedupIds, 1, Some(held))
    }

    fn is_within(&mut self, id: TenantId, thing: Thing, amount: u64, held: Option<u64>) -> bool {
        let Some(account) = self.get_mut(id) else { return true };
        let Some(part) = account.part[thing as usize] else { return true };
        let held = held.unwrap_or(account.queued_bytes);
        // The first is let in whatever its size: a smaller quota would be a trap.
        let fits = held.saturating_add(amount) <= part || (held == 0 && part > 0);
        if !fits {
            let asked = &mut account.asked[thing as usize];
            *asked = asked.saturating_add(amount);
            account.counts[TenantCounter::RoomRefused as usize] += 1;
        }
        fits
    }

    /// Counts bytes of a message that is let in.
    #[inline]
    pub fn enqueue(&mut self, id: TenantId, bytes: usize) {
        if let Some(account) = self.get_mut(id) {
            account.queued_bytes += bytes as u64;
        }
    }

    /// Counts out bytes of a message that is answered.
    #[inline]
    pub fn settle(&mut self, id: TenantId, bytes: usize) {
        if let Some(account) = self.get_mut(id) {
            account.queued_bytes -= bytes as u64;
        }
    }

    /// Lets everybody send as fast as they may until then.
    pub fn catch_up_until(&mut self, until: Micros) {
        self.from = until;
    }

    /// What the tenants with a quota want, once a second, for control; `ids_of` gives the ids that
    /// a tenant holds.
    pub fn demands(
        &mut self,
        ids_of: impl Fn(TenantId) -> usize,
        now: Micros,
    ) -> Option<Vec<TenantDemand>> {
        if self.shards == 1 || now.since(self.told) < TELL_EVERY_US {
            return None;
        }
        let us = now.since(self.told);
        self.told = now;
        let limited = self.accounts.iter_mut().filter(|account| account.part != [None; THINGS]);
        let demands: Vec<TenantDemand> = limited
            .map(|account| {
                let mut demand =
                    Demand { asked: std::mem::take(&mut account.asked), held: [0; THINGS] };
                for thing in Thing::ALL.into_iter().filter(|thing| !thing.is_held()) {
                    let asked = &mut demand.asked[thing as usize];
                    *asked =
                        (u128::from(*asked) * u128::from(TELL_EVERY_US) / u128::from(us)) as u64;
                }
                demand.held[Thing::QueuedBytes as usize] = account.queued_bytes;
                demand.held[Thing::DedupIds as usize] = ids_of(account.id) as u64;
                (account.id, demand)
            })
            .collect();
        (!demands.is_empty()).then_some(demands)
    }

    /// What each tenant has used here, but for its connections.
    pub fn report(&self, ids_of: impl Fn(TenantId) -> usize) -> Vec<TenantReport> {
        let report = |account: &Account| TenantReport {
            id: account.id,
            counts: account.counts,
            connections: 0,
            queued_bytes: account.queued_bytes,
            dedup_ids: ids_of(account.id) as u64,
        };
        self.accounts.iter().map(report).collect()
    }

    /// Counts the connections of each tenant into its report; `sessions` gives the tenant of each
    /// upgraded connection.
    pub fn count_connections(
        &self,
        sessions: impl Iterator<Item = TenantId>,
        reports: &mut [TenantReport],
    ) {
        if !self.accounts.is_empty() {
            sessions.filter_map(|id| self.place(id)).for_each(|at| reports[at].connections += 1);
        }
    }

    /// Checks the bytes without an answer against the truth, given by tenant.
    pub fn check(&self, queued: impl Iterator<Item = (TenantId, usize)>) -> Result<(), String> {
        let mut truth = vec![0; self.accounts.len()];
        for (id, bytes) in queued {
            if let Some(at) = self.place(id) {
                truth[at] += bytes as u64;
            }
        }
        for (account, truth) in self.accounts.iter().zip(truth) {
            if account.queued_bytes != truth {
                let Account { id, queued_bytes, .. } = account;
                return Err(format!("{id:?} has {queued_bytes} bytes, in truth {truth}"));
            }
        }
        Ok(())
    }

    #[inline]
    fn place(&self, id: TenantId) -> Option<usize> {
        self.accounts.binary_search_by_key(&id, |account| account.id).ok()
    }

    #[inline]
    fn get_mut(&mut self, id: TenantId) -> Option<&mut Account> {
        let at = self.place(id)?;
        self.accounts.get_mut(at)
    }
}

#[cfg(test)]
mod tests;
