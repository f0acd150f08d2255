//! One connection of the load: it connects, upgrades, signs in, sends and counts its answers.

mod end;
mod resume;

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use rustix::event::epoll::{self, EventData, EventFlags};
use tungstenite::handshake::client::generate_key;

use super::context::Context;
use super::envelope::{self, Answer};
use super::fault::Fault;
use super::plan::{Load, Sessions};
use super::session::Session;
use super::upgrade::{self, Upgraded};
use super::window::{Answered, Sent, Window};
use super::wire::Wire;
use crate::wire::frames::client::read_server;
use crate::wire::frames::{Control, OpCode};

use end::End;

/// Bytes that wait for a connection's socket; with as many, no further message is written: an open
/// loop takes another connection. As many as one message of the default size limit.
const BACKLOG_BYTES_MAX: usize = 64 << 10;
/// Messages that a slow reader sends without reading an answer: some 60 KiB of small answers, so
/// that they fill buffers without end.
const SLOW_UNREAD_MAX: u64 = 1000;
/// Bytes by which an input buffer may grow before it is given back when it is empty.
const INPUT_BYTES_KEPT: usize = 64 << 10;
/// Time for the end of a connection after its close frame.
const CLOSE_NS: u64 = 1_000_000_000;
/// Stage of a connection's life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// There is none; it waits for its turn.
    Idle,
    /// TCP connects.
    Connecting,
    /// The request was written, and its response is awaited.
    Upgrading,
    /// The welcome is awaited.
    Welcoming,
    /// The answer to the token is awaited.
    SigningIn,
    /// The answer to `resume` is awaited.
    Resuming,
    /// Messages flow.
    Ready,
    /// No more messages are sent; it ends with its last answer.
    Leaving,
    /// The close frame was sent.
    Closing,
}

/// A connection.
pub struct Link {
    /// Its number in the run.
    number: usize,
    /// Its index in the worker.
    index: usize,
    phase: Phase,
    /// Whether it was there once, or an attempt failed.
    is_tried: bool,
    wire: Option<Wire>,
    /// The start of something that has not come in whole.
    input: Vec<u8>,
    output: Vec<u8>,
    /// Bytes of `output` that were written.
    written: usize,
    window: Window,
    /// Time at which this attempt, or the close, began.
    began: u64,
    failures: u32,
    key: String,
    /// Last sentence of the gateway that belongs to no message: it says why a close follows.
    said: String,
    /// Messages that a slow reader has sent and not read the answers of; `None` = it is a fast one.
    slow_unread: Option<u64>,
    /// Its session, if that is resumed; a slow reader's is not.
    session: Option<Box<Session>>,
}

impl Link {
    /// A connection that is not there yet.
    pub fn new(number: usize, index: usize, is_slow: bool, sessions: Sessions) -> Self {
        let is_resumed = !is_slow && matches!(sessions, Sessions::Resumed { .. });
        Self {
            number,
            index,
            phase: Phase::Idle,
            is_tried: false,
            wire: None,
            input: Vec::new(),
            output: Vec::new(),
            written: 0,
            window: Window::default(),
            began: 0,
            failures: 0,
            key: String::new(),
            said: String::new(),
            slow_unread: is_slow.then_some(0),
            session: is_resumed.then(Box::default),
        }
    }

    /// Whether messages that count can be sent on it.
    pub fn is_usable(&self) -> bool {
        self.is_measured() && self.phase == Phase::Ready
    }

    /// Whether another message that counts may be written for its socket.
    pub fn has_room(&self) -> bool {
        self.is_usable() && self.output.len() - self.written < BACKLOG_BYTES_MAX
    }

    /// Whether its messages count.
    pub fn is_measured(&self) -> bool {
        self.slow_unread.is_none()
    }

    /// Begins to connect.
    pub fn open(&mut self, cx: &mut Context<'_>) {
        self.began = cx.now();
        self.phase = Phase::Connecting;
        cx.connecting += 1;
        let tls = cx.plan.tls.as_ref().map(|config| (config, &*cx.plan.target.host));
        let wire = Wire::open(cx.address, source(self.number, cx.plan.sources), tls);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let added = wire.and_then(|wire| {
            let token = EventData::new_u64(self.index as u64);
            epoll::add(cx.epoll, &wire, token, flags).map_err(|e| Fault::of(e.into()))?;
            Ok(wire)
        });
        match added {
            Ok(wire) => self.wire = Some(wire),
            Err(fault) => self.end(End::Fault(fault), cx),
        }
    }

