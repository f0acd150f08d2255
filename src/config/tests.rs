//! Tests of the whole way from text to configuration.

use super::load::{DEFAULT_TOML, Files, GATEWAY_TOML, Overrides, Text, from_files};
use super::problem::Source;
use super::settings::*;
use super::{Config, Family, Lookup, LookupName, Problems};
use crate::ids::TenantId;
use crate::message::Priority;
use crate::routing::*;

fn text(name: &str, text: &str) -> Text {
    Text { name: name.into(), text: text.into() }
}

/// The built-in files, but for those given.
fn files(gateway: Option<&str>, default: Option<&str>, shards: &[(usize, &str)]) -> Files {
    let mut files = Files::embedded();
    files.gateway = text("shards/gateway.toml", gateway.unwrap_or(GATEWAY_TOML));
    files.default = text("shards/default.toml", default.unwrap_or(DEFAULT_TOML));
    for &(n, body) in shards {
        files.shards.insert(n, text(&format!("shards/{n}.toml"), body));
    }
    files
}

fn of(gateway: Option<&str>, default: Option<&str>) -> Result<Config, Problems> {
    from_files(files(gateway, default, &[]), &[], &Overrides::default())
}

fn lines(result: Result<Config, Problems>) -> Vec<String> {
    let problems = result.expect_err("there are mistakes in it");
    problems.to_string().lines().map(str::to_owned).collect()
}

fn with_env(pairs: &[(&str, &str)]) -> Result<Config, Problems> {
    let env: Vec<_> = pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
    from_files(files(None, None, &[]), &env, &Overrides::default())
}

#[test]
fn the_files_hold_the_defaults_of_the_settings() {
    let mut config = of(None, None).expect("the files are right");
    // Tables of lists, as services and routes are: those of the demo.
    config.gateway.push.groups.clear();
    config.gateway.push.services.clear();
    assert_eq!(config.gateway, GatewaySettings::default());
    assert_eq!(config.shards.default, ShardSettings::default());
    assert_eq!(config.ring_points, 160);
    assert_eq!(config.warnings, []);
}

#[test]
fn the_files_name_every_key() {
    let config = of(None, None).expect("the files are right");
    // Optional keys of lists are in the text of the comment instead.
    let missing = config.provenance.iter().filter(|(_, _, source)| *source == Source::Default);
    let missing: Vec<_> = missing
        .filter(|(key, ..)| !["route[", "service[", "group["].iter().any(|l| key.starts_with(l)))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    for (key, value, _) in &config.provenance {
        let last = key.rsplit('.').next().expect("a part");
        assert!(GATEWAY_TOML.contains(last) || DEFAULT_TOML.contains(last), "{key} = {value}");
    }
}

#[test]
fn an_absent_key_has_the_default_of_the_settings() {
    let config = of(Some(""), Some("")).expect("nothing is required");
    assert_eq!(config.gateway, GatewaySettings::default());
    assert_eq!(config.shards.default, ShardSettings::default());
    assert!(config.snapshot.routes.is_empty());
    assert!(config.warnings.iter().any(|w| w.to_string().contains("no [[service]]")));
}

#[test]
fn the_default_routes_lead_to_the_demo_services() {
    let snapshot = of(None, None).expect("the files are right").snapshot;
    assert_eq!(snapshot.version, 1);
    for (id, name, priority, port) in [
        (1001, "logic", Priority::Normal, 50001),
        (2999, "chat", Priority::Normal, 50002),
        (3000, "fight", Priority::High, 50003),
    ] {
        let route = snapshot.route(TenantId::DEFAULT, id).expect("routed");
        let service = &snapshot.services[usize::from(route.service.0)];
        let instance = service.ring.pick(1).expect("not empty");
        let instance = snapshot.instance(instance).expect("exists");
        assert_eq!((&*service.name, route.priority), (name, priority));
        assert_eq!(instance.addresses.first().port(), port);
        assert_eq!((route.hash_on, route.timeout_ms), (HashOn::User, 5000));
    }
    assert!(snapshot.route(TenantId::DEFAULT, 4000).is_none());
}

