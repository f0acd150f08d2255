//! Dumps: the state of everything, written to files for SIGUSR1 and `POST /dump`, when something is
//! wrong now and is to be analysed later.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::gathering::Overview;
use super::view::{self, ProcessInfo};

/// Dumps of one process; their number is part of the names.
const DUMPS_MAX: u32 = 10_000;

/// Paths of one dump.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DumpFiles {
    /// Interval log of all stages, like `/histograms`.
    pub histograms: PathBuf,
    /// JSON of `/health`, `/stats`, `/services` and `/config`.
    pub state: PathBuf,
}

/// Directory of dumps: `$STATE_DIRECTORY` (systemd), else `$TMPDIR`, else `/tmp`.
pub fn dir() -> PathBuf {
    let given = std::env::var_os("STATE_DIRECTORY").filter(|dir| !dir.is_empty());
    match given.as_ref().and_then(|list| std::env::split_paths(list).next()) {
        Some(first) => first,
        None => std::env::temp_dir(),
    }
}

/// Writes two new files that only the gateway's own user can read.
pub fn write(dir: &Path, info: &ProcessInfo, overview: &Overview) -> io::Result<DumpFiles> {
    let histograms = view::histograms::interval_log(info, overview).map_err(io::Error::other)?;
    let state = json!({
        "health": view::health::health(info, overview).1,
        "stats": view::stats::stats(info, overview),
        "services": view::services::services(overview),
        "config": view::config::config(overview),
    });
    let written = write_new(dir, &histograms, &state.to_string());
    match &written {
        Ok(dumped) => {
            let (histograms, state) = (dumped.histograms.display(), dumped.state.display());
            tracing::warn!(%histograms, %state, "dumped: histograms and state are in these files");
        }
        Err(error) => tracing::error!(
            dir = %dir.display(),
            %error,
            "dump_failed: the files of a dump cannot be written to this directory"
        ),
    }
    written
}

fn write_new(dir: &Path, histograms: &str, state: &str) -> io::Result<DumpFiles> {
    let pid = std::process::id();
    for n in 0..DUMPS_MAX {
        let path = |kind| dir.join(format!("shardgate-{pid}-{n}.{kind}"));
        let dumped = DumpFiles { histograms: path("hlog"), state: path("json") };
        match create(&dumped.histograms, histograms) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(error),
        }
        create(&dumped.state, state)?;
        return Ok(dumped);
    }
    Err(io::Error::other(format!("{DUMPS_MAX} dumps of this process are there: remove some")))
}

fn create(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}
