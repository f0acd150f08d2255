//! The quick reader against serde_json: on texts of the right pieces in any order, and on right
//! ones in which something was changed.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde::de::IgnoredAny;

use super::*;
use crate::wire::json::{decode, is_json};

/// Keys with their colons: all that are known, one that is not, and one with an escape.
const KEYS: [&str; 12] = [
    "\"msg_id\":",
    "\"seq\":",
    "\"type\":",
    "\"payload\":",
    "\"id\":",
    "\"key\":",
    "\"deadline_ms\":",
    "\"ack\":",
    "\"traceparent\":",
    "\"payload_base64\":",
    "\"x\":",
    "\"m\\u0073g_id\":",
];

/// Pieces of messages, right and wrong, some of them longer than the words and blocks that are
/// looked at in one go.
const PIECES: [&str; 60] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "/",
    "e",
    ".",
    "-",
    " ",
    "\n",
    "\t",
    "\r",
    "\u{0}",
    "\u{1f}",
    "\u{7f}",
    "\u{feff}",
    "\u{e9}",
    "日本",
    "😀",
    "        ",
    "\n            ",
    "null",
    "true",
    "fals",
    "false",
    "0",
    "-0",
    "-1",
    "01",
    "7",
    "1.0",
    "1.5e-3",
    "4.1e1",
    "1e",
    "1E+",
    "1234567",
    "12345678",
    "123456789",
    "18446744073709551616",
    "\"\"",
    "\"a\"",
    "\"\\n\"",
    "\"\\ud800\"",
    "\"\\u00g0\"",
    "\"\u{1}\"",
    "\"sevens \"",
    "\"eightss \"",
    "\"thirty-one characters of text \"",
    "\"thirty-two characters of a text \"",
    "\"forty-one characters of text, as many say \"",
    "[[[[[[[[[[[[[[[[",
    "]]]]]]]]]]]]]]]]",
    "{\"a\":",
    "[1,\"b\",{\"c\":null}]",
    "[]",
    "{}",
];

fn soup() -> impl Strategy<Value = String> {
    vec(prop_oneof![3 => select(&PIECES[..]), 1 => select(&KEYS[..])], 0..24)
        .prop_map(|pieces| pieces.concat())
}

/// JSON texts of every kind, some of them too deep.
fn value() -> impl Strategy<Value = String> {
    let flat = prop_oneof![
        select(&["null", "true", "0", "-0.5e+3", "[ ]", "{}", "\"\\u00e9\\\"\"", "\"\""][..])
            .prop_map(str::to_owned),
        any::<i64>().prop_map(|n| n.to_string()),
        vec(any::<char>(), 0..40)
            .prop_map(|text| serde_json::json!(String::from_iter(text)).to_string()),
        (55_usize..68).prop_map(|levels| "[".repeat(levels) + &"]".repeat(levels)),
    ];
    flat.prop_recursive(4, 24, 4, |inner| {
        let space = select(&["", " ", "\n  ", "\t         "][..]);
        let array = (vec(inner.clone(), 0..4), space.clone())
            .prop_map(|(items, space)| format!("[{}]", items.join(&format!("{space},{space}"))));
        let object = (vec((select(&["a", "seq", "\\n"][..]), inner), 1..4), space).prop_map(
            |(entries, space)| {
                let entry = |(key, value)| format!("{space}\"{key}\"{space}:{space}{value}{space}");
                format!("{{{}}}", entries.into_iter().map(entry).collect::<Vec<_>>().join(","))
            },
        );
        prop_oneof![array, object]
    })
}

fn message() -> impl Strategy<Value = String> {
    let number = select(&["1", "1001", "7.0", "4.1e1", "0", "null", "9007199254740992", "-1"][..]);
    let key = select(&KEYS[..]);
    let entry = prop_oneof![
        3 => (key.clone(), number.clone()).prop_map(|(key, number)| format!("{key}{number}")),
        3 => (key.clone(), "[a-z]{0,70}").prop_map(|(key, text)| format!("{key}\"{text}\"")),
        2 => (key, value()).prop_map(|(key, value)| format!("{key}{value}")),
    ];
    (number, vec(entry, 0..5), select(&["", " ", "\n"][..])).prop_map(|(number, entries, space)| {
        let first = format!("\"msg_id\":{number}");
        let all: Vec<String> = std::iter::once(first).chain(entries).collect();
        format!("{space}{{{}{space}}}{space}", all.join(&format!("{space},")))
    })
}

