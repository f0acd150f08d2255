//! W3C Trace Context (Recommendation of 2021-11-23, section 3.2): the place of a message in a
//! distributed trace. The gateway reads it only to refuse what a tracer of a service could not.

/// Bytes of a `traceparent`: version 2, trace id 32, parent id 16, flags 2, and three dashes. A
/// later version may append to it; nobody writes one yet, and the limit keeps a message small.
pub(crate) const TRACEPARENT_BYTES: usize = 55;

/// Whether `text` is a `traceparent`: four groups of lower-case hexadecimal digits, not of version
/// ff, and neither the trace id nor the parent id all zeros (sections 3.2.2.1 to 3.2.2.5).
pub(crate) fn is_traceparent(text: &str) -> bool {
    let mut groups = text.split('-');
    let mut next = |digits: usize| {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        groups.next().filter(|group| group.len() == digits && group.bytes().all(is_hex))
    };
    let (Some(version), Some(trace), Some(parent), Some(_)) =
        (next(2), next(32), next(16), next(2))
    else {
        return false;
    };
    let is_zero = |group: &str| group.bytes().all(|byte| byte == b'0');
    groups.next().is_none() && version != "ff" && !is_zero(trace) && !is_zero(parent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Reason;
    use crate::wire::json::decode;

    /// The example of the recommendation.
    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_taken_as_the_recommendation_writes_it_and_nothing_else() {
        assert_eq!(GOOD.len(), TRACEPARENT_BYTES);
        for good in [
            GOOD.to_owned(),
            GOOD.replace("-01", "-00"),
            GOOD.replacen("00", "cc", 1),
            format!("00-{:032x}-{:016x}-ff", 1, 1),
        ] {
            assert!(is_traceparent(&good), "{good}");
        }
        for bad in [
            String::new(),
            "-".repeat(TRACEPARENT_BYTES),
            GOOD.to_uppercase(),
            GOOD.replacen("00", "ff", 1),
            GOOD.replacen('-', "_", 1),
            GOOD[..54].to_owned(),
            format!("{GOOD}-"),
            format!("{GOOD}-00"),
            format!("{GOOD}0"),
            format!(" {}", &GOOD[..54]),
            format!("00-{}-{:016x}-00", "0".repeat(32), 1),
            format!("00-{:032x}-{}-00", 1, "0".repeat(16)),
            GOOD.replace("4bf9", "4bg9"),
            GOOD.replace("4bf9", "\u{e4}f9"),
        ] {
            assert!(!is_traceparent(&bad), "{bad}");
        }
    }

    #[test]
    fn a_traceparent_is_checked_however_the_message_is_written() {
        // With an integer the message is read plainly, with 1.0 field by field.
        for id in ["1", "1.0"] {
            let text = |value: &str| format!(r#"{{"seq":5,"traceparent":{value},"msg_id":{id}}}"#);
            let good = text(&format!("\"{GOOD}\""));
            assert_eq!(decode(&good).expect("it is one").traceparent, GOOD);
            for absent in ["null", "\"\""] {
                assert_eq!(decode(&text(absent)).expect("it is absent").traceparent, "");
            }
            let upper = format!("\"{}\"", GOOD.to_uppercase());
            let long = format!("\"{GOOD}0\"");
            for (value, reason) in [
                ("7", Reason::BadMessage),
                ("\"00\"", Reason::BadMessage),
                (upper.as_str(), Reason::BadMessage),
                (long.as_str(), Reason::TooLarge),
            ] {
                let bad = decode(&text(value)).expect_err("it is none");
                let said = "a traceparent of W3C Trace Context (55 bytes) is wanted, at byte 23";
                assert_eq!((bad.seq, bad.reason), (5, reason));
                assert_eq!(bad.text, format!("traceparent: {said}"));
            }
        }
    }
}
