//! Histograms as an HdrHistogram V2 interval log, which the usual tools read (HistogramLogAnalyzer,
//! hdr-plot, `hdrhistogram`'s own readers): for `/histograms`, dumps and the log of intervals.

use std::borrow::Cow;
use std::time::Instant;

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use super::{Overview, ProcessInfo, reports};
use crate::control::marks::Moment;
use crate::ids::ShardId;
use crate::stats::{Histograms, Stage};

/// Values that shards recorded from one moment to another.
pub struct Interval<'a> {
    from: Instant,
    until: Instant,
    shards: Vec<(ShardId, Cow<'a, Histograms>)>,
}

impl<'a> Interval<'a> {
    /// The whole time since the start of the process.
    pub fn whole(info: &ProcessInfo, overview: &'a Overview) -> Self {
        let shards = reports(overview).map(|r| (r.shard, Cow::Borrowed(&r.histograms)));
        Self { from: info.started, until: overview.at, shards: shards.collect() }
    }

    /// The time since `moment`.
    pub fn since(moment: &Moment, overview: &Overview) -> Self {
        let shards = moment.until(overview).into_iter();
        let shards = shards.map(|(shard, histograms)| (shard, Cow::Owned(histograms))).collect();
        Self { from: moment.at, until: overview.at, shards }
    }

    /// A line for each stage and shard; those without a value are left out if `sparse`.
    pub fn lines(&self, info: &ProcessInfo, sparse: bool) -> Result<String, String> {
        let mut log = Vec::new();
        let mut serializer = V2DeflateSerializer::new();
        let mut writer = IntervalLogWriterBuilder::new()
            .begin_log_with(&mut log, &mut serializer)
            .map_err(|error| error.to_string())?;
        let began = self.from.duration_since(info.started);
        let lasted = self.until.duration_since(self.from);
        for (shard, histograms) in &self.shards {
            for stage in Stage::ALL {
                let histogram = histograms.get(stage);
                if sparse && histogram.is_empty() {
                    continue;
                }
                let tag = format!("{}-{shard}", stage.name());
                let tag = Tag::new(&tag).expect("a name and a number have neither space nor comma");
                writer
                    .write_histogram(histogram, began, lasted, Some(tag))
                    .map_err(|error| format!("{error:?}"))?;
            }
        }
        String::from_utf8(log).map_err(|error| error.to_string())
    }

    /// A whole log of the interval. `mark` names its end for the reader's next question.
    pub fn log(&self, info: &ProcessInfo, mark: Option<&str>) -> Result<String, String> {
        let mut log = head(info, mark)?;
        log.push_str(&self.lines(info, false)?);
        Ok(log)
    }
}

/// The head of a log: times in it count from the start of the process.
pub fn head(info: &ProcessInfo, mark: Option<&str>) -> Result<String, String> {
    let started = info.started_at();
    let mut log = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let mut builder = IntervalLogWriterBuilder::new();
    builder
        .add_comment(&format!("[Histogram log of shardgate {}]", env!("CARGO_PKG_VERSION")))
        .add_comment("Values are microseconds; the tag is stage-shard.")
        .with_start_time(started)
        .with_base_time(started);
    if let Some(mark) = mark {
        builder.add_comment(&format!("[Mark: {mark}]"));
    }
    builder.begin_log_with(&mut log, &mut serializer).map_err(|error| error.to_string())?;
    String::from_utf8(log).map_err(|error| error.to_string())
}
