//! A token's text -> header, claims and signature, without believing any of it yet.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::json::{self, Fault};
use super::{KEY_ID_BYTES_MAX, Refusal, TOKEN_BYTES_MAX};
use crate::config::settings::Algorithm;

/// What the header says that matters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// `alg`: compared with the algorithm of the key, never used to choose one.
    pub algorithm: Algorithm,
    /// `kid`: looked up in our table and nowhere else.
    pub key_id: Option<String>,
}

/// A token taken apart (RFC 7515 section 7.1).
#[derive(Debug)]
pub struct Token<'a> {
    /// What is signed: header and claims as they stand in the token.
    pub signed: &'a str,
    /// The header.
    pub header: Map<String, Value>,
    /// The claims.
    claims: &'a str,
    /// The signature, base64url.
    pub signature: &'a str,
}

impl<'a> Token<'a> {
    /// Takes `text` apart. The claims are not looked into before the signature holds.
    pub fn read(text: &'a str) -> Result<Self, Refusal> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::TooLong);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(Refusal::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(Refusal::Malformed)?;
        // More than three parts (an encrypted token has five) fail here: a dot is no base64url.
        if [header, claims, signature].iter().any(|part| decode(part).is_none()) {
            return Err(Refusal::Malformed);
        }
        Ok(Self { signed, header: part(header)?, claims, signature })
    }

    /// The claims.
    pub fn claims(&self) -> Result<Map<String, Value>, Refusal> {
        part(self.claims)
    }

    /// What the header says, if it is one of a token for us.
    pub fn checked_header(&self) -> Result<Header, Refusal> {
        let header = &self.header;
        let algorithm = match header.get("alg") {
            Some(Value::String(name)) => Algorithm::from_name(name).ok_or(Refusal::Algorithm)?,
            Some(_) | None => return Err(Refusal::Header),
        };
        // A key that comes with the token is the sender's choice, and an address of one is a
        // request that the sender makes us send. We could ignore them, but no honest issuer of
        // tokens for us needs them. x5t and x5t#S256 are only names of a certificate: ignored.
        if ["jwk", "jku", "x5u", "x5c"].iter().any(|name| header.contains_key(*name)) {
            return Err(Refusal::BringsKey);
        }
        // RFC 7515 section 4.1.11: refuse what is demanded and not understood. We understand none.
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

/// RFC 8725 section 3.11: a token says what it is for. `JWT` is any (RFC 7519 section 5.1),
/// `at+jwt` an access token (RFC 9068 section 2.1); a logout or DPoP token, signed with the same
/// key, is neither.
fn is_access_token(kind: &str) -> bool {
    ["JWT", "at+jwt", "application/at+jwt"].iter().any(|k| k.eq_ignore_ascii_case(kind))
}

/// Bytes of unpadded base64url in its one right form: the unused bits of the last character are
/// zero, or one signature would have several texts.
fn decode(part: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(part).ok()
}

fn part(text: &str) -> Result<Map<String, Value>, Refusal> {
    let bytes = decode(text).ok_or(Refusal::Malformed)?;
    json::object(&bytes).map_err(|fault| match fault {
        Fault::Malformed => Refusal::Malformed,
        Fault::Duplicate => Refusal::Duplicate,
    })
}
