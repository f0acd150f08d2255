//! `shardgate gen token` and `shardgate check token`: makes a token for this configuration, or
//! explains why the gateway takes one or does not.

use std::io::Read;
use std::path::PathBuf;

use clap::Args;

use super::{EXIT_START, EXIT_USAGE, Output};
use crate::auth::explain::explain_token;
use crate::auth::keys::read_jwks;
use crate::auth::load::{FetchedSets, LocalKeys};
use crate::auth::mint::{SigningKey, Wanted, mint};
use crate::auth::{KeyOwner, TOKEN_BYTES_MAX};
use crate::clock::unix_now_s;
use crate::config::settings::{AuthKey, Tenants, UnknownTenant};
use crate::config::{Config, Problems, program};
use crate::control::jwks_fetch::{FETCH_TIMEOUT, fetch_jwks};
use crate::tls::authorities::KeyAuthorities;

/// Claims of a token to make.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct NewToken {
    /// User of the token: the claim sub
    #[arg(long)]
    pub user: String,
    /// The claim tenant; with auth.tenants = "many" there must be one
    #[arg(long)]
    pub tenant: Option<String>,
    /// The claim groups; may be given several times
    #[arg(long = "group", value_name = "GROUP")]
    pub groups: Vec<String>,
    /// Seconds until it expires
    #[arg(long, value_name = "S", default_value_t = 3600)]
    pub lifetime_s: u32,
    /// Id of the [[auth_key]] to sign with [default: the only one]
    #[arg(long, value_name = "ID")]
    pub key: Option<String>,
    /// Private key of that id, PEM; keys with a shared secret need none
    #[arg(long, value_name = "FILE")]
    pub private_key: Option<PathBuf>,
}

/// Makes a token. It goes to stdout and nowhere else.
pub fn generate(loaded: Result<Config, Problems>, new: &NewToken) -> Output {
    let made = loaded.map_err(|problems| problems.to_string());
    match made.and_then(|config| make(&config, new)) {
        Ok(token) => Output::fine(token),
        Err(why) => Output::wrong(why, EXIT_USAGE),
    }
}

fn make(config: &Config, new: &NewToken) -> Result<String, String> {
    let auth = &config.gateway.auth;
    if auth.tenants == Tenants::Many && new.tenant.is_none() {
        let why = "--tenant must say to which tenant the user belongs: auth.tenants is \"many\", \
                   and a token without one is refused";
        return Err(why.into());
    }
    let signer = Signer::of(config, new.tenant.as_deref())?;
    let keys = LocalKeys::read(config).map_err(|problems| problems.to_string())?;
    let index = match &new.key {
        Some(id) => signer.keys.iter().position(|key| *key.id == **id),
        None => (signer.keys.len() == 1).then_some(0),
    };
    let index = index.ok_or_else(|| {
        let known: Vec<&str> = signer.keys.iter().map(|key| &*key.id).collect();
        let (whose, known) = (signer.whose(), known.join(", "));
        format!("--key must be the id of an [[auth_key]]; {whose} has: {known}")
    })?;
    let key = &signer.keys[index];
    let private = new.private_key.as_ref().map(std::fs::read).transpose();
    let private = private.map_err(|error| format!("--private-key: {error}"))?;
    let signing = match (&private, key.algorithm.secret_bytes_min()) {
        (None, Some(_)) => {
            let secret = keys
                .text(&signer.owner, index)
                .ok_or("auth.mode must be \"jwt\" to sign with a key")?;
            SigningKey::Secret(secret)
        }
        (Some(pem), None) => SigningKey::Private(pem),
        (None, None) => {
            return Err(format!(
                "--private-key must name the file with the private key of {:?}",
                key.id
            ));
        }
        (Some(_), Some(_)) => {
            return Err(format!(
                "--private-key does not fit {:?}, which has a shared secret",
                key.id
            ));
        }
    };
    let wanted = Wanted {
        algorithm: key.algorithm,
        key_id: Some(&key.id),
        user: &new.user,
        tenant: new.tenant.as_deref(),
        groups: &new.groups,
        issuer: signer.issuer,
        audience: signer.audience,
        now_unix_s: unix_now_s(),
        lifetime_s: new.lifetime_s,
    };
    mint(&wanted, signing)
}