#[test]
fn ten_mistakes_are_told_at_once_with_their_lines() {
    let gateway = r#"listen = "localhost:9000"
pth = "/ws"

[shards]
count = 0

[[service]]
name = "logic"
instances = [
    { id = "logic-1", address = "127.0.0.1:50001", weight = 1001 },
    { id = "logic-1", address = "127.0.0.1:50002" },
]

[[service]]
name = "logic"
instances = []

[[route]]
range = [1000, 1999]
service = "logik"

[[route]]
range = [1500, 2500]
service = "logic"
priority = "urgent"
timeout_ms = "5000"
"#;
    let found = lines(of(Some(gateway), None));
    let expected = [
        ":1: listen = \"localhost:9000\": must be empty, or an IP address and a port",
        ":2: pth = \"/ws\": unknown key; did you mean path?",
        ":5: shards.count = 0: must be a whole number from 1 to 1024, or \"auto\"",
        ":10: service[0].instances[0].weight = 1001: must be a whole number from 1 to 1000",
        ":11: service[0].instances[1].id = \"logic-1\": is also an instance of service[0]",
        ":15: service[1].name = \"logic\": is also the name of service[0]; rename one",
        ":16: service[1].instances = []: is empty; list at least one",
        ":20: route[0].service = \"logik\": there is no such service; did you mean \"logic\"?",
        ":23: route[1].range = [1500, 2500]: overlaps route[0] (1000-1999); ranges must not",
        ":25: route[1].priority = \"urgent\": must be one of \"critical\", \"high\"",
        ":26: route[1].timeout_ms = \"5000\": must be a whole number from 1 to 600000",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (line, start) in found.iter().zip(expected) {
        let start = format!("shards/gateway.toml{start}");
        assert!(line.starts_with(&start), "{line}\n{start}");
    }
}

#[test]
fn a_syntax_error_is_one_problem_and_the_other_files_are_still_checked() {
    let found = lines(of(Some("listen = \n[[service]]\n"), Some("[queue]\nitems_max = 0\n")));
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("shards/default.toml:2: queue.items_max = 0: "), "{found:#?}");
    assert!(found[1].starts_with("shards/gateway.toml:1: not TOML: "), "{found:#?}");
}

/// A mistake in `gateway.toml` is one line of problems.
fn one_gateway(body: &str, expected: &str) {
    let found = lines(of(Some(body), None));
    assert!(found.len() == 1 && found[0].contains(expected), "{found:#?}\n{expected}");
}

const LOGIC: &str = "[[service]]\nname = \"logic\"\n\
    instances = [{ id = \"l\", address = \"127.0.0.1:1\" }]\n";
const UNARY: &str = "[[service]]\nname = \"u\"\nmode = \"unary\"\n\
    instances = [{ id = \"u\", address = \"127.0.0.1:1\" }]\n";

#[test]
fn unary_routes_name_a_method_and_carry_bytes() {
    let route = |rest: &str| format!("{UNARY}[[route]]\nrange = [1, 2]\nservice = \"u\"\n{rest}");
    let config = of(Some(&route("payload = \"bytes\"\nmethod = \"/game.Logic/Move\"")), None);
    let config = config.expect("right");
    assert_eq!(config.snapshot.routes[0].method.as_deref(), Some("/game.Logic/Move"));
    assert_eq!(config.snapshot.services[0].mode, Mode::Unary);
    one_gateway(&route("payload = \"bytes\""), "route[0].method: is missing");
    one_gateway(&route("method = \"/a.B/C\""), ":5: route[0].payload: must be \"bytes\"");
    for wrong in ["Move", "/Move", "/game.Logic/", "/a/b/c", "/a..b/C", "//C", "/a b/C"] {
        let body = route(&format!("payload = \"bytes\"\nmethod = {wrong:?}"));
        one_gateway(&body, "a gRPC method \"/package.Service/Method\"");
    }
    let batch = format!("{LOGIC}[[route]]\nrange = [1, 2]\nservice = \"logic\"\n");
    one_gateway(&format!("{batch}method = \"/a.B/C\""), "only services with mode = \"unary\"");
}

#[test]
fn routes_leave_the_gateways_own_ids_alone() {
    let body = |range: &str| {
        format!("{LOGIC}[[route]]\nrange = {range}\nservice = \"logic\"\n[gateway]\nids = [50, 59]")
    };
    assert!(of(Some(&body("[1, 49]")), None).is_ok());
    assert!(of(Some(&body("[60, 4294967295]")), None).is_ok());
    one_gateway(&body("[40, 50]"), "route[0].range = [40, 50]: overlaps the gateway's own ids");
    one_gateway(&body("[59, 60]"), "(50-59)");
    one_gateway(&body("[0, 10]"), "each must be a whole number from 1 to 4294967295");
    one_gateway(&body("[10, 9]"), "the first id must not be above the last");
    one_gateway(&body("[10]"), "must be a list of 2 numbers");
}

