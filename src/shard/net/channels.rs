//! Channels to instances, one task each: opened and closed as instances come and go.

use std::collections::HashSet;
use std::future::poll_fn;
use std::pin::pin;

use crate::backend::channel::{self, Channel, ChannelEvent, DownCause};
use crate::engine::Engine;
use crate::engine::dispatcher::instances::Link;
use crate::engine::pace::Pace;
use crate::ids::{InstanceId, ShardId};
use crate::mailbox::ShardConfig;
use crate::message::{CallError, CallFault, Micros};
use crate::routing::{Instance, Mode, Service, Snapshot};
use crate::shard::net::Net;
use crate::stats::Counter;

impl Net {
    /// Opens channels to new instances, closes those to instances that are gone.
    pub(super) fn open_channels(&mut self, snapshot: &Snapshot) {
        for instance in &snapshot.instances {
            if self.channels.get(instance.id).is_none() {
                let service = &snapshot.services[usize::from(instance.service.0)];
                let channel = self.open_channel(instance, service);
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

    /// Puts other TLS settings of services in force: their connections are replaced.
    pub(super) fn secure_channels(&mut self, published: &ShardConfig) {
        let ShardConfig { snapshot, service_tls: new, .. } = published;
        for instance in &snapshot.instances {
            let service = &snapshot.services[usize::from(instance.service.0)].name;
            if let Some(channel) = self.channels.get(instance.id)
                && !new.same(&self.service_tls, service)
            {
                channel.secure(new.of(service).cloned());
            }
        }
        self.service_tls.clone_from(new);
    }

    fn open_channel(&self, instance: &Instance, service: &Service) -> Channel {
        let shell = self.shell.clone();
        let mut link = InstanceLink {
            shard: self.shard,
            instance: instance.clone(),
            mode: service.mode,
            state: ConnectionState::Down,
            warnings: Pace::default(),
        };
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
            self.service_tls.of(&service.name).cloned(),
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
    mode: Mode,
    state: ConnectionState,
    /// Warnings about answers.
    warnings: Pace,
}

/// The connection to an instance, as it was last told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ConnectionState {
    /// There is none.
    Down,
    /// It is ready.
    Up,
    /// It stays, and nothing is heard on it.
    Silent,
}

/// Least time between two warnings about answers of one instance: one a second is enough to see
/// that it goes on, and a flood of them would cost the shard more than the messages do.
const WARN_EVERY_US: u64 = 1_000_000;

impl InstanceLink {
    fn on_event(&mut self, engine: &mut Engine, event: ChannelEvent, now: Micros) {
        let (shard, instance) = (self.shard.0, &*self.instance.name);
        match event {
            ChannelEvent::Up(address) => {
                if self.state == ConnectionState::Silent {
                    tracing::info!(
                        shard,
                        instance,
                        "instance_heard: it gives a sign of life again"
                    );
                } else {
                    tracing::info!(
                        shard,
                        instance,
                        %address,
                        "instance_up: the shard is connected to it"
                    );
                    engine.count(Counter::BackendConnects, 1);
                }
                self.state = ConnectionState::Up;
                engine.on_link(self.instance.id, Link::Up, "", now);
            }
            ChannelEvent::Down { cause: DownCause::Silent, why } => {
                tracing::warn!(
                    shard,
                    instance,
                    why,
                    "instance_silent: it answers neither calls nor a PING, so its messages go to \
                     other instances until a byte comes; check whether it hangs"
                );
                self.state = ConnectionState::Silent;
                engine.on_link(self.instance.id, Link::Down, &why, now);
            }
            ChannelEvent::Down { cause, why } => {
                let counter = match self.state {
                    ConnectionState::Up | ConnectionState::Silent => Counter::BackendDisconnects,
                    ConnectionState::Down => Counter::BackendConnectFailed,
                };
                self.state = ConnectionState::Down;
                engine.count(counter, 1);
                self.tell_down(cause, &why);
                if cause == DownCause::Broken {
                    engine.on_connection_broken(self.instance.id, now);
                }
                engine.on_link(self.instance.id, Link::Down, &why, now);
            }
            ChannelEvent::NotReplaced { why } => {
                tracing::warn!(
                    shard,
                    instance,
                    why,
                    "instance_not_replaced: a connection is to be replaced, by its age or after a \
                     reload, and no other can be made; it stays in use meanwhile"
                );
                engine.count(Counter::BackendConnectFailed, 1);
            }
            ChannelEvent::Alive => engine.on_alive(self.instance.id, now),
            ChannelEvent::Outcome(outcome) => {
                if let Err(error) = &outcome.result {
                    self.warn_of(error, now);
                }
                engine.on_outcome(outcome, now);
            }
        }
    }

    /// Logs that there is no connection.
    fn tell_down(&self, cause: DownCause, why: &str) {
        let (shard, instance) = (self.shard.0, &*self.instance.name);
        if cause == DownCause::GoneAway {
            tracing::info!(
                shard,
                instance,
                why,
                "instance_away: it closed its connections in order, and the shard tries \
                 again; other instances get its messages until it is back"
            );
        } else {
            tracing::warn!(
                shard,
                instance,
                why,
                "instance_down: the shard has no connection to it and tries again; check \
                 that it runs and listens on its address"
            );
        }
    }

    /// Warns of an end of a call that only a person can mend, at most once a second.
    fn warn_of(&mut self, error: &CallError, now: Micros) {
        let is_bad = matches!(error.fault, CallFault::BadReply | CallFault::TooLarge);
        let is_wrong = error.is_unimplemented() && self.mode == Mode::Batch;
        if !is_bad && !is_wrong {
            return;
        }
        let Some(count) = self.warnings.note(WARN_EVERY_US, now) else { return };
        let (shard, instance, why) = (self.shard.0, &*self.instance.name, &*error.message);
        if is_bad {
            tracing::warn!(
                shard,
                instance,
                why,
                count,
                "service_answer_unusable: its answer to a call cannot be used, so the messages of \
                 the call got BAD_SERVICE_REPLY; mend the service"
            );
        } else {
            let address = &self.instance.addresses;
            tracing::warn!(
                shard,
                instance,
                %address,
                why,
                count,
                "service_wrong: the server there does not implement shardgate.backend.v1.Backend; \
                 check the address, or give the service mode = \"unary\""
            );
        }
    }
}
