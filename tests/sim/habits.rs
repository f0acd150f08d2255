//! Habits of clients: they send in bursts, repeat messages, break rules, read slowly, leave.

use shardgate::message::Encoding;
use shardgate::routing::{PayloadKind, Route};
use shardgate::wire::client;

use crate::client::{Peer, SentKind};
use crate::greedy::{Role, STORM_US};
use crate::members::STALL_US;
use crate::oracle::Sender;
use crate::plan;
use crate::tenants::tenant_of;
use crate::wire::{self, Message};
use crate::world::{Event, World};

impl World {
    /// A client writes the bytes that it has, or makes new ones.
    pub fn peer_writes(&mut self, p: usize) {
        if self.peers[p].gone || self.peers[p].reset {
            return;
        }
        let is_done = self.peers[p].orders >= self.peers[p].messages_max;
        if self.peers[p].outgoing.is_empty() && self.peers[p].may_send() && self.active && !is_done
        {
            self.act(p);
        }
        let room = self.up_room(p);
        let split = self.dice.chance(self.plan.faults.split);
        let most = if split { self.dice.range(1, 300) as usize } else { usize::MAX };
        let peer = &mut self.peers[p];
        let n = peer.outgoing.len().min(room).min(most);
        let bytes: Vec<u8> = peer.outgoing.drain(..n).collect();
        peer.up.extend(bytes);
        let rest = !peer.outgoing.is_empty();
        if n > 0 || peer.ends || peer.reset {
            self.readable(p);
        }
        let after = match rest {
            true => self.dice.range(1, 2_000),
            false if self.peers[p].has_token => STORM_US - self.now % STORM_US,
            false => self.dice.range(1, self.plan.pause_us),
        };
        if rest || self.active {
            self.at(after, Event::Write(p));
        }
    }

    fn act(&mut self, p: usize) {
        if self.peers[p].leg.is_some() {
            return self.travels_on(p);
        }
        if self.peers[p].member.is_some() {
            return self.member_acts(p);
        }
        let faults = self.plan.faults.clone();
        let encoding = self.peers[p].encoding;
        if self.peers[p].written == 0 {
            let token = match self.peers[p].role {
                Role::Any => self.dice.chance(faults.sign_in).then(|| self.token(p)),
                Role::Greedy | Role::Polite => self.token_of_role(p),
            };
            let upgrade = wire::upgrade(encoding, token.as_deref(), &mut self.dice);
            self.peers[p].signed = token.is_some();
            if token.is_some() {
                let tenant = tenant_of(self.peers[p].user);
                self.peers[p].shown.insert(tenant);
            }
            self.peers[p].write(&upgrade);
            // Some do not wait for the answer.
            if !self.dice.chance(20) {
                return;
            }
        }
        if self.dice.chance(faults.leave) {
            return self.leave(p);
        }
        if self.dice.chance(faults.bad) {
            return self.misbehave(p);
        }
        // In front of a burst, so that messages follow the token.
        let signs_in = match self.peers[p].role {
            Role::Any => self.dice.chance(faults.sign_in / 4),
            Role::Greedy => self.peers[p].has_token,
            Role::Polite => false,
        };
        if signs_in {
            self.sign_in(p);
        }
        let left = match self.peers[p].role {
            Role::Any => u64::MAX,
            Role::Greedy | Role::Polite => {
                self.peers[p].messages_max.saturating_sub(self.peers[p].orders)
            }
        };
        for _ in 0..self.dice.range(1, self.plan.burst).min(left) {
            match self.dice.below(20) {
                // Among them is an `auth` without a token.
                0 if self.peers[p].role == Role::Any => self.send_builtin(p),
                1 => {
                    let mut out = Vec::new();
                    wire::frame(&mut out, wire::PING, true, b"hello", &mut self.dice);
                    self.peers[p].write(&out);
                }
                _ => self.send_message(p),
            }
        }
        // Then no later message can carry along one that was forgotten.
        self.peers[p].silent = signs_in && self.dice.chance(20) && self.peers[p].role == Role::Any;
    }

    /// A token of the client's user; now and then one that is broken, or that expires soon.
    fn token(&mut self, p: usize) -> String {
        let lifetime_s = self.dice.pick(&[1, 600, 600, 600]);
        if let Some(token) = self.token_of_role(p) {
            return token;
        }
        let mut token = plan::token(self.peers[p].user, self.now, lifetime_s);
        if self.dice.chance(3) {
            token.pop();
        }
        token
    }

