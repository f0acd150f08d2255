//! Keys and tokens in the shapes in which identity providers publish them, made with keys of our
//! own.

use super::*;

/// A modulus of an RSA key of 1,024 bits.
const SMALL_RSA: &str = include_str!("rsa_1024_public.pem");

/// The public RSA key as a JWK, with other members over it; `null` stays.
fn rsa(members: Value) -> Value {
    over(rsa_of(RSA_PUBLIC), members)
}

fn rsa_of(pem: &str) -> Value {
    let key = jsonwebtoken::DecodingKey::from_rsa_pem(pem.as_bytes()).unwrap();
    let key = serde_json::to_value(jsonwebtoken::jwk::Jwk::from_decoding_key(&key, None).unwrap());
    let key = key.unwrap();
    json!({"kty": "RSA", "n": key["n"], "e": key["e"]})
}

fn over(mut key: Value, members: Value) -> Value {
    key.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    key
}

fn set_of(keys: &[Value]) -> KeySet {
    read_jwks(&json!({ "keys": keys }).to_string()).expect("a set")
}

/// The verdict on a token with this header and these claims, signed by the RSA or another key.
fn verdict(
    set: KeySet,
    header: &Value,
    claims: &Value,
    private: (Algorithm, &str),
) -> Result<Identity, Refusal> {
    let settings = AuthSettings {
        issuer: claims["iss"].as_str().map(str::to_owned),
        audience: Some("game".into()),
        ..AuthSettings::default()
    };
    let message = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
    let (algorithm, pem) = private;
    let key = match algorithm {
        Algorithm::Rs256 | Algorithm::Rs512 | Algorithm::Ps256 => {
            jsonwebtoken::EncodingKey::from_rsa_pem(pem.as_bytes())
        }
        Algorithm::EdDsa => jsonwebtoken::EncodingKey::from_ed_pem(pem.as_bytes()),
        _ => jsonwebtoken::EncodingKey::from_ec_pem(pem.as_bytes()),
    };
    let signature =
        jsonwebtoken::crypto::sign(message.as_bytes(), &key.unwrap(), super::signature(algorithm));
    let verifier = Verifier::new(&settings, try_keys(vec![], &[set]).unwrap());
    verifier.verify(&format!("{message}.{}", signature.unwrap()), NOW)
}

const RS256: (Algorithm, &str) = (Algorithm::Rs256, RSA_PRIVATE);

/// A second key that signs, so that each set has two, as while keys are changed.
fn other(members: Value) -> Value {
    over(json!({"kty": "RSA", "n": b64([0xc1; 256]), "e": "AQAB"}), members)
}

