//! `conn.notsent_bytes`: the kernel holds little for a client that does not read, so that newer
//! pushes can take the place of older ones, in the clear and over TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::version::TLS13;
use serde_json::json;

use super::callers::Http;
use super::{SHOP, bare, join, rule, shop};
use crate::support::secure::Signer;
use crate::support::{Client, Config, Gateway};
use crate::tls::certificate;

/// Pushes of 8 KiB: some MiB, more than the kernel holds for a connection at first.
const COUNT: usize = 400;
const PAYLOAD: usize = 8 << 10;
/// Bytes that a client's kernel takes in unread, and the rest of a packet, beyond the bound.
const SLACK: u64 = 192 << 10;

fn config(notsent_bytes: u64) -> Config {
    bare()
        .key(&format!("push_caller = [{}]", shop("")))
        .key(&rule(""))
        .shard(&format!("conn.notsent_bytes = {notsent_bytes}"))
        .shard("conn.write_timeout_ms = 600000")
}

/// Bytes that the kernel holds for a client and that were not acknowledged, of the connection
/// between these addresses (proc(5), `/proc/net/tcp`: the addresses as little-endian words).
fn held(gateway: SocketAddr, client: SocketAddr) -> u64 {
    let shown = |address: SocketAddr| {
        let SocketAddr::V4(address) = address else { panic!("of IPv4: {address}") };
        format!("{:08X}:{:04X}", u32::from_le_bytes(address.ip().octets()), address.port())
    };
    let (from, to) = (shown(gateway), shown(client));
    let table = std::fs::read_to_string("/proc/net/tcp").expect("a table");
    let row = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row = row.into_iter().find(|row| row.get(1..3) == Some(&[&from, &to])).expect("a row");
    let queue = row[4].split(':').next().expect("two numbers");
    u64::from_str_radix(queue, 16).expect("a number")
}

/// Floods a member of a group that does not read with pushes of one key. What the kernel held for
/// it then, and how many pushes it got when it read, of which the last must be the newest.
fn flooded(gateway: &Gateway, at: SocketAddr, mut member: Client) -> (u64, usize) {
    join(&mut member, "room:7");
    let mut shop = Http::connect(gateway, SHOP);
    for n in 0..COUNT {
        let payload = json!({"n": n, "filling": "x".repeat(PAYLOAD)});
        shop.sends(json!({"to": {"groups": ["room:7"]}, "msg_id": 7001, "payload": payload,
                          "key": "state", "receipt": "COUNTED"}));
    }
    let held = held(at, member.stream().local_addr().expect("it is bound"));
    let mut heard = 0;
    loop {
        let push = member.read();
        heard += usize::from(push["type"] == "push");
        if push["payload"]["n"] == COUNT - 1 {
            return (held, heard);
        }
    }
}

#[test]
fn a_slow_member_finds_the_newest_behind_little_that_is_stale() {
    let bound = 32 << 10;
    let gateway = Gateway::start(&config(bound));
    let (held, heard) = flooded(&gateway, gateway.ws, Client::connect(gateway.ws));
    assert!(held < bound + SLACK, "{held}");
    assert!(heard < COUNT / 4, "{heard}");
    // The measure is one that can fail: without the bound the kernel takes megabytes.
    let gateway = Gateway::start(&config(0));
    let (free, stale) = flooded(&gateway, gateway.ws, Client::connect(gateway.ws));
    assert!(free > held + (1 << 20), "{free}");
    assert!(stale > 2 * heard, "{stale}");
}

#[test]
fn over_tls_the_kernel_holds_as_little() {
    let (signer, certs) = (Signer::new(), tempfile::tempdir().expect("a directory"));
    signer.write(certs.path(), "a", &["a.test"]);
    let bound = 32 << 10;
    let config = config(bound).key("tls.listen = \"127.0.0.1:0\"").key(&certificate(&certs, "a"));
    let gateway = Gateway::start(&config);
    let at = gateway.wss.expect("TLS is on");
    let member = Client::secure(at, &Arc::new(signer.client(&TLS13)), "a.test");
    let (held, heard) = flooded(&gateway, at, member);
    assert!(held < bound + SLACK, "{held}");
    assert!(heard < COUNT / 4, "{heard}");
}