/// The party that signs the tokens of a tenant, and what it writes into them.
struct Signer<'a> {
    owner: KeyOwner,
    keys: &'a [AuthKey],
    issuer: Option<&'a str>,
    audience: Option<&'a str>,
}

impl<'a> Signer<'a> {
    /// The signer of the tokens of `tenant`: itself, if it has keys of its own.
    fn of(config: &'a Config, tenant: Option<&str>) -> Result<Self, String> {
        let auth = &config.gateway.auth;
        let many = auth.tenants == Tenants::Many;
        let tenant = tenant.filter(|_| many);
        let found = config.tenants.iter().find(|known| Some(&*known.name) == tenant);
        if let Some(tenant) = tenant.filter(|_| found.is_none())
            && auth.unknown_tenant == UnknownTenant::Refuse
        {
            let known: Vec<&str> = config.tenants.iter().map(|tenant| &*tenant.name).collect();
            return Err(format!(
                "--tenant must be the name of a [[tenant]], because auth.unknown_tenant is \
                 \"refuse\": {tenant:?} is none; the configuration has: {}",
                known.join(", ")
            ));
        }
        if let Some(tenant) = found
            && let Some(tokens) = &tenant.tokens
        {
            if tokens.keys.is_empty() {
                return Err(format!(
                    "no [[tenant.auth_key]] of tenant {:?} signs tokens: its keys come from a JWK \
                     set, and its provider signs",
                    tenant.name
                ));
            }
            return Ok(Self {
                owner: KeyOwner::Tenant(tenant.name.clone()),
                keys: &tokens.keys,
                issuer: tokens.issuer.as_deref(),
                audience: tokens.audience.as_deref(),
            });
        }
        if auth.keys.is_empty() {
            let why = "no [[auth_key]] signs tokens: set auth.mode = \"jwt\", and add to \
                       gateway.toml an [[auth_key]] with id = \"k1\", algorithm = \"HS256\" and \
                       secret = what `openssl rand -hex 32` prints";
            return Err(format!("{why}; more: {} guide tokens", program()));
        }
        Ok(Self {
            owner: KeyOwner::Auth,
            keys: &auth.keys,
            issuer: auth.issuer.as_deref(),
            audience: auth.audience.as_deref(),
        })
    }

    fn whose(&self) -> String {
        match &self.owner {
            KeyOwner::Auth => "the configuration".into(),
            KeyOwner::Tenant(name) => format!("tenant {name}"),
        }
    }
}

/// Fetches the set of the keys that `token` is checked with, if they are fetched. The error says
/// what is missing.
fn fetch_for(
    config: &Config,
    authorities: &KeyAuthorities,
    owner: &KeyOwner,
) -> Result<FetchedSets, String> {
    let (url, authorities, whose) = match owner {
        KeyOwner::Auth => {
            let url = config.gateway.auth.jwks_url.as_deref();
            (url, authorities.common.clone(), "auth.jwks_url".to_owned())
        }
        KeyOwner::Tenant(name) => {
            let tenant = config.tenants.iter().find(|tenant| tenant.name == *name);
            let tokens = tenant.and_then(|tenant| tenant.tokens.as_ref());
            let url = tokens.and_then(|tokens| tokens.jwks_url.as_deref());
            (url, authorities.of_tenant(name), format!("the jwks_url of tenant {name}"))
        }
    };
    let Some(url) = url else { return Ok(FetchedSets::default()) };
    let text = fetch_jwks(url, &authorities, FETCH_TIMEOUT);
    let set = text.and_then(|text| read_jwks(&text));
    let set = set.map_err(|why| format!("note: the keys of {whose} are missing: {why}\n"))?;
    Ok(FetchedSets::from([(owner.clone(), set)]))
}