/// Name, set, header and claims of a token, and the number of keys that are left out.
type Provider = (&'static str, Vec<Value>, Value, Value, usize);

fn with_certificates() -> Vec<Provider> {
    let x5c = json!([base64::engine::general_purpose::STANDARD.encode([0x30; 800])]);
    let x5t = b64([7; 20]);
    let exp = NOW + 3600;
    vec![
        (
            "Keycloak",
            vec![
                rsa(json!({"kid": "b2", "alg": "RSA-OAEP", "use": "enc", "x5c": x5c, "x5t": x5t,
                           "x5t#S256": b64([7; 32])})),
                rsa(json!({"kid": "a1", "alg": "RS256", "use": "sig", "x5c": x5c, "x5t": x5t,
                           "x5t#S256": b64([7; 32])})),
            ],
            json!({"alg": "RS256", "typ": "JWT", "kid": "a1"}),
            json!({"exp": exp, "iat": NOW, "auth_time": NOW, "jti": "onrtac:7a", "typ": "Bearer",
                   "iss": "https://id.example/realms/game", "aud": ["game", "account"],
                   "sub": "f:7e0f2ad6-7f6e-4b5e-a2a5-07c4d9a5b1c2:ann", "azp": "web", "acr": "1",
                   "realm_access": {"roles": ["offline_access"]}, "scope": "openid profile",
                   "resource_access": {"account": {"roles": ["view-profile"]}},
                   "groups": ["/staff/a long name of a group in a tree of groups/of the north"]}),
            1,
        ),
        (
            "Auth0",
            vec![
                rsa(json!({"use": "sig", "kid": "NDk3", "x5t": x5t, "x5c": x5c, "alg": "RS256"})),
                other(json!({"use": "sig", "kid": "NDk4", "x5t": x5t, "alg": "RS256"})),
            ],
            json!({"alg": "RS256", "typ": "at+jwt", "kid": "NDk3"}),
            json!({"iss": "https://game.example/", "sub": "auth0|5f7c8ec7c33c6c004bbafe82",
                   "aud": ["game", "https://game.example/userinfo"], "iat": NOW, "exp": exp,
                   "scope": "openid", "gty": "password", "permissions": [],
                   "https://game.example/roles": ["admin"]}),
            0,
        ),
        (
            "Entra ID",
            vec![
                rsa(json!({"use": "sig", "kid": x5t, "x5t": x5t, "x5c": x5c,
                           "issuer": "https://id.example/{tenantid}/v2.0"})),
                other(json!({"use": "sig", "kid": "MTIz", "x5t": "MTIz", "x5c": x5c})),
            ],
            json!({"typ": "JWT", "alg": "RS256", "x5t": x5t, "kid": x5t}),
            json!({"aud": "game", "iss": "https://id.example/9122/v2.0", "iat": NOW, "nbf": NOW,
                   "exp": exp, "aio": "AWQAm/8", "sub": "AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782",
                   "tid": "9122", "ver": "2.0", "uti": "fqi", "rh": "0.AV",
                   "_claim_names": {"groups": "src1"},
                   "_claim_sources": {"src1": {"endpoint": "https://id.example/groups"}},
                   "groups": (0..70).map(|n| format!("{n:032}")).collect::<Vec<_>>()}),
            0,
        ),
    ]
}

fn without_certificates() -> Vec<Provider> {
    let exp = NOW + 3600;
    vec![
        (
            "Google",
            vec![
                rsa(json!({"kid": "b1", "use": "sig", "alg": "RS256"})),
                other(json!({"kid": "b2", "use": "sig", "alg": "RS256"})),
            ],
            json!({"alg": "RS256", "kid": "b1", "typ": "JWT"}),
            json!({"iss": "https://accounts.example", "azp": "1.apps.example", "aud": "game",
                   "sub": "110169484474386276334", "email_verified": true, "at_hash": "HK6",
                   "iat": NOW, "exp": exp}),
            0,
        ),
        (
            "Okta",
            vec![rsa(json!({"alg": "RS256", "kid": "U5R8", "use": "sig"}))],
            json!({"kid": "U5R8", "alg": "RS256"}),
            json!({"ver": 1, "jti": "AT.0m", "iss": "https://id.example/oauth2/default",
                   "aud": "game", "sub": "ann@example.org", "iat": NOW, "exp": exp, "cid": "nm",
                   "uid": "00u", "scp": ["openid"], "groups": "Everyone"}),
            0,
        ),
        (
            "Cognito",
            vec![
                rsa(json!({"alg": "RS256", "kid": "1234example=", "use": "sig"})),
                other(json!({"alg": "RS256", "kid": "5678example=", "use": "sig"})),
            ],
            json!({"kid": "1234example=", "alg": "RS256"}),
            json!({"sub": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee", "cognito:groups": ["admins"],
                   "iss": "https://idp.example/pool", "aud": "game", "token_use": "id",
                   "auth_time": NOW, "exp": exp, "iat": NOW, "version": 2}),
            0,
        ),
        (
            "Firebase",
            vec![rsa(json!({"kid": "f90f", "use": "sig", "alg": "RS256"}))],
            json!({"alg": "RS256", "kid": "f90f", "typ": "JWT"}),
            json!({"iss": "https://securetoken.example/game", "aud": "game", "auth_time": NOW,
                   "user_id": "Zg1", "sub": "Zg1", "iat": NOW, "exp": exp,
                   "firebase": {"identities": {"phone": ["+1"]}, "sign_in_provider": "phone"}}),
            0,
        ),
    ]
}

#[test]
fn the_sets_and_tokens_of_providers_are_taken_as_they_are() {
    for (name, keys, header, claims, left_out) in
        with_certificates().into_iter().chain(without_certificates())
    {
        let set = set_of(&keys);
        assert_eq!(set.skipped.len(), left_out, "{name} {:?}", set.skipped);
        assert_eq!(set.keys.len(), keys.len() - left_out, "{name}");
        let user = verdict(set, &header, &claims, RS256).map(|identity| identity.user);
        assert_eq!(user.as_deref(), Ok(claims["sub"].as_str().unwrap()), "{name}");
    }
}

/// RFC 7517 appendices A.1 and A.3; A.2 has private parts, which are not looked at.
#[test]
fn the_examples_of_the_rfc_of_sets_are_read() {
    let x = "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4";
    let y = "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM";
    let ec = json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "use": "enc", "kid": "1"});
    let signs = rsa(json!({"alg": "RS256", "kid": "2011-04-29"}));
    let set = set_of(&[ec, signs]);
    assert_eq!((set.keys.len(), set.keys[0].id()), (1, Some("2011-04-29")));
    let told = &set.skipped[0];
    assert_eq!(told.at, "keys[0] (kid \"1\")");
    assert_eq!(told.rule, "is not for signatures: its use is \"enc\"");
    let oct = [
        json!({"kty": "oct", "alg": "A128KW", "k": "GawgguFyGrWKav7AX4VKUg"}),
        json!({"kty": "oct", "k": b64(SECRET), "kid": "HMAC key used in JWS spec example"}),
    ];
    let why = read_jwks(&json!({ "keys": oct }).to_string()).unwrap_err();
    assert!(why.contains("has no key that verifies tokens; keys[0] is a shared secret"), "{why}");
}

