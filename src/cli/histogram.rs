//! `shardgate histogram plot`: files of histograms as one chart.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

use super::chart::{CURVES_MAX, Curve, percentiles};
use super::{EXIT_USAGE, Output, percentile_file};
use crate::bench::{Record, decoded};

/// Nanoseconds in a microsecond: the histograms of stored runs hold nanoseconds, the gateway's
/// microseconds.
const NS_PER_US: f64 = 1000.0;

/// Flags of `shardgate histogram plot`.
#[derive(clap::Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct PlotArgs {
    /// Files: of /histograms or a dump (.hlog), of bench --hgrm, or of bench --save
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Stage to show, e.g. whole; several times for several [default: all]
    #[arg(long, value_name = "STAGE")]
    stage: Vec<String>,
    /// File for the chart [default: standard output]
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Draws the histograms of the files.
pub fn plot(args: &PlotArgs) -> Output {
    match chart(args) {
        Err(why) => Output::wrong(why, EXIT_USAGE),
        Ok(text) => match &args.svg {
            None => Output::fine(text),
            Some(path) => match fs::write(path, text) {
                Ok(()) => Output::fine(format!("wrote {}", path.display())),
                Err(error) => Output::wrong(
                    format!("{}: {error}; name another file with --svg", path.display()),
                    EXIT_USAGE,
                ),
            },
        },
    }
}

fn chart(args: &PlotArgs) -> Result<String, String> {
    let mut curves = Vec::new();
    for path in &args.files {
        let at = |why: String| format!("{}: {why}", path.display());
        let text = fs::read(path).map_err(|error| at(error.to_string()))?;
        let text = String::from_utf8(text).map_err(|_| at(NO_HISTOGRAM.into()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let mut found = curves_of(&name, &text).map_err(at)?;
        if !args.stage.is_empty() {
            let known: Vec<String> = found.iter().map(|curve| curve.name.clone()).collect();
            found.retain(|curve| args.stage.contains(&curve.name));
            if found.is_empty() {
                return Err(at(format!("has no such --stage; it has: {}", known.join(", "))));
            }
        }
        if args.files.len() > 1 {
            found.iter_mut().for_each(|curve| curve.name = named(&name, &curve.name));
        }
        curves.append(&mut found);
    }
    if curves.len() > CURVES_MAX {
        let count = curves.len();
        return Err(format!("{count} curves are too many for one chart: choose some with --stage"));
    }
    let names: Vec<String> = args.files.iter().map(|path| file_name(path)).collect();
    Ok(percentiles(&names.join(", "), &curves))
}

const NO_HISTOGRAM: &str = "holds no histograms: name a file of /histograms, of a dump, of bench \
                            --hgrm or of bench --save";

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Name of a curve of one of several files.
fn named(file: &str, curve: &str) -> String {
    if file == curve { file.to_owned() } else { format!("{curve}, {file}") }
}

/// The curves of a file's text; `name` is for a file that names none. Empty histograms have none.
fn curves_of(name: &str, text: &str) -> Result<Vec<Curve>, String> {
    if let Some(points) = percentile_file::read(text) {
        return Ok(vec![Curve { name: name.to_owned(), points }]);
    }
    if text.trim_start().starts_with('{') {
        let histogram = Record::read(text)?.histogram()?;
        return Ok(vec![Curve::of(name.to_owned(), &histogram, NS_PER_US)]);
    }
    let mut by_stage: BTreeMap<String, Histogram<u64>> = BTreeMap::new();
    for entry in IntervalLogIterator::new(text.as_bytes()) {
        let LogEntry::Interval(interval) = entry.map_err(|_| NO_HISTOGRAM)? else { continue };
        let histogram = decoded(interval.encoded_histogram())?;
        let stage = interval.tag().map_or(name, |tag| stage_of(tag.as_str())).to_owned();
        match by_stage.get_mut(&stage) {
            Some(sum) => sum.add(&histogram).map_err(|error| error.to_string())?,
            None => drop(by_stage.insert(stage, histogram)),
        }
    }
    if by_stage.is_empty() {
        return Err(NO_HISTOGRAM.into());
    }
    let full = by_stage.into_iter().filter(|(_, histogram)| !histogram.is_empty());
    Ok(full.map(|(stage, histogram)| Curve::of(stage, &histogram, 1.0)).collect())
}

/// The stage of a tag `stage-shard`: shards are added up.
fn stage_of(tag: &str) -> &str {
    match tag.rsplit_once('-') {
        Some((stage, shard)) if shard.bytes().all(|byte| byte.is_ascii_digit()) => stage,
        _ => tag,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use hdrhistogram::serialization::V2DeflateSerializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

    use super::*;

    /// A log like that of a gateway with two shards, in which one stage is empty.
    fn log() -> String {
        let mut bytes = Vec::new();
        let mut serializer = V2DeflateSerializer::new();
        let mut writer = IntervalLogWriterBuilder::new()
            .with_start_time(SystemTime::UNIX_EPOCH)
            .begin_log_with(&mut bytes, &mut serializer)
            .expect("a Vec takes it");
        for (tag, us) in [("whole-0", 100), ("whole-1", 300), ("decode-0", 5), ("stall-0", 0)] {
            let mut histogram = Histogram::<u64>::new_with_bounds(1, 1_000_000, 2).expect("bounds");
            if us > 0 {
                histogram.record(us).expect("in bounds");
            }
            let (second, tag) = (Duration::from_secs(1), Tag::new(tag));
            writer.write_histogram(&histogram, Duration::ZERO, second, tag).expect("written");
        }
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn a_log_has_a_curve_for_each_stage_over_all_shards() {
        let curves = curves_of("file", &log()).expect("a log");
        let names: Vec<&str> = curves.iter().map(|curve| &*curve.name).collect();
        assert_eq!(names, ["decode", "whole"]);
        let (first, last) = (curves[1].points[0], *curves[1].points.last().expect("two"));
        assert!(first.1 < 102.0 && last.1 >= 300.0, "{:?}", curves[1]);
    }

    #[test]
    fn files_are_drawn_together_and_wrong_ones_are_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).expect("our directory");
            path
        };
        let (one, two) = (at("one.hlog", &log()), at("two.hlog", &log()));
        let svg = dir.path().join("chart.svg");
        let args = PlotArgs {
            files: vec![one.clone(), two],
            stage: vec!["whole".into()],
            svg: Some(svg.clone()),
        };
        let said = plot(&args);
        assert_eq!((said.code, said.text.starts_with("wrote ")), (0, true), "{said:?}");
        let text = fs::read_to_string(svg).expect("written");
        assert!(text.contains(">whole, one<") && text.contains(">whole, two<"), "{text}");
        let files = |files| PlotArgs { files, ..PlotArgs::default() };
        let unknown = PlotArgs { stage: vec!["x".into()], ..files(vec![one]) };
        let empty = files(vec![at("empty", "")]);
        let json = files(vec![at("a.json", "{}")]);
        let gone = files(vec![dir.path().join("gone")]);
        for (args, why) in [
            (unknown, "it has: decode, whole"),
            (empty, "holds no histograms"),
            (json, "is no run"),
            (gone, "gone: "),
        ] {
            let said = plot(&args);
            assert_eq!((said.code, said.text.lines().count()), (EXIT_USAGE, 1), "{said:?}");
            assert!(said.text.contains(why), "{said:?}");
        }
    }
}
