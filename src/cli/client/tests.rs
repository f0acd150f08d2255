//! Tests of the client against small servers.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;

use super::*;

/// Serves one connection with `answer`; returns the request.
fn server(answer: &'static str) -> (AdminSettings, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = listener.local_addr().expect("bound");
    let settings = AdminSettings {
        listen,
        token: Some("0123456789abcdef".into()),
        ..AdminSettings::default()
    };
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut asked = Vec::new();
        let mut byte = [0];
        while !asked.ends_with(b"\r\n\r\n") && stream.read(&mut byte).expect("readable") == 1 {
            asked.push(byte[0]);
        }
        stream.write_all(answer.as_bytes()).expect("writable");
        String::from_utf8(asked).expect("text").to_lowercase()
    });
    (settings, serving)
}

#[test]
fn a_post_shows_the_token_and_takes_json() {
    let (settings, serving) =
        server("HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\n{\"ok\":1}\n");
    let answer = post(&settings, "/reload", &Value::Null).expect("an answer");
    assert!(answer.is_ok());
    assert_eq!(answer.body["ok"], 1);
    let asked = serving.join().expect("served");
    assert!(asked.starts_with("post /reload http/1.1\r\n"), "{asked}");
    assert!(asked.contains("authorization: bearer 0123456789abcdef\r\n"), "{asked}");
    assert!(asked.contains("content-type: application/json\r\n"), "{asked}");
}

#[test]
fn a_redirect_is_an_answer_and_not_followed() {
    let (settings, serving) = server(
        "HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\
         Connection: close\r\n\r\n",
    );
    let answer = get(&settings, "/config").expect("an answer");
    assert_eq!((answer.status, answer.is_ok()), (302, false));
    serving.join().expect("served");
}

#[test]
fn nobody_there_is_said_with_the_way_out() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = listener.local_addr().expect("bound");
    drop(listener);
    let settings = AdminSettings { listen, ..AdminSettings::default() };
    let Err(NoAnswer::Nobody(text)) = get(&settings, "/health") else { panic!("an answer") };
    assert!(text.contains("no gateway answers at admin.listen = 127.0.0.1:"), "{text}");
}

#[test]
fn the_token_goes_to_no_other_host_without_tls() {
    let listen = "192.0.2.1:8000".parse().expect("an address");
    let token = Some("0123456789abcdef".into());
    let settings = AdminSettings { listen, token, ..AdminSettings::default() };
    let error = post(&settings, "/drain", &Value::Null).expect_err("refused here");
    assert!(error.text().contains("not sent to 192.0.2.1:8000 without TLS"), "{error:?}");
    assert!(!format!("{error:?}").contains("0123456789abcdef"));
}

#[test]
fn an_endpoint_on_all_addresses_is_asked_on_this_host() {
    let at = |text: &str| {
        let listen = text.parse().expect("an address");
        reachable(listen).to_string()
    };
    assert_eq!(at("0.0.0.0:8000"), "127.0.0.1:8000");
    assert_eq!(at("[::]:8000"), "[::1]:8000");
    assert_eq!(at("127.0.0.2:8000"), "127.0.0.2:8000");
}
