//! The slow reader of an object, for what the quick one does not take. It knows where it is, so
//! that a refusal can say that.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::limits::{ID_BYTES_MAX, JSON_DEPTH_MAX, KEY_BYTES_MAX, SEQ_MAX, TYPE_BYTES_MAX};
use crate::message::ClientMessage;
use crate::wire::bad_message::{BadMessage, Fault, Field, What};
use crate::wire::trace_context::{TRACEPARENT_BYTES, is_traceparent};

/// Reads a message, or says what is wrong with it. The `seq` is found unless a syntax error stands
/// before it; of two none counts.
#[cold]
pub(super) fn read(text: &str) -> Result<ClientMessage<'_>, BadMessage> {
    let mut message = ClientMessage::default();
    let mut seen = Vec::new();
    let mut fault = nests_too_deep(text.as_bytes()).map(|at| Fault { what: What::TooDeep, at });
    let mut note = |what, at| {
        fault.get_or_insert(Fault { what, at });
    };
    let mut object = Object::new(text);
    loop {
        match object.next() {
            Ok(Some(Entry { key, key_at, value, value_at })) => {
                let Some(field) = field_of(key.as_deref()) else { continue };
                if seen.contains(&field) {
                    note(What::Twice(field), key_at);
                    if field == Field::Seq {
                        message.seq = 0;
                    }
                    continue;
                }
                seen.push(field);
                if let Err(what) = set(&mut message, field, value) {
                    note(what, value_at);
                }
                if !message.payload.is_empty() && message.payload_base64.is_some() {
                    note(What::TwoPayloads, value_at);
                }
            }
            Ok(None) => break,
            Err(Fault { what, at }) => {
                note(what, at);
                break;
            }
        }
    }
    if message.msg_id == 0 && message.kind.is_empty() {
        note(What::NoId, 0);
    }
    match fault {
        None => Ok(message),
        Some(fault) => Err(BadMessage::new(message.seq, fault)),
    }
}

fn field_of(key: Option<&str>) -> Option<Field> {
    key.and_then(Field::of_name)
}

/// The values of the keys `wanted` in an object, as JSON texts. `null` is not there; other keys are
/// ignored. `None`: it is not JSON or no object, or one of the keys comes twice.
pub(crate) fn values<'a, const N: usize>(
    text: &'a str,
    wanted: [&str; N],
) -> Option<[Option<&'a str>; N]> {
    let found = values_and_nulls(text, wanted)?;
    Some(found.map(|value| value.filter(|text| *text != "null")))
}

/// Like [`values`], but `null` is a value like others.
pub(crate) fn values_and_nulls<'a, const N: usize>(
    text: &'a str,
    wanted: [&str; N],
) -> Option<[Option<&'a str>; N]> {
    let mut found = [None; N];
    let mut object = Object::new(text);
    while let Some(Entry { key, value, .. }) = object.next().ok()? {
        let Some(i) = wanted.iter().position(|name| key.as_deref() == Some(*name)) else {
            continue;
        };
        if found[i].replace(value).is_some() {
            return None;
        }
    }
    Some(found)
}

/// Sets a field to a value, which is a JSON text. `null` is not there, except as a payload.
fn set<'a>(message: &mut ClientMessage<'a>, field: Field, value: &'a str) -> Result<(), What> {
    if value == "null" && field != Field::Payload {
        return Ok(());
    }
    let whole = || whole_number(value).ok_or(What::Wanted(field));
    let narrow = || whole().and_then(|n| u32::try_from(n).map_err(|_| What::Wanted(field)));
    let text = |bytes_max| match string(value) {
        Some(text) if text.len() <= bytes_max => Ok(text),
        Some(_) => Err(What::TooLong(field)),
        None if value.starts_with('"') => Err(What::Escape(field)),
        None => Err(What::Wanted(field)),
    };
    match field {
        Field::MsgId => message.msg_id = narrow()?,
        Field::Seq => {
            message.seq = whole()?;
            if message.seq > SEQ_MAX {
                return Err(What::Wanted(field));
            }
        }
        Field::Type => message.kind = text(TYPE_BYTES_MAX)?,
        Field::Payload => message.payload = value.as_bytes(),
        Field::Id => message.id = text(ID_BYTES_MAX)?,
        Field::Key => message.key = text(KEY_BYTES_MAX)?,
        Field::DeadlineMs => message.deadline_ms = narrow()?,
        Field::Ack => message.ack = whole()?,
        Field::Traceparent => {
            message.traceparent = text(TRACEPARENT_BYTES)?;
            if !message.traceparent.is_empty() && !is_traceparent(&message.traceparent) {
                return Err(What::Wanted(field));
            }
        }
        Field::PayloadBase64 => {
            message.payload_base64 = Some(text(usize::MAX)?).filter(|text| !text.is_empty());
        }
    }
    Ok(())
}

/// A string, borrowed unless it has escapes. (A `Cow` alone would be read as a copy.)
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The string in a JSON text, borrowed unless it has escapes.
pub(crate) fn string(value: &str) -> Option<Cow<'_, str>> {
    serde_json::from_str::<Text<'_>>(value).ok().map(|text| text.0)
}

