//! What clients ask of groups, in both encodings, and what JSON clients see.

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

fn all<T: PartialEq + std::fmt::Debug, M: prost::Message + Serialize>(
    read: impl Fn(Encoding, &[u8]) -> Option<T>,
    message: &M,
    wanted: T,
) {
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        let bytes = payload(encoding, message);
        assert_eq!(read(encoding, &bytes).as_ref(), Some(&wanted), "{encoding:?}");
    }
}

#[test]
fn questions_about_groups_read_in_both_encodings() {
    let at = Position { epoch: 0xdead_beef, offset: 7 };
    let (group, since) = (|| "room:7".to_owned(), Some(position(at)));
    let asked = generated::Join { group: group(), since: since.clone(), presence: true };
    all(read_join, &asked, Join { group: group(), since: Some(at), presence: true });
    let asked = generated::Join { group: group(), ..Default::default() };
    all(read_join, &asked, Join { group: group(), since: None, presence: false });
    let asked = generated::Leave { group: group(), reason: "x".into() };
    all(read_leave, &asked, group());
    let asked = generated::MembersOf { group: group(), limit: 9, after: "ann".into() };
    all(read_members_of, &asked, MembersOf { group: group(), limit: 9, after: "ann".into() });
    let asked = generated::HistoryOf { group: group(), since, limit: 50, newest_first: true };
    let wanted = HistoryOf { group: group(), since: Some(at), limit: 50, newest_first: true };
    all(read_history_of, &asked, wanted);
}

#[test]
fn a_publication_is_the_same_from_both_encodings() {
    for (bytes, is_json) in [(&br#"{"a": [1]}"#[..], true), (b"\xff\0", false), (b"", true)] {
        let asked = Publish {
            group: "room:7".into(),
            msg_id: 7001,
            payload: bytes.to_vec(),
            key: "k".into(),
            to_me: true,
            is_json,
        };
        let (group, payload, is_bytes) = ("room:7".into(), Bytes::from_static(bytes), !is_json);
        let (msg_id, key, to_me) = (7001, "k".into(), true);
        let wanted = Publication { group, msg_id, payload, is_bytes, key, to_me };
        all(read_publish, &asked, wanted);
    }
    let null = read_publish(Encoding::Json, br#"{"group":"g","msg_id":7.0,"payload":null}"#);
    assert_eq!(null.expect("valid").payload, "null");
}

#[test]
fn questions_that_are_none_are_refused() {
    let join = |text: &str| read_join(Encoding::Json, text.as_bytes());
    for bad in ["", "[]", "7", r#"{"group":7}"#, r#"{"since":"x"}"#, r#"{"presence":1}"#] {
        assert_eq!(join(bad), None, "{bad}");
    }
    let publish = |text: &str| read_publish(Encoding::Json, text.as_bytes());
    for bad in [
        r#"{"msg_id":-1}"#,
        r#"{"msg_id":4294967296}"#,
        r#"{"payload":1,"payload_base64":"AA=="}"#,
        r#"{"payload_base64":"!"}"#,
        r#"{"to_me":"yes"}"#,
    ] {
        assert_eq!(publish(bad), None, "{bad}");
    }
    let not_json = Publish { payload: b"{".to_vec(), is_json: true, ..Default::default() };
    assert_eq!(read_publish(Encoding::Protobuf, &not_json.encode_to_vec()), None);
}

#[test]
fn a_place_is_known_again_and_one_of_no_life_is_epoch_0() {
    for number in [0, 1, 0xa3f2, u32::MAX] {
        let at = Position { epoch: number, offset: 9 };
        assert_eq!(place_of(&position(at)), at);
    }
    for bad in ["", "x3f2", "+0000001", "000000001"] {
        assert_eq!(Position::shown(bad, 9), Position { epoch: 0, offset: 9 }, "{bad}");
    }
}
