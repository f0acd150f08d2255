//! The end of a connection: what is lost with it, and when it comes again.

use super::{Link, Phase};
use crate::bench::context::Context;
use crate::bench::envelope;
use crate::bench::fault::Fault;
use crate::bench::session::{Session, pause_ns};

/// Pause before the second attempt to connect; it doubles with each further one.
const PAUSE_NS: u64 = 100_000_000;
/// Doublings of the pause: 3.2 s at most.
const PAUSE_DOUBLINGS_MAX: u32 = 5;

/// Reason of a connection's end.
pub(super) enum End {
    /// It did not come to be.
    Fault(Fault),
    /// The gateway ended it, with this close code.
    Closed(Option<u16>),
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Link {
    /// Ends it at the end of the run; messages that wait are unanswered.
    pub fn finish(&mut self, cx: &mut Context<'_>) {
        let tally = &mut cx.tally;
        self.window.clear(|sent| tally.unanswered += u64::from(sent.measured));
        tally.resumes.away += u64::from(self.session.as_deref().is_some_and(Session::is_away));
        if matches!(self.phase, Phase::Ready | Phase::Leaving) {
            envelope::close(1000, &mut cx.rng, &mut self.output);
            let _ = self.flush();
        }
        self.wire = None;
    }

    pub(super) fn end(&mut self, end: End, cx: &mut Context<'_>) {
        let said = std::mem::take(&mut self.said);
        self.disconnect(cx);
        match (self.phase, end) {
            (Phase::Closing, _) => {
                cx.tally.churned += 1;
                self.phase = Phase::Idle;
                cx.wait(self.index, cx.now());
                return;
            }
            (Phase::Ready | Phase::Leaving, End::Closed(code)) => cx.tally.closed(code, &said),
            (_, End::Fault(fault)) => cx.tally.failed(fault, &said),
            (_, End::Closed(None)) => cx.tally.failed(Fault::Ended, &said),
            (_, End::Closed(Some(code))) => cx.tally.failed(Fault::Closed(code), &said),
        }
        self.pause(cx);
    }

    /// Drops the connection, and what waits on it but for a session that is resumed.
    pub(super) fn disconnect(&mut self, cx: &mut Context<'_>) {
        self.wire = None;
        self.input.clear();
        self.output.clear();
        self.written = 0;
        self.said.clear();
        if let Some(unread) = &mut self.slow_unread {
            *unread = 0;
        }
        if !self.is_left_behind(cx) {
            self.lose_answers(cx);
        }
    }

    pub(super) fn lose_answers(&mut self, cx: &mut Context<'_>) {
        let (open, tally) = (&mut cx.open, &mut cx.tally);
        self.window.clear(|sent| {
            *open -= 1;
            tally.lost += u64::from(sent.measured);
        });
    }

    /// Has it wait for its turn to connect again.
    pub(super) fn pause(&mut self, cx: &mut Context<'_>) {
        match self.phase {
            Phase::Ready => cx.ready -= usize::from(self.is_measured()),
            Phase::Leaving => {}
            _ => cx.connecting -= 1,
        }
        self.phase = Phase::Idle;
        self.tried(cx);
        let pause = match self.session {
            Some(_) => pause_ns(self.failures, &mut cx.rng),
            None => PAUSE_NS << self.failures.min(PAUSE_DOUBLINGS_MAX),
        };
        self.failures += 1;
        cx.wait(self.index, cx.now() + pause);
    }
}
