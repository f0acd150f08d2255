//! Explanation of a token for its issuer, for `shardgate check token`: its header and claims, and
//! each rule in turn. It is for a terminal and not for a log, as it shows header and claims; the
//! signature and our keys are never in it.

use std::fmt;

use serde::Serialize;

use super::json::Members;
use super::rules::{Rules, check_signature};
use super::token::Token;
use super::verify::{Party, Verifier};
use super::{Claim, GROUP_BYTES_MAX, GROUPS_MAX, Identity, KeyOwner, Refusal};
use crate::plain::push_plain;

/// Result of a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The rule holds.
    Holds,
    /// The rule does not hold.
    Fails(Refusal),
    /// The rule was not checked: it is not configured, or an earlier rule failed that it depends
    /// on.
    NotAsked,
}

/// A rule, and its result for a token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Rule {
    /// Name of the rule.
    pub(crate) name: &'static str,
    /// Result of the rule.
    pub(crate) outcome: Outcome,
    /// The values that were compared.
    pub(crate) detail: String,
}

/// Everything that is known about a token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Explanation {
    /// The header as JSON.
    pub(crate) header: Option<String>,
    /// The claims as JSON, whether or not the signature holds.
    pub(crate) claims: Option<String>,
    /// The rules, in the order in which they are checked.
    pub(crate) rules: Vec<Rule>,
    /// Result of [`Verifier::verify`].
    pub(crate) verdict: Result<Identity, Refusal>,
}

/// Explains `token` at `now_unix_s`, seconds since 1970.
pub(crate) fn explain_token(verifier: &Verifier, token: &str, now_unix_s: i64) -> Explanation {
    let verdict = verifier.verify(token, now_unix_s);
    let mut rules = Vec::new();
    let token = match Token::read(token) {
        Ok(token) => token,
        Err(refusal) => {
            let detail = format!("{} bytes", token.len());
            rules.push(Rule { name: "form", outcome: Outcome::Fails(refusal), detail });
            return Explanation { header: None, claims: None, rules, verdict };
        }
    };
    let mut rule = |name, outcome, detail| rules.push(asked_rule(name, outcome, detail));
    rule("form", Ok(()), "three parts of base64url".into());
    let header = token.checked_header();
    let said = header.as_ref().map_or(String::new(), |h| {
        let id = h.key_id.as_deref().map_or("no kid".into(), |id| format!("kid {id:?}"));
        format!("{}, {id}", h.algorithm.name())
    });
    rule("header", header.map(drop), said);
    let party = verifier.party(&token);
    if verifier.has_tenants() {
        rule("tenant", party.as_ref().map(drop).map_err(|refusal| *refusal), rules_of(&party));
    }
    let claims = token.claims();
    match (&party, &claims) {
        (Ok(party), claims) => {
            key_rules(verifier, party, &token, &mut rules);
            match claims {
                Ok(claims) => claim_rules(party, claims, now_unix_s, &mut rules),
                Err(refusal) => rules.push(asked_rule("claims", Err(*refusal), String::new())),
            }
        }
        (Err(_), _) => rules.push(not_asked("key", "without a tenant")),
    }
    Explanation {
        header: shown(&token.header),
        claims: claims.ok().as_ref().and_then(shown),
        rules,
        verdict,
    }
}

/// The rules that a token is checked by, in words.
fn rules_of(party: &Result<Party<'_>, Refusal>) -> String {
    match party {
        Ok(Party { rules, tenant: Some(tenant), .. }) => match rules.owner() {
            KeyOwner::Tenant(_) => format!("{tenant}, by the issuer and the keys of its own"),
            KeyOwner::Auth => format!("{tenant}, which has no keys of its own, by those of [auth]"),
        },
        Ok(_) => "none that is configured, so by the keys of [auth]".into(),
        Err(Refusal::AwaitedTenant) => "no tenant of the files: a gateway asks its etcd".into(),
        Err(_) => "auth.unknown_tenant is \"refuse\"".into(),
    }
}

/// The key that must have signed the token, and whether it did; else whose key did.
fn key_rules(verifier: &Verifier, party: &Party<'_>, token: &Token<'_>, rules: &mut Vec<Rule>) {
    let key = party.rules.key(token);
    let named = |key: &super::keys::Key| {
        format!("key {:?} is for {}", key.id().unwrap_or(""), key.algorithm().name())
    };
    let other = || match signer(verifier, party.rules, token) {
        Some(KeyOwner::Auth) => "a key of [auth] signed it".into(),
        Some(KeyOwner::Tenant(name)) => format!("a key of tenant {name} signed it"),
        None => String::new(),
    };
    rules.push(asked_rule("key", key.map(drop), key.map_or_else(|_| other(), named)));
    rules.push(match key.map(|key| check_signature(token, key)) {
        Ok(Ok(())) => asked_rule("signature", Ok(()), String::new()),
        Ok(Err(refusal)) => asked_rule("signature", Err(refusal), other()),
        Err(_) => not_asked("signature", "without a key"),
    });
}

