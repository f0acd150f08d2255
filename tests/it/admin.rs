//! The admin endpoint of a real gateway: its answers are true, and its changes take effect while
//! clients are connected.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::process::{Resource, Rlimit, Signal};
use serde_json::{Value, json};

use crate::auth::{SECRET, auth_of, token_of_tenant};
use crate::support::{Client, Config, Gateway, Instance, eventually, several, under};

const JSON: &str = "Content-Type: application/json\r\n";

/// Two instances of one service, routed by key.
fn two() -> (Gateway, Vec<(&'static str, Instance)>) {
    let instances = vec![("logic-1", Instance::echo()), ("logic-2", Instance::echo())];
    let addresses = [(instances[0].0, instances[0].1.address), ("logic-2", instances[1].1.address)];
    let config = Config::new().shards(several()).service("logic", &addresses).route(
        1000,
        "logic",
        "hash_on = \"key\"",
    );
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["logic-1", "logic-2"]);
    (gateway, instances)
}

/// Name of the instance that got the message with this payload.
fn receiver(instances: &[(&'static str, Instance)], payload: &str) -> Option<&'static str> {
    let got = |instance: &Instance| {
        instance.requests().iter().any(|request| request.payload == payload.as_bytes())
    };
    instances.iter().find(|(_, instance)| got(instance)).map(|(name, _)| *name)
}

/// Sends a message with a key, and returns the instance that got it.
fn send(
    client: &mut Client,
    instances: &[(&'static str, Instance)],
    key: &str,
    payload: &str,
) -> &'static str {
    let text: Value = serde_json::from_str(payload).expect("JSON");
    let answer = client.ask(json!({"msg_id": 1001, "key": key, "payload": text}));
    assert_eq!(answer["payload"], text, "{answer}");
    receiver(instances, payload).expect("it was answered")
}

#[test]
fn explain_says_where_a_message_really_goes_also_when_an_instance_is_drained() {
    let (gateway, instances) = two();
    let mut client = Client::connect(gateway.ws);
    let session = client.session();
    let explain = |key: &str| {
        let query = format!("msg_id=1001&key={key}&session={session}");
        gateway.admin_get(&format!("/routing/explain?{query}"))
    };
    let mut owners = [0, 0];
    for n in 0..40 {
        let key = format!("room-{n}");
        let said = explain(&key);
        let got = send(&mut client, &instances, &key, &format!("\"a{n}\""));
        assert_eq!(said["instance"], got, "{said}");
        assert!(said["shards"].as_array().expect("a list").iter().all(|s| s["instance"] == got));
        owners[usize::from(got == "logic-2")] += 1;
    }
    assert!(owners[0] > 0 && owners[1] > 0, "{owners:?}");
    // The shard of this client has the key in its cache now, and shows it.
    let shard = client.welcome["shard"].as_u64().expect("a number") as usize;
    assert_eq!(explain("room-0")["shards"][shard]["cached"]["owner"], explain("room-0")["owner"]);
    // Without a key both hash the session.
    let answer = client.ask(json!({"msg_id": 1001, "payload": "no key"}));
    assert_eq!(answer["payload"], "no key");
    assert_eq!(explain("")["hashed"], "session");
    assert_eq!(explain("")["instance"], receiver(&instances, "\"no key\"").expect("answered"));

    let (status, body) = gateway.admin_post("/instances/logic-1/drain", "");
    assert_eq!((status, &body["draining"]), (200, &json!(true)));
    eventually("every shard works by it", || {
        let said = explain("room-0");
        let shards = said["shards"].as_array().expect("a list").clone();
        shards.iter().all(|shard| shard["version"] == said["version"]).then_some(())
    });
    for n in 0..20 {
        let key = format!("room-{n}");
        assert_eq!(explain(&key)["instance"], "logic-2");
        assert_eq!(send(&mut client, &instances, &key, &format!("\"b{n}\"")), "logic-2");
    }
    let listed = gateway.admin_get("/services")["services"]["logic"]["instances"].clone();
    let drained = listed.as_array().expect("a list").iter().find(|i| i["id"] == "logic-1");
    assert_eq!(drained.expect("it is there")["draining"], true);
    assert_eq!(gateway.admin_post("/instances/logic-9/drain", "").0, 404);
}

/// A session that begins with a sign-in is hashed by its own id, whatever the tenant: `explain`
/// says so, too.
#[test]
fn explain_with_a_tenant_names_the_instance_that_the_engine_picks() {
    let instances = vec![("logic-1", Instance::echo()), ("logic-2", Instance::echo())];
    let addresses = [(instances[0].0, instances[0].1.address), ("logic-2", instances[1].1.address)];
    let mut config = auth_of(SECRET).key("auth.tenants = \"many\"").service("logic", &addresses);
    for (first, hash_on) in [(1000, "session"), (2000, "user"), (3000, "key")] {
        config = config.route(first, "logic", &format!("hash_on = \"{hash_on}\""));
    }
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["logic-1", "logic-2"]);
    for n in 0..16 {
        let mut client = Client::connect(gateway.ws);
        let shown = token_of_tenant(&format!("user-{n}"), "acme");
        let signed_in = client.ask(json!({"type": "auth", "payload": {"token": shown}}));
        assert_eq!(signed_in["type"], "auth_ok", "{signed_in}");
        let session = signed_in["payload"]["session"].as_str().expect("a session").to_owned();
        for (msg_id, hashed) in [(1001, "session"), (2001, "user"), (3001, "key")] {
            let payload = format!("\"{hashed} {n}\"");
            let text: Value = serde_json::from_str(&payload).expect("JSON");
            let answer = client.ask(json!({"msg_id": msg_id, "key": "room", "payload": text}));
            assert_eq!(answer["payload"], text, "{answer}");
            let query =
                format!("msg_id={msg_id}&session={session}&user=user-{n}&tenant=acme&key=room");
            let said = gateway.admin_get(&format!("/routing/explain?{query}"));
            assert_eq!(said["hashed"], hashed, "{said}");
            let receiver = receiver(&instances, &payload).expect("it was answered");
            assert_eq!(said["instance"], receiver, "{said}");
        }
    }
}

#[test]
fn a_reload_changes_routes_under_a_connected_client_or_nothing_at_all() {
    let logic = Instance::echo();
    let config =
        Config::new().service("logic", &[("logic-1", logic.address)]).route(1000, "logic", "");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["logic-1"]);
    let mut client = Client::connect(gateway.ws);
    assert_eq!(client.call(2001, json!(1))["reason"], "NO_ROUTE");

    gateway.rewrite(&config.clone().key("gateway.ids = [1, 2, 3]").key("colour = 1"));
    let (status, body) = gateway.admin_post("/reload", "");
    assert_eq!((status, body["problems"].as_array().map(Vec::len)), (422, Some(2)), "{body}");
    assert_eq!(gateway.admin_get("/health")["last_reload"]["ok"], false);

    gateway.rewrite(&config.clone().route(2000, "logic", "").key("node = \"other\""));
    let (status, body) = gateway.admin_post("/reload", "");
    assert_eq!(status, 422, "node is read at the start only: {body}");
    assert_eq!(client.call(2001, json!(1))["reason"], "NO_ROUTE");

    gateway.rewrite(&config.route(2000, "logic", "").key("gateway.explain_to_clients = true"));
    let (status, body) = gateway.admin_post("/reload", "{}");
    assert_eq!(status, 200, "{body}");
    let changed = &body["changes"][0];
    assert_eq!(changed["key"], "gateway.explain_to_clients", "{body}");
    assert_eq!((&changed["old"], &changed["new"]), (&json!("false"), &json!("true")));
    eventually("the shard works by it", || {
        (client.call(2001, json!(2))["payload"] == 2).then_some(())
    });
    assert_eq!(gateway.admin_get("/health")["last_reload"]["ok"], true);
    let (_, metrics) = gateway.request("GET /metrics", "", "");
    assert!(metrics.contains("shardgate_reloads_total{result=\"refused\"} 2\n"), "{metrics}");
    assert!(metrics.contains("shardgate_last_reload_ok 1\n"));
}

#[test]
fn changes_take_the_token_of_the_file_that_only_its_user_can_read() {
    let gateway = Gateway::start(&Config::new());
    let dir = gateway.dir().join("shardgate");
    let file = dir.join(format!("admin-{}.token", gateway.admin.port()));
    let mode = |path| std::fs::metadata(path).expect("there").mode() & 0o777;
    assert_eq!((mode(&dir), mode(&file), gateway.token().len()), (0o700, 0o600, 64));
    assert_eq!(gateway.request("POST /reload", JSON, "").0, 401);
    let wrong = format!("{JSON}Authorization: Bearer {}\r\n", "0".repeat(64));
    assert_eq!(gateway.request("POST /reload", &wrong, "").0, 401);
    let untyped = format!("Authorization: Bearer {}\r\n", gateway.token());
    assert_eq!(gateway.request("POST /reload", &untyped, "").0, 415);
    assert_eq!(gateway.admin_post("/reload", "").0, 200);
    assert!(!gateway.log().contains(&gateway.token()), "it is not in the log");
}

#[test]
fn without_a_safe_token_it_serves_and_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("token");
    std::fs::write(&file, "0123456789abcdef").expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("ours");
    let key = format!("admin.token_file = \"{}\"", file.display());
    let gateway = Gateway::start(&Config::new().key(&key));
    assert_eq!(gateway.admin_get("/health")["status"], "ok");
    let bearer = format!("{JSON}Authorization: Bearer 0123456789abcdef\r\n");
    let (status, body) = gateway.request("POST /reload", &bearer, "");
    assert!(status == 503 && body.contains("mode 0644"), "{status} {body}");
    let log = gateway.log();
    assert!(log.contains("admin_token") && !log.contains("0123456789abcdef"), "{log}");
}

#[test]
fn connections_are_found_by_session_and_by_the_work_they_cost() {
    let (gateway, _instances) = two();
    let mut clients: Vec<Client> = (0..5).map(|_| Client::connect(gateway.ws)).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        (0..=2 * n).for_each(|_| drop(client.call(1001, json!(null))));
    }
    // One large message costs more than nine small ones.
    clients[1].call(1001, json!("x".repeat(60 << 10)));
    let body = gateway.admin_get("/connections?top=2");
    assert_eq!((&body["connections"], &body["sessions"]), (&json!(5), &json!(5)));
    let top: Vec<(&str, u64)> = body["top"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|c| (c["session"].as_str().expect("text"), c["messages"].as_u64().expect("n")))
        .collect();
    let expected = [(clients[1].session(), 4), (clients[4].session(), 9)];
    assert_eq!(top, expected.each_ref().map(|(session, n)| (session.as_str(), *n)));
    let one = gateway.admin_get(&format!("/connections?session={}", clients[0].session()));
    let one = &one["session"];
    assert_eq!(
        (&one["messages"], &one["phase"], &one["unanswered"]),
        (&json!(1), &json!("open"), &json!(0))
    );
    let own = clients[0].stream().local_addr().expect("connected").to_string();
    assert_eq!((&one["peer"], &one["shard"]), (&json!(own), &clients[0].welcome["shard"]));
    assert_eq!(gateway.admin("/connections?session=0000000000000000").0, 404);
}

