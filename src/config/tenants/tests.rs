//! `[[tenant]]` from text to settings and to the part of the snapshot.

use super::super::load::{Files, from_files};
use super::super::settings::{Algorithm, AuthKey, KeySource};
use super::super::{Config, FoundTables, Overrides, Problems};
use super::*;
use crate::routing::Failover;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Two services, a route to each, and tenants who sign in.
const BASE: &str = r#"
    auth.mode = "jwt"
    auth.tenants = "many"
    demo.enabled = false
    [[auth_key]]
    id = "k"
    algorithm = "HS256"
    secret = "fedcba9876543210fedcba9876543210"
    [[service]]
    name = "logic"
    instances = [{ id = "logic-1", address = "127.0.0.1:1" }]
    [[service]]
    name = "chat"
    instances = [{ id = "chat-1", address = "127.0.0.1:2" }]
    [[route]]
    range = [1000, 1999]
    service = "logic"
    [[route]]
    range = [2000, 2999]
    service = "chat"
    "#;

fn of(text: &str) -> Result<Config, Problems> {
    let mut files = Files::embedded();
    files.gateway.text = text.into();
    from_files(files, &[], &Overrides::default())
}

fn with(tenants: &str) -> Result<Config, Problems> {
    of(&format!("{BASE}{tenants}"))
}

fn problem(text: &str) -> String {
    of(text).expect_err(text).to_string()
}

/// The service and the timeout of the route that a tenant has for an id.
fn routed(config: &Config, tenant: &str, id: u32) -> Option<(String, u32)> {
    let route = config.snapshot.route(TenantId::of(tenant), id)?;
    let service = &config.snapshot.services[usize::from(route.service.0)];
    Some((service.name.to_string(), route.timeout_ms))
}

/// A tenant with nothing but a name, and one with every key.
const TENANTS: &str = r#"
    [[tenant]]
    name = "zeta"
    [[tenant]]
    name = "acme"
    weight = 4
    inherit = false
    services = ["chat", "logic"]
    origins = ["https://acme.example"]
    metrics = true
    issuer = "https://id.acme.example"
    audience = "game"
    jwks_file = "a.json"
    jwks_url = "https://id.acme.example/keys"
    jwks_ca_file = "ca.pem"
    [tenant.quota]
    connections_max = 1
    connects_per_s = 2
    messages_per_s = 3
    bytes_per_s = 4
    queued_bytes_max = 5
    dedup_ids_max = 6
    [[tenant.auth_key]]
    id = "a"
    algorithm = "HS256"
    secret = "0123456789abcdef0123456789abcdef"
    [[tenant.route]]
    range = [1500, 2500]
    service = "chat"
    timeout_ms = 100
    [[tenant.route]]
    range = [10, 20]
    service = "logic""#;

#[test]
fn what_is_written_of_a_tenant_is_what_is_set() {
    let config = with(TENANTS).expect("right");
    let quota = Quota {
        connections_max: 1,
        connects_per_s: 2,
        messages_per_s: 3,
        bytes_per_s: 4,
        queued_bytes_max: 5,
        dedup_ids_max: 6,
    };
    let key = AuthKey {
        id: "a".into(),
        algorithm: Algorithm::Hs256,
        source: KeySource::Secret(SECRET.into()),
    };
    let tokens = TenantTokens {
        issuer: Some("https://id.acme.example".into()),
        audience: Some("game".into()),
        jwks_file: Some("a.json".into()),
        jwks_url: Some("https://id.acme.example/keys".into()),
        jwks_ca_file: Some("ca.pem".into()),
        keys: vec![key],
    };
    let origins = vec![crate::origin::AllowedOrigin::read("https://acme.example").expect("right")];
    let acme = TenantSettings {
        name: "acme".into(),
        weight: 4,
        inherit: false,
        services: vec!["chat".into(), "logic".into()],
        origins: origins.clone(),
        quota,
        has_metrics: true,
        tokens: Some(tokens),
    };
    assert_eq!(config.tenants, [acme, TenantSettings::plain("zeta")], "by name");
    let tenant = config.snapshot.tenants.get(TenantId::of("acme")).expect("it is there");
    assert_eq!((&*tenant.name, tenant.weight, tenant.inherits), ("acme", 4, false));
    assert_eq!(tenant.services, Some(vec![ServiceId(0), ServiceId(1)]));
    assert_eq!((&tenant.origins, tenant.quota, tenant.has_metrics), (&origins, quota, true));
    let ranges: Vec<_> = tenant.routes.iter().map(|r| (r.first, r.last, r.timeout_ms)).collect();
    assert_eq!(ranges, [(10, 20, 5000), (1500, 2500, 100)], "in order of ids");
}

