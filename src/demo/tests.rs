//! The demo services over real sockets, called by a plain h2 client.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Request};
use prost::Message;

use super::proto::{BaseRequest, BaseResponse, BatchRequest, BatchResponse};
use super::*;

fn settings() -> DemoSettings {
    let addresses = [SocketAddr::from(([127, 0, 0, 1], 0)); 3];
    DemoSettings { addresses, ..DemoSettings::default() }
}

/// A gRPC call: the message without its prefix, and the headers that hold its status.
async fn call(address: SocketAddr, path: &str, message: Vec<u8>) -> (Bytes, HeaderMap) {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let mut client = client.ready().await.unwrap();
    let (response, mut body) = client.send_request(request, false).unwrap();
    let mut framed = vec![0];
    framed.extend((message.len() as u32).to_be_bytes());
    framed.extend(message);
    body.send_data(framed.into(), true).unwrap();
    let (head, mut body) = response.await.unwrap().into_parts();
    let mut bytes = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.unwrap();
        body.flow_control().release_capacity(chunk.len()).unwrap();
        bytes.extend_from_slice(&chunk);
    }
    let trailers = body.trailers().await.unwrap().unwrap_or(head.headers);
    connection.abort();
    // A failed call has no message, and so no prefix.
    (Bytes::from(bytes.split_off(bytes.len().min(5))), trailers)
}

const HANDLE: &str = "/shardgate.backend.v1.Backend/Handle";

async fn handle(address: SocketAddr, requests: Vec<BaseRequest>) -> Vec<BaseResponse> {
    let batch = BatchRequest { gateway: "g".into(), shard: 3, requests, boot_id: 255 };
    let (bytes, trailers) = call(address, HANDLE, batch.encode_to_vec()).await;
    assert_eq!(trailers["grpc-status"], "0");
    BatchResponse::decode(bytes).unwrap().responses
}

fn item(request_id: u64, payload: &'static str) -> BaseRequest {
    BaseRequest {
        request_id,
        session: "s1".into(),
        payload: Bytes::from_static(payload.as_bytes()),
        ..Default::default()
    }
}

fn json(response: &BaseResponse) -> serde_json::Value {
    serde_json::from_slice(&response.payload).unwrap()
}

/// Runs `test` against started services, and stops them.
fn with_services<F: Future<Output = ()>>(test: impl FnOnce([SocketAddr; 3]) -> F) {
    let services = start(&settings(), None).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test(services.addresses()));
    drop(runtime); // closes the connections
    services.stop().unwrap();
}

