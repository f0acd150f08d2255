//! What control knows of its shards: their state, their reports, and commands not yet delivered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::inspections::{Inspections, QueryResult};
use crate::config::settings::StopSettings;
use crate::ids::ShardId;
use crate::inspect;
use crate::lanes::{LaneRefusal, LaneSender};
use crate::mailbox::{Command, Published, ShardEvent};
use crate::stats::Report;

/// Where a shard is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShardState {
    /// Not ready yet.
    Starting,
    /// Serves.
    Ready,
    /// Was told to drain.
    Draining,
    /// Ended in order.
    Stopped,
    /// Could not go on.
    Failed,
}

impl ShardState {
    /// Word in `/health`.
    pub fn name(self) -> &'static str {
        match self {
            ShardState::Starting => "starting",
            ShardState::Ready => "ready",
            ShardState::Draining => "draining",
            ShardState::Stopped => "stopped",
            ShardState::Failed => "failed",
        }
    }

    /// Whether it answers questions.
    pub fn serves(self) -> bool {
        match self {
            ShardState::Ready | ShardState::Draining => true,
            ShardState::Starting | ShardState::Stopped | ShardState::Failed => false,
        }
    }

    /// Whether its thread is done.
    pub fn ended(self) -> bool {
        match self {
            ShardState::Stopped | ShardState::Failed => true,
            ShardState::Starting | ShardState::Ready | ShardState::Draining => false,
        }
    }
}

/// One shard at the end of a gathering.
#[derive(Clone, Debug)]
pub struct ShardView {
    /// Who.
    pub shard: ShardId,
    /// Its state.
    pub state: ShardState,
    /// Time since it last answered anything; `None` = never.
    pub answered: Option<Duration>,
    /// It was asked in this gathering, and did not answer in time.
    pub silent: bool,
    /// Its last report, old if `silent`.
    pub report: Option<Arc<Report>>,
}

#[derive(Debug)]
struct Entry {
    commands: LaneSender<Command>,
    /// Commands its mailbox had no room for, oldest first.
    waiting: VecDeque<Command>,
    state: ShardState,
    /// Its mailbox is gone.
    closed: bool,
    /// Number of the report that is awaited in the gathering under way.
    asked: Option<u64>,
    /// It did not answer in the last gathering in which it was asked.
    silent: bool,
    answered: Option<Instant>,
    report: Option<Arc<Report>>,
}

/// All shards, by number.
#[derive(Debug)]
pub struct Board {
    entries: Vec<Entry>,
    questions: u64,
    inspections: Inspections,
    /// Messages cut off by the stop, in all.
    pub cut_off: u64,
}

impl Board {
    /// Shards that start.
    pub fn new(shards: Vec<LaneSender<Command>>) -> Self {
        let entry = |commands| Entry {
            commands,
            waiting: VecDeque::new(),
            state: ShardState::Starting,
            closed: false,
            asked: None,
            silent: false,
            answered: None,
            report: None,
        };
        let entries = shards.into_iter().map(entry).collect();
        Self { entries, questions: 0, inspections: Inspections::default(), cut_off: 0 }
    }

    /// Shards.
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

    /// Whether one failed.
    pub fn any_failed(&self) -> bool {
        self.entries.iter().any(|e| e.state == ShardState::Failed)
    }

    /// Shards whose threads are not done.
    pub fn not_ended(&self) -> Vec<u16> {
        let alive = self.entries.iter().enumerate().filter(|(_, e)| !e.state.ended());
        alive.map(|(n, _)| n as u16).collect()
    }

    /// Takes in what a shard says.
    pub fn take(&mut self, event: ShardEvent, now: Instant) {
        let shard = match &event {
            ShardEvent::Ready(shard) | ShardEvent::KeysWanted(shard) => *shard,
            ShardEvent::Report(report) => report.shard,
            ShardEvent::Signals { shard, .. }
            | ShardEvent::Inspection { shard, .. }
            | ShardEvent::Stopped { shard, .. }
            | ShardEvent::Failed { shard, .. } => *shard,
        };
        let Some(entry) = self.entries.get_mut(usize::from(shard.0)) else {
            tracing::error!(
                shard = shard.0,
                "event of a shard that does not exist: a defect; report it"
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
                // One that was given up may still come, before the one that is awaited.
                if entry.asked == Some(report.number) {
                    entry.asked = None;
                    entry.silent = false;
                }
                entry.report = Some(report.into());
            }
            ShardEvent::Inspection { number, inspection, .. } => {
                self.inspections.take(shard, number, inspection);
            }
            // Control's judge of health has them, and who fetches keys.
            ShardEvent::Signals { .. } | ShardEvent::KeysWanted(_) => {}
            ShardEvent::Stopped { cut_off, .. } => {
                entry.state = ShardState::Stopped;
                self.inspections.shard_ended(shard);
                entry.asked = None;
                entry.silent = false;
                self.cut_off += cut_off;
                tracing::info!(shard = shard.0, cut_off, "shard stopped");
            }
            ShardEvent::Failed { why, .. } => {
                entry.state = ShardState::Failed;
                self.inspections.shard_ended(shard);
                entry.asked = None;
                entry.silent = false;
                tracing::error!(shard = shard.0, why, "shard failed");
            }
        }
    }

