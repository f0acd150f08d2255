//! Requests to a demo service in a payload: a delay, a failure, a count, an account of the message.

use serde::Deserialize;

/// Longest delay that can be asked for: one minute, so that a forgotten one ends.
pub const DELAY_MS_MAX: u64 = 60_000;

/// Bytes within which a key must begin to be seen. Requests are short; a large payload is only
/// carried, and must not cost a search through all of it.
const KEY_WITHIN_BYTES: usize = 256;

const KEYS: [&[u8]; 8] = [
    b"delay_ms\"",
    b"fail\"",
    b"fail_call\"",
    b"count\"",
    b"who\"",
    b"join\"",
    b"leave\"",
    b"say\"",
];

/// The known keys of a payload. Keys combine: the delay comes first, then the first that is set of
/// `fail_call`, `fail`, `who`, `count`, echo.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Ask {
    /// Milliseconds after which to answer, at most [`DELAY_MS_MAX`].
    #[serde(default)]
    pub delay_ms: u64,
    /// Status to answer this item with. It is not limited to gRPC's codes: a gateway has to cope.
    pub fail: Option<u32>,
    /// The gRPC code with which the whole call fails.
    pub fail_call: Option<i32>,
    /// The `retry_after_ms` of an item with `fail`.
    #[serde(default)]
    pub retry_after_ms: u32,
    /// Whether to answer how often the affinity key was counted here.
    #[serde(default)]
    pub count: bool,
    /// Whether to answer with all fields that the service got.
    #[serde(default)]
    pub who: bool,
    /// The group that the session joins.
    pub join: Option<String>,
    /// The group that it leaves.
    pub leave: Option<String>,
    /// A line for all who are in `room`.
    pub say: Option<String>,
    /// The group that the line is for.
    pub room: Option<String>,
}

impl Ask {
    /// The request in `payload`; `None` = echo it. A request starts with `{`, names a key within
    /// its first 256 bytes, and is JSON with values of the right types.
    pub fn read(payload: &[u8]) -> Option<Ask> {
        if !names_a_key(payload) {
            return None;
        }
        let ask: Ask = serde_json::from_slice(payload).ok()?;
        // These ask for nothing by themselves.
        let Ask { retry_after_ms, ref room, .. } = ask;
        let nothing = Ask { retry_after_ms, room: room.clone(), ..Ask::default() };
        (ask != nothing).then_some(ask)
    }
}

/// The cheap test: plain echoes cost no more than this.
fn names_a_key(payload: &[u8]) -> bool {
    if payload.first() != Some(&b'{') {
        return false;
    }
    let head = &payload[..payload.len().min(KEY_WITHIN_BYTES)];
    let quotes = head.iter().enumerate().filter(|&(_, &b)| b == b'"');
    for (at, _) in quotes {
        let name = &payload[at + 1..];
        if matches!(name.first(), Some(b'd' | b'f' | b'c' | b'w' | b'j' | b'l' | b's'))
            && KEYS.iter().any(|key| name.starts_with(key))
        {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_no_known_key_is_echoed() {
        for echoed in [
            "",
            "{",
            "null",
            "[1]",
            "\"delay_ms\"",
            "{}",
            r#"{"text":"hello"}"#,
            r#"{"text":"delay_ms"}"#,
            r#"{"retry_after_ms":5}"#,
            r#"{"room":"room:7"}"#,
            r#"{"say":7}"#,
            r#"{"delay_ms":"soon"}"#,
            r#"{"delay_ms":-1}"#,
            r#"{"delay_ms":5"#,
            r#"{"fail":14,"fail":13}"#,
            r#"{"count":false}"#,
            r#" {"count":true}"#,
        ] {
            assert_eq!(Ask::read(echoed.as_bytes()), None, "{echoed}");
        }
    }

    #[test]
    fn known_keys_are_read_wherever_they_stand() {
        let ask = Ask::read(br#"{"text":"x","delay_ms":7,"fail":14,"retry_after_ms":3}"#);
        let expected = Ask { delay_ms: 7, fail: Some(14), retry_after_ms: 3, ..Default::default() };
        assert_eq!(ask, Some(expected));
        assert_eq!(Ask::read(br#"{"fail_call":8}"#).and_then(|a| a.fail_call), Some(8));
        assert!(Ask::read(br#"{"count":true}"#).is_some_and(|a| a.count));
        assert!(Ask::read(br#"{"who":true}"#).is_some_and(|a| a.who));
        let ask = Ask::read(br#"{"room":"room:7","say":"hi","join":"a","leave":"b"}"#).unwrap();
        let said = [ask.room, ask.say, ask.join, ask.leave].map(Option::unwrap);
        assert_eq!(said, ["room:7", "hi", "a", "b"]);
    }

    #[test]
    fn a_key_far_into_a_large_payload_is_not_looked_for() {
        let pad = |n| format!(r#"{{"pad":"{}","count":true}}"#, "x".repeat(n));
        assert!(Ask::read(pad(200).as_bytes()).is_some());
        assert!(Ask::read(pad(300).as_bytes()).is_none());
    }
}