    /// Takes what the set says of its socket.
    pub fn on_ready(&mut self, is_readable: bool, is_ended: bool, cx: &mut Context<'_>) {
        if self.wire.is_none() {
            return;
        }
        let done = self.progress(is_readable, is_ended, cx);
        let done = done.and_then(|()| self.flush()).and_then(|()| {
            // The socket may have room now for messages that waited for it.
            self.refill(cx);
            if self.output.is_empty() { Ok(()) } else { self.flush() }
        });
        if let Err(end) = done {
            self.end(end, cx);
        }
    }

    fn progress(
        &mut self,
        is_readable: bool,
        is_ended: bool,
        cx: &mut Context<'_>,
    ) -> Result<(), End> {
        if self.phase == Phase::Connecting {
            let failed = self.wire.as_ref().and_then(Wire::connect_error);
            if let Some(error) = failed {
                return Err(Fault::of(error).into());
            }
            self.phase = Phase::Upgrading;
            self.key = generate_key();
            upgrade::request(&cx.plan.target, cx.plan.encoding, &self.key, &mut self.output);
            self.flush()?;
        }
        let reads_later = self.slow_unread.is_some() && self.phase == Phase::Ready && !is_ended;
        if is_readable && !reads_later {
            self.read(usize::MAX, is_ended, cx)?;
        }
        Ok(())
    }

    /// Lets a slow reader read at most `bytes`.
    pub fn read_slowly(&mut self, bytes: usize, cx: &mut Context<'_>) {
        if self.phase != Phase::Ready || bytes == 0 {
            return;
        }
        let done = self.read(bytes, false, cx).and_then(|()| self.flush());
        if let Err(end) = done {
            self.end(end, cx);
        }
    }

