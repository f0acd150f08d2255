//! The HTTP door.

use serde_json::Value;

use super::*;

/// A connection that is kept.
struct Conn(TcpStream);

struct Answer {
    status: u16,
    head: String,
    body: Value,
}

impl Doors {
    async fn connect(&self) -> Conn {
        Conn(TcpStream::connect(self.address()).await.unwrap())
    }
}

fn post(token: &str, body: &str) -> String {
    format!(
        "POST /push HTTP/1.1\r\nHost: push\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

impl Conn {
    /// Sends a request, and reads its answer.
    async fn ask(&mut self, request: &str) -> Answer {
        self.0.write_all(request.as_bytes()).await.unwrap();
        self.answer().await
    }

    async fn answer(&mut self) -> Answer {
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            let read = tokio::time::timeout(PATIENCE, self.0.read_buf(&mut bytes)).await;
            assert!(read.expect("in time").unwrap() > 0, "it ended: {bytes:?}");
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |n| n.parse().unwrap());
        let mut body = bytes.split_off(end + 4);
        while body.len() < length {
            assert!(self.0.read_buf(&mut body).await.unwrap() > 0);
        }
        let body = serde_json::from_slice(&body).unwrap_or_default();
        Answer { status, head, body }
    }
}

const ONE: &str = r#"{"pushes":[{"to":{"users":["ann"]},"msg_id":7001,"payload":{"a":1}}]}"#;

#[tokio::test]
async fn several_requests_go_over_one_connection() {
    let doors = Doors::open(Shards::Good, vec![caller("game", GAME)]);
    let mut conn = doors.connect().await;
    for _ in 0..3 {
        let body = r#"{"pushes":[{"to":{"groups":["room:7"]},"msg_id":7001,"payload":{},
                       "receipt":"COUNTED"}]}"#;
        let answer = conn.ask(&post(GAME, body)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let result = &answer.body["results"][0];
        assert_eq!(result["positions"][0]["position"]["offset"], 41, "{result}");
        assert_eq!(result["counts"]["addressees"], 4, "{result}");
    }
    // Refusals of whole requests do not end it, either.
    assert_eq!(conn.ask(&post("nobody-knows-this-token", ONE)).await.status, 401);
    assert_eq!(conn.ask(&post(GAME, ONE)).await.status, 200);
    let pushes = doors.pushes.view().tally.callers["game"].pushes[Door::Http as usize];
    assert_eq!(pushes, [0, 1, 3, 0, 0]);
}

#[tokio::test]
async fn a_caller_who_is_refused_before_its_body_is_there_can_call_again() {
    let doors = Doors::open(Shards::Good, vec![caller("game", GAME)]);
    let mut conn = doors.connect().await;
    // Headers, a piece of the body once they have been read, and the rest: as http.client of
    // Python and others send it.
    let request = post("nobody-knows-this-token", ONE);
    let (head, body) = request.split_at(request.len() - ONE.len());
    conn.0.write_all(head.as_bytes()).await.unwrap();
    while doors.pushes.view().tally.unknown == 0 {
        tokio::task::yield_now().await;
    }
    conn.0.write_all(body.as_bytes()).await.unwrap();
    let answer = conn.answer().await;
    assert_eq!(answer.status, 401);
    assert!(!answer.head.contains("connection: close"), "{}", answer.head);
    assert_eq!(conn.ask(&post(GAME, ONE)).await.status, 200);
}

