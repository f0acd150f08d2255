//! The options of `shardgate bench`, and the plan that they come to.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use clap::value_parser;
use rustls::ClientConfig;
use serde::de::IgnoredAny;

use crate::bench::{Arrivals, Kind, Load, Plan, SOURCES_MAX, Sessions, Target, filler};
use crate::config::settings::GatewaySettings;
use crate::config::{Config, Problems, reachable};
use crate::message::Encoding;
use crate::preflight::{allowed_cores, ranges};
use crate::tls::client::{Trust, config};

/// Message that is sent if no other is named: the demo service logic echoes it.
const MSG_ID: u32 = 1001;
/// Bytes of its payload: `{"text":"hello"}`.
const PAYLOAD_BYTES: u32 = 16;
/// Kinds of messages in a mix.
const KINDS_MAX: usize = 100;
/// Longest time that is measured: a day.
const LONGEST: Duration = Duration::from_secs(86_400);

/// Encoding of the messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Spoken {
    #[default]
    Json,
    Protobuf,
}

/// Flags of `shardgate bench`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct BenchArgs {
    /// Gateway, ws://HOST:PORT/PATH or wss:// [default: that of the configuration]
    url: Option<String>,
    /// Connections
    #[arg(long, value_name = "N", default_value_t = 64)]
    #[arg(value_parser = value_parser!(u32).range(1..=1_000_000))]
    connections: u32,
    /// Closed loop: messages that each connection has on their way
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "rate")]
    #[arg(value_parser = value_parser!(u32).range(1..=65_536))]
    depth: u32,
    /// Open loop: messages a second over all connections; latency counts from when one was due
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..=10_000_000))]
    rate: Option<u64>,
    /// Open loop: evenly spaced, or at random as independent users are
    #[arg(long, value_enum, default_value_t, requires = "rate")]
    arrivals: Arrivals,
    /// Encoding of the messages
    #[arg(long, value_enum, default_value_t)]
    encoding: Spoken,
    /// Message id, its share of the messages, and bytes of its payload; several times for a mix
    #[arg(long, value_name = "ID[:WEIGHT[:BYTES]]", value_parser = mix)]
    mix: Vec<(u32, u32, Option<u32>)>,
    /// Payload of all messages, JSON
    #[arg(long, value_name = "JSON", conflicts_with = "payload_bytes")]
    payload: Option<String>,
    /// Bytes of a filler as payload; 0 = none
    #[arg(long, value_name = "N", default_value_t = PAYLOAD_BYTES)]
    #[arg(value_parser = value_parser!(u32).range(0..=16 << 20))]
    payload_bytes: u32,
    /// Token that connections sign in with; other processes can see it, so rather take --tokens
    #[arg(long, value_name = "TOKEN", conflicts_with = "tokens")]
    token: Option<String>,
    /// File of tokens, one a line, taken in turn
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Addresses of 127.0.0.0/8 that connections come from, in turn
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=SOURCES_MAX as i64))]
    sources: Option<u32>,
    /// New connections a second at the beginning [default: as fast as they are accepted]
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..=1_000_000))]
    connects_per_s: Option<u64>,
    /// Connections that are replaced by new ones in a second
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..=1_000_000))]
    churn: Option<u64>,
    /// Sessions are resumed by connections that --churn cuts, or that are lost
    #[arg(long)]
    resume: bool,
    /// Time of what is measured at which all connections are cut, without a close frame
    #[arg(long, value_name = "TIME", value_parser = time, requires = "resume")]
    cut_at: Option<Duration>,
    /// Further connections that send and read slowly, or not at all
    #[arg(long, value_name = "N", default_value_t = 0)]
    #[arg(value_parser = value_parser!(u32).range(0..=1_000_000))]
    slow_readers: u32,
    /// Bytes that each slow reader reads in a second
    #[arg(long, value_name = "N", default_value_t = 0, requires = "slow_readers")]
    #[arg(value_parser = value_parser!(u64).range(0..=1 << 30))]
    slow_bytes_per_s: u64,
    /// Time that is measured: 10, 10s, 500ms, 5m [default: 10s, or until --messages are answered]
    #[arg(long, value_name = "TIME", value_parser = time)]
    duration: Option<Duration>,
    /// Time before that, which does not count [default: 1s, or 0 with --messages]
    #[arg(long, value_name = "TIME", value_parser = time)]
    warmup: Option<Duration>,
    /// Messages that count, then it ends
    #[arg(long, value_name = "N")]
    #[arg(value_parser = value_parser!(u64).range(1..=1_000_000_000_000))]
    messages: Option<u64>,
    /// Time after which a message without an answer is given up
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "10s")]
    timeout: Duration,
    /// Threads that make the load
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = value_parser!(u32).range(1..=256))]
    threads: u32,
    /// Cores to which these threads are pinned, with commas between
    #[arg(long, value_name = "LIST", value_delimiter = ',', num_args = 1)]
    cpu: Vec<usize>,
    /// Processes of the gateway, with commas between: tells their CPU time a message
    #[arg(long, value_name = "LIST", value_delimiter = ',', num_args = 1)]
    pid: Vec<u32>,
    /// Certificates of the authority that signed the gateway's, PEM [default: the system's]
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    ca: Option<PathBuf>,
    /// Take any certificate
    #[arg(long)]
    insecure: bool,
    /// Store the run in a file, for --vs
    #[arg(long, value_name = "FILE")]
    pub(super) save: Option<PathBuf>,
    /// Compare with a stored run
    #[arg(long, value_name = "FILE")]
    pub(super) vs: Option<PathBuf>,
    /// Write the latencies as a percentile file of HdrHistogram
    #[arg(long, value_name = "FILE")]
    pub(super) hgrm: Option<PathBuf>,
    /// Draw the percentiles, with those of --vs
    #[arg(long, value_name = "FILE")]
    pub(super) svg: Option<PathBuf>,
}

