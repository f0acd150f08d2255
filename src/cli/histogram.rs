//! `shardgate histogram plot`: files of histograms as one chart.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

use super::chart::{CURVES_MAX, Curve, percentiles};
use super::{EXIT_USAGE, Output, percentile_file};
use crate::bench::{NS_PER_US, Record, decoded};

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
    let mut curves: Vec<(&Path, Curve)> = Vec::new();
    for path in &args.files {
        let at = |why: String| format!("{}: {why}", path.display());
        let text = fs::read(path).map_err(|error| at(error.to_string()))?;
        let text = String::from_utf8(text).map_err(|_| at(NO_HISTOGRAM.into()))?;
        let mut found = curves_of(&stem(path), &text).map_err(at)?;
        if found.is_empty() {
            return Err(at(NO_VALUE.into()));
        }
        if !args.stage.is_empty() {
            let known: Vec<String> = found.iter().map(|curve| curve.name.clone()).collect();
            found.retain(|curve| args.stage.contains(&curve.name));
            if found.is_empty() {
                return Err(at(format!("has no such --stage; it has: {}", known.join(", "))));
            }
        }
        curves.extend(found.into_iter().map(|curve| (path.as_path(), curve)));
    }
    if curves.len() > CURVES_MAX {
        let count = curves.len();
        return Err(format!("{count} curves are too many for one chart: choose some with --stage"));
    }
    let names: Vec<String> = args.files.iter().map(|path| file_name(path)).collect();
    if args.files.len() > 1 {
        tell_apart(&mut curves);
    }
    let curves: Vec<Curve> = curves.into_iter().map(|(_, curve)| curve).collect();
    Ok(percentiles(&names.join(", "), &curves))
}

const NO_HISTOGRAM: &str = "holds no histograms: name a file of /histograms, of a dump, of bench \
                            --hgrm or of bench --save";
const NO_VALUE: &str = "holds only empty histograms: nothing was measured yet";

/// Names curves of several files after these: by their paths where the names would be equal.
fn tell_apart(curves: &mut [(&Path, Curve)]) {
    let name = |path: &Path, curve: &Curve, file: String| {
        if curve.name == stem(path) { file } else { format!("{}, {file}", curve.name) }
    };
    let all = curves.iter().map(|(path, curve)| name(path, curve, stem(path)));
    let short: Vec<String> = all.collect();
    for ((path, curve), own) in curves.iter_mut().zip(&short) {
        let is_alone = short.iter().filter(|other| *other == own).count() == 1;
        curve.name = match is_alone {
            true => own.clone(),
            false => name(path, curve, path.display().to_string()),
        };
    }
}

/// Name of a file without its ending.
pub(super) fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The curves of a file's text; `name` is for a file that names none. Empty histograms have none.
fn curves_of(name: &str, text: &str) -> Result<Vec<Curve>, String> {
    if let Some(points) = percentile_file::read(text) {
        let is_full = points.iter().any(|(_, value)| *value > 0.0);
        return Ok(is_full.then(|| Curve { name: name.to_owned(), points }).into_iter().collect());
    }
    if text.trim_start().starts_with('{') {
        let histogram = Record::read(text)?.histogram()?;
        let curve = || Curve::of(name.to_owned(), &histogram, NS_PER_US);
        return Ok((!histogram.is_empty()).then(curve).into_iter().collect());
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
        log_of(&[("whole-0", 100), ("whole-1", 300), ("decode-0", 5), ("stall-0", 0)])
    }

    /// A log of histograms that hold one value each, in microseconds, or none for 0.
    fn log_of(stages: &[(&str, u64)]) -> String {
        let mut bytes = Vec::new();
        let mut serializer = V2DeflateSerializer::new();
        let mut writer = IntervalLogWriterBuilder::new()
            .with_start_time(SystemTime::UNIX_EPOCH)
            .begin_log_with(&mut bytes, &mut serializer)
            .expect("a Vec takes it");
        for &(tag, us) in stages {
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
        let fresh = files(vec![at("fresh", &log_of(&[("whole-0", 0)]))]);
        let none = percentile_file::write(&Histogram::new(3).expect("digits"), 1.0);
        let none = files(vec![at("none", &none)]);
        for (args, why) in [
            (unknown, "it has: decode, whole"),
            (empty, "holds no histograms"),
            (json, "is no run"),
            (gone, "gone: "),
            (fresh, "fresh: holds only empty histograms"),
            (none, "none: holds only empty histograms"),
        ] {
            let said = plot(&args);
            assert_eq!((said.code, said.text.lines().count()), (EXIT_USAGE, 1), "{said:?}");
            assert!(said.text.contains(why), "{said:?}");
        }
    }
    #[test]
    fn files_of_one_name_are_told_apart_by_their_paths() {
        let curve = |name: &str| Curve { name: name.into(), points: vec![(1.0, 1.0)] };
        let [a, b, c] = ["a/now.hlog", "b/now.hlog", "c.hlog"].map(Path::new);
        let mut curves =
            [(a, curve("whole")), (b, curve("whole")), (b, curve("now")), (c, curve("whole"))];
        tell_apart(&mut curves);
        let names = curves.map(|(_, curve)| curve.name);
        assert_eq!(names, ["whole, a/now.hlog", "whole, b/now.hlog", "now", "whole, c"]);
    }
}