#[test]
fn a_tenant_has_its_own_routes_before_the_default_ones_and_others_only_these() {
    let own = "[[tenant.route]]\nrange = [1500, 2100]\nservice = \"chat\"\ntimeout_ms = 100\n";
    let config = with(&format!(
        "[[tenant]]\nname = \"acme\"\n{own}[[tenant]]\nname = \"alone\"\ninherit = false\n{own}\
         [[tenant]]\nname = \"narrow\"\nservices = [\"logic\"]\n"
    ));
    let config = config.expect("right");
    let logic = Some(("logic".to_owned(), 5000));
    let chat = |ms| Some(("chat".to_owned(), ms));
    for (tenant, id, expected) in [
        ("acme", 1000, logic.clone()),
        ("acme", 1500, chat(100)),
        ("acme", 2100, chat(100)),
        ("acme", 2101, chat(5000)),
        ("acme", 3000, None),
        ("alone", 1000, None),
        ("alone", 1500, chat(100)),
        ("narrow", 1500, logic.clone()),
        ("narrow", 2500, None),
        ("stranger", 1500, logic.clone()),
        ("", 2500, chat(5000)),
    ] {
        assert_eq!(routed(&config, tenant, id), expected, "{tenant} {id}");
    }
}

#[test]
fn a_service_for_some_tenants_is_nobody_elses() {
    let only = BASE.replace("name = \"chat\"\n", "name = \"chat\"\ntenants = [\"acme\"]\n");
    let config = of(&format!("{only}[[tenant]]\nname = \"acme\"\n[[tenant]]\nname = \"b\"\n"));
    let config = config.expect("right");
    assert_eq!(routed(&config, "acme", 2500), Some(("chat".into(), 5000)));
    assert_eq!((routed(&config, "b", 2500), routed(&config, "", 2500)), (None, None));
    assert_eq!(routed(&config, "b", 1500), Some(("logic".into(), 5000)));
    assert!(config.warnings.iter().all(|w| !w.key.contains("tenants")), "{:?}", config.warnings);
    let misspelt = of(&format!("{only}[[tenant]]\nname = \"acne\"\n")).expect("a warning only");
    let told: Vec<_> = misspelt.warnings.iter().map(ToString::to_string).collect();
    let line = "service[1].tenants = \"acme\": no [[tenant]] has this name; did you mean \"acne\"?";
    assert!(told.iter().any(|told| told.ends_with(line)), "{told:?}");
    // A source may name it later.
    let with_etcd = of(&format!("etcd.endpoints = [\"http://127.0.0.1:1\"]\n{only}"));
    let warnings = with_etcd.expect("right").warnings;
    assert!(warnings.iter().all(|w| !w.key.contains("tenants")), "{warnings:?}");
    let own = "[[tenant]]\nname = \"b\"\n[[tenant.route]]\nrange = [1, 2]\nservice = \"chat\"";
    let found = problem(&format!("{only}{own}"));
    let line = "tenant[0].route[0].service = \"chat\": this service is not for the tenant; add";
    assert!(found.contains(line) && found.lines().count() == 1, "{found}");
    let found = problem(&format!("{only}[[tenant]]\nname = \"b\"\nservices = [\"chat\"]"));
    assert!(found.contains("service \"chat\" is not for it; add the tenant to"), "{found}");
    let one = only.replace("auth.tenants = \"many\"", "");
    assert!(problem(&one).contains("service[1].tenants = [\"acme\"]: nobody could use it"));
}

