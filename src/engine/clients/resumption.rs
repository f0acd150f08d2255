//! What lets a client resume its session: the secret, and the frames that it may not have.

use crate::engine::clients::kept::{AckAhead, Kept};
use crate::ids::{SessionId, SessionSecret};
use crate::message::Encoding;
use crate::push::Position;

/// A session that a client wants to go on with.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The `resume` message that is answered.
    pub seq: u64,
    /// Id of the session.
    pub session: SessionId,
    /// The secret that it was told with.
    pub secret: SessionSecret,
    /// The last offset that the client has.
    pub offset: u64,
    /// Names of groups, and up to where the client has their pushes.
    pub groups: Vec<(String, Position)>,
}

/// The state of a session that was made resumable.
#[derive(Debug)]
pub struct Resumption {
    /// Encoding of the frames that are kept: that of the connection, or of the last one.
    pub encoding: Encoding,
    secret: SessionSecret,
    /// The secret before, until the client has shown that it got the present one: the message that
    /// told it may have been lost.
    former: Option<SessionSecret>,
    /// Offset whose ack shows that: nobody could know of it before the present secret was told.
    shown_by: u64,
    /// The last offset of frames that were dropped because they were in another encoding. Their
    /// client may not have read that they were: it is told when it comes back once more.
    recoded: u64,
    /// The frames.
    pub kept: Kept,
}

impl Resumption {
    /// A session that nothing was sent to yet.
    pub fn new(encoding: Encoding, secret: SessionSecret) -> Self {
        Self { encoding, secret, former: None, shown_by: 0, recoded: 0, kept: Kept::default() }
    }

    /// Whether a client that shows `secret` may resume the session.
    pub fn accepts(&self, secret: SessionSecret) -> bool {
        let is_former = self.former.is_some_and(|former| former.equals(secret));
        self.secret.equals(secret) | is_former
    }

    /// Replaces the secret by `secret`. The one with which the session was resumed stays good until
    /// the client confirms the next frame: it can only have got that behind the new secret. An
    /// older number proves nothing, as a client may have sent it before.
    pub fn renew(&mut self, shown: SessionSecret, secret: SessionSecret) {
        self.former = Some(shown);
        self.secret = secret;
        self.shown_by = self.kept.last() + 1;
    }

    /// Goes on in `encoding`: of frames in another one nothing can be used. Returns how many are
    /// dropped.
    pub fn recode(&mut self, encoding: Encoding) -> usize {
        let dropped = if self.encoding == encoding { 0 } else { self.kept.count() };
        if dropped > 0 {
            self.recoded = self.kept.last();
            self.kept.clear();
        }
        self.encoding = encoding;
        dropped
    }

    /// Whether frames above `offset` were dropped because of their encoding.
    pub fn is_recoded_after(&self, offset: u64) -> bool {
        offset < self.recoded
    }

    /// Takes note that the client has everything up to `offset`.
    pub fn confirm(&mut self, offset: u64) -> Result<(), AckAhead> {
        self.kept.confirm(offset)?;
        if offset >= self.shown_by {
            self.former = None;
        }
        Ok(())
    }

    /// The present secret.
    pub fn secret(&self) -> SessionSecret {
        self.secret
    }

    /// The secrets that resume it: the present one, and the former one or the present one again.
    pub fn secrets(&self) -> [SessionSecret; 2] {
        [self.secret, self.former.unwrap_or(self.secret)]
    }

    /// Bytes of memory that it holds.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.kept.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::clients::kept::WindowCaps;

    const CAPS: WindowCaps = WindowCaps { items: 10, bytes: 1_000 };

    fn secret(n: u128) -> SessionSecret {
        SessionSecret::new(n)
    }

    /// A session to which `count` frames were sent.
    fn with(count: u64) -> Resumption {
        let mut resumption = Resumption::new(Encoding::Json, secret(1));
        (0..count).for_each(|_| assert!(resumption.kept.push(b"frame", CAPS)));
        resumption
    }

    #[test]
    fn the_former_secret_is_good_until_the_client_confirms_what_came_behind_the_new_one() {
        let mut resumption = with(3);
        resumption.renew(secret(1), secret(2));
        assert!(resumption.accepts(secret(1)) && resumption.accepts(secret(2)));
        resumption.confirm(3).expect("given");
        assert!(resumption.accepts(secret(1)), "its old connection may have brought them");
        assert!(resumption.kept.push(b"frame", CAPS));
        resumption.confirm(4).expect("given");
        assert!(!resumption.accepts(secret(1)) && resumption.accepts(secret(2)));
    }

    #[test]
    fn an_ack_that_was_sent_along_with_the_resume_confirms_no_secret() {
        let mut resumption = with(3);
        resumption.renew(secret(1), secret(2));
        resumption.confirm(3).expect("given");
        assert!(resumption.accepts(secret(1)), "it knew that number before");
        assert!(resumption.kept.push(b"frame", CAPS));
        resumption.confirm(4).expect("given");
        assert!(!resumption.accepts(secret(1)));
    }

    #[test]
    fn a_secret_that_was_lost_on_its_way_is_replaced_and_never_good_again() {
        let mut resumption = with(1);
        resumption.renew(secret(1), secret(2));
        resumption.renew(secret(1), secret(3));
        assert!(!resumption.accepts(secret(2)));
        assert!(resumption.accepts(secret(1)) && resumption.accepts(secret(3)));
    }
}
