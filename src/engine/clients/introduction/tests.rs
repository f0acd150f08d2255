//! Stories of one shard behind proxies: whom a connection counts for, and who is refused.

use std::sync::Arc;

use super::*;
use crate::config::settings::LimitSettings;
use crate::engine::clients::limits::tests::{Rig, published, token};
use crate::engine::clients::sign_in::tests::engine;
use crate::inspect::{Inspection, Query};
use crate::mailbox::ShardConfig;
use crate::peers::{ForwardedHeader, Peers};

/// The proxies of these tests.
const PROXY: [u8; 4] = [10, 0, 0, 1];
const BALANCER: [u8; 4] = [172, 16, 0, 1];
const CLIENT: [u8; 4] = [192, 0, 2, 7];

fn listing(networks: &[&str], change: impl FnOnce(&mut LimitSettings)) -> ShardConfig {
    let mut published = published(false, change);
    let from = networks.iter().map(|text| text.parse().expect("a network")).collect();
    Arc::make_mut(&mut published.gateway).forwarded =
        Forwarded { from: Peers::new(from), header: ForwardedHeader::XForwardedFor };
    published
}

fn rig(change: impl FnOnce(&mut LimitSettings)) -> Rig {
    let engine = engine(listing(&["10.0.0.0/8"], change), 0, 1);
    Rig { engine, now: Micros(5_000_000), seq: 0 }
}

/// A connection of the proxy with this header, and what it was told.
fn via(rig: &mut Rig, list: &str) -> (ConnId, String) {
    let id = rig.open(PROXY).expect("room");
    let told = rig.upgrade(id, &format!("X-Forwarded-For: {list}\r\n"));
    (id, told)
}

/// Address of a connection, as operators see it.
fn peer(rig: &Rig, id: ConnId) -> String {
    let session = rig.engine.clients.conns.get(id).expect("it is there").session.id;
    let query = Query::Session(session.as_str().to_owned());
    match rig.engine.inspect(&query, rig.now) {
        Inspection::Conns(conns) => conns[0].peer.to_string(),
        other => panic!("connections were asked for: {other:?}"),
    }
}

fn is_upgraded(told: &str) -> bool {
    told.starts_with("HTTP/1.1 101 ")
}

