//! The log of intervals (`[histograms]`): every so many seconds the times that the stages took in
//! these are appended to a file, as an HdrHistogram V2 interval log.
//!
//! The file is bounded: a full one, and that of an earlier run, is renamed to `.1` in the place of
//! the one before.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::dump;
use super::gathering::Overview;
use super::marks::Moment;
use super::view::ProcessInfo;
use super::view::histograms::{Interval, head};
use crate::config::settings::HistogramSettings;

/// Bytes of a full file: two of them are 128 MiB on the disk.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// A file that is appended to.
#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

/// The log, as far as it was written.
#[derive(Debug, Default)]
pub struct HistogramLog {
    /// End of the interval; `None` = the log is off.
    next: Option<Instant>,
    /// Whether the next overview ends an interval.
    awaited: bool,
    /// Begin of the interval; `None` = it begins with the next overview.
    before: Option<Moment>,
    file: Option<LogFile>,
    /// Whether the last interval could not be written. That is told once.
    failed: bool,
}

impl HistogramLog {
    /// Whether an interval has ended, so that the shards are to be asked.
    pub fn is_due(&mut self, settings: &HistogramSettings, now: Instant) -> bool {
        if settings.every.is_zero() {
            *self = Self::default();
            return false;
        }
        // A shorter interval holds at once.
        if self.next.is_some_and(|at| at.min(now + settings.every) > now) {
            self.next = self.next.min(Some(now + settings.every));
            return false;
        }
        self.next = Some(now + settings.every);
        self.awaited = true;
        true
    }

    /// End of the interval.
    pub fn due(&self) -> Option<Instant> {
        self.next
    }

    /// Takes in the state of the shards, and writes the interval if it has ended.
    pub fn take(&mut self, settings: &HistogramSettings, info: &ProcessInfo, overview: &Overview) {
        if !std::mem::take(&mut self.awaited) {
            return;
        }
        let Some(before) = self.before.replace(Moment::of(overview)) else { return };
        let path = match &settings.file {
            Some(path) => path.clone(),
            None => dump::dir().join(format!("shardgate-{}.hlog", info.node)),
        };
        let lines = Interval::since(&before, overview).lines(info, true).map_err(io::Error::other);
        let written = lines.and_then(|lines| self.append(&path, info, &lines));
        let failed = std::mem::replace(&mut self.failed, written.is_err());
        if let Err(error) = written
            && !failed
        {
            tracing::warn!(
                file = %path.display(),
                %error,
                "histogram_log_failed: an interval cannot be written to this file: make room, or \
                 name another one in histograms.file; each interval tries again"
            );
        }
    }

    fn append(&mut self, path: &Path, info: &ProcessInfo, lines: &str) -> io::Result<()> {
        let is_good = |log: &LogFile| log.path == path && log.bytes < FILE_BYTES_MAX;
        let log = match self.file.take().filter(is_good) {
            Some(log) => log,
            None => LogFile::begin(path, &head(info, None).map_err(io::Error::other)?)?,
        };
        self.file.insert(log).append(lines)
    }
}

