//! Characters that may stand in a line for people as they are: in the log, on a terminal.

/// Whether `c` changes nothing but its own place in a line: it neither ends the line nor talks to a
/// terminal, and it neither turns nor hides what stands beside it. Letters of scripts that are
/// written from right to left are plain; the characters that switch the direction are not, and
/// neither are those that cannot be seen, by which two names look like one (Unicode's UAX #9 and
/// UTR #36). U+FE0E and U+FE0F are plain: emoji have them on every keyboard (UTS #51), and names
/// with emoji are wanted. The other variation selectors are in no such use and hide.
pub(crate) fn is_plain(c: char) -> bool {
    let turns_or_hides = matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{feff}'
        // Letters and patterns that are blank: Hangul's fillers, Khmer's inherent vowels, Braille
        // without a dot.
        | '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' | '\u{17b4}' | '\u{17b5}' | '\u{2800}'
        // Mongolian selectors and vowel separator; variation selectors but for those of emoji.
        | '\u{180b}'..='\u{180f}' | '\u{fe00}'..='\u{fe0d}' | '\u{e0100}'..='\u{e01ef}'
        // Spaces of no width, joiners, marks of direction.
        | '\u{200b}'..='\u{200f}'
        // Ends of lines and paragraphs; embeddings and overrides of the direction.
        | '\u{2028}'..='\u{202e}'
        // Word joiner, invisible operators, isolates.
        | '\u{2060}'..='\u{206f}'
        | '\u{fff9}'..='\u{fffb}'
        // Tags.
        | '\u{e0000}'..='\u{e007f}');
    !c.is_control() && !turns_or_hides
}

/// Appends `c` to `out`: as it is if it is plain, escaped if not.
pub(crate) fn push_plain(out: &mut String, c: char) {
    match is_plain(c) {
        true => out.push(c),
        false => out.extend(c.escape_unicode()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_of_every_script_are_plain() {
        let names = "Zoë Ünal, 名前, שלום, مرحبا, हिन्दी, ไทย, 한글, ក\u{17b6}, ⠁, e\u{301}, \
                     🙂, ☎\u{fe0e}, ❤\u{fe0f}";
        assert!(names.chars().all(is_plain));
    }

    #[test]
    fn characters_that_turn_hide_or_end_a_line_are_not() {
        let bad = "\n\r\u{1b}\u{7f}\u{85}\u{9b}\u{ad}\u{61c}\u{200b}\u{200e}\u{200f}\u{2028}\
                   \u{2029}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\
                   \u{2069}\u{206a}\u{feff}\u{fff9}\u{e0041}\u{3164}\u{115f}\u{1160}\u{ffa0}\
                   \u{2800}\u{180b}\u{180d}\u{180e}\u{180f}\u{17b4}\u{17b5}\u{fe00}\u{fe0d}\
                   \u{e0100}\u{e01ef}";
        assert!(!bad.chars().any(is_plain));
    }
}