#[test]
fn each_rule_of_tenants_is_told_in_one_line_with_the_way_out() {
    let key =
        format!("[[tenant.auth_key]]\nid = \"a\"\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"");
    let issuer = format!("name = \"a\"\nissuer = \"i\"\n{key}");
    let route = "[[tenant.route]]\nrange = [1000, 1100]\nservice = \"logic\"\n";
    let rows = [
        ("name = \"a b\"", "tenant[0].name = \"a b\": must be 1 to 64 letters"),
        ("weight = 2", "tenant[0].name: is missing; must be"),
        ("name = \"a\"\nweight = 0", "tenant[0].weight = 0: must be a whole number from 1 to 1000"),
        ("name = \"a\"\nwight = 1", "tenant[0].wight = 1: unknown key; did you mean weight?"),
        (
            "name = \"a\"\nservices = [\"chta\"]",
            "\"chta\": there is no such service; did you mean \"chat\"?",
        ),
        ("name = \"a\"\norigins = [\"x\"]", "tenant[0].origins = [\"x\"]: item 0 = \"x\": "),
        ("name = \"a\"\nquota = 3", "tenant[0].quota = 3: must be a table"),
        (
            "name = \"a\"\nquota = { messages_per_s = -1 }",
            "tenant[0].quota.messages_per_s = -1: must be a whole number from 1",
        ),
        ("name = \"a\"\nquota = { messages = 1 }", "tenant[0].quota.messages = 1: unknown key"),
        (
            "name = \"a\"\n[[tenant]]\nname = \"a\"",
            "tenant[1].name = \"a\": is also the name of tenant[0]; rename one",
        ),
        ("name = \"_other\"", "tenant[0].name = \"_other\": is the label of all other tenants"),
        (
            "name = \"a\"\nissuer = \"i\"",
            "tenant[0].issuer = \"i\": is of tokens that are the tenant's own, and it has no key",
        ),
        (
            &format!("{issuer}\n[[tenant]]\n{}", issuer.replace("\"a\"", "\"b\"")),
            "tenant[1].issuer = \"i\": is also the issuer of tenant[0]; a token without",
        ),
        (
            &format!("name = \"a\"\n{key}\n{key}"),
            "tenant[0].auth_key[1].id = \"a\": is the id of another key; rename one",
        ),
        (
            &format!("name = \"a\"\n{route}{route}"),
            "tenant[0].route[1].range = [1000, 1100]: overlaps tenant[0].route[0] (1000-1100)",
        ),
        (
            "name = \"a\"\n[[tenant.route]]\nrange = [0, 1]\nservice = \"logic\"",
            "tenant[0].route[0].range = [0, 1]: must be a list of 2 numbers",
        ),
        (
            "name = \"a\"\n[[tenant.route]]\nrange = [9000, 9999]\nservice = \"logic\"",
            "tenant[0].route[0].range = [9000, 9999]: overlaps the gateway's own ids",
        ),
        (
            "name = \"a\"\n[[tenant.route]]\nrange = [1, 2]\nservice = \"lgic\"",
            "tenant[0].route[0].service = \"lgic\": there is no such service; did you mean",
        ),
        (
            &format!("name = \"a\"\nservices = [\"chat\"]\n{route}"),
            "tenant[0].route[0].service = \"logic\": this service is not among the services of",
        ),
    ];
    for (lines, expected) in rows {
        let found = with(&format!("[[tenant]]\n{lines}")).expect_err(lines).to_string();
        assert!(found.contains(expected) && found.lines().count() == 1, "{lines}\n{found}");
    }
    let found = with("tenant = 3").expect_err("no list").to_string();
    assert!(found.contains("unknown") || found.contains("must be a list of tables"), "{found}");
}

#[test]
fn odd_names_weights_and_empty_lists_of_keys_are_refused() {
    let long = format!("name = {:?}", "a".repeat(300));
    for (lines, key, rule) in [
        // Letters that look like those of "acme", and a name without an end.
        ("name = \"аcme\"", "tenant[0].name", "must be 1 to 64 letters, digits"),
        (&*long, "tenant[0].name", "must be 1 to 64 letters, digits"),
        ("name = \"a\"\nweight = 1000000000", "tenant[0].weight", "from 1 to 1000"),
        // It does not fall back to the keys of [auth].
        ("name = \"a\"\nauth_key = []", "tenant[0].auth_key", "it has no key to verify them"),
        ("name = \"a\"\nissuer = \"i\"\nauth_key = []", "tenant[0].issuer", "it has no key to"),
    ] {
        let found = with(&format!("[[tenant]]\n{lines}")).expect_err(lines).to_string();
        assert!(found.contains(key) && found.contains(rule), "{lines}\n{found}");
        assert_eq!(found.lines().count(), 1, "{found}");
    }
}

#[test]
fn a_secret_in_a_wrong_place_is_not_shown() {
    let rows = [
        ("name = \"a\"\nauth_key = { secret = \"0123\" }", "tenant[0].auth_key.secret: "),
        (
            "name = \"a\"\n[[tenant.auth_key]]\nid = \"k\"\nalgorithm = \"HS256\"\n\
             secret = \"01234567890123456789012345678901\"\nsecrets = \"0123\"",
            "tenant[0].auth_key[0].secrets: unknown key",
        ),
        ("name = \"a\"\nauth_key = \"0123\"", "tenant[0].auth_key: must be a list"),
        ("name = \"a\"\nauth_key = [\"0123\"]", "tenant[0].auth_key"),
    ];
    for (lines, expected) in rows {
        let found = with(&format!("[[tenant]]\n{lines}")).expect_err(lines).to_string();
        assert!(found.contains(expected) && !found.contains("0123"), "{lines}\n{found}");
    }
}

#[test]
fn tenants_need_tokens_that_name_them() {
    let tenant = format!(
        "[[tenant]]\nname = \"a\"\n[[tenant.auth_key]]\nid = \"a\"\nalgorithm = \"HS256\"\n\
         secret = \"{SECRET}\"\n"
    );
    let one = BASE.replace("auth.tenants = \"many\"", "");
    let found = problem(&format!("{one}{tenant}"));
    assert!(
        found.contains("tenant: no client has a tenant while auth.tenants is \"one\""),
        "{found}"
    );
    assert!(!found.contains(SECRET) && found.lines().count() == 1, "{found}");
    let off = BASE.replace("auth.mode = \"jwt\"", "");
    let found = problem(&format!("{off}{tenant}"));
    let line = "tenant[0].auth_key = : nobody can sign in while auth.mode is \"off\"; set that to";
    assert!(found.contains(&line.replace(" = :", ":")) && !found.contains(SECRET), "{found}");
    let quiet = of(&format!("{off}[[tenant]]\nname = \"a\"\n")).expect("a warning only");
    let told: Vec<_> = quiet.warnings.iter().map(ToString::to_string).collect();
    let line = "tenant: no client has a tenant while auth.mode is \"off\", because tokens name it";
    assert!(told.iter().any(|told| told.contains(line)), "{told:?}");
}

#[test]
fn keys_may_be_all_of_tenants_but_then_every_tenant_needs_one() {
    let (start, end) = (BASE.find("[[auth_key]]"), BASE.find("[[service]]"));
    let (start, end) = (start.expect("a key"), end.expect("a service"));
    let no_key = format!("{}{}", &BASE[..start], &BASE[end..]);
    let tenant = format!(
        "[[tenant]]\nname = \"a\"\n[[tenant.auth_key]]\nid = \"a\"\nalgorithm = \"HS256\"\n\
         secret = \"{SECRET}\"\n"
    );
    of(&format!("{no_key}{tenant}")).expect("its users can sign in");
    let found = problem(&format!("{no_key}{tenant}[[tenant]]\nname = \"b\"\n"));
    let line = "tenant[1].name = \"b\": none of its users can sign in: neither it nor [auth] has";
    assert!(found.contains(line) && found.lines().count() == 1, "{found}");
    let found = problem(&format!("{no_key}[[tenant]]\nname = \"b\"\n"));
    assert!(found.contains("auth.mode = \"jwt\": needs a key") && found.lines().count() == 1);
    // An empty list is no key, and a refused one is told once.
    let found = problem(&format!("auth_key = []\n{no_key}"));
    assert!(found.contains("auth.mode = \"jwt\": needs a key") && found.lines().count() == 1);
    let found = problem(&format!("auth_key = []\n{no_key}{tenant}[[tenant]]\nname = \"b\"\n"));
    assert!(found.contains(line) && found.lines().count() == 1, "{found}");
    let refused = "auth_key = [{ id = \"a\", algorithm = \"HS256\", secret = \"short\" }]";
    let found = problem(&format!("{refused}\n{no_key}"));
    assert!(found.contains("auth_key[0].secret") && found.lines().count() == 1, "{found}");
    // A tenant of a source may have one.
    of(&format!("etcd.endpoints = [\"http://127.0.0.1:1\"]\n{no_key}")).expect("right");
}

#[test]
fn a_tenants_routes_fail_over_like_the_default_ones_that_it_keeps() {
    let own = |first: u32, last: u32, more: &str| {
        format!(
            "[[tenant.route]]\nrange = [{first}, {last}]\nservice = \"logic\"\n\
             failover = \"none\"\n{more}\n"
        )
    };
    let tenant = |more: &str, routes: &str| format!("[[tenant]]\nname = \"a\"\n{more}\n{routes}");
    let found = with(&tenant("", &own(10, 20, ""))).expect_err("they differ").to_string();
    let line = "tenant[0].route[0].failover: differs from that of route[0], which has the same";
    assert!(found.contains(line) && found.lines().count() == 1, "{found}");
    // The default route has no id left, in one piece and in two.
    let whole = with(&tenant("", &own(1000, 1999, ""))).expect("its own is the only one");
    let route = whole.snapshot.route(TenantId::of("a"), 1500).expect("it is there");
    assert_eq!(route.failover, Failover::None);
    let halves = [own(1500, 2000, ""), own(900, 1499, "")].concat();
    with(&tenant("", &halves)).expect("its own are the only ones");
    let gap = [own(1501, 2000, ""), own(900, 1499, "")].concat();
    with(&tenant("", &gap)).expect_err("id 1500 is of the default route");
    for more in ["inherit = false", "services = [\"chat\", \"logic\"]\ninherit = false"] {
        with(&tenant(more, &own(10, 20, ""))).expect("it has no default routes");
    }
    with(&tenant("", &own(10, 20, "order = \"none\""))).expect("no order, no common way");
    let two = [own(10, 20, ""), own(30, 40, "").replace("\"none\"", "\"next\"")].concat();
    let found = with(&tenant("inherit = false", &two)).expect_err("they differ").to_string();
    assert!(found.contains("tenant[0].route[1].failover: differs from that of tenant[0].route[0]"));
}

#[test]
fn so_many_tenants_routes_and_labels_are_taken_and_no_more() {
    let tenants = |count: usize, more: &str| -> String {
        (0..count).map(|n| format!("[[tenant]]\nname = \"t{n}\"\n{more}")).collect()
    };
    with(&tenants(TENANTS_MAX, "")).expect("as many as there may be");
    let found = with(&tenants(TENANTS_MAX + 1, "")).expect_err("one more").to_string();
    assert!(found.ends_with("1001 of [[tenant]] are too many; at most 1000"), "{found}");
    with(&tenants(METRICS_MAX, "metrics = true\n")).expect("as many as there may be");
    let found = with(&tenants(METRICS_MAX + 1, "metrics = true\n")).expect_err("more").to_string();
    let line = "101 of [[tenant]] with metrics = true are too many; at most 100";
    assert!(found.ends_with(line), "{found}");
    let routes: String = (0..17)
        .map(|n| n + 10)
        .map(|n| format!("[[tenant.route]]\nrange = [1{n}, 1{n}]\nservice = \"logic\"\n"))
        .collect();
    let found = with(&tenants(TENANTS_MAX, &routes)).expect_err("too many").to_string();
    let line = "17000 of [[tenant.route]] are too many; at most 16384";
    assert!(found.ends_with(line) && found.lines().count() == 1, "{found}");
}

#[test]
fn a_service_that_only_a_tenant_routes_to_is_used() {
    let more =
        "[[service]]\nname = \"own\"\ninstances = [{ id = \"o\", address = \"127.0.0.1:3\" }]\n";
    let unused = |config: Config| {
        config.warnings.iter().filter(|w| w.to_string().contains("no [[route]] leads to")).count()
    };
    assert_eq!(unused(with(more).expect("right")), 1);
    let tenant = "[[tenant]]\nname = \"a\"\n[[tenant.route]]\nrange = [1, 2]\nservice = \"own\"\n";
    assert_eq!(unused(with(&format!("{more}{tenant}")).expect("right")), 0);
}

/// A source may still bring the tenant, or has just taken the last one away.
#[test]
fn a_service_for_a_tenant_is_nobody_elses_while_no_tenant_is_configured() {
    let with_service = BASE.replace("name = \"chat\"", "name = \"chat\"\ntenants = [\"acme\"]");
    let config = of(&with_service).expect("right, with a warning");
    assert!(config.snapshot.tenants.is_empty());
    for stranger in ["", "zeta"] {
        assert_eq!(routed(&config, stranger, 2000), None, "{stranger:?}");
        assert!(routed(&config, stranger, 1000).is_some(), "{stranger:?}");
    }
    assert!(routed(&config, "acme", 2000).is_some(), "it is for this tenant");
}

#[test]
fn the_secret_of_a_tenants_key_is_shown_nowhere() {
    let text = format!(
        "[[tenant]]\nname = \"a\"\n[[tenant.auth_key]]\nid = \"a\"\nalgorithm = \"HS256\"\n\
         secret = \"{SECRET}\"\n"
    );
    let config = with(&text).expect("right");
    assert!(!format!("{config:?}").contains(SECRET));
    let shown = config.provenance.iter().find(|(key, ..)| key == "tenant[0].auth_key[0].secret");
    assert_eq!(shown.map(|(_, value, _)| value.as_str()), Some("\"<redacted>\""));
    // Nor that of a list with a name that nobody knows.
    let found = with(&text.replace("[[tenant", "[[tenants"));
    let found = found.expect_err("unknown").to_string();
    assert!(found.contains("tenants: unknown list; did you mean [[tenant]]?"), "{found}");
    assert!(!found.contains(SECRET), "{found}");
}

#[test]
fn tenants_of_a_source_are_checked_with_those_of_the_files() {
    let found = |json: &str| FoundTables {
        routes: Vec::new(),
        tenants: vec![FoundTable { at: "/x/tenants/b".into(), json: json.into() }],
        ..FoundTables::default()
    };
    let dir = tempfile::tempdir().expect("a directory");
    let text = format!("{BASE}[[tenant]]\nname = \"a\"\n");
    std::fs::write(dir.path().join("gateway.toml"), text).expect("written");
    let loader = super::super::Loader::open(Some(dir.path()), &[], &Overrides::default());
    let loader = loader.expect("right");
    let json = format!(
        r#"{{"name": "b", "weight": 7, "quota": {{"messages_per_s": 9}},
            "auth_key": [{{"id": "k", "algorithm": "HS256", "secret": "{SECRET}"}}],
            "route": [{{"range": [10, 20], "service": "chat"}}]}}"#
    );
    let tables = found(&json);
    assert!(!format!("{tables:?}").contains(SECRET));
    let config = loader.check(&tables).expect("right");
    let names: Vec<_> = config.tenants.iter().map(|t| (&*t.name, t.weight)).collect();
    assert_eq!(names, [("a", 1), ("b", 7)]);
    assert_eq!(config.tenants[1].quota.messages_per_s, 9);
    assert_eq!(routed(&config, "b", 15), Some(("chat".into(), 5000)));
    for (json, line) in [
        (r#"{"name": "a"}"#, "/x/tenants/b: tenant[1].name = \"a\": is also the name of tenant[0]"),
        (
            r#"{"name": "b", "route": [{"range": [10, 20], "service": "cht"}]}"#,
            "/x/tenants/b: tenant[1].route[0].service = \"cht\": there is no such service",
        ),
        ("7", "/x/tenants/b: tenant[1] = 7: must be a table"),
        ("{", "/x/tenants/b: not JSON: "),
    ] {
        let told = loader.check(&found(json)).expect_err(json).to_string();
        assert!(told.starts_with(line) && told.lines().count() == 1, "{json}: {told}");
    }
}
