//! Tokens: every row of the catalogue of bad ones, every algorithm, and no mutation that passes.

mod claims;
mod providers;
mod sets;
mod tenants;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm};
use serde_json::{Map, Value, json};

use super::explain::{Outcome, explain_token};
use super::keys::{BadKey, FetchedAt, JWKS_KEYS_MAX, KeySet, read_jwks};
use super::mint::{SigningKey, Wanted, mint};
use super::*;
use crate::config::key_files::KeyTexts;
use crate::config::settings::{AuthKey, AuthSettings, KeySource, Tenants};
use crate::plain::is_plain;

const NOW: i64 = 1_700_000_000;
const SECRET: &[u8] = &[b's'; 64];
const RSA_PRIVATE: &str = include_str!("tests/rsa_private.pem");
const RSA_PUBLIC: &str = include_str!("tests/rsa_public.pem");

/// A key of the configuration, and what its file holds.
fn keyed(id: &str, algorithm: Algorithm, text: &[u8]) -> (AuthKey, Vec<u8>) {
    // The place of the key does not matter to `Keys`.
    let source = KeySource::PublicKeyFile("key.pem".into());
    (AuthKey { id: id.into(), algorithm, source }, text.to_vec())
}

fn try_keys(list: Vec<(AuthKey, Vec<u8>)>, sets: &[KeySet]) -> Result<Keys, String> {
    let (keys, texts): (Vec<AuthKey>, _) = list.into_iter().unzip();
    let texts = KeyTexts { keys: texts, jwks: None };
    Keys::new(&keys, &texts, sets).map_err(|bad| format!("{} {}", bad[0].at, bad[0].rule))
}

fn keys(list: Vec<(AuthKey, Vec<u8>)>) -> Keys {
    try_keys(list, &[]).expect("good keys")
}

/// A secret, `a`, and an RSA key, `r`; issuer and audience configured.
fn settings() -> AuthSettings {
    AuthSettings {
        issuer: Some("me".into()),
        audience: Some("game".into()),
        ..AuthSettings::default()
    }
}

fn verifier_of(settings: &AuthSettings) -> Verifier {
    let list = vec![
        keyed("a", Algorithm::Hs256, SECRET),
        keyed("r", Algorithm::Rs256, RSA_PUBLIC.as_bytes()),
    ];
    Verifier::new(settings, keys(list))
}

fn verifier() -> Verifier {
    verifier_of(&settings())
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A token of the given header and claims, signed with `secret`.
fn signed(header: &str, claims: &str, secret: &[u8]) -> String {
    let message = format!("{}.{}", b64(header), b64(claims));
    // The library signs with no empty secret. HMAC fills keys up with zeros: this is the same one.
    let secret = if secret.is_empty() { b"\0" } else { secret };
    let key = jsonwebtoken::EncodingKey::from_secret(secret).unwrap();
    let mac = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Signature::HS256);
    format!("{message}.{}", mac.unwrap())
}

const HEADER: &str = r#"{"alg":"HS256","typ":"JWT","kid":"a"}"#;

fn good_claims() -> Map<String, Value> {
    let claims = json!({"sub": "alice", "iss": "me", "aud": "game", "exp": NOW + 60});
    claims.as_object().unwrap().clone()
}

/// The good claims with the given ones over them; `null` removes one.
fn claims(changes: Value) -> String {
    let mut claims = good_claims();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.remove(name)),
            value => drop(claims.insert(name.clone(), value.clone())),
        }
    }
    Value::Object(claims).to_string()
}

fn with(changes: Value) -> Result<Identity, Refusal> {
    verifier().verify(&signed(HEADER, &claims(changes), SECRET), NOW)
}

fn with_header(header: &str) -> Result<Identity, Refusal> {
    verifier().verify(&signed(header, &claims(json!({})), SECRET), NOW)
}

fn good_token() -> String {
    signed(HEADER, &claims(json!({"groups": ["x", "y"]})), SECRET)
}

fn wanted(algorithm: Algorithm) -> Wanted<'static> {
    Wanted {
        algorithm,
        key_id: Some("a"),
        user: "alice",
        tenant: None,
        groups: &[],
        issuer: Some("me"),
        audience: Some("game"),
        now_unix_s: NOW,
        lifetime_s: 60,
    }
}

fn key_pair(of: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(of).expect("entropy")
}

#[test]
fn a_good_token_says_who_it_is() {
    let expected = Identity {
        user: "alice".into(),
        tenant: None,
        groups: vec!["x".into(), "y".into()],
        groups_left_out: 0,
        expires_unix_s: NOW + 60 + 30,
    };
    assert_eq!(verifier().verify(&good_token(), NOW), Ok(expected));
}

