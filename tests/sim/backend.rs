//! Simulated instances and the channels to them: every call ends exactly once.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes};
use prost::Message as _;
use shardgate::demo::proto::{BaseResponse, BatchRequest, BatchResponse};
use shardgate::message::{Call, CallError, CallFault, Started, status};

use crate::dice::Dice;

/// State of a channel as the simulator knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Connecting,
    Up,
    Down,
}

/// A channel of one shard to one instance.
#[derive(Debug)]
pub struct Channel {
    pub state: State,
    /// The instance left the snapshot: new calls fail at once.
    pub closed: bool,
}

/// A message of a call.
#[derive(Clone, Debug)]
pub struct Item {
    pub request_id: u64,
    pub unit: u64,
    /// 0 for a one-way message, or where it is not known (unary).
    pub seq: u64,
    pub user: String,
    pub tenant: String,
}

/// A call between its departure and its outcome.
#[derive(Debug)]
pub struct Flying {
    pub instance: u32,
    pub unary: bool,
    pub items: Vec<Item>,
    /// Whether the call is on the wire, so that it may arrive.
    pub sent: bool,
    pub arrived: bool,
    /// The result that the engine will get.
    pub result: Option<Result<Bytes, CallError>>,
}

/// Calls by shard and ticket.
pub type Calls = BTreeMap<(usize, u64), Flying>;

/// The number in a payload of the simulator.
pub fn unit_of(payload: &[u8]) -> u64 {
    let text = std::str::from_utf8(payload).expect("payloads of the simulator are text");
    let after = text.rsplit_once("\"u\":").expect("every payload has its unit").1;
    after.trim_end_matches('}').parse().expect("a number")
}

/// Reads the body of a call as its instance would. Panics if the body breaks the protocol.
pub fn read_call(shard: usize, call: &mut Call) -> Flying {
    let len = call.body.remaining();
    let bytes = call.body.copy_to_bytes(len);
    assert!(bytes[0] == 0, "not compressed");
    let declared = u32::from_be_bytes(bytes[1..5].try_into().expect("four bytes"));
    assert_eq!(declared as usize, len - 5, "the gRPC prefix holds the length");
    let body = bytes.slice(5..);
    let unary = &*call.method != "/shardgate.backend.v1.Backend/Handle";
    let items = if unary {
        let value = |wanted| {
            let mut all = call.metadata.iter();
            // Other characters are escaped: the simulator's names have a hyphen.
            all.find(|(name, _)| *name == wanted).map(|(_, value)| value.replace("%2D", "-"))
        };
        let id = value("shardgate-request-id").expect("named");
        let request_id = id.parse().expect("a number");
        let [user, tenant] =
            ["shardgate-user", "shardgate-tenant"].map(|name| value(name).unwrap_or_default());
        vec![Item { request_id, unit: unit_of(&body), seq: 0, user, tenant }]
    } else {
        let batch = BatchRequest::decode(body).expect("a BatchRequest");
        assert_eq!(batch.shard as usize, shard);
        let items = batch.requests.iter().map(|r| {
            assert!(r.timeout_ms > 0 && r.attempt > 0 && r.attempt <= 5, "{r:?}");
            Item {
                request_id: r.request_id,
                unit: unit_of(&r.payload),
                seq: r.seq,
                user: r.user.clone(),
                tenant: r.tenant.clone(),
            }
        });
        items.collect()
    };
    assert!(!items.is_empty(), "no call without a message");
    let instance = call.instance.0;
    Flying { instance, unary, items, sent: false, arrived: false, result: None }
}

/// The error of a call, with or without pushback.
pub fn error(fault: CallFault, started: Started, status: u32, dice: &mut Dice) -> CallError {
    let pushback = match dice.below(8) {
        0 => Some(None),
        1 => Some(Some(5)),
        _ => None,
    };
    CallError { fault, started, status, message: "simulated".into(), pushback, going_away: false }
}

/// The failure of a whole call at its instance.
pub fn failure(dice: &mut Dice) -> CallError {
    match dice.below(6) {
        0 | 1 => error(CallFault::Refused, Started::No, status::UNAVAILABLE, dice),
        2 => error(CallFault::Reset, Started::Maybe, status::UNKNOWN, dice),
        3 => error(CallFault::Status, Started::Maybe, status::UNAVAILABLE, dice),
        4 => error(CallFault::Status, Started::Maybe, status::INTERNAL, dice),
        _ => error(CallFault::BadReply, Started::Maybe, status::INTERNAL, dice),
    }
}

/// The answer to a batch, with faults in `item_percent` of the items. `runs` are the numbers of the
/// executions.
pub fn answer(items: &[Item], runs: &[u64], item_percent: u64, large: u64, d: &mut Dice) -> Bytes {
    let mut responses = Vec::new();
    for (item, run) in items.iter().zip(runs) {
        let filler =
            if d.chance(large) { "x".repeat(d.range(1, 20_000) as usize) } else { "".into() };
        let payload = format!("{{\"n\":{run},\"p\":\"{filler}\",\"u\":{}}}", item.unit);
        let mut one = BaseResponse {
            request_id: item.request_id,
            payload: payload.into(),
            ..BaseResponse::default()
        };
        if d.chance(item_percent) {
            match d.below(6) {
                0 => (one.status, one.message) = (d.range(1, 20) as u32, "no".into()),
                1 => continue,
                2 => responses.push(one.clone()),
                3 => one.payload = "not JSON".into(),
                4 => one.payload = Bytes::new(),
                _ => responses.push(BaseResponse {
                    request_id: d.pick(&[0, 1, u64::MAX, item.request_id + (1 << 24)]),
                    ..one.clone()
                }),
            }
        }
        responses.push(one);
    }
    for i in (1..responses.len()).rev() {
        responses.swap(i, d.below(i as u64 + 1) as usize);
    }
    BatchResponse { responses, ..Default::default() }.encode_to_vec().into()
}
