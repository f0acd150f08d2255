//! The syntax of JSON (RFC 8259), and nothing else of it: where a value ends. Values are passed
//! over, never built, because the payload of a message goes on as the bytes that came.
//!
//! Each function takes the text from some place on, and gives what is left of it. Strings and
//! digits, of which texts are made, are passed by words of eight bytes. Bytes above 127 count as
//! characters of a string: whether they are UTF-8 is checked elsewhere.

/// Most levels of nesting that [`after_value`] can be asked for: it keeps a bit for each.
const LEVELS_MAX: u32 = u64::BITS;

/// Whether `text` is one value and whitespace, with at most `levels` levels.
pub(super) fn is_one_value(text: &[u8], levels: u32) -> bool {
    let after = token(text).and_then(|(first, rest)| after_value(first, rest, levels));
    after.is_some_and(|rest| token(rest).is_none())
}

/// The first byte that is no whitespace, and what comes after it. `None`: there is none.
#[inline]
pub(super) fn token(text: &[u8]) -> Option<(u8, &[u8])> {
    match text.split_first() {
        Some((&first, rest)) if first > b' ' => Some((first, rest)),
        Some(_) => after_whitespace(text).split_first().map(|(&first, rest)| (first, rest)),
        None => None,
    }
}

#[inline(never)]
fn after_whitespace(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t' | b'\r' | b'\n', rest @ ..] = text {
        text = rest;
        // The indentation of a line.
        while let Some((word, rest)) = text.split_first_chunk()
            && u64::from_le_bytes(*word) == each(b' ')
        {
            text = rest;
        }
    }
    text
}

/// What comes after the value of which the `first` byte was taken off. `None`: it is no value, or
/// its arrays and objects nest deeper than `levels`, which are at most [`LEVELS_MAX`].
pub(super) fn after_value(first: u8, text: &[u8], levels: u32) -> Option<&[u8]> {
    debug_assert!(levels <= LEVELS_MAX, "a bit for each level");
    // A bit for each open level, the innermost lowest: whether it is an object.
    let (mut open, mut depth) = (0_u64, 0);
    let (mut first, mut text) = (first, text);
    loop {
        text = match first {
            b'"' => after_string(text)?,
            b'-' | b'0'..=b'9' => after_number(first, text)?,
            b'{' | b'[' => {
                if depth == levels {
                    return None;
                }
                let (next, rest) = token(text)?;
                // The closing brackets are two above the opening ones.
                if next != first + 2 {
                    let is_object = first == b'{';
                    open = open << 1 | u64::from(is_object);
                    depth += 1;
                    (first, text) = if is_object { after_key(next, rest)? } else { (next, rest) };
                    continue;
                }
                rest
            }
            b't' => text.strip_prefix(b"rue")?,
            b'f' => text.strip_prefix(b"alse")?,
            b'n' => text.strip_prefix(b"ull")?,
            _ => return None,
        };
        // Levels end here, until one goes on.
        loop {
            if depth == 0 {
                return Some(text);
            }
            let is_object = open & 1 == 1;
            let (next, rest) = token(text)?;
            if next == b',' {
                (first, text) = token(rest)?;
                if is_object {
                    (first, text) = after_key(first, text)?;
                }
                break;
            }
            if next != if is_object { b'}' } else { b']' } {
                return None;
            }
            text = rest;
            open >>= 1;
            depth -= 1;
        }
    }
}

/// The first byte of the value behind the key of which `first` was taken off, and the rest.
#[inline]
fn after_key(first: u8, text: &[u8]) -> Option<(u8, &[u8])> {
    if first != b'"' {
        return None;
    }
    match token(after_string(text)?)? {
        (b':', rest) => token(rest),
        _ => None,
    }
}

/// What comes after the string of which the opening quote was taken off.
#[inline]
fn after_string(text: &[u8]) -> Option<&[u8]> {
    let rest = after_plain(text);
    match rest.split_first()? {
        (b'"', rest) => Some(rest),
        _ => after_escapes(rest),
    }
}