#[test]
fn a_service_says_what_it_lacks() {
    one_gateway("[[service]]\nname = \"a\"", ":1: service[0].instances: is missing; list at least");
    one_gateway("[[service]]\nname = \"a\"\ninstances = [5]", "must be a table");
    one_gateway("service = 5", "service = 5: must be a list of tables: [[service]]");
    let instance = |rest: &str| format!("[[service]]\nname = \"a\"\ninstances = [{{ {rest} }}]");
    one_gateway(&instance("address = \"127.0.0.1:1\""), "service[0].instances[0].id: is missing");
    one_gateway(&instance("id = \"x\", address = \"127.0.0.1:0\""), "must be an IP address");
    one_gateway(&instance("id = \"x y\", address = \"[::1]:1\""), "must be 1 to 64 letters");
    let all = "id = \"x\", address = \"127.0.0.1:1\", wieght = 2";
    one_gateway(&instance(all), "wieght = 2: unknown key; did you mean weight?");
}

#[test]
fn a_name_that_cannot_be_looked_up_is_one_problem() {
    let service = |keys: &str| format!("[[service]]\nname = \"logic\"\n{keys}");
    one_gateway(
        &service("dns = \"srv:_grpc._tcp.logic:50001\""),
        ":3: service[0].dns = \"srv:_grpc._tcp.logic:50001\": must have no port",
    );
    one_gateway(&service("dns = \"10.0.0.7:50001\""), "is an address, not a name");
    one_gateway(&service("dns = 7"), "service[0].dns = 7: must be");
    one_gateway(
        &service("dns = \"logic:1\"\ndns_family = \"ipv6\""),
        "must be one of \"any\", \"v4\", \"v6\"",
    );
    let listed = "instances = [{ id = \"l\", address = \"127.0.0.1:1\" }]\ndns_family = \"v4\"";
    one_gateway(&service(listed), "chooses among the addresses of dns, which is not set");
    let body = service("dns = \"srv:logic.service.consul\"\ndns_family = \"v4\"");
    let lookups = of(Some(&body), None).expect("right").lookups;
    let name = LookupName::Srv("logic.service.consul".into());
    assert_eq!(lookups, [Lookup { service: "logic".into(), name, family: Family::V4 }]);
}

#[test]
fn rings_of_all_services_together_are_bounded() {
    let instance =
        |n: usize| format!("{{ id = \"i{n}\", address = \"127.0.0.1:{n}\", weight = 1000 }}");
    let body = |n, points: u32| {
        let list: Vec<_> = (1..=n).map(instance).collect();
        let list = list.join(",");
        format!(
            "[routing]\nring_points = {points}\n[[service]]\nname = \"a\"\ninstances = [{list}]"
        )
    };
    assert!(of(Some(&body(2, 160)), None).is_ok());
    one_gateway(&body(2, 4096), "8192000 points; at most 1048576");
}

#[test]
fn too_many_services_are_one_problem() {
    let body = format!("{}[[route]]\nrange = [1, 2]\nservice = \"logic\"", LOGIC.repeat(1025));
    one_gateway(&body, "1025 of [[service]] are too many; at most 1024");
}

