//! The typed payloads of system and gateway messages, in the encoding of the connection.

use std::borrow::Cow;

use prost::Message as _;

use crate::message::Encoding;
use crate::wire::groups;
use crate::wire::json::fields;

/// Messages generated from proto/shardgate/client/v1/client.proto.
#[allow(missing_docs)]
pub mod generated {
    tonic::include_proto!("shardgate.client.v1");
}

pub use generated::{
    Auth, AuthOk, Draining, ErrorCount, Explain, Explanation, Gap, GroupList, GroupOutcome,
    GroupPosition, HistoryPage, Kept, Limits, MemberList, Person, Pong, Presence, Resume, Resumed,
    Time, Welcome, WhoAmI,
};

/// Encodes a typed payload: JSON with the names of the .proto file, or protobuf.
pub fn payload<M: prost::Message + serde::Serialize>(encoding: Encoding, message: &M) -> Vec<u8> {
    match encoding {
        Encoding::Json => serde_json::to_vec(message).expect("plain fields always serialise"),
        Encoding::Protobuf => message.encode_to_vec(),
    }
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Auth(<redacted>)")
    }
}

/// Reads the token of an `auth` message.
pub(crate) fn read_auth(encoding: Encoding, payload: &[u8]) -> Option<String> {
    match encoding {
        Encoding::Json => {
            let [token] = fields::values(std::str::from_utf8(payload).ok()?, ["token"])?;
            fields::string(token.unwrap_or("\"\"")).map(Cow::into_owned)
        }
        Encoding::Protobuf => Auth::decode(payload).ok().map(|auth| auth.token),
    }
}

impl std::fmt::Debug for Resume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resume(<redacted>)")
    }
}

impl std::fmt::Debug for Resumed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Resumed({} {}, <redacted>)", self.outcome, self.reason)
    }
}

/// The number of a run of the gateway, as clients see it: text, as it may be above 2^53.
pub(crate) fn boot(boot_id: u64) -> String {
    format!("{boot_id:016x}")
}

/// Reads a `resume` message. Fields that are absent are empty; without a payload all are.
pub(crate) fn read_resume(encoding: Encoding, payload: &[u8]) -> Option<Resume> {
    match encoding {
        Encoding::Json if payload.is_empty() => Some(Resume::default()),
        Encoding::Json => {
            let text = std::str::from_utf8(payload).ok()?;
            let [session, secret, offset, boot, groups] =
                fields::values(text, ["session", "secret", "offset", "boot", "groups"])?;
            let text =
                |value: Option<&str>| fields::string(value.unwrap_or("\"\"")).map(Cow::into_owned);
            let offset = fields::whole_number(offset.unwrap_or("0"))?;
            let (session, secret, boot) = (text(session)?, text(secret)?, text(boot)?);
            let groups = groups::read_positions(groups.unwrap_or("[]"))?;
            Some(Resume { session, secret, offset, boot, groups })
        }
        Encoding::Protobuf => Resume::decode(payload).ok(),
    }
}