#[test]
fn the_log_filter_changes_at_run_time() {
    let (gateway, _instances) = two();
    assert_eq!(gateway.admin_get("/log")["filter"], "info");
    let (status, body) = gateway.admin_post("/log", "{\"filter\":\"error\"}");
    assert_eq!((status, &body["filter"]), (200, &json!("error")));
    assert_eq!(gateway.admin_post("/instances/logic-1/drain", "").0, 200);
    for (filter, why) in [("info,,=[", "must be a level"), ("inof", "did you mean info?")] {
        let (status, body) = gateway.admin_post("/log", &json!({ "filter": filter }).to_string());
        assert!(status == 422 && body["error"].to_string().contains(why), "{body}");
    }
    assert_eq!(gateway.admin_get("/log")["filter"], "error");
    assert_eq!(gateway.admin_post("/log", "{\"filter\":\"info\"}").0, 200);
    assert_eq!(gateway.admin_post("/instances/logic-1/undrain", "").0, 200);
    eventually("it is logged again", || gateway.log().contains("instance_drain: ").then_some(()));
    let told = gateway.log().matches("instance_drain: ").count();
    assert_eq!(told, 1, "the first one was below the filter");
}

#[test]
fn a_dump_is_two_files_that_only_its_user_can_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let gateway = Gateway::start_with(&Config::new(), |command| {
        command.env("TMPDIR", dir.path()).env_remove("STATE_DIRECTORY");
    });
    let files = |kind: &str| -> Vec<_> {
        let all = std::fs::read_dir(dir.path()).expect("ours").flatten().map(|e| e.path());
        all.filter(|path| path.extension().is_some_and(|e| e == kind)).collect()
    };
    gateway.signal(Signal::USR1);
    let state = eventually("the files are written", || {
        let text = std::fs::read_to_string(files("json").pop()?).ok()?;
        serde_json::from_str::<Value>(&text).ok()
    });
    assert_eq!(state["health"]["status"], "ok");
    assert!(state["stats"]["counters"].is_object() && state["config"]["settings"].is_array());
    let (status, body) = gateway.admin_post("/dump", "");
    assert_eq!((status, files("json").len(), files("hlog").len()), (200, 2, 2));
    let path = body["histograms"].as_str().expect("a path");
    assert_eq!(std::fs::metadata(path).expect("written").mode() & 0o777, 0o600);
    let log = std::fs::read_to_string(path).expect("written");
    assert!(log.starts_with("#[Histogram log") && log.contains("Tag=stall-0,"), "{log}");
}

