//! The plan of a run: where to, which load, and when it ends.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use super::target::Target;
use crate::message::Encoding;

/// Characters of a payload that the words of a plan have: a few keys with their values.
const PAYLOAD_CHARS: usize = 40;

/// A run that is to be made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The gateway.
    pub target: Target,
    /// Settings of TLS; `None` = without.
    pub tls: Option<Arc<ClientConfig>>,
    /// Encoding of the messages.
    pub encoding: Encoding,
    /// When the next message is sent.
    pub load: Load,
    /// Connections that are measured.
    pub connections: usize,
    /// Further connections that send and read slowly, or not at all. They are not measured.
    pub slow_readers: usize,
    /// Bytes that each of them reads in a second.
    pub slow_bytes_per_s: u64,
    /// Kinds of messages; at least one.
    pub mix: Vec<Kind>,
    /// Tokens that connections sign in with, in turn; none = they do not sign in.
    pub tokens: Vec<String>,
    /// Addresses of 127.0.0.0/8 that connections come from, in turn; 0 = the system's choice.
    pub sources: usize,
    /// New connections in a second while the run begins; 0 = as fast as they are accepted.
    pub connects_per_s: u64,
    /// Connections that are replaced by new ones in a second.
    pub churn_per_s: u64,
    /// What becomes of a session whose connection is gone.
    pub sessions: Sessions,
    /// Time before anything counts.
    pub warmup: Duration,
    /// Time that counts; `None` = until all messages are answered.
    pub duration: Option<Duration>,
    /// Messages that count; `None` = as many as the time allows.
    pub messages: Option<u64>,
    /// Time after which a message without an answer is given up.
    pub timeout: Duration,
    /// Threads that generate the load.
    pub threads: usize,
    /// Cores that they are pinned to, in turn; none = not pinned.
    pub cpus: Vec<usize>,
    /// Processes whose CPU time is told.
    pub pids: Vec<u32>,
}

impl Plan {
    /// The load in words: all that makes the figures of two runs differ by intent.
    pub fn in_words(&self) -> String {
        let encoding = match self.encoding {
            Encoding::Json => "JSON",
            Encoding::Protobuf => "Protobuf",
        };
        let load = match self.load {
            Load::Closed { depth: 1 } => "closed loop, one message at a time".to_owned(),
            Load::Closed { depth } => format!("closed loop, {depth} messages at a time"),
            Load::Open { per_s, arrivals } => {
                format!("open loop, {per_s} messages a second ({arrivals:?} arrivals)")
            }
        };
        let all: u64 = self.mix.iter().map(|kind| u64::from(kind.weight)).sum();
        let kinds: Vec<String> = self.mix.iter().map(|kind| kind.in_words(all)).collect();
        let kinds = kinds.join(" and ");
        let mut words = format!("{} connections, {load}, {encoding}, {kinds}", self.connections);
        if self.target.is_secure {
            words += ", TLS";
        }
        for (count, what) in [
            (self.tokens.len() as u64, "tokens"),
            (self.sources as u64, "source addresses"),
            (self.connects_per_s, "connects a second at first"),
            (self.churn_per_s, "replaced a second"),
        ] {
            if count > 0 {
                words += &format!(", {count} {what}");
            }
        }
        if let Sessions::Resumed { cut_at } = self.sessions {
            words += ", sessions are resumed";
            if let Some(at) = cut_at {
                words += &format!(", all connections cut after {} s", at.as_secs_f64());
            }
        }
        if self.slow_readers > 0 {
            let (count, bytes) = (self.slow_readers, self.slow_bytes_per_s);
            words += &format!(", {count} slow readers of {bytes} bytes a second");
        }
        words
    }
}

/// The rule by which the next message is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Load {
    /// Each connection has so many messages on their way, and sends the next one when one is
    /// answered.
    Closed {
        /// Messages on their way, at least 1.
        depth: usize,
    },
    /// Messages are due at a rate over all connections, however long the answers take.
    Open {
        /// Messages a second.
        per_s: u64,
        /// Distribution of the times between them.
        arrivals: Arrivals,
    },
}

/// What becomes of a session whose connection is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sessions {
    /// It ends, and the next connection begins another one.
    #[default]
    End,
    /// It is resumed on the next connection. Connections that are to be replaced are cut.
    Resumed {
        /// Time after the beginning of what is measured at which all connections are cut.
        cut_at: Option<Duration>,
    },
}

/// Distribution of the times between two events.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Arrivals {
    /// Evenly spaced.
    #[default]
    Constant,
    /// At random, independent of each other, as many independent users are.
    Poisson,
}

/// A kind of messages in the mix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kind {
    /// Id of the message, which chooses the service.
    pub msg_id: u32,
    /// Share of the messages, beside the weights of the other kinds.
    pub weight: u32,
    /// Payload, JSON; empty = none.
    pub payload: String,
}

impl Kind {
    /// The kind in words; the weights of the mix are `all`. A payload of one's own has a meaning
    /// besides its length, and is told, too.
    fn in_words(&self, all: u64) -> String {
        let Self { msg_id, weight, payload } = self;
        let share = match u64::from(*weight) == all {
            true => String::new(),
            false => format!("{weight} of {all}, "),
        };
        let bytes = payload.len();
        if *payload == filler(bytes) {
            return format!("id {msg_id} ({share}{bytes} bytes)");
        }
        let start: String = payload.chars().take(PAYLOAD_CHARS).collect();
        let rest = if start == *payload { "" } else { "…" };
        format!("id {msg_id} ({share}{bytes} bytes, {start}{rest})")
    }
}

/// The part of a plan that one thread carries out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share {
    /// Number of the thread.
    pub thread: usize,
    /// Threads in all.
    pub of: usize,
}

impl Share {
    /// This thread's part of `whole` things that cannot be divided: the parts of all are `whole`.
    pub fn part(self, whole: u64) -> u64 {
        let (thread, of) = (self.thread as u64, self.of as u64);
        whole / of + u64::from(thread < whole % of)
    }

    /// This thread's part of a rate.
    pub fn rate(self, per_s: u64) -> f64 {
        per_s as f64 / self.of as f64
    }
}

/// The payload of a filler with exactly `bytes` bytes of JSON; 0 = none.
pub fn filler(bytes: usize) -> String {
    const FRAME: usize = r#"{"text":""}"#.len();
    match bytes {
        0 => String::new(),
        1 => "0".into(),
        2..FRAME => format!("\"{}\"", "x".repeat(bytes - 2)),
        FRAME.. => format!("{{\"text\":\"{}\"}}", "x".repeat(bytes - FRAME)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filler_is_json_of_the_length_that_was_asked_for() {
        for bytes in 1..40 {
            let text = filler(bytes);
            assert_eq!(text.len(), bytes, "{text}");
            serde_json::from_str::<serde_json::Value>(&text).expect("JSON");
        }
        assert_eq!(filler(0), "");
    }

    #[test]
    fn the_parts_of_all_threads_are_the_whole() {
        for whole in [0, 1, 7, 64] {
            let parts = (0..3).map(|thread| Share { thread, of: 3 }.part(whole));
            assert_eq!(parts.sum::<u64>(), whole);
        }
    }
}
