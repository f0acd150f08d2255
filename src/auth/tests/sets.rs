//! Keys and sets of keys: the accepted ones, and those that are left out with the reasons.

use super::*;

/// RFC 7515 appendices A.1 and A.3: the signatures hold, and then there is no `sub`.
#[test]
fn the_examples_of_the_rfc_hold() {
    const CLAIMS: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNv\
                          bS9pc19yb290Ijp0cnVlfQ";
    const HS: (&str, &str) =
        ("eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9", "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
    const ES: (&str, &str) = (
        "eyJhbGciOiJFUzI1NiJ9",
        "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
    );
    let secret = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1\
                  Z9CAow";
    let secret = URL_SAFE_NO_PAD.decode(secret).unwrap();
    let set = json!({"keys": [{
        "kty": "EC",
        "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    }]});
    let set = read_jwks(&set.to_string()).unwrap();
    let keys = try_keys(vec![keyed("a", Algorithm::Hs256, &secret)], &[set]).unwrap();
    let verifier = Verifier::new(&AuthSettings::default(), keys);
    for (header, signature) in [HS, ES] {
        let token = format!("{header}.{CLAIMS}.{signature}");
        let found = verifier.verify(&token, 1_300_819_379);
        assert_eq!(found, Err(Refusal::Missing(Claim::Sub)), "{header}");
        let token =
            format!("{header}.{CLAIMS}.{}", signature.replacen('d', "e", 1).replacen('D', "E", 1));
        assert_eq!(verifier.verify(&token, 1_300_819_379), Err(Refusal::Signature));
    }
}

#[test]
fn keys_that_are_none_are_told_and_not_used() {
    let p256 = key_pair(&rcgen::PKCS_ECDSA_P256_SHA256);
    let small = include_str!("rsa_1024_public.pem");
    let public = p256.public_key_pem();
    let rows: [(Algorithm, &[u8], &str); 9] = [
        (Algorithm::Hs256, &[0; 31], "at least 32 bytes"),
        (Algorithm::Hs512, &[0; 63], "at least 64 bytes"),
        (Algorithm::Es384, public.as_bytes(), "not a key on P-384"),
        (Algorithm::EdDsa, public.as_bytes(), "not a public key for EdDSA"),
        (Algorithm::Rs256, public.as_bytes(), "not a public key for RS256"),
        (Algorithm::Rs256, small.as_bytes(), "RSA key of 1024 bits"),
        (Algorithm::Rs256, RSA_PRIVATE.as_bytes(), "BEGIN PUBLIC KEY"),
        (Algorithm::Rs256, b"", "BEGIN PUBLIC KEY"),
        (
            Algorithm::Es256,
            b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
            "not a",
        ),
    ];
    for (algorithm, text, expected) in rows {
        let found = try_keys(vec![keyed("a", algorithm, text)], &[]).expect_err(expected);
        assert!(found.starts_with("auth_key[0]."), "{found}");
        assert!(found.contains(expected), "{found}: {expected}");
    }
}

/// The public key as a JWK.
fn jwk_of(pair: &KeyPair, curve: &str, kid: &str) -> Value {
    let raw = pair.der_bytes();
    match curve {
        "Ed25519" => json!({"kty": "OKP", "crv": curve, "x": b64(raw), "kid": kid}),
        _ => {
            let (x, y) = raw[1..].split_at((raw.len() - 1) / 2);
            json!({"kty": "EC", "crv": curve, "x": b64(x), "y": b64(y), "kid": kid})
        }
    }
}

#[test]
fn a_jwk_set_is_read_and_each_key_pinned() {
    let p256 = key_pair(&rcgen::PKCS_ECDSA_P256_SHA256);
    let ed = key_pair(&rcgen::PKCS_ED25519);
    let rsa = jsonwebtoken::DecodingKey::from_rsa_pem(RSA_PUBLIC.as_bytes()).unwrap();
    let rsa = jsonwebtoken::jwk::Jwk::from_decoding_key(&rsa, None).unwrap();
    let mut rsa = serde_json::to_value(rsa).unwrap();
    rsa["kid"] = "rsa".into();
    let changed = |of: &Value, name: &str, to: Value| {
        let mut key = of.clone();
        key[name] = to;
        key["kid"] = "changed".into();
        key
    };
    let (ec, okp) = (jwk_of(&p256, "P-256", "ec"), jwk_of(&ed, "Ed25519", "ed"));
    let skipped = [
        changed(&ec, "use", "enc".into()),
        changed(&ec, "key_ops", json!(["sign"])),
        changed(&ec, "alg", "ES384".into()),
        changed(&ec, "alg", "HS256".into()),
        changed(&rsa, "alg", "HS256".into()),
        changed(&rsa, "alg", "RSA-OAEP".into()),
        changed(&ec, "crv", "secp256k1".into()),
        changed(&ec, "crv", "P-384".into()),
        changed(&ec, "x", "AAAA".into()),
        changed(&ec, "x", "not base64!".into()),
        changed(&ec, "y", Value::Null),
        changed(&rsa, "n", "AQAB".into()),
        changed(&okp, "x", "".into()),
        json!({"kty": "oct", "k": b64(SECRET), "alg": "HS256", "kid": "changed"}),
        json!({"kty": "new"}),
        json!(1),
        ec.clone(),
    ];
    let mut list = vec![ec.clone(), okp.clone(), rsa.clone()];
    list.extend(skipped.clone());
    let set = read_jwks(&json!({ "keys": list, "other": 1 }).to_string()).expect("a set");
    let found: Vec<_> = set.keys.iter().map(|k| (k.id().unwrap(), k.algorithm())).collect();
    let expected = [("ec", Algorithm::Es256), ("ed", Algorithm::EdDsa), ("rsa", Algorithm::Rs256)];
    assert_eq!(found, expected);
    assert_eq!(set.skipped.len(), skipped.len(), "{:#?}", set.skipped);

    let verifier = Verifier::new(&settings(), try_keys(vec![], &[set]).unwrap());
    for (kid, algorithm, pem) in [
        ("ec", Algorithm::Es256, p256.serialize_pem()),
        ("ed", Algorithm::EdDsa, ed.serialize_pem()),
        ("rsa", Algorithm::Rs256, RSA_PRIVATE.into()),
    ] {
        let wanted = Wanted { key_id: Some(kid), ..wanted(algorithm) };
        let token = mint(&wanted, SigningKey::Private(pem.as_bytes())).unwrap();
        assert!(verifier.verify(&token, NOW).is_ok(), "{kid}");
    }
    for bad in ["", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[]}"#, r#"{"keys":[],"keys":[]}"#] {
        assert!(read_jwks(bad).is_err(), "{bad}");
    }
    let many = vec![ec; JWKS_KEYS_MAX + 1];
    assert!(read_jwks(&json!({ "keys": many }).to_string()).unwrap_err().contains("at most 128"));
}

#[test]
fn the_configurations_key_stands_before_one_of_a_set() {
    let p256 = key_pair(&rcgen::PKCS_ECDSA_P256_SHA256);
    let set = read_jwks(&json!({"keys": [jwk_of(&p256, "P-256", "a")]}).to_string()).unwrap();
    let keys = try_keys(vec![keyed("a", Algorithm::Hs256, SECRET)], &[set]).unwrap();
    assert_eq!((keys.len(), keys.is_empty()), (1, false));
    assert!(Verifier::new(&settings(), keys).verify(&good_token(), NOW).is_ok());
}

#[test]
fn a_key_may_come_with_a_newer_set_only_where_one_can_bring_it() {
    let ec = key_pair(&rcgen::PKCS_ECDSA_P256_SHA256);
    let ec_pem = ec.serialize_pem();
    let token = |algorithm, key_id, private: SigningKey<'_>| {
        mint(&Wanted { key_id, ..wanted(algorithm) }, private).unwrap()
    };
    let es = |key_id| token(Algorithm::Es256, key_id, SigningKey::Private(ec_pem.as_bytes()));
    let hs = token(Algorithm::Hs256, None, SigningKey::Secret(SECRET));
    let of = |fetches: bool, own: &[&str], fetched: &[&str], at: Option<i64>| {
        let public = ec.public_key_pem();
        let own = own.iter().map(|id| keyed(id, Algorithm::Es256, public.as_bytes())).collect();
        let list: Vec<Value> = fetched.iter().map(|id| jwk_of(&ec, "P-256", id)).collect();
        let set = at.map(|_| read_jwks(&json!({ "keys": list }).to_string()).unwrap());
        let set = set.map(|set| KeySet { fetched: at.map(FetchedAt::new), ..set });
        let jwks_url = fetches.then(|| "https://id.example/keys".to_owned());
        let settings = AuthSettings { jwks_url, ..settings() };
        Verifier::new(&settings, try_keys(own, set.as_slice()).unwrap())
    };
    let (old, fresh) = (Some(NOW - EARLY_FETCH_S as i64 - 1), Some(NOW - EARLY_FETCH_S as i64));
    let (x, none) = (es(Some("x")), es(None));
    for (verifier, token, expected, what) in [
        (of(false, &["a"], &[], None), &x, false, "nothing is fetched"),
        (of(true, &["a"], &[], None), &x, true, "nothing was fetched yet"),
        (of(true, &["a"], &["b"], old), &x, true, "an old set"),
        (of(true, &["a"], &["b"], fresh), &x, false, "a fresh set"),
        (of(true, &["a"], &["x"], old), &x, false, "the key is there"),
        (of(true, &[], &["a", "b"], old), &none, true, "one of two may go"),
        (of(true, &["a"], &["b"], old), &none, true, "that of the set may go"),
        (of(true, &["a", "b"], &["c"], old), &none, false, "there are two in any case"),
        (of(true, &["a"], &[], None), &none, false, "it has its one candidate"),
        (of(true, &["a"], &[], None), &hs, false, "no set brings a secret"),
    ] {
        let may_come = verifier.judge(token, NOW) == Err(NotAccepted::LacksKeys(KeyOwner::Auth));
        assert_eq!(may_come, expected, "{what}");
    }
    let behind = of(true, &[], &["a"], old);
    for bad in ["no token", &with_jku()] {
        let judged = behind.judge(bad, NOW);
        assert!(
            matches!(judged, Err(NotAccepted::Refused(_))),
            "what is bad whatever the keys are"
        );
    }
}

fn with_jku() -> String {
    let header = r#"{"alg":"HS256","kid":"x","jku":"http://127.0.0.1:1/"}"#;
    signed(header, &claims(json!({})), SECRET)
}
