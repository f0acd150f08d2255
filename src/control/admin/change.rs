//! Handlers of POST, which change something. They take the token, and a body of JSON or none.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Json;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::Admin;
use super::answer::{HttpError, Text, text};
use super::read::bad_query;
use crate::config::change::Change;
use crate::control::request::ControlRequest;
use crate::control::traces::TraceRefusal;
use crate::control::{log, view};
use crate::ids::ShardId;
use crate::trace::MS_MAX;

/// An answer of a status and JSON, or an error.
type Changed = Result<(StatusCode, Json<Value>), HttpError>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    filter: String,
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, HttpError> {
    let wrong = |e| {
        HttpError::new(
            StatusCode::BAD_REQUEST,
            format!("the body is not the JSON of this path: {e}"),
        )
    };
    serde_json::from_slice(body).map_err(wrong)
}

/// Accepts an absent body, or `{}`.
fn nothing(body: &[u8]) -> Result<(), HttpError> {
    if body.trim_ascii().is_empty() {
        return Ok(());
    }
    match read::<Map<String, Value>>(body)?.keys().next() {
        None => Ok(()),
        // A key that means something to the client must not be ignored in silence.
        Some(key) => {
            let shown: String = key.chars().take(64).collect();
            let why = format!("this path takes no key, so not {shown:?}: send {{}} or no body");
            Err(HttpError::new(StatusCode::BAD_REQUEST, why))
        }
    }
}

pub async fn reload(State(admin): State<Admin>, body: Bytes) -> Changed {
    nothing(&body)?;
    let lines = |list: &[crate::config::Problem]| -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    };
    Ok(match admin.ask(ControlRequest::Reload).await? {
        Ok(done) => {
            let change = |c: &Change| json!({ "key": c.key, "old": c.old, "new": c.new });
            let body = json!({
                "version": done.version,
                "changes": done.changes.iter().map(change).collect::<Vec<_>>(),
                "warnings": lines(&done.warnings),
            });
            (StatusCode::OK, Json(body))
        }
        Err(problems) => {
            let body = json!({ "problems": lines(&problems) });
            (StatusCode::UNPROCESSABLE_ENTITY, Json(body))
        }
    })
}

pub async fn drain_instance(
    State(admin): State<Admin>,
    Path(id): Path<String>,
    body: Bytes,
) -> Changed {
    set_draining(&admin, id, true, &body).await
}

pub async fn undrain_instance(
    State(admin): State<Admin>,
    Path(id): Path<String>,
    body: Bytes,
) -> Changed {
    set_draining(&admin, id, false, &body).await
}

async fn set_draining(admin: &Admin, id: String, on: bool, body: &[u8]) -> Changed {
    nothing(body)?;
    let name = id.clone();
    if admin.ask(|done| ControlRequest::DrainInstance { name, on, done }).await? {
        return Ok((StatusCode::OK, Json(json!({ "instance": id, "draining": on }))));
    }
    let shown: String = id.chars().take(64).collect();
    let why = format!("no instance has the id {shown:?}: GET /services lists those that are there");
    Err(HttpError::new(StatusCode::NOT_FOUND, why))
}

pub async fn drain(State(admin): State<Admin>, body: Bytes) -> Changed {
    nothing(&body)?;
    let drain = ControlRequest::Drain("POST /drain");
    admin.requests.send(drain).await.map_err(|_| HttpError::ending())?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "status": "draining" }))))
}

pub async fn log(body: Bytes) -> Changed {
    let Filter { filter } = read(&body)?;
    if log::filter().is_none() {
        let why = "logging is not set up in this process";
        return Err(HttpError::new(StatusCode::SERVICE_UNAVAILABLE, why));
    }
    log::set_filter(&filter)
        .map_err(|why| HttpError::new(StatusCode::UNPROCESSABLE_ENTITY, why))?;
    Ok((StatusCode::OK, Json(view::log::log())))
}

/// Parameters of `/trace` in the query.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceParams {
    #[serde(default)]
    shard: u16,
    #[serde(default = "TraceParams::usual_ms")]
    ms: u64,
}

impl TraceParams {
    /// A second: some thousand turns at ordinary load.
    fn usual_ms() -> u64 {
        1_000
    }
}

pub async fn trace(
    State(admin): State<Admin>,
    params: Result<Query<TraceParams>, QueryRejection>,
    body: Bytes,
) -> Result<Text, HttpError> {
    let Query(TraceParams { shard, ms }) = params.map_err(bad_query)?;
    nothing(&body)?;
    if !(1..=MS_MAX).contains(&ms) {
        let why = format!("ms is {ms}, and must be 1 to {MS_MAX}");
        return Err(HttpError::new(StatusCode::BAD_REQUEST, why));
    }
    let (shard, lasts) = (ShardId(shard), Duration::from_millis(ms));
    let trace = admin.ask(|reply| ControlRequest::Trace { shard, lasts, reply }).await?;
    match trace {
        Ok(trace) => {
            // Megabytes, for which this thread would answer nobody else.
            let written = move || view::trace::json(&admin.info, &trace);
            let written = tokio::task::spawn_blocking(written).await;
            let written = written.map_err(|error| {
                HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            })?;
            Ok(text("application/json", written))
        }
        Err(refusal) => Err(refused(shard, refusal)),
    }
}

fn refused(shard: ShardId, refusal: TraceRefusal) -> HttpError {
    let (status, why) = match refusal {
        TraceRefusal::NoSuchShard(count) => {
            let last = count - 1;
            let why = format!("there is no shard {shard}; the shards are 0 to {last}");
            (StatusCode::NOT_FOUND, why)
        }
        TraceRefusal::NotServing => {
            let why = format!(
                "shard {shard} does not serve: /health says why; ask again when it is ready, or \
                 for another shard"
            );
            (StatusCode::SERVICE_UNAVAILABLE, why)
        }
        TraceRefusal::Busy => {
            let why = format!(
                "shard {shard} is being traced, or too many others are: ask again in some seconds"
            );
            (StatusCode::CONFLICT, why)
        }
    };
    HttpError::new(status, why)
}

pub async fn dump(State(admin): State<Admin>, body: Bytes) -> Changed {
    nothing(&body)?;
    let dumped = admin.ask(ControlRequest::Dump).await?.map_err(|error| {
        HttpError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the files of the dump cannot be written: {error}"),
        )
    })?;
    let body = json!({
        "histograms": dumped.histograms.to_string_lossy(),
        "state": dumped.state.to_string_lossy(),
    });
    Ok((StatusCode::OK, Json(body)))
}