/// The owner of the key that signed the token, where that is not the one of its tenant.
fn signer(verifier: &Verifier, wanted: &Rules, token: &Token<'_>) -> Option<KeyOwner> {
    let others = verifier.all_rules().filter(|rules| rules.owner() != wanted.owner());
    let signed =
        |rules: &&Rules| rules.key(token).is_ok_and(|key| check_signature(token, key).is_ok());
    others.into_iter().find(signed).map(|rules| rules.owner().clone())
}

fn shown(object: &impl Serialize) -> Option<String> {
    serde_json::to_string_pretty(object).ok()
}

fn asked_rule(name: &'static str, outcome: Result<(), Refusal>, detail: String) -> Rule {
    Rule { name, outcome: outcome.map_or_else(Outcome::Fails, |()| Outcome::Holds), detail }
}

fn not_asked(name: &'static str, why: &str) -> Rule {
    Rule { name, outcome: Outcome::NotAsked, detail: why.to_owned() }
}

fn claim_rules(party: &Party<'_>, map: &Members, now: i64, rules: &mut Vec<Rule>) {
    let by = party.rules;
    let claims = match by.read(map, party.tenant) {
        Ok(claims) => claims,
        Err(refusal) => {
            let (name, outcome) = ("claims", Outcome::Fails(refusal));
            rules.push(Rule { name, outcome, detail: String::new() });
            return;
        }
    };
    let mut rule = |name, outcome, detail| rules.push(asked_rule(name, outcome, detail));
    rule("claims", Ok(()), "those that must be there are, in their forms".into());
    let said =
        |claim: Claim| map.get(claim.name()).map_or("none".into(), |value| value.get().to_owned());
    let [exp, nbf, iat] = [Claim::Exp, Claim::Nbf, Claim::Iat].map(said);
    let times = format!("exp {exp}, nbf {nbf}, iat {iat}, now {now}, leeway {} s", by.leeway_s());
    rule("time", by.check_times(claims.times(), now), times);
    let asked = [
        ("issuer", by.issuer(), party.check_issuer(&claims), Claim::Iss),
        ("audience", by.audience(), by.check_audience(&claims), Claim::Aud),
    ];
    for (name, wanted, outcome, claim) in asked {
        let detail = |wanted: &str| format!("{} {}, wanted {wanted}", claim.name(), said(claim));
        rules.push(match (wanted, outcome) {
            (Some(wanted), outcome) => asked_rule(name, outcome, detail(&format!("{wanted:?}"))),
            (None, Ok(())) => not_asked(name, "not configured"),
            (None, Err(_)) => asked_rule(name, outcome, detail("none that is a tenant's")),
        });
    }
    let groups = claims.groups();
    if groups.left_out > 0 {
        let (kept, out) = (groups.kept.len(), groups.left_out);
        let detail = format!(
            "{kept} kept, {out} left out: kept are {GROUPS_MAX} strings of 1 to {GROUP_BYTES_MAX} \
             bytes without control characters"
        );
        rules.push(asked_rule("groups", Ok(()), detail));
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, text) in [("header", &self.header), ("claims", &self.claims)] {
            if let Some(text) = text {
                writeln!(f, "{name}: {}", printable(text))?;
            }
        }
        for Rule { name, outcome, detail } in &self.rules {
            let detail = printable(detail);
            let space = if detail.is_empty() { "" } else { "  " };
            match outcome {
                Outcome::Holds => writeln!(f, "  ok    {name}{space}{detail}")?,
                Outcome::Fails(refusal) => {
                    writeln!(f, "  FAILS {name}: {refusal}{space}{detail}")?;
                }
                Outcome::NotAsked => writeln!(f, "  -     {name}{space}{detail}")?,
            }
        }
        match &self.verdict {
            Ok(identity) => {
                let tenant = identity.tenant.as_deref();
                let tenant = tenant.map_or(String::new(), |t| format!(" of tenant {t}"));
                let until = identity.expires_unix_s;
                write!(f, "accepted: user {:?}{tenant}, until {until}", identity.user)
            }
            Err(refusal) => write!(f, "refused: {refusal}"),
        }
    }
}

/// `text` with what is not plain escaped, but for line ends: a terminal would obey it.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push(c),
            _ => push_plain(&mut out, c),
        }
    }
    out
}
