//! The messages of groups towards clients: what clients ask, and how JSON clients see payloads of
//! either kind.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::wire::client::generated::{Kept, Publish};

/// Writes one JSON text as the value that it is; what is none, or empty, as `null`.
pub(crate) fn write_value<S: Serializer>(text: &[u8], to: S) -> Result<S::Ok, S::Error> {
    value(text).serialize(to)
}

fn value(text: &[u8]) -> Option<&RawValue> {
    serde_json::from_slice(text).ok()
}

/// A payload as JSON clients see it.
#[derive(Serialize)]
struct Content<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

impl<'a> Content<'a> {
    /// Bytes that are said to be JSON, and are not, are shown as bytes.
    fn new(payload: &'a [u8], is_json: bool) -> Self {
        let value = if is_json { value(payload) } else { None };
        let bytes = (value.is_none() && !payload.is_empty()).then(|| STANDARD.encode(payload));
        Self { payload: value, payload_base64: bytes }
    }
}

impl Serialize for Kept {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown<'a> {
            offset: u64,
            msg_id: u32,
            #[serde(flatten)]
            content: Content<'a>,
            unix_ms: i64,
            key: &'a str,
        }
        let Kept { offset, msg_id, ref payload, unix_ms, ref key, is_json } = *self;
        Shown { offset, msg_id, content: Content::new(payload, is_json), unix_ms, key }
            .serialize(to)
    }
}

impl Serialize for Publish {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown<'a> {
            group: &'a str,
            msg_id: u32,
            #[serde(flatten)]
            content: Content<'a>,
            key: &'a str,
            to_me: bool,
        }
        let Publish { ref group, msg_id, ref payload, ref key, to_me, is_json } = *self;
        Shown { group, msg_id, content: Content::new(payload, is_json), key, to_me }.serialize(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Encoding;
    use crate::wire::client::{HistoryPage, MemberList, Person, payload};

    fn json<M: prost::Message + Serialize>(message: &M) -> String {
        String::from_utf8(payload(Encoding::Json, message)).expect("JSON is UTF-8")
    }

    #[test]
    fn json_clients_get_kept_payloads_as_values_and_bytes_as_base64() {
        let kept = |payload: &'static [u8], is_json| Kept {
            offset: 3,
            msg_id: 7001,
            payload: payload.into(),
            unix_ms: 5,
            key: "k".into(),
            is_json,
        };
        let pushes = vec![kept(br#"{"a": 1}"#, true), kept(b"\xff", false), kept(b"no", true)];
        let shown = json(&HistoryPage { pushes, ..HistoryPage::default() });
        for part in [
            r#"{"offset":3,"msg_id":7001,"payload":{"a": 1},"unix_ms":5,"key":"k"}"#,
            r#""payload_base64":"/w==""#,
            r#""payload_base64":"bm8=""#,
        ] {
            assert!(shown.contains(part), "{shown}");
        }
    }

    #[test]
    fn json_clients_get_the_info_of_people_as_a_value() {
        let person =
            |info: &[u8]| Person { user: "ann".into(), info: info.into(), ..Default::default() };
        let members = vec![person(br#"{"n":1}"#), person(b""), person(b"{")];
        let shown = json(&MemberList { members, ..MemberList::default() });
        assert_eq!(shown.matches(r#""info":{"n":1}"#).count(), 1, "{shown}");
        assert_eq!(shown.matches(r#""info":null"#).count(), 2, "{shown}");
    }
}
