//! The quick reader of a message: what is right is read in one sweep over the text. What it does
//! not take is read again by [`super::fields`], which can say what is wrong.

use std::borrow::Cow;

use super::{fields, syntax};
use crate::limits::{ID_BYTES_MAX, JSON_DEPTH_MAX, KEY_BYTES_MAX, SEQ_MAX, TYPE_BYTES_MAX};
use crate::message::ClientMessage;
use crate::wire::bad_message::Field;
use crate::wire::trace_context::is_traceparent;

/// Levels of a value in a message, which is the first level itself.
const LEVELS: u32 = JSON_DEPTH_MAX as u32 - 1;

/// Reads a message whose keys are written without escapes. `None`: it is another one, or none.
#[inline]
pub(super) fn read(text: &str) -> Option<ClientMessage<'_>> {
    let mut message = ClientMessage::default();
    let mut seen = 0_u16;
    let mut cursor = Cursor { text, rest: text.as_bytes() };
    // An object without entries is no message.
    if cursor.token()? != b'{' || cursor.token()? != b'"' {
        return None;
    }
    loop {
        let field = cursor.key()?;
        if let Some(field) = field {
            let bit = 1 << field as u16;
            if seen & bit != 0 {
                return None;
            }
            seen |= bit;
        }
        match field {
            None => drop(cursor.value()?),
            Some(Field::MsgId) => message.msg_id = cursor.number()?.try_into().ok()?,
            Some(Field::Seq) => message.seq = cursor.number()?,
            Some(Field::Type) => message.kind = cursor.string()?,
            Some(Field::Payload) => message.payload = cursor.value()?.as_bytes(),
            Some(Field::Id) => message.id = cursor.string()?,
            Some(Field::Key) => message.key = cursor.string()?,
            Some(Field::DeadlineMs) => message.deadline_ms = cursor.number()?.try_into().ok()?,
            Some(Field::Ack) => message.ack = cursor.number()?,
            Some(Field::Traceparent) => message.traceparent = cursor.string()?,
            Some(Field::PayloadBase64) => {
                message.payload_base64 = Some(cursor.string()?).filter(|text| !text.is_empty());
            }
        }
        match cursor.token()? {
            b',' if cursor.token()? == b'"' => {}
            b'}' => break,
            _ => return None,
        }
    }
    let is_good = cursor.token().is_none()
        && message.seq <= SEQ_MAX
        && message.kind.len() <= TYPE_BYTES_MAX
        && message.id.len() <= ID_BYTES_MAX
        && message.key.len() <= KEY_BYTES_MAX
        && (message.traceparent.is_empty() || is_traceparent(&message.traceparent))
        && (message.msg_id != 0 || !message.kind.is_empty())
        && (message.payload.is_empty() || message.payload_base64.is_none());
    is_good.then_some(message)
}

/// The rest of an object that is read entry by entry. After an answer of `None` it is anything.
struct Cursor<'a> {
    /// The whole object.
    text: &'a str,
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// Passes whitespace and one byte behind it.
    #[inline]
    fn token(&mut self) -> Option<u8> {
        let (token, rest) = syntax::token(self.rest)?;
        self.rest = rest;
        Some(token)
    }

    /// Passes a key whose quote was passed, and its colon. `Some(None)`: it is not known.
    #[inline]
    fn key(&mut self) -> Option<Option<Field>> {
        let field = Field::of_name(self.plain_string(self.rest)?);
        (self.token()? == b':').then_some(field)
    }

    /// Passes a value.
    #[inline]
    fn value(&mut self) -> Option<&'a str> {
        let (first, rest) = syntax::token(self.rest)?;
        self.rest = syntax::after_value(first, rest, LEVELS)?;
        Some(&self.text[self.at(rest) - 1..self.at(self.rest)])
    }

    /// Passes a whole number, or `null`, which is 0.
    #[inline]
    fn number(&mut self) -> Option<u64> {
        let (first, rest) = syntax::token(self.rest)?;
        if let Some((number, rest)) = syntax::plain_number(first, rest) {
            self.rest = rest;
            return Some(number);
        }
        match self.value()? {
            "null" => Some(0),
            value => fields::whole_number(value),
        }
    }

    /// Passes a string, or `null`, which is empty.
    #[inline]
    fn string(&mut self) -> Option<Cow<'a, str>> {
        if let (b'"', rest) = syntax::token(self.rest)?
            && let Some(text) = self.plain_string(rest)
        {
            return Some(Cow::Borrowed(text));
        }
        match self.value()? {
            "null" => Some(Cow::Borrowed("")),
            value => fields::string(value),
        }
    }

    /// Passes the string that is in front of `text` and its closing quote. `None`: it has escapes,
    /// and nothing is passed.
    #[inline]
    fn plain_string(&mut self, text: &'a [u8]) -> Option<&'a str> {
        let end = syntax::after_plain(text);
        let (_, rest) = end.split_first().filter(|(byte, _)| **byte == b'"')?;
        self.rest = rest;
        Some(&self.text[self.at(text)..self.at(end)])
    }

    /// Place of what is left.
    #[inline]
    fn at(&self, rest: &[u8]) -> usize {
        self.text.len() - rest.len()
    }
}

#[cfg(test)]
mod tests;
