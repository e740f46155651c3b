//! What may be shown to people of what others have written: on a terminal, on a page, in a line of the log.

/// Whether this character is only seen. Others do something where they are shown: begin a line or a command to the terminal, or turn the
/// direction of what follows, with which one name looks like another (Unicode's property `Bidi_Control`, UAX #9).
pub fn is_plain(character: char) -> bool {
    let is_separator = matches!(character, '\u{2028}' | '\u{2029}');
    let is_bidi_control = matches!(
        character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    !character.is_control() && !is_separator && !is_bidi_control
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_something_where_it_is_shown_is_not_plain() {
        let others: Vec<_> = (char::MIN..=char::MAX).filter(|&character| !is_plain(character)).collect();
        let controls = ('\0'..='\u{1f}').chain('\u{7f}'..='\u{9f}');
        let marks = ['\u{61c}', '\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}'];
        let turns = ('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}');
        assert_eq!(others, controls.chain(marks).chain(turns).collect::<Vec<_>>());
    }
}