    /// Signs in, or again, or as somebody else.
    fn sign_in(&mut self, p: usize) {
        // Where a quota may refuse the first token, somebody else's would be a first one, too.
        let may_be_first = self.tenancy.is_some() && !self.peers[p].auth_ok;
        let other = self.peers[p].signed && !may_be_first && self.dice.chance(10);
        let user = self.peers[p].user + usize::from(other);
        let token = match other {
            true => plan::token(user, self.now, 600),
            false => self.token(p),
        };
        self.peers[p].shown.insert(tenant_of(user));
        let auth = client::Auth { token };
        let payload = client::payload(self.peers[p].encoding, &auth);
        let message = Message { kind: "auth", payload, ..Message::default() };
        if !std::mem::replace(&mut self.peers[p].signed, true) {
            // Messages sent so far were the session's.
            self.peers[p].with_id.clear();
        }
        let one_way = self.dice.chance(20);
        self.submit(p, message, SentKind::Builtin, one_way);
    }

    /// Whether messages of this client are its user's and not its session's. Where messages are
    /// limited, the `auth` message may have been refused: there the answer is awaited.
    fn is_user(&self, p: usize) -> bool {
        let is_limited =
            self.plan.settings.limits.address.messages_per_s > 0 || self.tenancy.is_some();
        self.peers[p].signed && (self.peers[p].auth_ok || !is_limited)
    }

    /// Sends again a message that another connection of the same user has sent. False: there is
    /// none.
    fn repeat_of_user(&mut self, p: usize) -> bool {
        let user = self.peers[p].user;
        let Some(shared) = self.shared.get(&user).filter(|_| self.is_user(p)) else {
            return false;
        };
        let bytes = self.peers[p].encoding == Encoding::Json;
        let at = self.dice.below(shared.len() as u64) as usize;
        let (mut message, unit) = shared[at].clone();
        message.is_bytes = bytes && self.plan.route(message.msg_id).is_some_and(is_bytes);
        self.oracle.repeats(unit);
        self.submit(p, message, SentKind::Routed(unit), false);
        true
    }

    /// Sends a message to a service, sometimes one that was sent before.
    fn send_message(&mut self, p: usize) {
        let faults = self.plan.faults.clone();
        if self.dice.chance(faults.repeat / 3) && self.repeat_of_user(p) {
            return;
        }
        let known = self.peers[p].with_id.len() as u64;
        if known > 0 && self.dice.chance(faults.repeat) {
            let at = self.dice.below(known.min(20));
            let (mut message, unit) = self.peers[p].with_id[(known - 1 - at) as usize].clone();
            if self.dice.chance(5) {
                // The same id for something else: refused.
                let unit = self.new_unit(p, &mut message, false);
                return self.submit(p, message, SentKind::Routed(unit), false);
            }
            self.oracle.repeats(unit);
            return self.submit(p, message, SentKind::Routed(unit), false);
        }
        let first = match self.tenancy {
            Some(_) => self.dice.pick(&[1_000, 2_000, 3_000, 4_000, 5_000, 5_000]),
            None => self.dice.pick(&[1_000, 2_000, 3_000, 4_000]),
        };
        let msg_id = first + self.dice.below(4) as u32 * 100 + self.dice.below(3) as u32;
        let msg_id = if self.dice.chance(1) { 5_555 } else { msg_id };
        let route = self.plan.route(msg_id).cloned();
        let bytes = route.as_ref().is_some_and(is_bytes);
        let mut message = Message { msg_id, ..Message::default() };
        message.is_bytes = bytes && self.peers[p].encoding == Encoding::Json;
        if self.dice.chance(faults.with_id) {
            message.id = format!("id{p}-{}", self.peers[p].orders);
            // The same ones from users of both tenants.
            if self.tenancy.is_some() && self.dice.chance(30) {
                message.id = format!("common-{}", self.dice.below(20));
            }
        }
        if self.dice.chance(60) {
            message.key = format!("room{}", self.dice.below(3));
        }
        if self.dice.chance(faults.short_deadline) {
            message.deadline_ms = self.dice.range(1, 40) as u32;
        }
        let one_way = message.id.is_empty() && self.dice.chance(faults.one_way);
        let shared = self.is_user(p) && !message.id.is_empty() && self.dice.chance(30);
        let unit = self.new_unit(p, &mut message, shared);
        // Whose the id is must be known: its scope is the session's or the user's.
        if !message.id.is_empty() && (!self.peers[p].signed || self.is_user(p)) {
            self.peers[p].with_id.push((message.clone(), unit));
        }
        if shared {
            let user = self.peers[p].user;
            self.shared.entry(user).or_default().push((message.clone(), unit));
        }
        self.submit(p, message, SentKind::Routed(unit), one_way);
    }

