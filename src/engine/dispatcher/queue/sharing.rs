//! How what waits for an instance is divided between its owners.
//!
//! Owners are looked at from when more waits than leaves soon, until the queue is empty. As long as
//! none of them has much waiting, they are only counted: whoever comes waits for a few messages of
//! each other owner in any case, and the order of arrival costs little. Once one has more, all that
//! waits is spread over its owners ([`Backlog`]).

use std::cmp::Reverse;

use crate::engine::dispatcher::backlog::{Backlog, Look};
use crate::engine::dispatcher::ordering::Ordering;
use crate::engine::dispatcher::queue::{EVEN_TICKS, InstanceQueue, Sharing, Taker, is_fresh};
use crate::engine::dispatcher::request::{Request, Requests};
use crate::engine::held::Held;
use crate::ids::{MsgKey, OwnerKey, TenantId};

impl InstanceQueue {
    /// Has owners counted from now on, if they are not yet; once one has much waiting, each has its
    /// share.
    pub(crate) fn divide(&mut self, requests: &mut Requests) {
        if self.items == 0 || self.sharing != Sharing::Off {
            return;
        }
        self.sharing = Sharing::Even;
        let fresh = std::mem::take(&mut self.fresh);
        for &key in fresh.iter().flatten() {
            if let Some(request) = requests.get_mut(key).filter(|r| is_fresh(r, self.instance)) {
                self.join(request);
            }
        }
        self.fresh = fresh;
        let resumed = std::mem::take(&mut self.resumed);
        for &Reverse((_, key, generation)) in &resumed {
            let listed = |r: &&mut Request| r.is_listed_at(self.instance, generation);
            if let Some(request) = requests.get_mut(key).filter(listed) {
                self.join(request);
            }
        }
        self.resumed = resumed;
        let cost_us = self.cost_us();
        if !self.backlog.as_deref().is_none_or(|backlog| backlog.is_even(cost_us)) {
            self.share(requests);
        }
    }

    /// Spreads all that waits over its owners, if that is not done yet: from now on each has its
    /// share. Requests that wait for their stream join when it is their turn.
    pub fn share(&mut self, requests: &mut Requests) {
        if self.items == 0 || std::mem::replace(&mut self.sharing, Sharing::On) == Sharing::On {
            return;
        }
        let fresh = std::mem::take(&mut self.fresh);
        let resumed = std::mem::take(&mut self.resumed);
        for &key in fresh.iter().flatten() {
            match requests.get_mut(key).filter(|r| is_fresh(r, self.instance)) {
                Some(request) => {
                    request.position.parked = true;
                    self.resume_parked(key, request);
                }
                None => self.stale = self.stale.saturating_sub(1),
            }
        }
        for Reverse((_, key, generation)) in resumed {
            match requests.get_mut(key).filter(|r| r.is_listed_at(self.instance, generation)) {
                Some(request) => {
                    request.position.resumed = false;
                    self.resume_parked(key, request);
                }
                None => self.stale = self.stale.saturating_sub(1),
            }
        }
        self.fresh = fresh.map(|mut keys| {
            keys.clear();
            keys
        });
    }

    /// Whether all that waits is spread over its owners.
    pub(crate) fn is_shared(&self) -> bool {
        self.sharing == Sharing::On
    }

    /// Whether owners are counted, or have shares.
    pub(crate) fn is_divided(&self) -> bool {
        self.sharing != Sharing::Off
    }

    /// The owners of what waits; `None` if they are not counted.
    pub(crate) fn backlog(&self) -> Option<&Backlog> {
        self.backlog.as_deref().filter(|_| self.is_divided())
    }

    /// Spreads all that waits over its owners if the last request of `owner` has made it uneven.
    pub(super) fn share_if_uneven(&mut self, owner: Option<OwnerKey>, requests: &mut Requests) {
        let cost_us = self.cost_us();
        if let (Some(owner), Some(backlog)) = (owner, &self.backlog)
            && !backlog.is_even_at(owner, cost_us)
        {
            self.share(requests);
        }
    }

    /// Puts all that waits in the order of arrival again: no owner has much any more.
    fn level_out(&mut self) {
        if let Some(backlog) = &mut self.backlog {
            self.resumed.extend(backlog.take_entries());
        }
        self.sharing = Sharing::Even;
    }

    /// With nothing that waits nobody has to be chosen before others any more.
    pub(super) fn end_share_if_empty(&mut self) {
        if self.items > 0 || std::mem::replace(&mut self.sharing, Sharing::Off) != Sharing::On {
            return;
        }
        if self.stale > 0
            && let Some(backlog) = &mut self.backlog
        {
            backlog.retain(|_| false);
        }
        self.stale = 0;
    }

