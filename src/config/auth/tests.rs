//! `[auth]` from text to settings, and the files that it names.

use std::time::Duration;

use super::*;
use crate::config::key_files::{KeySettings, KeyTexts};
use crate::config::load::{Files, from_files};
use crate::config::{Config, Overrides, Problems};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn of(text: &str) -> Result<Config, Problems> {
    let mut files = Files::embedded();
    files.gateway.text = text.into();
    from_files(files, &[], &Overrides::default())
}

fn problem(text: &str) -> String {
    of(text).expect_err(text).to_string()
}

fn key_settings(config: &Config) -> KeySettings<'_> {
    KeySettings::of_auth(config).expect("clients sign in")
}

fn with_key(algorithm: &str, rest: &str) -> String {
    format!("auth.mode = \"jwt\"\n[[auth_key]]\nid = \"a\"\nalgorithm = \"{algorithm}\"\n{rest}")
}

#[test]
fn what_is_written_is_what_is_set() {
    let text = format!(
        "[auth]\nmode = \"jwt\"\nissuer = \"https://id.example\"\naudience = \"game\"\n\
         leeway_s = 5\ntimeout_ms = 2000\nrequired = true\ntenants = \"many\"\n\
         jwks_url = \"https://id.example/keys\"\njwks_refresh_s = 60\njwks_file = \"a.json\"\n\
         jwks_ca_file = \"ca.pem\"\n\
         [[auth_key]]\nid = \"a\"\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n\
         [[auth_key]]\nid = \"b\"\nalgorithm = \"HS512\"\nsecret_file = \"b\"\n\
         [[auth_key]]\nid = \"c\"\nalgorithm = \"EdDSA\"\npublic_key_file = \"c.pem\"\n"
    );
    let auth = of(&text).expect("right").gateway.auth;
    let key = |id: &str, algorithm, source| AuthKey { id: id.into(), algorithm, source };
    let expected = AuthSettings {
        mode: AuthMode::Jwt,
        issuer: Some("https://id.example".into()),
        audience: Some("game".into()),
        leeway: Duration::from_secs(5),
        timeout: Duration::from_secs(2),
        required: true,
        tenants: Tenants::Many,
        unknown_tenant: UnknownTenant::Default,
        jwks_file: Some("a.json".into()),
        jwks_url: Some("https://id.example/keys".into()),
        jwks_ca_file: Some("ca.pem".into()),
        jwks_refresh: Duration::from_secs(60),
        keys: vec![
            key("a", Algorithm::Hs256, KeySource::Secret(SECRET.into())),
            key("b", Algorithm::Hs512, KeySource::SecretFile("b".into())),
            key("c", Algorithm::EdDsa, KeySource::PublicKeyFile("c.pem".into())),
        ],
    };
    assert_eq!(auth, expected);
}

#[test]
fn each_rule_of_auth_is_told_with_the_way_out() {
    let two = format!("secret = \"{SECRET}\"\nsecret_file = \"b\"");
    let twice = format!(
        "{0}secret = \"{SECRET}\"\n[[auth_key]]\nid = \"a\"\nalgorithm = \"HS256\"\n\
         secret = \"{SECRET}\"",
        with_key("HS256", "")
    );
    let rows = [
        ("auth.mode = \"jwt\"".into(), "auth.mode = \"jwt\": needs a key"),
        ("auth.mode = \"oauth\"".into(), "must be one of \"off\", \"jwt\""),
        ("auth.required = true".into(), "auth.required = true: nobody could connect"),
        ("auth.leeway_s = 61".into(), "from 0 to 60"),
        ("auth.tenants = \"two\"".into(), "must be one of \"one\", \"many\""),
        ("auth.jwks_url = \"http://id.example/\"".into(), "must be empty, or an https:// URL"),
        (with_key("ES512", ""), "\"ES384\", \"EdDSA\", \"Ed25519\""),
        (with_key("none", ""), "algorithm = \"none\": must be one of \"HS256\""),
        (with_key("HS256", ""), "set one of secret and secret_file"),
        (with_key("HS256", &two), "set one of secret and secret_file"),
        (with_key("HS256", "public_key_file = \"c\""), "set one of secret and secret_file"),
        (with_key("RS256", "secret_file = \"c\""), "has a public key: set public_key_file"),
        (with_key("HS256", "secret = \"short\""), "must be empty, or at least 32 bytes for HS256"),
        (with_key("HS512", &format!("secret = \"{SECRET}\"")), "64 for HS512"),
        (with_key("HS256", "key = 1"), "auth_key[0].key: unknown key"),
        (twice, "auth_key[1].id = \"a\": is the id of another key"),
        ("[[auth_key]]\nalgorithm = \"HS256\"".into(), "auth_key[0].id: is missing"),
    ];
    for (text, expected) in rows {
        let found = problem(&text);
        assert!(found.contains(expected), "{text}\n{found}\n{expected}");
        assert!(!found.contains(SECRET) && !found.contains("\"short\""), "{found}");
    }
    assert_eq!(problem(&with_key("HS256", "secret = \"short\"")).lines().count(), 1);
}

