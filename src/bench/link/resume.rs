//! What a connection does with a session that is resumed.

use super::{End, Link, Phase};
use crate::bench::context::Context;
use crate::bench::envelope::{self, SIGN_IN_SEQ};
use crate::bench::fault::Fault;

impl Link {
    /// Cuts the connection of a session that is resumed, without a close frame.
    pub fn cut(&mut self, cx: &mut Context<'_>) {
        if self.session.is_some() && self.wire.is_some() {
            self.disconnect(cx);
            self.pause(cx);
        }
    }

    /// Takes note that its session has no connection; false = there is no session to go on with.
    pub(super) fn is_left_behind(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(session) = self.session.as_deref_mut().filter(|session| session.is_there()) else {
            return false;
        };
        if self.phase == Phase::Ready {
            cx.tally.resumes.losses += 1;
            session.lost(cx.now());
        }
        true
    }

    /// Goes on with its session, or begins another one, as the gateway says.
    pub(super) fn resumed(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Result<(), End> {
        let Some(session) = self.session.as_deref_mut() else { return Ok(()) };
        let told = envelope::resumed(cx.plan.encoding, bytes)
            .ok_or(Fault::NotAGateway("its answer to `resume` cannot be read"))?;
        cx.tally.resumes.told(&told);
        let received = told.received_seq.saturating_sub(SIGN_IN_SEQ);
        let goes_on = session.resumed(told);
        let away_ns = session.is_back(cx.now());
        let ack = session.offset();
        if !goes_on {
            self.lose_answers(cx);
        } else if let Some(ns) = away_ns {
            cx.tally.resumes.is_back(ns);
        }
        let now = cx.now();
        let (writer, rng, out) = (&mut cx.writer, &mut cx.rng, &mut self.output);
        self.window.resume(received, now, |number, sent| {
            writer.message(sent.kind, number + SIGN_IN_SEQ, ack, rng, out);
        });
        self.begin(cx);
        Ok(())
    }
}
