//! Dumps: the state of everything, written to files for SIGUSR1 and `POST /dump`, when something is
//! wrong now and is to be analysed later.

use std::fs::{self, OpenOptions};
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

/// Writes two new files that only the gateway's own user can read: both whole, or none. The error
/// names the file, and the way out.
pub fn write(dir: &Path, info: &ProcessInfo, overview: &Overview) -> io::Result<DumpFiles> {
    let whole = view::histograms::Interval::whole(info, overview);
    let histograms = whole.log(info, None).map_err(io::Error::other)?;
    let state = json!({
        "health": view::health::health(info, overview).1,
        "stats": view::stats::stats(info, overview),
        "services": view::services::services(overview),
        "config": view::config::config(info, overview),
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
        let Some(log) = NewFile::create(path("hlog"), histograms)? else { continue };
        let Some(json) = NewFile::create(path("json"), state)? else { continue };
        let histograms = log.keep()?;
        let state = json.keep().inspect_err(|_| drop(fs::remove_file(&histograms)))?;
        return Ok(DumpFiles { histograms, state });
    }
    let dir = dir.display();
    Err(io::Error::other(format!("{dir} has {DUMPS_MAX} dumps of this process: remove some")))
}

/// A file that is whole and has a temporary name. Without [`NewFile::keep`] it is removed.
struct NewFile {
    path: PathBuf,
    temporary: PathBuf,
}

impl NewFile {
    /// Writes the file that will be at `path`; `None` = there is one already.
    fn create(path: PathBuf, text: &str) -> io::Result<Option<Self>> {
        let temporary = path.with_added_extension("part");
        let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        let mut file = match open {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(error) => return Err(with_way_out(&path, error)),
        };
        let new = Self { path, temporary };
        // Another process of this number (in another container) may have made it in between.
        if new.path.symlink_metadata().is_ok() {
            return Ok(None);
        }
        match file.write_all(text.as_bytes()) {
            Ok(()) => Ok(Some(new)),
            Err(error) => Err(with_way_out(&new.path, error)),
        }
    }

    /// Gives the file its name.
    fn keep(self) -> io::Result<PathBuf> {
        match fs::rename(&self.temporary, &self.path) {
            Ok(()) => Ok(self.path.clone()),
            Err(error) => Err(with_way_out(&self.path, error)),
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // After `keep` there is none.
        let _ = fs::remove_file(&self.temporary);
    }
}

fn with_way_out(path: &Path, error: io::Error) -> io::Error {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    let way_out = match error.kind() {
        StorageFull | QuotaExceeded => {
            "make room there, or name another directory by STATE_DIRECTORY, or else TMPDIR"
        }
        FileTooLarge => "raise the limit of file sizes (`ulimit -f`, LimitFSIZE=)",
        _ => "name a directory that this user can write to by STATE_DIRECTORY, or else TMPDIR",
    };
    io::Error::new(error.kind(), format!("{}: {error}: {way_out}", path.display()))
}