#[test]
fn relations_between_keys_are_checked() {
    for (body, expected) in [
        ("[queue]\nthrottle_on_percent = 40", ":2: queue.throttle_on_percent = 40: throttle_off"),
        ("[queue]\nadmit_percent = [100, 95, 96, 70]", "must not rise"),
        ("[queue]\nclass_delay_ms = [0, 5, 4, 500]", "must not fall"),
        ("[queue]\nitems_max = 399", "25 % of 399 = 99 messages, must hold one batch of 100"),
        ("[queue]\nbytes_max = 4000000", "= 1000000 bytes, must hold one batch"),
        ("[conn]\noutbox_bytes_max = 65536", "must be above message_bytes_max 65536"),
        ("[conn]\nunanswered_bytes_max = 65535", "must be at least message_bytes_max 65536"),
        ("[conn]\nsend_buffer_bytes = 2000000", "the kernel would hold more"),
        ("[session]\nkept_bytes_max = 4000000", "must be at most 3 times outbox_bytes_max 1048576"),
        ("[session]\nkept_total_bytes_max = 65536\nkept_bytes_max = 65537", "of all sessions"),
        ("[retry]\ndelay_ms = 1001", "must not be above delay_max_ms 1000"),
        ("[dedup]\nbytes_max = 65536\nreply_bytes_max = 65537", "which holds all of them"),
        ("[backend]\nbackoff_ms = 20000\nbackoff_max_ms = 10000", "must not be above backoff_max"),
        ("[batch]\nwindow_ms = 5000", "timeout_ms = 5000: must be above batch.window_ms 5000"),
    ] {
        let found = lines(of(None, Some(body)));
        assert!(found[0].contains(expected), "{found:#?}\n{expected}");
    }
}

#[test]
fn listen_and_admin_have_ports_of_their_own() {
    one_gateway("admin.listen = \"127.0.0.1:9000\"", "are the same port; change one");
    one_gateway("listen = \"0.0.0.0:8000\"", "are the same port; change one");
    one_gateway("admin.probes = \"0.0.0.0:9000\"", "listen 127.0.0.1:9000 and admin.probes 0.0");
    one_gateway("admin.probes = \"127.0.0.1:8000\"", "admin.listen 127.0.0.1:8000 and admin.pro");
    one_gateway("admin.probes = \"8080\"", "must be empty, or an IP address and a port");
    one_gateway("admin.listen = \"0.0.0.0:1\"", "is not a loopback address");
    assert!(of(Some("listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\""), None).is_ok());
    assert!(of(Some("listen = \"127.0.0.2:80\"\nadmin.listen = \"127.0.0.1:80\""), None).is_ok());
}

#[test]
fn texts_have_their_forms() {
    one_gateway("node = \"a b\"", "must be empty, or 1 to 64 letters");
    one_gateway("node = 5", "must be a string, in quotes");
    one_gateway("path = \"ws\"", "must be '/' and at most 255");
    one_gateway("origins = [\"https://A.example\"]", "item 0 = \"https://A.example\": must be");
    one_gateway("origins = [\"example.org\", \"https://a.example\"]", "item 0 = \"example.org\"");
    one_gateway("[log]\nfilter = \"a=b=c\"", "is no level");
    one_gateway("[demo]\naddresses = [\"127.0.0.1:1\"]", "must be three addresses");
    let config = of(Some("origins = [\"https://a.example:8443\"]"), None).expect("right");
    assert_eq!(config.gateway.origins[0].to_string(), "https://a.example:8443");
    one_gateway("origins = [5, \"null\"]", "item 0 = 5: must be scheme://host[:port]");
    one_gateway("origins = [\"null\", \"*\"]", "item 1 = \"*\": must name the sites");
    one_gateway("origins = \"null\"", "must be a list");
    let listed = "origins = [\"https://*.example.org\", \"http://localhost:*\", \"file://\"]";
    assert_eq!(of(Some(listed), None).expect("right").gateway.origins.len(), 3);
}

#[test]
fn unknown_keys_are_told_with_what_was_probably_meant() {
    for (body, expected) in [
        ("[queue]\nitem_max = 5", "queue.item_max = 5: unknown key; did you mean queue.items_max?"),
        ("[cache]\nwindow_ms = 5", "did you mean "),
        ("[qeue]", "qeue = {}: unknown section; did you mean [queue]?"),
        ("queue = 5", "queue = 5: is a section, not a value; write [queue]"),
        ("listen = \"127.0.0.1:1\"", "unknown key here; it belongs in gateway.toml"),
        ("\"queue.items_max\" = 5", "unknown key"),
        ("[conn]\nzzzzzz = 1", "unknown key; remove it"),
    ] {
        let found = lines(of(None, Some(body)));
        assert!(found.len() == 1 && found[0].contains(expected), "{found:#?}\n{expected}");
    }
    one_gateway("[queue]\nitems_max = 1", "unknown key here; it belongs in default.toml");
}

