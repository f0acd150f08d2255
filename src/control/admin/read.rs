//! Handlers of GET, which only show something.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Json;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Admin;
use super::answer::{HttpError, JsonResult, PLAIN, Text, text};
use super::guard::host;
use crate::control::gathering::Overview;
use crate::control::log;
use crate::control::marks::{MARKS_MAX, Moment};
use crate::control::request::ControlRequest;
use crate::control::view;
use crate::control::view::explain::{ExplainParams, Explanation, Subject};
use crate::control::view::explain_group::GroupExplanation;
use crate::control::view::histograms::Interval;
use crate::control::view::live::Mark;
use crate::ids::TenantId;
use crate::inspect::{self, TOP_MAX};
use crate::push::GroupName;

/// Description of the endpoint, OpenAPI 3.1.
pub const OPENAPI: &str = include_str!("../openapi.json");

/// The rule that a group's name in the query has broken.
const NAME_RULE: &str = "the name of a group: 1 to 128 printable ASCII characters without spaces";

pub async fn health(State(admin): State<Admin>) -> Result<(StatusCode, Json<Value>), HttpError> {
    let found = admin.gather().await?;
    let (status, body) = view::health::health(&admin.info, &found);
    Ok((status, Json(body)))
}

pub async fn healthz() -> Text {
    text(PLAIN, "ok\n".into())
}

/// Says no names, as everybody may ask.
pub async fn readyz(State(admin): State<Admin>) -> Result<Text, HttpError> {
    match admin.ask(ControlRequest::Ready).await? {
        true => Ok(text(PLAIN, "ok\n".into())),
        false => {
            let why = "a shard does not serve, or a source of instances is silent since the start; \
                       GET /health shows the states of all";
            Err(HttpError::new(StatusCode::SERVICE_UNAVAILABLE, why))
        }
    }
}

/// Parameters of `/stats` in the query.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatsParams {
    tenant: Option<String>,
}

pub async fn stats(
    State(admin): State<Admin>,
    params: Result<Query<StatsParams>, QueryRejection>,
) -> JsonResult {
    let Query(params) = params.map_err(bad_query)?;
    let found = admin.gather().await?;
    let body = match params.tenant {
        Some(name) => view::tenants::tenant(&found, &name),
        None => Ok(view::stats::stats(&admin.info, &found)),
    };
    body.map(Json).map_err(|why| HttpError::new(StatusCode::NOT_FOUND, why))
}

/// Parameters of `/live` in the query.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiveParams {
    since: Option<String>,
}

pub async fn live(
    State(admin): State<Admin>,
    params: Result<Query<LiveParams>, QueryRejection>,
) -> JsonResult {
    let Query(params) = params.map_err(bad_query)?;
    let mark = match params.since.as_deref().map(Mark::read) {
        None => Mark::default(),
        Some(Some(mark)) => mark.of_run(admin.info.boot_id),
        Some(None) => {
            let why = "since is no mark: show the mark of the last answer, or none";
            return Err(HttpError::new(StatusCode::BAD_REQUEST, why));
        }
    };
    let reading = admin.ask(|reply| ControlRequest::Live(mark.row, reply)).await?;
    let lines = log::recent::since(mark.line);
    Ok(Json(view::live::live(&admin.info, mark, &reading, &lines)))
}

/// Parameters of `/tenants` in the query.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantsParams {
    top: Option<usize>,
}

pub async fn tenants(
    State(admin): State<Admin>,
    params: Result<Query<TenantsParams>, QueryRejection>,
) -> JsonResult {
    let Query(params) = params.map_err(bad_query)?;
    let top = params.top.unwrap_or(view::tenants::TOP_MAX);
    Ok(Json(view::tenants::tenants(&*admin.gather().await?, top)))
}

pub async fn routing_stats(State(admin): State<Admin>) -> JsonResult {
    Ok(Json(view::routing::routing_stats(&*admin.gather().await?)))
}

pub async fn explain(
    State(admin): State<Admin>,
    params: Result<Query<ExplainParams>, QueryRejection>,
) -> JsonResult {
    let Query(params) = params.map_err(bad_query)?;
    let bad = |why: &str| HttpError::new(StatusCode::BAD_REQUEST, why);
    let subject = params.subject().map_err(bad)?;
    let found = admin.gather().await?;
    match subject {
        Subject::Message(message) => {
            let explanation = Explanation::new(&found, &message);
            let result = match explanation.query() {
                Some(query) => admin.inspect(query).await?,
                None => Default::default(),
            };
            Ok(Json(explanation.json(&result)))
        }
        Subject::Group { name, tenant } => {
            let explanation =
                GroupExplanation::new(&found, &name, &tenant).map_err(|_| bad(NAME_RULE))?;
            let result = admin.inspect(explanation.query()).await?;
            Ok(Json(explanation.json(&result)))
        }
    }
}

pub async fn push_callers(State(admin): State<Admin>) -> JsonResult {
    Ok(Json(view::pushes::callers(&admin.gather().await?.pushes)))
}

pub async fn metrics(State(admin): State<Admin>) -> Result<Text, HttpError> {
    let found = admin.gather().await?;
    let body = view::metrics::metrics(&admin.info, &found)
        .map_err(|error| HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, error))?;
    Ok(text("text/plain; version=0.0.4; charset=utf-8", body))
}