    /// Asks every shard that serves for a report.
    pub fn ask_reports(&mut self) {
        self.questions += 1;
        for entry in &mut self.entries {
            match entry.state {
                ShardState::Ready | ShardState::Draining => {
                    entry.asked = Some(self.questions);
                    // One that takes no commands is asked once when it takes them again.
                    entry.waiting.retain(|command| !matches!(command, Command::Report(_)));
                    entry.waiting.push_back(Command::Report(self.questions));
                }
                ShardState::Starting | ShardState::Stopped | ShardState::Failed => {}
            }
        }
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
        let Some(number) = self.inspections.begin(serving, reply, now) else { return };
        for entry in self.entries.iter_mut().filter(|e| e.state.serves()) {
            entry.waiting.push_back(Command::Inspect(query.clone(), number));
        }
    }

    /// Replies to the queries that are complete or late.
    pub fn end_inspections(&mut self, now: Instant) {
        self.inspections.turn(now);
    }

    /// End of the first query's time.
    pub fn inspections_due(&self) -> Option<Instant> {
        self.inspections.due()
    }

    /// Whether all shards serve and none is told to stop.
    pub fn all_serve(&self) -> bool {
        self.entries.iter().all(|e| e.state == ShardState::Ready)
    }

    /// Whether every report that was asked for has come.
    pub fn all_answered(&self) -> bool {
        self.entries.iter().all(|e| e.asked.is_none())
    }

    /// The gathering is over: who has not answered is silent until it answers in a later one. Its
    /// answer may be late, or lost on a full lane: it is asked again either way.
    pub fn give_up(&mut self) {
        for entry in &mut self.entries {
            entry.silent |= entry.asked.take().is_some();
        }
    }

    /// Publishes to every shard that has not ended; one that has not taken the last one yet skips
    /// it.
    pub fn publish(&mut self, published: impl Fn(ShardId) -> Published) {
        for (n, entry) in (0u16..).zip(&mut self.entries) {
            if entry.state.ended() {
                continue;
            }
            entry.waiting.retain(|command| !matches!(command, Command::Adopt(_)));
            entry.waiting.push_back(Command::Adopt(Box::new(published(ShardId(n)))));
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

    /// Sends what waits, as far as there is room. Whether something still waits.
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

    /// Shards whose mailbox is gone although they did not say that they ended. To be asked after
    /// all events were taken: a shard says so before it drops its mailbox.
    pub fn fail_vanished(&mut self, now: Instant) {
        let vanished: Vec<_> = (0u16..)
            .zip(&self.entries)
            .filter(|(_, e)| e.closed && !e.state.ended())
            .map(|(n, _)| ShardId(n))
            .collect();
        for shard in vanished {
            let why = "its mailbox is gone: the thread ended without saying why".into();
            self.take(ShardEvent::Failed { shard, why }, now);
        }
    }

    /// How all shards are now.
    pub fn view(&self, now: Instant) -> Vec<ShardView> {
        let view = |(n, e): (u16, &Entry)| ShardView {
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

    /// A board of one shard that is ready, and its mailbox.
    fn board() -> (Board, LaneReceiver<Command>) {
        let (sender, commands) = lane(2, &Doorbell::new());
        let mut board = Board::new(vec![sender]);
        board.take(ShardEvent::Ready(ShardId(0)), Instant::now());
        (board, commands)
    }

    fn answers(board: &mut Board, number: u64) {
        let report = Report { number, ..report(ShardId(0)) };
        board.take(ShardEvent::Report(Box::new(report)), Instant::now());
    }

    fn asked(commands: &LaneReceiver<Command>) -> Vec<u64> {
        let numbers = std::iter::from_fn(|| commands.try_recv()).map(|command| match command {
            Command::Report(number) => number,
            other => panic!("not a question: {other:?}"),
        });
        numbers.collect()
    }

    fn is_silent(board: &Board) -> bool {
        board.view(Instant::now())[0].silent
    }

    #[test]
    fn a_shard_whose_report_was_lost_is_asked_again_and_heard() {
        let (mut board, commands) = board();
        board.ask_reports();
        board.flush();
        assert_eq!(asked(&commands), [1]);
        assert!(!board.all_answered());
        board.give_up();
        assert!(is_silent(&board) && board.all_answered());
        board.ask_reports();
        board.flush();
        assert_eq!(asked(&commands), [2]);
        // The first one was late after all: that does not answer this gathering.
        answers(&mut board, 1);
        assert!(!board.all_answered() && is_silent(&board));
        answers(&mut board, 2);
        assert!(board.all_answered() && !is_silent(&board));
        board.give_up();
        assert!(!is_silent(&board));
    }

    #[test]
    fn a_shard_that_takes_no_commands_is_not_asked_ever_more() {
        let (mut board, commands) = board();
        for _ in 0..10 {
            board.ask_reports();
            board.flush();
            board.give_up();
        }
        assert_eq!(asked(&commands), [1, 2]);
        board.flush();
        assert_eq!(asked(&commands), [10]);
    }
}