#[test]
fn flags_override_the_environment_and_that_the_files() {
    let flags = Overrides {
        listen: Some("127.0.0.1:3".into()),
        shards: Some("2".into()),
        no_demo: true,
        ..Overrides::default()
    };
    let env = [
        ("SHARDGATE__LISTEN", "127.0.0.1:2"),
        ("SHARDGATE__ADMIN__LISTEN", "127.0.0.1:4"),
        ("SHARDGATE__NODE", "7"),
        ("SHARDGATE__QUEUE__ITEMS_MAX", "20_000"),
        ("SHARDGATE__DEMO__ENABLED", "true"),
        ("SHARDGATE_OTHER", "x"),
    ];
    let env: Vec<_> = env.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
    let own = [(1, "[queue]\nitems_max = 30000\nbytes_max = 134217728")];
    let config = from_files(files(None, None, &own), &env, &flags).expect("right");
    assert_eq!(config.gateway.listen.map(|a| a.port()), Some(3));
    assert_eq!(config.gateway.admin.listen.port(), 4);
    assert_eq!(config.gateway.node, "7");
    assert_eq!(config.gateway.shards, Some(2));
    assert!(!config.gateway.demo.enabled);
    let shard = |n| config.shards.shard(n).queue;
    assert_eq!((shard(0).items_max, shard(0).bytes_max), (20_000, 64 << 20));
    assert_eq!((shard(1).items_max, shard(1).bytes_max), (20_000, 128 << 20));
    let from = |key: &str| {
        let found = config.provenance.iter().find(|(k, ..)| k == key);
        found.map(|(_, value, source)| format!("{value} from {source}")).unwrap_or_default()
    };
    assert_eq!(from("listen"), "\"127.0.0.1:3\" from flag --listen");
    assert_eq!(from("queue.items_max"), "20000 from environment SHARDGATE__QUEUE__ITEMS_MAX");
    assert_eq!(from("1/queue.bytes_max"), "134217728 from shards/1.toml:3");
    let line = 1 + DEFAULT_TOML.lines().position(|l| l == "window_ms = 10").expect("it is there");
    assert_eq!(from("batch.window_ms"), format!("10 from shards/default.toml:{line}"));
}

#[test]
fn the_environment_is_checked_like_a_file() {
    for (name, value, expected) in [
        ("SHARDGATE__QUEUE__ITEM_MAX", "5", "did you mean SHARDGATE__QUEUE__ITEMS_MAX?"),
        ("SHARDGATE__QUEU__ITEMS_MAX", "5", "did you mean SHARDGATE__QUEUE__ITEMS_MAX?"),
        ("SHARDGATE__LISTN", "x", "did you mean SHARDGATE__LISTEN?"),
        ("SHARDGATE__", "x", "unknown variable"),
        ("SHARDGATE__QUEUE__ITEMS_MAX", "many", "queue.items_max = \"many\": must be a whole"),
        ("SHARDGATE__SHARDS__COUNT", "-1", "shards.count = -1: must be a whole number"),
        ("SHARDGATE__SERVICE", "[{ name = 1 }]", "service[0].name"),
    ] {
        let found = lines(with_env(&[(name, value)]));
        let right =
            |l: &String| l.starts_with(&format!("environment {name}: ")) && l.contains(expected);
        assert!(found.iter().any(right), "{found:#?}");
    }
}

#[test]
fn a_shards_file_is_merged_and_its_own_mistakes_are_its_own() {
    let own = [(0, "[queue]\nitems_max = 100\n[shard]\ncore = 5\nspin = 1")];
    let found = lines(from_files(files(None, None, &own), &[], &Overrides::default()));
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("shards/0.toml:2: queue.items_max = 100: an instance's share"));
    assert!(found[1].starts_with("shards/0.toml:5: shard.spin = 1: unknown key; did you mean"));
    // A mistake in default.toml is reported once, however many shards inherit it.
    let own = [(0, ""), (1, "")];
    let broken = files(None, Some("[queue]\nitems_max = 0"), &own);
    assert_eq!(lines(from_files(broken, &[], &Overrides::default())).len(), 1);
}

#[test]
fn a_file_for_a_shard_beyond_the_count_is_a_warning() {
    let flags = Overrides { shards: Some("2".into()), ..Overrides::default() };
    let own = [(1, ""), (2, "[shard]\ncore = 3")];
    let config = from_files(files(None, None, &own), &[], &flags).expect("a warning only");
    let warnings: Vec<_> = config.warnings.iter().map(|w| w.to_string()).collect();
    assert_eq!(
        warnings,
        ["shards/2.toml: there are only 2 shards, 0 to 1: set shards.count, or remove this file"]
    );
}

