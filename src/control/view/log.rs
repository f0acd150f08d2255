//! `/log`: the log filter in force.

use serde_json::{Value, json};

use crate::control::log;

/// The filter, and the most verbose level that this build can log at all.
pub fn log() -> Value {
    let most = tracing::level_filters::STATIC_MAX_LEVEL;
    json!({ "filter": log::filter(), "max_level": most.to_string().to_lowercase() })
}