#[tokio::test]
async fn a_refused_caller_whose_body_never_ends_is_told_that_the_connection_does() {
    let doors = Doors::open(Shards::Good, vec![caller("game", GAME)]);
    let mut conn = doors.connect().await;
    let request = post("nobody-knows-this-token", ONE);
    let answer = conn.ask(&request[..request.len() - 1]).await;
    assert_eq!(answer.status, 401);
    assert!(answer.head.contains("connection: close"), "{}", answer.head);
    assert_eq!(conn.0.read_u8().await.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn each_fault_of_a_request_has_its_status() {
    let doors = Doors::open(Shards::Good, vec![caller("game", GAME)]);
    let good = post(GAME, ONE);
    let large = format!("{{\"pushes\":[],\"x\":\"{}\"}}", "a".repeat(1 << 20));
    let many = format!("{{\"pushes\":[{}]}}", ["{}"; 101].join(","));
    for (request, status, shown) in [
        (good.replace("Bearer ", "Basic "), 401, "www-authenticate: bearer"),
        (good.replace("Authorization", "X-Other"), 401, "www-authenticate: bearer"),
        (good.replace("POST /push", "GET /push"), 405, "allow: post"),
        (good.replace("POST /push", "POST /other"), 404, ""),
        (good.replace("application/json", "text/plain"), 415, ""),
        (post(GAME, "{"), 400, ""),
        (post(GAME, &many), 400, ""),
        (post(GAME, &large), 413, "connection: close"),
    ] {
        let answer = doors.connect().await.ask(&request).await;
        assert_eq!(answer.status, status, "{request:.60}");
        assert!(answer.head.contains(shown), "{}", answer.head);
        let why = answer.body["error"].as_str().map_or(0, str::len);
        assert!(why > 0 || status == 405, "{request:.60}");
        assert!(!answer.head.contains(GAME) && !answer.body.to_string().contains(GAME));
    }
    assert_eq!(doors.taken(), 0);
}

#[tokio::test]
async fn over_the_rate_and_while_it_starts_the_time_to_come_back_is_told() {
    let slow = PushCaller { pushes_per_s: 1, ..caller("game", GAME) };
    let doors = Doors::open(Shards::Good, vec![slow]);
    let mut conn = doors.connect().await;
    assert_eq!(conn.ask(&post(GAME, ONE)).await.status, 200);
    let limited = conn.ask(&post(GAME, ONE)).await;
    assert_eq!((limited.status, limited.body["reason"].as_str()), (429, Some("RATE_LIMITED")));
    assert!(limited.head.contains("retry-after: 1"), "{}", limited.head);
    doors.pushes.set_phase(Phase::Draining);
    let draining = conn.ask(&post(GAME, ONE)).await;
    assert_eq!((draining.status, draining.body["reason"].as_str()), (503, Some("DRAINING")));
    assert!(draining.head.contains("retry-after: 1"), "{}", draining.head);
}

#[tokio::test]
async fn a_connection_that_proves_nothing_is_closed_and_others_stay() {
    let settings = PushSettings { callers: vec![caller("game", GAME)], ..PushSettings::default() };
    let doors = Doors::with(Shards::Good, settings, Duration::from_millis(300));
    let mut proven = doors.connect().await;
    assert_eq!(proven.ask(&post(GAME, ONE)).await.status, 200);
    let (mut silent, mut talker) = (doors.connect().await, doors.connect().await);
    talker.0.write_all(b"POST /push HTTP/1.1\r\nHost: p").await.unwrap();
    for conn in [&mut silent, &mut talker] {
        let mut said = Vec::new();
        let end = tokio::time::timeout(PATIENCE, conn.0.read_to_end(&mut said)).await;
        // Closed, or reset because it had not read everything.
        drop(end.expect("it is closed in time"));
    }
    assert_eq!(proven.ask(&post(GAME, ONE)).await.status, 200);
}

#[tokio::test]
async fn callers_of_a_new_configuration_are_in_force_for_the_next_request() {
    let doors = Doors::open(Shards::Good, vec![caller("game", GAME)]);
    let mut conn = doors.connect().await;
    assert_eq!(conn.ask(&post(GAME, ONE)).await.status, 200);
    let mut config = from_files(Files::embedded(), &[], &Overrides::default()).unwrap();
    config.gateway.push.callers = vec![caller("game", CHAT)];
    doors.pushes.follow(&Arc::new(config));
    assert_eq!(conn.ask(&post(GAME, ONE)).await.status, 401);
    assert_eq!(conn.ask(&post(CHAT, ONE)).await.status, 200);
    let view = doors.pushes.view();
    assert_eq!(view.tally.callers["game"].pushes(), 2, "the counts are the name's");
}
