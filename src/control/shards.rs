//! The table of shards, as control sees them: their state, last reports, and commands that wait for
//! room in their mailboxes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::inspections::{Inspections, QueryResult};
use super::traces::{TraceRefusal, TraceReply, Traces};
use crate::config::settings::StopSettings;
use crate::ids::ShardId;
use crate::inspect;
use crate::lanes::{LaneRefusal, LaneSender};
use crate::mailbox::{Command, ShardConfig, ShardEvent};
use crate::routing::quota::TenantPart;
use crate::stats::Report;

/// Stage of a shard's life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShardState {
    Starting,
    Ready,
    /// Told to drain, and not stopped yet.
    Draining,
    Stopped,
    /// Ended by an error.
    Failed,
}

impl ShardState {
    /// Name of the state in `/health`.
    pub fn name(self) -> &'static str {
        match self {
            ShardState::Starting => "starting",
            ShardState::Ready => "ready",
            ShardState::Draining => "draining",
            ShardState::Stopped => "stopped",
            ShardState::Failed => "failed",
        }
    }

    /// Whether the shard answers queries.
    pub fn serves(self) -> bool {
        match self {
            ShardState::Ready | ShardState::Draining => true,
            ShardState::Starting | ShardState::Stopped | ShardState::Failed => false,
        }
    }

    /// Whether the shard's thread is done.
    pub fn ended(self) -> bool {
        match self {
            ShardState::Stopped | ShardState::Failed => true,
            ShardState::Starting | ShardState::Ready | ShardState::Draining => false,
        }
    }
}

/// State of a shard at the end of a gathering.
#[derive(Clone, Debug)]
pub struct ShardView {
    pub shard: ShardId,
    pub state: ShardState,
    /// Time since the last event of the shard; `None` = there was none.
    pub answered: Option<Duration>,
    /// Whether the shard did not answer the last gathering in time.
    pub silent: bool,
    /// Last report, old if the shard is silent.
    pub report: Option<Arc<Report>>,
}

#[derive(Debug)]
struct ShardEntry {
    commands: LaneSender<Command>,
    /// Commands for which the mailbox had no room, oldest first.
    waiting: VecDeque<Command>,
    state: ShardState,
    /// Whether the shard's end of the mailbox is gone.
    closed: bool,
    /// Number of the report that the gathering under way awaits.
    awaited: Option<u64>,
    /// Whether the shard did not answer the last gathering in which it was asked.
    silent: bool,
    answered: Option<Instant>,
    report: Option<Arc<Report>>,
    /// Whether the last sample that was asked for has not come yet.
    awaits_sample: bool,
    /// Whether none had come when the next one was asked for.
    is_late: bool,
    /// Last sample.
    sample: Option<Arc<Report>>,
}

/// All shards, by number.
#[derive(Debug)]
pub struct ShardTable {
    entries: Vec<ShardEntry>,
    /// Number of the last gathering.
    gatherings: u64,
    inspections: Inspections,
    traces: Traces,
    /// Messages that got an error because of the stop, in all shards.
    pub cut_off: u64,
}