    /// Gives the message its unit, which stands in its payload.
    fn new_unit(&mut self, p: usize, message: &mut Message, shared: bool) -> u64 {
        let Peer { orders: order, signed, .. } = self.peers[p];
        let route = self.plan.route(message.msg_id).cloned();
        let sender = Sender { peer: p, signed, shared, order };
        let unit = self.oracle.sends(&sender, message, route.as_ref());
        let large = self.dice.chance(self.plan.faults.large);
        let most = if large { 6_000 } else { 40 };
        let filler = "x".repeat(self.dice.below(most) as usize);
        message.payload = format!("{{\"p\":\"{filler}\",\"u\":{unit}}}").into_bytes();
        unit
    }

    /// Sends a message that the gateway answers itself.
    fn send_builtin(&mut self, p: usize) {
        let (msg_id, kind) = match self.dice.below(9) {
            0 => (0, "ping"),
            1 => (0, "heartbeat"),
            2 => (0, "auth"),
            3 => (0, "nonsense"),
            n => (9_000 + n as u32 - 4, ""),
        };
        let payload = match (msg_id, &self.tenancy) {
            (9_003, None) => b"{\"msg_id\":1000}".to_vec(),
            (9_003, Some(_)) => self.question(p),
            _ => Vec::new(),
        };
        let message = Message { msg_id, kind, payload, ..Message::default() };
        let one_way = self.dice.chance(30);
        self.submit(p, message, SentKind::Builtin, one_way);
    }

    /// Asks where a message would go that one of the tenants has a route for.
    fn question(&mut self, p: usize) -> Vec<u8> {
        let msg_id = self.dice.pick(&[1_300, 2_300, 3_300, 5_000, 5_100, 5_200]);
        let question = client::Explain { msg_id, key: String::new() };
        client::payload(self.peers[p].encoding, &question)
    }

    fn submit(&mut self, p: usize, mut message: Message, kind: SentKind, one_way: bool) {
        let encoding = self.peers[p].encoding;
        let seq = if one_way { 0 } else { self.peers[p].next_seq + self.dice.range(1, 3) };
        self.peers[p].next_seq = self.peers[p].next_seq.max(seq);
        message.seq = seq;
        if let (Some(tenancy), SentKind::Routed(unit)) = (&mut self.tenancy, kind) {
            let Peer { user, tenant, shown, .. } = &self.peers[p];
            let before = if tenant.is_some() { None } else { Some("") };
            let shown = shown.iter().copied().filter(|name| tenant.is_none_or(|is| is == *name));
            tenancy.sends(unit, &message, (p, *user), shown.chain(before));
        }
        let order = self.peers[p].orders;
        self.peers[p].orders += 1;
        let mut out = Vec::new();
        let text = wire::encode(encoding, &message);
        wire::message(&mut out, opcode(encoding), &text, &mut self.dice);
        self.peers[p].write(&out);
        self.peers[p].expect_answer(seq, message.msg_id, kind, order);
    }

    fn misbehave(&mut self, p: usize) {
        let encoding = self.peers[p].encoding;
        let mut out = Vec::new();
        match self.dice.below(5) {
            // A seq that was used before.
            0 => {
                // A bad message leaves its seq unused.
                let mut used =
                    self.peers[p].sent.iter().rev().filter(|(_, s)| s.kind != SentKind::Bad);
                let Some((&seq, _)) = used.next() else { return };
                let message = Message { msg_id: 1_000, seq, ..Message::default() };
                let text = wire::encode(encoding, &message);
                wire::message(&mut out, opcode(encoding), &text, &mut self.dice);
                self.peers[p].write(&out);
                let end = self.peers[p].written;
                let sent = self.peers[p].sent.get_mut(&seq).expect("just seen");
                (sent.misused, sent.end) = (sent.misused + 1, end);
            }
            // Neither msg_id nor type.
            1 => self.submit(p, Message::default(), SentKind::Bad, false),
            2 => {
                let key = "k".repeat(129);
                let message = Message { msg_id: 1_000, key, ..Message::default() };
                self.submit(p, message, SentKind::Bad, false);
            }
            3 => {
                let text: &[u8] =
                    if encoding == Encoding::Json { b"{nonsense" } else { &[0xff; 3] };
                wire::message(&mut out, opcode(encoding), text, &mut self.dice);
                self.peers[p].write(&out);
            }
            // Breaks RFC 6455: this client sends no more.
            _ => {
                self.peers[p].write(&[0xf3, 0x80, 0, 0, 0, 0]);
                self.peers[p].sent_close = true;
            }
        }
    }

