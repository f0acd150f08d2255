//! Repeated warnings: the first ones of a place in the source are written, the others of the same
//! ten seconds counted, and the count is one line at the end.
//!
//! A storm (an instance that is away, a client that sends ids without a route) must not push
//! everything else out of the log. No lock: a shard that warns does an atomic addition. Two threads
//! that race may let one line more through; none is lost uncounted.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Lines of one place in a window: enough for an instance that goes down on each of 8 shards.
const BURST: u32 = 10;
/// Length of a window: six lines a minute for the counts of a storm.
const WINDOW_MS: u64 = 10_000;
/// Places that are counted; the source has some 40. Further ones are written without a limit.
const PLACES_MAX: usize = 256;
/// Longest part of a message that names a place in the count.
const NAME_CHARS_MAX: usize = 80;
/// Fields of warnings that are never counted, because an operator has to read all of them: lists of
/// mistakes in a file. There are as many as the file has mistakes, not as many as a peer likes.
const NEVER_COUNTED: [&str; 2] = ["problem", "warning"];

/// Lines of one place that were left out of a window that is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Suppressed {
    /// First message of the place.
    pub message: Box<str>,
    /// Module of the place.
    pub target: &'static str,
    /// Level of the lines.
    pub level: Level,
    /// Number of the lines.
    pub count: u64,
}

/// A place in the source that warns.
#[derive(Debug, Default)]
struct CallSite {
    metadata: OnceLock<&'static Metadata<'static>>,
    /// First message of the place.
    message: OnceLock<Box<str>>,
    /// Start of the window, in milliseconds.
    since: AtomicU64,
    /// Lines of the window that were written.
    written: AtomicU32,
    /// Lines that were left out and not reported yet.
    left: AtomicU64,
}

/// Counts of lines by place.
#[derive(Debug)]
pub struct Repeats {
    places: Box<[CallSite]>,
}

impl Default for Repeats {
    fn default() -> Self {
        Self { places: (0..PLACES_MAX).map(|_| CallSite::default()).collect() }
    }
}

impl Repeats {
    /// Whether a line of this place is written at `now_ms`; else it is counted. `message` is called
    /// for the first line of a place.
    pub fn admit(
        &self,
        metadata: &'static Metadata<'static>,
        message: impl FnOnce() -> Box<str>,
        now_ms: u64,
    ) -> bool {
        let Some(place) = self.place(metadata) else { return true };
        place.message.get_or_init(message);
        let since = place.since.load(Ordering::Relaxed);
        let over = now_ms.saturating_sub(since) >= WINDOW_MS;
        let begin = (Ordering::AcqRel, Ordering::Relaxed);
        if over && place.since.compare_exchange(since, now_ms, begin.0, begin.1).is_ok() {
            place.written.store(0, Ordering::Relaxed);
        }
        if place.written.fetch_add(1, Ordering::Relaxed) < BURST {
            return true;
        }
        place.left.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// Slot of a place: the first one that is taken by it, or free.
    fn place(&self, metadata: &'static Metadata<'static>) -> Option<&CallSite> {
        self.places.iter().find(|p| std::ptr::eq(*p.metadata.get_or_init(|| metadata), metadata))
    }

    /// Takes the counts of windows that are over at `now_ms`, or, at the `end`, of all.
    pub fn take(&self, now_ms: u64, end: bool) -> Vec<Suppressed> {
        let mut all = Vec::new();
        for place in &self.places {
            let Some(metadata) = place.metadata.get() else { break };
            let since = place.since.load(Ordering::Relaxed);
            if !end && now_ms.saturating_sub(since) < WINDOW_MS {
                continue;
            }
            let count = place.left.swap(0, Ordering::Relaxed);
            if count > 0 {
                let message = place.message.get().cloned().unwrap_or_default();
                let (target, level) = (metadata.target(), *metadata.level());
                all.push(Suppressed { message, target, level, count });
            }
        }
        all
    }

    /// Whether there are counts that [`Self::take`] has still to take.
    pub fn pending(&self) -> bool {
        let used = self.places.iter().take_while(|p| p.metadata.get().is_some());
        used.into_iter().any(|p| p.left.load(Ordering::Relaxed) > 0)
    }
}

/// Layer that leaves repeated lines out.
pub struct Collapse {
    repeats: Arc<Repeats>,
    began: Instant,
    /// Wakes the thread; holds one call, as more mean the same.
    bell: SyncSender<()>,
}

/// Thread that logs the counts. Dropping it logs the last ones and ends it.
pub struct Reporter {
    bell: Option<SyncSender<()>>,
    stop: Arc<std::sync::atomic::AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Makes the layer and its thread.
pub fn collapse() -> std::io::Result<(Collapse, Reporter)> {
    let repeats = Arc::new(Repeats::default());
    let began = Instant::now();
    let (bell, rung) = mpsc::sync_channel(1);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (own, stopped) = (repeats.clone(), stop.clone());
    let thread = std::thread::Builder::new()
        .name("log-repeats".into())
        .spawn(move || log_counts(&own, &rung, &stopped, began))?;
    let teller = Reporter { bell: Some(bell.clone()), stop, thread: Some(thread) };
    Ok((Collapse { repeats, began, bell }, teller))
}

/// Logs counts at the end of their windows; sleeps while there are none.
fn log_counts(
    repeats: &Repeats,
    rung: &Receiver<()>,
    stop: &std::sync::atomic::AtomicBool,
    began: Instant,
) {
    while rung.recv().is_ok() {
        while repeats.pending() || stop.load(Ordering::Acquire) {
            let end = stop.load(Ordering::Acquire);
            for suppressed in repeats.take(since_ms(began), end) {
                log_count(&suppressed);
            }
            if end {
                return;
            }
            // A second's delay of the line does no harm; a bell in between is the stop, or more
            // counts.
            let _ = rung.recv_timeout(Duration::from_secs(1));
        }
    }
}

fn log_count(suppressed: &Suppressed) {
    let Suppressed { message, target, level, count } = suppressed;
    let within_s = WINDOW_MS / 1000;
    if *level == Level::ERROR {
        tracing::error!(repeated = count, within_s, of = target, "repeated: {message}");
    } else {
        tracing::warn!(repeated = count, within_s, of = target, "repeated: {message}");
    }
}

fn since_ms(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl<S: Subscriber> Layer<S> for Collapse {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        // Level orders by verbosity: ERROR is the least.
        let counted = *metadata.level() <= Level::WARN
            && metadata.target() != module_path!()
            && !NEVER_COUNTED.iter().any(|name| metadata.fields().field(name).is_some());
        if !counted {
            return true;
        }
        let admitted = self.repeats.admit(metadata, || message_of(event), since_ms(self.began));
        if !admitted {
            match self.bell.try_send(()) {
                Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
            }
        }
        admitted
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(bell) = self.bell.take() {
            // A full channel wakes the thread as well.
            let _ = bell.try_send(());
        }
        if let Some(thread) = self.thread.take() {
            // The thread does nothing that panics; if it did, nobody could be told.
            let _ = thread.join();
        }
    }
}

/// Message of an event, cut.
fn message_of(event: &Event<'_>) -> Box<str> {
    struct Message(String);
    impl Visit for Message {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            if field.name() == "message" {
                self.0 = format!("{value:?}").chars().take(NAME_CHARS_MAX).collect();
            }
        }
    }
    let mut message = Message(String::new());
    event.record(&mut message);
    message.0.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Metadata of two places in this source.
    fn places() -> [&'static Metadata<'static>; 2] {
        struct Seen(Arc<Mutex<Vec<&'static Metadata<'static>>>>);
        impl<S: Subscriber> Layer<S> for Seen {
            fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                self.0.lock().expect("not poisoned").push(event.metadata());
            }
        }
        use tracing_subscriber::layer::SubscriberExt;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let layers = tracing_subscriber::registry().with(Seen(seen.clone()));
        tracing::subscriber::with_default(layers, || {
            tracing::warn!("one");
            tracing::error!("two");
        });
        let seen = seen.lock().expect("not poisoned");
        [seen[0], seen[1]]
    }