#[test]
fn cores_on_the_command_line_count_the_shards() {
    let run = |cores: &str, shards: Option<&str>| {
        let shards = shards.map(str::to_owned);
        let flags = Overrides { cores: Some(cores.into()), shards, ..Overrides::default() };
        from_files(files(None, None, &[]), &[], &flags)
    };
    let config = run("0,2", None).expect("right");
    assert_eq!(config.gateway.shards, Some(2));
    assert_eq!(config.shards.shard(1).core, Some(2));
    assert!(lines(run("0,2", Some("3")))[0].contains("--core names 2 cores"));
    assert!(lines(run("0;2", None))[0].starts_with("flag --core: shard.core = \"0;2\": must be"));
}

#[test]
fn every_section_of_default_toml_is_one_that_variables_can_set() {
    let table: toml::Table = DEFAULT_TOML.parse().expect("TOML");
    let mut sections = super::check::SHARD_SECTIONS;
    sections.sort_unstable();
    assert_eq!(table.keys().map(String::as_str).collect::<Vec<_>>(), sections);
    let env = [("SHARDGATE__SESSION__PER_USER".to_owned(), "newest".to_owned())];
    let config = from_files(Files::embedded(), &env, &Overrides::default()).expect("right");
    assert_eq!(config.shards.shard(0).limits.per_user, super::settings::PerUser::Newest);
}

#[test]
fn instance_ids_are_dense_in_the_order_of_the_file() {
    let body = "[[service]]\nname = \"b\"\ninstances = [\n\
        { id = \"b2\", address = \"127.0.0.1:2\" }, { id = \"b1\", address = \"127.0.0.1:1\" }]\n\
        [[service]]\nname = \"a\"\ninstances = [{ id = \"a1\", address = \"127.0.0.1:1\" }]\n";
    let config = of(Some(body), None).expect("right");
    let list = config.snapshot.instances.iter();
    let list: Vec<_> = list.map(|i| (i.id.0, &*i.name, i.service.0)).collect();
    assert_eq!(list, [(0, "b2", 0), (1, "b1", 0), (2, "a1", 1)]);
}

#[test]
fn a_directory_is_read_and_the_built_in_files_fill_in() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path();
    let put = |name: &str, body: &[u8]| std::fs::write(path.join(name), body).expect("written");
    let flags = Overrides::default();
    let run = || super::load(Some(path), &[], &flags);
    let word = path.to_str().expect("UTF-8");
    assert!(lines(run())[0].ends_with(&format!(" gen config {word}")));
    put("default.toml", b"");
    let moved = format!("mv {word}/new/gateway.toml {word}/gateway.toml");
    assert!(lines(run())[0].ends_with(&format!(" gen config {word}/new && {moved}")));
    put("gateway.toml", b"[shards]\ncount = 3\n");
    put("2.toml", b"[batch]\nwindow_ms = 7\n");
    put("02.toml", b"");
    put("defualt.toml", b"");
    let config = run().expect("right");
    assert_eq!(config.shards.shard(2).batch.window_ms, 7);
    assert_eq!(config.shards.shard(1), ShardSettings::default());
    let warnings = config.warnings.iter().map(|w| w.to_string()).collect::<Vec<_>>().join("\n");
    assert!(warnings.contains("defualt.toml: nothing reads this file; did you mean default.toml?"));
    assert!(warnings.contains("02.toml: nothing reads this file; known are"), "{warnings}");
    put("1.toml", b"\xff");
    let unread = lines(run());
    assert!(unread[0].contains("1.toml: cannot read it"), "{unread:?}");
    let way_out = format!("save it as UTF-8; now it is: file {word}/1.toml");
    assert!(unread[0].ends_with(&way_out), "{unread:?}");
    let file = path.join("gateway.toml");
    let named = lines(super::load(Some(&file), &[], &flags));
    assert!(named[0].ends_with("name the directory that the file gateway.toml is in"), "{named:?}");
    let named = [("SHARDGATE_CONFIG".to_owned(), "/nonexistent/shards".to_owned())];
    assert!(lines(super::load(None, &named, &flags))[0].contains("cannot read the configuration"));
}