/// Explains the token in `input`: not an argument, which every process of the machine could read.
pub fn explain(loaded: Result<Config, Problems>, input: impl Read) -> Output {
    let config = match loaded {
        Ok(config) => config,
        Err(problems) => return Output::wrong(problems.to_string(), EXIT_USAGE),
    };
    let files = Problems::join(LocalKeys::read(&config), KeyAuthorities::read(&config));
    let (keys, authorities) = match files {
        Ok(files) => files,
        Err(problems) => return Output::wrong(problems.to_string(), EXIT_USAGE),
    };
    let mut text = String::new();
    // One byte more than a token and its line's end, so that one too long is refused.
    if input.take(TOKEN_BYTES_MAX as u64 + 3).read_to_string(&mut text).is_err() {
        return Output::wrong("stdin has no token: give one with `< FILE`".into(), EXIT_USAGE);
    }
    let text = text.trim();
    let Some(mut verifier) = keys.verifier(&config, &FetchedSets::default()) else {
        return Output::wrong(
            "auth.mode is \"off\", so no token is checked: set it to \"jwt\"".into(),
            EXIT_USAGE,
        );
    };
    let mut out = String::new();
    match verifier.owner(text).map(|owner| fetch_for(&config, &authorities, owner)) {
        Some(Ok(fetched)) => verifier = keys.verifier(&config, &fetched).unwrap_or(verifier),
        Some(Err(note)) => out += &note,
        None => {}
    }
    let explanation = explain_token(&verifier, text, unix_now_s());
    out += &explanation.to_string();
    match explanation.verdict {
        Ok(_) => Output::fine(out),
        Err(_) => Output::wrong(out, EXIT_START),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;
    use crate::config::load::{Files, from_files};

    fn config() -> Result<Config, Problems> {
        config_of("one")
    }

    fn config_of(tenants: &str) -> Result<Config, Problems> {
        let tenants = format!("\"{tenants}\"");
        let env = [
            ("SHARDGATE__AUTH__MODE", "\"jwt\""),
            ("SHARDGATE__AUTH__TENANTS", &tenants),
            ("SHARDGATE__AUTH__ISSUER", "\"us\""),
            ("SHARDGATE__AUTH__AUDIENCE", "\"game\""),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut files = Files::embedded();
        let key = "secret = \"01234567890123456789012345678901\"";
        files.gateway.text += &format!("[[auth_key]]\nid = \"k\"\nalgorithm = \"HS256\"\n{key}\n");
        from_files(files, &env, &Overrides::default())
    }

    #[test]
    fn what_is_made_is_accepted_and_what_was_changed_is_told() {
        let new = NewToken { user: "alice".into(), lifetime_s: 60, ..NewToken::default() };
        let Output { text, code, .. } = generate(config(), &new);
        assert_eq!(code, 0, "{text}");
        let good = explain(config(), format!("{text}\n").as_bytes());
        assert_eq!(good.code, 0, "{}", good.text);
        assert!(good.text.contains("accepted: user \"alice\""), "{}", good.text);
        let bad = explain(config(), format!("{text}x").as_bytes());
        assert_eq!(bad.code, EXIT_START);
        assert!(bad.text.contains("refused: "), "{}", bad.text);
        assert!(!bad.text.contains("0123456789"), "no key is shown: {}", bad.text);
    }

    #[test]
    fn a_token_that_its_own_configuration_refuses_is_not_made() {
        let mut new = NewToken { user: "alice".into(), lifetime_s: 60, ..NewToken::default() };
        let Output { text, code, .. } = generate(config_of("many"), &new);
        assert_eq!(code, EXIT_USAGE, "{text}");
        assert!(text.contains("--tenant") && text.contains("auth.tenants is \"many\""), "{text}");
        new.tenant = Some("acme".into());
        let Output { text, code, .. } = generate(config_of("many"), &new);
        assert_eq!(code, 0, "{text}");
        let good = explain(config_of("many"), text.as_bytes());
        assert!(good.text.contains("accepted: user \"alice\" of tenant acme"), "{}", good.text);
    }

    #[test]
    fn a_key_that_is_not_there_is_told_with_those_that_are() {
        let key = Some("x".into());
        let new = NewToken { user: "alice".into(), key, ..NewToken::default() };
        let Output { text, code, .. } = generate(config(), &new);
        assert_eq!((code, text.contains("has: k")), (EXIT_USAGE, true), "{text}");
    }
}