impl BenchArgs {
    /// The plan. The error is one line.
    pub(super) fn plan(
        &self,
        loaded: impl FnOnce() -> Result<Config, Problems>,
    ) -> Result<Plan, String> {
        let target = match &self.url {
            Some(url) => Target::parse(url, &GatewaySettings::default().path)?,
            None => of_configuration(loaded)?,
        };
        let duration = match (self.duration, self.messages) {
            (None, None) => Some(Duration::from_secs(10)),
            (given, _) => given,
        };
        if duration == Some(Duration::ZERO) || self.timeout.is_zero() {
            return Err("--duration and --timeout must be above 0, e.g. 10s".into());
        }
        let warmup = match (self.warmup, self.messages) {
            (Some(given), _) => given,
            (None, Some(_)) => Duration::ZERO,
            (None, None) => Duration::from_secs(1),
        };
        if self.cut_at.zip(duration).is_some_and(|(at, whole)| at >= whole) {
            return Err(
                "--cut-at must be below --duration: it is a time of what is measured".into()
            );
        }
        let cores = allowed_cores();
        if let Some(core) = self.cpu.iter().find(|core| !cores.contains(core)) {
            let cores = ranges(&cores);
            return Err(format!("--cpu {core}: this process may run on the cores {cores}"));
        }
        Ok(Plan {
            tls: self.tls(&target)?,
            target,
            encoding: match self.encoding {
                Spoken::Json => Encoding::Json,
                Spoken::Protobuf => Encoding::Protobuf,
            },
            load: match self.rate {
                Some(per_s) => Load::Open { per_s, arrivals: self.arrivals },
                None => Load::Closed { depth: self.depth as usize },
            },
            connections: self.connections as usize,
            slow_readers: self.slow_readers as usize,
            slow_bytes_per_s: self.slow_bytes_per_s,
            mix: self.kinds()?,
            tokens: self.all_tokens()?,
            sources: self.sources.unwrap_or(0) as usize,
            connects_per_s: self.connects_per_s.unwrap_or(0),
            churn_per_s: self.churn.unwrap_or(0),
            sessions: match self.resume {
                true => Sessions::Resumed { cut_at: self.cut_at },
                false => Sessions::End,
            },
            warmup,
            duration,
            messages: self.messages,
            timeout: self.timeout,
            threads: self.threads as usize,
            cpus: self.cpu.clone(),
            pids: self.pid.clone(),
        })
    }