/// Reads the request of id 9003.
pub(crate) fn read_explain(encoding: Encoding, payload: &[u8]) -> Option<Explain> {
    match encoding {
        Encoding::Json => {
            let text = std::str::from_utf8(payload).ok()?;
            let [msg_id, key] = fields::values(text, ["msg_id", "key"])?;
            let msg_id = fields::whole_number(msg_id.unwrap_or("0"))?.try_into().ok()?;
            let key = fields::string(key.unwrap_or("\"\""))?.into_owned();
            Some(Explain { msg_id, key })
        }
        Encoding::Protobuf => Explain::decode(payload).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::push::Position;

    #[test]
    fn json_payloads_use_the_names_of_the_proto_file() {
        let limits = Limits { message_bytes_max: 1, unanswered_max: 2, messages_per_s_max: 0 };
        let text = payload(Encoding::Json, &limits);
        let expected = r#"{"message_bytes_max":1,"unanswered_max":2,"messages_per_s_max":0}"#;
        assert_eq!(String::from_utf8(text).expect("JSON is UTF-8"), expected);
    }

    #[test]
    fn a_token_reads_in_both_encodings_and_is_not_shown() {
        let auth = Auth { token: "a.b.c".into() };
        assert!(!format!("{auth:?}").contains("a.b.c"));
        let bytes = payload(Encoding::Protobuf, &auth);
        let read = |encoding, bytes: &[u8]| read_auth(encoding, bytes);
        assert_eq!(read(Encoding::Protobuf, &bytes).as_deref(), Some("a.b.c"));
        assert_eq!(read(Encoding::Json, br#"{"token":"a.b.c"}"#).as_deref(), Some("a.b.c"));
        let padded = br#" {"x":null,"token":"a\u002eb.c","x":{}} "#;
        assert_eq!(read(Encoding::Json, padded).as_deref(), Some("a.b.c"));
        // Without a token it is one that is refused.
        assert_eq!(read(Encoding::Json, br#"{"token":null}"#).as_deref(), Some(""));
        let twice = br#"{"token":"a","token":"b"}"#;
        for bad in [&b""[..], b"[\"a.b.c\"]", b"\"a.b.c\"", b"{\"token\":1}", twice, b"{} {}"] {
            assert_eq!(read(Encoding::Json, bad), None);
        }
    }

    #[test]
    fn a_resume_reads_in_both_encodings_and_its_secret_is_not_shown() {
        let whole = Resume {
            session: "0b7k".into(),
            secret: "s3cret".into(),
            offset: 41,
            boot: "00ff".into(),
            groups: vec![groups::group_position("room:7", Position { epoch: 0xa3f2, offset: 118 })],
        };
        assert!(!format!("{whole:?}").contains("s3cret"));
        let bytes = payload(Encoding::Protobuf, &whole);
        assert_eq!(read_resume(Encoding::Protobuf, &bytes), Some(whole.clone()));
        let json = br#"{"session":"0b7k","secret":"s3cret","offset":4.1e1,"boot":"00ff","x":[],
            "groups":[{"group":"room:7","position":{"offset":118,"epoch":"0000a3f2"}}]}"#;
        assert_eq!(read_resume(Encoding::Json, json), Some(whole));
        for empty in [&b""[..], b"{}", br#"{"session":null}"#] {
            assert_eq!(read_resume(Encoding::Json, empty), Some(Resume::default()));
        }
        for bad in [
            &b"[]"[..],
            b"1",
            br#"{"groups":{}}"#,
            br#"{"groups":[7]}"#,
            br#"{"offset":-1}"#,
            br#"{"offset":"1"}"#,
            br#"{"session":1}"#,
        ] {
            assert_eq!(read_resume(Encoding::Json, bad), None);
        }
        let told = Resumed { secret: "s3cret".into(), ..Resumed::default() };
        assert!(!format!("{told:?}").contains("s3cret"));
    }

    #[test]
    fn an_explain_question_reads_in_both_encodings() {
        let json = read_explain(Encoding::Json, br#"{"msg_id":1001}"#).expect("valid");
        assert_eq!((json.msg_id, json.key.as_str()), (1001, ""));
        let lua = read_explain(Encoding::Json, br#"{"msg_id":1.001e3,"key":null}"#).expect("valid");
        assert_eq!(lua, json);
        for bad in [r#"{"msg_id":1.5}"#, r#"{"msg_id":-1}"#, r#"{"msg_id":4294967296}"#] {
            assert!(read_explain(Encoding::Json, bad.as_bytes()).is_none(), "{bad}");
        }
        let bytes = payload(Encoding::Protobuf, &Explain { msg_id: 7, key: "k".into() });
        let read = read_explain(Encoding::Protobuf, &bytes).expect("valid");
        assert_eq!((read.msg_id, read.key.as_str()), (7, "k"));
        assert!(read_explain(Encoding::Json, b"[]").is_none());
    }
}