#[test]
fn what_is_minted_verifies_with_every_algorithm() {
    let [p256, p384, ed] =
        [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
            .map(key_pair);
    for (name, algorithm) in Algorithm::NAMED {
        let (private, public) = match algorithm {
            Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512 => (None, SECRET.to_vec()),
            Algorithm::Es256 => (Some(p256.serialize_pem()), p256.public_key_pem().into_bytes()),
            Algorithm::Es384 => (Some(p384.serialize_pem()), p384.public_key_pem().into_bytes()),
            Algorithm::EdDsa => (Some(ed.serialize_pem()), ed.public_key_pem().into_bytes()),
            _ => (Some(RSA_PRIVATE.into()), RSA_PUBLIC.as_bytes().to_vec()),
        };
        let signing = match &private {
            Some(pem) => SigningKey::Private(pem.as_bytes()),
            None => SigningKey::Secret(SECRET),
        };
        let token = mint(&wanted(algorithm), signing).unwrap_or_else(|e| panic!("{name}: {e}"));
        let verifier = Verifier::new(&settings(), keys(vec![keyed("a", algorithm, &public)]));
        assert_eq!(&*verifier.verify(&token, NOW).expect(name).user, "alice");
        // The same key, pinned to another algorithm of its kind.
        for (other_name, other) in Algorithm::NAMED {
            if let Ok(keys) = try_keys(vec![keyed("a", other, &public)], &[])
                && other != algorithm
            {
                let found = Verifier::new(&settings(), keys).verify(&token, NOW);
                assert_eq!(found, Err(Refusal::Algorithm), "{name} {other_name}");
            }
        }
        let mut wrong = token.into_bytes();
        let at = wrong.len() - 10;
        wrong[at] = if wrong[at] == b'A' { b'B' } else { b'A' };
        let wrong = String::from_utf8(wrong).unwrap();
        assert_eq!(verifier.verify(&wrong, NOW), Err(Refusal::Signature), "{name}");
    }
}

#[test]
fn an_algorithm_comes_from_the_key_and_never_from_the_header() {
    for alg in ["none", "None", "NONE", "", "hs256", "HS1", "ES256K", "RSA-OAEP", "Ed448", "ES512"]
    {
        let header = format!(r#"{{"alg":"{alg}","kid":"a"}}"#);
        assert_eq!(with_header(&header), Err(Refusal::Algorithm), "{alg}");
        let unsigned = format!("{}.{}.", b64(&header), b64(claims(json!({}))));
        assert_eq!(verifier().verify(&unsigned, NOW), Err(Refusal::Algorithm), "{alg}");
    }
    for header in ["{}", r#"{"alg":null}"#, r#"{"alg":1}"#, r#"{"alg":["HS256"]}"#] {
        assert_eq!(with_header(header), Err(Refusal::Header), "{header}");
    }
    // HMAC with the public key as the secret: the text of the PEM, and its DER.
    let der = pem_body(RSA_PUBLIC);
    for secret in [RSA_PUBLIC.as_bytes(), RSA_PUBLIC.trim().as_bytes(), &der] {
        for (header, refusal) in [
            (r#"{"alg":"HS256","kid":"r"}"#, Refusal::Algorithm),
            (r#"{"alg":"RS256","kid":"r"}"#, Refusal::Signature),
            (r#"{"alg":"HS256","kid":"a"}"#, Refusal::Signature),
            (r#"{"alg":"HS256"}"#, Refusal::Signature),
        ] {
            let token = signed(header, &claims(json!({})), secret);
            assert_eq!(verifier().verify(&token, NOW), Err(refusal), "{header}");
        }
    }
    // No signature at all.
    let token = format!("{}.{}.", b64(HEADER), b64(claims(json!({}))));
    assert_eq!(verifier().verify(&token, NOW), Err(Refusal::Signature));
}

fn pem_body(pem: &str) -> Vec<u8> {
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    base64::engine::general_purpose::STANDARD.decode(body).unwrap()
}

#[test]
fn a_key_id_is_looked_up_and_nothing_else() {
    for kid in ["b", "", "A", "../../dev/null", "/etc/passwd", "a' OR '1'='1", "a\\u0000"] {
        let header = format!(r#"{{"alg":"HS256","kid":"{kid}"}}"#);
        assert_eq!(with_header(&header), Err(Refusal::UnknownKey), "{kid}");
        // Signed with the contents that such a file would have.
        let token = signed(&header, &claims(json!({})), b"");
        assert_eq!(verifier().verify(&token, NOW), Err(Refusal::UnknownKey), "{kid}");
    }
    let long = format!(r#"{{"alg":"HS256","kid":"{}"}}"#, "a".repeat(KEY_ID_BYTES_MAX + 1));
    for header in [r#"{"alg":"HS256","kid":1}"#, r#"{"alg":"HS256","kid":null}"#, &long] {
        assert_eq!(with_header(header), Err(Refusal::Header), "{header}");
    }
}

#[test]
fn without_a_key_id_there_must_be_one_candidate() {
    let token = signed(r#"{"alg":"HS256"}"#, &claims(json!({})), SECRET);
    assert!(verifier().verify(&token, NOW).is_ok());
    let two = vec![keyed("a", Algorithm::Hs256, SECRET), keyed("b", Algorithm::Hs256, &[b't'; 32])];
    let two = Verifier::new(&settings(), keys(two));
    assert_eq!(two.verify(&token, NOW), Err(Refusal::NoKeyId));
    let none = Verifier::new(&settings(), Keys::default());
    assert_eq!(none.verify(&token, NOW), Err(Refusal::NoKeyId));
    assert_eq!(none.verify(&good_token(), NOW), Err(Refusal::UnknownKey));
}

#[test]
fn what_a_header_brings_along_is_refused() {
    let jwk = r#"{"kty":"oct","k":"c3Nzcw"}"#;
    for (name, value, refusal) in [
        ("jwk", jwk, Refusal::BringsKey),
        ("jku", r#""http://127.0.0.1/keys""#, Refusal::BringsKey),
        ("x5u", r#""https://example.org/""#, Refusal::BringsKey),
        ("x5c", r#"["MII"]"#, Refusal::BringsKey),
        ("jku", "null", Refusal::BringsKey),
        ("crit", r#"["exp"]"#, Refusal::Critical),
        ("crit", "[]", Refusal::Critical),
        ("typ", r#""dpop+jwt""#, Refusal::Type),
        ("typ", r#""logout+jwt""#, Refusal::Type),
        ("typ", "1", Refusal::Header),
    ] {
        let header = format!(r#"{{"alg":"HS256","kid":"a","{name}":{value}}}"#);
        assert_eq!(with_header(&header), Err(refusal), "{header}");
    }
    // Names of a certificate, unknown parameters, and the usual types are accepted.
    for rest in
        [r#""x5t":"a""#, r#""x5t#S256":"a""#, r#""foo":{}"#, r#""typ":"jwt""#, r#""typ":"at+jwt""#]
    {
        assert!(with_header(&format!(r#"{{"alg":"HS256","kid":"a",{rest}}}"#)).is_ok(), "{rest}");
    }
}

#[test]
fn the_form_is_strict() {
    let token = good_token();
    let parts: Vec<&str> = token.split('.').collect();
    let [header, body, mac] = parts[..] else { panic!("three parts") };
    let mut wrong = vec![
        String::new(),
        ".".into(),
        "..".into(),
        "...".into(),
        format!("{header}.{body}"),
        format!("{token}."),
        format!(".{token}"),
        format!("{token}.{mac}"),
        format!("{token}="),
        format!("{header}=.{body}.{mac}"),
        format!(" {token}"),
        format!("{token}\n"),
        format!("{header}\n.{body}.{mac}"),
        format!("{header}.{body} .{mac}"),
        format!("Bearer {token}"),
        format!("{header}.{body}.{mac}+/"),
        format!("{header}.{}.{mac}", "é"),
        // Unused bits of the last character set: the same bytes in another text.
        format!("{header}.{body}.{}", same_bytes(mac)),
        signed("[]", "{}", SECRET),
        signed("1", "{}", SECRET),
        signed("{\"alg\":\"HS256\"", "{}", SECRET),
        signed(HEADER, "[]", SECRET),
        signed(HEADER, "null", SECRET),
        signed(HEADER, "", SECRET),
        signed(HEADER, "not json", SECRET),
        signed(&format!("{}1{}", "{\"a\":".repeat(500), "}".repeat(500)), "{}", SECRET),
        signed(HEADER, &format!("{}{} x", "", claims(json!({}))), SECRET),
    ];
    wrong.push(signed(&format!("{HEADER}{HEADER}"), "{}", SECRET));
    for token in wrong {
        assert_eq!(verifier().verify(&token, NOW), Err(Refusal::Malformed), "{token:?}");
    }
    let twice = r#"{"sub":"alice","iss":"me","aud":"game","exp":1,"exp":99999999999}"#;
    assert_eq!(verifier().verify(&signed(HEADER, twice, SECRET), NOW), Err(Refusal::Duplicate));
    let twice = r#"{"alg":"HS256","kid":"a","alg":"HS256"}"#;
    assert_eq!(with_header(twice), Err(Refusal::Duplicate));
}

/// The base64url text with its unused last bits set.
fn same_bytes(text: &str) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let last = text.bytes().last().unwrap();
    let at = LETTERS.iter().position(|b| *b == last).unwrap();
    format!("{}{}", &text[..text.len() - 1], LETTERS[at + 1] as char)
}

#[test]
fn a_token_has_a_length() {
    let padded = |n: usize| signed(HEADER, &claims(json!({"pad": "x".repeat(n)})), SECRET);
    let fits = (0..3).map(|n| padded(n + 5_900)).find(|t| t.len() <= TOKEN_BYTES_MAX).unwrap();
    assert!(verifier().verify(&fits, NOW).is_ok());
    for long in [padded(6_200), padded(64 << 10), "a".repeat(64 << 10), ".".repeat(9_000)] {
        assert_eq!(verifier().verify(&long, NOW), Err(Refusal::TooLong));
    }
}

#[test]
fn users_and_tenants_have_their_forms() {
    let many = verifier_of(&AuthSettings { tenants: Tenants::Many, ..settings() });
    let found = |changes: Value| many.verify(&signed(HEADER, &claims(changes), SECRET), NOW);
    assert_eq!(found(json!({})), Err(Refusal::Missing(Claim::Tenant)));
    assert_eq!(found(json!({"tenant": "red.1"})).unwrap().tenant.as_deref(), Some("red.1"));
    for bad in [json!(""), json!("a b"), json!("a/b"), json!("é"), json!("a".repeat(65)), json!(1)]
    {
        let found = found(json!({"tenant": bad}));
        assert_eq!(found, Err(Refusal::BadClaim(Claim::Tenant)), "{bad}");
    }
    // With one tenant the claim is ignored.
    assert_eq!(with(json!({"tenant": 1})).unwrap().tenant, None);

    assert_eq!(with(json!({"sub": null})), Err(Refusal::Missing(Claim::Sub)));
    for bad in [json!(""), json!(7), json!("a".repeat(256)), json!("a\nb"), json!("a\u{85}b")] {
        assert_eq!(with(json!({"sub": bad})), Err(Refusal::BadClaim(Claim::Sub)), "{bad}");
    }
    // Shown escaped in the log, and taken.
    for good in ["a", "auth0|5f7c", "Zoë Ünal", "\u{202e}nimda", "\u{5e9}\u{5dc}", &"a".repeat(255)]
    {
        assert_eq!(&*with(json!({"sub": good})).unwrap().user, good);
    }
}

#[test]
fn keys_of_openssl_are_taken() {
    for (algorithm, private, public) in [
        (
            Algorithm::EdDsa,
            include_str!("tests/ed_private.pem"),
            include_str!("tests/ed_public.pem"),
        ),
        (
            Algorithm::Es256,
            include_str!("tests/ec_private.pem"),
            include_str!("tests/ec_public.pem"),
        ),
        (Algorithm::Ps256, RSA_PRIVATE, RSA_PUBLIC),
    ] {
        let token = mint(&wanted(algorithm), SigningKey::Private(private.as_bytes())).unwrap();
        let keys = keys(vec![keyed("a", algorithm, public.as_bytes())]);
        assert!(Verifier::new(&settings(), keys).verify(&token, NOW).is_ok(), "{algorithm:?}");
    }
}

#[test]
fn what_cannot_be_minted_is_told() {
    let ec = key_pair(&rcgen::PKCS_ECDSA_P256_SHA256).serialize_pem();
    let (secret, ec) = (SigningKey::Secret(SECRET), SigningKey::Private(ec.as_bytes()));
    let hs = wanted(Algorithm::Hs256);
    let long = vec!["g".to_owned(); 65];
    let rows = [
        (Wanted { user: "", ..hs.clone() }, secret, "sub must be"),
        (Wanted { tenant: Some("a b"), ..hs.clone() }, secret, "tenant must be"),
        (Wanted { groups: &long, ..hs.clone() }, secret, "groups must be"),
        (Wanted { key_id: Some(""), ..hs.clone() }, secret, "key's id"),
        (hs.clone(), SigningKey::Secret(b"short"), "at least 32 bytes"),
        (hs.clone(), ec, "HS256 takes a secret"),
        (wanted(Algorithm::Es256), secret, "takes a private key"),
        (wanted(Algorithm::Es384), ec, "cannot sign with ES384"),
        (wanted(Algorithm::Rs256), ec, "not a private key for RS256"),
        (wanted(Algorithm::EdDsa), SigningKey::Private(b"x"), "not a private key for EdDSA"),
    ];
    for (wanted, key, expected) in rows {
        let found = mint(&wanted, key).expect_err(expected);
        assert!(found.contains(expected), "{found}: {expected}");
    }
}

#[test]
fn an_explanation_shows_what_was_read_and_which_rule_fails() {
    let (verifier, token) = (verifier(), good_token());
    let good = explain_token(&verifier, &token, NOW);
    assert!(good.rules.iter().all(|rule| rule.outcome == Outcome::Holds), "{good}");
    let text = good.to_string();
    assert!(text.ends_with("accepted: user \"alice\", until 1700000090"), "{text}");
    let late = explain_token(&verifier, &token, NOW + 1000);
    let text = late.to_string();
    assert!(text.contains("FAILS time: the token has expired (exp)  exp 1700000060"), "{text}");
    assert!(text.contains("ok    signature") && text.contains("\"sub\": \"alice\""), "{text}");
    assert!(text.ends_with("refused: the token has expired (exp)"), "{text}");
    let evil = "a\u{9b}31m\u{7f}\u{1b}\u{202e}";
    let forged = signed(HEADER, &claims(json!({"sub": evil})), b"wrong");
    let text = explain_token(&verifier, &forged, NOW).to_string();
    assert!(text.contains("FAILS signature"), "{text}");
    assert!(text.contains("31m") && text.chars().all(|c| c == '\n' || is_plain(c)), "{text:?}");
    for token in ["", "a.b.c", "..", &signed(r#"{"alg":"none"}"#, "[]", b"")] {
        let found = explain_token(&verifier, token, NOW);
        assert!(found.to_string().contains("refused: "), "{found}");
    }
    // Neither the signature nor the key is shown.
    let mac = token.rsplit('.').next().unwrap();
    let all = format!("{good} {good:?} {verifier:?}");
    assert!(!all.contains(mac) && !all.contains(std::str::from_utf8(SECRET).unwrap()), "{all}");
    assert!(!all.contains("115, 115"), "{all}");
}

#[test]
fn refusals_have_a_sentence_and_a_word_each() {
    let all = Refusal::all();
    let texts: std::collections::HashSet<_> = all.iter().map(|r| r.text()).collect();
    let labels: std::collections::HashSet<_> = all.iter().map(|r| r.label()).collect();
    assert_eq!((all.len(), texts.len(), labels.len()), (32, 32, 20));
    assert!(texts.iter().all(|text| text.starts_with("the token") && text.len() <= 300));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_bytes_are_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let text = String::from_utf8_lossy(&bytes);
        prop_assert!(verifier().verify(&text, NOW).is_err());
        prop_assert!(explain_token(&verifier(), &text, NOW).verdict.is_err());
        drop(read_jwks(&text));
    }

    #[test]
    fn no_three_parts_are_a_panic(
        header in "\\PC{0,60}",
        claims in "\\{(\"(exp|sub|aud|groups)\":\
                   (1e400|-?[0-9]{1,25}(\\.[0-9]{1,3})?|\"a\"|\\[1\\]),?){0,3}\\}",
    ) {
        let _ = verifier().verify(&signed(&header, &claims, SECRET), NOW);
        let _ = verifier().verify(&signed(HEADER, &claims, SECRET), NOW);
    }

    #[test]
    fn no_mutation_of_a_good_token_verifies(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        kind in 0..4u8,
        rsa in any::<bool>(),
    ) {
        let good = match rsa {
            true => RSA_TOKEN.with(Clone::clone),
            false => good_token(),
        };
        let mut bytes = good.clone().into_bytes();
        let at = at.index(bytes.len());
        match kind {
            0 => bytes[at] = byte,
            1 => bytes[at] ^= 1 << (byte % 8),
            2 => drop(bytes.remove(at)),
            _ => bytes.insert(at, byte),
        }
        let text = String::from_utf8_lossy(&bytes);
        prop_assume!(text != good);
        prop_assert!(verifier().verify(&text, NOW).is_err());
    }
}

thread_local! {
    static RSA_TOKEN: String = {
        let wanted = Wanted { key_id: Some("r"), ..wanted(Algorithm::Rs256) };
        let token = mint(&wanted, SigningKey::Private(RSA_PRIVATE.as_bytes())).unwrap();
        assert!(verifier().verify(&token, NOW).is_ok());
        token
    };
}
