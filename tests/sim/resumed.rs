//! What travellers are told: `resumed`, answers with their offsets, and refusals.

use shardgate::wire::client;

use crate::sessions::{Session, read_resumed};
use crate::travel::{Claim, Next, Stage, Wrong};
use crate::wire::{self, Answer, Incoming};
use crate::world::{Event, World};

impl World {
    /// Takes something that the gateway sent to a traveller.
    pub fn traveller_receives(&mut self, p: usize, incoming: &Incoming) {
        match incoming {
            Incoming::Message(answer) if answer.seq > 0 => self.told(p, answer),
            Incoming::Message(Answer { offset, .. }) => {
                assert_eq!(*offset, 0, "only answers are numbered");
                self.peers[p].receive(incoming);
            }
            Incoming::Close(code) => {
                self.peers[p].receive(incoming);
                if *code == 4000 {
                    self.travel.saw("taken over", 1);
                }
                self.is_cut_off(p);
            }
            Incoming::Http(101) | Incoming::Ping(_) | Incoming::Pong => {
                self.peers[p].receive(incoming);
            }
            Incoming::Http(_) => {
                self.peers[p].receive(incoming);
                self.is_cut_off(p);
            }
        }
    }

    fn told(&mut self, p: usize, answer: &Answer) {
        assert!(self.peers[p].close_code.is_none(), "promise 14: {answer:?} after the close frame");
        let leg = self.leg(p);
        match &*answer.kind {
            "auth_ok" => {}
            "resumed" => {
                assert_eq!((answer.seq, leg.stage), (leg.resume_seq, Stage::Resume), "{answer:?}");
                self.is_resumed(p, answer);
            }
            "error" => self.is_refused(p, answer),
            _ => self.is_answered(p, answer),
        }
    }

    /// `auth` or `resume` is refused.
    fn is_refused(&mut self, p: usize, answer: &Answer) {
        let reason = &*answer.reason;
        let leg = self.leg_mut(p);
        let may =
            matches!(reason, "UNAVAILABLE" | "RATE_LIMITED") || leg.wrong == Some(Wrong::Offset);
        assert!(may, "{answer:?} on {leg:?}");
        if answer.seq == leg.resume_seq {
            leg.stage = Stage::Going;
        }
        self.travel.saw("refused", 1);
        self.hangs_up(p);
    }

    /// Ends a connection on which nothing more is to be had.
    fn hangs_up(&mut self, p: usize) {
        self.is_cut_off(p);
        let mut out = Vec::new();
        wire::frame(&mut out, wire::CLOSE, true, &1000_u16.to_be_bytes(), &mut self.dice);
        self.peers[p].write(&out);
        self.peers[p].sent_close = true;
        self.at(1, Event::Write(p));
    }

    fn is_resumed(&mut self, p: usize, answer: &Answer) {
        assert_eq!(answer.offset, 0, "`resumed` has no offset");
        let told = read_resumed(self.peers[p].encoding, &answer.payload);
        let word = format!("{} {}", told.outcome, told.reason);
        let (t, wrong) = (self.leg(p).traveller, self.leg(p).wrong);
        self.leg_mut(p).stage = Stage::Going;
        if let Some(wrong) = wrong {
            let right = match wrong {
                Wrong::Secret | Wrong::Id => word == "lost UNKNOWN",
                // Of one that is over who knows the secret may know the end.
                Wrong::User | Wrong::Offset => told.outcome == "lost",
                Wrong::Boot => word == "lost RESTARTED",
            };
            assert!(right, "promise 14: {wrong:?} gets {told:?}");
            self.travel.saw("refused", 1);
            return self.hangs_up(p);
        }
        let k = self.travel.travellers[t].session;
        if self.leg(p).is_ghost {
            return self.is_resumed_in_vain(p, &told);
        }
        self.travel.saw(word.trim(), 1);
        match (&*told.outcome, k) {
            ("new", None) => {
                let own = self.leg(p).session.expect("made with the message");
                self.goes_on(p, own, &told);
            }
            ("lost", Some(k)) => {
                self.check_lost(k, &told.reason);
                self.travel.sessions[k].is_over = true;
                let (encoding, next) = (self.peers[p].encoding, answer.seq + 1);
                let own = self.travel.sessions.len();
                self.travel.sessions.push(Session::new(encoding, next, self.now));
                self.goes_on(p, own, &told);
            }
            (_, Some(k)) => {
                let next = self.check_goes_on(p, k, &told);
                let leg = self.leg_mut(p);
                (leg.next, leg.replays_to) = (next, told.offset);
                self.replaces(p, k, told.offset);
                self.goes_on(p, k, &told);
                self.sends_again(p, k, told.received_seq, told.outcome == "gap");
            }
            (_, None) => panic!("promise 12: nobody asked for a session: {told:?}"),
        }
    }