#[test]
fn a_key_that_cannot_be_used_is_left_out_with_the_reason_and_the_set_is_taken() {
    let ec = jwk_of_ec(&key_pair(&rcgen::PKCS_ECDSA_P256_SHA256));
    let good = rsa(json!({"kid": "good", "alg": "RS256"}));
    let long = "a".repeat(300);
    let rows = [
        (json!({"kty": "new", "kid": "x"}), "is of the type \"new\"; known are RSA, EC on P-256"),
        (json!({"kty": long}), "...; known are"),
        (json!({"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA"}), "\"EC\" on \"P-521\""),
        (json!({"kty": "OKP", "crv": "Ed448", "x": "AA"}), "\"OKP\" on \"Ed448\""),
        (json!({"kty": "OKP", "crv": "X25519", "x": "AA"}), "\"OKP\" on \"X25519\""),
        (json!({"kty": "AKP", "alg": "ML-DSA-44", "pub": "AA"}), "\"AKP\""),
        (json!({"kid": "x"}), "has no kty"),
        (json!({"kty": 1}), "has a kty that is no string"),
        (json!({"kty": "oct", "k": b64(SECRET), "alg": "HS256"}), "is a shared secret"),
        (rsa(json!({"use": "enc"})), "its use is \"enc\""),
        (rsa(json!({"key_ops": ["encrypt", "wrapKey"]})), "not for verifying (key_ops)"),
        (rsa(json!({"key_ops": "verify"})), "not for verifying (key_ops)"),
        (rsa(json!({"alg": "RSA-OAEP-256"})), "\"RSA-OAEP-256\"; keys of its type are for RS256"),
        (rsa(json!({"alg": "HS256"})), "has the alg \"HS256\""),
        (rsa(json!({"alg": "\u{202e}"})), "\"\\u{202e}\""),
        (over(ec.clone(), json!({"alg": "ES512"})), "keys of its type are for ES256"),
        (over(ec.clone(), json!({"x": "AAAA"})), "two lengths"),
        (rsa(json!({"n": "+/+/"})), "has a n that is not base64url"),
        (rsa(json!({"e": null})), "has no e"),
        (rsa(json!({"kid": ""})), "has a kid that is not 1 to 128 bytes"),
        (rsa(json!({"kid": 7})), "has a kid that is no string"),
        (rsa_of(SMALL_RSA), "is an RSA key of 1024 bits; 2048 to 8192 are accepted"),
        (good.clone(), "has the kid and the algorithm of an earlier one"),
        (json!(["RSA"]), "is no object"),
        (json!(null), "is no object"),
    ];
    for (bad, why) in rows {
        let set = set_of(&[good.clone(), bad.clone()]);
        assert_eq!((set.keys.len(), set.skipped.len()), (1, 1), "{bad} {:?}", set.skipped);
        let BadKey { at, rule } = &set.skipped[0];
        assert!(at.starts_with("keys[1]") && rule.contains(why), "{at} {rule}\n{why}");
        assert!(rule.chars().all(is_plain) && rule.len() < 200, "{rule}");
    }
    // One key with a name twice, or too deep, is no reason to refuse the others.
    let good = good.to_string();
    let deep = format!("{{\"kty\":{}1{}}}", "[".repeat(500), "]".repeat(500));
    for (bad, why) in [(r#"{"kty":"RSA","kty":"EC"}"#, "one name twice"), (&*deep, "too deep")] {
        let set =
            read_jwks(&format!("{{\"keys\":[{good},{bad}],\"more\":{deep}}}")).expect("a set");
        assert!(set.keys.len() == 1 && set.skipped[0].rule.contains(why), "{:?}", set.skipped);
    }
    let why = read_jwks(r#"{"keys":[],"keys":[]}"#).unwrap_err();
    assert_eq!(why, "has one name twice");
}

fn jwk_of_ec(pair: &KeyPair) -> Value {
    let (x, y) = pair.der_bytes()[1..].split_at(32);
    json!({"kty": "EC", "crv": "P-256", "x": b64(x), "y": b64(y)})
}

#[test]
fn members_that_are_null_padded_or_longer_than_they_need_be_do_no_harm() {
    let n = rsa(json!({}))["n"].as_str().unwrap().to_owned();
    let zero = b64([&[0][..], &URL_SAFE_NO_PAD.decode(&n).unwrap()].concat());
    for members in [
        json!({"use": null, "alg": null, "key_ops": null, "crv": null, "x5c": null}),
        json!({"key_ops": ["sign", "verify"], "ext": true, "crv": 1}),
        json!({"n": n + "=="}),
        json!({"n": zero}),
    ] {
        let set = set_of(&[rsa(over(json!({"kid": "k"}), members.clone()))]);
        let header = json!({"alg": "RS256", "kid": "k"});
        let claims = json!({"sub": "ann", "aud": "game", "exp": NOW + 60});
        assert!(verdict(set, &header, &claims, RS256).is_ok(), "{members}");
    }
}

#[test]
fn a_key_is_chosen_by_all_that_the_token_says() {
    let (ec, ed) = (key_pair(&rcgen::PKCS_ECDSA_P256_SHA256), key_pair(&rcgen::PKCS_ED25519));
    let named = |key: Value, more: Value| over(over(key, json!({"kid": "k"})), more);
    let okp = json!({"kty": "OKP", "crv": "Ed25519", "x": b64(ed.der_bytes())});
    // One name: a key for encryption, one for each of two algorithms of RSA, and other types.
    let keys = [
        named(rsa(json!({})), json!({"use": "enc", "alg": "RSA-OAEP"})),
        named(rsa(json!({})), json!({"alg": "RS256"})),
        named(rsa(json!({})), json!({"alg": "PS256"})),
        named(jwk_of_ec(&ec), json!({})),
        named(okp.clone(), json!({"alg": "Ed25519"})),
    ];
    let (ec_pem, ed_pem) = (ec.serialize_pem(), ed.serialize_pem());
    let claims = json!({"sub": "ann", "aud": "game", "exp": NOW + 60});
    let signers = [
        ("RS256", RS256),
        ("PS256", (Algorithm::Ps256, RSA_PRIVATE)),
        ("ES256", (Algorithm::Es256, &*ec_pem)),
        ("EdDSA", (Algorithm::EdDsa, &*ed_pem)),
        ("Ed25519", (Algorithm::EdDsa, &*ed_pem)),
    ];
    for (alg, signer) in signers {
        for header in [json!({"alg": alg, "kid": "k"}), json!({"alg": alg})] {
            let found = verdict(set_of(&keys), &header, &claims, signer);
            assert!(found.is_ok(), "{header} {found:?}");
        }
        let strange = verdict(set_of(&keys), &json!({"alg": alg, "kid": "K"}), &claims, signer);
        assert_eq!(strange, Err(Refusal::UnknownKey), "{alg}");
    }
    let rs512 = (Algorithm::Rs512, RSA_PRIVATE);
    let found = verdict(set_of(&keys), &json!({"alg": "RS512", "kid": "k"}), &claims, rs512);
    assert_eq!(found, Err(Refusal::Algorithm), "a key is used with its own algorithm only");
    // The public key of a set as a shared secret.
    let mac = signed(r#"{"alg":"HS256","kid":"k"}"#, &claims.to_string(), RSA_PUBLIC.as_bytes());
    let verifier =
        Verifier::new(&AuthSettings::default(), try_keys(vec![], &[set_of(&keys)]).unwrap());
    assert_eq!(verifier.verify(&mac, NOW), Err(Refusal::Algorithm));
    // Both names of the algorithm, of a token and of a key, in each combination.
    for alg in [json!("Ed25519"), json!("EdDSA"), json!(null)] {
        for name in ["Ed25519", "EdDSA"] {
            let set = set_of(&[named(okp.clone(), json!({ "alg": alg }))]);
            let header = json!({"alg": name, "kid": "k"});
            let found = verdict(set, &header, &claims, (Algorithm::EdDsa, &ed_pem));
            assert!(found.is_ok(), "{alg} {name} {found:?}");
        }
    }
}

#[test]
fn a_refused_algorithm_is_told_with_those_that_are_accepted() {
    let text = Refusal::Algorithm.text();
    for (name, _) in Algorithm::NAMED {
        assert!(text.contains(name), "{text}: {name}");
    }
    assert_eq!(Algorithm::from_name("Ed25519"), Some(Algorithm::EdDsa));
    assert_eq!(Algorithm::EdDsa.name(), "EdDSA", "the name that all readers know");
}
