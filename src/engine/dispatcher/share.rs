//! The share of an owner in the queue of an instance: how much may wait there (promise 6), and what
//! its messages cost in slots of calls.
//!
//! A queue is bounded by dynamic thresholds (Choudhury and Hahne, 1998): an owner may hold a
//! multiple of what is free. One alone has most of the queue; of `n` that hold as much as they may
//! each has the same, and a part stays free for one to come. An owner that has nothing waiting is
//! refused because its group is over its threshold only when little is free.

use crate::config::settings::Tenants;
use crate::engine::Context;
use crate::engine::dispatcher::Dispatcher;
use crate::engine::dispatcher::fill::Fill;
use crate::engine::dispatcher::instances::InstanceState;
use crate::engine::dispatcher::request::{NewRequest, State};
use crate::engine::dispatcher::slots::{Kept, Line, slots};
use crate::engine::held::Held;
use crate::engine::owner::{Holder, Party};
use crate::ids::{InstanceId, MsgKey};
use crate::inspect::ShareInfo;
use crate::message::{Micros, Priority, Reason, Reject};
use crate::stats::Counter;

/// Times what is free that a tenant may hold where there may be others: alone 8/9 of the queue, so
/// that a ninth is there for tenants to come.
const TENANT_TIMES: usize = 8;
/// Times what is free for its tenant that a user or an address may hold, by the class of the
/// message, critical first: alone 8/9, 4/5, 2/3 and a half.
const PARTY_TIMES: [usize; 4] = [8, 4, 2, 1];
/// Times what is free that a user or an address may hold while nobody else has anything
/// waiting there, if its class allows no more: 4/5 of the queue, so that a fifth is there
/// for those to come, and for sessions of an address that have nothing waiting
/// ([`SESSION_RESERVE`]).
const TIMES_ALONE: usize = 4;
/// Times what is free for its address that a session without a user may hold: alone 4/7 of the
/// queue, by its address's share.
const SESSION_TIMES: usize = 2;
/// Part of the cap that must be free so that a user or an address with nothing waiting is let in
/// although its tenant holds as much as it may: a sixteenth is kept for other tenants.
const PARTY_RESERVE: usize = 16;
/// Part of the cap that must be free so that a session with nothing waiting is let in although its
/// address holds as much as it may: of the fifth that an address alone leaves, three eighths are
/// for those, and the rest is kept for other addresses.
const SESSION_RESERVE: usize = 8;
/// Part of its cap below which a queue is not looked at: with less no owner can be over a
/// threshold, as the least of them lets one alone have two fifths.
const LOOKED_AT: u32 = 3;
/// Bounds of the time that a refused client is told, in milliseconds.
const RETRY_AFTER_MS: (u64, u64) = (10, 5_000);

/// The level on which an owner holds as much as it may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Level {
    Tenant,
    Party,
    Session,
}

impl Level {
    /// Name of the level in the log and in explanations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Party => "user or address",
            Self::Session => "session",
        }
    }
}

/// Times what is free for its tenant that a user or an address may hold; `is_alone`: nobody else
/// has anything waiting there.
fn party_times(is_alone: bool, priority: Priority) -> usize {
    let times = PARTY_TIMES[priority.index()];
    // Without others there is no contention.
    if is_alone { times.max(TIMES_ALONE) } else { times }
}

/// How much more of a queue than what is free an owner may hold.
#[derive(Clone, Copy, Debug)]
struct Rules {
    /// The weight of its tenant, and that of the heaviest of those of which something waits: where
    /// there may be several. The heaviest may hold [`TENANT_TIMES`] what is free, and the others as
    /// much less as they are lighter.
    weights: Option<(usize, usize)>,
    /// Times what is free for its tenant that its user or address may hold.
    party_times: usize,
}

