//! Promise 16: one order in a group, whoever publishes, wherever members are and whatever they
//! speak.

use std::sync::Arc;

use rustls::version::TLS13;
use serde_json::{Value, json};

use super::callers::Http;
use super::{SHOP, config, counts, hears, join, people, tell, user, written};
use crate::support::secure::Signer;
use crate::support::{Client, Gateway, MessageIn, eventually};
use crate::tls::certificate;

/// Pushes of each publisher.
const EACH: u64 = 50;
/// Members in the large group.
const CROWD: u64 = 1_000;

/// A member that reads protobuf.
fn binary(gateway: &Gateway) -> Client {
    let mut client = Client::protobuf(gateway.ws);
    assert_eq!(client.read_proto().kind, "welcome");
    let payload = vec![0x0a, 6, b'r', b'o', b'o', b'm', b':', b'7'];
    client.send_proto(&MessageIn { msg_id: 9010, seq: 1, payload, ..Default::default() });
    assert_eq!(client.read_proto().seq, 1);
    client
}

/// The next `count` pushes to a member: place, sender and payload.
fn pushes(mut member: Client, count: u64) -> Vec<(u64, String, Value)> {
    let next = |_| {
        let push = member.read();
        let from = push["from"].as_str().unwrap_or("").to_owned();
        (push["offset"].as_u64().unwrap_or(0), from, push["payload"].clone())
    };
    (0..count).map(next).collect()
}

fn binary_pushes(mut member: Client, count: u64) -> Vec<(u64, String, Value)> {
    let next = |_| {
        let push = member.read_proto();
        (push.offset, push.from, serde_json::from_slice(&push.payload).expect("JSON"))
    };
    (0..count).map(next).collect()
}

/// Publishes as a member of `room:7`; gives the offsets that it was told.
fn publishes(mut member: Client) -> Vec<u64> {
    let publish = |n| {
        let push = json!({"group": "room:7", "msg_id": 7001, "payload": n});
        let answer = member.call(9015, push);
        answer["payload"]["offset"].as_u64().unwrap_or_else(|| panic!("{answer}"))
    };
    (0..EACH).map(publish).collect()
}

#[test]
fn members_on_all_shards_over_tls_and_in_protobuf_see_one_order() {
    let (signer, certs) = (Signer::new(), tempfile::tempdir().expect("a directory"));
    signer.write(certs.path(), "a", &["a.test"]);
    let tls = config().key("tls.listen = \"127.0.0.1:0\"").key(&certificate(&certs, "a"));
    let gateway = Gateway::start(&tls);
    let mut members: Vec<Client> = people().iter().map(|name| user(&gateway, name)).collect();
    let secure = Arc::new(signer.client(&TLS13));
    let over_tls = || Client::secure(gateway.wss.expect("TLS is on"), &secure, "a.test");
    members.extend([over_tls(), over_tls()]);
    members.iter_mut().for_each(|member| drop(join(member, "room:7")));
    let binary = binary(&gateway);
    let mut publishers = ["zoe", "yan"].map(|name| user(&gateway, name));
    publishers.iter_mut().for_each(|publisher| drop(join(publisher, "room:7")));
    let count = 4 * EACH;
    let (lists, told) = std::thread::scope(|scope| {
        let read = |member| scope.spawn(move || pushes(member, count));
        let mut readers: Vec<_> = members.into_iter().map(read).collect();
        readers.push(scope.spawn(move || binary_pushes(binary, count)));
        for _ in 0..2 {
            let mut shop = Http::connect(&gateway, SHOP);
            scope.spawn(move || {
                let push = |n| json!({"to": {"groups": ["room:7"]}, "msg_id": 7001, "payload": n});
                (0..EACH).for_each(|n| drop(shop.sends(push(n))));
            });
        }
        let told = publishers.map(|publisher| scope.spawn(move || publishes(publisher)));
        let told = told.map(|thread| thread.join().expect("each push is taken"));
        let join = |reader: std::thread::ScopedJoinHandle<'_, _>| reader.join().expect("all come");
        (readers.into_iter().map(join).collect::<Vec<_>>(), told)
    });
    let first = &lists[0];
    assert!(first.iter().map(|(offset, ..)| *offset).eq(1..=count), "{first:?}");
    for list in &lists {
        assert_eq!(list, first);
    }
    // Each publisher's own are in its order, at the places that it was told.
    for (name, told) in ["zoe", "yan"].iter().zip(told) {
        let own = first.iter().filter(|(_, from, _)| from == name);
        let own: Vec<_> = own.map(|(offset, _, payload)| (*offset, payload.clone())).collect();
        let expected: Vec<_> = told.into_iter().zip((0..EACH).map(Value::from)).collect();
        assert_eq!(own, expected, "{name}");
    }
}

#[test]
fn a_push_to_a_thousand_members_reaches_each_and_is_counted_by_shard() {
    let gateway = Gateway::start(&config());
    let connect = || -> Vec<Client> {
        let member = |_| Client::connect(gateway.ws);
        let mut members: Vec<Client> = (0..CROWD / 2).map(member).collect();
        // All ask before the first answer is read.
        for member in &mut members {
            member.send(json!({"msg_id": 9010, "payload": {"group": "room:7"}}));
        }
        for member in &mut members {
            assert_eq!(member.answer(1)["payload"]["outcome"], "joined");
        }
        members
    };
    let mut members = std::thread::scope(|scope| {
        let halves = [scope.spawn(connect), scope.spawn(connect)];
        halves.into_iter().flat_map(|half| half.join().expect("they join")).collect::<Vec<_>>()
    });
    let mut shop = Http::connect(&gateway, SHOP);
    let push = json!({"to": {"groups": ["room:7"]}, "msg_id": 7001, "payload": 1,
                      "receipt": "COUNTED", "wait_ms": 5000});
    let result = shop.sends(push);
    assert_eq!(counts(&result), written(CROWD), "{result}");
    assert_eq!(result["shards"].as_array().map(Vec::len), Some(gateway.shards), "{result}");
    for member in &mut members {
        assert_eq!(hears(member), 1);
    }
    assert_eq!(gateway.counter("deliveries"), CROWD);
    // Half of them go, and are no addressees any more.
    members.truncate(CROWD as usize / 2);
    eventually("memberships end with their sessions", || {
        (gateway.counter("group_leaves") == CROWD / 2).then_some(())
    });
    let result = &tell(&mut shop, &json!({"groups": ["room:7"]}), 2..3)[0];
    assert_eq!(counts(result), written(CROWD / 2), "{result}");
}