    fn tls(&self, target: &Target) -> Result<Option<Arc<ClientConfig>>, String> {
        if !target.is_secure {
            return match self.ca.is_some() || self.insecure {
                true => Err(format!("--ca and --insecure are for wss://, not {}", target.url())),
                false => Ok(None),
            };
        }
        let trust = match (&self.ca, self.insecure) {
            (_, true) => Trust::Anybody,
            (Some(path), false) => Trust::File(path),
            (None, false) => Trust::System,
        };
        config(trust).map(Some)
    }

    fn kinds(&self) -> Result<Vec<Kind>, String> {
        if self.mix.len() > KINDS_MAX {
            return Err(format!("--mix: at most {KINDS_MAX} kinds of messages"));
        }
        if let Some(payload) = &self.payload {
            serde_json::from_str::<IgnoredAny>(payload).map_err(|error| {
                format!("--payload is no JSON ({error}); a text is written as '\"text\"'")
            })?;
        }
        let one = [(MSG_ID, 1, None)];
        let mix = if self.mix.is_empty() { &one[..] } else { &self.mix };
        let kind = |&(msg_id, weight, bytes): &(u32, u32, Option<u32>)| {
            let payload = match (bytes, &self.payload) {
                (Some(bytes), _) => filler(bytes as usize),
                (None, Some(payload)) => payload.clone(),
                (None, None) => filler(self.payload_bytes as usize),
            };
            Kind { msg_id, weight, payload }
        };
        Ok(mix.iter().map(kind).collect())
    }

    fn all_tokens(&self) -> Result<Vec<String>, String> {
        let Some(path) = &self.tokens else { return Ok(self.token.iter().cloned().collect()) };
        let at = |why: &str| format!("--tokens {}: {why}", path.display());
        let text = fs::read_to_string(path).map_err(|error| at(&error.to_string()))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let tokens: Vec<String> = lines.map(str::to_owned).collect();
        if tokens.is_empty() {
            return Err(at("it holds no token; write one a line"));
        }
        Ok(tokens)
    }
}

/// The gateway that the configuration starts.
fn of_configuration(loaded: impl FnOnce() -> Result<Config, Problems>) -> Result<Target, String> {
    let gateway = loaded().map_err(|problems| problems.to_string())?.gateway;
    let (scheme, listen) = match (gateway.listen, gateway.tls.listen) {
        (Some(listen), _) => ("ws", listen),
        (None, Some(listen)) => ("wss", listen),
        (None, None) => return Err("the configuration has no listener: give a URL".into()),
    };
    Target::parse(&format!("{scheme}://{}{}", reachable(listen), gateway.path), &gateway.path)
}

/// Reads a time: seconds, or a number with ms, s, m or h.
fn time(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let ms = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    let time = number.parse::<u64>().ok().filter(|_| ms > 0).and_then(|n| n.checked_mul(ms));
    let time = time.map(Duration::from_millis).filter(|time| *time <= LONGEST);
    time.ok_or_else(|| "a time of at most 24h: 10, 10s, 500ms, 5m".into())
}