/// The level on which `holder` would be over its threshold with `amount` more of a thing. `held`:
/// what its tenant, its user or address, and its session hold; `free`: what is left of `cap`.
fn level_over(
    holder: &Holder,
    held: [usize; 3],
    amount: usize,
    (free, cap): (usize, usize),
    rules: Rules,
) -> Option<Level> {
    let is_over = |held: usize, most: usize| held > 0 && held + amount > most;
    let [tenant, party, session] = held;
    let tenant_most = match rules.weights {
        None => usize::MAX,
        Some((weight, heaviest)) => free.saturating_mul(TENANT_TIMES * weight) / heaviest,
    };
    if is_over(tenant, tenant_most) && (party > 0 || free <= cap / PARTY_RESERVE) {
        return Some(Level::Tenant);
    }
    let tenants_free = tenant_most.saturating_sub(tenant).min(free);
    let party_most = tenants_free.saturating_mul(rules.party_times);
    let is_new = match holder.party {
        Party::Address(_) => session == 0 && free > cap / SESSION_RESERVE,
        Party::User(_) => false,
    };
    if is_over(party, party_most) && !is_new {
        return Some(Level::Party);
    }
    let session_most = party_most.saturating_sub(party).min(free) * SESSION_TIMES;
    match holder.party {
        Party::Address(_) if is_over(session, session_most) => Some(Level::Session),
        Party::Address(_) | Party::User(_) => None,
    }
}

/// Time in microseconds in which so little leaves that owners need no shares of it: a newcomer
/// waits for that much longer at most, about as long as its answer takes in any case.
const SOON_US: u64 = 1_000;

impl Dispatcher {
    /// Looks after the shares of owners, as not all that waits can leave now. Returns the time
    /// until which nothing leaves although a slot is left, which is `kept` for some owners.
    ///
    /// With one tenant nobody needs a share of what leaves soon in any case; where tenants have
    /// weights these hold from the first message on that stays behind.
    pub(super) fn look_after_shares(
        &mut self,
        cx: &Context<'_>,
        (id, line): (InstanceId, Line),
        kept: Option<Kept>,
        now: Micros,
    ) -> Option<Micros> {
        let state = self.instances.get_mut(id);
        let slots = slots(&cx.config.settings.batch, state.mode) as u64;
        let young_until = state.slots.young_until(line, now);
        let queue = state.queue(line);
        let wait_us = queue.items as u64 * queue.cost_us() / slots.max(1);
        let leaves_soon = cx.config.gateway.auth.tenants == Tenants::One && wait_us <= SOON_US;
        if leaves_soon && young_until.is_some() && !queue.is_divided() {
            return kept.and(young_until);
        }
        self.count_owners(id, line);
        // Whoever has nothing in flight is found by the shares alone.
        if kept.is_some() && young_until.is_none() {
            self.with_queue(id, line, |queue, requests| queue.share(requests));
        }
        None
    }

    /// Has the owners of what waits in a queue counted, if they are not yet, with what they have in
    /// flight from there.
    fn count_owners(&mut self, id: InstanceId, line: Line) {
        let queue = self.instances.get(id).queue(line);
        if queue.is_divided() || queue.items == 0 {
            return;
        }
        let Self { instances, calls, requests, .. } = self;
        let InstanceState { slots, queues, .. } = instances.get_mut(id);
        let queue = &mut queues[line as usize];
        for ticket in slots.tickets(line) {
            let items = calls.get(ticket).map_or(&[][..], |call| &call.items);
            for key in items {
                let request = requests.get_mut(*key);
                if let Some(request) = request.filter(|r| r.state == State::InFlight(ticket)) {
                    queue.count_in_flight(request);
                }
            }
        }
        self.with_queue(id, line, |queue, requests| queue.divide(requests));
    }

