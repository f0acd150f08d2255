//! The log against a naive list of pushes, and each of its rules.

use super::*;
use crate::message::Priority;
use proptest::prelude::*;

/// A push with a key and a payload of so many bytes.
pub(crate) fn body_with(key: &str, bytes: usize) -> Arc<Body> {
    Arc::new(Body {
        kind: Kind::Push,
        msg_id: 7001,
        payload: vec![b'1'; bytes].into(),
        is_bytes: false,
        key: key.into(),
        id: "".into(),
        from: "".into(),
        except: Vec::new(),
        priority: Priority::Normal,
        is_transient: false,
        expires: Micros(u64::MAX),
        unix_ms: 0,
    })
}

const ANN: Reader<'static> = Reader {
    session: "0000000000000000",
    user: Some("ann"),
    encoding: Encoding::Json,
    wants_presence: false,
};

/// A frame of a test: its offset, and as many bytes as its payload.
fn encode(out: &mut Vec<u8>, entry: &Entry) {
    out.push(entry.offset as u8);
    out.extend_from_slice(&entry.body.payload);
}

/// Everything that `reader` reads from `at` on, by offsets; sends take `step` bytes at most.
fn read_all(log: &mut Log, at: &mut u64, reader: &Reader<'_>, step: usize) -> Vec<u64> {
    let mut bytes = Vec::new();
    let mut offsets = Vec::new();
    loop {
        match log.next(*at, reader, Micros(100), encode) {
            Next::End => {
                *at = log.end();
                break;
            }
            Next::Missed { first } => {
                offsets.push(u64::MAX - (first - *at));
                *at = first;
            }
            Next::Single { place } => {
                encode(&mut bytes, log.get(place).expect("there"));
                offsets.push(log.get(place).expect("there").offset);
                *at = place + 1;
            }
            Next::Frames { bytes: found, from, to } => {
                let sent = found.len().min(step);
                let (head, whole) = (found[..sent].to_vec(), found.len());
                bytes.extend(head);
                let cursor = if sent == whole {
                    to
                } else {
                    let (cursor, rest) = log.cut(from, sent, reader.encoding).expect("there");
                    bytes.extend_from_slice(rest);
                    cursor
                };
                assert!(cursor > from || sent == 0);
                offsets.extend((from..cursor).map(|place| log.get(place).expect("there").offset));
                *at = cursor;
            }
        }
    }
    // The bytes are whole frames of those, in order.
    let mut rest = &bytes[..];
    for offset in offsets.iter().filter(|offset| **offset < 1 << 32) {
        assert_eq!(rest.first(), Some(&(*offset as u8)));
        let end = 1 + rest[1..].iter().take_while(|byte| **byte == b'1').count();
        rest = &rest[end..];
    }
    assert!(rest.is_empty());
    offsets
}

#[derive(Clone, Debug)]
enum Step {
    Push { key: u8, bytes: usize, excepts: bool, expires: bool },
    Read { reader: usize, step: usize },
    Trim,
    DropFrames,
    Skip,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..4_u8, 0..900_usize, prop::bool::weighted(0.2), prop::bool::weighted(0.1))
            .prop_map(|(key, bytes, excepts, expires)| Step::Push { key, bytes, excepts, expires }),
        4 => (0..3_usize, 1..2_000_usize).prop_map(|(reader, step)| Step::Read { reader, step }),
        1 => Just(Step::Trim),
        1 => Just(Step::DropFrames),
        1 => Just(Step::Skip),
    ]
}

/// A push as the naive list has it.
#[derive(Clone, Debug)]
struct Naive {
    offset: u64,
    key: u8,
    bytes: usize,
    excepts: bool,
    expires: bool,
    superseded: bool,
    /// Whether by one that is for everybody.
    by_all: bool,
}

/// A push of which nothing is there.
const GONE: Naive = Naive {
    offset: 0,
    key: 0,
    bytes: 0,
    excepts: false,
    expires: false,
    superseded: true,
    by_all: true,
};

