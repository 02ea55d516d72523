//! Texts that people configure: what slips into them unseen, and what HTTP or a URL would drop or read differently.
//!
//! No function returns any of the text, which may be a secret.

/// What is around a secret, or in it, that can't be meant: a byte order mark, a second line, white space, quotes, a
/// placeholder that nothing has replaced.
pub fn surroundings(text: &str) -> Option<&'static str> {
    let enclosed = |open, close| text.len() > 1 && text.starts_with(open) && text.ends_with(close);
    if text.contains('\u{feff}') {
        Some("a byte order mark (U+FEFF) in it; save the text as UTF-8 without one")
    } else if text.trim_matches(['\r', '\n']).contains(['\r', '\n']) {
        Some("more than one line")
    } else if text.chars().any(|c| c.is_control() && !matches!(c, '\t' | '\r' | '\n')) {
        Some("a control character in it")
    } else if text.trim() != text {
        Some("white space before or after it")
    } else if enclosed("\"", "\"") || enclosed("'", "'") {
        Some("quotes around it")
    } else if enclosed("${", "}") || enclosed("$(", ")") || enclosed("{{", "}}") || enclosed("<", ">") {
        Some("a placeholder that nothing has replaced")
    } else {
        None
    }
}

/// What HTTP would drop or forbid in the value of a header. RFC 9110 allows visible ASCII, with spaces and tabs between.
pub fn unlike_a_header_value(text: &str) -> Option<&'static str> {
    let fits = |byte: u8| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\t');
    if !text.bytes().all(fits) {
        Some("a character that no header can have; use visible ASCII, and spaces between")
    } else if text.trim() != text {
        Some("white space before or after it, which HTTP drops")
    } else {
        None
    }
}

/// Whether a header belongs to one connection or to the message itself, so that proxies and clients set it themselves.
pub fn is_of_the_connection(header: &str) -> bool {
    const THEIRS: [&str; 13] = [
        "connection",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    THEIRS.iter().any(|theirs| theirs.eq_ignore_ascii_case(header))
}

/// The delimiter in a URL's user, password or path that is not percent-encoded, so that the URL is read differently than
/// it was meant: in `amqp://u:p@ss#1@h/v` the host is `ss`.
pub fn unencoded_delimiter(url: &str) -> Option<&'static str> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let is_escape = |escape: &[u8]| escape.len() > 1 && escape[..2].iter().all(u8::is_ascii_hexdigit);
    let broken_escape = |(at, byte): (usize, u8)| byte == b'%' && !is_escape(&rest.as_bytes()[at + 1..]);
    if url.contains(|c: char| c.is_whitespace() || c.is_control()) {
        Some("white space or a control character in it; write %20 for a space")
    } else if rest.contains('#') {
        Some("a \"#\" in it; write %23")
    } else if path.contains('@') {
        Some("a \"/\", \"?\" or \"@\" in the user, the password or the path; write %2F, %3F, %40")
    } else if authority.matches('@').count() > 1 {
        Some("an \"@\" in the user or the password; write %40")
    } else if rest.bytes().enumerate().any(broken_escape) {
        Some("a \"%\" that begins no escape; write %25")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_surrounds_a_secret_is_named() {
        for (text, found) in [
            ("\u{feff}s3cret", "byte order mark"),
            ("s3cret\nsecond", "more than one line"),
            ("s3cret\r\nsecond\r\n", "more than one line"),
            ("s3\u{0}cret", "control character"),
            (" s3cret", "white space"),
            ("s3cret\n", "white space"),
            ("s3cret\u{a0}", "white space"),
            ("\"s3cret\"", "quotes"),
            ("'s3cret'", "quotes"),
            ("${TOKEN}", "placeholder"),
            ("$(TOKEN)", "placeholder"),
            ("{{ token }}", "placeholder"),
            ("<token>", "placeholder"),
        ] {
            let message = surroundings(text).unwrap_or_else(|| panic!("{text:?} passes"));
            assert!(message.contains(found) && !message.contains("cret"), "{text:?}: {message}");
        }
        for fine in ["s3cret", "two words", "it's", "\"", "'", "pa\"ss", "$uper", "<", "a<b>", "ü"] {
            assert_eq!(surroundings(fine), None, "{fine}");
        }
    }

    #[test]
    fn a_header_carries_visible_ascii() {
        for fine in ["Bearer a-b", "a\tb", "~!"] {
            assert_eq!(unlike_a_header_value(fine), None, "{fine}");
        }
        for wrong in ["ü", "a\nb", " a", "a ", "a\t", "\u{7f}"] {
            assert!(unlike_a_header_value(wrong).is_some(), "{wrong:?}");
        }
        assert!(is_of_the_connection("Content-Length") && !is_of_the_connection("x-key"));
    }

    #[test]
    fn delimiters_are_encoded() {
        for (url, found) in [
            ("amqp://u:c@nary#1@h/v", "%23"),
            ("amqp://u:c@nary@h/v", "%40"),
            ("amqp://u:c/nary@h/v", "%2F"),
            ("amqp://u:c?nary@h/v", "%3F"),
            ("amqp://u:c%nary@h/v", "%25"),
            ("amqp://u:canary@h/v%2", "%25"),
            ("amqp://u:c nary@h/v", "%20"),
            ("amqp://u:c\nnary@h/v", "%20"),
        ] {
            let message = unencoded_delimiter(url).unwrap_or_else(|| panic!("{url} passes"));
            assert!(message.contains(found) && !message.contains("nary"), "{url}: {message}");
        }
        for fine in ["amqp://h", "amqp://u:p%40ss%231@h:1/%2f?heartbeat=3", "amqps://u:p:q@[::1]:5671//", "h"] {
            assert_eq!(unencoded_delimiter(fine), None, "{fine}");
        }
    }
}