/// Limits the files that the process may write to so many bytes: a full disk for one process.
fn limit_files(gateway: &Gateway, bytes: Option<u64>) {
    let limit = Rlimit { current: bytes, maximum: None };
    rustix::process::prlimit(Some(gateway.pid()), Resource::Fsize, limit).expect("our child");
}

#[test]
fn a_dump_without_room_leaves_nothing_behind_and_says_what_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let gateway = Gateway::start_with(&Config::new(), |command| {
        command.env("TMPDIR", dir.path()).env_remove("STATE_DIRECTORY");
    });
    let files = || std::fs::read_dir(dir.path()).expect("ours").count();
    let (status, whole) = gateway.admin_post("/dump", "");
    assert_eq!((status, files()), (200, 2), "{whole}");
    let length = |kind: &str| {
        std::fs::metadata(whole[kind].as_str().expect("a path")).expect("written").len()
    };
    let (first, second) = (length("histograms"), length("state"));
    assert!(second > first + 1_000, "the second file breaks off, too: {first}, {second}");
    // No room at all, for a part of the first file, for the first and a part of the second.
    for (room, kind) in [(0, "hlog"), (100, "hlog"), (first + 500, "json")] {
        limit_files(&gateway, Some(room));
        let (status, answer) = gateway.admin_post("/dump", "");
        let why = answer["error"].as_str().expect("a sentence");
        assert_eq!((status, files()), (500, 2), "{why}");
        let start = format!("cannot be written: {}/shardgate-", dir.path().display());
        assert!(why.contains(&start) && why.contains(&format!(".{kind}: File too large")), "{why}");
        assert!(why.ends_with("raise the limit of file sizes (`ulimit -f`, LimitFSIZE=)"), "{why}");
    }
    limit_files(&gateway, None);
    assert!(gateway.log().contains("dump_failed"), "{}", gateway.log());
    assert_eq!((gateway.admin_post("/dump", "").0, files()), (200, 4), "it goes on");
    let modes = std::fs::read_dir(dir.path()).expect("ours").flatten();
    assert!(modes.into_iter().all(|f| f.metadata().expect("there").mode() & 0o777 == 0o600));
}