    fn read(&mut self, most: usize, is_ended: bool, cx: &mut Context<'_>) -> Result<(), End> {
        let mut scratch = std::mem::take(&mut cx.scratch);
        let mut left = most;
        let result = loop {
            let Some(wire) = &mut self.wire else { break Ok(()) };
            let room = scratch.len().min(left);
            match wire.read(&mut scratch[..room]) {
                Ok(0) => break self.at_end(cx),
                Ok(n) => {
                    let is_empty = n < room && wire.is_emptied_by_short_reads() && !is_ended;
                    cx.tick();
                    let taken = self.take(&scratch[..n], cx);
                    left -= n;
                    if taken.is_err() || is_empty || left == 0 {
                        break taken;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break self.broken(Fault::of(error)),
            }
        };
        cx.scratch = scratch;
        result
    }

    /// Takes a fault of the transport.
    fn broken(&self, fault: Fault) -> Result<(), End> {
        Err(match self.phase {
            Phase::Ready | Phase::Leaving | Phase::Closing => End::Closed(None),
            _ => End::Fault(fault),
        })
    }

    /// Takes the end of the other side's bytes.
    fn at_end(&mut self, cx: &Context<'_>) -> Result<(), End> {
        if self.phase == Phase::Upgrading {
            upgrade::read(&self.input, &self.key, cx.plan.encoding, true)
                .map_err(|refused| self.refused(refused))?;
        }
        self.broken(Fault::Ended)
    }

    fn refused(&mut self, refused: upgrade::Refused) -> End {
        self.said = refused.text;
        End::Fault(refused.fault)
    }

    /// Takes bytes that came in.
    fn take(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Result<(), End> {
        if self.input.is_empty() {
            let used = self.consume(bytes, cx)?;
            self.input.extend_from_slice(&bytes[used..]);
        } else {
            self.input.extend_from_slice(bytes);
            let mut input = std::mem::take(&mut self.input);
            let used = self.consume(&input, cx)?;
            input.drain(..used);
            if !input.is_empty() || input.capacity() <= INPUT_BYTES_KEPT {
                self.input = input;
            }
        }
        self.refill(cx);
        Ok(())
    }

    /// Takes all that is complete; returns the number of its bytes.
    fn consume(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Result<usize, End> {
        let mut used = 0;
        if self.phase == Phase::Upgrading {
            let read = upgrade::read(bytes, &self.key, cx.plan.encoding, false);
            match read.map_err(|refused| self.refused(refused))? {
                Upgraded::NotYet => return Ok(0),
                Upgraded::With { head_bytes } => used = head_bytes,
            }
            self.phase = Phase::Welcoming;
        }
        loop {
            let frame = read_server(&bytes[used..]).map_err(Fault::NotAGateway)?;
            let Some((frame, len)) = frame else { return Ok(used) };
            used += len;
            match frame.opcode {
                OpCode::Data(_) => {
                    let answer = Answer::read(cx.plan.encoding, frame.payload)
                        .ok_or(Fault::NotAGateway("what it says is no message of a gateway"))?;
                    self.on_message(&answer, frame.payload, cx)?;
                }
                OpCode::Control(Control::Ping) => {
                    envelope::pong(frame.payload, &mut cx.rng, &mut self.output);
                }
                OpCode::Control(Control::Close) => {
                    let code = frame.payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                    if self.phase != Phase::Closing {
                        envelope::close(code.unwrap_or(1000), &mut cx.rng, &mut self.output);
                        let _ = self.flush();
                    }
                    if self.said.is_empty() {
                        let why = frame.payload.get(2..).unwrap_or_default();
                        self.said = String::from_utf8_lossy(why).into_owned();
                    }
                    return Err(End::Closed(code));
                }
                OpCode::Control(_) => {}
            }
        }
    }

    fn on_message(
        &mut self,
        answer: &Answer<'_>,
        bytes: &[u8],
        cx: &mut Context<'_>,
    ) -> Result<(), End> {
        if answer.kind == "error" && !(self.phase == Phase::Ready && answer.seq > 0) {
            answer.message.as_ref().clone_into(&mut self.said);
        }
        match self.phase {
            Phase::Welcoming => match &*answer.kind {
                "welcome" => self.welcomed(bytes, cx),
                "error" => {}
                _ => return Err(Fault::NotAGateway("its first message is no welcome").into()),
            },
            Phase::SigningIn => match &*answer.kind {
                "auth_ok" => self.signed_in(cx),
                "error" => return Err(Fault::SignIn(answer.reason.clone().into_owned()).into()),
                _ => {}
            },
            Phase::Resuming => match &*answer.kind {
                "resumed" => self.resumed(bytes, cx)?,
                "error" => return Err(Fault::Resume(answer.reason.clone().into_owned()).into()),
                _ => {}
            },
            // A message with the number 0 answers none: a drain is announced, or one-way errors.
            Phase::Ready | Phase::Leaving | Phase::Closing if answer.seq > 0 => {
                self.on_answer(answer, cx);
            }
            _ => {}
        }
        Ok(())
    }

    fn on_answer(&mut self, answer: &Answer<'_>, cx: &mut Context<'_>) {
        if let Some(unread) = &mut self.slow_unread {
            *unread = unread.saturating_sub(1);
            cx.tally.slow_answered += 1;
            return;
        }
        if let Some(session) = &mut self.session {
            session.came(answer.offset);
        }
        match self.window.answer(answer.seq.saturating_sub(envelope::SIGN_IN_SEQ)) {
            Answered::First(sent) => {
                cx.open -= 1;
                cx.answered_one(answer);
                if sent.measured {
                    let ns = cx.now().saturating_sub(sent.due);
                    cx.tally.answered(answer, sent.kind, ns);
                    cx.tally.resumes.answered(cx.now(), ns);
                }
            }
            Answered::Late { measured } => {
                cx.answered_one(answer);
                cx.tally.late += u64::from(measured);
            }
            Answered::Again => cx.tally.doubled += 1,
            Answered::Unasked => cx.tally.unasked += 1,
        }
    }

    fn welcomed(&mut self, welcome: &[u8], cx: &mut Context<'_>) {
        let (encoding, tokens) = (cx.plan.encoding, &cx.plan.tokens);
        if !tokens.is_empty() {
            let token = &tokens[self.number % tokens.len()];
            envelope::sign_in(encoding, token, &mut cx.rng, &mut self.output);
            self.phase = Phase::SigningIn;
        }
        if let Some(session) = &mut self.session {
            session.meets(envelope::boot(encoding, welcome));
            session.resume(encoding, &mut cx.rng, &mut self.output);
        }
        if tokens.is_empty() {
            self.signed_in(cx);
        }
    }

    fn signed_in(&mut self, cx: &mut Context<'_>) {
        match self.session {
            // It was asked for with the token.
            Some(_) => self.phase = Phase::Resuming,
            None => self.begin(cx),
        }
    }

    /// Begins to send.
    fn begin(&mut self, cx: &mut Context<'_>) {
        self.phase = Phase::Ready;
        self.tried(cx);
        self.failures = 0;
        self.said.clear();
        cx.connecting -= 1;
        cx.ready += usize::from(self.is_measured());
        cx.tally.connects.saturating_record(cx.now() - self.began);
        self.refill(cx);
    }

    fn tried(&mut self, cx: &mut Context<'_>) {
        cx.tried += usize::from(!self.is_tried);
        self.is_tried = true;
    }

    /// Sends what a closed loop, or a slow reader, may send now.
    pub fn refill(&mut self, cx: &mut Context<'_>) {
        if self.phase == Phase::Leaving && self.window.open() == 0 {
            envelope::close(1000, &mut cx.rng, &mut self.output);
            self.phase = Phase::Closing;
            self.began = cx.now();
        }
        if self.phase != Phase::Ready || !cx.is_sending {
            return;
        }
        if let Some(unread) = &mut self.slow_unread {
            let written = self.written;
            while *unread < SLOW_UNREAD_MAX && self.output.len() - written < BACKLOG_BYTES_MAX {
                *unread += 1;
                cx.tally.slow_sent += 1;
                let kind = cx.writer.pick(&mut cx.rng);
                cx.writer.message(kind, cx.tally.slow_sent, 0, &mut cx.rng, &mut self.output);
            }
        } else if let Load::Closed { depth } = cx.plan.load {
            while self.window.open() < depth && self.has_room() && cx.may_send() {
                self.send(cx.now(), cx);
            }
        }
    }

    /// Writes a message that was due at `due` into the output.
    pub fn send(&mut self, due: u64, cx: &mut Context<'_>) {
        let measured = cx.sends_one(due);
        let kind = cx.writer.pick(&mut cx.rng);
        let seq = self.window.push(Sent { due, at: cx.now(), kind, measured });
        let seq = seq + envelope::SIGN_IN_SEQ;
        let ack = self.session.as_deref().map_or(0, Session::offset);
        cx.writer.message(kind, seq, ack, &mut cx.rng, &mut self.output);
    }

    /// Writes the output as far as the socket takes it, and ends the connection if that fails.
    pub fn flush_or_end(&mut self, cx: &mut Context<'_>) {
        if let Err(end) = self.flush() {
            self.end(end, cx);
        }
    }

    fn flush(&mut self) -> Result<(), End> {
        let Some(wire) = &mut self.wire else { return Ok(()) };
        let result = loop {
            if self.written == self.output.len() {
                self.output.clear();
                self.written = 0;
                break wire.push();
            }
            match wire.write(&self.output[self.written..]) {
                Ok(n) => self.written += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        if self.written > BACKLOG_BYTES_MAX {
            self.output.drain(..self.written);
            self.written = 0;
        }
        match result {
            // The reason of the end may lie unread: a close frame, an HTTP error. Its read says it.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => self.broken(Fault::of(error)),
            Ok(()) => Ok(()),
        }
    }

    /// Gives up messages that have waited for too long. Those of a session without a connection
    /// have their time from when it goes on.
    pub fn expire(&mut self, cx: &mut Context<'_>) {
        if self.session.as_deref().is_some_and(Session::is_away) {
            return;
        }
        let (now, timeout) = (cx.now(), cx.timeout_ns);
        let (open, tally) = (&mut cx.open, &mut cx.tally);
        self.window.expire(now, timeout, |sent| {
            *open -= 1;
            tally.timed_out += u64::from(sent.measured);
        });
    }

    /// Looks at what has a time limit.
    pub fn check_time(&mut self, cx: &mut Context<'_>) {
        self.expire(cx);
        let (now, timeout) = (cx.now(), cx.timeout_ns);
        match self.phase {
            Phase::Idle => {}
            Phase::Ready | Phase::Leaving => {
                self.refill(cx);
                self.flush_or_end(cx);
            }
            Phase::Closing if now - self.began > CLOSE_NS => self.end(End::Closed(None), cx),
            Phase::Closing => {}
            _ if now - self.began > timeout => self.end(End::Fault(Fault::Silent), cx),
            _ => {}
        }
    }

    /// Has it leave when it has its answers, for a new connection in its place.
    pub fn leave(&mut self, cx: &mut Context<'_>) {
        if self.is_usable() && self.session.is_some() {
            cx.tally.churned += 1;
            self.cut(cx);
        } else if self.is_usable() {
            cx.ready -= 1;
            self.phase = Phase::Leaving;
            self.refill(cx);
            self.flush_or_end(cx);
        }
    }
}

/// Address of the connection with this number, if they come from several: 127.0.0.1, 127.0.0.2, …
fn source(number: usize, sources: usize) -> Option<IpAddr> {
    let index = (sources > 0).then(|| number % sources)?;
    let first = u32::from(Ipv4Addr::LOCALHOST);
    Some(Ipv4Addr::from(first + index as u32).into())
}
