//! JSON strings as Go's encoder writes them, since a tree's name is the hash of its text.
//!
//! `<`, `>`, `&`, U+2028 and U+2029 are escaped; bytes that are not UTF-8 become U+FFFD, escaped.

use std::fmt::Write;

/// Appends `bytes` as a JSON string with its quotes.
pub(crate) fn string(out: &mut String, bytes: &[u8]) {
    out.push('"');
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\x1f' => {
                    let _ = write!(out, "\\u{:04x}", u32::from(character));
                }
                _ => out.push(character),
            }
        }
        for _ in chunk.invalid() {
            out.push_str("\\ufffd");
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    #[test]
    fn strings_are_escaped_as_stock_clients_escape_them() {
        let mut out = String::new();
        super::string(&mut out, b"a<&>\"\\\n\x01\x7f\xff\xe2\x80\xa8\xc3\xa4\xef\xbf\xbd");
        assert_eq!(
            out,
            "\"a\\u003c\\u0026\\u003e\\\"\\\\\\n\\u0001\x7f\\ufffd\\u2028\u{e4}\u{fffd}\""
        );
    }
}
