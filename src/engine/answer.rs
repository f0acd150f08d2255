//! The terminal answer of a message, before encoding.

use crate::message::{Reason, Reject};

/// A terminal answer, before encoding.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// Canonical gRPC code.
    pub status: u32,
    /// The gateway's word; `None` = the service's answer.
    pub reason: Option<Reason>,
    /// For people.
    pub text: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// Whether JSON clients get the payload as base64.
    pub is_bytes: bool,
    /// 0 = absent.
    pub retry_after_ms: u32,
}

impl<'a> Answer<'a> {
    /// The gateway refuses.
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
