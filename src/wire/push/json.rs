//! The JSON of the HTTP door: names of the .proto file, payloads as values.

use std::borrow::Cow;

use bytes::Bytes;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::generated::{
    Except, Kept, PayloadKind, Priority, PushMessage, Receipt, SendRequest, To,
};
use crate::wire::groups::Content;
use crate::wire::json::{decode_base64, fields};

/// Reads a `SendRequest`. An error says what is wrong, and where.
///
/// Keys that are not known are errors, as a limit or an exception that is misspelt would be without
/// effect. Of enums both names and numbers are taken.
pub fn read_request(bytes: &[u8]) -> Result<SendRequest, String> {
    // The derived reader would also accept an array of the fields.
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err("a JSON object with the key pushes is wanted".into());
    }
    let request: Request<'_> = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let read = |(at, push): (usize, PushText<'_>)| {
        push.message().map_err(|rule| format!("pushes[{at}].{rule}"))
    };
    let pushes: Result<_, _> = request.pushes.into_iter().enumerate().map(read).collect();
    Ok(SendRequest { pushes: pushes? })
}

/// Reads the request of a call besides pushes, by the same rules.
pub fn read_call<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err("a JSON object with the fields of the call is wanted".into());
    }
    serde_json::from_slice(bytes).map_err(|e| e.to_string())
}

/// Writes an answer. Fields that are 0, false or empty are left out.
pub fn write_answer(answer: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(answer).expect("plain fields always serialise")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request<'a> {
    #[serde(borrow)]
    pushes: Vec<PushText<'a>>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct PushText<'a> {
    #[serde(deserialize_with = "or_default")]
    to: ToText,
    #[serde(deserialize_with = "narrow")]
    msg_id: u32,
    #[serde(borrow, deserialize_with = "raw_value")]
    payload: Option<&'a RawValue>,
    #[serde(borrow)]
    payload_base64: Option<Cow<'a, str>>,
    #[serde(deserialize_with = "kind")]
    kind: i32,
    #[serde(deserialize_with = "priority")]
    priority: i32,
    #[serde(deserialize_with = "narrow")]
    ttl_ms: u32,
    #[serde(deserialize_with = "or_default")]
    key: String,
    #[serde(deserialize_with = "or_default")]
    transient: bool,
    #[serde(deserialize_with = "or_default")]
    id: String,
    except: Option<ExceptText>,
    #[serde(deserialize_with = "receipt")]
    receipt: i32,
    #[serde(deserialize_with = "narrow")]
    wait_ms: u32,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct ToText {
    #[serde(deserialize_with = "or_default")]
    tenant: String,
    #[serde(deserialize_with = "or_default")]
    sessions: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    users: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    groups: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    tenant_all: bool,
    #[serde(deserialize_with = "or_default")]
    everyone: bool,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct ExceptText {
    #[serde(deserialize_with = "or_default")]
    sessions: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    users: Vec<String>,
}

impl PushText<'_> {
    /// The message; an error names the field and the rule.
    fn message(self) -> Result<PushMessage, String> {
        let base64 = self.payload_base64.filter(|text| !text.is_empty());
        let is_base64 = base64.is_some();
        let payload = match (self.payload, base64) {
            (Some(_), Some(_)) => {
                return Err("payload_base64: is beside a payload; set one of them".into());
            }
            (Some(_), None) if self.kind == PayloadKind::Bytes as i32 => {
                return Err("payload: is a JSON value, and the kind is BYTES; give the bytes as \
                            payload_base64"
                    .into());
            }
            (Some(value), None) => Bytes::copy_from_slice(value.get().as_bytes()),
            (None, Some(text)) => decode_base64(&text).map_err(|fault| fault.text)?.into(),
            (None, None) => Bytes::new(),
        };
        // Base64 says by itself that the payload is bytes.
        let kind = match self.kind {
            0 if is_base64 => PayloadKind::Bytes as i32,
            given => given,
        };
        let ToText { tenant, sessions, users, groups, tenant_all, everyone } = self.to;
        let except = self.except.map(|ExceptText { sessions, users }| Except { sessions, users });
        Ok(PushMessage {
            to: Some(To { tenant, sessions, users, groups, tenant_all, everyone }),
            msg_id: self.msg_id,
            payload,
            kind,
            priority: self.priority,
            ttl_ms: self.ttl_ms,
            key: self.key,
            transient: self.transient,
            id: self.id,
            except,
            receipt: self.receipt,
            wait_ms: self.wait_ms,
        })
    }
}

/// Reads a value; `null` is not there.
fn or_default<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

/// Reads the text of a value as it stands; `null` is a value like others.
fn raw_value<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// Reads the text of a value as it stands; `null` is not there.
pub(crate) fn value_text<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
    let value = Option::<Box<RawValue>>::deserialize(from)?;
    Ok(value.map_or_else(Bytes::new, |value| Bytes::copy_from_slice(value.get().as_bytes())))
}

/// Reads a number of 32 bits, however it is written.
pub(crate) fn narrow<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let Some(value) = Option::<&RawValue>::deserialize(from)? else { return Ok(0) };
    let number = fields::whole_number(value.get()).and_then(|n| u32::try_from(n).ok());
    number.ok_or_else(|| D::Error::custom(format!("a number from 0 to {} is wanted", u32::MAX)))
}

/// Reads the name or the number of an enum's value.
fn of_enum<'de, D: Deserializer<'de>>(
    from: D,
    of_name: impl Fn(&str) -> Option<i32>,
    wanted: &str,
) -> Result<i32, D::Error> {
    let Some(value) = Option::<&RawValue>::deserialize(from)? else { return Ok(0) };
    let number = match fields::string(value.get()) {
        Some(name) => of_name(&name.to_uppercase()),
        None => fields::whole_number(value.get()).and_then(|n| i32::try_from(n).ok()),
    };
    number.ok_or_else(|| D::Error::custom(format!("{wanted}, or its number, is wanted")))
}

fn kind<'de, D: Deserializer<'de>>(from: D) -> Result<i32, D::Error> {
    of_enum(from, |name| Some(PayloadKind::from_str_name(name)? as i32), "JSON or BYTES")
}

fn priority<'de, D: Deserializer<'de>>(from: D) -> Result<i32, D::Error> {
    let of_name = |name: &str| {
        let short = Priority::from_str_name(&format!("PRIORITY_{name}"));
        Some(short.or_else(|| Priority::from_str_name(name))? as i32)
    };
    of_enum(from, of_name, "CRITICAL, HIGH, NORMAL or LOW")
}

fn receipt<'de, D: Deserializer<'de>>(from: D) -> Result<i32, D::Error> {
    of_enum(from, |name| Some(Receipt::from_str_name(name)? as i32), "COUNTED")
}

impl Serialize for Kept {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown<'a> {
            offset: u64,
            msg_id: u32,
            #[serde(flatten)]
            content: Content<'a>,
            #[serde(skip_serializing_if = "str::is_empty")]
            key: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            id: &'a str,
            unix_ms: i64,
        }
        let Kept { offset, msg_id, ref payload, kind, ref key, ref id, unix_ms } = *self;
        let content = Content::new(payload, kind == PayloadKind::Json as i32);
        Shown { offset, msg_id, content, key, id, unix_ms }.serialize(to)
    }
}
