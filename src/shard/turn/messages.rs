//! Everything that reaches a shard otherwise than by its sockets: the tick, commands of control,
//! and handoffs of other shards.

use crate::lanes::LaneRefusal;
use crate::limits;
use crate::mailbox::{Command, ShardEvent};
use crate::message::Micros;
use crate::shard::turn::{ShardIo, close, handoffs, pushes, tracer};
use crate::stats::Counter;
use crate::trace::Step;

/// Handles the pulse, which came `late_us` ago; `unix_us` is the time of the wall clock.
pub fn tick(io: &mut impl ShardIo, late_us: u64, unix_us: i64, now: Micros) {
    let mut closing = std::mem::take(&mut io.state().closing);
    let (shard, signals, demands, keys_wanted) = io.with(|engine, state| {
        engine.record_stall(late_us);
        engine.set_wall_clock(unix_us, now);
        engine.tick(now, &mut closing);
        state.take_effects(engine);
        let effects = &mut state.effects;
        let signals = std::mem::take(&mut effects.signals);
        let demands = std::mem::take(&mut effects.demands);
        (state.shard, signals, demands, std::mem::take(&mut effects.keys_wanted))
    });
    if !keys_wanted.is_empty() {
        offer_event(io, ShardEvent::KeysWanted { shard, owners: keys_wanted });
    }
    if !signals.is_empty() {
        offer_event(io, ShardEvent::Signals { shard, signals });
    }
    if !demands.is_empty() {
        offer_event(io, ShardEvent::QuotaDemands { shard, demands });
    }
    for id in closing.drain(..) {
        close(io, id);
    }
    io.state().closing = closing;
    tracer::step(io, Step::Tick);
}

/// Takes the handoffs of other shards, then commands. True: the shard is to end at once.
pub fn take_messages(io: &mut impl ShardIo, now: Micros) -> bool {
    handoffs::take_handed(io, now);
    pushes::take_all(io, now);
    let ends = take_commands(io, now);
    tracer::step(io, Step::Messages);
    ends
}

fn take_commands(io: &mut impl ShardIo, now: Micros) -> bool {
    for _ in 0..limits::LANE_BUDGET {
        let Some(command) = io.next_command() else { return false };
        match command {
            Command::Apply(published) => {
                io.state().set(&published.settings);
                io.apply(&published);
                io.enter(|engine| engine.apply(*published, now));
            }
            Command::Report(number) => {
                let mut report = io.enter(|engine| engine.report(number, now));
                report.gauges.connection_bytes += io.socket_bytes() as u64;
                report.busy_us = io.nanos().ran / 1000;
                report.gauges.group_lane_items = io.delivers_waiting() as u64;
                offer_event(io, ShardEvent::Report(Box::new(report)));
            }
            Command::Sample => {
                let mut sample = io.enter(|engine| engine.sample(now));
                sample.busy_us = io.nanos().ran / 1000;
                offer_event(io, ShardEvent::Sample(Box::new(sample)));
            }
            Command::Inspect(query, number) => {
                let inspection = io.enter(|engine| engine.inspect(&query, now));
                let shard = io.state().shard;
                offer_event(io, ShardEvent::Inspection { shard, number, inspection });
            }
            Command::Trace { number, lasts_ms } => tracer::begin(io, number, lasts_ms),
            Command::QuotaParts(parts) => io.enter(|engine| engine.set_quota_parts(&parts, now)),
            Command::Drain(settings) => {
                io.stop_accepting(now);
                io.enter(|engine| engine.drain(settings, now));
                io.state().is_stopping = true;
            }
            Command::Abort => return true,
        }
    }
    io.ring();
    false
}

/// Offers control an event that may be lost: control asks again, or gets it with the next tick.
fn offer_event(io: &mut impl ShardIo, event: ShardEvent) {
    let refused = match io.try_send_event(event) {
        Ok(()) => return,
        Err(LaneRefusal::Full(event) | LaneRefusal::Closed(event)) => event,
    };
    io.enter(|engine| {
        engine.count(Counter::LaneLost, 1);
        if let ShardEvent::Signals { signals, .. } = &refused {
            engine.return_signals(signals);
        }
    });
}
