//! Keys and sets of them: which are taken, which are left out and why.

use super::*;

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