#[test]
fn unknown_input_is_echoed_byte_for_byte_by_every_service() {
    with_services(async |addresses| {
        for address in addresses {
            let payloads = ["", "\u{1}\u{2}", r#"{"text":"hello"}"#, r#"{"fail":"x"}"#, "null"];
            let requests = payloads.iter().enumerate().map(|(n, p)| item(n as u64, p)).collect();
            let responses = handle(address, requests).await;
            assert_eq!(responses.len(), payloads.len());
            for (n, response) in responses.iter().enumerate() {
                assert_eq!((response.request_id, response.status), (n as u64, 0));
                assert_eq!(response.payload, payloads[n].as_bytes());
            }
        }
    });
}

#[test]
fn a_large_batch_passes_the_windows() {
    with_services(async |[logic, ..]| {
        let payload = Bytes::from(vec![b'x'; 10_000]);
        let requests = (0..100)
            .map(|n| BaseRequest { request_id: n, payload: payload.clone(), ..Default::default() })
            .collect();
        let responses = handle(logic, requests).await;
        assert!(responses.len() == 100 && responses.iter().all(|r| r.payload == payload));
    });
}

#[test]
fn a_delayed_item_delays_its_batch() {
    with_services(async |[logic, ..]| {
        let started = Instant::now();
        let responses = handle(logic, vec![item(1, "{}"), item(2, r#"{"delay_ms":50}"#)]).await;
        assert!(started.elapsed() >= Duration::from_millis(50));
        assert_eq!(responses[1].payload, r#"{"delay_ms":50}"#.as_bytes());
    });
}

#[test]
fn a_failed_item_leaves_the_others_alone() {
    with_services(async |[_, chat, _]| {
        let failing = item(1, r#"{"fail":14,"retry_after_ms":9}"#);
        let responses = handle(chat, vec![failing, item(2, "{}")]).await;
        assert_eq!((responses[0].status, responses[0].retry_after_ms), (14, 9));
        assert_eq!(responses[0].message, "chat-1 fails with 14, as asked");
        assert!(responses[0].payload.is_empty() && responses[1].status == 0);
    });
}

#[test]
fn a_failed_call_fails_as_a_whole() {
    with_services(async |[.., fight]| {
        let requests = vec![item(1, "{}"), item(2, r#"{"fail_call":14}"#)];
        let batch = BatchRequest { requests, ..Default::default() };
        let (bytes, trailers) = call(fight, HANDLE, batch.encode_to_vec()).await;
        assert!(bytes.is_empty());
        assert_eq!(trailers["grpc-status"], "14");
    });
}

#[test]
fn keys_are_counted_apart_for_each_service() {
    with_services(async |[logic, chat, _]| {
        let count = r#"{"count":true}"#;
        let user = BaseRequest { user: "s1".into(), ..item(2, count) };
        let room = BaseRequest { key: "room".into(), ..user.clone() };
        let requests = vec![item(1, count), user.clone(), room, user, item(3, count)];
        let counts: Vec<_> = handle(logic, requests).await.iter().map(json).collect();
        let seen: Vec<_> = counts.iter().map(|c| c["count"].as_u64().unwrap()).collect();
        assert_eq!(seen, [1, 1, 1, 2, 2]);
        assert_eq!(
            counts[2],
            serde_json::json!({
                "service": "logic", "instance": "logic-1", "user_or_session": "room", "count": 1
            })
        );
        let other = handle(chat, vec![item(1, count)]).await;
        assert_eq!((json(&other[0])["count"].as_u64(), other[0].status), (Some(1), 0));
    });
}

#[test]
fn who_tells_all_that_the_service_saw() {
    with_services(async |[logic, ..]| {
        let request = BaseRequest { priority: 2, encoding: 1, ..item(7, r#"{"who":true}"#) };
        let who = json(&handle(logic, vec![request]).await[0]);
        assert_eq!(who["boot_id"], "00000000000000ff");
        assert_eq!((&who["session"], &who["shard"]), (&"s1".into(), &3.into()));
        assert_eq!(
            (&who["priority"], &who["encoding"]),
            (&"PRIORITY_HIGH".into(), &"ENCODING_JSON".into())
        );
        assert_eq!(who["payload"]["who"], true);
        // service, instance, three of the batch, fifteen of the request
        assert_eq!(who.as_object().unwrap().len(), 20);
    });
}

#[test]
fn chat_puts_sessions_into_rooms_and_pushes_what_they_say() {
    with_services(async |[logic, chat, _]| {
        let whole = async |address, requests| {
            let batch = BatchRequest { requests, ..Default::default() };
            let (bytes, _) = call(address, HANDLE, batch.encode_to_vec()).await;
            BatchResponse::decode(bytes).unwrap()
        };
        let ann = BaseRequest { user: "ann".into(), ..item(3, r#"{"say":"hi","room":"room:7"}"#) };
        let (join, leave) = (r#"{"join":"room:lobby"}"#, r#"{"leave":"room:7","join":"room:8"}"#);
        let requests = vec![item(1, join), item(2, leave), ann.clone(), item(4, r#"{"say":"é"}"#)];
        let told = whole(chat, requests).await;
        assert!(told.responses.iter().all(|r| r.status == 0 && !r.payload.is_empty()));
        assert_eq!(told.responses[0].join, ["room:lobby"]);
        assert_eq!(
            (&*told.responses[1].join, &*told.responses[1].leave),
            (&["room:8".to_owned()][..], &["room:7".to_owned()][..])
        );
        let pushes: Vec<_> = told
            .pushes
            .iter()
            .map(|p| {
                let to = p.to.as_ref().expect("it has addressees");
                (p.msg_id, to.groups[0].as_str(), std::str::from_utf8(&p.payload).unwrap())
            })
            .collect();
        assert_eq!(
            pushes,
            [
                (2100, "room:7", r#"{"from":"ann","text":"hi"}"#),
                (2100, "room:lobby", r#"{"from":"s1","text":"é"}"#),
            ]
        );
        for refused in [r#"{"say":" "}"#.to_owned(), format!(r#"{{"say":"{}"}}"#, "x".repeat(501))]
        {
            let request = BaseRequest { payload: refused.into(), ..item(1, "") };
            let told = whole(chat, vec![request]).await;
            assert_eq!((told.responses[0].status, told.pushes.len()), (3, 0));
            assert_eq!(told.responses[0].message, "a line has 1 to 500 characters");
        }
        // The other services have no rooms.
        let told = whole(logic, vec![ann]).await;
        assert_eq!((told.responses[0].status, told.pushes), (0, vec![]));
    });
}

#[test]
fn health_is_serving_and_other_paths_are_unimplemented() {
    with_services(async |[logic, ..]| {
        let (bytes, _) = call(logic, "/grpc.health.v1.Health/Check", Vec::new()).await;
        assert_eq!(bytes.as_ref(), [8, 1]); // status = SERVING
        let (_, trailers) = call(logic, "/game.Logic/Move", Vec::new()).await;
        assert_eq!(trailers["grpc-status"], "12"); // UNIMPLEMENTED
    });
}

#[test]
fn a_taken_port_is_one_clear_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut settings = settings();
    settings.addresses[1] = taken.local_addr().unwrap();
    let error = start(&settings, None).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().starts_with("demo service chat cannot listen on 127.0.0.1:"));
}

#[test]
fn a_stop_ends_them_while_a_connection_is_open_and_idle() {
    let services = start_as(&settings(), ["a", "b", "c"], None).unwrap();
    let _idle = std::net::TcpStream::connect(services.addresses()[0]).unwrap();
    services.stop().unwrap();
    serve_until(&settings(), None, async { Ok(()) }).unwrap();
}