    /// Refuses a message whose owner holds its share of the queue of `instance`. `fills`: the fill
    /// of that and of all queues of the shard, of whose caps `percent` are open to the class.
    ///
    /// What is free is the less of both: who fills many instances gets less of each, so that the
    /// shard has room for others, too.
    pub(super) fn check_share(
        &mut self,
        cx: &mut Context<'_>,
        instance: InstanceId,
        new: &NewRequest<'_>,
        fills: [Fill; 2],
        percent: u32,
    ) -> Result<(), Reject> {
        let (holder, bytes) = (&new.from.holder, new.bytes());
        if !fills.iter().any(|fill| fill.reaches(percent / LOOKED_AT)) {
            return Ok(());
        }
        let [here, all] = fills.map(|fill| fill.part(percent));
        let Fill { items_max, bytes_max, .. } = here;
        let weight = u64::from(cx.config.snapshot.tenants.weight(holder.tenant)).max(1);
        let mut held = [Held::default(); 3];
        let (mut parties, mut heaviest, mut weights) = (0, weight, 0);
        for line in Line::ALL {
            self.count_owners(instance, line);
            if let Some(backlog) = self.instances.get(instance).queue(line).backlog() {
                held.iter_mut().zip(backlog.held(holder)).for_each(|(sum, held)| sum.add(held));
                parties += backlog.parties(holder.tenant);
                heaviest = heaviest.max(backlog.tenants().heaviest());
                weights += backlog.tenants().sum();
            }
        }
        let rules = Rules {
            weights: match cx.config.gateway.auth.tenants {
                Tenants::One => None,
                Tenants::Many => Some((weight as usize, heaviest as usize)),
            },
            party_times: party_times(held[1].items >= here.items, new.route.priority),
        };
        let left = |fill: &Fill| fill.items_max.saturating_sub(fill.items);
        let free = (left(&here).min(left(&all)), items_max);
        let over = level_over(holder, held.map(|held| held.items), 1, free, rules).or_else(|| {
            let left = |fill: &Fill| fill.bytes_max.saturating_sub(fill.bytes);
            let free = (left(&here).min(left(&all)), bytes_max);
            level_over(holder, held.map(|held| held.bytes), bytes, free, rules)
        });
        match over {
            None => Ok(()),
            Some(level) => {
                cx.stats.inc(Counter::QueueOverShare);
                let full = (level, held[level as usize].items);
                self.held_back.tell(cx, new.from, instance, full, new.now);
                // A slot serves one after the other: tenants by their weights, and of each its
                // parties in turn.
                let state = self.instances.get(instance);
                let us = state.queue(Line::Prompt).cost_us() * parties * weights.max(weight);
                Err(over_share(full, us / weight / state.slots.len().max(1) as u64))
            }
        }
    }

