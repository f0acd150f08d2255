//! `shardgate bench`: puts load on a gateway, measures its answers, and shows, stores and compares
//! what came of it.

mod options;
mod report;

use std::fs::{self, OpenOptions};
use std::path::{Path, absolute};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::chart::{Curve, percentiles};
use super::histogram::stem;
use super::{EXIT_START, EXIT_USAGE, Form, Output, percentile_file};
use crate::bench::{NS_PER_US, Record, run};
use crate::config::{Config, Problems};

pub use options::BenchArgs;

/// Makes a run, and shows it. `loaded` is asked for the gateway's address if no URL is given.
pub fn bench(
    args: &BenchArgs,
    form: Form,
    loaded: impl FnOnce() -> Result<Config, Problems>,
) -> Output {
    let planned = args.plan(loaded).and_then(|plan| {
        check_files(args)?;
        let before = args.vs.as_deref().map(read).transpose()?;
        Ok((plan, before))
    });
    let (plan, before) = match planned {
        Ok(planned) => planned,
        Err(why) => return Output::wrong(why, EXIT_USAGE),
    };
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second one ends the program at once. Without the signals it runs to its end.
        let _ = flag::register_conditional_default(signal, stop.clone());
        let _ = flag::register(signal, stop.clone());
    }
    let record = match run(plan, &stop) {
        Ok(record) => record,
        Err(why) => return Output::wrong(why, EXIT_START),
    };
    let text = match form {
        Form::Text => report::text(&record, before.as_ref()),
        Form::Json => serde_json::to_string_pretty(&record).expect("plain fields serialise"),
    };
    let code = if record.ok == 0 { EXIT_START } else { 0 };
    match write_files(args, &record, before.as_ref()) {
        Ok(aside) => Output { aside, ..Output::wrong(text, code) },
        Err(why) => Output { aside: why, ..Output::wrong(text, EXIT_START) },
    }
}

/// Checks before the run that what is written after it has a place, each of its own.
fn check_files(args: &BenchArgs) -> Result<(), String> {
    let mut seen = Vec::new();
    for path in [&args.save, &args.hgrm, &args.svg].into_iter().flatten() {
        let name = path.display();
        let whole = absolute(path).map_err(|error| format!("{name}: {error}"))?;
        if seen.contains(&whole) {
            return Err(format!("{name}: two options name this file; name another one"));
        }
        seen.push(whole);
        let is_new = !path.exists();
        // What is there stays as it is until the run is made.
        let opened = OpenOptions::new().append(true).create(true).open(path);
        opened.map_err(|error| {
            format!("{name}: no file can be written there ({error}); name another one")
        })?;
        if is_new {
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

/// Reads a stored run.
fn read(path: &Path) -> Result<Record, String> {
    let at = |why: String| format!("--vs {}: {why}", path.display());
    let text = fs::read_to_string(path).map_err(|error| at(error.to_string()))?;
    Record::read(&text).map_err(at)
}

/// Writes the files that were asked for; returns a line about each.
fn write_files(
    args: &BenchArgs,
    record: &Record,
    before: Option<&Record>,
) -> Result<String, String> {
    let histogram = record.histogram()?;
    let mut wanted = Vec::new();
    if let Some(path) = &args.save {
        wanted.push((path, serde_json::to_string_pretty(record).expect("plain fields serialise")));
    }
    if let Some(path) = &args.hgrm {
        wanted.push((path, percentile_file::write(&histogram, NS_PER_US)));
    }
    if let Some(path) = &args.svg {
        let mut curves = vec![Curve::of("this run".into(), &histogram, NS_PER_US)];
        if let (Some(before), Some(file)) = (before, &args.vs) {
            curves.push(Curve::of(stem(file), &before.histogram()?, NS_PER_US));
        }
        wanted.push((path, percentiles(&record.load, &curves)));
    }
    let mut lines = String::new();
    for (path, text) in wanted {
        let name = path.display();
        fs::write(path, text).map_err(|error| format!("{name}: {error}; name another file"))?;
        lines += &format!("wrote {name}\n");
    }
    Ok(lines.trim_end().to_owned())
}
