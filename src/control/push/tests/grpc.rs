//! The gRPC door.

use super::*;

/// A client that shows a token.
struct Client {
    client: PushClient<Channel>,
    token: &'static str,
}

impl Doors {
    fn client(&self, token: &'static str) -> Client {
        let endpoint = Endpoint::new(format!("http://{}", self.address())).unwrap();
        Client { client: PushClient::new(endpoint.connect_lazy()), token }
    }
}

impl Client {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if !self.token.is_empty() {
            let value = format!("Bearer {}", self.token).parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        request
    }

    async fn send(&mut self, pushes: Vec<PushMessage>) -> Result<Vec<PushResult>, Status> {
        let request = self.request(SendRequest { pushes });
        Ok(self.client.send(request).await?.into_inner().results)
    }
}

fn push(to: To) -> PushMessage {
    PushMessage { to: Some(to), msg_id: 7001, payload: "{}".into(), ..Default::default() }
}

fn users(names: &[&str]) -> To {
    To { users: names.iter().map(ToString::to_string).collect(), ..Default::default() }
}

fn groups(names: &[&str]) -> To {
    To { groups: names.iter().map(ToString::to_string).collect(), ..Default::default() }
}

fn counted(to: To) -> PushMessage {
    PushMessage { receipt: crate::wire::push::generated::Receipt::Counted.into(), ..push(to) }
}

fn reasons(results: &[PushResult]) -> Vec<&str> {
    results.iter().map(|result| result.reason.as_str()).collect()
}

