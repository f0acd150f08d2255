//! Close codes of WebSocket connections.
//!
//! | codes | defined by | meaning for clients |
//! |---|---|---|
//! | 1000-1003, 1007-1011 | RFC 6455 section 7.4.1 | as in the RFC |
//! | 1004-1006, 1015 | RFC 6455 section 7.4.1 | never in a frame: reserved, or for local use |
//! | 1012-1014 | IANA's registry of close codes | service restart, try again later, bad gateway |
//! | 3000-3999 | IANA's registry of close codes | those of libraries and frameworks |
//! | 4000-4499 | this gateway | reconnect |
//! | 4500-4999 | this gateway | do not reconnect before the cause is removed |
//!
//! All other codes are invalid (section 7.4.2).

/// RFC 6455: the purpose of the connection is fulfilled; from a client, that it leaves.
pub(crate) const NORMAL: u16 = 1000;
/// RFC 6455: the gateway stops.
pub(crate) const GOING_AWAY: u16 = 1001;
/// RFC 6455: the client broke the protocol.
pub(crate) const PROTOCOL_ERROR: u16 = 1002;
/// RFC 6455: a message is of a kind that the connection does not take.
pub(crate) const UNSUPPORTED: u16 = 1003;
/// RFC 6455: a text is not UTF-8.
pub(crate) const INVALID_DATA: u16 = 1007;
/// RFC 6455: the client exceeds a limit that is not one of size.
pub(crate) const POLICY: u16 = 1008;
/// RFC 6455: a message is too big.
pub(crate) const TOO_BIG: u16 = 1009;
/// IANA: the gateway has no room for the client now.
pub(crate) const TRY_LATER: u16 = 1013;

/// Reconnect: the session was resumed on another connection, which has it now.
pub(crate) const RESUMED_ELSEWHERE: u16 = 4000;
/// Reconnect: the client did not take its answers in time.
pub(crate) const TOO_SLOW: u16 = 4001;
/// Reconnect: no frame came for two heartbeats, not even the answer to a ping.
pub(crate) const NO_HEARTBEAT: u16 = 4002;
/// Reconnect with a new token: the token has expired.
pub(crate) const TOKEN_EXPIRED: u16 = 4004;
/// Reconnect with a token: none came in time.
pub(crate) const NO_AUTH: u16 = 4005;

/// Do not reconnect with this token: it was refused.
pub(crate) const BAD_TOKEN: u16 = 4500;

/// Do not reconnect by itself: the user is signed in on another connection.
pub(crate) const SIGNED_IN_ELSEWHERE: u16 = 4502;

/// Whether a close frame may carry `code`.
pub(crate) const fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Whether a client may reconnect after `code`, one of the gateway's own.
const fn may_reconnect(code: u16) -> bool {
    matches!(code, 4000..=4499)
}

const _: () = {
    assert!(may_be_sent(NORMAL) && may_reconnect(RESUMED_ELSEWHERE));
    assert!(may_reconnect(TOO_SLOW) && may_reconnect(NO_HEARTBEAT));
    assert!(may_reconnect(TOKEN_EXPIRED) && may_reconnect(NO_AUTH) && !may_reconnect(BAD_TOKEN));
    assert!(may_be_sent(GOING_AWAY) && may_be_sent(UNSUPPORTED) && may_be_sent(POLICY));
    assert!(may_be_sent(TRY_LATER) && may_be_sent(BAD_TOKEN));
    assert!(may_be_sent(SIGNED_IN_ELSEWHERE) && !may_reconnect(SIGNED_IN_ELSEWHERE));
};

#[cfg(test)]
mod tests {
    use super::*;
    use tungstenite::protocol::frame::coding::CloseCode;

    #[test]
    fn the_codes_that_may_be_sent_are_those_of_the_rfc_and_of_the_registry() {
        for code in 0..=u16::MAX {
            // 1014 (bad gateway) is registered with IANA since tungstenite's list was made.
            let expected = code == 1014 || CloseCode::from(code).is_allowed();
            assert_eq!(may_be_sent(code), expected, "{code}");
        }
    }
}
