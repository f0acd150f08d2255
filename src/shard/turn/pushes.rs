//! Pushes and groups between shards: what comes by the lanes, and what leaves by them.

use crate::ids::ShardId;
use crate::lanes::LaneRefusal;
use crate::limits;
use crate::mailbox::ShardEvent;
use crate::message::Micros;
use crate::shard::turn::ShardIo;
use crate::stats::Counter;

/// Receipts that wait for room in control's lane: 16 times as many as pushes come in a turn.
const RECEIPTS_MAX: usize = 16 * limits::LANE_BUDGET;

/// Takes what other shards tell of groups, then pushes, as many of each as a turn takes of a lane.
pub(super) fn take_all(io: &mut impl ShardIo, now: Micros) {
    let mut left = limits::LANE_BUDGET;
    while left > 0
        && let Some(item) = io.next_deliver()
    {
        left -= 1;
        io.enter(|engine| engine.on_deliver(item, now));
    }
    let mut pushes_left = limits::LANE_BUDGET;
    while pushes_left > 0
        && let Some(submit) = io.next_submit()
    {
        pushes_left -= 1;
        io.enter(|engine| engine.on_submit(submit, now));
    }
    if left == 0 || pushes_left == 0 {
        io.ring();
    }
}

/// Sends what the engine has for other shards and for control.
pub(super) fn send_all(io: &mut impl ShardIo, now: Micros) {
    send_items(io, now);
    for pushes in std::mem::take(&mut io.state().effects.pushes) {
        let count = pushes.len() as u64;
        if !io.send_pushes(pushes) {
            io.enter(|engine| engine.count(Counter::PushesRefused, count));
        }
    }
    send_receipts(io);
}

/// Sends control what became of pushes. While its lane is full they wait for the next turn, but no
/// more than control can wait for: what is over that counts as lost, and control says `unknown`.
fn send_receipts(io: &mut impl ShardIo) {
    let receipts = std::mem::take(&mut io.state().effects.receipts);
    if receipts.is_empty() {
        return;
    }
    let shard = io.state().shard;
    let refused = match io.try_send_event(ShardEvent::Receipts { shard, receipts }) {
        Ok(()) => return,
        Err(LaneRefusal::Full(refused) | LaneRefusal::Closed(refused)) => refused,
    };
    if let ShardEvent::Receipts { mut receipts, .. } = refused {
        let lost = receipts.len().saturating_sub(RECEIPTS_MAX);
        receipts.drain(..lost);
        io.state().effects.receipts = receipts;
        io.enter(|engine| engine.count(Counter::LaneLost, lost as u64));
    }
}

/// What follows an item that a lane refused, to the same shard, goes back with it: so no lane has
/// items out of their order.
fn send_items(io: &mut impl ShardIo, now: Micros) {
    let mut items = std::mem::take(&mut io.state().effects.deliver);
    let mut full: Vec<ShardId> = Vec::new();
    for (to, item) in items.drain(..) {
        let sent = match full.contains(&to) {
            true => Err(LaneRefusal::Full(item)),
            false => io.send_deliver(to, item),
        };
        if let Err(LaneRefusal::Full(item) | LaneRefusal::Closed(item)) = sent {
            full.push(to);
            io.enter(|engine| engine.deliver_refused(to, item, now));
        }
    }
    io.state().effects.deliver = items;
}