    fn leave(&mut self, p: usize) {
        match self.dice.below(3) {
            0 => {
                let peer = &mut self.peers[p];
                peer.reset = true;
                peer.outgoing.clear();
                peer.up.clear();
                peer.down.clear();
                peer.gone = true;
                self.replace();
            }
            1 => self.peers[p].ends = true,
            _ => {
                let mut out = Vec::new();
                wire::frame(&mut out, wire::CLOSE, true, &1000_u16.to_be_bytes(), &mut self.dice);
                self.peers[p].write(&out);
                self.peers[p].sent_close = true;
            }
        }
    }

    fn replace(&mut self) {
        if self.active && self.peers.len() < 200 {
            self.connect();
        }
    }

    /// Schedules a read of a client.
    pub fn schedule_read(&mut self, p: usize) {
        if self.peers[p].reads_at.is_some() || self.peers[p].gone {
            return;
        }
        let longest = match self.active {
            true if self.peers[p].stalls => STALL_US,
            true if self.peers[p].slow => 30_000,
            true | false => 300,
        };
        let after = self.dice.range(1, longest);
        self.peers[p].reads_at = Some(self.now + after);
        self.at(after, Event::Read(p));
    }

    pub fn peer_reads(&mut self, p: usize) {
        self.peers[p].reads_at = None;
        if self.peers[p].gone {
            return;
        }
        let most = if self.peers[p].slow && self.active { 500 } else { usize::MAX };
        self.takes_in(p, most);
        let peer = &mut self.peers[p];
        if !peer.down.is_empty() {
            self.schedule_read(p);
        } else if peer.gateway_ended {
            peer.gone = true;
            // The client closes its side, too: the gateway may wait for that.
            peer.ends = true;
            peer.outgoing.clear();
            self.readable(p);
            match (&self.peers[p].leg, self.peers[p].member) {
                (Some(_), _) => self.is_cut_off(p),
                (None, Some(_)) => self.member_is_cut_off(p),
                (None, None) => self.replace(),
            }
        }
    }

    /// A client takes some of the bytes that have come, `most` at most.
    pub fn takes_in(&mut self, p: usize, most: usize) {
        let peer = &mut self.peers[p];
        let encoding = peer.encoding;
        let n = peer.down.len().min(most);
        let bytes: Vec<u8> = peer.down.drain(..n).collect();
        peer.parser.push(&bytes);
        while let Some(incoming) = self.peers[p].parser.next(encoding) {
            if self.peers[p].leg.is_some() {
                self.traveller_receives(p, &incoming);
            } else if self.peers[p].member.is_some() {
                self.member_receives(p, &incoming);
            } else if let Some(unit) = self.peers[p].receive(&incoming) {
                let wire::Incoming::Message(answer) = &incoming else { continue };
                self.oracle.answered(unit, answer);
                if let Some(tenancy) = &mut self.tenancy {
                    tenancy.answered(unit, answer);
                }
            }
            if let Some(tenancy) = &self.tenancy {
                let peer = &mut self.peers[p];
                let mut text = std::mem::take(&mut peer.parser.told);
                if let wire::Incoming::Message(answer) = &incoming {
                    text.push_str(&format!("{} {} ", answer.kind, answer.reason));
                    text.push_str(&String::from_utf8_lossy(&answer.payload));
                }
                tenancy.told(&text, &peer.shown);
            }
            if let wire::Incoming::Ping(payload) = &incoming
                && !self.peers[p].sent_close
                && !self.peers[p].ends
            {
                let mut out = Vec::new();
                wire::frame(&mut out, wire::PONG, true, payload, &mut self.dice);
                self.peers[p].write(&out);
                self.at(1, Event::Write(p));
            }
            if let wire::Incoming::Close(code) = incoming
                && !self.peers[p].sent_close
                && self.dice.chance(80)
            {
                let mut out = Vec::new();
                let code = if code == 1005 { 1000 } else { code };
                wire::frame(&mut out, wire::CLOSE, true, &code.to_be_bytes(), &mut self.dice);
                self.peers[p].sent_close = true;
                self.peers[p].write(&out);
                self.at(1, Event::Write(p));
            }
        }
        if n > 0 {
            self.writable(p);
        }
    }
}

fn is_bytes(route: &Route) -> bool {
    route.payload == PayloadKind::Bytes
}

pub fn opcode(encoding: Encoding) -> u8 {
    match encoding {
        Encoding::Json => wire::TEXT,
        Encoding::Protobuf => wire::BINARY,
    }
}