/// Takes note that a newer push of a key comes.
fn supersede(kept: &mut [Naive], newer: &Naive) {
    if let Some(older) = kept.iter_mut().rfind(|n| newer.key > 0 && n.key == newer.key) {
        older.superseded = true;
        older.by_all = !newer.excepts && !newer.expires;
    }
}

impl Naive {
    fn body(&self) -> Arc<Body> {
        let name = if self.key == 0 { String::new() } else { self.key.to_string() };
        let except = if self.excepts { vec![Excepted::User("ann".into())] } else { Vec::new() };
        let expires = if self.expires { Micros(50) } else { Micros(u64::MAX) };
        Arc::new(Body { except, expires, ..(*body_with(&name, self.bytes)).clone() })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Promises 16 and 17, against a plain list: each reader gets everything that is for it, once
    /// and in order, except where it is told that it missed some; and what is passed over for a
    /// newer one of its key is followed by that.
    #[test]
    fn every_reader_gets_all_that_is_for_it_in_order_or_is_told(
        steps in proptest::collection::vec(step(), 1..80),
        bytes_max in 1_000..20_000_usize,
    ) {
        let mut log = Log::default();
        let mut all: Vec<Naive> = Vec::new();
        // Place of the first one that must be there: index + 1.
        let mut first = 1_u64;
        let mut cursors = [1_u64; 3];
        let bob = Reader { session: "0000000000000001", user: None, ..ANN };
        let cat = Reader { encoding: Encoding::Protobuf, ..bob };
        for step in steps {
            match step {
                Step::Push { key, bytes, excepts, expires } => {
                    // Below the byte of payloads.
                    let offset = all.len() as u64 % 40 + 1;
                    let mut push = Naive { offset, key, bytes, excepts, expires, ..GONE };
                    push.superseded = false;
                    supersede(&mut all[first as usize - 1..], &push);
                    log.push(offset, push.body(), Micros(0));
                    all.push(push);
                }
                Step::Read { reader, step } => {
                    let who = [&ANN, &bob, &cat][reader];
                    let before = cursors[reader];
                    let got = read_all(&mut log, &mut cursors[reader], who, step);
                    let from = before.max(first);
                    prop_assert_eq!(got.iter().any(|o| *o > 1 << 32), before < first);
                    let is_for = |p: &Naive| !(p.expires || p.excepts && reader == 0);
                    let has_newer = |p: &Naive| {
                        p.by_all || all.iter().rfind(|n| n.key == p.key).is_some_and(is_for)
                    };
                    let should: Vec<u64> = all
                        .iter()
                        .enumerate()
                        .filter(|(n, _)| *n as u64 + 1 >= from)
                        .filter(|(_, p)| is_for(p) && !(p.superseded && has_newer(p)))
                        .map(|(_, p)| p.offset)
                        .collect();
                    let got: Vec<u64> = got.into_iter().filter(|o| *o < 1 << 32).collect();
                    prop_assert_eq!(got, should);
                    prop_assert_eq!(cursors[reader], log.end());
                }
                Step::Trim => {
                    log.trim(Retention { bytes: bytes_max, us: u64::MAX }, Micros(1));
                    let size = |from: u64| -> usize {
                        all[from as usize - 1..].iter().map(|p| p.bytes + PUSH_OVERHEAD_BYTES).sum()
                    };
                    while size(first) > bytes_max {
                        first += 1;
                    }
                    prop_assert_eq!(log.first(), first);
                    prop_assert_eq!(log.bytes(), size(first));
                }
                Step::DropFrames => log.drop_frames(),
                Step::Skip => {
                    log.skip(1);
                    all.push(GONE);
                    first = all.len() as u64 + 1;
                    prop_assert_eq!((log.first(), log.end()), (first, first));
                }
            }
        }
    }
}