#[test]
fn built_in_files_are_those_of_the_repository() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/shards");
    let own = super::load(Some(dir.as_ref()), &[], &Overrides::default()).expect("right");
    let built_in = from_files(Files::embedded(), &[], &Overrides::default()).expect("right");
    assert_eq!(own.gateway, built_in.gateway);
    assert_eq!(own.shards.default, built_in.shards.default);
    assert_eq!(own.snapshot.routes, built_in.snapshot.routes);
    assert_eq!(own.snapshot.instances, built_in.snapshot.instances);
    // The example changes nothing as it stands.
    assert_eq!(own.shards.shard(0), built_in.shards.default);
}

#[test]
fn limits_are_off_but_for_the_unknown_and_those_of_users_need_users() {
    let limits = of(None, Some("")).expect("right").shards.default.limits;
    assert!(!limits.user.is_on() && !limits.address.is_on());
    assert_eq!((limits.unauthenticated_max, limits.address_unauthenticated_max), (10_000, 0));
    let body = "[limits]\nuser_messages_per_s = 20\nburst_s = 3\naddress_connections_max = 7";
    let sign_in = "[auth]\nmode = \"jwt\"\n[[auth_key]]\nid = \"k\"\nalgorithm = \"HS256\"\n\
        secret = \"01234567890123456789012345678901\"";
    let config = of(Some(sign_in), Some(body)).expect("right");
    let limits = config.shards.default.limits;
    assert_eq!((limits.user.messages_per_s, limits.burst_s), (20, 3));
    assert_eq!(limits.address.connections_max, 7);
    let warned = |config: &Config| {
        let lines = config.warnings.iter().map(|w| w.to_string());
        lines.filter(|line| line.contains("limits nobody")).collect::<Vec<_>>()
    };
    assert!(warned(&config).is_empty());
    let found = warned(&of(None, Some(body)).expect("a warning only"));
    assert!(found.len() == 1 && found[0].contains(":2: limits.user_messages_per_s = 20"));
    let newest = of(None, Some("[session]\nper_user = \"newest\"")).expect("a warning only");
    let found = warned(&newest);
    assert!(
        found.len() == 1 && found[0].contains(":2: session.per_user = \"newest\""),
        "{found:?}"
    );
    for (body, expected) in [
        ("[limits]\nburst_s = 0", "must be a whole number from 1 to 60"),
        ("[limits]\nuser_connects_per_s = 1000001", "from 1 to 1000000, or 0 for no limit"),
        ("[limits]\nuser_messages_burst = 1", "unknown key"),
    ] {
        let found = lines(of(None, Some(body)));
        assert!(found.len() == 1 && found[0].contains(expected), "{found:#?}");
    }
}

/// Text that is TOML now and then, with known keys.
const TOML_LIKE: &str = "([a-z_.=0-9\\[\\]{}\", \n-]{0,8}|\
    listen|queue|route|service|range|instances|shard){0,40}";
/// A TOML value of any type.
const VALUE: &str = "-?[0-9]{1,40}|true|\"[^\"\\\\\n]{0,9}\"|\
    \\[[0-9, ]{0,20}\\]|[0-9]\\.[0-9]|\\{\\}";

proptest::proptest! {
    #[test]
    fn no_text_is_a_panic(a in ".{0,200}", b in TOML_LIKE) {
        for body in [&a, &b] {
            drop(of(Some(body), None));
            drop(of(None, Some(body)));
            drop(with_env(&[("SHARDGATE__SERVICE", body), ("SHARDGATE__QUEUE", body)]));
        }
    }

    #[test]
    fn no_value_is_a_panic(at in 0_usize..60, value in VALUE) {
        for whole in [GATEWAY_TOML, DEFAULT_TOML] {
            let keys = whole.lines().filter(|l| !l.starts_with('#') && l.contains(" = "));
            let Some(line) = keys.clone().nth(at % keys.count()) else { continue };
            let (key, _) = line.split_once(" = ").expect("filtered");
            let body = whole.replacen(&format!("\n{line}\n"), &format!("\n{key} = {value}\n"), 1);
            let gateway = std::ptr::eq(whole, GATEWAY_TOML);
            let (a, b) = if gateway { (Some(&*body), None) } else { (None, Some(&*body)) };
            drop(of(a, b));
        }
    }
}