#[tokio::test]
async fn a_push_is_answered_with_positions_and_with_counts_that_add_up() {
    let doors = Doors::open(Shards::Good, vec![caller("game", GAME)]);
    let mut client = doors.client(GAME);
    let names: Vec<String> = (0..40).map(|n| format!("user-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let pushes =
        vec![counted(users(&names)), push(groups(&["room:1", "room:2"])), push(users(&["ann"]))];
    let results = client.send(pushes).await.unwrap();
    assert_eq!(reasons(&results), ["", "", ""]);
    let counts = results[0].counts.expect("they were asked for");
    assert_eq!((counts.addressees, counts.written, counts.offline), (42, 40, 2));
    assert_eq!((results[0].shards.len(), results[0].offline_users.len()), (2, 2));
    let positions: Vec<_> = results[1].positions.iter().map(|p| p.group.as_str()).collect();
    assert_eq!(positions, ["room:1", "room:2"]);
    let position = results[1].positions[0].position.clone().unwrap();
    assert_eq!((position.epoch.as_str(), position.offset), ("00000007", 41));
    assert!(results[1].counts.is_none() && results[2].counts.is_none());
    let results = client.send(vec![counted(groups(&["room:1"]))]).await.unwrap();
    assert_eq!(results[0].counts.map(|c| c.addressees), Some(4));
    let tally = doors.pushes.view().tally;
    let game = &tally.callers["game"];
    assert_eq!((game.pushes(), game.pushes[Door::Grpc as usize][2]), (4, 2));
    assert_eq!(doors.pushes.view().awaited, 0);
}

#[tokio::test]
async fn one_bad_push_never_fails_the_others() {
    let mut chat = caller("chat", CHAT);
    chat.rights.to = vec![PushTo::User, PushTo::Group];
    chat.priority_max = Priority::Normal;
    let doors = Doors::open(Shards::Good, vec![chat]);
    let bad_id = PushMessage { msg_id: 0, ..push(users(&["ann"])) };
    let urgent = PushMessage { priority: 1, ..push(users(&["ann"])) };
    let everyone = To { everyone: true, ..Default::default() };
    let both = To { tenant_all: true, ..users(&["ann"]) };
    let pushes = vec![
        push(users(&["ann"])),
        bad_id,
        push(everyone),
        push(groups(&["lobby"])),
        urgent,
        push(both),
        push(groups(&["room:7"])),
    ];
    let results = doors.client(CHAT).send(pushes).await.unwrap();
    let expected = ["", "BAD_MESSAGE", "FORBIDDEN", "FORBIDDEN", "FORBIDDEN", "BAD_MESSAGE", ""];
    assert_eq!(reasons(&results), expected);
    assert_eq!(doors.pushes.view().tally.callers["chat"].refused(), 5);
}

#[tokio::test]
async fn who_shows_no_good_token_is_told_nothing_and_does_nothing() {
    let doors = Doors::open(Shards::Good, vec![caller("game", GAME)]);
    for token in ["", CHAT, "token-of-the-game-serve"] {
        let status = doors.client(token).send(vec![push(users(&["ann"]))]).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
    }
    assert_eq!((doors.taken(), doors.pushes.view().tally.unknown), (0, 3));
}

#[tokio::test]
async fn over_its_rate_a_caller_is_told_when_to_come_back() {
    let slow = PushCaller { pushes_per_s: 2, ..caller("game", GAME) };
    let doors = Doors::open(Shards::Good, vec![slow, caller("chat", CHAT)]);
    let mut client = doors.client(GAME);
    let three = || (0..3).map(|_| push(users(&["ann"]))).collect::<Vec<_>>();
    let results = client.send(three()).await.unwrap();
    assert_eq!(reasons(&results), ["", "", "RATE_LIMITED"]);
    assert!((1..=500).contains(&results[2].retry_after_ms), "{results:?}");
    let status = client.send(three()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.metadata().get("grpc-retry-pushback-ms").is_some());
    let results = doors.client(CHAT).send(three()).await.unwrap();
    assert_eq!(reasons(&results), ["", "", ""], "another caller is not limited");
}

#[tokio::test]
async fn deliveries_are_owed_by_one_push_and_the_next_is_told_when_to_come_back() {
    let slow = PushCaller { deliveries_per_s: 10, ..caller("game", GAME) };
    let doors = Doors::open(Shards::Good, vec![slow]);
    let mut client = doors.client(GAME);
    let names: Vec<String> = (0..40).map(|n| format!("user-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let results = client.send(vec![push(users(&names)), push(users(&["ann"]))]).await.unwrap();
    assert_eq!(reasons(&results), ["", "RATE_LIMITED"]);
    assert!(results[0].counts.is_none(), "it did not ask for counts");
    // 42 deliveries with the kept ones; 10 were there, and one must be.
    assert!((2_500..=3_300).contains(&results[1].retry_after_ms), "{results:?}");
}

#[tokio::test]
async fn a_full_lane_refuses_the_whole_push_and_low_classes_first() {
    let doors = Doors::open(Shards::Stuck, vec![caller("game", GAME)]);
    let mut client = doors.client(GAME);
    let everyone =
        |priority| PushMessage { priority, ..push(To { everyone: true, ..Default::default() }) };
    // Classes by their numbers in the protocol, and the places that they may fill in all.
    for (class, places) in [(4, 70), (3, 85), (2, 95), (1, 100)] {
        let before = doors.pushes.view().tally.callers.get("game").map_or(0, CallerTally::pushes);
        let mut refused = PushResult::default();
        while refused.status == 0 {
            refused = client.send(vec![everyone(class)]).await.unwrap().remove(0);
        }
        assert_eq!(refused.reason, "QUEUE_FULL");
        assert!(refused.retry_after_ms > 0);
        let now = doors.pushes.view().tally.callers["game"].pushes();
        assert!(now > before && now == places, "{class}: {before} {now}");
    }
}

#[tokio::test]
async fn shards_that_say_nothing_are_waited_for_no_longer_than_asked() {
    let doors = Doors::open(Shards::Mute, vec![caller("game", GAME)]);
    let mut client = doors.client(GAME);
    let short = |push| PushMessage { wait_ms: 50, ..push };
    let pushes = vec![short(counted(users(&["ann", "bob"]))), short(push(groups(&["room:1"])))];
    let before = Instant::now();
    let results = client.send(pushes).await.unwrap();
    assert!(before.elapsed() >= Duration::from_millis(50));
    let counts = results[0].counts.expect("they were asked for");
    assert_eq!((results[0].status, counts.unknown, counts.addressees), (0, 2, 2));
    assert!(results[0].message.contains("did not answer within 50 ms"), "{results:?}");
    assert_eq!(results[1].reason, "OUTCOME_UNKNOWN");
    assert_eq!(doors.pushes.view().awaited, 0);
    // An ended shard is not waited for at all.
    [0, 1].into_iter().for_each(|shard| doors.pushes.shard_ended(ShardId(shard)));
    let long = PushMessage { wait_ms: 5_000, ..counted(users(&["ann"])) };
    let result = tokio::time::timeout(PATIENCE, client.send(vec![long])).await;
    let counts = result.unwrap().unwrap()[0].counts;
    assert_eq!(counts.map(|counts| counts.unknown), Some(1));
}

#[tokio::test]
async fn the_receipts_of_a_caller_that_went_away_are_dropped() {
    let doors = Doors::open(Shards::Mute, vec![caller("game", GAME)]);
    let mut client = doors.client(GAME);
    let long = PushMessage { wait_ms: 5_000, ..counted(users(&["ann"])) };
    let call = tokio::spawn(async move { client.send(vec![long]).await });
    let awaited = |n| {
        let pushes = doors.pushes.clone();
        async move {
            while pushes.view().awaited != n {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, awaited(1_usize)).await.expect("it is sent");
    call.abort();
    tokio::time::timeout(PATIENCE / 8, awaited(0)).await.expect("dropped before its time");
    assert_eq!(doors.taken(), 1, "what was sent stays so");
}

#[tokio::test]
async fn while_the_gateway_starts_or_stops_nothing_is_taken() {
    let doors = Doors::open(Shards::Good, vec![caller("game", GAME)]);
    for phase in [Phase::Starting, Phase::Draining] {
        doors.pushes.set_phase(phase);
        let status = doors.client(GAME).send(vec![push(users(&["ann"]))]).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{phase:?}");
    }
    assert_eq!(doors.taken(), 0);
}

#[tokio::test]
async fn memberships_and_connections_are_changed_by_those_who_may() {
    let mut reader = caller("chat", CHAT);
    reader.rights.may = vec![PushVerb::Read];
    let doors = Doors::open(Shards::Good, vec![caller("game", GAME), reader]);
    let mut one = doors.client(GAME);
    let list = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let join = || JoinRequest {
        users: list(&["ann"]),
        groups: list(&["room:1"]),
        info: r#"{"level":3}"#.into(),
        ..Default::default()
    };
    let request = one.request(join());
    let joined = one.client.join(request).await.unwrap().into_inner();
    assert_eq!((joined.joined, joined.offline, joined.positions.len()), (1, 2, 1));
    let leave =
        LeaveRequest { users: list(&["ann"]), groups: list(&["room:1"]), ..Default::default() };
    let request = one.request(leave);
    assert_eq!(one.client.leave(request).await.unwrap().into_inner().left, 1);
    let request = one.request(ForgetRequest { group: "room:1".into(), ..Default::default() });
    one.client.forget(request).await.unwrap();
    let kick = |code| DisconnectRequest { users: list(&["ann"]), code, ..Default::default() };
    let request = one.request(kick(4_999));
    let closed = one.client.disconnect(request).await.unwrap().into_inner();
    assert_eq!((closed.closed, closed.ended), (1, 1));
    let request = one.request(kick(1_000));
    assert_eq!(one.client.disconnect(request).await.unwrap_err().code(), Code::InvalidArgument);
    for bad in [
        JoinRequest { groups: list(&["lobby"]), ..join() },
        JoinRequest { info: "{".into(), ..join() },
        JoinRequest { users: Vec::new(), ..join() },
        JoinRequest { sessions: list(&["x"]), ..join() },
        JoinRequest { tenant: "acme".into(), ..join() },
    ] {
        let request = one.request(bad.clone());
        assert!(one.client.join(request).await.is_err(), "{bad:?}");
    }
    let mut other = doors.client(CHAT);
    let request = other.request(join());
    assert_eq!(other.client.join(request).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn what_shards_know_is_read_of_all_of_them() {
    use crate::control::inspections::QueryResult;
    use crate::inspect::{GroupInfo, HistoryInfo, Inspection, Query};

    let mut doors = Doors::open(Shards::Good, vec![caller("game", GAME)]);
    let mut client = doors.client(GAME);
    let answering = async {
        while let Some(request) = doors.requests.recv().await {
            let ControlRequest::Inspect(query, reply) = request else { panic!("{request:?}") };
            let position = Some(Position { epoch: 7, offset: 9 });
            let answers = match query {
                Query::Groups(_) => {
                    let info = GroupInfo { sessions: 3, users: 2, away: 1, position };
                    vec![(ShardId(0), Inspection::Groups(vec![info]))]
                }
                Query::History { limit, .. } => {
                    assert_eq!(limit, 5);
                    let position = Position { epoch: 7, offset: 9 };
                    let history = HistoryInfo { position, is_gap: true, pushes: Vec::new() };
                    vec![(ShardId(1), Inspection::History(Some(history)))]
                }
                Query::SessionsOf { .. } => vec![(ShardId(1), Inspection::Sessions(Vec::new()))],
                other => panic!("{other:?}"),
            };
            let silent = Vec::new();
            let _ = reply.send(QueryResult { answers, silent });
        }
    };
    let asking = async {
        let count = CountRequest { groups: vec!["room:1".into()], ..Default::default() };
        let request = client.request(count);
        let counts = client.client.count(request).await.unwrap().into_inner().groups;
        assert_eq!((counts[0].sessions, counts[0].users, counts[0].away), (3, 2, 1));
        let history = HistoryRequest { group: "room:1".into(), limit: 5, ..Default::default() };
        let request = client.request(history);
        let found = client.client.history(request).await.unwrap().into_inner();
        assert_eq!((found.gap, found.position.map(|p| p.offset)), (true, Some(9)));
        let sessions = SessionsRequest { users: vec!["ann".into()], ..Default::default() };
        let request = client.request(sessions);
        assert!(client.client.sessions(request).await.unwrap().into_inner().sessions.is_empty());
        let request = client.request(SessionsRequest::default());
        let status = client.client.sessions(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    };
    tokio::select! {
        () = answering => panic!("it answers for ever"),
        () = asking => {}
    }
}

#[tokio::test]
async fn both_doors_speak_tls_when_there_is_a_certificate() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let settings = PushSettings {
        tls_cert: Some(cert),
        tls_key: Some(key),
        callers: vec![caller("game", GAME)],
        ..PushSettings::default()
    };
    let doors = Doors::with(Shards::Good, settings, PROOF_TIMEOUT);
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(made.cert.pem()))
        .domain_name("localhost");
    let endpoint = Endpoint::new(format!("https://{}", doors.address())).unwrap();
    let channel = endpoint.tls_config(tls).unwrap().connect_lazy();
    let mut client = Client { client: PushClient::new(channel), token: GAME };
    let results = client.send(vec![push(groups(&["room:1"]))]).await.unwrap();
    assert_eq!(reasons(&results), [""]);
    let plain = doors.client(GAME).send(vec![push(users(&["ann"]))]).await;
    assert!(plain.is_err(), "no word in the clear");
}