    fn admit(repeats: &Repeats, place: &'static Metadata<'static>, now_ms: u64) -> bool {
        repeats.admit(place, || "first".into(), now_ms)
    }

    #[test]
    fn the_first_ones_are_written_and_the_others_counted_once() {
        let repeats = Repeats::default();
        let [one, two] = places();
        let written = (0..1_000).filter(|n| admit(&repeats, one, 5 + n)).count();
        assert_eq!(written, BURST as usize);
        assert!(admit(&repeats, two, 1_000), "another place has a window of its own");
        assert!(repeats.pending());
        assert_eq!(repeats.take(9_999, false), [], "the window is not over");
        let left = repeats.take(10_005, false);
        let [Suppressed { message, level, count, .. }] = &left[..] else { panic!("{left:?}") };
        assert_eq!((&**message, *level, *count), ("first", Level::WARN, 1_000 - u64::from(BURST)));
        assert!(!repeats.pending());
        assert_eq!(repeats.take(20_000, false), [], "told once");
    }

    #[test]
    fn the_first_of_the_next_window_is_written_again() {
        let repeats = Repeats::default();
        let [one, _] = places();
        for now in [1_000_000, 1_010_000, 1_025_000] {
            let written = (0..50).filter(|_| admit(&repeats, one, now)).count();
            assert_eq!(written, BURST as usize, "{now}");
        }
        // Counts of windows that passed unseen are not lost.
        let left = repeats.take(1_035_000, false);
        assert_eq!(left.iter().map(|left| left.count).sum::<u64>(), 3 * (50 - u64::from(BURST)));
    }

    #[test]
    fn the_end_tells_what_is_left() {
        let repeats = Repeats::default();
        let [_, two] = places();
        assert_eq!((0..11).filter(|_| admit(&repeats, two, 0)).count(), 10);
        assert_eq!(
            repeats.take(1, true).iter().map(|l| (l.level, l.count)).collect::<Vec<_>>(),
            [(Level::ERROR, 1)]
        );
    }

    #[test]
    fn a_storm_is_ten_lines_and_a_count() {
        use tracing_subscriber::layer::SubscriberExt;
        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<String>>>);
        impl<S: Subscriber> Layer<S> for Lines {
            fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                self.0.lock().expect("not poisoned").push(message_of(event).into());
            }
        }
        let lines = Lines::default();
        let (layer, teller) = collapse().expect("a thread");
        let layers = tracing_subscriber::registry().with(layer).with(lines.clone());
        tracing::subscriber::with_default(layers, || {
            (0..500).for_each(|n| tracing::warn!(n, "instance_down"));
            (0..500).for_each(|n| tracing::info!(n, "fine"));
            (0..50).for_each(|n| tracing::error!(problem = n, "reload_refused"));
        });
        drop(teller);
        let lines = lines.0.lock().expect("not poisoned");
        let count = |word: &str| lines.iter().filter(|line| *line == word).count();
        assert_eq!(count("instance_down"), BURST as usize);
        assert_eq!((count("fine"), count("reload_refused")), (500, 50));
    }
}
