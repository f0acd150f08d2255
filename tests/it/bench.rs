//! The load generator against real gateways: every message is accounted for, whatever happens.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::auth::{SECRET, auth_of, token};
use crate::support::secure::Signer;
use crate::support::{Action, Config, Finished, Gateway, Instance, eventually, run};
use crate::tls::certificate;

/// A gateway with one service for the ids from 1000, which echoes.
fn echo(config: Config) -> (Gateway, Instance) {
    let instance = Instance::echo();
    let config = config.service("logic", &[("a", instance.address)]).route(1000, "logic", "");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    (gateway, instance)
}

fn url(to: SocketAddr) -> String {
    format!("ws://{to}/ws")
}

fn bench(to: SocketAddr, options: &str) -> Finished {
    let url = url(to);
    let args: Vec<&str> = ["bench", &url].into_iter().chain(options.split_whitespace()).collect();
    run(&args, |_| ())
}

/// A run as JSON.
#[track_caller]
fn measured(to: SocketAddr, options: &str) -> Value {
    let finished = bench(to, &format!("{options} --format json"));
    read(&finished.stdout)
}

#[track_caller]
fn read(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn number(record: &Value, key: &str) -> u64 {
    record[key].as_u64().unwrap_or_else(|| panic!("no number {key} in {record}"))
}

/// Whether every message that was sent ended in one way, and no answer came twice.
#[track_caller]
fn adds_up(record: &Value) {
    let errors = record["errors"].as_object().expect("an object").values();
    let errors: u64 = errors.map(|counted| number(counted, "count")).sum();
    let ends = ["ok", "timed_out", "lost", "unanswered"].map(|key| number(record, key));
    assert_eq!(number(record, "sent"), errors + ends.iter().sum::<u64>(), "{record}");
    let strange = ["doubled", "unasked", "late_answers"].map(|key| number(record, key));
    assert_eq!(strange, [0, 0, 0], "{record}");
}

#[test]
fn a_closed_loop_accounts_for_every_message_in_both_encodings() {
    let (gateway, instance) = echo(Config::new());
    let options = "--connections 4 --depth 3 --messages 500 --threads 2 --sources 3";
    for (n, encoding) in ["json", "protobuf"].into_iter().enumerate() {
        let record = measured(gateway.ws, &format!("{options} --encoding {encoding}"));
        adds_up(&record);
        assert_eq!((number(&record, "sent"), number(&record, "ok")), (500, 500), "{record}");
        assert_eq!(instance.requests().len(), 500 * (n + 1));
        assert_eq!(number(&record["latency_us"], "count"), 500);
        assert_eq!(record["closes"], json!({}), "{record}");
    }
    let requests = instance.requests();
    assert!(requests.iter().all(|r| r.msg_id == 1001 && r.payload == b"{\"text\":\"xxxxx\"}"[..]));
}

#[test]
fn a_run_that_takes_its_time_was_not_ended_early() {
    let (gateway, _instance) = echo(Config::new());
    let pid = gateway.pid().as_raw_nonzero();
    for threads in [1, 2, 1, 2] {
        let options = "--connections 2 --warmup 20ms --duration 200ms --rate 500";
        let record = measured(gateway.ws, &format!("{options} --threads {threads} --pid {pid}"));
        adds_up(&record);
        assert_eq!(record["ended_early"], json!(false), "{record}");
        assert!(number(&record, "ok") > 0, "{record}");
        assert!(record["cpu_us_per_message"].as_f64() > Some(0.0), "{record}");
    }
}

#[test]
fn what_is_held_for_longer_than_the_timeout_timed_out_up_to_the_last_message() {
    let (gateway, instance) = echo(Config::new());
    instance.hold();
    let options = "--connections 1 --depth 5 --warmup 0 --duration 10ms --timeout 210ms";
    let finished = bench(gateway.ws, &format!("{options} --format json"));
    let record = read(&finished.stdout);
    adds_up(&record);
    let ends = ["sent", "timed_out", "unanswered"].map(|key| number(&record, key));
    assert_eq!((ends, finished.code), ([5, 5, 0], Some(1)), "{record}");
}

#[test]
fn messages_of_one_id_are_one_row_whatever_their_sizes() {
    let (gateway, _instance) = echo(Config::new());
    let options = "--messages 300 --mix 1001:1:16 --mix 1001:1:400 --mix 1002";
    let record = measured(gateway.ws, options);
    adds_up(&record);
    let count = |id: &str| number(&record["by_id"][id], "count");
    assert_eq!(count("1001") + count("1002"), 300, "{record}");
}

#[test]
fn in_an_open_loop_a_stall_is_in_the_times_of_all_that_was_due_meanwhile() {
    let (gateway, instance) = echo(Config::new());
    instance.hold();
    let to = gateway.ws;
    let running = std::thread::spawn(move || measured(to, "--rate 1000 --messages 300"));
    eventually("all messages were sent", || {
        (gateway.counter("business_messages") >= 300).then_some(())
    });
    instance.release();
    let record = running.join().expect("it ends");
    adds_up(&record);
    assert_eq!(number(&record, "ok"), 300, "{record}");
    // The service answered nothing before the last message, which was due 299 ms after the first.
    let p50 = record["latency_us"]["p50"].as_f64().expect("a number");
    assert!(p50 > 145_000.0, "half of them waited for 149 ms or more: {record}");
    assert_eq!(number(&record, "unsent"), 0, "{record}");
}

#[test]
fn refusals_are_told_apart_with_their_way_out() {
    let (gateway, _instance) = echo(Config::new().shard("limits.address_messages_per_s = 20"));
    let finished = bench(gateway.ws, "--messages 50 --mix 7");
    assert_eq!(finished.code, Some(1), "{finished:?}");
    for line in ["no message was answered with success", "\nNO_ROUTE: `", "\nNO_ROUTE "] {
        assert!(finished.stdout.contains(line), "{line} in {}", finished.stdout);
    }
    let record = measured(gateway.ws, "--connections 1 --depth 4 --messages 60 --timeout 3s");
    adds_up(&record);
    let limited = &record["errors"]["RATE_LIMITED"];
    assert!(number(limited, "count") > 0, "{record}");
    assert!(limited["example"].as_str().is_some_and(|text| text.contains("address")), "{record}");
    let (ok, refused) = (&record["latency_us"], &record["error_latency_us"]);
    assert_eq!(number(ok, "count"), number(&record, "ok"), "{record}");
    assert_eq!(number(refused, "count"), number(&record, "sent") - number(&record, "ok"));
}

#[test]
fn connections_sign_in_with_the_tokens_in_turn() {
    let (gateway, instance) = echo(auth_of(SECRET).key("auth.required = true"));
    let dir = tempfile::tempdir().expect("a directory");
    let tokens = dir.path().join("tokens");
    let lines = format!("{}\n\n{}\n", token("alice"), token("bob"));
    fs::write(&tokens, lines).expect("our directory");
    for encoding in ["json", "protobuf"] {
        let options = format!(
            "--connections 4 --messages 40 --encoding {encoding} --tokens {}",
            tokens.display()
        );
        let record = measured(gateway.ws, &options);
        adds_up(&record);
        assert_eq!(number(&record, "ok"), 40, "{record}");
    }
    let users: Vec<String> = instance.requests().into_iter().map(|r| r.user).collect();
    let of = |name: &str| users.iter().filter(|user| *user == name).count();
    assert!(of("alice") > 0 && of("bob") > 0 && of("alice") + of("bob") == 80, "{users:?}");
    let without = bench(gateway.ws, "--messages 40 --connections 2");
    assert_eq!(without.code, Some(1), "{without:?}");
    assert!(without.stdout.contains("UNAUTHENTICATED: sign in with --token"), "{without:?}");
    let bad = bench(gateway.ws, "--messages 40 --connections 2 --token a.b.c");
    assert_eq!((bad.code, bad.stdout.lines().count()), (Some(1), 1), "{bad:?}");
    assert!(bad.stdout.contains("check token"), "{bad:?}");
}

#[test]
fn connections_are_replaced_without_losing_a_message() {
    let (gateway, _instance) = echo(Config::new());
    let options = "--connections 8 --rate 400 --messages 200 --churn 100 --connects-per-s 500";
    let record = measured(gateway.ws, options);
    adds_up(&record);
    assert_eq!((number(&record, "ok"), number(&record, "lost")), (200, 0), "{record}");
    assert!(number(&record, "replaced") > 0, "{record}");
    assert_eq!((&record["closes"], &record["failed_connects"]), (&json!({}), &json!({})));
}

#[test]
fn a_thousand_sessions_that_are_cut_at_once_come_back_and_lose_no_answer() {
    let (gateway, _instance) = echo(Config::new());
    for (n, encoding) in (1..).zip(["json", "protobuf"]) {
        let options = format!(
            "--resume --connections 1000 --sources 20 --rate 1000 --warmup 100ms --duration 3s \
             --cut-at 1s --encoding {encoding}"
        );
        let record = measured(gateway.ws, &options);
        adds_up(&record);
        let resumed = &record["resumed"];
        let outcomes = json!({"new": 1000, "resumed": 1000});
        assert_eq!(resumed["outcomes"], outcomes, "{record}");
        let counts = ["losses", "away", "answers_lost", "answers_doubled"];
        let counts = counts.map(|key| number(resumed, key));
        assert_eq!(counts, [1000, 0, 0, 0], "{record}");
        assert_eq!(number(&record, "ok"), number(&record, "sent"), "{record}");
        assert_eq!(number(&resumed["back_us"], "count"), 1000, "{record}");
        assert!(number(&resumed["around_cut_us"][0], "count") > 0, "{record}");
        assert_eq!(gateway.counter("sessions_resumed"), 1000 * n);
        // All of them said that they leave.
        eventually("no session is left", || {
            (gateway.admin_get("/stats")["sessions_resumable"] == 0).then_some(())
        });
    }
}

#[test]
fn connections_that_are_replaced_come_back_to_their_sessions() {
    let (gateway, _instance) = echo(auth_of(SECRET).key("auth.required = true"));
    let dir = tempfile::tempdir().expect("a directory");
    let tokens = dir.path().join("tokens");
    let lines: Vec<String> = (0..20).map(|n| token(&format!("user-{n}"))).collect();
    fs::write(&tokens, lines.join("\n")).expect("our directory");
    let options = format!(
        "--resume --connections 40 --rate 1000 --duration 3s --churn 100 --payload-bytes 2000 \
         --tokens {}",
        tokens.display()
    );
    let record = measured(gateway.ws, &options);
    adds_up(&record);
    let resumed = &record["resumed"];
    let counts = ["answers_lost", "answers_doubled"].map(|key| number(resumed, key));
    assert_eq!(counts, [0; 2], "{record}");
    let losses = number(resumed, "losses");
    assert!(losses > 100 && number(&record, "replaced") == losses, "{record}");
    // The run does not wait for the last ones, whose messages all have their answers.
    let back = losses - number(resumed, "away");
    assert_eq!(resumed["outcomes"], json!({"new": 40, "resumed": back}), "{record}");
    assert_eq!(number(&record, "ok"), number(&record, "sent"), "{record}");
}

#[test]
fn sessions_that_are_lost_are_told_with_their_answers_and_a_gateway_without_any_refuses() {
    let (gateway, instance) = echo(Config::new().shard("session.away_max = 1"));
    instance.script(|_| Action::Never);
    let options = "--resume --connections 20 --depth 1 --warmup 0 --duration 2s --cut-at 500ms \
                   --timeout 1s";
    let finished = bench(gateway.ws, &format!("{options} --format json"));
    let record = read(&finished.stdout);
    let resumed = &record["resumed"];
    let lost = number(&resumed["outcomes"], "lost EXPIRED");
    assert!(lost > 0 && number(&record, "lost") >= lost, "{record}");
    assert!(number(resumed, "answers_lost") >= lost, "{record}");
    let (none, _instance) = echo(Config::new().shard("session.ttl_ms = 0"));
    let finished = bench(none.ws, "--resume --connections 2 --messages 10");
    assert_eq!((finished.code, finished.stdout.lines().count()), (Some(1), 1), "{finished:?}");
    assert!(finished.stdout.contains("resume was refused with UNIMPLEMENTED: "), "{finished:?}");
}

/// A run that goes on until it is told to end.
fn endless(to: SocketAddr, options: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shardgate"));
    command.args(["bench", &url(to), "--duration", "1h", "--warmup", "0", "--format", "json"]);
    command.args(options.split_whitespace()).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
}

#[track_caller]
fn ended(child: Child) -> (Option<i32>, Value) {
    let output = child.wait_with_output().expect("a child");
    assert!(output.stderr.is_empty(), "no terminal, no progress: {output:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    (output.status.code(), read(&text))
}

#[test]
fn ctrl_c_ends_a_run_early_with_its_report() {
    let (gateway, instance) = echo(Config::new());
    let child = endless(gateway.ws, "--connections 4");
    instance.wait_for(100);
    instance.hold();
    let mut looks = (0, 0);
    eventually("all that arrives is held", || {
        let now = instance.requests().len();
        looks = if looks.0 == now { (now, looks.1 + 1) } else { (now, 0) };
        (looks.1 == 50).then_some(())
    });
    kill_process(Pid::from_child(&child), Signal::INT).expect("it lives");
    let (code, record) = ended(child);
    assert_eq!((code, &record["ended_early"]), (Some(0), &json!(true)), "{record}");
    adds_up(&record);
    assert!(number(&record, "ok") >= 96 && number(&record, "unanswered") > 0, "{record}");
}

#[test]
fn a_run_ends_when_the_gateway_is_gone_for_good_and_says_what_was_lost() {
    let (gateway, instance) = echo(Config::new());
    let child = endless(gateway.ws, "--connections 4 --timeout 300ms");
    instance.wait_for(100);
    drop(gateway);
    let (code, record) = ended(child);
    assert_eq!((code, &record["ended_early"]), (Some(0), &json!(true)), "{record}");
    adds_up(&record);
    let failed = &record["failed_connects"]["nobody listens there"];
    assert!(number(failed, "count") > 0, "{record}");
    assert_eq!(number(&record["closes"]["none"], "count"), 4, "{record}");
}

#[test]
fn slow_readers_are_closed_by_the_gateway_and_are_not_measured() {
    let config = Config::new().shard("conn.write_timeout_ms = 200");
    let (gateway, _instance) = echo(config);
    let options = "--connections 1 --rate 50 --slow-readers 1 --payload-bytes 30000";
    let child = endless(gateway.ws, options);
    eventually("a slow reader is closed", || (gateway.counter("closed_slow") > 0).then_some(()));
    kill_process(Pid::from_child(&child), Signal::INT).expect("it lives");
    let (_, record) = ended(child);
    adds_up(&record);
    assert_eq!(number(&record, "ok"), number(&record, "sent"), "{record}");
    assert!(number(&record, "slow_sent") > 0, "{record}");
}

#[test]
fn a_run_is_stored_compared_and_drawn() {
    let (gateway, _instance) = echo(Config::new());
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (save, svg, hgrm) = (at("before.json"), at("both.svg"), at("now.hgrm"));
    let first = bench(gateway.ws, &format!("--messages 100 --save {save}"));
    assert_eq!((first.code, first.stderr), (Some(0), format!("wrote {save}\n")));
    let options = format!("--messages 100 --vs {save} --svg {svg} --hgrm {hgrm}");
    let second = bench(gateway.ws, &options);
    assert_eq!(second.code, Some(0), "{second:?}");
    assert!(second.stdout.contains("this run") && second.stdout.contains("ratio"), "{second:?}");
    let text = fs::read_to_string(&svg).expect("written");
    assert!(text.contains(">this run<") && text.contains(">before<"), "{text}");
    let text = fs::read_to_string(&hgrm).expect("written");
    assert!(text.contains("Total count    =          100]"), "{text}");
    let (status, log) = gateway.request("GET /histograms", "", "");
    assert_eq!(status, 200);
    let (log_file, chart) = (at("now.hlog"), at("chart.svg"));
    fs::write(&log_file, log).expect("our directory");
    let plotted = run(&["histogram", "plot", &log_file, &hgrm, &save, "--svg", &chart], |_| ());
    assert_eq!(plotted.code, Some(0), "{plotted:?}");
    let text = fs::read_to_string(&chart).expect("written");
    for name in [">whole, now<", ">now<", ">before<"] {
        assert!(text.contains(name), "{name} in {text}");
    }
    for (options, why) in [
        (format!("--vs {hgrm}"), "is no run that bench --save has stored"),
        ("--save /nowhere/a".into(), "/nowhere/a: no file can be written there"),
        (format!("--save {}", dir.path().display()), ": no file can be written there"),
        (format!("--save {hgrm} --hgrm {hgrm}"), "two options name this file"),
    ] {
        let finished = bench(gateway.ws, &options);
        assert_eq!(
            (finished.code, finished.stdout.contains(why)),
            (Some(64), true),
            "{finished:?}"
        );
    }
}

#[test]
fn what_keeps_a_run_from_beginning_is_one_line_with_the_way_out() {
    let (gateway, _instance) = echo(Config::new());
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = silent.local_addr().expect("bound");
    for (url, options, why) in [
        (url(nobody), "", "nobody listens there: start one with `"),
        (format!("ws://{}/other", gateway.ws), "", "HTTP 404: the path is \"/other\""),
        (format!("ws://{}/", gateway.admin), "", "HTTP 404"),
        (format!("wss://{}/ws", gateway.ws), "--insecure", "TLS: "),
        (url(silent), "--timeout 200ms", "it does not answer: see which program listens there"),
        (url(gateway.ws), "--pid 4294967295", "there is no such process"),
        ("ws://192.0.2.1:1/ws".into(), "--sources 2", "reach only a gateway on this machine"),
    ] {
        let args = format!("bench {url} --connections 3 {options}");
        let finished = run(&args.split_whitespace().collect::<Vec<_>>(), |_| ());
        assert_eq!((finished.code, finished.stdout.lines().count()), (Some(1), 1), "{finished:?}");
        assert!(finished.stdout.contains(why), "{why}: {}", finished.stdout);
    }
    // A URL as people write it, and what the gateway says when it has no room.
    let http = format!("http://{}", gateway.ws);
    let finished = run(&["bench", &http, "--messages", "10"], |_| ());
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let (full, _instance) = echo(Config::new().shard("limits.address_connections_max = 3"));
    let finished = bench(full.ws, "--messages 30 --connections 10");
    assert_eq!(finished.code, Some(0), "{finished:?}");
    for line in ["connections when the load began: 3 of 10", "HTTP 429: "] {
        assert!(finished.stdout.contains(line), "{line} in {}", finished.stdout);
    }
}

#[test]
fn a_gateway_with_tls_is_measured_if_its_authority_is_named() {
    let (signer, certs) = (Signer::new(), tempfile::tempdir().expect("a directory"));
    signer.write(certs.path(), "a", &["127.0.0.1"]);
    let ca = certs.path().join("ca.pem");
    fs::write(&ca, signer.pem()).expect("our directory");
    let instance = Instance::echo();
    let config = Config::new()
        .key("tls.listen = \"127.0.0.1:0\"")
        .key(&certificate(&certs, "a"))
        .service("logic", &[("a", instance.address)])
        .route(1000, "logic", "");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let url = format!("wss://{}/ws", gateway.wss.expect("TLS is on"));
    let bench = |options: &str| {
        let args = format!("bench {url} --messages 40 --connections 4 {options}");
        run(&args.split_whitespace().collect::<Vec<_>>(), |_| ())
    };
    let named = format!("--ca {}", ca.display());
    for options in [&*named, "--insecure", "--insecure --payload-bytes 40000 --depth 4"] {
        let finished = bench(&format!("{options} --format json"));
        let record = read(&finished.stdout);
        adds_up(&record);
        assert_eq!((finished.code, number(&record, "ok")), (Some(0), 40), "{record}");
    }
    let other = certs.path().join("other.pem");
    fs::write(&other, Signer::new().pem()).expect("our directory");
    let finished = bench(&format!("--ca {}", other.display()));
    assert_eq!((finished.code, finished.stdout.lines().count()), (Some(1), 1), "{finished:?}");
    assert!(finished.stdout.contains("--ca FILE names the authority"), "{finished:?}");
}
