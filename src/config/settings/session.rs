//! Settings of `[session]`: sessions that outlive their connection.

/// The section `[session]`, but for `per_user` and `per_user_max`, which are limits of connections.
/// Live. Caps are those of a shard.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionSettings {
    /// Time that a resumable session waits for its client; 0 = sessions end with their connection.
    pub ttl_ms: u64,
    /// Time for which a session without a connection counts as there for others; no more than
    /// `ttl_ms`, as it ends then.
    pub grace_ms: u64,
    /// Frames that are kept for a client that has not confirmed them.
    pub kept_items_max: usize,
    /// Bytes of those frames.
    pub kept_bytes_max: usize,
    /// Sessions without a connection.
    pub away_max: usize,
    /// Bytes of the frames of all sessions.
    pub kept_total_bytes_max: usize,
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self {
            ttl_ms: 60_000,
            grace_ms: 5_000,
            kept_items_max: 256,
            kept_bytes_max: 64 << 10,
            away_max: 100_000,
            // A thousand whole windows, or 640 bytes for each session that may be away.
            kept_total_bytes_max: 64 << 20,
        }
    }
}
