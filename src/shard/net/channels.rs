//! Channels to instances, one task each: opened and closed as instances come and go.

use std::collections::HashSet;
use std::future::poll_fn;
use std::pin::pin;

use crate::backend::channel::{self, Channel, ChannelEvent};
use crate::engine::Engine;
use crate::engine::dispatcher::instances::Link;
use crate::ids::{InstanceId, ShardId};
use crate::message::Micros;
use crate::routing::{Instance, Snapshot};
use crate::shard::net::Net;
use crate::stats::Counter;

impl Net {
    /// Opens channels to new instances, closes those to instances that are gone.
    pub(super) fn open_channels(&mut self, snapshot: &Snapshot) {
        for instance in &snapshot.instances {
            if self.channels.get(instance.id).is_none() {
                let channel = self.open_channel(instance);
                self.channels.get_or_insert_with(instance.id, || channel);
            }
        }
        // Ids of instances that left are never used again; their tasks end by themselves.
        let present: HashSet<InstanceId> = snapshot.instances.iter().map(|i| i.id).collect();
        self.channels.retain(|id, channel| {
            let stays = present.contains(&id);
            if !stays {
                channel.close();
            }
            stays
        });
    }

    fn open_channel(&self, instance: &Instance) -> Channel {
        let shell = self.shell.clone();
        let mut link = InstanceLink { shard: self.shard, instance: instance.clone(), up: false };
        let on_event = move |event| {
            let now = shell.now();
            shell.enter(|engine| link.on_event(engine, event, now));
            shell.poke();
        };
        let clock = self.shell.clone();
        // The shards must not reconnect all at the same time.
        let seed = self.seed ^ (u64::from(instance.id.0) << 32);
        let (channel, task) = channel::open(
            instance.clone(),
            self.settings.backend.clone(),
            self.set.registry(),
            seed,
            move || clock.awake(),
            on_event,
        );
        let shell = self.shell.clone();
        shell.channels.set(shell.channels.get() + 1);
        glommio::spawn_local(async move {
            let mut task = pin!(task);
            poll_fn(|cx| {
                shell.channel_polls.set(shell.channel_polls.get() + 1);
                task.as_mut().poll(cx)
            })
            .await;
            shell.channels.set(shell.channels.get() - 1);
            shell.poke();
        })
        .detach();
        channel
    }
}

/// The link to one instance: turns events of its channel into events of the engine.
struct InstanceLink {
    shard: ShardId,
    instance: Instance,
    /// Whether a connection is ready.
    up: bool,
}

impl InstanceLink {
    fn on_event(&mut self, engine: &mut Engine, event: ChannelEvent, now: Micros) {
        let (shard, instance) = (self.shard.0, &*self.instance.name);
        match event {
            ChannelEvent::Up => {
                self.up = true;
                tracing::info!(shard, instance, "instance_up: the shard is connected to it");
                engine.count(Counter::BackendConnects, 1);
                engine.on_link(self.instance.id, Link::Up, now);
            }
            ChannelEvent::Down { why } => {
                let counter = match std::mem::replace(&mut self.up, false) {
                    true => Counter::BackendDisconnects,
                    false => Counter::BackendConnectFailed,
                };
                tracing::warn!(
                    shard,
                    instance,
                    why,
                    "instance_down: the shard has no connection to it and tries again; check that \
                     it runs and listens on its address"
                );
                engine.count(counter, 1);
                engine.on_link(self.instance.id, Link::Down, now);
            }
            ChannelEvent::Outcome(outcome) => engine.on_outcome(outcome, now),
        }
    }
}
