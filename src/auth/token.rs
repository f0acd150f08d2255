//! A token's text -> header, claims and signature, before any of them is trusted.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::json::{self, Fault, Members, Said};
use super::{Claim, KEY_ID_BYTES_MAX, Refusal, TOKEN_BYTES_MAX};
use crate::config::settings::Algorithm;

/// The parameters of a header that are used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// The parameter `alg`: compared with the algorithm of the key, never used to choose one.
    pub algorithm: Algorithm,
    /// The parameter `kid`: looked up in the table of keys and nowhere else.
    pub key_id: Option<String>,
}

/// The claims that name the party of a token, which say which keys it is checked with: read before
/// the signature holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    /// The claim `tenant`.
    pub tenant: Said,
    /// The claim `iss`, if it is a text.
    pub issuer: Option<String>,
}

/// A token in its parts (RFC 7515 section 7.1).
#[derive(Debug)]
pub struct Token<'a> {
    /// The signed text: header and claims as they are written in the token.
    pub signed: &'a str,
    /// The header, as JSON.
    pub header: Map<String, Value>,
    /// The claims, base64url.
    claims: &'a str,
    /// The signature, in base64url.
    pub signature: &'a str,
}

impl<'a> Token<'a> {
    /// Splits `text` into its parts. The claims are not read before the signature holds.
    pub fn read(text: &'a str) -> Result<Self, Refusal> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::TooLong);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(Refusal::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(Refusal::Malformed)?;
        // A token of more than three parts (an encrypted one has five) fails here: a dot is no
        // base64url.
        if [header, claims, signature].iter().any(|part| decode(part).is_none()) {
            return Err(Refusal::Malformed);
        }
        let header = json::object(&decode(header).ok_or(Refusal::Malformed)?).map_err(refusal)?;
        Ok(Self { signed, header, claims, signature })
    }

    /// Reads the names of the claims, each of which is there once; the values are not read yet.
    pub fn claims(&self) -> Result<Members, Refusal> {
        json::members(&decode(self.claims).ok_or(Refusal::Malformed)?).map_err(refusal)
    }

    /// The claims that name the party. What cannot be read names nobody: that the claims have the
    /// right form is checked when the signature holds.
    pub fn named(&self) -> Named {
        let names = [Claim::Tenant, Claim::Iss].map(Claim::name);
        let said = decode(self.claims).and_then(|claims| json::texts(&claims, names));
        let [tenant, issuer] = said.unwrap_or([Said::Nothing, Said::Nothing]);
        Named { tenant, issuer: issuer.text() }
    }

    /// The parameters of the header, if it is one of a token for this gateway.
    pub fn checked_header(&self) -> Result<Header, Refusal> {
        let header = &self.header;
        let algorithm = match header.get("alg") {
            Some(Value::String(name)) => Algorithm::from_name(name).ok_or(Refusal::Algorithm)?,
            Some(_) | None => return Err(Refusal::Header),
        };
        // A key in the token is the sender's choice, and the address of a key is a request that the
        // sender makes the gateway send. They could be ignored, but no honest issuer of tokens for
        // this gateway needs them. x5t and x5t#S256 only name a certificate: they are ignored.
        if ["jwk", "jku", "x5u", "x5c"].iter().any(|name| header.contains_key(*name)) {
            return Err(Refusal::BringsKey);
        }
        // RFC 7515 section 4.1.11: extensions that are demanded and not understood are refused.
        // None is understood here.
        if header.contains_key("crit") {
            return Err(Refusal::Critical);
        }
        match header.get("typ") {
            None => {}
            Some(Value::String(kind)) if is_access_token(kind) => {}
            Some(Value::String(_)) => return Err(Refusal::Type),
            Some(_) => return Err(Refusal::Header),
        }
        let key_id = match header.get("kid") {
            None => None,
            Some(Value::String(id)) if id.len() <= KEY_ID_BYTES_MAX => Some(id.clone()),
            Some(_) => return Err(Refusal::Header),
        };
        Ok(Header { algorithm, key_id })
    }
}

/// Whether `kind` is the type of an access token (RFC 8725 section 3.11). `JWT` may be any token
/// (RFC 7519 section 5.1), `at+jwt` is an access token (RFC 9068 section 2.1), and `application/`
/// may stand before both (RFC 7515 section 4.1.9); a logout or DPoP token, signed with the same
/// key, is neither.
fn is_access_token(kind: &str) -> bool {
    const TYPES: [&str; 4] = ["JWT", "at+jwt", "application/jwt", "application/at+jwt"];
    TYPES.iter().any(|known| known.eq_ignore_ascii_case(kind))
}

/// Decodes unpadded base64url in its only valid form: the unused bits of the last character are
/// zero, or one signature would have several texts.
fn decode(part: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(part).ok()
}

fn refusal(fault: Fault) -> Refusal {
    match fault {
        Fault::Malformed => Refusal::Malformed,
        Fault::Duplicate => Refusal::Duplicate,
    }
}
