//! What passes between threads, as `micro` times it: an item of a lane, and a state that control
//! publishes to a shard.

use std::hint::black_box;
use std::sync::Arc;
use std::task::{Context, Waker};

use shardgate::config::settings::{GatewaySettings, ShardSettings};
use shardgate::engine::{Engine, EngineInit};
use shardgate::ids::ShardId;
use shardgate::lanes::{Doorbell, LaneReceiver, LaneSender, lane};
use shardgate::mailbox::ShardConfig;
use shardgate::message::Micros;

use super::rig::snapshot;

/// Items that a lane between shards holds.
const ITEMS: usize = 64;

/// An item of a lane: a box, as a connection on its way is.
type Item = Box<u64>;

/// A lane, both of whose ends are on this thread.
pub struct Lane {
    sender: LaneSender<Item>,
    receiver: LaneReceiver<Item>,
    bell: Arc<Doorbell>,
    item: Option<Item>,
}

impl Lane {
    pub fn new() -> Self {
        let bell = Doorbell::new();
        let (sender, receiver) = lane(ITEMS, &bell);
        Self { sender, receiver, bell, item: Some(Box::new(1)) }
    }

    /// Sends an item, hears the bell and takes the item.
    pub fn send_and_receive(&mut self) {
        let item = self.item.take().expect("it came back");
        assert!(self.sender.try_send(item).is_ok(), "there is room");
        assert!(self.bell.poll_rung(&Context::from_waker(Waker::noop())).is_ready());
        self.item = self.receiver.try_recv();
    }

    /// Asks the bell, and looks into the lane, in which nothing is.
    pub fn look(&mut self) {
        let rung = self.bell.poll_rung(&Context::from_waker(Waker::noop()));
        black_box((rung.is_ready(), self.receiver.is_empty()));
    }
}

/// An engine to which a state is published again and again.
pub struct Publish {
    engine: Engine,
    state: ShardConfig,
}

impl Publish {
    /// A shard with `instances` of one service, and no request under way.
    pub fn new(instances: u32) -> Self {
        let (snapshot, gateway) =
            (Arc::new(snapshot(instances)), Arc::<GatewaySettings>::default());
        let engine = Engine::new(EngineInit {
            shard: ShardId(0),
            shards: 1,
            gateway: gateway.clone(),
            settings: ShardSettings::default(),
            snapshot: snapshot.clone(),
            auth: None,
            boot_id: 1,
            unix_at_boot_us: 1_700_000_000_000_000,
            seed: [1; 32],
        });
        let state = ShardConfig {
            snapshot,
            gateway,
            settings: ShardSettings::default(),
            auth: None,
            tls: None,
            service_tls: Default::default(),
        };
        Self { engine, state }
    }

    /// Puts the state in force.
    pub fn apply(&mut self) {
        self.engine.apply(self.state.clone(), Micros(1_000_000));
    }
}
