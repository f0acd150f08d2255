//! The control thread. It owns no state of a shard: it watches the shards, keeps the directory of
//! services and publishes what changes, answers the admin endpoint, and stops the shards in order.

mod active_config;
mod admin;
mod caller_conns;
mod caller_tokens;
mod certificates;
pub(crate) mod compose;
mod directory;
pub mod discovery;
mod dump;
mod event_loop;
mod exit;
mod fleet;
mod gathering;
mod headers;
mod health;
mod histogram_log;
mod inputs;
mod inspections;
mod jwks;
pub(crate) mod jwks_fetch;
pub(crate) mod live;
pub(crate) mod log;
pub(crate) mod marks;
mod probe;
pub mod push;
mod quotas;
mod ready;
mod request;
mod server_tls;
mod service_manager;
mod shards;
mod signals;
mod slots;
mod source_tables;
mod sources;
mod stop_bound;
#[cfg(test)]
mod tests;
pub(crate) mod token;
mod token_keys;
mod traces;
mod view;

use std::time::Instant;

use tokio::sync::mpsc;

pub(crate) use self::exit::ExitReason;
pub(crate) use self::inputs::{ControlInputs, Cores, Listens, LocalFiles};
use self::request::REQUESTS_MAX;

/// Runs control on the calling thread until the shards have stopped, or are given up. The first
/// SIGTERM or SIGINT drains, the second ends at once; SIGHUP reads the files again, SIGUSR1 dumps.
pub(crate) fn run(inputs: ControlInputs) -> ExitReason {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.and_then(|runtime| {
        runtime.block_on(async {
            let (sender, requests) = mpsc::channel(REQUESTS_MAX);
            signals::forward(sender.clone())?;
            event_loop::serve(inputs, sender, requests).await
        })
    });
    result.unwrap_or_else(|error| {
        tracing::error!(%error, "control_failed: control cannot run, so the process ends with 1");
        ExitReason::ControlFailed
    })
}

/// Sleeps until `at`, or for ever.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
