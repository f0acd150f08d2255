//! One simulated connection: both socket buffers, what was sent on it and what came back.

use std::collections::{BTreeMap, VecDeque};

use shardgate::ids::ConnId;
use shardgate::message::Encoding;

use crate::wire::{Answer, Heard, Message, Parser};

/// Bytes that the kernel holds for the gateway's side.
pub const UP_BYTES_MAX: usize = 32 << 10;

/// What a seq stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// A routed message: its unit.
    Business(u64),
    /// Answered by the gateway itself.
    Own,
    /// Not a message: gets an `error`.
    Bad,
}

/// One message that wants an answer.
#[derive(Debug)]
pub struct Sent {
    pub what: What,
    pub msg_id: u32,
    /// Its place among the messages of the connection.
    pub order: u64,
    /// Its last byte in what the client wrote.
    pub end: u64,
    pub answers: u32,
    /// Times this seq was used again, each of which gets an `error`.
    pub misused: u32,
}

#[derive(Debug)]
pub struct Peer {
    pub shard: usize,
    pub encoding: Encoding,
    pub conn: Option<ConnId>,
    pub slow: bool,
    /// Written by the client, not in the kernel yet.
    pub outgoing: VecDeque<u8>,
    /// In the kernel, towards the gateway.
    pub up: VecDeque<u8>,
    /// In the kernel, towards the client.
    pub down: VecDeque<u8>,
    pub down_max: usize,
    /// The client closes its side after what it wrote.
    pub ends: bool,
    pub reset: bool,
    /// The gateway closed its side after what it wrote.
    pub gateway_ended: bool,
    /// So did a shard that had ended, with all that it had to say.
    pub said_goodbye: bool,
    /// Bytes the client wrote, and those of them that the engine was given.
    pub written: u64,
    pub read: u64,
    /// `read` when the gateway began to close this connection.
    pub read_at_close: Option<u64>,
    pub parser: Parser,
    pub open: bool,
    pub draining: bool,
    pub close_code: Option<u16>,
    pub says_close: bool,
    pub gone: bool,
    pub reads_at: Option<u64>,
    pub next_seq: u64,
    pub orders: u64,
    pub sent: BTreeMap<u64, Sent>,
    /// Messages with an id that may be repeated, and their units: of the present identity.
    pub with_id: Vec<(Message, u64)>,
    /// Who it signs in as, and whether it has: all it writes from then on is that user's.
    pub user: usize,
    pub signed: bool,
    /// The gateway said that it has signed in: without this, a limit may have refused its token.
    pub auth_ok: bool,
    /// It has said all it had to say, and waits for its answers.
    pub silent: bool,
    pub session: Option<String>,
}

impl Peer {
    pub fn new(shard: usize, encoding: Encoding, slow: bool, down_max: usize) -> Self {
        Self {
            shard,
            encoding,
            conn: None,
            slow,
            outgoing: VecDeque::new(),
            up: VecDeque::new(),
            down: VecDeque::new(),
            down_max,
            ends: false,
            reset: false,
            gateway_ended: false,
            said_goodbye: false,
            written: 0,
            read: 0,
            read_at_close: None,
            parser: Parser::default(),
            open: false,
            draining: false,
            close_code: None,
            says_close: false,
            gone: false,
            reads_at: None,
            next_seq: 0,
            orders: 0,
            sent: BTreeMap::new(),
            with_id: Vec::new(),
            user: 0,
            signed: false,
            auth_ok: false,
            silent: false,
            session: None,
        }
    }

    /// Whether it may send messages.
    pub fn talks(&self) -> bool {
        !self.gone
            && !self.reset
            && !self.ends
            && !self.draining
            && !self.says_close
            && !self.silent
            && self.close_code.is_none()
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.outgoing.extend(bytes);
        self.written += bytes.len() as u64;
    }

    /// Remembers that `seq` wants an answer.
    pub fn expects(&mut self, seq: u64, msg_id: u32, what: What, order: u64) {
        if seq > 0 {
            let end = self.written;
            let sent = Sent { what, msg_id, order, end, answers: 0, misused: 0 };
            assert!(self.sent.insert(seq, sent).is_none(), "the simulator reused a seq");
        }
    }

    /// Takes in what the gateway said; gives the unit that was answered, if one was.
    pub fn hears(&mut self, heard: &Heard) -> Option<u64> {
        match heard {
            Heard::Http(101) => self.open = true,
            Heard::Http(_) => self.draining = true,
            Heard::Pong => {}
            Heard::Close(code) => {
                assert!(self.close_code.replace(*code).is_none(), "a second close frame");
            }
            Heard::Message(answer) => return self.hears_message(answer),
        }
        None
    }

    fn hears_message(&mut self, answer: &Answer) -> Option<u64> {
        assert!(self.close_code.is_none(), "a message after the close frame");
        match answer.kind.as_str() {
            "draining" => self.draining = true,
            "auth_ok" => self.auth_ok = true,
            "welcome" => {
                assert!(self.session.is_none(), "a second welcome");
                self.session = Some(String::from_utf8_lossy(&answer.payload).into_owned());
            }
            _ => {}
        }
        assert!(self.session.is_some() || !self.open, "welcome comes first");
        if answer.seq == 0 {
            let known = ["welcome", "draining", "error", "pong", "auth_ok"];
            let known = known.contains(&answer.kind.as_str());
            assert!(known, "promise 1: an answer to nothing: {answer:?}");
            return None;
        }
        let sent = self.sent.get_mut(&answer.seq);
        let sent = sent.unwrap_or_else(|| panic!("promise 1: an answer to nothing: {answer:?}"));
        // What could not be taken as a message is told without its msg_id.
        let bad = answer.kind == "error" && answer.reason == "BAD_MESSAGE" && answer.msg_id == 0;
        if bad && sent.misused > 0 {
            sent.misused -= 1;
            return None;
        }
        sent.answers += 1;
        assert!(sent.answers == 1, "promise 1: a second answer: {answer:?} {sent:?}");
        if sent.what != What::Bad {
            assert!(sent.msg_id == answer.msg_id, "promise 1: {answer:?} to {sent:?}");
        }
        match sent.what {
            What::Business(unit) => {
                // A repetition of an id in another form is refused as bad.
                assert!(answer.kind.is_empty(), "a reply has no type: {answer:?}");
                Some(unit)
            }
            What::Own => None,
            What::Bad => {
                assert!(answer.kind == "error", "a bad message got {answer:?}");
                None
            }
        }
    }

    /// Seqs without their answer among those that lie in the first `limit` bytes.
    pub fn unanswered(&self, limit: u64) -> Vec<u64> {
        let late = self.sent.iter().filter(|(_, s)| s.end <= limit);
        late.filter(|(_, s)| s.answers != 1 || s.misused != 0).map(|(&seq, _)| seq).collect()
    }
}