/// The value of a JSON number that is exactly a whole number below 2^64, however it is written:
/// `1001.0`, `1.001e3` and `-0` are. No float is in between, so nothing is rounded.
pub(crate) fn whole_number(text: &str) -> Option<u64> {
    let (text, negative) = match text.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    if !text.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    // The digits between the zeros at both ends, and how many zeros came after them.
    let (mut value, mut zeros) = (0_u64, 0_u32);
    for digit in whole.bytes().chain(fraction.bytes()).map(|byte| u64::from(byte - b'0')) {
        if digit == 0 {
            zeros += 1;
            continue;
        }
        let moved =
            if value == 0 { 0 } else { value.checked_mul(10_u64.checked_pow(zeros + 1)?)? };
        value = moved.checked_add(digit)?;
        zeros = 0;
    }
    if value == 0 {
        return Some(0);
    }
    let exponent = i64::from(exponent.parse::<i32>().ok()?);
    let exponent = exponent - fraction.len() as i64 + i64::from(zeros);
    let factor = 10_u64.checked_pow(u32::try_from(exponent).ok()?)?;
    value.checked_mul(factor).filter(|_| !negative)
}

/// An object that is read entry by entry.
struct Object<'a> {
    text: &'a str,
    at: usize,
    /// Nothing was read yet.
    is_new: bool,
}

/// A key and its value.
struct Entry<'a> {
    /// The key. `None`: it is no text (half of a surrogate pair), so it is none that is known.
    key: Option<Cow<'a, str>>,
    key_at: usize,
    /// The text of the value.
    value: &'a str,
    value_at: usize,
}

impl<'a> Object<'a> {
    /// The object in `text`, which may begin with a byte order mark (RFC 8259 section 8.1).
    fn new(text: &'a str) -> Self {
        let at = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        Self { text, at, is_new: true }
    }

    /// The next entry. `None`: there are no more, and nothing stands behind the object.
    fn next(&mut self) -> Result<Option<Entry<'a>>, Fault> {
        let syntax = |at| Fault { what: What::NotJson(None), at };
        if std::mem::take(&mut self.is_new) {
            self.open()?;
            if self.take(b'}') {
                return self.end();
            }
        } else if self.take(b'}') {
            return self.end();
        } else if !self.take(b',') {
            return Err(syntax(self.at));
        }
        self.skip_whitespace();
        let key_at = self.at;
        if !self.text[self.at..].starts_with('"') {
            return Err(syntax(self.at));
        }
        let key = self.value().map_err(syntax)?;
        let key = string(key);
        if !self.take(b':') {
            return Err(syntax(self.at));
        }
        self.skip_whitespace();
        let value_at = self.at;
        let value = self.value();
        let value = value.map_err(|at| Fault { what: What::NotJson(field_of(key.as_deref())), at });
        Ok(Some(Entry { key, key_at, value: value?, value_at }))
    }

    fn open(&mut self) -> Result<(), Fault> {
        self.skip_whitespace();
        let at = self.at;
        if self.take(b'{') {
            return Ok(());
        }
        let what = match self.value() {
            Ok(_) => What::NotAnObject,
            Err(at) => return Err(Fault { what: What::NotJson(None), at }),
        };
        Err(Fault { what, at })
    }

    fn end(&mut self) -> Result<Option<Entry<'a>>, Fault> {
        self.skip_whitespace();
        if self.at == self.text.len() {
            return Ok(None);
        }
        Err(Fault { what: What::NotJson(None), at: self.at })
    }

    fn skip_whitespace(&mut self) {
        let rest = &self.text.as_bytes()[self.at..];
        self.at += rest.iter().take_while(|byte| b" \t\r\n".contains(byte)).count();
    }

    /// Whether `byte` comes next; then it is passed.
    fn take(&mut self, byte: u8) -> bool {
        self.skip_whitespace();
        let found = self.text.as_bytes().get(self.at) == Some(&byte);
        self.at += usize::from(found);
        found
    }

    /// Passes a value. The error is the place of what is none.
    fn value(&mut self) -> Result<&'a str, usize> {
        let rest = &self.text[self.at..];
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<&'a RawValue>();
        match values.next() {
            Some(Ok(value)) => {
                self.at += values.byte_offset();
                Ok(value.get())
            }
            Some(Err(error)) => Err(self.at + place(&error, rest)),
            None => Err(self.text.len()),
        }
    }
}

/// Place of the first bracket that opens a level too deep.
fn nests_too_deep(bytes: &[u8]) -> Option<usize> {
    let (mut depth, mut in_string) = (0_usize, false);
    let mut rest = bytes.iter().enumerate();
    while let Some((at, byte)) = rest.next() {
        match (byte, in_string) {
            (b'"', _) => in_string = !in_string,
            (b'\\', true) => {
                rest.next();
            }
            (b'[' | b'{', false) => {
                depth += 1;
                if depth > JSON_DEPTH_MAX {
                    return Some(at);
                }
            }
            (b']' | b'}', false) => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// Bytes of `text` in front of the one that the error is about.
fn place(error: &serde_json::Error, text: &str) -> usize {
    if error.is_eof() {
        return text.len();
    }
    // Lines and columns count from 1, columns in bytes.
    let lines = text.split_inclusive('\n').take(error.line().saturating_sub(1));
    let line_at: usize = lines.map(str::len).sum();
    (line_at + error.column().saturating_sub(1)).min(text.len())
}
