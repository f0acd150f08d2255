//! The claims: those that decide are strict, in every shape that RFC 7519 allows; all others never
//! refuse a token.

use super::*;

#[test]
fn times_have_one_type_and_one_meaning() {
    for claim in [Claim::Exp, Claim::Nbf, Claim::Iat] {
        for bad in [
            json!((NOW + 60).to_string()),
            json!(""),
            json!(true),
            json!([NOW + 60]),
            json!({"a": 1}),
        ] {
            let found = with(json!({ claim.name(): bad }));
            assert_eq!(found, Err(Refusal::BadClaim(claim)), "{claim:?} {bad}");
        }
        // JSON null is not "absent".
        let null = claims(json!({})).replacen('{', &format!("{{\"{}\":null,", claim.name()), 1);
        let null = if claim == Claim::Exp {
            null.replace(&format!(",\"exp\":{}", NOW + 60), "")
        } else {
            null
        };
        let found = verifier().verify(&signed(HEADER, &null, SECRET), NOW);
        assert!(
            matches!(found, Err(Refusal::BadClaim(_) | Refusal::Duplicate)),
            "{null} {found:?}"
        );
    }
    let rows = [
        (json!({"exp": null}), Err(Refusal::Missing(Claim::Exp))),
        (json!({"exp": NOW}), Ok(NOW + 30)),
        (json!({"exp": NOW - 29}), Ok(NOW + 1)),
        (json!({"exp": NOW - 30}), Err(Refusal::Expired)),
        (json!({"exp": 0}), Err(Refusal::Expired)),
        (json!({"exp": NOW as f64 - 28.5}), Ok(NOW + 1)),
        (json!({"exp": NOW as f64 - 29.5}), Err(Refusal::Expired)),
        (json!({"exp": 1.7e9 + 60.0}), Ok(NOW + 90)),
        (json!({"exp": LATEST}), Ok(LATEST + 30)),
        // The least and the largest numbers of languages: "always", and "never".
        (json!({"exp": LATEST + 1}), Ok(LATEST + 30)),
        (json!({"exp": i64::MAX}), Ok(LATEST + 30)),
        (json!({"exp": u64::MAX}), Ok(LATEST + 30)),
        (json!({"exp": 1e300}), Ok(LATEST + 30)),
        (json!({"exp": -1}), Err(Refusal::Expired)),
        (json!({"exp": i64::MIN}), Err(Refusal::Expired)),
        (json!({"nbf": i64::MIN, "iat": -62_135_596_800_i64}), Ok(NOW + 90)),
        (json!({"nbf": -0.5, "iat": -1e300}), Ok(NOW + 90)),
        (json!({"nbf": u64::MAX}), Err(Refusal::NotYet)),
        (json!({"iat": 1e300}), Err(Refusal::IssuedInFuture)),
        (json!({"nbf": NOW + 30}), Ok(NOW + 90)),
        (json!({"nbf": NOW + 31}), Err(Refusal::NotYet)),
        (json!({"nbf": NOW as f64 + 30.5}), Err(Refusal::NotYet)),
        (json!({"iat": NOW + 30}), Ok(NOW + 90)),
        (json!({"iat": NOW + 31}), Err(Refusal::IssuedInFuture)),
        (json!({"iat": 0}), Ok(NOW + 90)),
    ];
    for (changes, expected) in rows {
        let found = with(changes.clone()).map(|identity| identity.expires_unix_s);
        assert_eq!(found, expected, "{changes}");
    }
    // The clock may show any time: before 1970, and at the end of time.
    assert_eq!(verifier().verify(&good_token(), i64::MAX), Err(Refusal::Expired));
    assert!(verifier().verify(&good_token(), i64::MIN).is_ok(), "it has neither nbf nor iat");
}

/// The last time that is told from a later one.
const LATEST: i64 = (1 << 53) - 1;

#[test]
fn issuer_and_audience_are_those_that_are_configured() {
    let rows = [
        (json!({"iss": "you"}), Err(Refusal::Issuer)),
        (json!({"iss": "me "}), Err(Refusal::Issuer)),
        (json!({"iss": null}), Err(Refusal::Missing(Claim::Iss))),
        (json!({"iss": ["me"]}), Err(Refusal::BadClaim(Claim::Iss))),
        (json!({"aud": "chat"}), Err(Refusal::Audience)),
        (json!({"aud": "gam"}), Err(Refusal::Audience)),
        (json!({"aud": []}), Err(Refusal::Audience)),
        (json!({"aud": null}), Err(Refusal::Missing(Claim::Aud))),
        (json!({"aud": ["chat", "game"]}), Ok(())),
        (json!({"aud": ["game", 1]}), Err(Refusal::BadClaim(Claim::Aud))),
        (json!({"aud": {"game": 1}}), Err(Refusal::BadClaim(Claim::Aud))),
    ];
    for (changes, expected) in rows {
        assert_eq!(with(changes.clone()).map(drop), expected, "{changes}");
    }
    let anybody = verifier_of(&AuthSettings::default());
    let token = signed(HEADER, &claims(json!({"iss": "you", "aud": null})), SECRET);
    assert!(anybody.verify(&token, NOW).is_ok());
}

