//! Characters that may stand in a line for people as they are: in the log, on a terminal.

/// Whether `c` changes nothing but its own place in a line: it neither ends the line nor talks to a
/// terminal, and it neither turns nor hides what stands beside it. Letters of scripts that are
/// written from right to left are plain; the characters that switch the direction are not, and
/// neither are those that cannot be seen, by which two names look like one (Unicode's UAX #9 and
/// UTR #36).
pub(crate) fn is_plain(c: char) -> bool {
    let turns_or_hides = matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180e}' | '\u{feff}'
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_of_every_script_are_plain() {
        let names = "Zoë Ünal, 名前, שלום, مرحبا, हिन्दी, ไทย, 🙂, e\u{301}";
        assert!(names.chars().all(is_plain));
    }

    #[test]
    fn characters_that_turn_hide_or_end_a_line_are_not() {
        let bad = "\n\r\u{1b}\u{7f}\u{85}\u{9b}\u{ad}\u{61c}\u{200b}\u{200e}\u{200f}\u{2028}\
                   \u{2029}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\
                   \u{2069}\u{206a}\u{feff}\u{fff9}\u{e0041}";
        assert!(!bad.chars().any(is_plain));
    }
}
