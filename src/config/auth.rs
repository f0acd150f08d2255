//! The keys of `[auth]` and `[[auth_key]]`, which tenants have, too.

use std::net::IpAddr;

use super::reader::Reader;
use super::rule::{Bounds, DAY_MS, MINUTE_MS, TextRule};
use super::settings::*;
use super::words::{NAME_RULE, is_name};

/// Largest number of `[[auth_key]]`: an issuer has two while it changes them; 64 issuers is a lot.
const KEYS_MAX: usize = 128;
/// Longest issuer, audience and URL.
const TEXT_BYTES_MAX: usize = 1024;

/// Reads `[auth]` and `[[auth_key]]`.
pub(crate) fn auth(r: &mut Reader) -> AuthSettings {
    let d = AuthSettings::default();
    let modes = [("off", AuthMode::Off), ("jwt", AuthMode::Jwt)];
    let tenants = [("one", Tenants::One), ("many", Tenants::Many)];
    let unknown = [("default", UnknownTenant::Default), ("refuse", UnknownTenant::Refuse)];
    let tokens = tokens(r, "", &OF_AUTH);
    let mode = r.word("auth.mode", d.mode, &modes);
    if mode == AuthMode::Jwt && has_keys(r, "", &tokens) {
        warn_of_any(r, &OF_AUTH, &tokens);
    }
    let TenantTokens { issuer, audience, jwks_file, jwks_url, jwks_ca_file, keys } = tokens;
    let settings = AuthSettings {
        mode,
        issuer,
        audience,
        leeway: r.seconds("auth.leeway_s", d.leeway, Bounds::new(0, 60)),
        timeout: r.milliseconds("auth.timeout_ms", d.timeout, Bounds::new(100, 10 * MINUTE_MS)),
        required: r.boolean("auth.required", d.required),
        tenants: r.word("auth.tenants", d.tenants, &tenants),
        unknown_tenant: r.word("auth.unknown_tenant", d.unknown_tenant, &unknown),
        jwks_file,
        jwks_url,
        jwks_ca_file,
        jwks_refresh: r.seconds(
            "auth.jwks_refresh_s",
            d.jwks_refresh,
            Bounds::new(10, DAY_MS / 1000),
        ),
        keys,
    };
    if settings.mode == AuthMode::Off && settings.required {
        let rule = "nobody could connect with auth.mode = \"off\"; set it to \"jwt\"";
        r.problem("auth.required", rule);
    }
    settings
}

/// Notes that there is no key at all to verify tokens with: neither in `[auth]` nor in a tenant,
/// and none can come with a tenant of a source.
pub(super) fn check_keys(r: &mut Reader, s: &GatewaySettings, tenants: &[TenantSettings]) {
    let by_tenants = tenants.iter().any(|tenant| tenant.tokens.is_some());
    let is_lacking = !auth_has_keys(r, &s.auth) && !by_tenants && !s.has_tenant_source();
    if s.auth.mode == AuthMode::Jwt && is_lacking {
        let rule = "needs a key to verify tokens with: add an [[auth_key]], or set \
                    auth.jwks_file or auth.jwks_url";
        r.problem("auth.mode", rule);
    }
}

/// Names of the keys, besides `[[auth_key]]`, that say which tokens are accepted.
pub(super) struct TokenKeys {
    pub issuer: &'static str,
    pub audience: &'static str,
    pub jwks_file: &'static str,
    pub jwks_url: &'static str,
    pub jwks_ca_file: &'static str,
}

/// Names in `[auth]`.
const OF_AUTH: TokenKeys = TokenKeys {
    issuer: "auth.issuer",
    audience: "auth.audience",
    jwks_file: "auth.jwks_file",
    jwks_url: "auth.jwks_url",
    jwks_ca_file: "auth.jwks_ca_file",
};

/// Reads the keys in `names`, and the list `auth_key` beside them. `prefix` is that of the table
/// that they are in.
pub(super) fn tokens(r: &mut Reader, prefix: &str, names: &TokenKeys) -> TenantTokens {
    TenantTokens {
        issuer: optional(r, names.issuer, is_line, LINE_RULE),
        audience: optional(r, names.audience, is_line, LINE_RULE),
        jwks_file: r.file(names.jwks_file),
        jwks_url: optional(r, names.jwks_url, is_key_url, URL_RULE),
        jwks_ca_file: r.file(names.jwks_ca_file),
        keys: keys(r, prefix),
    }
}

/// Whether there is a key among `tokens`, which `r` read in a table with this prefix, or one that
/// was refused.
pub(super) fn has_keys(r: &Reader, prefix: &str, tokens: &TenantTokens) -> bool {
    let TenantTokens { jwks_file, jwks_url, keys, .. } = tokens;
    !keys.is_empty() || jwks_file.is_some() || jwks_url.is_some() || has_refused_key(r, prefix)
}

/// Whether `[auth]` has a key, or one that was refused.
pub(super) fn auth_has_keys(r: &Reader, auth: &AuthSettings) -> bool {
    let is_given = !auth.keys.is_empty() || auth.jwks_file.is_some() || auth.jwks_url.is_some();
    is_given || has_refused_key(r, "")
}

/// Whether a key of the list `auth_key` in a table with this prefix was refused, which has its
/// problem then. An empty list has none.
fn has_refused_key(r: &Reader, prefix: &str) -> bool {
    let list = format!("{prefix}auth_key");
    r.report.problems.iter().any(|problem| problem.key.starts_with(&list))
}

