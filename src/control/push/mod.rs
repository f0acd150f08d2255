//! The doors by which services push: gRPC `shardgate.push.v1.Push` and JSON over HTTP on one port.
//!
//! [`http`] lets callers in and answers JSON, [`service`] answers gRPC; [`send`] makes jobs of
//! pushes, which [`desk`] sends to all their shards or to none, and whose receipts [`receipts`]
//! awaits; [`asks`] are the other calls, of which [`calls`] does the work, and [`reads`] asks the
//! shards; [`feed`] is the long stream of pushes.

mod answer;
mod asks;
mod callers;
mod calls;
mod conns;
mod desk;
mod feed;
mod http;
mod rate;
mod reads;
mod receipts;
mod refusal;
mod rights;
mod send;
mod service;
mod tally;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::mpsc;

pub use self::callers::Caller as CallerInfo;
use self::callers::{Caller, Callers};
pub use self::desk::Phase;
use self::desk::{Desk, Rules};
pub use self::tally::{CallerTally, Door, KINDS, Tally, kind_name};
use super::caller_conns::{Connections, PROOF_TIMEOUT};
use super::request::ControlRequest;
use super::server_tls;
use crate::config::Config;
use crate::config::settings::{PushCaller, PushSettings};
use crate::ids::ShardId;
use crate::lanes::PlaceSender;
use crate::push::{Receipt, Submit};

/// Checks that these callers could be put in force: reads their token files. The error is one line.
pub fn check_callers(callers: &[PushCaller]) -> Result<(), String> {
    Callers::new(callers).map(drop)
}

/// Pushes as control sees them: what it tells the doors, and what they have counted.
pub struct Pushes {
    desk: Arc<Desk>,
    /// Address of the doors, if there are any.
    address: Option<SocketAddr>,
}

/// Callers and counts, for the admin endpoint.
#[derive(Clone, Debug, Default)]
pub struct PushView {
    /// Address of the doors; `None` = there are none.
    pub address: Option<SocketAddr>,
    /// Callers in force.
    pub callers: Vec<Arc<Caller>>,
    /// Counts since the start.
    pub tally: Tally,
    /// Pieces of work whose receipts are awaited.
    pub awaited: usize,
    /// Work that waits in the lane to each shard.
    pub waiting: Vec<usize>,
}

impl Pushes {
    /// Pushes into these lanes, one a shard, by callers of `config`; nobody is let in yet. The
    /// error is one line: a token that cannot be used.
    pub fn new(
        config: &Arc<Config>,
        lanes: Vec<PlaceSender<Submit>>,
        started: Instant,
    ) -> Result<Self, String> {
        let callers = Callers::new(&config.gateway.push.callers)?;
        let rules = Rules { config: config.clone(), callers };
        Ok(Self { desk: Desk::new(lanes, rules, started), address: None })
    }

    /// Opens the doors on `listener`. Runs inside a tokio runtime. The error is one line: a
    /// certificate or a key that cannot be used.
    pub fn serve(
        &mut self,
        listener: std::net::TcpListener,
        settings: &PushSettings,
        requests: mpsc::Sender<ControlRequest>,
    ) -> Result<(), String> {
        self.serve_with(listener, settings, requests, PROOF_TIMEOUT)
    }

    fn serve_with(
        &mut self,
        listener: std::net::TcpListener,
        settings: &PushSettings,
        requests: mpsc::Sender<ControlRequest>,
        proof_timeout: Duration,
    ) -> Result<(), String> {
        let tls = server_tls::acceptor(
            "push",
            settings.tls_cert.as_deref(),
            settings.tls_key.as_deref(),
            &[b"h2", b"http/1.1"],
        )?;
        let wrong = |error| format!("push.listen: {error}");
        listener.set_nonblocking(true).map_err(wrong)?;
        self.address = Some(listener.local_addr().map_err(wrong)?);
        let listener = TcpListener::from_std(listener).map_err(wrong)?;
        let connections =
            Connections::new("push.listen", listener, conns::CONNECTIONS_MAX, proof_timeout);
        let reads = reads::Reads::new(requests);
        tokio::spawn(conns::serve(connections, tls, http::router(&self.desk, reads)));
        Ok(())
    }

    /// Follows a new configuration. If its tokens cannot be read, the callers before it stay.
    pub fn follow(&self, config: &Arc<Config>) {
        match Callers::new(&config.gateway.push.callers) {
            Ok(callers) => {
                let rules = Rules { config: config.clone(), callers };
                self.desk.lock().rules = Arc::new(rules);
            }
            Err(why) => tracing::error!(
                why,
                "push_tokens_refused: the callers before them stay in force; correct \
                 [[push_caller]] and reload again"
            ),
        }
    }

    /// Takes pushes, or none.
    pub fn set_phase(&self, phase: Phase) {
        self.desk.lock().phase.send_replace(phase);
    }

    /// Takes in what a shard tells of work.
    pub fn take_receipts(&self, receipts: Vec<Receipt>) {
        self.desk.lock().take_receipts(receipts);
    }

    /// Notes that a shard has ended: nothing is awaited of it any more.
    pub fn shard_ended(&self, shard: ShardId) {
        self.desk.lock().receipts.shard_ended(shard);
    }

    /// Callers and counts now.
    pub fn view(&self) -> PushView {
        let inner = self.desk.lock();
        PushView {
            address: self.address,
            callers: inner.rules.callers.list().to_vec(),
            tally: inner.tally.clone(),
            awaited: inner.receipts.len(),
            waiting: inner.waiting(),
        }
    }
}