    /// Messages at an instance of an owner, of its groups, and of all, and whether the owner was
    /// slow lately on `route`: for an explanation. Costs a pass over the requests.
    pub fn shares_at(&self, instance: InstanceId, holder: &Holder, route: u32) -> Vec<ShareInfo> {
        type Is = fn(&Holder, &Holder) -> bool;
        let party = |a: &Holder, b: &Holder| (a.tenant, a.party) == (b.tenant, b.party);
        let of: &[(&'static str, Is)] = match holder.party {
            Party::User(_) => &[("user", party)],
            Party::Address(_) => &[("session", |a, b| a == b), ("address", party)],
        };
        let groups: [(&'static str, Is); 2] =
            [("tenant", |a, b| a.tenant == b.tenant), ("all", |_, _| true)];
        let mut shares: Vec<(ShareInfo, Is)> = of
            .iter()
            .chain(&groups)
            .map(|&(of, is)| (ShareInfo { of, waiting: 0, in_flight: 0, slow: None }, is))
            .collect();
        if let Some((owner, _)) = shares.first_mut() {
            owner.slow = Some(self.slow.place(holder, route).0 == Line::Slow);
        }
        for (_, request) in self.requests.iter().filter(|(_, r)| r.instance == instance) {
            for (share, is) in &mut shares {
                let counts = u64::from(is(&request.holder, holder));
                match request.state {
                    State::Waiting => share.waiting += counts,
                    State::InFlight(_) => share.in_flight += counts,
                    State::Duplicate => {}
                }
            }
        }
        shares.into_iter().map(|(share, _)| share).collect()
    }

    /// Takes note that a request is in a call no more, for its owner if that has a share. It costs
    /// its part of the call's time, or as much as was thought if it is sent again.
    pub(super) fn leave_call(&mut self, key: MsgKey, sent_again: bool, now: Micros) {
        let Some(request) = self.requests.get_mut(key) else { return };
        if request.position.owner.is_none() {
            return;
        }
        let cost_us = match request.ticket().and_then(|ticket| self.calls.get(ticket)) {
            Some(_) if sent_again || request.attempt > 1 => request.position.charged_us,
            Some(call) => call.cost_us(now),
            None => 0,
        };
        let state = self.instances.get_mut(request.instance);
        state.queue_mut(request.position.line).give_back(request, cost_us);
    }
}

/// The refusal of a message whose owner holds its share; `us`: the time in which one message of
/// each user and address of its tenant that waits is sent.
fn over_share((level, held): (Level, usize), us: u64) -> Reject {
    let text = match level {
        Level::Tenant => TENANT_FULL,
        Level::Party => PARTY_FULL,
        Level::Session => SESSION_FULL,
    };
    let (least, most) = RETRY_AFTER_MS;
    let retry_after_ms = (us / 1000).clamp(least, most) as u32;
    Reject { held: held as u32, ..Reject::later(Reason::QueueFull, text, retry_after_ms) }
}

const TENANT_FULL: &str = "the messages of your tenant that wait for this service are its share: \
                           wait for answers, then send again";
const PARTY_FULL: &str = "your messages that wait for this service, from all of your connections, \
                          are your share: wait for answers, then send again";
const SESSION_FULL: &str = "the messages of this session that wait for this service are its share: \
                            wait for answers, then send again";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::owner::Address;
    use crate::ids::TenantId;
    use proptest::prelude::*;

    const CAP: usize = 1_000;

    fn session(tenant: u64, address: u8, session: u64) -> Holder {
        let party = Party::Address(Address::V4([127, 0, 0, address]));
        Holder { tenant: TenantId(tenant), party, session }
    }

    /// Messages that wait, by owner; the rule is asked before each.
    #[derive(Default)]
    struct Queue(Vec<(Holder, usize)>);

    /// Tenants from this one on have 4 times the weight of the others.
    const HEAVY: u64 = 100;

    fn weight(tenant: TenantId) -> usize {
        if tenant.0 >= HEAVY { 4 } else { 1 }
    }

    impl Queue {
        fn held(&self, is: impl Fn(&Holder) -> bool) -> usize {
            self.0.iter().filter(|(holder, _)| is(holder)).map(|(_, n)| n).sum()
        }

        fn put(&mut self, holder: Holder, priority: Priority) -> bool {
            let held = [
                self.held(|h| h.tenant == holder.tenant),
                self.held(|h| (h.tenant, h.party) == (holder.tenant, holder.party)),
                self.held(|h| *h == holder),
            ];
            let free = CAP - self.held(|_| true);
            let present = self.0.iter().map(|(holder, _)| holder.tenant).chain([holder.tenant]);
            let heaviest = present.map(weight).max().expect("itself");
            let rules = Rules {
                weights: Some((weight(holder.tenant), heaviest)),
                party_times: party_times(held[1] == self.held(|_| true), priority),
            };
            if free == 0 || level_over(&holder, held, 1, (free, CAP), rules).is_some() {
                return false;
            }
            match self.0.iter_mut().find(|(h, _)| *h == holder) {
                Some((_, n)) => *n += 1,
                None => self.0.push((holder, 1)),
            }
            true
        }

        /// Takes so many messages of a tenant out, of the owners with the most.
        fn serve(&mut self, tenant: u64, count: usize) {
            for _ in 0..count {
                let of = self.0.iter_mut().filter(|(holder, _)| holder.tenant.0 == tenant);
                of.max_by_key(|(_, n)| *n).expect("it has some").1 -= 1;
                self.0.retain(|(_, n)| *n > 0);
            }
        }

        fn fill(&mut self, holders: &[Holder], priority: Priority) {
            let mut more = true;
            while std::mem::take(&mut more) {
                holders.iter().for_each(|&holder| more |= self.put(holder, priority));
            }
        }
    }

    #[test]
    fn a_user_alone_has_most_of_a_queue_and_beside_others_a_part_by_class() {
        let user = |n| Holder { party: Party::User(n), ..session(0, 1, 0) };
        for (priority, most) in Priority::ALL.into_iter().zip([875, 800, 666, 500]) {
            let mut queue = Queue::default();
            queue.fill(&[user(1)], priority);
            let alone = most.max(800);
            assert!(queue.held(|_| true).abs_diff(alone) <= 15, "{priority:?}: {:?}", queue.0);
            let mut queue = Queue(vec![(user(2), 1)]);
            queue.fill(&[user(1)], priority);
            assert!(queue.held(|_| true).abs_diff(most) <= 15, "{priority:?}: {:?}", queue.0);
        }
    }

    #[test]
    fn many_greedy_owners_have_the_same_and_leave_room_for_one_to_come() {
        for many in [2_u8, 10, 100] {
            let mut queue = Queue::default();
            let greedy: Vec<Holder> =
                (0..many).flat_map(|a| [session(0, a, 1), session(0, a, 2)]).collect();
            queue.fill(&greedy, Priority::Normal);
            let each: Vec<usize> = queue.0.iter().map(|(_, n)| *n).collect();
            let (least, most) = (each.iter().min(), each.iter().max());
            assert!(most.unwrap() - least.unwrap() <= most.unwrap() / 2 + 1, "{each:?}");
            for newcomer in [session(0, 250, 1), session(1, 250, 1)] {
                assert!(queue.put(newcomer, Priority::Normal), "{many} hold {each:?}");
            }
        }
    }

    #[test]
    fn an_address_with_a_thousand_sessions_leaves_room_for_others() {
        let hold = |sessions: u64| {
            let mut queue = Queue::default();
            let greedy: Vec<Holder> = (0..sessions).map(|n| session(0, 1, n)).collect();
            queue.fill(&greedy, Priority::Normal);
            (queue.held(|_| true), queue.put(session(0, 2, 0), Priority::Normal))
        };
        let ((few, one), (many, other)) = (hold(20), hold(1_000));
        assert!(few <= 801 && many <= 876 && one && other, "{few} and {many}");
    }

    #[test]
    fn a_session_with_nothing_waiting_is_let_in_beside_greedy_ones_of_its_address() {
        let mut queue = Queue::default();
        let greedy: Vec<Holder> = (0..150).map(|n| session(0, 1, n)).collect();
        queue.fill(&greedy, Priority::Normal);
        let new = (150..).take_while(|n| queue.put(session(0, 1, *n), Priority::Normal)).count();
        // A part of what was free is for those, and the rest for other addresses.
        let free = CAP - queue.held(|_| true);
        assert!(new > 50 && free == CAP / SESSION_RESERVE, "{new} let in, {free} free");
        assert!(queue.put(session(0, 2, 1), Priority::Normal));
    }

    /// Promise 19: beside each other tenants hold by their weights, and one alone what it may hold
    /// whatever its weight is.
    #[test]
    fn tenants_hold_by_their_weights_where_there_are_several() {
        let user = |tenant, n| Holder { party: Party::User(n), ..session(tenant, 1, 0) };
        let users = |tenant| (0..8).map(move |n| user(tenant, n));
        for tenants in [vec![1, HEAVY], vec![1, 2, HEAVY], vec![1, HEAVY, HEAVY + 1]] {
            let mut queue = Queue::default();
            let all: Vec<Holder> = tenants.iter().flat_map(|t| users(*t)).collect();
            // All send as much as they may, and are served by their weights.
            for _ in 0..300 {
                queue.fill(&all, Priority::Normal);
                tenants.iter().for_each(|t| queue.serve(*t, weight(TenantId(*t))));
            }
            let of = |tenant| queue.held(|holder| holder.tenant == TenantId(tenant));
            let (light, heavy) = (of(1), of(HEAVY));
            assert!((4 * light).abs_diff(heavy) * 10 <= heavy, "{light} and {heavy}");
            assert!(queue.put(user(50, 1), Priority::Low), "and there is room for one to come");
        }
        let alone = |tenant| {
            let mut queue = Queue::default();
            queue.fill(&users(tenant).collect::<Vec<_>>(), Priority::Normal);
            queue.held(|_| true)
        };
        assert_eq!(alone(1), alone(HEAVY));
    }

    proptest! {
        /// Whatever others hold: who has nothing waiting, in a group that has not, is let in.
        #[test]
        fn nobody_is_refused_because_of_what_others_hold(
            steps in prop::collection::vec((0_u64..3, 0_u8..5, 0_u64..4, 0_usize..4), 1..1_500),
        ) {
            let mut queue = Queue::default();
            for (tenant, address, n, class) in steps {
                queue.put(session(tenant, address, n), Priority::ALL[class]);
            }
            prop_assert!(queue.put(session(9, 9, 9), Priority::Low));
        }
    }
}