    /// To be called with each tick: gives back memory of owners that are gone, and ends the shares
    /// once no owner has much waiting any more.
    pub(crate) fn trim(&mut self) {
        let cost_us = self.cost_us();
        let Some(backlog) = &mut self.backlog else { return };
        let is_unused = backlog.trim();
        if self.sharing == Sharing::On {
            self.shared_ticks += 1;
            if self.shared_ticks >= EVEN_TICKS {
                self.shared_ticks = 0;
                if backlog.is_even(cost_us) {
                    self.level_out();
                }
            }
        } else if self.sharing == Sharing::Off && is_unused {
            self.backlog = None;
        }
    }

    /// Gives each tenant of which something waits its weight anew.
    pub(crate) fn set_weights(&mut self, of: impl Fn(TenantId) -> u32) {
        if let Some(backlog) = &mut self.backlog {
            backlog.set_weights(of);
        }
    }

    /// Owners, who are counted from now on.
    fn owners(&mut self) -> &mut Backlog {
        self.backlog.get_or_insert_with(|| Box::new(Backlog::new()))
    }

    /// Counts a request for its owner.
    pub(super) fn join(&mut self, request: &mut Request) {
        let owner = self.owners().join(&request.holder, request.weight, request.bytes());
        request.position.owner = Some(owner);
    }

    /// Takes note that a request that was taken from here is in flight no more, and cost `cost_us`
    /// microseconds of a slot.
    pub fn give_back(&mut self, request: &mut Request, cost_us: u64) {
        if let (Some(owner), Some(backlog)) = (request.position.owner.take(), &mut self.backlog) {
            // Where owners are only counted none pays.
            let charged_us = match self.sharing {
                Sharing::On => request.position.charged_us,
                Sharing::Even | Sharing::Off => cost_us,
            };
            let dropped = backlog.give_back(owner, charged_us, cost_us);
            self.stale = self.stale.saturating_sub(dropped);
        }
    }

    /// Counts a request in flight, which was taken before owners were counted, for its owner.
    pub(crate) fn count_in_flight(&mut self, request: &mut Request) {
        if request.position.owner.is_none() {
            request.position.owner = Some(self.owners().fly(&request.holder));
        }
    }

    /// Whether the request may be in a call whose slot is kept for some owners.
    pub(super) fn is_let_in(&self, call: &Taker, request: &Request) -> bool {
        let (Some(kept), Some(backlog)) = (call.kept, self.backlog()) else { return true };
        request.position.owner.is_some_and(|owner| backlog.is_idle_for(kept, owner, call.ticket))
    }

    /// Takes note that a request leaves in the order of arrival, if owners are counted.
    pub(super) fn count_taken(&mut self, call: &Taker, request: &mut Request) {
        if let (Some(owner), Some(backlog)) = (request.position.owner, &mut self.backlog) {
            request.position.charged_us = 0;
            backlog.count_taken(owner, request.bytes(), call.ticket);
        }
    }

    /// Takes the request that is next by the shares of the owners.
    pub(super) fn take_shared(
        &mut self,
        call: &Taker,
        requests: &mut Requests,
        ordering: &Ordering,
    ) -> Option<MsgKey> {
        let cost_us = self.cost_us();
        let Self { instance, backlog, stale, .. } = self;
        let backlog = backlog.as_deref_mut()?;
        backlog.note_cost(cost_us);
        let instance = *instance;
        let mut look = Look { instance, ticket: call.ticket, requests, ordering, stale };
        let ((_, key, _), owner) = match call.kept {
            None => {
                let of_run = match call.items {
                    0 => None,
                    _ => backlog.next_of_run(cost_us, &mut look),
                };
                of_run.or_else(|| backlog.next(&mut look))?
            }
            Some(kept) => backlog.next_idle(kept, &mut look)?,
        };
        let request = requests.get_mut(key).expect("candidates wait here");
        if !call.has_place_for(request) {
            return None;
        }
        request.position.resumed = false;
        // A retry was charged when it was taken first.
        request.position.charged_us = if request.attempt == 0 { cost_us } else { 0 };
        backlog.take(owner, request.bytes(), request.position.charged_us);
        Some(key)
    }

    /// What each owner has waiting, and how many requests in flight.
    pub(crate) fn check_owners(&self) -> Result<Vec<(OwnerKey, Held, usize)>, String> {
        self.backlog.as_ref().map_or(Ok(Vec::new()), |backlog| backlog.check())
    }
}
