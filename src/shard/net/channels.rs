//! The channels to instances, one task each: opened and closed as instances come and go.

use std::collections::HashSet;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;

use crate::backend::channel::{self, Channel, ChannelEvent};
use crate::engine::dispatcher::instances::Link;
use crate::ids::InstanceId;
use crate::routing::{Instance, Snapshot};
use crate::shard::net::Net;
use crate::stats::Counter;

impl Net {
    /// Opens channels to new instances, closes those to instances that are gone.
    pub(super) fn open_channels(&mut self, snapshot: &Arc<Snapshot>) {
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
        let id = instance.id;
        let name = instance.name.clone();
        let shard = self.init.engine.shard.0;
        let settings = self.init.engine.settings.backend.clone();
        // Shards must not reconnect in step.
        let seed = self.init.engine.seed ^ (u64::from(id.0) << 32);
        let registry = self.set.registry();
        let clock = self.shell.clone();
        let shell = self.shell.clone();
        let mut up = false;
        let on_event = move |event| {
            let now = shell.now();
            match event {
                ChannelEvent::Up => {
                    up = true;
                    tracing::info!(shard, instance = &*name, "instance_up");
                    shell.enter(|engine| {
                        engine.count(Counter::BackendConnects, 1);
                        engine.on_link(id, Link::Up, now);
                    });
                }
                ChannelEvent::Down { why } => {
                    let counter = match std::mem::replace(&mut up, false) {
                        true => Counter::BackendDisconnects,
                        false => Counter::BackendConnectFailed,
                    };
                    tracing::warn!(
                        shard,
                        instance = &*name,
                        why,
                        "instance_down: see that it runs and listens there; it is tried again"
                    );
                    shell.enter(|engine| {
                        engine.count(counter, 1);
                        engine.on_link(id, Link::Down, now);
                    });
                }
                ChannelEvent::Outcome(outcome) => {
                    shell.enter(|engine| engine.on_outcome(outcome, now));
                }
            }
            shell.poke();
        };
        let (channel, task) = channel::open(
            instance.clone(),
            settings,
            registry,
            seed,
            move || clock.now(),
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
