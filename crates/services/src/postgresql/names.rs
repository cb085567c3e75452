//! Names: as SQL wants them quoted, and as files can bear them.

use std::fmt::Write as _;

/// An identifier, quoted: names of any spelling survive.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A name with its schema.
pub(super) fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", ident(schema), ident(name))
}

/// A string constant, whatever the session's `standard_conforming_strings` says.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// A name as a part of a path: everything but letters, digits, `_` and `-` is percent-encoded, so
/// no name leaves its directory and none collides with another.
pub(super) fn for_path(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// The longest identifier that PostgreSQL keeps whole, in bytes.
const IDENTIFIER: usize = 63;

/// `NAME_WORD_TOKEN`, with NAME cut so that it is an identifier.
pub(super) fn beside(name: &str, word: &str, token: &str) -> String {
    let tail = format!("_{word}_{token}");
    let mut end = name.len().min(IDENTIFIER.saturating_sub(tail.len()));
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{tail}", &name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_in_names_and_texts_are_doubled() {
        assert_eq!(qualified("a\"b", "c"), "\"a\"\"b\".\"c\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\b'"), r" E'a\\b'''");
    }

    #[test]
    fn no_name_can_leave_its_directory_or_meet_another() {
        assert_eq!(for_path(".."), "%2E%2E");
        assert_eq!(for_path("a/b.c"), "a%2Fb%2Ec");
        assert_ne!(for_path("a%2F"), for_path("a/"));
    }

    #[test]
    fn a_long_name_keeps_its_token_whole() {
        let name = beside(&"ä".repeat(31), "stillpoint", "abc123");
        assert!(name.len() <= 63, "{name}");
        assert!(name.ends_with("_stillpoint_abc123"));
    }
}
