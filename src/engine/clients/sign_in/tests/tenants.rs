//! Tenants with keys and pages of their own, on one shard.

use super::*;
use crate::config::AwaitedTenants;
use crate::config::settings::{TenantSettings, TenantTokens, UnknownTenant};
use crate::origin::AllowedOrigin;
use crate::routing::{Tenant, TenantTable};

const ACME_PAGE: &str = "https://acme.example";
const COMMON_PAGE: &str = "https://common.example";

/// A name that no tenant has, and that gets the answers of one whose keys are not fetched.
const NOBODY: &str = "nobody";

/// A tenant with these origins, and with keys of its own, if it has a secret.
fn tenant(name: &str, origins: &[&str], secret: Option<&str>) -> (TenantSettings, Tenant) {
    let origins: Vec<_> =
        origins.iter().map(|text| AllowedOrigin::read(text).expect("an origin")).collect();
    let tokens = secret.map(|secret| TenantTokens {
        jwks_url: (name == "far").then(|| "https://far.example/keys".into()),
        keys: vec![AuthKey {
            id: name.into(),
            algorithm: Algorithm::Hs256,
            source: KeySource::Secret(secret.into()),
        }],
        ..TenantTokens::default()
    });
    let plain = TenantSettings::plain(name);
    let settings = TenantSettings { origins: origins.clone(), tokens, ..plain };
    (settings, Tenant { origins, ..Tenant::plain(name) })
}

/// As [`published`], with `acme` and its page and secret, `beta` with the secret of [auth], and
/// `far` with a set that was never fetched.
fn with_tenants(unknown: UnknownTenant) -> ShardConfig {
    awaiting(unknown, AwaitedTenants::NONE)
}

fn awaiting(unknown: UnknownTenant, awaited: AwaitedTenants) -> ShardConfig {
    let mut published = published(SECRET, false);
    let files = from_files(Files::embedded(), &[], &Overrides::default());
    let mut config = files.expect("the built-in files are right");
    let mut gateway = (*published.gateway).clone();
    gateway.auth.unknown_tenant = unknown;
    gateway.origins = vec![AllowedOrigin::read(COMMON_PAGE).expect("an origin")];
    config.gateway = gateway;
    let tenants = [
        tenant("acme", &[ACME_PAGE], Some(OTHER)),
        tenant("beta", &[], None),
        tenant("far", &[], Some(OTHER)),
    ];
    let (settings, list): (Vec<_>, Vec<_>) = tenants.into_iter().unzip();
    config.tenants = settings;
    config.awaited = awaited;
    let mut snapshot = (*published.snapshot).clone();
    snapshot.tenants = TenantTable::new(list);
    let keys = LocalKeys::read(&config).expect("no files");
    published.auth = keys.verifier(&config, &FetchedSets::default());
    published.gateway = Arc::new(config.gateway);
    published.snapshot = Arc::new(snapshot);
    published
}

fn rig_of(unknown: UnknownTenant) -> Rig {
    Rig { engine: engine(with_tenants(unknown), 0, 1), now: Micros(1_000) }
}

fn token_in(tenant: &str, key_id: &str, secret: &str) -> String {
    let wanted = Wanted {
        algorithm: Algorithm::Hs256,
        key_id: Some(key_id),
        user: "alice",
        tenant: Some(tenant),
        groups: &[],
        issuer: None,
        audience: None,
        now_unix_s: START_S,
        lifetime_s: 600,
    };
    mint(&wanted, SigningKey::Secret(secret.as_bytes())).expect("a token")
}

fn of_acme() -> String {
    token_in("acme", "acme", OTHER)
}

fn of_beta() -> String {
    token_in("beta", "k", SECRET)
}

fn page(origin: &str) -> String {
    format!("Origin: {origin}\r\n")
}