/// `text` with a few bytes changed, put in or taken out.
fn changed(text: impl Strategy<Value = String>) -> impl Strategy<Value = Vec<u8>> {
    let change = (
        any::<Index>(),
        0..3_usize,
        prop_oneof![select(b"{}[]\":,\\01e.-n ".to_vec()), any::<u8>()],
    );
    (text, vec(change, 0..3)).prop_map(|(text, changes)| {
        let mut bytes = text.into_bytes();
        for (place, removed, byte) in changes {
            let at = place.index(bytes.len() + 1);
            let end = bytes.len().min(at + removed);
            bytes.splice(at..end, [byte]);
        }
        bytes
    })
}

/// Most levels of a JSON text.
fn levels(text: &str) -> usize {
    let (mut open, mut most, mut in_string, mut is_escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => open += 1,
            b']' | b'}' if !in_string => open -= 1,
            _ => {}
        }
        most = most.max(open);
    }
    most
}

/// Holds all that the quick readers say of `bytes` against serde_json.
fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    let text = std::str::from_utf8(bytes);
    let is_text = text.is_ok_and(|text| {
        serde_json::from_str::<IgnoredAny>(text).is_ok() && levels(text) <= JSON_DEPTH_MAX
    });
    prop_assert_eq!(is_json(bytes), is_text, "{:?}", String::from_utf8_lossy(bytes));
    let Ok(text) = text else { return Ok(()) };
    let (quick, slow) = (read(text), fields::read(text));
    match (&quick, &slow) {
        (Some(message), Ok(same)) => prop_assert_eq!(message, same, "{}", text),
        (Some(_), Err(_)) => prop_assert!(false, "not refused: {text:?}"),
        // Keys with escapes, and what a byte order mark is in front of, are left to the slow one.
        (None, Ok(_)) => {
            prop_assert!(text.contains('\\') || text.starts_with('\u{feff}'), "{text:?}");
        }
        (None, Err(_)) => {}
    }
    prop_assert_eq!(decode(text), slow);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1_000,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn pieces_in_any_order_are_judged_as_serde_json_judges_them(text in soup()) {
        check(text.as_bytes())?;
    }

    #[test]
    fn values_are_judged_as_serde_json_judges_them(bytes in changed(value())) {
        check(&bytes)?;
    }

    #[test]
    fn messages_are_judged_as_serde_json_judges_them(bytes in changed(message())) {
        check(&bytes)?;
    }
}

#[test]
fn a_text_that_is_cut_anywhere_is_no_value() {
    let text =
        r#"{"a":[1,-2.5e+10,"b\u00e9\n",true],"long":"thirty-two characters of a text","c":null}"#;
    assert!(is_json(text.as_bytes()));
    for end in 0..text.len() {
        assert!(!is_json(&text.as_bytes()[..end]), "{}", &text[..end]);
    }
}

#[test]
fn a_byte_that_ends_a_string_is_found_wherever_it_stands() {
    // At each place of words and blocks, with what is no end beside it.
    for len in 0..80 {
        for at in 0..len {
            for end in [b'"', b'\\', 0, 0x1f] {
                for other in [b' ', b'!', b'#', b'[', b']', 0x7f, 0x80, 0xff] {
                    let mut text = vec![other; len];
                    text[at] = end;
                    assert_eq!(syntax::after_plain(&text), &text[at..], "{end} in {other} at {at}");
                }
            }
        }
    }
}

#[test]
fn ordinary_messages_are_read_by_the_quick_reader() {
    for text in [
        r#"{"msg_id":1001,"seq":7,"payload":{"text":"x"}}"#,
        r#"{"type":"ping","seq":1}"#,
        " {\n  \"seq\": 4.1e1,\r\n\t\"msg_id\" : 1.0 , \"payload\" : [ ] }\n",
        r#"{"msg_id":1,"id":"\u00e9\n","key":null,"payload_base64":"AQL\/","x":{"seq":1}}"#,
        r#"{"msg_id":4294967295,"seq":9007199254740991,"deadline_ms":0}"#,
        r#"{"msg_id":1,"ack":18446744073709551615}"#,
    ] {
        assert_eq!(read(text), fields::read(text).ok(), "{text}");
        assert!(read(text).is_some(), "{text}");
    }
}
