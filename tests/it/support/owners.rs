//! Instances that answer with their names, and the owners of keys.

use std::collections::BTreeMap;

use serde_json::json;
use shardgate::demo::proto::BaseResponse;

use super::{Action, Arrived, Client, ok};

/// A script that answers with a name, so that a key can be seen to move.
pub fn named(name: &'static str) -> impl Fn(&Arrived) -> Action + Send + Sync {
    move |call| {
        let answer = |request| BaseResponse { payload: format!("{name:?}").into(), ..ok(request) };
        Action::Reply(call.batch.requests.iter().map(answer).collect())
    }
}

/// Names of the instances that answer each of 60 keys of the route of 1001, which has `hash_on =
/// "key"`.
pub fn owners(client: &mut Client) -> BTreeMap<u64, String> {
    let seqs: Vec<u64> = (0..60)
        .map(|n| client.write(json!({"msg_id": 1001, "key": format!("room-{n}")})))
        .collect();
    client.flush();
    let owner = |(n, seq)| {
        let answer = client.answer(seq);
        (n, answer["payload"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned())
    };
    (0..60).zip(seqs).map(owner).collect()
}
