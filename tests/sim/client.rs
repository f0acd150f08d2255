//! A simulated client and its connection: both socket buffers, the messages sent and the answers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use shardgate::ids::ConnId;
use shardgate::message::Encoding;

use crate::greedy::Role;
use crate::tenants::TENANTS;
use crate::travel::Leg;
use crate::wire::{Answer, Incoming, Message, Parser};

/// Bytes that the kernel holds for the gateway's side.
pub const UP_BYTES_MAX: usize = 32 << 10;

/// Kind of a message that a client has sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SentKind {
    /// A message for a service, with the number of its unit.
    Routed(u64),
    /// A message that the gateway answers itself.
    Builtin,
    /// Bytes that are no good message: they get an `error`.
    Bad,
}

/// A message that is to be answered.
#[derive(Debug)]
pub struct Sent {
    pub kind: SentKind,
    pub msg_id: u32,
    /// Place of the message among those of its connection.
    pub order: u64,
    /// Place of the message's last byte among the bytes that the client wrote.
    pub end: u64,
    pub answers: u32,
    /// Number of times that the seq was used again, each of which gets an `error`.
    pub misused: u32,
}

#[derive(Debug)]
pub struct Peer {
    pub shard: usize,
    pub encoding: Encoding,
    pub conn: Option<ConnId>,
    pub slow: bool,
    /// Bytes written by the client that are not in the kernel yet.
    pub outgoing: VecDeque<u8>,
    /// Bytes in the kernel, towards the gateway.
    pub up: VecDeque<u8>,
    /// Bytes in the kernel, towards the client.
    pub down: VecDeque<u8>,
    pub down_max: usize,
    /// Whether the client closes its side behind the bytes that it wrote.
    pub ends: bool,
    pub reset: bool,
    /// Whether the gateway closed its side behind the bytes that it wrote.
    pub gateway_ended: bool,
    /// Whether the last turn of a shard closed the connection, with room for its last bytes.
    pub cut_by_end: bool,
    /// Bytes that the client wrote, and those of them that the engine was given.
    pub written: u64,
    pub read: u64,
    /// Value of `read` when the gateway began to close this connection.
    pub read_at_close: Option<u64>,
    pub parser: Parser,
    pub open: bool,
    pub draining: bool,
    pub close_code: Option<u16>,
    /// Status of an upgrade that was refused.
    pub refused: Option<u16>,
    pub sent_close: bool,
    pub gone: bool,
    pub reads_at: Option<u64>,
    pub next_seq: u64,
    pub orders: u64,
    pub sent: BTreeMap<u64, Sent>,
    /// Messages with an id that may be repeated, and their units: those sent under the present
    /// identity.
    pub with_id: Vec<(Message, u64)>,
    /// The user as whom the client signs in, and whether it has sent a token: all it writes from
    /// then on is that user's.
    pub user: usize,
    pub signed: bool,
    /// Whether the gateway confirmed the sign-in: without this, a limit may have refused the token.
    pub auth_ok: bool,
    /// Tenants of whose users the client has shown a token, and the one that it is known to be of.
    pub shown: BTreeSet<&'static str>,
    pub tenant: Option<&'static str>,
    /// Whether the client sends no more and waits for its answers.
    pub silent: bool,
    pub session: Option<String>,
    /// Messages that it sends at most: another seed shows more than further messages would.
    pub messages_max: u64,
    /// Its part, its address and whether it shows a token, in a run with greedy clients.
    pub role: Role,
    pub address: [u8; 4],
    pub has_token: bool,
    /// State of a traveller's connection.
    pub leg: Option<Leg>,
    /// The member whose connection it is, in a run with pushes.
    pub member: Option<usize>,
    /// Whether it mostly does not read at all.
    pub stalls: bool,
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
            cut_by_end: false,
            written: 0,
            read: 0,
            read_at_close: None,
            parser: Parser::default(),
            open: false,
            draining: false,
            close_code: None,
            refused: None,
            sent_close: false,
            gone: false,
            reads_at: None,
            next_seq: 0,
            orders: 0,
            sent: BTreeMap::new(),
            with_id: Vec::new(),
            user: 0,
            signed: false,
            auth_ok: false,
            shown: BTreeSet::new(),
            tenant: None,
            silent: false,
            session: None,
            messages_max: 300,
            role: Role::Any,
            address: [127, 0, 0, 1],
            has_token: false,
            leg: None,
            member: None,
            stalls: false,
        }
    }

    /// Whether the client may send messages.
    pub fn may_send(&self) -> bool {
        !self.gone
            && !self.reset
            && !self.ends
            && !self.draining
            && !self.sent_close
            && !self.silent
            && self.close_code.is_none()
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.outgoing.extend(bytes);
        self.written += bytes.len() as u64;
    }

    /// Remembers that `seq` is to be answered.
    pub fn expect_answer(&mut self, seq: u64, msg_id: u32, kind: SentKind, order: u64) {
        if seq > 0 {
            let end = self.written;
            let sent = Sent { kind, msg_id, order, end, answers: 0, misused: 0 };
            assert!(self.sent.insert(seq, sent).is_none(), "the simulator reused a seq");
        }
    }

    /// Takes something that the gateway sent; gives the unit that it answers, if it does.
    pub fn receive(&mut self, incoming: &Incoming) -> Option<u64> {
        match incoming {
            Incoming::Http(101) => self.open = true,
            Incoming::Http(status) => {
                self.draining = true;
                self.refused = Some(*status);
            }
            Incoming::Ping(_) => {
                assert!(self.close_code.is_none(), "a ping after the close frame");
            }
            Incoming::Pong => {}
            Incoming::Close(code) => {
                assert!(self.close_code.replace(*code).is_none(), "a second close frame");
            }
            Incoming::Message(answer) => return self.receive_message(answer),
        }
        None
    }

    fn receive_message(&mut self, answer: &Answer) -> Option<u64> {
        assert!(self.close_code.is_none(), "a message after the close frame");
        match answer.kind.as_str() {
            "draining" => self.draining = true,
            "auth_ok" => {
                self.auth_ok = true;
                let text = String::from_utf8_lossy(&answer.payload);
                let is_named = |name: &&&str| text.contains(**name);
                self.tenant = self.tenant.or(TENANTS.iter().find(is_named).copied());
            }
            "welcome" => {
                assert!(self.session.is_none(), "a second welcome");
                self.session = Some(String::from_utf8_lossy(&answer.payload).into_owned());
            }
            _ => {}
        }
        assert!(self.session.is_some() || !self.open, "welcome comes first");
        assert_eq!(answer.offset, 0, "nobody asked for offsets: {answer:?}");
        if answer.seq == 0 {
            let known = ["welcome", "draining", "error", "pong", "auth_ok"];
            let known = known.contains(&answer.kind.as_str());
            assert!(known, "promise 1: an answer to nothing: {answer:?}");
            return None;
        }
        let sent = self.sent.get_mut(&answer.seq);
        let sent = sent.unwrap_or_else(|| panic!("promise 1: an answer to nothing: {answer:?}"));
        // The error for bytes that are no message has no msg_id.
        let bad = answer.kind == "error" && answer.reason == "BAD_MESSAGE" && answer.msg_id == 0;
        if bad && sent.misused > 0 {
            sent.misused -= 1;
            return None;
        }
        sent.answers += 1;
        assert!(sent.answers == 1, "promise 1: a second answer: {answer:?} {sent:?}");
        if sent.kind != SentKind::Bad {
            assert!(sent.msg_id == answer.msg_id, "promise 1: {answer:?} to {sent:?}");
        }
        match sent.kind {
            SentKind::Routed(unit) => {
                // A repetition of an id in another form is refused as bad.
                assert!(answer.kind.is_empty(), "a reply has no type: {answer:?}");
                Some(unit)
            }
            SentKind::Builtin => None,
            SentKind::Bad => {
                assert!(answer.kind == "error", "a bad message got {answer:?}");
                None
            }
        }
    }

    /// Seqs without their answer among those in the first `limit` bytes.
    pub fn unanswered(&self, limit: u64) -> Vec<u64> {
        let late = self.sent.iter().filter(|(_, s)| s.end <= limit);
        late.filter(|(_, s)| s.answers != 1 || s.misused != 0).map(|(&seq, _)| seq).collect()
    }
}
