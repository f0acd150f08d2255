//! Tenants with keys of their own: whose keys a token is checked with, and that no key signs for
//! another's users.

use std::collections::BTreeMap;

use super::*;
use crate::config::AwaitedTenants;
use crate::config::settings::{TenantSettings, TenantTokens, UnknownTenant};

const ACME: &[u8] = &[b'a'; 32];
const BETA: &[u8] = &[b'b'; 32];
/// Own keys and no issuer of its own.
const ANY: &[u8] = &[b'c'; 32];
/// Seconds since which the set of a tenant that fetches one is old.
const OLD: i64 = NOW - EARLY_FETCH_S as i64 - 1;

fn tokens(issuer: Option<&str>) -> Option<TenantTokens> {
    Some(TenantTokens { issuer: issuer.map(str::to_owned), ..TenantTokens::default() })
}

fn tenant(name: &str, tokens: Option<TenantTokens>) -> TenantSettings {
    TenantSettings { tokens, ..TenantSettings::plain(name) }
}

/// `acme` and `beta` with a secret and an issuer each, `any` with a secret, `plain` with nothing of
/// its own, and `far` whose set is fetched, and was, if a time is given.
fn verifier_of_tenants(unknown: UnknownTenant, fetched: Option<i64>) -> Verifier {
    verifier_awaiting(unknown, fetched, &AwaitedTenants::NONE)
}

fn verifier_awaiting(
    unknown: UnknownTenant,
    fetched: Option<i64>,
    awaited: &AwaitedTenants,
) -> Verifier {
    let settings = AuthSettings {
        issuer: None,
        audience: None,
        tenants: Tenants::Many,
        unknown_tenant: unknown,
        ..AuthSettings::default()
    };
    let far = TenantTokens {
        jwks_url: Some("https://far.example/keys".into()),
        ..tokens(Some("far.example")).unwrap()
    };
    let list = [
        (tenant("acme", tokens(Some("acme.example"))), Some(("a", ACME))),
        (tenant("any", tokens(None)), Some(("a", ANY))),
        (tenant("beta", tokens(Some("beta.example"))), Some(("b", BETA))),
        (tenant("far", Some(far)), None),
        (tenant("plain", None), None),
    ];
    let rules = list.map(|(tenant, key)| {
        let own: Vec<_> =
            key.map(|(id, secret)| keyed(id, Algorithm::Hs256, secret)).into_iter().collect();
        let set = fetched.filter(|_| tenant.name == "far".into()).map(|at| {
            let pair = key_pair(&rcgen::PKCS_ED25519);
            let jwk =
                json!({"kty": "OKP", "crv": "Ed25519", "x": b64(pair.der_bytes()), "kid": "f"});
            let set = read_jwks(&json!({ "keys": [jwk] }).to_string()).expect("a set");
            KeySet { fetched: Some(FetchedAt::new(at)), ..set }
        });
        let keys = try_keys(own, set.as_slice()).expect("good keys");
        let rules = |tokens| Rules::of_tenant(&tenant.name, tokens, keys, &settings);
        (tenant.name.clone(), tenant.tokens.as_ref().map(rules).map(Arc::new))
    });
    Verifier::new(&settings, keys(vec![keyed("a", Algorithm::Hs256, SECRET)]))
        .with_tenants(&settings, rules, awaited)
}