#[test]
fn a_tenants_key_signs_for_its_users_and_for_nobody_elses() {
    let mut rig = rig_of(UnknownTenant::Default);
    for token in [of_acme(), of_beta(), token_in("other", "k", SECRET)] {
        let id = rig.bearer(&token);
        assert!(rig.told(id).contains("auth_ok"));
    }
    let bad = [
        token_in("beta", "acme", OTHER),
        token_in("acme", "k", SECRET),
        token_in(NOBODY, "acme", OTHER),
    ];
    for token in bad {
        rig.end_turn();
        let id = rig.bearer(&token);
        let at_upgrade = rig.told(id);
        assert!(at_upgrade.starts_with("HTTP/1.1 401 "), "{at_upgrade}");
        let id = rig.open("", b"");
        rig.told(id);
        rig.says(id, auth(1, &token));
        let by_message = rig.told(id);
        assert!(closed_with(&by_message, "the token was refused"), "{by_message}");
        for told in [at_upgrade, by_message] {
            assert!(told.contains("the token was not made with a key for its tenant"), "{told}");
            assert!(!told.contains("acme") && !told.contains("beta"), "{told}");
        }
    }
    assert_eq!(rig.count(Counter::AuthRefusedKey), 6);
}

#[test]
fn users_of_a_tenant_that_is_not_configured_are_refused_where_that_is_asked_for() {
    let mut rig = rig_of(UnknownTenant::Refuse);
    let id = rig.bearer(&of_beta());
    assert!(rig.told(id).contains("auth_ok"));
    let id = rig.bearer(&token_in(NOBODY, "k", SECRET));
    assert!(rig.told(id).starts_with("HTTP/1.1 401 "));
    assert_eq!(rig.count(Counter::AuthRefusedParty), 1);
}

#[test]
fn until_a_source_has_told_its_tenants_those_that_are_not_known_are_asked_to_come_back() {
    let published = || awaiting(UnknownTenant::Default, AwaitedTenants::Any);
    let mut rig = Rig { engine: engine(published(), 0, 1), now: Micros(1_000) };
    let other = token_in("other", "k", SECRET);
    let id = rig.bearer(&other);
    let told = rig.told(id);
    assert!(told.starts_with("HTTP/1.1 503 ") && told.contains("Retry-After: 1\r\n"), "{told}");
    let id = rig.open("", b"");
    rig.told(id);
    rig.says(id, auth(1, &other));
    let told = rig.told(id);
    assert!(told.contains("UNAVAILABLE") && told.contains("retry_after_ms"), "{told}");
    assert_eq!(rig.phase(id), Phase::Open);
    assert_eq!(rig.count(Counter::AuthKeysMissing), 2);
    // A page that nobody lists may be one of theirs.
    let strange = page("https://strange.example");
    let page_id = rig.open(&strange, b"");
    let told = rig.told(page_id);
    assert!(told.starts_with("HTTP/1.1 503 ") && told.contains("Retry-After: 1\r\n"), "{told}");
    rig.end_turn();
    let known = rig.bearer(&of_beta());
    assert!(rig.told(known).contains("auth_ok"), "that one is known");
    // It has told them, and has none.
    rig.engine.apply(awaiting(UnknownTenant::Default, AwaitedTenants::NONE), rig.now);
    rig.says(id, auth(2, &other));
    assert!(rig.told(id).contains("auth_ok"));
    let id = rig.open(&strange, b"");
    assert!(rig.told(id).starts_with("HTTP/1.1 403 "));
}

#[test]
fn control_is_asked_for_the_keys_of_the_tenant_whose_key_is_unknown() {
    let mut rig = rig_of(UnknownTenant::Default);
    let far = token_in("far", "new", OTHER);
    for _ in 0..2 {
        let id = rig.bearer(&far);
        assert!(rig.told(id).starts_with("HTTP/1.1 503 "));
    }
    // What nobody fetches is bad at once, and nothing is asked for.
    let id = rig.bearer(&token_in("acme", "new", OTHER));
    assert!(rig.told(id).starts_with("HTTP/1.1 401 "));
    let wanted = std::mem::take(&mut rig.engine.effects.keys_wanted);
    assert_eq!(wanted, [KeyOwner::Tenant("far".into())], "once a second");
}