/// Warns of tokens that are accepted although they may be for others.
pub(super) fn warn_of_any(r: &mut Reader, names: &TokenKeys, tokens: &TenantTokens) {
    let https = |url: &String| url.starts_with("https://");
    if tokens.jwks_ca_file.is_some() && !tokens.jwks_url.as_ref().is_some_and(https) {
        let rule = format!(
            "without effect: nothing is fetched over https; set {} to an https:// URL",
            names.jwks_url
        );
        r.warning(names.jwks_ca_file, rule);
    }
    if tokens.issuer.is_none() {
        let rule = "tokens of any issuer that has one of the keys are accepted; set it to the \
                    claim iss of your tokens";
        r.warning(names.issuer, rule);
    }
    if tokens.audience.is_none() {
        let rule = "tokens that were made for other programs are accepted, too; set it to the \
                    claim aud of tokens for this gateway";
        r.warning(names.audience, rule);
    }
}

const LINE_RULE: TextRule = TextRule::new("a line of at most 1024 bytes", "").or_empty();
const URL_RULE: TextRule = TextRule::new(
    "an https:// URL",
    " without user and fragment; http:// only to 127.0.0.1, [::1] or localhost, because the answer \
     decides who may sign in",
)
.or_empty();
const SECRET_RULE: TextRule = TextRule::new(
    "at least 32 bytes for HS256, 48 for HS384, 64 for HS512, and at most 1024",
    " (as many as the hash has, RFC 7518 section 3.2), e.g. from: openssl rand -hex 32",
)
.or_empty();

/// Reads a string that `valid` admits; empty = none.
fn optional(
    r: &mut Reader,
    key: &'static str,
    valid: impl Fn(&str) -> bool,
    rule: TextRule,
) -> Option<String> {
    let text = r.text(key, "", valid, rule);
    (!text.is_empty()).then_some(text)
}

fn is_line(s: &str) -> bool {
    s.len() <= TEXT_BYTES_MAX && !s.chars().any(char::is_control)
}

/// Whether keys may be fetched from `url`: over https, or from this machine.
pub(crate) fn is_key_url(url: &str) -> bool {
    let visible = |s: &str| s.bytes().all(|b| b.is_ascii_graphic());
    let (https, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        (None, None) => return false,
    };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[').and_then(|s| s.split_once(']')) {
        Some((host, port)) if port.is_empty() || port.starts_with(':') => host,
        Some(_) => return false,
        None => authority.split(':').next().unwrap_or_default(),
    };
    let port = authority.rsplit_once(':').map(|(_, port)| port).filter(|p| !p.ends_with(']'));
    let port_ok = port.is_none_or(|p| p.parse::<u16>().is_ok_and(|p| p > 0));
    let local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    url.len() <= TEXT_BYTES_MAX
        && visible(url)
        && !url.contains(['@', '#', '\\'])
        && !host.is_empty()
        && port_ok
        && (https || local)
}

fn keys(r: &mut Reader, prefix: &str) -> Vec<AuthKey> {
    let (list, source) = r.list("auth_key", KEYS_MAX);
    if list.len() > KEYS_MAX {
        r.problem("auth_key", format!("at most {KEYS_MAX} of them"));
        return Vec::new();
    }
    let mut keys: Vec<AuthKey> = Vec::new();
    for (index, node) in list.into_iter().enumerate() {
        let prefix = format!("{prefix}auth_key[{index}]");
        let Some(mut table) = Reader::of_table(prefix, node, &source, &mut r.report) else {
            continue;
        };
        let key = key(&mut table);
        if let Some(key) = &key
            && keys.iter().any(|k| k.id == key.id)
        {
            table.problem("id", "is the id of another key; rename one");
        }
        table.unknown(&[], "");
        r.report.absorb(table.report);
        keys.extend(key);
    }
    keys
}

fn key(r: &mut Reader) -> Option<AuthKey> {
    let id = r.required_text("id", is_name, NAME_RULE);
    let algorithm = r.required_word("algorithm", &Algorithm::NAMED);
    let least = algorithm.and_then(Algorithm::secret_bytes_min);
    let fits = |s: &str| (least.unwrap_or(0)..=TEXT_BYTES_MAX).contains(&s.len());
    let secret = r.secret("secret", fits, SECRET_RULE);
    let secret_file = r.file("secret_file");
    let public_key_file = r.file("public_key_file");
    let algorithm = algorithm?;
    let source = match (secret, secret_file, public_key_file) {
        (Some(secret), None, None) if least.is_some() => KeySource::Secret(secret),
        (None, Some(path), None) if least.is_some() => KeySource::SecretFile(path),
        (None, None, Some(path)) if least.is_none() => KeySource::PublicKeyFile(path),
        // A refused secret has its problem already.
        (None, None, None) if r.is_set("secret") && !r.report.problems.is_empty() => return None,
        _ => {
            let rule = match least {
                Some(_) => "has a shared secret: set one of secret and secret_file",
                None => "has a public key: set public_key_file, and neither of the others",
            };
            r.problem("algorithm", rule);
            return None;
        }
    };
    Some(AuthKey { id: id?.into(), algorithm, source })
}

#[cfg(test)]
mod tests;