impl ShardTable {
    /// A table of shards that are starting, with their mailboxes.
    pub fn new(shards: Vec<LaneSender<Command>>) -> Self {
        let entry = |commands| ShardEntry {
            commands,
            waiting: VecDeque::new(),
            state: ShardState::Starting,
            closed: false,
            awaited: None,
            silent: false,
            answered: None,
            report: None,
            awaits_sample: false,
            is_late: false,
            sample: None,
        };
        let entries = shards.into_iter().map(entry).collect();
        Self {
            entries,
            gatherings: 0,
            inspections: Inspections::default(),
            traces: Traces::default(),
            cut_off: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether all shards have been ready.
    pub fn all_ready(&self) -> bool {
        self.entries.iter().all(|e| e.state != ShardState::Starting)
    }

    /// Whether all shards ended.
    pub fn all_ended(&self) -> bool {
        self.entries.iter().all(|e| e.state.ended())
    }

    /// Whether at least one shard failed.
    pub fn any_failed(&self) -> bool {
        self.entries.iter().any(|e| e.state == ShardState::Failed)
    }

    /// Numbers of the shards that have not ended.
    pub fn not_ended(&self) -> Vec<u16> {
        let alive = self.entries.iter().enumerate().filter(|(_, e)| !e.state.ended());
        alive.map(|(n, _)| n as u16).collect()
    }

    /// Takes in an event of a shard.
    pub fn take(&mut self, event: ShardEvent, now: Instant) {
        let shard = match &event {
            ShardEvent::Ready(shard) => *shard,
            ShardEvent::Report(report) | ShardEvent::Sample(report) => report.shard,
            ShardEvent::Signals { shard, .. }
            | ShardEvent::QuotaDemands { shard, .. }
            | ShardEvent::KeysWanted { shard, .. }
            | ShardEvent::Inspection { shard, .. }
            | ShardEvent::Trace { shard, .. }
            | ShardEvent::Receipts { shard, .. }
            | ShardEvent::Stopped { shard, .. }
            | ShardEvent::Failed { shard } => *shard,
        };
        let Some(entry) = self.entries.get_mut(usize::from(shard.0)) else {
            tracing::error!(
                shard = shard.0,
                "shard_unknown: a shard that does not exist sent an event; report this defect"
            );
            return;
        };
        entry.answered = Some(now);
        match event {
            ShardEvent::Ready(_) => {
                if entry.state == ShardState::Starting {
                    entry.state = ShardState::Ready;
                }
            }
            ShardEvent::Report(report) => {
                // A report of a gathering that was given up may come before the awaited one.
                if entry.awaited == Some(report.number) {
                    entry.awaited = None;
                    entry.silent = false;
                }
                entry.report = Some(report.into());
            }
            ShardEvent::Sample(sample) => {
                (entry.awaits_sample, entry.is_late) = (false, false);
                entry.sample = Some(sample.into());
            }
            ShardEvent::Inspection { number, inspection, .. } => {
                self.inspections.take(shard, number, inspection);
            }
            ShardEvent::Trace { piece, .. } => self.traces.take(piece),
            // For the directory, the refresh of keys and the pushes, which the loop gives them to.
            ShardEvent::Signals { .. }
            | ShardEvent::QuotaDemands { .. }
            | ShardEvent::KeysWanted { .. }
            | ShardEvent::Receipts { .. } => {}
            ShardEvent::Stopped { cut_off, .. } => {
                entry.state = ShardState::Stopped;
                self.inspections.shard_ended(shard);
                self.traces.shard_ended(shard, now);
                entry.awaited = None;
                (entry.awaits_sample, entry.is_late) = (false, false);
                entry.silent = false;
                self.cut_off += cut_off;
                tracing::info!(shard = shard.0, cut_off, "shard_stopped: the shard has ended");
            }
            // Logged where it failed.
            ShardEvent::Failed { .. } => {
                entry.state = ShardState::Failed;
                self.inspections.shard_ended(shard);
                self.traces.shard_ended(shard, now);
                entry.awaited = None;
                (entry.awaits_sample, entry.is_late) = (false, false);
                entry.silent = false;
            }
        }
    }

    /// Asks every shard that serves for a report.
    pub fn ask_reports(&mut self) {
        self.gatherings += 1;
        for entry in &mut self.entries {
            match entry.state {
                ShardState::Ready | ShardState::Draining => {
                    entry.awaited = Some(self.gatherings);
                    // A shard that takes no commands gets one of these when it takes them again.
                    entry.waiting.retain(|command| !matches!(command, Command::Report(_)));
                    entry.waiting.push_back(Command::Report(self.gatherings));
                }
                ShardState::Starting | ShardState::Stopped | ShardState::Failed => {}
            }
        }
    }

    /// Asks every shard that serves for a sample. One that has not taken the last question yet is
    /// not asked twice.
    pub fn ask_samples(&mut self) {
        for entry in self.entries.iter_mut().filter(|entry| entry.state.serves()) {
            entry.is_late = entry.awaits_sample;
            entry.awaits_sample = true;
            entry.waiting.retain(|command| !matches!(command, Command::Sample));
            entry.waiting.push_back(Command::Sample);
        }
    }

    /// Whether all samples that were asked for have come.
    pub fn all_sampled(&self) -> bool {
        self.entries.iter().all(|entry| !entry.awaits_sample)
    }

    /// State of all shards, as [`Self::view`], by their samples: silent is one whose sample had not
    /// come when the next one was due.
    pub fn sampled(&self, now: Instant) -> Vec<ShardView> {
        let mut shards = self.view(now);
        for (shard, entry) in shards.iter_mut().zip(&self.entries) {
            shard.silent = entry.is_late;
            shard.report = entry.sample.clone();
        }
        shards
    }

    /// Puts a query to every shard that serves. Refused (`reply` is dropped) while too many are
    /// under way.
    pub fn inspect(
        &mut self,
        query: &inspect::Query,
        reply: oneshot::Sender<QueryResult>,
        now: Instant,
    ) {
        let serving = (0u16..).zip(&self.entries).filter(|(_, e)| e.state.serves());
        let serving: Vec<ShardId> = serving.map(|(n, _)| ShardId(n)).collect();
        let Some(number) = self.inspections.begin(query, serving, reply, now) else { return };
        for entry in self.entries.iter_mut().filter(|e| e.state.serves()) {
            entry.waiting.push_back(Command::Inspect(query.clone(), number));
        }
    }

    /// Has a shard record a trace, or answers why not.
    pub fn trace(&mut self, shard: ShardId, lasts: Duration, reply: TraceReply, now: Instant) {
        let shards = self.entries.len();
        let refusal = match self.entries.get(usize::from(shard.0)) {
            None => Some(TraceRefusal::NoSuchShard(shards)),
            Some(entry) if !entry.state.serves() => Some(TraceRefusal::NotServing),
            Some(_) => None,
        };
        if let Some(refusal) = refusal {
            // The client may have gone away.
            let _ = reply.send(Err(refusal));
            return;
        }
        let Some(number) = self.traces.begin(shard, lasts, reply, now) else { return };
        let command = Command::Trace { number, lasts_ms: lasts.as_millis() as u64 };
        let waiting = &mut self.entries[usize::from(shard.0)].waiting;
        // One that a silent shard has not taken was given up meanwhile.
        waiting.retain(|earlier| !matches!(earlier, Command::Trace { .. }));
        waiting.push_back(command);
    }

    /// Replies to the queries and traces that are complete or late.
    pub fn end_questions(&mut self, now: Instant) {
        self.inspections.turn(now);
        self.traces.turn(now);
    }

    /// End of the time of the first query or trace.
    pub fn questions_due(&self) -> Option<Instant> {
        [self.inspections.due(), self.traces.due()].into_iter().flatten().min()
    }

    /// Whether all shards serve and none was told to stop.
    pub fn all_serve(&self) -> bool {
        self.entries.iter().all(|e| e.state == ShardState::Ready)
    }

    /// Whether all reports that were asked for have come.
    pub fn all_answered(&self) -> bool {
        self.entries.iter().all(|e| e.awaited.is_none())
    }

    /// Ends the gathering. A shard that has not answered counts as silent until it answers a later
    /// one: its report may be late, or lost on a full lane.
    pub fn give_up(&mut self) {
        for entry in &mut self.entries {
            entry.silent |= entry.awaited.take().is_some();
        }
    }

    /// Publishes to every shard that has not ended. A shard that has not taken the last published
    /// state yet skips it.
    pub fn publish(&mut self, published: impl Fn(ShardId) -> ShardConfig) {
        for (n, entry) in (0u16..).zip(&mut self.entries) {
            if entry.state.ended() {
                continue;
            }
            entry.waiting.retain(|command| !matches!(command, Command::Apply(_)));
            entry.waiting.push_back(Command::Apply(Box::new(published(ShardId(n)))));
        }
    }

    /// Sends every shard its parts of tenants' quotas. Older ones that it has not taken are void.
    pub fn send_quota_parts(&mut self, parts: Vec<Vec<TenantPart>>) {
        for (entry, parts) in self.entries.iter_mut().zip(parts) {
            entry.waiting.retain(|command| !matches!(command, Command::QuotaParts(_)));
            if !entry.state.ended() && !parts.is_empty() {
                entry.waiting.push_back(Command::QuotaParts(parts));
            }
        }
    }

    /// Tells every shard that has not ended to drain.
    pub fn drain(&mut self, settings: &StopSettings) {
        for entry in self.entries.iter_mut().filter(|e| !e.state.ended()) {
            entry.state = ShardState::Draining;
            entry.waiting.push_back(Command::Drain(settings.clone()));
        }
    }

    /// Tells every shard that has not ended to end at once, ahead of all else.
    pub fn abort(&mut self) {
        for entry in self.entries.iter_mut().filter(|e| !e.state.ended()) {
            entry.waiting.push_front(Command::Abort);
        }
    }

    /// Sends the commands that wait, as far as there is room. Whether some still wait.
    pub fn flush(&mut self) -> bool {
        for entry in &mut self.entries {
            while let Some(command) = entry.waiting.pop_front() {
                match entry.commands.try_send(command) {
                    Ok(()) => {}
                    Err(LaneRefusal::Full(command)) => {
                        entry.waiting.push_front(command);
                        break;
                    }
                    Err(LaneRefusal::Closed(_)) => {
                        entry.waiting.clear();
                        entry.closed = true;
                    }
                }
            }
        }
        self.entries.iter().any(|e| !e.waiting.is_empty())
    }

    /// Marks shards as failed whose mailbox is gone without an event of their end. To be called
    /// after all events were taken, as a shard sends that event before it drops its mailbox.
    pub fn fail_vanished(&mut self, now: Instant) {
        let vanished: Vec<_> = (0u16..)
            .zip(&self.entries)
            .filter(|(_, e)| e.closed && !e.state.ended())
            .map(|(n, _)| ShardId(n))
            .collect();
        for shard in vanished {
            tracing::error!(
                shard = shard.0,
                "shard_vanished: its thread ended without an event; the others drain and the \
                 process ends with 1; report this defect"
            );
            self.take(ShardEvent::Failed { shard }, now);
        }
    }

    /// State of all shards now.
    pub fn view(&self, now: Instant) -> Vec<ShardView> {
        let view = |(n, e): (u16, &ShardEntry)| ShardView {
            shard: ShardId(n),
            state: e.state,
            answered: e.answered.map(|at| now.duration_since(at)),
            silent: e.silent,
            report: e.report.clone(),
        };
        (0u16..).zip(&self.entries).map(view).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;
    use crate::lanes::{Doorbell, LaneReceiver, lane};

    /// A table of one shard that is ready, and its mailbox.
    fn table() -> (ShardTable, LaneReceiver<Command>) {
        let (sender, commands) = lane(2, &Doorbell::new());
        let mut table = ShardTable::new(vec![sender]);
        table.take(ShardEvent::Ready(ShardId(0)), Instant::now());
        (table, commands)
    }

    fn answers(table: &mut ShardTable, number: u64) {
        let report = Report { number, ..report(ShardId(0)) };
        table.take(ShardEvent::Report(Box::new(report)), Instant::now());
    }

    fn asked(commands: &LaneReceiver<Command>) -> Vec<u64> {
        let numbers = std::iter::from_fn(|| commands.try_recv()).map(|command| match command {
            Command::Report(number) => number,
            other => panic!("not a question: {other:?}"),
        });
        numbers.collect()
    }

    fn is_silent(table: &ShardTable) -> bool {
        table.view(Instant::now())[0].silent
    }

    #[test]
    fn a_shard_whose_report_was_lost_is_asked_again_and_answers() {
        let (mut table, commands) = table();
        table.ask_reports();
        table.flush();
        assert_eq!(asked(&commands), [1]);
        assert!(!table.all_answered());
        table.give_up();
        assert!(is_silent(&table) && table.all_answered());
        table.ask_reports();
        table.flush();
        assert_eq!(asked(&commands), [2]);
        // The first one was late after all: that does not answer this gathering.
        answers(&mut table, 1);
        assert!(!table.all_answered() && is_silent(&table));
        answers(&mut table, 2);
        assert!(table.all_answered() && !is_silent(&table));
        table.give_up();
        assert!(!is_silent(&table));
    }

    #[test]
    fn a_shard_that_takes_no_commands_is_not_asked_ever_more() {
        let (mut table, commands) = table();
        for _ in 0..10 {
            table.ask_reports();
            table.flush();
            table.give_up();
        }
        assert_eq!(asked(&commands), [1, 2]);
        table.flush();
        assert_eq!(asked(&commands), [10]);
    }

    #[test]
    fn a_shard_whose_sample_has_not_come_by_the_next_question_is_silent_until_it_does() {
        let (mut table, commands) = table();
        let is_silent = |table: &ShardTable| table.sampled(Instant::now())[0].silent;
        table.ask_samples();
        table.flush();
        assert!(!table.all_sampled() && !is_silent(&table));
        assert!(table.sampled(Instant::now())[0].report.is_none());
        table.ask_samples();
        table.ask_samples();
        table.flush();
        assert!(is_silent(&table));
        let asked: Vec<_> = std::iter::from_fn(|| commands.try_recv()).collect();
        assert!(matches!(asked[..], [Command::Sample, Command::Sample]), "{asked:?}");
        table.take(ShardEvent::Sample(Box::new(report(ShardId(0)))), Instant::now());
        assert!(table.all_sampled() && !is_silent(&table));
        assert!(table.sampled(Instant::now())[0].report.is_some());
        // It is no answer to a gathering.
        assert!(table.view(Instant::now())[0].report.is_none());
        table.ask_samples();
        table.take(ShardEvent::Stopped { shard: ShardId(0), cut_off: 0 }, Instant::now());
        assert!(table.all_sampled(), "nothing more comes");
    }
}
