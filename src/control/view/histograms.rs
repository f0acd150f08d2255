//! `/histograms`: all stages as an HdrHistogram V2 interval log, which the usual tools read
//! (HistogramLogAnalyzer, hdr-plot, `hdrhistogram`'s own readers).

use std::time::Duration;

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use super::{Overview, ProcessInfo, reports};
use crate::stats::Stage;

/// The log, with one line a stage and shard; the interval is the whole time since the start.
pub fn interval_log(info: &ProcessInfo, overview: &Overview) -> Result<String, String> {
    let started = info.started_at();
    let mut log = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let mut writer = IntervalLogWriterBuilder::new()
        .add_comment(&format!("[Histogram log of shardgate {}]", env!("CARGO_PKG_VERSION")))
        .add_comment(
            "Values are microseconds, since the start of the process; the tag is stage-shard.",
        )
        .with_start_time(started)
        .with_base_time(started)
        .begin_log_with(&mut log, &mut serializer)
        .map_err(|error| error.to_string())?;
    for report in reports(overview) {
        for stage in Stage::ALL {
            let tag = format!("{}-{}", stage.name(), report.shard);
            let tag = Tag::new(&tag).expect("a name and a number have neither space nor comma");
            let lasted = info.started.elapsed();
            writer
                .write_histogram(report.histograms.get(stage), Duration::ZERO, lasted, Some(tag))
                .map_err(|error| format!("{error:?}"))?;
        }
    }
    String::from_utf8(log).map_err(|error| error.to_string())
}
