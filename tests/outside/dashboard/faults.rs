//! Five faults that a person finds by the dashboard alone.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::json;

use super::place::{Client, Place, slow_line, two_of_logic};
use super::{end, open, pictures};
use crate::driver::Browser;
use crate::support::free_port;
use crate::try_page::found;

/// Waits until an element stands out, as what was found says.
fn wait_flagged(browser: &mut Browser, selector: &str, text: &str) {
    browser.wait_for(&format!("{selector}.flagged"), text);
    browser.wait_for("#status", "look at this");
    browser.wait_for("#why", text);
}

#[test]
fn a_slow_instance_is_found_by_its_row() {
    let Some(program) = found("a_slow_instance_is_found_by_its_row") else { return };
    let delay = Duration::from_millis(60);
    let place = Place::start(|demo| two_of_logic(demo.logic, slow_line(demo.chat, delay)), "");
    let load = place.load();
    let mut browser = Browser::start(&program);
    open(&mut browser, &place);
    wait_flagged(&mut browser, "#instances [data-key='logic-2']", "logic-2 is slow: p99 1");
    let other = "document.querySelector(\"#instances [data-key='logic-1']\").className";
    assert_eq!(browser.value(other), "");
    pictures(&mut browser, "slow-instance");
    drop(load);
    end(&browser, place);
}

#[test]
fn a_skewed_shard_is_found_by_its_strip() {
    let Some(program) = found("a_skewed_shard_is_found_by_its_strip") else { return };
    let place = Place::start(|demo| two_of_logic(demo.logic, demo.chat), "");
    let mut browser = Browser::start(&program);
    open(&mut browser, &place);
    // Clients that only shard 1 keeps, as a balancer with long-lived connections brings about.
    let mut kept = Vec::new();
    while kept.len() < 40 {
        let client = Client::connect(place.ws);
        if client.welcome["shard"] == 1 {
            kept.push(client);
        }
    }
    wait_flagged(&mut browser, "#shards [data-key='1']", "shard 1 has");
    browser.wait_for("#shards [data-key='1'] .numbers", "40 connections");
    browser.wait_for("#shards [data-key='0'] .numbers", " 0 connections");
    pictures(&mut browser, "skewed-shard");
    drop(kept);
    end(&browser, place);
}

#[test]
fn slow_clients_are_found_by_the_close_codes() {
    let Some(program) = found("slow_clients_are_found_by_the_close_codes") else { return };
    let shard = "conn.write_timeout_ms = 500\nconn.outbox_bytes_max = 200000\n";
    let place = Place::start(|demo| two_of_logic(demo.logic, demo.chat), shard);
    place.wait_connected("logic");
    let mut browser = Browser::start(&program);
    open(&mut browser, &place);
    // Three clients that ask for much and read nothing.
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let mut client = Client::connect(place.ws);
            let large = json!({"msg_id": 1001, "payload": "x".repeat(60_000)});
            std::thread::spawn(move || while client.send(large.clone()) {})
        })
        .collect();
    wait_flagged(&mut browser, "#closes [data-key='4001']", "clients read too slowly");
    clients.into_iter().for_each(|client| client.join().expect("it ends when it is closed"));
    browser.wait_for("#closes [data-key='4001'] td:nth-child(3)", "3");
    pictures(&mut browser, "slow-clients");
    end(&browser, place);
}

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A token of a user of the tenant.
fn token(user: &str, tenant: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let claims = json!({"sub": user, "tenant": tenant, "iss": "us", "aud": "game",
                        "exp": now + 600});
    let head = json!({"alg": "HS256", "typ": "JWT", "kid": "k"});
    let text = [head, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    let key = EncodingKey::from_secret(SECRET.as_bytes()).expect("not empty");
    let signature = jsonwebtoken::crypto::sign(text.as_bytes(), &key, Algorithm::HS256);
    format!("{text}.{}", signature.expect("it signs"))
}

fn signed_in(to: SocketAddr, user: &str, tenant: &str) -> Client {
    let mut client = Client::connect(to);
    let answer = client.ask(json!({"type": "auth", "payload": {"token": token(user, tenant)}}));
    assert_eq!(answer["type"], "auth_ok", "{answer}");
    client
}

#[test]
fn a_flooding_tenant_is_found_by_its_row() {
    let Some(program) = found("a_flooding_tenant_is_found_by_its_row") else { return };
    let tables = "[auth]\nmode = \"jwt\"\nissuer = \"us\"\naudience = \"game\"\n\
                  tenants = \"many\"\n[[auth_key]]\nid = \"k\"\nalgorithm = \"HS256\"\n";
    let tenants = "[[tenant]]\nname = \"acme\"\nquota.messages_per_s = 20\n\
                   [[tenant]]\nname = \"beta\"\nquota.messages_per_s = 20\n";
    let place = Place::start(
        |demo| {
            let services = two_of_logic(demo.logic, demo.chat);
            format!("{tables}secret = \"{SECRET}\"\n{tenants}{services}")
        },
        "",
    );
    place.wait_connected("logic");
    let mut browser = Browser::start(&program);
    open(&mut browser, &place);
    let mut quiet = signed_in(place.ws, "ann", "beta");
    let mut flood = signed_in(place.ws, "bob", "acme");
    let message = json!({"msg_id": 1001, "key": "k", "payload": 1});
    assert_eq!(quiet.ask(message.clone())["payload"], 1);
    (0..500).for_each(|_| drop(flood.ask(message.clone())));
    wait_flagged(&mut browser, "#tenants [data-key='acme']", "tenant acme is over its quota");
    let other = "document.querySelector(\"#tenants [data-key='beta']\").className";
    assert_eq!(browser.value(other), "");
    browser.wait_for("#reasons", "RATE_LIMITED");
    pictures(&mut browser, "flooding-tenant");
    end(&browser, place);
}

#[test]
fn a_dead_service_is_found_by_the_first_lines() {
    let Some(program) = found("a_dead_service_is_found_by_the_first_lines") else { return };
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let place = Place::start(
        |demo| {
            let dead = format!(
                "[[service]]\nname = \"chat\"\n\
                 instances = [{{ id = \"chat-1\", address = \"{nobody}\" }}]\n\
                 [[route]]\nrange = [2000, 2999]\nservice = \"chat\"\n"
            );
            two_of_logic(demo.logic, demo.chat) + &dead
        },
        "",
    );
    let load = place.load();
    let mut browser = Browser::start(&program);
    open(&mut browser, &place);
    browser.wait_for("#status", "degraded");
    browser.wait_for("#why .bad", "service chat: no instance takes messages: chat-1");
    browser.wait_for("#instances [data-key='chat-1'].flagged .chip.bad", "unreachable");
    let mut client = Client::connect(place.ws);
    assert_eq!(client.ask(json!({"msg_id": 2001}))["reason"], "UNAVAILABLE");
    browser.wait_for("#reasons", "UNAVAILABLE");
    browser.wait_for("#warnings", "instance_down");
    pictures(&mut browser, "dead-service");
    drop(load);
    end(&browser, place);
}