    /// A connection that was left reads that it was resumed: its client goes by what it had.
    fn is_resumed_in_vain(&mut self, p: usize, told: &client::Resumed) {
        let Some(Claim { session, offset, .. }) = self.leg(p).claim.clone() else { return };
        let next = match &*told.reason {
            "" => Next::Is(offset + 1),
            "OVERFLOW" | "ENCODING" => Next::Within(offset + 2, told.offset + 1),
            _ => return,
        };
        let k = self.travel.sessions.iter().position(|known| known.id == session);
        let leg = self.leg_mut(p);
        (leg.session, leg.next) = (k, next);
    }

    /// Connection `p` serves the session `k` from now on.
    fn goes_on(&mut self, p: usize, k: usize, told: &client::Resumed) {
        let encoding = self.peers[p].encoding;
        let leg = self.leg_mut(p);
        leg.session = Some(k);
        let t = leg.traveller;
        self.travel.travellers[t].session = Some(k);
        let session = &mut self.travel.sessions[k];
        (session.id, session.secret) = (told.session.clone(), told.secret.clone());
        (session.encoding, session.is_mixed) = (encoding, false);
        if told.outcome == "gap" {
            (session.gap_to, session.gap_reason) = (told.offset, told.reason.clone());
        }
    }

    /// Connections that the session was on carry nothing of it any more.
    fn replaces(&mut self, p: usize, k: usize, last: u64) {
        if self.travel.sessions[k].is_raced {
            return;
        }
        for other in self.travel.travellers[self.leg(p).traveller].legs.clone() {
            let peer = &self.peers[other];
            let is_left = !peer.sent_close && !peer.ends && !peer.reset;
            let leg = self.leg_mut(other);
            if other != p && leg.session == Some(k) {
                leg.limit = leg.limit.min(last);
                leg.is_replaced = is_left;
            }
        }
    }

    /// Sends again what was not read.
    fn sends_again(&mut self, p: usize, k: usize, received: u64, is_gap: bool) {
        let seqs: Vec<u64> = self.travel.sessions[k].sent.keys().copied().collect();
        for seq in seqs {
            let entry = self.travel.sessions[k].sent.get_mut(&seq).expect("just seen");
            if seq <= received {
                entry.is_excused |= is_gap && entry.answer.is_none();
                continue;
            }
            let mut message = entry.message.clone();
            message.is_bytes = self.is_bytes(p, message.msg_id);
            let end = self.put(p, &message);
            let entry = self.travel.sessions[k].sent.get_mut(&seq).expect("just seen");
            entry.on = (p, end);
        }
        self.at(1, Event::Write(p));
    }

    fn is_answered(&mut self, p: usize, answer: &Answer) {
        let leg = self.leg_mut(p);
        let k = leg.session.unwrap_or_else(|| panic!("promise 12: {answer:?} of no session"));
        let is_current = !leg.is_ghost;
        if answer.offset == 0 {
            assert_eq!(leg.stage, Stage::Resume, "promise 12: {answer:?} has no offset");
            let entry = self.travel.sessions[k].sent.get(&answer.seq);
            assert!(entry.is_some_and(|entry| entry.is_early), "{answer:?} has no offset");
            self.travel.sessions[k].settles(answer);
            return self.hears(k, answer);
        }
        assert_eq!(leg.stage, Stage::Going, "promise 12: {answer:?} before `resumed`");
        assert!(answer.offset <= leg.limit, "promise 14: {answer:?} on an old connection");
        let fits = match leg.next {
            Next::Is(offset) => answer.offset == offset,
            Next::Within(from, to) => (from..=to).contains(&answer.offset),
        };
        assert!(fits, "promise 12: {answer:?}, not {:?}", leg.next);
        leg.next = Next::Is(answer.offset + 1);
        let is_replayed = answer.offset <= leg.replays_to;
        if is_current {
            let session = &mut self.travel.sessions[k];
            session.offset = answer.offset;
        }
        let is_new = self.travel.sessions[k].takes(answer);
        self.travel.saw("replayed", u64::from(is_replayed));
        if is_new {
            self.hears(k, answer);
        }
    }

    fn hears(&mut self, k: usize, answer: &Answer) {
        if let Some(unit) = self.travel.sessions[k].sent[&answer.seq].unit {
            self.oracle.answered(unit, answer);
        }
    }
}
