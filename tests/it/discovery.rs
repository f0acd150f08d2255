//! Instances that are discovered and not configured: by name, and by registration.

use std::net::{SocketAddr, UdpSocket};

use serde_json::json;

use crate::support::{Client, Config, Gateway, Instance, eventually};

#[test]
fn the_addresses_of_a_name_are_instances() {
    // On 127.0.0.1, because the name has to lead there.
    let instance = Instance::echo_on_loopback();
    let port = instance.address.port();
    let config = Config::new()
        .key(&format!("[[service]]\nname = \"logic\"\ndns = \"localhost:{port}\""))
        .route(1000, "logic", "");
    let gateway = Gateway::start(&config);
    let mut client = Client::connect(gateway.ws);
    // The name may also resolve to ::1, where nothing listens: those keys go to the next instance.
    eventually("messages reach it", || {
        client.call(1001, json!(7)).get("status").is_none().then_some(())
    });
    assert!(!instance.requests().is_empty());
    assert!(gateway.log().contains("instance_came"), "{}", gateway.log());
}

/// Starts a name server that answers A with 127.0.0.1 for a second, and every other question with
/// SERVFAIL (RFC 1035 section 4.1). It ends with the process.
fn name_server_without_aaaa() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((n, from)) = socket.recv_from(&mut question) {
            let end = 12 + question[12..n].iter().position(|byte| *byte == 0).expect("a name") + 5;
            let is_a = question[end - 4..end - 2] == [0, 1];
            let (code, answers) = if is_a { (0, 1) } else { (2, 0) };
            let mut said = question[..2].to_vec();
            said.extend([0x81, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0]);
            said.extend(&question[12..end]);
            if is_a {
                // The question's name, A, IN, a second, four bytes.
                said.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 127, 0, 0, 1]);
            }
            socket.send_to(&said, from).expect("sent");
        }
    });
    address
}

#[test]
fn a_name_server_that_cannot_answer_aaaa_degrades_nothing() {
    let instance = Instance::echo_on_loopback();
    let port = instance.address.port();
    let config = Config::new()
        .key(&format!("dns.servers = [\"{}\"]", name_server_without_aaaa()))
        .key(&format!("[[service]]\nname = \"logic\"\ndns = \"logic.internal:{port}\""))
        .route(1000, "logic", "");
    let gateway = Gateway::start(&config);
    let mut client = Client::connect(gateway.ws);
    eventually("messages reach it", || {
        client.call(1001, json!(7)).get("status").is_none().then_some(())
    });
    eventually("it is noted", || gateway.log().contains("discovery_note").then_some(()));
    eventually("it is healthy", || (gateway.admin_get("/health")["status"] == "ok").then_some(()));
    let log = gateway.log();
    assert!(!log.contains("discovery_stale") && log.contains("Server Failure"), "{log}");
    assert_eq!(log.matches("discovery_note").count(), 1, "{log}");
}

#[test]
fn a_name_that_cannot_be_looked_up_stops_nothing() {
    let instance = Instance::echo();
    let nobody = Instance::echo();
    let server = nobody.address;
    drop(nobody);
    let config = Config::new()
        .key(&format!("dns.servers = [\"{server}\"]"))
        .key("[[service]]\nname = \"chat\"\ndns = \"chat.internal:1\"")
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "")
        .route(2000, "chat", "");
    let gateway = Gateway::start(&config);
    let mut client = Client::connect(gateway.ws);
    eventually("logic is connected", || {
        client.call(1001, json!(1)).get("status").is_none().then_some(())
    });
    assert_eq!(client.call(2001, json!(1))["reason"], "UNAVAILABLE");
    eventually("it says so", || gateway.log().contains("discovery_stale").then_some(()));
}
