//! The payload of events to services: `SessionEvent` of
//! `proto/shardgate/backend/v1/backend.proto`.

use crate::wire::protobuf::{put_bytes, put_number};

/// A `SessionEvent`, borrowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct EventFields<'a> {
    /// Name of the kind.
    pub kind: &'a str,
    /// The group that it is about; empty = none.
    pub group: &'a str,
    /// Why a session or a membership ended; empty = it did not.
    pub reason: &'a str,
    /// Events that were lost.
    pub count: u64,
    /// Number of the event for its service.
    pub number: u64,
    /// Address of the client; empty = not told.
    pub peer: &'a str,
}

/// Encodes an event.
pub(crate) fn write_event(fields: &EventFields<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let EventFields { kind, group, reason, count, number, peer } = *fields;
    put_bytes(&mut out, 1, kind.as_bytes());
    put_bytes(&mut out, 2, group.as_bytes());
    put_bytes(&mut out, 3, reason.as_bytes());
    put_number(&mut out, 4, count);
    put_number(&mut out, 5, number);
    put_bytes(&mut out, 6, peer.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::demo::proto::SessionEvent;

    #[test]
    fn an_event_is_what_its_proto_says() {
        let bytes = write_event(&EventFields {
            kind: "left",
            group: "room:7",
            reason: "CLOSED",
            count: 0,
            number: 300,
            peer: "127.0.0.1:9",
        });
        let expected = SessionEvent {
            kind: "left".into(),
            group: "room:7".into(),
            reason: "CLOSED".into(),
            count: 0,
            number: 300,
            peer: "127.0.0.1:9".into(),
        };
        assert_eq!(SessionEvent::decode(&*bytes), Ok(expected));
        let lost = write_event(&EventFields { kind: "lost", count: 1 << 40, ..Default::default() });
        assert_eq!(SessionEvent::decode(&*lost).map(|event| event.count), Ok(1 << 40));
    }
}