/// Reads a part of a mix: an id, its weight, and the bytes of its payload.
fn mix(text: &str) -> Result<(u32, u32, Option<u32>), String> {
    let wrong = || "ID, ID:WEIGHT or ID:WEIGHT:BYTES, e.g. 1001:3:200; at most 16 MiB".to_owned();
    let numbers: Result<Vec<u32>, _> = text.split(':').map(str::parse).collect();
    let numbers = numbers.map_err(|_| wrong())?;
    if numbers.iter().take(2).any(|number| *number == 0) {
        return Err(wrong());
    }
    match numbers[..] {
        [id] => Ok((id, 1, None)),
        [id, weight] => Ok((id, weight, None)),
        [id, weight, bytes] if bytes <= 16 << 20 => Ok((id, weight, Some(bytes))),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::Overrides;
    use crate::config::load::{Files, from_files};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn plan(line: &str) -> Result<Plan, String> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        line.args.plan(|| from_files(Files::embedded(), &[], &Overrides::default()))
    }

    #[test]
    fn without_options_it_is_the_demo_of_the_built_in_configuration() {
        let plan = plan("").expect("right");
        assert_eq!(plan.target.url(), "ws://127.0.0.1:9000/ws");
        assert_eq!((plan.connections, plan.load), (64, Load::Closed { depth: 1 }));
        assert_eq!(plan.duration, Some(Duration::from_secs(10)));
        let kind = Kind { msg_id: 1001, weight: 1, payload: "{\"text\":\"xxxxx\"}".into() };
        assert_eq!(plan.mix, [kind]);
    }

    #[test]
    fn options_come_to_a_plan() {
        let plan = plan(
            "ws://10.0.0.1:1 --rate 500 --arrivals poisson --mix 1:2 --mix 3:4:0 --payload 7 \
             --messages 9 --duration 500ms --resume --cut-at 200ms",
        );
        let plan = plan.expect("right");
        assert_eq!(plan.load, Load::Open { per_s: 500, arrivals: Arrivals::Poisson });
        let payloads: Vec<_> = plan.mix.iter().map(|k| (k.msg_id, &*k.payload)).collect();
        assert_eq!(payloads, [(1, "7"), (3, "")]);
        assert_eq!(plan.sessions, Sessions::Resumed { cut_at: Some(Duration::from_millis(200)) });
        let limits = (plan.messages, plan.duration, plan.warmup);
        assert_eq!(limits, (Some(9), Some(Duration::from_millis(500)), Duration::ZERO));
    }

    #[test]
    fn the_words_of_a_plan_differ_where_the_load_does() {
        let words = |line: &str| plan(line).expect("right").in_words();
        assert_eq!(
            words("--mix 1:9:16 --mix 1:1:400 --mix 3"),
            "64 connections, closed loop, one message at a time, JSON, id 1 (9 of 11, 16 bytes) \
             and id 1 (1 of 11, 400 bytes) and id 3 (1 of 11, 16 bytes)"
        );
        let base = words("");
        for line in [
            "--payload-bytes 400",
            "--payload {\"delay_ms\":5}",
            "--payload {\"delay_ms\":9}",
            "--token a.b.c",
            "--sources 9",
            "--connects-per-s 9",
            "--churn 9",
            "--resume",
            "--resume --cut-at 9s",
            "--slow-readers 9",
            "--slow-readers 9 --slow-bytes-per-s 9",
            "wss://127.0.0.1:1 --insecure",
        ] {
            assert_ne!(words(line), base, "{line}");
        }
        assert!(words("--payload {\"delay_ms\":5}").ends_with("(14 bytes, {\"delay_ms\":5})"));
    }

    #[test]
    fn wrong_options_are_told_with_the_rule() {
        for (line, rule) in [
            ("--connections 0", "1..=1000000"),
            ("--rate 0", "1..=10000000"),
            ("--rate 9 --depth 2", "cannot be used with"),
            ("--arrivals poisson", "--rate"),
            ("--cut-at 1s", "--resume"),
            ("--resume --cut-at 10s", "below --duration"),
            ("--duration 0", "above 0"),
            ("--duration 2d", "at most 24h"),
            ("--duration 99999999999999999999", "at most 24h"),
            ("--mix 0", "ID:WEIGHT"),
            ("--mix 1:0", "ID:WEIGHT"),
            ("--mix 1:1:99999999", "16 MiB"),
            ("--payload {", "no JSON"),
            ("--tokens /nowhere", "--tokens /nowhere: "),
            ("--ca /nowhere", "for wss://"),
            ("wss://a --ca /nowhere", "--ca /nowhere: "),
            ("--cpu 5000", "may run on the cores"),
            ("ftp://a", "does not speak ftp"),
        ] {
            let why = plan(line).map(|_| ()).expect_err(line);
            assert!(why.contains(rule), "{line}: {why}");
        }
    }
}