pub async fn shards(State(admin): State<Admin>) -> JsonResult {
    Ok(Json(view::services::shards(&*admin.gather().await?)))
}

pub async fn services(State(admin): State<Admin>) -> JsonResult {
    Ok(Json(view::services::services(&*admin.gather().await?)))
}

pub async fn connect(State(admin): State<Admin>, uri: Uri, headers: HeaderMap) -> JsonResult {
    let asked = host(&uri, &headers).and_then(|host| host.parse::<Authority>().ok());
    let host = asked.as_ref().map(Authority::host).filter(|host| !host.is_empty());
    Ok(Json(view::connect::connect(&admin.info, &*admin.gather().await?, host)))
}

/// Parameters of `/connections` in the query.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionsParams {
    top: Option<usize>,
    session: Option<String>,
}

pub async fn connections(
    State(admin): State<Admin>,
    params: Result<Query<ConnectionsParams>, QueryRejection>,
) -> JsonResult {
    let Query(params) = params.map_err(bad_query)?;
    let found = admin.gather().await?;
    let query = match (params.session, params.top) {
        (Some(session), _) => Some(inspect::Query::Session(session)),
        (None, Some(top)) => Some(inspect::Query::TopTalkers(top.min(TOP_MAX))),
        (None, None) => None,
    };
    let inspected = match query {
        Some(query) => Some((query.clone(), admin.inspect(query).await?)),
        None => None,
    };
    let inspected = inspected.as_ref().map(|(query, result)| (query, result));
    let body = view::connections::connections(&found, inspected);
    body.map(Json).map_err(|why| HttpError::new(StatusCode::NOT_FOUND, why))
}

/// Parameters of `/groups` in the query.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupsParams {
    top: Option<usize>,
    name: Option<String>,
    tenant: Option<String>,
}

pub async fn groups(
    State(admin): State<Admin>,
    params: Result<Query<GroupsParams>, QueryRejection>,
) -> JsonResult {
    let Query(params) = params.map_err(bad_query)?;
    let found = admin.gather().await?;
    let tenant = TenantId::of(params.tenant.as_deref().unwrap_or_default());
    let names = match (&params.name, params.top) {
        (Some(name), _) => {
            let bad = |_| HttpError::new(StatusCode::BAD_REQUEST, NAME_RULE);
            vec![GroupName::new(tenant, name).map_err(bad)?]
        }
        (None, Some(top)) => {
            let top = top.min(TOP_MAX);
            view::groups::largest(&admin.inspect(inspect::Query::TopGroups(top)).await?, top)
        }
        (None, None) => return Ok(Json(view::groups::groups(&found, None))),
    };
    let result = admin.inspect(inspect::Query::GroupDetails(names.clone())).await?;
    let body = view::groups::groups(&found, Some((&names, &result)));
    match params.name {
        Some(name) if body["top"] == json!([]) => {
            let why = format!("no shard knows a group {name:?}: it has neither members nor pushes");
            Err(HttpError::new(StatusCode::NOT_FOUND, why))
        }
        Some(_) | None => Ok(Json(body)),
    }
}

/// Parameters of `/histograms` in the query.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistogramsParams {
    since: Option<String>,
}

pub async fn histograms(
    State(admin): State<Admin>,
    params: Result<Query<HistogramsParams>, QueryRejection>,
) -> Result<Text, HttpError> {
    let Query(params) = params.map_err(bad_query)?;
    let found = admin.gather().await?;
    let log = match params.since {
        Some(since) => histograms_since(&admin, &since, &found)?,
        None => Interval::whole(&admin.info, &found).log(&admin.info, None),
    };
    let body = log.map_err(|error| HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, error))?;
    Ok(text(PLAIN, body))
}

/// The log since a mark of this run, or since the start, with the next mark.
fn histograms_since(
    admin: &Admin,
    since: &str,
    found: &Overview,
) -> Result<Result<String, String>, HttpError> {
    let Admin { info, marks, .. } = admin;
    let mut marks = marks.lock().expect("nobody panics with it");
    let (interval, before) = match since {
        "start" => (Interval::whole(info, found), None),
        _ => {
            let run = format!("{:x}-", info.boot_id);
            let number = since.strip_prefix(&run).and_then(|number| number.parse().ok());
            let Some(moment) = number.and_then(|number| marks.show(number)) else {
                let shown: String = since.chars().take(64).collect();
                let why = format!(
                    "mark {shown:?} is not among the last {MARKS_MAX} of this run: begin again \
                     with since=start, and then show the mark of each answer"
                );
                return Err(HttpError::new(StatusCode::GONE, why));
            };
            (Interval::since(moment, found), number)
        }
    };
    let mark = marks.set(before, Moment::of(found));
    Ok(interval.log(info, Some(&format!("{:x}-{mark}", info.boot_id))))
}

pub async fn config(State(admin): State<Admin>) -> JsonResult {
    Ok(Json(view::config::config(&admin.info, &*admin.gather().await?)))
}

pub async fn log_filter() -> JsonResult {
    Ok(Json(view::log::log()))
}

pub async fn openapi() -> Text {
    text("application/json", OPENAPI.into())
}

pub(super) fn bad_query(error: QueryRejection) -> HttpError {
    HttpError::new(StatusCode::BAD_REQUEST, error.body_text())
}