#[test]
fn a_route_for_users_needs_a_way_to_sign_in() {
    let route = "[[service]]\nname = \"a\"\n\
                 instances = [{ id = \"a-1\", address = \"127.0.0.1:1\" }]\n\
                 [[route]]\nrange = [1, 2]\nservice = \"a\"\nauth = \"user\"\n\
                 [[route]]\nrange = [3, 4]\nservice = \"a\"\n";
    assert!(problem(route).contains("route[0].auth = \"user\": nobody can sign in"));
    let config = of(&format!("{}secret = \"{SECRET}\"\n{route}", with_key("HS256", "")));
    let routes = config.expect("right").snapshot.routes;
    assert_eq!(routes.iter().map(|r| r.needs_user).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn a_secret_is_shown_nowhere() {
    let config = of(&with_key("HS256", &format!("secret = \"{SECRET}\""))).expect("right");
    let texts = key_settings(&config).read().expect("no file");
    let shown = format!("{config:?} {texts:?}");
    assert!(!shown.contains(SECRET) && shown.contains("redacted"));
    // The secret's bytes are not shown as numbers either.
    assert!(!shown.contains("48, 49, 50"));
}

#[test]
fn keys_are_fetched_from_https_or_from_this_machine() {
    for good in [
        "https://id.example/.well-known/jwks.json",
        "https://id.example:8443/keys?a=b",
        "http://127.0.0.1:8080/keys",
        "http://127.0.0.2/",
        "http://[::1]:80/keys",
        "http://[::1]/keys",
        "http://localhost/keys",
    ] {
        assert!(is_key_url(good), "{good}");
    }
    for bad in [
        "http://id.example/keys",
        "http://10.0.0.1/keys",
        "http://localhost.id.example/keys",
        "http://127.0.0.1@id.example/keys",
        "http://127.0.0.1\\@id.example/",
        "http://[::1].example/",
        "https://user:pass@id.example/keys",
        "https://",
        "https:///keys",
        "https://id.example:0/",
        "https://id.example:x/",
        "https://id.example/keys#a",
        "https://id.example/a b",
        "ftp://id.example/keys",
        "file:///etc/passwd",
        "HTTPS://id.example/",
    ] {
        assert!(!is_key_url(bad), "{bad}");
    }
}

#[test]
fn files_are_read_and_what_fails_is_told_by_its_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let write = |name: &str, bytes: &[u8]| std::fs::write(path(name), bytes).expect("written");
    write("secret", format!("{SECRET}\n").as_bytes());
    write("short", b"short\r\n");
    write("pem", b"PEM");
    write("jwks", b"{}");
    write("large", &[b'a'; 70_000]);
    write("binary", b"\xff");
    let text = |secret: &str, pem: &str, jwks: &str| {
        format!(
            "auth.mode = \"jwt\"\nauth.jwks_file = {:?}\n\
             [[auth_key]]\nid = \"a\"\nalgorithm = \"HS256\"\n\
             secret_file = {:?}\n[[auth_key]]\nid = \"b\"\nalgorithm = \"ES256\"\n\
             public_key_file = {:?}\n",
            path(jwks),
            path(secret),
            path(pem)
        )
    };
    let good = of(&text("secret", "pem", "jwks")).expect("right");
    let expected = KeyTexts {
        keys: vec![SECRET.as_bytes().to_vec(), b"PEM".to_vec()],
        jwks: Some("{}".into()),
    };
    assert_eq!(key_settings(&good).read().expect("all there"), expected);
    let bad = |text: &str| {
        let config = of(text).expect("right");
        key_settings(&config).read().expect_err(text).to_string()
    };
    let missing = bad(&text("missing", "missing", "missing"));
    let starts: Vec<_> = missing.lines().map(|l| l.split(" = ").next().unwrap()).collect();
    let expected = [
        "built-in gateway.toml:6: auth_key[0].secret_file",
        "built-in gateway.toml:10: auth_key[1].public_key_file",
        "built-in gateway.toml:2: auth.jwks_file",
    ];
    assert_eq!(starts, expected);
    let rest = bad(&text("short", "large", "binary"));
    let rules = ["holds 5 bytes; HS256 takes 32", "larger than 16384", "is not UTF-8"];
    assert!(rules.iter().all(|rule| rest.contains(rule)), "{rest}");
    assert!(bad(&text("secret", "pem", "large")).contains("larger than 65536"));
}

#[test]
fn a_file_of_authorities_that_nothing_uses_is_told() {
    let of_ca = |url: &str| {
        let text = with_key("HS256", &format!("secret = \"{SECRET}\""));
        let text = format!("auth.jwks_ca_file = \"ca.pem\"\nauth.jwks_url = \"{url}\"\n{text}");
        let warnings = of(&text).expect("right").warnings;
        warnings.iter().filter(|w| w.to_string().contains("auth.jwks_ca_file")).count()
    };
    assert_eq!(of_ca("https://id.example/keys"), 0);
    assert_eq!((of_ca(""), of_ca("http://127.0.0.1:1/keys")), (1, 1));
}
