//! Instances that are discovered and not configured: by name, and by registration.

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