fn with_kid(kid: &str) -> String {
    format!(r#"{{"alg":"HS256","kid":"{kid}"}}"#)
}

/// A token with these claims tenant and iss (`null` = none), signed with a secret of this name.
fn said(tenant: Value, iss: Value, kid: &str, secret: &[u8]) -> String {
    signed(&with_kid(kid), &claims(json!({"tenant": tenant, "iss": iss})), secret)
}

fn tenant_in(found: Result<Identity, Refusal>) -> Result<String, Refusal> {
    found.map(|identity| identity.tenant.expect("there is always one").to_string())
}

#[test]
fn a_token_is_of_the_tenant_that_it_names_or_whose_issuer_it_names() {
    let verifier = verifier_of_tenants(UnknownTenant::Default, None);
    for (tenant, iss, kid, secret, expected) in [
        (json!("acme"), json!("acme.example"), "a", ACME, "acme"),
        (json!(null), json!("acme.example"), "a", ACME, "acme"),
        (json!("beta"), json!("beta.example"), "b", BETA, "beta"),
        (json!(null), json!("beta.example"), "b", BETA, "beta"),
        (json!("any"), json!("who.example"), "a", ANY, "any"),
        (json!("any"), json!(null), "a", ANY, "any"),
        (json!("plain"), json!("us"), "a", SECRET, "plain"),
        (json!("other"), json!("us"), "a", SECRET, "other"),
    ] {
        let token = said(tenant, iss, kid, secret);
        assert_eq!(tenant_in(verifier.verify(&token, NOW)), Ok(expected.into()), "{token}");
    }
    let token = said(json!("acme"), json!("acme.example"), "a", ACME);
    let late = verifier.verify(&token, NOW + 90);
    assert_eq!(late, Err(Refusal::Expired), "all the rules are checked");
}

#[test]
fn no_key_signs_for_another_tenants_users() {
    let (verifier, named) = (verifier_of_tenants(UnknownTenant::Default, None), |n: &str| json!(n));
    let none = json!(null);
    let rows = [
        // A key of acme says beta, by the claim and by the issuer, with its own kid and beta's.
        (named("beta"), named("acme.example"), "a", ACME, Refusal::UnknownKey),
        (named("beta"), named("beta.example"), "b", ACME, Refusal::Signature),
        (none.clone(), named("beta.example"), "b", ACME, Refusal::Signature),
        // The keys of [auth] say acme.
        (named("acme"), named("acme.example"), "a", SECRET, Refusal::Signature),
        (none.clone(), named("acme.example"), "a", SECRET, Refusal::Signature),
        // A key of acme says a tenant with the keys of [auth], or none at all.
        (named("plain"), none.clone(), "a", ACME, Refusal::Signature),
        (named("other"), none.clone(), "a", ACME, Refusal::Signature),
        (none.clone(), none.clone(), "a", ACME, Refusal::Signature),
        // The right key, and an issuer that is another's.
        (named("acme"), named("beta.example"), "a", ACME, Refusal::Issuer),
        (named("acme"), none.clone(), "a", ACME, Refusal::Missing(Claim::Iss)),
        (named("any"), named("acme.example"), "a", ANY, Refusal::Issuer),
        (named("plain"), named("acme.example"), "a", SECRET, Refusal::Issuer),
        (named("other"), named("acme.example"), "a", SECRET, Refusal::Issuer),
        // Nobody is named.
        (none.clone(), named("us"), "a", SECRET, Refusal::Missing(Claim::Tenant)),
        (json!(5), named("acme.example"), "a", ACME, Refusal::Signature),
        (json!(5), named("us"), "a", SECRET, Refusal::BadClaim(Claim::Tenant)),
        (named("a b"), named("us"), "a", SECRET, Refusal::BadClaim(Claim::Tenant)),
    ];
    for (tenant, iss, kid, secret, expected) in rows {
        let token = said(tenant.clone(), iss.clone(), kid, secret);
        assert_eq!(verifier.verify(&token, NOW), Err(expected), "{tenant} {iss} {kid}");
    }
}

/// A reader of the first `tenant` and one of the second would see two tokens.
#[test]
fn a_tenant_that_is_named_twice_is_refused_whoever_signed_it() {
    let verifier = verifier_of_tenants(UnknownTenant::Default, None);
    let good = claims(json!({"iss": "acme.example"}));
    for (first, second) in [("acme", "beta"), ("beta", "acme")] {
        let twice =
            good.replacen('{', &format!(r#"{{"tenant":"{first}","t\u0065nant":"{second}","#), 1);
        for (kid, secret) in [("a", ACME), ("b", BETA)] {
            let found = verifier.verify(&signed(&with_kid(kid), &twice, secret), NOW);
            let refusals = [Refusal::Duplicate, Refusal::UnknownKey];
            assert!(found.is_err_and(|refusal| refusals.contains(&refusal)), "{first} {kid}");
        }
    }
}

#[test]
fn a_tenant_that_is_not_configured_is_refused_where_that_is_asked_for() {
    let verifier = verifier_of_tenants(UnknownTenant::Refuse, None);
    let of =
        |tenant: Value, iss: &str| verifier.verify(&said(tenant, json!(iss), "a", SECRET), NOW);
    assert_eq!(of(json!("other"), "us"), Err(Refusal::UnknownTenant));
    assert_eq!(tenant_in(of(json!("plain"), "us")), Ok("plain".into()));
    assert_eq!(of(json!(null), "us"), Err(Refusal::Missing(Claim::Tenant)));
    // The tenants may all come from a source, which has none.
    let settings = AuthSettings {
        tenants: Tenants::Many,
        unknown_tenant: UnknownTenant::Refuse,
        ..AuthSettings::default()
    };
    let none =
        verifier_of(&settings).with_tenants(&settings, BTreeMap::new(), &AwaitedTenants::NONE);
    let token = said(json!("acme"), json!("us"), "a", SECRET);
    assert_eq!(none.verify(&token, NOW), Err(Refusal::UnknownTenant));
}

/// Whoever tries names learns nothing, before a key of the tenant signs the token.
#[test]
fn clients_are_told_the_same_of_every_tenant_whose_key_they_do_not_have() {
    for unknown in [UnknownTenant::Default, UnknownTenant::Refuse] {
        let verifier = verifier_of_tenants(unknown, None);
        let mut told: Vec<String> = Vec::new();
        for tenant in ["acme", "any", "beta", "plain", "other"] {
            for header in [with_kid("a"), with_kid("x"), r#"{"alg":"HS256"}"#.into()] {
                let iss = if tenant == "other" { "acme.example" } else { "other.example" };
                let claims = claims(json!({"tenant": tenant, "iss": iss, "exp": 1}));
                let token = signed(&header, &claims, &[b'x'; 32]);
                told.push(verifier.told(verifier.verify(&token, NOW).unwrap_err()));
            }
        }
        told.dedup();
        assert_eq!(told, ["the token was not made with a key for its tenant"]);
    }
    // Without tenants everything is told.
    let found = verifier().verify(&signed(&with_kid("x"), "{}", SECRET), NOW).unwrap_err();
    assert_eq!(verifier().told(found), Refusal::UnknownKey.text());
}

#[test]
fn an_unknown_key_is_waited_for_in_the_set_of_its_tenant_and_in_no_other() {
    let far = NotAccepted::LacksKeys(KeyOwner::Tenant("far".into()));
    let judge = |fetched, tenant: Value, iss: &str, header: &str| {
        let claims = claims(json!({"tenant": tenant, "iss": iss}));
        let verifier = verifier_of_tenants(UnknownTenant::Default, fetched);
        verifier.judge(&signed(header, &claims, SECRET), NOW).map(|_| ())
    };
    let new = r#"{"alg":"EdDSA","kid":"new"}"#;
    for tenant in [json!("far"), json!(null)] {
        assert_eq!(judge(None, tenant.clone(), "far.example", new), Err(far.clone()));
        assert_eq!(judge(Some(OLD), tenant.clone(), "far.example", new), Err(far.clone()));
        let fresh = judge(Some(NOW), tenant, "far.example", new);
        assert_eq!(fresh, Err(NotAccepted::Refused(Refusal::UnknownKey)));
    }
    // Nothing is fetched for the others, and their keys have come all the while.
    for tenant in ["acme", "plain"] {
        let found = judge(None, json!(tenant), "us", new);
        assert_eq!(found, Err(NotAccepted::Refused(Refusal::UnknownKey)), "{tenant}");
    }
    assert_eq!(judge(None, json!("plain"), "us", &with_kid("a")), Ok(()));
}

/// Promise 19: nobody learns by trying names, in any order, whether there is a tenant.
#[test]
fn a_name_that_nobody_has_gets_the_answers_of_a_tenant_by_its_name() {
    let names: Vec<String> = (0..40).map(|n| format!("guess-{n}")).collect();
    // Also with the name of a key that everybody knows, and without a name.
    for header in [r#"{"alg":"EdDSA","kid":"f"}"#, r#"{"alg":"EdDSA"}"#, r#"{"alg":"HS256"}"#] {
        for unknown in [UnknownTenant::Default, UnknownTenant::Refuse] {
            let answers = |name: &str| {
                let claims = claims(json!({"tenant": name, "iss": "who.example"}));
                [None, Some(OLD), Some(NOW)].map(|fetched| {
                    let verifier = verifier_of_tenants(unknown, fetched);
                    match verifier.judge(&signed(header, &claims, b"no key"), NOW) {
                        Err(NotAccepted::Refused(refusal)) => verifier.told(refusal),
                        later => format!("{later:?}"),
                    }
                })
            };
            let of_tenants = ["acme", "far", "plain"].map(answers);
            assert_ne!(of_tenants[0], of_tenants[1], "that one's keys may come");
            let of_nobody: Vec<_> = names.iter().map(|name| answers(name)).collect();
            assert!(of_nobody.iter().all(|told| of_tenants.contains(told)), "{of_nobody:?}");
            assert!(of_tenants.iter().all(|told| of_nobody.contains(told)), "{of_nobody:?}");
            let again: Vec<_> = names.iter().map(|name| answers(name)).collect();
            assert_eq!(of_nobody, again, "always the same one's");
        }
    }
}

#[test]
fn while_the_keys_of_auth_may_be_newer_no_name_tells_whether_it_is_somebodys() {
    let fetching = AuthSettings {
        jwks_url: Some("https://id.example/keys".into()),
        tenants: Tenants::Many,
        issuer: None,
        audience: None,
        ..AuthSettings::default()
    };
    let acme: Arc<str> = "acme".into();
    let own = keys(vec![keyed("a", Algorithm::Hs256, ACME)]);
    let rules = Rules::of_tenant(&acme, &tokens(None).unwrap(), own, &fetching);
    let tenants = [(acme, Some(Arc::new(rules))), ("plain".into(), None)];
    let common = keys(vec![keyed("a", Algorithm::Hs256, SECRET)]);
    let verifier =
        Verifier::new(&fetching, common).with_tenants(&fetching, tenants, &AwaitedTenants::NONE);
    for tenant in ["acme", "plain", "guess"] {
        let token = said(json!(tenant), json!("us"), "x", b"no key");
        let later = NotAccepted::LacksKeys(KeyOwner::Auth);
        assert_eq!(verifier.judge(&token, NOW), Err(later), "{tenant}");
    }
    let good = said(json!("acme"), json!("us"), "a", ACME);
    assert!(verifier.judge(&good, NOW).is_ok());
}

/// While a source has not told its tenants no token is judged by rules that may not be its own.
#[test]
fn a_token_of_a_tenant_that_a_source_may_have_is_neither_accepted_nor_refused() {
    let all = ["acme", "far", "other", "third"];
    for unknown in [UnknownTenant::Default, UnknownTenant::Refuse] {
        let judge = |awaited: &AwaitedTenants, tenant: Value, iss: &str, kid: &str, key: &[u8]| {
            let verifier = verifier_awaiting(unknown, Some(NOW), awaited);
            verifier.judge(&said(tenant, json!(iss), kid, key), NOW).map(|found| found.tenant)
        };
        let later = Err(NotAccepted::AwaitsTenant);
        let (any, named) = (AwaitedTenants::Any, AwaitedTenants::named(vec!["other".into()]));
        // Whoever signed it: the keys of [auth] are not the other's, and the other's are not known.
        for (kid, key) in [("a", SECRET), ("x", ANY)] {
            for awaited in [&any, &named] {
                assert_eq!(judge(awaited, json!("other"), "us", kid, key), later);
            }
            // It may have the issuer.
            assert_eq!(judge(&any, json!(null), "other.example", kid, key), later);
        }
        for awaited in [&any, &named] {
            let acme = judge(awaited, json!("acme"), "acme.example", "a", ACME);
            assert_eq!(acme, Ok(Some("acme".into())), "it is known");
            assert_eq!(judge(awaited, json!("plain"), "us", "a", SECRET), Ok(Some("plain".into())));
        }
        let third = judge(&named, json!("third"), "us", "a", SECRET);
        assert_eq!(third.is_ok(), unknown == UnknownTenant::Default, "no source has it");
        // Nothing tells which ones are known.
        let told = all.map(|name| judge(&any, json!(name), "us", "x", b"no key"));
        assert!(told.iter().all(|told| *told == later), "{told:?}");
    }
    let any = verifier_awaiting(UnknownTenant::Default, None, &AwaitedTenants::Any);
    let text = explain_token(&any, &said(json!("other"), json!("us"), "a", SECRET), NOW);
    assert!(text.to_string().contains("no tenant of the files"), "{text}");
}

#[test]
fn other_rules_of_one_tenant_leave_the_others_as_they_are() {
    let verifier = verifier_of_tenants(UnknownTenant::Default, None);
    let settings = AuthSettings { tenants: Tenants::Many, ..AuthSettings::default() };
    let acme: Arc<str> = "acme".into();
    let keys = keys(vec![keyed("n", Algorithm::Hs256, ANY)]);
    let own = tokens(Some("acme.example")).unwrap();
    let renewed = verifier.with_rules(&acme, Rules::of_tenant(&acme, &own, keys, &settings).into());
    let of = |tenant: &str, iss: &str, kid: &str, secret: &[u8]| {
        tenant_in(renewed.verify(&said(json!(tenant), json!(iss), kid, secret), NOW))
    };
    assert_eq!(of("acme", "acme.example", "a", ACME), Err(Refusal::UnknownKey));
    assert_eq!(of("acme", "acme.example", "n", ANY), Ok("acme".into()));
    assert_eq!(of("beta", "beta.example", "b", BETA), Ok("beta".into()));
    assert_eq!(of("plain", "us", "a", SECRET), Ok("plain".into()));
}

#[test]
fn an_explanation_says_whose_rules_were_used_and_whose_key_it_was() {
    let verifier = verifier_of_tenants(UnknownTenant::Refuse, None);
    let text = |tenant: &str, iss: &str, kid: &str, secret: &[u8]| {
        explain_token(&verifier, &said(json!(tenant), json!(iss), kid, secret), NOW).to_string()
    };
    for (found, lines) in [
        (
            text("acme", "acme.example", "a", ACME),
            vec!["ok    tenant  acme, by the issuer and the keys of its own", "accepted: user"],
        ),
        (
            text("plain", "us", "a", SECRET),
            vec!["ok    tenant  plain, which has no keys of its own, by those of [auth]"],
        ),
        (
            text("beta", "beta.example", "b", ACME),
            vec!["FAILS signature: ", "-     key", "refused: "],
        ),
        (
            text("beta", "acme.example", "a", ACME),
            vec!["FAILS key: ", "a key of tenant acme signed it", "-     signature  without a key"],
        ),
        (text("acme", "acme.example", "a", SECRET), vec!["a key of [auth] signed it"]),
        (
            text("plain", "acme.example", "a", SECRET),
            vec!["FAILS issuer: ", "wanted none that is a tenant's"],
        ),
        (
            text("other", "us", "a", SECRET),
            vec!["FAILS tenant: ", "auth.unknown_tenant is \"refuse\"", "-     key  without"],
        ),
    ] {
        for line in lines.into_iter().filter(|line| *line != "-     key") {
            assert!(found.contains(line), "{line}: {found}");
        }
        assert!(!found.contains("aaaa") && !found.contains("ssss"), "no key is shown: {found}");
    }
    // Where tenants are alike, none is spoken of.
    let plain = explain_token(&super::verifier(), &good_token(), NOW).to_string();
    assert!(!plain.contains("tenant"), "{plain}");
}