#[test]
fn clients_of_a_proxy_have_an_address_each_and_the_proxy_none() {
    let mut rig = rig(|l| l.address.connections_max = 2);
    let mut ids = Vec::new();
    for list in ["192.0.2.7", "1.1.1.1, 192.0.2.7, 10.9.9.9", "192.0.2.8", "192.0.2.9:4711"] {
        let (id, told) = via(&mut rig, list);
        assert!(is_upgraded(&told), "{list}: {told}");
        ids.push(id);
    }
    assert_eq!(peer(&rig, ids[1]), "192.0.2.7:0");
    assert_eq!(peer(&rig, ids[3]), "192.0.2.9:4711");
    // Told in HTTP, with the time to come back.
    let (third, told) = via(&mut rig, "192.0.2.7");
    assert!(told.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{told}");
    assert!(told.contains("\r\nRetry-After: 1\r\n"), "{told}");
    assert!(told.contains("your address has too many connections"), "{told}");
    rig.engine.remove(third);
    // Directly it is the same client, and has no room either.
    assert_eq!(rig.open(CLIENT).expect_err("two are here").status, 429);
    assert!(!rig.engine.has_room_for(CLIENT.into()) && rig.engine.has_room_for(PROXY.into()));
    assert_eq!(rig.count(Counter::AddressConnectionsRefused), 2);
    rig.engine.remove(ids[0]);
    assert!(is_upgraded(&via(&mut rig, "192.0.2.7").1));
}

#[test]
fn a_header_of_anybody_else_is_not_read() {
    let mut rig = rig(|l| l.address.connections_max = 1);
    let id = rig.open(CLIENT).expect("room");
    assert!(is_upgraded(&rig.upgrade(id, "X-Forwarded-For: 192.0.2.99\r\n")));
    assert_eq!(peer(&rig, id), "192.0.2.7:1");
    rig.open(CLIENT).expect_err("it counts for its own address");
    assert_eq!(rig.count(Counter::ForwardedMissing) + rig.count(Counter::ForwardedUnclear), 0);
}

#[test]
fn rates_of_connecting_and_of_messages_are_the_clients() {
    let mut rig = rig(|l| {
        l.address.connects_per_s = 1;
        l.address.messages_per_s = 1;
        l.burst_s = 1;
    });
    let (first, told) = via(&mut rig, "192.0.2.7");
    assert!(is_upgraded(&told));
    let told = via(&mut rig, "192.0.2.7").1;
    assert!(told.starts_with("HTTP/1.1 429 ") && told.contains("Retry-After: 1\r\n"), "{told}");
    let (other, told) = via(&mut rig, "192.0.2.8");
    assert!(is_upgraded(&told));
    const ECHO: &str = r#"{"msg_id":9000,"payload":1,"seq":"#;
    assert!(!rig.says(first, ECHO).contains("RATE_LIMITED"));
    assert!(rig.says(first, ECHO).contains("RATE_LIMITED"));
    assert!(!rig.says(other, ECHO).contains("RATE_LIMITED"));
}

#[test]
fn a_request_counts_for_its_client_though_it_is_refused_and_a_check_of_the_proxy_for_nobody() {
    let mut rig = rig(|l| {
        l.address.connections_max = 1;
        l.burst_s = 1;
    });
    let bad = |rig: &mut Rig, fields: &str| {
        let id = rig.open(PROXY).expect("room");
        let mut request = format!("GET /nowhere HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes();
        rig.engine.on_bytes(id, &mut request, rig.now);
        rig.told(id)
    };
    assert!(bad(&mut rig, "X-Forwarded-For: 192.0.2.7\r\n").starts_with("HTTP/1.1 404 "));
    assert!(bad(&mut rig, "X-Forwarded-For: 192.0.2.7\r\n").starts_with("HTTP/1.1 429 "));
    for _ in 0..5 {
        assert!(bad(&mut rig, "").starts_with("HTTP/1.1 404 "));
        // Noise that is no request.
        let id = rig.open(PROXY).expect("room");
        rig.engine.on_bytes(id, &mut b"\x16\x03\x01".to_vec(), rig.now);
        assert!(rig.told(id).starts_with("HTTP/1.1 400 "));
    }
    assert_eq!(rig.count(Counter::ForwardedMissing), 0);
}

#[test]
fn what_the_proxy_does_not_tell_counts_for_the_last_hop_that_is_known() {
    let mut rig = rig(|l| l.address.connections_max = 1);
    let id = rig.open(PROXY).expect("room");
    assert!(is_upgraded(&rig.upgrade(id, "")), "never refused for what a proxy wrote");
    assert_eq!((rig.count(Counter::ForwardedMissing), peer(&rig, id)), (1, "10.0.0.1:1".into()));
    // The header that is not believed.
    let other = rig.open(PROXY).expect("it is a proxy still");
    let told = rig.upgrade(other, "Forwarded: for=192.0.2.7\r\n");
    assert!(told.starts_with("HTTP/1.1 429 "), "{told}");
    assert_eq!(rig.count(Counter::ForwardedMissing), 2);
    rig.engine.remove(id);
    let (id, told) = via(&mut rig, "192.0.2.7, unknown, 10.0.0.9");
    assert!(is_upgraded(&told), "{told}");
    assert_eq!((rig.count(Counter::ForwardedUnclear), peer(&rig, id)), (1, "10.0.0.9:0".into()));
    let (id, told) = via(&mut rig, "192.0.2.7, oops");
    assert!(is_upgraded(&told), "{told}");
    assert_eq!((rig.count(Counter::ForwardedUnclear), peer(&rig, id)), (2, "10.0.0.1:1".into()));
}

#[test]
fn a_proxy_behind_a_balancer_is_asked_and_a_client_behind_it_is_not() {
    let mut rig = rig(|l| l.address.connections_max = 1);
    let introduced = |rig: &mut Rig, peer: [u8; 4], list: &str| {
        let id = rig.engine.open_uncounted((BALANCER, 1).into(), rig.now).expect("room");
        assert!(rig.engine.introduce(id, (peer, 2).into(), rig.now), "{list}");
        let told = rig.upgrade(id, &format!("X-Forwarded-For: {list}\r\n"));
        (id, told)
    };
    // Any number by way of the proxy that the balancer names.
    for list in ["192.0.2.7", "192.0.2.8", "192.0.2.9"] {
        assert!(is_upgraded(&introduced(&mut rig, PROXY, list).1), "{list}");
    }
    let (id, told) = introduced(&mut rig, [192, 0, 2, 10], "192.0.2.99");
    assert!(is_upgraded(&told));
    assert_eq!(peer(&rig, id), "192.0.2.10:2");
}

#[test]
fn a_balancer_that_names_its_own_socket_counts_for_no_address() {
    let mut rig = rig(|l| l.address.connections_max = 1);
    let [a, b, c, d] = BALANCER;
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d];
    for own in [std::net::IpAddr::from(BALANCER), std::net::IpAddr::from(mapped)] {
        for port in 1..4 {
            let id = rig.engine.open_uncounted((own, port).into(), rig.now).expect("room");
            assert!(rig.engine.introduce(id, (BALANCER, port).into(), rig.now), "a check");
        }
    }
    // Another socket of that host is a client like any other.
    let mut of = |port: u16| {
        let id = rig.engine.open_uncounted((BALANCER, 9).into(), rig.now).expect("room");
        rig.engine.introduce(id, (BALANCER, port).into(), rig.now)
    };
    assert_eq!((of(100), of(101)), (true, false));
}

#[test]
fn a_request_in_pieces_that_waits_and_is_read_again_counts_once() {
    let mut rig = rig(|l| {
        l.address.connections_max = 1;
        l.user.connections_max = 1;
    });
    let bearer = format!("Authorization: Bearer {}\r\n", token("alice", "acme"));
    let first = rig.open(PROXY).expect("room");
    let told = rig.upgrade(first, &format!("X-Forwarded-For: 192.0.2.7\r\n{bearer}"));
    assert!(is_upgraded(&told), "{told}");
    // The second of the user waits for a place, its request held; its address is counted by then.
    let second = rig.open(PROXY).expect("room");
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         X-Forwarded-For: 192.0.2.8\r\n{bearer}\r\n"
    );
    for mut byte in request.into_bytes() {
        rig.engine.on_bytes(second, std::slice::from_mut(&mut byte), rig.now);
    }
    assert_eq!(peer(&rig, second), "192.0.2.8:0");
    assert!(via(&mut rig, "192.0.2.8").1.starts_with("HTTP/1.1 429 "));
    // The first one does not answer, and gives its place away.
    rig.told(first);
    for _ in 0..30 {
        rig.later(100_000);
    }
    assert!(is_upgraded(&rig.told(second)));
    assert_eq!(peer(&rig, second), "192.0.2.8:0");
}

#[test]
fn a_reload_changes_who_is_asked_from_the_next_request_on() {
    let mut rig = rig(|l| l.address.connections_max = 1);
    let waiting = rig.open(PROXY).expect("room");
    let unlisted = rig.open(CLIENT).expect("room");
    let published = listing(&["192.0.2.0/24"], |l| l.address.connections_max = 1);
    rig.engine.apply(published, rig.now);
    // It is no proxy any more, and what it writes is nothing.
    assert!(is_upgraded(&rig.upgrade(waiting, "X-Forwarded-For: 203.0.113.1\r\n")));
    assert_eq!(peer(&rig, waiting), "10.0.0.1:1");
    // It was counted when it came, and stays the client that it was.
    assert!(is_upgraded(&rig.upgrade(unlisted, "X-Forwarded-For: 203.0.113.2\r\n")));
    assert_eq!(peer(&rig, unlisted), "192.0.2.7:1");
    let id = rig.open(CLIENT).expect("a proxy now");
    assert!(is_upgraded(&rig.upgrade(id, "X-Forwarded-For: 203.0.113.3\r\n")));
    assert_eq!(peer(&rig, id), "203.0.113.3:0");
}
