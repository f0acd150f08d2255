//! TLS towards services: the same promises as without, who is trusted, and what an operator reads
//! when it fails.

mod change;
mod faults;

use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::secure::{Signer, VERSIONS};
use crate::support::{Action, Arrived, Client, Config, Gateway, Instance, eventually, ok, several};

/// Name in the certificates of services.
const NAME: &str = "logic.test";
/// Quick attempts, so that a test need not wait for the next one.
const QUICK: &str = "backend.backoff_ms = 20\nbackend.backoff_max_ms = 50";

/// A signer of services and a signer of gateways, with their files in a directory:
/// `ca.pem`, and `gateway.pem` with `gateway.key`.
struct Office {
    services: Signer,
    gateways: Signer,
    files: TempDir,
}

impl Office {
    fn new() -> Self {
        let files = tempfile::tempdir().expect("a directory");
        let office = Self { services: Signer::new(), gateways: Signer::new(), files };
        office.write_ca(&office.services);
        office.gateways.write(office.files.path(), "gateway", &["gateway"]);
        office
    }

    fn write_ca(&self, signer: &Signer) {
        std::fs::write(self.files.path().join("ca.pem"), signer.pem()).expect("written");
    }

    fn path(&self, name: &str) -> String {
        self.files.path().join(name).display().to_string()
    }

    /// `ca_file = ...`
    fn ca(&self) -> String {
        format!("ca_file = {:?}", self.path("ca.pem"))
    }

    /// `cert_file = ..., key_file = ...`
    fn own(&self) -> String {
        let [cert, key] = ["gateway.pem", "gateway.key"].map(|name| self.path(name));
        format!("cert_file = {cert:?}, key_file = {key:?}")
    }

    /// A service with a certificate for [`NAME`].
    fn service(&self, versions: &[&'static SupportedProtocolVersion]) -> ServerConfig {
        self.services.service(&[NAME], versions, None)
    }

    /// An instance with a certificate for [`NAME`] that echoes.
    fn echo(&self) -> Instance {
        let instance = Instance::echo();
        instance.secure(Some(self.service(&VERSIONS)));
        instance
    }
}

/// A gateway's configuration with the service `logic`, whose table `tls` has these keys.
fn config(instance: &Instance, tls: &str) -> Config {
    Config::new()
        .shard(QUICK)
        .service_with(&format!("tls = {{ {tls} }}"), "logic", &[("a", instance.address)])
        .route(1000, "logic", "")
}

/// Keys of `tls` with the signer of services, and [`NAME`].
fn trusting(office: &Office) -> String {
    format!("{}, server_name = {NAME:?}", office.ca())
}

/// The only instance in `/services`.
fn shown(gateway: &Gateway) -> Value {
    gateway.admin_get("/services")["services"]["logic"]["instances"][0].clone()
}

#[test]
fn messages_are_answered_over_tls_in_both_versions() {
    let office = Office::new();
    for version in VERSIONS {
        let instance = Instance::echo();
        instance.secure(Some(office.service(&[version])));
        let gateway = Gateway::start(&config(&instance, &trusting(&office)).shards(several()));
        gateway.wait_connected("logic", &["a"]);
        let mut client = Client::connect(gateway.ws);
        // Larger than a record of TLS, than the gathered bytes of a turn, and than a buffer.
        for size in [1, 10_000, 60_000] {
            let payload = json!("x".repeat(size));
            assert_eq!(client.call(1001, payload.clone())["payload"], payload);
        }
        let call = &instance.calls()[0];
        assert_eq!(call.origin, format!("https://{NAME}:{}", instance.address.port()));
        assert!(!call.certified);
        let tls = &gateway.admin_get("/services")["services"]["logic"]["tls"];
        assert_eq!(tls["server_name"], NAME);
        assert_eq!(tls["ca_file"], office.path("ca.pem"));
        assert_eq!(gateway.counter("backend_connects"), several() as u64);
        assert_eq!(gateway.counter("backend_connect_failed"), 0);
    }
}

#[test]
fn many_clients_share_a_connection_with_tls_and_each_gets_its_own_answers() {
    let office = Office::new();
    let instance = office.echo();
    let gateway = Gateway::start(&config(&instance, &trusting(&office)));
    gateway.wait_connected("logic", &["a"]);
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(gateway.ws)).collect();
    instance.hold();
    // Together several times the bytes that a turn gathers and that the kernel takes at once.
    let payload = |client: usize, n: usize| json!(format!("{client} {n} {}", "y".repeat(20_000)));
    let mut seqs = Vec::new();
    for (c, client) in clients.iter_mut().enumerate() {
        let send = |n| client.send(json!({"msg_id": 1001, "payload": payload(c, n)}));
        seqs.push((0..10).map(send).collect::<Vec<u64>>());
    }
    eventually("all are read", || (gateway.counter("business_messages") == 200).then_some(()));
    instance.release();
    for (c, (client, seqs)) in clients.iter_mut().zip(seqs).enumerate() {
        for (n, seq) in seqs.into_iter().enumerate() {
            assert_eq!(client.answer(seq)["payload"], payload(c, n));
        }
    }
    assert_eq!(gateway.counter("backend_connects"), 1);
}

