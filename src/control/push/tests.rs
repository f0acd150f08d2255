//! The doors over real sockets, as any caller sees them, before shards that answer by rules.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use super::*;
use crate::config::Overrides;
use crate::config::load::{Files, from_files};
use crate::config::settings::{GroupRule, Pattern, PushRights, PushTo, PushVerb};
use crate::lanes::{Doorbell, PlaceReceiver, lane_of_places};
use crate::message::Priority;
use crate::push::{Addressees, Counts, Origin, Position, Receipt, ReceiptPart};
use crate::wire::push::generated::push_client::PushClient;
use crate::wire::push::generated::*;

mod grpc;
mod http;

const GAME: &str = "token-of-the-game-server";
const CHAT: &str = "token-of-the-chat-server";
const PATIENCE: Duration = Duration::from_secs(30);
/// Places of a lane.
const PLACES: usize = 100;

fn caller(name: &str, token: &str) -> PushCaller {
    let rights = PushRights {
        tenants: vec![Pattern("*".into())],
        to: KINDS.to_vec(),
        groups: vec![Pattern("room:*".into())],
        joins: Vec::new(),
        may: vec![PushVerb::Push, PushVerb::Join, PushVerb::Read, PushVerb::Disconnect],
    };
    PushCaller {
        name: name.into(),
        token: Some(token.into()),
        token_file: None,
        rights,
        priority_max: Priority::Critical,
        pushes_per_s: 0,
        deliveries_per_s: 0,
    }
}

/// Behaviour of the shards.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Shards {
    /// Every addressee of a user or a session is written; a group has one member on each shard.
    Good,
    /// They take work and say nothing.
    Mute,
    /// They take no work.
    Stuck,
}

/// The doors before two shards.
struct Doors {
    pushes: Arc<Pushes>,
    /// Work that the shards took.
    taken: Arc<AtomicU64>,
    requests: mpsc::Receiver<ControlRequest>,
}

impl Doors {
    fn open(shards: Shards, callers: Vec<PushCaller>) -> Self {
        Self::with(shards, PushSettings { callers, ..PushSettings::default() }, PROOF_TIMEOUT)
    }

    fn with(shards: Shards, mut settings: PushSettings, proof_timeout: Duration) -> Self {
        settings.groups = vec![Arc::new(GroupRule::new("room:*"))];
        let mut config = from_files(Files::embedded(), &[], &Overrides::default()).unwrap();
        config.gateway.push = settings.clone();
        let bells = [Doorbell::new(), Doorbell::new()];
        let (lanes, receivers): (Vec<_>, Vec<_>) =
            bells.iter().map(|bell| lane_of_places(PLACES, bell)).unzip();
        let mut pushes = Pushes::new(&Arc::new(config), lanes, Instant::now()).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (sender, requests) = mpsc::channel(8);
        pushes.serve_with(listener, &settings, sender, proof_timeout).unwrap();
        pushes.set_phase(Phase::Serving);
        let (pushes, taken) = (Arc::new(pushes), Arc::new(AtomicU64::new(0)));
        for ((n, lane), bell) in (0..).zip(receivers).zip(bells) {
            tokio::spawn(shard(ShardId(n), shards, lane, bell, pushes.clone(), taken.clone()));
        }
        Self { pushes, taken, requests }
    }

    fn address(&self) -> SocketAddr {
        self.pushes.address.expect("it listens")
    }

    fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

async fn shard(
    shard: ShardId,
    kind: Shards,
    lane: PlaceReceiver<Submit>,
    bell: Arc<Doorbell>,
    pushes: Arc<Pushes>,
    taken: Arc<AtomicU64>,
) {
    loop {
        poll_fn(|cx| bell.poll_rung(cx)).await;
        if kind == Shards::Stuck {
            continue;
        }
        while let Some(submit) = lane.try_recv() {
            taken.fetch_add(1, Ordering::Relaxed);
            if kind == Shards::Good {
                pushes.take_receipts(told(shard, submit));
            }
        }
    }
}

/// What the shards tell of a piece of work.
fn told(shard: ShardId, submit: Submit) -> Vec<Receipt> {
    let receipt = |number, shard, part| Receipt { number, shard, part };
    let counted = |written| ReceiptPart::Counted {
        counts: Counts { written, offline: 1, kept: 1, ..Counts::default() },
        offline_users: vec!["bob".into()],
        is_duplicate: false,
    };
    match submit {
        Submit::Push(push) => {
            let Origin::Control { number, is_counted } = push.origin else { panic!("{push:?}") };
            match push.to {
                Addressees::Group(group) => {
                    let shards = vec![ShardId(0), ShardId(1)];
                    let position = Position { epoch: 7, offset: 41 };
                    let part = ReceiptPart::Numbered {
                        group,
                        position,
                        is_duplicate: false,
                        shards: shards.clone(),
                    };
                    let counts = shards.into_iter().filter(|_| is_counted);
                    let counts = counts.map(|shard| receipt(number, shard, counted(1)));
                    [receipt(number, shard, part)].into_iter().chain(counts).collect()
                }
                Addressees::Users(users) if is_counted => {
                    vec![receipt(number, shard, counted(users.len() as u64))]
                }
                Addressees::Sessions(_) | Addressees::Tenant | Addressees::Everyone
                    if is_counted =>
                {
                    vec![receipt(number, shard, counted(1))]
                }
                Addressees::Users(_)
                | Addressees::Sessions(_)
                | Addressees::Tenant
                | Addressees::Everyone => Vec::new(),
            }
        }
        Submit::Join { number, groups, .. } => {
            let position = Position { epoch: 7, offset: 41 };
            let positions = groups.into_iter().map(|group| (group, position)).collect();
            let part = ReceiptPart::Joined { joined: 1, offline: 2, positions };
            vec![receipt(number, shard, part)]
        }
        Submit::Leave { number, .. }
        | Submit::Disconnect { number, .. }
        | Submit::Forget { number, .. } => {
            vec![receipt(number, shard, ReceiptPart::Done { done: 1, ended: 1 })]
        }
    }
}