impl LogFile {
    /// Begins a file that only the gateway's own user can read. One that is there is renamed; a
    /// link is not followed.
    fn begin(path: &Path, head: &str) -> io::Result<Self> {
        if let Ok(there) = fs::symlink_metadata(path)
            && !there.is_file()
            && !there.is_symlink()
        {
            let why = "a directory or a device is there: name a file in a directory of its own";
            return Err(io::Error::other(why));
        }
        match fs::rename(path, path.with_added_extension("1")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
        let mut log = Self { path: path.to_owned(), file, bytes: 0 };
        if let Err(error) = log.append(head) {
            // With the next interval an empty file would take the place of the full one.
            let _ = fs::remove_file(path);
            return Err(error);
        }
        tracing::info!(
            file = %path.display(),
            "histogram_log: the times of each interval are appended to this file"
        );
        Ok(log)
    }

    /// Appends all of `text`, or nothing.
    fn append(&mut self, text: &str) -> io::Result<()> {
        let written = self.file.write_all(text.as_bytes());
        match written {
            Ok(()) => self.bytes += text.len() as u64,
            // Part of a line would spoil the next one.
            Err(_) => drop(self.file.set_len(self.bytes)),
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::tests::report;
    use super::super::view::tests::{about, gathered};
    use super::*;
    use crate::ids::ShardId;
    use crate::stats::Stage;

    /// A log that has its begin, and its settings.
    struct Rig {
        dir: tempfile::TempDir,
        settings: HistogramSettings,
        log: HistogramLog,
        now: Instant,
        count: u64,
    }

    impl Rig {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let file = Some(dir.path().join("times.hlog"));
            let settings = HistogramSettings { every: Duration::from_secs(10), file };
            let log = HistogramLog::default();
            let mut rig = Self { dir, settings, log, now: Instant::now(), count: 0 };
            rig.passes(0);
            rig
        }

        /// An interval passes, in which shard 0 records so many values.
        fn passes(&mut self, values: u64) {
            assert!(self.log.is_due(&self.settings, self.now));
            self.count += values;
            let mut report = report(ShardId(0));
            report.histograms.record(Stage::Whole, 700, self.count);
            let mut overview = gathered();
            overview.at = self.now;
            overview.shards[0].report = Some(Arc::new(report));
            self.log.take(&self.settings, &about(), &overview);
            self.now += self.settings.every;
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
        }
    }

    fn intervals(text: &str) -> Vec<&str> {
        text.lines().filter(|line| line.starts_with("Tag=")).collect()
    }

    #[test]
    fn each_interval_adds_lines_of_what_it_recorded_alone() {
        let mut rig = Rig::new();
        rig.passes(3);
        rig.passes(0);
        rig.passes(2);
        let text = rig.read("times.hlog");
        assert!(text.starts_with("#[Histogram log of shardgate "), "{text}");
        let lines = intervals(&text);
        assert!(lines.len() == 2 && lines.iter().all(|l| l.starts_with("Tag=whole-0,")), "{text}");
        assert!(lines.iter().all(|line| line.contains(",10.000,")), "{text}");
    }

    #[test]
    fn a_file_that_is_full_or_of_another_run_is_kept_once() {
        let mut rig = Rig::new();
        fs::write(rig.dir.path().join("times.hlog"), "older").unwrap();
        rig.passes(1);
        assert_eq!(rig.read("times.hlog.1"), "older");
        rig.log.file.as_mut().unwrap().bytes = FILE_BYTES_MAX;
        rig.passes(1);
        assert!(intervals(&rig.read("times.hlog.1")).len() == 1, "the full one");
        assert!(intervals(&rig.read("times.hlog")).len() == 1, "and a new one");
    }

    #[test]
    fn a_link_in_the_place_of_the_file_is_not_followed() {
        let mut rig = Rig::new();
        let precious = rig.dir.path().join("precious");
        fs::write(&precious, "data").unwrap();
        std::os::unix::fs::symlink(&precious, rig.dir.path().join("times.hlog")).unwrap();
        rig.passes(1);
        assert_eq!(rig.read("precious"), "data");
        assert_eq!(intervals(&rig.read("times.hlog")).len(), 1);
    }

    #[test]
    fn a_directory_that_comes_later_is_written_to_then() {
        let mut rig = Rig::new();
        rig.settings.file = Some(rig.dir.path().join("none").join("times.hlog"));
        rig.passes(1);
        assert!(rig.log.failed);
        fs::create_dir(rig.dir.path().join("none")).unwrap();
        rig.passes(1);
        assert_eq!(intervals(&rig.read("none/times.hlog")).len(), 1);
    }

    #[test]
    fn a_log_that_is_off_asks_nobody_and_a_shorter_interval_holds_at_once() {
        let mut rig = Rig::new();
        assert!(!rig.log.is_due(&rig.settings, rig.now - Duration::from_secs(5)));
        rig.settings.every = Duration::from_secs(1);
        assert!(!rig.log.is_due(&rig.settings, rig.now - Duration::from_secs(5)));
        assert!(rig.log.is_due(&rig.settings, rig.now - Duration::from_secs(4)));
        rig.settings.every = Duration::ZERO;
        assert!(!rig.log.is_due(&rig.settings, rig.now) && rig.log.due().is_none());
    }
}