/// As [`after_string`], from the first byte on that does not stand for itself.
#[inline(never)]
fn after_escapes(mut text: &[u8]) -> Option<&[u8]> {
    loop {
        text = match text {
            [b'"', rest @ ..] => return Some(rest),
            [b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', rest @ ..] => rest,
            // Whether surrogates are in pairs is no question of syntax.
            [b'\\', b'u', a, b, c, d, rest @ ..]
                if [a, b, c, d].iter().all(|digit| digit.is_ascii_hexdigit()) =>
            {
                rest
            }
            _ => return None,
        };
        text = after_plain(text);
    }
}

/// The rest from the first byte on that does not stand for itself in a string: a quote, a
/// backslash or a control character.
#[inline]
pub(super) fn after_plain(text: &[u8]) -> &[u8] {
    if let Some((word, rest)) = text.split_first_chunk() {
        match not_plain(u64::from_le_bytes(*word)) {
            0 => after_long_plain(rest),
            found => &text[bytes_before(found)..],
        }
    } else {
        after_long_plain(text)
    }
}

/// As [`after_plain`], for more than a few bytes, and for the last few of a text.
#[inline(never)]
fn after_long_plain(mut text: &[u8]) -> &[u8] {
    let is_special = |byte: u8| (byte == b'"') | (byte == b'\\') | (byte < 0x20);
    while let Some((block, rest)) = text.split_first_chunk::<32>() {
        // No branch in between, so that the compiler looks at 16 or 32 bytes at once.
        if block.iter().fold(false, |found, &byte| found | is_special(byte)) {
            break;
        }
        text = rest;
    }
    while let Some((word, rest)) = text.split_first_chunk() {
        match not_plain(u64::from_le_bytes(*word)) {
            0 => text = rest,
            found => return &text[bytes_before(found)..],
        }
    }
    let end = text.iter().position(|&byte| is_special(byte));
    &text[end.unwrap_or(text.len())..]
}

/// What comes after the number of which the `first` byte was taken off. A number begins with one
/// zero or another digit, so digits behind a zero are left.
#[inline]
fn after_number(first: u8, text: &[u8]) -> Option<&[u8]> {
    let (first, text) = if first == b'-' { text.split_first()? } else { (&first, text) };
    let rest = match first {
        b'0' => text,
        b'1'..=b'9' => after_digits(text),
        _ => return None,
    };
    match rest.first() {
        Some(b'.' | b'e' | b'E') => after_fraction(rest),
        _ => Some(rest),
    }
}

/// What comes after a fraction, an exponent, or both.
#[inline(never)]
fn after_fraction(text: &[u8]) -> Option<&[u8]> {
    let rest = match text {
        [b'.', b'0'..=b'9', rest @ ..] => after_digits(rest),
        [b'.', ..] => return None,
        _ => text,
    };
    match rest {
        [b'e' | b'E', b'+' | b'-', b'0'..=b'9', rest @ ..]
        | [b'e' | b'E', b'0'..=b'9', rest @ ..] => Some(after_digits(rest)),
        [b'e' | b'E', ..] => None,
        _ => Some(rest),
    }
}

/// The number that is written in plain digits of which the `first` was taken off, and the rest.
/// `None`: it is written otherwise, or in over 19 digits, of which 2^64 has 20.
#[inline]
pub(super) fn plain_number(first: u8, text: &[u8]) -> Option<(u64, &[u8])> {
    let rest = after_digits(text);
    let digits = &text[..text.len() - rest.len()];
    let is_plain = matches!(first, b'1'..=b'9')
        && digits.len() < 19
        && !matches!(rest.first(), Some(b'.' | b'e' | b'E'));
    let first = u64::from(first.wrapping_sub(b'0'));
    let number = || digits.iter().fold(first, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    is_plain.then(|| (number(), rest))
}

/// The rest from the first byte on that is no digit.
#[inline]
fn after_digits(text: &[u8]) -> &[u8] {
    if let Some((word, _)) = text.split_first_chunk() {
        let found = not_digits(u64::from_le_bytes(*word));
        if found != 0 {
            return &text[bytes_before(found)..];
        }
    }
    let end = text.iter().position(|byte| !byte.is_ascii_digit());
    &text[end.unwrap_or(text.len())..]
}

/// The upper bits of a word's bytes that do not stand for themselves in a string. The lowest bit
/// is right.
#[inline]
fn not_plain(word: u64) -> u64 {
    // A byte is 0 after the exclusive-or with its like, and the subtraction then borrows from its
    // upper bit; so it does from a byte below 0x20. A borrow reaches bytes above, too.
    let quote = (word ^ each(b'"')).wrapping_sub(each(1));
    let backslash = (word ^ each(b'\\')).wrapping_sub(each(1));
    let control = word.wrapping_sub(each(0x20));
    (quote | backslash | control) & !word & each(0x80)
}

/// The upper bits of a word's bytes that are no digits. The lowest bit is right.
#[inline]
fn not_digits(word: u64) -> u64 {
    // Digits become 0 to 9. What is above 9 sets the upper bit by the addition, or had it; a carry
    // reaches bytes above.
    let word = word ^ each(b'0');
    (word.wrapping_add(each(0x80 - 10)) | word) & each(0x80)
}

/// A byte in each place of a word.
const fn each(byte: u8) -> u64 {
    u64::from_le_bytes([byte; 8])
}

/// Bytes below the lowest bit that is set.
#[inline]
fn bytes_before(found: u64) -> usize {
    found.trailing_zeros() as usize / 8
}
