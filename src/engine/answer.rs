//! The terminal answer of a message, before encoding.

use crate::message::{Reason, Reject};

/// A terminal answer, before encoding.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Answer<'a> {
    /// Canonical gRPC code of the result.
    pub status: u32,
    /// Reason of an answer that the gateway made; `None` for the service's.
    pub reason: Option<Reason>,
    /// Error text for people.
    pub text: &'a str,
    pub payload: &'a [u8],
    /// Whether JSON clients get the payload as base64.
    pub is_bytes: bool,
    /// Milliseconds after which to try again; 0 = absent.
    pub retry_after_ms: u32,
}

impl<'a> Answer<'a> {
    /// The answer to a message that the gateway refuses.
    pub fn reject(reject: &Reject) -> Self {
        Self {
            status: reject.reason.status(),
            reason: Some(reject.reason),
            text: reject.text,
            payload: &[],
            is_bytes: false,
            retry_after_ms: reject.retry_after_ms,
        }
    }
}
