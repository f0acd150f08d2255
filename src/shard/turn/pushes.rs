//! Pushes and groups between shards: what comes by the lanes, and what leaves by them.

use crate::ids::ShardId;
use crate::lanes::LaneRefusal;
use crate::limits;
use crate::mailbox::ShardEvent;
use crate::message::Micros;
use crate::shard::turn::{ShardIo, messages};
use crate::stats::Counter;

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
    let receipts = std::mem::take(&mut io.state().effects.receipts);
    if !receipts.is_empty() {
        let shard = io.state().shard;
        messages::offer_event(io, ShardEvent::Receipts { shard, receipts });
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