#[test]
fn from_a_page_only_the_users_of_those_tenants_sign_in_whose_page_it_is() {
    let mut rig = rig_of(UnknownTenant::Default);
    let rows = [
        (page(ACME_PAGE), of_acme(), true),
        (page(ACME_PAGE), of_beta(), false),
        (page(COMMON_PAGE), of_acme(), false),
        (page(COMMON_PAGE), of_beta(), true),
        // No browser.
        (String::new(), of_acme(), true),
        (String::new(), of_beta(), true),
    ];
    for (origin, token, may) in &rows {
        rig.end_turn();
        let id = rig.open(&format!("{origin}Authorization: Bearer {token}\r\n"), b"");
        let told = rig.told(id);
        let answer = if *may { "auth_ok" } else { "HTTP/1.1 403 " };
        assert!(told.contains(answer), "{origin}: {told}");
        let id = rig.open(origin, b"");
        assert!(rig.told(id).contains("welcome"), "{origin}");
        rig.says(id, auth(1, token));
        let told = rig.told(id);
        let answer = if *may { "auth_ok" } else { "FORBIDDEN" };
        assert!(told.contains(answer), "{origin}: {told}");
        assert_eq!(rig.phase(id) == Phase::Open, *may, "{origin}");
        assert!(!told.contains("acme.example") && !told.contains("common.example"), "{told}");
    }
    assert_eq!(rig.count(Counter::AuthRefusedOrigin), 4);
    let id = rig.open(&page("https://evil.example"), b"");
    assert!(rig.told(id).starts_with("HTTP/1.1 403 "), "it is nobody's page");
}

#[test]
fn the_page_is_kept_until_its_user_is_known_and_only_where_tenants_have_pages() {
    let mut rig = rig_of(UnknownTenant::Default);
    let kept = |rig: &Rig, id| rig.engine.clients.conns.get(id).expect("there").page.is_some();
    let id = rig.open(&page(ACME_PAGE), b"");
    assert!(kept(&rig, id));
    rig.says(id, auth(1, &of_acme()));
    assert!(rig.told(id).contains("auth_ok") && !kept(&rig, id));
    // The same user with another token.
    rig.says(id, auth(2, &of_acme()));
    assert!(rig.told(id).contains("auth_ok"));
    let id = rig.open("", b"");
    assert!(!kept(&rig, id));
    let mut alone = Rig::new(false);
    let id = alone.open(&page("http://a"), b"");
    assert!(alone.told(id).contains("welcome") && !kept(&alone, id));
}

#[test]
fn the_page_is_looked_at_before_the_connection_moves_to_its_users_shard() {
    let published = || with_tenants(UnknownTenant::Default);
    let user = (0..100).map(|n| format!("user{n}")).find(|user| {
        let hash = affinity_hash(TenantId::of("acme"), user.as_bytes());
        crate::ids::home_shard(hash, 2) == ShardId(1)
    });
    let wanted = Wanted {
        algorithm: Algorithm::Hs256,
        key_id: Some("acme"),
        user: &user.expect("one of a hundred"),
        tenant: Some("acme"),
        groups: &[],
        issuer: None,
        audience: None,
        now_unix_s: START_S,
        lifetime_s: 600,
    };
    let token = mint(&wanted, SigningKey::Secret(OTHER.as_bytes())).expect("a token");
    for (origin, may) in [(ACME_PAGE, true), (COMMON_PAGE, false)] {
        let mut rig = Rig { engine: engine(published(), 0, 2), now: Micros(1_000) };
        let id = rig.open(&format!("{}Authorization: Bearer {token}\r\n", page(origin)), b"");
        let moves = std::mem::take(&mut rig.engine.effects.moves);
        assert_eq!(moves.len(), usize::from(may), "{origin}");
        if !may {
            assert!(rig.told(id).starts_with("HTTP/1.1 403 "));
            continue;
        }
        let (home, departed) = rig.engine.depart(id).expect("it moves");
        assert_eq!(home, ShardId(1));
        let mut home = Rig { engine: engine(published(), 1, 2), now: rig.now };
        let id = home.engine.arrive(departed, home.now).expect("room");
        home.end_turn();
        assert!(home.told(id).contains("auth_ok"));
        assert!(home.engine.clients.conns.get(id).expect("there").page.is_none());
    }
}
