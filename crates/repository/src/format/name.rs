//! File names in trees: any bytes, as the inside of a Go string literal.
//!
//! Printable characters stand for themselves; all else is escaped, bytes that are not UTF-8 as
//! `\xNN`. Which characters are printable depends on the Unicode version of the writer: for those
//! that are newer than a client, its own encoding of the same name differs. Readers take both.

use std::fmt::Write;

/// The escaped form.
pub(crate) fn quote(name: &[u8]) -> String {
    let mut out = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            push(&mut out, character);
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

fn push(out: &mut String, character: char) {
    match character {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        ' '..='~' => out.push(character),
        '\x07' => out.push_str("\\a"),
        '\x08' => out.push_str("\\b"),
        '\x0c' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\x0b' => out.push_str("\\v"),
        '\0'..='\x7f' => {
            let _ = write!(out, "\\x{:02x}", u32::from(character));
        }
        _ if is_printable(character) => out.push(character),
        '\u{80}'..='\u{ffff}' => {
            let _ = write!(out, "\\u{:04x}", u32::from(character));
        }
        _ => {
            let _ = write!(out, "\\U{:08x}", u32::from(character));
        }
    }
}

/// Letters, marks, numbers, punctuation and symbols. The standard library knows the same classes for
/// its own escapes; marks it escapes only where a string begins with one, hence the `x`.
fn is_printable(character: char) -> bool {
    let mut text = String::with_capacity(5);
    text.push('x');
    text.push(character);
    text.escape_debug().nth(1) == Some(character)
}

/// The bytes of an escaped name; `None` if it is not a valid literal.
pub(crate) fn unquote(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        match character {
            '"' | '\n' => return None,
            '\\' => {}
            _ => {
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
        }
        match rest.next()? {
            'a' => out.push(7),
            'b' => out.push(8),
            'f' => out.push(12),
            'n' => out.push(b'\n'),
            'r' => out.push(b'\r'),
            't' => out.push(b'\t'),
            'v' => out.push(11),
            '\\' => out.push(b'\\'),
            '"' => out.push(b'"'),
            'x' => out.push(u8::try_from(number(&mut rest, 2, 16)?).ok()?),
            'u' => push_scalar(&mut out, number(&mut rest, 4, 16)?)?,
            'U' => push_scalar(&mut out, number(&mut rest, 8, 16)?)?,
            first @ '0'..='7' => {
                let value = first.to_digit(8)? * 64 + number(&mut rest, 2, 8)?;
                out.push(u8::try_from(value).ok()?);
            }
            _ => return None,
        }
    }
    Some(out)
}

fn number(rest: &mut std::str::Chars<'_>, digits: u32, radix: u32) -> Option<u32> {
    (0..digits).try_fold(0, |value, _| Some(value * radix + rest.next()?.to_digit(radix)?))
}

fn push_scalar(out: &mut Vec<u8>, value: u32) -> Option<()> {
    out.extend_from_slice(char::from_u32(value)?.encode_utf8(&mut [0; 4]).as_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_quoted_as_stock_clients_quote_them() {
        // Each pair was seen in a tree that stock restic wrote.
        for (name, quoted) in [
            (&b"bad\xff\xfename\"q\\"[..], "bad\\xff\\xfename\\\"q\\\\"),
            (b"new\nline\ttab\x01\x7f\x07\x0b", "new\\nline\\ttab\\x01\\x7f\\a\\v"),
            ("uml\u{e4}ut \u{2028} \u{200b} x".as_bytes(), "uml\u{e4}ut \\u2028 \\u200b x"),
            (
                "it's \u{1F600} \u{fffd} \u{feff} \u{a0}".as_bytes(),
                "it's \u{1F600} \u{fffd} \\ufeff \\u00a0",
            ),
            ("e\u{301} \u{301}".as_bytes(), "e\u{301} \u{301}"),
        ] {
            assert_eq!(quote(name), quoted);
            assert_eq!(unquote(quoted).as_deref(), Some(name));
        }
        assert_eq!(quote("\u{e0001}".as_bytes()), "\\U000e0001");
    }

    #[test]
    fn broken_escapes_are_refused() {
        for bad in ["\\", "\\x1", "\\xg0", "\\u12", "\\ud800", "\\U00110000", "\"", "\\'", "\\400"]
        {
            assert_eq!(unquote(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_name_survives(name in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(unquote(&quote(&name)), Some(name));
        }

        #[test]
        fn no_text_makes_unquoting_panic(text in any::<String>()) {
            let _ = unquote(&text);
        }
    }
}