#[test]
fn a_token_file_without_room_is_not_there_and_made_at_the_next_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("token");
    let config = Config::new().key(&format!("admin.token_file = \"{}\"", file.display()));
    let gateway = Gateway::start_with(&config, |command| under(command, &[], "ulimit -f 0"));
    let why = eventually("the log says why", || {
        let log = gateway.log();
        log.lines().find(|line| line.contains("admin_token_missing")).map(str::to_owned)
    });
    assert!(why.contains("File too large") && !file.exists(), "{why}");
    drop(gateway);
    let _gateway = Gateway::start(&config);
    assert_eq!(std::fs::read_to_string(&file).expect("made").trim_end().len(), 64);
}

/// A file system of 16 KiB, which only root can make, in a mount namespace of its own.
#[test]
fn a_dump_to_a_full_disk_leaves_nothing_behind() {
    let unshared = std::process::Command::new("unshare").args(["-m", "true"]).output();
    if !unshared.is_ok_and(|done| done.status.success()) {
        return; // The test above breaks off the same writes.
    }
    let dir = tempfile::tempdir().expect("a directory");
    let gateway = Gateway::start_with(&Config::new(), |command| {
        under(command, &["unshare", "-m"], "mount -t tmpfs -o size=16k none \"$TMPDIR\"");
        command.env("TMPDIR", dir.path()).env_remove("STATE_DIRECTORY");
    });
    let (status, answer) = gateway.admin_post("/dump", "");
    let why = answer["error"].as_str().expect("a sentence");
    assert_eq!(status, 500, "{why}");
    assert!(why.contains("/shardgate-") && why.contains("No space left on device"), "{why}");
    assert!(why.contains("make room there, or name another directory"), "{why}");
    let inside = format!("/proc/{}/root{}", gateway.pid().as_raw_nonzero(), dir.path().display());
    assert_eq!(std::fs::read_dir(inside).expect("its own view").count(), 0);
}

#[test]
fn post_drain_stops_in_order() {
    let (mut gateway, _instances) = two();
    let mut client = Client::connect(gateway.ws);
    assert_eq!(gateway.request("GET /readyz", "", "").0, 200);
    assert_eq!(gateway.admin_post("/drain", "").0, 202);
    assert_eq!(client.until_close().1, Some(1001));
    assert_eq!(gateway.wait().code(), Some(0));
}