#[test]
fn a_unary_service_is_called_over_tls() {
    let office = Office::new();
    let instance = Instance::start(|call: &Arrived| Action::Message(call.body.to_vec()));
    instance.secure(Some(office.service(&VERSIONS)));
    let tls = format!("mode = \"unary\"\ntls = {{ {} }}", trusting(&office));
    let config = Config::new().service_with(&tls, "logic", &[("a", instance.address)]).route(
        1000,
        "logic",
        "method = \"/shop.Prices/Get\"\npayload = \"bytes\"",
    );
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let mut client = Client::connect(gateway.ws);
    let answer = client.ask(json!({"msg_id": 1001, "payload_base64": "aGVsbG8="}));
    assert_eq!(answer["payload_base64"], "aGVsbG8=");
    assert!(instance.calls()[0].origin.starts_with("https://logic.test:"));
}

#[test]
fn without_a_name_the_certificate_must_be_for_the_address() {
    let office = Office::new();
    let instance = Instance::echo();
    let ip = instance.address.ip().to_string();
    instance.secure(Some(office.services.service(&[&ip], &VERSIONS, None)));
    let gateway = Gateway::start(&config(&instance, &office.ca()));
    gateway.wait_connected("logic", &["a"]);
    assert_eq!(Client::connect(gateway.ws).call(1001, json!(1))["payload"], 1);
    assert_eq!(instance.calls()[0].origin, format!("https://{}", instance.address));
}

#[test]
fn a_service_that_demands_a_certificate_is_shown_the_gateways() {
    let office = Office::new();
    for version in VERSIONS {
        let instance = Instance::start(|call: &Arrived| {
            assert!(call.certified);
            Action::Reply(call.batch.requests.iter().map(ok).collect())
        });
        let demanding = office.services.service(&[NAME], &[version], Some(&office.gateways));
        instance.secure(Some(demanding));
        let tls = format!("{}, {}", trusting(&office), office.own());
        let gateway = Gateway::start(&config(&instance, &tls));
        gateway.wait_connected("logic", &["a"]);
        assert_eq!(Client::connect(gateway.ws).call(1001, json!(1))["payload"], 1);
        let (_, metrics) = gateway.request("GET /metrics", "", "");
        let line = format!("expires_seconds{{certificate=\"{}\"}}", office.path("gateway.pem"));
        assert!(metrics.contains(&line), "{metrics}");
    }
}

#[test]
fn a_service_with_tls_is_killed_and_comes_back() {
    let office = Office::new();
    let mut instance = office.echo();
    let gateway = Gateway::start(&config(&instance, &trusting(&office)));
    gateway.wait_connected("logic", &["a"]);
    let mut client = Client::connect(gateway.ws);
    assert_eq!(client.call(1001, json!(1))["payload"], 1);
    instance.kill();
    eventually("it is away", || (gateway.connected("logic", "a") == 0).then_some(()));
    assert_eq!(client.call(1001, json!(2))["reason"], "UNAVAILABLE");
    instance.restart();
    gateway.wait_connected("logic", &["a"]);
    assert_eq!(client.call(1001, json!(3))["payload"], 3);
}

#[test]
fn the_demo_services_speak_tls_and_their_health_is_checked_over_it() {
    let office = Office::new();
    office.services.write(office.files.path(), "demo", &["127.0.0.1"]);
    let reserved: Vec<_> =
        (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    let addresses: Vec<_> =
        reserved.iter().map(|socket| socket.local_addr().expect("bound")).collect();
    drop(reserved);
    let shown: Vec<String> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
    let config = Config::default()
        .key("log.filter = \"info\"")
        .key(&format!("demo.addresses = [{}]", shown.join(", ")))
        .key(&format!("demo.tls_cert = {:?}", office.path("demo.pem")))
        .key(&format!("demo.tls_key = {:?}", office.path("demo.key")))
        .key("health.check_ms = 100")
        .shard(QUICK)
        .service_with(&format!("tls = {{ {} }}", office.ca()), "logic", &[("a", addresses[0])])
        .route(1000, "logic", "");
    let gateway = Gateway::start(&config);
    gateway.wait_connected("logic", &["a"]);
    let who = Client::connect(gateway.ws).call(1001, json!({"who": true}));
    assert_eq!(who["payload"]["service"], "logic");
    // "ok" and not "unchecked": an answer came to a health check.
    eventually("its health is known", || (self::shown(&gateway)["standing"] == "ok").then_some(()));
}

#[test]
fn health_checks_fail_for_the_reasons_that_calls_have() {
    let office = Office::new();
    let instance = Instance::echo();
    instance.secure(Some(Signer::new().service(&[NAME], &[&TLS13, &TLS12], None)));
    let gateway = Gateway::start(
        &config(&instance, &trusting(&office)).key("health.check_ms = 100\nhealth.down_after = 1"),
    );
    eventually("it is down", || (shown(&gateway)["standing"] == "down").then_some(()));
    let why = shown(&gateway)["why"].as_str().expect("a reason").to_owned();
    assert!(why.contains("TLS: no authority in tls.ca_file signed its certificate"), "{why}");
}
