//! Close codes that the gateway sends.

/// The gateway stops.
pub(crate) const GOING_AWAY: u16 = 1001;
/// A kind of data frame that the subprotocol does not use.
pub(crate) const UNSUPPORTED: u16 = 1003;
/// The client broke a rule of the gateway.
pub(crate) const POLICY: u16 = 1008;
/// No room now; a later attempt may succeed.
pub(crate) const TRY_LATER: u16 = 1013;
/// The client does not take its answers.
pub(crate) const TOO_SLOW: u16 = 4001;
/// Nothing was heard of the client.
pub(crate) const NO_HEARTBEAT: u16 = 4002;
/// The client's token has expired.
pub(crate) const TOKEN_EXPIRED: u16 = 4004;
/// No token came in time.
pub(crate) const NO_AUTH: u16 = 4005;
/// The token was not accepted.
pub(crate) const BAD_TOKEN: u16 = 4500;