/// Values of every type, also those that a strict reader of JSON refuses.
const ANY_VALUE: [&str; 14] = [
    "null",
    "true",
    "0",
    "-1.5",
    "1e999",
    "\"\"",
    "\"staff\"",
    "\"\\ud800\"",
    "{}",
    r#"{"a":1,"a":2}"#,
    "[]",
    "[null,1,{},[[]],\"\"]",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
    r#"{"realm_access":{"roles":[{"a":{"b":[{"c":1e999}]}}]}}"#,
];

/// A token of claims as they are written.
fn raw(claims: &str) -> String {
    signed(HEADER, claims, SECRET)
}

#[test]
fn a_claim_that_nothing_is_decided_by_never_refuses_a_token() {
    // Neither issuer nor audience is configured, and there is one tenant.
    let anybody = verifier_of(&AuthSettings::default());
    let names = [
        "iss",
        "aud",
        "tenant",
        "groups",
        "roles",
        "scope",
        "scp",
        "jti",
        "azp",
        "amr",
        "email",
        "realm_access",
        "cognito:groups",
        "firebase",
        "https://game.example/roles",
        "\u{202e}",
    ];
    for name in names {
        for value in ANY_VALUE {
            let claims = format!(r#"{{"sub":"ann","exp":{},"{name}":{value}}}"#, NOW + 60);
            let found = anybody.verify(&raw(&claims), NOW);
            assert_eq!(found.map(|i| i.user).as_deref(), Ok("ann"), "{claims}");
            let told = explain_token(&anybody, &raw(&claims), NOW).to_string();
            assert!(told.contains("accepted: user \"ann\""), "{told}");
        }
    }
    // One name twice is another matter: no two readers agree on what such a token says.
    let twice = format!(r#"{{"sub":"ann","exp":{},"foo":1,"foo":1}}"#, NOW + 60);
    assert_eq!(anybody.verify(&raw(&twice), NOW), Err(Refusal::Duplicate));
}

#[test]
fn a_claim_that_decides_has_its_type_or_is_refused_by_its_name() {
    let many = verifier_of(&AuthSettings { tenants: Tenants::Many, ..settings() });
    let good = json!({"sub": "ann", "iss": "me", "aud": "game", "exp": NOW + 60, "tenant": "t"});
    assert!(many.verify(&raw(&good.to_string()), NOW).is_ok());
    for claim in Claim::REFUSING {
        let mut others = good.as_object().unwrap().clone();
        others.remove(claim.name());
        let others = Value::Object(others).to_string();
        for value in ["null", "true", "{}", "[1]", "1e999", "\"\\ud800\""] {
            let claims = others.replacen('{', &format!("{{\"{}\":{value},", claim.name()), 1);
            let found = many.verify(&raw(&claims), NOW);
            assert_eq!(found, Err(Refusal::BadClaim(claim)), "{claims}");
        }
        let found = many.verify(&raw(&others), NOW);
        match claim {
            Claim::Nbf | Claim::Iat => assert!(found.is_ok(), "{claim:?}"),
            _ => assert_eq!(found, Err(Refusal::Missing(claim))),
        }
        let text = Refusal::Missing(claim).text();
        assert!(text.contains(claim.name()) && text.contains(claim.form()), "{text}");
    }
}

#[test]
fn groups_are_kept_by_rule_and_never_refuse_a_token() {
    let many: Vec<_> = (0..70).map(|n| n.to_string()).collect();
    let long = "a".repeat(GROUP_BYTES_MAX + 1);
    let full = "a".repeat(GROUP_BYTES_MAX);
    let rows: [(Value, &[&str], u32); 15] = [
        (json!("staff"), &["staff"], 0),
        (json!("a b,c"), &["a b,c"], 0),
        (json!(["x", "y"]), &["x", "y"], 0),
        (json!([]), &[], 0),
        (json!(""), &[], 1),
        (json!(long), &[], 1),
        (json!(1), &[], 1),
        (json!({"x": 1}), &[], 1),
        (json!(["x", 1, null, ["y"], {"name": "z"}, true, "w"]), &["x", "w"], 5),
        (json!(["", "x", long, full]), &["x", &full], 2),
        (json!(["a\u{0}", "b\n", "c\u{85}", "/org/\u{e9}quipe"]), &["/org/\u{e9}quipe"], 3),
        (
            json!(["CN=Staff,OU=Groups,DC=game,DC=example"]),
            &["CN=Staff,OU=Groups,DC=game,DC=example"],
            0,
        ),
        (json!(many), &many[..64].iter().map(|s| &**s).collect::<Vec<_>>(), 6),
        // What is left out takes no other's place.
        (json!([1, 2, 3, "x"]), &["x"], 3),
        (json!(["x", "x"]), &["x", "x"], 0),
    ];
    for (value, kept, left_out) in rows {
        let identity = with(json!({"groups": value})).expect("it is signed in");
        let found: Vec<&str> = identity.groups.iter().map(|group| &**group).collect();
        assert_eq!((&found[..], identity.groups_left_out), (kept, left_out), "{value}");
    }
    let null = claims(json!({})).replacen('{', "{\"groups\":null,", 1);
    let identity = verifier().verify(&raw(&null), NOW).expect("it is signed in");
    assert_eq!((identity.groups.len(), identity.groups_left_out), (0, 0));
    let token = raw(&claims(json!({"groups": ["x", 1]})));
    let told = explain_token(&verifier(), &token, NOW).to_string();
    assert!(told.contains("ok    groups  1 kept, 1 left out: kept are 64 strings"), "{told}");
}
